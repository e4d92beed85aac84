"""Whose turn it is: the scheduler is asked what must happen next, that is done, and it is asked again, until there is nothing.

It is somebody's turn whenever a request comes, leaves or ends, a llama-server has come or gone, or the time has come that the scheduler named.
"""

import asyncio

from appliance.base.clock import Clock
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.models.manager.errors import AllPinned, InsufficientMemory, ModelFailed
from appliance.models.manager.events import ManagerEvents
from appliance.models.manager.readings import StatusView
from appliance.models.manager.state import Lease, ModelState, Runner
from appliance.models.runner.load_history import LoadHistory
from appliance.models.runner.loader import Loader
from appliance.models.runner.vram import Memory
from appliance.models.scheduler.scheduler import NO_ROOM, next_step
from appliance.models.scheduler.state import (
    MIB,
    Close,
    Open,
    Refuse,
    ResidentRunner,
    SchedulerRules,
    SchedulerState,
    Serve,
    Start,
    Step,
    Stop,
    Wait,
)
from appliance.models.status.views import RAM, RequestSample
from appliance.models.table.catalogue import Catalogue

log = get_logger("models")
MOST_STEPS = 1000  # of one turn: more would be a decision that undoes itself


class SchedulerLoop(StatusView):
    """Decides and does. Build it inside the event loop."""

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
        extra_wait_s: float,
        ageing_s: float,
    ) -> None:
        super().__init__(
            catalogue, loader=loader, memory=memory, history=history, tasks=tasks, clock=clock, events=events
        )
        self._extra_wait_s, self._ageing_s = extra_wait_s, ageing_s
        self._is_turning = self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def _turn(self) -> None:
        """Do what must be done now, and set the clock for what only time will change."""
        if self._is_turning or self._is_closed:
            return
        self._is_turning = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            for _ in range(MOST_STEPS):
                now_s = self._clock.monotonic_s()
                step = next_step(self._house(now_s))
                if isinstance(step, Wait):
                    for alias, reason in step.reasons.items():
                        self.model_states[alias].reason = reason
                        if reason == NO_ROOM and self.model_states[alias].wanted == "restore":
                            self.model_states[
                                alias
                            ].wanted = ""  # others have its place by now; whoever asks for it, loads it
                    if step.again_s is not None:
                        self._timer = self._loop.call_later(max(0.005, step.again_s), self._turn)
                    return
                self._do(step, now_s)
            log.error("scheduler_does_not_settle", step=repr(step))
            self._timer = self._loop.call_later(1.0, self._turn)
        finally:
            self._is_turning = False

    def _house(self, now_s: float) -> SchedulerState:
        lines, facts = [], {}
        for entry in self.model_states.values():
            line = entry.line_view(now_s) if (entry.waiters or entry.wanted) and entry.is_known else None
            if line is not None:
                lines.append(line)
                facts[entry.alias] = entry.facts(
                    now_s,
                    need_bytes=self.need_bytes(entry),
                    on_gpu=self._is_on_gpu(entry.model),
                    load_s=self.expected_load_s(entry),
                    replicas=entry.model.replicas,
                )
        residents = [
            self._resident(runner, self.model_states.get(runner.alias), now_s) for runner in self.runners()
        ]
        # Memory matters only to those who wait, and most turns are an answer's end with nobody waiting.
        free, total = self._memory(now_s) if lines else ({}, {})
        rules = SchedulerRules(
            self.catalogue.system.max_concurrent_models, self._extra_wait_s, ageing_s=self._ageing_s
        )
        return SchedulerState(lines, residents, facts, free, total, rules)

    def _memory(self, now_s: float) -> tuple[dict[int, int], dict[int, int]]:
        """Give bytes by device as (free, total); of the free ones is taken off what will be taken yet."""
        devices = [*self.read_devices(now_s), *self.ram_beside_gpus]
        free = {device.index: device.free_bytes for device in devices}
        for runner in self.runners():
            for device in runner.devices:
                if runner.phase == "loading":  # what it has not taken yet is spoken for
                    free[device] = free.get(device, 0) - max(
                        0, runner.need_bytes // len(runner.devices) - runner.memory.get(device, 0)
                    )
                if device == RAM:
                    free[device] = free.get(device, 0) - runner.file_bytes
        return free, {device.index: device.total_bytes for device in devices}

    def _resident(self, runner: Runner, entry: ModelState | None, now_s: float) -> ResidentRunner:
        if entry is None:  # its model was taken out of the table: it only ends what it has begun
            return runner.resident(now_s, demand=0.0, is_pinned=False, stays_s=0.0, expected_load_s=0.0)
        return runner.resident(
            now_s,
            demand=entry.demand.rate(now_s),
            is_pinned=entry.is_pinned,
            stays_s=self.stays_s(runner, entry, now_s),
            expected_load_s=self.expected_load_s(entry),
        )

    def _do(self, step: Step, now_s: float) -> None:
        if isinstance(step, Serve):
            self._serve(self.model_states[step.alias], self._live(step.key), now_s)
        elif isinstance(step, Start):
            self._start(self.model_states[step.alias], step.devices, now_s)
        elif isinstance(step, Stop):
            runner = self._live(step.key)
            log.info(
                "model_unloads",
                alias=runner.alias,
                port=runner.port,
                why=step.why,
                makes_room_for=step.alias or None,
            )
            self._unload(runner)
            if step.why == "room":
                self._gives_way(runner, step.alias, now_s)
        elif isinstance(step, Close):
            runner = self._live(step.key)
            runner.is_closed = True
            self._gives_way(runner, step.alias, now_s)
        elif isinstance(step, Open):
            self._live(step.key).is_closed = False
        elif isinstance(step, Refuse):
            self._refuse(self.model_states[step.alias], step)

    def _gives_way(self, runner: Runner, alias: str, now_s: float) -> None:
        self.model_states[alias].is_owed = True
        self.model_states[runner.alias].turn_ended_s = now_s

    def _live(self, key: int) -> Runner:
        return next(runner for runner in self.runners() if runner.serial == key)

    def _serve(self, entry: ModelState, runner: Runner, now_s: float) -> None:
        """Give the next one in line a slot."""
        while len(entry.line):
            waiter = entry.line.pop(now_s)
            entry.waiters.pop(id(waiter), None)
            if not waiter.is_done and waiter.lease is not None:
                waiter.lease.set_result(
                    self._leased(runner, entry, now_s, now_s - waiter.since_s, waiter.keep_alive_s)
                )
                return
        for waiter, _ in list(
            entry.waiters.values()
        ):  # those who are not in line want no slot; nobody else can be left
            if not waiter.is_load:
                entry.waiters.pop(id(waiter), None)

    def _refuse(self, entry: ModelState, step: Refuse) -> None:
        entry.wanted = ""
        for waiter, _ in list(entry.waiters.values()):
            waiter.fail(self._refusal(entry, step))
            entry.waiters.pop(id(waiter), None)
        while len(entry.line):
            entry.line.pop(self._clock.monotonic_s())
        self.bump(entry)

    def _refusal(self, entry: ModelState, step: Refuse) -> Exception:
        if step.why == "failed":
            return ModelFailed(entry.alias, reason=entry.failed, attempts=entry.attempts)
        if step.why == "pinned":
            return AllPinned(
                entry.alias,
                places=self.catalogue.system.max_concurrent_models,
                pinned=[other.alias for other in self.model_states.values() if other.is_pinned],
            )
        loaded = [other.alias for other in self.model_states.values() if other.present()]
        entry.rejected += 1
        self._events.rejected(entry.alias)
        return InsufficientMemory(
            entry.alias,
            required_mb=step.need_bytes / MIB,
            available_mb=step.available_bytes / MIB,
            loaded_models=loaded,
        )

    # ---- slots

    def _leased(
        self,
        runner: Runner,
        entry: ModelState,
        now_s: float,
        waited_s: float,
        keep_alive_s: float | None,
    ) -> Lease:
        runner.active += 1
        runner.idle.clear()
        runner.last_used_at_s = entry.last_used_at_s = self._clock.now_s()
        runner.keep_alive_s = keep_alive_s if keep_alive_s is not None else runner.keep_alive_s
        return Lease(runner, now_s, waited_s, self._settle)

    def _unused(self, lease: Lease) -> None:
        """Take a slot back that nothing was sent to: who it was for had just left."""
        lease.is_released = True
        self._freed(lease.runner)
        self._turn()

    def _freed(self, runner: Runner) -> None:
        runner.active -= 1
        runner.last_used_at_s = self._clock.now_s()
        if not runner.active:
            runner.idle_since_s = self._clock.monotonic_s()
            runner.idle.set()

    def _settle(self, lease: Lease, is_ok: bool, prompt_tokens: int, completion_tokens: int) -> None:
        """A request ended."""
        runner, now_s = lease.runner, self._clock.monotonic_s()
        self._freed(runner)
        entry = self.model_states.get(runner.alias)
        if entry is not None:
            entry.processed += 1
            entry.last_used_at_s = runner.last_used_at_s
            if is_ok:
                entry.attempts = 0
                entry.error = ""
        sample = RequestSample(
            runner.alias,
            is_ok,
            now_s - lease.began_s + lease.waited_s,
            prompt_tokens,
            completion_tokens,
            lease.waited_s,
            self._clock.now_s(),
        )
        self.samples.append(sample)
        self._events.finished(sample)
        self.bump(entry)
        self._turn()
