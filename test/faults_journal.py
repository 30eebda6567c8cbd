"""kill -9 at random moments, torn and damaged journals, clocks that jump: what is accepted arrives all the same."""

import datetime
import json
import os
import re
import time

import faults_base as base
import harness

OURS = {'timeoutSeconds': 1, 'maxAgeHours': 8760}


# ---- kill -9 --------------------------------------------------------------------------------------------------------


def kill_rounds(t, binary, rounds, rate):
    """Kills the program at random moments under load, and stops it now and then; all that it accepted must arrive."""
    numbers = base.rng(t)
    bad = t.add(base.Sink(base.fickle(numbers)))
    good = t.add(base.Sink())
    place = base.Place(t, [{'url': bad.url()}, {'url': good.url()}], butlerWebhook=OURS)
    load = t.add(base.Load(place.port, rate))
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


@base.limits(60, 900)
def test_kill_release(t):
    kill_rounds(t, t.binary, base.pick(8, 200), 150)


@base.limits(60, 900)
def test_kill_rewriting(t):
    """The same with the test build, which rewrites its journal all the time and keeps five alerts in memory."""
    kill_rounds(t, t.binary_test, base.pick(8, 100), 120)


@base.limits(60, 300)
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
    place = base.Place(t, [{'url': sink.url()}, {'url': down.url(), 'kind': 'aborted'}], butlerWebhook=OURS)
    aborted = []
    rewritten = 0
    for n in range(base.pick(4, 40)):
        process = place.start(binary=t.binary_test, env=shim.env)
        load = t.add(base.Load(place.port, 200, ids=('/scheduler-task-failed/',) * 7 + ('/scheduler-task-aborted/',)))
        begin = os.stat(place.path()).st_ino
        time.sleep(numbers.uniform(0.5, 1.2))
        base.kill(process)
        load.close()
        rewritten += os.stat(place.path()).st_ino != begin
        accepted = set(base.accepted(process))
        aborted += [execution for number, execution in enumerate(load.sent) if number % 8 == 6 and execution in accepted]
        lost = set(aborted) - set(place.waiting())
        t.check('round %d: all that wait are in the journal' % n, not lost, base.some(lost))
        if len(aborted) > 150:      # what waits must not make up most of the journal, or it is not rewritten any more
            place.fill(b'')
            aborted = []
    t.check('the journal was rewritten meanwhile', rewritten > 0, rewritten)
    down.up()
    process = place.start(binary=t.binary_test, env=shim.env)
    base.arrive(t, 'every accepted alert arrives', down, aborted, 30)
    base.stop(t, process)


def milliseconds(text):
    """Milliseconds since 1970 of a time as the program prints it."""
    return datetime.datetime.fromisoformat(text.replace('Z', '+00:00')).timestamp() * 1000


@base.limits(30, 60)
@base.waits
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
    t.check('the times of the attempts are kept', entry['lastAttemptAt'] and entry['nextAttemptAt'], entry)
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
        # The one with a backoff may come late, and so may the one that was the probe of a webhook that is down.
        order = [call.execution for call, _ in sink.calls if call.execution in rest[1:]]
    t.check('oldest first', sum(a != b for a, b in zip(order, rest[1:])) <= 2 or order == sorted(order, key=rest.index),
            [rest.index(execution) for execution in order])
    t.equal('the webhook-id is the old one', sink.taken[first][0][0], entry['webhookId'])
    match = process.wait_log(r'delivered to failure 1 \("Desk"\): 200 in \d+ ms, attempt (\d+)')
    attempts = [int(re.search(r'attempt (\d+)', line).group(1)) for line in process.lines(r' delivered to ')]
    t.check('attempts are counted on', match and max(attempts) > 2, attempts)


@base.limits(30, 60)
def test_restart_keeps_the_largest_alerts(t):
    """Datagrams of 65 kB, also such that their JSON is six times as long."""
    place, sink = refused_place(t)
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


