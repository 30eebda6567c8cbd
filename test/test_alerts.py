"""
From the datagram to the call, seen from outside: the real datagrams of test/data, what Butler sent for its own, what is
held back, who is listened to, and what the log says. unit.c proves the parsers and the tables of this.
"""

import base64
import collections
import datetime
import hashlib
import json
import os
import re
import select
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


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(('::1', 0))
            return True
    except OSError:
        return False


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


class Trace:
    """A trace of test/data/butler, whose README says what its keys mean, with free ports in place of its own."""

    def __init__(self, t, name):
        with open(os.path.join(DATA, 'butler', name + '.json'), encoding='utf-8') as file:
            text = file.read()
        if '[::1]' in text and not has_ipv6():
            t.skip('no IPv6 here')
        ports = {port: t.port() for port in ('18080', '18081', '18082', '18443')}
        for port, ours in ports.items():
            text = text.replace(':' + port, ':%d' % ours)
        self.trace = json.loads(text)
        self.wanted = self.trace.get('ours', self.trace['requests'])
        self.datagrams = [datagram.encode() for datagram in self.trace['datagrams']]
        self.path, _ = t.config([dict(webhook, url=self.trace.get('urls', {}).get(webhook['url'], webhook['url']))
                                 for webhook in self.trace['webhooks']],
                                rateLimit=self.trace.get('rateLimit', 300), deduplication={'enable': True, 'ttlMinutes': 10})
        context = None
        if 'https:' in text:
            base.write(os.path.join(t.tmp, 'root.pem'), servers.read_bytes(servers.root().pem))
            context = servers.good().context()
        self._all = threading.Event()
        self._lock = threading.Lock()
        self._calls = collections.Counter()
        self.receivers = {name: t.receiver(self._answer, host=host, port=ports[port],
                                           ssl_context=context if 'tls' in name else None)
                          for name, (host, port) in LISTENERS.items() if host != '::1' or has_ipv6()}

    def _answer(self, request, connection):
        """The next of those that the trace has for this path; each alert begins with the first, and stays with the last."""
        key = request.path, request.get('webhook-id')
        with self._lock:
            self._calls[key] += 1
            number = self._calls[key]
            if sum(self._calls.values()) == len(self.wanted):
                self._all.set()
        answers = self.trace.get('answers', {}).get(request.path, [200])
        answer = answers[min(number, len(answers)) - 1]
        if answer is None:
            return None
        if isinstance(answer, int):
            return harness.response(answer)
        if answer == 'reset if reused':
            return harness.reset if connection.served else harness.response()
        if answer == 'wait for all':
            return harness.response(200 if self._all.wait(8 * harness.SLOW) else 400)
        return answer.encode()

    def arrived(self):
        return [(name, request) for name, receiver in self.receivers.items() for request in receiver.wait(0)]

    def compare(self, t):
        """Every wanted request arrived as it was wanted, and nothing else did."""
        def facts(listener, method, target, body, get):
            place = 'localhost' if get('host').startswith('localhost') else listener
            names = ('host', 'authorization', 'proxy-authorization', 'content-type')
            return (place, method, target, body) + tuple(get(name) for name in names)

        wanted = [facts(r['listener'], r['method'], r['target'], r['body'], r.get) for r in self.wanted]
        got = [facts(name, r.method, r.target, r.body.decode(), r.get) for name, r in self.arrived()]
        t.equal('requests that are not wanted', [request for request in got if request not in wanted], [])
        t.equal('requests that are missing', [request for request in wanted if request not in got], [])
        t.equal('requests', len(got), len(wanted))


TRACES = [name[:-5] for name in sorted(os.listdir(os.path.join(DATA, 'butler'))) if name.endswith('.json')]
TRACES.remove('82-ratelimit-window-3s')     # for test_rate_limit_window_ends


