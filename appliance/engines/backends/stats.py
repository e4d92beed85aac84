"""What every backend counts: requests in flight, choices, times, errors.

Requests are counted at once, not when the engine's metrics show them: a burst would land on one server else.
"""

from collections import Counter
from typing import Any, TypeVar

from appliance.base.balancing import Member
from appliance.base.clock import Clock
from appliance.base.metrics.registry import Metrics
from appliance.engines.outcome import Outcome
from appliance.engines.receipts import Attempt
from appliance.engines.slots import AnySlot, Slot, SlotOwner

OwnerT = TypeVar("OwnerT", bound=SlotOwner)


class BackendStats:
    """The counters of one backend, and the slots that change them."""

    def __init__(self, name: str, *, clock: Clock, metrics: Metrics, weight: float = 1.0) -> None:
        self.name = name
        self.member = Member(name, weight=weight)
        self.errors: Counter[str] = Counter()  # by the label of the attempt
        self._clock = clock
        self._metrics = metrics
        self._seconds = metrics.backend_seconds.labels(name)
        self._chosen: dict[str, Any] = {}

    @property
    def in_flight(self) -> int:
        """Requests that the backend works on."""
        return self.member.active

    def open_slot(self, owner: OwnerT, reason: str) -> Slot[OwnerT]:
        """Count a new request, and return its slot.

        Args:
            owner: Its `record` is called when the slot is released.
            reason: Why this backend was chosen.
        """
        clock = self._clock
        self.member.record_start(clock.now_s())
        counter = self._chosen.get(reason)
        if counter is None:
            counter = self._chosen[reason] = self._metrics.backend_chosen.labels(self.name, reason)
        counter.inc()
        return Slot(owner, clock.monotonic_s(), Attempt("", backend=self.name))

    def open_uncounted_slot(self, owner: OwnerT) -> Slot[OwnerT]:
        """Return a slot for a request about the server itself: it takes no capacity."""
        return Slot(owner, self._clock.monotonic_s(), Attempt("", backend=self.name), is_uncounted=True)

    def close_slot(self, slot: AnySlot, outcome: Outcome) -> None:
        """Count the end of a request: its time, or its error."""
        took_s = self._clock.monotonic_s() - slot.started_s
        slot.attempt.ms = took_s * 1000
        if slot.is_uncounted:
            return
        self.member.record_end(took_s if outcome is Outcome.OK else None)
        if outcome is Outcome.OK:
            self._seconds.observe(took_s)
        elif outcome.is_error:
            label = slot.attempt.label
            self.errors[label] += 1
            self._metrics.backend_errors.labels(self.name, label).inc()

    def remove_metrics(self) -> None:
        """Remove the backend's rows from the metrics: it no longer exists."""
        for family in self._metrics.backend_families:
            family.remove_by_labels({"backend": self.name})
        self._metrics.latencies.forget(self.name)
