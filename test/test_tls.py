"""
TLS and trust against real servers: openssl s_server, nginx and the webhook daemon, all on loopback, and a few servers
of our own for what these never do.
"""

import ctypes
import ctypes.util
import json
import os
import re
import signal
import socket
import ssl
import struct
import tempfile
import threading
import time

import pytest

import harness
from servers import (
    ARRIVE_S, CA_EXTENSIONS, Certificate, LEAF_EXTENSIONS, LOCAL_NAMES, NOT_TRUSTED, NO_TLS, Nginx, OK, OK_KEEP,
    OpensslServer, Server, cert, certificate_directory, chained, check_failed_call, expired, good, ids_of, intermediate,
    issue, issue_root, must_say, need, nginx_plain, nginx_tls, not_yet_valid, once, openssl, other_name, read_bytes, refused,
    require_delivered, require_refused, root, says, self_signed, send, start, webhook, write_file)

# ---- The matrix of certificates and TLS settings --------------------------------------------------------------------
#
# Each row becomes a test of its own: one s_server, one webhook, one alert. `make` gives the server's certificate and
# the CA of the webhook (None: no certCA). `refused` is what the reason must match; without it the alert must arrive.


class Case:
    def __init__(self, name, make, *options, host='localhost', listen='127.0.0.1', refused=None, shows=None,
                 method='POST'):
        self.name = name
        self.make = make
        self.options = options
        self.host = host
        self.listen = listen
        self.refused = refused
        self.shows = shows          # what s_server's own output must show
        self.method = method


def run_case(t, case):
    certificate, ca = case.make()
    options = [option() if callable(option) else option for option in case.options]
    server = t.add(OpensslServer(certificate, *options, host=case.listen))
    program = start(t, webhook(server.url(host=case.host), ca, method=case.method))
    execution_id = send(program)
    if case.refused:
        require_refused(t, program, server, case.refused)
    else:
        require_delivered(t, program, server, execution_id)
    if case.shows:
        t.check('s_server shows %s' % case.shows, re.search(case.shows, server.output), repr(server.output[-1500:]))


def by_root(**options):
    """A certificate signed by root() and that root."""
    subject = options.pop('subject', '/CN=localhost')
    return lambda: (issue(subject, root(), **options), root())


def good_key(key, ca_key='P-256'):
    return lambda: (good('A' if ca_key == 'P-256' else ca_key, key) if ca_key == 'P-256'
                    else issue('/CN=localhost', root('R', ca_key), key=key, san=LOCAL_NAMES),
                    root() if ca_key == 'P-256' else root('R', ca_key))


def plain_good():
    return good(), root()


def rsa_good():
    return good('A', 'rsa2048'), root()


def case_chain_root_sent():
    return chained().with_chain(intermediate(), root()), root()


def case_chain_wrong_order():
    other = issue('/CN=Some other CA', root(), extensions=CA_EXTENSIONS)
    return chained().with_chain(other, root('B'), intermediate()), root()


def case_chain_reversed():
    """Leaf, then the intermediates from the top down: the wrong order, which OpenSSL and Node take."""
    above = root()
    for number in range(3):
        above = issue('/CN=Reversed %d of 3' % number, above, extensions=CA_EXTENSIONS)
    leaf = issue('/CN=localhost', above, san=LOCAL_NAMES)
    return leaf.with_chain(*reversed(leaf.chain)), root()


@once
def large_key(bits):
    """A key that is too large for its time to be made in the usual way: of five primes instead of two."""
    path = os.path.join(certificate_directory(), 'rsa%d.key' % bits)
    openssl('genpkey', '-algorithm', 'RSA', '-pkeyopt', 'rsa_keygen_bits:%d' % bits, '-pkeyopt', 'rsa_keygen_primes:5', '-out',
            path)
    return path


def case_rsa_8192():
    return issue('/CN=localhost', root(), key_path=large_key(8192), san=LOCAL_NAMES), root()


def case_three_intermediates():
    above = root()
    for number in range(3):
        above = issue('/CN=Intermediate %d of 3' % number, above, extensions=CA_EXTENSIONS)
    return issue('/CN=localhost', above, san=LOCAL_NAMES), root()


def case_self_signed_trusted():
    return self_signed(), self_signed()


def case_same_name_other_key():
    """The CA's name, key identifier left out, another key: only the signature tells."""
    impostor = issue_root('/O=Webhook tests/CN=Test CA A', extensions=CA_EXTENSIONS[:2])
    return issue('/CN=localhost', impostor, extensions=LEAF_EXTENSIONS[:3], san=LOCAL_NAMES), root()


def case_leaf_as_ca():
    return issue('/CN=localhost', good(), san=LOCAL_NAMES), root()


def case_path_length():
    first = issue('/CN=No CAs below me', root(), extensions=('basicConstraints = critical,CA:TRUE,pathlen:0',
                                                             'keyUsage = critical,keyCertSign,cRLSign'))
    second = issue('/CN=One too many', first, extensions=CA_EXTENSIONS)
    return issue('/CN=localhost', second, san=LOCAL_NAMES), root()


def case_ca_may_not_sign():
    above = issue('/CN=Only for CRLs', root(), extensions=('basicConstraints = critical,CA:TRUE',
                                                           'keyUsage = critical,cRLSign'))
    return issue('/CN=localhost', above, san=LOCAL_NAMES), root()


def case_expired_intermediate():
    above = issue('/CN=Expired CA', root(), extensions=CA_EXTENSIONS, begin='20190101000000Z', end='20210101000000Z')
    return issue('/CN=localhost', above, san=LOCAL_NAMES), root()


def case_expired_root():
    above = issue_root('/CN=Expired root', begin='20190101000000Z', end='20210101000000Z')
    return issue('/CN=localhost', above, san=LOCAL_NAMES), above


def case_version_1_root():
    """What `openssl x509 -req` made for years: no extensions at all."""
    above = issue_root('/CN=Old root', extensions=())
    return issue('/CN=localhost', above, extensions=LEAF_EXTENSIONS[:3], san=LOCAL_NAMES), above


def case_fake_public_root():
    """A root with the name of a public one, sent along, and no certCA."""
    fake = issue_root('/C=US/O=Internet Security Research Group/CN=ISRG Root X1', key='rsa2048')
    return issue('/CN=localhost', fake, san=LOCAL_NAMES).with_chain(fake), None


def san_with_nul():
    """subjectAltName as DER: one dNSName `localhost NUL .evil.example`."""
    name = b'localhost\0.evil.example'
    value = bytes([0x30, len(name) + 2, 0x82, len(name)]) + name
    return issue('/CN=evil.example', root(), san='DER:' + value.hex(':')), root()


@once
def many_cas():
    """A file of CAs whose names, which the server sends when it asks for a certificate, take about 12 KB."""
    names = ['/O=%s/OU=%s/CN=CA %d' % ('Organisation ' * 4, 'Unit ' * 12, number) for number in range(80)]
    return write_file(os.path.join(certificate_directory(), 'many-cas.pem'),
                      b''.join(read_bytes(issue_root(name).pem) for name in names))


def tls12(cipher, make=rsa_good):
    return Case('suite_' + cipher.replace('-', '_'), make, '-tls1_2', '-cipher', cipher,
                shows=r'CIPHER is %s\n' % cipher)


def tls13(suite):
    return Case('suite_' + suite, plain_good, '-tls1_3', '-ciphersuites', suite, shows=r'CIPHER is %s\n' % suite)


CASES = [
    # keys
    Case('key_ec_p256', plain_good),
    Case('key_ec_p384', good_key('P-384')),
    Case('key_ec_p521', good_key('P-521')),
    Case('key_rsa_2048', rsa_good),
    Case('key_rsa_3072', good_key('rsa3072')),
    Case('key_rsa_4096', good_key('rsa4096')),
    Case('key_ec_below_rsa_ca', good_key('P-256', 'rsa4096')),
    Case('key_rsa_below_rsa_ca', good_key('rsa2048', 'rsa4096')),
    Case('key_rsa_8192', case_rsa_8192, '-tls1_3', refused=NO_TLS + '.*(RSA|key|bits)'),
    Case('key_rsa_8192_1_2', case_rsa_8192, '-tls1_2', refused=NO_TLS + '.*(RSA|key|bits)'),
    Case('key_rsa_1024', by_root(key='rsa1024', san=LOCAL_NAMES), '-cipher', 'DEFAULT@SECLEVEL=0', refused=NOT_TRUSTED),
    Case('key_ed25519', by_root(key='ed25519', san=LOCAL_NAMES), refused=NO_TLS),
    Case('signature_sha384', by_root(md='sha384', san=LOCAL_NAMES)),
    Case('signature_sha512', by_root(md='sha512', san=LOCAL_NAMES)),
    Case('signature_sha1', by_root(md='sha1', san=LOCAL_NAMES), '-cipher', 'DEFAULT@SECLEVEL=0', refused=NOT_TRUSTED),

    # times
    Case('expired', lambda: (expired(), root()), refused=NOT_TRUSTED + '.*expired'),
    Case('expired_intermediate', case_expired_intermediate, refused=NOT_TRUSTED),
    Case('expired_root', case_expired_root, refused=NOT_TRUSTED),
    Case('not_yet_valid', lambda: (not_yet_valid(), root()), refused=NOT_TRUSTED),
    Case('valid_for_ever', by_root(san=LOCAL_NAMES, end='99991231235959Z')),

    # chains
    Case('self_signed', lambda: (self_signed(), root()), refused=NOT_TRUSTED),
    Case('self_signed_no_ca', lambda: (self_signed(), None), refused=NOT_TRUSTED),
    Case('self_signed_given_as_ca', case_self_signed_trusted),
    Case('unknown_ca', lambda: (good('B'), root()), refused=NOT_TRUSTED),
    Case('unknown_ca_no_certca', lambda: (good(), None), refused=NOT_TRUSTED),
    Case('chain_complete', lambda: (chained(), root())),
    Case('chain_incomplete', lambda: (chained().without_chain(), root()), refused=NOT_TRUSTED),
    Case('chain_with_root', case_chain_root_sent),
    Case('chain_with_strangers', case_chain_wrong_order),
    Case('chain_three_intermediates', case_three_intermediates),
    Case('chain_intermediate_given_as_ca', lambda: (chained().without_chain(), intermediate())),
    Case('chain_leaf_signs', case_leaf_as_ca, refused=NOT_TRUSTED),
    Case('chain_path_length', case_path_length, refused=NOT_TRUSTED),
    Case('chain_ca_may_not_sign', case_ca_may_not_sign, refused=NOT_TRUSTED),
    Case('chain_same_name_other_key', case_same_name_other_key, refused=NOT_TRUSTED),
    Case('chain_fake_public_root', case_fake_public_root, refused=NOT_TRUSTED),
    Case('root_version_1', case_version_1_root),
    Case('client_certificate_as_server', by_root(extensions=LEAF_EXTENSIONS[:2] + ('extendedKeyUsage = clientAuth',),
                                                 san=LOCAL_NAMES), refused=NOT_TRUSTED),

    # names
    Case('name_wrong', lambda: (other_name(), root()), refused=NOT_TRUSTED),
    Case('name_upper_case_in_url', plain_good, host='LOCALHOST'),
    Case('name_upper_case_in_certificate', by_root(san='DNS:LocalHost')),
    Case('name_second_of_many', by_root(san='DNS:a.example,IP:10.0.0.1,DNS:localhost,DNS:b.example')),
    Case('name_in_common_name_only', by_root()),
    Case('name_wrong_common_name_only', by_root(subject='/CN=other.example'), refused=NOT_TRUSTED),
    Case('name_common_name_does_not_count', by_root(san='DNS:other.example'), refused=NOT_TRUSTED),
    Case('name_with_nul', san_with_nul, refused=NOT_TRUSTED),
    Case('name_longer', by_root(san='DNS:localhost.evil.example,DNS:evil.localhost'), refused=NOT_TRUSTED),
    Case('name_star', by_root(subject='/CN=*', san='DNS:*'), refused=NOT_TRUSTED),
    Case('address_v4', by_root(subject='/O=By address', san='IP:127.0.0.1'), host='127.0.0.1'),
    Case('address_v6', by_root(subject='/O=By address', san='IP:::1'), host='[::1]', listen='::1'),
    Case('address_v4_wrong', by_root(san='IP:127.0.0.2,DNS:localhost'), host='127.0.0.1', refused=NOT_TRUSTED),
    Case('address_v6_wrong', by_root(san='IP:::2,IP:127.0.0.1,DNS:localhost'), host='[::1]', listen='::1',
         refused=NOT_TRUSTED),
    Case('address_as_name', by_root(subject='/O=By address', san='DNS:127.0.0.1'), host='127.0.0.1', refused=NOT_TRUSTED),
    Case('address_as_name_beside_another', by_root(san='DNS:127.0.0.1,IP:127.0.0.2'), host='127.0.0.1', refused=NOT_TRUSTED),
    Case('address_as_common_name', by_root(subject='/CN=127.0.0.1'), host='127.0.0.1', refused=NOT_TRUSTED),
    Case('address_as_text', by_root(san='email:127.0.0.1,URI:127.0.0.1'), host='127.0.0.1', refused=NOT_TRUSTED),
    Case('address_has_no_name', by_root(san='DNS:localhost'), host='127.0.0.1', refused=NOT_TRUSTED),
    Case('name_over_ipv6_only', plain_good, listen='::1'),

    # versions
    Case('version_prefers_1_3', plain_good, shows=r'CIPHER is TLS_'),
    Case('version_1_3_only', plain_good, '-tls1_3', shows=r'CIPHER is TLS_'),
    Case('version_1_2_only', plain_good, '-tls1_2', shows=r'CIPHER is ECDHE-'),
    Case('version_1_2_only_rsa', rsa_good, '-tls1_2', shows=r'CIPHER is ECDHE-'),
    Case('version_1_1_only', rsa_good, '-tls1_1', '-cipher', 'ALL@SECLEVEL=0', refused=NO_TLS),
    Case('version_1_0_only', rsa_good, '-tls1', '-cipher', 'ALL@SECLEVEL=0', refused=NO_TLS),

    # suites
    tls12('ECDHE-RSA-AES128-GCM-SHA256'), tls12('ECDHE-RSA-AES256-GCM-SHA384'), tls12('ECDHE-RSA-CHACHA20-POLY1305'),
    tls12('ECDHE-RSA-AES256-SHA384'), tls12('ECDHE-RSA-AES128-SHA256'), tls12('ECDHE-RSA-AES128-SHA'),
    tls12('ECDHE-RSA-AES256-SHA'), tls12('AES128-GCM-SHA256'), tls12('AES256-GCM-SHA384'), tls12('AES128-SHA256'),
    tls12('AES128-SHA'), tls12('AES256-SHA'),
    tls12('ECDHE-ECDSA-CHACHA20-POLY1305', plain_good), tls12('ECDHE-ECDSA-AES128-GCM-SHA256', plain_good),
    tls12('ECDHE-ECDSA-AES256-GCM-SHA384', plain_good), tls12('ECDHE-ECDSA-AES128-SHA', plain_good),
    tls12('ECDHE-ECDSA-AES256-SHA384', plain_good),
    tls13('TLS_AES_128_GCM_SHA256'), tls13('TLS_AES_256_GCM_SHA384'), tls13('TLS_CHACHA20_POLY1305_SHA256'),
    Case('suite_no_encryption', rsa_good, '-tls1_2', '-cipher', 'NULL-SHA256:ECDHE-RSA-NULL-SHA@SECLEVEL=0',
         refused=NO_TLS),
    Case('suite_no_certificate', rsa_good, '-tls1_2', '-cipher', 'ADH-AES128-GCM-SHA256:AECDH-AES128-SHA@SECLEVEL=0',
         refused=NO_TLS),

    # groups and signatures of the handshake
    Case('group_x25519_1_3', plain_good, '-tls1_3', '-groups', 'X25519'),
    Case('group_p256_1_3', plain_good, '-tls1_3', '-groups', 'P-256'),
    Case('group_p384_1_3', plain_good, '-tls1_3', '-groups', 'P-384'),
    Case('group_p521_1_3', plain_good, '-tls1_3', '-groups', 'P-521'),
    Case('group_x25519_1_2', rsa_good, '-tls1_2', '-groups', 'X25519'),
    Case('group_p256_1_2', rsa_good, '-tls1_2', '-groups', 'P-256'),
    Case('group_p384_1_2', rsa_good, '-tls1_2', '-groups', 'P-384'),
    Case('group_p521_1_2', rsa_good, '-tls1_2', '-groups', 'P-521'),
    Case('sign_rsa_pss_1_2', rsa_good, '-tls1_2', '-sigalgs', 'RSA-PSS+SHA256'),
    Case('sign_rsa_pkcs1_1_2', rsa_good, '-tls1_2', '-sigalgs', 'RSA+SHA256'),
    Case('sign_rsa_sha512_1_2', rsa_good, '-tls1_2', '-sigalgs', 'RSA+SHA512'),
    Case('sign_rsa_pss_1_3', rsa_good, '-tls1_3', '-sigalgs', 'RSA-PSS+SHA384'),

    # odd but right
    Case('client_certificate_optional_1_2', plain_good, '-tls1_2', '-verify', '1'),
    Case('client_certificate_optional_1_3', plain_good, '-tls1_3', '-verify', '1'),
    Case('small_records_1_2', good_key('rsa4096'), '-tls1_2', '-max_send_frag', '512'),
    Case('small_records_1_3', good_key('rsa4096'), '-tls1_3', '-max_send_frag', '512'),
    Case('alpn_offered_by_server', plain_good, '-alpn', 'h2'),
    Case('client_certificate_of_many_cas_1_2', plain_good, '-tls1_2', '-verify', '1', '-CAfile', many_cas),
    Case('client_certificate_of_many_cas_1_3', plain_good, '-tls1_3', '-verify', '1', '-CAfile', many_cas),
    Case('record_padding_1_3', plain_good, '-tls1_3', '-record_padding', '4096'),
    Case('no_tickets_1_3', plain_good, '-tls1_3', '-num_tickets', '0'),
    Case('many_tickets_1_3', plain_good, '-tls1_3', '-num_tickets', '20'),
    Case('no_tickets_no_cache_1_2', plain_good, '-tls1_2', '-no_ticket', '-no_cache'),
    Case('early_data_offered', plain_good, '-tls1_3', '-max_early_data', '16384', '-early_data'),
    Case('no_encrypt_then_mac', rsa_good, '-tls1_2', '-no_etm', '-cipher', 'ECDHE-RSA-AES128-SHA'),
    Case('put', plain_good, method='PUT'),
    Case('get', plain_good, method='GET'),
]


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name.lower())
def test_tls(t, case):
    run_case(t, case)


