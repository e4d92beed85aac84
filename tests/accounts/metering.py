"""A metering with a fake bank, for tests."""

from pathlib import Path
from typing import Any

from appliance.accounts.allowance import Allowances, LeaseStore
from appliance.accounts.journal import Journal
from appliance.accounts.meter import Metering, MeterOrder, Payer
from appliance.accounts.prices import Price
from appliance.accounts.settlement import BillingRules, Settlement
from appliance.base.clock import FakeClock
from appliance.base.tasks import Tasks
from tests.accounts.fake_store import FakeBank, FakeLeaseStore, FakeWallet

# One micro-dollar a token of the prompt, two a token of the response.
PRICE = Price("m", version=4, in_per_mtok=1_000_000, cached_in_per_mtok=500_000, out_per_mtok=2_000_000)


def order(prompt_tokens: int = 10, **options: Any) -> MeterOrder:
    return MeterOrder(
        **{
            "payer": Payer("w", "u", "k"),
            "price": PRICE,
            "model": "m",
            "prompt_tokens": prompt_tokens,
            **options,
        }
    )


class Bench:
    """One process with a wallet of `total_musd`."""

    def __init__(
        self,
        tasks: Tasks,
        folder: Path,
        *,
        total_musd: int = 1_000_000,
        most_musd: int = 10_000,
        rules: BillingRules | None = None,
        slice_tokens: int = 256,
    ) -> None:
        self.bank = FakeBank({"w": FakeWallet(total_musd)})
        self.store: LeaseStore = FakeLeaseStore(self.bank)
        self.clock = FakeClock()
        self.journal = Journal(folder, max_bytes=10**8)
        self.allowances = Allowances(self.store, self.journal, tasks, self.clock, most_musd=most_musd)
        self.settlements: list[Settlement] = []
        self.metering = Metering(
            self.allowances,
            self.journal,
            self.settlements.append,
            self.clock,
            rules=rules,
            slice_tokens=slice_tokens,
        )

    @property
    def allowance(self) -> Any:
        return self.allowances.of("w")

    def settle(self) -> None:
        """Settle everything in the bank, twice, as the worker does it."""
        for settlement in [*self.settlements, *self.settlements]:
            self.store.settle(settlement)  # type: ignore[attr-defined]
        self.allowance.settled(sum(one.end.charged_musd for one in self.settlements))
        self.journal.settled([one.number for one in self.settlements])
        self.settlements.clear()
        self.check()

    def check(self) -> None:
        self.bank.check()
        assert self.allowance.lease_musd <= self.bank.leases["r1", "w"]
        assert min(self.allowance.free_musd, self.allowance.held_musd, self.allowance.spent_musd) >= 0
