"""A manager of plain values, and the real HTTP front over it: for tests of the manager's addresses."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from appliance.base.clock import Clock, FakeClock, SystemClock
from appliance.base.errors import NoSuchModel
from appliance.base.watch import Watched
from appliance.engines.receipts import Receipts
from appliance.front.balance import BalanceHandlers
from appliance.front.manager.handlers import ManagerHandlers
from appliance.front.ollama.handlers import OllamaHandlers
from appliance.front.openai.handlers import OpenAIHandlers
from appliance.front.openai.responses import ResponsesHandlers
from appliance.front.passthrough.passthrough import Passthrough
from appliance.front.pipeline.access_log import AccessLog
from appliance.front.pipeline.pipeline import RequestPipeline
from appliance.front.routes import join_routes
from appliance.front.server.server import HttpServer, serving_http
from appliance.front.system import SystemHandlers
from appliance.models.manager.errors import ModelFailed
from appliance.models.status.measures import measure
from appliance.models.status.views import (
    DeviceView,
    Ejected,
    FailedView,
    HealthView,
    ManagerCounts,
    ModelView,
    QueueView,
    RequestSample,
    RunnerView,
    ServerStatus,
)
from appliance.models.table.catalogue import Catalogue, Model
from appliance.models.table.entries import Params
from appliance.parts import Appliance
from appliance.settings import load_or_raise

AT_S = 1_800_000_000.0
MIB = 1 << 20


def off(alias: str) -> ModelView:
    return ModelView(alias, "off", Path(f"/models/{alias}.gguf"), 4096, 4, updated_at_s=AT_S)


def ready(alias: str, *, port: int = 8085, memory_mib: int = 2048) -> ModelView:
    memory = memory_mib * MIB
    runner = RunnerView(
        alias,
        port,
        4242,
        "ready",
        AT_S - 60,
        4,
        1,
        load_s=2.5,
        last_used_at_s=AT_S - 1,
        expires_at_s=AT_S + 300,
        memory_bytes=memory,
        devices=((0, memory),),
    )
    return ModelView(
        alias,
        "ready",
        Path(f"/models/{alias}.gguf"),
        8192,
        4,
        port=port,
        started_at_s=AT_S - 60,
        last_used_at_s=AT_S - 1,
        load_progress=100,
        updated_at_s=AT_S - 57.5,
        memory_bytes=memory,
        average_bytes=memory - 8 * MIB,
        load_s=2.5,
        loads=1,
        estimate_bytes=memory + 100 * MIB,
        runners=(runner,),
    )


def failed(alias: str) -> ModelView:
    return replace(off(alias), status="failed", error_message="llama_model_load: no such file", attempts=3)


class StaticManager:
    """The manager's API over values that a test sets. A load takes two steps; `step` releases each."""

    def __init__(self, *views: ModelView) -> None:
        self.views = {view.alias: view for view in views}
        self.changed: Watched[int] = Watched(0)
        self.catalogue = Catalogue(
            {view.alias: Model(view.alias, view.path, Params(), "table") for view in views}
        )
        self.server_status: ServerStatus = "ready"
        self.server_started_at_s = AT_S - 100
        self.server_updated_at_s = AT_S - 90
        self.lines: list[QueueView] = []
        self.places = [DeviceView(0, "A card", 24_576 * MIB, 4096 * MIB, 20_480 * MIB, 37.0, 61.0, 210.5)]
        self.failures: dict[str, FailedView] = {}
        self.looks: list[HealthView] = []
        self.samples: list[RequestSample] = []
        self.log_path: Path | None = None
        self.asked: list[tuple[object, ...]] = []
        self.steps: asyncio.Queue[bool] = asyncio.Queue()  # True = go on, False = fail
        self.loads_cut = 0
        self.refusal: Exception | None = None  # what the next load raises

    def log_finder(self, alias: str, port: int = 0) -> Callable[[], Path | None]:
        self.asked.append(("log", alias, port))
        path = self.log_path
        return lambda: path

    def bump(self) -> None:
        self.changed.set(self.changed.value + 1)

    def put(self, view: ModelView) -> None:
        self.views[view.alias] = view
        self.bump()

    def put_server(self, status: ServerStatus) -> None:
        self.server_status = status
        self.server_updated_at_s += 1
        self.bump()

    def models(self) -> list[ModelView]:
        return list(self.views.values())

    def model(self, alias: str) -> ModelView:
        if alias not in self.views:
            raise NoSuchModel(f"There is no model {alias!r} in the table.", param="model")
        return self.views[alias]

    def queues(self) -> list[QueueView]:
        return self.lines

    def devices(self) -> list[DeviceView]:
        return self.places

    def failed_models(self) -> list[FailedView]:
        return list(self.failures.values())

    def health(self) -> list[HealthView]:
        return self.looks

    def telemetry(self) -> list[RequestSample]:
        return self.samples

    def counts(self) -> ManagerCounts:
        return ManagerCounts()

    async def load(self, alias: str, *, keep_alive_s: float | None = None) -> ModelView:
        view = self.model(alias)
        self.asked.append(("load", alias, keep_alive_s))
        if self.refusal is not None:
            raise self.refusal
        if view.status == "ready":
            return view
        try:
            for progress in (10, 60):
                self.put(
                    replace(view, status="loading", port=8090, load_progress=progress, expected_in_s=3.04)
                )
                if not await self.steps.get():
                    self.put(failed(alias))
                    raise ModelFailed(alias, reason="unknown argument: --frobnicate", attempts=3)
        except asyncio.CancelledError:
            self.loads_cut += 1
            raise
        self.put(ready(alias, port=8090))
        return self.views[alias]

    async def eject(self, alias: str, *, force: bool = False) -> Ejected:
        view = self.model(alias)
        self.asked.append(("eject", alias, force))
        was_loaded = bool(view.runners)
        self.put(off(alias))
        return Ejected(alias, was_loaded, 1 if was_loaded and not force else 0)

    def set_keep_alive(self, alias: str, keep_alive_s: float) -> None:
        self.model(alias)

    def reset(self, alias: str) -> FailedView | None:
        self.model(alias)
        return self.failures.pop(alias, None)

    def pin(self, alias: str, *, pinned: bool = True) -> ModelView:
        self.put(replace(self.model(alias), is_pinned=pinned))
        return self.views[alias]


