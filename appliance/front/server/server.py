"""The HTTP server: every connection begins as a fast connection; aiohttp serves what is not hot."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from aiohttp import HttpVersion10, web
from aiohttp.http_exceptions import LineTooLong

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Invalid, NotFound
from appliance.base.listeners import describe_listen_error
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.engines.outcome import Finish
from appliance.engines.stream import GeneratedStream
from appliance.front.passthrough.passthrough import Passthrough
from appliance.front.passthrough.rules import ROUTE as PASSTHROUGH_ROUTE
from appliance.front.passthrough.rules import client_methods
from appliance.front.passthrough.tunnel import Tunnel
from appliance.front.passthrough.upload import Upload
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.access_tickets import AccessTickets, split_ticket
from appliance.front.pipeline.heads import AGENT, parse_upgrade
from appliance.front.pipeline.pipeline import RequestPipeline, close_stream, stopped, too_large
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response
from appliance.front.pipeline.route import Route
from appliance.front.pipeline.sockets import GOING_AWAY, INTERNAL, NORMAL, AcceptSocket
from appliance.front.server.addresses import find_meant_route, has_joined_bases, strip_slashes, suggest_path
from appliance.front.server.cold_protocol import ColdProtocol, is_unreadable
from appliance.front.server.connections import LINGER_S, Connections, InnerProtocol
from appliance.front.server.fast_connection import FastConnection
from appliance.front.server.web_socket import WebSocket, asks_for_socket
from appliance.front.settings import FrontSettings

log = get_logger("front")
TICK_S = 0.5
LAST_WORDS_S = 1.0  # for the error event of a stream that the end of the grace period cuts off
METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")  # of handlers
PASSTHROUGH_METHODS = sorted([*METHODS, "OPTIONS"])
PREFLIGHT_AGE_S = 600


class HttpServer:
    """One HTTP port: its connections, its ticker, its addresses."""

    def __init__(
        self,
        routes: list[Route],
        pipeline: RequestPipeline,
        *,
        clock: Clock,
        passthrough: Passthrough | None = None,
        tickets: AccessTickets | None = None,
        dialect: str = "",
    ) -> None:
        """Build the server. It listens while the context `listening` is open.

        Args:
            passthrough: Serves the addresses that are not in the table; None = 404.
            tickets: Open event streams to browsers; None = nothing takes a ticket.
            dialect: How errors at unknown addresses are rendered; "" = by the address: Ollama's below
                /api, Anthropic's below /v1/messages.
        """
        self.pipeline = pipeline
        self.connections = Connections(pipeline, routes, clock=clock)
        self._routes = routes
        self._passthrough = passthrough
        self._tickets = tickets
        self._dialect = dialect
        self._handlers: set[asyncio.Task[Any]] = set()  # of requests that aiohttp has read
        self._is_cut = False  # the grace period is over
        self._runner = web.AppRunner(self._application(), handle_signals=False, handler_cancellation=True)
        self._protocol_options: dict[str, Any] = {
            "access_log": None,
            "keepalive_timeout": pipeline.settings.keepalive_timeout_s,
            "lingering_time": LINGER_S,
            # Backends get a compressed body as it is, with its Content-Encoding.
            "auto_decompress": False,
            "max_line_size": pipeline.settings.max_header_bytes,
            "max_field_size": pipeline.settings.max_header_bytes,
        }

    @property
    def routes(self) -> list[Route]:
        """All addresses, in the order in which they are tried."""
        return self._routes

    @property
    def settings(self) -> FrontSettings:
        """The settings in force."""
        return self.pipeline.settings

    # ---- lifecycle

    async def start(self) -> None:
        """Prepare to take connections."""
        await self._runner.setup()
        await self.tick()

    async def tick(self) -> None:
        """Do what is due by the clock: Date header, heartbeats, timeouts, buffered log lines."""
        self.pipeline.metrics.in_flight.set(self.pipeline.answering)
        self.pipeline.access_log.flush()
        self.connections.tick()

    async def stop(self, grace_s: float, hurry: asyncio.Event) -> None:
        """Take no new requests; cut off running ones after `grace_s` seconds, or once `hurry` is set."""
        connections, pipeline = self.connections, self.pipeline
        connections.stop()
        await asyncio.sleep(0)  # requests whose task was made just now are counted as in flight
        deadline_s = connections.now_s() + grace_s
        while pipeline.in_flight and connections.now_s() < deadline_s and not hurry.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(hurry.wait(), 0.05)
        if pipeline.in_flight:
            log.warning("requests_cut_off", count=pipeline.in_flight, grace_s=grace_s)
        await self._cut_handlers()
        connections.cut()
        await asyncio.sleep(0)  # the cancelled requests are settled
        await self._runner.cleanup()
        if self._passthrough is not None:
            await self._passthrough.close()
        pipeline.access_log.flush()

    async def _cut_handlers(self) -> None:
        """End the handlers that run; each gets a moment to tell its client."""
        self._is_cut = True
        running = [task for task in self._handlers if not task.done()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=LAST_WORDS_S)

    # ---- connections

    def connect(self) -> FastConnection:
        """Make the protocol of a new connection."""
        return FastConnection(self.connections, self._take_over)

    def _take_over(self, connection: FastConnection, buffer: bytes) -> tuple[InnerProtocol, bytes]:
        """Choose the protocol that serves a connection from the request on that begins in `buffer`.

        1. it asks to switch protocols at a backend's address   → a tunnel; it gets the bytes after the head
        2. anything else                                        → aiohttp; it gets all bytes
        """
        passthrough = self._passthrough
        if passthrough is not None:  # 1
            end = buffer.find(b"\r\n\r\n") + 4
            upgrade = parse_upgrade(buffer[:end])
            if (
                upgrade is not None
                and passthrough.accepts(upgrade.path)
                and not self.methods_at(upgrade.path)
            ):
                return Tunnel(connection, self.pipeline, passthrough, upgrade), buffer[end:]
        server = self._runner.server  # 2
        assert server is not None
        cold = ColdProtocol(
            server, render_error=self._render_error, loop=self.connections.loop, **self._protocol_options
        )
        return cold, buffer

    # ---- requests that aiohttp reads

    def _application(self) -> web.Application:
        app = web.Application(client_max_size=self.pipeline.settings.max_body_bytes)
        for route in self._routes:
            for method in filter(route.serves, METHODS):
                app.router.add_route(method, route.path, self._handler_of(route), expect_handler=_expect)
        app.router.add_route("*", "/{rest:.*}", self._handler_of(None), expect_handler=_expect)
        return app

    def _handler_of(self, route: Route | None) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handler(web_request: web.Request) -> web.StreamResponse:
            task = asyncio.current_task()
            assert task is not None
            self._handlers.add(task)
            try:
                return await self._handle(web_request, route)
            finally:
                self._handlers.discard(task)

        return handler

    async def _handle(self, web_request: web.Request, route: Route | None) -> web.StreamResponse:
        """Serve one request that aiohttp has read.

        1. an address of the table, or one with extra slashes     → its handler
        2. an address of a backend                                → passthrough
        3. anything else: unknown, a wrong method, a preflight    → answered here
        """
        parts = dict(web_request.match_info) if route else {}
        if route is None and (meant := find_meant_route(self._routes, web_request.method, web_request.path)):
            route, parts = meant
        is_passed = route is None and self._is_passed_on(web_request)
        request = self.pipeline.request(
            route.path if route else PASSTHROUGH_ROUTE if is_passed else "other",
            method=web_request.method,
            path=web_request.path,
            headers=_headers(web_request),
            body=b"",
            peer=web_request.remote or "unix",
            query=web_request.query_string if route else "",
            params=parts,
        )
        is_view = route is not None and route.is_open_while_draining
        with (
            _busy(web_request),
            request,
            _counted_view(self.pipeline, is_view=is_view),
            _unsent(web_request, request),
        ):
            try:
                error = _head_error(web_request, self.settings.max_header_bytes)
                if error is not None:
                    dialect = route.dialect if route is not None else self._dialect_at(request.path)
                    return await self._refuse(web_request, request, self._bare_error(error, dialect, request))
                if route is not None and route.socket is not None and asks_for_socket(web_request):
                    return await self._serve_socket(web_request, route, route.socket, request)
                if route is not None:  # 1
                    return await self._serve(web_request, route, request)
                if is_passed:  # 2
                    return await self._pass_on(web_request, request)
                response = self._answer_unknown(web_request, request)  # 3
                return await self._send_whole(web_request, response, request)
            except ConnectionResetError:
                # It is never sent; raised, the exception would be logged by aiohttp as a fault.
                return web.Response(status=499)
            except Exception as error:
                # aiohttp answers 500 if nothing was sent, and closes the connection.
                self.pipeline.fail_stream(error, request)
                request.receipt.status = request.receipt.status or 500
                raise

    async def _serve(self, web_request: web.Request, route: Route, request: Request) -> web.StreamResponse:
        """Serve a request at an address of the table. Access is checked before its body is read."""
        pipeline = self.pipeline
        try:
            if route.takes_ticket and self._tickets is not None:
                ticket, rest = split_ticket(f"?{request.query}")
                request.query = rest[1:]
                if ticket:
                    self._tickets.admit(request, ticket, web_request.raw_path.partition("?")[0])
            await pipeline.look_up(route.access, request.headers, request.peer, scope=route.scope)
            request.body = await self._read_body(web_request)
        except ApplianceError as error:
            return await self._refuse(web_request, request, self._bare_error(error, route.dialect, request))
        try:
            response = await pipeline.respond(route, request)
        except asyncio.CancelledError:
            if not self._is_cut:
                raise
            return await self._refuse(
                web_request, request, self._bare_error(stopped(), route.dialect, request)
            )
        await pipeline.add_headers(response, request)
        if response.pieces is not None and request.method == "HEAD":
            return await self._send_head(web_request, response, request)
        if response.pieces is not None:
            return await self._send_stream(web_request, response, request)
        pipeline.mark_first_byte(request)
        return await self._send_whole(web_request, response, request)

    async def _serve_socket(
        self, web_request: web.Request, route: Route, accept: AcceptSocket, request: Request
    ) -> web.StreamResponse:
        """Serve a connection of messages; it is one request, which ends with it."""
        pipeline = self.pipeline
        try:
            await pipeline.look_up(route.access, request.headers, request.peer, scope=route.scope)
            accepted = await accept(request)
        except ApplianceError as error:
            return await self._refuse(web_request, request, self._bare_error(error, route.dialect, request))
        socket = WebSocket(web_request, accepted)
        try:
            opened = await socket.open([("x-request-id", request.id)])
        except web.HTTPException:
            text = (
                "The WebSocket handshake cannot be read: version 13 with a Sec-WebSocket-Key is served here."
            )
            refused = self._bare_error(Invalid(text, code="invalid_handshake"), route.dialect, request)
            return await self._refuse(web_request, request, refused)
        request.receipt.status = 101
        pipeline.mark_first_byte(request)
        try:
            await accepted.serve(socket)
        except asyncio.CancelledError:
            await socket.close(GOING_AWAY, "The appliance stops.")
            if not self._is_cut:
                raise
        except ConnectionError:
            pass  # the client has left
        except Exception as error:
            pipeline.fail_stream(error, request)
            await socket.close(INTERNAL, "Something failed inside the appliance.")
            return opened
        await socket.close(NORMAL, "")
        request.finish = Finish.DONE
        return opened

    async def _read_body(self, web_request: web.Request) -> bytes:
        """Read a body of any framing.

        Raises:
            TooLarge: It is larger than MAX_BODY_BYTES.
            TimedOut: The client paused for longer than BODY_TIMEOUT_S.
            Invalid: Its framing cannot be read.
        """
        limit_bytes = self.settings.max_body_bytes
        if (web_request.content_length or 0) > limit_bytes:
            raise too_large(limit_bytes)
        if not web_request.body_exists:
            return b""
        upload = Upload(web_request, limit_bytes=limit_bytes, patience_s=self.settings.body_timeout_s)
        return await upload.read()

    async def _pass_on(self, web_request: web.Request, request: Request) -> web.StreamResponse:
        """Serve a request by passthrough; a failure before the response begins is rendered in the dialect."""
        assert self._passthrough is not None
        pipeline = self.pipeline
        try:
            passed = await self._passthrough.serve(web_request, request)
        except ConnectionResetError:
            raise
        except Exception as error:
            failure = pipeline.to_appliance_error(error, request)
            response = pipeline.error_response(failure, self._dialect_at(request.path), request.receipt)
            request.receipt.status = response.status
            response.headers += pipeline.response_headers(request)
            return await self._refuse(web_request, request, response)
        if not web_request.content.at_eof():
            passed.force_close()
        return passed

    # ---- sending

    async def _send_whole(
        self, web_request: web.Request, response: Response, request: Request, *, is_last: bool = False
    ) -> web.Response:
        """Send a whole response, and record in the request that it is done.

        It is written here, not by aiohttp after the handler, so that the request is in flight until then.

        Args:
            web_request: The request that aiohttp has read.
            response: It has no pieces.
            request: The same request in the pipeline.
            is_last: Whether the connection is closed after it.
        """
        web_response = web.Response(status=response.status, body=response.body)
        _set_headers(web_response, response)
        if is_last or self.connections.is_stopping:
            web_response.force_close()
        await web_response.prepare(web_request)
        request.sent_bytes = len(response.body) if request.method != "HEAD" else 0
        await web_response.write_eof()
        request.finish = Finish.DONE
        return web_response

    async def _refuse(self, web_request: web.Request, request: Request, response: Response) -> web.Response:
        """Send an error; close the connection after it if the request's body was not read."""
        is_last = not web_request.content.at_eof()
        return await self._send_whole(web_request, response, request, is_last=is_last)

    async def _send_head(
        self, web_request: web.Request, response: Response, request: Request
    ) -> web.StreamResponse:
        """Send the head of a stream, and none of its pieces."""
        assert response.pieces is not None
        await close_stream(response.pieces, request)
        web_response = web.StreamResponse(status=response.status)
        _set_headers(web_response, response)
        await web_response.prepare(web_request)
        await web_response.write_eof()
        request.finish = Finish.DONE
        return web_response

    async def _send_stream(
        self, web_request: web.Request, response: Response, request: Request
    ) -> web.StreamResponse:
        """Write pieces while they arrive; record in the request how it ended.

        1. the stream ends    → done
        2. the client leaves  → client_left
        3. a failure          → the dialect's error as the last piece; cut_off, or error as the first;
                                the connection is cut where no error can be said in this body
        4. the server stops   → the same
        """
        pieces = response.pieces
        assert pieces is not None
        web_response = web.StreamResponse(status=response.status)
        beat_s = self.settings.heartbeat_s if response.heartbeat else 0
        source = GeneratedStream(beating(pieces, response.heartbeat, beat_s), pieces) if beat_s else pieces
        is_whole = False
        try:
            _set_headers(web_response, response)
            await web_response.prepare(web_request)
            async for piece in source:
                if not request.sent_bytes:
                    self.pipeline.mark_first_byte(request)
                await web_response.write(piece)
                request.sent_bytes += len(piece)
            is_whole = True
        except ConnectionResetError:  # 2
            raise
        except Exception as error:  # 3
            failure = self.pipeline.fail_stream(error, request)
            if response.cuts_on_failure and web_request.transport is not None:
                web_request.transport.abort()
                return web_response
            await web_response.write(response.render_failure(failure))
        except asyncio.CancelledError:  # 4, or 2
            if not self._is_cut:
                raise
            await web_response.write(response.render_failure(self.pipeline.fail_stream(stopped(), request)))
        finally:
            request.events = pieces.events
            await close_stream(source, request)
        await web_response.write_eof()
        if is_whole:  # 1
            request.finish = Finish.DONE
        return web_response

    def ticket_access(self, path: str) -> Access | None:
        """Return who may open an address that takes tickets; None = it takes none.

        1. an address of the table   → an event stream does
        2. an address of a backend   → a connection there that switches protocols does
        """
        for route in self._routes:
            if "GET" in route.methods and route.fits(path):  # 1
                return route.access if route.takes_ticket else None
        passthrough = self._passthrough
        if passthrough is None or self.methods_at(path) or not passthrough.accepts(path):
            return None
        return passthrough.access_at(path)  # 2

    # ---- addresses that are not in the table

    def methods_at(self, path: str) -> list[str]:
        """Return the methods of `path`, in order; [] = the address is not in the table."""
        routes = [route for route in self._routes if route.fits(path)]
        found = [method for method in METHODS if any(route.serves(method) for route in routes)]
        return sorted([*found, "OPTIONS"]) if found else []

    def _dialect_at(self, path: str) -> str:
        if self._dialect:
            return self._dialect
        if path.startswith("/api/"):
            return "ollama"
        return "anthropic" if f"{path}/".startswith("/v1/messages/") else "openai"

    def _is_passed_on(self, web_request: web.Request) -> bool:
        """Whether a request is passed on to a backend.

        1. passthrough is off, or there is no backend                  → no
        2. an address of the table, whatever its method                → no
        3. a browser's preflight, or OPTIONS of an address for clients → no: it is answered here
        4. two base URLs are joined in the address                     → no
        5. any other address                                           → yes
        """
        path = web_request.path
        if self._passthrough is None or not self._passthrough.accepts(path):  # 1
            return False
        if self.methods_at(path):  # 2
            return False
        is_preflight = "Access-Control-Request-Method" in web_request.headers
        if web_request.method == "OPTIONS" and (is_preflight or client_methods(path)):  # 3
            return False
        return not has_joined_bases(path)  # 4, 5

    def _answer_unknown(self, web_request: web.Request, request: Request) -> Response:
        """Answer a request whose address or method is not in the table.

        1. OPTIONS                          → the methods of the address; to a preflight what it may send
        2. another method is in the table   → 405 with the methods that are
        3. no such address                  → 404, with the address that was probably meant
        """
        path, method, dialect = request.path, request.method, self._dialect_at(request.path)
        methods = self.methods_at(path) or self.methods_at(strip_slashes(path))
        is_passed = self._passthrough is not None and self._passthrough.accepts(path)
        if method == "OPTIONS" and not methods and is_passed:
            methods = client_methods(path) or PASSTHROUGH_METHODS
        if method == "OPTIONS" and methods:  # 1
            headers = [("Allow", ", ".join(methods)), *self._preflight(web_request, methods)]
            request.receipt.status = 204
            return Response(204, headers=[*headers, ("x-request-id", request.id)])
        if methods:  # 2
            allowed = ", ".join(methods)
            error: ApplianceError = Invalid(
                f"{path} does not take {method}; it takes {allowed}.",
                code="method_not_allowed",
                details={"status": 405},
            )
            response = self._bare_error(error, dialect, request)
            response.headers.insert(0, ("Allow", allowed))
            return response
        near = suggest_path(path, lambda known: bool(self.methods_at(known)))  # 3
        hint = f" Did you mean {near}?" if near else ""
        error = NotFound(f"There is nothing at {path}.{hint}")
        return self._bare_error(error, self._dialect_at(near or path), request)

    def _render_error(self, status: int, error: BaseException | None, peer: str) -> web.Response:
        """Answer what aiohttp would answer by itself; the connection ends with it.

        1. the request cannot be read             → 400, or 431 where it is too long
        2. a status of aiohttp's, such as 404     → the same status
        3. a failure of ours                      → 500
        """
        pipeline = self.pipeline
        with pipeline.request("other", method="-", path="-", headers={}, body=b"", peer=peer) as request:
            if is_unreadable(error):  # 1
                request.has_log_line = False
                self.connections.notices.warn("malformed_request", peer=peer, reason=type(error).__name__)
                failure: ApplianceError = _unreadable(error)
            elif isinstance(error, web.HTTPException):  # 2
                text = f"The request cannot be served: {error.reason}."
                failure = Invalid(text, details={"status": status})
            else:  # 3
                cause = error if isinstance(error, Exception) else RuntimeError(f"status {status}")
                failure = pipeline.to_appliance_error(cause, request)
            response = self._bare_error(failure, self._dialect or "openai", request)
            request.finish, request.sent_bytes = Finish.ERROR, len(response.body)
        web_response = web.Response(status=response.status, body=response.body)
        _set_headers(web_response, response)
        web_response.force_close()
        return web_response

    def _bare_error(self, error: ApplianceError, dialect: str, request: Request) -> Response:
        """Render an error of a request that no handler has seen: access refused, or an unknown address."""
        response = self.pipeline.error_response(error, dialect, request.receipt)
        request.receipt.status = response.status
        response.headers += self.pipeline.response_headers(request)
        return response

    def _preflight(self, web_request: web.Request, methods: list[str]) -> list[tuple[str, str]]:
        headers = self.pipeline.cors_headers(web_request.headers.get("Origin", ""))
        if any(name == "Access-Control-Allow-Origin" for name, _ in headers):
            asked = web_request.headers.get("Access-Control-Request-Headers", "")
            is_plain = asked and asked.isprintable() and asked.isascii()
            headers += [
                ("Access-Control-Allow-Methods", ", ".join(methods)),
                ("Access-Control-Allow-Headers", asked if is_plain else "authorization, content-type"),
                ("Access-Control-Max-Age", str(PREFLIGHT_AGE_S)),
            ]
        return headers


