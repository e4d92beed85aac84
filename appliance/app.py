"""The wiring: builds the parts, joins them, opens them in order and closes them in reverse. Nothing is global."""

import asyncio
import ctypes
import gc
import platform
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, replace
from typing import Any

from appliance import __version__
from appliance.base import logs
from appliance.base.clock import SystemClock, format_rfc3339
from appliance.base.log_buffer import LogBuffer
from appliance.base.logs import get_logger
from appliance.base.metrics.registry import Metrics
from appliance.base.settings import InvalidSettings
from appliance.base.tasks import Tasks
from appliance.base.watch import Watched
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits
from appliance.build import (
    add_manager,
    build_adapters,
    build_downloader,
    build_fleet,
    build_jobs,
    build_lora_orders,
    build_manager,
    download_folders,
    manager_wire,
)
from appliance.control.server import serving_control
from appliance.downloads.request import DownloadFolders
from appliance.engines.receipts import Receipts
from appliance.front.manager.handlers import ManagerHandlers
from appliance.front.pipeline.access_log import AccessLog
from appliance.front.pipeline.pipeline import RequestPipeline
from appliance.front.server.server import HttpServer, serving_http
from appliance.front.sidecar import DIALECT
from appliance.front.status_listener import serving_status
from appliance.host.nat.redirect import WORKER_PORT
from appliance.host.prepare import Prepared, prepared_or_now
from appliance.host.worker.worker import Worker
from appliance.interfaces import build_front, control_parts, sidecar_table
from appliance.models.manager.manager import ModelManager
from appliance.models.pulls import PulledModels, Pulls
from appliance.models.status.file import keeping_status_file
from appliance.models.status.measures import RequestStatistics, measure
from appliance.models.table.catalogue import read_catalogue
from appliance.models.table.library import ModelLibrary
from appliance.reload import Reloader
from appliance.settings import Settings, download_dir, learn_secrets, load_or_raise

log = get_logger("appliance")


