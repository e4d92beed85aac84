"""A server before the appliance that passes everything on and keeps what clients send.

async with RecordingProxy(running.base_url) as proxy:
    …                                           # proxy.base_url, proxy.calls
"""

import json
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

HOP_BY_HOP = {"host", "connection", "keep-alive", "content-length", "transfer-encoding", "accept-encoding"}


@dataclass
class Call:
    """One request and what it got.

    Attributes:
        body: The JSON body; None = there was none.
        ignored: The reply's header `x-appliance-ignored`.
        reply: The start of the reply's body.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    status: int = 0
    ignored: str = ""
    reply: str = ""


class RecordingProxy:
    """Pass requests on to an appliance; `calls` has them in the order in which they came."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.calls: list[Call] = []
        self.base_url = ""

    async def __aenter__(self) -> "RecordingProxy":
        self._session = aiohttp.ClientSession(skip_auto_headers=["User-Agent", "Accept", "Content-Type"])
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{rest:.*}", self._pass_on)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        call = Call(request.method, request.path_qs, headers, json.loads(raw) if raw else None)
        self.calls.append(call)
        passed = {name: value for name, value in headers.items() if name not in HOP_BY_HOP}
        async with self._session.request(
            request.method, self._target + request.path_qs, data=raw or None, headers=passed
        ) as reply:
            call.status, call.ignored = reply.status, reply.headers.get("x-appliance-ignored", "")
            answer = web.StreamResponse(status=reply.status)
            for name, value in reply.headers.items():
                if name.lower() not in HOP_BY_HOP | {"content-encoding", "date", "server"}:
                    answer.headers.add(name, value)
            await answer.prepare(request)
            async for piece in reply.content.iter_any():
                call.reply += piece.decode(errors="replace")[: 2000 - len(call.reply)]
                await answer.write(piece)
            await answer.write_eof()
            return answer
