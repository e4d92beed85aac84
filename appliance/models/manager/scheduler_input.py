"""The input of the scheduler, made from the manager's state."""

from appliance.models.manager.device_memory import DeviceMemory
from appliance.models.manager.estimates import Estimates
from appliance.models.manager.model_state import ModelState
from appliance.models.manager.retention import Retention
from appliance.models.manager.state import ManagerState
from appliance.models.manager.waiters import LoadWaiter
from appliance.models.runner.runner import Runner
from appliance.models.scheduler.state import (
    ModelFacts,
    QueueState,
    ResidentRunner,
    SchedulerRules,
    SchedulerState,
)

LOW_PRIORITY = 2


class SchedulerInput:
    """Makes the scheduler's input."""

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

    def read(self, now_s: float, *, extra_wait_s: float, ageing_s: float) -> SchedulerState:
        """Return the scheduler's input. Args are as in `SchedulerRules`; `now_s` is monotonic."""
        queues, facts = [], {}
        for model in self._state.models.values():
            has_queue = (model.waiters or model.background_load) and model.is_file_checked
            queue = queue_state(model, now_s) if has_queue else None
            if queue is not None:
                queues.append(queue)
                facts[model.alias] = self._facts(model, now_s)
        runners = self._state.runners.values()
        residents = [self._resident(runner, now_s) for runner in runners]
        # Memory matters only while requests wait; mostly the scheduler runs at a request's end, with none.
        free, total = self._device_memory.free_and_total(runners, now_s) if queues else ({}, {})
        rules = SchedulerRules(
            self._state.catalogue.system.max_concurrent_models, extra_wait_s, ageing_s=ageing_s
        )
        conflicts = self._state.catalogue.conflicts
        return SchedulerState(queues, residents, facts, free, total, rules, conflicts)

    def _facts(self, model: ModelState, now_s: float) -> ModelFacts:
        blocked_s, replicas = max(0.0, model.blocked_until_s - now_s), model.definition.replicas
        if blocked_s and model.replica_failures:  # it continues with the replicas that run
            blocked_s, replicas = 0.0, max(1, min(replicas, len(model.current_runners())))
        return ModelFacts(
            alias=model.alias,
            need_bytes=self._estimates.need_bytes(model),
            on_gpu=self._estimates.is_on_gpu(model.definition),
            load_s=self._estimates.load_s(model),
            replicas=replicas,
            is_failed=bool(model.failure),
            blocked_s=blocked_s,
        )

    def _resident(self, runner: Runner, now_s: float) -> ResidentRunner:
        model = self._state.models.get(runner.alias)
        if model is None:  # it left the table: it only ends its running requests
            return resident_runner(runner, now_s, load_s=0.0, demand=0.0, is_pinned=False, expires_in_s=0.0)
        return resident_runner(
            runner,
            now_s,
            load_s=self._estimates.load_s(model),
            demand=model.demand.rate(now_s),
            is_pinned=model.is_pinned,
            expires_in_s=self._retention.expires_in_s(runner, model, now_s),
        )


def queue_state(model: ModelState, now_s: float) -> QueueState | None:
    """Return a model's queue as the scheduler sees it; None = no client waits and no load is wanted."""
    if not model.waiters:
        if not model.background_load or model.current_runners():
            return None
        return QueueState(model.alias, loads=1, priority=LOW_PRIORITY, may_evict=False)
    waiters = list(model.waiters)
    loads = sum(isinstance(waiter, LoadWaiter) for waiter in waiters)
    return QueueState(
        model.alias,
        requests=len(waiters) - loads,
        loads=loads,
        oldest_s=now_s - waiters[0].since_s,
        priority=min(waiter.priority for waiter in waiters),
        has_reservation=model.has_reservation,
        since_eviction_s=now_s - model.evicted_s,
    )


def resident_runner(
    runner: Runner,
    now_s: float,
    *,
    load_s: float,
    demand: float,
    is_pinned: bool,
    expires_in_s: float | None,
) -> ResidentRunner:
    """Return a llama-server as the scheduler sees it; `load_s` is used where its own load was not seen."""
    memory = runner.memory_by_device
    if runner.phase == "loading":  # all that it will take
        memory = dict.fromkeys(runner.devices, runner.need_bytes // len(runner.devices))
    return ResidentRunner(
        serial=runner.serial,
        alias=runner.alias,
        phase=runner.phase,
        slots=runner.slots,
        active=runner.active,
        memory=memory,
        idle_s=0.0 if runner.active else now_s - runner.idle_since_s,
        ready_s=now_s - runner.ready_since_s,
        load_s=runner.load_s or load_s,
        demand=demand,
        is_pinned=is_pinned,
        is_draining=runner.is_draining,
        expires_in_s=expires_in_s,
    )
