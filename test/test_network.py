"""
The network between the program and its webhook: two network namespaces of our own, joined by a wire of our own (two tun
devices whose packets this process carries), so that packets can be delayed or lost. And names that are not found.
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

import pytest

import faults_base as base
import harness
import words

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

    def __init__(self, t, host=None, files=None, **own):
        self.t = t
        self.near = Namespace(t, 'bwnear', files)
        self.far = Namespace(t, 'bwfar')
        self.wire = Wire(t, self.near, self.far)
        self.there = t.add(base.Sink(host=FAR, make_socket=self.far.socket))
        self.here = t.add(base.Sink(make_socket=self.near.socket))
        self.place = base.Place(t, [{'url': self.there.url(host=host)}, {'url': self.here.url()}], butlerWebhook=own)
        self.udp = t.add(self.near.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.process = self.place.start(wrap=self.near.wrap)
        self.sent = {}

    def send(self, count=1, every=0.05):
        """Sends alerts one after another; gives their executionIds."""
        executions = [harness.guid() for _ in range(count)]
        for execution in executions:
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
        base.arrive(t, 'the healthy webhook gets all', self.here, self.sent)
        late = max(calls[0].time - self.sent[execution] for execution, calls in self.here.taken.items())
        t.check('and at once', late < 4 * harness.SLOW, 'after %.2f s' % late)
        base.arrive(t, 'the other one gets all in the end', self.there, self.sent, timeout)
        t.equal('nothing is given up', self.process.lines(words.given_up()), [])
        base.soon(t, 'nothing waits', lambda: not self.place.waiting())
        base.stop(t, self.process)


# ---- Tests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('where', ('cable', 'device'))
@harness.limit(60, 300)
def test_network_out(t, where):
    """The cable is out, at a switch between or at the machine itself, whose network device goes down; then it is in again."""
    scene = Scene(t, timeoutSeconds=2)
    base.arrive(t, 'at first all is well', scene.there, scene.send(5))
    scene.wire.cut = True
    if where == 'device':
        scene.near.ip('link', 'set', 'wire', 'down')
    scene.send(base.pick(40, 200), every=0.1)
    base.logged(t, 'the webhook is down', scene.process, words.down('failure 1'))
    t.equal('what arrived', len(scene.there.taken), 5)
    scene.wire.cut = False
    if where == 'device':
        scene.near.ip('link', 'set', 'wire', 'up')
    scene.finish(base.pick(30, 120))


@harness.limit(60, 300)
def test_network_loss(t):
    """30 % of all packets are lost, each way."""
    scene = Scene(t, timeoutSeconds=3)
    scene.wire.loss = 0.3
    executions = scene.send(base.pick(20, 300), every=0.1)
    base.soon(t, 'most get through', lambda: len(scene.there.missing(executions)) <= len(executions) // 2, base.pick(20, 120))
    t.check('packets were lost', scene.wire.lost > scene.wire.carried // 10, [scene.wire.lost, scene.wire.carried])
    scene.wire.loss = 0.0
    scene.finish(base.pick(30, 60))


@harness.limit(60, 300)
def test_network_delay(t):
    """2 s for each round trip."""
    scene = Scene(t)
    scene.wire.delay = 1.0
    executions = scene.send(base.pick(10, 50))
    scene.finish(base.pick(40, 120))
    took = min(scene.there.taken[execution][0].time - scene.sent[execution] for execution in executions)
    t.check('the delay was there', took >= 1, took)
    t.equal('doubles', scene.there.doubles(), 0)


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
        scene.here.wait(scene.sent)     # the healthy webhook is not the point here
        if numbers.random() < 0.5:
            base.kill(scene.process)
            scene.process = scene.place.start(wrap=scene.near.wrap)
    scene.wire.cut, scene.wire.loss, scene.wire.delay = False, 0, 0
    scene.send(3)
    scene.finish(base.pick(30, 60))


class Names:
    """A DNS server that answers FAR, or as `mode` says: 'none' (no such name), 'fails' (SERVFAIL), 'silent'."""

    CODES = {'good': 0, 'none': 3, 'fails': 2}

    def __init__(self, t, space):
        self.mode = 'good'
        self.asked = 0
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
            answer = b''
            if self.mode == 'good' and question[end - 4:end - 2] == b'\0\1':
                answer = b'\xc0\x0c\0\1\0\1\0\0\0\0\0\4' + socket.inet_aton(FAR)
            head = struct.pack('>HHHHH', 0x8180 | self.CODES[self.mode], 1, 1 if answer else 0, 0, 0)
            self._socket.sendto(question[:2] + head + question[12:end] + answer, peer)

    def close(self):
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()


@harness.limit(60, 300)
def test_network_names(t):
    """The webhook's name is not found, in all ways of a name server; then it is. A kill in between loses nothing."""
    scene = Scene(t, host='hook.example', timeoutSeconds=3,
                  files={'resolv.conf': 'nameserver 127.0.0.1\noptions timeout:1 attempts:2\n',
                         'hosts': '127.0.0.1 localhost\n', 'nsswitch.conf': 'hosts: files dns\n'})
    names = Names(t, scene.near)
    base.arrive(t, 'at first all is well', scene.there, scene.send(3))
    for mode in ('none', 'fails', 'silent'):
        names.mode = mode
        scene.there.down()      # its connections, too: the next call needs the name
        scene.there.up()
        before = names.asked
        executions = scene.send(4)
        base.soon(t, '%s: the name server is asked' % mode, lambda: names.asked > before)
        base.arrive(t, '%s: the healthy webhook gets all' % mode, scene.here, executions)
        time.sleep(base.pick(1, 10))
        t.equal('%s: nothing arrives' % mode, len(scene.there.missing(executions)), 4)
        if mode == 'fails':
            base.kill(scene.process)
            scene.process = scene.place.start(wrap=scene.near.wrap)
        names.mode = 'good'
        base.arrive(t, '%s: once it is found they arrive' % mode, scene.there, executions, base.pick(30, 70))
    scene.finish(30)
