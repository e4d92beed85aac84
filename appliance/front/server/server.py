"""The HTTP server: sockets whose connections begin in the fast lane, and aiohttp behind it for everything that is not hot."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from email.utils import formatdate
from typing import Any

from aiohttp import web

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Invalid, NotFound, TimedOut
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.engines.outcome import Finish
from appliance.front.passthrough.handlers import Passthrough
from appliance.front.pipeline.pipeline import RequestPipeline, too_large
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response
from appliance.front.pipeline.route import Route
from appliance.front.server.fast_connection import LINGER_S, FastConnection
from appliance.front.settings import FrontSettings

log = get_logger("front")
TICK_S = 0.5


class HttpServer:
    """One HTTP door: its connections, its ticker, its addresses."""

    def __init__(
        self,
        routes: list[Route],
        pipeline: RequestPipeline,
        *,
        clock: Clock,
        passthrough: Passthrough | None = None,
        dialect: str = "",
    ) -> None:
        """Takes dialect: how errors at unknown addresses are said; "" = by the address, Ollama's below /api."""
        self.pipeline = pipeline
        self._dialect = dialect
        self.passthrough = passthrough
        self.now_s = clock.monotonic_s
        self.clock = clock
        self.hot = {f"POST {route.path} HTTP/1.1".encode(): route for route in routes if route.is_hot}
        self.connections: set[FastConnection] = set()
        self.is_stopping = False
        self.date_line = b""
        self.tick_s = 0.0
        self.loop = asyncio.get_running_loop()
        self._routes = routes
        self._runner = web.AppRunner(
            self._application(),
            handle_signals=False,
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=pipeline.settings.keepalive_timeout_s,
            lingering_time=LINGER_S,
            max_line_size=min(8190, pipeline.settings.max_header_bytes),
            max_field_size=min(8190, pipeline.settings.max_header_bytes),
        )
        self._open = pipeline.metrics.connections
        self._refused = pipeline.metrics.connections_refused

    @property
    def settings(self) -> FrontSettings:
        return self.pipeline.settings

    # ---- connections

    def admit(self, connection: FastConnection) -> bool:
        """Count a new connection in, unless there are too many or the server stops."""
        if self.is_stopping or len(self.connections) >= self.settings.max_connections:
            self._refused.labels("stopping" if self.is_stopping else "too_many").inc()
            return False
        self.connections.add(connection)
        self._open.set(len(self.connections))
        return True

    def forget(self, connection: FastConnection) -> None:
        self.connections.discard(connection)
        self._open.set(len(self.connections))

    def aiohttp_protocol(self) -> Any:
        """Give a fresh aiohttp protocol for a connection that leaves the fast lane."""
        server = self._runner.server
        assert server is not None
        return server()

    async def tick(self) -> None:
        """Do what needs the clock: the Date header, heartbeats, time-outs, the gathered log lines."""
        self.tick_s = self.now_s()
        self.date_line = f"Date: {formatdate(self.clock.now_s(), usegmt=True)}\r\n".encode()
        self.pipeline.metrics.in_flight.set(self.pipeline.in_flight)
        self.pipeline.access_log.flush()
        for connection in list(self.connections):
            connection.tick(self.tick_s)

    # ---- life

    async def start(self) -> None:
        await self._runner.setup()
        await self.tick()

    async def stop(self, grace_s: float, hurry: asyncio.Event) -> None:
        """Take no new request, let running answers end for `grace_s` seconds (or until `hurry`), then cut them."""
        self.is_stopping = True
        for connection in list(self.connections):
            connection.stop()
        deadline = self.now_s() + grace_s
        while self.pipeline.in_flight and self.now_s() < deadline and not hurry.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(hurry.wait(), 0.05)
        if self.pipeline.in_flight:
            log.warning("answers_cut_off", count=self.pipeline.in_flight, grace_s=grace_s)
        for connection in list(self.connections):
            connection.cut()
        await asyncio.sleep(0)  # the cancelled answers get their turn, so that each is closed at the desk
        await self._runner.cleanup()
        if self.passthrough is not None:
            await self.passthrough.close()
        self.pipeline.access_log.flush()

    # ---- aiohttp's part

    def _application(self) -> web.Application:
        app = web.Application(client_max_size=self.pipeline.settings.max_body_bytes)
        for route in self._routes:
            for method in route.methods:
                app.router.add_route(method, route.path, self._adapter(route))
        app.router.add_route("*", "/{rest:.*}", self._unknown)
        return app

    def _adapter(self, route: Route) -> Callable[[web.Request], Any]:
        async def handler(request: web.Request) -> web.StreamResponse:
            return await self._serve(request, route)

        return handler

    async def _serve(self, request: web.Request, route: Route) -> web.StreamResponse:
        """Serve one request of aiohttp's: the same desk, the same handlers."""
        pipeline = self.pipeline
        call = pipeline.open(
            route,
            method=request.method,
            path=request.path,
            headers=_headers(request),
            body=b"",
            peer=_peer(request),
            query=request.query_string,
            params=dict(request.match_info),
        )
        connection = self._lane_of(request)
        if connection is not None:
            connection.busy += 1
        finish, sent, events = Finish.CLIENT_LEFT, 0, 0
        try:
            try:
                pipeline.keys.check(route.access, call.headers, call.peer)  # before a body is read, not after
                call.body = await self._read_body(request)
            except ApplianceError as error:
                answer = pipeline.error_response(error, route.dialect, call.receipt)
                call.receipt.status = answer.status
                answer.headers.append(("x-request-id", call.id))
                response: web.StreamResponse = await self._send_whole(request, answer)
                if not request.content.at_eof():
                    response.force_close()
            else:
                answer = await pipeline.handle(route, call)
                if answer.pieces is None:
                    pipeline.mark_first_byte(call)
                    response = await self._send_whole(request, answer)
                else:
                    response, finish, sent, events = await self._send_stream(request, answer, call)
                    return response
            finish, sent = Finish.DONE, len(answer.body)
            return response
        except ConnectionResetError:
            return web.Response(status=499)  # to nobody; raised, aiohttp would log it as a fault of ours
        finally:
            pipeline.close(call, finish=finish, sent_bytes=sent, events=events)
            if connection is not None:
                connection.busy -= 1
                connection.unmark()

    def _lane_of(self, request: web.Request) -> FastConnection | None:
        transport = request.transport
        protocol = transport.get_protocol() if transport is not None else None
        return protocol if isinstance(protocol, FastConnection) else None

    async def _read_body(self, request: web.Request) -> bytes:
        """Read a body of any framing, within its limits of size and patience."""
        limit = self.settings.max_body_bytes
        if (request.content_length or 0) > limit:
            raise too_large(limit)
        if not request.body_exists:
            return b""
        pieces: list[bytes] = []
        size = 0
        while True:
            try:
                piece = await asyncio.wait_for(request.content.readany(), self.settings.body_timeout_s)
            except TimeoutError:
                raise TimedOut(
                    "The request's body did not arrive in time (BODY_TIMEOUT_S).",
                    code="body_timeout",
                    details={"status": 408},
                ) from None
            except (web.HTTPException, ValueError) as exc:
                raise Invalid(f"The request's body cannot be read: {exc}.") from None
            if not piece:
                return b"".join(pieces)
            size += len(piece)
            if size > limit:
                raise too_large(limit)
            pieces.append(piece)

    async def _send_whole(self, request: web.Request, answer: Response) -> web.Response:
        response = web.Response(status=answer.status, body=answer.body)
        response.headers["Content-Type"] = answer.content_type
        response.headers["Server"] = "inference-appliance"  # aiohttp would tell its version and Python's
        for name, value in answer.headers:
            response.headers[name] = value
        if self.is_stopping:
            response.force_close()
        return response

    async def _send_stream(
        self, request: web.Request, answer: Response, call: Request
    ) -> tuple[web.StreamResponse, Finish, int, int]:
        """Write pieces as they come.

        Gives   (response, finish, bytes, events)
        """
        pieces = answer.pieces
        assert pieces is not None
        response = web.StreamResponse(status=answer.status)
        response.headers["Content-Type"] = answer.content_type
        response.headers["Server"] = "inference-appliance"  # aiohttp would tell its version and Python's
        for name, value in answer.headers:
            response.headers[name] = value
        finish, sent, events = Finish.DONE, 0, 0
        try:
            await response.prepare(request)
            beat = self.settings.heartbeat_s if answer.heartbeat else 0
            async for piece in beating(pieces, answer.heartbeat, beat) if beat else pieces:
                if not sent:
                    self.pipeline.mark_first_byte(call)
                await response.write(piece)
                sent += len(piece)
        except ApplianceError as error:
            call.receipt.error = f"{error.kind.value}: {error.message}"
            finish = Finish.CUT_OFF if sent else Finish.ERROR
            await response.write(answer.on_error(error))
        except (ConnectionResetError, asyncio.CancelledError):
            raise
        except Exception as error:
            internal = self.pipeline.internal_error(error, call)
            call.receipt.error = f"{internal.kind.value}: {internal.message}"
            finish = Finish.CUT_OFF if sent else Finish.ERROR
            await response.write(answer.on_error(internal))
        finally:
            events = pieces.events
            await pieces.aclose()
        await response.write_eof()
        return response, finish, sent, events

    async def _unknown(self, request: web.Request) -> web.StreamResponse:
        """Answer for addresses that are not in the table, a wrong method, and a browser's preflight."""
        path = request.path
        dialect = self._dialect or ("ollama" if path.startswith("/api/") else "openai")
        call = self.pipeline.open(
            None, method=request.method, path=path, headers=_headers(request), body=b"", peer=_peer(request)
        )
        methods = self.methods_at(path)
        if self._passes(request, methods):
            return await self._pass(request, call, dialect)
        if (
            request.method == "OPTIONS"
            and not methods
            and self.passthrough is not None
            and self.passthrough.takes(path)
        ):
            methods = ["DELETE", "GET", "PATCH", "POST", "PUT"]
        if request.method == "OPTIONS" and methods:
            answer = Response(204, headers=self._preflight(request, methods))
        elif methods:
            answer = self.pipeline.error_response(
                Invalid(
                    f"{path} does not take {request.method}; it takes {', '.join(methods)}.",
                    code="method_not_allowed",
                ),
                dialect,
                call.receipt,
            )
            answer.status = 405
            answer.headers.append(("Allow", ", ".join(methods)))
        else:
            answer = self.pipeline.error_response(
                NotFound(f"There is nothing at {path}."), dialect, call.receipt
            )
        call.receipt.status = answer.status
        answer.headers.append(("x-request-id", call.id))
        response = await self._send_whole(request, answer)
        self.pipeline.close(call, finish=Finish.DONE, sent_bytes=len(answer.body))
        return response

    def methods_at(self, path: str) -> list[str]:
        """Give the methods that this door itself answers at `path`, in order; none = it is somebody else's."""
        return sorted({m for route in self._routes if route.fits(path) for m in route.methods})

    def _passes(self, request: web.Request, methods: list[str]) -> bool:
        """Whether a request goes through to a backend.

        1. a browser's question whether it may ask   → is answered here
        2. an address that is not ours               → goes through
        3. a method that we have not, at the API's   → goes through (engines may have it), unless the address is ours alone
        """
        if self.passthrough is None or not self.passthrough.takes(request.path):
            return False
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:  # 1
            return False
        return not methods or (
            request.path.startswith("/v1/")  # 2, 3
            and not any(route.is_ours and route.fits(request.path) for route in self._routes)
        )

    async def _pass(self, request: web.Request, call: Request, dialect: str) -> web.StreamResponse:
        """Serve one request by passage; closed at the desk exactly once."""
        assert self.passthrough is not None
        pipeline, connection = self.pipeline, self._lane_of(request)
        call.receipt.route = call.route = "passage"
        if connection is not None:
            connection.busy += 1
        finish, sent = Finish.CLIENT_LEFT, 0
        try:
            try:
                response, finish, sent = await self.passthrough.serve(request, call)
            except ApplianceError as error:
                answer = pipeline.error_response(error, dialect, call.receipt)
            except ConnectionResetError:
                return web.Response(status=499)  # to nobody; raised, aiohttp would log it as a fault of ours
            except Exception as error:
                answer = pipeline.error_response(pipeline.internal_error(error, call), dialect, call.receipt)
            else:
                if not request.content.at_eof():
                    response.force_close()
                return response
            call.receipt.status = answer.status
            answer.headers += pipeline.response_headers(call)
            refusal = await self._send_whole(request, answer)
            if not request.content.at_eof():
                refusal.force_close()
            finish, sent = Finish.DONE, len(answer.body)
            return refusal
        finally:
            pipeline.close(call, finish=finish, sent_bytes=sent)
            if connection is not None:
                connection.busy -= 1
                connection.unmark()

    def _preflight(self, request: web.Request, methods: list[str]) -> list[tuple[str, str]]:
        headers = self.pipeline.cors_headers(request.headers.get("Origin", ""))
        if any(name == "Access-Control-Allow-Origin" for name, _ in headers):
            asked = request.headers.get("Access-Control-Request-Headers", "")
            allowed = (
                asked if asked and asked.isprintable() and asked.isascii() else "authorization, content-type"
            )
            headers += [
                ("Access-Control-Allow-Methods", ", ".join(methods)),
                ("Access-Control-Allow-Headers", allowed),
                ("Access-Control-Max-Age", "600"),
            ]
        return headers


