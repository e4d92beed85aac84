"""A stand-in for a hosted OpenAI-compatible API: the real one costs money and does not fail on purpose.

Built from the published shapes (OpenAI's chat, completions and embeddings; Novita's base address, key and
error statuses). It records everything it is sent, and whether the caller left before the answer was complete.

    async with HostedApi() as api:
        api.script(Status(429, retry_after_s=1), CutStream(after_events=3))     # the next two requests
        …                                                                       # api.base_url, api.records
"""

import asyncio
import base64
import json
import struct
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

KEY = "sk_test_hosted_0123456789"
MODEL_REPLY = "Hello there!\nThis is line two. 👩‍👩‍👧‍👦 e\u0301 done."


@dataclass(frozen=True)
class Status:
    """Answer with an error status."""

    status: int
    retry_after_s: float | None = None
    body: str = ""
    location: str = ""


@dataclass(frozen=True)
class Slow:
    """Wait before the first byte, then answer as usual."""

    seconds: float


@dataclass(frozen=True)
class CutStream:
    """Break the stream off after so many events."""

    after_events: int


@dataclass(frozen=True)
class Stall:
    """Fall silent in the stream after so many events, until the caller leaves."""

    after_events: int = 2


@dataclass(frozen=True)
class Drip:
    """Send the events slowly."""

    every_s: float


@dataclass(frozen=True)
class Reply:
    """Answer with this instead of the usual reply.

    Attributes:
        text: Before the calls; "" = none.
        reasoning: Before the text; "" = none.
        calls: (function's name, arguments) each.
    """

    text: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()


class Hang:
    """Never answer."""


class Refuse:
    """Close the connection without a byte."""


class InvalidResponse:
    """Respond 200 with something that is not JSON."""


class ErrorObject:
    """200 with an error object."""


class OnePiece:
    """Answer in one piece although a stream was asked for."""


class OddStream:
    """CR LF, comments, no blank after `data:`, and events cut at odd places."""


class NoDone:
    """A stream that ends after its finish_reason without [DONE]."""


class ErrorEvent:
    """An error event in the middle of the stream."""


@dataclass
class Record:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes
    body: Any
    at_s: float = field(default_factory=time.monotonic)
    left_after_s: float | None = None  # the caller left before the answer was complete
    is_complete: bool = False


