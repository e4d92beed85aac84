"""The addresses of operators about money: prices, the ledger's accounts, the audit of all changes."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from appliance.accounts.audit import Difference
from appliance.accounts.price_file import MAX_BYTES, read_price_file
from appliance.accounts.price_store import PriceStore
from appliance.accounts.prices import Price, PriceBook, join_prices
from appliance.accounts.usage import UsageStore
from appliance.accounts.wallets import Wallets
from appliance.base.clock import Clock, format_rfc3339_ms
from appliance.base.errors import Invalid, TooLarge
from appliance.base.ids import is_id
from appliance.base.money import to_dollars
from appliance.front.accounts.bodies import moment_of
from appliance.front.accounts.caller import BASE, author_of
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.query import Query
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route

ROWS: Final = 100
MAX_ROWS: Final = 1000
SHOWN_PROBLEMS: Final = 20
TEXT_CHARACTERS: Final = 64


@dataclass(frozen=True, slots=True)
class MoneyViews:
    """What is read of the database for operators.

    Attributes:
        balances: Accounts of the ledger, in micro-dollars (`ledger.balances`).
        differences: What does not add up (`audit.find_differences`).
        audit: Rows of the audit (`audit_log.read_audit`).
    """

    balances: Callable[[], Awaitable[dict[str, int]]]
    differences: Callable[[], Awaitable[list[Difference]]]
    audit: Callable[..., Awaitable[list[dict[str, Any]]]]


class AdminMoneyHandlers:
    """The handlers of operators about money.

    Args:
        prices: All versions of all prices.
        wallets: All credits.
        usage: All usage.
        views: What else is shown.
        clock: The time.
        file_prices: Returns those of PRICES_FILE now.
    """

    def __init__(
        self,
        prices: PriceStore,
        wallets: Wallets,
        usage: UsageStore,
        *,
        views: MoneyViews,
        clock: Clock,
        file_prices: Callable[[], Iterable[Price]] = tuple,
    ) -> None:
        self._prices = prices
        self._file_prices = file_prices
        self._wallets = wallets
        self._usage = usage
        self._views = views
        self._clock = clock

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        ours = partial(Route, dialect="market", access=Access.OPERATOR, scope="admin")
        return [
            ours(("GET",), f"{BASE}/admin/prices", self.prices),
            ours(("PUT",), f"{BASE}/admin/prices", self.put_prices),
            ours(("GET",), f"{BASE}/admin/money", self.money),
            ours(("GET",), f"{BASE}/admin/audit", self.audit),
        ]

    async def prices(self, request: Request) -> Response:
        """List the prices that are in force, in dollars; with `?all=1` every version: `{prices, count}`.

        Returns:
            A price is `{model, source, version, valid_from, in, cached_in, out, embedding, per_request,
            gpu_hour_markup_percent}`, per 1,000,000 tokens; the model `*` is every other one. `source` is
            `database`, or `file` = PRICES_FILE, whose prices count for models that have none there.
        """
        query = Query(request.query, allowed=("all",))
        found = join_prices(await self._prices.read(), self._file_prices())
        if not query.flag("all"):
            found = PriceBook(found).current(round(self._clock.now_s() * 1000))
        return json_response({"prices": [price_to_json(one) for one in found], "count": len(found)})

    async def put_prices(self, request: Request) -> Response:
        """Add versions of prices; the body is as PRICES_FILE: `{prices: [{model, in, out, …}]}`.

        Prices that are in force already are left out, and models that are not named keep theirs. Requests
        that run are billed by the version that was in force when they began.

        Returns:
            `{prices: [the new versions], added, unchanged}`.
        """
        if len(request.body) > MAX_BYTES:
            raise TooLarge(f"The body has {len(request.body)} bytes; up to {MAX_BYTES} are allowed here.")
        read = read_price_file(request.body)
        if read.problems:
            shown = read.problems[:SHOWN_PROBLEMS]
            raise Invalid(
                f"The prices are not right, and none was taken: {shown[0]}",
                code="invalid_prices",
                details={"problems": shown, "count": len(read.problems)},
            )
        wanted = [row.price for row in read.rows]
        added = await self._prices.add(wanted, author=author_of(request))
        return json_response(
            {
                "prices": [price_to_json(one) for one in added],
                "added": len(added),
                "unchanged": len(wanted) - len(added),
            }
        )

    async def money(self, request: Request) -> Response:
        """Show the accounts of the ledger, sums of all wallets and of usage, in dollars.

        Usage is of the time from `?since=`, without it of all time. With `?check=1` every wallet is computed
        anew from the ledger, which takes long where there is much of it.

        Returns:
            `{accounts: {name: dollars}, wallets, usage, differences?}`; no `differences` is what is right.
        """
        query = Query(request.query, allowed=("since", "check"))
        since_ms = moment_of(query, "since", self._clock) or 0
        balances = await self._views.balances()
        [usage] = await self._usage.grouped([], since_ms=since_ms)
        shown: dict[str, Any] = {
            "accounts": {name: to_dollars(musd) for name, musd in balances.items()},
            "wallets": await self._wallets.totals(),
            "usage": usage,
        }
        if query.flag("check"):
            found = await self._views.differences()
            shown["differences"] = [
                {
                    "what": one.what,
                    "subject": one.subject,
                    "expected": one.expected_musd,
                    "found": one.found_musd,
                }
                for one in found
            ]
        return json_response(shown)

    async def audit(self, request: Request) -> Response:
        """List who changed what, the newest first: `{audit: [row], count, next}`.

        `?subject=` and `?actor=` are ids, `?action=` is a word such as `user.change`; `next` is the `before`
        of the next page.
        """
        query = Query(request.query, allowed=("subject", "actor", "action", "before", "limit"))
        limit = query.number("limit", default=ROWS, low=1, high=MAX_ROWS)
        rows = await self._views.audit(
            subject_id=_text(query, "subject"),
            actor_id=_text(query, "actor"),
            action=_text(query, "action"),
            before_id=_id(query, "before"),
            limit=limit,
        )
        following = rows[-1]["id"] if len(rows) == limit else None
        return json_response({"audit": rows, "count": len(rows), "next": following})


def price_to_json(price: Price) -> dict[str, Any]:
    """Return a price as JSON has it, in dollars per 1,000,000 tokens."""
    return {
        "model": price.model,
        "source": price.source,
        "version": price.version,
        "valid_from": format_rfc3339_ms(price.valid_from_ms),
        "in": to_dollars(price.in_per_mtok),
        "cached_in": to_dollars(price.cached_in_per_mtok),
        "out": to_dollars(price.out_per_mtok),
        "embedding": to_dollars(price.embedding_per_mtok),
        "per_request": to_dollars(price.per_request_musd),
        "gpu_hour_markup_percent": price.gpu_hour_markup_percent,
    }


def _text(query: Query, name: str) -> str:
    text = query.text(name)
    if len(text) <= TEXT_CHARACTERS and (not text or text.isprintable()):
        return text
    raise Invalid(
        f"`{name}` must be up to {TEXT_CHARACTERS} printable characters.", param=name, code="invalid_value"
    )


def _id(query: Query, name: str) -> str:
    text = query.text(name)
    if not text or is_id(text):
        return text
    raise Invalid(f"`{name}` must be `next` of the page before.", param=name, code="invalid_value")
