#!/usr/bin/env python3
"""
Measures butler_webhook, or another command, beside floor, the physical limit, and beside what a user would take instead.
run.sh, which builds the tools, starts it. README.md in this folder says what the runs are and how to read what comes out;
scenarios.py has the table of the runs, report.py writes the results.
"""

import argparse
import json
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time

sys.dont_write_bytecode = True
import report
from scenarios import AIMS, ALL, FOLDER, HERE, OUT, OURS, PEERS, QUICK, ROOT, RUNS, find_peers

SETTLE_S = 0.5      # from listening to "at rest"
QUIET_S = 0.3       # a subject that has read all and computed nothing for so long has nothing to do
QUIET_MAX_S = 60
LOOK_S = 3          # how long to look whether the machine is busy
BUSY = 0.1          # it is if so much of its processors' time went elsewhere; so is a run disturbed

CONFIG = """\
Butler:
  logLevel: info
  udpServerConfig:
    enable: true
    serverHost: 127.0.0.1
    portTaskFailure: %(UDP_PORT)s
    deduplication: { enable: false }
  butlerWebhook: { maxConcurrent: %(CONNECTIONS)s%(TIMEOUT)s }
  webhookNotification:
    enable: true
    reloadTaskFailure:
      rateLimit: %(RATE_LIMIT)d
      webhooks:
"""
WEBHOOK = """\
        - description: 'benchmark %d'
          webhookURL: %s
          httpMethod: POST
          cert: { enable: %s, certCA: '%s' }
"""


class RunError(Exception):
    """A run that gave no numbers; the text says why."""


def read_line(process, seconds, who):
    """The next JSON line of a tool, or RunError."""
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    line = process.stdout.readline() if ready else ''
    if not line:
        raise RunError(f'{who} ended early' if ready else f'{who} said nothing for {seconds} s')
    return json.loads(line)


def free_port(kind):
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def make_certificates():
    """Makes a CA and a certificate for localhost, once; returns their folder."""
    folder = os.path.join(OUT, 'tls')
    if os.path.exists(folder + '/server.crt'):
        return folder
    os.makedirs(folder, exist_ok=True)

    def openssl(*arguments):
        subprocess.run(['openssl', *arguments], cwd=folder, check=True, stderr=subprocess.DEVNULL)

    with open(folder + '/server.ext', 'w', encoding='ascii') as file:
        file.write('subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n')
    key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes']
    openssl('req', '-x509', *key, '-keyout', 'ca.key', '-out', 'ca.pem', '-days', '3650', '-subj', '/CN=benchmark CA',
            '-addext', 'keyUsage=critical,keyCertSign')
    openssl('req', *key, '-keyout', 'server.key', '-out', 'server.csr', '-subj', '/CN=localhost')
    openssl('x509', '-req', '-in', 'server.csr', '-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial', '-days', '3650',
            '-extfile', 'server.ext', '-out', 'server.crt')
    return folder


# ---- What the kernel knows ------------------------------------------------------------------------------------------


def memory_kb(pid, field):
    """Rss (exact, from smaps_rollup) or VmHWM (from status) of a process."""
    table = 'smaps_rollup' if field == 'Rss' else 'status'
    with open(f'/proc/{pid}/{table}', encoding='ascii', errors='replace') as file:
        return int(re.search(rf'^{field}:\s+(\d+)', file.read(), re.M)[1])


def cpu_s(pid):
    """Processor time of a process, its threads (see clock_getcpuclockid), and its children that have ended."""
    with open(f'/proc/{pid}/stat', encoding='ascii', errors='replace') as file:
        fields = file.read().rpartition(')')[2].split()
    return time.clock_gettime((~pid << 3) | 2) + (int(fields[13]) + int(fields[14])) / os.sysconf('SC_CLK_TCK')


def udp_socket(port):
    """Bytes that wait in the receive buffer of this port, and datagrams that were dropped because it was full."""
    waiting = drops = 0
    for table in ('/proc/net/udp', '/proc/net/udp6'):
        if os.path.exists(table):
            with open(table, encoding='ascii') as file:
                rows = [line.split() for line in file][1:]
            rows = [row for row in rows if int(row[1].split(':')[1], 16) == port]
            waiting += sum(int(row[4].split(':')[1], 16) for row in rows)
            drops += sum(int(row[-1]) for row in rows)
    return waiting, drops