class Appliance:
    """The whole house while it stands: its parts, its state, and the verbs that doors may call."""

    def __init__(self, settings: Settings, warnings: list[str]) -> None:
        self.settings = settings
        self.clock = SystemClock()
        self.started_s = self.clock.now_s()
        self.metrics = Metrics()
        self.receipts = Receipts()
        self.lines = LogBuffer()
        self.changed: Watched[int] = Watched(0)
        self.tasks = Tasks(on_death=self._task_died)
        self.warnings = warnings
        self.lifecycle: Watched[str] = Watched("starting")
        self.stop_asked = asyncio.Event()
        self.hurry = asyncio.Event()
        self.grace_s: float | None = None
        self.exit_code = 0
        self.http_addresses: list[tuple[str, int]] = []
        self.control_addresses: list[str] = []
        self.worker: Worker | None = None
        self.prepared: Prepared | None = None
        self.manager: ModelManager | None = None
        self.library: ModelLibrary | None = None
        self.models_door: ManagerHandlers | None = None
        self.pipeline: RequestPipeline  # these three from build_front on
        self.server: HttpServer
        self.fleet = build_fleet(settings, tasks=self.tasks, clock=self.clock, metrics=self.metrics)
        self.router = self.fleet.router
        self.adapters = build_adapters(
            self.router, settings, tasks=self.tasks, clock=self.clock, metrics=self.metrics
        )
        self.scrape_wire = ConnectionPool(PoolLimits())
        self.downloader = build_downloader(settings)
        self.lora_orders = build_lora_orders(
            self.adapters, settings, downloader=self.downloader, tasks=self.tasks, clock=self.clock
        )
        pulled = PulledModels(download_folders(settings).home, clock=self.clock, on_change=self.reread_models)
        self.jobs = build_jobs(
            settings, self.downloader, tasks=self.tasks, clock=self.clock, on_fetched=pulled.add_fetched
        )
        self.pulls = Pulls(self.jobs, pulled, lister=self.downloader.list_files, eject=self.eject)
        self.metrics.build_info.labels(__version__, platform.python_version()).set(1)

    # ---- what doors may ask

    @property
    def state(self) -> str:
        """starting, serving, draining or stopping."""
        return self.lifecycle.value

    def status(self) -> dict[str, Any]:
        """Give the object that /healthz and GetStatus show: system A's fields and ours. No secrets."""
        engines = self.router.settings
        cards = self.router.cards()
        prepared = self.prepared
        return {
            "ok": self.state == "serving",
            "state": self.state,
            "version": __version__,
            "started_at": format_rfc3339(self.started_s),
            "started_at_s": self.started_s,
            "uptime_s": round(self.clock.now_s() - self.started_s, 3),
            "demo": self.router.is_demo,
            "engine": "demo (built in, no model behind it)"
            if self.router.is_demo
            else ", ".join(dict.fromkeys(backend.kind for backend in self.router.backends())),
            "public_model": engines.public_model,
            "upstream_base": engines.upstream_base_model,
            "aliases": list(cards[0].aliases) if cards else [],
            "novita_endpoints": list(engines.novita_openai_endpoints),
            "backends": [asdict(state) for state in self.router.states()],
            "gpu": prepared.gpu if prepared else {},
            "nat": prepared.nat if prepared else {},
            "worker": self.worker.as_dict() if self.worker else {"state": "off"},
            "steps": [step.as_dict() for step in prepared.steps] if prepared else [],
            "machine_id": prepared.machine_id if prepared else "",
            "in_flight": self.pipeline.in_flight,
            "warnings": list(self.warnings),
        }

    def identity(self) -> dict[str, Any]:
        """Give what GetIdentity shows: machine_id, hostname, gpu."""
        prepared = self.prepared
        return {
            "machine_id": prepared.machine_id if prepared else "",
            "hostname": socket.gethostname(),
            "gpu": prepared.gpu if prepared else {},
        }

    def set_state(self, state: str) -> None:
        if state != self.state:
            log.info("state", state=state)
            self.lifecycle.set(state)
            self.bump()

    def bump(self) -> None:
        """Tell followers of the status that it changed."""
        self.changed.set(self.changed.value + 1)

    def drain(self) -> None:
        """Take no new requests; running ones go on."""
        if self.state == "serving":
            self.set_state("draining")

    def resume(self) -> None:
        if self.state == "draining":
            self.set_state("serving")

    def shutdown(self, grace_s: float | None = None) -> None:
        """Begin the end; a second call hurries it."""
        if self.stop_asked.is_set():
            self.hurry.set()
        self.grace_s = grace_s
        self.stop_asked.set()

    def measure(self) -> None:
        """Bring all gauges up to date: /metrics is read."""
        self.fleet.measure()
        self.adapters.measure()
        if self.manager is not None:
            measure(self.manager, self.metrics.router, self.clock.now_s())

    def folders(self) -> DownloadFolders:
        """Where downloads may go at the moment."""
        return download_folders(self.settings)

    async def eject(self, alias: str) -> None:
        """Unload a model, where it is one of ours."""
        if self.manager is not None and alias in self.manager.model_states:
            await self.manager.eject(alias)

    async def reread_models(self) -> None:
        """Models were pulled or deleted: let the table have them."""
        settings = self.settings
        catalogue, problems = await asyncio.to_thread(
            read_catalogue,
            settings.models,
            settings.engines.config_path,
            download_dir(settings.downloads, settings.host),
        )
        if any(problem.is_fatal for problem in problems):
            log.error("table_not_read", problems=[str(problem) for problem in problems if problem.is_fatal])
            return
        self.settings = replace(settings, catalogue=catalogue)
        if self.manager is not None:
            self.manager.apply(catalogue)
            self.fleet.refresh_managed(settings.engines)

    def _task_died(self, name: str, error: BaseException) -> None:
        self.warnings.append(f"the background task {name} died: {error!r}")
        self.exit_code = 1
        self.shutdown()


async def open_models(appliance: Appliance, stack: AsyncExitStack) -> None:
    """Open the model manager where there is a table of models."""
    settings, tasks, clock = appliance.settings, appliance.tasks, appliance.clock
    own = settings.models
    if own.status_port is not None:
        await stack.enter_async_context(
            serving_status(lambda: appliance.manager, host=own.status_host, port=own.status_port, clock=clock)
        )
    wire = manager_wire(settings.catalogue.system)
    stack.push_async_callback(wire.close)
    manager = appliance.manager = build_manager(
        settings, tasks=tasks, clock=clock, wire=wire, statistics=RequestStatistics(appliance.metrics.router)
    )
    if manager is None:
        return
    appliance.library = ModelLibrary(
        lambda: manager.catalogue.models, tasks=tasks, digests_path=settings.host.state_dir / "digests.json"
    )
    status_path = settings.host.state_dir / "model_status.json"
    await stack.enter_async_context(keeping_status_file(manager, status_path, tasks=tasks))
    stack.push_async_callback(manager.close)
    appliance.adapters.prepare(manager)
    await manager.open()
    appliance.models_door = ManagerHandlers(manager, clock=clock, status_path=status_path)
    add_manager(
        appliance.fleet, manager, settings, wire=wire, clock=clock, metrics=appliance.metrics, tasks=tasks
    )


