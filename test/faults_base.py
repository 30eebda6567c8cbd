"""
What the tests under faults share: webhooks that fail as told, load, what a log says of its alerts, the journal as the
documentation describes it (an independent reader and writer), and the faults of the shim in the test builds.
"""

import collections
import hashlib
import itertools
import json
import mmap
import os
import random
import re
import select
import socket
import struct
import sys
import threading
import time
import zlib

import harness

LONG = bool(os.environ.get('BUTLER_LONG'))
ARRIVE_S = 20       # for alerts to arrive once nothing is wrong any more, their short backoffs included

HOUR_MS = 3600 * 1000
TEST_HOUR_MS = 84   # what an hour of maxAgeHours is in the test builds
TEST_MEGABYTE = 65536   # and a megabyte of maxStateMB


OURS = {'timeoutSeconds': 1, 'maxAgeHours': 8760}


def pick(short, long):
    return long if LONG else short


def note(t, text):
    """A line that is no result: a number that was measured. pytest shows it if the test fails, or with -rP."""
    print(harness.one_line('%s: %s' % (t.name, text)), flush=True)


def rng(t):
    """Random numbers whose seed is printed, and can be given again in FAULTS_SEED."""
    seed = int(os.environ.get('FAULTS_SEED', random.SystemRandom().randrange(1 << 32)))
    note(t, 'FAULTS_SEED=%d' % seed)
    return random.Random(seed)


def until(condition, timeout=ARRIVE_S, every=0.02):
    """Waits until condition() is true; gives what it gave last."""
    deadline = time.monotonic() + timeout * harness.SLOW
    while True:
        result = condition()
        if result or time.monotonic() > deadline:
            return result
        time.sleep(every)


def some(things, count=5):
    """A few of them, for the text of a failed check."""
    things = list(things)
    return '%d: %s%s' % (len(things), ', '.join(str(thing) for thing in things[:count]),
                         ', ...' if len(things) > count else '')


def tail(process, count=4):
    """The last lines of a program's log, cut, for the text of a failed check."""
    return [line[11:300] for line in process.log[-count:]]


def same(t, what, got, want):
    """Compares two collections of executionIds, whatever their order; a failure names some."""
    got, want = list(got), list(want)
    missing, more = set(want) - set(got), set(got) - set(want)
    return t.check(what, sorted(got) == sorted(want), '%d instead of %d; missing %s; too many %s' %
                   (len(got), len(want), some(missing), some(more)))


def arrive(t, what, sink, executions, timeout=ARRIVE_S):
    """All of these must be taken by the sink in time."""
    missing = sink.wait(executions, timeout)
    return t.check(what, not missing, '%s of %d are missing' % (some(missing), len(executions)))


def read(path):
    """The bytes of a file; none if it is not there."""
    try:
        with open(path, 'rb') as file:
            return file.read()
    except FileNotFoundError:
        return b''


def write(path, data):
    with open(path, 'wb') as file:
        file.write(data)


def folder_bytes(path):
    """The sizes of all files in it together; those that vanish meanwhile count nothing."""
    total = 0
    try:
        for name in os.listdir(path):
            try:
                total += os.stat(os.path.join(path, name)).st_size
            except FileNotFoundError:
                pass
    except FileNotFoundError:
        pass
    return total


# ---- The shim -------------------------------------------------------------------------------------------------------


