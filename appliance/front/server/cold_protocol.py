"""aiohttp's reader of requests that are not hot, without aiohttp's own pages and log lines.

What cannot be read is answered in the appliance's dialect, and no byte of the client gets into the log.
"""

from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

RenderError = Callable[[int, BaseException | None, str], web.Response]


class ColdProtocol(web.RequestHandler):
    """One connection of aiohttp's."""

    __slots__ = ("_render_error",)

    def __init__(self, server: web.Server, *, render_error: RenderError, **options: Any) -> None:
        """Make the protocol.

        Args:
            render_error: Renders what aiohttp would answer by itself: (status, error, the client's address).
            options: aiohttp's.
        """
        super().__init__(server, **options)
        self._render_error = render_error

    def data_received(self, data: bytes) -> None:
        """Take what has arrived; a body that turns out to be malformed ends the request that waits for it."""
        super().data_received(data)
        if not self._messages or not hasattr(self._messages[-1][0], "exc"):
            return
        request = self._current_request  # aiohttp queues the error behind it, and lets it wait
        if request is not None and not request.content.is_eof():
            request.content.set_exception(web.RequestPayloadError("malformed framing"))

    def is_idle(self) -> bool:
        """Whether it waits for the head of a request (InnerProtocol)."""
        return self._waiter is not None and not self._messages

    def retire(self) -> None:
        """Leave the connection to another protocol (InnerProtocol)."""
        self.transport = None  # else it would be closed
        self.connection_lost(None)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that cannot be read, or whose handler failed."""
        if request.writer.output_size > 0:
            raise ConnectionError("a response has begun: the connection ends")
        return self._render_error(status, exc, request.remote or "unix")

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log a fault; what the client did wrong was answered, and its bytes do not go into the log."""
        if not is_unreadable(kw.get("exc_info")):
            super().log_exception(*args, **kw)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send a response; in place of aiohttp's own pages one of ours."""
        if isinstance(resp, web.HTTPException):
            resp = self._render_error(resp.status, resp, request.remote or "unix")
        return await super().finish_response(request, resp, start_time)


def is_unreadable(error: BaseException | None) -> bool:
    """Whether an error of aiohttp's is the client's: its request cannot be read, or not written as text."""
    return isinstance(error, (HttpProcessingError, web.RequestPayloadError, UnicodeError))
