"""The addresses of operators about users: find, make, change, grant. Each change writes an audit row."""

from functools import partial
from typing import Any, Final

from appliance.accounts.actor import MAX_LIMIT
from appliance.accounts.audit_log import Author, write_audit
from appliance.accounts.guardrails import Guardrails
from appliance.accounts.issued_keys import IssuedKeys
from appliance.accounts.quotas import RequestQuotas
from appliance.accounts.renewals import next_period_end_ms
from appliance.accounts.user_forms import read_change
from appliance.accounts.users import MAX_LISTED, Users
from appliance.accounts.wallets import Wallets
from appliance.base.clock import Clock
from appliance.base.errors import Invalid
from appliance.base.ids import is_id, new_id
from appliance.base.money import MAX_MUSD, to_dollars
from appliance.front.accounts.bodies import (
    amount_of,
    flag_of,
    idempotency_key_of,
    read_fields,
    text_of,
)
from appliance.front.accounts.caller import BASE, author_of, id_of
from appliance.front.accounts.guardrails import window_of
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.query import Query
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route
from appliance.storage.database import Transaction

LISTED: Final = 100
NOTE_CHARACTERS: Final = 500
CREDITS: Final = ("plan", "cap", "auto_renew")
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
            ours(("DELETE",), f"{BASE}/admin/users/{{id}}", self.delete),
            ours(("POST",), f"{BASE}/admin/users/{{id}}/password", self.set_password),
            ours(("POST",), f"{BASE}/admin/users/{{id}}/grant", self.grant),
            ours(("PATCH",), f"{BASE}/admin/users/{{id}}/credits", self.set_credits),
            ours(("PATCH",), f"{BASE}/admin/users/{{id}}/quota", self.set_quota),
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

    async def set_password(self, request: Request) -> Response:
        """Set a user's password without the old one: `{password}`; all its sessions end.

        Returns:
            `{message, id}`.
        """
        user_id = _user_id(request)
        body = read_fields(request, ("password",), needed=("password",))
        await self._users.set_password(user_id, body["password"], author=author_of(request))
        return json_response({"message": "Password changed", "id": user_id})

    async def delete(self, request: Request) -> Response:
        """Delete a user, as it can itself: what tells who it was is removed; it cannot be undone.

        Its keys and sessions end, its credits lapse; rows of usage and money stay, under an id. The only
        administrator who is active is not deleted: 409 `last_admin`.

        Returns:
            `{message, id}`.
        """
        user_id = _user_id(request)
        read_fields(request, (), is_optional=True)
        await self._users.delete(user_id, author=author_of(request))
        return json_response({"message": "User deleted", "id": user_id})

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
            details = {"amount": to_dollars(amount_musd)}
            await self._note(transaction, author, "credits.grant", user.id, details)

        wallet = await self._wallets.grant(
            user.wallet_id, amount_musd, ref=f"{user.wallet_id}:{key}", note=note, alongside=note_it
        )
        return json_response({"credits": wallet.credits(user.id), "amount": to_dollars(amount_musd)})

    async def set_credits(self, request: Request) -> Response:
        """Set what a user gets for each month: `{plan?, cap?, auto_renew?}`, dollars; returns `{credits}`.

        `plan` is granted now, as far as it is more than before, and with `auto_renew` at the end of each
        month anew; `cap` is the most that may be used beyond the credits. What is not named stays.
        """
        user = await self._users.get(_user_id(request))
        body = read_fields(request, CREDITS)
        if not body:
            raise Invalid(f"There is nothing to change. Known fields: {', '.join(CREDITS)}.")
        key = idempotency_key_of(request) or new_id(self._clock)
        before = await self._wallets.find(user.wallet_id)
        plan_musd = amount_of(body, "plan") if "plan" in body else before.plan_musd
        cap_musd = amount_of(body, "cap") if "cap" in body else before.cap_musd
        auto_renew = flag_of(body, "auto_renew") if "auto_renew" in body else before.auto_renew
        end_ms = before.period_end_ms
        if auto_renew and end_ms is None:
            end_ms = next_period_end_ms(before.anchor_day, round(self._clock.now_s() * 1000))
        details = {
            "before": _plan_to_json(before.plan_musd, before.cap_musd, is_renewed=before.auto_renew),
            "after": _plan_to_json(plan_musd, cap_musd, is_renewed=auto_renew),
        }
        author = author_of(request)

        async def note_it(transaction: Transaction) -> None:
            await self._note(transaction, author, "credits.set", user.id, details)

        wallet = await self._wallets.set_plan(
            user.wallet_id,
            plan_musd=plan_musd,
            cap_musd=cap_musd,
            auto_renew=auto_renew,
            period_end_ms=end_ms,
            anchor_day=before.anchor_day,
            ref=f"{user.wallet_id}:{key}",
            seen=before,
            alongside=note_it,
        )
        return json_response({"credits": wallet.credits(user.id)})

    async def set_quota(self, request: Request) -> Response:
        """Set how many requests a user can make in a month: `{max_requests}`, 0 = no limit.

        Returns:
            `{usage_quota: {max_requests, used_requests, reset_at, …}}`.
        """
        user = await self._users.get(_user_id(request))
        body = read_fields(request, ("max_requests",), needed=("max_requests",))
        wanted = body["max_requests"]
        if not isinstance(wanted, int) or isinstance(wanted, bool) or not 0 <= wanted <= MAX_LIMIT:
            raise Invalid(
                f"`max_requests` must be a whole number from 0 to {MAX_LIMIT}.",
                param="max_requests",
                code="invalid_type",
            )
        author = author_of(request)

        async def note_it(transaction: Transaction, before: int) -> None:
            details = {"before": {"max_requests": before}, "after": {"max_requests": wanted}}
            await self._note(transaction, author, "quota.set", user.id, details)

        await self._quotas.set_max(user.id, max_requests=wanted, alongside=note_it)
        return json_response({"usage_quota": await self._quotas.view(user.id)})

    async def _note(
        self, transaction: Transaction, author: Author, action: str, user_id: str, details: dict[str, Any]
    ) -> None:
        await write_audit(
            transaction, self._clock, author, action, subject=("user", user_id), details=details
        )

    async def reset(self, request: Request) -> Response:
        """Let a user's windows of spending begin anew: `{window_name?}`, without it all of them.

        Returns:
            The spending, as GET /guardrails/spending shows it.
        """
        user = await self._users.get(_user_id(request))
        spending = await self._guardrails.reset(user.wallet_id, window_of(request))
        return json_response(spending.info(user.id))


def _plan_to_json(plan_musd: int, cap_musd: int, *, is_renewed: bool) -> dict[str, Any]:
    return {"plan": to_dollars(plan_musd), "cap": to_dollars(cap_musd), "auto_renew": is_renewed}


def _user_id(request: Request) -> str:
    return id_of(request, what="user", code="user_unknown")
