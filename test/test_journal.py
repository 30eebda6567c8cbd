"""kill -9 at random moments, torn and damaged journals, clocks that jump, power cuts: what is accepted arrives all the same."""

import json
import os
import time
import zlib

import pytest

import faults_base as base
import harness
import words

pytestmark = harness.limit(120, 300)

DAMAGED = r' error: journal: %s damaged lines? set aside in .*/journal\.damaged'


# ---- kill -9 and stop -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('test, rounds', [(False, 200), (True, 100)], ids=('release', 'rewriting'))
@harness.limit(120, 900)
def test_kill(t, test, rounds):
    """Killed at random moments under load, stopped now and then: all arrive. The test build rewrites its journal all the time."""
    rounds = base.pick(8, rounds)
    numbers = base.rng(t)
    sinks = [t.add(base.Sink(base.fickle(numbers))), t.add(base.Sink())]
    place = base.Place(t, [{'url': sink.url()} for sink in sinks], test=test, butlerWebhook={'timeoutSeconds': 5 if test else 1})
    load = t.add(base.Load(place, 120))
    accepted = []
    for n in range(rounds):
        is_stop = n % 4 == 3
        process = place.start(wait=is_stop)
        # One in three dies while it starts or reads the journal.
        time.sleep(numbers.uniform(0, 0.15) if n % 3 == 1 and not is_stop else numbers.uniform(0.2, 1.1))
        if is_stop:
            base.stop(t, process)
        else:
            base.kill(process)
        accepted += base.accepted(process.log)
    load.close()
    t.check('there was something to lose', len(accepted) > rounds * 6, len(accepted))
    sinks[0].behave = None
    process = place.start()
    for sink in sinks:
        base.arrive(t, 'every accepted alert arrives', sink, accepted, base.pick(30, 120))
    base.soon(t, 'nothing waits or is dead at the end', lambda: place.pending() == base.NOTHING)
    base.stop(t, process)
    doubles = [sink.doubles() for sink in sinks]
    # What was in flight at a kill (4 calls a webhook), and what was delivered in the moments before it, comes twice.
    t.check('few doubles for each kill', sum(doubles) <= rounds * 40 + 5, doubles)


def test_kill_with_a_slow_disk(t):
    """Syncs that take long: also alerts that are accepted while the journal is being rewritten are in the new one."""
    numbers = base.rng(t)
    place, _, down = base.pair(t, shim=True)
    rewritten = 0
    aborted = []
    for n in range(base.pick(4, 40)):
        if len(aborted) > 80:       # what waits must not make up most of the journal, or it is not rewritten any more
            place.fill()
            aborted = []
        process = place.start()
        place.shim.set(sync_delay_ms=150)
        load = t.add(base.Load(place, 500, ids=(base.FAILED,) * 7 + (base.ABORTED,)))
        begin = place.shim.get('renames')
        time.sleep(numbers.uniform(1, 2))
        base.kill(process)
        load.close()
        place.shim.heal()
        rewritten += place.shim.get('renames') - begin
        aborted += sorted(set(load.sent[6::8]) & set(base.accepted(process.log)))
        lost = set(aborted) - set(place.waiting())
        t.check('round %d: all that wait are in the journal' % n, aborted and not lost, base.some(lost))
    t.check('the journal was rewritten meanwhile', rewritten >= base.pick(2, 20), rewritten)
    down.up()
    place.start()
    base.arrive(t, 'every accepted alert arrives', down, aborted, 30)


def test_restart_keeps_order_and_attempts(t):
    """After kill -9: oldest first, the old webhook-id, the age counted from the acceptance, the attempts go on."""
    place, sink = base.single(t, lambda call: 500, butlerWebhook={'maxConcurrent': 1})
    process = place.start()
    executions = base.send(process)
    base.soon(t, 'two attempts', lambda: place.pending()['waiting'][0]['attempts'] >= 2)
    before = place.pending()['waiting'][0]
    base.kill(process)
    after = place.pending()['waiting'][0]
    t.equal('webhook-id, alert, and when it was accepted', *([entry['webhookId'], entry['alert'], entry['acceptedAt'][:19]]
                                                             for entry in (after, before)))
    t.check('attempts', after['attempts'] >= before['attempts'] and after['lastAttemptAt'] and '500' in after['lastError'], after)
    sink.down()
    process = place.start()
    executions += base.send(process, 20, window=1)
    base.kill(process)
    sink.behave = None
    sink.forget()
    sink.up()
    process = place.start()
    base.arrive(t, 'all arrive', sink, executions)
    t.equal('oldest first', [call.execution for call in sink.calls], executions)
    t.equal('the webhook-id is the old one', sink.calls[0].id, before['webhookId'])
    base.logged(t, 'attempts are counted on', process, words.delivered(number=1, status=r'200 in .*, attempt ([3-9]|\d\d)$'))


