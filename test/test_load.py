"""Retries without a stampede, one alert that is always refused, floods, and a soak: load with faults for a long time."""

import os
import re
import time

import faults_base as base
import harness
import words

pytestmark = harness.limit(120, 300)


@harness.limit(120, 600)
def test_retry_one_a_second(t):
    """A webhook that takes one alert a second: also after a start with many alerts all arrive, and it is not stormed."""
    count = base.pick(20, 300)
    refused, taken = [], []     # when

    def one_a_second(call):
        if taken and call.time < taken[-1] + 0.95:      # clocks are read at slightly different times
            refused.append(call.time)
            return 429, (('Retry-After', '1'),)
        taken.append(call.time)
        return 200

    place, sink = base.single(t, one_a_second)
    executions = place.fill_waiting(count)
    process = place.start()
    begin = time.monotonic()
    executions += base.send(process, 5)
    base.arrive(t, 'all arrive', sink, executions, base.pick(70, 500))
    took = time.monotonic() - begin
    most = max((sum(begin <= when < begin + 1 for when in refused) for begin in refused), default=0)
    # Behind a probe that was taken come four calls (maxConcurrent).
    t.check('never more than a few refusals a second', most <= 9, most)
    t.check('refusals are no more than a few for each second', len(refused) <= 5 * took + 10, len(refused))
    t.equal('doubles', sink.doubles(), 0)


def test_retry_one_always_refused(t):
    """One alert that a webhook always answers 500, one that it resets, one that it never answers: 100 others go by."""
    bad = {harness.guid(): what for what in (500, 'reset', 'hang')}
    place, sink = base.single(t, lambda call: bad.get(call.execution, 200), butlerWebhook={'timeoutSeconds': 2})
    process = place.start()
    for execution in bad:
        process.send(base.alert(execution))
    base.logged(t, 'the three are accepted', process, words.accepted(), 3)
    executions = base.send(process, 100, window=1)
    begin = time.monotonic()
    base.arrive(t, '100 others arrive', sink, executions)
    t.check('soon', time.monotonic() - begin < 8 * harness.SLOW, time.monotonic() - begin)
    base.soon(t, 'the three are tried again', lambda: all(len(sink.seen[execution]) > 1 for execution in bad))
    t.check('ever more seldom', all(len(sink.seen[execution]) <= 25 for execution in bad), sink.seen)
    base.kill(process)
    base.same(t, 'they wait', place.waiting(), bad)
    executions = list(bad)
    bad.clear()
    process = place.start()
    base.arrive(t, 'in the end they arrive', sink, executions)


def test_retry_behind_a_gateway(t):
    """
    100,000 alerts wait for a webhook behind a gateway that answers 502 while the server itself is away: it is down after three
    of them, and gets probes only, ever more seldom; when the server is back all arrive, the oldest first. At most 96 MB.
    """
    place, sink = base.single(t, lambda call: 502)
    place.fill_waiting(100000, task_id=harness.guid())
    process = place.start()
    base.logged(t, 'it is down', process, words.down('failure 1', 'status 502'))
    before = len(sink.calls)
    t.check('a few calls were enough to tell', before <= 8, before)
    time.sleep(base.pick(6, 60))
    probes = len(sink.calls) - before
    t.check('then probes only', 0 < probes <= base.pick(16, 24), probes)
    t.check('each with another alert', all(len(calls) == 1 for calls in sink.seen.values()), sink.seen)
    base.kill(process)
    sink.behave = None
    sink.forget()
    process = place.start()
    base.logged(t, 'all of them wait', process, ': 100000 alerts wait, ')
    base.send(process, 500)
    enough = base.pick(2000, 30000)
    base.soon(t, 'the server is back: they arrive', lambda: len(sink.taken) >= enough, base.pick(30, 120))
    latest = max(int(call.execution[:8], 16) for call in list(sink.calls)[:1000])
    t.check('the oldest first', latest < 1000 + 8, latest)
    kilobytes = base.status(process.pid, 'VmHWM')
    t.check('at most 96 MB of memory', kilobytes <= (96 << 10) + harness.SYSTEM.memory_kb, kilobytes)
    base.kill(process)


