"""
From the datagram to the call, seen from outside: the real datagrams of test/data, what Butler sent for its own, what is
held back, who is listened to, and what the log says. unit.c proves the parsers and the tables of this.
"""

import base64
import datetime
import hashlib
import json
import os
import re
import signal
import socket
import threading
import time
import urllib.parse

import pytest

import faults_base as base
import harness
import servers
import words

DATA = os.path.join(harness.ROOT, 'test/data')
TASK = 'dec2a02a-1680-44ef-8dc2-e2bfb180af87'
APP = 'e7af59a0-c243-480d-9571-08727551a66f'
KEYS = ('event', 'hostName', 'user', 'taskName', 'taskId', 'appName', 'appId', 'logTimeStamp', 'logLevel', 'executionId',
        'logMessage')
EVENTS = {'failure': 'Qlik Sense reload failed', 'aborted': 'Qlik Sense reload aborted'}
IDS = {'failure': '/scheduler-task-failed/', 'aborted': '/scheduler-task-aborted/'}
LEVELS = ('error', 'warn', 'info', 'verbose', 'debug', 'silly')
LINE = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (%s): \S' % '|'.join(LEVELS))
HAS_IPV6 = b'0' * 31 + b'1' in base.read('/proc/net/if_inet6')
MINUTE_LINES = 20       # lines a minute that are spent on each thing that others can cause at will


def alert(kind='failure', run='', text='', message='Max retries reached'):
    """A datagram, and the fields that are sent for it. text: the host, the task, the app and the user."""
    data = harness.datagram(id=IDS[kind], host=text, task=text, app=text, user=text, task_id=TASK, app_id=APP,
                            execution_id=run, message=message)
    values = (EVENTS[kind], text, text, text, TASK, text, APP, '2026-11-22 09:30:00,123', 'INFO', run, message)
    return data, {key: value.replace('\0', '\ufffd') for key, value in zip(KEYS, values)}


def stringify(fields):
    """The bytes of JSON.stringify."""
    return json.dumps(fields, ensure_ascii=False, separators=(',', ':')).encode('utf-8')


def search_params(fields):
    """The text of URLSearchParams."""
    return urllib.parse.urlencode(fields, safe='*').replace('~', '%7E')


def start(t, answer=None, options=None, **config):
    """A program with a POST webhook for each kind of event, and the receiver of both. options: of t.start."""
    receiver = t.receiver(answer)
    path, _ = t.config([{'url': receiver.url('/failure')}, {'url': receiver.url('/aborted'), 'kind': 'aborted'}], **config)
    return t.start(path, **(options or {})), receiver


def messages(receiver):
    return [request.json().get('logMessage') for request in receiver.wait(0)]


def stop(t, program, receiver, arrived):
    """Ends the program, so that nothing can arrive later; what did is compared by its messages."""
    t.equal('exit code', program.stop(), 0)
    t.equal('what arrived', sorted(messages(receiver)), sorted(arrived))


# ---- Datagrams and calls --------------------------------------------------------------------------------------------

# Nothing tells the `;` inside its task name apart from those between fields.
CUT_ELSEWHERE = {'051-a-control-chars.bin': {'taskName': 'esc\x1b]0', 'appName': 'x\x07;Test failing reloads 2'}}


def test_datagram_of_log4net(t):
    """Every datagram of test/data/datagrams, against the event that log4net was given."""
    with open(os.path.join(DATA, 'datagrams/index.json'), encoding='utf-8') as file:
        entries = json.load(file)
    t.check('there are enough', len(entries) > 50, len(entries))
    program, receiver = start(t, logLevel='verbose', butlerWebhook={'maxConcurrent': 1})     # so that they arrive in order
    told = {'failure': ' accepted: reload failed, ', 'aborted': ' accepted: reload aborted, ', 'ignored': ' verbose: ignored: '}
    wanted = {'failure': [], 'aborted': [], 'ignored': []}
    for entry in entries:
        name, kind = entry['file'], entry['verdict']
        data = base.read(os.path.join(DATA, 'datagrams', name))
        fields = {key: entry['fields'].get(key, EVENTS.get(kind)) for key in KEYS}
        fields.update(CUT_ELSEWHERE.get(name, {}))
        if isinstance(fields['logMessage'], dict):
            fields['logMessage'] = data.split(b';', 10)[10].decode('utf-8')     # unit.c compares its SHA-256
        wanted[kind].append((name, {key: value and value.replace('\0', '\ufffd') for key, value in fields.items()}))
        program.send(data)
        t.require('%s: is %s' % (name, kind), program.wait_log(told[kind], count=len(wanted[kind])))
    t.equal('exit code', program.stop(), 0)
    for kind in IDS:
        got = [request.body for request in receiver.requests if request.path == '/' + kind]
        t.equal('%s: how many' % kind, len(got), len(wanted[kind]))
        for body, (name, fields) in zip(got, wanted[kind]):
            t.equal('%s: body' % name, body, stringify(fields))