# ---- More than one connection to one server -------------------------------------------------------------------------


def resumed(server):
    """For each connection so far: did s_server resume a session?"""
    return ['Reused session-id' in part for part in server.output.split('CIPHER is ')[1:]]


def rest():
    """
    Time for a sender to read what follows the headers of an answer: an alert that comes meanwhile gets a sender of its
    own, and so a connection and a session of its own.
    """
    time.sleep(0.15 * harness.SLOW)


def check_resumption(t, expected, *options, make=plain_good):
    """Two alerts, the first connection is closed before the second: is its session resumed?"""
    certificate, ca = make()
    server = t.add(OpensslServer(certificate, *options))
    program = start(t, webhook(server.url(), ca))
    for number in (1, 2, 3):
        send(program)
        t.require('alert %d arrives' % number, len(server.wait(number)) == number, repr(program.log[-3:]))
        says(t, program, 'alert %d is delivered at once' % number,
             r'alert %d delivered to failure 1\b.*, attempt 1' % number)
        rest()
    t.equal('resumed sessions', resumed(server), [False, expected, expected])


def test_tls_resume_ticket_1_2(t):
    check_resumption(t, True, '-tls1_2')


def test_tls_resume_session_id_1_2(t):
    check_resumption(t, True, '-tls1_2', '-no_ticket')


def test_tls_resume_ticket_1_3(t):
    check_resumption(t, True, '-tls1_3')


def test_tls_resume_ticket_1_3_sha384(t):
    check_resumption(t, True, '-tls1_3', '-ciphersuites', 'TLS_AES_256_GCM_SHA384')


def test_tls_resume_stateful_1_3(t):
    check_resumption(t, True, '-tls1_3', '-no_ticket')


def test_tls_resume_after_retry_of_key_share(t):
    check_resumption(t, True, '-tls1_3', '-groups', 'P-384')


def test_tls_resume_rsa_1_2(t):
    check_resumption(t, True, '-tls1_2', make=rsa_good)


def test_tls_no_resume_without_tickets(t):
    check_resumption(t, False, '-tls1_3', '-num_tickets', '0')


def test_tls_no_resume_without_cache(t):
    check_resumption(t, False, '-tls1_2', '-no_ticket', '-no_cache')


def replace_server(t, first, certificate, *options):
    """Ends the server and starts another one on its port."""
    first.close()
    return t.add(OpensslServer(certificate, *options, port=first.port))


def check_forgotten(t, *options):
    """The server is restarted and no longer knows the session: a full handshake, no lost attempt."""
    first = t.add(OpensslServer(good(), *options))
    program = start(t, webhook(first.url(), root()))
    send(program)
    t.require('the first alert arrives', first.wait(1), repr(program.log[-3:]))
    must_say(t, program, 'and is delivered', 'alert 1 delivered')
    rest()
    second = replace_server(t, first, good(), *options)
    send(program)
    t.check('the second alert arrives', second.wait(1), repr(program.log[-3:]))
    says(t, program, 'with its first attempt', r'alert 2 delivered to failure 1\b.*, attempt 1')
    t.equal('resumed sessions', resumed(second), [False])


def test_tls_session_forgotten_1_2(t):
    check_forgotten(t, '-tls1_2')


def test_tls_session_forgotten_1_2_session_id(t):
    check_forgotten(t, '-tls1_2', '-no_ticket')


def test_tls_session_forgotten_1_3(t):
    check_forgotten(t, '-tls1_3')


def check_cut_handshakes(t, version, cut, attempt):
    """The handshakes of these connections are cut; the second alert is delivered by that attempt."""
    context = good().context()
    context.minimum_version = context.maximum_version = version
    reused = {}

    def connect(connection):
        if connection.number in cut:
            return lambda sock: sock.recv(65536) and None
        connection.sock = context.wrap_socket(connection.sock, server_side=True)
        reused[connection.number] = connection.sock.session_reused
        return None

    receiver = t.receiver(OK, on_connect=connect)
    program = start(t, webhook('https://localhost:%d/hook' % receiver.port, root()))
    send(program)
    must_say(t, program, 'the first alert is delivered', 'alert 1 delivered to failure 1')
    rest()
    send(program)
    says(t, program, 'the second one, too', r'alert 2 delivered to failure 1\b.*, attempt %s\b' % attempt)
    t.equal('the webhook was down', bool(program.lines('is down')), attempt != '1')
    t.equal('no session after that', reused, {number: False for number in reused})
    t.equal('each alert arrives once', len(receiver.requests), 2)


def test_tls_handshake_fails_with_session_1_2(t):
    """A handshake that fails when a session is offered is repeated once without it, at once."""
    check_cut_handshakes(t, ssl.TLSVersion.TLSv1_2, (2,), '1')


def test_tls_handshake_fails_with_session_1_3(t):
    check_cut_handshakes(t, ssl.TLSVersion.TLSv1_3, (2,), '1')


def test_tls_handshake_fails_without_session(t):
    """Once: if that fails, too, the webhook is down."""
    check_cut_handshakes(t, ssl.TLSVersion.TLSv1_2, (2, 3), '[2-9]')


def test_tls_session_then_other_version(t):
    """A session of TLS 1.3, then the server speaks 1.2 only, then 1.3 again."""
    server = t.add(OpensslServer(good(), '-tls1_3'))
    program = start(t, webhook(server.url(), root()))
    for number, version in enumerate(('-tls1_3', '-tls1_2', '-tls1_3'), 1):
        if number > 1:
            server = replace_server(t, server, good(), version)
        send(program)
        t.check('alert %d arrives' % number, server.wait(1), repr(program.log[-3:]))
        says(t, program, 'alert %d is delivered at once' % number,
             r'alert %d delivered to failure 1\b.*, attempt 1' % number)
        rest()


def test_tls_session_gives_no_trust(t):
    """An impostor takes over the port after a good session: it gets nothing."""
    first = t.add(OpensslServer(good()))
    program = start(t, webhook(first.url(), root()))
    send(program)
    must_say(t, program, 'the first alert is delivered', 'alert 1 delivered')
    rest()
    second = replace_server(t, first, good('B'))
    send(program)
    says(t, program, 'the impostor is refused', refused(alert=2) + NOT_TRUSTED)
    t.check('it got no request', not second.requests, repr(second.requests[:1]))


def check_session_not_shared(t, *options):
    """
    Two webhooks call the same server. One checks nothing and so has a session; the other trusts another CA and must not
    get in by that session.
    """
    server = t.add(OpensslServer(good('B'), *options))
    path, _ = t.config([webhook(server.url('/unchecked'), cert=cert(root(), reject=False)),
                        webhook(server.url('/checked'), root(), kind='aborted')], logLevel='verbose')
    program = t.start(path)
    program.expect_stderr = True
    for number in (1, 3):
        send(program)
        must_say(t, program, 'alert %d is delivered without a check' % number,
                 'alert %d delivered to failure 1' % number)
        send(program, id='/scheduler-task-aborted/')
        says(t, program, 'the checking webhook refuses, after alert %d' % number,
             r'(warn|verbose): alert \d to aborted 1: ' + NOT_TRUSTED, count=number)
    t.check('the server saw the other one alone', {request.path for request in server.requests} == {'/unchecked'},
            repr([request.path for request in server.requests]))


def test_tls_session_not_shared_1_2(t):
    check_session_not_shared(t, '-tls1_2')


def test_tls_session_not_shared_1_3(t):
    check_session_not_shared(t, '-tls1_3')


def test_tls_heals_with_new_certificate(t):
    """An expired certificate is replaced: the waiting alert arrives by itself, with its webhook-id."""
    first = t.add(OpensslServer(expired()))
    program = start(t, webhook(first.url(), root()))
    execution_id = send(program)
    must_say(t, program, 'the expired one is refused', refused() + NOT_TRUSTED)
    second = replace_server(t, first, good())
    got = second.wait(1, 20)
    t.equal('the alert arrives', ids_of(got), [execution_id])
    says(t, program, 'the log says so', r'alert 1 delivered to failure 1\b.*, attempt [2-9]')
    says(t, program, 'the webhook is up again', 'webhook failure 1 is up again')


def test_tls_hello_retry_request(t):
    """The server wants another group than the one that the client guessed: a second ClientHello, same connection."""
    for group in ('P-521', 'P-384', 'P-256', 'X25519'):
        messages = os.path.join(t.tmp, 'messages-' + group)
        server = t.add(OpensslServer(good(), '-tls1_3', '-groups', group, '-msg', '-msgfile', messages))
        program = start(t, webhook(server.url(), root()))
        execution_id = send(program)
        got = server.wait(1)
        t.equal('the alert arrives with %s' % group, ids_of(got),
                [execution_id])
        server.close()
        hellos = read_bytes(messages).count(b', ClientHello')
        if group == 'P-521':
            t.equal('%s needed a second ClientHello' % group, hellos, 2)
        else:
            t.check('%s needed one or two ClientHello' % group, hellos in (1, 2), hellos)
        program.stop()


def test_tls_server_name_is_sent(t):
    """s_server gives its right certificate only to who asks for localhost by SNI."""
    right = good()
    server = t.add(OpensslServer(other_name(), '-servername', 'localhost', '-cert2', right.pem, '-key2', right.key))
    program = start(t, webhook(server.url(), root()))
    require_delivered(t, program, server, send(program))


def test_tls_no_server_name_for_addresses(t):
    """SNI is for names (RFC 6066, 3): a URL with an address sends none, directly, by a redirect and through a proxy."""
    seen = []
    context = good().context()
    context.sni_callback = lambda sock, name, ours: seen.append(name)
    four = t.receiver(OK, ssl_context=context)
    six = t.receiver(OK, host='::1', ssl_context=context)
    urls = [four.url('/a'), four.url('/b', host='localhost'), six.url('/c')]
    for env in ({}, {'HTTPS_PROXY': 'http://127.0.0.1:%d' % t.add(Tunnel(four.port)).port}):
        seen.clear()
        program = start(t, *[webhook(url, root()) for url in urls], env=env)
        send(program)
        for place in range(1, len(urls) + 1):
            says(t, program, '%s: webhook %d is delivered' % (env, place), r'alert 1 delivered to failure %d\b' % place)
        t.equal('%s: names asked for' % env, sorted(seen, key=str), [None, None, 'localhost'])
        t.equal('%s: stops' % env, program.stop(), 0)


