"""The calls about accounts: users, keys, sessions, credits, prices, the ledger. Built where ACCOUNTS is on.

`calls/accounts.py` offers them over gRPC; the programs for administrators use them without a server, on the
database itself (`appliance/admin`). So both have the same rules and the same words.
"""

from collections.abc import Callable, Iterable
from typing import Any

from appliance.accounts.actor import read_models, read_scopes
from appliance.accounts.api_keys import read_expiry_ms, read_key_name
from appliance.accounts.audit import find_differences
from appliance.accounts.audit_log import Author, write_audit
from appliance.accounts.guardrails import WINDOWS
from appliance.accounts.identity import Identity
from appliance.accounts.issued_keys import KeyRequest
from appliance.accounts.ledger import balances
from appliance.accounts.money import MoneyStore
from appliance.accounts.prices import Price, PriceBook, join_prices
from appliance.accounts.totals import read_totals
from appliance.accounts.user_forms import read_change
from appliance.accounts.users import MAX_LISTED, StoredUser
from appliance.base.errors import Invalid, NotFound
from appliance.base.ids import new_id
from appliance.base.money import MUSD_PER_DOLLAR
from appliance.control.convert.accounts import (
    from_model_price,
    from_user_limits,
    to_api_key,
    to_credits,
    to_model_price,
    to_user,
    to_user_session,
)
from appliance.control.v1 import control_pb2 as pb
from appliance.storage.database import Transaction

DEFAULT_LISTED = 100
MAX_PRICES = 10_000
MAX_NOTE_CHARS = 200
CHANGES = ("name", "is_admin", "is_active", "plan")


