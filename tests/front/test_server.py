"""Heartbeats between the pieces of a stream that aiohttp writes, and who closes what. Over sockets: test_fast_connection.py."""

import asyncio
import gc
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import HttpVersion11, web
from multidict import CIMultiDict

from appliance.base.clock import FakeClock
from appliance.engines.stream import GeneratedStream
from appliance.front.pipeline.response import Response
from appliance.front.pipeline.route import Route
from appliance.front.server.server import HttpServer, beating
from tests.front.requests import make_request
from tests.front.test_pipeline import Harness

SOON_S = 0.001


class Source:
    """A generator of one piece that then waits for ever; counts how often it was ended."""

    def __init__(self) -> None:
        self.ended = 0

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            self.ended += 1


async def test_heartbeats_fill_the_silence_after_a_piece() -> None:
    source = Source()
    made = source.pieces()
    beats = beating(made, b" ", SOON_S)
    assert [await anext(beats) for _ in range(3)] == [b"first", b" ", b" "]
    await beats.aclose()
    await made.aclose()
    assert source.ended == 1


async def test_a_source_that_ends_unseen_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"only"

    made = pieces()
    beats = beating(made, b" ", 1.0)
    assert await anext(beats) == b"only"
    reading = asyncio.ensure_future(anext(beats))
    await asyncio.sleep(0)  # the source's end is awaited in a task of its own
    reading.cancel()
    await asyncio.wait({reading})
    await beats.aclose()
    del beats, reading
    gc.collect()
    assert not [record for record in caplog.records if "never retrieved" in record.getMessage()]


class GoneClient:
    """Stands in for aiohttp's response: the client leaves as the first heartbeat is written."""

    def __init__(self, **_: Any) -> None:
        self.headers: dict[str, str] = {}

    async def prepare(self, _: Any) -> None: ...

    async def write(self, data: bytes) -> None:
        if data == b" ":
            raise ConnectionResetError


async def test_a_client_lost_at_a_heartbeat_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    harness, source, request = Harness(heartbeat_s=SOON_S), Source(), make_request()
    server = HttpServer([], harness.pipeline, clock=FakeClock())
    monkeypatch.setattr(web, "StreamResponse", GoneClient)
    response = Response(pieces=GeneratedStream(source.pieces()), heartbeat=b" ")
    with pytest.raises(ConnectionResetError):
        await server._send_stream(object(), response, request)  # type: ignore[arg-type]
    assert (source.ended, request.sent_bytes) == (1, 5)


@pytest.mark.parametrize(
    ("fault", "finish", "status"),
    [
        (ZeroDivisionError(), "error", 500),
        (ConnectionResetError(), "client_left", 499),
        (asyncio.CancelledError(), "client_left", 499),
    ],
)
async def test_a_request_is_settled_once_by_what_ended_it(
    monkeypatch: pytest.MonkeyPatch, fault: BaseException, finish: str, status: int
) -> None:
    async def serve(*_: Any) -> Response:
        raise fault

    harness = Harness()
    server = HttpServer([], harness.pipeline, clock=FakeClock())
    monkeypatch.setattr(server, "_serve", serve)
    fields: dict[str, Any] = {
        "method": "POST",
        "path": "/w",
        "headers": CIMultiDict(),
        "remote": "10.0.0.9",
        "transport": None,
    }
    fields |= {"version": HttpVersion11, "raw_headers": ()}
    web_request: Any = SimpleNamespace(**fields, query_string="", match_info={})
    try:
        await server._handle(web_request, Route(("POST",), "/w", serve))
    except (ZeroDivisionError, asyncio.CancelledError) as error:
        assert error is fault
    (receipt,) = harness.receipts.latest(9)
    assert (receipt.finish_label, receipt.status, harness.pipeline.in_flight) == (finish, status, 0)
