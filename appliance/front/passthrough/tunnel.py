"""A connection that asks to switch protocols (WebSocket and the like): its request goes to a chosen server, then bytes go both ways.

It takes the connection over from the lane, as aiohttp's protocol does for everything else that is not hot. Until the server has
answered, the client may be refused in HTTP; after `101` nothing is looked at any more. No time limit holds for silence, since none
is known for what is spoken; a side that does not read makes the other one wait.
"""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httptools

from appliance.base.errors import ApplianceError, Unavailable, UpstreamFailed
from appliance.engines.outcome import Finish, Outcome
from appliance.engines.slots import Slot
from appliance.front.passthrough.handlers import Passthrough
from appliance.front.passthrough.rules import answer_fields, request_fields
from appliance.front.pipeline.heads import Upgrade
from appliance.front.pipeline.request import Request

if TYPE_CHECKING:
    from appliance.front.server.fast_connection import FastConnection
    from appliance.front.server.server import HttpServer

MOST_UNSENT_BYTES = 256 * 1024
MOST_HEAD_BYTES = 65_536
PIECE_BYTES = 65_536


class Tunnel:
    """One such connection. The lane passes on what its transport calls."""

    def __init__(
        self, connection: "FastConnection", server: "HttpServer", passthrough: Passthrough, wanted: Upgrade
    ) -> None:
        self._lane = connection
        self._server = server
        self._passthrough = passthrough
        self._wanted = wanted
        self._transport: Any = None
        self._arrived = bytearray()
        self._more = asyncio.Event()
        self._is_ended = False  # the client sends no more
        self._is_waiting = False  # the client is not read, until the server has taken what there is
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._task: asyncio.Task[None] | None = None

    # ---- the lane's calls

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        wanted = self._wanted
        call = self._server.pipeline.open(
            None, method="GET", path=wanted.path, headers=wanted.headers, body=b"", peer=self._lane.peer
        )
        call.receipt.route = call.route = "passage"
        self._lane.busy += 1
        self._task = self._server.loop.create_task(self._serve(call))

    def data_received(self, data: bytes) -> None:
        self._arrived += data
        self._more.set()
        if len(self._arrived) > MOST_UNSENT_BYTES and not self._is_waiting:
            self._is_waiting = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._is_ended = True
        self._more.set()
        return True  # the other direction goes on

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    # ---- its story

    async def _serve(self, call: Request) -> None:
        """Serve it; whatever happens it is closed at the desk exactly once, and both connections end."""
        pipeline, finish, sent = self._server.pipeline, Finish.CLIENT_LEFT, 0
        try:
            try:
                finish, sent = await self._tunnel(call)
            except ApplianceError as error:
                answer = pipeline.error_response(error, "openai", call.receipt)
            except (ConnectionError, asyncio.CancelledError):
                return
            except Exception as error:
                answer = pipeline.error_response(pipeline.internal_error(error, call), "openai", call.receipt)
            else:
                return
            call.receipt.status = answer.status
            answer.headers += pipeline.response_headers(call)
            finish, sent = Finish.DONE, self._lane.write_last(answer)
        finally:
            pipeline.close(call, finish=finish, sent_bytes=sent)
            self._lane.busy -= 1
            self._transport.close()

    async def _tunnel(self, call: Request) -> tuple[Finish, int]:
        target, options = self._passthrough.admit(call, self._wanted.target)
        tried: set[str] = set()
        while True:
            slot = await self._passthrough.router.lease(receipt=call.receipt, exclude=tried, options=options)
            try:
                reader, writer = await self._connect(slot)
            except (OSError, TimeoutError) as exc:
                slot.release(Outcome.CONNECT, note=str(exc))
                tried.add(slot.backend.name)
                if options.pin or not set(self._passthrough.router.server_names()) - tried:
                    raise Unavailable(
                        f"No backend available: {slot.backend.name} could not be reached.",
                        code="no_backend",
                        retry_after_s=2,
                    ) from exc
                continue
            except BaseException:
                slot.release(Outcome.CLIENT_LEFT)
                raise
            try:
                return await self._exchange(call, slot, target, reader, writer)
            finally:
                slot.release(Outcome.CLIENT_LEFT)
                writer.transport.abort()

    async def _connect(self, slot: Slot) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(slot.url)
        is_tls = parts.scheme == "https"
        async with asyncio.timeout(self._passthrough.router.settings.upstream_connect_timeout_s):
            return await asyncio.open_connection(
                parts.hostname,
                parts.port or (443 if is_tls else 80),
                limit=MOST_HEAD_BYTES,
                ssl=(slot.ssl or True) if is_tls else None,
            )

    async def _exchange(
        self,
        call: Request,
        slot: Slot,
        target: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> tuple[Finish, int]:
        """Send the request's head, wait for the answer's, then pass bytes on until both sides have ended.

        Gives   (finish, bytes sent to the client)
        """
        parts = urlsplit(slot.url)
        upgrade = next(value for name, value in self._wanted.fields if name.lower() == "upgrade")
        fields = request_fields(
            self._wanted.fields,
            peer=call.peer,
            scheme="http",
            host=call.headers.get("host", ""),
            request_id=call.id,
            own=slot.headers.items(),
        )
        fields = [("Host", parts.netloc), *fields, ("Connection", "Upgrade"), ("Upgrade", upgrade)]
        writer.write(_head(f"GET {parts.path.rstrip('/')}{target} HTTP/1.1", fields))
        try:
            async with asyncio.timeout(self._passthrough.router.settings.backend_timeout_seconds):
                raw = await reader.readuntil(b"\r\n\r\n")
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as exc:
            slot.release(Outcome.FIRST_BYTE, note=repr(exc))
            raise UpstreamFailed(
                f"{slot.backend.name} gave no answer to the request to switch to {upgrade[:40]}."
            ) from exc
        status, reason, answered = _parse(raw, slot.backend.name)
        call.receipt.status = status
        has_switched = status == 101
        fields = [*answer_fields(answered), *self._server.pipeline.response_headers(call)]
        if has_switched:
            fields += [
                ("Connection", "Upgrade"),
                *((name, value) for name, value in answered if name.lower() == "upgrade"),
            ]
        else:  # the body goes through in its own framing, and the connection ends with it
            fields += [(name, value) for name, value in answered if name.lower() == "transfer-encoding"] + [
                ("Connection", "close")
            ]
        self._transport.write(_head(f"HTTP/1.1 {status} {reason}", fields))
        self._server.pipeline.mark_first_byte(call)
        sent = await (self._both_ways(reader, writer) if has_switched else self._down(reader, _End(raw)))
        slot.release(Outcome.PASSED, status=status)
        return Finish.DONE, sent

    async def _both_ways(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """Pass bytes on; the end of the client's direction leaves the other one open, the end of the server's ends both."""
        up = self._server.loop.create_task(self._up(writer))
        try:
            return await self._down(reader)
        finally:
            up.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await up

    async def _up(self, writer: asyncio.StreamWriter) -> None:
        while True:
            data, self._arrived = self._arrived, bytearray()
            self._more.clear()
            if data:
                writer.write(data)
                await writer.drain()
            if self._is_waiting and len(self._arrived) <= MOST_UNSENT_BYTES:
                self._is_waiting = False
                self._transport.resume_reading()
            if self._arrived:
                continue
            if self._is_ended:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            await self._more.wait()

    async def _down(self, reader: asyncio.StreamReader, end: "_End | None" = None) -> int:
        """Pass the server's bytes on until it ends, or until `end` sees that its answer is whole."""
        sent = 0
        while (end is None or not end.is_there) and (data := await reader.read(PIECE_BYTES)):
            await self._may_write.wait()
            self._transport.write(data)
            sent += len(data)
            if end is not None:
                end.feed(data)
        return sent


class _End:
    """Finds the end of an answer that did not switch: its connection may stay open after it."""

    def __init__(self, head: bytes) -> None:
        self.is_there = False
        self._parser = httptools.HttpResponseParser(self)
        self.feed(head)

    def feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.is_there = True  # no HTTP: nothing after it makes sense

    def on_message_complete(self) -> None:
        self.is_there = True


def _head(line: str, fields: list[tuple[str, str]]) -> bytes:
    return "".join([line, "\r\n", *(f"{name}: {value}\r\n" for name, value in fields), "\r\n"]).encode(
        "latin-1", "replace"
    )


def _parse(raw: bytes, backend: str) -> tuple[int, str, list[tuple[str, str]]]:
    """Read an answer's head as (status, reason, fields)."""
    first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    version, _, rest = first.partition(" ")
    status, _, reason = rest.partition(" ")
    if not version.startswith("HTTP/1.") or not status.isdigit():
        raise UpstreamFailed(f"{backend} answered with something that is no HTTP.")
    fields = [
        (name.strip(), value.strip())
        for name, colon, value in (line.partition(":") for line in lines)
        if colon
    ]
    return int(status), reason, fields
