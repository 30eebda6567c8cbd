"""Services of Windows, in wine: what the tests of Windows and of the README share."""

import re
import socket
import subprocess

import faults_base as base
import harness

RUNNING, STOPPED = (4, 0, 0), (1, 0, 0)        # see Service.state


def windows_path(path, slash='\\'):
    return harness.Raw('Z:' + path.replace('/', slash))


def wine(t, *args):
    """Runs one of wine's own programs; its exit code, and its output as text."""
    done = subprocess.run([harness.SYSTEM.loader] + list(args), stdin=subprocess.DEVNULL, capture_output=True,
                          env=t.environment(), timeout=30 * harness.SLOW, cwd=t.tmp)
    return done.returncode, (done.stdout + done.stderr).decode('utf-8', 'replace').replace('\r', '')


def alert_arrives(t, what, receiver, port, task=None):
    """Sends one alert, and checks that it comes."""
    task = task or harness.guid()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.sendto(harness.datagram(task=task), ('127.0.0.1', port))
    arrived = base.until(lambda: task in [request.event()['taskName'] for request in receiver.requests], 10)
    t.check('%s: an alert arrives' % what, arrived, len(receiver.requests))


class Service:
    """A service that sc creates, or that --install will (then it has a name), removed at the end of the test."""

    def __init__(self, t, path, name=None):
        self.t = t
        self.name = name or 'BW%s' % harness.guid()[:8]
        if name is None:
            code, text = self.sc('create', 'binPath=', '"%s" "%s"' % (windows_path(t.binary), windows_path(path)), 'start=',
                                 'demand')
            t.require('sc create', code == 0, text)
        t.add(self)

    def sc(self, verb, *args):
        return wine(self.t, 'sc', verb, self.name, *args)

    def state(self):
        """State (4: runs, 1: stopped), the system's and the service's own exit code; None: there is no such service."""
        code, text = self.sc('query')
        found = re.search(r'STATE\s*: (\d+)(?:.|\n)*WIN32_EXIT_CODE\s*: (\d+)(?:.|\n)*SERVICE_EXIT_CODE\s*: (\d+)', text)
        return tuple(map(int, found.groups())) if code == 0 and found else None

    def reaches(self, what, state):
        self.t.check('%s: state %s' % (what, state), base.until(lambda: self.state() == state, 10), self.state())

    def told(self, tool, verb):
        """`sc` or `net` starts or stops it."""
        self.t.equal('%s %s' % (tool, verb), wine(self.t, tool, verb, self.name)[0], 0)
        self.reaches('%s %s' % (tool, verb), {'start': RUNNING, 'stop': STOPPED}[verb])

    def close(self):
        self.sc('stop')
        self.sc('delete')
