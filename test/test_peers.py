"""Programs of others that take what ours sends or writes, or pass it on; too large to install for make check."""

import os
import re
import subprocess
import tempfile
import urllib.parse

import pytest

import harness
import servers
import words
from harness import datagram, response

RULES = ('samples/prometheus_rules.yaml', 'test/data/prometheus_rules_test.yaml')


def promtool(t, *arguments, text=None):
    done = subprocess.run([servers.need(t, 'promtool'), *arguments], input=text, cwd=harness.ROOT, capture_output=True, text=True)
    t.equal('promtool %s' % arguments[0], (done.returncode, done.stderr), (0, ''))


def test_prometheus(t):
    """What metricsFile holds is clean for promtool; so are the rules that are made of it, and each fires when it should."""
    receiver = t.receiver(lambda request, connection: response(200))
    path, _ = t.config([{'url': receiver.url(), 'description': 'a "name" \\ ü'}], butlerWebhook={'metricsFile': 'a.prom'})
    program = t.start(path)
    program.send(datagram())
    receiver.wait()
    t.equal('exit code', program.stop(), 0)
    with open(os.path.join(t.tmp, 'a.prom'), encoding='utf-8') as file:
        promtool(t, 'check', 'metrics', text=file.read())
    promtool(t, 'check', 'rules', RULES[0])
    promtool(t, 'test', 'rules', RULES[1])


# ---- Proxies --------------------------------------------------------------------------------------------------------

# How each is called, and its configuration: it calls servers from 127.0.0.2, and nobody gets through it to refused.invalid.
PROXIES = {'squid': (('-N', '-f'), '''http_port 127.0.0.1:PORT
tcp_outgoing_address 127.0.0.2
visible_hostname localhost
dns_nameservers 127.0.0.1
acl refused dstdomain refused.invalid
http_access deny refused
AUTH
http_access allow all
pid_filename none
cache_log /dev/null
access_log none
cache deny all
pinger_enable off
shutdown_lifetime 0 seconds
'''), 'tinyproxy': (('-d', '-c'), '''Port PORT
Listen 127.0.0.1
Bind 127.0.0.2
LogLevel Critical
Filter "FOLDER/refused"
AUTH
''')}
# Its password, and what it answers to a wrong one.
PASSWORDS = {'squid': ('p@ss:4/7%ü 1', "status 407; check the proxy's password"), 'tinyproxy': ('pass-4711', 'status 401')}
BASIC = {'squid': '''auth_param basic program /usr/lib/squid/basic_ncsa_auth FOLDER/users
acl known proxy_auth REQUIRED
http_access deny !known''', 'tinyproxy': 'BasicAuth qlik pass-4711'}
NTLM = '''auth_param negotiate program /bin/false
auth_param negotiate children 1 startup=0
auth_param ntlm program /bin/false
auth_param ntlm children 1 startup=0
acl known proxy_auth REQUIRED
http_access deny !known'''
kinds = pytest.mark.parametrize('kind', PROXIES)


class Proxy(servers.Server):
    """squid or tinyproxy on a port of its own, with these lines about passwords."""

    def __init__(self, t, kind, auth='', port=None):
        self.port = port or t.port()
        options, config = PROXIES[kind]
        folder = tempfile.mkdtemp(dir=t.tmp)
        for path in (t.tmp, folder):
            os.chmod(path, 0o711)       # squid that root starts becomes another user
        config = config.replace('AUTH', auth).replace('PORT', str(self.port)).replace('FOLDER', folder)
        servers.write_file(os.path.join(folder, 'refused'), r'^refused\.invalid$')
        servers.write_file(os.path.join(folder, 'users'), b'qlik:' + servers.openssl('passwd', '-apr1', PASSWORDS[kind][0]))
        super().__init__([servers.need(t, kind), *options, servers.write_file(os.path.join(folder, 'conf'), config)], cwd=folder)
        self.wait_listening(self.port)

    def url(self, user='', password=''):
        return 'http://%s127.0.0.1:%d' % ('%s:%s@' % (user, urllib.parse.quote(password, '')) if user else '', self.port)


@kinds
def test_proxy(t, kind):
    """http and https through it, also with a password; the log says what is wrong if it refuses."""
    callers = set()
    receivers = [t.receiver(ssl_context=context, on_connect=lambda connection: callers.add(connection.sock.getpeername()[0]))
                 for context in (None, servers.good().context())]
    free, basic = t.add(Proxy(t, kind)), t.add(Proxy(t, kind, BASIC[kind]))
    password, wrong = PASSWORDS[kind]
    rows = [(free.url(), None, ''), (basic.url('qlik', password), None, ''), (free.url(), 'refused.invalid', 'status 403'),
            (basic.url(), None, "status 407; check the proxy's password"),
            (basic.url('other', 'wr0ng'), None, wrong)]     # squid mixes up two passwords of one user that come at once
    if kind == 'squid':
        ntlm = t.add(Proxy(t, kind, NTLM)).url('qlik', password)
        rows.append((ntlm, None, 'status 407; the proxy takes NTLM or Negotiate only'))
    program = servers.start(t, *[
        servers.webhook(receiver.url('/%d' % place, host=host), servers.root() if receiver.ssl_context else None, proxyURL=url)
        for place, (url, host, _) in enumerate(rows) for receiver in receivers])
    execution_id = servers.send(program)
    for place, (url, _, refused) in enumerate(rows):
        http, https = (r'failure %d\b' % (2 * place + number) for number in (1, 2))
        named = 'proxy http://127.0.0.1:%s/: it answered CONNECT with ' % url.rpartition(':')[2]
        servers.says(t, program, words.given_up(http, why=refused) if refused else words.delivered(http))
        servers.says(t, program, words.down(https, named + refused) if refused else words.delivered(https))
    for receiver in receivers:
        t.equal('requests', servers.ids_of(receiver.requests), [execution_id] * 2)
        t.equal('passwords', [request.get('Proxy-Authorization') for request in receiver.requests], [None] * 2)
    t.equal('who called', callers, {'127.0.0.2'})
    t.check('no password in the log', not re.search('wr0ng|ss:4/7|ss%3A4|pass-4711', program.stdout))


@kinds
def test_proxy_killed(t, kind):
    """While its tunnel is open: the alert waits, and arrives when it is there again."""
    receiver = t.receiver(lambda request, connection: response() if connection.number > 1 else lambda sock: sock.recv(1),
                          ssl_context=servers.good().context())
    proxy = t.add(Proxy(t, kind))
    program = servers.start(t, servers.webhook(receiver.url(), servers.root(), proxyURL=proxy.url()))
    execution_id = servers.send(program)
    t.require('it arrives', receiver.wait())
    proxy.kill()
    servers.says(t, program, words.down('failure 1', 'proxy http://127.0.0.1:%d/.*refused' % proxy.port))
    t.add(Proxy(t, kind, port=proxy.port))
    servers.says(t, program, words.up('failure 1'), timeout=30)
    servers.says(t, program, words.delivered('failure 1'))
    t.equal('requests', servers.ids_of(receiver.requests), [execution_id] * 2)
