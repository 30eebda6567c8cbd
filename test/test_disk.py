"""Disk full, I/O errors, directories that are wrong, memory only, a full state directory, no descriptors left."""

import errno
import json
import os
import re
import shutil
import stat
import subprocess
import threading
import time

import faults_base as base
import harness

TOLD = r' error: state directory: .*; alerts go on from memory'
HEALED = r' info: state directory: works again$'
REWRITE_TOLD = r' error: state directory: cannot rewrite the journal: .*; trying again$'
UNREADABLE = r' error: journal: \d+ bytes that cannot be read were passed over'
MEMORY_ONLY = r' info: alert \d+ accepted: .*, in memory only$'


# ---- A broken disk --------------------------------------------------------------------------------------------------


def fire(process, sink, count):
    """Sends alerts, never more than three on their way to the sink. Gives those that were accepted."""
    executions = []
    for begin in range(0, count, 3):
        executions += base.send(process, min(3, count - begin), timeout=10)
        base.until(lambda: not sink.missing(executions[-3:]), 10, 0.002)
    return executions


def works(process):
    """Whether the last that the log says of the state directory is that it works."""
    lines = process.lines('%s|%s|%s' % (TOLD, REWRITE_TOLD, HEALED))
    return lines and ' works again' in lines[-1]


class Broken:
    """A program of the test build, whose disk breaks by the shim, and two webhooks: one that works, one that is down."""

    def __init__(self, t, **fields):
        self.t = t
        self.shim = base.Shim(t)
        self.good = t.add(base.Sink())
        self.down = t.add(base.Sink(up=False))
        self.place = base.Place(t, [{'url': self.good.url()}, {'url': self.down.url(), 'kind': 'aborted'}],
                                butlerWebhook=base.OURS)
        self.process = self.start()
        self.fields = fields
        self.waiting = []       # of the webhook that is down
        self.known = 0          # lines of TOLD and HEALED so far

    def start(self):
        return self.place.start(binary=self.t.binary_test, env=self.shim.env)

    def fire(self, count):
        """Alerts to the webhook that works."""
        executions = fire(self.process, self.good, count)
        self.t.equal('alerts are accepted', len(executions), count)
        missing = self.good.wait(executions)
        self.t.check('alerts are delivered', not missing, base.some(missing))

    def wait_for_later(self, count=1):
        """Alerts to the webhook that is down."""
        executions = base.send(self.process, count, window=1, id='/scheduler-task-aborted/')
        self.t.equal('alerts are accepted for the webhook that is down', len(executions), count)
        self.waiting += executions

    def break_it(self, what=''):
        before = self.shim.get('hits')
        self.shim.set(**self.fields)
        return before

    def heal(self):
        self.shim.set(**{name: 0 for name in self.fields})

    def told(self, n, what):
        """The error was told for the n-th time; from then on the log says of each alert that it stands in memory only."""
        t = self.t
        t.check('%s: the error is told' % what, self.process.wait_log(TOLD, 10, count=n), base.tail(self.process))
        self.safe(what, False)

    def safe(self, what, wanted):
        """Whether the log says of an alert that it is on the disk."""
        before = len(self.process.lines(MEMORY_ONLY))
        self.fire(3)
        self.t.equal('%s: accepted in memory only' % what, len(self.process.lines(MEMORY_ONLY)) - before, 0 if wanted else 3)

    def healed(self, n, what):
        t = self.t
        t.check('%s: it is told that it works again' % what, self.process.wait_log(HEALED, 15, count=n),
                base.tail(self.process))
        t.equal('%s: each is told once' % what, (len(self.process.lines(TOLD)), len(self.process.lines(HEALED))), (n, n))
        self.safe('%s, healed' % what, True)

    def kill_and_deliver(self):
        """kill -9 now: all that waits for the webhook that is down must still be there."""
        t = self.t
        base.kill(self.process)
        bad = [line for line in base.read(self.place.path()).split(b'\n')[:-1] if not base.read_line(line)]
        t.check('no line of the journal is damaged', not bad, base.some(bad))
        waiting = self.place.waiting(t.binary_test)
        t.check('after kill -9 all that waited is in the journal', set(self.waiting) <= set(waiting),
                base.some(set(self.waiting) - set(waiting)))
        self.process = self.start()
        self.down.up()
        missing = self.down.wait(self.waiting)
        t.check('and arrives after the next start', not missing, base.some(missing))
        t.check('each with one webhook-id', not self.down.ids_differ(), base.some(self.down.ids_differ()))
        t.check('then nothing waits', base.until(lambda: not self.place.waiting(t.binary_test), 5))
        base.stop(t, self.process)


def broken_disk(t, rounds=2, **fields):
    """The disk breaks and heals, twice; then the process is killed."""
    broken = Broken(t, **fields)
    broken.fire(3)
    broken.wait_for_later(2)
    for n in range(1, rounds + 1):
        before = broken.break_it()
        broken.fire(15)
        broken.wait_for_later(1)
        broken.told(n, 'fault %d' % n)
        broken.fire(5)
        t.check('the shim has struck', broken.shim.get('hits') > before)
        t.equal('fault %d: told once' % n, len(broken.process.lines(TOLD)), n)
        broken.heal()
        broken.healed(n, 'fault %d' % n)
        broken.fire(3)
    broken.kill_and_deliver()


@harness.limit(60, 120)
def test_disk_write_error(t):
    broken_disk(t, write_errno=errno.EIO)


@harness.limit(60, 120)
def test_disk_read_only(t):
    """The system makes it read-only while the program runs, as ext4 does on errors."""
    broken_disk(t, write_errno=errno.EROFS, open_errno=errno.EROFS, rename_errno=errno.EROFS, truncate_errno=errno.EROFS)


@harness.limit(60, 120)
def test_disk_full(t):
    broken_disk(t, write_room=-1)


@harness.limit(60, 120)
def test_disk_short_write(t):
    """A write that ends inside a record: what is torn is cut off before the next."""
    for room in base.pick((1, 150), (1, 8, 9, 60, 150, 400, 700)):
        broken_disk(t, rounds=1, write_room=room)
        shutil.rmtree(os.path.join(t.tmp, 'butler'))


@harness.limit(60, 120)
def test_disk_short_write_that_cannot_be_cut(t):
    """A short write, and ftruncate fails, too: the torn record must not spoil the next one."""
    broken_disk(t, rounds=1, write_room=200, truncate_errno=errno.EIO)


@harness.limit(60, 120)
def test_disk_sync_error(t):
    broken_disk(t, sync_errno=errno.EIO)


