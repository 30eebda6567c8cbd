"""kill -9 at random moments, torn and damaged journals, clocks that jump: what is accepted arrives all the same."""

import datetime
import json
import os
import re
import shutil
import time

import faults_base as base
import harness

TORN = r' warn: journal: a torn last line \(%d bytes\) was cut off'
DAMAGED = r' error: journal: %s damaged lines? set aside in .*/journal\.damaged'


# ---- kill -9 --------------------------------------------------------------------------------------------------------


def kill_rounds(t, binary, rounds, rate):
    """Kills the program at random moments under load, and stops it now and then; all that it accepted must arrive."""
    numbers = base.rng(t)
    bad = t.add(base.Sink(base.fickle(numbers)))
    good = t.add(base.Sink())
    place = base.Place(t, [{'url': bad.url()}, {'url': good.url()}], butlerWebhook=base.OURS)
    load = t.add(base.Load(place, rate))
    accepted = []
    stops = 0
    for n in range(rounds):
        stop = n % 4 == 3
        process = place.start(binary=binary, wait=stop)
        # One in three dies while it starts or reads the journal.
        time.sleep(numbers.uniform(0, 0.15) if n % 3 == 1 and not stop else numbers.uniform(0.2, 1.1))
        if stop:
            base.stop(t, process)
            stops += 1
        else:
            base.kill(process)
        accepted += base.accepted(process)
    load.close()
    bad.behave = None
    process = place.start(binary=binary)
    process.wait_log(r' state directory .*: \d+ alerts wait')
    missing = bad.wait(accepted, base.pick(30, 120)) + good.wait(accepted, base.pick(10, 60))
    accepted += base.accepted(process)
    t.check('every accepted alert arrives', not missing, base.some(missing))
    t.check('there was something to lose', len(accepted) > rounds * rate // 20, len(accepted))
    t.check('each alert keeps its webhook-id', not bad.ids_differ() and not good.ids_differ(),
            base.some(bad.ids_differ() + good.ids_differ()))
    t.check('nothing waits or is dead at the end', base.until(lambda: not place.waiting(binary), 30) and
            not place.pending(binary)['dead'], base.some(place.waiting(binary)))
    base.stop(t, process)
    taken = len(bad.taken) + len(good.taken)
    doubles = bad.doubles() + good.doubles()
    base.note(t, '%d kills, %d stops, %d alerts accepted, doubles %d of %d (%.2f %%)' %
              (rounds - stops, stops, len(accepted), doubles, taken, 100 * doubles / max(1, taken)))
    # What was in flight at a kill (4 calls a webhook), and what was delivered in the moments before it, comes twice.
    t.check('few doubles for each kill', doubles <= rounds * 40 + 5, doubles)


@harness.limit(60, 900)
def test_kill_release(t):
    kill_rounds(t, t.binary, base.pick(8, 200), 150)


@harness.limit(60, 900)
def test_kill_rewriting(t):
    """The same with the test build, which rewrites its journal all the time."""
    kill_rounds(t, t.binary_test, base.pick(8, 100), 120)


@harness.limit(60, 300)
def test_kill_with_a_slow_disk(t):
    """
    Syncs that take long, while alerts for a webhook that is down come in between many that are delivered: also those that
    are accepted while the journal is being rewritten are in the new one.
    """
    numbers = base.rng(t)
    shim = base.Shim(t)
    shim.set(sync_delay_ms=150)
    sink = t.add(base.Sink())
    down = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}, {'url': down.url(), 'kind': 'aborted'}], butlerWebhook=base.OURS)
    aborted = []
    rewritten = 0
    for n in range(base.pick(4, 40)):
        process = place.start(binary=t.binary_test, env=shim.env)
        load = t.add(base.Load(place, 500, ids=('/scheduler-task-failed/',) * 7 + ('/scheduler-task-aborted/',)))
        begin = shim.get('renames')
        time.sleep(numbers.uniform(0.8, 1.8))
        base.kill(process)
        load.close()
        rewritten += shim.get('renames') - begin
        accepted = set(base.accepted(process))
        aborted += [execution for number, execution in enumerate(load.sent) if number % 8 == 6 and execution in accepted]
        lost = set(aborted) - set(place.waiting())
        t.check('round %d: all that wait are in the journal' % n, not lost, base.some(lost))
        if len(aborted) > 80:       # what waits must not make up most of the journal, or it is not rewritten any more
            place.fill(b'')
            aborted = []
    t.check('the journal was rewritten meanwhile, and not only at the start', rewritten > base.pick(4, 40), rewritten)
    base.note(t, '%d times' % rewritten)
    down.up()
    process = place.start(binary=t.binary_test, env=shim.env)
    base.arrive(t, 'every accepted alert arrives', down, aborted, 30)
    base.stop(t, process)


def milliseconds(text):
    """Milliseconds since 1970 of a time as the program prints it."""
    return datetime.datetime.fromisoformat(text.replace('Z', '+00:00')).timestamp() * 1000


