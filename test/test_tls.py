"""TLS and trust against openssl s_server, nginx, adnanh's webhook, and servers of our own for what these never do."""

import ctypes
import ctypes.util
import os
import re
import socket
import ssl
import tempfile
import threading
import time

import pytest

import faults_base as base
import harness
import words
from servers import (
    CA_EXTENSIONS, Certificate, DATA, LEAF_EXTENSIONS, LOCAL_NAMES, Nginx, OK, OK_KEEP, OpensslServer, Server, cert, chained,
    expired, good, ids_of, intermediate, issue, issue_root, joined_file, need, nginx_tls, not_yet_valid, once, openssl,
    other_name, read_bytes, root, says, self_signed, send, start, webhook, write_file)

AT_ONCE = r'200 in \d+ ms, attempt 1$'
both_versions = pytest.mark.parametrize('version', (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3), ids=('1_2', '1_3'))


def deliver(t, program, number, **fields):
    """Sends one alert to one webhook; it arrives at once. Returns its executionId."""
    execution_id = send(program, **fields)
    says(t, program, words.delivered('failure 1', number, AT_ONCE))
    return execution_id


def check_call(t, certificate, ca, options='', refused=None, host='localhost'):
    """One s_server, one alert: it arrives at once, or it does not for this reason. Returns the server."""
    server = t.add(OpensslServer(certificate, *options.split(), host='::1' if host == '[::1]' else '127.0.0.1'))
    wrap = harness.with_files(t, {'/etc/hosts': '127.0.0.1 %s\n' % host.lower()}) if 'hooks.test' in host.lower() else ()
    program = start(t, webhook(server.url(host=host), ca), wrap=wrap)
    if refused:
        send(program)
        told = words.failed if refused.startswith(words.TLS_BROKE) else words.down      # after the handshake, or in it
        says(t, program, told('failure 1', why=refused))
        t.equal('requests', server.requests, [])
    else:
        execution_id = deliver(t, program, 1)
        t.equal('what arrives', ids_of(server.requests), [execution_id])
    return server


# ---- What is trusted ------------------------------------------------------------------------------------------------


def links(count):
    """A good certificate below so many intermediate ones."""
    above = root()
    for number in range(count):
        above = issue('/CN=Link %d of %d' % (number + 1, count), above, extensions=CA_EXTENSIONS)
    return issue('/CN=localhost', above, san=LOCAL_NAMES)


def impostor():
    """The CA's name, key identifier left out, another key: only the signature tells."""
    other = issue_root('/O=Webhook tests/CN=Test CA A', extensions=CA_EXTENSIONS[:2])
    return issue('/CN=localhost', other, extensions=LEAF_EXTENSIONS[:3], san=LOCAL_NAMES)


@once
def old_root():
    """What `openssl x509 -req` made for years: no extensions at all."""
    return issue_root('/CN=Old root', extensions=())


def issued(issuer=root, **options):
    return issue('/CN=localhost', issuer(), san=LOCAL_NAMES, **options)


def row(name, certificate, refused=None, ca=root, options=''):
    """What the server shows, why it is refused (None: it is not), whom the webhook trusts, how s_server is set."""
    return pytest.param(certificate, ca, refused, options, id=name)


WEAK = '-cipher DEFAULT@SECLEVEL=0'


@harness.limit(180)
@pytest.mark.parametrize('certificate, ca, refused, options', (
    row('good', good),
    row('chain_complete', chained),
    row('chain_incomplete', lambda: chained().with_chain(), words.NOT_SIGNED),
    row('chain_with_root', lambda: chained().with_chain(intermediate(), root())),
    row('chain_with_strangers', lambda: chained().with_chain(root('B'), intermediate())),
    row('chain_of_three', lambda: links(3)),
    row('chain_too_long', lambda: links(9), words.TLS_FAILED),
    row('chain_intermediate_is_the_ca', lambda: chained().with_chain(), ca=intermediate),
    row('chain_leaf_signs', lambda: issued(good), words.NOT_SIGNED),
    row('chain_impostor', impostor, words.NOT_SIGNED),
    row('self_signed', self_signed, words.NOT_SIGNED),
    row('self_signed_is_the_ca', self_signed, ca=self_signed),
    row('other_ca', lambda: good('B'), words.NOT_SIGNED),
    row('own_ca_not_named', good, words.NOT_SIGNED, ca=None),
    row('own_ca_not_enabled', good, words.NOT_SIGNED, ca=lambda: cert(root(), enable=False)),
    row('root_version_1', lambda: issued(old_root, extensions=LEAF_EXTENSIONS[:3]), ca=old_root),
    row('expired', expired, words.NOT_TRUSTED + '.*it has expired'),
    row('not_yet_valid', not_yet_valid, words.NOT_TRUSTED + '.*it is not valid yet'),
    row('for_clients', lambda: issued(extensions=LEAF_EXTENSIONS[:2] + ('extendedKeyUsage = clientAuth',)), words.TOO_WEAK),
    row('rsa_4096_below_rsa_ca', lambda: good('R', 'rsa4096'), ca=lambda: root('R')),
    row('rsa_4160', lambda: issued(key='rsa4160'), words.KEY_NOT_USABLE, options='-tls1_2'),
    row('rsa_4160_unchecked', lambda: issued(key='rsa4160'), words.KEY_NOT_USABLE, lambda: cert('', reject=False)),
    row('rsa_1024', lambda: issued(key='rsa1024'), words.TOO_WEAK, options=WEAK),
    row('sha1', lambda: issued(md='sha1'), words.TOO_WEAK, options=WEAK),
    row('ec_p521_sha512', lambda: issued(key='P-521', md='sha512')),
    row('client_certificate_demanded_1_2', good, words.ALERT + r'.*cert\.clientCert', options='-tls1_2 -Verify 1'),
    row('client_certificate_demanded_1_3', good, words.TLS_BROKE + r'.*cert\.clientCert', options='-tls1_3 -Verify 1'),
    row('ed25519', lambda: issued(key='ed25519'), words.TLS_FAILED),
))
def test_trust(t, certificate, ca, refused, options):
    check_call(t, certificate(), ca and ca(), options, refused)


