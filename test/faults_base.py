"""What tests under faults share: webhooks that fail as told, load, the faults of shim.c, a reader and writer of journals."""

import collections
import contextlib
import hashlib
import itertools
import json
import mmap
import os
import random
import re
import socket
import threading
import time
import zlib

import harness
import words

LONG = bool(os.environ.get('BUTLER_LONG'))
ARRIVE_S = 40       # for alerts to arrive once nothing is wrong any more, their short backoffs included
HOUR_MS = 3600 * 1000
TEST_MEGABYTE = 65536   # what a megabyte of maxStateMB is in the test build
OURS = {'timeoutSeconds': 25, 'maxAgeHours': 8760}      # for the test build, where a second of timeoutSeconds is 0.2 s
FAILED, ABORTED = '/scheduler-task-failed/', '/scheduler-task-aborted/'
NOTHING = {'waiting': [], 'dead': [], 'handedOver': []}     # what --pending --json gives when all is done


def pick(short, long):
    return long if LONG else short


def rng(t):
    """Random numbers whose seed is printed, and can be given again in FAULTS_SEED."""
    seed = int(os.environ.get('FAULTS_SEED', random.SystemRandom().randrange(1 << 32)))
    print('%s: FAULTS_SEED=%d' % (t.name, seed), flush=True)
    return random.Random(seed)


def until(condition, timeout=ARRIVE_S, every=0.02):
    """Waits until condition() is true; gives what it gave last."""
    deadline = time.monotonic() + timeout * harness.SLOW
    while True:
        result = condition()
        if result or time.monotonic() > deadline:
            return result
        time.sleep(every)


# ---- Checks ---------------------------------------------------------------------------------------------------------


def some(things, count=5):
    """A few of them, for the text of a failed check."""
    things = list(things)
    return '%d: %s%s' % (len(things), ', '.join(str(thing) for thing in things[:count]),
                         ', ...' if len(things) > count else '')


def soon(t, what, condition, timeout=ARRIVE_S):
    """condition() must be true in time."""
    return t.check(what, until(condition, timeout), 'not in time')


def logged(t, what, process, regex, count=1, timeout=ARRIVE_S):
    """The log must have such a line in time; gives its match."""
    match = process.wait_log(regex, timeout, count)
    t.check(what, match, '%r is not in the log' % regex)
    return match


def same(t, what, got, want):
    """Compares two collections of executionIds, whatever their order; a failure names some."""
    got, want = list(got), list(want)
    missing, more = set(want) - set(got), set(got) - set(want)
    return t.check(what, sorted(got) == sorted(want), '%d instead of %d; missing %s; too many %s' %
                   (len(got), len(want), some(missing), some(more)))


def arrive(t, what, sink, executions, timeout=ARRIVE_S):
    """All of these must be taken by the sink in time, each with one webhook-id."""
    until(lambda: not sink.missing(executions), timeout)
    missing = sink.missing(executions)
    t.check(what, executions and not missing, '%s of %d are missing' % (some(missing), len(executions)))
    t.check('%s: each with one webhook-id' % what, not sink.ids_differ(), some(sink.ids_differ()))


def lost(place, sink, executions):
    """Which of these are nowhere. What moves is written to where it goes before it leaves: looked for in that order."""
    found = set(executions_of(place.letters(('replay.1.ndjson', 'replay.ndjson'))))
    answer = place.pending()
    for name in NOTHING:
        found |= set(executions_of(answer[name]))
    return set(executions) - found - set(sink.taken)


def none_lost(t, what, place, sink, executions):
    missing = lost(place, sink, executions)
    return t.check(what, executions and not missing, some(missing))


# ---- Files ----------------------------------------------------------------------------------------------------------


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


def size(path):
    """The size of a file, or of all files in a folder; 0 if it is not there."""
    try:
        if os.path.isdir(path):
            return sum(size(os.path.join(path, name)) for name in os.listdir(path))
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