@harness.limit(30, 60)
def test_restart_keeps_order_age_and_attempts(t):
    """After a start: oldest first, the old webhook-id, the age counted from the acceptance, the attempts go on."""
    sink = t.add(base.Sink(lambda call: 500))
    place = base.Place(t, [{'url': sink.url(), 'description': 'Desk'}], butlerWebhook={'maxConcurrent': 1})
    process = place.start()
    first = base.send(process, 1)[0]
    sink.wait_calls(2)
    base.until(lambda: [entry for entry in place.pending()['waiting'] if entry['attempts'] >= 2])
    before = place.pending()['waiting']
    t.equal('alerts that wait', len(before), 1)
    base.kill(process)
    entry = place.pending()['waiting'][0]
    t.equal('what waits is the same after kill -9', (entry['webhookId'], entry['alert']),
            (before[0]['webhookId'], before[0]['alert']))
    t.check('with the time of its acceptance', abs(milliseconds(entry['acceptedAt']) - milliseconds(before[0]['acceptedAt']))
            <= 20, [entry['acceptedAt'], before[0]['acceptedAt']])
    t.check('the attempts are kept', entry['attempts'] >= before[0]['attempts'] >= 2, entry)
    t.check('the last error is kept', '500' in (entry['lastError'] or ''), entry)
    t.check('the times of the attempts are kept', entry['lastAttemptAt'], entry)
    sink.down()
    process = place.start()
    rest = [base.send(process, 1)[0] for _ in range(20)]
    base.kill(process)
    sink.behave = None
    sink.forget()
    sink.up()
    process = place.start()
    base.arrive(t, 'all arrive', sink, [first] + rest)
    with sink._changed:
        order = [call.execution for call, _ in sink.calls]
    t.equal('oldest first', [([first] + rest).index(execution) for execution in order], list(range(21)))
    t.equal('the webhook-id is the old one', sink.taken[first][0][0], entry['webhookId'])
    match = process.wait_log(r'delivered to failure 1 \("Desk"\): 200 in \d+ ms, attempt (\d+)')
    attempts = [int(re.search(r'attempt (\d+)', line).group(1)) for line in process.lines(r' delivered to ')]
    t.check('attempts are counted on', match and max(attempts) > 2, attempts)


@harness.limit(30, 60)
def test_restart_keeps_the_largest_alerts(t):
    """Datagrams of 65 kB, also such that their JSON is six times as long."""
    place, sink = base.refused_place(t)
    process = place.start()
    bodies = {}
    for message in ('\1' * 64000, '"' * 64000, 'ä' * 31000, 'x' * 65000, '\U0001F600' * 16000):
        execution = harness.guid()
        bodies[execution] = message
        process.send(base.alert(execution, message=message))
        t.check('it is accepted', process.wait_log('accepted: .*%s' % execution, 5))
    base.kill(process)
    found = {entry['alert']['executionId']: entry['alert']['logMessage'] for entry in place.pending()['waiting']}
    t.check('after kill -9 they wait, whole', found == bodies, {key: len(value) for key, value in found.items()})
    got = {}
    sink.behave = lambda call: got.setdefault(call.execution, json.loads(call.body)['logMessage']) and 200
    sink.up()
    process = place.start()
    base.arrive(t, 'they arrive', sink, bodies)
    t.check('whole', got == bodies, {key: len(value) for key, value in got.items()})
    base.stop(t, process)


@harness.limit(30, 60)
def test_stop_journals_the_inbox(t):
    """SIGTERM right after a burst: all that was received waits in the journal, and the end comes within 5 s."""
    place, sink = base.refused_place(t)
    process = place.start()
    count = base.pick(5000, 15000)
    for _ in range(count):
        process.send(base.alert(harness.guid(), message='x' * 300))
    begin = time.monotonic()
    base.stop(t, process)
    t.check('within 5 s', time.monotonic() - begin < 5 * harness.SLOW, time.monotonic() - begin)
    numbers = base.stopped(process)
    t.check('the counts agree', numbers and 0 < numbers['received'] == numbers['accepted'] == numbers['waiting'] and
            numbers['lost'] == 0, numbers)
    waiting = set(place.waiting())
    t.equal('all wait', len(waiting), numbers['accepted'] if numbers else -1)
    t.check('those that the log names are among them', set(base.accepted(process)) <= waiting)
    process = place.start()
    sink.up()
    base.arrive(t, 'and arrive', sink, waiting)
    base.stop(t, process)


# ---- Torn and damaged journals --------------------------------------------------------------------------------------


def lines_of(data):
    return data.splitlines(keepends=True) if isinstance(data, str) else [line + b'\n' for line in data.split(b'\n')[:-1]]


def words_of(lines):
    return [base.read_line(line[:-1]).word for line in lines]


@harness.limit(60, 300)
def test_journal_form(t):
    """The lines are as documented: that a person or another program can read them is part of the interface."""
    place, sink = base.refused_place(t, rateLimit=300, deduplication={'enable': True, 'ttlMinutes': 10})
    data, executions = base.journal_with(t, place, 3, messages=['plain', 'tab\tquote"backslash\\', 'Ä \U0001F600 ü'])
    t.check('each line has its CRC', all(base.read_line(line[:-1]) for line in lines_of(data)), repr(data[:500]))
    records = [base.read_line(line[:-1]) for line in lines_of(data)]
    key = base.webhook_key(place.webhooks[0]['url'])
    t.equal('the webhook comes first', records[0], ('webhook', '1', 'failure', '0', '1', key, '""'))
    accepted = [line for line in records if line.word == 'accepted']
    t.equal('accepted: alerts', [json.loads(line.json)['executionId'] for line in accepted], executions)
    t.equal('accepted: numbers, kinds, webhooks', [(line.number, line.kind, line.keys) for line in accepted],
            [(number, 'failure', key) for number in '123'])
    t.check('accepted: times', all(abs(int(line.time) - base.now_ms()) < 60000 for line in accepted), accepted)
    tried = [line for line in records if line.word == 'attempt']
    t.check('attempt: number, webhook, count, times, why', tried and all(
        line.number in '123' and line.keys == key and int(line.count) >= 1 and abs(int(line.time) - base.now_ms()) < 60000 and
        'refused' in json.loads(line.json) for line in tried), tried)
    t.equal('the mode of the directory', oct(os.stat(place.state).st_mode & (0o700 | harness.SYSTEM.others)), oct(0o700))
    t.check('no file can be read by others', all(os.stat(place.path(name)).st_mode & harness.SYSTEM.others_file == 0
                                                 for name in os.listdir(place.state)), os.listdir(place.state))
    sink.behave = lambda call: 404 if call.execution == executions[1] else 200
    sink.up()
    process = place.start()
    t.check('all have ended', base.until(lambda: not place.waiting()))
    base.kill(process)
    ends = [(line.number, line.keys, line.count) for line in place.journal() if line.word == 'end']
    base.same(t, 'end: number, webhook, how', ends, [('1', key, '0'), ('2', key, '1'), ('3', key, '0')])


