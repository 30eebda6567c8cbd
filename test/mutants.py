#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
Changes butler_webhook.c in one place at a time, and tells which test notices: first the unit tests, then the system tests, then
those for faults in the short form; or none. What survives is a line that no test minds, or a change that changes nothing.

    make mutants                                        100 mutants by all tests: hours
    make mutants SEED=2 COUNT=500 MUTANTS='--only unit' others, by the unit tests: ten seconds each
    make mutants MUTANTS=--resume                       goes on where the last run with the same sources ended, survivors of
                                                        --only unit by the other tests
    test/mutants.py --list                              which they would be

A mutant replaces an operator, a number, a character, true or false, takes a `!` away, negates a condition, or takes a statement
out. Comments, strings, declarations, what is for Windows, and what either compiler refuses are left out. Which ones are taken
depends on SEED and, for each place by itself, on its function and the text of its line: other lines may move or change.

A line for each mutant says number, line, function, what was changed, and `killed by unit`, `system NAME`, `faults NAME`, or
SURVIVED. build/mutants/results.jsonl has the same for --compare FILE, which tells mutants whose fate is another now; mutants
are the same if function, before, after and nth (of equal ones in the function) are.

A test kills if it fails again alone; one that does not is told as `unsteady`, and the others go on. Tests that fail without any
mutant, too, are left out. A run of tests that takes ten times as long as it should (three times for system and faults), or 4 GB
of memory, kills, too: `(time)`, `(memory)`.

All is built by make in a copy, build/mutants/tree-N, with less optimization: -O0 for what clang builds (variable ASAN of
test/test.mk), -O1 for gcc. Mutants run as the tests do, as root if these do. Whatever processes a test leaves are ended.
"""

import argparse
import collections
import concurrent.futures
import ctypes
import fcntl
import glob
import hashlib
import json
import multiprocessing
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OUT = os.path.join(ROOT, 'build/mutants')
SOURCE = 'butler_webhook.c'
STAGES = ('unit', 'system', 'faults')
MODULES = {'system': ['-n', '12', *('test/test_%s.py' % name for name in ('calls', 'config', 'http', 'tls'))],
           'faults': ['-n', '4', *('test/test_%s.py' % name for name in ('journal', 'disk', 'letters', 'network', 'load'))]}
MEMORY_KB = 4 << 20
FILE_MAX = 4 << 30      # bytes of any file that a mutant may write
UNSTEADY_MAX = 3        # tests that failed once, not alone; then it is enough
TEMPORARY = 'butler_webhook-mutant-%d-'     # folders that tests write into
OPTIMIZE = ['ASAN=clang -O0 -fsanitize=address,undefined -fno-sanitize-recover=all', 'CFLAGS=-O1']


# ---- Places and mutants ---------------------------------------------------------------------------------------------

TOKEN = re.compile(r'''
    (?P<skip> \s+ | /\*.*?\*/ | //[^\n]* )
  | (?P<string> "(?:\\.|[^"\\])*" )
  | (?P<char> '(?:\\.|[^'\\])+' )
  | (?P<number> \d[\w.]* )
  | (?P<word> [A-Za-z_]\w* )
  | (?P<op> \.\.\. | <<= | >>= | -> | \+\+ | -- | && | \|\| | [-+*/%&|^<>=!]= | << | >> | . )
''', re.S | re.X)
# Of an operator with a blank on both sides, which in this file is no pointer and no sign.
SWAPS = {'<': ('<=', '>='), '<=': ('<', '>'), '>': ('>=', '<='), '>=': ('>', '<'), '==': ('!=',), '!=': ('==',), '&&': ('||',),
         '||': ('&&',), '+': ('-',), '-': ('+',), '*': ('+',), '/': ('*',), '%': ('/',), '&': ('|',), '|': ('&',), '<<': ('>>',),
         '>>': ('<<',), '+=': ('-=', '='), '-=': ('+=', '='), '|=': ('&=', '='), '&=': ('|=', '=')}
TYPES = re.compile(r'(?:const|static|struct|enum|union|unsigned|signed|void|char|short|int|long|bool|float|double|va_list|'
                   r'_Atomic|SOCKET|\w+_t)\b')
NO_STATEMENT = {'if', 'for', 'while', 'do', 'switch', 'else', 'return', 'case', 'default', 'sizeof', 'typedef', 'goto'}
GONE = '(void)0;'

Token = collections.namedtuple('Token', 'kind text begin end')
Place = collections.namedtuple('Place', 'function what begin end choices')
Mutant = collections.namedtuple('Mutant', 'function before after nth line change begin end text')


def blank(text):
    """The file with blanks in place of preprocessor lines and of what is compiled for Windows only; the #defines of numbers."""
    out, defines = [], []
    windows = []    # of each open #if: True if it is about _WIN32; and whether its lines count
    at, included = 0, False
    lines = text.splitlines(keepends=True)
    number = 0
    while number < len(lines):
        line = lines[number]
        directive = line.lstrip().startswith('#')
        while directive and line.rstrip('\n').endswith('\\') and number + 1 < len(lines):
            number += 1
            line += lines[number]
        word = re.match(r'\s*#\s*(\w+)\s*(.*)', line) if directive else None
        active = all(counts for _, counts in windows)
        if word and word.group(1).startswith('if'):
            about = '_WIN32' in word.group(2)
            windows.append((about, not about or word.group(1) == 'ifndef' or '!' in word.group(2)))
        elif word and word.group(1) in ('else', 'elif') and windows[-1][0]:
            windows[-1] = (True, not windows[-1][1])
        elif word and word.group(1) == 'endif':
            windows.pop()
        elif word and word.group(1) == 'include':
            included = True
        elif word and active and included and re.match(r'\s*#define \w+ +[\d(]', line):
            defines.append((at, at + len(line)))
        out.append(re.sub(r'[^\n]', ' ', line) if directive or not active else line)
        at += len(line)
        number += 1
    return ''.join(out), defines


