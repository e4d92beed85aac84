"""Builds the parts that hold, charge and settle money, joins them, starts and stops them."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from appliance.accounts.allowance import SWEEP_EVERY_S, Allowances
from appliance.accounts.changes import ChangeFeed
from appliance.accounts.guardrails import Guardrails, limits_of_settings
from appliance.accounts.journal import Journal
from appliance.accounts.key_caps import KeyCaps
from appliance.accounts.meter import Metering
from appliance.accounts.price_snapshot import FILE_NAME as PRICES_FILE_NAME
from appliance.accounts.price_snapshot import PriceSnapshot
from appliance.accounts.price_store import KIND as PRICE_CHANGED
from appliance.accounts.price_store import PriceStore
from appliance.accounts.prices import Price, PriceBook, join_prices
from appliance.accounts.quotas import RequestQuotas
from appliance.accounts.recovery import read_replica_id, recover
from appliance.accounts.renewals import renew_due
from appliance.accounts.settings import AccountSettings
from appliance.accounts.settlement import BillingRules
from appliance.accounts.settler import Settler
from appliance.accounts.usage import UsageStore
from appliance.accounts.usage_events import TELL_S, UsageEvents
from appliance.accounts.wallets import MONEY_CHANGED, RETURN_CHANNEL, Wallets
from appliance.base.clock import Clock
from appliance.base.errors import Unavailable
from appliance.base.logs import get_logger
from appliance.base.money import parse_musd
from appliance.base.tasks import Tasks
from appliance.storage.database import Database, StoreUnavailable
from appliance.storage.events import EventLog

log = get_logger("accounts")
HEARTBEAT_S: Final = 15.0
MINUTE_S: Final = 60.0
HOUR_S: Final = 3600.0
JOURNAL_FOLDER: Final = "journal"


class MoneyStore:
    """What of the money is in the database; enough for programs that serve no requests.

    Args:
        replica_id: Whose leases this process owns; "" = it leases nothing.
    """

    def __init__(
        self,
        settings: AccountSettings,
        database: Database,
        changes: ChangeFeed,
        *,
        clock: Clock,
        replica_id: str = "",
    ) -> None:
        limits = limits_of_settings(settings)
        self.settings = settings
        self.database = database
        self.events = EventLog(database, changes, clock=clock)
        self.guardrails = Guardrails(database, clock, lambda wallet_id: limits)
        self.wallets = Wallets(
            database,
            clock,
            replica_id,
            epoch=round(clock.now_s() * 1000),
            guardrails=self.guardrails if limits else None,
            changes=changes,
            events=self.events,
        )
        self.usage = UsageStore(self.wallets)
        self.prices = PriceStore(database, changes, clock=clock)
        self.quotas = RequestQuotas(
            database,
            clock,
            max_requests=settings.quota_max_requests,
            max_gpu_seconds=round(settings.quota_max_gpu_hours * 3600),
        )


@dataclass(slots=True)
class Money:
    """All parts that hold, charge and settle money, of one process that serves requests.

    Attributes:
        store: What is in the database.
        price_snapshot: The prices of the database on disk; None = they are not kept there.
        file_prices: Those of PRICES_FILE, which stand beside those of the database.
        stored_prices: Those of the database, as they were read last; None = they were not read yet.
        book: The prices that are in force; replaced when they change.
    """

    store: MoneyStore
    changes: ChangeFeed
    journal: Journal
    allowances: Allowances
    settler: Settler
    metering: Metering
    usage_events: UsageEvents
    clock: Clock
    tasks: Tasks
    host: str = ""
    version: str = ""
    price_snapshot: PriceSnapshot | None = None
    file_prices: list[Price] = field(default_factory=list)
    stored_prices: list[Price] | None = None
    book: PriceBook = field(default_factory=PriceBook)
    _started: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self) -> None:
        """Settle what the journal still has, read the prices, start what runs in the background."""
        await recover(
            self.journal, self.store.usage, self.store.wallets, self.allowances, self.settler, self.clock
        )
        self._build_book()
        self.changes.on(PRICE_CHANGED, self._prices_changed)
        self.changes.on(MONEY_CHANGED, self._money_came)
        await self._beat()
        await self.read_prices()
        if not len(self.book) and not self.book.is_unpriced_free:
            log.warning("no_prices", note="users get 402 for every model: set PRICES_FILE, or UNPRICED=free")
        tasks = self.tasks
        self._started = [
            tasks.start(self.settler.work(), name="accounts_settle"),
            tasks.start(self.journal.keep_synced(), name="accounts_journal"),
        ]
        tasks.every(SWEEP_EVERY_S, self.allowances.sweep, name="accounts_sweep")
        tasks.every(HEARTBEAT_S, self._beat, name="accounts_heartbeat")
        tasks.every(MINUTE_S, self._each_minute, name="accounts_renew")
        tasks.every(TELL_S, self.usage_events.tell, name="accounts_usage_events")
        tasks.every(HOUR_S, self._prune_events, name="accounts_prune_events")
        await self.store.database.listen(RETURN_CHANNEL, self._told)

    async def close(self) -> None:
        """Settle what waits, and give all leases back; what cannot be settled stays in the journal."""
        for task in self._started:
            task.cancel()
        try:
            await self.settler.drain()
            await self.usage_events.tell()
            await self.allowances.close()
            await self.store.quotas.close()
        except Unavailable as error:
            log.warning("money_not_settled", reason=error.message, attempts=self.settler.waiting_count)
        await asyncio.to_thread(self.journal.close)

    async def read_prices(self) -> None:
        """Read the prices of the database; those in force stay while it is down, and last over a restart."""
        kept = self.price_snapshot
        try:
            found = await self.store.prices.read()
        except StoreUnavailable:  # they are read when the changes are
            if self.stored_prices is None and kept is not None:
                self.stored_prices = await asyncio.to_thread(kept.load)
                self._build_book()
            return
        is_other, self.stored_prices = found != self.stored_prices, found
        self._build_book()
        if is_other and kept is not None:
            await asyncio.to_thread(kept.write, found)

    def set_file_prices(self, prices: list[Price]) -> None:
        """Take other prices of PRICES_FILE."""
        self.file_prices = prices
        self._build_book()

    def _build_book(self) -> None:
        """Join the prices: a model's price of the database counts, else that of the file."""
        rows = join_prices(self.stored_prices or [], self.file_prices)
        self.book = PriceBook(rows, is_unpriced_free=self.store.settings.unpriced == "free")

    async def _prices_changed(self, _: set[str]) -> None:
        await self.read_prices()

    async def _money_came(self, wallet_ids: set[str]) -> None:
        for wallet_id in wallet_ids:
            self.allowances.money_came(wallet_id)

    async def _beat(self) -> None:
        try:
            await self.store.wallets.heartbeat(self.host, self.version)
        except Unavailable:
            return
        self.allowances.reached()

    async def _each_minute(self) -> None:
        """Renew wallets, take dead replicas' leases back, forget old spending; any process may do it."""
        if self.metering.caps is not None:
            self.metering.caps.remove_idle()
        try:
            await renew_due(self.store.wallets)
            taken_musd = await self.store.wallets.take_back(self.store.settings.snapshot_max_age_s)
            await self.store.guardrails.remove_old()
        except Unavailable:
            return
        if taken_musd:
            log.warning("leases_taken_back", musd=taken_musd)

    async def _prune_events(self) -> None:
        try:
            await self.store.events.prune()
        except Unavailable:
            pass  # in an hour again

    def _told(self, text: str | None) -> None:
        """Handle a notification: another process asks for what is free of a wallet's lease."""
        wallet_id = self.store.wallets.asked_wallet(text)
        if wallet_id:
            self.tasks.start(self.allowances.return_asked(wallet_id), name="accounts_return")