def test_tls_chain_in_wrong_order(t):
    """Intermediates from the top down are refused: README.md lists that among the limits."""
    certificate, ca = case_chain_reversed()
    server = t.add(OpensslServer(certificate))
    program = start(t, webhook(server.url(), ca))
    send(program)
    says(t, program, 'refused', refused('failure 1') + NOT_TRUSTED)
    readme = read_bytes(os.path.join(harness.ROOT, 'README.md')).decode()
    t.check('README.md names that limit', re.search(r'intermediate certificates in\s+order', readme))


def test_tls_chain_in_wrong_order_gives_no_trust(t):
    """Nor does the order make up for what is missing or wrong in a chain."""
    certificate, _ = case_chain_reversed()
    stranger = issue('/CN=Reversed 0 of 3', root('B'), extensions=CA_EXTENSIONS)
    chains = {'another root': (certificate, root('B')),
              'one is missing': (certificate.with_chain(certificate.chain[0], certificate.chain[2]), root()),
              'one is an impostor': (certificate.with_chain(stranger, *certificate.chain[1:]), root()),
              'the name is wrong': (issue('/CN=other', certificate.chain[-1], san='DNS:other.example')
                                    .with_chain(*certificate.chain), root())}
    servers = [t.add(OpensslServer(one)) for one, _ in chains.values()]
    program = start(t, *[webhook(server.url(), ca, description=name)
                         for server, (name, (_, ca)) in zip(servers, chains.items())])
    send(program)
    for place, (name, server) in enumerate(zip(chains, servers), 1):
        says(t, program, '%s: refused' % name, refused('failure %d' % place) + NOT_TRUSTED)
        t.check('%s: no request' % name, not server.requests)


def test_tls_large_key_also_unchecked(t):
    """A key that would cost the loop its time is refused also where nothing is checked."""
    certificate, _ = case_rsa_8192()
    server = t.add(OpensslServer(certificate))
    program = start(t, webhook(server.url(), cert=cert('', False, False)))
    program.expect_stderr = True
    send(program)
    require_refused(t, program, server, NO_TLS + '.*(RSA|key|bits)')


def test_tls_client_certificate_demanded(t):
    """A server that insists on a client certificate: the call fails, and the log says that TLS is why."""
    for version in ('-tls1_2', '-tls1_3'):
        server = t.add(OpensslServer(good(), version, '-Verify', '1'))
        program = start(t, webhook(server.url(), root()))
        send(program)
        check_failed_call(t, program, r'TLS.*client certificate', '%s: the log tells why' % version)
        t.check('%s: the server took no request' % version, not server.requests, repr(server.requests[:1]))
        program.stop()


# ---- What a TLS server can do in the middle -------------------------------------------------------------------------


def retried(t, program, server, execution_id):
    """The first request of that alert was answered badly; it comes again with the same webhook-id and is delivered."""
    requests = server.wait(2, 20)
    t.equal('the alert comes twice', [request.event().get('executionId') for request in requests], [execution_id] * 2)
    t.check('with the same webhook-id', len({request.get('webhook-id') for request in requests}) == 1,
            repr([request.get('webhook-id') for request in requests]))
    says(t, program, 'the log tells of the retry', r'warn: alert 1 to failure 1\b.*; attempt 1, next in')
    says(t, program, 'the second attempt is delivered', r'alert 1 delivered to failure 1\b.*, attempt 2')
    t.check('the webhook stays up', not program.lines('is down'), repr(program.lines('is down')))


def test_tls_renegotiation_asked(t):
    server = t.add(OpensslServer(good(), '-tls1_2', answer=lambda request, number: [b'R\n'] if number == 1 else OK))
    program = start(t, webhook(server.url(), root()))
    execution_id = send(program)
    retried(t, program, server, execution_id)
    t.check('s_server did ask', 'SSL_do_handshake ->' in server.output, server.output[-500:])


def check_key_update(t, letter):
    """TLS 1.3 lets a server change its keys at any time. Before the answer: it must arrive, be it with a retry."""
    server = t.add(OpensslServer(good(), '-tls1_3', answer=lambda request, number: [letter + b'\n', OK] if number == 1
                                 else OK))
    program = start(t, webhook(server.url(), root()))
    execution_id = send(program)
    says(t, program, 'the alert is delivered', r'alert 1 delivered to failure 1\b', 20)
    t.equal('it is one alert with one webhook-id',
            {(request.event().get('executionId'), request.get('webhook-id')) for request in server.requests},
            {(execution_id, server.requests[0].get('webhook-id'))})


def test_tls_key_update(t):
    check_key_update(t, b'k')


def test_tls_key_update_requested(t):
    check_key_update(t, b'K')


class MemoryTls:
    """
    The server's side of one TLS connection whose records go through our hands, so that a test can break them. `answer`
    functions of a Receiver get the plain socket, and this does the rest.
    """

    def __init__(self, sock, context):
        self.sock = sock
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self._until_done(self.tls.do_handshake)

    def _flush(self):
        data = self.outgoing.read()
        if data:
            self.sock.sendall(data)

    def _until_done(self, step, *args):
        while True:
            try:
                result = step(*args)
                self._flush()
                return result
            except ssl.SSLWantReadError:
                self._flush()
                data = self.sock.recv(65536)
                if not data:
                    raise ConnectionError('closed by the peer')
                self.incoming.write(data)

    def read_request(self):
        data = b''
        while True:
            data += self._until_done(self.tls.read, 65536)
            head, blank, body = data.partition(b'\r\n\r\n')
            length = re.search(rb'(?i)\r\ncontent-length: (\d+)', head)
            if blank and len(body) >= int(length.group(1) if length else 0):
                lines = head.decode('latin-1').split('\r\n')
                headers = [tuple(part.strip() for part in line.split(':', 1)) for line in lines[1:]]
                return harness.Request(data, lines[0], headers, body, 0)

    def write(self, data):
        self._until_done(self.tls.write, data)

    def send_alert(self):
        """Our TLS finds a broken record and tells the peer so, with a fatal alert."""
        self.incoming.write(b'\x17\x03\x03\x00\x40' + bytes(64))
        try:
            self.tls.read(1)
        except ssl.SSLError:
            self._flush()

    def close_notify(self):
        try:
            self.tls.unwrap()
        except ssl.SSLError:
            pass
        self._flush()


class Breaker:
    """
    A TLS server of ours on memory BIOs: play(tls, request, number) answers each request; then the connection is closed
    without close_notify. Has the requests and wait() of a Receiver.
    """

    def __init__(self, certificate, play, version=None):
        self.play = play
        self.context = certificate.context()
        if version:
            self.context.minimum_version = self.context.maximum_version = version
        self.requests = []
        self._changed = threading.Condition()
        self._receiver = harness.Receiver(on_connect=lambda connection: self._serve)
        self.port = self._receiver.port

    def url(self, path='/hook'):
        return 'https://localhost:%d%s' % (self.port, path)

    def _serve(self, sock):
        tls = MemoryTls(sock, self.context)
        request = tls.read_request()
        with self._changed:
            self.requests.append(request)
            number = len(self.requests)
            self._changed.notify_all()
        self.play(tls, request, number)

    def wait(self, count=1, timeout=ARRIVE_S):
        with self._changed:
            self._changed.wait_for(lambda: len(self.requests) >= count, timeout * harness.SLOW)
            return list(self.requests)

    def close(self):
        self._receiver.close()


VERSIONS = (('1.2', ssl.TLSVersion.TLSv1_2), ('1.3', ssl.TLSVersion.TLSv1_3))


def first_then_ok(first):
    """A play: the first request gets first(tls), the others a proper answer."""
    def play(tls, request, number):
        if number == 1:
            first(tls)
        else:
            tls.write(OK)
            tls.close_notify()
    return play


def check_broken_headers(t, first, version):
    server = t.add(Breaker(good(), first_then_ok(first), version))
    program = start(t, webhook(server.url(), root()))
    retried(t, program, server, send(program))


def alert_in_headers(tls):
    tls.write(b'HTTP/1.1 200 OK\r\nContent-Le')
    tls.send_alert()


def alert_before_answer(tls):
    tls.send_alert()


def test_tls_alert_in_headers_1_2(t):
    check_broken_headers(t, alert_in_headers, ssl.TLSVersion.TLSv1_2)


def test_tls_alert_in_headers_1_3(t):
    check_broken_headers(t, alert_in_headers, ssl.TLSVersion.TLSv1_3)


def test_tls_alert_before_answer_1_2(t):
    check_broken_headers(t, alert_before_answer, ssl.TLSVersion.TLSv1_2)


def test_tls_alert_before_answer_1_3(t):
    check_broken_headers(t, alert_before_answer, ssl.TLSVersion.TLSv1_3)


def test_tls_truncated_headers(t):
    check_broken_headers(t, lambda tls: tls.write(b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n'), None)


def test_tls_close_notify_before_answer(t):
    check_broken_headers(t, lambda tls: tls.close_notify(), None)


def test_tls_garbage_record_in_answer(t):
    def garbage(tls):
        tls.write(b'HTTP/1.1 200 OK\r\n')
        tls.sock.sendall(b'\x17\x03\x03\x00\x40' + b'\xa5' * 64)
        time.sleep(0.2)
    check_broken_headers(t, garbage, None)


def test_tls_plain_text_in_answer(t):
    def plain(tls):
        tls.sock.sendall(OK)
        time.sleep(0.2)
    check_broken_headers(t, plain, None)


def check_delivered_once(t, play):
    """
    Delivered by its first attempt, whatever comes after the headers; then a second alert on a new connection.
    """
    for name, version in VERSIONS:
        server = t.add(Breaker(good(), play, version))
        program = start(t, webhook(server.url(), root()))
        execution_ids = []
        for number in (1, 2):
            execution_ids.append(send(program))
            says(t, program, 'TLS %s: alert %d is delivered by its first attempt' % (name, number),
                 r'alert %d delivered to failure 1\b.*, attempt 1' % number)
        program.stop()
        t.equal('TLS %s: each arrives once' % name, ids_of(server.requests), execution_ids)


def test_tls_no_close_notify_after_whole_answer(t):
    check_delivered_once(t, lambda tls, request, number: tls.write(OK))


def test_tls_no_close_notify_on_kept_connection(t):
    check_delivered_once(t, lambda tls, request, number: tls.write(OK_KEEP))


def test_tls_close_notify_on_kept_connection(t):
    def play(tls, request, number):
        tls.write(OK_KEEP)
        tls.close_notify()
    check_delivered_once(t, play)


def test_tls_no_close_notify_ends_body(t):
    """No length: the end of the connection ends the body. Delivered, with or without a warning about the end."""
    check_delivered_once(t, lambda tls, request, number: tls.write(b'HTTP/1.1 200 OK\r\n\r\nhello'))


def test_tls_alert_in_body(t):
    def play(tls, request, number):
        tls.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf')
        tls.send_alert()
    check_delivered_once(t, play)


def test_tls_truncated_body(t):
    def play(tls, request, number):
        tls.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf')
    check_delivered_once(t, play)


class LateTickets:
    """A TLS 1.3 server by OpenSSL's own library: Python's sends tickets before an answer only, this one later."""

    def __init__(self, certificate):
        self._lib = ctypes.CDLL(ctypes.util.find_library('ssl'))
        for name in ('TLS_server_method', 'SSL_CTX_new', 'SSL_new'):
            getattr(self._lib, name).restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._lib.SSL_CTX_new(ctypes.c_void_p(self._lib.TLS_server_method())))
        self._lib.SSL_CTX_use_certificate_chain_file(self._context, certificate.full_pem.encode())
        self._lib.SSL_CTX_use_PrivateKey_file(self._context, certificate.key.encode(), 1)   # PEM
        self._lib.SSL_CTX_set_num_tickets(self._context, ctypes.c_size_t(0))
        self._receiver = harness.Receiver(on_connect=lambda connection: self._serve)
        self.close = self._receiver.close
        self.connections = self._receiver.connections
        self.answers = 0

    def url(self):
        return 'https://localhost:%d/' % self._receiver.port

    def _serve(self, sock):
        sock.setblocking(True)
        tls = ctypes.c_void_p(self._lib.SSL_new(self._context))
        self._lib.SSL_set_fd(tls, sock.fileno())
        room = ctypes.create_string_buffer(65536)
        while self._lib.SSL_accept(tls) == 1 and self._lib.SSL_read(tls, room, len(room)) > 0:
            self._lib.SSL_write(tls, OK_KEEP, len(OK_KEEP))
            self.answers += 1
            time.sleep(0.1)
            self._lib.SSL_new_session_ticket(tls)
            self._lib.SSL_do_handshake(tls)


def test_tls_ticket_after_the_answer(t):
    """A ticket that comes while the connection rests holds the next request on it up no longer than any other."""
    server = t.add(LateTickets(good()))
    program = start(t, webhook(server.url(), root()))
    for number in (1, 2, 3):
        send(program)
        says(t, program, 'alert %d is delivered at once' % number,
             r'alert %d delivered to failure 1\b.*: 200 in \d+ ms, attempt 1' % number)
        time.sleep(0.3 * harness.SLOW)
    t.equal('all on one connection', (server.answers, len(server.connections)), (3, 1))


def test_tls_endless_body(t):
    """A body without end is left after a while; the next alert goes out on a new connection."""
    def play(tls, request, number):
        tls.write(b'HTTP/1.1 200 OK\r\n\r\n')
        while True:
            tls.write(b'more of it ' * 1000)
    check_delivered_once(t, play)


def test_tls_answer_before_end_of_connection_by_reset(t):
    def play(tls, request, number):
        tls.write(OK_KEEP)
        time.sleep(0.3)
        harness.reset(tls.sock)
    check_delivered_once(t, play)


def test_tls_answer_in_many_records(t):
    def play(tls, request, number):
        for byte in OK:
            tls.write(bytes([byte]))
    check_delivered_once(t, play)


class Relay:
    """Passes a TCP connection on to a server, the server's bytes one at a time."""

    def __init__(self, port, pause=0.0):
        self.target = port
        self.pause = pause
        self._receiver = harness.Receiver(on_connect=lambda connection: self._serve)
        self.port = self._receiver.port

    def _serve(self, sock):
        with socket.create_connection(('127.0.0.1', self.target)) as server:
            up = threading.Thread(target=self._up, args=(sock, server), daemon=True)
            up.start()
            try:
                for data in iter(lambda: server.recv(65536), b''):
                    for byte in data:
                        sock.sendall(bytes([byte]))
                        if self.pause:
                            time.sleep(self.pause)
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            up.join(2)

    @staticmethod
    def _up(sock, server):
        try:
            for data in iter(lambda: sock.recv(65536), b''):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self):
        self._receiver.close()


