"""Programs of others that take what ours sends or writes; too large to install for make check."""

import os
import subprocess

import harness
import servers
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
