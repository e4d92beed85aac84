"""Whatever happens in whatever order, on one to three replicas: the money is right (I1, I2)."""

import asyncio
import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.accounts.meter import Meter, Payer
from appliance.accounts.prices import TokenUsage
from appliance.accounts.renewals import renew_due
from appliance.accounts.settlement import Ending, Settlement
from appliance.accounts.usage import SettleResult
from appliance.base.errors import ApplianceError, Conflict
from appliance.base.tasks import Tasks
from appliance.storage.database import Database, StoreUnavailable
from tests.accounts.metering import order
from tests.accounts.money import NOON_MS, Replica

STEPS = (
    "begin",
    "begin",
    "take",
    "take",
    "end",
    "end",
    "close",
    "settle",
    "settle_twice",
    "settle_lost",
    "lease_lost",
    "sweep",
    "compare",
    "return",
    "grant",
    "take_away",
    "renew",
    "kill",
    "hours",
)
step = st.tuples(st.sampled_from(STEPS), st.integers(0, 2), st.integers(0, 1), st.integers(0, 60))
numbers = count()


class LosingStore:
    """A store whose replies get lost when it is told so: the change was made, and is not known to be."""

    def __init__(self, store: Any, method: str) -> None:
        self._call = getattr(store, method)
        self.is_losing = False
        setattr(store, method, self.call)

    async def call(self, *arguments: Any, **options: Any) -> Any:
        result = await self._call(*arguments, **options)
        if self.is_losing:
            self.is_losing = False
            raise StoreUnavailable("the reply was lost")
        return result


