"""
Runs what README.md and samples/ show: every command, every YAML block, every sample. The words after a block's language
say what is done with it:

    ```yaml [NAME]           --check must find it valid, without a warning; it is kept as NAME for the blocks that follow
    ```sh                    is run by bash in a folder with NAMEs, build/, samples/ and test/; must end with exit code 0
    ```sh exit=N             must end with exit code N
    ```sh background         is started, must listen, and goes on until the next one
    ```sh receiver           is started later, when the block of json received has come: must print the same body
    ```sh syntax             is checked for its syntax only (what needs root, a network, or runs this script itself);
                             the make targets in it must exist. With `unpack`, test/unpacked.sh runs it beside the archives
    ```text output           what the command before printed (milliseconds and dates may differ)
    ```json received         the body that the receiver got from the command before
    ```powershell datagram   what it sends must be accepted as an alert, and its port be that of the configuration
    ```bat MARK              commands of Windows: what they name must exist. If BUTLER_BINARY is an .exe, wine runs those
                             whose mark class Server knows, in their order, in C:\\Program Files\\butler_webhook, and
                             nothing else of this page; MARK syntax: wine has no such command
    ```text log=STATUS       lines that are logged, in this order, when the same alert is answered with STATUS (times and the
                             size of the receive buffer may differ)

A line that ends in \\ (bat: ^) goes on in the next one, without the spaces before that. The ports of README.md are replaced
by free ones. pytest --write puts the real output into those `text output` blocks that differ.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
import xml.etree.ElementTree

import pytest

import demo
import harness

README = os.path.join(harness.ROOT, 'README.md')
SAMPLES = os.path.join(harness.ROOT, 'samples')
TEST = os.path.join(harness.ROOT, 'test')
CONFIG_DATA = os.path.join(harness.ROOT, 'test/data/config')
COLUMNS = 130
BLOCK = re.compile(r'^```(\w+)[ \t]*([^\n]*)\n(.*?)^```$', re.M | re.S)
HTTP_PORT, HTTPS_PORT, UDP_PORT = '8080', '8443', '9998'


class Block:
    """A fenced block: language, words after it, text, number of its first line, and where its text stands in the file."""

    def __init__(self, match, text):
        self.language = match[1]
        self.words = match[2].split()
        self.text = match[3]
        if self.language in ('json', 'text'):       # the others know lines that go on by themselves
            self.text = re.sub(r'\\\n *', '', self.text)
        elif self.language == 'bat':
            self.text = re.sub(r' \^\n *', ' ', self.text)
        self.line = text.count('\n', 0, match.start()) + 1
        self.span = match.span(3)
        self.name = 'README.md:%d' % self.line


def normal(text):
    """
    The text without what differs from run to run: milliseconds, dates, ids, the width of columns, and the order of the
    rows of --test, which come as the calls end.
    """
    text = re.sub(r'\b(ok|FAILED)(\s+(?:\d+|-)\s+)\d+', r'\1\2N', text)
    text = re.sub(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{3})?Z', 'TIME', text)
    text = re.sub(r'"ageSeconds":\d+', '"ageSeconds":N', re.sub(r'\bmsg_[0-9a-f]{32}(?:_[fa]_[0-9a-f]{8})?\b', 'ID', text))
    text = re.sub(r'\d{4}-\d\d-\d\d', 'DATE', text)
    rows = re.split(r'\n(?=\S)', text.strip())
    if re.match(r'webhook +result +status ', rows[0]):
        rows[1:] = sorted(rows[1:])
    return '\n'.join(re.sub(r' {2,}', ' ', line).strip() for line in '\n'.join(rows).split('\n'))


def normal_log(line):
    """A line of the log without what differs from run to run and from machine to machine."""
    line = re.sub(r'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ', 'TIME ', line)
    line = re.sub(r'\bbutler_webhook \d+\.\d+\.\d+', 'butler_webhook VERSION', line)
    return re.sub(r'\b\d+ (ms|bytes)\b', r'N \1', line)


def listens(port):
    """Waits until something listens on a port of 127.0.0.1; false: nothing does."""
    deadline = time.monotonic() + 10 * harness.SLOW
    while time.monotonic() < deadline:
        try:
            socket.create_connection(('127.0.0.1', port)).close()
            return True
        except OSError:
            time.sleep(0.02)
    return False


# ---- The README -----------------------------------------------------------------------------------------------------


class Sandbox:
    """The folder in which the blocks run, the receivers that they call, and what the last command did."""

    def __init__(self, t):
        self.t = t
        self.http = t.receiver()
        context = demo.ssl.SSLContext(demo.ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(os.path.join(demo.CERTIFICATES, 'server.pem'), os.path.join(demo.CERTIFICATES, 'server.key'))
        self.https = t.receiver(ssl_context=context)
        self.udp = t.port()
        self.ports = {HTTP_PORT: str(self.http.port), HTTPS_PORT: str(self.https.port), UDP_PORT: str(self.udp)}
        self.output = None
        self.background = None
        self.receiver = None
        self.datagram = None
        os.makedirs(os.path.join(t.tmp, 'build'))
        os.symlink(harness.BINARY, os.path.join(t.tmp, 'build/butler_webhook'))
        for name in ('samples', 'test'):
            os.symlink(os.path.join(harness.ROOT, name), os.path.join(t.tmp, name))

    def real(self, text):
        """README's text with the ports that are used here."""
        return re.sub(r'\b(%s)\b' % '|'.join(self.ports), lambda match: self.ports[match[1]], text)

    def shown(self, text):
        """The reverse: real output as README shows it."""
        for name, port in self.ports.items():
            text = re.sub(r'\b%s\b' % port, name, text)
        return text

    def targets(self):
        """The names that make knows. Asked of its own list: even make -n would run the lines of a target that begin with +."""
        done = subprocess.run(['make', '-pn', '-C', harness.ROOT, 'help'], capture_output=True, text=True,
                              env=self.t.environment())
        names = re.search(r'^\.PHONY: (.*)$', done.stdout, re.M)
        return names[1].split() if names else []

    def environment(self):
        path = os.path.join(self.t.tmp, 'build') + os.pathsep + os.environ.get('PATH', '')
        return dict(self.t.environment(), PATH=path)

    def yaml(self, block):
        names = [word for word in block.words if word.endswith('.yaml')]
        name = names[0] if names else 'block%d.yaml' % block.line
        with open(os.path.join(self.t.tmp, name), 'w', encoding='utf-8') as file:
            file.write(self.real(block.text))
        done = self.t.run('--check', name, cwd=self.t.tmp)
        self.t.check('%s: --check finds it valid' % block.name, done.returncode == 0 and not done.stderr,
                     done.stderr or done.stdout)

    def sh(self, block):
        script = self.real(block.text)
        check = self.t.check
        if 'syntax' in block.words:
            done = subprocess.run(['bash', '-n', '-c', script], capture_output=True, text=True)
            check('%s: syntax' % block.name, done.returncode == 0, done.stderr)
            for target in re.findall(r'^(?:sudo )?make(?: [A-Z_]+=\S+)*(?: ([a-z0-9-]+))?', script, re.M):
                check('%s: make %s exists' % (block.name, target), (target or 'all') in self.targets(), self.targets())
        elif 'receiver' in block.words:
            self.receiver = block
        elif 'background' in block.words:
            self.end_background()
            process = harness.Process(['bash', '-c', 'exec env ' + script.strip()], self.environment(), self.udp, self.t.tmp)
            self.t.processes.append(process)
            self.background = process
            check('%s: starts' % block.name, process.wait_log(' listening on '), process.stderr)
        else:
            exits = [int(word[5:]) for word in block.words if word.startswith('exit=')]
            done = subprocess.run(['bash', '-euo', 'pipefail', '-c', script], cwd=self.t.tmp, env=self.environment(),
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                  timeout=60 * harness.SLOW)
            self.output = self.shown(done.stdout)
            check('%s: exit code' % block.name, done.returncode == (exits[0] if exits else 0),
                  'got %d: %s' % (done.returncode, done.stdout))
            datagram = re.search(r"printf %s ((?:'[^']*'(?: \\\n *)?)+) >/dev/udp/", script)
            if datagram:
                self.datagram = ''.join(re.findall(r"'([^']*)'", datagram[1])).encode()

    def json(self, block):
        requests = self.http.wait(1)
        self.t.equal('%s: calls' % block.name, [request.method for request in requests], ['POST'])
        if requests:
            self.t.equal('%s: body' % block.name, requests[0].body.decode('utf-8', 'replace'), block.text.strip())
        if self.t.check('%s: there is a receiver' % block.name, self.receiver is not None):
            self.play_receiver(block.text.strip())

    def play_receiver(self, body):
        """README's own receiver must print the body of the alert, and its answer must be a good one."""
        name = self.receiver.name
        port = self.t.port()
        self.t.check('%s: has the port of the configuration' % name, HTTP_PORT in self.receiver.text)
        receiver = harness.Process(['bash', '-c', 'exec ' + self.receiver.text.strip().replace(HTTP_PORT, str(port))],
                                   dict(self.environment(), PYTHONUNBUFFERED='1'), None, self.t.tmp)
        receiver.expect_stderr = True       # where it tells of each request
        receiver.expect_exit = -signal.SIGTERM
        self.t.processes.append(receiver)
        if not self.t.check('%s: listens' % name, listens(port), receiver.stderr):
            return
        program = self.play(port)
        self.t.check('%s: prints the body' % name, receiver.wait_log('^%s$' % re.escape(body)), receiver.log)
        self.t.check('%s: its answer counts as delivered' % name, program.wait_log('alert 1 delivered .*attempt 1$'), program.log)
        self.t.equal('%s: the program ends' % name, program.stop(), 0)
        self.t.equal('%s: ends' % name, receiver.stop(), -signal.SIGTERM)

    def play(self, http_port, datagram=None):
        """Starts the program with README's alerts.yaml, but other ports, and sends it that datagram, or README's first one."""
        with open(os.path.join(self.t.tmp, 'alerts.yaml'), encoding='utf-8') as file:
            text = file.read()
        port = self.t.port()
        for old, new in (('portTaskFailure: %d' % self.udp, 'portTaskFailure: %d' % port),
                         ('127.0.0.1:%d/' % self.http.port, '127.0.0.1:%d/' % http_port)):
            self.t.check('alerts.yaml: has %s' % old, text.count(old) == 1, text)
            text = text.replace(old, new)
        folder = os.path.join(self.t.tmp, 'play%d' % port)
        os.makedirs(folder)
        with open(os.path.join(folder, 'alerts.yaml'), 'w', encoding='utf-8') as file:
            file.write(text)
        program = self.t.start('alerts.yaml', cwd=folder)
        program.port = port
        program.send(datagram or self.datagram)
        return program

    def powershell(self, block):
        """The datagram that it sends is an alert, and it goes where the program listens."""
        datagram = re.search(r"GetBytes\('([^']*)'\)", block.text)
        is_whole = datagram and "'127.0.0.1', %s)" % UDP_PORT in block.text
        if not self.t.check('%s: has a datagram' % block.name, is_whole, block.text):
            return
        receiver = self.t.receiver()
        program = self.play(receiver.port, datagram[1].encode())
        self.t.equal('%s: calls' % block.name, [request.method for request in receiver.wait(1)], ['POST'])
        self.t.check('%s: is accepted' % block.name, program.wait_log('alert 1 accepted'), program.log)
        self.t.equal('%s: the program ends' % block.name, program.stop(), 0)

    def log(self, block, status):
        """What is logged when the receiver answers the same alert with that status."""
        receiver = self.t.receiver(harness.response(status))
        program = self.play(receiver.port)
        self.t.check('%s: the alert is done with' % block.name, program.wait_log('alert 1 (delivered|given up)'), program.log)
        self.t.equal('%s: the program ends' % block.name, program.stop(), 0)
        ports = {str(receiver.port): HTTP_PORT, str(program.port): UDP_PORT}
        left = [normal_log(re.sub(r'\b(%s)\b' % '|'.join(ports), lambda match: ports[match[1]], line)) for line in program.log]
        for number, line in enumerate(block.text.splitlines()):
            found = normal_log(line) in left
            self.t.check('%s: line %d is logged' % (block.name, number + 1), found, '%r; the log: %r' % (line, program.log))
            if found:
                left = left[left.index(normal_log(line)) + 1:]

    def end_background(self):
        if self.background is not None:
            self.t.equal('the background command ends', self.background.stop(), 0)
            self.background = None


