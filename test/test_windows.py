"""
What only a program for Windows does: its paths and files, the machine's root store, services, consoles. Runs under wine.
The other tests run there, too: what a configuration's bytes and a port in use mean is proved there.
"""

import fcntl
import hashlib
import json
import os
import pty
import re
import shutil
import socket
import ssl
import struct
import subprocess
import termios

import pytest

import faults_base as base
import harness
import servers
import words
from harness import Raw
from services import Service, alert_arrives, windows_path, wine

STORES = 'HKLM\\Software\\Microsoft\\SystemCertificates\\%s\\Certificates\\%s'
SERVICES = 'HKLM\\SYSTEM\\CurrentControlSet\\Services\\'
NOWHERE = [{'url': 'http://127.0.0.1:1/'}]
pytestmark = pytest.mark.windows


def log_file(folder):
    """The path of the one log file in a folder, None while there is none."""
    names = [name for name in (os.listdir(folder) if os.path.isdir(folder) else ()) if name.endswith('.log')]
    return os.path.join(folder, names[0]) if len(names) == 1 else None


def works(t, what, receiver, port, argument, folder, log='log', cwd='/'):
    """With that argument an alert arrives, and journal and log are made in that folder. Returns what the program has printed."""
    program = t.start(args=[argument], cwd=cwd)
    alert_arrives(t, what, receiver, port)
    t.equal('%s: exit code' % what, program.stop(), 0)
    t.check('%s: journal and log are there' % what, os.path.isfile(os.path.join(folder, 'butler_webhook.state/journal')) and
            log_file(os.path.join(folder, log)))
    return program.stdout


def pending(t, path):
    """The tasks of what waits, of a state directory in which nothing is dead."""
    found = json.loads(t.run('--pending', '--json', path).stdout)
    t.equal('nothing is dead', (found['dead'], found['handedOver']), ([], []))
    return sorted(entry['alert']['taskName'] for entry in found['waiting'])


# ---- Paths and files ------------------------------------------------------------------------------------------------


@harness.limit(120)
@pytest.mark.parametrize('name', ['Übung größer', '監視 \U0001F6A8', "a & b 'c' (d) %TEMP% $x.y"], ids=range(1, 4))
def test_paths(t, name):
    """The configuration in a folder of this name, written in each way that Windows knows."""
    receiver = t.receiver()
    folder = os.path.join(t.tmp, name)
    os.mkdir(folder)
    path, port = t.config([{'url': receiver.url()}], name=name + '/' + name + '.yaml', fileLogging=True, logDirectory=name)
    file = os.path.basename(path)
    for what, argument, cwd in (
            ('backslashes', windows_path(path), '/'), ('slashes', windows_path(path, '/'), '/'),
            ('both', Raw('Z:' + path.replace('/', '\\', 2)), '/'),
            ('relative', Raw(file), folder), ('relative with a dot', Raw('.\\' + file), folder),
            ('through the parent', Raw('..\\' + name + '\\' + file), folder),
            ('relative to the parent', Raw(name + '/' + file), t.tmp)):
        shown = re.search(' starting with (.*)', works(t, what, receiver, port, argument, folder, name, cwd))[1]
        t.check('%s: the log names it as it was given' % what, shown.replace('\\', '/').endswith(file), shown)
    t.equal('nothing else was made', sorted(os.listdir(t.tmp)), [name])


def test_paths_unc(t):
    """The configuration and its folders on a share. Wine finds the shares of a server in a folder of its prefix."""
    receiver = t.receiver()
    share = os.path.basename(t.tmp)
    server = os.path.join(harness.SYSTEM.prefix, 'dosdevices/unc/fileserver')
    os.makedirs(server, exist_ok=True)
    os.symlink(t.tmp, os.path.join(server, share))
    _, port = t.config([{'url': receiver.url()}], fileLogging=True, logDirectory=Raw("'\\\\fileserver\\%s\\log'" % share))
    try:
        for argument in ('\\\\fileserver\\%s\\butler.yaml' % share, '//fileserver/%s/butler.yaml' % share):
            works(t, argument, receiver, port, Raw(argument), t.tmp)
    finally:
        os.unlink(os.path.join(server, share))


