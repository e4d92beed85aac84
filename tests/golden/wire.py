"""HTTP as it goes over a socket: a request's bytes are written, an answer's bytes are read, and nothing between them is interpreted twice."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

PATIENCE_S = 60.0


@dataclass
class Heard:
    """One answer. `end`: complete, cut (by the other side), left (we had enough), upgraded."""

    version: str = ""
    status: int = 0
    reason: str = ""
    fields: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    end: str = "complete"

    def header(self, name: str) -> str:
        return next((value for key, value in self.fields if key.lower() == name.lower()), "")


def request_bytes(
    method: str, target: str, *, body: Any = None, headers: dict[str, str] | None = None
) -> bytes:
    """Write a request. Takes   body: bytes as they are, text, None = none, anything else as JSON"""
    data = (
        body
        if isinstance(body, bytes)
        else body.encode()
        if isinstance(body, str)
        else b""
        if body is None
        else json.dumps(body).encode()
    )
    fields = {"Host": "golden.localhost", **(headers or {})}
    if body is not None:
        fields = {"Content-Type": "application/json", "Content-Length": str(len(data)), **fields}
    return (
        f"{method} {target} HTTP/1.1\r\n".encode()
        + b"".join(f"{k}: {v}\r\n".encode() for k, v in fields.items())
        + b"\r\n"
        + data
    )


async def talk(
    port: int,
    raw: bytes,
    *,
    answers: int = 1,
    methods: tuple[str, ...] = (),
    events: int = 0,
    seen: Callable[[bytes], None] | None = None,
) -> list[Heard]:
    """Send bytes on a connection of its own and read so many answers to them.

    Takes   methods: of the requests, where one of them is HEAD; events: a stream is left after so many blank lines, 0 = read to its end;
            seen: told of a stream's body so far, at each piece
    """
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(raw)
            await writer.drain()
            return [
                await _read(
                    reader, is_head=methods[number : number + 1] == ("HEAD",), events=events, seen=seen
                )
                for number in range(answers)
            ]
        finally:
            writer.close()
            try:
                await writer.wait_closed()
            except OSError:
                pass


async def _read(
    reader: asyncio.StreamReader, *, is_head: bool, events: int, seen: Callable[[bytes], None] | None
) -> Heard:
    heard = Heard()
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionResetError):
        heard.end = "cut"
        return heard
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    heard.version, status, heard.reason = first.split(" ", 2)
    heard.status = int(status)
    heard.fields = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    if is_head or heard.status in {100, 204, 304}:
        return heard
    if heard.status == 101:
        heard.end = "upgraded"
        return heard
    try:
        if heard.header("transfer-encoding") == "chunked":
            await _read_chunks(reader, heard, events, seen)
        elif length := heard.header("content-length"):
            heard.body = await reader.readexactly(int(length))
        else:
            heard.body = await reader.read()
    except asyncio.IncompleteReadError as exc:
        heard.body, heard.end = heard.body + exc.partial, "cut"
    except ConnectionResetError:
        heard.end = "cut"
    return heard


async def _read_chunks(
    reader: asyncio.StreamReader, heard: Heard, events: int, seen: Callable[[bytes], None] | None
) -> None:
    while True:
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        piece = await reader.readexactly(size)
        await reader.readexactly(2)
        if not size:
            return
        heard.body += piece
        if seen is not None:
            seen(heard.body)
        if events and heard.body.count(b"\n\n") >= events:
            heard.body = b"\n\n".join(heard.body.split(b"\n\n")[:events]) + b"\n\n"
            heard.end = "left"
            return