@pytest.mark.parametrize('name', TRACES)
def test_trace(t, name):
    """What Butler itself sent for its datagrams."""
    replay = Trace(t, name)
    trace = replay.trace
    program = t.start(replay.path, env=trace.get('env'), binary=t.binary_test if trace.get('program') == 'test' else None)
    calls = 0
    for number, data in enumerate(replay.datagrams, 1):
        if not trace.get('together') and calls:
            t.check('those before are delivered', program.wait_log(words.delivered(), count=calls))
        program.send(data)
        match = program.wait_log(r' accepted: .*, for (\d+) webhook|%s|%s' % (words.HELD_BACK, words.DUPLICATE), count=number)
        t.require('datagram %d is dealt with' % number, match)
        calls += int(match.group(1) or 0)
    base.until(lambda: len(replay.arrived()) >= len(replay.wanted))
    for regex in trace.get('log', ()):
        t.check('the log has %s' % regex, program.wait_log(regex))
    t.equal('exit code', program.stop(), 0)
    replay.compare(t)
    t.equal('webhook-ids stay over retries and redirects', len({request.get('webhook-id') for _, request in replay.arrived()}),
            calls - trace.get('unreachable', 0))
    t.check('no password in the log', not re.search('secret|Ym9iO|pp@|cHU6', program.stdout))
    if 'ours' not in trace and 'answers' not in trace:
        used = {(listener, r.method, r.path, r.connection) for listener, r in replay.arrived()}
        t.equal('each webhook used one connection', len(used), len({place[:3] for place in used}))


def by_method(t, receiver, count):
    """count requests of each method, in order."""
    got = receiver.wait(3 * count)
    found = {method: [request for request in got if request.method == method] for method in ('GET', 'POST', 'PUT')}
    t.require('%d requests of each method' % count, [len(requests) for requests in found.values()] == [count] * 3, len(got))
    return found


def test_call_bytes(t):
    """Awkward text in every field, by each method: the bytes of JSON.stringify and of URLSearchParams."""
    texts = ['".-_~*\'()!` +&=%?#/:,@[]{}|^<>$\\ C:\\temp \\u0041 100%25 %zz ', 'tab\tCR\rLF\nNUL\0BS\bFF\fVT\x0bESC\x1bDEL\x7f.',
             'åäö € 販売 🚀👩\u200d👧 \u2028 \u0080 e\u0301 \u202e \U0010ffff', ' leading and trailing ', '']
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url('/hook?a=1&b=%20x#no'), 'method': method} for method in ('GET', 'POST', 'PUT')],
                       butlerWebhook={'maxConcurrent': 1})
    program = t.start(path)
    alerts = [alert(run=harness.guid(), text=text, message='x' + text + 'x') for text in texts]
    for data, _ in alerts:
        program.send(data)
    got = by_method(t, receiver, len(texts))
    for place, (_, fields) in enumerate(alerts):
        t.equal('GET', (got['GET'][place].target, got['GET'][place].body), ('/hook?a=1&b=%20x&' + search_params(fields), b''))
        for method in ('POST', 'PUT'):
            t.equal(method, (got[method][place].target, got[method][place].body), ('/hook?a=1&b=%20x', stringify(fields)))


def test_call_headers(t):
    """All headers by each method, with the webhook-id of an execution and, without a GUID, of the JSON's SHA-256."""
    receiver = t.receiver()
    urls = {'GET': receiver.url('/get'), 'POST': receiver.url('/post', 'us%40er:lösen ord'), 'PUT': receiver.url('/put')}
    path, _ = t.config([{'url': url, 'method': method} for method, url in urls.items()])
    program = t.start(path)
    run = harness.guid()
    begin = int(time.time())
    for number, (execution, about) in enumerate((('{%s}' % run.upper(), run.replace('-', '')), ('run 17', None)), 1):
        data, fields = alert(run=execution)
        program.send(data)
        about = about or hashlib.sha256(stringify(fields)).hexdigest()[:32]
        for method, requests in by_method(t, receiver, number).items():
            got = {name.lower(): value for name, value in requests[-1].headers}
            stamp = int(got.pop('webhook-timestamp', 0))
            t.check('%s: webhook-timestamp is the time of the call' % method, begin <= stamp <= time.time(), stamp)
            t.check('%s: User-Agent' % method, re.fullmatch(r'butler_webhook/\d+\.\d+\.\d+', got.pop('user-agent', '')))
            wanted = {'host': receiver.authority, 'accept': 'application/json, text/plain, */*',
                      'webhook-id': 'msg_%s_f_%s' % (about, base.webhook_key(urls[method], method)[:8])}
            if method == 'POST':
                wanted['authorization'] = 'Basic ' + base64.b64encode('us@er:lösen ord'.encode()).decode()
            if method != 'GET':
                wanted['content-type'] = 'application/json'
                wanted['content-length'] = str(len(requests[-1].body))
            t.equal('%s: the other headers' % method, got, wanted)
            t.equal('%s: version' % method, requests[-1].version, 'HTTP/1.1')


