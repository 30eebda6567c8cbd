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

ARRIVE_S = 10       # time for an alert to arrive when nothing is wrong

OK = harness.response(200, b'ok', close=True)
OK_KEEP = harness.response(200, b'ok')

NOT_TRUSTED = r'certificate not trusted'
NO_TLS = r'(?i)TLS|handshake|certificate'


# ---- Certificates ---------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_made = {}
_numbers = itertools.count(1)

CA_CONFIG = '''
[ca]
default_ca = all
[all]
new_certs_dir = .
database = index.txt
unique_subject = no
rand_serial = yes
email_in_dn = yes
default_md = sha256
policy = any
[any]
countryName = optional
organizationName = optional
organizationalUnitName = optional
commonName = optional
[req]
distinguished_name = none
string_mask = utf8only
utf8 = yes
[none]
'''

CA_EXTENSIONS = ('basicConstraints = critical,CA:TRUE', 'keyUsage = critical,keyCertSign,cRLSign',
                 'subjectKeyIdentifier = hash')
LEAF_EXTENSIONS = ('basicConstraints = critical,CA:FALSE', 'keyUsage = critical,digitalSignature,keyEncipherment',
                   'extendedKeyUsage = serverAuth', 'subjectKeyIdentifier = hash', 'authorityKeyIdentifier = keyid')
LOCAL_NAMES = 'DNS:localhost,IP:127.0.0.1,IP:::1'


class Made:
    """A thing that is made once. Those who want it meanwhile wait for it, and for no other."""

    def __init__(self):
        self.lock = threading.Lock()
        self.things = []


def once(function):
    """Decorator: the first call makes the thing, later ones with the same arguments get it again; safe in threads."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args, **named):
        bound = signature.bind(*args, **named)
        bound.apply_defaults()
        with _lock:
            made = _made.setdefault((function.__name__,) + bound.args, Made())
        with made.lock:
            if not made.things:
                made.things.append(function(*bound.args))
            return made.things[0]
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
    if kind.startswith('rsa'):
        how = ['rsa:' + kind[3:]]
    elif kind == 'ed25519':
        how = [kind]
    else:
        how = ['ec', '-pkeyopt', 'ec_paramgen_curve:' + kind]
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

    @property
    def chain_pem(self):
        return joined_file(*(above.pem for above in self.chain))

    def without_chain(self):
        return Certificate(self.pem, self.key, [])

    def with_chain(self, *chain):
        return Certificate(self.pem, self.key, list(chain))

    def context(self):
        """For a server in Python."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.full_pem, self.key)
        return context


def issue(subject, issuer=None, key='P-256', extensions=LEAF_EXTENSIONS, san=None, begin='20200101000000Z',
          end='20491231235959Z', md='sha256', key_path=None):
    """
    Makes a certificate with a new key, or for the one in key_path; without issuer it signs itself. Each signature runs in
    a directory of its own, as `openssl ca` keeps a data base there.
    """
    number = next(_numbers)
    base = os.path.join(certificate_directory(), str(number))
    options = ['-key', key_path] if key_path else new_key(key, base + '.key')
    key_path = key_path or base + '.key'
    os.mkdir(base)
    write_file(os.path.join(base, 'index.txt'), '')
    write_file(os.path.join(base, 'ca.cnf'), CA_CONFIG)
    lines = list(extensions)
    if san:
        lines.append('subjectAltName = ' + san)
    write_file(os.path.join(base, 'extensions'), '\n'.join(lines) + '\n')
    openssl('req', '-new', '-config', 'ca.cnf', '-subj', subject, '-out', 'request', *options, cwd=base)
    signer = ['-selfsign', '-keyfile', key_path] if issuer is None else ['-cert', issuer.pem, '-keyfile', issuer.key]
    pem = base + '.pem'
    openssl('ca', '-batch', '-config', 'ca.cnf', '-in', 'request', '-out', pem, '-notext', '-preserveDN', '-md', md,
            '-startdate', begin, '-enddate', end, '-extfile', 'extensions', *signer, cwd=base)
    shutil.rmtree(base)
    chain = [issuer] + issuer.chain if issuer is not None and issuer.chain is not None else []
    return Certificate(pem, key_path, chain)


