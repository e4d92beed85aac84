"""The upstream pool over real sockets, against a server that is scripted byte by byte."""

import asyncio
import gc
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trustme
import uvloop

from appliance.base.inline import InlineRunner
from appliance.base.wire import dial
from appliance.base.wire.dial import Dialer, interleave
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.response import UpstreamResponse
from appliance.base.wire.types import (
    BrokenResponse,
    PoolFull,
    PoolLimits,
    StaleConnection,
    Target,
    Timeouts,
    Unreachable,
    UpstreamTimeout,
)
from tests.fakes.early_server import EarlyServer
from tests.fakes.raw_server import OK, Peer, RawServer, answering, once
from tests.journeys.running import until

CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
TIMES = Timeouts(connect_s=2, first_byte_s=5, idle_s=5)
LIMITS = PoolLimits(TIMES, max_connections=3)


@pytest.fixture
async def wire() -> AsyncIterator[ConnectionPool]:
    async with ConnectionPool(LIMITS) as pool:
        yield pool


async def ask(wire: ConnectionPool, server: RawServer, **more: Any) -> UpstreamResponse:
    return await wire.send(Target.parse(server.address), path=b"/x", body=b"{}", **more)


async def whole(wire: ConnectionPool, server: RawServer, **more: Any) -> bytes:
    return await (await ask(wire, server, **more)).read()


def start(work: Awaitable[Any]) -> "asyncio.Future[Any]":
    return asyncio.ensure_future(work)


async def failure(task: "asyncio.Future[Any]") -> Any:
    return (await asyncio.gather(task, return_exceptions=True))[0]


def counts(wire: ConnectionPool) -> tuple[int, int, int, int]:
    stats = wire.stats()
    return stats["open"], stats["idle"], stats["in_use"], stats["waiting"]


# ---- what is written


async def test_request_is_rendered_and_connections_are_kept(wire: ConnectionPool) -> None:
    async with RawServer(answering(OK)) as server:
        target = Target.parse(server.address + "/v1/", headers={"Authorization": "Bearer k"})
        for _ in range(5):
            assert (
                await (await wire.send(target, path=b"/x", headers=b"X-A: 1\r\n", body=b"{}")).read()
                == b"hello"
            )
        assert server.connections == 1
        assert wire.stats() == {
            "open": 1,
            "idle": 1,
            "in_use": 0,
            "waiting": 0,
            "opened_total": 1,
            "reused_total": 4,
        }
        assert server.requests[0].startswith(b"POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % server.port)
        assert b"\r\nAuthorization: Bearer k\r\n" in server.requests[0]
        assert server.requests[0].endswith(b"\r\nX-A: 1\r\nContent-Length: 2\r\n\r\n{}")


@pytest.mark.parametrize(
    ("method", "has_length"),
    [(b"GET", False), (b"HEAD", False), (b"DELETE", False), (b"POST", True), (b"PUT", True)],
)
async def test_empty_body_is_announced_for_methods_with_bodies_only(
    wire: ConnectionPool, method: bytes, has_length: bool
) -> None:
    async with RawServer(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) as server:
        for _ in range(2):
            response = await wire.send(Target.parse(server.address), method=method)
            assert (response.status, await response.read()) == (204, b"")
        assert server.requests[0].startswith(method + b" / HTTP/1.1\r\n")
        assert (b"Content-Length: 0" in server.requests[0]) is has_length
        assert server.connections == 1


async def test_head_reads_no_body(wire: ConnectionPool) -> None:
    async with RawServer(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")) as server:
        for _ in range(3):
            response = await wire.send(Target.parse(server.address), method=b"HEAD", path=b"/x")
            assert (response.headers["content-length"], await response.read()) == ("100", b"")
        assert server.connections == 1


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (b"/a b", b""),
        (b"/a\r\nX: y", b""),
        (b"/\xc3\xa9", b""),
        (b"a", b""),
        (b"/", b"X: y"),
        (b"/", b"X: y\r\n\r\n"),
        (b"/", b"\r\nX: y\r\n"),
        (b"/", b"X: a\nY: b\r\n"),
        (b"/", b"X: a\rY: b\r\n"),
    ],
)
async def test_path_or_header_that_ends_the_head_is_refused(
    wire: ConnectionPool, path: bytes, headers: bytes
) -> None:
    with pytest.raises(ValueError, match="must be"):
        await wire.send(Target.parse("http://127.0.0.1:9"), path=path, headers=headers)
    assert counts(wire) == (0, 0, 0, 0)


async def test_a_large_request_arrives_whole(wire: ConnectionPool) -> None:
    body = bytes(range(256)) * 8000
    async with RawServer(answering(OK)) as server:
        for _ in range(2):
            assert await (await wire.send(Target.parse(server.address), body=body)).read() == b"hello"
        assert server.requests[1].partition(b"\r\n\r\n")[2] == body
        assert server.connections == 1


