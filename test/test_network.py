"""
The network between the program and its webhook: two network namespaces of our own, joined by a wire of our own (two tun
devices whose packets this process carries), so that packets can be delayed or lost without help of the kernel. And names
that are not found for a while.
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import threading
import time

import faults_base as base
import harness

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454ca
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
NEAR = '10.211.7.1'     # in namespaces of their own, so that no address of the machine is touched
FAR = '10.211.7.2'


# ---- Namespaces and a wire ------------------------------------------------------------------------------------------


class Namespace:
    """A network namespace with a loopback device. Skips the test where none may be made."""

    def __init__(self, t, name, files=None):
        self.name = '%s-%d' % (name, os.getpid())
        self._etc = None
        if harness.WINDOWS:
            t.skip('a network namespace: the sockets are with wine\'s server, outside')
        if shutil.which('ip') is None:
            t.skip('network namespaces need ip of iproute2')
        result = self._ip('netns', 'add', self.name)
        if result.returncode != 0:
            t.skip('no network namespace may be made here: %s' % result.stderr.strip())
        t.add(self)
        self.handle = os.open('/run/netns/' + self.name, os.O_RDONLY)
        result = self._ip('-n', self.name, 'link', 'set', 'lo', 'up')
        if result.returncode != 0:
            t.skip('no loopback device in a network namespace: %s' % result.stderr.strip())
        if files:
            self._etc = '/etc/netns/' + self.name
            os.makedirs(self._etc)
            for file, content in files.items():
                base.write(os.path.join(self._etc, file), content.encode())

    @staticmethod
    def _ip(*args):
        return subprocess.run(('ip',) + args, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    def ip(self, *args):
        """Runs ip inside; raises an error if it fails."""
        result = self._ip('-n', self.name, *args)
        if result.returncode != 0:
            raise OSError('ip %s: %s' % (' '.join(args), result.stderr.strip()))

    @property
    def wrap(self):
        """What to put before a program that is to run inside."""
        return ['ip', 'netns', 'exec', self.name]

    def inside(self, function, *args):
        """Calls function in a thread of its own that stands inside; gives its result. What it opens stays inside."""
        results = []

        def run():
            libc = ctypes.CDLL(None, use_errno=True)
            try:
                if libc.setns(self.handle, CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), 'setns')
                results.append((function(*args), None))
            except OSError as error:
                results.append((None, error))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if results[0][1]:
            raise results[0][1]
        return results[0][0]

    def socket(self, family, kind):
        return self.inside(socket.socket, family, kind)

    def close(self):
        if hasattr(self, 'handle'):
            os.close(self.handle)
        self._ip('netns', 'del', self.name)
        if self._etc:
            shutil.rmtree(self._etc, ignore_errors=True)
            try:
                os.rmdir('/etc/netns')      # only if nobody else has something there
            except OSError:
                pass


class Wire:
    """Joins two namespaces. cut: carries nothing; loss: share of packets that vanish; delay: seconds each way."""

    def __init__(self, t, near, far):
        self.cut = False
        self.loss = 0.0
        self.delay = 0.0
        self.carried = 0
        self.lost = 0
        self._random = random.Random(7)
        self._fds = []
        self._stop = os.pipe()
        try:
            for space, own, other in ((near, NEAR, FAR), (far, FAR, NEAR)):
                self._fds.append(space.inside(self._open))
                space.ip('addr', 'add', own, 'peer', other, 'dev', 'wire')
                space.ip('link', 'set', 'wire', 'up')
        except OSError as error:
            self._close_fds()
            t.skip('no tun device may be made here: %s' % error)
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()
        t.add(self)

    @staticmethod
    def _open():
        fd = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
        try:
            fcntl.ioctl(fd, TUNSETIFF, struct.pack('16sH22x', b'wire', IFF_TUN | IFF_NO_PI))
        except OSError:
            os.close(fd)
            raise
        return fd

    def _carry(self):
        poll = select.poll()
        other = {self._fds[0]: self._fds[1], self._fds[1]: self._fds[0]}
        for fd in self._fds + [self._stop[0]]:
            poll.register(fd, select.POLLIN)
        under_way = []      # (when it arrives, order, where, packet)
        order = 0
        while True:
            wait = max(0, under_way[0][0] - time.monotonic()) * 1000 if under_way else None
            ready = [fd for fd, events in poll.poll(wait) if events & select.POLLIN]
            if self._stop[0] in ready:
                return
            for fd in ready:
                try:
                    packet = os.read(fd, 65536)
                except OSError:     # the device is down
                    continue
                if self.cut or self._random.random() < self.loss:
                    self.lost += 1
                    continue
                order += 1
                heapq.heappush(under_way, (time.monotonic() + self.delay, order, other[fd], packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, _, fd, packet = heapq.heappop(under_way)
                try:
                    os.write(fd, packet)
                    self.carried += 1
                except OSError:
                    self.lost += 1

    def _close_fds(self):
        for fd in self._fds + list(self._stop):
            os.close(fd)

    def close(self):
        os.write(self._stop[1], b'x')
        self._thread.join(5)
        self._close_fds()


class Scene:
    """
    The program in one namespace, with a healthy webhook beside it; another webhook at the far end of a wire. Alerts of
    failures go to both.
    """

    def __init__(self, t, url=None, files=None, **own):
        self.t = t
        self.near = Namespace(t, 'bwnear', files)
        self.far = Namespace(t, 'bwfar')
        self.wire = Wire(t, self.near, self.far)
        self.there = t.add(base.Sink(host=FAR, make_socket=self.far.socket))
        self.here = t.add(base.Sink(make_socket=self.near.socket))
        self.place = base.Place(t, [{'url': self.there.url(host=url)}, {'url': self.here.url()}],
                                butlerWebhook=dict({'maxAgeHours': 72}, **own))
        self.udp = self.near.socket(socket.AF_INET, socket.SOCK_DGRAM)
        t.add(self.udp)
        self.process = self.place.start(wrap=self.near.wrap)
        self.sent = {}

    def send(self, count=1, every=0.05):
        """Sends alerts one after another; gives their executionIds."""
        executions = []
        for _ in range(count):
            execution = harness.guid()
            executions.append(execution)
            self.sent[execution] = time.monotonic()
            self.udp.sendto(base.alert(execution), ('127.0.0.1', self.place.port))
            time.sleep(every)
        return executions

    def finish(self, timeout):
        """
        All has arrived at both; the healthy webhook was never held up. A backoff that has begun goes on when all is well
        again: after 20 s it has more than 120 s left in one of 1,700 cases, after 60 s in one of 30.
        """
        t = self.t
        missing = self.here.wait(self.sent, 5)
        t.check('the healthy webhook gets all', not missing, base.some(missing))
        late = {execution: calls[0][1] - self.sent[execution] for execution, calls in self.here.taken.items()}
        t.check('and at once', late and max(late.values()) < 2 * harness.SLOW, 'after %.2f s' % max(late.values(), default=0))
        missing = self.there.wait(self.sent, timeout)
        t.check('the other one gets all in the end', not missing, base.some(missing))
        t.check('each with one webhook-id', not self.there.ids_differ(), base.some(self.there.ids_differ()))
        t.equal('nothing is given up or dropped', self.process.lines(' given up | dropped for '), [])
        base.until(lambda: not self.place.waiting(), 5)
        t.equal('nothing waits', self.place.waiting(), [])
        base.stop(t, self.process)


# ---- Tests ----------------------------------------------------------------------------------------------------------


@harness.limit(60, 300)
def test_network_cable_out(t):
    """The cable is out, at a switch between and then at the machine itself; then it is in again."""
    scene = Scene(t, timeoutSeconds=2)
    first = scene.send(5)
    base.arrive(t, 'at first all is well', scene.there, first)
    scene.wire.cut = True
    begin = time.monotonic()
    while time.monotonic() - begin < base.pick(4, 20):
        scene.send(2, every=0.1)
    t.check('the webhook is down', scene.process.wait_log(r'webhook failure 1 is down', 10), base.tail(scene.process))
    arrived = len(scene.there.taken)
    scene.wire.cut = False
    scene.finish(base.pick(30, 120))
    t.equal('nothing arrived while it was out', arrived, 5)


@harness.limit(60, 300)
def test_network_link_down(t):
    """The program's own network device goes down, and up again."""
    scene = Scene(t, timeoutSeconds=2)
    base.arrive(t, 'at first all is well', scene.there, scene.send(5))
    scene.near.ip('link', 'set', 'wire', 'down')
    begin = time.monotonic()
    while time.monotonic() - begin < base.pick(3, 20):
        scene.send(2, every=0.1)
    scene.near.ip('link', 'set', 'wire', 'up')
    scene.finish(base.pick(30, 120))


