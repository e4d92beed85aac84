"""Clients that mean harm, on real sockets: what one of them can hold, and what the others notice of it."""

import asyncio
import io
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from appliance.base.clock import SystemClock
from appliance.base.metrics.registry import Metrics
from appliance.base.tasks import Tasks
from appliance.base.watch import Watched
from appliance.engines.receipts import Receipts
from appliance.front.pipeline.access_log import AccessLog
from appliance.front.pipeline.pipeline import RequestPipeline
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response
from appliance.front.pipeline.route import Route
from appliance.front.server.fast_connection import PIPELINED_BYTES, FastConnection
from appliance.front.server.server import HttpServer, serving_http
from appliance.front.settings import FrontSettings
from tests.journeys.running import until

LARGE_BYTES = 30_000_000
SMALL = b"POST /small HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
LARGE_HOT = b"POST /large HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
LARGE_COLD = b"GET /cold HTTP/1.1\r\nHost: x\r\n\r\n"


class Server:
    """A server on loopback with a small hot answer, and a large one on a hot and on a cold address."""

    def __init__(self, **settings: Any) -> None:
        self.receipts, self.tasks, self.clock = Receipts(), Tasks(), SystemClock()
        self.log = io.StringIO()
        self.pipeline = RequestPipeline(
            FrontSettings(_env_file=None, **settings),
            receipts=self.receipts,
            metrics=Metrics(),
            access_log=AccessLog(clock=self.clock, form="json", stream=self.log),
            clock=self.clock,
            state=Watched("serving"),
        )
        routes = [
            Route(("POST",), "/small", self.small, is_hot=True),
            Route(("POST",), "/large", self.large, is_hot=True),
            Route(("GET",), "/cold", self.large),
        ]
        self.http = HttpServer(routes, self.pipeline, clock=self.clock)
        self.address = ("127.0.0.1", 0)
        self.body = b"x" * LARGE_BYTES

    async def small(self, request: Request) -> Response:
        return Response(200, b"y" * 200)

    async def large(self, request: Request) -> Response:
        return Response(200, self.body)

    def open_connections(self) -> list[FastConnection]:
        return [one for one in self.http.connections._all if isinstance(one, FastConnection)]

    def held_bytes(self) -> int:
        """What all connections hold of requests and of responses."""
        held = 0
        for one in self.open_connections():
            held += len(one._buffer) + sum(map(len, one._body)) + one._transport.get_write_buffer_size()
        return held

    async def latency_s(self, count: int = 30) -> float:
        """The median time of a small request of a well-behaved client."""
        reader, writer = await asyncio.open_connection(*self.address)
        took = []
        for _ in range(count):
            began = time.perf_counter()
            writer.write(SMALL)
            await reader.readuntil(b"y" * 200)
            took.append(time.perf_counter() - began)
            await asyncio.sleep(0.002)
        writer.close()
        return sorted(took)[count // 2]


@pytest.fixture
async def serve() -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:

        async def begin(**settings: Any) -> Server:
            server = Server(**settings)
            bound = await stack.enter_async_context(
                serving_http(
                    server.http,
                    [server.address],
                    hurry=asyncio.Event(),
                    tasks=server.tasks,
                    grace_s=lambda: 0.1,
                )
            )
            server.address = bound[0]
            return server

        yield begin


async def connect_deaf(server: Server) -> socket.socket:
    """Connect a client that will not read: its window is small."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, server.address)
    return client


async def send_while_it_takes(client: socket.socket, data: bytes, seconds: float) -> int:
    """Send `data` again and again for some seconds at most; return what was taken."""
    sent, deadline = 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            sent += client.send(data)
        except BlockingIOError:
            await asyncio.sleep(0.002)
        except ConnectionError:
            break
    return sent


async def test_pipelining_without_reading_is_bounded_and_ends(serve) -> None:
    server = await serve(write_timeout_s=1.5)
    client = await connect_deaf(server)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, server.held_bytes())
            await asyncio.sleep(0.01)

    watcher = asyncio.create_task(watch())
    sent = await send_while_it_takes(client, SMALL * 2000, 1.0)
    watcher.cancel()
    assert sent < 20_000_000
    assert most < PIPELINED_BYTES + 600_000  # one read of the loop's and the writer's high-water mark
    assert await until(lambda: not server.open_connections(), seconds=8)
    assert server.pipeline.in_flight == 0
    client.close()


async def test_a_hostile_pipeline_does_not_slow_others_down(serve) -> None:
    server = await serve()
    alone_s = await server.latency_s()
    client = await connect_deaf(server)
    flood = asyncio.create_task(send_while_it_takes(client, SMALL * 2000, 30))
    await asyncio.sleep(0.1)
    beside_s = await server.latency_s()
    flood.cancel()
    with suppress(asyncio.CancelledError):
        await flood
    client.close()
    assert beside_s < alone_s * 30, (alone_s, beside_s)


@pytest.mark.parametrize("ask", [LARGE_HOT, LARGE_COLD])
async def test_a_large_answer_that_is_not_read_is_given_up(serve, ask: bytes) -> None:
    server = await serve(write_timeout_s=1.0)
    client = await connect_deaf(server)
    client.send(ask)
    assert await until(lambda: server.pipeline.in_flight == 1)
    await asyncio.sleep(0.5)
    assert server.pipeline.in_flight == 1  # it is not answered before the client has it
    assert await until(lambda: not server.open_connections(), seconds=8)
    assert server.pipeline.in_flight == 0
    client.close()


@pytest.mark.parametrize("ask", [LARGE_HOT, LARGE_COLD])
async def test_a_client_that_reads_slowly_gets_everything(serve, ask: bytes) -> None:
    server = await serve(write_timeout_s=1.0)
    reader, writer = await asyncio.open_connection(*server.address, limit=65_536)
    writer.write(ask)
    await reader.readuntil(b"\r\n\r\n")
    left = LARGE_BYTES
    began = time.monotonic()
    while left:
        left -= len(await reader.read(1_000_000))
        # longer than WRITE_TIMEOUT_S in all
        await asyncio.sleep(0.006 if time.monotonic() - began < 3 else 0)
    assert await until(lambda: server.pipeline.in_flight == 0)
    writer.close()


# ---- pages in a browser on this machine


PAGE = b"Host: %b\r\nOrigin: %b\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}"


async def talk(server: Server, data: bytes) -> bytes:
    """Send bytes; return all that comes until the server closes or is silent."""
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(data)
    out = b""
    with suppress(TimeoutError, ConnectionResetError):
        while piece := await asyncio.wait_for(reader.read(65_536), 0.3):
            out += piece
    writer.close()
    return out


@pytest.mark.parametrize("target", [b"POST /small", b"POST /small?x=1"])
@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        (b"localhost:14000", b"https://evil.example", 403),
        (b"evil.example:14000", b"http://evil.example:14000", 403),
        (b"localhost:14000", b"null", 403),
        (b"localhost:14000", b"http://localhost:14000", 200),
        (b"localhost:14000", b"https://app.example", 200),
    ],
)
async def test_a_page_of_another_site_may_not_use_the_models(
    serve, target: bytes, host: bytes, origin: bytes, status: int
) -> None:
    server = await serve(cors_origins="https://app.example")
    out = await talk(server, target + b" HTTP/1.1\r\n" + PAGE % (host, origin))
    assert int(out.split(b" ")[1]) == status
    assert (b"Access-Control-Allow-Origin: https://app.example\r\n" in out) is (b"app" in origin)
    assert (b'"code":"origin_not_allowed"' in out or b'"code":"host_not_allowed"' in out) is (status == 403)


@pytest.mark.parametrize(
    ("ask", "status"),
    [
        (b"POST /small HTTP/1.1\r\nContent-Length: 2\r\n%b\r\n{}", 401),
        (b"POST /small?x=1 HTTP/1.1\r\nContent-Length: 2\r\n%b\r\n{}", 401),
        (b"GET /cold HTTP/1.1\r\n%b\r\n", 401),
        (b"POST /small HTTP/1.1\r\nContent-Length: 99999999999\r\n%b\r\n", 413),
        (b"POST /small?x=1 HTTP/1.1\r\nContent-Length: 99999999999\r\nX-Api-Key: a-long-key\r\n%b\r\n", 413),
        (b"GET /none HTTP/1.1\r\n%b\r\n", 404),
        (b"PUT /small HTTP/1.1\r\n%b\r\n", 405),
    ],
)
async def test_a_page_can_read_refusals(serve, ask: bytes, status: int) -> None:
    server = await serve(cors_origins="https://app.example", appliance_api_keys="a-long-key")
    out = await talk(server, ask % b"Host: x\r\nOrigin: https://app.example\r\n")
    assert int(out.split(b" ")[1]) == status
    assert out.count(b"Access-Control-Allow-Origin: https://app.example\r\n") == 1


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0", b"strange"])
@pytest.mark.parametrize("body", [b"", b"{}"])
@pytest.mark.parametrize("target", [b"/small", b"/small?x=1"])
async def test_an_offer_to_switch_is_answered_as_http_1(
    serve, protocol: bytes, body: bytes, target: bytes
) -> None:
    server = await serve()
    ask = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\n" % (
        target,
        protocol,
    ) + b"HTTP2-Settings: AAMAAABk\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    out = await talk(server, ask * 2)
    answered = out.count(b"HTTP/1.1 200 OK\r\n")
    assert answered == out.count(b"y" * 200)
    assert out.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answered == 2 or b"?" in target  # aiohttp's part may close after the first one


# ---- requests that cannot be read

H = b"Host: x\r\n"


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"GARBAGE\r\n\r\n", 400, ""),
        (b"GET /cold\r\n\r\n", 505, "http_version"),
        (b"GET /cold?key=s3cret HTTP/1.1\r\nHost: x\r\nBad Header: s3cret\r\n\r\n", 400, ""),
        (b"GET /cold HTTP/1.1\r\nHost: x\r\n folded: s3cret\r\n\r\n", 400, ""),
        (b"GET /cold HTTP/1.1\r\nHost: x\r\nA: \x00s3cret\r\n\r\n", 400, ""),
        (b"G\xffT /cold?s3cret HTTP/1.1\r\nHost: x\r\n\r\n", 400, ""),
        (b"GET /cold HTTP/9.9\r\nHost: x\r\n\r\n", 400, ""),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, ""),
        (b"GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400, ""),
        (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", 404, ""),
        (b"GET /cold HTTP/1.1\r\n\r\n", 400, "*"),
        (b"GET /cold HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, "*"),
        (b"POST /small HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 400, "*"),
        (b"POST /small HTTP/1.1\r\nHost: x\r\nHost: y\r\nContent-Length: 2\r\n\r\n{}", 400, "*"),
        (b"POST /small HTTP/1.1\r\n" + H + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400, "invalid_framing"),
        (b"POST /small HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "*"),
        (b"POST /small HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n", 400, ""),
        (b"POST /small HTTP/1.1\r\n" + H + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400, "*"),
        (b"POST /small HTTP/1.1\r\n" + H + b"Content-Length: +2\r\n\r\n{}", 400, ""),
        (b"POST /small HTTP/1.1\r\n" + H + b"Content-Length: 0x2\r\n\r\n{}", 400, ""),
        (b"POST /small HTTP/1.1\r\n" + H + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400, "*"),
        (b"POST /small HTTP/1.1\r\n" + H + b"Expect: \xff\r\nContent-Length: 2\r\n\r\n{}", 417, "unknown_expect"),
        (b"GET /cold HTTP/1.1\r\n" + H + b"Expect: \xff\r\n\r\n", 417, "unknown_expect"),
        (b"GET /none HTTP/1.1\r\n" + H + b"Expect: 200-ok\r\n\r\n", 417, "unknown_expect"),
        (b"OPTIONS * HTTP/1.1\r\n" + H + b"Expect: \xff\r\n\r\n", 400, ""),
        (b"OPTIONS * HTTP/1.1\r\n" + H + b"\r\n", 404, ""),
        (b"POST /small?x HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, ""),
        (b"POST /small?x HTTP/1.1\r\n" + H + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", 400, "*"),
    ],
)  # fmt: skip
async def test_what_cannot_be_read_is_refused_in_the_dialect(
    serve, capsys, data: bytes, status: int, code: str
) -> None:
    server = await serve()
    out = await talk(server, data)
    head, _, body = out.partition(b"\r\n\r\n")
    assert int(head.split(b" ")[1]) == status, out
    assert b"aiohttp" not in out.lower()
    assert b"Python" not in head
    error = json.loads(body)["error"]
    assert code in ("*", error["code"] or "")
    server.pipeline.access_log.flush()
    told = capsys.readouterr()
    for text in (told.out, told.err, server.log.getvalue(), out.decode("latin-1")):
        assert "s3cret" not in text
        assert "Traceback" not in text


async def test_a_malformed_chunk_that_comes_later_is_answered_at_once(serve) -> None:
    server = await serve()
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(b"POST /small HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
    assert await until(lambda: server.pipeline.in_flight == 1)
    writer.write(b"zz\r\nxx\r\n")
    out = await asyncio.wait_for(reader.read(), 3)
    assert out.startswith(b"HTTP/1.1 400 ")
    assert b"The request body cannot be read" in out
    assert out.count(b"HTTP/1.1") == 1
    writer.close()


async def test_many_malformed_requests_are_few_short_lines_in_the_log(serve, capsys) -> None:
    server = await serve()
    for number in range(30):
        await asyncio.gather(*(talk_once(server, b"G\xffT /%d HTTP/1.1\r\nx" % number) for _ in range(3)))
    server.pipeline.access_log.flush()
    told = capsys.readouterr()
    lines = [line for line in (told.out + told.err + server.log.getvalue()).splitlines() if line]
    assert len(lines) <= 2
    assert all(len(line) < 300 and "malformed_request" in line for line in lines)


async def talk_once(server: Server, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(data + b"\r\n\r\n")
    out = await reader.read()
    writer.close()
    assert b" 400 Bad Request" in out
    return out


async def test_tls_to_the_plain_port_is_closed_at_once(serve, capsys) -> None:
    server = await serve()
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(32))
    for _ in range(3):
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(hello)
        assert await asyncio.wait_for(reader.read(), 1) == b""
        writer.close()
    told = capsys.readouterr()
    assert (told.out + told.err).count("tls_on_plain_port") == 1


@pytest.mark.parametrize("size", [31_000, 33_000])
@pytest.mark.parametrize("line", [b"POST /small", b"POST /small?x=1"])
async def test_one_limit_for_header_fields_hot_and_cold(serve, line: bytes, size: int) -> None:
    server = await serve()
    head = line + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nX-Long: %b\r\n\r\n{}" % (b"a" * size)
    status = int((await talk(server, head)).split(b" ")[1])
    assert status == (200 if size < 32_768 else 431)


async def test_the_head_is_bounded_for_later_requests_too(serve) -> None:
    server = await serve()
    first = b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n"
    many = b"".join(b"X-%d: %b\r\n" % (number, b"a" * 1000) for number in range(40))
    out = await talk(server, first + b"GET /none HTTP/1.1\r\nHost: x\r\n" + many + b"\r\n")
    assert [int(part[:3]) for part in out.split(b"HTTP/1.1 ")[1:]] == [404, 431]


@pytest.mark.parametrize(
    "head",
    [
        b"POST /small HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
        b"POST /small?x=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
        b"POST /small HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n",
    ],
)
async def test_a_body_that_trickles_is_refused_hot_and_cold(serve, head: bytes) -> None:
    server = await serve(body_timeout_s=0.5)
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(head)

    async def trickle() -> None:
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.05)

    trickling = asyncio.create_task(trickle())
    out = await asyncio.wait_for(reader.readuntil(b"}}"), 5)
    trickling.cancel()
    assert out.startswith(b"HTTP/1.1 408 ")
    assert b"(BODY_TIMEOUT_S)" in out
    writer.close()
