"""API keys of users: made, listed, rotated, revoked. A key's text is returned once and stored nowhere."""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import func, insert, select, update

from appliance.accounts.actor import (
    DEFAULT_SCOPES,
    NO_LIMITS,
    SCOPES,
    Limits,
    UserFacts,
    render_limits,
)
from appliance.accounts.api_keys import NewKey, expiry_after_rotation_ms, make_key
from appliance.accounts.audit_log import Author, write_audit
from appliance.accounts.changes import ChangeFeed
from appliance.accounts.directory import Directory
from appliance.accounts.snapshot_reader import stored_limits
from appliance.base import jsons
from appliance.base.clock import Clock, format_rfc3339_ms
from appliance.base.errors import Conflict, Forbidden, NotFound
from appliance.base.ids import is_id, new_id
from appliance.storage.database import Database, Transaction
from appliance.storage.schema import api_keys

MAX_KEYS: Final = 1000  # of one user
SHOWN_ID_CHARACTERS: Final = 64


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """What a new key is to be; each part has been read by `api_keys` and `actor`.

    Attributes:
        expires_at_ms: Milliseconds since 1970; None = never.
    """

    name: str
    scopes: frozenset[str] = DEFAULT_SCOPES
    models: tuple[str, ...] = ()
    limits: Limits = NO_LIMITS
    stay_local: bool = False
    expires_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as its user sees it; times in milliseconds since 1970."""

    id: str
    user_id: str
    prefix: str
    name: str
    scopes: frozenset[str]
    models: tuple[str, ...]
    limits: Limits
    stay_local: bool
    is_active: bool
    created_at_ms: int
    last_used_at_ms: int | None
    expires_at_ms: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the key as JSON has it."""
        return {
            "id": self.id,
            "prefix": self.prefix,
            "name": self.name,
            "scopes": [scope for scope in SCOPES if scope in self.scopes],
            "models": list(self.models),
            "limits": render_limits(self.limits),
            "stay_local": self.stay_local,
            "last_used_at": render_ms(self.last_used_at_ms),
            "expires_at": render_ms(self.expires_at_ms),
            "is_active": self.is_active,
            "created_at": render_ms(self.created_at_ms),
        }