def while_rewriting(t, **fields):
    """
    A fault that only rewriting meets: the old journal goes on, so that nothing is in memory only, and kill -9 loses nothing;
    it is told once, as long as it lasts, and heals.
    """
    broken = Broken(t, **fields)
    broken.wait_for_later(3)
    before = broken.break_it()
    broken.fire(150)
    t.check('the shim has struck', base.until(lambda: broken.shim.get('hits') > before, 5))
    broken.wait_for_later(1)
    t.check('the fault is told', broken.process.wait_log(REWRITE_TOLD, 10), base.tail(broken.process))
    broken.fire(20)
    t.equal('and told once', len(broken.process.lines(r' error: ')), 1)
    t.equal('the old journal goes on', broken.process.lines(MEMORY_ONLY), [])
    broken.heal()
    broken.fire(20)
    t.check('it is told that it works again', broken.process.wait_log(HEALED, 15), base.tail(broken.process))
    broken.fire(100)
    t.check('the journal becomes small again', base.until(lambda: len(base.read(broken.place.path())) < 64 << 10, 10),
            len(base.read(broken.place.path())))
    broken.break_it()
    broken.fire(150)
    t.check('the fault is told again', broken.process.wait_log(REWRITE_TOLD, 10, count=2), base.tail(broken.process))
    broken.wait_for_later(2)
    base.kill(broken.process)
    base.same(t, 'kill -9 while it cannot be rewritten: all that waited is there', set(broken.place.waiting(t.binary_test)) &
              set(broken.waiting), broken.waiting)
    broken.heal()
    broken.process = broken.start()
    broken.kill_and_deliver()


@harness.limit(60, 120)
def test_disk_open_error(t):
    """Rewriting finds no descriptor left; in the long form no right, either."""
    for number in base.pick((errno.EMFILE,), (errno.EMFILE, errno.ENFILE, errno.EACCES)):
        while_rewriting(t, open_errno=number)
        shutil.rmtree(os.path.join(t.tmp, 'butler'))


@harness.limit(60, 120)
def test_disk_rename_error(t):
    while_rewriting(t, rename_errno=errno.EIO)


@harness.limit(60, 120)
def test_disk_room_ends_while_rewriting(t):
    """The room ends anywhere, many times: in the journal's own lines, or in the new one."""
    numbers = base.rng(t)
    broken = Broken(t, write_room=0)
    broken.wait_for_later(4)
    for _ in range(base.pick(4, 30)):
        broken.shim.set(write_room=numbers.randrange(1, 40000))
        base.until(lambda: (broken.fire(25), broken.shim.get('write_room') == -1)[1], 15)
        broken.fire(2)
        broken.heal()
        broken.fire(2)
    t.check('in the end it works again', base.until(lambda: works(broken.process), 10), base.tail(broken.process))
    broken.kill_and_deliver()


@harness.limit(60, 120)
def test_disk_unreadable_sector(t):
    """A part of the journal that the disk cannot read is passed over and told; the rest is used, and written anew."""
    numbers = base.rng(t)
    shim = base.Shim(t)
    sink = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook=base.OURS)
    data, executions = base.journal_with(t, place, 60, binary=t.binary_test)
    size = len(data)
    cases = [(0, 512), (4096, 8192), (size - 100, 1 << 40), (512, 1024), (0, size - 4096)]
    cases += [(512 * begin, 512 * (begin + count)) for begin, count in
              ((numbers.randrange(size // 512), numbers.choice((1, 1, 3, 8))) for _ in range(base.pick(3, 60)))]
    for begin, end in cases:
        what = 'bytes %d to %d' % (begin, end)
        # What is passed over may be a little more than what cannot be read.
        must = whole_lines(data, begin - begin % 4096, end + 4096)
        shim.set(read_from=begin, read_to=end)
        place.fill(data)
        process = place.start(binary=t.binary_test, env=shim.env)
        t.check('%s: it is told' % what, process.wait_log(UNREADABLE, 5), base.tail(process))
        t.check('%s: the journal is written anew' % what, base.until(
            lambda: place.journal() and base.read(place.path()) != data, 5))
        shim.set(read_from=0, read_to=0)
        base.kill(process)
        got = set(place.waiting(t.binary_test))
        t.check('%s: the rest waits' % what, must <= got <= set(executions), [base.some(must - got), len(got)])
        process = place.start(binary=t.binary_test, env=shim.env)
        t.equal('%s: the second start finds all well' % what, process.lines(r' (warn|error): journal: '), [])
        base.stop(t, process)
    sink.up()
    process = place.start(binary=t.binary_test)
    base.arrive(t, 'they arrive', sink, got)
    base.stop(t, process)


def whole_lines(data, begin, end):
    """The executionIds of the alerts of a journal that are accepted in lines outside of these bytes."""
    found = set()
    at = 0
    for line in data.split(b'\n')[:-1]:
        fields = base.read_line(line)
        if fields.word == 'accepted' and (at + len(line) < begin or at >= end):
            found.add(json.loads(fields.json)['executionId'])
        at += len(line) + 1
    return found


@harness.limit(60, 120)
def test_disk_errors_at_random(t):
    """Every fault of the disk at random, one after another, with load and a fickle webhook; then kill -9."""
    numbers = base.rng(t)
    shim = base.Shim(t)
    sink = t.add(base.Sink(base.fickle(numbers, good=0.8, error=0.2)))
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook=base.OURS)
    process = place.start(binary=t.binary_test, env=shim.env)
    load = t.add(base.Load(place, 20))
    faults = ('write_errno', 'write_room', 'sync_errno', 'open_errno', 'rename_errno', 'read_errno', 'truncate_errno')
    for _ in range(base.pick(8, 100)):
        name = numbers.choice(faults)
        shim.set(**{name: numbers.randrange(1, 3000) if name == 'write_room' else errno.EIO})
        time.sleep(numbers.uniform(0.05, 0.5))
        shim.set(**{name: 0})
        time.sleep(numbers.uniform(0, 0.5))
    load.close()
    sink.behave = None
    told = base.Told(process)
    t.check('in the end it works again', base.until(lambda: works(process), 10), base.tail(process))
    base.until(lambda: len(told.update().accepted) == len(load.sent), 5)
    base.kill(process)
    told.update()
    t.check('the error was told', process.lines(TOLD))
    errors = len(process.lines(TOLD))
    process = place.start(binary=t.binary_test, env=shim.env)
    missing = sink.wait(told.accepted, 30)
    t.check('what was accepted arrives', told.accepted and not missing, base.some(missing))
    t.check('each with one webhook-id', not sink.ids_differ(), base.some(sink.ids_differ()))
    base.note(t, '%d accepted, error told %d times' % (len(told.accepted), errors))
    base.stop(t, process)


@harness.limit(60, 120)
def test_disk_full_for_real(t):
    """A tmpfs of 256 KiB that something else fills: the kernel's own ENOSPC."""
    state = os.path.join(t.tmp, 'small.state')
    mount = Tmpfs(t, state, '256k')
    sink = t.add(base.Sink())
    down = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}, {'url': down.url(), 'kind': 'aborted'}], state=state, butlerWebhook=base.OURS)
    process = place.start(binary=t.binary_test)
    waiting = base.send(process, 2, id='/scheduler-task-aborted/')
    mount.fill()
    executions = fire(process, sink, 30)
    waiting += base.send(process, 2, window=1, id='/scheduler-task-aborted/')
    t.equal('all are accepted', len(executions) + len(waiting), 34)
    t.check('the error is told', process.wait_log(TOLD, 10), base.tail(process))
    missing = sink.wait(executions)
    t.check('alerts go on from memory', not missing, base.some(missing))
    time.sleep(1)       # several attempts to heal fail: a line fits into the journal's last page, but not all that waits
    mount.empty()
    t.check('it heals', base.until(lambda: 0 < len(process.lines(TOLD)) <= len(process.lines(HEALED)), 15), base.tail(process))
    t.equal('each is told once', (len(process.lines(TOLD)), len(process.lines(HEALED))), (1, 1))
    base.until(lambda: not set(executions) & set(place.waiting()), 5)
    base.kill(process)
    base.same(t, 'after kill -9 all that waited is in the journal', place.waiting(), waiting)
    down.up()
    process = place.start(binary=t.binary_test)
    base.arrive(t, 'and arrives', down, waiting)
    base.stop(t, process)


