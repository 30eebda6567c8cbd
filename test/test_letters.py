"""Dead letters, --pending, --replay, and webhooks that change between two starts."""

import errno
import json
import os
import re
import signal
import subprocess
import time

import faults_base as base
import harness

KEYS = ['webhookId', 'webhook', 'acceptedAt', 'attempts', 'deadAt', 'reason', 'webhookKey', 'description', 'place', 'count',
        'url', 'alert']
WAITING_KEYS = {'webhookId', 'webhook', 'acceptedAt', 'ageSeconds', 'attempts', 'lastAttemptAt', 'lastError',
                'alert'}
UNWRITTEN = r' error: state directory: cannot write dead-letters\.ndjson: .*; trying again$'
WRITTEN = r' info: state directory: dead-letters\.ndjson can be written again$'
TIME = r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z'


def letter(key, execution, webhook='failure 1', url='http://127.0.0.1/hook', **fields):
    """A line of dead-letters.ndjson, as the program writes them."""
    found = {'webhookId': base.webhook_id(execution, key), 'webhookKey': key, 'webhook': webhook, 'description': '',
             'place': int(webhook.split()[1]), 'count': 1, 'url': url,
             'reason': 'status 404; check webhookURL', 'attempts': 1, 'acceptedAt': '2026-11-22T09:30:00.123Z',
             'deadAt': '2026-11-22T09:30:01.123Z', 'alert': json.loads(base.body(execution))}
    found.update(fields)
    return (json.dumps(found, separators=(',', ':'), ensure_ascii=False) + '\n').encode()


def executions_of(entries):
    return [entry['alert']['executionId'] for entry in entries]


def place_with_letters(t, count, name='butler', **config):
    """A place with so many dead letters, no journal, a webhook that would take them; its sink and the executionIds."""
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}], name=name, **config)
    executions = [harness.guid() for _ in range(count)]
    place.fill(b'')
    base.write(place.path('dead-letters.ndjson'),
               b''.join(letter(base.webhook_key(sink.url()), execution) for execution in executions))
    return place, sink, executions


@harness.limit(60, 60)
def test_letter_form(t):
    """404: a dead letter with what a person and a program need; no secret in it; the mode of the file."""
    sink = t.add(base.Sink(lambda call: 404))
    url = sink.url('/hook?token=topsecret').replace('http://', 'http://user:geheim@')
    place = base.Place(t, [{'url': url, 'description': 'De"sk'}])
    process = place.start()
    execution = base.send(process, 1, message='semi;colon "quoted"\ttab')[0]
    t.check('it is told', process.wait_log(r'error: alert 1 given up for failure 1 \("De\\?"sk"\) after 1 attempt: '
                                           r'status 404; check webhookURL$', 5), base.tail(process))
    t.check('there is a letter', base.until(lambda: base.read(place.path('dead-letters.ndjson')).endswith(b'\n'), 5))
    lines = base.read(place.path('dead-letters.ndjson')).split(b'\n')
    t.equal('lines of the file', (len(lines), lines[-1]), (2, b''))
    found = json.loads(lines[0])
    t.equal('keys, in order', list(found), KEYS)
    t.check('compact', lines[0] == json.dumps(found, separators=(',', ':'), ensure_ascii=False).encode(), lines[0])
    t.equal('webhook-id', found['webhookId'], sink.seen[execution][0][0])
    t.equal('key', found['webhookKey'], base.webhook_key(url))
    t.check('webhook', found['webhook'].startswith('failure 1 ("De'), found['webhook'])
    t.equal('description and place', (found['description'], found['place'], found['count']), ('De"sk', 1, 1))
    t.check('url', found['url'].startswith('http://127.0.0.1:%d/hook' % sink.port), found['url'])
    t.check('no secret', b'geheim' not in lines[0] and b'topsecret' not in lines[0], lines[0])
    t.equal('reason', found['reason'], 'status 404; check webhookURL')
    t.equal('attempts', found['attempts'], 1)
    t.check('times', re.fullmatch(TIME, found['acceptedAt']) and re.fullmatch(TIME, found['deadAt']) and
            found['acceptedAt'] <= found['deadAt'], found)
    t.equal('alert', found['alert'], json.loads(sink.calls and base.body(
        execution, found['alert']['taskId'], 'semi;colon "quoted"\ttab')))
    t.equal('mode', os.stat(place.path('dead-letters.ndjson')).st_mode & harness.SYSTEM.others_file, 0)
    base.until(lambda: not place.waiting(), 5)      # the letter is written first
    t.equal('--pending while it runs', place.pending(), dict(base.NOTHING, dead=[found]))
    base.stop(t, process)
    t.equal('--pending when it has ended', place.pending(), dict(base.NOTHING, dead=[found]))
    numbers = base.stopped(process)
    t.check('the last line of the log', numbers and (numbers['given up'], numbers['waiting'], numbers['lost']) == (1, 0, 0),
            numbers)
    process = place.start()
    t.check('the next start counts it', process.wait_log(r' info: state directory .*: 0 alerts wait, .*dead letters?'),
            base.tail(process))
    base.stop(t, process)
    t.equal('it is still there, once', place.letters(), [found])


