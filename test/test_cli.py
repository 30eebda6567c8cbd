"""
The command line: what each command prints and its exit code; and starting: what keeps the program from it, and what it makes
before it listens. --check of configurations is test_config.py's, --replay test_letters.py's, --install test_windows.py's.
"""

import json
import os
import re
import socket
import subprocess
import time
import uuid

import pytest

import faults_base as base
import harness
import words

NOWHERE = [{'url': 'http://127.0.0.1:1/'}]
OPTIONS = set('--check --test --pending --json --replay --install --uninstall --version --help --licenses'.split())
OWN_CHECK = {'enableSourceValidation': True, 'allowedSources': ['10.0.0.1']}


# ---- Commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('line', [
    '', 'FILE FILE', '--chekc FILE', '-x', '--check', '--test', '--pending', '--replay', '--pending --json', '--install',
    '--check FILE FILE', '--pending FILE FILE', '--check --test FILE', '--version FILE', '--uninstall FILE', '--json FILE',
    '--json --pending FILE', '--replay --json FILE', '--check --json FILE', 'FILE --check'])
def test_cli_wrong_usage(t, line):
    path, _ = t.config(NOWHERE)
    done = t.run(*[path if word == 'FILE' else word for word in line.split()])
    options = re.match('(?:-[a-z-]* ?)*', line)[0].strip()
    t.equal('exit code and output', (done.returncode, done.stdout, done.stderr), (
        2, '', 'butler_webhook: wrong usage%s; see butler_webhook --help\n' % (options and ': ' + options)))


def test_cli_texts(t):
    texts = {}
    for option in ('--help', '--version', '--licenses'):
        done = t.run(option)
        t.equal('%s: exit code and stderr' % option, (done.returncode, done.stderr), (0, ''))
        texts[option] = done.stdout
    t.equal('--help names what there is', set(re.findall(r'--\w+', texts['--help'])), OPTIONS)
    t.check('--help fits a console', max(map(len, texts['--help'].splitlines())) <= 100, texts['--help'])
    version = r'butler_webhook \d+\.\d+\.\d+, root certificates of 20\d\d-\d\d-\d\d\n'
    t.check('--version is one line', re.fullmatch(version, texts['--version']), repr(texts['--version']))
    for word in ('Mbed TLS', 'libyaml', 'cJSON', 'mingw-w64' if harness.WINDOWS else 'musl', 'Mozilla', 'MIT', 'Apache',
                 'Permission is hereby granted', 'WITHOUT WARRANT'):
        t.check('--licenses has %r' % word, word.lower() in texts['--licenses'].lower())
    for reader in ('head -n 1', 'true'):
        done = subprocess.run(['sh', '-c', '"$@" --licenses | ' + reader, 'sh'] + harness.SYSTEM.command(t.binary, []),
                              capture_output=True, text=True, env=t.environment())
        t.equal('a reader that goes away: %s' % reader, (done.returncode, done.stderr), (0, ''))


def test_cli_file_like_an_option(t):
    t.config(NOWHERE, name='--check')
    t.equal('exit code', t.run('--check', './--check', cwd=t.tmp).returncode, 0)


def test_cli_check_proxy(t):
    path, _ = t.config(NOWHERE)
    done = t.run('--check', path, env={'http_proxy': 'http://user:secret@127.0.0.1:3128'})
    t.check('--check names the proxy', '  through http://127.0.0.1:3128' in done.stdout, done.stdout)
    t.check('without its password', 'secret' not in done.stdout + done.stderr, done.stdout)


@harness.unix('what Windows has')
def test_cli_for_windows(t):
    cert = {'enable': True, 'certCA': os.path.join(harness.ROOT, 'test/data/config/ca.pem')}
    path, _ = t.config([{'url': 'https://127.0.0.1:1/', 'cert': cert}], butlerWebhook={'stateDirectory': ''})
    for args, words_of_it in ((['--install', path], 'samples/butler_webhook.service'), (['--uninstall'], 'systemctl disable')):
        done = t.run(*args)
        t.equal('%s: exit code and stderr' % args[0], (done.returncode, done.stderr), (2, ''))
        t.check('%s: it says what to do here' % args[0], words_of_it in done.stdout, done.stdout)


