"""A server for the proxy to call: it shows what it got, redirects, streams, is slow, speaks Open Inference v2."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ssl import SSLContext
from typing import Any

from aiohttp import web


class ProxyTarget:
    """The server, on loopback."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.left = asyncio.Event()  # a caller has left a slow answer
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.got.append(
            {
                "method": request.method,
                "path": request.raw_path,
                "headers": {name.lower(): value for name, value in request.headers.items()},
                "body": body.decode("latin-1"),
            }
        )
        kind = request.path.strip("/").partition("/")[0]
        return await getattr(self, f"_{kind}", self._echo)(request)

    async def _echo(self, request: web.Request) -> web.StreamResponse:
        headers = {"Set-Cookie": "a=1", "X-Own": "yes", "Connection": "X-Hop", "X-Hop": "1"}
        return web.json_response(
            self.got[-1], headers=headers, status=int(request.query.get("status", "200"))
        )

    async def _text(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text="plain, no JSON")

    async def _bytes(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=bytes(range(256)))

    async def _large(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(int(request.query["mib"])):
            await response.write(b"x" * 1_048_576)
        return response

    async def _move(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=int(request.query["status"]), headers={"Location": request.query["to"]})

    async def _loop(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "/loop"})

    async def _slow(self, request: web.Request) -> web.StreamResponse:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.left.set()
            raise
        return web.Response()

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Set-Cookie": "a=1"})
        await response.prepare(request)
        for number in range(3):
            await response.write(b"data: %d\n\n" % number)
        if "slow" in request.query:
            await self._slow(request)
        return response

    async def _v2(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        name = request.path.split("/")[3]
        texts = [f"{text}!" for text in asked["inputs"][0]["data"]]
        output = {"name": "text_output", "datatype": "BYTES", "shape": [len(texts)], "data": texts}
        return web.json_response(
            {"model_name": name, "outputs": [output], "parameters": asked.get("parameters")}
        )


@asynccontextmanager
async def serving_target(ssl_context: SSLContext | None = None) -> AsyncIterator[ProxyTarget]:
    """Serve on a free port of 127.0.0.1."""
    target = ProxyTarget()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{tail:.*}", target.answer)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl_context).start()
    target.url = f"{'https' if ssl_context else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield target
    finally:
        await runner.cleanup()