class IssuedKeys:
    """The API keys of all users, in the database.

    Args:
        random_bytes: API_KEY_LENGTH.
    """

    def __init__(
        self,
        database: Database,
        changes: ChangeFeed,
        directory: Directory,
        *,
        clock: Clock,
        random_bytes: int = 32,
    ) -> None:
        self._database = database
        self._changes = changes
        self._directory = directory
        self._clock = clock
        self._random_bytes = random_bytes

    async def create(
        self, user: UserFacts, wanted: KeyRequest, *, author: Author
    ) -> tuple[NewKey, StoredKey]:
        """Make a key for a user.

        Returns:
            (the key's text, to be shown once; the key as it is stored)

        Raises:
            Forbidden: The scope admin, for a user who is no administrator.
            Conflict: The user has too many keys.
            StoreUnavailable: The database is down.
        """
        if "admin" in wanted.scopes and not user.is_admin:
            raise Forbidden(
                "Only administrators can have keys with the scope admin.", code="scope_not_allowed"
            )
        key = make_key(self._random_bytes)
        stored = self._stored(user.id, key, wanted)

        async def work(transaction: Transaction) -> None:
            query = select(func.count().label("keys")).where(
                api_keys.c.user_id == user.id, api_keys.c.is_active
            )
            rows = await transaction.execute(query)
            if rows[0].keys >= MAX_KEYS:
                raise Conflict(
                    f"This user has {rows[0].keys} API keys, the most there can be. Revoke some.",
                    code="too_many_keys",
                )
            await self._insert(transaction, key, stored)
            await write_audit(
                transaction,
                self._clock,
                author,
                "key.create",
                subject=("key", stored.id),
                details={"user": user.id, "prefix": key.prefix},
            )

        await self._database.run(work)
        await self._directory.apply("key", [stored.id])
        return key, stored

    async def of_user(self, user_id: str) -> list[StoredKey]:
        """Return the keys of a user, the newest first; revoked ones, too.

        Raises:
            StoreUnavailable: The database is down.
        """
        query = (
            select(api_keys)
            .where(api_keys.c.user_id == user_id)
            .order_by(api_keys.c.is_active.desc(), api_keys.c.created_at.desc(), api_keys.c.id.desc())
            .limit(MAX_KEYS)
        )
        async with self._database.transaction(is_read_only=True) as transaction:
            return [_from_row(row) for row in await transaction.execute(query)]

    async def get(self, user_id: str, key_id: str) -> StoredKey:
        """Return one key of a user.

        Raises:
            NotFound: This user has no such key.
            StoreUnavailable: The database is down.
        """
        async with self._database.transaction(is_read_only=True) as transaction:
            return await self._get(transaction, user_id, key_id)

    async def revoke(self, user_id: str, key_id: str, *, author: Author) -> StoredKey:
        """Revoke a key, on all replicas; revoking it again does nothing.

        Raises:
            NotFound: This user has no such key.
            StoreUnavailable: The database is down.
        """

        async def work(transaction: Transaction) -> StoredKey:
            key = await self._get(transaction, user_id, key_id)
            if key.is_active:
                await self._change(transaction, key_id, {"is_active": False})
                await write_audit(
                    transaction,
                    self._clock,
                    author,
                    "key.revoke",
                    subject=("key", key_id),
                    details={"user": user_id, "prefix": key.prefix},
                )
            return key

        key = await self._database.run(work)
        await self._directory.apply("key", [key_id])
        return key

    async def rotate(
        self, user: UserFacts, key_id: str, *, grace_s: float, author: Author
    ) -> tuple[NewKey, StoredKey]:
        """Replace a key by a new one of the same kind; the old one works for `grace_s` seconds more.

        Args:
            grace_s: 0 to 2592000; 0 = the old key is revoked at once.

        Raises:
            NotFound: This user has no such key.
            Conflict: It was revoked, or has expired.
            StoreUnavailable: The database is down.
        """
        now_s = self._clock.now_s()
        new = make_key(self._random_bytes)

        async def work(transaction: Transaction) -> StoredKey:
            old = await self._get(transaction, user.id, key_id)
            has_expired = old.expires_at_ms is not None and old.expires_at_ms <= now_s * 1000
            if not old.is_active or has_expired:
                raise Conflict(
                    f"The key {old.prefix} was revoked or has expired. Make a new one.", code="key_not_active"
                )
            wanted = KeyRequest(
                old.name, old.scopes, old.models, old.limits, old.stay_local, old.expires_at_ms
            )
            stored = self._stored(user.id, new, wanted)
            await self._insert(transaction, new, stored)
            ends_ms = expiry_after_rotation_ms(old.expires_at_ms, now_s, grace_s)
            values: dict[str, Any] = {"expires_at": ends_ms} if grace_s else {"is_active": False}
            await self._change(transaction, key_id, values)
            await write_audit(
                transaction,
                self._clock,
                author,
                "key.rotate",
                subject=("key", key_id),
                details={"user": user.id, "new": stored.id, "grace_s": grace_s},
            )
            return stored

        stored = await self._database.run(work)
        await self._directory.apply("key", [key_id, stored.id])
        return new, stored

    # ---- inside

    def _stored(self, user_id: str, key: NewKey, wanted: KeyRequest) -> StoredKey:
        return StoredKey(
            id=new_id(self._clock),
            user_id=user_id,
            prefix=key.prefix,
            name=wanted.name,
            scopes=wanted.scopes,
            models=wanted.models,
            limits=wanted.limits,
            stay_local=wanted.stay_local,
            is_active=True,
            created_at_ms=round(self._clock.now_s() * 1000),
            last_used_at_ms=None,
            expires_at_ms=wanted.expires_at_ms,
        )

    async def _insert(self, transaction: Transaction, key: NewKey, stored: StoredKey) -> None:
        row = {
            "id": stored.id,
            "user_id": stored.user_id,
            "key_hash": key.digest,
            "prefix": stored.prefix,
            "name": stored.name,
            "scopes": jsons.dumps_text(sorted(stored.scopes)),
            "models": jsons.dumps_text(stored.models) if stored.models else None,
            "limits": limits_text(stored.limits),
            "spend_cap_musd": stored.limits.monthly_cap_musd,
            "stay_local": stored.stay_local,
            "is_active": True,
            "expires_at": stored.expires_at_ms,
            "created_at": stored.created_at_ms,
        }
        await transaction.execute(insert(api_keys), [row])
        await self._changes.note(transaction, "key", [stored.id])

    async def _change(self, transaction: Transaction, key_id: str, values: dict[str, Any]) -> None:
        await transaction.execute(update(api_keys).where(api_keys.c.id == key_id).values(**values))
        await self._changes.note(transaction, "key", [key_id])

    async def _get(self, transaction: Transaction, user_id: str, key_id: str) -> StoredKey:
        query = select(api_keys).where(api_keys.c.id == key_id, api_keys.c.user_id == user_id)
        rows = await transaction.execute(query) if is_id(key_id) else []
        if not rows:
            shown = key_id[:SHOWN_ID_CHARACTERS]
            raise NotFound(f"There is no API key {shown!r} of this user.", code="key_unknown")
        return _from_row(rows[0])


def limits_text(limits: Limits) -> str:
    """Return limits as they are stored: JSON without what is not set; a cap per month stands apart."""
    found = {name: value for name, value in render_limits(limits).items() if value is not None}
    found.pop("monthly_cap", None)
    return jsons.dumps_text(found)


def _from_row(row: Any) -> StoredKey:
    return StoredKey(
        id=row.id,
        user_id=row.user_id,
        prefix=row.prefix,
        name=row.name,
        scopes=frozenset(jsons.loads(row.scopes)),
        models=tuple(jsons.loads(row.models)) if row.models is not None else (),
        limits=stored_limits(row.limits, cap_musd=row.spend_cap_musd),
        stay_local=bool(row.stay_local),
        is_active=bool(row.is_active),
        created_at_ms=row.created_at,
        last_used_at_ms=row.last_used_at,
        expires_at_ms=row.expires_at,
    )


def render_ms(at_ms: int | None) -> str | None:
    """Render a time in milliseconds since 1970 as RFC 3339; None stays None."""
    return None if at_ms is None else format_rfc3339_ms(at_ms)