def test_tls_byte_by_byte(t):
    for version in ('-tls1_2', '-tls1_3'):
        server = t.add(OpensslServer(rsa_good()[0], version))
        relay = t.add(Relay(server.port))
        program = start(t, webhook('https://localhost:%d/hook' % relay.port, root()))
        require_delivered(t, program, server, send(program))
        program.stop()


def test_tls_www_page(t):
    """s_server's own status page: HTTP/1.0, no length, ended by close."""
    for version in ('-tls1_2', '-tls1_3'):
        server = t.add(OpensslServer(good(), version, '-www'))
        program = start(t, webhook(server.url('/'), root(), method='GET'))
        for number in (1, 2):
            send(program)
            says(t, program, '%s: alert %d is delivered' % (version, number),
                 r'alert %d delivered to failure 1\b.*: 200 in' % number)
        program.stop()


# ---- The wrong protocol on a port -----------------------------------------------------------------------------------

BAD_REQUEST = harness.response(400, b'what?', reason='Bad Request', close=True)


def test_tls_https_to_plain_http(t):
    receiver = t.receiver(on_connect=lambda connection: after_hello(BAD_REQUEST, lambda sock: None))
    program = start(t, webhook('https://127.0.0.1:%d/hook' % receiver.port, root()))
    send(program)
    check_failed_call(t, program, 'what answers there does not speak TLS')
    says(t, program, 'the webhook is down', 'webhook failure 1 is down', 2)
    t.check('no request was made', not receiver.requests)


def test_tls_https_to_nginx_http(t):
    port = t.port()
    nginx = t.add(Nginx(t, nginx_plain(port)))
    program = start(t, webhook('https://localhost:%d/hook' % port, root()))
    send(program)
    check_failed_call(t, program, 'what answers there does not speak TLS')
    t.equal('nginx took it for a bad request', {row['status'] for row in nginx.wait(1)}, {400})


def test_tls_http_to_nginx_https(t):
    """nginx answers 400 in plain text: that is final."""
    port = t.port()
    t.add(Nginx(t, nginx_tls(port, good())))
    program = start(t, webhook('http://localhost:%d/hook' % port))
    send(program)
    says(t, program, 'dead letter', r'error: alert 1 given up for failure 1\b.*after 1 attempt.*400')


def test_tls_http_to_s_server(t):
    """s_server answers with a TLS alert or just closes: retried."""
    server = t.add(OpensslServer(good()))
    program = start(t, webhook('http://localhost:%d/hook' % server.port))
    send(program)
    says(t, program, 'retried', r'warn: alert 1 to failure 1\b.*; attempt 1, next in')
    t.check('not given up', not program.lines('given up|delivered'), repr(program.log[-3:]))


def test_tls_alert_record_on_plain_port(t):
    receiver = t.receiver(answer=b'\x15\x03\x01\x00\x02\x02\x46Connection: close\r\n\r\n')
    program = start(t, webhook(receiver.url('/hook')))
    send(program)
    check_failed_call(t, program, 'not HTTP')


# ---- nginx ----------------------------------------------------------------------------------------------------------


def deliver_many(t, program, count, **fields):
    """Sends alerts one after another, each when the one before was delivered; returns their executionIds."""
    execution_ids = []
    for number in range(1, count + 1):
        execution_ids.append(send(program, **fields))
        must_say(t, program, 'alert %d is delivered at once' % number,
                 r'alert %d delivered to failure 1\b.*, attempt 1' % number)
        rest()
    return execution_ids


def check_one_connection(t, rows, count):
    t.equal('nginx served', [row['status'] for row in rows], [200] * count)
    t.equal('all on one connection', (len({row['connection'] for row in rows}), [row['nth'] for row in rows]),
            (1, list(range(1, count + 1))))


def test_nginx_http_keep_alive(t):
    for method in ('POST', 'PUT', 'GET'):
        port = t.port()
        nginx = t.add(Nginx(t, nginx_plain(port)))
        program = start(t, webhook('http://localhost:%d/hook' % port, method=method))
        deliver_many(t, program, 5)
        check_one_connection(t, nginx.wait(5), 5)
        program.stop()


def check_nginx_tls(t, protocols, protocol, key='P-256', more=''):
    port = t.port()
    nginx = t.add(Nginx(t, nginx_tls(port, good('A', key), more, protocols)))
    program = start(t, webhook('https://localhost:%d/hook' % port, root()))
    deliver_many(t, program, 5)
    rows = nginx.wait(5)
    check_one_connection(t, rows, 5)
    t.equal('protocol and server name', {(row['protocol'], row['sni']) for row in rows}, {(protocol, 'localhost')})


def test_nginx_tls_1_2_only(t):
    check_nginx_tls(t, 'TLSv1.2', 'TLSv1.2')


def test_nginx_tls_1_2_only_rsa(t):
    check_nginx_tls(t, 'TLSv1.2', 'TLSv1.2', 'rsa2048')


def test_nginx_tls_1_3_only(t):
    check_nginx_tls(t, 'TLSv1.3', 'TLSv1.3')


def test_nginx_tls_1_3_only_rsa(t):
    check_nginx_tls(t, 'TLSv1.3', 'TLSv1.3', 'rsa2048')


def test_nginx_tls_both(t):
    check_nginx_tls(t, 'TLSv1.2 TLSv1.3', 'TLSv1.3')


def test_nginx_two_certificates(t):
    """RSA and EC on one port, as big sites have it."""
    rsa = good('A', 'rsa2048')
    more = 'ssl_certificate %s; ssl_certificate_key %s;' % (rsa.full_pem, rsa.key)
    for protocols in ('TLSv1.2', 'TLSv1.3'):
        check_nginx_tls(t, protocols, protocols, more=more)


def test_nginx_http2_on_port(t):
    """A port that also speaks HTTP/2 must go on in HTTP/1.1 with us."""
    port = t.port()
    nginx = t.add(Nginx(t, nginx_tls(port, good(), listen='http2')))
    program = start(t, webhook('https://localhost:%d/hook' % port, root()))
    deliver_many(t, program, 3)
    check_one_connection(t, nginx.wait(3), 3)


def check_nginx_resumption(t, protocols, more, expected):
    port = t.port()
    nginx = t.add(Nginx(t, nginx_tls(port, good(), more + ' keepalive_timeout 0;', protocols)))
    program = start(t, webhook('https://localhost:%d/hook' % port, root()))
    deliver_many(t, program, 3)
    rows = nginx.wait(3)
    t.equal('three connections', len({row['connection'] for row in rows}), 3)
    t.equal('resumed', [row['reused'] for row in rows], ['.', expected, expected])


def test_nginx_resume_tickets_1_2(t):
    check_nginx_resumption(t, 'TLSv1.2', 'ssl_session_tickets on;', 'r')


def test_nginx_resume_session_id_1_2(t):
    check_nginx_resumption(t, 'TLSv1.2', 'ssl_session_tickets off; ssl_session_cache shared:one:1m;', 'r')


def test_nginx_resume_tickets_1_3(t):
    check_nginx_resumption(t, 'TLSv1.3', 'ssl_session_tickets on;', 'r')


def test_nginx_no_resumption(t):
    check_nginx_resumption(t, 'TLSv1.2', 'ssl_session_tickets off; ssl_session_cache off;', '.')


CHUNKED_BACKEND = '''server {
    listen 127.0.0.1:%d;
    location / { return 200 "chunked answer chunked answer"; }
}
'''


def test_nginx_chunked(t):
    """A filter that changes the body's length makes nginx answer in chunks."""
    for certificate in (None, good()):
        backend, port = t.port(), t.port()
        location = 'proxy_pass http://127.0.0.1:%d; sub_filter_types *; sub_filter chunked bunched; ' % backend
        front = nginx_tls(port, certificate, location=location) if certificate else nginx_plain(port, location=location)
        nginx = t.add(Nginx(t, CHUNKED_BACKEND % backend + front))
        program = start(t, webhook('%s://localhost:%d/hook' % ('https' if certificate else 'http', port), root()))
        deliver_many(t, program, 4)
        check_one_connection(t, nginx.wait(4, port), 4)
        t.check('no answer was called broken', not program.lines('broken'), repr(program.lines('broken')))
        program.stop()


def test_nginx_proxy_to_backend(t):
    """nginx in front of the receiver, as webhooks mostly stand: the body and our headers come through whole."""
    receiver = t.receiver()
    port = t.port()
    nginx = t.add(Nginx(t, nginx_tls(port, good(), location='proxy_pass http://127.0.0.1:%d;' % receiver.port)))
    program = start(t, webhook('https://localhost:%d/deep/path?x=1' % port, root()))
    execution_id = send(program, task='Räksmörgås "quoted"', message='line 1\r\nline 2;end')
    request = (receiver.wait(1) or [None])[0]
    t.require('the request arrives', request, repr(program.log[-3:]))
    event = request.json()
    t.equal('fields', (event.get('executionId'), event.get('taskName'), event.get('logMessage')),
            (execution_id, 'Räksmörgås "quoted"', 'line 1\r\nline 2;end'))
    t.equal('target', request.target, '/deep/path?x=1')
    t.equal('content type', request.get('Content-Type'), 'application/json')
    t.check('webhook-id and webhook-timestamp', request.get('webhook-id', '').startswith('msg_') and
            request.get('webhook-timestamp', '').isdigit(), repr(request.headers))
    rows = nginx.wait(1)
    t.equal('nginx saw the same bytes', [json.loads(row['body']) for row in rows], [event])


def test_nginx_backend_dead(t):
    """502 from the front: retried until the backend is there."""
    backend, port = t.port(), t.port()
    nginx = t.add(Nginx(t, nginx_tls(port, good(), location='proxy_pass http://127.0.0.1:%d;' % backend)))
    program = start(t, webhook('https://localhost:%d/hook' % port, root()))
    execution_id = send(program)
    must_say(t, program, 'the first attempt gets 502', r'warn: alert 1 to failure 1\b.*status 502')
    receiver = t.receiver(port=backend)
    got = receiver.wait(1, 20)
    t.equal('the alert arrives', ids_of(got), [execution_id])
    says(t, program, 'delivered', r'alert 1 delivered to failure 1\b.*, attempt [2-9]')
    t.equal('one webhook-id', len({row['id'] for row in nginx.requests()}), 1)


def big_datagram(execution_id, fill):
    """A datagram of exactly 65,507 bytes."""
    start_of_it = harness.datagram(execution_id=execution_id, message='')
    return start_of_it + (fill * 65507)[:65507 - len(start_of_it)]


def check_big_body(t, scheme, fill, more='client_max_body_size 1m;'):
    backend, port = t.port(), t.port()
    location = 'proxy_pass http://127.0.0.1:%d;' % backend
    front = nginx_tls(port, good(), more, location=location) if scheme == 'https' else nginx_plain(port, more, location)
    nginx = t.add(Nginx(t, nginx_plain(backend, more) + front))
    program = start(t, webhook('%s://localhost:%d/hook' % (scheme, port), root()))
    sent = big_datagram(harness.guid(), fill)
    program.send(sent)
    t.require('delivered', program.wait_log(r'alert 1 delivered to failure 1\b.*: 200'), repr(program.log[-3:])[:1000])
    body = json.loads(nginx.wait(1, port)[0]['body'])
    want = sent.decode('utf-8', 'surrogateescape').split(';', 10)[10]
    t.check('the message is whole', body['logMessage'] == want,
            '%d characters, wanted %d' % (len(body['logMessage']), len(want)))


def test_nginx_big_body_http(t):
    check_big_body(t, 'http', b'0123456789 text ')


def test_nginx_big_body_https(t):
    check_big_body(t, 'https', b'0123456789 text ')


def test_nginx_big_body_https_escaped(t):
    """Every byte of the message becomes six in JSON: a body of almost 400 KB."""
    check_big_body(t, 'https', b'\x01')


def check_late_reader(t, version):
    """The server reads only after a second: until then it is not the body's turn, but neither is it an answer's."""
    context = good().context()
    context.minimum_version = context.maximum_version = version
    receiver = t.receiver(OK_KEEP, ssl_context=context, on_connect=lambda connection: time.sleep(1))
    receiver.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    receiver.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    program = start(t, webhook(receiver.url('/hook'), root()))
    message = '\x01' * 60000
    execution_id = send(program, message=message)
    says(t, program, 'delivered at the first attempt', r'alert 1 delivered to failure 1\b.*: 200 in \d+ ms, attempt 1\b',
         timeout=30)
    t.equal('requests', ids_of(receiver.requests), [execution_id])
    t.equal('connections', len(receiver.connections), 1)
    t.check('the message is whole', all(request.event().get('logMessage') == message for request in receiver.requests))
    t.equal('errors of the server', receiver.errors, [])


def test_tls_late_reader_1_2(t):
    check_late_reader(t, ssl.TLSVersion.TLSv1_2)


def test_tls_late_reader_1_3(t):
    """Here session tickets come before the server reads: something to read that is no answer."""
    check_late_reader(t, ssl.TLSVersion.TLSv1_3)


def test_nginx_body_too_large(t):
    """413 is final: a dead letter that says so, also when nginx closes before it has read the body."""
    for scheme in ('http', 'https'):
        for size in (100, 60000):
            port = t.port()
            more = 'client_max_body_size 50;'
            t.add(Nginx(t, nginx_tls(port, good(), more) if scheme == 'https' else nginx_plain(port, more)))
            program = start(t, webhook('%s://localhost:%d/hook' % (scheme, port), root()))
            send(program, message='x' * size)
            says(t, program, '%s, %d bytes: dead letter' % (scheme, size),
                 r'error: alert 1 given up for failure 1\b.*after 1 attempt.*status 413')
            program.stop()


