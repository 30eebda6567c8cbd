"""
What the program says of configurations: every mistake at its line and column, all of them at once, and nothing about files
that are right.

data/config/NAME.yaml is such a file; NAME.problems holds what --check says of it on stderr, a line each, without the file's
name; NAME.check, if there is one, what it prints behind its first line. `...` stands for any text. NAME.values, if
there is one, is what unit.c finds in it. The files are the seeds of the configuration's fuzzer as well.
"""

import os
import re
import resource
import shutil
import subprocess

import pytest

import harness
import words

FOLDER = os.path.join(harness.ROOT, 'test/data/config')
SAMPLES = os.path.join(harness.ROOT, 'samples')
FILES = sorted({name.partition('.')[0] for name in os.listdir(FOLDER) if not name.endswith('.pem')})
NOBODY = 65534
MEMORY = 150 << 20

GOOD = '''\
Butler:
  udpServerConfig:
    enable: true
  webhookNotification:
    enable: true
    reloadTaskFailure:
      webhooks:
        - webhookURL: http://127.0.0.1:1/a
          httpMethod: POST
'''


def write(t, text, name='butler.yaml'):
    path = os.path.join(t.tmp, name)
    with open(path, 'wb') as file:
        file.write(harness.SYSTEM.text(text if isinstance(text, bytes) else text.encode('utf-8')))
    return path


def lines_of(name):
    with open(os.path.join(FOLDER, name), encoding='utf-8') as file:
        return file.read().splitlines()


def check_lines(t, what, text, wanted):
    """The lines of text are those that are wanted, in which `...` stands for anything."""
    lines = text.splitlines()
    t.equal('%s: number of lines of %r' % (what, text), len(lines), len(wanted))
    for line, want in zip(lines, wanted):
        regex = '.*'.join(re.escape(part) for part in want.split('...'))
        t.check('%s: %s' % (what, want), re.fullmatch(regex, line) and line.isprintable(), repr(line))


def check_file(t, path, problems):
    """--check finds these problems; with an error in it the program does not start, and says the same. Gives stdout's rest."""
    done = t.run('--check', path)
    check_lines(t, '--check', done.stderr, ['%s:%s' % (path, problem) for problem in problems])
    errors = len([problem for problem in problems if re.match(r'\d+:\d+: error: ', problem)])
    warnings = len([problem for problem in problems if re.match(r'\d+:\d+: warning: ', problem)])
    t.equal('each problem is an error or a warning', errors + warnings, len(problems))
    t.equal('exit code', done.returncode, 2 if errors else 0)
    first, _, rest = done.stdout.partition('\n')
    t.equal('the first line counts them', first, 'configuration %s%s: %d error%s, %d warning%s' % (
        path, '' if errors else ' is valid', errors, '' if errors == 1 else 's', warnings, '' if warnings == 1 else 's'))
    again = t.run(*([path] if errors else ['--check', path]), binary=t.binary_test)     # the one with sanitizers
    t.equal('once more', (again.returncode, again.stderr), (done.returncode, done.stderr))
    t.equal('it does not start', re.findall(words.LISTENING, again.stdout), [])
    return rest


@pytest.mark.parametrize('name', FILES)
def test_config_file(t, name):
    rest = check_file(t, os.path.join(FOLDER, name + '.yaml'), lines_of(name + '.problems'))
    if os.path.exists(os.path.join(FOLDER, name + '.check')):
        check_lines(t, 'what would be called', rest, lines_of(name + '.check'))


# ---- Files that cannot be read --------------------------------------------------------------------------------------


def test_config_cannot_be_read(t):
    """A device may be read; one without an end is too large."""
    for name, why in (('missing.yaml', 'No such file or directory'), ('missing/butler.yaml', 'No such file or directory'),
                      (os.path.basename(write(t, GOOD)) + '/butler.yaml', '... directory'), ('', 'Is a directory')):
        check_file(t, os.path.join(t.tmp, name), ['1:1: error: cannot read the configuration (at most 512 KB): ' + why])
    check_file(t, '/dev/null', ['1:1: error: the file is empty: it must start with "Butler:"'])
    check_file(t, '/dev/zero', ['1:1: error: ...'])


@harness.unix('modes of files, and users who may not read them')
def test_config_without_the_right_to_read(t):
    user = {'user': NOBODY, 'group': NOBODY, 'extra_groups': ()} if os.getuid() == 0 else {}
    os.chmod(t.tmp, 0o755)
    binary = os.path.join(t.tmp, 'program')
    subprocess.run(['cp', t.binary, binary], check=True)    # a child of ours might hold what we ourselves write
    secret = write(t, GOOD, 'secret')
    os.chmod(secret, 0)
    path = write(t, GOOD.replace('http:', 'https:') + '          cert: {enable: true, certCA: secret}\n')
    for asked, problem in ((secret, '1:1: error: cannot read ...: Permission denied'),
                           (path, '10:40: error: cert.certCA: %s: Permission denied' % secret)):
        done = t.run('--check', asked, binary=binary, **user)
        t.equal('exit code', done.returncode, 2)
        check_lines(t, 'what it says', done.stderr, ['%s:%s' % (asked, problem)])


# ---- Files that are meant to do harm --------------------------------------------------------------------------------


def laughs(begin, name, end):
    """Twelve anchors, each of which stands for ten of the one before."""
    lines = ['a%d: &a%d %s%s%s\n' % (level, level, name, ', '.join(['*a%d' % (level - 1)] * 10), end) for level in range(1, 12)]
    return 'a0: &a0 %s\n%s' % (begin, ''.join(lines))