def tokenize(text, begin=0, end=None):
    at, tokens = begin, []
    end = len(text) if end is None else end
    while at < end:
        match = TOKEN.match(text, at)
        if match.lastgroup != 'skip':
            tokens.append(Token(match.lastgroup, match.group(), at, match.end()))
        at = match.end()
    return tokens


def number_choices(word):
    """One more, one less."""
    match = re.fullmatch(r'(0[xX][0-9a-fA-F]+|\d+)([uUlL]*)', word)
    if not match:
        return ()
    value = int(match.group(1), 16 if match.group(1)[:2] in ('0x', '0X') else 8 if re.match('0[0-7]', word) else 10)
    form = '0x%x%s' if match.group(1)[:2] in ('0x', '0X') else '%d%s'
    return tuple(form % (other, match.group(2)) for other in (value + 1, value - 1) if other >= 0)


def functions(tokens, text):
    """(name, first token, last token) of what stands between the braces of functions and of values of variables."""
    found, depth, name, first, paren = [], 0, None, None, None
    for i, token in enumerate(tokens):
        if token.text == '{':
            if depth == 0:
                before = tokens[i - 1].text
                if before == '=':
                    back = i - 2
                    while tokens[back].text == ']':     # NAME[...][...] =
                        back = max(j for j in range(back) if tokens[j].text == '[') - 1
                    name, first = tokens[back].text, i + 1
                elif before == ')' and paren:
                    name, first = paren, i + 1
                else:
                    first = None
            depth += 1
        elif token.text == '}':
            depth -= 1
            if depth == 0:
                if first is not None and name:
                    found.append((name, first, i))
                name = first = paren = None
        elif depth == 0 and token.text == '(' and tokens[i - 1].kind == 'word' and \
                (tokens[i - 1].begin == 0 or text[tokens[i - 1].begin - 1] == '\n'):
            paren = tokens[i - 1].text
        elif depth == 0 and token.text == ';':
            paren = None
    return found


def closing(tokens, i):
    """The index of the bracket that closes the one at i."""
    depth = 0
    for j in range(i, len(tokens)):
        depth += tokens[j].text in ('(', '[', '{')
        depth -= tokens[j].text in (')', ']', '}')
        if depth == 0:
            return j
    raise ValueError('a bracket is open')


