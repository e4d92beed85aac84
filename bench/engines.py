"""Several engines behind the appliance, and behind nginx in the same run.

    python -m bench.engines [--only streams|tail]

    streams   4 backends, 256 streams at a time over them all: events per core second, time to the first
              token, memory, bad responses. The backends are bench/upstream.c: only the proxy in front of them
              is measured.
    tail      4 real llama-servers with 2 slots each on a tiny model, one of them four times slower than the
              others; lengths are skewed, arrivals are random and do not wait for responses. The same
              arrivals for every strategy and for nginx `least_conn`.

For `tail` the servers are slowed down by stopping and continuing them in turn, so that they, and not the two
cores of a small machine, are what is scarce. Bounded in count and time; loopback only.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import aiohttp

from bench.__main__ import (
    LOAD_CPU,
    SUBJECT_CPU,
    Bench,
    cpu_s,
    free_port,
    memory_mb,
    running_program,
    say,
    wait_for_port,
)
from tests.tools import tiny_models

TOOL = Path(__file__).parents[1] / "tests" / "tools" / "llama-server"
BACKENDS, STREAMS, SLOTS = 4, 256, 2
SPEEDS = (0.30, 0.30, 0.30, 0.075)  # parts of a core
CYCLE_S = 0.04  # of stopping and continuing once
LOAD = 0.85  # of what they can do
TOKENS, SIGMA, MAX_TOKENS = 16, 0.9, 150
CLIENT_TIMEOUT = aiohttp.ClientTimeout(total=60)
STRATEGIES = (
    "least_busy",
    "power_of_two",
    "least_connections",
    "prefix_affinity",
    "least_response_time",
    "round_robin",
)


def nginx_conf(folder: Path, port: int, upstreams: list[int], *, keeps: bool) -> str:
    """Return a configuration of nginx.

    With `keeps` connections to the upstreams stay open. llama-server closes them after a hundred requests or
    five idle seconds, which nginx takes for a failure; without it, and with max_fails=0, it does its best.
    """
    servers = " ".join(f"server 127.0.0.1:{one} max_fails=0;" for one in upstreams)
    keepalive = "keepalive 512; keepalive_requests 1000000000;" if keeps else ""
    return f"""
        worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.err; daemon off;
        worker_rlimit_nofile 16384;
        events {{ worker_connections 8192; }}
        http {{ access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
          fastcgi_temp_path {folder}/f;
          uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; keepalive_requests 1000000000;
          upstream up {{ least_conn; {servers} {keepalive} }}
          server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://up;
            proxy_http_version 1.1;
            proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 300s; }} }} }}"""


class Engines:
    """The subjects, each in front of the same backends."""

    def __init__(self, folder: Path) -> None:
        self.dir = folder

    @contextmanager
    def nginx(self, upstreams: list[int], *, keeps: bool = True) -> Iterator[tuple[int, int]]:
        port = free_port()
        conf = self.dir / "nginx.conf"
        conf.write_text(nginx_conf(self.dir, port, upstreams, keeps=keeps))
        with running_program(
            ["nginx", "-c", str(conf), "-p", str(self.dir)], SUBJECT_CPU, stderr=subprocess.DEVNULL
        ) as process:
            wait_for_port(port)
            yield process.pid, port

    @contextmanager
    def appliance(
        self, upstreams: list[int], *, strategy: str, kind: str, model: str
    ) -> Iterator[tuple[int, int]]:
        port = free_port()
        config = self.dir / "backends.json"
        config.write_text(
            json.dumps(
                {
                    "backends": [
                        {"url": f"http://127.0.0.1:{one}", "name": f"b{n}", "kind": kind, "models": [model]}
                        for n, one in enumerate(upstreams)
                    ]
                }
            )
        )
        environ = {
            **os.environ,
            "CONFIG_PATH": str(config),
            "LB_STRATEGY": strategy,
            "PROXY_PORT": str(port),
            "CONTROL_PORT": str(free_port()),
            "STATE_DIR": str(self.dir / "state"),
            "LOG_FORMAT": "json",
            "MACHINE_ID_PATH": str(self.dir / "machine-id"),
            "NAT_REDIRECT": "off",
            "QUEUE_LIMIT": "5000",
            "QUEUE_TIMEOUT_S": "300",
        }
        with (
            open(self.dir / "appliance.log", "w") as out,
            running_program(
                [sys.executable, "-m", "appliance", "serve"], SUBJECT_CPU, env=environ, stdout=out, stderr=out
            ) as process,
        ):
            wait_for_port(port, 20)
            time.sleep(1.5)
            yield process.pid, port


# ---- streams


def measure_streams(bench: Bench) -> None:
    engines = Engines(bench.dir)
    print(f"\n{BACKENDS} backends, {STREAMS} streams at a time\n")
    print(f"| | events per core second | first token p50 | p99 | memory | bad responses |\n|{' --- |' * 6}")
    for what, pace_ms in (("as fast as they come", 0), ("one every 10 ms", 10)):
        with ExitStack() as stack:
            ports = [
                stack.enter_context(bench.upstream(events=100, pace_ms=pace_ms)) for _ in range(BACKENDS)
            ]
            for subject in ("nginx", "appliance"):
                opened = (
                    engines.nginx(ports)
                    if subject == "nginx"
                    else engines.appliance(ports, strategy="least_busy", kind="openai", model="m")
                )
                with opened as (pid, port):
                    bench.load("stream", port, STREAMS, 1, "stream.json")
                    rows = []
                    for _ in range(bench.rounds):
                        before = cpu_s(pid)
                        found = bench.load("stream", port, STREAMS, bench.round_s, "stream.json")
                        rows.append(
                            (
                                found["events"] / max(cpu_s(pid) - before, 1e-9),
                                found["ttft_p50_ms"],
                                found["ttft_p99_ms"],
                                found["bad"],
                            )
                        )
                    middle = sorted(rows)[len(rows) // 2]
                    print(
                        f"| {subject}, {what} | {middle[0]:,.0f} | {middle[1]:.1f} ms | {middle[2]:.1f} ms | "
                        f"{memory_mb(pid):.0f} MB | {sum(int(row[3]) for row in rows)} |",
                        flush=True,
                    )


# ---- tail


class Throttled:
    """Processes that get only a part of a core: continued and stopped in turn."""

    def __init__(self, parts: dict[int, float]) -> None:
        self._parts = parts
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._throttle, args=(pid, part), daemon=True)
            for pid, part in parts.items()
        ]

    def __enter__(self) -> "Throttled":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for pid in self._parts:
            os.kill(pid, signal.SIGCONT)

    def _throttle(self, pid: int, part: float) -> None:
        while not self._stop.is_set():
            os.kill(pid, signal.SIGCONT)
            time.sleep(CYCLE_S * part)
            os.kill(pid, signal.SIGSTOP)
            time.sleep(CYCLE_S * (1 - part))


@contextmanager
def llama_servers(folder: Path) -> Iterator[tuple[list[int], dict[int, float]]]:
    """Run the servers; yield (ports, part of a core by process)."""
    binary = subprocess.run([str(TOOL)], check=True, capture_output=True, text=True).stdout.strip()
    model = tiny_models.ensure(tiny_models.cached_folder()) / "tiny-chat.gguf"
    with ExitStack() as stack:
        ports, parts = [], {}
        for number, part in enumerate(SPEEDS):
            port = free_port()
            out = stack.enter_context(open(folder / f"llama-{number}.log", "w"))
            process = stack.enter_context(
                running_program(
                    [
                        binary,
                        "-m",
                        str(model),
                        "--alias",
                        "tiny",
                        "--host",
                        "127.0.0.1",
                        "--port",
                        str(port),
                        "-t",
                        "1",
                        "--parallel",
                        str(SLOTS),
                        "--no-kv-unified",
                        "--ctx-size",
                        str(SLOTS * 2048),
                        "--metrics",
                        "--slots",
                        "--jinja",
                    ],
                    f"{SUBJECT_CPU},{LOAD_CPU}",
                    stdout=out,
                    stderr=out,
                    env={**os.environ, "GGML_NO_BACKTRACE": "1"},
                )
            )
            ports.append(port)
            parts[process.pid] = part
        for port in ports:
            wait_for_port(port, 20)
        time.sleep(1)
        yield ports, parts


def draw_lengths(rng: random.Random, count: int) -> list[int]:
    return [
        max(4, min(MAX_TOKENS, round(TOKENS * rng.lognormvariate(-SIGMA * SIGMA / 2, SIGMA))))
        for _ in range(count)
    ]


async def send_chat(session: aiohttp.ClientSession, port: int, tokens: int) -> tuple[bool, str]:
    """Request so many tokens; return (whether the response came whole, the backend)."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
    }
    async with session.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body) as response:
        data = await response.read()
        return response.status == 200 and b"data: [DONE]" in data, response.headers.get(
            "x-appliance-receipt", ""
        ).partition(";")[0]


