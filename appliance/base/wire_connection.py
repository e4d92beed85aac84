"""One upstream connection and the answer on it. Used by `wire.Wire` alone; callers hold the `Response`."""

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import httptools

from appliance.base.errors import ApplianceError, Kind

if TYPE_CHECKING:
    from appliance.base.wire import Wire

UNREAD_BYTES = 256 * 1024           # more than this waiting for the reader, and the socket is not read on
MAX_HEAD_BYTES = 65_536
NOTHING_SENT = {"dns", "connect", "tls", "closed"}


class WireError(ApplianceError):
    """A connection or an answer failed. `phase`: dns, connect, tls, first_byte, idle, total, broken, lost, closed."""

    kind = Kind.UPSTREAM
    default_code: ClassVar[str | None] = "upstream_error"

    def __init__(self, message: str, *, phase: str) -> None:
        super().__init__(message)
        self.phase = phase

    @property
    def was_sent(self) -> bool:
        """Whether the server may have read something of the request."""
        return self.phase not in NOTHING_SENT


class Unreachable(WireError):
    """Nothing was sent: the server was not reached, or is not who it should be."""


class UpstreamTimeout(WireError):
    """The server took too long in `phase`."""

    kind = Kind.TIMEOUT


class BrokenAnswer(WireError):
    """The answer ended too early, or is no HTTP."""

    def __init__(self, message: str, *, phase: str = "broken") -> None:
        super().__init__(message, phase=phase)


class StaleConnection(Exception):
    """A kept connection died without a byte of an answer. Stays inside the pool."""