def table(name):
    """The rows of a table in data/tls."""
    lines = read_bytes(os.path.join(DATA, name)).decode().splitlines()
    cells = [[cell.strip() for cell in line.split('|')] for line in lines if not line.startswith('#')]
    return [pytest.param(*row[1:], id=row[0]) for row in cells]


@pytest.mark.parametrize('host, common_name, names, trusted', table('names.txt'))
def test_trust_name(t, host, common_name, names, trusted):
    certificate = issue('/CN=' + common_name, root(), san=names)
    check_call(t, certificate, root(), '', None if trusted == 'yes' else words.NAMED_WRONG, host)


@harness.unix('the roots of a Linux system; test_windows.py has those of Windows')
@pytest.mark.parametrize('file', ['certs/ca-certificates.crt', 'cert.pem'])     # the first and the last that are looked for
def test_trust_system_store(t, file):
    """cert.enable false: besides the built-in roots the system's store counts, where a company keeps its own CA."""
    os.makedirs(os.path.join(t.tmp, 'ssl/certs'))
    base.write(os.path.join(t.tmp, 'ssl', file), pem(root()))
    wrap = harness.with_files(t, {'/etc/ssl': os.path.join(t.tmp, 'ssl')})
    url = t.add(OpensslServer(good())).url()
    program = start(t, webhook(url), webhook(url, cert(root('B'), enable=False)), webhook(url, root('B')), wrap=wrap)
    send(program)
    says(t, program, words.delivered('failure 1'))
    says(t, program, words.delivered('failure 2'))
    says(t, program, words.down('failure 3', words.NOT_SIGNED))


def test_trust_of_each_webhook(t):
    """Two CAs and one that checks nothing, two servers, many alerts: no connection or session is mixed up."""
    ports = {'A': t.port(), 'B': t.port()}
    nginx = t.add(Nginx(t, ''.join(nginx_tls(ports[name], good(name), 'keepalive_requests 3;') for name in ports)))
    sections = {'A': cert(root('A')), 'B': cert(root('B')), 'none': cert(root('C'), reject=False)}
    calls = [(name, server) for server in ports for name in sections]
    program = start(t, *[webhook('https://localhost:%d/%s' % (ports[server], name), sections[name]) for name, server in calls])
    for _ in range(30):
        send(program)
    rows = nginx.wait(120, timeout=30)
    for name, server in calls:
        got = [row['id'] for row in rows if (row['port'], row['uri']) == (ports[server], '/' + name)]
        t.equal('%s at server %s' % (name, server), (len(got), len(set(got))), (30, 30) if name in (server, 'none') else (0, 0))


def test_trust_unchecked(t):
    """rejectUnauthorized false: no check of chain, name and time, whatever enable says; and a warning at each start."""
    certificates = (good('B'), expired(), other_name(), self_signed(), chained().with_chain(), not_yet_valid())
    urls = [t.add(OpensslServer(certificate)).url() for certificate in certificates]
    sections = [cert(root('C'), True, False), cert(root('C'), False, False), {'enable': False, 'rejectUnauthorized': False}] * 2
    sections[3] = cert(root().key, True, False)     # no certificate at all
    program = start(t, *[webhook(url, section) for url, section in zip(urls, sections)])
    send(program)
    for place in range(1, len(urls) + 1):
        says(t, program, words.delivered('failure %d' % place, 1, AT_ONCE))
        says(t, program, r' warn: .*failure %d: rejectUnauthorized is false' % place)


# ---- Files of certificates ------------------------------------------------------------------------------------------


def pem(*certificates):
    return b''.join(read_bytes(certificate.pem) for certificate in certificates)


