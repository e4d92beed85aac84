"""Streams: no piece is lost, and closing one closes everything below it, whenever that happens."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable

import pytest

from appliance.base.errors import UpstreamFailed
from appliance.engines.outcome import Outcome
from appliance.engines.stream import GeneratedStream, StartedStream, Stream, start_stream


class Source(Stream):
    """What a stream is made from: it knows how often it was closed."""

    def __init__(self) -> None:
        self.closed = 0

    def __anext__(self) -> Awaitable[bytes]:
        raise AssertionError("nobody reads it directly here")

    async def aclose(self) -> None:
        self.closed += 1

    @property
    def events(self) -> int:
        return 3

    @property
    def outcome(self) -> Outcome | None:
        return Outcome.OK if self.closed else None


async def three() -> AsyncGenerator[bytes, None]:
    for number in range(3):
        yield b"%d" % number


async def failing() -> AsyncGenerator[bytes, None]:
    raise UpstreamFailed("broken")
    yield b""


async def test_a_generated_stream_gives_all_and_closes_its_source() -> None:
    source = Source()
    stream = GeneratedStream(three(), source)
    assert [piece async for piece in stream] == [b"0", b"1", b"2"]
    await stream.aclose()
    assert source.closed == 1


async def test_closing_a_stream_that_was_never_begun_closes_its_source() -> None:
    source = Source()
    stream = GeneratedStream(three(), source)
    await stream.aclose()
    assert source.closed == 1
    assert [piece async for piece in stream] == []


async def test_the_source_is_closed_even_if_the_generator_fails_to_close() -> None:
    async def stubborn() -> AsyncGenerator[bytes, None]:
        try:
            yield b"0"
        finally:
            raise UpstreamFailed("broken while closing")

    source = Source()
    stream = GeneratedStream(stubborn(), source)
    await anext(stream)
    with pytest.raises(UpstreamFailed, match="broken while closing"):
        await stream.aclose()
    assert source.closed == 1


async def test_events_and_outcome_are_those_of_the_source() -> None:
    source = Source()
    streams = [GeneratedStream(three(), source), StartedStream(b"", source)]
    assert [(stream.events, stream.outcome) for stream in streams] == [(3, None)] * 2
    await source.aclose()
    assert [stream.outcome for stream in streams] == [Outcome.OK] * 2


@pytest.mark.parametrize("source", [None, three()], ids=["no source", "a generator"])
async def test_a_stream_of_no_engine_counts_nothing(source: AsyncGenerator[bytes, None] | None) -> None:
    stream = GeneratedStream(three(), source)
    assert (stream.events, stream.outcome) == (0, None)
    await stream.aclose()


async def test_a_started_stream_gives_the_first_piece_first() -> None:
    source = Source()
    stream = await start_stream(GeneratedStream(three(), source))
    assert [piece async for piece in stream] == [b"0", b"1", b"2"]
    await stream.aclose()
    assert source.closed == 1


async def test_closing_a_started_stream_drops_the_piece_in_hand() -> None:
    source = Source()
    stream = await start_stream(GeneratedStream(three(), source))
    await stream.aclose()
    assert source.closed == 1
    assert [piece async for piece in stream] == []


async def test_a_failure_before_the_first_piece_comes_out_at_once() -> None:
    source = Source()
    with pytest.raises(UpstreamFailed, match="broken"):
        await start_stream(GeneratedStream(failing(), source))
    assert source.closed == 1


async def test_cancelling_the_wait_for_the_first_piece_closes_the_source() -> None:
    is_waiting = asyncio.Event()

    async def silent() -> AsyncGenerator[bytes, None]:
        is_waiting.set()
        await asyncio.Event().wait()
        yield b""

    source = Source()
    task = asyncio.get_running_loop().create_task(start_stream(GeneratedStream(silent(), source)))
    await is_waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.closed == 1


async def test_a_bare_stream_must_be_filled_in() -> None:
    with pytest.raises(NotImplementedError):
        await anext(Stream())
    with pytest.raises(NotImplementedError):
        await Stream().aclose()
    assert (Stream().events, Stream().outcome) == (0, None)
