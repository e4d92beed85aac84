"""The model manager: who waits for which model, which llama-servers run, and what is done next. One writer, on the event loop.

    lease           a request asks for a slot: served at once, or in line → _turn
    _turn           asks the scheduler what must happen next, does it, and asks again, until it says that there is nothing (turns.py)
    _start, _stop   what takes time (keeper.py); at its end it is somebody's turn again

Decisions are in scheduler.py, processes in process.py and loading.py, readings for doors in readings.py, looks in watchdog.py.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from appliance.base.clock import Clock
from appliance.base.errors import NoSuchModel
from appliance.base.fair_queue import FairQueue, FairQueueFull
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.models.manager.errors import ModelFailed, QueueFull, QueueTimeout, ShuttingDown
from appliance.models.manager.events import NO_EVENTS, ManagerEvents
from appliance.models.manager.scheduling import SchedulerLoop
from appliance.models.manager.state import Lease, ModelState, Runner, Waiter, WaitStatus
from appliance.models.runner.load_history import LoadHistory
from appliance.models.runner.loader import Loader
from appliance.models.runner.vram import Memory
from appliance.models.scheduler.scheduler import free_slot
from appliance.models.scheduler.state import ResidentRunner
from appliance.models.status.views import Ejected, FailedView, ModelView, ServerStatus
from appliance.models.table.catalogue import Catalogue, LoraAdapter, Model
from appliance.models.table.command import slot_count

log = get_logger("models")
T = TypeVar("T")


class ModelManager(SchedulerLoop):
    """Runs models, and tells about them (ModelManagerApi). Build it inside the event loop, then `open`.

    Takes   extra_wait_s, ageing_s: see scheduler.Rules
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        loader: Loader,
        memory: Memory,
        history: LoadHistory,
        tasks: Tasks,
        clock: Clock,
        events: ManagerEvents = NO_EVENTS,
        extra_wait_s: float = 30.0,
        ageing_s: float = 10.0,
    ) -> None:
        super().__init__(
            catalogue,
            loader=loader,
            memory=memory,
            history=history,
            tasks=tasks,
            clock=clock,
            events=events,
            extra_wait_s=extra_wait_s,
            ageing_s=ageing_s,
        )
        self.adapters: dict[str, tuple[LoraAdapter, ...]] = {}  # by model, see set_adapters
        self._put(catalogue)

    def set_swap_wait(self, extra_wait_s: float) -> None:
        """Set how long a queue waits at most before a busy model is unloaded for it (MODEL_SWAP_WAIT_S)."""
        self._extra_wait_s = extra_wait_s

    # ---- life

    async def open(self) -> None:
        """End orphans, look at the files, begin to preload."""
        orphans = await asyncio.to_thread(self.loader.records.end_orphans)
        if orphans:
            log.warning("orphans_ended", aliases=[record.get("alias") for record in orphans])
        await asyncio.to_thread(self.history.read)
        await self._look_at_files(list(self.model_states.values()))
        self._set_status("ready")
        self._tasks.start(
            self.loader.look(self.catalogue), name="look-at-llama-server"
        )  # else the first request would wait for it
        names = self.catalogue.system.preload_models
        if names:
            self._tasks.start(
                self._preload(list(self.model_states) if "*" in names else list(names)), name="preload-models"
            )

    async def _look_at_files(self, entries: list[ModelState]) -> None:
        for entry in entries:
            await self._look_at(entry)
            if entry.problem and entry.waiters and not entry.failed:
                self._failed(entry, entry.problem, can_retry=False)
            self._turn()

    async def _preload(self, aliases: list[str]) -> None:
        for number, alias in enumerate(aliases):
            if number:
                await asyncio.sleep(self.catalogue.system.preload_delay_sec)
            entry = self.model_states.get(alias)
            if entry is not None and not entry.present():
                entry.wanted = "preload"
                self._turn()

    def announce_shutdown(self) -> None:
        """Tell followers that the end has begun; what runs and waits still gets its grace."""
        self._set_status("shutting_down")

    async def close(self) -> None:
        """Take no more requests, and end every llama-server."""
        self.announce_shutdown()
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for entry in self.model_states.values():
            entry.wanted = ""
            for waiter, _ in list(entry.waiters.values()):
                waiter.fail(ShuttingDown())
        runners = self.runners()
        for runner in runners:
            runner.phase, runner.is_stop_requested = "stopping", True
        await asyncio.gather(*(self._end(runner) for runner in runners))
        await asyncio.to_thread(self.history.write)

    async def _end(self, runner: Runner) -> None:
        await self.loader.stop(runner)
        await runner.settled.wait()  # what was about to be spawned is gone too
        runner.gone.set()

    def apply(self, catalogue: Catalogue) -> None:
        """Put another table in place: what runs of a model that changed or went ends what it has begun, and goes. Who waits for one that
        changed waits on."""
        former, before = self.model_states, self.catalogue.system
        self.catalogue = catalogue
        self._put(catalogue)
        for alias, entry in former.items():
            if self.model_states.get(alias) is entry:
                continue
            for runner in entry.present():
                self._let_go(runner)
            if alias not in self.model_states:
                for waiter, _ in list(entry.waiters.values()):
                    waiter.fail(
                        NoSuchModel(f"The model {alias!r} was taken out of the table.", param="model")
                    )
        fresh = [
            entry for entry in self.model_states.values() if not entry.is_known or catalogue.system != before
        ]
        self._tasks.start(self._look_at_files(fresh), name="look-at-models")
        self.bump()
        self._turn()

    def _put(self, catalogue: Catalogue) -> None:
        """Make an entry for each model; those that did not change stay as they are."""
        system, entries = catalogue.system, {}
        for alias, configured in catalogue.models.items():
            entry, model = self.model_states.get(alias), self._with_adapters(configured)
            if entry is None:
                entry = ModelState(
                    model,
                    FairQueue(system.max_queue_size_per_model, ageing_s=self._ageing_s),
                    is_pinned=model.pinned,
                    updated_at_s=self._clock.now_s(),
                )
            elif entry.model != model:
                entry = self._changed(entry, model)
            entry.line.limit = system.max_queue_size_per_model
            entry.slots = slot_count(model, system)
            entries[alias] = entry
        self.model_states = entries

    def _changed(self, entry: ModelState, model: Model) -> ModelState:
        """Give the entry of a model that changed: its line, its counts and its llama-servers stay, what is known of its file does not.
        What no llama-server needs to know is changed in place."""
        is_pinned = (
            model.pinned if entry.is_pinned == entry.model.pinned else entry.is_pinned
        )  # else by an operator's word
        if replace(entry.model, pinned=model.pinned, replicas=model.replicas) == model:
            entry.model, entry.is_pinned = model, is_pinned
            return entry
        return replace(
            entry,
            model=model,
            header=None,
            problem="",
            estimate=None,
            key="",
            failed="",
            error="",
            attempts=0,
            misfires=0,
            rest_until_s=0.0,
            is_pinned=is_pinned,
            updated_at_s=self._clock.now_s(),
        )

    def _with_adapters(self, model: Model) -> Model:
        return replace(model, lora=(*model.lora, *self.adapters.get(model.alias, ())))

    def set_adapters(self, alias: str, adapters: tuple[LoraAdapter, ...]) -> bool:
        """Let a model be run with these adapters besides those of its table. Where that is a change, what runs of it ends what it has
        begun and goes; who waits keeps the place in line, and is answered by the next one.

        Gives   whether it is a change
        Raises  NoSuchModel
        """
        entry = self.model_state(alias)
        if self.adapters.get(alias, ()) == adapters:
            return False
        self.adapters = {**self.adapters, alias: adapters}
        entry.model = self._with_adapters(self.catalogue.models[alias])
        was_wanted = bool(entry.present()) or entry.wanted
        for runner in entry.present():
            self._let_go(runner)
        self.reset(alias)  # what failed with others may work with these
        if was_wanted:
            self.restore(alias)
        log.info("model_adapters", alias=alias, adapters=[one.name for one in adapters])
        return True

    def _set_status(self, status: ServerStatus) -> None:
        if status != self._status:
            self._status, self._status_at_s = status, self._clock.now_s()
            self.bump()

    # ---- what an operator may do

    async def load(self, alias: str, *, keep_alive_s: float | None = None) -> ModelView:
        """Load a model and wait until it is ready (see ModelManagerApi)."""
        await self._must_be_possible(self.model_state(alias))
        entry = self.model_state(alias)
        for runner in entry.present():
            if runner.phase == "ready":
                runner.keep_alive_s = keep_alive_s if keep_alive_s is not None else runner.keep_alive_s
                runner.idle_since_s = self._clock.monotonic_s()
                self._turn()
                return self.model(alias)
        future: asyncio.Future[ModelView] = self._loop.create_future()
        waiter = Waiter(alias, self._clock.monotonic_s(), 1, keep_alive_s, is_load=True, view=future)
        entry.waiters[id(waiter)] = (waiter, None)
        return await self._wait(waiter, entry, future)

    async def eject(self, alias: str, *, force: bool = False) -> Ejected:
        """Unload a model (see ModelManagerApi)."""
        entry = self.model_state(alias)
        entry.wanted = ""
        runners = list(entry.runners)
        waited_for = sum(runner.active for runner in runners)
        for runner in runners:
            if force and runner.is_going:  # it waits for its requests to end
                runner.is_stop_requested = True
                await self.loader.stop(runner)
            self._let_go(runner, is_forced=force)
        self.bump(entry)
        for runner in runners:
            await runner.gone.wait()
        return Ejected(alias, bool(runners), waited_for)

    def restore(self, alias: str) -> None:
        """Load a model again where there is room, though nobody waits for it."""
        entry = self.model_states.get(alias)
        if entry is not None and not entry.present():
            entry.wanted = "restore"
            self._turn()

    def set_keep_alive(self, alias: str, keep_alive_s: float) -> None:
        """Let a loaded model's stay end so long after its last request (see ModelManagerApi)."""
        for runner in self.model_state(alias).present():
            runner.keep_alive_s = keep_alive_s
        self._turn()
        self.bump()

    def reset(self, alias: str) -> FailedView | None:
        """Forget a model's failures (see ModelManagerApi)."""
        entry = self.model_state(alias)
        found = FailedView(alias, entry.attempts, entry.failed or entry.error) if entry.attempts else None
        entry.forgive()
        entry.key = ""  # its file is looked at again: it may have been mended
        self._tasks.start(self._look_at_files([entry]), name=f"look-at-{alias}")
        self.bump(entry)
        self._turn()
        return found

    def pin(self, alias: str, *, pinned: bool = True) -> ModelView:
        """Let a model never be unloaded, or let it again (see ModelManagerApi)."""
        entry = self.model_state(alias)
        entry.is_pinned = pinned
        self.bump(entry)
        self._turn()
        return self.model(alias)

    # ---- asking for a slot

    async def lease(
        self,
        alias: str,
        *,
        flow: str = "",
        priority: int = 1,
        keep_alive_s: float | None = None,
        on_wait: Callable[[Callable[[], WaitStatus]], None] | None = None,
    ) -> Lease:
        """Give the right to send one request to a llama-server of a model; it is loaded if it is not.

        Takes   flow, priority: see FairQueue; keep_alive_s: how long the model stays after it, None = as configured, negative = for ever;
                on_wait: called once if it must wait, with what tells how things stand
        Raises  NoSuchModel · QueueFull · QueueTimeout · InsufficientMemory · AllPinned · ModelFailed · ShuttingDown
        """
        entry = self.model_state(alias)
        entry.requests += 1
        if entry.failed or entry.problem or self._is_closed:
            await self._must_be_possible(entry)
            entry = self.model_state(alias)  # the table may have been changed meanwhile
        now_s = self._clock.monotonic_s()
        entry.demand.add(now_s)
        if not entry.waiters and (runner := self._free(entry)) is not None:
            return self._leased(runner, entry, now_s, 0.0, keep_alive_s)
        waiter = Waiter(alias, now_s, priority, keep_alive_s, lease=self._loop.create_future())
        try:
            ticket = entry.line.push(waiter, flow=flow, priority=priority, now_s=now_s)
        except FairQueueFull:
            entry.rejected += 1
            self._events.rejected(alias)
            raise QueueFull(alias, limit=entry.line.limit, retry_after_s=self._retry_after_s(entry)) from None
        entry.waiters[id(waiter)] = (waiter, ticket)
        if on_wait is not None:
            on_wait(lambda: self.waiting(waiter))
        assert waiter.lease is not None
        return await self._wait(waiter, entry, waiter.lease)

    async def _wait(self, waiter: Waiter, entry: ModelState, future: "asyncio.Future[T]") -> T:
        """Stand in line; whoever leaves takes nothing along."""
        patience_s = float(self.catalogue.system.queue_timeout_sec)
        self.bump(entry)
        self._turn()
        try:
            async with asyncio.timeout(patience_s):
                return await future
        except TimeoutError:
            if (
                future.done() and not future.cancelled() and future.exception() is None
            ):  # the turn came in the very moment
                return future.result()
            entry = self.model_states.get(entry.alias, entry)
            raise QueueTimeout(
                entry.alias,
                waited_s=patience_s,
                reason=entry.reason,
                retry_after_s=self._retry_after_s(entry),
            ) from None
        except asyncio.CancelledError:
            if (
                future.done()
                and not future.cancelled()
                and future.exception() is None
                and isinstance(lease := future.result(), Lease)
            ):
                self._unused(lease)
            raise
        finally:
            self._leave(waiter, entry)

    def _leave(self, waiter: Waiter, entry: ModelState) -> None:
        found = entry.waiters.pop(id(waiter), None)
        if not entry.waiters:
            entry.is_owed = False
        if found is not None:
            if found[1] is not None:
                entry.line.remove(found[1])
            self.bump(entry)
            self._loop.call_soon(self._turn)  # what was made ready for it may be for others now

    async def _must_be_possible(self, entry: ModelState) -> None:
        """Refuse what would fail anyway, before anybody gives way for it. A file that was missing or bad is looked at again.

        Raises  ShuttingDown · ModelFailed
        """
        if self._is_closed:
            raise ShuttingDown
        if any(runner.phase == "ready" for runner in entry.runners):
            return
        if entry.problem:
            await self._look_at(entry)
            if entry.problem and not entry.failed:
                self._failed(entry, entry.problem, can_retry=False)
        if entry.failed:
            raise ModelFailed(entry.alias, reason=entry.failed, attempts=entry.attempts)

    @staticmethod
    def _free(entry: ModelState) -> Runner | None:
        key = free_slot(
            [
                ResidentRunner(
                    runner.serial,
                    runner.alias,
                    runner.phase,
                    runner.slots,
                    runner.active,
                    is_closed=runner.is_closed,
                )
                for runner in entry.runners
            ]
        )
        return next((runner for runner in entry.runners if runner.serial == key), None)

    def waiting(self, waiter: Waiter) -> WaitStatus:
        """Tell somebody in line how things stand."""
        entry, now_s = self.model_states.get(waiter.alias), self._clock.monotonic_s()
        if entry is None:
            return WaitStatus(1, "off", None, None, "it was taken out of the table")
        found = entry.waiters.get(id(waiter))
        position = (
            entry.line.position(found[1], now_s) + 1 if found is not None and found[1] is not None else 1
        )
        view = self.model(waiter.alias)
        return WaitStatus(position, view.status, view.load_progress, view.expected_in_s, entry.reason)

    def _retry_after_s(self, entry: ModelState) -> float:
        """Guess when a place in line is free: by what its requests took lately."""
        took = [sample.duration_s - sample.queue_s for sample in self.samples if sample.alias == entry.alias][
            -20:
        ]
        each_s = sum(took) / len(took) if took else 1.0
        slots = max(1, sum(runner.slots for runner in entry.present()))
        return min(300.0, max(1.0, each_s * max(1, len(entry.waiters)) / slots))
