"""Connections that switch protocols: refusals, bytes both ways, back-pressure. The servers are real sockets."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.base.clock import SystemClock
from appliance.base.errors import NotFound
from appliance.base.metrics.registry import Metrics
from appliance.base.watch import Watched
from appliance.engines.outcome import Outcome
from appliance.engines.receipts import Receipts
from appliance.engines.types import NO_OPTIONS, RequestOptions
from appliance.front.passthrough.tunnel import MAX_UNSENT_BYTES, Tunnel
from appliance.front.pipeline.access_log import AccessLog
from appliance.front.pipeline.heads import parse_upgrade
from appliance.front.pipeline.pipeline import RequestPipeline
from appliance.front.pipeline.response import Response
from appliance.front.settings import FrontSettings

HEAD = b"GET /ws?x=1 HTTP/1.1\r\nHost: appliance\r\nConnection: Upgrade\r\nUpgrade: strange\r\nAuthorization: Bearer k\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: strange\r\n\r\n"


class Transport:
    """The client's side of the connection: what was written to it, and whether it is read."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.is_reading = True
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.out += data

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def close(self) -> None:
        self.is_closed = True


class Client:
    """The client's connection, as the tunnel uses it."""

    def __init__(self, transport: Transport) -> None:
        self.busy = 0
        self.peer = "10.0.0.9"
        self._transport = transport

    def write_last(self, response: Response) -> int:
        self._transport.write(b"%d " % response.status + response.body)
        return len(response.body)


class Slot:
    """A slot on one server; records how it was released."""

    def __init__(self, url: str, name: str = "b1") -> None:
        self.url = url
        self.backend = SimpleNamespace(name=name)
        self.headers = {"X-Key": "own"}
        self.ssl = None
        self.outcomes: list[Outcome] = []

    def release(self, outcome: Outcome, **_: Any) -> None:
        self.outcomes.append(outcome)


class Passthrough:
    """Returns slots in order; admits every request, or raises `error`."""

    def __init__(self, slots: list[Slot], options: RequestOptions = NO_OPTIONS) -> None:
        self.slots = list(slots)
        self.options = options
        self.error: Exception | None = None
        limits = SimpleNamespace(upstream_connect_timeout_s=0.5, backend_timeout_seconds=0.3)
        self.router = SimpleNamespace(settings=limits, direct=self)
        self._names = [slot.backend.name for slot in slots]

    async def admit(
        self, request: Any, target: str, *, takes_ticket: bool = False
    ) -> tuple[str, RequestOptions]:
        if self.error is not None:
            raise self.error
        return target, self.options

    def model_for(self, request: Any, target: str, options: RequestOptions, named: str) -> str:
        return named

    def server_names(self) -> list[str]:
        return self._names

    async def lease(self, **_: Any) -> Slot:
        return self.slots.pop(0)


