"""Dead letters, --pending, --replay, and webhooks that change between two starts."""

import errno
import json
import os
import re
import subprocess
import time

import pytest

import faults_base as base
import harness
import words

pytestmark = harness.limit(120, 300)

WAITING_KEYS = {'webhookId', 'webhook', 'acceptedAt', 'ageSeconds', 'attempts', 'lastAttemptAt', 'lastError', 'alert'}
TIME = r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z'
UNWRITTEN = words.state(r'dead-letters\.ndjson: .*; trying again$')
WRITTEN = r' info: disk: dead-letters\.ndjson: works again$'
GONE = 'http://127.0.0.1:1/gone'


def letter(key, execution=None, webhook='failure 1', **fields):
    """A line of dead-letters.ndjson, as the program writes them."""
    execution = execution or harness.guid()
    found = {'webhookId': base.webhook_id(execution, key), 'webhookKey': key, 'webhook': webhook, 'description': '',
             'place': int(webhook.split()[1]), 'count': 1, 'url': 'http://127.0.0.1/hook',
             'reason': 'status 404; check webhookURL', 'attempts': 1, 'acceptedAt': '2026-11-22T09:30:00.123Z',
             'deadAt': '2026-11-22T09:30:01.123Z', 'alert': json.loads(base.body(execution))}
    found.update(fields)
    return (json.dumps(found, separators=(',', ':'), ensure_ascii=False) + '\n').encode()


def letters(key, executions):
    return b''.join(letter(key, execution) for execution in executions)


def with_letters(t, count, behave=None, **config):
    """A place with so many dead letters, no journal, a webhook that would take them; its sink and the executionIds."""
    place, sink = base.single(t, behave, **config)
    executions = [harness.guid() for _ in range(count)]
    place.fill(dead_letters=letters(place.key, executions))
    return place, sink, executions


def replay(t, place, count, what='--replay'):
    """Runs --replay, which must hand over so many letters, and say so; 0: there are none."""
    result = t.run('--replay', place.config)
    wanted = '%d dead letter%s handed over: the service sends them within seconds if it runs, else at its next start\n' % (
        count, '' if count == 1 else 's') if count else 'no dead letters\n'
    t.equal(what, (result.returncode, result.stdout, result.stderr), (0, wanted, ''))


def is_done(place):
    """Whether the service has taken in all that was handed over."""
    return not {'replay.ndjson', 'replay.1.ndjson'} & set(os.listdir(place.state))


def taken_back(again, stay):
    return r' info: dead letters: %d taken back to be sent again, %d stay%s$' % (
        again, stay, ': without a webhook or room, or damaged' if stay else '')


# ---- What stands in them, and --pending -----------------------------------------------------------------------------


