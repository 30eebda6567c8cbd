"""A disk that is full, broken or hangs; directories and files that are wrong; more than may wait; want of descriptors."""

import errno
import os
import re
import shutil
import stat
import sys
import threading
import time

import pytest

import faults_base as base
import harness
import words

pytestmark = harness.limit(120, 300)

TOLD = words.state('.*; alerts go on from memory')
REWRITE_TOLD = words.state('cannot rewrite the journal: .*; trying again$')
BLAMED = ' given up | lost for | is down'


def exec_wrap(code):
    """A wrap that runs a line of Python in the process that becomes the program."""
    return [sys.executable, '-c', 'import os, resource, sys\n%s\nos.execv(sys.argv[1], sys.argv[1:])' % code]


# ---- A broken disk --------------------------------------------------------------------------------------------------


def fire(t, process, sink, count=3, window=3, in_memory=None, **given):
    """Alerts to the webhook that works, a few at a time, so many of them in memory only. Gives their executionIds."""
    before = len(process.lines(base.MEMORY_ONLY))
    executions = base.send(process, count, window, sink=sink, **given)
    t.equal('alerts are accepted', len(executions), count)
    base.arrive(t, 'alerts are delivered', sink, executions)
    if in_memory is not None:
        t.equal('accepted in memory only', len(process.lines(base.MEMORY_ONLY)) - before, in_memory)
    return executions


def kill_and_deliver(t, place, process, down, waiting):
    """kill -9 now: all that waits for the webhook that is down must still be there, and arrive after a start."""
    base.kill(process)
    if place.shim:
        place.shim.heal()
    t.equal('damaged lines of the journal', base.bad_lines(base.read(place.path())), [])
    missing = set(waiting) - set(place.waiting())
    t.check('after kill -9 all that waited is in the journal', waiting and not missing, base.some(missing))
    process = place.start()
    down.up()
    base.arrive(t, 'and arrives', down, waiting)
    base.soon(t, 'then nothing waits', lambda: not place.waiting())


@pytest.mark.parametrize('fault', [
    pytest.param({'write_errno': errno.EIO}, id='write'),
    pytest.param(dict.fromkeys(('write_errno', 'open_errno', 'rename_errno', 'truncate_errno'), errno.EROFS), id='read_only'),
    pytest.param({'write_room': -1}, id='full'),
    pytest.param({'write_room': 1}, id='short_write'),
    pytest.param({'write_room': 150}, id='short_write_in_a_record'),
    pytest.param({'write_room': 200, 'truncate_errno': errno.EIO}, id='short_write_that_cannot_be_cut'),
    pytest.param({'sync_errno': errno.EIO}, id='sync'),
])
def test_disk_breaks(t, fault):
    """The disk breaks and heals, twice: each is told once, alerts go on from memory; then kill -9."""
    place, good, down = base.pair(t, shim=True)
    process = place.start()
    fire(t, process, good)
    waiting = base.send(process, 2, id=base.ABORTED)
    for n in (1, 2):
        before = place.shim.get('hits')
        place.shim.set(**fault)
        fire(t, process, good, 15)
        waiting += base.send(process, id=base.ABORTED)
        base.logged(t, 'it is told', process, TOLD, n)
        place.shim.struck(t, before)
        fire(t, process, good, in_memory=3)
        place.shim.heal()
        base.logged(t, 'it is told that it works again', process, words.WORKS_AGAIN, n)
        fire(t, process, good, in_memory=0)
        t.equal('each is told once', (len(process.lines(TOLD)), len(process.lines(words.WORKS_AGAIN))), (n, n))
    t.equal('all are accepted', len(waiting), 4)
    kill_and_deliver(t, place, process, down, waiting)


def watch(t, place):
    """A list that gets the size of journal and journal.new together all the time, until the test is over."""
    sizes = []

    def look():
        while not t.over:
            sizes.append(base.size(place.path()) + base.size(place.path('journal.new')))
            time.sleep(0.003)

    threading.Thread(target=look, daemon=True).start()
    return sizes


