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
    """The times of a response, taken by the appliance because the engine takes none.

    Attributes:
        receipt: Of the request; it may be given the engine's token counts.
        first_s: When the first event came, monotonic; 0 = not yet.
        stream: The reply's; it counts its events; None = the response came in one piece.
    """

    receipt: Receipt
    first_s: float = 0.0
    stream: Stream | None = None

    def tokens(self) -> int | None:
        """Return how many tokens were generated; None = unknown.

        1. the engine reported it  → that
        2. there was a stream      → its events, less the first (the role) and the last
        """
        if self.receipt.completion_tokens is not None or self.stream is None:
            return self.receipt.completion_tokens  # 1
        return max(0, self.stream.events - 2)  # 2


class SlotOwner(Protocol):
    """What opens slots, and learns how each ended."""

    @property
    def name(self) -> str:
        """Its name, in metrics and receipts."""
        ...

    def record(self, slot: "Slot[Any]", outcome: Outcome, retry_after_s: float | None) -> None:
        """Learn how a request ended; called once, when its slot is released."""
        ...


OwnerT = TypeVar("OwnerT", bound=SlotOwner, covariant=True)


@dataclass(slots=True, eq=False)
class Slot(Generic[OwnerT]):
    """The right to send one request to one backend.

    Attributes:
        backend: Which one.
        started_s: When it was taken, monotonic.
        attempt: The receipt's row about it; `release` fills it in.
        url: For passthrough: the server's base address.
        headers: For passthrough: headers that the server wants, its key for example.
        ssl: For passthrough: None = the default context.
        is_uncounted: It takes no capacity: a question about the server itself.
        is_released: It was given back.
        times: Of the response, where the appliance takes them; None = it does not.
    """

    backend: OwnerT
    started_s: float
    attempt: Attempt
    url: str = ""
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    ssl: SSLContext | None = None
    is_uncounted: bool = False
    is_released: bool = False
    times: ResponseTimes | None = None

    def release(
        self,
        outcome: Outcome,
        *,
        status: int | None = None,
        note: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        """Release the slot: the backend and the receipt learn the outcome. A second call does nothing.

        Args:
            outcome: How the request ended.
            status: The HTTP status that came; None = as noted before.
            note: What the server said, shortened; "" = as noted before.
            retry_after_s: When the server wants to be asked again, seconds; None = it did not say.
        """
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
        """End the stream; if it had not ended by itself, the client left."""
        try:
            await self._pieces.aclose()
        finally:
            self._slot.release(Outcome.CLIENT_LEFT)

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; None while it runs."""
        return self._slot.attempt.outcome if self._slot.is_released else None
