"""Brings what was charged to the database: in batches, again and again until it is known to be there."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from appliance.accounts.allowance import Allowances
from appliance.accounts.journal import Journal
from appliance.accounts.settlement import Settlement
from appliance.accounts.usage import SettleResult
from appliance.base.clock import Clock
from appliance.base.errors import Unavailable
from appliance.base.logs import get_logger

log = get_logger("accounts")
BATCH = 256
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0


class SettlementStore(Protocol):
    """Where settlements go: the database, or a fake one in tests."""

    async def settle(self, batch: Sequence[Settlement]) -> SettleResult:
        """Settle attempts, each one once however often it is sent."""


class Settler:
    """Settles what `add` is given; one per process. Run `work` as a background task.

    Args:
        store: Where to.
        allowances: Told what is settled.
        journal: Told what is settled.
        clock: The time.
        on_settled: Called with those that were settled; None = with nothing. It does not wait or raise.

    Attributes:
        settled: How many attempts were settled, by source (`engine`, `counted` …).
        loss_musd: What responses cost beyond what could be charged, of those settled here.
        stuck: Those that the database does not take, for a fault of ours; they stay in the journal.
    """

    def __init__(
        self,
        store: SettlementStore,
        allowances: Allowances,
        journal: Journal,
        clock: Clock,
        *,
        on_settled: Callable[[Sequence[Settlement]], None] | None = None,
    ) -> None:
        self._store = store
        self._allowances = allowances
        self._journal = journal
        self._clock = clock
        self._on_settled = on_settled
        self._waiting: deque[Settlement] = deque()
        self._came = asyncio.Event()
        self._was_lost = False
        self.settled: dict[str, int] = {}
        self.loss_musd = 0
        self.stuck: list[Settlement] = []

    @property
    def waiting_count(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def oldest_s(self) -> float:
        """How old the oldest of those is that wait, seconds since its attempt began; 0 = none waits."""
        return self._clock.now_s() - self._waiting[0].note.at_ms / 1000 if self._waiting else 0.0

    def unsettled_musd(self, key_id: str) -> int:
        """Return what an API key was charged and is not in the database yet."""
        return sum(one.end.charged_musd for one in self._waiting if one.note.key_id == key_id)

    def add(self, settlement: Settlement) -> None:
        """Take one to settle; does not wait."""
        self._waiting.append(settlement)
        self._came.set()

    async def work(self) -> None:
        """Settle what comes, without end."""
        pause_s = FIRST_PAUSE_S
        while True:
            if not self._waiting:
                self._came.clear()
                await self._came.wait()
            try:
                await self.settle_some()
                pause_s = FIRST_PAUSE_S
            except Unavailable:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def drain(self) -> None:
        """Settle everything that waits.

        Raises:
            Unavailable: The database cannot be used; what is left stays in the journal.
        """
        while self._waiting:
            await self.settle_some()

    async def settle_some(self) -> None:
        """Settle up to BATCH of those that wait.

        Raises:
            Unavailable: The database cannot be used; they wait on.
        """
        async with self._allowances.settling:
            batch = [self._waiting[n] for n in range(min(BATCH, len(self._waiting)))]
            if not batch:
                return
            try:
                result = await self._store.settle(batch)
            except Unavailable:
                self._was_lost = True
                raise
            except Exception as error:
                result = await self._one_by_one(batch, error)
            for _ in batch:
                self._waiting.popleft()
            stuck = {id(one) for one in self.stuck}
            settled = [one for one in batch if id(one) not in stuck]
            self._note(settled, result)
            if self._on_settled is not None:
                self._on_settled(settled)

    async def _one_by_one(self, batch: Sequence[Settlement], error: Exception) -> SettleResult:
        """Find out which one of a batch the database does not take: the others must not wait for it."""
        log.error("batch_not_settled", attempts=len(batch), error=repr(error))
        whole = SettleResult()
        for one in batch:
            try:
                result = await self._store.settle([one])
            except Unavailable:
                raise
            except Exception as reason:
                log.error(
                    "attempt_not_settled", attempt=one.note.attempt_id, error=repr(reason), exc_info=reason
                )
                self.stuck.append(one)
                continue
            whole.new += result.new
            whole.late_wallets |= result.late_wallets
            whole.uncollected_musd += result.uncollected_musd
            whole.extra_musd += result.extra_musd
        return whole

    def _note(self, batch: Sequence[Settlement], result: SettleResult) -> None:
        """Tell allowances and journal, the leases first: killed in between, we know of less than we have."""
        self._allowances.reached()
        wallets = set()
        for one in batch:
            allowance = self._allowances.of(one.note.wallet_id)
            allowance.settled(one.end.charged_musd)
            wallets.add(one.note.wallet_id)
            self.settled[one.end.source] = self.settled.get(one.end.source, 0) + 1
            self.loss_musd += one.end.cost_musd - one.end.charged_musd
        self.loss_musd += result.uncollected_musd - result.extra_musd
        for wallet_id in wallets:
            allowance = self._allowances.of(wallet_id)
            if self._was_lost or wallet_id in result.late_wallets:
                allowance.is_unsure = True
            if wallet_id in result.late_wallets:
                allowance.free_musd = 0
            self._journal.lease(wallet_id, allowance.lease_musd)
        self._was_lost = False
        self._journal.settled([one.number for one in batch if one.number])