async def beating(pieces: AsyncIterator[bytes], heartbeat: bytes, every_s: float) -> AsyncIterator[bytes]:
    """Give the pieces, and `heartbeat` whenever none came for `every_s` seconds."""
    waiting: asyncio.Future[bytes] | None = None
    try:
        while True:
            waiting = asyncio.ensure_future(anext(pieces))  # noqa: TID251 - awaited or cancelled here
            while not (await asyncio.wait({waiting}, timeout=every_s))[0]:
                yield heartbeat
            try:
                piece = waiting.result()
            except StopAsyncIteration:
                return
            yield piece
    finally:
        if waiting is not None and not waiting.done():
            waiting.cancel()
            await asyncio.wait({waiting})


def _headers(request: web.Request) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return headers


def _peer(request: web.Request) -> str:
    return request.remote or "unix"


@asynccontextmanager
async def listening(
    server: HttpServer, addresses: list[tuple[str, int]]
) -> AsyncIterator[list[tuple[str, int]]]:
    """Listen on `addresses` while the context is open; connections that were made go on after it.

    Takes   addresses: (host, port), port 0 = any free one
    Gives   the addresses that are really listened on
    Raises  OSError with the address in its text when one cannot be had
    """
    listeners: list[asyncio.Server] = []
    bound: list[tuple[str, int]] = []
    try:
        for host, port in addresses:
            try:
                listener = await server.loop.create_server(
                    lambda: FastConnection(server), host, port, backlog=4096, reuse_address=True
                )
            except OSError as exc:
                raise OSError(exc.errno, f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc
            listeners.append(listener)
            bound += [sock.getsockname()[:2] for sock in listener.sockets]
        yield bound
    finally:
        for listener in listeners:
            listener.close()


@asynccontextmanager
async def serving_http(
    server: HttpServer,
    addresses: list[tuple[str, int]],
    *,
    hurry: asyncio.Event,
    tasks: Tasks,
    grace_s: Callable[[], float],
) -> AsyncIterator[list[tuple[str, int]]]:
    """Serve on `addresses` while the context is open; at its end running answers get `grace_s()` seconds, or until `hurry`.

    Gives   the addresses that are really listened on
    Raises  OSError when one cannot be had
    """
    await server.start()
    ticker = None
    try:
        async with listening(server, addresses) as bound:
            ticker = tasks.every(TICK_S, server.tick, name="front-ticker")
            yield bound
    finally:
        await server.stop(grace_s(), hurry)
        if ticker is not None:
            ticker.cancel()
