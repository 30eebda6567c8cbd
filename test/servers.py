"""
Real TLS servers and certificates for the tests: openssl s_server, nginx. Keys and certificates are made by the openssl
command when a test first needs them.
"""

import atexit
import functools
import inspect
import itertools
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time

import harness

DATA = os.path.join(harness.ROOT, 'test/data/tls')
ARRIVE_S = 10       # time for an alert to arrive when nothing is wrong

OK = harness.response(200, b'ok', close=True)
OK_KEEP = harness.response(200, b'ok')


# ---- Certificates ---------------------------------------------------------------------------------------------------

_numbers = itertools.count(1)

CA_EXTENSIONS = ('basicConstraints = critical,CA:TRUE', 'keyUsage = critical,keyCertSign,cRLSign',
                 'subjectKeyIdentifier = hash')
LEAF_EXTENSIONS = ('basicConstraints = critical,CA:FALSE', 'keyUsage = critical,digitalSignature,keyEncipherment',
                   'extendedKeyUsage = serverAuth', 'subjectKeyIdentifier = hash', 'authorityKeyIdentifier = keyid')
LOCAL_NAMES = 'DNS:localhost,IP:127.0.0.1,IP:::1'


def once(function):
    """Decorator: what was made for some arguments is given again for the same."""
    made = {}
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args, **named):
        bound = signature.bind(*args, **named)
        bound.apply_defaults()
        if bound.args not in made:
            made[bound.args] = function(*bound.args)
        return made[bound.args]
    return wrapper


@once
def certificate_directory():
    path = tempfile.mkdtemp(prefix='butler_webhook-certificates-')
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def openssl(*args, cwd=None):
    result = subprocess.run(('openssl',) + args, stdin=subprocess.DEVNULL, capture_output=True, cwd=cwd)
    if result.returncode != 0:
        raise RuntimeError('openssl %s: %s' % (' '.join(args)[:200], result.stderr.decode(errors='replace')[-500:]))
    return result.stdout


def write_file(path, data):
    with open(path, 'wb') as file:
        file.write(data.encode() if isinstance(data, str) else data)
    return path


def read_bytes(path):
    with open(path, 'rb') as file:
        return file.read()


def new_key(kind, path):
    """What has openssl req make a private key: 'rsa2048', 'P-256' and the like."""
    if kind == 'ed25519':
        how = [kind]
    elif not kind.startswith('rsa'):
        how = ['ec', '-pkeyopt', 'ec_paramgen_curve:' + kind]
    elif int(kind[3:]) < 4096:
        how = ['rsa:' + kind[3:]]
    else:       # four primes are found much faster than two
        how = ['rsa:' + kind[3:], '-pkeyopt', 'rsa_keygen_primes:4']
    return ['-newkey'] + how + ['-nodes', '-keyout', path]


@once
def joined_file(*paths):
    """A file with the content of these."""
    path = os.path.join(certificate_directory(), 'joined-%d.pem' % next(_numbers))
    return write_file(path, b''.join(read_bytes(one) for one in paths))


