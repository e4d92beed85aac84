"""A server that notes how many tokens it has sent for each request, against which charges are compared.

async with CountingEngine(tokens=6) as engine:
    engine.stall_at = 3            # it sends three tokens, then nothing until the caller leaves
    …                              # engine.served[-1].tokens
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.fakes.engine_server import EngineServer

PROMPT_TOKENS = 11
EMBEDDING_TOKENS = 4
USAGES = ("right", "none", "zero")


@dataclass
class Served:
    """What was done for one request.

    Attributes:
        tokens: Of the response that were sent, or are in the whole one.
        usage: As it was told: (prompt, completion); None = it was not.
    """

    tokens: int = 0
    usage: tuple[int, int] | None = None
    is_complete: bool = False


def token_text(number: int) -> str:
    """Return the text of a token, shorter than six bytes: by it a client sees which one it has."""
    return f"{number:04d} "


class CountingEngine(EngineServer):
    """One server. Set its fields at any time.

    Attributes:
        tokens: Of each response, where the request does not say fewer.
        token_s: Between two of them.
        stall_at: After so many it sends nothing, until the caller leaves; None = it goes on.
        cut_at: After so many it breaks off.
        usage: What it tells of usage: `right`, `none`, or `zero`.
        served: One for each request, in the order in which they came.
    """

    def __init__(self, kind: str = "openai", *, tokens: int = 6, usage: str = "right", **how: Any) -> None:
        super().__init__(kind, **{"slots": 1000, **how})
        self.tokens, self.usage = tokens, usage
        self.stall_at: int | None = None
        self.cut_at: int | None = None
        self.served: list[Served] = []

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/embeddings" and self.kind == "openai":
            return await self._embed(request)
        if request.path in {"/v1/rerank", "/rerank"}:
            return await self._rerank(request)
        return await super()._handle(request)

    async def _embed(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.served.append(served := Served())
        if self.stall_at is not None:
            await asyncio.sleep(3600)
        row = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
        answer = {"object": "list", "model": body.get("model"), "data": [row]}
        if (told := self._told(served, EMBEDDING_TOKENS)) is not None:
            answer["usage"] = told
        served.is_complete = True
        return web.json_response(answer)

    async def _rerank(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        self.served.append(served := Served())
        if self.stall_at == 0:
            await asyncio.sleep(3600)
        if self.stall_at is None:
            served.is_complete = True
            return web.json_response({"results": []})
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"results":[')
        await asyncio.sleep(3600)
        return response

    def _told(self, served: Served, prompt: int = PROMPT_TOKENS) -> dict[str, int] | None:
        """Return the usage to tell, and note it."""
        if self.usage == "none":
            return None
        read, written = (0, 0) if self.usage == "zero" else (prompt, served.tokens)
        served.usage = (read, written)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    async def _answer(self, request: web.Request, body: dict[str, Any], fault: str) -> web.StreamResponse:
        self.served.append(served := Served())
        is_chat = request.path.endswith("/chat/completions")
        most = body.get("max_completion_tokens") or body.get("max_tokens")
        tokens = min(self.tokens, most) if isinstance(most, int) and most > 0 else self.tokens
        finish = "length" if tokens < self.tokens else "stop"
        head = {"id": "c1", "created": 1700000000, "model": body.get("model")}
        if body.get("stream"):
            return await self._send_events(
                request, body, served, head, is_chat=is_chat, tokens=tokens, finish=finish
            )
        await asyncio.sleep(self.token_s * tokens)
        if self.stall_at is not None:
            await asyncio.sleep(3600)
        served.tokens = tokens
        text = "".join(map(token_text, range(1, tokens + 1)))
        said = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        kind = "chat.completion" if is_chat else "text_completion"
        whole = {**head, "object": kind, "choices": [{"index": 0, **said, "finish_reason": finish}]}
        if (told := self._told(served)) is not None:
            whole["usage"] = told
        served.is_complete = True
        return web.json_response(whole)

    async def _send_events(
        self,
        request: web.Request,
        body: dict[str, Any],
        served: Served,
        head: dict[str, Any],
        *,
        is_chat: bool,
        tokens: int,
        finish: str,
    ) -> web.StreamResponse:
        kind = "chat.completion.chunk" if is_chat else "text_completion"

        def event(choices: list[Any], **more: Any) -> bytes:
            chunk = {**head, "object": kind, "choices": choices, **more}
            return b"data: " + json.dumps(chunk).encode() + b"\n\n"

        def choice(text: str, finish_reason: str | None = None) -> list[Any]:
            said: dict[str, Any] = {"delta": {"content": text} if text else {}} if is_chat else {"text": text}
            return [{"index": 0, **said, "finish_reason": finish_reason}]

        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(tokens):
            if number == self.cut_at:
                assert request.transport is not None
                request.transport.abort()
                raise ConnectionResetError
            if number == self.stall_at:
                await asyncio.sleep(3600)
            if self.token_s:
                await asyncio.sleep(self.token_s)
            await response.write(event(choice(token_text(number + 1))))
            served.tokens += 1
        await response.write(event(choice("", finish)))
        told = self._told(served) if (body.get("stream_options") or {}).get("include_usage") else None
        if told is not None:
            await response.write(event([], usage=told))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        served.is_complete = True
        return response
