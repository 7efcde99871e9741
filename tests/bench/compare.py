#!/usr/bin/env python3
"""Measures servers of the line protocol (line_protocol.hpp) side by side, and tells what they cost relative to
reference_line_server, which is written by hand on asio::ssl::stream: as a table in Markdown and a plot in SVG.

Every measurement has a server of its own, pinned to one CPU, while line_client is pinned to another. The servers take
turns within a round, in an order that rotates; a ratio is the median of the ratios of the rounds."""

import argparse
import contextlib
import ctypes
import json
import math
import os
import pathlib
import platform
import random
import resource
import select
import shlex
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
import plot

REFERENCE = "by hand"
PROGRAMS = {
    REFERENCE: ["reference_line_server"],
    "pairs": ["line_server"],
    "stream": ["stream_line_server", "asio"],
    "stream on tls_stream": ["stream_line_server", "tls_stream"],
}
MIB = 1 << 20


def works(idle):
    """The works by name: a label, and the arguments of line_client."""
    bulk = ["--size", MIB, "--outstanding", 4]
    small = ["--size", 16384, "--outstanding", 16]
    tls = ["--tls", 1]
    return {
        "ping": ("round trip, plain", ["ping"]),
        "ping_tls": ("round trip, TLS", ["ping", *tls]),
        "ping_64": ("round trip, plain, 64 connections", ["ping", "--connections", 64]),
        "ping_64_tls": ("round trip, TLS, 64 connections", ["ping", "--connections", 64, *tls]),
        "ping_idle_tls": (f"round trip, TLS, {idle} others idle", ["ping", "--idle", idle, *tls]),
        "pipelined": ("one of 32 pipelined PINGs, plain", ["ping", "--pipelined", 32]),
        "pipelined_tls": ("one of 32 pipelined PINGs, TLS", ["ping", "--pipelined", 32, *tls]),
        "send": ("sending, plain", ["source", *bulk]),
        "send_tls": ("sending, TLS", ["source", *bulk, *tls]),
        "send_16k_tls": ("sending, TLS, 16 KiB for each request", ["source", *small, *tls]),
        "send_4k_tls": ("sending, TLS, in writes of 4 KiB", ["source", *bulk, "--piece", 4096, *tls]),
        "receive": ("receiving, plain", ["sink", *bulk]),
        "receive_tls": ("receiving, TLS", ["sink", *bulk, *tls]),
        "upgrade": ("upgrade, one at a time", ["upgrade"]),
        "upgrade_64": ("upgrade, 64 at once", ["upgrade", "--connections", 64]),
        "memory": ("memory of an idle connection, plain", ["memory", "--connections", idle]),
        "memory_tls": ("memory of an idle connection, TLS", ["memory", "--connections", idle, *tls]),
    }


class Failure(Exception):
    pass


def pinned(cpu):
    """For Popen: pins a child to a CPU, and has the kernel end it when this process ends, however that comes."""

    def prepare():
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})

    return prepare