class Certificate:
    """`pem` and `key` are files; `chain` are the certificates above it that a server has to send."""

    def __init__(self, pem, key, chain):
        self.pem = pem
        self.key = key
        self.chain = chain

    @property
    def full_pem(self):
        """One file: the certificate, then its chain."""
        return joined_file(self.pem, *(above.pem for above in self.chain))

    def with_chain(self, *chain):
        return Certificate(self.pem, self.key, list(chain))

    def context(self, version=None):
        """For a server in Python; version (an ssl.TLSVersion): of that version alone."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.full_pem, self.key)
        if version:
            context.minimum_version = context.maximum_version = version
        return context


def issue(subject='/CN=localhost', issuer=None, key='P-256', extensions=LEAF_EXTENSIONS, san=None,
          begin='20200101000000Z', end='20491231235959Z', md='sha256', key_path=None):
    """
    Makes a certificate with a new key, or for the one in key_path; without issuer it signs itself. Each signature runs in
    a directory of its own, as `openssl ca` keeps a data base there.
    """
    base = os.path.join(certificate_directory(), str(next(_numbers)))
    options = ['-key', key_path] if key_path else new_key(key, base + '.key')
    key_path = key_path or base + '.key'
    os.mkdir(base)
    write_file(os.path.join(base, 'index.txt'), '')
    shutil.copy(os.path.join(DATA, 'ca.cnf'), base)
    lines = extensions + (('subjectAltName = ' + san,) if san else ())
    write_file(os.path.join(base, 'extensions'), '\n'.join(lines) + '\n')
    openssl('req', '-new', '-config', 'ca.cnf', '-subj', subject, '-out', 'request', *options, cwd=base)
    signer = ['-cert', issuer.pem, '-keyfile', issuer.key] if issuer else ['-selfsign', '-keyfile', key_path]
    pem = base + '.pem'
    openssl('ca', '-batch', '-config', 'ca.cnf', '-in', 'request', '-out', pem, '-notext', '-preserveDN', '-md', md,
            '-startdate', begin, '-enddate', end, '-extfile', 'extensions', *signer, cwd=base)
    shutil.rmtree(base)
    chain = [issuer] + issuer.chain if issuer and issuer.chain is not None else []
    return Certificate(pem, key_path, chain)


def issue_root(subject, extensions=CA_EXTENSIONS, **options):
    root = issue(subject, extensions=extensions, **options)
    root.chain = None       # never sent by a server
    return root


@once
def root(name='A', key='P-256'):
    return issue_root('/O=Webhook tests/CN=Test CA %s' % name, key=key)


@once
def intermediate():
    return issue('/O=Webhook tests/CN=Test Intermediate', root(), extensions=CA_EXTENSIONS)


@once
def good(name='A', key='P-256'):
    """What a proper server has: localhost, 127.0.0.1 and ::1, signed by root(name)."""
    return issue('/CN=localhost', root(name), key=key, san=LOCAL_NAMES)


@once
def chained():
    return issue('/CN=localhost', intermediate(), san=LOCAL_NAMES)


@once
def expired():
    return issue('/O=Expired Ltd/CN=localhost', root(), san=LOCAL_NAMES, begin='20190101000000Z', end='20210203000000Z')


@once
def not_yet_valid():
    return issue('/CN=localhost', root(), san=LOCAL_NAMES, begin='20900101000000Z', end='20910203000000Z')


@once
def self_signed():
    return issue('/O=Self-made/CN=localhost', extensions=LEAF_EXTENSIONS[:-1], san=LOCAL_NAMES)


@once
def other_name():
    return issue('/CN=other.example', root(), san='DNS:other.example,DNS:localhost.example', end='20480203000000Z')


# ---- Servers that run as processes ----------------------------------------------------------------------------------


class Server:
    """A child process that writes to a pipe; `output` is what it has written so far."""

    def __init__(self, command, cwd=None):
        self._changed = threading.Condition()
        self._output = bytearray()
        self._process = subprocess.Popen(command, cwd=cwd, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.STDOUT, start_new_session=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        while True:
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                return
            with self._changed:
                self._output += data
                self.scan(self._output)
                self._changed.notify_all()

    def scan(self, output):
        """Called with all output whenever there is more; the lock is held."""

    @property
    def output(self):
        with self._changed:
            return self._output.decode('utf-8', 'replace')

    def wait_until(self, condition, timeout=ARRIVE_S):
        """Waits for condition() to be true, looking whenever there is output; returns its last value."""
        deadline = time.monotonic() + timeout * harness.SLOW
        with self._changed:
            while not (value := condition()) and time.monotonic() < deadline:
                self._changed.wait(0.05)
            return value

    def wait_ready(self, is_ready):
        """Waits until is_ready() is true; a server that does not come to that is an error."""
        ready = self.wait_until(lambda: is_ready() or self._process.poll() is not None)
        if not ready or self._process.poll() is not None:
            self.close()
            raise RuntimeError('%s does not start: %s' % (self._process.args[0], self.output[-500:]))

    def wait_listening(self, *ports):
        def listens(port):
            with socket.socket() as probe:
                return probe.connect_ex(('127.0.0.1', port)) == 0

        self.wait_ready(lambda: all(map(listens, ports)))

    def kill(self):
        """Ends it at once, as a crash does."""
        self._process.kill()
        self._process.wait()

    def close(self):
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(5)
        self._process.stdin.close()
        self._process.stdout.close()


class OpensslServer(Server):
    """
    openssl s_server in its interactive mode: what it decrypts comes out of stdout, what we write to stdin goes to the
    client. answer is what to write for each request: bytes, a list of such (with a short pause between them), or a
    function of the request and its number (from 1) that returns one of these. A line that begins with one of the
    letters R, K, k, q is a command to s_server. `requests` are those that have arrived whole.
    """

    REQUEST = re.compile(rb'(?:GET|POST|PUT) \S+ HTTP/1\.[01]\r\n')

    def __init__(self, certificate, *options, host='127.0.0.1', port=None, answer=OK):
        self.port = port or harness.free_port()
        self.answer = answer
        self.requests = []
        self._from = 0
        command = ['openssl', 's_server', '-accept', '%s:%d' % ('[::1]' if host == '::1' else host, self.port),
                   '-cert', certificate.pem, '-key', certificate.key]
        if certificate.chain:
            command += ['-cert_chain', joined_file(*(above.pem for above in certificate.chain))]
        super().__init__(command + list(options))
        self.wait_ready(lambda: b'ACCEPT' in self._output)

    def url(self, path='/hook', host='localhost'):
        return 'https://%s:%d%s' % (host, self.port, path)

    def scan(self, output):
        while True:
            match = self.REQUEST.search(output, self._from)
            end = output.find(b'\r\n\r\n', match.start()) if match else -1
            if end < 0:
                return
            head = bytes(output[match.start():end + 4])
            lines = head.decode('latin-1').split('\r\n')
            headers = [tuple(part.strip() for part in line.split(':', 1)) for line in lines[1:] if ':' in line]
            request = harness.Request(head, lines[0], headers, b'', 0)
            length = int(request.get('Content-Length', '0'))
            if len(output) < end + 4 + length:
                return
            request.body = bytes(output[end + 4:end + 4 + length])
            self._from = end + 4 + length
            self.requests.append(request)
            answer = self.answer(request, len(self.requests)) if callable(self.answer) else self.answer
            threading.Thread(target=self._write, args=(answer,), daemon=True).start()

    def _write(self, answer):
        for part in [answer] if isinstance(answer, bytes) else answer:
            try:
                self._process.stdin.write(part)
            except (OSError, ValueError):
                return
            time.sleep(0.1)

    def wait(self, count=1, timeout=ARRIVE_S):
        self.wait_until(lambda: len(self.requests) >= count, timeout)
        with self._changed:
            return list(self.requests)


class Nginx(Server):
    """nginx with these server blocks (in data/tls/nginx.conf); it logs each request as one line of JSON, see `requests`."""

    def __init__(self, t, servers):
        directory = tempfile.mkdtemp(dir=t.tmp, prefix='nginx-')
        self.log = os.path.join(directory, 'access.log')
        config = read_bytes(os.path.join(DATA, 'nginx.conf')).decode().replace('DIRECTORY', directory)
        config = config.replace('USER', 'user root;' if os.getuid() == 0 else '').replace('SERVERS', servers)
        path = write_file(os.path.join(directory, 'nginx.conf'), config)
        super().__init__([need(t, 'nginx'), '-p', directory, '-c', path, '-e', directory + '/error.log'])
        self.wait_listening(*map(int, re.findall(r'listen 127\.0\.0\.1:(\d+)', servers)))

    def requests(self):
        """What was answered so far, one dict for each request."""
        if not os.path.exists(self.log):
            return []
        return [json.loads(line) for line in read_bytes(self.log).decode().split('\n')[:-1]]

    def wait(self, count=1, timeout=ARRIVE_S):
        self.wait_until(lambda: len(self.requests()) >= count, timeout)
        return self.requests()


def nginx_tls(port, certificate, more='', protocols='TLSv1.2 TLSv1.3', location='return 200 "ok";', listen=''):
    """One server block with TLS."""
    return '''server {
        listen 127.0.0.1:%d ssl %s;
        ssl_certificate %s; ssl_certificate_key %s; ssl_protocols %s;
        %s
        location / { %s }
    }
''' % (port, listen, certificate.full_pem, certificate.key, protocols, more, location)


def need(t, command):
    """The path of a command; without it the test fails, as what it covers would else be untested and nobody know."""
    path = shutil.which(command) or shutil.which(command, path='/usr/sbin:/usr/local/sbin:/sbin')
    t.require('the command %s is there' % command, path)
    return path


# ---- Common steps ---------------------------------------------------------------------------------------------------


def cert(ca, enable=True, reject=True):
    """The cert section of a webhook; ca is a Certificate or a path."""
    return {'enable': enable, 'rejectUnauthorized': reject, 'certCA': ca.pem if isinstance(ca, Certificate) else ca}


def webhook(url, ca=None, **more):
    """A webhook of a configuration; with ca (as for cert, or a whole section) only that CA is trusted."""
    entry = dict({'url': url}, **more)
    if ca is not None:
        entry['cert'] = ca if isinstance(ca, dict) else cert(ca)
    return entry


def start(t, *webhooks, **options):
    path, _ = t.config(list(webhooks))
    return t.start(path, **options)


def send(program, **fields):
    """Sends one alert; returns its executionId, by which a test knows it again."""
    execution_id = harness.guid()
    program.send(harness.datagram(execution_id=execution_id, **fields))
    return execution_id


def says(t, program, regex, **options):
    """Waits for a line of the log; without it the rest of the test makes no sense."""
    t.require('the log says: %s' % regex, program.wait_log(regex, **options))


def ids_of(requests):
    """The executionIds of what arrived."""
    return [request.event().get('executionId') for request in requests]