def run_readme(t, write):
    with open(README, encoding='utf-8') as file:
        text = file.read()
    blocks = [Block(match, text) for match in BLOCK.finditer(text)]
    t.check('README.md: every fence is a block', text.count('\n```') == 2 * len(blocks), '%d blocks' % len(blocks))
    t.check('README.md: has blocks of each kind', {block.language for block in blocks} >= {'sh', 'yaml', 'json', 'text'})
    t.equal('README.md: lines over %d columns' % COLUMNS,
            [number + 1 for number, line in enumerate(text.splitlines()) if len(line) > COLUMNS], [])
    sandbox = Sandbox(t)
    changes = []
    for block in blocks:
        if block.language == 'yaml':
            sandbox.yaml(block)
        elif block.language == 'sh':
            sandbox.sh(block)
        elif block.language == 'json':
            sandbox.json(block)
        elif block.language == 'text' and block.words == ['output']:
            same = normal(sandbox.output or '') == normal(block.text)
            if write and not same:
                changes.append((block.span, sandbox.output))
            else:
                t.check('%s: is the output' % block.name, same, 'got %r' % sandbox.output)
        elif block.language == 'bat' and len(block.words) == 1 and block.words[0] in Server.MARKS + ('syntax',):
            check_bat(t, block, re.findall(r'--[a-z]+', t.run('--help').stdout))
        elif block.language == 'powershell' and block.words == ['datagram']:
            sandbox.powershell(block)
        elif block.language == 'text' and re.fullmatch(r'log=\d{3}', ' '.join(block.words)):
            sandbox.log(block, int(block.words[0][4:]))
        else:
            t.check('%s: has a known mark' % block.name, False, '%s %s' % (block.language, block.words))
    sandbox.end_background()
    if write:
        for (begin, end), output in reversed(changes):
            text = text[:begin] + ''.join(line.rstrip() + '\n' for line in output.splitlines()) + text[end:]
        with open(README, 'w', encoding='utf-8') as file:
            file.write(text)
    check_links(t, text)
    check_keys(t, text)


