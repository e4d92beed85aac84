"""Rentals from order to end: what is created, seen, paid and destroyed, at a market that answers and one that does not."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from appliance.accounts.wallets import Wallets
from appliance.base.errors import (
    ApplianceError,
    Conflict,
    Exhausted,
    Invalid,
    NotFound,
    PaymentRequired,
    Unavailable,
)
from appliance.base.tasks import Tasks
from appliance.market.rental_types import Rental, RentOrder
from appliance.market.types import MarketRefused, MarketUnknown, OfferGone
from appliance.storage.database import Database
from tests.market.renting import Renting

ORDER = RentOrder(environ={"HF_TOKEN": "hf-secret"}, lease_s=3600)


@pytest.fixture
async def renting(database: Database) -> AsyncIterator[Renting]:
    async with Tasks() as tasks:
        one = Renting(database, tasks)
        one.market.add_offers(6)
        await one.open()
        yield one


async def create(renting: Renting, order: RentOrder = ORDER, **more: str) -> Rental:
    return await renting.service.create(renting.renter, renting.market.offers_here[0], order, **more)


async def test_a_rental_is_created_runs_is_paid_and_ends(renting: Renting) -> None:
    rental = await create(renting)
    assert (rental.state, rental.contract_id) == ("starting", "101")
    assert rental.held_musd == 300_000  # 15 minutes of 1.20 dollars
    assert (await renting.wallets.find("w1")).leased_musd == 300_000
    await renting.live_on(60)
    running = await renting.one(rental.id)
    assert (running.state, running.clock, running.host) == ("ready", "provider", "192.0.2.7")
    await renting.live_on(1800)
    await renting.service.destroy("vastai", "vast-7000", user_id="u1")
    await renting.live_on(30)
    ended = await renting.one(rental.id)
    assert (ended.state, ended.end_reason, ended.secrets) == ("gone", "asked", "{}")
    paid_ms = ended.billed_until - ended.billed_from  # type: ignore[operator]
    assert ended.charged_musd == -(-1_200_000 * paid_ms // 3_600_000)
    assert abs(paid_ms - 1_835_000) <= 5000
    wallet = await renting.wallets.find("w1")
    assert wallet.used_musd == ended.charged_musd
    await renting.check_ended()
    assert abs(await renting.cost_in_ledger() - renting.market.cost_of_ours_musd()) <= 5
    quota = await renting.quotas.view("u1")
    assert quota["used_gpu_hours"] == round(paid_ms / 3_600_000, 2)
    [row] = await renting.sql("SELECT * FROM gpu_usage")
    assert (row.billing_id, row.cost_musd, row.end_time) == (
        rental.id,
        ended.charged_musd,
        ended.billed_until,
    )
    rows = await renting.sql("SELECT * FROM usage ORDER BY at")
    assert {(row.kind, row.source, row.backend) for row in rows} == {("gpu", "provider", "vast.ai")}
    assert len(rows) == 7  # every five minutes, and at its end
    assert renting.events.kinds() == [
        "rental.starting",
        "rental.ready",
        "rental.ending",
        "rental.gone",
    ]


async def test_the_lease_ends_after_warnings(renting: Renting) -> None:
    rental = await create(renting)
    await renting.live_on(3700)
    ended = await renting.one(rental.id)
    assert (ended.state, ended.end_reason) == ("gone", "lease_ended")
    assert renting.events.kinds().count("rental.lease_ends") == 2
    assert ended.charged_musd <= 1_200_000
    await renting.check_ended()


async def test_a_renewed_lease_ends_later(renting: Renting) -> None:
    rental = await create(renting)
    await renting.live_on(3400)
    await renting.service.renew("vast.ai", rental.contract_id, 1800, user_id="u1")
    await renting.live_on(1700)
    assert (await renting.one(rental.id)).state == "ready"
    await renting.live_on(400)
    assert (await renting.one(rental.id)).state == "gone"
    assert renting.events.kinds().count("rental.lease_ends") == 3


async def test_a_lease_is_not_renewed_beyond_what_is_allowed(renting: Renting) -> None:
    rental = await create(renting)
    with pytest.raises(Invalid, match="stops itself 3600 s after its present lease"):
        await renting.service.renew("vast.ai", rental.id, 3601, user_id="u1")
    with pytest.raises(Invalid, match="allowed are 1 to 604800"):
        await renting.service.renew("vast.ai", rental.id, float("nan"), user_id="u1")
    with pytest.raises(NotFound, match="no instance"):
        await renting.service.renew("vast.ai", rental.id, 60, user_id="u2")
    await renting.service.destroy("vast.ai", rental.id, user_id="u1")
    with pytest.raises(Conflict, match="ends already"):
        await renting.service.renew("vast.ai", rental.id, 60, user_id="u1")


async def test_the_same_key_rents_once(renting: Renting) -> None:
    first = await create(renting, idempotency_key="k")
    again = await create(renting, idempotency_key="k")
    assert first.id == again.id
    with pytest.raises(Conflict, match="another order"):
        await create(renting, RentOrder(lease_s=60), idempotency_key="k")
    assert len(renting.market.machines) == 1


# ---- what does not allow it


async def refused(renting: Renting, kind: type[ApplianceError], words: str, code: str) -> None:
    before = await renting.wallets.find("w1")
    with pytest.raises(kind, match=words) as caught:
        await create(renting)
    assert caught.value.code == code
    assert renting.market.calls.count("create") == len(renting.market.machines)
    assert await renting.wallets.find("w1") == before


async def test_what_a_wallet_does_not_have_is_not_rented(database: Database) -> None:
    async with Tasks() as tasks:
        renting = Renting(database, tasks)
        renting.market.add_offers(1)
        await renting.open(dollars=0.29)
        await refused(renting, PaymentRequired, "0.30 dollars are set aside", "insufficient_credits")
        await renting.wallets.set_state("w1", "frozen")
        await refused(renting, PaymentRequired, "frozen", "wallet_frozen")


async def test_limits_on_spending_and_quotas_hold_for_rentals(database: Database) -> None:
    async with Tasks() as tasks:
        renting = Renting(database, tasks, limits={"60min": 250_000})
        renting.market.add_offers(1)
        await renting.open()
        await refused(renting, PaymentRequired, "limit on your spending", "spending_limit")
        renting = Renting(database, tasks)
        renting.market.add_offers(1)
        await renting.service.open()
        await renting.know_install()
        await renting.quotas.view("u1")
        await renting.sql("UPDATE usage_quotas SET max_gpu_seconds = 3599")
        await refused(renting, Exhausted, r"1\.00 GPU hours are needed", "quota_exceeded")
        await renting.sql("UPDATE usage_quotas SET max_gpu_seconds = 7199")
        await create(renting)
        await refused(renting, Exhausted, r"1\.00 GPU hours are needed", "quota_exceeded")


async def test_a_keys_cap_holds_for_rentals(renting: Renting) -> None:
    await renting.sql(
        "INSERT INTO api_keys(id, user_id, key_hash, prefix, spend_cap_musd, created_at) "
        "VALUES ('k1', 'u1', :hash, 'p', 500000, 1)",
        hash=b"1",
    )
    renting.renter = type(renting.renter)("u1", "w1", "k1")
    await create(renting)
    await refused(renting, PaymentRequired, "cap of your API key", "spending_limit")


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"rent_max_per_user": 1}, "rental_limit"),
        ({"rent_max_launches_per_h": 1}, "launch_limit"),
        ({"rent_max_instances": 1}, "market_full"),
        ({"rent_max_usd_per_h": "1.5"}, "market_full"),
    ],
)
async def test_the_operators_limits_hold(database: Database, settings: dict[str, Any], code: str) -> None:
    async with Tasks() as tasks:
        renting = Renting(database, tasks, **settings)
        renting.market.add_offers(2)
        await renting.open()
        await create(renting)
        with pytest.raises(ApplianceError) as caught:
            await create(renting)
        assert caught.value.code == code


async def test_a_frozen_market_rents_nothing_and_goes_on(renting: Renting) -> None:
    rental = await create(renting)
    await renting.service.freeze("a look at the bill", by="op")
    await refused(renting, Unavailable, "stopped renting: a look at the bill", "market_frozen")
    await renting.live_on(60)
    assert (await renting.one(rental.id)).state == "ready"
    await renting.service.unfreeze(by="op")
    assert (await create(renting)).state == "starting"


async def test_a_balance_for_less_than_two_hours_rents_nothing(renting: Renting) -> None:
    renting.market.credit = 1_999_999
    await renting.service.sweep()
    await refused(renting, Unavailable, "would not last 2 hours", "provider_credit")
    renting.market.credit = 2_000_000
    await renting.service.sweep()
    await create(renting)


async def test_an_unknown_listing_stops_launching_after_a_minute(renting: Renting) -> None:
    rental = await create(renting)
    renting.market.faults["list"] = ["unknown"] * 100
    await renting.live_on(10)
    assert (await create(renting)).state == "starting"
    await renting.live_on(70)
    await refused(renting, MarketUnknown, "does not say what runs there", "market_unknown")
    assert [alarm.kind for alarm in await renting.service.alarms()] == ["market_unknown"]
    assert (await renting.one(rental.id)).state == "ready"
    renting.market.faults["list"].clear()
    await renting.live_on(20)
    assert await renting.service.alarms() == []
    await create(renting)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (RentOrder(lease_s=59), "lease_s is 59"),
        (RentOrder(lease_s=float("inf")), "lease_s is inf"),
        (RentOrder(lease_s=120, longest_s=60), "below lease_s"),
        (RentOrder(max_cost_musd=0), "max_cost must be above 0"),
        (RentOrder(image=""), "image is ''"),
        (RentOrder(image="a b"), "image is 'a b'"),
        (RentOrder(disk_gb=0), "disk_gb is 0"),
        (RentOrder(onstart="x" * 3001), "longer than 3000 bytes"),
        (RentOrder(ports=(0,)), "ports must be"),
        (RentOrder(command=("x" * 5000,)), "command has more"),
        (RentOrder(environ={"a=b": "c"}), "env must have"),
    ],
)
async def test_an_impossible_order_is_refused(
    sqlite_database: Database, order: RentOrder, words: str
) -> None:
    async with Tasks() as tasks:
        renting = Renting(sqlite_database, tasks)
        renting.market.add_offers(1)
        await renting.open()
        with pytest.raises(Invalid, match=words):
            await create(renting, order)
        assert renting.market.calls == []


# ---- what markets do


@pytest.mark.parametrize(("fault", "kind"), [("gone", OfferGone), ("refused", MarketRefused)])
async def test_what_was_clearly_not_created_costs_nothing(
    renting: Renting, fault: str, kind: type[ApplianceError]
) -> None:
    renting.market.faults["create"] = [fault]
    with pytest.raises(kind):
        await create(renting, idempotency_key="k")
    with pytest.raises(kind):
        await create(renting, idempotency_key="k")
    assert renting.market.calls.count("create") == 1
    await renting.check_ended()


@pytest.mark.parametrize("fault", ["unknown_made", "unknown_late", "crash"])
async def test_what_may_have_been_created_is_found_by_its_label(renting: Renting, fault: str) -> None:
    renting.market.faults["create"] = [fault]
    with pytest.raises(MarketUnknown, match="being looked for") as caught:
        await create(renting)
    rental_id = caught.value.details["rental_id"]
    assert (await renting.one(rental_id)).state == "unknown"
    await renting.live_on(90)
    assert (await renting.one(rental_id)).state == "ready"
    assert renting.market.calls.count("create") == len(renting.market.machines) == 1
    await renting.service.destroy("vast.ai", rental_id, user_id="u1")
    await renting.live_on(30)
    await renting.check_ended()


async def test_what_was_not_created_fails_after_three_minutes(renting: Renting) -> None:
    renting.market.faults["create"] = ["unknown_nothing"]
    with pytest.raises(MarketUnknown):
        await create(renting)
    await renting.live_on(175)
    [rental] = await renting.all()
    assert (rental.state, rental.held_musd) == ("unknown", 300_000)
    await renting.live_on(30)
    [rental] = await renting.all()
    assert (rental.state, rental.end_reason) == ("failed", "not_created")
    assert renting.market.calls.count("create") == 1
    await renting.check_ended()


async def test_an_unknown_creation_stays_so_while_listings_are_unknown(renting: Renting) -> None:
    renting.market.faults["create"] = ["unknown_made"]
    renting.market.faults["list"] = ["unknown"] * 200
    with pytest.raises(MarketUnknown):
        await create(renting)
    await renting.live_on(1200)
    [rental] = await renting.all()
    assert rental.state == "unknown"
    renting.market.faults["list"].clear()
    await renting.live_on(60)
    [rental] = await renting.all()
    assert rental.state == "ready"


async def test_an_end_that_is_asked_for_meanwhile_destroys_what_is_found(renting: Renting) -> None:
    renting.market.faults["create"] = ["unknown_late"]
    with pytest.raises(MarketUnknown):
        await create(renting)
    [rental] = await renting.all()
    await renting.service.destroy("vast.ai", rental.id, user_id="u1")
    await renting.live_on(120)
    assert (await renting.one(rental.id)).state == "gone"
    assert (await renting.wallets.find("w1")).used_musd == 0
    await renting.check_ended()


async def test_a_stuck_start_is_replaced_elsewhere(renting: Renting) -> None:
    renting.market.faults["create"] = ["stuck"]
    rental = await create(renting)
    await renting.live_on(960, step_s=10)
    old, new = await renting.one(rental.id), (await renting.all())[0]
    assert (old.state, old.end_reason, old.charged_musd) == ("failed", "start_timeout", 0)
    assert (new.replaces, new.state, new.start_tries) == (rental.id, "ready", 2)
    assert new.machine_id != old.machine_id
    assert renting.market.machines[new.contract_id].label == new.label
    await renting.service.destroy("vast.ai", new.id, user_id="u1")
    await renting.live_on(30)
    await renting.check_ended()


async def test_three_failed_starts_pause_launching(renting: Renting) -> None:
    renting.market.faults["create"] = ["stuck"] * 3
    await create(renting)
    await renting.live_on(2800, step_s=10)
    assert [one.start_tries for one in await renting.all()] == [3, 2, 1]
    await refused(renting, Unavailable, "3 instances in a row did not start", "launches_paused")
    await renting.live_on(900, step_s=10)
    await create(renting)


async def test_an_instance_that_stops_is_destroyed_and_not_paid_for(renting: Renting) -> None:
    renting.market.faults["create"] = ["exits"]
    rental = await create(renting)
    await renting.live_on(240)
    ended = await renting.one(rental.id)
    assert (ended.state, ended.end_reason) == ("failed", "instance_failed")
    ran_ms = ended.billed_until - ended.billed_from  # type: ignore[operator]
    assert 60_000 <= ran_ms <= 95_000
    assert ended.charged_musd == -(-1_200_000 * ran_ms // 3_600_000)
    await renting.check_ended()


async def test_an_instance_that_vanishes_is_lost_and_an_alarm(renting: Renting) -> None:
    renting.market.faults["create"] = ["vanishes"]
    rental = await create(renting)
    await renting.live_on(200)
    ended = await renting.one(rental.id)
    assert (ended.state, ended.alarm) == ("lost", "lost")
    assert ended.billed_until == ended.last_seen_at
    assert [alarm.kind for alarm in await renting.service.alarms()] == ["lost"]
    assert "rental.lost" in renting.events.kinds(None)
    await renting.check_ended()


async def test_a_single_no_such_instance_ends_nothing(renting: Renting) -> None:
    rental = await create(renting)
    await renting.live_on(60)
    renting.market.faults["get"] = ["none"]
    await renting.live_on(120)
    assert (await renting.one(rental.id)).state == "ready"


async def test_unknown_answers_end_nothing_and_the_time_is_paid_later(renting: Renting) -> None:
    rental = await create(renting)
    await renting.live_on(60)
    renting.market.faults["get"] = ["unknown"] * 10_000
    renting.market.faults["list"] = ["unknown"] * 10_000
    await renting.live_on(1500)
    running = await renting.one(rental.id)
    assert running.state == "ready"
    assert running.held_musd >= running.price_musd_per_h * 1500 // 3600  # what it cost meanwhile, and more
    renting.market.faults.clear()
    await renting.live_on(60)
    paid = await renting.one(rental.id)
    assert paid.cost_musd == paid.charged_musd >= paid.price_musd_per_h * 1500 // 3600


async def test_a_destruction_is_repeated_until_it_is_certain(renting: Renting) -> None:
    rental = await create(renting)
    await renting.live_on(60)
    renting.market.faults["destroy"] = ["unknown", "lies", "refused", "unknown", "unknown_done"]
    await renting.service.destroy("vast.ai", rental.id, user_id="u1")
    assert (await renting.one(rental.id)).state == "destroying"
    charged = (await renting.one(rental.id)).charged_musd
    await renting.live_on(300)
    ended = await renting.one(rental.id)
    assert (ended.state, ended.charged_musd) == ("gone", charged)
    assert renting.market.calls.count("destroy") == 5
    await renting.check_ended()
    assert abs(await renting.cost_in_ledger() - renting.market.cost_of_ours_musd()) <= 5


async def test_a_destruction_that_is_stuck_is_an_alarm_and_goes_on(renting: Renting) -> None:
    rental = await create(renting)
    renting.market.faults["destroy"] = ["lies"] * 30
    await renting.service.destroy("vast.ai", rental.id, user_id="u1")
    await renting.live_on(595)
    assert await renting.service.alarms() == []
    await renting.live_on(70)
    assert [(alarm.kind, alarm.subject) for alarm in await renting.service.alarms()] == [
        ("destroy_stuck", rental.id)
    ]
    renting.market.faults["destroy"].clear()
    await renting.live_on(120)
    assert await renting.service.alarms() == []
    await renting.check_ended()


async def test_gone_is_believed_only_twice(renting: Renting) -> None:
    rental = await create(renting)
    await renting.live_on(60)
    renting.market.faults["destroy"] = ["lies"]
    renting.market.faults["get"] = ["none"]
    await renting.service.destroy("vast.ai", rental.id, user_id="u1")
    await renting.live_on(5)
    assert (await renting.one(rental.id)).state == "destroying"
    await renting.live_on(60)
    await renting.check_ended()


# ---- money that ends


async def test_a_wallet_that_is_empty_ends_its_rental(database: Database) -> None:
    async with Tasks() as tasks:
        renting = Renting(database, tasks)
        renting.market.add_offers(1)
        await renting.open(dollars=0.5)  # 25 minutes
        rental = await create(renting)
        await renting.live_on(2000)
        ended = await renting.one(rental.id)
        assert (ended.state, ended.end_reason) == ("gone", "credits")
        assert 300_000 <= ended.charged_musd == ended.cost_musd <= 500_000
        assert (await renting.wallets.find("w1")).used_musd == ended.charged_musd
        await renting.check_ended()


async def test_a_deleted_users_rentals_end(renting: Renting) -> None:
    rental = await create(renting)
    await renting.live_on(60)
    await renting.wallets.set_state("w1", "closed")
    await renting.live_on(60)
    ended = await renting.one(rental.id)
    assert (ended.state, ended.end_reason) == ("gone", "user_deleted")
    assert ended.charged_musd == ended.cost_musd > 0
    await renting.check_ended()


async def test_what_others_set_aside_and_do_not_use_is_asked_for(database: Database) -> None:
    async with Tasks() as tasks:
        renting = Renting(database, tasks)
        renting.market.add_offers(1)
        await renting.open(dollars=1)
        other = Wallets(database, renting.clock, "r2")
        await other.lease("w1", least_musd=900_000, want_musd=900_000, most_musd=900_000)

        async def reclaim(wallet_id: str) -> None:
            await other.give_back(wallet_id, 900_000)

        renting.payments.reclaim = reclaim  # type: ignore[method-assign]
        assert (await create(renting)).state == "starting"
        await renting.check_money()


async def test_a_ceiling_is_told_before_and_never_passed(renting: Renting) -> None:
    rental = await create(renting, RentOrder(lease_s=7200, max_cost_musd=600_000))
    await renting.live_on(2400)
    ended = await renting.one(rental.id)
    assert (ended.state, ended.end_reason) == ("gone", "max_cost")
    assert 500_000 <= ended.charged_musd <= 600_000
    kinds = renting.events.kinds()
    assert kinds.index("rental.ceiling_near") < kinds.index("rental.ending")
    await renting.check_ended()


async def test_what_is_paid_ahead_is_held_whole_and_paid_at_the_end(renting: Renting) -> None:
    renting.market.offers_here.clear()
    renting.market.add_offers(1, prepaid_hours=2)
    rental = await create(renting)
    assert rental.held_musd == 2_400_000
    await renting.live_on(1800)
    await renting.service.destroy("vast.ai", rental.id, user_id="u1")
    await renting.live_on(30)
    ended = await renting.one(rental.id)
    assert (ended.state, ended.charged_musd, ended.supply_musd) == ("gone", 2_400_000, 2_000_000)
    await renting.check_ended()
    assert await renting.cost_in_ledger() == 2_000_000


async def test_a_clock_that_is_wrong_is_not_believed(renting: Renting) -> None:
    rental = await create(renting)
    renting.market.machines[rental.contract_id].running_at -= 300_000  # type: ignore[operator]
    await renting.live_on(20)
    running = await renting.one(rental.id)
    assert (running.state, running.clock) == ("ready", "ours")
    assert running.billed_from >= rental.created_at  # type: ignore[operator]


# ---- what belongs to no rental


async def test_an_orphan_of_ours_is_destroyed_and_others_are_not(renting: Renting) -> None:
    install_id = (await renting.service.state()).install_id
    foreign = [
        renting.market.add_foreign(label)
        for label in ("", "theirs", "apl-00000000-0193", f"apl-{install_id}", f"apl-{install_id}-x")
    ]
    one = renting.market._make(
        renting.market.offers_here[0], f"apl-{install_id}-01936c3e-1234-7abc-8def-0123456789ab"
    )
    report = await renting.service.sweep()
    assert (report.orphans, report.destroyed, report.providers) == ([one.contract_id], [], {"vast.ai": 1})
    await renting.live_on(90)
    assert one.ended_at is not None
    assert [machine.contract_id for machine in renting.market.alive()] == foreign
    assert abs(await renting.cost_in_ledger() - renting.market.cost_of_ours_musd()) <= 20_000


async def test_an_instance_that_appears_after_its_rental_failed_is_destroyed(renting: Renting) -> None:
    renting.market.faults["create"] = ["unknown_late"]
    with pytest.raises(MarketUnknown):
        await create(renting)
    renting.market.machines["101"].visible_at += 600_000
    await renting.live_on(300)
    assert (await renting.all())[0].state == "failed"
    await renting.live_on(900)
    await renting.check_ended()


async def test_the_appliance_may_end_all_when_it_stops(database: Database) -> None:
    async with Tasks() as tasks:
        renting = Renting(database, tasks, rent_on_shutdown="destroy")
        renting.market.add_offers(2)
        await renting.open()
        await create(renting)
        await create(renting)
        await renting.service.close()
        await renting.check_ended()
        assert {one.end_reason for one in await renting.all()} == {"shutdown"}


async def test_rentals_stay_when_the_appliance_stops(renting: Renting) -> None:
    await create(renting)
    await renting.service.close()
    assert len(renting.market.alive_of_ours()) == 1


async def test_logs_and_loads_are_those_of_the_instance(renting: Renting) -> None:
    rental = await create(renting)
    assert await renting.service.logs("vastai", rental.contract_id, user_id="u1") == "log of 101"
    with pytest.raises(NotFound):
        await renting.service.logs("vastai", rental.contract_id, user_id="u2")
    loads = await renting.service.loads()
    assert list(loads) == ["vast-7000"]
    assert (loads["vast-7000"]["provider"], loads["vast-7000"]["weight"]) == ("vast.ai", 1.5)


async def test_the_dead_mans_timer_stands_before_the_users_script(renting: Renting) -> None:
    from appliance.market.launches import launch_of

    rental = await create(renting, RentOrder(onstart="echo hello", lease_s=600))
    launch = launch_of(rental)
    end_s = rental.created_at // 1000 + 600 + 3600
    assert f"-lt {end_s} ]" in launch.onstart
    assert launch.onstart.endswith("echo hello")
    assert len(launch.onstart.encode()) < 4096
