"""Streams that are answered late, because their model loads or every server is full: headers and heartbeats go out meanwhile, so that
no client and no proxy on the way gives up.

    1. answered within HEARTBEAT_S   → that answer: a stream, or a real error status
    2. it takes longer               → 200 and heartbeats until it comes; what fails then is told inside the stream, in its dialect

What a heartbeat is, the dialect says: a comment among server-sent events, a space before the next line of NDJSON, where no line begins
with it and each JSON reader passes over it.
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
    answering: Awaitable[Response],
    form: Response,
    *,
    heartbeat_s: float,
    late_headers: Callable[[], Headers] = list,
) -> Response:
    """Wait for an answer, or begin it without.

    Takes   form: how a stream of this dialect looks, without its pieces; heartbeat_s: 0 = wait for ever;
            late_headers: headers that say how things stand, for a stream that begins late
    Raises  whatever answering raises in time
    """
    if not heartbeat_s:
        return await answering
    waiting = asyncio.ensure_future(answering)  # noqa: TID251 - awaited or cancelled below, in both cases
    try:
        done, _ = await asyncio.wait({waiting}, timeout=heartbeat_s)
    except asyncio.CancelledError:
        await _give_up(waiting)
        raise
    if done:  # 1
        return waiting.result()
    return replace(
        form,
        headers=[*form.headers, *late_headers()],
        pieces=LateStream(waiting, form.heartbeat, heartbeat_s),
    )  # 2


class LateStream(Stream):
    """Heartbeats until the answer is there, then what it is made of. Closing it, at any time, gives the answer up."""

    def __init__(self, waiting: "asyncio.Future[Response]", heartbeat: bytes, heartbeat_s: float) -> None:
        self._waiting = waiting
        self._heartbeat, self._heartbeat_s = heartbeat, heartbeat_s
        self._pieces: Stream | None = None
        self._is_first = True

    @property
    def events(self) -> int:
        return self._pieces.events if self._pieces is not None else 0

    @property
    def outcome(self) -> Outcome | None:
        return self._pieces.outcome if self._pieces is not None else None

    async def __anext__(self) -> bytes:
        if self._is_first:  # it takes the headers along
            self._is_first = False
            return self._heartbeat
        if self._pieces is None:
            done, _ = await asyncio.wait({self._waiting}, timeout=self._heartbeat_s)
            if not done:
                return self._heartbeat
            answer = self._waiting.result()
            if answer.status >= 400:
                raise parse_error_reply(answer.status, answer.body)
            self._pieces = answer.pieces or GeneratedStream(_one(answer.body))
        return await anext(self._pieces)

    async def aclose(self) -> None:
        await _give_up(self._waiting)


async def _one(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


async def _give_up(waiting: "asyncio.Future[Response]") -> None:
    """Cancel a call that nobody waits for, and close its stream if it had begun."""
    if not waiting.done():
        waiting.cancel()
        await asyncio.wait({waiting})
    if waiting.cancelled() or waiting.exception() is not None:
        return
    pieces = waiting.result().pieces
    if pieces is not None:
        await pieces.aclose()