@harness.limit(60, 120)
def test_disk_full_at_start(t):
    """No room at all when the program starts: it starts all the same, tells, goes on from memory, and loses nothing."""
    state = os.path.join(t.tmp, 'small.state')
    mount = Tmpfs(t, state, '256k')
    sink = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}], state=state, butlerWebhook=base.OURS)
    _, executions = base.journal_with(t, place, 4)
    for fresh in (False, True):
        what = 'a new directory' if fresh else 'alerts wait'
        if fresh:
            sink.down()
            sink.forget()
            for name in os.listdir(state):
                os.unlink(place.path(name))
            executions = []
        mount.fill()
        sink.up()
        process = place.start()
        base.arrive(t, '%s: what waited arrives' % what, sink, executions)
        more = fire(process, sink, 30)      # more than what is left of the journal's last page
        t.equal('%s: alerts are accepted' % what, len(more), 30)
        base.arrive(t, '%s: alerts go on from memory' % what, sink, more)
        t.check('%s: the error is told' % what, process.wait_log(TOLD, 5), base.tail(process))
        base.stop(t, process)
        mount.empty()
        process = place.start()
        base.arrive(t, '%s: with room again all is well' % what, sink, executions + base.send(process, 1))
        t.equal('%s: nothing is told' % what, process.lines(TOLD), [])
        base.stop(t, process)


class Tmpfs:
    """A small file system of its own at a path, where root may mount; the test is skipped where it may not."""

    def __init__(self, t, path, size):
        os.mkdir(path, 0o700)
        self.path = path
        try:
            result = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=%s,mode=700' % size, 'tmpfs', path],
                                    stdin=subprocess.DEVNULL, capture_output=True, text=True)
        except OSError as error:
            t.skip('a tmpfs needs mount: %s' % error)
        if result.returncode != 0:
            t.skip('a tmpfs may not be mounted here: %s' % result.stderr.strip())
        t.add(self)

    def fill(self):
        with open(os.path.join(self.path, 'filler'), 'wb', buffering=0) as file:
            for size in (4096, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
        # The journal's last page may have room: many small files take what is left of the file system, not of that.

    def empty(self):
        os.unlink(os.path.join(self.path, 'filler'))

    def close(self):
        # Lazy: the program may still stand in it when the test was cut short.
        subprocess.run(['umount', '-l', self.path], stdin=subprocess.DEVNULL, capture_output=True)


# ---- Directories that are wrong -------------------------------------------------------------------------------------


def refused(t, what, place, why, **options):
    """A start that must end with exit code 1, and say on stderr and in the log that stateDirectory is why."""
    process = place.start(wait=False, **options)
    process.expect_exit = 1
    process.expect_stderr = True
    code = process.wait(10)
    if code is None:
        process.kill()
    t.equal('%s: exit code' % what, code, 1)
    t.check('%s: stderr names the key and why' % what, 'butlerWebhook.stateDirectory: ' in process.stderr and
            why in process.stderr, process.stderr)
    t.check('%s: so does the log' % what, [line for line in process.lines(r' error: .*butlerWebhook\.stateDirectory: ')
                                           if why in line], base.tail(process))


@harness.limit(60, 60)
def test_directory_wrong_at_start(t):
    sink = t.add(base.Sink())
    number = 0

    def place(state=None):
        nonlocal number
        number += 1
        return base.Place(t, [{'url': sink.url()}], name='place%d' % number, state=state)

    is_file = place()
    base.write(is_file.state, b'mine')
    refused(t, 'a file', is_file, '')
    t.equal('a file: it is left alone', base.read(is_file.state), b'mine')

    below = place('file/sub.state')
    base.write(os.path.dirname(below.state), b'')
    refused(t, 'below a file', below, '')

    is_folder = place()
    os.makedirs(is_folder.path('journal'))
    refused(t, 'the journal is a directory', is_folder, '')
    t.check('it is left alone', os.path.isdir(is_folder.path('journal')))

    lock_folder = place()
    os.makedirs(lock_folder.path('lock'))
    refused(t, 'the lock is a directory', lock_folder, '')

    link = place()
    os.symlink('nowhere/at/all', link.state)
    refused(t, 'a link to nothing', link, '')


@harness.limit(60, 60)
def test_directory_is_made(t):
    """Absent: made with mode 0700, whatever the umask; a directory that is there keeps its mode and what is in it."""
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}], name='fresh')
    process = place.start(wrap=base.exec_wrap('os.umask(0)'))
    t.equal('mode', stat.S_IMODE(os.stat(place.state).st_mode) & (0o700 | harness.SYSTEM.others), 0o700)
    t.check('files are for the owner only', all(stat.S_IMODE(os.stat(place.path(name)).st_mode) & harness.SYSTEM.others_file == 0
                                                for name in os.listdir(place.state)), os.listdir(place.state))
    base.stop(t, process)

    place = base.Place(t, [{'url': sink.url()}], name='absolute', state=os.path.join(t.tmp, 'else where.state'))
    process = place.start()
    t.check('an absolute path with a space', os.path.exists(os.path.join(t.tmp, 'else where.state', 'journal')))
    base.stop(t, process)

    place = base.Place(t, [{'url': sink.url()}], name='present', state='kept.state')
    os.mkdir(place.state, 0o750)
    base.write(place.path('notes.txt'), b'mine')
    process = place.start()
    base.stop(t, process)
    t.equal('a file of somebody else stays', base.read(place.path('notes.txt')), b'mine')


@harness.limit(60, 60)
@harness.unix('modes of files, and users who may not write')
def test_directory_not_writable(t):
    """Started by a user who may not write there."""
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}])
    os.mkdir(place.state, 0o700)
    options = {}
    if os.getuid() == 0:        # root may write everywhere
        binary = shutil.copy(t.binary, os.path.join(t.tmp, 'program'))
        for path in (t.tmp, os.path.dirname(place.config), binary, place.config):
            os.chmod(path, 0o755)
        options = {'binary': binary, 'wrap': base.exec_wrap('os.setgroups([]); os.setgid(65534); os.setuid(65534)')}
        os.chown(place.state, 65534, 65534)
    os.chmod(place.state, 0o500)
    refused(t, 'read only', place, '', **options)
    os.chmod(place.state, 0o000)
    refused(t, 'no rights', place, '', **options)
    os.rmdir(place.state)
    os.chmod(os.path.dirname(place.config), 0o555)
    if os.getuid() != 0:
        refused(t, 'cannot be made', place, '')
    else:
        refused(t, 'cannot be made', place, '', **options)
    os.chmod(os.path.dirname(place.config), 0o755)
    os.mkdir(place.state, 0o700)
    if os.getuid() == 0:
        os.chown(place.state, 65534, 65534)
    process = place.start(**options)
    base.arrive(t, 'with the rights it works', sink, base.send(process, 1))
    base.stop(t, process)


