#!/usr/bin/env python3
"""Measures a subject (butler_webhook, or any command) against floor, the physical limit.

Started by run.sh, which builds the tools. README.md in this folder says what the runs are and
how to read what comes out.
"""

import argparse
import json
import os
import select
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OUT = os.path.join(ROOT, "build", "bench")
FLOOR = [OUT + "/floor", "-l", "{UDP_PORT}", "-u", "{TCP_PORT}", "-k", "{CONNECTIONS}",
         "-T", "{CA}"]

LATENCY_RATIO_MAX = 1.45     # median at 50/s, as a multiple of floor's
P99_RATIO_MAX = 1.5          # 99th percentile, the same
LATENCY_CPU_RATIO_MAX = 2.6  # processor time, the same
LAST_RATIO_MAX = 1.35        # time to the last of 100,000, the same
CPU_RATIO_MAX = 1.8          # processor time for each of them, the same
PEAK_MB_MAX = 64.0       # memory for them
REST_MB_MAX = 1.0        # memory at rest, 1 MB = 1,000,000 bytes
START_MS_MAX = 3.0       # from exec to listening
STARTS = 20              # starts of each, for the start-up time
SETTLE_S = 0.5           # from listening to "at rest"

# What one run sends, and how the sink behaves. wait_s bounds the time after the last send. Latency
# swings with what else the machine does, so its runs are short and there are more of them.
RUNS = {
    "latency": {"what": "150 at 50/s", "count": 150, "rate": 50, "wait_s": 10, "times": 3},
    "1k": {"what": "1,000 at full speed", "count": 1000, "wait_s": 30},
    "10k": {"what": "10,000 at full speed", "count": 10000, "wait_s": 60},
    "tls": {"what": "10,000 over TLS", "count": 10000, "wait_s": 60, "tls": True},
    "slow": {"what": "200, an answer takes 50 ms", "count": 200, "wait_s": 30, "delay_ms": 50},
    "100k": {"what": "100,000 at full speed", "count": 100000, "wait_s": 90},
}
# One https webhook with the public roots; nothing is sent to it.
HTTPS_AT_REST = {"count": 1, "url": "https://localhost:1/hook"}

CONFIG = """\
Butler:
  logLevel: info
  udpServerConfig:
    enable: true
    serverHost: 127.0.0.1
    portTaskFailure: {UDP_PORT}
    deduplication:
      enable: false
  webhookNotification:
    enable: true
    reloadTaskFailure:
      rateLimit: 0
      webhooks:
        - description: benchmark
          webhookURL: {URL}
          httpMethod: POST
"""
CONFIG_CA = """\
          cert:
            enable: true
            rejectUnauthorized: true
            certCA: '{CA}'
"""


class RunError(Exception):
    """A run that gave no numbers; the text says why."""


def read_line(process, seconds, who):
    """The next JSON line of a tool, or RunError."""
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    line = process.stdout.readline() if ready else ""
    if not line:
        raise RunError(f"{who} said nothing for {seconds} s" if not ready else f"{who} ended early")
    return json.loads(line)


def free_port(kind):
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def make_certificates():
    """A CA and a certificate for localhost, once; returns their folder."""
    folder = os.path.join(OUT, "tls")
    if os.path.exists(folder + "/server.crt"):
        return folder
    os.makedirs(folder, exist_ok=True)

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, stderr=subprocess.DEVNULL)

    with open(folder + "/server.ext", "w", encoding="ascii") as f:
        f.write("subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "3650",
            "-subj", "/CN=benchmark CA", "-addext", "keyUsage=critical,keyCertSign")
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-days", "3650", "-extfile", "server.ext", "-out", "server.crt")
    return folder


def memory_kb(pid, field):
    """Rss (exact, from smaps_rollup), VmHWM or Threads (from status) of a process."""
    table = "smaps_rollup" if field == "Rss" else "status"
    with open(f"/proc/{pid}/{table}", encoding="ascii", errors="replace") as f:
        for line in f:
            if line.startswith(field + ":"):
                return int(line.split()[1])
    raise RunError(f"no {field} of process {pid}")


