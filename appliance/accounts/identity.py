"""Builds the parts that know who calls, joins them, starts and stops them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from appliance.accounts.actor import Limits
from appliance.accounts.callers import Callers, CheckLoopback
from appliance.accounts.changes import CHANNEL, ChangeFeed
from appliance.accounts.directory import Directory
from appliance.accounts.ended_sessions import POLL_S, EndedSessions
from appliance.accounts.issued_keys import IssuedKeys
from appliance.accounts.limits import RateLimits
from appliance.accounts.live_replicas import READ_S, LiveReplicas
from appliance.accounts.passwords import Passwords
from appliance.accounts.session_stores import (
    BalancedSessions,
    RedisSessions,
    SessionStore,
    SessionsUnavailable,
    SqlSessions,
)
from appliance.accounts.sessions import Sessions
from appliance.accounts.settings import AccountSettings
from appliance.accounts.snapshot import Snapshot
from appliance.accounts.snapshot_file import FILE_NAME, SnapshotFile
from appliance.accounts.snapshot_reader import SnapshotReader
from appliance.accounts.tokens import AccessTokens, RefreshTokens
from appliance.accounts.users import OpenWallet, UserRules, Users
from appliance.base.clock import Clock
from appliance.base.tasks import Tasks
from appliance.storage.database import Database, StoreUnavailable
from appliance.storage.events import EventLog
from appliance.storage.redis_store import RedisStore, RedisUnavailable

HOUR_S: Final = 3600.0
TIDY_S: Final = 60.0
REDIS_CHANNEL: Final = f"{CHANNEL}:changes"


class _RedisBell:
    """Wakes the other replicas by a message of Redis."""

    def __init__(self, redis: RedisStore) -> None:
        self._redis = redis

    async def ring(self) -> None:
        try:
            await self._redis.publish(REDIS_CHANNEL)
        except RedisUnavailable:
            pass  # they poll


@dataclass(slots=True)
class Identity:
    """All parts that know who calls.

    Attributes:
        callers: Admit requests.
        limits: Admit them by rate.
        directory: Looks up what is not in memory.
    """

    database: Database
    snapshot: Snapshot
    changes: ChangeFeed
    tokens: AccessTokens
    directory: Directory
    callers: Callers
    limits: RateLimits
    passwords: Passwords
    session_store: SessionStore
    sessions: Sessions
    users: Users
    keys: IssuedKeys
    clock: Clock
    redis: RedisStore | None
    ended: EndedSessions | None
    live_replicas: LiveReplicas
    tasks: Tasks

    async def start(self) -> None:
        """Fill the snapshot and start what runs in the background. A database that is down is no failure."""
        await self.directory.start()
        self.tasks.start(self.limits.run(), name="accounts_limits")
        self.tasks.every(TIDY_S, self._tidy, name="accounts_tidy")
        self.tasks.every(READ_S, self.live_replicas.read, name="accounts_replicas")
        self.tasks.every(HOUR_S, self._prune, name="accounts_prune_sessions")
        if self.ended is not None:
            self.tasks.every(POLL_S, self.ended.read, name="accounts_sessions_ended")
        if self.redis is not None:
            await self.redis.listen(REDIS_CHANNEL, self._woken)

    async def close(self) -> None:
        """Write what is only in memory. The tasks are ended by their owner."""
        await self.directory.write_used()
        await self.directory.write_file(is_forced=True)
        await self.limits.sync()
        self.passwords.close()

    def _woken(self, _: str | None) -> None:
        self.changes.wake()
        if self.ended is not None:
            self.tasks.start(self.ended.read(), name="accounts_sessions_ended_now")

    async def _tidy(self) -> None:
        self.limits.forget_idle()

    async def _prune(self) -> None:
        try:
            await self.sessions.prune()
        except (SessionsUnavailable, StoreUnavailable):
            pass  # in an hour again


def build_identity(
    settings: AccountSettings,
    database: Database,
    *,
    state_dir: Path,
    clock: Clock,
    tasks: Tasks,
    check_loopback: CheckLoopback,
    redis: RedisStore | None = None,
    open_wallet: OpenWallet | None = None,
) -> Identity:
    """Build the parts; `await identity.start()` begins.

    Args:
        state_dir: STATE_DIR, for the snapshot's file.
        check_loopback: Raises Forbidden unless a caller without a key may use operators' addresses.
        redis: None = REDIS_HOST is not set.
        open_wallet: See `Users`.
    """
    secret = settings.jwt_secret.get_secret_value()
    previous = settings.jwt_secret_previous.get_secret_value()
    max_age_s = settings.snapshot_max_age_s
    snapshot = Snapshot(clock=clock, max_keys=settings.key_snapshot_max, max_age_s=max_age_s)
    tokens = AccessTokens(secret, previous=previous, lifetime_s=settings.jwt_expiration, clock=clock)
    changes = ChangeFeed(database, clock=clock, bell=_RedisBell(redis) if redis is not None else None)
    reader = SnapshotReader(
        database,
        snapshot,
        clock=clock,
        token_lifetime_s=settings.jwt_expiration,
        static_user=settings.static_keys_user,
        max_keys=settings.key_snapshot_max,
    )
    file = SnapshotFile(state_dir / FILE_NAME, secret, max_age_s=max_age_s, clock=clock)
    directory = Directory(database, snapshot, reader, changes, tokens, clock=clock, tasks=tasks, file=file)
    callers = Callers(
        snapshot, tokens, clock=clock, is_store_up=lambda: database.is_up, check_loopback=check_loopback
    )
    live = LiveReplicas(database, clock=clock)
    limits = RateLimits(
        clock=clock,
        defaults=default_limits(settings),
        shared=redis,
        replicas=lambda: live.count,
    )
    store, ended = _session_store(settings, database, changes, directory, clock=clock, redis=redis)
    sessions = Sessions(
        store,
        tokens,
        RefreshTokens(secret, previous=previous),
        clock=clock,
        find_user=directory.user,
        ended=directory.sessions_ended,
        lifetime_s=settings.refresh_expiration,
        grace_s=settings.refresh_grace_s,
    )
    passwords = Passwords(min_characters=settings.password_min)
    users = Users(
        database,
        changes,
        directory,
        passwords,
        sessions,
        clock=clock,
        rules=UserRules(
            is_open=settings.registration == "open",
            max_requests=settings.quota_max_requests,
            max_gpu_seconds=round(settings.quota_max_gpu_hours * 3600),
        ),
        open_wallet=open_wallet,
    )
    keys = IssuedKeys(database, changes, directory, clock=clock, random_bytes=settings.api_key_length)
    return Identity(
        database,
        snapshot,
        changes,
        tokens,
        directory,
        callers,
        limits,
        passwords,
        store,
        sessions,
        users,
        keys,
        clock,
        redis,
        ended,
        live,
        tasks,
    )


def _session_store(
    settings: AccountSettings,
    database: Database,
    changes: ChangeFeed,
    directory: Directory,
    *,
    clock: Clock,
    redis: RedisStore | None,
) -> tuple[SessionStore, EndedSessions | None]:
    """Choose where sessions are kept: SESSION_MODE, and `sql` where balanced has no Redis."""
    sql = SqlSessions(database, changes, EventLog(database, changes, clock=clock))
    if redis is None or settings.session_mode == "sql":
        return sql, None
    lifetime_s = settings.jwt_expiration
    in_redis = RedisSessions(redis, clock=clock, token_lifetime_s=lifetime_s)
    if settings.session_mode == "redis":
        ended = EndedSessions(in_redis, directory, clock=clock, token_lifetime_s=lifetime_s)
        return in_redis, ended
    return BalancedSessions(sql, in_redis), None


def default_limits(settings: AccountSettings) -> Limits:
    """Return the limits of users who have none of their own; 0 in a setting = none."""
    return Limits(
        rpm=settings.rate_limit_requests_per_minute or None,
        rpd=settings.rate_limit_requests_per_day or None,
        tpm=settings.rate_limit_tokens_per_minute or None,
        tpd=settings.rate_limit_tokens_per_day or None,
        concurrency=settings.rate_limit_concurrent or None,
    )
