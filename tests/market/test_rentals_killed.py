"""A process ends between any two of its steps; the next one ends or finds all that it left (I12, I13).

Every third step is tried; RENTING_FAULTS=all tries each.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.errors import ApplianceError
from appliance.base.tasks import Tasks
from appliance.market.rental_types import RentOrder
from appliance.market.types import OfferFilter
from appliance.storage.database import Database
from appliance.storage.settings import StorageSettings
from tests.fakes.market import FakeMarket
from tests.market.renting import Renting
from tests.storage_servers import make_sqlite, opened

MANY: dict[str, Any] = {
    "rent_max_per_user": 100,
    "rent_max_launches_per_h": 1000,
    "rent_max_instances": 100,
    "rent_max_usd_per_h": "500",
}
ORDER = RentOrder(lease_s=3600)
NEVER = 1 << 30
STRIDE = 1 if os.environ.get("RENTING_FAULTS") == "all" else 3
Scene = Callable[[Renting], Awaitable[None]]


class Killed(BaseException):
    """The process has ended here."""


class Killer:
    """Ends the process at the step of a number, counted from 1; from then on it does nothing any more."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.passed = 0

    def __call__(self) -> None:
        self.passed += 1
        if self.passed >= self.at:
            raise Killed


async def rent_and_end(renting: Renting) -> None:
    """One that works, one of which the creation is not known, one that is stuck at first."""
    renting.market.faults["create"] = ["", "unknown_made"]
    renting.market.faults["destroy"] = ["lies", "unknown"]
    for number in range(2):
        try:
            await renting.service.create(
                renting.renter, renting.market.offers_here[number], ORDER, idempotency_key=f"k{number}"
            )
        except ApplianceError:
            pass
    await renting.live_on(700, step_s=20)
    for rental in await renting.all():
        await renting.service.destroy("vast.ai", rental.id, user_id="u1")
    await renting.live_on(60)


async def replace_a_start(renting: Renting) -> None:
    """The first instance does not start, another one takes its place."""
    renting.market.faults["create"] = ["stuck"]
    await renting.service.create(renting.renter, renting.market.offers_here[0], ORDER)
    await renting.live_on(960, step_s=60)


async def reserve_all(renting: Renting) -> None:
    """A reservation that works, with an offer that is gone."""
    renting.market.faults["create"] = ["", "gone"]
    await renting.service.reserve(renting.renter, 3, OfferFilter(), ORDER, idempotency_key="r")


async def reserve_and_give_back(renting: Renting) -> None:
    """A reservation that is given back."""
    renting.market.faults["create"] = ["", "", "unknown_late"]
    renting.market.faults["destroy"] = ["unknown"]
    await renting.service.reserve(renting.renter, 3, OfferFilter(), ORDER)


async def sweep_an_orphan(renting: Renting) -> None:
    """An instance without a rental."""
    renting.market._make(
        renting.market.offers_here[0],
        f"apl-{renting.market.install_id}-01936c3e-1234-7abc-8def-0123456789ab",
    )
    await renting.live_on(120, step_s=10)


SCENES = (rent_and_end, replace_a_start, reserve_all, reserve_and_give_back, sweep_an_orphan)


async def die_at(database: Database, scene: Scene, at: int) -> tuple[Renting, int]:
    """Play a scene until its process ends; return it, and how many steps it has passed (0 = it has ended)."""
    clock = FakeClock()
    market = FakeMarket(clock)
    market.add_offers(10)
    killer = Killer(NEVER)
    async with Tasks() as tasks:
        one = Renting(database, tasks, clock=clock, markets=[market], on_step=killer, **MANY)
        await one.open()
        killer.at = killer.passed + at
        began = killer.passed
        try:
            await scene(one)
        except Killed:
            return one, 0
        except ApplianceError:
            pass
        # Some of it may have ended in a task of its own, which the caller did not wait for.
        return one, 0 if killer.passed >= killer.at else killer.passed - began


async def start_again(database: Database, dead: Renting, *, wait_s: float = 0) -> None:
    """Start after the end, and see that all comes right; then end what runs."""
    async with Tasks() as tasks:
        dead.market.faults.clear()
        one = Renting(database, tasks, clock=dead.clock, markets=dead.markets, **MANY)
        await one.service.open()
        await one.live_on(wait_s + 420, step_s=10)
        await one.check_money()
        live = {rental.contract_id: rental.state for rental in await one.all() if rental.is_live}
        alive = {machine.contract_id for machine in one.market.alive_of_ours()}
        assert alive <= set(live)
        assert {contract for contract, state in live.items() if state != "destroying"} <= alive
        for row in await one.sql("SELECT * FROM reservations"):
            assert row.state in ("done", "rolled_back")
            rentals = [rental for rental in await one.all() if rental.reservation_id == row.id]
            if row.state == "rolled_back":
                assert not [rental for rental in rentals if rental.is_live or rental.charged_musd]
            else:
                assert len([rental for rental in rentals if rental.is_live]) == row.count
        for rental in await one.all():
            await one.service.destroy("vast.ai", rental.id, user_id="u1")
        await one.live_on(60)
        await one.check_ended()
        charged = sum(rental.charged_musd for rental in await one.all())
        assert (await one.wallets.find("w1")).used_musd == charged
        cost, known = one.market.cost_of_ours_musd(), await one.cost_in_ledger()
        # Of each instance at most the time between two looks is not known.
        assert abs(known - cost) <= len(one.market.machines) * 20_000


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
async def test_a_kill_at_any_step_leaks_nothing(tmp_path: Path, scene: Scene) -> None:
    at = 1 - STRIDE
    steps = 0
    while not steps:
        at += STRIDE
        folder = tmp_path / str(at)
        folder.mkdir()
        make_sqlite(folder / "gpuproxy.db")
        async with opened(StorageSettings(), folder) as database:
            dead, steps = await die_at(database, scene, at)
            await start_again(database, dead)
    assert at > steps >= 2


@pytest.mark.parametrize("at", [2, 5, 8, 11, 14, 17, 20, 23, 26, 29])
@pytest.mark.parametrize("scene", [rent_and_end, reserve_and_give_back], ids=lambda scene: scene.__name__)
async def test_another_replica_ends_what_one_has_left(
    postgres_database: Database, scene: Scene, at: int
) -> None:
    dead, _ = await die_at(postgres_database, scene, at)
    await start_again(postgres_database, dead, wait_s=60)


async def test_two_replicas_do_each_step_once(postgres_database: Database) -> None:
    clock = FakeClock()
    market = FakeMarket(clock)
    market.add_offers(30)
    async with Tasks() as tasks:
        one = Renting(postgres_database, tasks, clock=clock, markets=[market], **MANY)
        await one.open(dollars=50)
        other = Renting(postgres_database, tasks, clock=clock, markets=[market], **MANY)
        await other.service.open()
        for number in range(8):
            renting = (one, other)[number % 2]
            await renting.service.create(renting.renter, market.offers_here[number], ORDER)
        for _ in range(80):
            clock.advance(10)
            await asyncio.gather(one.service.round(), other.service.round())
        assert {rental.state for rental in await one.all()} == {"ready"}
        assert market.calls.count("create") == 8
        await one.check_money()
        for rental in await one.all():
            await asyncio.gather(
                one.service.destroy("vast.ai", rental.id, user_id="u1"),
                other.service.destroy("vast.ai", rental.id, user_id="u1"),
            )
        for _ in range(12):
            clock.advance(5)
            await asyncio.gather(one.service.round(), other.service.round())
        await one.check_ended()
        assert market.calls.count("destroy") == 8