@pytest.mark.parametrize('fault', [{'open_errno': errno.EMFILE}, {'rename_errno': errno.EIO}], ids=('open', 'rename'))
def test_disk_rewriting_fails(t, fault):
    """It is told once, and the old journal goes on: in memory only is nothing until it has grown to its bound."""
    place, good, down = base.pair(t, shim=True, butlerWebhook={'maxStateMB': 16})
    process = place.start()
    sizes = watch(t, place)
    waiting = base.send(process, 3, id=base.ABORTED)
    folders = 0
    for n in (1, 2):        # opening the directory, to sync it after a file was made, is another matter
        base.soon(t, 'the directory is synced', lambda: place.shim.get('folder_syncs') > folders)
        folders = place.shim.get('folder_syncs')
        place.shim.set(**fault)
        fire(t, process, good, 150)
        base.logged(t, 'the fault is told', process, REWRITE_TOLD, n)
        waiting += base.send(process, id=base.ABORTED)
        fire(t, process, good, 20, in_memory=0)
        t.equal('and told once', len(process.lines(' error: ')), n)
        if n == 2:
            fire(t, process, good, 700, window=20, message='x' * 2000)
            t.equal('the bound is told once', (len(process.lines(TOLD)), len(process.lines(' error: '))), (1, 3))
            t.check('and kept', 4 * base.TEST_MEGABYTE < max(sizes) <= 16 * base.TEST_MEGABYTE, max(sizes))
        place.shim.heal()
        base.logged(t, 'it is told that it works again', process, words.WORKS_AGAIN, n)
        base.soon(t, 'the journal becomes small again', lambda: base.size(place.path()) < 64 << 10)
    kill_and_deliver(t, place, process, down, waiting)


def test_disk_errors_at_random(t):
    """Every fault of the disk at random, one after another, the room ending anywhere; load, a fickle webhook; then kill -9."""
    numbers = base.rng(t)
    place, good, down = base.pair(t, shim=True)
    good.behave = base.fickle(numbers, good=0.8, error=0.2)
    process = place.start()
    load = t.add(base.Load(place, 100, ids=(base.FAILED,) * 9 + (base.ABORTED,)))
    faults = ['write_errno', 'write_room', 'sync_errno', 'open_errno', 'rename_errno', 'read_errno', 'truncate_errno']
    place.shim.set(write_errno=errno.EIO)
    base.logged(t, 'the error is told', process, TOLD)
    for _ in range(base.pick(8, 100)):
        name = numbers.choice(faults)
        place.shim.heal()
        place.shim.set(**{name: numbers.randrange(1, 40000) if name == 'write_room' else errno.EIO})
        time.sleep(numbers.uniform(0.05, 0.5))
        place.shim.heal()
        time.sleep(numbers.uniform(0, 0.5))
    load.close()
    good.behave = None
    about = '%s|%s|%s' % (TOLD, REWRITE_TOLD, words.WORKS_AGAIN)
    base.soon(t, 'in the end it works again', lambda: ' works again' in process.lines(about)[-1])
    base.soon(t, 'all are accepted', lambda: len(base.accepted(process.log)) == len(load.sent))
    base.kill(process)
    down.up()
    process = place.start()
    base.soon(t, 'what was accepted arrives', lambda: set(load.sent) == set(good.taken) | set(down.taken))
    t.equal('alerts with several webhook-ids', (good.ids_differ(), down.ids_differ()), ([], []))


def test_disk_unreadable_sector(t):
    """A part of the journal that the disk cannot read is passed over and told; the rest is used, and written anew."""
    place, sink = base.single(t, up=False, shim=True)
    executions = [harness.guid() for _ in range(60)]
    lines = [base.accepted_record(place.key, execution) for execution in executions]
    data, line_len = b''.join(lines), len(lines[0])
    for begin, end in [(0, 512), (4096, 8192), (9728, 10240), (len(data) - 100, 1 << 40), (0, len(data) - 4096)]:
        what = 'bytes %d to %d' % (begin, end)
        # What is passed over may be a little more than what cannot be read.
        must = {execution for number, execution in enumerate(executions)
                if (number + 1) * line_len < begin - begin % 4096 or number * line_len >= end + 4096}
        place.fill(data)
        place.shim.set(read_from=begin, read_to=end)
        process = place.start()
        base.logged(t, '%s: it is told' % what, process, r' error: journal: \d+ bytes that cannot be read were passed over')
        base.soon(t, '%s: the journal is written anew' % what, lambda: not base.read(place.path()).startswith(data))
        place.shim.heal()
        base.kill(process)
        got = place.waiting()
        t.check('%s: the rest waits' % what, must <= set(got) < set(executions), [base.some(must - set(got)), len(got)])
    sink.up()
    process = place.start()
    base.arrive(t, 'they arrive', sink, got)
    t.equal('the next start finds all well', process.lines(r' (warn|error): journal: '), [])


