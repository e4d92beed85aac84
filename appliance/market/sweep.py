"""Compares what markets list with the rentals: nothing of ours runs there unknown, nothing else is touched.

An instance is ours by the installation's id in its label. One that no live rental knows is destroyed when it
was seen twice, a minute apart. A rental whose instance is missing is looked at again at once.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

from appliance.base.logs import get_logger
from appliance.market.launches import rental_of_label
from appliance.market.listings import Listings, reason_of
from appliance.market.market_store import MarketStore
from appliance.market.money import RentalPayments, price_of
from appliance.market.rental_rules import MISS_MS
from appliance.market.rental_types import Rental, SweepReport
from appliance.market.rental_work import RentalWork
from appliance.market.types import Instance, InstanceState
from appliance.storage.database import Transaction

log = get_logger("market")
SWEEP_EVERY_S: Final = 300.0
SOON_S: Final = 15.0  # where a listing was not known, or an orphan was seen once
ASK_EVERY_MS: Final = 20_000  # whether this process is the one that sweeps
Orphan = tuple[str, str]  # market, contract


@dataclass(frozen=True, slots=True)
class _Compared:
    """What a listing says.

    Attributes:
        orphans: Instances of ours that no live rental knows.
        found: Rentals of which it was not known whether they were created, and were.
        missing: Rentals whose instance is not listed.
    """

    orphans: list[Instance]
    found: list[Rental]
    missing: list[Rental]


def compare(listed: list[Instance], before: list[Rental], after: list[Rental], install_id: str) -> _Compared:
    """Compare a complete listing with the rentals of its market. Pure.

    Args:
        listed: The listing.
        before: The live rentals before it was asked for.
        after: The live ones afterwards; only what was live all the time can be missing.
        install_id: In our labels.
    """
    live = {rental.id: rental for rental in [*before, *after]}
    contracts = {rental.contract_id for rental in live.values() if rental.contract_id}
    orphans, found = [], []
    for instance in listed:
        rental_id = rental_of_label(instance.label, install_id)
        if rental_id is None or instance.contract_id in contracts:
            continue
        rental = live.get(rental_id)
        if rental is not None and not rental.contract_id:
            found.append(rental)
        elif instance.state is not InstanceState.ENDED:
            orphans.append(instance)
    there = {instance.contract_id for instance in listed}
    still = {rental.id for rental in after}
    missing = [
        rental
        for rental in before
        if rental.contract_id and rental.contract_id not in there and rental.id in still
    ]
    return _Compared(orphans, found, missing)


class Sweep:
    """Looks at all listings now and then; one process of an installation does.

    Args:
        work: Works on the rentals.
        market: What holds for all.
        payments: Where it is noted what an orphan has cost.
        listings: The markets.
    """

    def __init__(
        self,
        work: RentalWork,
        market: MarketStore,
        payments: RentalPayments,
        listings: Listings,
    ) -> None:
        self._work = work
        self._market = market
        self._payments = payments
        self._listings = listings
        self._sighted: dict[Orphan, int] = {}
        self._next_ms = 0
        self._ask_ms = 0
        self._is_ours = False

    async def work_if_due(self) -> None:
        """Sweep where it is time, and no other process does."""
        now = self._market.now_ms()
        if now >= self._ask_ms:
            self._is_ours = await self._market.take_sweep(3 * ASK_EVERY_MS)
            self._ask_ms = now + ASK_EVERY_MS
        if not self._is_ours or now < self._next_ms:
            return
        report = await self.sweep()
        is_soon = self._sighted or None in report.providers.values()
        self._next_ms = now + round((SOON_S if is_soon else SWEEP_EVERY_S) * 1000)

    async def sweep(self) -> SweepReport:
        """Compare every market's listing; see SweepReport."""
        report = SweepReport()
        await self._market.forget_avoided()
        await asyncio.gather(*(self._try_one(name, report) for name in self._listings.providers))
        return report

    async def _try_one(self, name: str, report: SweepReport) -> None:
        try:
            report.providers[name] = await self._sweep_one(name, report)
        except Exception as exc:
            log.warning("sweep_failed", provider=name, reason=reason_of(exc))
            report.providers[name] = None

    async def _sweep_one(self, name: str, report: SweepReport) -> int:
        """Compare one market; return how many instances of ours it lists."""
        store = self._work.store
        before = await store.live(provider=name)
        listed = await self._listings.list(name)
        after = await store.live(provider=name)
        compared = compare(listed, before, after, self._market.install_id)
        await self._note_credit(name)
        now = self._market.now_ms()
        seen = {(name, instance.contract_id) for instance in compared.orphans}
        for key in [key for key in self._sighted if key[0] == name and key not in seen]:
            del self._sighted[key]
        for instance in compared.orphans:
            await self._handle_orphan(name, instance, now, report)
        for rental in [*compared.found, *compared.missing]:
            worked = await self._work.work_on(rental.id)
            if worked is not None and worked.state == "lost":
                report.lost.append(rental.id)
        report.adopted.extend(rental.id for rental in compared.found)
        return sum(
            rental_of_label(instance.label, self._market.install_id) is not None for instance in listed
        )

    async def _handle_orphan(self, name: str, instance: Instance, now_ms: int, report: SweepReport) -> None:
        """Destroy an instance that was seen before; it stays sighted until no listing has it."""
        key = (name, instance.contract_id)
        since = self._sighted.setdefault(key, now_ms)
        if now_ms - since < MISS_MS:
            if since == now_ms:
                log.warning("orphan_seen", provider=name, contract=instance.contract_id)
                report.orphans.append(instance.contract_id)
            return
        self._work.on_step()
        try:
            await self._listings.providers[name].destroy(instance.contract_id)
        except Exception as exc:
            log.warning(
                "orphan_not_destroyed",
                provider=name,
                contract=instance.contract_id,
                reason=reason_of(exc),
            )
            return
        self._work.on_step()
        log.warning("orphan_destroyed", provider=name, contract=instance.contract_id)
        report.destroyed.append(instance.contract_id)
        await self._book(name, instance, since, now_ms)

    async def _book(self, name: str, instance: Instance, since_ms: int, now_ms: int) -> None:
        """Note what an orphan has cost and was not noted before.

        It is counted from the market's begin where it tells, else since we saw it.
        """
        if instance.state is InstanceState.STARTING:
            return
        begun = instance.started_ms
        if begun is None or not 0 < begun <= now_ms:
            begun = since_ms
        rental_id = rental_of_label(instance.label, self._market.install_id) or ""
        known = await self._work.store.select("id = :id", {"id": rental_id})
        booked = 0
        if known:  # it was a rental's, and came back after that had ended
            begun = max(begun, known[0].supplied_until or 0)
            booked = known[0].supply_musd
        by_time = price_of(instance.supply_musd_per_h, now_ms - begun)
        musd = instance.paid_musd - booked if instance.paid_musd else by_time
        if musd <= 0:
            return

        async def change(transaction: Transaction) -> None:
            await self._payments.book_supply(
                transaction,
                name,
                f"{name}:{instance.contract_id}",
                musd,
                at_ms=now_ms,
                note="an instance without a rental",
            )

        await self._market.database.run(change)

    async def _note_credit(self, name: str) -> None:
        try:
            musd = await self._listings.providers[name].credit_musd()
        except Exception as exc:
            log.info("credit_not_known", provider=name, reason=reason_of(exc))
            return
        await self._market.note_credit(name, musd)