def test_files(t):
    """Output and log are UTF-8 with CR LF. Others may read log and journal, rename and delete the log: the program goes on."""
    receiver = t.receiver()
    name = 'Ünïcode 監視 \U0001F6A8'
    path, port = t.config([{'url': receiver.url(), 'description': name}], fileLogging=True, logDirectory='log')
    checked = subprocess.run(harness.SYSTEM.command(t.binary, ['--check', path]), stdin=subprocess.DEVNULL, capture_output=True,
                             env=t.environment(), timeout=30 * harness.SLOW).stdout
    program = t.start(path)
    program.send(b'')
    alert_arrives(t, 'at first', receiver, port, name)
    base.logged(t, 'it says so', program, words.delivered())
    t.equal('an empty datagram is no error', program.lines('cannot receive'), [])
    log = log_file(os.path.join(t.tmp, 'log'))
    base.until(lambda: harness.SYSTEM.output(base.read(log)).decode() == program.stdout, 5)
    t.equal('the log has what the console has', t.read(log), program.stdout)
    for what, data in (('--check', checked), ('the log', base.read(log))):
        t.check('%s is UTF-8' % what, name.encode() in data, data)
        t.check('%s has CR LF' % what, data.count(b'\n') == data.count(b'\r\n') > 4 and b'\r\r' not in data, data)
    state = os.path.join(t.tmp, 'butler_webhook.state')
    for file in (log, state + '/journal'):      # wine's `type` wants it for itself
        copy = os.path.join(t.tmp, 'copy')
        wine(t, 'cmd', '/c', 'copy', '/y', windows_path(file), windows_path(copy))
        data = base.read(copy)
        t.check('%s is read' % file, data and base.read(file).startswith(data))
    wine(t, 'cmd', '/c', 'ren', windows_path(log), 'put-aside.txt')
    t.check('the log is renamed', os.path.exists(t.tmp + '/log/put-aside.txt'), os.listdir(t.tmp + '/log'))
    alert_arrives(t, 'after that', receiver, port)
    wine(t, 'cmd', '/c', 'del', windows_path(t.tmp + '/log/put-aside.txt'))
    t.equal('the state directory is for no others', oct(os.stat(state).st_mode & 0o7007), '0o0')
    t.equal('exit code', program.stop(), 0)
    t.check('the log is deleted', not os.path.exists(t.tmp + '/log/put-aside.txt'), os.listdir(t.tmp + '/log'))
    t.equal('nothing waits', pending(t, path), [])


@harness.limit(120)
def test_files_letters_held(t):
    """A person has dead-letters.ndjson open: letters wait, everything else goes on, and they are written afterwards."""
    receiver = t.receiver(lambda request, connection: harness.response(404 if request.path == '/gone' else 200))
    path, port = t.config([{'url': receiver.url()}, {'url': receiver.url('/gone'), 'kind': 'aborted'}])
    program = t.start(path, binary=t.binary_test)
    state = os.path.join(t.tmp, 'butler_webhook.state')
    letters = os.path.join(state, 'dead-letters.ndjson')
    base.write(letters, b'')
    # As editors do: cmd has it open for itself alone, until it gets a line.
    holder = subprocess.Popen([harness.SYSTEM.loader, 'cmd', '/c', 'set /p x= >> ' + windows_path(letters)], cwd=t.tmp,
                              stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=t.environment())
    try:
        t.require('another program has the file open', base.until(
            lambda: wine(t, 'cmd', '/c', 'type', windows_path(letters))[0] != 0, 10))
        for number in range(3):
            program.send(harness.datagram(id=base.ABORTED, task='dead %d' % number))
        base.logged(t, 'it is told', program, words.state(r'dead-letters\.ndjson: .*; trying again$'))
        for _ in range(60):        # enough for the journal to be rewritten
            alert_arrives(t, 'meanwhile', receiver, port)
        base.soon(t, 'the journal is rewritten', lambda: len(base.read(state + '/journal')) < 30000)
        t.equal('the letters wait', pending(t, path), ['dead 0', 'dead 1', 'dead 2'])
    finally:
        holder.communicate(b'\r\n', timeout=30 * harness.SLOW)
    base.logged(t, 'it is told that they can be written', program,
                r' info: disk: dead-letters\.ndjson: works again$')
    t.equal('told once', len(program.lines(r' error: disk: dead-letters\.ndjson: ')), 1)
    found = [json.loads(line)['alert']['taskName'] for line in base.read(letters).splitlines() if line.strip()]
    t.equal('then they are in the file', sorted(found), ['dead 0', 'dead 1', 'dead 2'])
    t.equal('exit code', program.stop(), 0)


