"""The upstream pool beside aiohttp's client, over the same upstream server, in one run.

    python -m bench.wire_client

Prints requests and stream events per second of the client's own processor time, as medians of several rounds.
"""

import asyncio
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import uvloop

from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits, Target
from bench.__main__ import CHAT, HERE, free_port, wait_for_port

ROUNDS, SECONDS, CLIENTS = 5, 2.0, 64
BODY = json.dumps(CHAT).encode()
STREAM = json.dumps({**CHAT, "stream": True}).encode()


async def rate(one: Callable[[], Awaitable[int]]) -> float:
    """Run `one` in CLIENTS tasks for SECONDS; return what it counted per processor second."""
    ends, total = time.monotonic() + SECONDS, 0

    async def worker() -> None:
        nonlocal total
        while time.monotonic() < ends:
            count = await one()
            total += count

    before = time.process_time()
    await asyncio.gather(*(worker() for _ in range(CLIENTS)))
    return total / (time.process_time() - before)


async def measure(port: int) -> None:
    base = f"http://127.0.0.1:{port}/v1"
    target = Target.parse(base, headers={"Content-Type": "application/json"})
    async with (
        ConnectionPool(PoolLimits()) as wire,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):

        async def ours() -> int:
            await (await wire.send(target, path=b"/chat/completions", body=BODY)).read()
            return 1

        async def theirs() -> int:
            async with session.post(base + "/chat/completions", data=BODY) as response:
                await response.read()
            return 1

        async def our_stream() -> int:
            response, events = await wire.send(target, path=b"/chat/completions", body=STREAM), 0
            while chunk := await response.next_chunk():
                events += chunk.count(b"\n\n")
            response.close()
            return events

        async def their_stream() -> int:
            events = 0
            async with session.post(base + "/chat/completions", data=STREAM) as response:
                async for chunk in response.content.iter_any():
                    events += chunk.count(b"\n\n")
            return events

        for name, pair in (("requests", (ours, theirs)), ("stream events", (our_stream, their_stream))):
            found: tuple[list[float], list[float]] = ([], [])
            for _ in range(ROUNDS):
                for column, one in zip(found, pair, strict=True):
                    column.append(await rate(one))
            mine, other = (statistics.median(column) for column in found)
            print(
                f"{name:14} per core second: pool {mine:12,.0f}   aiohttp's client {other:12,.0f}   "
                f"ratio {mine / other:.2f}"
            )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "upstream"
        subprocess.run(["gcc", "-O2", "-w", "-o", program, HERE / "upstream.c"], check=True)
        port = free_port()
        upstream = subprocess.Popen([program, str(port), "200", "0"], stdout=subprocess.DEVNULL)
        try:
            wait_for_port(port)
            uvloop.run(measure(port))
        finally:
            upstream.kill()
            upstream.wait()


if __name__ == "__main__":
    main()
