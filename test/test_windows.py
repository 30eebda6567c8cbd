"""
What only a program for Windows does: its paths and files, the machine's root store, services, consoles. Runs under wine.
The other tests run there, too.
"""

import fcntl
import hashlib
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import termios
import time
import warnings

import pytest

import harness
import servers
from harness import Raw

NAMES = ('with spaces', 'Übung größer', '監視 サーバー', 'alarm \U0001F6A8', "a & b 'c' (d) %TEMP% $x", 'x.y.z')
ROOT = harness.ROOT
pytestmark = pytest.mark.skipif(not harness.WINDOWS, reason='for the program for Windows')


# ---- Helpers --------------------------------------------------------------------------------------------------------


def windows_path(path, slash='\\'):
    return Raw('Z:' + path.replace('/', slash))


def wine(t, *args, timeout=30):
    """Runs one of wine's own programs; its output as text."""
    done = subprocess.run([harness.SYSTEM.loader] + list(args), stdin=subprocess.DEVNULL, capture_output=True,
                          env=t.environment(), timeout=timeout * harness.SLOW, cwd=t.tmp)
    return done.returncode, (done.stdout + done.stderr).decode('utf-8', 'replace').replace('\r', '')


def until(condition, timeout=10):
    deadline = time.monotonic() + timeout * harness.SLOW
    while True:
        found = condition()
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def read_bytes(path):
    try:
        with open(path, 'rb') as file:
            return file.read()
    except FileNotFoundError:
        return b''


def log_file(folder):
    """The path of the one log file in a folder, None while there is none."""
    names = [name for name in (os.listdir(folder) if os.path.isdir(folder) else ()) if name.endswith('.log')]
    return os.path.join(folder, names[0]) if len(names) == 1 else None


def alert_arrives(t, what, receiver, port, task=None):
    """Sends one alert, and checks that it comes."""
    task = task or harness.guid()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.sendto(harness.datagram(task=task), ('127.0.0.1', port))
    return t.check(what, until(lambda: [r for r in receiver.requests if r.event().get('taskName') == task]),
                   len(receiver.requests))


# ---- Paths ----------------------------------------------------------------------------------------------------------


def paths_test(name):
    @harness.limit(120)
    def test(t):
        """The configuration in a folder of this name, written in each way that Windows knows."""
        receiver = t.receiver()
        folder = os.path.join(t.tmp, name)
        os.mkdir(folder)
        path, port = t.config([{'url': receiver.url()}], name=name + '/' + name + '.yaml', fileLogging=True, logDirectory=name)
        way = os.path.basename(path)
        for what, argument, cwd in (
                ('backslashes', windows_path(path), '/'), ('slashes', windows_path(path, '/'), '/'),
                ('both', Raw('Z:' + path.replace('/', '\\', 2)), '/'),
                ('relative', Raw(way), folder), ('relative with a dot', Raw('.\\' + way), folder),
                ('through the parent', Raw('..\\' + name + '\\' + way), folder),
                ('relative to the parent', Raw(name + '/' + way), t.tmp)):
            program = t.start(args=[argument], cwd=cwd)
            program.port = port
            alert_arrives(t, '%s: an alert arrives' % what, receiver, port)
            t.equal('%s: exit code' % what, program.stop(), 0)
            t.check('%s: the journal is there' % what, os.path.isfile(os.path.join(folder, 'butler_webhook.state/journal')))
            t.check('%s: and the log' % what, log_file(os.path.join(folder, name)), os.listdir(folder))
            shown = program.lines(' starting with ')[0].partition(' starting with ')[2]
            t.check('%s: the log names it as it was given' % what, shown.replace('\\', '/').endswith(way), shown)
        t.equal('nothing else was made', sorted(os.listdir(t.tmp)), [name])
    return test


@harness.limit(120)
@pytest.mark.parametrize('name', NAMES, ids=range(1, len(NAMES) + 1))
def test_paths(t, name):
    paths_test(name)(t)


