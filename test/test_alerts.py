"""
From the datagram to the call: what the program makes of real and made-up log events, the bytes that it sends, which
alerts it holds back, whom it listens to, and what it says in its log.

Expected bytes are computed here from the rules of JSON.stringify and URLSearchParams, or stand in test/data, where they
come from the real log4net and the real Butler.
"""

import base64
import collections
import datetime
import hashlib
import json
import os
import random
import re
import signal
import socket
import threading
import time

import pytest

import harness
import servers
import test_http

DATA = os.path.join(harness.ROOT, 'test/data')
TASK = 'dec2a02a-1680-44ef-8dc2-e2bfb180af87'
APP = 'e7af59a0-c243-480d-9571-08727551a66f'
NO_GUID = '00000000-0000-0000-0000-000000000000'
NAMES = ('host', 'authorization', 'proxy-authorization', 'content-type')
KEYS = ('event', 'hostName', 'user', 'taskName', 'taskId', 'appName', 'appId', 'logTimeStamp', 'logLevel',
        'executionId', 'logMessage')
SENT = ('event', 'hostName', 'taskName', 'appName', 'user', 'taskId', 'appId', 'logTimeStamp', 'logLevel',
        'executionId', 'logMessage')
EVENTS = {'failure': 'Qlik Sense reload failed', 'aborted': 'Qlik Sense reload aborted'}
IDS = {'failure': '/scheduler-task-failed/', 'aborted': '/scheduler-task-aborted/'}
ARGUMENTS = {'host': 'hostName', 'user': 'user', 'task': 'taskName', 'task_id': 'taskId', 'app': 'appName',
             'app_id': 'appId', 'date': 'logTimeStamp', 'level': 'logLevel', 'execution_id': 'executionId',
             'message': 'logMessage'}
DEFAULTS = {'host': 'qliksrv1', 'task': 'Reload of Sales', 'app': 'Sales', 'user': 'LAB\\goran', 'task_id': TASK,
            'app_id': APP, 'date': '2026-11-22 09:30:00,123', 'level': 'INFO', 'message': 'Max retries reached'}
LINE = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (error|warn|info|verbose|debug|silly): \S')
STOPPED = r'info: stopped: (\d+) received, (\d+) accepted, (\d+) delivered, (\d+) given up, (\d+) lost, (\d+) waiting$'
ALL_TEXT = ''.join(chr(c) for c in range(0x20, 0x7f) if chr(c) != ';')
MINUTE_LINES = 20       # lines a minute that are spent on each thing that others can cause at will
ID = r'msg_[0-9a-f]{32}_[fa]_[0-9a-f]{8}'       # a webhook-id


# ---- What must be sent ----------------------------------------------------------------------------------------------


def event(kind='failure', **given):
    """The fields of an alert, in their order, as they are sent; the arguments are those of harness.datagram."""
    values = {ARGUMENTS[name]: value.replace('\0', '\ufffd') for name, value in dict(DEFAULTS, **given).items()}
    values['event'] = EVENTS[kind]
    return {key: values[key] for key in KEYS}


def stringify(fields):
    """The bytes of JSON.stringify."""
    def text(value):
        short = {'"': '\\"', '\\': '\\\\', '\b': '\\b', '\t': '\\t', '\n': '\\n', '\f': '\\f', '\r': '\\r'}
        return '"%s"' % ''.join(short.get(c) or ('\\u%04x' % ord(c) if ord(c) < 0x20 else c) for c in value)
    return ('{%s}' % ','.join('%s:%s' % (text(key), text(value)) for key, value in fields.items())).encode('utf-8')


def search_params(fields):
    """The text of URLSearchParams."""
    def text(value):
        plain = b'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789*-._'
        return ''.join(chr(b) if b in plain else '+' if b == 0x20 else '%%%02X' % b for b in value.encode('utf-8'))
    return '&'.join('%s=%s' % (text(key), text(value)) for key, value in fields.items())


def shorten(value, limit=400):
    text = repr(value)
    return text if len(text) <= limit else '%s... (%d)' % (text[:limit], len(text))


def same_bytes(t, what, got, want):
    """Compares long texts or bytes; a failure shows the place where they part."""
    if got == want:
        return t.check(what, True)
    at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
    begin = max(0, at - 60)
    return t.check(what, False, 'at %d of %d: got ...%r, wanted ...%r (of %d)' %
                   (at, len(got), got[begin:at + 60], want[begin:at + 60], len(want)))


# ---- Rows of datagrams ----------------------------------------------------------------------------------------------


class Row:
    """A datagram and what must come of it: the kind of alert and its fields, or no alert and a line in the log."""

    def __init__(self, name, data, kind=None, fields=None, log=None):
        self.name = name
        self.data = data
        self.kind = kind
        self.fields = fields
        self.log = log


def alert(name, kind='failure', id=None, encoding='utf-8', begin=b'', end=b'', expect=None, **given):
    """A row that must be delivered. expect: fields that arrive in another form than they were sent."""
    given = dict(DEFAULTS, **dict({'execution_id': harness.guid()}, **given))
    data = begin + harness.datagram(id=id or IDS[kind], encoding=encoding, **given) + end
    return Row(name, data, kind, event(kind, **dict(given, **(expect or {}))))


def no_alert(name, data=None, log=r' verbose: ignored: ', id=IDS['failure'], **given):
    """A row that must not be delivered; log is what the log must say."""
    given = dict(DEFAULTS, **dict({'execution_id': harness.guid()}, **given))
    return Row(name, harness.datagram(id=id, **given) if data is None else data, log=log)


MALFORMED = r' warn: malformed datagram: .+: ".*", from 127\.0\.0\.1$'


def malformed(name, data=None, **given):
    return no_alert(name, data, MALFORMED, **given)


class Stage:
    """A program with a POST webhook for each kind of event; `play` sends a row and checks what comes of it."""

    def __init__(self, t, logLevel='verbose', **config):
        self.t = t
        self.receiver = t.receiver()
        path, _ = t.config([{'url': self.receiver.url('/failure')},
                            {'url': self.receiver.url('/aborted'), 'kind': 'aborted'}],
                           logLevel=logLevel, **config)
        self.program = t.start(path)
        self.sent = 0
        self.accepted = 0
        self.known = 0
        self.silent = 0
        self.malformed = 0

    def send(self, data, **options):
        self.sent += 1
        self.program.send(data, **options)

    def arrived(self, timeout=4):
        """What is new at the receiver: at least one request, unless the time is over."""
        requests = self.receiver.wait(self.known + 1, timeout)
        new = requests[self.known:]
        self.known = len(requests)
        return new

    def mark(self, what):
        """Sends an alert that must arrive; when it has, the one before has been dealt with."""
        execution_id = harness.guid()
        self.send(harness.datagram(task='mark', execution_id=execution_id))
        self.accepted += 1
        got = self.arrived()
        ids = [request.json().get('executionId') for request in got]
        self.t.check('%s: nothing but what comes after it is sent' % what, ids == [execution_id],
                     'got %s' % [shorten(request.body) for request in got])
        self.t.require('%s: the program goes on' % what, execution_id in ids, repr(self.program.log[-2:]))

    def new_line(self, begin, regex, timeout=3):
        """True once a line of the log from index begin on matches."""
        deadline = time.monotonic() + timeout * harness.SLOW
        while time.monotonic() < deadline:
            if any(re.search(regex, line) for line in self.program.log[begin:]):
                return True
            time.sleep(0.005)
        return False

    def play(self, row):
        begin = len(self.program.log)
        self.send(row.data)
        if row.kind is None:
            self.mark(row.name)
            self.malformed += row.log is MALFORMED
            if row.log and (row.log is not MALFORMED or self.malformed <= MINUTE_LINES):
                self.t.check('%s: the log says so' % row.name, self.new_line(begin, row.log),
                             'no %r in %s' % (row.log, shorten(self.program.log[begin:])))
            return
        self.accepted += 1
        got = self.arrived()
        if not self.t.check('%s: arrives once' % row.name, len(got) == 1,
                            '%d requests; log %s' % (len(got), shorten(self.program.log[begin:]))):
            self.silent += not got
            self.t.require('the program still sends', self.silent < 6)
            return
        self.t.equal('%s: method and path' % row.name, (got[0].method, got[0].target), ('POST', '/' + row.kind))
        same_bytes(self.t, '%s: body' % row.name, got[0].body, stringify(row.fields))

    def finish(self):
        """Stops the program: what it has counted must be what was sent, and nothing more may have arrived."""
        self.t.equal('exit code', self.program.stop(), 0)
        self.t.equal('requests in all', len(self.receiver.requests), self.accepted)
        match = self.program.wait_log(STOPPED, 1)
        counted = tuple(int(n) for n in match.groups()) if match else self.program.log[-2:]
        self.t.equal('counters', counted, (self.sent, self.accepted, self.accepted, 0, 0, 0))
        if self.malformed:
            self.t.check('malformed ones are counted', self.program.lines(r'info: no alerts: .* %d malformed, ' % self.malformed),
                         self.program.log[-2:])
        bad = [line for line in self.program.log if not LINE.match(line)]
        self.t.check('every line of the log has its form', not bad, shorten(bad[:3]))


def play_rows(t, rows):
    stage = Stage(t)
    for row in rows:
        stage.play(row)
    stage.finish()


# ---- Datagrams ------------------------------------------------------------------------------------------------------


# Where the rules for a `;` in a name cannot know what was meant: nothing tells the one inside the task name apart.
CUT_ELSEWHERE = {'051-a-control-chars.bin': {'taskName': 'esc\x1b]0', 'appName': 'x\x07;Test failing reloads 2'}}


@harness.limit(180)
def test_datagrams_of_log4net(t):
    """Every datagram in test/data/datagrams against the event that log4net was given."""
    with open(os.path.join(DATA, 'datagrams/index.json'), encoding='utf-8') as file:
        entries = json.load(file)
    files = [name for name in os.listdir(os.path.join(DATA, 'datagrams')) if name.endswith('.bin')]
    t.equal('files and entries', sorted(files), sorted(entry['file'] for entry in entries))
    stage = Stage(t)
    for entry in entries:
        with open(os.path.join(DATA, 'datagrams', entry['file']), 'rb') as file:
            row = Row(entry['file'], file.read(), log=r' verbose: ignored: ')
        if entry['verdict'] != 'ignored':
            row.kind = entry['verdict']
            row.fields = {key: entry['fields'].get(key, EVENTS[row.kind]) for key in KEYS}
            row.fields.update(CUT_ELSEWHERE.get(entry['file'], {}))
            row.fields = {key: value.replace('\0', '\ufffd') if isinstance(value, str) else value
                          for key, value in row.fields.items()}
            message = row.fields['logMessage']
            if isinstance(message, dict):
                row.fields['logMessage'] = row.data.split(b';', 10)[10].decode('utf-8')
                t.equal('%s: length and SHA-256 of the message' % row.name,
                        {'characters': len(row.fields['logMessage']),
                         'sha256': hashlib.sha256(row.fields['logMessage'].encode('utf-8')).hexdigest()}, message)
        stage.play(row)
    stage.finish()


def test_datagram_ids(t):
    rows = []
    for kind, names in (('failure', ('reload-failed', 'task-failed', 'reloadtask-failed')),
                        ('aborted', ('reload-aborted', 'task-aborted'))):
        for name in names:
            for id in ('/scheduler-%s/' % name, '/SCHEDULER-%s/' % name.upper(), '/Scheduler-%s/' % name.title()):
                rows.append(alert(id, kind, id))
    play_rows(t, rows)


def test_datagram_known_but_not_ours(t):
    rows = []
    for id in ('/scheduler-reload-success/', '/scheduler-task-success/', '/scheduler-reloadtask-success/',
               '/scheduler-task-success//', '/scheduler-reload-complete/', '/scheduler-distribute/',
               '/engine-reload-failed/'):
        for form in (id, id.upper()):
            rows.append(no_alert(form, id=form))
    rows.append(no_alert('fewer fields', b'/scheduler-task-success/;host;task'))
    rows.append(no_alert('no fields', b'/engine-reload-failed/;'))
    play_rows(t, rows)


def test_datagram_unknown_id(t):
    """A warning for each, as long as there are few, with text that is harmless."""
    stage = Stage(t, logLevel='info')
    unknown = r' warn: unknown message id: %s, from %s'
    for source, texts in (('127.0.0.1', ('/some-other-id/', '/some-other-id/', '/a-third/')),
                          ('127.0.0.7', ('/scheduler-task-failed', '/a-third/', '/a-third/')),
                          ('127.0.0.8', ('\x1b[31m/red/\r\n2026-01-01T00:00:00.000Z error: forged', 'x')),
                          ('127.0.0.9', ('scheduler-task-failed', '/scheduler-task-failed/ '))):
        for text in texts:
            stage.send(harness.datagram(id=text), source=source)
    stage.mark('unknown ids')
    for name, text, source in (('the first', '/some-other-id/', '127.0.0.1'),
                               ('no slash', '/scheduler-task-failed', '127.0.0.7'),
                               ('no first slash', 'scheduler-task-failed', '127.0.0.9')):
        t.check('%s is told' % name, stage.new_line(0, unknown % (re.escape(text), re.escape(source))),
                shorten(stage.program.lines('unknown|warn')))
    t.check('the hostile one is told', stage.new_line(0, unknown % (r'.*31m/red/.*', r'127\.0\.0\.8')))
    t.equal('a warning for each', len(stage.program.lines(' warn: ')), 10)
    stage.finish()
    t.check('nothing raw in the log', re.search(r'[\x00-\x09\x0b-\x1f\x7f-\x9f]', stage.program.stdout) is None)


def test_datagram_semicolons(t):
    run = ('%s;%s;2026-11-22 09:30:00,123;INFO;' % (TASK, APP))
    rows = [
        alert('in the task name, alone', task='EU;US sales', app='Finance',
              expect={'task': 'EU', 'app': 'US sales;Finance'}),
        alert('in the app name', task='Nightly', app='EU;US;'),
        alert('in the task name, followed by spaces', task='Reload; Sales; EU', app='Finance'),
        alert('task name of Qlik ends with the app name', task='Reload task of Sales;EU', app='Sales;EU'),
        alert('task name of Qlik, spaces', task='Manually triggered reload of Sales; EU; all', app='Sales; EU; all'),
        alert('task name is the app name', task='a;b', app='a;b'),
        alert('the app name goes before spaces', task='Reload of A; B', app='B', user='LAB; x'),
        alert('in the user', user='UserDirectory=LAB; UserId=goran', task='Nightly', app='Finance'),
        alert('in the user and the task name', user='UserDirectory=LAB; UserId=goran', task='Daily; weekly',
              app='Finance'),
        alert('in user, task name and app name', user='UserDirectory=LAB; UserId=goran', task='Daily; weekly',
              app='P; L'),
        alert('in the message', message='Max retries reached; code=1;see log;'),
        alert('the message is one', message=';'),
        alert('the message is many', message=';;;;;;;;;;;;'),
        alert('in everything', task='T; 1', app='A; 1', user='U; 1', message=';M;1;'),
        alert('names of levels as fields', task='INFO', app='ERROR', user='WARN', message='INFO;FATAL;x'),
        alert('names of levels between semicolons', task='a', app='b', user='c', message='x;y;z;INFO;1;2'),
        alert('a second record in the message', message='first\n' + harness.datagram(task='second').decode()),
        alert('a second record without a line end',
              message=harness.datagram(id=IDS['aborted'], task='second').decode()),
        alert('empty fields in a row in the message', message=';;;2026-11-22 09:30:00,123;INFO;;'),
        alert('all names empty', task='', app='', user=''),
        alert('names of levels in the message of ten semicolons', level='WARN', message='INFO'),
        alert('earliest end of the task name, latest begin of the user', task='a', app='b;c;d', user='e'),
        alert('the same with an empty field', task='', app='b;c', user=''),
        alert('two app names fit: without a space', task='x of B', app='B', user='LAB\\q', message='m'),
        alert('task name of Qlik, many pieces', task='Reload of ' + ';'.join('p%d' % n for n in range(25)),
              app=';'.join('p%d' % n for n in range(25)), user='u'),
        alert('many pieces', task='p0', app=';'.join('p%d' % n for n in range(1, 40)), user='u'),
        alert('very many pieces', task='p0', app=';'.join('p%d' % n for n in range(1, 3000)), user='u'),
        malformed('only two names', b'/scheduler-task-failed/;h;task;user;%s%s;m' % (run.encode(), TASK.encode())),
        malformed('only one name', b'/scheduler-task-failed/;h;task;%s%s;m' % (run.encode(), TASK.encode())),
        malformed('no names', b'/scheduler-task-failed/;h;%s%s;m' % (run.encode(), TASK.encode())),
    ]
    play_rows(t, rows)


def cut_names(text):
    """Task name, app name and user out of the text between host and taskId, as the contract says."""
    parts = text.split(';')
    best = None
    for end in range(1, len(parts) - 1):
        for begin in range(end + 1, len(parts)):
            task, app = ';'.join(parts[:end]), ';'.join(parts[end:begin])
            named = app != '' and task.endswith(app)
            spaced = parts[end].startswith(' ') or parts[begin].startswith(' ')
            rank = (not named, spaced, end, -begin)
            if best is None or rank < best[0]:
                best = (rank, {'task': task, 'app': app, 'user': ';'.join(parts[begin:])})
    return best[1]


@harness.limit(120)
def test_datagram_semicolons_random(t):
    """Random pieces between host and taskId against a second implementation of the rules."""
    source = random.Random(20261122)
    pieces = ('Sales', 'EU', ' EU', 'Reload of Sales', 'Reload of EU', '', ' ', 'of Sales', 'LAB\\goran', 'Sales EU',
              ' UserId=x')
    rows = []
    for number in range(200):
        text = ';'.join(source.choice(pieces) for _ in range(source.randrange(3, 9)))
        rows.append(alert('names %d %r' % (number, text), expect=cut_names(text), task='@', app='@', user='@'))
        rows[-1].data = rows[-1].data.replace(b'@;@;@', text.encode())
    play_rows(t, rows)


def is_id(text):
    return text in ('', '(null)') or re.fullmatch(r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}',
                                                  text.strip('{}').lower()) is not None


def cut_fields(text):
    """
    All fields of a datagram out of the text after its id, as the contract says: by position if there are ten of them and
    both ids look like ids; None if there is no run of taskId, appId, date, level and executionId with three names before
    it. Braces are always pairs here.
    """
    parts = text.split(';')
    if len(parts) == 10 and is_id(parts[4]) and is_id(parts[5]):
        fields = dict(zip(('host', 'task', 'app', 'user', 'task_id', 'app_id', 'date', 'level', 'execution_id', 'message'),
                          parts))
        return {name: '' if value == '(null)' and name != 'message' else value for name, value in fields.items()}
    for level in range(7, len(parts) - 2):
        if parts[level] in ('INFO', 'ERROR', 'FATAL', 'WARN') and is_id(parts[level - 3]) and is_id(parts[level - 2]):
            fields = cut_names(';'.join(parts[1:level - 3]))
            fields.update(host=parts[0], task_id=parts[level - 3], app_id=parts[level - 2], date=parts[level - 1],
                          level=parts[level], execution_id=parts[level + 1], message=';'.join(parts[level + 2:]))
            return {name: '' if value == '(null)' and name != 'message' else value for name, value in fields.items()}
    return None


@harness.limit(120)
def test_datagram_runs_random(t):
    """Where the fixed fields begin, among names and messages that look like them, in the same way."""
    source = random.Random(11)
    pieces = (TASK, '{%s}' % APP, APP.upper(), '', '', '(null)', 'INFO', 'ERROR', 'LOUD', '2026-11-22 09:30:00,123',
              'Sales', ' EU', 'a')
    rows = []
    seen = collections.Counter()
    while len(rows) < 250:
        noise = [source.choice(pieces) for _ in range(source.randrange(0, 12))]
        run = [TASK, source.choice((APP, APP, '', '(null)')), 'date', 'INFO', harness.guid()]
        at = source.randrange(len(noise) + 1)
        text = ';'.join(['host'] + (noise[:at] + run + noise[at:] if source.random() < 0.8 else noise * 2) + ['end'])
        fields = cut_fields(text)
        name = 'fields %d %s' % (len(rows), text)
        data = ('%s;%s' % (IDS['failure'], text)).encode()
        if fields is None:
            rows.append(malformed(name, data))
        elif fields['app_id'] == '':
            rows.append(no_alert(name, data))
        else:
            rows.append(Row(name, data, 'failure', event(**fields)))
        seen[rows[-1].kind or rows[-1].log] += 1
    t.check('there are enough of each', len(seen) == 3 and min(seen.values()) > 25, repr(seen))
    play_rows(t, rows)


