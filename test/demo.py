#!/usr/bin/env python3
"""
Shows the main job of butler_webhook on real datagrams: starts two receivers (http and https), starts the program with
test/demo.yaml, sends it what Qlik Sense's scheduler sends, and prints each call that arrives. Ends by itself: with
exit code 0 if every call that should arrive did and no other, else with 1 and a message. The ports of test/demo.yaml are
replaced by free ones, in a copy of the file.
"""

import http.server
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CERTIFICATES = os.path.join(ROOT, 'build/demo')
SAMPLE_PORTS = {'udp': 19998, 'http': 18080, 'https': 18443}
WIDTH = 110
PATIENCE_S = 5 * harness.SLOW       # for what should happen
SILENCE_S = 0.4     # how long nothing must arrive, after the log has said that nothing will

FIELDS = ('hostName', 'taskName', 'appName', 'user', 'taskId', 'appId', 'logTimeStamp', 'logLevel', 'executionId',
          'logMessage')
EVENT_FAILED = 'Qlik Sense reload failed'
EVENT_ABORTED = 'Qlik Sense reload aborted'


class Failure(Exception):
    """The demo did not go as it should; the text says what is wrong."""


def say(text, indent=3):
    """Prints text, long lines broken after spaces and the separators of datagrams, JSON and queries."""
    for line in text.split('\n'):
        out = ' ' * indent
        for word in re.findall(r'[^ ;,&]*[ ;,&]|[^ ;,&]+', line):
            if len(out) + len(word.rstrip()) > WIDTH and out.strip():
                print(out.rstrip(), flush=True)
                out = ' ' * (indent + 2)
            out += word
        print(out.rstrip(), flush=True)


def headline(text):
    print('\n== %s' % text, flush=True)


def openssl(*args):
    if not shutil.which('openssl'):
        raise Failure('openssl is not installed: apt-get install openssl')
    done = subprocess.run(('openssl',) + args, capture_output=True, text=True, cwd=CERTIFICATES)
    if done.returncode:
        raise Failure('openssl %s: %s' % (args[0], done.stderr.strip()))


def make_certificates():
    """Makes a CA and a certificate for localhost that it has signed, in build/demo; nothing is done if they are there."""
    if all(os.path.exists(os.path.join(CERTIFICATES, name)) for name in ('ca.pem', 'server.pem', 'server.key')):
        return
    os.makedirs(CERTIFICATES, exist_ok=True)
    with open(os.path.join(CERTIFICATES, 'server.ext'), 'w', encoding='ascii') as file:
        file.write('subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n')
    key = ('-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes')
    openssl('req', '-x509', *key, '-keyout', 'ca.key', '-out', 'ca.pem', '-days', '3650',
            '-subj', '/CN=butler_webhook demo CA', '-addext', 'keyUsage=critical,keyCertSign')
    openssl('req', *key, '-keyout', 'server.key', '-out', 'server.csr', '-subj', '/CN=localhost')
    openssl('x509', '-req', '-in', 'server.csr', '-CA', 'ca.pem', '-CAkey', 'ca.key', '-set_serial', '2',
            '-days', '3650', '-extfile', 'server.ext', '-out', 'server.pem')


def make_config():
    """Makes a folder with a copy of test/demo.yaml in which free ports stand: a second demo beside this one has another."""
    os.makedirs(CERTIFICATES, exist_ok=True)
    folder = tempfile.mkdtemp(prefix='run-', dir=CERTIFICATES)
    ports = {name: harness.free_port() for name in SAMPLE_PORTS}
    with open(os.path.join(ROOT, 'test/demo.yaml'), encoding='utf-8') as file:
        text = file.read()
    for name, port in SAMPLE_PORTS.items():
        if str(port) not in text:
            raise Failure('test/demo.yaml does not use port %d' % port)
        text = re.sub(r'\b%d\b' % port, str(ports[name]), text)
    with open(os.path.join(folder, 'demo.yaml'), 'w', encoding='utf-8') as file:
        file.write(text.replace('../build/demo/', '../'))   # where the certificates are, as seen from the copy
    return folder, ports


