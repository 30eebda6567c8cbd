"""Dead letters, --pending, --replay, and webhooks that change between two starts."""

import errno
import json
import os
import re
import subprocess
import time

import faults_base as base
import faults_journal
import harness

KEYS = ['webhookId', 'webhookKey', 'webhook', 'description', 'place', 'count', 'url', 'reason', 'attempts', 'acceptedAt',
        'deadAt', 'alert']
WAITING_KEYS = {'webhookId', 'webhook', 'acceptedAt', 'ageSeconds', 'attempts', 'lastAttemptAt', 'nextAttemptAt', 'lastError',
                'alert'}
TIME = r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z'


def letter(key, execution, id=None, webhook='failure 1', url='http://127.0.0.1/hook', **fields):
    """A line of dead-letters.ndjson, as the program writes them."""
    found = {'webhookId': id or base.new_id(), 'webhookKey': key, 'webhook': webhook, 'description': '',
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


@base.limits(60, 60)
def test_letter_form(t):
    """404: a dead letter with what a person and a program need; no secret in it; the mode of the file."""
    sink = t.add(base.Sink(lambda call: 404))
    url = sink.url('/hook?token=topsecret').replace('http://', 'http://user:geheim@')
    place = base.Place(t, [{'url': url, 'description': 'De"sk'}])
    process = place.start()
    execution = base.send(process, 1, message='semi;colon "quoted"\ttab')[0]
    t.check('it is logged whole', process.wait_log(r'error: alert 1 given up for failure 1 \("De\\?"sk"\) after 1 attempt: '
                                                   r'status 404; check webhookURL; alert: \{.*%s' % execution, 5),
            base.tail(process))
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
    t.equal('--pending while it runs', place.pending(), {'waiting': [], 'dead': [found]})
    base.stop(t, process)
    t.equal('--pending when it has ended', place.pending(), {'waiting': [], 'dead': [found]})
    numbers = base.stopped(process)
    t.check('the last line of the log', numbers and (numbers['given up'], numbers['waiting'], numbers['lost']) == (1, 0, 0),
            numbers)
    process = place.start()
    t.check('the next start counts it', process.wait_log(r' info: state directory .*: 0 alerts wait, .*dead letters?'),
            base.tail(process))
    base.stop(t, process)
    t.equal('it is still there, once', place.letters(), [found])


@base.limits(60, 60)
def test_pending(t):
    """--pending for people and for programs, while the program runs and when it does not; it changes nothing."""
    sink = t.add(base.Sink(lambda call: 404 if call.path == '/gone' else 500))
    place = base.Place(t, [{'url': sink.url('/hook?token=topsecret'), 'description': 'Ops desk'},
                           {'url': sink.url('/gone'), 'kind': 'aborted'}])
    result = t.run('--pending', place.config)
    t.equal('no state yet: exit code', (result.returncode, result.stderr), (0, ''))
    t.equal('no state yet: --json', place.pending(), {'waiting': [], 'dead': []})
    t.check('no state yet: none is made', not os.path.exists(place.state))
    process = place.start()
    t.equal('nothing waits', place.pending(), {'waiting': [], 'dead': []})
    executions = base.send(process, 3)
    dead = base.send(process, 1, id='/scheduler-task-aborted/')
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
            t.check('%s: values' % when, re.fullmatch(r'msg_[0-9a-f]{32}', entry['webhookId']) and
                    entry['webhook'] == 'failure 1 ("Ops desk")' and re.fullmatch(TIME, entry['acceptedAt']) and
                    0 <= entry['ageSeconds'] < 60 and entry['attempts'] >= 1 and
                    re.fullmatch(TIME, entry['lastAttemptAt'] or '') and re.fullmatch(TIME, entry['nextAttemptAt'] or '') and
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


@base.limits(60, 60)
def test_pending_never_tried(t):
    """What was never tried has no times and no error."""
    place, _ = faults_journal.refused_place(t)
    place.fill(base.accepted_record(base.webhook_key(place.webhooks[0]['url']), harness.guid()))
    entry = place.pending()['waiting'][0]
    t.equal('attempts and times', (entry['attempts'], entry['lastAttemptAt'], entry['nextAttemptAt'], entry['lastError']),
            (0, None, None, None))


@base.limits(60, 60)
def test_pending_while_it_changes(t):
    """--pending again and again while the journal is written and rewritten: what waits all the time is always there."""
    sink = t.add(base.Sink())
    down = t.add(base.Sink(up=False))
    place = base.Place(t, [{'url': sink.url()}, {'url': down.url(), 'kind': 'aborted'}], butlerWebhook=faults_journal.OURS)
    process = place.start(binary=t.binary_test)
    waiting = base.send(process, 8, id='/scheduler-task-aborted/')
    load = t.add(base.Load(place.port, 200))
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


def replay(t, place, what='exit code', code=0, binary=None):
    """Runs --replay, and checks its exit code; gives its result."""
    result = t.run('--replay', place.config, binary=binary)
    t.check(what, result.returncode == code and not result.stderr, '%r' % [result.returncode, result.stdout, result.stderr])
    return result


@base.limits(40, 40)
@harness.unix('files of another user')
def test_replay_by_root(t):
    """root replays for a service with a user of its own: what it writes must stay that user's."""
    if os.geteuid() != 0:
        t.skip('only root can give files away')
    place, sink, executions = place_with_letters(t, 4)
    sink.behave = lambda call: 404
    for name in [''] + os.listdir(place.state):
        os.chown(os.path.join(place.state, name), 65534, 65534)
    result = t.run('--replay', place.config)
    t.check('they are dead letters again', len(place.letters()) == 4, result.stdout)
    owners = {name: os.stat(place.path(name)).st_uid for name in os.listdir(place.state)}
    t.equal('all files are still the service\'s', set(owners.values()), {65534})


@base.limits(40, 40)
def test_webhook_removed_and_unreadable(t):
    """What waits for a webhook that is gone cannot be read, and the journal wants to be rewritten: wait, do not spin."""
    shim = base.Shim(t)
    sink = t.add(base.Sink(up=False))
    other = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url(), 'description': 'gone'}, {'url': other.url()}])
    process = place.start(binary=t.binary_test)
    executions = base.send(process, 30)
    base.until(lambda: not other.missing(executions), 10)
    base.kill(process)
    with open(place.path(), 'ab') as journal:       # a damaged line: the journal is to be rewritten
        journal.write(b'damaged\n')
    left, _ = t.config([{'url': other.url()}], name='butler/left.yaml', port=place.port,
                       butlerWebhook={'stateDirectory': place.state})
    shim.set(read_errno=0)
    process = t.start(left, binary=t.binary_test, env=shim.env, wait=False)
    t.check('it starts', process.wait_log(' info: state directory '))
    shim.set(read_errno=errno.EIO)
    later = base.send(process, 5)
    base.arrive(t, 'other alerts arrive meanwhile', other, later)
    with open('/proc/%d/stat' % process.pid, encoding='ascii') as stat:
        before = sum(int(field) for field in stat.read().rsplit(')', 1)[1].split()[11:13])
    time.sleep(1.5)
    with open('/proc/%d/stat' % process.pid, encoding='ascii') as stat:
        spent = sum(int(field) for field in stat.read().rsplit(')', 1)[1].split()[11:13]) - before
    t.check('it does not spin', spent < 75, spent)
    shim.set(read_errno=0)
    t.check('in the end all are dead letters', base.until(lambda: len(place.letters()) == 30, 15), len(place.letters()))
    base.stop(t, process)