def test_trust_ca_files(t):
    """What people and tools make of such files; the path starts at the configuration file; --check counts. More: data/config."""
    one = pem(root())
    bad = {'key.pem': read_bytes(root().key), 'cut.pem': one[:300], 'ed25519.pem': pem(issue_root('/CN=Ed', key='ed25519'))}
    files = {'three.pem': pem(root('B'), root(), root('C')),
             'text.pem': b'# Our CAs\nSubject: someone\n\n' + pem(root('B')) + b'\nand another one:\n' + one + b'\nend\n',
             'crlf.pem': one.replace(b'\n', b'\r\n'),
             'no end.pem': one.rstrip(b'\n'),
             'b\u00f6m.pem': b'\xef\xbb\xbf' + one,
             'many.pem': pem(*[root('B'), root('C')] * 99) + one}
    files.update({'behind ' + name: content + b'\n' + one for name, content in bad.items()})
    os.makedirs(os.path.join(t.tmp, 'config/ca'))
    for name, content in {**files, **bad}.items():
        write_file(os.path.join(t.tmp, 'config/ca', name), content)
    server = t.add(OpensslServer(good()))
    path, _ = t.config([webhook(server.url(), cert('ca/' + name)) for name in files], name='config/butler.yaml')
    program = t.start(path, cwd='/')
    send(program)
    for place in range(1, len(files) + 1):
        says(t, program, words.delivered('failure %d' % place))
    done = t.run('--check', 'butler.yaml', cwd=os.path.join(t.tmp, 'config'))
    counts = re.findall(r'CA file .*?/([\w ]+\.pem) \((\d+) certificates?\)', done.stdout)
    t.equal('what --check counts', counts, list(zip(files, ('3', '2', '1', '1', '1', '199', '1', '1', '1'))))
    damaged = 'damaged, or of a kind that is not supported'
    told = r': %%s: cert\.certCA: .*/(.*\.pem)\b.*(no PEM certificate|%s)\n' % damaged
    t.equal('warnings', re.findall(told % 'warning', done.stderr), [('behind cut.pem', damaged), ('behind ed25519.pem', damaged)])
    path, _ = t.config([webhook(server.url(), cert('ca/' + name)) for name in bad], name='config/bad.yaml')
    done = t.run(path)
    t.equal('with none that can be used', (done.returncode, re.findall(told % 'error', done.stderr)),
            (2, [('key.pem', 'no PEM certificate'), ('cut.pem', damaged), ('ed25519.pem', damaged)]))


# ---- Client certificates, and the name that is expected ---------------------------------------------------------------


def client(name, issuer=None, **options):
    return issue('/CN=' + name, issuer or root(), extensions=LEAF_EXTENSIONS[:2] + ('extendedKeyUsage = clientAuth',), **options)


def shows(certificate, key=None, passphrase=None):
    """A cert section with a client certificate, the Certificate or a file."""
    whole = isinstance(certificate, Certificate)
    keys = {'clientCert': certificate.full_pem if whole else certificate, 'clientKey': certificate.key if whole else key,
            'passphrase': passphrase}
    return dict(cert(root()), **{name: value for name, value in keys.items() if value})


