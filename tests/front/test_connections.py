"""What connections share, and a fast connection byte by byte without a socket."""

import asyncio
import io
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.metrics.registry import Metrics
from appliance.base.watch import Watched
from appliance.engines.receipts import Receipts
from appliance.front.pipeline.access_log import AccessLog
from appliance.front.pipeline.pipeline import RequestPipeline
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response
from appliance.front.pipeline.route import Route
from appliance.front.server.connections import Connections
from appliance.front.server.fast_connection import PIPELINED_BYTES, FastConnection
from appliance.front.settings import FrontSettings

HOT = b"POST /hot HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
COLD = b"GET /cold HTTP/1.1\r\nHost: x\r\n\r\n"


class Transport:
    """What the connection did to its client."""

    def __init__(self) -> None:
        self.out = b""
        self.calls: list[str] = []

    def get_extra_info(self, name: str) -> Any:
        return ("10.0.0.9", 4711)

    def write(self, data: bytes) -> None:
        self.out += data

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.calls.append(name)


class Inner:
    """Another protocol: keeps what it was given."""

    def __init__(self) -> None:
        self.data = b""
        self.calls: list[str] = []

    def data_received(self, data: bytes) -> None:
        self.data += data

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.calls.append(name)


class House:
    """Connections over a clock that is moved by hand; one hot route, whose handler waits for `go`."""

    def __init__(self, **settings: Any) -> None:
        self.clock = FakeClock()
        self.receipts = Receipts()
        self.go = asyncio.Event()
        self.inner = Inner()
        self.bodies: list[bytes] = []
        self.pipeline = RequestPipeline(
            FrontSettings(_env_file=None, **settings),
            receipts=self.receipts,
            metrics=Metrics(),
            access_log=AccessLog(clock=self.clock, form="json", stream=io.StringIO()),
            clock=self.clock,
            state=Watched("serving"),
        )
        hot = Route(("POST",), "/hot", self.answer, is_hot=True)
        self.shared = Connections(self.pipeline, [hot], clock=self.clock)

    async def answer(self, request: Request) -> Response:
        self.bodies.append(request.body)
        await self.go.wait()
        return Response(200, b"fine", "text/plain")

    def connect(self) -> tuple[FastConnection, Transport]:
        connection = FastConnection(self.shared, lambda _, buffer: (self.inner, buffer))  # type: ignore[arg-type,return-value]
        transport = Transport()
        connection.connection_made(transport)  # type: ignore[arg-type]
        return connection, transport


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


# ---- what is shared


async def test_connections_are_counted_up_to_the_limit() -> None:
    house = House(max_connections=2)
    first, _ = house.connect()
    house.connect()
    _, refused = house.connect()
    assert len(house.shared) == 2
    assert refused.out.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"Too many connections (MAX_CONNECTIONS)." in refused.out
    first.connection_lost(None)
    assert len(house.shared) == 1


async def test_a_stop_closes_idle_connections_and_takes_no_new_one() -> None:
    house = House()
    _, idle = house.connect()
    busy, transport = house.connect()
    busy.data_received(HOT)
    await settle()
    house.shared.stop()
    assert ("close" in idle.calls, "close" in transport.calls) == (True, False)
    _, late = house.connect()
    assert late.out.startswith(b"HTTP/1.1 503")
    house.go.set()
    await settle()
    assert b"Connection: close\r\n" in transport.out
    assert "close" in transport.calls


async def test_a_cut_ends_what_is_being_answered() -> None:
    house = House()
    connection, transport = house.connect()
    connection.data_received(HOT)
    await settle()
    house.shared.cut()
    await settle()
    assert "abort" in transport.calls
    assert (house.receipts.latest(1)[0].finish_label, house.pipeline.in_flight) == ("cut_off", 0)


async def test_the_date_is_renewed_with_each_tick() -> None:
    house = House()
    house.shared.tick()
    first = house.shared.date_line
    house.clock.advance(61)
    house.shared.tick()
    assert first == b"Date: Fri, 15 Jan 2027 08:00:00 GMT\r\n"
    assert house.shared.date_line == b"Date: Fri, 15 Jan 2027 08:01:01 GMT\r\n"