class Watch:
    """Tells how much of the processors' time went elsewhere since it was made: to other programs, or to other machines."""

    def __init__(self):
        self.begin, self.busy, self.own = time.monotonic(), *self.now()

    @staticmethod
    def now():
        """Processor time that was not idle; that of this script and of the children that have ended."""
        with open('/proc/stat', encoding='ascii') as file:
            ticks = [int(field) for field in file.readline().split()[1:9]]
        uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf('SC_CLK_TCK'), sum(use.ru_utime + use.ru_stime for use in uses)

    def elsewhere(self):
        busy, own = self.now()
        seconds = (time.monotonic() - self.begin) * os.cpu_count()
        return max(0.0, (busy - self.busy - own + self.own) / seconds)


# ---- One run --------------------------------------------------------------------------------------------------------


class Scene:
    """A webhook and a started subject; `with` ends both. Its words replace {WORD} in a command and in a configuration."""

    def __init__(self, subject, run):
        self.subject, self.run = subject, run
        self.udp_port, self.tcp_port = free_port(socket.SOCK_DGRAM), free_port(socket.SOCK_STREAM)
        self.sink = self.launch = self.pid = None
        self.silent = socket.create_server(('127.0.0.1', 0), backlog=1024)      # nobody accepts: no answer, no handshake
        tls = make_certificates() if run.get('tls') else None
        self.server = ['-C', tls + '/server.crt', '-K', tls + '/server.key'] if tls else []
        self.words = {
            'UDP_PORT': str(self.udp_port), 'TCP_PORT': str(self.tcp_port), 'CONNECTIONS': str(run.get('connections', 4)),
            'URL': run.get('url') or '%s:%d/hook' % ('https://localhost' if tls else 'http://127.0.0.1', self.tcp_port),
            'CA': tls + '/ca.pem' if tls else '', 'FOLDER': FOLDER, 'CONFIG': FOLDER + '/subject.conf',
            **subject.get('words', {})}
        self.words['TLS'] = self.replace(subject.get('tls', '')) if tls else ''
        self.environment = {**os.environ, **self.words, **subject.get('environment', {})}

    def replace(self, text):
        for word, value in self.words.items():
            text = text.replace('{%s}' % word, value)
        return text

    def configuration(self):
        """What the subject reads: of a peer its file, else ours."""
        if 'config' in self.subject:
            with open(f'{HERE}/peers/{self.subject["config"]}', encoding='utf-8') as file:
                return self.replace(file.read())
        bad = ['http://127.0.0.1:%d/dead' % free_port(socket.SOCK_STREAM),
               'http://127.0.0.1:%d/hangs' % self.silent.getsockname()[1],
               'https://127.0.0.1:%d/half-open' % self.silent.getsockname()[1]]
        urls = [self.words['URL'] + ('' if 'url' in self.run else str(i)) for i in range(self.run.get('webhooks', 1))]
        urls += [f'{bad[i % 3]}{i}' for i in range(self.run.get('bad', 0))]
        with_ca = 'true' if self.words['CA'] else 'false'
        return CONFIG % {**self.words, 'RATE_LIMIT': 300 if 'tasks' in self.run else 0,
                         'TIMEOUT': ', timeoutSeconds: 1' if 'bad' in self.run else ''} + ''.join(
            WEBHOOK % (number, url, with_ca, self.words['CA']) + self.run.get('keys', '') for number, url in enumerate(urls))

    def __enter__(self):
        try:
            shutil.rmtree(FOLDER, ignore_errors=True)
            os.makedirs(FOLDER)
            with open(self.words['CONFIG'], 'w', encoding='utf-8') as file:
                file.write(self.configuration())
            if not self.run.get('backlog'):
                self.start_sink()
            self.start_subject()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start_sink(self):
        run = self.run
        self.sink = subprocess.Popen(
            [OUT + '/sink', '-p', str(self.tcp_port), '-n', str(run.get('tasks') or run['count'] or 1),
             '-w', str(run.get('webhooks', 1)), '-d', str(run.get('delay_ms', 0)), *self.server,
             *(['-c'] if run.get('closes') else [])], stdout=subprocess.PIPE, text=True)
        read_line(self.sink, 5, 'the sink')

    def start_subject(self):
        """Starts it and waits until it listens; start_ms is how long that took."""
        command = [self.replace(word) for word in self.subject['command']]
        if 'sync_ms' in self.run:
            command[0] = OUT + '/slow-disk/butler_webhook'
            self.environment['BUTLER_SHIM'] = shim_file(self.run['sync_ms'])
        if self.run.get('closes') and self.subject['name'] == 'floor':
            command.append('-c')
        keep = ['-b'] if self.run.get('default_buffer') else []
        self.launch = subprocess.Popen(
            [OUT + '/launch', '-p', str(self.udp_port), '-w', '10000', '-o', OUT + '/subject.log', *keep, '--', *command],
            stdout=subprocess.PIPE, text=True, env=self.environment)
        started = read_line(self.launch, 15, 'launch')
        if started['start_ms'] < 0:
            with open(OUT + '/subject.log', encoding='utf-8', errors='replace') as file:
                raise RunError('it did not listen on its port: ' + (file.read()[-300:].strip() or 'it printed nothing'))
        self.pid, self.start_ms = started['pid'], started['start_ms']

    def blast(self):
        run = self.run
        done = subprocess.run([OUT + '/blast', '-p', str(self.udp_port), '-n', str(run['count']), '-r', str(run.get('rate', 0)),
                               '-t', str(run.get('tasks', 0))], stdout=subprocess.PIPE, check=True, timeout=120, text=True)
        return json.loads(done.stdout)

    def arrivals(self):
        """What the sink has counted when all is there, or when nothing has come for a while."""
        try:
            return read_line(self.sink, 90, 'the sink')
        except RunError:
            self.sink.terminate()
            return read_line(self.sink, 5, 'the sink')

    def wait_quiet(self):
        """Returns when the subject has read all datagrams and has nothing more to do."""
        end = time.monotonic() + QUIET_MAX_S
        while time.monotonic() < end:
            before = cpu_s(self.pid)
            time.sleep(QUIET_S)
            if udp_socket(self.udp_port)[0] == 0 and cpu_s(self.pid) - before < 0.03 * QUIET_S:
                return
        raise RunError(f'it was not quiet within {QUIET_MAX_S} s')

    def stop_subject(self):
        """Ends the subject as an administrator would, and returns its exit code."""
        os.kill(self.pid, signal.SIGTERM)
        code = read_line(self.launch, 20, 'the subject, after SIGTERM,')['exit']
        self.pid = None
        return code

    def __exit__(self, *unused):
        if self.pid is not None and self.launch.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        for process in (self.launch, self.sink):
            if process is not None:
                process.kill()
                process.wait()
                process.stdout.close()
        self.silent.close()


