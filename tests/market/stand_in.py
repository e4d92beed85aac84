"""A market scripted answer by answer, and clients of it whose waiting takes no time."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from appliance.base.clock import FakeClock
from appliance.market.providers.calls import MarketCalls
from appliance.market.providers.ionet import IoNet
from appliance.market.providers.vastai import VastAi
from tests.fakes.raw_server import Peer, RawServer

KEY = "market-secret-key"


def answer(status: int, body: Any = b"", **headers: str) -> bytes:
    """Return an answer as bytes; what is not bytes is written as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} X\r\n{more}Content-Length: {len(data)}\r\n\r\n".encode() + data


class ScriptedMarket:
    """Gives each request the next answer, in order over all connections; the last one for ever."""

    def __init__(self, *answers: bytes) -> None:
        self._left = list(answers)

    async def script(self, peer: Peer) -> None:
        while True:
            await peer.request()
            peer.say(self._left.pop(0) if len(self._left) > 1 else self._left[0])


class Waits:
    """Waits take no time; a clock moves instead."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(round(seconds, 3))
        self.clock.advance(seconds)


def calls_to(url: str, clock: FakeClock, *, timeout_s: float = 5.0, **intervals: float) -> MarketCalls:
    headers = {"Authorization": f"Bearer {KEY}"}
    return MarketCalls(
        "the market", url, headers, clock=clock, timeout_s=timeout_s, intervals=intervals, pause=Waits(clock)
    )


@asynccontextmanager
async def vast_that_answers(*answers: bytes) -> AsyncIterator[tuple[VastAi, RawServer]]:
    clock = FakeClock()
    async with RawServer(ScriptedMarket(*answers).script) as server:
        calls = calls_to(server.address, clock)
        vast = VastAi(KEY, server.address, clock=clock, timeout_s=5, calls=calls)
        yield vast, server
        await vast.close()


@asynccontextmanager
async def ionet_that_answers(*answers: bytes) -> AsyncIterator[tuple[IoNet, RawServer]]:
    clock = FakeClock()
    async with RawServer(ScriptedMarket(*answers).script) as server:
        calls = calls_to(server.address, clock)
        ionet = IoNet(KEY, server.address, clock=clock, timeout_s=5, calls=calls)
        yield ionet, server
        await ionet.close()