def test_flood(t):
    """50,000 datagrams at full speed that are no alerts, or none to be sent: all others arrive, and the log is not flooded."""
    place, sink = base.single(t, rateLimit=300, deduplication={'enable': True, 'ttlMinutes': 10}, udp={'maxMessageSize': 4000})
    process = place.start()
    task = harness.guid()
    executions = base.send(process, task_id=task) + [harness.guid() for _ in range(200)]
    noise = (b'/scheduler-task-failed/;' + b'm' * 3000, base.alert(harness.guid(), id='/scheduler-whatever/', message='u' * 3000),
             base.alert(harness.guid(), message='z' * 5000), base.alert(executions[0]), base.alert(harness.guid(), task))
    for number in range(10000):
        for data in noise:
            process.send(data)
        if number % 50 == 0:
            process.send(base.alert(executions[1 + number // 50]))
    base.arrive(t, 'all alerts arrive', sink, executions)
    base.logged(t, 'it tells', process, words.delivered(), 201)
    base.stop(t, process)
    t.equal('calls', len(sink.calls), 201)
    for what in (words.MALFORMED, ' unknown message id', ' larger than maxMessageSize', words.DUPLICATE, words.HELD_BACK):
        told = [line for line in process.lines(what) if not re.search(words.more(), line)]
        t.equal('%s: lines' % what, len(told), 20)
    rest = [int(re.search(words.more(count=r'(\d+)'), line).group(1)) for line in process.lines(words.more())]
    t.equal('the others are counted', rest, [9980] * 5)
    others = [line for line in process.log if ' accepted: ' not in line and ' delivered to ' not in line]
    t.check('the log is not flooded', sum(map(len, others)) < 30000, len(others))
    t.equal('the counts at the end', process.wait_log(words.NO_ALERTS).groups(),
            ('0', '10000', '10000', '10000', '10000', '10000', '0', '0'))


SOAK = float(os.environ.get('BUTLER_SOAK', 0))     # seconds


def early_and_late(samples):
    """The middle of ten samples after the first tenth, and of the last ten, as a backlog comes and goes."""
    return sorted(samples[10:20])[5], sorted(samples[-10:])[5]


@harness.early
@harness.limit(120, 1200)
def test_soak(t):
    """200 alerts a second, a webhook that fails at random: memory, descriptors and journal stay small, nothing is lost."""
    seconds = SOAK or base.pick(20, 600)
    t.check('long enough to say something', seconds >= 5, seconds)
    bad = t.add(base.Sink(base.fickle(base.rng(t), good=0.9, error=0.06, hang=0.001)))
    good = t.add(base.Sink())
    place = base.Place(t, [{'url': bad.url()}, {'url': good.url()}], butlerWebhook={'timeoutSeconds': 2, 'maxAgeHours': 8760})
    process = place.start()
    load = t.add(base.Load(place, 200, message='x' * 4000))
    memory, descriptors, disk, waiting = [], [], [], []
    for _ in range(100):
        time.sleep(seconds / 100)
        memory.append(base.status(process.pid, 'VmRSS'))
        descriptors.append(len(os.listdir('/proc/%d/fd' % process.pid)))
        disk.append(base.size(place.state))
        waiting.append(len(load.sent) - len(good.calls))
    load.close()
    bad.behave = None
    t.check('the load was there', len(load.sent) > seconds * 150 / harness.SLOW, len(load.sent))
    base.arrive(t, 'the fickle webhook gets all', bad, load.sent, 60)
    base.arrive(t, 'the healthy webhook gets all', good, load.sent)
    stalls = len(process.lines(' to failure 2: no answer within '))     # this process had no time for it
    t.check('the healthy webhook gets none twice', good.doubles() <= stalls, [good.doubles(), stalls])
    early, late = early_and_late(memory)
    t.check('memory does not grow', late <= early * 1.25 + 8192, '%d kB, then %d kB' % (early, late))
    t.check('memory is small', max(memory) < (64 << 10) + harness.SYSTEM.memory_kb, max(memory))
    early, late = early_and_late(descriptors)
    t.check('descriptors do not grow', late <= early + 6, [early, late])
    # It is rewritten at 8 MiB and twice what waits; what comes until the new one is synced goes into both.
    t.check('the journal is rewritten in time', max(disk) < (16 << 20) + 4 * 4400 * max(waiting), [max(disk), max(waiting)])
    base.soon(t, 'nothing waits at the end', lambda: not place.waiting())
