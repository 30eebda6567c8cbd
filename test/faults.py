#!/usr/bin/env python3
"""
The proof that no accepted alert is lost: kill -9, damaged journals, full and broken disks, no descriptors, clocks that jump,
networks that lose packets, webhooks that fail for a long time. --help lists the options.

Each test runs in a process of its own, three at a time, and beside them five of those that mostly wait. The short form takes
a minute, the long one half an hour.

Environment: FAULTS_SEED repeats the random numbers of a test that has printed it, FAULTS_LOGS=1 prints what the program said in
each test that failed.
"""

import argparse
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import faults_base
import faults_disk
import faults_journal
import faults_letters
import faults_load
import faults_network
import harness

MODULES = (faults_journal, faults_disk, faults_letters, faults_network, faults_load)
LAST_LINE = re.compile(r'(\d+) passed, (\d+) failed(?:, (\d+) skipped)?')


def run_here(name, function):
    """Runs one test in this process; the exit code. A signal ends what the test has started, too."""
    tests = []
    results = harness.Results()

    def caught(test):
        tests.append(test)
        function(test)

    def interrupted(number, frame):
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupted)
    caught.limit = function.limits[faults_base.LONG]
    try:
        harness._run_test(name, caught, results, os.environ.get('FAULTS_LOGS'))
    except KeyboardInterrupt:
        for test in tests:
            test.finish()
        results.check(name, False, 'interrupted')
    return results.finish()


class Runner:
    """Runs each test as a process of its own, several at a time, and counts."""

    def __init__(self, tests, options):
        tests = sorted(tests, key=lambda test: -test[1].limits[options.long])
        self.todo = {waits: [test for test in tests if hasattr(test[1], 'waits') == waits] for waits in (False, True)}
        self.options = options
        self.totals = [0, 0, 0]
        self.children = set()
        self.over = False
        self.lock = threading.Lock()

    def work(self, waits):
        """Runs tests of that sort until there are none."""
        while True:
            with self.lock:
                if not self.todo[waits] or self.over:
                    return
                name, _ = self.todo[waits].pop(0)
            self.run(name)

    def run(self, name):
        begin = time.monotonic()
        command = [sys.executable, os.path.abspath(__file__), '--here', name]
        command += ['--long'] if self.options.long else []
        command += ['--soak', str(self.options.soak)] if self.options.soak else []
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                 text=True, errors='backslashreplace', start_new_session=True)
        with self.lock:
            self.children.add(child)
        lines = child.communicate()[0].splitlines()
        match = LAST_LINE.fullmatch(lines[-1]) if lines else None
        numbers = [int(number or 0) for number in match.groups()] if match else [0, 1, 0]
        with self.lock:
            self.children.discard(child)
            self.totals = [total + number for total, number in zip(self.totals, numbers)]
            for line in lines[:-1] if match else lines:
                print(line)
            if not match:
                print('FAILED %s: it ended with %s' % (name, child.returncode))
            print('%-36s %4d passed %3d failed %6.1f s%s' % (name, numbers[0], numbers[1], time.monotonic() - begin,
                                                             '  skipped' if numbers[2] else ''), flush=True)

    def end(self):
        """Tells all tests to end; they clean up."""
        with self.lock:
            self.over = True
            for child in self.children:
                child.terminate()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--long', action='store_true', help='the long form: half an hour')
    parser.add_argument('--only', metavar='REGEX', help='only tests whose name matches')
    parser.add_argument('--list', action='store_true', help='print the names of the tests')
    parser.add_argument('--jobs', type=int, default=3, help='tests at a time; beside them two more of those that wait')
    parser.add_argument('--soak', type=float, metavar='SECONDS', help='how long the soak takes')
    parser.add_argument('--here', metavar='NAME', help=argparse.SUPPRESS)
    options = parser.parse_args()
    faults_base.LONG = options.long
    faults_load.SOAK = options.soak
    tests = harness.collect(MODULES)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096 if hard == resource.RLIM_INFINITY else min(hard, 4096), hard))
    if options.here:
        return run_here(options.here, dict(tests)[options.here])
    tests = [test for test in tests if not options.only or re.search(options.only, test[0])]
    if options.list:
        for name, _ in tests:
            print(name)
        return 0
    for binary in (harness.BINARY, harness.BINARY_TEST):
        if not os.access(binary, os.X_OK):
            print('FAILED program: %s is not there: build it first\n0 passed, 1 failed' % binary)
            return 1
    runner = Runner(tests, options)
    workers = [threading.Thread(target=runner.work, args=(waits,)) for waits in (False, True)
               for _ in range(max(1, options.jobs) + 2 * waits)]

    def interrupted(number, frame):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    harness.SYSTEM.begin()
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        runner.end()
        for worker in workers:
            worker.join()
        runner.totals[1] += 1
    harness.SYSTEM.end()
    passed, failed, skipped = runner.totals
    print('%d passed, %d failed%s' % (passed, failed, ', %d skipped' % skipped if skipped else ''), flush=True)
    return 1 if failed or not passed else 0


if __name__ == '__main__':
    sys.exit(main())
