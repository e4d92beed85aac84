"""Late streams: heartbeats first, then the response or its error inside the stream; a client that leaves ends it."""

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
    """A source that records whether it was closed."""

    events = 3  # type: ignore[assignment]
    is_closed = False

    async def aclose(self) -> None:
        self.is_closed = True


async def two() -> AsyncGenerator[bytes, None]:
    yield b"1\n"
    yield b"2\n"


async def given(response: Response) -> Response:
    return response


async def late(responding: "asyncio.Future[Response]", **how: Any) -> Response:
    response = await respond_or_heartbeat(result_of(responding), FORM, heartbeat_s=SOON_S, **how)
    assert isinstance(response.pieces, LateStream)
    return response


async def result_of(waiting: "asyncio.Future[Response]") -> Response:
    return await waiting


async def turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def future() -> "asyncio.Future[Response]":
    return asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("heartbeat_s", [0.0, NEVER_S])
async def test_a_response_in_time_is_returned_unchanged(heartbeat_s: float) -> None:
    response = Response(404, b"{}")
    assert await respond_or_heartbeat(given(response), FORM, heartbeat_s=heartbeat_s) is response


@pytest.mark.parametrize("heartbeat_s", [0.0, NEVER_S])
async def test_a_failure_in_time_keeps_its_status(heartbeat_s: float) -> None:
    async def failing() -> Response:
        raise Exhausted("full")

    with pytest.raises(Exhausted, match="full"):
        await respond_or_heartbeat(failing(), FORM, heartbeat_s=heartbeat_s)


async def test_late_pieces_follow_heartbeats() -> None:
    waiting, source = future(), Source()
    response = await late(waiting, late_headers=lambda: [("X-Queue-Position", "2")])
    assert (response.status, response.content_type, response.heartbeat) == (200, FORM.content_type, b" ")
    assert response.headers == [("Cache-Control", "no-cache"), ("X-Queue-Position", "2")]
    pieces: Any = response.pieces
    assert [await anext(pieces) for _ in range(3)] == [b" "] * 3
    waiting.set_result(Response(pieces=GeneratedStream(two(), source)))
    assert [piece async for piece in pieces] == [b"1\n", b"2\n"]
    assert pieces.events == 3
    await pieces.aclose()
    assert source.is_closed


async def test_the_form_is_not_modified() -> None:
    await late(future(), late_headers=lambda: [("X-Queue-Position", "2")])
    assert FORM.headers == [("Cache-Control", "no-cache")]


async def test_a_late_whole_response_is_the_last_piece() -> None:
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
async def test_a_late_error_reply_is_an_error_with_the_engines_message(
    status: int, body: Any, said: str
) -> None:
    waiting = future()
    pieces: Any = (await late(waiting)).pieces
    waiting.set_result(Response(status, json.dumps(body).encode() if body is not None else b"<html>"))
    assert await anext(pieces) == b" "
    with pytest.raises(ApplianceError, match=said) as caught:
        await anext(pieces)
    assert caught.value.details == {"status": status}


async def test_leaving_before_the_first_heartbeat_cancels_the_request() -> None:
    waiting = future()
    task = asyncio.get_running_loop().create_task(
        respond_or_heartbeat(result_of(waiting), FORM, heartbeat_s=NEVER_S)
    )
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert waiting.cancelled()


async def test_leaving_between_heartbeats_cancels_the_request() -> None:
    waiting = future()
    pieces: Any = (await late(waiting)).pieces
    assert await anext(pieces) == b" "
    await pieces.aclose()
    assert waiting.cancelled()


async def test_leaving_as_the_response_arrives_closes_it() -> None:
    waiting, source = future(), Source()
    pieces: Any = (await late(waiting)).pieces
    waiting.set_result(Response(pieces=GeneratedStream(two(), source)))
    await turns()
    await pieces.aclose()
    assert source.is_closed


async def test_leaving_after_a_failure_raises_nothing() -> None:
    waiting = future()
    pieces: Any = (await late(waiting)).pieces
    waiting.set_exception(Exhausted("full"))
    await pieces.aclose()
