"""The addresses of a user's credits, usage and movements of money.

For compatibility, see docs/compatibility.md; usage and the ledger are our own.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

from appliance.accounts.issued_keys import IssuedKeys
from appliance.accounts.usage import UsageStore
from appliance.accounts.wallets import Wallets
from appliance.base.clock import Clock, format_rfc3339_ms
from appliance.base.errors import Invalid
from appliance.front.accounts.bodies import cursor_of, moment_of
from appliance.front.accounts.caller import BASE, user_of
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.query import Query
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route

MAX_ROWS: Final = 1000
ROWS: Final = 100
SPAN_MS: Final = 30 * 86_400_000
ONE_SUM: Final = "total"
ReadEntries = Callable[..., Awaitable[list[dict[str, Any]]]]


class BillingHandlers:
    """The handlers of what a user has and uses.

    Args:
        wallets: Where credits are.
        usage: What was used.
        entries: Returns movements of a wallet (`ledger.entries_of` of the database).
        keys: The user's keys, under whose ids sessions of use are kept.
        clock: The time.
    """

    def __init__(
        self, wallets: Wallets, usage: UsageStore, *, entries: ReadEntries, keys: IssuedKeys, clock: Clock
    ) -> None:
        self._wallets = wallets
        self._usage = usage
        self._entries = entries
        self._keys = keys
        self._clock = clock

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        own = partial(Route, ("GET",), dialect="market", access=Access.ACCOUNT, scope="billing")
        return [
            own(f"{BASE}/billing/credits", self.credits),
            own(f"{BASE}/billing/credits/sessions", self.sessions),
            own(f"{BASE}/billing/usage", self.usage),
            own(f"{BASE}/billing/ledger", self.ledger),
        ]

    async def credits(self, request: Request) -> Response:
        """Show one's credits, in dollars.

        Returns:
            `{client_id, credits_remaining, credits_total, credits_overage, credits_cap, credits_auto_renew,
            credits_held, credits_owed, period_end}`; `credits_held` is what running requests may still take.
        """
        user = user_of(request)
        wallet = await self._wallets.find(user.wallet_id)
        return json_response(wallet.credits(user.id))

    async def sessions(self, request: Request) -> Response:
        """List one's sessions of use, the newest first, with the credits at their end: `{sessions, count}`.

        A session is what one key, or one's logins, sent from one address without a pause of 15 minutes.
        """
        limit = Query(request.query, allowed=("limit",)).number("limit", default=ROWS, low=1, high=MAX_ROWS)
        user = user_of(request)
        clients = [user.id, *(key.id for key in await self._keys.of_user(user.id))]
        shown = await self._wallets.sessions(clients, limit=limit)
        return json_response({"sessions": shown, "count": len(shown)})

    async def usage(self, request: Request) -> Response:
        """List one's attempts, the newest first; with `?group=` of model, day, key, backend, source: sums.

        Sums are of the last 30 days, or from `since` until before `until`; `group=total` is one sum.

        Returns:
            `{usage: [attempt], count, next}`; `next` is the `before` of the next page. With `group`
            `{usage: [sum], count, group, since, until}`.
        """
        query = Query(request.query, allowed=("group", "since", "until", "limit", "before"))
        wallet_id = user_of(request).wallet_id
        if query.text("group"):
            _refuse(query, ("limit", "before"), because="with `group`")
            return await self._sums(query, wallet_id)
        _refuse(query, ("since", "until"), because="without `group`")
        limit = query.number("limit", default=ROWS, low=1, high=MAX_ROWS)
        before_ms, before_id = cursor_of(query, "before", self._clock)
        rows = await self._usage.rows(wallet_id, limit=limit, before_ms=before_ms, before_id=before_id)
        return _page("usage", rows, limit=limit, id_name="attempt_id")

    async def _sums(self, query: Query, wallet_id: str) -> Response:
        now_ms = round(self._clock.now_s() * 1000)
        until_ms = moment_of(query, "until", self._clock)
        until_ms = now_ms + 1 if until_ms is None else until_ms
        since_ms = moment_of(query, "since", self._clock)
        since_ms = max(0, until_ms - SPAN_MS) if since_ms is None else since_ms
        groups = groups_of(query)
        rows = await self._usage.grouped(groups, wallet_id=wallet_id, since_ms=since_ms, until_ms=until_ms)
        return json_response(
            {
                "usage": rows,
                "count": len(rows),
                "group": groups,
                "since": format_rfc3339_ms(since_ms),
                "until": format_rfc3339_ms(until_ms),
            }
        )

    async def ledger(self, request: Request) -> Response:
        """List the movements of one's money, the newest first: `{entries, count, next}`."""
        query = Query(request.query, allowed=("limit", "before"))
        limit = query.number("limit", default=ROWS, low=1, high=MAX_ROWS)
        before_ms, before_id = cursor_of(query, "before", self._clock)
        rows = await self._entries(
            user_of(request).wallet_id, limit=limit, before_ms=before_ms, before_id=before_id
        )
        return _page("entries", rows, limit=limit, id_name="id")


def groups_of(query: Query) -> list[str]:
    """Return what sums are to be grouped by; [] = one sum."""
    text = query.text("group")[:200]
    return [] if text == ONE_SUM else [one.strip() for one in text.split(",")]


def _page(name: str, rows: Sequence[dict[str, Any]], *, limit: int, id_name: str) -> Response:
    """Return rows, and where the next page begins; null = this is the last one."""
    last = rows[-1] if len(rows) == limit else None
    following = f"{last['at']},{last[id_name]}" if last is not None else None
    return json_response({name: rows, "count": len(rows), "next": following})


def _refuse(query: Query, names: Sequence[str], *, because: str) -> None:
    for name in names:
        if query.text(name):
            raise Invalid(f"`{name}` cannot be used {because}.", param=name, code="invalid_query")
