"""What webhooks and proxies answer (data/answers.txt), and what the program makes of it: verdicts, redirects, waits."""

import base64
import collections
import email.utils
import itertools
import os
import re
import socket
import ssl
import threading
import time
import unicodedata

import pytest

import faults_base as base
import harness
import servers
import words
from harness import datagram, response

OK = response(200, b'ok')
LARGE = '\x01' * 60000      # as a message it makes a body of 360 KB: six bytes of JSON for each
FIELDS = ['event', 'hostName', 'user', 'taskName', 'taskId', 'appName', 'appId', 'logTimeStamp', 'logLevel',
          'executionId', 'logMessage']
SHORT_TIME = {'timeoutSeconds': round(3 * harness.SLOW)}
SCHEMES = {'both': ('http', 'https'), 'tls': ('https', 'tls_1_2')}


# ---- The table of answers -------------------------------------------------------------------------------------------

Row = collections.namedtuple('Row', 'section name over then verdict words answer')


def read_rows():
    section = ''
    with open(os.path.join(harness.ROOT, 'test/data/answers.txt'), encoding='utf-8') as file:
        for line in file.read().splitlines():
            if line.startswith('['):
                section = line.strip('[]')
            elif line and not line.startswith('#'):
                name, over, then, verdict, answer = re.split(r' \| ?', line, maxsplit=4)
                verdict, _, more = verdict.partition(' ')
                yield Row(section, name, SCHEMES.get(over, (over,)), then, verdict, more, answer)


def read_answer(text, authority):
    """The bytes of an answer, part by part; see the head of answers.txt."""
    whole = {'OK': OK, '200': b'HTTP/1.1 200 OK\r\n', 'chunked': b'Transfer-Encoding: chunked\r\n',
             'authority': authority.encode()}

    def expand(match):
        piece, star, times = match.group(1).rpartition(b'*')
        return piece * int(times) if star else whole[match.group(1).decode()]

    parts = [part.encode('ascii').decode('unicode_escape').encode('latin-1') for part in text.split('{/}')]
    return [re.sub(rb'(?s)\{([^{}]+)\}', expand, part) for part in parts]


ROWS = list(read_rows())


def send_parts(sock, parts):
    for number, part in enumerate(parts):
        if number:
            time.sleep(0.05)
        sock.sendall(part)


def finish(sock, then, rest):
    """What a server does when its answer is out. rest is the last part of that, for those which repeat it."""
    if then == 'closes' and isinstance(sock, ssl.SSLSocket):
        sock.settimeout(2)
        sock.unwrap()
    elif then == 'resets':
        harness.reset(sock)
    elif then == 'past':
        socket.socket.sendall(sock, rest)
    elif then == 'deaf':
        time.sleep(SHORT_TIME['timeoutSeconds'] + 1)
    elif then == 'half':
        sock.shutdown(socket.SHUT_WR)
    while then in ('half', 'holds') and sock.recv(65536):
        pass
    while then == 'floods':
        sock.sendall(rest)
    for byte in itertools.cycle(rest) if then == 'drips' else ():
        sock.sendall(bytes([byte]))
        time.sleep(0.25)


class Answer:
    """A row, played to the first request of its server; all later ones get a good answer."""

    def __init__(self, row):
        self.row = row
        self.authority = ''
        self.begun = False
        self.over = threading.Event()       # all was sent, or the connection has come to its end

    def greet(self, connection):
        """For on_connect of a Receiver: what comes before the request."""
        before, mark, _ = self.row.answer.partition('{request}')
        if mark and connection.number == 1:
            connection.sock.sendall(read_answer(before, '')[0])

    def give(self, request, connection):
        """For answer of a Receiver."""
        if self.begun:
            return OK
        self.begun = True
        if self.row.then != 'stays':
            return self.play
        send_parts(connection.sock, self._parts())
        self.over.set()
        return b''

    def give_early(self, request, connection):
        """For on_head of a Receiver: before the body of the request was read."""
        return None if self.begun else self.give(request, connection)

    def _parts(self):
        return read_answer(self.row.answer.rpartition('{request}')[2], self.authority)

    def play(self, sock):
        parts = self._parts()
        rest = parts.pop() if self.row.then in ('floods', 'drips', 'past') else b''
        try:
            send_parts(sock, parts)
            finish(sock, self.row.then, rest)
        except OSError:
            pass        # the program has closed the connection
        self.over.set()