def check_links(t, text):
    """Links lead to files and headings that are there."""
    prose = BLOCK.sub('', text)
    headings = {re.sub(r'[^a-z0-9 _-]', '', heading.lower()).replace(' ', '-')
                for heading in re.findall(r'^#+ (.*)$', prose, re.M)}
    for target in re.findall(r'\]\(([^)\s]+)\)', prose):
        if target.startswith('#'):
            t.check('README.md: heading %s' % target, target[1:] in headings, repr(sorted(headings)))
        elif '://' not in target:
            t.check('README.md: file %s' % target, os.path.exists(os.path.join(harness.ROOT, target)))


# ---- The commands for Windows ----------------------------------------------------------------------------------------

WINDOWS_COMMANDS = {'butler_webhook.exe', 'copy', 'net', 'netsh', 'notepad', 'reg', 'sc'}


def check_bat(t, block, options):
    """The commands are ones that Windows has; options and samples are there."""
    for line in block.text.splitlines():
        words = line.split()
        t.check('%s: %s is a command' % (block.name, words[0]), words[0] in WINDOWS_COMMANDS, line)
        for word in words:
            if word.startswith('--'):
                t.check('%s: %s is an option' % (block.name, word), word in options, line)
            if word.startswith('samples\\'):
                t.check('%s: %s is there' % (block.name, word), os.path.exists(os.path.join(SAMPLES, word[8:])), line)