def test_letter_and_pending(t):
    """A dead letter has what a person and a program need; --pending shows it and what waits, and changes nothing. No secrets."""
    sink = t.add(base.Sink(lambda call: 404 if call.path.startswith('/gone') else 500))
    gone = sink.url('/gone?token=topsecret').replace('http://', 'http://user:geheim@')
    place = base.Place(t, [{'url': sink.url('/hook?token=topsecret'), 'description': 'Ops desk'},
                           {'url': gone, 'kind': 'aborted', 'description': 'De"sk'}])
    process = place.start()
    executions = base.send(process, 3)
    dead = base.send(process, id=base.ABORTED, message='semi;colon "quoted"\ttab')[0]
    base.logged(t, 'it is told', process, words.given_up(r'aborted 1 \("De\\?"sk"\)', why='status 404; check webhookURL$'))
    base.soon(t, 'all were tried', lambda: place.letters() and all(entry['attempts'] for entry in place.pending()['waiting']))
    line = base.read(place.path('dead-letters.ndjson'))
    found = json.loads(line)
    t.equal('compact, one line', line, json.dumps(found, separators=(',', ':'), ensure_ascii=False).encode() + b'\n')
    times = [found['acceptedAt'], found['deadAt']]
    t.check('times', re.fullmatch('%s %s' % (TIME, TIME), ' '.join(times)) and times == sorted(times), times)
    key = base.webhook_key(gone, kind='aborted')
    t.equal('keys in order, values', list(found.items()), list({
        'webhookId': base.webhook_id(dead, key, 'aborted'), 'webhook': 'aborted 1 ("De"sk")', 'acceptedAt': times[0],
        'attempts': 1, 'deadAt': times[1], 'reason': 'status 404; check webhookURL', 'webhookKey': key, 'description': 'De"sk',
        'place': 1, 'count': 1, 'url': 'http://127.0.0.1:%d/gone?…' % sink.port, 'alert': json.loads(base.body(
            dead, found['alert']['taskId'], 'semi;colon "quoted"\ttab', 'aborted'))}.items()))
    t.equal('its webhook-id is that of the call', found['webhookId'], sink.seen[dead][0].id)
    t.equal('mode', os.stat(place.path('dead-letters.ndjson')).st_mode & harness.SYSTEM.others_file, 0)
    for when in ('running', 'stopped'):
        answer = place.pending()
        t.equal('%s: the letter' % when, answer['dead'], [found])
        base.same(t, '%s: what waits' % when, base.executions_of(answer['waiting']), executions)
        for entry in answer['waiting']:
            t.check('%s: keys and values' % when, set(entry) == WAITING_KEYS and entry['webhook'] == 'failure 1 ("Ops desk")' and
                    entry['webhookId'] == base.webhook_id(entry['alert']['executionId'], place.key) and
                    re.fullmatch(TIME, entry['acceptedAt']) and 0 <= entry['ageSeconds'] < 60 and entry['attempts'] >= 1 and
                    re.fullmatch(TIME, entry['lastAttemptAt']) and 'status 500' in entry['lastError'], entry)
        shown = t.run('--pending', place.config).stdout + json.dumps(answer)
        t.equal('%s: no secret' % when, [secret for secret in ('geheim', 'topsecret') if secret in shown], [])
        if when == 'running':
            base.stop(t, process)
    numbers = base.stopped(process)
    t.equal('the numbers at the end', (numbers['given up'], numbers['waiting'], numbers['lost']), (1, 3, 0))
    process = place.start()
    t.equal('the next start counts both', base.logged(t, 'it tells', process, words.WAITING).groups(), ('3', str(len(line))))
    place.fill(base.accepted_record(place.key, dead))
    entry = place.pending()['waiting'][0]
    t.equal('never tried', (entry['attempts'], entry['lastAttemptAt'], entry['lastError']), (0, None, None))


def test_letter_and_pending_while_it_changes(t):
    """--pending again and again while the journal is written and rewritten: what waits all the time is always there."""
    place, good, _ = base.pair(t, test=True)
    process = place.start()
    waiting = base.send(process, 8, id=base.ABORTED)
    load = t.add(base.Load(place, 300))
    while len(load.sent) < base.pick(150, 3000):
        missing = set(waiting) - set(place.waiting())
        t.check('what waits is there', not missing, base.some(missing))
    load.close()
    base.arrive(t, 'all of the load arrives', good, load.sent)


def test_letter_and_kill(t):
    """kill -9 while alerts become dead letters: each is a letter or waits, none is in neither; --replay delivers all."""
    numbers = base.rng(t)
    place, sink = base.single(t, lambda call: 404)
    accepted = []
    rounds = base.pick(6, 80)
    for n in range(rounds):
        process = place.start(binary=t.binary if n % 2 else t.binary_test)
        load = t.add(base.Load(place, 200))
        time.sleep(numbers.uniform(0.1, 0.5))
        base.kill(process)
        load.close()
        accepted += base.accepted(process.log)
        base.none_lost(t, 'round %d: none is lost' % n, place, sink, accepted)
    twice = len(place.dead()) - len(set(place.dead()))
    t.check('few letters are there twice', twice <= 10 * rounds, twice)
    process = place.start()
    sink.behave = None
    base.soon(t, 'nothing waits', lambda: not place.waiting())
    t.run('--replay', place.config)
    base.arrive(t, '--replay delivers all', sink, accepted, 30)


def test_letters_while_rewriting(t):
    """Dead letters that come all the time do not keep the journal from being rewritten."""
    place, sink = base.single(t, lambda call: 404, shim=True)
    process = place.start()
    place.shim.set(sync_delay_ms=30)
    sizes, executions = [], []
    for _ in range(20):
        executions += base.send(process, 25, sink=sink, window=5)
        sizes.append(base.size(place.path()))
    t.check('the journal stays small', max(sizes) < 1 << 17, sizes)
    base.kill(process)
    base.none_lost(t, 'none is lost', place, sink, executions)


