"""What the system tests share: results, running processes, receivers, datagrams.

A test is a plain function `def test_xxx(t)`. The fixture `t` (class Test) makes what it needs and ends all of it with the test:

    def test_post_arrives(t):
        receiver = t.receiver()                             # answers 200 to everything
        path, port = t.config([{'url': receiver.url('/hook'), 'method': 'POST'}])
        program = t.start(path)                             # returns once it listens
        program.send(harness.datagram(task='Sales'))
        request = receiver.wait(1)[0]
        t.equal('task name', request.json()['taskName'], 'Sales')

Unless told otherwise the program must end with exit code 0 on SIGTERM and leave stderr empty; both are checked after each
test. pytest's options (conftest.py) come in as environment variables, so that this module knows them from the beginning:
--binary names another program than build/butler_webhook. If it ends in .exe it runs under wine, and class Wine below makes
the tests written for Linux fit: paths, signals, ends of lines.
"""

import contextlib
import errno
import fcntl
import functools
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import urllib.parse
import uuid

import words

try:
    import pytest
    limit, early, alone = pytest.mark.limit, pytest.mark.early, pytest.mark.alone   # conftest.py tells what these marks mean
except ImportError:
    pass        # demo.py does without

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BINARY = os.path.abspath(os.environ.get('BUTLER_BINARY', os.path.join(ROOT, 'build/butler_webhook')))
WINDOWS = BINARY.endswith('.exe')
BINARY_TEST = os.path.abspath(os.environ.get('BUTLER_BINARY_TEST', BINARY[:-4] + '-test.exe' if WINDOWS else
                                             os.path.join(ROOT, 'build/test/butler_webhook')))
SLOW = float(os.environ.get('BUTLER_SLOW', '3' if WINDOWS else '1'))
STOP_S = 7      # the program promises 5 s
MEMORY_ONLY = r'(?: in memory only)?'   # how the log marks an accepted alert that is in no journal
PATIENT = {'timeoutSeconds': round(10 * SLOW)}      # the program's own limit, for dozens of TLS handshakes at once

# A signal that is ignored here, as under nohup or in the background of a script, would be ignored by every program that is
# started from here. One that is handled here has its default there; so handle it, and do nothing.
for number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(number) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(number, lambda *_: None)


def one_line(text, limit=2000):
    text = ''.join(c if c.isprintable() else c.encode('unicode_escape', 'backslashreplace').decode() for c in text)
    return text if len(text) <= limit else text[:limit] + '...'


# ---- The system below the program -----------------------------------------------------------------------------------


class Unix:
    """The program runs as it is. What Wine does otherwise has the same names here."""

    memory_kb = 0           # what the system's own part of a process takes
    others = 0o077          # what no mode of a private folder has
    others_file = 0o077     # and of a file in it

    def begin(self):
        """Before the first program is started."""

    def end(self):
        """After the last one has ended."""

    def environment(self):
        """What the program needs to see beside what the test wants."""
        return {}

    def command(self, binary, args):
        return [binary, *args]

    def _as_it_is(self, value):
        return value

    setting = _as_it_is     # a value of the configuration
    text = _as_it_is        # the bytes of a configuration that a test wrote by itself
    output = _as_it_is      # whole lines of what the program wrote
    signal = _as_it_is      # the signal that does what this one does to a program for Unix

    def stopped_by(self, number):
        """How the log names the signal."""
        return '%s received' % signal.Signals(number).name