def test_stop_journals_the_inbox(t):
    """SIGTERM right after a burst: all waits, also datagrams of 65 kB, with a JSON six times as long, and arrives whole."""
    place, sink = base.single(t, up=False)
    process = place.start()
    task, messages = harness.guid(), {}
    for message in ('\1' * 64000, '"' * 64000, 'ä' * 31000, 'x' * 65000, '\U0001F600' * 16000):
        messages[base.send(process, task_id=task, message=message)[0]] = message
    largest = set(messages)
    for _ in range(base.pick(2000, 15000)):
        execution = harness.guid()
        messages[execution] = 'x' * 300
        process.send(base.alert(execution, task, messages[execution]))
    base.stop(t, process)
    numbers = base.stopped(process)
    found = {entry['alert']['executionId']: entry['alert']['logMessage'] for entry in place.pending()['waiting']}
    t.equal('the counts agree', [numbers[name] for name in ('received', 'accepted', 'waiting', 'lost')], [len(found)] * 3 + [0])
    t.check('those that the log names are among them', largest <= set(base.accepted(process.log)) <= set(found))
    t.check('they are whole', all(messages[execution] == message for execution, message in found.items()))
    place.start()
    sink.up()
    base.arrive(t, 'they arrive', sink, found)
    t.check('whole', all(calls[0].crc == zlib.crc32(base.body(execution, task, messages[execution]).encode())
                         for execution, calls in sink.taken.items()))


# ---- Torn and damaged journals --------------------------------------------------------------------------------------


def test_journal_form(t):
    """
    The lines are as documented: that others can read them is part of the interface (byte for byte: unit.c). One accepted line
    for all webhooks; keys of the n-th webhook with the same URL; no URL, no secret.
    """
    sink = t.add(base.Sink(lambda call: 404 if call.path == '/gone' else 200, up=False))
    url, gone = (sink.url(path + '?token=topsecret').replace('//', '//user:geheim@') for path in ('/hook', '/gone'))
    place = base.Place(t, [{'url': url, 'description': 'A'}, {'url': url, 'description': 'B "quoted"'},
                           {'url': gone, 'kind': 'aborted', 'method': 'PUT'}])
    keys = [base.webhook_key(url), base.webhook_key(url, n=1), base.webhook_key(gone, 'PUT', 'aborted')]
    process = place.start()
    executions = base.send(process, message='Ä \U0001F600\tü') + base.send(process, id=base.ABORTED)
    base.soon(t, 'attempts are written', lambda: [line for line in place.journal() if line.word == 'attempt'])
    base.stop(t, process)
    data = base.read(place.path())
    t.equal('lines without a good CRC', base.bad_lines(data), [])
    t.equal('no URL in the journal', [secret for secret in (b'geheim', b'topsecret', b'/hook') if secret in data], [])
    records = place.journal()
    t.equal('the webhooks come first', records[:3],
            [('webhook', '1', 'failure', '0', '2', keys[0], '"A"'),
             ('webhook', '2', 'failure', '0', '2', keys[1], '"B \\"quoted\\""'),
             ('webhook', '1', 'aborted', '0', '1', keys[2], '""')])
    accepted, tried = ([line for line in records if line.word == word] for word in ('accepted', 'attempt'))
    t.equal('accepted', [(line.number, line.kind, line.keys, json.loads(line.json)['executionId']) for line in accepted],
            [('1', 'failure', ','.join(keys[:2]), executions[0]), ('2', 'aborted', keys[2], executions[1])])
    t.check('attempts', all(line.number in '12' and line.keys in keys and int(line.count) >= 1 and 'refused' in line.json
                            for line in tried), tried)
    t.check('their times', all(abs(int(line.time) - base.now_ms()) < 60000 for line in accepted + tried), accepted + tried)
    sink.up()
    process = place.start()
    base.soon(t, 'all have ended', lambda: not place.waiting())
    base.kill(process)
    base.same(t, 'end: number, webhook, delivered or dead',
              [(line.number, line.keys, line.count) for line in place.journal() if line.word == 'end'],
              [('1', keys[0], '0'), ('1', keys[1], '0'), ('2', keys[2], '1')])