@harness.limit(60, 300)
def test_journal_form_two_webhooks(t):
    """One accepted line for all webhooks; keys of the n-th webhook with the same URL; no URL and no secret in the file."""
    port = harness.free_port()
    url = 'http://user:geheim@127.0.0.1:%d/hook?token=topsecret' % port
    place = base.Place(t, [{'url': url, 'description': 'A'}, {'url': url, 'description': 'B "quoted"'},
                           {'url': url, 'kind': 'aborted', 'method': 'GET'}])
    process = place.start()
    base.send(process, 1)
    base.stop(t, process)
    data = base.read(place.path())
    keys = [base.webhook_key(url), base.webhook_key(url, n=1), base.webhook_key(url, method='GET', kind='aborted')]
    records = place.journal()
    known = [(line.keys, line.kind, line.number, line.count, line.json) for line in records if line.word == 'webhook']
    t.equal('webhook lines', known,
            [(keys[0], 'failure', '1', '2', '"A"'), (keys[1], 'failure', '2', '2', '"B \\"quoted\\""'),
             (keys[2], 'aborted', '1', '1', '""')])
    t.equal('accepted lines, and their webhooks', [line.keys.split(',') for line in records if line.word == 'accepted'],
            [keys[:2]])
    for secret in (b'geheim', b'topsecret', b'/hook'):
        t.check('no URL in the journal', secret not in data, repr(data[:800]))


