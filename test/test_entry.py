"""The keys of a webhook's entry that are ours alone: what they send, what they forbid, and that no secret of theirs is told."""

import base64
import datetime
import os
import time

import pytest

import faults_base as base
import harness
import words
from harness import datagram, response

CREDENTIALS = {'X-Token': '${env:TOKEN}', 'User-Agent': 'desk/1', 'content-type': 'application/vnd.desk+json',
               'X-Key': 'GenieKey ${file:key.txt}', 'X-About': '<{{webhookId}}>/{{webhookId}}', 'X-Price': '5 ${HOME} $'}
BEARER = {'auth': {'bearer': 'token'}}
TOKEN, KEY, PASSWORD = 'tok-Hush-1', 'key=Hush 2', 'p:w"Hush3'


def entry(receiver, path, **keys):
    return dict({'url': receiver.url(path), 'description': path.strip('/')}, **keys)


def with_secrets(t, webhooks, **options):
    """Starts the program where the variables and the file of CREDENTIALS are; gives it and the configuration's path."""
    path, _ = t.config(webhooks, logLevel='silly', **options)
    with open(os.path.join(t.tmp, 'key.txt'), 'w', encoding='utf-8', newline='') as file:
        file.write('\ufeff' + KEY + '\r\n')     # as Windows' editors do
    return t.start(path, env={'TOKEN': TOKEN, 'PASSWORD': PASSWORD}), path


def passed(program, first, last):
    """The seconds from one line of the log to another one."""
    when = [datetime.datetime.fromisoformat(program.lines(regex)[0][:23]) for regex in (first, last)]
    return (when[1] - when[0]).total_seconds()


def test_entry_head(t):
    """Own headers add to ours or replace them; credentials go out as Basic or Bearer; all may come from elsewhere."""
    receiver = t.receiver()
    program, _ = with_secrets(t, [
        entry(receiver, '/headers', headers=CREDENTIALS),
        entry(receiver, '/basic', auth={'basic': {'user': 'alice', 'password': '${env:PASSWORD}'}}),
        entry(receiver, '/bearer', auth={'bearer': '${file:key.txt}'}, method='GET'),
        entry(receiver, '/plain')])
    program.send(datagram())
    got = {request.path: request for request in receiver.wait(4)}
    names = [name for name, _ in got['/headers'].headers]
    t.equal('each header once', len(names), len({name.lower() for name in names}))
    wid = got['/headers'].get('webhook-id')
    for name, value in (('X-Token', TOKEN), ('User-Agent', 'desk/1'), ('Content-Type', 'application/vnd.desk+json'),
                        ('X-Key', 'GenieKey ' + KEY), ('X-About', '<%s>/%s' % (wid, wid)), ('X-Price', '5 ${HOME} $')):
        t.equal(name, got['/headers'].get(name), value)
    t.equal('basic', got['/basic'].get('Authorization'), 'Basic ' + base64.b64encode(b'alice:' + PASSWORD.encode()).decode())
    t.equal('bearer', got['/bearer'].get('Authorization'), 'Bearer ' + KEY)
    t.equal('neither', [name for name, _ in got['/plain'].headers if name in ('Authorization', 'X-Token')], [])
    t.equal('the others are ours', [name for name, _ in got['/plain'].headers],
            ['Host', 'User-Agent', 'Accept', 'Content-Type', 'Content-Length', 'webhook-id', 'webhook-timestamp'])


def test_entry_secrets(t):
    """What a receiver echoes of ours in a refusal is in no output; the rest of its words is in all of them."""
    echo = ('bad %s | %s | %s | %s | /hook/aB3dHush5Hush5Hush5?k=Hush6' %
            (TOKEN, KEY, PASSWORD, base64.b64encode(b'alice:' + PASSWORD.encode()).decode()))
    receiver = t.receiver(lambda request, connection: response(400, echo.encode(), [('Content-Type', 'text/plain')]))
    webhooks = [
        entry(receiver, '/hook/aB3dHush5Hush5Hush5?k=Hush6', headers={name: CREDENTIALS[name] for name in ('X-Token', 'X-Key')},
              auth={'basic': {'user': 'alice', 'password': '${env:PASSWORD}'}}, description='echo')]
    program, path = with_secrets(t, webhooks)
    program.send(datagram())
    t.check('given up', program.wait_log(words.given_up(why=r'status 400: bad \*+ \| \*')), program.stdout)
    t.equal('exit code', program.stop(), 0)
    outputs = {'log': program.stdout + program.stderr, 'letter': str(t.letters(path))}
    for option in ('--check', '--test', '--pending'):
        done = t.run(option, path, env={'TOKEN': TOKEN, 'PASSWORD': PASSWORD})
        outputs[option] = done.stdout + done.stderr
    for what, text in outputs.items():
        t.equal('%s: secrets' % what, [line for line in text.splitlines() if 'Hush' in line], [])
    for what in ('letter', '--test', '--pending'):
        t.check('%s: what the receiver said' % what, 'status 400: bad ****' in outputs[what], outputs[what])


