"""A connection of messages (WebSocket) as handlers see it, whichever server has opened it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from appliance.front.pipeline.request import Request

# Codes of the end of a connection, RFC 6455 section 7.4.1.
NORMAL, GOING_AWAY, POLICY, INTERNAL, TRY_LATER = 1000, 1001, 1008, 1011, 1013


class MessageSocket(Protocol):
    """One open connection."""

    async def receive(self) -> str | bytes | None:
        """Return the next message; None = the connection has ended."""

    async def send(self, text: str) -> None:
        """Send a message; waits while the client does not read.

        Raises:
            ConnectionError: The connection has ended.
        """

    async def close(self, code: int, reason: str) -> None:
        """End the connection, also where the client does not read; doing it again does nothing."""


@dataclass(frozen=True, slots=True)
class AcceptedSocket:
    """What a handler says to a request that asks for such a connection.

    Attributes:
        serve: Serves the connection; when it returns, the connection ends.
        protocols: Subprotocols of which the first one that the client offers is chosen.
        max_bytes: Of one message of the client.
    """

    serve: Callable[[MessageSocket], Awaitable[None]]
    protocols: tuple[str, ...] = ()
    max_bytes: int = 1024 * 1024


# Raises ApplianceError: the request is refused in HTTP.
AcceptSocket = Callable[[Request], Awaitable[AcceptedSocket]]