def test_client_files(t):
    """What tools make of keys and certificates: what can be used, as it is or converted; of all else what to do, and where."""
    def made(name, *command):
        openssl(*command, '-out', os.path.join(t.tmp, name))
        return name

    into, out, given = ('-passin', 'pass:S3cret'), ('-passout', 'pass:S3cret'), 'S3cret'
    genpkey = made('genpkey.key', 'genpkey', '-algorithm', 'RSA', '-aes256', '-pass', 'pass:S3cret')
    plain = os.path.join(t.tmp, made('plain.key', 'pkey', '-in', os.path.join(t.tmp, genpkey), *into))
    rsa, ec, old = client('r', key_path=plain), client('e'), client('o', end='20210203000000Z')
    pkcs8 = made('pkcs8.key', 'pkcs8', '-topk8', '-in', ec.key, *out)
    pfx = made('a.pfx', 'pkcs12', '-export', '-in', ec.pem, '-inkey', ec.key, *out)
    pem_of_pfx = made('a.pem', 'pkcs12', '-in', os.path.join(t.tmp, pfx), '-aes256', *into, *out)
    cer = made('a.cer', 'x509', '-in', ec.pem, '-outform', 'der')
    der = made('key.der', 'pkey', '-in', ec.key, '-outform', 'der')
    traditional = made('old.key', 'rsa', '-in', plain, '-aes128', '-traditional', *out)
    pbes1 = made('3des.key', 'pkcs8', '-topk8', '-in', plain, '-v1', 'PBE-SHA1-3DES', *out)
    sec1 = made('sec1.key', 'ec', '-in', ec.key)
    pkcs1 = made('pkcs1.key', 'rsa', '-in', plain, '-traditional')
    cut = write_file(os.path.join(t.tmp, 'cut.key'), read_bytes(rsa.key)[:800] + b'\n-----END PRIVATE KEY-----\n')
    good_ones = [shows(rsa), shows(ec), shows(rsa.pem, genpkey, given), shows(ec.pem, pkcs8, given), shows(rsa.pem, pkcs1),
                 shows(pem_of_pfx, passphrase=given), shows(joined_file(ec.key, ec.pem)), shows(ec.pem, sec1), shows(old)]
    path, _ = t.config([webhook('https://localhost:1/%d' % number, one) for number, one in enumerate(good_ones)])
    done = t.run('--check', path)
    t.equal('what --check shows', re.findall(r'(?m)^ +shows "CN=(.)", valid until (\S+)$', done.stdout),
            [(name, '2021-02-03' if name == 'o' else '2049-12-31') for name in 'rerereeeo'])
    t.equal('exit code and warnings', (done.returncode, re.findall('warning: (.*)', done.stderr)),
            (0, ['cert.clientCert: the certificate in %s has expired' % old.full_pem]))
    line = int(re.search(r':(\d+):\d+: warning', done.stderr)[1])
    t.check('its place', 'clientCert:' in t.read(path).splitlines()[line - 1], done.stderr)
    bad = [(shows(ec.pem, pkcs8), pkcs8, 'is encrypted, and cert.passphrase is missing or wrong'),
           (shows(ec.pem, pkcs8, 'wr0ng'), pkcs8, 'cert.passphrase is (missing or )?wrong'),
           (shows(pem_of_pfx, passphrase='wr0ng'), pem_of_pfx, 'cert.passphrase is (missing or )?wrong'),
           (shows(rsa.pem, traditional, given), traditional, 'in an old way.*openssl pkcs8 -topk8'),
           (shows(rsa.pem, pbes1, given), pbes1, 'in an old way.*openssl pkcs8 -topk8'),
           (shows(pfx, passphrase=given), pfx, 'no PEM certificate; .*openssl pkcs12 -in'),
           (shows(ec.pem, pfx, given), pfx, 'no PEM private key; .*openssl pkcs12 -in'),
           (shows(cer, ec.key), cer, 'no PEM certificate; .*openssl x509 -inform der'),
           (shows(ec.pem, der), der, 'no PEM private key'),
           (shows(rsa.pem, cut), cut, 'is damaged'),
           (shows(rsa.pem, ec.key), ec.key, 'does not belong to the first certificate'),
           (shows(ec.pem, client('other').key), '.key', 'does not belong to the first certificate'),
           (shows(joined_file(good('B').pem, ec.pem, ec.key)), '.pem', 'does not belong to the first certificate')]
    path, _ = t.config([webhook('https://localhost:1/%d' % number, one) for number, (one, *_) in enumerate(bad)])
    done = t.run(path)
    errors = done.stderr.splitlines()
    t.equal('exit code and errors', (done.returncode, len(errors)), (2, len(bad)))
    for error, (section, file, text) in zip(errors, bad):
        key = 'clientKey' if section.get('clientKey', '').endswith(file) else 'clientCert'
        t.check(text, re.search(r':\d+:\d+: error: cert\.%s: .*%s: .*%s' % (key, re.escape(file), text), error), error)
    t.check('no passphrase is told', not re.search('S3cret|wr0ng', done.stderr), done.stderr)


@pytest.mark.parametrize('protocol', ('TLSv1.2', 'TLSv1.3'))
def test_client(t, protocol):
    """nginx lets in who has a client certificate of its CA, and answers 400 to all others."""
    port = t.port()
    nginx = t.add(Nginx(t, nginx_tls(port, good(), 'ssl_verify_client on; ssl_verify_depth 2; ssl_client_certificate %s;'
                                     'keepalive_requests 1;' % root().pem, protocol)))
    ours = [client('ec'), client('rsa', key='rsa2048'), client('p384', key='P-384'), client('chained', intermediate())]
    others = [client('expired', end='20210203000000Z'), client('stranger', root('B'))]
    sections = [shows(one) for one in ours + others] + [root()]
    program = start(t, *[webhook('https://localhost:%d/%d' % (port, number), section) for number, section in enumerate(sections)])
    says(t, program, ' warn: .*clientCert: .* has expired')
    for number in (1, 2):       # the second one in a session of the first
        send(program)
        for place in range(1, len(ours) + 1):
            says(t, program, words.delivered('failure %d' % place, number, AT_ONCE))
        for place in range(len(ours) + 1, len(sections) + 1):
            says(t, program, words.given_up('failure %d' % place, number, '400'))
    rows = nginx.wait(2 * len(sections))
    t.equal('who was let in', sorted(row['client'] for row in rows if row['status'] == 200),
            sorted('CN=' + name for name in ('ec', 'rsa', 'p384', 'chained') * 2))
    t.equal('sessions', {row['reused'] for row in rows if row['status'] == 200}, {'.', 'r'})