@harness.limit(60, 60)
def test_directory_in_use(t):
    """One process for each directory. The lock goes with the process, not with the file."""
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}])
    second = base.Place(t, [{'url': sink.url()}], name='second', state=place.state)
    process = place.start()
    refused(t, 'a second process', second, 'is used by another butler_webhook')
    refused(t, 'a third one', second, 'is used by another butler_webhook')
    base.arrive(t, 'the first one goes on', sink, base.send(process, 1))
    result = t.run('--pending', second.config)
    t.equal('--pending needs no lock', (result.returncode, result.stderr), (0, ''))
    base.kill(process)
    t.check('after kill -9 the file is still there', os.path.exists(place.path('lock')))
    process = second.start()
    base.stop(t, process)
    process = place.start()
    base.stop(t, process)


@harness.limit(60, 60)
@harness.unix('systemd')
def test_directory_of_systemd(t):
    """STATE_DIRECTORY may name several paths, separated by colons: the first one counts, and only without our own key."""
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}])
    first, second = (os.path.join(t.tmp, name) for name in ('first', 'second'))
    for value in (first, '%s:%s' % (first, second), first + ':'):
        process = place.start(env={'STATE_DIRECTORY': value})
        t.check('%s: the first one' % value, os.path.isfile(os.path.join(first, 'journal')), os.listdir(t.tmp))
        base.stop(t, process)
        shutil.rmtree(first)
    t.check('no other was made', sorted(os.listdir(t.tmp)) == ['butler'] and not os.path.exists(place.state), os.listdir(t.tmp))
    own = base.Place(t, [{'url': sink.url()}], name='own', state='mine')
    process = own.start(env={'STATE_DIRECTORY': first})
    t.check('our own key comes first', os.path.isfile(own.path()) and not os.path.exists(first), os.listdir(t.tmp))
    base.stop(t, process)


def hangs(t, what, process, begin, numbers):
    """A stop that a disk or the log holds up: exit code 1 within 5 s, and the counts on stderr."""
    process.expect_exit = 1
    process.expect_stderr = True
    process.send_signal()
    code = process.wait(8)
    took = time.monotonic() - begin
    t.equal('%s: exit code' % what, code, 1)
    t.check('%s: within 5 s' % what, took < 5.5 * harness.SLOW, took)
    match = re.search(r'^butler_webhook: .* hangs.*: (\d+) received, (\d+) accepted, (\d+) delivered, (\d+) given up, '
                      r'0 lost, (\d+) waiting, (\d+) lines? of log lost$', process.stderr, re.M)
    t.check('%s: the counts are told' % what, match and tuple(map(int, match.groups()[:5])) == numbers, process.stderr)
    return int(match.group(6)) if match else -1


@harness.limit(60, 60)
def test_stop_with_a_hanging_state_disk(t):
    """A write, or a sync, that does not come back: exit code 1 within 5 s, the counts told; what was written is not lost."""
    for name in ('write_delay_ms', 'sync_delay_ms'):
        shim = base.Shim(t, name + '.shim')
        down = t.add(base.Sink(up=False))
        place = base.Place(t, [{'url': down.url()}], name=name)
        process = place.start(binary=t.binary_test, env=shim.env)
        executions = base.send(process, 3)
        t.check('%s: they are synced' % name, base.until(lambda: shim.get('synced_len') > base.read(place.path()).rindex(
            executions[-1].encode())))
        shim.set(**{name: 60000})
        last = harness.guid()
        process.send(base.alert(last))
        t.check('%s: it hangs' % name, base.until(lambda: shim.get('hits') > 0, 10))
        begin = time.monotonic()
        hangs(t, name, process, begin, (4, 4, 0, 0, 4))
        shim.set(**{name: 0})
        waiting = place.waiting(t.binary_test)
        t.check('%s: what was written is in the journal' % name,
                set(executions) | ({last} if name == 'sync_delay_ms' else set()) <=
                set(waiting), waiting)


@harness.limit(60, 60)
def test_stop_with_a_broken_disk(t):
    """A disk that has failed: what stands in memory only is logged whole, what is in the journal is there at the next start."""
    shim = base.Shim(t)
    down = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': down.url()}], butlerWebhook=base.OURS)
    process = place.start(binary=t.binary_test, env=shim.env)
    kept = base.send(process, 3)
    shim.set(write_errno=errno.EIO)
    memory = base.send(process, 5)
    t.check('the error is told', process.wait_log(TOLD), base.tail(process))
    t.equal('in memory only', len(process.lines(MEMORY_ONLY)), 5)
    begin = time.monotonic()
    base.stop(t, process)
    t.check('within 5 s', time.monotonic() - begin < 5.5 * harness.SLOW, time.monotonic() - begin)
    shim.set(write_errno=0)
    told = base.Told(process).update()
    t.check('what stood in memory only is logged whole', set(memory) <= set(told.executions('lost')),
            base.some(set(memory) - set(told.executions('lost'))))
    numbers = base.stopped(process)
    t.equal('and counted', numbers and numbers['lost'], len(told.whole['lost']))
    base.same(t, 'what was in the journal is there', place.waiting(t.binary_test), kept)


@harness.limit(60, 60)
def test_stop_with_a_disk_that_failed_and_hangs(t):
    """The journal has failed, and the new one, which would heal that, does not get onto the disk: exit code 1."""
    shim = base.Shim(t)
    down = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': down.url()}], butlerWebhook=base.OURS)
    process = place.start(binary=t.binary_test, env=shim.env)
    base.send(process, 1)
    shim.set(write_errno=errno.EIO)
    base.send(process, 1)
    t.check('the error is told', process.wait_log(TOLD), base.tail(process))
    before = shim.get('hits')
    shim.set(write_errno=0, sync_delay_ms=60000)
    t.check('it hangs', base.until(lambda: shim.get('hits') > before, 10))
    process.expect_exit = 1
    process.expect_stderr = True
    begin = time.monotonic()
    process.send_signal()
    t.equal('exit code', process.wait(8), 1)
    t.check('within 5 s', time.monotonic() - begin < 5.5 * harness.SLOW, time.monotonic() - begin)
    t.check('it is told',
            re.search(r'^butler_webhook: a disk or the log hangs, .*: 2 received, 2 accepted', process.stderr, re.M),
            process.stderr)


@harness.limit(60, 60)
def test_stop_counts_from_the_signal(t):
    """A write that takes half of a stop's time: calls get what is left of it, and the stop is in order."""
    shim = base.Shim(t)
    sink = t.add(base.Sink(lambda call: 'hang'))
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook=dict(base.OURS, timeoutSeconds=300))
    process = place.start(binary=t.binary_test, env=shim.env)
    executions = base.send(process, 1)
    t.check('a call is under way', base.until(lambda: sink.seen[executions[0]], 10))
    shim.set(write_delay_ms=60000)
    executions.append(harness.guid())
    process.send(base.alert(executions[-1]))
    t.check('a write hangs', base.until(lambda: shim.get('hits') > 0, 10))
    process.send_signal()
    time.sleep(2.5)
    shim.set(write_delay_ms=0)
    t.equal('exit code', process.wait(8), 0)
    base.same(t, 'both wait in the journal', place.waiting(t.binary_test), executions)


