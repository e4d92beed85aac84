"""WebSocket connections, by aiohttp: asked for, opened, ended."""

import asyncio
from typing import Any, Final

from aiohttp import WSMsgType, web

from appliance.front.pipeline.heads import AGENT
from appliance.front.pipeline.sockets import AcceptedSocket

PING_S: Final = 30.0  # a client that answers none for half as long is taken to have left
CLOSE_S: Final = 1.0  # a client that does not read gets so long for the last message
MAX_REASON_BYTES: Final = 123


class WebSocket:
    """One connection (see `MessageSocket`).

    Args:
        request: Asks for it.
        accepted: What its handler says.
    """

    def __init__(self, request: web.Request, accepted: AcceptedSocket) -> None:
        self._request = request
        self._socket = web.WebSocketResponse(
            protocols=accepted.protocols,
            heartbeat=PING_S,
            max_msg_size=accepted.max_bytes,
            compress=False,
            timeout=CLOSE_S,
        )
        self._socket.headers["Server"] = AGENT

    async def open(self, headers: list[tuple[str, str]]) -> web.WebSocketResponse:
        """Switch the protocol; what the server returns for the request."""
        for name, value in headers:
            self._socket.headers[name] = value
        await self._socket.prepare(self._request)
        return self._socket

    async def receive(self) -> str | bytes | None:
        """Return the next message; None = the connection has ended."""
        if self._socket.closed:
            return None
        message = await self._socket.receive()
        if message.type is WSMsgType.TEXT or message.type is WSMsgType.BINARY:
            data: str | bytes = message.data
            return data
        return None

    async def send(self, text: str) -> None:
        """Send a message; waits while the client does not read."""
        if self._socket.closed:
            raise ConnectionResetError("the connection has ended")
        await self._socket.send_str(text)

    async def close(self, code: int, reason: str) -> None:
        """End the connection; a client that does not take the end in time is cut off."""
        transport: Any = self._request.transport
        try:
            async with asyncio.timeout(2 * CLOSE_S):
                await self._socket.close(code=code, message=reason.encode()[:MAX_REASON_BYTES], drain=False)
        except (TimeoutError, ConnectionError):
            pass
        if transport is not None and transport.get_write_buffer_size():
            transport.abort()


def asks_for_socket(request: web.Request) -> bool:
    """Whether a request asks to switch to WebSocket."""
    return request.method == "GET" and request.headers.get("Upgrade", "").strip().lower() == "websocket"