LISTENERS = {'main': ('127.0.0.1', '18080'), 'ipv6': ('::1', '18080'), 'other': ('127.0.0.1', '18082'),
             'proxy': ('127.0.0.1', '18081'), 'tls': ('127.0.0.1', '18443'), 'tls6': ('::1', '18443')}


TRACES = [name[:-5] for name in sorted(os.listdir(os.path.join(DATA, 'butler'))) if name.endswith('.json')]


def trace_answer(trace, wanted):
    """What receivers answer: an alert begins with the first answer that the trace has for its path, and stays with the last."""
    calls = []

    def answer(request, connection):
        call = request.path, request.get('webhook-id')
        calls.append(call)
        answers = trace.get('answers', {}).get(request.path, [200])
        result = answers[min(calls.count(call), len(answers)) - 1]
        if isinstance(result, int):
            return harness.response(result)
        if result == 'reset if reused':
            return harness.reset if connection.served else harness.response()
        if result == 'wait for all':
            return harness.response(200 if base.until(lambda: len(calls) == wanted, 8) else 400)
        return None if result is None else result.encode()
    return answer


def trace_facts(listener, method, target, body, get):
    """What is compared of a request. Whoever calls localhost may use either family."""
    place = 'localhost' if get('host').startswith('localhost') else listener
    return (place, method, target, body, *map(get, ('host', 'authorization', 'proxy-authorization', 'content-type')))


@pytest.mark.parametrize('name', TRACES)
def test_trace(t, name):
    """What Butler itself sent for its datagrams; the README of test/data/butler says what the keys of a trace mean."""
    with open(os.path.join(DATA, 'butler', name + '.json'), encoding='utf-8') as file:
        text = file.read()
    if '[::1]' in text and not HAS_IPV6:
        t.skip('no IPv6 here')
    ports = {port: t.port() for port in ('18080', '18081', '18082', '18443')}
    for port, ours in ports.items():
        text = text.replace(':' + port, ':%d' % ours)
    trace = json.loads(text)
    wanted = [trace_facts(r['listener'], r['method'], r['target'], r['body'], r.get)
              for r in trace.get('ours', trace['requests'])]
    path, _ = t.config([dict(webhook, url=trace.get('urls', {}).get(webhook['url'], webhook['url']))
                        for webhook in trace['webhooks']], rateLimit=300, deduplication={})
    tls = None
    if 'https:' in text:
        base.write(os.path.join(t.tmp, 'root.pem'), servers.read_bytes(servers.root().pem))
        tls = servers.good().context()
    answer = trace_answer(trace, len(wanted))
    receivers = {place: t.receiver(answer, host=host, port=ports[port], ssl_context=tls if 'tls' in place else None)
                 for place, (host, port) in LISTENERS.items() if host != '::1' or HAS_IPV6}
    program = t.start(path, env=trace.get('env'), binary=t.binary_test if trace.get('program') == 'test' else None)
    calls = 0
    for number, data in enumerate(trace['datagrams'], 1):
        if not trace.get('together') and calls:
            t.check('those before are delivered', program.wait_log(words.delivered(), count=calls))
        program.send(data.encode())
        match = program.wait_log(r' accepted: .*, for (\d+) webhook|%s|%s' % (words.HELD_BACK, words.DUPLICATE), count=number)
        t.require('datagram %d is dealt with' % number, match)
        calls += int(match.group(1) or 0)
    base.until(lambda: sum(len(receiver.requests) for receiver in receivers.values()) >= len(wanted))
    for regex in trace.get('log', ()):
        t.check('the log has %s' % regex, program.wait_log(regex))
    t.equal('exit code', program.stop(), 0)
    arrived = [(place, request) for place, receiver in receivers.items() for request in receiver.requests]
    got = [trace_facts(place, r.method, r.target, r.body.decode(), r.get) for place, r in arrived]
    t.equal('requests that are not wanted', [request for request in got if request not in wanted], [])
    t.equal('requests that are missing', [request for request in wanted if request not in got], [])
    t.equal('requests', len(got), len(wanted))
    t.equal('webhook-ids stay over retries and redirects', len({request.get('webhook-id') for _, request in arrived}),
            calls - trace.get('unreachable', 0))
    t.check('no password in the log', not re.search('secret|Ym9iO|pp@|cHU6', program.stdout))
    if 'ours' not in trace and 'answers' not in trace:
        used = {(place, r.method, r.path, r.connection) for place, r in arrived}
        t.equal('each webhook used one connection', len(used), len({webhook[:3] for webhook in used}))