class Connection(asyncio.Protocol):
    """Carries one exchange at a time."""

    __slots__ = (
        "_body", "_body_bytes", "_ends_s", "_error", "_head_bytes", "_idle_s", "_is_complete", "_is_framed", "_is_head_done", "_is_lost",
        "_is_paused", "_keep_alive", "_loop", "_max_body_bytes", "_parser", "_phase", "_transport", "_waiter", "_wants_all",
        "_wire", "deadline_s", "fields", "idle_since_s", "is_counted", "origin", "status",
    )

    def __init__(self, wire: "Wire", origin: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._wire = wire
        self._loop = loop
        self.origin = origin
        self.idle_since_s = 0.0
        self.is_counted = False             # among the pool's open connections
        self.deadline_s: float | None = None
        self._transport: Any = None
        self._is_lost = False
        self._is_complete = True            # no exchange under way
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._parser: Any = None
        self._is_paused = False
        self._is_head_done = False

    # ---- one exchange

    async def exchange(self, message: bytes, *, first_byte_s: float | None, idle_s: float | None, ends_s: float | None,
                       max_body_bytes: int) -> "Response":
        """Write `message`, wait for the answer's head."""
        self.status = 0
        self.fields: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._body_bytes = self._head_bytes = 0
        self._max_body_bytes = max_body_bytes
        self._is_head_done = self._is_complete = self._is_framed = self._wants_all = False
        self._keep_alive = True
        self._idle_s, self._ends_s = idle_s, ends_s
        self._parser = httptools.HttpResponseParser(self)
        if self._is_lost:
            raise StaleConnection
        self._transport.write(message)
        while not self._is_head_done:
            await self._wait(first_byte_s, "first_byte")
        return Response(self)

    async def _wait(self, limit_s: float | None, phase: str) -> None:
        """Wait for something new; raise what ended the exchange. Cancelled while waiting: the connection is closed."""
        if self._error is not None:
            raise self._error
        self._phase = phase
        self.deadline_s = None if limit_s is None else self._loop.time() + limit_s
        if self._ends_s is not None and (self.deadline_s is None or self._ends_s < self.deadline_s):
            self.deadline_s, self._phase = self._ends_s, "total"
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        except BaseException:
            self.abort(None)
            raise
        finally:
            self._waiter = None
            self.deadline_s = None
        if self._error is not None:
            raise self._error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next_piece(self) -> bytes | None:
        """Give what has arrived, joined; None at the end."""
        while not self._body:
            if self._is_complete:
                return None
            await self._wait(self._idle_s, "idle")
        piece = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._body_bytes = 0
        if self._is_paused and not self._is_lost:
            self._is_paused = False
            self._transport.resume_reading()
        return piece

    async def read_all(self) -> bytes:
        """Give the whole body."""
        self._wants_all = True
        if self._is_paused and not self._is_lost:
            self._is_paused = False
            self._transport.resume_reading()
        while not self._is_complete:
            await self._wait(self._idle_s, "idle")
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        return body

    @property
    def is_complete(self) -> bool:
        """Whether the answer has arrived to its end."""
        return self._is_complete

    @property
    def is_usable(self) -> bool:
        return not self._is_lost and not self._transport.is_closing()

    @property
    def is_waiting_for_head(self) -> bool:
        """Whether a request was sent and its answer has not begun."""
        return not self._is_head_done and not self._is_lost

    def finish(self) -> None:
        """The reader is done: keep the connection if the answer is complete, else close it."""
        if self._is_lost:
            return
        if self._is_complete and self._keep_alive and self._error is None:
            self._parser = None
            if self._is_paused:
                self._is_paused = False
                self._transport.resume_reading()
            self._wire.release(self)
        else:
            self.abort(None)

    def abort(self, error: Exception | None) -> None:
        """Close at once; whoever waits gets `error`."""
        if error is not None:
            self._fail(error)
        if not self._is_lost:
            self._is_lost = True
            self._wire.forget(self)
            if self._transport is not None:
                self._transport.abort()

    def time_out(self) -> None:
        """The ticker found the deadline passed."""
        host, port, _ = self.origin
        what = {"first_byte": "sent no answer", "idle": "fell silent in its answer", "total": "did not finish"}[self._phase]
        self.abort(UpstreamTimeout(f"{host}:{port} {what} in time", phase=self._phase))

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._wake()

    # ---- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self.deadline_s is not None and self._phase == "idle" and self._idle_s is not None:
            # Bytes came: the silence that is measured begins anew, also while a body is awaited whole.
            idle_ends_s = self._loop.time() + self._idle_s
            if self._ends_s is None or idle_ends_s < self._ends_s:
                self.deadline_s = idle_ends_s
            else:
                self.deadline_s, self._phase = self._ends_s, "total"
        if self._parser is None or self._is_complete:
            self.abort(None)            # bytes that nobody asked for: this connection cannot be trusted
            return
        if not self._is_head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.abort(BrokenAnswer("the server wants to switch protocols"))
            return
        except httptools.HttpParserError as exc:
            if self._is_complete:       # the answer was whole; what follows it is rubbish, so the connection ends with it
                self._keep_alive = False
                self._wake()
                return
            self.abort(BrokenAnswer(f"the answer is no HTTP: {exc}"))
            return
        if not self._is_head_done and self._head_bytes > MAX_HEAD_BYTES:
            self.abort(BrokenAnswer("the head of the answer is larger than 64 KiB"))
        elif self._is_complete or (self._is_head_done and not self._wants_all):
            self._wake()

    def eof_received(self) -> bool | None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        was_known = self._is_lost
        self._is_lost = True
        if not was_known:
            self._wire.forget(self)
        if self._is_complete:
            return
        self._keep_alive = False
        if self._is_head_done and not self._is_framed and exc is None:
            self._is_complete = True            # such an answer ends with its connection
            self._wake()
        elif not self._is_head_done and not self._head_bytes:
            self._fail(StaleConnection())
        else:
            self._fail(BrokenAnswer("the server closed the connection in the middle of its answer"))

    # ---- the parser's calls

    def on_message_begin(self) -> None:
        if self._is_complete:
            self._keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_complete:
            self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        if self._is_complete:           # a second answer that nobody asked for: it is not read, and the connection ends
            self._keep_alive = False
            return
        status = self._parser.get_status_code()
        if status < 200:                # 100 Continue, 103 Early Hints: the answer is still to come
            self.fields = []
            return
        self.status = status
        for name, value in self.fields:
            lower = name.lower()
            if lower == b"content-length" or (lower == b"transfer-encoding" and b"chunked" in value.lower()):
                self._is_framed = True
        self._is_head_done = True

    def on_body(self, data: bytes) -> None:
        if self._is_complete:
            return
        self._body.append(data)
        self._body_bytes += len(data)
        if self._wants_all or not self._is_paused:
            if self._body_bytes > self._max_body_bytes and self._wants_all:
                self.abort(BrokenAnswer(f"the answer is larger than {self._max_body_bytes} bytes"))
            elif self._body_bytes > UNREAD_BYTES and not self._wants_all:
                self._is_paused = True
                self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if not self._is_head_done or self._is_complete:     # the end of a 1xx, or of what nobody asked for
            return
        self._keep_alive = self._keep_alive and self._parser.should_keep_alive()
        self._is_complete = True


class Response:
    """The answer to one request. Read it whole, or piece by piece; close it in any case."""

    __slots__ = ("_connection", "_headers", "_is_closed", "fields", "status")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._headers: dict[str, str] | None = None
        self._is_closed = False
        self.status = connection.status
        self.fields = connection.fields     # this answer's own list: the connection begins a new one with its next exchange

    @property
    def headers(self) -> dict[str, str]:
        """The fields by lower-case name; a repeated one is joined by commas."""
        if self._headers is None:
            self._headers = {}
            for name, value in self.fields:
                key, text = name.decode("latin-1").lower(), value.decode("latin-1")
                self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text
        return self._headers

    @property
    def is_complete(self) -> bool:
        """Whether everything has arrived (it may still be unread)."""
        return self._connection.is_complete

    async def read(self) -> bytes:
        """Give the whole body; raises as next_piece, and BrokenAnswer above the pool's max_body_bytes."""
        body = await self._connection.read_all()
        self.close()
        return body

    async def next_piece(self) -> bytes | None:
        """Give what has arrived since the last call, or wait for more; None at the end.

        Raises  UpstreamTimeout (idle, total) · BrokenAnswer
        """
        return await self._connection.next_piece()

    def close(self) -> None:
        """End it: after the whole answer the connection is kept, before that it is closed, which the server sees at once."""
        if not self._is_closed:
            self._is_closed = True
            self._connection.finish()