@base.limits(30, 60)
def test_stop_journals_the_inbox(t):
    """SIGTERM right after a burst: all that was received waits in the journal, and the end comes within 5 s."""
    place, sink = refused_place(t)
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


def refused_place(t, **config):
    """A place whose webhook refuses connections until sink.up()."""
    sink = t.add(base.Sink(up=False))
    return base.Place(t, [{'url': sink.url()}], **config), sink


def lines_of(data):
    return data.splitlines(keepends=True) if isinstance(data, str) else [line + b'\n' for line in data.split(b'\n')[:-1]]


def words_of(lines):
    return [(base.read_line(line[:-1]) or ['?'])[0] for line in lines]


@base.limits(60, 300)
def test_journal_form(t):
    """The lines are as documented: that a person or another program can read them is part of the interface."""
    place, _ = refused_place(t, rateLimit=300)
    data, executions = base.journal_with(t, place, 3, messages=['plain', 'tab\tquote"backslash\\', 'Ä \U0001F600 ü'])
    lines = lines_of(data)
    t.check('each line has its CRC', all(base.read_line(line[:-1]) for line in lines), repr(data[:500]))
    records = [base.read_line(line[:-1]) for line in lines]
    first = records[0]
    t.check('the webhooks come first', first[0] == 'webhook' and first[2:] and first[2] == 'failure', first)
    key = base.webhook_key(place.webhooks[0]['url'])
    t.equal('the key of the webhook', first[1], key)
    t.equal('place, number and description', first[3:], ['1', '1', '""'])
    for fields in (fields for fields in records if fields[0] == 'accepted'):
        alert = json.loads(fields[3])
        t.check('an accepted line', re.fullmatch(key + r':msg_[0-9a-f]{32}', fields[2]) and
                abs(int(fields[1]) - base.now_ms()) < 60000 and alert['executionId'] in executions, fields)
    t.equal('the mode of the directory', oct(os.stat(place.state).st_mode & (0o700 | harness.SYSTEM.others)), oct(0o700))
    t.check('no file can be read by others', all(os.stat(place.path(name)).st_mode & harness.SYSTEM.others_file == 0
                                                 for name in os.listdir(place.state)), os.listdir(place.state))


@base.limits(60, 300)
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
    t.equal('webhook lines', [fields[1:] for fields in records if fields[0] == 'webhook'],
            [[keys[0], 'failure', '1', '2', '"A"'], [keys[1], 'failure', '2', '2', '"B \\"quoted\\""'],
             [keys[2], 'aborted', '1', '1', '""']])
    accepted = [fields for fields in records if fields[0] == 'accepted']
    t.equal('accepted lines', len(accepted), 1)
    t.equal('its webhooks', [pair.split(':')[0] for pair in accepted[0][2].split(',')], keys[:2])
    for secret in (b'geheim', b'topsecret', b'/hook'):
        t.check('no URL in the journal', secret not in data, repr(data[:800]))


