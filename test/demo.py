#!/usr/bin/env python3
"""
Shows the main job of butler_webhook on real datagrams: starts two receivers (http and https), starts the program with
test/demo.yaml, sends it what Qlik Sense's scheduler sends, and prints each call that arrives. Ends by itself: with
exit code 0 if every call that should arrive did and no other, else with 1 and a message. The ports of test/demo.yaml are
replaced by free ones, in a copy of the file.
"""

import os
import queue
import re
import ssl
import sys

import harness
import servers
import words

CERTIFICATES = os.path.join(harness.ROOT, 'build/demo')
WIDTH = 110
PATIENCE_S = 5
SILENCE_S = 0.4     # how long nothing must arrive, after the log has said that nothing will

FIELDS = ('hostName', 'taskName', 'appName', 'user', 'taskId', 'appId', 'logTimeStamp', 'logLevel', 'executionId',
          'logMessage')
EVENTS = {'/scheduler-task-failed/': 'Qlik Sense reload failed', '/scheduler-task-aborted/': 'Qlik Sense reload aborted'}


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


def make_certificates():
    """Makes a CA and a certificate for localhost that it has signed, in build/demo; nothing is done if they are there."""
    if all(os.path.exists(os.path.join(CERTIFICATES, name)) for name in ('ca.pem', 'server.pem', 'server.key')):
        return
    os.makedirs(CERTIFICATES, exist_ok=True)
    servers.write_file(os.path.join(CERTIFICATES, 'server.ext'), 'subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n')
    for args in (
            ['req', '-x509', *servers.new_key('P-256', 'ca.key'), '-out', 'ca.pem', '-days', '3650',
             '-subj', '/CN=butler_webhook demo CA', '-addext', 'keyUsage=critical,keyCertSign'],
            ['req', *servers.new_key('P-256', 'server.key'), '-out', 'server.csr', '-subj', '/CN=localhost'],
            ['x509', '-req', '-in', 'server.csr', '-CA', 'ca.pem', '-CAkey', 'ca.key', '-set_serial', '2',
             '-days', '3650', '-extfile', 'server.ext', '-out', 'server.pem']):
        servers.openssl(*args, cwd=CERTIFICATES)


def recording(name, **ids):
    """A recorded datagram, as bytes; with other ids if some are given, as all recordings are of one task."""
    fields = servers.read_bytes(os.path.join(harness.ROOT, 'test/data/datagrams', name + '.bin')).split(b';')
    for field, value in ids.items():
        fields[1 + FIELDS.index(field)] = value.encode()
    return b';'.join(fields)


