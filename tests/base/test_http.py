"""The streaming HTTP client over real sockets: what it sends, what it refuses, and how failures are named."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvloop

from appliance.base.errors import ApplianceError, Forbidden, UpstreamFailed
from appliance.base.http import HttpClient, check_host, iter_body
from appliance.base.proxies import Proxies
from appliance.base.wire.types import BrokenResponse, Unreachable, UpstreamTimeout
from tests.fakes.early_server import EarlyServer
from tests.fakes.raw_server import OK, Peer, RawServer, answering, once

CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"


async def fetch(client: HttpClient, url: str, **more: Any) -> bytes:
    options = {"headers": [], "body": None, "is_repeatable": True, "connect_s": 2.0, "first_byte_s": 2.0}
    response = await client.open("GET", url, **options | more)
    try:
        return b"".join([chunk async for chunk in iter_body(response, idle_s=0.2)])
    finally:
        response.close()


def refuse_loopback(address: str) -> str:
    return "it is private" if address.startswith("127.") or address == "::1" else ""


async def test_only_given_headers_are_sent_and_the_path_is_not_changed() -> None:
    async with RawServer(answering(OK)) as server, HttpClient() as client:
        headers = [("X-A", "1"), ("X-A", "2")]
        assert await fetch(client, f"{server.address}/a%2Fb?c=%20", headers=headers) == b"hello"
    lines = server.requests[0].split(b"\r\n")
    assert lines[0] == b"GET /a%2Fb?c=%20 HTTP/1.1"
    assert sorted(line.partition(b":")[0].lower() for line in lines[1:-2]) == [b"host", b"x-a", b"x-a"]


@pytest.mark.parametrize(("is_repeatable", "connections"), [(True, 1), (False, 2)])
async def test_only_repeatable_requests_use_kept_connections(is_repeatable: bool, connections: int) -> None:
    async with RawServer(answering(OK)) as server, HttpClient() as client:
        for _ in range(2):
            assert await fetch(client, server.address, is_repeatable=is_repeatable) == b"hello"
        assert server.connections == connections


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST"])
async def test_what_may_not_be_repeated_is_sent_once(method: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()  # done, and the answer is lost

    async with RawServer(script) as server, HttpClient() as client:
        with pytest.raises(BrokenResponse):
            await client.open(
                method,
                server.address,
                headers=[],
                body=b"x",
                is_repeatable=False,
                connect_s=2.0,
                first_byte_s=2.0,
            )
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "closes", "kind", "phase", "text"),
    [
        (b"", False, UpstreamTimeout, "first_byte", "sent no response in time"),
        (b"", True, BrokenResponse, "first_byte", "sent no valid response"),
        (b"nonsense\r\n\r\n", True, BrokenResponse, "first_byte", "sent no valid response"),
        (CUT, False, UpstreamTimeout, "idle", "the response was silent for 0.2 s"),
        (CUT, True, BrokenResponse, "broken", "the response was cut off"),
    ],
)
async def test_each_failure_has_its_name(
    answer: bytes, closes: bool, kind: type[Exception], phase: str, text: str
) -> None:
    async with RawServer(once(answer, closes=closes)) as server, HttpClient() as client:
        with pytest.raises(kind, match=text) as caught:
            await fetch(client, server.address, connect_s=0.2, first_byte_s=0.1)
        assert getattr(caught.value, "phase", "") == phase


async def test_unreachable_server_is_named() -> None:
    async with HttpClient() as client:
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9 cannot be reached"):
            await fetch(client, "http://127.0.0.1:9/")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_refused_addresses_are_not_contacted(host: str) -> None:
    async with RawServer(answering(OK)) as server, HttpClient(refusal_reason=refuse_loopback) as client:
        with pytest.raises(Forbidden, match=f"Access to {host} is not allowed: it is private") as caught:
            await fetch(client, f"http://{host}:{server.port}/")
        assert (caught.value.code, server.connections) == ("address_not_allowed", 0)


async def test_check_host_judges_every_address_of_a_name() -> None:
    await check_host("localhost", lambda _: "")
    with pytest.raises(Forbidden, match="Access to localhost is not allowed: it is private"):
        await check_host("localhost", refuse_loopback)
    with pytest.raises(OSError, match=r"."):
        await check_host("no-such-host.invalid", refuse_loopback)


@pytest.mark.parametrize(
    ("status", "kind", "retryable"), [(407, UpstreamFailed, False), (503, ApplianceError, None)]
)
async def test_proxy_is_used_and_its_refusal_is_its_own(
    status: int, kind: type[ApplianceError], retryable: bool | None
) -> None:
    async with RawServer(answering(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)) as proxy:
        proxies = Proxies.from_environ({"HTTP_PROXY": f"http://me:word@127.0.0.1:{proxy.port}"})
        async with HttpClient(proxies=proxies) as client:
            if retryable is None:  # a 503 of a plain proxy cannot be told from the server's own
                assert await fetch(client, "http://host.test/x") == b""
            else:
                with pytest.raises(kind, match="requires other credentials"):
                    await fetch(client, "http://host.test/x")
    head = proxy.requests[0]
    assert head.startswith(b"GET http://host.test/x HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic bWU6d29yZA==" in head


async def test_leaving_early_closes_the_connection() -> None:
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.say(CUT)
        await peer.gone()
        left.set()

    async with RawServer(script) as server, HttpClient() as client:
        response = await client.open(
            "GET",
            server.address,
            headers=[],
            body=None,
            is_repeatable=False,
            connect_s=2,
            first_byte_s=2,
        )
        async for _ in iter_body(response, idle_s=None):
            break
        response.close()
        await asyncio.wait_for(left.wait(), 5)


async def _pieces() -> AsyncIterator[bytes]:
    for _ in range(60):
        yield bytes(100_000)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("ending", ["close", "linger", "hold"])
@pytest.mark.parametrize("after_bytes", [0, 100_000, 3_000_000])
def test_a_response_to_half_an_upload_is_never_lost(
    run: Callable[[Any], None], ending: str, after_bytes: int
) -> None:
    async def send(url: str) -> None:
        async with HttpClient() as client:
            for _ in range(4):
                options: Any = {"headers": [], "is_repeatable": False, "connect_s": 2.0}
                response = await client.open("POST", url, body=_pieces(), first_byte_s=5.0, **options)
                assert response.status == 413
                assert b"".join([piece async for piece in iter_body(response, idle_s=2)]) == b"no"
                response.close()

    answer = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"
    with EarlyServer(answer, after_bytes=after_bytes, ending=ending) as server:
        run(send(server.url))