class Server:
    """A Windows server in wine, on which README's commands are typed. What a person would write with notepad is put there."""

    MARKS = ('install', 'restart', 'proxy', 'uninstall')
    NAME = 'ButlerWebhook'

    def __init__(self, t):
        self.t = t
        self.receiver = t.receiver()
        self.port = t.port()
        self.folder = os.path.join(harness.SYSTEM.prefix, 'drive_c/Program Files/butler_webhook')
        self.calls = 0
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)
        shutil.copy(harness.BINARY, os.path.join(self.folder, 'butler_webhook.exe'))
        shutil.copytree(SAMPLES, os.path.join(self.folder, 'samples'))

    def type(self, line, codes=(0,)):
        """Has one command run; what it printed."""
        with open(os.path.join(self.folder, 'typed.bat'), 'w', encoding='utf-8', newline='') as file:
            file.write('@%s\r\n' % line)
        done = subprocess.run([harness.SYSTEM.loader, 'cmd', '/c', 'typed.bat'], cwd=self.folder, stdin=subprocess.DEVNULL,
                              env=self.t.environment(), capture_output=True, timeout=60 * harness.SLOW)
        output = harness.SYSTEM.output(done.stdout + done.stderr).decode('utf-8', 'replace')
        self.t.check('exit code of %s' % line, done.returncode in codes, 'got %d: %s' % (done.returncode, output))
        return output

    def play(self, block):
        for line in block.text.splitlines():
            if line.startswith('notepad '):
                self.write(line.split()[1])
            else:
                output = self.type(line)
                if line.startswith('net stop'):             # wine's does not wait
                    self.t.check('%s: it stops' % block.name, self.state('STOPPED'), self.log())
                elif line.startswith(('sc start', 'net start')):
                    self.serves(block)
                elif ' --test ' in line:
                    self.calls += 1
                    self.t.check('%s: the webhook is called' % block.name, ' ok ' in output, output)

    def write(self, name):
        """What the reader of README writes: the real URL, and a port that is free."""
        path = os.path.join(self.folder, name)
        with open(path, encoding='utf-8') as file:
            text = file.read()
        self.t.check('%s: has the URL' % name, text.count('http://127.0.0.1:8080/alert') == 1, text)
        text = text.replace('http://127.0.0.1:8080/alert', self.receiver.url('/alert'))
        with open(path, 'w', encoding='utf-8') as file:
            file.write(text + '  butlerWebhook: { port: %d }\n' % self.port)

    def log(self):
        """All log files of the service."""
        folder = os.path.join(self.folder, 'log')
        return ''.join(self.t.read(os.path.join(folder, name)) for name in sorted(os.listdir(folder))) \
            if os.path.isdir(folder) else ''

    def state(self, wanted):
        """Waits until the service manager says so."""
        deadline = time.monotonic() + 10 * harness.SLOW
        while time.monotonic() < deadline:
            if re.search(r'STATE +: \d+ +%s' % wanted, self.type('sc query ' + self.NAME)):
                return True
            time.sleep(0.1)
        return False

    def serves(self, block):
        """The service runs, and an alert goes through it."""
        if not self.t.check('%s: the service runs' % block.name, self.state('RUNNING'), self.log()):
            return
        self.calls += 1
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.sendto(harness.datagram(), ('127.0.0.1', self.port))
        self.t.check('%s: an alert arrives' % block.name, len(self.receiver.wait(self.calls)) == self.calls, self.log())

    def check_proxy(self, block):
        value = self.type('reg query HKLM\\SYSTEM\\CurrentControlSet\\Services\\%s /v Environment' % self.NAME)
        self.t.check('%s: the variables are there' % block.name,
                     'HTTPS_PROXY=http://proxy.example.com:3128' in value and 'NO_PROXY=.example.com' in value, value)
        self.type('reg delete HKLM\\SYSTEM\\CurrentControlSet\\Services\\%s /v Environment /f' % self.NAME)


