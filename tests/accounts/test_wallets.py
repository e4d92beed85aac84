"""Leases, grants, payments, periods and settlements on both databases; after each, the money is right."""

import asyncio
import random

import pytest

from appliance.accounts import ledger
from appliance.accounts.audit import find_differences
from appliance.accounts.ledger import LedgerEntry
from appliance.accounts.renewals import Renewal, next_period_end_ms, renew, renew_due, renewal_of
from appliance.accounts.wallets import Wallet
from appliance.base.errors import Conflict, Invalid, NotFound
from appliance.storage.database import Database, Transaction
from tests.accounts.money import NOON_MS, Money, settlement

DAY_MS = 86_400_000


def ask(least: int, want: int = 1, most: int = 1) -> dict[str, int]:
    return {"least_musd": least, "want_musd": want, "most_musd": most}


# ---- leases


@pytest.mark.parametrize(
    ("headroom", "asked", "granted"),
    [
        (1000, ask(1, 1, 250), 250),
        (10_000, ask(1, 1, 250), 250),
        (400, ask(1, 1, 250), 100),
        (3, ask(1, 1, 250), 1),
        (1000, ask(300, 300), 300),
        (1000, ask(300, 2000), 1000),
        (299, ask(300, 300), 0),
        (0, ask(1), 0),
    ],
)
async def test_size_of_a_lease_in_the_database(
    database: Database, headroom: int, asked: dict[str, int], granted: int
) -> None:
    money = Money(database)
    await money.open("w1", extra=headroom)
    answer = await money.wallets.lease("w1", **asked)
    assert (answer.granted_musd, answer.headroom_musd) == (granted, headroom - granted)
    assert answer.reason == ("" if granted else "credits")
    assert not answer.is_elsewhere
    wallet = await money.wallets.find("w1")
    assert wallet.leased_musd == granted
    assert await money.wallets.own_leases(["w1", "w2"]) == ({"w1": granted} if granted else {})
    await money.check()


async def test_leases_are_given_back_in_part_and_whole(database: Database) -> None:
    one, two = Money(database), Money(database, "r2")
    await one.open("w1", extra=1000)
    await one.wallets.lease("w1", **ask(400, 400))
    assert (await two.wallets.lease("w1", **ask(100, 100))).is_elsewhere
    assert await one.wallets.give_back("w1", 150)
    assert not await one.wallets.give_back("w1", 251)
    assert await two.wallets.give_back_all("w1") == 100
    assert await two.wallets.give_back_all("w1") == 0
    assert (await one.wallets.find("w1")).leased_musd == 250
    assert await one.wallets.give_all_leases_back() == 250
    assert (await one.wallets.find("w1")).leased_musd == 0
    await one.check()


async def test_frozen_and_unknown_wallets_lend_nothing(database: Database) -> None:
    money = Money(database)
    await money.open("w1", extra=1000)
    assert (await money.wallets.set_state("w1", "frozen")).state == "frozen"
    assert (await money.wallets.lease("w1", **ask(1))).reason == "wallet_frozen"
    assert (await money.wallets.lease("none", **ask(1))).reason == "wallet_unknown"
    with pytest.raises(Invalid, match="allowed are active, frozen, closed"):
        await money.wallets.set_state("w1", "gone")
    with pytest.raises(NotFound, match="There is no wallet 'none'"):
        await money.wallets.find("none")


async def test_limits_on_spending_bound_leases_of_all_replicas(database: Database) -> None:
    one, two = (Money(database, name, **{"5min": 300, "72h": 1000}) for name in ("r1", "r2"))
    await one.open("w1", extra=10_000)
    assert (await one.wallets.lease("w1", **ask(200, 200))).granted_musd == 200
    assert (await two.wallets.lease("w1", **ask(50, 150))).granted_musd == 100
    refused = await two.wallets.lease("w1", **ask(1))
    assert (refused.granted_musd, refused.reason) == (0, "spending_limit")
    await one.usage.settle([settlement(1, charged=200)])
    assert (await one.wallets.lease("w1", **ask(1))).reason == "spending_limit"
    one.clock.advance(601)
    assert (await one.wallets.lease("w1", **ask(150, 150))).granted_musd == 150
    await one.check()