class Wine(Unix):
    """
    A program for Windows, run by wine with a prefix (its folder: build/wine, or BUTLER_WINEPREFIX) and a server of its own.
    The program sees the whole machine as drive Z:, so an absolute path gets `Z:` in front on the way in and loses it on the
    way out (Raw text stays as it is). Its process is one of this machine, so that kill -9 works. SIGINT arrives as Ctrl-C;
    SIGTERM would end wine at once.
    """

    FOLDERS = '/usr/lib/wine:/usr/bin:/usr/lib/x86_64-linux-gnu/wine'
    PATH = re.compile(rb'\bZ:([\\/][^\s"\';,|]*)')
    prefix = os.path.abspath(os.environ.get('BUTLER_WINEPREFIX', os.path.join(ROOT, 'build/wine')))
    loader = shutil.which('wine64', path=FOLDERS) or 'wine64'
    server = shutil.which('wineserver64', path=FOLDERS) or shutil.which('wineserver', path=FOLDERS) or 'wineserver'
    trace = os.path.join(ROOT, 'build/wine.trace')      # gets what services report to the event log
    memory_kb = 64 * 1024
    others = 0o007      # wine takes Administrators for the group
    others_file = 0     # files inherit nothing in wine
    _lock = None

    def _run(self, *command, stderr=subprocess.DEVNULL, **env):
        return subprocess.run(command, env=dict(self.environment(), PATH=os.environ['PATH'], **env), stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True, timeout=300, cwd='/').returncode

    def begin(self):
        """
        Makes the prefix if there is none, and starts the server and what it starts itself, so that no pipe of a test stays
        open in these. Another run of tests with this prefix is waited for.
        """
        os.makedirs(os.path.dirname(self.prefix), exist_ok=True)
        self._lock = open(self.prefix + '.lock', 'w')
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        if not os.path.isdir(self.prefix):
            unfinished = self.prefix + '.new'
            shutil.rmtree(unfinished, ignore_errors=True)
            os.makedirs(unfinished)
            failed = self._run(self.loader, 'wineboot', '-i', WINEPREFIX=unfinished)
            self._run(self.server, '-k', WINEPREFIX=unfinished)
            self._run(self.server, '-w', WINEPREFIX=unfinished)
            if failed:
                raise RuntimeError('wine cannot make its prefix')
            os.rename(unfinished, self.prefix)
        self._stop()
        self._run(self.server, '-p')
        with open(self.trace, 'wb') as stderr:
            self._run(self.loader, 'cmd', '/c', 'exit', stderr=stderr, WINEDEBUG='-all,trace+eventlog,warn+eventlog,err+eventlog')

    def _stop(self):
        """Ends the server and all that runs in the prefix: what outlives its server would only hang."""
        self._run(self.server, '-k')
        mark = b'WINEPREFIX=%s\0' % os.fsencode(self.prefix)
        for pid in filter(str.isdigit, os.listdir('/proc')):
            try:
                with open('/proc/%s/environ' % pid, 'rb') as file:
                    ours = mark in file.read() + b'\0'
                if ours and int(pid) != os.getpid():
                    os.kill(int(pid), signal.SIGKILL)
            except OSError:     # it has ended, or is somebody else's
                pass

    def end(self):
        if self._lock:
            self._stop()
            self._lock.close()
            self._lock = None

    def environment(self):
        return {'WINEPREFIX': self.prefix, 'WINEDEBUG': '-all', 'WINEDLLOVERRIDES': 'mscoree,mshtml=', 'LC_ALL': 'C.UTF-8'}

    def command(self, binary, args):
        return [self.loader, binary] + [self._path(arg) for arg in args]

    @staticmethod
    def _path(text):
        return 'Z:' + text if text.startswith('/') and not text.startswith('//') and not isinstance(text, Raw) else text

    def setting(self, value):
        if isinstance(value, dict):
            return {key: self.setting(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.setting(item) for item in value]
        if isinstance(value, str) and value.startswith((tempfile.gettempdir() + '/', ROOT + '/', '/proc/')):
            return self._path(value)
        return value

    def text(self, data):
        for folder in (tempfile.gettempdir(), ROOT):
            data = re.sub(rb'(?<![\w/:.])' + re.escape(folder.encode() + b'/'), b'Z:' + folder.encode() + b'/', data)
        return data

    def output(self, data):
        return self.PATH.sub(lambda match: match.group(1).replace(b'\\', b'/'), data.replace(b'\r\n', b'\n'))

    def signal(self, number):
        return signal.SIGINT if number in (signal.SIGTERM, signal.SIGHUP) else number

    def stopped_by(self, number):
        return 'Ctrl-C received'


SYSTEM = Wine() if WINDOWS else Unix()


def unix(why):
    """Mark: the test shows something that only a program for Unix does, or that wine cannot show."""
    return pytest.mark.skipif(WINDOWS, reason=why)


# ---- Ports ----------------------------------------------------------------------------------------------------------


def _free_ports():
    """Free ports, each looked at some time before it is given: a child that is started at that moment holds it until its exec."""
    first = random.randrange(10000)
    marks = []      # abstract Unix sockets, so that test runs beside this one do not take the same ports
    ready = []
    for number in range(first, first + 10000):
        port = 20000 + number % 10000
        mark = socket.socket(socket.AF_UNIX)
        try:
            mark.bind('\0butler_webhook-test-port-%d' % port)
        except OSError:
            mark.close()
            continue
        marks.append(mark)
        if port_is_free(port):
            ready.append(port)
        if len(ready) > 50:
            yield ready.pop(0)
    raise RuntimeError('no free port')


_ports = _free_ports()
_port_lock = threading.Lock()


def free_port():
    """A port that is free for TCP and UDP on 127.0.0.1 and ::1, below the range from which the kernel takes ports by itself."""
    with _port_lock:
        return next(_ports)


def port_is_free(port):
    for family, address in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1')):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            try:
                with socket.socket(family, kind) as probe:
                    probe.bind((address, port))
            except OSError as error:
                if family == socket.AF_INET or 'in use' in str(error):
                    return False
    return True


# ---- YAML and datagrams ---------------------------------------------------------------------------------------------


class Raw(str):
    """Text that stands in the YAML file as it is."""


def yaml(value, indent=0):
    """The value as block YAML; strings in single quotes, so that no text means something else."""
    if isinstance(value, (dict, list)) and value:
        pad = ' ' * indent
        text = ''
        for key, item in value.items() if isinstance(value, dict) else [(None, item) for item in value]:
            block = isinstance(item, (dict, list)) and item
            inner = yaml(item, indent + 2)
            if key is None:
                text += '%s- %s' % (pad, inner[indent + 2:] if block else inner + '\n')
            else:
                text += '%s%s:%s' % (pad, key, '\n' + inner if block else ' %s\n' % inner)
        return text
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, str) and value.isprintable():
        return "'%s'" % value.replace("'", "''")
    return json.dumps(value, ensure_ascii=False)