def cpu_ns(pid):
    """Processor time of a process, threads that ended included (see clock_getcpuclockid)."""
    return time.clock_gettime_ns((~pid << 3) | 2)


def kernel_drops(port):
    """Datagrams that the kernel threw away because the socket of this port was full."""
    drops = 0
    for table in ("/proc/net/udp", "/proc/net/udp6"):
        if os.path.exists(table):
            with open(table, encoding="ascii") as f:
                rows = [line.split() for line in f][1:]
            drops += sum(int(r[-1]) for r in rows if int(r[1].split(":")[1], 16) == port)
    return drops


class Scene:
    """A sink and a started subject; `with` ends both."""

    def __init__(self, command, run, connections=1):
        self.run, self.command = run, command
        self.udp_port, self.tcp_port = free_port(socket.SOCK_DGRAM), free_port(socket.SOCK_STREAM)
        self.tls_folder = make_certificates() if run.get("tls") else None
        origin = "https://localhost" if self.tls_folder else "http://127.0.0.1"
        self.words = {
            "UDP_PORT": str(self.udp_port),
            "TCP_PORT": str(self.tcp_port),
            "CONNECTIONS": str(connections),
            "URL": run.get("url", f"{origin}:{self.tcp_port}/hook"),
            "CA": self.tls_folder + "/ca.pem" if self.tls_folder else "",
            "CONFIG": OUT + "/subject.yaml",
        }
        self.sink, self.launch, self.pid = None, None, None

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self):
        arguments = [OUT + "/sink", "-p", str(self.tcp_port), "-n", str(self.run["count"]),
                     "-d", str(self.run.get("delay_ms", 0))]
        if self.tls_folder:
            arguments += ["-C", self.tls_folder + "/server.crt",
                          "-K", self.tls_folder + "/server.key"]
        self.sink = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        read_line(self.sink, 5, "the sink")

        shutil.rmtree(OUT + "/butler_webhook.state", ignore_errors=True)  # each run has a new journal
        with open(self.words["CONFIG"], "w", encoding="utf-8") as f:
            f.write((CONFIG + (CONFIG_CA if self.tls_folder else "")).format(**self.words))
        command = [word.format(**self.words) for word in self.command]
        self.launch = subprocess.Popen(
            [OUT + "/launch", "-p", str(self.udp_port), "-w", "10000", "-o", OUT + "/subject.log",
             "--", *command], stdout=subprocess.PIPE, text=True, env={**os.environ, **self.words})
        started = read_line(self.launch, 15, "launch")
        self.pid, self.start_ms = started["pid"], started["start_ms"]
        if self.start_ms < 0:
            with open(OUT + "/subject.log", encoding="utf-8", errors="replace") as f:
                printed = f.read()[-300:].strip() or "it printed nothing"
            raise RunError(f"{command[0]} did not listen on its port: {printed}")

    def stop_subject(self):
        """Ends the subject as an administrator would, and returns its exit code."""
        os.kill(self.pid, signal.SIGTERM)
        try:
            return read_line(self.launch, 10, "the subject, after SIGTERM,")["exit"]
        finally:
            self.pid = None

    def __exit__(self, *unused):
        for process in (self.launch, self.sink):
            if process is not None:
                process.kill()
                process.wait()
                process.stdout.close()


