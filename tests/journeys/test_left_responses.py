"""Clients that leave: how the request ended, what was really written to them, and that it is counted once."""

import asyncio
import json
import socket
import struct
from contextlib import suppress
from typing import Any

import pytest

from tests.fakes.hosted_api import KEY
from tests.fakes.raw_server import Peer, RawServer
from tests.journeys.running import Running, Start, until

pytestmark = pytest.mark.timeout(20)

TEXT = b"x" * 16_000
EVENT = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % TEXT
EVENTS = 1000  # 16 MB: more than the sockets hold
WHOLE = b'{"model":"m","choices":[{"index":0,"message":{"content":"%b"},"finish_reason":"stop"}]}' % (
    TEXT * EVENTS
)
REST = b'{"model":"m","messages":[{"role":"user","content":"hello"}],"stream":%b}'
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


async def upstream(peer: Peer) -> None:
    request = await peer.request()
    with suppress(ConnectionError):
        if b'"stream":true' in request:
            peer.say(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            for _ in range(EVENTS):
                await peer.pour(EVENT)
            await peer.closed_by_us.wait()
        else:
            peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(WHOLE))
            await peer.pour(WHOLE)


async def read_and_leave(running: Running, *, stream: bool, is_chunked: bool, is_reset: bool) -> int:
    """Ask, read some of the response, wait until no more fits into the sockets, and leave; return what was read."""
    loop, body = asyncio.get_running_loop(), REST % (b"true" if stream else b"false")
    framing = (
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        if is_chunked
        else b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    host, port = running.base_url.removeprefix("http://").split(":")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        sock.setblocking(False)
        await loop.sock_connect(sock, (host, int(port)))
        await loop.sock_sendall(sock, HEAD + framing)
        read = 0
        while read < 100_000:
            read += len(await loop.sock_recv(sock, 65_536))
        await asyncio.sleep(0.7)  # longer than a tick of the front
        if is_reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return read


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_in_a_response(
    start: Start, stream: bool, is_chunked: bool, is_reset: bool
) -> None:
    lines: list[dict[str, Any]] = []
    async with RawServer(upstream) as server:
        running = await start(NOVITA_API_KEY=KEY, NOVITA_OPENAI_ENDPOINTS=server.address)
        pipeline = running.appliance.pipeline
        pipeline.access_log._on_line = lambda _, line: lines.append(json.loads(line))
        read = await read_and_leave(running, stream=stream, is_chunked=is_chunked, is_reset=is_reset)
        assert await until(lambda: bool(lines), seconds=8)
        await asyncio.sleep(0.6)
        name = 'appliance_requests_total{route="/v1/chat/completions",status="200"}'
        assert f"{name} 1.0\n" in running.appliance.metrics.render().decode()
        assert pipeline.in_flight == 0
    assert len(lines) == 1
    line = lines[0]
    assert (line["finish"], line["status"]) == ("client_left", 200)
    sent, whole = line["bytes"], EVENTS * len(TEXT)
    assert read - 1000 <= sent < whole * 0.8, (read, sent, whole)