def run_windows(t):
    """Plays the commands for Windows."""
    with open(README, encoding='utf-8') as file:
        text = file.read()
    blocks = {block.words[0]: block for block in (Block(match, text) for match in BLOCK.finditer(text))
              if block.language == 'bat' and block.words and block.words[0] != 'syntax'}
    t.equal('README.md: the blocks for Windows', sorted(blocks), sorted(Server.MARKS))
    server = Server(t)
    try:
        for mark in Server.MARKS:
            server.play(blocks[mark])
            if mark == 'proxy':
                server.check_proxy(blocks[mark])
    finally:
        server.type('butler_webhook.exe --uninstall', codes=(0, 1))
        shutil.rmtree(server.folder, ignore_errors=True)


# ---- Keys -----------------------------------------------------------------------------------------------------------


def yaml_keys(text):
    """The paths of all keys in block YAML, of those right behind a # as well."""
    paths = set()
    stack = []
    for line in text.splitlines():
        match = re.match(r'^( *)#?((?:- )?)([A-Za-z]+):(?: |$)', line)
        if match:
            depth = len(match[1] + match[2])
            while stack and stack[-1][0] >= depth:
                stack.pop()
            stack.append((depth, match[3]))
            paths.add('.'.join(name for _, name in stack))
    return paths