def test_datagram_guids(t):
    upper, braces = APP.upper(), '{%s}' % APP
    rows = []
    for task_id in (TASK, TASK.upper(), '{%s}' % TASK, '{%s}' % TASK.upper(), TASK[:18] + TASK[18:].upper(), NO_GUID):
        for app_id in (APP, upper, braces, '{%s}' % upper):
            rows.append(alert('taskId %s, appId %s' % (task_id, app_id), task_id=task_id, app_id=app_id))
    for task_id in ('', '(null)'):
        rows.append(alert('taskId %r' % task_id, task_id=task_id, expect={'task_id': ''}))
    for execution_id in ('', '(null)', 'run 17', '{%s}' % TASK.upper()):
        expect = {'execution_id': '' if execution_id == '(null)' else execution_id}
        rows.append(alert('executionId %r' % execution_id, execution_id=execution_id, expect=expect))
    for wrong in (APP[:-1], APP + '0', 'g' + APP[1:], '{%s' % APP, '%s}' % APP, '{{%s}}' % APP, '(%s)' % APP,
                  APP.replace('-', '_'),
                  ' ' + APP, '(NULL)', 'null', APP[:9] + '-' + APP[9:-1], '%s\x00' % APP):
        rows.append(malformed('appId %r' % wrong, app_id=wrong))
        rows.append(malformed('taskId %r' % wrong, task_id=wrong))
    play_rows(t, rows)


def test_datagram_not_a_reload(t):
    rows = []
    for app_id in ('', '(null)', NO_GUID, '{%s}' % NO_GUID):
        for id in (IDS['failure'], IDS['aborted'], '/scheduler-reload-failed/'):
            rows.append(no_alert('appId %r, %s' % (app_id, id), app_id=app_id, id=id))
    rows.append(no_alert('appId empty and a semicolon', app_id='', task='a;b', message='c;d'))
    rows.append(alert('appId almost all zeros', app_id=NO_GUID[:-1] + '1'))
    play_rows(t, rows)


def test_datagram_null(t):
    rows = [alert('%s not set' % name, **{name: '(null)', 'expect': {name: ''}})
            for name in ('host', 'task', 'app', 'user')]
    rows += [alert('%s empty' % name, **{name: ''}) for name in ('host', 'task', 'app', 'user', 'date', 'message')]
    rows += [alert('%s with the text inside' % name, **{name: 'x (null)'})
             for name in ('host', 'task', 'app', 'user', 'message')]
    names = ('host', 'task', 'app', 'user', 'task_id', 'execution_id')
    rows.append(alert('all not set', expect={name: '' for name in names}, **{name: '(null)' for name in names}))
    play_rows(t, rows)


def test_datagram_levels(t):
    """With ten semicolons the level may be anything; with more of them it tells where the fixed fields stand."""
    rows = [alert('level %s' % level, level=level) for level in
            ('EMERGENCY', 'FATAL', 'ALERT', 'CRITICAL', 'SEVERE', 'ERROR', 'WARN', 'NOTICE', 'INFO', 'DEBUG', 'FINE',
             'TRACE',
             'FINER', 'VERBOSE', 'FINEST')]
    rows += [alert('level %s, a semicolon in the message' % row.fields['logLevel'], level=row.fields['logLevel'], message='a;b')
             for row in rows]
    others = ('', 'LOUD', '(null)', 'INFO ', 'INFOS', '1', 'info', 'Åäö', 'INFO\nx')
    rows += [alert('level %r' % level, level=level, expect={'level': '' if level == '(null)' else level}) for level in others]
    rows += [malformed('level %r, a semicolon in the message' % level, level=level, message='a;b')
             for level in others if level != 'info']
    play_rows(t, rows)


def test_datagram_user_backslashes(t):
    rows = []
    for given, wanted in (('LAB\\goran', 'LAB\\goran'), ('LAB\\\\goran', 'LAB\\goran'), ('A\\\\\\B', 'A\\\\B'),
                          ('A\\\\\\\\B', 'A\\\\B'), ('\\\\', '\\'), ('\\\\a\\\\b', '\\a\\b'), ('\\', '\\')):
        rows.append(alert('failed, user %s' % given, user=given, expect={'user': wanted}))
        rows.append(alert('aborted, user %s' % given, 'aborted', user=given))
    rows.append(alert('only the user', task='\\\\x', app='\\\\y', message='\\\\z', host='\\\\h'))
    play_rows(t, rows)


def test_datagram_line_ends(t):
    rows = []
    for end in ('\n', '\r\n', '\r', '\r\n\r\n', '\n\r\n\r', '\n' * 500):
        rows.append(alert('%r at the end' % end[:9], end=end.encode()))
        rows.append(alert('%r inside' % end[:9], message='one%stwo' % end, end=end.encode()))
        rows.append(alert('nothing but %r' % end[:9], message='', end=end.encode()))
    for text in ('x\r\n ', 'x\n\t', 'x\n\x00', 'x  ', 'x\x0b', 'x\x0c', 'x\x85', 'x\u2028', 'x\u2029', 'x\n.', '\nx',
                 '\r\n\r\nx'):
        rows.append(alert('kept: %r' % text, message=text))
    for text in ('Line 1\r\nLine 2', '\n', 'a\tb\x00c'):
        for name in ('host', 'task', 'app', 'user', 'date', 'execution_id'):
            rows.append(alert('%r in %s' % (text, name), **{name: text}))
    rows.append(malformed('NUL in a GUID', task_id=TASK[:8] + '\x00' + TASK[9:]))
    rows.append(malformed('line end in a GUID', task_id=TASK + '\n'))
    rows.append(alert('line end in the level', level='INFO\n'))
    rows.append(malformed('line end in the level, eleven semicolons', level='INFO\n', message='a;b'))
    rows.append(alert('line ends after UTF-16', encoding='utf-16-le', end='\r\n'.encode('utf-16-le')))
    play_rows(t, rows)


def test_datagram_control_characters(t):
    """Every control character in every field that is free text."""
    controls = ''.join(chr(c) for c in range(1, 0x20)) + '\x00\x7f' + ''.join(chr(c) for c in range(0x80, 0xa0))
    rows = [alert('all in %s' % name, **{name: 'a%sz' % controls})
            for name in ('host', 'task', 'app', 'user', 'message')]
    rows += [alert('U+%04X' % ord(c), task='<%s>' % c, message='<%s>' % c) for c in controls]
    play_rows(t, rows)


def cp1252(data):
    """Windows-1252 with the five undefined bytes as the code points of the same number."""
    return ''.join(chr(b) if b in (0x81, 0x8d, 0x8f, 0x90, 0x9d) else bytes((b,)).decode('cp1252') for b in data)


def raw_alert(name, message, **given):
    """A row whose message is bytes and arrives read as Windows-1252, like all text of that datagram."""
    given = dict(given, execution_id=harness.guid())
    wanted = {key: cp1252(value) if isinstance(value, bytes) else value
              for key, value in dict(given, message=message).items()}
    data = harness.datagram(encoding='raw', **dict(DEFAULTS, **dict(given, message=message)))
    return Row(name, data, 'failure', event(**wanted))


def test_datagram_windows_1252(t):
    rows = [raw_alert('all bytes from 80 to FF', bytes(range(0x80, 0x100))),
            raw_alert('all bytes in the names', b'x', task=bytes(range(0x80, 0x100)), app=bytes(range(0xff, 0x7f, -1)),
                      user=b'LAB\\g\xf6ran', host=b'v\xe4rd')]
    rows += [raw_alert('byte %02X' % b, b'x%cx' % b) for b in (0x81, 0x8d, 0x8f, 0x90, 0x9d, 0x80, 0xa0, 0xff)]
    utf8 = 'Å€'.encode()
    for name, bad in (('byte alone', b'\xe5'), ('continuation alone', b'\x80'), ('overlong slash', b'\xc0\xaf'),
                      ('overlong, three bytes', b'\xe0\x80\xaf'), ('overlong, four bytes', b'\xf0\x80\x80\xaf'),
                      ('surrogate', b'\xed\xa0\x80'), ('surrogate pair', b'\xed\xa0\xbd\xed\xb8\x80'),
                      ('above U+10FFFF', b'\xf4\x90\x80\x80'), ('byte F5', b'\xf5\x80\x80\x80'), ('byte FF', b'\xff'),
                      ('two of three bytes', b'\xe2\x82'), ('three of four bytes', b'\xf0\x9f\x98'),
                      ('C1', b'\xc1\xbf')):
        rows.append(raw_alert('not UTF-8 at the end: %s' % name, utf8 + bad, task=utf8))
        rows.append(raw_alert('not UTF-8 inside: %s' % name, utf8 + bad + b' and on', task=utf8))
    play_rows(t, rows)


def test_datagram_utf8(t):
    texts = ('\u0080', '\u07ff', '\u0800', '\ud7ff', '\ue000', '\ufeff', '\ufffd', '\uffff', '\U00010000', '\U0010ffff',
             'e\u0301', '\u202eabc', '👩\u200d👩\u200d👧', '販売', 'ß', '\u00a0')
    rows = [alert('text %r' % text, task=text, message='x' + text) for text in texts]
    rows.append(alert('byte order mark', begin=b'\xef\xbb\xbf', task='Åäö'))
    rows.append(alert('byte order mark, ASCII', begin=b'\xef\xbb\xbf'))
    rows.append(alert('byte order mark, aborted', 'aborted', begin=b'\xef\xbb\xbf'))
    play_rows(t, rows)


def test_datagram_utf16(t):
    rows = []
    for encoding, mark in (('utf-16-le', b'\xff\xfe'), ('utf-16-be', b'\xfe\xff')):
        for name, begin in (('', b''), (' with its mark', mark)):
            for text in ('plain', 'Åäö', '販売', '🚀 of 👩\u200d👧', '\u3b00\u0a0d\u0d0a\u2f00\u0a3b',
                         '\u0080\u0000\u001f', '\ufeff'):
                rows.append(alert('%s%s %r' % (encoding, name, text), encoding=encoding, begin=begin, task=text,
                                  app=text, message='x' + text))
            rows.append(alert('%s%s aborted' % (encoding, name), 'aborted', encoding=encoding, begin=begin))
            rows.append(alert('%s%s semicolons' % (encoding, name), encoding=encoding, begin=begin,
                              task='Reload; Sales; EU',
                              message='a;b'))
    rows.append(no_alert('success', harness.datagram(id='/scheduler-task-success//', encoding='utf-16-le')))
    play_rows(t, rows)


def test_datagram_utf16_broken(t):
    """Half a character is replaced; the alert arrives."""
    stage = Stage(t)
    for name, encoding, text, end, wanted in (
            ('high half alone', 'utf-16-le', 'a\ud83dz', b'', ('a\ufffdz',)),
            ('low half alone', 'utf-16-be', 'a\ude00z', b'', ('a\ufffdz',)),
            ('high half at the end', 'utf-16-le', 'a\ud83d', b'', ('a\ufffd',)),
            ('halves in the wrong order', 'utf-16-le', 'a\ude00\ud83dz', b'', ('a\ufffd\ufffdz',)),
            ('odd byte at the end', 'utf-16-le', 'az', b'\x41', ('az', 'az\ufffd')),
            ('odd byte at the end', 'utf-16-be', 'az', b'\x00', ('az', 'az\ufffd'))):
        stage.send(harness.datagram(encoding=encoding, message=text) + end)
        stage.accepted += 1
        got = stage.arrived()
        t.check('%s, %s' % (name, encoding), len(got) == 1 and got[0].json().get('logMessage') in wanted,
                shorten([request.body for request in got]))
    stage.finish()


def test_datagram_malformed(t):
    whole = harness.datagram(task_id=TASK)
    rows = [malformed('eleven semicolons and no level', whole.replace(b'INFO', b'') + b';')]
    rows += [malformed('only %d fields' % count, b';'.join(whole.split(b';')[:count])) for count in range(2, 10)]
    rows.append(malformed('no GUID at all', b'/scheduler-task-failed/;a;b;c;d;e;f;g;h;i;j;k'))
    rows.append(malformed('semicolons only', b'/scheduler-task-failed/' + b';' * 60000))
    rows.append(malformed('control characters',
                          b'/scheduler-task-failed/;\x1b[2J\r\n2026-01-01T00:00:00.000Z error: forged;\x07\x00'))
    rows.append(malformed('not UTF-8', b'/scheduler-task-failed/;\xff\xfe\x9b31m'))
    rows.append(malformed('long', b'/scheduler-task-failed/;' + b'x' * 65000))
    either = r' warn: (malformed datagram|unknown message id)'
    stage = Stage(t)
    for row in rows:
        stage.play(row)
    for name, data in (('empty', b''), ('a line end', b'\r\n'), ('one byte', b'x'), ('a semicolon', b';'),
                       ('a mark of UTF-16', b'\xff\xfe'), ('a mark of UTF-8', b'\xef\xbb\xbf'), ('a slash', b'/'),
                       ('zero bytes', b'\0' * 300), ('65,507 bytes', b'A' * 65507)):
        stage.play(no_alert(name, data, None))
    t.check('of the others at least one is told', stage.program.lines(either), shorten(stage.program.log[-20:]))
    stage.finish()
    forged = [line for line in stage.program.log if line.startswith('2026-01-01T')]
    t.check('no forged line', not forged, shorten(forged))
    longest = max(len(line) for line in stage.program.log)
    t.check('lines about what is no alert are bounded', longest < 5000, longest)


@harness.limit(120)
def test_datagram_noise(t):
    """Random and mutated datagrams: the program lives, the log stays clean, what is whole still arrives."""
    source = random.Random(7)
    stage = Stage(t)
    good = [harness.datagram(), harness.datagram(encoding='utf-16-le'), harness.datagram(task='a;b; c', user='x; y')]
    for _ in range(20):
        for _ in range(50):
            data = bytearray(source.choice(good))
            for _ in range(source.randrange(1, 12)):
                kind = source.randrange(4)
                at = source.randrange(len(data) + 1)
                if kind == 0:
                    data[at:at] = source.choice((b';', b'\0', b'(null)', b';;', b'\xff', b'INFO', b'\r\n', b'{'))
                elif kind == 1:
                    del data[at:at + source.randrange(40)]
                elif kind == 2:
                    data[at:at + 1] = bytes((source.randrange(256),))
                else:
                    data = bytearray(source.randbytes(source.randrange(1, 300)))
            stage.send(bytes(data))
        wanted = harness.guid().encode()
        stage.send(harness.datagram(execution_id=wanted.decode()))
        deadline = time.monotonic() + 5 * harness.SLOW
        while time.monotonic() < deadline and not any(wanted in request.body for request in stage.receiver.requests[-60:]):
            time.sleep(0.01)
        t.require('the program still works', any(wanted in request.body for request in stage.receiver.requests))
    t.equal('exit code', stage.program.stop(), 0)
    match = stage.program.wait_log(STOPPED, 1)
    t.check('all were received', match and int(match.group(1)) == stage.sent, repr(stage.program.log[-1]))
    t.check('what was accepted was sent', match and int(match.group(2)) == len(stage.receiver.requests),
            repr(stage.program.log[-1]))
    for request in stage.receiver.requests:
        fields = request.json()
        if tuple(fields) != KEYS or stringify(fields) != request.body:
            t.check('every body is JSON with all fields', False, shorten(request.body))
            break
    bad = [line for line in stage.program.log if not LINE.match(line)]
    t.check('every line of the log has its form', not bad, shorten(bad[:3]))
    t.check('nothing raw in the log', re.search(r'[\x00-\x09\x0b-\x1f\x7f-\x9f]', stage.program.stdout) is None)


