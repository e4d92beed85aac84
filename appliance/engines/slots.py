"""The right to send one request to one backend: taken when the backend is chosen, given back exactly once; and the books that
every kind of backend keeps in the same way.

Counting at once, not when the engine's metrics show it, is what keeps a burst from landing on one server.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Any, ClassVar, Generic, Protocol, Self, TypeAlias, TypeVar

from appliance.base.balancing import Member
from appliance.base.clock import Clock
from appliance.base.metrics.registry import Metrics
from appliance.engines.outcome import BreakerEffect, Outcome
from appliance.engines.receipts import Attempt, Receipt
from appliance.engines.stream import Stream


@dataclass(slots=True)
class ResponseTimes:
    """An answer whose times the appliance takes, because its engine takes none. `first_s`: monotonic, of its first event, 0 = none yet."""

    receipt: Receipt
    first_s: float = 0.0
    stream: Stream | None = None  # the reply's; it counts its events

    def tokens(self) -> int | None:
        """Give how many tokens were generated: as was reported, else the stream's events but for the first (the role) and the last."""
        if self.receipt.completion_tokens is not None or self.stream is None:
            return self.receipt.completion_tokens
        return max(0, self.stream.events - 2)


class SlotOwner(Protocol):
    """Whatever gives out slots, and hears what became of each."""

    name: str

    def record(self, slot: "Slot[Any]", outcome: Outcome, retry_after_s: float | None) -> None: ...


OwnerT = TypeVar("OwnerT", bound=SlotOwner, covariant=True)


@dataclass(slots=True, eq=False)
class Slot(Generic[OwnerT]):
    """One request's place on a backend. `release` gives it back; a second call does nothing.

    url, headers, ssl   for those who speak to the server themselves (passage): its base address, the headers that it wants
    attempt             the receipt's line about this try; `release` fills it in
    """

    backend: OwnerT
    started_s: float  # monotonic
    attempt: Attempt
    url: str = ""
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    ssl: SSLContext | None = None
    is_uncounted: bool = False  # takes no room: a question that no slot is needed for
    is_released: bool = False
    times: "ResponseTimes | None" = None

    def release(
        self,
        outcome: Outcome,
        *,
        status: int | None = None,
        note: str = "",
        retry_after_s: float | None = None,
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


AnySlot: TypeAlias = Slot[Any]  # where it does not matter whose it is


class BackendStats:
    """What each backend counts: requests in flight, chosen, times, failures by kind. Kinds build on it and add `observe_outcome`."""

    is_direct: ClassVar[bool] = False
    is_managed: ClassVar[bool] = False

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

    def is_unknown(self) -> bool:
        """Whether its models are not known, because it was not reached yet and none were configured."""
        return False

    def take(self, reason: str) -> Slot[Self]:
        """Take a place, chosen for `reason`; the caller sends at once and calls `release` in any case."""
        clock = self._clock
        self.member.record_start(clock.now_s())
        counter = self._chosen.get(reason)
        if counter is None:
            counter = self._chosen[reason] = self._metrics.backend_chosen.labels(self.name, reason)
        counter.inc()
        return Slot(self, clock.monotonic_s(), Attempt(""))

    def uncounted_slot(self) -> Slot[Self]:
        """Give a place that takes no room, for a question about the server itself: it is asked also when it is full."""
        return Slot(self, self._clock.monotonic_s(), Attempt(""), is_uncounted=True)

    async def prepare_passthrough(self, slot: AnySlot, model: str | None, options: Any) -> None:
        """Make a place of passage ready to be spoken to; those who know their address beforehand have nothing to do."""

    def record(self, slot: AnySlot, outcome: Outcome, retry_after_s: float | None) -> None:
        """Count a place's end; called by the place, once."""
        took_s = self._clock.monotonic_s() - slot.started_s
        slot.attempt.ms = took_s * 1000
        if slot.is_uncounted:
            if outcome.breaker is BreakerEffect.FAILED:
                self.probe_soon()
            return
        self.member.record_end(took_s if outcome is Outcome.OK else None)
        if outcome is Outcome.OK:
            self._seconds.observe(took_s)
        elif outcome.is_error:
            label = slot.attempt.label
            self.errors[label] += 1
            self._metrics.backend_errors.labels(self.name, label).inc()
        self.observe_outcome(slot, outcome, retry_after_s)
        self.on_capacity(self)

    def observe_outcome(self, slot: AnySlot, outcome: Outcome, retry_after_s: float | None) -> None:
        """What an outcome says about the server; kinds that care about it say so here."""

    def probe_soon(self) -> None:
        """Something was wrong with it that no counter should hold against it; kinds that look at their servers look now."""

    def remove_metrics(self) -> None:
        """Take this backend's rows out of the metrics: it is gone."""
        for family in self._metrics.backend_families:
            family.remove_by_labels({"backend": self.name})
        self._metrics.latencies.forget(self.name)


class SlotStream(Stream):
    """A stream that holds a slot until it ends, fails, or is closed (also when not one piece was taken)."""

    __slots__ = ("_pieces", "_slot")

    def __init__(self, pieces: AsyncGenerator[bytes, None], slot: AnySlot) -> None:
        self._pieces = pieces
        self._slot = slot

    async def __anext__(self) -> bytes:
        try:
            return await self._pieces.__anext__()
        except StopAsyncIteration:
            self._slot.release(Outcome.OK)
            raise
        except Exception:
            self._slot.release(Outcome.CUT_OFF)
            raise

    async def aclose(self) -> None:
        try:
            await self._pieces.aclose()
        finally:
            self._slot.release(Outcome.CLIENT_LEFT)

    @property
    def outcome(self) -> Outcome | None:
        return self._slot.attempt.outcome if self._slot.is_released else None