def statement_end(tokens, i):
    """The index of the `;` that ends the statement at i; None if i begins no statement that can be taken out."""
    first, second = tokens[i], tokens[i + 1]
    if first.text in ('break', 'continue', 'goto') or (first.text == 'return' and second.text == ';'):
        return next(j for j in range(i, len(tokens)) if tokens[j].text == ';')
    if first.kind != 'word' and first.text not in ('*', '++', '--'):
        return None
    if first.text in NO_STATEMENT or TYPES.match(first.text) or second.kind == 'word' or second.text == ':':
        return None
    depth = 0
    for j in range(i, len(tokens)):
        depth += tokens[j].text in ('(', '[', '{')
        depth -= tokens[j].text in (')', ']', '}')
        if tokens[j].text == ';' and depth == 0:
            return j
        if depth < 0:
            return None
    return None


def body_places(name, tokens, text, is_code):
    """The places of one function, or of one variable's value."""
    def spaced(token):
        return text[token.begin - 1].isspace() and text[token.end].isspace()

    begins = True       # a statement can begin here
    heads = set()       # brackets that close the head of an if, for or while
    loops = set()       # tokens inside the head of a for
    for i, token in enumerate(tokens[:-1]):
        following = tokens[i + 1]
        if is_code and begins and i not in loops:
            end = statement_end(tokens, i)
            if end is not None:
                yield Place(name, 'statement', token.begin, tokens[end].end, (GONE,))
        if is_code and token.text in ('if', 'for', 'while', 'switch') and following.text == '(':
            close = closing(tokens, i + 1)
            heads.add(close)
            if token.text == 'for':
                loops.update(range(i + 1, close + 1))
            if token.text == 'if':
                begin, end = tokens[i + 2].begin, tokens[close - 1].end
                yield Place(name, 'condition', begin, end, ('!(%s)' % text[begin:end],))
        begins = i not in loops and (token.text in (';', '{', '}', 'else', 'do', ':') or i in heads)
        if i in heads and i in loops:
            begins = True
        if token.kind == 'op' and token.text in SWAPS and spaced(token):
            yield Place(name, token.text, token.begin, token.end, SWAPS[token.text])
        elif token.text in ('++', '--'):
            yield Place(name, token.text, token.begin, token.end, ('--' if token.text == '++' else '++',))
        elif token.text == '!' and not text[token.end].isspace():
            yield Place(name, '!', token.begin, token.end, ('',))
        elif token.text in ('true', 'false'):
            yield Place(name, token.text, token.begin, token.end, ('false' if token.text == 'true' else 'true',))
        elif token.kind == 'char':
            yield Place(name, token.text, token.begin, token.end, ('(%s + 1)' % token.text,))
        elif token.kind == 'number' and not is_dimension(tokens, i):
            choices = number_choices(token.text)
            if choices:
                yield Place(name, token.text, token.begin, token.end, choices)


def is_dimension(tokens, i):
    """True if the number at i is the length of an array that is declared here: a larger one changes nothing."""
    j = i
    while j >= 0 and tokens[j].text not in (';', '{', '}', ')', '=', '('):
        j -= 1
    depth = sum((t.text == '[') - (t.text == ']') for t in tokens[j + 1:i])
    first = tokens[j + 1]
    return depth > 0 and TYPES.match(first.text) is not None


def places(text):
    """All places of the file."""
    code, defines = blank(text)
    for begin, end in defines:
        tokens = tokenize(text, begin, end)
        for token in tokens[3:]:
            if token.kind == 'number' and number_choices(token.text):
                yield Place('#define ' + tokens[2].text, token.text, token.begin, token.end, number_choices(token.text))
    tokens = tokenize(code)
    for name, first, last in functions(tokens, code):
        yield from body_places(name, tokens[first:last + 1], code, tokens[first - 2].text == ')')


def one_line(text):
    """Without comments, with single blanks."""
    return ' '.join(re.sub(r'/\*.*?\*/', '', text, flags=re.S).split())


def mutants(text, seed):
    """All mutants, one of each place, in the order in which they are taken."""
    seen = collections.Counter()
    found = []
    for place in places(text):
        begin = text.rfind('\n', 0, place.begin) + 1
        end = text.index('\n', place.end - 1 if text[place.end - 1] == '\n' else place.end)
        before = one_line(text[begin:end])
        column = one_line(text[begin:place.begin])
        site = '\0'.join((place.function, place.what, before, column))
        seen[site] += 1
        score = hashlib.sha256('\0'.join((str(seed), site, str(seen[site]))).encode()).hexdigest()
        new = place.choices[int(score[-4:], 16) % len(place.choices)]
        after = one_line(text[begin:place.begin] + new + text[place.end:end])
        old = one_line(text[place.begin:place.end])
        found.append((score, Mutant(place.function, before, after, seen[site], text.count('\n', 0, place.begin) + 1,
                                    '%s -> %s' % ('all' if old == before else old, one_line(new) or 'nothing'),
                                    place.begin, place.end, new)))
    return [mutant for _, mutant in sorted(found)]


