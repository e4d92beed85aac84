"""Build renting: the markets, the search for offers, the rentals, and what is shown of them.

Imported where GPUs can be rented (MARKET=1) alone.
"""

from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, Final

from appliance.accounts.rental_money import RentalMoney
from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Conflict, NotFound
from appliance.base.tasks import Tasks
from appliance.build_accounts import Accounts
from appliance.market.build import build_rentals
from appliance.market.offers import OfferSearch
from appliance.market.providers.table import build_providers
from appliance.market.proxy.service import InstanceAddress
from appliance.market.service import RentalService
from appliance.market.settings import MarketSettings
from appliance.market_status import MarketStatus

REFRESH_S: Final = 10.0
MAX_OWN: Final = 1000


@dataclass(frozen=True, slots=True)
class Market:
    """The parts of renting.

    Attributes:
        search: Finds offers.
        service: Rents.
        status: What is shown.
        addresses: Where users' instances answer, for the proxy.
    """

    search: OfferSearch
    service: RentalService
    status: MarketStatus
    addresses: "RentedAddresses"

    async def loads_of(self, user_id: str | None) -> dict[str, dict[str, Any]]:
        """Return the loads of a user's running instances by their ids; None = of all users."""
        loads = await self.service.loads()
        if user_id is None:
            return loads
        own = await self.service.rentals(user_id=user_id, is_live_only=True, limit=MAX_OWN)
        names = {self.service.view(rental)["instance_id"] for rental in own}
        return {name: load for name, load in loads.items() if name in names}


class RentedAddresses:
    """Knows where users' instances answer.

    Args:
        service: All rentals.
    """

    def __init__(self, service: RentalService) -> None:
        self._service = service

    async def address_of(self, user_id: str, provider: str, name: str) -> InstanceAddress:
        """Return where an instance answers: its first port.

        Raises:
            NotFound: This user has none of that name.
            Conflict: It cannot be reached yet, or no more.
        """
        try:
            rental = await self._service.get(provider, name, user_id=user_id)
        except NotFound as exc:
            raise NotFound(exc.message, code="no_such_instance") from None
        ports = list(jsons.loads(rental.ports).values())
        if not rental.is_live or not rental.host or not ports:
            raise Conflict(
                "This instance cannot be reached: it does not run yet, has ended, or opens no port.",
                code="instance_not_reachable",
            )
        host = f"[{rental.host}]" if ":" in rental.host else rental.host
        return InstanceAddress(f"{'https' if ports[0] == 443 else 'http'}://{host}:{ports[0]}")


async def open_market(
    settings: MarketSettings,
    accounts: Accounts,
    stack: AsyncExitStack,
    *,
    clock: Clock,
    tasks: Tasks,
    strategy: Callable[[], str],
) -> Market:
    """Build renting and begin; the stack ends it. Rentals go on without this process (RENT_ON_SHUTDOWN).

    Args:
        settings: MARKET, the markets' keys, RENT_*.
        accounts: Who pays.
        stack: Closes it.
        clock: The time.
        tasks: What runs in the background.
        strategy: Returns the load balancing strategy in force, by which offers are chosen.
    """
    money = accounts.money
    providers = build_providers(settings, clock)
    for provider in providers.values():
        stack.push_async_callback(provider.close)

    def markup_percent() -> int:
        """Return the markup of the price `*`; where it has none, RENT_MARKUP_PERCENT."""
        price = money.book.find("", round(clock.now_s() * 1000))
        return (price.gpu_hour_markup_percent if price is not None else 0) or settings.rent_markup_percent

    async def reclaim(wallet_id: str) -> None:
        """Take back what this process and others have leased of a wallet and do not use."""
        await money.allowances.return_asked(wallet_id)
        await money.store.wallets.ask_others(wallet_id)

    search = OfferSearch(providers, markup_percent=markup_percent, clock=clock, tasks=tasks)
    service = build_rentals(
        settings,
        accounts.database,
        RentalMoney(money.store.wallets, money.store.quotas, reclaim=reclaim),
        providers,
        search,
        clock=clock,
        tasks=tasks,
        strategy=strategy,
        events=money.store.events,
    )
    status = MarketStatus(service, accounts.database, clock=clock)
    stack.push_async_callback(service.close)
    with suppress(ApplianceError):  # the database is down: the rounds open it when it is back
        await service.open()
    service.start()
    tasks.every(REFRESH_S, status.refresh, name="market_status")
    return Market(search, service, status, RentedAddresses(service))
