"""The right to send one request to one backend: taken when the backend is chosen, given back exactly once; and the books that
every kind of backend keeps in the same way.

Counting at once, not when the engine's metrics show it, is what keeps a burst from landing on one server.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Any

from appliance.base.balancing import Member
from appliance.base.clock import Clock
from appliance.base.metrics.registry import Metrics
from appliance.engines.receipts import Attempt, Receipt

# What a place can come to, besides failures of the server (`connect`, `first_byte`, `status_502`, `cut_off` …):
WELL = {
    "ok",
    "refused",
    "passed",
}  # it answered; `refused`: the caller's own fault; `passed`: through passage, its time says little
LEFT = {"cancelled", "client_left"}
# Says nothing about the server's health: the caller left, there is no room, the request is not one for this server, nothing was sent.
UNDECIDED = LEFT | {"full", "context", "key_refused", "status_404", "unsupported", "pool", "adapter_missing"}


@dataclass(slots=True)
class ResponseTimes:
    """An answer whose times the appliance takes, because its engine takes none. `first_s`: monotonic, of its first event, 0 = none yet."""

    receipt: Receipt
    first_s: float = 0.0
    stream: Any = None  # EngineReply.events: it counts its events

    def tokens(self) -> int | None:
        """Give how many tokens were generated: as was reported, else the stream's events but for the first (the role) and the last."""
        if self.receipt.completion_tokens is not None or self.stream is None:
            return self.receipt.completion_tokens
        return max(0, getattr(self.stream, "events", 0) - 2)


@dataclass(slots=True, eq=False)
class Slot:
    """One request's place on a backend. `release` gives it back; a second call does nothing.

    url, headers, ssl   for those who speak to the server themselves (passage): its base address, the headers that it wants
    attempt             the receipt's line about this try; `release` fills it in
    """

    backend: "BackendStats"
    started_s: float  # monotonic
    attempt: Attempt
    url: str = ""
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    ssl: SSLContext | None = None
    is_uncounted: bool = False  # takes no room: a question that no slot is needed for
    is_released: bool = False
    times: "ResponseTimes | None" = None

    def release(
        self, outcome: str, *, status: int | None = None, note: str = "", retry_after_s: float | None = None
    ) -> None:
        """Give the place back: the backend's counters, its breaker and the receipt learn what it came to."""
        if self.is_released:
            return
        self.is_released = True
        attempt = self.attempt
        attempt.outcome = outcome
        attempt.note = note or attempt.note
        attempt.status = status if status is not None else attempt.status
        self.backend.record(self, outcome, retry_after_s)


class BackendStats:
    """What each backend counts: requests in flight, chosen, times, failures by kind. Kinds build on it and add `verdict`."""

    def __init__(
        self,
        name: str,
        *,
        pool: str,
        clock: Clock,
        metrics: Metrics,
        weight: float = 1.0,
    ) -> None:
        self.name = name
        self.pool = pool
        self.member = Member(name, weight=weight)
        self.errors: Counter[str] = Counter()
        self.on_capacity: Callable[[Any], None] = lambda _: (
            None
        )  # the dispatcher's: somebody in line may go now
        self._clock = clock
        self._metrics = metrics
        self._seconds = metrics.backend_seconds.labels(name)
        self._chosen: dict[str, Any] = {}

    @property
    def in_flight(self) -> int:
        return self.member.active

    def take(self, reason: str) -> Slot:
        """Take a place, chosen for `reason`; the caller sends at once and calls `release` in any case."""
        clock = self._clock
        self.member.record_start(clock.now_s())
        counter = self._chosen.get(reason)
        if counter is None:
            counter = self._chosen[reason] = self._metrics.backend_chosen.labels(self.name, reason)
        counter.inc()
        return Slot(self, clock.monotonic_s(), Attempt("", "cancelled"))

    def uncounted_slot(self) -> Slot:
        """Give a place that takes no room, for a question about the server itself: it is asked also when it is full."""
        return Slot(self, self._clock.monotonic_s(), Attempt("", "cancelled"), is_uncounted=True)

    async def prepare_passthrough(self, slot: Slot, model: str | None, options: Any) -> None:
        """Make a place of passage ready to be spoken to; those who know their address beforehand have nothing to do."""

    def record(self, slot: Slot, outcome: str, retry_after_s: float | None) -> None:
        """Count a place's end; called by the place, once."""
        took_s = self._clock.monotonic_s() - slot.started_s
        slot.attempt.ms = took_s * 1000
        if slot.is_uncounted:
            if outcome not in WELL and outcome not in UNDECIDED:
                self.probe_soon()
            return
        self.member.record_end(took_s if outcome == "ok" else None)
        if outcome == "ok":
            self._seconds.observe(took_s)
        elif outcome not in WELL and outcome not in LEFT:
            self.errors[outcome] += 1
            self._metrics.backend_errors.labels(self.name, outcome).inc()
        self.observe_outcome(slot, outcome, retry_after_s)
        self.on_capacity(self)

    def observe_outcome(self, slot: Slot, outcome: str, retry_after_s: float | None) -> None:
        """What an outcome says about the server; kinds that care about it say so here."""

    def probe_soon(self) -> None:
        """Something was wrong with it that no counter should hold against it; kinds that look at their servers look now."""

    def remove_metrics(self) -> None:
        """Take this backend's rows out of the metrics: it is gone."""
        for family in self._metrics.backend_families:
            family.remove_by_labels({"backend": self.name})
        self._metrics.latencies.forget(self.name)


class SlotStream:
    """A stream whose place is given back when it ends, is broken off, or is closed (also when not one piece was taken)."""

    def __init__(self, pieces: AsyncIterator[bytes], slot: Slot) -> None:
        self._pieces = pieces
        self._slot = slot

    def __aiter__(self) -> "SlotStream":
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._pieces)
        except StopAsyncIteration:
            self._slot.release("ok")
            raise
        except Exception:
            self._slot.release("cut_off")
            raise

    async def aclose(self) -> None:
        try:
            await self._pieces.aclose()  # type: ignore[attr-defined]
        finally:
            self._slot.release("client_left")
