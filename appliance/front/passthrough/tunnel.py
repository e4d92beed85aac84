"""A connection that switches protocols, such as WebSocket: a request to a server, then bytes both ways.

It takes the connection over from the fast connection. Until the server has answered, the client may be
refused in HTTP; after `101` the bytes are passed on unread. There is no idle timeout, because the protocol is
unknown. A side that does not read makes the other one wait.
"""

import asyncio
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import urlsplit

import httptools

from appliance.base.errors import PaymentRequired, Unavailable, UpstreamFailed
from appliance.engines.backends.contract import Backend
from appliance.engines.outcome import Finish, Outcome
from appliance.engines.slots import Slot
from appliance.front.passthrough.forwarded import model_of
from appliance.front.passthrough.passthrough import Passthrough
from appliance.front.passthrough.rules import ROUTE, request_fields, response_fields
from appliance.front.pipeline.heads import Upgrade
from appliance.front.pipeline.pipeline import RequestPipeline
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response

MAX_UNSENT_BYTES = 256 * 1024
MAX_HEAD_BYTES = 65_536
PIECE_BYTES = 65_536


class TunnelClient(Protocol):
    """The client's connection, as the tunnel needs it. `busy`: requests being answered on it."""

    busy: int

    @property
    def peer(self) -> str:
        """The client's address."""

    def write_last(self, response: Response) -> int:
        """Write a response after which the connection ends; return the size of its body."""


