"""
What webhooks and proxies answer, and what the program makes of it: verdicts, redirects, waiting, independence,
connections, and stopping at any moment. All servers are our own, on loopback; the hostile ones stand in tables.
"""

import atexit
import base64
import calendar
import contextlib
import email.utils
import functools
import gzip
import json
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata

import pytest

import harness
import servers
from harness import datagram, limit, response

OK = response(200, b'ok')
CRLF = b'\r\n'
LARGE = '\x01' * 60000      # as a message it makes a body of 360 KB: six bytes of JSON for each
FIELDS = ['event', 'hostName', 'user', 'taskName', 'taskId', 'appName', 'appId', 'logTimeStamp', 'logLevel',
          'executionId', 'logMessage']
STOPS_S = 8                 # the program promises 5 s
MEMORY = {'stateDirectory': ''}     # alerts are kept in memory only
SANITIZED = 'san' in harness.BINARY


# ---- Answers --------------------------------------------------------------------------------------------------------


def head(*lines, status=b'HTTP/1.1 200 OK'):
    """A status line, header lines and the blank line."""
    return CRLF.join((status,) + lines) + CRLF + CRLF


def quiet(play):
    """Decorator: the peer may close while the answer is played."""
    @functools.wraps(play)
    def wrapper(sock):
        try:
            play(sock)
        except OSError:
            pass
    wrapper.is_play = True
    return wrapper


def wait_peer(sock, seconds=60):
    """Reads and forgets until the peer has closed."""
    sock.settimeout(seconds)
    while sock.recv(65536):
        pass


def close(data=b''):
    """Sends data and closes."""
    return quiet(lambda sock: sock.sendall(data))


def cut(data=b''):
    """Sends data and resets the connection."""
    def play(sock):
        if data:
            sock.sendall(data)
        harness.reset(sock)
    return quiet(play)


def hold(data=b''):
    """Sends data, then nothing more, until the peer closes."""
    def play(sock):
        if data:
            sock.sendall(data)
        wait_peer(sock)
    return quiet(play)


def half_close(data=b''):
    """Sends data and the end of the stream, but goes on reading until the peer closes."""
    def play(sock):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        wait_peer(sock)
    return quiet(play)


def endless(data, piece, pause=0.0):
    """Sends data, then piece over and over, until the peer closes."""
    def play(sock):
        sock.settimeout(30)
        sock.sendall(data)
        while True:
            sock.sendall(piece)
            if pause:
                time.sleep(pause)
    return quiet(play)


def drip(data, fast=b'', pause=0.25):
    """Sends fast at once, then data by the byte, then waits for the peer to close."""
    def play(sock):
        sock.settimeout(30)
        if fast:
            sock.sendall(fast)
        for i in range(len(data)):
            sock.sendall(data[i:i + 1])
            time.sleep(pause)
        wait_peer(sock)
    return quiet(play)


def beneath(data, junk, play=hold):
    """Sends data as it should be, then plays junk past the TLS that protects the connection."""
    def both_layers(sock):
        with socket.socket(fileno=os.dup(sock.fileno())) as plain:
            if data:
                sock.sendall(data)
            if play is endless:
                play(b'', junk)(plain)
            else:
                play(junk)(plain)
    return quiet(both_layers)


def goodbye(data):
    """Sends data and TLS's own end of the stream, then closes."""
    def play(sock):
        if data:
            sock.sendall(data)
        sock.settimeout(1)
        sock.unwrap().close()
    return quiet(play)


def pieces(*parts, pause=0.1):
    """Sends each part by itself; the connection goes on."""
    def answer(request, connection):
        for part in parts[:-1]:
            connection.sock.sendall(part)
            time.sleep(pause)
        return parts[-1]
    answer.wants_request = True
    return answer


def resolve(result, request, connection):
    """What a Receiver can play: an answer that wants to see the request gets it."""
    return result(request, connection) if getattr(result, 'wants_request', False) else result


def always(result):
    """An answer function: the same for every request; None closes the connection."""
    return lambda request, connection: resolve(result, request, connection)


def in_turn(*answers, then=OK):
    """An answer function: the first request gets the first of answers, and so on; later ones get the last argument."""
    lock = threading.Lock()
    left = list(answers)

    def answer(request, connection):
        with lock:
            result = left.pop(0) if left else then
        return resolve(result, request, connection)
    return answer


def by_path(table, then=OK):
    """An answer function: path -> answer, or a list of answers for one request after another."""
    lock = threading.Lock()
    lists = {path: list(value) if isinstance(value, (list, tuple)) else None for path, value in table.items()}

    def answer(request, connection):
        if request.path not in table:
            return then
        if lists[request.path] is None:
            return table[request.path]
        with lock:
            return lists[request.path].pop(0) if lists[request.path] else then
    return answer


def location(status, *targets, close_after=False):
    """A redirect; targets are text or bytes, sent as they are."""
    lines = [b'Location: ' + (target if isinstance(target, bytes) else target.encode()) for target in targets]
    lines.append(b'Content-Length: 0')
    if close_after:
        lines.append(b'Connection: close')
    return head(*lines, status=b'HTTP/1.1 %d Moved' % status)


# ---- What the program says ------------------------------------------------------------------------------------------


def name_pattern(webhook):
    return re.escape(webhook) + r'(?!\d)(?: \("[^"]*"\))?'


def delivered_pattern(number, webhook='failure 1', status=200, attempt=r'\d+'):
    return r' alert %s delivered to %s: %s in \d+ ms, attempt %s\b' % (number, name_pattern(webhook), status, attempt)


def expect_line(t, program, what, pattern, timeout):
    """Checks that a line of the log comes; gives its match or None. Ends the test if the program has ended."""
    match = program.wait_log(pattern, timeout)
    t.check(what, match, [line[:300] for line in program.log[-5:]])
    if not match:
        t.require('the program runs', program.running(), program.stderr[-500:])
    return match


def wait_delivered(t, program, number, webhook='failure 1', status=200, attempt=r'\d+', timeout=10):
    return expect_line(t, program, 'alert %s is delivered to %s' % (number, webhook),
                       delivered_pattern(number, webhook, status, attempt), timeout)


def wait_given_up(t, program, number, webhook='failure 1', timeout=10):
    """
    The line of a dead letter: attempts, what stands behind them, and the alert, which stands in the line if there is no
    state directory, else among the dead letters.
    """
    match = expect_line(t, program, 'alert %s is given up for %s' % (number, webhook),
                        r' error: alert %s given up for %s after (\d+) attempts?(?:\(s\))?: (.*?)(?:; alert: (\{.*\}))?$' %
                        (number, name_pattern(webhook)), timeout)
    if not match:
        return 0, '', {}
    event = parse(match.group(3)) if match.group(3) else wait_letter(t, program, number, webhook)
    return int(match.group(1)), match.group(2), event


def wait_letter(t, program, number, webhook='failure 1', timeout=10):
    """The alert of a dead letter, once that is on the disk."""
    match = program.wait_log(r' alert %s accepted%s: .*, execution (.*), for \d+ webhook' % (number, harness.MEMORY_ONLY), 1)
    found = []

    def is_there():
        found.extend(letter['alert'] for letter in t.letters(program.config) if match and
                     letter['alert'].get('executionId') == match.group(1)
                     and re.match(name_pattern(webhook) + '$', letter['webhook']))
        return found

    wait_until(is_there, timeout)
    t.check('alert %s for %s is among the dead letters' % (number, webhook), found, len(t.letters(program.config)))
    return found[0] if found else {}


def wait_attempt(t, program, number, webhook='failure 1', attempt=1, timeout=10):
    """The reason of a failed attempt that will be followed by another."""
    match = expect_line(t, program, 'attempt %d of alert %s for %s is retried' % (attempt, number, webhook),
                        r' warn: alert %s to %s: (.*); attempt %d, next in ([0-9.]+) s$' %
                        (number, name_pattern(webhook), attempt), timeout)
    return match.group(1) if match else ''


def wait_down(t, program, webhook='failure 1', timeout=10):
    match = expect_line(t, program, '%s is down' % webhook, r' warn: webhook %s is down: (.*)$' % name_pattern(webhook),
                        timeout)
    return match.group(1) if match else ''


def wait_up(t, program, webhook='failure 1', timeout=30):
    expect_line(t, program, '%s is up again' % webhook, r' info: webhook %s is up again$' % name_pattern(webhook),
                timeout)


def wait_accepted(t, program, count, timeout=10):
    t.check('%d alerts are accepted' % count, program.wait_log(r' info: alert \d+ accepted%s: ' % harness.MEMORY_ONLY,
                                                               timeout, count),
            '%d were' % len(program.lines(r' accepted')))


def parse(text):
    try:
        return json.loads(text)
    except ValueError:
        return {}


def alerts_in(program, pattern):
    """The alerts that stand whole in the lines that match."""
    return [parse(line.partition('; alert: ')[2]) for line in program.lines(pattern) if '; alert: ' in line]


def totals(t, program, **wanted):
    """
    Checks the last lines: received, accepted, delivered, given_up, lost, waiting, dropped (datagrams). Unless told
    otherwise no alert may wait, and no datagram be dropped. An alert may count once or for each webhook for which it waits:
    a tuple has both counts.
    """
    match = program.wait_log(r' info: stopped: (\d+) received, (\d+) accepted, (\d+) delivered, (\d+) given up, '
                             r'(\d+) lost, (\d+) waiting$', 1)
    dropped = program.wait_log(r' info: no alerts: .*, (\d+) dropped$', 1)
    if not t.check('the last lines count', match and dropped, program.log[-2:]):
        return
    got = dict(zip(('received', 'accepted', 'delivered', 'given_up', 'lost', 'waiting'), map(int, match.groups())))
    got['dropped'] = int(dropped.group(1))
    for key, value in dict({'waiting': 0, 'dropped': 0}, **wanted).items():
        t.check('the count of %s' % key, got[key] in (value if isinstance(value, tuple) else (value,)),
                'got %d, wanted %s' % (got[key], value))


