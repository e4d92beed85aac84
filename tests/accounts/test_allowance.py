"""Holds never exceed a lease, leases never exceed a wallet, and money that is there is always found."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from appliance.accounts.allowance import DRY_PAUSE_S, IDLE_SWEEPS, Allowance, Allowances
from appliance.base.clock import FakeClock
from appliance.base.errors import Unavailable
from appliance.base.tasks import Tasks
from tests.accounts.fake_store import FakeBank, FakeLeaseStore, FakeWallet, NoJournal

W = "wallet"


class Replica:
    def __init__(self, bank: FakeBank, tasks: Tasks, name: str = "r1", *, most_musd: int = 1000) -> None:
        self.clock = FakeClock()
        self.bank, self.name = bank, name
        self.store = FakeLeaseStore(bank, name)
        self.allowances = Allowances(
            self.store, NoJournal(), tasks, self.clock, most_musd=most_musd, fence_after_s=3600
        )

        def asked(by: str, wallet_id: str) -> None:
            if by != name:
                tasks.start(self.allowances.return_asked(wallet_id), name="return")

        bank.ask.append(asked)

    def of(self) -> Allowance:
        return self.allowances.of(W)

    def check(self) -> None:
        """What is known here is never more than the database has set aside for us."""
        for allowance in self.allowances.all():
            assert min(allowance.free_musd, allowance.held_musd, allowance.spent_musd) >= 0
            assert allowance.lease_musd <= self.bank.leases[self.name, allowance.wallet_id]


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    async with Tasks() as tasks:
        yield tasks


async def quiet() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_first_hold_waits_for_a_lease_and_later_ones_do_not(tasks: Tasks) -> None:
    bank = FakeBank({W: FakeWallet(100_000)})
    one = Replica(bank, tasks)
    assert not one.of().hold(10)
    assert await one.of().hold_or_wait(10)
    assert (one.of().free_musd, one.of().held_musd) == (990, 10)
    assert one.store.calls == ["lease"]
    assert one.of().hold(400)
    assert one.store.calls == ["lease"]
    one.of().charge(10, 4)
    one.of().release(400)
    assert (one.of().free_musd, one.of().held_musd, one.of().spent_musd) == (996, 0, 4)
    one.check()
    bank.check()


async def test_below_a_half_more_is_leased_in_the_background(tasks: Tasks) -> None:
    bank = FakeBank({W: FakeWallet(100_000)})
    one = Replica(bank, tasks)
    await one.of().hold_or_wait(1)
    assert one.of().hold(600)
    assert one.of().is_asking
    await quiet()
    assert one.of().lease_musd == 2000
    one.check()
    bank.check()


@pytest.mark.parametrize(
    ("total", "least", "granted"), [(100, 100, 100), (100, 1, 25), (100, 60, 60), (3, 1, 1)]
)
async def test_size_of_a_lease(tasks: Tasks, total: int, least: int, granted: int) -> None:
    bank = FakeBank({W: FakeWallet(total)})
    one = Replica(bank, tasks)
    assert await one.of().hold_or_wait(least)
    assert bank.leases["r1", W] >= granted
    assert bank.leases["r1", W] <= max(granted, total)


async def test_an_empty_wallet_is_refused_and_not_asked_for_again_at_once(tasks: Tasks) -> None:
    bank = FakeBank({W: FakeWallet(50)})
    one = Replica(bank, tasks)
    assert not await one.of().hold_or_wait(51)
    assert (one.of().reason, one.of().headroom_musd) == ("credits", 50)
    calls = len(one.store.calls)
    one.of().ask_for_more()
    await quiet()
    assert len(one.store.calls) == calls
    one.clock.advance(DRY_PAUSE_S)
    one.of().ask_for_more()
    await quiet()
    assert len(one.store.calls) == calls + 1
    assert await one.of().hold_or_wait(20)
    assert not await Replica(bank, tasks, "r2").allowances.of("unknown").hold_or_wait(1)


async def test_money_that_came_is_found_at_once(tasks: Tasks) -> None:
    bank = FakeBank({W: FakeWallet(0)})
    one = Replica(bank, tasks)
    assert not await one.of().hold_or_wait(5)
    bank.wallets[W].total_musd = 100
    one.allowances.money_came(W)
    one.of().ask_for_more()
    await quiet()
    assert one.of().free_musd > 0


async def test_many_that_wait_are_served_in_order_by_few_questions(tasks: Tasks) -> None:
    bank = FakeBank({W: FakeWallet(370)})
    one = Replica(bank, tasks)
    results = await asyncio.gather(*(one.of().hold_or_wait(10) for _ in range(200)))
    assert results == [True] * 37 + [False] * 163
    assert len(one.store.calls) <= 5
    one.check()
    bank.check()


async def test_smaller_holds_are_served_after_a_larger_one_was_refused(tasks: Tasks) -> None:
    bank = FakeBank({W: FakeWallet(100)})
    one = Replica(bank, tasks)
    results = await asyncio.gather(*(one.of().hold_or_wait(musd) for musd in (200, 60, 150, 40, 1)))
    assert results == [False, True, False, True, False]


async def test_other_processes_give_back_what_they_do_not_use(tasks: Tasks) -> None:
    bank = FakeBank({W: FakeWallet(100)})
    one, two = Replica(bank, tasks, "r1"), Replica(bank, tasks, "r2")
    assert await one.of().hold_or_wait(60)
    one.of().charge(60, 10)
    assert one.of().free_musd == 50
    assert await two.of().hold_or_wait(90)
    one.check()
    two.check()
    bank.check()


async def test_a_cancelled_wait_keeps_nothing(tasks: Tasks) -> None:
    bank = FakeBank({W: FakeWallet(100)})
    one = Replica(bank, tasks)
    waits = [asyncio.ensure_future(one.of().hold_or_wait(50)) for _ in range(3)]
    await asyncio.sleep(0)
    waits[0].cancel()
    assert await asyncio.gather(*waits, return_exceptions=True) != []
    assert [wait.cancelled() for wait in waits] == [True, False, False]
    assert [waits[1].result(), waits[2].result()] == [True, True]
    assert one.of().held_musd == 100
    # given in the very turn in which the caller leaves
    one.of().release(50)
    late = asyncio.ensure_future(one.of().hold_or_wait(60))
    await asyncio.sleep(0)
    one.of().release(10)
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)
    assert one.of().held_musd == 40
    one.check()


async def test_a_database_that_is_down_ends_the_wait_with_its_error(tasks: Tasks) -> None:
    bank = FakeBank({W: FakeWallet(100)}, is_down=True)
    one = Replica(bank, tasks)
    with pytest.raises(Unavailable, match="down"):
        await one.of().hold_or_wait(5)
    bank.is_down = False
    assert await one.of().hold_or_wait(5)


async def test_a_lost_reply_is_found_again(tasks: Tasks) -> None:
    bank = FakeBank({W: FakeWallet(1000)})
    one = Replica(bank, tasks)
    one.store.lose_reply = True
    with pytest.raises(Unavailable):
        await one.of().hold_or_wait(5)
    assert one.of().lease_musd == 0
    assert bank.leases["r1", W] == 250
    await one.allowances.compare()
    assert one.of().lease_musd == 250
    one.check()


async def test_what_is_idle_is_given_back(tasks: Tasks) -> None:
    bank = FakeBank({W: FakeWallet(1000)})
    one = Replica(bank, tasks)
    await one.of().hold_or_wait(5)
    for _ in range(2 * IDLE_SWEEPS):
        await one.allowances.sweep()
    assert bank.leases["r1", W] == 250  # held: not idle
    one.of().release(5)
    for _ in range(IDLE_SWEEPS - 1):
        await one.allowances.sweep()
    assert len(one.allowances) == 1
    await one.allowances.sweep()
    assert len(one.allowances) == 0
    assert bank.wallets[W].leased_musd == 0
    assert await one.of().hold_or_wait(5)
    one.of().release(5)
    await one.allowances.close()
    assert bank.wallets[W].leased_musd == 0


async def test_a_process_without_its_database_for_long_spends_nothing_more(tasks: Tasks) -> None:
    bank = FakeBank({W: FakeWallet(1000)})
    one = Replica(bank, tasks)
    await one.of().hold_or_wait(5)
    bank.is_down = True
    one.clock.advance(3599)
    await one.allowances.sweep()
    assert one.of().hold(5)
    one.clock.advance(2)
    await one.allowances.sweep()
    assert one.allowances.is_fenced
    assert not one.of().hold(1)
    one.of().release(5)
    assert not one.of().hold(1)  # what comes back is not spent again
    with pytest.raises(Unavailable, match="not reached for too long"):
        await one.of().hold_or_wait(1)
    assert not one.allowances.of("other").hold(0)
    # another process has taken the lease back meanwhile
    bank.is_down = False
    bank.wallets[W].leased_musd -= bank.leases.pop(("r1", W))
    await one.allowances.sweep()
    assert not one.allowances.is_fenced
    assert (one.of().free_musd, one.of().held_musd) == (0, 5)
    assert await one.of().hold_or_wait(7)


async def test_a_journals_leases_are_used_while_the_database_is_down(tasks: Tasks) -> None:
    bank = FakeBank({W: FakeWallet(1000, leased_musd=300)}, is_down=True)
    bank.leases["r1", W] = 300
    one = Replica(bank, tasks)
    one.allowances.restore({W: 300}, {W: 120}, age_s=60)
    assert (one.of().free_musd, one.of().spent_musd) == (180, 120)
    assert one.of().hold(180)
    old = Replica(bank, tasks, "r2")
    old.allowances.restore({W: 300}, {}, age_s=4000)
    assert not old.of().hold(1)


async def test_a_process_that_slept_reads_its_leases_before_it_spends(tasks: Tasks) -> None:
    bank = FakeBank({W: FakeWallet(1000)})
    one = Replica(bank, tasks)
    await one.of().hold_or_wait(5)
    one.of().release(5)
    one.clock.advance(7200)
    bank.wallets[W].leased_musd -= bank.leases.pop(("r1", W))  # another process took it back meanwhile
    one.allowances.reached()  # the first thing that happens is that it says that it lives
    assert not one.of().hold(1)
    await one.allowances.sweep()
    assert one.of().free_musd == 0
    assert await one.of().hold_or_wait(7)
    one.check()
    bank.check()


async def test_a_request_does_not_wait_long_for_a_slow_database(
    tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.accounts.allowance.LONGEST_WAIT_S", 0.01)
    bank = FakeBank({W: FakeWallet(100_000)})
    one = Replica(bank, tasks)
    one.store.delay_s = 0.05
    with pytest.raises(Unavailable, match="takes too long") as caught:
        await one.of().hold_or_wait(10)
    assert (caught.value.code, one.of().held_musd) == ("store_unavailable", 0)
    await asyncio.sleep(0.1)
    assert one.of().hold(10)  # what was granted later is there
    one.check()


async def test_credits_that_came_are_asked_for_at_once_where_a_response_runs(tasks: Tasks) -> None:
    wallet = FakeWallet(100)
    bank = FakeBank({W: wallet})
    one = Replica(bank, tasks)
    assert await one.of().hold_or_wait(100)
    assert not await one.of().hold_or_wait(50)
    wallet.total_musd = 10_000
    one.of().ask_for_more()  # it was refused just now: the database is not asked again yet
    await quiet()
    assert not one.of().hold(50)
    one.allowances.money_came("another")
    await quiet()
    assert not one.of().hold(50)
    one.allowances.money_came(W)
    await quiet()
    assert one.of().hold(50)
