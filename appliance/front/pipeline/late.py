"""Streams whose engine answers late, because the model is loading or every server is full.

Headers and heartbeats are sent meanwhile, so that neither the client nor a proxy in between times out.

    1. the engine answers within HEARTBEAT_S   → its response: a stream, or an error with its status
    2. it takes longer                         → 200 and heartbeats until it answers; a failure then is
                                                 rendered inside the stream, in its dialect

A heartbeat is a comment in server-sent events, and in NDJSON a space before the next line, which every JSON
parser skips.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import replace
from typing import Any

from appliance.base.inline import InlineRunner, Signal
from appliance.engines.outcome import Outcome
from appliance.engines.stream import GeneratedStream, Stream
from appliance.front.pipeline.replies import parse_error_reply
from appliance.front.pipeline.response import Response

Headers = list[tuple[str, str]]


async def respond_or_heartbeat(
    responding: Coroutine[Any, Any, Response],
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
    pending = LateResponse(responding)
    try:
        await pending.wait(heartbeat_s)
    except asyncio.CancelledError:
        await pending.close()
        raise
    if pending.is_done:  # 1
        return pending.result()
    late = LateStream(pending, form.heartbeat, heartbeat_s)  # 2
    return replace(form, headers=[*form.headers, *late_headers()], pieces=late)


class LateResponse:
    """A response that is being made while something else is done. Close it, unless its result was taken."""

    def __init__(self, responding: Coroutine[Any, Any, Response]) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed: Signal | None = None
        self._runner = InlineRunner(responding, self._on_done, self._loop)
        self._runner.start()

    @property
    def is_done(self) -> bool:
        """Whether it was made, or failed."""
        return self._runner.is_done

    def result(self) -> Response:
        """Return the response, or raise what making it raised."""
        return self._runner.result()

    def _on_done(self) -> None:
        if self._changed is not None:
            self._changed.set()

    async def wait(self, timeout_s: float | None = None) -> None:
        """Wait until it is done, for `timeout_s` seconds at most; None = for ever."""
        if self._runner.is_done:
            return
        self._changed = changed = Signal()
        timer = self._loop.call_later(timeout_s, changed.set) if timeout_s is not None else None
        try:
            await changed
        finally:
            self._changed = None
            if timer is not None:
                timer.cancel()

    async def close(self) -> None:
        """Cancel it; close the stream of one that has arrived."""
        runner = self._runner
        if not runner.is_done:
            runner.cancel()
            await self.wait()
        if runner.error is None and (pieces := runner.result().pieces) is not None:
            await pieces.aclose()


class LateStream(Stream):
    """Heartbeats until the response has arrived, then its pieces. Closing it cancels a pending response."""

    def __init__(self, pending: LateResponse, heartbeat: bytes, heartbeat_s: float) -> None:
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
            await self._pending.wait(self._heartbeat_s)
            if not self._pending.is_done:
                return self._heartbeat
            response = self._pending.result()
            if response.status >= 400:
                raise parse_error_reply(response.status, response.body)
            self._pieces = response.pieces or GeneratedStream(_one(response.body))
        return await anext(self._pieces)

    async def aclose(self) -> None:
        """Cancel a pending response, or close its stream."""
        await self._pending.close()


async def _one(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
