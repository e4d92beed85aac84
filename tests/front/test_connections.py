"""What connections share, and a fast connection byte by byte without a socket."""

import asyncio
import io
from dataclasses import replace
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.metrics.registry import Metrics
from appliance.base.watch import Watched
from appliance.engines.receipts import Receipts
from appliance.engines.stream import Stream
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
    """Records what the connection writes and calls."""

    def __init__(self) -> None:
        self.out = b""
        self.calls: list[str] = []
        self.unsent_bytes = 0

    def get_extra_info(self, name: str) -> Any:
        return ("10.0.0.9", 4711)

    def is_closing(self) -> bool:
        return bool({"close", "abort"} & set(self.calls))

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def write(self, data: bytes) -> None:
        self.out += data

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.calls.append(name)


class Inner:
    """The inner protocol; records what it receives."""

    def __init__(self) -> None:
        self.data = b""
        self.calls: list[str] = []

    def data_received(self, data: bytes) -> None:
        self.data += data

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.calls.append(name)


class Pieces(Stream):
    """Two pieces; `fault` is what closing raises, None = nothing."""

    def __init__(self, fault: BaseException | None = None) -> None:
        self._rest = [b"one", b"two"]
        self._fault = fault
        self.closed = 0

    async def __anext__(self) -> bytes:
        if not self._rest:
            raise StopAsyncIteration
        return self._rest.pop(0)

    async def aclose(self) -> None:
        self.closed += 1
        if self._fault is not None:
            raise self._fault


class Fatal(BaseException):
    """Not an Exception, such as SystemExit."""


class Harness:
    """Connections over a clock that is moved by hand; one hot route, whose handler waits for `go`."""

    def __init__(self, **settings: Any) -> None:
        self.clock = FakeClock()
        self.receipts = Receipts()
        self.go = asyncio.Event()
        self.inner = Inner()
        self.bodies: list[bytes] = []
        self.response: Response | BaseException = Response(200, b"fine", "text/plain")
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
        if isinstance(self.response, BaseException):
            raise self.response
        return replace(self.response)  # a handler returns a new response each time

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
    harness = Harness(max_connections=2)
    first, _ = harness.connect()
    harness.connect()
    _, refused = harness.connect()
    assert len(harness.shared) == 2
    assert refused.out.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"Too many connections (MAX_CONNECTIONS)." in refused.out
    first.connection_lost(None)
    assert len(harness.shared) == 1


async def test_a_stop_closes_idle_connections_and_takes_no_new_one() -> None:
    harness = Harness()
    _, idle = harness.connect()
    busy, transport = harness.connect()
    busy.data_received(HOT)
    await settle()
    harness.shared.stop()
    assert ("close" in idle.calls, "close" in transport.calls) == (True, False)
    _, late = harness.connect()
    assert late.out.startswith(b"HTTP/1.1 503")
    harness.go.set()
    await settle()
    assert b"Connection: close\r\n" in transport.out
    assert "close" in transport.calls


async def test_a_cut_ends_running_requests() -> None:
    harness = Harness()
    connection, transport = harness.connect()
    connection.data_received(HOT)
    await settle()
    harness.shared.cut()
    await settle()
    assert (transport.out[:13], "close" in transport.calls) == (b"HTTP/1.1 503 ", True)
    assert (harness.receipts.latest(1)[0].finish_label, harness.pipeline.in_flight) == ("error", 0)


async def test_the_date_is_renewed_with_each_tick() -> None:
    harness = Harness()
    harness.shared.tick()
    first = harness.shared.date_line
    harness.clock.advance(61)
    harness.shared.tick()
    assert first == "Date: Fri, 15 Jan 2027 08:00:00 GMT\r\n"
    assert harness.shared.date_line == "Date: Fri, 15 Jan 2027 08:01:01 GMT\r\n"


# ---- one connection


@pytest.mark.parametrize("size", [1, 7, len(HOT)])
async def test_a_request_may_come_in_any_pieces(size: int) -> None:
    harness = Harness()
    harness.go.set()
    connection, transport = harness.connect()
    for at in range(0, len(HOT), size):
        connection.data_received(HOT[at : at + size])
    await settle()
    assert harness.bodies == [b"{}"]
    assert transport.out.endswith(b"\r\n\r\nfine")


async def test_requests_in_a_row_are_answered_in_order() -> None:
    harness = Harness()
    connection, transport = harness.connect()
    connection.data_received(HOT * 3)
    await settle()
    assert (connection.busy, len(harness.bodies)) == (1, 1)
    harness.go.set()
    for _ in range(5):
        await settle()
    assert (connection.busy, len(harness.bodies), transport.out.count(b"200 OK")) == (0, 3, 3)