def test_cli_test(t):
    """--test calls each webhook once, also while they are off, and says how it went; it leaves nothing behind."""
    receiver = t.receiver(lambda request, connection: harness.response(404 if request.path == '/gone' else 201))
    good = [{'url': receiver.url('/post'), 'description': 'Desk'},
            {'url': receiver.url('/get'), 'method': 'GET', 'kind': 'aborted'}]
    path, _ = t.config(good, notification={'enable': False})
    done = t.run('--test', path)
    t.equal('all good: exit code and stderr', (done.returncode, done.stderr), (0, ''))
    lines = done.stdout.splitlines()
    t.equal('the head', lines[0].split(), ['webhook', 'result', 'status', 'ms', 'URL'])
    rows = [re.sub(r'\d+ +http', 'N http', ' '.join(line.split())) for line in sorted(lines[1:])]
    t.equal('the rows', rows, ['aborted 1 ok 201 N http://127.0.0.1:%d/get' % receiver.port,
                               'failure 1 ("Desk") ok 201 N http://127.0.0.1:%d/post' % receiver.port])
    found = {request.path: request for request in receiver.requests}
    t.equal('each was called once', (len(receiver.requests), set(found)), (2, {'/post', '/get'}))
    for place, event in (('/post', 'Qlik Sense reload failed'), ('/get', 'Qlik Sense reload aborted')):
        alert = found[place].event()
        t.equal('%s: the test alert' % place, (alert['event'], alert['taskName']), (event, 'butler_webhook test'))
        t.equal('%s: its ids' % place, {alert[key] for key in ('taskId', 'appId', 'executionId')}, {str(uuid.UUID(int=0))})
        t.equal('%s: its mark' % place, found[place].get('webhook-test'), 'true')
        number = re.fullmatch(r'msg_([0-9a-f]{32})_[fa]_[0-9a-f]{8}', found[place].get('webhook-id'))
        t.check('%s: its webhook-id has the time' % place, number and abs(int(number[1], 16) - time.time() * 1000) < 3600000)
    t.equal('nothing is left', os.listdir(t.tmp), ['butler.yaml'])

    path, _ = t.config(good + [{'url': receiver.url('/gone')}, {'url': 'http://127.0.0.1:%d/' % t.port()}])
    done = t.run('--test', path)
    t.equal('two are bad: exit code', done.returncode, 1)
    t.equal('the good ones are ok', len(re.findall(r'(?m)^\S+ 1.* ok +201 ', done.stdout)), 2)
    t.check('a status', re.search(r'(?m)^failure 2 +FAILED +404 .*/gone\n +status 404.*\n +.*webhookURL', done.stdout),
            done.stdout)
    t.check('no answer', re.search(r'(?m)^failure 3 +FAILED +- .*\n +.*refused', done.stdout), done.stdout)


def test_cli_pending(t):
    """The table of --pending, before the first start and later. What it tells, and --json: test_letters.py."""
    path, _ = t.config([{'url': 'http://127.0.0.1:%d/' % t.port(), 'description': 'Desk'},
                        {'url': t.receiver(harness.response(404)).url('/gone')}])

    def pending(*options):
        done = t.run('--pending', *options, path)
        t.equal('exit code and stderr', (done.returncode, done.stderr), (0, ''))
        return done.stdout

    t.equal('--json before the first start', json.loads(pending('--json')), base.NOTHING)
    t.check('the table before the first start', pending().startswith('0 waiting: '), pending())
    t.equal('no folder is made', os.listdir(t.tmp), ['butler.yaml'])
    program = t.start(path)
    program.send(harness.datagram(task='Sales'))
    t.check('one is dead', program.wait_log(words.given_up('failure 2')))
    table = (r'1 waiting: .*\n.*  failure 1 \("Desk"\)  Sales: .*refused.*\n'
             r'dead letters: .*\n.*  1  failure 2  Sales: .*404.*\nhanded over .*:\n')
    t.check('the table', base.until(lambda: re.fullmatch(table, pending())), pending())


# ---- Starting -------------------------------------------------------------------------------------------------------


def refused(t, path, reason, in_log=True):
    """It does not start: exit code 1, and the reason on stderr and, once there is a log, on the console and in the file."""
    done = t.run(path)
    t.equal('exit code', done.returncode, 1)
    t.check('stderr has the reason', re.fullmatch('butler_webhook: %s\n' % reason, done.stderr), repr(done.stderr))
    if in_log:
        for where, text in (('console', done.stdout), ('log file', log_file(t, os.path.join(t.tmp, 'log')))):
            t.check('so has the %s' % where, re.search('(?m) error: %s$' % reason, text), repr(text))
    t.equal('--check does not look', t.run('--check', path).returncode, 0)


def log_file(t, folder):
    """What the one log file there holds."""
    files = os.listdir(folder)
    t.require('there is one file', len(files) == 1 and re.fullmatch(r'butler_webhook\.[\d-]{10}\.log', files[0]), files)
    return t.read(os.path.join(folder, files[0]))


