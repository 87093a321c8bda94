#!/usr/bin/env python3
"""Runs programs as they were installed, on OS threads and under `sleave run`, and compares each with itself.

    programs/run.py [--sleave PATH] [--only NAME]... [--json FILE]

What a program says (its results, checksums, exit code) must be the same; how fast it is, on how many OS threads and in how much
memory is put into a table. Every wait is bounded, servers listen on loopback, data lies in a temporary folder, and only
processes started here are ended.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
PATIENCE = 180
HERTZ = os.sysconf("SC_CLK_TCK")
# What the kernel keeps for each thread's stack in the kernel, on x86-64 and 64-bit Arm.
KERNEL_STACK = 16 << 10

work = pathlib.Path()
sleave = ""


def on(mode, command, workers=2):
    """The command line of a program on threads or on fibers."""
    return command if mode == "threads" else [sleave, "run", "--workers", str(workers), "--", *command]


class Watch:
    """What a process has taken so far. (The program replaces `sleave run`, so it is that very process.)"""

    def __init__(self, process):
        self.pid = process.pid

    def cpu(self):
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / HERTZ

    def look(self):
        """OS threads, and bytes: resident, page tables, stacks in the kernel."""
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        kib = lambda name: int(re.search(rf"^{name}:\s*(\d+)", status, re.M)[1]) << 10
        threads = int(re.search(r"^Threads:\s*(\d+)", status, re.M)[1])
        return threads, kib("VmRSS") + kib("VmPTE") + threads * KERNEL_STACK


def run(mode, command, **options):
    """A program that ends by itself: what it says, and how long it takes."""
    begin = time.monotonic()
    done = subprocess.run(on(mode, command), capture_output=True, text=True, timeout=PATIENCE, **options)
    return done, time.monotonic() - begin


@contextlib.contextmanager
def server(mode, command, **options):
    """A server, which is ended by TERM when the block is left; its exit code is in `process.returncode`."""
    process = subprocess.Popen(on(mode, command), stdin=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def await_port(port, process):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args} does not listen at {port}")


def compiled(name):
    program = work / name
    if not program.exists():
        subprocess.run(["cc", "-O2", "-pthread", "-o", program, HERE / f"{name}.c"], check=True)
    return str(program)


class Row:
    """One line of the table: the same figure on threads and on fibers."""

    def __init__(self, name, unit):
        self.name, self.unit, self.values, self.notes = name, unit, {}, {}

    def put(self, mode, value, threads=None, memory=None):
        self.values[mode] = (value, threads, memory)


def alone(name, command, environment=None):
    """A program that ends by itself: equal outputs and exit codes."""

    def compare():
        row, said = Row(name, "s"), {}
        for mode in ("threads", "fibers"):
            done, took = run(mode, command, env={**os.environ, **(environment or {})})
            said[mode] = (done.returncode, done.stdout)
            threads = [int(word) for word in done.stderr.split() if word.isdigit()]
            row.put(mode, took, max(threads, default=None))
        assert said["threads"] == said["fibers"], f"{name}: {said}"
        return [row]

    return compare


def java():
    shutil.copy(HERE / "Threads.java", work)
    subprocess.run(["javac", "-d", work, work / "Threads.java"], check=True, timeout=PATIENCE)
    return alone("Java: 3,000 threads, monitors, pools, sockets, overflows", ["java", "-cp", str(work), "Threads", "3000"])()


def echo():
    """Our own textbook server, in C, under load that is checked."""
    rows = []
    for connections, seconds in ((100, 2), (10_000, 4)):
        speed = Row(f"C echo, {connections:,} connections", "requests/s")
        cost = Row(f"C echo, {connections:,} connections", "µs CPU/request")
        for mode in ("threads", "fibers"):
            with server(mode, [compiled("echo")], stdout=subprocess.PIPE, text=True) as process:
                port, watch = int(process.stdout.readline()), Watch(process)
                before = watch.cpu()
                load = [compiled("load"), str(port), str(connections), str(seconds)]
                with subprocess.Popen(load, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
                    answer = client.stdout.readline().split()
                    assert answer, f"echo on {mode}: no load"
                    requests, errors, took = int(answer[0]), int(answer[1]), float(answer[2])
                    cpu = watch.cpu() - before
                    threads, memory = watch.look()
                    client.stdin.close()
                assert errors == 0, f"echo on {mode}: {errors} errors"
                speed.put(mode, requests / took, threads, memory)
                cost.put(mode, cpu / requests * 1e6)
            assert process.returncode == 3, f"echo on {mode} ended with {process.returncode}"
        rows += [speed, cost]
    return rows


def memcached():
    """Sets and gets of 200 clients."""
    row = Row("memcached -t 4, 200 clients", "operations/s")
    for mode in ("threads", "fibers"):
        port = free_port()
        with server(mode, ["memcached", "-t", "4", "-p", str(port), "-l", "127.0.0.1", "-u", "nobody", "-U", "0"]) as process:
            await_port(port, process)
            begin, rounds = time.monotonic(), 50

            def client(number, failures):
                with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rwb") as stream:
                    for turn in range(rounds):
                        key, value = f"k{number}-{turn}".encode(), f"{number * turn}".encode() * 40
                        stream.write(b"set %b 0 0 %d\r\n%b\r\nget %b\r\n" % (key, len(value), value, key))
                        stream.flush()
                        told = [stream.readline() for _ in range(4)]
                        if told[0] != b"STORED\r\n" or told[2] != value + b"\r\n":
                            failures.append(told)

            failures = clients(200, client)
            took = time.monotonic() - begin
            assert not failures, f"memcached on {mode}: {failures[:3]}"
            row.put(mode, 200 * rounds * 2 / took, *Watch(process).look())
        assert process.returncode == 0, f"memcached on {mode} ended with {process.returncode}"
    return [row]


def clients(many, body):
    """So many threads of this script; what they put into the list."""
    failures = []

    def guarded(number):
        try:
            body(number, failures)
        except Exception as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return failures


def stunnel():
    """A thread for each TLS connection, each of which it forwards to the echo server."""
    row = Row("stunnel, 100 TLS connections", "round trips/s")
    certificate = work / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-keyout", certificate, "-out", work / "certificate.crt"], check=True, capture_output=True)
    certificate.write_text(certificate.read_text() + (work / "certificate.crt").read_text())
    certificate.chmod(0o600)
    context = ssl.create_default_context(cafile=str(work / "certificate.crt"))
    context.check_hostname = False
    for mode in ("threads", "fibers"):
        with server("threads", [compiled("echo")], stdout=subprocess.PIPE, text=True) as behind:
            port, target = free_port(), int(behind.stdout.readline())
            settings = work / "stunnel.conf"
            settings.write_text(
                f"foreground = yes\npid =\nsyslog = no\ndebug = err\n"
                f"[echo]\naccept = 127.0.0.1:{port}\nconnect = 127.0.0.1:{target}\ncert = {certificate}\n")
            with server(mode, ["stunnel4", str(settings)], stderr=subprocess.DEVNULL) as process:
                await_port(port, process)
                begin, rounds, looks = time.monotonic(), 20, []
                all_there = threading.Barrier(100, action=lambda: looks.append(Watch(process).look()))

                def client(number, failures):
                    with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain) as stream:
                        for turn in range(rounds):
                            message = f"{number:04}:{turn:04}".encode()
                            stream.sendall(message)
                            if stream.recv(64) != message:
                                failures.append((number, turn))
                            if turn == 0:
                                all_there.wait(PATIENCE)

                failures = clients(100, client)
                took = time.monotonic() - begin
                assert not failures, f"stunnel on {mode}: {failures[:3]}"
                row.put(mode, 100 * rounds / took, *looks[0])
    return [row]


def mariadb():
    """A database server, a thread for each of a thousand connections; tables that must be equal in the end."""
    asleep = Row("MariaDB, 1,000 connections at once, each asleep for 0.5 s", "s")
    select = Row("MariaDB, 1,000 clients, select 1", "queries/s")
    mixed = Row("MariaDB, 64 clients, reads and writes", "queries/s")
    sums = {}
    account = ["--user=mysql"] if os.geteuid() == 0 else []
    for mode in ("threads", "fibers"):
        data = work / f"mariadb-{mode}"
        data.mkdir()
        if account:
            shutil.chown(data, "mysql")
        common = [f"--datadir={data}/data"]
        subprocess.run(["mariadb-install-db", "--no-defaults", *account, *common, "--skip-test-db",
                        "--auth-root-authentication-method=normal"], check=True, capture_output=True, timeout=PATIENCE)
        path, port = f"{data}/socket", free_port()
        daemon = [shutil.which("mariadbd"), "--no-defaults", *account, *common, f"--port={port}", "--bind-address=127.0.0.1",
                  f"--socket={path}", f"--pid-file={data}/pid", "--max-connections=1200", "--thread-handling=one-thread-per-connection",
                  "--innodb-flush-log-at-trx-commit=2"]
        with server(mode, daemon, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            await_port(port, process)
            to = ["--no-defaults", "--user=root", f"--socket={path}"]
            query = lambda text: subprocess.run(["mariadb", *to, "-N", "-e", text], check=True, capture_output=True,
                                                text=True, timeout=PATIENCE).stdout
            query("create database load_; use load_; create table load_.c (id int primary key, n int) engine=innodb;"
                  "create table load_.h (id int primary key auto_increment, v int) engine=innodb;"
                  "insert into c select seq, 0 from seq_1_to_64")
            slap = lambda *words: subprocess.run(["mariadb-slap", *to, "--create-schema=load_", "--no-drop", *words], check=True,
                                                 capture_output=True, text=True, timeout=PATIENCE)
            looks, over = [], threading.Event()

            def watch():
                while not over.wait(0.05):
                    looks.append(Watch(process).look())

            watcher = threading.Thread(target=watch)
            watcher.start()
            begin = time.monotonic()
            slap("--concurrency=1000", "--number-of-queries=1000", "--query=select sleep(0.5)")
            took = time.monotonic() - begin
            over.set()
            watcher.join()
            asleep.put(mode, took, max(look[0] for look in looks), max(look[1] for look in looks))
            begin = time.monotonic()
            slap("--concurrency=1000", "--number-of-queries=50000", "--query=select 1")
            select.put(mode, 50_000 / (time.monotonic() - begin))
            script = ("update c set n = n + 1 where id = 1 + connection_id() % 64; insert into h (v) values (7);"
                      "select sum(n) from c; select count(*) from h where v = 7")
            begin = time.monotonic()
            slap("--concurrency=64", "--number-of-queries=16000", "--delimiter=;", f"--query={script}")
            mixed.put(mode, 16_000 / (time.monotonic() - begin), *Watch(process).look())
            sums[mode] = query("select sum(n) from load_.c; select count(*), sum(v) from load_.h; checksum table load_.h")
        assert process.returncode == 0, f"MariaDB on {mode} ended with {process.returncode}"
    assert sums["threads"] == sums["fibers"], f"MariaDB: {sums}"
    return [asleep, select, mixed]


def trouble():
    """One run in ten has an accident: signals at random moments, clients that vanish, descriptors that run out. Nothing hangs, and
    the exit code is the program's own."""
    seed = random.randrange(1 << 32)
    print(f"    accidents: seed {seed}", file=sys.stderr)
    row = Row("accidents: signals, vanished clients, no descriptors", "runs")
    for mode in ("threads", "fibers"):
        dice, outcomes = random.Random(seed), []
        for accident in ("none", "TERM", "KILL", "INT", "clients", "descriptors", "QUIT", "clients", "TERM", "descriptors"):
            few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            process = subprocess.Popen(on(mode, [compiled("echo")]), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                       text=True, preexec_fn=few if accident == "descriptors" else None)
            port = int(process.stdout.readline())
            crowd = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(100)]
            for each in crowd:
                each.sendall(b"x")
            time.sleep(dice.random() * 0.1)
            if accident == "clients":
                for each in crowd[::2]:
                    # A reset instead of an end.
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    each.close()
                crowd = crowd[1::2]
            if accident in ("none", "clients"):
                answered = 0
                for each in crowd:
                    each.settimeout(30)
                    answered += each.recv(1) == b"x"
                outcomes.append((accident, answered))
            if accident == "descriptors":
                # Those that got one are served, and when they go, others are.
                served = 0
                for each in crowd:
                    each.settimeout(30)
                    served += each.recv(1) == b"x"
                    each.close()
                outcomes.append((accident, served))
            process.send_signal(getattr(signal, "SIG" + (accident if accident.isupper() else "TERM")))
            outcomes.append((accident, process.wait(60)))
            for each in crowd:
                each.close()
        row.put(mode, len(outcomes) / 2)
        row.notes[mode] = outcomes
    assert row.notes["threads"] == row.notes["fibers"], f"accidents: {row.notes}"
    return [row]