def test_datagram_sizes(t):
    rows = []
    for name, filler in (('ASCII', 'x'), ('control characters', '\x01'), ('quotes', '"'), ('Swedish', 'å'),
                         ('emoji', '😀')):
        room = 65507 - len(harness.datagram(execution_id=NO_GUID, **dict(DEFAULTS, message='')))
        count = room // len(filler.encode())
        rows.append(alert('65,507 bytes of %s' % name,
                          message=filler * count + 'x' * (room - count * len(filler.encode()))))
        rows.append(alert('a task name of 30,000 times %s' % name, task=filler * (30000 // len(filler.encode()))))
    rows.append(alert('500 characters', task='t' * 501, app='a' * 501, user='u' * 501, message='m' * 501))
    rows.append(raw_alert('65,507 bytes of Windows-1252', b'\xe5' * (65507 - len(
        harness.datagram(execution_id=NO_GUID, **dict(DEFAULTS, message=''))))))
    t.equal('the longest', max(len(row.data) for row in rows), 65507)
    play_rows(t, rows)


# ---- The call -------------------------------------------------------------------------------------------------------


def expected_headers(request, authority, more=()):
    """What a request must carry, by name in lower case; what has no fixed value is a pattern."""
    wanted = {'host': re.escape(authority), 'user-agent': r'butler_webhook/[0-9]+\.[0-9]+\.[0-9]+', 'accept': r'.+',
              'webhook-id': ID, 'webhook-timestamp': r'[1-9][0-9]{9}'}
    if request.method != 'GET':
        wanted['content-type'] = r'application/json'
        wanted['content-length'] = str(len(request.body))
    wanted.update(more)
    return wanted


def check_headers(t, what, request, authority, more=()):
    wanted = expected_headers(request, authority, more)
    got = [(name.lower(), value) for name, value in request.headers if name.lower() != 'connection']
    t.equal('%s: names of the headers' % what, sorted(name for name, _ in got), sorted(wanted))
    for name, value in got:
        t.check('%s: %s' % (what, name), re.fullmatch(wanted.get(name, ''), value), repr(value))
    t.equal('%s: version' % what, request.version, 'HTTP/1.1')
    t.check('%s: connection is kept' % what, (request.get('Connection') or 'keep-alive').lower() == 'keep-alive')
    if request.get('webhook-timestamp', '').isdigit():
        arrived = time.time() - (time.monotonic() - request.time)
        t.check('%s: webhook-timestamp is the time of this attempt' % what,
                abs(arrived - int(request.get('webhook-timestamp'))) <= 2 * harness.SLOW,
                request.get('webhook-timestamp'))


def webhook_keys(t, path):
    """The keys of webhooks in the state directory's journal, as their dead letters name them."""
    return {re.match(r'\w+ \d+', letter['webhook']).group(): letter['webhookKey'] for letter in t.letters(path)}


def test_call_id_says_what_it_is_about(t):
    """
    webhook-id: executionId, kind and the webhook's key, so that a second server, which receives the same datagram, sends
    the same one; without an executionId the digits of the JSON's SHA-256.
    """
    run = harness.guid()
    digits = run.replace('-', '')
    receiver = t.receiver(harness.response(404))
    webhooks = three(receiver) + [{'url': receiver.url('/other'), 'kind': 'aborted'}] + [{'url': receiver.url('/twin')}] * 2
    seen = []
    for server in range(2):
        path, _ = t.config(webhooks)
        program = t.start(path)
        known = len(receiver.requests)
        sent = [dict(kind='failure', execution_id=run), dict(kind='aborted', execution_id=run.upper()),
                dict(kind='failure', execution_id='{%s}' % run.upper(), message='again'), dict(kind='failure', execution_id=''),
                dict(kind='failure', execution_id='run 17'), dict(kind='failure', execution_id='(null)', message='x\0y')]
        for given in sent:
            program.send(harness.datagram(id=IDS[given['kind']], **dict(DEFAULTS, **{
                key: value for key, value in given.items() if key != 'kind'})))
        count = 5 * 5 + 1
        t.check('server %d: all are given up' % server, program.wait_log('given up for', count=count), shorten(program.log[-2:]))
        got = receiver.wait(known + count)[known:]
        deadline = time.monotonic() + 5 * harness.SLOW
        while len(t.letters(path)) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        keys = webhook_keys(t, path)
        t.equal('server %d: webhooks with dead letters' % server, sorted(keys),
                ['aborted 1'] + ['failure %d' % n for n in range(1, 6)])
        t.equal('server %d: stops' % server, program.stop(), 0)
        wanted = collections.Counter()
        for given in sent:
            fields = event(**dict(given, execution_id='' if given['execution_id'] == '(null)' else given['execution_id']))
            about = digits if digits == given['execution_id'].strip('{}').lower().replace('-', '') else \
                hashlib.sha256(stringify(fields)).hexdigest()[:32]
            for name, key in keys.items():
                if name.startswith(given['kind']):
                    wanted['msg_%s_%s_%s' % (about, given['kind'][0], key[:8])] += 1
        found = collections.Counter(request.get('webhook-id') for request in got)
        t.check('server %d: ids' % server, found == wanted,
                'only got %s, only wanted %s' % (shorten(found - wanted), shorten(wanted - found)))
        letters = collections.Counter(letter['webhookId'] for letter in t.letters(path))
        t.check('server %d: ids of the dead letters' % server, letters == found, shorten(letters - found))
        seen.append(found)
    t.check('both servers send the same ids', seen[0] == seen[1], shorten(seen[1] - seen[0]))


def three(receiver, path='/hook'):
    """The same URL by each method."""
    return [{'url': receiver.url('%s/%s' % (path, method.lower())),
             'method': method} for method in ('GET', 'POST', 'PUT')]


def by_method(requests):
    return {request.method: request for request in requests}


def test_call_headers(t):
    receiver = t.receiver()
    path, _ = t.config(three(receiver) + [dict(webhook, kind='aborted') for webhook in three(receiver, '/other')])
    program = t.start(path)
    for number, kind in enumerate(('failure', 'aborted', 'failure')):
        program.send(harness.datagram(id=IDS[kind]))
        got = receiver.wait(3 * number + 3)[3 * number:]
        t.equal('%s: methods' % kind, sorted(request.method for request in got), ['GET', 'POST', 'PUT'])
        for request in got:
            check_headers(t, '%s %s' % (kind, request.method), request, receiver.authority)
            t.equal('%s %s: path' % (kind, request.method), request.path,
                    '/%s/%s' % ('hook' if kind == 'failure' else 'other', request.method.lower()))
    ids = [request.get('webhook-id') for request in receiver.requests]
    t.check('every alert and webhook has an id of its own', len(set(ids)) == 9, repr(ids))


def test_call_bytes(t):
    """Awkward text by each method, against the rules of JSON.stringify and URLSearchParams."""
    receiver = t.receiver()
    path, _ = t.config(three(receiver))
    program = t.start(path)
    texts = [ALL_TEXT, '"quotes" \'single\' `back`', 'C:\\temp\\new\\readme \\u0041 \\',
             'tab\tCR\rLF\nNUL\x00BS\bFF\fVT\x0bESC\x1bDEL\x7f.',
             '\u2028line\u2029', '</script><!-- -->', 'a&b=c+d%e#f?g/h', "*-._~'()!", '$,:@[]{}|^`<> \u00a0end',
             '100%25 %zz %', 'åäö ÅÄÖ é ß €',
             '販売 한국어', '🚀🔥👩\u200d👩\u200d👧', '\ufeffmark', '\ufffe\uffff', '\U0010ffff', ' leading and trailing ', '+',
             '&', '=', '?', '',
             '\u0080\u009f', 'e\u0301', '\u202eright to left', ''.join(chr(c) for c in range(0x20))]
    for number, text in enumerate(texts):
        given = {'execution_id': harness.guid(), 'host': text, 'task': text, 'app': text, 'message': 'x' + text + 'x'}
        if '\\\\' not in text:
            given['user'] = text
        program.send(harness.datagram(**dict(DEFAULTS, **given)))
        got = by_method(receiver.wait(3 * number + 3)[3 * number:])
        t.equal('%r: methods' % text[:20], sorted(got), ['GET', 'POST', 'PUT'])
        fields = event(**given)
        for method, request in got.items():
            if method == 'GET':
                same_bytes(t, '%r: GET target' % text[:20], request.target, '/hook/get?' + search_params(fields))
                t.equal('%r: GET body' % text[:20], request.body, b'')
            else:
                t.equal('%r: %s target' % (text[:20], method), request.target, '/hook/' + method.lower())
                same_bytes(t, '%r: %s body' % (text[:20], method), request.body, stringify(fields))


@harness.limit(120)
def test_call_bytes_random(t):
    source = random.Random(3)
    receiver = t.receiver()
    path, _ = t.config(three(receiver))
    program = t.start(path)
    ranges = ((0, 0x1f), (0x20, 0x7f), (0x20, 0x7f), (0x80, 0x7ff), (0x800, 0xd7ff), (0xe000, 0xffff),
              (0x10000, 0x10ffff))
    for number in range(60):
        def text():
            size = source.randrange(30)
            drawn = ''.join(chr(source.randint(*source.choice(ranges))) for _ in range(size))
            return drawn.replace(';', ',').replace('\\', '/')
        given = {'execution_id': harness.guid(), 'host': text(), 'task': text(), 'app': text(),
                 'user': text().replace('\\', '/'),
                 'date': text(), 'message': text().rstrip('\r\n')}
        program.send(harness.datagram(**dict(DEFAULTS, **given)))
        got = by_method(receiver.wait(3 * number + 3)[3 * number:])
        t.require('%d: methods' % number, sorted(got) == ['GET', 'POST', 'PUT'], repr(sorted(got)))
        fields = event(**given)
        same_bytes(t, '%d: GET' % number, got['GET'].target, '/hook/get?' + search_params(fields))
        same_bytes(t, '%d: POST' % number, got['POST'].body, stringify(fields))
        same_bytes(t, '%d: PUT' % number, got['PUT'].body, stringify(fields))


def test_call_long_get(t):
    """A long target is sent whole where the receiver takes it."""
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url('/long'), 'method': 'GET'}])
    program = t.start(path)
    for number, message in enumerate(('x' * 2500, 'å' * 9000, '\x01€😀' * 5000)):
        given = {'execution_id': harness.guid(), 'message': message}
        program.send(harness.datagram(**dict(DEFAULTS, **given)))
        got = receiver.wait(number + 1)[number:]
        t.equal('%r: requests' % message[:3], len(got), 1)
        same_bytes(t, '%r: target' % message[:3], got[0].target, '/long?' + search_params(event(**given)))


def basic(user, password=''):
    return 'Basic ' + base64.b64encode(('%s:%s' % (user, password)).encode()).decode()


# URL, then what arrives: Host, target, Authorization. PORT stands for the receiver's port.
URL_FORMS = [
    ('http://127.0.0.1:PORT', '127.0.0.1:PORT', '/', None),
    ('http://127.0.0.1:PORT/', '127.0.0.1:PORT', '/', None),
    ('http://127.0.0.1:0PORT/zero', '127.0.0.1:PORT', '/zero', None),
    (' http://127.0.0.1:PORT/outer ', '127.0.0.1:PORT', '/outer', None),
    ('HTTP://LOCALHOST:PORT/UP/../dot/./x//y', 'localhost:PORT', '/dot/x//y', None),
    ('http://LocalHost:PORT/Case?Q=Case', 'localhost:PORT', '/Case?Q=Case', None),
    ('http://127.0.0.1:PORT/a/../../../b', '127.0.0.1:PORT', '/b', None),
    ('http://127.0.0.1:PORT/a/b/..', '127.0.0.1:PORT', '/a/', None),
    ('http://127.0.0.1:PORT/a/b/.', '127.0.0.1:PORT', '/a/b/', None),
    ('http://127.0.0.1:PORT/...', '127.0.0.1:PORT', '/...', None),
    ('http://127.0.0.1:PORT/with space/åäö/日本?q=ö x', '127.0.0.1:PORT',
     '/with%20space/%C3%A5%C3%A4%C3%B6/%E6%97%A5%E6%9C%AC?q=%C3%B6%20x', None),
    ('http://127.0.0.1:PORT/😀?😀=1', '127.0.0.1:PORT', '/%F0%9F%98%80?%F0%9F%98%80=1', None),
    ('http://127.0.0.1:PORT/%c3%a5%2F%7e%zz%', '127.0.0.1:PORT', '/%c3%a5%2F%7e%zz%', None),
    ('http://127.0.0.1:PORT/"<>{}|^`\'[]~!$&()*+,;=:@', '127.0.0.1:PORT', '/%22%3C%3E%7B%7D|%5E%60\'[]~!$&()*+,;=:@',
     None),
    ('http://127.0.0.1:PORT/?"<>{}|^`\'[]/?:@', '127.0.0.1:PORT', '/?%22%3C%3E{}|^`%27[]/?:@', None),
    ('http://127.0.0.1:PORT/f?x=1#frag?ment', '127.0.0.1:PORT', '/f?x=1', None),
    ('http://127.0.0.1:PORT#frag', '127.0.0.1:PORT', '/', None),
    ('http://127.0.0.1:PORT?a=1', '127.0.0.1:PORT', '/?a=1', None),
    ('http://bob:secret@127.0.0.1:PORT/u', '127.0.0.1:PORT', '/u', basic('bob', 'secret')),
    ('http://bob@127.0.0.1:PORT/u', '127.0.0.1:PORT', '/u', basic('bob')),
    ('http://bob:@127.0.0.1:PORT/u', '127.0.0.1:PORT', '/u', basic('bob')),
    ('http://:pw@127.0.0.1:PORT/u', '127.0.0.1:PORT', '/u', basic('', 'pw')),
    ('http://us%40er:p%3Aw%20d@127.0.0.1:PORT/u', '127.0.0.1:PORT', '/u', basic('us@er', 'p:w d')),
    ('http://us@er:pa@ss@127.0.0.1:PORT/u', '127.0.0.1:PORT', '/u', basic('us@er', 'pa@ss')),
    ('http://a:b:c@127.0.0.1:PORT/u', '127.0.0.1:PORT', '/u', basic('a', 'b:c')),
    ('http://göran:lösen ord@127.0.0.1:PORT/u', '127.0.0.1:PORT', '/u', basic('göran', 'lösen ord')),
    ('http://g%C3%B6ran:%E2%82%AC@127.0.0.1:PORT/u', '127.0.0.1:PORT', '/u', basic('göran', '€')),
    ('http://@127.0.0.1:PORT/u', '127.0.0.1:PORT', '/u', None),
    ('http://bob:secret@localhost:PORT/u?a=1', 'localhost:PORT', '/u?a=1', basic('bob', 'secret')),
]
URL_FORMS_IPV6 = [
    ('http://[::1]:PORT/v6', '[::1]:PORT', '/v6', None),
    ('http://[0:0:0:0:0:0:0:1]:PORT/v6', '[::1]:PORT', '/v6', None),
    ('http://[0000:0::0001]:PORT/v6', '[::1]:PORT', '/v6', None),
    ('http://[::0.0.0.1]:PORT/v6', '[::1]:PORT', '/v6', None),
    ('http://bob:secret@[::1]:PORT/v6', '[::1]:PORT', '/v6', basic('bob', 'secret')),
]


# URLs that no webhook can have, and a word of what is said about each.
URL_ERRORS = [
    ('http://bücher.example/idn', 'xn--'), ('http://räksmörgås.example:8080/', 'xn--'), ('http://日本語.例え/', 'xn--'),
    ('http://b%C3%BCcher.example/percent', ''), ('http://%6c%6Fcalhost:PORT/pct', ''), ('http://a%00b/', ''),
    ('http://0x7f.1:PORT/hex', ''), ('http://0X7F000001:PORT/hex', ''), ('http://127.0.0.0x1:PORT/', ''),
    ('http://127.0.0.256:PORT/', ''), ('http://127.0.0.1.5:PORT/', ''), ('http://127.1:PORT/short', ''),
    ('http://2130706433:PORT/number', ''), ('http://0177.0.0.01:PORT/octal', ''), ('http://127.0.0.1.:PORT/dot', ''),
    ('http:\\\\127.0.0.1:PORT\\back', ''), ('http://127.0.0.1:PORT\\back', ''), ('http:/\\127.0.0.1:PORT/', ''),
    ('http:/127.0.0.1:PORT/one', ''), ('http:127.0.0.1:PORT/none', ''), ('http:///127.0.0.1:PORT/three', ''),
    ('http://127.0.0.1:PORT/a\tb', ''), ('ht\ttp://127.0.0.1:PORT/', ''), ('http://127.0.\n0.1:PORT/', ''),
    ('127.0.0.1:PORT/x', ''), ('//127.0.0.1:PORT/x', ''), ('/x', ''), ('', ''), ('ftp://127.0.0.1:PORT/', 'http'),
    ('http://', ''), ('http://:PORT/', ''), ('http://127.0.0.1:0/', 'port'), ('http://127.0.0.1:65536/', 'port'),
    ('http://127.0.0.1:-1/', 'port'), ('http://127.0.0.1:http/', 'port'), ('http://a b/', ''), ('http://<host>/', ''),
    ('http://[::1', ''), ('http://[1::2::3]/', ''), ('http://[127.0.0.1]/', ''), ('http://[fe80::1%25eth0]/', ''),
]


def test_call_url_errors(t):
    """Every URL that cannot be called is named with its place, and nothing is started."""
    urls = [(url.replace('PORT', '8080'), word) for url, word in URL_ERRORS]
    path, _ = t.config([{'url': url} for url, _ in urls])
    with open(path, encoding='utf-8') as file:
        places = [number for number, line in enumerate(file, 1) if 'webhookURL:' in line]
    for args in (('--check', path), (path,)):
        done = t.run(*args)
        t.equal('%d arguments: exit code' % len(args), done.returncode, 2)
        told = {int(number): text for number, text in re.findall(r'(?m):(\d+):\d+: error: (.*webhookURL.*)$', done.stderr)}
        for (url, word), place in zip(urls, places):
            t.check('%s: %r: an error%s' % (len(args), url, word and ' that says ' + word), place in told and word in told[place],
                    told.get(place))
        t.equal('%s: nothing else is told' % len(args), sorted(set(told) - set(places)), [])


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(('::1', 0))
            return True
    except OSError:
        return False


def check_urls(t, rows, host):
    """One webhook and one receiver for each row; then what arrived there."""
    receivers = [t.receiver(host=host) for _ in rows]
    path, _ = t.config([{'url': row[0].replace('PORT', str(receiver.port)), 'method': ('POST', 'PUT')[number % 2]}
                        for number, (row, receiver) in enumerate(zip(rows, receivers))])
    program = t.start(path)
    program.send(harness.datagram())
    for (url, authority, target, authorization), receiver in zip(rows, receivers):
        got = receiver.wait(1, 5)
        t.check('%s: arrives' % url, len(got) == 1, '%d requests' % len(got))
        for request in got:
            t.equal('%s: Host' % url, request.get('Host'), authority.replace('PORT', str(receiver.port)))
            t.equal('%s: target' % url, request.target, target)
            t.equal('%s: Authorization' % url, request.get('Authorization'), authorization)
    return program


@harness.limit(120)
def test_call_url_forms(t):
    check_urls(t, URL_FORMS, '127.0.0.1')


def test_call_url_forms_ipv6(t):
    if not has_ipv6():
        t.skip('no IPv6 here')
    check_urls(t, URL_FORMS_IPV6, '::1')


def test_call_url_ipv6_mapped(t):
    if not has_ipv6():
        t.skip('no IPv6 here')
    receiver = t.receiver()
    path, _ = t.config([{'url': 'http://[::ffff:127.0.0.1]:%d/v6' % receiver.port}])
    program = t.start(path)
    program.send(harness.datagram())
    t.check('it arrives, with the address in one of its forms', [request.get('Host') for request in receiver.wait(1)] in
            [[host % receiver.port] for host in ('[::ffff:7f00:1]:%d', '[::ffff:127.0.0.1]:%d', '127.0.0.1:%d')],
            [request.headers for request in receiver.requests])


def test_call_localhost_both_families(t):
    """A name with two addresses works whichever of them is listened to."""
    if not has_ipv6():
        t.skip('no IPv6 here')
    for host in ('127.0.0.1', '::1'):
        check_urls(t, [('http://localhost:PORT/' + host.replace(':', ''), 'localhost:PORT', '/' + host.replace(':', ''),
                        None)], host)


def test_call_url_as_a_proxy_sees_it(t):
    """Names that no one can look up here: a proxy gets them in the form in which they stand in Host."""
    rows = [
        ('http://example.test/x', 'example.test', '/x'),
        ('http://example.test:80/80', 'example.test', '/80'),
        ('http://example.test:/none', 'example.test', '/none'),
        ('http://example.test:443/x', 'example.test:443', '/x'),
        ('http://example.test:65535/x', 'example.test:65535', '/x'),
        ('http://EXAMPLE.Test/case', 'example.test', '/case'),
        ('http://xn--bcher-kva.example/ascii', 'xn--bcher-kva.example', '/ascii'),
        ('http://under_score.example/x', 'under_score.example', '/x'),
        ('http://example.test./x', 'example.test.', '/x'),
        ('http://user:pw@example.test/x?y=å#z', 'example.test', '/x?y=%C3%A5'),
        ('http://192.0.2.1:8080/x', '192.0.2.1:8080', '/x'),
        ('http://[2001:DB8:0:0:1:0:0:1]/x', '[2001:db8::1:0:0:1]', '/x'),
        ('http://[2001:db8::192.0.2.1]:80/x', '[2001:db8::c000:201]', '/x'),
        ('http://[1:0:2:0:0:3:4:5]/x', '[1:0:2::3:4:5]', '/x'),
        ('http://[1:0:2:3:4:5:6:7]/x', '[1:0:2:3:4:5:6:7]', '/x'),
    ]
    proxy = t.receiver()
    path, _ = t.config([{'url': url} for url, _, _ in rows])
    program = t.start(path, env={'HTTP_PROXY': proxy.url('')})
    program.send(harness.datagram())
    got = [(request.target, request.get('Host')) for request in proxy.wait(len(rows))]
    for url, authority, target in rows:
        wanted = ('http://%s%s' % (authority, target), authority)
        if t.check(url, wanted in got, 'wanted %r' % (wanted,)):
            got.remove(wanted)
    t.equal('targets and Hosts that were not wanted', got, [])


def test_call_get_with_a_query(t):
    rows = [('/q?a=1&b=two', '/q?a=1&b=two&'), ('/q', '/q?'), ('/q?', '/q?'), ('/q?a=1#frag', '/q?a=1&'),
            ('/q#frag', '/q?'), ('/q?#frag', '/q?'),
            ('?a', '/?a&'), ('/q?key=ö x', '/q?key=%C3%B6%20x&'), ('/q?event=mine', '/q?event=mine&'),
            ('/q?a=%20+%2B', '/q?a=%20+%2B&'), ('/q?url=x?', '/q?url=x?&'), ('/q??', '/q??&'), ('/q?a?', '/q?a?&'),
            ('/q?a=1&b?#frag', '/q?a=1&b?&')]
    receivers = [t.receiver() for _ in rows]
    path, _ = t.config([{'url': receiver.url(row[0]), 'method': 'GET'} for row, receiver in zip(rows, receivers)])
    program = t.start(path)
    given = {'execution_id': harness.guid()}
    program.send(harness.datagram(**dict(DEFAULTS, **given)))
    for (form, target), receiver in zip(rows, receivers):
        got = receiver.wait(1)
        t.equal(form, [request.target for request in got], [target + search_params(event(**given))])