@harness.limit(60, 300)
def test_torn_last_record(t):
    """A journal that ends anywhere inside its last record, whichever record that is: all others are there."""
    place, sink = base.refused_place(t)
    data, executions = base.journal_with(t, place, 6)
    lines = lines_of(data)
    words = words_of(lines)
    key = base.webhook_key(place.webhooks[0]['url'])
    t.require('attempts are in the journal', 'attempt' in words, words)
    last = {
        'accepted': next(line for line in lines if executions[-1].encode() in line),
        'waiting': base.accepted_record(key, harness.guid(), word='waiting'),
        'attempt': next(line for line in lines if b'\tattempt\t' in line[:20]),
        'end': base.end_record(1, key),
        'webhook': lines[0],
    }
    runs = 0
    wrong = []
    for word, line in last.items():
        kept = executions[:-1] if word == 'accepted' else executions
        begin = b''.join(other for other in lines if other is not line)
        every = 1 if base.LONG or (word in ('accepted', 'end') and not harness.WINDOWS) else 7
        for cut in range(0, len(line) - 1, every):
            place.fill(begin + line[:cut])
            runs += 1
            got = place.waiting()
            if sorted(got) != sorted(kept):
                wrong.append('%s cut to %d of %d bytes: %d of %d wait' % (word, cut, len(line), len(got), len(kept)))
    t.check('cut at any byte, the other records are all there (%d cuts)' % runs, not wrong, base.some(wrong))
    place.fill(data + last['end'])
    base.same(t, 'whole, the last record counts', place.waiting(), executions[1:])
    t.equal('--pending has written nothing', sorted(os.listdir(place.state)), ['journal'])

    # Some of them with the program itself, which logs the torn end, rewrites the journal, and delivers the rest.
    line = last['accepted']
    begin = b''.join(other for other in lines if other is not line)
    sink.up()
    for cut in (1, 9, len(line) // 2, len(line) - 2) if not base.LONG else range(1, len(line) - 1, 5):
        sink.forget()
        place.fill(begin + line[:cut])
        process = place.start()
        missing = sink.wait(executions[:-1])
        t.check('cut to %d of %d bytes: the rest arrives' % (cut, len(line)), not missing, base.some(missing))
        t.check('cut to %d bytes: it is logged' % cut, process.wait_log(TORN % cut, 5), base.tail(process))
        t.check('cut to %d bytes: the journal is written anew' % cut, base.until(lambda: is_whole(place), 5),
                repr(base.read(place.path())[-300:]))
        base.stop(t, process)
        t.check('cut to %d bytes: and whole' % cut, is_whole(place), repr(base.read(place.path())[-300:]))


def is_whole(place):
    """Whether each line of the journal is a good one, or empty."""
    data = base.read(place.path())
    return data.endswith(b'\n') and all(base.read_line(line[:-1]) or line == b'\n' for line in lines_of(data))


def must_survive(data, damaged):
    """
    The executionIds that are accepted in lines of data that damage left alone, and have no end anywhere. damaged: the
    numbers of the lines that it struck, their line ends included.
    """
    survivors = {}
    for number, line in enumerate(base.read_line(line[:-1]) for line in lines_of(data)):
        if line and line.word in ('accepted', 'waiting') and number not in damaged:
            survivors.setdefault(line.number, json.loads(line.json)['executionId'])
        elif line and line.word == 'end':
            survivors.pop(line.number, None)
    return set(survivors.values())


def base_journal(t, place, count=14):
    """A journal of the program in which count alerts wait, and two have ended. Gives its bytes and all executionIds."""
    data, executions = base.journal_with(t, place, count)
    lines = lines_of(data)
    key = base.webhook_key(place.webhooks[0]['url'])
    lines.insert(len(lines) // 2, base.end_record(2, key))
    lines.append(base.end_record(5, key, 1))
    return b''.join(lines), executions


@harness.limit(60, 600)
def test_random_bits(t):
    """A few bits flipped anywhere: all records in other lines survive, and nothing is made up."""
    numbers = base.rng(t)
    place, sink = base.refused_place(t)
    data, executions = base_journal(t, place)
    starts = [0]
    for line in lines_of(data):
        starts.append(starts[-1] + len(line))

    def damage():
        spoilt = bytearray(data)
        struck = set()
        for _ in range(numbers.choice((1, 1, 1, 2, 3, 8))):
            at = numbers.randrange(len(spoilt))
            spoilt[at] ^= 1 << numbers.randrange(8)
            line = next(i for i in range(len(starts) - 1) if starts[i] <= at < starts[i + 1])
            struck |= {line} if at < starts[line + 1] - 1 else {line, line + 1}     # without its LF the next one is a part of it
        return bytes(spoilt), struck

    wrong = []
    runs = base.pick(250, 4000)
    for _ in range(runs):
        spoilt, struck = damage()
        place.fill(spoilt)
        got = place.waiting()
        lost = must_survive(data, struck) - set(got)
        if lost or set(got) - set(executions) or len(got) != len(set(got)):
            wrong.append('lines %s struck: %d lost, %d made up' % (sorted(struck), len(lost), len(set(got) - set(executions))))
            base.write(os.path.join(t.tmp, 'spoilt'), spoilt)
    t.check('after %d random damages all other records are there' % runs, not wrong, base.some(wrong))

    sink.up()
    for number in range(base.pick(5, 60)):
        sink.forget()
        spoilt, struck = damage()
        place.fill(spoilt)
        process = place.start()
        t.check('damage %d: the others arrive' % number, not sink.wait(must_survive(data, struck)),
                base.some(sink.missing(must_survive(data, struck))))
        base.stop(t, process)
        bad = [line for line in spoilt.split(b'\n')[:-1] if base.read_line(line) is None]
        kept = base.read(place.path('journal.damaged'))
        t.check('damage %d: the damaged lines are kept' % number, bool(kept) == bool(bad) and all(line in kept for line in bad),
                [len(kept), len(bad)])
        t.check('damage %d: they are counted' % number, not bad or process.lines(DAMAGED % len(bad)), base.tail(process))
        left = [line for line in base.read(place.path()).split(b'\n')[:-1] if base.read_line(line) is None]
        t.equal('damage %d: the journal is whole again' % number, left, [])


@harness.limit(60, 300)
def test_damaged_journals(t):
    """Whole files that are not what they should be: the program starts, and the good records arrive."""
    place, sink = base.refused_place(t)
    data, executions = base_journal(t, place, 8)
    lines = lines_of(data)
    key = base.webhook_key(place.webhooks[0]['url'])
    survivors = must_survive(data, ())
    numbers = base.rng(t)
    new = harness.guid()
    accepted = base.accepted_record(key, new, number=2000000)
    late, moved, ancient = harness.guid(), harness.guid(), harness.guid()
    noise = bytes(numbers.randrange(256) for _ in range(1 << 20))
    long_line = base.record('accepted', 1500000, 'failure', base.now_ms(), 0, key, 'x' * (2 << 20))
    unknown = base.record('colour', 3, 'failure', 0, 0, key, '""') + base.record('end', 3, 'success', 0, 0, key, '""') + \
        base.record('accepted', 'never', 'failure', 1, 0, key, '{}') + base.record('') + base.record('end') + \
        base.record('accepted', 1500000, 'failure', base.now_ms(), 0, key, '{"event":5}') + \
        base.attempt_record(3, key, 'many', 1) + base.end_record(-3, key) + base.end_record(3, '') + \
        base.record('end', 3, 'failure', 0, 0, key, 'no JSON') + base.end_record(1 << 70, key)
    # The content, what must arrive, and how many damaged lines are kept (None: more than can be told here).
    cases = {
        'empty': (b'', set(), 0),
        'with itself': (data + data, survivors, 0),
        'with itself, three times': (data * 3, survivors, 0),
        'half of it, then all of it': (b''.join(lines[:len(lines) // 2]) + data, survivors, 0),
        'zeros in the middle': (data[:len(lines[0])] + bytes(5000) + data[len(lines[0]):],
                                survivors - must_survive(lines[1], ()), 1),
        'zeros, then a line end': (data + bytes(100) + b'\n', survivors, 1),
        '1 MB of garbage': (noise, set(), None),
        'garbage, then good records': (noise + b'\n' + data, survivors, None),
        'good records, then garbage': (data + noise, survivors, None),
        'a line of 2 MB': (lines[0] + long_line + b''.join(lines[1:]), survivors, None),
        'a line of 2 MB without a CRC': (lines[0] + b'y' * (2 << 20) + b'\n' + b''.join(lines[1:]), survivors, None),
        'unknown words and values': (unknown + data + unknown, survivors, None),
        'end before its alert': (base.end_record(2000000, key) + base.attempt_record(2000000, key, 3, 1) + data + accepted,
                                 survivors | {new}, 0),
        'line ends of Windows': (data.replace(b'\n', b'\r\n'), set(), len(lines)),
        'lost line ends': (data.replace(b'\n', b'', 3), must_survive(data, (0, 1, 2, 3)), 1),
        'a good record behind half a line': (data + b'half a line' + accepted + base.accepted_record(key, late),
                                             survivors | {late}, 1),
        'acceptance of the future, and of 1970': (
            data + base.accepted_record(key, late, wall_ms=base.now_ms() + 10 * base.HOUR_MS) +
            base.accepted_record(key, moved, wall_ms=0), survivors | {late, moved}, 0),
        'acceptance before all time': (data + base.accepted_record(key, ancient, wall_ms=-(1 << 62)), survivors, 1),
    }
    sink.up()
    for name, (content, must, bad) in cases.items():
        sink.forget()
        place.fill(content)
        for binary in (t.binary, t.binary_test):
            got = set(place.waiting(binary))
            t.check('%s: --pending shows the good records' % name, must <= got, base.some(must - got))
        process = place.start()
        missing = sink.wait(must, 10)
        t.check('%s: the good records arrive' % name, not missing, base.some(missing))
        base.until(lambda: not place.waiting(), 5)
        t.equal('%s: nothing else waits' % name, place.waiting(), [])
        t.check('%s: nothing is made up' % name, set(sink.seen) <= must | set(executions), list(sink.seen))
        t.check('%s: the journal is written anew' % name, base.until(
            lambda: all(map(base.read_line, filter(None, base.read(place.path()).split(b'\n')))), 10))
        base.stop(t, process, '%s: exit code' % name)
        kept = base.read(place.path('journal.damaged'))
        told = process.lines(DAMAGED % r'\d+')
        if bad is not None:
            t.check('%s: so many damaged lines are logged and kept' % name,
                    len(kept.split(b'\n')) - 1 == bad and (process.lines(DAMAGED % bad) if bad else not told), [len(kept), told])
        t.check('%s: what is damaged is logged' % name, bool(told) == bool(kept), [told, len(kept)])
        t.check('%s: at most 1 MiB of it is kept' % name, len(kept) <= 1 << 20, len(kept))
        process = place.start()
        t.check('%s: the second start finds all well' % name,
                not process.lines(r' (error|warn): journal: '), process.lines(r'journal'))
        base.stop(t, process, '%s: exit code of the second start' % name)


@harness.limit(30, 60)
def test_damaged_again_and_again(t):
    """One file holds what was damaged, at most 1 MiB of it, however often that happens."""
    place, sink = base.refused_place(t)
    sink.up()
    place.fill(b'')
    for number in range(5):
        noise = b'damage %d ' % number + b'z' * 300000
        base.write(place.path(), base.read(place.path()) + noise + b'\n')
        process = place.start()
        t.check('start %d: it is logged' % number, process.wait_log(DAMAGED % 1, 5), base.tail(process))
        base.stop(t, process)
        kept = base.read(place.path('journal.damaged'))
        t.check('start %d: at most 1 MiB is kept' % number, 0 < len(kept) <= 1 << 20, len(kept))
        if number == 0:
            t.equal('the first one is there', kept, noise + b'\n')
    t.equal('there is no other file', sorted(os.listdir(place.state)), ['journal', 'journal.damaged', 'lock'])


@harness.limit(30, 60)
def test_damaged_while_rewriting(t):
    """What a rewriting that was cut short leaves behind does not count."""
    place, sink = base.refused_place(t)
    data, executions = base_journal(t, place, 6)
    key = base.webhook_key(place.webhooks[0]['url'])
    sink.up()
    for name, content in (('half of it', data[:len(data) // 2]), ('garbage', b'\xff' * 5000), ('empty', b''),
                          ('a whole one', base.accepted_record(key, harness.guid()))):
        sink.forget()
        place.fill(data)
        base.write(place.path('journal.new'), content)
        process = place.start()
        base.arrive(t, '%s: the alerts of the journal arrive' % name, sink, must_survive(data, ()))
        base.stop(t, process)
        t.check('%s: journal.new is gone' % name, not os.path.exists(place.path('journal.new')))
    place.fill(data)
    base.write(place.path('journal.new'), data)
    place.waiting()
    t.check('--pending leaves it alone', os.path.exists(place.path('journal.new')))


@harness.limit(30, 60)
def test_torn_end_that_is_not_text(t):
    """A file system that has made the file longer, but not written it: zeros at the end, or nothing but zeros."""
    place, sink = base.refused_place(t)
    data, executions = base_journal(t, place, 6)
    sink.up()
    for content, must in ((data + bytes(70000), must_survive(data, ())), (bytes(100000), set())):
        sink.forget()
        place.fill(content)
        base.same(t, '--pending shows the good records', place.waiting(), must)
        process = place.start()
        base.arrive(t, 'the good records arrive', sink, must)
        torn = len(content) - len(data) if must else len(content)
        t.check('it is logged', process.wait_log(TORN % torn, 5), base.tail(process))
        t.check('the journal is written anew', base.until(lambda: b'\0' not in base.read(place.path()), 5))
        base.stop(t, process)
        process = place.start()
        t.check('the second start finds all well', not process.lines(r' (error|warn): journal: '), process.lines(r'journal'))
        base.stop(t, process)


# ---- Clocks ---------------------------------------------------------------------------------------------------------


@harness.limit(40, 60)
def test_clock_set_while_running(t):
    """The wall clock jumps by hours, forth and back: retries, age, rate limit and duplicates do not care."""
    shim = base.Shim(t)
    sink = t.add(base.Sink(lambda call: 408 if call.number <= 2 else 200))      # 408 is held against no other alert
    place = base.Place(t, [{'url': sink.url()}], rateLimit=2, deduplication={'enable': True, 'ttlMinutes': 1},
                       butlerWebhook={'maxAgeHours': 2000})
    process = place.start(binary=t.binary_test, env=shim.env)
    sent = []

    def fire(task, execution=None):
        execution = execution or harness.guid()
        sent.append(execution)
        process.send(base.alert(execution, task))
        return execution

    for hours in (100, -100, 5000, 0):
        task = harness.guid()
        first = fire(task)
        t.require('the first alert of a task is accepted', process.wait_log('accepted: .*%s' % first), base.tail(process))
        begin = time.monotonic()
        shim.set(wall_offset_ms=hours * base.HOUR_MS)
        process.send(base.alert(first, task))
        t.check('%d h: a duplicate stays one' % hours, process.wait_log('duplicate ignored: .*%s' % first, 3))
        second = fire(task)
        other = fire(harness.guid())
        process.wait_log('accepted: .*%s' % other)
        if time.monotonic() - begin < 1.8:
            t.check('%d h: the rate limit still holds' % hours, not process.lines('accepted: .*%s' % second))
        time.sleep(max(0, 2.2 - (time.monotonic() - begin)))
        third = fire(task)
        t.check('%d h: the rate limit ends in time' % hours, process.wait_log('accepted: .*%s' % third, 5))
        base.arrive(t, '%d h: retries go on' % hours, sink, [first, other, third], 15)
    t.equal('nothing became too old', process.lines(r' given up '), [])
    t.check('the shim moved the clock', shim.get('hits') > 0)


@harness.limit(40, 60)
def test_clock_of_windows_across_restart(t):
    """Rate limit and de-duplication are refilled from the journal, by the wall clock, in accepted and in window lines."""
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}], rateLimit=300, deduplication={'enable': True, 'ttlMinutes': 10})
    key = base.webhook_key(sink.url())
    task = {name: harness.guid() for name in ('now', 'young', 'old', 'future', 'far')}
    ages = {'now': 0, 'young': 200, 'old': 320, 'future': -3600, 'far': 700}
    run = {name: harness.guid() for name in task}
    journal = b''
    for number, (name, seconds) in enumerate(ages.items(), 1):
        journal += base.accepted_record(key, run[name], base.now_ms() - seconds * 1000, number, task[name])
        journal += base.end_record(number, key)
    place.fill(journal)
    process = place.start()
    for name in task:
        process.send(base.alert(run[name], harness.guid()))     # the same execution, of another task
        process.send(base.alert(harness.guid(), task[name]))    # another execution of the same task
    last = base.send(process, 1)[0]
    sink.wait([last])
    fresh = {name for name in task if process.lines(r'accepted: .*\(%s\)' % task[name])}
    again = {name for name in task if process.lines(r'accepted: .*execution %s,' % run[name])}
    t.equal('tasks whose rate limit is over', fresh, {'old', 'far'})
    t.equal('executions that are duplicates no more', again, {'far'})
    base.stop(t, process)


@harness.limit(40, 60)
def test_clock_windows_survive_rewriting(t):
    """Once the lines of delivered alerts are gone, their windows are still in the journal."""
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}], rateLimit=300, deduplication={'enable': True, 'ttlMinutes': 10},
                       butlerWebhook=base.OURS)
    process = place.start(binary=t.binary_test)
    task, execution = harness.guid(), harness.guid()
    process.send(base.alert(execution, task))
    base.arrive(t, 'the alert arrives', sink, [execution])
    rest = base.send(process, 120)
    base.arrive(t, 'all arrive', sink, rest)
    t.check('the journal was rewritten', base.until(lambda: execution.encode() not in base.read(place.path()), 10),
            len(base.read(place.path())))
    base.kill(process)
    words = [fields[0] for fields in place.journal()]
    t.check('it has lines of windows', 'window' in words, sorted(set(words)))
    for how in ('kill -9', 'a stop'):
        process = place.start(binary=t.binary_test)
        process.send(base.alert(harness.guid(), task))
        process.send(base.alert(execution, harness.guid()))
        last = base.send(process, 1)[0]
        base.arrive(t, '%s: another alert arrives' % how, sink, [last])
        t.check('%s: the rate limit still holds' % how,
                not process.lines(r'accepted: .*\(%s\)' % task) and process.wait_log(r'held back by the rate limit', 3),
                base.tail(process))
        t.check('%s: the duplicate is still one' % how,
                not process.lines(r'accepted: .*execution %s,' % execution) and process.wait_log('duplicate ignored', 3))
        base.stop(t, process)


@harness.limit(40, 60)
def test_clock_of_age_across_restart(t):
    """Age counts from the first acceptance, by the wall clock; what is too old becomes a dead letter, and nothing else."""
    sink = t.add(base.Sink(lambda call: 408))
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook=base.OURS)
    key = base.webhook_key(sink.url())
    age = base.OURS['maxAgeHours'] * base.TEST_HOUR_MS
    old, young, future = harness.guid(), harness.guid(), harness.guid()
    place.fill(base.accepted_record(key, old, base.now_ms() - age - 20000) +
               base.accepted_record(key, young, base.now_ms() - age + 200000) +
               base.accepted_record(key, future, base.now_ms() + 100 * base.HOUR_MS))
    ages = {entry['alert']['executionId']: entry['ageSeconds'] for entry in place.pending()['waiting']}
    t.check('--pending tells the ages', abs(ages.get(old, 0) - age / 1000 - 20) < 15 and
            abs(ages.get(young, 0) - age / 1000 + 200) < 15 and 0 <= ages.get(future, -1) < 15, ages)
    process = place.start(binary=t.binary_test)
    t.check('too old: given up', process.wait_log(r' given up for failure 1 after \d+ attempts?: .*an alert is kept', 15),
            base.tail(process))
    sink.wait_calls(6, 10)
    t.check('it is a dead letter', base.until(lambda: place.letters() and len(place.waiting()) == 2, 5), place.letters())
    base.kill(process)
    t.equal('only that one', [letter['alert']['executionId'] for letter in place.letters()], [old])
    base.same(t, 'the others wait', place.waiting(), [young, future])
    t.equal('--pending says so', [entry['alert']['executionId'] for entry in place.pending()['dead']], [old])