def test_paths_unc(t):
    """A share. Wine finds the shares of a server in a folder of its prefix."""
    receiver = t.receiver()
    os.mkdir(os.path.join(t.tmp, 'on a share'))
    path, port = t.config([{'url': receiver.url()}], name='on a share/butler.yaml', fileLogging=True, logDirectory='log')
    server = os.path.join(harness.SYSTEM.prefix, 'dosdevices/unc/fileserver')
    os.makedirs(server, exist_ok=True)
    share = 'share%d' % port
    os.symlink(t.tmp, os.path.join(server, share))
    try:
        for argument in ('\\\\fileserver\\%s\\on a share\\butler.yaml' % share, '//fileserver/%s/on a share/butler.yaml' % share):
            program = t.start(args=[Raw(argument)], cwd='/')
            program.port = port
            alert_arrives(t, '%s: an alert arrives' % argument[:12], receiver, port)
            t.equal('%s: exit code' % argument[:12], program.stop(), 0)
            t.check('%s: the journal is there' % argument[:12],
                    os.path.isfile(os.path.join(t.tmp, 'on a share/butler_webhook.state/journal')))
        t.check('so is the log', log_file(os.path.join(t.tmp, 'on a share/log')))
        elsewhere, port = t.config([{'url': receiver.url()}], butlerWebhook={
            'stateDirectory': Raw("'\\\\fileserver\\%s\\state'" % share)}, fileLogging=True,
            logDirectory=Raw("'\\\\fileserver\\%s\\log'" % share))
        program = t.start(elsewhere)
        alert_arrives(t, 'directories on a share: an alert arrives', receiver, port)
        t.equal('directories on a share: exit code', program.stop(), 0)
        t.check('directories on a share: made', os.path.isfile(os.path.join(t.tmp, 'state/journal')) and
                log_file(os.path.join(t.tmp, 'log')))
    finally:
        os.unlink(os.path.join(server, share))


# ---- Files ----------------------------------------------------------------------------------------------------------


def test_files_encodings(t):
    """CRLF, a byte order mark, both, UTF-16 with a mark; without one, and Windows-1252, are refused in words."""
    receiver = t.receiver()
    path, port = t.config([{'url': receiver.url(), 'description': 'Störungen'}])
    with open(path, encoding='utf-8') as file:
        text = file.read()
    for what, data in (('CRLF', text.replace('\n', '\r\n').encode()), ('BOM', b'\xef\xbb\xbf' + text.encode()),
                       ('BOM and CRLF', b'\xef\xbb\xbf' + text.replace('\n', '\r\n').encode()),
                       ('UTF-16 LE', b'\xff\xfe' + text.encode('utf-16-le'))):
        with open(path, 'wb') as file:
            file.write(data)
        done = t.run('--check', path)
        t.equal('%s: --check' % what, (done.returncode, done.stderr), (0, ''))
        program = t.start(path)
        alert_arrives(t, '%s: an alert arrives' % what, receiver, port)
        t.check('%s: the description is whole' % what, program.lines('"Störungen"'))
        t.equal('%s: exit code' % what, program.stop(), 0)
    for what, data in (('UTF-16 without a mark', text.encode('utf-16-le')), ('Windows-1252', text.encode('cp1252'))):
        with open(path, 'wb') as file:
            file.write(data)
        for command in ([], ['--check']):
            done = t.run(*command, path)
            t.check('%s %s: refused with the place and the reason' % (what, ' '.join(command)),
                    done.returncode == 2 and re.search(r'butler\.yaml:\d+:\d+: error: .*UTF-8', done.stderr),
                    [done.returncode, done.stderr])


def test_files_output(t):
    """What goes to a pipe is UTF-8, each line with CR LF; the log file, too."""
    receiver = t.receiver()
    name = 'Ünïcode 監視 \U0001F6A8'
    path, port = t.config([{'url': receiver.url(), 'description': name}], fileLogging=True, logDirectory='log')
    raw = subprocess.run(harness.SYSTEM.command(t.binary, ['--check', path]), stdin=subprocess.DEVNULL, capture_output=True,
                         env=t.environment(), timeout=30 * harness.SLOW).stdout
    t.check('--check writes UTF-8', name.encode() in raw, repr(raw[-300:]))
    t.check('--check ends lines with CR LF', raw.endswith(b'\r\n') and raw.count(b'\n') == raw.count(b'\r\n'), repr(raw[-300:]))
    program = t.start(path)
    alert_arrives(t, 'an alert arrives', receiver, port, name)
    t.equal('exit code', program.stop(), 0)
    data = read_bytes(log_file(os.path.join(t.tmp, 'log')))
    t.check('the log file is UTF-8', name.encode() in data, repr(data[:300]))
    t.check('the log file ends lines with CR LF', data.count(b'\n') == data.count(b'\r\n') > 5 and b'\r\r' not in data)
    t.equal('it has what the console has', harness.SYSTEM.output(data).decode(), program.stdout)