@base.limits(40, 40)
def test_more_webhooks_than_are_known(t):
    """A journal that names thousands of webhooks which nobody has: each alert becomes a dead letter, and the others go on."""
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}])
    gone = [harness.guid() for _ in range(4500)]
    kept = harness.guid()
    place.fill(b''.join(base.accepted_record(base.webhook_key('http://gone.example/%d' % i), execution)
                        for i, execution in enumerate(gone)) +
               base.accepted_record(base.webhook_key(sink.url()), kept))
    process = place.start()
    base.arrive(t, 'the alert of a webhook that is there arrives', sink, [kept])
    t.check('the others are dead letters', base.until(lambda: len(place.letters()) == len(gone), 20), len(place.letters()))
    base.same(t, 'each one once', [letter['alert']['executionId'] for letter in place.letters()], gone)
    base.stop(t, process)


@base.limits(60, 60)
def test_replay_not_running(t):
    """No service: it makes one attempt for each letter, and what then remains waits in the journal."""
    place, sink, executions = place_with_letters(t, 12)
    letters = place.letters()
    replay(t, place)
    t.equal('all arrive', sink.missing(executions), [])
    t.equal('with their old webhook-id', {execution: sink.taken[execution][0][0] for execution in executions},
            {entry['alert']['executionId']: entry['webhookId'] for entry in letters})
    t.equal('nothing is left', place.pending(), {'waiting': [], 'dead': []})
    replay(t, place, 'a second time there is nothing to do')
    t.equal('and nothing is sent', len(sink.calls), 12)

    place, sink, executions = place_with_letters(t, 9, name='fails')
    sink.behave = lambda call: (500, 404, 200)[executions.index(call.execution) % 3]
    begin = time.monotonic()
    result = t.run('--replay', place.config)
    t.check('it does not wait for long', time.monotonic() - begin < 15 * harness.SLOW, time.monotonic() - begin)
    base.same(t, 'one attempt for each', [call.execution for call, _ in sink.calls], executions)
    answer = place.pending()
    base.same(t, '500: they wait', executions_of(answer['waiting']), executions[0::3])
    base.same(t, '404: dead letters again', executions_of(answer['dead']), executions[1::3])
    t.equal('a letter is there once', len(place.letters()), 3)
    t.check('their age starts anew', all(entry['ageSeconds'] < 60 for entry in answer['waiting']), answer['waiting'])
    sink.behave = None
    process = place.start()
    base.arrive(t, 'what waited arrives with the next start', sink, executions[0::3])
    base.stop(t, process)

    place, sink, executions = place_with_letters(t, 5, name='down')
    sink.down()
    begin = time.monotonic()
    result = t.run('--replay', place.config)
    t.check('nobody listens: it ends', result.returncode in (0, 1) and time.monotonic() - begin < 15 * harness.SLOW, result)
    base.same(t, 'nobody listens: none is lost', place.waiting() + executions_of(place.letters()), executions)

    place, sink, executions = place_with_letters(t, 6, name='breaks')
    sink.behave = lambda call: 'reset'
    t.run('--replay', place.config)
    t.equal('broken three times in a row: it is down, and the others only wait',
            sum(len(calls) for calls in sink.seen.values()), 3)
    base.same(t, 'broken: none is lost', place.waiting() + executions_of(place.letters()), executions)

    place, sink, executions = place_with_letters(t, 1, name='off')
    base.write(place.config, b"Butler: {webhookNotification: {enable: false, reloadTaskFailure: {webhooks: [\n"
                             b"  {webhookURL: 'nonsense', httpMethod: POST}]}}}\n")
    result = t.run('--replay', place.config)
    t.check('off, with a webhook that cannot be called: usage error, and the letter stays',
            result.returncode == 2 and ':2:16: error: webhookURL is not a URL' in result.stderr and
            executions_of(place.letters()) == executions, result)

    sink = t.add(base.Sink())
    empty = base.Place(t, [{'url': sink.url()}], name='empty')
    replay(t, empty, 'no state directory yet: exit code')


