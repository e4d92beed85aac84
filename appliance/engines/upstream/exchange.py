"""One attempt at one server that speaks OpenAI's dialect.

Shared by every backend that talks over the wire. Until the first whole event of a stream has come, a failure
is an AttemptFailed, so that another server may still answer; after it, the stream raises.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from appliance.base import jsons
from appliance.base.errors import UpstreamFailed
from appliance.base.logs import SECRETS
from appliance.base.sse import SSE_CONTENT_TYPE, SseReader
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.response import UpstreamResponse
from appliance.base.wire.types import Target, Timeouts, WireError
from appliance.engines.outcome import Outcome
from appliance.engines.receipts import Attempt, Receipt
from appliance.engines.stream import Stream
from appliance.engines.types import EngineReply, EngineRequest
from appliance.engines.upstream.attempt import NOTE_CHARACTERS, AttemptFailed
from appliance.engines.upstream.relay import BrokenStream, StreamRelay
from appliance.engines.upstream.response_builder import ResponseBuilder
from appliance.engines.upstream.splice import with_model

MAX_ERROR_BYTES = 65_536
# The last chunk usually arrives one packet after [DONE]; waiting for it keeps the connection usable.
LAST_CHUNK_TIMEOUT_S = 0.1
Refuse = Callable[[int, dict[str, str], str], Exception]


@dataclass(frozen=True, slots=True)
class Peer:
    """The server of an attempt.

    Attributes:
        wire: The pool of its connections.
        target: Its base address.
        label: Its name at the start of error texts: "The hosted API", "The backend llm-1:8080".
        refuse: (status, headers, text) → the exception that an error status means: AttemptFailed, or an
            ApplianceError.
    """

    wire: ConnectionPool
    target: Target
    label: str
    refuse: Refuse


class UpstreamCall(NamedTuple):
    """What one attempt sends, and how its response is to be read.

    Attributes:
        path: Below the peer's base address.
        body: One JSON object.
        timeouts: Of this attempt.
        public_model: The model's name in the reply.
        wants_events: The body asks for a stream.
        is_gathered: The events of the stream are joined to one whole response.
    """

    path: bytes
    body: bytes
    timeouts: Timeouts
    public_model: str
    wants_events: bool
    is_gathered: bool = False


class AttemptObserver:
    """Is notified of the progress of an attempt. The methods must not raise."""

    __slots__ = ()

    def on_head(self) -> None:
        """Handle that the response's head has arrived."""

    def on_first_event(self) -> None:
        """Handle that the first event of a stream has arrived."""

    def on_stream_end(self, outcome: Outcome) -> None:
        """Handle that a stream ended: ok, cut_off, error_event or client_left. Only called for streams."""


async def exchange(
    peer: Peer, call: UpstreamCall, request: EngineRequest, attempt: Attempt, observer: AttemptObserver
) -> EngineReply:
    """Send one request, and return the reply.

    1. an error status                          → raised
    2. a whole response                         → checked
    3. a stream that becomes one whole response → read to its end
    4. a stream                                 → returned once its first event has arrived

    Args:
        peer: The server.
        call: What is sent.
        request: Its receipt gets the usage.
        attempt: Gets the status, and the one that a failure stands for.
        observer: Is notified of the progress.

    Raises:
        AttemptFailed: Another server may try.
        ApplianceError: The client's own fault, as `peer.refuse` decides.
    """
    try:
        response = await peer.wire.send(
            peer.target,
            is_repeatable=True,
            method=b"POST",
            path=call.path,
            body=call.body,
            timeouts=call.timeouts,
        )
        observer.on_head()
        reply = None
        try:
            attempt.status = response.status
            if response.status >= 300:
                raise await _refusal(response, peer)  # 1
            if not (call.wants_events and "event-stream" in response.headers.get("content-type", "")):
                reply = _check_whole(await response.read(), call, request)  # 2
            elif call.is_gathered:
                reply = await _gather(response, peer, call, request, observer)  # 3
            else:
                reply = await _start_stream(response, peer, call, request, observer)  # 4
            return reply
        finally:
            if reply is None or reply.events is None:
                response.close()
    except AttemptFailed as failed:
        attempt.failure_status = failed.status
        raise
    except (WireError, BrokenStream, jsons.InvalidJson) as error:
        raise AttemptFailed.of(error) from error


async def _refusal(response: UpstreamResponse, peer: Peer) -> Exception:
    """Return the exception for a response with an error status."""
    text = SECRETS.redact((await response.read())[:MAX_ERROR_BYTES].decode("utf-8", "replace"))
    return peer.refuse(response.status, response.headers, text)


def _check_whole(body: bytes, call: UpstreamCall, request: EngineRequest) -> EngineReply:
    """Check a whole response, set the public model name, record the usage."""
    value = jsons.loads(body)
    if not isinstance(value, dict) or not ("choices" in value or "data" in value):
        note = SECRETS.redact(body[:NOTE_CHARACTERS].decode("utf-8", "replace"))
        raise AttemptFailed(Outcome.INVALID_RESPONSE, note)
    request.receipt.note_usage(value.get("usage"))
    return EngineReply(body=with_model(body, value, call.public_model))