def test_files_shared(t):
    """While it runs others may read the log and the journal, rename the log and delete it; it goes on."""
    receiver = t.receiver()
    path, port = t.config([{'url': receiver.url()}], fileLogging=True, logDirectory='log')
    program = t.start(path)
    alert_arrives(t, 'an alert arrives', receiver, port, 'first')
    log = log_file(os.path.join(t.tmp, 'log'))
    state = os.path.join(t.tmp, 'butler_webhook.state')
    for number, file in enumerate((log, state + '/journal')):      # wine's `type` wants it for itself
        copy = t.tmp + '/copy %d' % number
        code, text = wine(t, 'cmd', '/c', 'copy', windows_path(file), windows_path(copy))
        t.check('%s is read' % os.path.basename(file), read_bytes(copy) and read_bytes(file).startswith(read_bytes(copy)),
                [code, text])
    wine(t, 'cmd', '/c', 'ren', windows_path(log), 'put-aside.txt')
    t.check('the log is renamed', os.path.exists(t.tmp + '/log/put-aside.txt'), os.listdir(t.tmp + '/log'))
    alert_arrives(t, 'an alert arrives after that', receiver, port)
    wine(t, 'cmd', '/c', 'del', windows_path(t.tmp + '/log/put-aside.txt'))
    t.equal('the state directory is for no others', oct(os.stat(state).st_mode & 0o7007), '0o0')
    t.equal('exit code', program.stop(), 0)
    t.check('the log is deleted', not os.path.exists(t.tmp + '/log/put-aside.txt'), os.listdir(t.tmp + '/log'))
    t.equal('nothing waits', json.loads(t.run('--pending', '--json', path).stdout), {'waiting': [], 'dead': [], 'handedOver': []})


class Held:
    """A file that another program has open, for itself alone, as editors and virus scanners do."""

    def __init__(self, t, path):
        self._process = None

        def is_held():
            if self._process is None or self._process.poll() is not None:
                if self._process:
                    warnings.warn("wine's cmd has ended with %d" % self._process.returncode)
                self._process = subprocess.Popen([harness.SYSTEM.loader, 'cmd', '/c', 'set /p x= >> ' + windows_path(path)],
                                                 stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                                 env=t.environment(), cwd=t.tmp)
            return wine(t, 'cmd', '/c', 'type', windows_path(path))[0] != 0

        t.add(self)
        t.require('another program has the file open', until(is_held))

    def close(self):
        if self._process.poll() is None:
            self._process.communicate(b'\r\n', timeout=30 * harness.SLOW)


@harness.limit(120)
def test_files_letters_held(t):
    """A person has dead-letters.ndjson open: letters wait, everything else goes on, and they are written afterwards."""
    receiver = t.receiver(lambda request, connection: harness.response(404 if request.path == '/gone' else 200))
    path, port = t.config([{'url': receiver.url()}, {'url': receiver.url('/gone'), 'kind': 'aborted'}])
    program = t.start(path, binary=t.binary_test)
    letters = os.path.join(t.tmp, 'butler_webhook.state', 'dead-letters.ndjson')
    with open(letters, 'wb'):
        pass
    held = Held(t, letters)
    for number in range(3):
        program.send(harness.datagram(id='/scheduler-task-aborted/', task='dead %d' % number))
    t.check('it is told', program.wait_log(r' error: state directory: cannot write dead-letters\.ndjson: .*; trying again$'),
            program.log[-3:])
    for number in range(60):        # enough for the journal to be rewritten
        alert_arrives(t, 'an alert arrives meanwhile', receiver, port)
    t.check('the journal is rewritten',
            until(lambda: len(read_bytes(os.path.join(t.tmp, 'butler_webhook.state/journal'))) < 30000))
    waiting = json.loads(t.run('--pending', '--json', path).stdout)['waiting']
    t.equal('the letters wait', sorted(entry['alert']['taskName'] for entry in waiting), ['dead 0', 'dead 1', 'dead 2'])
    held.close()
    t.check('it is told that they can be written', program.wait_log(
        r' info: state directory: dead-letters\.ndjson can be written again$'), program.log[-3:])
    t.equal('told once', len(program.lines('cannot write dead-letters')), 1)
    found = [json.loads(line)['alert']['taskName'] for line in read_bytes(letters).splitlines() if line.strip()]
    t.equal('then they are in the file', sorted(found), ['dead 0', 'dead 1', 'dead 2'])
    t.equal('exit code', program.stop(), 0)