@harness.limit(60, 60)
def test_pending(t):
    """--pending for people and for programs, while the program runs and when it does not; it changes nothing."""
    sink = t.add(base.Sink(lambda call: 404 if call.path == '/gone' else 500))
    place = base.Place(t, [{'url': sink.url('/hook?token=topsecret'), 'description': 'Ops desk'},
                           {'url': sink.url('/gone'), 'kind': 'aborted'}])
    result = t.run('--pending', place.config)
    t.equal('no state yet: exit code', (result.returncode, result.stderr), (0, ''))
    t.equal('no state yet: --json', place.pending(), base.NOTHING)
    t.check('no state yet: none is made', not os.path.exists(place.state))
    process = place.start()
    t.equal('nothing waits', place.pending(), base.NOTHING)
    executions = base.send(process, 3)
    dead = base.send(process, 1, id='/scheduler-task-aborted/')
    key = base.webhook_key(place.webhooks[0]['url'])
    sink.wait_calls(4)
    base.until(lambda: len(place.letters()) == 1 and all(entry['attempts'] for entry in place.pending()['waiting']), 5)

    def look(when):
        before = {name: base.read(place.path(name)) for name in os.listdir(place.state)}
        answer = place.pending()
        table = t.run('--pending', place.config)
        if 'stopped' in when:
            t.equal('%s: it writes nothing' % when, {name: base.read(place.path(name)) for name in os.listdir(place.state)},
                    before)
        base.same(t, '%s: what waits' % when, executions_of(answer['waiting']), executions)
        t.equal('%s: what is dead' % when, executions_of(answer['dead']), dead)
        for entry in answer['waiting']:
            t.equal('%s: keys' % when, set(entry), WAITING_KEYS)
            t.check('%s: values' % when, entry['webhookId'] == base.webhook_id(entry['alert']['executionId'], key) and
                    entry['webhook'] == 'failure 1 ("Ops desk")' and re.fullmatch(TIME, entry['acceptedAt']) and
                    0 <= entry['ageSeconds'] < 60 and entry['attempts'] >= 1 and
                    re.fullmatch(TIME, entry['lastAttemptAt'] or '') and
                    'status 500' in (entry['lastError'] or ''), entry)
        t.equal('%s: exit code of the table' % when, (table.returncode, table.stderr), (0, ''))
        t.check('%s: the table names webhooks, reasons and tasks' % when, all(word in table.stdout for word in (
            'Ops desk', 'status 500', 'status 404', 'aborted 1', 'Reload of Sales')), table.stdout)
        t.check('%s: no secret' % when, 'topsecret' not in table.stdout + json.dumps(answer), table.stdout)
        t.check('%s: a table for people, not JSON' % when, not table.stdout.lstrip().startswith('{'), table.stdout)

    look('running')
    base.stop(t, process)
    look('stopped')
    t.equal('one argument is missing', t.run('--pending').returncode, 2)
    t.equal('a configuration that is not there', t.run('--pending', place.config + '.not').returncode, 2)


@harness.limit(60, 60)
def test_pending_never_tried(t):
    """What was never tried has no times and no error."""
    place, _ = base.refused_place(t)
    place.fill(base.accepted_record(base.webhook_key(place.webhooks[0]['url']), harness.guid()))
    entry = place.pending()['waiting'][0]
    t.equal('attempts and times', (entry['attempts'], entry['lastAttemptAt'], entry['lastError']), (0, None, None))


@harness.limit(60, 60)
def test_pending_while_it_changes(t):
    """--pending again and again while the journal is written and rewritten: what waits all the time is always there."""
    sink = t.add(base.Sink())
    down = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}, {'url': down.url(), 'kind': 'aborted'}], butlerWebhook=base.OURS)
    process = place.start(binary=t.binary_test)
    waiting = base.send(process, 8, id='/scheduler-task-aborted/')
    load = t.add(base.Load(place, 200))
    deadline = time.monotonic() + base.pick(3, 30)
    wrong = []
    runs = 0
    while time.monotonic() < deadline:
        runs += 1
        got = place.waiting()
        if not set(waiting) <= set(got):
            wrong.append('run %d: %d of %d' % (runs, len(set(waiting) & set(got)), len(waiting)))
    load.close()
    t.check('what waits is always there (%d runs)' % runs, not wrong, base.some(wrong))
    base.arrive(t, 'all of the load arrives', sink, set(base.accepted(process)) - set(waiting))
    base.stop(t, process)


# ---- --replay -------------------------------------------------------------------------------------------------------

WHEN = 'the service sends them within seconds if it runs, else at its next start'
BUSY = 'a replay is under way'


def replay(t, place, count, what='--replay', binary=None):
    """Runs --replay, which must hand over so many letters, and say so; 0: there are none."""
    result = t.run('--replay', place.config, binary=binary)
    wanted = '%d dead letter%s handed over: %s\n' % (count, '' if count == 1 else 's', WHEN) if count else 'no dead letters\n'
    t.equal(what, (result.returncode, result.stdout, result.stderr), (0, wanted, ''))


def taken_back(process):
    """How many letters the service says it has taken back, and how many stay."""
    found = [re.search(r' info: dead letters: (\d+) taken back to be sent again, (\d+) stay$', line).groups()
             for line in process.lines(' info: dead letters: ')]
    return sum(int(taken) for taken, _ in found), sum(int(stay) for _, stay in found)


def is_done(place):
    """Whether the service has taken in all that was handed over."""
    return not os.path.exists(place.path('replay.ndjson')) and not os.path.exists(place.path('replay.1.ndjson'))


@harness.limit(40, 40)
@harness.unix('files of another user')
def test_replay_by_root(t):
    """root replays for a service with a user of its own: no file of that user's changes hands."""
    if os.geteuid() != 0:
        t.skip('only root can give files away')
    place, _, _ = place_with_letters(t, 4)
    for name in [''] + os.listdir(place.state):
        os.chown(os.path.join(place.state, name), 65534, 65534)
    replay(t, place, 4)
    owners = {name: os.stat(place.path(name)).st_uid for name in os.listdir(place.state)}
    t.equal('all files are still the service\'s', owners, {'journal': 65534, 'replay.ndjson': 65534})


