"""The model manager beside llama-server alone, in one run.

`python -m bench.models [--only loaded|cold|memory|replay] [--quick]`

    loaded   a model that is loaded: the same llama-server process, requested at its own port and through the
             appliance in turn: whole responses and time to the first event, one at a time and with all slots busy
    cold     a model that is not: from the client's first byte to the start of the llama-server process, and
             from its being ready to the first event; beside it the same command line started by hand and
             requested the moment that it is ready
    memory   PSS of the appliance without a table, with 1 and with 100 models in it, none loaded; what a lease,
             a run of the scheduler and a reading of all models cost with 100 models (in process)
    replay   A-B-A-B: requests for two models in turn, at fixed times, with one loaded at a time: swaps and
             waits by MODEL_SWAP_WAIT_S

The appliance is a process of its own with everything switched on; llama-servers are real, their models tiny.
bench/spawned.c wraps llama-server and notes the clock as its first act: that is what "spawned" means here.
Ready is when /health says so to a query each millisecond. Nothing is bound to a core. Bounded in count and
time; loopback only.
"""

import argparse
import asyncio
import http.client
import json
import os
import platform
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from appliance.app import running
from appliance.models.manager.manager import ModelManager
from appliance.models.scheduler.scheduler import next_step
from appliance.models.scheduler.state import ModelFacts, QueueState, ResidentRunner, SchedulerState
from appliance.settings import load_or_raise
from bench.__main__ import HERE, free_port, memory_mb, running_program, say, wait_for_port
from tests.tools import tiny_models

TOOL = Path(__file__).parents[1] / "tests" / "tools" / "llama-server"
SLOTS, TOKENS = 4, 16
PARTS = ("loaded", "cold", "memory", "replay")
EVERY_CORE = ",".join(map(str, sorted(os.sched_getaffinity(0))))
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Counts:
    """How much is measured: requests of each kind, cold starts, starts for memory, calls, seconds, rate."""

    alone: int = 200
    busy: int = 100
    cold_starts: int = 15
    starts: int = 3
    calls: int = 2000
    seconds: float = 10.0


QUICK = Counts(alone=10, busy=5, cold_starts=2, starts=1, calls=100, seconds=2.0)


# ---- requests


@dataclass
class Client:
    """One connection.

    It is dialled anew, outside of what is timed, before each stream and each 50 requests: llama-server ends a
    connection after a stream, and after 100 requests.
    """

    port: int
    kept: socket.socket | None = None
    sent: int = 0

    def send(self, body: bytes, path: str = "/v1/chat/completions") -> tuple[float, float, float]:
        """Send one request; return (sent, first event or byte, end) in seconds of the monotonic clock."""
        if self.kept is None or self.sent >= 50 or b'"stream": true' in body:
            self.close()
            self.kept = socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S)
            self.kept.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sent = 0
        self.sent += 1
        head = (
            b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % (path.encode(), len(body))
        )
        sent_s, first_s, data = time.monotonic(), 0.0, b""
        self.kept.sendall(head + body)
        while True:
            piece = self.kept.recv(65536)
            if not piece:
                raise SystemExit(f"the connection ended in the middle of a response: {data[-300:]!r}")
            data += piece
            headers, found, rest = data.partition(b"\r\n\r\n")
            if not first_s and (b"data: {" in rest or (found and rest.startswith(b"{"))):
                first_s = time.monotonic()
            if found and _is_whole(headers.lower(), rest):
                break
        ended_s = time.monotonic()
        if not data.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"a response failed: {data[:600]!r}")
        return sent_s, first_s or ended_s, ended_s

    def close(self) -> None:
        if self.kept is not None:
            self.kept.close()


def _is_whole(headers: bytes, body: bytes) -> bool:
    if b"transfer-encoding: chunked" in headers:
        return body.endswith(b"0\r\n\r\n")
    length = headers.partition(b"content-length:")[2].partition(b"\r\n")[0].strip()
    return len(body) >= int(length or 0)


def chat(model: str, *, stream: bool, tokens: int = TOKENS) -> bytes:
    return json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": stream,
        }
    ).encode()


def is_healthy(port: int) -> bool:
    one = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        one.request("GET", "/health")
        return one.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        one.close()


