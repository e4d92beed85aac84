"""What can be rented at all markets together: searched at once, filtered, priced, kept for a moment."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, NotFound, Unavailable
from appliance.base.logs import get_logger
from appliance.base.money import to_dollars
from appliance.base.tasks import Tasks
from appliance.market.providers.contract import Provider
from appliance.market.providers.readers import NOMINAL_PERCENT, plain_name
from appliance.market.types import MarketUnknown, Offer, OfferFilter

log = get_logger("market")

SEARCH_S: Final = 8.0
FRESH_S: Final = 30.0
STALE_S: Final = 300.0
FAILED_S: Final = 2.0  # a failure answers for so long, so that callers do not each ask again
SHOWN_S: Final = 600.0
MAX_SEARCHES: Final = 256
MAX_SHOWN: Final = 10_000
MAX_PRICES: Final = 8  # of one offer, that were shown lately
MAX_OFFERS: Final = 500
QUOTA_CODE: Final = "search_quota_exceeded"

ReadMarkup = Callable[[], int]


@dataclass(frozen=True, slots=True)
class ProviderFailure:
    """A market that did not answer a search."""

    provider: str
    message: str

    def view(self) -> dict[str, str]:
        """Return it for JSON."""
        return {"provider": self.provider, "message": self.message}


@dataclass(frozen=True, slots=True)
class FoundOffers:
    """The result of a search.

    Attributes:
        offers: With the prices that customers pay, sorted by price, then id.
        failures: Markets that did not answer; their offers may be from before.
        age_s: How old the oldest part is, seconds.
        is_failed: No market answered, and nothing is known from before.
    """

    offers: list[Offer]
    failures: list[ProviderFailure] = field(default_factory=list)
    age_s: float = 0.0
    is_failed: bool = False


@dataclass(slots=True)
class _Search:
    """One search at one market: its latest result, and the run under way."""

    offers: list[Offer] | None = None
    at_s: float = 0.0
    failure: ApplianceError | None = None
    failed_at_s: float = 0.0
    run: asyncio.Task[None] | None = None


class OfferSearch:
    """Searches all markets.

    Args:
        providers: Name → market.
        markup_percent: Returns what is added to a market's price now, percent.
        clock: The time.
        tasks: Where searches run: they end by themselves where their callers leave.
    """

    def __init__(
        self, providers: Mapping[str, Provider], *, markup_percent: ReadMarkup, clock: Clock, tasks: Tasks
    ) -> None:
        self.providers = dict(providers)
        self._markup_percent = markup_percent
        self._clock = clock
        self._tasks = tasks
        self._searches: OrderedDict[tuple[str, OfferFilter], _Search] = OrderedDict()
        # Offer → (when it was last shown at this price, the offer), the newest last.
        self._shown: OrderedDict[tuple[str, str], deque[tuple[float, Offer]]] = OrderedDict()

    async def search(
        self, wanted: OfferFilter, *, provider: str = "", limit: int = MAX_OFFERS
    ) -> FoundOffers:
        """Search one market or all of them at once; one that fails does not hide the others.

        Args:
            wanted: Which offers.
            provider: A market's name or alias; "" = all.
            limit: Most offers.

        Raises:
            NotFound: There is no such market.
            Unavailable: No market has a key.
        """
        markets = [self.provider(provider)] if provider else list(self.providers.values())
        if not markets:
            raise Unavailable(
                "No market for GPUs has a key. The operator sets VASTAI_API_KEY or IONET_API_KEY.",
                code="no_market",
            )
        results = await asyncio.gather(*(self._search_one(market, wanted) for market in markets))
        percent = self._markup_percent()
        offers, failures, age_s = [], [], 0.0
        for market, (found, age, failure) in zip(markets, results, strict=True):
            if failure is not None:
                failures.append(ProviderFailure(market.name, failure.message))
            age_s = max(age_s, age)
            offers += [priced for one in found or () if fits(priced := with_price(one, percent), wanted)]
        offers.sort(key=lambda one: (one.price_musd_per_h, self.public_id(one)))
        offers = offers[:limit]
        for offer in offers:
            self._note_shown(offer)
        return FoundOffers(offers, failures, age_s, all(found is None for found, _, _ in results))

    async def find(self, wanted: OfferFilter, *, provider: str = "", limit: int) -> list[Offer]:
        """Return what could be rented, with the prices that customers pay, cheapest first.

        Raises:
            MarketUnknown: No market answers.
        """
        found = await self.search(wanted, provider=provider, limit=limit)
        if found.is_failed:
            raise MarketUnknown(" ".join(failure.message for failure in found.failures)[:600])
        return found.offers

    async def shown(self, provider: str, name: str) -> Offer:
        """Return an offer at the price at which it was shown; one that was not shown lately is looked for.

        Args:
            provider: The market's name or alias.
            name: The offer's id, with or without the market's prefix.

        Raises:
            NotFound: There is no such market, or no such offer.
            MarketUnknown: It was not shown lately, and the market does not answer.
        """
        market = self.provider(provider)
        key = market.name, name.removeprefix(market.id_prefix)
        offer = self._shown_price(key)
        if offer is None:
            await self.find(OfferFilter(), provider=market.name, limit=MAX_OFFERS)
            offer = self._shown_price(key)
        if offer is None:
            raise NotFound(
                f"{market.name} has no offer {name[:60]!r} now. Take one of GET /gpu/instances.",
                code="no_such_offer",
            )
        return offer

    def provider(self, name: str) -> Provider:
        """Return a market by its name or another spelling of it.

        Raises:
            NotFound: There is none, or it has no key.
        """
        lower = name.lower()
        for market in self.providers.values():
            if lower == market.name or lower in market.aliases:
                return market
        known = ", ".join(self.providers) or "none"
        raise NotFound(
            f"There is no market {name[:40]!r} here; there are: {known}.",
            param="provider",
            code="no_such_provider",
        )

    def public_id(self, offer: Offer) -> str:
        """Return an offer's id as callers see it."""
        market = self.providers.get(offer.provider)
        return offer.id if market is None else f"{market.id_prefix}{offer.id}"

    def view(self, offer: Offer) -> dict[str, Any]:
        """Return an offer for JSON."""
        specifications = dict(offer.specifications)
        if offer.reliability is not None:
            specifications["reliability"] = offer.reliability
        specifications["verified"] = offer.is_verified
        if offer.prepaid_hours:
            specifications["prepaid_hours"] = offer.prepaid_hours
        return {
            "id": self.public_id(offer),
            "provider": offer.provider,
            "gpu_name": offer.gpu_name,
            "gpu_count": offer.gpu_count,
            "vram_gb": offer.vram_gb,
            "cpu_cores": offer.cpu_cores,
            "ram_gb": offer.ram_gb,
            "storage_gb": offer.storage_gb,
            "price_per_hour": to_dollars(offer.price_musd_per_h),
            "location": offer.location,
            "available": offer.is_available,
            "specifications": specifications,
        }

    # ---- one search

    async def _search_one(
        self, market: Provider, wanted: OfferFilter
    ) -> tuple[list[Offer] | None, float, ApplianceError | None]:
        """Return (offers, None = not known; their age; why there are no newer ones).

        1. found less than 30 s ago                          → those
        2. it failed a moment ago                            → as 4
        3. asked now, or by another caller at this moment    → what it answers
        4. it fails: what was found less than 5 min ago; with the quota of searches used up, whatever
           was found today
        """
        search = self._entry((market.name, wanted))
        now = self._clock.monotonic_s()
        if search.offers is not None and now - search.at_s < FRESH_S:  # 1
            return search.offers, now - search.at_s, None
        if search.failure is None or now - search.failed_at_s >= FAILED_S:  # 2
            if search.run is None or search.run.done():  # 3
                search.run = self._tasks.start(self._run(market, wanted, search), name="market_search")
            await asyncio.shield(search.run)
        age = self._clock.monotonic_s() - search.at_s
        if search.failure is None:
            return search.offers, age, None
        is_kept = age <= STALE_S or search.failure.code == QUOTA_CODE  # 4
        return (
            (search.offers, age, search.failure)
            if search.offers is not None and is_kept
            else (
                None,
                0.0,
                search.failure,
            )
        )

    async def _run(self, market: Provider, wanted: OfferFilter, search: _Search) -> None:
        """Ask a market, and keep what it answers; nothing is raised."""
        try:
            async with asyncio.timeout(SEARCH_S):
                search.offers = await market.offers(wanted, limit=MAX_OFFERS)
            search.failure, search.at_s = None, self._clock.monotonic_s()
            return
        except ApplianceError as exc:
            search.failure = exc
        except TimeoutError:
            search.failure = MarketUnknown(f"{market.name} did not answer within {SEARCH_S:g} s.")
        except Exception as exc:
            log.exception("market_client_failed", provider=market.name, error=repr(exc)[:300])
            search.failure = MarketUnknown(f"{market.name} could not be asked: {type(exc).__name__}.")
        search.failed_at_s = self._clock.monotonic_s()

    def _entry(self, key: tuple[str, OfferFilter]) -> _Search:
        search = self._searches.get(key)
        if search is None:
            search = self._searches[key] = _Search()
            while len(self._searches) > MAX_SEARCHES:
                self._searches.popitem(last=False)
        self._searches.move_to_end(key)
        return search

    # ---- prices that were shown

    def _note_shown(self, offer: Offer) -> None:
        key, now = (offer.provider, offer.id), self._clock.monotonic_s()
        prices = self._shown.get(key)
        if prices is None:
            prices = self._shown[key] = deque(maxlen=MAX_PRICES)
            while len(self._shown) > MAX_SHOWN:
                self._shown.popitem(last=False)
        self._shown.move_to_end(key)
        if prices and prices[-1][1].price_musd_per_h == offer.price_musd_per_h:
            prices.pop()
        prices.append((now, offer))

    def _shown_price(self, key: tuple[str, str]) -> Offer | None:
        """Return the offer at the lowest price at which it was shown lately; None = it was not."""
        now = self._clock.monotonic_s()
        valid = [offer for at, offer in self._shown.get(key, ()) if now - at <= SHOWN_S]
        return min(valid, key=lambda offer: offer.price_musd_per_h, default=None)