@harness.limit(60, 60)
def test_replay_not_running(t):
    """No service: the letters are handed over, and its next start sends them, by their old webhook-id."""
    place, sink, executions = place_with_letters(t, 12)
    letters = place.letters()
    rotated = harness.guid()
    base.write(place.path('dead-letters.1.ndjson'), letter(base.webhook_key(sink.url()), rotated))
    executions.append(rotated)
    letters += place.letters(['dead-letters.1.ndjson'])
    replay(t, place, 13)
    t.equal('nothing is sent', len(sink.calls), 0)
    answer = place.pending()
    t.equal('--pending says that they are handed over', (answer['waiting'], answer['dead']), ([], []))
    base.same(t, 'all of them', executions_of(answer['handedOver']), executions)
    table = t.run('--pending', place.config)
    t.check('so does its table', table.stdout.partition('to be sent again:\n')[2].count('Reload of Sales') == 13,
            table.stdout)
    base.write(place.path('dead-letters.ndjson'), letter(base.webhook_key(sink.url()), harness.guid()))
    result = t.run('--replay', place.config)
    t.check('a replay under way is said', result.returncode == 1 and BUSY in result.stderr, [result.returncode, result.stdout,
                                                                                             result.stderr])
    t.equal('and then nothing is changed', (len(place.letters()), len(place.pending()['handedOver'])), (1, 13))
    os.unlink(place.path('dead-letters.ndjson'))
    process = place.start()
    base.arrive(t, 'the next start sends them', sink, executions)
    t.check('it tells', base.until(lambda: taken_back(process) == (13, 0)), base.tail(process))
    t.equal('with their old webhook-id', {execution: sink.taken[execution][0][0] for execution in executions},
            {entry['alert']['executionId']: entry['webhookId'] for entry in letters})
    t.equal('each once', len(sink.calls), 13)
    t.check('the files are gone', base.until(lambda: is_done(place), 5), os.listdir(place.state))
    t.check('nothing is left', base.until(lambda: place.pending() == base.NOTHING, 5), place.pending())
    base.stop(t, process)
    replay(t, place, 0)
    process = place.start()
    base.arrive(t, 'the next alert arrives', sink, base.send(process, 1))
    t.equal('and nothing besides', len(sink.calls), 14)
    base.stop(t, process)

    place, sink, executions = place_with_letters(t, 1, name='off')
    base.write(place.config, b"Butler: {webhookNotification: {enable: false, reloadTaskFailure: {webhooks: [\n"
                             b"  {webhookURL: 'nonsense', httpMethod: POST}]}}}\n")
    result = t.run('--replay', place.config)
    t.check('off, with a webhook that cannot be called: usage error, and the letter stays',
            result.returncode == 2 and ':2:16: error: webhookURL is not a URL' in result.stderr and
            executions_of(place.letters()) == executions, result)

    sink = t.add(base.Sink())
    empty = base.Place(t, [{'url': sink.url()}], name='empty')
    replay(t, empty, 0, what='no state directory yet')
    t.check('and none is made', not os.path.exists(empty.state))


@harness.limit(60, 60)
def test_replay_running(t):
    """With the service running, it sends them within seconds; what fails waits or becomes a dead letter, as always."""
    for binary in (t.binary, t.binary_test):
        name = 'release' if binary == t.binary else 'test'
        place, sink, executions = place_with_letters(t, 40, name=name)
        process = place.start(binary=binary)
        t.check('the start counts them', process.wait_log(r' info: state directory .*: 0 alerts wait, .*dead letters'),
                base.tail(process))
        base.arrive(t, 'an alert arrives', sink, base.send(process, 1))
        t.equal('by itself it sends none of them', len(sink.calls), 1)
        replay(t, place, 40, binary=binary)
        base.arrive(t, 'all arrive', sink, executions, 10)
        t.equal('each once', len(sink.calls), 41)
        t.check('the letters are gone', base.until(lambda: is_done(place) and not place.pending()['dead'], 5),
                place.letters()[:1])
        base.arrive(t, 'other alerts arrive', sink, base.send(process, 3))
        sink.behave = lambda call: 410
        again = base.send(process, 2)
        base.until(lambda: len(place.letters()) == 2, 5)
        sink.behave = lambda call: 410 if call.number < 3 else 200
        replay(t, place, 2, what='refused again', binary=binary)
        t.check('refused again: dead letters again', base.until(lambda: len(place.letters()) == 2 and all(
            len(sink.seen[execution]) == 2 for execution in again), 10), place.letters())
        t.check('that is done', base.until(lambda: is_done(place), 10), os.listdir(place.state))
        replay(t, place, 2, what='the third time', binary=binary)
        base.arrive(t, 'the third time they are taken', sink, again)
        t.check('by the same webhook-id', not sink.ids_differ(), sink.ids_differ())
        t.check('nothing is left', base.until(lambda: place.pending() == base.NOTHING, 10), place.pending())
        base.stop(t, process)


@harness.limit(60, 60)
def test_replay_to_a_webhook_that_is_down(t):
    """They wait like all others, their age from now, and arrive when it is up."""
    place, sink, executions = place_with_letters(t, 9)
    sink.down()
    process = place.start()
    replay(t, place, 9)
    t.check('they wait', base.until(lambda: len(place.waiting()) == 9 and is_done(place)), place.pending())
    answer = place.pending()
    t.check('their age starts anew', all(entry['ageSeconds'] < 60 for entry in answer['waiting']), answer['waiting'])
    base.kill(process)
    base.same(t, 'after kill -9, too', place.waiting(), executions)
    process = place.start()
    sink.up()
    base.arrive(t, 'they arrive', sink, executions)
    t.check('each with its old webhook-id', [calls[0][0] for calls in sink.taken.values()] == [
        base.webhook_id(execution, base.webhook_key(sink.url())) for execution in sink.taken])
    base.stop(t, process)


@harness.limit(60, 60)
def test_replay_unknown_webhook(t):
    """A letter whose webhook is not in the configuration any more goes back to the dead letters, and is sent nowhere."""
    for running in (False, True):
        place, sink, executions = place_with_letters(t, 4, name='running' if running else 'stopped')
        stranger = harness.guid()
        line = letter(base.webhook_key('http://127.0.0.1:1/old'), stranger, webhook='aborted 7 ("gone")',
                      url='http://127.0.0.1:1/old')
        base.write(place.path('dead-letters.ndjson'), base.read(place.path('dead-letters.ndjson')) + line)
        process = place.start() if running else None
        for turn, again in (('once', 4), ('twice', 0)):
            replay(t, place, again + 1)
            process = process or place.start()
            t.check('%s: it says that one stays' % turn, process.wait_log(
                r' dead letters: %d taken back to be sent again, 1 stay' % again), base.tail(process))
            t.check('%s: it is a dead letter again' % turn, base.until(
                lambda: base.read(place.path('dead-letters.ndjson')) == line and is_done(place), 5), place.letters())
        base.arrive(t, 'the others arrive', sink, executions)
        t.check('it was sent nowhere', stranger not in sink.seen)
        base.stop(t, process)