def test_call(t):
    """Awkward text in every field, by each method: the bytes of JSON.stringify and of URLSearchParams; and all headers."""
    texts = ['".-_~*\'()!` +&=%?#/:,@[]{}|^<>$\\ C:\\temp \\u0041 100%25 %zz ', 'tab\tCR\rLF\nNUL\0BS\bFF\fVT\x0bESC\x1bDEL\x7f.',
             'åäö € 販売 🚀👩\u200d👧 \u2028 \u0080 e\u0301 \u202e \U0010ffff', ' leading and trailing ', '']
    receiver = t.receiver()
    urls = {'GET': receiver.url('/hook?a=1&b=%20x#no'), 'POST': receiver.url('/hook?a=1&b=%20x#no', 'us%40er:lösen ord'),
            'PUT': receiver.url('/hook?a=1&b=%20x')}
    path, _ = t.config([{'url': url, 'method': method} for method, url in urls.items()])
    program = t.start(path)
    begin = int(time.time())
    for number, text in enumerate(texts, 1):
        run = '{%s}' % harness.guid().upper() if number > 1 else 'run 17'
        data, fields = alert(run=run, text=text, message='x' + text + 'x')
        about = run[1:-1].replace('-', '').lower() if number > 1 else hashlib.sha256(stringify(fields)).hexdigest()[:32]
        program.send(data)
        requests = {request.method: request for request in receiver.wait(3 * number)[3 * number - 3:]}
        t.require('text %d: a request of each method' % number, len(requests) == 3, list(requests))
        for method, request in requests.items():
            what = 'text %d, %s' % (number, method)
            got = {name.lower(): value for name, value in request.headers}
            stamp = int(got.pop('webhook-timestamp', 0))
            t.check('%s: webhook-timestamp is the time of the call' % what, begin <= stamp <= time.time(), stamp)
            t.check('%s: User-Agent' % what, re.fullmatch(r'butler_webhook/\d+\.\d+\.\d+', got.pop('user-agent', '')))
            headers = {'host': receiver.authority, 'accept': 'application/json, text/plain, */*',
                       'webhook-id': 'msg_%s_f_%s' % (about, base.webhook_key(urls[method], method)[:8])}
            if method == 'POST':
                headers['authorization'] = 'Basic ' + base64.b64encode('us@er:lösen ord'.encode()).decode()
            target, body = '/hook?a=1&b=%20x', stringify(fields)
            if method == 'GET':
                target, body = '%s&%s' % (target, search_params(fields)), b''
            else:
                headers.update({'content-type': 'application/json', 'content-length': str(len(body))})
            t.equal(what, (request.target, request.version, request.body), (target, 'HTTP/1.1', body))
            t.equal('%s: the other headers' % what, got, headers)


def test_call_get_cut(t):
    """A GET target over 2,000 bytes that is refused for that is sent once more with less of the message. unit.c has the cases."""
    receiver = t.receiver(lambda request, connection: harness.response(200 if len(request.target) <= 2000 else 404))
    path, _ = t.config([{'url': receiver.url('/hook?key=1'), 'method': 'GET'}])
    program = t.start(path)
    message = 'aå€😀' * 400
    data, fields = alert(message=message)
    program.send(data)
    t.check('it is delivered', program.wait_log(words.delivered('failure 1', status='200 in .*, attempt 1$')))
    got = receiver.wait(2)
    t.require('two calls', len(got) == 2, len(got))
    t.equal('the first target', got[0].target, '/hook?key=1&' + search_params(fields))
    cut = dict(got[1].params())['logMessage']
    t.check('whole characters of the message', message.startswith(cut), cut[-10:])
    t.equal('the rest is whole', got[1].target, '/hook?key=1&' + search_params(dict(fields, logMessage=cut)))
    t.check('as much as fits', 1988 <= len(got[1].target) <= 2000, got[1].target)
    t.equal('webhook-id', got[1].get('webhook-id'), got[0].get('webhook-id'))
    t.equal('the log tells it', len(program.lines(r' warn: webhook failure 1: .*; once more with logMessage cut$')), 1)