def test_call_get_cut(t):
    """A GET target over 2,000 bytes that is refused as too long is sent once more with less of the message; no other is."""
    rows = [('GET', 400, True, 2), ('GET', 404, True, 2), ('GET', 414, True, 2), ('GET', 431, True, 2),
            ('GET', 404, False, 2), ('GET', 403, False, 1), ('POST', 414, False, 1)]    # ..., a short one is taken, calls

    def answer(request, connection):
        _, status, taken, _ = rows[int(request.path[1:])]
        return harness.response(200 if taken and len(request.target) <= 2000 else status)

    receiver = t.receiver(answer)
    path, _ = t.config([{'url': receiver.url('/%d?key=1' % place), 'method': row[0]} for place, row in enumerate(rows)] +
                       [{'url': receiver.url('/4?short'), 'method': 'GET', 'kind': 'aborted'}])
    program = t.start(path)
    message = 'aå€😀' * 400
    data, fields = alert(message=message)
    program.send(data)
    program.send(alert('aborted')[0])
    t.check('a short target is not cut', program.wait_log(words.given_up('aborted 1 after 1 attempt: ')))
    for place, (method, status, taken, calls) in enumerate(rows):
        what = '%s, %d' % (method, status)
        verdict = (words.delivered if taken else words.given_up)(r'failure %d\b' % (place + 1))
        t.check(what + ': the verdict', program.wait_log(verdict))
        got = [request for request in receiver.wait(0) if request.target.startswith('/%d?key' % place)]
        t.equal(what + ': calls', len(got), calls)
        t.equal(what + ': one webhook-id', len({request.get('webhook-id') for request in got}), 1)
        begin = '/%d?key=1' % place
        t.equal(what + ': the first target', got[0].target, begin + ('&' + search_params(fields) if method == 'GET' else ''))
        for request in got[1:]:
            cut = dict(request.params())['logMessage']
            t.check(what + ': whole characters of the message', message.startswith(cut), cut[-10:])
            t.equal(what + ': the rest is whole', request.target, begin + '&' + search_params(dict(fields, logMessage=cut)))
            t.check(what + ': as much as fits', 1988 <= len(request.target) <= 2000, request.target)
    t.equal('the log tells it', len(program.lines(r' warn: webhook failure [1-5]: .*; once more with logMessage cut$')), 5)


def test_call_to_addresses(t):
    """IPv6, IPv4 in it, and a name with addresses of both families of which one is listened to."""
    if not has_ipv6():
        t.skip('no IPv6 here')
    rows = [('::1', '[0:0::1]', '[::1]'), ('127.0.0.1', '[::ffff:127.0.0.1]', '[::ffff:127.0.0.1]'),
            ('127.0.0.1', 'localhost', 'localhost'), ('::1', 'localhost', 'localhost')]
    receivers = [t.receiver(host=host) for host, _, _ in rows]
    path, _ = t.config([{'url': receiver.url('/', host=row[1])} for row, receiver in zip(rows, receivers)])
    program = t.start(path)
    program.send(alert()[0])
    for (_, name, wanted), receiver in zip(rows, receivers):
        t.equal('Host of %s' % name, [request.get('Host') for request in receiver.wait(1)], ['%s:%d' % (wanted, receiver.port)])


@pytest.mark.parametrize('limit', [4, 1, 2])
def test_max_concurrent(t, limit):
    """As many calls at once as maxConcurrent says, 4 by default, never more; with 1 in the order of the alerts."""
    now, most, changed = set(), set(), threading.Condition()

    def answer(request, connection):
        with changed:
            now.add(request)
            most.add(len(now))
            changed.notify_all()
            changed.wait_for(lambda: max(most) >= limit, 5 * harness.SLOW)
        time.sleep(0.05)        # for one too many to come
        with changed:
            now.remove(request)
        return harness.response()

    program, receiver = start(t, answer, butlerWebhook={} if limit == 4 else {'maxConcurrent': limit})
    sent = ['%02d' % number for number in range(12)]
    for message in sent:
        program.send(harness.datagram(message=message))
    receiver.wait(len(sent))
    t.equal('each alert once', messages(receiver) if limit == 1 else sorted(messages(receiver)), sent)
    t.equal('calls at once, and connections', (max(most), len(receiver.connections)), (limit, limit))


