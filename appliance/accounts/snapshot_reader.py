"""Reads users, keys and ended sessions from the database into the snapshot."""

import asyncio
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Select, func, select

from appliance.accounts.actor import NO_LIMITS, KeyFacts, Limits, UserFacts, read_limits
from appliance.accounts.snapshot import KeyRow, Snapshot
from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import Invalid
from appliance.base.logs import get_logger
from appliance.storage.database import Database
from appliance.storage.schema import api_keys, sessions, users, wallets

log = get_logger("accounts")
PAGE: Final = 500  # rows of one statement: reading them blocks the process for some milliseconds
NAMED: Final = 500  # ids in one statement


class SnapshotReader:
    """Fills a snapshot.

    Args:
        token_lifetime_s: JWT_EXPIRATION: for so long the access tokens of an ended session could be valid.
        static_user: STATIC_KEYS_USER, an e-mail address; "" = none.
        max_keys: KEY_SNAPSHOT_MAX.
    """

    def __init__(
        self,
        database: Database,
        snapshot: Snapshot,
        *,
        clock: Clock,
        token_lifetime_s: float,
        static_user: str = "",
        max_keys: int = 200_000,
    ) -> None:
        self._database = database
        self._snapshot = snapshot
        self._clock = clock
        self._token_lifetime_s = token_lifetime_s
        self._static_user = static_user.strip().lower()
        self._max_keys = max_keys
        self._is_by_id = True
        self._turn = asyncio.Lock()  # what was read is noted before the next is read: never an older row last

    async def fill(self) -> None:
        """Read all valid keys with their users, and the sessions that were ended; those used last come first.

        Raises:
            StoreUnavailable: What was read so far is in the snapshot.
        """
        began_s = self._clock.now_s()
        old_users = set(self._snapshot.users)
        seen: set[str] = set()
        is_last = False
        query = await self._first_page()
        while not is_last and len(seen) < self._max_keys:
            async with self._turn:
                rows = await self._rows(query)
                self._put_keys(rows)
            seen.update(row.id for row in rows)
            old_users.difference_update(row.user_id for row in rows)
            is_last = len(rows) < PAGE
            query = self._next_page(query, rows, len(seen))
        for known in list(self._snapshot.keys.values()):
            if known.actor.key is not None and known.actor.key.id not in seen:
                self._snapshot.drop_key(known.actor.key.id)
        await self.read_users(old_users)
        await self._read_all_ended()
        await self._read_static_user()
        self._snapshot.forget_unknown()
        self._snapshot.confirm(began_s)

    async def _first_page(self) -> Select[Any]:
        """Return the query of the first keys: by id, or by their last use where not all fit into memory."""
        count = select(func.count().label("keys")).select_from(api_keys).where(api_keys.c.is_active)
        total = (await self._rows(count))[0].keys
        self._is_by_id = total <= self._max_keys
        last_use = func.coalesce(api_keys.c.last_used_at, 0).desc()
        order = (api_keys.c.id,) if self._is_by_id else (last_use, api_keys.c.id)
        return _keys().where(api_keys.c.is_active).order_by(*order).limit(PAGE)

    def _next_page(self, query: Select[Any], rows: Sequence[Any], read: int) -> Select[Any]:
        if not self._is_by_id or not rows:
            return query.offset(read).limit(max(1, min(PAGE, self._max_keys - read)))
        after = rows[-1].id
        return _keys().where(api_keys.c.is_active, api_keys.c.id > after).order_by(api_keys.c.id).limit(PAGE)

    async def read_keys(self, ids: Iterable[str]) -> None:
        """Read keys that were changed; those that are no longer valid are dropped."""
        for some in _pages(ids):
            async with self._turn:
                rows = await self._rows(_keys().where(api_keys.c.id.in_(some)))
                active = [row for row in rows if row.is_active]
                self._put_keys(active)
                for key_id in set(some) - {row.id for row in active}:
                    self._snapshot.drop_key(key_id)

    async def find_keys(self, digests: Sequence[bytes]) -> None:
        """Look keys up by their digests; those that the database does not know are noted as unknown."""
        query = _keys().where(api_keys.c.key_hash.in_(digests), api_keys.c.is_active)
        async with self._turn:
            rows = await self._rows(query)
            self._put_keys(rows)
            for digest in set(digests) - {bytes(row.key_hash) for row in rows}:
                self._snapshot.note_unknown(digest)

    async def read_users(self, ids: Iterable[str], *, is_known_only: bool = True) -> list[str]:
        """Read users that were changed.

        Args:
            ids: Of users.
            is_known_only: Skip those that are not in memory.

        Returns:
            The ids that the database does not know.
        """
        missing = []
        wanted = [one for one in ids if not is_known_only or one in self._snapshot.users]
        for some in _pages(wanted):
            async with self._turn:
                rows = await self._rows(_users().where(users.c.id.in_(some)))
                for row in rows:
                    self._snapshot.put_user(_user_of(row))
                for user_id in set(some) - {row.user_id for row in rows}:
                    self._snapshot.drop_user(user_id)
                    missing.append(user_id)
        if self._static_user:
            await self._read_static_user()
        return missing

    async def read_ended(self, ids: Iterable[str]) -> list[str]:
        """Read which of some sessions were ended; return those."""
        found = []
        for some in _pages(ids):
            query = select(sessions.c.id).where(sessions.c.id.in_(some), sessions.c.revoked_at.is_not(None))
            found += [row.id for row in await self._rows(query)]
        for session_id in found:
            self._snapshot.end_session(session_id, self._clock.now_s() + self._token_lifetime_s)
        return found

    async def _read_all_ended(self) -> None:
        after_ms = round((self._clock.now_s() - self._token_lifetime_s) * 1000)
        query = select(sessions.c.id, sessions.c.revoked_at).where(sessions.c.revoked_at > after_ms)
        for row in await self._rows(query):
            self._snapshot.end_session(row.id, row.revoked_at / 1000 + self._token_lifetime_s)

    async def _read_static_user(self) -> None:
        if not self._static_user:
            return
        async with self._turn:
            rows = await self._rows(_users().where(users.c.email == self._static_user))
            if not rows:
                if self._snapshot.static_user is not None or self._snapshot.version == 0:
                    log.warning("static_keys_user_unknown", email=self._static_user)
                self._snapshot.static_user = None
                return
            user = _user_of(rows[0])
            self._snapshot.put_user(user)
            self._snapshot.static_user = self._snapshot.users[user.id]

    def _put_keys(self, rows: Sequence[Any]) -> None:
        for row in rows:
            user = _user_of(row)
            self._snapshot.put_user(user)
            self._snapshot.put_key(KeyRow(bytes(row.key_hash), user.id, _key_of(row)))

    async def _rows(self, query: Select[Any]) -> Sequence[Any]:
        async with self._database.transaction(is_read_only=True) as transaction:
            return await transaction.execute(query)


