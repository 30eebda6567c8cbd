"""
Runs what README.md and samples/ show: every command, every YAML block, every sample, and checks what it says of the program file.
The words after a block's language say what is done with it:

    ```yaml [NAME]           --check must find it valid, without a warning; it is kept as NAME for the blocks that follow
    ```sh [exit=N]           is run by bash in a folder with NAMEs, build/, samples/ and test/; exit code 0, or N
    ```sh background         is started, must listen, and goes on until the next one
    ```sh receiver           is started, must listen, and print what the block of json received says
    ```sh syntax             is checked for its syntax only (what needs root, a network, or runs this script itself);
                             the make targets in it must exist. With `unpack`, test/unpacked.sh runs it beside the archives
    ```text output           what the command before printed (milliseconds and dates may differ)
    ```text log=STATUS       lines that are logged, in this order, when the same alert is answered with STATUS
    ```json received         the body that the receiver got from the command before, and printed
    ```powershell datagram   what it sends must be accepted as an alert, and its port be that of the configuration
    ```bat MARK              commands of Windows: what they name must exist. With the exe, wine runs all but `bat syntax` (wine
                             has no such command) and nothing else of this page

A line that ends in \\ (bat: ^) goes on in the next one, without the spaces before that. The ports of README.md are replaced
by free ones. pytest --write puts the real output into those `text output` blocks that differ.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import xml.etree.ElementTree

import pytest

import checks
import demo
import faults_base as base
import harness
import servers
import services
import words

WINDOWS_COMMANDS = {'butler_webhook.exe', 'copy', 'net', 'netsh', 'notepad', 'reg', 'sc'}
SAMPLES = os.path.join(harness.ROOT, 'samples')
BLOCK = re.compile(r'^```(\w+)[ \t]*([^\n]*)\n(.*?)^```$', re.M | re.S)
KNOWN = re.compile(r'yaml( [\w.]+)?|sh( exit=\d| background| receiver| syntax( unpack)?)?|text (output|log=\d{3})|json received|'
                   r'powershell datagram|bat (install|restart|proxy|uninstall|syntax)')
HTTP_PORT, HTTPS_PORT, UDP_PORT = '8080', '8443', '9998'


def text_of(*path):
    with open(os.path.join(harness.ROOT, *path), encoding='utf-8') as file:
        return file.read()


def write(text, *path):
    path = os.path.join(*path)
    with open(path, 'w', encoding='utf-8') as file:
        file.write(text)
    return path


class Block:
    """A fenced block: language, words after it, text, name (with its line), and where its text stands in the file."""

    def __init__(self, match, text):
        self.language, self.words, self.text = match[1], match[2].split(), match[3]
        if self.language in ('json', 'text'):       # the others know lines that go on by themselves
            self.text = re.sub(r'\\\n *', '', self.text)
        elif self.language == 'bat':
            self.text = re.sub(r' \^\n *', ' ', self.text)
        self.name = 'README.md:%d: %s' % (text.count('\n', 0, match.start()) + 1, ' '.join([self.language] + self.words))
        self.span = match.span(3)


def blocks_of(text):
    return [Block(match, text) for match in BLOCK.finditer(text)]


def normal(text):
    """The text without what differs from run to run: milliseconds, sizes, dates, ids, the width of columns."""
    for regex, word in ((r'\b(ok|FAILED)(\s+(?:\d+|-)\s+)\d+', r'\1\2N'), (r' {2,}', ' '), (r'\b\d+ (ms|bytes)\b', r'N \1'),
                        (r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{3})?Z', 'TIME'), (r'\d{4}-\d\d-\d\d', 'DATE')):
        text = re.sub(regex, word, text)
    return '\n'.join(line.strip() for line in text.strip().split('\n'))


def replaced(text, names):
    """The text with other words in place of these."""
    return re.sub(r'\b(%s)\b' % '|'.join(names), lambda match: names[match[1]], text)


# ---- The README -----------------------------------------------------------------------------------------------------


class Sandbox:
    """The folder in which the blocks run, the receivers that they call, and what the last command did."""

    def __init__(self, t, write_output):
        self.t = t
        self.write_output = write_output
        self.changes = []       # of README.md: begin and end of a text, and another one
        self.options = set(re.findall(r'--[a-z]+', t.run('--help').stdout))
        demo.make_certificates()
        context = demo.ssl.SSLContext(demo.ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(os.path.join(demo.CERTIFICATES, 'server.pem'), os.path.join(demo.CERTIFICATES, 'server.key'))
        https = t.receiver(ssl_context=context)
        self.ports = {HTTP_PORT: str(t.port()), HTTPS_PORT: str(https.port), UDP_PORT: str(t.port())}
        self.output = self.receiver = self.datagram = None
        os.makedirs(os.path.join(t.tmp, 'build'))
        os.symlink(harness.BINARY, os.path.join(t.tmp, 'build/butler_webhook'))
        for name in ('samples', 'test'):
            os.symlink(os.path.join(harness.ROOT, name), os.path.join(t.tmp, name))

    def yaml(self, block):
        name = (block.words + ['other.yaml'])[0]
        write(replaced(block.text, self.ports), self.t.tmp, name)
        done = self.t.run('--check', name, cwd=self.t.tmp)
        self.t.equal('%s: --check finds it valid' % block.name, (done.returncode, done.stderr), (0, ''))

    def sh(self, block):
        script = replaced(block.text, self.ports)
        if 'syntax' in block.words:
            done = subprocess.run(['bash', '-n', '-c', script], capture_output=True, text=True)
            self.t.equal('%s: syntax' % block.name, (done.returncode, done.stderr), (0, ''))
            for target in re.findall(r'^(?:sudo )?make(?: [A-Z_]+=\S+)* ([a-z0-9-]+)', script, re.M):
                rule = re.search(r'(?m)^([\w -]+ )?%s( .*)?:' % target, text_of('Makefile') + text_of('test/test.mk'))
                self.t.check('%s: make %s exists' % (block.name, target), rule)
        elif 'receiver' in block.words:
            self.receiver = self.begin('exec ' + script.strip())
            self.receiver.expect_stderr = True       # where it tells of each request
            self.receiver.expect_exit = -signal.SIGTERM
            with socket.socket() as probe:
                self.t.require('%s: listens' % block.name, base.until(
                    lambda: probe.connect_ex(('127.0.0.1', int(self.ports[HTTP_PORT]))) == 0), self.receiver.stderr)
        elif 'background' in block.words:
            process = self.begin('exec env ' + script.strip())
            self.t.check('%s: starts' % block.name, process.wait_log(words.LISTENING), process.stderr)
        else:
            process = self.begin("set -euo pipefail\nexec 2>&1\n" + script)
            code = process.wait(60)
            process.expect_exit = None      # it is checked here
            self.output = replaced(process.stdout, {port: name for name, port in self.ports.items()})
            wanted = int(block.words[0][5:]) if block.words else 0
            self.t.check('%s: exit code %d' % (block.name, wanted), code == wanted, [code, self.output])
            datagram = re.search(r"printf %s ((?:'[^']*'(?: \\\n *)?)+) >/dev/udp/", script)
            if datagram:
                self.datagram = ''.join(re.findall(r"'([^']*)'", datagram[1])).encode()

    def begin(self, script):
        """Starts commands of bash."""
        process = harness.Process(['bash', '-c', script], self.t.environment({'PYTHONUNBUFFERED': '1'}), cwd=self.t.tmp)
        self.t.processes.append(process)
        return process

    def json(self, block):
        printed = self.receiver.wait_log('^%s$' % re.escape(block.text.strip()))
        self.t.check("%s: README's receiver prints it" % block.name, printed, self.receiver.log)

    def play(self, http_port, until, datagram=None):
        """
        Runs the program with README's alerts.yaml, but other ports, sends it that datagram, or README's first one, and waits
        for a line of its log; gives its log with README's ports.
        """
        port = self.t.port()
        folder = os.path.join(self.t.tmp, 'play%d' % port)
        os.mkdir(folder)
        ports = {self.ports[UDP_PORT]: str(port), self.ports[HTTP_PORT]: str(http_port)}
        write(replaced(text_of(self.t.tmp, 'alerts.yaml'), ports), folder, 'alerts.yaml')
        program = self.t.start('alerts.yaml', cwd=folder)
        program.send(datagram or self.datagram)
        self.t.check('it comes to %s' % until, program.wait_log(until), program.log)
        self.t.equal('the program ends', program.stop(), 0)
        return replaced(program.stdout, {str(http_port): HTTP_PORT, str(port): UDP_PORT})

    def powershell(self, block):
        """The datagram that it sends is an alert, and it goes where the program listens."""
        datagram = re.search(r"GetBytes\('([^']*)'\)", block.text)
        self.t.require('%s: has a datagram for the port' % block.name, datagram and "'127.0.0.1', %s)" % UDP_PORT in block.text)
        self.play(self.t.receiver().port, words.delivered(number=1), datagram[1].encode())

    def text(self, block):
        if block.words[0] == 'output':
            if self.write_output and normal(self.output) != normal(block.text):
                self.changes.append((*block.span, ''.join(line.rstrip() + '\n' for line in self.output.splitlines())))
            else:
                self.t.equal('%s: is the output' % block.name, normal(self.output), normal(block.text))
            return
        receiver = self.t.receiver(harness.response(int(block.words[0][4:])))
        left = self.play(receiver.port, '%s|%s' % (words.delivered(number=1), words.given_up(number=1))).splitlines()
        left = [normal(line) for line in left]
        for line in map(normal, block.text.splitlines()):
            self.t.check('%s: %s' % (block.name, line), line in left, left)
            left = left[left.index(line) + 1:] if line in left else left

    def bat(self, block):
        for what, found, known in (
                ('commands', {line.split()[0] for line in block.text.splitlines()}, WINDOWS_COMMANDS),
                ('options', set(re.findall(r'--\S+', block.text)), self.options),
                ('samples', set(re.findall(r'samples\\(\S+)', block.text)), set(os.listdir(SAMPLES)))):
            self.t.equal('%s: unknown %s' % (block.name, what), found - known, set())


@harness.unix('its commands are for a shell')
@harness.limit(300)
def test_readme(t, request):
    text = text_of('README.md')
    blocks = blocks_of(text)
    t.equal('README.md: every fence is a block', text.count('\n```'), 2 * len(blocks))
    t.equal('README.md: kinds of blocks', sorted({block.language for block in blocks}),
            ['bat', 'json', 'powershell', 'sh', 'text', 'yaml'])
    t.equal('README.md: long lines', [line for line in text.splitlines() if len(line) > 130], [])
    sandbox = Sandbox(t, request.config.getoption('write'))
    for block in blocks:
        t.require('%s: is known' % block.name, KNOWN.fullmatch(block.name.partition(': ')[2]))
        getattr(sandbox, block.language)(block)
    for begin, end, output in reversed(sandbox.changes):
        text = text[:begin] + output + text[end:]
        write(text, harness.ROOT, 'README.md')


def test_readme_links(t):
    """Links lead to files and headings that are there."""
    prose = BLOCK.sub('', text_of('README.md'))
    headings = {re.sub(r'[^a-z0-9 _-]', '', heading.lower()).replace(' ', '-')
                for heading in re.findall(r'^#+ (.*)$', prose, re.M)}
    for target in re.findall(r'\]\(([^)\s]+)\)', prose):
        there = target[1:] in headings if target.startswith('#') else os.path.exists(os.path.join(harness.ROOT, target))
        t.check('README.md: link to %s' % target, '://' in target or there)


# ---- The commands for Windows ----------------------------------------------------------------------------------------


class Server:
    """A Windows server in wine, on which README's commands are typed. What a person would write with notepad is put there."""

    def __init__(self, t):
        self.t = t
        self.receiver = t.receiver()
        self.port = t.port()
        self.folder = os.path.join(harness.SYSTEM.prefix, 'drive_c/Program Files/butler_webhook')
        self.service = services.Service(t, None, 'ButlerWebhook')
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)
        shutil.copy(harness.BINARY, os.path.join(self.folder, 'butler_webhook.exe'))
        shutil.copytree(SAMPLES, os.path.join(self.folder, 'samples'))

    def type(self, line):
        """Has one command run; what it printed."""
        write('@%s\r\n' % line, self.folder, 'typed.bat')
        done = subprocess.run([harness.SYSTEM.loader, 'cmd', '/c', 'typed.bat'], cwd=self.folder, stdin=subprocess.DEVNULL,
                              env=self.t.environment(), capture_output=True, timeout=60 * harness.SLOW)
        output = harness.SYSTEM.output(done.stdout + done.stderr).decode('utf-8', 'replace')
        self.t.check('exit code of %s' % line, done.returncode == 0, 'got %d: %s' % (done.returncode, output))
        return output

    def play(self, line):
        if line.startswith('notepad '):     # the reader of README writes the real URL, and here a port that is free
            path = os.path.join(self.folder, line.split()[1])
            text = text_of(path).replace('http://127.0.0.1:8080/alert', self.receiver.url('/alert'))
            write(text + '  butlerWebhook: { port: %d }\n' % self.port, path)
            return
        output = self.type(line)
        if line.startswith('net stop'):             # wine's does not wait
            self.service.reaches(line, services.STOPPED)
        elif line.startswith(('sc start', 'net start')):
            self.service.reaches(line, services.RUNNING)
            services.alert_arrives(self.t, line, self.receiver, self.port)
        elif ' --test ' in line:
            self.t.check('%s: it is ok' % line, ' ok ' in output, output)
            self.t.equal('%s: calls of the webhook' % line, len(self.receiver.wait()), 1)
        elif line.startswith('reg add '):
            key = re.match(r'reg add (\S+ /v \S+)', line)[1]
            value = self.type('reg query ' + key)
            self.t.check('the variables are there', 'HTTPS_PROXY=http://proxy.example.com:3128' in value and
                         'NO_PROXY=.example.com' in value, value)
            self.type('reg delete %s /f' % key)


