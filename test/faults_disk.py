"""Disk full, I/O errors, directories that are wrong, memory only, a full state directory, no descriptors left."""

import errno
import os
import resource
import shutil
import stat
import subprocess
import threading
import time

import faults_base as base
import harness

OURS = {'timeoutSeconds': 1, 'maxAgeHours': 8760}
TOLD = r' error: state directory: .*; alerts go on from memory'
HEALED = r' info: state directory: works again'


# ---- A broken disk --------------------------------------------------------------------------------------------------


def fire(process, sink, count):
    """Sends alerts, never more than three on their way to the sink. Gives those that were accepted."""
    executions = []
    for begin in range(0, count, 3):
        executions += base.send(process, min(3, count - begin), timeout=10)
        base.until(lambda: not sink.missing(executions[-3:]), 10, 0.002)
    return executions


class Broken:
    """A program of the test build, whose disk breaks by the shim, and two webhooks: one that works, one that is down."""

    def __init__(self, t, **fields):
        self.t = t
        self.shim = base.Shim(t)
        self.good = t.add(base.Sink())
        self.down = t.add(base.Sink(up=False))
        self.place = base.Place(t, [{'url': self.good.url()}, {'url': self.down.url(), 'kind': 'aborted'}], butlerWebhook=OURS)
        self.process = self.start()
        self.fields = fields
        self.waiting = []       # of the webhook that is down
        self.known = 0          # lines of TOLD and HEALED so far

    def start(self):
        return self.place.start(binary=self.t.binary_test, env=self.shim.env)

    def fire(self, count):
        """Alerts to the webhook that works, never more than three on their way: five fit into the test build's memory."""
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
        """The error was told for the n-th time, and no more often."""
        t = self.t
        t.check('%s: the error is told' % what, self.process.wait_log(TOLD, 10, count=n), base.tail(self.process))

    def healed(self, n, what):
        t = self.t
        t.check('%s: it is told that it works again' % what, self.process.wait_log(HEALED, 15, count=n),
                base.tail(self.process))
        t.equal('%s: each is told once' % what, (len(self.process.lines(TOLD)), len(self.process.lines(HEALED))), (n, n))

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


@base.limits(60, 120)
def test_disk_write_error(t):
    broken_disk(t, write_errno=errno.EIO)


@base.limits(60, 120)
def test_disk_read_only(t):
    """The system makes it read-only while the program runs, as ext4 does on errors."""
    broken_disk(t, write_errno=errno.EROFS, open_errno=errno.EROFS, rename_errno=errno.EROFS, truncate_errno=errno.EROFS)


@base.limits(60, 120)
def test_disk_full(t):
    broken_disk(t, write_room=-1)


@base.limits(60, 120)
def test_disk_short_write(t):
    """A write that ends inside a record: what is torn is cut off before the next."""
    for room in base.pick((1, 150), (1, 8, 9, 60, 150, 400, 700)):
        broken_disk(t, rounds=1, write_room=room)
        shutil.rmtree(os.path.join(t.tmp, 'butler'))


@base.limits(60, 120)
def test_disk_short_write_that_cannot_be_cut(t):
    """A short write, and ftruncate fails, too: the torn record must not spoil the next one."""
    broken_disk(t, rounds=1, write_room=200, truncate_errno=errno.EIO)


@base.limits(60, 120)
def test_disk_sync_error(t):
    broken_disk(t, sync_errno=errno.EIO)


def while_rewriting(t, **fields):
    """
    A fault that only rewriting meets: the old journal goes on, nothing is lost; it is told once, as long as it lasts, and
    heals.
    """
    broken = Broken(t, **fields)
    broken.wait_for_later(3)
    before = broken.break_it()
    broken.fire(150)
    t.check('the shim has struck', base.until(lambda: broken.shim.get('hits') > before, 5))
    broken.wait_for_later(1)
    t.check('the fault is told', broken.process.wait_log(r' error: .*state directory', 10), base.tail(broken.process))
    broken.fire(20)
    t.check('and told once', len(broken.process.lines(r' error: ')) == 1, broken.process.lines(r' error: '))
    broken.heal()
    broken.fire(20)
    t.check('it is told that it works again', broken.process.wait_log(HEALED, 15), base.tail(broken.process))
    broken.fire(100)
    t.check('the journal becomes small again', base.until(lambda: len(base.read(broken.place.path())) < 64 << 10, 10),
            len(base.read(broken.place.path())))
    broken.kill_and_deliver()


