"""What all client connections of an HTTP server share: their count and its limit, the clock, hot routes."""

import asyncio
from collections.abc import Iterable
from email.utils import formatdate
from typing import Any, Protocol

from appliance.base.clock import Clock
from appliance.front.pipeline.pipeline import RequestPipeline
from appliance.front.pipeline.route import Route

LINGER_S = 1.0  # what a client still sends after a refusal is read and dropped for so long


class ClientConnection(Protocol):
    """A client connection, as the server's clock and its end see it."""

    def tick(self, now_s: float) -> None:
        """Look at the clock: heartbeats and time limits."""

    def stop(self) -> None:
        """Close as soon as no request is being answered."""

    def cut(self) -> None:
        """Close at once."""


class InnerProtocol(Protocol):
    """Who serves a connection that the fast connection has handed over: gets what its transport calls."""

    def connection_made(self, transport: Any) -> None:
        """Take the connection over."""

    def data_received(self, data: bytes) -> None:
        """Take what the client has sent."""

    def eof_received(self) -> bool | None:
        """The client sends no more; True = the connection stays open."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""

    def pause_writing(self) -> None:
        """The client does not read."""

    def resume_writing(self) -> None:
        """The client reads on."""


class Connections:
    """The open connections of one server.

    Attributes:
        hot: Routes that are served straight from the socket, by their request line.
        is_stopping: No new connection is taken, and none is kept after its response.
        tick_s: The monotonic time of the last tick.
        date_line: The `Date` header of a response, with its line break; renewed with each tick.
    """

    def __init__(self, pipeline: RequestPipeline, routes: Iterable[Route], *, clock: Clock) -> None:
        self.pipeline = pipeline
        self.hot = {f"POST {route.path} HTTP/1.1".encode(): route for route in routes if route.is_hot}
        self.now_s = clock.monotonic_s
        self.loop = asyncio.get_running_loop()
        self.is_stopping = False
        self.tick_s = 0.0
        self.date_line = b""
        self._clock = clock
        self._all: set[ClientConnection] = set()
        self._open = pipeline.metrics.connections
        self._refused = pipeline.metrics.connections_refused

    def __len__(self) -> int:
        return len(self._all)

    def admit(self, connection: ClientConnection) -> bool:
        """Count a new connection in, unless there are too many or the server stops."""
        if self.is_stopping or len(self._all) >= self.pipeline.settings.max_connections:
            self._refused.labels("stopping" if self.is_stopping else "too_many").inc()
            return False
        self._all.add(connection)
        self._open.set(len(self._all))
        return True

    def forget(self, connection: ClientConnection) -> None:
        """Count a closed connection out."""
        self._all.discard(connection)
        self._open.set(len(self._all))

    def tick(self) -> None:
        """Renew the time, and let each connection look at it."""
        self.tick_s = self.now_s()
        self.date_line = f"Date: {formatdate(self._clock.now_s(), usegmt=True)}\r\n".encode()
        for connection in list(self._all):
            connection.tick(self.tick_s)

    def stop(self) -> None:
        """Take no new connection; close those that are idle now, and the others after their response."""
        self.is_stopping = True
        for connection in list(self._all):
            connection.stop()

    def cut(self) -> None:
        """Close all connections at once."""
        for connection in list(self._all):
            connection.cut()