async def _expect(web_request: web.Request) -> None:
    """Let a client go on that waits for it; any other expectation is refused by `_head_error`."""
    if web_request.headers.get("Expect", "").lower() == "100-continue":
        await web_request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        web_request.writer.output_size = 0  # the response has not begun


def _head_error(web_request: web.Request, max_bytes: int) -> ApplianceError | None:
    """Return what is wrong with a head that aiohttp takes; None = nothing.

    1. older than HTTP/1.0                      → 505
    2. an encoding besides `chunked`: another server may see other requests → 400
    3. an expectation other than 100-continue   → 417 (RFC 9110, section 10.1.1)
    4. larger than MAX_HEADER_BYTES             → 431
    """
    headers = web_request.headers
    if web_request.version < HttpVersion10:  # 1
        return Invalid("HTTP/1.0 and HTTP/1.1 are served here.", code="http_version", details={"status": 505})
    encodings = headers.getall("Transfer-Encoding", ())
    if encodings and [value.strip().lower() for value in encodings] != ["chunked"]:  # 2
        return Invalid("The only Transfer-Encoding here is `chunked`, once.", code="invalid_framing")
    if headers.get("Expect", "100-continue").lower() != "100-continue":  # 3
        text = "The only Expect here is `100-continue`."
        return Invalid(text, code="unknown_expect", details={"status": 417})
    if sum(len(name) + len(value) + 4 for name, value in web_request.raw_headers) > max_bytes:  # 4
        text = "The request head is too large (MAX_HEADER_BYTES)."
        return Invalid(text, code="header_too_large", details={"status": 431})
    return None


