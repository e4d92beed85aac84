"""The addresses of operators about rentals and the markets. Each change writes an audit row."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from appliance.accounts.audit_log import Author
from appliance.base.clock import format_rfc3339_ms
from appliance.base.money import to_dollars
from appliance.front.accounts.bodies import read_fields, text_of
from appliance.front.accounts.caller import BASE, author_of
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.query import Query
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route
from appliance.market.rental_types import MarketAlarm, MarketState, Rental
from appliance.market.service import RentalService

REASON_CHARACTERS: Final = 300
NoteChange = Callable[[Author, str, tuple[str, str], dict[str, Any]], Awaitable[None]]


class AdminMarketHandlers:
    """The handlers of operators.

    Args:
        service: All rentals.
        note: Writes an audit row: author, action, (kind, id) of what is changed, details.
    """

    def __init__(self, service: RentalService, *, note: NoteChange) -> None:
        self._service = service
        self._note = note

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        own = partial(Route, dialect="market", access=Access.OPERATOR, scope="admin")
        return [
            own(("GET",), f"{BASE}/admin/rentals", self.rentals),
            own(("DELETE",), f"{BASE}/admin/rentals/{{provider}}/{{id}}", self.destroy),
            own(("GET",), f"{BASE}/admin/market", self.state),
            own(("POST",), f"{BASE}/admin/market/freeze", self.freeze),
            own(("POST",), f"{BASE}/admin/market/unfreeze", self.unfreeze),
            own(("POST",), f"{BASE}/admin/market/sweep", self.sweep),
        ]

    async def rentals(self, request: Request) -> Response:
        """Show all users' rentals, newest first: `?live=1` only those that have not ended, `?limit=`.

        Returns:
            `{rentals: [rental], count}`; of each also `user_id`, `supply_per_hour`, `supply_cost`,
            `destroy_calls` and `market_status`.
        """
        query = Query(request.query, allowed=("live", "limit"))
        limit = query.number("limit", default=100, low=1, high=1000)
        found = await self._service.rentals(user_id=None, is_live_only=query.flag("live"), limit=limit)
        return json_response({"rentals": [self._view(one) for one in found], "count": len(found)})

    def _view(self, rental: Rental) -> dict[str, Any]:
        return {
            **self._service.view(rental),
            "user_id": rental.user_id,
            "supply_per_hour": to_dollars(rental.supply_musd_per_h),
            "supply_cost": to_dollars(rental.supply_musd),
            "destroy_calls": rental.destroy_calls,
            "market_status": rental.market_status,
        }

    async def destroy(self, request: Request) -> Response:
        """End a rental of any user; returns it. It goes on until the market says that it is gone."""
        rental = await self._service.destroy(request.params["provider"], request.params["id"], user_id=None)
        await self._note(author_of(request), "rental.destroy", ("rental", rental.id), {})
        return json_response(self._view(rental))

    async def state(self, request: Request) -> Response:
        """Show what holds for all rentals: whether launching is stopped and why, balances, alarms."""
        return json_response(market_view(await self._service.state(), await self._service.alarms()))

    async def freeze(self, request: Request) -> Response:
        """Stop launching until it is let again: `{reason?}`; what is rented goes on."""
        body = read_fields(request, ("reason",), is_optional=True)
        reason, author = text_of(body, "reason", characters=REASON_CHARACTERS), author_of(request)
        await self._service.freeze(reason or "by an operator", by=author.id or author.kind)
        await self._note(author, "market.freeze", ("market", "all"), {"reason": reason})
        return await self.state(request)

    async def unfreeze(self, request: Request) -> Response:
        """Let instances be launched again; a pause after failed starts ends, too."""
        read_fields(request, (), is_optional=True)
        author = author_of(request)
        await self._service.unfreeze(by=author.id or author.kind)
        await self._note(author, "market.unfreeze", ("market", "all"), {})
        return await self.state(request)

    async def sweep(self, request: Request) -> Response:
        """Compare all markets' lists with the rentals now.

        Returns:
            `{providers: {name: how many, null = not known}, adopted, orphans, destroyed, lost}`.
        """
        read_fields(request, (), is_optional=True)
        return json_response(asdict(await self._service.sweep()))


def market_view(state: MarketState, alarms: list[MarketAlarm]) -> dict[str, Any]:
    """Return the state of the market for JSON."""
    return {
        "install_id": state.install_id,
        "frozen": state.is_frozen,
        "frozen_reason": state.frozen_reason,
        "frozen_by": state.frozen_by,
        "failed_starts": state.failed_starts,
        "paused_until": _moment(state.paused_until_ms),
        "unknown_since": {name: _moment(at) for name, at in state.unknown_since_ms.items()},
        "credit": {name: to_dollars(musd) for name, musd in state.credit_musd.items()},
        "alarms": [
            {"kind": one.kind, "subject": one.subject, "since": _moment(one.since_ms), "message": one.message}
            for one in alarms
        ],
    }


def _moment(at_ms: int | None) -> str | None:
    return None if at_ms is None else format_rfc3339_ms(at_ms)