class Shim:
    """The faults of test/shim.c. `shim.env` goes to the program; attributes of shim.set are its fields."""

    FIELDS = ('write_errno', 'write_room', 'sync_errno', 'sync_delay_ms', 'open_errno', 'rename_errno', 'read_errno',
              'wall_offset_ms', 'boot_offset_ms', 'socket_errno', 'truncate_errno', 'resolve_fail', 'hits', 'write_delay_ms',
              'letters_errno', 'read_from', 'read_to', 'syncs', 'folder_syncs', 'synced_len', 'renames',
              'log_delay_ms', 'resolve_delay_ms', 'send_errno')

    def __init__(self, t, name='shim'):
        if harness.WINDOWS:
            t.skip('faults put between the program and the C library of Linux')
        path = os.path.join(t.tmp, name)
        write(path, bytes(4096))
        self.env = {'BUTLER_SHIM': path}
        self._file = open(path, 'r+b')
        self._map = mmap.mmap(self._file.fileno(), 4096)
        t.add(self)

    def set(self, **fields):
        for name, value in fields.items():
            struct.pack_into('=q', self._map, 8 * self.FIELDS.index(name), value)

    def get(self, name):
        return struct.unpack_from('=q', self._map, 8 * self.FIELDS.index(name))[0]

    def close(self):
        self._map.close()
        self._file.close()


# ---- Webhooks that fail as told -------------------------------------------------------------------------------------


class Call:
    """One request at a Sink: number counts those of this alert, from 1."""

    __slots__ = ('path', 'execution', 'id', 'number', 'time', 'body', 'stamp')

    def __init__(self, path, execution, id, number, body, stamp):
        self.path = path
        self.execution = execution
        self.id = id
        self.number = number
        self.time = time.monotonic()
        self.body = body
        self.stamp = stamp


class Sink:
    """
    A webhook that knows its alerts by executionId. `behave(call)` says what each call gets: a status, (status, headers),
    'hang' (no answer, until the other side gives up or the sink closes) or 'reset'. Without it: 200. `down` makes it
    refuse connections, `up` accept them again on the same port.

    taken: executionId -> list of (webhook-id, time) of the calls that were answered 2xx; seen: the same for all calls.
    """

    HEAD = re.compile(rb'^(?:GET|POST|PUT) (\S+) HTTP/1\.1\r\n')
    LENGTH = re.compile(rb'\r\nContent-Length: *(\d+)\r\n', re.I)
    ID = re.compile(rb'\r\nwebhook-id: *(\S+)\r\n', re.I)
    STAMP = re.compile(rb'\r\nwebhook-timestamp: *(\d+)\r\n', re.I)
    EXECUTION = re.compile(rb'"executionId":"([^"]*)"')

    def __init__(self, behave=None, up=True, host='127.0.0.1', port=None, make_socket=socket.socket):
        self.behave = behave
        self.host = host
        self.port = port or harness.free_port()
        self.taken = collections.defaultdict(list)
        self.seen = collections.defaultdict(list)
        self.calls = []
        self._make_socket = make_socket
        self._changed = threading.Condition()
        self._listener = None
        self._open = set()
        self._closing = threading.Event()
        if up:
            self.up()

    def url(self, path='/hook', host=None):
        return 'http://%s:%d%s' % (host or self.host, self.port, path)

    def up(self):
        listener = self._make_socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        listener.listen(256)
        self._closing = threading.Event()
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener, self._closing), daemon=True).start()

    def down(self):
        listener, self._listener = self._listener, None
        if listener is None:
            return
        self._closing.set()
        try:
            listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        listener.close()
        with self._changed:
            connections = list(self._open)
        for sock in connections:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    close = down

    def forget(self):
        """Starts to count anew."""
        with self._changed:
            self.taken.clear()
            self.seen.clear()
            self.calls.clear()

    def missing(self, executions):
        with self._changed:
            return [execution for execution in executions if execution not in self.taken]

    def wait(self, executions, timeout=ARRIVE_S):
        """Waits until all of them were taken; gives those that were not."""
        executions = list(executions)
        deadline = time.monotonic() + timeout * harness.SLOW
        while True:
            missing = self.missing(executions)
            if not missing or time.monotonic() > deadline:
                return missing
            executions = missing
            time.sleep(0.02)

    def wait_calls(self, count, timeout=ARRIVE_S):
        """The calls so far, once there are count of them or the time is over."""
        until(lambda: len(self.calls) >= count, timeout)
        with self._changed:
            return list(self.calls)

    def ids_differ(self):
        """The alerts that came with more than one webhook-id."""
        with self._changed:
            return [execution for execution, calls in self.seen.items() if len({id for id, _ in calls}) > 1]

    def doubles(self):
        """How many of the alerts that were taken were taken more than once."""
        with self._changed:
            return sum(len(calls) > 1 for calls in self.taken.values())

    def _accept(self, listener, closing):
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with self._changed:
                self._open.add(sock)
            if closing.is_set():
                sock.close()
                return
            threading.Thread(target=self._serve, args=(sock, closing), daemon=True).start()

    def _serve(self, sock, closing):
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            rest = b''
            while rest is not None:
                rest = self._serve_one(sock, rest, closing)
        except OSError:
            pass
        finally:
            with self._changed:
                self._open.discard(sock)
            sock.close()

    def _serve_one(self, sock, data, closing):
        """Reads and answers one request; gives what was read after it, None at the end of the connection."""
        while True:
            end = data.find(b'\r\n\r\n')
            if end >= 0:
                match = self.LENGTH.search(data, 0, end + 2)
                whole = end + 4 + (int(match.group(1)) if match else 0)
                if len(data) >= whole:
                    break
            more = sock.recv(65536)
            if not more:
                return None
            data += more
        head, body, rest = data[:end + 2], data[end + 4:whole], data[whole:]
        return rest if self._answer(sock, head, body, closing) else None

    def _answer(self, sock, head, body, closing):
        path = self.HEAD.match(head).group(1).decode('latin-1')
        id = self.ID.search(head)
        stamp = self.STAMP.search(head)
        execution = self.EXECUTION.search(body)
        execution = execution.group(1).decode() if execution else ''
        with self._changed:
            call = Call(path, execution, id.group(1).decode() if id else None, len(self.seen[execution]) + 1, body,
                        int(stamp.group(1)) if stamp else None)
            self.seen[execution].append((call.id, call.time))
        result = self.behave(call) if self.behave else 200
        if result == 'hang':
            while not closing.is_set():
                if select.select([sock], [], [], 0.2)[0]:
                    return False
            return False
        if result == 'reset':
            harness.reset(sock)
            return False
        status, headers = result if isinstance(result, tuple) else (result, ())
        with self._changed:     # before it is sent: from then on the other side may forget the alert
            call.body = None
            self.calls.append((call, status))
            if status // 100 == 2:
                self.taken[execution].append((call.id, call.time))
        sock.sendall(harness.response(status, headers=headers))
        return True


