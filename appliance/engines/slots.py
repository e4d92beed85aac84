"""The right to send one request to one backend: taken when the backend is chosen, released exactly once."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from appliance.base.logs import get_logger
from appliance.engines.outcome import Outcome
from appliance.engines.receipts import Attempt, Receipt
from appliance.engines.stream import Stream

log = get_logger("backend")


@dataclass(slots=True)
class ResponseTimes:
    """The times of a response, taken by the appliance because the engine takes none.

    Attributes:
        receipt: Of the request; it may get the engine's token counts.
        first_s: When the first event arrived, monotonic; 0 = not yet.
        stream: Of the reply; it counts its events; None = the response was not a stream.
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
    """What opens slots, and is notified when one is released."""

    @property
    def name(self) -> str:
        """Its name, in metrics and receipts."""
        ...

    def record(self, slot: "Slot[Any]", outcome: Outcome, retry_after_s: float | None) -> None:
        """Record how a request ended; called once, when its slot is released."""
        ...


OwnerT = TypeVar("OwnerT", bound=SlotOwner, covariant=True)


@dataclass(slots=True, eq=False)
class Slot(Generic[OwnerT]):
    """The right to send one request to one backend.

    Attributes:
        backend: The backend.
        started_s: When it was taken, monotonic.
        attempt: The receipt's row about it; `release` fills it in.
        url: For passthrough: the base address of the server.
        headers: For passthrough: headers that the server needs, such as its key.
        ssl: For passthrough: None = the default context.
        is_uncounted: It takes no capacity: for a query about the server itself.
        is_released: It was released.
        times: Of the response, if the appliance takes them; None = it does not.
        flow: Whose request it carries (see RequestOptions.flow).
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
    flow: str = ""

    def release(
        self,
        outcome: Outcome,
        *,
        status: int | None = None,
        note: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        """Release the slot, and record the outcome in backend and receipt. A second call does nothing.

        Args:
            outcome: How the request ended.
            status: The HTTP status of the response; None = as noted before.
            note: The error text of the server, shortened; "" = as noted before.
            retry_after_s: Retry-After of the server in seconds; None = it sent none.
        """
        if self.is_released:
            return
        self.is_released = True
        attempt = self.attempt
        attempt.outcome = outcome
        attempt.note = note or attempt.note
        attempt.status = status if status is not None else attempt.status
        try:
            self.backend.record(self, outcome, retry_after_s)
        except Exception as error:  # the request has its answer: a fault in the accounts must not replace it
            log.error("not_recorded", backend=self.backend.name, error=repr(error), exc_info=error)


AnySlot: TypeAlias = Slot[Any]  # of any backend


class SlotStream(Stream):
    """A stream that holds a slot until it ends, fails, or is closed (even if no piece was taken)."""

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
        """Close the stream; if it had not ended by itself, the client left."""
        try:
            await self._pieces.aclose()
        finally:
            self._slot.release(Outcome.CLIENT_LEFT)

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; None while it runs."""
        return self._slot.attempt.outcome if self._slot.is_released else None