def shim_file(sync_ms):
    """The file that tells the tests' shim how long a sync takes; the fields are those of test/shim.c."""
    with open(ROOT + '/test/shim.c', encoding='ascii') as file:
        fields = re.findall(r'_Atomic int64_t (\w+);', file.read())
    path = FOLDER + '/shim'
    with open(path, 'wb') as file:
        for field in fields:
            file.write((sync_ms if field == 'sync_delay_ms' else 0).to_bytes(8, sys.byteorder))
    return path


def measure(subject, run):
    """One run: its numbers."""
    with Scene(subject, run) as scene:
        time.sleep(SETTLE_S)
        row = {'start_ms': scene.start_ms, 'rest_kb': memory_kb(scene.pid, 'Rss')}
        if run['count'] == 0:
            row['exit'] = scene.stop_subject()
            return row
        cpu_before = cpu_s(scene.pid)
        row.update(scene.blast())
        if run.get('backlog'):
            scene.wait_quiet()
            row['waiting_kb'] = memory_kb(scene.pid, 'Rss')
        else:
            row.update(scene.arrivals())
            row['lost'] = run.get('webhooks', 1) * (run.get('tasks') or row['sent']) - row['arrived']
            if run.get('rate'):
                del row['last_ms']      # the sender is what takes so long
        if run.get('tasks'):
            scene.wait_quiet()      # most datagrams lead to nothing that the sink could see
        handled = row['sent'] if run.get('backlog') or run.get('tasks') else max(row['arrived'], 1)
        row['cpu_us'] = (cpu_s(scene.pid) - cpu_before) / handled * 1e6
        row['kernel_drops'] = udp_socket(scene.udp_port)[1]
        row.setdefault('lost', row['kernel_drops'])
        row['peak_kb'] = memory_kb(scene.pid, 'VmHWM')
        row['exit'] = scene.stop_subject()
        if run.get('backlog') and subject['name'] == OURS:
            scene.launch.wait()
            scene.start_sink()
            begin = time.monotonic()
            scene.start_subject()
            row['restart_ms'] = scene.start_ms
            row.update({key: value for key, value in scene.arrivals().items() if key in ('arrived', 'doubles', 'last_at_s')})
            row['lost'] = row['sent'] - row['arrived']
            row['drain_ms'] = (row['last_at_s'] - begin) * 1e3
            scene.stop_subject()
    return row