def test_client_redirect(t):
    """A client certificate goes to no other port of the same host."""
    other = t.receiver(OK, ssl_context=good().context())
    server = t.receiver(harness.response(307, b'', [('Location', other.url())]), ssl_context=good().context())
    program = start(t, webhook(server.url(), shows(client('c'))), webhook(server.url(), root()))
    send(program)
    says(t, program, words.given_up('failure 1', 1, 'status 307, not followed: .*port'))
    says(t, program, words.delivered('failure 2', 1))
    t.equal('requests there', len(other.requests), 1)


def test_server_name(t):
    """serverName counts in place of the URL's host: it is sent, unless it is an address, and the certificate must hold it."""
    port, local = t.port(), t.port()
    named = issue('/CN=hooks.test', root(), san='DNS:hooks.test')
    nginx = t.add(Nginx(t, nginx_tls(port, named) + nginx_tls(local, good())))
    calls = ((port, 'hooks.test'), (local, '127.0.0.1'), (port, 'other.test'), (port, '127.0.0.1'), (port, None))
    program = start(t, *[webhook('https://localhost:%d/%s' % (one, name), dict(cert(root()), serverName=name or ''))
                         for one, name in calls])
    send(program)
    for place, name in ((3, 'other.test'), (4, '127.0.0.1'), (5, 'localhost')):
        says(t, program, words.down('failure %d' % place, '.*shown by %s: it is not for this host name.*serverName' % name))
    for place in (1, 2):
        says(t, program, words.delivered('failure %d' % place, 1, AT_ONCE))
    t.equal('names', sorted(row['sni'] for row in nginx.wait(2)), ['', 'hooks.test'])


# ---- Versions, suites, groups; more than one connection to a server --------------------------------------------------


@pytest.mark.parametrize('key, shows, options', table('settings.txt'))
def test_tls(t, key, shows, options):
    server = check_call(t, good('A', key), root(), options)
    t.check('s_server shows %s' % shows, re.search(shows, server.output), server.output[-1500:])


@pytest.mark.parametrize('options, expected', (
    ('-tls1_2', True), ('-tls1_2 -no_ticket', True), ('-tls1_2 -no_ticket -no_cache', False),
    ('-tls1_3', True), ('-tls1_3 -no_ticket', True), ('-tls1_3 -num_tickets 0', False), ('-tls1_3 -num_tickets 1000', True),
    ('-tls1_3 -groups P-384', True)))
def test_tls_session(t, options, expected):
    """A connection resumes the session of the one before, however many tickets came."""
    server = t.add(OpensslServer(good(), *options.split()))
    program = start(t, webhook(server.url(), root()))
    for number in (1, 2, 3):
        deliver(t, program, number)
    reused = ['Reused session-id' in part for part in server.output.split('CIPHER is ')[1:]]
    t.equal('resumed sessions', reused, [False, expected, expected])


@both_versions
def test_tls_handshake_fails_with_session(t, version):
    """It is repeated once without the session, at once; if that fails, too, the webhook is down."""
    context = good().context(version)
    reused = []

    def connect(connection):
        if connection.number in (2, 4, 5):
            return player('read')
        connection.sock = context.wrap_socket(connection.sock, server_side=True)
        reused.append(connection.sock.session_reused)
        return None

    receiver = t.receiver(OK, on_connect=connect)
    program = start(t, webhook('https://localhost:%d/hook' % receiver.port, root()))
    for number in (1, 2):
        deliver(t, program, number)
    send(program)
    says(t, program, words.down('failure 1', words.CLOSED_IN_HANDSHAKE))
    says(t, program, words.delivered('failure 1', 3, '200 .*attempt [2-9]$'))
    t.equal('no session was used', reused, [False] * 3)
    t.equal('requests', len(receiver.requests), 3)


def test_tls_server_changes(t):
    """It has forgotten the session, or speaks another version: no trouble. An impostor gets nothing; a new certificate heals."""
    server = t.add(OpensslServer(good(), '-tls1_3'))
    program = start(t, webhook(server.url(), root()))

    def replace(certificate, *options):
        nonlocal server
        server.close()
        server = t.add(OpensslServer(certificate, *options, port=server.port))

    for number, version in enumerate(('-tls1_3', '-tls1_3', '-tls1_2', '-tls1_2', '-tls1_3'), 1):
        replace(good(), version)
        deliver(t, program, number)
    replace(good('B'))
    execution_id = send(program)
    says(t, program, words.down('failure 1', words.NOT_SIGNED))
    t.equal('the impostor got', server.requests, [])
    replace(good())
    says(t, program, words.up('failure 1'), timeout=30)
    t.equal('the alert arrives', ids_of(server.wait()), [execution_id])


# ---- What a server does after the handshake -------------------------------------------------------------------------


