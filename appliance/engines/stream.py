"""A response as a stream: pieces of bytes that are pulled one by one, until its end or until it is closed.

Everything that streams, from an engine's events to the lines that a client reads, is a Stream. All of them
follow one rule: closing a stream closes its source, even if no piece was taken yet. (A plain async generator
does not: one that was never started runs no `finally`, so the upstream request below it would go on after the
client has disconnected.)
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Protocol, Self

from appliance.engines.outcome import Outcome


class Stream:
    """The pieces of one response. Close it in any case; closing it again does nothing."""

    __slots__ = ()

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[bytes]:
        """Return the next piece."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close the response and everything below it."""
        raise NotImplementedError

    async def pass_pieces(self, write: Callable[[bytes], bool]) -> bool:
        """Give each piece to `write` as soon as it is there, while `write` returns True.

        Returns:
            Whether the stream has ended; False: `write` has returned False.

        Raises:
            Exception: As `__anext__`, and what `write` raises.
        """
        async for piece in self:
            if not write(piece):
                return False
        return True

    @property
    def events(self) -> int:
        """Events of an engine that were passed on; 0 = they are not counted."""
        return 0

    def event_counter(self) -> "EventCounter":
        """Return what counts `events`, for those who ask after each piece."""
        return self

    @property
    def outcome(self) -> Outcome | None:
        """How the attempt behind it ended; None = it runs, or there is none."""
        return None


class EventCounter(Protocol):
    """Counts events."""

    @property
    def events(self) -> int:
        """So many by now."""
        ...


class Closable(Protocol):
    """The source of a stream: another stream, or a generator."""

    async def aclose(self) -> None:
        """Close it."""
        ...


class GeneratedStream(Stream):
    """A stream made by a generator, usually from another stream. Closing it closes both."""

    __slots__ = ("_pieces", "_source")

    def __init__(self, pieces: AsyncGenerator[bytes, None], source: Closable | None = None) -> None:
        self._pieces = pieces
        self._source = source

    def __anext__(self) -> Awaitable[bytes]:
        return self._pieces.__anext__()

    async def aclose(self) -> None:
        """Close the generator and its source."""
        try:
            await self._pieces.aclose()
        finally:
            if self._source is not None:
                await self._source.aclose()

    @property
    def events(self) -> int:
        """Events of the source that were passed on."""
        return self._source.events if isinstance(self._source, Stream) else 0

    @property
    def outcome(self) -> Outcome | None:
        """How the attempt behind the source ended."""
        return self._source.outcome if isinstance(self._source, Stream) else None


class StartedStream(Stream):
    """A stream whose first piece was already taken from its source."""

    __slots__ = ("_first", "_rest")

    def __init__(self, first: bytes, rest: Stream) -> None:
        self._first: bytes | None = first
        self._rest = rest

    async def __anext__(self) -> bytes:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await self._rest.__anext__()

    async def pass_pieces(self, write: Callable[[bytes], bool]) -> bool:
        """Give each piece to `write` as soon as it is there (see Stream)."""
        if self._first is not None:
            first, self._first = self._first, None
            if not write(first):
                return False
        return await self._rest.pass_pieces(write)

    async def aclose(self) -> None:
        """Close the source, and drop the first piece if it was not read."""
        self._first = None
        await self._rest.aclose()

    @property
    def events(self) -> int:
        """Events of the source that were passed on."""
        return self._rest.events

    def event_counter(self) -> EventCounter:
        """Return what counts the source's events."""
        return self._rest.event_counter()

    @property
    def outcome(self) -> Outcome | None:
        """How the attempt behind the source ended."""
        return self._rest.outcome


async def start_stream(stream: Stream) -> StartedStream:
    """Wait for a stream's first piece, so that a failure before it can still become an error status.

    Args:
        stream: Has at least one piece.

    Returns:
        The whole stream, the first piece included.

    Raises:
        Exception: What making the first piece raises; then, and when the wait is cancelled, `stream` is
        closed.
    """
    try:
        return StartedStream(await anext(stream), stream)
    except BaseException:
        await stream.aclose()
        raise