@base.limits(60, 120)
def test_disk_open_error(t):
    """Rewriting finds no descriptor left; in the long form no right, either."""
    for number in base.pick((errno.EMFILE,), (errno.EMFILE, errno.ENFILE, errno.EACCES)):
        while_rewriting(t, open_errno=number)
        shutil.rmtree(os.path.join(t.tmp, 'butler'))


@base.limits(60, 120)
def test_disk_rename_error(t):
    while_rewriting(t, rename_errno=errno.EIO)


@base.limits(60, 120)
def test_disk_room_ends_while_rewriting(t):
    """Room for the journal's own lines but not for a copy is no case for the shim: it ends anywhere, many times."""
    numbers = base.rng(t)
    broken = Broken(t, write_room=0)
    broken.wait_for_later(4)
    for _ in range(base.pick(4, 30)):
        broken.shim.set(write_room=numbers.randrange(1, 40000))
        base.until(lambda: (broken.fire(25), broken.shim.get('write_room') == -1)[1], 15)
        broken.fire(2)
        broken.heal()
        broken.fire(2)
    t.check('in the end it works again', base.until(
        lambda: len(broken.process.lines(HEALED + '$')) == len(broken.process.lines(TOLD)), 10), broken.process.lines(TOLD))
    broken.kill_and_deliver()


@base.limits(60, 120)
def test_disk_read_error(t):
    """What does not fit into memory cannot be read back for a while: it waits, and arrives when the disk has healed."""
    shim = base.Shim(t)
    sink = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook=OURS)
    process = place.start(binary=t.binary_test, env=shim.env)
    executions = base.send(process, 40)
    t.equal('all are accepted', len(executions), 40)
    shim.set(read_errno=errno.EIO)
    sink.up()
    t.check('what is in memory arrives', base.until(lambda: len(sink.taken) >= 5, 15), len(sink.taken))
    t.check('the error is told', process.wait_log(r' error: .*state directory', 10), base.tail(process))
    time.sleep(1)
    t.check('told once', len(process.lines(r' error: .*state directory')) == 1, process.lines(r' error: '))
    shim.set(read_errno=0)
    missing = sink.wait(executions, 30)
    t.check('once it has healed all arrive', not missing, base.some(missing))
    t.check('it is told that it works again', process.wait_log(HEALED, 10), base.tail(process))
    t.equal('nothing was dropped', process.lines(r' dropped for '), [])
    base.stop(t, process)
    t.equal('nothing waits', place.waiting(t.binary_test), [])


@base.limits(60, 120)
def test_disk_read_error_at_start(t):
    """A journal that cannot be read must not be taken for an empty one."""
    shim = base.Shim(t)
    sink = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook=OURS)
    data, executions = base.journal_with(t, place, 4, binary=t.binary_test)
    shim.set(read_errno=errno.EIO)
    process = place.start(binary=t.binary_test, env=shim.env, wait=False)
    process.expect_exit = None
    process.expect_stderr = True
    code = process.wait(3)
    if code is None:        # it may also start, and go on from memory
        t.check('it is told', process.wait_log(r' error: .*state directory', 5), base.tail(process))
        base.kill(process)
    else:
        t.equal('exit code', code, 1)
        t.check('it says why', '/journal: ' in process.stderr, process.stderr)
    base.same(t, 'the alerts are still there', place.waiting(), executions)
    sink.up()
    process = place.start(binary=t.binary_test)
    base.arrive(t, 'and arrive after the next start', sink, executions)
    base.stop(t, process)