def measure(command, run, connections=1):
    """One run: its row of numbers."""
    with Scene(command, run, connections) as scene:
        time.sleep(SETTLE_S)
        row = {"start_ms": scene.start_ms, "rest_kb": memory_kb(scene.pid, "Rss"),
               "load": os.getloadavg()[0]}
        cpu_before = cpu_ns(scene.pid)
        blast = subprocess.run([OUT + "/blast", "-p", str(scene.udp_port), "-n", str(run["count"]),
                                "-r", str(run.get("rate", 0))],
                               stdout=subprocess.PIPE, check=True, timeout=120, text=True)
        row.update(json.loads(blast.stdout))
        try:
            row.update(read_line(scene.sink, run["wait_s"], "the sink"))
        except RunError:
            scene.sink.terminate()
            row.update(read_line(scene.sink, 5, "the sink"))
        row["cpu_ms_per_1k"] = (cpu_ns(scene.pid) - cpu_before) / 1e6 / max(row["arrived"], 1) * 1e3
        row["lost"] = row["sent"] - row["arrived"]
        row["kernel_drops"] = kernel_drops(scene.udp_port)
        row["peak_kb"] = memory_kb(scene.pid, "VmHWM")
        row["threads"] = memory_kb(scene.pid, "Threads")
        row["exit"] = scene.stop_subject()
    return row


def measure_start(command):
    """Time from exec to listening, nothing sent."""
    with Scene(command, {"count": 1}) as scene:
        row = {"start_ms": scene.start_ms}
        row["exit"] = scene.stop_subject()
    return row


def measure_rest(command, run):
    """Memory at rest, nothing sent."""
    with Scene(command, run) as scene:
        time.sleep(SETTLE_S)
        row = {"start_ms": scene.start_ms, "rest_kb": memory_kb(scene.pid, "Rss")}
        row["exit"] = scene.stop_subject()
    return row


class Rows:
    """All rows of this session; written to a file as they come."""

    def __init__(self, path):
        self.path, self.rows = path, []
        open(path, "w", encoding="utf-8").close()

    def add(self, run, subject, function, *arguments):
        row = {"run": run, "subject": subject}
        try:
            row.update(function(*arguments))
        except (RunError, ProcessLookupError, OSError, subprocess.SubprocessError) as e:
            row["error"] = str(e) or type(e).__name__
            print(f"{subject}, {run}: {row['error']}", file=sys.stderr)
        self.rows.append(row)
        with open(self.path, "a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")
        return row

    def column(self, run, subject, field):
        return [r[field] for r in self.rows
                if r["run"] == run and r["subject"] == subject and field in r]

    def failed(self, run, subject):
        return [r for r in self.rows
                if r["run"] == run and r["subject"] == subject and "error" in r]

    def ratio(self, run, field):
        """The median of subject / floor over the pairs of one run each, or None."""
        rows = [r for r in self.rows if r["run"] == run]
        ours = [r.get(field) for r in rows if r["subject"] != "floor"]
        floors = [r.get(field) for r in rows if r["subject"] == "floor"]
        ratios = [a / b for a, b in zip(ours, floors) if a is not None and b]
        return statistics.median(ratios) if ratios else None


def measure_all(names, repeats, name, command, rows):
    """Every run as often as asked, subject and floor in turn (A B A B)."""
    def progress(what):
        print(f"... {what}", file=sys.stderr, flush=True)

    if "start" in names:
        progress(f"start, {STARTS} times")
        for _ in range(STARTS):
            rows.add("start", name, measure_start, command)
            rows.add("start", "floor", measure_start, FLOOR)
    if "rest" in names:
        progress("memory at rest, http and https")
        for _ in range(repeats):
            rows.add("rest", name, measure_rest, command, {"count": 1})
            rows.add("rest", "floor", measure_rest, FLOOR, {"count": 1})
            rows.add("rest-https", name, measure_rest, command, HTTPS_AT_REST)
    for run in (r for r in RUNS if r in names):
        times = repeats * RUNS[run].get("times", 1)
        progress(f"{RUNS[run]['what']}, {times} times")
        for _ in range(times):
            row = rows.add(run, name, measure, command, RUNS[run])
            rows.add(run, "floor", measure, FLOOR, RUNS[run], row.get("open_max") or 1)