class HostedApi:
    """The stand-in; behaviours given to `script` apply to the next requests, one each."""

    def __init__(self, *, key: str = KEY) -> None:
        self.key = key
        self.records: list[Record] = []
        self.reply = MODEL_REPLY
        self.reasoning = ""
        self._script: list[Any] = []
        self._runner: web.AppRunner | None = None
        self.base_url = ""

    def script(self, *behaviours: Any) -> None:
        self._script += behaviours

    async def __aenter__(self) -> "HostedApi":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, port: int = 0) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{rest:.*}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        bound = self._runner.addresses[0][1]
        self.base_url = f"http://127.0.0.1:{bound}/openai/v1"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        try:
            body = json.loads(raw) if raw else None
        except ValueError:
            body = None
        record = Record(
            request.method, request.path, {k.lower(): v for k, v in request.headers.items()}, raw, body
        )
        self.records.append(record)
        try:
            answer = await self._answer(request, record)
        except (asyncio.CancelledError, ConnectionResetError):
            record.left_after_s = time.monotonic() - record.at_s
            raise
        record.is_complete = True
        return answer

    async def _answer(self, request: web.Request, record: Record) -> web.StreamResponse:
        how = self._script.pop(0) if self._script else None
        if record.headers.get("authorization") != f"Bearer {self.key}":
            return _error(401, "invalid api key", "invalid_api_key")
        if (failure := await self._fail(request, how)) is not None:
            return failure
        name = request.path.removeprefix("/openai/v1")
        if name == "/embeddings":
            return web.json_response(self._embeddings(record.body))
        if name not in {"/chat/completions", "/completions"}:
            return _error(404, f"no such path {request.path}", "not_found")
        is_chat = name == "/chat/completions"
        if not isinstance(record.body, dict) or (is_chat and not record.body.get("messages")):
            return _error(400, "messages is required", "invalid", param="messages")
        if not record.body.get("stream") or isinstance(how, OnePiece):
            return web.json_response(self._whole(record.body, how, is_chat=is_chat))
        return await self._stream(request, record, how, is_chat=is_chat)

    async def _fail(self, request: web.Request, how: Any) -> web.Response | None:
        """Fail as the script says; None = answer."""
        if isinstance(how, Slow):
            await asyncio.sleep(how.seconds)
        if isinstance(how, Hang):
            await asyncio.sleep(3600)
        if isinstance(how, Refuse):
            assert request.transport is not None
            request.transport.abort()
            raise ConnectionResetError
        if isinstance(how, Status):
            headers = {"retry-after": f"{how.retry_after_s:g}"} if how.retry_after_s is not None else {}
            if how.location:
                headers["location"] = how.location
            if how.body:
                return web.Response(status=how.status, text=how.body, headers=headers)
            return _error(how.status, f"stand-in answers {how.status}", "stand_in", headers)
        if isinstance(how, InvalidResponse):
            return web.Response(body=b"<html>gateway ok</html>", content_type="text/html")
        if isinstance(how, ErrorObject):
            return web.json_response({"error": {"message": "quota spent", "type": "insufficient_quota"}})
        return None

    def _message(self, body: dict[str, Any], how: Any) -> tuple[dict[str, Any], str]:
        if isinstance(how, Reply):
            return _scripted(how, len(self.records))
        message: dict[str, Any] = {"role": "assistant", "content": self.reply}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        tools = body.get("tools") or []
        if tools and body.get("tool_choice") != "none":
            message["content"] = None
            message["tool_calls"] = [
                {
                    "id": f"call_{n}",
                    "type": "function",
                    "function": {
                        "name": t["function"]["name"],
                        "arguments": json.dumps({"city": "Paris", "n": n}),
                    },
                }
                for n, t in enumerate(tools)
            ]
            return message, "tool_calls"
        return message, "stop"

    def _whole(self, body: dict[str, Any], how: Any = None, *, is_chat: bool) -> dict[str, Any]:
        choices = []
        for index in range(body.get("n") or 1):
            message, finish = self._message(body, how)
            choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": finish}
            choice |= {"message": message} if is_chat else {"text": self.reply}
            if body.get("logprobs") and is_chat:
                choice["logprobs"] = {
                    "content": [{"token": self.reply[:5], "logprob": -0.1, "bytes": None, "top_logprobs": []}]
                }
            choices.append(choice)
        return {
            "id": "chatcmpl-upstream",
            "object": "chat.completion" if is_chat else "text_completion",
            "created": 1700000000,
            "model": body.get("model"),
            "choices": choices,
            "system_fingerprint": "fp_upstream",
            "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
        }

    def _chunks(self, body: dict[str, Any], how: Any = None, *, is_chat: bool) -> list[dict[str, Any]]:
        include = bool((body.get("stream_options") or {}).get("include_usage"))
        head: dict[str, Any] = {
            "id": "chatcmpl-upstream",
            "object": "chat.completion.chunk" if is_chat else "text_completion",
            "created": 1700000000,
            "model": body.get("model"),
        }
        if include:
            head["usage"] = None
        message, finish = self._message(body, how)
        chunks: list[dict[str, Any]] = []
        for index in range(body.get("n") or 1):
            deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}] if is_chat else []
            reasoning, text = message.get("reasoning_content") or "", message["content"] or ""
            deltas += [{"reasoning_content": reasoning[i : i + 7]} for i in range(0, len(reasoning), 7)]
            if is_chat or not message.get("tool_calls"):
                deltas += [{"content": text[i : i + 4]} for i in range(0, len(text), 4)]
            if message.get("tool_calls") and is_chat:
                for n, call in enumerate(message["tool_calls"]):
                    deltas.append(
                        {
                            "tool_calls": [
                                {
                                    "index": n,
                                    **call,
                                    "function": {"name": call["function"]["name"], "arguments": ""},
                                }
                            ]
                        }
                    )
                    text = call["function"]["arguments"]
                    deltas += [
                        {"tool_calls": [{"index": n, "function": {"arguments": text[i : i + 5]}}]}
                        for i in range(0, len(text), 5)
                    ]
            for delta in deltas:
                choice = {"delta": delta} if is_chat else {"text": delta["content"]}
                chunks.append({**head, "choices": [{"index": index, **choice, "finish_reason": None}]})
            chunks.append(
                {
                    **head,
                    "choices": [
                        {
                            "index": index,
                            **({"delta": {}} if is_chat else {"text": ""}),
                            "finish_reason": finish,
                        }
                    ],
                }
            )
        if include:
            chunks.append(
                {
                    **head,
                    "choices": [],
                    "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
                }
            )
        return chunks

    async def _stream(
        self, request: web.Request, record: Record, how: Any, *, is_chat: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        events = [
            b"data: " + json.dumps(c).encode() + b"\n\n"
            for c in self._chunks(record.body, how, is_chat=is_chat)
        ]
        if not isinstance(how, NoDone):
            events.append(b"data: [DONE]\n\n")
        if isinstance(how, OddStream):
            whole = b": hello\r\n\r\n" + b"".join(events).replace(b"data: ", b"data:").replace(b"\n", b"\r\n")
            events = [whole[i : i + 37] for i in range(0, len(whole), 37)]
        for number, event in enumerate(events):
            if isinstance(how, CutStream) and number == how.after_events:
                assert request.transport is not None
                request.transport.abort()
                raise ConnectionResetError
            if isinstance(how, ErrorEvent) and number == 3:
                await response.write(b'data: {"error": {"message": "engine died", "code": 500}}\n\n')
                break
            if isinstance(how, Stall) and number == how.after_events:
                await asyncio.sleep(3600)
            if isinstance(how, Drip):
                await asyncio.sleep(how.every_s)
            await response.write(event)
        await response.write_eof()
        return response

    def _embeddings(self, body: dict[str, Any]) -> dict[str, Any]:
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        vectors: list[Any] = [[float(len(str(text))), 1.0, 0.5] for text in inputs]
        if body.get("encoding_format") == "base64":
            vectors = [base64.b64encode(struct.pack("<3f", *v)).decode() for v in vectors]
        return {
            "object": "list",
            "model": body["model"],
            "usage": {"prompt_tokens": 4, "total_tokens": 4},
            "data": [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)],
        }


def _scripted(reply: Reply, turn: int) -> tuple[dict[str, Any], str]:
    """Return (the message, its finish reason)."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text or None}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.calls:
        message["tool_calls"] = [
            {
                "id": f"call_{turn}_{n}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(given)},
            }
            for n, (name, given) in enumerate(reply.calls)
        ]
    return message, "tool_calls" if reply.calls else "stop"


def _error(
    status: int,
    message: str,
    code: str,
    headers: dict[str, str] | None = None,
    param: str | None = None,
) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": "stand_in_error", "param": param, "code": code}},
        status=status,
        headers=headers,
    )


async def _main(port: int) -> None:
    api = HostedApi()
    await api.start(port)
    print(api.base_url, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
