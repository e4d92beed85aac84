"""Where sessions are kept: in the database, in Redis, or in both (SESSION_MODE).

| mode     | write                                  | read                                            |
| sql      | database                               | database                                        |
| redis    | Redis                                  | Redis                                           |
| balanced | database first, then Redis if it can   | Redis; where it has nothing or fails, database  |

In balanced mode the database is right: a rotation compares and sets there, so an entry of Redis that is out
of date does no harm.
"""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import delete, insert, select, update

from appliance.accounts.changes import ChangeFeed
from appliance.accounts.refresh_rules import SessionRow
from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import Unavailable
from appliance.base.logs import get_logger
from appliance.storage.database import Database, Rows, StoreUnavailable, Transaction
from appliance.storage.events import EventLog
from appliance.storage.redis_store import Command, RedisStore, RedisUnavailable
from appliance.storage.schema import sessions

log = get_logger("accounts")
ResultT = TypeVar("ResultT")
MAX_LISTED: Final = 200
ENDED_KEY: Final = "appliance:sessions_ended"

# KEYS: the session, the list of its user.
# ARGV: the present token's hash, the new one's, now and the new end in ms, the time to live in s.
ROTATE: Final = """
local raw = redis.call('GET', KEYS[1])
if not raw then return 0 end
local row = cjson.decode(raw)
if row.token_hash ~= ARGV[1] then return 0 end
row.previous_hash = row.token_hash
row.token_hash = ARGV[2]
row.generation = row.generation + 1
row.rotated_at = tonumber(ARGV[3])
row.expires_at = tonumber(ARGV[4])
redis.call('SET', KEYS[1], cjson.encode(row), 'EX', ARGV[5])
redis.call('EXPIRE', KEYS[2], ARGV[5])
return 1
"""


class SessionsUnavailable(Unavailable):
    """Where sessions are kept cannot be reached."""

    default_code = "sessions_unavailable"

    def __init__(self) -> None:
        super().__init__(
            "Sessions cannot be read or written at present. API keys and access tokens go on working. "
            "Try again shortly.",
            retry_after_s=1,
        )


class SessionStore(Protocol):
    """Where sessions are kept. All methods raise SessionsUnavailable where that cannot be reached."""

    async def create(self, row: SessionRow) -> None:
        """Keep a new session."""

    async def read(self, session_id: str) -> SessionRow | None:
        """Return a session as it is known; it may be out of date."""

    async def read_truth(self, session_id: str) -> SessionRow | None:
        """Return a session as it is."""

    async def rotate(self, row: SessionRow, *, new_hash: str, now_ms: int, expires_at_ms: int) -> bool:
        """Replace the refresh token; False = it is another one meanwhile, or the session has ended."""

    async def end(self, rows: Sequence[SessionRow], now_ms: int, *, reason: str = "ended") -> None:
        """End sessions.

        Args:
            rows: The sessions.
            now_ms: Epoch milliseconds.
            reason: Why, as users are told: ended, or reuse.
        """

    async def of_user(self, user_id: str, now_ms: int) -> list[SessionRow]:
        """Return the sessions of a user that have not ended, the newest first."""

    async def prune(self, before_ms: int) -> None:
        """Delete sessions that ended long ago."""


# ---- in the database


