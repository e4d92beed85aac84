"""Requests whose time their client limits (`X-Timelimit`): the whole response has to be there by then."""

import asyncio
from collections.abc import Awaitable, Callable

from appliance.base.inline import in_task
from appliance.base.time_limit import time_limit_exceeded
from appliance.engines.outcome import Outcome
from appliance.engines.stream import EventCounter, Stream
from appliance.engines.types import EngineReply, EngineRequest

Answer = Callable[[EngineRequest], Awaitable[EngineReply]]


async def answer_within(answer: Answer, request: EngineRequest) -> EngineReply:
    """Answer a request within its `options.time_limit_s`; a stream ends with an error at that time.

    Raises:
        TimedOut: The time is over.
        ApplianceError: What `answer` raises.
    """
    await in_task()
    until_s = asyncio.get_running_loop().time() + request.options.time_limit_s
    try:
        async with asyncio.timeout_at(until_s):
            reply = await answer(request)
    except TimeoutError:
        raise time_limit_exceeded() from None
    if reply.events is not None:
        reply.events = TimeLimitedStream(reply.events, until_s)
    return reply


class TimeLimitedStream(Stream):
    """A stream that ends with an error at a time.

    Args:
        source: The stream.
        until_s: By the loop's clock.
    """

    __slots__ = ("_source", "_until_s")

    def __init__(self, source: Stream, until_s: float) -> None:
        self._source = source
        self._until_s = until_s

    async def __anext__(self) -> bytes:
        await in_task()
        try:
            async with asyncio.timeout_at(self._until_s):
                return await self._source.__anext__()
        except TimeoutError:
            raise time_limit_exceeded() from None

    async def aclose(self) -> None:
        """Close the source."""
        await self._source.aclose()

    @property
    def events(self) -> int:
        """Events of the source that were passed on."""
        return self._source.events

    def event_counter(self) -> EventCounter:
        """Return what counts the source's events."""
        return self._source.event_counter()

    @property
    def outcome(self) -> Outcome | None:
        """How the attempt behind the source ended."""
        return self._source.outcome