async def measure_capacity(port: int, seconds: float) -> float:
    """Return the requests a second that the servers do when they are always full."""
    rng, done, ends_s = random.Random(0), 0, time.monotonic() + seconds

    async def worker(session: aiohttp.ClientSession) -> None:
        nonlocal done
        while time.monotonic() < ends_s:
            is_good, _ = await send_chat(session, port, draw_lengths(rng, 1)[0])
            if not is_good:
                raise SystemExit("a response failed while the servers' capacity was measured")
            done += time.monotonic() < ends_s

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=CLIENT_TIMEOUT
    ) as session:
        await asyncio.gather(
            *(worker(session) for _ in range(8 * SLOTS * len(SPEEDS)))
        )  # the slow one must not be all that is waited for
    return done / seconds


async def send_arrivals(port: int, plan: list[tuple[float, int]]) -> tuple[list[float], int, Counter[str]]:
    """Send the plan's requests at their moments.

    Returns:
        (seconds of each, how many failed, requests by backend)
    """
    took: list[float] = []
    bad, backends = 0, Counter[str]()

    async def request(at_s: float, tokens: int) -> None:
        nonlocal bad
        try:
            is_good, backend = await send_chat(session, port, tokens)
        except (aiohttp.ClientError, TimeoutError):
            is_good, backend = False, ""
        bad += not is_good
        backends[backend] += 1
        took.append(time.monotonic() - started_s - at_s)

    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=CLIENT_TIMEOUT) as session,
        asyncio.TaskGroup() as group,
    ):
        started_s = time.monotonic()
        for at_s, tokens in plan:
            await asyncio.sleep(max(0.0, started_s + at_s - time.monotonic()))
            group.create_task(request(at_s, tokens))
    return took, bad, backends


