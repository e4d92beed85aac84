"""Batches, of which each instance is rented for itself, and what a repeated or failed order is told."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from appliance.base.errors import ApplianceError, Conflict
from appliance.base.rental_charges import Renter
from appliance.market.candidates import RentalCandidates
from appliance.market.listings import Listings
from appliance.market.offer_choice import OfferChoice
from appliance.market.rental_types import BatchResult, Rental, RentOrder
from appliance.market.types import MarketRefused, MarketUnknown, Offer, OfferFilter, OfferGone


class CreateRental(Protocol):
    """Rents one offer; see `RentalService.create`."""

    async def __call__(
        self, renter: Renter, offer: Offer, order: RentOrder, *, idempotency_key: str
    ) -> Rental:
        """Rent it."""
        ...


class RentalBatches:
    """Makes batches.

    Args:
        listings: The markets.
        candidates: Which offers may be taken.
        choice: In which order they are.
    """

    def __init__(self, listings: Listings, candidates: RentalCandidates, choice: OfferChoice) -> None:
        self._listings = listings
        self._candidates = candidates
        self._choice = choice

    async def make(
        self,
        renter: Renter,
        counts: Mapping[str, int],
        wanted: OfferFilter,
        order: RentOrder,
        idempotency_key: str,
        create: CreateRental,
    ) -> BatchResult:
        """Rent so many instances of each market; what fails is told, and undoes no other."""
        result = BatchResult()
        for name, count in counts.items():
            market = self._listings.find(name).name
            made = result.rentals.setdefault(market, [])
            if not count:
                continue
            try:
                offers = iter(self._choice.order(await self._candidates.offers(wanted, market)))
            except ApplianceError as exc:
                result.errors.append(f"{market}: {exc.message}")
                continue
            for number in range(count):
                key = f"{idempotency_key[:160]}#{market}#{number}" if idempotency_key else ""
                rental = await self._make_one(renter, market, offers, order, key, result.errors, create)
                if rental is None:
                    break
                made.append(rental)
        return result

    async def _make_one(
        self,
        renter: Renter,
        market: str,
        offers: Iterator[Offer],
        order: RentOrder,
        key: str,
        errors: list[str],
        create: CreateRental,
    ) -> Rental | None:
        """Rent one instance of a batch; None = no more can be had at this market."""
        for offer in offers:
            try:
                return await create(renter, offer, order, idempotency_key=key)
            except OfferGone as exc:
                errors.append(f"{market} {offer.id}: {exc.message}")
                key = f"{key}+" if key else ""
            except ApplianceError as exc:
                errors.append(f"{market}: {exc.message}")
                return None
        errors.append(f"{market}: there are no more such offers.")
        return None


def check_repeated(known: str, digest: str) -> None:
    """Refuse an idempotency key that was used for another order.

    Raises:
        Conflict: `idempotency_key_reused`.
    """
    if known != digest:
        raise Conflict(
            "This Idempotency-Key was used for another order. Use another one.", code="idempotency_key_reused"
        )


def created(rental: Rental) -> Rental:
    """Return a rental that was created, or raise why it was not.

    Raises:
        OfferGone, MarketRefused, MarketUnknown: See `RentalService.create`.
    """
    if rental.state in ("wanted", "creating", "unknown"):
        raise MarketUnknown(
            f"{rental.provider} did not say whether the instance was created. It is being looked for; see "
            "GET /gpu/rentals.",
            details={"rental_id": rental.id, "error_fields": {"rental_id": rental.id}},
            retry_after_s=60.0,
        )
    if rental.state == "failed" and rental.end_reason == OfferGone.default_code:
        raise OfferGone(rental.last_error or "Another customer has this offer. Choose another one.")
    if rental.state == "failed" and not rental.contract_id:
        raise MarketRefused(rental.last_error or f"{rental.provider} refuses.")
    return rental
