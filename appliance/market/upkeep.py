"""What is done for rentals in the background: rounds, replacements, the start and the end of a process."""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Final

from appliance.base.errors import ApplianceError
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.market.admission import RentalAdmission
from appliance.market.billing_step import renter_of
from appliance.market.candidates import RentalCandidates
from appliance.market.launches import order_of, replacement_of
from appliance.market.listings import Listings
from appliance.market.market_store import MarketStore
from appliance.market.rental_rules import MAX_START_TRIES
from appliance.market.rental_steps import ask_end
from appliance.market.rental_store import RentalStore, RentalTurn
from appliance.market.rental_types import Rental
from appliance.market.rental_work import RentalWork
from appliance.market.reservations import Pause, Reservations
from appliance.market.settings import MarketSettings
from appliance.market.sweep import Sweep
from appliance.storage.database import StoreUnavailable, Transaction

log = get_logger("market")
ROUND_S: Final = 2.0
SHUTDOWN_S: Final = 60.0


class RentalUpkeep:
    """Works on all rentals while a process runs.

    Args:
        settings: RENT_*.
        work: Works on the rentals.
        admission: Lets replacements begin.
        reservations: Gives back those that no process makes any more.
        sweep: Compares listings.
        candidates: Offers for replacements.
        tasks: What runs in the background.
        pause: Waits so many seconds.
    """

    def __init__(
        self,
        settings: MarketSettings,
        work: RentalWork,
        admission: RentalAdmission,
        reservations: Reservations,
        sweep: Sweep,
        candidates: RentalCandidates,
        tasks: Tasks,
        *,
        pause: Pause = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._work = work
        self._store: RentalStore = work.store
        self._market: MarketStore = work.market
        self._listings: Listings = work.listings
        self._admission = admission
        self._reservations = reservations
        self._sweep = sweep
        self._candidates = candidates
        self._tasks = tasks
        self._pause = pause
        self._opening = asyncio.Lock()

    def start(self) -> None:
        """Begin to work; a database that is down is tried again each round.

        Each market has its own round, so that one that does not answer delays no other.
        """
        for name in self._listings.providers:
            self._tasks.every(ROUND_S, partial(self._look_at, name), name=f"market_{name}")
        self._tasks.every(ROUND_S, self._round_of_all, name="market")
        self._tasks.every(ROUND_S, self._sweep_if_due, name="market_sweep")

    async def open(self) -> None:
        """Read what holds for all; take over what a process before has left, where it was the only one."""
        await self._market.open()
        if self._store.database.kind == "sqlite":
            await self._store.release_all()
            await self._reservations.give_back_abandoned(is_alone=True)

    async def round(self) -> None:
        """Do all that is due: reservations that were left, rentals, listings."""
        await self._round_of_all()
        await self._look_at("")
        await self._replace_failed()
        await self._sweep_if_due()

    async def _round_of_all(self) -> None:
        try:
            await self.ensure_open()
            await self._reservations.give_back_abandoned()
            await self._replace_failed()
            for rental_id in await self._store.without_payer():
                await self.ask_end(rental_id, "user_deleted")
        except StoreUnavailable as exc:
            log.debug("market_waits", reason=exc.reason)

    async def _replace_failed(self) -> None:
        await asyncio.gather(*(self._replace(rental) for rental in self._work.take_failed_starts()))

    async def _look_at(self, name: str) -> None:
        try:
            await self.ensure_open()
            await self._work.look(name)
        except StoreUnavailable as exc:
            log.debug("market_waits", reason=exc.reason)

    async def _sweep_if_due(self) -> None:
        try:
            await self.ensure_open()
            await self._sweep.work_if_due()
        except StoreUnavailable as exc:
            log.debug("market_waits", reason=exc.reason)

    async def ensure_open(self) -> None:
        """Read what holds for all, where that was not possible before."""
        async with self._opening:
            if not self._market.install_id:
                await self.open()

    async def close(self) -> None:
        """Leave all rentals to their leases, or destroy them (RENT_ON_SHUTDOWN=destroy)."""
        if self._settings.rent_on_shutdown != "destroy":
            return
        try:
            if not await self._market.other_replicas():
                await self._destroy_all()
        except StoreUnavailable as exc:
            log.error("rentals_left", reason=exc.reason)

    async def _destroy_all(self) -> None:
        for rental in await self._store.live():
            await self.ask_end(rental.id, "shutdown")
        end_ms = self._store.now_ms() + round(SHUTDOWN_S * 1000)
        while left := await self._store.live():
            await self._work.look()
            if self._store.now_ms() >= end_ms:
                log.error("rentals_left", rentals=[rental.id for rental in left])
                return
            await self._pause(1.0)

    async def ask_end(self, rental_id: str, reason: str) -> None:
        """Note that a rental is to end; the next look does the rest."""

        async def change(transaction: Transaction) -> None:
            rental = await self._store.lock(transaction, rental_id)
            if rental is not None:
                ending = ask_end(rental, "gone", reason, self._store.now_ms())
                await self._store.write(transaction, ending)

        self._work.on_step()
        await self._store.database.run(change)
        self._work.on_step()

    async def _replace(self, rental: Rental) -> None:
        """Rent another offer in the place of an instance that did not start; nothing is raised."""
        found = replacement_of(rental)
        if found is None or rental.start_tries >= MAX_START_TRIES:
            return
        wanted, provider = found
        try:
            offers = await self._candidates.offers(wanted, provider)
            offers = [one for one in offers if not one.prepaid_hours or rental.prepaid_hours]
            if not offers:
                log.warning("rental_not_replaced", rental=rental.id, reason="there is no such offer")
                return
            renter = renter_of(rental)
            other = replace(
                self._candidates.rental(renter, offers[0], order_of(rental), wanted, provider),
                replaces=rental.id,
                start_tries=rental.start_tries + 1,
                reservation_id=rental.reservation_id,
            )

            async def change(transaction: Transaction) -> list[Rental]:
                return await self._admission.admit(transaction, renter, [other])

            [owned] = await self._admission.run(renter, change)
            await self._work.continue_with(owned, RentalTurn(owned.id, owned.turn))
        except ApplianceError as exc:
            log.warning("rental_not_replaced", rental=rental.id, reason=exc.message)