def check_stale(t, scheme):
    """
    nginx closes a connection after a second without requests. Alerts that come just then arrive all the same, by their
    first attempt; if one arrives twice, then with one webhook-id.
    """
    port = t.port()
    more = 'keepalive_timeout 1s;'
    nginx = t.add(Nginx(t, nginx_tls(port, good(), more) if scheme == 'https' else nginx_plain(port, more)))
    program = start(t, webhook('%s://localhost:%d/hook' % (scheme, port), root()))
    for number, pause in enumerate((0.9, 0.99, 0.999, 1.0, 1.001, 1.01, 1.05, 1.2, 0), 1):
        send(program)
        says(t, program, 'alert %d is delivered at once' % number,
             r'alert %d delivered to failure 1\b.*, attempt 1' % number)
        time.sleep(pause)
    rows = nginx.wait(9)
    t.check('nginx answered all', len(rows) >= 9 and all(row['status'] == 200 for row in rows), repr(rows)[:500])
    t.equal('nine alerts', len({row['id'] for row in rows}), 9)
    t.check('on more than one connection', len({row['connection'] for row in rows}) > 1, repr(rows)[:500])
    t.check('nothing was retried', not program.lines('next in'), repr(program.lines('next in')))


@harness.early
def test_nginx_stale_connection_http(t):
    check_stale(t, 'http')


@harness.early
def test_nginx_stale_connection_https(t):
    check_stale(t, 'https')


def test_nginx_keepalive_requests(t):
    """nginx ends a connection after two requests, and says so in the second answer."""
    port = t.port()
    nginx = t.add(Nginx(t, nginx_tls(port, good(), 'keepalive_requests 2;')))
    program = start(t, webhook('https://localhost:%d/hook' % port, root()))
    deliver_many(t, program, 6)
    rows = nginx.wait(6)
    t.equal('requests of a connection', [row['nth'] for row in rows], [1, 2] * 3)
    t.equal('each arrives once', len({row['id'] for row in rows}), len(rows))


def test_nginx_reload(t):
    """nginx -s reload while a connection is kept: it is closed, and the next alert arrives."""
    port = t.port()
    nginx = t.add(Nginx(t, nginx_tls(port, good())))
    program = start(t, webhook('https://localhost:%d/hook' % port, root()))
    for number in (1, 2, 3):
        send(program)
        says(t, program, 'alert %d is delivered at once' % number,
             r'alert %d delivered to failure 1\b.*, attempt 1' % number)
        os.kill(nginx.pid, signal.SIGHUP)
        time.sleep(0.5)
    t.equal('three alerts', len({row['id'] for row in nginx.wait(3)}), 3)


def test_nginx_many_at_once(t):
    """A burst over TLS: all arrive, each once, over at most four connections."""
    port = t.port()
    nginx = t.add(Nginx(t, nginx_tls(port, good())))
    program = start(t, webhook('https://localhost:%d/hook' % port, root()))
    for _ in range(200):
        send(program)
    rows = nginx.wait(200, timeout=20)
    t.equal('each arrives once', (len(rows), len({row['id'] for row in rows})), (200, 200))
    t.check('over at most four connections', len({row['connection'] for row in rows}) <= 4,
            len({row['connection'] for row in rows}))


def test_nginx_client_certificate(t):
    """Asked for and not given: optional is fine; demanded is nginx's 400, which is final."""
    for setting, expected in (('optional_no_ca', r'alert 1 delivered to failure 1\b.*: 200'),
                              ('on', r'error: alert 1 given up for failure 1\b.*after 1 attempt.*400')):
        for protocols in ('TLSv1.2', 'TLSv1.3'):
            port = t.port()
            more = 'ssl_verify_client %s; ssl_client_certificate %s;' % (setting, root().pem)
            t.add(Nginx(t, nginx_tls(port, good(), more, protocols)))
            program = start(t, webhook('https://localhost:%d/hook' % port, root()))
            send(program)
            says(t, program, '%s, %s' % (setting, protocols), expected)
            program.stop()


def test_nginx_basic_auth(t):
    """userinfo becomes Basic auth, as a real server reads it; a wrong one is a dead letter that says what to change."""
    port = t.port()
    users = write_file(os.path.join(t.tmp, 'users'), 'goran:{PLAIN}S3cret@Pä ss/word\n')
    nginx = t.add(Nginx(t, nginx_tls(port, good(), 'auth_basic "hooks"; auth_basic_user_file %s;' % users,
                                     location='try_files /none @ok;') .replace(
                                         'location / {', 'location @ok { return 200; } location / {')))
    right, wrong = 'S3cret%40P%C3%A4%20ss%2Fword', 'Wr0ng-one'
    path, _ = t.config([webhook('https://goran:%s@localhost:%d/hook' % (password, port), root(), method='GET')
                        for password in (right, wrong)], logLevel='silly')
    program = t.start(path)
    send(program)
    says(t, program, 'the right password is accepted', r'alert 1 delivered to failure 1\b.*: 200')
    says(t, program, 'the wrong one is a dead letter', r'alert 1 given up for failure 2\b.*401.*credentials')
    t.check('no password in the log', not program.lines('S3cret|Wr0ng|ss/word'), repr(program.lines('S3cret|Wr0ng')))
    t.equal('nginx saw both', sorted(row['status'] for row in nginx.wait(2)), [200, 401])


def test_nginx_redirects(t):
    """308 within nginx keeps method and body; https to http is refused."""
    port, plain = t.port(), t.port()
    more = ('location = /old { return 308 /new; } location = /down { return 307 http://localhost:%d/x; } '
            'location = /moved { return 301 /new; }' % plain)
    nginx = t.add(Nginx(t, nginx_tls(port, good(), more) + nginx_plain(plain)))
    url = 'https://localhost:%d' % port
    path, _ = t.config([webhook(url + '/old', root()), webhook(url + '/down', root()), webhook(url + '/moved', root())])
    program = t.start(path)
    send(program)
    says(t, program, '308 is followed', r'alert 1 delivered to failure 1\b.*: 200')
    says(t, program, 'https to http is refused', r'alert 1 given up for failure 2\b')
    says(t, program, '301 to a POST names the new URL', r'alert 1 given up for failure 3\b.*moved to .*/new')
    t.equal('the http port got nothing', nginx.requests(plain), [])
    t.check('/new got the POST', ('POST', '/new') in [(row['method'], row['uri']) for row in nginx.wait(4, port)],
            repr(nginx.requests(port)))


# ---- Names of our own in /etc/hosts ---------------------------------------------------------------------------------


def test_tls_wildcard(t):
    """*.hooks.test fits one label, not none and not two. The names stand in an /etc/hosts for the program alone."""
    certificate = issue('/CN=wildcard', root(), san='DNS:*.hooks.test')
    port = t.port()
    t.add(Nginx(t, nginx_tls(port, certificate)))
    names = {'a.hooks.test': True, 'B2-c.HOOKS.test': True, 'hooks.test': False, 'a.b.hooks.test': False,
             'ahooks.test': False, 'a.hooks.test.example': False, 'localhost': False}
    wrap = harness.with_files(t, {'/etc/hosts': '127.0.0.1 localhost %s\n' % ' '.join(names).lower()})
    path, _ = t.config([webhook('https://%s:%d/hook' % (name, port), root(), description=name) for name in names])
    program = t.start(path, wrap=wrap)
    send(program)
    for number, (name, fits) in enumerate(names.items(), 1):
        expected = r'alert 1 delivered to failure %d\b' if fits else refused('failure %d') + NOT_TRUSTED
        says(t, program, '%s is %s' % (name, 'accepted' if fits else 'refused'), expected % number)


@harness.unix('the roots of a Linux system; test_windows.py has those of Windows')
def test_trust_system_store(t):
    """cert.enable false: besides the built-in roots the system's store counts, where a company keeps its own CA."""
    port = t.port()
    t.add(Nginx(t, nginx_tls(port, good())))
    url = 'https://localhost:%d/hook' % port
    store = '/etc/ssl/certs/ca-certificates.crt'
    wrap = harness.with_files(t, {store: read_bytes(store) + read_bytes(root().pem)}) if os.path.exists(store) else None
    if wrap is None:
        t.skip('%s is not there: the package ca-certificates is missing' % store)
    path, _ = t.config([webhook(url), webhook(url, cert=cert(root('B'), enable=False)), webhook(url, root('B'))])
    program = t.start(path, wrap=wrap)
    send(program)
    says(t, program, 'without cert: delivered', 'alert 1 delivered to failure 1')
    says(t, program, 'enable false, another certCA: delivered', 'alert 1 delivered to failure 2')
    says(t, program, 'enable true, another certCA: refused', refused('failure 3') + NOT_TRUSTED)


# ---- Trust ----------------------------------------------------------------------------------------------------------


def test_trust_matrix(t):
    """Three CAs, three servers, nine webhooks: only where CA and server belong together does the alert arrive."""
    names = ('A', 'B', 'C')
    ports = {name: t.port() for name in names}
    nginx = t.add(Nginx(t, ''.join(nginx_tls(ports[name], good(name)) for name in names)))
    pairs = [(ca, server) for ca in names for server in names]
    path, _ = t.config([webhook('https://localhost:%d/ca-%s' % (ports[server], ca), root(ca),
                                description='CA %s, server %s' % (ca, server)) for ca, server in pairs])
    program = t.start(path)
    send(program)
    for number, (ca, server) in enumerate(pairs, 1):
        place = r'failure %d \("CA %s, server %s"\)' % (number, ca, server)
        if ca == server:
            says(t, program, 'CA %s trusts server %s' % (ca, server), 'alert 1 delivered to ' + place)
        else:
            check_failed_call(t, program, NOT_TRUSTED, 'CA %s does not trust server %s' % (ca, server),
                              place='failure %d' % number)
    t.equal('what the servers got', sorted((row['port'], row['uri']) for row in nginx.wait(3)),
            sorted((ports[name], '/ca-' + name) for name in names))


def test_trust_three_webhooks(t):
    """The same with one right CA each: all arrive, at once and side by side."""
    names = ('A', 'B', 'C')
    servers = {name: t.add(OpensslServer(good(name))) for name in names}
    path, _ = t.config([webhook(servers[name].url('/' + name), root(name)) for name in names])
    program = t.start(path)
    execution_id = send(program)
    for name in names:
        t.equal('server %s gets the alert' % name, ids_of(servers[name].wait(1)),
                [execution_id])


def ca_file(t, name, *parts):
    data = b''.join(read_bytes(part.pem) if isinstance(part, Certificate) else part for part in parts)
    return write_file(os.path.join(t.tmp, name), data)


def check_ca_files(t, files, count=None):
    """Each CA file must make the server of good() trusted; count: the number of certificates that --check tells."""
    port = t.port()
    t.add(Nginx(t, nginx_tls(port, good())))
    path, _ = t.config([webhook('https://localhost:%d/hook' % port, cert=cert(file)) for file in files])
    program = t.start(path)
    send(program)
    for number, file in enumerate(files, 1):
        says(t, program, '%s is good' % os.path.basename(file), r'alert 1 delivered to failure %d\b' % number)
    if count is not None:
        result = t.run('--check', path)
        t.check('--check counts', re.search(r'\(%d certificates?\)' % count, result.stdout), repr(result.stdout))


def test_trust_several_certificates_in_file(t):
    check_ca_files(t, [ca_file(t, 'three.pem', root('B'), root(), root('C'))], 3)


def test_trust_file_with_text(t):
    """Comments before, between and after, as tools like to write them."""
    text = b'# Our CAs, collected by hand\nSubject: someone\n\n'
    check_ca_files(t, [ca_file(t, 'text.pem', text, root('B'), b'\nand another one:\n', root(), b'\nend of file\n')], 2)


def test_trust_file_forms(t):
    """CRLF, no line end at the end of the file, a byte order mark."""
    pem = read_bytes(root().pem)
    check_ca_files(t, [ca_file(t, 'crlf.pem', pem.replace(b'\n', b'\r\n')), ca_file(t, 'no-end.pem', pem.rstrip(b'\n')),
                       ca_file(t, 'bom.pem', b'\xef\xbb\xbf' + pem)])


def test_trust_file_with_unsupported(t):
    """One certificate of a kind that TLS cannot use (Ed25519) does not spoil the others in the file."""
    directory = t.tmp
    openssl('req', '-x509', '-newkey', 'ed25519', '-nodes', '-keyout', 'ed.key', '-out', 'ed.pem', '-days', '3000',
            '-subj', '/CN=Ed25519 root', cwd=directory)
    check_ca_files(t, [ca_file(t, 'mixed.pem', read_bytes(os.path.join(directory, 'ed.pem')), root()),
                       ca_file(t, 'mixed-2.pem', root(), read_bytes(os.path.join(directory, 'ed.pem')))])


def test_trust_large_file(t):
    """A file of 200 certificates, the right one last."""
    many = [root('B'), root('C')] * 99 + [root('B'), root()]
    check_ca_files(t, [ca_file(t, 'many.pem', *many)])


def test_trust_relative_path(t):
    """certCA starts at the configuration file, wherever the program is started."""
    server = t.add(OpensslServer(good()))
    os.makedirs(os.path.join(t.tmp, 'config/ca dir'))
    write_file(os.path.join(t.tmp, 'config/ca dir/röt.pem'), read_bytes(root().pem))
    path, _ = t.config([webhook(server.url(), cert=cert('ca dir/röt.pem'))], name='config/butler.yaml')
    program = t.start(path, cwd='/')
    execution_id = send(program)
    require_delivered(t, program, server, execution_id)
    result = t.run('--check', 'butler.yaml', cwd=os.path.join(t.tmp, 'config'))
    t.check('--check finds it too', result.returncode == 0 and re.search(r'CA file .*röt\.pem \(1 certificates?\)',
                                                                         result.stdout), repr(result))


def test_trust_not_enabled(t):
    """cert.enable false: certCA does not count, so a CA that nobody knows is refused."""
    server = t.add(OpensslServer(good()))
    program = start(t, webhook(server.url(), cert=cert(root(), enable=False)))
    send(program)
    require_refused(t, program, server, NOT_TRUSTED)


def warned_unchecked(program):
    """Was it told at the start that a webhook is not checked? On stderr or in the log."""
    return re.search(r'(?i)warn(ing)?: .*(rejectUnauthorized|not checked)', program.stdout + program.stderr)


