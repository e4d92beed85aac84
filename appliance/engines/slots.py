"""The right to send one request to one backend: taken when the backend is chosen, released exactly once."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from appliance.engines.outcome import Outcome
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

    @property
    def name(self) -> str: ...

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