@base.limits(60, 120)
def test_disk_errors_at_random(t):
    """Every fault of the disk at random, one after another, with load and a fickle webhook; then kill -9."""
    numbers = base.rng(t)
    shim = base.Shim(t)
    sink = t.add(base.Sink(base.fickle(numbers, good=0.8, error=0.2)))
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook=OURS)
    process = place.start(binary=t.binary_test, env=shim.env)
    load = t.add(base.Load(place.port, 20))
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
    base.until(lambda: len(process.lines(HEALED + '$')) == len(process.lines(TOLD)), 10)    # not only reading again
    base.until(lambda: len(told.update().accepted) == len(load.sent), 5)
    base.kill(process)
    told.update()
    t.check('the error was told', process.lines(TOLD))
    errors = len(process.lines(TOLD))
    process = place.start(binary=t.binary_test, env=shim.env)
    dropped = told.executions('dropped')
    missing = sink.wait(set(told.accepted) - set(dropped), 30)
    t.check('what was accepted, and not dropped by name, arrives', told.accepted and not missing, base.some(missing))
    t.check('each with one webhook-id', not sink.ids_differ(), base.some(sink.ids_differ()))
    base.note(t, '%d accepted, %d dropped for want of room in memory, error told %d times' %
              (len(told.accepted), len(dropped), errors))
    base.stop(t, process)


@base.limits(60, 120)
def test_disk_full_for_real(t):
    """A tmpfs of 256 KiB that something else fills: the kernel's own ENOSPC."""
    state = os.path.join(t.tmp, 'small.state')
    mount = Tmpfs(t, state, '256k')
    sink = t.add(base.Sink())
    down = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}, {'url': down.url(), 'kind': 'aborted'}], state=state, butlerWebhook=OURS)
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


@base.limits(60, 120)
def test_disk_full_at_start(t):
    """No room at all when the program starts: it starts with an error of its own or ends with one, and loses nothing."""
    state = os.path.join(t.tmp, 'small.state')
    mount = Tmpfs(t, state, '256k')
    sink = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}], state=state, butlerWebhook=OURS)
    data, executions = base.journal_with(t, place, 4)
    mount.fill()
    sink.up()
    process = place.start(wait=False)
    process.expect_exit = None
    process.expect_stderr = True
    code = process.wait(3)
    if code is None:
        base.arrive(t, 'what waited arrives', sink, executions)
        more = fire(process, sink, 30)      # more than what is left of the journal's last page
        base.arrive(t, 'alerts go on from memory', sink, more)
        t.check('the error is told', process.wait_log(TOLD, 5), base.tail(process))
        process.stop()
    else:
        t.equal('exit code', code, 1)
        t.check('it says why', 'stateDirectory' in process.stderr, process.stderr)
    mount.empty()
    process = place.start()
    base.arrive(t, 'with room again all is well', sink, executions + base.send(process, 1))
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


def number(place, process):
    """The number of the process that the lock should hold; wine has numbers of its own, so there any number will do."""
    held = base.read(place.path('lock')).strip()
    return held if harness.WINDOWS and held.isdigit() else b'%d' % process.pid


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


@base.limits(60, 60)
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

    letters = place()
    os.makedirs(letters.path('dead-letters.ndjson'))
    process = letters.start(wait=False)
    process.expect_exit = None
    process.expect_stderr = True
    if process.wait_log(' listening on ', 5):
        sink.behave = lambda call: 404
        base.send(process, 1)
        t.check('dead letters are a directory: it is told', process.wait_log(r' error: .*(state directory|dead)', 5),
                base.tail(process))
        t.check('dead letters are a directory: and it goes on', process.running())
        sink.behave = None
        base.arrive(t, 'dead letters are a directory: other alerts arrive', sink, base.send(process, 1))
        base.stop(t, process)
    else:
        t.check('dead letters are a directory: it says why', 'stateDirectory' in process.stderr, process.stderr)


@base.limits(60, 60)
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


@base.limits(60, 60)
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


