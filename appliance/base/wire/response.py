"""A response as callers of the pool see it: to be read whole, in chunks, or dropped."""

import re
from collections.abc import AsyncIterator, Callable

from appliance.base.inline import Signal
from appliance.base.wire.connection import PendingResponse
from appliance.base.wire.types import BrokenResponse

INTERIM = b"HTTP/1.1 1"  # the beginning of a status line 1xx: another head follows
_CONTENT_TYPE = re.compile(rb"\r\nContent-Type:[ \t]*([^\r\n]*?)[ \t]*\r\n", re.IGNORECASE)


class _Passing:
    """Gives a response's chunks to a reader as they arrive; sets its signal when that is over."""

    __slots__ = ("error", "is_wanted", "pending", "signal", "take")

    def __init__(self, pending: PendingResponse, take: Callable[[bytes], bool], signal: Signal) -> None:
        self.pending, self.take, self.signal = pending, take, signal
        self.is_wanted = True
        self.error: Exception | None = None

    def on_event(self) -> None:
        """Pass on what has arrived."""
        pending = self.pending
        if pending.chunks:
            try:
                self.is_wanted = self.take(pending.take_chunk())
            except Exception as error:  # it must not reach the transport, which would close the connection
                self.error = error
        if pending.connection is None or not self.is_wanted or self.error is not None:
            pending.on_event = None
            if pending.connection is not None:
                pending.connection.end_wait()
            self.signal.set()


class UpstreamResponse:
    """The response to one request. Close it in any case; after its end that does nothing."""

    __slots__ = ("_headers", "_pending", "status")

    def __init__(self, pending: PendingResponse) -> None:
        self._pending = pending
        self._headers: dict[str, str] | None = None
        self.status = pending.status

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """The header fields as they arrived, in order, repeated ones too; without trailers."""
        return self._pending.fields

    @property
    def headers(self) -> dict[str, str]:
        """The header fields by lower-case name, repeated ones joined by commas; without trailers."""
        if self._headers is None:
            self._headers = {}
            for name, value in self._pending.fields:
                key, text = name.decode("latin-1").lower(), value.decode("latin-1")
                self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text
        return self._headers

    @property
    def content_type(self) -> str:
        """The field Content-Type in lower case; "" = there is none."""
        head = self._pending.head
        if self._headers is None and len(head) == 1 and not head[0].startswith(INTERIM):  # almost always
            found = _CONTENT_TYPE.search(head[0], 0, head[0].find(b"\r\n\r\n") + 2)
            return found.group(1).decode("latin-1").lower() if found is not None else ""
        return self.headers.get("content-type", "").lower()

    @property
    def is_complete(self) -> bool:
        """Whether everything has arrived (it may still be unread)."""
        return self._pending.is_complete

    async def read(self) -> bytes:
        """Read the whole body, or what of it `next_chunk` has not returned yet.

        Cancelling closes the connection.

        Raises:
            UpstreamTimeout: Idle or total.
            BrokenResponse: It ended too early, or is longer than the pool's `max_body_bytes`.
        """
        pending = self._pending
        connection = pending.connection
        if connection is not None:
            connection.want_whole(pending)
            if pending.connection is not None:
                try:
                    await connection.next_event(pending)
                except BaseException:
                    self.close()
                    raise
        return self.take_whole()

    def take_whole(self) -> bytes:
        """Return the body of a response that has ended, or what of it `next_chunk` has not returned yet.

        Raises:
            UpstreamTimeout, BrokenResponse: As `read`.
        """
        pending = self._pending
        if pending.error is None and pending.unread_bytes > pending.max_body_bytes:
            pending.error = pending.too_large()
        if pending.error is not None:
            pending.chunks.clear()  # the error's traceback refers to this frame, which would keep them
            pending.unread_bytes = 0
            raise pending.failure()
        return pending.take_chunk()

    async def next_chunk(self) -> bytes | None:
        """Return what has arrived since the last call, or wait for more; None at the end.

        Cancelling closes the connection.

        Raises:
            UpstreamTimeout: Idle or total.
            BrokenResponse: It ended too early; raised after all that had arrived was returned.
        """
        pending = self._pending
        while not pending.chunks:
            if pending.error is not None:
                raise pending.failure()
            connection = pending.connection
            if connection is None:
                return None
            try:
                await connection.next_event(pending)
            except BaseException:
                self.close()
                raise
        chunk = pending.take_chunk()
        if pending.connection is not None:
            pending.connection.read_on()
        return chunk

    async def pass_chunks(self, take: Callable[[bytes], bool]) -> bool:
        """Give each chunk to `take` as it arrives, in the callback that brings it, while `take` returns True.

        Cancelling closes the connection.

        Returns:
            Whether the response has ended; False: `take` has returned False.

        Raises:
            UpstreamTimeout, BrokenResponse: As `next_chunk`.
            Exception: What `take` raises.
        """
        pending = self._pending
        while pending.chunks:
            if not take(pending.take_chunk()):
                return False
        connection = pending.connection
        if connection is not None:
            connection.read_on()
            passing = _Passing(pending, take, connection.next_event(pending))
            pending.signal, pending.on_event = None, passing.on_event
            try:
                await passing.signal
            except BaseException:
                self.close()
                raise
            finally:
                pending.on_event = None
            if passing.error is not None:
                try:
                    raise passing.error
                finally:
                    passing.error = None  # its traceback refers to this frame
            if not passing.is_wanted:
                return False
        if pending.error is not None:
            raise pending.failure()
        return True

    def watch(self, progress: Callable[[], int] | None) -> None:
        """Say that the first content of a stream has arrived: its limits until then are lifted.

        Args:
            progress: Returns how much content has arrived so far; from now on `Timeouts.gap_s` limits the
                time in which it stays the same. None = it is no stream: its total limit still holds.
        """
        if self._pending.connection is not None:
            self._pending.connection.watch(progress)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Iterate over the chunks as they arrive; leaving early closes the response."""
        try:
            while (chunk := await self.next_chunk()) is not None:
                yield chunk
        finally:
            self.close()

    def close(self) -> None:
        """Close it; an incomplete response takes its connection along, which the server sees at once."""
        connection = self._pending.connection
        if connection is not None:
            connection.abort(BrokenResponse("the response was closed before its end", phase="closed"))

    def __del__(self) -> None:
        """Free the pool's slot of a response that was dropped unread."""
        connection = self._pending.connection
        if connection is not None:
            connection.abandon()
