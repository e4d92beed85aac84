"""How a body is read piece by piece, and how its sender lets go of it."""

import asyncio
from typing import Any

import pytest

from appliance.base.errors import ApplianceError
from appliance.front.passthrough.upload import Upload


class Content:
    """Stands in for aiohttp's reader: gives what is put in, and refuses a second reader as aiohttp does."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self.is_read = False

    async def readany(self) -> bytes:
        if self.is_read:
            raise RuntimeError("another coroutine is already waiting")
        self.is_read = True
        try:
            return await self.pieces.get()
        finally:
            self.is_read = False


class WebRequest:
    def __init__(self) -> None:
        self.content = Content()


def upload_of(patience_s: float = 5.0, limit_bytes: int = 100) -> tuple[Upload, Content]:
    web_request: Any = WebRequest()
    return Upload(web_request, limit_bytes=limit_bytes, patience_s=patience_s), web_request.content


async def test_it_gives_the_pieces_until_the_end() -> None:
    upload, content = upload_of()
    for piece in (b"a", b"bc", b""):
        content.pieces.put_nowait(piece)
    assert await upload.read() == b"abc"


@pytest.mark.parametrize(
    ("patience_s", "piece", "code"), [(0.01, None, "body_timeout"), (5.0, b"x" * 101, None)]
)
async def test_a_pause_and_too_large_a_body_are_errors(
    patience_s: float, piece: bytes | None, code: str | None
) -> None:
    upload, content = upload_of(patience_s)
    if piece is not None:
        content.pieces.put_nowait(piece)
    with pytest.raises(ApplianceError) as caught:
        await upload.read()
    assert upload.error is caught.value
    assert code is None or caught.value.code == code


async def test_a_cancelled_sender_ends_though_a_piece_arrives_at_once() -> None:
    upload, content = upload_of()
    sender = asyncio.ensure_future(upload.read())
    await asyncio.sleep(0.01)
    content.pieces.put_nowait(b"late")
    sender.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(sender, 1)


async def test_once_released_somebody_else_may_read_the_rest() -> None:
    upload, content = upload_of()
    sender = asyncio.ensure_future(upload.read())
    await asyncio.sleep(0.01)
    assert content.is_read
    sender.cancel()
    await upload.wait_released()
    content.pieces.put_nowait(b"rest")
    assert await content.readany() == b"rest"


async def test_nobody_waits_long_for_a_sender_that_holds_on() -> None:
    upload, _ = upload_of()
    sender = asyncio.ensure_future(upload.read())
    await asyncio.sleep(0.01)
    await asyncio.wait_for(upload.wait_released(), 1)
    sender.cancel()
