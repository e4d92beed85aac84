"""Builds the parts that rent, and joins them."""

import asyncio
from collections.abc import Callable, Mapping

from appliance.base.clock import Clock
from appliance.base.money import parse_musd
from appliance.base.tasks import Tasks
from appliance.market.admission import RentalAdmission
from appliance.market.brake import LaunchLimits
from appliance.market.candidates import OfferFinder, RentalCandidates
from appliance.market.listings import Listings
from appliance.market.market_store import MarketStore
from appliance.market.money import RentalPayments
from appliance.market.offer_choice import OfferChoice
from appliance.market.providers.contract import Provider
from appliance.market.rental_store import RentalStore
from appliance.market.rental_work import JoinedServers, RentalEvents, RentalWork
from appliance.market.reservations import Pause, Reservations
from appliance.market.service import RentalService
from appliance.market.settings import MarketSettings
from appliance.market.sweep import Sweep
from appliance.market.upkeep import RentalUpkeep
from appliance.storage.database import Database

LEAST_LEASE_MS = 30_000
MARGIN_MS = 10_000


def limits_of(settings: MarketSettings) -> LaunchLimits:
    """Return what the operator allows."""
    return LaunchLimits(
        instances=settings.rent_max_instances,
        per_user=settings.rent_max_per_user,
        launches_per_h=settings.rent_max_launches_per_h,
        musd_per_h=parse_musd(settings.rent_max_usd_per_h),
    )


def build_rentals(
    settings: MarketSettings,
    database: Database,
    payments: RentalPayments,
    providers: Mapping[str, Provider],
    finder: OfferFinder,
    *,
    clock: Clock,
    tasks: Tasks,
    strategy: Callable[[], str] = lambda: "round_robin",
    events: RentalEvents | None = None,
    joined: JoinedServers | None = None,
    pause: Pause = asyncio.sleep,
    on_step: Callable[[], None] = lambda: None,
) -> RentalService:
    """Build the service; `await service.start()` begins.

    Args:
        settings: RENT_*.
        database: Of accounts.
        payments: Wallets (accounts.rental_money).
        providers: Name → market.
        finder: Where offers are found.
        clock: The time.
        tasks: What runs in the background.
        strategy: Returns the name of the load balancing strategy in force.
        events: Where it is told what happens; None = nowhere.
        joined: Servers that answer requests; None = there are none.
        pause: Waits so many seconds.
        on_step: Called between any two steps; see RentalWork.
    """
    # A call at a market must end before another process takes its rental over.
    lease_ms = max(LEAST_LEASE_MS, round(settings.gpu_api_timeout * 1000) + MARGIN_MS)
    store = RentalStore(database, clock, lease_ms=lease_ms)
    market = MarketStore(database, clock, store.owner)
    listings = Listings(providers, market)
    work = RentalWork(store, market, payments, listings, events=events, joined=joined, on_step=on_step)
    admission = RentalAdmission(store, market, payments, limits_of(settings), pause=pause)
    choice = OfferChoice(strategy)
    reservations = Reservations(work, admission, choice, pause=pause)
    sweep = Sweep(work, market, payments, listings)
    candidates = RentalCandidates(settings, market, listings, finder)
    upkeep = RentalUpkeep(settings, work, admission, reservations, sweep, candidates, tasks, pause=pause)
    return RentalService(settings, work, admission, reservations, sweep, candidates, choice, upkeep, tasks)
