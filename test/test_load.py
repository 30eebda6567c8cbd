"""Retries without a stampede, one alert that is always refused, and a soak: load with faults for a long time."""

import email.utils
import os
import re
import socket
import threading
import time

import faults_base as base
import harness


# ---- Retries --------------------------------------------------------------------------------------------------------


class Narrow:
    """A `behave` that takes one call in each `every` seconds and answers 429 to the others."""

    def __init__(self, every=1.0, status=429, headers=(('Retry-After', '1'),)):
        self.every = every
        self.refusal = (status, headers)
        self.refused = []       # when
        self._next = 0.0
        self._lock = threading.Lock()

    def __call__(self, call):
        with self._lock:
            if call.time < self._next:
                self.refused.append(call.time)
                return self.refusal
            self._next = call.time + self.every * 0.95      # clocks are read at slightly different times
            return 200

    def most_in_a_second(self):
        """The most refusals within any second."""
        return max((sum(begin <= time < begin + 1 for time in self.refused) for begin in self.refused), default=0)


@harness.limit(90, 1500)
def test_retry_one_a_second(t):
    """A webhook that takes one alert a second (429, Retry-After: 1): all arrive, and it is not stormed."""
    count = base.pick(30, 1000)
    narrow = Narrow()
    sink = t.add(base.Sink(narrow))
    place = base.Place(t, [{'url': sink.url()}])
    process = place.start()
    begin = time.monotonic()
    executions = base.send(process, count)
    t.equal('all are accepted', len(executions), count)
    missing = sink.wait(executions, base.pick(60, 1300))
    took = time.monotonic() - begin
    t.check('all arrive', not missing, base.some(missing))
    most = narrow.most_in_a_second()
    # Behind a probe that was taken come four calls (maxConcurrent), and are refused.
    t.check('never more than a few refusals a second', most <= 9, most)
    t.check('refusals are no more than a few for each second', len(narrow.refused) <= 5 * took + 10, len(narrow.refused))
    t.check('it is not much slower than it could be', took < 2.5 * count * harness.SLOW + 5, took)
    t.check('no double', sink.doubles() == 0, sink.doubles())
    base.note(t, '%d alerts in %.1f s, %d refused, at most %d in a second' % (count, took, len(narrow.refused), most))
    base.stop(t, process)


@harness.limit(60, 60)
def test_retry_one_a_second_after_a_start(t):
    """Many alerts wait in the journal: a start is no stampede, either."""
    narrow = Narrow()
    sink = t.add(base.Sink(narrow))
    place = base.Place(t, [{'url': sink.url()}])
    executions = [harness.guid() for _ in range(200)]
    place.fill(b''.join(base.accepted_record(base.webhook_key(sink.url()), execution) for execution in executions))
    process = place.start()
    base.until(lambda: len(sink.taken) >= 5, 20)
    t.check('alerts arrive', len(sink.taken) >= 5, len(sink.taken))
    t.check('never more than a few refusals a second', narrow.most_in_a_second() <= 9, narrow.most_in_a_second())
    base.stop(t, process)
    base.same(t, 'the rest waits', place.waiting(), sink.missing(executions))


@harness.limit(60, 60)
def test_retry_one_always_refused(t):
    """One alert that a webhook always answers 500, one that it resets, one that it never answers: 100 others go by."""
    bad = {}
    sink = t.add(base.Sink(lambda call: bad.get(call.execution, 200)))
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook={'timeoutSeconds': 2})
    process = place.start()
    bad.update({harness.guid(): what for what in (500, 'reset', 'hang')})
    for execution in bad:
        process.send(base.alert(execution))
    told = base.Told(process)
    t.check('the three are accepted', base.until(lambda: len(told.update().accepted) == len(bad), 10))
    executions = []
    for _ in range(100):
        executions += base.send(process, 1)
        time.sleep(0.01)
    begin = time.monotonic()
    missing = sink.wait(executions, 10)
    t.check('100 others arrive', len(executions) == 100 and not missing, base.some(missing))
    t.check('soon', time.monotonic() - begin < 5 * harness.SLOW, time.monotonic() - begin)
    t.check('the three are tried again', base.until(lambda: all(len(sink.seen[execution]) > 1 for execution in bad), 15),
            {what: len(sink.seen[execution]) for execution, what in bad.items()})
    t.check('ever more seldom', all(len(sink.seen[execution]) <= 25 for execution in bad),
            {what: len(sink.seen[execution]) for execution, what in bad.items()})
    base.kill(process)
    base.same(t, 'they wait', place.waiting(), bad)
    executions = list(bad)
    bad.clear()
    process = place.start()
    base.arrive(t, 'in the end they arrive', sink, executions, 40)
    base.stop(t, process)