def player(steps):
    """A server that takes these steps, as they stand in hostile.txt, then closes; an answer of a receiver."""
    def play(sock):
        data = b''
        for step in steps.split():
            if step == 'read':
                sock.recv(65536)
            elif step == 'reset':
                harness.reset(sock)
            elif step not in ('hold', 'for_ever'):
                text, _, count = step.partition('*')
                data = bytes.fromhex(text) * int(count or 1)
                sock.sendall(data)
            while step == 'hold' and sock.recv(65536):
                pass
            while step == 'for_ever':
                sock.sendall(data)
    return play


@pytest.mark.parametrize('command, version', (('R', '-tls1_2'), ('k', '-tls1_3'), ('K', '-tls1_3')))
def test_tls_new_keys(t, command, version):
    """A server that wants to change its keys before it answers, which TLS allows at any time: the alert is sent again."""
    server = t.add(OpensslServer(good(), version, answer=lambda request, number: OK if number > 1 else command.encode() + b'\n'))
    program = start(t, webhook(server.url(), root()))
    sent = send(program)
    says(t, program, words.failed('failure 1', 1))
    says(t, program, words.delivered('failure 1', 1, r'200 in \d+ ms, attempt 2$'))
    t.equal('requests', ids_of(server.requests), [sent] * 2)


def test_tls_ticket_after_the_answer(t):
    """A ticket that comes while a connection rests is kept; the next request goes out on it. Only OpenSSL itself does that."""
    library = ctypes.CDLL(ctypes.util.find_library('ssl'))
    for name in ('TLS_server_method', 'SSL_CTX_new', 'SSL_new'):
        getattr(library, name).restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.SSL_CTX_new(ctypes.c_void_p(library.TLS_server_method())))
    library.SSL_CTX_use_certificate_chain_file(context, good().full_pem.encode())
    library.SSL_CTX_use_PrivateKey_file(context, good().key.encode(), 1)   # PEM
    library.SSL_CTX_set_num_tickets(context, ctypes.c_size_t(0))
    wanted, sent = threading.Semaphore(0), threading.Semaphore(0)

    def serve(sock):
        tls = ctypes.c_void_p(library.SSL_new(context))
        library.SSL_set_fd(tls, sock.fileno())
        room = ctypes.create_string_buffer(65536)
        while library.SSL_accept(tls) == 1 and library.SSL_read(tls, room, len(room)) > 0:
            library.SSL_write(tls, OK_KEEP, len(OK_KEEP))
            wanted.acquire()
            library.SSL_new_session_ticket(tls)
            library.SSL_do_handshake(tls)
            sent.release()

    server = t.receiver(on_connect=lambda connection: serve)
    program = start(t, webhook('https://localhost:%d/' % server.port, root()))
    for number in (1, 2, 3):
        deliver(t, program, number)
        wanted.release()
        t.require('the ticket is sent', sent.acquire(timeout=10 * harness.SLOW))
    t.equal('connections', len(server.connections), 1)


@both_versions
def test_tls_late_reader(t, version):
    """A server that begins to read after a second; session tickets, which come before, are no answer."""
    receiver = t.receiver(OK_KEEP, ssl_context=good().context(version), on_connect=lambda connection: time.sleep(1))
    receiver.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    receiver.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    program = start(t, webhook(receiver.url(), root()))
    deliver(t, program, 1, message='\x01' * 60000)
    t.equal('whole requests', [request.event().get('logMessage') for request in receiver.requests], ['\x01' * 60000])


# ---- nginx ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('protocol, key, more', (
    pytest.param('TLSv1.2', 'P-256', '', id='1_2'),
    pytest.param('TLSv1.2', 'rsa2048', 'ssl_session_tickets off; ssl_session_cache shared:one:1m;', id='1_2_session_id'),
    pytest.param('TLSv1.3', 'P-256', '', id='1_3'),
    pytest.param('TLSv1.3', 'rsa2048', 'ssl_certificate %s; ssl_certificate_key %s;', id='1_3_two_certificates')))
def test_nginx(t, protocol, key, more):
    """Six alerts over connections that serve two requests each; the sessions of the first and the second are resumed."""
    more = more % (good().full_pem, good().key) if '%' in more else more
    port = t.port()
    nginx = t.add(Nginx(t, nginx_tls(port, good('A', key), 'keepalive_requests 2;' + more, protocol, listen='http2')))
    program = start(t, webhook('https://localhost:%d/hook' % port, root()))
    for number in range(1, 7):
        deliver(t, program, number)
    rows = nginx.wait(6)
    t.equal('requests', [(row['nth'], row['reused']) for row in rows], [(1, '.'), (2, '.')] + [(1, 'r'), (2, 'r')] * 2)
    t.equal('protocol and name', {(row['protocol'], row['sni']) for row in rows}, {(protocol, 'localhost')})
    t.equal('alerts', len({row['id'] for row in rows}), 6)