# ---- Servers, and what the program says -----------------------------------------------------------------------------


def server(t, scheme, answer=None, **options):
    """A Receiver for http or https."""
    version = ssl.TLSVersion.TLSv1_2 if scheme == 'tls_1_2' else None
    return t.receiver(answer, ssl_context=None if scheme == 'http' else servers.good().context(version), **options)


def hook(receiver, path='/', userinfo='', **more):
    """A webhook of the configuration that calls this receiver, and trusts it."""
    return servers.webhook(receiver.url(path, userinfo), servers.root() if receiver.ssl_context else None, **more)


def by_path(table):
    """An answer function: path -> answer, or a list of answers for one request after another; else a good one."""
    left = {path: list(value) for path, value in table.items() if isinstance(value, list)}

    def answer(request, connection):
        if request.path in left:
            return left[request.path].pop(0) if left[request.path] else OK
        return table.get(request.path, OK)
    return answer


def moved(status, target):
    return response(status, b'', [('Location', target)])


def says(t, program, what, pattern, timeout=10, about=''):
    """Waits for a line of the log; gives its match. If it does not come the lines about that are told."""
    match = program.wait_log(pattern, timeout)
    t.check(what, match, [line[:300] for line in program.lines(about)[-4:]])
    return match


def is_delivered(t, program, to='failure 1', number=1, attempt=1, timeout=10):
    says(t, program, 'alert %d is delivered to %s' % (number, to),
         words.delivered(to + r'\b', number, r'200 in \d+ ms, attempt %d$' % attempt), timeout)


def is_given_up(t, program, why, to='failure 1'):
    """After the first attempt."""
    match = says(t, program, '%s: a dead letter, %s' % (to, why), words.given_up(to + r'\b', 1, why))
    t.check('%s: at once' % to, match and ' after 1 attempt:' in match.group(), match and match.group())


def is_down(t, program, why, to='failure 1'):
    says(t, program, '%s is down: %s' % (to, why), words.down(to + r'\b', why))


def ends(t, program, delivered, given_up=0, lost=0, waiting=0):
    """The program stops, has counted right, and nothing from outside was raw in its log. Gives the dead letters."""
    t.equal('exit code', program.stop(), 0)
    match = program.wait_log(words.STOPPED, 1)
    t.equal('delivered, given up, lost, waiting', match and tuple(int(text) for text in match.groups()[2:]),
            (delivered, given_up, lost, waiting))
    odd = [line for line in program.log if any(unicodedata.category(c) in ('Cc', 'Cs') for c in line)]
    t.check('the lines of the log are clean', not odd, repr(odd[:1]))
    t.check('no secret in the log', 'SECRET' not in program.stdout)
    letters = t.letters(program.config)
    t.equal('dead letters', len(letters), given_up)
    t.check('each holds the whole alert', all(list(letter['alert']) == FIELDS for letter in letters))
    return letters


def basic(userinfo):
    return 'Basic ' + base64.b64encode(userinfo.encode()).decode()


def ids(requests):
    return {request.get('webhook-id') for request in requests}


# ---- Answers and their verdicts -------------------------------------------------------------------------------------


def judge(t, program, row, receiver):
    """The first alert. Gives how many requests it took."""
    to = r'failure \d+ \("%s"\)' % row.name
    requests = 2 if row.verdict in ('retry', 'follows') else 1
    if row.verdict == 'dead':
        says(t, program, '%s: dead for %s' % (row.name, row.words), words.given_up(to, 1, row.words), about=to)
    elif row.verdict == 'retry':
        says(t, program, '%s: retried for %s' % (row.name, row.words), words.failed(to, 1, row.words), about=to)
        says(t, program, '%s: delivered then' % row.name, words.delivered(to, 1, r'200 in \d+ ms, attempt 2$'), about=to)
    else:
        status = row.words if row.verdict in ('keeps', 'closes') else 200
        says(t, program, '%s: delivered' % row.name, words.delivered(to, 1, r'%s in \d+ ms, attempt 1$' % status), about=to)
    got = receiver.wait(requests)
    t.require('%s: %d requests' % (row.name, requests), len(got) == requests, len(got))
    t.equal('%s: the same webhook-id' % row.name, len(ids(got)), 1)
    if row.verdict == 'follows':
        t.equal('%s: method and target' % row.name, (got[1].method, got[1].target), ('POST', row.words))
        kept = [[(name, value) for name, value in request.headers if name not in ('webhook-timestamp', 'Authorization')]
                for request in got]
        t.equal('%s: headers' % row.name, kept[1], kept[0])
    if row.verdict == 'retry':
        if row.then != 'stays':
            t.check('%s: a new connection' % row.name, got[0].connection != got[1].connection)
        times = [int(request.get('webhook-timestamp')) for request in got] + [time.time()]
        t.check('%s: the times' % row.name, times == sorted(times) and times[0] > times[2] - 60 * harness.SLOW, times)
    if requests == 2 and 'early' not in row.section:
        t.equal('%s: the same body' % row.name, got[0].body, got[1].body)
    return requests