def with_price(offer: Offer, markup_percent: int) -> Offer:
    """Return an offer with what the customer pays: the market's price and the markup, rounded up."""
    markup = -(-offer.supply_musd_per_h * markup_percent // 100)
    return replace(offer, price_musd_per_h=offer.supply_musd_per_h + markup)


def fits(offer: Offer, wanted: OfferFilter) -> bool:
    """Return whether an offer is wanted, by our own reading of what the market said.

    Memory is compared as makers round it: an 80 GB card that reports 76.2 of 10^9 bytes or more fits 80.
    """
    vram_gb = offer.vram_gb * NOMINAL_PERCENT / 100
    return (
        offer.is_available
        and (wanted.min_vram_gb is None or vram_gb >= wanted.min_vram_gb)
        and (wanted.max_price_musd_per_h is None or offer.price_musd_per_h <= wanted.max_price_musd_per_h)
        and plain_name(wanted.gpu_model) in plain_name(offer.gpu_name)
        and is_at(offer.location, wanted.location)
        and offer.gpu_count >= wanted.min_gpus
        and (
            wanted.min_reliability is None
            or (offer.reliability is not None and offer.reliability >= wanted.min_reliability)
        )
        and (offer.is_verified or not wanted.is_verified_only)
    )


def is_at(location: str, wanted: str) -> bool:
    """Return whether a location, `City, CC`, is the wanted country code, or has the wanted text in it."""
    text, asked = location.lower(), wanted.strip().lower()
    if len(asked) == 2:
        return text.rpartition(",")[2].strip() == asked
    return asked in text
