"""A forwarding proxy as companies have them.

CONNECT for https, whole addresses for http, with a password or without, and host names of its own.

async with ForwardProxy({"hub.test": "127.0.0.1"}) as proxy:
    proxy.password = "me:secret"                # of those who may use it
    proxy.refuses["evil.test"] = 403
    …                                           # proxy.url, proxy.asked, proxy.sent
"""

import asyncio
import base64
import contextlib
import ssl
from collections import Counter
from collections.abc import Mapping
from urllib.parse import urlsplit


class ForwardProxy:
    """One proxy. `names`: the hosts that it knows, and where they are; nobody else has to know them.

    asked   (method, host) of each request, refused ones too; sent: bytes that it passed back, by host
    """

    def __init__(self, names: Mapping[str, str], *, ssl_context: ssl.SSLContext | None = None) -> None:
        self.names = dict(names)
        self.password = ""
        self.refuses: dict[str, int] = {}
        self.asked: list[tuple[str, str]] = []
        self.sent: Counter[str] = Counter()
        self._ssl = ssl_context
        self._open: set[asyncio.Task[None]] = set()

    @property
    def hosts(self) -> set[str]:
        return {host for _, host in self.asked}

    async def __aenter__(self) -> "ForwardProxy":
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0, ssl=self._ssl)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self._ssl else 'http'}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._serve(reader, writer)
        finally:
            self._open.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one request on; the connection ends with its answer."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ")
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        host = parts.hostname or ""
        self.asked.append((method, host))
        given = next(
            (line.partition(": ")[2] for line in lines if line.lower().startswith("proxy-authorization:")), ""
        )
        status = self.refuses.get(host) or (502 if host not in self.names else 0)
        if self.password and given != f"Basic {base64.b64encode(self.password.encode()).decode()}":
            status = 407
        if status:
            extra = "Proxy-Authenticate: Basic realm=proxy\r\n" if status == 407 else ""
            writer.write(
                f"HTTP/1.1 {status} No\r\n{extra}Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
            )
            await writer.drain()
            return
        there, back = await asyncio.open_connection(self.names[host], parts.port or 80)
        try:
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                kept = [
                    line for line in lines if line and not line.lower().startswith(("proxy-", "connection:"))
                ]
                where = target[target.index("/", 8) :] if "/" in target[8:] else "/"
                back.write(
                    "\r\n".join([f"{method} {where} HTTP/1.1", *kept, "Connection: close", "", ""]).encode(
                        "latin-1"
                    )
                )
            await asyncio.gather(self._copy(reader, back), self._copy(there, writer, host))
        finally:
            back.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str = "") -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
            if host:
                self.sent[host] += len(data)
        with contextlib.suppress(OSError, NotImplementedError):
            writer.write_eof() if writer.can_write_eof() else writer.close()
