"""Reservations: all or none, distinct machines, a wallet as before after a roll-back."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from appliance.base.errors import ApplianceError, Conflict, Invalid, PaymentRequired
from appliance.base.tasks import Tasks
from appliance.market.rental_types import RentOrder, Reserved
from appliance.market.types import OfferFilter
from appliance.storage.database import Database
from tests.market.renting import Renting

ORDER = RentOrder(lease_s=3600)
MANY: dict[str, Any] = {
    "rent_max_per_user": 100,
    "rent_max_launches_per_h": 1000,
    "rent_max_instances": 100,
    "rent_max_usd_per_h": "500",
}


@pytest.fixture
async def renting(database: Database) -> AsyncIterator[Renting]:
    async with Tasks() as tasks:
        one = Renting(database, tasks, **MANY)
        one.market.add_offers(40, machines=30)
        await one.open()
        yield one


async def reserve(
    renting: Renting,
    count: int,
    wanted: OfferFilter | None = None,
    *,
    is_partial: bool = False,
    key: str = "",
) -> Reserved:
    return await renting.service.reserve(
        renting.renter,
        count,
        wanted or OfferFilter(),
        ORDER,
        is_partial=is_partial,
        idempotency_key=key,
    )


async def end_all(renting: Renting) -> None:
    for rental in await renting.all():
        await renting.service.destroy("vast.ai", rental.id, user_id="u1")
    await renting.live_on(60)
    await renting.check_ended()


async def test_sixteen_are_reserved_on_distinct_machines(renting: Renting) -> None:
    done = await reserve(renting, 16)
    assert len(done.rentals) == done.requested == 16
    assert not done.is_rolled_back
    assert len({one.machine_id for one in done.rentals}) == 16
    assert (await renting.wallets.find("w1")).leased_musd == 16 * 300_000
    await renting.live_on(60)
    assert {one.state for one in await renting.all()} == {"ready"}
    await end_all(renting)


async def test_machines_are_used_twice_where_there_are_too_few(renting: Renting) -> None:
    renting.market.offers_here.clear()
    renting.market.add_offers(8, machines=3)
    done = await reserve(renting, 5)
    machines = [one.machine_id for one in done.rentals]
    assert (len(machines), len(set(machines))) == (5, 3)


@pytest.mark.parametrize("count", [0, -1, 17])
async def test_a_count_out_of_range_is_refused(renting: Renting, count: int) -> None:
    with pytest.raises(Invalid, match=r"^Count must be between 1 and 16$"):
        await reserve(renting, count)


async def test_too_few_offers_are_refused_with_their_number(renting: Renting) -> None:
    renting.market.offers_here[2:] = []
    with pytest.raises(Invalid, match="3 instances are asked for") as caught:
        await reserve(renting, 3)
    assert caught.value.details["error_fields"] == {"requested": 3, "available": 2}
    done = await reserve(renting, 3, is_partial=True)
    assert (len(done.rentals), done.requested) == (2, 3)


async def test_one_debit_for_all_is_refused_as_a_whole(database: Database) -> None:
    async with Tasks() as tasks:
        renting = Renting(database, tasks, **MANY)
        renting.market.add_offers(4)
        await renting.open(dollars=0.89)
        with pytest.raises(PaymentRequired, match=r"0\.90 dollars are set aside"):
            await reserve(renting, 3)
        assert await renting.all() == []
        assert renting.market.calls == []
        assert await renting.sql("SELECT * FROM reservations") == []


async def test_the_next_offer_takes_the_place_of_one_that_is_gone(renting: Renting) -> None:
    renting.market.faults["create"] = ["gone", "", "gone", "refused", ""]
    done = await reserve(renting, 4)
    assert (len(done.rentals), len(done.errors)) == (4, 3)
    assert len({one.offer_id for one in done.rentals}) == 4
    await end_all(renting)


async def test_a_dearer_next_offer_is_held_for(renting: Renting) -> None:
    renting.market.offers_here.clear()
    renting.market.add_offers(2)
    renting.market.add_offers(1, price=2_000_000)
    renting.market.faults["create"] = ["gone"]
    done = await reserve(renting, 2)
    assert sorted(one.held_musd for one in done.rentals) == [300_000, 600_000]
    assert (await renting.wallets.find("w1")).leased_musd == 900_000


async def test_at_most_three_tries_for_each_are_made(renting: Renting) -> None:
    renting.market.faults["create"] = ["gone"] * 100
    before = await renting.wallets.find("w1")
    done = await reserve(renting, 3)
    assert (done.is_rolled_back, done.rentals, len(done.errors)) == (True, [], 9)
    assert renting.market.calls.count("create") == 9
    assert await renting.wallets.find("w1") == before
    await renting.check_ended()


@pytest.mark.parametrize("at", range(16))
@pytest.mark.parametrize("fault", ["unknown_made", "unknown_nothing", "unknown_late", "crash"])
async def test_a_fault_at_any_creation_gives_all_back(sqlite_database: Database, fault: str, at: int) -> None:
    async with Tasks() as tasks:
        renting = Renting(sqlite_database, tasks, **MANY)
        renting.market.add_offers(40)
        await renting.open()
        renting.market.faults["create"] = [""] * at + [fault]
        renting.market.faults["destroy"] = ["", "unknown", "lies"]
        before = await renting.wallets.find("w1")
        done = await reserve(renting, 16)
        assert (done.is_rolled_back, done.rentals, done.requested) == (True, [], 16)
        assert {one.state for one in done.unconfirmed} <= {"destroying", "unknown"}
        after = await renting.wallets.find("w1")
        assert after.used_musd == before.used_musd == 0
        await renting.live_on(300)
        assert await renting.wallets.find("w1") == before
        await renting.check_ended()
        [row] = await renting.sql("SELECT state FROM reservations")
        assert row.state == "rolled_back"
        cost = renting.market.cost_of_ours_musd()
        assert abs(await renting.cost_in_ledger() - cost) <= 16 * 5_000


async def test_all_is_given_back_in_both_databases(renting: Renting) -> None:
    renting.market.faults["create"] = ["", "", "unknown_made"]
    before = await renting.wallets.find("w1")
    done = await reserve(renting, 6)
    assert done.is_rolled_back
    await renting.live_on(300)
    assert await renting.wallets.find("w1") == before
    await renting.check_ended()


async def test_with_partial_what_there_is_stays(renting: Renting) -> None:
    renting.market.faults["create"] = ["", "unknown_late", "", ""]
    done = await reserve(renting, 4, is_partial=True)
    assert (len(done.rentals), done.is_rolled_back) == (3, False)
    await renting.live_on(300)
    assert len(renting.market.alive_of_ours()) == 3
    assert {one.state for one in await renting.all()} == {"ready", "failed"}
    await end_all(renting)


async def test_a_reservation_that_takes_too_long_is_given_back(renting: Renting) -> None:
    create = renting.market.create

    async def slow(*arguments: object) -> str:
        renting.clock.advance(25)
        renting.market.faults["create"] = ["gone"]
        return await create(*arguments)  # type: ignore[arg-type]

    renting.market.create = slow  # type: ignore[method-assign]
    done = await reserve(renting, 2)
    assert done.is_rolled_back
    assert renting.market.calls.count("create") <= 5
    await renting.check_ended()


async def test_the_same_key_reserves_once(renting: Renting) -> None:
    first = await reserve(renting, 3, key="k")
    again = await reserve(renting, 3, key="k")
    assert {one.id for one in again.rentals} == {one.id for one in first.rentals}
    with pytest.raises(Conflict, match="another order"):
        await reserve(renting, 2, key="k")
    assert len(renting.market.machines) == 3


async def test_reservations_at_once_stay_within_limits_and_credits(database: Database) -> None:
    async with Tasks() as tasks:
        renting = Renting(database, tasks, **{**MANY, "rent_max_per_user": 10})
        renting.market.add_offers(40)
        await renting.open(dollars=2.4)  # for 8
        done = await asyncio.gather(*(reserve(renting, 3) for _ in range(6)), return_exceptions=True)
        made = [one for one in done if isinstance(one, Reserved)]
        assert len(made) == 2
        assert all(isinstance(one, ApplianceError) for one in done if not isinstance(one, Reserved))
        assert len(renting.market.alive_of_ours()) == 6
        await end_all(renting)


async def test_a_batch_keeps_what_it_could_rent(renting: Renting) -> None:
    renting.market.faults["create"] = ["gone", "", "refused"]
    done = await renting.service.batch(renting.renter, {"vastai": 3}, OfferFilter(), ORDER)
    assert [len(rentals) for rentals in done.rentals.values()] == [1]
    assert len(done.errors) == 2
    with pytest.raises(Invalid, match="allowed are 0 to 8"):
        await renting.service.batch(renting.renter, {"vastai": 9}, OfferFilter(), ORDER)
    await end_all(renting)
