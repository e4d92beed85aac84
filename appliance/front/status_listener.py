"""The status listener: a port of its own that tells how far the start has come, while everything else is still on its way.

    /health   /status   /status/{alias}   /status/stream
Readings only and no keys, so it listens on this machine alone unless told otherwise. Source: system D's README, `--port 8001`.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import NoSuchModel
from appliance.base.sse import SSE_CONTENT_TYPE
from appliance.front.manager.feeds import SILENCE_S, StatusFeeds
from appliance.front.openai.handlers import SSE_HEADERS
from appliance.front.pipeline.errors import error_body
from appliance.models.status.views import ModelManagerApi

CLOSE_S = 1.0  # at the end followers get so long to take the last event


class StatusListener:
    """The handlers. `board` gives the board, None while the table is not read yet."""

    def __init__(
        self, manager: Callable[[], ModelManagerApi | None], *, clock: Clock, silence_s: float = SILENCE_S
    ) -> None:
        self.feeds = StatusFeeds(manager, clock=clock, silence_s=silence_s)

    def application(self) -> web.Application:
        app = web.Application(client_max_size=1024)
        app.router.add_get("/health", self.health)
        app.router.add_get("/status", self.status)
        app.router.add_get("/status/stream", self.stream)
        app.router.add_get("/status/{alias:.+}", self.one)
        app.router.add_route("*", "/{rest:.*}", self.unknown)
        return app

    async def health(self, request: web.Request) -> web.StreamResponse:
        """GET /health: `{status: ok, server: {status, …}}`, 200 as long as this listener answers."""
        return _json(200, {"status": "ok", "server": self.feeds.now()["server"]})

    async def status(self, request: web.Request) -> web.StreamResponse:
        """GET /status: what /v1/models/status gives."""
        return _json(200, self.feeds.now())

    async def one(self, request: web.Request) -> web.StreamResponse:
        """GET /status/{alias}: one model object, 404 for an alias that is not in the table (yet)."""
        status = self.feeds.now()
        alias = request.match_info["alias"]
        if alias in status["models"]:
            return _json(200, status["models"][alias])
        why = "; the table is not read yet" if status["server"]["status"] == "initializing" else ""
        error = NoSuchModel(f"There is no model {alias[:200]!r} in the table{why}.", param="model")
        return _answer(404, error_body(error, "openai"))

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """GET /status/stream: see Feeds.status."""
        response = web.StreamResponse(
            headers={"Content-Type": SSE_CONTENT_TYPE, "Server": "inference-appliance", **dict(SSE_HEADERS)}
        )
        pieces = self.feeds.status()
        try:
            await response.prepare(request)
            async for piece in pieces:
                await response.write(piece)
        except ConnectionResetError:
            return response  # the follower has left
        finally:
            await pieces.aclose()
        await response.write_eof()
        return response

    async def unknown(self, request: web.Request) -> web.StreamResponse:
        known = "This port answers GET at /health, /status, /status/ALIAS and /status/stream."
        return _json(
            404,
            {
                "error": {
                    "message": known,
                    "type": "invalid_request_error",
                    "param": None,
                    "code": "not_found",
                }
            },
        )


@asynccontextmanager
async def serving_status(
    manager: Callable[[], ModelManagerApi | None],
    *,
    clock: Clock,
    host: str,
    port: int,
    silence_s: float = SILENCE_S,
) -> AsyncIterator[tuple[str, int]]:
    """Answer on host and port while the context is open; at its end feeds say that the server is shutting down.

    Takes   board: gives the board, None until there is one; port: 0 = any free one
    Gives   the address that is really listened on
    Raises  OSError with the address in its text when it cannot be had
    """
    listener = StatusListener(manager, clock=clock, silence_s=silence_s)
    runner = web.AppRunner(
        listener.application(),
        handle_signals=False,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=CLOSE_S,
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as exc:
            raise OSError(
                exc.errno, f"cannot listen on {host}:{port} (STATUS_PORT): {exc.strerror or exc}"
            ) from exc
        bound = runner.addresses[0]
        yield str(bound[0]), int(bound[1])
    finally:
        listener.feeds.close()
        await runner.cleanup()


def _json(status: int, value: Any) -> web.Response:
    return _answer(status, jsons.dumps(value))


def _answer(status: int, body: bytes) -> web.Response:
    return web.Response(
        status=status,
        body=body,
        headers={"Content-Type": "application/json", "Server": "inference-appliance"},
    )