@base.limits(60, 300)
def test_torn_last_record(t):
    """A journal that ends anywhere inside its last record, whichever record that is: all others are there."""
    place, sink = refused_place(t)
    data, executions = base.journal_with(t, place, 6)
    lines = lines_of(data)
    words = words_of(lines)
    ids = {alert['executionId']: id for id, (_, _, alert) in base.waiting(map(base.read_line, (
        line[:-1] for line in lines))).items()}
    key = base.webhook_key(place.webhooks[0]['url'])
    t.require('attempts are in the journal', 'retry' in words, words)
    last = {
        'accepted': next(line for line in lines if executions[-1].encode() in line),
        'waiting': base.record('waiting', base.now_ms(), '%s:%s' % (key, base.new_id()), base.body(harness.guid())),
        'retry': next(line for line in lines if b'\tretry\t' in line[:20]),
        'delivered': base.record('delivered', ids[executions[0]]),
        'webhook': lines[0],
    }
    runs = 0
    wrong = []
    for word, line in last.items():
        kept = executions[:-1] if word == 'accepted' else executions
        begin = b''.join(other for other in lines if other is not line)
        every = 1 if base.LONG or word in ('accepted', 'delivered') else 7
        for cut in range(0, len(line) - 1, every):
            place.fill(begin + line[:cut])
            runs += 1
            got = place.waiting()
            if sorted(got) != sorted(kept):
                wrong.append('%s cut to %d of %d bytes: %d of %d wait' % (word, cut, len(line), len(got), len(kept)))
    t.check('cut at any byte, the other records are all there (%d cuts)' % runs, not wrong, base.some(wrong))
    place.fill(begin + last['delivered'])
    base.same(t, 'whole, the last record counts', place.waiting(), executions[1:])
    t.equal('--pending has written nothing', sorted(os.listdir(place.state)), ['journal'])

    # Some of them with the program itself, which cuts the torn end off, tells it, and delivers the rest.
    line = last['accepted']
    begin = b''.join(other for other in lines if other is not line)
    sink.up()
    for cut in (1, 9, len(line) // 2, len(line) - 2) if not base.LONG else range(1, len(line) - 1, 5):
        sink.forget()
        place.fill(begin + line[:cut])
        process = place.start()
        missing = sink.wait(executions[:-1])
        t.check('cut to %d of %d bytes: the rest arrives' % (cut, len(line)), not missing, base.some(missing))
        t.check('cut to %d bytes: it is told' % cut,
                process.wait_log(r' warn: journal: a torn last line \(%d bytes\) was cut off' % cut, 5), base.tail(process))
        base.stop(t, process)
        t.check('cut to %d bytes: nothing torn is left' % cut,
                all(base.read_line(rest[:-1]) for rest in lines_of(base.read(place.path()))) and
                base.read(place.path())[-1:] in (b'\n', b''), repr(base.read(place.path())[-300:]))


def must_survive(data, damaged):
    """
    The executionIds that are accepted in lines of data that damage left alone, and have no outcome anywhere. damaged:
    the numbers of the lines that it struck, their line ends included.
    """
    survivors = {}
    records = [base.read_line(line[:-1]) or ['?'] for line in lines_of(data)]
    for number, fields in enumerate(records):
        if fields[0] == 'accepted' and number not in damaged:
            survivors[fields[2].split(':')[1]] = json.loads(fields[3])['executionId']
        elif fields[0] in ('delivered', 'dead', 'dropped'):
            survivors.pop(fields[1], None)
    return set(survivors.values())


def base_journal(t, place, count=14):
    """A journal of the program in which count alerts wait, and a few are delivered. Gives its bytes and all executionIds."""
    data, executions = base.journal_with(t, place, count)
    ids = list(base.waiting(filter(None, (base.read_line(line[:-1]) for line in lines_of(data)))))
    lines = lines_of(data)
    lines.insert(len(lines) // 2, base.record('delivered', ids[1]))
    lines.append(base.record('dead', ids[4]))
    return b''.join(lines), executions


@base.limits(60, 600)
def test_random_bits(t):
    """A few bits flipped anywhere: all records in other lines survive, and nothing is made up."""
    numbers = base.rng(t)
    place, sink = refused_place(t)
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
            struck.add(next(i for i in range(len(starts) - 1) if starts[i] <= at < starts[i + 1]))
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
        aside = [name for name in os.listdir(place.state) if name.startswith('journal.damaged-')]
        bad = [line for line in spoilt.split(b'\n')[:-1] if base.read_line(line) is None]
        if bad:
            t.check('damage %d: it is told' % number,
                    process.lines(r' error: journal: \d+ damaged lines? set aside in .*journal\.damaged-\d{8}T\d{6}Z'),
                    base.tail(process))
            kept = b''.join(base.read(place.path(name)) for name in aside)
            t.check('damage %d: the damaged lines are kept' % number, aside and all(
                line in kept for line in bad if b'\0' not in line), [aside, len(kept), len(bad)])
        else:
            t.equal('damage %d: nothing is set aside' % number, aside, [])


@base.limits(60, 300)
def test_damaged_journals(t):
    """Whole files that are not what they should be: the program starts, and the good records arrive."""
    place, sink = refused_place(t)
    data, executions = base_journal(t, place, 8)
    place.fill(b'')
    other, others = base_journal(t, place, 5)
    lines = lines_of(data)
    key = base.webhook_key(place.webhooks[0]['url'])
    survivors = must_survive(data, ())
    numbers = base.rng(t)
    id, new = base.new_id(numbers), harness.guid()
    accepted = base.accepted_record(key, new, id=id)
    late, moved = harness.guid(), harness.guid()
    noise = bytes(numbers.randrange(256) for _ in range(1 << 20))
    long_line = base.record('accepted', base.now_ms(), '%s:%s' % (key, base.new_id(numbers)), 'x' * (2 << 20))
    glued = data.replace(b'\n', b'', 3)
    unknown = base.record('colour', 'red') + base.record('accepted', 'never', 'x', '{}') + base.record('') + \
        base.record('delivered') + base.record('retry', id, 'many', '1', '2', '"?"')
    cases = {
        'empty': (b'', set(), False),
        'with itself': (data + data, survivors, False),
        'with itself, three times': (data * 3, survivors, False),
        'with a second journal': (data + other, survivors | must_survive(other, ()), False),
        'half of it, then all of it': (b''.join(lines[:len(lines) // 2]) + data, survivors, False),
        'zeros at the end': (data + bytes(70000), survivors, False),
        'zeros in the middle': (data[:len(lines[0])] + bytes(5000) + data[len(lines[0]):], survivors -
                                must_survive(b''.join(lines[1:2]), ()), True),
        'only zeros': (bytes(100000), set(), False),
        'zeros, then a line end': (data + bytes(100) + b'\n', survivors, True),
        '1 MB of garbage': (noise, set(), True),
        'garbage, then good records': (noise + b'\n' + data, survivors, True),
        'good records, then garbage': (data + noise, survivors, True),
        'a line of 2 MB': (lines[0] + long_line + b''.join(lines[1:]), survivors, True),
        'a line of 2 MB without a CRC': (lines[0] + b'y' * (2 << 20) + b'\n' + b''.join(lines[1:]), survivors, True),
        'unknown words': (unknown + data + unknown, survivors, True),
        'outcome before its alert': (base.record('delivered', id) + base.record('retry', id, 3, base.now_ms(),
                                     base.now_ms(), '"status 500"') + data + accepted, survivors | {new}, False),
        'line ends of Windows': (data.replace(b'\n', b'\r\n'), set(), True),
        'empty lines': (data.replace(b'\n', b'\n\n'), survivors, None),
        'lost line ends': (glued, must_survive(data, (0, 1, 2)), True),
        'a good record inside a damaged line': (data + b'half a line' + accepted, survivors | {new}, True),
        'acceptance of the future, and of 1970': (
            data + base.accepted_record(key, late, wall_ms=base.now_ms() + 10 * base.HOUR_MS) +
            base.accepted_record(key, moved, wall_ms=0) +
            base.accepted_record(key, new, wall_ms=-(1 << 62)), survivors | {late, moved}, None),
    }
    sink.up()
    for name, (content, must, aside) in cases.items():
        sink.forget()
        place.fill(content)
        got = set(place.waiting())
        t.check('%s: --pending shows the good records' % name, must <= got, base.some(must - got))
        process = place.start()
        missing = sink.wait(must, 10)
        t.check('%s: the good records arrive' % name, not missing, base.some(missing))
        t.check('%s: nothing is made up' % name, set(sink.seen) <= must | set(executions) | set(others) | {new}, sink.seen)
        base.until(lambda: not place.waiting(), 5)
        t.equal('%s: nothing else waits' % name, place.waiting(), [])
        base.stop(t, process, '%s: exit code' % name)
        found = [name for name in os.listdir(place.state) if name.startswith('journal.damaged-')]
        if aside is not None:
            t.equal('%s: something is set aside' % name, bool(found), aside)
            t.equal('%s: and told' % name, bool(process.lines(r' error: journal: \d+ damaged lines? set aside')), aside)
        process = place.start()
        t.check('%s: the second start finds all well' % name,
                not process.lines(r' (error|warn): journal: '), process.lines(r'journal'))
        base.stop(t, process, '%s: exit code of the second start' % name)


@base.limits(30, 60)
def test_damaged_while_rewriting(t):
    """What a rewriting that was cut short leaves behind does not count."""
    place, sink = refused_place(t)
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
    os.rename(place.path(), place.path('journal.new'))
    process = place.start()
    t.check('journal.new without a journal: it starts', process.running())
    base.stop(t, process)


# ---- Clocks ---------------------------------------------------------------------------------------------------------


@base.limits(40, 60)
@base.waits
def test_clock_set_while_running(t):
    """The wall clock jumps by hours, forth and back: retries, age, rate limit and duplicates do not care."""
    shim = base.Shim(t)
    sink = t.add(base.Sink(lambda call: 500 if call.number <= 2 else 200))
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


@base.limits(40, 60)
@base.waits
def test_clock_of_windows_across_restart(t):
    """Rate limit and de-duplication are refilled from the journal, by the wall clock, in accepted and in window lines."""
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}], rateLimit=300, deduplication={'enable': True, 'ttlMinutes': 10})
    key = base.webhook_key(sink.url())
    task = {name: harness.guid() for name in ('now', 'young', 'old', 'future', 'far')}
    ages = {'now': 0, 'young': 200, 'old': 320, 'future': -3600, 'far': 700}
    run = {name: harness.guid() for name in task}
    journal = b''
    for name, seconds in ages.items():
        id = base.new_id()
        journal += base.accepted_record(key, run[name], base.now_ms() - seconds * 1000, id, task[name])
        journal += base.record('delivered', id)
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


@base.limits(40, 60)
@base.waits
def test_clock_windows_survive_rewriting(t):
    """Once the lines of delivered alerts are gone, their windows are still in the journal."""
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}], rateLimit=300, deduplication={'enable': True, 'ttlMinutes': 10},
                       butlerWebhook=OURS)
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


