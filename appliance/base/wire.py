"""The pooled upstream connection of the hot path: HTTP/1.1 on asyncio protocols, parsed by httptools.

Keep-alive with an idle sweep, TLS with verification, one limit over all connections with a fair line before it, four
time-outs (connect, first byte, idle, total). No redirects, no cookies, no decompression, no HTTP/2: what the hot path does
not need. Time-outs are checked by one ticker, four times a second, because a timer per request costs more than it tells.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from appliance.base.wire_connection import BrokenAnswer, Connection, Response, StaleConnection, Unreachable, UpstreamTimeout, WireError

__all__ = ["BrokenAnswer", "Response", "Target", "Unreachable", "UpstreamTimeout", "Wire", "WireError", "WireLimits"]

TICK_S = 0.25
DNS_TTL_S = 30.0
Origin = tuple[str, int, bool | ssl.SSLContext]     # host, port, whether it is TLS (and by which context, when not the pool's own)
Resolve = Callable[[str, int], Awaitable[list[str]]]


@dataclass(frozen=True, slots=True)
class WireLimits:
    """What the pool holds itself to. Seconds may be None = no limit; a call can give its own."""

    connect_s: float | None = 5.0
    first_byte_s: float | None = 120.0
    idle_s: float | None = 60.0
    total_s: float | None = None
    max_connections: int = 1024
    max_idle_per_origin: int = 256
    keepalive_s: float = 60.0
    max_body_bytes: int = 64 * 1024 * 1024      # of answers that are read whole


@dataclass(frozen=True, slots=True)
class Target:
    """One base address with everything about it that does not change from call to call, made ready once."""

    origin: Origin
    prefix: bytes                       # the path before each call's own
    constant: bytes = field(repr=False)     # header lines, Host included; a key may be among them

    @classmethod
    def parse(cls, address: str, *, headers: dict[str, str] | None = None, ssl_context: ssl.SSLContext | None = None) -> "Target":
        """Read a base address.

        Takes   address: `http(s)://host[:port][/path]`; headers: sent with every call (a secret in them is never logged);
                ssl_context: this server's own, else the pool's; connections are kept apart by it
        Raises  ValueError: not such an address, or a header with a line break
        """
        parts = urlsplit(address)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{address!r} is no http(s) address")
        is_tls = parts.scheme == "https"
        default = 443 if is_tls else 80
        port = parts.port or default
        name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        lines = {"Host": name if port == default else f"{name}:{port}", "Accept": "*/*", "Accept-Encoding": "identity", **(headers or {})}
        for key, value in lines.items():
            if any(c in key + value for c in "\r\n\0"):
                raise ValueError(f"the header {key} has a line break in it")
        constant = "".join(f"{key}: {value}\r\n" for key, value in lines.items()).encode("latin-1")
        return cls((parts.hostname, port, ssl_context if is_tls and ssl_context else is_tls), parts.path.rstrip("/").encode(), constant)


class Wire:
    """The pool. Build it inside the event loop; `close` ends every connection."""

    def __init__(self, limits: WireLimits, *, ssl_context: ssl.SSLContext | None = None, resolve: Resolve | None = None) -> None:
        self.limits = limits
        self._ssl = ssl_context
        self._resolve = resolve or self._look_up
        self._loop = asyncio.get_running_loop()
        self._idle: dict[Origin, deque[Connection]] = {}
        self._in_use: set[Connection] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._open = 0
        self._names: dict[tuple[str, int], tuple[float, list[str]]] = {}
        self._ticker: asyncio.TimerHandle | None = None
        self._is_closed = False
        self.opened_total = 0
        self.reused_total = 0

    def stats(self) -> dict[str, int]:
        """Give the pool's numbers: open, idle, in_use, waiting, opened_total, reused_total."""
        return {"open": self._open, "idle": sum(map(len, self._idle.values())), "in_use": len(self._in_use),
                "waiting": len(self._waiting), "opened_total": self.opened_total, "reused_total": self.reused_total}

    async def send(self, target: Target, *, method: bytes = b"POST", path: bytes = b"", headers: bytes = b"", body: bytes = b"",
                   connect_s: float | None = None, first_byte_s: float | None = None, idle_s: float | None = None,
                   total_s: float | None = None) -> Response:
        """Send one request and wait for the head of its answer.

        Takes   path: added to the target's; headers: ready header lines, each ended by CR LF; times in seconds, None = the pool's
        Gives   Response: read() it whole, or take pieces by next_piece(); close() it when done, at any point
        Raises  Unreachable · UpstreamTimeout (phase connect, first_byte, idle, total) · BrokenAnswer
        A kept connection that dies without one byte of an answer is replaced by a fresh one, once: the server had closed it.
        Cancelling closes the connection at once.
        """
        limits = self.limits
        message = b"".join((method, b" ", target.prefix, path, b" HTTP/1.1\r\n", target.constant, headers,
                            b"Content-Length: %d\r\n\r\n" % len(body), body))
        total_s = limits.total_s if total_s is None else total_s
        ends_s = None if total_s is None else self._loop.time() + total_s
        first_byte_s = limits.first_byte_s if first_byte_s is None else first_byte_s
        idle_s = limits.idle_s if idle_s is None else idle_s
        may_reuse = True
        while True:
            connection = self._take_idle(target.origin) if may_reuse else None
            if connection is None:
                connection = await self._connect(target.origin, limits.connect_s if connect_s is None else connect_s)
                is_fresh = True
            else:
                self.reused_total += 1
                is_fresh = False
            self._in_use.add(connection)
            self._tick_on()
            try:
                response = await connection.exchange(message, first_byte_s=first_byte_s, idle_s=idle_s, ends_s=ends_s,
                                                     max_body_bytes=limits.max_body_bytes)
            except StaleConnection:
                if is_fresh:
                    raise BrokenAnswer("the server closed the connection without an answer", phase="first_byte") from None
                may_reuse = False
                continue
            return response

    def fail_waiting(self, origin: Origin, reason: str) -> int:
        """Fail every exchange with `origin` that has no answer yet, and close the idle connections to it.

        Gives   how many exchanges failed: each raises BrokenAnswer (phase lost), so that its caller can go elsewhere
        """
        for connection in list(self._idle.get(origin, ())):
            connection.abort(None)
        waiting = [c for c in self._in_use if c.origin == origin and c.is_waiting_for_head]
        for connection in waiting:
            connection.abort(BrokenAnswer(reason, phase="lost"))
        return len(waiting)

    async def close(self) -> None:
        """End every connection; calls under way fail."""
        self._is_closed = True
        if self._ticker is not None:
            self._ticker.cancel()
        for connections in [*self._idle.values(), self._in_use]:
            for connection in list(connections):
                connection.abort(BrokenAnswer("the pool was closed", phase="closed"))
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(Unreachable("the pool was closed", phase="closed"))

    async def __aenter__(self) -> "Wire":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ---- the pool's own

    def _take_idle(self, origin: Origin) -> Connection | None:
        connections = self._idle.get(origin)
        while connections:
            connection = connections.pop()          # the youngest: the least likely to have been closed
            if connection.is_usable:
                return connection
        return None

    def release(self, connection: Connection) -> None:
        """Take back a connection whose answer was read to its end; called by the connection."""
        self._in_use.discard(connection)
        connections = self._idle.setdefault(connection.origin, deque())
        if self._is_closed or len(connections) >= self.limits.max_idle_per_origin:
            connection.abort(None)
            return
        connection.idle_since_s = self._loop.time()
        connections.append(connection)
        self._wake()

    def forget(self, connection: Connection) -> None:
        """Count out a connection that is gone; called by the connection, once."""
        if not connection.is_counted:
            return                                  # it never came to be: whoever opened it counts it out
        self._open -= 1
        self._in_use.discard(connection)
        connections = self._idle.get(connection.origin)
        if connections and connection in connections:
            connections.remove(connection)
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def _connect(self, origin: Origin, connect_s: float | None) -> Connection:
        """Open a connection, or take one that comes free while waiting for a place."""
        try:
            async with asyncio.timeout(connect_s):
                kept = await self._place(origin)
                if kept is not None:
                    self.reused_total += 1
                    return kept
                try:
                    connection = await self._open_one(origin)
                    if not connection.is_usable:
                        raise Unreachable(f"{origin[0]}:{origin[1]} closed the connection at once", phase="connect")
                    connection.is_counted = True
                    return connection
                except BaseException:
                    self._open -= 1
                    self._wake()
                    raise
        except TimeoutError:
            host, port, _ = origin
            raise UpstreamTimeout(f"{host}:{port} was not reached within {connect_s:g} s", phase="connect") from None

    async def _place(self, origin: Origin) -> Connection | None:
        """Wait until there is a place for one more connection (counted at once), or an idle one to the origin."""
        is_first_look = True
        while True:
            if self._is_closed:
                raise Unreachable("the pool was closed", phase="closed")
            if is_first_look and self._waiting:
                pass                                # others stand in line already
            elif self._open < self.limits.max_connections:
                self._open += 1
                return None
            elif not is_first_look and (kept := self._take_idle(origin)) is not None:
                return kept
            elif (victim := next((c for cs in self._idle.values() for c in cs), None)) is not None:
                victim.abort(None)                  # idle to somebody else: its place is worth more
                continue
            waiter: asyncio.Future[None] = self._loop.create_future()
            if is_first_look:
                self._waiting.append(waiter)
            else:
                self._waiting.appendleft(waiter)
            is_first_look = False
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake()                    # our turn had come: the next one's now
                raise

    async def _open_one(self, origin: Origin) -> Connection:
        host, port, is_tls = origin
        try:
            addresses = await self._resolve(host, port)
        except OSError as exc:
            raise Unreachable(f"the name {host} cannot be resolved: {exc.strerror or exc}", phase="dns") from exc
        context: Any = None
        if isinstance(is_tls, ssl.SSLContext):
            context = is_tls
        elif is_tls:
            self._ssl = self._ssl or ssl.create_default_context()
            context = self._ssl
        last: Exception | None = None
        for address in addresses:
            try:
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self, origin, self._loop), address, port, ssl=context,
                    server_hostname=host if is_tls else None)
            except ssl.SSLError as exc:
                reason = getattr(exc, "verify_message", "") or exc.reason or "TLS failed"
                raise Unreachable(f"{host}:{port} did not prove who it is: {reason}", phase="tls") from exc
            except OSError as exc:
                last = exc
                continue
            self.opened_total += 1
            return connection
        reason = getattr(last, "strerror", None) or str(last or "no address")
        raise Unreachable(f"{host}:{port} cannot be reached: {reason}", phase="connect") from last

    async def _look_up(self, host: str, port: int) -> list[str]:
        known = self._names.get((host, port))
        if known is not None and known[0] > self._loop.time():
            return known[1]
        found = await self._loop.getaddrinfo(host, port, type=1)        # SOCK_STREAM
        addresses = list(dict.fromkeys(str(row[4][0]) for row in found))
        self._names[(host, port)] = (self._loop.time() + DNS_TTL_S, addresses)
        return addresses

    def _tick_on(self) -> None:
        if self._ticker is None:
            self._ticker = self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        """Fail what waited too long; end what was idle too long; go on only while there is something to watch."""
        now = self._loop.time()
        for connection in list(self._in_use):
            if connection.deadline_s is not None and now >= connection.deadline_s:
                connection.time_out()
        oldest = now - self.limits.keepalive_s
        for connections in list(self._idle.values()):
            while connections and connections[0].idle_since_s < oldest:
                connections[0].abort(None)
        is_needed = bool(self._in_use) or any(self._idle.values())
        self._ticker = self._loop.call_later(TICK_S, self._tick) if is_needed and not self._is_closed else None