def test_nginx_in_front(t):
    """
    As webhooks mostly stand: the receiver behind nginx gets a body of almost 400 KB; what nginx itself answers (400, 401,
    413) is final, also when it closes before it has read all; a password is sent as it reads it.
    """
    users = write_file(os.path.join(t.tmp, 'users'), 'goran:{PLAIN}S3cret@P\u00e4 ss/word\n')
    settings = ('auth_basic "hooks"; auth_basic_user_file %s; sub_filter_types *; sub_filter ok chunked;' % users,
                'client_max_body_size 50;', 'ssl_verify_client on; ssl_client_certificate %s;' % root().pem)
    receiver = t.receiver(harness.response(200, b'ok', [('Content-Type', 'text/plain')]))
    location = 'proxy_pass http://127.0.0.1:%d;' % receiver.port
    port, small, strict, plain = [t.port() for _ in range(4)]
    servers = [nginx_tls(one, good(), more, location=location) for one, more in zip((port, small, strict), settings)]
    t.add(Nginx(t, ''.join(servers) + 'server { listen 127.0.0.1:%d; }' % plain))
    urls = ('https://goran:S3cret%%40P%%C3%%A4%%20ss%%2Fword@localhost:%d/deep/path?x=1' % port,
            'https://goran:wrong@localhost:%d/' % port, 'http://localhost:%d/' % port, 'https://localhost:%d/' % small,
            'https://localhost:%d/' % strict, 'https://localhost:%d/' % plain)
    program = start(t, *[webhook(url, root()) for url in urls])
    message = 'line 1\r\nline 2;' + '\x01' * 65000
    for number in (1, 2):
        deliver(t, program, number, message=message)
    for place, status in ((2, '401.*credentials'), (3, '400'), (4, '413'), (5, '400')):
        says(t, program, words.given_up('failure %d' % place, 1, status))
    says(t, program, words.down('failure 6', words.NO_TLS))
    got = [(request.target, request.get('Content-Type'), request.json().get('logMessage')) for request in receiver.requests]
    t.equal('requests', got, [('/deep/path?x=1', 'application/json', message)] * 2)


# ---- --test ---------------------------------------------------------------------------------------------------------


def rows_of(text):
    """The table of --test: {number of the webhook: its row and the lines below it}."""
    return {int(row.split()[1]): row for row in re.split('(?m)^(?=failure )', text)[1:]}


def test_test(t):
    """--test tells for each kind of failure whose certificate it is, by whom, until when, and what to change."""
    turned = '\t\x01\x7f\x85\u009b31m\u2028\u202egnp%s%n\x07\x1b[2J\r\n2026-11-22T09:30:00.123Z info: fake'
    old = issue('/CN=Old Intermediate', root(), extensions=CA_EXTENSIONS, begin='20190101000000Z', end='20210203000000Z')
    kinds = (
        (good(), r' ok +200 '),
        (expired(), 'Expired Ltd', 'Test CA A', '2021-02-03', 'it has expired', 'renew'),
        (not_yet_valid(), 'CN=localhost', 'Test CA A', '2091-02-03', 'not valid yet', 'clock'),
        (other_name(), r'other\.example', 'Test CA A', '2048-02-03', 'shown by localhost', 'webhookURL'),
        (good('B'), 'CN=localhost', 'Test CA B', '2049-12-31', 'certCA'),
        (self_signed(), 'Self-made', 'issued by itself', '2049-12-31', 'certCA'),
        (chained().with_chain(), 'CN=localhost', 'Test Intermediate', '2049-12-31', 'intermediate'),
        (issue('/CN=localhost', old, san=LOCAL_NAMES), 'Old Intermediate', 'Test CA A', '2021-02-03', 'it has expired', 'renew'),
        (issue('/CN=evil' + turned, issue_root('/CN=Evil' + turned)), 'CN=evil', 'CN=Evil', '2049-12-31', 'certCA'))
    path, _ = t.config([webhook(t.add(OpensslServer(certificate)).url(), root()) for certificate, *_ in kinds])
    done = t.run('--test', path)
    t.equal('exit code', done.returncode, 1)
    rows = rows_of(done.stdout)
    for number, (_, *texts) in enumerate(kinds, 1):
        row = rows[number]
        t.check('%s is told' % texts[0], all(re.search(text, row) for text in texts), row)
        t.equal('FAILED, why, what to change', ('FAILED' in row, len(row.splitlines())), (True, 3) if number > 1 else (False, 1))
    program = t.start(path)
    send(program)
    says(t, program, words.down('failure 9', 'CN=evil'))
    for text in (program.stdout, done.stdout):
        t.check('printable', not re.search('[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]', text), text)
        t.check('no line of its own', not re.search('(?m)^2026-11-22', text), text)


