"""What accounts tell: credits that were changed, usage, sessions; and who is woken by it."""

import asyncio
from pathlib import Path
from typing import Any

from appliance.accounts.event_feed import EventFeed
from appliance.accounts.renewals import renew_due
from appliance.accounts.settlement import Settlement
from appliance.accounts.usage_events import UsageEvents, level_of
from appliance.accounts.wallets import Wallet, Wallets
from appliance.base.clock import FakeClock
from appliance.storage.database import Database, StoreUnavailable, Transaction
from appliance.storage.events import EventLog
from tests.accounts.money import NOON_MS, settlement
from tests.accounts.parts import AUTHOR, PASSWORD, identity_on

START = FakeClock(at_s=NOON_MS / 1000).now_s()


class Quiet:
    async def note(self, transaction: Transaction, kind: str, ids: Any) -> None:
        pass

    async def announce(self) -> None:
        pass


async def wallet_of(database: Database, clock: FakeClock, musd: int) -> tuple[Wallets, EventLog]:
    events = EventLog(database, Quiet(), clock=clock)
    wallets = Wallets(database, clock, "r1", events=events)

    async def make(transaction: Transaction) -> None:
        await transaction.execute(
            "INSERT INTO users(id, email, password_hash, created_at, updated_at) VALUES ('u1', 'a@b', '', 1, 1)"
        )
        await wallets.open(transaction, "w1", "u1", extra_musd=musd)

    await database.run(make)
    return wallets, events


def used(number: int, **note: Any) -> Settlement:
    return settlement(number, charged=1_000, user_id="u1", **note)


async def told(events: EventLog, topic: str) -> list[dict[str, Any]]:
    return [event.data for event in await events.read("u1", after=0, topics={topic})]


# ---- credits


async def test_a_grant_is_told_once_for_its_reference(database: Database) -> None:
    wallets, events = await wallet_of(database, FakeClock(at_s=START), 0)
    for _ in range(2):
        await wallets.grant("w1", 5_000_000, ref="g1", note="welcome")
    await wallets.pay_in("w1", 2_000_000, ref="p1")
    grant, payment = await told(events, "billing")
    assert (grant["kind"], grant["amount"], grant["note"]) == ("grant", 5, "welcome")
    assert (payment["kind"], payment["amount"]) == ("payment", 2)
    assert payment["credits"]["credits_remaining"] == 7


async def test_a_renewal_is_told_once(database: Database) -> None:
    clock = FakeClock(at_s=START)
    wallets, events = await wallet_of(database, clock, 0)
    plan: dict[str, Any] = {"plan_musd": 9_000_000, "cap_musd": 0, "auto_renew": True, "anchor_day": 1}
    await wallets.set_plan("w1", **plan, period_end_ms=NOON_MS + 1000, ref="plan1")
    clock.advance(2)
    assert [await renew_due(wallets), await renew_due(wallets)] == [1, 0]
    assert [one["kind"] for one in await told(events, "billing")] == ["plan", "renewal"]


# ---- usage


async def test_usage_is_told_as_one_sum(database: Database) -> None:
    clock = FakeClock(at_s=START)
    _, events = await wallet_of(database, clock, 100_000_000)
    usage = UsageEvents(database, events, clock=clock)
    usage.add([used(1), used(2, model="other"), settlement(3)])
    clock.advance(3)
    await usage.tell()
    await usage.tell()
    (one,) = await told(events, "usage")
    assert (one["requests"], one["tokens_in"], one["tokens_out"], one["cost"]) == (2, 10, 14, 0.002)
    assert one["models"] == {"m": 1, "other": 1}
    assert one["since"] < one["until"]


async def test_sums_wait_while_the_database_is_down(database: Database) -> None:
    clock = FakeClock(at_s=START)
    _, events = await wallet_of(database, clock, 100_000_000)
    usage = UsageEvents(Down(database), events, clock=clock)
    usage.add([used(1)])
    await usage.tell()
    usage.add([used(2), used(3, model="other")])
    usage._database = database
    await usage.tell()
    (one,) = await told(events, "usage")
    assert (one["requests"], one["models"]) == (3, {"m": 2, "other": 1})