def fickle(random_numbers, good=0.45, error=0.25, hang=0.02, good_from=4):
    """
    A `behave` that fails at random: 500, no answer, else a reset. The good_from-th call for an alert and later ones are
    answered 200, so that no backoff becomes long.
    """
    lock = threading.Lock()

    def behave(call):
        if call.number >= good_from:
            return 200
        with lock:
            dice = random_numbers.random()
        if dice < good:
            return 200
        if dice < good + error:
            return 500
        return 'hang' if dice < good + error + hang else 'reset'
    return behave


# ---- Load, and what the log says of it ------------------------------------------------------------------------------


class Load:
    """Sends alerts to a place at a steady rate, of these kinds in turn, until it is closed. sent: their executionIds."""

    def __init__(self, place, rate, message='Max retries reached', ids=('/scheduler-task-failed/',),
                 make_socket=socket.socket):
        self.sent = []
        self._ids = ids
        self._place = place
        self._rate = rate
        self._message = message
        self._stop = threading.Event()
        self._socket = make_socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        begin = time.monotonic()
        while not self._stop.wait(0.01):
            due = int((time.monotonic() - begin) * self._rate)
            for _ in range(min(due - len(self.sent), 100)):
                execution = harness.guid()
                self.sent.append(execution)
                try:
                    self._socket.sendto(alert(execution, message=self._message, id=self._ids[len(self.sent) % len(self._ids)]),
                                        ('127.0.0.1', self._place.port))
                except OSError:
                    pass        # nobody listens at the moment

    def close(self):
        self._stop.set()
        self._thread.join(5)
        self._socket.close()