def test_entry_redirect(t):
    """With headers of its own an entry is not redirected to another port, where they may not go."""
    other = t.receiver()
    receiver = t.receiver(lambda request, connection: response(307, b'', [('Location', other.url('/there'))]))
    program, _ = with_secrets(t, [entry(receiver, '/', headers={'X-Token': 'x'}), entry(receiver, '/', description='plain')])
    program.send(datagram())
    t.check('refused', program.wait_log(words.given_up('failure 1', why='status 307, not followed: .*another host')))
    t.check('followed', program.wait_log(words.delivered('failure 2')))
    t.equal('requests there', len(other.requests), 1)


def test_entry_retry_status(t):
    """A status of the list is tried again, any other is final; the webhook is not down for it."""
    answers = {'/later': [response(404), response(409), response(200)], '/final': [response(404)]}
    receiver = t.receiver(lambda request, connection: answers[request.path].pop(0))
    webhooks = [entry(receiver, '/later', retryStatus=[404, 409]), entry(receiver, '/final', retryStatus=[409])]
    program, _ = with_secrets(t, webhooks)
    program.send(datagram())
    t.check('given up at once', program.wait_log(words.given_up('failure 2', why='status 404')))
    t.check('delivered in the end', program.wait_log(words.delivered('failure 1', status=r'200 in \d+ ms, attempt 3'), 20))
    t.equal('down', program.lines(words.down()), [])


def test_entry_refusals(t):
    """Secrets of a body, long ones, and the parts of user:password are hidden, too; numbers keep their digits."""
    def refuse(request, connection):
        given = base64.b64decode(request.get('Authorization', 'Basic eDp5').split()[1])
        return response(400, b'%s | %s |' % (given, request.body), [('Content-Type', 'text/plain')], close=True)
    receiver = t.receiver(refuse)
    program, path = with_secrets(t, [
        entry(receiver, '/body', body={'key': '${env:TOKEN}', 'n': 12345678901234567890}),
        entry(receiver, '/long', auth={'basic': {'user': 'apikey', 'password': 'L0ng' * 150}})])
    program.send(datagram())
    for to, what in (('failure 1', r'x:y \| {"key":"\*+","n":12345678901234567890} \|$'), ('failure 2', r'\*{6}:\*+')):
        t.check(to, program.wait_log(words.given_up(to, why='status 400: ' + what)), program.stdout)
    t.equal('exit code', program.stop(), 0)
    t.equal('secrets', [line for line in program.log + [str(t.letters(path))] if 'Hush' in line or 'L0ng' in line], [])


def test_entry_reasons(t):
    """A refusal's words are told whatever type they have, but no page; what echoes ours in another form is hidden, too."""
    given = {'/html': ('text/html', 'invalid_payload', 'invalid_payload'), '/none': ('', 'a why', 'a why'),
             '/page': ('text/html', '\n<!DOCTYPE html><p>why', ''),
             '/both': ('text/plain', 'qlik or qlik-Hush', r'\*{4} or \*{9}'),
             '/colons': ('text/plain', 'abc:def:Hush my dog', r'\*{12} \*{6}'),
             '/slash': ('text/plain', r'pa\/Hush', r'\*{8}'),
             '/php': ('application/json', r'{"t":"ab\/cd+Hush=="}', r'{"t":"\*{13}"}'),
             '/inner': ('text/plain', 'invalid XHush; YHush, 1', r'invalid \*{5}; \*{5}, 1'),
             '/proxy': ('text/plain', 'me:Hush5 bWU6SHVzaDU=', r'me:\*{5} \*{12}')}

    def refuse(request, connection):
        kind, body, _ = given['/' + request.target.rpartition('/')[2]]
        return response(400, body.encode(), [('Content-Type', kind)] if kind else [])
    receiver = t.receiver(refuse)
    keys = {'/both': {'auth': {'basic': {'user': 'qlik', 'password': 'qlik-Hush'}}}, '/php': {'auth': {'bearer': 'ab/cd+Hush=='}},
            '/colons': {'auth': {'basic': {'user': 'svc', 'password': 'abc:def:Hush'}}, 'headers': {'X-Dog': 'my dog'}},
            '/slash': {'headers': {'X-Key': r'pa\/Hush'}},
            '/inner': {'headers': {'Authorization': 'Token token=XHush', 'Cookie': 'a=YHush;b=1'}},
            '/proxy': {'proxyURL': receiver.url('', 'me:Hush5')}}
    program = t.start(t.config([entry(receiver, path, **keys.get(path, {})) for path in given])[0])
    program.send(datagram())
    for number, (path, (_, _, why)) in enumerate(given.items()):
        why = 'status 400%s($|;)' % (why and ': ' + why)
        t.check(path, program.wait_log(words.given_up('failure %d' % (number + 1), why=why)), program.log)