@base.limits(60, 60)
def test_directory_in_use(t):
    """One process for each directory; the second one says who has it. The lock goes with the process, not with the file."""
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}])
    second = base.Place(t, [{'url': sink.url()}], name='second', state=place.state)
    process = place.start()
    t.equal('the lock holds the process id', base.read(place.path('lock')).strip(), number(place, process))
    refused(t, 'a second process', second, 'used by another butler_webhook (process %s)' % number(place, process).decode())
    refused(t, 'a third one', second, 'used by another butler_webhook (process %s)' % number(place, process).decode())
    base.arrive(t, 'the first one goes on', sink, base.send(process, 1))
    result = t.run('--pending', second.config)
    t.equal('--pending needs no lock', (result.returncode, result.stderr), (0, ''))
    os.unlink(place.path('lock'))       # by somebody who takes it for a stale one
    t.check('a lock that is deleted is made again', base.until(
        lambda: base.read(place.path('lock')).strip() == number(place, process), 5), os.listdir(place.state))
    refused(t, 'a process after that', second, 'used by another butler_webhook (process %s)' % number(place, process).decode())
    base.kill(process)
    process = second.start()
    t.equal('after kill -9 the next one has it', base.read(place.path('lock')).strip(), number(place, process))
    base.stop(t, process)
    process = place.start()
    base.stop(t, process)


def removed(t, name, remove):
    """The directory goes while the program runs: it is told, made again, and nothing that waits is lost."""
    sink = t.add(base.Sink())
    down = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}, {'url': down.url(), 'kind': 'aborted'}], name=name, butlerWebhook=OURS)
    process = place.start(binary=t.binary_test)
    waiting = base.send(process, 3, id='/scheduler-task-aborted/')
    remove(place.state)
    executions = fire(process, sink, 60)
    t.equal('%s: alerts are accepted' % name, len(executions), 60)
    base.arrive(t, '%s: alerts arrive' % name, sink, executions)
    waiting += base.send(process, 1, id='/scheduler-task-aborted/')
    t.check('%s: it is told' % name, process.wait_log(r' error: .*state directory', 15), base.tail(process))
    t.check('%s: it works again' % name, process.wait_log(HEALED, 15), base.tail(process))
    t.check('%s: and the lock is there' % name, base.until(
        lambda: base.read(place.path('lock')).strip() == number(place, process), 5), os.listdir(place.state))
    second = base.Place(t, [{'url': sink.url()}], name=name + '-second', state=place.state)
    refused(t, '%s: a second process' % name, second, 'used by another butler_webhook')
    base.arrive(t, '%s: alerts still arrive' % name, sink, fire(process, sink, 2))
    base.until(lambda: len(place.waiting()) == len(waiting), 5)
    base.kill(process)
    base.same(t, '%s: after kill -9 all that waited is in the journal' % name, place.waiting(), waiting)
    process = place.start(binary=t.binary_test)
    down.up()
    base.arrive(t, '%s: and arrives' % name, down, waiting)
    base.stop(t, process)


@base.limits(60, 60)
def test_directory_removed_while_running(t):
    removed(t, 'gone', shutil.rmtree)

    def empty(path):
        for name in os.listdir(path):
            os.unlink(os.path.join(path, name))

    removed(t, 'emptied', empty)

    def moved(path):
        os.rename(path, path + '.old')

    removed(t, 'moved', moved)

    def replaced(path):
        moved(path)
        os.mkdir(path, 0o700)

    removed(t, 'replaced', replaced)


@base.limits(40, 60)
def test_directory_removed_before_a_stop(t):
    """The directory goes and SIGTERM comes before the program has looked: what waits is in a new one, or in the log whole."""
    for n in range(base.pick(2, 10)):
        down = t.add(base.Sink(up=False))
        place = base.Place(t, [{'url': down.url()}], name='removed%d' % n)
        process = place.start()
        executions = base.send(process, 6)
        shutil.rmtree(place.state)
        base.stop(t, process)
        lost = [harness.json.loads(line.partition('; alert: ')[2])['executionId']
                for line in process.lines(r' error: alert \d+ lost for .*; alert: ')]
        kept = place.waiting() if os.path.exists(place.path()) else []
        base.same(t, 'none is lost in silence', lost + kept, executions)