def test_call_get_cut(t):
    """A target over 2,000 bytes that is refused is sent once more with less of the message."""
    statuses = (400, 404, 414, 431)
    messages = ('x' * 3000, 'aå€😀' * 400, '😀' * 800, 'y' * 1000 + '\n; ' * 500)

    def answer_of(status):
        def answer(request, connection):
            return harness.response(status if len(request.target) > 2000 else 200)
        return answer

    receivers = [t.receiver(answer_of(status)) for status in statuses]
    path, _ = t.config([{'url': receiver.url('/cut?key=%d' % status), 'method': 'GET'}
                        for status, receiver in zip(statuses, receivers)])
    program = t.start(path)
    for number, message in enumerate(messages):
        given = {'execution_id': harness.guid(), 'message': message}
        fields = event(**given)
        program.send(harness.datagram(**dict(DEFAULTS, **given)))
        for place, (status, receiver) in enumerate(zip(statuses, receivers), 1):
            what = '%d, message %r' % (status, message[:4])
            got = receiver.wait(2 * number + 2)[2 * number:]
            t.require('%s: two requests' % what, len(got) == 2, '%d' % len(got))
            same_bytes(t, '%s: first target' % what, got[0].target, '/cut?key=%d&%s' % (status, search_params(fields)))
            cut = dict(got[1].params())
            begin = '/cut?key=%d&%s' % (status, search_params(dict(fields, logMessage='')))
            t.check('%s: all other fields are whole' % what, got[1].target.startswith(begin), shorten(got[1].target))
            t.check('%s: whole characters of the message' % what,
                    message.startswith(cut.get('logMessage', '?')) and
                    got[1].target == begin + search_params({'': cut['logMessage']})[1:], shorten(cut))
            t.check('%s: as much as fits' % what, 2000 - 12 <= len(got[1].target) <= 2000, len(got[1].target))
            t.equal('%s: the same webhook-id' % what, got[1].get('webhook-id'), got[0].get('webhook-id'))
            t.check('%s: delivered' % what,
                    program.wait_log(r'alert %d delivered to failure %d\b' % (number + 1, place)))
    t.check('the log tells that it was cut', program.lines(r'(?i)\b(cut|shorten|shortened)\b'),
            shorten(program.log[-4:]))
    t.equal('nothing is given up', program.lines('given up'), [])


def test_call_get_not_cut(t):
    """What a shorter message does not help is a dead letter."""
    def refuse(request, connection):
        return harness.response(404)

    rows = (('short target', 'GET', refuse, {'message': 'x'}, 1),
            ('long POST', 'POST', harness.response(414), {'message': 'x' * 3000}, 1),
            ('403 is something else', 'GET', harness.response(403), {'message': 'x' * 3000}, 1),
            ('also refused when cut', 'GET', refuse, {'message': 'x' * 3000}, 2))
    for name, method, answer, given, count in rows:
        receiver = t.receiver(answer)
        path, _ = t.config([{'url': receiver.url(), 'method': method}])
        program = t.start(path)
        program.send(harness.datagram(**given))
        t.check('%s: given up' % name, program.wait_log(r'error: alert 1 given up for failure 1\b'), shorten(program.log[-2:]))
        t.equal('%s: requests' % name, len(receiver.requests), count)
        t.equal('%s: stops' % name, program.stop(), 0)
    receiver = t.receiver(refuse)
    path, _ = t.config([{'url': receiver.url(), 'method': 'GET'}])
    program = t.start(path)
    program.send(harness.datagram(task='t' * 3000, message='message'))
    t.check('other fields too long: given up', program.wait_log(r'error: alert 1 given up for failure 1\b'),
            shorten(program.log[-2:]))
    t.check('other fields too long: requests', len(receiver.requests) <= 2, len(receiver.requests))


def test_call_same_id_over_retries(t):
    """The webhook-id stays over retries and redirects; the webhook-timestamp is that of the attempt."""
    seen = collections.Counter()
    lock = threading.Lock()

    def answer(request, connection):
        with lock:
            seen[request.get('webhook-id')] += 1
            if seen[request.get('webhook-id')] <= 2:
                return harness.response(503 if request.method == 'PUT' else 500)
        if request.path != '/landed':
            return harness.response(307, headers=(('Location', '/landed'),))
        return harness.response()

    receiver = t.receiver(answer)
    path, _ = t.config(three(receiver))
    program = t.start(path)
    executions = [harness.guid() for _ in range(2)]     # a third one would make the webhooks down
    for execution_id in executions:
        program.send(harness.datagram(execution_id=execution_id))
    t.check('all are delivered', program.wait_log(r' delivered to ', 30, 6), shorten(program.log[-3:]))
    groups = collections.defaultdict(list)
    for request in receiver.wait(24):
        groups[request.event().get('executionId'), request.method].append(request)
    t.equal('alerts and methods', sorted(groups), sorted((e, m) for e in executions for m in ('GET', 'POST', 'PUT')))
    for (_, method), requests in groups.items():
        t.equal('%s: requests' % method, [request.path for request in requests],
                ['/hook/' + method.lower()] * 3 + ['/landed'])
        t.equal('%s: one id' % method, len(set(request.get('webhook-id') for request in requests)), 1)
        t.equal('%s: the same content' % method,
                len(set(request.body + request.target.partition('?')[2].encode() for request in requests)), 1)
        for request in requests:
            check_headers(t, '%s of a retry' % method, request, receiver.authority)
    t.equal('ids in all', len(seen), 6)


def test_call_keeps_connections(t):
    """One alert after another uses one connection; each webhook has its own."""
    receiver = t.receiver()
    path, _ = t.config(three(receiver))
    program = t.start(path)
    for number in range(5):
        program.send(harness.datagram())
        t.require('alert %d arrives' % number, len(receiver.wait(3 * number + 3)) == 3 * number + 3)
        t.check('alert %d is delivered' % number, program.wait_log(r'alert %d delivered' % (number + 1), count=3))
        time.sleep(0.1 * harness.SLOW)      # until the answers are read to their ends
    used = {(request.method, request.connection) for request in receiver.requests}
    t.equal('connections of each webhook', sorted(method for method, _ in used), ['GET', 'POST', 'PUT'])
    t.equal('connections in all', len(receiver.connections), 3)


# ---- Traces of the real Butler --------------------------------------------------------------------------------------


class Replay:
    """
    A trace against the program: its ports are replaced by free ones, its datagrams are sent one after another, and what
    arrives is compared with what Butler sent. `wanted` may be changed before `compare` where we differ on purpose.
    """

    PORTS = {'main': '18080', 'ipv6': '18080', 'other': '18082', 'proxy': '18081', 'tls': '18443'}

    def __init__(self, t, name):
        self.t = t
        with open(os.path.join(DATA, 'butler', name + '.json'), encoding='utf-8') as file:
            self.trace = json.load(file)
        self.answers = {}
        self.seen = collections.Counter()
        self.lock = threading.Lock()
        self.ports = {port: str(t.port()) for port in set(self.PORTS.values())}
        self.receivers = {}
        self.program = None
        self.path = None
        self.wanted = [dict(request, target=self.rewrite(request['target']), host=self.rewrite(request['host']))
                       for request in self.trace['requests']]
        self.calls = 0

    def rewrite(self, text):
        for port, ours in self.ports.items():
            text = text.replace(':' + port, ':' + ours)
        return text

    def write_as(self, old, new):
        """Writes a part of the configuration's URLs in another way."""
        self.t.require('the trace has %s' % old, any(old in webhook['url'] for webhook in self.trace['webhooks']))
        for webhook in self.trace['webhooks']:
            webhook['url'] = webhook['url'].replace(old, new)

    def receive(self, listener, host='127.0.0.1', **options):
        self.receivers[listener] = self.t.receiver(self.answer, host=host, port=int(self.ports[self.PORTS[listener]]),
                                                   **options)

    def answer(self, request, connection):
        """The answer of `answers` for that path (the query apart), each time the next of a list; 200 else."""
        path = request.path
        with self.lock:
            number = self.seen[request.method, path, request.get('webhook-id')]
            self.seen[request.method, path, request.get('webhook-id')] += 1
        answers = self.answers.get(path, [harness.response(200, b'ok')])
        result = answers[min(number, len(answers) - 1)]
        return result(request, connection) if callable(result) else result

    def requests(self):
        return [(listener, request) for listener, receiver in self.receivers.items() for request in receiver.requests]

    def start(self, binary=None, **options):
        webhooks = [dict(webhook, url=self.rewrite(webhook['url'])) for webhook in self.trace['webhooks']]
        if 'main' not in self.receivers:
            self.receive('main')
            if has_ipv6():
                self.receive('ipv6', '::1')
        self.path, _ = self.t.config(webhooks, rateLimit=self.trace.get('rateLimit', 300),
                                     deduplication={'enable': True, 'ttlMinutes': 10})
        self.program = self.t.start(self.path, binary=binary, **options)

    def send(self, number=0):
        """Sends a datagram and waits until the program has dealt with it; returns the number of webhooks to call."""
        self.program.send(self.trace['datagrams'][number].encode('utf-8'))
        match = self.program.wait_log(r' accepted: .*, for (\d+) webhook| held back by | duplicate ignored',
                                      count=number + 1)
        self.t.require('datagram %d is dealt with' % (number + 1), match, shorten(self.program.log[-2:]))
        return int(match.group(1) or 0)

    def send_all(self):
        for number in range(len(self.trace['datagrams'])):
            self.calls += self.send(number)
            self.wait(self.calls)
            self.program.wait_log(' delivered to ', count=self.calls)
            time.sleep(0.1 * harness.SLOW)      # until the answers are read to their ends

    def wait(self, count, timeout=8):
        deadline = time.monotonic() + timeout * harness.SLOW
        while len(self.requests()) < count and time.monotonic() < deadline:
            time.sleep(0.005)

    def want(self, method, path, **changes):
        """Changes the wanted request of that method and path (the query apart); returns it."""
        found = [request for request in self.wanted
                 if (request['method'], request['target'].partition('?')[0]) == (method, path)]
        self.t.require('the trace has %s %s' % (method, path), found)
        found[0].update(changes)
        return found[0]

    def add(self, like, **changes):
        self.wanted.append(dict(like, **changes))

    def fields(self, number=0):
        """The fields of a datagram that has no `;` but in its message."""
        values = dict(zip(SENT, self.trace['datagrams'][number].split(';', 10)))
        values['event'] = EVENTS['failure' if 'failed' in values['event'] else 'aborted']
        return {key: values[key] for key in KEYS}

    def query(self, number=0):
        """What a GET sends of a datagram."""
        return search_params(self.fields(number))

    def compare(self, stop=True):
        """Every wanted request has arrived as it was wanted, and nothing else has."""
        self.wait(len(self.wanted))
        if stop:
            self.t.equal('exit code', self.program.stop(), 0)

        def facts(listener, method, target, body, get):
            place = 'localhost' if get('host').startswith('localhost') else listener
            return (place, method, target, body) + tuple(get(name) for name in NAMES)

        wanted = [facts(r['listener'], r['method'], r['target'], r['body'], r.get) for r in self.wanted]
        for listener, request in self.requests():
            got = facts(listener, request.method, request.target, request.body.decode('utf-8', 'replace'), request.get)
            what = '%s %s' % (request.method, request.path)
            if got in wanted:
                wanted.remove(got)
                self.t.check(what, True)
            else:
                near = [w for w in wanted if w[1] == request.method and w[2].partition('?')[0] == request.path]
                self.t.check(what, False, 'got %s, wanted %s' % (shorten(got, 900), shorten(near, 900)))
            self.t.equal('%s: Content-Length' % what, request.get('Content-Length'),
                         None if request.method == 'GET' else str(len(request.body)))
        self.t.check('all that Butler sent was sent', not wanted, 'missing: %s' % shorten(wanted, 900))

    def same_connection(self):
        """Calls of one webhook, one after another, used one connection."""
        used = collections.defaultdict(set)
        for listener, request in self.requests():
            used[listener, request.method, request.path].add(request.connection)
        self.t.check('each webhook used one connection', all(len(numbers) == 1 for numbers in used.values()),
                     repr(dict(used)))


def replay_as_it_is(t, replay):
    replay.start()
    replay.send_all()
    replay.compare()
    replay.same_connection()


def replay_semicolon(t, replay):
    """Butler drops it; we cut it where the fields are known."""
    example = {'listener': 'main', 'host': replay.rewrite('127.0.0.1:18080')}
    body = stringify(replay.fields()).decode()
    t.check('the message is whole', body.endswith('"logMessage":"Error: a; b"}'))
    replay.wanted = [dict(example, method='GET', target='/f/get?' + replay.query(), body='')]
    for method in ('POST', 'PUT'):
        replay.wanted.append(dict(example, method=method, target='/f/' + method.lower(), body=body,
                                  **{'content-type': 'application/json'}))
    replay_as_it_is(t, replay)


def replay_url_forms(t, replay):
    """Butler throws away the query of a GET; we keep it. 127.1 is no address for us: it is written out."""
    if not has_ipv6():
        t.skip('no IPv6 here')
    replay.write_as('http://127.1:', 'http://127.0.0.1:')
    replay.want('GET', '/q', target='/q?a=1&b=two&' + replay.query())
    replay_as_it_is(t, replay)


def replay_url_space(t, replay):
    """
    Butler only takes these without its check. A host name with letters beyond ASCII and backslashes are errors for us, and
    the name is to be written as xn--; then all are called.
    """
    path, _ = t.config([dict(webhook, url=replay.rewrite(webhook['url'])) for webhook in replay.trace['webhooks']])
    done = t.run('--check', path)
    errors = re.findall(r'(?m):\d+:\d+: error: .*webhookURL.*$', done.stderr)
    t.check('two of the URLs are errors', done.returncode == 2 and len(errors) == 2 and 'xn--' in errors[0],
            [done.returncode, done.stderr])
    replay.write_as('http:/\\127.0.0.1:18080\\back', 'http://127.0.0.1:18080/back')
    replay.write_as('bücher.localhost', 'xn--bcher-kva.localhost')
    options = {}
    hosts = harness.namespace_wrap() and os.path.exists('/etc/hosts')
    if hosts:
        options['wrap'] = harness.with_files(t, {'/etc/hosts': '127.0.0.1 localhost xn--bcher-kva.localhost\n'})
        replay.add(replay.want('POST', '/lead'), target='/idn', host=replay.rewrite('xn--bcher-kva.localhost:18080'))
    replay.start(**options)
    replay.send_all()
    replay.compare()
    if not hosts:
        t.check('the name that has no address', replay.program.lines(r'xn--bcher-kva\.localhost'))


def replay_unreachable(t, replay):
    """Butler gives them up; we call again, and tell no passwords."""
    replay.start()
    replay.calls = replay.send()
    t.equal('webhooks', replay.calls, 3)
    for number in (1, 2):
        t.check('failure %d is down' % number,
                replay.program.wait_log(r'warn: webhook failure %d is down: .*refused' % number))
    t.check('the good one is called', replay.program.wait_log(r'alert 1 delivered to failure 3: 200'))
    replay.compare()
    t.check('what is left waits', replay.program.lines(STOPPED.replace(r'(\d+) lost, (\d+) waiting', '0 lost, [12] waiting')),
            shorten(replay.program.log[-1:]))
    done = t.run('--pending', '--json', replay.path)
    t.equal('and is listed', [entry['webhook'] for entry in json.loads(done.stdout)['waiting']], ['failure 1', 'failure 2'])
    for what, text in (('log', replay.program.stdout), ('list', done.stdout + t.run('--pending', replay.path).stdout)):
        t.check('no password in the %s' % what, 'secret' not in text and 'Ym9iO' not in text)


def replay_status(t, replay):
    """Butler gives a 500 up; we call until it is taken."""
    replay.answers = {'/500': [harness.response(500, b'no', reason='Internal Server Error')] * 2 + [harness.response()],
                      '/404': [harness.response(404, b'not here', reason='Not Found')]}
    for method in ('POST', 'GET'):
        like = replay.want(method, '/500')
        replay.add(like)
        replay.add(like)
    replay.start()
    replay.send()
    for place, attempt in ((1, 3), (2, 3), (4, 1)):
        t.check('failure %d is delivered' % place,
                replay.program.wait_log(r'delivered to failure %d: 200 in \d+ ms, attempt %d\b' % (place, attempt), 15),
                shorten(replay.program.log[-3:]))
    t.check('404 is a dead letter', replay.program.wait_log(
        r'error: alert 1 given up for failure 3 after 1 attempt.*404.*webhookURL'))
    replay.compare()


def replay_redirects(t, replay):
    """Where Butler loses the event, we name the new URL or send the fields again."""
    other = replay.rewrite('http://127.0.0.1:18082/landedother')
    for status in (301, 302, 303, 307, 308):
        replay.answers['/redir%d' % status] = [harness.response(status, headers=(('Location', '/landed%d' % status),))]
    replay.answers['/xredir302'] = [harness.response(302, headers=(('Location', other),))]
    landed = [request for request in replay.wanted if request['method'] == 'GET' and 'landed' in request['target']]
    t.equal('requests that lost the event', len(landed), 6)
    for request in landed[1:]:
        replay.wanted.remove(request)
    landed[0]['target'] = '/landed302?' + replay.query()
    replay.receive('main')
    replay.receive('other')
    replay.start()
    replay.send()
    for place, path in ((2, '/landed302'), (4, '/landed301'), (5, '/landed303'), (6, '/landed303'),
                        (9, '/landedother')):
        t.check('failure %d is a dead letter that names the new URL' % place,
                replay.program.wait_log(r'error: alert 1 given up for failure %d after 1 attempt.*'
                                        r'moved to \S*%s\b.*webhookURL' % (place, path)),
                shorten(replay.program.lines('failure %d' % place)))
    for place in (1, 3, 7, 8, 10):
        t.check('failure %d is delivered' % place,
                replay.program.wait_log(r'alert 1 delivered to failure %d: 200' % place))
    replay.compare()
    t.check('no password in the log', 'secret' not in replay.program.stdout)


def replay_garbage(t, replay):
    """Butler gives up; we call again."""
    def greet(request, connection):
        return lambda sock: sock.sendall(b'220 mail.example.com ESMTP\r\n\r\n')

    replay.answers = {'/garbage': [greet, harness.response()], '/closenoanswer': [None, harness.response()],
                      '/close200': [harness.response(close=True)]}
    replay.add(replay.want('POST', '/garbage'))
    replay.add(replay.want('POST', '/closenoanswer'))
    replay.start()
    replay.send()
    for place, attempt in ((1, 2), (2, 2), (3, 1), (4, 1)):
        t.check('failure %d is delivered' % place,
                replay.program.wait_log(r'delivered to failure %d: 200 in \d+ ms, attempt %d\b' % (place, attempt), 10),
                shorten(replay.program.log[-3:]))
    replay.compare()


def replay_stale(t, replay):
    """Butler loses the second event; we send it again at once on a new connection."""
    def second(request, connection):
        return (lambda sock: harness.reset(sock)) if connection.served else harness.response()

    replay.answers = {'/halfdead': [second]}
    replay.add(replay.wanted[1])
    replay.start()
    replay.calls = replay.send()
    t.check('first is delivered', replay.program.wait_log('alert 1 delivered'))
    replay.send(1)
    t.check('second is delivered', replay.program.wait_log('alert 2 delivered to failure 1: 200 in '),
            shorten(replay.program.log[-3:]))
    replay.compare()
    got = replay.receivers['main'].requests
    t.equal('connections', [request.connection for request in got], [1, 1, 2])
    t.equal('the same webhook-id', got[1].get('webhook-id'), got[2].get('webhook-id'))
    t.equal('it is no failed attempt', replay.program.lines('next in'), [])


def replay_hang(t, replay):
    """Butler waits for ever; we give a call its time, call again, and hold up no other webhook."""
    def hang(request, connection):
        def wait(sock):
            begin = time.monotonic()
            sock.settimeout(20 * harness.SLOW)
            ended = sock.recv(1) == b''
            hung.append((ended, time.monotonic() - begin))
        return wait

    hung = []
    replay.answers = {'/hang-post': [hang, harness.response()], '/hang-get': [hang, harness.response()]}
    good = {'listener': 'main', 'host': replay.rewrite('127.0.0.1:18080'), 'method': 'GET', 'body': ''}
    for number in (0, 2):
        replay.wanted.append(dict(good, target='/good-after-post?' + replay.query(number)))
    for path, method in (('/hang-post', 'POST'), ('/hang-get', 'GET')):
        for like in [request for request in replay.wanted if request['target'].startswith(path)]:
            replay.add(like)
    replay.start(binary=t.binary_test)
    begin = time.monotonic()
    for number in range(3):
        replay.send(number)
    t.check('all are delivered', replay.program.wait_log(r' delivered to ', 20, 6), shorten(replay.program.log[-4:]))
    for _, request in replay.requests():
        if request.path.startswith('/good'):
            t.check('%s is not held up' % request.path, request.time - begin < 1.5 * harness.SLOW,
                    '%.1f s' % (request.time - begin))
    t.check('each call was ended by us after its time',
            len(hung) == 3 and all(ended and 1.5 < s < 4 * harness.SLOW for ended, s in hung), repr(hung))
    replay.compare()