class Call:
    """One call as it arrived: method, URL, the fields of the alert, and the TLS version or None."""

    def __init__(self, method, url, body, tls):
        self.method, self.url, self.body, self.tls = method, url, body, tls
        self.route = '%s %s' % (method, url.partition('?')[0])

    def fields(self):
        if self.method == 'GET':
            return dict(urllib.parse.parse_qsl(self.url.partition('?')[2], keep_blank_values=True))
        try:
            return json.loads(self.body.decode('utf-8'))
        except ValueError as error:
            raise Failure('%s has a body that is not JSON: %s' % (self.route, error)) from error

    def show(self, shown):
        """Prints the call; its body only if it is not among those that were shown, to which it is added."""
        say('%-4s %s%s' % (self.method, self.url, '   (%s)' % self.tls if self.tls else ''), 5)
        if self.body:
            say('the same body' if self.body in shown else self.body.decode('utf-8', 'backslashreplace'), 10)
            shown.add(self.body)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers 200 to everything and keeps what arrived."""
    protocol_version = 'HTTP/1.1'

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        tls = self.connection.version() if self.server.base.startswith('https') else None
        call = Call(self.command, self.server.base + self.path, body, tls)
        with self.server.receivers.changed:
            self.server.receivers.calls.append(call)
            self.server.receivers.changed.notify_all()
        self.send_response(200)
        self.send_header('Content-Length', '3')
        self.end_headers()
        self.wfile.write(b'ok\n')

    do_GET = do_PUT = do_POST

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass        # a connection that broke: the missing call is what the demo complains about


class Receivers:
    """An http and an https server on 127.0.0.1."""

    def __init__(self, ports):
        self.calls = []
        self.changed = threading.Condition()
        self.servers = []
        for port, base in ((ports['http'], 'http://127.0.0.1:%d'), (ports['https'], 'https://localhost:%d')):
            server = Server(('127.0.0.1', port), Handler)
            server.receivers, server.base = self, base % port
            if base.startswith('https'):
                tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                tls.load_cert_chain(os.path.join(CERTIFICATES, 'server.pem'), os.path.join(CERTIFICATES, 'server.key'))
                server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
            threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True).start()
            self.servers.append(server)

    def take(self, count):
        """The calls that arrived since the last time, once there are count of them; Failure if they do not come."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.calls) >= count, PATIENCE_S)
            calls, self.calls = self.calls, []
        if len(calls) < count:
            raise Failure('%d of %d calls arrived within %d s: %s' %
                          (len(calls), count, PATIENCE_S, ', '.join(call.route for call in calls) or 'none'))
        return calls

    def stop(self):
        for server in self.servers:
            server.shutdown()
            server.server_close()


class Program:
    """butler_webhook with a configuration; keeps the lines of its log."""

    def __init__(self, config):
        env = {name: value for name, value in os.environ.items() if not name.lower().endswith('_proxy')}
        self.lines = []
        self.shown = 0
        self.changed = threading.Condition()
        env.update(harness.SYSTEM.environment())
        command = harness.SYSTEM.command(harness.BINARY, [os.path.relpath(config, ROOT)])
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, encoding='utf-8', errors='backslashreplace')
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self.changed:
                self.lines.append(line.rstrip('\n'))
                self.changed.notify_all()

    def wait_line(self, pattern, count=1):
        """Waits until count lines that were not shown yet match the pattern, then shows all new lines."""
        def found():
            return sum(bool(re.search(pattern, line)) for line in self.lines[self.shown:])

        with self.changed:
            good = self.changed.wait_for(lambda: found() >= count, PATIENCE_S)
            new = self.lines[self.shown:]
            self.shown = len(self.lines)
        say('log of butler_webhook:')
        for line in new:
            say(line, 5)
        if not good:
            raise Failure('the log does not say "%s"' % pattern)

    def stop(self):
        """Stops the program as a service manager does; the exit code."""
        self.process.send_signal(harness.SYSTEM.signal(signal.SIGTERM))
        try:
            code = self.process.wait(PATIENCE_S + 2)
        except subprocess.TimeoutExpired as error:
            raise Failure('butler_webhook does not stop when it is told to') from error
        self.reader.join(2)
        return code

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def recording(name):
    with open(os.path.join(ROOT, 'test/data/datagrams', name + '.bin'), 'rb') as file:
        return file.read()


def with_ids(datagram, task_id, execution_id):
    """The same bytes with other ids, as all recordings are of one task."""
    fields = datagram.split(b';')
    fields[5], fields[9] = task_id or fields[5], execution_id
    return b';'.join(fields)


def send(port, datagram, encoding='utf-8'):
    say('the scheduler sends %d bytes to 127.0.0.1:%d (UDP%s):' %
        (len(datagram), port, '' if encoding == 'utf-8' else ', code page 1252'))
    say(datagram.decode(encoding), 5)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.sendto(datagram, ('127.0.0.1', port))