async def test_early_response_to_a_large_request_is_returned(wire: ConnectionPool) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        peer.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await peer.closed_by_us.wait()

    async with RawServer(script) as server:
        response = await asyncio.wait_for(wire.send(Target.parse(server.address), body=bytes(50_000_000)), 5)
        assert (response.status, await response.read()) == (413, b"no")
        assert counts(wire) == (0, 0, 0, 0)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("ending", ["close", "linger", "hold"])
@pytest.mark.parametrize("after_bytes", [0, 100_000, 3_000_000])
def test_the_status_to_half_a_request_is_never_lost(
    run: Callable[[Any], None], ending: str, after_bytes: int
) -> None:
    """Also where the server resets the connection, and where it reads nothing more: each request gets a 413."""

    async def send(url: str) -> None:
        async with ConnectionPool(LIMITS) as wire:
            for _ in range(5):
                response = await wire.send(Target.parse(url), body=bytes(6_000_000), is_repeatable=True)
                assert (response.status, await response.read()) == (413, b"no")
                assert counts(wire)[:3] == (0, 0, 0)  # the rest of the body would be before the next request

    answer = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"
    with EarlyServer(answer, after_bytes=after_bytes, ending=ending) as server:
        run(send(server.url))
        assert server.requests == 5


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_reset_without_a_response_is_a_broken_response(run: Callable[[Any], None]) -> None:
    async def send(url: str) -> None:
        async with ConnectionPool(LIMITS) as wire:
            with pytest.raises(BrokenResponse, match="closed the connection without a response") as caught:
                await wire.send(Target.parse(url), body=bytes(6_000_000), is_repeatable=True)
            assert (caught.value.phase, caught.value.has_begun) == ("first_byte", False)
            assert counts(wire) == (0, 0, 0, 0)

    with EarlyServer(b"", after_bytes=100_000) as server:
        run(send(server.url))


async def test_server_that_stops_reading_the_request_times_out() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.closed_by_us.wait()

    async with ConnectionPool(LIMITS) as wire, RawServer(script) as server:
        with pytest.raises(UpstreamTimeout) as caught:
            await wire.send(
                Target.parse(server.address), body=bytes(50_000_000), timeouts=TIMES._replace(idle_s=0.2)
            )
        assert (caught.value.phase, caught.value.was_sent, caught.value.has_begun) == (
            "first_byte",
            True,
            False,
        )
        assert counts(wire) == (0, 0, 0, 0)


# ---- what is read


async def test_repeated_fields_are_kept_for_each_response(wire: ConnectionPool) -> None:
    first = b"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nset-cookie: b\r\nContent-Length: 3\r\n\r\none"
    async with RawServer(
        answering(first, b"HTTP/1.1 500 No\r\nX-N: 2\r\nContent-Length: 3\r\n\r\ntwo")
    ) as server:
        one, two = await ask(wire, server), await ask(wire, server)
        assert (
            server.connections == 1
        )  # the first response is complete: its connection served the second request
        assert one.fields == [(b"Set-Cookie", b"a"), (b"set-cookie", b"b"), (b"Content-Length", b"3")]
        assert one.headers == {"set-cookie": "a, b", "content-length": "3"}
        assert [await one.read(), await two.read()] == [b"one", b"two"]
        assert (one.status, two.status) == (200, 500)


async def test_body_that_keeps_arriving_is_not_idle(wire: ConnectionPool) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")
        for _ in range(8):
            await asyncio.sleep(0.15)
            peer.say(b"x")

    async with RawServer(script) as server:
        assert await whole(wire, server, timeouts=TIMES._replace(idle_s=0.5)) == b"x" * 8  # 1.2 s in all


@pytest.mark.parametrize(
    ("answer", "limits", "phase", "has_begun"),
    [
        (b"", {"first_byte_s": 0.1}, "first_byte", False),
        (OK[:20], {"first_byte_s": 0.1}, "first_byte", False),
        (OK[:-2], {"idle_s": 0.1}, "idle", True),
        (OK[:-2], {"total_s": 0.1}, "total", True),
        (b"", {"total_s": 0.1}, "total", False),
    ],
)
async def test_each_time_limit_has_its_own_error(
    wire: ConnectionPool,
    answer: bytes,
    limits: dict[str, float],
    phase: str,
    has_begun: bool,
) -> None:
    async with RawServer(once(answer)) as server:
        with pytest.raises(UpstreamTimeout) as caught:
            await whole(wire, server, timeouts=TIMES._replace(**limits))
        assert (caught.value.phase, caught.value.was_sent, caught.value.has_begun) == (phase, True, has_begun)
        assert await until(lambda: server.left == 1)
        assert counts(wire) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("answer", "closes", "phase"),
    [
        (b"rubbish\r\n\r\n", False, "head"),
        (b"", True, "first_byte"),
        (OK[:20], True, "head"),
        (OK[:-2], True, "broken"),
        (CHUNKED_HEAD + b"zz\r\n", False, "broken"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000, False, "head"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", False, "head"),
    ],
)
async def test_invalid_or_cut_response_is_broken(
    wire: ConnectionPool, answer: bytes, closes: bool, phase: str
) -> None:
    async with RawServer(once(answer, closes=closes)) as server:
        with pytest.raises(BrokenResponse) as caught:
            await whole(wire, server)
        assert (caught.value.phase, caught.value.was_sent, caught.value.has_begun) == (
            phase,
            True,
            phase == "broken",
        )
        assert counts(wire) == (0, 0, 0, 0)
        assert len(server.requests) == 1


