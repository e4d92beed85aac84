"""A stand-in for servers of llama.cpp, vLLM and SGLang that can be made to fail on purpose.

Built from the published pages of the three (health, models, metrics, error texts). It works on at most
`slots` requests at a time and lets the rest wait, as they do.

    async with EngineServer("vllm") as engine:
        engine.faults = ["status_503"]      # the next requests, one each: see FAULTS
        …                                   # engine.url, engine.asked
"""

import asyncio
import json
import ssl
from typing import Any

from aiohttp import web

REPLY = ["Stand", "ing ", "in."]
FAULTS = {
    "refuse",
    "hang",
    "hang_after_head",
    "cut",
    "status_500",
    "plain_500",  # no JSON
    "says_500 …",  # the status and the sentence of an error body
    "status_502",
    "status_503",
    "status_429",
    "invalid_response",
    "drip",
    "context",
    "event_400",
    "event_500",
}
MODELS = {"llamacpp": "llamacpp", "vllm": "vllm", "sglang": "sglang", "openai": "somebody"}


class EngineServer:
    """One server. Set its fields at any time."""

    def __init__(
        self,
        kind: str = "llamacpp",
        *,
        models: tuple[str, ...] = ("tiny",),
        slots: int = 4,
        context: int = 4096,
        key: str = "",
        token_s: float = 0.0,
    ) -> None:
        self.kind, self.models, self.slots, self.context, self.key, self.token_s = (
            kind,
            models,
            slots,
            context,
            key,
            token_s,
        )
        self.faults: list[str] = []
        self.health_status = 200
        self.health_hangs = False
        self.metrics_page: bytes | None = None  # instead of its own
        self.metrics_status = 200
        self.is_embedding = False  # started for embeddings alone
        self.refuses_stream_options = False
        self.has_timings = False  # in the last chunk of a stream, as llama.cpp's server
        self.others = 0  # requests that other clients have running here
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.running = self.waiting = self.most_running = 0
        self.left = 0  # callers that left before their answer was complete
        self.port = 0
        self.ssl_context: ssl.SSLContext | None = None  # set before it starts, it speaks TLS
        self._gate = asyncio.Semaphore(slots)
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.ssl_context else 'http'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> "EngineServer":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; after `stop` on the same port again."""
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(
            self._runner, "127.0.0.1", self.port, reuse_address=True, ssl_context=self.ssl_context
        ).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        page = {
            "/health": self._health,
            "/metrics": self._metrics,
            "/props": self._props,
            "/v1/models": self._models,
            "/get_model_info": self._information,
            "/lora-adapters": self._adapters,
        }.get(request.path)
        if page is not None:
            return await page()
        if request.path == "/v1/embeddings" and self.kind == "llamacpp" and await request.read() == b"{}":
            return self._without_input()
        if request.path in {"/v1/chat/completions", "/v1/completions"}:
            try:
                return await self._complete(request)
            except (asyncio.CancelledError, ConnectionResetError):
                self.left += 1
                raise
        return web.json_response({"error": {"message": "not found", "code": 404}}, status=404)

    async def _health(self) -> web.Response:
        if self.health_hangs:
            await asyncio.sleep(3600)
        if self.kind == "llamacpp":
            body = (
                {"status": "ok"}
                if self.health_status == 200
                else {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
            )
            return web.json_response(body, status=self.health_status)
        return web.Response(status=self.health_status if self.kind != "openai" else 404)

    async def _metrics(self) -> web.Response:
        if self.metrics_page is not None or self.metrics_status != 200 or self.kind == "openai":
            return web.Response(
                body=self.metrics_page or b"", status=404 if self.kind == "openai" else self.metrics_status
            )
        running, waiting = {
            "llamacpp": ("llamacpp:requests_processing", "llamacpp:requests_deferred"),
            "vllm": (
                'vllm:num_requests_running{engine="0",model_name="m"}',
                'vllm:num_requests_waiting{engine="0",model_name="m"}',
            ),
            "sglang": ('sglang:num_running_reqs{model_name="m"}', 'sglang:num_queue_reqs{model_name="m"}'),
        }[self.kind]
        return web.Response(
            text=f"# HELP x y\n{running} {self.running + self.others}.0\n{waiting} {self.waiting}\n"
        )

    async def _props(self) -> web.Response:
        if self.kind != "llamacpp":
            return web.Response(status=404)
        return web.json_response(
            {
                "default_generation_settings": {"n_ctx": self.context},
                "total_slots": self.slots,
                "model_path": "m.gguf",
            }
        )

    async def _models(self) -> web.Response:
        rows = [
            {"id": name, "object": "model", "created": 1700000000, "owned_by": MODELS[self.kind]}
            for name in self.models
        ]
        if self.kind in {"vllm", "sglang"}:
            rows = [{**row, "max_model_len": self.context} for row in rows]
        return web.json_response({"object": "list", "data": rows})

    async def _information(self) -> web.Response:
        return (
            web.json_response({"model_path": "m", "is_generation": not self.is_embedding})
            if self.kind == "sglang"
            else web.Response(status=404)
        )

    def _without_input(self) -> web.Response:
        """Answer a request for embeddings that has nothing in it."""
        status, text = (
            (400, '"input" or "content" must be provided')
            if self.is_embedding
            else (501, "This server does not support embeddings. Start it with `--embeddings`")
        )
        return web.json_response({"error": {"code": status, "message": text}}, status=status)

    async def _adapters(self) -> web.Response:
        return web.json_response(
            [{"id": 0, "path": "/a/tiny-lora.gguf", "scale": 0.0}] if self.kind == "llamacpp" else {},
            status=200,
        )

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response(
                {"error": {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}},
                status=401,
            )
        if self.refuses_stream_options and "stream_options" in body:
            detail = {"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "not permitted"}
            return web.json_response({"detail": [detail]}, status=422)
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "refuse":
            assert request.transport is not None
            request.transport.abort()
            raise ConnectionResetError
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "plain_500":
            return web.Response(status=500, text="Internal Server Error")
        if fault.startswith("says_"):  # as "says_500 the sentence"
            status, sentence = int(fault[5:8]), fault[9:]
            return web.json_response({"error": {"code": status, "message": sentence}}, status=status)
        if fault.startswith("status_"):
            return web.json_response({"error": {"message": f"on purpose: {fault}"}}, status=int(fault[7:]))
        if fault == "invalid_response":
            return web.Response(text="<html>what?</html>")
        if fault == "context" or len(json.dumps(body.get("messages"))) > self.context * 4:
            return self._too_long()
        self.waiting += 1
        async with self._gate:
            self.waiting -= 1
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            try:
                return await self._answer(request, body, fault)
            finally:
                self.running -= 1

    def _too_long(self) -> web.Response:
        text = {
            "llamacpp": {
                "error": {
                    "code": 400,
                    "message": "request (9000 tokens) exceeds the available context size "
                    f"({self.context} tokens)",
                    "type": "exceed_context_size_error",
                    "n_prompt_tokens": 9000,
                    "n_ctx": self.context,
                }
            },
            "sglang": {
                "object": "error",
                "message": "The input (9000 tokens) is longer than the model's context length "
                f"({self.context} tokens).",
                "type": "BadRequestError",
                "code": 400,
            },
        }.get(
            self.kind,
            {
                "error": {
                    "message": f"This model's maximum context length is {self.context} tokens. However, "
                    "your request has 9000 input "
                    "tokens.",
                    "type": "BadRequestError",
                    "code": 400,
                }
            },
        )
        return web.json_response(text, status=400)

    async def _answer(self, request: web.Request, body: dict[str, Any], fault: str) -> web.StreamResponse:
        head = {"id": "c1", "created": 1700000000, "model": body.get("model")}
        if not body.get("stream"):
            await asyncio.sleep(self.token_s * len(REPLY))
            return web.json_response(
                {
                    **head,
                    "object": "chat.completion",
                    "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
                    "choices": [
                        {
                            "index": 0,
                            "message": {"role": "assistant", "content": "".join(REPLY)},
                            "finish_reason": "stop",
                        }
                    ],
                }
            )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if fault == "hang_after_head":
            await asyncio.sleep(3600)
        deltas: list[tuple[dict[str, Any], str | None]] = [({"content": piece}, None) for piece in REPLY]
        for number, (delta, finish) in enumerate([*deltas, ({}, "stop")]):
            if fault.startswith("event_") and number == 1:
                error = {"code": int(fault[6:]), "message": f"on purpose: {fault}", "type": "server_error"}
                await response.write(b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
                await response.write_eof()
                return response
            if fault == "cut" and number == 2:
                assert request.transport is not None
                request.transport.abort()
                raise ConnectionResetError
            await asyncio.sleep(0.05 if fault == "drip" else self.token_s)
            chunk = {
                **head,
                "object": "chat.completion.chunk",
                "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
            }
            if finish and self.has_timings:
                chunk["timings"] = {"prompt_n": 3, "cache_n": 0, "predicted_n": 3}
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
            last = {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage}
            await response.write(b"data: " + json.dumps(last).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response
