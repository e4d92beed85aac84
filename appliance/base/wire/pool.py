"""The pooled upstream connections of the hot path: HTTP/1.1 on asyncio protocols, parsed by httptools.

Keep-alive with an idle sweep, TLS with verification, one limit over all connections with a first-come line before it, five
time-outs (pool, connect, first byte, idle, total). No redirects, no cookies, no decompression, no HTTP/2: what the hot path does
not need. Time-outs are checked by one ticker, four times a second, because a timer per request costs more than it tells.

wire_types (limits, targets, errors) · wire_dial (a connection comes to be) · wire_connection (its protocol) · wire_response
"""

import asyncio
import ssl
from collections import deque
from math import inf

from appliance.base.wire.connection import SLICE_BYTES, Connection
from appliance.base.wire.dial import Dialer, Resolve
from appliance.base.wire.response import UpstreamResponse
from appliance.base.wire.types import (
    BrokenResponse,
    Origin,
    PoolFull,
    PoolKey,
    PoolLimits,
    StaleConnection,
    Target,
    Unreachable,
    UpstreamTimeout,
)

TICK_S = 0.25
IDEMPOTENT = frozenset({b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE"})
BODILESS = frozenset({b"GET", b"HEAD", b"DELETE", b"OPTIONS"})  # an empty body of these is not announced
MAX_KNOWN_PATHS = 1024


class ConnectionPool:
    """The pool. Build it inside the event loop; `close` ends every connection.

    While anybody stands in line nothing is idle: what comes free is handed to the first in line, so nobody can overtake.
    """

    def __init__(
        self, limits: PoolLimits, *, ssl_context: ssl.SSLContext | None = None, resolve: Resolve | None = None
    ) -> None:
        self.limits = limits
        self._loop = asyncio.get_running_loop()
        self._dialer = Dialer(ssl_context=ssl_context, resolve=resolve)
        self._idle: dict[PoolKey, deque[Connection]] = {}
        self._in_use: set[Connection] = set()
        self._waiting: deque[tuple[PoolKey, asyncio.Future[Connection | None]]] = deque()
        self._opening: dict[asyncio.Timeout, PoolKey] = {}  # dials under way, by what ends them early
        self._lost: dict[asyncio.Timeout, str] = {}  # those that fail_waiting ended, and why
        self._open = 0  # places taken: connections, and those being opened
        self._paths: set[bytes] = set()  # that were found fit to be sent
        self._ticker: asyncio.TimerHandle | None = None
        self._is_closed = False
        self.opened_total = 0
        self.reused_total = 0

    def stats(self) -> dict[str, int]:
        """Give the pool's numbers: open, idle, in_use, waiting, opened_total, reused_total."""
        return {
            "open": self._open,
            "idle": sum(map(len, self._idle.values())),
            "in_use": len(self._in_use),
            "waiting": sum(not waiter.done() for _, waiter in self._waiting),
            "opened_total": self.opened_total,
            "reused_total": self.reused_total,
        }

    async def send(
        self,
        target: Target,
        *,
        method: bytes = b"POST",
        path: bytes = b"",
        headers: bytes = b"",
        body: bytes = b"",
        pool_s: float | None = None,
        connect_s: float | None = None,
        first_byte_s: float | None = None,
        idle_s: float | None = None,
        total_s: float | None = None,
        is_repeatable: bool | None = None,
    ) -> UpstreamResponse:
        """Send one request and wait for the head of its answer.

        Takes   path: percent-encoded, added to the target's; headers: ready header lines, each ended by CR LF; times in seconds,
                None = the pool's; is_repeatable: doing it twice does no harm, None = by its method: POST and PATCH are not
        Gives   Response: read() it whole, or take pieces by next_piece(); close() it when done, at any point
        Raises  Unreachable · PoolFull · UpstreamTimeout · BrokenAnswer, StaleConnection, see WireError for `phase` and `was_sent`
                ValueError: a path or headers that would end the head
        A kept connection whose end is seen before the request went out is replaced, unnoticed. One that ends after that without
        one byte of an answer is replaced once if `is_repeatable` (RFC 9110, 9.2.2; RFC 9112, 9.3.1) or if the server cannot have
        read the request whole; else StaleConnection is raised: it may have begun the work. A fresh one is never replaced.
        Cancelling closes the connection at once.
        """
        if path not in self._paths:
            self._learn(path)
        if headers:
            _check_lines(headers)
        limits = self.limits
        size = len(body)
        length = b"Content-Length: %d\r\n\r\n" % size if size or method not in BODILESS else b"\r\n"
        is_large = size > SLICE_BYTES
        message = b"".join(
            (
                method,
                b" ",
                target.prefix,
                path or (b"" if target.prefix else b"/"),
                b" HTTP/1.1\r\n",
                target.constant,
                headers,
                length,
                b"" if is_large else body,
            )
        )
        total_s = limits.total_s if total_s is None else total_s
        ends_s = inf if total_s is None else self._loop.time() + total_s
        first_byte_s = limits.first_byte_s if first_byte_s is None else first_byte_s
        if self._ticker is None:
            self._ticker = self._loop.call_later(TICK_S, self._tick)
        may_repeat = method in IDEMPOTENT if is_repeatable is None else is_repeatable
        is_second = False
        while True:
            connection = None if is_second else self._take_idle(target.key)
            if connection is None:
                connection = await self._connect(
                    target.key,
                    limits.pool_s if pool_s is None else pool_s,
                    limits.connect_s if connect_s is None else connect_s,
                    ends_s,
                )
            is_fresh = connection.is_fresh
            if not is_fresh:
                self.reused_total += 1
            answer = connection.start(
                message,
                is_head=method == b"HEAD",
                idle_s=limits.idle_s if idle_s is None else idle_s,
                ends_s=ends_s,
            )
            try:
                if is_large:
                    await connection.upload(answer, body)
                if not answer.status and answer.error is None:
                    await connection.wait(answer, "first_byte", inf if first_byte_s is None else first_byte_s)
            except BaseException:
                if answer.connection is not None:
                    connection.abort(None)
                raise
            error = answer.error
            if error is None or answer.status:  # once the head is there, the reader meets the error
                return UpstreamResponse(answer)
            if not isinstance(error, StaleConnection):
                raise error
            if is_fresh:
                raise BrokenResponse(error.message, phase=error.phase, was_sent=error.was_sent)
            if is_second or (error.was_sent and not may_repeat):
                raise error
            is_second = True

    def fail_waiting(self, origin: Origin, message: str) -> int:
        """Give up every exchange with `origin` that has not got its answer's head, and its idle connections: the server is dead.

        Takes   origin: `Target.origin`; message: the error's, one sentence
        Gives   how many were given up; each raises BrokenAnswer, phase lost, was_sent False where nothing had gone out
        Answers that have begun are left alone: their own silence ends them.
        """
        count = 0
        for key, waiter in [w for w in self._waiting if w[0][:3] == origin]:
            self._waiting.remove((key, waiter))
            if not waiter.done():
                waiter.set_exception(BrokenResponse(message, phase="lost", was_sent=False))
                count += 1
        for patience, key in self._opening.items():
            if key[:3] == origin and not patience.expired() and patience not in self._lost:
                self._lost[patience] = message
                patience.reschedule(self._loop.time())
                count += 1
        for connection in [c for c in self._in_use if c.key[:3] == origin and c.awaits_head]:
            connection.abort(BrokenResponse(message, phase="lost"))
            count += 1
        for idle in [c for key, connections in self._idle.items() if key[:3] == origin for c in connections]:
            idle.abort(None)
        return count

    async def close(self) -> None:
        """End every connection; calls under way fail."""
        self._is_closed = True
        if self._ticker is not None:
            self._ticker.cancel()
        waiting, self._waiting = self._waiting, deque()
        for _, waiter in waiting:
            if not waiter.done():
                waiter.set_exception(_closed())
        for connections in [*self._idle.values(), self._in_use]:
            for connection in list(connections):
                connection.abort(BrokenResponse("the pool was closed", phase="closed"))
        await asyncio.sleep(0)  # the transports end in the loop's next turn

    async def __aenter__(self) -> "ConnectionPool":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ---- called by connections

    def release(self, connection: Connection) -> None:
        """Take back a connection whose answer has arrived to its end: to the first in line, else among the idle."""
        if not connection.is_usable(look=False):
            connection.abort(None)
            return
        while self._waiting:
            key, waiter = self._waiting[0]
            if waiter.done():
                self._waiting.popleft()
            elif key == connection.key:
                self._waiting.popleft()
                waiter.set_result(connection)
                return
            else:
                connection.abort(None)  # its place goes to the first in line, see forget
                return
        connections = self._idle.get(connection.key)
        if connections is None:
            connections = self._idle[connection.key] = deque()
        if self._is_closed or len(connections) >= self.limits.max_idle_per_origin:
            connection.abort(None)
            return
        self._in_use.discard(connection)
        connection.idle_since_s = self._loop.time()
        connections.append(connection)

    def forget(self, connection: Connection) -> None:
        """Count out a connection that is gone."""
        if not connection.is_member:
            return  # it never came to be: whoever opened it gives its place back
        connection.is_member = False
        self._in_use.discard(connection)
        connections = self._idle.get(connection.key)
        if connections and connection in connections:
            connections.remove(connection)
        self._free_place()

    # ---- the pool's own

    def _take_idle(self, key: PoolKey) -> Connection | None:
        connections = self._idle.get(key)
        while connections:
            connection = connections[-1]  # the youngest: the least likely to have been closed
            if connection.is_usable(look=self._loop.time() - connection.idle_since_s > TICK_S):
                connections.pop()
                self._in_use.add(connection)
                return connection
            connection.abort(None)
        return None

    def _free_place(self) -> None:
        """Give a place to the first in line, else back."""
        while self._waiting:
            _, waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._open -= 1

    async def _connect(
        self, key: PoolKey, pool_s: float | None, connect_s: float | None, ends_s: float
    ) -> Connection:
        """Open a connection, or take the one that comes free while standing in line."""
        is_next = False
        while (kept := await self._place(key, pool_s, ends_s, is_next=is_next)) is not None:
            if kept.is_usable(look=False):
                return kept
            kept.abort(None)  # it ended between being handed over and being taken: its turn is not lost
            is_next = True
        try:
            connection = await self._dial(key, connect_s, ends_s)
        except BaseException:
            self._free_place()
            raise
        if not connection.is_usable(look=False) or self._is_closed:
            connection.abort(None)  # not counted as a member, so that the place is given back here
            self._free_place()
            raise (
                _closed()
                if self._is_closed
                else Unreachable(f"{key[0]}:{key[1]} closed the connection at once", phase="connect")
            )
        connection.is_member = True
        self._in_use.add(connection)
        self.opened_total += 1
        return connection

    async def _dial(self, key: PoolKey, connect_s: float | None, ends_s: float) -> Connection:
        """Reach the server; ended early by `connect_s`, the total time, or fail_waiting."""
        host, port = key[:2]
        began_s = self._loop.time()
        by_s = min(inf if connect_s is None else began_s + connect_s, ends_s)
        patience = asyncio.timeout_at(None if by_s == inf else by_s)
        self._opening[patience] = key
        try:
            async with patience:
                return await self._dialer.dial(
                    key,
                    lambda: Connection(
                        self,
                        key,
                        self._loop,
                        max_head_bytes=self.limits.max_head_bytes,
                        max_body_bytes=self.limits.max_body_bytes,
                    ),
                )
        except TimeoutError:
            if patience in self._lost:
                raise BrokenResponse(self._lost[patience], phase="lost", was_sent=False) from None
            phase = "total" if by_s == ends_s else "connect"
            raise UpstreamTimeout(
                f"{host}:{port} was not reached within {by_s - began_s:.3g} s", phase=phase, was_sent=False
            ) from None
        finally:
            del self._opening[patience]
            self._lost.pop(patience, None)

    async def _place(
        self, key: PoolKey, pool_s: float | None, ends_s: float, *, is_next: bool
    ) -> Connection | None:
        """Take a place for one more connection. `is_next`: stand in front of the line, not behind it.

        1. the pool is closed           → Unreachable
        2. there is a place             → it is ours, counted at once
        3. a connection lies idle       → the longest idle makes room: it serves another origin, or ours found none to reuse
        4. all are in use               → stand in line for a place (None), or a kept connection
        """
        if self._is_closed:  # 1
            raise _closed()
        if self._open >= self.limits.max_connections:
            longest = min(
                (c[0] for c in self._idle.values() if c), key=lambda c: c.idle_since_s, default=None
            )
            if longest is None:  # 4
                return await self._stand_in_line(key, pool_s, ends_s, is_next=is_next)
            longest.abort(None)  # 3
        self._open += 1  # 2
        return None

    async def _stand_in_line(
        self, key: PoolKey, pool_s: float | None, ends_s: float, *, is_next: bool
    ) -> Connection | None:
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        if is_next:
            self._waiting.appendleft((key, waiter))
        else:
            self._waiting.append((key, waiter))
        by_s = min(inf if pool_s is None else self._loop.time() + pool_s, ends_s)
        try:
            async with asyncio.timeout_at(None if by_s == inf else by_s):
                return await waiter
        except (TimeoutError, asyncio.CancelledError) as exc:
            if (key, waiter) in self._waiting:
                self._waiting.remove((key, waiter))
            if (
                waiter.done() and not waiter.cancelled() and waiter.exception() is None
            ):  # our turn had come in this very moment
                kept = waiter.result()
                if kept is None:
                    self._free_place()
                else:
                    self.release(kept)
            if not isinstance(exc, TimeoutError):
                raise
        if by_s == ends_s:
            raise UpstreamTimeout("no upstream connection came free in time", phase="total", was_sent=False)
        raise PoolFull(
            f"all {self.limits.max_connections} upstream connections were in use for {pool_s:g} s",
            phase="pool",
        )

    def _learn(self, path: bytes) -> None:
        if any(not 0x21 <= byte <= 0x7E for byte in path) or path[:1] not in {b"", b"/"}:
            raise ValueError("a path must begin with / and be percent-encoded")
        if len(self._paths) >= MAX_KNOWN_PATHS:
            self._paths.clear()
        self._paths.add(path)

    def _tick(self) -> None:
        """End what waited too long and what was idle too long; go on only while there is something to watch."""
        now = self._loop.time()
        for connection in [c for c in self._in_use if now >= c.deadline_s]:
            connection.time_out()
        oldest = now - self.limits.keepalive_s
        for key, connections in list(self._idle.items()):
            while connections and connections[0].idle_since_s < oldest:
                connections[0].abort(None)
            if not connections:
                self._idle.pop(key, None)
        is_needed = bool(self._open)
        self._ticker = (
            self._loop.call_later(TICK_S, self._tick) if is_needed and not self._is_closed else None
        )


def _check_lines(headers: bytes) -> None:
    ends = headers.count(b"\r\n")
    if (
        headers[-2:] != b"\r\n"
        or headers[:2] == b"\r\n"
        or b"\r\n\r\n" in headers
        or headers.count(b"\n") + headers.count(b"\r") != 2 * ends
    ):
        raise ValueError("headers must be whole lines, each ended by CR LF")


def _closed() -> Unreachable:
    return Unreachable("the pool was closed", phase="closed", was_sent=False)
