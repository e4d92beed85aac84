"""What the manager tells (ModelManagerApi): every reading is made from memory, none waits for anything."""

from collections.abc import Sequence

from appliance.base.clock import Clock
from appliance.base.errors import NoSuchModel
from appliance.base.tasks import Tasks
from appliance.models.manager.events import ManagerEvents
from appliance.models.manager.state import STATISTICS, ModelState, Runner
from appliance.models.manager.supervisor import RunnerSupervisor
from appliance.models.runner.load_history import LoadHistory
from appliance.models.runner.loader import Loader
from appliance.models.runner.vram import Memory
from appliance.models.status.views import (
    DeviceView,
    FailedView,
    HealthView,
    ManagerCounts,
    ModelStatus,
    ModelView,
    QueueView,
    RequestSample,
    RunnerView,
    ServerStatus,
)
from appliance.models.table.catalogue import Catalogue

MEMORY_FRESH_S = 0.25
DEGRADED, DOWN = 2, 5  # looks that failed in a row


class StatusView(RunnerSupervisor):
    """The manager's readings."""

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        loader: Loader,
        memory: Memory,
        history: LoadHistory,
        tasks: Tasks,
        clock: Clock,
        events: ManagerEvents,
    ) -> None:
        super().__init__(
            catalogue, loader=loader, memory=memory, history=history, tasks=tasks, clock=clock, events=events
        )
        self._status: ServerStatus = "initializing"
        self._started_at_s = self._status_at_s = clock.now_s()

    @property
    def server_status(self) -> ServerStatus:
        return self._status

    @property
    def server_started_at_s(self) -> float:
        return self._started_at_s

    @property
    def server_updated_at_s(self) -> float:
        return self._status_at_s

    def model_state(self, alias: str) -> ModelState:
        """Give a model's entry.

        Raises  NoSuchModel
        """
        entry = self.model_states.get(alias)
        if entry is None:
            known = ", ".join(list(self.model_states)[:20])
            raise NoSuchModel(
                f"The model {alias[:200]!r} does not exist here. Known: {known}.", param="model"
            )
        return entry

    def models(self) -> list[ModelView]:
        now_s, warm = self._clock.monotonic_s(), self.warm()
        return [self._view(entry, now_s, warm) for entry in self.model_states.values()]

    def model(self, alias: str) -> ModelView:
        return self._view(self.model_state(alias), self._clock.monotonic_s(), self.warm())

    def _view(self, entry: ModelState, now_s: float, warm: set[str]) -> ModelView:
        runners = sorted(
            entry.runners, key=lambda runner: ("ready", "loading", "stopping").index(runner.phase)
        )
        first = runners[0] if runners else None
        lesson = self.history.of(entry.key)
        return ModelView(
            entry.alias,
            self._word(entry),
            entry.path,
            entry.model.params.n_ctx,
            entry.slots,
            entry.model.replicas,
            port=first.port or None if first else None,
            started_at_s=first.started_at_s if first else None,
            last_used_at_s=entry.last_used_at_s,
            load_progress=first.progress if first else None,
            error_message=entry.failed or entry.error or ("" if runners else entry.problem),
            attempts=entry.attempts,
            expected_in_s=self._expected_in_s(entry, first, now_s),
            updated_at_s=entry.updated_at_s,
            is_pinned=entry.is_pinned,
            is_warm=entry.alias in warm,
            size_bytes=entry.header.size_bytes if entry.header else 0,
            estimate_bytes=self.need_bytes(entry),
            memory_bytes=sum(sum(runner.memory.values()) for runner in runners),
            average_bytes=lesson.memory_bytes if lesson else 0,
            load_s=entry.load_s,
            loads=entry.loads,
            runners=tuple(self._runner(runner, entry, now_s) for runner in runners),
        )

    def _word(self, entry: ModelState) -> ModelStatus:
        """Give the status: of several llama-servers the best."""
        phases = {runner.phase: runner for runner in entry.runners}
        if "ready" in phases:
            return "ready"
        if "loading" in phases:
            return phases["loading"].word
        if "stopping" in phases:
            return "stopping"
        return "failed" if entry.failed else "crashed" if entry.attempts else "off"

    def _expected_in_s(self, entry: ModelState, runner: Runner | None, now_s: float) -> float | None:
        if runner is None or runner.phase != "loading":
            return None
        return round(max(0.0, self.expected_load_s(entry) - (now_s - runner.began_s)), 1)

    def _runner(self, runner: Runner, entry: ModelState, now_s: float) -> RunnerView:
        stays_s = self.stays_s(runner, entry, now_s) if runner.phase == "ready" else None
        return RunnerView(
            runner.alias,
            runner.port,
            runner.process.pid if runner.process else 0,
            runner.word if runner.phase == "loading" else runner.phase,
            runner.started_at_s,
            runner.slots,
            runner.active,
            runner.load_s or None,
            runner.last_used_at_s,
            self._clock.now_s() + stays_s if stays_s is not None else None,
            sum(runner.memory.values()),
            tuple(runner.memory.items()),
            runner.process.log_path if runner.process else None,
        )

    def queues(self) -> list[QueueView]:
        now_s = self._clock.monotonic_s()
        rows = []
        for entry in self.model_states.values():
            oldest_s = max((now_s - waiter.since_s for waiter, _ in entry.waiters.values()), default=0.0)
            rows.append(
                QueueView(
                    entry.alias,
                    len(entry.waiters),
                    entry.requests,
                    entry.processed,
                    entry.rejected,
                    sum(runner.active for runner in entry.runners),
                    oldest_s,
                    entry.line.limit,
                )
            )
        return rows

    def devices(self) -> list[DeviceView]:
        return self.read_devices(self._clock.monotonic_s())

    def read_devices(self, now_s: float) -> list[DeviceView]:
        """Give the driver's reading, at most MEMORY_FRESH_S old."""
        if now_s - self._devices_at_s >= MEMORY_FRESH_S:
            self._devices, self._devices_at_s = self.memory.read(), now_s
            self.ram_beside_gpus = self.ram.read() if self.memory.is_gpu else []
        return self._devices

    def failed_models(self) -> list[FailedView]:
        return [
            FailedView(entry.alias, entry.attempts, entry.failed)
            for entry in self.model_states.values()
            if entry.failed
        ]

    def health(self) -> list[HealthView]:
        rows = []
        for entry in self.model_states.values():
            latest = list(entry.looks)[-STATISTICS:]
            well = [took_ms for is_well, took_ms in latest if is_well]
            status = (
                "unknown"
                if not latest
                else "down"
                if entry.misses >= DOWN
                else "degraded"
                if entry.misses >= DEGRADED
                else "healthy"
            )
            rows.append(
                HealthView(
                    entry.alias,
                    100.0 * len(well) / len(latest) if latest else 0.0,
                    entry.misses,
                    sum(well) / len(well) if well else 0.0,
                    entry.looked_at_s,
                    status,
                )
            )
        return rows

    def telemetry(self) -> Sequence[RequestSample]:
        return list(self.samples)

    def counts(self) -> ManagerCounts:
        totals = self.totals
        return ManagerCounts(
            totals.loads,
            totals.loaded,
            totals.ejects,
            totals.crashes,
            {entry.alias: entry.loads for entry in self.model_states.values()},
        )