@harness.limit(60, 300)
def test_network_loss(t):
    """30 % of all packets are lost, each way."""
    scene = Scene(t, timeoutSeconds=3)
    scene.wire.loss = 0.3
    executions = scene.send(base.pick(20, 300), every=0.1)
    scene.there.wait(executions, base.pick(12, 120))
    through = len(executions) - len(scene.there.missing(executions))
    t.check('most get through', through >= len(executions) // 2, '%d of %d' % (through, len(executions)))
    t.check('packets were lost', scene.wire.lost > scene.wire.carried // 10, [scene.wire.lost, scene.wire.carried])
    base.note(t, '%d of %d through a wire that lost %d of %d packets, doubles %d' %
              (through, len(executions), scene.wire.lost, scene.wire.lost + scene.wire.carried, scene.there.doubles()))
    scene.wire.loss = 0.0
    scene.finish(base.pick(30, 60))


@harness.limit(60, 300)
def test_network_delay(t):
    """2 s for each round trip."""
    scene = Scene(t)
    scene.wire.delay = 1.0
    executions = scene.send(base.pick(10, 50), every=0.05)
    scene.finish(base.pick(40, 120))
    took = min(scene.there.taken[execution][0][1] - scene.sent[execution] for execution in executions)
    t.check('the delay was there', took >= 1, took)
    t.check('no alert came twice', scene.there.doubles() == 0, scene.there.doubles())


@harness.limit(60, 300)
def test_network_jumps(t):
    """All of it by turns, and the process killed in between."""
    numbers = base.rng(t)
    scene = Scene(t, timeoutSeconds=2)
    for _ in range(base.pick(4, 30)):
        scene.wire.cut = numbers.random() < 0.4
        scene.wire.loss = numbers.choice((0, 0, 0.2))
        scene.wire.delay = numbers.choice((0, 0.05, 0.3))
        scene.send(3)
        time.sleep(numbers.uniform(0, 1))
        if numbers.random() < 0.5:
            scene.here.wait(scene.sent, 5)      # the healthy webhook is not the point here
            base.kill(scene.process)
            scene.process = scene.place.start(wrap=scene.near.wrap)
    scene.wire.cut, scene.wire.loss, scene.wire.delay = False, 0, 0
    scene.send(3)
    scene.finish(base.pick(30, 60))


class Names:
    """A DNS server that answers as `mode` says: 'good', 'none' (no such name), 'fails' (SERVFAIL), 'silent'."""

    def __init__(self, t, space, address):
        self.mode = 'good'
        self.asked = 0
        self._address = socket.inet_aton(address)
        self._socket = space.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(('127.0.0.1', 53))
        t.add(self)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                question, peer = self._socket.recvfrom(4096)
            except OSError:
                return
            if not question:
                return
            self.asked += 1
            if self.mode == 'silent':
                continue
            end = question.index(b'\0', 12) + 5
            kind = question[end - 4:end - 2]
            answer = b''
            if self.mode == 'good' and kind == b'\0\1':
                answer = b'\xc0\x0c\0\1\0\1\0\0\0\0\0\4' + self._address
            code = {'good': 0, 'none': 3, 'fails': 2}[self.mode]
            self._socket.sendto(question[:2] + struct.pack('>HHHHH', 0x8180 | code, 1, 1 if answer else 0, 0, 0) +
                                question[12:end] + answer, peer)

    def close(self):
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()


@harness.limit(60, 300)
def test_network_names(t):
    """The webhook's name is not found, in all ways of a name server; then it is."""
    scene = Scene(t, url='hook.example', timeoutSeconds=3,
                  files={'resolv.conf': 'nameserver 127.0.0.1\noptions timeout:1 attempts:2\n',
                         'hosts': '127.0.0.1 localhost\n', 'nsswitch.conf': 'hosts: files dns\n'})
    names = Names(t, scene.near, FAR)
    base.arrive(t, 'at first all is well', scene.there, scene.send(3), 20)
    for mode in ('none', 'fails', 'silent'):
        names.mode = mode
        scene.there.down()      # its connections, too: the next call needs the name
        scene.there.up()
        before = names.asked
        executions = scene.send(4)
        t.check('%s: the name server is asked' % mode, base.until(lambda: names.asked > before, 10))
        time.sleep(base.pick(1, 10))
        t.equal('%s: nothing arrives' % mode, len(scene.there.missing(executions)), 4)
        names.mode = 'good'
        base.arrive(t, '%s: once it is found they arrive' % mode, scene.there, executions, base.pick(30, 70))
    scene.finish(30)


@harness.limit(60, 120)
def test_names_fail_in_the_library(t):
    """getaddrinfo fails for a while: the webhooks with names wait, one with an address does not."""
    shim = base.Shim(t)
    named = t.add(base.Sink())
    plain = t.add(base.Sink())
    wrap = harness.with_files(t, {'/etc/hosts': '127.0.0.1 localhost hook.example\n'})
    place = base.Place(t, [{'url': named.url(host='hook.example')}, {'url': plain.url()}], butlerWebhook=base.OURS)
    process = place.start(binary=t.binary_test, env=shim.env, wrap=wrap)
    first = base.send(process, 1)
    t.equal('at first all is well', (named.wait(first), plain.wait(first)), ([], []))
    for _ in range(base.pick(2, 10)):
        shim.set(resolve_fail=1)
        named.down()
        named.up()
        before = shim.get('hits')
        executions = base.send(process, 5)
        base.arrive(t, 'the webhook with an address gets all', plain, executions, 5)
        t.check('the shim has struck', base.until(lambda: shim.get('hits') > before, 5))
        t.equal('the one with a name gets none', len(named.missing(executions)), 5)
        base.kill(process)      # what waits for a name is in the journal
        process = place.start(binary=t.binary_test, env=shim.env, wrap=wrap)
        more = base.send(process, 2)
        shim.set(resolve_fail=0)
        base.arrive(t, 'once names are found all arrive', named, executions + more)
    t.equal('nothing is given up', process.lines(' given up | dropped for '), [])
    base.stop(t, process)