def end_record(number, key, dead=0):
    return base.record('end', number, 'failure', 0, dead, key, '""')


def test_damaged_files(t):
    """Journals that are torn, damaged, or none: --pending and a start give all good records, and no others; the rest is told."""
    place, sink = base.single(t, up=False)
    process = place.start()
    executions = base.send(process, 8)
    base.soon(t, 'attempts are written', lambda: [line for line in place.journal() if line.word == 'attempt'])
    base.stop(t, process)
    key = place.key
    # the attempts last: then the sixth alert stands behind the fifth
    lines = sorted(base.read(place.path()).splitlines(True), key=lambda line: b'\tattempt\t' in line)
    lines += [end_record(1, key), end_record(2, key, dead=1)]
    data, rest = b''.join(lines), set(executions[2:])
    at = {execution: data.index(execution.encode()) for execution in executions}
    last = next(line for line in lines if executions[7].encode() in line)
    begin, most = b''.join(line for line in lines if line is not last), rest - {executions[7]}
    struck = bytearray(data)
    struck[at[executions[3]]] ^= 4                              # this line is damaged,
    struck[data.index(b'\n', at[executions[5]])] ^= 0x40        # and this one, with the next as a part of it
    new, late = harness.guid(), harness.guid()
    accepted = base.accepted_record(key, new, number=2000000)
    noise = base.rng(t).randbytes(1 << 20)
    unknown = b''.join([base.record('colour', 3, 'failure', 0, 0, key, '""'), end_record(-3, key),
                        base.record('accepted', 'never', 'failure', 1, 0, key, '{}'),
                        base.record('accepted', 1500000, 'failure', base.now_ms(), 0, key, '{"event":5}')])
    cases = {       # the content, what must arrive, damaged lines, a torn one counted (None: more than can be told here)
        'empty': (b'', set(), 0),
        'with itself': (data + data, rest, 0),
        'without the last line end': (begin + last[:-1], rest, 0),
        'torn in the CRC': (begin + last[:7], most, 1),
        'torn behind the CRC': (begin + last[:9], most, 1),
        'torn before its end': (begin + last[:-2], most, 1),
        'made longer by a file system, but not written': (begin + bytes(70000), most, 1),
        'never written': (bytes(100000), set(), 1),
        'zeros, then a line end': (data + bytes(100) + b'\n', rest, 1),
        'two bits flipped': (bytes(struck), rest - {executions[n] for n in (3, 5, 6)}, 2),
        'garbage around good records': (noise + b'\n' + data + noise, rest, None),
        'a line of 2 MB': (base.record('accepted', 1500000, 'failure', 1, 0, key, 'x' * (2 << 20)) + data, rest, None),
        'unknown words and values': (unknown + data, rest, 3),
        'end before its alert': (end_record(2000000, key) + data + accepted, rest | {new}, 0),
        'line ends of Windows': (data.replace(b'\n', b'\r\n'), set(), len(lines)),
        'a good record behind half a line': (data + b'half' + accepted + base.accepted_record(key, late), rest | {late}, 1),
        'accepted in the future': (base.accepted_record(key, late, base.now_ms() + base.HOUR_MS), {late}, 0),
    }
    sink.up()
    for name, (content, must, damaged) in cases.items():
        sink.forget()
        place.fill(content)
        base.write(place.path('journal.new'), accepted)     # left by a rewriting that was cut short: it does not count
        before = sorted(os.listdir(place.state))
        base.same(t, '%s: --pending shows the good records' % name, place.waiting(), must)
        t.equal('%s: and writes nothing' % name, (sorted(os.listdir(place.state)), base.read(place.path())), (before, content))
        process = place.start()
        base.soon(t, '%s: they arrive, and are done' % name, lambda: not sink.missing(must) and not place.waiting(), 10)
        t.equal('%s: nothing is made up' % name, set(sink.seen), must)
        base.soon(t, '%s: it is written anew' % name, lambda: not base.read(place.path()).startswith(content or b'x'), 10)
        base.stop(t, process)
        if damaged is not None:
            t.equal('%s: what is told of it' % name, [len(process.lines(DAMAGED % number)) for number in (damaged, r'\d+')],
                    [min(damaged, 1)] * 2)
        kept = base.read(place.path('journal.damaged'))
        if damaged is None:
            t.check('%s: of what is damaged at most 1 MiB is kept' % name, 0 < len(kept) <= 1 << 20, len(kept))
        else:
            t.check('%s: the damaged lines are kept' % name, kept.count(b'\n') == damaged and
                    set(base.bad_lines(content)) <= set(kept.split(b'\n')), kept)
        process = place.start()
        t.equal('%s: the next start finds all well' % name, process.lines(r' (error|warn): journal: '), [])
        base.stop(t, process)
        t.equal('%s: no other file is left' % name, set(os.listdir(place.state)) - {'journal.damaged'}, {'journal', 'lock'})
        if t.failures:      # the others would fail in the same way, for minutes
            return