@pytest.mark.windows
@harness.limit(300)
def test_readme_windows(t):
    blocks = {block.words[0]: block for block in blocks_of(text_of('README.md')) if block.language == 'bat'}
    t.equal('README.md: the blocks for Windows', sorted(blocks), ['install', 'proxy', 'restart', 'syntax', 'uninstall'])
    server = Server(t)
    for mark in ('install', 'restart', 'proxy', 'uninstall'):
        for line in blocks[mark].text.splitlines():
            server.play(line)


# ---- Keys -----------------------------------------------------------------------------------------------------------

OF_BUTLER = ('messageQueue', 'queueMetrics', 'serviceMonitor', 'qlikSenseServerLicenseMonitor',
             'qlikSenseServerLicenseExpiryAlert')


def test_readme_keys(t):
    """README's table, samples/full.yaml and the program know the same keys."""
    sections = re.findall(r'unknown key "(.*)x" is ignored; known here: (.*)',
                          t.run('--check', os.path.join(harness.ROOT, 'test/data/unknown_keys.yaml')).stderr)
    t.equal('sections', len(sections), 11)
    known = {prefix + key for prefix, keys in sections for key in keys.split(', ') if key not in OF_BUTLER}
    holders = {prefix[:-1] for prefix, _ in sections}
    table = text_of('README.md').partition('\n## Configuration\n')[2]
    shown = set()
    section = ''
    for cell in re.findall(r'^\| ([^|]*`[^|]*|\*\*[^|]*) \|', table, re.M):
        if cell.startswith('**'):
            section = cell.strip('*`')
        else:
            shown |= {section + key if key.startswith('.') else key for key in re.findall(r'`([^`]+)`', cell)}
    known |= {'logLevel', 'fileLogging', 'logDirectory'}
    t.equal('README.md', sorted(shown), sorted(known - holders))
    full = re.findall(r'(?m)^ +#?(?:- )?([A-Za-z]+):(?: |$)', text_of(SAMPLES, 'full.yaml'))
    wanted = [key.rpartition('.')[2] for key in known | {'udpServerConfig', 'butlerWebhook', 'webhookNotification'}]
    wanted += ['description', 'webhookURL', 'httpMethod']       # of the second webhook
    t.equal('samples/full.yaml', sorted(full), sorted(wanted))


