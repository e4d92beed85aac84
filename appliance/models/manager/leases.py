"""Slots of llama-servers, given to requests and taken back."""

from collections.abc import Callable

from appliance.models.manager.events import ManagerEvents
from appliance.models.manager.model_state import ModelState
from appliance.models.manager.state import ManagerState
from appliance.models.manager.waiters import Lease
from appliance.models.runner.runner import Runner
from appliance.models.status.views import RequestSample


class Leases:
    """Grants leases and records their end.

    Args:
        state: Shared with the other parts of the manager.
        events: Gets every request that has ended.
        reschedule: Called when a slot is free again.
    """

    def __init__(self, state: ManagerState, *, events: ManagerEvents, reschedule: Callable[[], None]) -> None:
        self._state = state
        self._events = events
        self._reschedule = reschedule

    def grant(
        self,
        runner: Runner,
        model: ModelState,
        *,
        now_s: float,
        waited_s: float,
        keep_alive_s: float | None,
    ) -> Lease:
        """Take a slot of a llama-server.

        Args:
            runner: It has a free slot.
            model: The state of its model.
            now_s: Monotonic.
            waited_s: How long the request waited for it.
            keep_alive_s: How long the model stays without a request; None = as before, negative = for ever.
        """
        runner.active += 1
        runner.idle.clear()
        runner.last_used_at_s = model.last_used_at_s = self._state.clock.now_s()
        if keep_alive_s is not None:
            runner.keep_alive_s = keep_alive_s
        return Lease(runner, now_s, waited_s, self._release)

    def cancel(self, lease: Lease) -> None:
        """Take back a slot that was not used: the client left at the moment of the grant."""
        lease.is_released = True
        self._free_slot(lease.runner)
        self._reschedule()

    def _release(self, lease: Lease, is_ok: bool, prompt_tokens: int, completion_tokens: int) -> None:
        runner, now_s = lease.runner, self._state.clock.monotonic_s()
        self._free_slot(runner)
        model = self._state.models.get(runner.alias)
        if model is not None:
            model.processed += 1
            model.last_used_at_s = runner.last_used_at_s
            if is_ok:
                model.attempts = 0
                model.last_error = ""
        sample = RequestSample(
            runner.alias,
            is_ok,
            now_s - lease.granted_s + lease.waited_s,
            prompt_tokens,
            completion_tokens,
            lease.waited_s,
            self._state.clock.now_s(),
        )
        self._state.samples.append(sample)
        self._events.finished(sample)
        self._state.notify(model)
        self._reschedule()

    def _free_slot(self, runner: Runner) -> None:
        runner.active -= 1
        runner.last_used_at_s = self._state.clock.now_s()
        if not runner.active:
            runner.idle_since_s = self._state.clock.monotonic_s()
            runner.idle.set()
