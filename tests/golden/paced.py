"""Stand-ins that break off only once the client has what was sent before: what it gets then does not hang on how fast anybody reads."""

import asyncio
import json
from typing import Any

from aiohttp import web

from tests.fakes import engine_server
from tests.fakes.engine_server import EngineServer
from tests.fakes.hosted_api import CutStream, ErrorEvent, HostedApi, Record

PATIENCE_S = 5.0


class Seen:
    """Whether the client has seen what the stand-in waits for. `take` is given all that it has got so far."""

    def __init__(self) -> None:
        self._text = b""
        self._event = asyncio.Event()

    def wait_for(self, text: str) -> None:
        self._text = text.encode()
        self._event.clear()

    def take(self, body: bytes) -> None:
        if self._text and self._text in body:
            self._event.set()

    async def wait(self) -> None:
        try:
            await asyncio.wait_for(self._event.wait(), PATIENCE_S)
        except TimeoutError:
            raise AssertionError(f"the client has not got {self._text!r}") from None


def _last_text(chunks: list[dict[str, Any]]) -> str:
    return next(
        (
            text
            for chunk in reversed(chunks)
            for choice in chunk["choices"]
            if (text := choice.get("text") or choice.get("delta", {}).get("content"))
        ),
        "",
    )


async def _break_off(request: web.Request, response: web.StreamResponse, *, error: int) -> web.StreamResponse:
    """End a stream before its end: with an error event of that status, 0 = by breaking the connection off."""
    if error:
        await response.write(
            b'data: {"error": {"message": "engine died", "code": %d, "type": "server_error"}}\n\n' % error
        )
        await response.write_eof()
        return response
    assert request.transport is not None
    request.transport.abort()
    raise ConnectionResetError


class HeldHosted(HostedApi):
    """The hosted API's stand-in; `CutStream` and `ErrorEvent` wait for the client."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.seen = Seen()

    async def _stream(
        self, request: web.Request, record: Record, how: Any, *, is_chat: bool
    ) -> web.StreamResponse:
        if not isinstance(how, CutStream | ErrorEvent):
            return await super()._stream(request, record, how, is_chat=is_chat)
        chunks = self._chunks(record.body, is_chat=is_chat)[
            : how.after_events if isinstance(how, CutStream) else 3
        ]
        self.seen.wait_for(_last_text(chunks))
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for chunk in chunks:
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        if chunks:
            await self.seen.wait()
        return await _break_off(request, response, error=500 if isinstance(how, ErrorEvent) else 0)


class HeldEngine(EngineServer):
    """An engine's stand-in; `cut`, `event_400` and `event_500` in a stream wait for the client, where `is_held`."""

    def __init__(self, *kinds: str, **more: Any) -> None:
        super().__init__(*kinds, **more)
        self.seen = Seen()
        self.is_held = False

    async def _answer(self, request: web.Request, body: dict[str, Any], fault: str) -> web.StreamResponse:
        if not (self.is_held and body.get("stream") and fault in {"cut", "event_400", "event_500"}):
            return await super()._answer(request, body, fault)
        piece = engine_server.REPLY[0]
        self.seen.wait_for(piece)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        chunk = {
            "id": "c1",
            "created": 1700000000,
            "model": body.get("model"),
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}],
        }
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await self.seen.wait()
        return await _break_off(request, response, error=int(fault[6:]) if fault != "cut" else 0)