@base.limits(40, 60)
@base.waits
def test_clock_of_age_across_restart(t):
    """Age counts from the first acceptance; too old is a dead letter, but not before one attempt since the start."""
    sink = t.add(base.Sink(lambda call: 500))
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook=OURS)
    key = base.webhook_key(sink.url())
    age = OURS['maxAgeHours'] * base.TEST_HOUR_MS
    old, young, future = harness.guid(), harness.guid(), harness.guid()

    def fill():
        place.fill(base.accepted_record(key, old, base.now_ms() - age - 20000) +
                   base.accepted_record(key, young, base.now_ms() - age + 200000) +
                   base.accepted_record(key, future, base.now_ms() + 100 * base.HOUR_MS))

    fill()
    ages = {entry['alert']['executionId']: entry['ageSeconds'] for entry in place.pending()['waiting']}
    t.check('--pending tells the ages', abs(ages.get(old, 0) - age / 1000 - 20) < 15 and
            abs(ages.get(young, 0) - age / 1000 + 200) < 15 and 0 <= ages.get(future, -1) < 15, ages)
    process = place.start(binary=t.binary_test)
    t.check('too old, and tried once: given up', process.wait_log(r' given up for failure 1 after \d+ attempts?: .*%s' % old,
                                                                  15), base.tail(process))
    t.check('it was tried before', sink.seen[old], sink.seen)
    sink.wait_calls(6, 10)
    t.check('it is a dead letter', base.until(lambda: place.letters() and len(place.waiting()) == 2, 5), place.letters())
    base.kill(process)
    t.equal('only that one', [letter['alert']['executionId'] for letter in place.letters()], [old])
    base.same(t, 'the others wait', place.waiting(), [young, future])
    t.equal('--pending says so', [entry['alert']['executionId'] for entry in place.pending()['dead']], [old])

    fill()
    sink.forget()
    sink.behave = None
    process = place.start(binary=t.binary_test)
    base.arrive(t, 'too old, but the attempt works: delivered', sink, [old, young, future])
    base.stop(t, process)

    fill()
    sink.forget()
    sink.down()
    process = place.start(binary=t.binary_test)
    t.check('nobody listens: given up after an attempt', process.wait_log(
        r' given up for failure 1 after [1-9]\d* attempts?: .*%s' % old, 20), base.tail(process))
    t.equal('only that one', len(process.lines(' given up for ')), 1)
    base.kill(process)