@pytest.mark.parametrize('limit', [4, 1])
def test_max_concurrent(t, limit):
    """As many calls at once as maxConcurrent says, 4 by default, never more; with 1 in the order of the alerts."""
    together = threading.Barrier(limit, timeout=10 * harness.SLOW)

    def answer(request, connection):
        together.wait()
        time.sleep(0.05)        # one more would begin meanwhile
        return harness.response()

    program, receiver = start(t, answer, butlerWebhook={} if limit == 4 else {'maxConcurrent': limit})
    sent = ['%02d' % number for number in range(12)]
    for message in sent:
        program.send(harness.datagram(message=message))
    receiver.wait(len(sent))
    t.equal('each alert once', messages(receiver) if limit == 1 else sorted(messages(receiver)), sent)
    t.equal('connections', len(receiver.connections), limit)


# ---- Rate limit and duplicates --------------------------------------------------------------------------------------


def test_rate_limit_and_duplicates(t):
    """One alert for each execution, and for each task in a while, of a kind, whatever form its GUID has; without one: all."""
    program, receiver = start(t, rateLimit=300, rateLimitAborted=0, deduplication={})
    run = harness.guid()
    program.send(harness.datagram(task_id=TASK, app_id=''))       # this is no alert
    program.send(harness.datagram(task_id=TASK, execution_id=run, message='first'))
    for task_id in (TASK.upper(), '{%s}' % TASK, '{%s}' % TASK.upper()):
        program.send(harness.datagram(task_id=task_id, message='held back', task='x', app='x', user='x', app_id=harness.guid()))
    for execution_id in (run, run.upper(), '{%s}' % run):
        program.send(harness.datagram(execution_id=execution_id, message='duplicate'))
    program.send(harness.datagram(task_id=run, message='other task'))
    for execution_id in (run, harness.guid(), run):
        program.send(harness.datagram(id=IDS['aborted'], task_id=TASK, execution_id=execution_id, message='aborted'))
    for none in ('', '(null)') * 2:
        program.send(harness.datagram(task_id=none, execution_id=none, message='neither'))
    stop(t, program, receiver, ['first', 'other task'] + ['aborted'] * 2 + ['neither'] * 4)
    told = words.HELD_BACK + r'reload failed, task "x" \(\{%s\}\), .*, 3 since the last alert, from 127' % TASK.upper()
    t.check('what is held back is told, with the count', program.lines(told), program.log)
    t.equal('duplicates are told', len(program.lines(words.DUPLICATE + r'reload failed, task "Reload of Sales" \(\S+\), ')), 3)
    t.equal('of the other kind, too', len(program.lines(words.DUPLICATE + 'reload aborted, .*execution %s' % run)), 1)


def test_match(t):
    """
    Alerts go where their fields say; those that no webhook wants are one warning a minute. The rate limit counts before,
    --test calls all, and dead letters are replayed although match has changed.
    """
    status = [404]
    receiver = t.receiver(lambda request, connection: harness.response(status[0] if request.path == '/finance' else 200))
    path, _ = t.config([
        {'url': receiver.url('/finance'), 'match': {'taskName': ['*finance*', 'Sales ?'], 'user': 'LAB\\*'}},
        {'url': receiver.url('/hosts'), 'match': {'hostName': 'qs2.*'}}, {'url': receiver.url('/aborted'), 'kind': 'aborted'}],
        rateLimit=300)
    t.run('--test', path)
    t.equal('--test', sorted(request.path for request in receiver.requests), ['/aborted', '/finance', '/hosts'])
    program = t.start(path)
    for task, host, user, task_id in (('Finance daily', 'qs1', 'lab\\a', None), ('SALES 2', 'QS2.example', 'LAB\\b', None),
                                      ('Finance', 'qs1', 'b', None), ('Sales 22', 'qs1', 'LAB\\b', None),
                                      ('x', 'qs2', 'LAB\\b', TASK), ('Finance', 'qs1', 'LAB\\b', TASK)):
        program.send(harness.datagram(task=task, host=host, user=user, task_id=task_id))
    program.send(harness.datagram(id=IDS['aborted'], task='y'))
    for number, count in enumerate((1, 2, 1), 1):
        line = program.wait_log(words.accepted(number, r', for (\d+) webhooks?$'))
        t.check('alert %d' % number, line and line[1] == str(count), program.log)
    t.equal('the last one for failures is held back', len(program.lines(words.HELD_BACK)), 1)
    for to in ('failure 2', 'aborted 1'):
        t.check('%s gets its' % to, program.wait_log(words.delivered(to)), program.log)
    t.check('failure 1 refuses its', program.wait_log(words.given_up('failure 1'), count=2), program.log)
    t.equal('exit code', program.stop(), 0)
    t.equal('a warning', len(program.lines(words.UNMATCHED)), 1)
    t.equal('counted', program.wait_log(words.NO_ALERTS, 1)[8], '3')
    t.check('the number of the others', program.lines(' warn: 2 more in the last minute: not sent'), program.log)
    with open(path, encoding='utf-8') as file:
        text = file.read()
    with open(path, 'w', encoding='utf-8', newline='') as file:
        file.write(text.replace('*finance*', 'nothing'))
    status[0] = 200
    t.run('--replay', path)
    program = t.start(path)
    t.check('the replay', program.wait_log(words.delivered('failure 1'), count=2), program.log)