class Down:
    """A database that is down."""

    def __init__(self, real: Database) -> None:
        self.kind = real.kind

    async def run(self, change: Any) -> Any:
        raise StoreUnavailable("on purpose")


def test_levels_by_what_is_left() -> None:
    def level(total: int, spent: int) -> int:
        return level_of(Wallet("w", "u", total, 0, spent, 0, 0, 0, False, None, 1, "active"))

    assert [level(100, spent) for spent in (0, 79, 80, 89, 90, 95, 99, 100, 150)] == [
        0,
        0,
        1,
        1,
        2,
        3,
        3,
        4,
        4,
    ]
    assert level(0, 0) == 0


async def test_low_credits_are_told_once_at_each_threshold(database: Database) -> None:
    clock = FakeClock(at_s=START)
    wallets, events = await wallet_of(database, clock, 100)
    usage = UsageEvents(database, events, clock=clock)
    for spent in (50, 81, 82, 96, 100, 100):
        async with database.transaction() as transaction:
            await transaction.execute("UPDATE wallets SET used_musd = :spent", {"spent": spent})
        usage.add([used(spent)])
        await usage.tell()
    assert [one["percent_left"] for one in await told(events, "billing")] == [20, 5, 0]
    await wallets.grant("w1", 900, ref="more")
    usage.add([used(1)])
    await usage.tell()
    async with database.transaction() as transaction:
        await transaction.execute("UPDATE wallets SET used_musd = 900")
    usage.add([used(2)])
    await usage.tell()
    shown = [one["percent_left"] for one in await told(events, "billing") if one["kind"] == "low_credits"]
    assert shown == [20, 5, 0, 10]


# ---- sessions


async def test_logins_and_their_ends_are_told(database: Database, tmp_path: Path) -> None:
    async with identity_on(database, tmp_path) as identity:
        events = EventLog(database, identity.changes, clock=identity.clock)
        user = await identity.users.create("a@example.org", PASSWORD, "A", author=AUTHOR)
        facts = await identity.directory.user(user.id)
        assert facts is not None
        tokens = await identity.sessions.open(facts, ip_address="10.0.0.9", user_agent="curl")
        await identity.sessions.end_one(user.id, tokens.session_id)
        await identity.sessions.end_one(user.id, tokens.session_id)
        found = [event.data for event in await events.read(user.id, after=0)]
        assert [one["kind"] for one in found] == ["login", "ended"]
        assert found[0]["ip_address"] == "10.0.0.9"
        assert tokens.refresh_token not in str(found)


async def test_a_stolen_refresh_token_is_told(database: Database, tmp_path: Path) -> None:
    clock = FakeClock(at_s=START)
    async with identity_on(database, tmp_path, clock=clock) as identity:
        events = EventLog(database, identity.changes, clock=clock)
        user = await identity.users.create("a@example.org", PASSWORD, "A", author=AUTHOR)
        facts = await identity.directory.user(user.id)
        assert facts is not None
        tokens = await identity.sessions.open(facts, ip_address="", user_agent="")
        await identity.sessions.refresh(tokens.refresh_token)
        clock.advance(60)
        try:
            await identity.sessions.refresh(tokens.refresh_token)
        except Exception as error:
            assert "used before" in str(error)
        found = [event.data["kind"] for event in await events.read(user.id, after=0)]
        assert found == ["login", "reuse"]


# ---- who is woken


async def test_only_waiters_of_the_receiver_are_woken(database: Database, tmp_path: Path) -> None:
    async with identity_on(database, tmp_path) as identity:
        log = EventLog(database, identity.changes, clock=identity.clock)
        feed = EventFeed(log, identity.changes)
        with feed.waiting("u1") as mine, feed.waiting("u2") as other, feed.waiting(None) as operators:
            await database.run(lambda one: log.append(one, "u1", "billing", {}))
            await log.announce()
            await asyncio.wait_for(mine.wait(), 5)
            assert not other.is_set()
            assert not operators.is_set()
            await database.run(lambda one: log.append(one, None, "system", {}))
            await log.announce()
            await asyncio.wait_for(operators.wait(), 5)
        assert feed._waiting == {}
