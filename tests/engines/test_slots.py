"""A slot is released once, and its backend records the outcome; how a stream releases the slot that it holds."""

from collections.abc import AsyncGenerator

import pytest

from appliance.base.errors import UpstreamFailed
from appliance.engines.outcome import Outcome
from appliance.engines.receipts import Attempt, Receipt
from appliance.engines.slots import AnySlot, ResponseTimes, Slot, SlotStream
from appliance.engines.stream import GeneratedStream
from tests.engines.test_stream import Source, three


class Owner:
    name = "e0"

    def __init__(self) -> None:
        self.reported: list[tuple[Outcome, float | None]] = []

    def record(self, slot: AnySlot, outcome: Outcome, retry_after_s: float | None) -> None:
        self.reported.append((outcome, retry_after_s))


def taken() -> Slot[Owner]:
    return Slot(Owner(), 0.0, Attempt("http://e0"))


def test_a_slot_is_released_once() -> None:
    slot = taken()
    slot.release(Outcome.STATUS, status=503, note="busy", retry_after_s=7.0)
    slot.release(Outcome.OK, status=200)
    assert slot.backend.reported == [(Outcome.STATUS, 7.0)]
    assert slot.is_released
    assert slot.attempt == Attempt("http://e0", Outcome.STATUS, 503, 0.0, "busy")


def test_what_was_noted_stays_if_nothing_better_is_known() -> None:
    slot = taken()
    slot.attempt.status, slot.attempt.note = 200, "noted"
    slot.release(Outcome.CUT_OFF)
    assert slot.attempt == Attempt("http://e0", Outcome.CUT_OFF, 200, 0.0, "noted")


async def failing() -> AsyncGenerator[bytes, None]:
    yield b"0"
    raise UpstreamFailed("broken")


@pytest.mark.parametrize(
    ("pieces", "taken_pieces", "outcome"),
    [
        (three, 4, Outcome.OK),  # to its end
        (three, 3, Outcome.CLIENT_LEFT),  # all pieces, but not the end
        (three, 1, Outcome.CLIENT_LEFT),
        (three, 0, Outcome.CLIENT_LEFT),
        (failing, 2, Outcome.CUT_OFF),
    ],
)
async def test_a_stream_releases_its_slot(pieces: object, taken_pieces: int, outcome: Outcome) -> None:
    slot = taken()
    stream = SlotStream(pieces(), slot)  # type: ignore[operator]
    assert stream.outcome is None
    for _ in range(taken_pieces):
        try:
            await anext(stream)
        except (StopAsyncIteration, UpstreamFailed):
            break
    await stream.aclose()
    assert slot.backend.reported == [(outcome, None)]
    assert stream.outcome is outcome


@pytest.mark.parametrize(
    ("reported", "has_stream", "tokens"),
    [(7, True, 7), (7, False, 7), (None, True, 1), (None, False, None)],  # the source has counted 3 events
)
async def test_generated_tokens_are_those_reported_or_the_streams_events(
    reported: int | None, has_stream: bool, tokens: int | None
) -> None:
    stream = GeneratedStream(three(), Source()) if has_stream else None
    times = ResponseTimes(Receipt("r", completion_tokens=reported), stream=stream)
    assert times.tokens() == tokens
