"""The pool of upstream connections: keep-alive, one limit over all, a first-come queue, five time-outs.

TLS is verified. There are no redirects, no cookies, no decompression and no HTTP/2: the hot path needs none
of them. Time-outs (pool, connect, first byte, idle, total) are checked by one ticker, four times a second: a
timer for every request costs more than the precision is worth.
"""

import asyncio
import ssl
from collections import deque
from math import inf

from appliance.base.inline import in_task
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
    Timeouts,
    Unreachable,
    UpstreamTimeout,
    WireError,
)
from appliance.base.write_batch import WriteBatch

TICK_S = 0.25
IDEMPOTENT = frozenset({b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE"})
BODILESS = frozenset({b"GET", b"HEAD", b"DELETE", b"OPTIONS"})  # an empty body of these is not announced
MAX_KNOWN_PATHS = 1024


class ConnectionPool:
    """The pool. Build it inside the event loop; `close` ends every connection.

    While a request is queued, no connection is idle: each one that becomes free goes to the first in the
    queue, so that no request overtakes another.

    Args:
        limits: See `PoolLimits`.
        ssl_context: For targets that bring none of their own; None = verify against the system's CAs.
        resolve: `(host, port)` → IP addresses; None = the system's resolver.
    """

    def __init__(
        self, limits: PoolLimits, *, ssl_context: ssl.SSLContext | None = None, resolve: Resolve | None = None
    ) -> None:
        self.limits = limits
        self._loop = asyncio.get_running_loop()
        self._writes = WriteBatch()
        self._dialer = Dialer(ssl_context=ssl_context, resolve=resolve)
        self._idle: dict[PoolKey, deque[Connection]] = {}
        self._in_use: set[Connection] = set()
        self._queue: deque[tuple[PoolKey, asyncio.Future[Connection | None]]] = deque()
        self._dialing: dict[asyncio.Timeout, PoolKey] = {}  # dials under way, by what ends them early
        self._lost: dict[asyncio.Timeout, str] = {}  # those that fail_waiting ended, and why
        self._open = 0  # slots taken: connections, and those being opened
        self._paths: set[bytes] = set()  # checked, and fit to be sent
        self._ticker: asyncio.TimerHandle | None = None
        self._is_closed = False
        self.opened_total = 0
        self.reused_total = 0

    def stats(self) -> dict[str, int]:
        """Return the pool's numbers: open, idle, in_use, waiting, opened_total, reused_total."""
        return {
            "open": self._open,
            "idle": sum(map(len, self._idle.values())),
            "in_use": len(self._in_use),
            "waiting": sum(not waiter.done() for _, waiter in self._queue),
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
        timeouts: Timeouts | None = None,
        is_repeatable: bool | None = None,
    ) -> UpstreamResponse:
        """Send one request and wait for the head of its response. Cancelling closes the connection at once.

        1. an idle connection that is still open                           → use it
        2. none                                                            → open one, or wait for one
        3. the response head has arrived                                   → return the response
        4. a reused connection turned out to be closed, repeating is safe  → once more, on a fresh connection
        5. any other failure                                               → raise it

        Repeating is safe if `is_repeatable`, or if the server cannot have read the whole request.

        Args:
            target: Where to send it.
            method: Upper case.
            path: Percent-encoded; added to the target's own.
            headers: Complete header lines, each ended by CR LF.
            body: The whole body.
            timeouts: None = the pool's.
            is_repeatable: Whether doing it twice is harmless; None = by its method (POST and PATCH are not).

        Returns:
            The response; read it whole, or take chunks by `next_chunk`; close it when done, at any point.

        Raises:
            Unreachable: The server was not reached, or its certificate is not valid.
            PoolFull: No connection became free within `PoolLimits.pool_s`.
            UpstreamTimeout: One of the time-outs; see its `phase`.
            StaleConnection: The server closed a reused connection and may have begun the work.
            BrokenResponse: The response ended too early or is not HTTP.
            ValueError: The path or the headers would end the request head.

        Source:
            RFC 9110, section 9.2.2; RFC 9112, section 9.3.1 (retries on closed connections).
        """
        message = self._render_request(target, method, path, headers, body)
        is_large = len(body) > SLICE_BYTES
        connect_s, first_byte_s, idle_s, total_s, content_s, gap_s = (
            self.limits.timeouts if timeouts is None else timeouts
        )
        ends_s = inf if total_s is None else self._loop.time() + total_s
        if self._ticker is None:
            self._ticker = self._loop.call_later(TICK_S, self._tick)
        can_repeat = method in IDEMPOTENT if is_repeatable is None else is_repeatable
        is_retry = False
        while True:
            connection = None if is_retry else self._take_idle(target.key)  # 1
            if connection is None:
                connection = await self._connect(target.key, connect_s, ends_s)  # 2
            is_fresh = connection.is_fresh
            if not is_fresh:
                self.reused_total += 1
            response = connection.start(
                message, is_head=method == b"HEAD", idle_s=idle_s, ends_s=ends_s, is_begun=is_large
            )
            try:
                if is_large:
                    await connection.upload(response, body)
                if content_s is not None:
                    connection.expect_content(content_s, gap_s)
                if not response.status and response.error is None:
                    await connection.wait(
                        response, "first_byte", inf if first_byte_s is None else first_byte_s
                    )
            except BaseException:
                if response.connection is not None:
                    connection.abort(None)
                raise
            if response.error is None or response.status:  # an error after the head is met by the reader
                return UpstreamResponse(response)  # 3
            if is_fresh or is_retry or not _can_retry(response.error, can_repeat=can_repeat):
                raise _final(response.failure(), is_fresh=is_fresh)  # 5
            is_retry = True  # 4

    def fail_waiting(self, origin: Origin, message: str) -> int:
        """Fail every request to `origin` that has no response head yet, and close its idle connections.

        For a server that is known to be dead. Responses that have begun are left alone: their idle time-out
        ends them.

        Args:
            origin: `Target.origin`.
            message: The error's text, one sentence.

        Returns:
            How many requests were failed; each raises BrokenResponse with phase lost, was_sent False where
            nothing had been sent.
        """
        count = 0
        for key, waiter in [w for w in self._queue if w[0][:3] == origin]:
            self._queue.remove((key, waiter))
            if not waiter.done():
                waiter.set_exception(BrokenResponse(message, phase="lost", was_sent=False))
                count += 1
        for timeout, key in self._dialing.items():
            if key[:3] == origin and not timeout.expired() and timeout not in self._lost:
                self._lost[timeout] = message
                timeout.reschedule(self._loop.time())
                count += 1
        for idle in [c for key, connections in self._idle.items() if key[:3] == origin for c in connections]:
            idle.abort(None)
        # Last: a request that fails is answered in this call, and the next one must not find a connection.
        for connection in [c for c in self._in_use if c.key[:3] == origin and c.awaits_head]:
            connection.abort(BrokenResponse(message, phase="lost"))
            count += 1
        return count

    async def look_up(self, target: Target) -> bool:
        """Look a target's name up again, so that connections go to its present addresses.

        1. it has none of its former addresses   → connections to those are given up at once
        2. it has lost some of them              → those that it had at the last look-up are kept for now: a
                                                   resolver may give out a different part of them each time
        Idle connections are closed; those in use are closed after their response.

        Returns:
            Whether it has moved: it has none of its former addresses.
        """
        host, port = target.origin[:2]
        found = await self._dialer.look_up(host, port)
        if found is None:
            return False
        former, now = map(set, found)
        has_moved = bool(former) and former.isdisjoint(now)
        kept = now if has_moved else former | now
        for key, connections in list(self._idle.items()):
            if key[:2] == (host, port):
                for connection in [c for c in connections if c.address not in kept]:
                    connection.abort(None)
        for connection in self._in_use:
            if connection.key[:2] == (host, port) and connection.address not in kept:
                connection.retire()
        return has_moved

    async def close(self) -> None:
        """Close every connection; requests under way fail."""
        self._is_closed = True
        if self._ticker is not None:
            self._ticker.cancel()
        queue, self._queue = self._queue, deque()
        for _, waiter in queue:
            if not waiter.done():
                waiter.set_exception(_closed())
        for connections in [*self._idle.values(), self._in_use]:
            for connection in list(connections):
                connection.abort(BrokenResponse("the connection pool was closed", phase="closed"))
        await asyncio.sleep(0)  # the transports close in the loop's next round

    async def __aenter__(self) -> "ConnectionPool":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ---- called by connections

    def release(self, connection: Connection) -> None:
        """Take back a connection whose response is complete: for the first in the queue, or as idle."""
        if not connection.is_usable(look=False):
            connection.abort(None)
            return
        while self._queue:
            key, waiter = self._queue[0]
            if waiter.done():
                self._queue.popleft()
            elif key == connection.key:
                self._queue.popleft()
                waiter.set_result(connection)
                return
            else:
                connection.abort(None)  # its slot goes to the first in the queue, see forget
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
        """Stop counting a connection that is closed."""
        if not connection.is_member:
            return  # it was never counted: the code that opened it frees its slot
        connection.is_member = False
        self._in_use.discard(connection)
        connections = self._idle.get(connection.key)
        if connections and connection in connections:
            connections.remove(connection)
        self._free_slot()

    # ---- slots, the queue and new connections

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

    def _free_slot(self) -> None:
        """Hand a slot to the first in the queue, else count it as free."""
        while self._queue:
            _, waiter = self._queue.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._open -= 1

    async def _connect(self, key: PoolKey, connect_s: float | None, ends_s: float) -> Connection:
        """Open a connection, or take the one that becomes free while queueing for a slot."""
        await in_task()
        if key[2] and key[3] is None and not self._dialer.has_tls:
            await self._dialer.load_tls()  # here, for the connect time-out must not pay for it
        is_next = False
        while (kept := await self._take_slot(key, ends_s, is_next=is_next)) is not None:
            if kept.is_usable(look=False):
                return kept
            kept.abort(None)  # it was closed between being handed over and being taken: we keep our turn
            is_next = True
        try:
            connection = await self._dial(key, connect_s, ends_s)
        except BaseException:
            self._free_slot()
            raise
        if not connection.is_usable(look=False) or self._is_closed:
            connection.abort(None)  # not counted as a member, so the slot is freed here
            self._free_slot()
            raise (
                _closed()
                if self._is_closed
                else Unreachable(f"{key[0]}:{key[1]} closed the connection immediately", phase="connect")
            )
        connection.is_member = True
        self._in_use.add(connection)
        self.opened_total += 1
        return connection

    async def _dial(self, key: PoolKey, connect_s: float | None, ends_s: float) -> Connection:
        """Reach the server; ended early by `connect_s`, the total time-out, or fail_waiting."""
        host, port = key[:2]
        began_s = self._loop.time()
        by_s = min(inf if connect_s is None else began_s + connect_s, ends_s)
        timeout = asyncio.timeout_at(None if by_s == inf else by_s)
        self._dialing[timeout] = key
        try:
            async with timeout:
                return await self._dialer.dial(
                    key,
                    lambda: Connection(
                        self,
                        key,
                        self._loop,
                        writes=self._writes,
                        max_head_bytes=self.limits.max_head_bytes,
                        max_body_bytes=self.limits.max_body_bytes,
                    ),
                )
        except TimeoutError:
            if timeout in self._lost:
                raise BrokenResponse(self._lost[timeout], phase="lost", was_sent=False) from None
            phase = "total" if by_s == ends_s else "connect"
            raise UpstreamTimeout(
                f"no connection to {host}:{port} within {by_s - began_s:.3g} s", phase=phase, was_sent=False
            ) from None
        finally:
            del self._dialing[timeout]
            self._lost.pop(timeout, None)

    async def _take_slot(self, key: PoolKey, ends_s: float, *, is_next: bool) -> Connection | None:
        """Take a slot for one more connection. `is_next`: queue in front of the others, not behind them.

        1. the pool is closed         → Unreachable
        2. there is a free slot       → it is ours, counted at once
        3. a connection is idle       → close the longest idle, which could not be reused here
        4. all are in use             → wait in the queue for a slot (None), or for a kept connection
        """
        if self._is_closed:  # 1
            raise _closed()
        if self._open >= self.limits.max_connections:
            longest = min(
                (c[0] for c in self._idle.values() if c), key=lambda c: c.idle_since_s, default=None
            )
            if longest is None:  # 4
                return await self._wait_in_queue(key, ends_s, is_next=is_next)
            longest.abort(None)  # 3
        self._open += 1  # 2
        return None

    async def _wait_in_queue(self, key: PoolKey, ends_s: float, *, is_next: bool) -> Connection | None:
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        if is_next:
            self._queue.appendleft((key, waiter))
        else:
            self._queue.append((key, waiter))
        pool_s = self.limits.pool_s
        by_s = min(inf if pool_s is None else self._loop.time() + pool_s, ends_s)
        try:
            async with asyncio.timeout_at(None if by_s == inf else by_s):
                return await waiter
        except (TimeoutError, asyncio.CancelledError) as exc:
            self._leave_queue(key, waiter)
            if not isinstance(exc, TimeoutError):
                raise
        if by_s == ends_s:
            raise UpstreamTimeout("no upstream connection became free in time", phase="total", was_sent=False)
        raise PoolFull(
            f"all {self.limits.max_connections} upstream connections were in use for {pool_s:g} s",
            phase="pool",
        )

    def _leave_queue(self, key: PoolKey, waiter: "asyncio.Future[Connection | None]") -> None:
        """Stop waiting; what was handed to us in this very moment is passed on."""
        if (key, waiter) in self._queue:
            self._queue.remove((key, waiter))
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            kept = waiter.result()
            if kept is None:
                self._free_slot()
            else:
                self.release(kept)

    def _render_request(
        self, target: Target, method: bytes, path: bytes, headers: bytes, body: bytes
    ) -> bytes:
        """Render the request; without its body if that is large, and uploaded in slices."""
        if path not in self._paths:
            self._check_path(path)
        if headers:
            _check_headers(headers)
        size = len(body)
        length = b"Content-Length: %d\r\n\r\n" % size if size or method not in BODILESS else b"\r\n"
        return b"".join(
            (
                method,
                b" ",
                target.prefix,
                path or (b"" if target.prefix else b"/"),
                b" HTTP/1.1\r\n",
                target.header_lines,
                headers,
                length,
                b"" if size > SLICE_BYTES else body,
            )
        )

    def _check_path(self, path: bytes) -> None:
        if any(not 0x21 <= byte <= 0x7E for byte in path) or path[:1] not in {b"", b"/"}:
            raise ValueError("the path must begin with / and be percent-encoded")
        if len(self._paths) >= MAX_KNOWN_PATHS:
            self._paths.clear()
        self._paths.add(path)

    def _tick(self) -> None:
        """Fail what waited too long, close what was idle too long; stop when no connection is open."""
        now = self._loop.time()
        for connection in [c for c in self._in_use if now >= c.deadline_s or now >= c.look_s]:
            if now >= connection.deadline_s:  # still: the end of one request may begin another
                connection.time_out()
            elif now >= connection.look_s:
                connection.look(now)
        oldest = now - self.limits.keepalive_s
        for key, connections in list(self._idle.items()):
            while connections and connections[0].idle_since_s < oldest:
                connections[0].abort(None)
            if not connections:
                self._idle.pop(key, None)
        is_needed = bool(self._open) and not self._is_closed
        self._ticker = self._loop.call_later(TICK_S, self._tick) if is_needed else None


def _can_retry(error: WireError, *, can_repeat: bool) -> bool:
    """Whether a request that failed on a reused connection may be sent again."""
    return isinstance(error, StaleConnection) and (can_repeat or not error.was_sent)


def _final(error: WireError, *, is_fresh: bool) -> WireError:
    """Return the error to raise: a fresh connection cannot be stale."""
    if is_fresh and isinstance(error, StaleConnection):
        return BrokenResponse(error.message, phase=error.phase, was_sent=error.was_sent)
    return error


def _check_headers(headers: bytes) -> None:
    ends = headers.count(b"\r\n")
    if (
        headers[-2:] != b"\r\n"
        or headers[:2] == b"\r\n"
        or b"\r\n\r\n" in headers
        or headers.count(b"\n") + headers.count(b"\r") != 2 * ends
    ):
        raise ValueError("headers must be complete lines, each ended by CR LF")


def _closed() -> Unreachable:
    return Unreachable("the connection pool was closed", phase="closed", was_sent=False)
