#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
Changes butler_webhook.c in one place at a time, and tells which test notices: unit, then system, then faults in the short form;
or none. What survives is a line that no test minds, or a change that changes nothing.

    make mutants                                            100 mutants by all tests: hours
    make mutants SEED=2 COUNT=500 MUTANTS='--only unit'     others, by the unit tests: ten seconds each
    make mutants MUTANTS='--skip 57'                        begins behind the mutant with the number 57
    test/mutants.py --list                                  which they would be

A mutant replaces an operator, a number, a character, true or false, takes a `!` away, negates a condition, or takes a statement
out; not for Windows. Which ones are taken depends on SEED and, for each place by itself, on its function and the line's text.
A test kills if it fails three times in a row, and not without a mutant. A run that takes ten times as long as it should (three
times for system and faults), or 4 GB of memory, kills, too. All is built in a copy, build/mutants/tree, with less optimization.
"""

import argparse
import collections
import contextlib
import ctypes
import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TREE = os.path.join(ROOT, 'build/mutants/tree')
SOURCE = 'butler_webhook.c'
PYTEST = ['/usr/bin/python3', '-m', 'pytest', '-rfE', '--reruns', '2', '--dist', 'loadgroup']
SYSTEM = ['test/test_%s.py' % name for name in 'alerts answers cli config delivery tls'.split()]
FAULTS = ['test/test_%s.py' % name for name in 'journal disk letters network load'.split()]
STAGES = {'unit': ['build/unit'], 'system': [*PYTEST, '-n', '12', *SYSTEM], 'faults': [*PYTEST, '-n', '4', *FAULTS]}
BUILT = ('build/unit', 'build/linux/butler_webhook.o', 'build/butler_webhook', 'build/test/butler_webhook')
MAKE = ['make', 'ASAN=clang -O0 -fsanitize=address,undefined -fno-sanitize-recover=all', 'CFLAGS=-O1']
LIMIT = 4 << 30     # bytes of memory that all may take, and of any file that a mutant may write
FAILED = re.compile(r'(?:FAILED|ERROR) (test_\w+\.py::\S+)')

TOKEN = re.compile(r'''
    (?P<skip> \s+ | /\*.*?\*/ | //[^\n]* )
  | (?P<string> "(?:\\.|[^"\\])*" )
  | (?P<char> '(?:\\.|[^'\\])+' )
  | (?P<number> \d[\w.]* )
  | (?P<word> [A-Za-z_]\w* )
  | (?P<op> \.\.\. | <<= | >>= | -> | \+\+ | -- | && | \|\| | [-+*/%&|^<>=!]= | << | >> | . )
''', re.S | re.X)
# What may stand in place of an operator that has a blank on both sides, which in this file is no pointer and no sign.
SWAPS = {'<': '<= >=', '<=': '< >', '>': '>= <=', '>=': '> <', '==': '!=', '!=': '==', '&&': '||', '||': '&&', '+': '-', '-': '+',
         '*': '+', '/': '*', '%': '/', '&': '|', '|': '&', '<<': '>>', '>>': '<<', '+=': '-= =', '-=': '+= =', '|=': '&= =',
         '&=': '|= ='}
WORDS = {'++': '--', '--': '++', 'true': 'false', 'false': 'true'}
TYPES = re.compile(r'(?:const|static|struct|enum|union|unsigned|signed|void|char|short|int|long|bool|float|double|va_list|'
                   r'_Atomic|SOCKET|\w+_t)\b')
NO_STATEMENT = re.compile(TYPES.pattern + r'|(?:if|for|while|do|switch|else|return|case|default)\b')
# A function, or the value of a variable, as clang-format writes them.
BODY = re.compile(r'^(?!__)(\w+)\([^;{}]*\)\n\{(?P<code>.*?^\})|'
                  r'^[^\n(]*?(\w+)(?:\[[^\]\n]*\])* = \{(?P<value>.*?\});', re.S | re.M)
DEPTH = {'(': 1, '[': 1, '{': 1, ')': -1, ']': -1, '}': -1}

Token = collections.namedtuple('Token', 'kind text begin end')
Place = collections.namedtuple('Place', 'function what begin end choices')
Mutant = collections.namedtuple('Mutant', 'shown begin end text')


def blank(text):
    """The file with blanks in place of preprocessor lines and of what is for Windows only; where numbers are #defined."""
    code, defines, begin = [], [], 0
    windows = []    # of each open #if: whether its lines are for Windows; None: it does not ask
    for line in re.findall(r'[ \t]*#(?:.*\\\n)*.*\n|.*\n', text):
        directive = re.match(r'\s*#\s*(\w+)\s*(.*)', line)
        word, rest = directive.groups() if directive else ('', '')
        if word.startswith('if'):
            windows.append(word == 'ifdef' if '_WIN32' in rest else None)
        elif word == 'else' and windows[-1] is not None:
            windows[-1] = not windows[-1]
        elif word == 'endif':
            windows.pop()
        elif begin > text.index('#include') and True not in windows and re.match(r'\s*#define \w+ +[\d(]', line):
            defines.append((begin, begin + len(line.partition('/*')[0])))
        code.append(re.sub(r'[^\n]', ' ', line) if directive or True in windows else line)
        begin += len(line)
    return ''.join(code), defines