async def test_leases_of_dead_replicas_are_taken_back(database: Database) -> None:
    dead, live = Money(database, "dead"), Money(database, "live")
    await dead.open("w1", extra=1000)
    await dead.wallets.heartbeat("host", "1")
    await live.wallets.heartbeat()
    await dead.wallets.lease("w1", **ask(400, 400))
    await live.wallets.lease("w1", **ask(100, 100))
    live.clock.advance(3600 + 599)
    await live.wallets.heartbeat()
    assert await live.wallets.take_back(3600) == 0
    live.clock.advance(2)
    assert await live.wallets.take_back(3600) == 400
    assert (await live.wallets.find("w1")).leased_musd == 100
    # it comes back, and settles what it had used, and what was not held: from what the wallet still has
    result = await dead.usage.settle([settlement(1, charged=300), settlement(2, charged=50, cost=80)])
    assert (result.new, result.late_wallets, result.uncollected_musd) == (2, {"w1"}, 0)
    assert (await live.wallets.find("w1")).used_musd == 380
    # and where the wallet has no more, it is the operator's loss
    await live.wallets.lease("w1", **ask(520, 520))
    result = await dead.usage.settle([settlement(3, charged=70)])
    assert (result.new, result.uncollected_musd) == (1, 70)
    balances = await ledger.balances(database)
    assert ("loss" in balances, balances["loss.late"]) == (False, -70)
    assert sum(balances.values()) == 0
    await live.check()


# ---- settlements


async def test_an_attempt_is_settled_once_however_often_it_is_sent(database: Database) -> None:
    money = Money(database)
    await money.open("w1", extra=1000)
    await money.wallets.lease("w1", **ask(200, 200))
    batch = [
        settlement(1, charged=30, cost=40, supply=12),
        settlement(2, charged=0),
        settlement(3, charged=5),
    ]
    assert (await money.usage.settle(batch)).new == 3
    assert (await money.usage.settle(batch)).new == 0
    assert (await money.usage.settle([*batch, settlement(4, charged=1), settlement(4, charged=1)])).new == 1
    wallet = await money.wallets.find("w1")
    assert (wallet.used_musd, wallet.leased_musd) == (46, 164)
    assert await ledger.balances(database) == {
        "cost.b": 12,
        "grants": -1000,
        "income.inference": 46,
        "payable.b": -12,
        "wallet:*": 954,
    }
    rows = await money.sql(
        "SELECT account, amount_musd FROM ledger_postings WHERE tx_id = 'usage:attempt-000001' ORDER BY n"
    )
    assert [tuple(row) for row in rows] == [
        ("wallet:w1", -40),
        ("income.inference", 40),
        ("cost.b", 12),
        ("payable.b", -12),
    ]
    await money.check()


async def test_what_was_not_held_is_taken_as_far_as_the_wallet_has_it(database: Database) -> None:
    money = Money(database)
    await money.open("w1", extra=1000)
    await money.wallets.lease("w1", **ask(200, 200))
    result = await money.usage.settle([settlement(1, charged=200, cost=700), settlement(2, cost=600)])
    assert (result.extra_musd, result.uncollected_musd, result.late_wallets) == (790, 0, {"w1"})
    wallet = await money.wallets.find("w1")
    assert (wallet.used_musd, wallet.leased_musd) == (1000, 0)
    balances = await ledger.balances(database)
    assert (balances["income.inference"], balances["loss"]) == (1300, -300)
    assert [row["cost"] for row in await money.usage.rows("w1")] == [0.0003, 0.0007]
    await money.check()


async def test_an_unknown_wallet_is_settled_as_loss(database: Database) -> None:
    money = Money(database)
    result = await money.usage.settle([settlement(1, "nowhere", charged=30)])
    assert (result.new, result.uncollected_musd) == (1, 30)
    await money.check()