def judge_next(t, program, row, receiver, requests):
    """The second alert arrives, on the right connection."""
    says(t, program, '%s: the next alert' % row.name,
         words.delivered(r'failure \d+ \("%s"\)' % row.name, 2, r'200 in \d+ ms, attempt 1$'), about=row.name)
    got = receiver.wait(requests + 1)
    t.equal('%s: requests in all' % row.name, len(got), requests + 1)
    if row.verdict in ('keeps', 'closes'):
        t.equal('%s: the same connection' % row.name, got[0].connection == got[-1].connection, row.verdict == 'keeps')


@harness.limit(120)
@pytest.mark.parametrize('section, scheme', sorted({(row.section, scheme) for row in ROWS for scheme in row.over
                                                    if 'connect' not in row.section}))
def test_answers(t, section, scheme):
    """All rows of a section at once, each a webhook of its own."""
    answers = [Answer(row) for row in ROWS if row.section == section and scheme in row.over]
    receivers = []
    for answer in answers:
        when = {'on_head': answer.give_early} if 'early' in section else {'answer': answer.give}
        receivers.append(server(t, scheme, on_connect=answer.greet, **when))
        answer.authority = receivers[-1].authority
    path, _ = t.config([hook(receiver, '/dir/start?own=1', description=answer.row.name)
                        for answer, receiver in zip(answers, receivers)],
                       butlerWebhook=SHORT_TIME if 'slow' in section else harness.PATIENT)
    program = t.start(path)
    program.send(datagram(task='first', message=LARGE if 'early' in section else 'Max retries reached'))
    requests = [judge(t, program, answer.row, receiver) for answer, receiver in zip(answers, receivers)]
    for answer in answers:
        t.check('%s: all was sent, or the connection is closed' % answer.row.name, answer.over.wait(10 * harness.SLOW))
    time.sleep(0.3 * harness.SLOW)      # until the program has read that, too
    program.send(datagram(task='second'))
    for answer, receiver, count in zip(answers, receivers, requests):
        judge_next(t, program, answer.row, receiver, count)
    t.equal('nothing is down', program.lines(words.down()), [])
    dead = {answer.row.name for answer in answers if answer.row.verdict == 'dead'}
    letters = ends(t, program, 2 * len(answers) - len(dead), len(dead))
    t.equal('dead letters', {re.search(r'"(.*)"', letter['webhook']).group(1) for letter in letters}, dead)


def test_answers_memory(t):
    """Answers without end do not fill the memory."""
    if 'san' in harness.BINARY:
        t.skip('the sanitizers need memory of their own')
    endless = [row for row in ROWS if row.then == 'floods' and row.section in ('answers', 'slow')]
    t.require('answers without end', len(endless) > 10)
    receivers = [t.receiver(lambda request, connection, row=row: Answer(row).play) for row in endless]
    path, _ = t.config([hook(receiver) for receiver in receivers])
    program = t.start(path)
    for number in range(4):
        program.send(datagram())
    for receiver in receivers:
        t.check('four calls at a time', len(receiver.wait(4)) >= 4)
    time.sleep(3)
    most = base.status(program.pid, 'VmHWM')
    t.check('memory stays small', most < 40000 + harness.SYSTEM.memory_kb, '%d kB' % most)