def tokenize(text, begin, end):
    return [Token(match.lastgroup, match.group(), *match.span()) for match in TOKEN.finditer(text, begin, end)
            if match.lastgroup != 'skip']


def find_end(tokens, i, text):
    """The index of that token, from i on and outside of brackets that open from there on; None if there is none."""
    depth = 0
    for j, token in enumerate(tokens[i:], i):
        depth += DEPTH.get(token.text, 0)
        if depth < 0 or (depth == 0 and token.text == text):
            return j if depth == 0 else None
    return None


def statement_end(tokens, i):
    """The index of the `;` that ends the statement at i; None if it is none that can be taken out."""
    first, second = tokens[i], tokens[i + 1]
    jumps = first.text in ('break', 'continue', 'goto') or (first.text == 'return' and second.text == ';')
    begins = first.kind == 'word' or first.text in ('*', '++', '--')
    other = NO_STATEMENT.match(first.text) or second.kind == 'word' or second.text == ':'
    return find_end(tokens, i, ';') if jumps or (begins and not other) else None


def choices_of(token, text, start):
    """What may stand in place of one token of the line that begins at start."""
    what, spaced = token.text, text[token.begin - 1].isspace() and text[token.end].isspace()
    if token.kind == 'number':
        # Not the length of an array that is declared here: a larger one changes nothing.
        part = re.split(r'[;{}()=]', text[start:token.begin])[-1].strip()
        number = re.fullmatch(r'(0[xX][0-9a-fA-F]+|\d+)([uUlL]*)', what)
        if not number or (part.count('[') > part.count(']') and TYPES.match(part)):
            return ()
        base = 16 if what[:2] in ('0x', '0X') else 8 if what[0] == '0' else 10
        values = int(number[1], base) + 1, int(number[1], base) - 1
        return tuple(('0x%x%s' if base == 16 else '%d%s') % (value, number[2]) for value in values if value >= 0)
    if token.kind == 'char':
        return ('(%s + 1)' % what,)
    if what == '!' and not text[token.end].isspace():
        return ('',)
    return (WORDS.get(what) or (SWAPS.get(what, '') if spaced else '')).split()