HOSTILE = {     # just above each bound: unit.c
    'a billion values': (laughs('[1, 2]', '[', ']') + GOOD, 'more than 20000 values'),
    'a billion merged keys': (laughs('{k: 1}', '{<<: [', ']}') + GOOD.replace('POST', 'NO'), 'GET, POST or PUT'),   # they are one
    'noise': (bytes(range(256)) * (20 << 10), 'at most 512 KB'),
    'NUL bytes': (bytes(512 << 10), 'control characters'),
    'braces': (b'{a: ' * (128 << 10), 'nested more than 64'),
    'dashes': (b'- ' * (256 << 10), 'nested more than 64'),
    'keys': (b''.join(b'key%05d:\n' % number for number in range(52000)), 'more than 20000 values'),
    'anchors': (b'a: [' + b''.join(b'&%x,' % number for number in range(80000)) + b']\n', 'more than 1000 anchors'),
    'aliases': (b'a: [&a x, ' + b'*a,' * 100000 + b']\n' + GOOD.encode(), 'more than 20000 values'),
    'tag directives': (b''.join(b'%%TAG !%05x! b\n' % number for number in range(34000)), 'more than 1000 anchors'),
    'mistakes': (GOOD[:GOOD.index('        - ')] + '        - httpMethod: no\n' * 4000, 'from 0 to 200'),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_config_hostile(t, name):
    """An error with a place, soon and in little memory."""
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    text, wanted = HOSTILE[name]
    path = write(t, text)
    is_limited = not harness.WINDOWS and not re.search('/[at]san/', t.binary)      # those reserve more than there is
    done = t.run('--check', path, timeout=10, **({'preexec_fn': limit} if is_limited else {}))
    t.equal('exit code', done.returncode, 2)
    line = r'%s:\d+:\d+: error: .*%s' % (re.escape(path), wanted)
    t.check('says what is wrong', re.search(line, done.stderr), repr(done.stderr[:500]))
    t.check('each line is a problem', all(re.match(r'%s:\d+:\d+: (error|warning): \S' % re.escape(path), problem) and
                                          len(problem) < 1200 for problem in done.stderr.splitlines()), repr(done.stderr[:500]))


# ---- Butler's files -------------------------------------------------------------------------------------------------


def test_config_seed(t):
    """The sample that Butler's users start with: off, and with URLs that are none. --test is strict: it would call them."""
    text = '\n'.join(lines_of('seed.yaml')) + '\n'
    path = write(t, text)
    problems = [problem.replace('warning', 'error') for problem in lines_of('seed.problems')]
    done = t.run('--test', path)
    t.equal('--test calls nothing', (done.returncode, done.stdout), (2, ''))
    check_lines(t, '--test', done.stderr, ['%s:%s' % (path, problem) for problem in problems])
    text = text.replace('enable: false', 'enable: true', 1).replace('  # ...\n', '  udpServerConfig: {enable: true}\n', 1)
    check_file(t, write(t, text), problems)
    check_file(t, write(t, text.replace('host.my.domain:port', '127.0.0.1:1')), [])


def test_config_production_runs(t):
    """The file of a Butler that runs everything, beside it: only the address and the port are ours."""
    text = '\n'.join(lines_of('butler-production.yaml'))
    shutil.copy(os.path.join(FOLDER, 'ca.pem'), t.tmp)
    port = t.port()
    program = t.start(write(t, text + '\n  butlerWebhook:\n    serverHost: 127.0.0.1\n    port: %d\n' % port))
    found = program.wait_log(words.LISTENING)
    t.equal('it listens where butlerWebhook says', (found[1], found[2]), ('127.0.0.1', str(port)))
    t.equal('stops', program.stop(), 0)
    logs = os.listdir(os.path.join(t.tmp, 'log'))
    t.check('it logs into its logDirectory', len(logs) == 1 and re.fullmatch(r'butler_webhook\.[\d-]{10}\.log', logs[0]), logs)


def test_config_enable(t):
    """Off is a line and exit code 0; our own enable counts before Butler's two."""
    for butler, notification, own, key in (('false', 'true', '', 'udpServerConfig'), ('true', 'false', '', 'webhookNotification'),
                                           ('true', 'true', 'false', 'butlerWebhook'), ('false', 'false', 'true', None)):
        path = write(t, 'Butler:\n  udpServerConfig: {enable: %s}\n  webhookNotification: {enable: %s}\n'
                        '  butlerWebhook: {enable: %s, port: %d}\n' % (butler, notification, own, t.port()))
        if key is None:
            t.equal('it runs, and stops', t.start(path).stop(), 0)
            continue
        done = t.run(path)
        t.equal('exit code and stderr', (done.returncode, done.stderr), (0, ''))
        t.equal('it says why', done.stdout, 'butler_webhook: disabled by %s.enable: false in %s: nothing to do\n' % (key, path))


def test_config_full_is_the_default(t):
    """What samples/full.yaml calls a default is what --check tells of a file that leaves it out."""
    full = t.run('--check', os.path.join(SAMPLES, 'full.yaml')).stdout.splitlines()[1:5]
    bare = t.run('--check', write(t, GOOD)).stdout.replace(t.tmp, SAMPLES).splitlines()[1:5]
    t.equal('the lines', [line.split()[0] for line in full], ['listens', 'rate', 'keeps', 'a'])
    t.equal('the defaults', full, bare)