@harness.limit(60, 60)
def test_replay_without_room(t):
    """What finds no room goes back to the dead letters: as much waits as may, and nothing that waited is pushed out."""
    sink = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}], butlerWebhook=dict(base.OURS, maxStateMB=16))
    key = base.webhook_key(sink.url())
    executions = [harness.guid() for _ in range(400)]
    place.fill(b'')
    base.write(place.path('dead-letters.ndjson'), b''.join(
        letter(key, execution, alert=json.loads(base.body(execution, message='x' * 3000))) for execution in executions))
    process = place.start(binary=t.binary_test)
    early = base.send(process, 3)
    replay(t, place, 400, binary=t.binary_test)
    match = process.wait_log(r' dead letters: (\d+) taken back to be sent again, (\d+) stay', 30)
    t.check('it tells', match and sum(map(int, match.groups())) == 400, base.tail(process))
    t.check('it is done', base.until(lambda: is_done(place)))
    waiting, dead = place.waiting(t.binary_test), executions_of(place.letters())
    base.same(t, 'none is lost', waiting + dead, executions + early)
    t.check('as many wait as there is room for', set(early) <= set(waiting) and 60 < len(waiting) < 120, len(waiting))
    sink.up()
    base.arrive(t, 'what waits arrives', sink, waiting)
    while place.letters():
        before = len(place.letters())
        replay(t, place, before, binary=t.binary_test)
        t.check('there is room again', base.until(lambda: is_done(place) and len(place.letters()) < before), len(place.letters()))
    base.arrive(t, 'in the end all arrive', sink, executions + early)
    base.stop(t, process)


@harness.limit(60, 60)
def test_replay_damaged_letters(t):
    """Lines of the file that are no letters are kept as they are; a torn one does not spoil the next."""
    for running in (False, True):
        name = 'running' if running else 'stopped'
        place, sink, executions = place_with_letters(t, 4, name=name)
        good = base.read(place.path('dead-letters.ndjson')).splitlines(keepends=True)
        key = base.webhook_key(sink.url())
        bad = [b'garbage\n', b'{"webhookId":"msg_1"}\n', b'\xff\xfe\x00\n', b'[]\n', b'[' * 3000 + b'\n',
               b'{"webhookId":5,"webhookKey":[],"alert":1}\n', letter(key, harness.guid())[:-40] + b'\n',
               letter(key, harness.guid(), alert={'event': 5}), letter(key, harness.guid())[:-1] + b'}\n',
               letter(key, harness.guid()).replace(b'Reload of Sales', b'Reload of \xff')]
        torn = letter(key, harness.guid())[:-25]
        content = b''.join(g + b for g, b in zip(good, bad)) + b''.join(bad[len(good):]) + torn
        base.write(place.path('dead-letters.ndjson'), content)
        base.same(t, '%s: --pending shows the good ones' % name, executions_of(place.pending()['dead']), executions)
        process = place.start() if running else None
        if running:
            sink.behave = lambda call: 404 if call.number == 1 and call.execution not in executions else 200
            new = base.send(process, 1)[0]
            t.check('a new letter is whole in spite of the torn line before it', base.until(
                lambda: new in executions_of(place.pending()['dead']), 5), base.read(place.path('dead-letters.ndjson'))[-800:])
            executions.append(new)
        done = t.run('--replay', place.config)
        t.equal('%s: --replay' % name, (done.returncode, done.stderr), (0, ''))
        process = process or place.start()
        base.arrive(t, '%s: the good ones arrive' % name, sink, executions)
        t.check('%s: it is done' % name, base.until(lambda: is_done(place)), os.listdir(place.state))
        t.check('%s: it tells' % name, process.wait_log(r' dead letters: %d taken back to be sent again, %d stay' % (
            len(executions), len(bad) + 1)), base.tail(process))
        base.stop(t, process)
        left = base.read(place.path('dead-letters.ndjson'))
        t.equal('%s: the damaged lines are kept' % name, sorted(left.splitlines()), sorted(b''.join(bad + [torn]).splitlines()))


def everywhere(place, sink, binary=None):
    """
    The executionIds of all alerts that wait, are dead, handed over or delivered. What moves meanwhile may be seen twice, but
    not never: it is written to where it goes before it leaves where it was, and here it is looked for in that order.
    """
    found = set(executions_of(place.letters(('replay.1.ndjson', 'replay.ndjson'))))
    answer = place.pending(binary)
    for name in base.NOTHING:
        found |= set(executions_of(answer[name]))
    with sink._changed:
        return found | set(sink.taken)


@harness.limit(60, 300)
def test_replay_killed(t):
    """kill -9 of --replay, or of the service that takes them back, at random moments: none is ever lost."""
    numbers = base.rng(t)
    count = base.pick(400, 3000)
    place, sink, executions = place_with_letters(t, count, butlerWebhook=base.OURS)
    sink.behave = base.fickle(numbers, good=0.6, error=0.4, hang=0, good_from=3)
    kills = 0
    for n in range(base.pick(9, 60)):
        if not place.letters():     # all are under way: start again with new ones
            more = [harness.guid() for _ in range(count)]
            executions += more
            base.write(place.path('dead-letters.ndjson'),
                       b''.join(letter(base.webhook_key(sink.url()), execution) for execution in more))
        who = ('alone', 'service', 'asker')[n % 3]
        binary = t.binary if n % 2 else t.binary_test
        process = None if who == 'alone' else place.start(binary=binary)
        asker = subprocess.Popen(harness.SYSTEM.command(binary, ['--replay', place.config]), stdin=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=t.environment())
        time.sleep(numbers.uniform(0, 0.06) if n % 4 else numbers.uniform(0, 1.4))
        kills += asker.poll() is None or who == 'service'
        if who == 'service':
            base.kill(process)
        asker.kill()
        asker.wait()
        if who == 'asker':      # the service goes on with it, and dies a little later
            time.sleep(numbers.uniform(0, 1.1))
            base.kill(process)
        lost = set(executions) - everywhere(place, sink)
        t.check('round %d, %s killed: none is lost' % (n, who), not lost, base.some(lost))
    t.check('something was killed in the middle', kills > 0, kills)
    sink.behave = None
    process = place.start()
    t.check('what was handed over is taken back', base.until(lambda: is_done(place)), os.listdir(place.state))
    base.until(lambda: not place.waiting())
    result = t.run('--replay', place.config)
    t.equal('replayed at last', (result.returncode, result.stderr), (0, ''))
    missing = sink.wait(executions, 30)
    t.check('all arrive at last', not missing, base.some(missing))
    t.check('each with one webhook-id', not sink.ids_differ(), base.some(sink.ids_differ()))
    t.check('nothing is left', base.until(lambda: place.pending() == base.NOTHING, 10), place.pending()['dead'][:1])
    base.stop(t, process)
    base.note(t, '%d letters, %d kills, doubles %d' % (len(executions), kills, sink.doubles()))