async def _gather(
    response: UpstreamResponse,
    peer: Peer,
    call: UpstreamCall,
    request: EngineRequest,
    observer: AttemptObserver,
) -> EngineReply:
    """Join a stream to one whole response; until its end another server may still answer."""
    reader, builder = SseReader(), ResponseBuilder()
    is_done = False
    while not is_done:
        data = await response.next_chunk()
        try:
            events = reader.feed(data) if data is not None else reader.end()
        except UpstreamFailed as error:
            raise BrokenStream(error.message) from None
        for event in events:
            if event is None:
                is_done = True
            elif event.get("error") and not event.get("choices"):
                raise _interpret_error_event(peer, event["error"])
            elif not is_done:
                if not builder.has_begun:
                    observer.on_first_event()
                builder.add(event)
        if data is None:
            break
    if is_done and not response.is_complete:
        await _await_last_chunk(response)
    whole = builder.build()
    request.receipt.note_usage(whole.get("usage"))
    return EngineReply(body=jsons.dumps({**whole, "model": call.public_model}))


def _interpret_error_event(peer: Peer, error: Any) -> Exception:
    """Return the exception for an error event; one with a status is the same as a response with it."""
    status = error.get("code") if isinstance(error, dict) else None
    if isinstance(status, int) and 400 <= status < 600:
        return peer.refuse(status, {}, SECRETS.redact(jsons.dumps({"error": error}).decode()))
    message = error.get("message") if isinstance(error, dict) else error
    return AttemptFailed(Outcome.ERROR_EVENT, SECRETS.redact(str(message))[:NOTE_CHARACTERS])


async def _start_stream(
    response: UpstreamResponse,
    peer: Peer,
    call: UpstreamCall,
    request: EngineRequest,
    observer: AttemptObserver,
) -> EngineReply:
    """Wait for the first whole event, not a comment; until then another server may still answer."""
    relay = StreamRelay(call.public_model)
    first = b""
    while b"data:" not in first:
        data = await response.next_chunk()
        if data is None:
            raise AttemptFailed(Outcome.EMPTY_STREAM, "the stream ended before its first event")
        first += relay.feed(data)
        if relay.error is not None:
            note = SECRETS.redact(str(relay.error.get("message", "")))[:NOTE_CHARACTERS]
            raise AttemptFailed(Outcome.ERROR_EVENT, note)
    observer.on_first_event()
    stream = UpstreamStream(peer.label, first, response, relay, request.receipt, observer)
    return EngineReply(events=stream, content_type=SSE_CONTENT_TYPE)


async def _await_last_chunk(response: UpstreamResponse) -> None:
    """Give a response that has sent `[DONE]` a moment to end, so that its connection can be used again."""
    try:
        await asyncio.wait_for(response.next_chunk(), LAST_CHUNK_TIMEOUT_S)
    except (TimeoutError, WireError):
        pass


class UpstreamStream(Stream):
    """The events of one attempt. Closing it ends the exchange, and reports the outcome to the observer."""

    __slots__ = (
        "_first",
        "_is_closed",
        "_label",
        "_observer",
        "_outcome",
        "_receipt",
        "_relay",
        "_response",
    )

    def __init__(
        self,
        label: str,
        first: bytes,
        response: UpstreamResponse,
        relay: StreamRelay,
        receipt: Receipt,
        observer: AttemptObserver,
    ) -> None:
        self._label = label
        self._first: bytes | None = first
        self._response = response
        self._relay = relay
        self._receipt = receipt
        self._observer = observer
        self._outcome: Outcome | None = None
        self._is_closed = False

    @property
    def events(self) -> int:
        """Events that were passed on."""
        return self._relay.events

    @property
    def outcome(self) -> Outcome | None:
        """How the attempt ended; None = it runs."""
        return self._outcome

    async def __anext__(self) -> bytes:
        relay = self._relay
        if self._first is not None:
            first, self._first = self._first, None
            return first
        while not relay.is_done and not self._is_closed:
            try:
                data = await self._response.next_chunk()
                out = relay.feed(data) if data is not None else b""
            except (WireError, BrokenStream) as error:
                raise self._cut_off(f"{self._label} broke off its response: {error}") from error
            if relay.error is not None:
                self._outcome = Outcome.ERROR_EVENT
                message = SECRETS.redact(str(relay.error.get("message") or "unknown error"))
                raise UpstreamFailed(
                    f"{self._label} ended its response with an error: {message}", code="upstream_error_event"
                )
            if out:
                return out
            if data is None:
                return self._end_without_done()
        await self.aclose()
        raise StopAsyncIteration

    def _end_without_done(self) -> bytes:
        """End a stream without `[DONE]`: complete after a finish_reason, else the response was cut off."""
        if not self._relay.has_finished:
            raise self._cut_off(f"{self._label} broke off its response before it was complete.")
        self._relay.is_done = True
        return b"data: [DONE]\n\n"

    def _cut_off(self, message: str) -> UpstreamFailed:
        self._outcome = Outcome.CUT_OFF
        return UpstreamFailed(message, code="upstream_cut_off")

    async def aclose(self) -> None:
        """End the exchange, record its usage, and report the outcome to the observer."""
        if self._is_closed:
            return
        self._is_closed = True
        self._receipt.note_usage(self._relay.usage)
        try:
            if self._relay.is_done and not self._response.is_complete:
                await _await_last_chunk(self._response)
        finally:
            self._response.close()
            if self._outcome is None:
                self._outcome = Outcome.OK if self._relay.is_done else Outcome.CLIENT_LEFT
            self._observer.on_stream_end(self._outcome)