# ---- The program is one file, and holds what it needs -----------------------------------------------------------------


@harness.unix('it is about the program for Unix')
def test_file_licences(t):
    """--licenses names all that is inside, in the version that was built."""
    done = t.run('--licenses')
    t.equal('exit code, stderr', (done.returncode, done.stderr), (0, ''))
    for name in ('The butler_webhook authors', 'Apache License', 'The Mbed TLS Contributors', 'Kirill Simonov', 'Dave Gamble',
                 'Rich Felker', 'Mozilla Public License', 'certdata.txt', 'GCC Runtime Library Exception'):
        t.check('it names %s' % name, name in done.stdout)
    for entry in checks.read_lock().values():
        inside = entry.name[len('musl-'):] if entry.name.startswith('musl-') else entry.version
        t.check('it names %s %s' % (entry.name, inside), inside in done.stdout)


@harness.unix('it is about the program for Unix')
def test_file_empty_root(t):
    """The binary, a configuration and a CA file, nothing else. The call goes out over TLS, which needs random numbers."""
    root = os.path.join(t.tmp, 'root')
    os.mkdir(root)
    shutil.copy(t.binary, root)
    shutil.copy(servers.root().pem, os.path.join(root, 'ca.pem'))
    receiver = t.receiver(ssl_context=servers.good().context())
    t.config([{'url': receiver.url(), 'cert': {'enable': True, 'certCA': 'ca.pem'}}], name='root/butler.yaml')
    wrap = ['chroot', root] if os.getuid() == 0 else ['unshare', '-r', 'chroot', root]
    done = subprocess.run([*wrap, '/butler_webhook', '--check', '/butler.yaml'], capture_output=True, text=True)
    if done.stderr.startswith('unshare:'):
        t.skip('this system lets a normal user not change the root')
    t.equal('--check', (done.returncode, done.stderr), (0, ''))
    program = t.start('/butler.yaml', binary='/butler_webhook', wrap=wrap)
    program.send(harness.datagram())
    t.check('it calls over TLS', program.wait_log(words.delivered('failure 1', status=200)), program.log)
    t.equal('exit code', program.stop(), 0)
    found = sorted(os.path.relpath(os.path.join(folder, name), root) for folder, _, names in os.walk(root) for name in names)
    t.equal('nothing was written but the state directory', found, [
        'butler.yaml', 'butler_webhook', 'butler_webhook.state/journal', 'butler_webhook.state/lock', 'ca.pem'])


