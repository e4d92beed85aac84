"""Sessions: refreshes of several tabs, lost answers, thefts; the three modes, also while Redis or the database is down."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import delete, select

from appliance.accounts.actor import UserFacts
from appliance.accounts.identity import Identity
from appliance.accounts.refresh_rules import SessionRow
from appliance.accounts.session_stores import (
    BalancedSessions,
    RedisSessions,
    SessionsUnavailable,
    SqlSessions,
)
from appliance.accounts.sessions import IssuedTokens, Sessions, session_to_json
from appliance.accounts.tokens import AccessTokens, RefreshTokens
from appliance.base.clock import FakeClock
from appliance.base.errors import NotFound, Unauthenticated
from appliance.storage.database import Database, StoreUnavailable
from appliance.storage.redis_store import RedisStore
from appliance.storage.schema import changes, sessions
from tests.accounts.parts import AUTHOR, PASSWORD, SECRET, identity_on, redis_at
from tests.redis_server import RedisServer

GRACE_S = 20
USER = UserFacts("u1", "a@example.org")


class InMemory:
    """A store that keeps what it is told, and can be out of date when it is read."""

    def __init__(self) -> None:
        self.rows: dict[str, SessionRow] = {}
        self.ended: set[str] = set()

    async def create(self, row: SessionRow) -> None:
        self.rows[row.id] = row

    async def read(self, session_id: str) -> SessionRow | None:
        return self.rows.get(session_id)

    read_truth = read

    async def rotate(self, row: SessionRow, *, new_hash: str, now_ms: int, expires_at_ms: int) -> bool:
        kept = self.rows[row.id]
        if kept.token_hash != row.token_hash or kept.revoked_at_ms is not None:
            return False
        self.rows[row.id] = replace(
            kept,
            token_hash=new_hash,
            previous_hash=kept.token_hash,
            generation=kept.generation + 1,
            rotated_at_ms=now_ms,
            expires_at_ms=expires_at_ms,
        )
        return True

    async def end(self, rows: list[SessionRow], now_ms: int, *, reason: str = "ended") -> None:
        for row in rows:
            self.rows[row.id] = replace(self.rows[row.id], revoked_at_ms=now_ms)

    async def of_user(self, user_id: str, now_ms: int) -> list[SessionRow]:
        return [row for row in self.rows.values() if row.revoked_at_ms is None]

    async def prune(self, before_ms: int) -> None:
        pass


def sessions_on(store: object, clock: FakeClock, secret: str = SECRET, previous: str = "") -> Sessions:
    async def find(user_id: str) -> UserFacts:
        return USER

    async def ended(ids: list[str]) -> None:
        getattr(store, "ended", set()).update(ids)

    access = AccessTokens(secret, previous=previous, lifetime_s=900, clock=clock)
    refresh = RefreshTokens(secret, previous=previous)
    return Sessions(
        store, access, refresh, clock=clock, find_user=find, ended=ended, lifetime_s=604_800, grace_s=GRACE_S
    )


class RefreshMachine(RuleBasedStateMachine):
    """A browser with tabs that share a token, answers that are lost, and a thief with copies of any token.

    The model: `history` is every token that was issued; the last one is the newest.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.store = InMemory()
        self.sessions = sessions_on(self.store, self.clock)
        first = self.loop.run_until_complete(self.sessions.open(USER, ip_address="", user_agent=""))
        self.history = [first.refresh_token]
        self.rotated_s = float("-inf")
        self.is_over = False

    def teardown(self) -> None:
        self.loop.close()

    def present(self, number: int) -> str | None:
        """Present a token; return what came back, None = refused."""
        try:
            return self.loop.run_until_complete(self.sessions.refresh(self.history[number]))[1].refresh_token
        except Unauthenticated:
            return None

    @precondition(lambda self: not self.is_over)
    @rule(tabs=st.integers(1, 4))
    def refresh_newest_in_tabs(self, tabs: int) -> None:
        """Tabs refresh at the same time: all get the same successor, and nobody is logged out."""

        async def all_of_them() -> list[IssuedTokens]:
            newest = self.history[-1]
            answers = await asyncio.gather(*(self.sessions.refresh(newest) for _ in range(tabs)))
            return [answer[1] for answer in answers]

        answers = self.loop.run_until_complete(all_of_them())
        assert len({answer.refresh_token for answer in answers}) == 1
        self.history.append(answers[0].refresh_token)
        self.rotated_s = self.clock.now_s()

    @precondition(lambda self: not self.is_over and len(self.history) > 1)
    @rule()
    def repeat_after_a_lost_answer(self) -> None:
        """The direct predecessor gives the newest again within the grace, and ends all after it."""
        answer = self.present(-2)
        if self.clock.now_s() - self.rotated_s <= GRACE_S:
            assert answer == self.history[-1]
        else:
            assert answer is None
            self.is_over = True

    @precondition(lambda self: not self.is_over and len(self.history) > 2)
    @rule(data=st.data())
    def thief_uses_an_older_token(self, data: st.DataObject) -> None:
        """Any older token ends the session, in the grace as well."""
        number = data.draw(st.integers(0, len(self.history) - 3))
        assert self.present(number) is None
        self.is_over = True

    @rule(seconds=st.sampled_from([0.5, 10, 19, 21, 3600]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.is_over)
    @rule(data=st.data())
    def nothing_works_after_the_end(self, data: st.DataObject) -> None:
        assert self.present(data.draw(st.integers(0, len(self.history) - 1))) is None

    @invariant()
    def store_knows_the_end(self) -> None:
        [row] = self.store.rows.values()
        assert (row.revoked_at_ms is not None) == self.is_over == bool(self.store.ended)
        assert row.generation == len(self.history) - 1


RefreshMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestRefreshMachine = RefreshMachine.TestCase


async def test_refresh_works_across_a_change_of_the_secret() -> None:
    clock, store = FakeClock(), InMemory()
    old = sessions_on(store, clock)
    first = await old.open(USER, ip_address="", user_agent="")
    _, second = await old.refresh(first.refresh_token)
    new = sessions_on(store, clock, "a new secret " * 4, SECRET)
    assert (await new.refresh(first.refresh_token))[1].refresh_token == second.refresh_token
    _, third = await new.refresh(second.refresh_token)
    assert (await new.refresh(second.refresh_token))[1].refresh_token == third.refresh_token
    with pytest.raises(Unauthenticated) as refused:
        await sessions_on(store, clock, "a third secret " * 4).refresh(third.refresh_token)
    assert refused.value.code == "refresh_invalid"


async def test_session_lasts_as_long_as_it_is_used() -> None:
    clock = FakeClock()
    one = sessions_on(InMemory(), clock)
    token = (await one.open(USER, ip_address="", user_agent="")).refresh_token
    for _ in range(5):
        clock.advance(604_000)
        token = (await one.refresh(token))[1].refresh_token
    clock.advance(604_800)
    with pytest.raises(Unauthenticated, match="has ended"):
        await one.refresh(token)


# ---- on real stores

MODES = ["sql", "redis", "balanced"]


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    async with redis_at(redis_server.port) as one:
        yield one


class Installation:
    """One identity with a user, in one mode."""

    def __init__(self, identity: Identity, user: UserFacts) -> None:
        self.identity = identity
        self.user = user

    async def open(self) -> IssuedTokens:
        return await self.identity.sessions.open(self.user, ip_address="10.0.0.1", user_agent="a\0b" * 200)

    async def refresh(self, token: str) -> IssuedTokens:
        return (await self.identity.sessions.refresh(token))[1]

    async def code(self, token: str) -> str | None:
        try:
            await self.refresh(token)
            return ""
        except (Unauthenticated, SessionsUnavailable) as error:
            return error.code

    def calls(self, tokens: IssuedTokens) -> bool:
        try:
            headers = {"authorization": f"Bearer {tokens.access_token}"}
            return self.identity.callers.admit("client", headers, "10.0.0.1") is not None
        except Unauthenticated:
            return False


async def installed(identity: Identity) -> Installation:
    user = (await identity.users.create("a@example.org", PASSWORD, "Ada", author=AUTHOR)).facts()
    await identity.directory.find_user(user.id)
    identity.snapshot.confirm(identity.clock.now_s())
    return Installation(identity, user)


@pytest.mark.parametrize("mode", MODES)
async def test_modes_keep_rotate_list_and_end_sessions(
    mode: str, database: Database, tmp_path: Path, redis: RedisStore
) -> None:
    async with identity_on(database, tmp_path, redis=redis, session_mode=mode, is_started=False) as identity:
        one = await installed(identity)
        assert isinstance(
            identity.session_store,
            {"sql": SqlSessions, "redis": RedisSessions, "balanced": BalancedSessions}[mode],
        )
        first, other = await one.open(), await one.open()
        answers = await asyncio.gather(*(one.refresh(first.refresh_token) for _ in range(8)))
        assert len({answer.refresh_token for answer in answers}) == 1
        second = answers[0]
        assert (await one.refresh(first.refresh_token)).refresh_token == second.refresh_token
        rows = await identity.sessions.of_user(one.user.id)
        assert {row.id for row in rows} == {first.session_id, other.session_id}
        shown = session_to_json(rows[0], current=rows[0].id)
        assert (shown["ip_address"], shown["is_current"]) == ("10.0.0.1", True)
        assert "\0" not in shown["user_agent"]
        assert len(shown["user_agent"]) <= 256
        third = await one.refresh(second.refresh_token)
        assert one.calls(third)
        assert await one.code(first.refresh_token) == "refresh_reused"
        assert await one.code(third.refresh_token) == "session_ended"
        assert not one.calls(third)
        assert one.calls(other)
        with pytest.raises(NotFound):
            await identity.sessions.end_one("another", other.session_id)
        with pytest.raises(NotFound):
            await identity.sessions.end_one(one.user.id, "no session\0")
        await identity.sessions.end_one(one.user.id, other.session_id)
        assert await one.code(other.refresh_token) == "session_ended"
        tokens = [await one.open() for _ in range(3)]
        assert await identity.sessions.end_all(one.user.id, but=tokens[0].session_id) == 2
        assert [await one.code(token.refresh_token) for token in tokens] == [
            "",
            "session_ended",
            "session_ended",
        ]


async def test_no_token_is_stored_anywhere(
    sqlite_database: Database, tmp_path: Path, redis: RedisStore, redis_server: RedisServer
) -> None:
    async with identity_on(sqlite_database, tmp_path, redis=redis, is_started=False) as identity:
        one = await installed(identity)
        first = await one.open()
        second = await one.refresh(first.refresh_token)
        in_redis = repr(redis_server.everything())
        async with sqlite_database.transaction(is_read_only=True) as transaction:
            in_sql = repr(
                [*await transaction.execute(select(sessions)), *await transaction.execute(select(changes))]
            )
        for tokens in (first, second):
            assert tokens.refresh_token not in in_redis + in_sql
            assert tokens.access_token not in in_redis + in_sql
        assert all(name.startswith("session:") and len(name) == 72 for name in redis_server.everything())


async def test_redis_down_in_balanced_mode_only_costs_time(
    database: Database, tmp_path: Path, redis: RedisStore, redis_server: RedisServer
) -> None:
    async with identity_on(database, tmp_path, redis=redis, is_started=False) as identity:
        one = await installed(identity)
        tokens = await one.open()
        redis_server.stop()
        tokens = await one.refresh(tokens.refresh_token)
        again = await one.open()
        await identity.sessions.end_one(one.user.id, again.session_id)
        assert await one.code(again.refresh_token) == "session_ended"
        redis_server.start()
        async with asyncio.timeout(10):
            while not redis.is_up:
                await asyncio.sleep(0.05)
        await one.refresh(tokens.refresh_token)


async def test_old_entry_of_redis_does_no_harm(database: Database, tmp_path: Path, redis: RedisStore) -> None:
    async with identity_on(database, tmp_path, redis=redis, is_started=False) as identity:
        one = await installed(identity)
        store = identity.session_store
        assert isinstance(store, BalancedSessions)
        first = await one.open()
        old = await store.read(first.session_id)
        assert old is not None
        second = await one.refresh(first.refresh_token)
        await store._redis.put(old)  # as Redis has it that was down during the refresh
        assert (await one.refresh(first.refresh_token)).refresh_token == second.refresh_token
        await store._redis.put(old)
        third = await one.refresh(second.refresh_token)
        await store._redis.put(old)
        assert await one.code(first.refresh_token) == "refresh_reused"
        await store._redis.put(old)
        assert await one.code(third.refresh_token) == "session_ended"
        assert await store._redis.read(first.session_id) is None


async def test_redis_down_in_redis_mode_is_503_for_sessions_alone(
    sqlite_database: Database, tmp_path: Path, redis: RedisStore, redis_server: RedisServer
) -> None:
    async with identity_on(
        sqlite_database, tmp_path, redis=redis, session_mode="redis", is_started=False
    ) as identity:
        one = await installed(identity)
        identity.snapshot.confirm(identity.clock.now_s())
        tokens = await one.open()
        redis_server.stop()
        assert await one.code(tokens.refresh_token) == "sessions_unavailable"
        with pytest.raises(SessionsUnavailable):
            await identity.users.login("a@example.org", PASSWORD, peer="10.0.0.1", user_agent="")
        assert one.calls(tokens)
        redis_server.start()  # empty: it keeps nothing on disk
        async with asyncio.timeout(10):
            while not redis.is_up:
                await asyncio.sleep(0.05)
        assert await one.code(tokens.refresh_token) == "session_ended"


class DatabaseThatFails:
    """A database that can be down at will."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.is_down = False

    def __getattr__(self, name: str) -> object:
        if self.is_down and name in {"transaction", "run"}:
            raise StoreUnavailable("a test says so")
        return getattr(self._database, name)


@pytest.mark.parametrize(
    ("mode", "repeated", "fresh"),
    [
        ("sql", "sessions_unavailable", "sessions_unavailable"),
        ("balanced", "", "sessions_unavailable"),
        ("redis", "", ""),
    ],
)
async def test_database_down_in_each_mode(
    mode: str, repeated: str, fresh: str, sqlite_database: Database, tmp_path: Path, redis: RedisStore
) -> None:
    failing = DatabaseThatFails(sqlite_database)
    async with identity_on(failing, tmp_path, redis=redis, session_mode=mode, is_started=False) as identity:
        one = await installed(identity)
        first = await one.open()
        second = await one.refresh(first.refresh_token)
        failing.is_down = True
        assert await one.code(first.refresh_token) == repeated
        assert await one.code(second.refresh_token) == fresh
        failing.is_down = False
        assert await one.code(second.refresh_token) == ""


async def test_ends_are_heard_by_other_replicas_in_redis_mode(
    sqlite_database: Database, tmp_path: Path, redis: RedisStore
) -> None:
    async with (
        identity_on(sqlite_database, tmp_path / "a", redis=redis, session_mode="redis") as here,
        identity_on(sqlite_database, tmp_path / "b", redis=redis, session_mode="redis") as there,
    ):
        one = await installed(here)
        await there.directory.find_user(one.user.id)
        tokens = await one.open()
        other = Installation(there, one.user)
        assert other.calls(tokens)
        await here.sessions.end_one(one.user.id, tokens.session_id)
        assert not one.calls(tokens)
        async with asyncio.timeout(2.5):
            while other.calls(tokens):
                await asyncio.sleep(0.01)


async def test_sessions_that_ended_long_ago_are_deleted(database: Database, tmp_path: Path) -> None:
    clock = FakeClock()
    async with identity_on(database, tmp_path, clock=clock, is_started=False) as identity:
        one = await installed(identity)
        old, ended = await one.open(), await one.open()
        await identity.sessions.end_one(one.user.id, ended.session_id)
        clock.advance(31 * 86_400)
        new = await one.open()
        clock.advance(6 * 86_400)
        await identity.sessions.prune()
        async with database.transaction(is_read_only=True) as transaction:
            left = [row.id for row in await transaction.execute(select(sessions.c.id))]
        assert old.session_id in left  # its end is not a month ago
        assert ended.session_id not in left
        assert new.session_id in left
        async with database.transaction() as transaction:
            await transaction.execute(delete(sessions))
        assert await one.code(new.refresh_token) == "session_ended"


async def test_user_that_is_gone_gets_no_tokens(database: Database, tmp_path: Path) -> None:
    async with identity_on(database, tmp_path, is_started=False) as identity:
        one = await installed(identity)
        tokens = await one.open()
        identity.snapshot.put_user(replace(one.user, is_active=False))
        assert await one.code(tokens.refresh_token) == "user_inactive"


async def test_whose_session_it_is_is_found_by_any_of_its_refresh_tokens() -> None:
    clock, store = FakeClock(), InMemory()
    one = sessions_on(store, clock)
    first = await one.open(USER, ip_address="10.0.0.1", user_agent="")
    _, second = await one.refresh(first.refresh_token)
    for text in (first.refresh_token, second.refresh_token):
        assert (await one.find_by_refresh_token(text)).id == first.session_id
    for text in ("rt_nothing", 5, None, "", "rt_\ud800"):
        with pytest.raises(Unauthenticated) as refused:
            await one.find_by_refresh_token(text)
        assert refused.value.code == "refresh_invalid"
    assert await one.is_live(USER.id, first.session_id)
    assert not await one.is_live("u2", first.session_id)
    assert not await one.is_live(USER.id, "none")
    clock.advance(604_801)
    assert not await one.is_live(USER.id, first.session_id)
    store.rows.clear()
    with pytest.raises(Unauthenticated) as refused:
        await one.find_by_refresh_token(first.refresh_token)
    assert refused.value.code == "session_ended"