def issue_root(subject, **options):
    options.setdefault('extensions', CA_EXTENSIONS)
    root = issue(subject, **options)
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


def cert(ca, enable=True, reject=True):
    """The cert section of a webhook; ca is a Certificate or a path."""
    return {'enable': enable, 'rejectUnauthorized': reject, 'certCA': ca.pem if isinstance(ca, Certificate) else ca}


# ---- Servers that run as processes ----------------------------------------------------------------------------------


class Server:
    """A child process that writes to a pipe; `output` is what it has written so far."""

    def __init__(self, command, cwd=None):
        self._changed = threading.Condition()
        self._output = bytearray()
        self._process = subprocess.Popen(command, cwd=cwd, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.STDOUT, start_new_session=True)
        self.pid = self._process.pid
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
            while True:
                value = condition()
                left = deadline - time.monotonic()
                if value or left <= 0:
                    return value
                self._changed.wait(min(left, 0.05))

    def wait_listening(self, host, port):
        deadline = time.monotonic() + ARRIVE_S * harness.SLOW
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection((host, port), 1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError('%s does not listen: %s' % (self._process.args[0], self.output[-500:]))

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
        self.host = host
        self.port = port or harness.free_port()
        self.answer = answer
        self.requests = []
        self._from = 0
        command = ['openssl', 's_server', '-accept', '%s:%d' % ('[::1]' if host == '::1' else host, self.port),
                   '-cert', certificate.pem, '-key', certificate.key]
        if certificate.chain:
            command += ['-cert_chain', certificate.chain_pem]
        super().__init__(command + list(options))
        if not self.wait_until(lambda: b'ACCEPT' in self._output or self._process.poll() is not None) or \
                self._process.poll() is not None:
            self.close()
            raise RuntimeError('openssl s_server does not start: %s' % self.output[-500:])

    def url(self, path='/hook', host='localhost', userinfo=''):
        return 'https://%s%s:%d%s' % (userinfo and userinfo + '@', host, self.port, path)

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
        for part in [answer] if isinstance(answer, bytes) else answer or []:
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
    """nginx with these server blocks; it logs each request as one line of JSON, see `requests`."""

    CONFIG = '''
%(user)s
daemon off;
worker_processes 1;
error_log %(directory)s/error.log info;
pid %(directory)s/pid;
events { worker_connections 256; }
http {
    client_body_temp_path %(directory)s/body;
    proxy_temp_path %(directory)s/proxy;
    fastcgi_temp_path %(directory)s/fastcgi;
    uwsgi_temp_path %(directory)s/uwsgi;
    scgi_temp_path %(directory)s/scgi;
    client_body_buffer_size 1m;
    log_format json escape=json '{"port":$server_port,"connection":$connection,"nth":$connection_requests,'
        '"protocol":"$ssl_protocol","cipher":"$ssl_cipher","reused":"$ssl_session_reused","sni":"$ssl_server_name",'
        '"method":"$request_method","uri":"$request_uri","status":$status,"length":"$content_length",'
        '"id":"$http_webhook_id","body":"$request_body"}';
    access_log %(directory)s/access.log json;
    %(servers)s
}
'''

    def __init__(self, t, servers):
        self.directory = tempfile.mkdtemp(dir=t.tmp, prefix='nginx-')
        config = self.CONFIG % {'user': 'user root;' if os.getuid() == 0 else '', 'directory': self.directory,
                                'servers': servers}
        path = write_file(os.path.join(self.directory, 'nginx.conf'), config)
        super().__init__([need(t, 'nginx'), '-p', self.directory, '-c', path, '-e', self.directory + '/error.log'])
        try:
            for host, port in re.findall(r'listen (127\.0\.0\.1|\[::1\]):(\d+)', servers):
                self.wait_listening(host.strip('[]'), int(port))
        except RuntimeError:
            self.close()
            raise

    def requests(self, port=None):
        try:
            with open(os.path.join(self.directory, 'access.log'), encoding='utf-8') as file:
                rows = [json.loads(line) for line in file.read().splitlines(True) if line.endswith('\n')]
        except FileNotFoundError:
            return []
        return [row for row in rows if port is None or row['port'] == port]

    def wait(self, count=1, port=None, timeout=ARRIVE_S):
        self.wait_until(lambda: len(self.requests(port)) >= count, timeout)
        return self.requests(port)

    def errors(self):
        return read_bytes(os.path.join(self.directory, 'error.log')).decode('utf-8', 'replace')


def nginx_tls(port, certificate, more='', protocols='TLSv1.2 TLSv1.3', location='return 200 "ok";', listen=''):
    """One server block with TLS."""
    return '''server {
        listen 127.0.0.1:%d ssl %s;
        ssl_certificate %s; ssl_certificate_key %s; ssl_protocols %s;
        %s
        location / { %s }
    }
''' % (port, listen, certificate.full_pem, certificate.key, protocols, more, location)


def nginx_plain(port, more='', location='return 200 "ok";'):
    return 'server { listen 127.0.0.1:%d; %s location / { %s } }\n' % (port, more, location)


@once
def find_command(name):
    return shutil.which(name) or shutil.which(name, path='/usr/sbin:/usr/local/sbin:/sbin')


def need(t, command):
    """The path of a command; without it the test fails, as what it covers would else be untested and nobody know."""
    path = find_command(command)
    t.require('the command %s is there' % command, path)
    return path


# ---- Common steps ---------------------------------------------------------------------------------------------------


def webhook(url, ca=None, **more):
    """A webhook of a configuration; with ca only that CA is trusted."""
    entry = {'url': url}
    if ca is not None:
        entry['cert'] = cert(ca)
    entry.update(more)
    return entry


def start(t, *webhooks, binary=None, **options):
    path, _ = t.config(list(webhooks))
    return t.start(path, binary=binary, **options)


def send(program, **fields):
    """Sends one alert; returns its executionId, by which a test knows it again."""
    execution_id = harness.guid()
    program.send(harness.datagram(execution_id=execution_id, **fields))
    return execution_id


def says(t, program, what, *wanted, **options):
    """Waits for a line of the log, and checks that it came."""
    return t.check(what, program.wait_log(*wanted, **options), repr([line[:400] for line in program.log[-4:]]))


def must_say(t, program, what, *wanted, **options):
    """The same; without that line the rest of the test makes no sense."""
    t.require(what, program.wait_log(*wanted, **options), repr([line[:400] for line in program.log[-4:]]))


def ids_of(requests):
    """The executionIds of what arrived."""
    return [request.event().get('executionId') for request in requests]


def require_delivered(t, program, server, execution_id, place='failure 1'):
    """The alert arrived at the server, once, with its fields, and the log says so."""
    requests = server.wait(1)
    got = ids_of(requests)
    t.check('the alert arrives once', got == [execution_id],
            'got %r; log %r' % (got, program.lines(r' (warn|error): ')[-2:]))
    says(t, program, 'the log says delivered', r'info: alert 1 delivered to %s\b.*: 200 in \d+ ms, attempt 1' % place)


def refused(place='failure 1', alert=1):
    """What matches the log's line about a call that failed: of the webhook that is down, or of the alert."""
    return r'warn: (?:alert %s to|webhook) %s(?: \("[^"]*"\))?(?: is down)?: ' % (alert, place)


def check_failed_call(t, program, reason, what='the call fails for the right reason', place='failure 1', alert=1,
                      timeout=ARRIVE_S):
    """Waits until a call has failed, and checks the reason in the log."""
    line = program.wait_log(refused(place, alert) + '(.*)', timeout)
    t.check(what, line and re.search(reason, line.group(1)), repr(line.group(1) if line else program.log[-3:]))


def require_refused(t, program, server, reason, place='failure 1'):
    """The call failed before anything was sent: the log gives the reason, the server saw no request."""
    check_failed_call(t, program, reason, place=place)
    says(t, program, 'the webhook is down', r'warn: webhook %s\b.* is down: ' % place, 2)
    t.check('the server got no request', not server.requests, repr(server.requests[:1]))
