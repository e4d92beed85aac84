"""The upstream pool, against a server that is scripted byte by byte."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trustme

from appliance.base.wire import BrokenAnswer, Target, Unreachable, UpstreamTimeout, Wire, WireLimits
from tests.journeys.running import until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\nTrailer: x\r\n\r\n"


class Server:
    """Answers each request by the script; counts connections and who left."""

    def __init__(self) -> None:
        self.answer: Callable[[asyncio.StreamWriter], Awaitable[bool | None]] = self.say(OK)
        self.connections = 0
        self.requests: list[bytes] = []
        self.left = 0
        self.port = 0

    @staticmethod
    def say(*pieces: bytes, pause_s: float = 0.0, close: bool = False):
        async def answer(writer: asyncio.StreamWriter) -> bool:
            for number, piece in enumerate(pieces):
                if number and pause_s:
                    await asyncio.sleep(pause_s)
                writer.write(piece)
                await writer.drain()
            return close
        return answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                answering = asyncio.ensure_future(self.answer(writer))
                gone = asyncio.ensure_future(reader.read(1))
                await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    self.left += 1
                    answering.cancel()
                    return
                gone.cancel()
                await asyncio.gather(gone, return_exceptions=True)
                if answering.result():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    one = Server()
    listener = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    one.port = listener.sockets[0].getsockname()[1]
    yield one
    listener.close()


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    async with Wire(WireLimits(connect_s=2, first_byte_s=5, idle_s=5, max_connections=3)) as pool:
        yield pool


def target(server: Server) -> Target:
    return Target.parse(f"http://127.0.0.1:{server.port}/v1/", headers={"Authorization": "Bearer k"})


async def whole(wire: Wire, server: Server, **more) -> bytes:
    return await (await wire.send(target(server), path=b"/x", body=b"{}", **more)).read()


async def test_a_request_is_written_right_and_connections_are_kept(server: Server, wire: Wire) -> None:
    assert [await whole(wire, server) for _ in range(5)] == [b"hello"] * 5
    assert server.connections == 1
    assert wire.stats() == {"open": 1, "idle": 1, "in_use": 0, "waiting": 0, "opened_total": 1, "reused_total": 4}
    assert server.requests[0].startswith(b"POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nAuthorization: Bearer k\r\n" in server.requests[0]
    assert server.requests[0].endswith(b"\r\n\r\n{}")


@pytest.mark.parametrize("at", range(1, len(CHUNKED), 4))
async def test_an_answer_may_be_cut_anywhere(server: Server, wire: Wire, at: int) -> None:
    server.answer = server.say(CHUNKED[:at], CHUNKED[at:], pause_s=0.001)
    assert await whole(wire, server) == b"hello"
    assert wire.stats()["idle"] == 1


@pytest.mark.parametrize(("answer", "close", "found"), [
    (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", True, b"until the end"), (b"HTTP/1.1 204 No Content\r\n\r\n", False, b""),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, False, b"hello"), (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", True, b"hi"),
    (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi", True, b"hi"),
])
async def test_every_framing_is_read(server: Server, wire: Wire, answer: bytes, close: bool, found: bytes) -> None:
    server.answer = server.say(answer, close=close)
    assert await whole(wire, server) == found


@pytest.mark.parametrize(("answer", "close"), [
    (b"rubbish\r\n\r\n", False), (b"", True), (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", True), (CHUNKED[:-10], True),
    (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000, False), (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", False),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", False), (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", False),
])
async def test_a_broken_answer_is_said_to_be_one(server: Server, wire: Wire, answer: bytes, close: bool) -> None:
    server.answer = server.say(answer, close=close)
    with pytest.raises(BrokenAnswer):
        await whole(wire, server, first_byte_s=2)
    assert wire.stats()["open"] == 0


async def test_bytes_after_an_answer_end_the_connection(server: Server, wire: Wire) -> None:
    server.answer = server.say(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsmugld")
    assert await whole(wire, server) == b"hello"
    server.answer = server.say(OK)
    assert await whole(wire, server) == b"hello"
    assert server.connections == 2


async def test_each_patience_has_its_own_error(server: Server, wire: Wire) -> None:
    server.answer = server.say(b"", OK, pause_s=30)
    with pytest.raises(UpstreamTimeout) as caught:
        await whole(wire, server, first_byte_s=0.2)
    assert caught.value.phase == "first_byte"
    server.answer = server.say(OK[:-2], OK[-2:], pause_s=30)
    with pytest.raises(UpstreamTimeout) as caught:
        await whole(wire, server, idle_s=0.2)
    assert caught.value.phase == "idle"
    with pytest.raises(UpstreamTimeout) as caught:
        await whole(wire, server, total_s=0.2)
    assert caught.value.phase == "total"
    assert await until(lambda: server.left == 3)


async def test_who_cannot_be_reached_is_named(wire: Wire) -> None:
    with pytest.raises(Unreachable) as caught:
        await wire.send(Target.parse("http://127.0.0.1:9/"))
    assert "127.0.0.1:9" in caught.value.message
    with pytest.raises(Unreachable) as caught:
        await wire.send(Target.parse("http://no-such-host.invalid/"))
    assert caught.value.phase == "dns"
    assert wire.stats()["open"] == 0


async def test_leaving_closes_the_connection_at_once(server: Server, wire: Wire) -> None:
    server.answer = server.say(b"", OK, pause_s=30)
    task = asyncio.ensure_future(whole(wire, server))
    assert await until(lambda: bool(server.requests))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await until(lambda: server.left == 1, seconds=1)
    assert wire.stats()["open"] == 0


async def test_the_line_before_a_full_pool_is_fair_and_can_be_left(server: Server, wire: Wire) -> None:
    server.answer = server.say(b"", OK, pause_s=0.1)
    order: list[int] = []

    async def one(number: int) -> None:
        await whole(wire, server)
        order.append(number)

    tasks = []
    for number in range(9):
        tasks.append(asyncio.ensure_future(one(number)))
        await asyncio.sleep(0.005)
    tasks[4].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert server.connections <= 3
    assert sorted(order) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert order.index(3) < order.index(8)
    assert wire.stats()["waiting"] == 0


async def test_a_kept_connection_that_the_server_closed_is_replaced(server: Server, wire: Wire) -> None:
    assert await whole(wire, server) == b"hello"
    answers = iter([server.say(b"", close=True), server.say(OK)])

    async def next_answer(writer: asyncio.StreamWriter) -> bool | None:
        return await next(answers)(writer)

    server.answer = next_answer
    assert await whole(wire, server) == b"hello"
    assert server.connections == 2


async def test_a_fresh_connection_that_closes_without_an_answer_is_not_asked_again(server: Server, wire: Wire) -> None:
    server.answer = server.say(b"", close=True)
    with pytest.raises(BrokenAnswer):
        await whole(wire, server)
    assert len(server.requests) == 1


async def test_a_reader_that_pauses_holds_the_server_back(server: Server, wire: Wire) -> None:
    size = 20_000_000
    server.answer = server.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, b"x" * size)
    response = await wire.send(target(server), body=b"{}")
    await asyncio.sleep(0.3)
    assert response._connection._body_bytes < 2_000_000
    total = 0
    while piece := await response.next_piece():
        total += len(piece)
    assert total == size
    response.close()
    assert wire.stats()["idle"] == 1


@pytest.mark.parametrize(("name", "trusted", "reason"), [("localhost", True, ""), ("other.example", True, "mismatch"), ("localhost", False, "self")])
async def test_tls_is_verified(name: str, trusted: bool, reason: str) -> None:
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(name).configure_cert(context)
    one = Server()
    listener = await asyncio.start_server(one.serve, "127.0.0.1", 0, ssl=context)
    client = ssl.create_default_context()
    if trusted:
        ca.configure_trust(client)
    async with Wire(WireLimits(connect_s=5), ssl_context=client) as pool:
        to = Target.parse(f"https://localhost:{listener.sockets[0].getsockname()[1]}")
        if not reason:
            assert await (await pool.send(to, body=b"{}")).read() == b"hello"
        else:
            with pytest.raises(Unreachable) as caught:
                await pool.send(to, body=b"{}")
            assert caught.value.phase == "tls"
    listener.close()


@pytest.mark.parametrize("address", ["ftp://x", "localhost", "http://", "http://x/\r\n"])
def test_only_addresses_are_targets(address: str) -> None:
    try:
        made = Target.parse(address)
    except ValueError:
        return
    assert b"\r" not in made.prefix


def test_a_header_cannot_smuggle_another() -> None:
    with pytest.raises(ValueError, match="line break"):
        Target.parse("http://x", headers={"A": "b\r\nC: d"})