@base.limits(60, 60)
def test_replay_running(t):
    """With the service running, it does the work: --replay waits until it is done."""
    for binary in (t.binary, t.binary_test):
        name = 'release' if binary == t.binary else 'test'
        place, sink, executions = place_with_letters(t, 40, name=name)
        process = place.start(binary=binary)
        t.check('the start counts them', process.wait_log(r' info: state directory .*: 0 alerts wait, .*dead letters'),
                base.tail(process))
        sink.wait([])
        t.equal('by itself it sends none', len(sink.calls), 0)
        replay(t, place, binary=binary)
        t.check('the request is gone', not os.path.exists(place.path('replay.request')))
        base.arrive(t, 'all arrive', sink, executions)
        t.equal('each once', len(sink.calls), 40)
        t.check('the letters are gone', base.until(lambda: not place.pending()['dead'], 5), place.letters()[:1])
        base.arrive(t, 'other alerts arrive', sink, base.send(process, 3))
        sink.behave = lambda call: 410
        again = base.send(process, 2)
        base.until(lambda: len(place.letters()) == 2, 5)
        sink.behave = lambda call: 410 if call.number < 3 else 200
        replay(t, place, 'refused again: exit code', binary=binary)
        t.check('refused again: dead letters again', base.until(lambda: len(place.letters()) == 2 and all(
            len(sink.seen[execution]) == 2 for execution in again), 5), place.letters())
        replay(t, place, 'the third time: exit code', binary=binary)
        base.arrive(t, 'the third time they are taken', sink, again)
        t.check('by the same webhook-id', not sink.ids_differ(), sink.ids_differ())
        base.stop(t, process)
        t.equal('nothing is left', place.pending(), {'waiting': [], 'dead': []})


