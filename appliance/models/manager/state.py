"""What the manager keeps of each model of the table (Entry), of each llama-server (Live), and of each request that it let in (Lease)."""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from appliance.base.fair_queue import FairQueue, Ticket
from appliance.models.runner.process import Process
from appliance.models.scheduler.scheduler import Demand
from appliance.models.scheduler.state import ModelFacts, QueueState, ResidentRunner
from appliance.models.status.views import ModelView
from appliance.models.table.catalogue import Model
from appliance.models.table.estimate import Estimate
from appliance.models.table.gguf import GgufHeader

KEPT_LOOKS = 100  # at a model's health; statistics are over the latest STATISTICS of them
STATISTICS = 20


@dataclass(slots=True, eq=False)
class Runner:
    """One llama-server. Times ending in `_s` are monotonic but for `…_at_s`; memory in bytes by device.

    keep_alive_s   what a request wished; None = as configured; negative = for ever
    is_stop_requested  an eject, or another definition of its model: it is not to be replaced
    word           starting (nothing listens yet) or loading, while phase is loading
    """

    serial: int
    alias: str
    model: Model
    devices: tuple[int, ...]
    slots: int
    need_bytes: int
    began_s: float
    started_at_s: float
    phase: Literal["loading", "ready", "stopping"] = "loading"
    word: Literal["starting", "loading"] = "starting"
    port: int = 0
    process: Process | None = None
    active: int = 0
    is_closed: bool = False
    is_stop_requested: bool = False
    misses: int = 0  # looks at its health that failed in a row
    is_going: bool = False  # somebody sees to its end already
    idle_since_s: float = 0.0
    ready_since_s: float = 0.0
    load_s: float = 0.0
    last_used_at_s: float | None = None
    keep_alive_s: float | None = None
    progress: int = 0
    memory: dict[int, int] = field(default_factory=dict)
    file_bytes: int = 0  # of its memory: pages of files, which the kernel counts as available
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # its load has come to its end, well or not
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def resident(
        self,
        now_s: float,
        *,
        demand: float,
        is_pinned: bool,
        stays_s: float | None,
        expected_load_s: float,
    ) -> ResidentRunner:
        """Give it as the scheduler sees it."""
        memory = (
            self.memory
            if self.phase != "loading"
            else {device: self.need_bytes // len(self.devices) for device in self.devices}
        )
        return ResidentRunner(
            self.serial,
            self.alias,
            self.phase,
            self.slots,
            self.active,
            memory,
            0.0 if self.active else now_s - self.idle_since_s,
            now_s - self.ready_since_s,
            self.load_s or expected_load_s,
            demand,
            is_pinned,
            self.is_closed,
            stays_s,
        )


@dataclass(slots=True, eq=False)
class Waiter:
    """Somebody in line. A `load` wants no slot, only that the model is loaded."""

    alias: str
    since_s: float
    priority: int
    keep_alive_s: float | None = None
    is_load: bool = False
    lease: "asyncio.Future[Lease] | None" = None
    view: "asyncio.Future[ModelView] | None" = None

    @property
    def is_done(self) -> bool:
        future: asyncio.Future[Lease] | asyncio.Future[ModelView] | None = self.lease or self.view
        return future is None or future.done()

    def fail(self, error: Exception) -> None:
        for future in (self.lease, self.view):
            if future is not None and not future.done():
                future.set_exception(error)


@dataclass(frozen=True, slots=True)
class WaitStatus:
    """What somebody in line may know. `position` counts from 1; `progress` 0 to 100 of the load; `expected_in_s`: until the model is ready."""

    position: int
    status: str
    progress: int | None
    expected_in_s: float | None
    reason: str


@dataclass(slots=True, eq=False)
class Lease:
    """The right to send one request to one llama-server. `release` gives it back; a second call does nothing."""

    runner: Runner
    began_s: float
    waited_s: float
    on_release: "Callable[[Lease, bool, int, int], None]"
    is_released: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.runner.port}"

    def release(self, *, is_ok: bool, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Give the slot back, and say how it went."""
        if not self.is_released:
            self.is_released = True
            self.on_release(self, is_ok, prompt_tokens, completion_tokens)


@dataclass(slots=True, eq=False)
class ModelState:
    """One model of the table.

    problem   why its file cannot be loaded ("" = nothing known); estimate None = not reckoned
    wanted    it is to be loaded though nobody waits: preload (at start), restore (it crashed, or was down)
    failed    why it is not tried again ("" = it may be); error: of the latest failure, attempts: failures in a row
    misfires  loads in a row that failed while another llama-server of it runs: it has fewer replicas for a while, and goes on
    """

    model: Model
    line: "FairQueue[Waiter]"
    header: GgufHeader | None = None
    problem: str = ""
    estimate: Estimate | None = None
    key: str = ""
    slots: int = 1
    runners: list[Runner] = field(default_factory=list)
    waiters: "dict[int, tuple[Waiter, Ticket[Waiter] | None]]" = field(
        default_factory=dict
    )  # in the order of arrival
    wanted: Literal["", "preload", "restore"] = ""
    failed: str = ""
    error: str = ""
    attempts: int = 0
    misfires: int = 0
    rest_until_s: float = 0.0
    is_pinned: bool = False
    demand: Demand = field(default_factory=Demand)
    requests: int = 0
    processed: int = 0
    rejected: int = 0
    loads: int = 0
    load_s: float | None = None
    updated_at_s: float = 0.0
    last_used_at_s: float | None = None
    looks: "deque[tuple[bool, float]]" = field(
        default_factory=lambda: deque(maxlen=KEPT_LOOKS)
    )  # (well, milliseconds)
    misses: int = 0
    looked_at_s: float | None = None
    is_owed: bool = False  # others gave way for it, and it has not been started since
    turn_ended_s: float = -math.inf  # when a llama-server of it was last closed or stopped for others
    reason: str = ""  # what its line waits for, as the scheduler said last

    @property
    def alias(self) -> str:
        return self.model.alias

    @property
    def path(self) -> Path:
        return self.model.path

    @property
    def is_known(self) -> bool:
        """Whether its file was looked at: before that nothing can be decided about it."""
        return bool(self.key or self.problem)

    def forgive(self) -> None:
        """Forget its failures."""
        self.failed, self.error, self.attempts, self.misfires, self.rest_until_s = "", "", 0, 0, 0.0

    def present(self) -> list[Runner]:
        return [runner for runner in self.runners if runner.phase != "stopping"]

    def line_view(self, now_s: float) -> QueueState | None:
        """Give its line as the scheduler sees it; None = nobody waits."""
        if not self.waiters:
            return (
                QueueState(self.alias, loads=1, priority=2, may_evict=False)
                if self.wanted and not self.present()
                else None
            )
        waiters = [waiter for waiter, _ in self.waiters.values()]
        loads = sum(waiter.is_load for waiter in waiters)
        return QueueState(
            self.alias,
            len(waiters) - loads,
            loads,
            now_s - waiters[0].since_s,
            min(waiter.priority for waiter in waiters),
            is_owed=self.is_owed,
            since_turn_s=now_s - self.turn_ended_s,
        )

    def facts(
        self,
        now_s: float,
        *,
        need_bytes: int,
        on_gpu: bool,
        load_s: float,
        replicas: int,
    ) -> ModelFacts:
        rest_s = max(0.0, self.rest_until_s - now_s)
        if rest_s and self.misfires:
            rest_s, replicas = 0.0, max(1, min(replicas, len(self.present())))
        return ModelFacts(self.alias, need_bytes, on_gpu, load_s, replicas, bool(self.failed), rest_s)
