"""Programs of others that take what ours sends or writes, or pass it on; too large to install for make check."""

import os
import re
import socket
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
    path, _ = t.config([{'url': receiver.url(), 'description': 'a "name" \\ ü'}], butlerWebhook={'metricsFile': './a.prom'})
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
        rows.append((ntlm, None, "status 407; check the proxy's password.*NTLM"))
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


# What excepts a host from the proxy, tried with each URL. What curl's versions do not agree on is not here.
URLS = ('http://example.com/', 'http://a.example.com/', 'http://badexample.com/', 'http://EXAMPLE.com./', 'http://localhost/',
        'https://example.com:8443/', 'http://h/', 'http://h:8080/', 'https://h/', 'http://10.1.2.3/', 'http://10.1.2.3:81/',
        'http://127.0.0.1/', 'http://[::1]/', 'http://[::1]:81/', 'http://[2001:db8::1]/')
NO_PROXY = ('', ' , ,', '*', '.', 'example.com', '.example.com', 'EXAMPLE.com', 'example.com.', 'a.example.com', 'example', 'com',
            'h', 'hh', 'h,', 'g,\th ,i', 'h;g', 'http://h', 'localhost', '10.1.2.3', '10.1.2.3/32', '10.0.0.0/8', '10.0.0.0/7',
            '10.1.2.4/31', '10.1.2.2/31', '10.0.0.0/33', '10.0.0.0/x', '10.1.2', '10.', '10.*', '1.2.3', '.1.2.3', '010.1.2.3',
            '127.0.0.1', '127.0.0.10', '127.0.0.0/8', '::1', '2001:db8::1')
# What counts for us alone, as for Butler: host:port (and the URLs that are excepted), and HTTP_PROXY in capitals.
WITH_PORT = {'h:80': {'http://h/'}, 'h:443': {'https://h/'}, 'h:8080,x': {'http://h:8080/'}, 'h:81': set(),
             '.example.com:8443': {'https://example.com:8443/'}, '10.1.2.3:81': {'http://10.1.2.3:81/'},
             '[::1]:81': {'http://[::1]:81/'}}
A, B = 'http://127.0.0.1:A', 'http://127.0.0.1:B'
VARIABLES = [{'http_proxy': A}, {'HTTPS_PROXY': A}, {'https_proxy': A}, {'ALL_PROXY': A}, {'all_proxy': A}, {'Http_Proxy': A},
             {'http_proxy': A, 'HTTP_PROXY': B}, {'https_proxy': A, 'HTTPS_PROXY': B}, {'all_proxy': A, 'ALL_PROXY': B},
             {'all_proxy': A, 'HTTPS_PROXY': B}, {'https_proxy': '', 'HTTPS_PROXY': A, 'http_proxy': '', 'ALL_PROXY': B},
             {'ALL_PROXY': A[7:]}, {'ALL_PROXY': 'HTTP' + A[4:] + '/path'}, {'ALL_PROXY': A, 'no_proxy': 'h', 'NO_PROXY': 'com'},
             {'ALL_PROXY': A, 'no_proxy': '', 'NO_PROXY': 'com'}]


def through_ours(t, env):
    """The proxy, or none, that our program takes for each URL."""
    path, _ = t.config([{'url': url} for url in URLS], name='urls.yaml')
    lines = re.findall('(?m)^failure .*', t.run('--check', path, env=env).stdout)
    return [re.search(r'through (\S+)/|$', line)[1] for line in lines]


def through_curl(t, env, proxies):
    """The same for curl: to CONNECT each proxy answers with a status of its own; all else comes to the first one, too."""
    each = [word for url in URLS for word in ('-o', '/dev/null', url)]
    command = [servers.need(t, 'curl'), '-q', '-g', '-s', '--max-time', '9', '-w', '%{http_connect}\n',
               '--connect-to', '::127.0.0.1:%d' % proxies[0].port, *each]
    done = subprocess.run(command, capture_output=True, text=True, env=t.environment(env))
    names = {'000': None, '501': proxies[0].url(''), '502': proxies[1].url('')}
    return [names.get(status, status) for status in done.stdout.split()]


def test_proxy_variables(t):
    """The environment's variables count as for curl, but for the two differences above."""
    def proxy(status):
        return t.receiver(lambda request, connection: response(status if request.method == 'CONNECT' else 200, close=True),
                          on_connect=lambda connection: b'' if connection.sock.recv(1, socket.MSG_PEEK) == b'\x16' else None)

    proxies = [proxy(501), proxy(502)]
    rows = [({'ALL_PROXY': A, 'NO_PROXY': value}, {}) for value in NO_PROXY]
    rows += [({'ALL_PROXY': A, 'NO_PROXY': value}, dict.fromkeys(urls)) for value, urls in WITH_PORT.items()]
    rows += [(variables, {}) for variables in VARIABLES]
    rows.append(({'HTTP_PROXY': A}, {url: proxies[0].url('') for url in URLS if url.startswith('http:')}))
    answers = set()
    for variables, ours_alone in rows:
        env = {name: value.replace(':A', ':%d' % proxies[0].port).replace(':B', ':%d' % proxies[1].port)
               for name, value in variables.items()}
        curls = dict(zip(URLS, through_curl(t, env, proxies)))
        t.equal('%s' % variables, dict(zip(URLS, through_ours(t, env))), {**curls, **ours_alone})
        t.check('%s: curl goes another way' % variables, all(curls[url] != proxy for url, proxy in ours_alone.items()), curls)
        answers.update(curls.values())
    t.equal('all that curl does', answers, {None, *(one.url('') for one in proxies)})