def _unreadable(error: BaseException | None) -> ApplianceError:
    """Say what cannot be read of a request, without a byte of it."""
    if isinstance(error, LineTooLong):
        text = "The request head is too large (MAX_HEADER_BYTES)."
        return Invalid(text, code="header_too_large", details={"status": 431})
    return Invalid("The request cannot be read: its first line, a header or its framing is malformed.")


async def beating(
    pieces: AsyncIterator[bytes], heartbeat: bytes, every_s: float
) -> AsyncGenerator[bytes, None]:
    """Yield the pieces, and `heartbeat` whenever none has arrived for `every_s` seconds.

    Close it before `pieces`: a piece may be pending, and a generator that runs cannot be closed.
    """
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
        if waiting is not None:
            if not waiting.done():
                waiting.cancel()
                await asyncio.wait({waiting})
            if not waiting.cancelled():
                waiting.exception()  # else asyncio logs that it was never retrieved


@contextmanager
def _unsent(web_request: web.Request, request: Request) -> Iterator[None]:
    """Take what was not written to a client that has left off the bytes that were sent."""
    transport = web_request.transport
    connection = transport.get_protocol() if transport is not None else None
    try:
        yield
    finally:
        if request.finish is Finish.CLIENT_LEFT and isinstance(connection, FastConnection):
            request.sent_bytes = max(0, request.sent_bytes - connection.unsent_bytes)


