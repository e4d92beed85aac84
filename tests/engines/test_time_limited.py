"""X-Timelimit ends a request and a stream at its time, and closes what runs below it."""

import asyncio

import pytest

from appliance.base.errors import TimedOut
from appliance.engines.receipts import Receipt
from appliance.engines.stream import GeneratedStream, Stream
from appliance.engines.time_limited import answer_within
from appliance.engines.types import EngineReply, EngineRequest, Operation, RequestOptions


def request_of(limit_s: float) -> EngineRequest:
    receipt = Receipt("id", 0.0, "/v1/chat/completions")
    return EngineRequest(Operation.CHAT, {}, None, "m", True, receipt, RequestOptions(time_limit_s=limit_s))


class Endless(Stream):
    """One piece, then silence."""

    def __init__(self) -> None:
        self.is_closed = False
        self.pieces = 0

    async def __anext__(self) -> bytes:
        self.pieces += 1
        if self.pieces > 1:
            await asyncio.Event().wait()
        return b"data: 1\n\n"

    async def aclose(self) -> None:
        self.is_closed = True


async def test_an_answer_that_does_not_begin_ends_at_its_time() -> None:
    left = asyncio.Event()

    async def never(_: EngineRequest) -> EngineReply:
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        raise AssertionError

    with pytest.raises(TimedOut, match="Time limit exceeded"):
        await answer_within(never, request_of(0.01))
    assert left.is_set()


async def test_a_stream_that_goes_on_ends_at_its_time() -> None:
    source = Endless()

    async def answer(_: EngineRequest) -> EngineReply:
        return EngineReply(events=source)

    reply = await answer_within(answer, request_of(0.05))
    assert reply.events is not None
    assert await anext(reply.events) == b"data: 1\n\n"
    with pytest.raises(TimedOut, match="Time limit exceeded"):
        await anext(reply.events)
    await reply.events.aclose()
    assert source.is_closed


async def test_an_answer_in_time_is_whole() -> None:
    async def pieces():
        yield b"data: 1\n\n"
        yield b"data: [DONE]\n\n"

    async def answer(_: EngineRequest) -> EngineReply:
        return EngineReply(events=GeneratedStream(pieces()))

    reply = await answer_within(answer, request_of(30))
    assert reply.events is not None
    assert [piece async for piece in reply.events] == [b"data: 1\n\n", b"data: [DONE]\n\n"]
