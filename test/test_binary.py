"""What is in the binary for Linux, and that it needs nothing of the system. binary.sh runs this."""

import os
import shutil
import subprocess

import checks
import harness
import servers
import words


def test_licences(t):
    """--licenses names all that is inside, in the version that was built."""
    done = t.run('--licenses')
    t.equal('exit code, stderr', (done.returncode, done.stderr), (0, ''))
    for name in ('The butler_webhook authors', 'Apache License', 'The Mbed TLS Contributors', 'Kirill Simonov', 'Dave Gamble',
                 'Rich Felker', 'Mozilla Public License', 'certdata.txt', 'GCC Runtime Library Exception'):
        t.check('it names %s' % name, name in done.stdout)
    commits = ''.join(line for line in done.stdout.splitlines() if 'later commits' in line)
    for entry in checks.read_lock().values():
        if entry.name.startswith('musl-'):
            t.check('it names the commit of %s' % entry.name, entry.name[len('musl-'):] in commits, commits)
        else:
            t.check('it names the version of %s' % entry.name, entry.version in done.stdout)


def test_empty_root(t):
    """The binary, a configuration and a CA file, nothing else. The call goes out over TLS, which needs random numbers."""
    root = os.path.join(t.tmp, 'root')
    os.mkdir(root)
    shutil.copy(t.binary, root)
    shutil.copy(servers.root().pem, os.path.join(root, 'ca.pem'))
    receiver = t.receiver(ssl_context=servers.good().context())
    t.config([{'url': receiver.url(), 'cert': {'enable': True, 'certCA': 'ca.pem'}}], name='root/butler.yaml')
    wrap = ['chroot', root] if os.getuid() == 0 else ['unshare', '-r', 'chroot', root]
    if os.getuid() != 0 and subprocess.run(['unshare', '-r', 'true'], capture_output=True).returncode != 0:
        t.skip('this system lets a normal user not change the root')
    done = subprocess.run([*wrap, '/butler_webhook', '--check', '/butler.yaml'], capture_output=True, text=True)
    t.equal('--check', (done.returncode, done.stderr), (0, ''))
    program = t.start('/butler.yaml', binary='/butler_webhook', wrap=wrap)
    program.send(harness.datagram())
    t.check('it calls over TLS', program.wait_log(words.delivered('failure 1', status=200)), program.log)
    t.equal('exit code', program.stop(), 0)
    found = sorted(os.path.relpath(os.path.join(folder, name), root) for folder, _, names in os.walk(root) for name in names)
    t.equal('nothing was written but the state directory', found, [
        'butler.yaml', 'butler_webhook', 'butler_webhook.state/journal', 'butler_webhook.state/lock', 'ca.pem'])