# ---- Who is listened to, and how much -------------------------------------------------------------------------------


def send_from(program, source, message=None):
    """An alert from this address; unless told otherwise the address is its message."""
    family, host = (socket.AF_INET6, '::1') if ':' in source else (socket.AF_INET, '127.0.0.1')
    with socket.socket(family, socket.SOCK_DGRAM) as udp:
        udp.bind((source, 0))
        udp.sendto(harness.datagram(message=message or source), (host, program.port))


def arrives(program, receiver, source, timeout=20):
    """Sends alerts from there until one arrives: names are looked up beside everything else."""
    def one_arrives():
        send_from(program, source)
        return base.until(lambda: source in messages(receiver), 0.5)
    return base.until(one_arrives, timeout)


def is_refused(program, source):
    send_from(program, source)
    return program.wait_log(words.NOT_ALLOWED + re.escape(source) + '$')


SOURCES = {     # where it listens, allowedSources (None: no check of senders), who is accepted, and who is not
    'addresses and ranges': ('0.0.0.0', ['127.0.0.2', '127.0.1.0/24', '::ffff:127.0.2.128/121'],
                             ['127.0.0.2', '127.0.1.255', '127.0.2.128'], ['127.0.0.1', '127.0.0.255', '127.0.2.127']),
    'name': ('127.0.0.1', ['LocalHost', '127.0.0.9'], ['127.0.0.1', '127.0.0.9'], ['127.0.0.2']),
    'empty': ('127.0.0.1', [], ['127.0.0.1', '127.0.0.2'], []),
    'IPv6': ('::1', ['::1'], ['::1'], []),
    'IPv6 refused': ('::1', ['::2', '127.0.0.1', '0.0.0.0/0'], [], ['::1']),
    'both families': ('::', ['127.0.0.2', '::1'], ['127.0.0.2', '::1'], ['127.0.0.1']),
    'no check': ('localhost', None, ['127.0.0.1', '127.0.0.2'], []),
}


@pytest.mark.parametrize('host, allowed, accepted, refused', SOURCES.values(), ids=list(SOURCES))
def test_sources(t, host, allowed, accepted, refused):
    """Where it listens, and to whom."""
    if ':' in host and not HAS_IPV6:
        t.skip('no IPv6 here')
    udp = {'enableSourceValidation': allowed is not None, 'allowedSources': ['10.0.0.1'] if allowed is None else allowed}
    program, receiver = start(t, udp=dict(udp, serverHost=host))
    shown = {'localhost': '127.0.0.1', '::1': '[::1]', '::': '[::]'}.get(host, host)
    t.equal('the log says where', program.wait_log(words.LISTENING).groups(), (shown, str(program.port)))
    for source in accepted:
        t.check('%s is accepted' % source, arrives(program, receiver, source))
    for source in refused:
        t.check('%s is refused, and told' % source, is_refused(program, source))
    t.equal('exit code', program.stop(), 0)
    t.equal('what arrived', set(messages(receiver)), set(accepted))


def test_sources_names(t):
    """Who is not known to be allowed is refused: while a look-up hangs, and after it failed; then a name's addresses count."""
    shim = base.Shim(t)
    shim.set(resolve_delay_ms=600000)
    options = {'binary': t.binary_test, 'env': shim.env,
               'wrap': harness.with_files(t, {'/etc/hosts': '127.0.0.5 sense.example\n127.0.0.6 sense.example\n'})}
    program, receiver = start(t, None, options, udp={'enableSourceValidation': True,
                                                     'allowedSources': ['sense.example', '127.0.0.2']})
    t.check('others are listened to', arrives(program, receiver, '127.0.0.2'))
    t.check('refused while the look-up hangs', is_refused(program, '127.0.0.5'))
    shim.set(resolve_fail=1, resolve_delay_ms=0)
    t.check('not found', program.wait_log(' warn: allowedSources: sense.example not found: '))
    t.check('still refused', is_refused(program, '127.0.0.6'))
    shim.set(resolve_fail=0, boot_offset_ms=10000)      # after ten seconds it is looked up again
    for source in ('127.0.0.5', '127.0.0.6'):
        t.check('%s is accepted' % source, arrives(program, receiver, source, 6))
    before = shim.get('hits')
    shim.set(resolve_delay_ms=600000, boot_offset_ms=600000)    # after five minutes, too
    send_from(program, '127.0.0.2')     # so that it looks at its clock
    shim.struck(t, before)
    t.equal('exit code of a stop while the look-up hangs', program.stop(), 0)