@harness.limit(60, 60)
def test_stop_with_a_hanging_log_disk(t):
    """The disk of the log file does not come back: the same, and the state directory is in order."""
    shim = base.Shim(t)
    sink = t.add(base.Sink())
    down = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}, {'url': down.url(), 'kind': 'aborted'}], fileLogging=True, logDirectory='log')
    process = place.start(binary=t.binary_test, env=shim.env)
    base.arrive(t, 'an alert arrives', sink, base.send(process, 1))
    process.wait_log(' delivered to ')
    shim.set(log_delay_ms=60000)
    executions = [harness.guid() for _ in range(5)]
    for execution in executions:
        process.send(base.alert(execution, id='/scheduler-task-aborted/'))
        process.send(base.alert(execution))
    base.arrive(t, 'a log that hangs holds nothing up', sink, executions)
    t.check('all of them wait in the journal', base.until(lambda: base.waiting_executions(place.journal()) == set(executions)))
    t.check('it hangs', base.until(lambda: shim.get('hits') > 0, 10))
    begin = time.monotonic()
    lost = hangs(t, 'log', process, begin, (11, 11, 6, 0, 5))
    t.check('so are the lines that are lost', lost >= 15, lost)
    base.same(t, 'what waits is in the journal', place.waiting(t.binary_test), executions)


@harness.limit(60, 60)
def test_rewriting_always_fails(t):
    """Without rewriting the journal only grows: it stops at its bound, is told once, and alerts go on from memory."""
    shim = base.Shim(t)
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook=dict(base.OURS, maxStateMB=16))
    process = place.start(binary=t.binary_test, env=shim.env)
    shim.set(rename_errno=errno.EIO)
    most, executions = 0, []
    for _ in range(60):
        executions += base.send(process, 25, sink=sink, window=3, message='x' * 1000)
        most = max(most, base.folder_bytes(place.state))
    missing = sink.wait(executions)
    t.check('all arrive', len(executions) == 1500 and not missing, base.some(missing))
    t.check('the directory stays within maxStateMB', most <= 16 * base.TEST_MEGABYTE, most)
    t.check('it is told', 1 <= len(process.lines(r' error: state directory: ')) <= 2, process.lines(r' error: '))
    shim.set(rename_errno=0)
    t.check('it is rewritten when it can be', base.until(lambda: base.folder_bytes(place.state) < 1 << 17, 20),
            base.folder_bytes(place.state))
    t.check('and that is told', base.until(lambda: works(process), 10), base.tail(process))
    base.stop(t, process)


# ---- Links ----------------------------------------------------------------------------------------------------------


class Trap:
    """
    What somebody who may write into the state directory can put there in place of one of its files. `untouched` says
    whether what it leads to is as it was: its content, owner, mode and time.
    """

    KINDS = ('link', 'link to nothing', 'hard link', 'FIFO', 'directory', 'device')

    def __init__(self, t, kind, path, content=b'mine\n'):
        self.path = path
        self.target = os.path.join(t.tmp, 'target of ' + os.path.basename(path))
        if os.path.exists(self.target):
            os.unlink(self.target)
        if kind != 'link to nothing':
            base.write(self.target, content)
            os.chmod(self.target, 0o640)
            os.utime(self.target, (1e9, 1e9))
        if kind in ('link', 'link to nothing'):
            os.symlink(self.target, path)
        elif kind == 'hard link':
            os.link(self.target, path)
        elif kind == 'FIFO':
            os.mkfifo(path)
        elif kind == 'directory':
            os.mkdir(path)
        elif kind == 'device':
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 7))      # /dev/full: reading it never ends
        self.before = self.look()

    def look(self):
        try:
            found = os.stat(self.target)
        except FileNotFoundError:
            return None
        return base.read(self.target), found.st_uid, found.st_gid, found.st_mode, found.st_mtime

    def untouched(self):
        return self.look() == self.before


def trapped(t, name, content=b''):
    """For each kind of trap: a place whose state directory, of another user if there may be one, has it under that name."""
    for kind in Trap.KINDS:
        if kind == 'device' and os.geteuid() != 0:
            continue
        sink = t.add(base.Sink())
        place = base.Place(t, [{'url': sink.url()}, {'url': sink.url('/gone'), 'kind': 'aborted'}],
                           name='%s %s' % (kind, name), butlerWebhook=base.OURS)
        os.mkdir(place.state, 0o700)
        trap = Trap(t, kind, place.path(name), content)
        if os.geteuid() == 0:
            os.chown(place.state, 65534, 65534)
        yield '%s is a %s' % (name, kind), place, sink, trap


@harness.limit(60, 60)
@harness.unix('links, FIFOs and devices')
def test_link_in_place_of_what_a_start_needs(t):
    """The lock or the journal is a link, FIFO, directory or device: the start is refused, and what it leads to untouched."""
    execution = harness.guid()
    for name in ('lock', 'journal'):
        for what, place, sink, trap in trapped(t, name, base.accepted_record(base.webhook_key('http://127.0.0.1:1/'), execution)):
            refused(t, what, place, '' if 'directory' in what else 'it is a link, or no plain file')
            t.check('%s: what it leads to is untouched' % what, trap.untouched(), trap.look())
            result = t.run('--pending', place.config)
            if name == 'lock':
                t.equal('%s: --pending does not need it' % what, (result.returncode, result.stderr), (0, ''))
            else:
                t.check('%s: --pending is refused, too' % what, result.returncode == 1 and 'stateDirectory: ' in result.stderr and
                        execution not in result.stdout, [result.returncode, result.stdout, result.stderr])
            t.check('%s: what it leads to is still untouched' % what, trap.untouched(), trap.look())


@harness.limit(60, 60)
@harness.unix('links, FIFOs and devices')
def test_link_in_place_of_the_new_journal(t):
    """journal.new is a link, or worse: it is what is deleted, not what it leads to."""
    for what, place, sink, trap in trapped(t, 'journal.new'):
        process = place.start(binary=t.binary_test)
        base.arrive(t, '%s: alerts arrive' % what, sink, base.send(process, 60, sink=sink, window=20))
        if 'directory' in what:
            t.check('%s: it cannot be rewritten, which is told' % what, process.wait_log(REWRITE_TOLD), base.tail(process))
        else:
            t.check('%s: the journal is rewritten' % what, base.until(lambda: 0 < len(base.read(place.path())) < 30000))
        base.stop(t, process)
        t.check('%s: what it leads to is untouched' % what, trap.untouched(), trap.look())
        if 'directory' not in what:
            t.equal('%s: nothing is left of it' % what, sorted(os.listdir(place.state)), ['journal', 'lock'])


@harness.limit(60, 60)
@harness.unix('links, FIFOs and devices')
def test_link_in_place_of_damaged_lines(t):
    """journal.damaged is a link, or worse: the damaged line is not copied there; the rest goes on."""
    for what, place, sink, trap in trapped(t, 'journal.damaged'):
        execution = harness.guid()
        base.write(place.path(), b'damaged\n' + base.accepted_record(base.webhook_key(sink.url()), execution))
        process = place.start()
        t.check('%s: it is told' % what, process.wait_log(r' error: journal: 1 damaged line ', 5), base.tail(process))
        base.arrive(t, '%s: the good record arrives' % what, sink, [execution])
        base.stop(t, process)
        t.check('%s: what it leads to is untouched' % what, trap.untouched(), trap.look())