def alert(execution, task_id=None, message='Max retries reached', **given):
    """The datagram of a failed reload."""
    return harness.datagram(execution_id=execution, task_id=task_id, message=message, **given)


class Told:
    """What the log of a program says of its alerts; `update` reads on."""

    ACCEPTED = re.compile(r'info: alert (\d+) accepted: .*, execution ([0-9a-fA-F-]{36}), for \d+ webhook')
    WHOLE = re.compile(r'error: alert (\d+) (lost|given up) for .*?; alert: (\{.*\})$')

    def __init__(self, process):
        self.process = process
        self.accepted = {}      # executionId -> number
        self.whole = collections.defaultdict(list)      # lost, given up -> alerts that only the log has, as dicts
        self.delivered = 0
        self._at = 0

    def update(self):
        with self.process._changed:
            lines = self.process.log[self._at:]
            self._at += len(lines)
        for line in lines:
            if ' accepted: ' in line:
                match = self.ACCEPTED.search(line)
                if match:
                    self.accepted[match.group(2)] = int(match.group(1))
            elif ' delivered to ' in line:
                self.delivered += 1
            elif '; alert: {' in line:
                match = self.WHOLE.search(line)
                if match:
                    self.whole[match.group(2)].append(json.loads(match.group(3)))
        return self

    def executions(self, word):
        return [alert['executionId'] for alert in self.whole[word]]


def accepted(process):
    """The executionIds of all alerts that this process says it has accepted. Once it has ended and was waited for."""
    return list(Told(process).update().accepted)


def send(process, count, window=150, told=None, timeout=60, sink=None, **given):
    """
    Sends count alerts, never more than window ahead of what the log shows as accepted, so that nothing is dropped on the
    way; with a sink never more than window ahead of its calls, either, and it ends when all have been called. Gives their
    executionIds; those that were not accepted in time are missing.
    """
    told = told or Told(process)
    before = len(told.update().accepted)
    called = len(sink.seen) if sink else 0
    executions = []
    deadline = time.monotonic() + timeout * harness.SLOW
    while len(executions) < count and time.monotonic() < deadline:
        room = window - len(executions) + len(told.update().accepted) - before
        if sink:
            room = min(room, window - len(executions) + len(sink.seen) - called)
        if room <= 0:
            time.sleep(0.002)
            continue
        for _ in range(min(room, 32, count - len(executions))):
            executions.append(harness.guid())
            process.send(alert(executions[-1], **given))
    until(lambda: len(told.update().accepted) - before >= len(executions) and
          (not sink or len(sink.seen) - called >= len(executions)), max(1, deadline - time.monotonic()), 0.002)
    return [execution for execution in executions if execution in told.accepted]


def stopped(process):
    """The numbers of the last line of the log, or None."""
    match = process.wait_log(r'info: stopped: (\d+) received, (\d+) accepted, (\d+) delivered, (\d+) given up, (\d+) lost, '
                             r'(\d+) waiting', timeout=1)
    return dict(zip(('received', 'accepted', 'delivered', 'given up', 'lost', 'waiting'),
                    map(int, match.groups()))) if match else None


def kill(process):
    """kill -9; afterwards the log holds all that was written, and the port is free."""
    process.kill()
    process.wait()


def stop(t, process, what='exit code of the stop'):
    """SIGTERM, and exit code 0."""
    t.equal(what, process.stop(), 0)
    process.wait()


# ---- The journal ----------------------------------------------------------------------------------------------------

NUMBERS = itertools.count(1000000)      # of alerts that tests write themselves: behind all that the program has given


# A line's fields behind its CRC. number: of the alert, or a webhook's place; count: attempts, 1 for dead, 1 for a window of
# de-duplication, or how many webhooks are listed. What a word does not need is 0 or "".
Record = collections.namedtuple('Record', 'word number kind time count keys json')