class SqlSessions:
    """Sessions in the database.

    Args:
        database: Where they are.
        changes: Tells the replicas which ended.
        events: Tell users which began and ended; None = they are not told.
    """

    def __init__(self, database: Database, changes: ChangeFeed, events: EventLog | None = None) -> None:
        self._database = database
        self._changes = changes
        self._events = events

    async def create(self, row: SessionRow) -> None:
        """Keep a new session."""
        values = {
            "id": row.id,
            "user_id": row.user_id,
            "token_hash": bytes.fromhex(row.token_hash),
            "generation": row.generation,
            "expires_at": row.expires_at_ms,
            "ip_address": row.ip_address,
            "user_agent": row.user_agent,
            "created_at": row.created_at_ms,
        }

        async def work(transaction: Transaction) -> None:
            await transaction.execute(insert(sessions), [values])
            await self._tell(transaction, row, "login")

        await self._run(work)

    async def read(self, session_id: str) -> SessionRow | None:
        """Return a session."""
        rows = await self._rows(select(sessions).where(sessions.c.id == session_id))
        return _from_sql(rows[0]) if rows else None

    async def read_truth(self, session_id: str) -> SessionRow | None:
        """Return a session."""
        return await self.read(session_id)

    async def rotate(self, row: SessionRow, *, new_hash: str, now_ms: int, expires_at_ms: int) -> bool:
        """Replace the refresh token, by one statement."""
        old = bytes.fromhex(row.token_hash)
        statement = (
            update(sessions)
            .where(
                sessions.c.id == row.id,
                sessions.c.token_hash == old,
                sessions.c.revoked_at.is_(None),
                sessions.c.expires_at > now_ms,
            )
            .values(
                token_hash=bytes.fromhex(new_hash),
                generation=sessions.c.generation + 1,
                rotated_at=now_ms,
                previous_hash=old,
                expires_at=expires_at_ms,
            )
        )
        return (await self._change(statement)).changed == 1

    async def end(self, rows: Sequence[SessionRow], now_ms: int, *, reason: str = "ended") -> None:
        """End sessions, and note it among the changes; users are told of each once."""
        ids = [row.id for row in rows]

        async def work(transaction: Transaction) -> None:
            done = await transaction.execute(
                update(sessions)
                .where(sessions.c.id.in_(ids), sessions.c.revoked_at.is_(None))
                .values(revoked_at=now_ms)
                .returning(sessions.c.id)
            )
            await self._changes.note(transaction, "session", ids)
            ended = {row.id for row in done}
            for row in rows:
                if row.id in ended:
                    await self._tell(transaction, row, reason)

        if ids:
            await self._run(work)

    async def of_user(self, user_id: str, now_ms: int) -> list[SessionRow]:
        """Return the sessions of a user."""
        query = (
            select(sessions)
            .where(
                sessions.c.user_id == user_id,
                sessions.c.revoked_at.is_(None),
                sessions.c.expires_at > now_ms,
            )
            .order_by(sessions.c.created_at.desc())
            .limit(MAX_LISTED)
        )
        return [_from_sql(row) for row in await self._rows(query)]

    async def prune(self, before_ms: int) -> None:
        """Delete sessions that ended before."""
        await self._change(
            delete(sessions).where((sessions.c.expires_at < before_ms) | (sessions.c.revoked_at < before_ms))
        )

    async def _rows(self, query: Any) -> Rows:
        try:
            async with self._database.transaction(is_read_only=True) as transaction:
                return await transaction.execute(query)
        except StoreUnavailable as error:
            raise SessionsUnavailable from error

    async def _change(self, statement: Any) -> Rows:
        async def work(transaction: Transaction) -> Rows:
            return await transaction.execute(statement)

        return await self._run(work)

    async def _run(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        try:
            return await self._database.run(work)
        except StoreUnavailable as error:
            raise SessionsUnavailable from error

    async def _tell(self, transaction: Transaction, row: SessionRow, kind: str) -> None:
        """Write the event of a session: login, ended, or reuse of a refresh token, which ended it."""
        if self._events is None:
            return
        data = {
            "kind": kind,
            "session_id": row.id,
            "ip_address": row.ip_address,
            "user_agent": row.user_agent,
        }
        await self._events.append(transaction, row.user_id, "sessions", data)


def _from_sql(row: Any) -> SessionRow:
    return SessionRow(
        id=row.id,
        user_id=row.user_id,
        token_hash=bytes(row.token_hash).hex(),
        expires_at_ms=row.expires_at,
        created_at_ms=row.created_at,
        previous_hash=bytes(row.previous_hash).hex() if row.previous_hash else "",
        generation=row.generation,
        rotated_at_ms=row.rotated_at or 0,
        revoked_at_ms=row.revoked_at,
        ip_address=row.ip_address,
        user_agent=row.user_agent,
    )


# ---- in Redis


class RedisSessions:
    """Sessions in Redis: `session:<SHA-256 of the id>` holds JSON, and expires with the session.

    Args:
        token_lifetime_s: JWT_EXPIRATION: for so long other replicas must know that a session was ended.
    """

    def __init__(self, redis: RedisStore, *, clock: Clock, token_lifetime_s: float) -> None:
        self._redis = redis
        self._clock = clock
        self._token_lifetime_s = token_lifetime_s

    async def create(self, row: SessionRow) -> None:
        """Keep a new session, and its id in the list of its user."""
        name, ttl_s = _user_key(row.user_id), self._ttl_s(row.expires_at_ms)
        await self._send(self._put(row), ("SADD", name, row.id), ("EXPIRE", name, ttl_s))

    async def put(self, row: SessionRow) -> None:
        """Write a session as it is."""
        await self._send(self._put(row))

    async def read(self, session_id: str) -> SessionRow | None:
        """Return a session."""
        return _from_json((await self._send(("GET", _session_key(session_id))))[0])

    async def read_truth(self, session_id: str) -> SessionRow | None:
        """Return a session."""
        return await self.read(session_id)

    async def rotate(self, row: SessionRow, *, new_hash: str, now_ms: int, expires_at_ms: int) -> bool:
        """Replace the refresh token, by one script."""
        ttl_s = self._ttl_s(expires_at_ms)
        arguments = (row.token_hash, new_hash, now_ms, expires_at_ms, ttl_s)
        keys = (_session_key(row.id), _user_key(row.user_id))
        try:
            return bool(await self._redis.run_script(ROTATE, keys, arguments) == 1)
        except RedisUnavailable as error:
            raise SessionsUnavailable from error

    async def end(self, rows: Sequence[SessionRow], now_ms: int, *, reason: str = "ended") -> None:
        """End sessions, and keep that for the other replicas."""
        commands: list[Command] = []
        for row in rows:
            commands += [
                ("DEL", _session_key(row.id)),
                ("SREM", _user_key(row.user_id), row.id),
                ("ZADD", ENDED_KEY, now_ms, row.id),
            ]
        over_ms = round(now_ms - self._token_lifetime_s * 1000)
        await self._send(*commands, ("ZREMRANGEBYSCORE", ENDED_KEY, 0, over_ms))

    async def forget(self, session_id: str) -> None:
        """Delete a session that was ended elsewhere."""
        await self._send(("DEL", _session_key(session_id)))

    async def ended_since(self, since_ms: int) -> list[str]:
        """Return the sessions that were ended since."""
        [found] = await self._send(("ZRANGEBYSCORE", ENDED_KEY, since_ms, "+inf"))
        return [one.decode() for one in found]

    async def of_user(self, user_id: str, now_ms: int) -> list[SessionRow]:
        """Return the sessions of a user; ids of those that have expired are removed."""
        [members] = await self._send(("SMEMBERS", _user_key(user_id)))
        ids = [one.decode() for one in members]
        if not ids:
            return []
        [found] = await self._send(("MGET", *(_session_key(one) for one in ids)))
        gone = [one for one, raw in zip(ids, found, strict=True) if raw is None]
        if gone:
            await self._send(("SREM", _user_key(user_id), *gone))
        rows = [row for row in map(_from_json, found) if row is not None]
        return sorted(rows, key=lambda row: -row.created_at_ms)[:MAX_LISTED]

    async def prune(self, before_ms: int) -> None:
        """Do nothing: Redis deletes what has expired."""

    def _put(self, row: SessionRow) -> Command:
        return ("SET", _session_key(row.id), _to_json(row), "EX", self._ttl_s(row.expires_at_ms))

    def _ttl_s(self, expires_at_ms: int) -> int:
        return max(1, round(expires_at_ms / 1000 - self._clock.now_s()))

    async def _send(self, *commands: Command) -> list[Any]:
        try:
            return await self._redis.send(commands)
        except RedisUnavailable as error:
            raise SessionsUnavailable from error


def _session_key(session_id: str) -> str:
    return "session:" + hashlib.sha256(session_id.encode()).hexdigest()


def _user_key(user_id: str) -> str:
    return f"sessions_of:{user_id}"


def _to_json(row: SessionRow) -> bytes:
    """Render a session: the original's fields, and ours; times in ms."""
    return jsons.dumps(
        {
            "sid": row.id,
            "user_id": row.user_id,
            "token_hash": row.token_hash,
            "previous_hash": row.previous_hash,
            "generation": row.generation,
            "rotated_at": row.rotated_at_ms,
            "expires_at": row.expires_at_ms,
            "created_at": row.created_at_ms,
            "ip_address": row.ip_address,
            "user_agent": row.user_agent,
        }
    )


def _from_json(raw: bytes | None) -> SessionRow | None:
    """Read a session; None = there is none, or what is there is not ours."""
    if raw is None:
        return None
    try:
        found = jsons.loads(raw)
        return SessionRow(
            id=str(found["sid"]),
            user_id=str(found["user_id"]),
            token_hash=str(found["token_hash"]),
            expires_at_ms=int(found["expires_at"]),
            created_at_ms=int(found["created_at"]),
            previous_hash=str(found["previous_hash"]),
            generation=int(found["generation"]),
            rotated_at_ms=int(found["rotated_at"]),
            ip_address=str(found["ip_address"]),
            user_agent=str(found["user_agent"]),
        )
    except (jsons.InvalidJson, KeyError, TypeError, ValueError):
        log.error("session_unread", note="an entry of Redis is no session; it is ignored")
        return None


# ---- in both


class BalancedSessions:
    """Sessions in the database, which is right, and in Redis, which is quick."""

    def __init__(self, sql: SqlSessions, redis: RedisSessions) -> None:
        self._sql = sql
        self._redis = redis

    async def create(self, row: SessionRow) -> None:
        """Keep a new session."""
        await self._sql.create(row)
        await self._put(row)

    async def read(self, session_id: str) -> SessionRow | None:
        """Return a session from Redis; where it has none or fails, from the database."""
        try:
            row = await self._redis.read(session_id)
        except SessionsUnavailable:  # Redis says so in the log
            row = None
        return row if row is not None else await self.read_truth(session_id)

    async def read_truth(self, session_id: str) -> SessionRow | None:
        """Return a session from the database; Redis then has it, too."""
        row = await self._sql.read(session_id)
        if row is not None and row.revoked_at_ms is None:
            await self._put(row)
        else:
            await self._forget(session_id)
        return row

    async def rotate(self, row: SessionRow, *, new_hash: str, now_ms: int, expires_at_ms: int) -> bool:
        """Replace the refresh token in the database, then in Redis."""
        done = await self._sql.rotate(row, new_hash=new_hash, now_ms=now_ms, expires_at_ms=expires_at_ms)
        if not done:
            return False
        changed = SessionRow(
            id=row.id,
            user_id=row.user_id,
            token_hash=new_hash,
            expires_at_ms=expires_at_ms,
            created_at_ms=row.created_at_ms,
            previous_hash=row.token_hash,
            generation=row.generation + 1,
            rotated_at_ms=now_ms,
            ip_address=row.ip_address,
            user_agent=row.user_agent,
        )
        await self._put(changed)
        return True

    async def end(self, rows: Sequence[SessionRow], now_ms: int, *, reason: str = "ended") -> None:
        """End sessions in the database, then in Redis."""
        await self._sql.end(rows, now_ms, reason=reason)
        for row in rows:
            await self._forget(row.id)

    async def of_user(self, user_id: str, now_ms: int) -> list[SessionRow]:
        """Return the sessions of a user, from the database."""
        return await self._sql.of_user(user_id, now_ms)

    async def prune(self, before_ms: int) -> None:
        """Delete sessions that ended long ago."""
        await self._sql.prune(before_ms)

    async def _put(self, row: SessionRow) -> None:
        try:
            await self._redis.put(row)
        except SessionsUnavailable:
            pass  # the database is right

    async def _forget(self, session_id: str) -> None:
        try:
            await self._redis.forget(session_id)
        except SessionsUnavailable:
            pass  # the database is right
