"""Upstreams that send something all the time and hardly any content: the time limits of a stream hold for them.

A limit of content is none for a stream that gets on: it may take as long as it takes.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import aiohttp
import pytest

from tests.fakes.hosted_api import KEY
from tests.fakes.raw_server import Peer, RawServer
from tests.journeys.running import Running, Start

pytestmark = pytest.mark.timeout(30)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
CHUNK = (
    b'data: {"id":"c","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":%b}]}\n\n'
)
TEXT, EMPTY = CHUNK % b'{"content":"Hi"}', CHUNK % b'{"content":""}'
LAST = CHUNK.replace(b"%b", b'{},"finish_reason":"stop"') + b"data: [DONE]\n\n"
TRICKLES = {
    "bytes of an event": [bytes([byte]) for byte in b"data: " + b"x" * 4096],
    "comments": [b": still here\n\n"] * 4096,
    "empty deltas": [CHUNK % b'{"role":"assistant"}', *[EMPTY] * 4096],
    "deltas without choices": [b'data: {"model":"m","choices":[]}\n\n'] * 4096,
}
EVERY_S = 0.03
LIMITS = {
    "UPSTREAM_FIRST_BYTE_TIMEOUT_S": "0.5",
    "HEARTBEAT_S": "0.1",
    "METRICS_CACHE_TTL_SECONDS": "60",
    "BACKEND_STARTUP_GRACE_S": "0",
}
MODELS = b'{"object":"list","data":[{"id":"m"}]}'


def serving(*pieces: bytes, begin: bytes = b"") -> Callable[[Peer], Awaitable[None]]:
    """Answer a chat with `begin` at once and a piece every EVERY_S; health probes and lists of models, too."""

    async def script(peer: Peer) -> None:
        request = await peer.request()
        if not request.startswith(b"POST"):
            peer.say(
                b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(MODELS) + MODELS
            )
            return
        peer.say(HEAD + begin)
        with suppress(ConnectionError):
            for piece in pieces:
                await asyncio.sleep(EVERY_S)
                peer.say(piece)
                await peer.writer.drain()

    return script


async def open_appliance(start: Start, server: RawServer, kind: str, **limits: str) -> Running:
    hosted = {"NOVITA_API_KEY": KEY, "NOVITA_OPENAI_ENDPOINTS": server.address}
    return await start(
        **(hosted if kind == "hosted" else {"BACKENDS": f"e0={server.address}"}), **LIMITS | limits
    )


async def ask(running: Running) -> tuple[int, str]:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{running.v1}/chat/completions", json=body) as response,
    ):
        return response.status, await response.text()


@pytest.mark.parametrize("kind", ["hosted", "pooled"])
@pytest.mark.parametrize("trickle", TRICKLES)
async def test_the_first_content_comes_in_time(start: Start, kind: str, trickle: str) -> None:
    async with RawServer(serving(*TRICKLES[trickle])) as server:
        status, text = await ask(await open_appliance(start, server, kind))
    assert (status, text.count(": heartbeat") >= 2) == (200, True)
    assert "sent no content within 0.5 s (UPSTREAM_FIRST_BYTE_TIMEOUT_S)" in text


@pytest.mark.parametrize(
    ("kind", "limit"), [("hosted", "UPSTREAM_TOTAL_TIMEOUT_S"), ("pooled", "BACKEND_TIMEOUT_SECONDS")]
)
@pytest.mark.parametrize("trickle", TRICKLES)
async def test_the_next_content_comes_in_time(start: Start, kind: str, limit: str, trickle: str) -> None:
    async with RawServer(serving(*TRICKLES[trickle], begin=TEXT)) as server:
        status, text = await ask(await open_appliance(start, server, kind, **{limit: "0.6"}))
    assert (status, '"content":"Hi"' in text) == (200, True)
    assert f"broke off its response: it sent no content for 0.6 s ({limit})" in text


@pytest.mark.parametrize(
    ("kind", "limit"), [("hosted", "UPSTREAM_TOTAL_TIMEOUT_S"), ("pooled", "BACKEND_TIMEOUT_SECONDS")]
)
async def test_a_stream_that_gets_on_may_take_its_time(start: Start, kind: str, limit: str) -> None:
    pieces, limits = (
        [TEXT, EMPTY, b": c\n\n", EMPTY] * 20,
        {limit: "1.5", "UPSTREAM_FIRST_BYTE_TIMEOUT_S": "1.5"},
    )
    async with RawServer(serving(*pieces, LAST)) as server:
        status, text = await ask(await open_appliance(start, server, kind, **limits))
    assert (status, text.count('"content":"Hi"'), text.endswith("data: [DONE]\n\n")) == (200, 20, True), text


async def test_silence_in_a_stream_names_its_limit(start: Start) -> None:
    async def script(peer: Peer) -> None:
        await serving(begin=TEXT)(peer)
        await peer.closed_by_us.wait()

    async with RawServer(script) as server:
        running = await open_appliance(start, server, "hosted", UPSTREAM_IDLE_TIMEOUT_S="0.3")
        _, text = await ask(running)
    assert "it sent nothing more of its response within 0.3 s (UPSTREAM_IDLE_TIMEOUT_S)" in text


async def test_a_late_whole_response_to_a_stream_has_the_total_time(start: Start) -> None:
    body = b'{"model":"m","choices":[{"index":0,"message":{"content":"Hi"},"finish_reason":"stop"}]}'

    async def script(peer: Peer) -> None:
        request = await peer.request()
        assert request.startswith(b"POST")
        peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:20])
        await asyncio.sleep(1)
        peer.say(body[20:])
        await peer.gone()

    async with RawServer(script) as server:
        status, text = await ask(await open_appliance(start, server, "hosted"))
    assert (status, "Hi" in text, "error" in text) == (200, True, False)
