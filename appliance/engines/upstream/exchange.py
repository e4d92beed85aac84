"""One attempt at one server that speaks OpenAI's dialect: send the body, judge the answer, hand on the whole or the stream.

Shared by every backend that talks over the wire. Until the first whole event of a stream has come, a failure is an
AttemptFailed, so that somebody else may still answer; after it the iterator raises.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from appliance.base import jsons
from appliance.base.errors import ApplianceError, Forbidden, Invalid, UpstreamFailed
from appliance.base.logs import SECRETS
from appliance.base.sse import SSE_CONTENT_TYPE, SseReader
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.response import UpstreamResponse
from appliance.base.wire.types import Target, Timeouts, WireError
from appliance.engines.outcome import Outcome, Retry
from appliance.engines.receipts import Attempt
from appliance.engines.stream import Stream
from appliance.engines.types import EngineReply, EngineRequest
from appliance.engines.upstream.gather import ResponseBuilder
from appliance.engines.upstream.relay import BrokenStream, StreamRelay
from appliance.engines.upstream.splice import with_model

NOTE_CHARACTERS = 800  # of a failed server's answer, kept in the attempts
MOST_ERROR_BYTES = 65_536
Refuse = Callable[[int, dict[str, str], str], Exception]


class AttemptFailed(Exception):
    """An attempt failed before its first byte went to the client, in a way that lets another server try.

    Args:
        outcome: What it came to; its `retry` and `breaker` say what follows.
        note: What the server said, shortened.
        status: Its HTTP status; None = none came.
        retry_after_s: Its own word, seconds; None = it said nothing.
        was_sent: False when the server cannot have read any of the request.
        context: (prompt tokens or 0, the server's context or 0) when the prompt was too long for it.
        error: What to raise when nobody else can answer.
    """

    def __init__(
        self,
        outcome: Outcome,
        note: str = "",
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        was_sent: bool = True,
        context: tuple[int, int] | None = None,
        error: ApplianceError | None = None,
    ) -> None:
        super().__init__(outcome)
        self.outcome, self.note, self.status = outcome, note, status
        self.retry_after_s, self.was_sent = retry_after_s, was_sent
        self.context, self.error = context, error

    @property
    def retry(self) -> Retry:
        """When another backend may try: at no cost what was never sent, else as the outcome says."""
        return self.outcome.retry if self.was_sent else Retry.FREE

    @property
    def label(self) -> str:
        """The outcome as receipts and metrics show it: `connect`, `status_502` …"""
        return self.outcome.render(self.status)


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is asked, and how it is spoken of.

    label     begins sentences: "The hosted API", "The backend llm-1:8080"
    refuse    (status, headers, text) → the exception that an error status means: AttemptFailed, or an ApplianceError
    """

    wire: ConnectionPool
    target: Target
    label: str
    refuse: Refuse


async def exchange(
    peer: Peer,
    request: EngineRequest,
    body: bytes,
    attempt: Attempt,
    *,
    path: bytes,
    wants_events: bool,
    public_model: str,
    timeouts: Timeouts,
    on_head: Callable[[], None],
    on_end: Callable[[Outcome], None],
    gathers: bool = False,
    on_first: Callable[[], None] = lambda: None,
) -> EngineReply:
    """Send `body` and give the reply.

    Takes   wants_events: whether `body` asks for a stream; gathers: its events are to be given as one whole answer;
            on_head: called when the answer's head is there;
            on_first: called when a stream's first event is there;
            on_end: called once for a stream, when it ends: ok | cut_off | error_event | client_left (not for whole answers)
    Raises  AttemptFailed · WireError · BrokenStream · jsons.InvalidJson (all: another server may try) · ApplianceError (the caller's fault)
    """
    response = await peer.wire.send(
        peer.target,
        is_repeatable=True,
        method=b"POST",
        path=path,
        body=body,
        timeouts=timeouts,
    )
    on_head()
    reply = None
    try:
        attempt.status = response.status
        if response.status >= 300:
            text = SECRETS.redact((await response.read())[:MOST_ERROR_BYTES].decode("utf-8", "replace"))
            raise peer.refuse(response.status, response.headers, text)
        is_stream = wants_events and "event-stream" in response.headers.get("content-type", "")
        if is_stream and gathers:
            reply = await _gathered(peer, response, request, public_model, on_first)
        elif is_stream:
            reply = await _stream(peer, response, request, public_model, on_end)
            on_first()
        else:
            reply = _whole(await response.read(), request, public_model)
        return reply
    finally:
        if reply is None or reply.events is None:
            response.close()


def _whole(body: bytes, request: EngineRequest, public_model: str) -> EngineReply:
    """Check an answer in one piece, make its model name public, take its usage."""
    value = jsons.loads(body)
    if not isinstance(value, dict) or not ("choices" in value or "data" in value):
        raise AttemptFailed(
            Outcome.INVALID_RESPONSE, SECRETS.redact(body[:NOTE_CHARACTERS].decode("utf-8", "replace"))
        )
    take_usage(request, value.get("usage"))
    return EngineReply(body=with_model(body, value, public_model))


async def _gathered(
    peer: Peer,
    response: UpstreamResponse,
    request: EngineRequest,
    public_model: str,
    on_first: Callable[[], None],
) -> EngineReply:
    """Give a stream as one whole answer: until its end another server may still answer."""
    reader, gathering = SseReader(), ResponseBuilder()
    is_done = False
    while not is_done:
        data = await response.next_chunk()
        try:
            events = reader.feed(data) if data is not None else reader.end()
        except UpstreamFailed as exc:
            raise BrokenStream(exc.message) from None
        for event in events:
            if event is None:
                is_done = True
            elif event.get("error") and not event.get("choices"):
                raise _failed(peer, event["error"])
            elif not is_done:
                if not gathering.has_begun:
                    on_first()
                gathering.add(event)
        if data is None:
            break
    if is_done and not response.is_complete:
        try:  # the closing chunk is usually one packet behind [DONE], see UpstreamStream.aclose
            await asyncio.wait_for(response.next_chunk(), 0.1)
        except (TimeoutError, WireError):
            pass
    whole = gathering.whole()
    take_usage(request, whole.get("usage"))
    return EngineReply(body=jsons.dumps({**whole, "model": public_model}))


def _failed(peer: Peer, error: Any) -> Exception:
    """Give what an error event means: what the same error would have meant as an answer's status."""
    status = error.get("code") if isinstance(error, dict) else None
    text = SECRETS.redact(jsons.dumps({"error": error}).decode())
    if isinstance(status, int) and 400 <= status < 600:
        return peer.refuse(status, {}, text)
    message = error.get("message") if isinstance(error, dict) else error
    return AttemptFailed(Outcome.ERROR_EVENT, SECRETS.redact(str(message))[:NOTE_CHARACTERS])


async def _stream(
    peer: Peer,
    response: UpstreamResponse,
    request: EngineRequest,
    public_model: str,
    on_end: Callable[[Outcome], None],
) -> EngineReply:
    """Wait for the first whole event, so that until then another server may still answer."""
    relay = StreamRelay(public_model)
    first = b""
    while b"data:" not in first:  # comments are not yet an answer
        data = await response.next_chunk()
        if data is None:
            raise AttemptFailed(Outcome.EMPTY_STREAM, "the stream ended before its first event")
        first += relay.feed(data)
        if relay.error is not None:
            raise AttemptFailed(
                Outcome.ERROR_EVENT, SECRETS.redact(str(relay.error.get("message", "")))[:NOTE_CHARACTERS]
            )
    return EngineReply(
        events=UpstreamStream(peer.label, first, response, relay, request, on_end),
        content_type=SSE_CONTENT_TYPE,
    )


class UpstreamStream(Stream):
    """The stream of one reply; closing it, at any time, ends the upstream call and settles the books."""

    def __init__(
        self,
        label: str,
        first: bytes,
        response: UpstreamResponse,
        relay: StreamRelay,
        request: EngineRequest,
        on_end: Callable[[Outcome], None],
    ) -> None:
        self._label = label
        self._first: bytes | None = first
        self._response = response
        self._relay = relay
        self._request = request
        self._on_end = on_end
        self._outcome: Outcome | None = None
        self._is_closed = False

    @property
    def events(self) -> int:
        return self._relay.events

    @property
    def outcome(self) -> Outcome | None:
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
            except (WireError, BrokenStream) as exc:
                self._outcome = Outcome.CUT_OFF
                raise UpstreamFailed(
                    f"{self._label} broke off its answer: {exc}", code="upstream_cut_off"
                ) from exc
            if relay.error is not None:
                self._outcome = Outcome.ERROR_EVENT
                message = SECRETS.redact(str(relay.error.get("message") or "unknown error"))
                raise UpstreamFailed(
                    f"{self._label} ended its answer with an error: {message}", code="upstream_error_event"
                )
            if out:
                return out
            if data is None:
                return self._last()
        await self.aclose()
        raise StopAsyncIteration

    def _last(self) -> bytes:
        """The connection ended without `[DONE]`: fine after a finish_reason, else the answer was cut off."""
        if not self._relay.has_finished:
            self._outcome = Outcome.CUT_OFF
            raise UpstreamFailed(
                f"{self._label} broke off its answer before it was complete.", code="upstream_cut_off"
            )
        self._relay.is_done = True
        return b"data: [DONE]\n\n"

    async def aclose(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        take_usage(self._request, self._relay.usage)
        try:
            if self._relay.is_done and not self._response.is_complete:
                # The closing chunk is usually one packet behind [DONE]; a moment's patience keeps the connection usable.
                await asyncio.wait_for(self._response.next_chunk(), 0.1)
        except (TimeoutError, WireError):
            pass
        finally:
            self._response.close()
            if self._outcome is None:
                self._outcome = Outcome.OK if self._relay.is_done else Outcome.CLIENT_LEFT
            self._on_end(self._outcome)


def body_for(
    request: EngineRequest,
    upstream_model: str,
    *,
    wants_events: bool,
    extra: tuple[tuple[str, Any], ...] = (),
    gathers: bool = False,
) -> bytes:
    """Give the bytes to send up: the client's own with `model` replaced; written anew where the dialect or `stream` differs, or
    where `extra` fields are added (the client's own value of such a field wins). `gathers`: the usage must be in the stream."""
    body = request.body
    is_stream = bool(body.get("stream"))
    if request.raw is not None and is_stream == wants_events and not extra and not gathers:
        return with_model(request.raw, body, upstream_model)
    changed = {**dict(extra), **body, "model": upstream_model}
    if gathers:
        changed |= {"stream": True, "stream_options": {"include_usage": True}}
    elif wants_events:
        changed["stream"] = True
    else:
        changed.pop("stream", None)
        changed.pop("stream_options", None)  # refused by APIs when no stream is asked for
    return jsons.dumps(changed)


def take_usage(request: EngineRequest, usage: Any) -> None:
    """Write the reported token counts into the receipt."""
    if isinstance(usage, dict):
        request.receipt.prompt_tokens = usage.get("prompt_tokens")
        request.receipt.completion_tokens = usage.get("completion_tokens")


def retry_after_of(headers: dict[str, str]) -> float | None:
    """Read `Retry-After` in seconds; dates are not used by these APIs and give None."""
    try:
        return max(0.0, float(headers.get("retry-after", "")))
    except ValueError:
        return None


def client_error_of(status: int, text: str, label: str) -> ApplianceError:
    """Turn an upstream's 4xx into ours, with its own sentence, param and code."""
    try:
        value = jsons.loads(text)
    except jsons.InvalidJson:
        value = None
    error = value.get("error", value) if isinstance(value, dict) else None
    error = error if isinstance(error, dict) else {"message": str(error) if error else text}
    message = str(error.get("message") or f"{label} refused the request with status {status}.")
    kind = Forbidden if status == 403 else Invalid
    param, code = error.get("param"), error.get("code")
    raised = kind(
        message, param=param if isinstance(param, str) else None, code=code if isinstance(code, str) else None
    )
    raised.details["status"] = status
    return raised