async def test_reset_in_the_middle_is_a_broken_response(wire: ConnectionPool) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.say(OK[:-2])
        await peer.writer.drain()
        peer.reset()

    async with RawServer(script) as server:
        with pytest.raises(BrokenResponse):
            await whole(wire, server)
        assert counts(wire) == (0, 0, 0, 0)


async def test_slow_reader_slows_the_server(wire: ConnectionPool) -> None:
    size = 50_000_000

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        await peer.pour(b"x" * size)
        await peer.gone()

    async with RawServer(script) as server:
        response = await ask(wire, server)
        sent = -1
        while sent != server.peers[0].sent_bytes:  # until it stands still
            sent = server.peers[0].sent_bytes
            await asyncio.sleep(0.2)
        assert sent < size / 2  # what the kernel's buffers hold
        total = 0
        while piece := await response.next_chunk():
            total += len(piece)
        assert total == size
        assert counts(wire) == (1, 1, 0, 0)


async def test_cancelled_request_closes_its_connection(wire: ConnectionPool) -> None:
    async with RawServer(once(b"")) as server:
        task = start(whole(wire, server))
        assert await until(lambda: bool(server.requests))
        task.cancel()
        assert isinstance(await failure(task), asyncio.CancelledError)
        assert await until(lambda: server.left == 1, seconds=1)
        assert counts(wire) == (0, 0, 0, 0)


async def test_response_dropped_unread_frees_its_slot(wire: ConnectionPool) -> None:
    async with RawServer(once(OK[:-2])) as server:
        response = await ask(wire, server)
        assert counts(wire) == (1, 0, 1, 0)
        del response
        gc.collect()
        assert await until(lambda: server.left == 1 and counts(wire) == (0, 0, 0, 0))


# ---- what is sent again


async def test_connection_closed_by_the_server_while_idle_is_not_used(wire: ConnectionPool) -> None:
    async with RawServer(once(OK, closes=True)) as server:
        for _ in range(3):
            assert await whole(wire, server) == b"hello"
            assert await until(lambda: counts(wire) == (0, 0, 0, 0))
        assert len(server.requests) == server.connections == 3


def dying(*, at: int) -> Callable[[Peer], Awaitable[None]]:
    """Respond on each connection, until request number `at` of all is read: that connection just closes."""
    seen = 0

    async def script(peer: Peer) -> None:
        nonlocal seen
        while True:
            await peer.request()
            seen += 1
            if seen >= at:
                return
            peer.say(OK)

    return script


@pytest.mark.parametrize(
    ("how", "is_repeated"),
    [
        ({}, False),
        ({"is_repeatable": True}, True),
        ({"method": b"GET"}, True),
        ({"method": b"GET", "is_repeatable": False}, False),
        ({"method": b"PATCH"}, False),
    ],
)
async def test_only_repeatable_requests_are_sent_twice(
    wire: ConnectionPool, how: dict[str, Any], is_repeated: bool
) -> None:
    async with RawServer(dying(at=2)) as server:
        assert await whole(wire, server, **how) == b"hello"
        # The replacement dies too, and is not replaced.
        error = await failure(start(whole(wire, server, **how)))
        assert (error.phase, error.was_sent, error.has_begun) == ("first_byte", True, False)
        assert isinstance(error, StaleConnection) is not is_repeated
        assert len(server.requests) == (3 if is_repeated else 2)
        assert counts(wire) == (0, 0, 0, 0)


async def test_kept_connection_closed_without_response_is_replaced(wire: ConnectionPool) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.say(OK)
        await peer.request()
        if peer.number > 1:
            peer.say(OK)

    async with RawServer(script) as server:
        assert await whole(wire, server, is_repeatable=True) == b"hello"
        assert await whole(wire, server, is_repeatable=True) == b"hello"
        assert (server.connections, len(server.requests)) == (2, 3)


# ---- how a connection comes to be


