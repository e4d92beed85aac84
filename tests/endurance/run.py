"""The whole run: stand-ins, the appliance as a process of its own, clients, kills, reloads, and the report."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from appliance.control.v1 import control_pb2 as pb
from appliance.control.v1 import control_pb2_grpc
from tests.endurance import figures
from tests.endurance.clients import CLIENT_KEY, OPERATOR_KEY, Answer, Client, ClientSocket
from tests.endurance.figures import Figures, Samples
from tests.endurance.kinds import FAR, OWN, SHARED
from tests.endurance.ledger import Comparison, Ledger, read_log
from tests.endurance.standin import Journal, StandIn
from tests.journeys.running import free_port

HOSTED_KEY = "endurance-hosted-key"
QUIET_S = 12.0  # longest wait until nothing runs any more
SAMPLES, SAMPLE_S = 12, 0.1
RECEIPTS_EVERY = 40  # ended requests; a page lists the latest 100
LOOKS = 3  # for a receipt by its id: a request may be settled a little after its client has left
EXTRA_THREADS = 8  # of executors that start their threads one by one as they are needed

LIMITS = {
    "UPSTREAM_CONNECT_TIMEOUT_S": "1",
    "UPSTREAM_FIRST_BYTE_TIMEOUT_S": "1.5",
    "UPSTREAM_IDLE_TIMEOUT_S": "1.5",
    "UPSTREAM_TOTAL_TIMEOUT_S": "6",
    "BACKEND_TIMEOUT_SECONDS": "6",
    "QUEUE_TIMEOUT_S": "3",
    "QUEUE_LIMIT": "64",
    "BREAKER_FAILURES": "5",
    "BREAKER_REST_S": "0.5",
    "METRICS_CACHE_TTL_SECONDS": "0.3",
    "SLOW_START_S": "0.5",
    "WRITE_TIMEOUT_S": "2",
    "HEADER_TIMEOUT_S": "2",
    "BODY_TIMEOUT_S": "2",
    "HEARTBEAT_S": "0.4",
    "RESPONSES_KEEP_S": "5",
    "STREAM_DELAY_MS": "1",
    "STREAM_CHUNK_SIZE": "512",
}


@dataclass
class Report:
    """What the run found.

    Attributes:
        problems: One sentence each; none = all is well.
        took_s: From the first request to the last answer.
        before: The process after the warm-up.
        after: The process at the end.
    """

    problems: list[str]
    ledger: Ledger
    comparison: Comparison
    took_s: float
    before: Figures
    after: Figures
    kills: int
    reloads: Counter[str]
    figures_read: int
    resident_mib: list[float]
    log_events: Counter[str] = field(default_factory=Counter)

    def text(self) -> str:
        ledger, found = self.ledger, self.comparison
        outcomes = Counter(entry.outcome for entry in ledger.entries)
        did = Counter(how for asked in ledger.journal.asked.values() for _, how in asked)
        rows = [
            (
                "requests",
                f"{len(ledger.entries)} in {self.took_s:.1f} s ({len(ledger.entries) / self.took_s:.0f}/s)",
            ),
            ("manners", Counter(entry.manner for entry in ledger.entries)),
            ("kinds", Counter(entry.kind.name for entry in ledger.entries)),
            ("outcomes", outcomes),
            ("finish in the log", found.finishes),
            ("counted apart", found.apart),
            ("lines of the access log", found.logged),
            (
                "requests in the metrics",
                f"{found.counted}, of these heads that cannot be read {found.unlogged}",
            ),
            (
                "receipts",
                f"{len(ledger.receipts)} read, {found.missing_receipts} dropped before they were read",
            ),
            (
                "attempts",
                f"{sum(found.outcomes.values())} in receipts; slots given to clients that left at that moment: "
                f"{found.unused_slots}",
            ),
            (
                "requests at servers",
                f"{found.asked}: attempts, less {found.unseen} that no server saw, {found.repeated} repeated on a fresh "
                f"connection, {found.without_receipt} without a receipt",
            ),
            ("attempts by outcome", found.outcomes),
            ("servers did", did),
            ("kills, reloads", f"{self.kills}, {dict(self.reloads)}"),
            ("own requests", f"{self.figures_read} for metrics, receipts and health"),
            ("log events", self.log_events),
            ("descriptors before", self.before.descriptors),
            ("descriptors after", self.after.descriptors),
            ("threads", f"{self.before.threads}, then {self.after.threads}"),
            (
                "resident memory",
                f"{self.before.resident_mib:.1f} MiB, then {self.after.resident_mib:.1f} MiB; after each eighth "
                + ", ".join(f"{one:.0f}" for one in self.resident_mib),
            ),
        ]
        lines = [f"{name:26} {_shown(value)}" for name, value in rows]
        problems = [f"PROBLEM {problem[:600]}" for problem in self.problems[:40]]
        if len(self.problems) > len(problems):
            problems.append(f"and {len(self.problems) - len(problems)} more")
        return "\n".join([*lines, "", *problems, f"problems: {len(self.problems)}"])


def _shown(value: Any) -> str:
    if isinstance(value, Counter):
        return ", ".join(f"{name} {count}" for name, count in value.most_common())
    return str(value)


class Endurance:
    """One run.

    Args:
        folder: For the log, the state and the configuration; it must exist.
    """

    def __init__(self, folder: Path, *, requests: int, seed: int, concurrency: int) -> None:
        self.folder, self.requests, self.seed, self.concurrency = folder, requests, seed, concurrency
        self.journal = Journal()
        self.ledger = Ledger(self.journal)
        self.problems: list[str] = []
        self.kills, self.reloads = 0, Counter[str]()
        self.port, self.control_port = free_port(), free_port()
        self.log_path = folder / "appliance.log"
        self._rng = random.Random(f"run {seed}")
        self.servers = {
            name: StandIn(name, self.journal, seed=seed, models=[model])
            for name, model in (("a", SHARED), ("b", SHARED), ("guest", SHARED), ("c", OWN), ("d", OWN))
        }
        self.hosted = [StandIn(f"hosted-{n}", self.journal, seed=seed, base="/openai/v1") for n in (1, 2)]
        self.resident_mib: list[float] = []  # after each eighth of the requests
        self._weight, self._has_guest = 1, True
        self._process: subprocess.Popen[bytes] | None = None
        self._own: ClientSocket | None = None
        self._own_count = 0
        self._own_lock = asyncio.Lock()

    @property
    def stand_ins(self) -> list[StandIn]:
        return [*self.servers.values(), *self.hosted]

    async def run(self) -> Report:
        """Do everything, and end what was started."""
        for one in self.stand_ins:
            await one.start()
        try:
            self._write_configuration()
            self._start()
            await self._wait_ready()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{self.control_port}") as channel:
                self._stub = control_pb2_grpc.ControlStub(channel)
                return await self._measure()
        finally:
            if self._process is not None and self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            for one in self.stand_ins:
                await one.close()

    async def _measure(self) -> Report:
        warm = min(2000, self.requests // 4)
        began_s = time.monotonic()
        await self._phase(warm)
        pause_s = time.monotonic()
        before = await self._quiet(None)
        began_s += time.monotonic() - pause_s
        await self._phase(self.requests - warm)
        took_s = time.monotonic() - began_s
        after = await self._quiet(before)
        for _ in range(LOOKS + 1):
            await self._read_receipts()
        samples = figures.parse((await self._get("/metrics")).body.decode())
        # A page does not count itself: its own line is the log's last.
        last_id = f"own-{self._own_count}"
        self._check_idle(samples, json.loads((await self._get("/healthz")).body))
        ended = await self._end()
        requests, faults = read_log(self.log_path.read_text())
        self.problems += [f"in the log: {line[:1500]}" for line in faults]
        if ended != 0:
            self.problems.append(f"SIGTERM ended it with {ended}")
        at = next((number for number, line in enumerate(requests) if line["id"] == last_id), len(requests))
        comparison = self.ledger.compare(requests[:at], samples)
        self._compare_endpoints(comparison, samples)
        events = Counter(
            str(json.loads(line).get("event"))
            for line in self.log_path.read_text().splitlines()
            if line[:1] == "{"
        )
        return Report(
            [*self.problems, *comparison.problems], self.ledger, comparison, took_s, before, after,
            self.kills, self.reloads, self._own_count, self.resident_mib, events,
        )  # fmt: skip

    # ---- the appliance

    def _write_configuration(self) -> None:
        kinds = {"a": "vllm", "b": "llamacpp", "c": "openai", "d": "llamacpp", "guest": "openai"}
        rows = []
        for name, server in self.servers.items():
            if name == "guest" and not self._has_guest:
                continue
            row: dict[str, Any] = {
                "name": name,
                "url": server.url,
                "kind": kinds[name],
                "models": list(server.models),
            }
            row |= {"pool": "own", "max_in_flight": 10} if OWN in server.models else {"max_in_flight": 16}
            if name == "b":
                row["weight"] = self._weight
            rows.append(row)
        value = {"backends": rows, "pools": [{"name": "default", "overflow": "hosted"}, {"name": "own"}]}
        path = self.folder / "config.json"
        path.with_suffix(".new").write_text(json.dumps(value))
        path.with_suffix(".new").rename(path)

    def _environ(self) -> dict[str, str]:
        folder = self.folder
        return {
            **{
                name: value for name, value in os.environ.items() if name.startswith("PYTHON")
            },  # PYTHONDEVMODE=1
            "PATH": os.environ["PATH"],
            "PROXY_PORT": str(self.port),
            "CONTROL_PORT": str(self.control_port),
            "STATE_DIR": str(folder / "state"),
            "MACHINE_ID_PATH": str(folder / "machine-id"),
            "GPU_SPOOF_STATE_DIR": str(folder / "gpu"),
            "NAT_REDIRECT": "off",
            "LOG_FORMAT": "json",
            "ACCESS_LOG": "1",  # also while a reload says LOG_LEVEL=warning
            "SHUTDOWN_GRACE_S": "5",
            "APPLIANCE_API_KEYS": CLIENT_KEY,
            "OPERATOR_API_KEYS": OPERATOR_KEY,
            "CONFIG_PATH": str(folder / "config.json"),
            "NOVITA_API_KEY": HOSTED_KEY,
            "NOVITA_OPENAI_ENDPOINTS": ";".join(f"{one.url}/openai/v1" for one in self.hosted),
            "PUBLIC_MODEL": FAR,
            "UPSTREAM_BASE_MODEL": FAR,
            "MODEL_ALIASES": f"far-away,{SHARED}",  # the hosted API answers for it, too, when its servers are full
            "MODEL_STRICT": "1",
            **LIMITS,
        }

    def _start(self) -> None:
        with self.log_path.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "appliance", "serve"], env=self._environ(), stdout=out, stderr=out
            )

    async def _wait_ready(self) -> None:
        assert self._process is not None
        for _ in range(600):
            if self._process.poll() is not None:
                raise AssertionError(f"it ended with {self._process.returncode}: {self.log_path.read_text()}")
            with suppress(OSError):
                if (await self._get("/healthz")).status == 200:
                    return
            await asyncio.sleep(0.05)
        raise AssertionError(f"it does not serve: {self.log_path.read_text()}")

    async def _end(self) -> int:
        assert self._process is not None
        if self._own is not None:
            self._own.close()
        self._process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self._process.wait, 20)

    async def _get(self, path: str) -> Answer:
        """Send a request of the run's own; it is accounted for like all others."""
        async with self._own_lock:
            if self._own is None:
                self._own = await ClientSocket.open(self.port)
            self._own_count += 1
            one = f"own-{self._own_count}"
            self.ledger.other_ids.add(one)
            self._own.writer.write(
                f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {OPERATOR_KEY}\r\n"
                f"X-Request-Id: {one}\r\n\r\n".encode()
            )
            async with asyncio.timeout(20):
                answer = await self._own.read()
            if answer.fields.get("x-request-id") != one:
                self.problems.append(
                    f"{path}: x-request-id is {answer.fields.get('x-request-id')!r}, not {one}"
                )
            if not answer.may_stay:
                self._own.close()
                self._own = None
            return answer

    # ---- requests

    async def _phase(self, count: int) -> None:
        """Send `count` requests, while servers are killed and settings are reloaded."""
        first = len(self.ledger.entries) + 1
        clients = [
            Client(
                range(first + number, first + count, self.concurrency),
                self.ledger,
                port=self.port,
                seed=self.seed,
            )
            for number in range(self.concurrency)
        ]
        over = asyncio.Event()
        others = [asyncio.create_task(one(over)) for one in (self._kill, self._reload, self._follow)]
        try:
            await asyncio.gather(*(client.run() for client in clients))
        finally:
            over.set()
            done = await asyncio.gather(*others, return_exceptions=True)
        for result in done:
            if isinstance(result, BaseException):
                self.problems.append(f"the run itself failed: {result!r}")

    async def _kill(self, over: asyncio.Event) -> None:
        """Kill one server after the other, and start it again."""
        rng = random.Random(f"kills {self.seed} {self.kills}")
        while not await _waits(over, rng.uniform(0.2, 0.8)):
            victim = rng.choice(self.stand_ins)
            await victim.stop()
            self.kills += 1
            await _waits(over, rng.uniform(0.1, 0.6))
            await victim.start()

    async def _reload(self, over: asyncio.Event) -> None:
        """Reload with other values, other backends and wrong values; once by the command line."""
        rng = random.Random(f"reloads {self.seed} {sum(self.reloads.values())}")
        while not await _waits(over, rng.uniform(0.2, 0.7)):
            way = rng.choice(["limits", "weight", "guest", "log level", "wrong", "same"])
            overrides: dict[str, str] = {}
            if way == "limits":
                overrides = {
                    "BREAKER_REST_S": rng.choice(["0.3", "0.6"]),
                    "QUEUE_LIMIT": rng.choice(["48", "64"]),
                }
            elif way == "log level":
                overrides = {"LOG_LEVEL": rng.choice(["info", "warning"])}
            elif way == "wrong":
                overrides = {"QUEUE_LIMIT": "many"}
            elif way == "weight":
                self._weight = 3 - self._weight
            elif way == "guest":
                self._has_guest = not self._has_guest
            self._write_configuration()
            if not self.reloads["by appliance ctl"]:
                way = "by appliance ctl"
                code, said = await self._reload_by_command()
                if code != 0:
                    self.problems.append(f"appliance ctl reload ended with {code}: {said[-500:]}")
            else:
                code = await self._reload_by_call(overrides)
                right = grpc.StatusCode.INVALID_ARGUMENT if way == "wrong" else grpc.StatusCode.OK
                if code is not right:
                    self.problems.append(f"a reload with {overrides} was answered {code}")
            self.reloads[way] += 1

    async def _reload_by_call(self, overrides: dict[str, str]) -> grpc.StatusCode:
        try:
            await self._stub.Reload(pb.ReloadRequest(overrides=overrides), timeout=20)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    async def _reload_by_command(self) -> tuple[int, str]:
        environ = {"PATH": os.environ["PATH"], "CONTROL_ADDRESS": f"127.0.0.1:{self.control_port}"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "appliance", "ctl", "reload", env=environ,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await process.communicate()
        return process.returncode or 0, said.decode()

    async def _follow(self, over: asyncio.Event) -> None:
        """Read the receipts as they come, and now and then the metrics."""
        rounds = 0
        while not await _waits(over, 0.02):
            if len(self.ledger.unseen) < RECEIPTS_EVERY:
                continue
            await self._read_receipts()
            rounds += 1
            assert self._process is not None
            if len(self.ledger.entries) * 8 >= self.requests * (len(self.resident_mib) + 1):
                self.resident_mib.append(figures.take(self._process.pid).resident_mib)
            if rounds % 20 == 0:
                figures.parse((await self._get("/metrics")).body.decode())

    async def _read_receipts(self) -> None:
        """Read the page of the latest 100, and by their ids those that it does not show: 1,000 are kept."""
        unseen, receipts = self.ledger.unseen, self.ledger.receipts
        for receipt in json.loads((await self._get("/receipts")).body)["receipts"]:
            receipts[receipt["id"]] = receipt
        for number, looked in list(unseen.items()):
            one = self.ledger.by_number[number].id
            if looked and one not in receipts:
                answer = await self._get(f"/receipts/{one}")
                if answer.status == 200:
                    receipts[one] = json.loads(answer.body)
            unseen[number] = looked + 1
            if one in receipts or looked == LOOKS:
                del unseen[number]

    # ---- figures

    async def _quiet(self, before: Figures | None) -> Figures:
        """Wait until nothing runs, end all connections, and take the figures.

        Args:
            before: What they must come down to; None = they are what they are.
        """
        assert self._process is not None
        for one in self.stand_ins:
            one.is_quiet = True
            one.drop()
        until_s = time.monotonic() + QUIET_S
        while time.monotonic() < until_s:
            health = json.loads((await self._get("/healthz")).body)
            # The request that asks is in flight itself.
            if health["in_flight"] <= 1 and not any(backend["in_flight"] for backend in health["backends"]):
                break
            await asyncio.sleep(0.1)
        for one in self.stand_ins:
            one.drop()
        while True:
            samples = []
            for _ in range(SAMPLES):
                samples.append(figures.take(self._process.pid))
                await asyncio.sleep(SAMPLE_S)
            least = figures.least(samples)
            if before is None or least.descriptors == before.descriptors or time.monotonic() > until_s:
                break
        if before is not None and least.descriptors != before.descriptors:
            self.problems.append(f"descriptors: {before.descriptors} before, {least.descriptors} at the end")
        if before is not None and least.threads > before.threads + EXTRA_THREADS:
            self.problems.append(f"threads: {before.threads} before, {least.threads} at the end")
        for one in self.stand_ins:
            one.is_quiet = False
        return least

    def _check_idle(self, samples: Samples, health: dict[str, Any]) -> None:
        """At the end nothing runs, waits or is held."""
        if health["in_flight"] > 1:
            self.problems.append(f"{health['in_flight'] - 1} requests in flight at the end")
        for backend in health["backends"]:
            if backend["in_flight"]:
                self.problems.append(
                    f"the backend {backend['name']} has {backend['in_flight']} slots taken at the end"
                )
        for name in ("appliance_backend_in_flight", "appliance_queue_length"):
            if figures.total(samples, name):
                self.problems.append(f"{name} is {figures.total(samples, name):g} at the end")
        for state in ("in_use", "waiting"):
            count = figures.total(samples, "appliance_upstream_connections", state=state)
            if count > (len(self.servers) if state == "in_use" else 0):  # a probe of each may run
                self.problems.append(f"{count:g} upstream connections {state} at the end")
        open_connections = figures.total(samples, "appliance_connections")
        if open_connections > 1:
            self.problems.append(f"{open_connections:g} client connections at the end; one is the run's own")

    def _compare_endpoints(self, found: Comparison, samples: Samples) -> None:
        """Attempts at each server, by the receipts and by the metrics.

        `guest` and `b` were replaced, and their counters with them. A client may leave at the moment when the queue gives
        it a slot: then a server was chosen, and there is no attempt.
        """
        if found.missing_receipts:
            return
        left = sum(entry.has_left for entry in self.ledger.entries)
        chosen = figures.by_label(samples, "appliance_backend_chosen_total", "backend")
        for name in ("a", "c", "d"):
            by_receipts = found.by_endpoint[self.servers[name].url]
            unused = chosen[name] - by_receipts
            found.unused_slots += unused
            if not 0 <= unused <= left:
                self.problems.append(
                    f"attempts at {name}: {by_receipts} in receipts, {chosen[name]} in metrics"
                )
        errors = figures.by_label(samples, "appliance_backend_errors_total", "backend")
        for name in ("a", "c", "d"):
            right = found.errors_by_endpoint[self.servers[name].url]
            if right != errors[name]:
                self.problems.append(f"errors of {name}: {right} in receipts, {errors[name]} in metrics")
        hosted = sum(found.by_endpoint[f"{one.url}/openai/v1"] for one in self.hosted)
        if hosted != found.hosted_attempts:
            self.problems.append(
                f"attempts at the hosted API: {hosted} in receipts, {found.hosted_attempts} in metrics"
            )


async def _waits(over: asyncio.Event, seconds: float) -> bool:
    """Wait; return whether it is over."""
    with suppress(TimeoutError):
        await asyncio.wait_for(over.wait(), seconds)
    return over.is_set()