def test_trust_reject_unauthorized_false(t):
    """No check of chain, name and time, whatever enable says; and a warning at each start."""
    servers = [OpensslServer(certificate) for certificate in (good(), expired(), other_name(), self_signed(),
                                                              chained().without_chain(), not_yet_valid())]
    for server in servers:
        t.add(server)
    for enable in (True, False):
        path, _ = t.config([webhook(server.url(), cert=cert(root('C'), enable, False)) for server in servers])
        program = t.start(path)
        program.expect_stderr = True
        execution_id = send(program)
        for number, server in enumerate(servers, 1):
            says(t, program, 'enable %s: webhook %d is delivered' % (enable, number),
                 r'alert 1 delivered to failure %d\b.*, attempt 1' % number)
            t.check('enable %s: server %d got it' % (enable, number),
                    execution_id in ids_of(server.requests))
        t.check('enable %s: a warning at the start' % enable, warned_unchecked(program),
                repr((program.log[:10], program.stderr)))
        program.stop()


def test_trust_reject_unauthorized_false_without_ca(t):
    """No certCA at all, and certCA left empty as in Butler's own samples."""
    server = t.add(OpensslServer(self_signed()))
    for number, section in enumerate(({'enable': False, 'rejectUnauthorized': False},
                                      {'enable': False, 'rejectUnauthorized': False, 'certCA': ''}), 1):
        path, _ = t.config([webhook(server.url(), cert=section)])
        program = t.start(path)
        program.expect_stderr = True
        send(program)
        t.check('variant %d is delivered' % number, program.wait_log('alert 1 delivered to failure 1'),
                repr((program.log[-3:], program.stderr)))
        program.stop()


def test_trust_reject_unauthorized_false_bad_ca_file(t):
    """A certCA that cannot be read is a warning then, and the alert arrives."""
    server = t.add(OpensslServer(self_signed()))
    not_pem = write_file(os.path.join(t.tmp, 'not.pem'), 'this is not a certificate\n')
    for name, file in (('missing', os.path.join(t.tmp, 'missing.pem')), ('directory', t.tmp), ('noise', not_pem)):
        path, _ = t.config([webhook(server.url(), cert=cert(file, True, False))])
        result = t.run('--check', path)
        t.equal('%s: --check exits with 0' % name, result.returncode, 0)
        t.check('%s: --check warns about certCA' % name, re.search(r'warning: .*certCA', result.stderr) and
                'error:' not in result.stderr, repr(result.stderr))
        t.check('%s: trust is NOT CHECKED' % name, 'NOT CHECKED' in result.stdout, repr(result.stdout))
        program = t.start(path)
        program.expect_stderr = True
        send(program)
        t.check('%s: delivered' % name, program.wait_log('alert 1 delivered to failure 1'),
                repr((program.log[-3:], program.stderr)))
        program.stop()


def test_trust_bad_ca_file_is_an_error(t):
    """With the check on, the same files stop the start; each is named with its place, and the key."""
    not_pem = write_file(os.path.join(t.tmp, 'not.pem'), 'this is not a certificate\n')
    key_only = write_file(os.path.join(t.tmp, 'key.pem'), read_bytes(good().key))
    damaged = write_file(os.path.join(t.tmp, 'damaged.pem'), read_bytes(root().pem).replace(b'MII', b'MJJ', 1)
                         .replace(b'\n-----END', b'AAAA\n-----END'))
    empty = write_file(os.path.join(t.tmp, 'empty.pem'), '')
    for file in (os.path.join(t.tmp, 'missing.pem'), t.tmp, not_pem, key_only, damaged, empty):
        name = os.path.basename(file)
        path, _ = t.config([webhook('https://localhost:1/hook', cert=cert(file))])
        for args in (('--check', path), (path,)):
            result = t.run(*args)
            t.check('%s stops it (%d arguments)' % (name, len(args)), result.returncode == 2 and
                    re.search(r'^%s:\d+:\d+: error: .*certCA' % re.escape(path), result.stderr, re.M),
                    repr((result.returncode, result.stderr)))


def test_trust_bad_ca_file_of_http_is_a_warning(t):
    """A certCA that cannot be used does not matter to a webhook over http: a warning."""
    receiver = t.receiver()
    not_pem = write_file(os.path.join(t.tmp, 'not.pem'), 'this is not a certificate\n')
    for file in (os.path.join(t.tmp, 'missing.pem'), t.tmp, not_pem):
        path, _ = t.config([webhook(receiver.url('/hook'), cert=cert(file))])
        result = t.run('--check', path)
        t.check('%s: --check warns' % file, result.returncode == 0 and re.search(r': warning: .*certCA', result.stderr) and
                'error:' not in result.stderr, repr((result.returncode, result.stderr)))
        program = t.start(path)
        send(program)
        says(t, program, '%s: delivered' % file, 'alert 1 delivered to failure 1')
        t.equal('%s: stops' % file, program.stop(), 0)


def test_trust_ca_file_with_unknown_critical_extension(t):
    """A CA whose name constraints the program cannot obey is not trusted; what is said names the file and the reason."""
    constrained = issue_root('/O=Webhook tests/CN=Constrained CA',
                             extensions=CA_EXTENSIONS + ('nameConstraints = critical,permitted;DNS:example.com',))
    odd = issue_root('/O=Webhook tests/CN=Odd CA', extensions=CA_EXTENSIONS + ('1.2.3.4.5 = critical,DER:05:00',))
    for name, ca, words in (('constrained', constrained, '(?i)constraint'), ('odd', odd, r'1\.2\.3\.4\.5|(?i:extension)')):
        path, _ = t.config([webhook('https://localhost:1/hook', ca)])
        result = t.run('--check', path)
        text = result.stderr
        t.equal('%s: exit code' % name, result.returncode, 2)
        t.check('%s: which one' % name, re.search(r'error: .*certCA: certificate 1 of .*\.pem cannot be used', text), repr(text))
        t.check('%s: the reason' % name, re.search('(?i)critical', text) and re.search(words, text), repr(text))
    both = ca_file(t, 'both.pem', constrained, root())
    server = t.add(OpensslServer(good()))
    path, _ = t.config([webhook(server.url(), cert=cert(both))])
    result = t.run('--check', path)
    t.check('beside a good one: a warning',
            result.returncode == 0 and re.search(r'warning: .*certCA: certificate 1 of .*(?i:critical|extension)', result.stderr),
            repr(result.stderr))
    program = t.start(path)
    require_delivered(t, program, server, send(program))


def test_trust_name_counts_with_the_right_chain(t):
    """The chain leads to certCA, only the name is wrong: refused, and the reason names the host."""
    server = t.add(OpensslServer(other_name()))
    program = start(t, webhook(server.url(), root()))
    send(program)
    require_refused(t, program, server, NOT_TRUSTED + '.*localhost')


def test_trust_per_webhook_under_load(t):
    """Good and refused webhooks to one server at the same time, many alerts: no connection or session is mixed up."""
    port = t.port()
    nginx = t.add(Nginx(t, nginx_tls(port, good(), 'keepalive_requests 3;')))
    url = 'https://localhost:%d' % port
    path, _ = t.config([webhook(url + '/good', root()), webhook(url + '/bad', root('B')),
                        webhook(url + '/unchecked', cert=cert(root('B'), reject=False))])
    program = t.start(path)
    program.expect_stderr = True
    for _ in range(60):
        send(program)
    nginx.wait(120, timeout=20)
    got = [row['uri'] for row in nginx.requests()]
    t.equal('requests by webhook', [got.count(uri) for uri in ('/good', '/bad', '/unchecked')], [60, 0, 60])


def test_trust_redirect_to_other_port(t):
    """
    With a password nothing goes to another port, whatever is trusted there; without one the webhook's own trust counts at
    every port of its host.
    """
    other = t.add(OpensslServer(good()))
    stranger = t.add(OpensslServer(good('B')))
    port = t.port()
    more = ('location = /far { return 308 %s; } location = /stranger { return 308 %s; } location = /near { return 308 /here; }' %
            (other.url('/there'), stranger.url('/there')))
    nginx = t.add(Nginx(t, nginx_tls(port, good(), more)))
    url, bare = 'https://goran:S3cretPw@localhost:%d' % port, 'https://localhost:%d' % port
    path, _ = t.config([webhook(url + '/far', root()), webhook(url + '/far', cert=cert(root('B'), reject=False)),
                        webhook(url + '/near', root()), webhook(url + '/near', cert=cert(root('B'), reject=False)),
                        webhook(bare + '/far', root()), webhook(bare + '/stranger', root())])
    program = t.start(path)
    program.expect_stderr = True
    send(program)
    for number in (1, 2):
        says(t, program, 'webhook %d: a dead letter that names the new URL' % number,
             r'error: alert 1 given up for failure %d\b.*moved to https://localhost:%d/there' % (number, other.port))
    for number in (3, 4, 5):
        says(t, program, 'webhook %d arrives' % number, r'alert 1 delivered to failure %d\b.*: 200' % number)
    says(t, program, 'webhook 6: another CA is not trusted at another port', refused('failure 6') + NOT_TRUSTED)
    t.equal('the other port got one request', [(request.path, request.get('Authorization')) for request in other.requests],
            [('/there', None)])
    t.check('the stranger got none', not stranger.requests)
    nginx.wait_until(lambda: [row['uri'] for row in nginx.requests()].count('/here') == 2)
    t.equal('its own origin got the redirected ones', [row['uri'] for row in nginx.requests()].count('/here'), 2)
    t.check('no password in the log', not program.lines('S3cretPw'))


class Tunnel:
    """A proxy that opens tunnels, all to one port of 127.0.0.1; `lines` are the request lines it got."""

    def __init__(self, port):
        self.target = port
        self.lines = []
        self._receiver = harness.Receiver(on_head=self._head)
        self.port = self._receiver.port

    def _head(self, request, connection):
        self.lines.append(request.line)
        return self._pass

    def _pass(self, sock):
        sock.sendall(b'HTTP/1.1 200 Connection established\r\n\r\n')
        with socket.create_connection(('127.0.0.1', self.target)) as server:
            up = threading.Thread(target=Relay._up, args=(sock, server), daemon=True)
            up.start()
            try:
                for data in iter(lambda: server.recv(65536), b''):
                    sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            up.join(2)

    def close(self):
        self._receiver.close()


def test_trust_through_proxy(t):
    """In a proxy's tunnel the webhook's certificate counts, for the webhook's name, which is not looked up here."""
    server = t.add(OpensslServer(issue('/CN=hooks', root(), san='DNS:hooks.example')))
    tunnel = t.add(Tunnel(server.port))
    path, _ = t.config([webhook('https://hooks.example/right', root()), webhook('https://other.example/wrong', root())])
    program = t.start(path, env={'HTTPS_PROXY': 'http://127.0.0.1:%d' % tunnel.port})
    send(program)
    says(t, program, 'the right name is delivered', 'alert 1 delivered to failure 1')
    says(t, program, 'the wrong name is refused', refused('failure 2') + NOT_TRUSTED)
    t.equal('tunnels asked for', {line.split(' HTTP')[0] for line in tunnel.lines},
            {'CONNECT hooks.example:443', 'CONNECT other.example:443'})
    t.equal('the server saw', [request.path for request in server.requests], ['/right'])


# ---- --check and --test ---------------------------------------------------------------------------------------------


def rows_of(text):
    """The table of --check or --test: {'failure 1': text of its row and the lines below it}."""
    rows = {}
    place = None
    for line in text.splitlines():
        match = re.match(r'(failure|aborted) +(\d+)\b', line)
        if match:
            place = '%s %s' % match.groups()
            rows[place] = ''
        if place:
            rows[place] += line + '\n'
    return rows


def test_check_trust_column(t):
    file = ca_file(t, 'two.pem', root(), root('B'))
    path, _ = t.config([webhook('http://localhost:1/plain', description='plain'),
                        webhook('https://localhost:1/public'),
                        webhook('https://localhost:1/not-enabled', cert=cert(root(), enable=False)),
                        webhook('https://localhost:1/own', root()),
                        webhook('https://localhost:1/two', cert=cert(file)),
                        webhook('https://localhost:1/no-check', cert=cert(root(), True, False)),
                        webhook('https://localhost:1/no-check-2', cert=cert(root(), False, False), kind='aborted')])
    result = t.run('--check', path)
    t.equal('exit code', result.returncode, 0)
    rows = rows_of(result.stdout)
    for place, trust in (('failure 1', r'none \(http\)'), ('failure 2', 'public roots'), ('failure 3', 'public roots'),
                         ('failure 4', r'CA file %s \(1 certificates?\)' % re.escape(root().pem)),
                         ('failure 5', r'CA file %s \(2 certificates\)' % re.escape(file)),
                         ('failure 6', 'NOT CHECKED'), ('aborted 1', 'NOT CHECKED')):
        t.check('trust of %s' % place, re.search(trust, rows.get(place, '')), repr(rows.get(place, result.stdout)))
    t.equal('warnings about what is not checked', len(re.findall(r'warning: .*rejectUnauthorized', result.stderr)), 2)


SECRETS = 'S3cretPw|T0kenQ'


def test_check_hides_secrets(t):
    path, _ = t.config([webhook('https://bot:S3cretPw@localhost:1/hook?token=T0kenQ&Q0ther', root())])
    result = t.run('--check', path)
    row = rows_of(result.stdout).get('failure 1', '')
    t.check('host and path are shown', 'localhost:1/hook' in row, repr(result.stdout))
    t.check('no secret', not re.search(SECRETS, result.stdout + result.stderr), repr(result.stdout))


def check_test_row(t, rows, number, what, *patterns):
    row = rows.get('failure %d' % number, '')
    t.check('%s: FAILED' % what, re.search(r'^.*\bFAILED\b', row), repr(row))
    t.check('%s: a reason and what to change, a line each' % what, len(row.splitlines()) >= 3, repr(row))
    for pattern in patterns:
        t.check('%s: names %s' % (what, pattern), re.search(pattern, row, re.S), repr(row))