@harness.alone
def test_burst(t):
    """Datagrams as fast as they can be sent: each arrives once."""
    program, receiver = start(t)
    sent = ['%04d' % number for number in range(1000)]
    for data in [harness.datagram(message=message) for message in sent]:
        program.send(data)
    receiver.wait(len(sent), 30)
    stop(t, program, receiver, sent)
    t.equal('counts', re.search(words.STOPPED, program.log[-1]).groups(), ('1000', '1000', '1000', '0', '0', '0'))


# ---- Rate limit and duplicates --------------------------------------------------------------------------------------


def test_rate_limit(t):
    """The first alert of each taskId, whatever form the GUID has; what is no alert does not count; 0 is no limit."""
    program, receiver = start(t, rateLimit=300, rateLimitAborted=0)
    program.send(harness.datagram(task_id=TASK, app_id=''))
    program.send(harness.datagram(task_id=TASK, execution_id=APP, message='first'))
    for task_id in (TASK.upper(), '{%s}' % TASK, '{%s}' % TASK.upper()):
        program.send(harness.datagram(task_id=task_id, message='again', task='x', app='x', user='x', app_id=harness.guid()))
    program.send(harness.datagram(task_id=APP, execution_id=APP, message='other task'))     # as de-duplication is off
    for _ in range(2):
        program.send(harness.datagram(id=IDS['aborted'], task_id=TASK, message='aborted'))
        program.send(harness.datagram(task_id='', message='no task'))
        program.send(harness.datagram(task_id='(null)', message='no task'))
    stop(t, program, receiver, ['first', 'other task'] + ['aborted'] * 2 + ['no task'] * 4)
    told = words.HELD_BACK + r'reload failed, task "x" \(\{%s\}\), .*, 3 since the last alert, from 127' % TASK.upper()
    t.check('told, with the count', program.lines(told), program.log)


def test_rate_limit_window_ends(t):
    """Butler's trace of a limit of 3 s: what is held back does not make the window longer, so the next is sent in time."""
    replay = Trace(t, '82-ratelimit-window-3s')
    program = t.start(replay.path)
    begins = []
    for place, number in enumerate((0, 3, 5)):
        begins.append(time.monotonic())
        t.check('datagram %d arrives' % number, base.until(
            lambda: program.send(replay.datagrams[number]) or len(replay.arrived()) > place, every=0.05))
        t.check('not before the window ends', not place or time.monotonic() - begins[place - 1] > 2.9)
    t.equal('exit code', program.stop(), 0)
    replay.compare(t)


def test_duplicates(t):
    """By default one alert for each execution and kind, whatever form the GUID has; none without one is a duplicate."""
    program, receiver = start(t, deduplication={})
    run = harness.guid()
    program.send(harness.datagram(execution_id=run, message='first'))
    for execution_id in (run, run.upper(), '{%s}' % run):
        program.send(harness.datagram(execution_id=execution_id, message='again'))
    for message in ('aborted', 'aborted again'):
        program.send(harness.datagram(id=IDS['aborted'], execution_id=run, message=message))
    for execution_id in ('', '(null)', '', '(null)'):
        program.send(harness.datagram(execution_id=execution_id, message='no execution'))
    program.send(harness.datagram(message='another'))
    stop(t, program, receiver, ['first', 'aborted', 'another'] + ['no execution'] * 4)
    t.equal('told', len(program.lines(words.DUPLICATE + r'reload failed, task "Reload of Sales" \(\S+\), .*execution ')), 3)
    t.equal('told of aborted', len(program.lines(words.DUPLICATE + 'reload aborted, .*execution %s' % run)), 1)


def test_rate_limit_and_duplicates_after_a_restart(t):
    """Both go on where they were, after a stop as after kill -9."""
    program, receiver = start(t, rateLimit=300, deduplication={'enable': True, 'ttlMinutes': 10})
    run = harness.guid()
    program.send(harness.datagram(task_id=TASK, execution_id=run, message='first'))
    for end in ('stop', 'kill'):
        t.check('delivered', program.wait_log(words.delivered()))
        getattr(program, end)()
        program = t.start(program.config)
        program.send(harness.datagram(task_id=TASK.upper(), message='held back'))
        program.send(harness.datagram(execution_id=run.upper(), message='duplicate'))
        program.send(harness.datagram(message='another'))
    t.check('delivered', program.wait_log(words.delivered()))
    t.equal('exit code', program.stop(), 0)
    t.equal('what arrived', set(messages(receiver)), {'first', 'another'})      # one of these twice if the kill was very soon
    t.equal('held back', len(program.lines(words.HELD_BACK)), 1)
    t.equal('duplicates', len(program.lines(words.DUPLICATE)), 1)


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


