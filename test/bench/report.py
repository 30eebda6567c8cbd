#!/usr/bin/env python3
"""
Writes what bench.py has measured: build/bench.json, build/bench.md, build/figure.svg. As a program (make bench-readme) it puts
the table and the figure of the last benchmark into README.md and test/bench/figure.svg.
"""

import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import textwrap

sys.dont_write_bytecode = True
from scenarios import ALL, FIELDS, HERE, OURS, PEERS, RATIOS, ROOT, RUNS

BUILD = os.path.join(ROOT, 'build')
BEGIN, END = '<!-- begin: make bench-readme writes this -->\n', '<!-- end -->\n'

# README.md's table: what, run, and fields with their digits and factor.
README_TABLE = [
    ('start until it listens, ms', 'start', [('start_ms', 1, 1)]),
    ('memory at rest, MB', 'start', [('rest_kb', 1, 1024 / 1e6)]),
    ('50 a second: median / 99th percentile, ms', 'latency', [('p50_ms', 2, 1), ('p99_ms', 2, 1)]),
    ('50 a second: processor time for each, us', 'latency', [('cpu_us', 0, 1)]),
    ('burst of 100,000: arrived', '100k', [('arrived', 0, 1)]),
    ('burst of 100,000: until the last had arrived, s', '100k', [('last_ms', 2, 1e-3)]),
    ('burst of 100,000: processor time for each, us', '100k', [('cpu_us', 0, 1)]),
    ('burst of 100,000: most memory, MB', '100k', [('peak_kb', 0, 1024 / 1e6)]),
    ('10,000 over TLS: processor time for each, us', 'tls', [('cpu_us', 0, 1)]),
    ('a new TLS connection for each: processor time, us', 'tls-closes', [('cpu_us', 0, 1)]),
    ('50,000 at 5,000 a second, default receive buffer: arrived', 'buffer-5k', [('arrived', 0, 1)]),
]


def machine():
    """Processors, memory, kernel and system of this machine."""
    def find(path, pattern):
        with open(path, encoding='utf-8', errors='replace') as file:
            return (re.findall(pattern, file.read(), re.M) + ['unknown'])[0]

    return {'processors': os.cpu_count(), 'model': find('/proc/cpuinfo', r'^model name\s*: (.*)'),
            'memory_gb': round(int(find('/proc/meminfo', r'^MemTotal:\s+(\d+)')) * 1024 / 1e9, 1),
            'kernel': platform.release(), 'system': find('/etc/os-release', r'^PRETTY_NAME="(.*)"')}


# ---- Figures --------------------------------------------------------------------------------------------------------


def summary(rows):
    """Median, least and most of each field of some rows, and how many of them failed or were disturbed."""
    fields = {}
    for field in [field for field, *_ in FIELDS] + ['lost']:
        values = [row[field] for row in rows if field in row]
        if values:
            fields[field] = {'median': statistics.median(values), 'min': min(values), 'max': max(values)}
    return {**fields, 'runs': len(rows), 'disturbed': sum(row['disturbed'] for row in rows),
            'errors': sorted({row['error'] for row in rows if 'error' in row}),
            'exits': sorted({row['exit'] for row in rows if row.get('exit')})}


def ratio(rows, other, field):
    """The median of ours by that of another, over the turns: both ran one after the other. None: not measured."""
    pairs = {}
    for row in rows:
        pairs.setdefault(row['turn'], {})[row['subject']] = row.get(field)
    ratios = [pair[OURS] / pair[other] for pair in pairs.values() if pair.get(OURS) is not None and pair.get(other)]
    return statistics.median(ratios) if ratios else None


def best_peer(subjects, field):
    """The peer with the least, among those that have lost nothing: who loses most would be quickest. None: there is none."""
    able = [peer for peer in PEERS if field in subjects.get(peer, {}) and subjects[peer].get('lost', {}).get('max', 0) == 0]
    return min(able, key=lambda peer: subjects[peer][field]['median']) if able else None


def results(rows, about):
    """All that goes into bench.json."""
    runs = {}
    for name in [name for name in RUNS if any(row['run'] == name for row in rows)]:
        of_run = [row for row in rows if row['run'] == name]
        subjects = {subject: summary([row for row in of_run if row['subject'] == subject])
                    for subject in dict.fromkeys(row['subject'] for row in of_run)}
        ratios = {}
        for field in RATIOS:
            peer = best_peer(subjects, field)
            ratios[field] = {'floor': ratio(of_run, 'floor', field), 'best': peer, 'peer': peer and ratio(of_run, peer, field)}
        runs[name] = {'what': RUNS[name]['what'], 'subjects': subjects, 'ratios': ratios}
    return {**machine(), **about, 'runs': runs, 'rows': rows}