@base.limits(40, 60)
@base.waits
def test_clock_of_backoffs_across_restart(t):
    """After a start all that waits is due, whatever the clock says of its backoffs; the attempts are counted on."""
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}])
    key = base.webhook_key(sink.url())
    now = base.now_ms()
    hours = 10 * base.HOUR_MS
    waits = {
        'over': (now - 60000, now - 1000), 'long over': (now - hours, now - hours + 3000), 'soon': (now - 1000, now + 1500),
        'long': (now - 1000, now + 200000), 'clock set back, backoff short': (now + hours, now + hours + 1500),
        'clock set back, backoff long': (now + hours, now + hours + 250000),
    }
    execution = {name: harness.guid() for name in waits}
    journal = b''
    for name, (tried, next) in waits.items():
        id = base.new_id()
        journal += base.accepted_record(key, execution[name], tried - 1000, id)
        journal += base.record('retry', id, 3, tried, next, '"status 500"')
    place.fill(journal)
    entries = place.pending()['waiting']
    t.check('--pending shows what the journal has', len(entries) == 6 and all(
        entry['attempts'] == 3 and entry['lastError'] == 'status 500' and entry['lastAttemptAt'] and entry['nextAttemptAt'] and
        entry['ageSeconds'] >= 0 for entry in entries), entries)
    process = place.start()
    base.arrive(t, 'all arrive', sink, execution.values())
    process.wait_log(' delivered to ', 5, count=6)
    t.check('attempts are counted on', all('attempt 4' in line for line in process.lines(' delivered to ')),
            process.lines(' delivered to '))
    base.stop(t, process)