# ---- A stop while the disk is broken --------------------------------------------------------------------------------


def hang(t, process, counts):
    """A stop that a disk holds up: exit code 1 within 5 s, and the counts on stderr. Gives how many lines of log are lost."""
    process.expect_exit = 1
    process.expect_stderr = True
    begin = time.monotonic()
    process.send_signal()
    t.equal('exit code', process.wait(), 1)
    t.check('within 5 s', time.monotonic() - begin < 5.5 * harness.SLOW, time.monotonic() - begin)
    match = re.search('butler_webhook: a disk or the log hangs.*: %s, (\\d+) lines? of log lost' % counts, process.stderr)
    t.require('the counts are told', match, process.stderr)
    return int(match.group(1))


@pytest.mark.parametrize('fault', ('write_delay_ms', 'sync_delay_ms', 'log_delay_ms'))
def test_stop_with_a_hanging_disk(t, fault):
    """A write, a sync, or the log, does not come back: what was written is not lost; behind a log that hangs alerts go on."""
    place, good, _ = base.pair(t, shim=True, fileLogging=True, logDirectory='log')
    process = place.start()
    executions = base.send(process, 3, id=base.ABORTED)
    base.soon(t, 'they are synced',
              lambda: place.shim.get('synced_len') > base.read(place.path()).rindex(executions[-1].encode()))
    place.shim.set(**{fault: 60000})
    last, other = harness.guid(), harness.guid()
    process.send(base.alert(last, id=base.ABORTED))
    place.shim.struck(t)
    if fault == 'log_delay_ms':
        process.send(base.alert(other))
        base.arrive(t, 'alerts arrive', good, [other])
        base.soon(t, 'or wait', lambda: set(place.waiting()) == set(executions + [last]))
        lost = hang(t, process, '5 received, 5 accepted, 1 delivered, 0 given up, 0 lost, 4 waiting')
        t.check('lines of log are lost', lost >= 3, lost)
    else:
        hang(t, process, '4 received, 4 accepted, 0 delivered, 0 given up, 0 lost, 4 waiting')
    must = set(executions + [last] * (fault != 'write_delay_ms'))
    t.equal('what was written is in the journal', must - set(place.waiting()), set())


@pytest.mark.parametrize('then_hangs', (False, True), ids=('broken', 'broken_then_hangs'))
def test_stop_with_a_broken_disk(t, then_hangs):
    """What stands in memory only is logged whole, what is in the journal is there at the next start, also on such a disk."""
    place, _ = base.single(t, up=False, shim=True)
    process = place.start()
    kept = base.send(process, 3)
    place.shim.set(write_errno=errno.EIO)
    memory = base.send(process, 5)
    base.logged(t, 'the error is told', process, TOLD)
    t.equal('in memory only', len(process.lines(base.MEMORY_ONLY)), 5)
    if then_hangs:      # the new journal, which would heal that, does not get onto the disk
        before = place.shim.get('hits')
        place.shim.set(write_errno=0, sync_delay_ms=60000)
        place.shim.struck(t, before)
        hang(t, process, '8 received, 8 accepted, .*')
    else:
        base.stop(t, process)
        lost = base.logged_whole(process)
        t.check('what stood in memory only is logged whole', set(memory) <= set(lost), base.some(set(memory) - set(lost)))
        t.equal('and counted', base.stopped(process)['lost'], len(lost))
        process = place.start()
        kept += base.send(process, 2)
        base.logged(t, 'a start tells it, too', process, TOLD)
        place.shim.heal()
        base.logged(t, 'it works again', process, words.WORKS_AGAIN)
        base.kill(process)
    base.same(t, 'what was in the journal is there', place.waiting(), kept)


def test_stop_counts_from_the_signal(t):
    """A write that takes half of a stop's time: calls get what is left of it, and the stop is in order."""
    place, sink = base.single(t, lambda call: 'hang', shim=True, butlerWebhook={'timeoutSeconds': 300})
    process = place.start()
    executions = base.send(process)
    base.soon(t, 'a call is under way', lambda: sink.seen[executions[0]])
    place.shim.set(write_delay_ms=60000)
    executions.append(harness.guid())
    process.send(base.alert(executions[-1]))
    place.shim.struck(t)
    process.send_signal()
    time.sleep(2.5)
    place.shim.heal()
    t.equal('exit code', process.wait(), 0)
    base.same(t, 'both wait in the journal', place.waiting(), executions)


