"""An engine with a mirror at every address that it does not know: it answers with what it was sent."""

import asyncio
import hashlib
from typing import Any

from aiohttp import WSMsgType, web

from tests.fakes.engine_server import EngineServer

QUICK = {"METRICS_CACHE_TTL_SECONDS": "0.2", "SLOW_START_S": "0", "BACKEND_STARTUP_GRACE_S": "0"}


class Mirror(EngineServer):
    """Answers with what it was sent; under /act/… it does what the address says."""

    def __init__(self, kind: str = "llamacpp", **how: Any) -> None:
        super().__init__(kind, **how)
        self.seen: list[str] = []
        self.first = asyncio.Event()  # the first piece of an upload came
        self.go = asyncio.Event()  # the answer may go on
        self.gone = asyncio.Event()  # the caller left
        self.status = 200

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        own = {"/health", "/healthz", "/v1/models", "/lora-adapters", "/get_model_info"}
        if request.path in own or (request.method, request.path) in {
            ("GET", "/props"),
            ("GET", "/metrics"),
            ("POST", "/v1/chat/completions"),
            ("POST", "/v1/embeddings"),
        }:
            return await super()._handle(request)
        self.seen.append(f"{request.method} {request.raw_path}")
        action = request.path.removeprefix("/act/")
        try:
            if request.path.startswith("/act/"):
                return await getattr(self, f"_{action}")(request)
            if self.status != 200:
                return web.json_response(
                    {"error": f"from {self.port}"}, status=self.status, headers={"X-Which": str(self.port)}
                )
            body = await request.read()
            return web.json_response(
                {
                    "method": request.method,
                    "target": request.raw_path,
                    "headers": [[k, v] for k, v in request.headers.items()],
                    "body": hashlib.sha256(body).hexdigest(),
                    "size": len(body),
                    "port": self.port,
                },
                headers=[
                    ("X-Two", "1"),
                    ("X-Two", "2"),
                    ("Server", "secret/1.2"),
                    ("Access-Control-Allow-Origin", "https://evil.example"),
                ],
            )
        except asyncio.CancelledError:
            self.gone.set()
            raise
        except ConnectionResetError:
            self.gone.set()
            return web.Response()

    async def _upload(self, request: web.Request) -> web.Response:
        size = 0
        async for piece in request.content.iter_any():
            size += len(piece)
            self.first.set()
        return web.json_response(
            {"size": size, "framing": request.headers.get("Transfer-Encoding", "length")}
        )

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: one\n\n")
        await self.go.wait()
        await response.write(b"data: two\n\n")
        return response

    async def _cut(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": request.query.get("type", "application/octet-stream")}
        )
        await response.prepare(request)
        await response.write(b"data: one\n\n")
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
        return response

    async def _large(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        self.sent = 0
        for _ in range(64):
            await response.write(bytes(1_048_576))
            self.sent += 1
        return response

    async def _drip(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(20_000):
            await response.write(b"x")
            await asyncio.sleep(0)
        return response

    async def _gzip(self, request: web.Request) -> web.Response:
        return web.Response(
            body=b"\x1f\x8b not really", headers={"Content-Encoding": "gzip", "Content-Type": "text/plain"}
        )

    async def _range(self, request: web.Request) -> web.Response:
        return web.Response(status=206, body=b"cd", headers={"Content-Range": "bytes 2-3/6", "ETag": '"x"'})

    async def _redirect(self, request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": "/elsewhere?x=1"})

    async def _empty(self, request: web.Request) -> web.Response:
        return web.Response(status=204)

    async def _ws(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(protocols=("realtime", "other"))
        await ws.prepare(request)
        self.seen.append(f"key {request.headers.get('Authorization')}")
        async for message in ws:
            if message.data == "close":
                await ws.close(code=4001, message=b"asked for")
            elif message.type is WSMsgType.TEXT:
                await ws.send_str(f"echo {message.data}")
            else:
                await ws.send_bytes(message.data[::-1])
        self.gone.set()
        return ws