# ---- All runs -------------------------------------------------------------------------------------------------------


def subjects_of(command):
    """All subjects that are there: name to command and more."""
    floor = [OUT + '/floor', '-l', '{UDP_PORT}', '-u', '{TCP_PORT}', '-k', '{CONNECTIONS}', '-T', '{CA}']
    subjects = {'floor': {'command': floor}, **find_peers(), OURS: {'command': command}}
    for name, subject in subjects.items():
        subject['name'] = name
    return subjects


def measure_all(names, repeats, subjects):
    """Every run as often as asked, the subjects in turn (A B C A B C): the rows, which are written to a file as they come."""
    rows = []
    with open(OUT + '/rows.jsonl', 'w', encoding='utf-8') as file:
        for name in names:
            run = RUNS[name]
            times = repeats * run.get('times', 1) if repeats > 1 else 1
            those = [subject for subject in run.get('subjects', ALL) if subject in subjects]
            print(f'{time.strftime("%H:%M:%S")} {name}: {run["what"]}, {times} times', file=sys.stderr, flush=True)
            for turn in range(times):
                for subject in those:
                    row = {'run': name, 'subject': subject, 'turn': turn, 'load': os.getloadavg()[0]}
                    watch = Watch()
                    try:
                        row.update(measure(subjects[subject], run))
                    except (RunError, OSError, subprocess.SubprocessError) as error:
                        row['error'] = str(error) or type(error).__name__
                        print(f'{subject}, {name}: {row["error"]}', file=sys.stderr)
                    row['elsewhere'] = round(watch.elsewhere(), 3)
                    row['disturbed'] = row['elsewhere'] > BUSY
                    rows.append(row)
                    file.write(json.dumps(row) + '\n')
    return rows


def main():
    parser = argparse.ArgumentParser(prog='run.sh', description='Measures butler_webhook beside floor and its peers.')
    parser.add_argument('-n', '--repeats', type=int, default=5, help='runs of each kind (5)')
    parser.add_argument('-o', '--only', default=','.join(RUNS), help='comma-separated runs: ' + ', '.join(RUNS))
    parser.add_argument('-q', '--quick', action='store_true', help='-n 1 -o ' + ','.join(QUICK))
    parser.add_argument('-f', '--force', action='store_true', help='measure on a busy machine, too')
    parser.add_argument('command', nargs='*', metavar='COMMAND', help='a program in the place of ours; see README.md')
    options = parser.parse_args()
    names = QUICK if options.quick else options.only.split(',')
    repeats = 1 if options.quick else options.repeats
    if set(names) - set(RUNS) or repeats < 1:
        parser.error('unknown runs: ' + ', '.join(set(names) - set(RUNS)) if repeats > 0 else 'at least one repeat')
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    watch = Watch()
    time.sleep(LOOK_S)
    busy, load = watch.elsewhere(), os.getloadavg()[0]
    if busy > BUSY and not options.force:
        print(f'This machine is busy: {busy:.0%} of its processors\' time in the last {LOOK_S} s, load {load:.1f}. '
              'Try again later, or measure anyway with --force (make bench BENCH=--force).', file=sys.stderr)
        return 2
    subjects = subjects_of(options.command or [ROOT + '/build/butler_webhook', '{CONFIG}'])
    missing = [peer for peer in PEERS if peer not in subjects]
    if missing:
        print('not there, so not measured: ' + ', '.join(missing), file=sys.stderr)
    begin = time.time()
    rows = measure_all(names, repeats, subjects)
    shutil.rmtree(FOLDER, ignore_errors=True)
    results = report.results(rows, {
        'date': time.strftime('%Y-%m-%d', time.gmtime(begin)), 'minutes': round((time.time() - begin) / 60, 1),
        'repeats': repeats,
        'command': ' '.join(options.command), 'busy_before': round(busy, 3), 'load_before': round(load, 2), 'missing': missing,
        'versions': {name: subject['version'] for name, subject in subjects.items() if 'version' in subject}})
    print(report.write(results, AIMS))
    return 1 if any('error' in row for row in rows if row['subject'] in ('floor', OURS)) else 0


if __name__ == '__main__':
    sys.exit(main())