class Harness:
    """A tunnel between a fake client and servers."""

    def __init__(self, passthrough: Passthrough, head: bytes = HEAD, **settings: Any) -> None:
        self.receipts, self.metrics = Receipts(), Metrics()
        self.log = AccessLog(clock=SystemClock(), form="json", stream=(out := io.StringIO()))
        self._out = out
        self.pipeline = RequestPipeline(
            FrontSettings(_env_file=None, **settings),
            receipts=self.receipts,
            metrics=self.metrics,
            access_log=self.log,
            clock=SystemClock(),
            state=Watched("serving"),
        )
        self.transport = Transport()
        self.client = Client(self.transport)
        upgrade = parse_upgrade(head)
        assert upgrade is not None
        self.tunnel = Tunnel(self.client, self.pipeline, passthrough, upgrade)  # type: ignore[arg-type]

    async def closed(self) -> dict[str, Any]:
        """Wait until it is closed; return the line of the access log."""
        for _ in range(200):
            if self.transport.is_closed:
                break
            await asyncio.sleep(0.01)
        assert self.transport.is_closed
        assert (self.client.busy, self.pipeline.in_flight) == (0, 0)
        self.log.flush()
        (line,) = self._out.getvalue().splitlines()
        found: dict[str, Any] = json.loads(line)
        return found


Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Serve = Callable[[Handle], Awaitable[Slot]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Yield a function that starts a server and returns a slot on it."""
    async with AsyncExitStack() as stack:

        async def begin(handle: Handle) -> Slot:
            async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                try:
                    await handle(reader, writer)
                    await writer.drain()
                except (ConnectionError, asyncio.IncompleteReadError):
                    pass
                finally:
                    writer.close()

            server = await stack.enter_async_context(await asyncio.start_server(closing, "127.0.0.1", 0))
            return Slot(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base")

        yield begin


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the condition was not met in time")


async def test_bytes_pass_both_ways_until_the_server_ends(serve: Serve) -> None:
    heads: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(SWITCHED + b"hello ")
        writer.write(await reader.readexactly(8))

    slot = await serve(handle)
    harness = Harness(Passthrough([slot]))
    harness.tunnel.connection_made(harness.transport)
    harness.tunnel.data_received(b"1234")
    await until(lambda: b"hello" in harness.transport.out)
    harness.tunnel.data_received(b"5678")
    line = await harness.closed()
    head, _, rest = bytes(harness.transport.out).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"Connection: Upgrade\r\nUpgrade: strange" in head
    assert rest == b"hello 12345678"
    assert (line["status"], line["finish"], line["bytes"], line["path"]) == (101, "done", 14, "/ws")
    assert slot.outcomes[0] is Outcome.PASSED
    assert heads[0].startswith(b"GET /base/ws?x=1 HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"X-Key: own" in heads[0]
    assert b"Bearer k" not in heads[0]


async def test_a_response_that_does_not_switch_is_passed_on_whole(serve: Serve) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 4\r\n\r\nnope")
        await writer.drain()
        await asyncio.sleep(5)  # the connection stays open: the response is whole all the same

    slot = await serve(handle)
    harness = Harness(Passthrough([slot]))
    harness.tunnel.connection_made(harness.transport)
    line = await harness.closed()
    assert bytes(harness.transport.out).startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
    assert bytes(harness.transport.out).endswith(b"Connection: close\r\n\r\nnope")
    assert (line["status"], line["finish"]) == (426, "done")


@pytest.mark.parametrize(
    ("raw", "text", "outcome"),
    [
        (b"SSH-2.0-server\r\n\r\n", "b1 answered with something that is not HTTP.", Outcome.CLIENT_LEFT),
        (b"HTTP/1.1 abc\r\n\r\n", "b1 answered with something that is not HTTP.", Outcome.CLIENT_LEFT),
        (b"", "b1 did not answer the request to switch to strange.", Outcome.FIRST_BYTE),
        (None, "b1 did not answer the request to switch to strange.", Outcome.FIRST_BYTE),
    ],
)
async def test_a_server_without_a_response_is_a_bad_gateway(
    serve: Serve, raw: bytes | None, text: str, outcome: Outcome
) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if raw is None:
            await asyncio.sleep(5)
        else:
            writer.write(raw)

    slot = await serve(handle)
    harness = Harness(Passthrough([slot]))
    harness.tunnel.connection_made(harness.transport)
    line = await harness.closed()
    status, _, body = bytes(harness.transport.out).partition(b" ")
    assert (status, json.loads(body)["error"]["message"]) == (b"502", text)
    assert (line["status"], line["finish"], line["error"]) == (502, "done", f"upstream: {text}")
    assert slot.outcomes[0] is outcome


async def test_a_server_that_cannot_be_reached_is_passed_over(serve: Serve) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCHED)

    gone, slot = Slot("http://127.0.0.1:9", "gone"), await serve(handle)
    harness = Harness(Passthrough([gone, slot]))
    harness.tunnel.connection_made(harness.transport)
    assert (await harness.closed())["status"] == 101
    assert gone.outcomes == [Outcome.CONNECT]


@pytest.mark.parametrize(
    ("slots", "options"),
    [
        ([Slot("http://127.0.0.1:9", "gone")], NO_OPTIONS),
        (
            [Slot("http://127.0.0.1:9", "gone"), Slot("http://127.0.0.1:9", "other")],
            RequestOptions(pin="gone"),
        ),
    ],
)
async def test_without_another_server_it_is_unavailable(slots: list[Slot], options: RequestOptions) -> None:
    harness = Harness(Passthrough(slots, options))
    harness.tunnel.connection_made(harness.transport)
    line = await harness.closed()
    assert line["error"] == "unavailable: No backend available: gone could not be reached."
    assert (line["status"], line["finish"]) == (503, "done")


async def test_a_refused_client_gets_the_error() -> None:
    passthrough = Passthrough([])
    passthrough.error = NotFound("There is no backend 'x' that can be reached directly. Known: .")
    harness = Harness(passthrough)
    harness.tunnel.connection_made(harness.transport)
    assert (await harness.closed())["status"] == 404


async def test_a_client_that_leaves_closes_the_server_connection(serve: Serve) -> None:
    gone = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCHED)
        try:
            await reader.read()
        finally:
            gone.set()

    harness = Harness(Passthrough([await serve(handle)]))
    harness.tunnel.connection_made(harness.transport)
    await until(lambda: b"101" in harness.transport.out)
    harness.tunnel.connection_lost(None)
    line = await harness.closed()
    assert (line["status"], line["finish"]) == (101, "client_left")
    await asyncio.wait_for(gone.wait(), 2)


async def test_a_client_that_leaves_at_once_is_not_counted(serve: Serve) -> None:
    harness = Harness(Passthrough([Slot("http://127.0.0.1:9")]))
    harness.tunnel.connection_made(harness.transport)
    harness.tunnel.connection_lost(None)
    await asyncio.sleep(0.05)
    assert harness.pipeline.in_flight == 0


async def test_each_side_waits_for_the_other(serve: Serve) -> None:
    may_read = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCHED)
        await may_read.wait()
        data = await reader.read()
        writer.write(b"%d" % len(data))

    harness = Harness(Passthrough([await serve(handle)]))
    harness.tunnel.connection_made(harness.transport)
    harness.tunnel.data_received(b"x" * (MAX_UNSENT_BYTES + 1))
    assert not harness.transport.is_reading  # the server does not take it yet
    harness.tunnel.pause_writing()
    may_read.set()
    await until(lambda: harness.transport.is_reading)
    assert harness.tunnel.eof_received()
    await asyncio.sleep(0.1)
    # the client does not read
    assert bytes(harness.transport.out).endswith(b"\r\n\r\n") or not harness.transport.out
    harness.tunnel.resume_writing()
    await harness.closed()
    assert bytes(harness.transport.out).endswith(b"\r\n\r\n%d" % (MAX_UNSENT_BYTES + 1))


def websocket_head(more: bytes = b"") -> bytes:
    return HEAD.replace(b"strange", b"websocket").replace(b"\r\n\r\n", b"\r\n" + more + b"\r\n")


@pytest.mark.parametrize("has_switched", [False, True])
@pytest.mark.parametrize("how", ["end", "reset"])
async def test_a_websocket_client_that_leaves_frees_the_slot_at_once(
    serve: Serve, has_switched: bool, how: str
) -> None:
    gone = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if has_switched:
            writer.write(SWITCHED)
        with suppress(ConnectionError):
            while await reader.read(1000):
                pass
        gone.set()
        await asyncio.sleep(30)  # it does not close by itself

    slot = await serve(handle)
    harness = Harness(Passthrough([slot]), head=websocket_head())
    harness.tunnel.connection_made(harness.transport)
    await until(lambda: bool(harness.transport.out) or not has_switched)
    await asyncio.sleep(0.05)
    if how == "end":
        assert not harness.tunnel.eof_received()
    else:
        harness.tunnel.connection_lost(None)
    await asyncio.wait_for(gone.wait(), 0.5)
    assert (await harness.closed())["finish"] == "client_left"
    assert slot.outcomes[0] is Outcome.CLIENT_LEFT
    assert harness.pipeline.in_flight == 0


async def test_half_an_end_of_another_protocol_is_not_waited_for_without_limit(serve: Serve) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCHED)
        await reader.read()
        await asyncio.sleep(30)

    harness = Harness(Passthrough([await serve(handle)]), write_timeout_s=0.2)
    harness.tunnel.connection_made(harness.transport)
    await until(lambda: bool(harness.transport.out))
    await asyncio.sleep(0.3)
    assert harness.pipeline.in_flight == 1  # silence alone is no end
    assert harness.tunnel.eof_received()
    assert (await harness.closed())["finish"] == "done"


@pytest.mark.parametrize("field", [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_request_with_a_body_does_not_switch(field: bytes) -> None:
    assert parse_upgrade(websocket_head(b"Content-Length: 0\r\n")) is not None
    assert parse_upgrade(websocket_head(field)) is None


async def test_a_server_that_takes_nothing_ends_the_tunnel(serve: Serve) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCHED)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(30)

    slot = await serve(handle)
    harness = Harness(Passthrough([slot]), write_timeout_s=0.3)
    harness.tunnel.connection_made(harness.transport)
    await until(lambda: bool(harness.transport.out))
    harness.tunnel.data_received(b"x" * 30_000_000)
    assert not harness.transport.is_reading
    await harness.closed()
    assert slot.outcomes