class Demo:
    """The receivers and the program; how many calls have arrived and how many lines of the log were shown so far."""

    def __init__(self, t):
        self.t = t
        self.calls = queue.Queue()
        self.arrived = self.shown = 0
        make_certificates()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(os.path.join(CERTIFICATES, 'server.pem'), os.path.join(CERTIFICATES, 'server.key'))
        self.http = self.receiver('127.0.0.1')
        self.https = self.receiver('localhost', tls)
        text = servers.read_bytes(os.path.join(harness.ROOT, 'test/demo.yaml')).decode()
        self.port = t.port()
        for old, new in (('19998', str(self.port)), ('18080', str(self.http.port)), ('18443', str(self.https.port)),
                         ('../build/demo/', CERTIFICATES + '/')):
            t.require('test/demo.yaml has %s' % old, old in text)
            text = text.replace(old, new)
        self.program = t.start(servers.write_file(os.path.join(t.tmp, 'demo.yaml'), harness.SYSTEM.text(text.encode())))

    def receiver(self, host, tls=None):
        """One that keeps each call, with its URL and its version of TLS."""
        def answer(request, connection):
            request.url = receiver.url(request.target, host=host)
            request.route = '%s %s' % (request.method, request.url.partition('?')[0])
            request.tls = '   (%s)' % connection.sock.version() if tls else ''
            self.calls.put(request)
            return harness.response(200, b'ok\n')

        receiver = self.t.receiver(answer, ssl_context=tls)
        return receiver

    def log_says(self, pattern, count=1):
        """Waits until that many lines which were not shown yet match, then shows all new ones."""
        before = sum(bool(re.search(pattern, line)) for line in self.program.log[:self.shown])
        found = self.program.wait_log(pattern, PATIENCE_S, before + count)
        say('log of butler_webhook:')
        for line in self.program.log[self.shown:]:
            say(line, 5)
            self.shown += 1
        self.t.require('the log says "%s"' % pattern, found)

    def calls_arrive(self, routes, datagram):
        """Takes and shows the calls, and checks that they went where they should and say what the datagram said."""
        calls = []
        try:
            while len(calls) < len(routes):
                calls.append(self.calls.get(timeout=PATIENCE_S * harness.SLOW))
        except queue.Empty:
            pass        # what is missing is seen below
        calls.sort(key=lambda call: routes.index(call.route) if call.route in routes else len(routes))
        say('the receivers get:')
        shown = set()
        for call in calls:
            say('%-4s %s%s' % (call.method, call.url, call.tls), 5)
            if call.body:
                say('the same body' if call.body in shown else call.body.decode('utf-8', 'backslashreplace'), 10)
                shown.add(call.body)
        self.t.equal('calls', [call.route for call in calls], routes)
        event, *values = datagram.split(';')
        wanted = dict(zip(FIELDS, values), event=EVENTS[event])
        for call in calls:
            for name, value in wanted.items():
                self.t.equal('%s: %s' % (call.route, name), call.event().get(name), value)
        self.arrived += len(calls)

    def nothing_arrives(self):
        try:
            call = self.calls.get(timeout=SILENCE_S)
            self.t.require('no call', False, call.url)
        except queue.Empty:
            say('the receivers get nothing, as it should be')

    def scene(self, title, datagram, routes=(), line=None, encoding='utf-8'):
        """Sends a datagram. Either it is called to these routes, or the log says why not."""
        print('\n== %s' % title, flush=True)
        say('the scheduler sends %d bytes to 127.0.0.1:%d (UDP%s):' %
            (len(datagram), self.port, '' if encoding == 'utf-8' else ', code page 1252'))
        say(datagram.decode(encoding), 5)
        self.program.send(datagram)
        if line:
            self.log_says(line)
            self.nothing_arrives()
        else:
            self.calls_arrive(routes, datagram.decode(encoding))
            self.log_says(words.delivered(), len(routes))

    def play(self):
        failed, aborted = recording('001-a-plain-failed'), recording('002-a-aborted')
        routes = ['POST ' + self.http.url('/failed'), 'GET ' + self.http.url('/pager'),
                  'POST ' + self.https.url('/tickets', host='localhost')]
        print('\n== butler_webhook starts with test/demo.yaml, in which free ports were put')
        self.log_says(words.LISTENING)
        self.scene('1. A reload task has failed: three webhooks are called, one of them by https with a CA of its own',
                   failed, routes)
        self.scene('2. The same event a second time, as two log appenders send it: a duplicate', failed, line=words.DUPLICATE)
        self.scene('3. The same task fails again at once: the rate limit (300 s for each task) holds it back',
                   recording('001-a-plain-failed', executionId='0b7f2f0c-9d0e-4f5a-8a53-3c1f7a6e2d11'), line=words.HELD_BACK)
        self.scene('4. Somebody stops a reload task: another kind of event, with its own webhook and its own rate limit',
                   aborted, ['PUT ' + self.http.url('/aborted')])
        self.scene('5. A reload task succeeds: known, but nothing to call anybody for', recording('003-a-success'),
                   line=r' verbose: ignored: ')
        self.scene('6. Another task fails; its server sends Windows-1252 instead of UTF-8. The text arrives as it was meant',
                   recording('156-b1-cp1252-swedish', taskId='5c9f6a52-7f3a-4a0e-bd0c-3f0f7f0a9b21',
                             executionId='c2a1d6de-5a6b-4b0e-9b36-8f3a3c6e7d42'), routes, encoding='cp1252')
        print('\n== butler_webhook is stopped')
        self.program.stop()
        self.log_says(r' info: stopped: 6 received, 3 accepted, 7 delivered, 0 given up, 0 lost, 0 waiting$')
        self.nothing_arrives()


def main():
    sys.stdout.reconfigure(errors='backslashreplace')
    if not os.access(harness.BINARY, os.X_OK):
        sys.exit('%s is not there: run make' % harness.BINARY)
    harness.SYSTEM.begin()
    t = harness.Test('demo')
    try:
        demo = Demo(t)
        demo.play()
    except harness.Abort:
        pass        # it is among the failures
    except (OSError, RuntimeError) as error:
        t.failures.append(str(error))
    finally:
        t.finish()
        harness.SYSTEM.end()
    if t.failures:
        print('\ndemo FAILED:', '\n'.join(t.failures), flush=True)
        return 1
    print('\ndemo passed: %d calls arrived as they should, and no other.' % demo.arrived, flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