def test_files_in_use(t):
    """A second instance, and a port that is taken: it says which, and loses nothing of the first."""
    receiver = t.receiver()
    path, port = t.config([{'url': receiver.url()}], fileLogging=True, logDirectory='log')
    other, _ = t.config([{'url': receiver.url()}], name='other.yaml', fileLogging=True, logDirectory='log2')
    third, _ = t.config([{'url': receiver.url()}], name='third.yaml', port=port, fileLogging=True, logDirectory='log3',
                        butlerWebhook={'stateDirectory': 'third.state'})
    program = t.start(path)
    for what, file, words, log in (
            ('state directory', other, r'butlerWebhook\.stateDirectory: \S+ is used by another butler_webhook', 'log2'),
            ('port', third, r'127\.0\.0\.1:%d.*[Aa]ddress in use' % port, 'log3')):
        done = t.run(file)
        t.equal('%s: exit code' % what, done.returncode, 1)
        t.check('%s: stderr' % what, re.search(words, done.stderr), repr(done.stderr))
        t.check('%s: console' % what, re.search(' error: .*' + words, done.stdout), repr(done.stdout))
        t.check('%s: log' % what, re.search(' error: .*' + words, t.read(log_file(os.path.join(t.tmp, log)))))
    alert_arrives(t, 'the first one goes on', receiver, port)
    t.equal('exit code', program.stop(), 0)


def test_files_no_permission(t):
    """Folders that nobody may make: the reason on stderr, console and, for the state directory, in the log."""
    path, _ = t.config([{'url': 'http://127.0.0.1:1/'}], fileLogging=True, logDirectory='log',
                       butlerWebhook={'stateDirectory': 'Z:/proc/1/state'})
    done = t.run(path)
    words = r'butlerWebhook\.stateDirectory: .*(No such file|denied|not permitted|error \d+)'
    t.equal('stateDirectory: exit code', done.returncode, 1)
    t.check('stateDirectory: stderr', re.search(words, done.stderr), repr(done.stderr))
    t.check('stateDirectory: log', re.search(words, t.read(log_file(os.path.join(t.tmp, 'log')))))
    path, _ = t.config([{'url': 'http://127.0.0.1:1/'}], fileLogging=True, logDirectory='Z:/proc/1/log')
    done = t.run(path)
    t.equal('logDirectory: exit code', done.returncode, 1)
    t.check('logDirectory: stderr', re.search(r'logDirectory: .*/proc/1/log.*(No such|denied|error \d+)', done.stderr),
            repr(done.stderr))
    for name in ('missing.yaml', 'missing/butler.yaml'):
        done = t.run(os.path.join(t.tmp, name))
        t.check('%s: exit code 2, and says so' % name, done.returncode == 2 and re.search(
            re.escape(name) + '.*No such file', done.stderr), [done.returncode, done.stderr])


# ---- Sockets and consoles -------------------------------------------------------------------------------------------


def test_senders_that_are_gone(t):
    """Sockets that are closed at once, also where ICMP says so: reception goes on."""
    receiver = t.receiver()
    path, port = t.config([{'url': receiver.url()}])
    program = t.start(path)
    for number in range(200):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.sendto(b'nothing that is known' if number % 2 else b'', ('127.0.0.1', port))
    alert_arrives(t, 'an alert arrives', receiver, port)
    t.equal('no word of it', program.lines('cannot receive'), [])
    t.equal('exit code', program.stop(), 0)


def on_terminal(t, args, stop=None, seconds=15):
    """Runs the program on a terminal, as in a console window; returns what it wrote, without control codes, and the exit code."""
    process, terminal = pty.fork()
    if process == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 250, 0, 0))
        os.execve(harness.SYSTEM.loader, harness.SYSTEM.command(t.binary, args), dict(t.environment(), TERM='xterm'))
    text = b''
    deadline = time.monotonic() + seconds * harness.SLOW
    ended = (0, 0)
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                data = os.read(terminal, 65536)
            except OSError:     # the program has closed it
                break
            text += data
            if stop and stop in text:
                os.write(terminal, b'\x03')
                stop = None
        if not ended[0]:
            ended = os.waitpid(process, os.WNOHANG)
        elif not select.select([terminal], [], [], 0.3)[0]:
            break
    for _ in range(50):
        if not ended[0]:
            time.sleep(0.02)
            ended = os.waitpid(process, os.WNOHANG)
    if not ended[0]:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    os.close(terminal)
    text = re.sub(rb'\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07', b'', text)
    return text.decode('utf-8', 'replace'), os.waitstatus_to_exitcode(ended[1]) if ended[0] else None


