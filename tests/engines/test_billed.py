"""Requests that an account pays for: every attempt is metered and charged once, streams end where money ends."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from appliance.base.errors import ApplianceError, Invalid, PaymentRequired, UpstreamFailed
from appliance.engines.billing import TokenCounts
from appliance.engines.metered_stream import MeteredStream, read_usage
from appliance.engines.outcome import Outcome
from appliance.engines.receipts import Receipt
from appliance.engines.stream import GeneratedStream
from appliance.engines.types import EngineReply, EngineRequest, Operation, RequestOptions
from appliance.engines.upstream.attempt import AttemptFailed
from tests.engines.scripted import OK, Dispatching, TableBackend, engine_request, pool_of


class RecordingMeter:
    """Notes what it is told; `pieces`: how many pieces of a stream are paid for."""

    def __init__(self, pieces: int = 1000, *, attempts: int = 1000, later: int = 0) -> None:
        self.pieces, self.attempts = pieces, attempts
        self.later = later  # how many more are, after a wait
        self.told: list[tuple[Any, ...]] = []
        self.is_remote = False
        self.stop_reason = ""
        self.counted = TokenCounts(7, 0, 3)

    def begin_attempt(self, backend: str, served_model: str, *, is_remote: bool) -> None:
        if self.attempts == 0:
            raise PaymentRequired("used up")
        self.attempts -= 1
        self.is_remote = is_remote
        self.told.append(("begin", backend, served_model, is_remote))

    def took(self, events: int, n_bytes: int) -> bool:
        if self.pieces == 0:
            self.stop_reason = "credits_exhausted"
            return False
        self.pieces -= 1
        self.told.append(("took", events, n_bytes))
        return True

    async def took_later(self, events: int, n_bytes: int) -> bool:
        self.later -= 1
        if self.later < 0:
            return False
        self.told.append(("later", events, n_bytes))
        return True

    def took_whole(self, text_bytes: int) -> None:
        self.told.append(("whole", text_bytes))

    def end_attempt(self, outcome: Outcome, usage: TokenCounts | None) -> None:
        self.told.append(("end", outcome.value, usage))

    def close(self) -> None:
        self.told.append(("close",))


class OneMeter:
    """Gives one meter to all requests, or refuses them."""

    def __init__(self, meter: RecordingMeter, refusal: ApplianceError | None = None) -> None:
        self.meter, self.refusal = meter, refusal

    async def begin(self, request: EngineRequest) -> RecordingMeter:
        if self.refusal is not None:
            raise self.refusal
        return self.meter


async def answer(
    meter: RecordingMeter, *backends: TableBackend, refusal: ApplianceError | None = None
) -> tuple[EngineReply | ApplianceError, Dispatching]:
    it = Dispatching(pool_of(*backends))
    billing = OneMeter(meter, refusal)
    request = it.request(options=RequestOptions(billing=billing))
    asked = engine_request(receipt=request.receipt, options=request.options)
    try:
        return await it.dispatcher.answer_billed(request, asked, billing), it
    except ApplianceError as error:
        return error, it


async def test_a_whole_reply_is_charged_and_what_is_left_given_back() -> None:
    meter = RecordingMeter()
    reply, _ = await answer(meter, TableBackend("a", is_remote=True))
    assert reply is OK
    assert meter.told == [("begin", "a", "m", True), ("whole", 0), ("end", "ok", None), ("close",)]


async def test_each_attempt_at_a_backend_is_charged_on_its_own() -> None:
    meter = RecordingMeter()
    first = TableBackend("a", AttemptFailed(Outcome.CONNECT, "refused"))
    reply, _ = await answer(meter, first, TableBackend("b"))
    assert reply is OK
    assert [row[:2] for row in meter.told] == [
        ("begin", "a"),
        ("end", "connect"),
        ("begin", "b"),
        ("whole", 0),
        ("end", "ok"),
        ("close",),
    ]


@pytest.mark.parametrize(
    ("failure", "outcome"),
    [
        (AttemptFailed(Outcome.FIRST_BYTE, "late"), "first_byte"),
        (Invalid("no"), "refused"),
        (UpstreamFailed("no"), "refused"),
    ],
)
async def test_a_request_that_fails_ends_its_attempt_and_closes(failure: Exception, outcome: str) -> None:
    meter = RecordingMeter()
    reply, _ = await answer(meter, TableBackend("a", failure))
    assert isinstance(reply, ApplianceError)
    assert [row[:2] for row in meter.told] == [("begin", "a"), ("end", outcome), ("close",)]


async def test_a_caller_without_credits_is_refused_before_a_slot_is_taken() -> None:
    backend = TableBackend("a")
    reply, _ = await answer(RecordingMeter(), backend, refusal=PaymentRequired("no credits"))
    assert isinstance(reply, PaymentRequired)
    assert (backend.asked, backend.member.active) == ([], 0)


async def test_an_attempt_that_cannot_be_paid_gives_its_slot_back() -> None:
    meter = RecordingMeter(attempts=1)
    first, second = TableBackend("a", AttemptFailed(Outcome.CONNECT, "refused")), TableBackend("b")
    reply, _ = await answer(meter, first, second)
    assert isinstance(reply, PaymentRequired)
    assert (second.asked, second.member.active) == ([], 0)
    assert meter.told[-1] == ("close",)


async def test_counts_of_an_attempt_are_not_those_of_the_one_before() -> None:
    meter = RecordingMeter()

    class Counting(TableBackend):
        async def send(self, request: EngineRequest, slot: Any, *, budget_s: float) -> EngineReply:
            if self.name == "a":
                request.receipt.note_usage({"prompt_tokens": 5, "completion_tokens": 9})
            return await super().send(request, slot, budget_s=budget_s)

    await answer(meter, Counting("a", AttemptFailed(Outcome.BROKEN, "x")), Counting("b"))
    ends = [row for row in meter.told if row[0] == "end"]
    assert ends == [("end", "broken", TokenCounts(5, 0, 9)), ("end", "ok", None)]


# ---- streams


def event(text: str, **more: Any) -> bytes:
    row = {"id": "c-1", "created": 5, "choices": [{"index": 0, "delta": {"content": text}}], **more}
    return b"data: " + json.dumps(row).encode() + b"\n\n"


class Source(GeneratedStream):
    """Events of a script; `failure` comes after them."""

    def __init__(self, *pieces: bytes, failure: Exception | None = None) -> None:
        self.is_closed = False
        self.failure = failure
        super().__init__(self._play(pieces))

    async def _play(self, pieces: tuple[bytes, ...]) -> AsyncGenerator[bytes, None]:
        try:
            for piece in pieces:
                await asyncio.sleep(0)
                yield piece
            if self.failure is not None:
                raise self.failure
        finally:
            self.is_closed = True


PIECES = (event("a"), event("b") + event("c"), event("d"), b"data: [DONE]\n\n")


async def read_pulled(stream: MeteredStream) -> list[bytes]:
    return [piece async for piece in stream]


async def read_pushed(stream: MeteredStream) -> list[bytes]:
    pieces: list[bytes] = []

    def write(piece: bytes) -> bool:
        pieces.append(piece)
        return True

    assert await stream.pass_pieces(write)
    return pieces


READERS = pytest.mark.parametrize("read", [read_pulled, read_pushed])


@READERS
async def test_a_paid_stream_is_passed_on_unchanged(read: Any) -> None:
    meter, request = RecordingMeter(), engine_request(stream=True)
    request.receipt.note_usage(
        {"prompt_tokens": 2, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 1}}
    )
    stream = MeteredStream(Source(*PIECES), meter, request)
    assert await read(stream) == list(PIECES)
    await stream.aclose()
    assert [row[1] for row in meter.told[:4]] == [1, 2, 1, 1]
    assert meter.told[4:] == [("end", "ok", TokenCounts(2, 1, 4)), ("close",)]


@READERS
@pytest.mark.parametrize("wants_usage", [False, True])
@pytest.mark.parametrize("paid", [0, 1, 2])
async def test_an_unpaid_stream_ends_as_if_it_were_too_long(read: Any, paid: int, wants_usage: bool) -> None:
    meter = RecordingMeter(pieces=paid)
    body = {"messages": [], "n": 2, "stream_options": {"include_usage": wants_usage}}
    request, source = engine_request(body, stream=True), Source(*PIECES)
    stream = MeteredStream(source, meter, request)
    pieces = await read(stream)
    assert pieces[:-1] == list(PIECES[:paid])
    events = pieces[-1].removesuffix(b"\n\n").split(b"\n\n")
    assert events.pop() == b"data: [DONE]"
    last, *usage = [json.loads(event.removeprefix(b"data: ")) for event in events]
    assert [(one["index"], one["finish_reason"]) for one in last["choices"]] == [(0, "length"), (1, "length")]
    assert (last["id"], last["created"], last["model"]) == ("c-1", 5, "m")
    assert last["appliance"] == {"stop_reason": "credits_exhausted"}
    assert [one["usage"]["total_tokens"] for one in usage] == ([10] if wants_usage else [])
    assert (source.is_closed, request.receipt.stop_reason) == (True, "credits_exhausted")
    assert meter.told[paid:] == [("end", "closed", None), ("close",)]
    await stream.aclose()
    assert await read(stream) == []
    assert meter.told[paid:] == [("end", "closed", None), ("close",)]


@READERS
@pytest.mark.parametrize("paid", range(len(PIECES)))
async def test_a_piece_that_is_paid_after_a_wait_is_passed_on(read: Any, paid: int) -> None:
    meter = RecordingMeter(pieces=paid, later=len(PIECES) - paid)
    stream = MeteredStream(Source(*PIECES), meter, engine_request(stream=True))
    assert await read(stream) == list(PIECES)
    assert [row[0] for row in meter.told] == ["took"] * paid + ["later"] * (len(PIECES) - paid) + [
        "end",
        "close",
    ]
    assert meter.told[-2][1] == "ok"


class EventMeter(RecordingMeter):
    """Pays for so many events; a piece with more of them is refused."""

    def took(self, events: int, n_bytes: int) -> bool:
        if events > self.pieces:
            self.stop_reason = "credits_exhausted"
            return False
        self.pieces -= events
        return True


@READERS
@pytest.mark.parametrize("paid", range(5))
async def test_what_of_a_piece_is_paid_for_is_passed_on(read: Any, paid: int) -> None:
    meter, texts = EventMeter(pieces=paid), ["a", "b", "c", "d", "e"]
    source = Source(b"".join(map(event, texts)) + b"data: [DONE]\n\n")
    stream = MeteredStream(source, meter, engine_request(stream=True))
    whole = b"".join(await read(stream))
    assert whole.startswith(b"".join(map(event, texts[:paid])))
    assert event(texts[paid]) not in whole
    assert whole.endswith(b'{"stop_reason":"credits_exhausted"}}\n\ndata: [DONE]\n\n')
    assert whole.count(b"[DONE]") == 1
    assert meter.told == [("end", "closed", None), ("close",)]


class OtherMeter(RecordingMeter):
    """Refuses a piece of several events once; each of its events is paid for with what others gave back."""

    def took(self, events: int, n_bytes: int) -> bool:
        return events < 2 and super().took(events, n_bytes)

    async def took_later(self, events: int, n_bytes: int) -> bool:
        return False


@READERS
async def test_a_stream_goes_on_where_every_event_of_a_refused_piece_is_paid(read: Any) -> None:
    meter = OtherMeter()
    pieces = (event("a"), event("b") + event("c"), event("d") + event("e") + b"data: [DONE]\n\n")
    request = engine_request(stream=True)
    stream = MeteredStream(Source(*pieces), meter, request)
    assert b"".join(await read(stream)) == b"".join(pieces)
    assert [row[0] for row in meter.told] == ["took"] * 5 + ["end", "close"]
    assert (meter.told[-2][1], request.receipt.stop_reason) == ("ok", "")


async def test_a_completion_that_is_ended_has_the_shape_of_one() -> None:
    request = engine_request({"prompt": "x"}, stream=True, operation=Operation.COMPLETION)
    stream = MeteredStream(Source(b"data: nonsense\n\n"), RecordingMeter(pieces=0), request)
    (piece,) = await read_pulled(stream)
    last = json.loads(piece.split(b"\n\n")[0].removeprefix(b"data: "))
    assert (last["object"], last["choices"]) == (
        "text_completion",
        [{"index": 0, "text": "", "finish_reason": "length"}],
    )
    assert last["id"].startswith("cmpl-")


@pytest.mark.parametrize("taken", [0, 1, 2])
async def test_a_client_that_leaves_is_charged_for_what_it_got(taken: int) -> None:
    meter, source = RecordingMeter(), Source(*PIECES)
    stream = MeteredStream(source, meter, engine_request(stream=True))
    for _ in range(taken):
        await anext(stream)
    await stream.aclose()
    assert meter.told[taken:] == [("end", "client_left", None), ("close",)]


@READERS
async def test_a_stream_that_breaks_off_is_charged_and_raises(read: Any) -> None:
    meter = RecordingMeter()
    source = Source(event("a"), failure=UpstreamFailed("broke off"))
    stream = MeteredStream(source, meter, engine_request(stream=True))
    with pytest.raises(UpstreamFailed):
        await read(stream)
    await stream.aclose()
    assert meter.told[1:] == [("end", "cut_off", None), ("close",)]


async def test_a_reader_that_wants_no_more_stops_nothing() -> None:
    meter = RecordingMeter()
    stream = MeteredStream(Source(*PIECES), meter, engine_request(stream=True))
    assert not await stream.pass_pieces(lambda piece: False)
    await stream.aclose()
    assert meter.told[-2:] == [("end", "client_left", None), ("close",)]


@pytest.mark.parametrize(
    ("source", "usage"),
    [("usage", TokenCounts(1, 0, 2)), ("timings", TokenCounts(1, 0, 2)), ("events", None), ("", None)],
)
def test_only_the_engines_own_counts_are_its_usage(source: str, usage: TokenCounts | None) -> None:
    receipt = Receipt("r", prompt_tokens=1, completion_tokens=2, tokens_from=source)
    assert read_usage(receipt, RecordingMeter()) == usage


@pytest.mark.parametrize(
    ("prompt", "completion", "usage"),
    [(None, 2, TokenCounts(7, 0, 2)), (1, None, TokenCounts(1, 0, 3)), (0, 0, TokenCounts(0, 0, 0))],
)
def test_what_a_usage_leaves_out_is_as_we_counted(
    prompt: int | None, completion: int | None, usage: TokenCounts
) -> None:
    receipt = Receipt("r", prompt_tokens=prompt, completion_tokens=completion, tokens_from="usage")
    assert read_usage(receipt, RecordingMeter()) == usage


def test_receipts_of_requests_without_a_payer_are_as_before() -> None:
    row = Receipt("r", cached_tokens=3).as_dict()
    assert not {"billing", "stop_reason", "headers", "cached_tokens"} & set(row)
    assert Receipt("r", stop_reason="credits_exhausted").as_dict()["stop_reason"] == "credits_exhausted"