async def test_too_many_pipelined_bytes_stop_the_reading() -> None:
    harness = Harness()
    connection, transport = harness.connect()
    connection.data_received(HOT)
    await settle()
    connection.data_received(b"x" * PIPELINED_BYTES)
    assert "pause_reading" not in transport.calls
    connection.data_received(b"x")
    assert "pause_reading" in transport.calls


async def test_reading_goes_on_once_the_pipelined_requests_are_used_up() -> None:
    harness = Harness()
    connection, transport = harness.connect()
    many = PIPELINED_BYTES // len(HOT) + 2
    connection.data_received(HOT * many)
    connection.data_received(HOT[:10])
    await settle()
    assert transport.calls == ["pause_reading"]
    harness.go.set()
    while len(harness.bodies) < many:
        assert transport.calls == ["pause_reading"]
        await asyncio.sleep(0)
    await settle()
    assert transport.calls == ["pause_reading", "resume_reading"]
    connection.data_received(HOT[10:])
    await settle()
    assert transport.out.count(b"200 OK") == many + 1


async def test_the_next_request_waits_until_the_client_has_read() -> None:
    harness = Harness()
    harness.go.set()
    connection, _ = harness.connect()
    connection.pause_writing()
    connection.data_received(HOT * 3)
    await settle()
    assert (len(harness.bodies), connection.busy, harness.pipeline.in_flight) == (1, 1, 1)
    connection.resume_writing()
    for _ in range(3):
        await settle()
    assert (len(harness.bodies), connection.busy, harness.pipeline.in_flight) == (3, 0, 0)


@pytest.mark.parametrize("pieces", [None, Pieces])
async def test_a_client_that_reads_nothing_is_given_up(pieces: type[Pieces] | None) -> None:
    harness = Harness()
    harness.clock.advance(1)
    harness.response = Response(200, b"fine", pieces=pieces() if pieces else None)
    harness.go.set()
    connection, transport = harness.connect()
    connection.pause_writing()
    transport.unsent_bytes = 1000
    connection.data_received(HOT)
    await settle()
    for unsent_bytes in (1000, 1000, 900, 900):  # it reads a little, once
        transport.unsent_bytes = unsent_bytes
        harness.shared.tick()
        harness.clock.advance(100)
        assert "abort" not in transport.calls
    harness.clock.advance(21)
    harness.shared.tick()
    assert "abort" in transport.calls
    assert harness.pipeline.in_flight == 1
    connection.connection_lost(None)
    await settle()
    receipt = harness.receipts.latest(1)[0]
    assert (receipt.finish_label, receipt.status, harness.pipeline.in_flight) == ("client_left", 200, 0)


async def test_a_closed_connection_does_not_wait_for_its_client_for_ever() -> None:
    harness = Harness()
    connection, transport = harness.connect()
    harness.clock.advance(16)
    harness.shared.tick()
    assert transport.calls == ["close"]
    harness.shared.tick()
    harness.clock.advance(121)
    harness.shared.tick()
    assert transport.calls == ["close", "abort"]


async def test_a_body_that_trickles_is_not_waited_for() -> None:
    harness = Harness()
    connection, transport = harness.connect()
    connection.data_received(b"POST /hot HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n")
    for _ in range(60):
        harness.clock.advance(1)
        connection.data_received(b"x")
        harness.shared.tick()
        assert transport.out == b""
    harness.clock.advance(1)
    harness.shared.tick()
    assert b"The request body did not arrive in time (BODY_TIMEOUT_S)." in transport.out
    assert transport.out.startswith(b"HTTP/1.1 408")


