"""How many replicas live, and the limits that they share by a real Redis."""

import asyncio
import random

from sqlalchemy import insert, update

from appliance.accounts.actor import Actor, Limits, UserFacts
from appliance.accounts.limits import RateLimited, RateLimits
from appliance.accounts.live_replicas import LiveReplicas
from appliance.base.clock import FakeClock
from appliance.storage.database import Database
from appliance.storage.schema import replicas
from tests.accounts.parts import redis_at
from tests.redis_server import RedisServer

ACTOR = Actor("user", UserFacts("u1", "a@example.org"), None, "u1", "session:s1")


async def test_replicas_that_were_seen_lately_are_counted(database: Database) -> None:
    clock = FakeClock()
    live = LiveReplicas(database, clock=clock)
    await live.read()
    assert live.count == 1
    now_ms = round(clock.now_s() * 1000)
    rows = [{"id": f"r{number}", "started_at": 0, "seen_at": now_ms - number * 20_000} for number in range(4)]
    async with database.transaction() as transaction:
        await transaction.execute(insert(replicas), rows)
    await live.read()
    assert live.count == (3 if database.kind == "postgres" else 1)
    async with database.transaction() as transaction:
        await transaction.execute(update(replicas).values(seen_at=0))
    await live.read()
    assert live.count == 1


async def admitted(limits: RateLimits, tries: int, chance: random.Random) -> int:
    count = 0
    for _ in range(tries):
        try:
            await limits.begin_later(ACTOR)
            count += 1
        except RateLimited:
            pass
        if chance.random() < 0.3:
            await asyncio.sleep(0)
    return count


async def test_replicas_share_a_limit_by_redis(redis_server: RedisServer) -> None:
    clock, chance = FakeClock(), random.Random(7)
    for limit in (7, 100, 1000):
        async with (
            redis_at(redis_server.port) as one,
            redis_at(redis_server.port) as two,
            redis_at(redis_server.port) as three,
        ):
            all_of_them = [
                RateLimits(clock=clock, defaults=Limits(rpm=limit), shared=redis, replicas=lambda: 3)
                for redis in (one, two, three)
            ]
            tasks = [asyncio.create_task(limits.run()) for limits in all_of_them]
            counts = await asyncio.gather(*(admitted(limits, limit, chance) for limits in all_of_them))
            for task in tasks:
                task.cancel()
            step = max(1, limit // 20)
            assert limit <= sum(counts) <= limit + 3 * step
            assert min(counts) > 0
            clock.advance(200)
    assert any(name.startswith("ratelimit:u1:3000000") for name in redis_server.everything())


async def test_redis_that_is_killed_leaves_each_its_part(redis_server: RedisServer) -> None:
    clock, chance = FakeClock(), random.Random(7)
    async with redis_at(redis_server.port) as one, redis_at(redis_server.port) as two:
        both = [
            RateLimits(clock=clock, defaults=Limits(rpm=100), shared=redis, replicas=lambda: 2)
            for redis in (one, two)
        ]
        first = await asyncio.gather(*(admitted(limits, 20, chance) for limits in both))
        redis_server.stop()
        more = await asyncio.gather(*(admitted(limits, 100, chance) for limits in both))
        assert first == [20, 20]
        assert more == [30, 30]
        assert all(limits.is_local for limits in both)
        redis_server.start()
        async with asyncio.timeout(10):
            while not (one.is_up and two.is_up):
                await asyncio.sleep(0.05)
        clock.advance(2)
        for limits in both:
            await limits.sync()
        assert not any(limits.is_local for limits in both)
        # it came back empty: of this window it has forgotten the 40 that it had been told
        more = await asyncio.gather(*(admitted(limits, 100, chance) for limits in both))
        assert sum(more) <= 40 + 2 * 5
        assert max(more) <= 50  # none forgets what it has admitted itself