@asynccontextmanager
async def serving_manager(
    manager: StaticManager | None,
    *,
    handlers: ManagerHandlers | None = None,
    clock: Clock | None = None,
    **variables: str,
) -> AsyncIterator[tuple[str, Appliance]]:
    """Serve the whole HTTP front on loopback, with the demo engine and `manager`.

    Gives   (base URL, the appliance whose parts it is made of)
    """
    settings, _ = load_or_raise({"NAT_REDIRECT": "off", "ACCESS_LOG": "0", **variables})
    clock = clock or SystemClock()
    parts = Appliance(settings, [])
    parts.lifecycle.set_state("serving")
    async with parts.tasks:
        await parts.fleet.wait_first_probes()
        parts.pipeline = pipeline = RequestPipeline(
            settings.front,
            receipts=Receipts(),
            metrics=parts.metrics,
            clock=clock,
            state=parts.lifecycle.state,
            access_log=AccessLog(clock=clock, form="json"),
        )

        def measured() -> None:
            parts.fleet.measure()
            if manager is not None:
                measure(manager, parts.metrics.router, clock.now_s())

        system = SystemHandlers(status=lambda: {"ok": True}, metrics=parts.metrics, measure=measured)
        balance = BalanceHandlers(
            parts.router, clock=clock, set_strategy=parts.fleet.set_strategy, manager=manager
        )
        models = handlers or (ManagerHandlers(manager, clock=clock) if manager else None)
        routes = join_routes(
            system,
            balance,
            models,
            OpenAIHandlers(parts.router, heartbeat_s=lambda: 10, manager=manager),
            ResponsesHandlers(parts.router, clock=clock),
            OllamaHandlers(parts.router, clock=clock),
        )
        server = HttpServer(routes, pipeline, clock=clock, passthrough=Passthrough(parts.router, pipeline))
        async with serving_http(
            server, [("127.0.0.1", 0)], hurry=parts.lifecycle.hurry, tasks=parts.tasks, grace_s=lambda: 5
        ) as bound:
            yield f"http://127.0.0.1:{bound[0][1]}", parts
        await parts.fleet.close()


@pytest.fixture
def manager() -> StaticManager:
    manager = StaticManager(ready("qwen3-8b"), off("org/gemma-3"), failed("broken"))
    manager.failures["broken"] = FailedView("broken", 3, "llama_model_load: " + "x" * 400)
    manager.lines = [QueueView("qwen3-8b", 2, 10, 7, 1, 1, 0.25), QueueView("org/gemma-3", 0, 3, 3, 0, 0)]
    return manager


@pytest.fixture
async def http(manager: StaticManager) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        serving_manager(manager, clock=FakeClock(AT_S)) as (url, _),
        httpx.AsyncClient(base_url=url) as client,
    ):
        yield client
