"""A store of wallets and leases in memory, with the rules of the database, for tests of what does not need one."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from appliance.accounts.allowance import LeaseAnswer
from appliance.accounts.settlement import Settlement
from appliance.base.errors import Unavailable


@dataclass
class FakeWallet:
    total_musd: int
    used_musd: int = 0
    leased_musd: int = 0

    @property
    def headroom_musd(self) -> int:
        return self.total_musd - self.used_musd - self.leased_musd


@dataclass
class FakeBank:
    """All wallets, and every replica's leases of them."""

    wallets: dict[str, FakeWallet] = field(default_factory=dict)
    leases: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    settled: dict[str, int] = field(default_factory=dict)
    ask: list[Callable[[str, str], object]] = field(default_factory=list)
    is_down: bool = False

    def check(self) -> None:
        """I2, and that leases add up."""
        for wallet_id, wallet in self.wallets.items():
            assert wallet.used_musd >= 0
            assert wallet.leased_musd >= 0
            assert wallet.used_musd + wallet.leased_musd <= wallet.total_musd
            assert wallet.leased_musd == sum(n for (_, w), n in self.leases.items() if w == wallet_id)
        assert all(n >= 0 for n in self.leases.values())


class FakeLeaseStore:
    """The bank as one replica sees it."""

    def __init__(self, bank: FakeBank, replica_id: str = "r1", *, delay_s: float = 0.0) -> None:
        self.bank, self.replica_id, self.delay_s = bank, replica_id, delay_s
        self.calls: list[str] = []
        self.lose_reply = False

    async def _call(self, name: str) -> None:
        self.calls.append(name)
        await asyncio.sleep(self.delay_s)
        if self.bank.is_down:
            raise Unavailable("down", code="store_unavailable")

    def _reply(self) -> None:
        if self.lose_reply:
            self.lose_reply = False
            raise Unavailable("the reply was lost", code="store_unavailable")

    async def lease(self, wallet_id: str, *, least_musd: int, want_musd: int, most_musd: int) -> LeaseAnswer:
        await self._call("lease")
        wallet = self.bank.wallets.get(wallet_id)
        if wallet is None:
            return LeaseAnswer(0, reason="wallet_unknown")
        others = any(
            n for (r, w), n in self.bank.leases.items() if w == wallet_id and r != self.replica_id and n
        )
        if wallet.headroom_musd < least_musd:
            return LeaseAnswer(0, wallet.headroom_musd, "credits", others)
        granted = min(wallet.headroom_musd, max(want_musd, min(most_musd, wallet.headroom_musd // 4)))
        wallet.leased_musd += granted
        self.bank.leases[self.replica_id, wallet_id] += granted
        self._reply()
        return LeaseAnswer(granted, wallet.headroom_musd, "", others)

    async def give_back(self, wallet_id: str, musd: int) -> bool:
        await self._call("give_back")
        if self.bank.leases[self.replica_id, wallet_id] < musd:
            return False
        self.bank.leases[self.replica_id, wallet_id] -= musd
        self.bank.wallets[wallet_id].leased_musd -= musd
        self._reply()
        return True

    async def give_back_all(self, wallet_id: str) -> int:
        await self._call("give_back_all")
        musd = self.bank.leases.pop((self.replica_id, wallet_id), 0)
        if wallet_id in self.bank.wallets:
            self.bank.wallets[wallet_id].leased_musd -= musd
        self._reply()
        return musd

    async def own_leases(self, wallet_ids: Collection[str]) -> dict[str, int]:
        await self._call("own_leases")
        return {w: n for (r, w), n in self.bank.leases.items() if r == self.replica_id and w in wallet_ids}

    async def ask_others(self, wallet_id: str) -> None:
        await self._call("ask_others")
        for ask in self.bank.ask:
            ask(self.replica_id, wallet_id)

    def settle(self, settlement: Settlement) -> None:
        """As the database does it, once per attempt."""
        note, end = settlement.note, settlement.end
        if note.attempt_id in self.bank.settled:
            return
        self.bank.settled[note.attempt_id] = end.charged_musd
        wallet = self.bank.wallets[note.wallet_id]
        wallet.used_musd += end.charged_musd
        wallet.leased_musd -= end.charged_musd
        self.bank.leases[self.replica_id, note.wallet_id] -= end.charged_musd


class NoJournal:
    """Notes nothing."""

    def lease(self, wallet_id: str, musd: int) -> None: ...

    def contact(self, at_ms: int) -> None: ...