# ---- Directories and files that are wrong ---------------------------------------------------------------------------


def refused(t, what, place, why='', **options):
    """A start that must end with exit code 1, and say on stderr and in the log that stateDirectory is why."""
    process = place.start(wait=False, **options)
    process.expect_exit = 1
    process.expect_stderr = True
    t.equal('%s: exit code' % what, process.wait(), 1)
    for where, text in (('stderr', process.stderr), ('the log', process.stdout)):
        t.check('%s: %s names the key and why' % (what, where), re.search('butlerWebhook.stateDirectory: .*' + why, text), text)


@harness.unix('modes of files, and users who may not write')
@pytest.mark.root
def test_directory_not_writable(t):
    """Started by a user who may not write there, nor make it."""
    place, sink = base.single(t)
    folder = os.path.dirname(place.config)
    binary = shutil.copy(t.binary, os.path.join(t.tmp, 'program'))
    for path in (t.tmp, binary, place.config):
        os.chmod(path, 0o755)
    options = {'binary': binary, 'wrap': exec_wrap('os.setgroups([]); os.setgid(65534); os.setuid(65534)')}
    os.chmod(folder, 0o555)
    refused(t, 'cannot be made', place, **options)
    os.chmod(folder, 0o755)
    os.mkdir(place.state)
    os.chown(place.state, 65534, 65534)
    for mode in (0o500, 0o000):
        os.chmod(place.state, mode)
        refused(t, 'mode %o' % mode, place, **options)
    os.chmod(place.state, 0o700)
    process = place.start(**options)
    base.arrive(t, 'with the rights it works', sink, base.send(process))


def test_directory(t):
    """
    Made for the owner only, whatever the umask, also with a space in its name; what is there stays. It is for one process: the
    lock goes with that, not with the file. A link to nothing is not followed (files in its place: test_cli.py).
    """
    place, sink = base.single(t, state='its state')
    os.symlink('nowhere/at/all', place.state)
    refused(t, 'a link to nothing', place)
    os.unlink(place.state)
    second = base.Place(t, place.webhooks, name='second', state=place.state)
    process = place.start(wrap=exec_wrap('os.umask(0)'))
    modes = {name: stat.S_IMODE(os.stat(place.path(name)).st_mode) for name in ['', 'journal', 'lock']}
    t.equal('mode', modes.pop('') & (0o700 | harness.SYSTEM.others), 0o700)
    t.check('files are for the owner only', not any(mode & harness.SYSTEM.others_file for mode in modes.values()), modes)
    base.write(place.path('notes.txt'), b'mine')
    refused(t, 'a second process', second, 'is used by another butler_webhook')
    base.arrive(t, 'the first one goes on', sink, base.send(process))
    base.kill(process)
    t.check('after kill -9 the file is still there', os.path.exists(place.path('lock')))
    base.stop(t, second.start())
    t.equal('a file of somebody else stays', base.read(place.path('notes.txt')), b'mine')


# What somebody who may write into the state directory can put there in place of a file, and what it leads to.
TRAPS = {
    'link': lambda path, target: os.symlink(target, path),
    'link to nothing': lambda path, target: os.symlink(target + '.nothing', path),
    'hard link': lambda path, target: os.link(target, path),
    'FIFO': lambda path, _: os.mkfifo(path),
    'directory': lambda path, _: os.mkdir(path),
    'device': lambda path, _: os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 7)),      # /dev/full: reading it never ends
}


