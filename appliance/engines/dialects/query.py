"""Our own questions to an engine, and what it is told to do: short answers, read whole."""

from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import Target
from appliance.engines.dialects.contract import QueryReply


async def hear(
    wire: ConnectionPool,
    target: Target,
    method: bytes,
    path: str,
    *,
    body: bytes = b"",
    seconds: float,
) -> QueryReply:
    """Send it, and give the answer. What is sent may be sent twice.

    Raises  WireError
    """
    response = await wire.send(
        target,
        method=method,
        path=path.encode(),
        body=body,
        connect_s=min(seconds, 5.0),
        first_byte_s=seconds,
        idle_s=seconds,
        total_s=seconds,
        is_repeatable=True,
    )
    try:
        return QueryReply(response.status, await response.read(), response.headers.get("content-type", ""))
    finally:
        response.close()