@harness.limit(40, 60)
def test_clock_of_age_after_a_start(t):
    """In the first hour after a start nothing becomes too old: after a long outage the webhooks may be back by then."""
    sink = t.add(base.Sink(lambda call: 500))
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook={'maxAgeHours': 1})
    key = base.webhook_key(sink.url())
    old = [harness.guid() for _ in range(3)]
    place.fill(b''.join(base.accepted_record(key, execution, base.now_ms() - hours * base.HOUR_MS)
                        for hours, execution in zip((2, 1000, 200000), old)))
    process = place.start()
    base.until(lambda: all(len(sink.seen[execution]) > 1 for execution in old), 20)
    t.check('they are tried again and again', all(len(sink.seen[execution]) > 1 for execution in old), sink.seen)
    t.equal('none is given up', (process.lines(' given up '), sorted(place.waiting())), ([], sorted(old)))
    sink.behave = None
    base.arrive(t, 'in the end they arrive', sink, old)
    base.stop(t, process)


@harness.limit(40, 60)
def test_clock_of_backoffs_across_restart(t):
    """After a start all that waits is due, whatever the clock says of its last attempt; the attempts are counted on."""
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}])
    key = base.webhook_key(sink.url())
    now = base.now_ms()
    times = {'long ago': now - 10 * base.HOUR_MS, 'lately': now - 1000, 'clock set back': now + 10 * base.HOUR_MS}
    execution = {name: harness.guid() for name in times}
    journal = b''
    for number, (name, tried) in enumerate(times.items(), 1):
        journal += base.accepted_record(key, execution[name], tried - 1000, number)
        journal += base.attempt_record(number, key, 3, tried)
    place.fill(journal)
    entries = place.pending()['waiting']
    t.check('--pending shows what the journal has', len(entries) == 3 and all(
        entry['attempts'] == 3 and entry['lastError'] == 'status 500' and entry['lastAttemptAt'] and
        entry['ageSeconds'] >= 0 for entry in entries), entries)
    process = place.start()
    base.arrive(t, 'all arrive', sink, execution.values())
    process.wait_log(' delivered to ', 5, count=3)
    t.check('attempts are counted on', all('attempt 4' in line for line in process.lines(' delivered to ')),
            process.lines(' delivered to '))
    base.stop(t, process)


