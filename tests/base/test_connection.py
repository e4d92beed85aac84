"""One response, byte by byte, without a socket: what is read, what is refused, what may follow it."""

import asyncio
import random
import socket
from math import inf
from typing import Any

import pytest

from appliance.base.wire.connection import UNREAD_BYTES, Connection
from appliance.base.wire.response import UpstreamResponse
from appliance.base.wire.types import BrokenResponse, StaleConnection, UpstreamTimeout, WireError
from appliance.base.write_batch import WriteBatch

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED_HEAD = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNKED = (
    HEAD
    + b"Transfer-Encoding: chunked\r\nX-A: 1\r\n\r\n"
    + b"3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\nTrailer: x\r\nX-A: evil\r\n\r\n"
)


class FakeTransport:
    """Records what a connection does to its socket."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        self.sock = sock
        self.written = bytearray()
        self.is_reading = True
        self.is_aborted = False

    def get_extra_info(self, name: str) -> Any:
        return self.sock

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True


class StoppedLoop:
    """The running loop with a clock that moves when told to."""

    def __init__(self) -> None:
        self.at_s = 1000.0

    def time(self) -> float:
        return self.at_s

    def create_future(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()


class AtOnce(WriteBatch):
    """Writes without waiting for the end of the turn."""

    def __init__(self) -> None:
        """Need no loop."""

    def write(self, transport: Any, data: bytes) -> None:
        transport.write(data)


class Exchange:
    """A connection with a request under way; `feed` plays the server."""

    def __init__(
        self,
        *,
        is_head: bool = False,
        max_body_bytes: int = 10_000_000,
        max_head_bytes: int = 65_536,
        idle_s: float | None = None,
        ends_s: float = inf,
    ) -> None:
        self.released = self.forgotten = 0
        self.loop = StoppedLoop()
        self.transport = FakeTransport()
        self.connection = Connection(
            self,
            ("server", 80, False, None),
            self.loop,  # type: ignore[arg-type]
            writes=AtOnce(),
            max_body_bytes=max_body_bytes,
            max_head_bytes=max_head_bytes,
        )
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]
        self.pending = self.connection.start(b"request", is_head=is_head, idle_s=idle_s, ends_s=ends_s)

    def release(self, connection: Connection) -> None:
        self.released += 1

    def forget(self, connection: Connection) -> None:
        self.forgotten += 1

    def feed(self, *pieces: bytes) -> "Exchange":
        for piece in pieces:
            if not self.transport.is_aborted and self.pending.connection is not None:
                self.connection.data_received(piece)
        return self

    def end(self, exc: Exception | None = None) -> "Exchange":
        self.connection.connection_lost(exc)
        return self

    @property
    def response(self) -> UpstreamResponse:
        return UpstreamResponse(self.pending)

    @property
    def error(self) -> WireError | None:
        return self.pending.error

    @property
    def is_kept(self) -> bool:
        return (self.released, self.forgotten, self.transport.is_aborted) == (1, 0, False)


@pytest.mark.parametrize("at", range(1, len(CHUNKED)))
async def test_chunked_response_may_be_cut_anywhere(at: int) -> None:
    exchange = Exchange().feed(CHUNKED[:at], CHUNKED[at:])
    assert await exchange.response.read() == b"hello"
    assert exchange.response.headers == {"transfer-encoding": "chunked", "x-a": "1"}
    assert exchange.is_kept


@pytest.mark.parametrize("response", [OK, CHUNKED, b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + CHUNKED])
async def test_response_may_arrive_byte_by_byte(response: bytes) -> None:
    exchange = Exchange().feed(*(response[at : at + 1] for at in range(len(response))))
    assert await exchange.response.read() == b"hello"
    assert exchange.is_kept


@pytest.mark.parametrize("seed", range(20))
async def test_any_body_cut_anywhere_is_read_completely(seed: int) -> None:
    chance = random.Random(seed)
    chunks = [
        chance.randbytes(chance.choice([1, 2, 15, 16, 255, 4096, 70_000]))
        for _ in range(chance.randint(1, 60))
    ]
    text = CHUNKED_HEAD + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
    exchange = Exchange()
    found = b""
    while text:
        cut = chance.choice([1, 3, 100, 5000, 262_144])
        exchange.feed(text[:cut])
        text = text[cut:]
        if exchange.pending.chunks and chance.random() < 0.5:
            found += await exchange.response.next_chunk() or b""
    assert found + await exchange.response.read() == b"".join(chunks)
    assert exchange.is_kept


@pytest.mark.parametrize(
    ("response", "body", "is_kept"),
    [
        (OK, b"hello", True),
        (CHUNKED, b"hello", True),
        (HEAD + b"Content-Length: 0\r\n\r\n", b"", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n", b"", True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, b"hello", True),
        (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", b"hi", True),
        (HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\nhi", b"hi", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"hi", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi", b"hi", True),
        # An offer, not a switch:
        (HEAD + b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nhi", b"hi", True),
        (CHUNKED_HEAD + b"A\r\n0123456789\r\n000\r\n\r\n", b"0123456789", True),
    ],
)
async def test_every_framing_is_read(response: bytes, body: bytes, is_kept: bool) -> None:
    exchange = Exchange().feed(response)
    assert await exchange.response.read() == body
    assert exchange.is_kept is is_kept
    assert exchange.released + exchange.forgotten == 1


@pytest.mark.parametrize("framing", [b"", b"Transfer-Encoding: gzip\r\n", b"Connection: close\r\n"])
async def test_response_without_length_ends_with_its_connection(framing: bytes) -> None:
    exchange = Exchange().feed(HEAD + framing + b"\r\n", b"until ", b"the end")
    assert not exchange.response.is_complete
    exchange.end()
    assert await exchange.response.read() == b"until the end"
    assert exchange.forgotten == 1


async def test_response_without_length_that_is_reset_is_broken() -> None:
    exchange = Exchange().feed(HEAD + b"\r\n", b"until").end(ConnectionResetError())
    response = exchange.response
    assert await response.next_chunk() == b"until"
    with pytest.raises(BrokenResponse):
        await response.next_chunk()


@pytest.mark.parametrize("framing", [b"Content-Length: 100\r\n", b"Transfer-Encoding: chunked\r\n"])
async def test_response_to_head_has_no_body(framing: bytes) -> None:
    exchange = Exchange(is_head=True).feed(HEAD + framing + b"\r\n")
    assert await exchange.response.read() == b""
    assert exchange.is_kept


async def test_body_after_a_head_response_closes_the_connection() -> None:
    exchange = Exchange(is_head=True).feed(OK)
    assert await exchange.response.read() == b""
    assert exchange.transport.is_aborted


@pytest.mark.parametrize(
    "response",
    [
        b"rubbish\r\n\r\n",
        b"\x16\x03\x01\x00\x02",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 099 Low\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        HEAD + b"Content-Length: x\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: +5\r\n\r\nhello",
        HEAD + b"Content-Length: 5, 5\r\n\r\nhello",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        HEAD + b"X : y\r\n\r\n",
        HEAD + b"X\x00: y\r\n\r\n",
        HEAD + b"X: a\x00b\r\n\r\n",
        HEAD + b"X: y\nZ: q\r\n\r\n",
        HEAD + b"no colon\r\n\r\n",
        HEAD + b"X: a\rb\r\n\r\n",
        CHUNKED_HEAD + b"zz\r\n",
        CHUNKED_HEAD + b"-1\r\n",
        CHUNKED_HEAD + b"0x5\r\nhello\r\n",
        CHUNKED_HEAD + b"FFFFFFFFFFFFFFFFF\r\n",
        CHUNKED_HEAD + b"5\nhello\r\n",
        CHUNKED_HEAD + b"2\r\nhello\r\n",
        CHUNKED_HEAD + b"5 \r\nhello\r\n",
        CHUNKED_HEAD + b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        CHUNKED_HEAD + b"\r\n\r\n",
    ],
    ids=lambda response: response[-40:].decode("latin-1").encode("unicode_escape").decode(),
)
async def test_ambiguous_framing_is_refused(response: bytes) -> None:
    exchange = Exchange().feed(response)
    assert isinstance(exchange.error, BrokenResponse)
    assert exchange.transport.is_aborted
    assert exchange.forgotten == 1
    assert not exchange.released


@pytest.mark.parametrize(
    "response",
    [
        HEAD,
        HEAD + b"Content-Length: 10\r\n\r\nhello",
        CHUNKED[:-2],
        CHUNKED_HEAD + b"5\r\nhello\r\n",
        b"H",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
async def test_cut_off_response_is_an_error(response: bytes) -> None:
    exchange = Exchange().feed(response).end()
    assert isinstance(exchange.error, BrokenResponse)
    assert exchange.error.was_sent
    with pytest.raises(BrokenResponse):
        await exchange.response.read()


async def test_chunks_before_the_break_are_returned_first() -> None:
    response = Exchange().feed(HEAD + b"Content-Length: 10\r\n\r\nhel", b"lo").end().response
    assert await response.next_chunk() == b"hello"
    for _ in range(2):
        with pytest.raises(BrokenResponse):
            await response.next_chunk()


@pytest.mark.parametrize(
    "response",
    [
        HEAD + b"X: " + b"a" * 70_000,  # without an end
        HEAD + b"X: " + b"a" * 70_000 + b"\r\nContent-Length: 0\r\n\r\n",  # whole
        HEAD + b"X: y\r\n" * 20_000 + b"\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 5000,
        CHUNKED_HEAD + b"1\r\nx\r\n0\r\nX: " + b"a" * 400_000,  # trailers without an end
        CHUNKED_HEAD + b"1\r\nx\r\n0\r\n" + b"X: y\r\n" * 80_000,
        CHUNKED_HEAD + b"1;" + b"a" * 400_000,  # a chunk extension without an end
    ],
)
@pytest.mark.parametrize("cut", [1_000_000, 16_384, 1000])
async def test_head_and_trailers_are_limited(response: bytes, cut: int) -> None:
    exchange = Exchange().feed(*(response[at : at + cut] for at in range(0, len(response), cut)))
    if cut > len(response) and response.startswith(CHUNKED_HEAD):
        # The piece with body in it counts as body: the kernel gives no larger ones than 256 KiB.
        exchange.feed(b"a" * 70_000)
    assert isinstance(exchange.error, BrokenResponse)
    assert "65536" in exchange.error.message


async def test_small_head_with_large_body_is_not_a_large_head() -> None:
    exchange = Exchange().feed(HEAD + b"Content-Length: 300000\r\n\r\n" + b"x" * 200_000, b"x" * 100_000)
    assert len(await exchange.response.read()) == 300_000


async def test_long_stream_of_small_chunks_is_not_a_large_head() -> None:
    exchange = Exchange().feed(CHUNKED_HEAD)
    response = exchange.response
    for _ in range(30_000):
        exchange.feed(b"5\r\n", b"hello", b"\r\n")  # the size apart from the data, as some servers write it
        assert await response.next_chunk() == b"hello"
    exchange.feed(b"0\r\n\r\n")
    assert await response.next_chunk() is None
    assert exchange.is_kept


@pytest.mark.parametrize("more", [OK, b"HTTP/1.1 2", b"rubbish", b"H"])
async def test_bytes_after_a_response_close_the_connection(more: bytes) -> None:
    exchange = Exchange().feed(OK + more)
    assert await exchange.response.read() == b"hello"
    assert exchange.response.status == 200
    assert exchange.transport.is_aborted
    assert (exchange.released, exchange.forgotten) == (0, 1)


async def test_bytes_on_an_idle_connection_close_it() -> None:
    exchange = Exchange().feed(OK)
    exchange.connection.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert exchange.transport.is_aborted
    assert exchange.forgotten == 1


async def test_response_is_unchanged_by_the_next_on_its_connection() -> None:
    exchange = Exchange().feed(HEAD + b"X-N: 1\r\nContent-Length: 3\r\n\r\none")
    first, first_response = exchange.pending, exchange.response
    exchange.pending = exchange.connection.start(b"", is_head=False, idle_s=None, ends_s=inf)
    exchange.feed(b"HTTP/1.1 500 No\r\nX-N: 2\r\nContent-Length: 3\r\n\r\ntwo")
    first_response.close()
    assert (first.status, first_response.headers["x-n"], await first_response.read()) == (200, "1", b"one")
    assert (exchange.response.headers["x-n"], await exchange.response.read()) == ("2", b"two")
    assert await first_response.next_chunk() is None
    assert exchange.released == 2


async def test_repeated_headers_are_joined() -> None:
    assert (
        Exchange().feed(HEAD + b"Via: a\r\nVIA: b\r\nContent-Length: 0\r\n\r\n").response.headers["via"]
        == "a, b"
    )


async def test_whole_body_is_limited_and_a_stream_is_not() -> None:
    head = HEAD + b"Content-Length: 300000\r\n\r\n"
    exchange = Exchange(max_body_bytes=100_000).feed(head + b"x" * 90_000)
    reading = asyncio.ensure_future(exchange.response.read())
    await asyncio.sleep(0)
    exchange.feed(b"x" * 20_000)
    with pytest.raises(BrokenResponse, match="100000 bytes"):
        await reading
    assert exchange.transport.is_aborted

    # It had arrived before the reader asked for the whole.
    before = Exchange(max_body_bytes=100_000).feed(head + b"x" * 110_000)
    with pytest.raises(BrokenResponse):
        await before.response.read()
    assert before.response._pending.chunks == [], "the error keeps nothing of the body"
    complete = Exchange(max_body_bytes=3).feed(OK)
    with pytest.raises(BrokenResponse):
        await complete.response.read()

    stream = Exchange(max_body_bytes=100_000).feed(head)
    total = 0
    for _ in range(3):
        total += len(await stream.feed(b"x" * 100_000).response.next_chunk() or b"")
    assert total == 300_000


async def test_socket_is_paused_while_much_is_unread() -> None:
    exchange = Exchange().feed(HEAD + b"Content-Length: 1000000\r\n\r\n", b"x" * UNREAD_BYTES)
    response = exchange.response
    assert exchange.transport.is_reading
    exchange.feed(b"x")
    assert not exchange.transport.is_reading
    assert len(await response.next_chunk() or b"") == UNREAD_BYTES + 1
    assert exchange.transport.is_reading
    exchange.feed(b"x" * (UNREAD_BYTES + 1))
    assert not exchange.transport.is_reading
    reading = asyncio.ensure_future(response.read())  # a reader of the whole body is not held back
    await asyncio.sleep(0)
    assert exchange.transport.is_reading
    exchange.feed(b"x" * (1_000_000 - 2 * UNREAD_BYTES - 2))
    assert len(await reading) == 1_000_000 - UNREAD_BYTES - 1


async def test_connection_paused_at_the_end_is_released_reading() -> None:
    exchange = Exchange().feed(HEAD + b"Content-Length: 300000\r\n\r\n" + b"x" * 300_000)
    assert exchange.is_kept
    assert exchange.transport.is_reading
    assert len(await exchange.response.read()) == 300_000


async def test_arriving_body_is_not_idle() -> None:
    exchange = Exchange(idle_s=10, ends_s=1100).feed(HEAD + b"Content-Length: 1000\r\n\r\n")
    reading = asyncio.ensure_future(exchange.response.read())
    await asyncio.sleep(0)
    assert exchange.connection.deadline_s == 1010
    exchange.loop.at_s = 1009
    exchange.feed(b"x")
    assert exchange.connection.deadline_s == 1019
    exchange.loop.at_s = 1095
    exchange.feed(b"x")
    assert exchange.connection.deadline_s == 1100
    exchange.connection.time_out()
    with pytest.raises(UpstreamTimeout) as caught:
        await reading
    assert caught.value.phase == "total"


async def test_framing_bytes_alone_do_not_prevent_idle() -> None:
    exchange = Exchange(idle_s=10).feed(CHUNKED_HEAD)
    reading = asyncio.ensure_future(exchange.response.read())
    await asyncio.sleep(0)
    exchange.loop.at_s = 1005
    exchange.feed(b"5;x=")
    assert exchange.connection.deadline_s == 1010
    exchange.connection.time_out()
    with pytest.raises(UpstreamTimeout) as caught:
        await reading
    assert caught.value.phase == "idle"


async def test_only_the_total_time_runs_without_a_reader() -> None:
    exchange = Exchange(idle_s=10, ends_s=1100).feed(CHUNKED_HEAD)
    assert exchange.connection.deadline_s == 1100
    reading = asyncio.ensure_future(exchange.response.next_chunk())
    await asyncio.sleep(0)
    assert exchange.connection.deadline_s == 1010
    exchange.feed(b"1\r\nx\r\n")
    assert await reading == b"x"
    assert exchange.connection.deadline_s == 1100
    exchange.feed(b"0\r\n\r\n")
    assert exchange.connection.deadline_s == inf


async def test_only_the_total_time_runs_once_chunks_are_not_wanted() -> None:
    """A client that does not read makes no silence of the server."""
    exchange = Exchange(idle_s=10, ends_s=1100).feed(CHUNKED_HEAD)
    taken: list[bytes] = []

    def take(chunk: bytes) -> bool:
        taken.append(chunk)
        return len(taken) < 2

    passing = asyncio.ensure_future(exchange.response.pass_chunks(take))
    await asyncio.sleep(0)
    assert exchange.connection.deadline_s == 1010
    exchange.loop.at_s = 1005
    exchange.feed(b"1\r\nx\r\n")
    assert exchange.connection.deadline_s == 1015
    exchange.feed(b"1\r\ny\r\n")
    assert (taken, exchange.connection.deadline_s) == ([b"x", b"y"], 1100)
    assert await passing is False


async def test_socket_is_not_paused_while_chunks_are_taken_as_they_arrive() -> None:
    """A packet can be larger than what may wait for a reader: TLS decrypts several at once."""
    exchange = Exchange().feed(HEAD + b"Content-Length: 1000000\r\n\r\n")
    sizes: list[int] = []

    def take(chunk: bytes) -> bool:
        sizes.append(len(chunk))
        return len(sizes) < 2

    passing = asyncio.ensure_future(exchange.response.pass_chunks(take))
    await asyncio.sleep(0)
    exchange.feed(b"x" * (UNREAD_BYTES + 1))
    assert (sizes, exchange.transport.is_reading) == ([UNREAD_BYTES + 1], True)
    exchange.feed(b"x" * (UNREAD_BYTES + 1))
    assert await passing is False
    assert exchange.transport.is_reading
    exchange.feed(b"x" * (UNREAD_BYTES + 1))  # now none is taken
    assert not exchange.transport.is_reading


async def test_late_reader_does_not_touch_the_next_request() -> None:
    exchange = Exchange(idle_s=10).feed(CHUNKED_HEAD)
    reading = asyncio.ensure_future(exchange.response.next_chunk())
    await asyncio.sleep(0)
    exchange.feed(b"1\r\nx\r\n0\r\n\r\n")  # complete: the connection is used for another request at once
    response = exchange.connection.start(b"", is_head=False, idle_s=5, ends_s=inf)
    exchange.connection.wait(response, "first_byte", 7)
    assert await reading == b"x"
    assert exchange.connection.deadline_s == 1007


async def test_chunks_that_arrived_together_are_joined() -> None:
    exchange = Exchange().feed(CHUNKED_HEAD + b"3\r\nhel\r\n", b"2\r\nlo\r\n")
    pieces = [piece async for piece in exchange.feed(b"0\r\n\r\n").response.chunks()]
    assert pieces == [b"hello"]


async def test_leaving_the_chunks_closes_the_connection() -> None:
    exchange = Exchange().feed(CHUNKED_HEAD + b"3\r\nhel\r\n")
    pieces = exchange.response.chunks()
    assert await anext(pieces) == b"hel"
    await pieces.aclose()  # type: ignore[attr-defined]
    assert exchange.transport.is_aborted


async def test_close_wakes_the_reader_with_an_error() -> None:
    exchange = Exchange().feed(CHUNKED_HEAD)
    reading = asyncio.ensure_future(exchange.response.next_chunk())
    await asyncio.sleep(0)
    exchange.response.close()
    with pytest.raises(BrokenResponse) as caught:
        await reading
    assert caught.value.phase == "closed"
    assert exchange.forgotten == 1


async def test_second_reader_of_a_response_is_a_mistake() -> None:
    exchange = Exchange().feed(CHUNKED_HEAD)
    reading = asyncio.ensure_future(exchange.response.next_chunk())
    await asyncio.sleep(0)
    with pytest.raises(AssertionError):
        await exchange.response.next_chunk()
    reading.cancel()


@pytest.mark.parametrize(
    ("exc", "was_sent"), [(None, True), (ConnectionResetError(), True), (BrokenPipeError(), False)]
)
async def test_close_without_a_byte_is_stale(exc: Exception | None, was_sent: bool) -> None:
    error = Exchange().end(exc).error
    assert isinstance(error, StaleConnection)
    assert error.was_sent is was_sent
    assert (error.phase, error.has_begun) == ("first_byte", False)


async def test_close_known_to_the_kernel_only_is_seen_on_look() -> None:
    ours, theirs = socket.socketpair()
    exchange = Exchange()
    connection = Connection(
        exchange,
        ("server", 80, False, None),
        exchange.loop,  # type: ignore[arg-type]
        writes=AtOnce(),
        max_body_bytes=1,
        max_head_bytes=1,
    )
    connection.connection_made(FakeTransport(ours))  # type: ignore[arg-type]
    assert connection.is_usable(look=True)
    theirs.close()
    assert connection.is_usable(look=False)
    assert not connection.is_usable(look=True)
    ours.close()


async def test_large_request_waits_for_the_server_to_read() -> None:
    body = bytes(1_000_000)
    exchange = Exchange()
    exchange.connection.pause_writing()
    uploading = asyncio.ensure_future(exchange.connection.upload(exchange.pending, body))
    for _ in range(3):
        await asyncio.sleep(0)
    assert bytes(exchange.transport.written) == b"request"
    exchange.connection.resume_writing()
    await uploading
    assert len(exchange.transport.written) == len(b"request") + len(body)
    assert await exchange.feed(OK).response.read() == b"hello"
    assert exchange.is_kept


async def test_response_to_half_a_request_stops_the_upload() -> None:
    exchange = Exchange()
    exchange.connection.pause_writing()
    uploading = asyncio.ensure_future(exchange.connection.upload(exchange.pending, bytes(1_000_000)))
    await asyncio.sleep(0)
    exchange.feed(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
    await uploading
    assert (exchange.response.status, await exchange.response.read()) == (413, b"no")
    assert exchange.released == 0
    assert exchange.transport.is_aborted
