"""
What the program says of configuration files and command lines: every mistake at its line and column, all of them at once,
and nothing about files that are right.

Most tests run rows of tables. In the YAML text of a row `@@` stands right before the place that a problem must name; it is
taken out before the file is written. The problems of a row stand in the order of their places.
"""

import json
import os
import random
import re
import resource
import shutil
import socket
import subprocess
import time

import harness

CONFIG_DATA = os.path.join(harness.ROOT, 'test/data/config')
SAMPLES = os.path.join(harness.ROOT, 'samples')
PLACE = '@@'
PROBLEM = re.compile(r'^(?P<file>.+?):(?P<line>[1-9]\d*):(?P<column>[1-9]\d*): (?P<severity>error|warning): (?P<text>\S.*)$')
NOBODY = 65534
QUICK_S = 5     # most that any file may take


# ---- Files and runs -------------------------------------------------------------------------------------------------


def write(t, text, name='butler.yaml'):
    path = os.path.join(t.tmp, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as file:
        file.write(harness.SYSTEM.text(text if isinstance(text, bytes) else text.encode('utf-8')))
    return path


def copy_program(t, path):
    """Copies the program by a command: a child could hold a file that we had open for writing, and it would be busy."""
    subprocess.run(['cp', t.binary, path], check=True)


def places(text):
    """The text without its marks, and line and column (in characters, from 1) of each mark."""
    found = []
    while True:
        at = text.find(PLACE)
        if at < 0:
            return text, found
        found.append((text.count('\n', 0, at) + 1, at - (text.rfind('\n', 0, at) + 1) + 1))
        text = text[:at] + text[at + len(PLACE):]


def problems(t, what, stderr, path):
    """The problems in stderr as a list of dicts; every line must be one, of this file, without control characters."""
    result = []
    for line in stderr.splitlines():
        match = PROBLEM.match(line)
        ok = match is not None and match['file'] == path and line.isprintable() and len(line) < 1200
        if t.check('%s: each line of stderr is FILE:LINE:COLUMN: error|warning: TEXT' % what, ok, repr(line[:300])):
            result.append({'place': (int(match['line']), int(match['column'])), 'severity': match['severity'],
                           'text': match['text']})
    return result


def counts(found):
    errors = sum(problem['severity'] == 'error' for problem in found)
    return errors, len(found) - errors


def plural(number, word):
    return '%d %s%s' % (number, word, '' if number == 1 else 's')


def expect_summary(t, what, stdout, path, found):
    errors, warnings = counts(found)
    if errors:
        want = 'configuration %s: %s, %s' % (path, plural(errors, 'error'), plural(warnings, 'warning'))
    else:
        want = 'configuration %s is valid: 0 errors, %s' % (path, plural(warnings, 'warning'))
    t.check('%s: first line of --check' % what, stdout.split('\n')[0] == want,
            'got %r, wanted %r' % (stdout.split('\n')[0], want))


def expect_words(t, what, text, words):
    for word in words:
        t.check('%s: the text says %r' % (what, word), re.search(word, text, re.I), repr(text))


def check_file(t, what, path, expected, name_places=None):
    """
    Runs --check on path. expected: one (severity, words...) for each problem, in order; name_places: where each stands.
    Gives stdout. A file with an error must also keep the program from starting, with the same words.
    """
    begin = time.monotonic()
    done = t.run('--check', path)
    t.check('%s: is quick' % what, time.monotonic() - begin < QUICK_S * harness.SLOW)
    found = problems(t, what, done.stderr, path)
    t.check('%s: number of problems' % what, len(found) == len(expected),
            'wanted %d, got %s' % (len(expected), done.stderr or 'none'))
    for index, (problem, want) in enumerate(zip(found, expected)):
        t.equal('%s: severity %d' % (what, index + 1), problem['severity'], want[0])
        if name_places is not None:
            t.check('%s: place %d' % (what, index + 1), problem['place'] == name_places[index],
                    'got %d:%d, wanted %d:%d: %s' % (problem['place'] + name_places[index] + (problem['text'],)))
        expect_words(t, what, problem['text'], want[1:])
    errors = any(want[0] == 'error' for want in expected)
    t.equal('%s: exit code' % what, done.returncode, 2 if errors else 0)
    expect_summary(t, what, done.stdout, path, found)
    if errors and done.returncode == 2:
        started = t.run(path)
        t.equal('%s: exit code without --check' % what, started.returncode, 2)
        t.equal('%s: stderr without --check' % what, started.stderr, done.stderr)
        t.check('%s: does not start' % what, 'listening' not in started.stdout, repr(started.stdout[:300]))
    return done.stdout


def run_rows(t, rows):
    """Checks each (name, YAML text with marks, problem...) of a table; a problem is (severity, words...)."""
    for number, row in enumerate(rows):
        name, text, expected = row[0], row[1], row[2:]
        text, marked = places(text)
        t.check('%s: has a mark for each problem' % name, len(marked) == len(expected), repr(marked))
        path = write(t, text, 'row%d.yaml' % number)
        check_file(t, name, path, expected, marked)


# ---- Parts of configurations ----------------------------------------------------------------------------------------


def indent(text, width):
    return ''.join(' ' * width + line if line.strip() else line for line in text.splitlines(True))


ABORTED = """\
    reloadTaskAborted:
      webhooks:
        - webhookURL: http://127.0.0.1:1/z
          httpMethod: PUT
"""
AFTER = """\
  webhookNotification:
    enable: true
    reloadTaskFailure:
      webhooks:
        - webhookURL: http://127.0.0.1:1/a
          httpMethod: POST
"""


def with_udp(text):
    """The configuration with an udpServerConfig, unless it has one: none is a warning."""
    return text if 'udpServerConfig' in text else text + '  udpServerConfig:\n    enable: true\n'


def under_butler(text):
    """A valid configuration with these lines under Butler: as well."""
    return with_udp('Butler:\n' + indent(text, 2) + AFTER)


def udp(text):
    """A valid configuration with these lines in udpServerConfig, whose enable is there."""
    return under_butler('udpServerConfig:\n  enable: true\n' + indent(text, 2))


def notification(text):
    """A configuration with these lines as webhookNotification, and one webhook more than they have."""
    return with_udp('Butler:\n  webhookNotification:\n' + indent(text, 4) + ('' if 'reloadTaskAborted' in text else ABORTED))


def failure(text):
    """A configuration with these lines as reloadTaskFailure."""
    return notification('enable: true\nreloadTaskFailure:\n' + indent(text, 2))


def webhook(text):
    """A configuration with these lines as its only webhook."""
    lines = indent(text, 4)
    return failure('webhooks:\n  - ' + lines[4:])


def url(value):
    """A configuration whose only webhook has this URL."""
    return webhook('webhookURL: %s\nhttpMethod: POST\n' % value)


def cert(text):
    """A configuration whose only webhook, an https one, has these lines as cert."""
    return webhook('webhookURL: https://127.0.0.1:1/a\nhttpMethod: POST\ncert:\n' + indent(text, 2))


def own(text):
    return under_butler('butlerWebhook:\n' + indent(text, 2))


GOOD = webhook('webhookURL: http://127.0.0.1:1/a\nhttpMethod: POST\n')


# ---- Wrong values ---------------------------------------------------------------------------------------------------

METHODS = [
    ('unknown method', webhook('webhookURL: http://h/\nhttpMethod: @@DELETE\n'), ('error', 'httpMethod', 'GET', 'POST', 'PUT')),
    ('method in quotes', webhook("webhookURL: http://h/\nhttpMethod: @@'PATCH'\n"), ('error', 'httpMethod', 'GET, POST or PUT')),
    ('method with a space', webhook("webhookURL: http://h/\nhttpMethod: @@'POST '\n"), ('error', 'httpMethod')),
    ('method is a number', webhook('webhookURL: http://h/\nhttpMethod: @@1\n'), ('error', 'httpMethod', 'GET, POST or PUT')),
    ('method is a list', webhook('webhookURL: http://h/\nhttpMethod: @@[GET, PUT]\n'), ('error', 'httpMethod')),
    ('method is null', webhook('webhookURL: http://h/\nhttpMethod: @@null\n'), ('error', 'httpMethod')),
    ('method is empty', webhook("webhookURL: http://h/\nhttpMethod: @@''\n"), ('error', 'httpMethod')),
    ('method is missing', failure('webhooks:\n  - @@webhookURL: http://h/\n'), ('error', 'httpMethod', 'missing')),
    ('lower case', webhook('webhookURL: http://h/\nhttpMethod: post\n')),
    ('mixed case', webhook('webhookURL: http://h/\nhttpMethod: Get\n')),
    ('quoted', webhook("webhookURL: 'http://h/'\nhttpMethod: \"PUT\"\n")),
]

URLS = [
    ('not a URL', url('@@some text'), ('error', 'webhookURL', 'http')),
    ('no scheme', url('@@tickets.example.com/path'), ('error', 'webhookURL', 'https?://')),
    ('no scheme but a port', url('@@tickets.example.com:8080/path'), ('error', 'webhookURL', 'https?://')),
    ('only a path', url('@@/path'), ('error', 'webhookURL')),
    ('ftp', url('@@ftp://h/a'), ('error', 'https?://')),
    ('file', url('@@file:///c:/a'), ('error', 'https?://')),
    ('mailto', url('@@mailto:a@example.com'), ('error', 'http')),
    ('no host', url('@@http://'), ('error', 'host')),
    ('no host but a port', url('@@http://:80/a'), ('error', 'host')),
    ('no host but a user', url('@@http://user:secret@/a'), ('error', 'host')),
    ('port is a word', url('@@http://host.my.domain:port/some/path'), ('error', 'port')),
    ('port too high', url('@@http://h:65536/'), ('error', 'port', '65535')),
    ('port far too high', url('@@http://h:99999999999999999999/'), ('error', 'port')),
    ('port negative', url('@@http://h:-1/'), ('error', 'port')),
    ('space in the host', url('@@http://my host/'), ('error', 'host')),
    ('bad IPv6 address', url("@@'http://[::1/a'"), ('error', 'webhookURL')),
    ('bad character in the host', url('@@http://ho<st/a'), ('error', 'host')),
    ('bad IPv4 address', url('@@http://256.1.1.1/a'), ('error', 'webhookURL')),
    ('placeholder', url('@@https://<server>/path'), ('error', 'host')),
    ('NUL character', url('@@"http://h/\\0x"'), ('error', 'NUL')),
    ('line end inside', url('@@"http://h/\\r\\nx"'), ('error', 'control character')),
    ('backslash', url('@@http://h\\a'), ('error', 'backslash')),
    ('scheme without slashes', url('@@http:h/a'), ('error', 'https?://')),
    ('IPv4 address in another form', url('@@http://0x7f.1/a'), ('error', 'host')),
    ('host beyond ASCII', url('@@http://bücher.example/a'), ('error', 'xn--')),
    ('host percent-encoded', url('@@http://%68/a'), ('error', 'host')),
    ('in a folded block with its line end', url('>\n  http://h/a')),
    ('in a folded block', url('>-\n  http://h/a')),
    ('number', url('@@8080'), ('error', 'webhookURL')),
    ('null', url('@@null'), ('error', 'webhookURL')),
    ('empty', url("@@''"), ('error', 'webhookURL')),
    ('list', url('@@[http://h/]'), ('error', 'webhookURL')),
    ('missing', failure('webhooks:\n  - @@httpMethod: POST\n'), ('error', 'webhookURL', 'missing')),
    ('IPv6', url("'http://[::1]:8080/a'")),
    ('capitals', url('HTTP://EXAMPLE.COM/A')),
    ('user and password', url('http://user:secret@h/a')),
    ('spaces and letters in the path', url('http://h/some path/åäö')),
    ('query and fragment', url("'http://h/a?x=1&y=2#top'")),
    ('no path', url('http://h')),
    ('host of one label', url('http://ticketserver/a')),
    ('underscore in the host', url('http://ticket_server/a')),
    ('port at the end', url('https://h:65535/')),
]

NUMBERS = [
    ('rateLimit negative', failure('rateLimit: @@-1\n'), ('error', 'rateLimit', 'from 0 to')),
    ('rateLimit in quotes', failure('rateLimit: @@"300"\n'), ('error', 'rateLimit', 'number', 'quotes')),
    ('rateLimit is a word', failure('rateLimit: @@often\n'), ('error', 'rateLimit', 'whole number')),
    ('rateLimit with a unit', failure('rateLimit: @@5m\n'), ('error', 'rateLimit', 'whole number')),
    ('rateLimit has a fraction', failure('rateLimit: @@1.5\n'), ('error', 'rateLimit', 'whole number')),
    ('rateLimit is huge', failure('rateLimit: @@99999999999999999999\n'), ('error', 'rateLimit')),
    ('rateLimit above 64 bits', failure('rateLimit: @@18446744073709551917\n'), ('error', 'rateLimit')),
    ('rateLimit is huge with an exponent', failure('rateLimit: @@1e99\n'), ('error', 'rateLimit')),
    ('rateLimit is endless', failure('rateLimit: @@.inf\n'), ('error', 'rateLimit')),
    ('rateLimit is not a number', failure('rateLimit: @@.nan\n'), ('error', 'rateLimit')),
    ('rateLimit is a list', failure('rateLimit: @@[300]\n'), ('error', 'rateLimit', 'whole number')),
    ('rateLimit is a section', failure('rateLimit: @@{seconds: 300}\n'), ('error', 'rateLimit', 'whole number')),
    ('rateLimit is true', failure('rateLimit: @@true\n'), ('error', 'rateLimit', 'number')),
    ('rateLimit of aborted', notification('enable: true\nreloadTaskAborted:\n  rateLimit: @@-5\n  webhooks:\n'
                                          '    - {webhookURL: "http://h/", httpMethod: GET}\n'),
     ('error', 'reloadTaskAborted.rateLimit')),
    ('rateLimit 0', failure('rateLimit: 0\n')),
    ('rateLimit of a week', failure('rateLimit: 604800\n')),
    ('port 0', udp('portTaskFailure: @@0\n'), ('error', 'portTaskFailure', '1', '65535')),
    ('port 65536', udp('portTaskFailure: @@65536\n'), ('error', 'portTaskFailure', '65535')),
    ('port negative', udp('portTaskFailure: @@-9998\n'), ('error', 'portTaskFailure', '65535')),
    ('port in quotes', udp("portTaskFailure: @@'9998'\n"), ('error', 'portTaskFailure', 'quotes')),
    ('port is a word', udp('portTaskFailure: @@udp\n'), ('error', 'portTaskFailure', 'number')),
    ('port has a fraction', udp('portTaskFailure: @@9998.5\n'), ('error', 'portTaskFailure', 'number')),
    ('port is huge', udp('portTaskFailure: @@4294977294\n'), ('error', 'portTaskFailure', '65535')),
    ('port 1', udp('portTaskFailure: 1\n')),
    ('port 65535', udp('portTaskFailure: 65535\n')),
    ('maxMessageSize 0', udp('maxMessageSize: @@0\n'), ('error', 'maxMessageSize')),
    ('maxMessageSize negative', udp('maxMessageSize: @@-1\n'), ('error', 'maxMessageSize')),
    ('maxMessageSize huge', udp('maxMessageSize: @@1000000\n'), ('error', 'maxMessageSize', '65507')),
    ('maxMessageSize in quotes', udp('maxMessageSize: @@"65507"\n'), ('error', 'maxMessageSize', 'quotes')),
    ('maxMessageSize least', udp('maxMessageSize: 1\n')),
    ('maxMessagesPerMinute 0', udp('rateLimit:\n  enable: true\n  maxMessagesPerMinute: @@0\n'),
     ('error', 'maxMessagesPerMinute')),
    ('maxMessagesPerMinute is a word', udp('rateLimit:\n  maxMessagesPerMinute: @@many\n'),
     ('error', 'maxMessagesPerMinute', 'number')),
    ('ttlMinutes 0', udp('deduplication:\n  ttlMinutes: @@0\n'), ('error', 'ttlMinutes')),
    ('ttlMinutes negative', udp('deduplication:\n  enable: true\n  ttlMinutes: @@-10\n'), ('error', 'ttlMinutes')),
    ('ttlMinutes huge', udp('deduplication:\n  ttlMinutes: @@1000000000000\n'), ('error', 'ttlMinutes')),
    ('own port 0', own('port: @@0\n'), ('error', 'port', '65535')),
    ('own port in quotes', own('port: @@"9997"\n'), ('error', 'port', 'quotes')),
    ('own port too high', own('port: @@70000\n'), ('error', 'port', '65535')),
]

# (key of butlerWebhook, least, most)
BOUNDS = (('maxStateMB', 16, 4096), ('maxAgeHours', 1, 8760), ('timeoutSeconds', 1, 300), ('maxConcurrent', 1, 16))

STATE_DIRECTORY = [
    ('stateDirectory is a list', own('stateDirectory: @@[state]\n'), ('error', 'butlerWebhook.stateDirectory', 'single value')),
    ('stateDirectory is a section', own('stateDirectory: @@{path: state}\n'), ('error', 'stateDirectory', 'single value')),
    ('stateDirectory has a control character', own('stateDirectory: @@"C:\\new"\n'),
     ('error', 'stateDirectory', 'control character', 'single quotes')),
    ('stateDirectory has a NUL character', own('stateDirectory: @@"a\\0b"\n'), ('error', 'NUL')),
    ('stateDirectory is written otherwise', own('@@statedirectory: state\n'), ('warning', 'known here: .*stateDirectory,')),
]

TRUE_FALSE = [
    ('enable in quotes', notification('enable: @@"true"\n'), ('error', 'enable', 'true or false', 'quotes')),
    ('enable yes', notification('enable: @@yes\n'), ('error', 'enable', 'true or false')),
    ('enable on', notification('enable: @@on\n'), ('error', 'enable', 'true or false')),
    ('enable 1', notification('enable: @@1\n'), ('error', 'enable', 'true or false')),
    ('enable is misspelt', notification('enable: @@ture\n'), ('error', 'enable', 'true or false')),
    ('enable is empty', notification('enable:@@\n'), ('error', 'enable', 'no value')),
    ('enable True', notification('enable: True\n')),
    ('enable TRUE', notification('enable: TRUE\n')),
    ('udpServerConfig.enable yes', under_butler('udpServerConfig:\n  enable: @@yes\n'), ('error', 'enable', 'true or false')),
    ('fileLogging in quotes', under_butler("fileLogging: @@'false'\n"), ('error', 'fileLogging', 'true or false')),
    ('enableSourceValidation no', udp('enableSourceValidation: @@no\n'), ('error', 'enableSourceValidation')),
    ('rateLimit.enable a number', udp('rateLimit:\n  enable: @@0\n'), ('error', 'enable', 'true or false')),
    ('deduplication.enable a word', udp('deduplication:\n  enable: @@never\n'), ('error', 'enable', 'true or false')),
    ('cert.enable a word', cert('enable: @@sure\n'), ('error', 'enable', 'true or false')),
    ('rejectUnauthorized in quotes', cert('enable: false\nrejectUnauthorized: @@"false"\n'),
     ('error', 'rejectUnauthorized', 'true or false')),
    ('own enable a word', own('enable: @@maybe\n'), ('error', 'enable', 'true or false')),
]

# The warning for a listener that everybody reaches.
OPEN = ('warning', 'enableSourceValidation and allowedSources', 'without a check of the senders')

OTHER_VALUES = [
    ('logLevel unknown', under_butler('logLevel: @@loud\n'),
     ('error', 'logLevel', 'error', 'warn', 'info', 'verbose', 'debug', 'silly')),
    ('logLevel a number', under_butler('logLevel: @@3\n'), ('error', 'logLevel')),
    ('logLevel error', under_butler('logLevel: error\n')),
    ('logLevel silly', under_butler('logLevel: silly\n')),
    ('logDirectory is a list', under_butler('logDirectory: @@[log]\n'), ('warning', 'logDirectory')),
    ('logDirectory empty: the default', under_butler("fileLogging: true\nlogDirectory: ''\n")),
    ('own serverHost is empty: the default', own("serverHost: ''\n")),
    ('serverHost is empty: the default', udp("serverHost: ''\n")),
    ('serverHost with spaces', udp("serverHost: @@'my server'\n"), ('error', 'serverHost')),
    ('serverHost is a URL', udp('serverHost: @@http://127.0.0.1\n'), ('error', 'serverHost')),
    ('serverHost with a port', udp('serverHost: @@127.0.0.1:9998\n'), ('error', 'serverHost')),
    ('serverHost is a list', udp('serverHost: @@[127.0.0.1]\n'), ('error', 'serverHost')),
    ('serverHost is a bad address', udp('serverHost: @@127.0.0.256\n'), ('error', 'serverHost')),
    ('serverHost localhost', udp('serverHost: localhost\n')),
    ('serverHost IPv6', udp("serverHost: '::1'\n")),
    ('serverHost is a name', udp('serverHost: @@qs1.example.com\n'), OPEN),
    ('allowedSources is text', udp('enableSourceValidation: true\nallowedSources: @@10.0.0.1\n'),
     ('error', 'allowedSources', 'list')),
    ('allowedSources with a bad prefix length',
     udp('enableSourceValidation: true\nallowedSources:\n  - 10.0.0.1\n  - @@10.0.0.0/33\n'),
     ('error', 'allowedSources', 'range')),
    ('allowedSources with a bad address', udp('enableSourceValidation: true\nallowedSources: [10.0.0.1, @@10.0.0.256]\n'),
     ('error', 'allowedSources', 'address')),
    ('allowedSources with a bad IPv6 prefix', udp("enableSourceValidation: true\nallowedSources: [10.0.0.1, @@'fe80::/129']\n"),
     ('error', 'allowedSources', 'range')),
    ('allowedSources with a number', udp('enableSourceValidation: true\nallowedSources: [10.0.0.1, @@10]\n'),
     ('error', 'allowedSources')),
    ('allowedSources with an empty entry', udp("enableSourceValidation: true\nallowedSources: [10.0.0.1, @@'']\n"),
     ('error', 'allowedSources')),
    ('allowedSources with a name and a prefix',
     udp('enableSourceValidation: true\nallowedSources: [10.0.0.1, @@qs1.example.com/24]\n'),
     ('error', 'allowedSources', 'range')),
    ('allowedSources with a range over more than IPv4-mapped addresses',
     udp("enableSourceValidation: true\nallowedSources: [10.0.0.1, @@'::ffff:10.0.0.0/64']\n"),
     ('error', 'allowedSources', 'range')),
    ('allowedSources with IPv4-mapped ranges',
     udp("enableSourceValidation: true\nallowedSources: ['::ffff:10.0.0.0/8', '::ffff:10.0.0.0/104']\n")),
    ('allowedSources of every kind',
     udp("enableSourceValidation: true\nallowedSources: [10.0.0.1, 10.1.0.0/16, qs1.example.com, '::1', 'fe80::/10']\n")),
    ('allowedSources not used', udp('enableSourceValidation: false\nallowedSources: [10.0.0.1]\n')),
    ('source check without sources', udp('enableSourceValidation: true\nallowedSources: @@[]\n'),
     ('warning', 'allowedSources')),
    ('source check without the list', under_butler('udpServerConfig:\n  @@enable: true\n  enableSourceValidation: true\n'),
     ('warning', 'allowedSources')),
    ('all addresses with a source check',
     udp('serverHost: 0.0.0.0\nenableSourceValidation: true\nallowedSources: [10.0.0.1]\n')),
    ('all addresses without a source check', udp('serverHost: @@0.0.0.0\n'), OPEN),
    ('all addresses with the source check off',
     udp('serverHost: @@0.0.0.0\nenableSourceValidation: false\nallowedSources: [10.0.0.1]\n'), OPEN),
    ('all addresses with an empty source check',
     udp('serverHost: @@0.0.0.0\nenableSourceValidation: true\nallowedSources: @@[]\n'), OPEN,
     ('warning', 'allowedSources is empty')),
    ('one address without a source check', udp('serverHost: @@10.20.30.40\n'), OPEN),
    ('all IPv6 addresses without a source check', udp("serverHost: @@'::'\n"), OPEN),
    ('an IPv6 address without a source check', udp("serverHost: @@'2001:db8::ffff:7f00:1'\n"), OPEN),
    ('another loopback address', udp('serverHost: 127.1.2.3\n')),
    ('all IPv6 addresses with a source check',
     udp("serverHost: '::'\nenableSourceValidation: true\nallowedSources: [10.0.0.1]\n")),
    ('own serverHost without a source check', own('serverHost: @@0.0.0.0\n'), OPEN),
    ('own serverHost counts', under_butler('udpServerConfig:\n  enable: true\n  serverHost: 127.0.0.1\nbutlerWebhook:\n'
                                           '  serverHost: @@0.0.0.0\n'), OPEN),
    ('own serverHost counts, for good', under_butler('udpServerConfig:\n  enable: true\n  serverHost: 0.0.0.0\nbutlerWebhook:\n'
                                                     '  serverHost: 127.0.0.1\n')),
    ('own serverHost with Butler\'s source check',
     under_butler('udpServerConfig:\n  enable: true\n  enableSourceValidation: true\n  allowedSources: [10.0.0.1]\n'
                  'butlerWebhook:\n  serverHost: 0.0.0.0\n')),
    ('description is a number', webhook('description: 7\nwebhookURL: http://h/\nhttpMethod: POST\n')),
    ('description in a folded block', webhook('description: >\n  one\n  two\nwebhookURL: http://h/\nhttpMethod: POST\n')),
    ('description in a literal block', webhook('description: |\n  one\n  two\nwebhookURL: http://h/\nhttpMethod: POST\n')),
    ('description in double quotes over two lines',
     webhook('description: "one\n  two"\nwebhookURL: http://h/\nhttpMethod: POST\n')),
    ('description is a list', webhook('description: @@[a]\nwebhookURL: http://h/\nhttpMethod: POST\n'),
     ('error', 'description')),
]


def test_config_methods(t):
    run_rows(t, METHODS)


def test_config_urls(t):
    run_rows(t, URLS)


def test_config_numbers(t):
    run_rows(t, NUMBERS)


def test_config_own_numbers(t):
    rows = []
    for key, least, most in BOUNDS:
        for value in (str(least - 1), '-1', str(most + 1)):
            rows.append(('%s %s' % (key, value), own('%s: @@%s\n' % (key, value)),
                         ('error', r'butlerWebhook\.%s must be a whole number from %d to %d,' % (key, least, most))))
        for value in ("'5'", 'many', '1.5', '5s', '1e99', 'true', '18446744073709551617'):
            rows.append(('%s %s' % (key, value), own('%s: @@%s\n' % (key, value)),
                         ('error', r'butlerWebhook\.%s' % key, 'whole number', 'quotes' if value[0] == "'" else '')))
        rows.append(('%s is a list' % key, own('%s: @@[5]\n' % key), ('error', key, 'whole number')))
        rows.append(('%s is misspelt' % key, own('@@%s: 5\n' % key[:-1]),
                     ('warning', r'known here: .*\b%s\b' % key)))
        for value in (str(least), str(most), '', '~'):
            rows.append(('%s %s' % (key, value), own('%s: %s\n' % (key, value))))
    run_rows(t, rows)


def test_config_state_directory(t):
    run_rows(t, STATE_DIRECTORY)


def test_config_true_false(t):
    run_rows(t, TRUE_FALSE)


def test_config_other_values(t):
    run_rows(t, OTHER_VALUES)


# ---- Certificates ---------------------------------------------------------------------------------------------------


def test_config_cert(t):
    ca = os.path.join(CONFIG_DATA, 'ca.pem')
    with open(ca, encoding='ascii') as file:
        pem = file.read()
    write(t, pem, 'one.pem')
    write(t, 'Example Company Internal CA\n\n' + pem * 3 + '# end\n', 'three.pem')
    write(t, pem.replace('\n', '\r\n'), 'crlf.pem')
    write(t, b'\xef\xbb\xbf' + pem.encode(), 'bom.pem')
    write(t, 'this is no certificate\n', 'text.pem')
    write(t, '', 'empty.pem')
    write(t, pem.replace('MII', '!II', 1), 'damaged.pem')
    write(t, pem[:200], 'cut.pem')
    write(t, pem + pem.replace('MII', 'AAA', 1), 'second-damaged.pem')
    write(t, pem.replace('CERTIFICATE', 'PRIVATE KEY'), 'key.pem')
    write(t, subprocess.run(['openssl', 'x509', '-in', ca, '-outform', 'DER'], capture_output=True, check=True).stdout,
          'ca.der')
    write(t, pem, 'sub folder/åäö.pem')
    constrained = subprocess.run(['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1',
                                  '-nodes',
                                  '-keyout', os.devnull, '-subj', '/CN=Constrained', '-addext',
                                  'nameConstraints=critical,permitted;DNS:example.com'], capture_output=True, check=True).stdout
    write(t, constrained, 'constrained.pem')
    write(t, pem.encode() + constrained, 'second-constrained.pem')
    os.mkdir(os.path.join(t.tmp, 'folder.pem'))
    rows = [
        ('no such file', cert('enable: true\ncertCA: @@nowhere.pem\n'), ('error', 'certCA', 'nowhere\\.pem', 'no such file')),
        ('no such file, absolute', cert('enable: true\ncertCA: @@/nowhere/ca.pem\n'), ('error', '/nowhere/ca\\.pem')),
        ('the documentation\'s placeholder', cert('enable: true\ncertCA: @@/path/to/ca-certificate.pem\n'),
         ('error', '/path/to/ca-certificate\\.pem')),
        ('a directory', cert('enable: true\ncertCA: @@folder.pem\n'), ('error', 'folder\\.pem', 'directory')),
        ('plain text', cert('enable: true\ncertCA: @@text.pem\n'), ('error', 'text\\.pem', 'PEM|BEGIN CERTIFICATE')),
        ('an empty file', cert('enable: true\ncertCA: @@empty.pem\n'), ('error', 'empty\\.pem')),
        ('DER', cert('enable: true\ncertCA: @@ca.der\n'), ('error', 'ca\\.der', 'PEM')),
        ('a key', cert('enable: true\ncertCA: @@key.pem\n'), ('error', 'key\\.pem', 'certificate')),
        ('a damaged certificate', cert('enable: true\ncertCA: @@damaged.pem\n'), ('error', 'damaged\\.pem')),
        ('half a certificate', cert('enable: true\ncertCA: @@cut.pem\n'), ('error', 'cut\\.pem')),
        ('a critical extension that is not known', cert('enable: true\ncertCA: @@constrained.pem\n'),
         ('error', 'certificate 1 of ', 'constrained\\.pem', 'critical extension')),
        ('a good one and one with a critical extension', cert('enable: true\ncertCA: @@second-constrained.pem\n'),
         ('warning', 'certificate 2 of ', 'constrained\\.pem', 'critical extension')),
        ('no such file, but http', webhook('webhookURL: http://h/\nhttpMethod: POST\ncert:\n  enable: true\n'
                                           '  certCA: @@nowhere.pem\n'), ('warning', 'nowhere\\.pem')),
        ('certCA missing, but http', webhook('webhookURL: http://h/\nhttpMethod: POST\ncert:\n  @@enable: true\n'),
         ('warning', 'certCA')),
        ('a good and a damaged one', cert('enable: true\ncertCA: @@second-damaged.pem\n'), ('warning', 'second-damaged\\.pem')),
        ('certCA missing', cert('@@enable: true\n'), ('error', 'certCA')),
        ('certCA null', cert('enable: true\ncertCA: @@null\n'), ('error', 'certCA')),
        ('certCA empty', cert("enable: true\ncertCA: @@''\n"), ('error', 'certCA')),
        ('certCA a list', cert('enable: true\ncertCA: @@@@[one.pem]\n'), ('error', 'certCA'), ('error', 'names no file')),
        ('certCA without enable', cert('@@certCA: one.pem\n'), ('error', 'enable', 'missing')),
        ('nothing but rejectUnauthorized', cert('rejectUnauthorized: true\n')),
        ('cert empty', webhook('webhookURL: https://h/\nhttpMethod: POST\ncert:\n')),
        ('cert is text', webhook('webhookURL: https://h/\nhttpMethod: POST\ncert: @@one.pem\n'), ('error', 'cert')),
        ('cert is a list', webhook('webhookURL: https://h/\nhttpMethod: POST\ncert:\n  @@- enable: true\n'), ('error', 'cert')),
        ('not enabled: certCA is not looked at', cert('enable: false\ncertCA: /path/to/ca-certificate.pem\n')),
        ('no check', cert('enable: false\nrejectUnauthorized: @@false\n'), ('warning', 'rejectUnauthorized', 'failure 1')),
        ('no check, with a certCA that is there', cert('enable: true\nrejectUnauthorized: @@false\ncertCA: one.pem\n'),
         ('warning', 'rejectUnauthorized', 'failure 1')),
        ('no check, with a certCA that is not there',
         cert('enable: true\nrejectUnauthorized: @@false\ncertCA: @@nowhere.pem\n'),
         ('warning', 'rejectUnauthorized', 'failure 1'), ('warning', 'nowhere\\.pem')),
    ]
    run_rows(t, rows)
    for name, number in (('one.pem', 1), ('three.pem', 3), ('crlf.pem', 1), ('bom.pem', 1), ('sub folder/åäö.pem', 1),
                         (os.path.join(t.tmp, 'one.pem'), 1)):
        path = write(t, cert("enable: true\ncertCA: '%s'\n" % name), 'good.yaml')
        stdout = check_file(t, name, path, [])
        t.check('%s: number of certificates' % name,
                re.search(r'CA file .*%s \(%s\)' % (re.escape(os.path.basename(name)), plural(number, 'certificate')), stdout),
                repr(stdout))
    # The path starts at the file, not at the folder in which the program was started.
    path = write(t, cert('enable: true\ncertCA: three.pem\n'), 'good.yaml')
    done = t.run('--check', os.path.relpath(path, '/'), cwd='/')
    t.equal('relative to the configuration file', done.returncode, 0)


# ---- The shape of the file ------------------------------------------------------------------------------------------

SHAPES = [
    ('empty file', '@@', ('error', 'Butler', 'empty')),
    ('only a comment', '@@# nothing here\n', ('error', 'Butler')),
    ('only a document start', '---\n@@', ('error', 'Butler')),
    ('no Butler key', '@@butlerWebhook:\n  enable: true\n', ('error', 'Butler')),
    ('Butler in lower case', '@@butler:\n  webhookNotification:\n    enable: true\n', ('error', 'Butler')),
    ('another program\'s file', '@@services:\n  web:\n    image: nginx\n', ('error', 'Butler')),
    ('a list', '@@- Butler:\n    webhookNotification:\n      enable: true\n', ('error', 'Butler')),
    ('plain text', '@@hello\n', ('error', 'Butler')),
    ('Butler is null', 'Butler:@@\n', ('error', 'Butler')),
    ('Butler is a list', 'Butler:\n  @@- webhookNotification:\n      enable: true\n', ('error', 'Butler')),
    ('Butler is text', 'Butler: @@yes\n', ('error', 'Butler')),
    ('no webhookNotification', 'Butler:\n  @@udpServerConfig: {enable: true}\n', ('error', 'webhookNotification', 'missing')),
    ('webhookNotification is null', with_udp('Butler:\n  webhookNotification:@@\n'), ('error', 'webhookNotification')),
    ('webhookNotification is a list', with_udp('Butler:\n  webhookNotification: @@[]\n'), ('error', 'webhookNotification')),
    ('no udpServerConfig', 'Butler:\n' + AFTER.replace('  ', '  @@', 1),
     ('warning', r'udpServerConfig is missing: listening on 127\.0\.0\.1:9998')),
    ('udpServerConfig is null', 'Butler:\n' + AFTER.replace('  ', '  @@', 1) + '  udpServerConfig:\n',
     ('warning', 'udpServerConfig is missing')),
    ('no udpServerConfig, but a port of ours', 'Butler:\n' + AFTER + '  butlerWebhook: {port: 9997}\n'),
    ('no udpServerConfig, and off', 'Butler:\n' + AFTER.replace('true', 'false')),
    ('webhookNotification without enable', notification('@@reloadTaskFailure:\n  webhooks: []\n'),
     ('error', 'webhookNotification.enable', 'missing')),
    ('udpServerConfig without enable', under_butler('udpServerConfig:\n  @@portTaskFailure: 9998\n'),
     ('error', 'udpServerConfig.enable', 'missing')),
    ('udpServerConfig is text', under_butler('udpServerConfig: @@127.0.0.1:9998\n'), ('error', 'udpServerConfig')),
    ('reloadTaskFailure is text', notification('enable: true\nreloadTaskFailure: @@http://h/\n'),
     ('error', 'reloadTaskFailure')),
    ('reloadTaskFailure is a list', notification('enable: true\nreloadTaskFailure:\n  @@- webhookURL: http://h/\n'),
     ('error', 'reloadTaskFailure')),
    ('webhooks is text', failure('webhooks: @@http://h/\n'), ('error', 'webhooks', 'list')),
    ('webhooks is a section', failure('webhooks:\n  @@webhookURL: http://h/\n  httpMethod: POST\n'),
     ('error', 'webhooks', 'list')),
    ('webhook is text', failure('webhooks:\n  - @@@@http://h/\n'), ('error', 'webhookURL is missing'), ('error', 'httpMethod')),
    ('webhook is null', failure('webhooks:\n  -@@@@\n'), ('error', 'webhookURL is missing'), ('error', 'httpMethod')),
    ('webhook is a list', failure('webhooks:\n  - @@@@- a\n'), ('error', 'webhookURL is missing'), ('error', 'httpMethod')),
    ('rateLimit of udpServerConfig is a number', udp('rateLimit: @@600\n'), ('error', 'rateLimit')),
    ('deduplication is true', udp('deduplication: @@true\n'), ('error', 'deduplication')),
    ('butlerWebhook is a list', under_butler('butlerWebhook: @@[]\n'), ('error', 'butlerWebhook')),
    ('webhooks null', failure('rateLimit: 5\nwebhooks:\n')),
    ('webhooks empty', failure('webhooks: []\n')),
    ('webhooks missing', failure('rateLimit: 5\n')),
    ('both kinds null',
     with_udp('Butler:\n  webhookNotification:\n    enable: true\n    reloadTaskFailure:\n    reloadTaskAborted:\n')),
    ('no webhook at all', with_udp('Butler:\n  webhookNotification:\n    enable: true\n')),
    ('no kind of event', notification('enable: true\nreloadTaskFailure:\n')),
    ('butlerWebhook null', under_butler('butlerWebhook:\n')),
    ('flow style', '{Butler: {udpServerConfig: {enable: true}, webhookNotification: {enable: true, reloadTaskFailure: {webhooks: '
     '[{webhookURL: "http://h/", httpMethod: GET}]}}}}'),
    ('JSON',
     json.dumps({'Butler': {'udpServerConfig': {'enable': True}, 'webhookNotification': {'enable': True, 'reloadTaskFailure': {
        'webhooks': [{'webhookURL': 'http://h/', 'httpMethod': 'GET'}]}}}}, indent=4)),
    ('other keys beside Butler', 'x-common: {a: 1}\n' + GOOD),
    ('document marks', '%YAML 1.1\n---\n' + GOOD + '...\n'),
]

SYNTAX = [
    ('tab as indentation', 'Butler:\n@@\twebhookNotification:\n', ('error', 'tab', 'space')),
    ('tab after spaces', 'Butler:\n  webhookNotification:\n  @@\tenable: true\n', ('error', 'tab')),
    ('duplicate key', notification('enable: true\n@@enable: false\n'), ('error', 'enable', 'line 3|3:5|twice|duplicate')),
    ('duplicate section', GOOD + '  @@webhookNotification:\n    enable: true\n', ('error', 'webhookNotification')),
    ('duplicate Butler', GOOD + '@@Butler:\n  logLevel: info\n', ('error', 'Butler')),
    ('duplicate key in a webhook', webhook('webhookURL: http://h/\nhttpMethod: POST\n@@webhookURL: http://g/\n'),
     ('error', 'webhookURL')),
    ('path in double quotes', cert('enable: true\ncertCA: "C:@@\\path\\ca.pem"\n'), ('error', 'single quotes', 'escape')),
    ('path in double quotes elsewhere', under_butler('cert:\n  clientCert: "D:@@\\Butler\\cert\\client.pem"\n'),
     ('error', 'single quotes', 'escape')),
    ('quotes not closed', webhook("description: @@'Operations desk\nwebhookURL: http://h/\nhttpMethod: POST\n"), ('error',)),
    ('apostrophe in single quotes', webhook("description: 'the desk'@@s alerts'\nwebhookURL: http://h/\nhttpMethod: POST\n"),
     ('error',)),
    ('colon and space in plain text', under_butler('comment: one@@: two\n'), ('error',)),
    ('wrong indentation', 'Butler:\n  webhookNotification:\n    enable: true\n   @@reloadTaskFailure:\n', ('error', 'indent')),
    ('list not closed', 'Butler:\n  a: [1, 2\n' + AFTER.replace(':', '@@:', 1), ('error',)),
    ('unknown alias', webhook('webhookURL: @@*nowhere\nhttpMethod: POST\n'), ('error', 'undefined alias')),
    ('anchor defined twice', under_butler('a: &x 1\nb: @@&x 2\n'), ('error', 'duplicate anchor')),
    ('key without a colon', notification('enable: true\n@@reloadTaskFailure\n'), ('error',)),
    ('reserved character', under_butler('a: @@`date`\n'), ('error',)),
    ('template placeholder', under_butler('a: @@%name%\n'), ('error',)),
    ('two documents', GOOD + '@@---\n' + GOOD, ('error', 'document')),
    ('alias inside its own anchor', under_butler('a: &self\n  @@b: *self\n'), ('error', 'alias inside its own anchor')),
    ('webhooks that contain themselves', failure('webhooks: @@&list\n  - *list\n'), ('error', 'alias inside its own anchor')),
]


def test_config_section_twice(t):
    """A list or section that stands twice is read once, however long the two are; with sanitizers, too."""
    sources = 'allowedSources: [%s]\n@@allowedSources: [%s]\n'
    rows = []
    for one, two in ((60, 1), (1, 60), (60, 60), (0, 60), (60, 0), (200, 250)):
        lists = [', '.join('10.%d.0.%d' % (number, i + 1) for i in range(count)) for number, count in enumerate((one, two))]
        rows.append(('allowedSources of %d, then %d' % (one, two), udp(sources % tuple(lists)),
                     ('error', 'allowedSources', 'twice')))
    webhooks = 'webhookURL: https://h/\nhttpMethod: POST\n'
    for name, one, two in (('off, off', 'enable: false', 'rejectUnauthorized: false'),
                           ('empty, off', '', 'enable: false'), ('off, empty', 'enable: false', ''),
                           ('three keys, then one', 'enable: false, rejectUnauthorized: true, certCA: x', 'enable: false')):
        rows.append(('cert: %s' % name, webhook('%scert: {%s}\n@@cert: {%s}\n' % (
            webhooks, one, two)), ('error', '"cert"', 'twice')))
    for binary in (t.binary, t.binary_test):
        t.binary = binary
        run_rows(t, rows)


def test_config_shapes(t):
    run_rows(t, SHAPES)


def test_config_syntax(t):
    run_rows(t, SYNTAX)


# ---- Keys -----------------------------------------------------------------------------------------------------------

KEYS = [
    ('misspelt in webhookNotification', notification('enable: true\n@@reloadTaskFailed:\n  webhooks: []\n'),
     ('warning', 'reloadTaskFailed', 'known here', 'reloadTaskFailure')),
    ('misspelt rateLimit', failure('@@ratelimit: 60\nwebhooks: []\n'), ('warning', 'ratelimit', 'known here', 'rateLimit')),
    ('misspelt webhooks', failure('@@webhook: []\n'), ('warning', 'known here', 'webhooks')),
    ('misspelt webhookURL', webhook('@@@@webhookUrl: http://h/\nhttpMethod: POST\n'),
     ('error', 'webhookURL', 'missing'), ('warning', 'webhookUrl', 'known here', 'webhookURL')),
    ('misspelt description', webhook('@@descripton: a\nwebhookURL: http://h/\nhttpMethod: POST\n'),
     ('warning', 'known here', 'description')),
    ('misspelt rejectUnauthorized', cert('enable: false\n@@rejectUnauthorised: true\n'),
     ('warning', 'known here', 'rejectUnauthorized')),
    ('misspelt portTaskFailure', udp('@@portTaskFailures: 9000\n'), ('warning', 'known here', 'portTaskFailure')),
    ('misspelt allowedSources', udp('@@allowedSource: []\n'), ('warning', 'known here', 'allowedSources')),
    ('misspelt ttlMinutes', udp('deduplication:\n  @@ttlMinute: 5\n'), ('warning', 'known here', 'ttlMinutes')),
    ('misspelt serverHost of ours', own('@@serverhost: 127.0.0.1\n'), ('warning', 'known here', 'serverHost')),
    ('nothing like it', webhook('webhookURL: http://h/\nhttpMethod: POST\n@@colour: red\n'),
     ('warning', 'colour', 'known here: description, webhookURL, httpMethod, cert$')),
    ('number as a key', failure('@@1: a\nwebhooks: []\n'), ('warning', '1')),
    ('Butler\'s own keys in what we read',
     'Butler:\n'
     '  udpServerConfig:\n'
     '    enable: true\n'
     '    messageQueue: {maxConcurrent: 10, maxSize: 200, backpressureThreshold: 80}\n'
     '    queueMetrics:\n'
     '      influxdb: {enable: false, writeFrequency: 20000, measurementName: butler_udp_queue, tags: []}\n'
     '  webhookNotification:\n'
     '    enable: true\n'
     '    reloadTaskAborted: {webhooks: [{webhookURL: "http://h/", httpMethod: PUT}]}\n'
     '    serviceMonitor: {rateLimit: "15", webhooks: not a list}\n'
     '    qlikSenseServerLicenseMonitor: {rateLimit: 15, webhooks: }\n'
     '    qlikSenseServerLicenseExpiryAlert: 7\n'),
    ('misspelt under Butler, where all other keys are Butler\'s own', under_butler('logLevl: debug\n')),
    ('Butler\'s own keys, wrong for us',
     under_butler('mqttConfig: 12\ncert: [1, 2]\nserviceMonitor:\n  monitor: {enable: perhaps}\nrateLimit: -1\nwebhooks: x\n')),
]


def test_config_keys(t):
    run_rows(t, KEYS)


# ---- Anchors and merge keys used well -------------------------------------------------------------------------------


def test_config_aliases(t):
    path = write(t, '''
common: &desk
  description: Operations desk
  webhookURL: http://desk.example.com/hooks?token=secret
  httpMethod: &method PUT
  cert: {enable: false}
second: &post {httpMethod: POST, description: not this one}
Butler:
  udpServerConfig: {enable: true}
  webhookNotification:
    enable: true
    reloadTaskFailure: &failed
      rateLimit: 5
      webhooks:
        - *desk
        - <<: *desk
          description: Second desk
        - <<: [*post, *desk]
          description: "Third \\u009bdesk"
        - {webhookURL: http://fourth/, httpMethod: *method}
    reloadTaskAborted:
      <<: *failed
      rateLimit: 7
''')
    stdout = check_file(t, 'aliases', path, [])
    t.check('rate limits', re.search(r'failure 5 s, aborted 7 s', stdout), repr(stdout))
    rows = [re.split(r'\s{2,}|\s*\|\s*', line.strip()) for line in stdout.splitlines()
            if re.match(r'(failure|aborted) +\d', line)]
    t.equal('webhooks', len(rows), 8)
    text = [' '.join(row) for row in rows]
    for kind, part in (('failure', text[:4]), ('aborted', text[4:])):
        for number, (line, method, description) in enumerate(zip(
                part, ('PUT', 'PUT', 'POST', 'PUT'), ('Operations desk', 'Second desk', 'Third', ''))):
            t.check('%s %d' % (kind, number + 1),
                    re.search(r'^%s +%d\b.*\b%s\b.*http://%s' % (kind, number + 1, method,
                                                                 'fourth' if number == 3 else 'desk.example.com'), line)
                    and description in line, repr(line))
    t.check('no secret', 'secret' not in stdout, repr(stdout))


# ---- Files that are meant to do harm --------------------------------------------------------------------------------


def laughs(depth, width):
    lines = ['a0: &a0 [ha, ha]']
    for level in range(1, depth):
        lines.append('a%d: &a%d [%s]' % (level, level, ', '.join(['*a%d' % (level - 1)] * width)))
    return '\n'.join(lines) + '\n'


def check_hostile(t, what, path, words=(), codes=(2,), memory_mb=150):
    """The file is dealt with quickly, in bounded memory, and the answer has the usual form."""
    if 'asan' in t.binary or 'tsan' in t.binary or harness.WINDOWS:
        limit = None        # their shadow memory takes terabytes of addresses, and wine reserves some
    else:
        def limit():
            resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    try:
        done = t.run('--check', path, timeout=QUICK_S, preexec_fn=limit)
    except subprocess.TimeoutExpired:
        t.check('%s: is quick' % what, False, 'over %d s' % (QUICK_S * harness.SLOW))
        return
    t.check('%s: exit code' % what, done.returncode in codes, 'got %d: %s' % (done.returncode, done.stderr[:500]))
    found = problems(t, what, done.stderr, path)
    if done.returncode == 2:
        t.check('%s: an error' % what, any(problem['severity'] == 'error' for problem in found))
    expect_words(t, what, done.stderr, words)


@harness.limit(180)
def test_config_hostile(t):
    noise = random.Random(5)
    rows = [
        ('billion laughs, not read by us', under_butler(laughs(12, 10)), (), (0, 2)),
        ('billion laughs as webhooks', under_butler(laughs(9, 10)).replace('webhooks:\n', 'webhooks: *a8\n', 1)
         .partition('        - webhookURL')[0], ()),
        ('billion laughs by merge keys', 'a: &a {k1: 1, k2: 2}\n' + ''.join(
            '%s: &%s {<<: [%s]}\n' % (chr(98 + i), chr(98 + i), ', '.join(['*' + chr(97 + i)] * 10)) for i in range(10)) +
         'Butler:\n  <<: *k\n' + GOOD.partition('\n')[2], (), (0, 2)),
        ('many aliases of a big list', 'x: &x [' + 'ha, ' * 1000 + 'ha]\ny: &y [' + '*x, ' * 1000 + '*x]\nz: [' + '*y, ' * 1000 +
         '*y]\n' + GOOD, (), (0, 2)),
        ('5 MB of noise', bytes(noise.getrandbits(8) for _ in range(5 << 20)), ('512 KB',)),
        ('one byte over 512 KB', b' ' * ((512 << 10) + 1), ('512 KB',)),
        ('512 KB of one letter', b'a' * (512 << 10), ()),
        ('512 KB of opening brackets', b'[' * (512 << 10), ('nest',)),
        ('512 KB of opening braces', b'{a: ' * (128 << 10), ('nest',)),
        ('512 KB of brackets that look closed', b'["]",' * (100 << 10), ('nest',)),
        ('512 KB of dashes', b'- ' * (256 << 10), ('nest',)),
        ('512 KB of keys', b''.join(b'key%05d:\n' % number for number in range(52000)), ('20000 values',)),
        ('512 KB of list items', b'a: [' + b'b,' * (255 << 10) + b']\n', ('20000 values',)),
        ('512 KB of anchors', b''.join(b'k%d: &a%d v\n' % (number, number) for number in range(30000)), ('1000 anchors',)),
        ('512 KB of anchors in a row', b'a: [' + b''.join(b'&%x,' % number for number in range(80000)) + b']\n',
         ('1000 anchors',)),
        ('30,000 aliases', b'a: [' + b''.join(b'&%x,' % number for number in range(900)) + b'*383,' * 30000 + b']\n',
         ('20000 values',)),
        ('512 KB in quotes', b'Butler: "' + b'x' * (511 << 10), ()),
        ('512 KB of lines', b'\n' * (512 << 10), ()),
        ('512 KB of NUL bytes', bytes(512 << 10), ()),
        ('512 KB of tag directives', b''.join(b'%%TAG !%05x! b\n' % number for number in range(34000)), ('anchors',)),
        ('990 tag directives', ''.join('%%TAG !a%x! b\n' % number for number in range(990)) + '---\n' + GOOD, (), (0,)),
        ('990 anchors', 'a: [' + ''.join('&a%x x,' % number for number in range(990)) + ']\n' + GOOD, (), (0,)),
        ('deep lists', 'Butler: ' + '[' * 2000 + ']' * 2000 + '\n', ('deep|nest',)),
        ('deep sections', 'Butler: ' + '{a: ' * 2000 + '1' + '}' * 2000 + '\n', ('deep|nest',)),
        ('deep by indentation', 'Butler:\n' + ''.join(' ' * (level + 1) + 'a:\n' for level in range(1000)), ('deep|nest',)),
        ('deep in what we do not read', under_butler('a: ' + '[' * 1000 + ']' * 1000 + '\n'), (), (0, 2)),
        ('a NUL byte', GOOD.replace('POST', 'PO\0ST'), ()),
        ('a control character', GOOD.replace('POST', 'PO\x07ST'), ()),
        ('an escape sequence in a key', failure('"\\e[31mred\\e[0m": 1\n'), ('unknown key',), (0,)),
        ('a NUL character in a key', notification('enable: true\n"reloadTaskFailure\\0x": {webhooks: 1}\n'), ('NUL',)),
        ('a very long key', failure('%s: 1\n' % ('k' * 900)), (), (0, )),
        ('a very long value', url('x' * 100000), ()),
        ('a very long host', url('http://%s/' % ('x' * 100000)), ()),
        ('a long URL', url('http://h/%s' % ('x' * 100000)), (), (0, 2)),
        ('10,000 mistakes', failure('webhooks:\n' + '  - httpMethod: no\n' * 10000), ()),
        ('500 times the same key', under_butler('same: key\n' * 500), ('stands twice',)),
        ('100,000 documents', '---\n' * 100000 + GOOD, ('document',)),
        ('90,000 keys', under_butler(''.join('k%x:\n' % number for number in range(90000))), (), (0, 2)),
        ('40,000 keys', under_butler(''.join('k%x:\n' % number for number in range(40000))), (), (0, 2)),
        ('40,000 unknown keys', failure(''.join('k%x:\n' % number for number in range(40000))), (), (0, 2)),
        ('30,000 anchors and 60,000 aliases', 'a: [' + ''.join('&a%x x,' % number for number in range(30000)) + ']\nb: [' +
         '*a0,' * 60000 + ']\n' + GOOD, (), (0, 2)),
        ('merge keys with 1 MB of keys', 'a: &a {' + ''.join('k%x,' % number for number in range(3000)) + '}\nb:\n' +
         '  - <<: *a\n' * 300 + GOOD, (), (0, 2)),
        ('10,000 unknown keys', failure(''.join('key%d: 1\n' % number for number in range(10000))), (), (0, 2)),
    ]
    for number, row in enumerate(rows):
        name, text, words = row[:3]
        path = write(t, text, 'hostile%d.yaml' % number)
        check_hostile(t, name, path, words, row[3] if len(row) > 3 else (2,))
        os.unlink(path)


@harness.limit(120)
def test_config_random(t):
    """A valid file with random damage gets an answer, whatever it is: no crash, no hang, nothing but problems on stderr."""
    with open(os.path.join(CONFIG_DATA, 'seed.yaml'), 'rb') as file:
        good = file.read()
    noise = random.Random(20261122)
    pieces = (b'\t', b'\0', b'*a', b'&a ', b'<<: ', b'- ', b': ', b'"', b"'", b'[', b']', b'{', b'}', b'\n', b'  ', b'---\n',
              b'...\n', b'!!binary ', b'%', b'@', b'|\n', b'>', b'\xff', b'\xc3', b'\xef\xbb\xbf', b'# ', b'? ', b',', b'\r')
    for number in range(150):
        text = bytearray(good)
        for _ in range(noise.choice((1, 1, 2, 5, 20))):
            at = noise.randrange(len(text))
            kind = noise.randrange(4)
            if kind == 0:
                text[at] = noise.randrange(256)
            elif kind == 1:
                text[at:at] = noise.choice(pieces)
            elif kind == 2:
                del text[at:at + noise.randrange(1, 40)]
            else:
                other = noise.randrange(len(text))
                text[at:at] = text[other:other + noise.randrange(1, 200)]
        path = write(t, bytes(text), 'random.yaml')
        before = len(t.failures)
        check_hostile(t, 'damage %d' % number, path, codes=(0, 2))
        if len(t.failures) > before:
            t.check('damage %d: the file' % number, False, repr(bytes(text)))


# ---- Encodings ------------------------------------------------------------------------------------------------------


def test_config_encodings(t):
    text = url('http://h/åäö').replace('httpMethod: POST', 'httpMethod: POST # åäö 売上 🚀')
    check_file(t, 'UTF-8', write(t, text), [])
    check_file(t, 'UTF-8 with a BOM', write(t, b'\xef\xbb\xbf' + text.encode()), [])
    check_file(t, 'CRLF', write(t, text.replace('\n', '\r\n')), [])
    check_file(t, 'BOM and a document mark',
               write(t, b'\xef\xbb\xbf' + (text if text.startswith('---') else '---\n' + text).encode()), [])
    check_file(t, 'BOM and CRLF', write(t, b'\xef\xbb\xbf' + text.replace('\n', '\r\n').encode()), [])
    check_file(t, 'CR', write(t, text.replace('\n', '\r')), [])
    check_file(t, 'no line end at the end', write(t, text.rstrip('\n')), [])

    bad, marked = places(webhook('description: åäö 🚀\nwebhookURL: http://h/\nhttpMethod: @@DELETE\n'))
    for name, data in (('CRLF', bad.replace('\n', '\r\n').encode()), ('BOM', b'\xef\xbb\xbf' + bad.encode()),
                       ('CR', bad.replace('\n', '\r').encode())):
        check_file(t, 'place with %s' % name, write(t, data), [('error', 'httpMethod')], marked)
    bad, marked = places(failure('webhooks: [{description: åäö 🚀, webhookURL: "http://h/", httpMethod: @@DELETE}]\n'))
    check_file(t, 'column in characters', write(t, bad), [('error', 'httpMethod')], marked)

    for name, data in (('UTF-16LE', b'\xff\xfe' + text.encode('utf-16-le')),
                       ('UTF-16BE', b'\xfe\xff' + text.encode('utf-16-be'))):
        check_file(t, '%s with a BOM' % name, write(t, data), [])
        check_file(t, '%s without one' % name, write(t, data[2:]), [('error', 'UTF-8')], [(1, 2 if name == 'UTF-16LE' else 1)])
    latin = url('http://h/').replace('POST', 'POST # blå').encode('latin-1')
    check_file(t, 'Latin-1', write(t, latin), [('error', 'UTF-8')])
    where = latin.index(b'\xe5')
    found = problems(t, 'Latin-1', t.run('--check', write(t, latin)).stderr, write(t, latin))
    t.equal('Latin-1: line', found and found[0]['place'][0], latin.count(b'\n', 0, where) + 1)


# ---- Many mistakes at once ------------------------------------------------------------------------------------------


def test_config_all_at_once(t):
    text, marked = places('''\
Butler:
  logLevel: @@loud
  fileLogging: @@"yes"
  mqttConfig:
    enable: whatever
  udpServerConfig:
    enable: true
    portTaskFailure: @@99980
    maxMessageSize: @@"big"
    @@allowedSource: [10.0.0.1]
    deduplication:
      ttlMinutes: @@-1
  webhookNotification:
    enable: true
    reloadTaskFailure:
      rateLimit: @@'300'
      webhooks:
        - description: one
          webhookURL: @@ftp://files.example.com/
          httpMethod: @@DELETE
        - description: two
          webhookURL: @@http://host.my.domain:port/some/path
          httpMethod: POST
          cert:
            enable: true
            certCA: @@/path/to/ca-certificate.pem
        - description: three is right
          webhookURL: https://h/
          httpMethod: GET
    reloadTaskAborted:
      webhooks:
        - webhookURL: https://h/
          httpMethod: @@PATCH
          cert:
            enable: false
            rejectUnauthorized: @@false
  butlerWebhook:
    port: @@0
    @@prot: 9997
''')
    check_file(t, 'fifteen mistakes', write(t, text), [
        ('error', 'logLevel'), ('error', 'fileLogging'), ('error', 'portTaskFailure'), ('error', 'maxMessageSize'),
        ('warning', 'allowedSource', 'allowedSources'), ('error', 'ttlMinutes'), ('error', 'rateLimit'),
        ('error', 'https?://'), ('error', 'httpMethod'), ('error', 'port'), ('error', 'ca-certificate'), ('error', 'httpMethod'),
        ('warning', 'rejectUnauthorized', 'aborted 1'), ('error', 'port'), ('warning', 'prot', 'port')], marked)


# ---- Files that cannot be read --------------------------------------------------------------------------------------


def test_config_unreadable(t):
    missing = os.path.join(t.tmp, 'missing.yaml')
    check_file(t, 'no such file', missing, [('error', 'no such file')], [(1, 1)])
    check_file(t, 'no such folder', os.path.join(t.tmp, 'a/b.yaml'), [('error', 'no such file')], [(1, 1)])
    check_file(t, 'a file as a folder', os.path.join(write(t, GOOD), 'b.yaml'), [('error', 'directory')], [(1, 1)])
    check_file(t, 'a directory', t.tmp, [('error', 'directory')], [(1, 1)])
    check_file(t, 'an empty device', '/dev/null', [('error', 'empty')], [(1, 1)])
    check_file(t, 'an endless device', '/dev/zero', [('error',)], [(1, 1)])
    for option in ('--check', '--test'):
        done = t.run(option, missing)
        t.equal('%s without a file: exit code' % option, done.returncode, 2)


@harness.unix('modes of files, and users who may not read them')
def test_config_no_permission(t):
    if os.geteuid() != 0:
        prefix = []
    elif shutil.which('setpriv'):
        prefix = ['setpriv', '--reuid', str(NOBODY), '--regid', str(NOBODY), '--clear-groups']
    else:
        t.skip('root, and no setpriv to become somebody else')
    os.chmod(t.tmp, 0o755)
    binary = os.path.join(t.tmp, 'program')
    copy_program(t, binary)
    os.chmod(binary, 0o755)
    path = write(t, GOOD)
    os.chmod(path, 0)
    done = t.run(*prefix[1:], binary, '--check', path, binary=prefix[0]) if prefix else t.run('--check', path)
    found = problems(t, 'no permission', done.stderr, path)
    t.equal('exit code', done.returncode, 2)
    t.check('names the reason', len(found) == 1 and re.search('permission', found[0]['text'], re.I), repr(done.stderr))

    os.chmod(path, 0o644)
    secret = write(t, 'x', 'ca.pem')
    os.chmod(secret, 0)
    path = write(t, cert('enable: true\ncertCA: ca.pem\n'))
    os.chmod(path, 0o644)
    done = t.run(*prefix[1:], binary, '--check', path, binary=prefix[0]) if prefix else t.run('--check', path)
    t.check('certCA: names the reason', re.search('ca\\.pem.*permission|permission.*ca\\.pem', done.stderr, re.I),
            repr(done.stderr))


# ---- Butler's files -------------------------------------------------------------------------------------------------


def test_config_seed(t):
    with open(os.path.join(CONFIG_DATA, 'seed.yaml'), encoding='utf-8') as file:
        text = file.read()
    marked = places(text.replace('webhookURL: http', 'webhookURL: @@http'))[1]
    t.equal('placeholders', len(marked), 6)
    path = write(t, text)
    check_file(t, 'disabled', path, [('warning', 'port')] * 6, marked)
    done = t.run(path)
    t.equal('disabled: exit code', done.returncode, 0)
    t.check('disabled: says so in one line',
            len([line for line in done.stdout.splitlines() if re.search('disabled|enable.*false', line)]) == 1, repr(done.stdout))
    t.check('disabled: does not listen', 'listening' not in done.stdout)
    done = t.run('--test', path)
    t.equal('--test while disabled: exit code', done.returncode, 2)
    t.equal('--test while disabled: problems', [(problem['severity'], problem['place']) for problem in problems(
        t, '--test while disabled', done.stderr, path)], [('error', place) for place in marked])
    t.check('--test while disabled: calls nothing', not re.search(r'(failure|aborted) \d', done.stdout), repr(done.stdout))
    on = text.replace('enable: false', 'enable: true', 1).replace('  # ...\n', '  udpServerConfig: {enable: true}\n', 1)
    check_file(t, 'enabled', write(t, on), [('error', 'port')] * 6, marked)

    # Each URL made right: nothing is left to complain about.
    port = t.port()
    check_file(t, 'filled in', write(t, on.replace('host.my.domain:port', '127.0.0.1:%d' % port)), [])


def test_config_production(t):
    for name in ('butler-production.yaml', 'ca.pem'):
        shutil.copy(os.path.join(CONFIG_DATA, name), t.tmp)
    path = os.path.join(t.tmp, 'butler-production.yaml')
    stdout = check_file(t, 'check', path, [])
    for words in (r'(?m)^listens on 0\.0\.0\.0:9998 \(UDP\)$', 'failure 300 s, aborted 60 s', '10 min',
                  r'failure +1 .*POST.*https://incidents\.example\.com/api/v2/qlik.*CA file .*ca\.pem \(1 certificate\)'
                  r'.*Operations',
                  r'failure +2 .*PUT.*http://bi-dashboard\.example\.com:8080/hooks/reload-failed.*none \(http\)',
                  r'failure +3 .*GET.*10\.20\.30\.40:8088/send.*none \(http\).*Pager',
                  r'aborted +1 .*PUT.*https://bi-dashboard\.example\.com/hooks/reload-aborted.*public roots'):
        t.check('--check says %r' % words, re.search(words, stdout), repr(stdout))
    for secret in ('s3cret', 'pager:', 'source=prod', 'prio=1', 'p#ss', 'NRII'):
        t.check('--check does not say %r' % secret, secret not in stdout, repr(stdout))
    t.equal('webhooks', len(re.findall(r'(?m)^\s*(?:failure|aborted) +\d', stdout)), 4)

    # It also runs, beside Butler: only the address and the port are ours.
    with open(path, encoding='utf-8') as file:
        text = file.read()
    port = t.port()
    path = write(t, text + '\n  butlerWebhook:\n    serverHost: 127.0.0.1\n    port: %d\n' % port)
    program = t.start(path)
    t.check('listens where butlerWebhook says', program.wait_log(r'listening on 127\.0\.0\.1:%d \(UDP\)' % port))
    t.equal('stops', program.stop(), 0)
    logs = os.listdir(os.path.join(t.tmp, 'log'))
    t.check('logs into its logDirectory', len(logs) == 1 and re.fullmatch(r'butler_webhook\.\d{4}-\d\d-\d\d\.log', logs[0]),
            repr(logs))


def test_config_environment(t):
    """Proxies that cannot be used are warnings, each once; STATE_DIRECTORY can hold several folders."""
    path = write(t, GOOD)
    for env, words in (({'all_proxy': 'socks5://u:hush@p'}, 'all_proxy'),
                       ({'HTTPS_PROXY': 'http://u:hush@p:99999'}, 'HTTPS_PROXY'),
                       ({'http_proxy': 'https://p'}, 'http_proxy'), ({'http_proxy': '', 'HTTP_PROXY': '127.0.0.1:3128'}, '')):
        done = t.run('--check', path, env=env)
        t.equal('%s: exit code' % env, done.returncode, 0)
        found = problems(t, str(env), done.stderr, path)
        t.equal('%s: problems' % env, [(p['severity'], p['place']) for p in found], [('warning', (1, 1))] if words else [])
        t.check('%s: says which' % env, words.lower() in done.stderr.lower() and 'hush' not in done.stderr, repr(done.stderr))
    done = t.run('--check', path, env={'STATE_DIRECTORY': '/first/one:/second'})
    t.check('the first of several', re.search('(?m)^keeps alerts in /first/one, ', done.stdout), repr(done.stdout))


def test_config_samples(t):
    for name in ('minimal.yaml', 'full.yaml'):
        path = os.path.join(SAMPLES, name)
        stdout = check_file(t, name, path, [])
        t.check('%s: has webhooks' % name, re.search(r'(?m)^failure +1 ', stdout), repr(stdout))


def test_config_full_is_the_default(t):
    """What samples/full.yaml calls a default is what --check tells of a file that leaves it out."""
    full = t.run('--check', os.path.join(SAMPLES, 'full.yaml')).stdout
    bare = t.run('--check', write(t, GOOD)).stdout
    for label in ('listens on', 'rate limit', 'keeps alerts'):
        ours = [line for line in full.splitlines() if line.strip().startswith(label)]
        theirs = [line.replace(t.tmp, SAMPLES) for line in bare.splitlines() if line.strip().startswith(label)]
        t.check(label, len(ours) == 1 and ours == theirs, '%r, %r' % (ours, theirs))


# ---- butlerWebhook --------------------------------------------------------------------------------------------------


def test_config_overrides(t):
    def listens(text):
        path = write(t, text)
        stdout = check_file(t, 'overrides', path, [])
        match = re.search(r'listens on (\S+) \(UDP\)', stdout)
        return match and match[1]

    hook = 'webhookNotification:\n  enable: %s\n  reloadTaskFailure:\n    webhooks:\n' \
           '      - {webhookURL: "http://127.0.0.1:1/", httpMethod: POST}\n'

    def config(udp_enable, notification_enable, mine):
        text = hook % notification_enable
        if udp_enable is not None:
            text += 'udpServerConfig:\n  enable: %s\n  serverHost: 127.0.0.2\n  portTaskFailure: 9001\n' % udp_enable
        return 'Butler:\n' + indent(text + ('butlerWebhook: %s\n' % mine if mine else ''), 2)

    t.equal('nothing of ours', listens(config('true', 'true', '')), '127.0.0.2:9001')
    t.equal('port', listens(config('true', 'true', '{port: 9002}')), '127.0.0.2:9002')
    t.equal('serverHost', listens(config('true', 'true', '{serverHost: 127.0.0.3}')), '127.0.0.3:9001')
    t.equal('both', listens(config('true', 'true', '{serverHost: 127.0.0.3, port: 9002}')), '127.0.0.3:9002')
    t.equal('no udpServerConfig', listens(config(None, 'true', '{port: 9002}')), '127.0.0.1:9002')
    t.equal('IPv6', listens(config(None, 'true', "{serverHost: '::1', port: 9002}")), '[::1]:9002')

    # (udpServerConfig.enable, webhookNotification.enable, butlerWebhook, does it run)
    port = t.port()
    for udp_enable, notification_enable, mine, runs in (
            ('true', 'true', '', True), ('true', 'false', '', False), ('false', 'true', '', False), ('false', 'false', '', False),
            (None, 'true', '', True), (None, 'false', '', False),
            ('false', 'true', '{enable: true}', True), ('true', 'false', '{enable: true}', True),
            ('false', 'false', '{enable: true}', True), (None, 'false', '{enable: true}', True),
            ('true', 'true', '{enable: false}', False), (None, 'true', '{enable: false}', False)):
        name = 'udp %s, webhooks %s, ours %s' % (udp_enable, notification_enable, mine)
        text = config(udp_enable, notification_enable, mine).replace('127.0.0.2', '127.0.0.1').replace('9001', str(port))
        path = write(t, text if udp_enable else text.replace('butlerWebhook: {', 'butlerWebhook: {port: %d, ' % port)
                     if mine else text + '  butlerWebhook: {port: %d}\n' % port)
        check_file(t, name, path, [])
        if runs:
            program = t.start(path)
            t.equal('%s: stops' % name, program.stop(), 0)
        else:
            done = t.run(path)
            t.equal('%s: exit code' % name, done.returncode, 0)
            t.check('%s: says that it is disabled' % name, re.search('disabled|enable.*false', done.stdout) and not done.stderr,
                    repr(done))
            t.check('%s: does not listen' % name, 'listening' not in done.stdout)


# ---- The table of --check -------------------------------------------------------------------------------------------


def test_config_check_table(t):
    shutil.copy(os.path.join(CONFIG_DATA, 'ca.pem'), t.tmp)
    path = write(t, '''\
Butler:
  udpServerConfig:
    enable: true
    serverHost: 127.0.0.1
    portTaskFailure: 9123
    deduplication: {enable: true, ttlMinutes: 25}
  webhookNotification:
    enable: true
    reloadTaskFailure:
      rateLimit: 0
      webhooks:
        - {description: Plain, webhookURL: "http://u:pass1@h1.example.com:8080/p?key=pass2&b=pass3#pass4", httpMethod: put}
        - {description: Own CA, webhookURL: "https://h2/", httpMethod: POST, cert: {enable: true, certCA: ca.pem}}
        - {webhookURL: "https://h3/", httpMethod: GET}
    reloadTaskAborted:
      rateLimit: 77
      webhooks:
        - description: "Not checked \\u009b31m"
          webhookURL: https://pass5@h4/
          httpMethod: GET
          cert: {enable: false, rejectUnauthorized: false}
''')
    done = t.run('--check', path)
    t.equal('exit code', done.returncode, 0)
    out = done.stdout
    t.check('valid with a warning', out.startswith('configuration %s is valid: 0 errors, 1 warning\n' % path), repr(out))
    for words in (r'(?m)^listens on 127\.0\.0\.1:9123 \(UDP\), from this machine only$', r'aborted 77 s', r'25 min',
                  r'(?m)^failure +1\W.*\bPUT\b.*http://h1\.example\.com:8080/p.*none \(http\).*Plain',
                  r'(?m)^failure +2\W.*\bPOST\b.*https://h2/.*CA file .*ca\.pem \(1 certificate\).*Own CA',
                  r'(?m)^failure +3\W.*\bGET\b.*https://h3/.*public roots',
                  r'(?m)^aborted +1\W.*\bGET\b.*https://h4/.*NOT CHECKED.*Not checked'):
        t.check('says %r' % words, re.search(words, out), repr(out))
    t.check('no secrets', not re.search(r'pass\d', out + done.stderr), repr(out + done.stderr))
    t.check('no control characters', all(line.isprintable() for line in out.splitlines()), repr(out))

    for text, line in (('', r'keeps alerts in %s/butler_webhook\.state, at most 256 MB, for 72 h' % re.escape(t.tmp)),
                       ('stateDirectory: some where\nmaxStateMB: 70\n',
                        r'keeps alerts in %s/some where, at most 70 MB, for 72 h' % re.escape(t.tmp)),
                       ('maxAgeHours: 5\n', r'keeps alerts in .*, for 5 h'),
                       ('timeoutSeconds: 3\nmaxConcurrent: 2\n', r'a call may take 3 s; calls to one webhook at a time: 2'),
                       ("stateDirectory: ''\n", r"keeps alerts in memory only: butlerWebhook\.stateDirectory is ''")):
        done = t.run('--check', write(t, own(text or 'port: 9997\n')))
        t.check('says %r' % line, re.search('(?m)^%s$' % line, done.stdout), repr(done.stdout))
    t.check('--check makes no state directory', not [name for name in os.listdir(t.tmp) if 'state' in name or 'some' in name])

    path = write(t, udp('deduplication:\n  enable: false\n'))
    t.check('no de-duplication', re.search(r'duplicates: (?!ignored for)', t.run('--check', path).stdout))
    done = t.run('--check', write(t, GOOD.replace('enable: true', 'enable: false', 1)))
    t.check('disabled', done.returncode == 0 and re.search('disabled|enable.*false', done.stdout), repr(done.stdout))


# ---- The command line -----------------------------------------------------------------------------------------------


def test_config_command_line(t):
    good = write(t, GOOD)
    for name, args in (('no argument', ()), ('two files', (good, good)), ('unknown option', ('--chekc', good)),
                       ('unknown short option', ('-x',)), ('--check without a file', ('--check',)),
                       ('--test without a file', ('--test',)), ('--check with two files', ('--check', good, good)),
                       ('two commands', ('--check', '--test', good)), ('--version with a file', ('--version', good)),
                       ('an empty file name', ('',)), ('--pending without a file', ('--pending',)),
                       ('--replay without a file', ('--replay',)), ('--pending --json without a file', ('--pending', '--json')),
                       ('--json alone', ('--json', good)), ('--json first', ('--json', '--pending', good)),
                       ('--replay --json', ('--replay', '--json', good)), ('--pending with two files', ('--pending', good, good)),
                       ('--check --json', ('--check', '--json', good))):
        done = t.run(*args)
        t.equal('%s: exit code' % name, done.returncode, 2)
        t.equal('%s: stdout' % name, done.stdout, '')
        t.check('%s: says what is wrong' % name, done.stderr.strip() and 'listening' not in done.stderr, repr(done.stderr))
        t.check('%s: short' % name, len(done.stderr.splitlines()) <= 17, repr(done.stderr))
    t.check('names the unknown option', '--chekc' in t.run('--chekc', good).stderr)
    t.check('points to --help', '--help' in t.run().stderr)

    done = t.run('--help')
    t.equal('--help', (done.returncode, done.stderr), (0, ''))
    for word in ('butler_webhook', '--check', '--test', '--pending', '--pending --json', '--replay', '--install', '--uninstall',
                 '--version', '--help', '--licenses', 'CONFIG'):
        t.check('--help names %s' % word, word in done.stdout, repr(done.stdout))
    t.equal('--help: names what exists only', set(re.findall(r'--\w+', done.stdout)),
            {'--check', '--test', '--pending', '--json', '--replay', '--install', '--uninstall', '--version', '--help',
             '--licenses'})
    if not harness.WINDOWS:
        for args, word in ((('--install', good), 'butler_webhook.service'), (('--uninstall',), 'systemctl')):
            done = t.run(*args)
            t.equal('%s is for Windows: exit code' % args[0], done.returncode, 2)
            t.check('%s is for Windows: says what to do here' % args[0], word in done.stdout + done.stderr, repr(done))
    t.check('--help: fits a console', all(len(line) <= 100 for line in done.stdout.splitlines()),
            repr([line for line in done.stdout.splitlines() if len(line) > 100]))
    done = t.run('--version')
    t.equal('--version', (done.returncode, done.stderr), (0, ''))
    t.check('--version is one line', re.fullmatch(r'butler_webhook \d+\.\d+\.\d+, root certificates of 20\d\d-\d\d-\d\d\n',
                                                  done.stdout), repr(done.stdout))
    done = t.run('--licenses')
    t.equal('--licenses', (done.returncode, done.stderr), (0, ''))
    for word in ('Mbed TLS', 'libyaml', 'mingw-w64' if harness.WINDOWS else 'musl', 'Mozilla', 'MIT', 'Apache',
                 'Permission is hereby granted', 'WITHOUT WARRANT'):
        t.check('--licenses has %r' % word, re.search(word, done.stdout, re.I))

    # A file that looks like an option, and a reader that goes away.
    name = '--check'
    write(t, GOOD, name)
    done = t.run('--check', './' + name, cwd=t.tmp)
    t.equal('a file called --check', done.returncode, 0)
    for reader in ('head -n 1', 'true'):
        done = subprocess.run(['sh', '-c', '"$@" --licenses | ' + reader, 'sh'] + harness.SYSTEM.command(t.binary, []),
                              capture_output=True, text=True, env=t.environment())
        t.check('--licenses into %s' % reader, done.returncode == 0 and done.stderr == '', repr(done))


# ---- Starting -------------------------------------------------------------------------------------------------------


def test_config_port_in_use(t):
    port = t.port()
    path, _ = t.config([{'url': 'http://127.0.0.1:1/'}], port=port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(('127.0.0.1', port))
        done = t.run(path)
        t.equal('exit code', done.returncode, 1)
        t.check('says which', re.search(r'127\.0\.0\.1:%d.*in use|in use.*127\.0\.0\.1:%d' % (port, port), done.stderr),
                repr(done.stderr))
        t.equal('--check does not bind', t.run('--check', path).returncode, 0)
    for _ in range(50):     # a child that another test starts at this moment holds it until its exec
        if harness.port_is_free(port):
            break
        time.sleep(0.1)
    program = t.start(path)
    t.equal('starts when it is free', program.stop(), 0)


def test_config_address_not_ours(t):
    if not harness.WINDOWS:     # wine binds to any address
        path, port = t.config([{'url': 'http://127.0.0.1:1/'}], udp={
            'serverHost': '192.0.2.1', 'enableSourceValidation': True, 'allowedSources': ['10.0.0.1']})
        done = t.run(path)
        t.equal('exit code', done.returncode, 1)
        t.check('says which', re.search(r'192\.0\.2\.1:%d' % port, done.stderr), repr(done.stderr))
    path, port = t.config([{'url': 'http://127.0.0.1:1/'}], udp={
        'serverHost': 'nowhere.invalid', 'enableSourceValidation': True, 'allowedSources': ['10.0.0.1']})
    done = t.run(path, timeout=60)
    t.equal('unknown name: exit code', done.returncode, 1)
    t.check('unknown name: says which', re.search(r'nowhere\.invalid', done.stderr), repr(done.stderr))


def test_config_log_directory(t):
    write(t, 'a file', 'taken')
    for name, directory in (('a file stands there', 'taken'), ('below a file', 'taken/log'), ('in /proc', '/proc/nowhere/log')):
        path, _ = t.config([{'url': 'http://127.0.0.1:1/'}], fileLogging=True, logDirectory=directory)
        done = t.run(path)
        t.equal('%s: exit code' % name, done.returncode, 1)
        t.check('%s: says which key and path' % name,
                'logDirectory' in done.stderr and os.path.basename(directory) in done.stderr,
                repr(done.stderr))
    path, _ = t.config([{'url': 'http://127.0.0.1:1/'}], fileLogging=True, logDirectory='new')
    program = t.start(path)
    t.equal('stops', program.stop(), 0)
    files = os.listdir(os.path.join(t.tmp, 'new'))
    t.check('the folder is made', len(files) == 1, repr(files))
    t.equal('the file has what the console has', t.read(os.path.join(t.tmp, 'new', files[0])).splitlines(), program.log)


def test_config_log_directory_default(t):
    """Neither an empty logDirectory nor none at all makes a fileLogging: true that logs nowhere."""
    for name, setting in (('empty', {'logDirectory': ''}), ('missing', {})):
        os.makedirs(os.path.join(t.tmp, name))
        path, _ = t.config([{'url': 'http://127.0.0.1:1/'}], fileLogging=True, name='%s/butler.yaml' % name, **setting)
        program = t.start(path)
        t.equal('%s: stops' % name, program.stop(), 0)
        folder = os.path.join(t.tmp, name, 'log')
        t.check('%s: logs into log beside the file' % name, os.path.isdir(folder) and len(os.listdir(folder)) == 1)


def test_config_state_directory_places(t):
    """Where the state directory is made: relative paths are counted from the configuration file; '' makes none."""
    for number, (value, folder) in enumerate((
            (None, 'butler_webhook.state'), ('', 'butler_webhook.state'), ('~', 'butler_webhook.state'), ("''", None),
            ('state', 'state'), ('new/deep/state', None), ("'wo die Alarme wärten'", 'wo die Alarme wärten'),
            ('../beside ünd below', '../beside ünd below'), ('%(tmp)s/absolute path', '%(tmp)s/absolute path'))):
        name = 'stateDirectory %s' % value
        place = os.path.join(t.tmp, 'at %d' % number)
        port = t.port()
        text = own('port: %d\n%s' % (port, '' if value is None else 'stateDirectory: %s\n' % (value % {'tmp': t.tmp})))
        path = write(t, text, 'at %d/butler.yaml' % number)
        before = set(os.listdir(t.tmp)) | set(os.listdir(place))
        if value and '/deep/' in value:     # only its last folder is made
            os.makedirs(os.path.join(place, 'new/deep'))
            before.add('new')
            folder = value
        program = t.start(path, cwd='/')
        program.port = port
        if folder is None:
            t.check('%s: warned' % name, program.wait_log(r" warn: .*stateDirectory is ''"), repr(program.log))
            t.equal('%s: nothing is made' % name, (set(os.listdir(t.tmp)) | set(os.listdir(place))) - before, set())
        else:
            folder = os.path.normpath(os.path.join(place, folder % {'tmp': t.tmp}))
            told = program.wait_log(' info: state directory (.*): 0 alerts wait')
            t.check('%s: the log names it' % name, told and os.path.normpath(told[1]) == folder, repr(program.log))
            t.check('%s: no warning' % name, not program.lines(' warn: '), repr(program.log))
            t.check('%s: it is made' % name, os.path.isfile(os.path.join(folder, 'journal')), os.listdir(place))
            t.equal('%s: for the owner only' % name, os.stat(folder).st_mode & (0o700 | harness.SYSTEM.others), 0o700)
            t.check('%s: it has a lock' % name, os.path.isfile(os.path.join(folder, 'lock')), os.listdir(folder))
        t.equal('%s: stops' % name, program.stop(), 0)


def test_config_state_directory_unusable(t):
    """A folder that cannot be used keeps the program from starting; the reason names the key, on stderr and in the log."""
    write(t, 'a file', 'taken')
    binary = t.binary
    options = {}
    os.mkdir(os.path.join(t.tmp, 'read only'))
    os.mkdir(os.path.join(t.tmp, 'log'))
    if os.getuid() == 0 and not harness.WINDOWS:        # who may write everywhere
        binary = os.path.join(t.tmp, 'program')
        copy_program(t, binary)
        for name in ('', 'program'):
            os.chmod(os.path.join(t.tmp, name), 0o755)
        for name in ('read only', 'log'):
            os.chown(os.path.join(t.tmp, name), NOBODY, NOBODY)
        options = {'user': NOBODY, 'group': NOBODY, 'extra_groups': ()}
    os.chmod(os.path.join(t.tmp, 'read only'), 0o500)

    def refused(name, directory, words, log_name):
        path, _ = t.config([{'url': 'http://127.0.0.1:1/'}], fileLogging=True, logDirectory='log',
                           butlerWebhook={'stateDirectory': directory})
        os.chmod(path, 0o644)
        done = t.run(path, binary=binary, **options)
        t.equal('%s: exit code' % name, done.returncode, 1)
        place = r'butlerWebhook\.stateDirectory: .*%s' % re.escape(log_name)
        t.check('%s: stderr names the key and the path' % name,
                re.fullmatch('butler_webhook: %s.*(%s).*\n' % (place, words), done.stderr), repr(done.stderr))
        t.check('%s: so does the console' % name, re.search('(?m)Z error: %s' % place, done.stdout), repr(done.stdout))
        t.check('%s: so does the log file' % name, re.search('(?m)Z error: %s' % place, t.read(
            os.path.join(t.tmp, 'log', os.listdir(os.path.join(t.tmp, 'log'))[0]))))
        t.check('%s: --check does not look' % name, t.run('--check', path).returncode == 0)
        pending = t.run('--pending', path)
        t.check('%s: --pending ends, too' % name, pending.returncode in (0, 1), repr(pending))

    refused('a file', 'taken', 'directory', 'taken')
    refused('below a file', 'taken/state', '', 'taken/state')
    if not harness.WINDOWS:     # which has no such modes
        refused('below nothing', 'nowhere/at/all', '', 'nowhere/at/all')
        refused('not writable', 'read only', 'denied|writ', 'read only')
        refused('cannot be made', 'read only/state', 'denied|writ', 'read only/state')
    path, _ = t.config([{'url': 'http://127.0.0.1:1/'}], butlerWebhook={'stateDirectory': 'shared'})
    second, _ = t.config([{'url': 'http://127.0.0.1:1/'}], butlerWebhook={'stateDirectory': os.path.join(t.tmp, 'shared')},
                         name='b.yaml')
    program = t.start(path)
    done = t.run(second)
    t.equal('used by another: exit code', done.returncode, 1)
    t.equal('used by another: stderr', done.stderr,
            'butler_webhook: butlerWebhook.stateDirectory: %s is used by another butler_webhook\n'
            % os.path.join(t.tmp, 'shared'))
    t.equal('the first one stops', program.stop(), 0)


def test_config_warnings_at_start(t):
    """A warning does not keep the program from starting. At each start the log has it, stderr stays empty."""
    port = t.port()
    text, marked = places(notification('enable: true\nreloadTaskFailure:\n  webhooks:\n'
                                       '    - webhookURL: https://127.0.0.1:1/\n      httpMethod: POST\n'
                                       '      cert: {enable: false, rejectUnauthorized: @@false}\n      @@colour: red\n') +
                          '  butlerWebhook: {port: %d, serverHost: @@0.0.0.0}\n' % port)
    path = write(t, text)
    program = t.start(path)
    t.equal('stops', program.stop(), 0)
    for place, word in zip(marked, ('failure 1.*rejectUnauthorized', 'colour', 'enableSourceValidation')):
        t.check('warns of %s' % word, program.lines(' warn: .*%s:%d:%d: .*%s' % ((re.escape(path),) + place + (word,))),
                repr(program.log))
    path = write(t, GOOD + '  butlerWebhook: {port: %d}\n' % port)
    program = t.start(path)
    t.equal('stops again', program.stop(), 0)
    t.equal('nothing to warn of', program.lines(' (warn|error): '), [])