def test_max_message_size(t):
    """By default 65,507 bytes, which is all that IPv4 carries; IPv6 can carry 20 bytes more."""
    if not HAS_IPV6:
        t.skip('no IPv6 here')
    program, receiver = start(t, udp={'serverHost': '::1'})
    text = 'x' * (65507 - len(harness.datagram(message='')))
    send_from(program, '::1', text)
    for more in (1, 20):
        send_from(program, '::1', text + 'x' * more)
        t.check('%d more bytes are told' % more, program.wait_log(
            r' error: datagram dropped, larger than maxMessageSize: %d bytes, from ::1$' % (65507 + more)))
    stop(t, program, receiver, [text])


def test_udp_rate_limit(t):
    """So many datagrams a minute are taken of allowed senders; the rest, and others, are worth twenty lines, then a count."""
    shim = base.Shim(t)     # test_flood in test_load.py shows that of what else others can cause
    program, receiver = start(t, None, {'binary': t.binary_test, 'env': shim.env}, butlerWebhook=base.OURS, udp={
        'enableSourceValidation': True, 'allowedSources': ['127.0.0.2'],
        'rateLimit': {'enable': True, 'maxMessagesPerMinute': 10}})
    refused, over = words.more('not in allowedSources$', 13), words.more(r'over udpServerConfig\.rateLimit$', 7)
    for source in ['127.0.0.1'] * (MINUTE_LINES + 13) + ['127.0.0.2'] * 10:
        send_from(program, source, 'first minute')
    t.require('all are delivered, as a call would last a minute', program.wait_log(words.delivered(), count=10))
    shim.set(boot_offset_ms=60000)
    for _ in range(10):
        send_from(program, '127.0.0.2', 'second minute')
    t.check('the count of those that are not allowed', program.wait_log(refused), program.log)
    for _ in range(MINUTE_LINES + 7):
        send_from(program, '127.0.0.2', 'too many')
    stop(t, program, receiver, ['first minute'] * 10 + ['second minute'] * 10)
    t.equal('lines', [len(program.lines(word)) for word in (words.NOT_ALLOWED, words.RECEIVE_LIMIT, refused, over)],
            [MINUTE_LINES, MINUTE_LINES, 1, 1])


# ---- The log --------------------------------------------------------------------------------------------------------