def clean_log(t, program):
    """Every line has its form, and nothing from outside is in it raw."""
    for line in program.log:
        if not re.match(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (error|warn|info|verbose|debug|silly): ', line) \
                or any(unicodedata.category(c) in ('Cc', 'Cs') for c in line):
            t.check('the lines of the log are clean', False, repr(line[:500]))
            return
    t.check('the lines of the log are clean', True)


def stop(t, program, number=signal.SIGTERM):
    """Stops the program and checks how."""
    begin = time.monotonic()
    code = program.stop(STOPS_S, number)
    t.equal('exit code after %s' % signal.Signals(number).name, code, 0)
    t.check('it stops in time', time.monotonic() - begin < STOPS_S * harness.SLOW)
    clean_log(t, program)


def end(t, program, **wanted):
    stop(t, program)
    totals(t, program, **wanted)


def names(requests):
    return [request.event().get('taskName') for request in requests]


def ids(requests):
    return [request.get('webhook-id') for request in requests]


def send_many(program, count, prefix='task', pause=0.0, **fields):
    """Sends count alerts, named one after another; returns their names."""
    sent = ['%s %d' % (prefix, i + 1) for i in range(count)]
    for name in sent:
        program.send(datagram(task=name, app=name, **fields))
        if pause:
            time.sleep(pause)
    return sent


def once_each(t, what, requests, sent):
    """Each of the alerts arrived, and none twice."""
    got = sorted(names(requests))
    t.check(what, got == sorted(sent), '%d of %d arrived, %d twice, missing %r' %
            (len(set(got)), len(sent), len(got) - len(set(got)), sorted(set(sent) - set(got))[:5]))


def pending(t, program):
    """The alerts that waited on disk when the program had ended, as --pending gives them."""
    if not hasattr(program, 'left'):
        t.require('the program has ended', not program.running())
        result = t.run('--pending', '--json', program.command[-1], binary=program.command[-2])
        left = parse(result.stdout)
        t.require('--pending works', result.returncode == 0 and 'waiting' in left,
                  'exit code %d, stderr %r' % (result.returncode, result.stderr[-500:]))
        program.left = left['waiting']
    return program.left


def waits_for(waiting, webhook):
    """Those that wait for one webhook, such as `failure 1`."""
    return [item for item in waiting if re.match(name_pattern(webhook) + '$', item['webhook'])]


def all_told(t, program, sent, webhook='failure 1'):
    """
    After the end: each alert was delivered, given up or lost, and said so; what was lost, or given up without a state
    directory, stands whole in the log, what was given up with one among the dead letters; or it waits on disk.
    """
    numbers = {}
    for line in program.lines(r' accepted'):
        match = re.search(r' alert (\d+) accepted%s: reload \w+, task "([^"]*)"' % harness.MEMORY_ONLY, line)
        if match:
            numbers[match.group(1)] = match.group(2)
    told = {}
    for line in program.lines(r' alert \d+ delivered to ' + name_pattern(webhook) + ':'):
        name = numbers.get(re.search(r' alert (\d+) ', line).group(1))
        told.setdefault(name, []).append('delivered')
    letters = [letter['alert'] for letter in t.letters(program.config)
               if re.match(name_pattern(webhook) + '$', letter['webhook'])]
    whole = [(word, event) for word in (('lost',) if letters else ('given up', 'lost'))
             for event in alerts_in(program, r' error: alert \d+ %s for %s' % (word, name_pattern(webhook)))]
    whole += [('given up', event) for event in letters]
    whole += [('waits', item['alert']) for item in waits_for(pending(t, program), webhook)]
    for word, event in whole:
        if list(event) != FIELDS:
            t.equal('fields of an alert: %s' % word, list(event), FIELDS)
        told.setdefault(event.get('taskName'), []).append(word)
    missing = [name for name in sent if name not in told]
    t.check('no alert is missing', not missing, '%d: %r' % (len(missing), missing[:5]))
    twice = {name: words for name, words in told.items() if len(words) > 1}
    t.check('each alert comes to one end', not twice, repr(twice)[:500])
    return told


def memory_kb(program):
    with open('/proc/%d/status' % program.pid) as file:
        return int(re.search(r'VmHWM:\s+(\d+)', file.read()).group(1))


def wait_rest(program, timeout=5):
    """Waits until no thread of the program wants the processor or the disk for a third of a second."""
    rested = [0]

    def at_rest():
        rested[0] += 1
        for number in os.listdir('/proc/%d/task' % program.pid):
            try:
                with open('/proc/%d/task/%s/stat' % (program.pid, number)) as file:
                    if file.read().rpartition(')')[2].split()[0] in 'RD':
                        rested[0] = 0
            except OSError:
                pass        # the thread has ended
        return rested[0] == 7

    wait_until(at_rest, timeout, 0.05)


def wait_until(condition, timeout=10, pause=0.02):
    deadline = time.monotonic() + timeout * harness.SLOW
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


# ---- Servers that are not quite servers -----------------------------------------------------------------------------


class FullListener:
    """A listening socket whose queue is full: a connect to it hangs."""

    def __init__(self, t, host='127.0.0.1', port=None):
        self.port = port or harness.free_port()
        family = socket.AF_INET6 if ':' in host else socket.AF_INET
        self.listener = socket.socket(family, socket.SOCK_STREAM)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((host, self.port))
        self.listener.listen(0)
        self.clients = []
        t.add(self)
        for _ in range(4):
            client = socket.socket(family, socket.SOCK_STREAM)
            client.settimeout(0.5)
            self.clients.append(client)
            try:
                client.connect((host, self.port))
            except OSError:
                return
        t.skip('this system does not let a connect hang')

    def close(self):
        for sock in self.clients + [self.listener]:
            sock.close()


class Names:
    """A name server on an address of its own, for programs started through `wrap`. None as table: it never answers."""

    def __init__(self, t, table=None):
        if os.geteuid() != 0:
            t.skip('a name server of our own needs root')
        self.table = table
        self.asked = []
        self.sock = t.add(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.address = '127.%d.%d.%d' % (1 + os.urandom(1)[0] % 250, os.urandom(1)[0], 2 + os.urandom(1)[0] % 250)
        try:
            self.sock.bind((self.address, 53))
        except OSError as error:
            t.skip('no port 53: %s' % error)
        path = os.path.join(t.tmp, 'resolv.conf')
        with open(path, 'w') as file:
            file.write('nameserver %s\noptions timeout:%d attempts:2\n' % (self.address, 30 if table is None else 5))
        mount = 'mount --bind "%s" /etc/resolv.conf' % path
        try:
            tried = subprocess.run(['unshare', '-m', 'sh', '-c', mount], capture_output=True, text=True)
        except FileNotFoundError:
            t.skip('there is no unshare')
        if tried.returncode != 0:
            t.skip('/etc/resolv.conf cannot be replaced: %s' % tried.stderr.strip())
        self.wrap = ['unshare', '-m', 'sh', '-c', mount + ' && exec "$@"', 'sh']
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                query, peer = self.sock.recvfrom(4096)
            except OSError:
                return
            labels, at = [], 12
            while query[at]:
                labels.append(query[at + 1:at + 1 + query[at]].decode('latin-1').lower())
                at += 1 + query[at]
            kind = struct.unpack('>H', query[at + 1:at + 3])[0]
            name = '.'.join(labels)
            self.asked.append((name, kind))
            if self.table is None:
                continue
            known = self.table.get(name)
            records = [address for address in known or () if (':' in address) == (kind == 28)]
            answer = query[:2] + struct.pack('>HHHHH', 0x8180 | (0 if known else 3), 1, len(records), 0, 0) + \
                query[12:at + 5]
            for address in records:
                data = socket.inet_pton(socket.AF_INET6 if ':' in address else socket.AF_INET, address)
                answer += b'\xc0\x0c' + struct.pack('>HHIH', kind, 1, 1, len(data)) + data
            try:
                self.sock.sendto(answer, peer)
            except OSError:
                return


_tls_lock = threading.Lock()
_tls_files = []


def tls_files():
    """A self-signed certificate for 127.0.0.1, ::1 and localhost, and its key."""
    with _tls_lock:
        if not _tls_files:
            path = tempfile.mkdtemp(prefix='butler_webhook-certificate-')
            atexit.register(shutil.rmtree, path, ignore_errors=True)
            files = os.path.join(path, 'certificate.pem'), os.path.join(path, 'key.pem')
            subprocess.run(['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes',
                            '-days', '2', '-subj', '/CN=localhost', '-out', files[0], '-keyout', files[1],
                            '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1'],
                           check=True, capture_output=True)
            _tls_files.extend(files)
        return _tls_files


@functools.lru_cache(maxsize=None)
def tls_context(version=None, tickets=2):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*tls_files())
    context.num_tickets = tickets
    if version:
        context.minimum_version = context.maximum_version = version
    return context


def tls_receiver(t, answer=None, **options):
    return t.receiver(answer, ssl_context=tls_context(), **options)


def trusting():
    return {'enable': True, 'rejectUnauthorized': True, 'certCA': tls_files()[0]}


def server(t, scheme, answer=None, **options):
    """A Receiver for http or https."""
    return t.receiver(answer, ssl_context=tls_context() if scheme == 'https' else None, **options)


def hook(receiver, path='/', userinfo='', **more):
    """A webhook of the configuration that calls this receiver, and trusts it."""
    return dict({'cert': trusting()} if receiver.ssl_context else {}, url=receiver.url(path, userinfo), **more)


both = pytest.mark.parametrize('scheme', ('http', 'https'))


def tunnel(first=b'HTTP/1.1 200 Connection established\r\n\r\n'):
    """An answer to CONNECT: opens the tunnel and says first."""
    def answer(request, connection):
        host, _, port = request.target.rpartition(':')

        def play(sock):
            near = '127.0.0.1' if host.rstrip('.') == 'localhost' else host.strip('[]')
            with socket.create_connection((near, int(port)), 10) as far:
                far.settimeout(None)
                sock.sendall(first)
                back = threading.Thread(target=pump, args=(far, sock), daemon=True)
                back.start()
                pump(sock, far)
                back.join(10)
        return quiet(play)
    answer.wants_request = True
    return answer


def pump(source, target):
    try:
        while True:
            data = source.recv(65536)
            if not data:
                break
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


# ---- Answers and their verdicts -------------------------------------------------------------------------------------


class Row:
    """
    One answer and its verdict. `play` is what the first request gets, as an answer of a Receiver; all later requests
    get a good answer. Verdicts:

        delivered   by the first attempt, without a word about the answer
        broken      delivered, but the answer's body is broken: the connection is not used again
        ended       one of these two
        retry       a failed attempt, then the same webhook-id again, on a new connection
        dead        a dead letter at once
        down        the webhook is down, with the reason, then up again, and the alert arrives

    `reuse` says whether the next alert comes on the same connection (None: either), `short` asks for the program with
    short limits, `greet` is sent before the first request is read, `reason` must stand in the line of the log.
    """

    early = False
    raw = False
    message = 'Max retries reached'

    def __init__(self, name, verdict, play, reuse=None, short=False, status=200, reason='', greet=None, method='POST'):
        self.name = name
        self.verdict = verdict
        self.play = play
        self.reuse = False if verdict == 'broken' else reuse
        self.short = short
        self.status = status
        self.reason = reason
        self.greet = greet
        self.method = method


class Early(Row):
    """An answer before the request's body is read, a large one: the log's queue holds two such dead letters."""

    early = True
    message = LARGE


class Port(Row):
    """What the first connection gets before any TLS. That makes sense over https only."""

    raw = True


NOT_HTTP = r'not HTTP'
CHUNKED = b'Transfer-Encoding: chunked'

# Interim answers.
INTERIM = [
    Row('continue_then_end', 'retry', close(b'HTTP/1.1 100 Continue\r\n\r\n')),
    Row('continue_then_junk', 'retry', close(b'HTTP/1.1 100 Continue\r\n\r\njunk and nothing else\r\n\r\n')),
    Row('processing_then_200', 'delivered', head(status=b'HTTP/1.1 102 Processing') + OK, reuse=True),
    Row('continue_then_200', 'delivered', head(status=b'HTTP/1.1 100 Continue') + OK, reuse=True),
    Row('early_hints_then_200', 'delivered', head(b'Link: </a>; rel=preload', status=b'HTTP/1.1 103 Early Hints') + OK),
    Row('five_interim_then_200', 'delivered', head(status=b'HTTP/1.1 102 Processing') * 5 + OK),
    Row('interim_with_length_then_200', 'delivered', head(b'Content-Length: 5', status=b'HTTP/1.1 103 Hints') + OK),
    Row('interim_in_pieces', 'delivered', pieces(b'HTTP/1.1 1', b'03 Hints\r\n\r', b'\nHTTP/1.1 20',
                                                 b'0 OK\r\nContent-Le',
                                                 b'ngth: 2\r\n\r\nok')),
    Row('switching_protocols', 'retry', close(head(b'Upgrade: websocket', b'Connection: Upgrade',
                                                   status=b'HTTP/1.1 101 Switching Protocols'))),
    Row('switching_protocols_kept_open', 'retry', hold(head(b'Upgrade: h2c', b'Connection: Upgrade',
                                                            status=b'HTTP/1.1 101 Switching Protocols')),
        reason='switches protocols'),
    Row('switching_protocols_then_200', 'retry', hold(head(b'Upgrade: h2c', status=b'HTTP/1.1 101 Switching') + OK),
        reason='switches protocols'),
    Row('interim_32_then_200', 'delivered', head(status=b'HTTP/1.1 100 Continue') * 32 + OK, reuse=True),
    Row('interim_1000_then_200', 'delivered', head(status=b'HTTP/1.1 100 Continue') * 1000 + OK, reuse=True),
    Row('interim_of_50_kb_four_times', 'delivered',
        head(b'Link: </' + b'a' * 51200 + b'>', status=b'HTTP/1.1 103 Early Hints') * 4 + OK, reuse=True),
    Row('interim_150_and_199', 'delivered', head(status=b'HTTP/1.1 150 Odd') + head(status=b'HTTP/1.1 199 Odd') + OK,
        reuse=True),
    Row('interim_chunked_then_200', 'delivered', head(CHUNKED, status=b'HTTP/1.1 100 Continue') + OK, reuse=True),
    Row('interim_1_0_then_200', 'delivered', head(status=b'HTTP/1.0 100 Continue') + OK),
    Row('interim_with_close_then_200', 'delivered', head(b'Connection: close', status=b'HTTP/1.1 103 Hints') + OK),
    Row('interim_ends_in_lf', 'delivered', b'HTTP/1.1 100 Continue\n\n' + OK, reuse=True),
    Row('interim_with_body', 'retry', hold(head(b'Content-Length: 5', status=b'HTTP/1.1 103 Hints') + b'hello' + OK),
        reason=NOT_HTTP),
    Row('interim_with_nul', 'retry', hold(head(b'X-A: a\0b', status=b'HTTP/1.1 103 Hints') + OK), reason=NOT_HTTP),
    Row('interim_then_404', 'dead', head(status=b'HTTP/1.1 100 Continue') + response(404), status=404),
    Row('interim_then_500', 'retry', head(status=b'HTTP/1.1 102 Processing') + response(500, close=True),
        reason='500'),
    Row('interim_then_reset', 'retry', cut(head(status=b'HTTP/1.1 100 Continue'))),
    Row('interim_then_silence', 'retry', hold(head(status=b'HTTP/1.1 100 Continue')), short=True, reason='no answer'),
    Row('interim_after_200', 'ended', hold(OK + head(status=b'HTTP/1.1 103 Early Hints')), reuse=False),
    Row('interim_status_only', 'retry', close(b'HTTP/1.1 100\r\n')),
    Row('interim_000', 'retry', hold(head(status=b'HTTP/1.1 000 Nothing') + OK), reason=NOT_HTTP),
    Row('interim_099', 'retry', hold(head(status=b'HTTP/1.1 099 Less') + OK), reason=NOT_HTTP),
    Row('endless_interim', 'retry', endless(b'', head(status=b'HTTP/1.1 102 Processing')), short=True),
    Row('endless_interim_slowly', 'retry', endless(b'', head(status=b'HTTP/1.1 102 Processing'), 0.2), short=True),

    Row('head_by_the_byte_but_quickly', 'delivered', pieces(*[bytes([c]) for c in OK], pause=0.002), reuse=True),
]

# Header lines.
HEADERS = [
    Row('nul_in_header', 'retry', hold(head(b'Content-Length: 0', b'X-A: a\0b')), reason=NOT_HTTP),
    Row('nul_in_header_name', 'retry', hold(head(b'Content-Length: 0', b'X-\0A: ab')), reason=NOT_HTTP),
    Row('cr_in_header', 'retry', hold(head(b'Content-Length: 0', b'X-A: a\rb')), reason=NOT_HTTP),
    Row('header_without_colon', 'retry', hold(head(b'Content-Length: 0', b'no colon here')), reason=NOT_HTTP),
    Row('blank_line_of_spaces', 'retry', close(b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n  \r\n')),
    Row('head_ends_in_cr', 'retry', hold(b'HTTP/1.1 200 OK\rContent-Length: 0\r\r'), short=True),
    Row('head_ends_in_lf_cr', 'retry', close(b'HTTP/1.1 200 OK\n\rContent-Length: 0\n\r\n\r')),
    Row('cr_cr_lf', 'retry', hold(b'HTTP/1.1 200 OK\r\r\nContent-Length: 0\r\r\n\r\r\n\r\n'), reason=NOT_HTTP),
    Row('folded_header', 'delivered', head(b'X-A: one', b' two', b'\tthree', b'Content-Length: 0'), reuse=True),
    Row('folded_length', 'broken', hold(head(b'Content-Length:', b' 2') + b'ok')),
    Row('first_header_begins_with_space', 'delivered', head(b' X-A: one', b'Content-Length: 0'), reuse=True),
    Row('header_of_18_kb', 'delivered', head(b'X-A: ' + b'a' * 18432, b'Content-Length: 2') + b'ok', reuse=True),
    Row('cookie_of_18_kb', 'delivered', head(b'Content-Length: 0', b'Set-Cookie: a=' + b'b' * 18432), reuse=True),
    Row('header_of_100_kb', 'retry', hold(head(b'X-A: ' + b'a' * 102400, b'Content-Length: 0')), reason='answer'),
    Row('too_many_headers', 'retry', hold(head(*[b'H: v'] * 20000)), reason='answer'),
    Row('all_headers_too_large', 'retry', hold(head(*[b'X-A: ' + b'a' * 1000] * 300)), reason='answer'),
    Row('fifty_headers', 'delivered', head(b'Content-Length: 0', *[b'X-%d: value' % i for i in range(50)]), reuse=True),
    Row('endless_header', 'retry', endless(b'HTTP/1.1 200 OK\r\nX-A: ', b'a' * 8192), short=True),
    Row('endless_headers', 'retry', endless(b'HTTP/1.1 200 OK\r\n', b'X-A: a\r\n' * 500), short=True),
    Row('header_by_the_byte', 'retry', drip(head(b'X-A: a long value, a byte at a time', b'Content-Length: 0')),
        short=True),
    Row('end_before_blank_line', 'retry', close(b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n')),
    Row('end_in_a_header', 'retry', close(b'HTTP/1.1 200 OK\r\nContent-Len')),
    Row('reset_in_a_header', 'retry', cut(b'HTTP/1.1 200 OK\r\nContent-Len')),
    Row('silence_in_a_header', 'retry', hold(b'HTTP/1.1 200 OK\r\nContent-Len'), short=True,
        reason=r'no answer within'),
    Row('empty_header_value', 'delivered', head(b'X-A:', b'X-B: ', b'Content-Length: 0'), reuse=True),
    Row('no_space_after_colon', 'delivered', head(b'Content-Length:2', b'X-A:b') + b'ok', reuse=True),
    Row('tab_after_colon', 'delivered', head(b'Content-Length:\t2\t') + b'ok', reuse=True),
    Row('header_in_upper_case', 'delivered', head(b'CONTENT-LENGTH: 2') + b'ok', reuse=True),
    Row('header_with_latin_1', 'delivered', head(b'X-A: gr\xfc\xdfe \xff', b'Content-Length: 0')),
    Row('header_with_escape_character', 'delivered', head(b'X-A: \x1b[2J\x07', b'Content-Length: 0')),
    Row('header_name_empty', 'retry', hold(head(b': value', b'Content-Length: 0')), reason=NOT_HTTP),
    Row('header_name_with_spaces', 'delivered', head(b'X A : value', b'Content-Length: 0')),
    Row('header_name_of_high_bytes', 'delivered', head(b'\xff\xfe\x80: value', b'Content-Length: 0')),
    Row('space_before_colon', 'delivered', head(b'X-A : value', b'Content-Length : 2') + b'ok', reuse=True),
    Row('colons_in_value', 'delivered', head(b'X-A: a:b::c', b'X-B::', b'Content-Length: 0'), reuse=True),
    Row('header_name_of_60_kb', 'delivered', head(b'X' * 61440 + b': a', b'Content-Length: 0'), reuse=True),
    Row('fold_of_10000_lines', 'delivered', head(b'X-A: a', *[b' b'] * 10000, b'Content-Length: 0'), reuse=True),
    Row('fold_of_blanks', 'delivered', head(b'X-A:', b' ', b'\t', b'    ', b'Content-Length: 0'), reuse=True),
    Row('fold_of_100_kb', 'retry', hold(head(b'X-A: a', *[b'\tb'] * 26000, b'Content-Length: 0')), reason='answer'),
    Row('fold_of_first_line_100_kb', 'retry', hold(head(*[b' b'] * 26000, b'Content-Length: 0')), reason='answer'),
    Row('fold_endless', 'retry', endless(b'HTTP/1.1 200 OK\r\nX-A: a\r\n', b' b\r\n' * 1000), short=True),
    Row('fold_then_header_without_colon', 'retry', hold(head(b'X-A: a', b' b: c', b'no colon')), reason=NOT_HTTP),
    Row('headers_256', 'delivered', head(b'Content-Length: 0', *[b'H: v'] * 255), reuse=True),
    Row('headers_257', 'delivered', head(b'Content-Length: 0', *[b'H: v'] * 256), reuse=True),
    Row('head_of_64_kib', 'delivered', head(b'Content-Length: 0', b'X: ' + b'a' * 65493), reuse=True),
    Row('head_of_64_kib_and_1', 'retry',
        hold(head(b'Content-Length: 0', b'X: ' + b'a' * 65494)), reason='head is longer'),
    Row('lines_end_in_lf', 'delivered', b'HTTP/1.1 200 OK\nContent-Length: 2\n\nok'),
    Row('lines_end_in_either', 'delivered', b'HTTP/1.1 200 OK\nContent-Length: 2\r\nX-A: b\n\r\nok'),
    Row('location_in_a_200', 'delivered', head(b'Location: /elsewhere', b'Content-Length: 0'), reuse=True),
    Row('connection_close_upper_case', 'delivered', hold(head(b'Content-Length: 0', b'CONNECTION: CLOSE')),
        reuse=False),
    Row('connection_close_in_a_list', 'delivered', hold(head(b'Content-Length: 0', b'Connection: te, close')),
        reuse=False),
    Row('connection_close_between_commas', 'delivered', hold(head(b'Content-Length: 0', b'Connection: ,, ,close,')),
        reuse=False),
    Row('connection_keep_alive_and_close', 'delivered',
        hold(head(b'Content-Length: 0', b'Connection: keep-alive', b'Connection: close')), reuse=False),
    Row('connection_close_and_keep_alive', 'delivered',
        hold(head(b'Content-Length: 0', b'Connection: close', b'Connection: keep-alive')), reuse=False),
    Row('connection_close_then_more', 'ended', hold(response(200, b'ok', close=True) + OK * 20), reuse=False),
    Row('connection_close_body_never_ends', 'ended', endless(head(b'Connection: close'), b'a' * 4096), reuse=False),
    Row('connection_empty', 'delivered', head(b'Content-Length: 0', b'Connection:'), reuse=True),
    Row('connection_not_quite_close', 'delivered', head(b'Content-Length: 0', b'Connection: closed, unclose'),
        reuse=True),
    Row('connection_of_5000_words', 'delivered', head(b'Content-Length: 0', b'Connection: ' + b'a,' * 5000),
        reuse=True),
    Row('keep_alive_max_0', 'delivered', head(b'Content-Length: 0', b'Connection: keep-alive', b'Keep-Alive: max=0')),
    Row('connection_upgrade', 'delivered', head(b'Content-Length: 0', b'Connection: Upgrade', b'Upgrade: h2c')),
    Row('keep_alive_header', 'delivered', head(b'Content-Length: 0', b'Connection: keep-alive',
                                               b'Keep-Alive: timeout=5, max=99'),
        reuse=True),
]

# The status line.
STATUS_LINE = [
    Row('status_line_alone', 'delivered', close(head()), reuse=False),
    Row('status_line_alone_1_0', 'delivered', close(head(status=b'HTTP/1.0 200 OK')), reuse=False),
    Row('no_reason', 'delivered', head(b'Content-Length: 0', status=b'HTTP/1.1 200'), reuse=True),
    Row('empty_reason', 'delivered', head(b'Content-Length: 0', status=b'HTTP/1.1 200 '), reuse=True),
    Row('reason_in_latin_1', 'delivered', head(b'Content-Length: 0', status=b'HTTP/1.1 200 Gr\xfc\xdfe')),
    Row('reason_in_utf_8', 'delivered', head(b'Content-Length: 0', status='HTTP/1.1 200 \u6210\u529f'.encode()),
        reuse=True),
    Row('reason_of_control_characters', 'delivered',
        head(b'Content-Length: 0', status=b'HTTP/1.1 200 ' + bytes(c for c in range(1, 256) if c not in (10, 13))),
        reuse=True),
    Row('reason_of_60_kb', 'delivered', head(b'Content-Length: 0', status=b'HTTP/1.1 200 ' + b'O' * 61440), reuse=True),
    Row('reason_of_digits', 'delivered', head(b'Content-Length: 0', status=b'HTTP/1.1 200 500 404'), reuse=True),
    Row('reason_with_cr', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/1.1 200 O\rK')), reason=NOT_HTTP),
    Row('reason_of_70_kb', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/1.1 200 ' + b'O' * 71680)),
        reason='answer'),
    Row('reason_with_nul', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/1.1 200 O\0K')), reason=NOT_HTTP),
    Row('http_0_9', 'retry', close(b'done\n')),
    Row('http_0_9_html', 'retry', close(b'<html><body>It works!</body></html>\r\n')),
    Row('single_byte', 'retry', close(b'H')),
    Row('beginning_of_a_word', 'retry', close(b'HTTPr')),
    Row('version_alone', 'retry', close(b'HTTP/1.1\r\n\r\n')),
    Row('version_alone_kept_open', 'retry', hold(b'HTTP/1.1\r\n\r\n'), reason=NOT_HTTP),
    Row('blank_lines_alone', 'retry', close(b'\r\n\r\n\r\n')),
    Row('end_at_once', 'retry', None),
    Row('end_after_reading', 'retry', half_close(b'')),
    Row('reset_at_once', 'retry', cut()),
    Row('silence', 'retry', hold(), short=True, reason=r'no answer within'),
    Row('status_999', 'dead', head(b'Content-Length: 0', status=b'HTTP/1.1 999 Denied'), status=999),
    Row('status_negative', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/1.1 -200 OK')), reason=NOT_HTTP),
    Row('status_with_plus', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/1.1 +200 OK')), reason=NOT_HTTP),
    Row('status_of_2_digits', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/1.1 20 OK')), reason=NOT_HTTP),
    Row('status_of_4_digits', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/1.1 2000 OK')), reason=NOT_HTTP),
    Row('status_of_100_digits', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/1.1 ' + b'2' * 100 + b' OK')),
        reason=NOT_HTTP),
    Row('status_with_letters', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/1.1 2OO OK')), reason=NOT_HTTP),
    Row('status_overflowing_to_200', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/1.1 4294967496 OK')),
        reason=NOT_HTTP),
    Row('status_in_hexadecimal', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/1.1 0xc8 OK')),
        reason=NOT_HTTP),
    Row('status_line_with_tabs', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/1.1\t200\tOK')),
        reason=NOT_HTTP),
    Row('status_line_with_two_spaces', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/1.1  200 OK')),
        reason=NOT_HTTP),
    Row('status_line_without_space', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/1.1200 OK')),
        reason=NOT_HTTP),
    Row('status_then_letters', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/1.1 200OK')), reason=NOT_HTTP),
    Row('status_then_point', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/1.1 200.1 OK')), reason=NOT_HTTP),
    Row('status_line_indented', 'retry', hold(head(b'Content-Length: 0', status=b' HTTP/1.1 200 OK')), reason=NOT_HTTP),
    Row('status_line_after_blank_lines', 'retry', hold(b'\r\n\r\n' + OK), reason=NOT_HTTP),
    Row('status_line_half_then_end', 'retry', close(b'HTTP/1.1 20')),
    Row('status_line_half_then_reset', 'retry', cut(b'HTTP/1.1 200')),
    Row('status_line_half_then_half_close', 'retry', half_close(b'HTTP/1.1 200 OK')),
    Row('status_line_without_blank_line', 'retry', close(b'HTTP/1.1 200 OK\r\n')),
    Row('status_000', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/1.1 000 OK')), reason=NOT_HTTP),
    Row('status_600', 'dead', head(b'Content-Length: 0', status=b'HTTP/1.1 600 Odd'), status=600),
    Row('status_in_wide_digits', 'retry',
        hold(head(b'Content-Length: 0', status='HTTP/1.1 \uff12\uff10\uff10'.encode())), reason=NOT_HTTP),
    Row('version_1_2', 'delivered', head(b'Content-Length: 0', status=b'HTTP/1.2 200 OK')),
    Row('version_1_9', 'delivered', head(b'Content-Length: 0', status=b'HTTP/1.9 200 OK')),
    Row('version_1_10', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/1.10 200 OK')), reason=NOT_HTTP),
    Row('version_01_1', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/01.1 200 OK')), reason=NOT_HTTP),
    Row('version_1', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/1 200 OK')), reason=NOT_HTTP),
    Row('version_2_0', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/2.0 200 OK')), reason=NOT_HTTP),
    Row('version_2', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/2 200 OK')), reason=NOT_HTTP),
    Row('version_0_9', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/0.9 200 OK')), reason=NOT_HTTP),
    Row('version_in_lower_case', 'retry', hold(head(b'Content-Length: 0', status=b'http/1.1 200 OK')), reason=NOT_HTTP),
    Row('version_with_comma', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/1,1 200 OK')), reason=NOT_HTTP),
    Row('version_negative', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/1.-1 200 OK')), reason=NOT_HTTP),
    Row('nul_in_name', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP\0/1.1 200 OK')), reason=NOT_HTTP),
    Row('version_of_100_digits', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/' + b'1' * 100 + b'.1 200 OK')),
        reason=NOT_HTTP),
    Row('version_with_letters', 'retry', hold(head(b'Content-Length: 0', status=b'HTTP/one.one 200 OK')),
        reason=NOT_HTTP),
    Row('other_protocol_rtsp', 'retry', hold(head(b'Content-Length: 0', status=b'RTSP/1.0 200 OK')), reason=NOT_HTTP),
    Row('other_protocol_icy', 'retry', hold(head(b'Content-Length: 0', status=b'ICY 200 OK')), reason=NOT_HTTP),
    Row('byte_order_mark', 'retry', hold(b'\xef\xbb\xbf' + OK), reason=NOT_HTTP),
    Row('utf_16', 'retry', hold(OK.decode().encode('utf-16-le')), reason=NOT_HTTP),
    Row('nul_bytes', 'retry', hold(b'\0' * 65536), reason=NOT_HTTP),
    Row('noise', 'retry', hold(bytes(range(256)) * 64), reason=NOT_HTTP),
    Row('endless_line', 'retry', endless(b'', b'a' * 8192), short=True),
    Row('endless_status_line', 'retry', endless(b'HTTP/1.1 200 ', b'a' * 8192), short=True),
    Row('status_line_by_the_byte', 'retry', drip(b'HTTP/1.1 200 Very well, thank you\r\n\r\n'), short=True),
]

# Content-Length.
LENGTH = [
    Row('length_negative', 'broken', hold(head(b'Content-Length: -5') + b'hello')),
    Row('length_with_letters', 'broken', hold(head(b'Content-Length: 5a') + b'hello')),
    Row('length_with_plus', 'broken', hold(head(b'Content-Length: +5') + b'hello')),
    Row('length_in_hexadecimal', 'broken', hold(head(b'Content-Length: 0x5') + b'hello')),
    Row('length_with_point', 'broken', hold(head(b'Content-Length: 5.0') + b'hello')),
    Row('length_of_two_words', 'broken', hold(head(b'Content-Length: 5 5') + b'hello')),
    Row('length_empty', 'broken', hold(head(b'Content-Length: ') + b'hello')),
    Row('length_negative_zero', 'broken', hold(head(b'Content-Length: -0'))),
    Row('length_with_comma', 'broken', hold(head(b'Content-Length: 2,') + b'ok')),
    Row('length_with_quotes', 'broken', hold(head(b'Content-Length: "2"') + b'ok')),
    Row('length_with_thousands', 'broken', hold(head(b'Content-Length: 1,000') + b'a' * 1000)),
    Row('length_with_exponent', 'broken', hold(head(b'Content-Length: 2e0') + b'ok')),
    Row('length_in_other_digits', 'broken', hold(head('Content-Length: \u0662'.encode()) + b'ok')),
    Row('length_with_vertical_tab', 'broken', hold(head(b'Content-Length: \v2\f') + b'ok')),
    Row('length_of_10000_digits', 'broken', hold(head(b'Content-Length: ' + b'9' * 10000) + b'hello')),
    Row('length_of_10000_zeros', 'delivered', head(b'Content-Length: ' + b'0' * 10000 + b'2') + b'ok', reuse=True),
    Row('length_folded_in_two', 'broken', hold(head(b'Content-Length: 1', b' 0') + b'a' * 10)),
    Row('length_2_to_63_less_1', 'broken', close(head(b'Content-Length: 9223372036854775807') + b'hello')),
    Row('length_2_to_32_plus_2', 'ended', close(head(b'Content-Length: 4294967298') + b'ok'), reuse=False),
    Row('length_twice_one_empty', 'broken', hold(head(b'Content-Length: 2', b'Content-Length:') + b'ok')),
    Row('length_twice_one_broken', 'broken', hold(head(b'Content-Length: x', b'Content-Length: 2') + b'ok')),
    Row('length_twice_with_zeros', 'delivered', head(b'Content-Length: 2', b'Content-Length: 002') + b'ok', reuse=True),
    Row('length_200_times', 'delivered', head(*[b'Content-Length: 2'] * 200) + b'ok', reuse=True),
    Row('length_0_with_body', 'ended', hold(head(b'Content-Length: 0') + b'hello'), reuse=False),
    Row('length_0_then_half_close', 'delivered', half_close(head(b'Content-Length: 0')), reuse=False),
    Row('length_0_then_endless', 'ended', endless(head(b'Content-Length: 0'), b'a' * 8192), reuse=False),
    Row('length_then_space', 'delivered', head(b'Content-Length: 2 ') + b'ok', reuse=True),
    Row('length_with_zeros', 'delivered', head(b'Content-Length: 0000000002') + b'ok', reuse=True),
    Row('length_overflows', 'broken', close(head(b'Content-Length: ' + b'1' * 30) + b'hello')),
    Row('length_2_to_64_plus_2', 'broken', hold(head(b'Content-Length: 18446744073709551618') + b'ok')),
    Row('length_2_to_63', 'broken', close(head(b'Content-Length: 9223372036854775808') + b'hello')),
    Row('length_twice', 'delivered', head(b'Content-Length: 2', b'Content-Length: 2') + b'ok'),
    Row('length_twice_different', 'broken', hold(head(b'Content-Length: 2', b'Content-Length: 5') + b'hello')),
    Row('length_list_different', 'broken', hold(head(b'Content-Length: 2, 5') + b'hello')),
    Row('length_list_same', 'ended', hold(head(b'Content-Length: 2, 2') + b'ok')),
    Row('body_too_short', 'broken', close(head(b'Content-Length: 100') + b'too short')),
    Row('body_too_short_reset', 'broken', cut(head(b'Content-Length: 100') + b'too short')),
    Row('body_never_comes', 'broken', hold(head(b'Content-Length: 100'))),
    Row('body_by_the_byte', 'broken', drip(b'a' * 100, head(b'Content-Length: 100')), short=True),
    Row('body_in_pieces', 'delivered', pieces(head(b'Content-Length: 9'), b'one', b'two', b'six'), reuse=True),
    Row('body_of_60_kb', 'delivered', head(b'Content-Length: 61440') + b'a' * 61440, reuse=True),
    Row('body_of_64_kib', 'ended', head(b'Content-Length: 65536') + b'a' * 65536),
    Row('body_of_64_kib_and_1', 'ended', head(b'Content-Length: 65537') + b'a' * 65537),
    Row('body_of_5_mb', 'ended', head(b'Content-Length: 5000000') + b'a' * 5000000, reuse=False),
    Row('body_longer_than_length', 'ended', hold(head(b'Content-Length: 2') + b'ok and more'), reuse=False),
    Row('two_answers', 'ended', hold(OK + OK), reuse=False),
    Row('hundred_answers', 'ended', hold(OK * 100), reuse=False),
    Row('second_answer_later', 'ended', hold(OK + b'HTTP/1.1 2'), reuse=False),
    Row('second_answer_is_a_500', 'ended', hold(OK + response(500)), reuse=False),
]

# Until the end of the connection.
UNTIL_CLOSE = [
    Row('until_close', 'delivered', close(head(b'Content-Type: text/plain') + b'all of it'), reuse=False),
    Row('until_close_1_0', 'delivered', close(head(status=b'HTTP/1.0 200 OK') + b'all of it'), reuse=False),
    Row('until_close_10_mb', 'ended', close(head() + b'a' * 10000000), reuse=False),
    Row('until_close_never', 'ended', hold(head() + b'and then'), reuse=False),
    Row('until_close_endless', 'ended', endless(head(), b'a' * 8192), reuse=False),
    Row('until_reset', 'ended', cut(head() + b'all of it'), reuse=False),
    Row('whole_then_reset', 'ended', cut(OK), reuse=False),
    Row('length_1_0', 'delivered', hold(head(b'Content-Length: 2', status=b'HTTP/1.0 200 OK') + b'ok'), reuse=False),
    Row('keep_alive_1_0', 'delivered', head(b'Content-Length: 2', b'Connection: keep-alive',
                                            status=b'HTTP/1.0 200 OK') + b'ok'),
    Row('keep_alive_1_0_without_length', 'ended', hold(head(b'Connection: keep-alive', status=b'HTTP/1.0 200 OK')), reuse=False),
    Row('keep_alive_1_0_and_close', 'delivered', hold(head(b'Content-Length: 0', b'Connection: keep-alive, close',
                                                           status=b'HTTP/1.0 200 OK')),
        reuse=False),
    Row('chunked_1_0', 'ended', hold(head(CHUNKED, status=b'HTTP/1.0 200 OK') + b'2\r\nok\r\n0\r\n\r\n'), reuse=False),
    Row('until_half_close', 'delivered', half_close(head() + b'all of it'), reuse=False),
    Row('until_close_by_the_byte', 'ended', drip(b'a' * 100, head()), reuse=False, short=True),
    Row('until_close_of_nuls', 'delivered', close(head() + bytes(5000)), reuse=False),
]

# Chunks.
CHUNKS = [
    Row('chunked', 'delivered', head(CHUNKED) + b'2\r\nok\r\n0\r\n\r\n', reuse=True),
    Row('chunked_empty', 'delivered', head(CHUNKED) + b'0\r\n\r\n', reuse=True),
    Row('chunked_upper_case', 'delivered', head(b'TRANSFER-ENCODING: CHUNKED') + b'A\r\n0123456789\r\n0\r\n\r\n',
        reuse=True),
    Row('chunked_in_pieces', 'delivered', pieces(head(CHUNKED), b'4', b'\r', b'\nab', b'cd\r\n', b'0\r\n\r', b'\n',
                                                 pause=0.05),
        reuse=True),
    Row('chunked_zeros', 'delivered', head(CHUNKED) + b'00000002\r\nok\r\n000\r\n\r\n', reuse=True),
    Row('chunked_many', 'delivered', head(CHUNKED) + b'1\r\na\r\n' * 3000 + b'0\r\n\r\n', reuse=True),
    Row('chunk_extensions', 'delivered', head(CHUNKED) + b'2;name=value;other="a b"\r\nok\r\n0;last\r\n\r\n',
        reuse=True),
    Row('chunked_and_length', 'delivered', head(b'Content-Length: 500', CHUNKED) + b'2\r\nok\r\n0\r\n\r\n'),
    Row('length_and_chunked', 'delivered', head(CHUNKED, b'Content-Length: 1') + b'2\r\nok\r\n0\r\n\r\n'),
    Row('gzip_and_chunked', 'delivered', head(b'Transfer-Encoding: gzip, chunked') + b'2\r\nok\r\n0\r\n\r\n'),
    Row('transfer_encoding_unknown', 'ended', close(head(b'Transfer-Encoding: gzip') + b'until the end'), reuse=False),
    Row('transfer_encoding_identity', 'ended', head(b'Transfer-Encoding: identity', b'Content-Length: 2') + b'ok'),
    Row('transfer_encoding_chunked_twice', 'ended',
        head(b'Transfer-Encoding: chunked, chunked') + b'2\r\nok\r\n0\r\n\r\n'),
    Row('transfer_encoding_not_quite', 'ended', head(b'Transfer-Encoding: xchunked') + b'2\r\nok\r\n0\r\n\r\n',
        reuse=False),
    Row('transfer_encoding_chunked_first', 'ended', hold(head(b'Transfer-Encoding: chunked, gzip') + b'noise'),
        reuse=False),
    Row('transfer_encoding_in_two_headers', 'delivered',
        head(b'Transfer-Encoding: gzip', CHUNKED) + b'2\r\nok\r\n0\r\n\r\n', reuse=False),
    Row('transfer_encoding_chunked_then_identity', 'ended',
        hold(head(CHUNKED, b'Transfer-Encoding: identity') + b'2\r\nok\r\n0\r\n\r\n'), reuse=False),
    Row('transfer_encoding_empty', 'ended', close(head(b'Transfer-Encoding:', b'Content-Length: 2') + b'ok'),
        reuse=False),
    Row('transfer_encoding_in_quotes', 'ended', hold(head(b'Transfer-Encoding: "chunked"') + b'2\r\nok\r\n0\r\n\r\n'),
        reuse=False),
    Row('transfer_encoding_with_parameter', 'ended',
        hold(head(b'Transfer-Encoding: chunked;q=1') + b'2\r\nok\r\n0\r\n\r\n'), reuse=False),
    Row('transfer_encoding_with_nul', 'retry', hold(head(b'Transfer-Encoding: chunked\0') + b'0\r\n\r\n'),
        reason=NOT_HTTP),
    Row('transfer_encoding_with_vertical_tab', 'ended', hold(head(b'Transfer-Encoding: \vchunked') + b'0\r\n\r\n'),
        reuse=False),
    Row('transfer_encoding_folded', 'ended', hold(head(b'Transfer-Encoding:', b' chunked') + b'2\r\nok\r\n0\r\n\r\n'),
        reuse=False),
    Row('transfer_encoding_of_3000_codings', 'delivered',
        head(b'Transfer-Encoding: ' + b'gzip, ' * 3000 + b'chunked') + b'0\r\n\r\n', reuse=False),
    Row('chunked_and_broken_length', 'delivered', head(b'Content-Length: -5', CHUNKED) + b'2\r\nok\r\n0\r\n\r\n'),
    Row('chunked_and_two_lengths', 'delivered',
        head(b'Content-Length: 2', CHUNKED, b'Content-Length: 5') + b'2\r\nok\r\n0\r\n\r\n'),
    Row('chunk_ends_in_lf', 'delivered', head(CHUNKED) + b'2\nok\n0\n\n'),
    Row('trailers_announced', 'delivered', head(CHUNKED, b'Trailer: X-Sum') + b'2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n',
        reuse=True),
    Row('trailers', 'delivered', head(CHUNKED) + b'2\r\nok\r\n0\r\nX-A: 1\r\nX-B: 2\r\n\r\n', reuse=True),
    Row('trailers_of_50_kb', 'delivered', head(CHUNKED) + b'0\r\n' + b'X-A: 123\r\n' * 5000 + b'\r\n'),
    Row('trailer_of_framing', 'delivered',
        head(CHUNKED) + b'2\r\nok\r\n0\r\nContent-Length: 99\r\nTransfer-Encoding: gzip\r\n\r\n', reuse=True),
    Row('trailer_connection_close', 'delivered', head(CHUNKED) + b'2\r\nok\r\n0\r\nConnection: close\r\n\r\n'),
    Row('trailer_without_colon', 'ended', head(CHUNKED) + b'2\r\nok\r\n0\r\nno colon\r\n\r\n'),
    Row('trailers_by_the_byte', 'broken', drip(b'X-A: a\r\n' * 20, head(CHUNKED) + b'0\r\n'), short=True),
    Row('chunk_extension_of_30_kb', 'delivered', head(CHUNKED) + b'2;a=' + b'b' * 30720 + b'\r\nok\r\n0\r\n\r\n',
        reuse=True),
    Row('chunk_extension_of_64_kb', 'ended', head(CHUNKED) + b'2;a=' + b'b' * 65536 + b'\r\nok\r\n0\r\n\r\n'),
    Row('chunk_extension_of_128_kb', 'broken', hold(head(CHUNKED) + b'2;a=' + b'b' * 131072 + b'\r\nok\r\n0\r\n\r\n')),
    Row('chunk_extensions_on_each_byte', 'ended', hold(head(CHUNKED) + b'1;a=bcdef\r\na\r\n' * 8000 + b'0\r\n\r\n'),
        reuse=False),
    Row('chunk_size_then_space', 'delivered', head(CHUNKED) + b'2 \r\nok\r\n0\t\r\n\r\n', reuse=True),
    Row('chunk_size_in_either_case', 'delivered', head(CHUNKED) + b'a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n',
        reuse=True),
    Row('chunk_size_of_40_zeros', 'ended', hold(head(CHUNKED) + b'0' * 40 + b'2\r\nok\r\n0\r\n\r\n')),
    Row('last_chunk_of_40_zeros', 'ended', hold(head(CHUNKED) + b'2\r\nok\r\n' + b'0' * 40 + b'\r\n\r\n')),
    Row('chunk_size_in_hexadecimal', 'broken', hold(head(CHUNKED) + b'0x2\r\nok\r\n0\r\n\r\n')),
    Row('chunk_size_with_plus', 'broken', hold(head(CHUNKED) + b'+2\r\nok\r\n0\r\n\r\n')),
    Row('chunk_size_indented', 'broken', hold(head(CHUNKED) + b' 2\r\nok\r\n0\r\n\r\n')),
    Row('chunk_size_with_nul', 'broken', hold(head(CHUNKED) + b'2\0\r\nok\r\n0\r\n\r\n')),
    Row('chunk_size_with_point', 'broken', hold(head(CHUNKED) + b'2.0\r\nok\r\n0\r\n\r\n')),
    Row('chunk_size_15_digits', 'broken', close(head(CHUNKED) + b'fffffffffffffff\r\nok')),
    Row('chunk_extension_alone', 'broken', hold(head(CHUNKED) + b';a=b\r\nok\r\n0\r\n\r\n')),
    Row('chunk_shorter_than_its_size', 'broken', hold(head(CHUNKED) + b'5\r\nok\r\n0\r\n\r\n')),
    Row('chunk_without_line_end', 'broken', hold(head(CHUNKED) + b'2\r\nok0\r\n\r\n')),
    Row('chunk_ends_in_cr', 'broken', hold(head(CHUNKED) + b'2\rok\r0\r\r')),
    Row('chunks_are_none', 'broken', hold(head(CHUNKED) + b'<html>It works!</html>')),
    Row('chunks_by_the_byte_endless', 'broken', endless(head(CHUNKED), b'1\r\na\r\n' * 2000)),
    Row('last_chunk_then_junk', 'broken', hold(head(CHUNKED) + b'2\r\nok\r\n0 junk\r\nmore junk')),
    Row('chunk_size_broken', 'broken', hold(head(CHUNKED) + b'zz\r\nok\r\n0\r\n\r\n')),
    Row('chunk_size_empty', 'broken', hold(head(CHUNKED) + b'\r\nok\r\n0\r\n\r\n')),
    Row('chunk_size_negative', 'broken', hold(head(CHUNKED) + b'-2\r\nok\r\n0\r\n\r\n')),
    Row('chunk_size_overflows', 'broken', hold(head(CHUNKED) + b'FFFFFFFFFFFFFFFFF\r\nok\r\n0\r\n\r\n')),
    Row('chunk_size_2_to_64_plus_2', 'broken', hold(head(CHUNKED) + b'10000000000000002\r\nok\r\n0\r\n\r\n')),
    Row('chunk_size_all_ones', 'broken', close(head(CHUNKED) + b'ffffffffffffffff\r\nok\r\n0\r\n\r\n')),
    Row('chunk_longer_than_its_size', 'broken', hold(head(CHUNKED) + b'2\r\nokay\r\n0\r\n\r\n')),
    Row('end_in_mid_chunk', 'broken', close(head(CHUNKED) + b'20\r\nnot all')),
    Row('end_between_chunks', 'broken', close(head(CHUNKED) + b'2\r\nok\r\n')),
    Row('end_before_chunks', 'broken', close(head(CHUNKED))),
    Row('end_in_last_chunk', 'ended', close(head(CHUNKED) + b'2\r\nok\r\n0\r\n'), reuse=False),
    Row('reset_in_mid_chunk', 'broken', cut(head(CHUNKED) + b'20\r\nnot all')),
    Row('silence_in_mid_chunk', 'broken', hold(head(CHUNKED) + b'20\r\nnot all')),
    Row('chunked_1_mb', 'broken', hold(head(CHUNKED) + (b'2000\r\n' + b'a' * 8192 + b'\r\n') * 128 + b'0\r\n\r\n')),
    Row('chunked_endless', 'broken', endless(head(CHUNKED), b'2000\r\n' + b'a' * 8192 + b'\r\n')),
    Row('chunk_extension_endless', 'broken', endless(head(CHUNKED) + b'2;a=', b'a' * 8192)),
    Row('chunk_size_line_endless', 'broken', endless(head(CHUNKED), b'0' * 8192)),
    Row('trailers_endless', 'broken', endless(head(CHUNKED) + b'2\r\nok\r\n0\r\n', b'X-A: a\r\n' * 1000)),
    Row('chunked_by_the_byte', 'broken', drip(b'40\r\n' + b'a' * 64, head(CHUNKED)), short=True),
    Row('answer_after_chunks', 'ended', hold(head(CHUNKED) + b'2\r\nok\r\n0\r\n\r\n' + response(500)), reuse=False),
]

# Content codings are nobody's business but the reader's.
CODINGS = [
    Row('gzip', 'delivered', response(200, gzip.compress(b'hello'), [('Content-Encoding', 'gzip')]), reuse=True),
    Row('gzip_broken', 'delivered', response(200, b'not gzip', [('Content-Encoding', 'gzip')]), reuse=True),
    Row('coding_unknown', 'delivered', response(200, b'?', [('Content-Encoding', 'none-such')]), reuse=True),
    Row('codings_endless', 'delivered', response(200, b'?', [('Content-Encoding', 'gzip, ' * 500 + 'gzip')]),
        reuse=True),
]

# Answers without a body.
STATUSES = [
    Row('status_204', 'delivered', head(status=b'HTTP/1.1 204 No Content'), status=204, reuse=True),
    Row('status_204_with_chunked', 'delivered', head(CHUNKED, status=b'HTTP/1.1 204 No Content'), status=204),
    Row('status_204_with_length', 'delivered', head(b'Content-Length: 50', status=b'HTTP/1.1 204 No Content'),
        status=204),
    Row('status_205', 'delivered', head(b'Content-Length: 0', status=b'HTTP/1.1 205 Reset'), status=205),
    Row('status_200_to_get', 'delivered', OK, method='GET', reuse=True),
    Row('status_202_to_put', 'delivered', response(202, b'queued'), method='PUT', status=202, reuse=True),
    Row('status_299', 'delivered', response(299, b''), status=299, reuse=True),
    Row('status_206', 'delivered', head(b'Content-Range: bytes 0-1/9', b'Content-Length: 2',
                                        status=b'HTTP/1.1 206 Partial Content') + b'ok', status=206, reuse=True),
    Row('status_204_with_body', 'ended', hold(head(b'Content-Length: 5', status=b'HTTP/1.1 204 No Content') + b'hello'),
        status=204, reuse=False),
    Row('status_200_to_get_endless', 'ended', endless(head(), b'a' * 8192), reuse=False, method='GET'),
    Row('status_201_to_put_chunks_broken', 'broken', hold(head(CHUNKED, status=b'HTTP/1.1 201 Created') + b'zz'),
        method='PUT', status=201),
    Row('status_304_with_length', 'dead', head(b'Content-Length: 500', status=b'HTTP/1.1 304 Not Modified'),
        status=304),
    Row('status_304_to_get', 'dead', head(b'ETag: "a"', status=b'HTTP/1.1 304 Not Modified'), status=304, method='GET'),
    Row('status_404_endless', 'dead', endless(head(status=b'HTTP/1.1 404 Not Found'), b'a' * 8192), status=404),
    Row('status_404_reset', 'dead', cut(response(404, b'no')), status=404),
    Row('status_404_length_broken', 'dead', hold(head(b'Content-Length: -5', status=b'HTTP/1.1 404 Not Found')),
        status=404),
    Row('status_404_1_0', 'dead', close(head(status=b'HTTP/1.0 404 Not Found') + b'no'), status=404),
    Row('status_401_by_the_byte', 'dead', drip(b'a' * 100, head(b'Content-Length: 100', status=b'HTTP/1.1 401 No')),
        status=401),
    Row('status_304_with_chunks', 'dead', hold(head(CHUNKED, status=b'HTTP/1.1 304 Not Modified') + b'zz'), status=304),
    Row('status_500_half', 'retry', close(b'HTTP/1.1 500 Err')),
    Row('status_404_reason_with_escapes', 'dead', head(b'Content-Length: 0', status=b'HTTP/1.1 404 \x1b[2J\xff\x85'),
        status=404),
    Row('status_404_body_broken', 'dead', close(head(b'Content-Length: 50', status=b'HTTP/1.1 404 Not Found')),
        status=404),
    Row('status_500_reset', 'retry', cut(head(b'Content-Length: 50', status=b'HTTP/1.1 500 Error') + b'sorry'),
        reason='500'),
    Row('status_500_chunks_broken', 'retry', hold(head(CHUNKED, status=b'HTTP/1.1 500 Error') + b'zz\r\n'),
        reason='500'),
    Row('status_500_with_retry_after', 'retry', response(500, b'', [('Retry-After', '3600')], close=True),
        reason='500'),
    Row('status_404_with_retry_after', 'dead', response(404, b'', [('Retry-After', '3600')]), status=404),
    Row('status_200_with_retry_after', 'delivered', response(200, b'', [('Retry-After', '3600')]), reuse=True),
    Row('status_500_endless', 'retry', endless(head(status=b'HTTP/1.1 500 Error'), b'a' * 8192), reason='500'),
]

# Before the whole request was read.
EARLY = [
    Early('early_200', 'delivered', response(200, b'ok', close=True), reuse=False),
    Early('early_200_reset', 'ended', cut(OK), reuse=False),
    Early('early_500', 'retry', response(500, b'sorry', close=True), reason='500'),
    Early('early_500_kept_open', 'retry', hold(response(500, b'sorry', close=True)), reason='500'),
    Early('early_403', 'dead', response(403, b'no', close=True), status=403),
    Early('early_403_kept_open', 'dead', half_close(response(403, b'no', close=True)), status=403),
    Early('early_continue_only', 'retry', close(head(status=b'HTTP/1.1 100 Continue'))),
    Early('early_noise', 'retry', close(bytes(range(256)) * 16)),
    Early('early_200_endless', 'ended', endless(head(), b'a' * 8192), reuse=False),
    Early('early_endless_interim', 'retry', endless(b'', head(status=b'HTTP/1.1 100 Continue')), short=True,
          reason='no answer'),
    Early('early_close', 'retry', close()),
    Early('early_reset', 'retry', cut()),
    Early('never_read', 'retry', lambda sock: time.sleep(4), short=True),
]
EARLY_413 = [
    Early('early_413', 'dead', cut(response(413, b'', close=True)), status=413),
    Early('early_413_without_length', 'dead', half_close(head(status=b'HTTP/1.1 413 Too Large') + b'no'), status=413),
]

# Servers that speak first, and other protocols.
PROTOCOLS = [
    Row('answer_before_request', 'ended', OK, greet=OK, reuse=False),
    Row('http_2_settings', 'retry', hold(b'\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x64\0\x04\0\x10\0\0'), reason=NOT_HTTP),
    Row('http_2_preface', 'retry', hold(b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'), reason=NOT_HTTP),
    Row('tls_alert', 'retry', hold(b'\x15\x03\x03\x00\x02\x02\x46'), reason=NOT_HTTP),
    Row('tls_handshake', 'retry', close(b'\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03' + b'r' * 40)),
    Row('smtp', 'retry', hold(b'500 5.5.1 unknown command\r\n'), greet=b'220 mail.example.com ESMTP ready\r\n'),
    Row('smtp_silent', 'retry', hold(), greet=b'220 mail.example.com ESMTP ready\r\n'),
    Row('ftp', 'retry', hold(b'500 Unknown command.\r\n' * 12), greet=b'220 (vsFTPd 3.0.5)\r\n'),
    Row('ssh', 'retry', close(b'Protocol mismatch.\n'), greet=b'SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n'),
    Row('mysql', 'retry', hold(), greet=b'\x4a\0\0\0\x0a8.0.36\0\x08\0\0\0' + bytes(range(60)), reason=NOT_HTTP),
    Row('redis', 'retry', hold(b"-ERR unknown command 'POST'\r\n"), reason=NOT_HTTP),
    Row('echo', 'retry', hold(b'POST /hook HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n\r\nhello'),
        reason=NOT_HTTP),
]

# Beneath https alone: what is no TLS, or breaks it.
TLS = [
    Port('plain_400', 'down', half_close(response(400, b'plain HTTP was sent to an HTTPS port', close=True))),
    Port('plain_200', 'down', hold(OK)),
    Port('end_before_hello', 'down', close()),
    Port('reset_before_hello', 'down', cut()),
    Port('silence_before_hello', 'down', hold(), short=True),
    Port('smtp_before_hello', 'down', hold(b'220 mail.example.com ESMTP ready\r\n')),
    Port('ssh_before_hello', 'down', hold(b'SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n')),
    Port('noise_before_hello', 'down', hold(bytes(range(255, -1, -1)) * 64)),
    Port('alert_handshake_failure', 'down', hold(b'\x15\x03\x03\x00\x02\x02\x28')),
    Port('alert_unrecognized_name', 'down', hold(b'\x15\x03\x03\x00\x02\x02\x70')),
    Port('alert_close_notify', 'down', half_close(b'\x15\x03\x03\x00\x02\x01\x00')),
    Port('alert_of_no_kind', 'down', hold(b'\x15\x03\x03\x00\x02\xff\xff'), short=True),
    Port('alert_of_16_kb', 'down', hold(b'\x15\x03\x03\x40\x00' + b'\x02' * 16384)),
    Port('alert_empty', 'down', hold(b'\x15\x03\x03\x00\x00')),
    Port('record_too_long', 'down', hold(b'\x16\x03\x03\xff\xff' + bytes(65535))),
    Port('record_of_data', 'down', hold(b'\x17\x03\x03\x00\x05hello')),
    Port('record_of_no_kind', 'down', hold(b'\xee\x03\x03\x00\x05hello')),
    Port('record_of_ssl_2', 'down', hold(b'\x80\x03\x00\x00\x01')),
    Port('record_of_ssl_3', 'down', hold(b'\x15\x03\x00\x00\x02\x02\x28')),
    Port('hello_cut', 'down', close(b'\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03' + b'r' * 40)),
    Port('hello_of_noise', 'down', hold(b'\x16\x03\x03\x00\x7a\x02\x00\x00\x76' + b'r' * 118)),
    Port('hello_of_16_mb', 'down', endless(b'\x16\x03\x03\x40\x00\x02\xff\xff\xff' + b'r' * 16380,
                                           b'\x16\x03\x03\x40\x00' + b'r' * 16384), short=True),
    Port('hello_by_the_byte', 'down', drip(b'\x16\x03\x03\x00\x7a\x02\x00\x00\x76' + b'r' * 100), short=True),
    Port('hello_request_endless', 'down', endless(b'', b'\x16\x03\x03\x00\x04\0\0\0\0' * 1000), short=True),
    Port('handshake_records_empty_endless', 'down', endless(b'', b'\x16\x03\x03\x00\x00' * 1000), short=True),
    Port('data_records_empty_endless', 'down', endless(b'', b'\x17\x03\x03\x00\x00' * 1000), short=True),
    Port('change_cipher_endless', 'down', endless(b'', b'\x14\x03\x03\x00\x01\x01' * 1000), short=True),
    Port('warnings_endless', 'down', endless(b'', b'\x15\x03\x03\x00\x02\x01\x5a' * 1000), short=True),
    Port('nuls_endless', 'down', endless(b'', bytes(8192)), short=True),

    Row('plain_text_instead_of_answer', 'retry', beneath(b'', OK)),
    Row('plain_text_in_head', 'retry', beneath(b'HTTP/1.1 200 OK\r\n', b'Content-Length: 0\r\n\r\n')),
    Row('plain_text_in_body', 'broken', beneath(head(b'Content-Length: 9'), b'plain text')),
    Row('plain_alert_in_head', 'retry', beneath(b'HTTP/1.1 200 OK\r\n', b'\x15\x03\x03\x00\x02\x02\x28')),
    Row('record_of_noise_in_head', 'retry', beneath(b'HTTP/1.1 200', b'\x17\x03\x03\x00\x40' + b'r' * 64)),
    Row('record_of_noise_in_body', 'broken', beneath(head(b'Content-Length: 9'), b'\x17\x03\x03\x00\x40' + b'r' * 64)),
    Row('record_of_noise_after_answer', 'ended', beneath(OK, b'\x17\x03\x03\x00\x40' + b'r' * 64), reuse=False),
    Row('record_cut_in_head', 'retry', beneath(b'HTTP/1.1 200', b'\x17\x03\x03\x00\x40' + b'r' * 9, close)),
    Row('record_cut_in_body', 'broken', beneath(head(b'Content-Length: 9'), b'\x17\x03\x03\x00\x40' + b'r' * 9, close)),
    Row('record_cut_after_answer', 'ended', beneath(OK, b'\x17\x03\x03\x00\x40' + b'r' * 9, close), reuse=False),
    Row('record_header_alone_in_head', 'retry', beneath(b'HTTP/1.1 200', b'\x17\x03\x03\x40\x00'), short=True),
    Row('record_by_the_byte', 'retry', beneath(b'HTTP/1.1 200', b'\x17\x03\x03\x00\x40' + b'r' * 40, drip), short=True),
    Row('record_too_long_in_head', 'retry', beneath(b'HTTP/1.1 200', b'\x17\x03\x03\xff\xff' + b'r' * 65535)),
    Row('change_cipher_in_head_endless', 'retry',
        beneath(b'HTTP/1.1 200', b'\x14\x03\x03\x00\x01\x01' * 1000, endless), short=True),
    Row('goodbye_before_answer', 'retry', goodbye(b'')),
    Row('goodbye_in_head', 'retry', goodbye(b'HTTP/1.1 200 OK\r\nContent-Len')),
    Row('goodbye_in_body', 'broken', goodbye(head(b'Content-Length: 9') + b'half')),
    Row('goodbye_in_chunks', 'broken', goodbye(head(CHUNKED) + b'9\r\nhalf')),
    Row('goodbye_ends_body', 'delivered', goodbye(head() + b'all of it'), reuse=False),
    Row('goodbye_after_answer', 'delivered', goodbye(OK), reuse=False),
    Row('goodbye_after_404', 'dead', goodbye(response(404)), status=404),
]

ANSWERS = {'interim': INTERIM, 'headers': HEADERS, 'status_line': STATUS_LINE, 'length': LENGTH,
           'until_close': UNTIL_CLOSE, 'chunks': CHUNKS, 'codings': CODINGS, 'statuses': STATUSES, 'early': EARLY,
           'early_413': EARLY_413, 'protocols': PROTOCOLS, 'tls': TLS}
SCHEMES = {'http': None, 'tls12': ssl.TLSVersion.TLSv1_2, 'tls13': ssl.TLSVersion.TLSv1_3}
SETTLED_S = 7       # within this every row has its verdict: no call may need the ten seconds that it has
at_work = threading.BoundedSemaphore(3)     # so many tests that need the processor at a time


class Site:
    """The server of one row, and its webhook, the program's failure `number`. Its checks have the name of the row."""

    def __init__(self, t, row, version, number):
        self.t = t
        self.row = row
        self.name = 'failure %d' % number
        self.played = threading.Event()
        self.let_go = threading.Event()     # the answer is over: whoever held the connection has closed it
        self._lock = threading.Lock()
        self._context = tls_context(version) if version else None
        self.receiver = t.receiver(self._answer, on_connect=self._connect, on_head=self._head)
        url = self.receiver.url('/hook')
        self.webhook = {'url': url, 'method': row.method, 'description': row.name}
        if version:
            self.webhook.update({'url': url.replace('http:', 'https:'), 'cert': trusting()})

    def check(self, what, ok, detail=''):
        return self.t.check('%s: %s' % (self.row.name, what), ok, detail)

    equal = harness.Test.equal
    require = harness.Test.require

    def letters(self, config_path):
        return self.t.letters(config_path)

    def _play(self, request, connection):
        """What the first one gets; None: it had its turn."""
        with self._lock:
            if self.played.is_set():
                return None
            self.played.set()
        play = resolve(self.row.play or close(), request, connection)
        if not callable(play):
            return play

        def wrapper(sock):
            try:
                play(sock)
            finally:
                self.let_go.set()
        return wrapper

    def _connect(self, connection):
        if self.row.raw:
            play = self._play(None, connection)
            if play is not None:
                return play
        if self._context:
            connection.sock = self._context.wrap_socket(connection.sock, server_side=True)
        if self.row.greet and connection.number == 1:
            connection.sock.sendall(self.row.greet)
        return None

    def _head(self, request, connection):
        return self._play(request, connection) if self.row.early else None

    def _answer(self, request, connection):
        return self._play(request, connection) or OK

    def judge(self, program, by):
        """The first alert: its verdict, before the time `by`. Sets how many requests that took."""
        row = self.row
        left = max(0.1, (by - time.monotonic()) / harness.SLOW)
        self.attempts = 1
        if row.verdict in ('delivered', 'broken', 'ended'):
            wait_delivered(self, program, 1, self.name, row.status, 1, left)
        elif row.verdict == 'retry':
            reason = wait_attempt(self, program, 1, self.name, 1, left)
            self.require('the first attempt failed', reason)
            self.check('the reason is %r' % row.reason, re.search(row.reason, reason), reason)
            wait_delivered(self, program, 1, self.name, attempt=2)
            self.attempts = 2
        elif row.verdict == 'dead':
            count, text, event = wait_given_up(self, program, 1, self.name, left)
            self.equal('attempts of the dead letter', count, 1)
            self.check('the dead letter names the status', str(row.status) in text, text)
            self.check('the dead letter holds the alert', event.get('logMessage') == row.message and
                       event['taskName'] == 'first', repr(event)[:300])
        else:
            reason = wait_down(self, program, self.name, left)
            self.check('the reason is %r' % row.reason, re.search(row.reason, reason), reason)
            wait_up(self, program, self.name)
            wait_delivered(self, program, 1, self.name)
        requests = self.receiver.wait(self.attempts)
        self.require('the attempts arrived', len(requests) == self.attempts,
                     '%d instead of %d' % (len(requests), self.attempts))
        self.equal('the same webhook-id each time', len(set(ids(requests))), 1)
        if row.verdict == 'retry':
            self.check('the retry has a connection of its own', requests[0].connection != requests[1].connection)
            if row.method == 'POST' and not row.early:
                self.check('the retry has the same body', requests[0].body == requests[1].body)

    def judge_next(self, program):
        """The second alert arrives, on the right connection, and nothing else was said."""
        row = self.row
        wait_delivered(self, program, 2, self.name)
        requests = self.receiver.wait(self.attempts + 1)
        self.equal('the alerts that arrived, attempt by attempt', len(requests), self.attempts + 1)
        if row.reuse is not None:
            self.equal('the second alert comes on the same connection',
                       requests[0].connection == requests[-1].connection, row.reuse)
        if row.reuse is not True and self.let_go_is_due():
            self.check('the connection is closed', self.let_go.wait(SETTLED_S * harness.SLOW))
        said = program.lines(name_pattern(self.name))
        if row.verdict not in ('broken', 'ended'):
            self.check('no word of a broken answer', 'answer was broken' not in '\n'.join(said), said)
        if row.verdict != 'down':
            self.check('the webhook is not down', ' is down: ' not in '\n'.join(said), said)

    def let_go_is_due(self):
        return callable(self.row.play) and not getattr(self.row.play, 'wants_request', False)


def answers_test(rows, version):
    def test(t):
        """All rows in one configuration, each a webhook of its own."""
        sites = [Site(t, row, version, i + 1) for i, row in enumerate(rows)]
        path, _ = t.config([site.webhook for site in sites], butlerWebhook={} if rows[0].short else harness.PATIENT)
        program = t.start(path, binary=t.binary_test if rows[0].short else t.binary)

        def each(judge, *args):
            for site in sites:
                try:
                    judge(site, program, *args)
                except harness.Abort:
                    t.require('the program runs', program.running(), program.stderr[-500:])

        with at_work if version and not rows[0].short else contextlib.nullcontext():
            program.send(datagram(task='first', message=rows[0].message))
            each(Site.judge, time.monotonic() + SETTLED_S * harness.SLOW)
            wait_rest(program)      # until the connections have come to rest a second one would be right anyway
            program.send(datagram(task='second'))
            each(Site.judge_next)
        dead = len([row for row in rows if row.verdict == 'dead'])
        end(t, program, received=2, accepted=2, delivered=2 * len(rows) - dead, given_up=dead, lost=0)
    return test


def answer_sets():
    for name, rows in ANSWERS.items():
        for scheme, version in SCHEMES.items():
            for short in (False, True):
                some = [row for row in rows if row.short == short and (version or rows is not TLS)]
                if some:
                    yield pytest.param(some, version, id='%s-%s%s' % (name, scheme, '-slow' * short))


@pytest.mark.parametrize('rows, version', answer_sets())
def test_answers(t, rows, version):
    answers_test(rows, version)(t)


def test_answers_after_many_tickets(t):
    """A server may send as many session tickets before its answer as it likes."""
    counts = (0, 1, 100, 1000)
    receivers = [t.receiver(ssl_context=tls_context(ssl.TLSVersion.TLSv1_3, count)) for count in counts]
    path, _ = t.config([hook(receiver, description='%d tickets' % count) for count, receiver in zip(counts, receivers)])
    program = t.start(path)
    for number in (1, 2, 3):
        program.send(datagram())
        for i in range(len(counts)):
            wait_delivered(t, program, number, 'failure %d' % (i + 1), attempt=1)
        time.sleep(0.5)
    t.equal('connections', [len(receiver.connections) for receiver in receivers], [1] * len(counts))
    end(t, program, delivered=3 * len(counts), given_up=0, lost=0)


def test_answers_with_another_certificate(t):
    """The server's certificate is another one on the next connection: no session makes up for that."""
    other = servers.good('B').context()
    receiver = t.receiver(response(200, b'ok', close=True), ssl_context=tls_context())
    path, _ = t.config([hook(receiver)])
    program = t.start(path)
    program.send(datagram(task='first'))
    wait_delivered(t, program, 1, attempt=1)
    receiver.ssl_context = other
    program.send(datagram(task='second'))
    reason = wait_down(t, program)
    t.check('the certificate is the reason', 'not trusted' in reason, reason)
    receiver.ssl_context = tls_context()
    wait_up(t, program)
    wait_delivered(t, program, 2)
    t.equal('the alerts that arrived', names(receiver.wait(2)), ['first', 'second'])
    end(t, program, delivered=2, given_up=0, lost=0)


def new_keys_test(command):
    def test(t):
        """The server changes its keys twenty times before it answers: the alert arrives, be it with a retry."""
        asking = t.add(servers.OpensslServer(servers.good(), '-tls1_3', answer=lambda request, number:
                                             [command] * 20 + [OK] if number == 1 else OK))
        path, _ = t.config([servers.webhook(asking.url(), servers.root())])
        program = t.start(path)
        program.send(datagram())
        wait_delivered(t, program, 1, timeout=20)
        t.equal('one webhook-id', len(set(ids(asking.requests))), 1)
        time.sleep(2.5)
        program.send(datagram())
        wait_delivered(t, program, 2)
        end(t, program, delivered=2, given_up=0, lost=0)
    return test


test_answers_after_key_updates = new_keys_test(b'k\n')
test_answers_after_key_updates_requested = new_keys_test(b'K\n')


@both
def test_answer_memory(t, scheme):
    """Answers without end do not fill the memory."""
    if SANITIZED:
        t.skip('the sanitizers need memory of their own')
    plays = [endless(b'HTTP/1.1 200 OK\r\n', b'X-A: a\r\n' * 1000),
             endless(head(CHUNKED), b'2000\r\n' + b'a' * 8192 + b'\r\n'),
             endless(head(), b'a' * 65536), endless(b'', b'a' * 65536),
             endless(head(CHUNKED) + b'0\r\n', b'X: y\r\n' * 1000),
             endless(b'', head(status=b'HTTP/1.1 102 Processing')),
             endless(head(status=b'HTTP/1.1 500 No'), b'a' * 65536),
             endless(head(b'Content-Length: 100000000000'), b'a' * 65536)]
    receiver = server(t, scheme, by_path({'/%d' % i: play for i, play in enumerate(plays)}))
    path, _ = t.config([hook(receiver, '/%d' % i) for i in range(len(plays))])
    program = t.start(path)
    send_many(program, 4)
    wait_accepted(t, program, 4)
    receiver.wait(len(plays) * 4)
    time.sleep(3)
    t.check('memory stays small', memory_kb(program) < 40000 + harness.SYSTEM.memory_kb, '%d kB' % memory_kb(program))
    stop(t, program)


# ---- Statuses -------------------------------------------------------------------------------------------------------

HINTS = {401: 'credentials', 403: 'credentials', 404: 'webhookURL', 410: 'webhookURL', 407: 'proxy'}
DEAD = [300, 304, 305, 306, 399, 400, 401, 402, 403, 404, 405, 406, 407, 409, 410, 411, 412, 413, 414, 415, 418, 421,
        422, 426, 428, 431, 451, 499]
RETRIED = [408, 425, 500, 501, 502, 503, 504, 505, 507, 508, 511, 520, 599]


@both
def test_status_dead_letters(t, scheme):
    receiver = server(t, scheme, by_path({'/%d' % status: [response(status, b'')] for status in DEAD}))
    path, _ = t.config([hook(receiver, '/%d?token=secret' % status, description='says %d' % status)
                        for status in DEAD])
    program = t.start(path)
    program.send(datagram(task='one "quoted"', message='line one\nline two'))
    for i, status in enumerate(DEAD):
        count, text, event = wait_given_up(t, program, 1, 'failure %d' % (i + 1))
        t.equal('%d: attempts' % status, count, 1)
        t.check('%d: the text names the status' % status, str(status) in text, text)
        t.check('%d: the hint' % status, HINTS.get(status, '') in text.partition(';')[2], text)
        t.equal('%d: fields' % status, list(event), FIELDS)
        t.equal('%d: message' % status, event.get('logMessage'), 'line one\nline two')
    t.equal('requests', len(receiver.wait(len(DEAD))), len(DEAD))
    t.check('the log does not hold the value of a query', 'secret' not in program.stdout)
    program.send(datagram(task='two'))
    for i in range(len(DEAD)):
        wait_delivered(t, program, 2, 'failure %d' % (i + 1))
    end(t, program, accepted=2, delivered=len(DEAD), given_up=len(DEAD), lost=0)


@both
def test_status_retried(t, scheme):
    receiver = server(t, scheme, by_path({'/%d' % status: [response(status, b'later')] for status in RETRIED}))
    path, _ = t.config([hook(receiver, '/%d' % status) for status in RETRIED])
    program = t.start(path)
    program.send(datagram())
    for i, status in enumerate(RETRIED):
        webhook = 'failure %d' % (i + 1)
        t.check('%d: the reason names it' % status, str(status) in wait_attempt(t, program, 1, webhook))
        wait_delivered(t, program, 1, webhook, attempt=2)
        requests = [request for request in receiver.requests if request.path == '/%d' % status]
        t.equal('%d: requests' % status, len(requests), 2)
        t.equal('%d: one webhook-id' % status, len(set(ids(requests))), 1)
        times = [int(request.get('webhook-timestamp')) for request in requests]
        t.check('%d: the time of each attempt' % status, times[0] <= times[1] <= time.time()
                and times[0] > time.time() - 60, times)
    t.check('nothing is down', not program.lines(' is down'), program.lines(' is down'))
    end(t, program, delivered=len(RETRIED), given_up=0, lost=0)


def test_status_retry_backoff(t):
    """The wait grows, and the alerts behind do not wait."""
    bad = response(500)

    def answer(request, connection):
        return bad if request.event()['taskName'] == 'stuck' and len(stuck()) <= 3 else OK

    def stuck():
        return [request for request in receiver.requests if request.event()['taskName'] == 'stuck']

    receiver = t.receiver(answer)
    path, _ = t.config([{'url': receiver.url()}])
    program = t.start(path)
    program.send(datagram(task='stuck'))
    wait_attempt(t, program, 1)
    begin = time.monotonic()
    sent = send_many(program, 20)
    program.wait_log(delivered_pattern(21))
    wait_until(lambda: len(set(names(receiver.requests))) == 21)
    t.check('the others do not wait', time.monotonic() - begin < 3 * harness.SLOW)
    wait_delivered(t, program, 1, attempt=4, timeout=20)
    waits = [float(re.search(r'next in ([0-9.]+) s', line).group(1)) for line in program.lines(r'alert 1 to failure 1')]
    t.equal('number of waits', len(waits), 3)
    t.check('the waits are at most 1, 2 and 4 s', all(wait <= most for wait, most in zip(waits, (1.05, 2.05, 4.05))),
            waits)
    t.equal('one webhook-id', len(set(ids(stuck()))), 1)
    once_each(t, 'the others arrived once', [r for r in receiver.requests if r.event()['taskName'] != 'stuck'], sent)
    t.check('answers with 500 to one alert do not make it down', not program.lines(' is down'))
    end(t, program, delivered=21, given_up=0, lost=0)


# ---- Redirects ------------------------------------------------------------------------------------------------------


def followed(status, method):
    return status in (307, 308) or (status in (301, 302) and method != 'POST') or (status == 303 and method == 'GET')


@both
def test_redirect_statuses(t, scheme):
    """Each status with each method: followed with the same request, or a dead letter that says what to change."""
    rows = [(status, method, '/%d/%s' % (status, method)) for status in (301, 302, 303, 307, 308)
            for method in ('GET', 'POST', 'PUT')]
    receiver = server(t, scheme, by_path({start: location(status, '/landed' + start) for status, _, start in rows}))
    path, _ = t.config([hook(receiver, start, method=method) for _, method, start in rows])
    program = t.start(path)
    program.send(datagram(message='a message'))
    for i, (status, method, start) in enumerate(rows):
        name = 'failure %d' % (i + 1)
        if followed(status, method):
            wait_delivered(t, program, 1, name, attempt=1)
            continue
        count, text, event = wait_given_up(t, program, 1, name)
        t.equal('%s: attempts' % start, count, 1)
        t.check('%s: the new URL and what to do' % start, 'moved to ' + receiver.url('/landed' + start) in text
                and 'change webhookURL' in text, text)
        t.equal('%s: the alert' % start, [event], [r.json() for r in receiver.requests if r.path == start])
    count = len([1 for status, method, _ in rows if followed(status, method)])
    requests = receiver.wait(len(rows) + count)
    end(t, program, delivered=count, given_up=len(rows) - count, lost=0)
    for status, method, start in rows:
        pair = [r for r in requests if r.path in (start, '/landed' + start)]
        if not t.equal('%s: requests' % start, [r.path for r in pair],
                       [start, '/landed' + start] if followed(status, method) else [start]) or len(pair) < 2:
            continue
        first, second = pair
        t.equal('%s: method' % start, (first.method, second.method), (method, method))
        t.equal('%s: body' % start, second.body, first.body)
        t.equal('%s: query' % start, second.target.partition('?')[2], first.target.partition('?')[2])
        t.equal('%s: fields' % start, list(second.event()), FIELDS)
        t.equal('%s: message' % start, second.event().get('logMessage'), 'a message')
        for header in ('webhook-id', 'Content-Type', 'Content-Length', 'User-Agent', 'Accept', 'Host'):
            t.equal('%s: %s' % (start, header), second.get(header), first.get(header))


@both
def test_redirect_chain(t, scheme):
    """Five are followed, six are not."""
    table = {'/five/%d' % i: location(307, '/five/%d' % (i + 1)) for i in range(5)}
    table.update({'/six/%d' % i: location(307, '/six/%d' % (i + 1)) for i in range(6)})
    receiver = server(t, scheme, by_path(table))
    path, _ = t.config([hook(receiver, '/five/0'), hook(receiver, '/six/0')])
    program = t.start(path)
    program.send(datagram())
    wait_delivered(t, program, 1, 'failure 1', attempt=1)
    count, text, _ = wait_given_up(t, program, 1, 'failure 2')
    t.equal('attempts', count, 1)
    t.check('the text speaks of redirects', re.search(r'redirect', text), text)
    requests = receiver.wait(12)
    t.equal('five', [r.path for r in requests if r.path.startswith('/five')], ['/five/%d' % i for i in range(6)])
    t.equal('six', [r.path for r in requests if r.path.startswith('/six')], ['/six/%d' % i for i in range(6)])
    end(t, program, delivered=1, given_up=1)


@both
def test_redirect_loops(t, scheme):
    receiver = server(t, scheme)
    other = t.receiver() if scheme == 'http' else receiver      # a CA of the configuration counts for one origin
    receiver.answer = other.answer = by_path({'/self': location(308, '/self'), '/ping': location(302, '/pong'),
                                              '/pong': location(302, '/ping'), '/hash': location(307, '#here'),
                                              '/across': location(307, other.url('/back')),
                                              '/back': location(307, receiver.url('/across'))})
    path, _ = t.config([hook(receiver, '/self'), hook(receiver, '/ping', method='GET'), hook(receiver, '/hash'),
                        hook(receiver, '/across', method='PUT')])
    program = t.start(path)
    program.send(datagram())
    for i in range(4):
        count, _, event = wait_given_up(t, program, 1, 'failure %d' % (i + 1))
        t.equal('attempts', count, 1)
        t.equal('fields', list(event), FIELDS)
    requests = receiver.requests + (other.requests if other is not receiver else [])
    for paths in (('/self',), ('/ping', '/pong'), ('/hash',), ('/across', '/back')):
        t.equal('requests for %s' % paths[0], len([r for r in requests if r.path in paths]), 6)
    t.check('the query of a loop does not grow', all(len(r.params()) == len(FIELDS) for r in requests
                                                     if r.method == 'GET'))
    end(t, program, given_up=4)


@both
def test_redirect_relative(t, scheme):
    """Every form of a Location, from /N/dir/start?own=1, N being the row."""
    receiver = server(t, scheme)
    forms = [
        ('/abs', '/abs'), ('name', '/%d/dir/name'), ('./name', '/%d/dir/name'), ('../name', '/%d/name'),
        ('../../name', '/name'), ('../../../../name', '/name'), ('sub/../name', '/%d/dir/name'), ('.', '/%d/dir/'),
        ('..', '/%d/'), ('name/', '/%d/dir/name/'), ('?a=1', '/%d/dir/start?a=1'), ('?', '/%d/dir/start?'),
        ('//%s/rel' % receiver.authority, '/rel'), (receiver.url('/whole'), '/whole'),
        (receiver.url('/whole?x=1#part'), '/whole?x=1'), ('/path#part', '/path'), (receiver.url(''), '/'),
        (receiver.url('?x=1'), '/?x=1'), (receiver.url('/upper').replace('http', 'HTTP'), '/upper'),
        ('/a b', '/a%20b'), ('/\xe5'.encode(), '/%C3%A5'), ('/%c3%a5', '/%c3%a5'), ('/100%', '/100%'),
        ('/a/./b/../c', '/a/c'),
        ('/a"b<c>d', '/a%22b%3Cc%3Ed'),
        ('/q?a b"<>', '/q?a%20b%22%3C%3E'),
        ('/trailing   ', '/trailing'), ("/it's;v=1,2(3)!$&*+=:@~", "/it's;v=1,2(3)!$&*+=:@~"),
        ('?next=http://a/b', '/%d/dir/start?next=http://a/b'),
        ('/a//b', '/a//b'),
        ('/' + 'x' * 8000, '/' + 'x' * 8000),
        ('   /indented', '/indented'), ('//bob:pw@%s/own' % receiver.authority, '/own'),
    ]
    starts = {}

    def answer(request, connection):
        form = starts.get(request.target)
        return OK if form is None else location(307, form)

    for i, (form, _) in enumerate(forms):
        starts['/%d/dir/start?own=1' % i] = form
    receiver.answer = answer
    path, _ = t.config([hook(receiver, '/%d/dir/start?own=1' % i) for i in range(len(forms))])
    program = t.start(path)
    program.send(datagram())
    webhook_ids = {}
    for i, (form, wanted) in enumerate(forms):
        wait_delivered(t, program, 1, 'failure %d' % (i + 1))
    for request in receiver.wait(2 * len(forms)):
        webhook_ids.setdefault(request.get('webhook-id'), []).append(request.target)
    landed = {targets[0]: targets[1:] for targets in webhook_ids.values()}
    for i, (form, wanted) in enumerate(forms):
        t.equal('Location %r leads to' % form[:60], landed.get('/%d/dir/start?own=1' % i),
                [wanted % i if wanted.startswith('/%d') else wanted])
    stop(t, program)


def test_redirect_get_fields(t):
    """The fields are added to a GET's new query, unless it has them already."""
    def echo(request, connection):
        return location(302, '/landed' + request.target[len('/echo'):])

    echo.wants_request = True
    rows = [
        ('/none', '/landed', []),
        ('/own', '/landed?x=1&y=', [('x', '1'), ('y', '')]),
        ('/event', '/landed?event=mine', [('event', 'mine')]),
        ('/mark', '/landed?', []),
        ('/hash', '/landed?x=1#executionId=2', [('x', '1')]),
    ]
    receiver = t.receiver()
    answers = by_path({start: location(302, target) for start, target, _ in rows})
    receiver.answer = lambda request, connection: \
        echo(request, connection) if request.path == '/echo' else answers(request, connection)
    path, _ = t.config([{'url': receiver.url(start + '?old=1'), 'method': 'GET'} for start, _, _ in rows] +
                       [{'url': receiver.url('/echo'), 'method': 'GET'}])
    program = t.start(path)
    program.send(datagram(task='a & b', message='50 % = half'))
    for i in range(len(rows) + 1):
        wait_delivered(t, program, 1, 'failure %d' % (i + 1))
    by_id = {}
    for request in receiver.wait(2 * len(rows) + 2):
        by_id.setdefault(request.get('webhook-id'), []).append(request)
    pairs = {requests[0].path: requests for requests in by_id.values()}
    for start, target, more in rows + [('/echo', '', [])]:
        requests = pairs.get(start, [])
        if not t.check('%s is followed' % start, len(requests) == 2, len(requests)):
            continue
        want = [(name, value) for name, value in requests[0].params() if name != 'old']
        got = requests[1].params()
        t.equal('%s: every field once' % start, sorted(got), sorted(want + more))
        t.check('%s: what was there comes first' % start, requests[1].target.startswith(target.partition('#')[0]),
                requests[1].target)
    t.equal('a query that is already whole stays as it is', pairs['/echo'][1].target,
            pairs['/echo'][0].target.replace('/echo', '/landed'))
    stop(t, program)


def test_redirect_post_adds_no_fields(t):
    receiver = t.receiver(by_path({'/start': location(307, '/landed?x=1')}))
    path, _ = t.config([{'url': receiver.url('/start?own=1'), 'method': method} for method in ('POST', 'PUT')])
    program = t.start(path)
    program.send(datagram())
    requests = receiver.wait(4)
    t.equal('targets', sorted(r.target for r in requests), ['/landed?x=1', '/landed?x=1', '/start?own=1',
                                                            '/start?own=1'])
    t.equal('bodies', len(set(r.body for r in requests)), 1)


def test_redirect_authorization(t):
    """A password goes along within the origin; once there is one, nothing goes to another port."""
    other = t.receiver()
    receiver = t.receiver(by_path({'/same': location(307, '/landed'), '/other': location(307, other.url('/landed')),
                                   '/get': location(302, other.url('/landed')),
                                   '/far': location(308, '/other')}))
    path, _ = t.config([{'url': receiver.url('/same', 'bob:secret')}, {'url': receiver.url('/other', 'bob:secret')},
                        {'url': receiver.url('/get', 'bob:secret'), 'method': 'GET'},
                        {'url': receiver.url('/far', 'bob:secret'), 'method': 'PUT'}, {'url': receiver.url('/other')}])
    program = t.start(path)
    program.send(datagram())
    wait_delivered(t, program, 1, 'failure 1', attempt=1)
    for i in (2, 3, 4):
        count, text, event = wait_given_up(t, program, 1, 'failure %d' % i)
        t.equal('attempts', count, 1)
        t.check('the new URL and what to do', 'moved to ' + other.url('/landed') in text and 'change webhookURL' in text, text)
        t.equal('the alert', list(event), FIELDS)
    wait_delivered(t, program, 1, 'failure 5', attempt=1)
    basic = 'Basic ' + base64.b64encode(b'bob:secret').decode()
    requests = receiver.wait(7)
    t.equal('within the origin', sorted(r.get('Authorization') or '' for r in requests), [''] + [basic] * 6)
    t.equal('who has no password may go to another port', [(r.method, r.target, r.get('Authorization'), r.get('Host'))
                                                           for r in other.wait(1)], [('POST', '/landed', None, other.authority)])
    end(t, program, delivered=2, given_up=3, lost=0)
    t.check('the password is not in the log', 'secret' not in program.stdout)


@both
def test_redirect_to_another_host(t, scheme):
    """Nothing goes to a host that the configuration does not name, also if that is the same machine: the new URL is told."""
    receiver = server(t, scheme)
    inner = t.receiver()
    targets = ['%s://localhost:%d/x' % (scheme, receiver.port), '%s://127.0.0.2:%d/x' % (scheme, receiver.port),
               '//[::1]:%d/x' % receiver.port, 'https://hooks.invalid/new',
               'https://192.0.2.1/latest/meta', 'https://127.0.0.1.invalid/x', '//localhost:%d/' % inner.port]
    kinds = [(307, 'POST'), (302, 'GET'), (301, 'PUT')]
    receiver.answer = by_path({'/%d/%d' % (status, i): location(status, target)
                               for status, _ in kinds for i, target in enumerate(targets)})
    path, _ = t.config([hook(receiver, '/%d/%d' % (status, i), method=method)
                        for status, method in kinds for i in range(len(targets))] + [hook(receiver, '/good')])
    program = t.start(path)
    program.send(datagram())
    for i, (status, target) in enumerate((status, target) for status, _ in kinds for target in targets):
        what = '%d, %s' % (status, target)
        count, text, event = wait_given_up(t, program, 1, 'failure %d' % (i + 1))
        t.equal('%s: attempts' % what, count, 1)
        host = target.partition('//')[2].split('/')[0].split(':')[0]
        t.check('%s: the new URL and what to do' % what,
                'moved to http' in text and host in text and 'change webhookURL' in text, text)
        t.equal('%s: fields' % what, list(event), FIELDS)
    wait_delivered(t, program, 1, 'failure %d' % (len(kinds) * len(targets) + 1))
    end(t, program, given_up=len(kinds) * len(targets), delivered=1, lost=0)
    t.equal('requests', len(receiver.requests), len(kinds) * len(targets) + 1)
    t.equal('requests elsewhere', len(inner.requests), 0)


@both
def test_redirect_bad_location(t, scheme):
    rows = [('none',), ('empty', ''), ('spaces', '   '), ('two', '/a', '/b'), ('two the same', '/a', '/a'),
            ('file', 'file:///etc/passwd'),
            ('file short', 'file:/etc/passwd'), ('data', 'data:text/plain,hello'),
            ('javascript', 'javascript:alert(1)'),
            ('ftp', 'ftp://127.0.0.1/x'), ('gopher', 'gopher://127.0.0.1:25/x'), ('mailto', 'mailto:a@example.com'),
            ('open bracket', 'http://[::1'), ('no host', 'http://'), ('no host but port', 'http://:80/'),
            ('port too large', 'http://127.0.0.1:99999/'), ('port of letters', 'http://127.0.0.1:http/'),
            ('space in host', 'http://a b/'), ('number too large', 'http://127.0.0.256/'),
            ('not IPv6', 'http://[1::2::3]/'),
            ('percent in host', 'http://a%00b/'), ('websocket', 'ws://127.0.0.1/'),
            ('host of 300 letters', 'http://%s/' % ('a' * 300)),
            ('angle brackets', 'http://<host>/'), ('9 KB', '/' + 'x' * 9000), ('60 KB', '/' + 'x' * 61440),
            ('port 0', '%s://127.0.0.1:0/' % scheme), ('port negative', 'http://127.0.0.1:-1/'),
            ('port 65536', 'http://127.0.0.1:65536/'), ('two ports', 'http://127.0.0.1:80:80/'),
            ('two hosts', 'http://a@b@c@/'), ('no slashes', scheme + ':name'), ('one slash', scheme + ':/name'),
            ('backslashes', '\\\\127.0.0.1\\x'), ('hexadecimal', '%s://0x7f.1/' % scheme),
            ('IDN', 'http://b\xfccher.example/'.encode()),
            ('percent-encoded host', scheme + '://%31%32%37.0.0.1/')]
    kinds = [(307, 'POST'), (302, 'GET'), (301, 'POST')]
    receiver = server(t, scheme, by_path({'/%d/%d' % (status, i): location(status, *row[1:])
                                          for status, _ in kinds for i, row in enumerate(rows)}))
    path, _ = t.config([hook(receiver, '/%d/%d' % (status, i), method=method)
                        for status, method in kinds for i in range(len(rows))], butlerWebhook=harness.PATIENT)
    program = t.start(path)
    program.send(datagram())
    for i, (status, row) in enumerate((status, row) for status, _ in kinds for row in rows):
        what = '%d, %s' % (status, row[0])
        count, text, event = wait_given_up(t, program, 1, 'failure %d' % (i + 1))
        t.equal('%s: attempts' % what, count, 1)
        t.check('%s: the text names the status' % what, str(status) in text, text)
        t.equal('%s: fields' % what, list(event), FIELDS)
    t.equal('no request but the first of each', len(receiver.requests), len(kinds) * len(rows))
    t.check('nothing is down', not program.lines(' is down'), program.lines(' is down'))
    end(t, program, given_up=len(kinds) * len(rows), delivered=0)


def test_redirect_location_with_control_characters(t):
    """What would split a request never reaches the next server, and never the log."""
    receiver = t.receiver(by_path({'/tab': location(307, b'/a\tb'), '/escape': location(307, b'/a\x1b[2Jb'),
                                   '/high': location(307, b'/a\xff\xfeb'),
                                   '/moved': location(302, b'/a\x1b[2J\xff\x85b')}))
    path, _ = t.config([{'url': receiver.url('/' + name)} for name in ('tab', 'escape', 'high', 'moved')])
    program = t.start(path)
    program.send(datagram())
    for i in range(4):
        t.check('webhook %d comes to an end' % (i + 1),
                program.wait_log(r'alert 1 (delivered to|given up for) failure %d\b' % (i + 1)), program.log[-4:])
    for request in receiver.requests:
        t.check('request lines are plain ASCII', re.fullmatch(r'POST /[!-~]* HTTP/1\.1', request.line),
                repr(request.line))
    stop(t, program)


def test_redirect_moved_hides_secrets(t):
    target = 'http://bob:hidden@hooks.example.com/new?token=hidden#frag'
    receiver = t.receiver(by_path({'/start': location(301, target)}))
    path, _ = t.config([{'url': receiver.url('/start')}])
    program = t.start(path)
    program.send(datagram())
    _, text, _ = wait_given_up(t, program, 1)
    t.check('the new URL is named', re.search(r'moved to http://hooks\.example\.com/new\b', text), text)
    t.check('without its secrets', 'hidden' not in program.stdout, text)


@both
def test_redirect_then_failure(t, scheme):
    """What the second server says counts; the retry begins at the first."""
    receiver = server(t, scheme, by_path({'/start': location(307, '/busy'), '/busy': [response(500), response(503)],
                                          '/gate': location(308, '/denied'), '/denied': response(401),
                                          '/door': location(307, '/cut', close_after=True), '/cut': [None]}))
    path, _ = t.config([hook(receiver, path) for path in ('/start', '/gate', '/door')])
    program = t.start(path)
    program.send(datagram())
    wait_delivered(t, program, 1, 'failure 1', attempt=3)
    _, text, _ = wait_given_up(t, program, 1, 'failure 2')
    t.check('status and hint', '401' in text and 'credentials' in text, text)
    wait_delivered(t, program, 1, 'failure 3', attempt=2)
    requests = receiver.wait(12)
    t.equal('requests to /start and /busy', [r.path for r in requests if r.path in ('/start', '/busy')],
            ['/start', '/busy'] * 3)
    t.equal('one webhook-id', len(set(ids(r for r in requests if r.path in ('/start', '/busy')))), 1)
    t.equal('requests to /door and /cut', [r.path for r in requests if r.path in ('/door', '/cut')],
            ['/door', '/cut'] * 2)


@both
def test_redirect_with_a_body(t, scheme):
    """The body of a redirect does not matter, however odd it is."""
    moved = b'HTTP/1.1 307 Moved'
    rows = {'/length': head(b'Location: /landed', b'Content-Length: 5', status=moved) + b'hello',
            '/chunked': head(b'Location: /landed', CHUNKED, status=moved) + b'5\r\nhello\r\n0\r\n\r\n',
            '/close': close(head(b'Location: /landed', status=moved) + b'hello'),
            '/endless': endless(head(b'Location: /landed', status=moved), b'a' * 8192),
            '/broken': hold(head(b'Location: /landed', CHUNKED, status=moved) + b'zz\r\n'),
            '/short': close(head(b'Location: /landed', b'Content-Length: 50', status=moved)),
            '/hold': hold(head(b'Location: /landed', b'Content-Length: 50', status=moved))}
    receiver = server(t, scheme, by_path(rows))
    path, _ = t.config([hook(receiver, start) for start in rows])
    program = t.start(path)
    program.send(datagram())
    for i in range(len(rows)):
        wait_delivered(t, program, 1, 'failure %d' % (i + 1), attempt=1)
    t.equal('requests', len(receiver.wait(2 * len(rows))), 2 * len(rows))
    t.equal('one body', len(set(r.body for r in receiver.requests)), 1)
    end(t, program, delivered=len(rows), given_up=0, lost=0)


def test_redirect_to_nobody(t):
    """The new place refuses: the alert is kept, and arrives when somebody is there."""
    port = t.port()
    receiver = t.receiver(by_path({'/start': location(307, 'http://127.0.0.1:%d/landed' % port)}))
    path, _ = t.config([{'url': receiver.url('/start')}])
    program = t.start(path)
    program.send(datagram())
    t.check('the log says so', program.wait_log(r'(?i)warn: .*failure 1\b(?=.*refused).*127\.0\.0\.1:%d' % port),
            program.log[-3:])
    late = t.receiver(port=port)
    wait_delivered(t, program, 1, timeout=30)
    t.equal('arrived', len(late.wait(1)), 1)
    t.equal('one webhook-id', len(set(ids(receiver.requests + late.requests))), 1)
    end(t, program, delivered=1, given_up=0, lost=0)


def test_redirect_https_to_http(t):
    plain = t.receiver()
    receiver = tls_receiver(t, lambda request, connection: location(302, plain.url('/plain')))
    path, _ = t.config([{'url': receiver.url('/start'), 'method': method, 'cert': trusting()}
                        for method in ('GET', 'PUT')])
    program = t.start(path)
    program.send(datagram())
    for i in (1, 2):
        count, text, _ = wait_given_up(t, program, 1, 'failure %d' % i)
        t.equal('attempts', count, 1)
        t.check('the text says why', re.search(r'https', text), text)
    end(t, program, given_up=2, delivered=0)
    t.equal('requests without TLS', len(plain.requests), 0)


def test_redirect_trust(t):
    """What a webhook trusts counts for each port of its host; another certificate than that does not count there, either."""
    other = tls_receiver(t)
    stranger = t.receiver(ssl_context=servers.good('B').context())
    receiver = tls_receiver(t, by_path({'/same': location(307, '/landed'), '/other': location(307, other.url('/landed')),
                                        '/stranger': location(307, stranger.url('/landed'))}))
    unchecked = {'enable': False, 'rejectUnauthorized': False, 'certCA': ''}
    path, _ = t.config([{'url': receiver.url('/same', 'bob:secret'), 'cert': trusting()},
                        {'url': receiver.url('/same'), 'cert': unchecked},
                        {'url': receiver.url('/other'), 'cert': trusting()},
                        {'url': receiver.url('/stranger'), 'cert': trusting()}])
    program = t.start(path)
    program.send(datagram())
    for i in (1, 2, 3):
        wait_delivered(t, program, 1, 'failure %d' % i, attempt=1)
    t.check('the stranger is not trusted', program.wait_log(r'failure 4\b.*not trusted'), program.log[-4:])
    stop(t, program)
    t.equal('requests to the other', [r.path for r in other.requests], ['/landed'])
    t.equal('requests to the stranger', len(stranger.requests), 0)
    t.equal('Authorization within the origin', len([r for r in receiver.requests if r.get('Authorization')]), 2)


def test_redirect_to_untrusted_certificate(t):
    """From http to https: the certificate is checked there, too, and the alert waits until it can be trusted."""
    other = tls_receiver(t)
    receiver = t.receiver(by_path({'/start': [location(307, other.url('/landed'))] * 2}))
    path, _ = t.config([hook(receiver, '/start'), hook(receiver, '/start', method='GET')])
    program = t.start(path)
    program.send(datagram())
    for number in (1, 2):
        reason = wait_down(t, program, 'failure %d' % number)
        t.check('the certificate is the reason', 'not trusted' in reason, reason)
        wait_delivered(t, program, 1, 'failure %d' % number, timeout=20)
    t.equal('requests past the check', len(other.requests), 0)
    end(t, program, delivered=2, given_up=0, lost=0)


def test_redirect_to_https_with_own_ca(t):
    """From http to https: certCA counts there, if the entry names one and cert.enable is true."""
    other = tls_receiver(t)
    receiver = t.receiver(by_path({'/start': [location(307, other.url('/landed'))] * 9}))
    path, _ = t.config([dict(hook(receiver, '/start'), cert=cert)
                        for cert in (trusting(), dict(trusting(), enable=False))])
    program = t.start(path)
    program.send(datagram())
    wait_delivered(t, program, 1, attempt=1)
    t.check('without cert.enable it does not', 'not trusted' in wait_down(t, program, 'failure 2'))
    stop(t, program)
    t.equal('requests that arrive', [r.path for r in other.requests], ['/landed'])


def test_redirect_within_one_deadline(t):
    """The time of a call is for all its redirects together."""
    slow = [True]

    def answer(request, connection):
        if slow[0]:
            time.sleep(1.2)
        return location(307, '/two') if request.path == '/one' else OK

    receiver = t.receiver(answer)
    path, _ = t.config([{'url': receiver.url('/one')}])
    program = t.start(path, binary=t.binary_test)
    program.send(datagram())
    t.check('the reason', re.search('no answer within', wait_attempt(t, program, 1)))
    slow[0] = False
    wait_delivered(t, program, 1)


def test_redirect_body_within_the_deadline(t):
    """The body of a redirect that does not come to its end takes its time from the call, and no more."""
    well = threading.Event()
    moved = hold(head(b'Location: /two', b'Content-Length: 50', status=b'HTTP/1.1 307 Moved'))
    receiver = t.receiver(lambda request, connection: OK if well.is_set() else moved if request.path == '/one' else hold())
    path, _ = t.config([{'url': receiver.url('/one')}], butlerWebhook={'timeoutSeconds': 1})
    program = t.start(path)
    program.send(datagram())
    first = receiver.wait(1)[0]
    t.check('the call fails', program.wait_log(r' warn: (alert 1 to|webhook) failure 1\b'), program.log[-2:])
    took = time.monotonic() - first.time
    t.check('the call ends after its second', 0.8 < took < 1.0 + 0.7 * harness.SLOW, '%.1f s' % took)
    well.set()
    wait_delivered(t, program, 1)


# ---- Waiting --------------------------------------------------------------------------------------------------------


@both
def test_wait_retry_after_forms(t, scheme):
    """How long the log says that it waits, for each form of Retry-After."""
    now = time.time()
    rows = [
        ('429 seconds', 429, '30', 30, 30),
        ('503 seconds', 503, '120', 120, 120),
        ('seconds with zeros', 429, '0060', 60, 60),
        ('an hour', 429, '3600', 3600, 3600),
        ('a day', 429, '86400', 3600, 3600),
        ('too many digits', 503, '9' * 40, 3600, 3600),
        ('2 to 32 and 1', 429, '4294967297', 3600, 3600),
        ('spaces around', 429, '  45\t ', 45, 45),
        ('60 digits', 503, '0' * 58 + '30', 30, 30),
        ('a leap second', 429, 'Sat, 31 Dec 2138 23:59:60 GMT', 3600, 3600),
        ('IMF date', 429, email.utils.formatdate(now + 300, usegmt=True), 200, 301),
        ('IMF date, 503', 503, email.utils.formatdate(now + 300, usegmt=True), 200, 301),
        ('year 2138', 429, email.utils.formatdate(calendar.timegm((2138, 2, 16, 9, 24, 59)), usegmt=True), 3600, 3600),
        ('no such time', 503, 'Sun, 36 Nov 2138 24:49:37 GMT', 3600, 3600),
    ]
    receiver = server(t, scheme, by_path({'/%d' % i: response(row[1], b'', [('Retry-After', row[2])])
                                          for i, row in enumerate(rows)}))
    path, _ = t.config([hook(receiver, '/%d' % i, description=row[0]) for i, row in enumerate(rows)],
                       butlerWebhook=MEMORY)
    program = t.start(path)
    program.send(datagram())
    for i, (what, status, value, least, most) in enumerate(rows):
        match = program.wait_log(r' warn: webhook failure %d \("%s"\) asked to wait: %d, for ([0-9.]+) s' %
                                 (i + 1, re.escape(what), status))
        t.check('%s: %s' % (what, value), match and least <= float(match.group(1)) <= most,
                match.group(0) if match else program.lines(r'failure %d\b' % (i + 1)))
    time.sleep(1)
    t.equal('requests while all wait', len(receiver.requests), len(rows))
    stop(t, program)
    totals(t, program, delivered=0, given_up=0, lost=len(rows))
    t.equal('lost alerts, whole', [list(event) for event in alerts_in(program, ' lost for ')], [FIELDS] * len(rows))


@both
def test_wait_retry_after_ignored(t, scheme):
    """What is not a time to come does not hold an alert for long, and loses none."""
    past = email.utils.formatdate(time.time() - 3600, usegmt=True)
    values = ['-30', '0', 'soon', '', past, '30 s', '1e9', '0x7fffffff', 'Fri, 99 Foo 2138 99:99:99 GMT',
              'Thu, 01 Jan 1970 00:00:00 GMT', '12:00', '\xe5', '3 3', '--', '+',
              '1,000,000', '5, 10', '5;', '1.5', '+5', "5'", '"5"', '\xb2', 'P1D', '2138-02-16T09:24:59Z',
              'Sun, 06 Nov 2138 08:49:37 +0100', 'Sun, 06 Nov 2138 08:49:37',
              'Sun, 06 Xxx 2138 08:49:37 GMT', 'Sun, 06 Nov 1994 24:49:37 GMT',
              'Sun, 06 Nov 2138 08:49:37 GMT and more', 'a' * 20000]
    rows = [(status, value) for value in values for status in (429, 503)]
    answers = {'/%d' % i: [response(status, b'', [('Retry-After', value)])] for i, (status, value) in enumerate(rows)}
    answers['/no'] = [response(429)]
    receiver = server(t, scheme, by_path(answers))
    path, _ = t.config([hook(receiver, '/%d' % i) for i in range(len(rows))] + [hook(receiver, '/no')])
    program = t.start(path)
    program.send(datagram())
    for i, (status, value) in enumerate(rows + [(429, None)]):
        match = program.wait_log(delivered_pattern(1, 'failure %d' % (i + 1), attempt=2), 15)
        t.check('%d with Retry-After %r does not hold up' % (status, value), match,
                program.lines(r'failure %d\b' % (i + 1)))
    end(t, program, delivered=len(rows) + 1, given_up=0, lost=0)


def waiting_test(status):
    def test(t):
        """The webhook waits as a whole, then one probe goes, and the rest only when it was answered."""
        gate = threading.Event()
        first = response(status, b'', [('Retry-After', '3')])
        again = response(status, b'', [('Retry-After', '2')])

        def slow_good(sock):
            gate.wait(30)
            sock.sendall(response(200, b'ok', close=True))

        receiver = t.receiver(in_turn(first, again, quiet(slow_good)))
        other = t.receiver()
        path, _ = t.config([{'url': receiver.url()}, {'url': other.url()}])
        program = t.start(path)
        program.send(datagram(task='task 0'))
        t.check('it is asked to wait', program.wait_log(r'webhook failure 1 asked to wait: %d, for 3(\.0)? s' % status),
                program.log[-3:])
        sent = ['task 0'] + send_many(program, 6)
        t.equal('the other webhook does not wait', len(other.wait(7, timeout=3)), 7)
        requests = receiver.wait(3, timeout=20)
        t.require('three requests', len(requests) == 3, len(requests))
        t.check('nothing within the first 3 s', requests[1].time - requests[0].time > 2.9,
                requests[1].time - requests[0].time)
        t.check('nothing within the next 2 s', requests[2].time - requests[1].time > 1.9,
                requests[2].time - requests[1].time)
        time.sleep(1.5)
        t.equal('one probe at a time', len(receiver.requests), 3)
        gate.set()
        requests = receiver.wait(2 + len(sent), timeout=15)
        once_each(t, 'all arrive once', requests[2:], sent)
        for number in range(1, 8):
            wait_delivered(t, program, number)
        end(t, program, delivered=14, given_up=0, lost=0)
    return test


test_wait_whole_webhook_429 = limit(90)(waiting_test(429))
test_wait_whole_webhook_503 = limit(90)(waiting_test(503))


@limit(150)
def test_wait_one_a_second(t):
    """A receiver that allows one alert a second gets all twenty, and has to refuse few."""
    lock = threading.Lock()
    last = [0.0]

    def answer(request, connection):
        with lock:
            if time.monotonic() - last[0] < 1:
                return response(429, b'slow down', [('Retry-After', '1')])
            last[0] = time.monotonic()
            return OK

    receiver = t.receiver(answer)
    path, _ = t.config([{'url': receiver.url()}])
    program = t.start(path)
    send_many(program, 20)
    begin = time.monotonic()
    arrived = wait_until(lambda: len(program.lines(r' delivered to ')) == 20, 100, 0.2)
    t.check('all twenty arrive', arrived, '%d did' % len(program.lines(' delivered to ')))
    t.check('in about twenty times a second', time.monotonic() - begin < 60 * harness.SLOW, time.monotonic() - begin)
    refused = len(receiver.requests) - 20
    t.check('at most as many refusals for each as there are calls at a time', refused <= 20 * 4, '%d' % refused)
    t.equal('webhook-ids', len(set(ids(receiver.requests))), 20)
    end(t, program, delivered=20, given_up=0, lost=0)


def test_wait_during_calls_in_flight(t):
    """A 429 for one call does not spoil those that are under way beside it."""
    barrier = threading.Barrier(4, timeout=20)

    def answer(request, connection):
        try:
            turn = barrier.wait()
        except threading.BrokenBarrierError:
            return OK
        barrier.reset()
        return response(429, b'', [('Retry-After', '2')]) if turn == 0 else OK

    receiver = t.receiver(answer)
    path, _ = t.config([{'url': receiver.url()}])
    program = t.start(path)
    sent = send_many(program, 4)
    receiver.wait(4)
    barrier_broken = threading.Timer(1, barrier.abort)
    barrier_broken.start()
    t.check('all are delivered', wait_until(lambda: len(program.lines(' delivered to ')) == 4, 20), program.log[-6:])
    t.equal('names', sorted(set(names(receiver.requests))), sent)
    t.equal('requests', len(receiver.requests), 5)
    end(t, program, delivered=4, given_up=0, lost=0)


def test_wait_retry_after_zero_is_no_flood(t):
    """A webhook that asks for no wait at all, again and again, gets a handful of calls, not thousands."""
    past = email.utils.formatdate(time.time() - 3600, usegmt=True)
    receiver = t.receiver(by_path({'/429': response(429, b'', [('Retry-After', '0')]),
                                   '/503': response(503, b'', [('Retry-After', past)])}))
    path, _ = t.config([{'url': receiver.url('/429')}, {'url': receiver.url('/503')}])
    program = t.start(path)
    program.send(datagram())
    receiver.wait(2)
    time.sleep(2)
    for name in ('/429', '/503'):
        calls = len([r for r in receiver.requests if r.path == name])
        t.check('%s: calls in 2 s' % name, 1 <= calls <= 10, calls)
    end(t, program, delivered=0, given_up=0, lost=0, waiting=(1, 2))


def test_wait_then_broken_is_no_flood(t):
    """Asked to wait, then connections that end without an answer: few calls, not a loop without a pause."""
    receiver = t.receiver(in_turn(response(429, b'', [('Retry-After', '1')], close=True), then=None))
    path, _ = t.config([{'url': receiver.url()}])
    program = t.start(path)
    program.send(datagram())
    requests = receiver.wait(2)
    t.require('it tries again', len(requests) >= 2, program.log[-3:])
    time.sleep(2)
    calls = len(receiver.requests) - 1
    t.check('calls in 2 s', 1 <= calls <= 12, calls)
    receiver.answer = OK
    wait_delivered(t, program, 1, timeout=30)
    end(t, program, delivered=1, given_up=0, lost=0)


def test_wait_outlasts_calls_in_flight(t):
    """One of four calls in flight is told to wait, the others are delivered a little later: nothing more until then."""
    all_here = threading.Barrier(4, timeout=20)
    lock = threading.Lock()
    seen = []
    told = []

    def answer(request, connection):
        with lock:
            seen.append(request)
            if len(seen) > 4:
                return OK
        turn = all_here.wait()
        if turn == 0:
            told.append(time.monotonic())
            return response(429, b'', [('Retry-After', '3')])
        time.sleep(0.2 * turn)
        return OK

    receiver = t.receiver(answer)
    path, _ = t.config([{'url': receiver.url()}])
    program = t.start(path)
    sent = send_many(program, 10)
    t.require('four calls, then more', len(receiver.wait(5, timeout=20)) >= 5, len(receiver.requests))
    t.require('one was told to wait', len(told) == 1, told)
    t.check('nothing goes out before the time is over', receiver.requests[4].time - told[0] > 2.9,
            receiver.requests[4].time - told[0])
    t.check('all are delivered', wait_until(lambda: len(program.lines(' delivered to ')) == 10, 20), program.log[-6:])
    t.equal('all arrive', sorted(set(names(receiver.requests))), sorted(sent))
    t.equal('requests', len(receiver.requests), 11)
    t.equal('"asked to wait" is said once', len(program.lines(' asked to wait')), 1)
    end(t, program, delivered=10, given_up=0, lost=0)


# ---- Down and up ----------------------------------------------------------------------------------------------------


def test_down_refused(t):
    port = t.port()
    path, _ = t.config([{'url': 'http://127.0.0.1:%d/hook' % port}])
    program = t.start(path)
    sent = send_many(program, 30)
    reason = wait_down(t, program)
    t.check('the reason', 'refused' in reason and '127.0.0.1:%d' % port in reason, reason)
    wait_accepted(t, program, 30)
    time.sleep(2)
    receiver = t.receiver(port=port)
    wait_up(t, program)
    once_each(t, 'all arrive once', receiver.wait(30, timeout=20), sent)
    wait_until(lambda: len(program.lines(' delivered to ')) == 30)
    t.equal('"is down" is said once', len(program.lines(' is down')), 1)
    end(t, program, received=30, accepted=30, delivered=30, given_up=0, lost=0)


def test_down_one_probe_at_a_time(t):
    """A server that takes its time to spoil each TLS handshake shows how many try at once."""
    lock = threading.Lock()
    open_now = []
    seen = []

    def spoil(connection):
        with lock:
            open_now.append(connection.number)
            seen.append((time.monotonic(), len(open_now)))
        time.sleep(0.7)
        with lock:
            open_now.remove(connection.number)
        return close(b'this is not TLS at all\r\n')

    receiver = t.receiver(on_connect=spoil)
    path, _ = t.config([{'url': receiver.url().replace('http:', 'https:')}])
    program = t.start(path)
    send_many(program, 8)
    wait_down(t, program)
    begin = time.monotonic() + 1        # calls that began before the first failure may still be under way
    wait_until(lambda: len([when for when, _ in seen if when > begin]) >= 3, 30)
    counts = [count for when, count in seen if when > begin]
    t.check('probes go on', len(counts) >= 3, seen)
    t.check('one probe at a time', all(count == 1 for count in counts), seen)
    stop(t, program)
    totals(t, program, delivered=0, given_up=0, lost=0, waiting=8)


@limit(120)
def test_down_after_three_without_answer(t):
    """Three different alerts without an HTTP answer; then probes with the alert tried longest ago."""
    well = threading.Event()
    receiver = t.receiver(lambda request, connection: OK if well.is_set() else None)
    path, _ = t.config([{'url': receiver.url()}])
    program = t.start(path)
    sent = send_many(program, 3)
    wait_down(t, program)
    at = len(receiver.requests)
    requests = receiver.wait(at + 4, timeout=40)[at:]
    probes = names(requests)
    t.check('probes go on', len(probes) >= 4, probes)
    t.check('each with the alert tried longest ago', all(len(set(probes[i:i + 3])) == 3
                                                         for i in range(len(probes) - 2)), probes)
    well.set()
    wait_up(t, program, timeout=60)
    for number in (1, 2, 3):
        wait_delivered(t, program, number)
    t.equal('webhook-ids', len(set(ids(receiver.requests))), len(sent))
    end(t, program, delivered=3, given_up=0, lost=0)


def no_answer_test(play):
    def test(t):
        """Three different alerts in a row, each without an HTTP answer, whatever came instead."""
        well = threading.Event()
        receiver = t.receiver(lambda request, connection: OK if well.is_set() else play)
        path, _ = t.config([{'url': receiver.url()}])
        program = t.start(path, binary=t.binary_test)
        send_many(program, 3)
        wait_down(t, program)
        well.set()
        wait_up(t, program)
        for number in (1, 2, 3):
            wait_delivered(t, program, number)
        t.equal('webhook-ids', len(set(ids(receiver.requests))), 3)
        end(t, program, delivered=3, given_up=0, lost=0)
    return test


test_down_after_three_resets = no_answer_test(cut())
test_down_after_three_timeouts = no_answer_test(hold())
test_down_after_three_greetings = no_answer_test(hold(b'220 mail.example.com ESMTP\r\n'))
test_down_after_three_halves = no_answer_test(close(b'HTTP/1.1 200 OK\r\nContent-'))


def test_down_by_5xx(t):
    """A gateway that answers 502 for its dead backend is down after three different alerts: probes, not a call for each alert."""
    well = threading.Event()
    receiver = t.receiver(lambda request, connection: OK if well.is_set() else response(502, b'<h1>Bad Gateway</h1>'))
    path, _ = t.config([{'url': receiver.url()}])
    program = t.start(path)
    sent = send_many(program, 300)
    reason = wait_down(t, program)
    t.check('the reason', '502' in reason, reason)
    wait_accepted(t, program, 300)
    t.check('few calls before it is down', len(receiver.requests) <= 12, len(receiver.requests))
    known = len(receiver.requests)
    time.sleep(5)
    probes = names(receiver.requests[known:])
    t.check('probes alone', 1 <= len(probes) <= 12, probes)
    t.check('each with another alert', len(set(probes)) == len(probes), probes)
    program.send(datagram(task='later'))
    well.set()
    wait_up(t, program)
    t.check('all are delivered', program.wait_log(' delivered to ', 20, 301), len(program.lines(' delivered to ')))
    last = {request.event()['taskName']: request for request in receiver.requests}
    t.equal('each arrives', sorted(last), sorted(sent + ['later']))
    t.equal('webhook-ids', len(set(ids(receiver.requests))), 301)
    t.equal('"is down" is said once', len(program.lines(' is down')), 1)
    end(t, program, received=301, accepted=301, delivered=301, given_up=0, lost=0)


def test_down_not_by_two_alerts(t):
    """Two alerts that take turns in getting no answer are not three different ones."""
    seen = {}

    def answer(request, connection):
        name = request.event()['taskName']
        seen[name] = seen.get(name, 0) + 1
        return None if seen[name] <= 3 else OK

    receiver = t.receiver(answer)
    path, _ = t.config([{'url': receiver.url()}])
    program = t.start(path)
    send_many(program, 2)
    for number in (1, 2):
        wait_delivered(t, program, number, timeout=25)
    t.check('not down', not program.lines(' is down'), program.lines(' is down'))
    end(t, program, delivered=2, given_up=0, lost=0)


def test_down_not_by_one_alert(t):
    """However often the same alert gets no answer, the webhook is not down, and others pass."""
    bad = []

    def answer(request, connection):
        if request.event()['taskName'] != 'poison' or len(bad) >= 3:
            return response(200, b'', close=True)       # a kept connection would give the poison one more try at once
        bad.append(request)
        return None

    receiver = t.receiver(answer)
    path, _ = t.config([{'url': receiver.url()}])
    program = t.start(path)
    program.send(datagram(task='poison'))
    wait_attempt(t, program, 1, attempt=2)
    send_many(program, 3)
    for number in (2, 3, 4):
        wait_delivered(t, program, number, attempt=1, timeout=4)
    wait_delivered(t, program, 1, attempt=4, timeout=20)
    t.check('not down', not program.lines(' is down'), program.lines(' is down'))
    end(t, program, delivered=4, given_up=0, lost=0)


def between_successes_test(failure):
    def test(t):
        """A good answer in between begins the count anew."""
        seen = set()

        def answer(request, connection):
            name = request.event()['taskName']
            if name in seen:
                return OK
            seen.add(name)
            return failure

        receiver = t.receiver(answer)
        path, _ = t.config([{'url': receiver.url()}])
        program = t.start(path)
        for number in range(1, 6):
            program.send(datagram(task='task %d' % number))
            if not wait_delivered(t, program, number):
                break
        t.check('not down', not program.lines(' is down'), program.lines(' is down'))
        end(t, program, delivered=5, given_up=0, lost=0)
    return test


test_down_not_by_failures_between_successes = between_successes_test(None)
test_down_not_by_5xx_between_successes = between_successes_test(response(503))


def test_down_again(t):
    """Down and up, and down and up again: each is told, no alert is lost."""
    port = t.port()
    path, _ = t.config([{'url': 'http://127.0.0.1:%d/' % port}])
    program = t.start(path)
    arrived = []
    sent = []
    for turn in (1, 2, 3):
        sent += send_many(program, 3, 'turn %d' % turn)
        t.check('down %d' % turn, program.wait_log(' is down: ', count=turn), program.log[-3:])
        receiver = t.receiver(port=port)
        t.check('up %d' % turn, program.wait_log(' is up again', 30, turn), program.log[-3:])
        t.check('the alerts of turn %d' % turn, program.wait_log(' delivered to ', count=3 * turn), program.log[-3:])
        arrived += receiver.requests
        receiver.close()
    once_each(t, 'all arrive once', arrived, sent)
    end(t, program, delivered=9, given_up=0, lost=0)


def test_down_then_asked_to_wait_then_up(t):
    """Down, then 429, then 200: "is up again" is said once."""
    port = t.port()
    path, _ = t.config([{'url': 'http://127.0.0.1:%d/' % port}])
    program = t.start(path)
    program.send(datagram(task='first'))
    wait_down(t, program)
    receiver = t.receiver(in_turn(response(429, b'', [('Retry-After', '1')])), port=port)
    wait_up(t, program)
    wait_delivered(t, program, 1, timeout=20)
    program.send(datagram(task='second'))
    wait_delivered(t, program, 2)
    t.equal('requests', names(receiver.requests), ['first', 'first', 'second'])
    for word in (' is down: ', ' asked to wait: 429', ' is up again$'):
        t.equal('lines with %r' % word, len(program.lines(word)), 1)
    end(t, program, delivered=2, given_up=0, lost=0)


def test_down_name_not_found(t):
    """A name that nobody knows; later somebody does."""
    table = {}
    server = Names(t, table)
    receiver = t.receiver()
    path, _ = t.config([{'url': 'http://hooks.example.com:%d/hook' % receiver.port}])
    program = t.start(path, wrap=server.wrap)
    program.send(datagram())
    reason = wait_down(t, program, timeout=20)
    t.check('the reason names the host', re.search(r'host name hooks\.example\.com not found', reason), reason)
    table['hooks.example.com'] = ['127.0.0.1']
    wait_up(t, program)
    wait_delivered(t, program, 1)
    t.equal('Host', receiver.wait(1)[0].get('Host'), 'hooks.example.com:%d' % receiver.port)
    end(t, program, delivered=1, given_up=0, lost=0)


def test_down_name_with_several_addresses(t):
    """Each address of a name is tried."""
    receiver = t.receiver()
    server = Names(t, {'hooks.example.com': ['127.0.0.77', '::1', '127.0.0.1']})
    path, _ = t.config([{'url': 'http://hooks.example.com:%d/hook' % receiver.port}])
    program = t.start(path, wrap=server.wrap)
    program.send(datagram())
    wait_delivered(t, program, 1, attempt=1)
    t.check('never down', not program.lines(' is down'), program.lines(' is down'))


def test_down_too_old(t):
    """After the age of 6 s an alert is given up, whole; refused and answered alike."""
    receiver = t.receiver(response(500))
    silent = t.receiver(always(None))
    path, _ = t.config([{'url': 'http://127.0.0.1:%d/' % t.port()}, {'url': receiver.url()}, {'url': silent.url()}])
    program = t.start(path, binary=t.binary_test)
    program.send(datagram(task='old', message='a\nb'))
    wait_accepted(t, program, 1)
    begin = time.monotonic()
    for webhook in ('failure 1', 'failure 2', 'failure 3'):
        count, text, event = wait_given_up(t, program, 1, webhook, timeout=20)
        t.check('%s: not before its time' % webhook, time.monotonic() - begin > 4.5, time.monotonic() - begin)
        t.check('%s: tried more than once' % webhook, count > 1, count)
        t.equal('%s: the alert' % webhook, (event.get('taskName'), event.get('logMessage')), ('old', 'a\nb'))
    time.sleep(1.5)
    count = len(receiver.requests)
    time.sleep(1.5)
    t.equal('no request after that', len(receiver.requests), count)
    end(t, program, delivered=0, given_up=3, lost=0)


NO_ROOM = {'maxStateMB': 16}       # a third of it, 5.6 MB, is for what waits: some ninety alerts of 60 KB


def send_large(program, count, prefix='task', number=0):
    """Alerts of 60 KB, each sent when the one before was accepted; their names."""
    sent = []
    for i in range(count):
        sent += send_many(program, 1, '%s %d:' % (prefix, i), message='m' * 60000)
        if not program.wait_log(' accepted', count=number + i + 1):
            break
    return sent


def no_room_test(**settings):
    def test(t):
        """There is no room for more that waits: the oldest alert becomes a dead letter; what remains arrives."""
        port = t.port()
        path, _ = t.config([{'url': 'http://127.0.0.1:%d/' % port}], butlerWebhook=dict(NO_ROOM, **settings))
        program = t.start(path)
        sent = send_large(program, 120)
        wait_down(t, program)
        t.check('some are given up', program.wait_log(r' error: alert \d+ given up for failure 1 .*no room', count=20),
                len(program.lines('no room')))
        if not settings:
            t.check('a warning when most of the room is used', program.lines(r' warn: state directory: .*%'),
                    program.log[-1][:300])
        receiver = t.receiver(port=port)
        wait_up(t, program)
        gone = len(program.lines(' given up for failure 1 '))
        t.check('the rest is delivered', wait_until(lambda: len(program.lines(' delivered to ')) == 120 - gone, 20),
                len(program.lines(' delivered to ')))
        arrived = names(receiver.requests)
        t.check('a third of maxStateMB is for what waits', 70 <= len(arrived) <= 95, len(arrived))
        t.equal('the oldest are given up', sorted(arrived), sorted(sent[gone:]))
        end(t, program, received=120, accepted=120, delivered=120 - gone, given_up=gone, lost=0)
        told = all_told(t, program, sent)
        t.equal('those that are given up are whole', sorted(name for name, words in told.items() if words == ['given up']),
                sorted(sent[:gone]))
    return test


test_no_room = no_room_test()
test_no_room_in_memory = no_room_test(stateDirectory='')


def test_no_room_for_one_webhook_only(t):
    """It is the webhook with most waiting that loses alerts, not one for which few wait."""
    receiver = t.receiver()
    few_port = t.port()
    path, _ = t.config([{'url': 'http://127.0.0.1:%d/' % t.port()}, {'url': receiver.url()},
                        {'url': 'http://127.0.0.1:%d/' % few_port, 'kind': 'aborted'}], butlerWebhook=NO_ROOM)
    program = t.start(path)
    few = send_many(program, 3, 'few', id='/scheduler-task-aborted/')
    wait_down(t, program, 'aborted 1')
    sent = send_large(program, 120, number=3)
    wait_until(lambda: len(receiver.requests) == 120, 20)
    once_each(t, 'all arrive at the good one', receiver.requests, sent)
    t.check('given up for the bad one', program.wait_log(' given up for failure 1 .*no room', count=20),
            len(program.lines(' given up for failure 1 ')))
    late = t.receiver(port=few_port)
    wait_up(t, program, 'aborted 1')
    once_each(t, 'the few arrive', late.wait(3), few)
    t.equal('given up for the others', program.lines(' given up for (failure 2|aborted 1)'), [])
    stop(t, program)
    all_told(t, program, sent, 'failure 1')


# ---- Independence ---------------------------------------------------------------------------------------------------


HOSTILE = {
    'hangs': hold(),
    'resets': cut(),
    'ends': close(),
    'says_500': response(500, close=True),
    'says_429': response(429, b'', [('Retry-After', '1')], close=True),
    'redirects_for_ever': location(307, '/again', close_after=True),
    'noise': hold(bytes(range(256)) * 256),
    'noise_endless': endless(b'', bytes(range(256)) * 32),
    'interim_endless': endless(b'', head(status=b'HTTP/1.1 102 Processing') * 100),
    'interim_slow': endless(b'', head(status=b'HTTP/1.1 102 Processing'), 1),
    'header_endless': endless(b'HTTP/1.1 200 OK\r\nX-A: ', b'a' * 8192),
    'headers_endless': endless(b'HTTP/1.1 200 OK\r\n', b'X-A: a\r\n' * 500),
    'head_by_the_byte': drip(head(*[b'X-A: b'] * 50), pause=1),
    'body_by_the_byte': drip(b'a' * 500, head(b'Content-Length: 500'), pause=1),
    'body_endless': endless(head(), b'a' * 8192),
    'body_without_end': endless(head(), b'a' * 1024, 0.01),
    'chunks_endless': endless(head(CHUNKED), b'1\r\na\r\n' * 1000),
    'trailers_endless': endless(head(CHUNKED) + b'0\r\n', b'X-A: a\r\n' * 500),
    'refusal_endless': endless(head(status=b'HTTP/1.1 503 No'), b'a' * 8192),
    'reset_in_body': cut(head(b'Content-Length: 500') + b'a'),
}


def independence_test(make):
    def test(t):
        """Fifty alerts reach two good webhooks at once, however bad those before and behind them are."""
        bad = make(t)
        good = [server(t, scheme) for scheme in ('http', 'https')]
        path, _ = t.config(bad + [hook(receiver) for receiver in good] +
                           [dict(webhook, method='GET') for webhook in bad])
        program = t.start(path)
        send_many(program, 5, 'before')
        for receiver in good:
            receiver.wait(5)
        time.sleep(0.5)                     # the bad ones have their calls now
        sent = fifty_alerts(t, program, good)
        for receiver in good:
            once_each(t, 'all arrive at the good ones', receiver.requests[5:], sent)
        wait_accepted(t, program, 55)
        stop(t, program)
        for i in range(2 * len(bad) + len(good)):
            all_told(t, program, sent, 'failure %d' % (i + 1))
    return test


def fifty_alerts(t, program, good, late_s=8, **fields):
    """
    Sends fifty alerts in a second; none may come late to the good receivers: behind one call that hangs it would come after
    ten seconds. The names of the alerts.
    """
    sent = {}
    before = len(good[0].requests)
    for i in range(50):
        name = 'task %d of %d' % (i, before)
        sent[name] = time.monotonic()
        program.send(datagram(task=name, **fields))
        time.sleep(0.02)
    for receiver in good:
        requests = receiver.wait(before + 50, timeout=late_s + 4)
        late = [request.time - sent.get(name, 0) for request, name in zip(requests, names(requests)) if name in sent]
        t.check('none is late', late and max(late) < late_s * harness.SLOW, '%.1f s' % max(late or [0]))
    return list(sent)


INDEPENDENT = {
    'refuses': lambda t: [{'url': 'http://127.0.0.1:%d/' % t.port()}],
    'does_not_connect': lambda t: [{'url': 'http://127.0.0.1:%d/' % FullListener(t).port}],
    'hangs_in_tls': lambda t: [{'url': 'https' + t.receiver(on_connect=lambda connection: hold()).url()[4:]}],
}
for _name in ('hangs', 'resets', 'says_500', 'says_429', 'redirects_for_ever', 'head_by_the_byte', 'body_by_the_byte',
              'body_without_end', 'body_endless'):
    INDEPENDENT[_name] = lambda t, play=HOSTILE[_name]: \
        [hook(server(t, scheme, always(play))) for scheme in ('http', 'https')]


@pytest.mark.parametrize('name', INDEPENDENT)
def test_independent(t, name):
    independence_test(INDEPENDENT[name])(t)


def memory_now_kb(program):
    with open('/proc/%d/status' % program.pid) as file:
        return int(re.search(r'VmRSS:\s+(\d+)', file.read()).group(1))


def descriptors(program):
    """What each open descriptor of the program leads to, sorted; sockets without numbers. Wine has pipes for each thread."""
    path = '/proc/%d/fd' % program.pid
    found = []
    for name in os.listdir(path):
        try:
            found.append(re.sub(r'\d+', 'N', os.readlink(os.path.join(path, name))))
        except FileNotFoundError:
            pass
    return sorted(name for name in found if not (harness.WINDOWS and name.startswith('pipe:')))


@both
@limit(200)
def test_independent_of_all_at_once(t, scheme):
    """
    Every hostile webhook at once, in three rounds: the good one gets its alerts in time, the bad ones get theirs when
    they behave, and in the end the program has not one descriptor and hardly any memory more than before.
    """
    behave = threading.Event()
    good_answer = response(200, b'ok', close=True)

    def answer(play):
        return lambda request, connection: good_answer if behave.is_set() else resolve(play, request, connection)

    bad = [server(t, scheme, answer(play)) for play in HOSTILE.values()]
    good = server(t, scheme, good_answer)
    path, _ = t.config([hook(receiver, description=name) for name, receiver in zip(HOSTILE, bad)] +
                       [hook(good, kind='aborted')])
    program = t.start(path)
    memory = []
    everything = []
    for turn in (1, 2, 3):
        behave.clear()
        with at_work:
            send_many(program, 6, 'turn %d' % turn)
            # Those behind hostile ones would come after minutes, and hundreds of calls at once keep a machine busy.
            everything += fifty_alerts(t, program, [good], late_s=25, id='/scheduler-task-aborted/')
        once_each(t, 'all arrive at the good one', good.requests, everything)
        behave.set()
        for receiver in bad:
            receiver.drop_connections()
        done = wait_until(lambda: len(program.lines(r': alert \d+ (given up for |delivered to .*: 200 in )')) ==
                          turn * (6 * len(bad) + 50), 70, 0.1)     # the sixth backoff takes up to 32 s
        t.require('every alert comes to its end at every webhook', done, program.log[-3:])
        if turn == 1:       # the first turn has opened what is opened once
            time.sleep(1)
            at_first = descriptors(program)
        t.check('the descriptors are those of the first turn', wait_until(lambda: descriptors(program) == at_first, 5),
                [at_first, descriptors(program)])
        memory.append(memory_now_kb(program))
    if not SANITIZED:
        first = 1 if harness.WINDOWS else 0     # wine takes its part on the way
        t.check('memory does not grow', max(memory[first + 1:]) < memory[first] + 2048, memory)
    loop = 'failure %d' % (list(HOSTILE).index('redirects_for_ever') + 1)
    t.equal('alerts were given up for the redirects alone',
            {re.search(r' for (failure \d+)', line).group(1) for line in program.lines(' given up for ')}, {loop})
    stop(t, program)
    totals(t, program, accepted=3 * 56, lost=0)


def test_independent_of_name_server(t):
    server = Names(t)
    good = t.receiver()
    path, _ = t.config([{'url': 'http://hooks.example.com/'}, {'url': good.url()}, {'url': 'http://other.example.com/'},
                        {'url': 'http://localhost:%d/named' % good.port}])
    program = t.start(path, wrap=server.wrap)
    begin = time.monotonic()
    send_many(program, 50)
    t.equal('all arrive at the good ones', len(good.wait(100, timeout=10)), 100)
    t.check('at once', time.monotonic() - begin < 4 * harness.SLOW)
    t.check('the name server was asked', server.asked)
    t.check('but not for localhost', not [name for name, _ in server.asked if 'localhost' in name], server.asked)
    stop(t, program)


# ---- Connections ----------------------------------------------------------------------------------------------------


def test_connection_kept(t):
    """One alert after another uses one connection, whatever the method."""
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url('/' + method), 'method': method} for method in ('GET', 'POST', 'PUT')])
    program = t.start(path)
    for i in range(6):
        program.send(datagram(task='task %d' % i))
        for webhook in (1, 2, 3):
            program.wait_log(delivered_pattern(i + 1, 'failure %d' % webhook))
        time.sleep(0.2)
    requests = receiver.wait(18)
    t.equal('requests', len(requests), 18)
    for method in ('GET', 'POST', 'PUT'):
        t.equal('%s: connections' % method, len(set(r.connection for r in requests if r.method == method)), 1)
    end(t, program, delivered=18)


def stale_test(spoil, scheme):
    """spoil(receiver) makes the kept connections useless; the next alert must arrive all the same, at once."""
    def test(t):
        receiver = server(t, scheme)
        path, _ = t.config([hook(receiver, '/' + method, method=method) for method in ('GET', 'POST', 'PUT')])
        program = t.start(path)
        program.send(datagram(task='first'))
        for webhook in (1, 2, 3):
            wait_delivered(t, program, 1, 'failure %d' % webhook)
        time.sleep(0.3)
        spoil(receiver)
        program.send(datagram(task='second'))
        for webhook in (1, 2, 3):
            wait_delivered(t, program, 2, 'failure %d' % webhook)
        again = [r for r in receiver.requests if r.event()['taskName'] == 'second']
        for method in ('GET', 'POST', 'PUT'):
            requests = [r for r in again if r.method == method]
            t.check('%s: one webhook-id' % method, len(set(ids(requests))) == 1, ids(requests))
            t.check('%s: a new connection' % method, requests and requests[-1].connection > 3,
                    [r.connection for r in requests])
        t.equal('no retry with a wait', program.lines(r'next in'), [])
        t.equal('not down', program.lines(r' is down'), [])
        end(t, program, delivered=6, given_up=0, lost=0)
    return test


def spoil_when_idle(what):
    def spoil(receiver):
        for connection in list(receiver.connections):
            what(connection.sock)
        time.sleep(0.3)
    return spoil


def spoil_next_request(play):
    """The first three connections get play for their next request, later ones a good answer."""
    def spoil(receiver):
        receiver.answer = lambda request, connection: play if connection.number <= 3 else OK
    return spoil


def say_goodbye(sock):
    sock.sendall(response(408, b'idle for too long', close=True))
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass    # the program has closed the connection already


STALE = {
    'closed_while_idle': spoil_when_idle(lambda sock: sock.shutdown(socket.SHUT_RDWR)),
    'half_closed_while_idle': spoil_when_idle(lambda sock: sock.shutdown(socket.SHUT_WR)),
    'closed_by_the_next_request': spoil_next_request(None),
    'reset_by_the_next_request': spoil_next_request(cut()),
    'goodbye_while_idle': spoil_when_idle(say_goodbye),
    'noise_while_idle': spoil_when_idle(lambda sock: sock.sendall(b'\r\nare you there?\r\n')),
    'answer_while_idle': spoil_when_idle(lambda sock: sock.sendall(response(404, b''))),
}


@both
@pytest.mark.parametrize('name', STALE)
def test_connection(t, name, scheme):
    stale_test(STALE[name], scheme)(t)


@both
def test_connection_reset_in_next_request(t, scheme):
    """The kept connection is reset in the middle of a large request: once more, at once, on a new one."""
    def early(request, connection):
        return cut() if connection.served else None

    receiver = server(t, scheme, on_head=early)
    path, _ = t.config([hook(receiver)])
    program = t.start(path)
    program.send(datagram(task='first'))
    wait_delivered(t, program, 1)
    time.sleep(0.3)
    program.send(datagram(task='second', message=LARGE))
    wait_delivered(t, program, 2)
    requests = receiver.wait(3)
    t.equal('connections', [r.connection for r in requests], [1, 1, 2])
    t.equal('one webhook-id', len(set(ids(requests[1:]))), 1)
    t.equal('the message', requests[2].json().get('logMessage') == LARGE, True)
    t.equal('no retry with a wait', program.lines(r'next in'), [])


def test_connection_reset_while_idle(t):
    """The server is killed and started again: all its connections are reset."""
    listener = socket.socket()
    port = t.port()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(('127.0.0.1', port))
    listener.listen(8)
    t.add(listener)
    path, _ = t.config([{'url': 'http://127.0.0.1:%d/hook' % port}])
    program = t.start(path)
    program.send(datagram(task='first'))
    sock, _ = listener.accept()
    data = b''
    while not data.endswith(b'}'):
        data += sock.recv(65536)
    sock.sendall(OK)
    wait_delivered(t, program, 1)
    time.sleep(0.3)
    harness.reset(sock)
    listener.close()
    receiver = t.receiver(port=port)
    time.sleep(0.3)
    program.send(datagram(task='second'))
    wait_delivered(t, program, 2, attempt=1)
    t.equal('arrived', names(receiver.wait(1)), ['second'])
    t.equal('no warning', program.lines(' warn: '), [])


def test_connection_four_dead_at_once(t):
    """Four idle connections, all dropped by the server: the next four alerts do not notice."""
    barrier = threading.Barrier(4, timeout=5)

    def together(request, connection):
        try:
            barrier.wait()
        except threading.BrokenBarrierError:
            pass
        return OK

    receiver = t.receiver(together)
    path, _ = t.config([{'url': receiver.url()}])
    program = t.start(path)
    send_many(program, 4, 'first')
    receiver.wait(4)
    for number in range(1, 5):
        wait_delivered(t, program, number)
    t.equal('four connections', len(receiver.connections), 4)
    receiver.answer = lambda request, connection: None if connection.number <= 4 else OK
    sent = send_many(program, 4, 'second')
    for number in range(5, 9):
        wait_delivered(t, program, number)
    t.equal('no retry with a wait', program.lines(r'next in'), [])
    t.equal('not down', program.lines(r' is down'), [])
    good = [r for r in receiver.requests if r.connection > 4]
    once_each(t, 'each arrives on a new connection', good, sent)
    end(t, program, delivered=8, given_up=0, lost=0)


@both
def test_connection_stale_then_bad(t, scheme):
    """Once more at once is once: a fresh connection that fails, too, is an attempt that failed."""
    seen = []

    def answer(request, connection):
        if request.event()['taskName'] == 'first':
            return OK
        seen.append((connection.number, request))
        return None if len(seen) <= 3 else OK

    receiver = server(t, scheme, answer)
    path, _ = t.config([hook(receiver)])
    program = t.start(path)
    program.send(datagram(task='first'))
    wait_delivered(t, program, 1)
    time.sleep(0.3)
    program.send(datagram(task='second'))
    wait_attempt(t, program, 2)
    wait_delivered(t, program, 2, timeout=20)
    t.equal('requests', len(seen), 4)
    t.equal('connections', len(set(number for number, _ in seen)), 4)
    t.equal('one webhook-id', len(set(ids(request for _, request in seen))), 1)
    t.equal('retries with a wait', len(program.lines(r'alert 2 to failure 1: .*next in')), 2)
    end(t, program, delivered=2, given_up=0, lost=0)


@both
def test_connection_cut_in_second_answer(t, scheme):
    """On a reused connection an answer that has begun counts as an attempt."""
    receiver = server(t, scheme, in_turn(OK, close(b'HTTP/1.1 20')))
    path, _ = t.config([hook(receiver)])
    program = t.start(path)
    program.send(datagram(task='first'))
    wait_delivered(t, program, 1)
    time.sleep(0.3)
    program.send(datagram(task='second'))
    wait_attempt(t, program, 2)
    wait_delivered(t, program, 2, attempt=2)
    requests = receiver.wait(3)
    t.equal('connections', [r.connection for r in requests], [1, 1, 2])
    t.equal('one webhook-id', len(set(ids(requests[1:]))), 1)


def test_connection_closed_by_the_program_when_idle(t):
    """An idle sender closes its connection: after a second in the program with short limits."""
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}])
    program = t.start(path, binary=t.binary_test)
    program.send(datagram(task='first'))
    wait_delivered(t, program, 1)
    t.check('it closes the idle connection', receiver.connections[0].wait_closed(8))
    program.send(datagram(task='second'))
    wait_delivered(t, program, 2, attempt=1)
    t.equal('a new connection', receiver.wait(2)[1].connection, 2)


@both
def test_connection_closed_at_once(t, scheme):
    """A connection whose body cannot be skipped within bounds is of no more use: it is closed when the headers are there."""
    plays = {'no length': head(), 'close': head(b'Content-Length: 5', b'Connection: close'),
             'too long': head(b'Content-Length: 65537'), 'no length, 1.0': head(status=b'HTTP/1.0 200 OK'),
             'of a refusal': head(status=b'HTTP/1.1 404 Not Found'), 'of a failure': head(status=b'HTTP/1.1 500 Error')}
    closed = {}

    def play_of(name):
        def play(sock):
            begin = time.monotonic()
            sock.sendall(plays[name])
            wait_peer(sock, 20)
            closed.setdefault(name, time.monotonic() - begin)
        return quiet(play)

    receivers = {name: server(t, scheme, always(play_of(name))) for name in plays}
    path, _ = t.config([hook(receiver) for receiver in receivers.values()])
    program = t.start(path)
    program.send(datagram())
    wait_until(lambda: len(closed) == len(plays), 10)
    for name in plays:
        t.check('%s: closed at once' % name, closed.get(name, 9) < 1.0 * harness.SLOW, closed.get(name))
    stop(t, program)


def test_connection_slow_reader(t):
    """A server that reads a large request slowly gets all of it."""
    def slowly(request, connection):
        length = int(request.get('Content-Length'))
        body = b''
        while len(body) < length:
            piece = connection.read_bytes(min(8192, length - len(body)))
            if piece is None:
                return None
            body += piece
            time.sleep(0.03)
        bodies.append(body)
        return response(200, b'', close=True)

    bodies = []
    receiver = t.receiver(on_head=slowly)
    receiver.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    path, _ = t.config([{'url': receiver.url()}])
    program = t.start(path)
    program.send(datagram(message=LARGE))
    wait_delivered(t, program, 1, attempt=1, timeout=20)
    t.equal('the message', parse(bodies[0].decode()).get('logMessage') == LARGE, True)
    end(t, program, delivered=1)


def small_buffers(receiver):
    """Makes a large request wait on the way: little room here, and small segments, which keep the peer's room small, too."""
    receiver.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    receiver.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)


def early_answer_test(status, scheme):
    def test(t):
        """An answer in the middle of a large body, keep-alive: the rest is not sent, so the connection is of no more use."""
        def early(request, connection):
            if int(request.get('Content-Length')) < 20000:
                return None

            def play(sock):
                sock.sendall(response(status))
                time.sleep(1)
                wait_peer(sock, 20)
            return quiet(play)

        receiver = server(t, scheme, on_head=early)
        small_buffers(receiver)
        path, _ = t.config([hook(receiver)])
        program = t.start(path)
        program.send(datagram(task='large', message=LARGE))
        wait_given_up(t, program, 1)
        program.send(datagram(task='small'))
        wait_delivered(t, program, 2, attempt=1)
        requests = receiver.wait(2)
        t.equal('connections', [r.connection for r in requests], [1, 2])
        t.equal('the small one', requests[-1].event().get('taskName'), 'small')
        t.equal('no retry with a wait', program.lines(r'next in'), [])
        end(t, program, delivered=1, given_up=1, lost=0)
    return test


@both
@pytest.mark.parametrize('status', (413, 404))
def test_connection_early_answer(t, status, scheme):
    early_answer_test(status, scheme)(t)


def test_connection_three_at_once_to_an_idle_sender(t):
    """Alerts that come together do not wait for one another, also when a sender is there that has nothing to do."""
    receivers = [t.receiver(in_turn(OK, then=pieces(b'', OK, pause=2))) for _ in range(5)]
    path, _ = t.config([{'url': receiver.url()} for receiver in receivers])
    program = t.start(path)
    program.send(datagram(task='first'))
    for number in range(len(receivers)):
        wait_delivered(t, program, 1, 'failure %d' % (number + 1))
    time.sleep(0.3)
    program.send_signal(signal.SIGSTOP)     # so that it finds all three at once
    sent = send_many(program, 3)
    program.send_signal(signal.SIGCONT)
    for number, receiver in enumerate(receivers):
        requests = receiver.wait(4)[1:]
        t.require('all three arrive', len(requests) == 3, len(requests))
        once_each(t, 'each once', requests, sent)
        times = [request.time for request in requests]
        t.check('none waits for an answer to another', max(times) - min(times) < 1.5, max(times) - min(times))
    end(t, program, delivered=4 * len(receivers), given_up=0, lost=0)


def test_connection_large_get(t):
    """A query of 180 KB is written whole, too."""
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url(), 'method': 'GET'}])
    program = t.start(path)
    program.send(datagram(message=LARGE))
    wait_delivered(t, program, 1, attempt=1)
    t.equal('the message', dict(receiver.wait(1)[0].params()).get('logMessage') == LARGE, True)


def need_ipv6(t):
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(('::1', 0))
    except OSError:
        t.skip('there is no IPv6')


def localhost_test(host):
    def test(t):
        if ':' in host:
            need_ipv6(t)
        receiver = t.receiver(host=host)
        path, _ = t.config([{'url': receiver.url('/named', host='localhost')}, {'url': receiver.url('/number')}])
        program = t.start(path)
        program.send(datagram())
        wait_delivered(t, program, 1, 'failure 1', attempt=1)
        wait_delivered(t, program, 1, 'failure 2', attempt=1)
        hosts = {request.path: request.get('Host') for request in receiver.wait(2)}
        t.equal('Host', hosts, {'/named': 'localhost:%d' % receiver.port, '/number': receiver.authority})
        t.equal('no warning', program.lines(' warn: '), [])
    return test


test_connection_localhost_ipv4_only = localhost_test('127.0.0.1')
test_connection_localhost_ipv6_only = localhost_test('::1')


def hanging_family_test(hanging, working):
    def test(t):
        """One family of localhost hangs, the other answers: the hanging one gets no more than its share of the call's time."""
        need_ipv6(t)
        full = FullListener(t, hanging)
        receiver = t.receiver(host=working, port=full.port)
        path, _ = t.config([{'url': receiver.url(host='localhost')}])
        program = t.start(path)
        program.send(datagram())
        wait_delivered(t, program, 1, timeout=25)
        receiver.drop_connections()
        time.sleep(0.3)
        begin = time.monotonic()
        program.send(datagram())
        wait_delivered(t, program, 2, attempt=1)
        t.check('the address that worked is tried first', time.monotonic() - begin < 2 * harness.SLOW, time.monotonic() - begin)
    return test


test_connection_ipv6_hangs = hanging_family_test('::1', '127.0.0.1')
test_connection_ipv4_hangs = hanging_family_test('127.0.0.1', '::1')


def test_connection_hangs_in_connect(t):
    """A connect that hangs ends with the call's time, and makes the webhook down."""
    full = FullListener(t)
    path, _ = t.config([{'url': 'http://127.0.0.1:%d/' % full.port}])
    program = t.start(path, binary=t.binary_test)
    program.send(datagram())
    begin = time.monotonic()
    wait_down(t, program, timeout=8)
    t.check('not before its time', time.monotonic() - begin > 1, time.monotonic() - begin)
    stop(t, program)


def test_connection_hangs_in_tls(t):
    receiver = t.receiver(on_connect=lambda connection: hold())
    path, _ = t.config([{'url': receiver.url().replace('http:', 'https:')}])
    program = t.start(path, binary=t.binary_test)
    program.send(datagram())
    wait_down(t, program, timeout=8)
    stop(t, program)


# ---- Proxies --------------------------------------------------------------------------------------------------------


def proxy_environment(receiver, name='HTTPS_PROXY', userinfo=''):
    return {name: 'http://%s127.0.0.1:%d' % (userinfo + '@' if userinfo else '', receiver.port)}


def test_proxy_connect(t):
    """https through a proxy that wants a password: one tunnel for all alerts, and no secret in the open."""
    proxy = t.receiver(always(tunnel()))
    receiver = tls_receiver(t)
    path, _ = t.config([{'url': receiver.url('/hook?token=hidden', 'bob:secret'), 'cert': trusting()}])
    program = t.start(path, env=proxy_environment(proxy, userinfo='user:p%40ss%20word'))
    for number in (1, 2):
        program.send(datagram(task='task %d' % number))
        wait_delivered(t, program, number, attempt=1)
        time.sleep(0.3)
    connects = proxy.wait(1)
    t.equal('tunnels', len(connects), 1)
    request = connects[0]
    t.equal('request line', request.line, 'CONNECT 127.0.0.1:%d HTTP/1.1' % receiver.port)
    t.equal('Host', request.get('Host'), receiver.authority)
    t.equal('Proxy-Authorization', request.get('Proxy-Authorization'),
            'Basic ' + base64.b64encode(b'user:p@ss word').decode())
    for name in ('Authorization', 'webhook-id', 'Content-Length', 'Content-Type'):
        t.equal('%s to the proxy' % name, request.get(name), None)
    requests = receiver.wait(2)
    t.equal('targets', [r.target for r in requests], ['/hook?token=hidden'] * 2)
    t.equal('Proxy-Authorization for the webhook', [r.get('Proxy-Authorization') for r in requests], [None, None])
    t.equal('Authorization for the webhook', requests[0].get('Authorization'),
            'Basic ' + base64.b64encode(b'bob:secret').decode())
    end(t, program, delivered=2)
    t.check('no password in the log', not re.search(r'p@ss|p%40ss|secret|hidden', program.stdout))


def test_proxy_connect_names(t):
    """The proxy gets the name, and IPv6 in brackets."""
    need_ipv6(t)
    proxy = t.receiver(always(tunnel()))
    four = tls_receiver(t)
    six = tls_receiver(t, host='::1')
    path, _ = t.config([{'url': four.url('/a', host='localhost'), 'cert': trusting()},
                        {'url': six.url('/b'), 'cert': trusting()},
                        {'url': four.url('/c', host='localhost.'), 'cert': trusting()}])
    program = t.start(path, env=proxy_environment(proxy, 'https_proxy'))
    program.send(datagram())
    for i in (1, 2, 3):
        wait_delivered(t, program, 1, 'failure %d' % i)
    t.equal('targets', sorted(r.target for r in proxy.wait(3)),
            sorted(['localhost:%d' % four.port, '[::1]:%d' % six.port, 'localhost.:%d' % four.port]))


CONNECT_OPEN = {
    '204': head(status=b'HTTP/1.1 204 No Content'),
    '200_with_length': head(b'Content-Length: 500'),
    '200_with_chunked': head(CHUNKED),
    '200_without_reason': head(status=b'HTTP/1.1 200'),
    '200_1_0': head(b'Proxy-Agent: old', status=b'HTTP/1.0 200 Connection established'),
    '200_after_interim': head(status=b'HTTP/1.1 102 Processing') + head(),
    '200_with_18_kb': head(b'X-A: ' + b'a' * 18432),
    '200_with_close': head(b'Connection: close', b'Proxy-Connection: close'),
    '200_folded': head(b'X-A: a', b' b'),
    '299': head(status=b'HTTP/1.1 299 Fine'),
    '200_with_different_lengths': head(b'Content-Length: 5', b'Content-Length: 7'),
    '200_with_broken_length': head(b'Content-Length: -5'),
    '200_ends_in_lf': b'HTTP/1.1 200 Connection established\n\n',
    '200_after_32_interim': head(status=b'HTTP/1.1 100 Continue') * 32 + head(),
}

CONNECT_REFUSED = {
    '405': response(405, b''),
    '400': response(400, b'bad', close=True),
    '400_with_html': response(400, b'<html><body>Bad request</body></html>', [('Content-Type', 'text/html')],
                              close=True),
    'nul_in_header': hold(head(b'X-A: a\0b')),
    '403': response(403, b'not here'),
    '407': response(407, b'', [('Proxy-Authenticate', 'Basic realm="p"')]),
    '502': response(502, b'<h1>Bad gateway</h1>'),
    '503_with_retry_after': response(503, b'', [('Retry-After', '3000')]),
    '429_with_retry_after': response(429, b'', [('Retry-After', '3000')]),
    '302': location(302, 'http://127.0.0.1/login'),
    '204_in_tls': close(b'\x15\x03\x01\x00\x02\x02\x46'),
    'end': close(),
    'reset': cut(),
    'noise': hold(bytes(range(256)) * 16),
    'smtp': hold(b'220 mail.example.com ESMTP\r\n' * 5),
    'endless_headers': endless(b'HTTP/1.1 200 OK\r\n', b'X-A: a\r\n' * 500),
    'end_in_header': close(b'HTTP/1.1 200 OK\r\nX-A: '),
    'endless_body': endless(head(status=b'HTTP/1.1 403 No'), b'a' * 8192),
    '101': hold(head(b'Upgrade: tls', status=b'HTTP/1.1 101 Switching Protocols')),
    '304': head(status=b'HTTP/1.1 304 Not Modified'),
    '407_endless': endless(head(status=b'HTTP/1.1 407 Who are you'), b'a' * 8192),
    '500': response(500, b'', close=True),
    '999': response(999, b'', close=True),
    '200_of_http_2': hold(head(status=b'HTTP/2.0 200 OK')),
    'header_without_colon': hold(head(b'no colon')),
    'endless_noise': endless(b'', bytes(range(256)) * 32),
    'tls_hello': hold(b'\x16\x03\x03\x00\x7a\x02\x00\x00\x76' + b'r' * 118),
}

# What the tunnel ends in looks like the webhook's own failure: the proxy need not be named.
CONNECT_BROKEN = {
    'reset': cut(head()),
    'end': close(head()),
    'noise': quiet(lambda sock: (sock.sendall(head()), time.sleep(0.2), hold(bytes(range(256)) * 64)(sock))),
    'endless_noise': quiet(lambda sock: (sock.sendall(head()), time.sleep(0.2), endless(b'', bytes(8192))(sock))),
}


def connect_open_test(first):
    def test(t):
        proxy = t.receiver(always(tunnel(first)))
        receiver = tls_receiver(t)
        path, _ = t.config([{'url': receiver.url('/hook'), 'cert': trusting()}])
        program = t.start(path, env=proxy_environment(proxy))
        program.send(datagram())
        wait_delivered(t, program, 1, attempt=1)
        t.equal('request', [r.target for r in receiver.wait(1)], ['/hook'])
        t.equal('no warning', program.lines(' warn: '), [])
    return test


def connect_refused_test(first, binary='binary', named=True):
    def test(t):
        proxy = t.receiver(in_turn(first, then=tunnel()))
        receiver = tls_receiver(t)
        path, _ = t.config([{'url': receiver.url('/hook'), 'cert': trusting()}])
        program = t.start(path, env=proxy_environment(proxy, userinfo='user:hidden'),
                          binary=getattr(t, binary))
        program.send(datagram())
        reason = wait_down(t, program)
        if named:
            t.check('the proxy is named', re.search(r'(?i)proxy', reason) and ':%d' % proxy.port in reason, reason)
        wait_up(t, program)
        wait_delivered(t, program, 1)
        t.equal('request', [r.target for r in receiver.wait(1)], ['/hook'])
        end(t, program, delivered=1, given_up=0, lost=0)
        t.check('no password in the log', 'hidden' not in program.stdout)
    return test


@pytest.mark.parametrize('name', CONNECT_OPEN)
def test_proxy_connect_open(t, name):
    connect_open_test(CONNECT_OPEN[name])(t)


@pytest.mark.parametrize('name', CONNECT_REFUSED)
def test_proxy_connect_refused(t, name):
    connect_refused_test(CONNECT_REFUSED[name])(t)


@pytest.mark.parametrize('name', CONNECT_BROKEN)
def test_proxy_connect_broken(t, name):
    connect_refused_test(CONNECT_BROKEN[name], named=False)(t)


test_proxy_connect_silent = connect_refused_test(hold(), 'binary_test')
test_proxy_connect_by_the_byte = connect_refused_test(drip(head(b'X-A: a long value by the byte')), 'binary_test')


def test_proxy_refuses_connections(t):
    """A proxy that is not there: the webhook is down, and the proxy is named, for http and https."""
    port = t.port()
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}, {'url': receiver.url().replace('http:', 'https:')}])
    program = t.start(path, env={'HTTP_PROXY': 'http://127.0.0.1:%d' % port,
                                 'HTTPS_PROXY': 'http://127.0.0.1:%d' % port})
    program.send(datagram())
    for i in (1, 2):
        reason = wait_down(t, program, 'failure %d' % i)
        t.check('the proxy is named', '127.0.0.1:%d' % port in reason and 'proxy' in reason.lower(), reason)
    stop(t, program)
    t.equal('requests past the proxy', len(receiver.requests), 0)


def test_proxy_http_absolute_form(t):
    """Plain http goes to the proxy in absolute form, with both passwords where they belong."""
    proxy = t.receiver()
    webhooks = [{'url': 'http://127.0.0.1:81/px/get?z=1', 'method': 'GET'},
                {'url': 'http://bob:secret@127.0.0.1:82/px/put', 'method': 'PUT'},
                {'url': 'http://hooks.invalid/px/post#part'}, {'url': 'http://[::1]:83/px'},
                {'url': 'http://HOOKS.invalid:80'}]
    path, _ = t.config(webhooks)
    program = t.start(path, env=proxy_environment(proxy, 'HTTP_PROXY', 'pu:pp'))
    program.send(datagram())
    for i in range(len(webhooks)):
        wait_delivered(t, program, 1, 'failure %d' % (i + 1), attempt=1)
    requests = proxy.wait(len(webhooks))
    wanted = {'http://127.0.0.1:81/px/get': '127.0.0.1:81', 'http://127.0.0.1:82/px/put': '127.0.0.1:82',
              'http://hooks.invalid/px/post': 'hooks.invalid', 'http://[::1]:83/px': '[::1]:83',
              'http://hooks.invalid/': 'hooks.invalid'}
    t.equal('targets and Host', {r.path: r.get('Host') for r in requests}, wanted)
    t.equal('Proxy-Authorization', set(r.get('Proxy-Authorization') for r in requests),
            {'Basic ' + base64.b64encode(b'pu:pp').decode()})
    t.equal('Authorization', sorted(r.get('Authorization') or '' for r in requests),
            [''] * 4 + ['Basic ' + base64.b64encode(b'bob:secret').decode()])
    for request in requests:
        if request.method == 'GET':
            t.equal('query', [name for name, _ in request.params()], ['z'] + FIELDS)
        else:
            t.equal('body', list(request.json()), FIELDS)
    program.send(datagram())
    for i in range(len(webhooks)):
        wait_delivered(t, program, 2, 'failure %d' % (i + 1), attempt=1)
    stop(t, program)
    t.check('no password in the log', not re.search(r'secret|pp@|pu:', program.stdout))


def test_proxy_407(t):
    proxy = t.receiver(response(407, b'', [('Proxy-Authenticate', 'Basic realm="p"')]))
    path, _ = t.config([{'url': 'http://hooks.invalid/'}])
    program = t.start(path, env=proxy_environment(proxy, 'HTTP_PROXY', 'pu:wrong'))
    program.send(datagram())
    count, text, event = wait_given_up(t, program, 1)
    t.check('status and hint', count == 1 and '407' in text and re.search(r"proxy's password", text), text)
    t.equal('fields', list(event), FIELDS)
    stop(t, program)


def test_proxy_http_keeps_its_rules(t):
    """Verdicts through a proxy are those without: retry, redirects to the same host only, a stale connection."""
    proxy = t.receiver()
    answers = {'http://a.invalid/busy': [response(502)],
               'http://a.invalid/moved': [location(307, 'http://b.invalid/landed')],
               'http://a.invalid/port': location(307, 'http://a.invalid:81/landed'),
               'http://a.invalid/near': location(307, 'next')}
    proxy.answer = by_path(answers)
    path, _ = t.config([{'url': 'http://a.invalid/busy'}, {'url': 'http://a.invalid/moved'}, {'url': 'http://a.invalid/port'},
                        {'url': 'http://bob:secret@a.invalid/near'}])
    program = t.start(path, env=proxy_environment(proxy, 'http_proxy', 'pu:pp'))
    program.send(datagram())
    wait_delivered(t, program, 1, 'failure 1', attempt=2)
    _, text, _ = wait_given_up(t, program, 1, 'failure 2')
    t.check('another host is not followed', 'moved to http://b.invalid/landed' in text, text)
    wait_delivered(t, program, 1, 'failure 3', attempt=1)
    wait_delivered(t, program, 1, 'failure 4', attempt=1)
    by_target = {r.target: r for r in proxy.wait(7)}
    t.equal('targets', sorted(by_target), sorted(list(answers) + ['http://a.invalid:81/landed', 'http://a.invalid/next']))
    t.check('Proxy-Authorization each time', all(r.get('Proxy-Authorization') for r in by_target.values()), sorted(by_target))
    time.sleep(0.3)
    proxy.drop_connections()
    time.sleep(0.3)
    program.send(datagram())
    for i in (1, 2, 3, 4):
        wait_delivered(t, program, 2, 'failure %d' % i, attempt=1)
    end(t, program, delivered=7, given_up=1, lost=0)


def test_proxy_no_proxy(t):
    """Who goes past the proxy, and who does not."""
    rows = [('127.0.0.1', True), ('*', True), ('localhost', False), ('127.0.0.1:PORT', True), ('127.0.0.1:1', False),
            ('one.example, 127.0.0.1', True), ('one.example,127.0.0.1', True), ('one.example 127.0.0.1', True),
            ('127.0.0.0/8', True), ('127.0.0.1/32', True), ('10.0.0.0/8', False), ('::1, 127.0.0.0/30', True),
            ('0.0.1', False), ('', False), ('127.0.0.10', False), (' ', False)]
    runs = []
    for name in ('NO_PROXY', 'no_proxy'):
        for value, past in rows:
            proxy = t.receiver()
            receiver = t.receiver()
            path, _ = t.config([{'url': receiver.url()}], name='%d.yaml' % len(runs), butlerWebhook=MEMORY)
            environment = proxy_environment(proxy, 'HTTP_PROXY')
            environment[name] = value.replace('PORT', str(receiver.port))
            program = t.start(path, env=environment)
            program.send(datagram())
            runs.append(('%s=%r' % (name, value), past, program, proxy, receiver))
    for what, past, program, proxy, receiver in runs:
        wait_delivered(t, program, 1)
        t.equal('%s: past the proxy' % what, (len(proxy.requests), len(receiver.requests)), (0, 1) if past else (1, 0))


def test_proxy_no_proxy_names(t):
    """A name counts with its subdomains, with a dot before it or not; those that go past the proxy are looked up here."""
    rows = [('hooks.invalid', 'hooks.invalid', True), ('a.hooks.invalid', 'hooks.invalid', True),
            ('a.b.HOOKS.invalid', 'hooks.INVALID', True), ('a.hooks.invalid', '.hooks.invalid', True),
            ('a.hooks.invalid', 'one.example,hooks.invalid', True), ('nothooks.invalid', 'hooks.invalid', False),
            ('nothooks.invalid', '.hooks.invalid', False), ('hooks.invalid', 'a.hooks.invalid', False),
            ('hooks.invalid', 'hooks.invalid:80', True), ('hooks.invalid', 'hooks.invalid:8080', False)]
    runs = []
    for host, value, past in rows:
        proxy = t.receiver()
        path, _ = t.config([{'url': 'http://%s/x' % host}], name='%d.yaml' % len(runs), butlerWebhook=MEMORY)
        program = t.start(path, env=dict(proxy_environment(proxy, 'http_proxy'), no_proxy=value))
        program.send(datagram())
        runs.append(('%s, no_proxy=%r' % (host, value), past, program, proxy))
    for what, past, program, proxy in runs:
        match = program.wait_log(r' is down: host name .* not found| delivered to ', 20)
        t.equal('%s: past the proxy' % what, (bool(match) and 'down' in match.group(), len(proxy.requests)),
                (past, 0 if past else 1))


def test_proxy_that_cannot_be_used(t):
    """A proxy of another kind in the environment is a warning, and is not used."""
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}, {'url': 'https://127.0.0.1:%d/x' % t.port()}])
    for name, value in (('all_proxy', 'socks5://127.0.0.1:1080'), ('ALL_PROXY', 'socks5h://bob:Hush-1@127.0.0.1:1080'),
                        ('http_proxy', 'https://127.0.0.1:8080'), ('HTTP_PROXY', 'http://127.0.0.1:99999/')):
        done = t.run('--check', path, env={name: value})
        t.check('%s=%s: --check warns' % (name, value),
                done.returncode == 0 and re.search('(?i)warning: .*%s' % name, done.stderr) and
                'Hush' not in done.stderr, [done.returncode, done.stderr])
    program = t.start(path, env={'all_proxy': 'socks5://127.0.0.1:1080'})
    t.check('the log warns, too', program.lines(' warn: .*all_proxy'), program.log[:5])
    program.send(datagram())
    wait_delivered(t, program, 1, 'failure 1')
    stop(t, program)


def test_proxy_no_proxy_https(t):
    proxy = t.receiver(response(502))
    receiver = tls_receiver(t)
    path, _ = t.config([{'url': receiver.url(), 'cert': trusting()}])
    program = t.start(path, env=dict(proxy_environment(proxy), NO_PROXY='127.0.0.1,::1'))
    program.send(datagram())
    wait_delivered(t, program, 1)
    t.equal('requests to the proxy', len(proxy.requests), 0)


def test_proxy_variables(t):
    """Which variable counts for which scheme; lower case wins; no scheme means http; empty is none."""
    proxy = t.receiver()
    other = t.receiver(response(502))
    receiver = t.receiver()
    here, there = 'http://127.0.0.1:%d' % proxy.port, 'http://127.0.0.1:%d' % other.port
    rows = [({'HTTPS_PROXY': there}, receiver), ({'https_proxy': there}, receiver), ({'HTTP_PROXY': ''}, receiver),
            ({'HTTP_PROXY': here}, proxy), ({'http_proxy': here}, proxy),
            ({'http_proxy': here, 'HTTP_PROXY': there}, proxy),
            ({'HTTP_PROXY': here + '/'}, proxy), ({'HTTP_PROXY': '127.0.0.1:%d' % proxy.port}, proxy), ({}, receiver),
            ({'ALL_PROXY': here}, proxy), ({'all_proxy': here}, proxy), ({'all_proxy': there, 'http_proxy': here}, proxy),
            ({'all_proxy': here, 'NO_PROXY': '127.0.0.1'}, receiver)]
    for environment, wanted in rows:
        before = len(wanted.requests)
        path, _ = t.config([{'url': receiver.url()}])
        program = t.start(path, env=environment)
        program.send(datagram())
        wait_delivered(t, program, 1)
        t.equal('%r: arrives where it should' % environment, len(wanted.wait(before + 1)), before + 1)
        program.stop()


# ---- Stopping -------------------------------------------------------------------------------------------------------


def lost_alerts(t, program, sent, webhook='failure 1'):
    lost = [event.get('taskName') for event in alerts_in(program,
                                                         r' error: alert \d+ lost for %s: ' % name_pattern(webhook))]
    t.equal('each alert is logged as lost, whole', sorted(lost), sorted(sent))


def signal_test(number):
    def test(t):
        receiver = t.receiver()
        path, _ = t.config([{'url': receiver.url()}])
        program = t.start(path)
        program.send(datagram())
        wait_delivered(t, program, 1)
        begin = time.monotonic()
        stop(t, program, number)
        t.check('an idle program stops at once', time.monotonic() - begin < 3 * harness.SLOW, time.monotonic() - begin)
        t.check('the log names the signal',
                program.lines(r' info: stopping: %s$' % harness.SYSTEM.stopped_by(number)),
                program.log[-3:])
        totals(t, program, received=1, accepted=1, delivered=1, given_up=0, lost=0)
    return test


test_stop_sigterm = signal_test(signal.SIGTERM)
test_stop_sigint = signal_test(signal.SIGINT)
test_stop_sighup = harness.unix('SIGHUP')(signal_test(signal.SIGHUP))


def moment_test(make, number=signal.SIGTERM, message='Max retries reached'):
    """
    make(t) gives the webhooks, and maybe wrap and env of the start, and ready, which waits for the moment. Without a
    journal every alert must be logged as lost, whole, and the program be gone in time; so there are few large ones.
    """
    def test(t):
        made = make(t)
        path, _ = t.config(made['webhooks'], butlerWebhook=MEMORY)
        program = t.start(path, wrap=made.get('wrap', ()), env=made.get('env'))
        sent = send_many(program, 6 if len(message) < 1000 else 2, message=message)
        wait_accepted(t, program, len(sent))
        made.get('ready', lambda: time.sleep(1))()
        time.sleep(0.5)
        stop(t, program, number)
        for i in range(len(made['webhooks'])):
            lost_alerts(t, program, sent, 'failure %d' % (i + 1))
        totals(t, program, delivered=0, given_up=0, lost=len(sent) * len(made['webhooks']))
    return test


def moment_connect(t):
    return {'webhooks': [{'url': 'http://127.0.0.1:%d/' % FullListener(t).port}]}


def moment_receiver(answer=None, https=False, **options):
    """A moment when all calls are stuck with this receiver."""
    def make(t):
        receiver = t.receiver(answer, **options)
        url = receiver.url()
        return {'webhooks': [{'url': url.replace('http:', 'https:') if https else url}],
                'ready': lambda: receiver.wait_connections(1)}
    return make


def moment_names(t):
    server = Names(t)
    return {'webhooks': [{'url': 'http://hooks.example.com/'}, {'url': 'https://other.example.com/'}],
            'wrap': server.wrap,
            'ready': lambda: wait_until(lambda: server.asked)}


def moment_proxy(t):
    proxy = t.receiver(always(hold()))
    return {'webhooks': [{'url': 'https://hooks.invalid/'}, {'url': 'http://hooks.invalid/'}],
            'ready': lambda: proxy.wait(2),
            'env': {'HTTPS_PROXY': proxy.url(), 'HTTP_PROXY': proxy.url()}}


def moment_redirect(t):
    stuck = t.receiver(always(hold()))
    receiver = t.receiver(location(307, stuck.url()))
    return {'webhooks': [{'url': receiver.url()}], 'ready': lambda: stuck.wait(1)}


MOMENTS = {
    'connect_hangs': moment_connect,
    'answer_hangs': moment_receiver(always(hold())),
    'headers_drip': moment_receiver(always(drip(head(*[b'X-A: b'] * 40), pause=0.2))),
    'interim_answers_go_on': moment_receiver(always(endless(b'', head(status=b'HTTP/1.1 102 Processing'), 0.2))),
    'tls_hangs': moment_receiver(https=True, on_connect=lambda connection: hold()),
    'tls_drips': moment_receiver(https=True, on_connect=lambda connection: drip(b'\x16\x03\x03\x3f\xff' + b'a' * 400,
                                                                                pause=0.1)),
    'names_hang': moment_names,
    'proxy_hangs': moment_proxy,
    'redirect_hangs': moment_redirect,
    'down': lambda t: {'webhooks': [{'url': 'http://127.0.0.1:%d/' % t.port()}]},
    'asked_to_wait': moment_receiver(response(429, b'', [('Retry-After', '600')])),
    'request_is_not_read': moment_receiver(OK, on_head=lambda request, connection: lambda sock: time.sleep(12)),
}


@pytest.mark.parametrize('name', MOMENTS)
def test_stop_when(t, name):
    moment_test(MOMENTS[name], message=LARGE if 'not_read' in name else 'short')(t)


test_stop_when_names_hang_sigint = moment_test(moment_names, signal.SIGINT)
test_stop_when_connect_hangs_sighup = harness.unix('SIGHUP')(moment_test(moment_connect, signal.SIGHUP))
test_stop_when_answer_hangs_sigint = moment_test(moment_receiver(always(hold())), signal.SIGINT)


def test_stop_in_backoff(t):
    """Sixty alerts wait for their next attempt: each is logged whole."""
    receiver = t.receiver(response(408))
    path, _ = t.config([{'url': receiver.url()}], butlerWebhook=MEMORY)
    program = t.start(path)
    sent = send_many(program, 60, pause=0.005)
    receiver.wait(120, timeout=20)
    stop(t, program)
    lost_alerts(t, program, sent)
    totals(t, program, received=60, accepted=60, delivered=0, given_up=0, lost=60)


def test_stop_with_thousands(t):
    """
    Thousands wait in memory for a webhook that is down: each stands in the log as lost, or is counted among the lines for
    which there was no room, also if the log is read slowly.
    """
    reader, writer = os.pipe()
    chunks = []

    def read():
        while True:
            data = os.read(reader, 65536)
            if not data:
                return
            chunks.append(data)
            time.sleep(0.01)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        path, port = t.config([{'url': 'http://127.0.0.1:%d/' % t.port()}], butlerWebhook=MEMORY)
        program = t.start(path, stdout=writer)
        os.close(writer)
        t.require('it listens', wait_until(lambda: udp_listens(port)))
        sent = send_many(program, 2000, message='m' * 900, pause=0.001)
        t.require('the alerts are accepted', wait_until(lambda: b' alert 2000 accepted' in b''.join(chunks), 20, 0.2))
        begin = time.monotonic()
        t.equal('exit code', program.stop(STOPS_S), 0)
        t.check('in time', time.monotonic() - begin < STOPS_S * harness.SLOW, time.monotonic() - begin)
        thread.join(20)
    finally:
        os.close(reader)
    program.log = b''.join(chunks).decode().splitlines()
    lost = [event.get('taskName', 'cut') for event in alerts_in(program, ' error: alert [0-9]+ lost for failure 1: ')]
    missing = sum(int(count) for line in program.log
                  for count in re.findall(r' error: (\d+) log lines (?:dropped|are missing)', line))
    t.check('each alert is logged as lost, whole, or counted', len(set(lost)) == len(lost) and set(lost) <= set(sent) and
            len(sent) <= len(lost) + missing, '%d and %d of %d' % (len(lost), missing, len(sent)))
    totals(t, program, received=2000, accepted=2000, lost=2000)


def test_stop_with_thousands_in_the_journal(t):
    """Thousands wait for a webhook that is down: none is lost, and each arrives once after the next start."""
    port = t.port()
    path, _ = t.config([{'url': 'http://127.0.0.1:%d/' % port}])
    program = t.start(path)
    sent = send_many(program, 2000, message='m' * 900, pause=0.001)
    wait_accepted(t, program, 2000, timeout=20)
    end(t, program, received=2000, accepted=2000, delivered=0, given_up=0, lost=0, waiting=2000)
    t.equal('lines of lost alerts', program.lines(r' alert \d+ (lost|dropped) '), [])
    waiting = pending(t, program)
    t.check('all wait', [item['alert'].get('taskName') for item in waiting] == sent, len(waiting))
    receiver = t.receiver(port=port)
    again = t.start(path)
    t.check('the start tells how many', again.wait_log(r' info: state directory \S+: 2000 alerts wait, '),
            again.log[-3:])
    requests = receiver.wait(2000, timeout=30)
    once_each(t, 'all arrive once', requests, sent)
    t.equal('the webhook-ids are those that waited', {r.get('webhook-id'): r.event()['taskName'] for r in requests},
            {item['webhookId']: item['alert']['taskName'] for item in waiting})
    wait_until(lambda: len(again.lines(' delivered to ')) == 2000, 20)
    end(t, again, received=0, accepted=0, delivered=2000, given_up=0, lost=0)
    t.equal('nothing waits', pending(t, again), [])


def test_stop_keeps_what_waits(t):
    """
    With a journal no alert is lost at a stop, whatever the webhooks do at that moment; the next start delivers each,
    with the webhook-id that it had.
    """
    well = threading.Event()

    def unless_well(play):
        return lambda request, connection: OK if well.is_set() else resolve(play, request, connection)

    port = t.port()
    gone = t.port()
    plays = {'answer hangs': hold(), 'headers drip': drip(head(*[b'X-A: b'] * 40), pause=0.2),
             'says 500': response(500), 'asks to wait': response(429, b'', [('Retry-After', '600')]), 'resets': cut(),
             'half': hold(b'HTTP/1.1 2'), 'redirects': location(307, 'http://127.0.0.1:%d/' % gone)}
    answering = {name: t.receiver(unless_well(play)) for name, play in plays.items()}
    in_tls = t.receiver(ssl_context=tls_context(), on_connect=lambda connection: None if well.is_set() else hold())
    webhooks = [{'url': receiver.url(), 'description': name} for name, receiver in answering.items()]
    webhooks += [{'url': 'http://127.0.0.1:%d/' % port, 'description': 'refuses'},
                 dict(hook(in_tls), description='unknown in TLS')]
    path, _ = t.config(webhooks)
    program = t.start(path)
    sent = send_many(program, 6)
    wait_accepted(t, program, 6)
    for receiver in answering.values():
        receiver.wait(1)
    time.sleep(0.5)
    count = 6 * len(webhooks)
    end(t, program, received=6, accepted=6, delivered=0, given_up=0, lost=0, waiting=(6, count))
    t.equal('lines of lost alerts', program.lines(r' alert \d+ (lost|dropped|given up) '), [])
    waiting = pending(t, program)
    t.equal('what waits on disk', len(waiting), count)
    before = {name: list(receiver.requests) for name, receiver in answering.items()}

    well.set()
    answering['refuses'] = t.receiver(port=port)
    answering['unknown in TLS'] = in_tls
    again = t.start(path)
    t.check('the start tells how many', again.wait_log(r' info: state directory \S+: (6|%d) alerts wait, ' % count),
            again.log[-3:])
    t.check('all are delivered', wait_until(lambda: len(again.lines(' delivered to ')) == count, 30),
            again.lines('failure')[-5:])
    for i, webhook in enumerate(webhooks):
        name = webhook['description']
        kept = {item['webhookId']: item['alert'] for item in waits_for(waiting, 'failure %d' % (i + 1))}
        t.equal('%s: what waited' % name, sorted(alert['taskName'] for alert in kept.values()), sorted(sent))
        old = before.get(name, [])
        new = answering[name].requests[len(old):]
        t.equal('%s: each arrives once, as it waited' % name, sorted(ids(new)), sorted(kept))
        t.check('%s: with the same body' % name, all(r.json() == kept.get(r.get('webhook-id')) for r in new))
        t.check('%s: attempts before the stop had the same webhook-ids' % name,
                all(kept.get(r.get('webhook-id')) == r.json() for r in old), ids(old))
    end(t, again, received=0, accepted=0, delivered=count, given_up=0, lost=0)
    t.equal('nothing waits', pending(t, again), [])


def test_stop_with_many_webhooks(t):
    """Twenty webhooks hang with all their senders, each in its own way."""
    full = FullListener(t)
    silent = t.receiver(always(hold()))
    mute = t.receiver(on_connect=lambda connection: hold())
    urls = ['http://127.0.0.1:%d/' % full.port, silent.url(), mute.url().replace('http:', 'https:'),
            'http://127.0.0.1:%d/' % t.port()]
    path, _ = t.config([{'url': urls[i % 4]} for i in range(20)], butlerWebhook=MEMORY)
    program = t.start(path)
    sent = send_many(program, 8)
    wait_accepted(t, program, 8)
    time.sleep(1)
    stop(t, program)
    for i in range(20):
        lost_alerts(t, program, sent, 'failure %d' % (i + 1))
    totals(t, program, delivered=0, given_up=0, lost=160)


def test_stop_in_body(t):
    """Bodies that never end do not hold up the end, and take nothing back."""
    receiver = t.receiver(by_path({'/drip': drip(b'a' * 100, head(b'Content-Length: 100')),
                                   '/endless': endless(head(CHUNKED), b'5\r\nhello\r\n', 0.05)}))
    path, _ = t.config([{'url': receiver.url('/drip')}, {'url': receiver.url('/endless')}])
    program = t.start(path)
    send_many(program, 4)
    for number in range(1, 5):
        wait_delivered(t, program, number, 'failure 1')
        wait_delivered(t, program, number, 'failure 2')
    end(t, program, delivered=8, given_up=0, lost=0)


def burst_test(pause, count, wait, **settings):
    def test(t):
        """What has just arrived is delivered, logged as lost, or waits on disk."""
        def answer(request, connection):
            time.sleep(pause)
            return OK

        receiver = t.receiver(answer)
        path, _ = t.config([{'url': receiver.url()}], **settings)
        program = t.start(path)
        sent = send_many(program, count)
        time.sleep(wait)
        stop(t, program)
        told = all_told(t, program, sent)
        arrived = set(names(receiver.requests))
        t.equal('what is called delivered has arrived', [n for n, words in told.items() if 'delivered' in words
                                                         and n not in arrived], [])
        t.equal('nothing arrived twice', len(receiver.requests), len(set(ids(receiver.requests))))
        totals(t, program, received=count, accepted=count,
               delivered=len([n for n, words in told.items() if 'delivered' in words]),
               lost=len([n for n, words in told.items() if 'lost' in words]),
               waiting=len([n for n, words in told.items() if 'waits' in words]))
        t.check('nothing is lost where there is a disk', settings or not program.lines(' lost for '))
    return test


test_stop_after_burst_fast = burst_test(0, 300, 0, butlerWebhook=MEMORY)
test_stop_after_burst_slow = burst_test(0.3, 300, 0, butlerWebhook=MEMORY)
test_stop_after_burst_slow_with_journal = burst_test(0.3, 300, 0)
test_stop_after_burst_later = burst_test(0.05, 300, 0.5, butlerWebhook=MEMORY)
test_stop_after_burst_later_with_journal = burst_test(0.05, 300, 0.5)


def test_stop_sends_what_is_due(t):
    """Alerts that wait for a working webhook are still sent."""
    def answer(request, connection):
        time.sleep(0.1)
        return OK

    receiver = t.receiver(answer)
    path, _ = t.config([{'url': receiver.url()}])
    program = t.start(path)
    sent = send_many(program, 30)
    receiver.wait(1)
    stop(t, program)
    once_each(t, 'all arrive', receiver.requests, sent)
    totals(t, program, received=30, accepted=30, delivered=30, given_up=0, lost=0)


def test_stop_waits_for_calls(t):
    """A call in flight has some seconds to end."""
    receiver = t.receiver(lambda request, connection: time.sleep(1.5) or OK)
    path, _ = t.config([{'url': receiver.url()}])
    program = t.start(path)
    send_many(program, 2)
    receiver.wait(2)
    stop(t, program)
    totals(t, program, delivered=2, given_up=0, lost=0)
    t.equal('requests', len(receiver.requests), 2)


def test_stop_cuts_no_short_call(t):
    """While more waits than a stop can send, the last call begins early enough for its answer: nothing is sent twice."""
    receiver = t.receiver(lambda request, connection: time.sleep(0.7) or OK)
    path, _ = t.config([{'url': receiver.url()}], butlerWebhook={'maxConcurrent': 1})
    program = t.start(path)
    send_many(program, 30)
    receiver.wait(1)
    stop(t, program)
    delivered = len(program.lines(' delivered to '))
    t.check('some are sent, and some are left', 1 < delivered < 30, delivered)
    t.equal('each request was answered in time', len(receiver.requests), delivered)
    totals(t, program, received=30, accepted=30, delivered=delivered, given_up=0, lost=0, waiting=30 - delivered)


def signals_test(*signals):
    def test(t):
        """A second signal and a third change nothing."""
        receiver = t.receiver(always(hold()))
        path, _ = t.config([{'url': receiver.url()}], butlerWebhook=MEMORY)
        program = t.start(path)
        sent = send_many(program, 3)
        receiver.wait(3)
        for number in signals[:-1]:
            program.send_signal(number)
            time.sleep(0.5)
        stop(t, program, signals[-1])
        lost_alerts(t, program, sent)
    return test


test_stop_twice_by_sigterm = signals_test(signal.SIGTERM, signal.SIGTERM)
test_stop_by_sigint_then_sigterm = signals_test(signal.SIGINT, signal.SIGTERM)
test_stop_by_three_signals = signals_test(signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def test_stop_under_flood(t):
    """Datagrams that go on coming do not keep it from ending."""
    receiver = t.receiver()
    path, port = t.config([{'url': receiver.url()}])
    program = t.start(path)
    over = threading.Event()

    def flood():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            data = datagram(id='/scheduler-task-success/')
            while not over.is_set():
                for _ in range(200):
                    try:
                        udp.sendto(data, ('127.0.0.1', port))
                    except OSError:
                        pass
                time.sleep(0.005)

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    try:
        program.send(datagram())
        wait_delivered(t, program, 1)
        stop(t, program)
    finally:
        over.set()
        thread.join()


FLOOD = """
import os, socket, sys
pieces, port = int(sys.argv[1]), int(sys.argv[2])
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.connect(('127.0.0.1', port))
names = b'a;b;' if pieces == 0 else (b'a' * 980 + b';') * pieces
number = 0
while os.getppid() == int(sys.argv[3]):
    for _ in range(200):
        number += 1
        data = (b'/scheduler-task-failed/;h;%su;%08x-0000-4000-8000-%012x;11111111-0000-4000-8000-000000000001;d;ERROR;'
                b'%08x-0000-4000-8000-%012x;m' % (names, number, os.getpid(), number, os.getpid()))
        try:
            udp.send(data)
        except OSError:
            pass
"""


def flood_test(senders, pieces):
    @harness.alone
    def test(t):
        """Datagrams as fast as they can be sent do not keep it from ending."""
        if SANITIZED:
            t.skip('a sanitizer is too slow to log that much in five seconds')
        path, port = t.config([{'url': 'http://127.0.0.1:%d/' % t.port()}])
        program = t.start(path)
        floods = []
        try:
            for _ in range(senders):
                floods.append(subprocess.Popen([sys.executable, '-c', FLOOD, str(pieces), str(port), str(os.getpid())],
                                               stdin=subprocess.DEVNULL))
            t.require('it hears of the flood', program.wait_log(r' accepted'), program.log[-3:])
            time.sleep(2)
            begin = time.monotonic()
            t.equal('exit code', program.stop(STOPS_S), 0)
            t.check('it stops in time', time.monotonic() - begin < STOPS_S * harness.SLOW, time.monotonic() - begin)
            t.check('the last line counts, but for one about missing lines',
                    re.search(r' info: stopped: .*(\n\S+ error: \d+ log lines are missing.*)?$', '\n'.join(program.log[-2:])),
                    program.log[-2:])
        finally:
            for flood in floods:
                flood.kill()
                flood.wait()
    return test


test_stop_under_full_flood_of_alerts = flood_test(2, 0)
test_stop_under_full_flood_of_names = flood_test(1, 64)
test_stop_under_full_flood_of_names_by_two = flood_test(2, 64)


def test_stop_when_server_host_hangs(t):
    """The name to listen on is asked for at a name server that never answers."""
    server = Names(t)
    path, _ = t.config([{'url': 'http://127.0.0.1:%d/' % t.port()}], udp={'serverHost': 'listen.example.com'})
    program = t.start(path, wrap=server.wrap, wait=False)
    t.require('the name is asked for', wait_until(lambda: server.asked), program.stderr)
    time.sleep(0.3)
    program.expect_exit = None
    begin = time.monotonic()
    code = program.stop(STOPS_S)
    t.check('it ends', code in (0, -signal.SIGTERM, -signal.SIGINT), code)
    t.check('in time', time.monotonic() - begin < STOPS_S * harness.SLOW, time.monotonic() - begin)
    t.equal('it never listened', program.lines(' info: listening on '), [])


def ignored_signal_test(number, name):
    def test(t):
        """A signal that was ignored at the start, as by nohup, stays without effect; the others still work."""
        receiver = t.receiver()
        path, _ = t.config([{'url': receiver.url()}])
        program = t.start(path, wrap=['sh', '-c', 'trap "" %s; exec "$@"' % name, 'sh'])
        program.send_signal(number)
        time.sleep(0.5)
        t.require('it still runs', program.running(), program.log[-3:])
        program.send(datagram())
        wait_delivered(t, program, 1)
        t.equal('no word of the signal', program.lines('stopping'), [])
        end(t, program, delivered=1, given_up=0, lost=0)
        t.check('the log names the signal that counts', program.lines(r'stopping: SIGTERM received$'), program.log[-3:])
    return test


test_stop_not_by_sighup_under_nohup = harness.unix('SIGHUP')(ignored_signal_test(signal.SIGHUP, 'HUP'))
test_stop_not_by_sigint_in_background = harness.unix('ignored signals')(ignored_signal_test(signal.SIGINT, 'INT'))


def test_stop_at_once(t):
    """A signal right after the start, whenever it comes."""
    path, _ = t.config([{'url': 'http://127.0.0.1:%d/' % t.port()}])
    for i in range(12):
        program = t.start(path, wait=False)
        program.expect_exit = None
        time.sleep(i * 0.003)
        program.send_signal()
        code = program.wait(STOPS_S)
        t.check('it ends', code in (0, -signal.SIGTERM, -signal.SIGINT), code)
        t.check('with 0 once it listens', code == 0 or not program.lines(' listening on '), program.log)
        t.equal('stderr', program.stderr, '')


def udp_listens(port):
    """Whether somebody listens on this port; for programs whose log cannot be read."""
    for name in ('/proc/net/udp', '/proc/net/udp6'):
        try:
            with open(name) as file:
                if re.search(r':%04X 0+:0000 ' % port, file.read()):
                    return True
        except OSError:
            pass
    return False


def full_pipe():
    """The ends of a pipe that takes not one byte more."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b'x' * 4096)
    except BlockingIOError:
        pass
    try:
        while True:
            os.write(writer, b'x')
    except BlockingIOError:
        pass
    os.set_blocking(writer, True)
    return reader, writer


def unread_end(t, program):
    """Stops a program whose console nobody reads: if that makes its log hang, exit code 1, and the counts on stderr."""
    program.expect_exit, program.expect_stderr = None, True
    code = program.stop(STOPS_S)
    t.check('exit code',
            code == 0 and program.stderr == '' or code == 1 and re.search(r'\d accepted\b.*\d delivered\b', program.stderr),
            [code, program.stderr])


@harness.unix('a FIFO for a log file')
def test_stop_log_disk_hangs(t):
    """The disk with the log file hangs: alerts go on; the end comes in time, with exit code 1 and the counts on stderr."""
    folder = os.path.join(t.tmp, 'log')
    os.mkdir(folder)
    held = []
    for day in (0, 86400):
        path = os.path.join(folder, 'butler_webhook.%s.log' % time.strftime('%Y-%m-%d', time.gmtime(time.time() + day)))
        os.mkfifo(path)
        # A reader that never reads: what is written fills it, and waits.
        held.append(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    try:
        receiver = t.receiver()
        path, _ = t.config([{'url': receiver.url()}], fileLogging=True, logDirectory='log')
        program = t.start(path)
        sent = send_many(program, 500, pause=0.001)
        once_each(t, 'all arrive', receiver.wait(500, timeout=20), sent)
        begin = time.monotonic()
        program.expect_exit, program.expect_stderr = 1, True
        t.equal('exit code', program.stop(STOPS_S), 1)
        t.check('in time', time.monotonic() - begin < 5.5 * harness.SLOW, time.monotonic() - begin)
        t.check('stderr has the counts',
                re.search(r'\b500 received\b.*\b500 accepted\b.*\b500 delivered\b.*\blost\b', program.stderr),
                repr(program.stderr))
    finally:
        for descriptor in held:
            os.close(descriptor)


def test_stop_stdout_not_read(t):
    """Nobody reads the log: alerts go on, and the end comes in time."""
    reader, writer = full_pipe()
    try:
        receiver = t.receiver()
        path, port = t.config([{'url': receiver.url()}])
        program = t.start(path, stdout=writer)
        t.require('it listens', wait_until(lambda: udp_listens(port)))
        sent = send_many(program, 100, pause=0.002)
        once_each(t, 'all arrive', receiver.wait(100), sent)
        begin = time.monotonic()
        unread_end(t, program)
        t.check('in time', time.monotonic() - begin < STOPS_S * harness.SLOW)
    finally:
        os.close(reader)
        os.close(writer)


def test_stop_stdout_read_again(t):
    """Lines that found no room are counted, and told when somebody reads again."""
    reader, writer = full_pipe()
    try:
        receiver = t.receiver(response(404))
        path, port = t.config([{'url': receiver.url()}], butlerWebhook=MEMORY)      # so that each line holds its alert
        program = t.start(path, stdout=writer)
        t.require('it listens', wait_until(lambda: udp_listens(port)))
        sent = send_many(program, 60, pause=0.01, message='a' * 40000)
        once_each(t, 'all arrive', receiver.wait(60), sent)
        os.close(writer)
        writer = None
        chunks = []

        def read():
            while True:
                data = os.read(reader, 65536)
                if not data:
                    return
                chunks.append(data)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        wait_until(lambda: b'missing' in b''.join(chunks), 5)
        t.equal('exit code', program.stop(STOPS_S), 0)
        thread.join(10)
        text = harness.SYSTEM.output(b''.join(chunks)).decode().lstrip('x')
        t.check('the log tells how many lines are missing',
                re.search(r'(?m)^\S+ \w+: .*\b\d+ .*(dropped|lost|missing)', text), text[-600:])
        t.check('the last line is there',
                re.search(r' info: stopped: 60 received, 60 accepted, 0 delivered, 60 given up, 0 lost, '
                          r'0 waiting\n(\S+ error: \d+ log lines are missing.*\n)?$', text),
                text[-300:])
    finally:
        os.close(reader)
        if writer is not None:
            os.close(writer)


def test_stop_stdout_closed(t):
    """Whoever read the log is gone: no SIGPIPE, alerts go on."""
    reader, writer = os.pipe()
    receiver = t.receiver()
    path, port = t.config([{'url': receiver.url()}])
    program = t.start(path, stdout=writer)
    os.close(writer)
    t.require('it listens', wait_until(lambda: udp_listens(port)))
    os.close(reader)
    for i in range(5):
        program.send(datagram(task='task %d' % i))
        receiver.wait(i + 1)
    t.equal('all arrive', len(receiver.wait(5)), 5)
    t.equal('exit code', program.stop(STOPS_S), 0)


@harness.unix('wine does not run without standard streams')
def test_stop_no_descriptors_at_start(t):
    """Started without stdin, stdout and stderr: the log does not go to a webhook."""
    receiver = t.receiver()
    path, port = t.config([{'url': receiver.url()}])
    program = t.start(path, wrap=['sh', '-c', 'exec "$@" <&- >&- 2>&-', 'sh'], wait=False)
    t.require('it listens', wait_until(lambda: udp_listens(port)))
    for i in range(3):
        program.send(datagram(task='task %d' % i))
        receiver.wait(i + 1)
    requests = receiver.wait(3)
    t.equal('requests', [(r.line, list(r.json())) for r in requests], [('POST / HTTP/1.1', FIELDS)] * 3)
    t.equal('errors of the receiver', receiver.errors, [])
    t.equal('exit code', program.stop(STOPS_S), 0)


def test_stop_stdout_full_device(t):
    """A log on a full disk does not stop anything."""
    receiver = t.receiver()
    path, port = t.config([{'url': receiver.url()}])
    with open('/dev/full', 'w') as full:
        program = t.start(path, stdout=full.fileno())
    t.require('it listens', wait_until(lambda: udp_listens(port)))
    sent = send_many(program, 10)
    once_each(t, 'all arrive', receiver.wait(10), sent)
    t.equal('exit code', program.stop(STOPS_S), 0)


# ---- Limits ---------------------------------------------------------------------------------------------------------


@limit(120)
@harness.unix('a limit on descriptors hits wine itself')
def test_limits_few_descriptors(t):
    """Fewer descriptors than connections are wanted: the alerts wait, and arrive."""
    receivers = [t.receiver(lambda request, connection: time.sleep(0.05) or response(200, b'', close=True))
                 for _ in range(5)]
    path, _ = t.config([{'url': receiver.url()} for receiver in receivers])
    program = t.start(path, wrap=['sh', '-c', 'ulimit -n 14; exec "$@"', 'sh'])
    sent = send_many(program, 20)
    wait_accepted(t, program, 20)
    for receiver in receivers:
        once_each(t, 'all arrive', receiver.wait(20, timeout=60), sent)
    wait_until(lambda: len(program.lines(' delivered to ')) == 100)
    end(t, program, accepted=20, delivered=100, given_up=0, lost=0)


@harness.unix('a limit on descriptors hits wine itself')
def test_limits_too_few_descriptors(t):
    """However few there are: it runs, or says what is wrong."""
    path, _ = t.config([{'url': 'http://127.0.0.1:%d/' % t.port()}])
    for count in range(3, 14):
        program = t.start(path, wrap=['sh', '-c', 'ulimit -n %d; exec "$@"' % count, 'sh'], wait=False,
                          env={'ASAN_OPTIONS': 'detect_leaks=0'})     # that needs descriptors itself
        program.expect_exit = None
        program.expect_stderr = True
        if program.wait_log(' listening on ', 5):
            program.send(datagram())
            program.wait_log(' accepted')
            t.equal('%d descriptors: exit code of a run' % count, program.stop(STOPS_S), 0)
            t.equal('%d descriptors: stderr of a run' % count, program.stderr, '')
        else:
            code = program.wait(5)
            t.check('%d descriptors: exit code' % count, code in (1, 2) or (SANITIZED and code == 127), code)
            t.check('%d descriptors: it says why' % count, program.stderr.strip() or SANITIZED, repr(program.stderr))


def test_limits_50_webhooks(t):
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url('/%d' % i), 'method': ('GET', 'POST', 'PUT')[i % 3],
                         'description': 'number %d' % i}
                        for i in range(50)])
    program = t.start(path)
    sent = send_many(program, 3)
    t.check('the log counts the webhooks', program.wait_log(r' alert 1 accepted: .* for 50 webhook'), program.log[-3:])
    requests = receiver.wait(150, timeout=20)
    for i in range(50):
        once_each(t, 'webhook %d gets each alert once' % i, [r for r in requests if r.path == '/%d' % i], sent)
    t.equal('webhook-ids', len(set(ids(requests))), 150)
    t.check('form of the webhook-ids', all(re.fullmatch(r'msg_[0-9a-f]{32}_f_[0-9a-f]{8}', name) for name in ids(requests)),
            ids(requests)[:1])
    wait_until(lambda: len(program.lines(' delivered to ')) == 150)
    end(t, program, delivered=150)


def threads(program):
    """The number of its threads, of which the thread sanitizer has one of its own."""
    return len(os.listdir('/proc/%d/task' % program.pid)) - ('tsan' in program.command[-2])


@harness.unix('the threads of wine itself')
def test_limits_threads(t):
    """However many webhooks there are: at rest no more than three threads, after a burst, too."""
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url('/%d' % i)} for i in range(200)])
    program = t.start(path)
    for turn in (1, 2):
        send_many(program, 5)
        t.check('all are delivered', program.wait_log(' delivered to ', 20, turn * 1000), len(program.lines(' delivered to ')))
        wait_rest(program)
        t.check('threads at rest', threads(program) <= 3, threads(program))
    end(t, program, delivered=2000, given_up=0, lost=0)


def test_limits_200_alerts(t):
    """Two hundred alerts at once: at most four calls at a time, each alert once."""
    lock = threading.Lock()
    now = [0, 0]

    def answer(request, connection):
        with lock:
            now[0] += 1
            now[1] = max(now)
        time.sleep(0.03)
        with lock:
            now[0] -= 1
        return OK

    receiver = t.receiver(answer)
    path, _ = t.config([{'url': receiver.url()}])
    program = t.start(path)
    sent = send_many(program, 200)
    once_each(t, 'each arrives once', receiver.wait(200, timeout=20), sent)
    t.check('two to four at a time', 2 <= now[1] <= 4, now[1])
    t.check('on as few connections', len(receiver.connections) <= 4, len(receiver.connections))
    wait_until(lambda: len(program.lines(' delivered to ')) == 200)
    end(t, program, received=200, accepted=200, delivered=200, given_up=0, lost=0)