@pytest.mark.parametrize('name, told', [       # lock and journal: unit.c
    ('journal.new', None),      # what is deleted is itself, not what it leads to
    ('journal.damaged', r' error: journal: 1 damaged line '),
    ('dead-letters.ndjson', words.state(r'dead-letters\.ndjson: ')),
    ('replay.ndjson', words.state(r'.*replay\.ndjson')),
], ids=('journal_new', 'journal_damaged', 'dead_letters', 'replay'))
@harness.unix('links, FIFOs and devices')
@pytest.mark.root
def test_links(t, name, told):
    """In place of each file, in a directory of another user: what it leads to is not read, written, given away or deleted."""
    for kind, trap in TRAPS.items():
        sink = t.add(base.Sink(lambda call: 404 if call.path == '/gone' else 200))
        place = base.Place(t, [{'url': sink.url()}, {'url': sink.url('/gone'), 'kind': 'aborted'}], name=kind, test=True)
        kept = harness.guid()
        place.fill(b'damaged\n' + base.accepted_record(base.webhook_key(sink.url()), kept))
        folder = os.path.join(t.tmp, 'targets of ' + kind)
        os.mkdir(folder)
        target = os.path.join(folder, 'target')
        base.write(target, b'{"webhookId":"secret"}\n')
        os.chmod(target, 0o640)
        trap(place.path(name), target)
        os.chown(place.state, 65534, 65534)

        def look():
            found = os.stat(target)
            return os.listdir(folder), base.read(target), found.st_uid, found.st_gid, found.st_mode, found.st_mtime

        before = look()
        for command in ('--replay', '--pending'):       # neither may hang, nor follow it
            result = t.run(command, place.config, timeout=10)
            t.check('%s: %s does not follow it' % (kind, command), 'secret' not in result.stdout + result.stderr, result.stdout)
        t.check('%s: it is still there' % kind, os.path.lexists(place.path(name)))
        process = place.start()
        base.arrive(t, '%s: what waited, and others, arrive' % kind, sink, [kept] + base.send(process, 3))
        dead = base.send(process, 2, id=base.ABORTED)
        why = REWRITE_TOLD if name == 'journal.new' and kind == 'directory' else told
        if why:
            base.logged(t, '%s: it is told' % kind, process, why)
        else:
            base.soon(t, '%s: it is gone' % kind, lambda: not os.path.lexists(place.path(name)))
        base.soon(t, '%s: letters are written, or wait' % kind, lambda: sorted(
            place.waiting(code=1) if name == 'dead-letters.ndjson' else place.dead()) == sorted(dead))
        base.stop(t, process)
        t.equal('%s: what it leads to' % kind, look(), before)


def test_memory_only(t):
    """stateDirectory '': a warning at the start, the log says it of each alert, nothing on disk, and a stop logs what is lost."""
    place, good, _ = base.pair(t, butlerWebhook={'stateDirectory': ''})
    before = os.listdir(os.path.dirname(place.config))
    process = place.start()
    base.logged(t, 'the warning', process, words.MEMORY_ONLY)
    fire(t, process, good)
    waiting = base.send(process, 8, id=base.ABORTED)
    t.equal('the log says so of each alert', len(process.lines(base.MEMORY_ONLY)), 11)
    base.stop(t, process)
    base.same(t, 'each alert that is lost is logged whole', base.logged_whole(process), waiting)
    numbers = base.stopped(process)
    t.equal('and counted', (numbers['lost'], numbers['waiting'], numbers['delivered']), (8, 0, 3))
    t.equal('nothing was written', os.listdir(os.path.dirname(place.config)), before)
    t.equal('--pending shows that nothing is kept', place.pending(), base.NOTHING)
    result = t.run('--replay', place.config)
    t.check('--replay says so', result.returncode == 1 and "stateDirectory is ''" in result.stderr, result)


# ---- A full state directory -----------------------------------------------------------------------------------------


def check_dead(t, place, executions):
    """
    Gives the dead letters, which are for want of room. They are the oldest, in their order; up to four that were being tried may
    be passed over, and follow later; a kill between letter and journal writes some again.
    """
    t.equal('they say why', {letter['reason'] for letter in place.letters()}, {words.NO_ROOM})
    dead = list(dict.fromkeys(place.dead()))
    places = [executions.index(execution) for execution in dead]
    late = sum(place < max(places[:at]) for at, place in enumerate(places) if at > 0)
    t.check('the oldest are dead letters, in order', places and late <= 4 and max(places) < len(places) + 4,
            [len(places), late, max(places, default=-1)])
    return dead


def test_full_state(t):
    """Beyond a third of maxStateMB the oldest of the webhook with most waiting become dead letters; the other one loses none."""
    count = base.pick(1000, 4000)
    good, down = t.add(base.Sink()), t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': good.url()}, {'url': down.url()}], test=True, butlerWebhook={'maxStateMB': 16})
    process = place.start()
    sizes = watch(t, place)
    executions = fire(t, process, good, count, window=20, message='x' * 1000)
    base.logged(t, 'the warning before', process, words.state(r'\d+ % of its room is used \(\d+ alerts wait\)'))
    t.equal('the warning comes once', len(process.lines(words.state(''))), 1)
    base.soon(t, 'each waits or is dead', lambda: len(place.dead()) + len(place.waiting()) == count)
    dead = check_dead(t, place, executions)
    t.equal('only of the one that is down', {letter['webhook'] for letter in place.letters()}, {'failure 2'})
    kept = [execution for execution in executions if execution not in set(dead)]
    t.check('a third of it is used', 150 < len(kept) < 300, len(kept))
    # What comes while the rewritten journal is synced: little beside real megabytes, much beside those of the test build.
    t.check('the journal stays within its bound', max(sizes) <= 16 * base.TEST_MEGABYTE + 512 * 1024, max(sizes))
    kill_and_deliver(t, place, process, down, kept)
    t.equal('what is dead was sent nowhere', set(down.seen), set(kept))