def plan_arrivals(rate: float, seconds: float, seed: int) -> list[tuple[float, int]]:
    rng, at_s, plan = random.Random(seed), 0.0, []
    while (at_s := at_s + rng.expovariate(rate)) < seconds:
        plan.append((at_s, draw_lengths(rng, 1)[0]))
    return plan


def measure_tail(bench: Bench, *, seconds: float, rounds: int) -> None:
    engines = Engines(bench.dir)
    with llama_servers(bench.dir) as (ports, parts), Throttled(parts):
        with engines.nginx(ports, keeps=False) as (_, port):
            rate = LOAD * asyncio.run(measure_capacity(port, 12))
        subjects = ["nginx least_conn", *STRATEGIES]
        results: dict[str, list[float]] = {subject: [] for subject in subjects}
        failed, shares = Counter[str](), {subject: Counter[str]() for subject in subjects}
        for number in range(rounds):
            plan = plan_arrivals(rate, seconds, seed=number + 1)
            mean_tokens = sum(tokens for _, tokens in plan) / len(plan)
            say(
                f"round {number + 1} of {rounds}: {len(plan)} requests at {rate:.1f} a second, "
                f"{mean_tokens:.0f} tokens on average"
            )
            for subject in subjects if number % 2 == 0 else subjects[::-1]:
                opened = (
                    engines.nginx(ports, keeps=False)
                    if subject.startswith("nginx")
                    else engines.appliance(ports, strategy=subject, kind="llamacpp", model="tiny")
                )
                with opened as (_, port):
                    took, bad, backends = asyncio.run(send_arrivals(port, plan))
                results[subject] += took
                failed[subject] += bad
                shares[subject] += backends
                say(f"    {subject}: p99 {sorted(took)[int(len(took) * 0.99)]:.2f} s, {bad} failed")
    print(
        f"\n{len(SPEEDS)} llama-servers of {SLOTS} slots, one four times slower, "
        f"at {LOAD:.0%} of what they can do\n"
    )
    print(f"| | p50 | p90 | p99 | longest | failed | to the slow one |\n|{' --- |' * 7}")
    for subject, took in results.items():
        took.sort()
        slow = shares[subject]["backend=b3"] / max(1, sum(shares[subject].values()))
        p50, p90, p99 = (took[int(len(took) * part)] for part in (0.5, 0.9, 0.99))
        print(
            f"| {subject} | {p50:.2f} s | {p90:.2f} s | {p99:.2f} s | {took[-1]:.2f} s | {failed[subject]} | "
            f"{'' if subject.startswith('nginx') else f'{slow:.0%}'} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.engines", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    parser.add_argument("--only", choices=("streams", "tail"))
    parser.add_argument(
        "--seconds", type=float, default=20, help="of arrivals, per subject and round of `tail`"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of `tail`")
    arguments = parser.parse_args()
    for tool in ("nginx", "gcc", "taskset"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is missing; `make bench` installs it")
    bench = Bench(arguments.quick)
    try:
        if arguments.only != "tail":
            measure_streams(bench)
        if arguments.only != "streams":
            measure_tail(
                bench,
                seconds=5 if arguments.quick else arguments.seconds,
                rounds=1 if arguments.quick else arguments.rounds,
            )
    finally:
        shutil.rmtree(bench.dir, ignore_errors=True)


if __name__ == "__main__":
    main()