# ---- Consoles, roots ------------------------------------------------------------------------------------------------


def on_terminal(t, args, stop=None):
    """Runs the program on a terminal, types Ctrl-C once it has written stop; its text, without control codes, and exit code."""
    command = harness.SYSTEM.command(t.binary, args)
    environment = t.environment({'TERM': 'xterm'})
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 250, 0, 0))
        os.execvpe(command[0], command, environment)
    text = b''
    try:
        while True:
            text += os.read(terminal, 65536)
            if stop and stop in text:
                os.write(terminal, b'\x03')
                stop = None
    except OSError:     # all have closed it
        os.close(terminal)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return re.sub(rb'\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07', b'', text).decode('utf-8', 'replace'), code


def test_console(t):
    """
    On a console the log is readable in any script, and Ctrl-C stops the program in order. What commands print shows only in
    ASCII: wine's C library takes other text for Latin-1 there.
    """
    path, _ = t.config([{'url': 'http://127.0.0.1:1/', 'description': 'Störung 監視'}])
    text, code = on_terminal(t, ['--check', path])
    t.check('--check', code == 0 and '0 errors, 0 warnings' in text, [code, text])
    text, code = on_terminal(t, [path], b'listening on')
    t.check('any script', 'Störung' in text and '監' in text and 'Ã' not in text, text)
    t.check('Ctrl-C stops it', code == 0 and 'stopping: Ctrl-C received' in text and 'stopped: 0 received' in text, [code, text])


@harness.alone
@harness.limit(180)
def test_roots_of_the_machine(t):
    """Store ROOT counts beside the built-in roots, and no other store; it is read at each start."""
    server = t.receiver(ssl_context=servers.good().context())
    path, _ = t.config([{'url': server.url('/x', host='localhost')},
                        {'url': server.url('/y', host='localhost'), 'cert': {'enable': False}}])
    der = ssl.PEM_cert_to_DER_cert(base.read(servers.root().pem).decode())
    blob = b''.join(number.to_bytes(4, 'little') for number in (32, 1, len(der))) + der
    for what, store, trusted in (('in CA', 'CA', False), ('in Root', 'Root', True), ('removed', None, False)):
        key = STORES % (store, hashlib.sha1(der).hexdigest().upper())
        try:
            if store:
                code, text = wine(t, 'reg', 'add', key, '/v', 'Blob', '/t', 'REG_BINARY', '/d', blob.hex(), '/f')
                t.require('it gets into store %s' % store, code == 0, text)
            program = t.start(path)
            program.send(harness.datagram())
            for name in ('failure 1', 'failure 2'):
                line = words.delivered(name) if trusted else words.down(name, '.*not trusted')
                t.check('%s: %s' % (what, name), program.wait_log(line, 15), program.log[-3:])
            t.equal('%s: exit code' % what, program.stop(), 0)
        finally:
            wine(t, 'reg', 'delete', key, '/f')


# ---- Services -------------------------------------------------------------------------------------------------------


def events(*what):
    """The lines of the event log with these texts: wine keeps none, but its trace shows them. An error's begins with `err`."""
    text = base.read(harness.SYSTEM.trace).decode('utf-8', 'replace')
    lines = re.findall(r'(?:trace|warn|err):eventlog:ReportEventW L".*"', text)
    return [line for line in lines if all(word in line for word in what)]