@harness.limit(80, 90)
def test_clock_sleep_of_the_machine(t):
    """CLOCK_BOOTTIME jumps, as after a sleep: long backoffs are due, of alerts and of a webhook that is down."""
    shim = base.Shim(t)
    sink = t.add(base.Sink(lambda call: 408))
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook=base.OURS)
    process = place.start(binary=t.binary_test, env=shim.env)
    executions = base.send(process, 8)

    def sleep(seconds):
        """The machine sleeps so long. The loop's own wait goes on, but a datagram wakes it."""
        shim.set(boot_offset_ms=shim.get('boot_offset_ms') + 1000 * seconds)
        process.send(b'wake up')

    for calls in range(1, 6):       # five failures each: backoffs of up to 16 s, each cut short by a sleep of 20 s
        t.require('attempt %d of each' % calls, base.until(
            lambda: all(len(sink.seen[execution]) >= calls for execution in executions), 10), base.tail(process))
        sleep(20)
    t.require('attempt 6 of each', base.until(
        lambda: all(len(sink.seen[execution]) >= 6 for execution in executions), 10), base.tail(process))
    process.wait_log(r' to failure 1: status 408; attempt 6, next in ', count=8)
    waits = [float(re.search(r'next in ([\d.]+) s', line).group(1))
             for line in process.lines(r' to failure 1: status 408; attempt 6, next in ')]
    t.check('some have long to wait', len(waits) == 8 and max(waits) > 8, waits)
    sink.behave = None
    shim.set(boot_offset_ms=shim.get('boot_offset_ms') + 300000)    # nothing wakes the loop: it looks every 30 s
    base.arrive(t, 'after the sleep they arrive', sink, executions, 33)

    sink.behave = lambda call: 500
    sink.forget()
    executions = base.send(process, 3)
    t.check('it is down', process.wait_log(r' webhook failure 1 is down: status 500'), base.tail(process))
    for failures in range(1, 7):        # probes are ever more seldom
        count = len(sink.calls)
        sleep(2 ** failures)
        t.require('the next probe', base.until(lambda: len(sink.calls) > count, 10), base.tail(process))
    sink.behave = None
    sleep(300)
    base.arrive(t, 'the webhook is up again', sink, executions, 7)
    t.equal('none became too old', process.lines(' given up '), [])
    base.stop(t, process)


