"""
Bodies and queries of the user's own: what arrives, whatever a datagram holds, and what is kept of it on the disk.
unit.c has the forms of templates, data/config/templates-wrong.yaml the mistakes in them.
"""

import base64
import datetime
import hashlib
import hmac
import json
import os
import time

import pytest

import faults_base as base
import harness
import words

FIELDS = ('hostName', 'user', 'taskName', 'appName', 'logMessage')
KEYS = ('event', *FIELDS, 'taskId', 'appId', 'logTimeStamp', 'logLevel', 'executionId', 'kind', 'suppressed', 'receivedAt',
        'webhookId')
BODY = {'all': [{key: '<{{%s}}>' % key} for key in KEYS], 'short': '{{logMessage|20}}',
        "'{{event}}'": {'number': 1.50, 'no': None}}
UNITS = ['"', '\\', '\\u0041', '{{event}}', '}}', '${env:HOME}', '${file:butler.yaml}', '\n', '\r', '\t', '\x01', '\x7f', '\0',
         '&', '=', '%41', '+', ' ', '</script>', 'å', '\u2028', '\ufffd', '🚀', 'e\u0301', '\U0010ffff', 'null', ',', '] }']


def hostile(rng):
    return ''.join(rng.choice(UNITS) for _ in range(rng.randrange(20))) + '.'


def moment(text):
    return datetime.datetime.strptime(text, '%Y-%m-%dT%H:%M:%S.%f%z').timestamp()


def test_templates(t):
    """Random fields arrive as they are: in JSON, as text, in a query; and nothing else of the request changes."""
    rng = base.rng(t)
    receiver = t.receiver()
    path, _ = t.config([
        {'url': receiver.url('/plain')}, {'url': receiver.url('/json'), 'body': BODY},
        {'url': receiver.url('/own'), 'method': 'PUT', 'body': ['{{taskName}}'], 'headers': {'content-type': 'a/x.own'}},
        {'url': receiver.url('/text'), 'kind': 'aborted', 'method': 'PUT', 'body': '{{kind}}: {{logMessage}}'},
        {'url': receiver.url('/get?a=1'), 'kind': 'aborted', 'method': 'GET', 'query': {key: '<{{%s}}>' % key for key in KEYS}}])
    program = t.start(path)
    done = 0
    for number in range(30):
        kind = ('failed', 'aborted')[number % 2]
        fields = {key: hostile(rng) for key in FIELDS}
        program.send(harness.datagram('/scheduler-task-%s/' % kind, fields['hostName'], fields['taskName'], fields['appName'],
                                      fields['user'], message=fields['logMessage']))
        calls = 3 if kind == 'failed' else 2
        requests = {request.path: request for request in receiver.wait(done + calls)[done:]}
        t.require('calls', len(requests) == calls, program.log[-2:])
        done += calls
        fields = {key: value.replace('\0', '\ufffd') for key, value in fields.items()}
        if kind == 'failed':
            fields['user'] = fields['user'].replace('\\\\', '\\')      # as Butler sends it
            request = requests['/json']
            got = request.json()
            values = {key: value[1:-1] for entry in got['all'] for key, value in entry.items()}
            message = fields['logMessage']
            t.equal('cut', got['short'], message if len(message) <= 20 else message[:19] + '…')
            rest = b',"Qlik Sense reload failed":{"number":1.5,"no":null}}'
            t.check('the rest', request.body.endswith(rest), request.body[-60:])
            t.equal('type', request.get('Content-Type'), 'application/json')
            plain = requests['/plain'].json()
            t.equal('without a template', [plain[key] for key in FIELDS], [fields[key] for key in FIELDS])
            own = requests['/own']
            t.equal('its own type', (own.json(), own.get('Content-Type')), ([fields['taskName']], 'a/x.own'))
        else:
            request = requests['/get']
            t.equal('query', request.params()[0], ('a', '1'))
            values = {key: value[1:-1] for key, value in request.params()[1:]}
            text = requests['/text']
            t.equal('text', text.body.decode(), 'aborted: ' + fields['logMessage'])
            t.equal('its type', text.get('Content-Type'), 'text/plain; charset=utf-8')
        t.equal('keys', list(values), list(KEYS))
        t.equal('fields', {key: values[key] for key in FIELDS}, fields)
        t.equal('others', (values['kind'], values['suppressed'], values['webhookId'], values['event']),
                ('failure' if kind == 'failed' else kind, '0', request.get('webhook-id'),
                 'Qlik Sense reload ' + kind))
        t.check('receivedAt', abs(moment(values['receivedAt']) - time.time()) < 30, values['receivedAt'])


