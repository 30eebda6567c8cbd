"""
samples/receivers: what each sample sends fits the receiver's documented limits, whatever Qlik Sense's names hold; and those that
can be had here take the alert. data/receivers/NAME.schema.json says what a receiver takes, of what our sample uses, and where it
is written. It lets a field stand only where the receiver shows plain text. Run by `make check-peers`.
"""

import base64
import hashlib
import hmac
import json
import os
import re
import subprocess
import time
import urllib.request

import jsonschema
import pytest

import harness
import servers
import words
from harness import datagram

FOLDER = os.path.join(harness.ROOT, 'samples/receivers')
SCHEMAS = os.path.join(harness.ROOT, 'test/data/receivers')
NPM = os.path.join(harness.ROOT, 'build/npm')     # where make check-peers installs what test/data/npm names
NAMES = sorted(name[:-len('.yaml')] for name in os.listdir(FOLDER) if name.endswith('.yaml'))
STANDARD = ('node-red', 'signed')       # they get the standard body
SECRET = b'0123456789abcdef0123456789abcdef'
VARIABLES = {
    'SLACK_WEBHOOK_URL': 'https://hooks.slack.com/services/T00000000/B00000000/Zx81Zx81Zx81Zx81Zx81Zx81',
    'TEAMS_WORKFLOW_URL': 'https://example.environment.api.powerplatform.com/workflows/0123456789abcdef/triggers?sig=Very-secret',
    'DISCORD_WEBHOOK_URL': 'https://discord.com/api/webhooks/123456789012345678/Zx81Zx81Zx81Zx81Zx81Zx81',
    'PAGERDUTY_ROUTING_KEY': 'R0123456789abcdef0123456789abcde', 'SERVICENOW_PASSWORD': 'pass-4711', 'JSM_API_KEY': 'key-4711',
    'SPLUNK_HEC_TOKEN': 'token-4711', 'NTFY_TOPIC': 'qlik-4711', 'NODE_RED_PASSWORD': 'pass-4711',
    'BUTLER_SIGNING_SECRET': 'whsec_' + base64.b64encode(SECRET).decode()}
AUTHORIZATION = {'servicenow': 'Basic cWxpay5hbGVydHM6cGFzcy00NzEx', 'node-red': 'Basic cWxpazpwYXNzLTQ3MTE=',
                 'jira-service-management': 'GenieKey key-4711', 'splunk': 'Splunk token-4711'}
ALERT = {'host': 'qliksrv1', 'task': 'Reload of Sales', 'app': 'Sales', 'user': 'LAB\\anna', 'message': 'Max retries reached'}
MARKUP = '<!channel> @everyone [x](y) <b>&amp {{taskName}} {{x}} ${x} ${env:HOME} "\\\'\u2028\r\n\t'
# What is longest in characters, in UTF-16 and in JSON, and what may act.
FILLINGS = ('x', '😀', '\x01', MARKUP)
FIELDS = ('host', 'task', 'app', 'user', 'date', 'level', 'execution_id', 'message')