@harness.limit(40, 60)
def test_age_ends_in_a_dead_letter(t):
    """maxAgeHours, with the hours of the test build: from the acceptance, over a restart, also while the webhook is down."""
    sink = t.add(base.Sink(lambda call: 500))
    down = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}, {'url': down.url()}], butlerWebhook={'maxAgeHours': 48})     # 4 s
    process = place.start(binary=t.binary_test)
    execution = base.send(process, 1)[0]
    begin = time.monotonic()
    sink.wait_calls(1)
    base.kill(process)
    t.equal('it waits', len(place.pending(t.binary_test)['waiting']), 2)
    process = place.start(binary=t.binary_test)
    t.check('given up for both', process.wait_log(' given up for ', 15, count=2), base.tail(process))
    t.check('not before its time', time.monotonic() - begin >= 48 * base.TEST_HOUR_MS / 1000 - 0.3, time.monotonic() - begin)
    base.until(lambda: len(place.letters()) == 2, 5)
    t.equal('both are dead letters', sorted(letter['webhook'] for letter in place.letters()), ['failure 1', 'failure 2'])
    t.equal('of that alert', {letter['alert']['executionId'] for letter in place.letters()}, {execution})
    t.check('nothing waits', base.until(lambda: not place.waiting(t.binary_test), 10), base.some(place.waiting(t.binary_test)))
    base.stop(t, process)


