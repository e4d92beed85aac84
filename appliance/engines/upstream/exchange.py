"""One attempt at one server that speaks OpenAI's dialect.

Shared by every backend that talks over the wire. Until the first content of a stream has arrived, a failure
is an AttemptFailed, so that another server may still answer; after it, the stream raises.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from appliance.base import jsons
from appliance.base.errors import UpstreamFailed
from appliance.base.inline import in_task
from appliance.base.logs import SECRETS
from appliance.base.sse import SSE_CONTENT_TYPE, SseReader
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.response import UpstreamResponse
from appliance.base.wire.types import Target, Timeouts, UpstreamTimeout, WireError
from appliance.engines.outcome import Outcome
from appliance.engines.receipts import Attempt, Receipt
from appliance.engines.stream import EventCounter, Stream
from appliance.engines.types import EngineReply, EngineRequest
from appliance.engines.upstream.attempt import NOTE_CHARACTERS, AttemptFailed
from appliance.engines.upstream.error_event import ErrorEvent, as_error_text, find_error
from appliance.engines.upstream.plain_reply import read_plain_reply
from appliance.engines.upstream.refusal import find_caller_fault
from appliance.engines.upstream.relay import BrokenStream, CutOffStream, StreamRelay
from appliance.engines.upstream.response_builder import ResponseBuilder
from appliance.engines.upstream.splice import replace_model, with_model
from appliance.engines.upstream.whole_reply import find_reply_error, repair_reply

MAX_ERROR_BYTES = 65_536
MAX_GATHERED_BYTES = (
    64 * 1024 * 1024
)  # of a stream that is joined, with everything in it; as of a whole response
MAX_HELD_BYTES = 65_536  # of events without content, before a stream begins all the same
# The last chunk usually arrives one packet after [DONE]; waiting for it keeps the connection usable.
LAST_CHUNK_TIMEOUT_S = 0.1
EVENT_FIELDS = (b"data:", b":", b"event:", b"id:", b"retry:", b"error:")  # how a stream of events begins
STREAM_OPTIONS = b'"stream_options"'
LIMIT_NAMES = {  # settings by the phase of an UpstreamTimeout
    "connect": "UPSTREAM_CONNECT_TIMEOUT_S",
    "first_byte": "UPSTREAM_FIRST_BYTE_TIMEOUT_S",
    "idle": "UPSTREAM_IDLE_TIMEOUT_S",
}
MIN_HEAD_BYTES = 9  # a byte order mark and the longest of them
Refuse = Callable[[int, dict[str, str], str], Exception]


@dataclass(slots=True)
class Quirks:
    """What was learnt of a server from its answers.

    Attributes:
        refuses_stream_options: It refuses requests with `stream_options`.
    """

    refuses_stream_options: bool = False


@dataclass(frozen=True, slots=True)
class Peer:
    """The server of an attempt.

    Attributes:
        wire: The pool of its connections.
        target: Its base address.
        label: Its name at the start of error texts: "The hosted API", "The backend llm-1:8080".
        refuse: (status, headers, text) → the exception that an error status means: AttemptFailed, or an
            ApplianceError.
        quirks: Shared by all peers of one server.
        limit_names: Names of the settings that limit its time, by the phase of an UpstreamTimeout.
    """

    wire: ConnectionPool
    target: Target
    label: str
    refuse: Refuse
    quirks: Quirks = field(default_factory=Quirks)
    limit_names: Mapping[str, str] = field(default_factory=dict)

    def describe(self, error: Exception) -> str:
        """Return an error's text; of a time-out with the name of the limit."""
        name = self.limit_names.get(error.phase) if isinstance(error, UpstreamTimeout) else None
        return f"{error} ({name})" if name else str(error)


class UpstreamCall(NamedTuple):
    """What one attempt sends, and how its response is to be read.

    Attributes:
        path: Below the peer's base address.
        body: One JSON object.
        timeouts: Of this attempt.
        public_model: The model's name in the reply.
        wants_events: The body asks for a stream.
        is_gathered: The events of the stream are joined to one whole response.
        adds_usage: We added `stream_options` to the client's own bytes, so its events get no usage.
    """

    path: bytes
    body: bytes
    timeouts: Timeouts
    public_model: str
    wants_events: bool
    is_gathered: bool = False
    adds_usage: bool = False


