"""What was charged reaches the database, however often that has to be tried; starts without it go on."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from appliance.accounts.meter import Payer
from appliance.accounts.prices import TokenUsage
from appliance.accounts.recovery import read_replica_id
from appliance.accounts.settlement import Ending, Settlement
from appliance.accounts.settler import BATCH
from appliance.base.clock import FakeClock
from appliance.base.tasks import Tasks
from appliance.storage.database import ConstraintViolated, Database, StoreUnavailable
from tests.accounts.metering import order
from tests.accounts.money import Replica


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    async with Tasks() as tasks:
        yield tasks


async def use(one: Replica, tokens: int = 5) -> Settlement:
    meter = await one.metering.begin(order(payer=Payer("w1")))
    meter.attempt("s", "b")
    settlement = meter.end(Ending.COMPLETE, TokenUsage(10, 0, tokens))
    meter.close()
    assert settlement is not None
    return settlement


async def settled(one: Replica) -> int:
    rows = await one.sql("SELECT COUNT(*) AS n FROM usage")
    return int(rows[0].n)


async def test_charges_are_settled_in_the_background_in_batches(
    database: Database, tmp_path: Path, tasks: Tasks
) -> None:
    one = Replica(database, tmp_path / "j", tasks, most_musd=100_000)
    await one.open("w1", extra=1_000_000)
    for _ in range(BATCH + 20):
        await use(one)
    assert one.settler.waiting_count == BATCH + 20
    assert one.settler.oldest_s == 0
    tasks.start(one.settler.work(), name="settler")
    async with asyncio.timeout(10):
        while one.settler.waiting_count:
            await asyncio.sleep(0.005)
    assert await settled(one) == BATCH + 20
    assert one.settler.settled == {"engine": BATCH + 20}
    assert (one.allowances.of("w1").spent_musd, one.journal.unsettled_count) == (0, 0)
    await one.stop()
    assert (await one.wallets.find("w1")).used_musd == 20 * (BATCH + 20)
    await one.check()


async def test_a_database_that_is_away_is_tried_again(
    database: Database, tmp_path: Path, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.accounts.settler.FIRST_PAUSE_S", 0.001)
    one = Replica(database, tmp_path / "j", tasks)
    await one.open("w1", extra=1_000_000)
    await use(one)
    settle, failures = one.usage.settle, iter(range(3))

    async def failing(batch: Sequence[Settlement]) -> Any:
        if next(failures, None) is None:
            return await settle(batch)
        await settle(batch)  # it was done, and the reply is lost
        raise StoreUnavailable("gone")

    one.usage.settle = failing  # type: ignore[method-assign]
    tasks.start(one.settler.work(), name="settler")
    async with asyncio.timeout(10):
        while one.settler.waiting_count:
            await asyncio.sleep(0.005)
    assert await settled(one) == 1
    assert one.allowances.of("w1").is_unsure
    await one.allowances.compare()
    assert one.allowances.of("w1").lease_musd == (await one.wallets.own_leases(["w1"]))["w1"]
    await one.stop()
    await one.check()


async def test_an_attempt_that_the_database_does_not_take_stops_no_other(
    database: Database, tmp_path: Path, tasks: Tasks
) -> None:
    one = Replica(database, tmp_path / "j", tasks)
    await one.open("w1", extra=1_000_000)
    bad = await use(one)
    for _ in range(3):
        await use(one)
    settle = one.usage.settle

    async def refusing(batch: Sequence[Settlement]) -> Any:
        if bad in batch:
            raise ConstraintViolated("some rule")
        return await settle(batch)

    one.usage.settle = refusing  # type: ignore[method-assign]
    await one.settler.drain()
    assert await settled(one) == 3
    assert one.settler.stuck == [bad]
    assert one.journal.unsettled_count == 1  # a later version may settle it
    await one.check()


async def test_a_start_without_the_database_spends_what_is_left_of_its_lease(
    database: Database, tmp_path: Path, tasks: Tasks
) -> None:
    one = Replica(database, tmp_path / "j", tasks, most_musd=2000)
    await one.open("w1", extra=100_000)
    await use(one)
    await one.settler.drain()
    await one.allowances.sweep()
    charged = (await use(one)).end.charged_musd
    lease = (await one.wallets.own_leases(["w1"]))["w1"]
    os.close(one.journal._lock)
    again = Replica(database, tmp_path / "j", tasks, most_musd=2000)
    again.clock.advance(60)

    async def away(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("gone")

    settle, ask = again.usage.settle, again.wallets.lease
    again.usage.settle = again.wallets.lease = away  # type: ignore[method-assign, assignment]
    assert (await again.recover()).is_offline
    assert again.allowances.of("w1").free_musd == lease - charged
    await use(again)
    with pytest.raises(StoreUnavailable):
        await again.metering.begin(order(lease, payer=Payer("w1")))
    again.usage.settle, again.wallets.lease = settle, ask  # type: ignore[method-assign]
    await again.settler.drain()
    await again.allowances.compare()
    assert await settled(again) == 3
    await again.stop()
    wallet = await again.wallets.find("w1")
    assert (wallet.used_musd, wallet.leased_musd) == (60, 0)
    await again.check()


async def test_a_start_long_after_the_database_was_reached_spends_nothing(
    database: Database, tmp_path: Path, tasks: Tasks
) -> None:
    one = Replica(database, tmp_path / "j", tasks)
    await one.open("w1", extra=100_000)
    await use(one)
    await one.allowances.sweep()
    os.close(one.journal._lock)
    again = Replica(database, tmp_path / "j", tasks)
    again.clock.advance(4000)

    async def away(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("gone")

    again.usage.settle = away  # type: ignore[method-assign]
    assert (await again.recover()).is_offline
    assert again.allowances.is_fenced
    assert again.metering.try_begin(order(payer=Payer("w1"))) is None


def test_a_replica_keeps_its_id_with_its_journal(tmp_path: Path) -> None:
    first = read_replica_id(tmp_path / "j", FakeClock())
    assert read_replica_id(tmp_path / "j", FakeClock()) == first
    assert read_replica_id(tmp_path / "k", FakeClock()) != first
    (tmp_path / "j" / "replica-id").write_text("damaged")
    assert len(read_replica_id(tmp_path / "j", FakeClock())) == 36
