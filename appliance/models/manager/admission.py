"""Lets requests in: at once where a slot is free, else after a wait in the model's queue."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from appliance.base.fair_queue import FairQueueFull
from appliance.base.inline import in_task
from appliance.models.manager.errors import ModelFailed, QueueFull, QueueTimeout, ShuttingDown
from appliance.models.manager.events import ManagerEvents
from appliance.models.manager.leases import Leases
from appliance.models.manager.model_file import check_file, is_file_changed
from appliance.models.manager.model_state import ModelState
from appliance.models.manager.state import ManagerState
from appliance.models.manager.status_view import StatusView
from appliance.models.manager.supervisor import RunnerSupervisor
from appliance.models.manager.waiters import Lease, LoadWaiter, SlotWaiter, Waiter, WaitStatus
from appliance.models.scheduler.scheduler import pick_free
from appliance.models.status.views import ModelView

T = TypeVar("T")
NORMAL_PRIORITY = 1
SAMPLES_FOR_RETRY = 20
DEFAULT_REQUEST_S = 1.0  # while no request of a model has been seen
MIN_RETRY_S, MAX_RETRY_S = 1.0, 300.0


class Admission:
    """Grants leases and loaded models to callers. Build it inside the event loop.

    Args:
        state: Shared with the other parts of the manager.
        leases: Gives slots to requests.
        supervisor: Records the failure of a file that cannot be loaded.
        view: Makes the status that waiting clients may see.
        events: Gets each refused request.
        reschedule: Called when a client begins or stops waiting.
    """

    def __init__(
        self,
        state: ManagerState,
        *,
        leases: Leases,
        supervisor: RunnerSupervisor,
        view: StatusView,
        events: ManagerEvents,
        reschedule: Callable[[], None],
    ) -> None:
        self._state = state
        self._leases = leases
        self._supervisor = supervisor
        self._view = view
        self._events = events
        self._reschedule = reschedule
        self._loop = asyncio.get_running_loop()

    async def lease(
        self,
        alias: str,
        *,
        flow: str,
        priority: int,
        keep_alive_s: float | None,
        on_wait: Callable[[Callable[[], WaitStatus]], None] | None,
    ) -> Lease:
        """Return a lease of a model's llama-server (see ModelManager.lease)."""
        model = self._state.model(alias)
        model.requests += 1
        if model.failure or model.file_problem or self._state.is_closed:
            await self.check_possible(model)
            model = self._state.model(alias)  # the table may have been changed meanwhile
        now_s = self._state.clock.monotonic_s()
        model.demand.add(now_s)
        if not model.waiters and (runner := pick_free(model.runners)) is not None:
            return self._leases.grant(runner, model, now_s=now_s, waited_s=0.0, keep_alive_s=keep_alive_s)
        waiter = SlotWaiter(alias, now_s, priority, keep_alive_s, self._loop.create_future())
        try:
            waiter.ticket = model.queue.push(waiter, flow=flow, priority=priority, now_s=now_s)
        except FairQueueFull:
            model.rejected += 1
            self._events.rejected(alias)
            raise QueueFull(
                alias, limit=model.queue.limit, retry_after_s=self._retry_after_s(model)
            ) from None
        model.waiters[waiter] = None
        if on_wait is not None:
            on_wait(lambda: self.wait_status(waiter))
        return await self._wait(waiter, model)

    async def load(self, alias: str, *, keep_alive_s: float | None) -> ModelView:
        """Load a model and wait until it is ready (see ModelManagerApi)."""
        await self.check_possible(self._state.model(alias))
        model = self._state.model(alias)
        alias, now_s = model.alias, self._state.clock.monotonic_s()
        for runner in model.current_runners():
            if runner.phase == "ready":
                if keep_alive_s is not None:
                    runner.keep_alive_s = keep_alive_s
                runner.idle_since_s = now_s
                self._reschedule()
                return self._view.model(alias)
        waiter = LoadWaiter(alias, now_s, NORMAL_PRIORITY, keep_alive_s, self._loop.create_future())
        model.waiters[waiter] = None
        return await self._wait(waiter, model)

    async def check_possible(self, model: ModelState) -> None:
        """Refuse what would fail anyway, before another model is evicted for it.

        A file that was missing or broken is checked again. So is one that has changed since the model failed:
        what was wrong may be repaired.

        Raises:
            ShuttingDown: The appliance is shutting down.
            ModelFailed: The model is not loaded again until it is reset.
        """
        if self._state.is_closed:
            raise ShuttingDown
        if model.has_ready_runner():
            return
        if model.failure and await is_file_changed(model):
            model.clear_failures()
            await check_file(model, self._state)
        elif model.file_problem:
            await check_file(model, self._state)
        if model.file_problem and not model.failure:
            self._supervisor.record_failure(model, model.file_problem, can_retry=False)
        if model.failure:
            raise ModelFailed(model.alias, reason=model.failure, attempts=model.attempts)

    def wait_status(self, waiter: SlotWaiter) -> WaitStatus:
        """Return the status that a waiting request may see."""
        model, now_s = self._state.models.get(waiter.alias), self._state.clock.monotonic_s()
        if model is None:
            return WaitStatus(1, "off", None, None, "it was removed from the table")
        ticket = waiter.ticket if waiter in model.waiters else None
        position = model.queue.position(ticket, now_s) + 1 if ticket is not None else 1
        view = self._view.model(waiter.alias)
        return WaitStatus(position, view.status, view.load_progress, view.expected_in_s, model.wait_reason)

    async def _wait(self, waiter: Waiter[T], model: ModelState) -> T:
        """Wait for the waiter's turn; a slot granted to a client that has left is given back."""
        timeout_s = float(self._state.catalogue.system.queue_timeout_sec)
        future = waiter.future
        self._state.notify(model)
        self._reschedule()
        try:
            await in_task()
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            if _has_result(future):  # the grant came at the very moment of the timeout
                return future.result()
            model = self._state.models.get(model.alias, model)
            raise QueueTimeout(
                model.alias,
                waited_s=timeout_s,
                reason=model.wait_reason,
                retry_after_s=self._retry_after_s(model),
            ) from None
        except asyncio.CancelledError:
            if _has_result(future) and isinstance(lease := future.result(), Lease):
                self._leases.cancel(lease)
            raise
        finally:
            self._leave(waiter, model)

    def _leave(self, waiter: Waiter[T], model: ModelState) -> None:
        was_waiting = waiter in model.waiters
        model.waiters.pop(waiter, None)
        if not model.waiters:
            model.has_reservation = False
        if was_waiting:
            if isinstance(waiter, SlotWaiter) and waiter.ticket is not None:
                model.queue.remove(waiter.ticket)
            self._state.notify(model)
            self._loop.call_soon(self._reschedule)  # what was prepared for it may serve others now

    def _retry_after_s(self, model: ModelState) -> float:
        """Return when the queue will probably have space again, by the durations of the latest requests."""
        took_s = [
            sample.duration_s - sample.queue_s
            for sample in self._state.samples
            if sample.alias == model.alias
        ][-SAMPLES_FOR_RETRY:]
        each_s = sum(took_s) / len(took_s) if took_s else DEFAULT_REQUEST_S
        slots = max(1, sum(runner.slots for runner in model.current_runners()))
        return min(MAX_RETRY_S, max(MIN_RETRY_S, each_s * max(1, len(model.waiters)) / slots))


def _has_result(future: "asyncio.Future[T]") -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