# ---- Clocks ---------------------------------------------------------------------------------------------------------


def test_clock_set_while_running(t):
    """The wall clock jumps by hours, forth and back: retries, age, rate limit and duplicates do not care."""
    place, sink = base.single(t, lambda call: 408 if call.number <= 2 else 200, shim=True, rateLimit=2,
                              deduplication={'enable': True, 'ttlMinutes': 1}, butlerWebhook={'maxAgeHours': 2000})
    process = place.start()
    for hours in (100, -100, 5000, 0):
        task = harness.guid()
        first = base.send(process, task_id=task)
        begin = time.monotonic()
        place.shim.set(wall_offset_ms=hours * base.HOUR_MS)
        process.send(base.alert(first[0], harness.guid()))
        base.logged(t, '%d h: a duplicate stays one' % hours, process, '%s.*%s' % (words.DUPLICATE, first[0]))
        process.send(base.alert(harness.guid(), task))
        other = base.send(process)
        if time.monotonic() - begin < 1.8:
            t.equal('%d h: the rate limit still holds' % hours, len(process.lines(words.accepted(what=task))), 1)
        time.sleep(max(0, 2.2 - (time.monotonic() - begin)))
        first += base.send(process, task_id=task)
        t.equal('%d h: the rate limit ends in time' % hours, len(first), 2)
        base.arrive(t, '%d h: retries go on' % hours, sink, first + other)
    t.equal('nothing became too old', process.lines(words.given_up()), [])


def test_clock_of_windows_across_restart(t):
    """Rate limit and de-duplication outlive kill -9, a stop, and that the lines of delivered alerts are rewritten away."""
    place, sink = base.single(t, test=True, rateLimit=300, deduplication={'enable': True, 'ttlMinutes': 10})
    process = place.start()
    task = harness.guid()
    first = base.send(process, task_id=task)[0]
    base.send(process, 120, sink=sink, window=20)
    base.soon(t, 'the journal was rewritten', lambda: first.encode() not in base.read(place.path()))
    t.check('it has lines of windows', 'window' in {line.word for line in place.journal()})
    for end in (base.kill, lambda process: base.stop(t, process)):
        end(process)
        process = place.start()
        process.send(base.alert(harness.guid(), task))
        process.send(base.alert(first))
        base.logged(t, 'the rate limit still holds', process, words.HELD_BACK)
        base.logged(t, 'the duplicate is still one', process, words.DUPLICATE)
        base.arrive(t, 'another alert arrives', sink, base.send(process))


def test_age_ends_in_a_dead_letter(t):
    """maxAgeHours, with the hours of the test build: from the acceptance, over a restart, also while the webhook is down."""
    sinks = [t.add(base.Sink(lambda call: 408)), t.add(base.Sink(up=False))]
    place = base.Place(t, [{'url': sink.url()} for sink in sinks], test=True, butlerWebhook={'maxAgeHours': 72})    # 6 s
    process = place.start()
    begin = time.monotonic()
    execution = base.send(process)
    base.soon(t, 'it is tried', lambda: sinks[0].calls)
    base.kill(process)
    t.equal('it waits', place.waiting(), execution * 2)
    process = place.start()
    base.logged(t, 'given up for both', process, words.given_up(why='.*an alert is kept'), 2)
    took = time.monotonic() - begin
    t.check('not before its time', took >= 72 * 0.084 - 0.3, took)     # an hour of the test build
    base.soon(t, 'both are dead letters', lambda: place.dead() == execution * 2)
    t.equal('of both webhooks', {letter['webhook'] for letter in place.letters()}, {'failure 1', 'failure 2'})
    base.soon(t, 'nothing waits', lambda: not place.waiting())


