"""Streams that begin late, because their model loads or every server is full.

Headers and heartbeats go out meanwhile, so that no client and no proxy on the way gives up.

    1. the response is there within HEARTBEAT_S   → that response: a stream, or a real error status
    2. it takes longer                            → 200 and heartbeats until it comes; a failure then is
                                                    rendered inside the stream, in its dialect

What a heartbeat is depends on the dialect: a comment among server-sent events; a space before the next line
of NDJSON, where no line begins with one and every JSON reader skips it.
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
    """Wait for a response, or begin it without.

    Args:
        responding: Cancelled when the client leaves.
        form: How a stream of this dialect looks, without its pieces.
        heartbeat_s: Longest wait before the response begins, and between heartbeats; 0 = wait for ever.
        late_headers: Returns headers for a stream that begins late, such as its position in the queue.

    Raises:
        ApplianceError: What `responding` raises in time.
    """
    if not heartbeat_s:
        return await responding
    pending = asyncio.ensure_future(responding)  # noqa: TID251 - awaited or cancelled below, in both cases
    try:
        done, _ = await asyncio.wait({pending}, timeout=heartbeat_s)
    except asyncio.CancelledError:
        await _give_up(pending)
        raise
    if done:  # 1
        return pending.result()
    late = LateStream(pending, form.heartbeat, heartbeat_s)  # 2
    return replace(form, headers=[*form.headers, *late_headers()], pieces=late)


class LateStream(Stream):
    """Heartbeats until the response is there, then its pieces. Closing it gives the response up."""

    def __init__(self, pending: "asyncio.Future[Response]", heartbeat: bytes, heartbeat_s: float) -> None:
        self._pending = pending
        self._heartbeat, self._heartbeat_s = heartbeat, heartbeat_s
        self._pieces: Stream | None = None
        self._is_first = True

    @property
    def events(self) -> int:
        """How many events have come, where the stream counts them."""
        return self._pieces.events if self._pieces is not None else 0

    @property
    def outcome(self) -> Outcome | None:
        """How the attempt behind it ended, once it has."""
        return self._pieces.outcome if self._pieces is not None else None

    async def __anext__(self) -> bytes:
        if self._is_first:  # the headers go out with it
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
        """Give the response up, and close its stream if it has begun."""
        await _give_up(self._pending)


async def _one(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


async def _give_up(pending: "asyncio.Future[Response]") -> None:
    """Cancel a response that is not waited for any more, and close its stream if it has begun."""
    if not pending.done():
        pending.cancel()
        await asyncio.wait({pending})
    if pending.cancelled() or pending.exception() is not None:
        return
    pieces = pending.result().pieces
    if pieces is not None:
        await pieces.aclose()