class AttemptObserver:
    """Is notified of the progress of an attempt. The methods must not raise."""

    __slots__ = ()

    def on_head(self) -> None:
        """Handle that the response's head has arrived."""

    def on_first_event(self) -> None:
        """Handle that the first event of a stream with content has arrived."""

    def on_last_event(self) -> None:
        """Handle that the last event of a stream has arrived, or that it was closed."""

    def on_stream_end(self, outcome: Outcome) -> None:
        """Handle that a stream ended: ok, cut_off, error_event or client_left. Only called for streams."""


async def exchange(
    peer: Peer, call: UpstreamCall, request: EngineRequest, attempt: Attempt, observer: AttemptObserver
) -> EngineReply:
    """Send one request, and return the reply.

    1. an error status                          → raised
    2. a whole response                         → checked
    3. a stream that becomes one whole response → read to its end
    4. a stream                                 → returned once its first content has arrived
    5. `stream_options` that we added is refused → sent again without it, now and in future

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
    is_ours = call.is_gathered or request.raw is None or call.adds_usage
    adds_options = is_ours and STREAM_OPTIONS in call.body
    if adds_options and peer.quirks.refuses_stream_options:
        call, adds_options = call._replace(body=drop_stream_options(call.body)), False
    is_refused, response = False, None
    try:
        response = await peer.wire.send(
            peer.target,
            is_repeatable=True,
            method=b"POST",
            path=call.path,
            headers=request.options.header_lines,
            body=call.body,
            timeouts=call.timeouts,
        )
        observer.on_head()
        reply = None
        try:
            attempt.status = response.status
            if response.status >= 300:
                text = await _read_error(response)
                is_refused = adds_options and response.status in {400, 422} and "stream_options" in text
                if not is_refused:
                    raise peer.refuse(response.status, response.headers, text)  # 1
            elif call.wants_events:
                reply = await _read_reply(response, peer, call, request, observer)
                return reply
            else:  # most requests: a whole response, whatever its type says
                body = response.take_whole() if response.is_complete else await response.read()
                reply = await _read_whole(body, peer, call, request, observer)
                return reply
        finally:
            if reply is None or reply.events is None:
                response.close()
    except AttemptFailed as failed:
        attempt.failure_status = failed.status
        raise
    except (WireError, BrokenStream, jsons.InvalidJson) as error:
        # Raised without a name: a local of this frame would hold the error that holds the frame.
        # Its cause without frames: they hold what has arrived.
        raise (
            _find_encoding(peer, response) or AttemptFailed.of(error, peer.describe(error))
        ) from error.with_traceback(None)
    peer.quirks.refuses_stream_options = True  # 5
    return await exchange(peer, call, request, attempt, observer)


async def _read_reply(
    response: UpstreamResponse,
    peer: Peer,
    call: UpstreamCall,
    request: EngineRequest,
    observer: AttemptObserver,
) -> EngineReply:
    """Read a response to a request for events as what it is, cases 2 to 4 of `exchange`."""
    if (encoded := _find_encoding(peer, response)) is not None:
        try:
            raise encoded
        finally:
            del encoded  # it holds this frame
    source: UpstreamResponse | ReadResponse = response
    has_events = "event-stream" in response.content_type
    if not has_events:
        source = await ReadResponse.begin(response)
        has_events = source.has_events
    if not has_events:
        response.watch(None)
        return await _read_whole(await source.read(), peer, call, request, observer)  # 2
    if call.is_gathered:
        return await _gather(source, peer, call, request, observer)  # 3
    return await _start_stream(source, peer, call, request, observer)  # 4


async def _read_error(response: UpstreamResponse) -> str:
    """Return the body of a response with an error status; "" where it breaks off, for the status came."""
    try:
        body = await response.read()
    except WireError:
        body = b""
    if (encoding := response.headers.get("content-encoding", "identity").lower()) != "identity":
        return f"(a body in the encoding {encoding[:40]!r}, which was not asked for)"
    return SECRETS.redact(body[:MAX_ERROR_BYTES].decode("utf-8", "replace"))


def _find_encoding(peer: Peer, response: UpstreamResponse | None) -> AttemptFailed | None:
    """Return the failure of a response that came encoded, which was not asked for; None = it did not."""
    encoding = response.headers.get("content-encoding", "identity").lower() if response is not None else ""
    if encoding in {"", "identity"}:
        return None
    note = (
        f"the response came in the encoding {encoding[:40]!r}; the request said `Accept-Encoding: identity`"
    )
    error = UpstreamFailed(f"{peer.label} cannot be read: {note}.", code="upstream_encoding")
    return AttemptFailed(Outcome.INVALID_RESPONSE, note, error=error)


def drop_stream_options(body: bytes) -> bytes:
    """Return a request's body without the `stream_options` that we added for the token counts."""
    value = jsons.loads(body)
    value.pop("stream_options", None)
    return jsons.dumps(value)