@harness.limit(60, 60)
@harness.unix('links, FIFOs and devices')
def test_link_in_place_of_dead_letters(t):
    """dead-letters.ndjson is a link, or worse: not written, not read, not handed over; letters wait, and the rest goes on."""
    secret = harness.guid()
    for what, place, sink, trap in trapped(t, 'dead-letters.ndjson', b'{"webhookId":"%s"}\n' % secret.encode()):
        sink.behave = lambda call: 404 if call.path == '/gone' else 200
        for command in ('--replay', '--pending'):       # neither may hang, nor follow it
            result = t.run(command, place.config, timeout=10)
            t.check('%s: %s does not follow it' % (what, command), secret not in result.stdout + result.stderr, result.stdout)
            t.check('%s: %s leaves what it leads to untouched' % (what, command), trap.untouched(), trap.look())
        t.check('%s: it is still there' % what, os.path.lexists(trap.path), os.listdir(place.state))
        process = place.start(binary=t.binary_test)
        dead = base.send(process, 2, id='/scheduler-task-aborted/')
        t.check('%s: it is told' % what, process.wait_log(r' error: state directory: cannot write dead-letters\.ndjson: ', 5),
                base.tail(process))
        base.arrive(t, '%s: other alerts arrive' % what, sink, base.send(process, 3))
        base.kill(process)
        base.same(t, '%s: the letters wait' % what, place.waiting(t.binary_test, 1), dead)
        t.check('%s: what it leads to is untouched' % what, trap.untouched(), trap.look())


@harness.limit(60, 60)
@harness.unix('links, FIFOs and devices')
def test_link_in_place_of_a_replay(t):
    """replay.ndjson is a link, or worse: nothing of what it leads to is sent, deleted or changed; the rest goes on."""
    for what, place, sink, trap in trapped(t, 'replay.ndjson', b'{"webhookId":"mine"}\n'):
        process = place.start(binary=t.binary_test)
        base.arrive(t, '%s: alerts arrive' % what, sink, base.send(process, 3))
        t.check('%s: it is told' % what, process.wait_log(r' error: state directory: .*replay\.ndjson', 5), base.tail(process))
        t.check('%s: alerts still arrive' % what, not sink.wait(base.send(process, 3)))
        result = t.run('--pending', place.config, timeout=10)
        t.check('%s: --pending does not follow it' % what, 'mine' not in result.stdout, result.stdout)
        base.stop(t, process)
        t.check('%s: what it leads to is untouched' % what, trap.untouched(), trap.look())
        t.equal('%s: no letter is made of it' % what, place.letters(), [])
        t.equal('%s: told once' % what, len(process.lines(r' error: ')), 1)


# ---- Memory only ----------------------------------------------------------------------------------------------------


@harness.limit(60, 60)
def test_memory_only(t):
    """stateDirectory '': a warning at the start, the log says it of each alert, nothing on disk, and a stop logs what is lost."""
    sink = t.add(base.Sink())
    down = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}, {'url': down.url(), 'kind': 'aborted'}],
                       butlerWebhook={'stateDirectory': ''})
    before = set(os.listdir(os.path.dirname(place.config)))
    process = place.start()
    t.check('the warning', process.wait_log(r" warn: .*stateDirectory is '': alerts are kept in memory only, and are lost when "
                                            r'the program ends'), base.tail(process))
    base.arrive(t, 'alerts arrive', sink, base.send(process, 5))
    waiting = base.send(process, 8, id='/scheduler-task-aborted/')
    t.equal('the log says so of each alert', len(process.lines(MEMORY_ONLY)), 13)
    base.stop(t, process)
    told = base.Told(process).update()
    base.same(t, 'each alert that is lost is logged whole', told.executions('lost'), waiting)
    numbers = base.stopped(process)
    t.check('and counted', numbers and (numbers['lost'], numbers['waiting'], numbers['delivered']) == (8, 0, 5), numbers)
    t.equal('nothing was written', set(os.listdir(os.path.dirname(place.config))), before)
    result = t.run('--pending', place.config)
    t.equal('--pending shows that nothing is kept', (result.returncode, result.stderr), (0, ''))
    result = t.run('--replay', place.config)
    t.check('--replay says that nothing was kept', result.returncode == 1 and "stateDirectory is ''" in result.stderr,
            [result.returncode, result.stdout, result.stderr])


# ---- A full state directory -----------------------------------------------------------------------------------------


def oldest(dropped, executions):
    """
    Whether these are the oldest, in their order. Up to four that are being tried at that moment may be passed over; they may
    follow later, when they are not tried any more.
    """
    place_of = {execution: place for place, execution in enumerate(executions)}
    following = 0
    passed_over = set()
    for execution in dropped:
        place = place_of[execution]
        if place < following and place not in passed_over:
            return False                # dropped twice
        passed_over.discard(place)
        passed_over.update(range(following, place))
        following = max(following, place + 1)
        if len(passed_over) > 4:
            return False
    return bool(dropped)


def journal_bytes(place):
    """The sizes of the journal and the new one together."""
    total = 0
    for name in ('journal', 'journal.new'):
        try:
            total += os.stat(place.path(name)).st_size
        except FileNotFoundError:
            pass
    return total


class Watch:
    """Looks at the journal's size all the time; most: the largest so far."""

    def __init__(self, t, place):
        self.most = 0
        self._place = place
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        t.add(self)

    def _run(self):
        while not self._over.wait(0.003):
            self.most = max(self.most, journal_bytes(self._place))

    def close(self):
        self._over.set()
        self._thread.join()


def dead_of(place):
    """The executionIds of the dead letters, in the file's order, and their reasons."""
    letters = place.letters()
    return [letter['alert']['executionId'] for letter in letters], {letter['reason'] for letter in letters}


# What the journal grows by while the rewritten one is synced: little beside real megabytes, much beside those of the test build.
DURING_A_SYNC = 512 * 1024
NO_ROOM = {'no room: too many alerts wait; see butlerWebhook.maxStateMB'}


@harness.limit(60, 120)
def test_full_state(t):
    """maxStateMB: what waits takes a third of it; beyond that the oldest become dead letters; the newest arrive."""
    count = base.pick(2000, 10000)
    sink = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook=dict(base.OURS, maxStateMB=16))
    process = place.start(binary=t.binary_test)
    watch = Watch(t, place)
    executions = base.send(process, count)
    t.equal('all are accepted', len(executions), count)
    t.check('the warning before', process.wait_log(r' warn: state directory: \d+ % of its room is used \(\d+ alerts wait\)'),
            base.tail(process))
    t.equal('the warning comes once', len(process.lines(r' warn: state directory: ')), 1)
    base.until(lambda: len(place.letters()) + len(place.waiting()) == count)
    dead, reasons = dead_of(place)
    t.check('the oldest are dead letters, in order', oldest(dead, executions), '%d dead letters' % len(dead))
    t.equal('they say why', reasons, NO_ROOM)
    kept = [execution for execution in executions if execution not in set(dead)]
    t.check('a third of it is used', 300 < len(kept) < 800, len(kept))
    base.kill(process)
    base.same(t, 'after kill -9 the newest wait', place.waiting(t.binary_test), kept)
    process = place.start(binary=t.binary_test)
    sink.up()
    base.arrive(t, 'and arrive', sink, kept)
    t.check('what is dead was sent nowhere', not set(sink.taken) & set(dead), len(set(sink.taken) & set(dead)))
    base.until(lambda: not place.waiting())
    watch.close()
    t.check('the journal stays within its bound', watch.most <= 16 * base.TEST_MEGABYTE + DURING_A_SYNC, watch.most)
    base.note(t, '%d accepted, %d dead letters, journal at most %d bytes' % (len(executions), len(dead), watch.most))
    base.stop(t, process)
    numbers = base.stopped(process)
    t.equal('the numbers at the end', numbers and (numbers['delivered'], numbers['lost'], numbers['waiting']), (len(kept), 0, 0))


