"""
The words of the log that tests look for, as regular expressions, so that a changed line is changed here alone. Each function
takes regular expressions, too; what a test wants to be exact it adds behind.
"""

ANY = r'\d+'

STOPPING = r' info: stopping: '
STOPPED = r' info: stopped: (\d+) received, (\d+) accepted, (\d+) delivered, (\d+) given up, (\d+) lost, (\d+) waiting$'
NO_ALERTS = (r' info: no alerts: (\d+) ignored, (\d+) malformed, (\d+) unknown, (\d+) duplicates, (\d+) rate limited, '
             r'(\d+) refused, (\d+) dropped, (\d+) unmatched$')
LISTENING = r' info: listening on (\S+):(\d+) \(UDP\)'
WAITING = r' info: state directory \S+: (\d+) alerts? waits?, (\d+) bytes of dead letters$'
DUPLICATE = r' info: duplicate ignored: '
HELD_BACK = r' held back by the rate limit: '
UNMATCHED = r" warn: not sent, as no webhook's match fits: reload failed, "
MALFORMED = r' warn: malformed datagram: '
NOT_ALLOWED = r' warn: datagram ignored, its sender is not in allowedSources, from '
RECEIVE_LIMIT = r' error: datagram dropped, over udpServerConfig\.rateLimit, from '
MEMORY_ONLY = r" warn: butlerWebhook\.stateDirectory is '': alerts that wait are lost when the program ends"
STARTED = r' info: state directory .*: \d+ alerts? waits?,|%s' % MEMORY_ONLY       # the last line of a start
WORKS_AGAIN = r' info: disk: journal: works again$'
NO_ROOM = 'no room: too many alerts wait; see butlerWebhook.maxStateMB'
REPLAYED = r' info: dead letters: (\d+) taken back to be sent again, (\d+) stay(?:: .*)?$'
MISSING_LINES = r' error: (\d+) log lines are missing: '


def accepted(number=ANY, what=''):
    """What may be of `task "..." (id), app ..., execution ..., for N webhooks`."""
    return r' info: alert %s accepted: .*%s' % (number, what)


def delivered(to='', number=ANY, status=''):
    """to: as `failure 1`; status: as `200 in \\d+ ms, attempt 1`."""
    return r' info: alert %s delivered to %s%s' % (number, to, r'.*: ' + str(status) if status else '')


def given_up(to='', number=ANY, why=''):
    return r' error: alert %s given up for %s%s' % (number, to, r'.* after \d+ attempts?: .*' + why if why else '')


def failed(to='', number=ANY, why=''):
    """An attempt failed, and another will come."""
    return r' warn: alert %s to %s.*%s.*; attempt \d+, next in ' % (number, to, why)


def lost(to='', number=ANY):
    return r' error: alert %s lost for %s' % (number, to)


def again(number=ANY):
    """Taken back from the dead letters."""
    return r' info: alert %s again from the dead letters, for ' % number


def down(webhook='', why=''):
    return r' warn: webhook %s.* is down: .*%s' % (webhook, why)


def up(webhook=''):
    return r' info: webhook %s.* is up again$' % webhook


def asked_to_wait(webhook='', status=ANY):
    return r' warn: webhook %s.* asked to wait: %s, for ([0-9.]+) s$' % (webhook, status)


def more(what='', count=ANY):
    """Lines about what others can cause were held back."""
    return r' (?:info|warn|error): %s more in the last minute: .*%s' % (count, what)


def state(what):
    """Trouble with a file of the state directory, or with the metrics."""
    return r' (?:warn|error): (?:disk|state directory): .*' + what


NOT_TRUSTED = 'certificate not trusted: '
TLS_FAILED = 'TLS failed: '
NO_TLS = TLS_FAILED + 'what answers there does not speak TLS'
TLS_BROKE = 'the TLS connection broke: '
CLOSED_IN_HANDSHAKE = TLS_FAILED + 'the server closed the connection in the handshake'
KEY_NOT_USABLE = TLS_FAILED + 'a key of the server is broken, or RSA with more than 4096 bits'
NAMED_WRONG = NOT_TRUSTED + '.*it is not for this host name'
NOT_SIGNED = NOT_TRUSTED + '.*nobody that is trusted has signed it'
TOO_WEAK = NOT_TRUSTED + '.*it is too weak, or not meant for a server'
NOT_IN_TIME = TLS_FAILED + 'the handshake did not end in time'
ALERT = TLS_FAILED + r'the server refused the handshake \(TLS alert\)'