@base.limits(60, 60)
def test_replay_unknown_webhook(t):
    """A letter whose webhook is no more in the configuration stays, and --replay says so with exit code 1."""
    for running in (False, True):
        place, sink, executions = place_with_letters(t, 4, name='running' if running else 'stopped')
        stranger = harness.guid()
        base.write(place.path('dead-letters.ndjson'), base.read(place.path('dead-letters.ndjson')) +
                   letter(base.webhook_key('http://127.0.0.1:1/old'), stranger, webhook='aborted 7 ("gone")',
                          url='http://127.0.0.1:1/old'))
        process = place.start() if running else None
        for what in ('once', 'twice'):
            result = t.run('--replay', place.config)
            t.equal('%s: exit code' % what, result.returncode, 1)
            t.check('%s: it says that one stays' % what, re.search(r'\b1\b[^\n]* stays?\b', result.stdout + result.stderr),
                    [result.stdout, result.stderr])
        base.arrive(t, 'the others arrive', sink, executions)
        t.check('it stays', base.until(lambda: executions_of(place.letters()) == [stranger], 5), place.letters())
        t.check('it was sent nowhere', stranger not in sink.seen)
        if process:
            base.stop(t, process)


@base.limits(60, 60)
def test_replay_damaged_letters(t):
    """Lines of the file that are no letters are kept as they are; a torn one does not spoil the next."""
    for running in (False, True):
        name = 'running' if running else 'stopped'
        place, sink, executions = place_with_letters(t, 4, name=name)
        good = base.read(place.path('dead-letters.ndjson')).splitlines(keepends=True)
        key = base.webhook_key(sink.url())
        bad = [b'garbage\n', b'{"webhookId":"msg_1"}\n', b'\xff\xfe\x00\n', b'[]\n',
               b'{"webhookId":5,"webhookKey":[],"alert":1}\n', letter(key, harness.guid())[:-40] + b'\n',
               letter(key, harness.guid(), alert={'event': 5})]
        torn = letter(key, harness.guid())[:-25]
        content = b''.join(g + b for g, b in zip(good, bad)) + b''.join(bad[len(good):]) + torn
        base.write(place.path('dead-letters.ndjson'), content)
        answer = place.pending()
        t.check('%s: --pending shows the good ones' % name, set(executions) <= {
            (entry.get('alert') or {}).get('executionId') for entry in answer['dead']
            if isinstance(entry, dict) and isinstance(entry.get('alert'), dict)}, answer['dead'])
        process = place.start() if running else None
        if running:
            sink.behave = lambda call: 404 if call.number == 1 and call.execution not in executions else 200
            new = base.send(process, 1)[0]
            t.check('a new letter is whole in spite of the torn line before it', base.until(
                lambda: new in executions_of(entry for entry in place.letters() if isinstance(entry, dict) and
                                             isinstance(entry.get('alert'), dict) and 'executionId' in entry['alert']), 5),
                base.read(place.path('dead-letters.ndjson'))[-800:])
            executions.append(new)
        t.run('--replay', place.config)
        base.arrive(t, '%s: the good ones arrive' % name, sink, executions)
        if process:
            base.stop(t, process)
        left = base.read(place.path('dead-letters.ndjson'))
        for line in bad:
            t.check('%s: a damaged line is kept' % name, line in left, [line[:80], left[:300]])
        t.check('%s: the torn line is kept' % name, torn in left, left[-300:])


