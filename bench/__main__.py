"""Measure the appliance with everything switched on beside nginx as a plain reverse proxy, over the same upstream.

One core is the subject's, the other one is for upstream and load. Figures per core are per second of the subject's own
processor time, as the kernel counts it. Bounded in count and time; loopback only.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SUBJECT_CPU, LOAD_CPU = "0", "1"
PORT_POLL_S = 0.02
STOP_TIMEOUT_S = 10  # for a program to exit
STARTS = 5  # of the appliance, for the time to its first response
Subject = tuple[int, int]  # pid, port
CHAT = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What does the fox do?"},
    ],
    "temperature": 0.7,
    "max_tokens": 64,
}


def free_port() -> int:
    """Return a port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def process_tree(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += process_tree(int(child))
    return found


def cpu_s(pid: int) -> float:
    """Return the processor time of a process and its descendants, seconds.

    Source:
        clock_getcpuclockid(3) of Linux: the clock of a process is its inverted id, shifted by 3, with 2 for all
        the time that was scheduled. It counts nanoseconds, where /proc counts hundredths of a second.
    """
    return sum(time.clock_gettime(~one << 3 | 2) for one in process_tree(pid))


def memory_mb(pid: int) -> float:
    """Return the memory of a process and its descendants, MB; shared pages count by their share."""
    total = 0
    for one in process_tree(pid):
        for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def wait_for_port(port: int, timeout_s: float = 10) -> None:
    """Wait until something listens on a port."""
    for _ in range(int(timeout_s / PORT_POLL_S)):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(PORT_POLL_S)
    raise SystemExit(f"nothing listens on {port}")


@contextmanager
def running_program(command: list[str], cpu: str, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program on one core; it is stopped at the end."""
    process = subprocess.Popen(["taskset", "-c", cpu, *command], **more)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Bench:
    """All measurements: a folder, the compiled helpers, and the results by name and subject."""

    def __init__(self, quick: bool) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="bench-"))
        self.round_s = 3 if quick else 8
        self.rounds = 1 if quick else 3
        self.results: dict[str, dict[str, float]] = {}
        for name in ("upstream", "load"):
            subprocess.run(["gcc", "-O2", "-w", "-o", self.dir / name, HERE / f"{name}.c"], check=True)
        (self.dir / "chat.json").write_text(json.dumps(CHAT))
        (self.dir / "stream.json").write_text(json.dumps({**CHAT, "stream": True}))

    @contextmanager
    def upstream(self, events: int = 200, pace_ms: int = 0) -> Iterator[int]:
        """Run the upstream; yield its port. A stream has `events` events, `pace_ms` apart."""
        port = free_port()
        with running_program(
            [str(self.dir / "upstream"), str(port), str(events), str(pace_ms)],
            LOAD_CPU,
            stdout=subprocess.DEVNULL,
        ):
            wait_for_port(port)
            yield port

    @contextmanager
    def nginx(self, upstream: int) -> Iterator[Subject]:
        """Run nginx before the upstream's port."""
        port = free_port()
        (self.dir / "nginx.conf").write_text(f"""
            worker_processes 1; pid {self.dir}/nginx.pid; error_log {self.dir}/nginx.err; daemon off; worker_rlimit_nofile 16384;
            events {{ worker_connections 8192; }}
            http {{ access_log off; client_body_temp_path {self.dir}/b; proxy_temp_path {self.dir}/p; fastcgi_temp_path {self.dir}/f;
              uwsgi_temp_path {self.dir}/u; scgi_temp_path {self.dir}/s; keepalive_requests 1000000000;
              upstream up {{ server 127.0.0.1:{upstream}; keepalive 1200; keepalive_requests 1000000000; }}
              server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://up; proxy_http_version 1.1;
                proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 300s; }} }} }}""")
        with running_program(
            ["nginx", "-c", str(self.dir / "nginx.conf"), "-p", str(self.dir)],
            SUBJECT_CPU,
            stderr=subprocess.DEVNULL,
        ) as process:
            wait_for_port(port)
            yield process.pid, port

    @contextmanager
    def appliance(self, upstream: int) -> Iterator[Subject]:
        """Run the appliance before the upstream's port."""
        port = free_port()
        environ = {
            **os.environ,
            "NOVITA_API_KEY": "sk_bench_000000000",
            "NOVITA_OPENAI_ENDPOINTS": f"http://127.0.0.1:{upstream}/v1",
            "PROXY_PORT": str(port),
            "CONTROL_PORT": str(free_port()),
            "STATE_DIR": str(self.dir / "state"),
            "LOG_FORMAT": "json",
            "MACHINE_ID_PATH": str(self.dir / "machine-id"),
            "NAT_REDIRECT": "off",
            "UPSTREAM_MAX_CONNECTIONS": "4096",
        }
        with (
            open(self.dir / "appliance.log", "w") as out,
            running_program(
                [sys.executable, "-m", "appliance", "serve"], SUBJECT_CPU, env=environ, stdout=out, stderr=out
            ) as process,
        ):
            wait_for_port(port, 20)
            time.sleep(1)
            yield process.pid, port

    def load(
        self, mode: str, port: int, number: int, seconds: float, body: str = "chat.json"
    ) -> dict[str, float]:
        """Put load on a port; return what the load program measured.

        Args:
            mode: closed (`number` connections), rate (`number` a second) or stream (`number` streams).
            port: Of the subject, or of the upstream itself.
            number: See mode.
            seconds: How long.
            body: Name of the file with the request's body.
        """
        done = subprocess.run(
            [
                "taskset",
                "-c",
                LOAD_CPU,
                str(self.dir / "load"),
                mode,
                str(port),
                str(number),
                str(seconds),
                str(self.dir / body),
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=seconds + 60,
        )
        found = {k: float(v) for k, _, v in (pair.partition("=") for pair in done.stdout.split())}
        if found["bad"]:
            print(f"    {int(found['bad'])} bad responses: {done.stderr[:300]}")
        return found

    def record(self, subject: str, name: str, value: float) -> None:
        """Record a result."""
        self.results.setdefault(name, {})[subject] = value

    def per_core(self, mode: str, pid: int, port: int, number: int, body: str, figure: str) -> float:
        """Return `figure` per second of the subject's processor time, the median of the rounds."""
        self.load(mode, port, number, 1, body)
        values = []
        for _ in range(self.rounds):
            before = cpu_s(pid)
            found = self.load(mode, port, number, self.round_s, body)
            values.append(found[figure] / max(cpu_s(pid) - before, 1e-9))
        return sorted(values)[len(values) // 2]

    def subjects(self, upstream: int) -> Iterator[tuple[str, AbstractContextManager[Subject]]]:
        """Yield what is compared, by name."""
        yield "nginx", self.nginx(upstream)
        yield "appliance", self.appliance(upstream)

    def run(self) -> None:
        """Measure everything."""
        self.requests_and_streams()
        self.open_streams()
        self.paced_streams()
        self.start_up()

    def requests_and_streams(self) -> None:
        """Measure throughput per core, latency at a fixed rate, and memory."""
        with self.upstream() as upstream:
            for subject, opened in self.subjects(upstream):
                with opened as (pid, port):
                    say(f"{subject}: requests and streams")
                    self.record(subject, "memory idle, MB", memory_mb(pid))
                    for number in (64, 1024):
                        self.record(
                            subject,
                            f"requests per core second, {number} connections",
                            self.per_core("closed", pid, port, number, "chat.json", "done"),
                        )
                    self.record(
                        subject,
                        "stream events per core second, 64 streams",
                        self.per_core("stream", pid, port, 64, "stream.json", "events"),
                    )
                    rate = self.load("rate", port, 500, self.round_s)
                    self.record(subject, "p50 at 500/s, ms", rate["p50_ms"])
                    self.record(subject, "p99 at 500/s, ms", rate["p99_ms"])
                    if subject == "appliance":
                        self.memory_growth(pid, port)
            rate = self.load("rate", upstream, 500, self.round_s)
            self.record("direct", "p50 at 500/s, ms", rate["p50_ms"])
            self.record("direct", "p99 at 500/s, ms", rate["p99_ms"])

    def memory_growth(self, pid: int, port: int) -> None:
        """Measure the appliance's memory after many requests, twice."""
        done, marks = 0.0, []
        for _ in range(2):
            goal = done + 50_000
            while done < goal:
                done += self.load("closed", port, 64, 5)["done"]
            marks.append(memory_mb(pid))
            say(f"appliance: {marks[-1]:.1f} MB after {done:.0f} requests")
        self.record("appliance", "memory after 50,000 more requests, MB", marks[0])
        self.record("appliance", "memory after 100,000 more requests, MB", marks[1])

    def open_streams(self) -> None:
        """Measure the memory of streams that are open."""
        with self.upstream(events=100, pace_ms=100) as upstream:
            for subject, opened in self.subjects(upstream):
                with opened as (pid, port):
                    say(f"{subject}: open streams")
                    before = memory_mb(pid)
                    load = subprocess.Popen(
                        [
                            "taskset",
                            "-c",
                            LOAD_CPU,
                            str(self.dir / "load"),
                            "hold",
                            str(port),
                            "1000",
                            "8",
                            str(self.dir / "stream.json"),
                        ],
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                    time.sleep(5)
                    self.record(subject, "memory per 1,000 open streams, MB", memory_mb(pid) - before)
                    load.communicate(timeout=60)

    def paced_streams(self) -> None:
        """Measure the time to the first token, and the processor time of events that come one by one."""
        with self.upstream(events=5, pace_ms=10) as upstream:
            for subject, opened in self.subjects(upstream):
                with opened as (pid, port):
                    say(f"{subject}: time to first token, paced events")
                    self.load("stream", port, 8, 1, "stream.json")
                    found = self.load("stream", port, 8, 4, "stream.json")
                    self.record(subject, "time to first token, 8 streams, p50, ms", found["ttft_p50_ms"])
                    self.record(subject, "time to first token, 8 streams, p99, ms", found["ttft_p99_ms"])
                    self.record(
                        subject,
                        "paced events per core second, 256 streams",
                        self.per_core("stream", pid, port, 256, "stream.json", "events"),
                    )
            found = self.load("stream", upstream, 8, 4, "stream.json")
            self.record("direct", "time to first token, 8 streams, p50, ms", found["ttft_p50_ms"])
            self.record("direct", "time to first token, 8 streams, p99, ms", found["ttft_p99_ms"])

    def start_up(self) -> None:
        """Measure the time from the start of the appliance to its first response."""
        say("appliance: start")
        times = []
        for _ in range(STARTS):
            port = free_port()
            environ = {
                **os.environ,
                "PROXY_PORT": str(port),
                "CONTROL_PORT": str(free_port()),
                "STATE_DIR": str(self.dir / "state"),
                "MACHINE_ID_PATH": str(self.dir / "machine-id"),
                "LOG_FORMAT": "json",
                "NAT_REDIRECT": "off",
            }
            body = b'{"messages":[{"role":"user","content":"Hello!"}]}'
            request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (
                len(body),
                body,
            )
            started_s = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, "-m", "appliance", "serve"],
                env=environ,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                while time.monotonic() - started_s < 15:
                    try:
                        with socket.create_connection(("127.0.0.1", port), 1) as one:
                            one.sendall(request)
                            if one.recv(15).startswith(b"HTTP/1.1 200"):
                                times.append(time.monotonic() - started_s)
                                break
                    except OSError:
                        pass
                    time.sleep(0.005)
            finally:
                process.terminate()
                process.wait(10)
        self.record("appliance", "first response after start, s", sorted(times)[len(times) // 2])

    def show(self) -> None:
        """Print the results as a table, and write them to a file."""
        print(
            f"\n{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores, "
            "one for the subject\n"
        )
        print(f"{'':52}{'nginx':>12}{'appliance':>12}{'direct':>10}{'ratio':>8}")
        for name, row in self.results.items():
            ratio = (
                row["appliance"] / row["nginx"]
                if {"appliance", "nginx"} <= set(row) and row["nginx"]
                else None
            )
            cells = "".join(
                f"{row[s]:>{w}.{2 if row[s] < 100 else 0}f}" if s in row else " " * w
                for s, w in (("nginx", 12), ("appliance", 12), ("direct", 10))
            )
            print(f"{name:52}{cells}{'' if ratio is None else f'{ratio:>8.2f}'}")
        folder = HERE / "results"
        folder.mkdir(exist_ok=True)
        (folder / f"{time.strftime('%Y%m%d-%H%M%S')}.json").write_text(json.dumps(self.results, indent=1))


def say(text: str) -> None:
    """Print what is being done."""
    print(f"  {text}", flush=True)


def main() -> None:
    """Run all measurements, and print the results."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure the appliance beside nginx."
    )
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    arguments = parser.parse_args()
    for tool in ("nginx", "gcc", "taskset"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is missing; `make bench` installs it")
    bench = Bench(arguments.quick)
    try:
        bench.run()
        bench.show()
    finally:
        shutil.rmtree(bench.dir, ignore_errors=True)


if __name__ == "__main__":
    main()
