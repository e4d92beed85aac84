"""The addresses of operators about users: find, make, change, grant. Each change writes an audit row."""

from functools import partial
from typing import Final

from appliance.accounts.audit_log import write_audit
from appliance.accounts.guardrails import Guardrails
from appliance.accounts.issued_keys import IssuedKeys
from appliance.accounts.quotas import RequestQuotas
from appliance.accounts.user_forms import read_change
from appliance.accounts.users import MAX_LISTED, Users
from appliance.accounts.wallets import Wallets
from appliance.base.clock import Clock
from appliance.base.ids import new_id
from appliance.base.money import MAX_MUSD, to_dollars
from appliance.front.accounts.bodies import (
    amount_of,
    flag_of,
    idempotency_key_of,
    read_fields,
    text_of,
)
from appliance.front.accounts.caller import BASE, author_of, id_of, is_id
from appliance.front.accounts.guardrails import window_of
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.query import Query
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route
from appliance.storage.database import Transaction

LISTED: Final = 100
NOTE_CHARACTERS: Final = 500
CHANGES: Final = ("name", "is_active", "is_admin", "plan", "limits")


class AdminUserHandlers:
    """The handlers of operators about users.

    Args:
        users: All users.
        keys: Their API keys.
        wallets: Their credits.
        quotas: Their quotas of requests.
        guardrails: What they have spent.
        clock: The time of audit rows.
    """

    def __init__(
        self,
        users: Users,
        keys: IssuedKeys,
        wallets: Wallets,
        quotas: RequestQuotas,
        guardrails: Guardrails,
        *,
        clock: Clock,
    ) -> None:
        self._users = users
        self._keys = keys
        self._wallets = wallets
        self._quotas = quotas
        self._guardrails = guardrails
        self._clock = clock

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        ours = partial(Route, dialect="market", access=Access.OPERATOR, scope="admin")
        return [
            ours(("GET",), f"{BASE}/admin/users", self.users),
            ours(("POST",), f"{BASE}/admin/users", self.create),
            ours(("GET",), f"{BASE}/admin/users/{{id}}", self.user),
            ours(("PATCH",), f"{BASE}/admin/users/{{id}}", self.change),
            ours(("POST",), f"{BASE}/admin/users/{{id}}/grant", self.grant),
            ours(("POST",), f"{BASE}/admin/users/{{id}}/guardrails/reset", self.reset),
        ]

    async def users(self, request: Request) -> Response:
        """List users whose e-mail address or name has `?q=` in it: `{users: [user], count, next}`.

        `next` is the `after` of the next page; null = this is the last one.
        """
        query = Query(request.query, allowed=("q", "after", "limit"))
        limit = query.number("limit", default=LISTED, low=1, high=MAX_LISTED)
        after = query.text("after")
        found = await self._users.search(query.text("q"), after=after if is_id(after) else "", limit=limit)
        return json_response(
            {
                "users": [user.to_json() for user in found],
                "count": len(found),
                "next": found[-1].id if len(found) == limit else None,
            }
        )

    async def create(self, request: Request) -> Response:
        """Make a user, also where REGISTRATION is off: `{email, password, name, is_admin?}`.

        Returns:
            201 with `{user}`.
        """
        needed = ("email", "password", "name")
        body = read_fields(request, (*needed, "is_admin"), needed=needed)
        user = await self._users.create(
            body["email"],
            body["password"],
            body["name"],
            author=author_of(request),
            is_admin=flag_of(body, "is_admin"),
        )
        return json_response({"user": user.to_json()}, 201)

    async def user(self, request: Request) -> Response:
        """Show a user with its credits, quotas and API keys: `{user, credits, usage_quota, api_keys}`."""
        user = await self._users.get(_user_id(request))
        wallet = await self._wallets.find(user.wallet_id)
        return json_response(
            {
                "user": user.to_json(),
                "credits": wallet.credits(user.id),
                "usage_quota": await self._quotas.view(user.id),
                "api_keys": [key.to_json() for key in await self._keys.of_user(user.id)],
            }
        )

    async def change(self, request: Request) -> Response:
        """Change a user: `{name?, is_active?, is_admin?, plan?, limits?}`; returns `{user}`.

        It holds on all replicas within 2 s. A user who is made inactive is logged out everywhere.
        """
        user_id = _user_id(request)
        wanted = read_change(read_fields(request, CHANGES))
        user = await self._users.change(user_id, wanted, author=author_of(request))
        return json_response({"user": user.to_json()})

    async def grant(self, request: Request) -> Response:
        """Give a user credits that stay: `{amount, note?}`, dollars; below 0 takes them away.

        Sent again with the same header `Idempotency-Key` it does nothing; with another amount it is 409.

        Returns:
            `{credits, amount}`.
        """
        user = await self._users.get(_user_id(request))
        body = read_fields(request, ("amount", "note"), needed=("amount",))
        amount_musd = amount_of(body, "amount", least_musd=-MAX_MUSD)
        note = text_of(body, "note", characters=NOTE_CHARACTERS)
        key = idempotency_key_of(request) or new_id(self._clock)
        author = author_of(request)

        async def note_it(transaction: Transaction) -> None:
            await write_audit(
                transaction,
                self._clock,
                author,
                "credits.grant",
                subject=("user", user.id),
                details={"amount": to_dollars(amount_musd)},
            )

        wallet = await self._wallets.grant(
            user.wallet_id, amount_musd, ref=f"{user.wallet_id}:{key}", note=note, alongside=note_it
        )
        return json_response({"credits": wallet.credits(user.id), "amount": to_dollars(amount_musd)})

    async def reset(self, request: Request) -> Response:
        """Let a user's windows of spending begin anew: `{window_name?}`, without it all of them.

        Returns:
            The spending, as GET /guardrails/spending shows it.
        """
        user = await self._users.get(_user_id(request))
        spending = await self._guardrails.reset(user.wallet_id, window_of(request))
        return json_response(spending.info(user.id))


def _user_id(request: Request) -> str:
    return id_of(request, what="user", code="user_unknown")