def everywhere(place, sink, binary=None):
    """The executionIds of all alerts that wait, are dead or are delivered; nothing may run that moves them meanwhile."""
    answer = place.pending(binary)
    with sink._changed:
        taken = set(sink.taken)
    return taken | set(executions_of(answer['waiting'])) | set(executions_of(answer['dead']))


@base.limits(60, 300)
def test_replay_killed(t):
    """kill -9 of --replay, or of the service that does it, at random moments: none is ever lost."""
    numbers = base.rng(t)
    count = base.pick(400, 3000)
    place, sink, executions = place_with_letters(t, count, butlerWebhook=faults_journal.OURS)
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
        asker = subprocess.Popen(harness.SYSTEM.command(binary, ['--replay', place.config]), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL, env=t.environment())
        time.sleep(numbers.uniform(0, 0.06) if n % 4 else numbers.uniform(0, 0.4))
        kills += asker.poll() is None or who == 'service'
        if who == 'service':
            base.kill(process)
        asker.kill()
        asker.wait()
        if who == 'asker':      # the service goes on with it, and dies a little later
            time.sleep(numbers.uniform(0, 0.1))
            base.kill(process)
        lost = set(executions) - everywhere(place, sink)
        t.check('round %d, %s killed: none is lost' % (n, who), not lost, base.some(lost))
    t.check('something was killed in the middle', kills > 0, kills)
    sink.behave = None
    process = place.start()
    replay(t, place, 'replayed at last: exit code')
    missing = sink.wait(executions, 30)
    t.check('all arrive at last', not missing, base.some(missing))
    t.check('each with one webhook-id', not sink.ids_differ(), base.some(sink.ids_differ()))
    t.check('nothing is left', base.until(lambda: place.pending() == {'waiting': [], 'dead': []}, 10),
            place.pending()['dead'][:1])
    base.stop(t, process)
    base.note(t, '%d letters, %d kills, doubles %d' % (len(executions), kills, sink.doubles()))



@base.limits(60, 60)
@base.waits
def test_replay_leftovers(t):
    """A request and half a new file that a killed process left behind do no harm."""
    place, sink, executions = place_with_letters(t, 6)
    base.write(place.path('dead-letters.new'), base.read(place.path('dead-letters.ndjson'))[:700])
    base.write(place.path('replay.request'), b'')
    process = place.start()
    base.until(lambda: not os.path.exists(place.path('replay.request')), 5)
    base.same(t, 'all letters are there or arrive', everywhere(place, sink), executions)
    replay(t, place, '--replay: exit code')
    base.arrive(t, 'all arrive', sink, executions)
    base.stop(t, process)
    t.equal('nothing is left', place.pending(), {'waiting': [], 'dead': []})

    if harness.WINDOWS:     # where a stopped process holds up others
        return

    # A service that cannot do it (it hangs): --replay gives up after its 10 s, and nothing is lost.
    place, sink, executions = place_with_letters(t, 3, name='hangs')
    process = place.start()
    os.kill(process.pid, 19)        # SIGSTOP
    try:
        begin = time.monotonic()
        result = t.run('--replay', place.config)
        took = time.monotonic() - begin
    finally:
        os.kill(process.pid, 18)    # SIGCONT
    t.check('a service that does not answer: exit code 1 after 10 s', result.returncode == 1 and took > 8,
            [result.returncode, took])
    t.check('and it says so', result.stderr or result.stdout)
    base.until(lambda: not os.path.exists(place.path('replay.request')), 5)
    base.same(t, 'none is lost', everywhere(place, sink), executions)
    base.stop(t, process)


@base.limits(60, 60)
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
    base.stop(t, process)
    old, new = (base.read(place.path(name)) for name in ('dead-letters.1.ndjson', 'dead-letters.ndjson'))
    t.check('the old one is kept', full <= len(old) <= full + 5000, len(old))
    t.check('the one before is gone', b'of-the-file-before' not in old)
    found = [execution for execution in executions if execution.encode() in old or execution.encode() in new]
    t.equal('no letter is lost', found, executions)
    t.check('each line is whole', all(json.loads(line) for line in new.split(b'\n')[:-1]) and new.endswith(b'\n'))