async def test_a_large_body_may_take_its_time_at_a_fair_rate() -> None:
    harness = Harness()
    harness.go.set()
    connection, transport = harness.connect()
    size = 1000 * 120
    connection.data_received(b"POST /hot HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
    for _ in range(120):
        harness.clock.advance(1)
        harness.shared.tick()
        connection.data_received(b"x" * 1000)
    await settle()
    assert [len(body) for body in harness.bodies] == [size]


async def test_reading_resumes_after_the_last_pipelined_request() -> None:
    harness = Harness()
    harness.go.set()
    connection, transport = harness.connect()
    count = PIPELINED_BYTES // len(HOT) + 2
    connection.data_received(HOT)
    connection.data_received(HOT * (count - 1))  # complete requests only: no rest is left in the buffer
    assert "pause_reading" in transport.calls
    for _ in range(count):
        await settle()
    assert len(harness.bodies) == count
    assert "resume_reading" in transport.calls


@pytest.mark.parametrize("before", [b"", HOT])
async def test_any_other_request_is_handed_over_whole(before: bytes) -> None:
    harness = Harness()
    harness.go.set()
    connection, transport = harness.connect()
    connection.data_received(before + COLD)
    await settle()
    connection.data_received(b"more")
    assert harness.inner.data == COLD + b"more"
    assert harness.inner.calls == ["connection_made"]
    assert transport.out.count(b"200 OK") == len(before) // len(HOT)


async def test_a_client_that_leaves_is_settled_once() -> None:
    harness = Harness()
    connection, _ = harness.connect()
    connection.data_received(HOT)
    await settle()
    assert harness.pipeline.in_flight == 1
    connection.connection_lost(None)
    await settle()
    receipt = harness.receipts.latest(1)[0]
    assert (receipt.finish_label, receipt.status, harness.pipeline.in_flight) == ("client_left", 499, 0)


async def test_a_client_that_leaves_at_once_is_settled() -> None:
    harness = Harness()
    connection, _ = harness.connect()
    connection.data_received(HOT)
    connection.connection_lost(None)
    await settle()
    assert (harness.pipeline.in_flight, harness.receipts.latest(1)[0].finish_label) == (0, "client_left")


# ---- faults: every request is settled once, and its client does not wait for the rest


async def serve_faulty(response: Response | BaseException, **transport: Any) -> tuple[Harness, Transport]:
    """Serve one request; return when it is settled, checked that it is settled once."""
    harness = Harness()
    harness.clock.advance(1)  # at 0 no byte would count as sent
    harness.response = response
    harness.go.set()
    connection, client = harness.connect()
    vars(client).update(transport)
    connection.data_received(HOT)
    for _ in range(3):
        await settle()
    assert connection.busy == 0
    receipts = harness.receipts.latest(2)
    assert (harness.pipeline.in_flight, len(receipts)) == (0, 1)
    return harness, client


async def test_a_stream_is_closed_once_and_ends_in_order() -> None:
    pieces = Pieces()
    harness, client = await serve_faulty(Response(pieces=pieces))
    assert client.out.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
    assert (pieces.closed, harness.receipts.latest(1)[0].finish_label) == (1, "done")


async def test_a_stream_that_cannot_be_closed_was_sent_all_the_same() -> None:
    pieces = Pieces(ZeroDivisionError())
    harness, client = await serve_faulty(Response(pieces=pieces))
    receipt = harness.receipts.latest(1)[0]
    assert (pieces.closed, receipt.finish_label, client.calls) == (1, "done", [])
    assert client.out.endswith(b"0\r\n\r\n")


async def test_a_failed_write_ends_the_connection() -> None:
    def write(data: bytes) -> None:
        raise RuntimeError("closed")

    _, client = await serve_faulty(Response(200, b"fine"), write=write, is_closing=lambda: False)
    assert client.calls == ["abort"]


async def test_an_exit_of_the_process_settles_the_request() -> None:
    harness, _ = await serve_faulty(Fatal())
    assert harness.receipts.latest(1)[0].finish_label == "client_left"


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
async def test_a_slow_client_is_closed_by_its_timeout(
    data: bytes, after_s: float, is_over: bool, text: bytes
) -> None:
    harness = Harness()
    connection, transport = harness.connect()
    if data:
        connection.data_received(data)
    harness.clock.advance(after_s)
    harness.shared.tick()
    assert bool({"close", "write_eof"} & set(transport.calls)) is is_over
    assert text in transport.out
    assert transport.out.startswith(b"HTTP/1.1 408") == bool(text)


async def test_a_connection_that_was_served_may_be_idle_longer() -> None:
    harness = Harness()
    harness.go.set()
    connection, transport = harness.connect()
    connection.data_received(HOT)
    await settle()
    harness.clock.advance(74)
    harness.shared.tick()
    assert "close" not in transport.calls
    harness.clock.advance(2)
    harness.shared.tick()
    assert "close" in transport.calls


async def test_a_long_running_request_is_not_idle() -> None:
    harness = Harness()
    connection, transport = harness.connect()
    connection.data_received(HOT)
    await settle()
    harness.clock.advance(1000)
    harness.shared.tick()
    assert transport.calls == []
