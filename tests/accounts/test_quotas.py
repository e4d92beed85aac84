"""Requests of a month: never more than the quota over all replicas, and rarely a question to the database."""

import asyncio
from typing import Any

import pytest

from appliance.accounts.quotas import RequestQuotas
from appliance.base.clock import FakeClock
from appliance.base.errors import Exhausted, Unavailable
from appliance.storage.database import Database, StoreUnavailable
from tests.accounts.money import NOON_MS, Money


@pytest.fixture
async def users(database: Database) -> Database:
    money = Money(database)
    for name in ("u1", "u2"):
        await money.sql(
            "INSERT INTO users(id, email, password_hash, created_at, updated_at) VALUES (:id, :email, '', 1, 1)",
            id=name,
            email=name,
        )
    return database


async def count(quotas: RequestQuotas, user_id: str, tries: int) -> int:
    passed = 0
    for _ in range(tries):
        try:
            await quotas.take(user_id)
            passed += 1
        except Exhausted:
            pass
    return passed


async def test_no_more_requests_than_the_quota_over_all_replicas(users: Database) -> None:
    clock = FakeClock(at_s=NOON_MS / 1000)
    replicas = [RequestQuotas(users, clock, max_requests=300) for _ in range(3)]
    passed = await asyncio.gather(*(count(one, "u1", 70) for one in replicas for _ in range(2)))
    assert sum(passed) == 300
    with pytest.raises(Exhausted) as refusal:
        await replicas[0].take("u1")
    assert refusal.value.code == "quota_exceeded"
    assert refusal.value.message == (
        "The quota of requests of this month is used up; it begins anew at 2027-02-01T00:00:00.000000Z."
    )
    assert refusal.value.retry_after_s == 16 * 86_400 + 16 * 3600
    assert (await replicas[0].view("u1"))["used_requests"] == 300
    clock.advance(17 * 86_400)
    await replicas[0].take("u1")
    assert (await replicas[1].view("u1"))["used_requests"] == 3


async def test_what_is_left_of_a_block_is_given_back(users: Database) -> None:
    quotas = RequestQuotas(users, FakeClock(at_s=NOON_MS / 1000))
    for _ in range(3):
        await quotas.take("u1")
    assert quotas.try_take("u1")
    assert (await quotas.view("u1"))["used_requests"] == 100
    await quotas.close()
    assert await quotas.view("u1") == {
        "max_requests": 10_000,
        "used_requests": 4,
        "max_gpu_hours": 100.0,
        "used_gpu_hours": 0.0,
        "reset_at": "2027-02-01T00:00:00.000000Z",
        "reset_interval": "monthly",
    }


async def test_no_quota_and_quotas_that_are_changed(users: Database) -> None:
    quotas = RequestQuotas(users, FakeClock(at_s=NOON_MS / 1000), max_requests=0)
    assert await count(quotas, "u1", 20) == 20
    assert quotas.try_take("u1")
    await quotas.set_max("u1", max_requests=5)
    assert await count(quotas, "u1", 9) == 5
    assert await count(quotas, "u2", 9) == 9


async def test_while_the_database_is_down_a_block_passes_and_is_counted_later(
    users: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    quotas = RequestQuotas(users, FakeClock(at_s=NOON_MS / 1000), max_requests=400)

    async def fail(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("down")

    with monkeypatch.context() as patch:
        patch.setattr(users, "run", fail)
        for _ in range(4):  # as after a start without it
            await quotas.take("u1")
        with pytest.raises(StoreUnavailable):
            await quotas.take("u1")
    await quotas.take("u1")
    await quotas.close()  # what is left of the block goes back
    assert (await quotas.view("u1"))["used_requests"] == 5


async def test_a_quota_does_not_wait_forever_for_the_database(
    users: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.accounts.quotas.LONGEST_WAIT_S", 0.05)
    quotas = RequestQuotas(users, FakeClock(at_s=NOON_MS / 1000), max_requests=300)
    async with users.transaction() as other:  # as another process that holds SQLite, or the user's row
        await other.execute("UPDATE users SET updated_at = 2 WHERE id = 'u1'")
        await quotas._row(other, "u1")
        with pytest.raises(Unavailable) as refusal:
            await quotas.take("u1")
    assert (refusal.value.code, refusal.value.retry_after_s) == ("store_unavailable", 0.05)
    await quotas.take("u1")
    assert (await quotas.view("u1"))["used_requests"] == 3