class Shim:
    """The faults of test/shim.c. `env` goes to the program."""

    with open(os.path.join(harness.ROOT, 'test/shim.c')) as file:
        FIELDS = re.findall(r'_Atomic int64_t (\w+);', file.read())

    def __init__(self, t):
        if harness.WINDOWS:
            t.skip('faults put between the program and the C library of Linux')
        path = os.path.join(t.tmp, 'shim')
        write(path, bytes(4096))
        self.env = {'BUTLER_SHIM': path}
        with open(path, 'r+b') as file:
            self._values = memoryview(mmap.mmap(file.fileno(), 4096)).cast('q')

    def set(self, **fields):
        for name, value in fields.items():
            self._values[self.FIELDS.index(name)] = value

    def get(self, name):
        return self._values[self.FIELDS.index(name)]

    def heal(self):
        """No fault any more; what was counted stays."""
        for i in range(self.FIELDS.index('hits')):
            self._values[i] = 0

    def struck(self, t, before=0):
        """Faults were met since there were `before` hits."""
        return soon(t, 'the shim has struck', lambda: self.get('hits') > before)


# ---- Webhooks that fail as told -------------------------------------------------------------------------------------

# One request; number: of those of this alert, from 1; crc: of the body.
Call = collections.namedtuple('Call', 'path execution id number time crc')


class Sink:
    """
    A webhook that knows its alerts by executionId. `behave(call)` says what each call gets: a status, (status, headers), 'hang'
    or 'reset'. Without it: 200. `down` makes it refuse connections, `up` accept them again on the same port.
    calls: those that were answered; seen: executionId -> its calls; taken: the same for those that were answered 2xx.
    """

    FAILURES = {'hang': lambda sock: sock.recv(1), 'reset': harness.reset}      # hang: until one side ends the connection

    def __init__(self, behave=None, up=True, host='127.0.0.1'):
        self.behave = behave
        self.host = host
        self.port = harness.free_port()
        self.taken = collections.defaultdict(list)
        self.seen = collections.defaultdict(list)
        self.calls = []
        self._lock = threading.Lock()
        self._receiver = None
        if up:
            self.up()

    def url(self, path='/hook', host=None):
        return 'http://%s:%d%s' % (host or self.host, self.port, path)

    def up(self):
        self._receiver = harness.Receiver(self._answer, self.host, self.port, backlog=256)

    def down(self):
        if self._receiver:
            self._receiver.close()

    close = down

    def forget(self):
        """Starts to count anew."""
        with self._lock:
            self.taken.clear()
            self.seen.clear()
            self.calls.clear()

    def missing(self, executions):
        with self._lock:
            return [execution for execution in executions if execution not in self.taken]

    def ids_differ(self):
        """The alerts that came with more than one webhook-id."""
        with self._lock:
            return [execution for execution, calls in self.seen.items() if len({call.id for call in calls}) > 1]

    def doubles(self):
        """How many alerts were taken more than once."""
        with self._lock:
            return sum(len(calls) > 1 for calls in self.taken.values())

    def _answer(self, request, connection):
        if self._receiver:
            self._receiver.requests.clear()     # they would only fill the memory
        execution = request.json()['executionId']
        with self._lock:
            seen = self.seen[execution]
            call = Call(request.path, execution, request.get('webhook-id'), len(seen) + 1, request.time, zlib.crc32(request.body))
            seen.append(call)
        result = self.behave(call) if self.behave else 200
        if result in self.FAILURES:
            return self.FAILURES[result]
        status, headers = result if isinstance(result, tuple) else (result, ())
        with self._lock:        # before it is sent: from then on the other side may forget the alert
            self.calls.append(call)
            if status // 100 == 2:
                self.taken[execution].append(call)
        return harness.response(status, headers=headers)


def fickle(random_numbers, good=0.45, error=0.25, hang=0.02, good_from=4):
    """A `behave` that fails at random: 500, no answer, a reset. Not from the good_from-th call on, or backoffs get long."""
    def behave(call):
        dice = random_numbers.random()
        if call.number >= good_from or dice < good:
            return 200
        if dice < good + error:
            return 500
        return 'hang' if dice < good + error + hang else 'reset'
    return behave