async def test_unreachable_server_is_named(wire: ConnectionPool) -> None:
    with pytest.raises(Unreachable) as caught:
        await wire.send(Target.parse("http://127.0.0.1:9/"))
    assert "127.0.0.1:9" in caught.value.message
    assert (caught.value.phase, caught.value.was_sent) == ("connect", False)
    with pytest.raises(Unreachable, match=r"the name no-such-host\.invalid cannot be resolved") as caught:
        await wire.send(Target.parse("http://no-such-host.invalid/"))
    assert (caught.value.phase, caught.value.was_sent) == ("dns", False)
    assert counts(wire) == (0, 0, 0, 0)


async def test_cancelling_a_dial_frees_its_slot() -> None:
    asked = asyncio.Event()

    async def never(host: str, port: int) -> list[str]:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with ConnectionPool(LIMITS, resolve=never) as wire:
        task = start(wire.send(Target.parse("http://x")))
        await asked.wait()
        assert counts(wire) == (1, 0, 0, 0)
        task.cancel()
        await failure(task)
        assert counts(wire) == (0, 0, 0, 0)


async def test_tls_handshake_has_a_time_limit() -> None:
    async with RawServer(once(b"")) as server, ConnectionPool(PoolLimits(Timeouts(connect_s=0.2))) as wire:
        with pytest.raises(
            UpstreamTimeout, match=r"no connection to 127\.0\.0\.1:\d+ within 0\.2 s"
        ) as caught:
            await wire.send(Target.parse(f"https://127.0.0.1:{server.port}"))
        assert (caught.value.phase, caught.value.was_sent) == ("connect", False)
        assert counts(wire) == (0, 0, 0, 0)
        assert await until(lambda: server.left == 1)


async def test_ca_bundle_is_loaded_outside_the_handshake_limit(
    monkeypatch: pytest.MonkeyPatch, authority: trustme.CA
) -> None:
    loads, trust = [], trusting(authority)

    def slow_context() -> ssl.SSLContext:
        loads.append(time.sleep(0.5))  # longer than the limit
        return trust

    monkeypatch.setattr("appliance.base.wire.dial.ssl.create_default_context", slow_context)
    async with (
        RawServer(answering(OK), tls=serving(authority)) as server,
        ConnectionPool(PoolLimits(Timeouts(connect_s=0.4))) as wire,
    ):
        assert await asyncio.gather(whole(wire, server), whole(wire, server)) == [b"hello"] * 2
        assert len(loads) == 1  # two first requests share one load


async def test_unreadable_ca_certificates_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> ssl.SSLContext:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("appliance.base.wire.dial.ssl.create_default_context", missing)
    async with ConnectionPool(LIMITS) as wire:
        for _ in range(2):
            with pytest.raises(Unreachable, match="CA certificates cannot be read: No such file") as caught:
                await wire.send(Target.parse("https://127.0.0.1:9"))
            assert (caught.value.phase, caught.value.was_sent) == ("tls", False)
        assert counts(wire) == (0, 0, 0, 0)


async def test_next_address_is_tried_after_refusal_or_silence() -> None:
    async with RawServer(answering(OK)) as server:
        with socket.socket() as silent:
            silent.bind(("127.0.0.2", server.port))
            for addresses in (["127.0.0.3", "127.0.0.1"], ["127.0.0.2", "127.0.0.1"]):

                async def resolve(host: str, port: int, found: list[str] = addresses) -> list[str]:
                    return found

                if "127.0.0.2" in addresses:
                    silent.listen(0)
                    # Its backlog is full: the kernel drops the next ones.
                    fillers = [socket.socket() for _ in range(3)]
                    for filler in fillers:
                        filler.setblocking(False)
                        filler.connect_ex(("127.0.0.2", server.port))
                async with ConnectionPool(LIMITS, resolve=resolve) as wire:
                    began = time.monotonic()
                    assert (
                        await (await wire.send(Target.parse(f"http://two.example:{server.port}"))).read()
                        == b"hello"
                    )
                    assert time.monotonic() - began < 1.5
            for filler in fillers:
                filler.close()


async def test_name_is_resolved_again_after_its_address_failed() -> None:
    async with RawServer(answering(OK)) as server:
        dialer = Dialer(ssl_context=None, resolve=None)
        key = ("localhost", server.port, False, None)
        dialer._names[key[:2]] = (float("inf"), ["127.0.0.9"])  # where it was before it moved
        with pytest.raises(Unreachable):
            await dialer.dial(key, asyncio.Protocol)
        assert isinstance(await dialer.dial(key, asyncio.Protocol), asyncio.Protocol)


