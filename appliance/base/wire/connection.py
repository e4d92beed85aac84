"""One upstream connection: bytes in, `Answer` filled. Used by `wire.Wire` alone; callers hold a `Response`.

An answer that has arrived to its end gives its connection back at once, also before anybody has read it.
"""

import asyncio
import select
from math import inf
from typing import Any, Protocol

import httptools

from appliance.base.wire.types import BrokenResponse, PoolKey, StaleConnection, UpstreamTimeout, WireError

UNREAD_BYTES = 256 * 1024  # more than this waiting for the reader, and the socket is not read on
SLICE_BYTES = 128 * 1024  # a larger request is written in slices, as the server takes them
READABLE = select.POLLIN | select.POLLPRI | select.POLLHUP | select.POLLERR

TOO_SLOW = {
    "first_byte": "sent no answer",
    "idle": "fell silent in its answer",
    "upload": "took no more of the request",
}


class ConnectionOwner(Protocol):
    """What a connection tells its pool."""

    def release(self, connection: "Connection") -> None: ...
    def forget(self, connection: "Connection") -> None: ...


class PendingResponse:
    """What has arrived of one answer; outlives the connection's part in it, and is never used for another."""

    __slots__ = (
        "connection",
        "error",
        "fields",
        "is_complete",
        "max_bytes",
        "pieces",
        "size",
        "status",
        "waiter",
        "wants_all",
    )

    def __init__(self, connection: "Connection", max_bytes: int) -> None:
        self.connection: Connection | None = connection  # None: it has ended, one way or the other
        self.max_bytes = max_bytes  # of the body, where it is read whole
        self.status = 0  # 0: the head is not complete
        self.fields: list[tuple[bytes, bytes]] = []
        self.pieces: list[bytes] = []  # unread
        self.size = 0  # bytes in `pieces`
        self.is_complete = False
        self.wants_all = False  # the reader wants no pieces, only the whole
        self.error: WireError | None = None
        self.waiter: asyncio.Future[None] | None = None

    def too_large(self) -> BrokenResponse:
        return BrokenResponse(
            f"the answer is larger than {self.max_bytes} bytes", phase="broken", has_begun=True
        )

    def wake(self) -> None:
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)

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
    """Carries one exchange at a time."""

    __slots__ = (
        "_answer",
        "_ends_s",
        "_fd",
        "_idle_s",
        "_is_full",
        "_is_head",
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
        "_refusal",
        "_transport",
        "deadline_s",
        "idle_since_s",
        "is_fresh",
        "is_member",
        "key",
    )

    def __init__(
        self,
        owner: ConnectionOwner,
        key: PoolKey,
        loop: asyncio.AbstractEventLoop,
        *,
        max_head_bytes: int,
        max_body_bytes: int,
    ) -> None:
        self._owner = owner
        self._loop = loop
        self.key = key
        self.idle_since_s = 0.0
        self.is_fresh = True  # it has carried no request yet
        self.is_member = False  # counted among the pool's connections, and to be counted out by `forget`
        self.deadline_s = inf  # the pool's ticker calls time_out after it
        self._max_head_bytes = max_head_bytes
        self._max_body_bytes = max_body_bytes
        self._transport: Any = None
        self._fd = -1
        self._answer: PendingResponse | None = None
        self._parser: Any = None
        self._is_lost = self._is_paused = self._is_full = self._is_last = self._is_uploading = False

    # ---- for the pool

    @property
    def awaits_head(self) -> bool:
        """Whether a request is out of whose answer nothing usable has arrived."""
        return self._answer is not None and not self._answer.status

    def is_usable(self, *, look: bool) -> bool:
        """Say whether a request can go out on it. `look`: ask the kernel too, for an end that the loop has not seen yet."""
        if self._is_lost or self._transport.is_closing():
            return False
        if look and self._fd >= 0:
            poll = select.poll()
            poll.register(self._fd, READABLE)
            return not poll.poll(0)  # nothing may come in while no request is out
        return True

    def start(self, message: bytes, *, is_head: bool, idle_s: float | None, ends_s: float) -> PendingResponse:
        """Write a request, or the first part of one, and give the answer that is to come."""
        self._answer = answer = PendingResponse(self, self._max_body_bytes)
        self.is_fresh = False
        self._is_head = is_head
        self._idle_s = inf if idle_s is None else idle_s
        self._ends_s = ends_s
        self._limit = UNREAD_BYTES
        self._other_bytes = 0
        self._refusal = ""
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(message)
        return answer

    async def upload(self, answer: PendingResponse, body: bytes) -> None:
        """Write the rest of a large request slice by slice; stop when the server answers before its end."""
        self._is_uploading = True
        rest = memoryview(body)
        while rest and not answer.status and answer.error is None:
            if self._is_full:
                await self.wait(answer, "upload", self._idle_s)
            else:
                self._transport.write(rest[:SLICE_BYTES])
                rest = rest[SLICE_BYTES:]
        if rest:
            self._is_last = True  # the server would take the next request for the rest of this one
        else:
            self._is_uploading = False

    def wait(self, answer: PendingResponse, phase: str, limit_s: float) -> asyncio.Future[None]:
        """Set the deadline of the next thing to come and give a future for it."""
        assert answer.waiter is None, "two readers of one answer"
        self._phase = phase
        deadline_s = self._loop.time() + limit_s
        self.deadline_s = deadline_s if deadline_s < self._ends_s else self._ends_s
        answer.waiter = waiter = self._loop.create_future()
        return waiter

    def time_out(self) -> None:
        """End what took too long; called by the ticker."""
        host, port = self.key[:2]
        if self.deadline_s >= self._ends_s:
            self.abort(UpstreamTimeout(f"{host}:{port} did not finish in time", phase="total"))
        else:
            phase = "first_byte" if self._phase == "upload" else self._phase
            self.abort(UpstreamTimeout(f"{host}:{port} {TOO_SLOW[self._phase]} in time", phase=phase))

    def abandon(self) -> None:
        """Abort it from wherever a response was dropped: the garbage collector may run in any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.abort, None)

    def abort(self, error: WireError | None) -> None:
        """Close at once; who waits for an answer gets `error`."""
        if self._is_lost:
            return
        self._is_lost = True
        self._part(error or BrokenResponse("the answer was given up before its end", phase="closed"))
        self._owner.forget(self)
        self._transport.abort()

    # ---- for the reader

    def next_thing(self, answer: PendingResponse) -> asyncio.Future[None]:
        """Give a future for the next piece, the end, or an error."""
        return self.wait(answer, "idle", self._idle_s)

    def want_all(self, answer: PendingResponse) -> None:
        """Wake the reader at the end only, and hold up to the pool's limit for it."""
        answer.wants_all = True
        self._limit = self._max_body_bytes
        if answer.size > self._limit:
            self.abort(answer.too_large())
        else:
            self.read_on()

    def read_on(self) -> None:
        if self._is_paused:
            self._is_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    # ---- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        sock = transport.get_extra_info("socket")
        self._fd = -1 if sock is None else sock.fileno()

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:
            self.abort(None)  # bytes that nobody asked for: this connection cannot be trusted
            return
        had_head, size = answer.status, answer.size
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refusal = "the server wants to switch protocols"
        except httptools.HttpParserError as exc:
            if (
                answer.is_complete
            ):  # the answer was whole; what follows it is rubbish, so the connection ends with it
                self._is_last = True
            else:
                self._refusal = f"the answer is no HTTP: {exc}"
        if not had_head or answer.size == size:
            self._other_bytes += len(data)
            if self._other_bytes > self._max_head_bytes:
                self._measure(answer, had_head)
        else:
            self._other_bytes = 0
        if self._refusal:
            self.abort(BrokenResponse(self._refusal, phase="broken" if answer.status else "head"))
        elif answer.is_complete:
            self._finish(answer)
        elif answer.status and (answer.size != size or not had_head):
            if answer.wants_all:  # a whole that keeps coming is not idle
                self.deadline_s = min(self._loop.time() + self._idle_s, self._ends_s)
            else:
                self.deadline_s = self._ends_s  # nobody waits any more: only the total time runs
                answer.wake()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        if self._is_uploading and self._answer is not None:
            self._answer.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_lost:
            return
        self._is_lost = True
        answer = self._answer
        if answer is not None:
            if answer.status and exc is None and not answer.is_framed():
                answer.is_complete = True  # such an answer ends with its connection
                self._part(None)
            elif answer.status or self._other_bytes:
                self._part(
                    BrokenResponse(
                        "the server closed the connection in the middle of its answer",
                        phase="broken" if answer.status else "head",
                    )
                )
            else:
                # A broken pipe is an end that was there before we wrote: the server cannot have read the request whole.
                self._part(
                    StaleConnection(
                        "the server closed the connection without an answer",
                        phase="first_byte",
                        was_sent=not isinstance(exc, BrokenPipeError),
                    )
                )
        self._owner.forget(self)

    # ---- the parser's calls

    def on_message_begin(self) -> None:
        if self._answer is None or self._answer.is_complete:
            self._is_last = (
                True  # a second answer that nobody asked for: it is not read, and the connection ends
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        answer = self._answer
        if (
            answer is not None and not answer.status
        ):  # later ones are trailers: they must not pass for headers
            answer.fields.append((name, value))

    def on_headers_complete(self) -> None:
        answer = self._answer
        if answer is None or answer.status:
            return
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue, 103 Early Hints: the answer is still to come
            answer.fields.clear()
            if status == 101 or status < 100:
                self._refusal = f"the server answered with status {status}"
            return
        answer.status = status
        if self._is_head:  # its head speaks of a body that is not sent
            answer.is_complete = True
            self._is_last = self._is_last or not self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        answer = self._answer
        if answer is None or answer.is_complete:
            self._is_last = True
            return
        answer.pieces.append(data)
        answer.size += len(data)
        if answer.size > self._limit:
            if answer.wants_all:
                self._refusal = answer.too_large().message
            elif not self._is_paused:
                self._is_paused = True
                self._transport.pause_reading()

    def on_message_complete(self) -> None:
        answer = self._answer
        if (
            answer is None or not answer.status or answer.is_complete
        ):  # the end of a 1xx, or of what nobody asked for
            return
        answer.is_complete = True
        if not self._parser.should_keep_alive():
            self._is_last = True

    # ---- its own

    def _finish(self, answer: PendingResponse) -> None:
        """The answer is whole: give the connection back, or end it if no other request may follow."""
        if self._is_last or self._is_uploading:
            self._part(None)
            self.abort(None)
            return
        self._part(None)
        self.read_on()
        self._owner.release(self)

    def _part(self, error: WireError | None) -> None:
        """Let go of the answer under way, and wake its reader."""
        answer, self._answer, self._parser = self._answer, None, None
        self.deadline_s = inf
        if answer is not None:
            answer.connection = None
            answer.error = error
            if error is not None:
                error.has_begun = answer.status != 0
            answer.wake()

    def _measure(self, answer: PendingResponse, had_head: int) -> None:
        """Refuse too much that is no body; count exactly, for the head and much of the body may have come in one piece."""
        if answer.status and not had_head:
            self._other_bytes = sum(len(name) + len(value) + 4 for name, value in answer.fields)
        if self._other_bytes > self._max_head_bytes:
            self._refusal = f"the head of the answer is larger than {self._max_head_bytes} bytes"
        self._other_bytes = 0