@base.limits(40, 60)
def test_disk_hangs_while_stopping(t):
    """A write that does not come back holds up who writes, but not the end of the program."""
    shim = base.Shim(t)
    down = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': down.url()}], butlerWebhook=OURS)
    process = place.start(binary=t.binary_test, env=shim.env)
    executions = base.send(process, 3)
    shim.set(write_delay_ms=30000)
    process.send(base.alert(harness.guid()))        # whoever takes it hangs in the write
    t.check('a write hangs', base.until(lambda: shim.get('hits') > 0, 10))
    begin = time.monotonic()
    base.stop(t, process)
    t.check('it ends in time', time.monotonic() - begin < 6 * harness.SLOW, time.monotonic() - begin)
    shim.set(write_delay_ms=0)
    waiting = place.waiting(t.binary_test)
    t.check('what was accepted is in the journal', set(executions) <= set(waiting), base.some(set(executions) - set(waiting)))


@base.limits(60, 60)
def test_rewriting_always_fails(t):
    """Without rewriting the journal only grows: it stops at its bound, is told once, and alerts go on from memory."""
    shim = base.Shim(t)
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook=dict(OURS, maxStateMB=1))
    process = place.start(binary=t.binary_test, env=shim.env)
    shim.set(rename_errno=errno.EIO)
    most, executions = 0, []
    for _ in range(60):
        executions += base.send(process, 25, sink=sink, window=3)
        most = max(most, base.folder_bytes(place.state))
    missing = sink.wait(executions)
    t.check('all arrive', len(executions) == 1500 and not missing, base.some(missing))
    t.check('the directory stays within maxStateMB', most <= 1 << 20, most)
    t.equal('it is told once', len(process.lines(r' error: state directory: the journal has no room')), 1)
    shim.set(rename_errno=0)
    t.check('it is rewritten when it can be', base.until(lambda: base.folder_bytes(place.state) < 1 << 18, 20),
            base.folder_bytes(place.state))
    base.stop(t, process)


@base.limits(60, 60)
def test_directory_files_removed_while_running(t):
    """Only the journal is deleted: the same."""
    down = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': down.url()}], butlerWebhook=OURS)
    process = place.start(binary=t.binary_test)
    waiting = base.send(process, 3)
    os.unlink(place.path())
    for _ in range(5):
        waiting += base.send(process, 1)
        time.sleep(0.3)
    t.check('there is a journal again', base.until(lambda: os.path.exists(place.path()), 15), os.listdir(place.state))
    base.until(lambda: len(place.waiting(t.binary_test)) == len(waiting), 10)
    base.kill(process)
    base.same(t, 'after kill -9 all that waited is in it', place.waiting(), waiting)
    process = place.start(binary=t.binary_test)
    down.up()
    base.arrive(t, 'and arrives', down, waiting)
    base.stop(t, process)


# ---- Memory only ----------------------------------------------------------------------------------------------------


@base.limits(60, 60)
def test_memory_only(t):
    """stateDirectory '': a warning at the start, nothing on disk, and a stop logs each alert that is lost."""
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
    base.stop(t, process)
    told = base.Told(process).update()
    base.same(t, 'each alert that is lost is logged whole', told.executions('lost'), waiting)
    numbers = base.stopped(process)
    t.check('and counted', numbers and (numbers['lost'], numbers['waiting'], numbers['delivered']) == (8, 0, 5), numbers)
    t.equal('nothing was written', set(os.listdir(os.path.dirname(place.config))), before)
    result = t.run('--pending', place.config)
    t.equal('--pending shows that nothing is kept', (result.returncode, result.stderr), (0, ''))
    result = t.run('--replay', place.config)
    t.check('--replay ends well', result.returncode in (0, 1), [result.returncode, result.stdout, result.stderr])