# ---- The samples ----------------------------------------------------------------------------------------------------


@harness.unix('they were checked with the program for Unix')
def test_samples_valid(t):
    """Without a warning; and who changes a key of Butler's in full.yaml gets what that key says: none of our own overrides it."""
    demo.make_certificates()
    receivers = ['samples/receivers/' + name for name in os.listdir(os.path.join(SAMPLES, 'receivers')) if name.endswith('.yaml')]
    for path in ('samples/minimal.yaml', 'samples/full.yaml', 'test/demo.yaml', *receivers):
        variables = re.findall(r'\$\{env:(\w+)\}', text_of(harness.ROOT, path))
        env = {name: 'https://x.example/y' if name.endswith('_URL') else 'whsec_' + 'A' * 32 for name in variables}
        done = t.run('--check', os.path.join(harness.ROOT, path), env=env)
        t.equal('%s: exit code and problems' % path, (done.returncode, done.stderr), (0, ''))
        t.check('%s calls a webhook' % path, re.search('(?m)^failure 1 ', done.stdout), done.stdout)
    t.check('the small one is small', text_of(SAMPLES, 'minimal.yaml').count('\n') < 15)
    text = text_of(SAMPLES, 'full.yaml')
    for old, new, wanted in (('portTaskFailure: 9998', 'portTaskFailure: 9997', 'listens on 127.0.0.1:9997 '),
                             ('serverHost: 127.0.0.1', 'serverHost: 127.0.0.9', 'listens on 127.0.0.9:9998 '),
                             ('enable: true', 'enable: false', 'disabled by ')):
        done = t.run('--check', write(text.replace(old, new, 1), t.tmp, 'full.yaml'))
        t.check('%s counts' % new, done.returncode == 0 and wanted in done.stdout, [done.returncode, done.stdout, done.stderr])