def test_waits(t):
    """As the log tells: how long a webhook waits that asked to, unless that is no time to come; how long an alert that failed."""
    date = email.utils.formatdate(time.time() + 300, usegmt=True)
    waits = [(429, '30', 30, 30), (503, '86400', 3600, 3600), (429, date, 200, 300)]
    soon = [(429, '0'), (503, 'soon'), (429, ''), (429, 'a' * 20000)]
    answers = [[response(row[0], b'', [('Retry-After', row[1])])] for row in waits + soon]
    receiver = t.receiver(by_path({'/500': response(500), **{'/%d' % i: answer for i, answer in enumerate(answers)}}))
    path, _ = t.config([hook(receiver, '/%d' % i) for i in range(len(answers))] + [hook(receiver, '/500')] * 30,
                       butlerWebhook={'stateDirectory': ''})
    program = t.start(path)
    program.send(datagram())
    for place, (status, value, least, most) in enumerate(waits, 1):
        match = says(t, program, 'Retry-After %r' % value, words.asked_to_wait(r'failure %d\b' % place, status))
        t.check('Retry-After %r: how long' % value, match and least <= float(match.group(1)) <= most, match and match.group())
    for place in range(len(waits) + 1, len(answers) + 1):
        is_delivered(t, program, 'failure %d' % place, attempt=2)
    t.equal('requests', len([request for request in receiver.requests if request.path != '/500']), len(waits) + 2 * len(soon))
    t.check('all of the 30 fail three times', program.wait_log('status 500; attempt 3, next in ', 30, 30))
    for attempt, most in ((1, 1), (2, 2), (3, 4)):
        seconds = [float(text) for text in re.findall(r'status 500; attempt %d, next in ([0-9.]+) s' % attempt, program.stdout)]
        t.check('the wait after attempt %d' % attempt, len(seconds) == 30 and most / 2 < max(seconds) <= most, seconds)
    ends(t, program, len(soon), lost=len(waits) + 30)


# ---- Redirects (which are followed, and where to: unit.c) ------------------------------------------------------------


@pytest.mark.parametrize('scheme', ('http', 'https'))
def test_redirect_chains(t, scheme):
    """Five are followed, six are not. What the last server says counts, or that there is none; a retry begins at the first."""
    port = t.port()
    receiver = server(t, scheme, by_path({
        **{'/%d' % i: moved(307, '/%d' % (i + 1)) for i in range(5)}, '/self': moved(308, '/self'),
        '/start': moved(307, '/busy'), '/busy': [response(500), response(503)],
        '/gate': moved(308, '/denied'), '/denied': response(401),
        '/door': moved(307, '/cut'), '/cut': [None],
        '/away': moved(307, '%s://127.0.0.1:%d/landed' % (scheme, port))}))
    path, _ = t.config([hook(receiver, start) for start in ('/0', '/self', '/start', '/gate', '/door', '/away')],
                       butlerWebhook=harness.PATIENT)
    program = t.start(path)
    program.send(datagram())
    is_delivered(t, program, 'failure 1')
    is_given_up(t, program, 'not followed: .* too often', 'failure 2')
    is_delivered(t, program, 'failure 3', attempt=3)
    is_given_up(t, program, 'status 401; check the credentials', 'failure 4')
    is_delivered(t, program, 'failure 5', attempt=2)
    is_down(t, program, r'127\.0\.0\.1:%d.*refused' % port, 'failure 6')
    late = server(t, scheme, port=port)
    says(t, program, 'it arrives when somebody is there', words.delivered('failure 6', 1), 30)
    for paths, count in ((['/%d' % i for i in range(6)], 1), (['/self'], 6), (['/start', '/busy'], 3), (['/gate', '/denied'], 1),
                         (['/door', '/cut'], 2)):
        requests = [request for request in receiver.requests if request.path in paths]
        t.equal('requests', [request.path for request in requests], paths * count)
        t.equal('%s: one webhook-id' % paths[0], len(ids(requests)), 1)
    away = [request for request in receiver.requests if request.path == '/away']
    t.equal('/away: one webhook-id', len(ids(away + late.requests)), 1)
    ends(t, program, 4, 2)