def test_letters_unwritable(t):
    """dead-letters.ndjson cannot be written, as a directory has its name: letters wait, told once, all else goes on."""
    sink = t.add(base.Sink(lambda call: 404 if call.path == '/gone' else 200))
    place = base.Place(t, [{'url': sink.url()}, {'url': sink.url('/gone'), 'kind': 'aborted'}], test=True)
    os.makedirs(place.path('dead-letters.ndjson'))
    process = place.start()
    dead = base.send(process, 3, id=base.ABORTED)
    base.arrive(t, 'other alerts arrive', sink, base.send(process, 150, sink=sink, window=20))
    base.soon(t, 'the journal is rewritten all the same', lambda: base.size(place.path()) < 40000)
    for end in (base.kill, lambda process: base.stop(t, process)):
        base.logged(t, 'it is told', process, UNWRITTEN)
        t.equal('once', len(process.lines(UNWRITTEN)), 1)
        end(process)
        base.same(t, 'until they can be written they wait', place.waiting(code=1), dead)
        process = place.start()
    base.logged(t, 'it is told', process, UNWRITTEN)
    os.rmdir(place.path('dead-letters.ndjson'))
    base.logged(t, 'it is told that it works again', process, WRITTEN)
    base.soon(t, 'then they are written, each once', lambda: sorted(place.dead()) == sorted(dead))
    base.soon(t, 'nothing waits', lambda: not place.waiting())


@pytest.mark.parametrize('fault', ('write_errno', 'write_room', 'sync_errno', 'open_errno', 'rename_errno', 'read_errno'))
def test_letters_and_a_broken_disk(t, fault):
    """A dead letter that cannot be written waits until it can; --replay on such a disk loses none."""
    place, sink, executions = with_letters(t, 6, shim=True)
    sink.behave = lambda call: 404 if call.number == 1 and call.execution not in executions else 200
    process = place.start()
    place.shim.set(**{fault: -1 if fault == 'write_room' else errno.EIO})
    new = base.send(process, 2)
    base.logged(t, 'new ones are given up', process, words.given_up(), 2)
    t.run('--replay', place.config, binary=t.binary_test, env=place.shim.env)
    place.shim.heal()
    base.soon(t, 'none is lost', lambda: not base.lost(place, sink, executions + new))
    base.kill(process)
    base.none_lost(t, 'after kill -9, too', place, sink, executions + new)
    process = place.start()
    base.soon(t, 'nothing waits', lambda: not place.waiting() and is_done(place))
    t.run('--replay', place.config)
    base.arrive(t, 'all arrive', sink, executions + new)


# ---- --replay -------------------------------------------------------------------------------------------------------


def test_replay_not_running(t):
    """No service: the letters are handed over, and its next start sends them, each once, by their old webhook-id."""
    place, sink, executions = with_letters(t, 12)
    rotated = harness.guid()
    base.write(place.path('dead-letters.1.ndjson'), letter(place.key, rotated))
    executions.append(rotated)
    owner = 65534 if os.geteuid() == 0 else os.geteuid()
    for name in [''] + os.listdir(place.state):
        os.chown(place.path(name), owner, -1)
    replay(t, place, 13)
    t.equal('root replays for a service with a user of its own: no file changes hands',
            {os.stat(place.path(name)).st_uid for name in os.listdir(place.state)}, {owner})
    t.equal('nothing is sent', len(sink.calls), 0)
    answer = place.pending()
    t.equal('--pending says that they are handed over', (answer['waiting'], answer['dead']), ([], []))
    base.same(t, 'all of them', base.executions_of(answer['handedOver']), executions)
    table = t.run('--pending', place.config).stdout
    t.equal('so does its table', table.partition('to be sent again:\n')[2].count('Reload of Sales'), 13)
    base.write(place.path('dead-letters.ndjson'), letter(place.key, executions[0]))
    result = t.run('--replay', place.config)
    t.check('a second one', result.returncode == 1 and 'a replay is under way' in result.stderr, result)
    t.equal('changes nothing', (len(place.dead()), len(place.pending()['handedOver'])), (1, 13))
    os.unlink(place.path('dead-letters.ndjson'))
    process = place.start()
    base.arrive(t, 'the next start sends them', sink, executions)
    t.equal('with their old webhook-id', [sink.taken[execution][0].id for execution in executions],
            [base.webhook_id(execution, place.key) for execution in executions])
    base.soon(t, 'nothing is left', lambda: is_done(place) and place.pending() == base.NOTHING)
    base.soon(t, 'it tells', lambda: sum(int(line.split()[4]) for line in process.lines(words.REPLAYED)) == 13)
    replay(t, place, 0)
    base.arrive(t, 'the next alert arrives', sink, base.send(process))
    t.equal('each once', len(sink.calls), 14)