def guid():
    return str(uuid.uuid4())


def datagram(id='/scheduler-task-failed/', host='qliksrv1', task='Reload of Sales', app='Sales', user='LAB\\goran',
             task_id=None, app_id='e7af59a0-c243-480d-9571-08727551a66f', date='2026-11-22 09:30:00,123', level='INFO',
             execution_id=None, message='Max retries reached', encoding='utf-8'):
    """One log event as the scheduler's appender prints it. Give bytes for a field and encoding='raw' to be exact."""
    fields = [id, host, task, app, user, guid() if task_id is None else task_id, app_id, date, level,
              guid() if execution_id is None else execution_id, message]
    if encoding == 'raw':
        return b';'.join(field if isinstance(field, bytes) else field.encode() for field in fields)
    return ';'.join(fields).encode(encoding, 'surrogatepass' if encoding.startswith('utf') else 'strict')


# ---- The program under test -----------------------------------------------------------------------------------------


class Process:
    """
    A started program. `log` holds the lines of stdout so far, `stderr` the text of stderr so far. A test that expects
    something on stderr sets `expect_stderr`, one that expects another exit code sets `expect_exit` (None: any).
    """

    def __init__(self, command, env=None, port=None, cwd=None, stdout=None):
        self.command = command
        self.config = None      # path of its configuration, if t.config made that
        self.port = port
        self.expect_stderr = False
        self.expect_exit = 0
        self.log = []
        self._out = bytearray()
        self._err = bytearray()
        self._changed = threading.Condition()
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=env, cwd=cwd,
                                         stdout=subprocess.PIPE if stdout is None else stdout, stderr=subprocess.PIPE,
                                         start_new_session=True)
        self.pid = self._process.pid
        streams = [(self._process.stderr, self._err, [])]
        if stdout is None:
            streams.append((self._process.stdout, self._out, self.log))
        self._readers = [threading.Thread(target=self._read, args=args, daemon=True) for args in streams]
        for reader in self._readers:
            reader.start()

    def _read(self, stream, whole, lines):
        for line in stream:
            line = SYSTEM.output(line)
            with self._changed:
                whole += line
                lines.append(line.decode('utf-8', 'surrogateescape').removesuffix('\n'))
                self._changed.notify_all()

    @property
    def stderr(self):
        with self._changed:
            return self._err.decode('utf-8', 'surrogateescape')

    @property
    def stdout(self):
        with self._changed:
            return self._out.decode('utf-8', 'surrogateescape')

    def lines(self, regex):
        """The lines of the log so far that match."""
        with self._changed:
            return [line for line in self.log if re.search(regex, line)]

    def wait_log(self, regex, timeout=10, count=1):
        """Waits for the count-th line that matches; returns its match, or None when the time is over."""
        deadline = time.monotonic() + timeout * SLOW
        pattern = re.compile(regex)
        seen = 0
        with self._changed:
            while True:
                for line in self.log[seen:]:
                    match = pattern.search(line)
                    count -= 1 if match else 0
                    if count == 0:
                        return match
                seen = len(self.log)
                left = deadline - time.monotonic()
                if left <= 0 or not any(reader.is_alive() for reader in self._readers):
                    return None
                self._changed.wait(min(left, 0.5))

    def send(self, data, source=None):
        """Sends one datagram to the program; source (an address, or address and port) is where it comes from."""
        if self.port is None:
            self.port = int(self.wait_log(words.LISTENING)[2])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            if source is not None:
                udp.bind((source, 0) if isinstance(source, str) else source)
            udp.sendto(data, ('127.0.0.1', self.port))

    def running(self):
        return self._process.poll() is None

    def send_signal(self, number=signal.SIGTERM):
        if self.running():
            self._process.send_signal(SYSTEM.signal(number))

    def wait(self, timeout=10):
        """The exit code once the program ended and its output is read; None if it still runs."""
        try:
            code = self._process.wait(timeout * SLOW)
        except subprocess.TimeoutExpired:
            return None
        for reader in self._readers:
            reader.join(5)
        return code

    def stop(self, timeout=STOP_S, number=signal.SIGTERM):
        """Ends the program by a signal; its exit code, or None if it had to be killed."""
        self.send_signal(number)
        code = self.wait(timeout)
        if code is None:
            self._process.kill()
            self._process.wait()
        return code

    def kill(self):
        """Ends it at once; no exit code is expected then."""
        self.expect_exit = None
        if self.running():
            self._process.kill()
        self._process.wait()
        until = time.monotonic() + 10       # wine closes its sockets a moment later
        while WINDOWS and self.port and not port_is_free(self.port) and time.monotonic() < until:
            time.sleep(0.05)

    def close(self):
        for reader in self._readers:
            reader.join(5)
        for stream in (self._process.stdout, self._process.stderr):
            if stream and not any(reader.is_alive() for reader in self._readers):
                stream.close()