OPEN, EMPTY = 'without a check of the senders', 'allowedSources is empty: every sender is accepted'
SOURCES = {
    'addresses': ('127.0.0.1', ['127.0.0.2', '127.0.0.3'], ['127.0.0.2', '127.0.0.3'], ['127.0.0.1', '127.0.0.20'], None),
    'ranges': ('0.0.0.0', ['127.0.1.0/24', '::ffff:127.0.2.128/121'], ['127.0.1.0', '127.0.1.255', '127.0.2.128'],
               ['127.0.0.255', '127.0.2.127'], None),
    'name': ('127.0.0.1', ['LocalHost', '127.0.0.9'], ['127.0.0.1', '127.0.0.9'], ['127.0.0.2'], None),
    'empty': ('127.0.0.1', [], ['127.0.0.1', '127.0.0.2'], [], EMPTY),
    'IPv6': ('::1', ['::1'], ['::1'], [], None),
    'IPv6 refused': ('::1', ['::2', '127.0.0.1', '0.0.0.0/0'], [], ['::1'], None),
    'both families': ('::', ['127.0.0.2', '::1'], ['127.0.0.2', '::1'], ['127.0.0.1'], None),
    'no check': ('localhost', False, ['127.0.0.1', '127.0.0.2'], [], None),
    'no check, everywhere': ('0.0.0.0', False, ['127.0.0.1'], [], OPEN),
    'no check, both families': ('::', False, ['::1', '127.0.0.2'], [], OPEN),
}


@pytest.mark.parametrize('host, allowed, accepted, refused, warning', SOURCES.values(), ids=list(SOURCES))
def test_sources(t, host, allowed, accepted, refused, warning):
    """Where it listens, and to whom. allowed False: enableSourceValidation is off."""
    if ':' in host and not has_ipv6():
        t.skip('no IPv6 here')
    program, receiver = start(t, udp={'serverHost': host, 'enableSourceValidation': allowed is not False,
                                      'allowedSources': ['10.0.0.1'] if allowed is False else allowed})
    shown = {'localhost': '127.0.0.1', '::1': '[::1]', '::': '[::]'}.get(host, host)
    t.equal('the log says where', program.wait_log(words.LISTENING).groups(), (shown, str(program.port)))
    for source in accepted:
        t.check('%s is accepted' % source, arrives(program, receiver, source))
    for source in refused:
        t.check('%s is refused, and told' % source, is_refused(program, source))
    t.equal('exit code', program.stop(), 0)
    t.equal('what arrived', set(messages(receiver)), set(accepted))
    t.equal('warnings', [text for text in (OPEN, EMPTY) if program.lines(' warn: .*' + text)], [warning] if warning else [])


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
    t.equal('exit code', program.stop(), 0)
    shim.set(resolve_delay_ms=600000)
    program = t.start(program.config, **options)
    t.equal('exit code of a stop while the look-up hangs', program.stop(), 0)


@pytest.mark.parametrize('host, most, sizes', [
    ('127.0.0.1', 2048, (2048, 2049, 60000)), ('127.0.0.1', None, (65507,)), ('::1', None, (65507, 65508, 65527)),
], ids=['set', 'default', 'IPv6'])
def test_max_message_size(t, host, most, sizes):
    """What is larger is dropped and told; IPv6 carries 20 bytes more than the default takes."""
    if ':' in host and not has_ipv6():
        t.skip('no IPv6 here')
    program, receiver = start(t, udp=dict({'serverHost': host}, **({'maxMessageSize': most} if most else {})))
    head = len(harness.datagram(message=''))
    for size in sizes:
        send_from(program, host, 'x' * (size - head))
    for size in sizes[1:]:
        t.check('%d bytes are told' % size, program.wait_log(
            r' error: datagram dropped, larger than maxMessageSize: %d bytes, from %s$' % (size, re.escape(host))))
    receiver.wait(1)
    stop(t, program, receiver, ['x' * (sizes[0] - head)])