# ---- A full state directory -----------------------------------------------------------------------------------------


def oldest(dropped, executions):
    """Whether these are the oldest, in their order. Up to four that are being tried at that moment may be passed over; they
    may be dropped later, when they are not tried any more."""
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


@base.limits(60, 120)
def test_full_state(t):
    """maxStateMB: the directory never exceeds it; the oldest are dropped and logged whole; the newest arrive."""
    count = base.pick(8000, 20000)
    sink = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook={'maxStateMB': 1})
    process = place.start()
    most = [0]
    over = threading.Event()

    def watch():
        while not over.wait(0.003):
            most[0] = max(most[0], base.folder_bytes(place.state))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    told = base.Told(process)
    executions = base.send(process, count, told=told)
    t.equal('all are accepted', len(executions), count)
    dropped = told.update().executions('dropped')
    t.check('the oldest were dropped, in order', oldest(dropped, executions),
            '%d dropped' % len(dropped))
    t.check('the warning before', process.wait_log(r' warn: state directory: \d+ % of its room is used \(\d+ alerts? waits?\)'))
    t.check('the warning comes not for each alert', len(process.lines(r' warn: state directory: ')) <= 20,
            len(process.lines(r' warn: state directory: ')))
    sink.up()
    rest = [execution for execution in executions if execution not in set(dropped)]
    missing = sink.wait(rest, 30)
    dropped = set(told.update().executions('dropped'))
    t.equal('delivered and dropped are all', (set(sink.taken) | dropped, set(sink.taken) & dropped), (set(executions), set()))
    t.check('the newest arrive', not missing and len(rest) > 200, '%d missing of %d' % (len(missing), len(rest)))
    over.set()
    watcher.join()
    base.stop(t, process)
    t.check('the directory never exceeds 1 MB', most[0] <= 1 << 20, most[0])
    base.note(t, '%d accepted, %d dropped, directory at most %d bytes' % (len(executions), len(dropped), most[0]))
    numbers = base.stopped(process)
    t.check('the numbers at the end', numbers and numbers['delivered'] + numbers['lost'] == count and
            numbers['lost'] == len(dropped), numbers)


@base.limits(60, 120)
def test_full_state_two_webhooks(t):
    """The webhook that is down loses its oldest alerts; the one that works loses none."""
    sink = t.add(base.Sink())
    down = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}, {'url': down.url()}], butlerWebhook={'maxStateMB': 1})
    process = place.start()
    told = base.Told(process)
    executions = base.send(process, 600, told=told, message='x' * 3000, sink=sink, window=20)
    missing = sink.wait(executions)
    t.check('the one that works gets all', len(executions) == 600 and not missing, base.some(missing))
    dropped = told.update().executions('dropped')
    t.check('the other one lost its oldest', oldest(dropped, executions) and len(dropped) > 100, len(dropped))
    t.equal('only it', [line for line in process.lines(' dropped for ') if ' dropped for failure 2' not in line], [])
    base.kill(process)
    t.check('the directory holds 1 MB at most', base.folder_bytes(place.state) <= 1 << 20, base.folder_bytes(place.state))
    down.up()
    process = place.start()
    missing = down.wait([execution for execution in executions if execution not in set(dropped)])
    t.check('the rest arrives, after kill -9', not missing, base.some(missing))
    t.check('what was dropped does not come back', not set(dropped) & set(down.seen), len(set(dropped) & set(down.seen)))
    base.stop(t, process)


@base.limits(60, 120)
def test_full_state_with_dead_letters(t):
    """Dead letters count, too: they must not make the directory grow without end, nor stop the alerts."""
    count = base.pick(600, 3000)
    sink = t.add(base.Sink(lambda call: 404))
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook={'maxStateMB': 1})
    process = place.start()
    most = 0
    told = base.Told(process)
    executions = []
    while len(executions) < count:
        executions += base.send(process, 100, told=told, message='y' * 3000, sink=sink, window=20)
        most = max(most, base.folder_bytes(place.state))
    t.equal('all are tried', base.until(lambda: len(sink.seen) == len(executions), 15) and len(executions), count)
    t.equal('each is logged whole', base.until(lambda: len(told.update().executions('given up')) == count, 10), True)
    t.check('the directory never exceeds 1 MB', max(most, base.folder_bytes(place.state)) <= 1 << 20,
            [most, base.folder_bytes(place.state)])
    sink.behave = None
    base.arrive(t, 'alerts go on', sink, base.send(process, 20))
    base.stop(t, process)


