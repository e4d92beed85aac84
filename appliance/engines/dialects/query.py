"""The appliance's own queries and commands to an engine: short replies, read whole."""

from typing import Any

from appliance.base import jsons
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import Target, Timeouts
from appliance.engines.dialects.contract import QueryReply

CONNECT_S = 5.0  # the most that connecting may take of a query's time
COMMAND_S = 120.0  # for a command, such as loading an adapter


async def query(
    wire: ConnectionPool,
    target: Target,
    method: bytes,
    path: str,
    *,
    body: bytes = b"",
    timeout_s: float,
) -> QueryReply:
    """Send one query and read the reply. It may be sent twice.

    Raises:
        WireError: The engine cannot be reached, or does not reply within `timeout_s`.
    """
    response = await wire.send(
        target,
        method=method,
        path=path.encode(),
        body=body,
        timeouts=Timeouts(min(timeout_s, CONNECT_S), timeout_s, timeout_s, timeout_s),
        is_repeatable=True,
    )
    try:
        return QueryReply(response.status, await response.read(), response.headers.get("content-type", ""))
    finally:
        response.close()


class HttpEngineClient:
    """Query and command one engine over HTTP (see EngineClient)."""

    def __init__(self, wire: ConnectionPool, target: Target) -> None:
        self._wire, self._target = wire, target

    async def get(self, path: str, timeout_s: float) -> QueryReply:
        """Query the engine. Raises WireError."""
        return await query(self._wire, self._target, b"GET", path, timeout_s=timeout_s)

    async def post(self, path: str, body: dict[str, Any]) -> QueryReply:
        """Send a command with a JSON body. Raises WireError."""
        return await query(
            self._wire, self._target, b"POST", path, body=jsons.dumps(body), timeout_s=COMMAND_S
        )