class AccountService:
    """The calls, without gRPC: a method takes a request's message and returns the response's.

    Args:
        identity: Users, keys and sessions.
        store: Wallets, prices, spending.
        author: Who makes changes, for the audit.
        file_prices: Returns those of PRICES_FILE, which hold where the database has none of a model.
    """

    def __init__(
        self,
        identity: Identity,
        store: MoneyStore,
        *,
        author: Author,
        file_prices: Callable[[], Iterable[Price]] = tuple,
    ) -> None:
        self._users, self._keys, self._sessions = identity.users, identity.keys, identity.sessions
        self._store = store
        self._database, self._clock = identity.database, identity.clock
        self._author = author
        self._file_prices = file_prices

    # ---- users

    async def ListUsers(self, request: pb.ListUsersRequest) -> pb.ListUsersResponse:
        """Return a page of users."""
        if request.limit > MAX_LISTED:
            raise Invalid(f"`limit` must be from 0 to {MAX_LISTED}, not {request.limit}.", param="limit")
        limit = request.limit or DEFAULT_LISTED
        found = await self._users.search(request.search, after=request.after, limit=limit)
        return pb.ListUsersResponse(users=[to_user(user) for user in found])

    async def CreateUser(self, request: pb.CreateUserRequest) -> pb.CreateUserResponse:
        """Create a user."""
        user = await self._users.create(
            request.email, request.password, request.name, author=self._author, is_admin=request.is_admin
        )
        return pb.CreateUserResponse(user=to_user(user))

    async def SetUser(self, request: pb.SetUserRequest) -> pb.SetUserResponse:
        """Change a user; the password last, since another refusal must not leave it changed."""
        values: dict[str, Any] = {name: getattr(request, name) for name in CHANGES if request.HasField(name)}
        if request.HasField("limits"):
            values["limits"] = from_user_limits(request.limits)
        if not values and not request.HasField("password"):
            known = ", ".join((*CHANGES, "limits", "password"))
            raise Invalid(f"There is nothing to change. Set one of {known}.")
        user = await self._find(request.user)
        if values:
            user = await self._users.change(user.id, read_change(values), author=self._author)
        if request.HasField("password"):
            await self._users.set_password(user.id, request.password, author=self._author)
        return pb.SetUserResponse(user=to_user(user))

    async def DeleteUser(self, request: pb.DeleteUserRequest) -> pb.DeleteUserResponse:
        """Delete a user: what tells who it was is removed."""
        user = await self._find(request.user)
        await self._users.delete(user.id, author=self._author)
        return pb.DeleteUserResponse(user=to_user(await self._users.get(user.id)))

    # ---- keys and sessions

    async def ListApiKeys(self, request: pb.ListApiKeysRequest) -> pb.ListApiKeysResponse:
        """Return a user's API keys."""
        user = await self._find(request.user)
        found = await self._keys.of_user(user.id)
        return pb.ListApiKeysResponse(api_keys=[to_api_key(key) for key in found])

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest) -> pb.CreateApiKeyResponse:
        """Make an API key; its text is in this response alone."""
        user = await self._find(request.user)
        at = request.expires_at
        expires_at_s = at.seconds + at.nanos / 1e9 if request.HasField("expires_at") else None
        wanted = KeyRequest(
            read_key_name(request.name),
            scopes=read_scopes(list(request.scopes) or None),
            models=read_models(list(request.models)),
            stay_local=request.stay_local,
            expires_at_ms=read_expiry_ms(expires_at_s, self._clock.now_s()),
        )
        new, stored = await self._keys.create(user.facts(), wanted, author=self._author)
        return pb.CreateApiKeyResponse(key=new.text, api_key=to_api_key(stored), user=to_user(user))

    async def RevokeApiKey(self, request: pb.RevokeApiKeyRequest) -> pb.RevokeApiKeyResponse:
        """Revoke the API key that an id or a prefix names."""
        user = await self._find(request.user)
        name = request.api_key.strip()
        keys = await self._keys.of_user(user.id)
        key = next((one for one in keys if name in (one.id, one.prefix)), None)
        if key is None:
            raise NotFound(f"There is no API key {name[:16]!r} of this user.", code="key_unknown")
        await self._keys.revoke(user.id, key.id, author=self._author)
        return pb.RevokeApiKeyResponse(
            api_key=to_api_key(await self._keys.get(user.id, key.id)),
        )

    async def ListSessions(self, request: pb.ListSessionsRequest) -> pb.ListSessionsResponse:
        """Return a user's sessions."""
        user = await self._find(request.user)
        rows = await self._sessions.of_user(user.id)
        return pb.ListSessionsResponse(sessions=[to_user_session(row) for row in rows])

    async def EndSessions(self, request: pb.EndSessionsRequest) -> pb.EndSessionsResponse:
        """End one session of a user, or all of them."""
        user = await self._find(request.user)
        if request.session:
            await self._sessions.end_one(user.id, request.session)
            return pb.EndSessionsResponse(ended=1)
        return pb.EndSessionsResponse(ended=await self._sessions.end_all(user.id))

    # ---- money

    async def GrantCredits(self, request: pb.GrantCreditsRequest) -> pb.GrantCreditsResponse:
        """Add credits, or take some away; once for each `ref`."""
        user, note = await self._find(request.user), request.note
        if len(note) > MAX_NOTE_CHARS or not note.isprintable():
            raise Invalid(f"`note` must have at most {MAX_NOTE_CHARS} printable characters.", param="note")
        if len(request.ref) > MAX_NOTE_CHARS or not request.ref.isprintable():
            raise Invalid(f"`ref` must have at most {MAX_NOTE_CHARS} printable characters.", param="ref")
        ref = request.ref or new_id(self._clock)
        wallet = await self._store.wallets.grant(user.wallet_id, request.amount_musd, ref=ref, note=note)
        details = {"amount": request.amount_musd / MUSD_PER_DOLLAR, "ref": ref, "note": note}
        await self._audit("credits.grant", user, details)
        return pb.GrantCreditsResponse(user=to_user(user), credits=to_credits(wallet))

    async def GetUsage(self, request: pb.GetUsageRequest) -> pb.GetUsageResponse:
        """Return what a user may use and has used."""
        user = await self._find(request.user)
        quota = await self._store.quotas.view(user.id)
        wallet = await self._store.wallets.find(user.wallet_id)
        models = await self._store.usage.grouped(["model"], wallet_id=user.wallet_id)
        response = pb.GetUsageResponse(
            user=to_user(user),
            max_requests=quota["max_requests"],
            used_requests=quota["used_requests"],
            max_gpu_hours=quota["max_gpu_hours"],
            used_gpu_hours=quota["used_gpu_hours"],
            credits=to_credits(wallet),
            models=[
                pb.ModelUsage(
                    model=row["model"],
                    attempts=row["attempts"],
                    tokens_in=row["tokens_in"],
                    tokens_cached=row["tokens_cached"],
                    tokens_out=row["tokens_out"],
                    charged_musd=round(row["cost"] * MUSD_PER_DOLLAR),
                )
                for row in models
            ],
        )
        response.reset_at.FromJsonString(quota["reset_at"])
        return response

    async def GetSpending(self, request: pb.GetSpendingRequest) -> pb.GetSpendingResponse:
        """Return the limits of each window, and what a user has spent in it."""
        guardrails, is_enabled = self._store.guardrails, self._store.settings.guardrails_enabled
        if not request.user:
            limits = guardrails.limits_of("")
            return pb.GetSpendingResponse(
                is_enabled=is_enabled,
                windows=[pb.SpendingWindow(name=name, limit_musd=limits.get(name, 0)) for name in WINDOWS],
            )
        user = await self._find(request.user)
        spending = await guardrails.spending(user.wallet_id)
        return pb.GetSpendingResponse(
            is_enabled=is_enabled,
            user=to_user(user),
            windows=[
                pb.SpendingWindow(name=name, limit_musd=spending.limits.get(name, 0), spent_musd=musd)
                for name, musd in spending.windows.items()
            ],
            total_musd=spending.total_musd,
        )

    async def ResetSpending(self, request: pb.ResetSpendingRequest) -> pb.ResetSpendingResponse:
        """Let windows of a user begin anew."""
        user = await self._find(request.user)
        await self._store.guardrails.reset(user.wallet_id, request.window)
        await self._audit("spending.reset", user, {"window": request.window or "all"})
        return pb.ResetSpendingResponse(user=to_user(user))

    async def GetMoney(self, request: pb.GetMoneyRequest) -> pb.GetMoneyResponse:
        """Return the sums of the ledger, and with `audit` what is not as it should be."""
        database = self._database
        totals = await read_totals(database)
        differences = await find_differences(database) if request.audit else []
        return pb.GetMoneyResponse(
            users=totals.users,
            active_users=totals.active_users,
            active_api_keys=totals.active_api_keys,
            transactions=totals.transactions,
            gpu_hours=totals.gpu_seconds / 3600,
            leased_musd=totals.leased_musd,
            accounts=[
                pb.LedgerAccount(name=name, amount_musd=musd)
                for name, musd in (await balances(database)).items()
            ],
            differences=[
                pb.MoneyDifference(
                    what=one.what, subject=one.subject, expected=one.expected_musd, found=one.found_musd
                )
                for one in differences
            ],
        )

    async def ListPrices(self, request: pb.ListPricesRequest) -> pb.ListPricesResponse:
        """Return the prices that are in force."""
        book = PriceBook(join_prices(await self._store.prices.read(), self._file_prices()))
        now_ms = int(self._clock.now_s() * 1000)
        return pb.ListPricesResponse(prices=[to_model_price(price) for price in book.current(now_ms)])

    async def SetPrices(self, request: pb.SetPricesRequest) -> pb.SetPricesResponse:
        """Add versions of prices."""
        if not 1 <= len(request.prices) <= MAX_PRICES:
            raise Invalid(
                f"`prices` must have 1 to {MAX_PRICES} prices, not {len(request.prices)}.", param="prices"
            )
        wanted = [from_model_price(message, place) for place, message in enumerate(request.prices)]
        if len({(price.model, price.valid_from_ms) for price in wanted}) < len(wanted):
            raise Invalid(
                "`prices` has a model twice with the same time; leave one of them out.", param="prices"
            )
        added = await self._store.prices.add(wanted, author=self._author)
        return pb.SetPricesResponse(prices=[to_model_price(price) for price in added])

    # ---- inside

    async def _find(self, text: str) -> StoredUser:
        """Return the user whom an id or an e-mail address names."""
        name = text.strip()
        if not name:
            raise Invalid(
                "`user` is required: an id or an e-mail address.",
                param="user",
                code="missing_required_parameter",
            )
        return await (self._users.find_by_email(name) if "@" in name else self._users.get(name))

    async def _audit(self, action: str, user: StoredUser, details: dict[str, object]) -> None:
        async def work(transaction: Transaction) -> None:
            await write_audit(
                transaction,
                self._clock,
                self._author,
                action,
                subject=("user", user.id),
                details=details,
            )

        await self._database.run(work)
