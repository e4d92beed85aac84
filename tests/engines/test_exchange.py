"""One attempt at one server: what each kind of response becomes, and what the observer gets. The wire is a script of chunks."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest

from appliance.base import jsons
from appliance.base.errors import ApplianceError, Invalid, UpstreamFailed
from appliance.base.wire.types import (
    BrokenResponse,
    Target,
    Timeouts,
    Unreachable,
    UpstreamTimeout,
    WireError,
)
from appliance.engines.outcome import Outcome, Retry
from appliance.engines.receipts import Attempt
from appliance.engines.stream import GeneratedStream
from appliance.engines.types import EngineReply, EngineRequest
from appliance.engines.upstream.attempt import AttemptFailed
from appliance.engines.upstream.exchange import (
    AttemptObserver,
    Peer,
    UpstreamCall,
    _await_last_chunk,
    count_choices,
    exchange,
)
from appliance.engines.upstream.refusal import interpret_error
from tests.engines.scripted import engine_request

JSON, SSE = "application/json", "text/event-stream"
BROKE_OFF = BrokenResponse("broke off", phase="broken", has_begun=True)


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else jsons.dumps(value)) + b"\n\n"


def chunk(text: str, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return event({"object": "chat.completion.chunk", "model": "up", "choices": [choice], **more})


def error_event(**error: Any) -> bytes:
    return event({"error": error})


DONE = event(b"[DONE]")
WHOLE = {"model": "up", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}


class Response:
    """A response by script: chunks, exceptions, then the end. `hang` = nothing more comes, and the end neither."""

    def __init__(self, status: int, content_type: str, *script: Any, **headers: str) -> None:
        self.status, self.headers = status, {"content-type": content_type, **headers}
        self.content_type = content_type.lower()
        self.script = list(script)
        self.closed = 0
        self.progress: Any = "not watched"

    def watch(self, progress: Any) -> None:
        self.progress = progress

    async def next_chunk(self) -> bytes | None:
        step = self.script.pop(0) if self.script else None
        if step == "hang":
            await asyncio.Event().wait()
        if isinstance(step, Exception):
            raise step
        return step

    async def read(self) -> bytes:
        parts = []
        while (part := await self.next_chunk()) is not None:
            parts.append(part)
        return b"".join(parts)

    @property
    def is_complete(self) -> bool:
        return not self.script

    def close(self) -> None:
        self.closed += 1


class Wire:
    def __init__(self, response: Response | Exception) -> None:
        self.response = response
        self.sent: dict[str, Any] = {}

    async def send(self, target: Target, **sent: Any) -> Response:
        self.sent = sent
        if isinstance(self.response, Exception):
            raise self.response
        return self.response


class Observer(AttemptObserver):
    def __init__(self) -> None:
        self.seen: list[str] = []
        self.lasts = 0

    def on_head(self) -> None:
        self.seen.append("head")

    def on_first_event(self) -> None:
        self.seen.append("first")

    def on_last_event(self) -> None:
        self.lasts += 1

    def on_stream_end(self, outcome: Outcome) -> None:
        self.seen.append(outcome.value)


class Attempting:
    """One attempt at a scripted server."""

    def __init__(
        self, response: Response | Exception, *, wants_events: bool = True, is_gathered: bool = False
    ) -> None:
        self.response, self.observer, self.attempt = response, Observer(), Attempt("http://e0")
        self.request: EngineRequest = engine_request()
        self.wire = Wire(response)
        self._call = UpstreamCall(b"/v1/x", b"{}", Timeouts(), "public", wants_events, is_gathered)

    async def send(self) -> EngineReply:
        peer = Peer(
            self.wire,  # type: ignore[arg-type]
            Target.parse("http://e0"),
            "The backend e0",
            lambda status, headers, text: interpret_error(status, headers, text, "The backend e0"),
        )
        return await exchange(peer, self._call, self.request, self.attempt, self.observer)

    async def stream(self) -> list[bytes]:
        reply = await self.send()
        assert reply.events is not None
        try:
            return [piece async for piece in reply.events]
        finally:
            await reply.events.aclose()

    @property
    def tokens(self) -> tuple[int | None, int | None]:
        return self.request.receipt.prompt_tokens, self.request.receipt.completion_tokens


def stream_of(*script: Any) -> Response:
    return Response(200, SSE, *script)


# ---- in one piece


@pytest.mark.parametrize(("content_type", "wants_events"), [(JSON, False), (JSON, True), (SSE, False)])
async def test_a_response_in_one_piece(content_type: str, wants_events: bool) -> None:
    it = Attempting(Response(200, content_type, jsons.dumps(WHOLE)), wants_events=wants_events)
    reply = await it.send()
    assert reply.body is not None
    assert jsons.loads(reply.body) == WHOLE | {"model": "public"}
    assert (reply.events, it.attempt.status, it.tokens) == (None, 200, (3, 4))
    assert it.observer.seen == ["head"]
    assert it.response.closed == 1  # type: ignore[union-attr]
    assert it.wire.sent == {
        "is_repeatable": True,
        "method": b"POST",
        "path": b"/v1/x",
        "headers": b"",
        "body": b"{}",
        "timeouts": Timeouts(),
    }


@pytest.mark.parametrize("body", [b"oops", b"[1]", b'{"hello":"world"}', b"\xff", b""])
async def test_an_unreadable_response_is_invalid(body: bytes) -> None:
    it = Attempting(Response(200, JSON, body), wants_events=False)
    with pytest.raises(AttemptFailed) as caught:
        await it.send()
    assert caught.value.outcome is Outcome.INVALID_RESPONSE
    assert it.response.closed == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("status", "body", "raised", "label"),
    [
        (502, b"bad gateway", AttemptFailed, "status_502"),
        (429, b"later", AttemptFailed, "full"),
        (422, b'{"error":{"message":"no"}}', Invalid, ""),
        (302, b"", AttemptFailed, "status_302"),
    ],
)
async def test_an_error_status_means_what_the_peer_says(
    status: int, body: bytes, raised: type[Exception], label: str
) -> None:
    it = Attempting(Response(status, JSON, body))
    with pytest.raises(raised) as caught:
        await it.send()
    assert not label or caught.value.label == label  # type: ignore[attr-defined]
    assert (it.attempt.status, it.observer.seen, it.response.closed) == (status, ["head"], 1)  # type: ignore[union-attr]


# ---- failures of the wire


@pytest.mark.parametrize(
    ("error", "outcome", "retry"),
    [
        (Unreachable("refused", phase="connect"), Outcome.CONNECT, Retry.FREE),
        (BrokenResponse("lost", phase="lost"), Outcome.LOST, Retry.BUDGET),
        (BrokenResponse("lost", phase="first_byte", was_sent=False), Outcome.FIRST_BYTE, Retry.FREE),
    ],
)
async def test_a_failed_exchange_is_a_failed_attempt(
    error: WireError, outcome: Outcome, retry: Retry
) -> None:
    it = Attempting(error)
    with pytest.raises(AttemptFailed) as caught:
        await it.send()
    assert (caught.value.outcome, caught.value.retry, caught.value.note) == (outcome, retry, str(error))
    assert caught.value.__cause__ is error
    assert it.observer.seen == []


# ---- streams


async def test_a_stream_is_relayed_with_the_public_name() -> None:
    usage = event({"model": "up", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})
    it = Attempting(stream_of(b": hi\n\n", chunk("a"), chunk("b", "stop"), usage + DONE))
    pieces = await it.stream()
    assert b"".join(pieces).count(b'"model":"public"') == 3
    assert (pieces[0].startswith(b": hi"), pieces[-1].endswith(DONE)) == (True, True)
    assert (it.tokens, it.observer.seen, it.response.closed) == ((1, 2), ["head", "first", "ok"], 1)  # type: ignore[union-attr]


@pytest.mark.parametrize("ending", [(), (b"0\r\n",), ("hang",), (BROKE_OFF,)])
async def test_after_done_a_stream_is_ok_however_it_ends(ending: tuple[Any, ...]) -> None:
    it = Attempting(stream_of(chunk("a", "stop") + DONE, *ending))
    await it.stream()
    assert (it.observer.seen, it.response.closed) == (["head", "first", "ok"], 1)  # type: ignore[union-attr]


async def test_a_finished_stream_without_done_is_completed() -> None:
    it = Attempting(stream_of(chunk("a"), chunk("b", "stop")))
    assert (await it.stream())[-1] == DONE
    assert it.observer.seen[-1] == "ok"


@pytest.mark.parametrize(
    ("script", "outcome", "note"),
    [
        ([], Outcome.EMPTY_STREAM, "the stream ended before its first event"),
        ([b": hi\n\n"], Outcome.EMPTY_STREAM, "the stream ended before its first event"),
        ([error_event(message="overloaded")], Outcome.ERROR_EVENT, "overloaded"),
        ([b"data: {oops\n\n"], Outcome.INVALID_RESPONSE, "an event is not JSON"),
        ([BROKE_OFF], Outcome.BROKEN, "broke off"),
    ],
)
async def test_before_the_first_event_another_server_may_try(
    script: list[Any], outcome: Outcome, note: str
) -> None:
    it = Attempting(stream_of(*script))
    with pytest.raises(AttemptFailed) as caught:
        await it.send()
    assert caught.value.outcome is outcome
    assert note in caught.value.note
    assert (it.observer.seen, it.response.closed) == (["head"], 1)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("script", "code", "text", "outcome"),
    [
        ([BROKE_OFF], "upstream_cut_off", "The backend e0 broke off its response: broke off", "cut_off"),
        ([], "upstream_cut_off", "The backend e0 broke off its response before it was complete.", "cut_off"),
        (
            [b"data: {oops\n\n"],
            "upstream_cut_off",
            "The backend e0 broke off its response: an event is not JSON",
            "cut_off",
        ),
        (
            [error_event(message="out of memory")],
            "upstream_error_event",
            "The backend e0 ended its response with an error: out of memory",
            "error_event",
        ),
        ([error_event(message="")], "upstream_error_event", "with an error: unknown error", "error_event"),
    ],
)
async def test_after_the_first_event_a_failure_reaches_the_client(
    script: list[Any], code: str, text: str, outcome: str
) -> None:
    it = Attempting(stream_of(chunk("a"), *script))
    with pytest.raises(UpstreamFailed) as caught:
        await it.stream()
    assert caught.value.code == code
    assert text in caught.value.message
    assert it.observer.seen == ["head", "first", outcome]


@pytest.mark.parametrize("taken", [0, 1])
async def test_closing_a_stream_ends_the_exchange(taken: int) -> None:
    it = Attempting(stream_of(chunk("a"), chunk("b"), "hang"))
    reply = await it.send()
    assert reply.events is not None
    for _ in range(taken):
        await anext(reply.events)
    assert reply.events.outcome is None
    await reply.events.aclose()
    await reply.events.aclose()
    assert reply.events.outcome is Outcome.CLIENT_LEFT
    assert (it.observer.seen, it.response.closed) == (["head", "first", "client_left"], 1)  # type: ignore[union-attr]


async def leave(task: "asyncio.Task[Any]") -> None:
    """Cancel a task once it waits."""
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("script", "is_gathered"),
    [(("hang",), False), ((b": hi\n\n", "hang"), False), ((chunk("a"), "hang"), True)],
)
async def test_cancelling_before_the_reply_closes_the_response(
    script: tuple[Any, ...], is_gathered: bool
) -> None:
    it = Attempting(stream_of(*script), is_gathered=is_gathered)
    await leave(asyncio.create_task(it.send()))
    assert it.response.closed == 1  # type: ignore[union-attr]
    assert "ok" not in it.observer.seen


async def test_cancelling_the_wait_for_the_last_chunk_ends_the_stream() -> None:
    it = Attempting(stream_of(chunk("a", "stop") + DONE, "hang"))
    reply = await it.send()
    assert reply.events is not None
    await leave(asyncio.create_task(reply.events.aclose()))  # type: ignore[arg-type]
    await reply.events.aclose()
    assert (it.observer.seen, it.response.closed) == (["head", "first", "ok"], 1)  # type: ignore[union-attr]


async def test_a_cancelled_read_leaves_the_stream_to_be_closed() -> None:
    it = Attempting(stream_of(chunk("a"), "hang"))
    reply = await it.send()
    assert reply.events is not None
    await anext(reply.events)
    await leave(asyncio.create_task(anext(reply.events)))  # type: ignore[arg-type]
    assert it.response.closed == 0  # type: ignore[union-attr]
    await reply.events.aclose()
    assert (it.observer.seen[-1], it.response.closed) == ("client_left", 1)  # type: ignore[union-attr]


async def test_a_stream_counts_its_events() -> None:
    it = Attempting(stream_of(chunk("a"), chunk("b") + chunk("c", "stop") + DONE))
    reply = await it.send()
    assert reply.events is not None
    assert reply.events.events == 1
    async for _ in reply.events:
        pass
    assert reply.events.events == 3


# ---- a stream that becomes one response


async def test_a_gathered_stream_is_one_response() -> None:
    usage = event(
        {
            "object": "chat.completion.chunk",
            "choices": [],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2},
        }
    )
    it = Attempting(stream_of(chunk("a"), chunk("b", "stop") + usage + DONE), is_gathered=True)
    reply = await it.send()
    assert reply.body is not None
    whole = jsons.loads(reply.body)
    assert (whole["model"], whole["choices"][0]["message"]["content"]) == ("public", "ab")
    assert (it.tokens, it.observer.seen, it.response.closed) == ((1, 2), ["head", "first"], 1)  # type: ignore[union-attr]


async def test_a_gathered_stream_waits_a_moment_for_its_last_chunk() -> None:
    it = Attempting(stream_of(chunk("a", "stop") + DONE, b"0\r\n"), is_gathered=True)
    await it.send()
    assert it.response.is_complete  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("script", "raised", "label"),
    [
        ([chunk("a")], AttemptFailed, "invalid_response"),
        ([chunk("a"), BROKE_OFF], AttemptFailed, "broken"),
        ([b"data: {oops\n\n"], AttemptFailed, "invalid_response"),
        ([chunk("a"), error_event(message="overloaded")], AttemptFailed, "error_event"),
        ([event({"error": "overloaded"})], AttemptFailed, "error_event"),
        ([chunk("a"), error_event(message="later", code=429)], AttemptFailed, "full"),
        ([error_event(message="bad request", code=400)], Invalid, ""),
    ],
)
async def test_a_gathered_stream_may_fail_over_until_its_end(
    script: list[Any], raised: type[Exception], label: str
) -> None:
    it = Attempting(stream_of(*script), is_gathered=True)
    with pytest.raises(raised) as caught:
        await it.send()
    if isinstance(caught.value, AttemptFailed):
        assert caught.value.label == label
    else:
        assert isinstance(caught.value, ApplianceError)
    assert it.response.closed == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(("code", "label"), [(500, "status_500"), (503, "status_503"), (429, "full")])
async def test_an_error_event_counts_as_the_status_that_it_names(code: int, label: str) -> None:
    it = Attempting(stream_of(error_event(message="sorry", code=code)), is_gathered=True)
    with pytest.raises(AttemptFailed) as caught:
        await it.send()
    it.attempt.outcome = caught.value.outcome
    assert (caught.value.label, it.attempt.label, it.attempt.status) == (label, label, 200)


async def test_a_stream_made_from_it_closes_it_even_if_never_begun() -> None:
    it = Attempting(stream_of(chunk("a"), "hang"))
    reply = await it.send()
    assert reply.events is not None

    async def lines() -> AsyncGenerator[bytes, None]:
        async for piece in reply.events or ():  # type: ignore[union-attr]
            yield piece

    made = GeneratedStream(lines(), reply.events)
    await made.aclose()
    assert (it.observer.seen[-1], made.outcome) == ("client_left", Outcome.CLIENT_LEFT)


ROLE = event({"model": "up", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("script", "label"),
    [
        ([ROLE, error_event(message="boom")], "error_event"),
        ([ROLE, event({"model": "up", "error": {"message": "boom"}})], "error_event"),
        ([ROLE, event({"detail": "boom"})], "error_event"),
        ([ROLE, error_event(message="boom", code=503)], "status_503"),
        ([ROLE, b"event: error\ndata: boom\n\n"], "error_event"),
        ([ROLE, b'{"error":"boom"}\n'], "error_event"),
        ([ROLE], "empty_stream"),
        ([ROLE, b"data: {oops\n\n"], "invalid_response"),
        ([DONE], "empty_stream"),
    ],
)
async def test_until_the_first_content_another_server_may_try(
    script: list[bytes], label: str, together: bool
) -> None:
    it = Attempting(stream_of(b"".join(script)) if together else stream_of(*script))
    with pytest.raises(AttemptFailed) as caught:
        await it.send()
    assert caught.value.label == label
    assert "boom" in caught.value.note or label in {"empty_stream", "invalid_response"}
    assert (it.observer.seen, it.response.closed) == (["head"], 1)  # type: ignore[union-attr]


@pytest.mark.parametrize("together", [True, False])
async def test_text_before_an_error_reaches_the_client(together: bool) -> None:
    script = [chunk("a"), chunk("b"), error_event(message="boom")]
    it = Attempting(stream_of(b"".join(script)) if together else stream_of(*script))
    reply = await it.send()
    assert reply.events is not None
    text = await anext(reply.events)
    if not together:
        text += await anext(reply.events)
    with pytest.raises(UpstreamFailed, match="The backend e0 ended its response with an error: boom"):
        await anext(reply.events)
    assert (b'"content":"a"' in text, b'"content":"b"' in text) == (True, True)


async def test_usage_after_done_is_counted() -> None:
    usage = event({"model": "up", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})
    it = Attempting(stream_of(chunk("a", "stop") + DONE, usage))
    await it.stream()
    assert it.tokens == (1, 2)


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ({}, 1),
        ({"n": 3}, 3),
        ({"n": None}, 1),
        ({"prompt": ["a", "b"], "n": 2}, 4),
        ({"prompt": [1, 2]}, 1),
        ({"prompt": [[1], [2]]}, 2),
        ({"prompt": []}, 1),
    ],
)
def test_choices_that_are_asked_for_are_counted(body: dict[str, Any], count: int) -> None:
    assert count_choices(body) == count


@pytest.mark.parametrize("harmless", [b"data:\n\n", b"data: {}\n\n", event({"type": "ping"})])
async def test_a_gathered_stream_passes_over_harmless_events(harmless: bytes) -> None:
    it = Attempting(stream_of(harmless, chunk("a"), harmless, chunk("b", "stop"), DONE), is_gathered=True)
    reply = await it.send()
    assert reply.body is not None
    assert jsons.loads(reply.body)["choices"][0]["message"]["content"] == "ab"


EVENTS = [chunk("a"), chunk("b", "stop"), DONE]


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/json", "", "Text/Event-Stream", "text/event-stream;charset=UTF-8"],
)
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf", b"\n\n", b": hi\n\n"])
@pytest.mark.parametrize("size", [1, 5, 1000])
async def test_a_stream_is_read_as_what_it_is(content_type: str, bom: bytes, size: int) -> None:
    body = bom + b"".join(EVENTS)
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    it = Attempting(Response(200, content_type, *pieces))
    assert b"".join(await it.stream()).count(b'"model":"public"') == 2
    it = Attempting(Response(200, content_type, *pieces), is_gathered=True)
    for read in (it, Attempting(Response(200, "text/plain", *pieces), wants_events=False)):
        reply = await read.send()
        assert reply.body is not None
        assert jsons.loads(reply.body)["choices"][0]["message"]["content"] == "ab"
        assert read.response.closed == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [1, 1000])
async def test_a_whole_response_to_a_stream_is_read_as_what_it_is(size: int) -> None:
    body = jsons.dumps(WHOLE)
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    reply = await Attempting(Response(200, "text/plain", *pieces)).send()
    assert reply.body is not None
    assert jsons.loads(reply.body) == WHOLE | {"model": "public"}


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ({"error": {"message": "boom"}}, "error_event"),
        ({"error": "boom"}, "error_event"),
        ({"detail": "boom"}, "error_event"),
        ({"object": "error", "message": "boom"}, "error_event"),
        ({"choices": [{"finish_reason": "error", "error": {"message": "boom"}}]}, "error_event"),
        ({"error": {"reason": 7, "boom": 1}}, "error_event"),
        ({"error": {"message": "boom", "code": 503}}, "status_503"),
        ({"choices": None}, "invalid_response"),
        ({"choices": [{"message": {"content": 5}}]}, "invalid_response"),
        ({"data": 5}, "invalid_response"),
    ],
)
async def test_an_error_or_wrong_type_in_a_whole_response_fails_over(value: Any, label: str) -> None:
    it = Attempting(Response(200, JSON, jsons.dumps(value)), wants_events=False)
    with pytest.raises(AttemptFailed) as caught:
        await it.send()
    assert caught.value.label == label
    assert "boom" in caught.value.note or label == "invalid_response"


async def test_the_callers_fault_in_a_whole_response_is_the_callers() -> None:
    value = {"error": {"message": "failed to parse tools: oops"}}
    it = Attempting(Response(200, JSON, jsons.dumps(value)), wants_events=False)
    with pytest.raises(Invalid, match="failed to parse tools: oops"):
        await it.send()


async def test_content_in_parts_reaches_the_client_as_text() -> None:
    value = {"model": "up", "choices": [{"message": {"content": [{"type": "text", "text": "hi"}]}}]}
    reply = await Attempting(Response(200, JSON, jsons.dumps(value)), wants_events=False).send()
    assert reply.body is not None
    assert jsons.loads(reply.body) == {"model": "public", "choices": [{"message": {"content": "hi"}}]}


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": "3", "completion_tokens": 4}, (None, 4)),
        ({"prompt_tokens": -1, "completion_tokens": 4.0}, (None, 4)),
        ({"prompt_tokens": True, "completion_tokens": {}}, (None, None)),
        ({"prompt_tokens": 2**70, "completion_tokens": 1e400}, (None, None)),
        (5, (None, None)),
        ([], (None, None)),
    ],
)
async def test_counters_of_a_wrong_type_are_passed_over(usage: Any, tokens: tuple[Any, Any]) -> None:
    it = Attempting(Response(200, JSON, jsons.dumps(WHOLE | {"usage": usage})), wants_events=False)
    await it.send()
    assert it.tokens == tokens


class ScriptedWire(Wire):
    """Answers in turn."""

    def __init__(self, *responses: Response) -> None:
        super().__init__(responses[0])
        self.responses, self.bodies = list(responses), []  # type: ignore[var-annotated]

    async def send(self, target: Target, **sent: Any) -> Response:
        self.bodies.append(jsons.loads(sent["body"]))
        return self.responses.pop(0)


REFUSAL = b'{"detail":[{"type":"extra_forbidden","loc":["body","stream_options"],"msg":"not permitted"}]}'
OPTIONS = {"stream_options": {"include_usage": True}}


@pytest.mark.parametrize("is_gathered", [True, False])
async def test_refused_stream_options_are_left_out_from_then_on(is_gathered: bool) -> None:
    responses = [Response(422, JSON, REFUSAL), *[stream_of(chunk("a", "stop"), DONE) for _ in range(2)]]
    wire = ScriptedWire(*responses)
    peer = Peer(wire, Target.parse("http://e0"), "e0", lambda *_: Invalid("no"))  # type: ignore[arg-type]
    body = jsons.dumps({"model": "m", **OPTIONS})
    call = UpstreamCall(b"/v1/x", body, Timeouts(), "public", True, is_gathered)
    request = replace(engine_request(), raw=None)
    for _ in range(2):
        reply = await exchange(peer, call, request, Attempt("http://e0"), Observer())
        assert (reply.body is not None) is is_gathered
        if reply.events is not None:
            await reply.events.aclose()
    assert wire.bodies == [{"model": "m", **OPTIONS}, {"model": "m"}, {"model": "m"}]
    assert responses[0].closed == 1


@pytest.mark.parametrize(("raw", "text"), [(b"{}", REFUSAL), (None, b"something else")])
async def test_other_refusals_are_the_clients_to_see(raw: bytes | None, text: bytes) -> None:
    wire = ScriptedWire(Response(422, JSON, text))
    peer = Peer(wire, Target.parse("http://e0"), "e0", lambda *_: Invalid("no"))  # type: ignore[arg-type]
    call = UpstreamCall(b"/v1/x", jsons.dumps(OPTIONS), Timeouts(), "public", True)
    with pytest.raises(Invalid):
        await exchange(peer, call, replace(engine_request(), raw=raw), Attempt("http://e0"), Observer())
    assert not peer.quirks.refuses_stream_options


@pytest.mark.parametrize(
    ("numbers", "tokens", "tokens_from"),
    [
        ({"timings": {"prompt_n": 3, "cache_n": 2, "predicted_n": 4}}, (5, 4), "timings"),
        ({"timings": {"prompt_n": 3, "predicted_n": 4}}, (3, 4), "timings"),
        ({"timings": {"predicted_n": 4}}, (None, 4), "timings"),
        ({"timings": {"predicted_n": "x"}}, (None, 1), "events"),
        ({"usage": {"prompt_tokens": 9}, "timings": {"predicted_n": 4}}, (9, 4), "timings"),
        (
            {"usage": {"prompt_tokens": 9, "completion_tokens": 8}, "timings": {"predicted_n": 4}},
            (9, 8),
            "usage",
        ),
        ({"usage": {"completion_tokens": "x"}}, (None, 1), "events"),
        ({}, (None, 1), "events"),
    ],
)
@pytest.mark.parametrize("is_gathered", [False, True])
async def test_where_the_number_of_a_streams_tokens_comes_from(
    numbers: dict[str, Any], tokens: tuple[int | None, int | None], tokens_from: str, is_gathered: bool
) -> None:
    it = Attempting(stream_of(chunk("a"), chunk("", "stop", **numbers), DONE), is_gathered=is_gathered)
    await (it.send() if is_gathered else it.stream())
    if is_gathered and tokens_from == "events":  # the client sees one piece: its events are not counted
        tokens, tokens_from = (tokens[0], None), ""
    assert (it.tokens, it.request.receipt.tokens_from) == (tokens, tokens_from)


async def test_events_that_came_before_the_client_left_are_counted() -> None:
    it = Attempting(stream_of(chunk("a"), chunk("b"), chunk(""), chunk("c"), "hang"))
    reply = await it.send()
    assert reply.events is not None
    for _ in range(4):
        await anext(reply.events)
    await reply.events.aclose()
    assert (it.tokens, it.request.receipt.tokens_from) == ((None, 3), "events")
    assert (it.observer.seen, it.observer.lasts) == (["head", "first", "client_left"], 1)


@pytest.mark.parametrize(
    ("error", "is_timeout"),
    [
        (BrokenResponse("the server closed the connection", phase="first_byte"), False),
        (UpstreamTimeout("no first byte", phase="first_byte"), True),
    ],
)
async def test_a_closed_connection_is_no_timeout(error: WireError, is_timeout: bool) -> None:
    with pytest.raises(AttemptFailed) as caught:
        await Attempting(error).send()
    assert (caught.value.outcome, caught.value.is_timeout) == (Outcome.FIRST_BYTE, is_timeout)


async def test_a_client_that_leaves_at_the_last_chunk_is_not_overlooked() -> None:
    arrived: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    class LastChunk:
        async def next_chunk(self) -> bytes:
            return await arrived

    response: Any = LastChunk()
    waiting = asyncio.ensure_future(_await_last_chunk(response))
    await asyncio.sleep(0.01)
    arrived.set_result(b"late")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