@harness.limit(60, 120)
def test_full_state_two_webhooks(t):
    """The webhook that is down has most waiting, and so its oldest become dead letters; the one that works loses none."""
    sink = t.add(base.Sink())
    down = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}, {'url': down.url()}], butlerWebhook=dict(base.OURS, maxStateMB=16))
    process = place.start(binary=t.binary_test)
    watch = Watch(t, place)
    executions = base.send(process, 600, message='x' * 3000, sink=sink, window=20)
    base.arrive(t, 'the one that works gets all', sink, executions)
    t.equal('all are accepted', len(executions), 600)
    base.until(lambda: len(place.letters()) + len(place.waiting()) == 600)
    dead, reasons = dead_of(place)
    t.check('the oldest of the other one are dead letters', oldest(dead, executions) and 450 < len(dead) < 550, len(dead))
    t.equal('for want of room', reasons, NO_ROOM)
    t.equal('only of it', {letter['webhook'] for letter in place.letters()}, {'failure 2'})
    watch.close()
    t.check('the journal stays within its bound', watch.most <= 16 * base.TEST_MEGABYTE + DURING_A_SYNC, watch.most)
    base.kill(process)
    down.up()
    process = place.start(binary=t.binary_test)
    base.arrive(t, 'the rest arrives, after kill -9', down, [execution for execution in executions if execution not in set(dead)])
    t.check('what is dead does not come back', not set(dead) & set(down.seen), len(set(dead) & set(down.seen)))
    base.stop(t, process)


@harness.limit(60, 120)
def test_full_state_with_windows(t):
    """Rate limit and de-duplication of thousands of tasks: the journal stays small, alerts are as fast as ever."""
    count = base.pick(6000, 30000)
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}], rateLimit=300, deduplication={'enable': True, 'ttlMinutes': 10})
    process = place.start()
    watch = Watch(t, place)
    told = base.Told(process)
    executions = []
    deadline = time.monotonic() + base.pick(25, 90) * harness.SLOW
    while len(executions) < count and time.monotonic() < deadline:
        executions += base.send(process, 500, told=told, sink=sink, window=100, timeout=10, message='x' * 1000)
    t.equal('alerts are accepted as fast as ever', len(executions), count)
    base.arrive(t, 'all arrive', sink, executions)
    watch.close()
    # 8 MB, then it is rewritten, with 40,000 windows at most.
    t.check('the journal stays small', watch.most <= 13 << 20, watch.most)
    base.kill(process)
    process = place.start()
    for execution in executions[-1], executions[-4000]:
        process.send(base.alert(execution, harness.guid()))
        t.check('the newest windows survive', process.wait_log('duplicate ignored: .*%s' % execution, 5), base.tail(process))
    base.stop(t, process)


@harness.limit(60, 120)
def test_full_state_made_smaller(t):
    """maxStateMB is less than what waits already: the oldest become dead letters, each of them, also if that is interrupted."""
    numbers = base.rng(t)
    sink = t.add(base.Sink(up=False))
    key = base.webhook_key(sink.url())
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook=dict(base.OURS, maxStateMB=16))
    executions = [harness.guid() for _ in range(3000)]
    # 18 MB, twice what dead letters that wait for the disk take at other times.
    place.fill(base.webhook_record(key) + b''.join(
        base.accepted_record(key, execution, message='x' * 6000) for execution in executions))
    for n in range(base.pick(3, 20)):
        process = place.start(binary=t.binary_test, wait=False)
        time.sleep(numbers.uniform(0, 0.4))
        base.kill(process)
        lost = set(executions) - set(dead_of(place)[0]) - set(place.waiting(t.binary_test))
        t.check('killed, round %d: none is lost' % n, not lost, base.some(lost))
    process = place.start(binary=t.binary_test)
    executions += base.send(process, 1)
    t.check('what waits becomes small', base.until(lambda: 30 < len(place.waiting(t.binary_test)) < 80),
            len(place.waiting(t.binary_test)))
    dead, reasons = dead_of(place)
    first = list(dict.fromkeys(dead))       # a kill between letter and journal writes some again
    t.check('the oldest are dead letters', set(executions) - set(place.waiting(t.binary_test)) == set(dead) and
            oldest(sorted(first, key=executions.index), executions), len(dead))
    t.equal('for want of room', reasons, NO_ROOM)
    t.check('the journal becomes small', base.until(lambda: journal_bytes(place) <= 16 * base.TEST_MEGABYTE),
            journal_bytes(place))
    base.kill(process)
    others = [execution for execution in executions if execution not in set(dead)]
    base.same(t, 'the others wait', place.waiting(t.binary_test), others)
    sink.up()
    process = place.start(binary=t.binary_test)
    base.arrive(t, 'and arrive', sink, others)
    base.stop(t, process)


@harness.limit(60, 120)
def test_growth_is_bounded(t):
    """Many deliveries leave a small journal: it is rewritten when it is mostly done."""
    count = base.pick(6000, 20000)
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}])
    process = place.start()
    watch = Watch(t, place)
    told = base.Told(process)
    executions = []
    while len(executions) < count:
        executions += base.send(process, 500, told=told, sink=sink, window=100, message='x' * 3000)
    base.arrive(t, 'all arrive', sink, executions)
    base.until(lambda: not place.waiting(), 10)     # ends are written a moment later
    watch.close()
    # It is rewritten at 8 MiB; what comes until the new one is synced goes into both.
    t.check('the journal stayed small', 5 << 20 < watch.most < 16 << 20, watch.most)
    base.kill(process)
    t.equal('nothing waits after kill -9', place.waiting(), [])
    base.note(t, '%d delivered, journal at most %d bytes' % (len(executions), watch.most))