def table_keys(text):
    """The paths of the keys in README's table of the configuration."""
    table = text[text.index('\n## Configuration\n'):]
    table = table[table.index('| key |'):]
    table = table[:table.index('\n\n')]
    paths = set()
    section = ''
    for row in table.splitlines()[2:]:
        cell = row.split('|')[1].strip()
        if cell.startswith('**'):
            name = cell.strip('*`')
            section = name + '.' if re.fullmatch(r'\w+', name) else 'webhooks.'
            continue
        for key in re.findall(r'`([^`]+)`', cell):
            paths.add(section + key.lstrip('.') if key.startswith('.') or section == 'webhooks.' else key)
    return paths


def check_keys(t, readme):
    """README's table, samples/full.yaml and the program know the same keys."""
    with open(os.path.join(SAMPLES, 'full.yaml'), encoding='utf-8') as file:
        full = yaml_keys(file.read())
    leaves = {path for path in full if not any(other.startswith(path + '.') for other in full)}
    ours = set()
    for path in leaves:
        path = path.replace('Butler.', '', 1)
        path = re.sub(r'^webhookNotification\.reloadTask(Failure|Aborted)\.webhooks\.', 'webhooks.', path)
        ours.add(path)
    ours |= {'webhookNotification.reloadTask%s.webhooks' % kind for kind in ('Failure', 'Aborted')}
    table = table_keys(readme)
    t.check('README.md and samples/full.yaml have the same keys', table == ours,
            'only README.md: %s; only full.yaml: %s' % (sorted(table - ours), sorted(ours - table)))
    # The program must know each of them: a key with one letter too many is a warning that lists those that it knows there.
    for path in sorted(ours):
        text = misspelt(path)
        if text is None:
            continue
        name = os.path.join(t.tmp, 'key.yaml')
        with open(name, 'w', encoding='utf-8') as file:
            file.write(text)
        key = path.split('.')[-1]
        stderr = t.run('--check', name).stderr
        t.check('the program knows %s' % path, re.search(r'warning: .*"%sx".*; known here: .*\b%s\b' % (key, key), stderr),
                repr(stderr))


def misspelt(path):
    """A configuration in which the last key of path has an x at its end; None where other keys are none of our business."""
    if '.' not in path:
        return None
    parts = path.split('.')
    if parts[0] == 'webhooks':
        parts = ['webhookNotification', 'reloadTaskFailure'] + parts
    lines = ['Butler:']
    for depth, part in enumerate(parts[:-1]):
        lines.append('  ' * (depth + 1) + part + ':')
    pad = '  ' * len(parts)
    if parts[-2] == 'webhooks':
        lines.append(pad + '- %sx: 1' % parts[-1])
    elif 'webhooks' in parts[:-1]:
        lines[-1] = '  ' * (len(parts) - 1) + '- ' + parts[-2] + ':'
        lines.append(pad + '    %sx: 1' % parts[-1])
    else:
        lines.append(pad + '%sx: 1' % parts[-1])
    return '\n'.join(lines) + '\n'