def test_log_lines(t):
    """The lines that tell the way of an alert, in their words, and the counts at the end."""
    receiver = t.receiver(lambda request, connection: harness.response(404 if request.path == '/gone' else 200))
    path, port = t.config([{'url': receiver.url('/ok'), 'description': 'Ops "desk" ö'},
                           {'url': receiver.url('/gone'), 'method': 'PUT'}, {'url': receiver.url('/ok'), 'kind': 'aborted'}],
                          deduplication={}, logLevel='verbose', logDirectory='/proc/none')    # not looked at without fileLogging
    program = t.start(path)
    run = harness.guid()
    text = '/scheduler-task-failed/;' + ''.join('%05dåö€' % number for number in range(40))
    for data in (harness.datagram(task_id=TASK, execution_id=run),
                 harness.datagram(id=IDS['aborted'], task_id=TASK, execution_id=run),
                 harness.datagram(task_id=TASK, execution_id=run),
                 harness.datagram(id='/scheduler-task-success//'), harness.datagram(id='/other/'),
                 text.encode(), text[:150].encode()):
        program.send(data)
    names = r'task "Reload of Sales" \(%s\), app "Sales", execution %s' % (TASK, run)
    for regex in (r' info: butler_webhook \d+\.\d+\.\d+ starting with %s$' % re.escape(path),
                  r' info: listening on 127\.0\.0\.1:%d \(UDP\), receive buffer \d+ bytes$' % port,
                  r' info: alert 1 accepted: reload failed, %s, for 2 webhooks$' % names,
                  r' info: alert 2 accepted: reload aborted, %s, for 1 webhook$' % names,
                  r' info: alert 1 delivered to failure 1 \("Ops "desk" ö"\): 200 in \d+ ms, attempt 1$',
                  r' info: alert 2 delivered to aborted 1: 200 in \d+ ms, attempt 1$',
                  r' error: alert 1 given up for failure 2 after 1 attempt: .*404.*; .*webhookURL',
                  r' info: duplicate ignored: reload failed, %s' % names,
                  r' verbose: ignored: /scheduler-task-success//',
                  r' warn: unknown message id: /other/, from 127\.0\.0\.1$',
                  r' warn: malformed datagram: .*: "%s\.\.\.", from 127\.0\.0\.1$' % text[:200],
                  r' warn: malformed datagram: .*: "%s", from 127\.0\.0\.1$' % text[:150]):
        t.check(regex, program.wait_log('Z' + regex), program.log)
    t.equal('exit code', program.stop(), 0)
    t.equal('the whole alert stands in the dead letter', [stringify(letter['alert']) for letter in t.letters(path)],
            [request.body for request in receiver.requests if request.path == '/gone'])
    t.equal('signal', len(program.lines(words.STOPPING + harness.SYSTEM.stopped_by(signal.SIGTERM) + '$')), 1)
    t.equal('counts', re.search(words.STOPPED, program.log[-1]).groups(), ('7', '2', '2', '1', '0', '0'))
    t.equal('counts of what is no alert', program.wait_log(words.NO_ALERTS, 0).groups(), ('1', '2', '1', '1', '0', '0', '0', '0'))
    now = datetime.datetime.now(datetime.timezone.utc)
    for line in program.log:
        t.check('the form of a line', LINE.match(line), line)
        told = datetime.datetime.strptime(line[:23] + '+0000', '%Y-%m-%dT%H:%M:%S.%f%z')
        t.check('the time is UTC and now', abs((now - told).total_seconds()) < 60 * harness.SLOW, line[:24])


@pytest.mark.parametrize('level', LEVELS)
def test_log_levels(t, level):
    """Nothing below the level, and all that there is down to it."""
    program, receiver = start(t, harness.response(404), {'wait': False}, logLevel=level)
    t.require('it listens', arrives(program, receiver, '127.0.0.1'))
    program.send(harness.datagram(id='/scheduler-task-success//'))
    program.send(b'/scheduler-task-failed/;nothing')
    t.check('the error is told', program.wait_log(words.given_up()), program.log)
    t.equal('exit code', program.stop(), 0)
    seen = {LINE.match(line).group(1) for line in program.log}
    place = LEVELS.index(level)
    t.check('nothing below it', seen <= set(LEVELS[:place + 1]), seen)
    t.check('all down to verbose that there is', seen >= set(LEVELS[:min(place, 3) + 1]), seen)


def test_log_sanitised(t):
    """Nothing from outside reaches the log raw or forges a line. More of what webhooks answer is in test_answers.py."""
    bad = '\x1b[2J\x07\0\r\n2026-01-01T00:00:00.000Z error: forged\x7f\x85\x9b31m\u2028'
    program, _ = start(t, b'\x1b]0;title\x07\r\n\x00\x9b\r\n\r\n', logLevel='silly', rateLimit=300, deduplication={},
                       butlerWebhook={'stateDirectory': ''})       # so that what is lost is logged whole
    for data in (alert(run=bad, text=bad, message=bad + '.')[0], alert(run=bad, text=bad)[0], alert(run='2', text=bad)[0],
                 harness.datagram(task=bad, app_id=''), harness.datagram(id=bad),
                 b'/scheduler-task-failed/;' + bad.encode(), b'/scheduler-task-failed/;\x9b\x90\xff' + bytes(range(256))):
        program.send(data)
    for regex in (words.accepted(1, 'error: forged'), words.failed(why='title'), words.DUPLICATE, words.HELD_BACK,
                  ' verbose: ignored: ', 'unknown message id'):
        t.check('the log has %s' % regex, program.wait_log(regex), program.log)
    t.check('malformed', program.wait_log(words.MALFORMED, count=2))
    t.equal('exit code', program.stop(), 0)
    t.equal('alerts that are logged whole', len(program.lines(words.lost() + '.*; alert: {')), 1)
    t.equal('control characters', re.findall('[\x00-\x09\x0b-\x1f\x7f-\x9f]', program.stdout), [])
    t.check('it is UTF-8', not re.search('[\udc80-\udcff\u2028]', program.stdout))
    t.equal('lines that are none', [line for line in program.log if not LINE.match(line) or line.startswith('2026-01-01T')], [])