class ReadResponse:
    """A response of which the first bytes were read, to see what it is whatever its content type says."""

    __slots__ = ("_head", "_response")

    def __init__(self, head: bytes, response: UpstreamResponse | None = None) -> None:
        self._head = head
        self._response = response

    @classmethod
    async def begin(cls, response: UpstreamResponse) -> "ReadResponse":
        """Read enough to know what a response is."""
        head = b""
        while len(head) <= MAX_HELD_BYTES and len(head.strip()) < MIN_HEAD_BYTES:
            data = await response.next_chunk()
            if data is None:
                break
            head += data
        return cls(head, response)

    @property
    def has_events(self) -> bool:
        """Whether it is a stream of events."""
        return self._head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(EVENT_FIELDS)

    async def read(self) -> bytes:
        """Return everything."""
        head, self._head = self._head, b""
        return head + await self._response.read() if self._response is not None else head

    def watch(self, progress: Callable[[], int] | None) -> None:
        """Say that the first content has arrived (see UpstreamResponse)."""
        if self._response is not None:
            self._response.watch(progress)

    async def pass_chunks(self, take: Callable[[bytes], bool]) -> bool:
        """Give what was read to `take`, then the rest in chunks (see UpstreamResponse)."""
        if self._head:
            head, self._head = self._head, b""
            if not take(head):
                return False
        return await self._response.pass_chunks(take) if self._response is not None else True

    async def next_chunk(self) -> bytes | None:
        """Return what was read, then the rest in chunks; None at the end."""
        if self._head:
            head, self._head = self._head, b""
            return head
        return await self._response.next_chunk() if self._response is not None else None

    @property
    def is_complete(self) -> bool:
        """Whether everything has arrived."""
        return self._response is None or self._response.is_complete

    def close(self) -> None:
        """Close it."""
        if self._response is not None:
            self._response.close()


async def _read_whole(
    body: bytes, peer: Peer, call: UpstreamCall, request: EngineRequest, observer: AttemptObserver
) -> EngineReply:
    """Check a whole response, set the public model name, record the usage.

    1. it is a stream of events all the same  → joined
    2. it reports an error                    → what the same error means as an event of a stream
    3. no completion                          → invalid
    """
    plain = read_plain_reply(body)
    if plain is not None and plain.model:
        spliced = replace_model(body, call.public_model, plain.model)
        if spliced is not None:
            if (usage := plain.usage) is not None:
                request.receipt.note_counts(usage.prompt_tokens, usage.completion_tokens, source="usage")
                if (details := usage.prompt_tokens_details) is not None:
                    request.receipt.cached_tokens = details.cached_tokens or 0
            return EngineReply(body=spliced)
    try:
        value = jsons.loads(body)
    except jsons.InvalidJson:
        read = ReadResponse(body)
        if not read.has_events:
            raise
        return await _gather(read, peer, call, request, observer)  # 1
    error = find_reply_error(value) if isinstance(value, dict) else None
    if error is not None:
        raise _interpret_error_event(peer, error)  # 2
    if not isinstance(value, dict) or not ("choices" in value or "data" in value):
        note = SECRETS.redact(body[:NOTE_CHARACTERS].decode("utf-8", "replace"))
        raise AttemptFailed(Outcome.INVALID_RESPONSE, note)  # 3
    try:
        repaired = repair_reply(value)
    except UpstreamFailed as failure:
        raise BrokenStream(failure.message) from None  # 3
    request.receipt.note_usage(value.get("usage"))
    if repaired is not value:
        body = jsons.dumps(repaired)
    return EngineReply(body=with_model(body, repaired, call.public_model))