def print_table(names, subject, rows):
    columns = [("arrived", "arrived", 0, 1), ("kernel drops", "kernel_drops", 0, 1),
               ("p50 ms", "p50_ms", 2, 1), ("p99 ms", "p99_ms", 2, 1), ("last ms", "last_ms", 0, 1),
               ("CPU ms/1,000", "cpu_ms_per_1k", 1, 1), ("start ms", "start_ms", 1, 1),
               ("at rest MB", "rest_kb", 2, 1024 / 1e6), ("peak MB", "peak_kb", 1, 1024 / 1e6),
               ("threads", "threads", 0, 1), ("connections", "open_max", 0, 1),
               ("doubles", "doubles", 0, 1), ("load", "load", 1, 1)]
    labels = {"start": "start, nothing sent", "rest": "at rest, http webhook",
              "rest-https": "at rest, https webhook, public roots"}
    labels.update((run, RUNS[run]["what"]) for run in RUNS)
    print("| run | subject | runs |" + "".join(f" {c[0]} |" for c in columns))
    print("| --- | --- |" + " --: |" * (len(columns) + 1))
    for run in labels:
        for who in (subject, "floor"):
            count = len([r for r in rows.rows if r["run"] == run and r["subject"] == who])
            failed = len(rows.failed(run, who))
            if count == 0:
                continue
            cells = [labels[run], who, f"{count}" + (f", {failed} failed" if failed else "")]
            for _, field, digits, factor in columns:
                values = [v * factor for v in rows.column(run, who, field)]
                if not values:
                    cells.append("")
                    continue
                low, middle, high = (f"{v:.{digits}f}" for v in
                                     (min(values), statistics.median(values), max(values)))
                cells.append(middle if low == high else f"{middle} ({low}-{high})")
            print("| " + " | ".join(cells) + " |")


class Verdicts:
    """One line for each promised number."""

    def __init__(self, rows, subject):
        self.rows, self.subject, self.missed = rows, subject, 0

    def say(self, kept, text):
        self.missed += not kept
        print(("ok      " if kept else "MISSED  ") + text)

    def medians(self, run, field, factor=1.0):
        """Median and largest of the subject, median of floor; None without a number."""
        ours = self.rows.column(run, self.subject, field)
        floors = self.rows.column(run, "floor", field)
        if self.rows.failed(run, self.subject) or not ours or not floors:
            return None
        return (statistics.median(ours) * factor, max(ours) * factor,
                statistics.median(floors) * factor)

    def unmeasured(self, run, what):
        failed = self.rows.failed(run, self.subject) + self.rows.failed(run, "floor")
        self.say(False, f"{what}: not measured ({failed[0]['error'] if failed else 'no rows'})")

    def arrival(self, run):
        what = f"{RUNS[run]['what']}: all arrive"
        last = self.medians(run, "last_ms")
        if last is None:
            self.unmeasured(run, what)
            return
        arrived = min(self.rows.column(run, self.subject, "arrived"))
        drops = sum(self.rows.column(run, self.subject, "kernel_drops"))
        count, ratio = RUNS[run]["count"], self.rows.ratio(run, "last_ms")
        self.say(arrived == count,
                 f"{what}: {arrived:,} of {count:,} in the worst run, kernel drops {drops}; "
                 f"time to last {last[0]:.0f} ms, floor's {last[2]:.0f} ms with as many "
                 f"connections, ratio {ratio or float('nan'):.2f} (information)")

    def latency(self):
        what = "latency at 50/s, median"
        numbers, ratio = self.medians("latency", "p50_ms"), self.rows.ratio("latency", "p50_ms")
        if numbers is None or ratio is None:
            self.unmeasured("latency", what)
            return
        lost = sum(self.rows.column("latency", self.subject, "lost"))
        self.say(ratio <= LATENCY_RATIO_MAX and lost == 0,
                 f"{what}: {numbers[0]:.3f} ms, floor's {numbers[2]:.3f} ms, ratio {ratio:.2f}, "
                 f"at most {LATENCY_RATIO_MAX}" + (f"; {lost} LOST" if lost else ""))

    def ratio_limit(self, run, field, limit, what):
        numbers, ratio = self.medians(run, field), self.rows.ratio(run, field)
        if numbers is None or ratio is None:
            self.unmeasured(run, what)
            return
        self.say(ratio <= limit, f"{what}: {numbers[0]:.2f}, floor's {numbers[2]:.2f}, ratio "
                                 f"{ratio:.2f}, at most {limit}")

    def limit(self, run, field, factor, limit, unit, what):
        numbers = self.medians(run, field, factor)
        if numbers is None:
            self.unmeasured(run, what)
            return
        self.say(numbers[0] <= limit,
                 f"{what}: {numbers[0]:.2f} {unit} (largest {numbers[1]:.2f}), at most {limit:g}; "
                 f"floor's {numbers[2]:.2f}, ratio {self.rows.ratio(run, field):.2f}")

    def all(self, names):
        for run in ("1k", "10k", "100k"):
            if run in names:
                self.arrival(run)
        if "100k" in names:
            self.ratio_limit("100k", "last_ms", LAST_RATIO_MAX, "100,000: ms to the last, median")
            self.ratio_limit("100k", "cpu_ms_per_1k", CPU_RATIO_MAX,
                             "100,000: processor ms for each 1,000, median")
            self.limit("100k", "peak_kb", 1024 / 1e6, PEAK_MB_MAX, "MB",
                       "100,000: peak memory, median")
        if "latency" in names:
            self.latency()
            self.ratio_limit("latency", "p99_ms", P99_RATIO_MAX, "latency at 50/s, 99th percentile")
            self.ratio_limit("latency", "cpu_ms_per_1k", LATENCY_CPU_RATIO_MAX,
                             "50/s: processor ms for each 1,000, median")
        if "rest" in names:
            self.limit("rest", "rest_kb", 1024 / 1e6, REST_MB_MAX, "MB",
                       "memory at rest, one http webhook, median")
        if "start" in names:
            self.limit("start", "start_ms", 1, START_MS_MAX, "ms",
                       "from exec to listening, median")
        bad = {r["exit"] for r in self.rows.rows if r["subject"] == self.subject and r.get("exit")}
        if bad:
            self.say(False, f"exit code after SIGTERM: {sorted(bad)}, must be 0")