def measured(data, run, subject, field, which='median'):
    """A figure, or None."""
    return data['runs'].get(run, {}).get('subjects', {}).get(subject, {}).get(field, {}).get(which)


def judged(data, aim):
    """One aim: met or missed, and by how much."""
    text, run, field, against, most = aim
    if run not in data['runs']:
        return None
    if against in data['runs']:
        ours, other = measured(data, run, OURS, field), measured(data, against, OURS, field)
        value, than = ours / other if ours and other else None, f' x alone ({against})'
    elif against:
        value, than = ratio([row for row in data['rows'] if row['run'] == run], against, field), f' x {against}'
    else:
        factor = {field: factor for field, _, _, factor in FIELDS}.get(field, 1)
        value, than = measured(data, run, OURS, field, 'max' if field == 'lost' else 'median'), ''
        value = value * factor if value is not None else None
    if value is None:
        return f'| {text} | at most {most:g}{than} | not measured | |'
    return f'| {text} | at most {most:g}{than} | {value:.2f} | {"met" if value <= most else "**missed**"} |'


# ---- bench.md -------------------------------------------------------------------------------------------------------


def number(value, digits):
    return f'{value:,.{digits}f}'


def cell(figures, digits, factor):
    """Median, and the range if there is one."""
    low, middle, high = (number(figures[key] * factor, digits) for key in ('min', 'median', 'max'))
    return middle if low == high else f'{middle} ({low}-{high})'


def table(run):
    """The table of one run: a line for each subject, and our ratios."""
    fields = [field for field in FIELDS if any(field[0] in subject for subject in run['subjects'].values())]
    fields = [field for field in fields if field[0] not in ('kernel_drops', 'resumed', 'doubles')
              or any(subject.get(field[0], {}).get('max') for subject in run['subjects'].values())]
    lines = ['| | runs |' + ''.join(f' {heading} |' for _, heading, _, _ in fields), '| --- |' + ' --: |' * (1 + len(fields))]
    for name, subject in run['subjects'].items():
        cells = [cell(subject[field], digits, factor) if field in subject else '' for field, _, digits, factor in fields]
        disturbed = f', {subject["disturbed"]} disturbed' if subject['disturbed'] else ''
        lines.append(f'| {name} | {subject["runs"]}{disturbed} | ' + ' | '.join(cells) + ' |')
    for other in ('floor', 'peer'):
        cells = []
        for field, *_ in fields:
            found = run['ratios'].get(field, {})
            best = f' ({found["best"]})' if other == 'peer' and found.get(other) else ''
            cells.append(f'x {found[other]:.2f}{best}' if found.get(other) else '')
        if any(cells):
            lines.append(f'| ours to {"floor" if other == "floor" else "the best peer"} | | ' + ' | '.join(cells) + ' |')
    for name, subject in run['subjects'].items():
        for error in subject['errors']:
            lines += ['', f'{name} failed: {error}']
        if subject['exits'] and name == OURS:
            lines += ['', f'{name}: exit code after SIGTERM {subject["exits"]}']
    return '\n'.join(lines)


def about(data):
    """Where and when."""
    peers = ', '.join(f'{name} {version}' for name, version in data['versions'].items())
    return (f'{data["date"]}, {data["processors"]} processors ({data["model"]}), {data["memory_gb"]} GB, {data["system"]}, '
            f'Linux {data["kernel"]}. ' + (f'Peers: {peers}. ' if peers else '') + not_there(data) +
            (f'What is called {OURS} here is `{data["command"]}`. ' if data['command'] else ''))


def not_there(data):
    return f'Not there, so not measured: {", ".join(data["missing"])}. ' if data['missing'] else ''


def disturbance(data):
    """Whether other programs were in the way."""
    bad = sum(row['disturbed'] for row in data['rows'])
    return (f'Load before: {data["load_before"]}, {data["busy_before"]:.0%} of the processors\' time taken. ' +
            (f'**{bad} of {len(data["rows"])} runs were disturbed** by other programs.' if bad else 'No run was disturbed.'))