def replay_proxy(t, replay):
    """As Butler, but the query of a GET is kept."""
    get = replay.want('GET', replay.rewrite('http://127.0.0.1:18080/px/get'))
    get['target'] = replay.rewrite('http://127.0.0.1:18080/px/get?z=1&') + replay.query()
    replay.receive('proxy')
    replay.receive('main')
    replay.start(env={'HTTP_PROXY': 'http://pu:pp@127.0.0.1:' + replay.ports['18081']})
    replay.send_all()
    replay.compare()
    t.check('no password in the log', not re.search('secret|pp@|Ym9iO|cHU6', replay.program.stdout))


def replay_https(t, replay):
    """As Butler, but rejectUnauthorized false also counts without enable, as its documentation says."""
    with open(os.path.join(t.tmp, 'root.pem'), 'wb') as file:
        file.write(servers.read_bytes(servers.root().pem))
    context = servers.good().context()
    replay.receive('tls', ssl_context=context)
    if has_ipv6():
        replay.receivers['tls6'] = t.receiver(replay.answer, host='::1', port=int(replay.ports['18443']),
                                              ssl_context=context)
    replay.add(replay.want('POST', '/reject-false'), target='/insecure-but-disabled')
    replay.receive('main')
    replay.start()
    replay.send()
    t.check('the unknown CA is told', replay.program.wait_log(r'failure 3\b.*not trusted'), shorten(replay.program.log))
    for place in (1, 2, 4, 5, 6):
        t.check('failure %d is delivered' % place,
                replay.program.wait_log(r'alert 1 delivered to failure %d: 200' % place))
    t.check('a warning about what is not checked',
            len(replay.program.lines(r' warn: .*(failure [45]|rejectUnauthorized)')) >= 2,
            shorten(replay.program.log[:6]))
    replay.compare()


def replay_rate_limit(t, replay):
    """Events at 0, 1, 2.5, 3.3, 3.6 and 7 s: the first, the fourth and the last are sent."""
    for _ in range(3):
        replay.start()
        begin = time.monotonic()
        late = 0
        for number, due in enumerate((0, 1, 2.5, 3.3, 3.6, 7)):
            time.sleep(max(0, begin + due - time.monotonic()))
            late = max(late, time.monotonic() - begin - due)
            replay.program.send(replay.trace['datagrams'][number].encode())
        if late < 0.2:
            replay.compare()
            replay.same_connection()
            return
        replay.program.stop()       # this machine was too busy to send in time: once more
        replay = Replay(t, '82-ratelimit-window-3s')
    t.skip('this machine is too busy: a datagram was sent %.1f s late' % late)


def replay_slow(t, replay):
    """Butler calls one webhook after another; ours do not wait for each other."""
    def slow(request, connection):
        time.sleep(2)
        return harness.response()

    replay.answers = {'/slow1': [slow], '/slow2': [slow]}
    replay.start()
    begin = time.monotonic()
    for number in range(2):
        replay.send(number)
    replay.compare(stop=False)
    last = max(request.time for _, request in replay.requests())
    t.check('all are called before the first slow answer', last - begin < 1.8, '%.1f s' % (last - begin))
    t.check('all are delivered', replay.program.wait_log(' delivered to ', 10, 6))


def replay_no_length(t, replay):
    """Butler waits for ever; for us the headers decide."""
    def answer(request, connection):
        def send(sock):
            sock.sendall(b'HTTP/1.1 200 OK\r\n\r\n')
            sock.settimeout(20 * harness.SLOW)
            sock.recv(1)
        return send

    replay.answers = {'/nobody200': [answer]}
    replay.wanted.append({'listener': 'main', 'host': replay.rewrite('127.0.0.1:18080'), 'method': 'GET',
                          'target': '/good?' + replay.query(),
                          'body': ''})
    replay.start()
    begin = time.monotonic()
    replay.send()
    for place in (1, 2):
        t.check('failure %d is delivered' % place,
                replay.program.wait_log(r'alert 1 delivered to failure %d: 200' % place))
    t.check('without waiting for the end', time.monotonic() - begin < 2 * harness.SLOW)
    replay.compare()


REPLAYS = {
    '32-semicolon-in-message': replay_semicolon, '53-url-forms': replay_url_forms,
    '55-url-space-nonascii': replay_url_space,
    '70-unreachable-then-good': replay_unreachable, '72-status-500-404': replay_status,
    '73-redirects': replay_redirects,
    '75-garbage-and-close': replay_garbage, '76-stale-keepalive-reset': replay_stale, '77-hang': replay_hang,
    '78-http-proxy-env': replay_proxy,
    '80-https-custom-ca': replay_https, '82-ratelimit-window-3s': replay_rate_limit, '90-slow-hooks-order': replay_slow,
    '98-answer-without-length': replay_no_length,
}


TRACES = [name[:-5] for name in sorted(os.listdir(os.path.join(DATA, 'butler'))) if name.endswith('.json')]


@pytest.mark.parametrize('name', TRACES + sorted(set(REPLAYS) - set(TRACES)))
def test_trace(t, name):
    """Each trace of Butler; those that are not in REPLAYS must come out as they are."""
    REPLAYS.get(name, replay_as_it_is)(t, Replay(t, name))


# ---- Rate limit and duplicates --------------------------------------------------------------------------------------


class Limits:
    """A program with one receiver for each kind of event; `arrived` tells which alerts came, by their messages."""

    def __init__(self, t, **config):
        self.t = t
        self.receiver = t.receiver()
        path, _ = t.config([{'url': self.receiver.url('/failure')},
                            {'url': self.receiver.url('/aborted'), 'kind': 'aborted'}], **config)
        self.program = t.start(path)

    def send(self, message, kind='failure', **given):
        given.setdefault('task_id', TASK)
        self.program.send(harness.datagram(id=IDS[kind], message=message, **given))

    def arrived(self):
        """Ends the program, so that nothing can arrive later; then all messages that did, sorted."""
        self.t.equal('exit code', self.program.stop(), 0)
        return sorted(request.json().get('logMessage') for request in self.receiver.requests)


def test_rate_limit_holds_back(t):
    limits = Limits(t, rateLimit=300)
    for number in range(5):
        limits.send('%d' % number)
        limits.send('other %d' % number, task_id=APP)
    told = r'info: held back by the rate limit: reload failed, task "Reload of Sales" \(%s\)' % TASK
    t.check('told', limits.program.wait_log(told))
    t.check('counted', limits.program.wait_log(r'\(%s\), .*, 4 since the last alert' % TASK),
            shorten(limits.program.lines('held back')))
    t.equal('the first of each task', limits.arrived(), ['0', 'other 0'])


def test_rate_limit_window_ends(t):
    """A window begins with an alert that is sent; those that are held back do not lengthen it."""
    limits = Limits(t, rateLimit=2)
    begin = time.monotonic()
    number = 0
    while time.monotonic() - begin < 5.2:
        limits.send('%03d' % number)
        number += 1
        time.sleep(0.1)
    got = limits.receiver.wait(3)
    t.check('three alerts in five seconds', len(got) == 3, len(got))
    gaps = [b.time - a.time for a, b in zip(got, got[1:])]
    t.check('two seconds apart', all(1.9 <= gap <= 2.5 * harness.SLOW for gap in gaps), repr(gaps))
    t.equal('the first one at once', limits.arrived()[:1], ['000'])


def test_rate_limit_kinds_apart(t):
    limits = Limits(t, rateLimit=300)
    for number in range(3):
        limits.send('failed %d' % number)
        limits.send('aborted %d' % number, 'aborted')
    t.check('told for aborted',
            limits.program.wait_log(r'held back by the rate limit: reload aborted, task "Reload of Sales"'))
    t.equal('one of each kind', limits.arrived(), ['aborted 0', 'failed 0'])


def test_rate_limit_values_apart(t):
    limits = Limits(t, rateLimit=300, rateLimitAborted=0)
    for number in range(3):
        limits.send('failed %d' % number)
        limits.send('aborted %d' % number, 'aborted')
    t.equal('only failed is limited', limits.arrived(), ['aborted 0', 'aborted 1', 'aborted 2', 'failed 0'])


def test_rate_limit_guid_forms(t):
    limits = Limits(t, rateLimit=300)
    for number, form in enumerate((TASK, TASK.upper(), '{%s}' % TASK, '{%s}' % TASK.upper(), TASK.title())):
        limits.send('%d' % number, task_id=form)
    t.equal('the same task', limits.arrived(), ['0'])


def test_rate_limit_names_do_not_count(t):
    limits = Limits(t, rateLimit=300)
    limits.send('0', task='one')
    limits.send('1', task='two', app='x', user='y', host='z', app_id=harness.guid())
    limits.send('2', task='one', task_id=harness.guid())
    t.equal('taskId decides', limits.arrived(), ['0', '2'])


def test_rate_limit_empty_task_id(t):
    limits = Limits(t, rateLimit=300, deduplication={'enable': True, 'ttlMinutes': 10})
    for number in range(3):
        limits.send('empty %d' % number, task_id='')
        limits.send('null %d' % number, task_id='(null)')
    t.equal('never limited', limits.arrived(), ['empty 0', 'empty 1', 'empty 2', 'null 0', 'null 1', 'null 2'])


def test_rate_limit_zero(t):
    limits = Limits(t, rateLimit=0)
    for number in range(20):
        limits.send('%02d' % number)
    t.equal('all are sent', limits.arrived(), ['%02d' % number for number in range(20)])
    t.equal('none held back', limits.program.lines('held back'), [])


def test_rate_limit_many_webhooks(t):
    """The limit is the alert's: each webhook gets the alerts that pass."""
    receiver = t.receiver()
    path, _ = t.config(three(receiver), rateLimit=300)
    program = t.start(path)
    for number in range(3):
        program.send(harness.datagram(task_id=TASK, message=str(number)))
    t.equal('exit code', program.stop(), 0)
    t.equal('requests', sorted((request.method, request.event().get('logMessage')) for request in receiver.requests),
            [('GET', '0'), ('POST', '0'), ('PUT', '0')])


def test_rate_limit_not_used_up_by_ignored(t):
    """What is no alert starts no window."""
    limits = Limits(t, rateLimit=300)
    limits.send('no app', app_id='')
    limits.program.send(harness.datagram(id='/scheduler-task-success//', task_id=TASK))
    limits.send('sent')
    t.equal('the alert is sent', limits.arrived(), ['sent'])


def test_duplicates(t):
    limits = Limits(t, deduplication={'enable': True, 'ttlMinutes': 10})
    one, two = harness.guid(), harness.guid()
    limits.send('first', execution_id=one)
    for number, form in enumerate((one, one.upper(), '{%s}' % one, '{%s}' % one.upper())):
        limits.send('again %d' % number, execution_id=form)
    limits.send('other task', execution_id=one, task_id=harness.guid(), task='x')
    limits.send('aborted', 'aborted', execution_id=one)
    limits.send('aborted again', 'aborted', execution_id=one.upper())
    limits.send('second', execution_id=two)
    told = r'info: duplicate ignored: reload failed, task "Reload of Sales" \(%s\), .*execution %s' % (TASK, one)
    t.check('told', limits.program.wait_log(told))
    t.check('told for aborted', limits.program.wait_log(r'info: duplicate ignored: reload aborted, .*execution %s' %
                                                        one.upper()))
    t.equal('one of each kind and execution', limits.arrived(), ['aborted', 'first', 'second'])
    t.equal('lines', len(limits.program.lines('duplicate ignored')), 6)


def test_duplicates_default(t):
    """Without the section duplicates are ignored, for the ten minutes that are Butler's default."""
    receiver = t.receiver()
    port = t.port()
    path, _ = t.config([{'url': receiver.url()}], port=port, notification={}, udp={'deduplication': {}})
    with open(path, encoding='utf-8') as file:
        text = file.read()
    t.require('the section is empty', 'deduplication: {}' in text, text)
    with open(path, 'w', encoding='utf-8') as file:
        file.write(text.replace('    deduplication: {}\n', ''))
    program = t.start(path)
    for number in range(3):
        program.send(harness.datagram(execution_id=APP, message=str(number)))
    t.equal('exit code', program.stop(), 0)
    t.equal('messages', [request.json().get('logMessage') for request in receiver.requests], ['0'])


def test_duplicates_empty_id(t):
    limits = Limits(t, deduplication={'enable': True, 'ttlMinutes': 10})
    for number in range(3):
        limits.send('empty %d' % number, execution_id='')
        limits.send('null %d' % number, execution_id='(null)')
    t.equal('never a duplicate', limits.arrived(), ['empty 0', 'empty 1', 'empty 2', 'null 0', 'null 1', 'null 2'])


def test_duplicates_off(t):
    limits = Limits(t, deduplication={'enable': False, 'ttlMinutes': 10})
    for number in range(4):
        limits.send('%d' % number, execution_id=TASK)
    t.equal('all are sent', limits.arrived(), ['0', '1', '2', '3'])


def test_duplicates_are_no_rate_limit(t):
    """A duplicate does not count as held back, and what is held back is not lost for another task."""
    limits = Limits(t, rateLimit=300, deduplication={'enable': True, 'ttlMinutes': 10})
    one = harness.guid()
    limits.send('first', execution_id=one)
    limits.send('duplicate', execution_id=one)
    limits.send('limited')
    limits.send('other task', task_id=harness.guid())
    t.equal('messages', limits.arrived(), ['first', 'other task'])
    t.equal('held back', len(limits.program.lines(r'held back .*, 1 since the last alert')), 1)
    t.equal('duplicates', len(limits.program.lines('duplicate ignored')), 1)


# ---- Whom it listens to ---------------------------------------------------------------------------------------------


def send_from(program, source, host='127.0.0.1', message=None):
    """One alert from that address to that address; the message is the source unless told otherwise."""
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as udp:
        udp.bind((source, 0))
        udp.sendto(harness.datagram(message=message or source), (host, program.port))


def check_sources(t, allowed, accepted, refused, host='127.0.0.1', serverHost=None, **more):
    """Alerts from each address; those of `accepted` must arrive, those of `refused` must not, and be told."""
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}],
                       udp=dict({'serverHost': serverHost or host, 'enableSourceValidation': True,
                                 'allowedSources': allowed}, **more))
    program = t.start(path)
    if any(re.search('[g-z]', source) for source in allowed or []):
        time.sleep(0.3 * harness.SLOW)      # for the look-up of names, until which they let nobody in
    for source in refused * 3 + accepted:
        send_from(program, source, host)
    got = [request.json().get('logMessage') for request in receiver.wait(len(accepted))]
    t.equal('%s: accepted' % allowed, sorted(got), sorted(accepted))
    t.equal('%s: stops' % allowed, program.stop(), 0)
    t.equal('%s: nothing more' % allowed, len(receiver.requests), len(accepted))
    for source in refused:
        lines = program.lines(r' warn: datagram ignored, its sender is not in allowedSources, from %s$' % re.escape(source))
        t.check('%s: %s is told' % (allowed, source), lines, repr(program.lines(' warn: ')))
    return program


def test_sources_addresses(t):
    check_sources(t, ['127.0.0.2', '127.0.0.3'], ['127.0.0.2', '127.0.0.3'], ['127.0.0.1', '127.0.0.4', '127.0.0.20'])


def test_sources_ranges(t):
    check_sources(t, ['127.0.1.0/24', '127.0.2.128/25', '127.0.3.4/32', '127.0.4.5/30'],
                  ['127.0.1.0', '127.0.1.255', '127.0.2.128', '127.0.2.255', '127.0.3.4', '127.0.4.4', '127.0.4.7'],
                  ['127.0.0.255', '127.0.2.127', '127.0.3.5', '127.0.3.3', '127.0.4.3', '127.0.4.8'])
    check_sources(t, ['127.0.0.0/8'], ['127.0.0.1', '127.255.255.254'], [])
    for mapped in ('::ffff:127.0.1.0/24', '::ffff:127.0.1.0/120'):
        check_sources(t, [mapped], ['127.0.1.1', '127.0.1.255'], ['127.0.0.255', '127.0.2.0'])
    check_sources(t, ['::ffff:10.0.0.0/8', '::ffff:127.0.0.3'], ['127.0.0.3'], ['127.0.0.1', '127.0.0.2'])
    check_sources(t, ['0.0.0.0/0'], ['127.0.0.1', '127.9.9.9'], [])


def test_sources_names(t):
    check_sources(t, ['localhost'], ['127.0.0.1'], ['127.0.0.2'])
    check_sources(t, ['LocalHost', '127.0.0.9'], ['127.0.0.1', '127.0.0.9'], ['127.0.0.2'])


def test_sources_ipv6(t):
    if not has_ipv6():
        t.skip('no IPv6 here')
    check_sources(t, ['::1'], ['::1'], [], '::1')
    check_sources(t, ['0:0::0:1'], ['::1'], [], '::1')
    check_sources(t, ['::/127'], ['::1'], [], '::1')
    check_sources(t, ['localhost'], ['::1'], [], '::1')
    check_sources(t, ['::2', 'fd00::/8', '127.0.0.1'], [], ['::1'], '::1')
    check_sources(t, ['::2/127', '0.0.0.0/0'], [], ['::1'], '::1')


def test_sources_both_families(t):
    """On :: an IPv4 sender is known by its IPv4 address."""
    if not has_ipv6():
        t.skip('no IPv6 here')
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}],
                       udp={'serverHost': '::', 'enableSourceValidation': True, 'allowedSources': ['127.0.0.2', '::1']})
    program = t.start(path)
    send_from(program, '127.0.0.1')
    send_from(program, '::1', '::1')
    send_from(program, '127.0.0.2')
    t.equal('accepted', sorted(request.json().get('logMessage') for request in receiver.wait(2)), ['127.0.0.2', '::1'])
    t.equal('stops', program.stop(), 0)
    t.equal('nothing more', len(receiver.requests), 2)
    t.equal('told', len(program.lines(r'not in allowedSources, from 127\.0\.0\.1$')), 1)


def test_sources_unknown_name(t):
    """A name without an address lets nobody in and does not keep the others out."""
    program = check_sources(t, ['no-such-host.invalid', '127.0.0.2'], ['127.0.0.2'], ['127.0.0.1'])
    t.check('the name is told', program.lines(r'(warn|error): .*no-such-host\.invalid'), shorten(program.log[:6]))


def test_sources_slow_look_up(t):
    """
    While the look-up of a name hangs, alerts from the other sources are taken, those of senders that are not known to be
    allowed are refused, and the program stops in time.
    """
    silent, server = t.add(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)), '127.53.53.53'
    try:
        silent.bind((server, 53))
    except OSError:
        server = '192.0.2.1'    # not root: an address that belongs to nobody
    wrap = harness.with_files(t, {'/etc/resolv.conf': 'nameserver %s\noptions timeout:30 attempts:1\n' % server})
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}], udp={'enableSourceValidation': True, 'allowedSources':
                                                       ['slow-1.example', '127.0.0.2', 'slow-2.example']})
    begin = time.monotonic()
    program = t.start(path, wrap=wrap)
    t.check('it listens at once', time.monotonic() - begin < 2 * harness.SLOW, '%.1f s' % (time.monotonic() - begin))
    send_from(program, '127.0.0.2')
    got = receiver.wait(1, 3)
    t.equal('the alert arrives', [request.json().get('logMessage') for request in got], ['127.0.0.2'])
    send_from(program, '127.0.0.3')
    t.check('who is not known is refused',
            program.wait_log(r' warn: datagram ignored, .* not in allowedSources, from 127\.0\.0\.3$', 3),
            shorten(program.log))
    begin = time.monotonic()
    t.equal('stops', program.stop(), 0)
    t.check('in time', time.monotonic() - begin < 5 * harness.SLOW, '%.1f s' % (time.monotonic() - begin))


