"""One upstream connection: bytes in, a `PendingResponse` filled. Used by `ConnectionPool` alone.

A response that has arrived completely returns its connection to the pool at once, even before it is read.
"""

import asyncio
import os
import select
from collections.abc import Callable
from math import inf
from typing import Any, Protocol

import httptools

from appliance.base.inline import Signal
from appliance.base.wire.types import BrokenResponse, PoolKey, StaleConnection, UpstreamTimeout, WireError
from appliance.base.write_batch import WriteBatch

UNREAD_BYTES = 256 * 1024  # with more than this waiting for the reader, the socket is paused
SLICE_BYTES = 128 * 1024  # a larger request is written in slices, as the server takes them
READABLE = select.POLLIN | select.POLLPRI | select.POLLHUP | select.POLLERR

TOO_SLOW = {
    "first_byte": "sent no response head",
    "content": "sent no content",
    "idle": "sent nothing more of its response",
    "upload": "did not read the request body",
}
PHASES = {"upload": "first_byte", "content": "first_byte"}  # of the error, where it is not the same word
LOOKS = 8  # in the time that a stream may go without content


class ConnectionOwner(Protocol):
    """What a connection needs of its pool."""

    def release(self, connection: "Connection") -> None:
        """Take back a connection whose response is complete."""

    def forget(self, connection: "Connection") -> None:
        """Stop counting a connection that is closed."""


class _FieldReader:
    """Collects the fields of a response's head from httptools; those of interim responses are dropped."""

    __slots__ = ("fields", "is_complete", "parser")

    def __init__(self, head: list[bytes]) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.is_complete = False
        self.parser: Any = httptools.HttpResponseParser(self)
        try:
            self.parser.feed_data(b"".join(head))
        except (httptools.HttpParserUpgrade, httptools.HttpParserError):
            pass  # the connection has seen it, too, and decides what it means
        self.parser = None  # they refer to each other

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.is_complete:  # later ones are trailers, not headers
            self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        if self.is_complete:
            return
        if self.parser.get_status_code() < 200:
            self.fields.clear()
        else:
            self.is_complete = True


class PendingResponse:
    """What has arrived of one response so far; outlives its time on the connection, and is never reused.

    Attributes:
        connection: None: it has ended, in one way or another.
        max_body_bytes: Of the body, where it is read whole.
        status: 0: the head is not complete.
        head: The packets with its head; they may hold more.
        chunks: Not read yet, together `unread_bytes`.
        wants_whole: The reader wants the whole body, not chunks.
        signal: What the reader waits for; None = it does not wait.
        on_event: Called instead, where the reader takes chunks as they arrive; None = it does not.
    """

    __slots__ = (
        "_fields",
        "chunks",
        "connection",
        "error",
        "head",
        "is_complete",
        "max_body_bytes",
        "on_event",
        "signal",
        "status",
        "unread_bytes",
        "wants_whole",
    )

    def __init__(self, connection: "Connection", max_body_bytes: int) -> None:
        self.connection: Connection | None = connection
        self.max_body_bytes = max_body_bytes
        self.status = 0
        self.head: list[bytes] = []
        self.chunks: list[bytes] = []
        self.unread_bytes = 0
        self.is_complete = False
        self.wants_whole = False
        self.error: WireError | None = None
        self.signal: Signal | None = None
        self.on_event: Callable[[], None] | None = None
        self._fields: list[tuple[bytes, bytes]] | None = None

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """The header fields in order; parsed at the first use, since most responses need none."""
        if self._fields is None:
            fields = _FieldReader(self.head).fields
            if not self.status:
                return fields
            self._fields = fields
            self.head.clear()
        return self._fields

    def take_chunk(self) -> bytes:
        """Return the unread chunks as one."""
        chunks = self.chunks
        chunk = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.unread_bytes = 0
        return chunk

    def failure(self) -> WireError:
        """Return the error to raise, a new one each time.

        The traceback of one that is raised refers to frames that hold this response; if it were kept here,
        they would be, too, until the garbage collector runs.
        """
        error = self.error
        assert error is not None
        return type(error)(
            error.message, phase=error.phase, was_sent=error.was_sent, has_begun=error.has_begun
        )

    def too_large(self) -> BrokenResponse:
        """Return the error of a body that is too long to be read whole."""
        return BrokenResponse(
            f"the response is larger than {self.max_body_bytes} bytes", phase="broken", has_begun=True
        )

    def wake(self) -> None:
        """Wake the reader, if one waits: it may run in this very call, and use the connection again."""
        if self.on_event is not None:
            self.on_event()
            return
        signal = self.signal
        if signal is not None:
            self.signal = None
            signal.set()

    def is_framed(self) -> bool:
        """Whether the head says where the body ends; if not, it ends with the connection."""
        for name, value in self.fields:
            lower = name.lower()
            if lower == b"content-length" or (
                lower == b"transfer-encoding" and value.lower().rstrip().endswith(b"chunked")
            ):
                return True
        return False


