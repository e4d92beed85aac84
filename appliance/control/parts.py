"""What the gRPC door is given by the wiring: the very objects that the HTTP door uses, and the verbs it may call."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from appliance.base.clock import Clock, SystemClock
from appliance.base.log_buffer import LogBuffer
from appliance.base.settings import Problem, SettingDescription
from appliance.base.watch import Watched
from appliance.downloads.jobs import DownloadJobs
from appliance.downloads.request import DownloadFolders
from appliance.engines.lora.orders import AdapterOrders
from appliance.engines.receipts import Receipt, Receipts
from appliance.engines.router import Router
from appliance.models.status.views import ModelManagerApi

DEFAULT_GRACE_S = 30.0


@dataclass(frozen=True, slots=True)
class SettingChange:
    """One variable whose value differs; secrets are hidden in `old` and `new`."""

    variable: str
    old: str
    new: str
    needs_restart: bool


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What a reload came to.

    1. problems, no changes   the new settings cannot be used; nothing was changed
    2. problems and changes   putting them in place failed; the former ones are in place again
    3. no problems            `changes` were applied, or would be (dry run)
    """

    changes: tuple[SettingChange, ...]
    problems: tuple[Problem, ...]
    applied: bool
    message: str


class WorkerLike(Protocol):
    """The worker as this door needs it. `as_dict` gives {state, command, pid, restarts, exit_code, started_at_s, reason}."""

    def as_dict(self) -> dict[str, Any]: ...
    async def start(self) -> Any: ...
    async def stop(self) -> Any: ...
    async def restart(self) -> Any: ...


class FleetLike(Protocol):
    """The backends' fleet as this door needs it (see engines/fleet.py)."""

    def add(self, value: dict[str, Any], *, persist: bool = False) -> Any: ...
    def remove(self, name: str, *, persist: bool = False) -> None: ...
    def drain(self, name: str, *, resume: bool = False, persist: bool = False) -> Any: ...
    def set_strategy(self, strategy: str, *, pool: str = "", persist: bool = False) -> None: ...


@dataclass(frozen=True, slots=True)
class ControlParts:
    """Everything the door reaches.

    status     the object of GET /healthz; `changed` rises whenever it changed
    identity   {machine_id, hostname, gpu: {mode, simulated, gpus, reason}}
    reload     (overrides, dry_run) → ReloadResult
    shutdown   seconds for running answers, None = as set; returns at once
    finish     to be called once for each receipt of `new_receipt` (given the route), when its request has ended
    board      the models that this appliance runs itself; None when no table of models is configured
    jobs       downloads; None where nothing can be downloaded; `folders` gives where they may go
    lora       LoRA adapters; None where nobody can have any
    grace_s    seconds that running calls get when the door closes; `hurry`, when set, takes them away
    """

    router: Router
    fleet: FleetLike
    receipts: Receipts
    worker: WorkerLike | None
    status: Callable[[], dict[str, Any]]
    changed: Watched[int]
    identity: Callable[[], dict[str, Any]]
    settings: Callable[[], list[SettingDescription]]
    reload: Callable[[dict[str, str], bool], Awaitable[ReloadResult]]
    drain: Callable[[], None]
    resume: Callable[[], None]
    shutdown: Callable[[float | None], None]
    lines: LogBuffer
    new_receipt: Callable[[str], Receipt]
    finish: Callable[[Receipt], None]
    is_draining: Callable[[], bool]
    grace_s: Callable[[], float] = lambda: DEFAULT_GRACE_S
    hurry: asyncio.Event | None = None
    manager: ModelManagerApi | None = None
    jobs: DownloadJobs | None = None
    folders: Callable[[], DownloadFolders] | None = None
    lora: AdapterOrders | None = None
    clock: Clock = field(default_factory=SystemClock)
