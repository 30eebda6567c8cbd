#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
Prints which lines and branches of butler_webhook.c the tests run: unit, system, and faults in the short form.

    make coverage       test/test.mk gives the compiler and its flags, `--`, and those for short limits and the shim

The unit tests, the program, and the program with short limits and test/shim.c are built with clang's source-based coverage. Their
counters are a file that is mapped into memory (%c in its name), so a process that is killed with -9 has counted, too. All
processes of a program share one (%m). Its name is compiled in, and its mode is 666, as one test runs the program as another user.

build/coverage then holds uncovered.txt (function, line and text of each line that never ran, and of each branch that went one way
only), annotated.txt (the whole file with counts), and the logs of the tests. A call that never returns counts the lines after it,
up to the next branch, as run. A line counts as run if one part of it did. A test that fails is shown and changes nothing else.
"""

import collections
import glob
import json
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OUT = 'build/coverage'
SOURCE = 'butler_webhook.c'
# -O1 makes nothing of the counts less exact: they are written before the compiler optimizes.
PROFILE = ['-g', '-O1', '-fcoverage-mapping', '-fprofile-update=atomic', '-mllvm', '-runtime-counter-relocation']
PROGRAMS = {'unit': OUT + '/unit', 'program': OUT + '/butler_webhook', 'short': OUT + '/test/butler_webhook'}


def run(*command):
    """Runs a tool; its output. Ends this program if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit('%s ended with %d' % (command[0], done.returncode))
    return done.stdout


def build(compiler, short, raw):
    """Builds the three programs."""
    for name, more in (('unit', ['-isystem', 'test/plain', 'test/unit.c']), ('program', [SOURCE]),
                       ('short', [*short, SOURCE, 'test/shim.c'])):
        print('building %s' % PROGRAMS[name], flush=True)
        os.makedirs(os.path.dirname(PROGRAMS[name]), exist_ok=True)
        run(*compiler, *PROFILE, '-fprofile-instr-generate=%s/%s-%%m%%c.profraw' % (raw, name), *more, OUT + '/libs.a',
            '-o', PROGRAMS[name], '-lpthread', '-lm')


def test(name, *command):
    """Runs tests into a log; prints what failed, and the sum."""
    print('running %s' % name, flush=True)
    env = dict(os.environ, BUTLER_BINARY=PROGRAMS['program'], BUTLER_BINARY_TEST=PROGRAMS['short'],
               BUTLER_SLOW=os.environ.get('BUTLER_SLOW', '2'))
    with open('%s/%s.log' % (OUT, name), 'w+', errors='backslashreplace') as log:
        subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        log.seek(0)
        for line in log:
            if line.startswith('FAILED') or re.match(r'\d+ passed, \d+ failed', line):
                print('    ' + line.strip()[:300], flush=True)


def measure(raw):
    """Counts so far: {line: count}, {(line, column, end line, end column): [times true, times false]}."""
    merged = OUT + '/all.profdata'
    run('llvm-profdata', 'merge', '-o', merged, *glob.glob(raw + '/*.profraw'))
    first, *rest = PROGRAMS.values()
    common = [first, *['-object=' + path for path in rest], '-instr-profile=' + merged]
    # A function of the unit tests' copy and the program's own are two to llvm-cov, and its report takes the better one. Here a
    # line has run if any copy of it has; for branches likewise.
    shown = run('llvm-cov', 'show', *common, '-show-instantiations=false', SOURCE)
    with open(OUT + '/annotated.txt', 'w') as file:
        file.write(shown)
    lines = {int(number): count.strip() != '0' for number, count in re.findall(r'(?m)^ *(\d+)\| *([^|\s]+)\|', shown)}
    branches = collections.defaultdict(lambda: [0, 0])
    for file in json.loads(run('llvm-cov', 'export', *common, SOURCE))['data'][0]['files']:
        for row in file['branches']:
            sums = branches[tuple(row[:4])]
            sums[0] += row[4]
            sums[1] += row[5]
    return lines, branches


def report(what, lines, branches):
    ways = [way for counts in branches.values() for way in counts]
    counts = sum(lines.values()), len(lines), sum(map(bool, ways)), len(ways)
    print('%-24s lines %d of %d (%.1f %%), branches %d of %d (%.1f %%)' % (
        what, *counts[:2], 100 * counts[0] / counts[1], *counts[2:], 100 * counts[2] / counts[3]), flush=True)


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
    function = told = None
    with open(OUT + '/uncovered.txt', 'w') as out:
        for number, line in enumerate(text, 1):
            match = re.match(r'(\w+)\(', line)
            function = match.group(1) if match else function
            if number in missing and told != function:
                out.write('\n%s\n' % function)
                told = function
            for what in missing.get(number, ()):
                out.write('%6d  %s\n' % (number, what))


def main():
    os.chdir(ROOT)
    end = sys.argv.index('--')
    with tempfile.TemporaryDirectory(prefix='butler_webhook-coverage-') as raw:
        os.chmod(raw, 0o755)
        build(sys.argv[1:end], sys.argv[end + 1:], raw)
        for name in ('program', 'short'):       # makes the files of counters
            run(PROGRAMS[name], '--version')
        for path in glob.glob(raw + '/*.profraw'):
            os.chmod(path, 0o666)
        for name, modules in (('unit', ''), ('system', 'alerts answers cli config delivery tls'),
                              ('faults', 'journal disk letters network load')):
            pytest = ['/usr/bin/python3', '-m', 'pytest', '-n', '8', '--dist', 'loadgroup']
            files = ['test/test_%s.py' % module for module in modules.split()]
            test(name, *([*pytest, *files] if files else [PROGRAMS['unit']]))
            lines, branches = measure(raw)
            report(name if name == 'unit' else 'and ' + name, lines, branches)
        write_uncovered(lines, branches)
    print('%s/uncovered.txt lists the rest, %s/annotated.txt has all counts' % (OUT, OUT))


if __name__ == '__main__':
    main()