def wait_healthy(port: int) -> float:
    """Query each millisecond; return the time at which it was ready."""
    until_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until_s:
        if is_healthy(port):
            return time.monotonic()
        time.sleep(0.001)
    raise SystemExit(f"the llama-server on {port} was not ready within {TIMEOUT_S:g} s")


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


# ---- the subjects


@dataclass
class Subject:
    """An appliance that runs. `notes`: what bench/spawned.c writes."""

    pid: int
    port: int
    notes: Path

    def spawned(self) -> list[tuple[float, int, int]]:
        """Return (moment, port, process id) of each llama-server that was started, oldest first."""
        rows = [line.split() for line in self.notes.read_text().splitlines()] if self.notes.exists() else []
        return [(float(row[0]), int(row[1]), int(row[2])) for row in rows if len(row) == 3]

    def send(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        one = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        try:
            one.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
            return json.loads(one.getresponse().read())
        finally:
            one.close()

    def unload(self, model: str) -> None:
        """Unload a model, and wait until it is stopped."""
        self.send("/api/generate", {"model": model, "keep_alive": 0, "stream": False})
        until_s = time.monotonic() + TIMEOUT_S
        while self.send("/api/ps")["models"]:
            if time.monotonic() > until_s:
                raise SystemExit(f"{model} was not unloaded within {TIMEOUT_S:g} s")
            time.sleep(0.005)


@dataclass
class Setup:
    """Folder, llama-server and models of a run."""

    dir: Path
    server: str = ""
    model: Path = field(default_factory=Path)
    number: int = 0

    def prepare(self) -> None:
        self.server = subprocess.run([str(TOOL)], check=True, capture_output=True, text=True).stdout.strip()
        self.model = tiny_models.ensure(tiny_models.cached_folder()) / "tiny-chat.gguf"

    def wrapped(self, delay_ms: int) -> tuple[Path, Path]:
        """Build the wrapper of llama-server; return (it, its notes)."""
        self.number += 1
        made, notes = self.dir / f"server-{self.number}", self.dir / f"spawned-{self.number}"
        subprocess.run(
            [
                "gcc",
                "-O1",
                f'-DSERVER="{self.server}"',
                f'-DNOTES="{notes}"',
                f"-DDELAY_MS={delay_ms}",
                "-o",
                str(made),
                str(HERE / "spawned.c"),
            ],
            check=True,
        )
        return made, notes

    def table(self, names: list[str], *, max_models: int) -> Path:
        """Write a table of so many models, each with a file of its own."""
        models = {}
        for name in names:
            link = self.dir / f"{name}.gguf"
            if not link.exists():
                link.symlink_to(self.model)
            models[name] = {"model_path": str(link), "params": {"n_ctx": SLOTS * 2048, "n_gpu_layers": 0}}
        path = self.dir / f"table-{self.number}.json"
        path.write_text(
            json.dumps(
                {
                    "models": models,
                    "system": {
                        "max_concurrent_models": max_models,
                        "parallel_requests": SLOTS,
                        "cpu_threads": 1,
                        "min_vram_required": 200,
                    },
                }
            )
        )
        return path

    def environ(
        self, names: list[str], *, max_models: int = 3, delay_ms: int = 0
    ) -> tuple[dict[str, str], Path]:
        """Return (variables of an appliance with such a table, the notes)."""
        made, notes = self.wrapped(delay_ms)
        first = random.randrange(20_000, 29_900)
        named = (
            {"CONFIG_PATH": str(self.table(names, max_models=max_models)), "LLAMA_SERVER_PATH": str(made)}
            if names
            else {}
        )
        return {
            "PATH": os.environ["PATH"],
            "PROXY_PORT": str(free_port()),
            "CONTROL_PORT": str(free_port()),
            "STATE_DIR": str(self.dir / f"state-{self.number}"),
            "MACHINE_ID_PATH": str(self.dir / "machine-id"),
            "GPU_SPOOF_STATE_DIR": str(self.dir / "gpu"),
            "LOG_FORMAT": "json",
            "NAT_REDIRECT": "off",
            "MODEL_FIRST_PORT": str(first),
            "MODEL_LAST_PORT": str(first + 50),
            **named,
        }, notes

    @contextmanager
    def appliance(
        self, names: list[str], *, max_models: int = 3, delay_ms: int = 0, **more: str
    ) -> Iterator[Subject]:
        environ, notes = self.environ(names, max_models=max_models, delay_ms=delay_ms)
        port = int(environ["PROXY_PORT"])
        with (
            open(self.dir / f"appliance-{self.number}.log", "w") as out,
            running_program(
                [sys.executable, "-m", "appliance", "serve"],
                EVERY_CORE,
                env=environ | more,
                stdout=out,
                stderr=out,
            ) as process,
        ):
            wait_for_port(port, 20)
            yield Subject(process.pid, port, notes)


# ---- loaded


def loaded(setup: Setup, counts: Counts) -> None:
    found: dict[str, dict[str, list[float]]] = {}
    with setup.appliance(["a"]) as subject:
        Client(subject.port).send(chat("a", stream=True))
        ports = {"alone": subject.spawned()[-1][1], "appliance": subject.port}
        for stream in (False, True):
            what = "first event of a stream" if stream else "whole response"
            found[f"{what}, one at a time"] = in_turn(
                ports, chat("a", stream=stream), counts.alone, stream=stream
            )
            found[f"{what}, all {SLOTS} slots busy"] = all_busy(
                ports, chat("a", stream=stream), counts.busy, stream=stream
            )
    print(
        f"\nA loaded model: the same llama-server ({SLOTS} slots, {TOKENS} tokens per response), used directly and through the appliance, in turn\n"
    )
    print(
        f"| milliseconds | alone p50 | p99 | through the appliance p50 | p99 | more, p50 | p99 |\n|{' --- |' * 7}"
    )
    for name, rows in found.items():
        cells = [1000 * percentile(rows[who], part) for who in ("alone", "appliance") for part in (0.5, 0.99)]
        print(
            f"| {name} | {' | '.join(f'{cell:.2f}' for cell in cells)} | {cells[2] - cells[0]:+.2f} | {cells[3] - cells[1]:+.2f} |",
            flush=True,
        )


def in_turn(ports: dict[str, int], body: bytes, number: int, *, stream: bool) -> dict[str, list[float]]:
    """Send request by request; the subject that is first alternates."""
    clients = {who: Client(port) for who, port in ports.items()}
    took: dict[str, list[float]] = {who: [] for who in ports}
    for turn in range(number + 5):
        for who in list(ports) if turn % 2 else list(ports)[::-1]:
            sent_s, first_s, ended_s = clients[who].send(body)
            if turn >= 5:
                took[who].append((first_s if stream else ended_s) - sent_s)
    for client in clients.values():
        client.close()
    return took


def all_busy(ports: dict[str, int], body: bytes, number: int, *, stream: bool) -> dict[str, list[float]]:
    """Keep all slots busy: as many clients as slots, in blocks of ten requests a client, in turn."""
    took: dict[str, list[float]] = {who: [] for who in ports}

    def work(who: str) -> None:
        client = Client(ports[who])
        for _ in range(min(10, number)):
            sent_s, first_s, ended_s = client.send(body)
            took[who].append((first_s if stream else ended_s) - sent_s)
        client.close()

    for block in range(max(1, number // 10)):
        for who in list(ports) if block % 2 else list(ports)[::-1]:
            threads = [threading.Thread(target=work, args=(who,)) for _ in range(SLOTS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    return took


# ---- cold


def cold(setup: Setup, counts: Counts) -> None:
    ours: list[dict[str, float]] = []
    alone: list[dict[str, float]] = []
    with setup.appliance(["a"]) as subject:
        time.sleep(1)  # a start has more to do than its first request
        first = cold_through(subject)
        command = Path(f"/proc/{subject.spawned()[-1][2]}/cmdline").read_text().split("\0")[:-1]
        for _ in range(counts.cold_starts):
            subject.unload("a")
            ours.append(cold_through(subject))
            alone.append(cold_alone(command, subject))
    print(f"\nA model that is not loaded, {counts.cold_starts} times in turn\n")
    print(
        f"| milliseconds | alone p50 | longest | through the appliance p50 | longest | the first after the appliance's start |\n|{' --- |' * 6}"
    )
    for name in ("request → spawned", "spawned → ready", "ready → first event", "request → first event"):
        left = [1000 * row[name] for row in alone if name in row]
        right = [1000 * row[name] for row in ours]
        print(
            f"| {name} | {f'{percentile(left, 0.5):.1f} | {max(left):.1f}' if left else ' | '} | {percentile(right, 0.5):.1f} | {max(right):.1f} | "
            f"{1000 * first[name]:.1f} |",
            flush=True,
        )


def cold_through(subject: Subject) -> dict[str, float]:
    before, ready = len(subject.spawned()), list[float]()

    def watch() -> None:
        until_s = time.monotonic() + TIMEOUT_S
        while len(subject.spawned()) == before and time.monotonic() < until_s:
            time.sleep(0.001)
        ready.append(wait_healthy(subject.spawned()[-1][1]))

    watcher = threading.Thread(target=watch)
    client = Client(subject.port)
    watcher.start()
    sent_s, first_s, _ = client.send(chat("a", stream=True))
    watcher.join()
    client.close()
    spawned_s = subject.spawned()[-1][0]
    return {
        "request → spawned": spawned_s - sent_s,
        "spawned → ready": ready[0] - spawned_s,
        "ready → first event": first_s - ready[0],
        "request → first event": first_s - sent_s,
    }


def cold_alone(command: list[str], subject: Subject) -> dict[str, float]:
    """Start the same command line on another port, without the appliance."""
    port = free_port()
    command = [
        str(port) if before == "--port" else word
        for before, word in zip(["", *command], command, strict=False)
    ]
    with running_program(command, EVERY_CORE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        until_s = time.monotonic() + TIMEOUT_S
        while subject.spawned()[-1][1] != port and time.monotonic() < until_s:
            time.sleep(0.001)
        spawned_s = subject.spawned()[-1][0]
        ready_s = wait_healthy(port)
        client = Client(port)
        _, first_s, _ = client.send(chat("a", stream=True))
        client.close()
        return {"spawned → ready": ready_s - spawned_s, "ready → first event": first_s - ready_s}


# ---- memory and cost


def memory(setup: Setup, counts: Counts) -> None:
    sizes = {"no table": 0, "1 model in the table": 1, "100 models in the table": 100}
    taken: dict[str, list[float]] = {name: [] for name in sizes}
    for _ in range(counts.starts):
        for name, number in sizes.items():
            with setup.appliance([f"m{n}" for n in range(number)]) as subject:
                time.sleep(2)
                taken[name].append(memory_mb(subject.pid))
    print(
        f"\nMemory of the appliance (PSS, MB), no model loaded; median of {counts.starts} starts, two seconds after each\n"
    )
    for name, values in taken.items():
        print(f"| {name} | {statistics.median(values):.1f} |", flush=True)
    costs = asyncio.run(in_process(setup, counts))
    print(
        "\nWith 100 models in the table, 3 of them loaded (in process), microseconds, median of 20 batches\n"
    )
    for name, cost_s in costs.items():
        print(f"| {name} | {cost_s * 1e6:,.0f} |", flush=True)


async def in_process(setup: Setup, counts: Counts) -> dict[str, float]:
    """Return seconds of each call."""
    environ, _ = setup.environ([f"m{n}" for n in range(100)])
    settings, _ = load_or_raise(environ | {"LOG_LEVEL": "error"})
    async with running(settings) as appliance:
        manager = appliance.manager
        assert manager is not None
        for name in ("m0", "m1", "m2"):
            await manager.load(name)
        lease_s = await _leases(manager, counts.calls)
        state = full_state()
        return {
            "one lease and its release": lease_s,
            "one run of the scheduler without a step": _timed(manager.reschedule, counts.calls),
            "one decision with 100 queues and 3 busy models": _timed(lambda: next_step(state), counts.calls),
            "one read of all 100 models (ModelManagerApi.models)": _timed(manager.models, counts.calls),
        }


async def _leases(manager: ModelManager, calls: int) -> float:
    batches = []
    for _ in range(20):
        started_s = time.perf_counter()
        for _ in range(max(1, calls // 20)):
            (await manager.lease("m1")).release(is_ok=True)
        batches.append((time.perf_counter() - started_s) / max(1, calls // 20))
    return statistics.median(batches)


def _timed(action: Callable[[], object], calls: int) -> float:
    batches = []
    for _ in range(20):
        started_s = time.perf_counter()
        for _ in range(max(1, calls // 20)):
            action()
        batches.append((time.perf_counter() - started_s) / max(1, calls // 20))
    return statistics.median(batches)


def full_state() -> SchedulerState:
    """Return the worst state: all models that may be loaded are busy, and requests wait for all 100."""
    names = [f"m{n}" for n in range(100)]
    residents = [
        ResidentRunner(
            n, name, "ready", slots=SLOTS, active=SLOTS, memory={-1: 1 << 30}, load_s=5.0, demand=1.0
        )
        for n, name in enumerate(names[:3])
    ]
    return SchedulerState(
        [QueueState(name, requests=3, oldest_s=1.0) for name in names],
        residents,
        {name: ModelFacts(name, 1 << 30, load_s=5.0) for name in names},
        {-1: 1 << 30},
        {-1: 8 << 30},
    )


# ---- replay


RATE = 8.0  # requests a second, for the two models in turn
SWAP_WAITS = ("30 (default)", "5", "0")
LOADS = {"loads as quick as a tiny model's": 0, "each load slowed down by 0.6 s": 600}


def replay(setup: Setup, counts: Counts) -> None:
    print(
        f"\nA-B-A-B: {RATE:g} requests a second for {counts.seconds:g} s, for two models in turn; one model at a time, {SLOTS} slots, {TOKENS} tokens per response\n"
    )
    print(
        f"| | MODEL_SWAP_WAIT_S | swaps | complete | p50 | p99 | longest | all done after |\n|{' --- |' * 8}",
        flush=True,
    )
    for what, delay_ms in LOADS.items():
        for wait in SWAP_WAITS:
            with setup.appliance(
                ["a", "b"], max_models=1, delay_ms=delay_ms, MODEL_SWAP_WAIT_S=wait.split()[0]
            ) as subject:
                for model in "ab":  # the manager learns their load times
                    Client(subject.port).send(chat(model, stream=True))
                before = len(subject.spawned())
                took, bad, lasted_s = asyncio.run(arrivals(subject.port, counts.seconds))
                print(
                    f"| {what} | {wait} | {len(subject.spawned()) - before} | {len(took) - bad} of {len(took)} | {percentile(took, 0.5):.2f} s | "
                    f"{percentile(took, 0.99):.2f} s | {max(took):.2f} s | {lasted_s:.1f} s |",
                    flush=True,
                )


async def arrivals(port: int, seconds: float) -> tuple[list[float], int, float]:
    """Send requests for `a` and `b` in turn, at fixed moments; return (seconds of each, failed, all)."""
    took, bad = list[float](), 0

    async def request(at_s: float, model: str) -> None:
        nonlocal bad
        try:
            async with session.post(
                f"http://127.0.0.1:{port}/v1/chat/completions", data=chat(model, stream=True)
            ) as response:
                data = await response.read()
                bad += not (response.status == 200 and b"data: [DONE]" in data)
        except (aiohttp.ClientError, TimeoutError):
            bad += 1
        took.append(time.monotonic() - started_s - at_s)

    timeout, headers = aiohttp.ClientTimeout(total=2 * TIMEOUT_S), {"Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=timeout, headers=headers
        ) as session,
        asyncio.TaskGroup() as group,
    ):
        started_s = time.monotonic()
        for number in range(int(seconds * RATE)):
            at_s = number / RATE
            await asyncio.sleep(max(0.0, started_s + at_s - time.monotonic()))
            group.create_task(request(at_s, "ab"[number % 2]))
    return took, bad, time.monotonic() - started_s


# ---- all of it


def machine() -> str:
    loads = " ".join(f"{load:.1f}" for load in os.getloadavg())
    return f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores, load average before {loads}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.models", description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--quick", action="store_true", help="a few of each: to see that it works, not what it takes"
    )
    parser.add_argument("--only", choices=PARTS)
    arguments = parser.parse_args()
    for tool in ("gcc", "taskset"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is missing; `make bench` installs it")
    counts, steps = (
        QUICK if arguments.quick else Counts(),
        {"loaded": loaded, "cold": cold, "memory": memory, "replay": replay},
    )
    print(machine())
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="bench-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        setup = Setup(folder)
        setup.prepare()
        for name in [arguments.only] if arguments.only else PARTS:
            say(name)
            steps[name](setup, counts)


if __name__ == "__main__":
    main()
