"""The manager's readings: plain values, and the protocol that returns them (ModelManagerApi).

Clients may expect these status words (docs/compatibility.md): off, starting, loading, ready, loaded (alias of
ready), standby (deprecated), stopping, crashed, failed, unknown. We use off, starting, loading, ready,
stopping, crashed (it is tried again) and failed (it is not, until it is reset).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from appliance.base.watch import Watched
from appliance.models.table.catalogue import Catalogue

ModelStatus = Literal["off", "starting", "loading", "ready", "stopping", "crashed", "failed"]
ServerStatus = Literal["initializing", "ready", "shutting_down"]
RAM = -1  # the index of system memory among the devices
KEPT_SAMPLES = 1000  # finished requests that ModelManagerApi.telemetry() returns at most
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

    Attributes:
        load_s: From start to ready; None while it loads.
        devices: Bytes that it takes, by device index (-1 = system memory).
        expires_at_s: When it is unloaded if no request comes; None = never.
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

    Attributes:
        path: Its file; None = it runs by a command that has its own.
        context_tokens: For all slots together (n_ctx); with a command that of one request. 0 = not known.
        request_tokens: The context that one request may have; 0 = not known.
        load_progress: 0 to 100 while it starts or loads (100 once ready), None when off.
        error_message: Why it crashed or failed.
        attempts: Loads that failed in a row.
        expected_in_s: Seconds until it is expected to be ready, while it loads; None = not known.
        is_warm: One of keep_warm_models: not unloaded for being idle.
        size_bytes: Of its file.
        estimate_bytes: The memory that a load is expected to take.
        average_bytes: The memory that was measured while it was loaded; 0 = never measured.
        load_s: Of the latest load.
        aliases: Further names of it.
    """

    alias: str
    status: ModelStatus
    path: Path | None
    context_tokens: int
    slots: int
    request_tokens: int = 0
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
    is_warm: bool = False
    size_bytes: int = 0
    estimate_bytes: int = 0
    memory_bytes: int = 0
    average_bytes: int = 0
    load_s: float | None = None
    loads: int = 0
    runners: tuple[RunnerView, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def active(self) -> int:
        """Running requests."""
        return sum(runner.active for runner in self.runners)


@dataclass(frozen=True, slots=True)
class QueueView:
    """The queue of one model.

    Attributes:
        oldest_s: The longest wait in it, in seconds.
        limit: Requests that it may have (max_queue_size_per_model).
    """

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
    """One device that models are loaded into; None = not known.

    Attributes:
        index: Of a GPU as the driver counts; -1 = system memory.
    """

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
    """The results of the latest health probes of a model.

    Attributes:
        status: healthy | degraded | down | unknown (never probed).
        last_check_s: Seconds since 1970.
    """

    alias: str
    uptime_percent: float
    consecutive_failures: int
    avg_response_ms: float
    last_check_s: float | None
    status: str


@dataclass(frozen=True, slots=True)
class RequestSample:
    """One finished request. `queue_s` is a part of `duration_s`; `finished_at_s` is in seconds since 1970."""

    alias: str
    is_ok: bool
    duration_s: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    queue_s: float = 0.0
    finished_at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Ejected:
    """The result of an eject; `waited_for`: the requests that had to end first."""

    alias: str
    was_loaded: bool
    waited_for: int = 0


@dataclass(frozen=True, slots=True)
class ManagerCounts:
    """Totals since the start: loads begun, loads that became ready, ejects, crashes."""

    loads: int = 0
    loaded: int = 0
    ejects: int = 0
    crashes: int = 0
    by_model: dict[str, int] = field(default_factory=dict)


class ModelManagerApi(Protocol):
    """The part of the manager that interfaces use.

    Readings are made from memory; the verbs act through its single writer.
    """

    @property
    def changed(self) -> Watched[int]:
        """Rises at every change of a status, of a load's progress, or of a queue."""
        ...

    @property
    def catalogue(self) -> Catalogue:
        """The table of models."""
        ...

    @property
    def server_status(self) -> ServerStatus:
        """The status of the server as a whole."""
        ...

    @property
    def server_started_at_s(self) -> float:
        """When it was started, in seconds since 1970."""
        ...

    @property
    def server_updated_at_s(self) -> float:
        """When `server_status` changed last, in seconds since 1970."""
        ...

    def models(self) -> list[ModelView]:
        """List every model of the table, in its order."""
        ...

    def model(self, alias: str) -> ModelView:
        """Return one model.

        Raises:
            NoSuchModel: The table has no such model.
        """
        ...

    def log_finder(self, alias: str, port: int = 0) -> Callable[[], Path | None]:
        """Return a function for a thread of its own that returns the path of a model's log; None = no log.

        Args:
            alias: The model.
            port: Of one of its llama-servers; 0 = the first one, or the latest that ended.

        Raises:
            NoSuchModel: The table has no such model.
        """
        ...

    def queues(self) -> list[QueueView]:
        """List the queue of every model."""
        ...

    def devices(self) -> list[DeviceView]:
        """List the devices that models are loaded into."""
        ...

    def failed_models(self) -> list[FailedView]:
        """List the models that are not loaded again until they are reset."""
        ...

    def health(self) -> list[HealthView]:
        """List the results of the latest health probes of each model."""
        ...

    def telemetry(self) -> Sequence[RequestSample]:
        """List the latest KEPT_SAMPLES finished requests, oldest first."""
        ...

    def counts(self) -> ManagerCounts:
        """Return the totals since the start."""
        ...

    async def load(self, alias: str, *, keep_alive_s: float | None = None) -> ModelView:
        """Load a model and wait until it is ready.

        Args:
            alias: A key of the table.
            keep_alive_s: How long it stays without a request; negative = for ever, None = as configured.

        Raises:
            NoSuchModel: The table has no such model.
            Unavailable: It has failed, does not fit, or the appliance is shutting down.
            TimedOut: It was not ready within `queue_timeout_sec`.
        """
        ...

    async def eject(self, alias: str, *, force: bool = False) -> Ejected:
        """Unload a model and wait until it is removed.

        Its running requests end first, unless `force` ends them; new ones wait until it is loaded again.

        Raises:
            NoSuchModel: The table has no such model.
        """
        ...

    def set_keep_alive(self, alias: str, keep_alive_s: float) -> None:
        """Set how long a loaded model stays after its last request; 0 = until it is idle, negative = always.

        Raises:
            NoSuchModel: The table has no such model.
        """
        ...

    def reset(self, alias: str) -> FailedView | None:
        """Forget a model's failures; return what they were, None when there were none.

        Raises:
            NoSuchModel: The table has no such model.
        """
        ...

    def pin(self, alias: str, *, pinned: bool = True) -> ModelView:
        """Pin or unpin a model. A pinned one is unloaded neither for other models nor when idle.

        Raises:
            NoSuchModel: The table has no such model.
        """
        ...