PROGRAMS = {
    "threads": alone("Python: 5,000 threads, locks, queues, children", [sys.executable, str(HERE / "threads.py"), "5000"]),
    "servers": alone("Python: http.server and socketserver, 1,000 clients each", [sys.executable, str(HERE / "servers.py"), "1000"]),
    "java": java,
    "echo": echo,
    "memcached": memcached,
    "stunnel": stunnel,
    "mariadb": mariadb,
    "accidents": trouble,
}


def show(rows):
    size = lambda memory: "" if memory is None else f"{memory / (1 << 20):,.0f}"
    figure = lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
    print("\n| program | | OS threads | fibers | ratio | kernel threads | MiB |\n|---|---|--:|--:|--:|--:|--:|")
    for row in rows:
        (before, many, large), (after, few, small) = row.values["threads"], row.values["fibers"]
        tasks = "" if many is None else f"{many:,} → {few:,}"
        memory = "" if large is None else f"{size(large)} → {size(small)}"
        print(f"| {row.name} | {row.unit} | {figure(before)} | {figure(after)} | {after / before:.2f} | {tasks} | {memory} |")


def main():
    global work, sleave
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="Programs: " + ", ".join(PROGRAMS))
    parser.add_argument("--sleave", default=str(HERE.parent / "target/release/sleave"), help="the tool [target/release/sleave]")
    parser.add_argument("--only", action="append", choices=PROGRAMS, metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="the figures, for other programs")
    words = parser.parse_args()
    sleave = words.sleave
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    rows = []
    with tempfile.TemporaryDirectory(prefix="sleave-programs-") as folder:
        work = pathlib.Path(folder)
        work.chmod(0o755)
        for name in words.only or PROGRAMS:
            begin = time.monotonic()
            print(f"{name} …", file=sys.stderr, flush=True)
            rows += PROGRAMS[name]()
            print(f"    the same on threads and on fibers, {time.monotonic() - begin:.1f} s", file=sys.stderr)
    show(rows)
    if words.json:
        words.json.write_text(json.dumps([{"name": row.name, "unit": row.unit, **row.values} for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
