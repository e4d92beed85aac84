"""The manager's readings for interfaces; made from memory, so that none waits."""

from collections.abc import Sequence

from appliance.models.manager.device_memory import DeviceMemory
from appliance.models.manager.estimates import Estimates
from appliance.models.manager.model_state import ModelState
from appliance.models.manager.retention import Retention
from appliance.models.manager.state import ManagerState
from appliance.models.runner.runner import Runner
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
)
from appliance.models.table.command import context_of, request_context_tokens

DEGRADED, DOWN = 2, 5  # health probes that failed in a row
PROBES_COUNTED = 20  # the latest health probes that statistics are made of
_PHASES = ("ready", "loading", "stopping")  # the best first


class StatusView:
    """Implements the readings of `ModelManagerApi`."""

    def __init__(
        self,
        state: ManagerState,
        *,
        estimates: Estimates,
        retention: Retention,
        device_memory: DeviceMemory,
    ) -> None:
        self._state = state
        self._estimates = estimates
        self._retention = retention
        self._device_memory = device_memory

    def models(self) -> list[ModelView]:
        """List every model of the table, in its order."""
        now_s, warm = self._state.clock.monotonic_s(), self._retention.warm_models()
        return [self._model_view(model, now_s, warm) for model in self._state.models.values()]

    def model(self, alias: str) -> ModelView:
        """Return one model.

        Raises:
            NoSuchModel: The table has no such model.
        """
        now_s, warm = self._state.clock.monotonic_s(), self._retention.warm_models()
        return self._model_view(self._state.model(alias), now_s, warm)

    def queues(self) -> list[QueueView]:
        """List the queue of every model."""
        now_s = self._state.clock.monotonic_s()
        return [
            QueueView(
                alias=model.alias,
                queue_length=len(model.waiters),
                total_requests=model.requests,
                total_processed=model.processed,
                total_rejected=model.rejected,
                current_processing=sum(runner.active for runner in model.runners),
                oldest_s=max((now_s - waiter.since_s for waiter in model.waiters), default=0.0),
                limit=model.queue.limit,
            )
            for model in self._state.models.values()
        ]

    def devices(self) -> list[DeviceView]:
        """List the devices that models are loaded into."""
        return self._device_memory.read(self._state.clock.monotonic_s())

    def failed_models(self) -> list[FailedView]:
        """List the models that are not loaded again until they are reset."""
        return [
            FailedView(model.alias, model.attempts, model.failure)
            for model in self._state.models.values()
            if model.failure
        ]

    def health(self) -> list[HealthView]:
        """List the results of the latest health probes of each model."""
        return [_health_view(model) for model in self._state.models.values()]

    def telemetry(self) -> Sequence[RequestSample]:
        """List the latest finished requests, oldest first."""
        return list(self._state.samples)

    def counts(self) -> ManagerCounts:
        """Return the totals since the start."""
        counts = self._state.counts
        return ManagerCounts(
            counts.loads,
            counts.loaded,
            counts.ejects,
            counts.crashes,
            {model.alias: model.loads for model in self._state.models.values()},
        )

    def _model_view(self, model: ModelState, now_s: float, warm: set[str]) -> ModelView:
        runners = sorted(model.runners, key=lambda runner: _PHASES.index(runner.phase))
        first = runners[0] if runners else None
        record = self._estimates.record(model)
        return ModelView(
            alias=model.alias,
            status=status_of(model),
            path=model.path,
            context_tokens=context_of(model.definition),
            slots=model.slots,
            aliases=model.definition.aliases,
            request_tokens=request_context_tokens(model.definition, model.header, model.slots),
            replicas=model.definition.replicas,
            port=first.port or None if first else None,
            started_at_s=first.started_at_s if first else None,
            last_used_at_s=model.last_used_at_s,
            load_progress=first.load_progress if first else None,
            error_message=model.failure or model.last_error or ("" if runners else model.file_problem),
            attempts=model.attempts,
            expected_in_s=self._expected_in_s(model, first, now_s),
            updated_at_s=model.updated_at_s,
            is_pinned=model.is_pinned,
            is_warm=model.alias in warm,
            size_bytes=model.size_bytes,
            estimate_bytes=self._estimates.need_bytes(model),
            memory_bytes=sum(runner.memory_bytes for runner in runners),
            average_bytes=record.memory_bytes if record else 0,
            load_s=model.load_s,
            loads=model.loads,
            runners=tuple(self._runner_view(runner, model, now_s) for runner in runners),
        )

    def _expected_in_s(self, model: ModelState, runner: Runner | None, now_s: float) -> float | None:
        if runner is None or runner.phase != "loading":
            return None
        return round(max(0.0, self._estimates.load_s(model) - (now_s - runner.load_started_s)), 1)

    def _runner_view(self, runner: Runner, model: ModelState, now_s: float) -> RunnerView:
        is_ready = runner.phase == "ready"
        expires_in_s = self._retention.expires_in_s(runner, model, now_s) if is_ready else None
        return RunnerView(
            alias=runner.alias,
            port=runner.port,
            pid=runner.pid,
            status=runner.load_phase if runner.phase == "loading" else runner.phase,
            started_at_s=runner.started_at_s,
            slots=runner.slots,
            active=runner.active,
            load_s=runner.load_s or None,
            last_used_at_s=runner.last_used_at_s,
            expires_at_s=self._state.clock.now_s() + expires_in_s if expires_in_s is not None else None,
            memory_bytes=runner.memory_bytes,
            devices=tuple(runner.memory_by_device.items()),
            log_path=runner.process.log_path if runner.process else None,
        )


def status_of(model: ModelState) -> ModelStatus:
    """Return the status word of a model.

    1. one of its llama-servers is ready       → ready
    2. one of them is being loaded             → starting or loading
    3. one of them stops                       → stopping
    4. it is not loaded again until a reset    → failed
    5. its latest load failed, or it crashed   → crashed
    6. else                                    → off
    """
    by_phase = {runner.phase: runner for runner in model.runners}
    if "ready" in by_phase:  # 1
        return "ready"
    if "loading" in by_phase:  # 2
        return by_phase["loading"].load_phase
    if "stopping" in by_phase:  # 3
        return "stopping"
    if model.failure:  # 4
        return "failed"
    return "crashed" if model.attempts else "off"  # 5, 6


def _health_view(model: ModelState) -> HealthView:
    latest = list(model.probes)[-PROBES_COUNTED:]
    healthy_ms = [took_ms for is_healthy, took_ms in latest if is_healthy]
    return HealthView(
        alias=model.alias,
        uptime_percent=100.0 * len(healthy_ms) / len(latest) if latest else 0.0,
        consecutive_failures=model.failed_probes,
        avg_response_ms=sum(healthy_ms) / len(healthy_ms) if healthy_ms else 0.0,
        last_check_s=model.probed_at_s,
        status=_health_word(model.failed_probes) if latest else "unknown",
    )


def _health_word(failed_probes: int) -> str:
    if failed_probes >= DOWN:
        return "down"
    return "degraded" if failed_probes >= DEGRADED else "healthy"