async def open_sidecar(appliance: Appliance, stack: AsyncExitStack) -> None:
    """Open SIDECAR_PORT where there is one, and follow its engine's KV events where they are wanted."""
    if (front := appliance.settings.front).sidecar_port is None:
        return
    routes, kv_events = sidecar_table(appliance)
    if kv_events is not None:
        stack.push_async_callback(kv_events.close)
        kv_events.start()
    server = HttpServer(routes, appliance.pipeline, clock=appliance.clock, dialect=DIALECT)
    await stack.enter_async_context(
        serving_http(
            server,
            [(front.sidecar_host, front.sidecar_port)],
            hurry=appliance.hurry,
            tasks=appliance.tasks,
            grace_s=lambda: 0.0,
        )
    )  # the doors before it have waited already


@asynccontextmanager
async def running(settings: Settings, *, warnings: list[str] | None = None) -> AsyncIterator[Appliance]:
    """Open every part in order; leave them in reverse order, also when one of them cannot be opened.

    models → engines → machine's state → front → control → worker (once /healthz answers)
    """
    appliance = Appliance(settings, warnings or [])
    configure_logs(settings, appliance)
    access_log = AccessLog(
        clock=appliance.clock,
        form=settings.general.log_format,
        also=lambda at_s, line: appliance.lines.add(at_s, "appliance.access", line),
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(appliance.tasks)
        await open_models(appliance, stack)
        stack.push_async_callback(appliance.fleet.close)
        stack.push_async_callback(appliance.scrape_wire.close)
        appliance.adapters.start()
        stack.push_async_callback(appliance.jobs.close)
        await appliance.jobs.open()
        await appliance.lora_orders.open()
        await appliance.fleet.wait_first_probes()
        server = build_front(appliance, access_log)
        front = settings.front
        appliance.http_addresses = await stack.enter_async_context(
            serving_http(
                server,
                [(front.proxy_host, front.proxy_port)],
                hurry=appliance.hurry,
                tasks=appliance.tasks,
                grace_s=lambda: front.shutdown_grace_s if appliance.grace_s is None else appliance.grace_s,
            )
        )
        port = appliance.http_addresses[0][1]
        await open_sidecar(appliance, stack)
        appliance.prepared = prepared = await asyncio.to_thread(
            prepared_or_now, settings.host, proxy_port=port, environ=settings.environ
        )
        if prepared.needs_listener:
            await open_worker_port(server, appliance, stack)
        report_machine(appliance, prepared)
        appliance.worker = Worker(
            settings.host,
            environ=settings.environ,
            is_gpu_simulated=bool(prepared.gpu.get("simulated")),
            is_ready=lambda: answers_health(appliance),
            lines=appliance.lines,
            clock=appliance.clock,
            metrics=appliance.metrics,
        )
        reloader = Reloader(appliance)
        if settings.control.control:
            appliance.control_addresses = await stack.enter_async_context(
                serving_control(settings.control, control_parts(appliance, reloader))
            )
        stack.push_async_callback(appliance.worker.close)
        await appliance.worker.start()
        appliance.tasks.start(follow_worker(appliance), name="worker-status")
        appliance.set_state("serving")
        try:
            yield appliance
        finally:
            appliance.set_state("stopping")
            await (
                appliance.jobs.close()
            )  # else whoever waits for a download, or follows one, would use up the grace
            if (
                appliance.manager is not None and appliance.models_door is not None
            ):  # else its followers would use up the grace
                appliance.manager.announce_shutdown()
                appliance.models_door.close()


async def serve(environ: Mapping[str, str] | None = None) -> int:
    """Serve until SIGTERM, SIGINT or control's Shutdown; give the exit code."""
    settings, problems = load_or_raise(environ)
    warnings = [str(p) for p in problems]
    loop = asyncio.get_running_loop()
    try:
        async with running(settings, warnings=warnings) as appliance:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, appliance.shutdown)
            announce(appliance)
            settle_memory()
            await appliance.stop_asked.wait()
            log.info(
                "stopping",
                grace_s=settings.front.shutdown_grace_s if appliance.grace_s is None else appliance.grace_s,
            )
        log.info("stopped")
        return appliance.exit_code
    except InvalidSettings as exc:
        for problem in exc.problems:
            print(f"error: {problem}", file=sys.stderr)  # noqa: T201 - the log is not up yet
        return 78
    except OSError as exc:
        log.error("cannot_start", reason=str(exc))
        return 1