@base.limits(40, 60)
@base.waits
def test_clock_sleep_of_the_machine(t):
    """CLOCK_BOOTTIME jumps, as after a sleep: long backoffs are due."""
    shim = base.Shim(t)
    sink = t.add(base.Sink(lambda call: 500))
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook=OURS)
    process = place.start(binary=t.binary_test, env=shim.env)
    executions = base.send(process, 8)
    for calls in range(1, 6):       # five failures each: backoffs of up to 16 s, each cut short by a sleep of 20 s
        t.require('attempt %d of each' % calls, base.until(
            lambda: all(len(sink.seen[execution]) >= calls for execution in executions), 10), base.tail(process))
        shim.set(boot_offset_ms=20000 * calls)
    base.until(lambda: all(len(sink.seen[execution]) >= 6 for execution in executions), 10)
    time.sleep(0.5)
    waits = {}
    for line in process.lines(r' to failure 1: status 500; attempt \d+, next in '):
        match = re.search(r' alert (\d+) to .*next in ([\d.]+) s', line)
        waits[match.group(1)] = float(match.group(2))
    t.check('some have long to wait', len(waits) == 8 and max(waits.values()) > 8, waits)
    sink.behave = None
    shim.set(boot_offset_ms=300000)
    base.arrive(t, 'after the sleep they arrive', sink, executions, 7)
    t.equal('none became too old', process.lines(' given up '), [])
    base.stop(t, process)


@base.limits(40, 60)
@base.waits
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