class Connection(asyncio.Protocol):
    """Carries one request and its response at a time.

    Args:
        owner: The pool.
        key: What it was opened for.
        loop: The running loop.
        writes: Writes the requests.
        max_head_bytes: Longest response head.
        max_body_bytes: Longest body of a response that is read whole.
    """

    __slots__ = (
        "_content_s",
        "_ends_s",
        "_fd",
        "_gap_ends_s",
        "_gap_s",
        "_idle_s",
        "_is_full",
        "_is_head",
        "_is_large",
        "_is_last",
        "_is_lost",
        "_is_paused",
        "_is_uploading",
        "_limit",
        "_loop",
        "_max_body_bytes",
        "_max_head_bytes",
        "_other_bytes",
        "_owner",
        "_parser",
        "_phase",
        "_pieces",
        "_pieces_of_body",
        "_progress",
        "_refusal",
        "_response",
        "_seen",
        "_total_ends_s",
        "_transport",
        "_wait_s",
        "_writes",
        "deadline_s",
        "idle_since_s",
        "is_fresh",
        "is_member",
        "key",
        "look_s",
        "on_body",
    )

    def __init__(
        self,
        owner: ConnectionOwner,
        key: PoolKey,
        loop: asyncio.AbstractEventLoop,
        *,
        writes: WriteBatch,
        max_head_bytes: int,
        max_body_bytes: int,
    ) -> None:
        self._owner = owner
        self._loop = loop
        self._writes = writes
        self.key = key
        self.idle_since_s = 0.0
        self.is_fresh = True  # it has carried no request yet
        self.is_member = False  # counted among the pool's connections, and to be counted out by `forget`
        self.deadline_s = inf  # the pool's ticker calls time_out after it
        self.look_s = inf  # the pool's ticker calls look after it
        self._progress: Callable[[], int] | None = None  # of a stream that is watched
        self._seen = 0  # its value at the last look
        self._gap_s = self._gap_ends_s = inf
        self._max_head_bytes = max_head_bytes
        self._max_body_bytes = max_body_bytes
        self._transport: Any = None
        self._fd = -1
        self._response: PendingResponse | None = None
        self._parser: Any = None
        self._pieces: list[bytes] = []  # of bodies, as the parser found them in what has just arrived
        self._pieces_of_body = -1  # how many of them belong to the response; -1 = all
        self.on_body = self._pieces.append  # called by the parser
        self._is_lost = self._is_paused = self._is_full = self._is_last = self._is_uploading = False
        self._is_large = False  # the request under way was uploaded

    # ---- for the pool

    @property
    def awaits_head(self) -> bool:
        """Whether a request was sent whose response head has not arrived."""
        return self._response is not None and not self._response.status

    @property
    def awaits_body(self) -> bool:
        """Whether a response's head has arrived, and the rest has not."""
        return self._response is not None and bool(self._response.status)

    @property
    def address(self) -> str:
        """The address that it leads to; "" = it is closed."""
        peer = self._transport.get_extra_info("peername") if self._transport is not None else None
        return str(peer[0]) if isinstance(peer, tuple) else ""

    def retire(self) -> None:
        """Close it after the response under way."""
        self._is_last = True

    def is_usable(self, *, look: bool) -> bool:
        """Say whether a request can be sent on it.

        Args:
            look: Ask the kernel too, for a close that the loop has not seen yet.
        """
        if self._is_lost or self._transport.is_closing():
            return False
        if look and self._fd >= 0:
            poll = select.poll()
            poll.register(self._fd, READABLE)
            return not poll.poll(0)  # nothing may arrive while no request is under way
        return True

    def start(
        self,
        message: bytes,
        *,
        is_head: bool,
        idle_s: float | None,
        ends_s: float,
        is_begun: bool = False,
    ) -> PendingResponse:
        """Write a request, or the first part of one, and return its pending response.

        Args:
            message: Head and body, or the head alone if `upload` writes the body.
            is_head: The method is HEAD: the response has no body, whatever its head says.
            idle_s: Longest silence in seconds; None = no limit.
            ends_s: When the whole request is out of time, in the loop's time.
            is_begun: It is the first part of a request, and `upload` follows.
        """
        self._response = response = PendingResponse(self, self._max_body_bytes)
        self.is_fresh = False
        self._is_head = is_head
        self._idle_s = inf if idle_s is None else idle_s
        self._ends_s = ends_s
        self._content_s = 0.0  # of a stream whose first content is awaited
        self._limit = UNREAD_BYTES
        self._other_bytes = 0
        self._refusal = ""
        self._is_large = False
        self._pieces_of_body = -1
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        if is_begun:
            self._transport.write(message)
        else:
            self._writes.write(self._transport, message)
        return response

    async def upload(self, response: PendingResponse, body: bytes) -> None:
        """Write a large body slice by slice; stop when the server responds before its end."""
        self._is_uploading = self._is_large = True
        rest = memoryview(body)
        while rest and not response.status and response.error is None and not self._transport.is_closing():
            if self._is_full:
                await self.wait(response, "upload", self._idle_s)
            else:
                self._transport.write(rest[:SLICE_BYTES])
                rest = rest[SLICE_BYTES:]
        if rest:
            self._is_last = True  # the server would read the next request as the rest of this body
        else:
            self._is_uploading = False

    def wait(self, response: PendingResponse, phase: str, limit_s: float) -> Signal:
        """Set the deadline of the next event and return a signal for it.

        Args:
            response: The response that is waited for.
            phase: `first_byte`, `idle` or `upload`, for the error's text.
            limit_s: Seconds from now; inf = no limit.
        """
        assert response.signal is None, "a response can have one reader only"
        self._phase, self._wait_s = phase, limit_s
        deadline_s = self._loop.time() + limit_s
        self.deadline_s = deadline_s if deadline_s < self._ends_s else self._ends_s
        response.signal = signal = Signal()
        return signal

    def time_out(self) -> None:
        """Fail the request that took too long; called by the ticker."""
        host, port = self.key[:2]
        phase, limit_s = self._phase, self._wait_s
        if self.deadline_s >= self._ends_s:
            if not self._content_s:
                error = UpstreamTimeout(f"{host}:{port} did not complete its response in time", phase="total")
                self.abort(error)
                return
            phase, limit_s = "content" if self.awaits_body else "first_byte", self._content_s
        error = UpstreamTimeout(
            f"{host}:{port} {TOO_SLOW[phase]} within {limit_s:.3g} s", phase=PHASES.get(phase, phase)
        )
        self.abort(error)

    def look(self, now_s: float) -> None:
        """Fail a watched stream that has had no content for too long; called by the ticker.

        Time in which its reader does not want more, because its own client does not read, does not count.
        """
        response = self._response
        if response is None or self._progress is None:
            self.look_s = inf
            return
        progress = self._progress()
        is_read = response.signal is not None or response.on_event is not None
        if progress != self._seen or not is_read:
            self._seen, self._gap_ends_s = progress, now_s + self._gap_s
        elif now_s >= self._gap_ends_s:
            host, port = self.key[:2]
            text = f"{host}:{port} sent no content for {self._gap_s:.3g} s"
            self.abort(UpstreamTimeout(text, phase="total"))
            return
        self.look_s = min(now_s + self._gap_s / LOOKS, self._gap_ends_s)

    def abandon(self) -> None:
        """Abort it from any thread: the garbage collector, which found a dropped response, may run in any."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.abort, None)

    def abort(self, error: WireError | None) -> None:
        """Close at once; the reader of a response gets `error`."""
        if self._is_lost:
            return
        self._is_lost = True
        response = self._detach(
            error or BrokenResponse("the response was abandoned before its end", phase="closed")
        )
        self._parser = None  # they refer to each other
        self._owner.forget(self)
        self._transport.abort()
        if response is not None:
            response.wake()

    def expect_content(self, content_s: float, gap_s: float | None) -> None:
        """Limit the time to the first content of a stream, from now on (see Timeouts)."""
        self._total_ends_s, self._gap_s = self._ends_s, inf if gap_s is None else gap_s
        content_ends_s = self._loop.time() + content_s
        if content_ends_s < self._ends_s:
            self._ends_s, self._content_s = content_ends_s, content_s

    # ---- for the reader

    def watch(self, progress: Callable[[], int] | None) -> None:
        """Lift the limits of a response that has begun (see UpstreamResponse.watch)."""
        if self._content_s:
            self._ends_s, self._content_s = self._total_ends_s, 0.0
        if progress is not None:
            self._ends_s = self.deadline_s = inf
            self._progress, self._seen = progress, -1
            self.look_s = 0.0  # the next tick takes the time

    def next_event(self, response: PendingResponse) -> Signal:
        """Return a signal for the next chunk, the end, or an error."""
        return self.wait(response, "idle", self._idle_s)

    def end_wait(self) -> None:
        """Note that no reader waits any more: only the total time-out applies."""
        self.deadline_s = self._ends_s

    def want_whole(self, response: PendingResponse) -> None:
        """Wake the reader at the end only, and buffer up to the pool's limit for it."""
        response.wants_whole = True
        self._limit = self._max_body_bytes
        if response.unread_bytes > self._limit:
            self.abort(response.too_large())
        else:
            self.read_on()

    def read_on(self) -> None:
        """Resume reading from the socket, if it was paused."""
        if self._is_paused:
            self._is_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    # ---- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = transport
        sock = transport.get_extra_info("socket")
        self._fd = -1 if sock is None else sock.fileno()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, then wake the reader, complete the response, or fail it."""
        response = self._response
        if response is None:
            self.abort(None)  # unsolicited bytes: this connection cannot be trusted
            return
        had_head, size = response.status, response.unread_bytes
        if not had_head:
            response.head.append(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserUpgrade, httptools.HttpParserError) as exc:
            self._note_unreadable(response, exc)
        if self._pieces:
            self._take_pieces(response)
        if not had_head or response.unread_bytes == size:
            self._other_bytes += len(data)
            if self._other_bytes > self._max_head_bytes:
                self._check_head_size(response, had_head)
        else:
            self._other_bytes = 0
        if self._refusal:
            self.abort(BrokenResponse(self._refusal, phase="broken" if response.status else "head"))
        elif response.is_complete:
            self._finish(response)
        elif response.status and (response.unread_bytes != size or not had_head):
            if response.wants_whole or response.on_event is not None:  # its reader waits on: it is not idle
                self.deadline_s = min(self._loop.time() + self._idle_s, self._ends_s)
            else:
                self.deadline_s = self._ends_s  # no reader waits any more: only the total time-out applies
            if not response.wants_whole:
                response.wake()

    def _note_unreadable(self, response: PendingResponse, error: Exception) -> None:
        if isinstance(error, httptools.HttpParserUpgrade):
            self._refusal = "the server tried to switch protocols"
        elif response.is_complete:
            self._is_last = True  # only what follows the response is invalid: drop the connection with it
        else:
            self._refusal = f"the response is not valid HTTP: {error}"

    def pause_writing(self) -> None:
        """Note that the socket's write buffer is full."""
        self._is_full = True

    def resume_writing(self) -> None:
        """Go on with an upload."""
        self._is_full = False
        if self._is_uploading and self._response is not None:
            self._response.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Complete or fail the response under way, by what had arrived of it.

        1. a head without a length, and a clean close   → the response is complete
        2. part of a response                           → broken
        3. nothing of it                                → stale
        """
        if exc is not None and not self._is_lost:
            self._take_unread()
        if self._is_lost:
            return
        self._is_lost = True
        response = self._response
        if response is not None:
            error: WireError | None = None
            if response.status and exc is None and not response.is_framed():  # 1
                response.is_complete = True
            elif response.status or self._other_bytes:  # 2
                error = BrokenResponse(
                    "the server closed the connection in the middle of the response",
                    phase="broken" if response.status else "head",
                )
            else:  # 3
                # A broken pipe was there before we wrote: the server cannot have read the whole request.
                error = StaleConnection(
                    "the server closed the connection without a response",
                    phase="first_byte",
                    was_sent=not isinstance(exc, BrokenPipeError),
                )
            self._detach(error)
        self._parser = None
        self._owner.forget(self)
        if response is not None:
            response.wake()

    # ---- called by the parser

    def on_message_begin(self) -> None:
        """Notice a second response."""
        if self._response is None or self._response.is_complete:
            self._is_last = True  # an unsolicited second response: not read, the connection is closed

    def on_headers_complete(self) -> None:
        """Take the status; interim responses (1xx) are skipped."""
        response = self._response
        if response is None or response.status:
            return
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue, 103 Early Hints: the response follows
            if status == 101 or status < 100:
                self._refusal = f"the server responded with status {status}"
            return
        response.status = status
        if self._is_head:  # its head describes a body that is not sent
            response.is_complete = True
            self._pieces_of_body = len(self._pieces)
            self._is_last = self._is_last or not self._parser.should_keep_alive()

    def _take_pieces(self, response: PendingResponse) -> None:
        """Buffer what has arrived of the body; pause the socket when the reader is too slow."""
        pieces, count = self._pieces, self._pieces_of_body
        if 0 <= count < len(pieces):
            self._is_last = True  # of an unsolicited second response
            del pieces[count:]
        if not pieces or not response.status:
            pieces.clear()
            return
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        response.chunks.append(data)
        response.unread_bytes += len(data)
        if response.unread_bytes > self._limit:
            if response.wants_whole:
                self._refusal = response.too_large().message
            elif not self._is_paused and response.on_event is None:
                self._is_paused = True
                self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """Mark the response as complete."""
        response = self._response
        if response is None or not response.status or response.is_complete:
            return  # the end of a 1xx, or of an unsolicited response
        response.is_complete = True
        self._pieces_of_body = len(self._pieces)
        if not self._parser.should_keep_alive():
            self._is_last = True

    # ---- internal

    def _take_unread(self) -> None:
        """Read what the server sent before it reset the connection, as a 413 to half a body."""
        if self._fd < 0 or self.key[2] or self._response is None:
            return
        try:
            data = os.read(self._fd, UNREAD_BYTES)
        except OSError:
            return  # it sent nothing
        if data:
            self.data_received(data)

    def _finish(self, response: PendingResponse) -> None:
        """Return the connection to the pool, or close it if no other request may follow; wake the reader."""
        self._detach(None)
        # After an error the server may never read the rest of a large body: the next request would wait.
        if self._is_last or self._is_uploading or (self._is_large and response.status >= 400):
            self.abort(None)
        else:
            if self._is_head:
                self._parser = None  # it waits for the body that the head describes
            self.read_on()
            self._owner.release(self)
        response.wake()  # last: its next request may use this connection at once

    def _detach(self, error: WireError | None) -> PendingResponse | None:
        """Detach the response under way, and return it; its reader is to be woken."""
        response, self._response = self._response, None
        self.deadline_s = self.look_s = inf
        self._progress = None
        if response is not None:
            response.connection = None
            response.error = error
            if error is not None:
                error.has_begun = response.status != 0
        return response

    def _check_head_size(self, response: PendingResponse, had_head: int) -> None:
        """Refuse a head or trailers that are too large; body bytes that arrived with them do not count."""
        if response.status and not had_head:
            self._other_bytes = sum(len(name) + len(value) + 4 for name, value in response.fields)
        if self._other_bytes > self._max_head_bytes:
            self._refusal = f"the response head is larger than {self._max_head_bytes} bytes"
        self._other_bytes = 0