def settle_memory() -> None:
    """Keep what start-up made out of the collector's way; requests make few cycles, so it may look less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    try:
        ctypes.CDLL(None).malloc_trim(0)  # give back what importing and start-up left behind (glibc)
    except (AttributeError, OSError):
        pass


def configure_logs(settings: Settings, appliance: Appliance) -> None:
    learn_secrets(settings)
    logs.configure(
        level=settings.general.log_level,
        form=settings.general.log_format,
        on_line=lambda line: appliance.lines.add(appliance.clock.now_s(), "appliance", line),
    )


async def open_worker_port(server: HttpServer, appliance: Appliance, stack: AsyncExitStack) -> None:
    """Without the privilege for a NAT rule, a second listener on loopback has the same effect for local callers."""
    from appliance.front.server.server import listening

    try:
        await stack.enter_async_context(listening(server, [("127.0.0.1", WORKER_PORT)]))
        log.info("second_listener", address=f"127.0.0.1:{WORKER_PORT}")
    except OSError as exc:
        appliance.warnings.append(f"port {WORKER_PORT} could not be opened: {exc}")
        log.warning("second_listener_failed", reason=str(exc))


def report_machine(appliance: Appliance, prepared: Prepared) -> None:
    """Log and measure what the machine's preparation gave; a simulated GPU is announced in plain words."""
    for step in prepared.steps:
        appliance.metrics.step_ok.labels(step.name).set(0 if step.outcome == "failed" else 1)
        if step.outcome == "failed":
            appliance.warnings.append(f"{step.name}: {step.detail}")
    gpu = prepared.gpu
    for row in gpu.get("gpus", []):
        appliance.metrics.gpu_info.labels(
            str(row["index"]), row["name"], row["uuid"], str(bool(gpu.get("simulated"))).lower()
        ).set(1)
    if gpu.get("simulated"):
        appliance.warnings.append("The GPU that nvidia-smi reports here is simulated (GPU_MODE=simulated).")
        log.warning("simulated_gpu", names=[row["name"] for row in gpu["gpus"]])


async def answers_health(appliance: Appliance) -> bool:
    """Ask our own /healthz as the worker's machine would see it."""
    host, port = appliance.http_addresses[0]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 2)
        try:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            line = await asyncio.wait_for(reader.readline(), 2)
        finally:
            writer.close()
    except (OSError, TimeoutError):
        return False
    return b" 200 " in line


async def follow_worker(appliance: Appliance) -> None:
    assert appliance.worker is not None
    async for _ in appliance.worker.status.follow():
        appliance.bump()


def announce(appliance: Appliance) -> None:
    """Say where we listen and who answers; with the demo engine, three commands to try."""
    host, port = appliance.http_addresses[0]
    log.info(
        "serving",
        http=[f"{h}:{p}" for h, p in appliance.http_addresses],
        control=appliance.control_addresses,
        demo=appliance.router.is_demo,
        model=next((card.id for card in appliance.router.cards()), ""),
        version=__version__,
    )
    for warning in appliance.warnings:
        log.warning("notice", text=warning)
    if not appliance.router.is_demo:
        return
    log.warning(
        "demo_engine",
        text="No NOVITA_API_KEY is set: the built-in demo engine answers. No model stands behind it.",
    )
    base = f"http://{'127.0.0.1' if host in {'0.0.0.0', '::', '127.0.0.1'} else host}:{port}"
    print(  # noqa: T201 - for the person at the terminal
        f"""
The demo engine answers every model. Three commands to try:

  curl {base}/v1/chat/completions -H 'content-type: application/json' \\
       -d '{{"messages": [{{"role": "user", "content": "Hello"}}]}}'
  curl -N {base}/api/chat -d '{{"model": "demo", "messages": [{{"role": "user", "content": "Hello"}}]}}'
  curl {base}/healthz
""",
        file=sys.stderr,
    )