class Tunnel:
    """One such connection; an asyncio protocol behind the fast connection."""

    def __init__(
        self, client: TunnelClient, pipeline: RequestPipeline, passthrough: Passthrough, upgrade: Upgrade
    ) -> None:
        self._client = client
        self._pipeline = pipeline
        self._passthrough = passthrough
        self._upgrade = upgrade
        self._transport: Any = None
        self._arrived = bytearray()
        self._more = asyncio.Event()
        self._is_ended = False  # the client sends no more
        self._has_switched = False
        self._is_waiting = False  # the client is not read, until the server has taken what there is
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._task: asyncio.Task[None] | None = None

    # ---- callbacks of the client's transport

    def connection_made(self, transport: Any) -> None:
        """Begin: the request's head has been read."""
        self._transport = transport
        upgrade = self._upgrade
        request = self._pipeline.request(
            ROUTE,
            method="GET",
            path=upgrade.path,
            headers=upgrade.headers,
            body=b"",
            peer=self._client.peer,
        )
        self._client.busy += 1
        self._task = asyncio.get_running_loop().create_task(self._serve(request))

    def data_received(self, data: bytes) -> None:
        """Keep what the client sent; stop reading while too much of it is unsent."""
        self._arrived += data
        self._more.set()
        if len(self._arrived) > MAX_UNSENT_BYTES and not self._is_waiting:
            self._is_waiting = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Take the end of what the client sends; return whether the other direction goes on.

        1. before the switch            → the client has left
        2. WebSocket                    → it has left: its end is a frame, never a half-closed connection
        3. any other protocol           → the server gets the end, and may still send
        """
        if not self._has_switched or self._upgrade.headers.get("upgrade", "").lower() == "websocket":  # 1, 2
            if self._task is not None:
                self._task.cancel()
            return False
        self._is_ended = True  # 3
        self._more.set()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """The client does not read."""
        self._may_write.clear()

    def resume_writing(self) -> None:
        """The client reads on."""
        self._may_write.set()

    def is_idle(self) -> bool:
        """Never: the connection has no other request."""
        return False

    def retire(self) -> None:
        """Leave the connection: never asked for."""

    # ---- serving

    async def _serve(self, request: Request) -> None:
        """Serve the connection to its end, then close both sides.

        1. the tunnel ends               → done, recorded by `_exchange`
        2. the client leaves             → client_left
        3. a failure before it is open   → an HTTP error
        """
        try:
            with request:
                try:
                    await self._tunnel(request)  # 1
                except (ConnectionError, asyncio.CancelledError):  # 2
                    pass
                except Exception as error:  # 3
                    self._refuse(error, request)
        finally:
            self._client.busy -= 1
            self._transport.close()

    def _refuse(self, error: Exception, request: Request) -> None:
        pipeline = self._pipeline
        failure = pipeline.to_appliance_error(error, request)
        response = pipeline.error_response(failure, "openai", request.receipt)
        request.receipt.status = response.status
        response.headers += pipeline.response_headers(request)
        request.sent_bytes = self._client.write_last(response)
        request.finish = Finish.DONE

    async def _tunnel(self, request: Request) -> None:
        """Find a server that can be reached, and exchange bytes with it."""
        target, options = await self._passthrough.admit(request, self._upgrade.target, takes_ticket=True)
        if options.billing is not None:
            raise PaymentRequired(
                "A connection that switches protocols has no price, so it cannot be billed to an account. "
                "Send requests instead, or use a key of the settings.",
                code="price_unknown",
            )
        router = self._passthrough.router
        model = self._passthrough.model_for(request, target, options, model_of(None, target))
        tried: set[str] = set()
        while True:
            slot = await router.direct.lease(
                receipt=request.receipt, model=model, exclude=tried, options=options
            )
            try:
                reader, writer = await self._connect(slot)
            except (OSError, TimeoutError) as exc:
                slot.release(Outcome.CONNECT, note=str(exc))
                tried.add(slot.backend.name)
                if options.pin or not set(router.direct.server_names()) - tried:
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
                await self._exchange(request, slot, target, reader, writer)
            finally:
                slot.release(Outcome.CLIENT_LEFT)
                writer.transport.abort()
            return

    async def _connect(self, slot: Slot[Backend]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(slot.url)
        is_tls = parts.scheme == "https"
        async with asyncio.timeout(self._passthrough.router.settings.upstream_connect_timeout_s):
            return await asyncio.open_connection(
                parts.hostname,
                parts.port or (443 if is_tls else 80),
                limit=MAX_HEAD_BYTES,
                ssl=(slot.ssl or True) if is_tls else None,
            )

    async def _exchange(
        self,
        request: Request,
        slot: Slot[Backend],
        target: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Send the request's head, wait for the response's, then pass bytes on until both sides have ended.

        1. it switches          → bytes go both ways
        2. any other response   → its body is passed on in its own framing, then the connection is closed
        """
        protocol = next(value for name, value in self._upgrade.fields if name.lower() == "upgrade")
        writer.write(self._request_head(request, slot, target, protocol))
        try:
            async with asyncio.timeout(self._passthrough.router.settings.backend_timeout_seconds):
                raw = await reader.readuntil(b"\r\n\r\n")
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as exc:
            slot.release(Outcome.FIRST_BYTE, note=repr(exc))
            raise UpstreamFailed(
                f"{slot.backend.name} did not answer the request to switch to {protocol[:40]}."
            ) from exc
        status, reason, received = _parse(raw, slot.backend.name)
        request.receipt.status = status
        has_switched = self._has_switched = status == 101
        fields = [*response_fields(received), *self._pipeline.response_headers(request)]
        if has_switched:  # 1
            fields += [
                ("Connection", "Upgrade"),
                *((name, value) for name, value in received if name.lower() == "upgrade"),
            ]
        else:  # 2
            fields += [(name, value) for name, value in received if name.lower() == "transfer-encoding"]
            fields.append(("Connection", "close"))
        self._transport.write(_head(f"HTTP/1.1 {status} {reason}", fields))
        self._pipeline.mark_first_byte(request)
        sent_bytes = await (
            self._both_ways(reader, writer) if has_switched else self._down(reader, _End(raw))
        )
        slot.release(Outcome.PASSED, status=status)
        request.finish, request.sent_bytes = Finish.DONE, sent_bytes

    def _request_head(self, request: Request, slot: Slot[Backend], target: str, protocol: str) -> bytes:
        parts = urlsplit(slot.url)
        fields = request_fields(
            self._upgrade.fields,
            peer=request.peer,
            scheme="http",
            host=request.headers.get("host", ""),
            request_id=request.id,
            own=slot.headers.items(),
        )
        fields = [("Host", parts.netloc), *fields, ("Connection", "Upgrade"), ("Upgrade", protocol)]
        return _head(f"GET {parts.path.rstrip('/')}{target} HTTP/1.1", fields)

    async def _both_ways(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """Pass bytes on until the server closes; an EOF of the client leaves the other direction open."""
        up = asyncio.get_running_loop().create_task(self._up(writer))
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
                try:
                    async with asyncio.timeout(self._pipeline.settings.write_timeout_s):
                        await writer.drain()
                except TimeoutError:  # the client is not read meanwhile: whether it is there is not known
                    writer.transport.abort()
                    return
            if self._is_waiting and len(self._arrived) <= MAX_UNSENT_BYTES:
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
        """Pass the server's bytes on until it closes, or until `end` has seen the whole response."""
        sent = 0
        while (end is None or not end.is_there) and (data := await self._read(reader)):
            await self._may_write.wait()
            self._transport.write(data)
            sent += len(data)
            if end is not None:
                end.feed(data)
        return sent

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        """Read from the server; b"" at its end, and where it is silent for long after the client's end."""
        while True:
            try:
                async with asyncio.timeout(self._pipeline.settings.write_timeout_s):
                    return await reader.read(PIECE_BYTES)
            except TimeoutError:
                if self._is_ended:
                    return b""


class _End:
    """Finds the end of a response that did not switch: the server may keep its connection open after it."""

    def __init__(self, head: bytes) -> None:
        self.is_there = False
        self._parser = httptools.HttpResponseParser(self)
        self.feed(head)

    def feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.is_there = True  # not HTTP: the rest cannot be read either

    def on_message_complete(self) -> None:
        self.is_there = True


def _head(line: str, fields: list[tuple[str, str]]) -> bytes:
    return "".join([line, "\r\n", *(f"{name}: {value}\r\n" for name, value in fields), "\r\n"]).encode(
        "latin-1", "replace"
    )


def _parse(raw: bytes, backend: str) -> tuple[int, str, list[tuple[str, str]]]:
    """Read a response's head as (status, reason, fields)."""
    first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    version, _, rest = first.partition(" ")
    status, _, reason = rest.partition(" ")
    if not version.startswith("HTTP/1.") or not status.isdigit():
        raise UpstreamFailed(f"{backend} answered with something that is not HTTP.")
    fields = [
        (name.strip(), value.strip())
        for name, colon, value in (line.partition(":") for line in lines)
        if colon
    ]
    return int(status), reason, fields