def record(*fields):
    """One line of the journal, with its CRC and its line end."""
    text = '\t'.join(str(field) for field in fields).encode('utf-8', 'surrogateescape')
    return b'%08x\t%s\n' % (zlib.crc32(text), text)


def read_line(line):
    """The Record of a line without its LF; None if it is damaged."""
    if len(line) < 10 or line[8:9] != b'\t' or b'%08x' % zlib.crc32(line[9:]) != line[:8]:
        return None
    fields = line[9:].decode('utf-8', 'surrogateescape').split('\t')
    return Record(*fields) if len(fields) == len(Record._fields) else None


def read_journal(path):
    """The good records of a journal."""
    return [fields for fields in map(read_line, read(path).split(b'\n')[:-1]) if fields]


def waiting(records):
    """What waits by these records: (number, key) -> alert."""
    found = {}
    for line in records:
        if line.word in ('accepted', 'waiting'):
            for key in line.keys.split(','):
                found.setdefault((line.number, key), json.loads(line.json))
        elif line.word == 'end':
            found.pop((line.number, line.keys), None)
    return found


def waiting_executions(records):
    return {alert['executionId'] for alert in waiting(records).values()}


def webhook_key(url, method='POST', kind='failure', n=0):
    """By what a webhook is known in the journal."""
    return hashlib.sha256(('%s\n%s\n%s\n%d' % (kind, method, url, n)).encode()).hexdigest()[:32]


def webhook_id(execution, key, kind='failure'):
    """The webhook-id of an alert: the same wherever and whenever it is sent."""
    return 'msg_%s_%s_%s' % (execution.replace('-', '').lower(), kind[0], key[:8])


def body(execution, task_id=None, message='Max retries reached', kind='failure'):
    """The JSON of an alert, byte for byte as a POST has it."""
    return json.dumps({'event': 'Qlik Sense reload ' + {'failure': 'failed', 'aborted': 'aborted'}[kind],
                       'hostName': 'qliksrv1', 'user': 'LAB\\goran', 'taskName': 'Reload of Sales',
                       'taskId': task_id or harness.guid(), 'appName': 'Sales',
                       'appId': 'e7af59a0-c243-480d-9571-08727551a66f', 'logTimeStamp': '2026-11-22 09:30:00,123',
                       'logLevel': 'INFO', 'executionId': execution, 'logMessage': message},
                      ensure_ascii=False, separators=(',', ':'))


def webhook_record(key, kind='failure', place=1, listed=1, description=''):
    """A line that says what is known of a webhook."""
    return record('webhook', place, kind, 0, listed, key, json.dumps(description, ensure_ascii=False))


def accepted_record(key, execution, wall_ms=None, number=None, task_id=None, message='Max retries reached', kind='failure',
                    word='accepted'):
    """A line that makes an alert wait for one webhook, or for several (their keys, ',' between)."""
    return record(word, next(NUMBERS) if number is None else number, kind, now_ms() if wall_ms is None else wall_ms, 0, key,
                  body(execution, task_id, message, kind))


def attempt_record(number, key, attempts, tried_ms, why='status 500'):
    return record('attempt', number, 'failure', tried_ms, attempts, key, json.dumps(why, ensure_ascii=False))


def end_record(number, key, dead=0):
    return record('end', number, 'failure', 0, dead, key, '""')


def now_ms():
    return int(time.time() * 1000)


NOTHING = {'waiting': [], 'dead': [], 'handedOver': []}     # what --pending --json gives when all is done