# ---- Alerts, and what the log says of them --------------------------------------------------------------------------


def alert(execution, task_id=None, message='Max retries reached', **given):
    """The datagram of a failed reload."""
    return harness.datagram(execution_id=execution, task_id=task_id, message=message, **given)


class Load:
    """Sends alerts to a place at a steady rate, of these kinds in turn, until it is closed. sent: their executionIds."""

    def __init__(self, place, rate, ids=(FAILED,), **given):
        self.sent = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(place.port, rate, ids, given), daemon=True)
        self._thread.start()

    def _run(self, port, rate, ids, given):
        begin = time.monotonic()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            while not self._over.wait(0.01):
                due = int((time.monotonic() - begin) * rate)
                for _ in range(min(due - len(self.sent), 100)):
                    self.sent.append(harness.guid())
                    with contextlib.suppress(OSError):      # nobody listens at the moment
                        udp.sendto(alert(self.sent[-1], id=ids[len(self.sent) % len(ids)], **given), ('127.0.0.1', port))

    def close(self):
        self._over.set()
        self._thread.join(5)


ACCEPTED = re.compile(words.accepted(what=r'execution ([0-9a-fA-F-]{36}), for \d+ webhook'))
MEMORY_ONLY = words.accepted() + ', in memory only$'


def accepted(lines):
    """The executionIds of all alerts that these lines of log say to be accepted."""
    return [match.group(1) for match in map(ACCEPTED.search, lines) if match]


def logged_whole(process):
    """The executionIds of the alerts that were lost, and that only the log has."""
    return [json.loads(line.partition('; alert: ')[2])['executionId'] for line in process.lines(words.lost() + '.*; alert: {')]


def send(process, count=1, window=150, timeout=60, sink=None, **given):
    """
    Sends count alerts, never more than window ahead of what is accepted, so that nothing is dropped on the way, nor of a sink's
    calls, and waits for these. Gives their executionIds; those that were not accepted in time are missing.
    """
    executions, told = [], set()
    at, called = len(process.log), len(sink.seen) if sink else 0
    deadline = time.monotonic() + timeout * harness.SLOW
    while True:
        lines = process.log[at:]
        at += len(lines)
        told.update(accepted(lines))
        done = min(len(told), len(sink.seen) - called) if sink else len(told)
        if done >= count or time.monotonic() > deadline:
            return [execution for execution in executions if execution in told]
        for _ in range(min(window + done - len(executions), 32, count - len(executions))):
            executions.append(harness.guid())
            process.send(alert(executions[-1], **given))
        time.sleep(0.002)


def stopped(process):
    """The numbers of the last line of the log."""
    match = process.wait_log(words.STOPPED, timeout=1)
    names = ('received', 'accepted', 'delivered', 'given up', 'lost', 'waiting')
    return dict(zip(names, map(int, match.groups()))) if match else dict.fromkeys(names)


def kill(process):
    """kill -9; afterwards the log holds all that was written, and the port is free."""
    process.kill()
    process.wait()


def stop(t, process):
    """SIGTERM: exit code 0, within 5 s."""
    begin = time.monotonic()
    t.equal('the stop: exit code', process.stop(), 0)
    took = time.monotonic() - begin
    t.check('the stop: within 5 s', took < 5.5 * harness.SLOW, took)


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


def bad_lines(data):
    """The lines that are no good records; a torn one at the end is none."""
    return [line for line in data.split(b'\n')[:-1] if line and not read_line(line)]


def now_ms():
    return int(time.time() * 1000)


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


def accepted_record(key, execution, wall_ms=None, number=None, task_id=None, message='Max retries reached'):
    """A line that makes an alert of a failure wait for one webhook."""
    return record('accepted', next(NUMBERS) if number is None else number, 'failure', now_ms() if wall_ms is None else wall_ms,
                  0, key, body(execution, task_id, message))


# ---- Places ---------------------------------------------------------------------------------------------------------