@pytest.mark.parametrize('enable', [True, False], ids=['on', 'off'])
def test_udp_rate_limit(t, enable):
    """So many datagrams a minute are taken, of senders that are allowed; what is over that is dropped and told."""
    program, receiver = start(t, udp={'enableSourceValidation': True, 'allowedSources': ['127.0.0.2'],
                                      'rateLimit': {'enable': enable, 'maxMessagesPerMinute': 10}})
    for _ in range(15):
        send_from(program, '127.0.0.1')
    for number in range(40):
        send_from(program, '127.0.0.2', '%02d' % number)
    stop(t, program, receiver, ['%02d' % number for number in range(10 if enable else 40)])
    t.equal('lines', len(program.lines(words.RECEIVE_LIMIT + r'127\.0\.0\.2$')), MINUTE_LINES if enable else 0)
    t.equal('the others are counted', len(program.lines(words.more(r'udpServerConfig\.rateLimit$', 10))), int(enable))


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
    t.equal('counts of what is no alert', program.wait_log(words.NO_ALERTS, 0).groups(), ('1', '2', '1', '1', '0', '0', '0'))
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


def test_log_limits_what_others_can_cause(t):
    """Of each thing that anybody can cause at will twenty lines a minute are logged, then one with the count."""
    shim = base.Shim(t)
    program, receiver = start(t, None, {'binary': t.binary_test, 'env': shim.env}, rateLimit=300, deduplication={}, udp={
        'enableSourceValidation': True, 'allowedSources': ['127.0.0.1'], 'maxMessageSize': 4000})
    run = harness.guid()
    program.send(harness.datagram(task_id=TASK, execution_id=run, message='first'))
    things = [(b'/scheduler-task-failed/;x', '127.0.0.1', 'malformed datagram'),
              (harness.datagram(id='/other/'), '127.0.0.1', 'unknown message id'),
              (b'/scheduler-task-failed/;' + b'x' * 4000, '127.0.0.1', 'datagram dropped, larger than maxMessageSize'),
              (harness.datagram(), '127.0.0.9', 'datagram ignored, its sender is not in allowedSources'),
              (harness.datagram(execution_id=run), '127.0.0.1', 'duplicate ignored'),
              (harness.datagram(task_id=TASK), '127.0.0.1', 'held back by the rate limit')]

    def minute(number, count):
        for data, source, _ in things * count:
            program.send(data, source=source)
        program.send(harness.datagram(message='end of minute %d' % number))
        t.require('minute %d: all are sorted' % number, program.wait_log(words.accepted(number + 1)))

    minute(1, 33)
    t.equal('not told before the minute is over', program.lines(words.more()), [])
    shim.set(boot_offset_ms=60000)
    program.send(harness.datagram(id='/scheduler-task-success//'))      # so that it looks at its clock
    for _, _, words_of_it in things:
        t.require('%s: the count of the first minute' % words_of_it, program.wait_log(words.more(words_of_it + '$', 13)))
    minute(2, 22)
    stop(t, program, receiver, ['first', 'end of minute 1', 'end of minute 2'])
    for _, _, words_of_it in things:
        t.equal('%s: lines of two minutes' % words_of_it, len(program.lines(r'Z \w+: %s[:,] ' % words_of_it)), 2 * MINUTE_LINES)
        t.equal('%s: the count at the end' % words_of_it, len(program.lines(words.more(words_of_it + '$', 2))), 1)


def test_log_sanitised(t):
    """Nothing from outside reaches the log raw or forges a line: fields, ids, an answer's reason phrase, a Location."""
    bad = '\x1b[2J\x07\0\r\n2026-01-01T00:00:00.000Z error: forged\x7f\x85\x9b31m\u2028'

    answers = {'/reason': b'HTTP/1.1 404 \x1b[31mRed\x07\x9b\r\nContent-Length: 0\r\n\r\n',
               '/location': b'HTTP/1.1 302 Found\r\nLocation: /\x1b[31m\x07/%0a\xc2\x9b\r\nContent-Length: 0\r\n\r\n',
               '/garbage': b'\x1b]0;title\x07\r\n\x00\x9b\r\n\r\n'}
    receiver = t.receiver(lambda request, connection: answers.get(request.path, harness.response()))
    path, _ = t.config([{'url': receiver.url(path)} for path in ['/ok'] + list(answers)],
                       logLevel='silly', rateLimit=300, deduplication={})
    program = t.start(path)
    for data in (alert(run=bad, text=bad, message=bad + '.')[0], alert(run=bad, text=bad)[0], alert(run='2', text=bad)[0],
                 harness.datagram(task=bad, app_id=''), harness.datagram(id=bad),
                 b'/scheduler-task-failed/;' + bad.encode(), b'/scheduler-task-failed/;\x9b\x90\xff' + bytes(range(256))):
        program.send(data)
    for regex in (words.delivered('failure 1'), words.given_up('failure 2'), words.given_up('failure 3'),
                  words.failed('failure 4'), words.DUPLICATE, words.HELD_BACK, ' verbose: ignored: ', 'unknown message id'):
        t.check('the log has %s' % regex, program.wait_log(regex), program.log)
    t.check('the text can still be read', program.wait_log(words.accepted(1, 'error: forged')))
    t.check('malformed', program.wait_log(words.MALFORMED, count=2))
    t.equal('exit code', program.stop(), 0)
    t.equal('control characters', re.findall('[\x00-\x09\x0b-\x1f\x7f-\x9f]', program.stdout), [])
    t.check('it is UTF-8', not re.search('[\udc80-\udcff\u2028]', program.stdout))
    t.equal('lines that are none', [line for line in program.log if not LINE.match(line) or line.startswith('2026-01-01T')], [])