def test_start_port_in_use(t):
    path, port = t.config(NOWHERE, fileLogging=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(('127.0.0.1', port))
        refused(t, path, r'cannot listen on 127\.0\.0\.1:%d \(UDP\).*in use.*' % port)
    base.until(lambda: harness.port_is_free(port))      # a child that another test starts at this moment holds it until its exec
    t.equal('it starts when it is free', t.start(path).stop(), 0)


@pytest.mark.parametrize('key, value', [
    pytest.param('serverHost', '192.0.2.1', marks=harness.unix('wine binds to any address')), ('serverHost', 'nowhere.invalid'),
    ('logDirectory', 'taken'), ('logDirectory', 'taken/log'), ('logDirectory', '/proc/nowhere/log'),
    ('stateDirectory', 'taken'), ('stateDirectory', 'taken/state'),
    pytest.param('stateDirectory', 'no/such', marks=harness.unix('wine gives another reason'))])
def test_start_refused(t, key, value):
    """An address that is not ours, folders that cannot be made. More of the state's is in test_disk.py."""
    with open(os.path.join(t.tmp, 'taken'), 'w', encoding='utf-8'):
        pass
    is_log = key == 'logDirectory'
    path, _ = t.config(NOWHERE, udp=OWN_CHECK, fileLogging=True, **({key: value} if is_log else {'butlerWebhook': {key: value}}))
    reason = {'serverHost': r'cannot listen on %s:\d+ \(UDP\).*', 'logDirectory': r'Butler\.logDirectory: .*%s.*',
              'stateDirectory': r'butlerWebhook\.stateDirectory: .*%s.*'}[key]
    refused(t, path, reason % re.escape(value), in_log=not is_log)
    is_error = key == 'stateDirectory' and value.startswith('taken') and not harness.WINDOWS    # there nothing is below a file
    t.equal('--pending', t.run('--pending', path).returncode, int(is_error))


PLACES = {      # logDirectory as it stands in the file, and its folder; stateDirectory as well
    'default': (None, 'log', None, 'butler_webhook.state'),
    'empty': ("''", 'log', '~', 'butler_webhook.state'),
    'relative': ('new', 'new', "'wo die Alarme wärten'", 'wo die Alarme wärten'),
    'above': ('../beside', '../beside', '../beside.state', '../beside.state'),
    'absolute': ('TMP/absolute log', '../absolute log', 'TMP/absolute path', '../absolute path'),
    'of systemd': (None, 'log', None, '../first of two'),
}


@pytest.mark.parametrize('name', PLACES)
def test_start_makes_directories(t, name):
    """Relative paths start at the configuration file. systemd's STATE_DIRECTORY takes the place of the default."""
    def setting(key, value):
        return {} if value is None else {key: harness.Raw(harness.SYSTEM.setting(value.replace('TMP', t.tmp)))}

    log, log_folder, state, folder = PLACES[name]
    os.mkdir(os.path.join(t.tmp, 'config'))
    log_folder, folder = [os.path.normpath(os.path.join(t.tmp, 'config', path)) for path in (log_folder, folder)]
    path, _ = t.config(NOWHERE, name='config/butler.yaml', fileLogging=True, butlerWebhook=setting('stateDirectory', state),
                       **setting('logDirectory', log))
    program = t.start(path, cwd='/', env={'STATE_DIRECTORY': folder + ':/second'} if name == 'of systemd' else None)
    told = program.wait_log(r' info: state directory (.*): 0 alerts wait, 0 bytes of dead letters$')
    t.equal('the log names it', told and os.path.normpath(told[1]), folder)
    t.equal('stops', program.stop(), 0)
    t.equal('nothing to warn of', program.lines(' (warn|error): '), [])
    t.check('what is in it', {'journal', 'lock'} <= set(os.listdir(folder)), os.listdir(folder))
    t.equal('it is for the owner only', os.stat(folder).st_mode & (0o700 | harness.SYSTEM.others), 0o700)
    t.equal('the log file has what the console has', log_file(t, log_folder), program.stdout)


def test_start_warnings(t):
    """A warning does not keep the program from starting. At each start the log has it, and stderr stays empty."""
    cert = {'enable': False, 'rejectUnauthorized': False}
    path, _ = t.config([{'url': 'https://127.0.0.1:1/', 'cert': cert, 'colour': 'red'}], udp={'serverHost': '0.0.0.0'})
    program = t.start(path)
    t.equal('stops', program.stop(), 0)
    for word in ('failure 1: rejectUnauthorized is false', 'unknown key "colour" is ignored', 'listening on 0.0.0.0, beyond '):
        found = program.lines(r' warn: .*%s:\d+:\d+: .*%s' % (re.escape(path), re.escape(word)))
        t.equal('warns of %s' % word, len(found), 1)
    t.equal('no other warning', len(program.lines(' (warn|error): ')), 3)