# ---- one connection


@pytest.mark.parametrize("size", [1, 7, len(HOT)])
async def test_a_request_may_come_in_any_pieces(size: int) -> None:
    house = House()
    house.go.set()
    connection, transport = house.connect()
    for at in range(0, len(HOT), size):
        connection.data_received(HOT[at : at + size])
    await settle()
    assert house.bodies == [b"{}"]
    assert transport.out.endswith(b"\r\n\r\nfine")


async def test_requests_in_a_row_are_answered_in_order() -> None:
    house = House()
    connection, transport = house.connect()
    connection.data_received(HOT * 3)
    await settle()
    assert (connection.busy, len(house.bodies)) == (1, 1)
    house.go.set()
    for _ in range(5):
        await settle()
    assert (connection.busy, len(house.bodies), transport.out.count(b"200 OK")) == (0, 3, 3)


async def test_too_many_pipelined_bytes_stop_the_reading() -> None:
    house = House()
    connection, transport = house.connect()
    connection.data_received(HOT)
    await settle()
    connection.data_received(b"x" * PIPELINED_BYTES)
    assert "pause_reading" not in transport.calls
    connection.data_received(b"x")
    assert "pause_reading" in transport.calls


@pytest.mark.parametrize("before", [b"", HOT])
async def test_any_other_request_is_handed_over_whole(before: bytes) -> None:
    house = House()
    house.go.set()
    connection, transport = house.connect()
    connection.data_received(before + COLD)
    await settle()
    connection.data_received(b"more")
    assert house.inner.data == COLD + b"more"
    assert house.inner.calls == ["connection_made"]
    assert transport.out.count(b"200 OK") == len(before) // len(HOT)


async def test_a_client_that_leaves_is_settled_once() -> None:
    house = House()
    connection, _ = house.connect()
    connection.data_received(HOT)
    await settle()
    assert house.pipeline.in_flight == 1
    connection.connection_lost(None)
    await settle()
    receipt = house.receipts.latest(1)[0]
    assert (receipt.finish_label, receipt.status, house.pipeline.in_flight) == ("client_left", 499, 0)


async def test_a_client_that_leaves_before_the_task_begins_counts_nowhere() -> None:
    house = House()
    connection, _ = house.connect()
    connection.data_received(HOT)
    connection.connection_lost(None)
    await settle()
    assert (house.pipeline.in_flight, len(house.receipts), house.bodies) == (0, 0, [])


# ---- the clock


@pytest.mark.parametrize(
    ("data", "after_s", "is_over", "text"),
    [
        (b"", 14, False, b""),
        (b"", 16, True, b""),  # it never asked anything
        (b"POST /hot", 16, True, b"The request head did not arrive in time (HEADER_TIMEOUT_S)."),
        (HOT[:-1], 59, False, b""),
        (HOT[:-1], 61, True, b"The request body did not arrive in time (BODY_TIMEOUT_S)."),
    ],
)
async def test_a_slow_client_is_not_waited_for(
    data: bytes, after_s: float, is_over: bool, text: bytes
) -> None:
    house = House()
    connection, transport = house.connect()
    if data:
        connection.data_received(data)
    house.clock.advance(after_s)
    house.shared.tick()
    assert bool({"close", "write_eof"} & set(transport.calls)) is is_over
    assert text in transport.out
    assert transport.out.startswith(b"HTTP/1.1 408") == bool(text)


async def test_a_connection_that_was_served_may_be_idle_longer() -> None:
    house = House()
    house.go.set()
    connection, transport = house.connect()
    connection.data_received(HOT)
    await settle()
    house.clock.advance(74)
    house.shared.tick()
    assert "close" not in transport.calls
    house.clock.advance(2)
    house.shared.tick()
    assert "close" in transport.calls


async def test_an_answer_that_takes_long_is_no_idleness() -> None:
    house = House()
    connection, transport = house.connect()
    connection.data_received(HOT)
    await settle()
    house.clock.advance(1000)
    house.shared.tick()
    assert transport.calls == []
