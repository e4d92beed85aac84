"""The status listener: a port of its own that shows the progress of the start, before anything else responds.

    /health   /status   /status/{alias}   /status/stream

It is read-only and checks no keys, so it listens on this machine only unless configured otherwise. Pages of
other sites and foreign host names are refused as on the main port without keys (pipeline/origins.py). For
compatibility, see docs/compatibility.md.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import Forbidden, Invalid, NoSuchModel
from appliance.base.listeners import describe_listen_error
from appliance.base.sse import SSE_CONTENT_TYPE
from appliance.front.manager.feeds import SILENCE_S, StatusFeeds
from appliance.front.pipeline.errors import error_body
from appliance.front.pipeline.heads import AGENT
from appliance.front.pipeline.origins import Origins
from appliance.front.pipeline.sse import SSE_HEADERS
from appliance.models.status.views import ModelManagerApi

ADDRESSES = ("/health", "/status")
ALLOWED = "GET, HEAD, OPTIONS"
CLOSE_S = 1.0  # time for clients to read the last event at shutdown


class StatusListener:
    """The handlers of the status listener.

    Args:
        manager: Returns the manager; None while the table of models is not read yet.
        clock: The time of events.
        origins: Decides which pages and host names may ask.
        silence_s: Seconds without an event after which a feed sends a heartbeat.
        feeds: Take the place of those of the manager; None = those of the manager.
    """

    def __init__(
        self,
        manager: Callable[[], ModelManagerApi | None],
        *,
        clock: Clock,
        origins: Origins,
        silence_s: float = SILENCE_S,
        feeds: StatusFeeds | None = None,
    ) -> None:
        self._origins = origins
        self.feeds = feeds or StatusFeeds(manager, clock=clock, silence_s=silence_s)

    def application(self) -> web.Application:
        """Return the application with its addresses."""
        app = web.Application(client_max_size=1024, middlewares=[self._check_origin])
        app.router.add_get("/health", self.health)
        app.router.add_get("/status", self.status)
        app.router.add_get("/status/stream", self.stream)
        app.router.add_get("/status/{alias:.+}", self.one)
        app.router.add_route("*", "/{rest:.*}", self.unknown)
        return app

    @web.middleware
    async def _check_origin(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            self._origins.check(headers, request.remote or "unix")
        except Forbidden as error:
            return _respond(403, error_body(error, "openai"))
        return await handler(request)

    async def health(self, request: web.Request) -> web.StreamResponse:
        """Show that this listener responds: `{status: ok, server: {status, …}}`."""
        return _json(200, {"status": "ok", "server": self.feeds.now()["server"]})

    async def status(self, request: web.Request) -> web.StreamResponse:
        """Show the status of the server and of every model, as /v1/models/status does."""
        return _json(200, self.feeds.now())

    async def one(self, request: web.Request) -> web.StreamResponse:
        """Show the status of one model; 404 for an alias that is not in the table (yet)."""
        status = self.feeds.now()
        alias = request.match_info["alias"]
        if alias in status["models"]:
            return _json(200, status["models"][alias])
        reason = "; the table is not read yet" if status["server"]["status"] == "initializing" else ""
        error = NoSuchModel(f"There is no model {alias[:200]!r} in the table{reason}.", param="model")
        return _respond(404, error_body(error, "openai"))

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Follow the status as server-sent events (StatusFeeds.status)."""
        response = web.StreamResponse(
            headers={"Content-Type": SSE_CONTENT_TYPE, "Server": AGENT, **dict(SSE_HEADERS)}
        )
        pieces = self.feeds.status()
        try:
            await response.prepare(request)
            async for piece in pieces:
                if request.method == "HEAD":
                    break
                await response.write(piece)
        except ConnectionResetError:
            return response  # the client has left
        finally:
            await pieces.aclose()
        await response.write_eof()
        return response

    async def unknown(self, request: web.Request) -> web.StreamResponse:
        """Answer OPTIONS, and refuse another method with 405, another address with 404."""
        if request.path in ADDRESSES or request.path.startswith(f"{ADDRESSES[1]}/"):
            if request.method == "OPTIONS":
                return web.Response(status=204, headers={"Allow": ALLOWED, "Server": AGENT})
            text = f"This address does not take {request.method[:20]}; it takes {ALLOWED}."
            error = Invalid(text, code="method_not_allowed")
            response = _respond(405, error_body(error, "openai"))
            response.headers["Allow"] = ALLOWED
            return response
        known = "This port has GET /health, /status, /status/ALIAS and /status/stream."
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
    origins: Origins,
    silence_s: float = SILENCE_S,
    feeds: StatusFeeds | None = None,
) -> AsyncIterator[tuple[str, int]]:
    """Serve on host and port while the context is open.

    At its end feeds say that the server is shutting down.

    Args:
        manager: Returns the manager; None until there is one.
        clock: The time of events.
        host: Where to listen.
        port: 0 = any free one.
        origins: Decides which pages and host names may ask.
        silence_s: Seconds without an event after which a feed sends a heartbeat.
        feeds: Take the place of those of the manager; None = those of the manager.

    Yields:
        The address that is listened on.

    Raises:
        OSError: The address cannot be used; it is in the text.
    """
    listener = StatusListener(manager, clock=clock, origins=origins, silence_s=silence_s, feeds=feeds)
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
            names = ("STATUS_HOST", "STATUS_PORT") if feeds is None else ("--host", "--port")
            text = describe_listen_error(exc, host, port, settings=names)
            raise OSError(exc.errno, text) from exc
        bound = runner.addresses[0]
        yield str(bound[0]), int(bound[1])
    finally:
        listener.feeds.close()
        await runner.cleanup()


def _json(status: int, value: Any) -> web.Response:
    return _respond(status, jsons.dumps(value))


def _respond(status: int, body: bytes) -> web.Response:
    return web.Response(
        status=status,
        body=body,
        headers={"Content-Type": "application/json", "Server": AGENT},
    )