async def listening(address: str, port: int = 0) -> asyncio.Server:
    """Listen, and answer each request with the address that it came to."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(address), address.encode())
            )

    return await asyncio.start_server(serve, address, port)


OLD, NEW = "127.0.0.2", "127.0.0.3"


@pytest.mark.parametrize(
    ("looked_up", "answered", "moved"),
    [
        ([[NEW]], [OLD, NEW], [True]),
        ([[OLD]], [OLD, OLD], [False]),
        ([[OLD, NEW]], [OLD, OLD], [False]),
        ([[OLD, NEW], [NEW], [NEW]], [OLD, OLD, OLD, NEW], [False, False, False]),
    ],
)
async def test_a_name_that_moves_is_followed(
    monkeypatch: pytest.MonkeyPatch, looked_up: list[list[str]], answered: list[str], moved: list[bool]
) -> None:
    """Its former address still takes connections: no failure would tell that it is elsewhere."""
    found = iter(looked_up)
    monkeypatch.setattr(dial, "_resolve", lambda host, port: next(found))
    async with await listening(OLD) as old, ConnectionPool(LIMITS) as wire:
        port = old.sockets[0].getsockname()[1]
        async with await listening(NEW, port) as new:
            wire._dialer._names[("moving.test", port)] = (float("inf"), [OLD])
            target = Target.parse(f"http://moving.test:{port}")
            said = [await (await wire.send(target, method=b"GET")).read()]
            have_moved = []
            for _ in looked_up:
                have_moved.append(await wire.look_up(target))
                said.append(await (await wire.send(target, method=b"GET")).read())
            assert ([one.decode() for one in said], have_moved) == (answered, moved)
            await wire.close()
            old.close()
            new.close()


async def test_a_response_under_way_at_a_former_address_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.say(CHUNKED_HEAD + b"2\r\nhe\r\n")
        await go_on.wait()
        peer.say(b"3\r\nllo\r\n0\r\n\r\n")

    monkeypatch.setattr(dial, "_resolve", lambda host, port: [NEW])
    async with RawServer(script) as server, ConnectionPool(LIMITS) as wire:
        wire._dialer._names[("moving.test", server.port)] = (float("inf"), ["127.0.0.1"])
        target = Target.parse(f"http://moving.test:{server.port}")
        response = await wire.send(target, method=b"GET")
        assert await wire.look_up(target)
        go_on.set()
        assert await response.read() == b"hello"
        assert wire.stats()["idle"] == 0


async def test_a_look_up_that_fails_or_hangs_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = threading.Event()

    def fail(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    def hang(host: str, port: int) -> list[str]:
        hanging.wait(5)
        return [NEW]

    monkeypatch.setattr(dial, "LOOK_UP_S", 0.05)
    async with await listening(OLD) as old, ConnectionPool(LIMITS) as wire:
        port = old.sockets[0].getsockname()[1]
        wire._dialer._names[("moving.test", port)] = (float("inf"), [OLD])
        target = Target.parse(f"http://moving.test:{port}")
        try:
            for resolve in (fail, hang, hang):  # the second hang waits for the first
                monkeypatch.setattr(dial, "_resolve", resolve)
                assert not await wire.look_up(target)
                assert await (await wire.send(target, method=b"GET")).read() == OLD.encode()
            assert len(wire._dialer._lookups) == 1
        finally:
            hanging.set()
        await wire.close()
        old.close()
    assert not await wire.look_up(Target.parse("http://127.0.0.1:9"))


@pytest.mark.parametrize(
    ("found", "ordered"),
    [
        ([], []),
        (["1.1.1.1"], ["1.1.1.1"]),
        (["::1", "::2", "1.1.1.1"], ["::1", "1.1.1.1", "::2"]),
        (["1.1.1.1", "::1", "1.1.1.2"], ["1.1.1.1", "::1", "1.1.1.2"]),
    ],
)
def test_address_families_alternate(found: list[str], ordered: list[str]) -> None:
    assert interleave(found) == ordered


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def serving(authority: trustme.CA, name: str = "localhost") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.mark.parametrize(
    ("name", "trusted", "is_fine"),
    [("localhost", True, True), ("other.example", True, False), ("localhost", False, False)],
)
async def test_tls_is_verified(authority: trustme.CA, name: str, trusted: bool, is_fine: bool) -> None:
    context = trusting(authority) if trusted else ssl.create_default_context()
    async with (
        RawServer(answering(OK), tls=serving(authority, name)) as server,
        ConnectionPool(PoolLimits(Timeouts(connect_s=5)), ssl_context=context) as wire,
    ):
        if is_fine:
            assert [await whole(wire, server) for _ in range(2)] == [b"hello"] * 2
            assert server.connections == 1
        else:
            with pytest.raises(
                Unreachable, match=r"the TLS certificate of localhost:.* is not valid"
            ) as caught:
                await whole(wire, server)
            assert (caught.value.phase, caught.value.was_sent) == ("tls", False)
            assert counts(wire) == (0, 0, 0, 0)


async def test_server_without_tls_is_unreachable(wire: ConnectionPool) -> None:
    async with RawServer(once(OK)) as server:

        async def script(peer: Peer) -> None:
            peer.say(OK)
            await peer.gone()

        server.script = script
        with pytest.raises(Unreachable, match=r"the TLS handshake with 127\.0\.0\.1:\d+ failed") as caught:
            await wire.send(Target.parse(f"https://127.0.0.1:{server.port}"))
        assert caught.value.phase == "tls"
        assert counts(wire) == (0, 0, 0, 0)


async def test_a_connection_is_shared_within_one_tls_context_only(authority: trustme.CA) -> None:
    async with (
        RawServer(answering(OK), tls=serving(authority)) as server,
        ConnectionPool(PoolLimits(Timeouts(connect_s=5))) as wire,
    ):
        trust = trusting(authority)
        one, same, other, strict = (
            Target.parse(server.address, ssl_context=c) for c in (trust, trust, trusting(authority), None)
        )
        for target, connections in ((one, 1), (same, 1), (other, 2), (one, 2)):
            assert await (await wire.send(target)).read() == b"hello"
            assert server.connections == connections
        assert one.origin == strict.origin
        with pytest.raises(Unreachable) as caught:  # the idle connections were verified by others' rules
            await wire.send(strict)
        assert caught.value.phase == "tls"


# ---- the pool


async def test_queue_is_first_come_first_served() -> None:
    order: list[str] = []

    async def one(name: str) -> None:
        await whole(wire, server)
        order.append(name)

    async def first() -> None:
        response = await ask(wire, server)
        hold.set()
        assert await until(lambda: wire.stats()["waiting"] == 4)
        all_wait.set()
        await response.read()  # its connection comes free in this moment,
        await one("first again")  # and the one who asks again at once does not overtake

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            peer.say(OK[:-2])
            if len(server.requests) == 1:
                await all_wait.wait()
            peer.say(OK[-2:])

    async with RawServer(script) as server, ConnectionPool(PoolLimits(max_connections=1)) as wire:
        hold, all_wait = asyncio.Event(), asyncio.Event()
        tasks = [start(first())]
        await hold.wait()
        tasks += [start(one(str(number))) for number in range(4)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        tasks.append(start(one("4")))
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == ["0", "2", "3", "4", "first again"]
        assert server.connections == 1
        assert counts(wire) == (1, 1, 0, 0)


async def test_freed_slot_goes_to_first_in_queue_for_any_server() -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await go.wait()
            peer.say(OK)

    async with (
        RawServer(script) as one,
        RawServer(answering(OK)) as other,
        ConnectionPool(PoolLimits(max_connections=1)) as wire,
    ):
        go = asyncio.Event()
        order: list[str] = []
        holder = start(whole(wire, one))
        assert await until(lambda: bool(one.requests))

        async def named(name: str, server: RawServer) -> None:
            await whole(wire, server)
            order.append(name)

        line = [start(named("other", other)), start(named("one", one))]
        assert await until(lambda: wire.stats()["waiting"] == 2)
        go.set()
        await asyncio.gather(holder, *line)
        assert order == ["other", "one"]
        assert counts(wire) == (1, 1, 0, 0)


async def test_idle_connection_gives_way_to_another_server() -> None:
    async with (
        RawServer(answering(OK)) as one,
        RawServer(answering(OK)) as other,
        ConnectionPool(PoolLimits(max_connections=1)) as wire,
    ):
        for server in (one, other, one):
            assert await whole(wire, server) == b"hello"
        assert (one.connections, other.connections) == (2, 1)
        assert counts(wire) == (1, 1, 0, 0)


async def test_queueing_has_a_time_limit_of_its_own() -> None:
    async with (
        RawServer(once(b"")) as server,
        ConnectionPool(PoolLimits(max_connections=1, pool_s=0.1)) as wire,
    ):
        holder = start(whole(wire, server))
        assert await until(lambda: bool(server.requests))
        with pytest.raises(PoolFull, match=r"all 1 upstream connections were in use for 0\.1 s") as caught:
            await ask(wire, server)
        assert (caught.value.phase, caught.value.was_sent) == ("pool", False)
        assert counts(wire) == (1, 0, 1, 0)
        holder.cancel()
        await failure(holder)


async def test_queueing_counts_to_the_total_time() -> None:
    limits = PoolLimits(max_connections=1, pool_s=5)
    async with RawServer(once(b"")) as server, ConnectionPool(limits) as wire:
        holder = start(whole(wire, server))
        assert await until(lambda: bool(server.requests))
        with pytest.raises(UpstreamTimeout, match="no upstream connection became free") as caught:
            await ask(wire, server, timeouts=Timeouts(total_s=0.1))
        assert (caught.value.phase, caught.value.was_sent) == ("total", False)
        assert counts(wire) == (1, 0, 1, 0)
        holder.cancel()
        await failure(holder)


async def test_slot_handed_to_a_cancelled_request_is_passed_on() -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            peer.say(OK[:-2])
            await go.wait()
            peer.say(OK[-2:])

    async with RawServer(script) as server, ConnectionPool(PoolLimits(max_connections=1)) as wire:
        go = asyncio.Event()
        response = await ask(wire, server)
        tasks = [start(whole(wire, server)) for _ in range(2)]
        assert await until(lambda: wire.stats()["waiting"] == 2)
        release = wire.release

        def release_and_cancel(connection: Any) -> None:
            release(connection)
            tasks[0].cancel()

        wire.release = release_and_cancel  # type: ignore[method-assign]
        go.set()
        assert await response.read() == b"hello"
        assert isinstance(await failure(tasks[0]), asyncio.CancelledError)
        assert await asyncio.wait_for(tasks[1], 5) == b"hello"
        assert server.connections == 1
        assert counts(wire) == (1, 1, 0, 0)


async def test_connection_idle_too_long_is_closed() -> None:
    async with RawServer(once(OK)) as server, ConnectionPool(PoolLimits(keepalive_s=0.1)) as wire:
        assert await whole(wire, server) == b"hello"
        assert await until(lambda: server.left == 1 and counts(wire) == (0, 0, 0, 0))


async def test_idle_connections_are_limited() -> None:
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await go.wait()
        peer.say(OK)
        await peer.gone()

    async with RawServer(script) as server, ConnectionPool(PoolLimits(max_idle_per_origin=2)) as wire:
        tasks = [start(whole(wire, server)) for _ in range(5)]
        assert await until(lambda: len(server.requests) == 5)
        go.set()
        assert await asyncio.gather(*tasks) == [b"hello"] * 5
        assert counts(wire) == (2, 2, 0, 0)


async def test_close_fails_all_requests() -> None:
    found: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()

    async def resolve(host: str, port: int) -> list[str]:
        return await found if host == "slow.example" else [host]

    async with RawServer(once(b"")) as silent, RawServer(once(OK)) as quick, RawServer(once(OK[:-2])) as half:
        wire = ConnectionPool(LIMITS, resolve=resolve)
        assert await whole(wire, quick) == b"hello"
        response = await ask(wire, half)
        tasks = [
            start(whole(wire, silent)),
            start(wire.send(Target.parse(f"http://slow.example:{quick.port}"))),
            start(whole(wire, silent)),
        ]
        assert await until(lambda: wire.stats()["waiting"] == 1 and bool(silent.requests))
        await wire.close()
        found.set_result(["127.0.0.1"])
        errors = [await failure(task) for task in tasks] + [await failure(start(response.read()))]
        assert [(error.phase, error.was_sent, error.has_begun) for error in errors] == [
            ("closed", True, False),
            ("closed", False, False),
            ("closed", False, False),
            ("closed", True, True),
        ]
        with pytest.raises(Unreachable):
            await whole(wire, quick)
        assert counts(wire) == (0, 0, 0, 0)


async def test_fail_waiting_fails_requests_to_a_dead_server() -> None:
    resolving = asyncio.Event()

    async def resolve(host: str, port: int) -> list[str]:
        if resolving.is_set():
            await asyncio.Event().wait()
        return [host]

    async def script(peer: Peer) -> None:
        say = {b"i": OK, b"b": OK[:-2], b"w": b""}[(await peer.request())[-1:]]
        peer.say(say)
        await go.wait()
        peer.say(OK[-2:] if say == OK[:-2] else b"")
        await peer.gone()

    go = asyncio.Event()
    async with (
        RawServer(script) as server,
        RawServer(once(b"")) as other,
        ConnectionPool(PoolLimits(max_connections=5), resolve=resolve) as wire,
    ):
        target = Target.parse(server.address)
        begun = await wire.send(target, body=b"b")
        idle = start(wire.send(target, body=b"i"))
        waiting = start(wire.send(target, body=b"w"))
        elsewhere = start(whole(wire, other))
        await idle
        assert await until(lambda: len(server.requests) == 3 and len(other.requests) == 1)
        assert counts(wire) == (4, 1, 3, 0)
        resolving.set()
        taken, dialling, queued = (
            start(wire.send(target, body=b"w")),
            start(wire.send(target, body=b"w")),
            start(wire.send(target, body=b"w")),
        )
        assert await until(lambda: wire.stats()["waiting"] == 1)
        assert counts(wire) == (5, 0, 4, 1)

        assert wire.fail_waiting(target.origin, "the server is dead") == 4
        assert wire.fail_waiting(target.origin, "the server is dead") == 0
        errors = [await failure(task) for task in (waiting, taken, dialling, queued)]
        assert {(type(error), error.message, error.phase) for error in errors} == {
            (BrokenResponse, "the server is dead", "lost")
        }
        assert [error.was_sent for error in errors] == [True, True, False, False]
        assert counts(wire) == (2, 0, 2, 0)
        go.set()
        assert await begun.read() == b"hello"  # what had begun continues
        assert counts(wire) == (2, 1, 1, 0)
        assert wire.fail_waiting(target.origin, "the server is dead") == 0
        assert counts(wire) == (1, 0, 1, 0)  # it may not be trusted with the next request either
        assert not elsewhere.done()
        elsewhere.cancel()
        await failure(elsewhere)


async def test_fail_waiting_leaves_no_connection_to_what_a_failure_starts() -> None:
    """A request that fails is answered in that very call, and its client's next request begins in it."""

    async def script(peer: Peer) -> None:
        while (await peer.request()).endswith(b"i"):
            peer.say(OK)
        await peer.gone()

    async def twice(wire: ConnectionPool, target: Target) -> None:
        with pytest.raises(BrokenResponse):
            await wire.send(target, body=b"w")
        await wire.send(target, body=b"w")

    async with RawServer(script) as server, ConnectionPool(LIMITS) as wire:
        target, loop = Target.parse(server.address), asyncio.get_running_loop()
        await asyncio.gather(*(wire.send(target, body=b"i") for _ in range(2)))
        runner = InlineRunner(twice(wire, target), lambda: None, loop)
        loop.call_soon(runner.start)
        assert await until(lambda: len(server.requests) == 3)
        assert counts(wire) == (2, 1, 1, 0)
        loop.call_soon(wire.fail_waiting, target.origin, "the server is dead")
        assert await until(lambda: len(server.requests) == 4)
        assert (server.connections, wire.reused_total) == (3, 1)
        runner.cancel()
        assert await until(lambda: runner.is_done)