class Place:
    """A configuration and its state directory; the webhooks' URLs are known before anything listens there."""

    def __init__(self, t, webhooks, name='butler', state=None, butlerWebhook=None, **config):
        self.t = t
        own = dict(butlerWebhook or {})
        if state is not None:
            own['stateDirectory'] = state
        if own:
            config['butlerWebhook'] = own
        os.makedirs(os.path.join(t.tmp, name), exist_ok=True)
        self.webhooks = webhooks
        self.config, self.port = t.config(webhooks, name=os.path.join(name, 'butler.yaml'), **config)
        self.state = os.path.join(os.path.dirname(self.config), state or 'butler_webhook.state')

    def path(self, name='journal'):
        return os.path.join(self.state, name)

    def fill(self, data):
        """Makes the state directory anew, with this journal."""
        if os.path.isdir(self.state):
            for name in os.listdir(self.state):
                os.unlink(os.path.join(self.state, name))
        else:
            os.mkdir(self.state, 0o700)
        write(self.path(), data)

    def start(self, **options):
        # wine's server closes the socket of a killed program a little later, or never.
        if harness.WINDOWS and not until(lambda: harness.port_is_free(self.port), 3):
            old, self.port = self.port, harness.free_port()
            write(self.config, read(self.config).replace(b' %d' % old, b' %d' % self.port))
        return self.t.start(self.config, **options)

    def pending(self, binary=None, what='--pending', code=0):
        """What --pending --json gives; an empty one if it fails. code 1: a file of dead letters cannot be read."""
        result = self.t.run('--pending', '--json', self.config, binary=binary)
        try:
            answer = json.loads(result.stdout)
            good = result.returncode == code and set(answer) == set(NOTHING)
        except ValueError:
            good = False
        if not good:
            self.t.check('%s --json works' % what, False, 'exit %d, stdout %r, stderr %r' %
                         (result.returncode, result.stdout[-200:], result.stderr[:200]))
            return NOTHING
        return answer

    def waiting(self, binary=None, code=0):
        """The executionIds that wait, by --pending."""
        return [entry['alert']['executionId'] for entry in self.pending(binary, code=code)['waiting']]

    def letters(self, names=('dead-letters.1.ndjson', 'dead-letters.ndjson')):
        """The dead letters in the files, the rotated one first; a line that is none is left out."""
        found = []
        for name in names:
            for line in read(self.path(name)).split(b'\n'):
                try:
                    found.append(json.loads(line))
                except ValueError:
                    pass
        return found

    def journal(self):
        return read_journal(self.path())


def journal_with(t, place, count, binary=None, messages=None):
    """
    Lets the program itself write a journal in which count alerts wait; nothing may listen at the webhook. Gives its bytes
    and the executionIds, in order.
    """
    process = place.start(binary=binary)
    executions = []
    for i in range(count):
        executions += send(process, 1, message=messages[i] if messages else 'Max retries reached %d' % i)
    t.equal('alerts that were accepted', len(executions), count)
    stop(t, process)
    data = read(place.path())
    t.require('all of them wait in the journal', waiting_executions(read_journal(place.path())) == set(executions),
              repr(data[-600:]))
    return data, executions


def exec_wrap(code):
    """A wrap that runs a line of Python in the process that becomes the program."""
    return [sys.executable, '-c', 'import os, resource, sys\n%s\nos.execv(sys.argv[1], sys.argv[1:])' % code]


def refused_place(t, **config):
    """A place whose webhook refuses connections until sink.up()."""
    sink = t.add(Sink(up=False))
    return Place(t, [{'url': sink.url()}], **config), sink


def settled(shim):
    """Waits until nothing has been synced for half a second: what the start had to do is done."""
    before = -1
    while before != shim.get('syncs') or not shim.get('folder_syncs'):
        before = shim.get('syncs')
        time.sleep(0.5)


def cut_power(place, process, shim):
    """kill -9, and what was not synced is gone from the journal."""
    kill(process)
    os.truncate(place.path(), shim.get('synced_len'))


def status(pid, name):
    """A number of /proc/PID/status, in kB."""
    for line in read('/proc/%d/status' % pid).decode().splitlines():
        if line.startswith(name + ':'):
            return int(line.split()[1])
    return 0