def asks_to_wait(t, status, header, least):
    """The first call is told to wait; no other call comes until then, not even for other alerts, and not after a kill."""
    first = []

    def behave(call):
        if not first:
            first.append(call.time)
            return status, (('Retry-After', header()),)
        return 200

    sink = t.add(base.Sink(behave))
    place = base.Place(t, [{'url': sink.url()}])
    process = place.start()
    executions = base.send(process, 1)
    base.until(lambda: first, 5)
    executions += base.send(process, 10)
    missing = sink.wait(executions, 20)
    t.check('%d: all arrive' % status, not missing, base.some(missing))
    begin = min(calls[0][1] for calls in sink.taken.values()) - first[0]
    t.check('%d: not before the time' % status, begin >= least, '%.2f s' % begin)
    t.check('%d: and soon after it' % status, begin < least + 4 * harness.SLOW, '%.2f s' % begin)
    t.equal('%d: no call in between' % status, len(sink.calls), 12)
    base.stop(t, process)


@harness.limit(60, 60)
def test_retry_after_seconds(t):
    asks_to_wait(t, 429, lambda: '2', 1.9)
    asks_to_wait(t, 503, lambda: '2', 1.9)


@harness.limit(60, 60)
def test_retry_after_date(t):
    """A date has whole seconds: three from now are at least two."""
    asks_to_wait(t, 429, lambda: email.utils.formatdate(time.time() + 3, usegmt=True), 1.9)
    asks_to_wait(t, 503, lambda: email.utils.formatdate(time.time() + 3, usegmt=True), 1.9)


@harness.limit(60, 60)
def test_retry_after_senseless(t):
    """Dates of the past and headers that say nothing: the alerts arrive all the same, and the webhook is not stormed."""
    runs = []
    for header in ('0', '-5', 'soon', '', 'Sun, 06 Nov 1994 08:49:37 GMT', '1.5', '2 seconds'):
        narrow = Narrow(every=0.2, headers=(('Retry-After', header),))
        sink = t.add(base.Sink(narrow))
        process = base.Place(t, [{'url': sink.url()}], name='place%d' % len(runs)).start()
        runs.append((header, narrow, sink, process, base.send(process, 4)))
    for header, narrow, sink, process, executions in runs:
        base.arrive(t, 'Retry-After %r: all arrive' % header, sink, executions, 25)
        t.check('Retry-After %r: no storm' % header, narrow.most_in_a_second() <= 8, narrow.most_in_a_second())
        base.stop(t, process)


@harness.limit(60, 60)
def test_retry_one_probe(t):
    """A webhook that is down: one probe at a time, ever more seldom; and when it is up again all arrive at once."""
    sink = t.add(base.Sink(lambda call: 'reset'))
    place = base.Place(t, [{'url': sink.url()}])
    process = place.start()
    executions = base.send(process, 100)
    t.check('it is down', process.wait_log(r'webhook failure 1 is down', 10), base.tail(process))
    before = sum(len(calls) for calls in sink.seen.values())
    time.sleep(4)
    probes = sum(len(calls) for calls in sink.seen.values()) - before
    t.check('few probes', probes <= 20, probes)
    sink.behave = None
    begin = time.monotonic()
    missing = sink.wait(executions, 30)
    t.check('all arrive', not missing, base.some(missing))
    first = min(calls[0][1] for calls in sink.taken.values())
    last = max(calls[0][1] for calls in sink.taken.values())
    base.note(t, '%d probes in 4 s; up again after %.1f s, all there %.1f s later' % (probes, first - begin, last - first))
    base.stop(t, process)