def test_redirect_to_another_port(t):
    """Of the same host: not with a password, which goes along to the same port only. The certificate is checked there, too."""
    other = server(t, 'https')
    there = moved(307, other.url('/landed?x=1'))
    receiver = t.receiver(by_path({'/same': moved(307, 'landed'), '/other': there, '/far': moved(308, '/other'),
                                   '/without': [there], '/off': [there]}))
    trusts = servers.cert(servers.root())
    path, _ = t.config([hook(receiver, '/same', 'bob:SECRET'), hook(receiver, '/other', 'bob:SECRET'),
                        hook(receiver, '/far', 'bob:SECRET', method='GET'), hook(receiver, '/other', method='GET', cert=trusts),
                        hook(receiver, '/without'), hook(receiver, '/off', cert=dict(trusts, enable=False))])
    program = t.start(path)
    program.send(datagram())
    is_delivered(t, program, 'failure 1')
    for place in (2, 3):
        is_given_up(t, program, r'moved to %s\?…, change webhookURL' % other.url('/landed'), 'failure %d' % place)
    is_delivered(t, program, 'failure 4')
    for place in (5, 6):
        is_down(t, program, 'not trusted', 'failure %d' % place)
        is_delivered(t, program, 'failure %d' % place, attempt=2)
    got = [(request.path, request.get('Authorization')) for request in receiver.requests]
    t.equal('requests', sorted(got, key=str), sorted(
        [(path, basic('bob:SECRET')) for path in ('/far', '/landed', '/other', '/other', '/same')] +
        [(path, None) for path in ('/off', '/off', '/other', '/without', '/without')], key=str))
    t.equal('requests elsewhere', [(request.path, request.get('Authorization'), request.get('Host'), list(request.event()))
                                   for request in other.requests], [('/landed', None, other.authority, ['x'] + FIELDS)])
    ends(t, program, 4, 2)


def test_redirect_within_the_deadline(t):
    """The time of a call is for all its redirects together."""
    well = threading.Event()
    seconds = SHORT_TIME['timeoutSeconds']

    def answer(request, connection):
        well.wait(0.7 * seconds)
        return moved(307, '/two') if request.path == '/one' else OK

    receiver = t.receiver(answer)
    path, _ = t.config([hook(receiver, '/one')], butlerWebhook=SHORT_TIME)
    program = t.start(path)
    program.send(datagram())
    says(t, program, 'the call fails', words.failed('failure 1', 1, 'no answer within %d s' % seconds), 20)
    t.equal('it was redirected', [request.path for request in receiver.requests][:2], ['/one', '/two'])
    well.set()
    says(t, program, 'it arrives', words.delivered('failure 1', 1), 20)
    ends(t, program, 1)


# ---- Proxies --------------------------------------------------------------------------------------------------------


def tunnel(port, first=(b'HTTP/1.1 200 Connection established\r\n\r\n',)):
    """What a proxy does for CONNECT: says first, then passes on all between the program and that port, back byte by byte."""
    def play(sock):
        with socket.create_connection(('127.0.0.1', port), 10) as far:
            far.settimeout(None)
            send_parts(sock, first)
            back = threading.Thread(target=pass_on, args=(far, sock, 1), daemon=True)
            back.start()
            pass_on(sock, far)
            back.join(10)
    return play


def pass_on(source, target, step=65536):
    try:
        for data in iter(lambda: source.recv(step), b''):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.mark.parametrize('section', ('connect', 'connect_slow'))
def test_proxy_answers(t, section):
    """What a proxy answers to CONNECT: the tunnel is open, or the webhook down, and the proxy is named."""
    rows = [row for row in ROWS if row.section == section]
    left = {'%s.example.test:443' % row.name: row for row in rows}
    proxied = servers.issue('/CN=proxied', servers.root(), san='DNS:*.example.test')
    receiver = t.receiver(ssl_context=proxied.context(ssl.TLSVersion.TLSv1_2))

    def answer(request, connection):
        row = left.pop(request.target, None)
        if row and row.verdict == 'down':
            return Answer(row).play
        return tunnel(receiver.port, read_answer(row.answer, '')) if row else tunnel(receiver.port)

    proxy = t.receiver(answer)
    path, _ = t.config([servers.webhook('https://%s.example.test/%s' % (row.name, row.name), servers.root()) for row in rows],
                       butlerWebhook=SHORT_TIME if 'slow' in section else harness.PATIENT)
    program = t.start(path, env={'HTTPS_PROXY': proxy.url('', 'user:SECRET')})
    program.send(datagram())
    for place, row in enumerate(rows, 1):
        to = 'failure %d' % place
        if row.verdict == 'down':
            named = '' if 'tunnel' in row.name else 'proxy http://127.0.0.1:%d/: .*' % proxy.port
            is_down(t, program, named + row.words, to)
            says(t, program, '%s: up again' % row.name, words.up(to + r'\b'), 20)
        is_delivered(t, program, to, attempt=2 if row.verdict == 'down' else 1, timeout=20)
    t.equal('requests', sorted(request.path for request in receiver.requests), sorted('/' + row.name for row in rows))
    ends(t, program, len(rows))


