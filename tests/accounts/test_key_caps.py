"""A key never spends more than its cap in a month, also within one long response, and over a restart."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.accounts.key_caps import READ_EVERY_S, KeyCaps
from appliance.accounts.meter import Metering, MeterOrder, Payer
from appliance.accounts.prices import TokenUsage
from appliance.accounts.settlement import Ending
from appliance.base.errors import PaymentRequired
from appliance.base.tasks import Tasks
from appliance.storage.database import Database
from tests.accounts.metering import order
from tests.accounts.money import Replica


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    async with Tasks() as tasks:
        yield tasks


def of_key(cap: int | None) -> MeterOrder:
    return order(payer=Payer("w1", key_id="k1", key_cap_musd=cap))


async def build(database: Database, folder: Path, tasks: Tasks, name: str = "r1") -> tuple[Replica, Metering]:
    one = Replica(database, folder, tasks, name, most_musd=100_000)
    caps = KeyCaps(database, one.clock, one.settler.unsettled_musd)
    metering = Metering(one.allowances, one.journal, one.settler.add, one.clock, slice_tokens=32, caps=caps)
    return one, metering


async def use(metering: Metering, cap: int | None, tokens: int) -> None:
    meter = await metering.begin(of_key(cap))
    meter.attempt("s", "b")
    meter.end(Ending.COMPLETE, TokenUsage(10, 0, tokens))
    meter.close()


async def test_a_key_is_refused_at_its_cap_and_free_in_the_next_month(
    database: Database, tmp_path: Path, tasks: Tasks
) -> None:
    one, metering = await build(database, tmp_path / "a", tasks)
    await one.open("w1", extra=1_000_000)
    for _ in range(3):
        await use(metering, 200, 20)
    with pytest.raises(
        PaymentRequired, match=r"may spend 0\.0002 dollars a month; 0\.00005 are left"
    ) as refusal:
        await use(metering, 200, 1)
    assert refusal.value.code == "key_cap_exceeded"
    await use(metering, None, 20)  # no cap
    await one.settler.drain()
    other, elsewhere = await build(database, tmp_path / "b", tasks, "r2")
    with pytest.raises(PaymentRequired):
        await use(elsewhere, 200, 1)
    await use(elsewhere, 400, 1)  # the cap was raised
    for replica in (one, other):
        replica.clock.advance(20 * 86_400)
    await use(metering, 200, 20)
    for replica in (one, other):
        await replica.stop()
    await one.check()


async def test_a_long_response_ends_at_the_cap(database: Database, tmp_path: Path, tasks: Tasks) -> None:
    one, metering = await build(database, tmp_path / "a", tasks)
    await one.open("w1", extra=1_000_000)
    meter = await metering.begin(of_key(211))
    meter.attempt("s", "b")
    taken = 0
    while taken < 500 and meter.took(1, 200):
        taken += 1
        await asyncio.sleep(0)
    settlement = meter.end(Ending.STOPPED)
    meter.close()
    assert settlement is not None
    assert (taken, settlement.end.charged_musd) == (100, 210)
    await one.stop()


async def test_what_other_replicas_spend_is_read_now_and_then(
    database: Database, tmp_path: Path, tasks: Tasks
) -> None:
    one, metering = await build(database, tmp_path / "a", tasks)
    await one.open("w1", extra=1_000_000)
    other, elsewhere = await build(database, tmp_path / "b", tasks, "r2")
    await use(metering, 200, 20)
    await use(elsewhere, 200, 45)
    await other.settler.drain()
    assert metering.try_begin(of_key(200)) is not None  # it was read just now
    one.clock.advance(READ_EVERY_S)
    assert metering.try_begin(of_key(200)) is None
    with pytest.raises(PaymentRequired):
        await metering.begin(of_key(200))