async def test_what_settlements_count(database: Database) -> None:
    money = Money(database)
    await money.open("w1", extra=1000, cap=50)
    await money.wallets.lease("w1", **ask(900, 900))
    who = {"key_id": "k1", "client_id": "c1", "ip": "10.0.0.1", "user_id": "u1"}
    await money.usage.settle([settlement(1, charged=30, **who), settlement(2, charged=20, **who)])
    later = NOON_MS + 10 * 60_000
    await money.usage.settle([settlement(3, charged=7, at_ms=later, **who)])
    await money.usage.settle([settlement(4, charged=3, at_ms=later + 16 * 60_000, **who)])
    spent = await money.sql("SELECT bucket, spent_musd FROM spend_buckets ORDER BY bucket")
    assert [tuple(row) for row in spent] == [(6_000_000, 50), (6_000_002, 7), (6_000_005, 3)]
    month = await money.sql("SELECT key_id, month, spent_musd FROM key_spend")
    assert [tuple(row) for row in month] == [("k1", "2027-01", 60)]
    sessions = await money.wallets.sessions(["c1", "other"])
    assert [(one["duration"], one["credits_remaining"]) for one in sessions] == [
        (0, 0.00094),
        (600, 0.000943),
    ]
    assert sessions[1] | {"id": ""} == {
        "id": "",
        "client_id": "c1",
        "ip": "10.0.0.1",
        "date": "2027-01-15",
        "time": "08:00:00",
        "duration": 600,
        "credits_remaining": 0.000943,
        "credits_total": 0.001,
        "credits_overage": 0.0,
        "credits_cap": 0.00005,
        "credits_auto_renew": False,
        "created_at": "2027-01-15T08:00:00.000Z",
    }
    rows = await money.usage.rows("w1")
    assert [row["cost"] for row in rows] == [0.000003, 0.000007, 0.00002, 0.00003]
    assert rows[0] | {"attempt_id": "", "at": ""} == {
        "attempt_id": "",
        "at": "",
        "model": "m",
        "served_model": "s",
        "backend": "b",
        "tokens_in": 5,
        "tokens_cached": 1,
        "tokens_out": 7,
        "source": "engine",
        "price_version": 1,
        "cost": 0.000003,
    }
    assert len(await money.usage.rows("w1", limit=1)) == 1
    assert len(await money.usage.rows("w1", before_ms=later)) == 2
    first, *others = await money.usage.rows("w1")
    after_first = {"before_ms": later, "before_id": first["attempt_id"]}
    assert await money.usage.rows("w1", **after_first) == others
    await money.check()


async def test_usage_is_summed_by_groups(database: Database) -> None:
    money = Money(database)
    await money.open("w1", extra=1000)
    await money.wallets.lease("w1", **ask(900, 900))
    await money.usage.settle(
        [
            settlement(1, charged=30, cost=35, supply=9),
            settlement(2, charged=20, model="n"),
            settlement(3, charged=5, at_ms=NOON_MS + DAY_MS),
        ]
    )
    grouped = await money.usage.grouped(["model", "day"], wallet_id="w1")
    assert [(row["model"], row["day"], row["attempts"], row["cost"]) for row in grouped] == [
        ("m", "2027-01-15", 1, 0.000035),
        ("m", "2027-01-16", 1, 0.000005),
        ("n", "2027-01-15", 1, 0.00002),
    ]
    (whole,) = await money.usage.grouped([])
    assert whole == {
        "attempts": 3,
        "tokens_in": 15,
        "tokens_cached": 3,
        "tokens_out": 21,
        "cost": 0.00006,
        "loss": 0.0,
        "supply": 0.000009,
    }
    assert await money.usage.grouped(["key"], wallet_id="other") == []
    with pytest.raises(Invalid, match="allowed are model, backend, key, source, day"):
        await money.usage.grouped(["at; DROP TABLE usage"])