async def _gather(
    response: UpstreamResponse | ReadResponse,
    peer: Peer,
    call: UpstreamCall,
    request: EngineRequest,
    observer: AttemptObserver,
) -> EngineReply:
    """Join a stream to one whole response; until its end another server may still answer."""
    reader, builder = SseReader(), ResponseBuilder()
    is_done, size = False, 0
    while not is_done:
        data = await response.next_chunk()
        size += len(data) if data is not None else 0
        if size > MAX_GATHERED_BYTES:
            raise BrokenStream(f"the stream is longer than {MAX_GATHERED_BYTES} bytes")
        try:
            events = reader.feed(data) if data is not None else reader.end()
            for event in events:
                if event is None:
                    is_done = True
                elif (found := find_error(event)) is not None:
                    raise _interpret_error_event(peer, found)
                elif not is_done:
                    if not builder.has_begun:
                        observer.on_first_event()
                    builder.add(event)
        except UpstreamFailed as error:
            raise BrokenStream(error.message) from None
        if data is None:
            break
    if is_done and not response.is_complete:
        await _await_last_chunk(response)
    observer.on_last_event()
    whole = builder.build()
    usage, timings = whole.get("usage"), whole.get("timings")
    note_tokens(request.receipt, usage, timings if isinstance(timings, dict) else None, None)
    return EngineReply(body=jsons.dumps({**whole, "model": call.public_model}))


def _interpret_error_event(peer: Peer, error: ErrorEvent) -> Exception:
    """Return what an error event means: what the same error would have meant as a response's status."""
    text = SECRETS.redact(as_error_text(error))
    if error.status is not None:
        return peer.refuse(error.status, {}, text)
    if (fault := find_caller_fault(500, text)) is not None:
        return fault
    sentence = SECRETS.redact(error.message)
    return AttemptFailed(Outcome.ERROR_EVENT, (sentence or text)[:NOTE_CHARACTERS], sentence=sentence)


async def _start_stream(
    response: UpstreamResponse | ReadResponse,
    peer: Peer,
    call: UpstreamCall,
    request: EngineRequest,
    observer: AttemptObserver,
) -> EngineReply:
    """Wait for the first content: until then another server may still answer.

    1. an event with content, or much that has none  → the stream begins
    2. an error before it                            → raised
    3. a whole response without content              → the stream begins, and ends
    4. the end before it                             → raised

    Raises:
        AttemptFailed: Another server may try.
        BrokenStream: It cannot be read.
    """
    relay = StreamRelay(
        call.public_model,
        choices=request.choices or count_choices(request.body),
        hides_usage=call.adds_usage,
    )
    first = b""
    while True:
        data = await response.next_chunk()
        out = relay.feed(data) if data is not None else relay.end()
        first += out
        if out and (relay.has_content or len(first) > MAX_HELD_BYTES):
            break  # 1
        if relay.error is not None:
            raise _interpret_error_event(peer, relay.error)  # 2
        if relay.is_done and relay.events:
            break  # 3
        if relay.broken is not None and not isinstance(relay.broken, CutOffStream):
            raise relay.broken  # 2
        if relay.is_done or relay.broken is not None:  # 4
            what = "content" if relay.events else "event"
            raise AttemptFailed(Outcome.EMPTY_STREAM, f"the stream ended before its first {what}")
    observer.on_first_event()
    response.watch(relay.content_events)
    stream = UpstreamStream(peer, first, response, relay, request.receipt, observer)
    return EngineReply(events=stream, content_type=SSE_CONTENT_TYPE)


def count_choices(body: dict[str, Any]) -> int:
    """Return how many choices a request asks for: `n` of each prompt."""
    n, prompt = body.get("n"), body.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list) else 1
    return prompts * (n if isinstance(n, int) and n > 1 else 1)


async def _await_last_chunk(response: UpstreamResponse | ReadResponse) -> bytes:
    """Give a response that has sent `[DONE]` a moment to end, so that its connection can be used again.

    Returns:
        What still came.
    """
    await in_task()
    try:
        # Python 3.11's wait_for may swallow the cancellation when the client leaves meanwhile.
        async with asyncio.timeout(LAST_CHUNK_TIMEOUT_S):
            return await response.next_chunk() or b""
    except (TimeoutError, WireError):
        return b""


