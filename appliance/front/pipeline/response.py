"""What a handler returns: a response in one piece, or as a stream of pieces."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from appliance.base import jsons


@dataclass(slots=True)
class Response:
    """One answer: `body` in one piece, or `pieces` as they come (each written and flushed at once; aclose ends all below).

    headers: extra headers, names in the spelling to send; Content-Type apart in `content_type`.
    `on_error` renders an error that struck after the first piece into a last piece of the dialect.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    pieces: AsyncIterator[bytes] | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    on_error: Any = None  # Callable[[ApplianceError], bytes] | None
    heartbeat: bytes = b""  # sent between pieces while nothing else is, every HEARTBEAT_S; b"" = never


def json_response(value: Any, status: int = 200) -> Response:
    """Give one JSON value as an answer."""
    return Response(status, jsons.dumps(value))


class DerivedStream:
    """Pieces made from other pieces. Closing it closes both, also when not one piece was taken yet: a generator that was
    never begun runs no `finally`, and the upstream call below it would go on for nobody."""

    def __init__(self, made: AsyncGenerator[bytes, None], source: Any) -> None:
        self._made = made
        self._source = source

    @property
    def events(self) -> int:
        """How many events of the source have gone in, where it counts them."""
        return int(getattr(self._source, "events", 0))

    def __aiter__(self) -> "DerivedStream":
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._made)

    async def aclose(self) -> None:
        await self._made.aclose()
        await self._source.aclose()