def test_test_silent_server(t):
    """Servers that never answer cost their time limit once, side by side; a line comes as each call ends."""
    silent = hostile_server(t, 'hold')
    mute = t.receiver(lambda request, connection: player('hold'))
    server = t.add(OpensslServer(good()))
    path, _ = t.config([webhook('https://127.0.0.1:%d/' % silent.port, root()), webhook(mute.url())] * 5 +
                       [webhook(server.url(), root())], butlerWebhook={'timeoutSeconds': round(6 * harness.SLOW)})
    begin = time.monotonic()
    done = t.run('--test', path)
    t.check('side by side', time.monotonic() - begin < 25 * harness.SLOW)      # one after another: 60 s
    t.equal('exit code', done.returncode, 1)
    rows = rows_of(done.stdout)
    t.equal('the good one is first', list(rows)[:1], [11])
    t.check('it is ok', re.search(r'\bok\b', rows.pop(11)), done.stdout)
    late = [re.search(r'(?s)FAILED.*(no answer within|did not end in time)', row) for row in rows.values()]
    t.check('the others are late', len(late) == 10 and all(late), done.stdout)


# ---- The webhook daemon of Debian -----------------------------------------------------------------------------------

RULE = {'task': 'Nightly: Sales & "Finance" \u00c5\u00c4\u00d6; all', 'message': 'Max retries reached\nwith 100 % of line 2'}


class WebhookDaemon(Server):
    """adnanh's webhook with data/tls/hooks.json: the fields of an alert that matches a rule are appended to the file calls."""

    def __init__(self, t, certificate):
        directory = tempfile.mkdtemp(dir=t.tmp, prefix='webhook-')
        self.calls = os.path.join(directory, 'calls')
        self.port = t.port()
        hooks = read_bytes(os.path.join(DATA, 'hooks.json')).decode().replace('DIRECTORY', directory).replace('DATA', DATA)
        path = write_file(os.path.join(directory, 'hooks.json'), hooks)
        secure = ['-secure', '-cert', certificate.full_pem, '-key', certificate.key] if certificate else []
        super().__init__([need(t, 'webhook'), '-hooks', path, '-ip', '127.0.0.1', '-port', str(self.port)] + secure, directory)
        self.wait_listening(self.port)


@pytest.mark.parametrize('scheme, method, key', (
    ('http', 'POST', None), ('https', 'POST', 'P-256'), ('https', 'PUT', 'rsa2048'), ('https', 'GET', 'P-256')))
def test_hook(t, scheme, method, key):
    """An alert that matches the rule runs the command with our fields; those that do not match do not."""
    daemon = t.add(WebhookDaemon(t, key and good('A', key)))
    url = '%s://localhost:%d/hooks/%s' % (scheme, daemon.port, 'query' if method == 'GET' else 'body')
    program = start(t, webhook(url, key and root(), method=method))
    send(program, **dict(RULE, message='another message'))
    send(program, **dict(RULE, task='Another task'))
    execution_id = send(program, **RULE)
    for number in (1, 2, 3):
        says(t, program, words.delivered('failure 1', number, '200'))
    t.equal('calls', read_bytes(daemon.calls).decode().split('\0'),
            ['Qlik Sense reload failed', RULE['task'], RULE['message'], execution_id, ''])


# ---- Hostile TLS servers --------------------------------------------------------------------------------------------


def hostile_server(t, steps):
    return t.receiver(on_connect=lambda connection: player(steps))


@pytest.mark.parametrize('reason, steps', table('hostile.txt'))
def test_hostile(t, reason, steps):
    """The call fails for a reason, within the time limit (here 2 s); a good webhook beside it gets its alerts."""
    hostile = hostile_server(t, steps)
    fine = t.add(OpensslServer(good()))
    program = start(t, webhook('https://localhost:%d/' % hostile.port, root()), webhook(fine.url(), root()), binary=t.binary_test)
    send(program)
    says(t, program, words.delivered('failure 2', 1))
    says(t, program, words.down('failure 1', getattr(words, reason)))
    send(program)
    says(t, program, words.delivered('failure 2', 2))
    t.equal('it stops when told', program.stop(), 0)


@harness.early
def test_hostile_memory(t):
    """Endless bytes into 20 handshakes at once: memory stays small."""
    floods = ('160303fa0b0bffffff 00*64000 for_ever', '140303000101*500 for_ever', '1603034000 00*16384 for_ever',
              '160303000400000000*500 for_ever') * 5
    servers = [hostile_server(t, steps) for steps in floods]
    path, _ = t.config([webhook('https://localhost:%d/' % server.port, root()) for server in servers],
                       butlerWebhook={'timeoutSeconds': 4})
    program = t.start(path)
    send(program)
    for number in range(1, 21):
        says(t, program, words.down(r'failure %d\b' % number, words.TLS_FAILED), timeout=15)
    if 'asan' not in t.binary and 'tsan' not in t.binary:       # these need much memory of their own
        peak = base.status(program.pid, 'VmHWM')
        t.check('at most 24 MB at its peak', peak < 24 * 1024 + harness.SYSTEM.memory_kb, '%d kB' % peak)