def body_places(name, tokens, text, is_code):
    """The places of one function, or of one variable's value."""
    for i, token in enumerate(tokens[:-1]):
        start = text.rfind('\n', 0, token.begin) + 1
        before = tokens[i - 1].text if i else '{'
        left = text[start:token.begin].strip()
        begins = not left.startswith('for ') if before == ':' else not left and before in (';', '{', '}', ')', 'else', 'do')
        if is_code and begins:
            last = statement_end(tokens, i)
            if last:
                yield Place(name, 'statement', token.begin, tokens[last].end, ('(void)0;',))
        if is_code and token.text == 'if':
            begin, end = tokens[i + 2].begin, tokens[find_end(tokens, i + 1, ')') - 1].end
            yield Place(name, 'condition', begin, end, ('!(%s)' % text[begin:end],))
        choices = choices_of(token, text, start)
        if choices:
            yield Place(name, token.text, token.begin, token.end, choices)


def places(text):
    """All places of the file."""
    code, defines = blank(text)
    for begin, end in defines:
        tokens = tokenize(text, begin, end)
        numbers = [token for token in tokens[3:] if token.kind == 'number']
        yield from body_places('#define ' + tokens[2].text, numbers + tokens[-1:], text, False)
    for body in BODY.finditer(code):
        tokens = tokenize(code, *body.span('code' if body['code'] else 'value'))
        yield from body_places(body[1] or body[3], tokens, code, bool(body['code']))


def one_line(text):
    """Without comments, with single blanks."""
    return ' '.join(re.sub(r'/\*.*?\*/', '', text, flags=re.S).split())


def mutants(text, seed):
    """All mutants, one of each place, in the order in which they are taken."""
    seen = collections.Counter()
    found = []
    for place in places(text):
        begin = text.rfind('\n', 0, place.begin) + 1
        end = text.index('\n', place.end)
        before = one_line(text[begin:end])
        site = '\0'.join((place.function, place.what, before, one_line(text[begin:place.begin])))
        seen[site] += 1
        score = hashlib.sha256('\0'.join((seed, site, str(seen[site]))).encode()).hexdigest()
        new = place.choices[int(score[-4:], 16) % len(place.choices)]
        old = one_line(text[place.begin:place.end])
        shown = '%s:%d %s: %s | %s -> %s' % (SOURCE, text.count('\n', 0, place.begin) + 1, place.function, before,
                                             'all' if old == before else old, one_line(new) or 'nothing')
        found.append((score, Mutant(shown, place.begin, place.end, new)))
    return [mutant for _, mutant in sorted(found)]


def descendants():
    """{pid: bytes of memory} of all below this process."""
    parent, memory = {}, {}
    for pid in map(int, filter(str.isdigit, os.listdir('/proc'))):
        with contextlib.suppress(OSError), open('/proc/%d/stat' % pid) as file:     # it may have ended
            fields = file.read().rpartition(')')[2].split()
            parent[pid], memory[pid] = int(fields[1]), int(fields[21]) * 4096
    found, new = {}, {os.getpid()}
    while new:
        new = {pid for pid, above in parent.items() if above in new}
        found.update((pid, memory[pid]) for pid in new)
    return found


def end_all():
    """Ends all below this process, which is the parent of all that its children leave behind."""
    while descendants():
        for pid in descendants():
            with contextlib.suppress(OSError):      # it has ended, or is another one's child
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)


def run(command, limit):
    """Runs a command in the tree, ends all that it leaves. Returns '' (it went well), `code N`, `(time)`, `(memory)`; output."""
    deadline = time.monotonic() + limit
    with tempfile.TemporaryDirectory(prefix='butler_webhook-mutant-') as folder, tempfile.TemporaryFile() as out:
        os.chmod(folder, 0o755)
        child = subprocess.Popen(command, cwd=TREE, env=dict(os.environ, TMPDIR=folder), stdin=subprocess.DEVNULL, stdout=out,
                                 stderr=subprocess.STDOUT, start_new_session=True)
        how = None
        while how is None:
            try:
                code = child.wait(2)
                how = 'code %d' % code if code else ''
            except subprocess.TimeoutExpired:
                if time.monotonic() > deadline:
                    how = '(time)'
                elif sum(descendants().values()) > LIMIT:
                    how = '(memory)'
        end_all()
        shutil.rmtree('/tmp/butler_webhook-unit.%d' % child.pid, ignore_errors=True)
        out.seek(max(0, out.seek(0, os.SEEK_END) - (1 << 20)))
        return how, out.read().decode(errors='backslashreplace').splitlines()


