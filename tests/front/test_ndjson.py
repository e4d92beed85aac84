"""The first line of a stream is waited for; whatever happens then, the source is closed."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from appliance.base.errors import UpstreamFailed
from appliance.front.ollama.ndjson import begin, line


class Source:
    is_closed = False

    async def aclose(self) -> None:
        self.is_closed = True


async def three() -> AsyncGenerator[bytes, None]:
    for number in range(3):
        yield line({"n": number})


def test_a_line_is_one_object_whatever_is_in_its_text() -> None:
    assert line({"text": "a\nb 🎉"}) == '{"text":"a\\nb 🎉"}\n'.encode()


async def test_no_line_is_lost() -> None:
    source = Source()
    begun = await begin(three(), source)
    assert [piece async for piece in begun] == [line({"n": n}) for n in range(3)]
    await begun.aclose()
    assert source.is_closed


async def test_a_failure_before_the_first_line_comes_out_at_once() -> None:
    async def failing() -> AsyncGenerator[bytes, None]:
        raise UpstreamFailed("broken")
        yield b""

    source = Source()
    with pytest.raises(UpstreamFailed):
        await begin(failing(), source)
    assert source.is_closed


async def test_who_leaves_while_waiting_for_the_first_line_closes_the_source() -> None:
    is_waiting = asyncio.Event()

    async def silent() -> AsyncGenerator[bytes, None]:
        is_waiting.set()
        await asyncio.Event().wait()
        yield b""

    source = Source()
    task = asyncio.get_running_loop().create_task(begin(silent(), source))
    await is_waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.is_closed


async def test_closing_before_the_first_line_is_taken_closes_the_source() -> None:
    source = Source()
    begun = await begin(three(), source)
    await begun.aclose()
    assert source.is_closed
    assert [piece async for piece in begun] == []
