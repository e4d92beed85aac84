"""The body of a request, read piece by piece through aiohttp, with limits of size and time."""

import asyncio
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from appliance.base.errors import ApplianceError, Invalid, TimedOut
from appliance.front.pipeline.pipeline import too_large

# Lowest mean rate, in bytes per second, of a body that takes longer than BODY_TIMEOUT_S.
LEAST_BODY_BYTES_S = 500
RELEASE_STEPS = 10  # of the event loop; a cancelled reader needs two or three


class Upload:
    """The body of one request.

    Attributes:
        has_begun: Whether reading has begun: from then on the body cannot be sent a second time.
        error: Why reading failed; the sender sees only that sending failed. None = it did not fail.
        head: What was read before it is sent, see `peek`.
    """

    def __init__(self, request: web.Request, *, limit_bytes: int, patience_s: float) -> None:
        """Prepare to read; nothing is read yet.

        Args:
            limit_bytes: Largest body.
            patience_s: Longest pause of the client, seconds.
        """
        self._request = request
        self._limit_bytes = limit_bytes
        self._patience_s = patience_s
        self.has_begun = False
        self._is_reading = False
        self.error: ApplianceError | None = None
        self.head = b""
        self._pieces = self._read_pieces()

    async def peek(self, limit_bytes: int, is_enough: Callable[[bytes], bool]) -> bytes:
        """Read the beginning of the body, which `pieces` yields all the same.

        Args:
            limit_bytes: Read no more once there is so much.
            is_enough: Whether what was read so far suffices.

        Raises:
            TooLarge, TimedOut, Invalid: As `pieces` does.
        """
        while len(self.head) < limit_bytes and not is_enough(self.head):
            piece = await anext(self._pieces, b"")
            if not piece:
                break
            self.head += piece
        return self.head

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives; what was read of it already, first.

        Raises:
            TooLarge: It is larger than the limit.
            TimedOut: The client paused for too long, or it sends too slowly.
            Invalid: Its framing cannot be read.
        """
        self.has_begun = True
        if self.head:
            yield self.head
        async for piece in self._pieces:
            yield piece

    async def _read_pieces(self) -> AsyncIterator[bytes]:
        now_s = asyncio.get_running_loop().time
        size, waited_s = 0, 0.0  # only the time spent waiting for the client, not for the server
        while True:
            began_s = now_s()
            try:
                # Python 3.11's wait_for may swallow the cancellation of the sender.
                async with asyncio.timeout(self._patience_s):
                    piece = await self._read()
            except TimeoutError:
                raise self._timed_out() from None
            except (web.HTTPException, web.RequestPayloadError, ValueError):
                self.error = Invalid("The request body cannot be read: its framing or encoding is malformed.")
                raise self.error from None
            if not piece:
                return
            size += len(piece)
            waited_s += now_s() - began_s
            if waited_s > self._patience_s and size < waited_s * LEAST_BODY_BYTES_S:
                raise self._timed_out()
            if size > self._limit_bytes:
                self.error = too_large(self._limit_bytes)
                raise self.error
            yield piece

    async def _read(self) -> bytes:
        self._is_reading = True
        try:
            return await self._request.content.readany()
        finally:
            self._is_reading = False

    async def wait_released(self) -> None:
        """Wait until the sender, which has been cancelled, no longer reads: then aiohttp reads the rest."""
        for _ in range(RELEASE_STEPS):
            if not self._is_reading:
                return
            await asyncio.sleep(0)

    def _timed_out(self) -> ApplianceError:
        self.error = TimedOut(
            "The request body did not arrive in time (BODY_TIMEOUT_S).",
            code="body_timeout",
            details={"status": 408},
        )
        return self.error

    async def read(self) -> bytes:
        """Return the whole body; raises what `pieces` raises."""
        return b"".join([piece async for piece in self.pieces()])