@pytest.mark.parametrize('before, after, kept', [
    ([{}], [BEARER], True), ([{'description': 'A'}], [{'description': 'B', **BEARER}], False),
    ([{'description': 'A', **BEARER}, {}], [{'description': 'A', **BEARER}, BEARER], True)], ids=['alone', 'described', 'second'])
def test_entry_new_key(t, before, after, kept):
    """
    An entry without a description that gets its first key of ours keeps what waits for it, and its dead letters. With another
    description it is another one.
    """
    receiver = t.receiver(lambda request, connection: response(200 if request.get('Authorization') else answers.pop(0)))
    answers = [401] + 100 * [503]
    last = 'failure %d' % len(before)
    for entries in (before, after):
        path, _ = t.config([dict({'url': receiver.url()}, **keys) for keys in entries], name='same.yaml')
        program = t.start(path)
        if entries is before:
            program.send(datagram())
            t.check('dead', program.wait_log(words.given_up(last, why='status 401')))
            program.send(datagram())
            t.check('waits', program.wait_log(words.failed(last, why='503')))
            base.until(lambda: t.letters(path))
            program.stop()
    if kept:
        t.check('what waited arrives', program.wait_log(words.delivered(last, 2)), program.log)
    else:
        t.check('what waited is dead', program.wait_log(words.given_up(why='not in the configuration any more')), program.log)
        base.until(lambda: len(t.letters(path)) == 2)
    t.equal('--replay', t.run('--replay', path).returncode, 0)
    t.check('and the dead letter', program.wait_log(words.delivered(last), count=2) if kept else
            program.wait_log(' 0 taken back to be sent again, 2 stay: '), program.log)


def test_entry_empty(t):
    """A variable that is empty is told, as it would be if it were not there, and nothing is started with it."""
    path, _ = t.config([{'url': '${env:NOTHING}', 'auth': {'basic': {'user': 'key', 'password': ''}}}])
    done = t.run('--check', path, env={'NOTHING': ''})
    t.equal('exit code', done.returncode, 2)
    t.equal('problems', [line.split('error: ')[1] for line in done.stderr.splitlines()],
            ['NOTHING: no such variable, empty, or no text in UTF-8',
             'webhookURL is not a URL: it is empty; write it as http://host/path or https://host:port/path'])


def test_entry_large_files(t):
    """A file that is too large for a value is told, and files that are so together."""
    for name, size in (('large', 600000), ('half', 300000)):
        with open(os.path.join(t.tmp, name), 'wb') as file:
            file.write(b'x' * size)
    for texts, why in ((['${file:large}'], 'large: File too large\n'),
                       (['${file:half}'] * 2, ': variables and files may put at most 512 KB into an entry\n')):
        path, _ = t.config([{'url': 'http://127.0.0.1:1/', 'match': {'taskName': texts}}])
        done = t.run('--check', path)
        t.check(why, done.returncode == 2 and ' error: ' in done.stderr and why in done.stderr, done.stderr)


def test_entry_refusal_without_end(t):
    """A refusal that is long, and that nobody ends, is told as soon as enough of it is there."""
    head = b'HTTP/1.1 400 No\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n'
    receiver = t.receiver(lambda request, connection: lambda sock: (sock.sendall(head + b'y' * 5000), sock.recv(1)))
    program = t.start(t.config([{'url': receiver.url()}])[0])
    program.send(datagram())
    t.check('refused', program.wait_log(words.given_up(why='status 400: y{200}')), program.log)
    t.check('at once', passed(program, words.accepted(), words.given_up()) < 1.5 * harness.SLOW, program.log)