def test_sources_names_from_hosts(t):
    """A name counts with all its addresses."""
    wrap = harness.with_files(t, {'/etc/hosts': '127.0.0.5 sense.example\n127.0.0.6 sense.example\n127.0.0.7 other\n'})
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}], udp={'enableSourceValidation': True,
                                                       'allowedSources': ['sense.example', 'other']})
    program = t.start(path, wrap=wrap)
    time.sleep(0.2 * harness.SLOW)      # for the look-up, which listening does not wait for
    for source in ('127.0.0.4', '127.0.0.5', '127.0.0.6', '127.0.0.7', '127.0.0.8'):
        send_from(program, source)
    got = sorted(request.json().get('logMessage') for request in receiver.wait(3))
    t.equal('accepted', got, ['127.0.0.5', '127.0.0.6', '127.0.0.7'])
    t.equal('stops', program.stop(), 0)
    t.equal('refused', len(program.lines('not in allowedSources')), 2)


@harness.early
def test_sources_name_found_later(t):
    """A name that cannot be found at the start, but can some seconds later: its alerts are taken soon after."""
    server = test_http.Names(t, {})
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}], udp={'enableSourceValidation': True,
                                                       'allowedSources': ['127.0.0.6', 'late.example']})
    program = t.start(path, wrap=server.wrap)
    t.check('the name is told', program.wait_log(r' warn: .*late\.example not found', 20), shorten(program.log))
    send_from(program, '127.0.0.5', message='too early')
    send_from(program, '127.0.0.6', message='known')
    receiver.wait(1)
    server.table['late.example'] = ['127.0.0.5']
    deadline = time.monotonic() + 30 * harness.SLOW
    while time.monotonic() < deadline:
        send_from(program, '127.0.0.5', message='late')
        if len(receiver.wait(2, 0.3)) == 2:
            break
    t.equal('arrived', [request.json().get('logMessage') for request in receiver.requests[:2]], ['known', 'late'])
    t.equal('stops', program.stop(), 0)


def test_sources_empty(t):
    for allowed in ([], None):
        program = check_sources(t, allowed, ['127.0.0.1', '127.0.0.2'], [])
        t.check('%r: a warning' % allowed, program.lines(r' warn: .*allowedSources'), shorten(program.log[:6]))


def test_sources_without_validation(t):
    program = check_sources(t, ['127.0.0.2'], ['127.0.0.1', '127.0.0.2'], [], enableSourceValidation=False)
    t.equal('nobody is ignored', program.lines('not in allowedSources'), [])


def test_listen_everywhere(t):
    """Beyond loopback without a source check: a warning."""
    beyond = r' warn: .*(0\.0\.0\.0|serverHost|loopback|enableSourceValidation)'
    for host, validation, warned in (('0.0.0.0', False, True), ('0.0.0.0', True, False), ('127.0.0.1', False, False),
                                     ('localhost', False, False)):
        receiver = t.receiver()
        path, _ = t.config([{'url': receiver.url()}], udp={'serverHost': host, 'enableSourceValidation': validation,
                                                           'allowedSources': ['127.0.0.0/8']})
        program = t.start(path)
        send_from(program, '127.0.0.1')
        t.equal('%s: arrives' % host, len(receiver.wait(1)), 1)
        t.equal('%s, source check %s: a warning' % (host, validation), bool(program.lines(beyond)), warned)
        t.equal('stops', program.stop(), 0)


def test_listen_ipv6(t):
    if not has_ipv6():
        t.skip('no IPv6 here')
    for host in ('::1', '::'):
        receiver = t.receiver()
        path, port = t.config([{'url': receiver.url()}], udp={'serverHost': host})
        program = t.start(path)
        t.check('%s: told' % host, program.wait_log(r'info: listening on \[%s\]:%d \(UDP\)' % (host, port)),
                shorten(program.log))
        send_from(program, '::1', '::1')
        t.equal('%s: arrives' % host, [request.json().get('logMessage') for request in receiver.wait(1)], ['::1'])
        t.equal('%s: a warning' % host, bool(program.lines(r' warn: ')), host == '::')
        t.equal('stops', program.stop(), 0)


def test_max_message_size(t):
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}], udp={'maxMessageSize': 2048})
    program = t.start(path)
    room = 2048 - len(harness.datagram(message=''))
    program.send(harness.datagram(message='x' * room))
    program.send(harness.datagram(message='x' * (room + 1)))
    program.send(harness.datagram(message='x' * 60000))
    program.send(harness.datagram(message='last'))
    got = [request.json().get('logMessage') for request in receiver.wait(2)]
    t.equal('what arrives', sorted(got), ['last', 'x' * room])
    for size in (2049, 60000 + 2048 - room):
        t.check('%d bytes are told' % size, program.wait_log(
            r' error: datagram dropped, larger than maxMessageSize: %d bytes, from 127\.0\.0\.1$' % size),
            shorten(program.log[-4:]))
    t.equal('stops', program.stop(), 0)
    t.equal('nothing more', len(receiver.requests), 2)


def test_max_message_size_ipv6(t):
    """IPv6 carries 20 bytes more than the default takes."""
    if not has_ipv6():
        t.skip('no IPv6 here')
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}], udp={'serverHost': '::1'})
    program = t.start(path)
    room = 65507 - len(harness.datagram(message=''))
    for size in (room + 20, room + 1, room):
        send_from(program, '::1', '::1', 'x' * size)
    t.check('the longest is told', program.wait_log(
        r' error: datagram dropped, larger than maxMessageSize: 65527 bytes, from ::1$'),
            shorten(program.log[-3:]))
    t.equal('what fits arrives', [len(request.json().get('logMessage', '')) for request in receiver.wait(1)], [room])
    t.equal('stops', program.stop(), 0)
    t.equal('nothing more', len(receiver.requests), 1)


def test_udp_rate_limit_counts_allowed_only(t):
    """A sender that is not allowed does not use up the limit of the others."""
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}], udp={'enableSourceValidation': True, 'allowedSources': ['127.0.0.2'],
                                                       'rateLimit': {'enable': True, 'maxMessagesPerMinute': 10}})
    program = t.start(path)
    for _ in range(50):
        send_from(program, '127.0.0.1')
    for number in range(5):
        send_from(program, '127.0.0.2', message='%d' % number)
    t.equal('the allowed ones', sorted(request.json().get('logMessage') for request in receiver.wait(5)),
            ['0', '1', '2', '3', '4'])


def test_no_webhook_for_that_kind(t):
    """An empty list is no error; the other kind is called."""
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}])
    program = t.start(path)
    program.send(harness.datagram(id=IDS['aborted'], message='aborted'))
    program.send(harness.datagram(message='failed'))
    t.equal('what arrives', [request.json().get('logMessage') for request in receiver.wait(1)], ['failed'])
    t.equal('stops', program.stop(), 0)
    t.equal('nothing more', len(receiver.requests), 1)


def test_udp_rate_limit(t):
    """At most so many datagrams a minute; what is over it is dropped, counted and told."""
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}], udp={'rateLimit': {'enable': True, 'maxMessagesPerMinute': 10}})
    program = t.start(path)
    for number in range(60):
        program.send(harness.datagram(message='%02d' % number))
    receiver.wait(10)
    t.equal('stops', program.stop(), 0)
    got = sorted(request.json().get('logMessage') for request in receiver.requests)
    t.check('ten are taken', 10 <= len(got) <= 11 and got[:10] == ['%02d' % number for number in range(10)], repr(got))
    told = len(program.lines(r' error: datagram dropped, over udpServerConfig\.rateLimit, from 127\.0\.0\.1$'))
    told += sum(int(re.search(r'(\d+) more', line).group(1)) for line in program.lines(
        r' error: \d+ more in the last minute: datagram dropped, over udpServerConfig\.rateLimit$'))
    t.check('the others are told', told == 60 - len(got),
            '%d of %d; %s' % (told, 60 - len(got), shorten(program.log[-4:])))


def test_udp_rate_limit_off(t):
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}], udp={'rateLimit': {'enable': False, 'maxMessagesPerMinute': 1}})
    program = t.start(path)
    for number in range(30):
        program.send(harness.datagram(message='%02d' % number))
    t.equal('all arrive', len(receiver.wait(30)), 30)


# ---- The log --------------------------------------------------------------------------------------------------------


def test_log_limits_what_others_can_cause(t):
    """Of each thing that anybody can cause at will twenty lines a minute are logged, then one with the count."""
    count = 33
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}], rateLimit=300, deduplication={'enable': True, 'ttlMinutes': 10},
                       udp={'enableSourceValidation': True, 'allowedSources': ['127.0.0.1'], 'maxMessageSize': 4000})
    program = t.start(path)
    run = harness.guid()
    program.send(harness.datagram(task_id=TASK, execution_id=run))
    for number in range(count):
        program.send(b'/scheduler-task-failed/;%d' % number)
        program.send(harness.datagram(id='/some-other-id/'))
        program.send(b'/scheduler-task-failed/;' + b'x' * 4000)
        program.send(harness.datagram(), source='127.0.0.9')
        program.send(harness.datagram(task_id=TASK, execution_id=run))
        program.send(harness.datagram(task_id=TASK))
    program.send(harness.datagram(message='last'))
    got = receiver.wait(2)
    t.equal('the alerts arrive', {request.json().get('logMessage') for request in got}, {'Max retries reached', 'last'})
    t.equal('stops', program.stop(), 0)
    for name, line, more in (('malformed', ' warn: malformed datagram: ', 'malformed'),
                             ('unknown', ' warn: unknown message id: ', 'unknown'),
                             ('oversize', ' error: datagram dropped, larger than maxMessageSize: ', 'larger|maxMessageSize'),
                             ('refused', ' warn: datagram ignored, .* not in allowedSources, from ', 'allowedSources|refused'),
                             ('duplicates', ' info: duplicate ignored: ', 'duplicate'),
                             ('held back', ' info: held back by the rate limit: ', 'held back')):
        t.equal('%s: lines' % name, len(program.lines(line)), MINUTE_LINES)
        t.equal('%s: lines with the count' % name, len(program.lines(r': %d more .*(%s)' % (count - MINUTE_LINES, more))), 1)
    t.check('all are counted',
            program.lines(r'info: no alerts: 0 ignored, %d malformed, %d unknown, %d duplicates, %d rate limited, '
                          r'%d refused, 0 dropped$' % (count, count, count, count, 2 * count)),
            program.log[-2:])


@harness.early
@harness.limit(150)
def test_log_limit_of_the_next_minute(t):
    """The count comes when the minute is over, and the next minute has its own lines."""
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}])
    program = t.start(path)
    for number in range(25):
        program.send(b'/scheduler-task-failed/;%d' % number)
    begin = time.monotonic()
    t.check('the first count', program.wait_log(r' warn: 5 more in the last minute: malformed', 75 / harness.SLOW),
            shorten(program.log[-2:]))
    took = time.monotonic() - begin
    t.check('it comes after a minute', 50 < took < 75, '%.1f s' % took)
    for number in range(22):
        program.send(b'/scheduler-task-failed/;again %d' % number)
    t.equal('stops', program.stop(), 0)
    t.equal('lines of the second minute', len(program.lines('malformed datagram: .*again ')), MINUTE_LINES)
    t.equal('the second count', len(program.lines(r' warn: 2 more in the last minute: malformed')), 1)


def test_log_of_malformed_is_cut(t):
    """The first two hundred characters are shown."""
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}])
    program = t.start(path)
    text = '/scheduler-task-failed/;' + ''.join('%05dåö€' % number for number in range(40))
    program.send(text.encode('utf-8'))
    program.send(text[:120].encode('utf-8'))
    t.check('told', program.wait_log('malformed datagram: ', count=2), shorten(program.log))
    long, short = program.lines('malformed datagram: ')
    t.check('what is long is cut', text[:200] in long and text[:201] not in long, long)
    t.check('what is short is whole', '"%s"' % text[:120] in short, short)
    t.equal('stops', program.stop(), 0)


@harness.unix('its sockets keep less than such a flood')
@harness.alone
def test_log_flood(t):
    """Two hundred alerts among fifty thousand datagrams that are none: all arrive, and the log stays small."""
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}])
    program = t.start(path)
    pause = 0.002 if program.lines('only a small receive buffer') else 0
    noise = [b'/scheduler-task-failed/;' + b'x' * 3000, b'/some-other-id/;' + b';y' * 1500]
    for number in range(50000):
        program.send(noise[number % 2])
        if number % 250 == 125:
            program.send(harness.datagram(message='number %03d' % (number // 250)))
        if pause and number % 10 == 0:
            time.sleep(pause)
    receiver.wait(200, 30)
    program.wait_log(' delivered to ', 5, 200)
    t.equal('stops', program.stop(), 0)
    t.equal('what arrives', sorted(request.json().get('logMessage') for request in receiver.requests),
            ['number %03d' % number for number in range(200)])
    size = sum(len(line) + 1 for line in program.log if not re.search(' accepted| delivered to ', line))
    t.check('the rest of the log has less than 20 KB', size < 20000, '%d bytes' % size)
    t.check('all are counted', program.lines(r'info: no alerts: 0 ignored, 25000 malformed, 25000 unknown, .* 0 dropped$'),
            program.log[-2:])


def test_log_says_what_is_in_memory_only(t):
    """An alert that stands in no journal is not called accepted without a word about that."""
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}], butlerWebhook={'stateDirectory': ''})
    program = t.start(path)
    program.send(harness.datagram())
    t.check('the line says so', program.wait_log(r' info: alert 1 accepted\b.*\bmemory\b'), shorten(program.lines('accepted')))
    t.equal('stops', program.stop(), 0)


def test_log_directory_is_not_looked_at_when_off(t):
    """Without fileLogging a logDirectory that cannot be made stops nothing."""
    receiver = t.receiver()
    with open(os.path.join(t.tmp, 'file'), 'w', encoding='utf-8'):
        pass
    for folder in (os.path.join(t.tmp, 'file', 'log'), '/proc/1/log', 'C:\new'):   # the last one has a line end in it
        path, _ = t.config([{'url': receiver.url()}], fileLogging=False, logDirectory=folder)
        done = t.run('--check', path)
        t.check('%r: --check finds it valid' % folder, done.returncode == 0, [done.returncode, done.stderr])
        program = t.start(path)
        t.equal('%r: stops' % folder, program.stop(), 0)


def test_log_lines(t):
    """The lines that tell the way of an alert, in their words."""
    receiver = t.receiver(lambda request, connection: harness.response(404 if request.path == '/gone' else 200))
    path, port = t.config([{'url': receiver.url('/ok'), 'description': 'Ops "desk" ö'},
                           {'url': receiver.url('/gone'), 'method': 'PUT'},
                           {'url': receiver.url('/ok'), 'method': 'GET', 'kind': 'aborted'}],
                          deduplication={'enable': True, 'ttlMinutes': 10})
    program = t.start(path)
    one = harness.guid()
    program.send(harness.datagram(task_id=TASK, execution_id=one))
    program.send(harness.datagram(id=IDS['aborted'], task_id=TASK, execution_id=one))
    program.send(harness.datagram(task_id=TASK, execution_id=one))
    program.send(harness.datagram(id='/scheduler-task-success//'))
    program.send(b'/scheduler-task-failed/;nothing')
    ops = r'failure 1 \("Ops .*desk.* ö"\)'
    names = r'task "Reload of Sales" \(%s\), app "Sales", execution %s' % (TASK, one)
    for regex in (r'info: butler_webhook \d+\.\d+\.\d+ starting with %s$' % re.escape(path),
                  r'info: listening on 127\.0\.0\.1:%d \(UDP\), receive buffer \d+ bytes$' % port,
                  r'info: alert 1 accepted: reload failed, %s, for 2 webhooks?' % names,
                  r'info: alert 2 accepted: reload aborted, %s, for 1 webhook' % names,
                  r'info: alert 1 delivered to %s: 200 in \d+ ms, attempt 1$' % ops,
                  r'info: alert 2 delivered to aborted 1: 200 in \d+ ms, attempt 1$',
                  r'error: alert 1 given up for failure 2 after 1 attempt.*404.*; .*webhookURL',
                  r'info: duplicate ignored: reload failed, ', r'warn: malformed datagram: '):
        t.check(regex, program.wait_log('Z ' + regex), shorten(program.log, 1500))
    t.equal('stops', program.stop(), 0)
    t.equal('the whole alert stands in the dead letter', [letter['alert'] for letter in t.letters(path)],
            [event(task_id=TASK, execution_id=one)])
    t.check('stopping', program.lines(r'Z info: stopping: %s$' % harness.SYSTEM.stopped_by(signal.SIGTERM)))
    t.equal('counters', program.lines(STOPPED)[0].partition('stopped: ')[2],
            '5 received, 2 accepted, 2 delivered, 1 given up, 0 lost, 0 waiting')
    t.check('what made no alert', program.lines(r'Z info: no alerts: 1 ignored, 1 malformed, 0 unknown, 1 duplicates, '
                                                r'0 rate limited, 0 refused, 0 dropped$'), shorten(program.log[-2:]))
    t.equal('the last line', re.search(STOPPED, program.log[-1]) is not None, True)
    now = datetime.datetime.now(datetime.timezone.utc)
    for line in (program.log[0], program.log[-1]):
        told = datetime.datetime.strptime(line[:23], '%Y-%m-%dT%H:%M:%S.%f').replace(tzinfo=datetime.timezone.utc)
        t.check('the time is UTC and now', abs((now - told).total_seconds()) < 60 * harness.SLOW, line[:24])


def test_log_counts_lost(t):
    """Without a journal: what is not delivered when the program stops is told whole, and counted."""
    path, _ = t.config([{'url': 'http://127.0.0.1:%d/x' % t.port()}], butlerWebhook={'stateDirectory': ''})
    program = t.start(path)
    for number in range(3):
        program.send(harness.datagram(message='number %d' % number))
    t.check('down', program.wait_log('webhook failure 1 is down'))
    t.equal('stops', program.stop(), 0)
    lines = program.lines(r'Z error: alert \d+ lost for failure 1: stopped before it was delivered; alert: \{')
    t.equal('alerts', sorted(json.loads(line.partition('; alert: ')[2])['logMessage'] for line in lines),
            ['number 0', 'number 1', 'number 2'])
    t.equal('counters', program.lines(STOPPED)[0].partition('stopped: ')[2],
            '3 received, 3 accepted, 0 delivered, 0 given up, 3 lost, 0 waiting')
    t.equal('no folder is made', [name for name in os.listdir(t.tmp) if name.endswith('.state')], [])
    t.check('warned at the start', program.lines(r" warn: .*stateDirectory is '': alerts are kept in memory only"),
            shorten(program.log[:5]))


def test_log_counts_waiting(t):
    """With a journal the same alerts are neither lost nor told as such: they wait, and the next start says so."""
    port = t.port()
    path, _ = t.config([{'url': 'http://127.0.0.1:%d/x' % port}])
    program = t.start(path)
    for number in range(3):
        program.send(harness.datagram(message='number %d' % number))
    t.check('down', program.wait_log('webhook failure 1 is down'))
    t.equal('stops', program.stop(), 0)
    t.equal('counters', program.lines(STOPPED)[0].partition('stopped: ')[2],
            '3 received, 3 accepted, 0 delivered, 0 given up, 0 lost, 3 waiting')
    t.equal('none is told as lost', program.lines(r'alert \d+ lost'), [])
    receiver = t.receiver(port=port)
    program = t.start(path)
    t.check('the next start says what waits', program.wait_log(
        r'Z info: state directory .*butler_webhook\.state: 3 alerts wait, 0 bytes of dead letters$'), shorten(program.log))
    t.equal('and delivers it', sorted(request.json().get('logMessage') for request in receiver.wait(3)),
            ['number %d' % number for number in range(3)])
    t.check('it is delivered', program.wait_log(' delivered to ', count=3))
    t.equal('stops again', program.stop(), 0)
    t.equal('counters of the second run', program.lines(STOPPED)[0].partition('stopped: ')[2],
            '0 received, 0 accepted, 3 delivered, 0 given up, 0 lost, 0 waiting')


