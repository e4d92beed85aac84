"""Answers that are too large, and events with something huge in them: bounded, and nothing of them is kept.

The garbage collector is off: what is freed only by it is kept for a long time.
"""

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits
from appliance.engines.upstream import exchange
from appliance.engines.upstream.attempt import AttemptFailed
from tests.engines.servers import chat, server_at
from tests.fakes.raw_server import Peer, RawServer

pytestmark = pytest.mark.timeout(60)

MIB = 1024 * 1024
LIMIT_BYTES = 8 * MIB  # of a whole answer, here
KEPT_BYTES = 2 * MIB
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
CHUNK = b'data: {"model":"%b","choices":[{"index":0,"delta":{"content":"%b"},"logprobs":%b,"finish_reason":%b}]}\n\n'
LOGPROBS = b'{"content":[' + b",".join([b'{"token":"a","logprob":-1,"top_logprobs":[]}'] * 500) + b"]}"
HUGE = b"m" * (5 * MIB)


def pouring(head: bytes, piece: bytes, count: int, last: bytes = b"") -> Callable[[Peer], Awaitable[None]]:
    async def script(peer: Peer) -> None:
        await peer.request()
        with suppress(ConnectionError):
            peer.say(head)
            for _ in range(count):
                await peer.pour(piece)
            peer.say(last)
            await peer.gone()

    return script


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    tracemalloc.start()
    yield
    tracemalloc.stop()
    gc.enable()


@pytest.fixture
async def wire() -> AsyncIterator[ConnectionPool]:
    async with ConnectionPool(PoolLimits(max_body_bytes=LIMIT_BYTES)) as pool:
        yield pool


async def answer(server: Any, request: Any) -> tuple[str, int]:
    """Return why one attempt failed, or "", and how many bytes a stream had."""
    size = 0
    try:
        reply = await server.send(request, server.take("only_one"), budget_s=30)
        if reply.events is not None:
            async for piece in reply.events:
                size += len(piece)
            await reply.events.aclose()
    except AttemptFailed as failed:
        return failed.note, size
    return "", size


@pytest.mark.parametrize(
    ("script", "kind", "stream", "note"),
    [
        (
            pouring(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", b" " * MIB, 60),
            "vllm",
            False,
            "larger than",
        ),
        (
            pouring(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", b" " * MIB, 60),
            "vllm",
            True,
            "larger than",
        ),
        (
            pouring(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", b" " * MIB, 60),
            "llamacpp",
            False,
            "larger than",
        ),
        (pouring(SSE + b"data: ", b"x" * MIB, 60), "vllm", True, "longer than 16 MiB"),
        (pouring(SSE + b"data: ", b"x" * MIB, 60), "llamacpp", False, "longer than"),
        (pouring(SSE, CHUNK % (b"m", b"", LOGPROBS, b"null"), 4000), "llamacpp", False, "longer than"),
        (pouring(SSE, (CHUNK % (b"m", b"", b"null", b"null")) * 1000, 200), "llamacpp", False, "longer than"),
    ],
)
@pytest.mark.usefixtures("no_collector")
async def test_what_is_too_large_fails_and_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, wire: ConnectionPool, script: Any, kind: str, stream: bool, note: str
) -> None:
    monkeypatch.setattr(exchange, "MAX_GATHERED_BYTES", LIMIT_BYTES)
    async with RawServer(script) as engine:
        server, request = server_at(engine.address, kind=kind, wire=wire), chat(stream=stream)
        before, _ = tracemalloc.get_traced_memory()
        said, _ = await answer(server, request)
    await asyncio.sleep(0.05)
    after, peak = tracemalloc.get_traced_memory()
    assert note in said
    assert peak - before < 20 * LIMIT_BYTES
    assert after - before < KEPT_BYTES


@pytest.mark.parametrize("name", [HUGE, HUGE[:-2] + b"\\n"])
@pytest.mark.parametrize(("kind", "stream"), [("vllm", True), ("llamacpp", False)])
@pytest.mark.usefixtures("no_collector")
async def test_a_huge_name_of_a_model_costs_no_more_than_its_bytes(
    monkeypatch: pytest.MonkeyPatch, wire: ConnectionPool, name: bytes, kind: str, stream: bool
) -> None:
    monkeypatch.setattr(exchange, "MAX_GATHERED_BYTES", 200 * MIB)
    last = CHUNK % (name, b"", b"null", b'"stop"') + b"data: [DONE]\n\n"
    async with RawServer(pouring(SSE, CHUNK % (name, b"hi", b"null", b"null"), 10, last)) as engine:
        server, request = server_at(engine.address, kind=kind, wire=wire), chat(stream=stream)
        before, _ = tracemalloc.get_traced_memory()
        said, size = await answer(server, request)
    await asyncio.sleep(0.05)
    after, peak = tracemalloc.get_traced_memory()
    assert (said, size < 5000) == ("", True)
    assert peak - before < 20 * len(HUGE)
    assert after - before < KEPT_BYTES
