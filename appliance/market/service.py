"""What interfaces call to rent GPUs: create, destroy, renew, reserve, and what operators do."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar, cast

from appliance.base.errors import Conflict, Invalid, NotFound
from appliance.base.logs import get_logger
from appliance.base.money import MAX_MUSD
from appliance.base.rental_charges import Renter
from appliance.base.tasks import Tasks
from appliance.market.admission import RentalAdmission
from appliance.market.batches import RentalBatches, check_repeated, created
from appliance.market.billing_step import renter_of
from appliance.market.brake import UNKNOWN_MS
from appliance.market.candidates import RentalCandidates
from appliance.market.launches import (
    check_order,
    order_digest,
    same_or_better,
)
from appliance.market.listings import Listings
from appliance.market.loads import InstanceLoads
from appliance.market.market_store import MarketStore
from appliance.market.offer_choice import OfferChoice
from appliance.market.rental_steps import RentalEvent, RentalStep
from appliance.market.rental_store import RentalStore, RentalTurn, ReservationRow
from appliance.market.rental_types import (
    MAX_RESERVED,
    BatchResult,
    MarketAlarm,
    MarketState,
    Rental,
    RentOrder,
    Reserved,
    SweepReport,
)
from appliance.market.rental_work import RentalWork
from appliance.market.reservations import Reservations
from appliance.market.settings import MarketSettings
from appliance.market.sweep import Sweep
from appliance.market.types import Offer, OfferFilter
from appliance.market.upkeep import RentalUpkeep
from appliance.storage.database import ConstraintViolated, Transaction

log = get_logger("market")
ResultT = TypeVar("ResultT")
ROUND_S: Final = 2.0
MAX_BATCH: Final = 8  # of each market
MAX_OFFERS: Final = 200
LOST_SHOWN_MS: Final = 24 * 3_600_000
SHUTDOWN_S: Final = 60.0
_NAMED: Final = (
    "provider = :provider AND (user_id = :user OR :is_anybodys = 1) AND "
    "(contract_id IN (:name, :bare) OR offer_id IN (:name, :bare) OR id = :name)"
)


class RentalService:
    """All rentals, for one process. `user_id` None = an operator asks, about anybody's.

    Args:
        settings: RENT_*.
        work: Works on the rentals.
        admission: Lets them begin.
        reservations: Makes several at once.
        sweep: Compares listings.
        candidates: Which offers may be taken.
        choice: In which order they are.
        upkeep: What is done in the background.
        tasks: Where work goes on whose caller leaves.
    """

    def __init__(
        self,
        settings: MarketSettings,
        work: RentalWork,
        admission: RentalAdmission,
        reservations: Reservations,
        sweep: Sweep,
        candidates: RentalCandidates,
        choice: OfferChoice,
        upkeep: RentalUpkeep,
        tasks: Tasks,
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
        self._choice = choice
        self._upkeep = upkeep
        self._tasks = tasks
        self._batches = RentalBatches(self._listings, candidates, choice)
        self.start = upkeep.start
        self.open = upkeep.open
        self.round = upkeep.round
        self.close = upkeep.close
        self.instance_loads = InstanceLoads()

    async def _unbroken(self, work: Coroutine[Any, Any, ResultT], name: str) -> ResultT:
        """Wait for work that goes on where the caller leaves."""

        async def run() -> tuple[ResultT | None, Exception | None]:
            try:
                return await work, None
            except Exception as exc:
                return None, exc

        task: asyncio.Task[tuple[ResultT | None, Exception | None]] = self._tasks.start(run(), name=name)
        done, error = await asyncio.shield(task)
        if error is not None:
            raise error
        return cast(ResultT, done)

    # ---- one rental

    async def create(
        self, renter: Renter, offer: Offer, order: RentOrder, *, idempotency_key: str = ""
    ) -> Rental:
        """Rent an offer at the price that it states. Once for each idempotency key of a wallet.

        Returns:
            It starts; `contract_id` is known.

        Raises:
            Invalid: The order is not possible.
            PaymentRequired: The credits, a limit on spending or the key's cap do not allow it.
            Exhausted: The quota of GPU hours, or a limit on launches, is reached.
            Conflict: The key was used for another order.
            OfferGone: Another customer has it.
            MarketRefused: The market refuses.
            MarketUnknown: Whether it was created is being found out (`details["rental_id"]`), or launching
                is stopped since the market's listing is not known.
            Unavailable: Launching is stopped.
        """
        self._check(offer, order)
        await self._upkeep.ensure_open()
        digest = order_digest(order, offer.provider, offer.id)
        rental = replace(
            self._candidates.rental(renter, offer, order, same_or_better(offer), offer.provider),
            idempotency_key=idempotency_key[:200] or None,
            request=digest,
        )

        async def change(transaction: Transaction) -> tuple[Rental, bool]:
            if rental.idempotency_key is not None:
                known = await self._store.find_ordered(transaction, renter.wallet_id, rental.idempotency_key)
                if known is not None:
                    return known, False
            [owned] = await self._admission.admit(transaction, renter, [rental])
            return owned, True

        self._work.on_step()
        found, is_new = await self._once(lambda: self._admission.run(renter, change))
        self._work.on_step()
        if not is_new:
            check_repeated(found.request, digest)
            return created(found)
        turn = RentalTurn(found.id, found.turn)
        done = await self._unbroken(self._work.continue_with(found, turn), "rental_create")
        self._choice.note_taken(offer, now_s=self._store.clock.now_s())
        return created(done)

    async def _once(self, run: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Run a transaction again where the same idempotency key was used at the same moment."""
        try:
            return await run()
        except ConstraintViolated as exc:
            if not exc.is_duplicate:
                raise
            return await run()

    def _check(self, offer: Offer, order: RentOrder) -> None:
        self._listings.find(offer.provider)
        check_order(order, self._settings)
        if not (0 <= offer.price_musd_per_h <= MAX_MUSD and 0 <= offer.supply_musd_per_h <= MAX_MUSD):
            raise Invalid("The offer has no price that can be paid. Choose another one.", param="id")

    async def destroy(self, provider: str, name: str, *, user_id: str | None) -> Rental:
        """End a rental; repeated, nothing more happens. It goes on until the market says that it is gone.

        Args:
            provider: The market's name or alias.
            name: The contract's id, the offer's, or the rental's.
            user_id: Whose.

        Raises:
            NotFound: This user has none of that name.
        """
        rental = await self.get(provider, name, user_id=user_id)
        if not rental.is_live:
            return rental
        await self._upkeep.ask_end(rental.id, "asked")
        await self._unbroken(self._work.work_on(rental.id), "rental_destroy")
        return await self.get(provider, rental.id, user_id=user_id)

    async def get(self, provider: str, name: str, *, user_id: str | None) -> Rental:
        """Return a rental; see `destroy`."""
        market = self._listings.find(provider)
        bare = name.removeprefix(market.id_prefix)
        found = await self._store.select(
            _NAMED,
            {
                "provider": market.name,
                "user": user_id,
                "is_anybodys": int(user_id is None),
                "name": name,
                "bare": bare or name,
            },
        )
        if not found:
            raise NotFound(f"You rent no instance {name[:60]!r} at {market.name}.", param="id")
        # What lives comes first, then what has it as its own name, then the newest.
        return max(
            found, key=lambda one: (one.is_live, name in (one.id, one.contract_id), one.created_at, one.id)
        )

    async def rentals(
        self, *, user_id: str | None, is_live_only: bool = False, limit: int = 100
    ) -> list[Rental]:
        """Return rentals, newest first."""
        where = "(user_id = :user OR :is_anybodys = 1) AND (:is_live = 0 OR next_look_at IS NOT NULL)"
        parameters = {
            "user": user_id,
            "is_anybodys": int(user_id is None),
            "is_live": int(is_live_only),
        }
        return await self._store.select(where, parameters, limit=limit)

    def view(self, rental: Rental) -> dict[str, Any]:
        """Return a rental for JSON."""
        provider = self._listings.providers.get(rental.provider)
        return rental.view(id_prefix="" if provider is None else provider.id_prefix)

    async def renew(self, provider: str, name: str, seconds: float, *, user_id: str | None) -> Rental:
        """Let a lease end later.

        Raises:
            NotFound: This user has none of that name.
            Invalid: It would be longer than allowed.
            Conflict: It ends already, or was paid ahead.
            Exhausted: The quota of GPU hours does not allow it.
        """
        found = await self.get(provider, name, user_id=user_id)
        if not (math.isfinite(seconds) and 1 <= seconds <= self._settings.rent_max_s):
            raise Invalid(
                f"seconds is {seconds!r}; allowed are 1 to {self._settings.rent_max_s:g}.", param="seconds"
            )

        async def change(transaction: Transaction) -> RentalStep:
            rental = await self._store.lock(transaction, found.id)
            if rental is None or not rental.is_live or rental.end_state:
                raise Conflict("This rental ends already, or has ended.", code="rental_ending")
            if rental.prepaid_hours:
                raise Conflict(
                    "This rental was paid ahead, and ends when that is over. Rent another one.",
                    code="rental_prepaid",
                )
            end_ms = rental.lease_ends_at + round(seconds * 1000)
            self._check_lease(rental, end_ms)
            renter = renter_of(rental)
            funds = await self._work.payments.funds(transaction, renter)
            gpu_seconds = math.ceil(seconds) * rental.gpu_count
            await self._admission.check_quota(transaction, renter, funds, gpu_seconds)
            renewed = replace(rental, lease_ends_at=end_ms, warned_s=0)
            step = RentalStep(renewed, events=(RentalEvent("rental.renewed", {}),))
            return await self._work.write(transaction, rental, step)

        step = await self._store.database.run(change)
        await self._work.tell(step)
        return step.rental

    def _check_lease(self, rental: Rental, end_ms: int) -> None:
        most_ms = rental.created_at + round(self._settings.rent_max_s * 1000)
        if end_ms > most_ms:
            raise Invalid(
                f"The lease would be {(end_ms - rental.created_at) / 1000:g} s long; at most "
                f"{self._settings.rent_max_s:g} are allowed (RENT_MAX_S).",
                param="seconds",
            )
        if rental.dead_man_at is not None and end_ms > rental.dead_man_at:
            left_s = (rental.dead_man_at - rental.lease_ends_at) / 1000
            raise Invalid(
                f"This instance stops itself {left_s:.0f} s after its present lease, as it was ordered. "
                "Renew it for less, or order the next one with longest_s.",
                param="seconds",
            )

    async def logs(self, provider: str, name: str, *, user_id: str | None, max_bytes: int = 262_144) -> str:
        """Return the end of what an instance printed.

        Raises:
            NotFound: This user has none of that name.
            Conflict: It was not created yet.
            MarketUnknown: There is no answer at present.
            MarketRefused: The market has none.
        """
        rental = await self.get(provider, name, user_id=user_id)
        if not rental.contract_id:
            raise Conflict("This rental has no instance yet.", code="rental_not_created")
        return await self._listings.find(provider).logs(rental.contract_id, max_bytes=max_bytes)

    # ---- several at once

    async def reserve(
        self,
        renter: Renter,
        count: int,
        wanted: OfferFilter,
        order: RentOrder,
        *,
        provider: str = "",
        is_partial: bool = False,
        idempotency_key: str = "",
    ) -> Reserved:
        """Rent 1 to 16 instances, all or none; with `is_partial` as many as there are.

        Args:
            provider: Of this market alone; "" = of all.

        Raises:
            Invalid: The count is not allowed, or there are too few offers.
            ApplianceError: As `create`, where nothing was begun.
        """
        if not 1 <= count <= MAX_RESERVED:
            raise Invalid(f"Count must be between 1 and {MAX_RESERVED}", param="count")
        check_order(order, self._settings)
        await self._upkeep.ensure_open()
        digest = order_digest(order, count, wanted, provider, is_partial)
        key = idempotency_key[:200]
        if key and (known := await self._known_reservation(renter, key)) is not None:
            return await self._repeated(known, digest)
        ordered = self._choice.order(await self._candidates.offers(wanted, provider))
        if len(ordered) < count and not (is_partial and ordered):
            fields = {"requested": count, "available": len(ordered)}
            raise Invalid(
                f"{count} instances are asked for, and there are {len(ordered)} such offers.",
                param="count",
                code="too_few_offers",
                details={"error_fields": fields},
            )
        rentals = [
            self._candidates.rental(renter, offer, order, wanted, provider) for offer in ordered[:count]
        ]
        row, owned, is_new = await self._once(
            lambda: self._reservations.begin(
                renter, rentals, count=count, is_partial=is_partial, idempotency_key=key, request=digest
            )
        )
        if not is_new:
            return await self._repeated(row, digest)
        return await self._unbroken(self._reservations.make(row, owned, ordered[count:]), "reservation_make")

    async def _known_reservation(self, renter: Renter, key: str) -> ReservationRow | None:
        return await self._store.database.run(
            lambda transaction: self._store.find_reservation(transaction, renter.wallet_id, key),
            is_read_only=True,
        )

    async def _repeated(self, row: ReservationRow, digest: str) -> Reserved:
        """Return what became of a reservation that is asked for again."""
        check_repeated(row.request, digest)
        if row.state == "open":
            raise Conflict(
                "This reservation is being made. Ask again in some seconds.", code="reservation_open"
            )
        found = await self._store.select(
            "reservation_id = :id AND replaces IS NULL AND contract_id <> ''", {"id": row.id}
        )
        if row.state == "done":
            return Reserved(row.id, found[::-1], row.count, row.errors)
        left = [one for one in found if one.is_live]
        return Reserved(row.id, [], row.count, row.errors, is_rolled_back=True, unconfirmed=left)

    async def batch(
        self,
        renter: Renter,
        counts: Mapping[str, int],
        wanted: OfferFilter,
        order: RentOrder,
        *,
        idempotency_key: str = "",
    ) -> BatchResult:
        """Rent the cheapest offers of each market, 0 to 8 each; one that fails does not undo the others."""
        for name, count in counts.items():
            if not 0 <= count <= MAX_BATCH:
                raise Invalid(f"{count} of {name[:40]}: allowed are 0 to {MAX_BATCH}.", param="count")
        check_order(order, self._settings)
        return await self._batches.make(renter, counts, wanted, order, idempotency_key, self.create)

    # ---- what operators do

    async def freeze(self, reason: str, *, by: str) -> MarketState:
        """Stop launching until `unfreeze`; what is rented goes on."""
        now = self._store.now_ms()
        await self._change_market(
            is_frozen=True, frozen_reason=reason[:300], frozen_by=by[:200], frozen_at=now
        )
        return await self.state()

    async def unfreeze(self, *, by: str) -> MarketState:
        """Let rentals be launched again; a pause after failed starts ends, too."""
        await self._change_market(
            is_frozen=False, frozen_reason="", frozen_by=by[:200], paused_until=None, failed_starts=0
        )
        return await self.state()

    async def _change_market(self, **values: Any) -> None:
        await self._store.database.run(lambda transaction: self._market.change_market(transaction, **values))

    async def state(self) -> MarketState:
        """Return what holds for all rentals."""
        return await self._market.state()

    async def sweep(self) -> SweepReport:
        """Compare all markets' listings with the rentals; see SweepReport."""
        return await self._sweep.sweep()

    async def alarms(self) -> list[MarketAlarm]:
        """Return what an operator has to look at; empty = nothing."""
        now = self._store.now_ms()
        found = await self._store.select(
            "alarm <> '' AND (ended_at IS NULL OR ended_at > :since)", {"since": now - LOST_SHOWN_MS}
        )
        alarms = [
            MarketAlarm(
                rental.alarm,
                rental.id,
                rental.ended_at or rental.destroying_since or rental.updated_at,
                f"{rental.provider} {rental.contract_id}: {rental.last_error or rental.end_reason}",
            )
            for rental in found
        ]
        unknown = (await self.state()).unknown_since_ms
        alarms += [
            MarketAlarm("market_unknown", name, since, f"{name} does not say what runs there.")
            for name, since in unknown.items()
            if now - since > UNKNOWN_MS
        ]
        return alarms

    async def loads(self) -> dict[str, dict[str, Any]]:
        """Return the load of each running rental for JSON: instance id → the seed's fields."""
        running = await self._store.select("state IN ('starting', 'ready', 'draining')", {})
        names = {rental.id: self.view(rental)["instance_id"] for rental in running}
        return self.instance_loads.view(running, names)