@harness.limit(60, 60)
def test_replay_is_synced_first(t):
    """The files go only once what they held is synced elsewhere: a power cut before that loses none."""
    shim = base.Shim(t)
    place, sink, executions = place_with_letters(t, 30, butlerWebhook=base.OURS)
    sink.down()
    gone = harness.guid()
    with open(place.path('dead-letters.ndjson'), 'ab') as file:
        file.write(letter(base.webhook_key('http://127.0.0.1:1/old'), gone, webhook='aborted 7'))
    process = place.start(binary=t.binary_test, env=shim.env)
    base.send(process, 1)
    base.settled(shim)
    shim.set(sync_delay_ms=60000)
    replay(t, place, 31, binary=t.binary_test)
    t.check('they are taken back', process.wait_log(r' again from the dead letters, for ', 10, 30), base.tail(process))
    t.check('a sync hangs', base.until(lambda: shim.get('hits') > 0, 10))
    process.send(b'another round of the loop')
    process.wait_log('malformed datagram')
    t.check('the file is still there', os.path.exists(place.path('replay.ndjson')), os.listdir(place.state))
    base.cut_power(place, process, shim)
    lost = set(executions + [gone]) - everywhere(place, sink)
    t.check('after a power cut none is lost', not lost, base.some(lost))
    shim.set(sync_delay_ms=0)
    sink.up()
    process = place.start(binary=t.binary_test, env=shim.env)
    base.arrive(t, 'they arrive', sink, executions)
    t.check('the one without a webhook is a dead letter', base.until(
        lambda: set(executions_of(place.letters())) == {gone} and is_done(place)), place.letters())
    base.stop(t, process)


@harness.limit(60, 60)
def test_replay_that_cannot_be_read(t):
    """A part of what was handed over cannot be read: it is told, the rest is sent, and the file stays until it can be read."""
    shim = base.Shim(t)
    place, sink, executions = place_with_letters(t, 30, butlerWebhook=base.OURS)
    process = place.start(binary=t.binary_test, env=shim.env)
    base.arrive(t, 'an alert arrives', sink, base.send(process, 1))
    shim.set(read_from=8192, read_to=12288)
    replay(t, place, 30)
    t.check('it is told', process.wait_log(r' error: .*replay\.ndjson'), base.tail(process))
    t.check('the rest is sent', base.until(lambda: len(sink.missing(executions)) <= 9), base.some(sink.missing(executions)))
    t.check('the file is still there', os.path.exists(place.path('replay.ndjson')), os.listdir(place.state))
    base.kill(process)
    lost = set(executions) - everywhere(place, sink)
    t.check('none is lost', not lost, base.some(lost))
    shim.set(read_from=0, read_to=0)
    process = place.start(binary=t.binary_test, env=shim.env)
    base.arrive(t, 'once it can be read all arrive', sink, executions)
    t.check('and it is done', base.until(lambda: is_done(place)), os.listdir(place.state))
    base.stop(t, process)


@harness.limit(60, 60)
def test_replay_while_the_service_hangs(t):
    """A service that does not go on at the moment: --replay does not wait for it, and nothing is lost."""
    if harness.WINDOWS:
        t.skip('wine: a stopped process holds up others')
    place, sink, executions = place_with_letters(t, 3)
    process = place.start()
    os.kill(process.pid, signal.SIGSTOP)
    try:
        begin = time.monotonic()
        replay(t, place, 3)
        t.check('it does not wait', time.monotonic() - begin < 5 * harness.SLOW, time.monotonic() - begin)
        result = t.run('--replay', place.config)
        t.check('a second one says that a replay is under way', result.returncode == 1 and BUSY in result.stderr, result)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    base.arrive(t, 'they arrive', sink, executions)
    base.stop(t, process)


