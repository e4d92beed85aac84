"""The HTTP client for the appliance's own queries and commands to an engine: short replies, read whole."""

from typing import Any

from appliance.base import jsons
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import Target, Timeouts
from appliance.engines.dialects.contract import QueryReply

CONNECT_TIMEOUT_S = 5.0  # of the time of a query
COMMAND_TIMEOUT_S = 120.0  # for a command, such as loading an adapter


class HttpEngineClient:
    """Query and command one engine over HTTP (see EngineClient)."""

    def __init__(self, wire: ConnectionPool, target: Target) -> None:
        self._wire, self._target = wire, target

    async def get(self, path: str, timeout_s: float) -> QueryReply:
        """Query the engine. Raises WireError."""
        return await self._send(b"GET", path, b"", timeout_s)

    async def post(self, path: str, body: dict[str, Any]) -> QueryReply:
        """Send a command with a JSON body. Raises WireError."""
        return await self._send(b"POST", path, jsons.dumps(body), COMMAND_TIMEOUT_S)

    async def _send(self, method: bytes, path: str, body: bytes, timeout_s: float) -> QueryReply:
        response = await self._wire.send(
            self._target,
            method=method,
            path=path.encode(),
            body=body,
            timeouts=Timeouts(min(timeout_s, CONNECT_TIMEOUT_S), timeout_s, timeout_s, timeout_s),
            is_repeatable=True,
        )
        try:
            return QueryReply(
                response.status, await response.read(), response.headers.get("content-type", "")
            )
        finally:
            response.close()