def test_log_hides_secrets(t):
    """No password, query value, or long path segment, as of Slack and Teams, at any level, in any output."""
    closed = t.port()
    moved = 'http://eve:Hush@127.0.0.%d:%d/aB3dHushHushHush?key=Hush#Hush'
    answers = {name: harness.response(status, headers=[('Location', location)]) for name, status, location in (
        ('404', 404, '/'), ('500', 500, '/'), ('moved', 302, moved % (1, closed)), ('elsewhere', 307, moved % (2, closed)),
        ('loop', 307, '/loop/aB3dHushHushHush?Hush'))}
    receiver = t.receiver(lambda request, connection: answers.get(request.path.split('/')[1], harness.response()))
    secret = 'aB3dHushHushHush?token=Hush&Hush=x&Hush#Hush'
    urls = [receiver.url('/%s/%s' % (name, secret), 'alice:Hush') for name in ('ok', *answers)]
    urls += ['%s/%s' % (origin, secret) for origin in ('http://alice:Hush@127.0.0.1:%d/refused' % closed,
                                                       'https://alice:Hush@127.0.0.1:%d/refused' % closed,
                                                       'http://alice:Hush@no-such-host.invalid')]
    path, _ = t.config([{'url': url, 'method': ('POST', 'PUT')[number % 2]} for number, url in enumerate(urls)] +
                       [{'url': url, 'method': 'GET', 'kind': 'aborted'} for url in urls], logLevel='silly')
    program = t.start(path, env={'HTTPS_PROXY': 'http://pu:Hush@127.0.0.1:%d/' % closed})
    program.send(harness.datagram())
    program.send(harness.datagram(id=IDS['aborted']))
    for kind in IDS:
        for number in range(1, len(urls) + 1):
            name = '%s %d' % (kind, number)
            t.check('%s is told' % name, program.wait_log(r' alert \d .*%s\b| webhook %s is down' % (name, name), 20))
    t.check('dead letters', base.until(lambda: len(t.letters(path)) == 8), len(t.letters(path)))
    t.equal('exit code', program.stop(), 0)
    t.check('the server got them', receiver.requests and all(
        'aB3dHushHushHush?' in r.target and 'Authorization' in dict(r.headers) for r in receiver.requests), receiver.requests)
    hidden = re.compile('Hush|' + '|'.join(base64.b64encode(name).decode() for name in (b'alice', b'pu:'))[:-1])
    outputs = {'log': program.stdout + program.stderr,
               'dead letters': '\n'.join(letter['url'] + ' ' + letter['reason'] for letter in t.letters(path))}
    for option in ('--check', '--test'):
        done = t.run(option, path, timeout=120)
        outputs[option] = done.stdout + done.stderr
    for what, text in outputs.items():
        t.equal('%s: secrets' % what, [line for line in text.splitlines() if hidden.search(line)][:2], [])
        t.check('%s: the beginning of the segment' % what, '/aB3d…' in text, text[:1500])


def test_log_file(t):
    """A file for each day (UTC) has what the console has, is added to by the next run, and is kept for 30 days."""
    shim = base.Shim(t)
    noon = 1795348800000        # 2026-11-22T12:00Z
    folder = os.path.join(t.tmp, 'log')
    shim.set(wall_offset_ms=noon - base.now_ms())
    program, receiver = start(t, None, {'binary': t.binary_test, 'env': shim.env}, fileLogging=True, logDirectory='log')
    stages = (0, ['2026-11-22']), (1, ['2026-11-22', '2026-11-23']), (31, ['2026-11-23', '2026-12-23'])
    for number, (days, names) in enumerate(stages, 1):
        shim.set(wall_offset_ms=noon + days * 24 * base.HOUR_MS - base.now_ms())
        program.send(harness.datagram(task='Åäö %d' % number))
        t.check('delivered', program.wait_log(words.delivered(number=number)))
        names = ['butler_webhook.%s.log' % name for name in names]
        t.check('after %d days' % days, base.until(lambda: sorted(os.listdir(folder)) == names, 5), os.listdir(folder))
    t.equal('exit code', program.stop(), 0)
    again = t.start(program.config, binary=t.binary_test, env=shim.env)
    t.equal('exit code', again.stop(), 0)
    last = program.log[next(place for place, line in enumerate(program.log) if line.startswith('2026-12-23')):]
    t.equal('the file of the last day', t.read(os.path.join(folder, names[-1])).splitlines(), last + again.log)
