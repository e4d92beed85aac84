"""A server that is scripted byte by byte: it splits, stalls, lies and breaks off where a test wants it.

async def script(peer: Peer) -> None:       # runs once for each connection; its end closes the connection
    await peer.request()
    peer.say(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhello")
    await peer.gone()

async with RawServer(script) as server:     # server.address, .connections, .requests, .left
    …
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class Peer:
    """The client of one connection, as the server sees it."""

    def __init__(
        self, server: "RawServer", reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        self._server = server
        self.reader, self.writer, self.number = reader, writer, number
        self.sent_bytes = 0
        self.closed_by_us = (
            asyncio.Event()
        )  # never set: a script that waits for it holds the connection until the test ends

    async def head(self) -> bytes:
        """Read the head of a request alone."""
        return await self.reader.readuntil(b"\r\n\r\n")

    async def request(self) -> bytes:
        """Read one request whole, and record it."""
        head = await self.head()
        _, found, rest = head.lower().partition(b"\r\ncontent-length: ")
        whole = head + await self.reader.readexactly(int(rest.split(b"\r\n")[0]) if found else 0)
        self._server.requests.append(whole)
        return whole

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def pour(self, data: bytes) -> None:
        """Write as far as the client takes it; counts in sent_bytes."""
        for at in range(0, len(data), 65_536):
            self.writer.write(data[at : at + 65_536])
            await self.writer.drain()
            self.sent_bytes += len(data[at : at + 65_536])

    async def gone(self) -> None:
        """Wait until the client has left."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65_536):
                pass
        self._server.left += 1

    def reset(self) -> None:
        """End the connection by RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


def answering(*answers: bytes) -> Script:
    """Give each request the next answer, for ever the last one; every connection begins with the first."""

    async def script(peer: Peer) -> None:
        left = list(answers)
        while True:
            await peer.request()
            peer.say(left.pop(0) if len(left) > 1 else left[0])

    return script


def once(answer: bytes, *, closes: bool = False) -> Script:
    """Answer one request; then close, or wait until the client has left."""

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.say(answer)
        if not closes:
            await peer.gone()

    return script


class RawServer:
    """Runs the script for each connection."""

    def __init__(self, script: Script, *, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.script = script
        self._tls = tls
        self.port = port
        self.connections = 0
        self.left = 0  # connections of which the script saw the client's end
        self.requests: list[bytes] = []
        self.peers: list[Peer] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        return f"{'https' if self._tls else 'http'}://{'localhost' if self._tls else '127.0.0.1'}:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        peer = Peer(self, reader, writer, self.connections)
        self.peers.append(peer)
        try:
            await self.script(peer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left += 1
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            self._tasks.discard(task)
            writer.close()

    async def __aenter__(self) -> "RawServer":
        self._listener = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self._tls, limit=2**20
        )
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for peer in self.peers:
            connection = peer.writer.get_extra_info("socket")
            if connection is not None and connection.fileno() >= 0:  # else it is closed
                peer.writer.transport.abort()