@contextmanager
def _busy(web_request: web.Request) -> Iterator[None]:
    """Count a request as running on its connection, so that the idle timeouts do not close it."""
    transport = web_request.transport
    connection = transport.get_protocol() if transport is not None else None
    if not isinstance(connection, FastConnection):
        yield
        return
    connection.busy += 1
    try:
        yield
    finally:
        connection.busy -= 1
        connection.finish_response()


@contextmanager
def _counted_view(pipeline: RequestPipeline, *, is_view: bool) -> Iterator[None]:
    """Count a request that only looks at the appliance."""
    pipeline.views += is_view
    try:
        yield
    finally:
        pipeline.views -= is_view


def _headers(web_request: web.Request) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in web_request.headers.items():
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return headers


def _set_headers(web_response: web.StreamResponse, response: Response) -> None:
    web_response.headers["Content-Type"] = response.content_type
    web_response.headers["Server"] = AGENT  # else aiohttp sends its version and Python's
    for name, value in response.headers:
        web_response.headers[name] = value


@asynccontextmanager
async def listening(
    server: HttpServer,
    addresses: list[tuple[str, int]],
    *,
    settings: tuple[str, str] | None = ("PROXY_HOST", "PROXY_PORT"),
) -> AsyncIterator[list[tuple[str, int]]]:
    """Listen on `addresses` while the context is open; connections that are open stay open after it.

    Args:
        addresses: (host, port), port 0 = any free one.
        settings: The variables, or options, of host and port; None = they are fixed.

    Yields:
        The addresses that are really listened on.

    Raises:
        OSError: An address cannot be listened on; its text names it, why, and what to do.
    """
    listeners: list[asyncio.Server] = []
    bound: list[tuple[str, int]] = []
    try:
        for host, port in addresses:
            try:
                listener = await server.connections.loop.create_server(
                    server.connect, host, port, backlog=4096, reuse_address=True
                )
            except OSError as exc:
                text = describe_listen_error(exc, host, port, settings=settings)
                raise OSError(exc.errno, text) from exc
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
    settings: tuple[str, str] = ("PROXY_HOST", "PROXY_PORT"),
) -> AsyncIterator[list[tuple[str, int]]]:
    """Serve on `addresses` while the context is open.

    Args:
        addresses: (host, port), port 0 = any free one.
        hurry: Set to cut off running requests at the end.
        grace_s: Returns the seconds that running requests get at the end.
        settings: The variables, or options, of host and port.

    Yields:
        The addresses that are really listened on.

    Raises:
        OSError: An address cannot be listened on; its text names it.
    """
    await server.start()
    ticker = None
    try:
        async with listening(server, addresses, settings=settings) as bound:
            ticker = tasks.every(TICK_S, server.tick, name="front-ticker")
            yield bound
    finally:
        await server.stop(grace_s(), hurry)
        if ticker is not None:
            ticker.cancel()