# ---- targets


@pytest.mark.parametrize(
    "address",
    [
        "ftp://x",
        "localhost",
        "http://",
        "http://:80",
        "http://x:99999",
        "http://x:0",
        "http://x:y",
        "http://user:secret@x",
        "http://x/?key=secret",
        "http://x#secret",
        "http://a b",
        "http://[::1",
        "http://x\\y",
    ],
)
def test_invalid_addresses_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match="address") as caught:
        Target.parse(address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "headers", "text"),
    [
        ("http://[::1", {}, r"the address is not valid; write http\(s\)://host"),
        ("http://me:word@x", {}, "the address of x contains credentials"),
        ("ftp://x", {}, "'ftp://x' is not an http"),
        ("http://x/?a=b", {}, "the base address of x has a query or a fragment; remove it"),
        ("http://x", {"Content-Length": "5"}, "'Content-Length' is not a header that can be set"),
        ("http://x", {"A": "b\r\nC: d"}, "the header A contains a line break"),
        ("http://x", {"A": "…"}, "the header A contains characters outside Latin-1"),
    ],
)
def test_refusal_of_a_target_says_what_is_wrong(address: str, headers: dict[str, str], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Target.parse(address, headers=headers)


@pytest.mark.parametrize(
    ("address", "origin", "url", "prefix", "host"),
    [
        ("http://x", ("x", 80, False), "http://x:80", b"", b"x"),
        ("https://X:443/v1/", ("x", 443, True), "https://x:443", b"/v1", b"x"),
        ("http://[::1]:8080/a b", ("::1", 8080, False), "http://[::1]:8080", b"/a%20b", b"[::1]:8080"),
        (
            "http://bücher.example/%2F",
            ("xn--bcher-kva.example", 80, False),
            "http://xn--bcher-kva.example:80",
            b"/%2F",
            b"xn--bcher-kva.example",
        ),
        ("http://x/\r\nX: y", ("x", 80, False), "http://x:80", b"/X:%20y", b"x"),
    ],
)
def test_addresses_are_parsed(
    address: str,
    origin: Any,
    url: str,
    prefix: bytes,
    host: bytes,
) -> None:
    target = Target.parse(address)
    assert (target.origin, target.origin_url, target.prefix) == (origin, url, prefix)
    assert b"Host: " + host + b"\r\n" in target.header_lines


@pytest.mark.parametrize(
    "headers",
    [
        {"A": "secret\r\nC: d"},
        {"A\r\nB": "c"},
        {"A: b": "c"},
        {"": "x"},
        {"A": "secret\0"},
        {"A": "secret…"},
        {"Content-Length": "5"},
        {"transfer-encoding": "x"},
    ],
)
def test_header_cannot_smuggle_another(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="header") as caught:
        Target.parse("http://x", headers=headers)
    assert "secret" not in str(caught.value)


def test_given_header_replaces_the_default_one() -> None:
    lines = Target.parse("http://x", headers={"accept": "text/event-stream", "HOST": "y"}).header_lines
    assert lines == b"HOST: y\r\naccept: text/event-stream\r\nAccept-Encoding: identity\r\n"


def test_target_does_not_show_its_key() -> None:
    assert "secret" not in repr(Target.parse("http://x", headers={"Authorization": "Bearer secret"}))