@harness.limit(180)
def test_service(t):
    """
    sc and net start and stop it. It logs into logDirectory whatever fileLogging says; events tell start and stop; what waits
    when it stops is sent after the next start.
    """
    receiver = t.receiver()
    os.mkdir(os.path.join(t.tmp, 'a service'))
    path, port = t.config([{'url': receiver.url()}], name='a service/butler.yaml', logDirectory='log ü')
    service = Service(t, path)
    service.told('sc', 'start')
    alert_arrives(t, 'sc start', receiver, port)
    service.told('sc', 'stop')
    receiver.answer = harness.response(503)
    service.told('net', 'start')
    alert_arrives(t, 'net start', receiver, port, 'waits')
    service.told('net', 'stop')
    t.equal('it waits', pending(t, path), ['waits'])
    receiver.answer = harness.response(200)
    service.told('sc', 'start')
    base.soon(t, 'it is sent', lambda: pending(t, path) == [])
    service.told('sc', 'stop')
    log = t.read(log_file(os.path.join(os.path.dirname(path), 'log ü')))
    for line, count in ((words.LISTENING, 3), (words.STOPPING + 'service stop received$', 3), (words.delivered(), 2)):
        t.equal('the log has %r' % line, len(re.findall('(?m)' + line, log)), count)
    t.equal('events tell each start', len(events(os.path.basename(t.tmp), 'started with')), 3)
    t.check('events tell stops', events('stopped: 1 received, 1 accepted, 0 delivered, 0 given up, 0 lost, 1 waiting'))


@harness.limit(180)
def test_service_events(t):
    """The event log is told of a webhook that is down, and up again, and of an alert that is given up."""
    receiver = t.receiver(lambda request, connection: harness.response(500))
    tag = os.path.basename(t.tmp)
    path, port = t.config([{'url': receiver.url(), 'description': tag}], logDirectory='log', rateLimit=0)
    service = Service(t, path)
    service.told('sc', 'start')
    for kind, text, answer in (('warn', 'is down: ', 200), ('trace', 'is up again', 404), ('err', ' given up ', 200)):
        for number in range(3 if kind == 'warn' else 1):
            alert_arrives(t, text, receiver, port)
        base.soon(t, text, lambda: [line for line in events(tag, text) if line.startswith(kind)])
        receiver.answer = harness.response(answer)
    service.told('sc', 'stop')