def test_log_hides_secrets(t):
    """No password, query value, or long path segment, as of Slack and Teams, at any level, in any output."""
    closed = t.port()
    moved = 'http://eve:Hush@127.0.0.1:%d/aB3dHushHushHush?key=Hush#Hush'
    answers = {'404': (404, None), '500': (500, None), 'moved': (302, moved % closed),
               'loop': (307, '/loop/aB3dHushHushHush?Hush'), 'elsewhere': (307, moved.replace('127.0.0.1', '127.0.0.2') % closed)}

    def answer(request, connection):
        status, location = answers.get(request.path.split('/')[1], (200, None))
        return harness.response(status, headers=[('Location', location)] if location else [])

    receiver = t.receiver(answer)
    secret = 'aB3dHushHushHush?token=Hush&Hush=x&Hush#Hush'
    names = ['ok'] + list(answers)
    urls = [receiver.url('/%s/%s' % (name, secret), 'alice:Hush') for name in names]
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
    for args in (('--check',), ('--test',), ('--pending',), ('--pending', '--json')):
        done = t.run(*args, path, timeout=120)
        outputs[' '.join(args)] = done.stdout + done.stderr
    for what, text in outputs.items():
        t.equal('%s: secrets' % what, [line for line in text.splitlines() if hidden.search(line)][:2], [])
    for what in ('log', 'dead letters', '--check', '--test'):
        t.check('%s: the beginning of the segment' % what, '/aB3d…' in outputs[what], outputs[what][:1500])


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


@pytest.mark.parametrize('fits', [True, False], ids=['some', 'too many'])
def test_log_nobody_reads(t, fits):
    """A console that nobody reads delays no call: its lines wait, and those that find no room are counted and told."""
    receiver = t.receiver(harness.response(200 if fits else 410))
    path, port = t.config([{'url': receiver.url()}], fileLogging=fits, logDirectory='log',
                          butlerWebhook={'stateDirectory': ''})     # so that the line of what is given up holds its alert
    end, write = os.pipe()
    console = t.add(os.fdopen(end, 'rb', 0))
    program = t.start(path, stdout=write)
    os.close(write)
    t.require('it listens', arrives(program, receiver, '127.0.0.1'))
    for number in range(100):
        program.send(harness.datagram(message='x' * 30000))
        receiver.wait(number + 2)
    t.check('calls while nobody reads', base.until(lambda: messages(receiver).count('x' * 30000) == 100), receiver.errors)
    text = b''
    wanted = re.compile((words.delivered(number='1..') if fits else words.MISSING_LINES).encode())
    while not wanted.search(text) and select.select([console], [], [], 10 * harness.SLOW)[0]:
        text += console.read(65536)
    t.check('the lines that waited, or how many are missing', wanted.search(text), text[-300:])
    t.equal('exit code', program.stop(), 0)
    lines = harness.SYSTEM.output(text + console.readall()).decode('utf-8').splitlines()
    t.equal('lines that are not whole', [line[:200] for line in lines if not LINE.match(line)], [])
    if fits:
        folder = os.path.join(t.tmp, 'log')
        written = ''.join(t.read(os.path.join(folder, name)) for name in sorted(os.listdir(folder))).splitlines()
        t.check('the console has all lines of the file', lines == written, '%d and %d lines' % (len(lines), len(written)))