def test_heartbeat(t):
    """One call every so many seconds, with nothing in it; that it fails, and works again, is told once."""
    answers = [response(200), response(500), response(500), response(204)]
    receiver = t.receiver(lambda request, connection: answers.pop(0) if answers else response(200))
    path, _ = t.config([], butlerWebhook={'heartbeatURL': receiver.url('/ping?a=b', 'me:x'), 'heartbeatSeconds': 1})
    program = t.start(path)
    t.check('it fails', program.wait_log(r' warn: heartbeat failed: status 500$'))
    t.check('it works again', program.wait_log(r' info: heartbeat works again$'))
    t.equal('requests', {(r.method, r.target, r.body, r.get('Authorization')) for r in receiver.requests},
            {('GET', '/ping?a=b', b'', 'Basic bWU6eA==')})
    t.equal('each change once', len(program.lines('heartbeat')), 2)
    t.equal('exit code', program.stop(), 0)
    t.check('about one a second', len(receiver.requests) <= 10, len(receiver.requests))


def test_heartbeat_without_answer(t):
    """A stop does not wait for it."""
    receiver = t.receiver(lambda request, connection: lambda sock: sock.recv(1))
    program = t.start(t.config([], butlerWebhook={'heartbeatURL': receiver.url()})[0])
    receiver.wait()
    t.equal('exit code', program.stop(), 0)
    t.check('at once', passed(program, words.STOPPING, words.STOPPED) < 2 * harness.SLOW, program.log)


def test_metrics_file(t):
    """It may not stand beside the configuration, wherever its name comes from."""
    for name, code in (('a.prom', 2), ('${env:FILE}', 0), ('../a.txt', 2)):
        path, _ = t.config([], butlerWebhook={'metricsFile': name})
        done = t.run('--check', path, env={'FILE': 'textfiles/a.prom'})
        t.check(name, done.returncode == code and ("NAME.prom outside this file's folder" in done.stderr) == (code == 2), done)


def test_metrics(t):
    """What stands in metricsFile at the end of a run; it is whole, for everybody to read, and nothing else is left there."""
    receiver = t.receiver(lambda request, connection: response(404 if request.path == '/dead' else 200))
    folder = os.path.join(t.tmp, 'textfiles')
    os.mkdir(folder)
    webhooks = [entry(receiver, '/ok', description='a "quoted" \\ name'), entry(receiver, '/dead'),
                entry(receiver, '/down', url='http://127.0.0.1:%d/' % t.port())]
    path, _ = t.config(webhooks, butlerWebhook={'metricsFile': 'textfiles/butler_webhook.prom'})
    program = t.start(path)
    for data in (datagram(), b'junk', datagram(), datagram(id='/scheduler-distribute/')):
        program.send(data)
    t.check('delivered', program.wait_log(words.delivered('failure 1'), count=2))
    t.check('dead', program.wait_log(words.given_up('failure 2'), count=2))
    t.check('down', program.wait_log(words.down('failure 3')))
    t.equal('exit code', program.stop(), 0)
    t.equal('files', os.listdir(folder), ['butler_webhook.prom'])
    name = os.path.join(folder, 'butler_webhook.prom')
    with open(name, encoding='utf-8') as file:
        text = file.read()
    values = dict(line.rsplit(' ', 1) for line in text.splitlines() if not line.startswith('#'))
    labels = [r'webhook="failure %d (\"%s\")"' % pair for pair in enumerate((r'a \"quoted\" \\ name', 'dead', 'down'), 1)]
    wanted = {'datagrams_total{outcome="accepted"}': 2, 'datagrams_total{outcome="malformed"}': 0,
              'datagrams_total{outcome="unknown"}': 1, 'datagrams_total{outcome="ignored"}': 1,
              'datagrams_total{outcome="dropped"}': 0,
              'deliveries_total{%s,outcome="delivered"}' % labels[0]: 2,
              'deliveries_total{%s,outcome="dead_letter"}' % labels[1]: 2,
              'attempt_seconds_count{%s}' % labels[1]: 2, 'up{%s}' % labels[0]: 1, 'up{%s}' % labels[2]: 0,
              'waiting_alerts{%s}' % labels[2]: 2, 'waiting_alerts{%s}' % labels[0]: 0, 'build_info{version="0.2.0"}': 1}
    for key, value in wanted.items():
        t.equal(key, values.get('butler_webhook_' + key), str(value))
    t.check('the oldest waits', float(values['butler_webhook_oldest_waiting_seconds{%s}' % labels[2]]) > 0)
    t.check('the time', abs(float(values['butler_webhook_written_timestamp_seconds']) - time.time()) < 60)
    if not harness.WINDOWS:
        t.equal('mode', os.stat(name).st_mode & 0o777, 0o644)
