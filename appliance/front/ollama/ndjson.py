"""Newline-delimited JSON: one object a line. The framing of Ollama's streams, and the wait for the first line of one.

NDJSON knows no comments, and clients stumble over a line that is empty. What every JSON reader passes over is space before an object:
HEARTBEAT is the beginning of the next line.
"""

from collections.abc import AsyncGenerator
from typing import Any

from appliance.base import jsons
from appliance.front.pipeline.response import DerivedStream

CONTENT_TYPE = "application/x-ndjson"
HEARTBEAT = b" "


def line(value: dict[str, Any]) -> bytes:
    """Render one object as a line."""
    return jsons.dumps(value) + b"\n"


class StartedStream:
    """A stream whose first line is in hand. Closing it closes everything below, also when that line was never taken."""

    def __init__(self, first: bytes, rest: DerivedStream) -> None:
        self._first: bytes | None = first
        self._rest = rest

    def __aiter__(self) -> "StartedStream":
        return self

    async def __anext__(self) -> bytes:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await anext(self._rest)

    async def aclose(self) -> None:
        self._first = None
        await self._rest.aclose()


async def begin(lines: AsyncGenerator[bytes, None], source: Any) -> StartedStream:
    """Wait for the first line, so that what fails before it is answered with a real status and not inside a stream.

    Takes   lines: made from `source`, at least one; source: what is closed with them (the engine's events)
    Raises  what making the first line raises; `source` is closed then, also when the wait is cancelled
    """
    rest = DerivedStream(lines, source)
    try:
        return StartedStream(await anext(rest), rest)
    except BaseException:
        await rest.aclose()
        raise
