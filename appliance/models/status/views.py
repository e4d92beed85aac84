"""What the manager tells about itself: plain values for the doors, and the promise of who gives them (ModelManagerApi).

Status words are system D's: off, starting, loading, ready, loaded (alias of ready), standby (deprecated), stopping, crashed, failed,
unknown. We give off, starting, loading, ready, stopping, crashed (it will be tried again) and failed (it will not, until reset).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from appliance.base.watch import Watched
from appliance.models.table.catalogue import Catalogue

ModelStatus = Literal["off", "starting", "loading", "ready", "stopping", "crashed", "failed"]
ServerStatus = Literal["initializing", "ready", "shutting_down"]
RAM = -1  # the index of system memory among the devices
KEPT_SAMPLES = 1000  # the latest answers: ModelManagerApi.telemetry() gives no more
STATUS_WORDS = (
    "off",
    "starting",
    "loading",
    "ready",
    "loaded",
    "standby",
    "stopping",
    "crashed",
    "failed",
    "unknown",
)


@dataclass(frozen=True, slots=True)
class RunnerView:
    """One llama-server process. Times in seconds since 1970 (…_at_s) or durations; memory in bytes.

    load_s        from spawn to ready; None while it loads
    devices       bytes it takes, by device index (-1 = system RAM)
    expires_at_s  when it is unloaded if nobody asks any more; None = never
    """

    alias: str
    port: int
    pid: int
    status: ModelStatus
    started_at_s: float
    slots: int
    active: int
    load_s: float | None = None
    last_used_at_s: float | None = None
    expires_at_s: float | None = None
    memory_bytes: int = 0
    devices: tuple[tuple[int, int], ...] = ()
    log_path: Path | None = None


@dataclass(frozen=True, slots=True)
class ModelView:
    """One model of the table, loaded or not.

    load_progress    0 to 100 while it starts or loads (100 once ready), None when off
    error_message    why it crashed or failed; attempts: loads that failed in a row
    expected_in_s    seconds until it is expected to be ready, while it loads; None = not known
    average_bytes    of the memory that it was seen to take while loaded; 0 = never seen
    size_bytes       of its file; estimate_bytes: what loading it is reckoned to take; context_tokens: of one slot times slots (n_ctx)
    """

    alias: str
    status: ModelStatus
    path: Path
    context_tokens: int
    slots: int
    replicas: int = 1
    port: int | None = None
    started_at_s: float | None = None
    last_used_at_s: float | None = None
    load_progress: int | None = None
    error_message: str = ""
    attempts: int = 0
    expected_in_s: float | None = None
    updated_at_s: float = 0.0
    is_pinned: bool = False
    is_warm: bool = False  # of keep_warm_models: not unloaded for being idle
    size_bytes: int = 0
    estimate_bytes: int = 0
    memory_bytes: int = 0
    average_bytes: int = 0
    load_s: float | None = None  # of the latest load
    loads: int = 0
    runners: tuple[RunnerView, ...] = ()

    @property
    def active(self) -> int:
        """Running requests."""
        return sum(runner.active for runner in self.runners)


@dataclass(frozen=True, slots=True)
class QueueView:
    """One model's line. `oldest_s`: how long its first has waited; position counts from 1."""

    alias: str
    queue_length: int
    total_requests: int
    total_processed: int
    total_rejected: int
    current_processing: int
    oldest_s: float = 0.0
    limit: int = 100


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One place where models lie: a GPU (index as the driver counts), or system RAM (index -1). Bytes; None = not told."""

    index: int
    name: str
    total_bytes: int
    used_bytes: int
    free_bytes: int
    utilization_percent: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None


@dataclass(frozen=True, slots=True)
class FailedView:
    """A model that is not tried again until it is reset."""

    alias: str
    attempts: int
    error: str


@dataclass(frozen=True, slots=True)
class HealthView:
    """What the looks at a loaded model's health came to. `status`: healthy | degraded | down | unknown (never looked at)."""

    alias: str
    uptime_percent: float
    consecutive_failures: int
    avg_response_ms: float
    last_check_s: float | None
    status: str


@dataclass(frozen=True, slots=True)
class RequestSample:
    """One finished request, for the telemetry's window."""

    alias: str
    is_ok: bool
    duration_s: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    queue_s: float = 0.0
    finished_at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Ejected:
    """What an eject came to. `was_loaded` False: there was nothing to unload; `waited_for`: requests that had to end first."""

    alias: str
    was_loaded: bool
    waited_for: int = 0


@dataclass(frozen=True, slots=True)
class ManagerCounts:
    """Totals since the start: loads begun, loads that came to ready, ejects, crashes."""

    loads: int = 0
    loaded: int = 0
    ejects: int = 0
    crashes: int = 0
    by_model: dict[str, int] = field(default_factory=dict)


class ModelManagerApi(Protocol):
    """What doors may ask of the manager. Every reading is from memory; the verbs act through its single writer.

    changed: raised at every change of a status, of progress or of a line; `server` likewise is followed through it
    """

    @property
    def changed(self) -> Watched[int]: ...

    @property
    def catalogue(self) -> Catalogue: ...

    @property
    def server_status(self) -> ServerStatus: ...

    @property
    def server_started_at_s(self) -> float: ...

    @property
    def server_updated_at_s(self) -> float: ...

    def models(self) -> list[ModelView]:
        """List every model of the table, in its order."""
        ...

    def model(self, alias: str) -> ModelView:
        """Give one. Raises NoSuchModel."""
        ...

    def queues(self) -> list[QueueView]: ...

    def devices(self) -> list[DeviceView]: ...

    def failed_models(self) -> list[FailedView]: ...

    def health(self) -> list[HealthView]: ...

    def telemetry(self) -> Sequence[RequestSample]:
        """Give the latest thousand finished requests, oldest first."""
        ...

    def counts(self) -> ManagerCounts: ...

    async def load(self, alias: str, *, keep_alive_s: float | None = None) -> ModelView:
        """Load a model and wait until it is ready.

        Takes   keep_alive_s: how long it stays without a request, negative = for ever, None = as configured
        Raises  NoSuchModel · Unavailable (failed, no memory, shutting down) · TimedOut
        """
        ...

    async def eject(self, alias: str, *, force: bool = False) -> Ejected:
        """Unload a model: its running requests end first, new ones wait for it to be loaded again; `force` cuts them off.

        Raises  NoSuchModel
        """
        ...

    def set_keep_alive(self, alias: str, keep_alive_s: float) -> None:
        """Let a loaded model's stay be `keep_alive_s` from its last request: 0 = it goes as soon as it is idle, negative = never.

        Raises  NoSuchModel
        """
        ...

    def reset(self, alias: str) -> FailedView | None:
        """Forget a model's failures; give what they were, None when there were none.

        Raises  NoSuchModel
        """
        ...

    def pin(self, alias: str, *, pinned: bool = True) -> ModelView:
        """Let a model never be unloaded for others or for idleness, or let it again.

        Raises  NoSuchModel
        """
        ...