def test_console(t):
    """
    On a console the log is readable in any script, and Ctrl-C stops the program in order. What commands print shows only in
    ASCII: wine's C library takes other text for Latin-1 there.
    """
    path, port = t.config([{'url': 'http://127.0.0.1:1/', 'description': 'Störung 監視'}])
    text, code = on_terminal(t, ['--check', path])
    t.check('--check', code == 0 and '0 errors, 0 warnings' in text, [code, text])
    text, code = on_terminal(t, [path], b'listening on')
    t.check('any script', 'Störung' in text and '監' in text and 'Ã' not in text, text)
    t.check('Ctrl-C stops it', code == 0 and 'stopping: Ctrl-C received' in text and 'stopped: 0 received' in text, [code, text])


# ---- The machine's own roots ----------------------------------------------------------------------------------------


STORES = 'HKLM\\Software\\Microsoft\\SystemCertificates\\%s\\Certificates\\'


class Stored:
    """A certificate in one of the machine's stores, as long as the test runs."""

    def __init__(self, t, store, pem):
        der = subprocess.run(['openssl', 'x509', '-in', pem, '-outform', 'DER'], capture_output=True, check=True).stdout
        blob = b''.join(number.to_bytes(4, 'little') for number in (32, 1, len(der))) + der
        self.t = t
        self.key = STORES % store + hashlib.sha1(der).hexdigest().upper()
        code, text = wine(t, 'reg', 'add', self.key, '/v', 'Blob', '/t', 'REG_BINARY', '/d', blob.hex(), '/f')
        t.require('a certificate gets into store %s' % store, code == 0, text)
        t.add(self)

    def close(self):
        subprocess.run([harness.SYSTEM.loader, 'reg', 'delete', self.key, '/f'], stdin=subprocess.DEVNULL,
                       capture_output=True, env=self.t.environment(), timeout=30 * harness.SLOW)


def trust(t, what, server, wanted):
    """One alert through a program that has just been started, to a server whose CA is in no built-in list."""
    path, port = t.config([{'url': server.url('/x', host='localhost')}, {'url': server.url('/y', host='localhost'),
                                                                         'cert': {'enable': False}}])
    program = t.start(path)
    program.send(harness.datagram())
    for number in (1, 2):
        t.check('%s: webhook %d' % (what, number), program.wait_log(
            r'alert 1 delivered to failure %d' % number if wanted else r'webhook failure %d is down: .*not trusted' % number, 15),
            program.log[-3:])
    t.equal('%s: exit code' % what, program.stop(), 0)


@harness.alone
@harness.limit(180)
def test_roots_of_the_machine(t):
    """Store ROOT counts beside the built-in roots, and no other store."""
    server = t.receiver(ssl_context=servers.good().context())
    trust(t, 'before', server, False)
    stored = Stored(t, 'CA', servers.root().pem)
    trust(t, 'in CA', server, False)
    stored.close()
    stored = Stored(t, 'Root', servers.root().pem)
    trust(t, 'in ROOT', server, True)
    stored.close()
    trust(t, 'removed', server, False)


# ---- Services -------------------------------------------------------------------------------------------------------