def test_proxy_connect(t):
    """
    https through a proxy that wants a password: one tunnel for all alerts of a webhook, and no secret in the open. The
    certificate is checked for the webhook's own name, which is not looked up. SNI is for names (RFC 6066, 3), not addresses.
    """
    context = servers.issue('/CN=hooks', servers.root(), san='DNS:hooks.example').context()
    asked_for = []
    context.sni_callback = lambda sock, name, ours: asked_for.append(name)
    receiver = t.receiver(ssl_context=context)
    proxy = t.receiver(lambda request, connection: tunnel(receiver.port))
    hosts = ('hooks.example', 'hooks.example.', 'other.example', '192.0.2.1', '[2001:db8::1]')
    path, _ = t.config([servers.webhook('https://bob:SECRET@%s:444/hook?token=SECRET' % host, servers.root()) for host in hosts])
    program = t.start(path, env={'https_proxy': proxy.url('', 'user:SECRET%40%20word')})
    for number in (1, 2):
        program.send(datagram())
        for to in ('failure 1', 'failure 2'):
            is_delivered(t, program, to, number)
        time.sleep(0.3 * harness.SLOW)      # until the connections rest
    for place in (3, 4, 5):
        is_down(t, program, words.NAMED_WRONG, 'failure %d' % place)
    tunnels = [request.line for request in proxy.requests]
    t.equal('tunnels', set(tunnels), {'CONNECT %s:444 HTTP/1.1' % host for host in hosts})
    t.equal('one for all alerts', [tunnels.count('CONNECT %s:444 HTTP/1.1' % host) for host in hosts[:2]], [1, 1])
    for request in proxy.requests:
        t.equal('headers for the proxy', [name for name, _ in request.headers], ['Host', 'User-Agent', 'Proxy-Authorization'])
        t.equal('its Host and password', (request.get('Host'), request.get('Proxy-Authorization')),
                (request.target, basic('user:SECRET@ word')))
    t.equal('names asked for', set(asked_for), {'hooks.example', 'other.example', None})
    t.equal('requests', [(request.target, request.get('Authorization'), request.get('Proxy-Authorization'))
                         for request in receiver.requests], [('/hook?token=SECRET', basic('bob:SECRET'), None)] * 4)
    ends(t, program, 4, waiting=6)


def test_proxy_is_not_there(t):
    """The webhook is down, and the proxy named, for http and https. NO_PROXY leads past it."""
    port = t.port()
    receivers = [server(t, scheme) for scheme in ('http', 'https')]
    path, _ = t.config([hook(receiver) for receiver in receivers])
    env = {'HTTP_PROXY': 'http://127.0.0.1:%d' % port, 'HTTPS_PROXY': '127.0.0.1:%d' % port}
    program = t.start(path, env=dict(env, NO_PROXY='localhost,127.0.0.10'))
    program.send(datagram())
    why = "proxy http://127.0.0.1:%d/.*refused; check host and port in the proxy's setting" % port
    for to in ('failure 1', 'failure 2'):
        is_down(t, program, why, to)
    ends(t, program, 0, waiting=2)
    t.equal('requests past the proxy', [receiver.requests for receiver in receivers], [[], []])
    program = t.start(path, env=dict(env, NO_PROXY='10.0.0.0/8, 127.0.0.0/8'))
    for to in ('failure 1', 'failure 2'):
        says(t, program, 'delivered to %s' % to, words.delivered(to))
    ends(t, program, 2)


