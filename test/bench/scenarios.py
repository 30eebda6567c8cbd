"""What the benchmark measures: the runs, the subjects, and the aims. README.md in this folder explains them."""

import glob
import os

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HERE = os.path.join(ROOT, 'test/bench')
OUT = os.path.join(ROOT, 'build/bench')
FOLDER = os.path.join(OUT, 'run')       # where a subject runs; new for each run
OURS = 'butler_webhook'
PEERS = ['rsyslog', 'syslog-ng', 'socat-curl']
ALL = ['floor', *PEERS[:2], OURS]

# The keys of a run, each of which may be missing:
#   what         for the table                         count, rate  datagrams, and how many a second (0: at full speed)
#   times        runs of it, for one repeat            subjects     who takes part (ALL)
#   connections  to each webhook (4)                   tls          the webhook wants TLS
#   delay_ms     the webhook's answers take so long    closes       the webhook closes after each answer
#   default_buffer  no subject can have a larger receive buffer than the kernel's default
#   tasks        different task ids, rateLimit is 300 s: so many alerts are to arrive
#   webhooks     so many get each alert; their latencies are counted together
#   bad          so many more webhooks that are dead, hang, or never end their TLS handshake, in turn
#   sync_ms      each sync of the disk takes so much longer
#   backlog      nothing listens where the webhook is; ours is then started again, with the webhook there
#   url          of the webhook, when nothing is sent
#   keys         of the webhook, more of them
LATENCY = {'count': 150, 'rate': 50}
OURS_ALONE = {'subjects': [OURS]}
TEMPLATE = """\
          headers: { X-Team: bi, X-Id: '{{webhookId}}' }
          body: { id: '{{executionId}}', text: '{{event}}: {{taskName}} on {{hostName}} by {{user}}: {{logMessage|1000}}' }
"""
SECRET = '          signingSecret: whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n'
RUNS = {
    'start': {'what': 'start, nothing sent', 'count': 0, 'times': 4},
    'rest-https': {'what': 'an https webhook and the public roots, nothing sent', 'count': 0,
                   'url': 'https://localhost:1/hook', **OURS_ALONE},
    'latency': {'what': '150 at 50 a second', **LATENCY, 'times': 3, 'subjects': ['floor', *PEERS, OURS]},
    '1k': {'what': '1,000 at full speed', 'count': 1000, 'subjects': ['floor', *PEERS, OURS]},
    '10k': {'what': '10,000 at full speed', 'count': 10000},
    '10k-one': {'what': '10,000 at full speed, one connection', 'count': 10000, 'connections': 1},
    '100k': {'what': '100,000 at full speed', 'count': 100000},
    '100k-one': {'what': '100,000 at full speed, one connection', 'count': 100000, 'connections': 1},
    'slow': {'what': '200 at full speed, an answer takes 50 ms', 'count': 200, 'delay_ms': 50},
    'tls': {'what': '10,000 over TLS, connections kept', 'count': 10000, 'tls': True},
    'tls-closes': {'what': '250 over TLS at 50 a second, closed after each answer', 'count': 250, 'rate': 50, 'tls': True,
                   'closes': True},
    'buffer-1k': {'what': '10,000 at 1,000 a second, default receive buffer', 'count': 10000, 'rate': 1000,
                  'default_buffer': True},
    'buffer-5k': {'what': '50,000 at 5,000 a second, default receive buffer', 'count': 50000, 'rate': 5000,
                  'default_buffer': True},
    'buffer-20k': {'what': '200,000 at 20,000 a second, default receive buffer', 'count': 200000, 'rate': 20000,
                   'default_buffer': True},
    'beside-bad': {'what': '150 at 50 a second, beside 20 bad webhooks', **LATENCY, 'times': 3, 'bad': 20, **OURS_ALONE},
    'webhooks-17': {'what': '150 at 50 a second to 17 webhooks', **LATENCY, 'webhooks': 17, **OURS_ALONE},
    'webhooks-20': {'what': '150 at 50 a second to 17 webhooks and 3 bad ones', **LATENCY, 'webhooks': 17, 'bad': 3,
                    **OURS_ALONE},
    'waiting-1k': {'what': '1,000 wait', 'count': 1000, 'backlog': True, 'subjects': [*PEERS[:2], OURS]},
    'waiting-10k': {'what': '10,000 wait', 'count': 10000, 'backlog': True, 'subjects': [*PEERS[:2], OURS]},
    'waiting-100k': {'what': '100,000 wait', 'count': 100000, 'backlog': True, 'subjects': [*PEERS[:2], OURS]},
    'limit-1': {'what': '100,000 of one task, rate limit on', 'count': 100000, 'tasks': 1, **OURS_ALONE},
    'limit-1k': {'what': '100,000 of 1,000 tasks, rate limit on', 'count': 100000, 'tasks': 1000, **OURS_ALONE},
    'limit-100k': {'what': '100,000 of 100,000 tasks, rate limit on', 'count': 100000, 'tasks': 100000, **OURS_ALONE},
    'template': {'what': '100,000 at full speed, with headers and a template', 'count': 100000, 'keys': TEMPLATE, 'times': 3,
                 **OURS_ALONE},
    'signed': {'what': '100,000 at full speed, and signed', 'count': 100000, 'keys': TEMPLATE + SECRET, 'times': 3, **OURS_ALONE},
    'disk-latency': {'what': '150 at 50 a second, a sync takes 20 ms', **LATENCY, 'sync_ms': 20, **OURS_ALONE},
    'disk-10k': {'what': '10,000 at full speed, a sync takes 20 ms', 'count': 10000, 'sync_ms': 20, **OURS_ALONE},
}
QUICK = ['start', 'latency', '10k', '100k']