def test_template_query(t):
    """A redirect that repeats the query gets it once. One that is too long for the server is not cut: a dead letter."""
    def answer(request, connection):
        if len(request.target) > 2000:
            return harness.response(414)
        if request.path == '/hook':
            return harness.response(307, headers=[('Location', request.target.replace('/hook', '/moved'))])
        return harness.response(307, headers=[('Location', '/end')]) if request.path == '/moved' else harness.response()

    receiver = t.receiver(answer)
    path, _ = t.config([{'url': receiver.url('/hook'), 'method': 'GET', 'query': {'q': 'a b {{logMessage}}'}}])
    program = t.start(path)
    program.send(harness.datagram(message='x&y'))
    t.equal('targets', [request.target for request in receiver.wait(3)], [
        '%s?q=a+b+x%%26y' % place for place in ('/hook', '/moved', '/end')])
    program.send(harness.datagram(message='x' * 3000))
    t.check('given up', program.wait_log(words.given_up('failure 1', why='status 414')))
    t.equal('one call', len(receiver.requests), 4)


def test_template_suppressed(t):
    """How many were held back, and when the alert came, outlive a kill; for --replay both begin anew."""
    answers = [200, 503, 404, 200]
    receiver = t.receiver(lambda request, connection: harness.response(
        answers[len(receiver.requests) - 1], headers=[('Retry-After', '60')]))
    path, _ = t.config([{'url': receiver.url(), 'body': ['{{suppressed}}', '{{receivedAt}}']}], rateLimit=5)
    program = t.start(path)
    task = harness.guid()
    begin = time.time()
    program.send(harness.datagram(task_id=task))
    for number in range(1, 4):
        program.send(harness.datagram(task_id=task))
        t.check('held back', program.wait_log(words.HELD_BACK + '.*, %d since the last alert' % number))
    t.check('in time', time.time() - begin < 5, 'the machine is too slow for this test')
    time.sleep(max(0, begin + 5.1 - time.time()))
    program.send(harness.datagram(task_id=task))
    t.check('tried', program.wait_log(' asked to wait: 503'))
    program.kill()
    program = t.start(path)
    t.check('given up', program.wait_log(words.given_up('failure 1', why='status 404')))
    letter = base.until(lambda: t.letters(path))[0]
    t.equal('the letter', len(letter['alert']), 11)
    t.equal('--replay', t.run('--replay', path).returncode, 0)
    bodies = [json.loads(request.body) for request in receiver.wait(4)]
    t.equal('suppressed', [body[0] for body in bodies], ['0', '3', '3', '0'])
    received = [moment(body[1]) for body in bodies]
    t.check('received', abs(received[2] - received[1]) < 0.05 and received[1] - received[0] > 1, received)


@pytest.mark.parametrize('count', [1, 40])
def test_template_large(t, count):
    """The largest datagram, as often as a template likes: it arrives as valid JSON of bounded size."""
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url(), 'body': {'text': '{{logMessage}}' * count, 'end': '{{taskName}}'}}])
    program = t.start(path)
    message = '\x01' * (65500 - len(harness.datagram(message='')))
    program.send(harness.datagram(message=message))
    body = receiver.wait(1)[0].body
    got = json.loads(body)
    t.check('it is whole', got['text'].startswith(message), len(got['text']))
    t.equal('what follows', got['end'], 'Reload of Sales' if count == 1 else '…')
    t.check('it is bounded', len(body) < 2_000_000, len(body))


