"""Which connections to PostgreSQL are kept, tried and closed: decided by a clock of the test."""

import asyncio
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.storage.postgres_pool import PooledConnection, PoolRules, PostgresPool, is_worn

RULES = PoolRules(most=3, fewest=1, lifetime_s=1000, idle_s=100, check_s=10)


class FakeConnection:
    """Both of a connection's objects: SQLAlchemy's and the driver's."""

    def __init__(self) -> None:
        self.is_ended = False

    def is_closed(self) -> bool:
        return self.is_ended

    def terminate(self) -> None:
        self.is_ended = True

    async def close(self) -> None:
        self.is_ended = True

    async def invalidate(self) -> None:
        self.is_ended = True


class FakeServer:
    """Opens connections, and knows which were tried."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.opened: list[FakeConnection] = []
        self.tried: list[FakeConnection] = []
        self.is_down = False
        self.pool = PostgresPool(self.connect, self.check, RULES, self.clock)

    async def connect(self) -> PooledConnection:
        if self.is_down:
            raise OSError
        one: Any = FakeConnection()
        self.opened.append(one)
        now_s = self.clock.monotonic_s()
        return PooledConnection(one, one, one, now_s, now_s)

    async def check(self, one: PooledConnection) -> None:
        self.tried.append(one.raw)
        if self.is_down:
            raise OSError


@pytest.mark.parametrize(
    ("age_s", "unused_s", "is_ended", "open_count", "worn"),
    [
        (5, 5, False, 1, False),
        (5, 5, True, 1, True),
        (1001, 0, False, 1, True),
        (500, 101, False, 1, False),
        (500, 101, False, 2, True),
        (500, 100, False, 2, False),
    ],
)
def test_which_connections_are_worn(
    age_s: float, unused_s: float, is_ended: bool, open_count: int, worn: bool
) -> None:
    raw: Any = FakeConnection()
    raw.is_ended = is_ended
    one = PooledConnection(raw, raw, raw, opened_s=2000 - age_s, used_s=2000 - unused_s)
    assert is_worn(one, 2000, open_count, RULES) is worn


async def test_the_last_used_is_used_again() -> None:
    server = FakeServer()
    first, second = await server.pool.take(), await server.pool.take()
    await server.pool.give_back(first)
    await server.pool.give_back(second)
    assert await server.pool.take() is second
    assert (server.pool.open_count, server.pool.idle_count, server.tried) == (2, 1, [])


async def test_one_that_was_not_used_is_tried_and_replaced_if_it_fails() -> None:
    server = FakeServer()
    first = await server.pool.take()
    await server.pool.give_back(first)
    server.clock.advance(11)
    assert await server.pool.take() is first
    assert server.tried == [first.raw]
    await server.pool.give_back(first)
    server.clock.advance(11)
    server.is_down = True
    with pytest.raises(OSError):  # noqa: PT011
        await server.pool.take()
    assert (server.pool.open_count, first.raw.is_ended) == (0, True)
    server.is_down = False
    assert await server.pool.take() is not first


async def test_the_server_closed_it_or_it_is_old() -> None:
    server = FakeServer()
    first = await server.pool.take()
    await server.pool.give_back(first)
    first.raw.is_ended = True
    second = await server.pool.take()
    assert second is not first
    server.clock.advance(1001)
    await server.pool.give_back(second)
    assert second.raw.is_ended
    assert server.pool.open_count == 0


async def test_idle_ones_are_closed_but_for_the_fewest() -> None:
    server = FakeServer()
    taken = [await server.pool.take() for _ in range(3)]
    for one in taken:
        await server.pool.give_back(one)
    server.clock.advance(101)
    await server.pool.tidy()
    assert [one.raw.is_ended for one in taken] == [True, True, False]


async def test_callers_wait_and_a_failure_frees_the_place() -> None:
    server = FakeServer()
    taken = [await server.pool.take() for _ in range(3)]
    waiting = asyncio.create_task(server.pool.take())
    await asyncio.sleep(0)
    assert not waiting.done()
    await server.pool.give_back(taken.pop(), is_broken=True)
    await waiting
    assert len(server.opened) == 4
    for one in (*taken, waiting.result()):
        await server.pool.give_back(one)
    await server.pool.drop_idle()
    server.is_down = True
    for _ in range(5):
        with pytest.raises(OSError):  # noqa: PT011
            await server.pool.take()
    server.is_down = False
    for _ in range(3):
        await asyncio.wait_for(server.pool.take(), 1)


async def test_after_the_end_those_in_use_are_closed_when_given_back() -> None:
    server = FakeServer()
    one = await server.pool.take()
    await server.pool.close()
    await server.pool.give_back(one)
    assert one.raw.is_ended