def build_money(
    settings: AccountSettings,
    database: Database,
    changes: ChangeFeed,
    *,
    state_dir: Path,
    clock: Clock,
    tasks: Tasks,
    host: str = "",
    version: str = "",
) -> Money:
    """Build the parts; `await money.start()` begins (blocking: the journal is read).

    Args:
        settings: Of accounts.
        state_dir: STATE_DIR; the journal is in it.
        host: This machine's name, for the list of replicas.
        version: Of the appliance, likewise.

    Raises:
        OSError: The journal cannot be used, or another process uses it.
    """
    folder = state_dir / JOURNAL_FOLDER
    journal = Journal(folder, max_bytes=settings.journal_max_mb * 1024 * 1024)
    store = MoneyStore(settings, database, changes, clock=clock, replica_id=read_replica_id(folder, clock))
    allowances = Allowances(
        store.wallets,
        journal,
        tasks,
        clock,
        most_musd=parse_musd(settings.wallet_lease_max_usd),
        fence_after_s=settings.snapshot_max_age_s,
    )
    usage_events = UsageEvents(database, store.events, clock=clock)
    settler = Settler(store.usage, allowances, journal, clock, on_settled=usage_events.add)
    caps = KeyCaps(database, clock, settler.unsettled_musd)
    metering = Metering(
        allowances,
        journal,
        settler.add,
        clock,
        rules=BillingRules(
            is_unanswered_billed=settings.bill_unanswered == "supply",
            is_broken_billed=settings.bill_broken == "counted",
        ),
        slice_tokens=settings.hold_slice_tokens,
        caps=caps,
    )
    return Money(
        store,
        changes,
        journal,
        allowances,
        settler,
        metering,
        usage_events,
        clock,
        tasks,
        host=host,
        version=version,
        price_snapshot=PriceSnapshot(state_dir / PRICES_FILE_NAME, settings.jwt_secret.get_secret_value()),
    )