def test_log_sanitised(t):
    """Nothing from outside reaches the log raw: fields, ids, an answer's reason phrase, a Location."""
    hostile = '\x1b[2J\x07\x00\r\n2026-01-01T00:00:00.000Z error: forged\x7f\x85\x9b31m\u2028'

    def answer(request, connection):
        if request.path == '/reason':
            return b'HTTP/1.1 404 \x1b[31mRed\x07\x9b\r\nContent-Length: 0\r\n\r\n'
        if request.path == '/location':
            return b'HTTP/1.1 302 Found\r\nLocation: /\x1b[31m\x07/%0a\xc2\x9b\r\nContent-Length: 0\r\n\r\n'
        if request.path == '/garbage':
            return lambda sock: sock.sendall(b'\x1b]0;title\x07\r\n\x00\x9b')
        return harness.response()

    receiver = t.receiver(answer)
    path, _ = t.config([{'url': receiver.url('/' + name)} for name in ('ok', 'reason', 'location', 'garbage')],
                       logLevel='silly', rateLimit=300, deduplication={'enable': True, 'ttlMinutes': 10})
    program = t.start(path)
    given = {'task': hostile, 'app': hostile, 'user': hostile, 'host': hostile, 'date': hostile,
             'message': hostile + '.', 'execution_id': hostile}
    program.send(harness.datagram(task_id=TASK, **given))
    program.send(harness.datagram(task_id=TASK, **given))
    program.send(harness.datagram(task_id=TASK, **dict(given, execution_id='2')))
    program.send(harness.datagram(id=IDS['failure'], task=hostile, app_id=''))
    program.send(harness.datagram(id=hostile))
    program.send(b'/scheduler-task-failed/;' + hostile.encode())
    program.send(b'/scheduler-task-failed/;\x9b\x90\xff' + bytes(range(256)))
    t.check('delivered', program.wait_log('delivered to failure 1'))
    t.check('the reason is dealt with', program.wait_log('given up for failure 2'))
    t.check('the location is dealt with', program.wait_log('given up for failure 3'))
    t.check('the garbage is dealt with', program.wait_log('failure 4.*next in'))
    t.equal('stops', program.stop(), 0)
    for what, text in (('stdout', program.stdout), ('stderr', program.stderr)):
        found = re.findall(r'.{0,30}[\x00-\x09\x0b-\x1f\x7f-\x9f].{0,10}', text)
        t.check('%s: no control characters' % what, not found, shorten(found[:3]))
        t.check('%s: valid UTF-8' % what, not re.search('[\udc80-\udcff]', text))
    bad = [line for line in program.log if not LINE.match(line) or line.startswith('2026-01-01T')]
    t.check('no forged line', not bad, shorten(bad[:3]))
    t.check('the text is still readable', program.lines(r'accepted.*: .*error: forged'),
            shorten(program.lines('accepted')))


def test_log_has_no_secrets(t):
    """Neither passwords nor query values of any URL stand in the log, at the most talkative level."""
    closed = t.port()

    def answer(request, connection):
        if request.path == '/404':
            return harness.response(404)
        if request.path == '/500':
            return harness.response(500)
        if request.path == '/moved':
            return harness.response(302, headers=(('Location', 'http://eve:Hush-6@127.0.0.1:%d/new?key=Hush-7#Hush-71' %
                                                   receiver.port),))
        if request.path == '/loop':
            return harness.response(307, headers=(('Location', '/loop?key=Hush-8'),))
        if request.path == '/elsewhere':
            return harness.response(307, headers=(('Location', 'http://eve:Hush-9@127.0.0.1:%d/new?key=Hush-10' %
                                                   closed),))
        if request.path == '/garbage':
            return None
        return harness.response()

    receiver = t.receiver(answer)
    names = ('ok', '404', '500', 'moved', 'loop', 'elsewhere', 'garbage')
    urls = [receiver.url('/%s?token=Hush-2&x=Hush-3#Hush-4' % name, 'alice:Hush-1') for name in names]
    urls += ['http://alice:Hush-1@127.0.0.1:%d/refused?token=Hush-2' % closed,
             'http://alice:Hush-1@no-such-host.invalid/name?token=Hush-2',
             'https://alice:Hush-1@127.0.0.1:%d/tls?token=Hush-2' % closed]
    path, _ = t.config([{'url': url, 'method': ('POST', 'PUT')[number % 2]} for number, url in enumerate(urls)] +
                       [{'url': url, 'method': 'GET', 'kind': 'aborted'} for url in urls], logLevel='silly')
    secret = re.compile('|'.join(['Hush-[0-9]+'] + [base64.b64encode(text).decode().rstrip('=')
                                                    for text in (b'alice:Hush-1', b'pu:Hush-11')]))
    program = t.start(path)
    program.send(harness.datagram())
    program.send(harness.datagram(id=IDS['aborted']))
    for kind in ('failure', 'aborted'):
        for number in range(1, len(urls) + 1):
            name = '%s %d' % (kind, number)
            t.check('%s is told' % name, program.wait_log(r'alert \d .*%s\b|webhook %s is down' % (name, name), 15),
                    shorten(program.log[-2:]))
    t.equal('stops', program.stop(), 0)
    t.check('all requests had the password',
            all(request.get('Authorization') for request in receiver.requests if request.path != '/new'))
    for what, text in (('stdout', program.stdout), ('stderr', program.stderr)):
        found = secret.findall(text)
        t.check('%s: no secrets' % what, not found,
                shorten([line for line in program.log if secret.search(line)][:2], 1500))
    proxied = t.start(path, env={'HTTP_PROXY': 'http://pu:Hush-11@127.0.0.1:%d/' % closed,
                                 'HTTPS_PROXY': 'http://pu:Hush-11@127.0.0.1:%d/' % closed})
    proxied.send(harness.datagram())
    t.check('the proxy is told', proxied.wait_log(r'failure 1 is down: .*127\.0\.0\.1:%d' % closed),
            shorten(proxied.log[-2:]))
    t.equal('stops', proxied.stop(), 0)
    t.check('proxy: no secrets', not secret.search(proxied.stdout + proxied.stderr),
            shorten([line for line in proxied.log if secret.search(line)][:2], 1500))
    for option in ('--check', '--test'):
        done = t.run(option, path, timeout=120)
        t.check('%s: no secrets' % option, not secret.search(done.stdout + done.stderr),
                shorten([line for line in (done.stdout + done.stderr).splitlines() if secret.search(line)][:2], 1500))
        t.check('%s: the URL without them' % option,
                '127.0.0.1:%d/404' % receiver.port in done.stdout or option == '--test', shorten(done.stdout))


def test_log_has_no_secrets_in_query_without_names(t):
    """What stands in a query is no name unless a `=` says so: it is not shown, either."""
    closed = t.port()
    receiver = t.receiver(lambda request, connection: harness.response(
        {'/404': 404, '/500': 500}.get(request.path, 200)))
    queries = ('Hush-1', 'Hush-1&Hush-2', 'a=Hush-1&Hush-2', 'Hush-1&a=Hush-2', '&Hush-1&&', 'Hush-1?Hush-2', '?Hush-1')
    urls = [receiver.url('/%s?%s' % (name, query)) for query in queries for name in ('ok', '404', '500')]
    urls += ['%s://127.0.0.1:%d/refused?%s' % (scheme, closed, query) for query in queries for scheme in ('http', 'https')]
    path, _ = t.config([{'url': url, 'method': ('POST', 'GET')[number % 2]} for number, url in enumerate(urls)],
                       logLevel='silly')
    program = t.start(path)
    program.send(harness.datagram())
    for number in range(1, len(urls) + 1):
        t.check('failure %d is told' % number, program.wait_log(
            r'alert 1 .*failure %d\b|webhook failure %d is down' % (number, number), 15), shorten(program.log[-2:]))
    t.equal('stops', program.stop(), 0)
    t.check('the server got them', any('Hush-1' in request.target for request in receiver.requests))
    outputs = [('the log', program.stdout + program.stderr)]
    for option in ('--check', '--test'):
        done = t.run(option, path, timeout=120)
        outputs.append((option, done.stdout + done.stderr))
        t.check('%s: the URLs without them' % option, '127.0.0.1:%d/refused?' % closed in done.stdout, shorten(done.stdout))
    for what, text in outputs:
        t.check('%s: no secrets' % what, 'Hush' not in text,
                shorten([line for line in text.splitlines() if 'Hush' in line][:2], 1500))


def test_log_has_no_secrets_in_paths(t):
    """Slack, Teams and Discord keep their secret in the path: of a long segment only the beginning is shown, wherever it is."""
    closed = t.port()

    def answer(request, connection):
        if '/moved/' in request.path:
            return harness.response(302, headers=(('Location', '/new/aB3dHushHush-0123456'),))
        return harness.response(404 if '/404/' in request.path else 500 if '/500/' in request.path else 200)

    receiver = t.receiver(answer)
    secret = 'aB3dHushHushHush'
    paths = ['/services/T00000000/B00000000/%s' % secret, '/404/%s' % secret, '/500/%s/slack' % secret,
             '/moved/%s?wait=true' % secret,
             '/api/webhooks/123456789012345678/aB3dHush_Hush-Hush~Hush']
    urls = [receiver.url(path) for path in paths]
    urls += ['%s://127.0.0.1:%d/%s' % (scheme, closed, secret) for scheme in ('http', 'https')]
    path, _ = t.config([{'url': url} for url in urls], logLevel='silly')
    program = t.start(path)
    program.send(harness.datagram())
    for number in range(1, len(urls) + 1):
        t.check('failure %d is told' % number,
                program.wait_log(r'alert 1 .*failure %d\b|webhook failure %d is down' % (number, number), 15),
                shorten(program.log[-2:]))
    t.equal('stops', program.stop(), 0)
    t.equal('the server got the whole paths', {request.target for request in receiver.requests}, set(paths))
    letters = t.letters(path)
    t.equal('dead letters', len(letters), 2)
    outputs = [('log', program.stdout + program.stderr),
               ('dead letters', json.dumps([[letter['url'], letter['reason']] for letter in letters], ensure_ascii=False))]
    for args in (('--check',), ('--test',), ('--pending',), ('--pending', '--json')):
        done = t.run(*args, path, timeout=120)
        outputs.append((' '.join(args), done.stdout + done.stderr))
    for what, text in outputs:
        t.check('%s: no secret' % what, 'Hush' not in text,
                shorten([line for line in text.splitlines() if 'Hush' in line][:2], 1500))
    for what in ('log', 'dead letters', '--check', '--test'):
        text = dict(outputs)[what]
        t.check('%s: its beginning and that it was cut' % what, '/aB3d…' in text, shorten(text, 1500))
    text = dict(outputs)['--check']
    t.check('short segments are shown', '/services/T00000000/B00000000/aB3d…' in text, shorten(text, 1500))
    t.check('also those of fifteen', t.run('--check', t.config([{'url': receiver.url('/fifteen-letters')}])[0]).stdout.count(
        '/fifteen-letters') == 1)


def test_log_has_no_secrets_of_bad_urls(t):
    """A URL that is refused is not repeated with its password."""
    for url in ('htp://bob:Hush-1@host/x?key=Hush-2', 'http://bob:Hush-1@host:99999/x?key=Hush-2',
                'http://bob:Hush-1@/x?key=Hush-2',
                'http://bob:Hush-1@ho st/x?key=Hush-2', 'http://bob:Hush-1@[::1/x?key=Hush-2',
                'http://bob:Hush-1@host.my.domain:port/x?key=Hush-2',
                '//bob:Hush-1@host/x?key=Hush-2', 'bob:Hush-1@host/x?key=Hush-2',
                'http://bob:Hush-1@1.2.3.256/x?key=Hush-2'):
        path, _ = t.config([{'url': url}])
        done = t.run('--check', path)
        t.equal('%s: exit code' % url, done.returncode, 2)
        t.check('%s: is told' % url, 'webhookURL' in done.stderr or 'URL' in done.stderr, shorten(done.stderr))
        t.check('%s: no secrets' % url, 'Hush' not in done.stdout + done.stderr, shorten(done.stderr + done.stdout))


def wait_alert(t, program, receiver):
    """Sends alerts until one arrives: for a program whose log does not tell that it listens."""
    deadline = time.monotonic() + 10 * harness.SLOW
    while time.monotonic() < deadline:
        program.send(harness.datagram(task='until it listens'))
        if receiver.wait(1, 0.2):
            return
    t.require('the program listens', False)


def test_log_levels(t):
    levels = ('error', 'warn', 'info', 'verbose', 'debug', 'silly')
    for place, level in enumerate(levels):
        receiver = t.receiver(lambda request, connection: harness.response(404 if 'refuse' in request.target else 200))
        path, _ = t.config([{'url': receiver.url(), 'method': 'GET'}], logLevel=level)
        program = t.start(path, wait=False)
        wait_alert(t, program, receiver)
        program.send(harness.datagram(id='/scheduler-task-success//'))
        program.send(b'/scheduler-task-failed/;nothing')
        program.send(harness.datagram(task='refuse'))
        t.check('%s: the error is told' % level, program.wait_log(r' error: alert \d+ given up'), shorten(program.log))
        t.equal('%s: stops' % level, program.stop(), 0)
        seen = {LINE.match(line).group(1) for line in program.log if LINE.match(line)}
        t.check('%s: nothing below it' % level, seen <= set(levels[:place + 1]), repr(seen))
        t.check('%s: all down to verbose that there is' % level, seen >= set(levels[:min(place, 3) + 1]), repr(seen))
        t.equal('%s: ignored is told' % level, bool(program.lines(' verbose: ignored: ')), place >= 3)


def test_log_file(t):
    directory = os.path.join(t.tmp, 'log files')
    os.mkdir(directory)
    now = datetime.datetime.now(datetime.timezone.utc)

    def day(age):
        return (now - datetime.timedelta(days=age)).strftime('%Y-%m-%d')

    old = ['butler_webhook.%s.log' % day(age) for age in (32, 60, 380)]
    kept = ['butler_webhook.%s.log' % day(age) for age in (1, 28)]
    others = ['butler_webhook.2001-12-31.log.gz', 'butler.2001-12-31.log', 'butler_webhook.2001-12-31.txt',
              'butler_webhook.log', 'notes.2001-12-31.log',
              'xbutler_webhook.2001-12-31.log', 'butler_webhook.2001-1-1.log', 'butler_webhook.abcd-ef-gh.log']
    for name in old + kept + others:
        with open(os.path.join(directory, name), 'w', encoding='utf-8') as file:
            file.write('kept\n')
        match = re.match(r'butler_webhook\.(\d{4})-(\d\d)-(\d\d)\.log$', name)
        stamp = datetime.datetime(*(map(int, match.groups()) if match else (2001, 12, 31))).timestamp()
        os.utime(os.path.join(directory, name), (stamp, stamp))
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}], fileLogging=True, logDirectory='log files')
    program = t.start(path)
    program.send(harness.datagram(task='Åäö'))
    t.check('delivered', program.wait_log('delivered'))
    today = 'butler_webhook.%s.log' % datetime.datetime.now(datetime.timezone.utc).strftime('%Y-%m-%d')
    t.equal('stops', program.stop(), 0)
    names = set(os.listdir(directory))
    t.equal('files that went and came', (sorted(set(old) & names), sorted(names - set(old + kept + others))),
            ([], [today]))
    t.equal('files that stay', sorted(set(kept + others) - names), [])
    t.require('the file is there', today in names)
    t.equal('the file has what the console has', t.read(os.path.join(directory, today)), program.stdout)
    again = t.start(path)
    t.equal('stops again', again.stop(), 0)
    t.equal('a second run is added', t.read(os.path.join(directory, today)), program.stdout + again.stdout)


def test_log_file_off(t):
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}], fileLogging=False, logDirectory='log')
    program = t.start(path)
    t.equal('stops', program.stop(), 0)
    t.equal('no folder is made', os.path.exists(os.path.join(t.tmp, 'log')), False)


def test_log_nobody_reads(t):
    """A console that nobody reads delays no alert and no stop; the lines that were dropped are told."""
    receiver = t.receiver(lambda request, connection: harness.response(200 if request.path == '/ok' else 410))
    path, _ = t.config([{'url': receiver.url('/ok')}, {'url': receiver.url('/gone')}], logLevel='info',
                       butlerWebhook={'stateDirectory': ''})        # so that each line of what is given up holds its alert
    read, write = os.pipe()
    program = t.start(path, stdout=write)
    os.close(write)
    try:
        wait_alert(t, program, receiver)
        for number in range(100):
            program.send(harness.datagram(message='number %03d' % number + 'x' * 30000))
            time.sleep(0.002)
        deadline = time.monotonic() + 15 * harness.SLOW

        def arrived(path):
            return len([request for request in receiver.requests if request.path == path and b':"number ' in request.body])

        while min(arrived('/ok'), arrived('/gone')) < 100 and time.monotonic() < deadline:
            time.sleep(0.05)
        t.equal('calls while nobody reads', (arrived('/ok'), arrived('/gone')), (100, 100))
        time.sleep(0.2 * harness.SLOW)      # until the last answers are in the log
        text = bytearray()

        def drain():
            while True:
                data = os.read(read, 65536)
                if not data:
                    return
                text.extend(data)

        reader = threading.Thread(target=drain, daemon=True)
        reader.start()
        time.sleep(1)
        program.send(harness.datagram(message='after'))
        t.equal('stops', program.stop(), 0)
        reader.join(5)
        lines = text.decode('utf-8', 'replace').splitlines()
        bad = [line for line in lines if not LINE.match(line)]
        t.check('what is written are whole lines', not bad, shorten(bad[:3]))
        t.check('the dropped lines are told',
                any(re.search(r' error: \d+ log lines (dropped: the log queue was full|are missing\b)', line)
                    for line in lines),
                shorten([line[:160] for line in lines[-6:]], 1200))
    finally:
        os.close(read)


def test_log_read_again(t):
    """A console that is read again after some seconds: the lines have waited, and none is missing there or in the file."""
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}], fileLogging=True, logDirectory='log')
    read, write = os.pipe()
    program = t.start(path, stdout=write)
    os.close(write)
    text = bytearray()

    def drain():
        while True:
            data = os.read(read, 65536)
            if not data:
                return
            text.extend(data)

    def says(words):
        deadline = time.monotonic() + 15 * harness.SLOW
        while words not in bytes(text) and time.monotonic() < deadline:
            time.sleep(0.05)
        return words in bytes(text)

    reader = threading.Thread(target=drain, daemon=True)
    try:
        wait_alert(t, program, receiver)
        for number in range(800):
            program.send(harness.datagram(task='unread %d' % number))
            time.sleep(0.001)
        t.require('all are delivered while nobody reads', len(receiver.wait(801, 20)) >= 801, len(receiver.requests))
        time.sleep(3)
        reader.start()
        time.sleep(0.5)
        for number in range(3):
            program.send(harness.datagram(task='late %d' % number))
            t.check('alert %d after that is there' % number, says(b'task "late %d"' % number))
        t.equal('stops', program.stop(), 0)
        reader.join(5)
    finally:
        os.close(read)
    folder = os.path.join(t.tmp, 'log')
    wanted = []
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), 'rb') as file:
            wanted += harness.SYSTEM.output(file.read()).decode().splitlines()
    shown = harness.SYSTEM.output(bytes(text)).decode('utf-8', 'replace').splitlines()
    t.check('the console has all lines of the file', shown == wanted, '%d lines, %d shown' % (len(wanted), len(shown)))
    t.check('none is missing', not [line for line in shown if ' are missing' in line], shorten(shown[-8:], 1200))


@harness.unix('a FIFO for a console')
def test_log_nobody_can_read(t):
    """A console that refuses lines, as a pipe that nobody has open: without a log file they are counted, and that is told."""
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url()}])
    fifo = os.path.join(t.tmp, 'console')
    os.mkfifo(fifo)
    read = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write = os.open(fifo, os.O_WRONLY)
    program = t.start(path, stdout=write)
    os.close(write)
    try:
        wait_alert(t, program, receiver)
        text, deadline = b'', time.monotonic() + 15 * harness.SLOW
        while b' are missing' not in text and time.monotonic() < deadline:
            os.close(read)
            wait_alert(t, program, receiver)
            time.sleep(0.2 * harness.SLOW)      # until the log thread has tried to write
            read = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
            wait_alert(t, program, receiver)
            time.sleep(0.2 * harness.SLOW)
            try:
                text += os.read(read, 65536)
            except BlockingIOError:
                pass
        t.check('the missing lines are told', re.search(rb'Z error: [1-9]\d* log lines are missing: the console', text),
                shorten(text))
    finally:
        os.close(read)
    t.equal('stops', program.stop(), 0)


