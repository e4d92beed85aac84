"""Connections to PostgreSQL: which is used, kept, tried and closed. Callers wait while all are in use."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from appliance.base.clock import Clock
from appliance.base.logs import get_logger

log = get_logger("storage")


@dataclass(frozen=True, slots=True)
class PoolRules:
    """When a connection is kept, tried and closed; times in seconds.

    Attributes:
        most: Connections at a time.
        fewest: So many are kept, however idle.
        lifetime_s: An older one is closed.
        idle_s: One that was not used for longer is closed, unless only `fewest` are open.
        check_s: One that was not used for longer is tried before it is used.
    """

    most: int
    fewest: int
    lifetime_s: float
    idle_s: float
    check_s: float


@dataclass(slots=True)
class PooledConnection:
    """A connection and its age.

    Attributes:
        raw: asyncpg's connection below SQLAlchemy's.
        adapted: What SQLAlchemy makes of it; knows whether a transaction may write.
        opened_s: The clock's monotonic seconds.
        used_s: When it was given back last.
    """

    connection: AsyncConnection
    raw: Any
    adapted: Any
    opened_s: float
    used_s: float


def is_worn(one: PooledConnection, now_s: float, open_count: int, rules: PoolRules) -> bool:
    """Say whether an idle connection is to be closed.

    1. the server closed it, or it is older than `lifetime_s`   → yes
    2. it is idle for longer than `idle_s`                      → yes, if more than `fewest` are open

    Args:
        one: The connection.
        now_s: The clock's monotonic seconds.
        open_count: Connections that are open, this one included.
        rules: The limits.
    """
    if one.raw.is_closed() or now_s - one.opened_s > rules.lifetime_s:  # 1
        return True
    return now_s - one.used_s > rules.idle_s and open_count > rules.fewest  # 2


class PostgresPool:
    """The connections of one database.

    Args:
        connect: Opens one.
        check: Tries one; raises when it does not work.
        rules: The limits.
        clock: The time.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[PooledConnection]],
        check: Callable[[PooledConnection], Awaitable[None]],
        rules: PoolRules,
        clock: Clock,
    ) -> None:
        self._connect, self._check, self._rules, self._clock = connect, check, rules, clock
        self._idle: deque[PooledConnection] = deque()
        self._open_count = 0
        self._free = asyncio.Semaphore(rules.most)
        self._is_closed = False

    @property
    def open_count(self) -> int:
        """How many are open."""
        return self._open_count

    @property
    def idle_count(self) -> int:
        """How many of them are not in use."""
        return len(self._idle)

    async def take(self) -> PooledConnection:
        """Take a connection that works; it waits while all are in use.

        1. an idle one, the last used first; worn ones are closed, unused ones tried
        2. a new one
        """
        await self._free.acquire()
        try:
            while self._idle:  # 1
                one = self._idle.pop()
                now_s = self._clock.monotonic_s()
                if one.raw.is_closed() or now_s - one.opened_s > self._rules.lifetime_s:
                    await self._close(one)
                elif now_s - one.used_s <= self._rules.check_s or await self._works(one):
                    return one
            self._open_count += 1
            try:
                return await self._connect()  # 2
            except BaseException:
                self._open_count -= 1
                raise
        except BaseException:
            self._free.release()
            raise

    async def give_back(self, one: PooledConnection, *, is_broken: bool = False) -> None:
        """Give a connection back.

        Args:
            one: The connection; no transaction is open in it.
            is_broken: It is closed, without asking the server.
        """
        now_s = self._clock.monotonic_s()
        one.used_s = now_s
        try:
            if is_broken:
                await self._drop(one)
            elif self._is_closed or one.raw.is_closed() or now_s - one.opened_s > self._rules.lifetime_s:
                await self._close(one)
            else:
                self._idle.append(one)
        finally:
            self._free.release()

    async def tidy(self) -> None:
        """Close idle connections that are worn."""
        now_s = self._clock.monotonic_s()
        for one in list(self._idle):  # the longest unused first
            if one in self._idle and is_worn(one, now_s, self._open_count, self._rules):
                self._idle.remove(one)
                await self._close(one)

    async def drop_idle(self) -> None:
        """Close all idle connections: the server is another one, or was started again."""
        while self._idle:
            await self._drop(self._idle.pop())

    async def close(self) -> None:
        """Close the idle ones now, and the others when they are given back."""
        self._is_closed = True
        while self._idle:
            await self._close(self._idle.pop())

    async def _works(self, one: PooledConnection) -> bool:
        try:
            await self._check(one)
            return True
        except Exception:
            await self._drop(one)
            return False
        except BaseException:
            await self._drop(one)
            raise

    async def _close(self, one: PooledConnection) -> None:
        self._open_count -= 1
        try:
            await one.connection.close()
        except Exception:
            one.raw.terminate()

    async def _drop(self, one: PooledConnection) -> None:
        """Close a connection at once; SQLAlchemy is told of it afterwards."""
        self._open_count -= 1
        one.raw.terminate()
        try:
            await one.connection.invalidate()
            await one.connection.close()
        except Exception as exc:  # it is closed all the same
            log.debug("store_connection_dropped", reason=repr(exc))