@harness.limit(60, 60)
def test_letters_rotate(t):
    """At 64 MB the file is rotated; one old one is kept."""
    sink = t.add(base.Sink(lambda call: 404))
    place = base.Place(t, [{'url': sink.url()}])
    key = base.webhook_key(sink.url())
    place.fill(b'')
    base.write(place.path('dead-letters.1.ndjson'), letter(key, 'of-the-file-before'))
    line = letter(key, 'of-the-full-file', reason='x' * 60000)
    with open(place.path('dead-letters.ndjson'), 'wb') as file:
        for _ in range((64 << 20) // len(line)):
            file.write(line)
        room = (64 << 20) - file.tell() - len(letter(key, 'of-the-full-file', reason='')) - 200
        file.write(letter(key, 'of-the-full-file', reason='x' * room))
    full = os.path.getsize(place.path('dead-letters.ndjson'))
    t.check('it is nearly full', (64 << 20) - 300 < full <= 64 << 20, full)
    process = place.start()
    executions = [base.send(process, 1)[0] for _ in range(5)]
    t.check('all are logged', process.wait_log(' given up for ', 10, count=5))
    t.check('the file is rotated', base.until(lambda: os.path.getsize(place.path('dead-letters.1.ndjson')) >= full, 5),
            os.path.getsize(place.path('dead-letters.1.ndjson')))
    executions += base.send(process, 1)
    t.check('the one after it, too', process.wait_log(' given up for ', 10, count=6))
    base.stop(t, process)
    old, new = (base.read(place.path(name)) for name in ('dead-letters.1.ndjson', 'dead-letters.ndjson'))
    t.check('the old one is kept', full <= len(old) <= full + 5000, len(old))
    t.check('the one before is gone', b'of-the-file-before' not in old)
    found = [execution for execution in executions if execution.encode() in old or execution.encode() in new]
    t.equal('no letter is lost', found, executions)
    t.check('each line is whole', all(json.loads(line) for line in new.split(b'\n')[:-1]) and new.endswith(b'\n'))


@harness.limit(60, 60)
def test_letter_and_kill(t):
    """kill -9 while alerts become dead letters: each is a letter or waits, none is in neither."""
    numbers = base.rng(t)
    sink = t.add(base.Sink(lambda call: 404))
    place = base.Place(t, [{'url': sink.url()}])
    accepted = []
    for n in range(base.pick(6, 80)):
        binary = t.binary if n % 2 else t.binary_test
        process = place.start(binary=binary)
        load = t.add(base.Load(place, 200))
        time.sleep(numbers.uniform(0.1, 0.5))
        base.kill(process)
        load.close()
        accepted += base.accepted(process)
        lost = set(accepted) - everywhere(place, sink)
        t.check('round %d: none is lost' % n, accepted and not lost, base.some(lost))
    twice = len(place.letters()) - len(set(executions_of(place.letters())))
    base.note(t, '%d letters, %d twice' % (len(place.letters()), twice))
    t.check('few letters are there twice', twice <= 10 * base.pick(6, 80), twice)
    process = place.start()
    sink.behave = None
    base.until(lambda: not place.waiting(), 10)
    t.run('--replay', place.config)
    missing = sink.wait(accepted, 30)
    t.check('--replay delivers all', not missing, base.some(missing))
    t.check('each with one webhook-id', not sink.ids_differ(), base.some(sink.ids_differ()))
    base.stop(t, process)


@harness.limit(60, 60)
def test_letters_while_rewriting(t):
    """Dead letters that come all the time do not keep the journal from being rewritten."""
    shim = base.Shim(t)
    sink = t.add(base.Sink(lambda call: 404))
    place = base.Place(t, [{'url': sink.url()}])
    process = place.start(binary=t.binary_test, env=shim.env)
    shim.set(sync_delay_ms=30)
    most, executions = 0, []
    for _ in range(20):
        executions += base.send(process, 25, sink=sink, window=3)
        most = max(most, len(base.read(place.path())))
    t.check('the journal stays small', most < 1 << 17, most)
    t.equal('nothing is told', process.lines(r' error: state directory: '), [])
    base.kill(process)
    lost = set(executions) - everywhere(place, sink)
    t.check('none is lost', len(executions) == 500 and not lost, base.some(lost))


@harness.limit(60, 60)
def test_letters_unwritable(t):
    """
    dead-letters.ndjson cannot be written: letters wait, told once, and everything else goes on. A person has it open on
    Windows; here a directory has its name.
    """
    sink = t.add(base.Sink(lambda call: 404 if call.path == '/gone' else 200))
    place = base.Place(t, [{'url': sink.url()}, {'url': sink.url('/gone'), 'kind': 'aborted'}])
    os.makedirs(place.path('dead-letters.ndjson'))
    process = place.start(binary=t.binary_test)
    dead = base.send(process, 3, id='/scheduler-task-aborted/')
    t.check('they are given up',
            process.wait_log(r' error: alert \d+ given up for aborted 1 after 1 attempt: status 404', count=3),
            base.tail(process))
    t.check('it is told', process.wait_log(UNWRITTEN, 5), base.tail(process))
    executions = base.send(process, 150, sink=sink, window=20)
    dead += base.send(process, 2, id='/scheduler-task-aborted/')
    base.arrive(t, 'other alerts arrive', sink, executions)
    t.check('the journal is rewritten all the same', base.until(lambda: len(base.read(place.path())) < 40000),
            len(base.read(place.path())))
    t.equal('told once', len(process.lines(UNWRITTEN)), 1)
    base.same(t, 'until they can be written they wait', place.waiting(code=1), dead)
    base.kill(process)
    process = place.start(binary=t.binary_test)
    t.check('after kill -9 they are told again, too', process.wait_log(UNWRITTEN, 15), base.tail(process))
    begin = time.monotonic()
    base.stop(t, process)
    t.check('a stop ends in time', time.monotonic() - begin < 5.5 * harness.SLOW, time.monotonic() - begin)
    base.same(t, 'after it they wait, too', place.waiting(code=1), dead)
    process = place.start(binary=t.binary_test)
    process.wait_log(UNWRITTEN)
    os.rmdir(place.path('dead-letters.ndjson'))
    t.check('then they are written', base.until(lambda: len(place.letters()) == len(dead)), len(place.letters()))
    base.same(t, 'each once', executions_of(place.letters()), dead)
    t.check('it is told that it works again', process.wait_log(WRITTEN, 5), base.tail(process))
    t.check('nothing waits', base.until(lambda: not place.waiting()), place.waiting())
    base.stop(t, process)


@harness.limit(60, 60)
def test_letters_too_many_for_memory(t):
    """Letters that cannot be written wait in memory, at most 8 MiB of them; beyond that they are logged whole, and ended."""
    sink = t.add(base.Sink(lambda call: 404))
    place = base.Place(t, [{'url': sink.url()}])
    os.makedirs(place.path('dead-letters.ndjson'))
    process = place.start()
    told = base.Told(process)
    executions = base.send(process, 200, message='m' * 60000, told=told, sink=sink, window=5)
    t.check('all are given up', process.wait_log(r' error: alert \d+ given up for failure 1 ', 20, count=200), base.tail(process))
    base.until(lambda: len(told.update().whole['given up']) >= 60)
    whole = told.executions('given up')
    t.check('8 MiB wait', 55 <= len(whole) <= 65, len(whole))
    t.check('the others were logged whole', all(len(alert['logMessage']) == 60000 for alert in told.whole['given up']))
    os.rmdir(place.path('dead-letters.ndjson'))
    t.check('once there is a file the others are in it', base.until(lambda: len(place.letters()) == 200 - len(whole)),
            len(place.letters()))
    base.same(t, 'each alert is in the file or in the log', whole + executions_of(place.letters()), executions)
    base.stop(t, process)


@harness.limit(60, 60)
def test_letters_and_a_broken_disk(t):
    """A dead letter that cannot be written waits until it can; --replay on such a disk loses none."""
    shim = base.Shim(t)
    place, sink, executions = place_with_letters(t, 6, butlerWebhook=base.OURS)
    sink.behave = lambda call: 404 if call.number == 1 and call.execution not in executions else 200
    process = place.start(binary=t.binary_test, env=shim.env)
    for name in ('write_errno', 'write_room', 'sync_errno', 'open_errno', 'letters_errno', 'rename_errno', 'read_errno'):
        shim.set(**{name: -1 if name == 'write_room' else errno.EIO})
        new = base.send(process, 2)
        t.equal('%s: alerts are accepted' % name, len(new), 2)
        t.check('%s: they are given up' % name, base.until(lambda: all(sink.seen[execution] for execution in new) and len(
            process.lines(r' given up for ')) >= 2, 10), base.tail(process))
        t.run('--replay', place.config, binary=t.binary_test)
        shim.set(**{name: 0})
        executions += new
        t.check('%s: none is lost' % name, base.until(lambda: set(executions) <= everywhere(place, sink), 10),
                base.some(set(executions) - everywhere(place, sink)))
        t.check('%s: the new ones are dead letters, or were replayed' % name, base.until(lambda: set(new) <= set(
            executions_of(place.letters())) | set(sink.taken), 10), base.some(set(new) - set(executions_of(place.letters()))))
        base.kill(process)
        lost = set(executions) - everywhere(place, sink)
        t.check('%s: after kill -9, too' % name, not lost, base.some(lost))
        process = place.start(binary=t.binary_test, env=shim.env)
    t.check('what was handed over is taken back', base.until(lambda: is_done(place)), os.listdir(place.state))
    t.run('--replay', place.config, binary=t.binary_test)
    base.arrive(t, 'all arrive', sink, executions)
    t.check('each with one webhook-id', not sink.ids_differ(), base.some(sink.ids_differ()))
    base.stop(t, process)


# ---- Webhooks that change between two starts ------------------------------------------------------------------------


def change(t, name, before, after, expect):
    """
    Alerts wait for the webhooks of one configuration, one for each; then the program starts with another one. before, after:
    lists of webhooks, `to` of each being the number of a sink, `path` (/) and what else a webhook has. expect: for each of
    before the number of the sink where its alert must arrive, or None for a dead letter. Gives the new place, its running
    program, a place with the old configuration, and the executionIds.
    """
    sinks = [t.add(base.Sink()) for _ in range(6)]

    def webhooks(entries):
        return [dict({key: value for key, value in entry.items() if key not in ('to', 'path')},
                     url=sinks[entry['to']].url(entry.get('path', '/'))) for entry in entries]

    state = os.path.join(t.tmp, name + '.state')
    old = base.Place(t, webhooks(before), name=name + '-old', state=state)
    new = base.Place(t, webhooks(after), name=name + '-new', state=state)
    known, alerts, executions = b'', b'', []
    same, placed = {}, {}
    for entry in old.webhooks:
        kind, method = entry.get('kind', 'failure'), entry.get('method', 'POST')
        n = same[kind, method, entry['url']] = same.get((kind, method, entry['url']), -1) + 1
        key = base.webhook_key(entry['url'], method, kind, n)
        placed[kind] = placed.get(kind, 0) + 1
        listed = sum(other.get('kind', 'failure') == kind for other in old.webhooks)
        known += base.webhook_record(key, kind, placed[kind], listed, entry.get('description', ''))
        executions.append(harness.guid())
        alerts += base.accepted_record(key, executions[-1], kind=kind)
    old.fill(known + alerts)
    base.same(t, '%s: with the old configuration they wait' % name, old.waiting(), executions)
    base.same(t, '%s: with the new one, too' % name, new.waiting(), executions)
    process = new.start()
    arrived = {}

    def settle():
        arrived.clear()
        arrived.update({execution: number for number, sink in enumerate(sinks) for execution in list(sink.taken)})
        arrived.update({execution: None for execution in executions_of(new.letters())})
        return len(arrived) >= len(executions) and not new.waiting()

    base.until(settle, 15)
    t.equal('%s: where each alert arrives' % name, [arrived.get(execution, 'nowhere') for execution in executions], expect)
    return new, process, old, executions


def changes(t, name, *rest):
    """The same, and the program ends."""
    _, process, _, _ = change(t, name, *rest)
    base.stop(t, process, '%s: exit code' % name)


@harness.limit(60, 60)
def test_webhooks_change(t):
    changes(t, 'unchanged', [{'to': 0}, {'to': 1}], [{'to': 0}, {'to': 1}], [0, 1])
    changes(t, 'reordered', [{'to': 0}, {'to': 1}, {'to': 2}], [{'to': 2}, {'to': 0}, {'to': 1}], [0, 1, 2])
    changes(t, 'one more in front', [{'to': 0}, {'to': 1}], [{'to': 2}, {'to': 0}, {'to': 1}], [0, 1])
    changes(t, 'url changed, same description', [{'to': 0, 'description': 'A'}, {'to': 1, 'description': 'B'}],
            [{'to': 2, 'description': 'B'}, {'to': 3, 'description': 'A'}, {'to': 4}], [3, 2])
    changes(t, 'url changed, by place', [{'to': 0}, {'to': 1}, {'to': 2}], [{'to': 0}, {'to': 3}, {'to': 2}], [0, 3, 2])
    changes(t, 'url changed, description twice', [{'to': 0, 'description': 'A'}, {'to': 1, 'description': 'A'}],
            [{'to': 0, 'description': 'A'}, {'to': 2, 'description': 'A'}], [0, 2])
    changes(t, 'description twice, list shorter', [{'to': 0, 'description': 'A'}, {'to': 1, 'description': 'A'}, {'to': 2}],
            [{'to': 0, 'description': 'A'}, {'to': 3, 'description': 'A'}], [0, None, None])
    changes(t, 'method changed, by description', [{'to': 0, 'description': 'A'}],
            [{'to': 0, 'description': 'A', 'method': 'PUT'}], [0])
    changes(t, 'the same url twice', [{'to': 0, 'description': 'A'}, {'to': 0, 'description': 'B'}],
            [{'to': 0, 'description': 'A'}, {'to': 0, 'description': 'B'}], [0, 0])
    changes(t, 'kinds apart', [{'to': 0}, {'to': 1, 'kind': 'aborted'}], [{'to': 0}, {'to': 2, 'kind': 'aborted'}], [0, 2])
    changes(t, 'the same description in the other kind', [{'to': 0, 'description': 'A'}, {'to': 1, 'kind': 'aborted',
            'description': 'A'}], [{'to': 2, 'description': 'A'}, {'to': 3, 'kind': 'aborted', 'description': 'A'}], [2, 3])


@harness.limit(60, 60)
def test_webhooks_change_twice(t):
    """The repair of a wrong URL, and of its repair, while the alert waits: the program's own lines are enough to find it."""
    sinks = [t.add(base.Sink(up=False)) for _ in range(3)]
    execution = None
    for number, sink in enumerate(sinks):
        place = base.Place(t,
                           [{'url': sink.url(), 'description': 'Desk'}, {'url': sinks[0].url('/other'), 'description': 'Desk'}],
                           name='round%d' % number, state=os.path.join(t.tmp, 'kept'))
        if number == 2:
            sink.up()
            sinks[0].up()
        process = place.start()
        if number == 0:
            execution = base.send(process, 1)[0]
            process.wait_log(' is down')
        elif number == 1:       # for webhooks as they are now
            t.check('the journal is written anew', base.until(lambda: base.webhook_key(sink.url()) in {
                line.keys for line in place.journal() if line.word == 'webhook'}))
        base.kill(process) if number < 2 else None
    base.arrive(t, 'it arrives at the last one', sinks[2], [execution])
    base.arrive(t, 'and at the other webhook', sinks[0], [execution])
    t.check('then nothing waits, and nothing is dead', base.until(lambda: place.pending() == base.NOTHING), place.pending())
    base.stop(t, process)


@harness.limit(60, 60)
def test_webhook_removed(t):
    """Its alerts become dead letters that say where they were meant to go; --replay takes them to where they still can go."""
    new, process, old, executions = change(t, 'removed', [{'to': 0}, {'to': 1, 'description': 'Old desk'}, {'to': 2}],
                                           [{'to': 0}, {'to': 2}], [0, None, 2])
    letters = new.letters()
    t.equal('letters', executions_of(letters), executions[1:2])
    t.equal('with the old name and no URL', (letters[0]['webhook'], letters[0]['url']), ('failure 2 ("Old desk")', ''))
    t.equal('keys', list(letters[0]), KEYS)
    t.check('it is told', process.wait_log(r' error: alert \d+ given up for failure 2 \("Old desk"\) after 0 attempts: '
                                           r'its webhook is not in the configuration any more'), base.tail(process))
    replay(t, new, 1)
    t.check('it stays', process.wait_log(r' dead letters: 0 taken back to be sent again, 1 stay') and base.until(
        lambda: new.letters() == letters), new.letters())
    base.stop(t, process)
    replay(t, old, 1, 'with the old configuration')
    process = old.start()
    t.check('it is delivered', process.wait_log(r' delivered to failure 2 \("Old desk"\)'), base.tail(process))
    t.check('and is gone', base.until(lambda: old.pending() == base.NOTHING), old.pending())
    base.stop(t, process)
    changes(t, 'all removed', [{'to': 0}, {'to': 1, 'kind': 'aborted'}], [{'to': 1, 'kind': 'aborted'}], [None, 1])
    changes(t, 'removed, list shorter', [{'to': 0}, {'to': 1}], [{'to': 2}], [None, None])
    changes(t, 'removed, one that stays has its description', [{'to': 0, 'description': 'A'}, {'to': 1, 'description': 'A'}],
            [{'to': 1, 'description': 'A'}], [None, 1])
    changes(t, 'removed, one that stays has its place', [{'to': 0}, {'to': 1}], [{'to': 1}, {'to': 2}], [None, 1])
    changes(t, 'two have become one', [{'to': 0, 'description': 'A'}, {'to': 1, 'description': 'A'}],
            [{'to': 2, 'description': 'A'}], [2, None])


@harness.limit(60, 60)
def test_webhook_removed_survives_kill(t):
    """Many alerts of a webhook that is gone: kill -9 while they become dead letters."""
    numbers = base.rng(t)
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}])
    gone = base.webhook_key('http://127.0.0.1:1/gone')
    executions = [harness.guid() for _ in range(base.pick(300, 2000))]
    place.fill(base.webhook_record(gone, place=2, listed=2) + b''.join(
        base.accepted_record(gone, execution) for execution in executions))
    for n in range(base.pick(5, 40)):
        process = place.start(wait=False)
        time.sleep(numbers.uniform(0, 0.05))
        base.kill(process)
        lost = set(executions) - everywhere(place, sink)
        t.check('round %d: none is lost' % n, not lost, base.some(lost))
    process = place.start()
    t.check('all are dead letters', base.until(lambda: set(executions_of(place.letters())) == set(executions), 10),
            len(place.letters()))
    t.check('nothing waits', base.until(lambda: not place.waiting(), 10), base.some(place.waiting()))
    t.equal('nothing was sent', len(sink.calls), 0)
    base.stop(t, process)


