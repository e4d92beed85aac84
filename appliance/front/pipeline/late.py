"""Streams whose engine answers late, because the model is loading or every server is full.

Headers and heartbeats are sent meanwhile, so that neither the client nor a proxy in between times out.

    1. the engine answers within HEARTBEAT_S   → its response: a stream, or an error with its status
    2. it takes longer                         → 200 and heartbeats until it answers; a failure then is
                                                 rendered inside the stream, in its dialect

A heartbeat is a comment in server-sent events, and in NDJSON a space before the next line, which every JSON
parser skips.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace

from appliance.engines.outcome import Outcome
from appliance.engines.stream import GeneratedStream, Stream
from appliance.front.pipeline.replies import parse_error_reply
from appliance.front.pipeline.response import Response

Headers = list[tuple[str, str]]


async def respond_or_heartbeat(
    responding: Awaitable[Response],
    form: Response,
    *,
    heartbeat_s: float,
    late_headers: Callable[[], Headers] = list,
) -> Response:
    """Wait for a response; after `heartbeat_s` begin a stream without it.

    Args:
        responding: Makes the response; cancelled when the client leaves.
        form: The stream's headers and rendering of errors, without pieces.
        heartbeat_s: Longest wait before the stream begins, and between heartbeats; 0 = wait for ever.
        late_headers: Returns more headers for a stream that begins late, such as the position in the queue.

    Raises:
        ApplianceError: What `responding` raises in time.
    """
    if not heartbeat_s:
        return await responding
    pending = asyncio.ensure_future(responding)  # noqa: TID251 - awaited, or cancelled below
    try:
        done, _ = await asyncio.wait({pending}, timeout=heartbeat_s)
    except asyncio.CancelledError:
        await _cancel_or_close(pending)
        raise
    if done:  # 1
        return pending.result()
    late = LateStream(pending, form.heartbeat, heartbeat_s)  # 2
    return replace(form, headers=[*form.headers, *late_headers()], pieces=late)


class LateStream(Stream):
    """Heartbeats until the response has arrived, then its pieces. Closing it cancels a pending response."""

    def __init__(self, pending: "asyncio.Future[Response]", heartbeat: bytes, heartbeat_s: float) -> None:
        self._pending = pending
        self._heartbeat, self._heartbeat_s = heartbeat, heartbeat_s
        self._pieces: Stream | None = None
        self._is_first = True

    @property
    def events(self) -> int:
        """Events of the engine that were passed on."""
        return self._pieces.events if self._pieces is not None else 0

    @property
    def outcome(self) -> Outcome | None:
        """How the attempt behind it ended; None while it runs."""
        return self._pieces.outcome if self._pieces is not None else None

    async def __anext__(self) -> bytes:
        if self._is_first:  # the headers are sent with it
            self._is_first = False
            return self._heartbeat
        if self._pieces is None:
            done, _ = await asyncio.wait({self._pending}, timeout=self._heartbeat_s)
            if not done:
                return self._heartbeat
            response = self._pending.result()
            if response.status >= 400:
                raise parse_error_reply(response.status, response.body)
            self._pieces = response.pieces or GeneratedStream(_one(response.body))
        return await anext(self._pieces)

    async def aclose(self) -> None:
        """Cancel a pending response, or close its stream."""
        await _cancel_or_close(self._pending)


async def _one(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


async def _cancel_or_close(pending: "asyncio.Future[Response]") -> None:
    """Cancel a pending response; close the stream of one that has arrived."""
    if not pending.done():
        pending.cancel()
        await asyncio.wait({pending})
    if pending.cancelled() or pending.exception() is not None:
        return
    pieces = pending.result().pieces
    if pieces is not None:
        await pieces.aclose()