def test_clock_sleep_of_the_machine(t):
    """CLOCK_BOOTTIME jumps, as after a sleep: long backoffs are due, of alerts and of a webhook that is down."""
    place, sink = base.single(t, lambda call: 408, shim=True, butlerWebhook={'timeoutSeconds': 300})
    process = place.start()
    executions = base.send(process, 8)
    for attempt in range(1, 7):         # backoffs of up to 32 s, each but the last cut short by a sleep
        base.logged(t, 'attempt %d of each' % attempt, process, 'status 408; attempt %d, next in ' % attempt, 8)
        if attempt < 6:     # the loop's own wait goes on, but a datagram wakes it
            place.shim.set(boot_offset_ms=20000 * attempt)
            process.send(b'wake up')
    waits = [float(line.split()[-2]) for line in process.lines('status 408; attempt 6, next in ')]
    t.check('some have long to wait', max(waits) > 8, waits)
    sink.behave = None
    place.shim.set(boot_offset_ms=400000)       # nothing wakes the loop: it looks every 30 s
    base.arrive(t, 'after the sleep they arrive', sink, executions, 35)
    sink.behave = lambda call: 500
    executions = base.send(process, 3)
    base.logged(t, 'it is down', process, words.down('failure 1', 'status 500'))
    for sleep in range(1, 4):           # longer than any of the first backoffs
        count = len(sink.calls)
        place.shim.set(boot_offset_ms=400000 + 100000 * sleep)
        process.send(b'wake up')
        base.soon(t, 'the next probe', lambda: len(sink.calls) > count)
    sink.behave = None
    place.shim.set(boot_offset_ms=1000000)
    process.send(b'wake up')
    base.arrive(t, 'the webhook is up again', sink, executions)
    t.equal('none became too old', process.lines(words.given_up()), [])


# ---- Power cuts -----------------------------------------------------------------------------------------------------


def test_power_cut(t):
    """What has waited for a moment is on the disk, with one sync for many, what a start has read, and all at a stop."""
    place, sink = base.single(t, up=False, shim=True)
    accepted = place.fill_waiting(20)
    length = base.size(place.path())
    os.mkdir(place.path('journal.new'))         # no new journal takes its place, which would be synced
    process = place.start()
    base.soon(t, 'what a start has read is synced', lambda: place.shim.get('synced_len') > length)
    base.soon(t, 'and its directory', lambda: place.shim.get('folder_syncs') > 0)
    os.rmdir(place.path('journal.new'))
    base.logged(t, 'it works again', process, words.WORKS_AGAIN)
    for n in range(base.pick(3, 20)):
        place.shim.set(sync_delay_ms=100)
        syncs = place.shim.get('syncs')
        accepted += base.send(process, 100, window=100)
        # wherever the last one stands now: after a start the journal is rewritten, and becomes shorter
        base.soon(t, 'round %d: the alerts are synced soon' % n,
                  lambda: place.shim.get('synced_len') > base.read(place.path()).rindex(accepted[-1].encode()))
        t.check('round %d: many share a sync' % n, place.shim.get('syncs') - syncs < 30, place.shim.get('syncs') - syncs)
        base.cut_power(place, process)
        base.same(t, 'round %d: all wait' % n, place.waiting(), accepted)
        place.shim.heal()
        process = place.start()
    sink.up()
    base.arrive(t, 'all arrive', sink, accepted)
    base.stop(t, process)
    process = place.start()
    base.arrive(t, 'others arrive', sink, base.send(process, 10, window=1))
    base.soon(t, 'nothing waits, so nothing needs a sync', lambda: not place.waiting())
    base.stop(t, process)
    t.equal('a stop syncs all', place.shim.get('synced_len'), base.size(place.path()))