@harness.unix('it is a unit for systemd')
def test_samples_unit(t):
    """systemd accepts the unit; the path of the program in it need not exist here."""
    unit = text_of(SAMPLES, 'butler_webhook.service')
    for setting in ('DynamicUser=yes', 'NoNewPrivileges=yes', 'ProtectSystem=strict', 'MemoryDenyWriteExecute=yes',
                    'RestrictAddressFamilies=AF_INET AF_INET6', 'SystemCallFilter=@system-service', 'Restart=on-failure'):
        t.check(setting, ('\n%s\n' % setting) in unit)
    if shutil.which('systemd-analyze'):
        path = write(unit.replace('/usr/local/bin/butler_webhook', '"%s"' % harness.BINARY), t.tmp, 'butler_webhook.service')
        done = subprocess.run(['systemd-analyze', 'verify', path], capture_output=True, text=True)
        t.check('systemd-analyze verify', done.returncode == 0 and 'butler_webhook' not in done.stderr, done.stderr)


EVENTS = {'Max retries reached': 'Qlik Sense reload failed', 'Execution State Change to Aborting': 'Qlik Sense reload aborted'}
VALUES = {'%hostname': 'QS-NODE1', '%property{User}': 'LAB\\goran', '%property{TaskName}': 'Reload of Sales; daily',
          '%property{TaskId}': harness.guid(), '%property{AppName}': 'Sales åäö', '%property{AppId}': harness.guid(),
          '%date': '2026-11-22 09:30:00,123', '%level': 'INFO', '%property{ExecutionId}': harness.guid()}


