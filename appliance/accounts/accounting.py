"""Builds the parts that know what things cost, joins them, starts and stops them; one per process."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from appliance.accounts.allowance import SWEEP_EVERY_S, Allowances
from appliance.accounts.guardrails import Guardrails, limits_of_settings
from appliance.accounts.journal import Journal
from appliance.accounts.ledger import balances
from appliance.accounts.meter import Metering
from appliance.accounts.quotas import RequestQuotas
from appliance.accounts.recovery import Recovered, read_replica_id, recover
from appliance.accounts.renewals import renew_due
from appliance.accounts.settings import AccountSettings
from appliance.accounts.settlement import BillingRules
from appliance.accounts.settler import Settler
from appliance.accounts.usage import UsageStore
from appliance.accounts.wallets import RETURN_CHANNEL, Wallets
from appliance.base.clock import Clock
from appliance.base.errors import Unavailable, describe_os_error, write_remedy
from appliance.base.logs import get_logger
from appliance.base.money import parse_musd, to_dollars
from appliance.base.tasks import Tasks
from appliance.storage.database import Database, StoreRefused

log = get_logger("accounts")
FOLDER = "accounts-journal"
HEARTBEAT_EVERY_S = 15.0
RENEW_EVERY_S = 60.0
TIDY_EVERY_S = 3600.0


class Accounting:
    """Everything about money in one process.

    Args:
        database: Opened; it may be down.
        settings: Of accounts.
        state_dir: STATE_DIR; the journal is a folder of it.
        tasks: What runs in the background.
        clock: The time.
        limits_of: Wallet → limits of its spending, window → micro-dollars; None = those of GUARDRAILS_*.
        host: This machine's name, for the operator.
        version: The appliance's.

    Attributes:
        wallets: In the database.
        usage: Settled attempts in the database.
        guardrails: Limits on spending.
        quotas: Requests per month.
        allowances: What may be spent without asking the database.
        metering: Makes the meters of requests.
        settler: Brings what was charged to the database.
        journal: What was charged and is not there yet.

    Raises:
        StoreRefused: The journal cannot be used: the text says why (blocking).
    """

    def __init__(
        self,
        database: Database,
        settings: AccountSettings,
        state_dir: Path,
        *,
        tasks: Tasks,
        clock: Clock,
        limits_of: Callable[[str], Mapping[str, int]] | None = None,
        host: str = "",
        version: str = "",
    ) -> None:
        folder = state_dir / FOLDER
        try:
            self.journal = Journal(folder, max_bytes=settings.journal_max_mb * 1024 * 1024)
            replica_id = read_replica_id(folder, clock)
        except BlockingIOError:
            raise StoreRefused(f"Another process uses {folder}: give each its own STATE_DIR") from None
        except OSError as error:
            raise StoreRefused(
                f"Charges cannot be noted: {describe_os_error(error)}. {write_remedy(error)}"
            ) from None
        limits = limits_of_settings(settings)
        self._database = database
        self._tasks = tasks
        self._clock = clock
        self._host, self._version = host, version
        self._fence_after_s = settings.snapshot_max_age_s
        self.guardrails = Guardrails(database, clock, limits_of or (lambda _: limits))
        self.wallets = Wallets(
            database, clock, replica_id, epoch=int(clock.now_s() * 1000), guardrails=self.guardrails
        )
        self.usage = UsageStore(self.wallets)
        self.quotas = RequestQuotas(
            database,
            clock,
            max_requests=settings.quota_max_requests,
            max_gpu_seconds=int(settings.quota_max_gpu_hours * 3600),
        )
        self.allowances = Allowances(
            self.wallets,
            self.journal,
            tasks,
            clock,
            most_musd=max(1, parse_musd(settings.wallet_lease_max_usd)),
            fence_after_s=self._fence_after_s,
        )
        self.settler = Settler(self.usage, self.allowances, self.journal, clock)
        self.metering = Metering(
            self.allowances,
            self.journal,
            self.settler.add,
            clock,
            rules=BillingRules(
                is_unanswered_billed=settings.bill_unanswered == "supply",
                is_broken_billed=settings.bill_broken == "counted",
            ),
            slice_tokens=settings.hold_slice_tokens,
        )

    async def open(self) -> Recovered:
        """Put right what the time before has left, and start the work in the background.

        Call it before the first request. A database that is down does not stop it.
        """
        recovered = await recover(
            self.journal, self.usage, self.wallets, self.allowances, self.settler, self._clock
        )
        self._tasks.start(self.journal.keep_synced(), name="journal_sync")
        self._tasks.start(self.settler.work(), name="settler")
        self._tasks.every(SWEEP_EVERY_S, self.allowances.sweep, name="allowances")
        self._tasks.every(HEARTBEAT_EVERY_S, self._heartbeat, name="replica_heartbeat")
        self._tasks.every(RENEW_EVERY_S, self._renew, name="wallet_renewals")
        self._tasks.every(TIDY_EVERY_S, self._tidy, name="spending_tidy")
        await self._database.listen(RETURN_CHANNEL, self._heard)
        return recovered

    def _heard(self, text: str | None) -> None:
        wallet_id = self.wallets.asked_wallet(text)
        if wallet_id:
            self._tasks.start(self.allowances.return_asked(wallet_id), name="lease_return")

    async def _heartbeat(self) -> None:
        try:
            await self.wallets.heartbeat(self._host, self._version)
            self.allowances.reached()
        except Unavailable:
            pass  # the store says so itself

    async def _renew(self) -> None:
        try:
            await renew_due(self.wallets)
            taken = await self.wallets.take_back(self._fence_after_s)
            if taken:
                log.warning("leases_taken_back", musd=taken)
        except Unavailable:
            pass

    async def _tidy(self) -> None:
        try:
            await self.guardrails.remove_old()
        except Unavailable:
            pass

    async def view(self) -> dict[str, Any]:
        """Return what `GET /admin/money` shows, in dollars.

        Raises:
            StoreUnavailable: The database is down.
        """
        sums = await balances(self._database)
        return {
            "accounts": {name: to_dollars(musd) for name, musd in sums.items()},
            "ledger_sum": to_dollars(sum(sums.values())),
            **self.local_view(),
        }

    def local_view(self) -> dict[str, Any]:
        """Return what this process knows of money without asking the database, in dollars and seconds."""
        allowances = self.allowances.all()
        return {
            "replica_id": self.wallets.replica_id,
            "leased": to_dollars(sum(one.lease_musd for one in allowances)),
            "held": to_dollars(sum(one.held_musd for one in allowances)),
            "unsettled": to_dollars(sum(one.spent_musd for one in allowances)),
            "unsettled_attempts": self.settler.waiting_count,
            "oldest_unsettled_s": round(self.settler.oldest_s, 3),
            "stuck_attempts": len(self.settler.stuck),
            "settled": dict(self.settler.settled),
            "loss": to_dollars(self.settler.loss_musd),
            "journal_bytes": self.journal.size_bytes,
            "is_fenced": self.allowances.is_fenced,
        }

    async def close(self) -> None:
        """Settle what waits, give back what is leased, and close the journal; after the last request."""
        try:
            await self.settler.drain()
            await self.allowances.close()
            await self.quotas.close()
        except Unavailable as error:
            log.warning("money_not_settled", attempts=self.settler.waiting_count, reason=error.message)
        finally:
            self.journal.close()