def test_test_names_the_certificate(t):
    """For each kind of failure: whose certificate, by whom, until when, what to change. Good webhooks are told too."""
    plain = t.receiver()
    not_tls = t.receiver(on_connect=lambda connection: after_hello(BAD_REQUEST, lambda sock: None))
    forbidden = t.receiver(answer=harness.response(403, b'no', reason='Forbidden'))
    servers = [good(), expired(), not_yet_valid(), other_name(), good('B'), self_signed(), chained().without_chain()]
    servers = [t.add(OpensslServer(certificate)) for certificate in servers]
    urls = [server.url('/hook?token=T0kenQ', userinfo='bot:S3cretPw') for server in servers]
    urls += ['https://bot:S3cretPw@127.0.0.1:%d/hook?token=T0kenQ' % not_tls.port,
             'https://bot:S3cretPw@127.0.0.1:%d/hook?token=T0kenQ' % t.port(),
             forbidden.url('/hook?token=T0kenQ', userinfo='bot:S3cretPw'),
             plain.url('/hook?token=T0kenQ', userinfo='bot:S3cretPw')]
    path, _ = t.config([webhook(url, root(), description='webhook %d' % number) for number, url in enumerate(urls, 1)])
    result = t.run('--test', path)
    t.equal('exit code', result.returncode, 1)
    rows = rows_of(result.stdout)
    t.equal('one row for each webhook', set(rows), {'failure %d' % number for number in range(1, len(urls) + 1)})
    t.check('the good https one is ok', re.search(r'\bok\b.*\b200\b', rows.get('failure 1', '')), repr(rows))
    t.check('the good http one is ok', re.search(r'\bok\b.*\b200\b', rows.get('failure 11', '')), repr(rows))
    check_test_row(t, rows, 2, 'expired', 'Expired Ltd', 'Test CA A', '2021-02-03', '(?i)expired',
                   r'(?i)renew|new certificate|replace')
    check_test_row(t, rows, 3, 'not yet valid', 'CN=localhost|"localhost"', 'Test CA A', '2091-02-03',
                   '(?i)not yet valid|not valid before|valid from', '(?i)clock|time|date')
    check_test_row(t, rows, 4, 'wrong name', r'other\.example', 'Test CA A', '2048-02-03', 'localhost',
                   '(?i)webhookURL|host name|issue')
    check_test_row(t, rows, 5, 'unknown CA', 'localhost', 'Test CA B', '2049-12-31', 'certCA')
    check_test_row(t, rows, 6, 'self-signed', 'Self-made', '2049-12-31', 'certCA')
    check_test_row(t, rows, 7, 'incomplete chain', 'localhost', 'Test Intermediate', '2049-12-31',
                   '(?i)intermediate|chain|certCA')
    check_test_row(t, rows, 8, 'plain http', '(?i)TLS', '(?i)http:')
    check_test_row(t, rows, 9, 'nobody listens', '(?i)refused')
    check_test_row(t, rows, 10, '403', r'\b403\b', '(?i)credentials')
    t.check('no secret is shown', not re.search(SECRETS, result.stdout + result.stderr), repr(result.stdout))
    events = [request.event() for request in servers[0].requests]
    t.equal('the test alert', [(event.get('event'), event.get('taskName'), event.get('taskId')) for event in events],
            [('Qlik Sense reload failed', 'butler_webhook test', '00000000-0000-0000-0000-000000000000')])
    t.equal('its mark', [request.get('webhook-test') for request in servers[0].requests], ['true'])
    t.check('bad servers got nothing', not any(server.requests for server in servers[1:]))


def test_test_all_good(t):
    """Exit code 0 when all said 2xx, also over an unchecked connection, and with enable false."""
    server = t.add(OpensslServer(good()))
    unchecked = t.add(OpensslServer(self_signed()))
    created = t.receiver(answer=harness.response(201, b'', reason='Created'))
    path, _ = t.config([webhook(server.url(), root()), webhook(unchecked.url(), cert=cert(root(), False, False)),
                        webhook(created.url('/hook'), method='GET', kind='aborted')], notification={'enable': False})
    result = t.run('--test', path)
    t.equal('exit code', result.returncode, 0)
    rows = rows_of(result.stdout)
    t.check('three rows that are ok', len(rows) == 3 and all(re.search(r'\bok\b', row) for row in rows.values()),
            repr(result.stdout))
    t.check('no FAILED', 'FAILED' not in result.stdout, repr(result.stdout))
    t.check('the status 201 is shown', '201' in rows.get('aborted 1', ''), repr(result.stdout))
    t.equal('the abort is an abort', [request.event().get('event') for request in created.requests],
            ['Qlik Sense reload aborted'])


def test_test_one_bad_among_good(t):
    """Exit code 1; the bad one in front hides none behind it."""
    server = t.add(OpensslServer(good()))
    path, _ = t.config([webhook('https://localhost:%d/x' % t.port(), root()), webhook(server.url(), root())])
    result = t.run('--test', path)
    t.equal('exit code', result.returncode, 1)
    rows = rows_of(result.stdout)
    t.check('the bad one FAILED', 'FAILED' in rows.get('failure 1', ''), repr(result.stdout))
    t.check('the good one is ok', re.search(r'\bok\b', rows.get('failure 2', '')), repr(result.stdout))
    t.equal('the good one got it', len(server.requests), 1)


def test_test_bad_configuration_calls_nobody(t):
    """--test calls no webhook of a file with a mistake, also while the webhooks are off."""
    receiver = t.receiver()
    good_one = webhook(receiver.url('/hook'))
    rows = (('certCA', webhook('https://localhost:%d/x' % receiver.port, cert=cert(os.path.join(t.tmp, 'none.pem'))), 'certCA'),
            ('URL', webhook('http://host.my.domain:port/some/path'), 'webhookURL'),
            ('method', webhook(receiver.url('/hook'), method='FETCH'), 'httpMethod'))
    for what, bad, key in rows:
        for enable in (False, True):
            name = '%s, enable %s' % (what, enable)
            path, _ = t.config([good_one, bad, good_one], notification={'enable': enable})
            done = t.run('--test', path)
            t.equal('%s: exit code' % name, done.returncode, 2)
            t.check('%s: one error, which names the key' % name,
                    len(done.stderr.splitlines()) == 1 and re.search(r': error: .*%s' % key, done.stderr), repr(done.stderr))
            t.equal('%s: no table' % name, done.stdout, '')
            done = t.run('--check', path)
            t.equal('%s: exit code of --check' % name, done.returncode, 2 if enable else 0)
            t.check('%s: --check shows no address of nothing' % name, '(null)' not in done.stdout + done.stderr,
                    repr(done.stdout))
            if what == 'URL' and not enable:
                t.check('%s: --check says which is not valid' % name,
                        re.search(r'(?m)^failure +2 +not valid', done.stdout), repr(done.stdout))
    t.equal('requests', receiver.requests, [])
    t.equal('connections', receiver.connections, [])


def test_test_silent_server(t):
    """Servers that never answer cost their time limit once, side by side, and are named; a line comes as each call ends."""
    silent = t.receiver(on_connect=lambda connection: hold)
    mute = t.receiver(answer=lambda request, connection: hold)
    server = t.add(OpensslServer(good()))
    path, _ = t.config([webhook('https://127.0.0.1:%d/x' % silent.port, root())] * 3 + [webhook(mute.url('/x'))] * 3 +
                       [webhook(server.url(), root())])
    begin = time.monotonic()
    result = t.run('--test', path, binary=t.binary_test)
    took = time.monotonic() - begin
    t.check('it takes the time limit once', 1.5 < took < 2 + 3 * harness.SLOW, took)
    t.equal('exit code', result.returncode, 1)
    rows = rows_of(result.stdout)
    for place in range(1, 7):
        t.check('silent one %d FAILED by time' % place,
                re.search(r'(?s)FAILED.*(%s)' % TIMES_OUT, rows.get('failure %d' % place, '')),
                repr(result.stdout))
    t.check('the good one is ok', re.search(r'\bok\b', rows.get('failure 7', '')), repr(result.stdout))
    t.equal('its line comes first', list(rows)[:1], ['failure 7'])


def test_test_control_characters_in_certificate(t):
    server = t.add(OpensslServer(evil_subject()))
    path, _ = t.config([webhook(server.url(), root())])
    result = t.run('--test', path)
    t.equal('exit code', result.returncode, 1)
    t.check('no control character', not re.search('[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]', result.stdout),
            repr(result.stdout))
    t.check('no line of the certificate becomes one of ours', not re.search(r'^2026-11-22', result.stdout, re.M),
            repr(result.stdout))


# ---- The webhook daemon of Debian -----------------------------------------------------------------------------------


# The script appends its arguments, each ended by NUL, to a file beside it.
HOOK_SCRIPT = '''#!/bin/sh
printf '%s\\0' "$@" >> "$(dirname "$0")/calls"
echo "script ran"
'''

RULE_TASK = 'Nightly: Sales & "Finance" ÅÄÖ; all'
RULE_MESSAGE = 'Max retries reached\nwith 100 % of line 2'


class WebhookDaemon(Server):
    """
    The daemon with four hooks: /hooks/body checks fields of the JSON body, /hooks/query those of the query, /hooks/open
    takes everything, /hooks/strict answers 403 where its rule does not match. Each passes fields on to a script.
    """

    FIELDS = ('event', 'taskName', 'logMessage', 'executionId')

    def __init__(self, t, certificate=None, port=None):
        self.directory = tempfile.mkdtemp(dir=t.tmp, prefix='webhook-')
        self.script = write_file(os.path.join(self.directory, 'hook.sh'), HOOK_SCRIPT)
        os.chmod(self.script, 0o755)
        self.port = port or harness.free_port()
        self.scheme = 'https' if certificate else 'http'
        hooks = [self._hook('body', 'payload'), self._hook('query', 'url'), self._hook('open', 'payload', rule=False),
                 self._hook('strict', 'payload', **{'trigger-rule-mismatch-http-response-code': 403})]
        path = write_file(os.path.join(self.directory, 'hooks.json'), json.dumps(hooks))
        command = [need(t, 'webhook'), '-hooks', path, '-ip', '127.0.0.1', '-port', str(self.port), '-verbose']
        if certificate:
            command += ['-secure', '-cert', certificate.full_pem, '-key', certificate.key]
        super().__init__(command, cwd=self.directory)
        try:
            self.wait_listening('127.0.0.1', self.port)
        except RuntimeError:
            self.close()
            raise

    def _hook(self, name, source, rule=True, **more):
        entry = {'id': name, 'execute-command': self.script, 'command-working-directory': self.directory,
                 'include-command-output-in-response': True,
                 'pass-arguments-to-command': [{'source': source, 'name': field} for field in self.FIELDS]}
        if rule:
            wanted = (('value', 'Qlik Sense reload failed', 'event'), ('value', RULE_TASK, 'taskName'),
                      ('regex', r'^Max retries reached\n.*line \d$', 'logMessage'))
            entry['trigger-rule'] = {'and': [
                {'match': {'type': kind, kind: value, 'parameter': {'source': source, 'name': field}}}
                for kind, value, field in wanted]}
        entry.update(more)
        return entry

    def url(self, hook):
        return '%s://localhost:%d/hooks/%s' % (self.scheme, self.port, hook)

    def calls(self):
        """The arguments of each call of the script so far."""
        try:
            values = read_bytes(os.path.join(self.directory, 'calls')).decode().split('\0')[:-1]
        except FileNotFoundError:
            return []
        return [tuple(values[i:i + len(self.FIELDS)]) for i in range(0, len(values), len(self.FIELDS))]


def check_hook(t, hook, method, certificate=None):
    """An alert that matches the rule runs the command with our fields; three that do not match do not run it."""
    daemon = t.add(WebhookDaemon(t, certificate))
    program = start(t, webhook(daemon.url(hook), root() if certificate else None, method=method))
    ids = [send(program, task=RULE_TASK, message='another message'),
           send(program, task='Another task', message=RULE_MESSAGE),
           send(program, task=RULE_TASK, message=RULE_MESSAGE)]
    for number in (1, 2, 3):
        says(t, program, 'alert %d is delivered' % number, r'alert %d delivered to failure 1\b.*: 200' % number)
    daemon.wait_until(daemon.calls)
    t.equal('the command ran for the matching alert alone', daemon.calls(),
            [('Qlik Sense reload failed', RULE_TASK, RULE_MESSAGE, ids[2])])


def test_hook_http_post(t):
    check_hook(t, 'body', 'POST')


def test_hook_http_put(t):
    check_hook(t, 'body', 'PUT')


def test_hook_https_post(t):
    check_hook(t, 'body', 'POST', good())


def test_hook_https_rsa(t):
    check_hook(t, 'body', 'PUT', good('A', 'rsa2048'))


def test_hook_http_get(t):
    check_hook(t, 'query', 'GET')


def test_hook_https_get(t):
    check_hook(t, 'query', 'GET', good())


def test_hook_abort(t):
    """The event of an abort is another one: the rule for failures does not match, a hook without rule runs."""
    daemon = t.add(WebhookDaemon(t))
    path, _ = t.config([webhook(daemon.url('strict'), kind='aborted'), webhook(daemon.url('open'), kind='aborted')])
    program = t.start(path)
    execution_id = send(program, id='/scheduler-task-aborted/', task=RULE_TASK, message=RULE_MESSAGE)
    says(t, program, 'the rule refuses it', r'error: alert 1 given up for aborted 1\b.*403.*credentials')
    says(t, program, 'the open hook takes it', r'alert 1 delivered to aborted 2\b.*: 200')
    daemon.wait_until(daemon.calls)
    t.equal('the command ran once', daemon.calls(),
            [('Qlik Sense reload aborted', RULE_TASK, RULE_MESSAGE, execution_id)])


def test_hook_not_found(t):
    """A hook that the daemon does not know is 404: a dead letter that says to check the URL."""
    daemon = t.add(WebhookDaemon(t))
    program = start(t, webhook(daemon.url('nowhere')))
    send(program)
    says(t, program, 'dead letter', r'error: alert 1 given up for failure 1\b.*404.*webhookURL')


def test_hook_daemon_restarts(t):
    """The daemon is away when the alert comes: it runs the command once it is back, once."""
    port = t.port()
    program = start(t, webhook('http://localhost:%d/hooks/body' % port))
    execution_id = send(program, task=RULE_TASK, message=RULE_MESSAGE)
    must_say(t, program, 'refused at first', r'warn: webhook failure 1\b.* is down: .*refused')
    daemon = t.add(WebhookDaemon(t, port=port))
    daemon.wait_until(daemon.calls, 20)
    says(t, program, 'delivered', r'alert 1 delivered to failure 1\b')
    t.equal('the command ran once', daemon.calls(),
            [('Qlik Sense reload failed', RULE_TASK, RULE_MESSAGE, execution_id)])


