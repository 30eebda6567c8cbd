"""
How alerts reach webhooks that are slow, broken, away, or ask for time: waiting, down and up, independence, connections;
stopping at any moment; a console that nobody reads; many webhooks. All servers are our own, on loopback.
"""

import fcntl
import itertools
import json
import os
import re
import select
import signal
import socket
import sys
import threading
import time

import pytest

import faults_base as base
import harness
import servers
import words
from harness import datagram, response

OK = response(200, b'ok')
OWN_HEAD = b'HTTP/1.1 200 OK\r\n'
INTERIM = b'HTTP/1.1 102 Processing\r\n\r\n'
FIRST_TIME = r'200 in \d+ ms, attempt 1$'
LARGE = '\x01' * 60000              # as a message it makes a body of 360 KB: six bytes of JSON for each
MEMORY = {'stateDirectory': ''}     # alerts are kept in memory only
SANITIZED = 'san' in harness.BINARY

both = pytest.mark.parametrize('scheme', ('http', 'https'))


# ---- What servers do ------------------------------------------------------------------------------------------------


def cut(data=b''):
    """Sends data and resets the connection."""
    def play(sock):
        sock.sendall(data)
        harness.reset(sock)
    return play


def hold(data=b''):
    """Sends data, then nothing more, until the peer closes."""
    def play(sock):
        sock.sendall(data)
        while sock.recv(65536):
            pass
    return play


def endless(data, piece, pause=0.0):
    """Sends data, then piece over and over, until the peer closes."""
    def play(sock):
        sock.sendall(data)
        while True:
            sock.sendall(piece)
            time.sleep(pause)
    return play


def always(play):
    """An answer function: the same for every request."""
    return lambda request, connection: play


def until_well(event, play, good=OK):
    """An answer function: play for every request until the event, from then on a good answer."""
    return lambda request, connection: good if event.is_set() else play


def in_turn(*answers):
    """An answer function: the first request gets the first of answers, and so on, and those that follow OK."""
    left = list(answers)
    return lambda request, connection: left.pop(0) if left else OK


def ask_to_wait(seconds, status=429):
    return response(status, b'', [('Retry-After', str(seconds))], close=True)


def small_buffers(receiver):
    """Makes a large request wait on the way: little room here, and small segments, which keep the peer's room small, too."""
    receiver.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    receiver.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)


def server(t, scheme, answer=None, **options):
    return t.receiver(answer, ssl_context=servers.good().context() if scheme == 'https' else None, **options)


def full_port(t, host='127.0.0.1'):
    """A port whose queue is full: a connect to it hangs."""
    port = harness.free_port()
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    listener = t.add(socket.socket(family, socket.SOCK_STREAM))
    listener.bind((host, port))
    listener.listen(0)
    for _ in range(4):
        client = t.add(socket.socket(family, socket.SOCK_STREAM))
        client.setblocking(False)
        client.connect_ex((host, port))
    return port