def _users() -> Select[Any]:
    return select(
        users.c.id.label("user_id"),
        users.c.email,
        users.c.is_admin,
        users.c.is_active.label("user_is_active"),
        users.c.plan,
        users.c.limits.label("user_limits"),
        wallets.c.id.label("wallet_id"),
    ).select_from(users.outerjoin(wallets, wallets.c.user_id == users.c.id))


def _keys() -> Select[Any]:
    return (
        _users()
        .join(api_keys, api_keys.c.user_id == users.c.id)
        .add_columns(
            api_keys.c.id,
            api_keys.c.key_hash,
            api_keys.c.prefix,
            api_keys.c.scopes,
            api_keys.c.models,
            api_keys.c.limits,
            api_keys.c.spend_cap_musd,
            api_keys.c.stay_local,
            api_keys.c.is_active,
            api_keys.c.expires_at,
        )
    )


def _user_of(row: Any) -> UserFacts:
    return UserFacts(
        row.user_id,
        row.email,
        bool(row.is_admin),
        bool(row.user_is_active),
        row.wallet_id or "",
        row.plan,
        stored_limits(row.user_limits),
    )


def _key_of(row: Any) -> KeyFacts:
    limits = stored_limits(row.limits, cap_musd=row.spend_cap_musd)
    expires_at_s = None if row.expires_at is None else row.expires_at / 1000
    models = _names_of(row.models) if row.models is not None else ()
    return KeyFacts(
        row.id, row.prefix, _scopes_of(row.scopes), models, limits, bool(row.stay_local), expires_at_s
    )


@lru_cache(maxsize=256)
def _scopes_of(text: str) -> frozenset[str]:
    """Read scopes as they are stored; keys with the same ones share them."""
    return frozenset(jsons.loads(text))


@lru_cache(maxsize=256)
def _names_of(text: str) -> tuple[str, ...]:
    """Read names of models as they are stored; keys with the same ones share them."""
    return tuple(jsons.loads(text))


def stored_limits(text: str, *, cap_musd: int | None = None) -> Limits:
    """Read limits as they are stored, JSON; what cannot be read is no limit, and is said in the log.

    Args:
        cap_musd: The cap per month where it is stored apart, in micro-dollars.
    """
    try:
        limits = read_limits(jsons.loads(text)) if text not in {"", "{}"} else NO_LIMITS
    except (Invalid, jsons.InvalidJson) as error:
        log.error("limits_unread", error=str(error))
        limits = NO_LIMITS
    if cap_musd is None:
        return limits
    return Limits(limits.rpm, limits.rpd, limits.tpm, limits.tpd, limits.concurrency, cap_musd)


def _pages(ids: Iterable[str]) -> list[list[str]]:
    every = list(dict.fromkeys(ids))
    return [every[start : start + NAMED] for start in range(0, len(every), NAMED)]
