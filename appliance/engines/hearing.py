"""Our own questions to an engine, and what it is told to do: short answers, read whole."""

from appliance.base.wire import Target, Wire
from appliance.engines.backends.contract import Heard


async def hear(wire: Wire, target: Target, method: bytes, path: str, *, body: bytes = b"", seconds: float) -> Heard:
    """Send it, and give the answer. What is sent may be sent twice.

    Raises  WireError
    """
    response = await wire.send(target, method=method, path=path.encode(), body=body, connect_s=min(seconds, 5.0), first_byte_s=seconds,
                               idle_s=seconds, total_s=seconds, is_repeatable=True)
    try:
        return Heard(response.status, await response.read(), response.headers.get("content-type", ""))
    finally:
        response.close()