# ---- A scripted HTTP server -----------------------------------------------------------------------------------------


class Request:
    """One request as it arrived. Header names keep their case and order; `get` ignores the case."""

    def __init__(self, raw, line, headers, body, connection):
        self.raw = raw
        self.line = line
        self.method, self.target, self.version = (line.split(' ', 2) + ['', ''])[:3]
        self.headers = headers
        self.body = body
        self.connection = connection
        self.time = time.monotonic()

    def get(self, name, default=None):
        for key, value in self.headers:
            if key.lower() == name.lower():
                return value
        return default

    @property
    def path(self):
        return self.target.partition('?')[0]

    def json(self):
        """The body as JSON: a dict, or an empty one if it is none."""
        try:
            return json.loads(self.body.decode('utf-8'))
        except ValueError:
            return {}

    def params(self):
        """The names and values of the query, in order, decoded."""
        return urllib.parse.parse_qsl(self.target.partition('?')[2], keep_blank_values=True)

    def event(self):
        """The fields of the alert, wherever they stand."""
        return dict(self.params()) if self.method == 'GET' else self.json()


class Connection:
    """One accepted connection; `number` counts from 1, `served` its answered requests, `closed` is set when the peer closes."""

    def __init__(self, sock, number):
        self.sock = sock
        self.number = number
        self.served = 0
        self.closed = threading.Event()
        self._buffer = b''

    def read(self, length=None):
        """So many bytes, or those up to and with a blank line; None if the connection ends before, what there is then stays."""
        blank = b'\r\n\r\n'
        while blank not in self._buffer if length is None else len(self._buffer) < length:
            data = self.sock.recv(65536)
            if not data:
                return None
            self._buffer += data
        end = self._buffer.index(blank) + len(blank) if length is None else length
        data, self._buffer = self._buffer[:end], self._buffer[end:]
        return data

    def wait_closed(self, timeout=10):
        """True once the peer has closed this connection."""
        return self.closed.wait(timeout * SLOW)


def response(status=200, body=b'', headers=(), close=False):
    """A whole answer as bytes. With close the receiver closes the connection after it."""
    lines = ['HTTP/1.1 %d OK' % status, 'Content-Length: %d' % len(body)]
    lines.extend('%s: %s' % pair for pair in headers)
    if close:
        lines.append('Connection: close')
    return ('\r\n'.join(lines) + '\r\n\r\n').encode('latin-1') + body


