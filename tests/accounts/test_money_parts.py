"""The parts about money as one process has them: opened, used by requests, closed; several of them share wallets."""

import asyncio
from pathlib import Path

import pytest

from appliance.accounts.changes import ChangeFeed
from appliance.accounts.ledger import balances
from appliance.accounts.meter import Payer
from appliance.accounts.money import Money as OpenMoney
from appliance.accounts.money import build_money
from appliance.accounts.prices import TokenUsage
from appliance.accounts.settings import AccountSettings
from appliance.accounts.settlement import Ending
from appliance.base.clock import SystemClock
from appliance.base.errors import PaymentRequired
from appliance.base.tasks import Tasks
from appliance.storage.database import Database
from tests.accounts.metering import order
from tests.accounts.money import Money

SETTINGS = AccountSettings.from_env({"WALLET_LEASE_MAX_USD": "0.002", "JOURNAL_MAX_MB": "16"})


def build(database: Database, folder: Path, tasks: Tasks) -> OpenMoney:
    clock = SystemClock()
    changes = ChangeFeed(database, clock=clock)
    return build_money(
        SETTINGS, database, changes, state_dir=folder, clock=clock, tasks=tasks, host="h", version="1"
    )


async def use(one: OpenMoney, tokens: int) -> None:
    meter = await one.metering.begin(order(payer=Payer("w1", client_id="c")))
    try:
        meter.attempt("s", "b")
        meter.took(1, 200)
        meter.end(Ending.COMPLETE, TokenUsage(10, 0, tokens))
    finally:
        meter.close()


async def test_requests_are_billed_from_open_to_close(database: Database, tmp_path: Path) -> None:
    money = Money(database)
    await money.open("w1", extra=100_000)
    async with Tasks() as tasks:
        one = build(database, tmp_path, tasks)
        await one.start()
        for _ in range(5):
            await use(one, 20)
        async with asyncio.timeout(10):
            while one.settler.waiting_count:
                await asyncio.sleep(0.005)
        sums = await balances(database)
        assert (sum(sums.values()), sums["income.inference"]) == (0, 250)
        assert one.settler.settled == {"engine": 5}
        with pytest.raises(BlockingIOError):
            build(database, tmp_path, tasks)
        await one.close()
        assert (await money.sql("SELECT host FROM replicas"))[0].host == "h"
    wallet = await money.wallets.find("w1")
    assert (wallet.used_musd, wallet.leased_musd) == (250, 0)
    async with Tasks() as tasks:  # again, with the same journal
        again = build(database, tmp_path, tasks)
        assert again.store.wallets.replica_id == one.store.wallets.replica_id
        await again.close()
    await money.check()


async def test_replicas_give_each_other_what_they_do_not_use(
    postgres_database: Database, tmp_path: Path
) -> None:
    money = Money(postgres_database)
    await money.open("w1", extra=4000)
    async with Tasks() as tasks:
        one, two = (build(postgres_database, tmp_path / name, tasks) for name in ("a", "b"))
        await one.start()
        await two.start()
        await asyncio.sleep(0.2)  # until both listen; a message that is sent earlier is only lost
        assert await one.allowances.of("w1").hold_or_wait(3500)
        one.allowances.of("w1").charge(3500, 100)
        await one.settler.drain()
        await use(two, 1500)  # more than what is not leased
        assert one.allowances.of("w1").free_musd < 3400
        with pytest.raises(PaymentRequired):
            await two.metering.begin(order(5000, payer=Payer("w1")))
        one.allowances.of("w1").settled(100)
        await two.close()
        await one.close()


async def test_credits_that_came_are_told_to_every_replica(database: Database, tmp_path: Path) -> None:
    money = Money(database)
    await money.open("w1", extra=1_000)
    told: list[str] = []
    async with Tasks() as tasks:
        one, other = build(database, tmp_path / "1", tasks), build(database, tmp_path / "2", tasks)
        await one.changes.start()
        await one.start()
        one.allowances.money_came = told.append  # type: ignore[method-assign]
        changes = [
            other.store.wallets.grant("w1", 5, ref="g"),
            other.store.wallets.pay_in("w1", 5, ref="p"),
            other.store.wallets.set_state("w1", "active"),
        ]
        for change in changes:
            await change
            await one.changes.read()
        assert told == ["w1"] * 3
        await one.changes.read()
        assert told == ["w1"] * 3
        await one.close()