def executions_of(entries):
    return [entry['alert']['executionId'] for entry in entries]


class Place:
    """A configuration and its state directory, test: of the test build, shim: with a Shim, too."""

    def __init__(self, t, webhooks, name='butler', state=None, butlerWebhook=None, test=False, shim=False, **config):
        self.t = t
        self.test = test or shim
        self.shim = Shim(t) if shim else None
        own = dict(OURS if self.test else {}, **butlerWebhook or {})
        if state is not None:
            own['stateDirectory'] = state
        os.makedirs(os.path.join(t.tmp, name), exist_ok=True)
        self.webhooks = webhooks
        self.config, self.port = t.config(webhooks, name=os.path.join(name, 'butler.yaml'),
                                          **(dict(config, butlerWebhook=own) if own else config))
        self.state = os.path.join(os.path.dirname(self.config), state or 'butler_webhook.state')
        self.key = webhook_key(webhooks[0]['url'])      # of the first webhook

    def path(self, name='journal'):
        return os.path.join(self.state, name)

    def fill(self, data=b'', **files):
        """Makes the state directory anew, with this journal and these files (dead_letters for dead-letters.ndjson)."""
        os.makedirs(self.state, 0o700, exist_ok=True)
        for name in os.listdir(self.state):
            os.unlink(self.path(name))
        write(self.path(), data)
        for name, content in files.items():
            write(self.path(name.replace('_', '-') + '.ndjson'), content)

    def fill_waiting(self, count, **given):
        """A journal in which so many alerts wait for the first webhook; gives their executionIds."""
        executions = ['%08x-0000-4000-8000-000000000000' % number for number in range(count)]
        self.fill(b''.join(accepted_record(self.key, execution, **given) for execution in executions))
        return executions

    def start(self, **options):
        # wine's server closes the socket of a killed program a little later, or never.
        if harness.WINDOWS and not until(lambda: harness.port_is_free(self.port), 3):
            old, self.port = self.port, harness.free_port()
            write(self.config, read(self.config).replace(b' %d' % old, b' %d' % self.port))
        default = {'binary': self.t.binary_test if self.test else self.t.binary, 'env': self.shim and self.shim.env}
        return self.t.start(self.config, **dict(default, **options))

    def pending(self, code=0):
        """What --pending --json gives. code 1: a file of dead letters cannot be read."""
        result = self.t.run('--pending', '--json', self.config, timeout=120)
        self.t.require('--pending --json works', result.returncode == code, result)
        return json.loads(result.stdout)

    def waiting(self, code=0):
        """The executionIds that wait, by --pending."""
        return executions_of(self.pending(code)['waiting'])

    def letters(self, names=('dead-letters.1.ndjson', 'dead-letters.ndjson')):
        """The dead letters in the files, the rotated one first; a line that is none is left out."""
        found = []
        for line in b'\n'.join(read(self.path(name)) for name in names).split(b'\n'):
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def dead(self):
        """The executionIds of the dead letters, in the files' order."""
        return executions_of(self.letters())

    def journal(self):
        """The good records."""
        return [fields for fields in map(read_line, read(self.path()).split(b'\n')[:-1]) if fields]


def single(t, behave=None, up=True, **config):
    """A place with one webhook, and its sink."""
    sink = t.add(Sink(behave, up))
    return Place(t, [{'url': sink.url()}], **config), sink


def pair(t, **config):
    """A place with a webhook for failures that works and one for aborts that is down; their sinks."""
    good, down = t.add(Sink()), t.add(Sink(up=False))
    return Place(t, [{'url': good.url()}, {'url': down.url(), 'kind': 'aborted'}], **config), good, down


def cut_power(place, process):
    """kill -9, and what was not synced is gone from the journal."""
    kill(process)
    os.truncate(place.path(), place.shim.get('synced_len'))


def status(pid, name):
    """A number of /proc/PID/status, in kB."""
    return int(re.search(r'(?m)^%s:\s+(\d+)' % name, read('/proc/%d/status' % pid).decode()).group(1))