# ---- Running what may hang ------------------------------------------------------------------------------------------


def adopt():
    """Makes this process the parent of all that its children leave behind."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)     # PR_SET_CHILD_SUBREAPER
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_MAX, FILE_MAX))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def descendants():
    """{pid: kilobytes of memory} of all below this process."""
    parent, memory = {}, {}
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            with open('/proc/%s/stat' % pid) as file:
                fields = file.read().rpartition(')')[2].split()
        except OSError:
            continue
        parent[int(pid)] = int(fields[1])
        memory[int(pid)] = int(fields[21]) * 4
    found, new = {}, {os.getpid()}
    while new:
        new = {pid for pid, above in parent.items() if above in new}
        found.update((pid, memory[pid]) for pid in new)
    return found


def end_all():
    """Ends all below this process."""
    for _ in range(100):
        left = descendants()
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
            shutil.rmtree('/tmp/butler_webhook-unit.%d' % pid, ignore_errors=True)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        time.sleep(0.02)


Ran = collections.namedtuple('Ran', 'code lines how pid seconds')


def run(command, tree, limit, env=None, until=None, patience=0):
    """
    Runs a command in the tree, and ends all that it leaves. how: '' if it ended by itself, 'time', 'memory', or 'stopped': a line
    matched until; it then gets SIGTERM and, if there is patience, so many seconds.
    """
    begin = time.monotonic()
    child = subprocess.Popen(command, cwd=tree, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, start_new_session=True)
    out = child.stdout.fileno()
    fcntl.fcntl(out, fcntl.F_SETFL, os.O_NONBLOCK)
    data, how, deadline, looked = b'', '', begin + limit, 0
    while True:
        if select.select([out], [], [], 0.2)[0]:
            more = os.read(out, 1 << 16)
            data = (data + more)[-(1 << 22):]
            if not more:
                try:
                    child.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    how = how or 'time'
                break
        elif child.poll() is not None:
            break
        now = time.monotonic()
        if until and not how and any(until.match(line) for line in data.decode(errors='replace').split('\n')[:-1]):
            how, deadline = 'stopped', now + patience
            if patience:
                child.terminate()
        if now > deadline:
            how = how or 'time'
            break
        if now - looked > 2:
            looked = now
            if sum(descendants().values()) > MEMORY_KB:
                how = 'memory'
                break
    code = child.poll()
    end_all()
    child.stdout.close()
    return Ran(code, data.decode(errors='backslashreplace').split('\n'), how, child.pid, time.monotonic() - begin)


# ---- Trying one mutant ----------------------------------------------------------------------------------------------

FAILED = re.compile(r'(?:FAILED|ERROR) (test_\w+\.py::\S+)')


def make_tree(number):
    """A copy in which make finds all built but the program."""
    tree = os.path.join(OUT, 'tree-%d' % number)
    shutil.rmtree(tree, ignore_errors=True)
    os.makedirs(os.path.join(tree, 'build'))
    for name in os.listdir(ROOT):
        path = os.path.join(ROOT, name)
        if name.startswith('.') or name == 'build':
            continue
        if os.path.isdir(path):
            shutil.copytree(path, os.path.join(tree, name), symlinks=True, ignore=shutil.ignore_patterns('cache', '__pycache__'))
        else:
            shutil.copy2(path, tree)
    for name in os.listdir(os.path.join(ROOT, 'build')):
        path = os.path.join(ROOT, 'build', name)
        if name in ('src', 'gen') or name.startswith('musl-'):
            os.symlink(path, os.path.join(tree, 'build', name))
        elif name in ('asan', 'linux'):
            shutil.copytree(path, os.path.join(tree, 'build', name), ignore=shutil.ignore_patterns('butler_webhook*'))
    return tree


def put(tree, text):
    with open(os.path.join(tree, SOURCE), 'w') as file:
        file.write(text)


def make(tree, *words):
    return run(['make', *OPTIMIZE, *words], tree, 600)


def compiles(tree):
    """True if both compilers take it; the unit tests are built then."""
    for path in ('build/unit', 'build/butler_webhook', 'build/test/butler_webhook', 'build/linux/butler_webhook.o'):
        if os.path.exists(os.path.join(tree, path)):
            os.unlink(os.path.join(tree, path))
    ran = make(tree, 'build/unit')
    if ran.code == 0:
        ran = make(tree, 'CFLAGS=-O1 -fsyntax-only', 'build/linux/butler_webhook.o')
    return ran.code == 0, ran.lines


def run_tests(stage, tree, limit, args=(), stop=False):
    """Runs the tests of a stage; stop: until the first fails. Returns a Ran and the names of the tests that failed."""
    temporary = tempfile.mkdtemp(prefix=TEMPORARY % os.getpid(), dir='/tmp')
    os.chmod(temporary, 0o755)
    command = [os.path.join(tree, 'build/unit')] if stage == 'unit' else \
        ['/usr/bin/python3', '-m', 'pytest', '-rfE', *(['-x'] if stop else []), *(args or MODULES[stage])]
    try:
        # A test of faults takes away the networks and disks that it made.
        ran = run(command, tree, limit, dict(os.environ, TMPDIR=temporary), re.compile('FAILED ') if stop else None,
                  30 if stage == 'faults' else 0)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree('/tmp/butler_webhook-unit.%d' % ran.pid, ignore_errors=True)
    names = [match.group(1) for match in map(FAILED.match, ran.lines) if match]
    return ran, list(dict.fromkeys(names))


def without(names):
    return [word for name in names for word in ('--deselect', name)]


def first_line(lines):
    """What a failed run says first of importance."""
    for pattern in (r'FAILED', r'.*(?:Sanitizer|runtime error:)', r'.'):
        for line in lines:
            if re.match(pattern, line):
                return line[:300]
    return ''


def try_stage(stage, tree, baseline, args):
    """(name of what noticed or None, what it said, tests that failed only once)."""
    limit = baseline['limit']
    if stage == 'unit':
        ran, _ = run_tests(stage, tree, limit, stop=True)
        if ran.how in ('time', 'memory'):
            return '(%s)' % ran.how, first_line(ran.lines), []
        return (None if ran.code == 0 else 'unit'), first_line(ran.lines) if ran.code else '', []
    if not all(os.path.exists(os.path.join(tree, path)) for path in ('build/butler_webhook', 'build/test/butler_webhook')):
        ran = make(tree, 'all', 'test')
        if ran.code != 0:
            return '(build)', ' '.join(ran.lines)[-300:], []
    unsteady = []
    while len(unsteady) < UNSTEADY_MAX:
        ran, names = run_tests(stage, tree, limit, [*MODULES[stage], *args, *without(baseline['failed'] + unsteady)], stop=True)
        if not names:
            how = ran.how or ('' if ran.code == 0 else 'code %s' % ran.code)
            return ('(%s)' % how if how else None), first_line(ran.lines) if how else '', unsteady
        again, failed = run_tests(stage, tree, limit, [*args, 'test/' + names[0]])
        if failed or again.how or again.code != 0:
            return names[0], first_line(again.lines), unsteady
        unsteady.append(names[0])
    return None, '', unsteady


def try_mutant(job):
    """Runs in a process of its own. Returns what is to be recorded, or None if the mutant does not compile."""
    mutant, text, stages, baselines, args, done = job
    begin = time.monotonic()
    tree = tree_of_this_process()
    put(tree, text[:mutant.begin] + mutant.text + text[mutant.end:])
    ok, _ = compiles(tree)
    if not ok:
        return None
    record = dict(done or {'survived': [], 'unsteady': [], 'killed': None, 'name': None, 'said': '', 'seconds': {}})
    for stage in stages:
        if stage in record['survived'] or record['killed']:
            continue
        name, said, unsteady = try_stage(stage, tree, baselines[stage], args)
        record['unsteady'] = record['unsteady'] + unsteady
        record['seconds'] = dict(record['seconds'], **{stage: round(time.monotonic() - begin)})
        begin = time.monotonic()
        if name:
            record.update(killed=stage, name=name, said=said)
        else:
            record['survived'] = record['survived'] + [stage]
    return record


_tree = None


def tree_of_this_process():
    return _tree


def leave(*_):
    """Ends a worker and all that it has started."""
    end_all()
    for path in glob.glob('/tmp/' + TEMPORARY % os.getpid() + '*'):
        shutil.rmtree(path, ignore_errors=True)
    os._exit(1)


def interrupted(number, _):
    """Ends all."""
    print('ended by %s; --resume goes on' % signal.Signals(number).name, flush=True)
    for worker in multiprocessing.active_children():
        worker.terminate()
    os._exit(1)


def begin_worker(numbers):
    global _tree
    signal.signal(signal.SIGINT, lambda *_: None)      # if it were ignored, it would be so in the programs, too
    signal.signal(signal.SIGTERM, leave)
    adopt()
    _tree = make_tree(numbers.get())


def measure_baseline(stages, text, args):
    """How long each stage takes without a mutant, and what fails even so, alone, too."""
    tree = tree_of_this_process()
    put(tree, text)
    ok, lines = compiles(tree)
    if not ok:
        return 'the program does not compile: %s' % '\n'.join(lines[-20:])
    found = {}
    for stage in stages:
        if stage != 'unit':
            ran = make(tree, 'all', 'test')
            if ran.code != 0:
                return 'the program does not compile: %s' % '\n'.join(ran.lines[-20:])
        ran, names = run_tests(stage, tree, 1800, [*MODULES[stage], *args] if stage != 'unit' else ())
        if stage == 'unit' and ran.code != 0:
            return 'the unit tests fail: %s' % first_line(ran.lines)
        if stage != 'unit' and not any(re.match(r'\d+ passed, ', line) for line in ran.lines):
            return 'the %s tests do not run: %s' % (stage, '\n'.join(ran.lines[-20:]))
        alone = [name for name in names if run_tests(stage, tree, 1800, [*args, 'test/' + name])[0].code != 0]
        found[stage] = {'seconds': round(ran.seconds), 'limit': max(60, 10 * ran.seconds) if stage == 'unit' else
                        max(300, 3 * ran.seconds), 'failed': alone, 'unsteady': [name for name in names if name not in alone]}
    return found


# ---- The whole ------------------------------------------------------------------------------------------------------


def key(record):
    return record['function'], record['before'], record['after'], record['nth']


def load(path):
    """The last record of each mutant, and the baselines."""
    records, baselines = {}, {}
    if os.path.exists(path):
        with open(path) as file:
            for line in file:
                record = json.loads(line)
                if 'baseline' in record:
                    baselines.update(record['baseline'])
                else:
                    records[key(record)] = record
    return records, baselines


def sources():
    """Stands for all that decides the fate of a mutant."""
    sha = hashlib.sha256()
    paths = [SOURCE] + ['test/' + name for name in sorted(os.listdir('test')) if name.endswith(('.c', '.h', '.py')) and
                        name not in ('mutants.py', 'coverage.py')]
    for path in paths:
        with open(path, 'rb') as file:
            sha.update(file.read())
    return sha.hexdigest()[:16]


def fate(record):
    if record['killed'] is None:
        return 'SURVIVED'
    name = record['name']
    return 'killed by %s' % record['killed'] + ('' if name == record['killed'] else ' ' + name)


def tell(number, record):
    unsteady = '  (unsteady: %s)' % ', '.join(record['unsteady']) if record['unsteady'] else ''
    print('%4d %s:%d %s: %s | %s: %s%s' % (number, SOURCE, record['line'], record['function'], record['before'],
                                           record['change'], fate(record), unsteady), flush=True)


def compare(records, old):
    """Tells the mutants that both runs have, and whose fate differs."""
    both = [(records[k], old[k]) for k in records if k in old]
    print('%d mutants are in both runs' % len(both))
    for new, before in both:
        if (new['killed'] is None) != (before['killed'] is None):
            print('%s:%d %s: %s | %s: was %s, is %s' % (SOURCE, new['line'], new['function'], new['before'], new['change'],
                                                        fate(before), fate(new)))


def options_of(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seed', default=os.environ.get('SEED') or '1')
    parser.add_argument('--count', type=int, default=int(os.environ.get('COUNT') or '100'))
    parser.add_argument('--only', choices=STAGES, action='append', help='only these tests (again for more)')
    parser.add_argument('--jobs', type=int, default=1, help='mutants at a time')
    parser.add_argument('--harness-args', default='', help='more arguments of pytest')
    parser.add_argument('--results', default=os.path.join(OUT, 'results.jsonl'))
    parser.add_argument('--resume', action='store_true', help='go on with what --results has, if the sources are the same')
    parser.add_argument('--compare', metavar='FILE', help='tell what differs from another run')
    parser.add_argument('--list', action='store_true', help='print the mutants, do nothing')
    return parser.parse_args(argv)


def main():
    os.chdir(ROOT)
    options = options_of(None)
    with open(SOURCE) as file:
        text = file.read()
    wanted = mutants(text, options.seed)
    if options.list:
        for mutant in wanted[:options.count]:
            print('%d %s: %s | %s' % (mutant.line, mutant.function, mutant.before, mutant.change))
        print('%d places' % len(wanted))
        return 0
    stages = [stage for stage in STAGES if not options.only or stage in options.only]
    args = options.harness_args.split()
    os.makedirs(OUT, exist_ok=True)
    same = sources()
    old, baselines = load(options.results) if options.resume else ({}, {})
    old = {k: record for k, record in old.items() if record['sources'] == same}
    baselines = {stage: value for stage, value in baselines.items() if value['sources'] == same}
    if not options.resume and os.path.exists(options.results):
        os.replace(options.results, options.results + '.old')
    results = open(options.results, 'a')

    def write(record):
        results.write(json.dumps(record) + '\n')
        results.flush()

    begin = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    context = multiprocessing.get_context('fork')
    numbers = context.SimpleQueue()
    for number in range(options.jobs):
        numbers.put(number)
    records, waiting = {}, collections.deque()
    with concurrent.futures.ProcessPoolExecutor(options.jobs, context, begin_worker, (numbers,)) as pool:
        missing = [stage for stage in stages if stage not in baselines]
        found = pool.submit(measure_baseline, missing, text, args).result()
        if isinstance(found, str):
            print(found)
            return 1
        baselines.update({stage: dict(value, sources=same) for stage, value in found.items()})
        write({'baseline': baselines})
        for stage in stages:
            base = baselines[stage]
            print('%s without a mutant: %d s%s%s' % (
                stage, base['seconds'], ', left out as they fail: ' + ', '.join(base['failed']) if base['failed'] else '',
                ', failed but not alone: ' + ', '.join(base['unsteady']) if base['unsteady'] else ''), flush=True)
        rest = iter(wanted)
        refused = in_a_row = 0
        while len(records) < options.count:
            while len(waiting) < options.jobs:
                mutant = next(rest, None)
                if mutant is None:
                    break
                done = old.get((mutant.function, mutant.before, mutant.after, mutant.nth))
                if done and done.get('refused'):
                    refused += 1
                    continue
                if done and (done['killed'] or set(stages) <= set(done['survived'])):
                    waiting.append((mutant, None, dict(done)))
                else:
                    job = mutant, text, stages, baselines, args, done
                    waiting.append((mutant, pool.submit(try_mutant, job), None))
            if not waiting:
                break
            mutant, future, record = waiting.popleft()
            if future is not None:
                record = future.result()
            named = {'function': mutant.function, 'before': mutant.before, 'after': mutant.after, 'nth': mutant.nth}
            if record is None:
                refused += 1
                in_a_row += 1
                if in_a_row % 10 == 0:      # is it the mutants?
                    found = pool.submit(measure_baseline, (), text, args).result()
                    if isinstance(found, str):
                        print(found)
                        return 1
                write(dict(named, sources=same, refused=True))
                continue
            in_a_row = 0
            record.update(named, line=mutant.line, change=mutant.change, seed=options.seed, sources=same)
            records[key(record)] = record
            if future is not None:
                write(record)
            tell(len(records), record)
    results.close()
    counts = collections.Counter(record['killed'] or 'none' for record in records.values())
    print('%d mutants in %d s (%d more did not compile): %s, %d survived' % (
        len(records), time.monotonic() - begin, refused,
        ', '.join('%d killed by %s' % (counts[stage], stage) for stage in stages), counts['none']))
    for record in records.values():
        if record['killed'] is None:
            print('SURVIVED %s:%d %s: %s | %s' % (SOURCE, record['line'], record['function'], record['before'], record['change']))
    if options.compare:
        compare(records, load(options.compare)[0])
    return 0


if __name__ == '__main__':
    sys.exit(main())