@pytest.mark.parametrize("replicas", [1, 3])
async def test_24_connections_at_two_wallets_each_settlement_sent_twice(
    database: Database, replicas: int
) -> None:
    parties = [Money(database, f"r{number}") for number in range(replicas)]
    for wallet_id in ("w1", "w2"):
        await parties[0].open(wallet_id, extra=3000)
    numbers = iter(range(10_000))
    chance = random.Random(7)

    async def caller(number: int) -> int:
        money, charged = parties[number % replicas], 0
        for _ in range(6):
            wallet_id = f"w{chance.randint(1, 2)}"
            answer = await money.wallets.lease(wallet_id, **ask(20, 60, 100))
            if not answer.granted_musd:
                continue
            batch = [settlement(next(numbers), wallet_id, charged=answer.granted_musd // 2)]
            other = f"w{chance.randint(1, 2)}"
            batch.append(settlement(next(numbers), other, charged=0))
            results = await asyncio.gather(money.usage.settle(batch), money.usage.settle(batch[::-1]))
            assert sum(result.new for result in results) == 2
            assert not any(result.late_wallets for result in results)
            charged += batch[0].end.charged_musd
            if chance.random() < 0.3:
                await money.wallets.give_back(wallet_id, answer.granted_musd - batch[0].end.charged_musd)
        return charged

    charged = sum(await asyncio.gather(*(caller(number) for number in range(24))))
    wallets = [await parties[0].wallets.find(wallet_id) for wallet_id in ("w1", "w2")]
    assert sum(wallet.used_musd for wallet in wallets) == charged
    await parties[0].check()
    for money in parties:
        await money.wallets.give_all_leases_back()
    assert [(await parties[0].wallets.find(one)).leased_musd for one in ("w1", "w2")] == [0, 0]
    await parties[0].check()


# ---- grants, payments, plans


async def test_a_grant_is_given_once_for_each_reference(database: Database) -> None:
    money = Money(database)
    await money.open("w1")
    for _ in range(2):
        assert (await money.wallets.grant("w1", 500, ref="g1", note="hello")).extra_musd == 500
    assert (await money.wallets.grant("w1", -200, ref="g2")).extra_musd == 300
    await money.wallets.lease("w1", **ask(250, 250))
    with pytest.raises(Conflict, match="more is used or set aside"):
        await money.wallets.grant("w1", -51, ref="g3")
    assert (await money.wallets.grant("w1", -50, ref="g3")).extra_musd == 250
    for amount in (0, 10**16):
        with pytest.raises(Invalid, match="cannot be granted"):
            await money.wallets.grant("w1", amount, ref="g4")
    with pytest.raises(NotFound):
        await money.wallets.grant("none", 1, ref="g5")
    entries = await ledger.entries_of(database, "w1")
    assert sorted(entry["amount"] for entry in entries) == [-0.0002, -0.00005, 0.0005]
    assert [entry["note"] for entry in entries if entry["ref"] == "g1"] == ["hello"]
    await money.check()


async def test_a_closed_wallet_gets_no_credits(database: Database) -> None:
    money = Money(database)
    await money.open("w1", extra=100)
    await money.wallets.set_state("w1", "closed")
    with pytest.raises(Conflict, match="is closed"):
        await money.wallets.grant("w1", 500, ref="g1")
    assert (await money.wallets.grant("w1", -100, ref="g2")).extra_musd == 0
    await money.check()


async def test_24_grants_of_one_reference_at_once_give_once(database: Database) -> None:
    money = Money(database)
    await money.open("w1")
    await asyncio.gather(*(money.wallets.grant("w1", 100, ref="g") for _ in range(24)))
    assert (await money.wallets.find("w1")).extra_musd == 100
    await money.check()


async def test_a_payment_pays_off_what_is_owed_first(database: Database) -> None:
    money = Money(database)
    await money.open("w1", extra=100, cap=500)
    await money.wallets.set_plan(
        "w1", plan_musd=50, cap_musd=500, auto_renew=True, period_end_ms=NOON_MS, anchor_day=15, ref="p"
    )
    await money.wallets.lease("w1", **ask(400, 400))
    await money.usage.settle([settlement(1, charged=350)])
    assert await renew(money.wallets, "w1", NOON_MS)
    wallet = await money.wallets.find("w1")
    assert (wallet.plan_musd, wallet.extra_musd, wallet.used_musd, wallet.owed_musd) == (50, 0, 0, 200)
    for _ in range(2):
        wallet = await money.wallets.pay_in("w1", 150, ref="pay1")
    assert (wallet.extra_musd, wallet.owed_musd) == (0, 50)
    wallet = await money.wallets.pay_in("w1", 150, ref="pay2")
    assert (wallet.extra_musd, wallet.owed_musd) == (100, 0)
    with pytest.raises(Invalid):
        await money.wallets.pay_in("w1", 0, ref="pay3")
    await money.check()


async def test_a_plan_gives_the_difference_now(database: Database) -> None:
    money = Money(database)
    await money.open("w1")
    plan = {"cap_musd": 7, "auto_renew": True, "period_end_ms": NOON_MS, "anchor_day": 31}
    wallet = await money.wallets.set_plan("w1", plan_musd=100, ref="p1", **plan)  # type: ignore[arg-type]
    assert wallet.credits("c") == {
        "client_id": "c",
        "credits_remaining": 0.0001,
        "credits_total": 0.0001,
        "credits_overage": 0.0,
        "credits_cap": 0.000007,
        "credits_auto_renew": True,
        "credits_held": 0.0,
        "credits_owed": 0.0,
        "period_end": "2027-01-15T08:00:00.000Z",
    }
    await money.wallets.lease("w1", **ask(80, 80))
    with pytest.raises(Conflict):
        await money.wallets.set_plan("w1", plan_musd=70, ref="p2", **plan)  # type: ignore[arg-type]
    assert (await money.wallets.set_plan("w1", plan_musd=75, ref="p2", **plan)).plan_musd == 75  # type: ignore[arg-type]
    await money.check()


# ---- periods


@pytest.mark.parametrize(
    ("day", "after", "end"),
    [
        (15, "2027-01-14T23:59:59", "2027-01-15T00:00:00"),
        (15, "2027-01-15T00:00:00", "2027-02-15T00:00:00"),
        (31, "2027-01-31T12:00:00", "2027-02-28T00:00:00"),
        (31, "2028-02-01T00:00:00", "2028-02-29T00:00:00"),
        (1, "2027-12-31T23:00:00", "2028-01-01T00:00:00"),
    ],
)
def test_periods_end_on_the_anchor_day(day: int, after: str, end: str) -> None:
    from datetime import datetime

    def ms(text: str) -> int:
        return round(datetime.fromisoformat(f"{text}+00:00").timestamp() * 1000)

    assert next_period_end_ms(day, ms(after)) == ms(end)


def wallet(plan: int, extra: int, used: int) -> Wallet:
    return Wallet("w", "", plan, extra, used, 0, 10_000, 0, True, 1, 1, "active")


@pytest.mark.parametrize(
    ("plan", "extra", "used", "renewal"),
    [
        (100, 50, 0, Renewal(100, 0, 0, 100)),
        (100, 50, 70, Renewal(30, 0, 0, 100)),
        (100, 50, 120, Renewal(0, 20, 0, 100)),
        (100, 50, 150, Renewal(0, 50, 0, 100)),
        (100, 50, 190, Renewal(0, 50, 40, 100)),
        (0, 0, 5, Renewal(0, 0, 5, 0)),
    ],
)
def test_what_the_end_of_a_period_does(plan: int, extra: int, used: int, renewal: Renewal) -> None:
    before = wallet(plan, extra, used)
    assert renewal_of(before) == renewal
    moved = dict(renewal.postings("w"))
    assert sum(moved.values()) == 0
    assert plan + extra - used + moved["wallet:w"] == plan + extra - renewal.from_extra_musd


async def test_a_period_is_renewed_once_by_whichever_replica(database: Database) -> None:
    parties = [Money(database, f"r{number}") for number in range(3)]
    money = parties[0]
    await money.open("w1", extra=30)
    end = NOON_MS - DAY_MS
    plan = {"plan_musd": 100, "cap_musd": 0, "auto_renew": True, "anchor_day": 15}
    await money.wallets.set_plan("w1", period_end_ms=end, ref="p", **plan)  # type: ignore[arg-type]
    await money.open("w2", extra=1)
    await money.wallets.lease("w1", **ask(60, 60))
    await money.usage.settle([settlement(1, charged=20)])
    renewed = await asyncio.gather(*(renew_due(one.wallets) for one in parties for _ in range(4)))
    assert sum(renewed) == 1
    after = await money.wallets.find("w1")
    assert (after.plan_musd, after.extra_musd, after.used_musd, after.leased_musd) == (100, 30, 0, 40)
    assert after.period_end_ms == next_period_end_ms(15, NOON_MS)
    assert not await renew(money.wallets, "w1", end)
    assert not await renew(money.wallets, "w1", after.period_end_ms or 0)  # not over yet
    assert not await renew(money.wallets, "w2", 0)
    await money.check()


# ---- ledger and audit


async def test_a_ledger_entry_must_add_up(database: Database) -> None:
    async def change(transaction: Transaction) -> None:
        await ledger.post(transaction, LedgerEntry("grant", "x", 1, [("grants", -5), ("wallet:w", 4)]))

    with pytest.raises(ValueError, match="add up to -1"):
        await database.run(change)


async def test_the_audit_finds_every_kind_of_difference(database: Database) -> None:
    money = Money(database)
    await money.open("w1", extra=1000)
    await money.wallets.lease("w1", **ask(100, 100))
    await money.usage.settle([settlement(1, charged=10), settlement(2, charged=10)])
    await money.check()
    await money.sql("UPDATE wallets SET extra_musd = 990, owed_musd = 3, leased_musd = 70 WHERE id = 'w1'")
    async with database.transaction() as transaction:
        if database.kind == "postgres":  # its triggers refuse it
            await transaction.execute("SET LOCAL session_replication_role = replica")
        await transaction.execute(
            "INSERT INTO ledger_tx(id, kind, ref, at) VALUES ('usage:ghost', 'usage', 'ghost', 1)"
        )
        await transaction.execute(
            "INSERT INTO ledger_postings(tx_id, n, account, amount_musd) VALUES ('usage:ghost', 1, 'x', 9)"
        )
    await money.sql("INSERT INTO usage(attempt_id, at, wallet_id, charged_musd) VALUES ('lone', 1, 'w1', 4)")
    texts = [str(one) for one in await find_differences(database)]
    assert texts == [
        "sum of the postings of usage:ghost: expected 0, found 9",
        "balance in the ledger of w1: expected 970, found 980",
        "what is owed by the ledger of w1: expected -3, found 0",
        "what is set aside of w1: expected 70, found 80",
        "charge in the ledger of lone: expected -4, found 0",
        "usage row of ghost: expected 1, found 0",
        "ledger entry of lone: expected 1, found 0",
    ]
