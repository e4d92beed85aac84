"""The part of a wallet that this process may spend without asking the database: leased, held, spent.

A lease is money that the database has set aside for this process (`wallet_leases`). Requests take holds from
it and give back what they did not use, in memory and without waiting:

    lease in the database = free + held + spent          spent = charged, not settled in the database yet

A lease is enlarged in the background once less than a half is free, so that requests rarely wait. What is not
known to be ours is never spent: after a lost reply, or a long time without the database, the lease is read
again (`Allowances.compare`). Requests that find too little wait in order; where the wallet has no more,
other processes are asked for what they do not use, and then the request is refused.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Unavailable
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks

log = get_logger("accounts")
SWEEP_EVERY_S = 10.0
IDLE_SWEEPS = 6
DRY_PAUSE_S = 1.0
RETURN_WAIT_S = 0.25
LONGEST_WAIT_S = 5.0  # of a request for the database


@dataclass(frozen=True, slots=True)
class LeaseAnswer:
    """What the database says when it is asked for more.

    Attributes:
        granted_musd: Added to our lease; 0 = refused.
        headroom_musd: What the wallet has left beyond all leases, after this one.
        reason: Why nothing was granted: `credits`, `spending_limit`, `wallet_frozen`, `wallet_unknown`; "" =
            it was.
        is_elsewhere: Other processes hold leases of this wallet.
    """

    granted_musd: int
    headroom_musd: int = 0
    reason: str = ""
    is_elsewhere: bool = False


class LeaseStore(Protocol):
    """Where leases are kept: the database, or a fake one in tests. All calls may raise ApplianceError."""

    async def lease(self, wallet_id: str, *, least_musd: int, want_musd: int, most_musd: int) -> LeaseAnswer:
        """Add to our lease of a wallet.

        Args:
            wallet_id: The wallet.
            least_musd: Refused where less than this is left.
            want_musd: Granted where there is so much.
            most_musd: More than `want_musd` is granted up to this, a quarter of what is left at most.
        """

    async def give_back(self, wallet_id: str, musd: int) -> bool:
        """Take from our lease what is not used; False = it is smaller, and nothing was changed."""

    async def give_back_all(self, wallet_id: str) -> int:
        """End our lease of a wallet; return how much it was."""

    async def own_leases(self, wallet_ids: Collection[str]) -> dict[str, int]:
        """Return our leases of these wallets; one that is gone is missing."""

    async def ask_others(self, wallet_id: str) -> None:
        """Ask other processes to give back what they do not use of their leases of a wallet."""


class LeaseJournal(Protocol):
    """Where leases are noted, so that a process that starts again while the database is down knows them."""

    def lease(self, wallet_id: str, musd: int) -> None:
        """Note the size of our lease of a wallet."""

    def contact(self, at_ms: int) -> None:
        """Note that the database was reached, epoch milliseconds."""


class Allowance:
    """What this process may spend of one wallet. Every method of it is synchronous.

    Attributes:
        wallet_id: The wallet.
        free_musd: May be held.
        held_musd: Held by running requests.
        spent_musd: Charged, and not settled in the database yet.
        headroom_musd: What the wallet had left beyond all leases when the database was last asked.
        reason: Why the database refused more the last time; "" = it did not.
        is_asking: The database is being asked for more.
    """

    __slots__ = (
        "_ask",
        "_refill_below_musd",
        "_waiting",
        "ask_not_before_s",
        "free_musd",
        "headroom_musd",
        "held_musd",
        "idle_sweeps",
        "is_asking",
        "is_fenced",
        "is_unsure",
        "reason",
        "spent_musd",
        "wallet_id",
        "was_used",
    )

    def __init__(self, wallet_id: str, ask: Callable[["Allowance"], None]) -> None:
        self.wallet_id = wallet_id
        self.free_musd = 0
        self.held_musd = 0
        self.spent_musd = 0
        self.headroom_musd = 0
        self.reason = ""
        self.is_asking = False
        self.is_fenced = False  # nothing may be held
        self.is_unsure = False  # the database may hold more for us than we know
        self.was_used = False
        self.idle_sweeps = 0
        self.ask_not_before_s = 0.0
        self._refill_below_musd = 0
        self._ask = ask
        self._waiting: deque[tuple[int, asyncio.Future[bool]]] = deque()

    @property
    def lease_musd(self) -> int:
        """The size of our lease, as far as it is known."""
        return self.free_musd + self.held_musd + self.spent_musd

    @property
    def is_in_use(self) -> bool:
        """Whether a request holds something of it or waits, or a charge is not settled yet."""
        return bool(self.held_musd or self.spent_musd or self._waiting or self.is_asking)

    def hold(self, musd: int) -> bool:
        """Take `musd` for a request; False = so much is not free, and nothing was taken."""
        free = self.free_musd - musd
        if free < 0 or self.is_fenced:
            return False
        self.free_musd = free
        self.held_musd += musd
        self.was_used = True
        if free < self._refill_below_musd and not self.is_asking:
            self._ask(self)
        return True

    def release(self, musd: int) -> None:
        """Give back what a request held and did not use."""
        self.held_musd -= musd
        self.free_musd += musd
        if self._waiting:
            self._serve_waiting()

    def charge(self, held_musd: int, charged_musd: int) -> None:
        """End a hold: `charged_musd` of it is spent, the remainder is free again."""
        self.held_musd -= held_musd
        self.free_musd += held_musd - charged_musd
        self.spent_musd += charged_musd
        if self._waiting:
            self._serve_waiting()

    def settled(self, musd: int) -> None:
        """Note that charges are settled in the database, which has taken them from our lease."""
        self.spent_musd -= musd

    def ask_for_more(self) -> None:
        """Ask the database for more in the background, unless that is being done or was just refused."""
        if not self.is_asking:
            self._ask(self)

    async def hold_or_wait(self, musd: int) -> bool:
        """Take `musd`, waiting for the database where less is free.

        Returns:
            False = the wallet does not allow it; `reason` says why.

        Raises:
            ApplianceError: The database cannot be asked.
        """
        if not self._waiting and self.hold(musd):
            return True
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((musd, turn))
        self.ask_not_before_s = 0.0
        self.ask_for_more()
        try:
            async with asyncio.timeout(LONGEST_WAIT_S):
                try:
                    return await turn
                except asyncio.CancelledError:
                    if turn.done() and not turn.cancelled() and turn.exception() is None and turn.result():
                        self.release(musd)  # it was given just now, and is not wanted any more
                    raise
        except TimeoutError:
            raise Unavailable(
                "The database of accounts takes too long. Try again later.",
                code="store_unavailable",
                retry_after_s=LONGEST_WAIT_S,
            ) from None

    # ---- for Allowances

    def wanted_musd(self) -> tuple[int, int]:
        """Return what is missing for the first request that waits, and for all of them."""
        self._drop_cancelled()
        if not self._waiting:
            return 0, 0
        total = sum(musd for musd, turn in self._waiting if not turn.done())
        return max(1, self._waiting[0][0] - self.free_musd), max(1, total - self.free_musd)

    def granted(self, answer: LeaseAnswer) -> None:
        """Add to the lease what the database granted."""
        self.free_musd += answer.granted_musd
        self.headroom_musd, self.reason = answer.headroom_musd, answer.reason
        if answer.granted_musd:
            self._refill_below_musd = max(answer.granted_musd // 2, 1)
        self._serve_waiting()

    def refuse_waiting(self, least_musd: int) -> None:
        """Refuse the requests that wait for `least_musd` more than is free, or for even more than that."""
        limit = self.free_musd + least_musd
        kept: deque[tuple[int, asyncio.Future[bool]]] = deque()
        for musd, turn in self._waiting:
            if turn.done():
                continue
            if musd >= limit:
                turn.set_result(False)
            else:
                kept.append((musd, turn))
        self._waiting = kept
        self._serve_waiting()

    def fail_waiting(self, error: Exception) -> None:
        """End the wait of all requests by an exception."""
        waiting, self._waiting = self._waiting, deque()
        for _, turn in waiting:
            if not turn.done():
                turn.set_exception(error)

    def _drop_cancelled(self) -> None:
        while self._waiting and self._waiting[0][1].done():
            self._waiting.popleft()

    def _serve_waiting(self) -> None:
        self._drop_cancelled()
        while self._waiting and self._waiting[0][0] <= self.free_musd and not self.is_fenced:
            musd, turn = self._waiting.popleft()
            self.free_musd -= musd
            self.held_musd += musd
            self.was_used = True
            turn.set_result(True)
            self._drop_cancelled()


class Allowances:
    """The allowances of this process, and the only part of it that asks for leases and gives them back.

    Args:
        store: Where leases are kept.
        journal: Where they are noted.
        tasks: What runs in the background.
        clock: The time.
        most_musd: What one lease is enlarged by at most, except for a request that needs more.
        fence_after_s: After so long without the database nothing is spent any more: other processes may soon
            take our leases back.

    Attributes:
        settling: Held while charges are settled and while leases are compared: both change what is spent.
        is_fenced: Nothing is spent, since the database was not reached for too long.
    """

    def __init__(
        self,
        store: LeaseStore,
        journal: LeaseJournal,
        tasks: Tasks,
        clock: Clock,
        *,
        most_musd: int,
        fence_after_s: float = 3600.0,
    ) -> None:
        self._store = store
        self._journal = journal
        self._tasks = tasks
        self._clock = clock
        self._most_musd = most_musd
        self._fence_after_s = fence_after_s
        self._reached_at_s = clock.monotonic_s()
        self._of: dict[str, Allowance] = {}
        self.settling = asyncio.Lock()
        self.is_fenced = False

    def __len__(self) -> int:
        return len(self._of)

    def all(self) -> list[Allowance]:
        """Return those that there are, for the operator's view."""
        return list(self._of.values())

    def of(self, wallet_id: str) -> Allowance:
        """Return the allowance of a wallet; a new one is empty."""
        found = self._of.get(wallet_id)
        if found is None:
            found = self._of[wallet_id] = Allowance(wallet_id, self._ask)
            found.is_fenced = self.is_fenced
        return found

    def restore(self, leases_musd: dict[str, int], spent_musd: dict[str, int], age_s: float) -> None:
        """Take over what the journal says, where the process starts while the database is down.

        Args:
            leases_musd: By wallet.
            spent_musd: By wallet: charged, and not settled yet.
            age_s: How long ago the database was last reached, seconds.
        """
        self._reached_at_s = self._clock.monotonic_s() - age_s
        for wallet_id in {*leases_musd, *spent_musd}:
            allowance = self.of(wallet_id)
            allowance.spent_musd = spent_musd.get(wallet_id, 0)
            allowance.free_musd = max(0, leases_musd.get(wallet_id, 0) - allowance.spent_musd)
            allowance.is_unsure = True
        self._fence_if_late()

    def reached(self) -> None:
        """Note that the database was reached just now.

        After a long time without it (a machine that was asleep) the leases are read first: they may be gone.
        """
        self._fence_if_late()
        self._reached_at_s = self._clock.monotonic_s()

    def money_came(self, wallet_id: str) -> None:
        """Ask again at once for a wallet that had nothing left: it was paid into, or another limit holds."""
        allowance = self._of.get(wallet_id)
        if allowance is not None:
            allowance.ask_not_before_s = 0.0
            if allowance.reason and allowance.held_musd:  # responses run that may soon need it
                allowance.ask_for_more()

    # ---- more

    def _ask(self, allowance: Allowance) -> None:
        if self.is_fenced:
            allowance.fail_waiting(self._fenced())
            return
        if self._clock.monotonic_s() < allowance.ask_not_before_s:
            return
        allowance.is_asking = True
        self._tasks.start(self._refill(allowance), name="lease")

    async def _refill(self, allowance: Allowance) -> None:
        """Enlarge a lease until no request waits, or the wallet has no more."""
        is_asked = False
        try:
            while True:
                first, total = allowance.wanted_musd()
                least = max(first, 1)
                answer = await self._store.lease(
                    allowance.wallet_id, least_musd=least, want_musd=max(total, 1), most_musd=self._most_musd
                )
                self._note_answer(allowance, answer)
                if not answer.granted_musd:
                    if answer.is_elsewhere and not is_asked:
                        is_asked = True
                        await self._store.ask_others(allowance.wallet_id)
                        await asyncio.sleep(RETURN_WAIT_S)
                        continue
                    allowance.ask_not_before_s = self._clock.monotonic_s() + DRY_PAUSE_S
                    allowance.refuse_waiting(least)
                if allowance.wanted_musd() == (0, 0):
                    return
        except ApplianceError as error:
            self._failed(allowance, error)
        except Exception as error:
            self._failed(allowance, Unavailable("Credits cannot be looked up at present.", retry_after_s=1.0))
            log.error("lease_failed", wallet=allowance.wallet_id, error=repr(error), exc_info=error)
        finally:
            allowance.is_asking = False
            if allowance.wanted_musd() != (0, 0):
                allowance.ask_for_more()

    def _failed(self, allowance: Allowance, error: ApplianceError) -> None:
        """End the waits: whether the database has granted something is not known."""
        allowance.is_unsure = True
        allowance.ask_not_before_s = self._clock.monotonic_s() + DRY_PAUSE_S
        allowance.fail_waiting(error)

    def _note_answer(self, allowance: Allowance, answer: LeaseAnswer) -> None:
        self.reached()
        if answer.granted_musd:
            self._journal.lease(allowance.wallet_id, allowance.lease_musd + answer.granted_musd)
            self._journal.contact(round(self._clock.now_s() * 1000))  # a kill may come before the next sweep
        allowance.granted(answer)

    # ---- less

    async def sweep(self) -> None:
        """Give back what is idle, read unsure leases again, fence; call it every SWEEP_EVERY_S."""
        self._fence_if_late()
        for allowance in list(self._of.values()):
            if allowance.was_used or allowance.is_in_use:
                allowance.was_used, allowance.idle_sweeps = False, 0
                continue
            allowance.idle_sweeps += 1
            if allowance.idle_sweeps >= IDLE_SWEEPS:
                await self._end(allowance)
        await self.compare()
        if self._of and not self.is_fenced:
            age_ms = round((self._clock.monotonic_s() - self._reached_at_s) * 1000)
            self._journal.contact(round(self._clock.now_s() * 1000) - age_ms)

    async def _end(self, allowance: Allowance) -> bool:
        """Give a whole lease back, and forget the allowance; what the database says counts."""
        allowance.free_musd = 0
        self._journal.lease(allowance.wallet_id, 0)
        allowance.is_asking = True  # a request that comes meanwhile waits
        try:
            await self._store.give_back_all(allowance.wallet_id)
        except ApplianceError:
            allowance.is_unsure = True
            return False
        finally:
            allowance.is_asking = False
            if allowance.wanted_musd() != (0, 0):
                allowance.ask_for_more()
        self.reached()
        if not allowance.is_in_use and allowance.free_musd == 0:
            self._of.pop(allowance.wallet_id, None)
        return True

    async def return_asked(self, wallet_id: str) -> None:
        """Give back what is free of a lease, since another process asks for it.

        What running requests may soon need stays: nothing is given while one waits.
        """
        allowance = self._of.get(wallet_id)
        if allowance is None or allowance.is_asking or allowance.free_musd <= 0:
            return
        musd, allowance.free_musd = allowance.free_musd, 0
        self._journal.lease(wallet_id, allowance.lease_musd)
        try:
            if not await self._store.give_back(wallet_id, musd):
                allowance.is_unsure = True
            self.reached()
        except ApplianceError:
            allowance.is_unsure = True

    async def compare(self) -> None:
        """Read the leases again that we are not sure of; what the database holds for us is free.

        Raises nothing: where the database cannot be reached they stay unsure.
        """
        unsure = {
            wallet_id: allowance
            for wallet_id, allowance in self._of.items()
            if (allowance.is_unsure or self.is_fenced) and not allowance.is_asking
        }
        if not unsure and not self.is_fenced:
            return
        for allowance in unsure.values():
            allowance.is_asking = True
        try:
            async with self.settling:
                leases = await self._store.own_leases(unsure.keys())
                self.reached()
                self.is_fenced = False
                for wallet_id, allowance in unsure.items():
                    known = allowance.held_musd + allowance.spent_musd
                    allowance.free_musd = max(0, leases.get(wallet_id, 0) - known)
                    allowance.is_unsure = allowance.is_fenced = False
                    self._journal.lease(wallet_id, leases.get(wallet_id, 0))
        except ApplianceError:
            return
        finally:
            for allowance in unsure.values():
                allowance.is_asking = False
                allowance.release(0)
                if allowance.wanted_musd() != (0, 0):
                    allowance.ask_for_more()

    def _fence_if_late(self) -> None:
        """Stop spending where the database was not reached for long: our leases may be taken back soon."""
        if self.is_fenced or self._clock.monotonic_s() - self._reached_at_s < self._fence_after_s:
            return
        if not self._of:
            return
        self.is_fenced = True
        log.error("allowances_fenced", after_s=self._fence_after_s)
        for allowance in self._of.values():
            allowance.free_musd = 0
            allowance.is_unsure = allowance.is_fenced = True
            allowance.fail_waiting(self._fenced())

    def _fenced(self) -> Unavailable:
        return Unavailable(
            "The database of accounts was not reached for too long: nothing can be spent. Try again later.",
            code="store_unavailable",
            retry_after_s=10.0,
        )

    async def close(self) -> None:
        """Give all leases back that no request uses."""
        for allowance in list(self._of.values()):
            if not allowance.is_in_use:
                await self._end(allowance)