# ---- webhook-id -----------------------------------------------------------------------------------------------------


@harness.limit(30, 60)
def test_id_is_the_same_everywhere(t):
    """Two servers that receive the same datagram, and one that has lost its state directory, give the same webhook-id."""
    sink = t.add(base.Sink())
    places = [base.Place(t, [{'url': sink.url()}, {'url': sink.url('/other'), 'kind': 'aborted'}], name=name)
              for name in ('one', 'two')]
    execution, odd = harness.guid(), 'no GUID at all'
    wanted = base.webhook_id(execution, base.webhook_key(sink.url()))
    for place in places + places[:1]:
        process = place.start()
        for run in (execution, odd):
            process.send(base.alert(run, task_id='0a5a8d5f-9a8b-4b0e-8a3c-1f5b7c9d2e4f'))
        process.send(base.alert(execution, id='/scheduler-task-aborted/'))
        t.check('all arrive', process.wait_log(' delivered to ', count=3), base.tail(process))
        base.stop(t, process)
        shutil.rmtree(place.state)
    ids = [call.id for call, _ in sink.calls if call.execution == execution and call.path == '/hook']
    t.equal('of the execution, the kind and the webhook', ids, [wanted] * 3)
    ids = [call.id for call, _ in sink.calls if call.path == '/other']
    t.equal('another kind, another id', ids, [base.webhook_id(execution, base.webhook_key(
        sink.url('/other'), kind='aborted'), 'aborted')] * 3)
    ids = {call.id for call, _ in sink.calls if call.execution == odd}
    t.check('without a GUID: of the JSON', len(ids) == 1 and re.fullmatch(r'msg_[0-9a-f]{32}_f_%s' % base.webhook_key(
        sink.url())[:8], list(ids)[0]), ids)


# ---- Power cuts -----------------------------------------------------------------------------------------------------


@harness.limit(40, 120)
def test_power_cut(t):
    """What has waited for more than a moment is on the disk: what a power cut leaves has it all."""
    shim = base.Shim(t)
    sink = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook=base.OURS)
    accepted = []
    for number in range(base.pick(4, 20)):
        process = place.start(binary=t.binary_test, env=shim.env)
        executions = base.send(process, 5)
        accepted += executions
        data = base.read(place.path())
        end = data.rindex(executions[-1].encode())
        begin = time.monotonic()
        t.check('round %d: the alerts are synced soon' % number, base.until(lambda: shim.get('synced_len') > end, 5, 0.002),
                [shim.get('synced_len'), end])
        base.note(t, 'synced %.0f ms after the log had told' % (1000 * (time.monotonic() - begin)))
        base.cut_power(place, process, shim)
        base.same(t, 'round %d: all wait' % number, place.waiting(), accepted)
    sink.up()
    process = place.start(binary=t.binary_test)
    base.arrive(t, 'all arrive', sink, accepted)
    base.stop(t, process)


@harness.limit(40, 60)
def test_sync_after_a_start(t):
    """What a start has read, and the directory after a file was made, are synced without waiting for an alert."""
    shim = base.Shim(t)
    sink = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook=base.OURS)
    process = place.start(binary=t.binary_test, env=shim.env)
    t.check('a new directory is synced', base.until(lambda: shim.get('folder_syncs') > 0, 5))
    base.stop(t, process)
    data = base.read(place.path()) + b''.join(
        base.accepted_record(base.webhook_key(sink.url()), harness.guid()) for _ in range(20))
    place.fill(data)
    before = shim.get('syncs')
    process = place.start(binary=t.binary_test, env=shim.env)
    t.check('what a start has read is synced', base.until(
        lambda: shim.get('syncs') > before and shim.get('synced_len') >= len(data), 5), [shim.get('syncs'), before])
    base.stop(t, process)


@harness.limit(40, 60)
def test_sync_only_what_waits(t):
    """What is delivered at once needs no sync; what waits shares one."""
    shim = base.Shim(t)
    sink = t.add(base.Sink())
    down = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}, {'url': down.url(), 'kind': 'aborted'}], butlerWebhook=base.OURS)
    process = place.start(binary=t.binary_test, env=shim.env)
    base.arrive(t, 'the first alert arrives', sink, base.send(process, 1))
    base.settled(shim)
    before = shim.get('syncs')
    for _ in range(15):     # not enough for a rewriting
        base.arrive(t, 'an alert arrives', sink, base.send(process, 1))
    alone = shim.get('syncs') - before
    t.check('delivered at once: few syncs', alone <= 5, alone)
    shim.set(sync_delay_ms=20)
    before = shim.get('syncs')
    executions = [harness.guid() for _ in range(400)]
    for execution in executions:
        process.send(base.alert(execution, id='/scheduler-task-aborted/'))
    t.check('they are accepted', process.wait_log(' accepted: .*', count=416), base.tail(process))
    base.until(lambda: shim.get('syncs') > before)
    together = shim.get('syncs') - before
    t.check('many that wait share a sync', 0 < together <= 60, together)
    base.note(t, '%d syncs for 15 alerts one by one, %d for 400 at once' % (alone, together))
    base.kill(process)
    base.same(t, 'all of them wait', place.waiting(), executions)