@base.limits(60, 120)
def test_full_state_with_windows(t):
    """Rate limit and de-duplication of thousands of tasks need room, too: no more than there is, and no alert waits for it."""
    count = base.pick(6000, 20000)
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}], rateLimit=300, deduplication={'enable': True, 'ttlMinutes': 10},
                       butlerWebhook={'maxStateMB': 1})
    process = place.start()
    told = base.Told(process)
    executions = []
    most = 0
    deadline = time.monotonic() + base.pick(25, 90) * harness.SLOW
    while len(executions) < count and time.monotonic() < deadline:
        executions += base.send(process, 500, told=told, sink=sink, window=100, timeout=10)
        most = max(most, base.folder_bytes(place.state))
    t.equal('alerts are accepted as fast as ever', len(executions), count)
    base.arrive(t, 'all arrive', sink, executions)
    t.check('the directory never exceeds 1 MB', most <= 1 << 20, most)
    base.kill(process)
    process = place.start()
    process.send(base.alert(executions[-1], harness.guid()))
    t.check('the newest windows survive', process.wait_log('duplicate ignored: .*%s' % executions[-1], 5), base.tail(process))
    base.stop(t, process)


@base.limits(60, 120)
def test_full_state_made_smaller(t):
    """maxStateMB is less than what waits already: with the next alert the oldest are dropped and logged whole, no others."""
    sink = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook={'maxStateMB': 1})
    executions = [harness.guid() for _ in range(6000)]
    place.fill(b''.join(base.accepted_record(base.webhook_key(sink.url()), execution) for execution in executions))
    process = place.start()
    told = base.Told(process)
    executions += base.send(process, 1, told=told)
    t.check('the directory becomes small', base.until(lambda: base.folder_bytes(place.state) <= 1 << 20, 10),
            base.folder_bytes(place.state))
    dropped = told.update().executions('dropped')
    t.check('the oldest were dropped', len(dropped) > 1000 and oldest(dropped, executions), len(dropped))
    base.kill(process)
    others = [execution for execution in executions if execution not in set(dropped)]
    base.same(t, 'the others wait', place.waiting(), others)
    sink.up()
    process = place.start()
    base.arrive(t, 'and arrive', sink, others)
    base.stop(t, process)


@base.limits(60, 120)
def test_growth_is_bounded(t):
    """Many deliveries leave a small journal: it is rewritten when it is mostly done."""
    count = base.pick(5000, 20000)
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}])
    process = place.start()
    told = base.Told(process)
    most = 0
    executions = []
    while len(executions) < count:
        executions += base.send(process, 500, told=told)
        most = max(most, base.folder_bytes(place.state))
    missing = sink.wait(executions)
    t.check('all arrive', not missing, base.some(missing))
    t.check('the directory stayed small', most < 5 << 20, most)
    t.check('the journal is small at the end', base.until(lambda: len(base.read(place.path())) < 5 << 19, 10),
            len(base.read(place.path())))
    base.until(lambda: not place.waiting(), 10)     # outcomes are written a moment later
    base.kill(process)
    t.equal('nothing waits after kill -9', place.waiting(), [])
    base.note(t, '%d delivered, directory at most %d bytes' % (len(executions), most))