# ---- The samples ----------------------------------------------------------------------------------------------------


def run_samples(t):
    names = sorted(name for name in os.listdir(SAMPLES) if name.endswith('.yaml'))
    t.check('samples', {'minimal.yaml', 'full.yaml'} <= set(names), repr(names))
    for folder, name in [(SAMPLES, name) for name in names] + [(CONFIG_DATA, 'butler-production.yaml'), (TEST, 'demo.yaml')]:
        done = t.run('--check', os.path.join(folder, name))
        t.check('%s: --check finds it valid' % name, done.returncode == 0 and not done.stderr, done.stderr or done.stdout)
    with open(os.path.join(SAMPLES, 'minimal.yaml'), encoding='utf-8') as file:
        t.check('minimal.yaml: under 15 lines', len(file.readlines()) < 15)
    run_full(t)
    run_unit(t)
    run_appenders(t, 'LocalLogConfig.xml', '9998')
    run_appenders(t, 'LocalLogConfig-with-Butler.xml', '9998', '9997')


def run_full(t):
    """Who copies full.yaml and changes a key of Butler's gets what that key says: none of our own overrides it."""
    with open(os.path.join(SAMPLES, 'full.yaml'), encoding='utf-8') as file:
        text = file.read()
    for old, new, wanted in (('portTaskFailure: 9998', 'portTaskFailure: 9997', 'listens on 127.0.0.1:9997 '),
                             ('serverHost: 127.0.0.1', 'serverHost: 127.0.0.9', 'listens on 127.0.0.9:9998 '),
                             ('enable: true', 'enable: false', 'disabled by ')):
        name = os.path.join(t.tmp, 'full.yaml')
        with open(name, 'w', encoding='utf-8') as file:
            file.write(text.replace(old, new, 1))
        t.check('full.yaml: has %s' % old, old in text)
        done = t.run('--check', name)
        t.check('full.yaml: %s counts' % new, done.returncode == 0 and wanted in done.stdout,
                [done.returncode, done.stdout, done.stderr])


def run_unit(t):
    """systemd accepts the unit; the path of the program in it need not exist here."""
    with open(os.path.join(SAMPLES, 'butler_webhook.service'), encoding='utf-8') as file:
        unit = file.read()
    for setting in ('DynamicUser=yes', 'NoNewPrivileges=yes', 'ProtectSystem=strict', 'MemoryDenyWriteExecute=yes',
                    'RestrictAddressFamilies=AF_INET AF_INET6', 'SystemCallFilter=@system-service', 'Restart=on-failure'):
        t.check('butler_webhook.service: %s' % setting, ('\n%s\n' % setting) in unit)
    if not shutil.which('systemd-analyze'):
        return
    path = os.path.join(t.tmp, 'butler_webhook.service')
    with open(path, 'w', encoding='utf-8') as file:
        file.write(unit.replace('/usr/local/bin/butler_webhook', '"%s"' % harness.BINARY))
    done = subprocess.run(['systemd-analyze', 'verify', path], capture_output=True, text=True)
    t.check('butler_webhook.service: systemd-analyze verify', done.returncode == 0 and 'butler_webhook' not in done.stderr,
            done.stderr)