class Service:
    """A service that sc creates, removed at the end of the test."""

    def __init__(self, t, path, name=None):
        self.t = t
        self.name = name or 'BW%s' % harness.guid()[:8]
        if name is None:
            code, text = self.sc('create', 'binPath=', '"%s" "%s"' % (windows_path(t.binary), windows_path(path)), 'start=',
                                 'demand')
            t.require('sc create', code == 0, text)
        t.add(self)

    def sc(self, verb, *args):
        return wine(self.t, 'sc', verb, self.name, *args)

    def state(self):
        """State (4: runs, 1: stopped), the system's and the service's own exit code; None: there is no such service."""
        code, text = self.sc('query')
        found = re.search(r'STATE\s*: (\d+)(?:.|\n)*WIN32_EXIT_CODE\s*: (\d+)(?:.|\n)*SERVICE_EXIT_CODE\s*: (\d+)', text)
        return tuple(map(int, found.groups())) if code == 0 and found else None

    def reaches(self, state, timeout=10):
        """Waits for a state; what it is then."""
        until(lambda: (self.state() or [None])[0] == state, timeout)
        return self.state()

    def start(self):
        code, text = self.sc('start')
        self.t.equal('sc start', code, 0)
        self.t.check('it runs', self.reaches(4) == (4, 0, 0), [text, self.state()])

    def stop(self):
        begin = time.monotonic()
        code, text = self.sc('stop')
        self.t.equal('sc stop', code, 0)
        self.t.check('it has stopped, exit code 0', self.reaches(1) == (1, 0, 0), [text, self.state()])
        self.t.check('in time', time.monotonic() - begin < harness.STOP_S * harness.SLOW)

    def close(self):
        env = self.t.environment()
        for verb in ('stop', 'delete'):
            subprocess.run([harness.SYSTEM.loader, 'sc', verb, self.name], stdin=subprocess.DEVNULL, capture_output=True,
                           env=env, timeout=30 * harness.SLOW)


def events(words):
    """The texts that went to the event log and match: wine keeps none, but its trace shows them."""
    text = read_bytes(harness.SYSTEM.trace).decode('utf-8', 'replace')
    return [(kind, line) for kind, line in re.findall(r'(trace|err):eventlog:ReportEventW L"(.*)"', text)
            if words in line]


@harness.limit(120)
def test_service(t):
    """sc create, start, stop, delete. It logs into logDirectory whatever fileLogging says; events tell start and stop."""
    receiver = t.receiver()
    os.mkdir(os.path.join(t.tmp, 'a service'))
    path, port = t.config([{'url': receiver.url()}], name='a service/butler.yaml', logDirectory='log ü')
    tag = os.path.basename(t.tmp)
    service = Service(t, path)
    for turn in ('first', 'second'):
        service.start()
        alert_arrives(t, '%s: an alert arrives' % turn, receiver, port)
        for command in (('sc', 'start', service.name), ('net', 'start', service.name)):
            code, text = wine(t, *command)
            t.check('%s: %s start says that it runs already' % (turn, command[0]), code != 0, [code, text])
        alert_arrives(t, '%s: another one' % turn, receiver, port)
        done = t.run(path)
        t.check('%s: a second instance on a console is refused' % turn, done.returncode == 1 and
                'is used by another butler_webhook' in done.stderr, [done.returncode, done.stderr])
        service.stop()
    log = log_file(os.path.join(os.path.dirname(path), 'log ü'))
    t.require('there is a log file', log, os.listdir(os.path.dirname(path)))
    lines = t.read(log).splitlines()
    for words, count in ((' info: listening on ', 2), ('info: stopping: service stop received', 2), (' delivered to ', 4),
                         (' info: stopped: 2 received, 2 accepted', 2)):
        t.equal('the log has %r' % words, len([line for line in lines if words in line]), count)
    t.check('events tell each start', len([e for e in events(tag) if 'started with' in e[1] and e[0] == 'trace']) == 2,
            events(tag))
    t.check('events tell stops', events('stopped: 2 received, 2 accepted, 2 delivered'), events('stopped:'))
    t.equal('sc delete', service.sc('delete')[0], 0)
    t.equal('it is gone', until(lambda: service.state() is None), True)


@harness.limit(120)
def test_service_net(t):
    """net start and net stop; alerts that wait when it stops are sent after the next start."""
    receiver = t.receiver(harness.response(503))
    path, port = t.config([{'url': receiver.url()}], logDirectory='log')
    service = Service(t, path)
    t.equal('net start', wine(t, 'net', 'start', service.name)[0], 0)
    t.check('net start: it runs', until(lambda: service.state()[0] == 4), service.state())     # wine's does not wait for that
    alert_arrives(t, 'an alert is tried', receiver, port, 'waits')
    code, text = wine(t, 'net', 'stop', service.name)
    t.check('net stop', code == 0 and service.reaches(1) == (1, 0, 0), [code, text, service.state()])
    t.equal('it waits',
            [entry['alert']['taskName'] for entry in json.loads(t.run('--pending', '--json', path).stdout)['waiting']],
            ['waits'])
    receiver.answer = harness.response(200)
    service.start()
    t.check('it is sent', until(lambda: json.loads(t.run('--pending', '--json', path).stdout)['waiting'] == [], 30))
    service.stop()