def write(data, aims):
    """Writes bench.json, bench.md and the figure; gives what is in bench.md."""
    parts = ['# Benchmark', about(data) + disturbance(data),
             f'Medians, with the smallest and largest. Turns: {data["repeats"]}, minutes: {data["minutes"]}.']
    for name, run in data['runs'].items():
        parts += [f'## {name}: {run["what"]}', table(run)]
    verdicts = [line for line in (judged(data, aim) for aim in aims) if line]
    parts += ['## Aims', '\n'.join(['| aim | | measured | |', '| --- | --- | --: | --- |', *verdicts])]
    text = '\n\n'.join(parts) + '\n'
    with open(BUILD + '/bench.json', 'w', encoding='utf-8') as file:
        json.dump(data, file, indent=1)
    with open(BUILD + '/bench.md', 'w', encoding='utf-8') as file:
        file.write(text)
    return text + draw(data)


# ---- Figure and README ----------------------------------------------------------------------------------------------


def draw(data):
    """Has gnuplot draw build/figure.svg of the burst of 100,000, if that was measured; tells why not."""
    subjects = [subject for subject in reversed(ALL)
                if measured(data, '100k', subject, 'arrived') and measured(data, 'start', subject, 'rest_kb')]
    if OURS not in subjects:
        return '\nNo figure: it needs the runs start and 100k.\n'
    with open(BUILD + '/bench/figure.dat', 'w', encoding='ascii') as file:
        for subject in subjects:
            def median(run, field):
                return measured(data, run, subject, field)
            delivered = 100 * median('100k', 'arrived') / RUNS['100k']['count']
            last = f'{median("100k", "last_ms") / 1e3:.2f}' if delivered > 99.9 else '-'    # of few the last comes early
            file.write(f'"{subject}" {delivered:.1f} {last} {median("100k", "cpu_us"):.1f} '
                       f'{median("start", "rest_kb") * 1024 / 1e6:.1f} {median("100k", "peak_kb") * 1024 / 1e6:.1f}\n')
    title = (f'A burst of 100,000 log events, {data["date"]}, {data["processors"]} processors. '
             'floor: a bare C program, what the machine can do at most')
    try:
        subprocess.run(['gnuplot', '-e', f'title="{title}"', HERE + '/figure.gp'], cwd=BUILD, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f'\nNo figure: {error}\n'
    return '\nThe figure is build/figure.svg.\n'


def readme_part(data):
    """What stands between the two marks of README.md."""
    subjects = [OURS, 'floor', *[peer for peer in PEERS if peer not in data['missing']]]
    disturbed = sum(row['disturbed'] for row in data['rows'])
    where = (f'{data["processors"]} processors ({data["model"]}), {data["system"]}, '
             f'Linux {data["kernel"].partition("-")[0]}. Medians; turns: {data["repeats"]}. ' +
             (f'{disturbed} of {len(data["rows"])} runs were disturbed. ' if disturbed else '') + not_there(data))
    lines = [f'| {data["date"]} | ' + ' | '.join(subjects) + ' |', '| --- |' + ' --: |' * len(subjects)]
    for what, run, fields in README_TABLE:
        cells = []
        for subject in subjects:
            values = [(measured(data, run, subject, field), digits, factor) for field, digits, factor in fields]
            text = ' / '.join(number(value * factor, digits) for value, digits, factor in values if value is not None)
            cells.append('-' if fields[0][0] == 'last_ms' and measured(data, run, subject, 'lost') else text)
        lines.append(f'| {what} | ' + ' | '.join(cells) + ' |')
    return '\n'.join([textwrap.fill(where, 128), '', *lines, '', '![Bars of a burst of 100,000](test/bench/figure.svg)', ''])


def main():
    with open(BUILD + '/bench.json', encoding='utf-8') as file:
        data = json.load(file)
    whole = all(name in data['runs'] for _, name, _ in README_TABLE) and os.path.exists(BUILD + '/figure.svg')
    if data['command'] or not whole:
        print('The last benchmark was not a whole one of ours; run make bench.', file=sys.stderr)
        return 1
    with open(ROOT + '/README.md', encoding='utf-8') as file:
        text = file.read()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    with open(ROOT + '/README.md', 'w', encoding='utf-8') as file:
        file.write(before + BEGIN + readme_part(data) + END + after)
    shutil.copy(BUILD + '/figure.svg', HERE + '/figure.svg')
    print('README.md and test/bench/figure.svg have the figures of ' + data['date'])
    return 0


if __name__ == '__main__':
    sys.exit(main())