def test_log_nobody_reads_at_all(t):
    """The same to the end: it stops in time though its last lines go nowhere."""
    receiver = t.receiver(harness.response(410))
    path, _ = t.config([{'url': receiver.url('/gone')}], butlerWebhook={'stateDirectory': ''})
    read, write = os.pipe()
    program = t.start(path, stdout=write)
    os.close(write)
    try:
        wait_alert(t, program, receiver)
        for number in range(60):
            program.send(harness.datagram(message='x' * 30000))
            time.sleep(0.002)
        t.check('all are called', len(receiver.wait(61)) >= 61, len(receiver.requests))
        begin = time.monotonic()
        test_http.unread_end(t, program)
        t.check('in time', time.monotonic() - begin < 5.5 * harness.SLOW, '%.1f s' % (time.monotonic() - begin))
    finally:
        os.close(read)


# ---- Time and connections for a webhook -----------------------------------------------------------------------------


def hang(sock):
    """An answer that does not come: waits until the other side goes."""
    try:
        sock.settimeout(30 * harness.SLOW)
        sock.recv(1)
    except OSError:
        pass


def test_timeout_seconds(t):
    """A call that hangs is ended after timeoutSeconds, of which the test build has five a second, and made again."""
    runs = []
    for seconds in (1, 5):
        ended = []

        def answer(request, connection, ended=ended):
            if connection.number > 1:
                return harness.response()

            def wait(sock):
                hang(sock)
                ended.append(time.monotonic())
            return wait

        receiver = t.receiver(answer)
        path, _ = t.config([{'url': receiver.url()}], butlerWebhook={'timeoutSeconds': seconds, 'maxAgeHours': 720})
        program = t.start(path, binary=t.binary_test)
        begin = time.monotonic()
        program.send(harness.datagram())
        runs.append((seconds, begin, ended, receiver, program))
    for seconds, begin, ended, receiver, program in runs:
        what = 'timeoutSeconds %d: ' % seconds
        t.check(what + 'another attempt is delivered',
                program.wait_log(r'alert 1 delivered to failure 1: 200 in .*attempt [2-9]', 30),
                shorten(program.log[-2:]))
        took = [at - begin for at in ended]
        t.check(what + 'the first call was ended after its time',
                len(took) == 1 and 0.19 * seconds <= took[0] < 0.2 * seconds + 0.9 * harness.SLOW, repr(took))
        t.check(what + 'the log says why', program.lines(r' warn: alert 1 to failure 1: no answer within %d s; ' % seconds),
                shorten(program.log[-4:]))
        t.equal(what + 'the webhook-id is the same', len({request.get('webhook-id') for request in receiver.requests}), 1)


class Busy:
    """An answer that counts the calls that are open at once; each is held until `until` of them are, and `hold` seconds more."""

    def __init__(self, until=1, hold=0.0):
        self.until = until
        self.hold = hold
        self.now = 0
        self.most = 0
        self._changed = threading.Condition()

    def __call__(self, request, connection):
        with self._changed:
            self.now += 1
            self.most = max(self.most, self.now)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.most >= self.until, 5 * harness.SLOW)
        time.sleep(self.hold)
        with self._changed:
            self.now -= 1
        return harness.response()


def test_max_concurrent_one(t):
    """maxConcurrent 1: one call after another, in the order of the alerts, on one connection; each webhook for itself."""
    busy = [Busy(hold=0.005), Busy(hold=0.002)]
    receivers = [t.receiver(answer) for answer in busy]
    path, _ = t.config([{'url': receiver.url()} for receiver in receivers], butlerWebhook={'maxConcurrent': 1})
    program = t.start(path)
    for number in range(40):
        program.send(harness.datagram(message='%02d' % number))
    for place, receiver in enumerate(receivers):
        what = 'webhook %d: ' % (place + 1)
        got = receiver.wait(40)
        t.equal(what + 'in order', [request.json().get('logMessage') for request in got], ['%02d' % n for n in range(40)])
        t.equal(what + 'connections', {request.connection for request in got}, {1})
        t.equal(what + 'calls at once', busy[place].most, 1)


def test_max_concurrent_more(t):
    """A slow webhook has as many calls at once as maxConcurrent says, 4 by default, and never one more."""
    for limit in (8, None, 2):
        busy = Busy(limit or 4, 0.1)
        receiver = t.receiver(busy)
        path, _ = t.config([{'url': receiver.url()}], butlerWebhook={'maxConcurrent': limit} if limit else {})
        program = t.start(path)
        what = 'maxConcurrent %s: ' % (limit or 'not set')
        sent = [harness.guid() for _ in range(3 * (limit or 4))]
        for execution_id in sent:
            program.send(harness.datagram(execution_id=execution_id))
        got = receiver.wait(len(sent))
        t.equal(what + 'each alert once', sorted(request.json().get('executionId') for request in got), sorted(sent))
        t.equal(what + 'calls at once', busy.most, limit or 4)
        t.equal(what + 'connections', len({request.connection for request in got}), limit or 4)


def test_retry_beside_a_slow_call(t):
    """A failed alert is tried again in its time, also while the only sender so far waits for a slow answer to another."""
    failed, again, in_time = threading.Event(), threading.Event(), []

    def answer(request, connection):
        message = request.json().get('logMessage')
        if message == 'slow':
            in_time.append(again.wait(8))
        elif failed.is_set():
            again.set()
        else:
            failed.set()
            return harness.response(500)
        return harness.response()

    receiver = t.receiver(answer)
    path, _ = t.config([{'url': receiver.url()}])
    program = t.start(path)
    program.send(harness.datagram(message='first'))
    t.check('the first call fails', program.wait_log(r' warn: alert 1 to failure 1: status 500'), shorten(program.log))
    program.send(harness.datagram(message='slow'))
    t.check('both are delivered', program.wait_log(r' delivered to ', 12, 2), shorten(program.log[-3:]))
    t.equal('the retry did not wait for the slow answer', in_time, [True])


# ---- After a restart ------------------------------------------------------------------------------------------------


class Kept:
    """A program with a state directory, which is started again and again on one configuration."""

    def __init__(self, t, webhooks, **config):
        self.t = t
        self.path, self.port = t.config(webhooks, **config)
        self.accepted = 0
        self.start()

    def start(self):
        self.program = self.t.start(self.path)
        self.accepted = 0

    def send(self, **given):
        """Sends an alert that must be accepted: it is in the journal then. Gives its executionId."""
        given.setdefault('execution_id', harness.guid())
        self.program.send(harness.datagram(**given))
        self.accepted += 1
        self.t.require('alert %d is accepted' % self.accepted,
                       self.program.wait_log(r'alert \d+ accepted: .*%s' % given['execution_id']),
                       shorten(self.program.log[-2:]))
        return given['execution_id']

    def pending(self):
        done = self.t.run('--pending', '--json', self.path)
        self.t.equal('--pending --json: exit code and stderr', (done.returncode, done.stderr), (0, ''))
        return json.loads(done.stdout)

    def settle(self, waiting, dead=0):
        """What --pending says once the outcomes of calls have reached the disk: so many wait, and so many are dead."""
        deadline = time.monotonic() + 10 * harness.SLOW
        found = self.pending()
        while (len(found['waiting']), len(found['dead'])) != (waiting, dead) and time.monotonic() < deadline:
            time.sleep(0.02)
            found = self.pending()
        self.t.equal('what waits and what is dead', (len(found['waiting']), len(found['dead'])), (waiting, dead))
        return found


def test_restart_delivers_oldest_first(t):
    """What waited at kill -9 is delivered by the next start, oldest first, with the webhook-ids that it had."""
    good = threading.Event()
    receiver = t.receiver(lambda request, connection: harness.response() if good.is_set() else hang)
    kept = Kept(t, [{'url': receiver.url()}], butlerWebhook={'maxConcurrent': 1})
    sent = [kept.send(message='number %d' % number) for number in range(8)]
    first = receiver.wait(1)
    kept.program.kill()
    waiting = kept.pending()['waiting']
    t.equal('what waits, oldest first', [entry['alert']['executionId'] for entry in waiting], sent)
    good.set()
    kept.start()
    t.check('the log says what waits', kept.program.wait_log('info: state directory .*: 8 alerts wait, 0 bytes of dead letters'),
            shorten(kept.program.log))
    later = kept.send()
    got = receiver.wait(10)[1:]
    t.equal('oldest first', [request.json().get('executionId') for request in got], sent + [later])
    t.equal('the old webhook-ids', [request.get('webhook-id') for request in got[:8]], [entry['webhookId'] for entry in waiting])
    t.equal('also that of the call that hung', first[0].get('webhook-id'), waiting[0]['webhookId'])
    t.equal('the fields are whole', got[3].json(), waiting[3]['alert'])
    t.check('all are delivered', kept.program.wait_log(' delivered to ', count=9))
    t.equal('stops', kept.program.stop(), 0)
    t.equal('nothing waits', [len(entries) for entries in kept.pending().values()], [0, 0, 0])


def test_restart_keeps_windows(t):
    """Rate limit and de-duplication go on where they were, after kill -9 as after a stop."""
    receiver = t.receiver()
    kept = Kept(t, [{'url': receiver.url()}], rateLimit=300, deduplication={'enable': True, 'ttlMinutes': 10})
    tasks = [harness.guid() for _ in range(3)]
    executions = []
    for number, task in enumerate(tasks):
        executions.append(kept.send(task_id=task))
        t.check('alert %d is delivered' % number, kept.program.wait_log(r'alert \d+ delivered'))
        kept.settle(0)
        if number == 1:
            t.equal('stops', kept.program.stop(), 0)
        else:
            kept.program.kill()
        kept.start()
        for old in range(number + 1):
            kept.program.send(harness.datagram(task_id=tasks[old].upper()))
            kept.program.send(harness.datagram(execution_id=executions[old]))
            what = 'start %d, alert %d: ' % (number + 2, old)
            t.check(what + 'held back', kept.program.wait_log(
                r'held back by the rate limit: .*\(%s\)' % tasks[old].upper()), shorten(kept.program.log[-2:]))
            t.check(what + 'a duplicate', kept.program.wait_log('duplicate ignored: .*%s' % executions[old]),
                    shorten(kept.program.log[-2:]))
    t.equal('stops', kept.program.stop(), 0)
    t.equal('what arrived', [request.json().get('executionId') for request in receiver.requests], executions)


def test_restart_calls_only_who_has_it_not(t):
    """Of two webhooks one has the alert when the program is killed: the next start calls the other one only."""
    port = t.port()
    receiver = t.receiver()
    kept = Kept(t, [{'url': receiver.url()}, {'url': 'http://127.0.0.1:%d/' % port, 'method': 'PUT'}])
    sent = kept.send()
    t.check('delivered to the first', kept.program.wait_log('alert 1 delivered to failure 1'))
    t.check('the second is down', kept.program.wait_log('webhook failure 2 is down'))
    kept.settle(1)
    kept.program.kill()
    waiting = kept.pending()['waiting']
    t.equal('what waits', [(entry['webhook'], entry['alert']['executionId']) for entry in waiting], [('failure 2', sent)])
    second = t.receiver(port=port)
    kept.start()
    got = second.wait(1)
    t.equal('the second gets it', [(request.method, request.get('webhook-id')) for request in got],
            [('PUT', waiting[0]['webhookId'])])
    later = kept.send()
    t.equal('both get the next', [receiver.wait(2)[-1].json().get('executionId'), second.wait(2)[-1].json().get('executionId')],
            [later, later])
    t.equal('stops', kept.program.stop(), 0)
    t.equal('the first got each once', [request.json().get('executionId') for request in receiver.requests], [sent, later])
    t.check('other webhooks, other ids', receiver.requests[0].get('webhook-id') != waiting[0]['webhookId'])


# ---- What waits and what is dead ------------------------------------------------------------------------------------

WAITING = ('webhookId', 'webhook', 'acceptedAt', 'attempts', 'ageSeconds', 'lastAttemptAt', 'lastError', 'alert')
DEAD = ('webhookId', 'webhook', 'acceptedAt', 'attempts', 'deadAt', 'reason', 'webhookKey', 'description', 'place', 'count',
        'url',
        'alert')


def seconds(text):
    """Seconds since 1970 of a time as the program writes it."""
    return datetime.datetime.strptime(text, '%Y-%m-%dT%H:%M:%S.%f%z').timestamp()


def test_pending(t):
    """The table and the JSON, before the first start, while the service runs and afterwards."""
    receiver = t.receiver(lambda request, connection: harness.response(404))
    path, _ = t.config([{'url': 'http://bob:Hush-1@127.0.0.1:1/?key=Hush-2', 'description': 'Desk "ö"'},
                        {'url': receiver.url('/gone?key=Hush-3')}])

    def look(when, waiting, dead):
        outputs = {}
        for args in (('--pending',), ('--pending', '--json')):
            done = t.run(*args, path)
            t.equal('%s: %s: exit code and stderr' % (when, ' '.join(args)), (done.returncode, done.stderr), (0, ''))
            t.check('%s: %s: no secrets' % (when, ' '.join(args)), 'Hush' not in done.stdout, shorten(done.stdout))
            outputs[len(args)] = done.stdout
        found = json.loads(outputs[2])
        t.equal('%s: keys' % when, tuple(found), ('waiting', 'dead', 'handedOver'))
        t.equal('%s: nothing is handed over' % when, found['handedOver'], [])
        t.equal('%s: what waits' % when, [entry['alert'] for entry in found['waiting']], waiting)
        t.equal('%s: what is dead' % when, [entry['alert'] for entry in found['dead']], dead)
        t.check('%s: the table counts' % when, re.match(r'%d waiting\b' % len(waiting), outputs[1]), shorten(outputs[1]))
        for entry in waiting + dead:
            t.check('%s: the table names the task' % when, entry['taskName'] in outputs[1], shorten(outputs[1]))
        return found

    look('before the first start', [], [])
    t.equal('which makes no folder', [name for name in os.listdir(t.tmp) if name.endswith('.state')], [])
    program = t.start(path)
    look('nothing yet', [], [])
    one = dict(DEFAULTS, execution_id=harness.guid(), task='Täsk; "one"')
    program.send(harness.datagram(**one))
    t.check('down', program.wait_log('webhook failure 1 .*is down'))
    t.check('given up', program.wait_log('alert 1 given up for failure 2'))
    deadline = time.monotonic() + 10 * harness.SLOW
    while time.monotonic() < deadline:      # until both outcomes are on the disk
        found = json.loads(t.run('--pending', '--json', path).stdout)
        if found['dead'] and len(found['waiting']) == 1 and found['waiting'][0]['attempts']:
            break
        time.sleep(0.02)
    for when in ('running', 'stopped'):
        found = look(when, [event(**one)], [event(**one)])
        for name, keys in (('waiting', WAITING), ('dead', DEAD)):
            t.equal('%s: keys of %s' % (when, name), [tuple(entry) for entry in found[name]], [keys])
        entry = found['waiting'][0]
        t.equal('%s: webhook' % when, entry['webhook'], 'failure 1 ("Desk "ö"")')
        t.check('%s: it was tried' % when, entry['attempts'] >= 1 and 'refused' in entry['lastError'] and
                0 <= entry['ageSeconds'] < 60 * harness.SLOW and
                seconds(entry['acceptedAt']) - 0.1 <= seconds(entry['lastAttemptAt']), repr(entry))     # two clocks
        t.check('%s: the dead letter has its reason' % when, 'status 404' in found['dead'][0]['reason'] and
                found['dead'][0]['attempts'] == 1, repr(found['dead']))
        if when == 'running':
            t.equal('stops', program.stop(), 0)
    for args in (('--json', path), ('--pending', '--json'), ('--pending', '--json', path, path), ('--replay', '--json', path)):
        done = t.run(*args)
        t.equal('%s: exit code' % (args,), (done.returncode, done.stdout), (2, ''))


def test_replay(t):
    """--replay hands the dead letters to the service, at once or at its next start; it sends them with their webhook-ids."""
    good = threading.Event()
    receiver = t.receiver(lambda request, connection: harness.response(200 if good.is_set() else 404))
    kept = Kept(t, [{'url': receiver.url()}])

    def replay(what):
        done = t.run('--replay', kept.path)
        t.equal('%s: exit code and stderr' % what, (done.returncode, done.stderr), (0, ''))
        t.check('%s: says how many, and who sends them when' % what,
                '2 dead letters' in done.stdout and 'the service sends them' in done.stdout, repr(done.stdout))

    def handed_over(count):
        deadline = time.monotonic() + 10 * harness.SLOW
        while len(kept.pending()['handedOver']) != count and time.monotonic() < deadline:
            time.sleep(0.05)
        return kept.pending()['handedOver']

    sent = [kept.send() for _ in range(2)]
    t.check('both are given up', kept.program.wait_log(' given up for ', count=2))
    ids = {entry['alert']['executionId']: entry['webhookId'] for entry in kept.settle(0, 2)['dead']}
    t.equal('both are dead', sorted(ids), sorted(sent))

    replay('the service runs')
    t.equal('they are sent', len(receiver.wait(4)), 4)
    t.check('refused again', kept.program.wait_log(' given up for ', count=4))
    t.equal('nothing is handed over any more', handed_over(0), [])
    found = kept.settle(0, 2)['dead']
    t.equal('dead again', {entry['alert']['executionId']: entry['webhookId'] for entry in found}, ids)

    t.equal('stops', kept.program.stop(), 0)
    good.set()
    replay('the service is stopped')
    t.equal('nobody is called', len(receiver.requests), 4)
    t.equal('--pending lists them as handed over',
            {entry['alert']['executionId']: entry['webhookId'] for entry in handed_over(2)}, ids)
    kept.settle(0, 0)
    table = t.run('--pending', kept.path).stdout
    t.check('the table, too', len(table.partition('handed over by --replay')[2].splitlines()) == 3, repr(table))
    done = t.run('--replay', kept.path)
    t.check('a second --replay says that one is under way', done.returncode == 1 and 'under way' in done.stdout + done.stderr,
            [done.returncode, done.stdout, done.stderr])
    kept.start()
    got = receiver.wait(6)
    t.equal('the next start sends them', len(got), 6)
    t.check('each time with the same webhook-ids',
            all(request.get('webhook-id') == ids[request.json()['executionId']] for request in got),
            repr(ids))
    t.check('they are delivered', kept.program.wait_log(' delivered to ', count=2))
    kept.settle(0, 0)
    t.equal('nothing is handed over in the end', handed_over(0), [])
    t.equal('stops again', kept.program.stop(), 0)
    done = t.run('--replay', kept.path)
    t.equal('nothing is dead: exit code and stderr', (done.returncode, done.stderr), (0, ''))
    t.check('nothing is dead: it says so', re.search(r'(?i)\b(no|0) dead letters', done.stdout), repr(done.stdout))
    t.equal('nothing is called', len(receiver.requests), 6)


# ---- Many at once ---------------------------------------------------------------------------------------------------


def burst(t, count, webhooks, size=0):
    """Datagrams as fast as they can be sent: each arrives once at each webhook, with an id of its own."""
    receiver = t.receiver()
    path, _ = t.config([{'url': receiver.url('/%d' % number)} for number in range(webhooks)])
    program = t.start(path)
    executions = [harness.guid() for _ in range(count)]
    datagrams = [harness.datagram(execution_id=execution_id, message='m' * size) for execution_id in executions]
    for data in datagrams:
        program.send(data)
    got = receiver.wait(count * webhooks, 30)
    t.equal('exit code', program.stop(), 0)
    got = receiver.requests
    t.equal('requests', len(got), count * webhooks)
    for number in range(webhooks):
        ids = collections.Counter(request.json().get('executionId') for request in got if request.path == '/%d' %
                                  number)
        missing = [execution_id for execution_id in executions if ids[execution_id] != 1]
        t.check('webhook %d: each alert once' % number, not missing and len(ids) == count,
                '%d are not, %d in all' % (len(missing), len(ids)))
    t.equal('webhook-ids', len({request.get('webhook-id') for request in got}), count * webhooks)
    t.equal('counters', program.lines(STOPPED)[0].partition('stopped: ')[2],
            '%d received, %d accepted, %d delivered, 0 given up, 0 lost, 0 waiting' % (count, count, count * webhooks))


@harness.alone
def test_burst(t):
    burst(t, 1000, 1)


@harness.alone
def test_burst_many_webhooks(t):
    burst(t, 300, 5)


@harness.alone
def test_burst_of_large_ones(t):
    burst(t, 100, 1, 8000)