def main():
    all_names = ["start", "rest", *RUNS]
    parser = argparse.ArgumentParser(
        prog="run.sh", description="Measure butler_webhook, or another COMMAND, against floor.")
    parser.add_argument("-n", "--repeats", type=int, default=3, help="runs of each kind (3)")
    parser.add_argument("-o", "--only", default=",".join(all_names),
                        help="comma-separated runs: " + ", ".join(all_names))
    parser.add_argument("-N", "--name", help="the subject's name in the table")
    parser.add_argument("command", nargs="*", metavar="COMMAND",
                        help="a subject; {UDP_PORT}, {URL}, {TCP_PORT}, {CA}, {CONFIG} in its "
                             "words are replaced, and are in its environment")
    options = parser.parse_args()
    names = options.only.split(",")
    unknown = set(names) - set(all_names)
    if unknown or options.repeats < 1:
        parser.error(f"unknown run {', '.join(unknown)}" if unknown else "at least one repeat")
    command = options.command or [ROOT + "/build/butler_webhook", "{CONFIG}"]
    name = options.name or os.path.basename(command[0])
    if name == "floor":
        name = "floor as subject"

    try:
        measure_start(command)
    except (RunError, OSError) as e:
        print(f"{name} cannot be measured: {e}", file=sys.stderr)
        return 1
    rows = Rows(OUT + "/rows.jsonl")
    measure_all(names, options.repeats, name, command, rows)
    print(f"\n`{shlex.join(command)}`, {os.cpu_count()} processors, medians (smallest-largest)\n")
    print_table(names, name, rows)
    print()
    verdicts = Verdicts(rows, name)
    verdicts.all(names)
    return 1 if verdicts.missed else 0


if __name__ == "__main__":
    sys.exit(main())
