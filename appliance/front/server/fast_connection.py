"""The fast lane: hot requests are read and answered straight on the socket; everything else is handed to aiohttp, bytes and all.

A connection begins here. Its first request line decides: a POST of a hot address with a Content-Length is served here, request
after request; anything else (other addresses, chunked bodies, Expect, Upgrade, HTTP/1.0, a query) makes the connection
aiohttp's from that request on. So the rare cases have one well-tested reader, and the hot path does little.

What is bounded here, for both servers: connections, head size, time for a head, idle time, time for a body, a client that
does not read.
"""

import asyncio
from typing import TYPE_CHECKING, Any

from appliance.base.errors import ApplianceError, Internal, Invalid, TimedOut
from appliance.engines.outcome import Finish
from appliance.front.passthrough.tunnel import Tunnel
from appliance.front.pipeline.heads import BadHead, parse_request_head, parse_upgrade, render_response_head
from appliance.front.pipeline.pipeline import too_large
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response
from appliance.front.pipeline.route import Route

if TYPE_CHECKING:
    from appliance.front.server.server import HttpServer

HIGH_WATER_BYTES = 64 * 1024
PIPELINED_BYTES = 256 * 1024
LINGER_S = 1.0


class FastConnection(asyncio.Protocol):
    """One client connection, from its first byte to its last."""

    __slots__ = (
        "_body",
        "_body_left",
        "_buffer",
        "_drained",
        "_has_served",
        "_inner",
        "_is_closing",
        "_is_paused",
        "_keep_alive",
        "_next",
        "_route",
        "_server",
        "_task",
        "busy",
        "heartbeat",
        "peer",
        "since_s",
        "transport",
        "wrote_s",
    )

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._buffer = b""
        self._body: list[bytes] = []  # while a body arrives
        self._body_left = 0
        self._next: tuple[Route, dict[str, str], bytes] | None = None  # a head whose body is not complete
        self._task: asyncio.Task[None] | None = None
        self._inner: Any = None  # aiohttp's protocol, once the connection is its
        self._drained: asyncio.Future[None] | None = None
        self._is_paused = False
        self._is_closing = False
        self._keep_alive = True
        self._has_served = False  # a connection that never asked anything is given less patience
        self.busy = 0  # requests being answered on this connection
        self.heartbeat = b""  # what the ticker may send while a stream is silent
        self.peer = ""
        self.since_s = (
            0.0  # when the present state began: idle, or the first byte of an unfinished head or body
        )
        self.wrote_s = 0.0
        self.transport: Any = None

    # ---- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.since_s = self._server.now_s()
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if isinstance(peer, tuple) else "unix"
        if not self._server.admit(self):
            self._refuse_connection()

    def data_received(self, data: bytes) -> None:
        if self._inner is not None:
            if not self.busy and not self._buffer:
                self._buffer = b"x"  # a mark: since_s is the time of the first byte after an answer
                self.since_s = self._server.now_s()
            self._inner.data_received(data)
            return
        if self._is_closing:
            return
        if self._next is not None:
            self._take_body(data)
            return
        if self._task is None and not self._buffer:
            self.since_s = self._server.now_s()
        self._buffer = self._buffer + data if self._buffer else data
        if self._task is None:
            self._begin()
        elif len(self._buffer) > PIPELINED_BYTES:
            self.transport.pause_reading()

    def eof_received(self) -> bool | None:
        if self._inner is not None:
            result: bool | None = self._inner.eof_received()
            return result
        return None  # a client that closes its side has left: the transport closes, the task is cancelled

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closing = True
        self._server.forget(self)
        if self._inner is not None:
            self._inner.connection_lost(exc)
        if self._task is not None:
            self._task.cancel()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def pause_writing(self) -> None:
        self._is_paused = True
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._is_paused = False
        if self._inner is not None:
            self._inner.resume_writing()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # ---- reading

    def _begin(self) -> None:
        """Look at the request that begins in the buffer.

        1. its head is not complete            → wait, unless it is too large
        2. no hot address, or not plain POST   → aiohttp's from here on
        3. unreadable                          → 400 and the end
        4. complete with its body              → answer it
        5. the body is still on its way        → gather it
        """
        buffer = self._buffer
        end = buffer.find(b"\r\n\r\n")
        if end < 0:  # 1
            if len(buffer) > self._server.settings.max_header_bytes:
                self._refuse(
                    431,
                    Invalid("The request's head is too large (MAX_HEADER_BYTES).", code="header_too_large"),
                    None,
                )
            return
        if end > self._server.settings.max_header_bytes:
            self._refuse(
                431,
                Invalid("The request's head is too large (MAX_HEADER_BYTES).", code="header_too_large"),
                None,
            )
            return
        route = self._server.hot.get(buffer[: buffer.find(b"\r\n")])
        if route is None:  # 2
            self._hand_over()
            return
        try:
            headers, may_stay = parse_request_head(buffer[: end + 4])
        except BadHead as exc:  # 3
            self._refuse(400, Invalid(f"The request's head cannot be read: {exc}."), route)
            return
        length = headers.get("content-length", "")
        if (
            not length.isdigit()
            or "transfer-encoding" in headers
            or "expect" in headers
            or "upgrade" in headers
        ):
            self._hand_over()  # 2
            return
        self._keep_alive = may_stay
        size, at = int(length), end + 4
        if size > self._server.settings.max_body_bytes:
            self._refuse(413, too_large(self._server.settings.max_body_bytes), route)
            return
        if len(buffer) - at >= size:  # 4
            self._buffer = buffer[at + size :]
            self._start(route, headers, buffer[at : at + size])
            return
        self._next = (route, headers, b"")  # 5
        self._body = [buffer[at:]] if len(buffer) > at else []
        self._body_left = size - (len(buffer) - at)
        self._buffer = b""
        self.since_s = self._server.now_s()

    def _take_body(self, data: bytes) -> None:
        assert self._next is not None
        self.since_s = self._server.now_s()
        if len(data) < self._body_left:
            self._body.append(data)
            self._body_left -= len(data)
            return
        self._body.append(data[: self._body_left])
        self._buffer = data[self._body_left :]
        route, headers, _ = self._next
        body, self._body, self._next = b"".join(self._body), [], None
        self._start(route, headers, body)

    def _hand_over(self) -> None:
        """Make the connection another reader's: aiohttp's, or a tunnel's where protocols are to be switched.

        It gets every byte that was read and not used.
        """
        tunnel = self._tunnel()
        self._inner = tunnel or self._server.aiohttp_protocol()
        buffer, self._buffer = self._buffer, b""
        self._inner.connection_made(self.transport)
        if tunnel is not None:
            buffer = buffer[buffer.find(b"\r\n\r\n") + 4 :]
        if buffer or tunnel is None:
            self._inner.data_received(buffer)

    def _tunnel(self) -> Tunnel | None:
        """Give a tunnel for a request that asks to switch protocols, at an address that is a backend's; None for all others."""
        passthrough = self._server.passthrough
        if passthrough is None:
            return None
        wanted = parse_upgrade(self._buffer[: self._buffer.find(b"\r\n\r\n") + 4])
        if wanted is None or not passthrough.takes(wanted.path) or self._server.methods_at(wanted.path):
            return None
        return Tunnel(self, self._server, passthrough, wanted)

    def write_last(self, answer: Response) -> int:
        """Write an answer after which the connection ends; give the size of its body."""
        self._keep_alive = False
        return self._write_whole(answer)

    def unmark(self) -> None:
        """An answer of aiohttp's has ended: the next byte begins a new head."""
        self._buffer = b""
        self._has_served = True
        self.since_s = self._server.now_s()

    # ---- answering

    def _start(self, route: Route, headers: dict[str, str], body: bytes) -> None:
        call = self._server.pipeline.open(
            route, method="POST", path=route.path, headers=headers, body=body, peer=self.peer
        )
        self.busy = 1
        self._task = self._server.loop.create_task(self._answer(route, call))

    async def _answer(self, route: Route, call: Request) -> None:
        """Answer one request; whatever happens it is closed at the desk exactly once."""
        pipeline = self._server.pipeline
        finish, sent, events = Finish.CLIENT_LEFT, 0, 0
        try:
            answer = await pipeline.handle(route, call)
            if answer.pieces is None:
                pipeline.mark_first_byte(call)
                sent = self._write_whole(answer)
                finish = Finish.DONE
            else:
                finish, sent, events = await self._write_stream(answer, route, call)
        except asyncio.CancelledError:
            if not self._is_closing:  # not the client: the server is stopping
                finish = Finish.CUT_OFF
                self.transport.abort()
        finally:
            pipeline.close(call, finish=finish, sent_bytes=sent, events=events)
            self.busy = 0
            self.heartbeat = b""
            self._task = None
        # After an error event the body has ended in order: the connection stays, since a client may be using it again already.
        if not self._keep_alive or self._server.is_stopping:
            self._is_closing = True
            self.transport.close()
        elif not self._is_closing:
            self._again()

    def _again(self) -> None:
        """The connection is free for the next request, which may already be here."""
        self.since_s = self._server.now_s()
        self._has_served = True
        if self._buffer:
            self.transport.resume_reading()
            self._begin()

    def _write_whole(self, answer: Response) -> int:
        body = answer.body
        head = self._head(answer, b"Content-Length: %d\r\n" % len(body))
        self.transport.write(head + body)
        return len(body)

    async def _write_stream(self, answer: Response, route: Route, call: Request) -> tuple[Finish, int, int]:
        """Write pieces as they come, each as one chunk.

        Gives   (finish, bytes, events)
        """
        pipeline, pieces = self._server.pipeline, answer.pieces
        assert pieces is not None
        write = self.transport.write
        head = self._head(answer, b"Transfer-Encoding: chunked\r\n")
        sent = events = 0
        finish = Finish.DONE
        self.heartbeat, self.wrote_s = (
            answer.heartbeat,
            0.0,
        )  # none before the head, whenever the connection last wrote
        try:
            async for piece in pieces:
                if head:
                    pipeline.mark_first_byte(call)
                    write(b"%b%x\r\n%b\r\n" % (head, len(piece), piece))
                    head = b""
                else:
                    write(b"%x\r\n%b\r\n" % (len(piece), piece))
                sent += len(piece)
                self.wrote_s = self._server.tick_s
                if self._is_paused and not await self._may_write():
                    return Finish.CLIENT_LEFT, sent, events
        except ApplianceError as error:
            finish = self._note_failure(error, call)
            last = answer.on_error(error)
            write(b"%b%x\r\n%b\r\n" % (head, len(last), last))
            head = b""
        except Exception as error:
            internal = pipeline.internal_error(error, call)
            finish = self._note_failure(internal, call)
            last = answer.on_error(internal)
            write(b"%b%x\r\n%b\r\n" % (head, len(last), last))
            head = b""
        finally:
            self.heartbeat = b""
            events = pieces.events
            await pieces.aclose()
        write(head + b"0\r\n\r\n")
        return finish, sent, events

    def _note_failure(self, error: ApplianceError, call: Request) -> Finish:
        call.receipt.error = f"{error.kind.value}: {error.message}"
        return Finish.CUT_OFF if call.first_byte_s else Finish.ERROR

    async def _may_write(self) -> bool:
        """Wait until the client reads on; False when it has left or did not read for too long."""
        self._drained = self._server.loop.create_future()
        try:
            await asyncio.wait_for(self._drained, self._server.settings.write_timeout_s)
        except TimeoutError:
            self._is_closing = True
            self.transport.abort()
            return False
        finally:
            self._drained = None
        return not self._is_closing

    def _head(self, answer: Response, framing: bytes) -> bytes:
        return render_response_head(
            answer,
            framing,
            date_line=self._server.date_line,
            may_stay=self._keep_alive and not self._server.is_stopping,
        )

    # ---- refusing

    def _refuse(self, status: int, error: ApplianceError, route: Route | None) -> None:
        """Say no to a request that cannot be taken, and close; the rest of it is not read."""
        pipeline = self._server.pipeline
        call = pipeline.open(
            route, method="-", path=route.path if route else "-", headers={}, body=b"", peer=self.peer
        )
        answer = pipeline.error_response(error, route.dialect if route else "openai", call.receipt)
        answer.status = call.receipt.status = status
        answer.headers.append(("x-request-id", call.id))
        self._keep_alive = False
        self._is_closing = True
        self._next, self._body = None, []
        sent = self._write_whole(answer)
        pipeline.close(call, finish=Finish.ERROR, sent_bytes=sent)
        # What is still on its way is read and dropped for a moment: closing at once would reset the connection under our answer.
        self.transport.write_eof()
        self._server.loop.call_later(LINGER_S, self.transport.abort)

    def _refuse_connection(self) -> None:
        error = Internal("Too many connections.", code="too_many_connections")
        answer = self._server.pipeline.error_response(error, "openai")
        answer.status = 503
        answer.headers.append(("Retry-After", "1"))
        self._keep_alive = False
        self._is_closing = True
        self._write_whole(answer)
        self.transport.close()

    # ---- the ticker's calls

    def tick(self, now_s: float) -> None:
        """Look at the clock for this connection, about once a second.

        1. a silent stream            → a heartbeat
        2. being answered             → nothing
        3. a body that stopped        → 408 and the end
        4. a head that is not coming  → 408 and the end (aiohttp's connections: just the end)
        5. idle for too long          → the end
        """
        settings = self._server.settings
        if self.heartbeat and self.busy and self._inner is None:  # 1
            if (
                settings.heartbeat_s
                and now_s - self.wrote_s >= settings.heartbeat_s
                and self.wrote_s
                and not self._is_paused
            ):
                self.transport.write(b"%x\r\n%b\r\n" % (len(self.heartbeat), self.heartbeat))
                self.wrote_s = now_s
            return
        if self.busy or self._is_closing:  # 2
            return
        waited_s = now_s - self.since_s
        if self._next is not None:  # 3
            if waited_s > settings.body_timeout_s:
                self._refuse(
                    408,
                    TimedOut("The request's body did not arrive in time (BODY_TIMEOUT_S)."),
                    self._next[0],
                )
        elif self._buffer:  # 4
            if waited_s > settings.header_timeout_s:
                if self._inner is not None:
                    self.transport.close()
                else:
                    self._refuse(
                        408, TimedOut("The request's head did not arrive in time (HEADER_TIMEOUT_S)."), None
                    )
        elif waited_s > (
            settings.keepalive_timeout_s if self._has_served else settings.header_timeout_s
        ):  # 5
            self.transport.close()

    def stop(self) -> None:
        """The server stops: an idle connection is closed, a busy one after its answer."""
        if not self.busy and self._inner is None:
            self._is_closing = True
            self.transport.close()

    def cut(self) -> None:
        """The grace is over."""
        if self._task is not None:
            self._task.cancel()
        else:
            self.transport.abort()
