"""The fast connection: hot requests are read and answered directly on the socket; others are handed over.

Every connection begins here. A POST to a hot address with a Content-Length is served here, request after
request. At the first other request (another address, a chunked body, Expect, Upgrade, HTTP/1.0, a query) the
connection is handed over to another protocol, aiohttp's or a tunnel's, with the bytes that were read. So rare
cases have one well-tested parser, and the hot path stays short.

Limits that hold here for all of them: connections, head size, time for a head, idle time, time for a body, a
client that does not read.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from appliance.base.errors import ApplianceError, Internal, Invalid, TimedOut
from appliance.base.inline import InlineRunner, Signal
from appliance.base.logs import get_logger
from appliance.engines.outcome import Finish
from appliance.front.passthrough.upload import LEAST_BODY_BYTES_S
from appliance.front.pipeline.heads import (
    BadHead,
    KnownHead,
    asks_to_switch,
    parse_request_head,
    render_response_head,
)
from appliance.front.pipeline.pipeline import close_stream, forget_frames, stopped, too_large
from appliance.front.pipeline.request import KnownCaller, Request
from appliance.front.pipeline.response import Response
from appliance.front.pipeline.route import Route
from appliance.front.server.connections import LINGER_S, Connections, InnerProtocol

log = get_logger("front")
REQUESTS_IN_TURN = 16  # answered in a row on one connection, before others get their turn
TLS_HANDSHAKE = 0x16  # the first byte of a TLS client; no method begins with it
PIPELINED_BYTES = 64 * 1024  # of the next requests; more is not read before they are answered


class FastConnection(asyncio.Protocol):
    """One client connection, from its first byte to its last.

    Attributes:
        busy: Running requests on this connection.
        peer: The client's address, "unix" for a unix socket.
    """

    __slots__ = (
        "_at",
        "_body",
        "_body_began_s",
        "_body_left",
        "_body_size",
        "_buffer",
        "_drained",
        "_has_served",
        "_heartbeat",
        "_inner",
        "_is_answered",
        "_is_beginning",
        "_is_closing",
        "_is_head_begun",
        "_is_paused",
        "_is_unread",
        "_keep_alive",
        "_known",
        "_next",
        "_running",
        "_shared",
        "_since_s",
        "_stalled_s",
        "_take_over",
        "_transport",
        "_unsent_bytes",
        "_wrote_s",
        "busy",
        "peer",
    )

    def __init__(
        self,
        shared: Connections,
        take_over: Callable[["FastConnection", bytes], tuple[InnerProtocol, bytes]],
    ) -> None:
        """Build the protocol of one connection.

        Args:
            shared: What all connections of the server share.
            take_over: Takes the bytes of a request that is not hot; returns the protocol that serves the
                connection from there on, and which of the bytes it has to read.
        """
        self._shared = shared
        self._take_over = take_over
        self._buffer = b""
        self._at = 0  # bytes of the buffer that have been used
        self._body: list[bytes] = []  # while a body arrives
        self._body_left = 0
        self._body_size = 0
        self._body_began_s = 0.0
        # A head whose body is not complete, and what is known of its caller.
        self._next: tuple[Route, dict[str, str], KnownCaller | None] | None = None
        self._known: KnownHead | None = None  # of the latest request
        self._running: InlineRunner[None] | None = None  # the request that is being answered
        self._is_beginning = self._is_answered = False  # see _begin
        self._inner: InnerProtocol | None = None
        self._is_head_begun = False  # of the inner protocol: bytes have arrived since its last response
        self._drained: Signal | None = None
        self._is_paused = False  # the client does not read, so nothing is written
        self._stalled_s = 0.0  # when the client stopped reading; 0 = it reads
        self._unsent_bytes = 0  # when the client stopped reading or left, or at the last tick after it
        self._is_unread = False  # reading is paused: enough is buffered
        self._is_closing = False
        self._keep_alive = True
        self._has_served = False  # until its first request a connection gets less time
        self._heartbeat = b""  # what the ticker may send while a stream is silent
        # When it became idle, or when bytes of an incomplete head or body last arrived.
        self._since_s = 0.0
        self._wrote_s = 0.0
        self._transport: Any = None
        self.busy = 0
        self.peer = ""

    # ---- callbacks of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection, or refuse it where there are too many."""
        self._transport = transport
        self._since_s = self._shared.now_s()
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if isinstance(peer, tuple) else "unix"
        if not self._shared.admit(self):
            self._refuse_connection()

    def data_received(self, data: bytes) -> None:
        """Process what has arrived.

        1. handed over                   → pass it to the inner protocol, or choose another for a switch
        2. closing                       → drop it
        3. a body is incomplete          → append it
        4. no request is running         → parse the head
        5. a request is running          → buffer it for the next ones, up to a limit
        """
        if self._inner is not None:  # 1
            if self.busy or (self._is_head_begun and not self._buffer):
                self._inner.data_received(data)
            else:
                self._begin_inner_head(self._inner, data)
            return
        if self._is_closing:  # 2
            return
        if self._next is not None:  # 3
            self._take_body(data)
            return
        if self._buffer:
            self._buffer = self._buffer[self._at :] + data if self._at else self._buffer + data
        else:
            self._buffer = data
            if not self.busy:
                self._since_s = self._shared.now_s()
        self._at = 0
        if not self.busy:  # 4
            self._begin()
        elif len(self._buffer) > PIPELINED_BYTES and not self._is_unread:  # 5
            self._is_unread = True
            self._transport.pause_reading()

    def eof_received(self) -> bool | None:
        """Close: a client that closes its side is taken to have left; its request is cancelled."""
        self._unsent_bytes = self._transport.get_write_buffer_size()
        if self._inner is not None:
            return self._inner.eof_received()
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the running request: the client has left."""
        self._is_closing = True
        self._shared.forget(self)
        if self._inner is not None:
            self._inner.connection_lost(exc)
        if self._running is not None:
            self._running.cancel()

    def pause_writing(self) -> None:
        """Stop writing: the client does not read."""
        self._is_paused = True
        self._unsent_bytes = self._transport.get_write_buffer_size()
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Resume writing: the client has read."""
        self._is_paused = False
        self._stalled_s = 0.0
        self._unsent_bytes = 0
        if self._inner is not None:
            self._inner.resume_writing()
        if self._drained is not None:  # not in this call: asyncio's transport must not be closed in it
            self._shared.loop.call_soon(self._drained.set)

    # ---- reading

    def _begin(self) -> None:
        """Answer the requests that are buffered, until one has to wait for something.

        After some of them other connections get their turn: a client may send many that are refused at once.
        """
        self._is_beginning = True
        for _ in range(REQUESTS_IN_TURN):
            self._is_answered = False
            self._read_request()
            if not (self._is_answered and self._buffer):
                break
        else:
            self.busy = 1
            self._shared.loop.call_soon(self._begin_again)
        self._is_beginning = False

    def _begin_again(self) -> None:
        self.busy = 0
        if self._shared.is_stopping:
            self.stop()
        elif not self._is_closing and self._buffer:
            self._begin()

    def _read_request(self) -> None:
        """Read the request that begins in the buffer: with the head of the one before, or another one."""
        known = self._known
        if known is not None and (found := known.compare(self._buffer, self._at)) is not None:
            self._keep_alive = known.may_stay
            self._take_head(known.route, known.headers, known.known_caller, *found)
        else:
            self._parse_head()

    def _parse_head(self) -> None:
        """Parse the head that begins in the buffer.

        1. the head is incomplete                      → wait
        2. the head is too large                       → 431 and close
        3. not a hot address, or not a plain POST      → hand over to another protocol
        4. the head is invalid                         → 400 and close
        5. anything else                               → take its body
        """
        buffer, begin, settings = self._buffer, self._at, self._shared.pipeline.settings
        end = buffer.find(b"\r\n\r\n", begin)
        if end < 0 and buffer[begin] == TLS_HANDSHAKE:
            self._shared.notices.warn("tls_on_plain_port", peer=self.peer)
            self._is_closing = True
            self._transport.close()
            return
        if end < 0 and len(buffer) - begin <= settings.max_header_bytes:  # 1
            self._read_on()
            return
        if end < 0 or end - begin > settings.max_header_bytes:  # 2
            error = Invalid("The request head is too large (MAX_HEADER_BYTES).", code="header_too_large")
            self._refuse(431, error, None)
            return
        route = self._shared.hot.get(buffer[begin : buffer.find(b"\r\n", begin)])
        if route is None:  # 3
            self._hand_over()
            return
        try:
            headers, may_stay = parse_request_head(buffer[begin : end + 4])
        except BadHead as exc:  # 4
            self._refuse(400, Invalid(f"The request head cannot be read: {exc}."), route)
            return
        length = headers.get("content-length", "")
        if (
            not length.isdigit()
            or "transfer-encoding" in headers
            or "expect" in headers
            or "," in headers.get("host", ",")
        ):
            self._hand_over()  # 3
            return
        self._keep_alive = may_stay
        self._known = known = KnownHead.of(buffer[begin : end + 4], route, headers, may_stay=may_stay)
        self._take_head(
            route, headers, known.known_caller if known is not None else None, int(length), end + 4
        )  # 5

    def _take_head(
        self, route: Route, headers: dict[str, str], known_caller: KnownCaller | None, size: int, at: int
    ) -> None:
        """Take the body of a request whose head is read.

        1. it is too large   → 413 and close
        2. it is complete    → answer the request
        3. it is incomplete  → wait for the rest

        Args:
            size: Of the body.
            at: Where it begins in the buffer.
        """
        buffer, limit = self._buffer, self._shared.pipeline.settings.max_body_bytes
        if size > limit:  # 1
            self._refuse(413, too_large(limit), route, headers)
            return
        have = len(buffer) - at
        if have >= size:  # 2
            self._use(at + size)
            self._start(route, headers, known_caller, buffer[at : at + size])
        else:  # 3
            self._next = (route, headers, known_caller)
            self._body = [buffer[at:]] if have else []
            self._body_left, self._body_size = size - have, size
            self._buffer, self._at = b"", 0
            self._since_s = self._body_began_s = self._shared.now_s()
            self._read_on()

    def _use(self, until: int) -> None:
        """Mark the buffer as used up to `until`; it is not copied, since it may hold many small requests."""
        if until >= len(self._buffer):
            self._buffer, self._at = b"", 0
        else:
            self._at = until

    def _begin_inner_head(self, inner: InnerProtocol, data: bytes) -> None:
        """Pass the head of a further request to the inner protocol, or choose another one for a switch.

        1. it is a GET's, and not complete          → keep it: it may ask for a switch in its next bytes
        2. it asks for a switch                     → hand over: proxies keep connections for it
        3. anything else, also bytes of a body      → to the inner protocol
        """
        if not self._is_head_begun:
            self._is_head_begun = True
            self._since_s = self._shared.now_s()
        data, self._buffer = self._buffer + data, b""
        if data[:4] == b"GET "[: len(data)] and inner.is_idle():
            if b"\r\n\r\n" not in data and len(data) <= self._shared.pipeline.settings.max_header_bytes:  # 1
                self._buffer = data
                return
            if asks_to_switch(data):  # 2
                inner.retire()
                self._inner, self._buffer = None, data
                self._hand_over()
                return
        inner.data_received(data)  # 3

    def _read_on(self) -> None:
        """Resume reading: no complete request is buffered any more."""
        if self._is_unread:
            self._is_unread = False
            self._transport.resume_reading()

    def _take_body(self, data: bytes) -> None:
        assert self._next is not None
        self._since_s = self._shared.now_s()
        if len(data) < self._body_left:
            self._body.append(data)
            self._body_left -= len(data)
            return
        self._body.append(data[: self._body_left])
        self._buffer, self._at = data[self._body_left :], 0
        route, headers, known_caller = self._next
        body, self._body, self._next = b"".join(self._body), [], None
        self._start(route, headers, known_caller, body)

    def _hand_over(self) -> None:
        """Hand the connection over to another protocol, with the bytes that were read and not used."""
        self._read_on()
        self._shared.writes.flush()
        inner, unread = self._take_over(self, self._buffer[self._at :])
        self._inner, self._buffer, self._at = inner, b"", 0
        inner.connection_made(self._transport)
        if self._is_paused:
            inner.pause_writing()
        if unread:
            inner.data_received(unread)

    @property
    def unsent_bytes(self) -> int:
        """Bytes of a response that were not written to the socket, also where it is closed."""
        return self._transport.get_write_buffer_size() or self._unsent_bytes

    # ---- called by the inner protocol

    def write_last(self, response: Response) -> int:
        """Write a response after which the connection is closed; return the size of its body."""
        self._keep_alive = False
        sent_bytes = self._write_whole(response, "")
        self._shared.writes.flush()
        return sent_bytes

    def finish_response(self) -> None:
        """Record that a response has ended: the next byte begins a new head."""
        self._is_head_begun = False
        self._has_served = True
        self._since_s = self._shared.now_s()

    # ---- answering

    def _start(
        self, route: Route, headers: dict[str, str], known_caller: KnownCaller | None, body: bytes
    ) -> None:
        path = route.path
        request = self._shared.pipeline.request(
            path,
            method="POST",
            path=path,
            headers=headers,
            body=body,
            peer=self.peer,
            known_caller=known_caller,
        )
        self.busy = 1
        self._running = runner = InlineRunner(self._answer(route, request), self._end, self._shared.loop)
        runner.start()

    async def _answer(self, route: Route, request: Request) -> None:
        """Answer one request. It runs inline, unless it has to wait for more than its upstream server."""
        pipeline, response = self._shared.pipeline, None
        with request:
            if self._is_closing:  # the client left between two requests that it had sent together
                return
            try:
                response = await pipeline.respond(route, request)
                if response.pieces is None:
                    pipeline.mark_first_byte(request)
                    request.sent_bytes = self._write_whole(response, pipeline.header_lines(request))
                    request.finish = Finish.DONE
                else:
                    await self._write_stream(response, request)
                # The next request begins once the client has read: unread responses do not pile up in memory.
                if self._is_paused and not await self._wait_until_read():
                    request.finish = Finish.CLIENT_LEFT
            except asyncio.CancelledError:
                if self._is_closing:
                    request.finish = Finish.CLIENT_LEFT
                else:  # not the client: the server is stopping
                    self._cut_off(route, request, response)
            except Exception as error:  # the body cannot be completed: the client must see that at once
                pipeline.fail_stream(error, request)
                self._is_closing = True
                self._transport.abort()
                if response is not None and response.pieces is not None:
                    await close_stream(response.pieces, request)
            finally:
                self._heartbeat = b""
                if request.finish is Finish.CLIENT_LEFT:
                    request.sent_bytes = max(0, request.sent_bytes - self.unsent_bytes)

    def _cut_off(self, route: Route, request: Request, response: Response | None) -> None:
        """End a request that the grace period did not suffice for, and the connection.

        1. no response has begun     → 503
        2. a stream has begun        → `_write_stream` has written its last piece
        3. a response is not read    → the connection breaks
        """
        pipeline = self._shared.pipeline
        if response is None and not self._is_paused:  # 1
            refusal = pipeline.error_response(stopped(), route.dialect, request.receipt)
            request.receipt.status = refusal.status
            refusal.headers += pipeline.response_headers(request)
            request.sent_bytes = self.write_last(refusal)
            request.finish = Finish.ERROR
        else:  # 2, 3
            request.finish = Finish.CUT_OFF
            self._shared.writes.flush()
        self._is_closing = True
        if self._is_paused:
            self._transport.abort()
        else:
            self._transport.close()

    def _end(self) -> None:
        """Go on after a response: with the next request if it is buffered.

        After an error event the body is complete, so the connection can be used again.
        """
        running, self._running = self._running, None
        self.busy = 0
        if running is not None and running.error is not None:  # `_answer` raises nothing: a fault of ours
            log.error("unhandled", peer=self.peer, error=repr(running.error), exc_info=running.error)
            self._is_closing = True
            self._transport.abort()
        elif not self._keep_alive or self._shared.is_stopping:
            self._is_closing = True
            self._shared.writes.flush()
            self._transport.close()
        elif not self._is_closing:
            self._since_s = self._shared.now_s()
            self._has_served = True
            self._is_answered = True
            if not self._buffer:
                self._read_on()
            elif not self._is_beginning:  # else `_begin` is below this call, and goes on
                self._begin()

    def _write_whole(self, response: Response, own_lines: str) -> int:
        body = response.body
        head = self._head(response, f"Content-Length: {len(body)}\r\n", own_lines)
        self._shared.writes.write(self._transport, head + body)
        return len(body)

    async def _write_stream(self, response: Response, request: Request) -> None:
        """Write each piece as one chunk, the head with the first; record in the request how it ended.

        1. the stream ends            → done
        2. the client does not read   → client_left, after WRITE_TIMEOUT_S
        3. a failure                  → the dialect's error as the last piece; cut_off, or error where it is
                                        the first one
        4. the client leaves          → client_left: nothing may be written to a closed transport
        5. the server stops           → the dialect's error as the last piece; `_answer` ends the connection
        """
        pipeline, pieces = self._shared.pipeline, response.pieces
        assert pieces is not None
        write = partial(self._shared.writes.write, self._transport)
        head = self._head(response, "Transfer-Encoding: chunked\r\n", pipeline.header_lines(request))
        # 0 = nothing was written yet: no heartbeat before the head.
        self._heartbeat, self._wrote_s = response.heartbeat, 0.0
        sent = 0

        def write_piece(piece: bytes) -> bool:
            nonlocal head, sent
            if head:
                pipeline.mark_first_byte(request)
                write(b"%b%x\r\n%b\r\n" % (head, len(piece), piece))
                head = b""
            else:
                write(b"%x\r\n%b\r\n" % (len(piece), piece))
            sent += len(piece)
            self._wrote_s = self._shared.tick_s
            return not self._is_paused

        try:
            while not await pieces.pass_pieces(write_piece):
                if self._is_paused and not await self._wait_until_read():
                    return  # 2
            request.finish = Finish.DONE  # 1
        except Exception as error:  # 3
            last = response.render_failure(pipeline.fail_stream(error, request))
            forget_frames(error)
            if last:
                write(b"%b%x\r\n%b\r\n" % (head, len(last), last))
                head = b""
        except asyncio.CancelledError:  # 4, 5
            if not self._is_closing:
                last = response.render_failure(pipeline.fail_stream(stopped(), request))
                write(head + (b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last) if last else b""))
            raise
        finally:
            self._heartbeat = b""
            request.sent_bytes, request.events = sent, pieces.events
            await close_stream(pieces, request)
        if self._is_closing:  # 4
            request.finish = Finish.CLIENT_LEFT
            return
        write(head + b"0\r\n\r\n")

    async def _wait_until_read(self) -> bool:
        """Wait until the client reads again; False when it has left. `tick` aborts one that does not."""
        if self._is_closing:
            return False
        self._drained = Signal()
        try:
            await self._drained
        finally:
            self._drained = None
        return not self._is_closing

    def _head(self, response: Response, framing: str, own_lines: str) -> bytes:
        return render_response_head(
            response,
            framing,
            own_lines,
            date_line=self._shared.date_line,
            may_stay=self._keep_alive and not self._shared.is_stopping,
        )

    # ---- refusing

    def _refuse(
        self, status: int, error: ApplianceError, route: Route | None, headers: dict[str, str] | None = None
    ) -> None:
        """Answer an unacceptable request with an error, and close; the rest of the request is not read."""
        pipeline = self._shared.pipeline
        label, path, dialect = (route.path, route.path, route.dialect) if route else ("other", "-", "openai")
        with pipeline.request(
            label, method="-", path=path, headers=headers or {}, body=b"", peer=self.peer
        ) as request:
            response = pipeline.error_response(error, dialect, request.receipt)
            response.status = request.receipt.status = status
            response.headers += pipeline.response_headers(request)
            self._is_closing = True
            self._next, self._body = None, []
            request.sent_bytes = self.write_last(response)
            request.finish = Finish.ERROR
        # The client may still be sending: an immediate close would reset the connection before the client
        # has read the response.
        self._transport.write_eof()
        self._shared.loop.call_later(LINGER_S, self._transport.abort)

    def _refuse_connection(self) -> None:
        error = Internal("Too many connections (MAX_CONNECTIONS).", code="too_many_connections")
        response = self._shared.pipeline.error_response(error, "openai")
        response.status = 503
        response.headers.append(("Retry-After", "1"))
        self._is_closing = True
        self.write_last(response)
        self._transport.close()

    # ---- called by the server

    def tick(self, now_s: float) -> None:
        """Send a due heartbeat and enforce the time limits.

        1. the client does not read            → abort after WRITE_TIMEOUT_S
        2. a silent stream                     → a heartbeat
        3. a request is running                → nothing
        4. a body does not arrive, or slowly   → 408 and close
        5. a head does not arrive              → 408 and close; only close after a hand-over
        6. idle for too long                   → close
        """
        settings = self._shared.pipeline.settings
        if self._is_paused or self._transport.is_closing():  # 1
            self._give_up(now_s, settings.write_timeout_s)
            return
        if self._heartbeat and self.busy and self._inner is None:  # 2
            self._beat(now_s, settings.heartbeat_s)
            return
        if self.busy or self._is_closing:  # 3
            return
        waited_s = now_s - self._since_s
        if self._next is not None:  # 4
            if waited_s > settings.body_timeout_s or self._is_body_slow(now_s, settings.body_timeout_s):
                error = TimedOut("The request body did not arrive in time (BODY_TIMEOUT_S).")
                self._refuse(408, error, *self._next[:2])
        elif self._is_head_begun:  # 5
            if waited_s > settings.header_timeout_s:
                self._transport.close()
        elif self._buffer:  # 5
            if waited_s > settings.header_timeout_s:
                error = TimedOut("The request head did not arrive in time (HEADER_TIMEOUT_S).")
                self._refuse(408, error, None)
        elif waited_s > (
            settings.keepalive_timeout_s if self._has_served else settings.header_timeout_s
        ):  # 6
            self._transport.close()

    def _give_up(self, now_s: float, patience_s: float) -> None:
        """Abort the connection if the client has read nothing for `patience_s` seconds."""
        unsent = self._transport.get_write_buffer_size()
        if not self._stalled_s or unsent < self._unsent_bytes:
            self._stalled_s = now_s
        elif now_s - self._stalled_s > patience_s:
            self._transport.abort()
        self._unsent_bytes = unsent

    def _is_body_slow(self, now_s: float, timeout_s: float) -> bool:
        took_s = now_s - self._body_began_s
        return took_s > timeout_s and self._body_size - self._body_left < took_s * LEAST_BODY_BYTES_S

    def _beat(self, now_s: float, every_s: float) -> None:
        """Send a heartbeat if the stream has begun and was silent for `every_s` seconds; 0 = never."""
        if every_s and self._wrote_s and now_s - self._wrote_s >= every_s and not self._is_paused:
            beat = b"%x\r\n%b\r\n" % (len(self._heartbeat), self._heartbeat)
            self._shared.writes.write(self._transport, beat)
            self._wrote_s = now_s

    def stop(self) -> None:
        """Close if idle; while a request is running, close after its response."""
        if not self.busy and self._inner is None:
            self._is_closing = True
            self._transport.close()

    def cut(self) -> None:
        """Close at once: the grace period is over."""
        if self._running is not None:
            self._running.cancel()
        else:
            self._is_closing = True  # of the requests that are buffered none begins
            self._transport.abort()