@harness.limit(60, 180)
def test_retry_behind_a_gateway(t):
    """
    Many alerts wait for a webhook behind a gateway that answers 502 while the server itself is away: it is down after three
    of them, and gets probes only, ever more seldom; when the server is back all arrive, the oldest first.
    """
    count = base.pick(10000, 100000)
    sink = t.add(base.Sink(lambda call: 502))
    place = base.Place(t, [{'url': sink.url()}])
    key = base.webhook_key(sink.url())
    task = harness.guid()
    executions = ['%08x-0000-4000-8000-000000000000' % i for i in range(count)]
    place.fill(b''.join(base.accepted_record(key, execution, task_id=task) for execution in executions))
    process = place.start()
    t.check('it is down', process.wait_log(r' warn: webhook failure 1 is down: status 502', 30), base.tail(process))
    before = len(sink.calls)
    t.check('a few calls were enough to tell', before <= 8, before)
    time.sleep(base.pick(8, 60))
    probes = len(sink.calls) - before
    t.check('then probes only', 0 < probes <= base.pick(16, 24), probes)
    t.check('each with another alert', all(len(calls) == 1 for calls in sink.seen.values()),
            max(len(calls) for calls in sink.seen.values()))
    base.kill(process)
    t.equal('all of them wait', len(place.waiting()), count)
    sink.behave = None
    sink.forget()
    process = place.start()
    enough = base.pick(2000, count)
    t.check('the server is back: they arrive', base.until(lambda: len(sink.taken) >= enough, base.pick(15, 120)), len(sink.taken))
    with sink._changed:
        order = [int(call.execution[:8], 16) for call, _ in sink.calls[:1000]]
    t.check('the oldest first', max(order) < 1000 + 8, max(order))
    base.kill(process)


@harness.limit(60, 60)
def test_retry_gateway_for_some(t):
    """502 for an alert now and then is that alert's own trouble: the webhook is not down, all arrive."""
    sink = t.add(base.Sink(lambda call: 502 if call.number == 1 and len(sink.seen) % 4 == 0 else 200))
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook={'maxConcurrent': 1})
    process = place.start()
    executions = base.send(process, 40)
    base.arrive(t, 'all arrive', sink, executions)
    t.equal('some were tried twice', sum(len(calls) == 2 for calls in sink.seen.values()), 10)
    t.equal('it was never down', process.lines(' is down'), [])
    base.stop(t, process)


# ---- Floods ---------------------------------------------------------------------------------------------------------


@harness.limit(60, 60)
def test_flood_of_what_is_no_alert(t):
    """
    50,000 malformed and unknown datagrams of 3 kB at full speed, and 200 alerts among them: these arrive, all of them, and the
    log is not flooded.
    """
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}], fileLogging=True, logDirectory='log')
    process = place.start()
    executions = [harness.guid() for _ in range(200)]
    malformed = b'/scheduler-task-failed/;' + b'm' * 3000
    unknown = base.alert(harness.guid(), id='/scheduler-reload-whatever/', message='u' * 3000)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect(('127.0.0.1', place.port))
        for number in range(50000):
            udp.send(unknown if number % 2 else malformed)
            if number % 250 == 0:
                udp.send(base.alert(executions[number // 250]))
    base.arrive(t, 'all alerts arrive', sink, executions)
    process.wait_log(' delivered to ', count=200)
    base.stop(t, process)
    others = [line for line in process.log if ' accepted: ' not in line and ' delivered to ' not in line]
    size = sum(len(line.encode()) + 1 for line in others)
    t.check('the log is not flooded', size < 20000, '%d bytes, %d lines' % (size, len(others)))
    t.check('what was not logged is counted', sum(int(count) for count in re.findall(
        r' warn: (\d+) more in the last minute: (?:malformed|unknown)', '\n'.join(others))) == 50000 - 40, others[-8:])
    match = re.search(r'no alerts: \d+ ignored, (\d+) malformed, (\d+) unknown, .* (\d+) dropped', '\n'.join(others))
    t.equal('the counts at the end', match and match.groups(), ('25000', '25000', '0'))


@harness.limit(60, 60)
def test_flood_of_duplicates(t):
    """Thousands of duplicates, alerts that are held back, and datagrams that are too large: counted, not each logged."""
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}], rateLimit=300, deduplication={'enable': True, 'ttlMinutes': 10},
                       udp={'maxMessageSize': 2000})
    process = place.start()
    task = harness.guid()
    first = base.send(process, 1, task_id=task)[0]
    large = base.alert(harness.guid(), message='z' * 3000)
    for number in range(3000):
        process.send(base.alert(first))
        process.send(base.alert(harness.guid(), task_id=task))
        process.send(large)
    last = base.send(process, 1)[0]
    base.arrive(t, 'other alerts arrive', sink, [first, last])
    base.stop(t, process)
    for what in ('duplicate ignored', 'held back by the rate limit', 'larger than maxMessageSize'):
        t.equal('%s: lines' % what, len([line for line in process.lines(what) if ' more ' not in line]), 20)
        t.equal('%s: the others are counted' % what, len(process.lines(r': 2980 more in the last minute: .*%s$' % what)), 1)
    t.equal('calls', len(sink.calls), 2)


