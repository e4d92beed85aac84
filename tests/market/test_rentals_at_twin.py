"""Rentals at the stand-ins of both markets, over HTTP, which misbehave and know what really runs and what it cost."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.base.clock import FakeClock
from appliance.base.errors import ApplianceError
from appliance.base.tasks import Tasks
from appliance.market.providers.calls import MarketCalls
from appliance.market.providers.contract import Provider
from appliance.market.providers.ionet import IoNet
from appliance.market.providers.vastai import VastAi
from appliance.market.rental_types import RentOrder
from appliance.market.types import MarketUnknown, Offer, OfferFilter
from appliance.simulate.twin import Twin, TwinOptions, running_twin
from appliance.storage.database import Database
from appliance.storage.settings import StorageSettings
from tests.market.renting import MUSD, Renting
from tests.market.test_rentals_killed import MANY, Killed, Killer
from tests.simulate.calls import KEYS
from tests.storage_servers import make_sqlite, opened

NEVER = 1 << 30
PREFIXES = {"vast": "vast.ai", "ionet": "io.net"}
FAULTS: tuple[tuple[str, str, str | None], ...] = (
    # kind, service, route
    ("create_500_done", "vast", None),
    ("create_500_done", "ionet", None),
    ("no_such_ask", "vast", None),
    ("no_such_ask", "ionet", None),
    ("destroy_fails", "vast", None),
    ("destroy_fails", "ionet", None),
    ("destroy_lies", "vast", None),
    ("destroy_lies", "ionet", None),
    ("stuck_loading", "vast", None),
    ("exits", "vast", None),
    ("exits", "ionet", None),
    ("gone_410", "vast", None),
    ("page_2_fails", "vast", None),
    ("success_false", "vast", "show"),
    ("success_false", "vast", "create"),
    ("empty_body", "vast", "*"),
    ("html_page", "vast", "*"),
    ("html_page", "ionet", "*"),
    ("auth_error_404", "vast", "show"),
    ("status", "vast", "*"),
    ("status", "ionet", "*"),
    ("reset", "vast", "create"),
    ("reset", "vast", "*"),
    ("wrong_types", "vast", "list"),
    ("create_timed_out", "vast", None),
)
STEPS = ("create", "create", "reserve", "destroy", "fault", "fault", "fault", "minutes", "minutes", "kill")
step = st.tuples(st.sampled_from(STEPS), st.integers(0, 60))
numbers = count()


class Finder:
    """Offers of both markets, at a fifth more than they ask."""

    def __init__(self, providers: dict[str, Provider]) -> None:
        self._providers = providers
        self._found: list[Offer] = []

    async def find(self, wanted: OfferFilter, *, provider: str = "", limit: int) -> list[Offer]:
        found = []
        for name, market in self._providers.items():
            if provider in ("", name):
                try:
                    found += await market.offers(wanted, limit=limit)
                except MarketUnknown:
                    continue
        if not found:
            raise MarketUnknown("No market answers.")
        priced = [replace(one, price_musd_per_h=one.supply_musd_per_h * 6 // 5) for one in found]
        return sorted(priced, key=lambda one: (one.price_musd_per_h, one.id))[:limit]


async def no_pause(seconds: float) -> None:
    """Between two calls nothing has to be waited for."""


def providers_of(twin: Twin, clock: FakeClock) -> dict[str, Provider]:
    def calls(name: str, url: str, headers: dict[str, str]) -> MarketCalls:
        return MarketCalls(name, url, headers, clock=clock, timeout_s=1.0, intervals={}, pause=no_pause)

    vast = calls("vast.ai", twin.urls["vast"], KEYS["vast"])
    ionet = calls("io.net", twin.urls["ionet"], KEYS["ionet"])
    return {
        "vast.ai": VastAi("simulated", twin.urls["vast"], clock=clock, timeout_s=1.0, calls=vast),
        "io.net": IoNet("simulated", twin.urls["ionet"], clock=clock, timeout_s=1.0, calls=ionet),
    }


class TwinWorld:
    """A process that rents at the stand-ins, and the one after it."""

    def __init__(self, database: Database, tasks: Tasks, twin: Twin, clock: FakeClock) -> None:
        self.database, self.tasks, self.twin, self.clock = database, tasks, twin, clock
        self.providers = providers_of(twin, clock)
        self.killer = Killer(NEVER)
        self.one = self.build()

    def build(self) -> Renting:
        self.killer = Killer(NEVER)
        return Renting(
            self.database,
            self.tasks,
            clock=self.clock,
            markets=[],
            providers=self.providers,
            finder=Finder(self.providers),
            on_step=self.killer,
            **MANY,
        )

    async def open(self) -> None:
        await self.one.open(dollars=80)

    async def do(self, what: str, n: int) -> None:
        try:
            await getattr(self, f"do_{what}")(n)
        except ApplianceError:
            pass
        except Killed:
            await self.start_again()
        if self.killer.passed >= self.killer.at:
            await self.start_again()
        await self.one.check_money()

    async def start_again(self) -> None:
        await asyncio.sleep(0.01)
        self.one = self.build()
        await self.one.service.open()

    async def offers(self, provider: str) -> list[Offer]:
        return await Finder(self.providers).find(OfferFilter(), provider=provider, limit=20)

    async def do_create(self, n: int) -> None:
        offers = await self.offers("io.net" if n % 4 == 0 else "vast.ai")
        order = RentOrder(lease_s=600 + n * 60)
        await self.one.service.create(self.one.renter, offers[n % len(offers)], order)

    async def do_reserve(self, n: int) -> None:
        await self.one.service.reserve(
            self.one.renter, 2 + n % 4, OfferFilter(), RentOrder(lease_s=900), provider="vastai"
        )

    async def do_destroy(self, n: int) -> None:
        live = await self.one.service.rentals(user_id="u1", is_live_only=True)
        if live:
            one = live[n % len(live)]
            await self.one.service.destroy(one.provider, one.id, user_id="u1")

    async def do_fault(self, n: int) -> None:
        kind, service, route = FAULTS[n % len(FAULTS)]
        fault: dict[str, Any] = {"service": service, "kind": kind, "times": 1 + n % 3}
        if route is not None:
            fault["route"] = route
        if kind == "create_timed_out":
            fault["seconds"] = 2
        self.twin.faults.add(fault)

    async def do_minutes(self, n: int) -> None:
        await self.one.live_on(n * 15, step_s=30)

    async def do_kill(self, n: int) -> None:
        self.killer.at = self.killer.passed + 1 + n % 16

    def truth(self) -> dict[str, Any]:
        return {PREFIXES[name]: self.twin.truth()["services"][name] for name in PREFIXES}

    async def end(self) -> None:
        self.killer.at = NEVER
        self.twin.faults.clear()
        await self.start_again()
        await self.one.live_on(300, step_s=10)
        for rental in await self.one.service.rentals(user_id=None, is_live_only=True):
            await self.one.service.destroy(rental.provider, rental.id, user_id=None)
        await self.one.live_on(120, step_s=10)
        await self.check()

    async def check(self) -> None:
        """Nothing of ours runs; the ledger has what the markets bill."""
        await self.one.check_money()
        rentals = await self.one.all()
        assert not [rental for rental in rentals if rental.is_live]
        wallet = await self.one.wallets.find("w1")
        assert (wallet.leased_musd, wallet.used_musd) == (0, sum(one.charged_musd for one in rentals))
        for name, truth in self.truth().items():
            assert (truth["live"], truth["cost_musd_per_h"]) == (0, 0)
            real = {str(one["id"]): one for one in truth["instances"]}
            rows = await self.one.sql(
                "SELECT CAST(COALESCE(SUM(amount_musd), 0) AS BIGINT) AS musd FROM ledger_postings "
                "WHERE account = :account",
                account=f"cost.{name}",
            )
            # Of each instance we do not see: its disk before it ran, and the time between two looks.
            most = sum(
                one["cost_musd_per_h"] * 0
                + one["disk_musd_per_h"] / 4
                + one["gpu_musd_per_h"] * 60 / 3600
                + 100
                for one in real.values()
            )
            assert abs(rows[0].musd - truth["cost_musd"]) <= most, (name, rows[0].musd, truth["cost_musd"])


@asynccontextmanager
async def world_on(database: Database) -> AsyncIterator[TwinWorld]:
    clock = FakeClock()
    options = TwinOptions({"vast": 0, "ionet": 0}, credit_musd=1000 * MUSD)
    async with running_twin(options, clock=clock) as twin, Tasks() as tasks:
        world = TwinWorld(database, tasks, twin, clock)
        try:
            await world.open()
            yield world
        finally:
            for provider in world.providers.values():
                await provider.close()


@pytest.mark.parametrize("name", ["vast.ai", "io.net"])
async def test_a_rental_at_a_stand_in_costs_what_it_bills(database: Database, name: str) -> None:
    async with world_on(database) as world:
        offer = (await world.offers(name))[0]
        rental = await world.one.service.create(world.one.renter, offer, RentOrder(lease_s=3600))
        await world.one.live_on(900)
        running = await world.one.one(rental.id)
        assert (running.state, running.clock) == ("ready", "ours" if name == "vast.ai" else "provider")
        await world.one.service.destroy(name, rental.contract_id, user_id="u1")
        await world.one.live_on(60)
        await world.check()
        ended = await world.one.one(rental.id)
        assert ended.charged_musd == ended.cost_musd > 0


@pytest.mark.parametrize("at", [0, 3, 4, 9, 15])
@pytest.mark.parametrize("kind", ["create_500_done", "create_timed_out", "reset"])
async def test_sixteen_with_a_fault_are_all_given_back(sqlite_database: Database, kind: str, at: int) -> None:
    async with world_on(sqlite_database) as world:
        before = await world.one.wallets.find("w1")
        made = 0

        original = world.providers["vast.ai"].create

        async def counted(*arguments: Any) -> str:
            nonlocal made
            if made == at:
                fault: dict[str, Any] = {"service": "vast", "kind": kind, "route": "create", "times": 1}
                world.twin.faults.add(fault | ({"seconds": 2} if kind == "create_timed_out" else {}))
            made += 1
            return await original(*arguments)

        world.providers["vast.ai"].create = counted  # type: ignore[method-assign]
        done = await world.one.service.reserve(
            world.one.renter, 16, OfferFilter(), RentOrder(lease_s=600), provider="vast"
        )
        assert (done.is_rolled_back, done.rentals) == (True, []), done.errors
        await world.one.live_on(300, step_s=10)
        assert await world.one.wallets.find("w1") == before
        await world.check()


@settings(
    max_examples=int(os.environ.get("RENTING_EXAMPLES", "8")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(step, min_size=3, max_size=16))
def test_nothing_leaks_at_the_stand_ins(tmp_path: Path, steps: list[tuple[str, int]]) -> None:
    folder = tmp_path / str(next(numbers))
    folder.mkdir()
    make_sqlite(folder / "gpuproxy.db")

    async def run() -> None:
        async with opened(StorageSettings(), folder) as database, world_on(database) as world:
            for what, n in steps:
                await world.do(what, n)
            await world.end()

    asyncio.run(run())