@harness.limit(180, 300)
def test_full_state_made_smaller(t):
    """maxStateMB is less than what waits already: the oldest become dead letters, each of them, also if that is interrupted."""
    numbers = base.rng(t)
    place, sink = base.single(t, up=False, test=True, butlerWebhook={'maxStateMB': 16})
    # 12 MB, more than what dead letters that wait for the disk take at other times.
    executions = place.fill_waiting(400, message='x' * 30000)
    for n in range(base.pick(2, 10)):
        process = place.start(wait=False)
        time.sleep(numbers.uniform(0, 0.4))
        base.kill(process)
        base.none_lost(t, 'killed, round %d: none is lost' % n, place, sink, executions)
    process = place.start()
    executions += base.send(process)
    base.soon(t, 'the journal becomes small', lambda: base.size(place.path()) <= 16 * base.TEST_MEGABYTE, 100)
    base.soon(t, 'what waits is small', lambda: 5 < len(place.waiting()) < 15)
    base.kill(process)
    waiting = place.waiting()
    base.same(t, 'each is a dead letter or waits', check_dead(t, place, executions) + waiting, executions)
    sink.up()
    base.arrive(t, 'the others arrive', sink, waiting + base.send(place.start()))


# ---- Descriptors ----------------------------------------------------------------------------------------------------


@harness.unix('a limit on descriptors hits wine itself')
def test_descriptors_few(t):
    """The soft limit is raised to the hard one; where that is too low for all calls at a time they take turns."""
    sinks = [t.add(base.Sink()) for _ in range(8)]
    place = base.Place(t, [{'url': sink.url()} for sink in sinks], test=True)
    process = place.start()
    rest = len(os.listdir('/proc/%d/fd' % process.pid))     # what it has open without a call
    base.stop(t, process)
    hard = rest + 3
    process = place.start(wrap=exec_wrap('resource.setrlimit(resource.RLIMIT_NOFILE, (%d, %d))' % (rest, hard)))
    t.check('the soft limit is raised', re.search(r'(?m)^Max open files +%d +%d ' % (hard, hard),
                                                  base.read('/proc/%d/limits' % process.pid).decode()))
    executions = base.send(process, 20, window=1)
    for number, sink in enumerate(sinks, 1):
        base.arrive(t, 'webhook %d gets all' % number, sink, executions, 30)
    t.equal('no webhook is to blame', process.lines(BLAMED), [])


def test_descriptors_none(t):
    """No descriptor for a socket or a look-up, no buffer for a send: no webhook is to blame, and what waits arrives later."""
    sink, named = t.add(base.Sink()), t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}, {'url': named.url(host='name.invalid'), 'kind': 'aborted'}], shim=True)
    process = place.start()
    for field, number in (('socket_errno', errno.EMFILE), ('socket_errno', errno.ENOBUFS), ('send_errno', errno.ENOBUFS)):
        sink.down()     # what is kept alive would need no socket
        sink.up()
        before = place.shim.get('hits')
        place.shim.set(**{field: number})
        executions = base.send(process, 5)
        place.shim.struck(t, before + 3)
        t.equal('%s: alerts are accepted' % field, len(executions), 5)
        place.shim.heal()
        base.arrive(t, '%s: afterwards all arrive' % field, sink, executions)
    base.logged(t, 'none of that counts as an attempt', process, words.delivered(status='200 in .*, attempt 1$'), 15)
    place.shim.set(resolve_fail=errno.EMFILE)
    base.send(process, 2, id=base.ABORTED)
    base.logged(t, 'a look-up is tried again', process, ' to aborted 1: host name name.invalid not found: no descriptor', 4)
    t.equal('no webhook is to blame', process.lines(BLAMED), [])
    place.shim.set(resolve_fail=1)
    base.logged(t, 'a name server that does not answer', process, words.down('aborted 1', '.* name server'))
