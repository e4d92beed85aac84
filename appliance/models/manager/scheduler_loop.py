"""Asks the scheduler what must happen next, does it, and asks again, until there is nothing to do.

It runs whenever a request arrives, leaves or ends, when a llama-server is ready or removed, and at the time
that the scheduler named.
"""

import asyncio

from appliance.base.logs import get_logger
from appliance.models.manager.errors import AllPinned, GroupPinned, InsufficientMemory, ModelFailed
from appliance.models.manager.events import ManagerEvents
from appliance.models.manager.leases import Leases
from appliance.models.manager.model_state import ModelState
from appliance.models.manager.scheduler_input import SchedulerInput
from appliance.models.manager.state import ManagerState
from appliance.models.manager.supervisor import RunnerSupervisor
from appliance.models.manager.waiters import LoadWaiter
from appliance.models.runner.runner import Runner
from appliance.models.scheduler.scheduler import DOES_NOT_FIT, next_step
from appliance.models.scheduler.state import (
    MIB,
    Drain,
    Refuse,
    Resume,
    Serve,
    Start,
    Step,
    Stop,
    Wait,
)

log = get_logger("models")
MAX_STEPS = 1000  # of one run: more would be decisions that undo each other
MIN_PAUSE_S = 0.005
UNSETTLED_PAUSE_S = 1.0


class SchedulerLoop:
    """Runs the scheduler and acts. Build it inside the event loop.

    Args:
        state: Shared with the other parts of the manager.
        scheduler_input: Makes the scheduler's input.
        supervisor: Starts and stops llama-servers.
        leases: Grants slots to requests.
        events: Gets each refused request.
        extra_wait_s: See `SchedulerRules`; may be set at any time.
        ageing_s: See `SchedulerRules`.
    """

    def __init__(
        self,
        state: ManagerState,
        *,
        scheduler_input: SchedulerInput,
        supervisor: RunnerSupervisor,
        leases: Leases,
        events: ManagerEvents,
        extra_wait_s: float,
        ageing_s: float,
    ) -> None:
        self.extra_wait_s = extra_wait_s
        self._ageing_s = ageing_s
        self._state = state
        self._input = scheduler_input
        self._supervisor = supervisor
        self._leases = leases
        self._events = events
        self._is_running = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def run(self) -> None:
        """Act until the scheduler waits, and set a timer if time alone will change that."""
        if self._is_running or self._state.is_closed:
            return
        self._is_running = True
        self._cancel_timer()
        try:
            for _ in range(MAX_STEPS):
                now_s = self._state.clock.monotonic_s()
                step = next_step(
                    self._input.read(now_s, extra_wait_s=self.extra_wait_s, ageing_s=self._ageing_s)
                )
                if isinstance(step, Wait):
                    self._wait(step)
                    return
                self._act(step, now_s)
            log.error("scheduler_does_not_settle", step=repr(step))
            self._timer = self._loop.call_later(UNSETTLED_PAUSE_S, self.run)
        finally:
            self._is_running = False

    def close(self) -> None:
        """Cancel the timer; `ManagerState.is_closed` keeps it from running again."""
        self._cancel_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self, step: Wait) -> None:
        for alias, reason in step.reasons.items():
            model = self._state.models[alias]
            model.wait_reason = reason
            if reason == DOES_NOT_FIT and model.background_load == "restore":
                model.background_load = ""  # others use the memory by now; the next request loads it
        if step.again_s is not None:
            self._timer = self._loop.call_later(max(MIN_PAUSE_S, step.again_s), self.run)

    def _act(self, step: Step, now_s: float) -> None:
        models, runners = self._state.models, self._state.runners
        match step:
            case Serve():
                self._serve(models[step.alias], runners[step.serial], now_s)
            case Start():
                self._supervisor.start(models[step.alias], step.devices, now_s)
            case Stop():
                self._stop(runners[step.serial], step, now_s)
            case Drain():
                runner = runners[step.serial]
                runner.is_draining = True
                self._note_eviction(runner, step.alias, now_s)
            case Resume():
                runners[step.serial].is_draining = False
            case Refuse():
                self._refuse(models[step.alias], step)

    def _stop(self, runner: Runner, step: Stop, now_s: float) -> None:
        log.info(
            "model_unloading",
            alias=runner.alias,
            port=runner.port,
            why=step.why,
            evicted_for=step.alias or None,
        )
        self._supervisor.unload(runner)
        if step.why == "evicted":
            self._note_eviction(runner, step.alias, now_s)

    def _note_eviction(self, runner: Runner, alias: str, now_s: float) -> None:
        self._state.models[alias].has_reservation = True
        self._state.models[runner.alias].evicted_s = now_s

    def _serve(self, model: ModelState, runner: Runner, now_s: float) -> None:
        """Give a slot to the next request of a queue."""
        while len(model.queue):
            waiter = model.queue.pop(now_s)
            model.waiters.pop(waiter, None)
            if not waiter.future.done():
                waiter.future.set_result(
                    self._leases.grant(
                        runner,
                        model,
                        now_s=now_s,
                        waited_s=now_s - waiter.since_s,
                        keep_alive_s=waiter.keep_alive_s,
                    )
                )
                return
        # Only load waiters may be left: they are not in the queue.
        for left in [waiter for waiter in model.waiters if not isinstance(waiter, LoadWaiter)]:
            model.waiters.pop(left, None)

    def _refuse(self, model: ModelState, step: Refuse) -> None:
        model.background_load = ""
        for waiter in list(model.waiters):
            waiter.fail(self._refusal(model, step))
            model.waiters.pop(waiter, None)
        while len(model.queue):
            model.queue.pop(self._state.clock.monotonic_s())
        self._state.notify(model)

    def _refusal(self, model: ModelState, step: Refuse) -> Exception:
        models = self._state.models.values()
        if step.why == "failed":
            return ModelFailed(model.alias, reason=model.failure, attempts=model.attempts)
        if step.why == "pinned":
            return AllPinned(
                model.alias,
                limit=self._state.catalogue.system.max_concurrent_models,
                pinned=[other.alias for other in models if other.is_pinned],
            )
        if step.why == "group":
            beside = self._state.catalogue.conflicts.get(model.alias, frozenset())
            return GroupPinned(
                model.alias,
                pinned=[
                    other.alias
                    for other in models
                    if other.is_pinned and other.alias in beside and other.current_runners()
                ],
            )
        loaded = [other.alias for other in models if other.current_runners()]
        model.rejected += 1
        self._events.rejected(model.alias)
        return InsufficientMemory(
            model.alias,
            required_mb=step.need_bytes / MIB,
            available_mb=step.available_bytes / MIB,
            loaded_models=loaded,
        )