@base.limits(60, 180)
def test_100000_waiting(t):
    """100,000 waiting alerts: at most 64 MB of memory, right after a start (and in the long form as they come, too)."""
    count = 100000
    sink = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}])
    key = base.webhook_key(sink.url())
    if base.LONG:
        process = place.start()
        told = base.Told(process)
        executions = base.send(process, count, told=told, timeout=100)
        t.equal('all are accepted', len(executions), count)
        check_memory(t, process, 'as they come')
        t.equal('none is dropped', len(told.update().executions('dropped')), 0)
        base.kill(process)
    else:
        task = harness.guid()
        executions = ['%08x-0000-4000-8000-000000000000' % i for i in range(count)]
        place.fill(b''.join(base.accepted_record(key, execution, task_id=task) for execution in executions))
    process = place.start()
    t.check('all wait', process.wait_log(r' info: state directory .*: %d alerts wait' % count, 15), base.tail(process))
    time.sleep(1)
    check_memory(t, process, 'after a start')
    more = base.send(process, 500)
    sink.up()
    enough = base.pick(1000, len(executions) + len(more))
    base.until(lambda: len(sink.taken) >= enough, base.pick(10, 120))
    t.check('they go out', len(sink.taken) >= enough, len(sink.taken))
    check_memory(t, process, 'while they go out')
    if base.LONG:
        t.equal('all arrive', len(sink.missing(executions + more)), 0)
    base.kill(process)


def check_memory(t, process, when):
    kilobytes = status(process.pid, 'VmHWM')
    base.note(t, '%s: VmHWM %.1f MB' % (when, kilobytes / 1024))
    t.check('%s: at most 64 MB of memory' % when, 0 < kilobytes <= (64 << 10) + harness.SYSTEM.memory_kb, '%d kB' % kilobytes)


def status(pid, name):
    """A number of /proc/PID/status, in kB."""
    for line in base.read('/proc/%d/status' % pid).decode().splitlines():
        if line.startswith(name + ':'):
            return int(line.split()[1])
    return 0


# ---- Descriptors ----------------------------------------------------------------------------------------------------


@base.limits(60, 60)
@base.waits
@harness.unix('a limit on descriptors hits wine itself')
def test_descriptors_few(t):
    """RLIMIT_NOFILE too low for all calls at a time: nothing is lost, no crash; with more of them all is well."""
    sinks = [t.add(base.Sink()) for _ in range(8)]
    place = base.Place(t, [{'url': sink.url()} for sink in sinks], butlerWebhook=OURS)
    for limit in base.pick((14, 20), (12, 13, 14, 15, 16, 18, 20, 24, 28)):
        for sink in sinks:
            sink.forget()
        process = place.start(wrap=base.exec_wrap('resource.setrlimit(resource.RLIMIT_NOFILE, (%d, 4096))' % limit), wait=False)
        if not process.wait_log(' listening on ', 5):
            process.expect_exit = 1     # not even enough to start
            process.expect_stderr = True
            t.equal('limit %d: it does not start, exit code' % limit, process.wait(), 1)
            t.check('limit %d: it says why' % limit, process.stderr)
            continue
        executions = []
        for _ in range(20):
            executions += base.send(process, 1)
            time.sleep(0.02)
        time.sleep(1)
        t.check('limit %d: it runs' % limit, process.running(), process.stderr[-500:])
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (4096, 4096))
        t.equal('limit %d: all are accepted' % limit, len(executions), 20)
        for number, sink in enumerate(sinks):
            missing = sink.wait(executions, 20)
            t.check('limit %d: webhook %d gets all' % (limit, number + 1), not missing, base.some(missing))
        t.check('limit %d: nothing waits' % limit, base.until(lambda: not place.waiting(), 5), base.some(place.waiting()))
        base.kill(process)


@base.limits(60, 60)
@base.waits
def test_descriptors_none(t):
    """socket() fails while the program runs: the alerts wait, and arrive when it works again."""
    shim = base.Shim(t)
    sinks = [t.add(base.Sink()) for _ in range(2)]
    place = base.Place(t, [{'url': sink.url()} for sink in sinks], butlerWebhook=OURS)
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
    t.equal('nothing is given up', process.lines(' given up | dropped for | lost for '), [])
    base.stop(t, process)