@harness.limit(60, 180)
def test_100000_waiting(t):
    """100,000 waiting alerts: at most 96 MB of memory, right after a start (and in the long form as they come, too)."""
    count = 100000
    sink = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}])
    key = base.webhook_key(sink.url())
    if base.LONG:
        process = place.start()
        told = base.Told(process)
        executions = base.send(process, count, told=told, timeout=100)
        t.equal('all are accepted', len(executions), count)
        check_memory(t, process, 'as they come', 96)
        t.equal('none is given up', process.lines(' given up '), [])
        base.kill(process)
    else:
        task = harness.guid()
        executions = ['%08x-0000-4000-8000-000000000000' % i for i in range(count)]
        place.fill(b''.join(base.accepted_record(key, execution, task_id=task) for execution in executions))
    process = place.start()
    t.check('all wait', process.wait_log(r' info: state directory .*: %d alerts wait' % count, 15), base.tail(process))
    more = base.send(process, 500)
    check_memory(t, process, 'after a start', 96)
    sink.up()
    enough = base.pick(1000, len(executions) + len(more))
    base.until(lambda: len(sink.taken) >= enough, base.pick(10, 120))
    t.check('they go out', len(sink.taken) >= enough, len(sink.taken))
    check_memory(t, process, 'while they go out', 96)
    if base.LONG:
        t.equal('all arrive', len(sink.missing(executions + more)), 0)
    base.kill(process)


def check_memory(t, process, when, most):
    kilobytes = base.status(process.pid, 'VmHWM')
    base.note(t, '%s: VmHWM %.1f MB' % (when, kilobytes / 1024))
    t.check('%s: at most %d MB of memory' % (when, most), 0 < kilobytes <= (most << 10) + harness.SYSTEM.memory_kb,
            '%d kB' % kilobytes)


# ---- Descriptors ----------------------------------------------------------------------------------------------------


@harness.limit(60, 60)
@harness.unix('a limit on descriptors hits wine itself')
def test_descriptors_few(t):
    """RLIMIT_NOFILE, the hard one, too low for all calls at a time: they take turns, nothing is lost, no crash."""
    sinks = [t.add(base.Sink()) for _ in range(8)]
    place = base.Place(t, [{'url': sink.url()} for sink in sinks], butlerWebhook=base.OURS)
    process = place.start(binary=t.binary_test)
    rest = len(os.listdir('/proc/%d/fd' % process.pid))     # what it has open without a call
    base.stop(t, process)
    for more in base.pick((3, 6), (3, 4, 5, 6, 8)):
        for sink in sinks:
            sink.forget()
        process = place.start(binary=t.binary_test, wrap=base.exec_wrap(
            'resource.setrlimit(resource.RLIMIT_NOFILE, (%d, %d))' % (rest + more, rest + more)))
        executions = []
        for _ in range(20):
            executions += base.send(process, 1)
            time.sleep(0.02)
        t.equal('%d more: all are accepted' % more, len(executions), 20)
        for number, sink in enumerate(sinks):
            missing = sink.wait(executions, 30)
            t.check('%d more: webhook %d gets all' % (more, number + 1), not missing, base.some(missing))
        t.equal('%d more: no webhook is to blame' % more, process.lines(r' given up | lost for | is down'), [])
        t.check('%d more: nothing waits' % more, base.until(lambda: not place.waiting(), 5), base.some(place.waiting()))
        base.kill(process)
    for limit in (6, 7):        # not enough to start
        process = place.start(wait=False, wrap=base.exec_wrap(
            'resource.setrlimit(resource.RLIMIT_NOFILE, (%d, %d))' % (limit, limit)))
        process.expect_exit = 1
        process.expect_stderr = True
        t.equal('limit %d: it does not start, exit code' % limit, process.wait(), 1)
        t.check('limit %d: it says why' % limit, 'descriptors' in process.stderr or 'open files' in process.stderr,
                process.stderr)


@harness.limit(60, 60)
def test_descriptors_none(t):
    """socket() fails while the program runs: the alerts wait, and arrive when it works again."""
    shim = base.Shim(t)
    sinks = [t.add(base.Sink()) for _ in range(2)]
    place = base.Place(t, [{'url': sink.url()} for sink in sinks], butlerWebhook=base.OURS)
    process = place.start(binary=t.binary_test, env=shim.env)
    first = base.send(process, 2)
    t.equal('at first all is well', [sink.wait(first) for sink in sinks], [[], []])
    for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS):
        for sink in sinks:      # what is kept alive would need no socket
            sink.down()
            sink.up()
        before = shim.get('hits')
        shim.set(socket_errno=number)
        executions = base.send(process, 5)
        t.check('%s: the shim has struck' % errno.errorcode[number], base.until(lambda: shim.get('hits') > before, 5))
        t.equal('%s: alerts are accepted' % errno.errorcode[number], len(executions), 5)
        time.sleep(0.3)
        shim.set(socket_errno=0)
        for sink in sinks:
            missing = sink.wait(executions)
            t.check('%s: afterwards all arrive' % errno.errorcode[number], not missing, base.some(missing))
    t.equal('nothing is given up, no webhook is to blame', process.lines(' given up | lost for | is down'), [])
    base.stop(t, process)


@harness.limit(60, 60)
def test_descriptors_none_for_names_and_data(t):
    """A look-up finds no descriptor, a send no buffer: no webhook is to blame, and what waits is tried again."""
    shim = base.Shim(t)
    named, sink = t.add(base.Sink()), t.add(base.Sink())
    place = base.Place(t, [{'url': named.url(host='name.invalid'), 'kind': 'aborted'}, {'url': sink.url()}],
                       butlerWebhook=base.OURS)
    process = place.start(binary=t.binary_test, env=shim.env)
    shim.set(resolve_fail=errno.EMFILE)
    base.send(process, 2, id='/scheduler-task-aborted/')
    t.check('a look-up: it is told', process.wait_log(' to aborted 1: host name name.invalid not found: no descriptor', count=4),
            base.tail(process))
    t.equal('a look-up: no webhook is to blame', process.lines(' is down'), [])
    shim.set(resolve_fail=1)
    t.check('a name server that does not answer: the webhook is down',
            process.wait_log(' webhook aborted 1 is down: .* name server'),
            base.tail(process))
    before = shim.get('hits')
    shim.set(resolve_fail=0, send_errno=errno.ENOBUFS)
    executions = base.send(process, 5)
    t.check('a send: the shim has struck', base.until(lambda: shim.get('hits') > before + 3, 5))
    t.equal('a send: alerts are accepted', len(executions), 5)
    shim.set(send_errno=0)
    base.arrive(t, 'a send: afterwards all arrive', sink, executions)
    t.check('a send: at the first attempt', process.wait_log(' delivered to failure 1: 200 in .*, attempt 1$', count=5),
            base.tail(process))
    t.equal('a send: no webhook is to blame', process.lines(' failure 1 is down| given up | lost for '), [])
    base.stop(t, process)


@harness.limit(60, 60)
@harness.unix('a limit on descriptors hits wine itself')
def test_descriptors_are_raised(t):
    """The soft limit, which many systems set low, is raised to the hard one: many webhooks at a time need more."""
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url('/%d' % number)} for number in range(60)], butlerWebhook=base.OURS)
    process = place.start(wrap=base.exec_wrap('resource.setrlimit(resource.RLIMIT_NOFILE, (32, 4096))'))
    soft = [line.split()[3] for line in base.read('/proc/%d/limits' % process.pid).decode().splitlines()
            if line.startswith('Max open files')]
    t.equal('the limit', soft, ['4096'])
    base.send(process, 1)
    t.check('all webhooks are called', process.wait_log(' delivered to ', count=60), base.tail(process))
    t.equal('at the first attempt', process.lines('attempt [2-9]'), [])
    base.stop(t, process)