@harness.limit(120)
def test_service_that_cannot_start(t):
    """A broken configuration, none at all, a port in use: it stops with an exit code of its own, and the event log says why."""
    good, port = t.config([{'url': 'http://127.0.0.1:1/'}], logDirectory='log')
    with open(good, encoding='utf-8') as file:
        text = file.read()
    with open(os.path.join(t.tmp, 'broken.yaml'), 'w', encoding='utf-8') as file:
        file.write(text.replace("logLevel: 'info'", "logLevel: 'loud'"))
    with open(os.path.join(t.tmp, 'wide.yaml'), 'w', encoding='utf-16-le') as file:     # without a byte order mark
        file.write(text)
    tag = os.path.basename(t.tmp)
    for name, code, words in (('broken.yaml', 2, 'logLevel'), ('wide.yaml', 2, 'UTF-8'), ('missing.yaml', 2, 'No such file')):
        service = Service(t, os.path.join(t.tmp, name))
        service.sc('start')
        t.check('%s: stopped, with exit code %d' % (name, code), until(lambda: service.state() == (1, 1066, code)),
                service.state())
        t.check('%s: an error event says why' % name,
                [e for e in events(name) if tag in e[1] and words in e[1] and e[0] == 'err'],
                events(name))
    for what, settings, words in (
            ('nostate', {'butlerWebhook': {'stateDirectory': 'Z:/proc/1/state'}}, 'butlerWebhook.stateDirectory: '),
            ('nolog', {'logDirectory': 'Z:/proc/1/log'}, 'Butler.logDirectory: ')):
        path, _ = t.config([{'url': 'http://127.0.0.1:1/'}], name='%s %s.yaml' % (what, tag), **settings)
        service = Service(t, path)
        service.sc('start')
        t.check('%s: stopped, with exit code 1' % what, until(lambda: service.state() == (1, 1066, 1)), service.state())
        t.check('%s: an error event says why' % what, [e for e in events(words) if '/proc/1/' in e[1] and e[0] == 'err'],
                events(words))
    program = t.start(good)
    service = Service(t, good)
    service.sc('start')
    t.check('state directory in use: stopped, with exit code 1', until(lambda: service.state() == (1, 1066, 1)), service.state())
    t.check('state directory in use: an error event says so', [e for e in events(tag) if 'is used by another' in e[1]],
            events(tag))
    t.equal('the other one goes on, exit code', program.stop(), 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(('127.0.0.1', port))
        service = Service(t, good)
        service.sc('start')
        t.check('port in use: stopped, with exit code 1', until(lambda: service.state() == (1, 1066, 1)), service.state())
        t.check('port in use: an error event says which', [e for e in events('127.0.0.1:%d' % port) if 'in use' in e[1]],
                events(str(port)))
        log = log_file(os.path.join(t.tmp, 'log'))
        t.check('port in use: so does the log', log and re.search(r' error: .*127\.0\.0\.1:%d.*in use' % port, t.read(log)))
    service.start()
    service.stop()


def value(t, key, name):
    """A value of the registry as reg prints it, None if there is none."""
    found = re.search(r'%s +REG_\w+ +(.*)' % re.escape(name), wine(t, 'reg', 'query', key, '/v', name)[1])
    return found and found[1].strip()


def check_registered(t, turn, path):
    """What the system knows of the service that --install has registered."""
    key = 'HKLM\\SYSTEM\\CurrentControlSet\\Services\\'
    for name, wanted in (('Start', '0x2'), ('Type', '0x10'), ('ObjectName', r'NT SERVICE\ButlerWebhook'),
                         ('ImagePath', '"%s" "%s"' % (windows_path(t.binary), windows_path(path))),
                         ('Description', 'Calls webhooks when Qlik Sense reload tasks fail or are aborted.')):
        got = value(t, key + 'ButlerWebhook', name) or 'none'
        t.equal('%s: %s' % (turn, name), re.sub('[^ -~]+', '?', got), re.sub('[^ -~]+', '?', wanted))   # reg says ? to others
    key += 'EventLog\\Application\\ButlerWebhook'
    t.equal('%s: source of events' % turn, value(t, key, 'EventMessageFile'), r'%SystemRoot%\System32\EventCreate.exe')


@harness.limit(180)
@harness.alone
def test_service_installed(t):
    """--install registers the service and readies its folders; again: the same; --uninstall takes it away."""
    receiver = t.receiver()
    os.mkdir(os.path.join(t.tmp, 'Ünser Dienst'), 0o700)     # wine forgets that a folder does not inherit its parent's rules
    path, port = t.config([{'url': receiver.url()}], name='Ünser Dienst/butler.yaml', logDirectory='log')
    folder = os.path.dirname(path)
    service = Service(t, path, 'ButlerWebhook')
    t.equal('there is none before', service.state(), None)
    for turn in ('first', 'again'):
        done = t.run('--install', path)
        t.check('%s: --install' % turn, done.returncode == 0 and 'service ButlerWebhook: registered, ' in done.stdout,
                [done.returncode, done.stdout, done.stderr])
        for words in ('.exe: the service may read it', '/butler.yaml: the service may read it',
                      'butler_webhook.state: the service may write in it', 'log: the service may write in it'):
            t.check('%s: it says %s' % (turn, words),
                    len([line for line in done.stdout.splitlines() if line.endswith(words)]) == 1,
                    done.stdout)
        check_registered(t, turn, path)
        for name in ('butler_webhook.state', 'log') if turn == 'first' else ():
            t.equal('folder %s is there, for no others' % name, oct(os.stat(os.path.join(folder, name)).st_mode & 0o7007), '0o0')
    service.start()
    alert_arrives(t, 'an alert arrives', receiver, port)
    t.check('the log is there', until(lambda: log_file(folder + '/log')), os.listdir(folder))
    done = t.run('--uninstall')
    t.check('--uninstall stops and removes it', done.returncode == 0 and 'removed' in done.stdout, [done.stdout, done.stderr])
    t.equal('it is gone', until(lambda: service.state() is None), True)
    t.check('it stopped in order', ' info: stopped: 1 received' in t.read(log_file(folder + '/log')))
    t.check('its files stay', os.path.isfile(folder + '/butler_webhook.state/journal') and os.path.isfile(path))
    done = t.run('--uninstall')
    t.check('there is nothing more to uninstall', done.returncode == 1 and 'does not exist' in done.stdout,
            [done.returncode, done.stdout, done.stderr])
    with open(path, 'a', encoding='utf-8') as file:
        file.write('  butlerWebhook: {port: none}\n')
    done = t.run('--install', path)
    t.check('a configuration that is not valid is not installed', done.returncode == 2 and service.state() is None,
            [done.returncode, done.stdout, done.stderr])


@harness.limit(180)
@harness.alone
def test_service_without_a_right(t):
    """A right that cannot be given, or a folder that cannot be made: --install says which, and exits with 1."""
    receiver = t.receiver()
    frozen = os.path.join(t.tmp, 'read only')
    os.mkdir(frozen)
    if subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', frozen], capture_output=True).returncode != 0:
        t.skip('a read-only disk needs mount')
    try:
        shutil.copy(servers.root().pem, os.path.join(frozen, 'ca.pem'))
        subprocess.run(['mount', '-o', 'remount,ro', frozen], check=True)
        path, _ = t.config([{'url': receiver.url()}, {'url': 'https://127.0.0.1:1/', 'cert': {
            'enable': True, 'certCA': os.path.join(frozen, 'ca.pem')}}], logDirectory='log')
        Service(t, path, 'ButlerWebhook')
        done = t.run('--install', path)
        t.check('the right to read a CA file', done.returncode == 1 and re.search(
            r'/ca\.pem: cannot let the service read it: ', done.stdout), [done.returncode, done.stdout, done.stderr])
        t.check('the others are given', '/butler.yaml: the service may read it' in done.stdout and
                'log: the service may write in it' in done.stdout, done.stdout)
        path, _ = t.config([{'url': receiver.url()}], logDirectory=os.path.join(frozen, 'log'))
        done = t.run('--install', path)
        t.check('a folder that cannot be made', done.returncode == 1 and re.search(
            r'read only/log: cannot let the service write in it: ', done.stdout), [done.returncode, done.stdout, done.stderr])
        t.equal('--uninstall', t.run('--uninstall').returncode, 0)
    finally:
        subprocess.run(['umount', '-l', frozen], capture_output=True)