@harness.limit(60, 60)
def test_webhook_unknown(t):
    """The line that describes a webhook is damaged, and the configuration was edited: a dead letter, not silence."""
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}])
    gone, kept = harness.guid(), harness.guid()
    place.fill(base.accepted_record(base.webhook_key('http://127.0.0.1:1/gone'), gone) +
               base.accepted_record(base.webhook_key(sink.url()), kept))
    process = place.start()
    base.arrive(t, 'the other alert arrives', sink, [kept])
    t.check('it is a dead letter', base.until(lambda: executions_of(place.letters()) == [gone], 5), place.letters())
    base.stop(t, process)


@harness.limit(40, 40)
def test_webhooks_of_many_configurations(t):
    """A journal that names thousands of webhooks which nobody has: each alert becomes a dead letter, and the others go on."""
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}])
    gone = [harness.guid() for _ in range(4000)]
    kept = harness.guid()
    keys = [base.webhook_key('http://gone.example/%d' % i) for i in range(len(gone))]
    place.fill(b''.join(base.webhook_record(key, place=2, listed=2) for key in keys) + b''.join(
        base.accepted_record(key, execution) for key, execution in zip(keys, gone)) +
        base.accepted_record(base.webhook_key(sink.url()), kept))
    process = place.start()
    base.arrive(t, 'the alert of a webhook that is there arrives', sink, [kept])
    t.check('the others are dead letters', base.until(lambda: len(place.letters()) == len(gone), 20), len(place.letters()))
    base.same(t, 'each one once', executions_of(place.letters()), gone)
    base.stop(t, process)
