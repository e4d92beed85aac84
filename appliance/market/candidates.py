"""Offers that may be taken, and the rows of rentals that take them."""

from typing import Final, Protocol

from appliance.base.rental_charges import Renter
from appliance.market.launches import new_rental
from appliance.market.listings import Listings
from appliance.market.market_store import MarketStore
from appliance.market.money import first_hold
from appliance.market.rental_types import Rental, RentOrder
from appliance.market.settings import MarketSettings
from appliance.market.types import Offer, OfferFilter

MAX_OFFERS: Final = 200


class OfferFinder(Protocol):
    """Where offers are found."""

    async def find(self, wanted: OfferFilter, *, provider: str = "", limit: int) -> list[Offer]:
        """Return what could be rented, with the prices that customers pay, cheapest first.

        Raises:
            MarketUnknown: No market answers.
        """
        ...


class RentalCandidates:
    """Finds offers, and makes rows of them.

    Args:
        settings: RENT_*.
        market: What holds for all.
        listings: The markets.
        finder: Where offers are found.
    """

    def __init__(
        self, settings: MarketSettings, market: MarketStore, listings: Listings, finder: OfferFinder
    ) -> None:
        self._settings = settings
        self._market = market
        self._listings = listings
        self._finder = finder

    async def offers(self, wanted: OfferFilter, provider: str) -> list[Offer]:
        """Return the offers that may be taken, cheapest first; machines that failed lately are left out."""
        name = self._listings.find(provider).name if provider else ""
        avoided = await self._market.avoided()
        offers = await self._finder.find(wanted, provider=name, limit=MAX_OFFERS)
        return [
            one
            for one in offers
            if one.is_available
            and one.provider in self._listings.providers
            and (one.provider, one.machine_id) not in avoided
        ]

    def rental(
        self, renter: Renter, offer: Offer, order: RentOrder, replacement: OfferFilter, provider: str
    ) -> Rental:
        """Return the row of a rental of an offer; see `new_rental`."""
        return new_rental(
            renter,
            offer,
            order,
            self._settings,
            install_id=self._market.install_id,
            clock=self._market.clock,
            held_musd=first_hold(offer.price_musd_per_h, offer.prepaid_hours, order.max_cost_musd),
            replacement=replacement,
            replacement_provider=provider,
        )