@base.limits(60, 60)
def test_letter_and_kill(t):
    """kill -9 while alerts become dead letters: each is a letter or waits, none is in neither."""
    numbers = base.rng(t)
    sink = t.add(base.Sink(lambda call: 404))
    place = base.Place(t, [{'url': sink.url()}])
    accepted = []
    for n in range(base.pick(6, 80)):
        binary = t.binary if n % 2 else t.binary_test
        process = place.start(binary=binary)
        load = t.add(base.Load(place.port, 200))
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


@base.limits(60, 60)
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


@base.limits(60, 60)
def test_letters_and_a_broken_disk(t):
    """A dead letter that cannot be written waits until it can; --replay on such a disk loses none."""
    shim = base.Shim(t)
    place, sink, executions = place_with_letters(t, 6, butlerWebhook=faults_journal.OURS)
    sink.behave = lambda call: 404 if call.number == 1 and call.execution not in executions else 200
    process = place.start(binary=t.binary_test, env=shim.env)
    for name in ('write_errno', 'write_room', 'sync_errno', 'open_errno'):
        shim.set(**{name: -1 if name == 'write_room' else errno.EIO})
        new = base.send(process, 2)
        t.equal('%s: alerts are accepted' % name, len(new), 2)
        t.check('%s: they are given up, and logged whole' % name, base.until(lambda: all(process.lines(
            r' given up for .*%s' % execution) for execution in new), 10), base.tail(process))
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
    replay(t, place, 'in the end: exit code', binary=t.binary_test)
    base.arrive(t, 'all arrive', sink, executions)
    t.check('each with one webhook-id', not sink.ids_differ(), base.some(sink.ids_differ()))
    base.stop(t, process)


# ---- Webhooks that change between two starts ------------------------------------------------------------------------


def change(t, name, before, after, expect, log=None):
    """
    Alerts wait for the webhooks of one configuration; then the program starts with another one. before, after: lists of
    webhooks, `to` of each being the number of a sink, `path` (/) and what else a webhook has. expect: for each of before
    the number of the sink where its alert must arrive, or None for a dead letter.
    """
    sinks = [t.add(base.Sink(up=False)) for _ in range(6)]

    def webhooks(entries):
        return [dict({key: value for key, value in entry.items() if key not in ('to', 'path')},
                     url=sinks[entry['to']].url(entry.get('path', '/'))) for entry in entries]

    old = base.Place(t, webhooks(before), name=name + '-old', state=os.path.join(t.tmp, name + '.state'))
    process = old.start()
    execution = {kind: base.send(process, 1, id='/scheduler-task-%s/' % id)[0]
                 for kind, id in (('failure', 'failed'), ('aborted', 'aborted'))
                 if any(entry.get('kind', 'failure') == kind for entry in before)}
    base.stop(t, process, '%s: exit code' % name)
    ids = {}        # which alert waits for which webhook
    keys = {}
    for entry in webhooks(before):
        kind, method = entry.get('kind', 'failure'), entry.get('method', 'POST')
        n = keys[kind, method, entry['url']] = keys.get((kind, method, entry['url']), -1) + 1
        ids[base.webhook_key(entry['url'], method, kind, n)] = None
    for id, (key, _, _) in base.waiting(old.journal()).items():
        t.check('%s: it waits by its key' % name, key in ids, key)
        ids[key] = id
    wanted = dict(zip(ids.values(), expect))
    new = base.Place(t, webhooks(after), name=name + '-new', state=old.state)
    for sink in sinks:
        sink.up()
    process = new.start()
    t.check('%s: the start tells' % name, process.wait_log(r' info: state directory '), base.tail(process))
    arrived = {}

    def settle():
        arrived.clear()
        for number, sink in enumerate(sinks):
            for calls in list(sink.taken.values()):
                arrived.update({id: number for id, _ in calls})
        for entry in new.letters():
            arrived.setdefault(entry['webhookId'], None)
        return len(arrived) >= len(wanted) and not new.waiting()

    base.until(settle, 15)
    t.equal('%s: where each alert arrives' % name, [arrived.get(id, 'nowhere') for id in wanted], list(wanted.values()))
    warned = process.lines(r' warn: .*(place|webhook).*')
    if log is not None:
        t.equal('%s: a warning' % name, bool([line for line in warned if 'stateDirectory' not in line]), log)
    base.stop(t, process, '%s: exit code' % name)
    return old, new, process


