"""
The network between the program and its webhook: two network namespaces of our own, joined by a wire of our own (two tun
devices whose packets this process carries), so that packets can be delayed or lost.
"""

import collections
import contextlib
import ctypes
import fcntl
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

pytestmark = harness.limit(120, 300)

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454ca
IFF_TUN_NO_PI = 0x1001
NEAR = '10.211.7.1'     # in namespaces of their own, so that no address of the machine is touched
FAR = '10.211.7.2'


class Namespace:
    """A network namespace with a loopback device. Skips the test where none may be made."""

    def __init__(self, t, name):
        if harness.WINDOWS:
            t.skip('a network namespace: the sockets are with wine\'s server, outside')
        if shutil.which('ip') is None or not os.path.exists('/dev/net/tun'):
            t.skip('they need ip of iproute2, and tun devices')
        self.name = '%s-%d' % (name, os.getpid())
        self.wrap = ['ip', 'netns', 'exec', self.name]      # before a program that is to run inside
        made = subprocess.run(['ip', 'netns', 'add', self.name], capture_output=True, text=True)
        if made.returncode != 0:
            t.skip('no network namespace may be made here: %s' % made.stderr.strip())
        t.add(self)
        self.ip('link', 'set', 'lo', 'up')

    def ip(self, *args):
        subprocess.run(('ip', '-n', self.name) + args, check=True, capture_output=True)

    def inside(self, function, *args):
        """Calls function in a thread of its own that stands inside; gives its result. What it opens stays inside."""
        results = []

        def run():
            with open('/run/netns/' + self.name) as handle:
                if ctypes.CDLL(None).setns(handle.fileno(), CLONE_NEWNET) == 0:
                    results.append(function(*args))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return results[0]

    def close(self):
        subprocess.run(['ip', 'netns', 'del', self.name], capture_output=True)


def open_wire():
    fd = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack('16sH22x', b'wire', IFF_TUN_NO_PI))
    return fd


class Wire:
    """Joins two namespaces. cut: carries nothing; loss: share of packets that vanish; delay: seconds each way."""

    def __init__(self, t, near, far):
        self.cut = False
        self.loss = 0.0
        self.delay = 0.0
        self.lost = 0
        self._fds = []
        self._over = threading.Event()
        for space, own, other in ((near, NEAR, FAR), (far, FAR, NEAR)):
            self._fds.append(space.inside(open_wire))
            space.ip('addr', 'add', own, 'peer', other, 'dev', 'wire')
            space.ip('link', 'set', 'wire', 'up')
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()
        t.add(self)

    def _carry(self):
        poll = select.poll()
        for fd in self._fds:
            poll.register(fd, select.POLLIN)
        numbers = random.Random(7)
        under_way = collections.deque()     # (when it arrives, where, packet)
        while not self._over.is_set():
            for fd, _ in poll.poll(max(0, under_way[0][0] - time.monotonic()) * 1000 if under_way else 50):
                try:
                    packet = os.read(fd, 65536)
                except OSError:     # the device is down
                    time.sleep(0.01)
                    continue
                if self.cut or numbers.random() < self.loss:
                    self.lost += 1
                else:
                    under_way.append((time.monotonic() + self.delay, sum(self._fds) - fd, packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, fd, packet = under_way.popleft()
                with contextlib.suppress(OSError):
                    os.write(fd, packet)

    def close(self):
        self._over.set()
        self._thread.join(5)
        for fd in self._fds:
            os.close(fd)


class Scene:
    """The program in one namespace, with a healthy webhook beside it; another webhook at the far end of a wire gets all, too."""

    def __init__(self, t, **own):
        self.t = t
        self.near = Namespace(t, 'bwnear')
        self.far = Namespace(t, 'bwfar')
        self.wire = Wire(t, self.near, self.far)
        self.there, self.here = t.add(base.Sink(up=False, host=FAR)), t.add(base.Sink(up=False))
        self.far.inside(self.there.up)
        self.near.inside(self.here.up)
        self.place = base.Place(t, [{'url': self.there.url()}, {'url': self.here.url()}], butlerWebhook=own)
        self.udp = t.add(self.near.inside(socket.socket, socket.AF_INET, socket.SOCK_DGRAM))
        self.sent = {}
        self.start()

    def start(self):
        self.process = self.place.start(wrap=self.near.wrap)

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
        All has arrived at both; the healthy webhook was never held up. A backoff that has begun goes on when all is well: after
        20 s it has more than 120 s left in one of 1,700 cases, after 60 s in one of 30.
        """
        t = self.t
        base.arrive(t, 'the healthy webhook gets all', self.here, self.sent)
        late = max(calls[0].time - self.sent[execution] for execution, calls in self.here.taken.items())
        t.check('and at once', late < 4 * harness.SLOW, 'after %.2f s' % late)
        base.arrive(t, 'the other one gets all in the end', self.there, self.sent, timeout)
        t.equal('nothing is given up', self.process.lines(words.given_up()), [])
        base.soon(t, 'nothing waits', lambda: not self.place.waiting())
        base.stop(t, self.process)


@pytest.mark.parametrize('where', ('cable', 'device'))
def test_network_out(t, where):
    """The cable is out, at a switch between or at the machine itself, whose network device goes down; the program is killed."""
    scene = Scene(t, timeoutSeconds=2)
    base.arrive(t, 'at first all is well', scene.there, scene.send(5))
    scene.wire.cut = True
    if where == 'device':
        scene.near.ip('link', 'set', 'wire', 'down')
    for _ in range(2):
        scene.send(base.pick(20, 100), every=0.1)
        base.logged(t, 'the webhook is down', scene.process, words.down('failure 1'))
        base.arrive(t, 'the healthy webhook gets all', scene.here, scene.sent)
        base.kill(scene.process)
        scene.start()
    t.equal('what arrived', len(scene.there.taken), 5)
    scene.wire.cut = False
    if where == 'device':
        scene.near.ip('link', 'set', 'wire', 'up')
    scene.finish(base.pick(30, 120))


def test_network_loss(t):
    """30 % of all packets are lost, each way."""
    scene = Scene(t, timeoutSeconds=3)
    scene.wire.loss = 0.3
    executions = scene.send(base.pick(20, 300), every=0.1)
    base.soon(t, 'most get through', lambda: len(scene.there.missing(executions)) <= len(executions) // 2, base.pick(20, 120))
    t.check('packets were lost', scene.wire.lost > len(executions) // 2, scene.wire.lost)
    scene.wire.loss = 0.0
    scene.finish(base.pick(30, 60))


def test_network_delay(t):
    """2 s for each round trip."""
    scene = Scene(t)
    scene.wire.delay = 1.0
    executions = scene.send(base.pick(10, 50))
    scene.finish(base.pick(40, 120))
    took = min(scene.there.taken[execution][0].time - scene.sent[execution] for execution in executions)
    t.check('the delay was there', took >= 1, took)
    t.equal('doubles', scene.there.doubles(), 0)
