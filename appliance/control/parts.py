"""The parts of the appliance that the control API uses: objects shared with the HTTP front, and functions."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from appliance.base.clock import Clock, SystemClock
from appliance.base.log_buffer import LogBuffer
from appliance.base.settings import Problem, SettingDescription
from appliance.base.watch import Watched
from appliance.downloads.jobs import DownloadJobs
from appliance.downloads.request import DownloadFolders
from appliance.engines.lora.orders import AdapterOrders
from appliance.engines.outcome import Finish
from appliance.engines.receipts import Receipt, Receipts
from appliance.engines.router import Router
from appliance.engines.types import BackendState
from appliance.models.status.views import ModelManagerApi

DEFAULT_GRACE_S = 30.0


@dataclass(frozen=True, slots=True)
class SettingChange:
    """One setting whose value differs; secrets are hidden in `old` and `new`."""

    variable: str
    old: str
    new: str
    needs_restart: bool


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """The outcome of a reload.

    1. problems, no changes   → the new settings are invalid; nothing was changed
    2. problems and changes   → applying them failed; the previous ones are in force again
    3. no problems            → `changes` were applied, or would be (dry run)
    """

    changes: tuple[SettingChange, ...]
    problems: tuple[Problem, ...]
    applied: bool
    message: str


class WorkerLike(Protocol):
    """What the control API needs of the worker.

    `as_dict` returns `{state, command, pid, restarts, exit_code, started_at_s, reason}`.
    """

    def as_dict(self) -> dict[str, Any]:
        """Return its state."""

    async def start(self) -> Any:
        """Start it."""

    async def stop(self) -> Any:
        """Stop it and wait until it has exited."""

    async def restart(self) -> Any:
        """Stop it, then start it."""


class ServerLike(Protocol):
    """What the control API needs of one server of the fleet."""

    def describe(self) -> BackendState:
        """Return its state."""


class FleetLike(Protocol):
    """What the control API needs of the fleet of backends (engines/fleet.py)."""

    def add(self, value: dict[str, Any], *, persist: bool = False) -> ServerLike:
        """Add a server."""

    def remove(self, name: str, *, persist: bool = False) -> None:
        """Remove a server."""

    def drain(self, name: str, *, resume: bool = False, persist: bool = False) -> ServerLike:
        """Send a server no new requests, or send it requests again."""

    def set_strategy(self, strategy: str, *, pool: str = "", persist: bool = False) -> None:
        """Change how a server is chosen, in one pool or in all."""


class AccountedRequest(Protocol):
    """A request while it runs: entering it counts it as in flight, leaving it settles it, in every case."""

    receipt: Receipt
    finish: Finish

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: object, error: object, trace: object) -> None: ...


class PipelineLike(Protocol):
    """What the control API needs of the request pipeline (front/pipeline/pipeline.py)."""

    def guarded_request(self, route: str) -> AccountedRequest:
        """Return a request of a caller that the interface has admitted."""

    def admit_guarded(self, request: Any) -> None:
        """Identify the caller; apply its limits and hold."""


@dataclass(frozen=True, slots=True)
class ControlParts:
    """Everything that the control API uses.

    Attributes:
        status: Returns the object of GET /healthz.
        changed: Rises after each change of `status`.
        identity: Returns `{machine_id, hostname, gpu: {mode, simulated, gpus, reason}}`.
        reload: Takes (overrides, dry_run).
        shutdown: Takes the seconds that running requests get, None = as configured. Returns at once.
        pipeline: The request pipeline that HTTP uses too.
        manager: The models that this appliance runs itself; None where no table of models is configured.
        jobs: Downloads; None where they are not available.
        folders: Returns the folders that downloads may go to.
        lora: LoRA adapters; None where they are not available.
        accounts: The AccountService of account_service.py; None = ACCOUNTS is off.
        grace_s: Returns the seconds that running calls get when the control API closes.
        hurry: Set to end the grace period early; None = never.
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
    pipeline: PipelineLike
    is_draining: Callable[[], bool]
    grace_s: Callable[[], float] = lambda: DEFAULT_GRACE_S
    hurry: asyncio.Event | None = None
    manager: ModelManagerApi | None = None
    jobs: DownloadJobs | None = None
    folders: Callable[[], DownloadFolders] | None = None
    lora: AdapterOrders | None = None
    accounts: object | None = None
    clock: Clock = field(default_factory=SystemClock)