def run_appenders(t, file, *ports):
    """The appenders of that sample send each event to these ports."""
    root = xml.etree.ElementTree.parse(os.path.join(SAMPLES, file)).getroot()
    t.equal('%s: root' % file, root.tag, 'configuration')
    appenders = list(root.iter('appender'))
    references = [reference.get('ref') for logger in root.iter('logger') for reference in logger.iter('appender-ref')]
    t.equal('%s: each appender is used' % file, sorted(references), sorted(appender.get('name') for appender in appenders))
    t.equal('%s: logger' % file, [logger.get('name') for logger in root.iter('logger')],
            ['System.Scheduler.Scheduler.Master.Task.TaskSession'])
    t.equal('%s: ports' % file, sorted(appender.find('param[@name="remotePort"]').get('value') for appender in appenders),
            sorted(ports * 2))
    for port in ports:
        run_appenders_of(t, '%s, port %s' % (file, port), port,
                         [appender for appender in appenders
                          if appender.find('param[@name="remotePort"]').get('value') == port])


def run_appenders_of(t, what, remote_port, appenders):
    """Each appender prints every field of an alert, in the order that the program reads."""
    values = {'%hostname': 'QS-NODE1', '%property{TaskName}': 'Reload of Sales; daily', '%property{AppName}': 'Sales åäö',
              '%property{User}': 'LAB\\goran', '%property{TaskId}': harness.guid(), '%property{AppId}': harness.guid(),
              '%date': '2026-11-22 09:30:00,123', '%level': 'INFO', '%property{ExecutionId}': harness.guid()}
    fields = {'hostName': '%hostname', 'taskName': '%property{TaskName}', 'appName': '%property{AppName}',
              'user': '%property{User}', 'taskId': '%property{TaskId}', 'appId': '%property{AppId}', 'logTimeStamp': '%date',
              'logLevel': '%level', 'executionId': '%property{ExecutionId}'}
    events = {'Max retries reached': 'Qlik Sense reload failed',
              'Execution State Change to Aborting': 'Qlik Sense reload aborted'}
    receiver = t.receiver()
    path, port = t.config([{'url': receiver.url('/failure')}, {'url': receiver.url('/aborted'), 'kind': 'aborted'}])
    program = t.start(path)
    seen = set()
    for appender in appenders:
        name = '%s: %s' % (what, appender.get('name'))
        t.equal('%s: type' % name, appender.get('type'), 'log4net.Appender.UdpAppender')
        settings = {param.get('name'): param.get('value') for param in appender.findall('param')}
        t.equal('%s: settings' % name, settings, {'remoteAddress': '127.0.0.1', 'remotePort': remote_port, 'encoding': 'utf-8'})
        filters = [item.get('type').split('.')[-1] for item in appender.findall('filter')]
        t.equal('%s: filters' % name, filters, ['StringMatchFilter', 'DenyAllFilter'])
        message = appender.find('filter/param').get('value')
        datagram = next(param.get('value') for param in appender.iter('param') if param.get('name') == 'conversionpattern')
        for variable, value in values.items():
            t.equal('%s: %s' % (name, variable), datagram.count(variable), 1)
            datagram = datagram.replace(variable, value)
        datagram = datagram.replace('%message', message)
        t.check('%s: nothing unknown in the pattern' % name, '%' not in datagram, datagram)
        seen.add(message)
        program.send(datagram.encode('utf-8'))
        requests = receiver.wait(len(seen))
        t.require('%s: is understood' % name, len(requests) == len(seen), repr(program.log[-3:]))
        alert = requests[-1].json()
        t.equal('%s: event' % name, alert.get('event'), events.get(message))
        t.equal('%s: logMessage' % name, alert.get('logMessage'), message)
        for field, variable in fields.items():
            t.equal('%s: %s' % (name, field), alert.get(field), values[variable])
    t.equal('%s: messages' % what, seen, set(events))
    t.equal('%s: the program ends' % what, program.stop(), 0)


@pytest.fixture(scope='module')
def certificates():
    demo.make_certificates()


@harness.unix('its commands are for a shell')
@harness.limit(300)
def test_readme(t, certificates, request):
    run_readme(t, request.config.getoption('write'))


@harness.unix('they were checked with the program for Unix')
def test_samples(t, certificates):
    run_samples(t)


@pytest.mark.skipif(not harness.WINDOWS, reason='for the program for Windows')
@harness.limit(300)
def test_readme_windows(t):
    run_windows(t)