def test_template_test(t):
    """--test sends the template, too."""
    receiver = t.receiver()
    body = {'text': '{{taskName}} {{suppressed}} {{kind}}', 'at': '{{receivedAt}}'}
    path, _ = t.config([{'url': receiver.url(), 'body': body}])
    t.equal('exit code', t.run('--test', path).returncode, 0)
    got = receiver.wait(1)[0].json()
    t.equal('body', got['text'], 'butler_webhook test 0 failure')
    t.check('receivedAt', abs(moment(got['at']) - time.time()) < 30, got)


# ---- Signatures -----------------------------------------------------------------------------------------------------


def verifies(secret, request, body=None, now=None):
    """What a receiver does by the text of Standard Webhooks: one of the signatures fits, and the attempt is not old."""
    stamp = request.get('webhook-timestamp')
    signed = b'.'.join([request.get('webhook-id').encode(), stamp.encode(), request.body if body is None else body])
    mac = hmac.new(base64.b64decode(secret[len('whsec_'):]), signed, hashlib.sha256).digest()
    wanted = 'v1,' + base64.b64encode(mac).decode()
    return (abs(int(stamp) - (now or time.time())) < 300 and
            any(hmac.compare_digest(wanted, given) for given in request.get('webhook-signature').split(' ')))


def test_signature(t):
    """Each attempt is signed with its own time, over just the body that arrived, by each secret; and nobody sees a secret."""
    secrets = ['whsec_' + base64.b64encode(os.urandom(size)).decode() for size in (24, 32, 64, 40)]

    def answer(request, connection):
        again = [other for other in receiver.requests if other.path == request.path]
        return harness.response(503 if len(again) == 1 else 200, headers=[('Retry-After', '1')])

    receiver = t.receiver(answer)
    path, _ = t.config([
        {'url': receiver.url('/0'), 'signingSecret': secrets[0]},
        {'url': receiver.url('/1'), 'method': 'PUT', 'signingSecret': ['${env:NEW}', secrets[2]], 'body': ['{{logMessage}}']},
        {'url': receiver.url('/2'), 'signingSecret': [secrets[3]], 'body': '{{logMessage}}'},
        {'url': receiver.url('/none')}])
    env = {'NEW': secrets[1]}
    program = t.start(path, env=env)
    program.send(harness.datagram(message='å "\U0001f680'))
    t.require('each twice', len(receiver.wait(8)) == 8, program.log[-3:])
    valid = {'/0': [secrets[0]], '/1': secrets[1:3], '/2': [secrets[3]]}
    for name, good in valid.items():
        first, second = [request for request in receiver.requests if request.path == name]
        t.check('%s: the time goes on' % name, int(second.get('webhook-timestamp')) > int(first.get('webhook-timestamp')))
        t.equal('%s: the rest stays' % name, (second.body, second.get('webhook-id')), (first.body, first.get('webhook-id')))
        t.check('%s: another signature' % name, first.get('webhook-signature') != second.get('webhook-signature'))
        for request in (first, second):
            t.equal('%s: who can verify it' % name, [secret for secret in secrets if verifies(secret, request)], good)
            t.check('%s: no other body' % name, not verifies(good[0], request, request.body + b' '))
            t.check('%s: not later' % name, not verifies(good[0], request, now=time.time() + 400))
    t.equal('the others are not signed', {request.get('webhook-signature') for request in receiver.requests
                                          if request.path == '/none'}, {None})
    t.equal('exit code', program.stop(), 0)
    shown = program.stdout + ''.join(t.run(option, path, env=env).stdout for option in ('--check', '--pending'))
    t.check('no secret is shown', not [secret for secret in secrets if secret[6:20] in shown], shown)
