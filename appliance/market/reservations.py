"""Reservations: several instances, all or none.

The row, the rentals and one hold for all of them are written together; then four are created at a time. Of
an offer that is gone the next one is taken. Where fewer than were asked for can be had, all are destroyed,
and the wallet is as it was. A process that dies in the middle leaves an open row: another one gives all back.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

from appliance.base.errors import ApplianceError
from appliance.base.ids import new_id
from appliance.base.logs import get_logger
from appliance.base.rental_charges import Renter
from appliance.market.admission import RentalAdmission, not_paid
from appliance.market.billing_step import renter_of
from appliance.market.launches import offer_of, repointed
from appliance.market.money import first_hold
from appliance.market.offer_choice import OfferChoice
from appliance.market.rental_rules import decide
from appliance.market.rental_steps import NOT_KNOWN, RentalStep, begin_end, roll_back
from appliance.market.rental_store import RentalTakenOver, RentalTurn, ReservationRow
from appliance.market.rental_types import Rental, Reserved
from appliance.market.rental_work import RentalWork
from appliance.market.types import Offer
from appliance.storage.database import Transaction

log = get_logger("market")
AT_ONCE: Final = 4
TRIES_FOR_EACH: Final = 3
WITHIN_MS: Final = 60_000
VERIFY_MS: Final = 25_000  # so long an answer waits until what was given back is gone
VERIFY_EVERY_S: Final = 2.0
MAX_ERRORS: Final = 50
Pause = Callable[[float], Awaitable[None]]


class Reservations:
    """Makes reservations, and gives back those that no process makes any more.

    Args:
        work: Works on the rentals.
        admission: Lets them begin.
        choice: Which offers are taken.
        pause: Waits so many seconds.
    """

    def __init__(
        self,
        work: RentalWork,
        admission: RentalAdmission,
        choice: OfferChoice,
        *,
        pause: Pause = asyncio.sleep,
    ) -> None:
        self._work = work
        self._store = work.store
        self._admission = admission
        self._choice = choice
        self._pause = pause

    async def begin(
        self,
        renter: Renter,
        rentals: Sequence[Rental],
        *,
        count: int,
        is_partial: bool,
        idempotency_key: str,
        request: str,
    ) -> tuple[ReservationRow, list[Rental], bool]:
        """Write a reservation, its rentals and what is held for them.

        Returns:
            The row; its rentals; whether it is new: a repeated key gives the former one.

        Raises:
            ApplianceError: Something does not allow it; nothing was written.
        """
        clock = self._store.clock
        now = self._store.now_ms()
        row = ReservationRow(
            id=new_id(clock),
            user_id=renter.user_id or None,
            wallet_id=renter.wallet_id,
            key_id=renter.key_id or None,
            idempotency_key=idempotency_key or None,
            request=request,
            count=count,
            is_partial=is_partial,
            state="open",
            tries=len(rentals),
            errors=[],
            created_at=now,
            owner=self._store.owner,
            owner_until=now + self._store.lease_ms,
        )
        owned = [replace(rental, reservation_id=row.id) for rental in rentals]

        async def change(transaction: Transaction) -> tuple[ReservationRow, list[Rental], bool]:
            # Locked before any row of this wallet, as by all that rent: in one order nothing blocks another.
            await self._work.market.market_row(transaction, is_locked=True)
            if idempotency_key:
                known = await self._store.find_reservation(transaction, renter.wallet_id, idempotency_key)
                if known is not None:
                    return known, await self._store.of_reservation(transaction, known.id), False
            await self._store.insert_reservation(transaction, row)
            return row, await self._admission.admit(transaction, renter, owned), True

        self._work.on_step()
        found = await self._admission.run(renter, change)
        self._work.on_step()
        return found

    async def make(self, row: ReservationRow, rentals: Sequence[Rental], more: Sequence[Offer]) -> Reserved:
        """Create the instances of a reservation that was begun.

        Args:
            row: Its row.
            rentals: Its rentals.
            more: Offers for those that are gone, in the order in which they are taken.
        """
        attempt = _Attempt(self, row, list(more))
        places = asyncio.Semaphore(AT_ONCE)

        async def create(rental: Rental) -> Rental | None:
            async with places:
                return await attempt.create(rental)

        made = await asyncio.gather(*(create(rental) for rental in rentals))
        created = [rental for rental in made if rental is not None]
        if len(created) == row.count or (row.is_partial and created):
            if await self._close(row, attempt.errors, attempt.tries):
                for rental in created:
                    self._choice.note_taken(offer_of(rental), now_s=self._store.clock.now_s())
                return Reserved(row.id, created, row.count, attempt.errors[:MAX_ERRORS])
            attempt.errors.append("The reservation took too long, and was given back.")
        return await self.give_back(row, attempt.errors, attempt.tries)

    async def _close(self, row: ReservationRow, errors: list[str], tries: int) -> bool:
        """Let the rentals of a reservation go on by themselves; False = it was given back meanwhile."""

        async def change(transaction: Transaction) -> list[RentalStep] | None:
            if not await self._store.change_reservation(
                transaction, row.id, expected="open", state="done", errors=errors, tries=tries
            ):
                return None
            steps = []
            for rental in await self._store.of_reservation(transaction, row.id):
                step = RentalStep(replace(rental, owner_until=0))
                if rental.is_live and not (rental.contract_id and rental.state in ("starting", "ready")):
                    step = begin_end(step.rental, "failed", "not_created", self._store.now_ms())
                steps.append(await self._work.write(transaction, rental, step))
            return steps

        self._work.on_step()
        steps = await self._store.database.run(change)
        self._work.on_step()
        for step in steps or ():
            await self._work.tell(step)
        return steps is not None

    async def give_back(self, row: ReservationRow, errors: list[str], tries: int) -> Reserved:
        """Destroy all that a reservation has created; wait a while until it is certain that it is gone."""
        rentals = await self.roll_back(row.id, errors, tries)
        end_ms = self._store.now_ms() + VERIFY_MS
        while True:
            left = [rental for rental in rentals if rental.is_live]
            await asyncio.gather(*(self._work.work_on(rental.id) for rental in left))
            rentals = await self._read(row.id)
            left = [rental for rental in rentals if rental.is_live]
            if not left or self._store.now_ms() >= end_ms:
                break
            await self._pause(VERIFY_EVERY_S)
        await self._store.finish_rolled_back()
        return Reserved(row.id, [], row.count, errors[:MAX_ERRORS], is_rolled_back=True, unconfirmed=left)

    async def _read(self, reservation_id: str) -> list[Rental]:
        return await self._store.select("reservation_id = :id", {"id": reservation_id})

    async def roll_back(
        self, reservation_id: str, errors: list[str] | None = None, tries: int | None = None
    ) -> list[Rental]:
        """Begin to give a reservation back: no other process goes on making it, no user pays for it."""

        async def change(transaction: Transaction) -> list[RentalStep]:
            if not await self._store.change_reservation(
                transaction, reservation_id, expected="open", state="rolling_back", errors=errors, tries=tries
            ):
                return [
                    RentalStep(one) for one in await self._store.of_reservation(transaction, reservation_id)
                ]
            now = self._store.now_ms()
            steps = []
            for rental in await self._store.of_reservation(transaction, reservation_id):
                free = replace(rental, owner="", owner_until=0, turn=rental.turn + 1)
                step = roll_back(free, now)
                if step.call == "destroy":  # it is called by the next look
                    called = replace(step.rental, destroy_calls=0, destroy_called_at=None)
                    step = replace(step, rental=called, call="")
                steps.append(await self._work.write(transaction, rental, step))
            return steps

        self._work.on_step()
        steps = await self._store.database.run(change)
        self._work.on_step()
        for step in steps:
            await self._work.tell(step)
        return [step.rental for step in steps]

    async def give_back_abandoned(self, *, is_alone: bool = False) -> int:
        """Begin to give back reservations that no process makes any more; return how many."""
        abandoned = await self._store.abandoned_reservations(is_alone=is_alone)
        for reservation_id in abandoned:
            log.warning("reservation_rolled_back", reservation=reservation_id)
            await self.roll_back(reservation_id, ["The appliance ended before it was complete."])
        await self._store.finish_rolled_back()
        return len(abandoned)

    async def go_on(self, row: ReservationRow) -> None:
        """Keep other processes from giving a reservation back.

        Raises:
            RentalTakenOver: One has.
        """

        async def change(transaction: Transaction) -> bool:
            return await self._store.change_reservation(transaction, row.id, expected="open", state="open")

        if not await self._store.database.run(change):
            raise RentalTakenOver(row.id)

    # ---- one of its rentals

    async def repoint(self, row: ReservationRow, rental: Rental, turn: RentalTurn, offer: Offer) -> Rental:
        """Let a rental that was not created take another offer, and hold what that needs.

        Raises:
            PaymentRequired: The wallet does not have it.
            RentalTakenOver: The reservation was given back meanwhile.
        """

        async def change(transaction: Transaction) -> Rental:
            if not await self._store.change_reservation(transaction, row.id, expected="open", state="open"):
                raise RentalTakenOver(row.id)
            before = await self._store.lock_turn(transaction, turn)
            renter = renter_of(before)
            payments = self._work.payments
            hold = first_hold(offer.price_musd_per_h, offer.prepaid_hours, before.max_cost_musd)
            more = hold - before.held_musd
            if more > 0:
                funds = await payments.funds(transaction, renter)
                if more > funds.available_musd or not await payments.hold(transaction, renter, more):
                    raise not_paid(funds, more)
            elif more < 0:
                await payments.release(transaction, renter, -more)
            after = repointed(before, offer, hold)
            after = replace(after, owner_until=self._store.now_ms() + self._store.lease_ms)
            await self._store.write(transaction, after)
            return after

        self._work.on_step()
        after = await self._store.database.run(change)
        self._work.on_step()
        return after


class _Attempt:
    """One reservation while it is made."""

    def __init__(self, owner: Reservations, row: ReservationRow, more: list[Offer]) -> None:
        self._owner = owner
        self._row = row
        self._more = more
        self._end_ms = owner._store.now_ms() + WITHIN_MS
        self.tries = row.count
        self.errors: list[str] = []

    async def create(self, rental: Rental) -> Rental | None:
        """Create one instance, or another one in its place; None = none could be had."""
        turn = RentalTurn(rental.id, rental.turn)
        try:
            while True:
                created = await self._try(rental, turn)
                if created.state in ("starting", "ready"):
                    return created
                self.errors.append(
                    f"{rental.provider} {rental.offer_id}: {created.last_error or created.state}"
                )
                offer = self._next(created)
                if offer is None:
                    return None
                rental = await self._owner.repoint(self._row, created, turn, offer)
        except RentalTakenOver:
            return None
        except ApplianceError as exc:
            self.errors.append(exc.message)
            return None

    def _next(self, rental: Rental) -> Offer | None:
        """Return another offer; None = it is over, or it is not certain that nothing was created."""
        is_over = self._owner._store.now_ms() >= self._end_ms
        if rental.state != "wanted" or is_over or self.tries >= TRIES_FOR_EACH * self._row.count:
            return None
        if not self._more:
            return None
        self.tries += 1
        return self._more.pop(0)

    async def _try(self, rental: Rental, turn: RentalTurn) -> Rental:
        work = self._owner._work
        await self._owner.go_on(self._row)
        now = self._owner._store.now_ms()
        step = await work.commit(turn, lambda row: decide(row, NOT_KNOWN, now))
        if step.call != "create":
            return step.rental
        return await work.create(step.rental, turn, is_kept=True)