@harness.limit(180)
def test_service_that_cannot_start(t):
    """It stops with an exit code of its own, and an error event says why, in which the file or the folder is named."""
    tag = os.path.basename(t.tmp)
    good, port = t.config(NOWHERE, logDirectory='log')
    text = base.read(good).decode()
    base.write(os.path.join(t.tmp, 'broken.yaml'), text.replace("logLevel: 'info'", "logLevel: 'loud'").encode())
    base.write(os.path.join(t.tmp, 'wide.yaml'), text.encode('utf-16-le'))      # without a byte order mark
    t.config(NOWHERE, name='nostate.yaml', butlerWebhook={'stateDirectory': 'Z:/proc/1/%s' % tag})
    t.config(NOWHERE, name='nolog.yaml', logDirectory='Z:/proc/1/%s' % tag)

    def refused(name, code, why, what=tag):
        service = Service(t, os.path.join(t.tmp, name))
        service.sc('start')
        service.reaches(name, (1, 1066, code))
        told = [line for line in events(why, what) if line.startswith('err')]
        t.check('%s: an error event says why' % name, told, events(why))

    for name, code, why in (('broken.yaml', 2, 'logLevel'), ('wide.yaml', 2, 'UTF-8'), ('missing.yaml', 2, 'No such file'),
                            ('nostate.yaml', 1, 'butlerWebhook.stateDirectory: '), ('nolog.yaml', 1, 'Butler.logDirectory: ')):
        refused(name, code, why)
    program = t.start(good)
    refused('butler.yaml', 1, 'is used by another')
    t.equal('the other one goes on, exit code', program.stop(), 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(('127.0.0.1', port))
        refused('butler.yaml', 1, '127.0.0.1:%d (UDP)' % port, 'in use')
    log = t.read(log_file(os.path.join(t.tmp, 'log')))
    t.check('so does the log', re.search(r' error: .*127\.0\.0\.1:%d.*in use' % port, log), log)


@harness.limit(180)
@harness.alone
def test_service_installed(t):
    """--install registers the service and readies its folders; again: the same; --uninstall takes it away."""
    receiver = t.receiver()
    folder = os.path.join(t.tmp, 'Ünser Dienst')
    os.mkdir(folder, 0o700)     # wine forgets that a folder does not inherit its parent's rules
    path, port = t.config([{'url': receiver.url()}], name='Ünser Dienst/butler.yaml', logDirectory='log',
                          butlerWebhook={'metricsFile': '../a.prom'})
    service = Service(t, path, 'ButlerWebhook')
    t.equal('there is none before', service.state(), None)
    for turn in ('first', 'again'):
        done = t.run('--install', path)
        t.check('%s: --install' % turn, done.returncode == 0 and 'service ButlerWebhook: registered, ' in done.stdout,
                [done.returncode, done.stdout, done.stderr])
        for right in ('.exe: the service may read it', '/butler.yaml: the service may read it',
                      'butler_webhook.state: the service may write in it', 'log: the service may write in it',
                      '/../.: the service may write in it'):
            t.equal('%s: %s' % (turn, right), len(re.findall('(?m)%s$' % re.escape(right), done.stdout)), 1)
        for key, name, wanted in (
                ('ButlerWebhook', 'Start', '0x2'), ('ButlerWebhook', 'Type', '0x10'),
                ('ButlerWebhook', 'ObjectName', r'NT SERVICE\ButlerWebhook'),
                ('ButlerWebhook', 'ImagePath', '"%s" "%s"' % (windows_path(t.binary), windows_path(path))),
                ('ButlerWebhook', 'Description', 'Calls webhooks when Qlik Sense reload tasks fail or are aborted.'),
                ('EventLog\\Application\\ButlerWebhook', 'EventMessageFile', r'%SystemRoot%\System32\EventCreate.exe')):
            text = re.sub('[^ -~\n]+', '?', wine(t, 'reg', 'query', SERVICES + key, '/v', name)[1])     # as reg does itself
            wanted = re.escape(re.sub('[^ -~]+', '?', wanted))
            t.check('%s: %s' % (turn, name), re.search(r'(?m)%s +REG_\w+ +%s *$' % (name, wanted), text), text)
        if turn == 'first':
            modes = [os.stat(os.path.join(folder, name)).st_mode & 0o7007 for name in ('butler_webhook.state', 'log')]
            t.equal('the folders are there, for no others', modes, [0, 0])
    service.told('sc', 'start')
    alert_arrives(t, 'as a service', receiver, port)
    done = t.run('--uninstall')
    t.check('--uninstall stops and removes it', done.returncode == 0 and 'removed' in done.stdout, [done.stdout, done.stderr])
    t.equal('it is gone', base.until(lambda: service.state() is None, 10), True)
    t.check('it stopped in order', ' info: stopped: 1 received' in t.read(log_file(folder + '/log')))
    t.check('its files stay', os.path.isfile(folder + '/butler_webhook.state/journal') and os.path.isfile(path))
    done = t.run('--uninstall')
    t.check('there is nothing more', done.returncode == 1 and 'does not exist' in done.stdout, [done.returncode, done.stdout])
    base.write(path, base.read(path) + b'  butlerWebhook: {port: none}\n')
    done = t.run('--install', path)
    t.equal('a configuration that is not valid is not installed', (done.returncode, service.state()), (2, None))


@harness.limit(180)
@harness.alone
def test_service_without_a_right(t):
    """A right that cannot be given, or a folder that cannot be made: --install says which, and exits with 1."""
    frozen = os.path.join(t.tmp, 'read only')
    os.mkdir(frozen)
    if subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', frozen], capture_output=True).returncode != 0:
        t.skip('a read-only disk needs mount')
    try:
        ca = shutil.copy(servers.root().pem, os.path.join(frozen, 'ca.pem'))
        subprocess.run(['mount', '-o', 'remount,ro', frozen], check=True)
        path, _ = t.config([{'url': 'https://127.0.0.1:1/', 'cert': {'enable': True, 'certCA': ca}}],
                           logDirectory=os.path.join(frozen, 'log'))
        Service(t, path, 'ButlerWebhook')
        done = t.run('--install', path)
        t.equal('exit code', done.returncode, 1)
        for right in ('/ca.pem: cannot let the service read it: ', '/butler.yaml: the service may read it',
                      'butler_webhook.state: the service may write in it',
                      'read only/log: cannot let the service write in it: '):
            t.check(right, right in done.stdout, done.stdout)
        t.equal('--uninstall', t.run('--uninstall').returncode, 0)
    finally:
        subprocess.run(['umount', '-l', frozen], capture_output=True)