def silent_names(t, options):
    """A name server that never answers: its socket, and a wrap for the program that asks it and has an empty /etc/hosts."""
    sock = t.add(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.bind(('127.%d.%d.%d' % tuple(2 + byte % 250 for byte in os.urandom(3)), 53))
    return sock, harness.with_files(t, {
        '/etc/hosts': '\n', '/etc/resolv.conf': 'nameserver %s\noptions %s\n' % (sock.getsockname()[0], options)})


# ---- What the program does ------------------------------------------------------------------------------------------


def at(port, host='127.0.0.1', **more):
    """A webhook at a port."""
    return dict({'url': 'http://%s:%d/' % (host, port)}, **more)


def hook(receiver, **more):
    """A webhook that calls this receiver, and trusts it."""
    return servers.webhook(receiver.url(), servers.root() if receiver.ssl_context else None, **more)


def tls(receiver):
    """A webhook that wants TLS of a receiver which has none."""
    return {'url': receiver.url().replace('http:', 'https:')}


def start(t, *webhooks, binary=None, wrap=(), env=None, **own):
    """Starts the program with these webhooks; own: keys of butlerWebhook."""
    path, _ = t.config(webhooks, butlerWebhook=own)
    return t.start(path, binary=binary, wrap=wrap, env=env)


def says(t, program, pattern, count=1, timeout=30):
    """The match of the count-th such line of the log, without which the rest of the test makes no sense."""
    match = program.wait_log(pattern, timeout, count)
    t.require('the log says: %s' % pattern, match, [line[:300] for line in program.log[-4:]])
    return match


def end(t, program, number=signal.SIGTERM, **wanted):
    """Stops it, for which it has harness.STOP_S, and checks the last lines; given_up, lost, waiting: 0 unless wanted."""
    t.equal('exit code', program.stop(number=number), 0)
    counts = says(t, program, words.STOPPED, timeout=1)
    got = dict(zip(('received', 'accepted', 'delivered', 'given_up', 'lost', 'waiting'), map(int, counts.groups())))
    for key, value in dict({'given_up': 0, 'lost': 0, 'waiting': 0}, **wanted).items():
        t.equal('the count of %s' % key, got[key], value)
    t.equal('datagrams that were dropped', says(t, program, words.NO_ALERTS, timeout=1).group(7), '0')


def send_many(program, count, prefix='task', pause=0.0, **fields):
    """Sends count alerts, named one after another; returns their names."""
    sent = ['%s %d' % (prefix, i + 1) for i in range(count)]
    for name in sent:
        program.send(datagram(task=name, **fields))
        time.sleep(pause)
    return sent


def names(requests):
    return [request.event().get('taskName') for request in requests]


def ids(requests):
    return [request.get('webhook-id') for request in requests]


def once_each(t, what, got, sent):
    """Each of these names of alerts is there, and none twice."""
    t.check(what, sorted(got) == sorted(sent), '%d of %d arrived, %d twice, missing %r' %
            (len(set(got)), len(sent), len(got) - len(set(got)), sorted(set(sent) - set(got))[:5]))


def whole(program, pattern):
    """The names of the alerts that stand whole in the lines that match."""
    lines = [line.partition('; alert: ')[2] for line in program.lines(pattern)]
    return [json.loads(line).get('taskName') if line.endswith('"}') else line for line in lines]


# ---- Waiting, down and up -------------------------------------------------------------------------------------------


def test_wait_whole_webhook(t):
    """One of four calls in flight is told to wait: nothing more until then; then one probe, also told to; another; the rest."""
    together = threading.Barrier(4, timeout=30 * harness.SLOW)
    paused, gate = threading.Event(), threading.Event()
    places = itertools.count(1)

    def answer(request, connection):
        place = next(places)
        if place == 5:
            return ask_to_wait(2, 503)
        if place == 6:
            gate.wait(60 * harness.SLOW)
        if place < 5:
            if together.wait() == 0:
                return ask_to_wait(3, 429)
            paused.wait(60 * harness.SLOW)
        return OK

    receiver, other = t.receiver(answer), t.receiver()
    program = start(t, hook(receiver), hook(other), timeoutSeconds=300)
    sent = send_many(program, 10)
    says(t, program, words.asked_to_wait('failure 1', 429))
    paused.set()
    once_each(t, 'the other webhook does not wait', names(other.wait(10)), sent)
    requests = receiver.wait(6, timeout=30)
    t.require('six requests', len(requests) == 6, len(requests))
    t.check('nothing in the first 3 s', requests[4].time - requests[3].time > 2.9, requests[4].time - requests[3].time)
    t.check('nothing in the next 2 s', requests[5].time - requests[4].time > 1.9, requests[5].time - requests[4].time)
    for number in (11, 12):
        sent += send_many(program, 1, 'late %d' % number)
        once_each(t, 'the other webhook goes on', names(other.wait(number)), sent)
    t.equal('one probe at a time', len(receiver.requests), 6)
    gate.set()
    says(t, program, words.delivered('failure 1', status=200), 12)
    t.equal('requests', len(receiver.requests), 14)
    t.equal('what arrived', sorted(set(names(receiver.requests))), sorted(sent))
    t.equal('webhook-ids', len(set(ids(receiver.requests))), 12)
    end(t, program, delivered=24)


def test_down_refused(t):
    """Nobody listens: down at the first call; up again once there is an answer, even one that asks to wait; twice."""
    port = t.port()
    program = start(t, at(port))
    for turn in (1, 2):
        sent = send_many(program, 30, 'turn %d' % turn)
        line = says(t, program, words.down('failure 1', 'refused'), turn).string
        t.check('the address', '127.0.0.1:%d' % port in line, line)
        says(t, program, words.accepted(), 30 * turn)
        receiver = t.receiver(in_turn(ask_to_wait(1)), port=port)
        says(t, program, words.up('failure 1'), turn)
        says(t, program, words.delivered(), 30 * turn)
        once_each(t, 'all arrive once, but for the probe', names(receiver.requests[1:]), sent)
        receiver.close()
    t.equal('times down, asked to wait, and up', [len(program.lines(word)) for word in (
        words.down(), words.asked_to_wait(), words.up())], [2, 2, 2])
    end(t, program, received=60, accepted=60, delivered=60)


ANSWERLESS = {
    'reset': (cut(), 'connection'),
    'silent': (hold(), 'no answer within'),
    'bad_gateway': (response(502, b'<h1>Bad Gateway</h1>'), 'status 502'),
}


@pytest.mark.parametrize('name', ANSWERLESS)
def test_down_after_three(t, name):
    """Three different alerts in a row without an answer, or with 5xx: probes, one at a time, with the one tried longest ago."""
    play, why = ANSWERLESS[name]
    well = threading.Event()
    lock = threading.Lock()
    now = [0]
    probes = []

    def answer(request, connection):
        with lock:
            now[0] += 1
            probes.append((request.event()['taskName'], now[0]))
        time.sleep(0.1)
        with lock:
            now[0] -= 1
        return OK if well.is_set() else play

    receiver = t.receiver(answer)
    program = start(t, hook(receiver), binary=t.binary_test, timeoutSeconds=5, maxAgeHours=8760)
    sent = send_many(program, 3)
    says(t, program, words.down('failure 1', why))
    base.until(lambda: now[0] == 0)
    del probes[:]       # what was under way when it went down
    t.require('probes go on', base.until(lambda: len(probes) >= 3, 30), probes)
    t.equal('one at a time, each with another alert', sorted(probes[:3]), [(name, 1) for name in sent])
    well.set()
    says(t, program, words.up('failure 1'))
    says(t, program, words.delivered(), 3)
    t.equal('webhook-ids', len(set(ids(receiver.requests))), 3)
    end(t, program, delivered=3)


@pytest.mark.root
def test_down_by_name(t):
    """A name that is not found; later it is, with several addresses, and each of them is tried."""
    _, wrap = silent_names(t, 'timeout:1 attempts:1')
    receiver = t.receiver()
    program = start(t, at(receiver.port, 'hooks.example.com'), wrap=wrap)
    program.send(datagram())
    says(t, program, words.down('failure 1', 'host name hooks.example.com not found'))
    base.write(os.path.join(t.tmp, 'mounted-0'),        # its /etc/hosts
               b'127.0.0.77 hooks.example.com\n::1 hooks.example.com\n127.0.0.1 hooks.example.com\n')
    says(t, program, words.up('failure 1'))
    says(t, program, words.delivered(number=1))
    end(t, program, delivered=1)


# ---- Independence ---------------------------------------------------------------------------------------------------


HOSTILE = {
    'hangs': hold(),
    'resets': cut(),
    'says 500': response(500, close=True),
    'says 429': ask_to_wait(1),
    'redirects for ever': response(307, b'', [('Location', '/again')], close=True),
    'noise for ever': endless(b'', bytes(range(256)) * 32),
    'interim answers for ever': endless(b'', INTERIM * 100),
    'headers for ever': endless(OWN_HEAD, b'X-A: a\r\n' * 500),
    'head by the byte': endless(OWN_HEAD + b'X-A: ', b'a', 0.25),
    'body by the byte': endless(OWN_HEAD + b'Content-Length: 50000\r\n\r\n', b'a', 0.25),
    'body for ever': endless(OWN_HEAD + b'\r\n', b'a' * 8192),
    'trailers for ever': endless(OWN_HEAD + b'Transfer-Encoding: chunked\r\n\r\n0\r\n', b'X-A: a\r\n' * 500),
    'refusal for ever': endless(b'HTTP/1.1 503 No\r\n\r\n', b'a' * 8192),
    'reset in the body': cut(OWN_HEAD + b'Content-Length: 500\r\n\r\na'),
}


@both
@harness.limit(200)
def test_independent_of_all_at_once(t, scheme):
    """All at once, twice: the good one gets its alerts meanwhile, the bad ones get theirs later, and nothing stays behind."""
    def sockets():
        return sum('socket:' in os.path.realpath(folder + name) for name in os.listdir(folder))

    behave = threading.Event()
    good_answer = response(200, b'ok', close=True)
    bad = [server(t, scheme, until_well(behave, play, good_answer)) for play in HOSTILE.values()]
    good = server(t, scheme, good_answer)
    webhooks = [hook(receiver, description=name) for name, receiver in zip(HOSTILE, bad)]
    program = start(t, *webhooks, hook(good, kind='aborted'), timeoutSeconds=300)
    folder = '/proc/%d/fd/' % program.pid
    at_rest = sockets()
    sent, memory = [], []
    for turn in (1, 2):
        behave.clear()
        send_many(program, 6, 'turn %d' % turn)
        sent += send_many(program, 50, 'good %d' % turn, 0.02, id='/scheduler-task-aborted/')
        once_each(t, 'all arrive at the good one', names(good.wait(50 * turn, timeout=30)), sent)
        behave.set()
        for receiver in bad:
            receiver.drop_connections()
        says(t, program, r' alert \d+ (given up for |delivered to .*: 200 in )', turn * (6 * len(bad) + 50), 70)
        if not harness.WINDOWS:     # there the server of wine has them
            t.check('no socket stays open', base.until(lambda: sockets() <= at_rest, 10), [at_rest, sockets()])
        memory.append(base.status(program.pid, 'VmRSS'))
    if not SANITIZED and not harness.WINDOWS:
        t.check('memory does not grow', memory[1] < memory[0] + 2048, memory)
    given_up = program.lines(words.given_up())
    t.equal('alerts are given up for endless redirects only', {re.search('"(.*?)"', line).group(1) for line in given_up},
            {'redirects for ever'})
    end(t, program, accepted=112, given_up=len(given_up))


def test_stop_when_all_are_stuck(t):
    """They hold up neither good ones nor a stop; what waits is sent after the next start, with the same id."""
    well, over = threading.Event(), threading.Event()
    aim = t.receiver(always(hold()))
    plays = [hold(), hold(b'HTTP/1.1 2'), endless(OWN_HEAD + b'X-A: ', b'a', 0.2), endless(b'', INTERIM, 0.2), cut(),
             ask_to_wait(600), response(408), response(500), response(307, b'', [('Location', aim.url())])]
    stuck = [t.receiver(until_well(well, play)) for play in plays]
    refused = t.port()
    good = [server(t, 'http'), server(t, 'https')]
    handshakes = [t.receiver(on_connect=lambda connection: hold()),
                  t.receiver(on_connect=lambda connection: endless(b'\x16\x03\x03\x3f\xff', b'a', 0.1))]
    proxy = t.receiver(always(hold()))
    not_read = t.receiver(on_head=lambda request, connection: lambda sock: over.wait(60 * harness.SLOW))
    small_buffers(not_read)
    bad = [hook(receiver) for receiver in stuck] + [at(refused), *map(tls, handshakes), at(full_port(t)),
                                                    at(80, 'hooks.invalid'), {'url': 'https://hooks.invalid/'}]
    program = start(t, *bad, *map(hook, good), hook(not_read, kind='aborted'), timeoutSeconds=300,
                    env={'HTTP_PROXY': proxy.url(), 'HTTPS_PROXY': proxy.url(), 'NO_PROXY': '127.0.0.1'})
    sent = send_many(program, 6)
    send_many(program, 1, 'large', message=LARGE[:20000], id='/scheduler-task-aborted/')
    for receiver in good:
        once_each(t, 'all arrive at a good one', names(receiver.wait(6, timeout=30)), sent)
    for receiver in stuck + handshakes + [aim, proxy, not_read]:
        t.check('it is called', receiver.wait_connections(1))
    says(t, program, words.delivered(status=200), 12)
    says(t, program, words.accepted(), 7)
    left = 6 * len(bad) + 1
    end(t, program, accepted=7, delivered=12, waiting=left)
    over.set()
    before = [len(receiver.requests) for receiver in stuck] + [0]
    well.set()
    stuck.append(t.receiver(port=refused))
    again = t.start(program.config)
    says(t, again, words.delivered(status=200), 6 * len(stuck))
    for count, receiver in zip(before, stuck):
        once_each(t, 'each arrives once', names(receiver.requests[count:]), sent)
        t.equal('with the webhook-id that it had', len(set(ids(receiver.requests))), 6)
    end(t, again, received=0, delivered=6 * len(stuck), waiting=left - 6 * len(stuck))


@pytest.mark.root
def test_stop_when_names_hang(t):
    """A name server that never answers holds up neither the others, nor localhost, which it is not asked for, nor a stop."""
    server, wrap = silent_names(t, 'timeout:30 attempts:2')
    good = t.receiver()
    program = start(t, at(80, 'hooks.example.com'), {'url': 'https://other.example.com/'}, hook(good), at(good.port, 'localhost'),
                    wrap=wrap, timeoutSeconds=300, **MEMORY)
    sent = send_many(program, 20)
    once_each(t, 'all arrive at the good ones', names(good.wait(40)), sent + sent)
    t.check('the name server is asked', select.select([server], [], [], 20 * harness.SLOW)[0])
    says(t, program, words.delivered(), 40)
    end(t, program, signal.SIGINT, delivered=40, lost=40)
    for place in (1, 2):
        t.equal('alerts that are lost', sorted(whole(program, words.lost('failure %d' % place))), sorted(sent))


def test_max_calls_per_minute(t):
    """
    In the program with short limits, where its minute has 1.5 s: no more calls than that, in order, nothing lost, no webhook
    down, none of the others late. What waits at a stop is sent after the next start, which begins to count anew.
    """
    limited, free = t.receiver(), t.receiver()
    program = start(t, hook(limited, maxCallsPerMinute=3), hook(free), binary=t.binary_test, maxConcurrent=1)
    began = time.monotonic()
    sent = send_many(program, 12)
    says(t, program, words.delivered('failure 2'), 12)
    t.check('meanwhile', 3 <= len(limited.requests) <= 3 + 2 * (time.monotonic() - began), len(limited.requests))
    says(t, program, words.delivered('failure 1'), 9)
    end(t, program, accepted=12, delivered=21, waiting=3)
    times = [request.time for request in limited.requests]
    t.check('three in a minute', all(later - time > 1 for time, later in zip(times, times[3:])), times)
    t.check('and no fewer', times[-1] - times[0] < 4.4 * harness.SLOW, times)
    t.equal('what else the log says', program.lines(' (warn|error): (?!.*udpServerConfig)'), [])
    program = t.start(program.config, binary=t.binary_test)
    began = time.monotonic()
    says(t, program, words.delivered('failure 1'), 3)
    t.check('all at once', limited.requests[-1].time - began < 1.4, limited.requests[-1].time - began)
    t.equal('in order', [names(receiver.requests) for receiver in (limited, free)], [sent, sent])
    end(t, program, delivered=3)


# ---- Connections ----------------------------------------------------------------------------------------------------


def reset_in_request(sock):
    sock.recv(100)
    harness.reset(sock)


def close_after_request(sock):
    while not sock.recv(65536).endswith(b'}'):
        pass


# What becomes of a kept connection.
STALE = {
    'closed_while_idle': lambda sock: None,
    'reset_while_idle': harness.reset,
    'goodbye_while_idle': hold(response(408, b'idle for too long', close=True)),
    'noise_while_idle': hold(b'\r\nare you there?\r\n'),
    'reset_in_next_request': reset_in_request,
    'closed_after_next_request': close_after_request,
}


@both
@pytest.mark.parametrize('name', STALE)
def test_connection_stale(t, name, scheme):
    """A kept connection turns out to be of no use: the next alert arrives all the same, at once, and counts as one attempt."""
    idle = threading.Event()

    def first(sock):
        sock.sendall(OK)
        idle.wait(30 * harness.SLOW)
        STALE[name](sock)

    receiver = server(t, scheme, in_turn(first))
    program = start(t, hook(receiver))
    program.send(datagram(message='first'))
    says(t, program, words.delivered(number=1))
    idle.set()
    time.sleep(0.2)     # so that it can see what happens to an idle connection
    message = 'second' if name == 'closed_after_next_request' else LARGE
    program.send(datagram(message=message))
    says(t, program, words.delivered(number=2, status=FIRST_TIME))
    t.equal('connections', [request.connection for request in receiver.requests], [1, 2])
    t.check('the second alert', receiver.requests[1].json()['logMessage'] == message)
    t.equal('warnings', program.lines(' warn: '), [])
    end(t, program, delivered=2)


@both
def test_connection_stale_then_bad(t, scheme):
    """Once more at once is once; and on a kept connection, too, an answer that has begun counts as an attempt."""
    receiver = server(t, scheme, in_turn(OK, None, None, OK, hold(b'no HTTP')))
    program = start(t, hook(receiver))
    for number, attempt, requests in ((1, 1, 1), (2, 2, 4), (3, 2, 6)):
        program.send(datagram())
        says(t, program, words.delivered(number=number, status=r'200 in \d+ ms, attempt %d$' % attempt))
        t.equal('alert %d: requests' % number, len(receiver.requests), requests)
        time.sleep(0.2)     # until the answer is read, and the connection kept
    t.equal('connections', [request.connection for request in receiver.requests], [1, 1, 2, 3, 3, 4])
    t.equal('webhook-ids', len(set(ids(receiver.requests))), 3)
    t.equal('attempts that failed', len(program.lines(words.failed())), 2)
    end(t, program, delivered=3)


def test_connection_kept_until_idle(t):
    """One alert after another uses one connection, until it was idle for long: a second in the program with short limits."""
    receiver = t.receiver()
    program = start(t, hook(receiver), binary=t.binary_test)
    for number in (1, 2, 3):
        program.send(datagram())
        says(t, program, words.delivered(number=number))
        time.sleep(0.1)
    t.check('the program closes the idle connection', receiver.connections[0].wait_closed(20))
    t.check('not before its time', time.monotonic() - receiver.requests[-1].time > 0.9)
    program.send(datagram())
    says(t, program, words.delivered(number=4, status=FIRST_TIME))
    t.equal('connections', [request.connection for request in receiver.requests], [1, 1, 1, 2])


@both
def test_connection_early_answer(t, scheme):
    """An answer in the middle of a large body, keep-alive: the rest is not sent, so the connection is of no more use."""
    over = threading.Event()

    def refuse(sock):
        sock.sendall(response(413))
        over.wait(30 * harness.SLOW)

    receiver = server(t, scheme, on_head=lambda request, connection: refuse if connection.number == 1 else None)
    small_buffers(receiver)
    program = start(t, hook(receiver))
    program.send(datagram(message=LARGE))
    says(t, program, words.given_up('failure 1', 1, 'status 413'))
    program.send(datagram())
    says(t, program, words.delivered(number=2, status=FIRST_TIME))
    over.set()
    t.equal('connections', [request.connection for request in receiver.requests], [1, 2])
    end(t, program, delivered=1, given_up=1)


@pytest.mark.parametrize('hanging, working', (('::1', '127.0.0.1'), ('127.0.0.1', '::1')))
def test_connection_family_hangs(t, hanging, working):
    """One family of localhost hangs, the other answers: the hanging one gets its share of the time, then the last place."""
    if not base.read('/proc/net/if_inet6'):
        t.skip('there is no IPv6')
    receiver = t.receiver(host=working, port=full_port(t, hanging))
    program = start(t, at(receiver.port, 'localhost'), timeoutSeconds=20)
    program.send(datagram())
    says(t, program, words.delivered(number=1))
    receiver.drop_connections()
    program.send(datagram())
    took = int(says(t, program, words.delivered(number=2, status=FIRST_TIME.replace(r'\d+', r'(\d+)'))).group(1))
    t.check('the address that worked is tried first', took < 5000, took)


def test_connection_hangs(t):
    """What hangs before the request, in the connect or the handshake, ends with the call's time, and the webhook is down."""
    program = start(t, at(full_port(t)), tls(t.receiver(on_connect=lambda connection: hold())), binary=t.binary_test)
    begin = time.monotonic()
    program.send(datagram())
    says(t, program, words.down())
    t.check('not before its time', time.monotonic() - begin > 1.9, time.monotonic() - begin)
    says(t, program, words.down('failure 1', 'no answer in time'))
    says(t, program, words.down('failure 2', words.NOT_IN_TIME))
    end(t, program, delivered=0, waiting=2)


# ---- Stopping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('signals', (['SIGINT'], ['SIGHUP'], ['SIGTERM', 'SIGHUP', 'SIGINT']), ids='-'.join)
def test_stop_by_signal(t, signals):
    """Each of them, while a call hangs; the others that follow change nothing."""
    if harness.WINDOWS and signals[0] == 'SIGHUP':
        t.skip('SIGHUP')
    numbers = [getattr(signal, name) for name in signals]
    receiver = t.receiver(always(hold()))
    program = start(t, hook(receiver), **MEMORY)
    sent = send_many(program, 3)
    receiver.wait(3)
    for number in numbers[:-1]:
        program.send_signal(number)
        says(t, program, words.STOPPING)
    end(t, program, numbers[-1], received=3, accepted=3, delivered=0, lost=3)
    t.equal('what it says', len(program.lines(words.STOPPING + harness.SYSTEM.stopped_by(numbers[0]) + '$')), 1)
    t.equal('alerts that are lost', sorted(whole(program, words.lost('failure 1'))), sent)


@harness.unix('ignored signals')
@pytest.mark.parametrize('name', ('HUP', 'INT'))
def test_stop_not_by_ignored_signal(t, name):
    """A signal that was ignored at the start, as by nohup, stays without effect; the others still work."""
    receiver = t.receiver()
    program = start(t, hook(receiver), wrap=['sh', '-c', 'trap "" %s; exec "$@"' % name, 'sh'])
    program.send_signal(getattr(signal, 'SIG' + name))
    program.send(datagram())
    says(t, program, words.delivered(number=1))
    end(t, program, delivered=1)
    t.equal('what ended it', len(program.lines(words.STOPPING + 'SIGTERM received$')), 1)


@pytest.mark.parametrize('store', (MEMORY, {}), ids=('memory', 'journal'))
def test_stop_after_burst(t, store):
    """More has just arrived than can be sent in time: calls go on, but none is cut; what is left is lost, or waits on disk."""
    receiver = t.receiver(lambda request, connection: time.sleep(0.5) or OK)
    program = start(t, hook(receiver), maxConcurrent=1, **store)
    sent = send_many(program, 300)
    receiver.wait(1)
    program.send_signal()
    program.wait()
    delivered = len(receiver.requests)
    t.check('calls go on', 1 < delivered < 300, delivered)
    end(t, program, received=300, accepted=300, delivered=delivered, **{'lost' if store else 'waiting': 300 - delivered})
    waiting = json.loads(t.run('--pending', '--json', program.config).stdout)['waiting']
    left = [entry['alert']['taskName'] for entry in waiting]
    once_each(t, 'each arrives once, or is left', names(receiver.requests) + left + whole(program, words.lost()), sent)


FLOOD = """
import os, socket, sys
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while os.getppid() == int(sys.argv[1]):
    udp.sendto(sys.argv[3].encode(), ('127.0.0.1', int(sys.argv[2])))
"""


@harness.alone
def test_stop_under_full_flood(t):
    """Alerts with names that cost most, as fast as two processes can send them, do not keep it from ending."""
    if SANITIZED:
        t.skip('a sanitizer is too slow to log that much in five seconds')
    program = start(t, at(t.port()))
    data = datagram(task=('a' * 980 + ';') * 64, level='ERROR').decode()
    command = [sys.executable, '-c', FLOOD, str(os.getpid()), str(program.port), data]
    for _ in range(2):
        t.add(servers.Server(command))
    says(t, program, words.accepted(), 1000)
    t.equal('exit code', program.stop(), 0)
    last = [line for line in program.log[-2:] if not re.search(words.MISSING_LINES, line)]
    t.check('the last line counts, but for one about missing lines', re.search(words.STOPPED, last[-1]), last)


@pytest.mark.root
def test_stop_when_server_host_hangs(t):
    """The name to listen on is asked for at a name server that never answers."""
    server, wrap = silent_names(t, 'timeout:30 attempts:2')
    path, _ = t.config([at(t.port())], udp={'serverHost': 'listen.example.com'})
    program = t.start(path, wrap=wrap, wait=False)
    t.require('the name is asked for', select.select([server], [], [], 20 * harness.SLOW)[0], program.stderr)
    program.expect_exit = None
    code = program.stop()
    t.check('it ends', code in (0, -signal.SIGTERM, -signal.SIGINT), code)
    t.equal('it never listened', program.lines(words.LISTENING), [])


def test_stop_at_once(t):
    """A signal right after the start, whenever it comes: exit code 0 once it listens, else it may be what the signal does."""
    path, _ = t.config([at(t.port())])
    for i in range(12):
        program = t.start(path, wait=False)
        program.expect_exit = None
        time.sleep(i * 0.003)
        code = program.stop()
        others = () if program.lines(words.LISTENING) else (-signal.SIGTERM, -signal.SIGINT, 1 if harness.WINDOWS else 0)
        t.check('it ends', code in (0, *others), [code, program.log])


# ---- The console and many webhooks ----------------------------------------------------------------------------------


@pytest.mark.parametrize('console', ('unread', 'late', 'gone', 'full', 'none'))
def test_console_that_takes_nothing(t, console):
    """Alerts go on, and the log to no webhook. Lines wait for a late reader; with none a stop has exit code 1 and the counts."""
    if harness.WINDOWS and console == 'none':
        t.skip('wine does not run without standard streams')
    reader, writer = os.pipe() if console in ('unread', 'late', 'gone') else (None, os.open('/dev/full', os.O_WRONLY))
    if console in ('unread', 'late'):
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    receiver = t.receiver()
    path, port = t.config([hook(receiver)])
    program = t.start(path, stdout=writer, wrap=['sh', '-c', 'exec "$@" <&- >&- 2>&-', 'sh'] if console == 'none' else ())
    os.close(writer)
    t.require('it listens', base.until(lambda: b':%04X ' % port in base.read('/proc/net/udp')))
    if console == 'gone':
        os.close(reader)
    sent = []
    for number in range(30):
        sent += send_many(program, 1, 'alert %d' % number)
        receiver.wait(number + 1)
    once_each(t, 'all arrive', names(receiver.requests), sent)
    t.equal('errors of the receiver', receiver.errors, [])
    program.expect_exit, program.expect_stderr = (1, True) if console == 'unread' else (0, False)
    counts = r'\b30 received\b.*\b30 accepted\b.*\b30 delivered\b'
    if console == 'late':
        program.send_signal()
        with os.fdopen(reader, 'rb') as file:
            lines = harness.SYSTEM.output(file.read()).decode().splitlines()
        t.equal('lines of alerts', [sum(bool(re.search(word, line)) for line in lines)
                                    for word in (words.accepted(), words.delivered(status=FIRST_TIME))], [30, 30])
        t.check('the last line', re.search(counts, lines[-1]), lines[-1])
    t.equal('exit code', program.stop(), program.expect_exit)
    if console == 'unread':
        t.check('the counts', re.search(counts, program.stderr), program.stderr)
        os.close(reader)


def test_console_of_systemd(t):
    """Its journal takes the priority of a line from what stands before it; the file has none."""
    if harness.WINDOWS:
        t.skip('what Linux has')
    receiver = t.receiver(lambda request, connection: harness.response(404))
    path, _ = t.config([hook(receiver)], fileLogging=True, logDirectory='log', logLevel='verbose')
    journal = 'export JOURNAL_STREAM=$(stat -Lc %d:%i /proc/$$/fd/1); exec "$@"'
    program = t.start(path, wrap=['sh', '-c', journal, 'sh'])
    program.send(b'/unknown/;x')
    program.send(b'/scheduler-distribute/;x')
    send_many(program, 1)
    says(t, program, words.given_up())
    end(t, program, accepted=1, given_up=1)
    t.equal('priorities', {(line[:3], line.split()[1]) for line in program.log},
            {('<3>', 'error:'), ('<4>', 'warn:'), ('<6>', 'info:'), ('<6>', 'verbose:')})
    folder = os.path.join(t.tmp, 'log')
    t.equal('the file', [base.read(os.path.join(folder, name)).decode().splitlines() for name in os.listdir(folder)],
            [[line[3:] for line in program.log]])
    t.equal('not the journal', t.start(path, env={'JOURNAL_STREAM': '1:2'}).log[0][:2], '20')


def test_limits_threads(t):
    """Two hundred webhooks get each alert once, by as many threads as one webhook would need."""
    receiver = t.receiver()
    webhooks = [{'url': receiver.url('/%d' % i), 'method': ('GET', 'POST', 'PUT')[i % 3]} for i in range(200)]
    program = start(t, *webhooks, timeoutSeconds=120)
    sent = send_many(program, 5)
    says(t, program, words.accepted(1, 'for 200 webhooks'))
    says(t, program, words.delivered(), 1000, 60)
    for i in range(200):
        once_each(t, 'webhook %d' % i, names([request for request in receiver.requests if request.path == '/%d' % i]), sent)
    t.equal('webhook-ids', len(set(ids(receiver.requests))), 1000)
    if not harness.WINDOWS:
        threads = os.listdir('/proc/%d/task' % program.pid)
        t.check('threads', len(threads) <= 3 + ('tsan' in harness.BINARY), threads)     # the thread sanitizer has one of its own
    end(t, program, accepted=5, delivered=1000)
