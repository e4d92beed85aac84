"""A stream that is answered late begins with heartbeats; whatever comes then, comes inside it, and whoever leaves ends it all."""

import asyncio
import json
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import pytest

from appliance.base.errors import ApplianceError, Exhausted
from appliance.engines.stream import GeneratedStream, Stream
from appliance.front.pipeline.errors import error_event
from appliance.front.pipeline.late import LateStream, respond_or_heartbeat
from appliance.front.pipeline.response import Response

SOON_S, NEVER_S = 0.001, 60.0
FORM = Response(
    content_type="application/x-ndjson",
    headers=[("Cache-Control", "no-cache")],
    heartbeat=b" ",
    on_error=partial(error_event, dialect="ollama"),
)


class Source(Stream):
    """What pieces are made from."""

    events = 3  # type: ignore[assignment]
    is_closed = False

    async def aclose(self) -> None:
        self.is_closed = True


async def two() -> AsyncGenerator[bytes, None]:
    yield b"1\n"
    yield b"2\n"


async def given(answer: Response) -> Response:
    return answer


async def late(answering: "asyncio.Future[Response]", **how: Any) -> Response:
    answer = await respond_or_heartbeat(answering, FORM, heartbeat_s=SOON_S, **how)
    assert isinstance(answer.pieces, LateStream)
    return answer


def future() -> "asyncio.Future[Response]":
    return asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("heartbeat_s", [0.0, NEVER_S])
async def test_what_comes_in_time_is_given_as_it_is(heartbeat_s: float) -> None:
    answer = Response(404, b"{}")
    assert await respond_or_heartbeat(given(answer), FORM, heartbeat_s=heartbeat_s) is answer


@pytest.mark.parametrize("heartbeat_s", [0.0, NEVER_S])
async def test_what_fails_in_time_has_a_status_of_its_own(heartbeat_s: float) -> None:
    async def failing() -> Response:
        raise Exhausted("full")

    with pytest.raises(Exhausted, match="full"):
        await respond_or_heartbeat(failing(), FORM, heartbeat_s=heartbeat_s)


async def test_late_pieces_follow_heartbeats() -> None:
    waiting, source = future(), Source()
    answer = await late(waiting, late_headers=lambda: [("X-Queue-Position", "2")])
    assert (answer.status, answer.content_type, answer.heartbeat) == (200, FORM.content_type, b" ")
    assert answer.headers == [("Cache-Control", "no-cache"), ("X-Queue-Position", "2")]
    pieces: Any = answer.pieces
    assert [await anext(pieces) for _ in range(3)] == [b" "] * 3
    waiting.set_result(Response(pieces=GeneratedStream(two(), source)))
    assert [piece async for piece in pieces] == [b"1\n", b"2\n"]
    assert pieces.events == 3
    await pieces.aclose()
    assert source.is_closed


async def test_the_form_is_nobodys_own() -> None:
    await late(future(), late_headers=lambda: [("X-Queue-Position", "2")])
    assert FORM.headers == [("Cache-Control", "no-cache")]


async def test_a_late_answer_in_one_piece_is_the_last_piece() -> None:
    waiting = future()
    pieces: Any = (await late(waiting)).pieces
    waiting.set_result(Response(body=b'{"done":true}\n'))
    assert b"".join([piece async for piece in pieces]) == b' {"done":true}\n'


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (400, {"error": {"message": "the prompt is too long"}}, "the prompt is too long"),
        (429, {"error": "busy"}, "busy"),
        (503, ["no object"], "The engine refused the request with status 503."),
        (500, None, "The engine refused the request with status 500."),
    ],
)
async def test_a_late_refusal_is_an_error_with_the_engines_sentence(
    status: int, body: Any, said: str
) -> None:
    waiting = future()
    pieces: Any = (await late(waiting)).pieces
    waiting.set_result(Response(status, json.dumps(body).encode() if body is not None else b"<html>"))
    assert await anext(pieces) == b" "
    with pytest.raises(ApplianceError, match=said) as caught:
        await anext(pieces)
    assert caught.value.details == {"status": status}


async def test_who_leaves_before_the_first_heartbeat_ends_the_call() -> None:
    waiting = future()
    task = asyncio.get_running_loop().create_task(respond_or_heartbeat(waiting, FORM, heartbeat_s=NEVER_S))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert waiting.cancelled()


async def test_who_leaves_between_heartbeats_ends_the_call() -> None:
    waiting = future()
    pieces: Any = (await late(waiting)).pieces
    assert await anext(pieces) == b" "
    await pieces.aclose()
    assert waiting.cancelled()


async def test_who_leaves_as_the_answer_comes_closes_it() -> None:
    waiting, source = future(), Source()
    pieces: Any = (await late(waiting)).pieces
    waiting.set_result(Response(pieces=GeneratedStream(two(), source)))
    await pieces.aclose()
    assert source.is_closed


async def test_who_leaves_after_a_failure_hears_nothing_of_it() -> None:
    waiting = future()
    pieces: Any = (await late(waiting)).pieces
    waiting.set_exception(Exhausted("full"))
    await pieces.aclose()