def reset(sock):
    """Ends a connection with RST instead of FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    sock.close()


class Receiver:
    """
    A scripted server. Each request is recorded, then `answer(request, connection)` decides: bytes are sent (the
    connection is closed after them if they say `Connection: close`), None closes without an answer, a function is called
    with the raw socket (with the TLS socket, if there is TLS), and the connection closed when it returns. `answer` may be
    such a value itself.

    on_connect(connection) runs before the first request is read; unless it returns None its return value is taken like an
    answer, and the connection is closed after it. on_head(request, connection) runs when a request's head has arrived and
    its body has not been read; unless it returns None that value is the answer, and the connection is closed after it.
    """

    def __init__(self, answer=None, host='127.0.0.1', port=0, ssl_context=None, on_connect=None, on_head=None, backlog=128):
        self.answer = response() if answer is None else answer
        self.on_connect = on_connect
        self.on_head = on_head
        self.host = host
        self.ssl_context = ssl_context
        self.requests = []
        self.connections = []
        self.errors = []
        self._changed = threading.Condition()
        self.listener = self._listen((host, port or free_port()), backlog)
        self.port = self.listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @staticmethod
    def _listen(address, backlog):
        """Listens at this address; a child that is being started may hold it for a moment still."""
        deadline = time.monotonic() + 2 * SLOW
        family = socket.AF_INET6 if ':' in address[0] else socket.AF_INET
        while True:
            try:
                return socket.create_server(address, family=family, backlog=backlog)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    @property
    def authority(self):
        return ('[%s]:%d' if ':' in self.host else '%s:%d') % (self.host, self.port)

    def url(self, path='/', userinfo='', host=None):
        authority = self.authority if host is None else '%s:%d' % (host, self.port)
        return '%s://%s%s%s' % ('https' if self.ssl_context else 'http', userinfo + '@' if userinfo else '', authority,
                                path)

    def wait(self, count=1, timeout=10):
        """The requests so far, once there are count of them or the time is over (then fewer)."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.requests) >= count, timeout * SLOW)
            return list(self.requests)

    def wait_connections(self, count=1, timeout=10):
        """The accepted connections so far, in the same way."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.connections) >= count, timeout * SLOW)
            return list(self.connections)

    def _accept(self):
        while True:
            try:
                sock = self.listener.accept()[0]
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._changed:
                connection = Connection(sock, len(self.connections) + 1)
                self.connections.append(connection)
                self._changed.notify_all()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        try:
            if self.ssl_context:
                connection.sock = self.ssl_context.wrap_socket(connection.sock, server_side=True)
            result = self.on_connect(connection) if self.on_connect else None
            if result is not None:
                self._send(connection, result)
                return
            while self._serve_one(connection):
                pass
        except (OSError, ValueError) as error:
            self.errors.append(error)
            connection.closed.set()
        finally:
            connection.sock.close()

    def _serve_one(self, connection):
        head = connection.read()
        if head is None:
            connection.closed.set()
            return False
        line, *lines = head.decode('latin-1').split('\r\n')
        headers = [(name, value.strip(' \t')) for name, _, value in (line.partition(':') for line in lines if line)]
        request = Request(head, line, headers, b'', connection.number)
        result = self.on_head(request, connection) if self.on_head else None
        if result is not None:
            self._record(request)
            self._send(connection, result)
            return False
        request.body = connection.read(int(request.get('Content-Length', 0)))
        if request.body is None:
            raise ValueError('the connection ended inside a request body')
        request.raw += request.body
        request.time = time.monotonic()
        self._record(request)
        result = self.answer(request, connection) if callable(self.answer) else self.answer
        connection.served += 1
        return self._send(connection, result)

    def _record(self, request):
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()

    def _send(self, connection, result):
        """Plays an answer; True if the connection goes on."""
        if result is None:
            return False
        if callable(result):
            result(connection.sock)
            return False
        connection.sock.sendall(result)
        return not re.search(rb'(?im)^connection:[ \t]*close\r?$', result.partition(b'\r\n\r\n')[0])

    def drop_connections(self):
        """Closes all open connections, as a server does that has lost its patience; it still listens."""
        with self._changed:
            connections = list(self.connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._thread.join(5)
        self.drop_connections()


# ---- One test -------------------------------------------------------------------------------------------------------


class Abort(Exception):
    pass


class Test:
    """What a test function gets."""

    def __init__(self, name):
        self.name = name
        self.binary = BINARY
        self.binary_test = BINARY_TEST
        self.processes = []
        self.checks = 0
        self.failures = []      # a text for each check that failed
        self.over = False
        self._closeables = []
        self._ports = {}
        self._folders = {}
        self._configs = 0
        self._tmp = None
        self._lock = threading.Lock()

    @property
    def tmp(self):
        """A fresh directory, removed when the test ends."""
        with self._lock:
            if self._tmp is None:
                self._tmp = tempfile.mkdtemp(prefix='butler_webhook-test-')
            return self._tmp

    def check(self, what, ok, detail=''):
        if self.over:
            return bool(ok)
        self.checks += 1
        if not ok:
            self.failures.append(one_line('%s: %s' % (what, detail) if detail else what))
        return bool(ok)

    def equal(self, what, got, want):
        return self.check(what, got == want, 'got %r, wanted %r' % (got, want))

    def require(self, what, ok, detail=''):
        """A check without which the rest of the test makes no sense."""
        if not self.check(what, ok, detail):
            raise Abort()

    def skip(self, why):
        pytest.skip(why)

    def port(self):
        return free_port()

    def add(self, thing):
        """Ends thing (its close method) with the test; returns it."""
        with self._lock:
            if not self.over:
                self._closeables.append(thing)
                return thing
        thing.close()
        raise Abort()

    def receiver(self, answer=None, **options):
        return self.add(Receiver(answer, **options))

    def config(self, webhooks, name=None, port=None, rateLimit=0, rateLimitAborted=None, udp=None,
               deduplication=None, notification=None, **settings):
        """
        Writes a configuration file; returns its path and the UDP port. A webhook is a dict of url, method (POST), kind
        ('failure' or 'aborted'), description, cert; other keys are taken as they are. udp: more keys of udpServerConfig;
        notification: of webhookNotification; other named arguments: of Butler itself. Unless told otherwise there is no
        rate limit and no de-duplication. Without a name the second configuration of a test, and each after it, has a
        state directory of its own: what waits for one is nothing to the next.
        """
        port = port or self.port()
        lists = {'failure': [], 'aborted': []}
        for given in webhooks:
            webhook = dict(given)
            entry = {'description': webhook.pop('description')} if 'description' in webhook else {}
            kind = webhook.pop('kind', 'failure')
            entry['webhookURL'] = webhook.pop('url')
            entry['httpMethod'] = webhook.pop('method', 'POST')
            entry.update(webhook)
            lists[kind].append(entry)
        server = {'enable': True, 'serverHost': '127.0.0.1', 'portTaskFailure': port,
                  'deduplication': {'enable': False} if deduplication is None else deduplication}
        server.update(udp or {})
        notify = {'enable': True}
        notify['reloadTaskFailure'] = {'rateLimit': rateLimit, 'webhooks': lists['failure']}
        notify['reloadTaskAborted'] = {'rateLimit': rateLimit if rateLimitAborted is None else rateLimitAborted,
                                       'webhooks': lists['aborted']}
        notify.update(notification or {})
        top = {'logLevel': 'info', 'fileLogging': False, 'udpServerConfig': server, 'webhookNotification': notify}
        top.update(settings)
        if name is None:
            with self._lock:
                self._configs += 1
                number = self._configs
            name = 'butler.yaml'
            if number > 1:
                top['butlerWebhook'] = dict({'stateDirectory': 'butler_webhook-%d.state' % number},
                                            **top.get('butlerWebhook', {}))
        path = os.path.join(self.tmp, name)
        with open(path, 'w', encoding='utf-8', newline='') as file:
            file.write('---\n' + yaml({'Butler': SYSTEM.setting(top)}))
        self._ports[path] = port
        folder = (top.get('butlerWebhook') or {}).get('stateDirectory', 'butler_webhook.state')
        self._folders[path] = os.path.join(os.path.dirname(path), folder) if folder else None
        return path, port

    def letters(self, config_path):
        """The dead letters that are on the disk for a configuration, oldest first."""
        folder = self._folders.get(config_path)
        found = []
        for name in ('dead-letters.1.ndjson', 'dead-letters.ndjson') if folder else ():
            try:
                with open(os.path.join(folder, name), 'rb') as file:
                    lines = file.read().split(b'\n')
            except FileNotFoundError:
                continue
            found += [json.loads(line) for line in lines[:-1] if line]
        return found

    def environment(self, env=None):
        """What a program under test sees: nothing of the caller's but the path and what the sanitizers read."""
        keep = {key: value for key, value in os.environ.items()
                if key in ('PATH', 'HOME', 'LANG') or key.endswith(('SAN_OPTIONS', 'SAN_SYMBOLIZER_PATH'))}
        keep.update(SYSTEM.environment())
        keep.update(env or {})
        return keep

    def read(self, path):
        """What the program has written into a file, as text."""
        with open(path, 'rb') as file:
            return SYSTEM.output(file.read()).decode('utf-8', 'surrogateescape')

    def run(self, *args, binary=None, env=None, cwd=None, timeout=30, **options):
        """Runs the program to its end with these arguments; gives the subprocess.CompletedProcess, its output as text."""
        done = subprocess.run(SYSTEM.command(binary or self.binary, args), stdin=subprocess.DEVNULL, capture_output=True,
                              env=self.environment(env), cwd=cwd, timeout=timeout * SLOW, **options)
        done.stdout, done.stderr = (SYSTEM.output(data).decode('utf-8', 'surrogateescape')
                                    for data in (done.stdout, done.stderr))
        return done

    def start(self, config_path=None, binary=None, env=None, args=None, cwd=None, wait=True, wrap=(), stdout=None):
        """
        Starts the program on a configuration and waits for its last line of the start (unless wait is false). args replaces the
        arguments, wrap stands before the program (such as ['unshare', '-m']), stdout is a descriptor to write to.
        """
        command = list(wrap) + SYSTEM.command(binary or self.binary, args if args is not None else [config_path])
        with self._lock:
            if self.over:
                raise Abort()
            process = Process(command, self.environment(env), self._ports.get(config_path), cwd, stdout)
            process.config = config_path
            self.processes.append(process)
        if wait and stdout is None:
            self.require('the program starts', process.wait_log(words.STARTED),
                         'stdout %r, stderr %r' % (process.log[-3:], process.stderr[-500:]))
        return process

    def finish(self):
        """Ends everything that the test started, and checks how the programs ended."""
        with self._lock:
            self.over = True
            closeables, self._closeables = self._closeables, []
            processes = list(self.processes)
        for thing in reversed(closeables):
            thing.close()
        for process in processes:
            process.send_signal()
        for process in processes:
            code = process.wait(STOP_S)
            if code is None:
                process.kill()
                code = 'killed, as SIGTERM did not end it within %d s' % STOP_S
                process.expect_exit = 0
            process.close()
            if process.expect_exit not in (None, code):
                self.failures.append('exit code of the program: got %r, wanted %r' % (code, process.expect_exit))
            if process.stderr and not process.expect_stderr:
                self.failures.append(one_line('stderr is empty: %r' % process.stderr[:1500]))
            elif re.search(r'Sanitizer|runtime error:', process.stderr):
                self.failures.append(one_line('no report of a sanitizer: %r' % process.stderr[:1500]))
        if self._tmp is not None:
            shutil.rmtree(self._tmp, ignore_errors=True)


@functools.lru_cache(maxsize=None)
def namespace_wrap():
    """What to put before a program so that it may mount over files which only it sees; None where that is forbidden."""
    wrap = ['unshare', '-m'] if os.getuid() == 0 else ['unshare', '-r', '-m']
    done = shutil.which('unshare') and subprocess.run(wrap + ['mount', '--bind', '/etc/hosts', '/etc/hosts'],
                                                      stdin=subprocess.DEVNULL, capture_output=True)
    return wrap if done and done.returncode == 0 else None


def with_files(t, files):
    """A wrap in which each path of files (path: content, or a folder) has that content for the program alone."""
    wrap = namespace_wrap()
    if wrap is None:
        t.skip('no mount namespace of our own is allowed here')
    script = ''
    for number, (path, content) in enumerate(files.items()):
        if not os.path.exists(path):
            t.skip('%s is not there to mount over' % path)
        source = content
        if not os.path.isdir(content):
            source = os.path.join(t.tmp, 'mounted-%d' % number)
            with open(source, 'wb') as file:
                file.write(content.encode() if isinstance(content, str) else content)
        script += "mount --bind '%s' '%s' && " % (source, os.path.realpath(path))
    return wrap + ['sh', '-c', script + 'exec "$@"', 'sh']