def pick_cpus():
    """One CPU for the server and one for the client, on another core if there is one; none where there is but one."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        return None, None
    server = allowed[0]
    siblings = pathlib.Path(f"/sys/devices/system/cpu/cpu{server}/topology/core_cpus_list")
    same_core = set()
    if siblings.exists():
        for part in siblings.read_text().strip().split(","):
            first, _, last = part.partition("-")
            same_core.update(range(int(first), int(last or first) + 1))
    return server, next((cpu for cpu in allowed[1:] if cpu not in same_core), allowed[1])


class Bench:
    def __init__(self, programs, directory):
        self.client = programs / "line_client"
        self.directory = pathlib.Path(directory)
        self.certificate, self.key = self.directory / "certificate.pem", self.directory / "key.pem"
        self.server_cpu, self.client_cpu = pick_cpus()
        configuration = self.directory / "certificate.conf"
        configuration.write_text(
            "[req]\nprompt = no\ndistinguished_name = name\nx509_extensions = extensions\n[name]\nCN = localhost\n"
            "[extensions]\nbasicConstraints = critical, CA:TRUE\nsubjectKeyIdentifier = hash\n"
            "keyUsage = critical, digitalSignature, keyCertSign\nsubjectAltName = DNS:localhost, IP:127.0.0.1\n"
        )
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2".split()
        self.run([*command, "-config", configuration, "-keyout", self.key, "-out", self.certificate], 60)

    @staticmethod
    def run(command, timeout, **options):
        command = [str(word) for word in command]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)
        except subprocess.TimeoutExpired:
            raise Failure(f"{shlex.join(command)} was not over after {timeout:.0f} s") from None
        except OSError as error:
            raise Failure(f"cannot run {command[0]}: {error.strerror}") from None
        if done.returncode != 0:
            raise Failure(f"{shlex.join(command)}: status {done.returncode}\n{done.stderr.strip()}")
        return done.stdout

    @contextlib.contextmanager
    def server(self, name, command):
        """A server while it is used. Gives: its port and PID."""
        command = [*command, "0", str(self.certificate), str(self.key)]
        with open(self.directory / "errors.txt", "w+", encoding="utf-8", errors="replace") as errors:
            try:
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True,
                                           preexec_fn=pinned(self.server_cpu), start_new_session=True)
            except OSError as error:
                raise Failure(f"cannot run the server \"{name}\", {command[0]}: {error.strerror}") from None
            try:
                ready = select.select([process.stdout], [], [], 30)[0]
                line = process.stdout.readline() if ready else "nothing for 30 s"
                if not line.startswith("listening on "):
                    raise Failure(f"it prints {line!r} where \"listening on PORT\" is due")
                yield int(line.split()[-1]), process.pid
            except Failure as failure:
                errors.seek(0)
                last_lines = "".join(errors.readlines()[-10:])
                raise Failure(f"the server \"{name}\": {failure}\n{last_lines}".strip()) from None
            finally:
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started
                process.wait(30)
                process.stdout.close()

    def measure(self, name, command, arguments, seconds):
        with self.server(name, command) as (port, pid):
            work, *options = arguments
            client = [self.client, work, port, pid, "--seconds", seconds, *options]
            printed = self.run(client, 60 + 2 * seconds, preexec_fn=pinned(self.client_cpu))
        return json.loads(printed)

    def probe(self, name, command):
        """Checks that a server answers right, whatever it costs."""
        with self.server(name, command) as (port, _):
            for together in None, False, True:
                try:
                    peer = Peer(port)
                    peer.check_answers()
                    if together is not None:
                        peer.start_tls(self.certificate, together)
                        peer.check_answers()
                    peer.check_end()
                except (OSError, Failure) as error:
                    phase = "in plain text" if together is None else "with TLS"
                    phase += ", the ClientHello in one segment with STARTTLS" if together else ""
                    raise Failure(f"{phase}: {error}") from None


class Peer:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.tls = None

    def send(self, data):
        if self.tls:
            self.tls.write(data)
            data = self.outgoing.read()
        self.socket.sendall(data)

    def receive_some(self):
        if not self.tls:
            return self.socket.recv(65536)
        while True:
            try:
                return self.tls.read(65536)
            except ssl.SSLWantReadError:
                self.feed()

    def feed(self):
        data = self.socket.recv(65536)
        self.incoming.write(data) if data else self.incoming.write_eof()

    def expect(self, what, answer, ignored=0):
        """Compares what comes with `answer`, but for its first `ignored` bytes."""
        received = bytearray()
        while len(received) < ignored + len(answer):
            more = self.receive_some()
            if not more:
                raise Failure(f"{what}: the connection ended after {len(received)} bytes")
            received += more
        if received[ignored:] != answer:
            raise Failure(f"{what} is answered with {len(received)} bytes that end in {bytes(received[-32:])!r}")

    def check_answers(self):
        chance = random.Random(1)
        for size in 1, 64, 5000, 70000:
            data = chance.randbytes(size)
            self.send(b"ECHO %d\n%b" % (size, data))
            self.expect(f"ECHO {size}", data)
        for size in 1, 70000, MIB:
            self.send(b"SINK %d\n%bPING\n" % (size, chance.randbytes(size)))
            self.expect(f"SINK {size} and PING", b"OK\nPONG\n")
            for line in f"SOURCE {size}", f"SOURCE {size} 1000":
                self.send(line.encode() + b"\nPING\n")
                self.expect(line + " and PING", b"PONG\n", ignored=size)
        for piece in b"EC", b"HO 5\n", b"hel", b"lo":
            self.send(piece)
        self.expect("ECHO 5 in four pieces", b"hello")
        self.send(b"PING\nECHO 3\nabcPING\nSINK 2\nzzPING\n")
        self.expect("a pipeline of five", b"PONG\nabcPONG\nOK\nPONG\n")

    def start_tls(self, certificate, together):
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=certificate)
        tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        line = b"STARTTLS\n"
        if not together:
            self.socket.sendall(line)
            line = b""
        over = False
        while not over:
            try:
                tls.do_handshake()
                over = True
            except ssl.SSLWantReadError:
                pass
            self.socket.sendall(line + self.outgoing.read())
            line = b""
            if not over:
                self.feed()
        self.tls = tls

    def check_end(self):
        self.send(b"QUIT\n")
        if self.receive_some() != b"":
            raise Failure("QUIT is answered")
        self.socket.close()


def rounded(value):
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else f"{value:g}"


def summarize(results, servers, labels):
    """A row for each work: its label, what it costs by hand, and a ratio for each other server."""
    rows = []
    for work, label in labels.items():
        costs = {name: [r["cost"] for r in results if r["work"] == work and r["server"] == name] for name in servers}
        unit = next(r["unit"] for r in results if r["work"] == work)
        ratios = {}
        for name in servers:
            if name != REFERENCE and min(costs[REFERENCE]) > 0:
                ratios[name] = statistics.median(a / b for a, b in zip(costs[name], costs[REFERENCE]))
        rows.append((label, f"{rounded(statistics.median(costs[REFERENCE]))} {unit}", ratios))
    return rows


def table(rows, others, note):
    lines = ["| work | " + " | ".join([REFERENCE, *others]) + " |", "|---|" + "---|" * (1 + len(others))]
    for label, absolute, ratios in rows:
        cells = [f"{ratios[name]:.2f} x" if name in ratios else "-" for name in others]
        lines.append("| " + " | ".join([label, absolute, *cells]) + " |")
    return "\n".join([*lines, "", note, ""])


def cpu_model():
    with contextlib.suppress(OSError, StopIteration):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.machine()


def congestion_control():
    """What TCP sends by. BBR paces its segments, those to the machine itself too, with a timer for each: who sends more
    than one at a time pays for that, up to half of the CPU time."""
    with contextlib.suppress(OSError):
        return pathlib.Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    return "unknown"


def raise_descriptor_limit(idle):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < idle + 100:
        raise Failure(f"a process may open {hard} files here, too few for --idle {idle}; give a smaller one")


def parse_arguments():
    root = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement, after its warm-up")
    parser.add_argument("--idle", type=int, default=500, metavar="N", help="idle connections, where there are any")
    parser.add_argument("--only", metavar="WORK,...", help="of " + ", ".join(works(0)))
    parser.add_argument(
        "--server", action="append", default=[], metavar="NAME=COMMAND",
        help="one more server; it gets PORT CERTIFICATE KEY, where port 0 picks one, and prints \"listening on PORT\"",
    )
    parser.add_argument("--programs", type=pathlib.Path, default=root / "build/bench/tests/bench", metavar="DIRECTORY")
    parser.add_argument("--output", type=pathlib.Path, default="bench.svg", metavar="FILE.svg",
                        help="the plot; the table (.md) and all results (.jsonl) are put beside it")
    given = parser.parse_args()
    if given.rounds < 1 or given.seconds <= 0 or given.idle < 1:
        parser.error("rounds, seconds and idle are greater than zero")
    all_works = works(given.idle)
    chosen = given.only.split(",") if given.only else list(all_works)
    for name in chosen:
        if name not in all_works:
            parser.error(f"there is no work {name}; see --help")
    given.works = {name: all_works[name] for name in chosen}
    given.servers = {name: [str(given.programs / program), *layer] for name, (program, *layer) in PROGRAMS.items()}
    for server in given.server:
        name, _, command = server.partition("=")
        if not command:
            parser.error("--server is NAME=COMMAND")
        given.servers[name] = shlex.split(command)
    return given


def main():
    given = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended
    raise_descriptor_limit(given.idle)
    names = list(given.servers)
    results = []
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(given.programs, directory)
        for name, command in given.servers.items():
            bench.probe(name, command)
        for number in range(given.rounds):
            print(f"round {number + 1} of {given.rounds}", file=sys.stderr, flush=True)
            for work, (label, arguments) in given.works.items():
                first = number % len(names)
                for name in names[first:] + names[:first]:
                    result = bench.measure(name, given.servers[name], arguments, given.seconds)
                    results.append({**result, "work": work, "server": name, "round": number})
    others = [name for name in names if name != REFERENCE]
    rows = summarize(results, names, {work: label for work, (label, _) in given.works.items()})
    openssl = " ".join(Bench.run(["openssl", "version"], 60).split()[:2])
    note = (f"Server CPU time and memory, less is better; x is relative to the server by hand, the median of "
            f"{given.rounds} rounds. {cpu_model()}, {openssl}, TCP by {congestion_control()}.")
    text = table(rows, others, note)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.with_suffix(".jsonl").write_text("".join(json.dumps(result) + "\n" for result in results))
    given.output.with_suffix(".md").write_text(text)
    given.output.with_suffix(".svg").write_text(plot.svg(rows, others, note))
    print(text)
    print(f"The plot is {given.output.with_suffix('.svg')}", file=sys.stderr)


try:
    main()
except Failure as failure:
    sys.exit(f"compare.py: {failure}")
except KeyboardInterrupt:
    sys.exit(130)
