"""Users: registration, login, profile, roles, export, deletion. Each change writes an audit row."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import ceil
from typing import Any, Final

from sqlalchemy import func, insert, or_, select, update

from appliance.accounts.actor import Limits, UserFacts, render_limits
from appliance.accounts.audit_log import Author, write_audit
from appliance.accounts.changes import ChangeFeed
from appliance.accounts.directory import Directory
from appliance.accounts.issued_keys import limits_text, render_ms
from appliance.accounts.passwords import Passwords
from appliance.accounts.renewals import next_period_end_ms
from appliance.accounts.sessions import IssuedTokens, Sessions, printable
from appliance.accounts.snapshot_reader import stored_limits
from appliance.accounts.user_forms import MAX_EMAIL_CHARACTERS, UserChange, read_email, read_name
from appliance.accounts.windows import AttemptLimit, subject_of_address
from appliance.base.clock import Clock
from appliance.base.errors import Conflict, Exhausted, Forbidden, Invalid, NotFound, Unauthenticated
from appliance.base.ids import is_id, new_id
from appliance.base.logs import get_logger
from appliance.storage.database import ConstraintViolated, Database, StoreUnavailable, Transaction
from appliance.storage.schema import api_keys, credits, sessions, usage_quotas, users, wallets

log = get_logger("accounts")
LOGINS_PER_EMAIL: Final = 5  # a minute
LOGINS_PER_ADDRESS: Final = 20  # a minute
REGISTRATIONS_PER_ADDRESS: Final = 10  # a minute
MAX_LISTED: Final = 500
OpenWallet = Callable[[Transaction, str, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class StoredUser:
    """A user as the database has it; times in milliseconds since 1970."""

    id: str
    email: str
    name: str
    is_admin: bool
    is_active: bool
    plan: str
    limits: Limits
    wallet_id: str
    created_at_ms: int
    updated_at_ms: int

    def facts(self) -> UserFacts:
        """Return what requests need of it."""
        return UserFacts(
            self.id, self.email, self.is_admin, self.is_active, self.wallet_id, self.plan, self.limits
        )

    def to_json(self) -> dict[str, Any]:
        """Return the user as JSON has it."""
        return {
            "id": self.id,
            "email": self.email,
            "name": self.name,
            "is_admin": self.is_admin,
            "is_active": self.is_active,
            "plan": self.plan,
            "limits": render_limits(self.limits),
            "created_at": render_ms(self.created_at_ms),
            "updated_at": render_ms(self.updated_at_ms),
        }


@dataclass(frozen=True, slots=True)
class UserRules:
    """The settings of users.

    Attributes:
        is_open: REGISTRATION=open: anyone can register.
        max_requests: QUOTA_MAX_REQUESTS of a new user, per month.
        max_gpu_seconds: QUOTA_MAX_GPU_HOURS of a new user, in seconds per month.
    """

    is_open: bool = False
    max_requests: int = 10_000
    max_gpu_seconds: int = 360_000


def email_of_deleted(user_id: str) -> str:
    """Return what stands in place of the e-mail address of a deleted user; no registration takes it."""
    return f"deleted-{user_id}@invalid"


class Users:
    """All users.

    Args:
        open_wallet: Called with (transaction, wallet id, user id) in the transaction that makes a user, to
            make the wallet and grant the first credits; it may be called again after a conflict. None = an
            empty wallet is made.
    """

    def __init__(
        self,
        database: Database,
        changes: ChangeFeed,
        directory: Directory,
        passwords: Passwords,
        sessions: Sessions,
        *,
        clock: Clock,
        rules: UserRules,
        open_wallet: OpenWallet | None = None,
    ) -> None:
        self._database = database
        self._changes = changes
        self._directory = directory
        self._passwords = passwords
        self._sessions = sessions
        self._clock = clock
        self._rules = rules
        self._open_wallet = open_wallet
        self._logins_of_email = AttemptLimit(LOGINS_PER_EMAIL)
        self._logins_of_address = AttemptLimit(LOGINS_PER_ADDRESS)
        self._registrations = AttemptLimit(REGISTRATIONS_PER_ADDRESS)

    # ---- register and log in

    async def register(self, email: object, password: object, name: object, *, peer: str) -> StoredUser:
        """Register a user who comes by itself.

        Raises:
            Forbidden: REGISTRATION is off.
            Invalid: A field is missing or not allowed.
            Exhausted: Too many registrations from this address.
            Conflict: There is a user with this e-mail address.
            StoreUnavailable: The database is down.
        """
        if not self._rules.is_open:
            raise Forbidden(
                "Registration is closed here (REGISTRATION). An administrator can create the user.",
                code="registration_closed",
            )
        if not email or not password or not name:
            raise Invalid("Missing required fields", details={"needed": ["email", "password", "name"]})
        self._limit(self._registrations, subject_of_address(peer), "registrations from this address")
        return await self.create(email, password, name, author=Author("user", None, peer))

    async def create(
        self, email: object, password: object, name: object, *, author: Author, is_admin: bool = False
    ) -> StoredUser:
        """Create a user, with a wallet and a quota.

        Raises:
            Invalid: A field is not allowed.
            Conflict: There is a user with this e-mail address.
            StoreUnavailable: The database is down.
        """
        address, shown = read_email(email), read_name(name)
        hashed = await self._passwords.hash(self._passwords.check_form(password))
        now_ms = self._now_ms()
        user_id, wallet_id = new_id(self._clock), new_id(self._clock)

        async def work(transaction: Transaction) -> None:
            row = {
                "id": user_id,
                "email": address,
                "password_hash": hashed,
                "name": shown,
                "is_admin": is_admin,
                "created_at": now_ms,
                "updated_at": now_ms,
            }
            await transaction.execute(insert(users), [row])
            if self._open_wallet is not None:
                await self._open_wallet(transaction, wallet_id, user_id)
            else:
                await self._make_wallet(transaction, wallet_id, user_id, now_ms)
            await self._make_quota(transaction, user_id, now_ms)
            await self._audit(transaction, author, "user.create", user_id, {"is_admin": is_admin})
            await self._changes.note(transaction, "user", [user_id])

        try:
            await self._database.run(work)
        except ConstraintViolated as error:
            if not error.is_duplicate:
                raise
            raise Conflict(
                "There is a user with this e-mail address. Log in instead.", param="email", code="email_taken"
            ) from None
        await self._directory.apply("user", [user_id])
        return await self.get(user_id)

    async def login(
        self, email: object, password: object, *, peer: str, user_agent: str
    ) -> tuple[StoredUser, IssuedTokens]:
        """Log a user in.

        1. too many tries for this e-mail address, or from this address   → 429
        2. no such user, no password, or a wrong one                      → 401, and it takes as long
        3. the user is not active                                         → 401
        4. a hash of an older kind                                        → is replaced

        Raises:
            Unauthenticated: Cases 2, 3.
            Exhausted: Case 1.
            SessionsUnavailable: The session cannot be kept.
            StoreUnavailable: The database is down.
        """
        if not isinstance(email, str) or not isinstance(password, str) or not email or not password:
            raise Invalid("Missing required fields", details={"needed": ["email", "password"]})
        address = email.strip().lower()[:254]
        self._limit(self._logins_of_address, subject_of_address(peer), "logins from this address")  # 1
        self._limit(self._logins_of_email, address, "logins of this e-mail address")
        row = await self._row(users.c.email == address) if address.isprintable() else None
        checked = await self._passwords.check(password, row.password_hash if row is not None else None)
        if row is None or not checked.is_right:  # 2
            raise Unauthenticated("invalid credentials", code="invalid_credentials")
        user = _from_row(row)
        if not user.is_active:  # 3
            raise Unauthenticated("user account is inactive", code="user_inactive")
        if checked.new_hash is not None:  # 4
            await self._replace_hash(user.id, row.password_hash, checked.new_hash)
        tokens = await self._sessions.open(user.facts(), ip_address=peer, user_agent=user_agent)
        return user, tokens

    async def change_password(
        self, user_id: str, old: object, new: object, *, author: Author, session_id: str = ""
    ) -> None:
        """Set another password; all sessions end but the one that asks.

        Raises:
            Unauthenticated: The old password is wrong.
            Invalid: The new one is not allowed.
            Exhausted: Too many tries.
            StoreUnavailable: The database is down.
        """
        if not isinstance(old, str):
            raise Invalid("old_password: it must be a text.", param="old_password")
        wanted = self._passwords.check_form(new)
        self._limit(self._logins_of_email, user_id, "tries")
        row = await self._row(users.c.id == user_id)
        if row is None or not (await self._passwords.check(old, row.password_hash)).is_right:
            raise Unauthenticated("The old password is wrong.", code="invalid_credentials")
        await self.set_password(user_id, wanted, author=author, session_id=session_id)

    async def set_password(
        self, user_id: str, password: object, *, author: Author, session_id: str = ""
    ) -> None:
        """Set a password without the old one, as an administrator does; all sessions end but `session_id`.

        Raises:
            Invalid: The password is not allowed.
            NotFound: There is no such user.
            StoreUnavailable: The database is down.
        """
        hashed = await self._passwords.hash(self._passwords.check_form(password))
        values = {"password_hash": hashed}
        await self._update(user_id, values, author, "user.password", {})
        await self._sessions.end_all(user_id, but=session_id)

    # ---- read

    async def get(self, user_id: str) -> StoredUser:
        """Return a user.

        Raises:
            NotFound: There is none of this id.
            StoreUnavailable: The database is down.
        """
        row = await self._row(users.c.id == user_id) if is_id(user_id) else None
        if row is None:
            raise NotFound(f"There is no user {user_id[:64]!r}.", code="user_unknown")
        return _from_row(row)

    async def find_by_email(self, email: str) -> StoredUser:
        """Return the user with an e-mail address.

        Raises:
            NotFound: There is none.
            StoreUnavailable: The database is down.
        """
        address = email.strip().lower()
        row = await self._row(users.c.email == address) if address.isprintable() else None
        if row is None:
            raise NotFound(f"There is no user {address[:100]!r}.", code="user_unknown")
        return _from_row(row)

    async def search(self, part: str = "", *, after: str = "", limit: int = 100) -> list[StoredUser]:
        """Return users whose e-mail address or name has `part` in it, by id.

        Args:
            part: "" = all.
            after: The last id of the page before; "" = the first page.
            limit: 1 to 500.

        Raises:
            StoreUnavailable: The database is down.
        """
        after = after if is_id(after) else ""
        query = _select().where(users.c.id > after).order_by(users.c.id).limit(max(1, min(limit, MAX_LISTED)))
        wanted = printable(part.strip().lower(), MAX_EMAIL_CHARACTERS)
        if wanted:
            matches = [
                column.contains(wanted, autoescape=True)
                for column in (users.c.email, func.lower(users.c.name))
            ]
            query = query.where(or_(*matches))
        async with self._database.transaction(is_read_only=True) as transaction:
            return [_from_row(row) for row in await transaction.execute(query)]

    # ---- change

    async def rename(self, user_id: str, name: object, *, author: Author) -> StoredUser:
        """Set a user's name.

        Raises:
            Invalid: The name is not allowed.
            NotFound: There is no such user.
            StoreUnavailable: The database is down.
        """
        return await self.change(user_id, UserChange(name=read_name(name)), author=author)

    async def change(self, user_id: str, wanted: UserChange, *, author: Author) -> StoredUser:
        """Change a user as an administrator does: name, roles, limits. It holds on all replicas within 2 s.

        Raises:
            NotFound: There is no such user.
            StoreUnavailable: The database is down.
        """
        values: dict[str, Any] = {
            name: getattr(wanted, name)
            for name in ("name", "is_active", "is_admin", "plan")
            if getattr(wanted, name) is not None
        }
        after = {name: value for name, value in values.items() if name != "name"}
        if wanted.limits is not None:
            values["limits"] = limits_text(wanted.limits)
            after["limits"] = render_limits(wanted.limits)

        async def work(transaction: Transaction) -> None:
            rows = await transaction.execute(_select().where(users.c.id == user_id))
            before = _from_row(rows[0]).to_json() if rows else {}
            details = {"before": {name: before.get(name) for name in after}, "after": after}
            await self._update_in(transaction, user_id, values, author, "user.change", details)

        await self._database.run(work)
        await self._directory.apply("user", [user_id])
        if wanted.is_active is False:
            await self._sessions.end_all(user_id)
        return await self.get(user_id)

    async def delete(self, user_id: str, *, author: Author) -> None:
        """Delete a user: what tells who it was is removed, keys and sessions end; the ledger keeps the id.

        The wallet is closed: it gets no plan any more, and nothing can be spent of it.

        Raises:
            NotFound: There is no such user, or it was deleted before.
            Conflict: It is the only administrator who is active.
            StoreUnavailable: The database is down.
        """
        keys: list[str] = []

        async def check(transaction: Transaction) -> None:
            query = select(users.c.id).where(users.c.is_admin, users.c.is_active).order_by(users.c.id)
            admins = [row.id for row in await transaction.execute(query.with_for_update())]
            if admins == [user_id]:  # locked, so that of two the second one sees that the first is gone
                raise Conflict(
                    "This is the only administrator who is active, and a deleted user does not come back. "
                    "Make another user an administrator first.",
                    code="last_admin",
                )

        async def work(transaction: Transaction) -> None:
            await check(transaction)
            rows = await transaction.execute(select(api_keys.c.id).where(api_keys.c.user_id == user_id))
            keys[:] = [row.id for row in rows]
            await self._anonymise(transaction, user_id, keys)
            await self._changes.note(transaction, "user", [user_id])
            await self._changes.note(transaction, "key", keys)
            await self._audit(transaction, author, "user.delete", user_id, {"keys": len(keys)})

        if (await self.get(user_id)).email == email_of_deleted(user_id):
            raise NotFound(f"The user {user_id} was deleted before.", code="user_unknown")
        await self._database.run(check)
        await self._sessions.end_all(user_id)
        await self._database.run(work)
        await self._directory.apply("user", [user_id])
        await self._directory.apply("key", keys)

    async def _anonymise(self, transaction: Transaction, user_id: str, keys: list[str]) -> None:
        """Remove what tells who it was; what was spent keeps the ids, and the audit has nothing else."""
        now_ms = self._now_ms()
        values = {
            "email": email_of_deleted(user_id),
            "name": "",
            "password_hash": "",
            "is_active": False,
            "is_admin": False,
            "updated_at": now_ms,
        }
        done = await transaction.execute(update(users).where(users.c.id == user_id).values(**values))
        if not done.changed:
            raise NotFound(f"There is no user {user_id[:64]!r}.", code="user_unknown")
        await transaction.execute(
            update(api_keys).where(api_keys.c.user_id == user_id).values(is_active=False, name="")
        )
        await transaction.execute(
            update(wallets)
            .where(wallets.c.user_id == user_id)
            .values(state="closed", auto_renew=False, updated_at=now_ms)
        )
        await transaction.execute(
            update(sessions)
            .where(sessions.c.user_id == user_id)
            .values(ip_address="", user_agent="", revoked_at=func.coalesce(sessions.c.revoked_at, now_ms))
        )
        clients = [user_id, *keys]
        await transaction.execute(update(credits).where(credits.c.client_id.in_(clients)).values(ip=""))

    # ---- inside

    async def _make_wallet(self, transaction: Transaction, wallet_id: str, user_id: str, now_ms: int) -> None:
        row = {"id": wallet_id, "user_id": user_id, "created_at": now_ms, "updated_at": now_ms}
        await transaction.execute(insert(wallets), [row])

    async def _make_quota(self, transaction: Transaction, user_id: str, now_ms: int) -> None:
        quota = {
            "id": new_id(self._clock),
            "user_id": user_id,
            "max_requests": self._rules.max_requests,
            "max_gpu_seconds": self._rules.max_gpu_seconds,
            "reset_at": next_period_end_ms(1, now_ms),
            "created_at": now_ms,
            "updated_at": now_ms,
        }
        await transaction.execute(insert(usage_quotas), [quota])

    async def _replace_hash(self, user_id: str, old: str, new: str) -> None:
        """Store a newer hash of the same password, unless the password was changed meanwhile."""

        async def work(transaction: Transaction) -> None:
            await transaction.execute(
                update(users)
                .where(users.c.id == user_id, users.c.password_hash == old)
                .values(password_hash=new)
            )

        try:
            await self._database.run(work)
        except StoreUnavailable:
            log.warning("password_hash_kept", user=user_id)  # the next login tries again

    async def _update(
        self, user_id: str, values: dict[str, Any], author: Author, action: str, details: dict[str, Any]
    ) -> None:
        async def work(transaction: Transaction) -> None:
            await self._update_in(transaction, user_id, values, author, action, details)

        await self._database.run(work)
        await self._directory.apply("user", [user_id])

    async def _update_in(
        self,
        transaction: Transaction,
        user_id: str,
        values: dict[str, Any],
        author: Author,
        action: str,
        details: dict[str, Any],
    ) -> None:
        is_it = (users.c.id == user_id) & (users.c.email != email_of_deleted(user_id))
        done = await transaction.execute(
            update(users).where(is_it).values(**values, updated_at=self._now_ms())
        )
        if not done.changed:
            raise NotFound(
                f"There is no user {user_id[:64]!r}, or it was deleted, which cannot be undone.",
                code="user_unknown",
            )
        await self._audit(transaction, author, action, user_id, details)
        await self._changes.note(transaction, "user", [user_id])

    async def _audit(
        self, transaction: Transaction, author: Author, action: str, user_id: str, details: dict[str, Any]
    ) -> None:
        await write_audit(
            transaction, self._clock, author, action, subject=("user", user_id), details=details
        )

    async def _row(self, condition: Any) -> Any:
        async with self._database.transaction(is_read_only=True) as transaction:
            rows = await transaction.execute(_select().where(condition))
        return rows[0] if rows else None

    def _limit(self, limit: AttemptLimit, subject: str, what: str) -> None:
        wait_s = limit.take(subject, self._clock.now_s())
        if wait_s:
            raise Exhausted(
                f"Too many {what}. Try again in {ceil(wait_s)} s.",
                code="too_many_tries",
                retry_after_s=wait_s,
            )

    def _now_ms(self) -> int:
        return round(self._clock.now_s() * 1000)


def _select() -> Any:
    return select(users, wallets.c.id.label("wallet_id")).select_from(
        users.outerjoin(wallets, wallets.c.user_id == users.c.id)
    )


def _from_row(row: Any) -> StoredUser:
    return StoredUser(
        id=row.id,
        email=row.email,
        name=row.name,
        is_admin=bool(row.is_admin),
        is_active=bool(row.is_active),
        plan=row.plan,
        limits=stored_limits(row.limits),
        wallet_id=row.wallet_id or "",
        created_at_ms=row.created_at,
        updated_at_ms=row.updated_at,
    )
