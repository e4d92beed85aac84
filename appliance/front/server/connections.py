"""What all client connections of an HTTP server share: their limit, the time, the hot routes."""

import asyncio
from collections.abc import Callable, Iterable
from email.utils import formatdate
from typing import Any, Protocol

from appliance.base.clock import Clock
from appliance.base.logs import get_logger
from appliance.base.write_batch import WriteBatch
from appliance.front.pipeline.pipeline import RequestPipeline
from appliance.front.pipeline.route import Route

log = get_logger("front")
NOTICE_S = 10.0  # between log lines of one event that clients can provoke at will
LINGER_S = 1.0  # after a refusal: how long the rest of the request is read and dropped


class ClientConnection(Protocol):
    """A client connection, as the server's ticker and shutdown use it."""

    def tick(self, now_s: float) -> None:
        """Send due heartbeats and enforce time limits; called by the ticker."""

    def stop(self) -> None:
        """Close as soon as no request is running."""

    def cut(self) -> None:
        """Close at once."""


class InnerProtocol(Protocol):
    """The protocol behind a fast connection that has handed over; it receives the transport's callbacks."""

    def connection_made(self, transport: Any) -> None:
        """Begin to serve the connection."""

    def data_received(self, data: bytes) -> None:
        """Process what the client has sent."""

    def eof_received(self) -> bool | None:
        """The client sends no more; True = the connection stays open."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""

    def pause_writing(self) -> None:
        """The client does not read."""

    def resume_writing(self) -> None:
        """The client reads on."""

    def is_idle(self) -> bool:
        """Whether it waits for the head of a request, and may leave the connection."""

    def retire(self) -> None:
        """Leave the connection to another protocol; it is idle."""


class Notices:
    """Log lines about clients' mistakes: short, and at most one of an event every NOTICE_S seconds."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._last: dict[str, tuple[float, int]] = {}  # event → (when, how many were left out since)

    def warn(self, event: str, **fields: str) -> None:
        """Log a warning, or count it as left out. No field has bytes that the client sent."""
        now_s = self._now_s()
        last_s, left_out = self._last.get(event, (now_s - NOTICE_S, 0))
        if now_s - last_s < NOTICE_S:
            self._last[event] = (last_s, left_out + 1)
            return
        self._last[event] = (now_s, 0)
        log.warning(event, **fields, left_out=left_out)


class Connections:
    """The open connections of one server.

    Attributes:
        hot: Routes that fast connections serve, by their request line.
        notices: Logs what clients do wrong.
        writes: Writes what fast connections answer.
        is_stopping: New connections are refused, and open ones close after their response.
        tick_s: The monotonic time of the last tick.
        date_line: The `Date` header of a response, with its line break; renewed with each tick.
    """

    def __init__(self, pipeline: RequestPipeline, routes: Iterable[Route], *, clock: Clock) -> None:
        self.pipeline = pipeline
        self.hot = {f"POST {route.path} HTTP/1.1".encode(): route for route in routes if route.is_hot}
        self.now_s = clock.monotonic_s
        self.loop = asyncio.get_running_loop()
        self.writes = WriteBatch()
        self.is_stopping = False
        self.tick_s = 0.0
        self.date_line = ""
        self.notices = Notices(clock.monotonic_s)
        self._clock = clock
        self._all: set[ClientConnection] = set()
        self._open = pipeline.metrics.connections
        self._refused = pipeline.metrics.connections_refused

    def __len__(self) -> int:
        return len(self._all)

    def admit(self, connection: ClientConnection) -> bool:
        """Register a new connection; False where there are too many or the server stops."""
        if self.is_stopping or len(self._all) >= self.pipeline.settings.max_connections:
            self._refused.labels("stopping" if self.is_stopping else "too_many").inc()
            return False
        self._all.add(connection)
        self._open.set(len(self._all))
        return True

    def forget(self, connection: ClientConnection) -> None:
        """Unregister a closed connection."""
        self._all.discard(connection)
        self._open.set(len(self._all))

    def tick(self) -> None:
        """Update the time and the Date header, and tick every connection."""
        self.tick_s = self.now_s()
        self.date_line = f"Date: {formatdate(self._clock.now_s(), usegmt=True)}\r\n"
        for connection in list(self._all):
            connection.tick(self.tick_s)

    def stop(self) -> None:
        """Refuse new connections; close idle ones now, and the others after their response."""
        self.is_stopping = True
        self.writes.flush()
        for connection in list(self._all):
            connection.stop()

    def cut(self) -> None:
        """Close all connections at once."""
        self.writes.flush()
        for connection in list(self._all):
            connection.cut()