def put(text):
    """Makes that the program's source. Returns what the compilers say if they refuse it; the unit tests are built then."""
    with open(os.path.join(TREE, SOURCE), 'w') as file:
        file.write(text)
    run(['rm', '-f', *BUILT], 60)
    how, lines = run([*MAKE, *BUILT[:2]], 600)
    return lines[-20:] if how else None


def run_stage(stage, args=(), limit=1800):
    """Runs the tests of a stage. Returns what run() says, and the names of the tests that failed."""
    if stage != 'unit' and run([*MAKE, *BUILT], 600)[0]:
        return '(build)', []
    how, lines = run([*STAGES[stage], *args], limit)
    return how, list(dict.fromkeys(match.group(1) for match in map(FAILED.match, lines) if match))


def measure(stage):
    """A run without a mutant. Returns the arguments with which the others are run, and how long one may take."""
    begin = time.monotonic()
    how, failed = run_stage(stage)
    seconds = time.monotonic() - begin
    if how and not failed:
        sys.exit('the %s tests do not run: %s' % (stage, how))
    print('%s without a mutant: %d s; left out as they fail: %s' % (stage, seconds, ', '.join(failed) or 'none'), flush=True)
    if stage == 'unit':
        return [], max(60, 10 * seconds)
    return ['-x', *('--deselect=' + name for name in failed)], max(300, 3 * seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seed', default=os.environ.get('SEED') or '1')
    parser.add_argument('--count', type=int, default=int(os.environ.get('COUNT') or '100'))
    parser.add_argument('--skip', type=int, default=0, metavar='N', help='begin behind the mutant with that number')
    parser.add_argument('--only', choices=STAGES, action='append', help='only these tests (again for more)')
    parser.add_argument('--list', action='store_true', help='print the mutants, do nothing')
    options = parser.parse_args()
    os.chdir(ROOT)
    with open(SOURCE) as file:
        text = file.read()
    wanted = list(enumerate(mutants(text, options.seed), 1))[options.skip:]
    if options.list:
        for number, mutant in wanted[:options.count]:
            print(number, mutant.shown)
        return
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)     # PR_SET_CHILD_SUBREAPER
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('ended by SIGTERM'))
    killers, survived, refused = collections.Counter(), [], 0
    try:
        shutil.rmtree(TREE, ignore_errors=True)
        shutil.copytree(ROOT, TREE, True, shutil.ignore_patterns('.git', 'mutants', 'wine', 'cache', '__pycache__'))
        lines = put(text)
        if lines:
            sys.exit('\n'.join(['the program does not compile:', *lines]))
        stages = {stage: measure(stage) for stage in STAGES if not options.only or stage in options.only}
        for number, mutant in wanted:
            if sum(killers.values()) + len(survived) == options.count:
                break
            if put(text[:mutant.begin] + mutant.text + text[mutant.end:]):
                refused += 1
                continue
            for stage, (args, limit) in stages.items():
                how, names = run_stage(stage, args, limit)
                if how:
                    killers[stage] += 1
                    break
            else:
                survived.append(mutant.shown)
            fate = 'killed by %s %s' % (stage, (names or [how])[0]) if how else 'SURVIVED'
            print('%4d %s: %s' % (number, mutant.shown, fate), flush=True)
    finally:
        end_all()
    print(''.join('SURVIVED %s\n' % shown for shown in survived), end='')
    killed = ', '.join('%d killed by %s' % (killers[stage], stage) for stage in stages)
    print('%d mutants (%d more did not compile): %s, %d survived' % (
        sum(killers.values()) + len(survived), refused, killed, len(survived)))


if __name__ == '__main__':
    main()