def usage_of_timings(timings: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return llama-server's own counts as usage, for a stream without one; None = it has none.

    Source: `timings` of its last chunk: prompt_n (processed), cache_n (taken from the cache), predicted_n.
    """
    if timings is None or not isinstance(timings.get("predicted_n"), int):
        return None
    prompt, cached = timings.get("prompt_n"), timings.get("cache_n", 0)
    is_known = isinstance(prompt, int) and isinstance(cached, int)
    return {
        "prompt_tokens": prompt + cached if is_known else None,
        "completion_tokens": timings["predicted_n"],
    }


def note_tokens(
    receipt: Receipt, usage: Any, timings: dict[str, Any] | None, content_events: int | None
) -> None:
    """Record in the receipt how many tokens a streamed response has, and where that number comes from.

    1. the usage has a number                 → that
    2. llama-server's timings have one        → that
    3. otherwise                              → its events with content: most engines send one for each token

    Args:
        usage: The engine's.
        timings: None = there were none.
        content_events: None = they were not counted.
    """
    receipt.note_usage(usage)  # 1
    if receipt.completion_tokens is None and timings is not None:
        receipt.note_usage(usage_of_timings(timings), source="timings")  # 2
    if receipt.completion_tokens is None and content_events is not None:
        receipt.completion_tokens, receipt.tokens_from = content_events, "events"  # 3


class UpstreamStream(Stream):
    """The events of one attempt. Closing it ends the exchange, and reports the outcome to the observer."""

    __slots__ = (
        "_first",
        "_is_closed",
        "_observer",
        "_outcome",
        "_peer",
        "_receipt",
        "_relay",
        "_response",
    )

    def __init__(
        self,
        peer: Peer,
        first: bytes,
        response: UpstreamResponse | ReadResponse,
        relay: StreamRelay,
        receipt: Receipt,
        observer: AttemptObserver,
    ) -> None:
        self._peer = peer
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

    def event_counter(self) -> EventCounter:
        """Return what counts the events."""
        return self._relay

    @property
    def outcome(self) -> Outcome | None:
        """How the attempt ended; None = it runs."""
        return self._outcome

    async def __anext__(self) -> bytes:
        relay = self._relay
        if self._first is not None:
            first, self._first = self._first, None
            return first
        while not self._is_closed:
            if relay.error is not None or relay.broken is not None:
                raise self._fail()
            if relay.is_done:
                break
            try:
                data = await self._response.next_chunk()
                out = relay.feed(data) if data is not None else relay.end()
            except (WireError, BrokenStream) as error:
                raise self._broke_off(error) from error
            if out:
                return out
        await self.aclose()
        raise StopAsyncIteration

    async def pass_pieces(self, write: Callable[[bytes], bool]) -> bool:
        """Give each piece to `write` as soon as it is there (see Stream)."""
        relay = self._relay
        if self._first is not None:
            first, self._first = self._first, None
            if not write(first):
                return False

        def take(data: bytes) -> bool:
            out = relay.feed(data)
            is_wanted = write(out) if out else True
            return is_wanted and not (relay.is_done or relay.error is not None or relay.broken is not None)

        while not self._is_closed and not relay.is_done:
            if relay.error is not None or relay.broken is not None:
                raise self._fail()
            try:
                has_ended = await self._response.pass_chunks(take)
                out = relay.end() if has_ended else b""
            except (WireError, BrokenStream) as error:
                raise self._broke_off(error) from error
            if out and not write(out):
                return False
            if not has_ended and relay.error is None and relay.broken is None and not relay.is_done:
                return False
        await self.aclose()
        return True

    def _fail(self) -> UpstreamFailed:
        """Return the error of a stream whose events up to it have been passed on."""
        error = self._relay.error
        if error is None:
            broken = self._relay.broken
            if isinstance(broken, CutOffStream):
                return self._cut_off(f"{self._peer.label} broke off its response before it was complete.")
            return self._cut_off(f"{self._peer.label} broke off its response: {broken}")
        self._outcome = Outcome.ERROR_EVENT
        message = SECRETS.redact(error.message or "unknown error")
        return UpstreamFailed(
            f"{self._peer.label} ended its response with an error: {message}", code="upstream_error_event"
        )

    def _broke_off(self, error: Exception) -> UpstreamFailed:
        """Return the error of a stream that could not be read further, without the server's address."""
        peer = self._peer
        text = peer.describe(error).replace("{}:{}".format(*peer.target.origin), "it")
        return self._cut_off(f"{peer.label} broke off its response: {text}")

    def _cut_off(self, message: str) -> UpstreamFailed:
        self._outcome = Outcome.CUT_OFF
        return UpstreamFailed(message, code="upstream_cut_off")

    async def aclose(self) -> None:
        """End the exchange, record its usage, and report the outcome to the observer."""
        if self._is_closed:
            return
        self._is_closed = True
        relay = self._relay
        self._observer.on_last_event()
        try:
            if relay.is_done and not self._response.is_complete:
                relay.feed(await _await_last_chunk(self._response))
        except BrokenStream:
            pass  # after `[DONE]`: nothing depends on it
        finally:
            self._response.close()
            note_tokens(self._receipt, relay.usage, relay.timings, relay.content_events())
            if self._outcome is None:
                self._outcome = Outcome.OK if relay.is_done else Outcome.CLIENT_LEFT
            self._observer.on_stream_end(self._outcome)
