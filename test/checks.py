# SPDX-License-Identifier: MIT
"""What vendor.py and archives.py share: checks that are counted, and vendor/lock."""

import hashlib
import os

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
counts = {True: 0, False: 0, None: 0}      # None: skipped


def check(name, good, detail=''):
    """Counts one check, and says so if it failed."""
    counts[bool(good)] += 1
    if not good:
        print(f'FAILED {name}', f': {detail}' if detail != '' else '', sep='')


def equal(name, found, expected):
    check(name, found == expected, f'found {found!r}, expected {expected!r}')


def skip(name, why):
    counts[None] += 1
    print(f'skipped {name}: {why}')


def finish():
    """Prints the last line; returns the exit code."""
    print(f'{counts[True]} passed, {counts[False]} failed' + (f', {counts[None]} skipped' if counts[None] else ''))
    return 1 if counts[False] else 0


def read(*path):
    with open(os.path.join(*path), 'rb') as file:
        return file.read()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class Entry:
    """A line of a lock."""

    def __init__(self, line):
        self.line = line
        self.name, self.version, self.date, self.sum, self.licence, self.file, *self.sources = line.split()
        self.urls = [source for source in self.sources if source.startswith('https://')]
        self.pools = [source for source in self.sources if source.startswith('pool:')]


def read_lock(folder=ROOT):
    """Returns {name: Entry} of vendor/lock."""
    lines = [line for line in read(folder, 'vendor/lock').decode().splitlines() if line and not line.startswith('#')]
    return {line.split()[0]: Entry(line) for line in lines}