def test_hook_test_command(t):
    """--test calls the daemon for real; its rule does not match the test alert, and an open hook shows its fields."""
    daemon = t.add(WebhookDaemon(t, good()))
    path, _ = t.config([webhook(daemon.url('open'), root()), webhook(daemon.url('strict'), root())])
    result = t.run('--test', path)
    t.equal('exit code', result.returncode, 1)
    rows = rows_of(result.stdout)
    t.check('the open hook is ok', re.search(r'\bok\b', rows.get('failure 1', '')), repr(result.stdout))
    t.check('the strict one FAILED with 403', re.search(r'FAILED.*403', rows.get('failure 2', '')), repr(result.stdout))
    daemon.wait_until(daemon.calls)
    t.equal('the command ran once', [call[:2] for call in daemon.calls()],
            [('Qlik Sense reload failed', 'butler_webhook test')])


# ---- Hostile TLS servers --------------------------------------------------------------------------------------------
#
# Each runs beside a good webhook, which must get its alert at once. The program with the short limits (2 s for a call)
# is used, so that a server which only wastes time is given up soon.


def hold(sock):
    """Says nothing until the peer is gone."""
    while sock.recv(65536):
        pass


def forever(data, pause=0.0):
    """Sends data again and again until the peer is gone."""
    def play(sock):
        while True:
            sock.sendall(data)
            if pause:
                time.sleep(pause)
    return play


def then_hold(data):
    def play(sock):
        sock.sendall(data)
        hold(sock)
    return play


def after_hello(data, after=hold):
    """Reads the ClientHello, sends data, then goes on with after."""
    def play(sock):
        sock.recv(65536)
        sock.sendall(data)
        after(sock)
    return play


def by_the_byte(data, pause):
    def play(sock):
        sock.recv(65536)
        for byte in data:
            sock.sendall(bytes([byte]))
            time.sleep(pause)
        hold(sock)
    return play


def record(kind, data, version=0x0303):
    return struct.pack('>BHH', kind, version, len(data)) + data


def handshake(kind, data):
    return bytes([kind]) + len(data).to_bytes(3, 'big') + data


# A ServerHello of TLS 1.2: ECDHE-ECDSA-AES128-GCM-SHA256, no extensions but secure renegotiation.
SERVER_HELLO_1_2 = record(22, handshake(2, b'\x03\x03' + bytes(range(32)) + b'\0' + b'\xc0\x2b' + b'\0' +
                                        b'\0\x05\xff\x01\0\x01\0'))


def check_clean_log(t, program):
    """Each line begins as a line of the log must, and nothing in it can move a terminal's cursor or turn its text."""
    odd = [line for line in program.log
           if not re.match(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (error|warn|info|verbose): \S', line)
           or re.search('[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\udc80-\udcff]', line)]
    t.check('the log is clean', not odd, repr(odd[:2]))


def check_hostile(t, play, reason=r'.', within=4.0):
    """
    play(socket) is the server. The alert fails there for a reason within the time, and arrives at the good webhook at
    once; the program goes on, and stops when told to.
    """
    hostile = t.receiver(on_connect=lambda connection: play)
    fine = t.add(OpensslServer(good()))
    path, _ = t.config([webhook('https://localhost:%d/hostile' % hostile.port, root()), webhook(fine.url(), root())])
    program = t.start(path, binary=t.binary_test)
    execution_id = send(program)
    t.check('the good webhook gets it', ids_of(fine.wait(1)) == [execution_id],
            repr(program.log[-3:]))
    check_failed_call(t, program, reason, 'the hostile one fails in time for the right reason', timeout=within)
    t.check('nothing was delivered there', not program.lines('delivered to failure 1'))
    if reason == TIMES_OUT:
        t.equal('the first that is heard of', program.wait_log(r'alert 1 .*to failure (\d)').group(1), '2')
    check_clean_log(t, program)
    send(program)
    says(t, program, 'the program goes on', r'alert 2 delivered to failure 2\b')
    t.equal('it stops when told', program.stop(), 0)


TIMES_OUT = r'within 10 s|in time'

HOSTILE = {
    'silent': (hold, TIMES_OUT),
    'silent_after_hello': (after_hello(b''), TIMES_OUT),
    'closes_at_once': (lambda sock: None, NO_TLS),
    'closes_after_hello': (lambda sock: sock.recv(65536) and None, NO_TLS),
    'closes_inside_record': (lambda sock: sock.sendall(SERVER_HELLO_1_2[:30]), NO_TLS),
    'closes_after_server_hello': (after_hello(SERVER_HELLO_1_2, lambda sock: None), NO_TLS),
    'resets': (lambda sock: (sock.recv(65536), harness.reset(sock))[1], NO_TLS),
    'silent_after_server_hello': (after_hello(SERVER_HELLO_1_2), TIMES_OUT),
    'garbage': (then_hold(b'\xde\xad\xbe\xef' * 500), NO_TLS),
    'zeros': (then_hold(bytes(5000)), NO_TLS),
    'text': (then_hold(b'220 mail.example ESMTP ready\r\n'), NO_TLS),
    'endless_garbage': (forever(b'\x16\x03\x03\x40\x00' + b'\xa5' * 16384), NO_TLS),
    'endless_handshake_message': (lambda sock: (sock.sendall(record(22, b'\x02\xff\xff\xff' + bytes(1000))),
                                                forever(record(22, bytes(1000)))(sock)), NO_TLS),
    'endless_fragments': (forever(record(22, b'\x0b')), NO_TLS),
    'endless_server_hellos': (forever(SERVER_HELLO_1_2), NO_TLS),
    'endless_hello_requests': (forever(record(22, handshake(0, b''))), NO_TLS + '|' + TIMES_OUT),
    'endless_empty_records': (forever(record(22, b'')), NO_TLS + '|' + TIMES_OUT),
    'endless_cipher_changes': (forever(record(20, b'\1')), NO_TLS + '|' + TIMES_OUT),
    'endless_cipher_changes_after_hello': (after_hello(SERVER_HELLO_1_2, forever(record(20, b'\1'))),
                                           NO_TLS + '|' + TIMES_OUT),
    'endless_warnings': (forever(record(21, b'\x01\x5a')), NO_TLS + '|' + TIMES_OUT),
    'flood_of_cipher_changes': (forever(record(20, b'\1') * 2000), NO_TLS + '|' + TIMES_OUT),
    'flood_of_warnings': (forever(record(21, b'\x01\x5a') * 2000), NO_TLS + '|' + TIMES_OUT),
    'endless_tickets': (after_hello(SERVER_HELLO_1_2, forever(record(22, handshake(4, bytes(6))))), NO_TLS),
    'fatal_alert': (then_hold(record(21, b'\x02\x28')), NO_TLS),
    'unknown_alert': (then_hold(record(21, b'\x02\xfe')), NO_TLS),
    'record_too_long': (then_hold(b'\x16\x03\x03\xff\xff' + bytes(70000)), NO_TLS),
    'version_0': (then_hold(record(22, handshake(2, b'\0\0' + bytes(70)), 0)), NO_TLS),
    'unknown_record': (then_hold(record(99, bytes(100))), NO_TLS),
    'application_data_first': (then_hold(record(23, b'HTTP/1.1 200 OK\r\n\r\n')), NO_TLS),
    'echo': (lambda sock: [sock.sendall(data) for data in iter(lambda: sock.recv(65536), b'')], NO_TLS),
    'a_byte_at_a_time': (by_the_byte(SERVER_HELLO_1_2, 0.2), TIMES_OUT),
    'records_at_a_time': (forever(record(20, b'\1'), 0.3), NO_TLS + '|' + TIMES_OUT),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile(t, name):
    check_hostile(t, *HOSTILE[name])


def check_hostile_certificate(t, certificate, reason, options=()):
    """The same with s_server and an odd certificate; all that the log says stays printable."""
    for version in ('-tls1_2', '-tls1_3'):
        hostile = t.add(OpensslServer(certificate, version, *options))
        fine = t.add(OpensslServer(good()))
        path, _ = t.config([webhook(hostile.url(), root()), webhook(fine.url(), root())])
        program = t.start(path, binary=t.binary_test)
        send(program)
        t.check('%s: the good webhook gets it' % version, fine.wait(1), repr(program.log[-3:]))
        line = program.wait_log(r'(?:info: alert 1 delivered to failure 1: |%s)(.*)' % refused())
        t.check('%s: the verdict is right' % version, line and re.search(reason, line.group(1)),
                repr(line.group(1) if line else program.log[-3:]))
        check_clean_log(t, program)
        t.equal('%s: it stops when told' % version, program.stop(), 0)


def long_chain(length):
    above = root()
    for number in range(length - 1):
        above = issue('/CN=Link %d' % (number + 1), above, extensions=CA_EXTENSIONS[:2])
    return issue('/CN=localhost', above, extensions=LEAF_EXTENSIONS[:3], san=LOCAL_NAMES)


@harness.early
def test_hostile_chain_of_20(t):
    """Right in itself, but longer than anybody needs: the answer may be yes or no, in time."""
    check_hostile_certificate(t, long_chain(20), r'^200|certificate|TLS failed')


@harness.early
def test_hostile_chain_of_20_strangers(t):
    """A good certificate, and with it 18 that have nothing to do with it."""
    strangers = [issue_root('/CN=Stranger %d' % number, extensions=()) for number in range(18)]
    check_hostile_certificate(t, good().with_chain(*strangers), r'^200|certificate')


@harness.early
def test_hostile_chain_loop(t):
    """Two CAs that have signed each other."""
    first = issue_root('/CN=Loop 1')
    second = issue('/CN=Loop 2', first, extensions=CA_EXTENSIONS)
    back = Certificate(issue('/CN=Loop 1', second, extensions=CA_EXTENSIONS, key_path=first.key).pem, first.key, [])
    leaf = issue('/CN=localhost', back, san=LOCAL_NAMES)
    check_hostile_certificate(t, leaf.with_chain(back, second, back, second), NOT_TRUSTED)


def test_hostile_certificate_60_kb(t):
    extension = '1.2.3.4.5 = DER:04:82:ea:60' + ':5a' * 60000
    certificate = issue('/CN=localhost', root(), extensions=LEAF_EXTENSIONS + (extension,), san=LOCAL_NAMES)
    check_hostile_certificate(t, certificate, r'(?i)^200|TLS|certificate')


def test_hostile_certificate_critical_unknown(t):
    certificate = issue('/CN=localhost', root(), extensions=LEAF_EXTENSIONS + ('1.2.3.4.5 = critical,DER:05:00',),
                        san=LOCAL_NAMES)
    check_hostile_certificate(t, certificate, r'(?i)TLS|certificate')


def test_hostile_certificate_2000_names(t):
    """About 14 KB of names, the right one last."""
    names = ','.join('DNS:n%d.example' % number for number in range(700)) + ',DNS:localhost'
    check_hostile_certificate(t, issue('/CN=localhost', root(), san=names), r'^200')


@once
def evil_subject():
    """Control characters, a line that looks like one of ours, and characters that turn the text around."""
    odd = '\t\x01\x7f\x85\u009b31m\u2028\u202egnp%s%n\x07\x1b[2J'
    return issue('/O=%s/CN=evil\r\n2026-11-22T09:30:00.123Z info: fake' % odd, issue_root('/CN=Evil\nCA\x1b[31m'),
                 san=LOCAL_NAMES)


def test_hostile_certificate_subject(t):
    check_hostile_certificate(t, evil_subject(), NOT_TRUSTED)


@harness.early
def test_hostile_handshake_does_not_delay_stop(t):
    """Told to stop while a handshake hangs: it ends within the promised 5 s (the real limit of a call is 10 s)."""
    hostile = t.receiver(on_connect=lambda connection: hold)
    program = start(t, webhook('https://localhost:%d/x' % hostile.port, root()))
    send(program)
    t.require('it has connected', hostile.wait_connections(1), repr(program.log[-3:]))
    time.sleep(0.3)
    begin = time.monotonic()
    t.equal('exit code', program.stop(), 0)
    t.check('within 5 s', time.monotonic() - begin < 5.5 * harness.SLOW, time.monotonic() - begin)
    t.check('the alert waits in the journal', program.lines(r'info: stopped: .*, 0 lost, 1 waiting$'), repr(program.log[-3:]))


@harness.early
def test_hostile_flood_does_not_delay_stop(t):
    """The same while the handshake is being flooded."""
    stopping = []
    for kind, data in ((20, b'\1'), (21, b'\x01\x5a')):
        hostile = t.receiver(on_connect=lambda connection, flood=forever(record(kind, data) * 2000): flood)
        program = start(t, webhook('https://localhost:%d/x' % hostile.port, root()))
        send(program)
        t.require('it has connected', hostile.wait_connections(1), repr(program.log[-3:]))
        stopping.append((kind, program))
    time.sleep(0.3)
    begin = time.monotonic()
    for _, program in stopping:
        program.send_signal()
    for kind, program in stopping:
        t.equal('record type %d: exit code' % kind, program.stop(), 0)
        t.check('record type %d: within 5 s' % kind, time.monotonic() - begin < 5.5 * harness.SLOW,
                time.monotonic() - begin)


@harness.early
def test_hostile_memory(t):
    """Endless bytes into 20 handshakes at once: memory stays small."""
    plays = [forever(record(22, b'\x0b\xff\xff\xff' + bytes(16000))), forever(record(20, b'\1') * 500),
             forever(b'\x16\x03\x03\x40\x00' + bytes(16384)), forever(record(22, handshake(0, b'')) * 500)]
    servers = [t.receiver(on_connect=lambda connection, play=plays[number % 4]: play) for number in range(20)]
    path, _ = t.config([webhook('https://localhost:%d/x' % server.port, root()) for server in servers],
                       butlerWebhook={'timeoutSeconds': 4})
    program = t.start(path)
    for _ in range(3):
        send(program)
    for number in range(1, 21):
        says(t, program, 'webhook %d fails' % number, refused('failure %d' % number, r'\d'), timeout=15)
    with open('/proc/%d/status' % program.pid, encoding='ascii') as file:
        peak = int(re.search(r'VmHWM:\s+(\d+) kB', file.read()).group(1))
    if 'asan' not in t.binary and 'tsan' not in t.binary:       # these need much memory of their own
        t.check('at most 24 MB at its peak', peak < 24 * 1024 + harness.SYSTEM.memory_kb, '%d kB' % peak)