@harness.unix('they were checked with the program for Unix')
@pytest.mark.parametrize('file, ports', [('LocalLogConfig.xml', ['9998']), ('LocalLogConfig-with-Butler.xml', ['9997', '9998'])])
def test_samples_appenders(t, file, ports):
    """Each appender prints every field of an alert, in the order that the program reads, and sends it to its port."""
    root = xml.etree.ElementTree.parse(os.path.join(SAMPLES, file)).getroot()
    appenders = list(root.iter('appender'))
    t.equal('each appender is used', sorted(reference.get('ref') for reference in root.iterfind('.//logger/appender-ref')),
            sorted(appender.get('name') for appender in appenders))
    t.equal('logger', [logger.get('name') for logger in root.iter('logger')],
            ['System.Scheduler.Scheduler.Master.Task.TaskSession'])
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url('/failure')}, {'url': receiver.url('/aborted'), 'kind': 'aborted'}])
    program = t.start(path)
    seen = []
    for appender in appenders:
        settings = {param.get('name'): param.get('value') for param in appender.findall('param')}
        message = appender.find('filter/param').get('value')
        seen.append((settings.pop('remotePort'), message))
        t.equal('settings', [appender.get('type'), settings], ['log4net.Appender.UdpAppender', {
            'remoteAddress': '127.0.0.1', 'encoding': 'utf-8'}])
        t.equal('filters', [item.get('type').split('.')[-1] for item in appender.findall('filter')],
                ['StringMatchFilter', 'DenyAllFilter'])
        datagram = appender.find('.//param[@name="conversionpattern"]').get('value')
        for variable, value in [*VALUES.items(), ('%message', message)]:
            t.equal('%s in the pattern' % variable, datagram.count(variable), 1)
            datagram = datagram.replace(variable, value)
        program.send(datagram.encode('utf-8'))
        requests = receiver.wait(len(seen))
        t.require('%s: is understood' % datagram, len(requests) == len(seen), program.log[-3:])
        t.equal('the alert', list(requests[-1].json().values()), [EVENTS[message], *VALUES.values(), message])
    t.equal('both kinds to each port', sorted(seen), sorted((port, message) for port in ports for message in EVENTS))