def test_replay_running(t):
    """The service sends them within seconds; what fails becomes a dead letter again, what meets a webhook that is down waits."""
    place, sink, executions = with_letters(t, 40)
    process = place.start()
    base.arrive(t, 'an alert arrives', sink, base.send(process))
    t.equal('by itself it sends none of them', len(sink.calls), 1)
    replay(t, place, 40)
    base.arrive(t, 'all arrive', sink, executions)
    base.soon(t, 'the letters are gone', lambda: is_done(place) and place.pending() == base.NOTHING)
    t.equal('each once', len(sink.calls), 41)
    sink.behave = lambda call: 410 if call.number < 3 else 200
    again = base.send(process, 2)
    for calls in (1, 2):
        base.soon(t, 'refused: dead letters', lambda: sorted(place.dead()) == sorted(again) and is_done(place) and
                  len(sink.seen[again[1]]) == calls)
        if calls == 2:
            sink.down()
        replay(t, place, 2)
    base.soon(t, 'the webhook is down: they wait', lambda: set(place.waiting()) == set(again) and is_done(place))
    t.check('their age starts anew', all(entry['ageSeconds'] < 60 for entry in place.pending()['waiting']), place.pending())
    base.kill(process)
    process = place.start()
    sink.up()
    base.arrive(t, 'in the end they are taken', sink, again)
    base.soon(t, 'nothing is left', lambda: place.pending() == base.NOTHING)


def test_replay_killed(t):
    """kill -9 of --replay, or of the service that takes them back, at random moments: none is ever lost."""
    numbers = base.rng(t)
    count = base.pick(400, 1500)
    place, sink, executions = with_letters(t, count, butlerWebhook=base.OURS,
                                           behave=base.fickle(numbers, good=0.6, error=0.4, hang=0, good_from=3))
    kills = 0
    for n in range(base.pick(9, 60)):
        if not place.letters():     # all are under way: start again with new ones
            more = [harness.guid() for _ in range(count)]
            executions += more
            base.write(place.path('dead-letters.ndjson'), letters(place.key, more))
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
        base.none_lost(t, 'round %d, %s killed: none is lost' % (n, who), place, sink, executions)
    t.check('something was killed in the middle', kills > 0, kills)
    sink.behave = None
    process = place.start()
    base.soon(t, 'what was handed over is taken back', lambda: is_done(place) and not place.waiting())
    t.run('--replay', place.config)
    base.arrive(t, 'all arrive at last', sink, executions, 30)
    base.soon(t, 'nothing is left', lambda: place.pending() == base.NOTHING)


def test_replay_is_synced_first(t):
    """The files go only once what they held is synced elsewhere: a power cut before that loses none."""
    place, sink, executions = with_letters(t, 30, shim=True)
    sink.down()
    gone = harness.guid()
    with open(place.path('dead-letters.ndjson'), 'ab') as file:
        file.write(letter(base.webhook_key(GONE), gone, webhook='aborted 7'))
    process = place.start()
    early = base.send(process)
    base.soon(t, 'the start is over', lambda: place.shim.get('folder_syncs') > 0 and
              place.shim.get('synced_len') > base.read(place.path()).find(early[0].encode()))
    place.shim.set(sync_delay_ms=60000)
    replay(t, place, 31)
    base.logged(t, 'they are taken back', process, words.again(), 30)
    place.shim.struck(t)
    t.equal('the loop goes on', len(base.send(process)), 1)
    t.check('the file is still there', not is_done(place))
    base.cut_power(place, process)
    base.none_lost(t, 'after a power cut none is lost', place, sink, executions + [gone])
    place.shim.heal()
    sink.up()
    process = place.start()
    base.arrive(t, 'they arrive', sink, executions)
    base.soon(t, 'the one without a webhook is a dead letter', lambda: set(place.dead()) == {gone} and is_done(place))