@base.limits(60, 60)
def test_webhooks_change(t):
    change(t, 'unchanged', [{'to': 0}, {'to': 1}], [{'to': 0}, {'to': 1}], [0, 1], log=False)
    change(t, 'reordered', [{'to': 0}, {'to': 1}, {'to': 2}], [{'to': 2}, {'to': 0}, {'to': 1}], [0, 1, 2], log=False)
    change(t, 'one more in front', [{'to': 0}, {'to': 1}], [{'to': 2}, {'to': 0}, {'to': 1}], [0, 1])
    change(t, 'url changed, same description', [{'to': 0, 'description': 'A'}, {'to': 1, 'description': 'B'}],
           [{'to': 2, 'description': 'B'}, {'to': 3, 'description': 'A'}, {'to': 4}], [3, 2])
    change(t, 'url changed, by place', [{'to': 0}, {'to': 1}, {'to': 2}], [{'to': 0}, {'to': 3}, {'to': 2}], [0, 3, 2],
           log=True)
    change(t, 'url changed, description twice', [{'to': 0, 'description': 'A'}, {'to': 1, 'description': 'A'}],
           [{'to': 0, 'description': 'A'}, {'to': 2, 'description': 'A'}], [0, 2], log=True)
    change(t, 'method changed, by description', [{'to': 0, 'description': 'A'}],
           [{'to': 0, 'description': 'A', 'method': 'PUT'}], [0])
    change(t, 'the same url twice', [{'to': 0, 'description': 'A'}, {'to': 0, 'description': 'B'}],
           [{'to': 0, 'description': 'A'}, {'to': 0, 'description': 'B'}], [0, 0])
    change(t, 'kinds apart', [{'to': 0}, {'to': 1, 'kind': 'aborted'}], [{'to': 0}, {'to': 2, 'kind': 'aborted'}], [0, 2])
    change(t, 'the same description in the other kind', [{'to': 0, 'description': 'A'}, {'to': 1, 'kind': 'aborted',
           'description': 'A'}], [{'to': 2, 'description': 'A'}, {'to': 3, 'kind': 'aborted', 'description': 'A'}], [2, 3])


@base.limits(60, 60)
def test_webhook_removed(t):
    """Its alerts become dead letters that say where they were meant to go, and --replay leaves them there."""
    old, new, process = change(t, 'removed', [{'to': 0}, {'to': 1, 'description': 'Old desk'}, {'to': 2}],
                               [{'to': 0}, {'to': 2}], [0, None, 2])
    letters = new.letters()
    t.equal('letters', len(letters), 1)
    t.check('with the old name and no URL', letters and letters[0]['webhook'].startswith('failure 2') and
            letters[0]['url'] == '', letters)
    t.equal('keys', list(letters[0]) if letters else [], KEYS)
    t.check('it is logged whole', process.wait_log(r' error: alert .*given up for failure 2.*; alert: \{'), base.tail(process))
    replay(t, new, '--replay: exit code', code=1)
    t.equal('it stays', [entry['webhookId'] for entry in new.letters()], [entry['webhookId'] for entry in letters])
    replay(t, old, 'with the old configuration it can be replayed')
    t.equal('and is gone', old.pending(), {'waiting': [], 'dead': []})
    change(t, 'all removed', [{'to': 0}, {'to': 1, 'kind': 'aborted'}], [{'to': 1, 'kind': 'aborted'}], [None, 1])
    change(t, 'removed, list shorter', [{'to': 0}, {'to': 1}], [{'to': 2}], [None, None])


@base.limits(60, 60)
def test_webhook_removed_survives_kill(t):
    """Many alerts of a webhook that is gone: kill -9 while they become dead letters."""
    numbers = base.rng(t)
    sink = t.add(base.Sink())
    place = base.Place(t, [{'url': sink.url()}])
    gone = base.webhook_key('http://127.0.0.1:1/gone')
    executions = [harness.guid() for _ in range(base.pick(300, 2000))]
    place.fill(b''.join(base.accepted_record(gone, execution) for execution in executions))
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
