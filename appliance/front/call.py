"""What a handler takes and gives, whichever server stands outside: hot handlers know neither aiohttp nor a socket."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from appliance.base import jsons
from appliance.engines.receipts import Receipt
from appliance.engines.types import NO_WISHES, Wishes


@dataclass(slots=True)
class Call:
    """One request, read whole.

    Takes   headers: lower-case names; body: all bytes (b"" if none); peer: address of the caller or "unix";
            query: the raw query string; params: parts of the path by name (`{model}`)
    The handler runs in a task that is cancelled when the client leaves.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    peer: str
    id: str
    receipt: Receipt
    route: str = ""
    query: str = ""
    params: dict[str, str] = field(default_factory=dict)
    began_s: float = 0.0            # monotonic
    first_byte_s: float = 0.0       # monotonic; 0 = nothing was sent yet
    wishes: Wishes = NO_WISHES      # what its headers say about where and when; set at the desk


@dataclass(slots=True)
class Answer:
    """One answer: `body` in one piece, or `pieces` as they come (each written and flushed at once; aclose ends all below).

    headers: extra headers, names in the spelling to send; Content-Type apart in `content_type`.
    `on_error` renders an error that struck after the first piece into a last piece of the dialect.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    pieces: AsyncIterator[bytes] | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    on_error: Any = None            # Callable[[ApplianceError], bytes] | None
    heartbeat: bytes = b""          # sent between pieces while nothing else is, every HEARTBEAT_S; b"" = never


def json_answer(value: Any, status: int = 200) -> Answer:
    """Give one JSON value as an answer."""
    return Answer(status, jsons.dumps(value))


class Derived:
    """Pieces made from other pieces. Closing it closes both, also when not one piece was taken yet: a generator that was
    never begun runs no `finally`, and the upstream call below it would go on for nobody."""

    def __init__(self, made: AsyncGenerator[bytes, None], source: Any) -> None:
        self._made = made
        self._source = source

    @property
    def events(self) -> int:
        """How many events of the source have gone in, where it counts them."""
        return int(getattr(self._source, "events", 0))

    def __aiter__(self) -> "Derived":
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._made)

    async def aclose(self) -> None:
        await self._made.aclose()
        await self._source.aclose()