def expect_calls(receivers, routes, event, datagram, encoding='utf-8'):
    """Takes and shows the calls, and checks that they went where they should and say what the datagram said."""
    calls = receivers.take(len(routes))
    say('the receivers get:')
    shown = set()
    for call in sorted(calls, key=lambda call: routes.index(call.route) if call.route in routes else len(routes)):
        call.show(shown)
    if sorted(call.route for call in calls) != sorted(routes):
        raise Failure('wanted %s, got %s' % (routes, [call.route for call in calls]))
    wanted = dict(zip(FIELDS, datagram.decode(encoding).split(';')[1:]), event=event)
    for call in calls:
        for name, value in wanted.items():
            if call.fields().get(name) != value:
                raise Failure('%s: %s is %r, the datagram said %r' % (call.route, name, call.fields().get(name), value))
        if call.url.startswith('https:') and not call.tls:
            raise Failure('%s came without TLS' % call.route)
    return len(calls)


def expect_silence(receivers):
    time.sleep(SILENCE_S)
    calls = receivers.take(0)
    if calls:
        raise Failure('no call should have come, but these did: %s' % ', '.join(call.route for call in calls))
    say('the receivers get nothing, as it should be')


def play(receivers, program, ports):
    """The scenes; returns how many calls arrived."""
    udp = ports['udp']
    base = 'http://127.0.0.1:%d' % ports['http']
    failure_routes = ['POST %s/failed' % base, 'GET %s/pager' % base, 'POST https://localhost:%d/tickets' % ports['https']]

    headline('butler_webhook starts with test/demo.yaml, in which free ports were put')
    program.wait_line(r' info: listening on 127\.0\.0\.1:%d ' % udp)

    headline('1. A reload task has failed: three webhooks are called, one of them by https with a CA of its own')
    failed = recording('001-a-plain-failed')
    send(udp, failed)
    arrived = expect_calls(receivers, failure_routes, EVENT_FAILED, failed)
    program.wait_line(r' info: alert \d+ delivered ', 3)

    headline('2. The same event a second time, as two log appenders send it: a duplicate')
    send(udp, failed)
    program.wait_line(r' duplicate ignored: ')
    expect_silence(receivers)

    headline('3. The same task fails again at once: the rate limit (300 s for each task) holds it back')
    send(udp, with_ids(failed, None, b'0b7f2f0c-9d0e-4f5a-8a53-3c1f7a6e2d11'))
    program.wait_line(r' held back by the rate limit: ')
    expect_silence(receivers)

    headline('4. Somebody stops a reload task: another kind of event, with its own webhook and its own rate limit')
    aborted = recording('002-a-aborted')
    send(udp, aborted)
    arrived += expect_calls(receivers, ['PUT %s/aborted' % base], EVENT_ABORTED, aborted)
    program.wait_line(r' info: alert \d+ delivered ')

    headline('5. A reload task succeeds: known, but nothing to call anybody for')
    send(udp, recording('003-a-success'))
    program.wait_line(r' verbose: ignored: ')
    expect_silence(receivers)

    headline('6. Another task fails; its server sends Windows-1252 instead of UTF-8. The text arrives as it was meant')
    swedish = with_ids(recording('156-b1-cp1252-swedish'), b'5c9f6a52-7f3a-4a0e-bd0c-3f0f7f0a9b21',
                       b'c2a1d6de-5a6b-4b0e-9b36-8f3a3c6e7d42')
    send(udp, swedish, 'cp1252')
    arrived += expect_calls(receivers, failure_routes, EVENT_FAILED, swedish, 'cp1252')
    program.wait_line(r' info: alert \d+ delivered ', 3)

    headline('butler_webhook is stopped')
    code = program.stop()
    program.wait_line(r' info: stopped: 6 received, 3 accepted, 7 delivered, 0 given up, 0 lost, 0 waiting$')
    if code:
        raise Failure('butler_webhook ended with exit code %d' % code)
    expect_silence(receivers)
    return arrived


def main():
    sys.stdout.reconfigure(errors='backslashreplace')
    receivers = program = folder = None
    try:
        if not os.access(harness.BINARY, os.X_OK):
            raise Failure('%s is not there: run make' % harness.BINARY)
        harness.SYSTEM.begin()
        make_certificates()
        folder, ports = make_config()
        receivers = Receivers(ports)
        program = Program(os.path.join(folder, 'demo.yaml'))
        arrived = play(receivers, program, ports)
    except (Failure, OSError) as failure:
        if program is not None and program.process.poll():
            say('\n'.join(program.lines[-20:]))
        print('\ndemo FAILED: %s' % failure, flush=True)
        return 1
    finally:
        if program is not None:
            program.kill()
        if receivers is not None:
            receivers.stop()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        harness.SYSTEM.end()
    print('\ndemo passed: %d calls arrived as they should, and no other.' % arrived, flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