def max_length(_, limit, value, __):
    """Some receivers count UTF-16: so do we, which is never less than characters."""
    if isinstance(value, str) and len(value.encode('utf-16-le')) > 2 * limit:
        yield jsonschema.ValidationError('%d of at most %d: %.60r' % (len(value.encode('utf-16-le')) // 2, limit, value))


def max_bytes(_, limit, value, __):
    if isinstance(value, str) and len(value.encode()) > limit:
        yield jsonschema.ValidationError('%d bytes of at most %d: %.60r' % (len(value.encode()), limit, value))


VALIDATOR = jsonschema.validators.extend(jsonschema.Draft202012Validator, {'maxLength': max_length, 'maxBytes': max_bytes})


def schema_of(name):
    with open(os.path.join(SCHEMAS, '%s.schema.json' % ('standard' if name in STANDARD else name)), encoding='utf-8') as file:
        return json.load(file)


def start(t, name, url, action=None):
    """Starts the program on the sample, or runs an action such as --test; only its port and the webhook's URL are others."""
    with open(os.path.join(FOLDER, name + '.yaml'), encoding='utf-8') as file:
        text = file.read()
    for old, new in (('webhookURL: .*', 'webhookURL: ' + url),
                     (r'udpServerConfig:\n    enable: true\n', r'\g<0>    portTaskFailure: %d\n' % t.port())):
        text, count = re.subn(old, new, text)
        t.equal('%s: places with %s' % (name, old), count, 1)
    path = servers.write_file(os.path.join(t.tmp, 'butler.yaml'), text)
    return t.run(action, path, env=VARIABLES) if action else t.start(path, env=VARIABLES)


def strings(value):
    """All texts in some JSON, one a line."""
    if isinstance(value, (dict, list)):
        return '\n'.join(map(strings, value.values() if isinstance(value, dict) else value))
    return str(value)


def full(fields, filling):
    """A datagram of the greatest size, with so much of the filling in these fields that it is full."""
    empty = len(datagram(**{field: '' for field in fields})) + len(fields)      # a letter before each
    room = (65507 - empty) // len(fields) // len(filling.encode())
    return datagram(**{field: 'x' + filling * room for field in fields})


@pytest.mark.parametrize('name', NAMES)
def test_secrets(t, name):
    """--check shows nothing of what stands in the variables, and the file's first lines name them all."""
    path = os.path.join(FOLDER, name + '.yaml')
    done = t.run('--check', path, env=VARIABLES)
    t.equal('--check', (done.returncode, done.stderr), (0, ''))
    t.check('no secret', not re.search('4711|Very-secret|Zx81Zx81|R0123456|whsec', done.stdout), done.stdout)
    first, _, rest = servers.read_bytes(path).decode().partition('Butler:')
    for variable in re.findall(r'\$\{env:(\w+)\}', rest):
        t.check('the first lines name %s' % variable, variable == 'NTFY_TOKEN' or variable in first)


@harness.limit(120)
@pytest.mark.parametrize('name', NAMES)
def test_limits(t, name):
    """An ordinary alert of each kind arrives whole; whatever fills a datagram stays within what the receiver takes."""
    schema = schema_of(name)
    t.check('the schema names its source and its date', re.search(r'https?://.*20\d\d-\d\d-\d\d|README', schema['$comment']))
    validator = VALIDATOR(schema)
    receiver = t.receiver()
    program = start(t, name, receiver.url('/hook'))

    def sent(what, data):
        count = len(receiver.requests) + 1
        program.send(data)
        requests = receiver.wait(count)
        t.require('%s arrives' % what, len(requests) == count, program.log[-2:])
        body = requests[-1].json()
        for error in validator.iter_errors(body):
            t.check('%s: %s' % (what, '/'.join(map(str, error.path))), False, error.message[:300])
        t.check('%s: bytes' % what, len(requests[-1].body) <= schema.get('maxBytes', 1 << 20), len(requests[-1].body))
        return requests[-1], strings(body)

    for kind in ('failed', 'aborted'):
        execution = harness.guid()
        request, text = sent(kind, datagram('/scheduler-task-%s/' % kind, execution_id=execution, **ALERT))
        for value in ('Qlik Sense reload ' + kind, execution, *ALERT.values()):
            t.check('%s is told' % value, value in text, text)
        t.equal('Authorization', request.get('Authorization'), AUTHORIZATION.get(name))
        if name == 'signed':
            to_sign = '%s.%s.' % (request.get('webhook-id'), request.get('webhook-timestamp'))
            digest = hmac.new(SECRET, to_sign.encode() + request.body, hashlib.sha256).digest()
            t.equal('signature', request.get('webhook-signature'), 'v1,' + base64.b64encode(digest).decode())
            t.equal('its own header', request.get('X-Source'), 'qlik-production')
    for filling in FILLINGS:
        for fields in ((field,) for field in FIELDS):
            sent('%r in %s' % (filling, fields[0]), full(fields, filling))
        _, text = sent('%r in all' % filling, full(FIELDS, filling))
        t.check('what is sent of it is as it was', 'x' + (filling * 60)[:48] in text, text[:300])
    sent('nothing in any field', datagram(task_id='', app_id=harness.guid(), **dict.fromkeys(FIELDS, '')))


def get(url, password=None):
    """The JSON that a GET brings."""
    request = urllib.request.Request(url)
    if password:
        request.add_header('Authorization', 'Basic ' + base64.b64encode(password.encode()).decode())
    with urllib.request.urlopen(request, timeout=10 * harness.SLOW) as answer:
        return json.load(answer)


class Alertmanager(servers.Server):
    """prometheus-alertmanager on a port of its own, which knows the alerts of API v2 that it has."""

    def __init__(self, t):
        self.port = t.port()
        config = servers.write_file(os.path.join(t.tmp, 'alertmanager.yml'),
                                    'route: { receiver: none }\nreceivers: [ { name: none } ]\n')
        super().__init__([servers.need(t, 'prometheus-alertmanager'), '--config.file=' + config, '--cluster.listen-address=',
                          '--storage.path=' + os.path.join(t.tmp, 'data'), '--web.listen-address=127.0.0.1:%d' % self.port])
        self.wait_listening(self.port)
        self.url = 'http://127.0.0.1:%d/api/v2/alerts' % self.port

    def alerts(self, count):
        """Its alerts by the name of their task, once there are so many."""
        deadline = time.monotonic() + 10 * harness.SLOW
        while len(alerts := get(self.url)) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        return {alert['labels'].get('task'): alert for alert in alerts}


def test_alertmanager(t):
    """It takes our alerts, hostile ones too, and resolves them after its resolve_timeout; --test makes one as well."""
    server = t.add(Alertmanager(t))
    program = start(t, 'alertmanager', server.url)
    task_id = harness.guid()
    program.send(datagram(task_id=task_id, **ALERT))
    servers.says(t, program, words.delivered())
    program.send(datagram(task='x' + MARKUP * 9, message=MARKUP * 500))
    alerts = server.alerts(2)
    t.require('both are there', len(alerts) == 2, alerts)
    alert = alerts[ALERT['task']]
    t.equal('labels', alert['labels'], {'alertname': 'QlikSenseReload', 'kind': 'failure', 'severity': 'warning',
                                        'task': ALERT['task'], 'taskId': task_id})
    t.equal('annotations', [alert['annotations'].get(key) for key in ('summary', 'app', 'user', 'server', 'message')],
            ['Qlik Sense reload failed: Reload of Sales', 'Sales', 'LAB\\anna', 'qliksrv1', ALERT['message']])
    t.equal('markup stays text', [task for task in alerts if task != ALERT['task']], ['x' + (MARKUP * 9)[:198] + '…'])
    begin, end = (time.mktime(time.strptime(alert[key][:19], '%Y-%m-%dT%H:%M:%S')) for key in ('updatedAt', 'endsAt'))
    t.check('it ends after 5 minutes by itself', 298 <= end - begin <= 302, alert)
    done = start(t, 'alertmanager', server.url, '--test')
    t.equal('--test', done.returncode, 0)
    t.check('--test is a real alert', 'butler_webhook test' in server.alerts(3))


# Node-RED's settings, and a flow as the sample wants it, with a way to ask for what it has got.
SETTINGS = """module.exports = {
    uiHost: '127.0.0.1', uiPort: PORT, httpAdminRoot: false, userDir: __dirname, flowFile: 'flows.json',
    httpNodeAuth: { user: 'qlik', pass: require('NPM/node_modules/bcryptjs').hashSync('pass-4711', 4) },
    logging: { console: { level: 'info' } }, telemetry: { enabled: false, updateNotification: false },
    externalModules: { palette: { allowInstall: false } } };
"""
KEEP = "flow.set('got', (flow.get('got') || []).concat(msg.payload)); msg.payload = {}; return msg;"
TELL = "msg.payload = flow.get('got') || []; return msg;"
FLOW = [{'id': 'flow', 'type': 'tab', 'label': 'Qlik'},
        {'id': 'in', 'z': 'flow', 'type': 'http in', 'url': '/qlik', 'method': 'post', 'wires': [['keep']]},
        {'id': 'keep', 'z': 'flow', 'type': 'function', 'func': KEEP, 'outputs': 1, 'wires': [['out']]},
        {'id': 'ask', 'z': 'flow', 'type': 'http in', 'url': '/got', 'method': 'get', 'wires': [['tell']]},
        {'id': 'tell', 'z': 'flow', 'type': 'function', 'func': TELL, 'outputs': 1, 'wires': [['out']]},
        {'id': 'out', 'z': 'flow', 'type': 'http response', 'statusCode': '', 'wires': []}]


def of_npm(t, library):
    """The folder of what npm has installed, which it cannot everywhere: then the test is skipped."""
    folder = os.path.join(NPM, 'node_modules', library)
    if not os.path.isdir(folder):
        t.skip('npm has not installed %s' % library)
    return folder


class NodeRed(servers.Server):
    """Node-RED with that flow, on a port of its own."""

    def __init__(self, t):
        self.port = t.port()
        script = os.path.join(of_npm(t, 'node-red'), 'red.js')
        servers.write_file(os.path.join(t.tmp, 'flows.json'), json.dumps(FLOW))
        settings = SETTINGS.replace('PORT', str(self.port)).replace('NPM', NPM)
        settings = servers.write_file(os.path.join(t.tmp, 'settings.js'), settings)
        super().__init__([servers.need(t, 'node'), script, '--settings', settings], cwd=t.tmp)
        self.wait_ready(lambda: b'Started flows' in self._output)


def test_node_red(t):
    """It takes the standard body, hostile fields too, with the password that its settings ask for."""
    server = t.add(NodeRed(t))
    url = 'http://127.0.0.1:%d' % server.port
    program = start(t, 'node-red', url + '/qlik')
    program.send(datagram(**ALERT))
    program.send(full(('task', 'message'), MARKUP))
    servers.says(t, program, words.delivered(), count=2)
    got = sorted(get(url + '/got', 'qlik:pass-4711'), key=lambda alert: alert['taskName'])
    t.equal('the ordinary one', [got[0].get(key) for key in ('event', 'hostName', 'taskName', 'appName', 'user', 'logMessage')],
            ['Qlik Sense reload failed', *(ALERT[key] for key in ('host', 'task', 'app', 'user', 'message'))])
    t.check('the hostile one is as it was', got[1]['taskName'] == 'x' + MARKUP * (got[1]['taskName'].count('<!channel>')), got[1])
    t.equal('and no other', len(got), 2)


def ask_library(t, library, script, value):
    """What a script of test/data/npm, which uses this library, makes of the value."""
    of_npm(t, library)
    script = os.path.join(harness.ROOT, 'test/data/npm', script)
    done = subprocess.run([servers.need(t, 'node'), script, NPM], capture_output=True, text=True,
                          input=json.dumps(value), timeout=30 * harness.SLOW)
    t.require('%s says nothing else' % library, (done.returncode, done.stderr) == (0, ''), done.stderr)
    return json.loads(done.stdout)


def test_teams_card(t):
    """Microsoft's own library for Adaptive Cards has nothing against ours, and understands all of it."""
    receiver = t.receiver()
    program = start(t, 'teams', receiver.url('/hook'))
    for data in (datagram(**ALERT), full(FIELDS, MARKUP)):
        count = len(receiver.requests) + 1
        program.send(data)
        card = receiver.wait(count)[-1].json()['attachments'][0]['content']
        t.equal('what it says, and the card', ask_library(t, 'adaptivecards', 'card.js', card), {'problems': [], 'card': card})


def test_standard_webhooks(t):
    """The library of Standard Webhooks takes what we sign, but not with another secret, body or id, and not at another time."""
    receiver = t.receiver()
    program = start(t, 'signed', receiver.url('/hook'))
    secret, other = VARIABLES['BUTLER_SIGNING_SECRET'], 'whsec_' + base64.b64encode(SECRET[::-1]).decode()
    for data in (datagram(**ALERT), full(FIELDS, MARKUP)):
        count = len(receiver.requests) + 1
        program.send(data)
        request = receiver.wait(count)[-1]
        headers, body = dict(request.headers), request.body
        wrong_id = {name: 'x' if name == 'webhook-id' else value for name, value in headers.items()}
        cases = ((secret, headers, body, 0), (other, headers, body, 0), (secret, headers, body + b' ', 0),
                 (secret, wrong_id, body, 0), (secret, headers, body, 301), (secret, headers, body, -601))
        cases = [dict(zip(('secret', 'headers', 'body', 'ahead'), (secret, headers, base64.b64encode(body).decode(), ahead)))
                 for secret, headers, body, ahead in cases]
        t.equal('what it says', ask_library(t, 'standardwebhooks', 'verify.js', cases),
                [request.json(), *['No matching signature found'] * 3, 'Message timestamp too old', 'Message timestamp too new'])