class World:
    """Replicas, wallets and running requests."""

    def __init__(self, database: Database, folder: Path, tasks: Tasks, replicas: int) -> None:
        self.database, self.folder, self.tasks = database, folder, tasks
        self.number = next(numbers)
        self.wallets = [f"w{self.number}-{n}" for n in range(2)]
        self.replicas = [self.build(n) for n in range(replicas)]
        self.meters: list[tuple[int, str, Meter]] = []
        self.refs = count()

    def build(self, n: int) -> Replica:
        one = Replica(
            self.database,
            self.folder / f"{self.number}-{n}",
            self.tasks,
            f"r{self.number}-{n}",
            most_musd=300,
        )
        one.settle_losing = LosingStore(one.usage, "settle")  # type: ignore[attr-defined]
        one.lease_losing = LosingStore(one.wallets, "lease")  # type: ignore[attr-defined]
        return one

    async def open(self) -> None:
        one = self.replicas[0]
        for wallet_id in self.wallets:
            await one.open(wallet_id, extra=700, cap=100)
            await one.wallets.set_plan(
                wallet_id,
                plan_musd=500,
                cap_musd=100,
                auto_renew=True,
                period_end_ms=NOON_MS + 3_600_000,
                anchor_day=15,
                ref=f"plan-{wallet_id}",
            )

    async def do(self, what: str, replica: int, wallet: int, n: int) -> None:
        replica %= len(self.replicas)
        one, wallet_id = self.replicas[replica], self.wallets[wallet]
        try:
            await getattr(self, f"do_{what}")(one, replica, wallet_id, n)
        except (ApplianceError, Conflict):
            pass
        for _ in range(3):
            await asyncio.sleep(0)

    async def do_begin(self, one: Replica, replica: int, wallet_id: str, n: int) -> None:
        made = order(n, max_tokens=n * 3, payer=Payer(wallet_id, client_id="c"))
        meter = await one.metering.begin(made)
        meter.attempt("s", "b")
        self.meters.append((replica, wallet_id, meter))

    async def do_take(self, one: Replica, replica: int, wallet_id: str, n: int) -> None:
        for _, _, meter in self.meters[:3]:
            for _ in range(n):
                if not meter.took(1, 210):
                    break

    async def do_end(self, one: Replica, replica: int, wallet_id: str, n: int) -> None:
        if self.meters:
            _, _, meter = self.meters.pop(n % len(self.meters))
            usage = TokenUsage(n, n // 2, n * 5) if n % 3 else None
            meter.end(list(Ending)[n % len(Ending)], usage)
            meter.close()

    async def do_close(self, one: Replica, replica: int, wallet_id: str, n: int) -> None:
        if self.meters:
            self.meters.pop()[2].close()

    async def do_settle(self, one: Replica, replica: int, wallet_id: str, n: int) -> None:
        await one.settler.drain()

    async def do_settle_twice(self, one: Replica, replica: int, wallet_id: str, n: int) -> None:
        batch: Sequence[Settlement] = list(one.settler._waiting)
        if batch:
            async with one.allowances.settling:
                await one.usage.settle(batch)
        again = await one.usage.settle(batch) if batch else SettleResult()
        assert again.new == 0
        await one.settler.drain()

    async def do_settle_lost(self, one: Replica, replica: int, wallet_id: str, n: int) -> None:
        one.settle_losing.is_losing = True  # type: ignore[attr-defined]
        await one.settler.drain()

    async def do_lease_lost(self, one: Replica, replica: int, wallet_id: str, n: int) -> None:
        one.lease_losing.is_losing = True  # type: ignore[attr-defined]

    async def do_sweep(self, one: Replica, replica: int, wallet_id: str, n: int) -> None:
        for _ in range(1 + n // 8):
            await one.allowances.sweep()

    async def do_compare(self, one: Replica, replica: int, wallet_id: str, n: int) -> None:
        for allowance in one.allowances.all():
            allowance.is_unsure = True
        await one.allowances.compare()

    async def do_return(self, one: Replica, replica: int, wallet_id: str, n: int) -> None:
        await one.allowances.return_asked(wallet_id)

    async def do_grant(self, one: Replica, replica: int, wallet_id: str, n: int) -> None:
        await one.wallets.grant(wallet_id, n + 1, ref=f"g{self.number}-{next(self.refs)}")
        one.allowances.money_came(wallet_id)

    async def do_take_away(self, one: Replica, replica: int, wallet_id: str, n: int) -> None:
        await one.wallets.grant(wallet_id, -n - 1, ref=f"t{self.number}-{next(self.refs)}")

    async def do_renew(self, one: Replica, replica: int, wallet_id: str, n: int) -> None:
        await renew_due(one.wallets)

    async def do_hours(self, one: Replica, replica: int, wallet_id: str, n: int) -> None:
        one.clock.advance(n * 60)

    async def do_kill(self, one: Replica, replica: int, wallet_id: str, n: int) -> None:
        """End a process without a word, and start it again with what its journal has."""
        await self.calm(one)
        self.meters = [row for row in self.meters if row[0] != replica]
        os.close(one.journal._lock)
        os.close(one.journal._fd)
        again = self.replicas[replica] = self.build(replica)
        again.clock.elapsed_s = one.clock.elapsed_s
        await again.recover()

    async def calm(self, one: Replica) -> None:
        """Wait until no question to the database is under way: a killed process has none."""
        while any(allowance.is_asking for allowance in one.allowances.all()):
            await asyncio.sleep(0.001)

    async def check(self) -> None:
        """What a replica may spend is never more than what the database has set aside for it."""
        for one in self.replicas:
            await self.calm(one)
            leases = await one.wallets.own_leases(self.wallets)
            for allowance in one.allowances.all():
                assert min(allowance.free_musd, allowance.held_musd, allowance.spent_musd) >= 0
                # a lost reply leaves `spent` as it was, though the lease is smaller already
                unknown = sum(s.end.charged_musd for s in one.settler._waiting)
                assert allowance.lease_musd <= leases.get(allowance.wallet_id, 0) + unknown

    async def finish(self) -> None:
        """All requests end, all replicas stop: nothing is set aside any more."""
        for _, _, meter in self.meters:
            meter.close()
        for one in self.replicas:
            one.settle_losing.is_losing = one.lease_losing.is_losing = False  # type: ignore[attr-defined]
            await self.calm(one)
            await one.settler.drain()
            await one.allowances.compare()
            for allowance in one.allowances.all():
                assert (allowance.held_musd, allowance.spent_musd) == (0, 0)
            await one.stop()
            await one.wallets.give_all_leases_back()
        for wallet_id in self.wallets:
            assert (await self.replicas[0].wallets.find(wallet_id)).leased_musd == 0
        await self.replicas[0].check()


@pytest.mark.parametrize("replicas", [1, 3])
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(step, min_size=5, max_size=40))
async def test_money_is_right_after_anything_in_any_order(
    database: Database, tmp_path: Path, replicas: int, steps: list[tuple[str, int, int, int]]
) -> None:
    async with Tasks() as tasks:
        world = World(database, tmp_path, tasks, replicas)
        await world.open()
        for one in steps:
            await world.do(*one)
        await world.check()
        await world.finish()