def test_replay_that_cannot_be_read(t):
    """A part of what was handed over cannot be read: it is told, the rest is sent, and the file stays until it can be read."""
    place, sink, executions = with_letters(t, 30, shim=True)
    process = place.start()
    place.shim.set(read_from=8192, read_to=12288)
    replay(t, place, 30)
    base.logged(t, 'it is told', process, r' error: .*replay\.ndjson')
    base.soon(t, 'the rest is sent', lambda: 0 < len(sink.missing(executions)) <= 9)
    t.check('the file is still there', not is_done(place))
    base.kill(process)
    base.none_lost(t, 'none is lost', place, sink, executions)
    place.shim.heal()
    process = place.start()
    base.arrive(t, 'once it can be read all arrive', sink, executions)
    base.soon(t, 'and it is done', lambda: is_done(place))


# ---- Webhooks that change between two starts ------------------------------------------------------------------------


def test_webhook_changed(t):
    """
    Wrong URLs are repaired, and the repair again, while an alert waits: a webhook is found by its URL, by a description that is
    there once, by its place. The program's own lines are enough for that (all of the rules: unit.c).
    """
    sinks = [t.add(base.Sink(up=False)) for _ in range(3)]
    for number, sink in enumerate(sinks):
        webhooks = [{'url': sink.url('/place'), 'description': 'Desk'}, {'url': sink.url('/described'), 'description': 'Ops'},
                    {'url': sinks[0].url('/same'), 'description': 'Desk'}]
        if number == 2:
            webhooks.append(webhooks.pop(1))
        place = base.Place(t, webhooks, name='round%d' % number, state=os.path.join(t.tmp, 'kept'))
        process = place.start()
        if number == 0:
            execution = base.send(process)[0]
        base.soon(t, 'the journal has the webhooks as they are now', lambda: place.key in {
            line.keys for line in place.journal() if line.word == 'webhook'})
        if number < 2:
            base.kill(process)
    sinks[2].up()
    sinks[0].up()
    base.soon(t, 'nothing waits, and nothing is dead', lambda: place.pending() == base.NOTHING)
    t.equal('where it arrives', [sorted(call.path for call in sink.taken[execution]) for sink in sinks],
            [['/same'], [], ['/described', '/place']])


def test_webhook_removed(t):
    """Its alerts become dead letters that say where they were meant to go; --replay takes them to where they still can go."""
    sinks = [t.add(base.Sink(up=False)) for _ in range(3)]
    webhooks = [{'url': sink.url(), 'description': 'Desk' if sink is sinks[1] else ''} for sink in sinks]
    old, new = (base.Place(t, webhooks[::step], name='step%d' % step, state=os.path.join(t.tmp, 'kept')) for step in (1, 2))
    process = old.start()
    execution = base.send(process)
    base.kill(process)
    for sink in sinks:
        sink.up()
    process = new.start()
    base.logged(t, 'it is told', process, words.given_up(r'failure 2 \("Desk"\) after \d+ attempts?: .*'
                                                         'its webhook is not in the configuration any more'))
    for sink in sinks[::2]:
        base.arrive(t, 'the others arrive', sink, execution)
    base.soon(t, 'it is dead', lambda: new.dead() == execution)
    t.equal('its letter', [(entry['webhook'], entry['description'], entry['place'], entry['count'], entry['url'])
                           for entry in new.letters()], [('failure 2 ("Desk")', 'Desk', 2, 3, '')])
    # What is no letter stays, too, also what a crash has torn.
    data = base.read(new.path('dead-letters.ndjson')) + b'garbage\n\xff\xfe\0\n{"webhookId":"msg'
    base.write(new.path('dead-letters.ndjson'), data)
    replay(t, new, 4)
    base.logged(t, 'it stays', process, taken_back(0, 4))
    base.soon(t, 'it is done', lambda: is_done(new))
    base.stop(t, process)
    t.equal('as it was', sorted(base.read(new.path('dead-letters.ndjson')).splitlines()), sorted(data.splitlines()))
    t.equal('it was sent nowhere', len(sinks[1].seen), 0)
    replay(t, old, 4, 'with the old configuration')
    process = old.start()
    base.arrive(t, 'it arrives', sinks[1], execution)
    base.soon(t, 'and is gone', lambda: old.pending() == base.NOTHING)
