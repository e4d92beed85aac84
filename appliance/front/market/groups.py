"""All handler groups of renting, joined: what a serving appliance has where MARKET is on."""

from collections.abc import Callable
from typing import Any

from appliance.accounts.audit_log import Author, write_audit
from appliance.base.clock import Clock
from appliance.front.market.admin import AdminMarketHandlers
from appliance.front.market.instances import InstanceHandlers
from appliance.front.market.proxy import ProxyHandlers
from appliance.front.pipeline.route import RouteGroup
from appliance.market.offers import OfferSearch
from appliance.market.service import RentalService
from appliance.storage.database import Database, Transaction

SECTIONS: tuple[tuple[str, tuple[type[RouteGroup], ...]], ...] = (
    ("Renting GPUs (MARKET=1)", (InstanceHandlers,)),
    ("Requests through the proxy (MARKET=1)", (ProxyHandlers,)),
    ("Rentals and markets, for operators (MARKET=1)", (AdminMarketHandlers,)),
)


def build_market_groups(
    search: OfferSearch,
    service: RentalService,
    database: Database,
    clock: Clock,
    *,
    count: Callable[[bool], None],
) -> list[RouteGroup]:
    """Build all groups.

    Args:
        search: Finds offers.
        service: Rents.
        database: Where audit rows are written.
        clock: The time of audit rows.
        count: Called with whether a call for a market succeeded.
    """

    async def note(author: Author, action: str, subject: tuple[str, str], details: dict[str, Any]) -> None:
        async def write(transaction: Transaction) -> None:
            await write_audit(transaction, clock, author, action, subject=subject, details=details)

        await database.run(write)

    return [InstanceHandlers(search, service, count=count), AdminMarketHandlers(service, note=note)]
