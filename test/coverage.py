#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
Prints which lines and branches of butler_webhook.c the tests run: unit, system, and faults in the short form.

    make coverage       test/test.mk gives the compiler and its flags, `--`, and those for short limits and the shim

All is built with clang's source-based coverage. Counters are files that are mapped into memory (%c in their names), so a process
that is killed with -9 has counted, too; one for all processes of a program (%m), with mode 666 as some run as another user.

build/coverage then holds uncovered.txt (lines that never ran, branches that went one way only), annotated.txt (all counts), and
the logs of the tests; one that fails is shown, and changes nothing else. A line counts as run if a part of it did, or if it
stands behind a call that never returned, before the next branch.
"""

import collections
import glob
import json
import os
import re
import subprocess
import sys
import tempfile

import mutants

OUT = 'build/coverage'
SOURCE = mutants.SOURCE
# -O1 makes nothing of the counts less exact: they are written before the compiler optimizes.
PROFILE = ['-g', '-O1', '-fcoverage-mapping', '-fprofile-update=atomic', '-mllvm', '-runtime-counter-relocation']
PROGRAMS = {'unit': OUT + '/unit', 'program': OUT + '/butler_webhook', 'short': OUT + '/test/butler_webhook'}
PYTEST = ['/usr/bin/python3', '-m', 'pytest', '-n', '8', '--dist', 'loadgroup']
STAGES = {'unit': [PROGRAMS['unit']], 'system': [*PYTEST, *mutants.SYSTEM], 'faults': [*PYTEST, *mutants.FAULTS]}


def run(*command):
    """Runs a tool; its output. Ends this program if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit('%s ended with %d' % (command[0], done.returncode))
    return done.stdout


def build(compiler, short, raw):
    """Builds the three programs, and makes the files of counters of those two that other users run, too."""
    more = {'unit': ['-isystem', 'test/plain', 'test/unit.c'], 'program': [SOURCE], 'short': [*short, SOURCE, 'test/shim.c']}
    for name, path in PROGRAMS.items():
        print('building %s' % path, flush=True)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        run(*compiler, *PROFILE, '-fprofile-instr-generate=%s/%s-%%m%%c.profraw' % (raw, name), *more[name], OUT + '/libs.a',
            '-o', path, '-lpthread', '-lm')
        if name != 'unit':
            run(path, '--version')
    for path in glob.glob(raw + '/*.profraw'):
        os.chmod(path, 0o666)


def test(name):
    """Runs tests into a log; prints what failed, and the sum."""
    print('running %s' % name, flush=True)
    env = {'BUTLER_SLOW': '2', **os.environ, 'BUTLER_BINARY': PROGRAMS['program'], 'BUTLER_BINARY_TEST': PROGRAMS['short']}
    with open('%s/%s.log' % (OUT, name), 'w+', errors='backslashreplace') as log:
        subprocess.run(STAGES[name], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        log.seek(0)
        for line in log:
            if line.startswith('FAILED') or re.match(r'\d+ passed, \d+ failed', line):
                print('    ' + line.strip()[:300], flush=True)


def measure(raw):
    """Counts so far: {line: has run}, {(line, column, end line, end column): [times true, times false]}."""
    merged = OUT + '/all.profdata'
    run('llvm-profdata', 'merge', '-o', merged, *glob.glob(raw + '/*.profraw'))
    first, *rest = PROGRAMS.values()
    common = [first, *['-object=' + path for path in rest], '-instr-profile=' + merged]
    # A function of the unit tests' copy and the program's own are two to llvm-cov, and its report takes the better one. Here a
    # line has run if any copy of it has; for branches likewise.
    shown = run('llvm-cov', 'show', *common, '-show-instantiations=false', SOURCE)
    with open(OUT + '/annotated.txt', 'w') as file:
        file.write(shown)
    lines = {int(number): count != '0' for number, count in re.findall(r'(?m)^ *(\d+)\| *([^|\s]+)\|', shown)}
    branches = collections.defaultdict(lambda: [0, 0])
    for file in json.loads(run('llvm-cov', 'export', *common, SOURCE))['data'][0]['files']:
        for row in file['branches']:
            sums = branches[tuple(row[:4])]
            sums[0] += row[4]
            sums[1] += row[5]
    return lines, branches


def write_uncovered(lines, branches):
    """Lists what is left, in the file's order under its functions' names."""
    with open(SOURCE) as file:
        text = file.read().split('\n')
    missing = collections.defaultdict(list)
    for line, has_run in lines.items():
        if not has_run:
            missing[line].append('never ran: ' + text[line - 1].strip())
    for (line, column, end_line, end), counts in sorted(branches.items()):
        what = text[line - 1][column - 1:end - 1 if end_line == line else None]
        if lines.get(line) and not all(counts):
            missing[line].append('never %s: %s' % ('true' if counts[1] else 'false' if counts[0] else 'decided', what))
    head = ''
    with open(OUT + '/uncovered.txt', 'w') as out:
        for number, line in enumerate(text, 1):
            match = re.match(r'\w+(?=\()', line)
            head = '\n%s\n' % match.group() if match else head
            for what in missing.get(number, ()):
                out.write('%s%6d  %s\n' % (head, number, what))
                head = ''


def main():
    os.chdir(mutants.ROOT)
    end = sys.argv.index('--')
    with tempfile.TemporaryDirectory(prefix='butler_webhook-coverage-') as raw:
        os.chmod(raw, 0o755)
        build(sys.argv[1:end], sys.argv[end + 1:], raw)
        for name in STAGES:
            test(name)
            lines, branches = measure(raw)
            ways = [way > 0 for counts in branches.values() for way in counts]
            shares = ['%s %d of %d (%.1f %%)' % (what, sum(has_run), len(has_run), 100 * sum(has_run) / len(has_run))
                      for what, has_run in (('lines', lines.values()), ('branches', ways))]
            print('%-24s %s' % (name if name == 'unit' else 'and ' + name, ', '.join(shares)), flush=True)
        write_uncovered(lines, branches)
    print('%s/uncovered.txt lists the rest, %s/annotated.txt has all counts' % (OUT, OUT))


if __name__ == '__main__':
    main()
