"""The state of one model of the table: its file, its llama-servers, its queue, its failures."""

import math
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from appliance.base.fair_queue import FairQueue
from appliance.models.manager.waiters import SlotWaiter, Waiter
from appliance.models.runner.runner import Runner
from appliance.models.scheduler.demand import Demand
from appliance.models.table.catalogue import Model
from appliance.models.table.estimate import Estimate
from appliance.models.table.file_state import FileState
from appliance.models.table.gguf import GgufHeader

KEPT_PROBES = 100


@dataclass(slots=True, eq=False)
class ModelState:
    """One model of the table. Times ending in `_s` are monotonic except `…_at_s` (seconds since 1970).

    Attributes:
        definition: Its row of the table, with the adapters that were added to it.
        queue: The requests that wait for a slot.
        waiters: All waiters, of requests and of loads, in the order of arrival.
        header, estimate, history_key: Results of the file check; empty until then.
        files: Its files as they were then, in the order of `files_of`.
        file_problem: Why its file cannot be loaded; "" = no problem is known.
        background_load: Load it although no request waits: at the start, or because it stopped unexpectedly.
        failure: Why it is not loaded again until it is reset; "" = it may be loaded.
        last_error: Why the latest load failed or the llama-server crashed.
        attempts: Failures in a row.
        replica_failures: Loads in a row that failed while another llama-server of it runs. It then runs with
            fewer replicas.
        blocked_until_s: It is not loaded again before that time.
        has_reservation: Another model was evicted for it, and it has not been started since: that memory is
            reserved for it.
        evicted_s: When a llama-server of it was last drained or stopped for another model.
        wait_reason: What its queue waits for, as the scheduler said last.
        probes: Results of the latest health probes as (is healthy, milliseconds).
    """

    definition: Model
    queue: FairQueue[SlotWaiter]
    header: GgufHeader | None = None
    file_problem: str = ""
    estimate: Estimate | None = None
    history_key: str = ""
    files: tuple[FileState | None, ...] = ()
    slots: int = 1
    runners: list[Runner] = field(default_factory=list)
    waiters: dict[Waiter[Any], None] = field(default_factory=dict)
    background_load: Literal["", "preload", "restore"] = ""
    failure: str = ""
    last_error: str = ""
    attempts: int = 0
    replica_failures: int = 0
    blocked_until_s: float = 0.0
    is_pinned: bool = False
    demand: Demand = field(default_factory=Demand)
    requests: int = 0
    processed: int = 0
    rejected: int = 0
    loads: int = 0
    load_s: float | None = None
    updated_at_s: float = 0.0
    last_used_at_s: float | None = None
    probes: deque[tuple[bool, float]] = field(default_factory=lambda: deque(maxlen=KEPT_PROBES))
    failed_probes: int = 0
    probed_at_s: float | None = None
    has_reservation: bool = False
    evicted_s: float = -math.inf
    wait_reason: str = ""

    @property
    def alias(self) -> str:
        """Its name in the table."""
        return self.definition.alias

    @property
    def path(self) -> Path | None:
        """Its file; None = only the command of its engine knows."""
        return self.definition.path

    @property
    def size_bytes(self) -> int:
        """The size of its file; 0 until the file was checked."""
        return self.header.size_bytes if self.header is not None else 0

    @property
    def is_file_checked(self) -> bool:
        """Whether its file was checked; the scheduler ignores it before."""
        return bool(self.history_key or self.file_problem)

    def current_runners(self) -> list[Runner]:
        """List its llama-servers that load or run, without those that stop."""
        return [runner for runner in self.runners if runner.phase != "stopping"]

    def has_ready_runner(self) -> bool:
        """Whether one of its llama-servers is ready."""
        return any(runner.phase == "ready" for runner in self.runners)

    def clear_failures(self) -> None:
        """Forget its failures, so that it is loaded again."""
        self.failure, self.last_error = "", ""
        self.attempts, self.replica_failures, self.blocked_until_s = 0, 0, 0.0