def test_proxy_http(t):
    """Plain http goes to the proxy in absolute form; the verdicts are those without a proxy."""
    proxy = t.receiver(by_path({'http://a.invalid/busy': [response(502)],
                                'http://a.invalid/moved': [moved(307, 'http://b.invalid/landed')],
                                'http://a.invalid/near': moved(307, 'next'),
                                'http://a.invalid/port': moved(307, 'http://a.invalid:81/landed'),
                                'http://a.invalid/407': [response(407, b'', [('Proxy-Authenticate', 'Basic realm="p"')])]}))
    path, _ = t.config([{'url': url, 'method': method} for url, method in (
        ('http://a.invalid/busy', 'POST'), ('http://a.invalid/moved', 'POST'), ('http://bob:SECRET@a.invalid/near', 'PUT'),
        ('http://A.invalid:80/port#part', 'GET'), ('http://a.invalid/407', 'POST'), ('http://[::1]:83?z=1', 'GET'))])
    program = t.start(path, env={'HTTP_PROXY': proxy.url('', 'pu:SECRET')})
    program.send(datagram())
    is_delivered(t, program, 'failure 1', attempt=2)
    is_given_up(t, program, 'moved to http://b.invalid/landed', 'failure 2')
    is_given_up(t, program, "status 407; check the proxy's password", 'failure 5')
    for to in ('failure 3', 'failure 4', 'failure 6'):
        is_delivered(t, program, to)
    wanted = {'http://a.invalid/busy', 'http://a.invalid/moved', 'http://a.invalid/near', 'http://a.invalid/next',
              'http://a.invalid/port', 'http://a.invalid:81/landed', 'http://a.invalid/407', 'http://[::1]:83/'}
    t.equal('what they carry', {(request.path, *map(request.get, ('Host', 'Proxy-Authorization', 'Authorization')))
                                for request in proxy.requests},
            {(url, url.split('/')[2], basic('pu:SECRET'), basic('bob:SECRET') if url.endswith(('/near', '/next')) else None)
             for url in wanted})
    t.equal('fields', {tuple(request.event()) for request in proxy.requests}, {tuple(FIELDS), ('z', *FIELDS)})
    ends(t, program, 4, 2)


def test_proxy_of_its_own(t):
    """proxyURL counts instead of the environment and of NO_PROXY, also after a redirect; '' leads past all proxies."""
    tls = t.receiver(ssl_context=servers.issue('/CN=proxied', servers.root(), san='DNS:*.example.test').context())
    plain = t.receiver()
    proxy = t.receiver(lambda request, connection: tunnel(tls.port) if request.line.startswith('CONNECT') else
                       moved(307, 'http://a.invalid:81/landed') if request.path.endswith('/port') else OK)
    ntlm = t.receiver(response(407, b'', [('Proxy-Authenticate', 'Negotiate'), ('Proxy-Authenticate', 'NTLM')]))
    own = proxy.url('', 'pu:SECRET')
    path, _ = t.config([{'url': 'http://a.invalid/port', 'proxyURL': own},
                        servers.webhook('https://b.example.test/', servers.root(), proxyURL=proxy.url('')),
                        {'url': plain.url('/direct'), 'proxyURL': ''}, {'url': 'http://c.invalid/', 'proxyURL': ntlm.url('')},
                        {'url': 'https://d.invalid/', 'proxyURL': ntlm.url('')}])
    env = {'HTTP_PROXY': 'http://127.0.0.1:1', 'HTTPS_PROXY': 'http://127.0.0.1:1', 'NO_PROXY': 'a.invalid,example.test'}
    done = t.run('--check', path, env=env)
    t.equal('--check shows them', re.findall(r'  through (http\S+)', done.stdout), [proxy.url('/')] * 2 + [ntlm.url('/')] * 2)
    program = t.start(path, env=env)
    program.send(datagram())
    for to in ('failure 1', 'failure 2', 'failure 3'):
        is_delivered(t, program, to)
    is_given_up(t, program, "status 407; check the proxy's password.*NTLM", 'failure 4')
    is_down(t, program, "it answered CONNECT with status 407; check the proxy's password.*NTLM", 'failure 5')
    asked = sorted((request.target, request.get('Proxy-Authorization')) for request in proxy.requests)
    t.equal('what the proxy was asked', asked, [
        ('b.example.test:443', None), *(('http://a.invalid' + to, basic('pu:SECRET')) for to in ('/port', ':81/landed'))])
    t.equal('past it', [(request.target, request.get('Proxy-Authorization')) for request in plain.requests], [('/direct', None)])
    letters = ends(t, program, 3, 1, waiting=1)
    t.check('no secret in --check and in a dead letter', 'SECRET' not in done.stdout + str(letters), letters)