# What a run gives: field, heading, digits, and what it is multiplied with (1 MB = 1,000,000 bytes).
FIELDS = [
    ('arrived', 'arrived', 0, 1), ('kernel_drops', 'kernel drops', 0, 1), ('p50_ms', 'median ms', 2, 1),
    ('p99_ms', 'p99 ms', 2, 1), ('last_ms', 'last ms', 0, 1), ('cpu_us', 'CPU us each', 0, 1), ('start_ms', 'start ms', 1, 1),
    ('rest_kb', 'at rest MB', 1, 1024 / 1e6), ('waiting_kb', 'waiting MB', 1, 1024 / 1e6),
    ('peak_kb', 'peak MB', 1, 1024 / 1e6), ('restart_ms', 'start again ms', 1, 1), ('drain_ms', 'all delivered ms', 0, 1),
    ('open_max', 'connections', 0, 1), ('resumed', 'resumed', 0, 1), ('doubles', 'doubles', 0, 1),
]
RATIOS = ['p50_ms', 'p99_ms', 'last_ms', 'cpu_us', 'start_ms', 'rest_kb', 'waiting_kb', 'peak_kb']

# What is aimed at: text, run, field, what it is compared with (a subject or a run; None: with nothing), and the most.
AIMS = [
    ('all of 1,000 arrive', '1k', 'lost', None, 0),
    ('all of 10,000 arrive', '10k', 'lost', None, 0),
    ('all of 100,000 arrive', '100k', 'lost', None, 0),
    ('100,000: time to the last', '100k', 'last_ms', 'floor', 1.25),
    ('100,000: CPU for each', '100k', 'cpu_us', 'floor', 1.6),
    ('100,000: most memory, MB', '100k', 'peak_kb', None, 40),
    ('with headers and a template: CPU for each', 'template', 'cpu_us', '100k', 1.3),
    ('and signed: CPU for each', 'signed', 'cpu_us', '100k', 1.6),
    ('50 a second: median latency', 'latency', 'p50_ms', 'floor', 1.35),
    ('50 a second: 99th percentile', 'latency', 'p99_ms', 'floor', 1.4),
    ('50 a second: CPU for each', 'latency', 'cpu_us', 'rsyslog', 0.5),
    ('memory at rest, MB', 'start', 'rest_kb', None, 1),
    ('from exec until it listens, ms', 'start', 'start_ms', None, 2),
    ('TLS, connections kept: CPU us for each', 'tls', 'cpu_us', None, 20),
    ('TLS, a new connection each: CPU us for each', 'tls-closes', 'cpu_us', None, 600),
    ('default receive buffer, 5,000 a second: all arrive', 'buffer-5k', 'lost', None, 0),
    ('beside 20 bad webhooks: median latency', 'beside-bad', 'p50_ms', 'latency', 1.1),
]


# How the peers are called, which peers.sh unpacks into build/bench/peers/NAME ({ROOT}). Words in braces: see bench.py. The
# configuration is made of the file `config`, and there {TLS} becomes `tls` if the webhook wants it.
PEER_TABLE = {
    'rsyslog': {
        'command': '{ROOT}/usr/sbin/rsyslogd -n -f {CONFIG} -i {FOLDER}/pid -M {MODULES}',
        'modules': 'usr/lib/*-linux-gnu/rsyslog', 'config': 'rsyslog.conf', 'tls': 'usehttps="on" tls.cacert="{CA}"'},
    'syslog-ng': {
        'command': '{ROOT}/usr/sbin/syslog-ng -F --no-caps -f {CONFIG} -R {FOLDER}/persist -c {FOLDER}/ctl -p {FOLDER}/pid '
                   '--module-path={MODULES}',
        'modules': 'usr/lib/syslog-ng/[0-9]*', 'config': 'syslog-ng.conf', 'tls': 'tls(ca-file("{CA}") peer-verify(yes))'},
    'socat-curl': {
        'command': '{ROOT}/usr/bin/socat -u UDP-RECVFROM:{UDP_PORT},bind=127.0.0.1,fork,rcvbuf=4194304 '
                   'EXEC:{HERE}/peers/socat.sh',
        'modules': 'usr/lib/*-linux-gnu'},
}


def find_peers():
    """The peers that are there: for each its entry of the table, with its words, its version and where its libraries are."""
    found = {}
    for name, entry in PEER_TABLE.items():
        root = os.path.join(OUT, 'peers', name)
        modules = glob.glob(os.path.join(root, entry['modules']))
        if not modules:
            continue
        with open(os.path.join(root, 'version'), encoding='ascii') as file:
            version = file.read().strip()
        libraries = glob.glob(root + '/usr/lib/*-linux-gnu') + [os.path.dirname(modules[0])]
        found[name] = {
            **entry, 'command': entry['command'].split(), 'version': version,
            'words': {'ROOT': root, 'HERE': HERE, 'MODULES': modules[0], 'VERSION': os.path.basename(modules[0])},
            'environment': {'LD_LIBRARY_PATH': ':'.join(libraries), 'PATH': root + '/usr/bin:' + os.environ['PATH']}}
    return found
