"""What a caller of the pool holds of an answer: read it whole, or piece by piece, or leave it."""

from collections.abc import AsyncIterator

from appliance.base.wire.connection import PendingResponse
from appliance.base.wire.types import BrokenResponse


class UpstreamResponse:
    """The answer to one request. Close it in any case; after its end that costs nothing."""

    __slots__ = ("_answer", "_headers", "status")

    def __init__(self, answer: PendingResponse) -> None:
        self._answer = answer
        self._headers: dict[str, str] | None = None
        self.status = answer.status

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """The fields as they came, in order, repeated ones too. Trailers are not among them."""
        return self._answer.fields

    @property
    def headers(self) -> dict[str, str]:
        """The fields by lower-case name; a repeated one is joined by commas. Trailers are not among them."""
        if self._headers is None:
            self._headers = {}
            for name, value in self._answer.fields:
                key, text = name.decode("latin-1").lower(), value.decode("latin-1")
                self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text
        return self._headers

    @property
    def is_complete(self) -> bool:
        """Whether everything has arrived (it may still be unread)."""
        return self._answer.is_complete

    async def read(self) -> bytes:
        """Give the whole body, or what of it was not yet taken by next_piece.

        Raises  UpstreamTimeout (idle, total) · BrokenAnswer, also above the pool's max_body_bytes. Cancelling closes the connection.
        """
        answer = self._answer
        connection = answer.connection
        if connection is not None:
            connection.want_all(answer)
            if answer.connection is not None:
                waiter = connection.next_thing(answer)
                try:
                    await waiter
                except BaseException:
                    self.close()
                    raise
        if answer.error is None and answer.size > answer.max_bytes:
            answer.error = answer.too_large()
        if answer.error is not None:
            raise answer.error
        pieces = answer.pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        answer.size = 0
        return body

    async def next_chunk(self) -> bytes | None:
        """Give what has arrived since the last call, joined, or wait for more; None at the end.

        Raises  UpstreamTimeout (idle, total) · BrokenAnswer, after all that had arrived before was given. Cancelling closes the
                connection.
        """
        answer = self._answer
        while not answer.pieces:
            if answer.error is not None:
                raise answer.error
            connection = answer.connection
            if connection is None:
                return None
            waiter = connection.next_thing(answer)
            try:
                await waiter
            except BaseException:
                self.close()
                raise
        pieces = answer.pieces
        piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        answer.size = 0
        if answer.connection is not None:
            answer.connection.read_on()
        return piece

    async def pieces(self) -> AsyncIterator[bytes]:
        """Give the pieces as they arrive; leaving early closes the response."""
        try:
            while (piece := await self.next_chunk()) is not None:
                yield piece
        finally:
            self.close()

    def close(self) -> None:
        """End it. Before the whole answer has arrived this closes the connection, which the server sees at once."""
        connection = self._answer.connection
        if connection is not None:
            connection.abort(BrokenResponse("the response was closed before its end", phase="closed"))

    def __del__(self) -> None:
        """A response that was dropped unread must not hold its place in the pool for ever."""
        connection = self._answer.connection
        if connection is not None:
            connection.abandon()