# ---- Soak -----------------------------------------------------------------------------------------------------------

SOAK = float(os.environ.get('BUTLER_SOAK', 0))     # seconds


def descriptors(pid):
    return len(os.listdir('/proc/%d/fd' % pid))


@harness.early
@harness.limit(120, 1200)
def test_soak(t):
    """200 alerts a second and a webhook that fails at random: memory and descriptors do not grow, nothing is lost."""
    seconds = SOAK or base.pick(20, 600)
    t.check('long enough to say something', seconds >= 5, seconds)
    numbers = base.rng(t)
    bad = t.add(base.Sink(base.fickle(numbers, good=0.9, error=0.06, hang=0.001)))
    good = t.add(base.Sink())
    place = base.Place(t, [{'url': bad.url()}, {'url': good.url()}], butlerWebhook={'timeoutSeconds': 2, 'maxAgeHours': 8760})
    process = place.start()
    load = t.add(base.Load(place, 200))
    begin = time.monotonic()
    rss = []
    fds = []
    journal = 0
    while time.monotonic() - begin < seconds:
        time.sleep(seconds / 100)
        rss.append(base.status(process.pid, 'VmRSS'))
        fds.append(descriptors(process.pid))
        journal = max(journal, base.folder_bytes(place.state))
    load.close()
    bad.behave = None
    told = base.Told(process)
    base.until(lambda: len(told.update().accepted) == len(load.sent), 10)
    t.equal('all that was sent is accepted', len(told.accepted), len(load.sent))
    for name, sink in (('fickle', bad), ('healthy', good)):
        missing = sink.wait(told.accepted, 60)
        t.check('the %s webhook gets all' % name, not missing, base.some(missing))
        t.check('the %s webhook: one webhook-id for each alert' % name, not sink.ids_differ(), base.some(sink.ids_differ()))
    stalls = len(process.lines(r' to failure 2: no answer within '))    # this process had no time for it
    t.check('the healthy webhook gets none twice', good.doubles() <= stalls, [good.doubles(), stalls])
    t.check('the load was there', len(load.sent) > seconds * 150 / harness.SLOW, len(load.sent))
    # Right after the tenth, and at the end: the middle of ten samples each, as a backlog comes and goes.
    early, late = sorted(rss[10:20])[5], sorted(rss[-10:])[5]
    t.check('memory does not grow', late <= early * 1.25 + 2048, '%d kB, then %d kB' % (early, late))
    t.check('memory is small', max(rss) < (64 << 10) + harness.SYSTEM.memory_kb, max(rss))
    early_fds, late_fds = sorted(fds[10:20])[5], sorted(fds[-10:])[5]
    t.check('descriptors do not grow', late_fds <= early_fds + 6, [early_fds, late_fds])
    t.check('the state directory stays small', journal < 16 << 20, journal)
    t.check('nothing waits at the end', base.until(lambda: not place.waiting(), 10), base.some(place.waiting()))
    t.check('the journal is small at the end', base.folder_bytes(place.state) < 10 << 20, base.folder_bytes(place.state))
    base.note(t, '%d s, %d alerts, memory %d then %d kB, descriptors %d then %d, journal at most %d kB, doubles %d' %
              (seconds, len(told.accepted), early, late, early_fds, late_fds, journal >> 10, bad.doubles()))
    base.stop(t, process)
