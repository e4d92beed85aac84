"""Changes reach all replicas: by NOTIFY, and by polling where that was lost; look-ups; the database being down."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select, text

from appliance.accounts.actor import UserFacts
from appliance.accounts.api_keys import NewKey, make_key
from appliance.accounts.changes import ChangeFeed
from appliance.accounts.identity import Identity
from appliance.accounts.issued_keys import KeyRequest
from appliance.accounts.user_forms import UserChange
from appliance.base.clock import FakeClock, SystemClock
from appliance.base.errors import ApplianceError, Unavailable
from appliance.base.tasks import Tasks
from appliance.storage.database import Database
from appliance.storage.open import build_database
from appliance.storage.schema import changes
from tests.accounts.parts import AUTHOR, PASSWORD, eventually, identity_on
from tests.storage_servers import PostgresServer, postgres_name

ROOT = Path(__file__).parents[2]
POLL_S = 2.0
SLACK_S = 3.0  # of a machine that is busy with other tests


class Replica:
    """A process that admits callers."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def read(self) -> dict:
        assert self._process.stdout is not None
        while not (line := await asyncio.wait_for(self._process.stdout.readline(), 60)).startswith(b"{"):
            assert line, "it has ended"  # other lines are its log
        return json.loads(line)

    async def code(
        self, key: NewKey, *, level: str = "client", until: str = "", within_s: float = 0.0
    ) -> dict:
        """Ask until the answer is `until`; return the last one and how much of the time is left."""
        asked = {"key": key.text, "level": level, "until": until, "within_s": within_s}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        return await self.read()


@asynccontextmanager
async def replica(server: PostgresServer, name: str, folder: Path) -> AsyncIterator[Replica]:
    folder.mkdir()
    settings = json.dumps({"db_host": str(server.folder), "db_user": "app", "db_name": name})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.accounts.replica", settings, str(folder),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    one = Replica(process)
    try:
        yield one
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()


async def made(identity: Identity, **facts: bool) -> tuple[UserFacts, NewKey, str]:
    scopes = frozenset({"inference", "admin"}) if facts.get("is_admin") else frozenset({"inference"})
    count = len(await identity.users.search())
    user = (
        await identity.users.create(f"u{count}@example.org", PASSWORD, "Ada", author=AUTHOR, **facts)
    ).facts()
    key, stored = await identity.keys.create(user, KeyRequest("one", scopes), author=AUTHOR)
    return user, key, stored.id


async def test_revocation_reaches_three_processes_within_two_seconds(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        name = await stack.enter_async_context(postgres_name(postgres_server))
        tasks = await stack.enter_async_context(Tasks())
        database = build_database(postgres_server.settings(name), tmp_path, tasks=tasks, clock=SystemClock())
        await database.open()
        stack.push_async_callback(database.close)
        here = await stack.enter_async_context(identity_on(database, tmp_path / "here"))
        user, key, key_id = await made(here)
        admin, admin_key, _ = await made(here, is_admin=True)
        others = [
            await stack.enter_async_context(replica(postgres_server, name, tmp_path / str(number)))
            for number in range(3)
        ]
        assert [await one.read() for one in others] == [{"keys": 2}] * 3

        # by NOTIFY
        assert [(await one.code(key))["code"] for one in others] == [""] * 3
        await here.keys.revoke(user.id, key_id, author=AUTHOR)
        answers = await asyncio.gather(
            *(one.code(key, until="invalid_api_key", within_s=POLL_S) for one in others)
        )
        assert [answer["code"] for answer in answers] == ["invalid_api_key"] * 3

        # NOTIFY is lost: the connections that listen are killed, and the change is made meanwhile
        assert [(await one.code(admin_key, level="operator"))["code"] for one in others] == [""] * 3
        await postgres_server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ILIKE 'LISTEN%'", name
        )
        await here.users.change(admin.id, UserChange(is_admin=False), author=AUTHOR)
        answers = await asyncio.gather(
            *(
                one.code(admin_key, level="operator", until="operator_only", within_s=POLL_S + SLACK_S)
                for one in others
            )
        )
        assert [answer["code"] for answer in answers] == ["operator_only"] * 3

        # a new key is looked up at once, wherever it is used
        new, _ = await here.keys.create(user, KeyRequest("two"), author=AUTHOR)
        assert [(await one.code(new))["code"] for one in others] == [""] * 3


async def test_change_without_any_announcement_is_seen_by_polling(database: Database, tmp_path: Path) -> None:
    async with identity_on(database, tmp_path) as identity:
        user, key, key_id = await made(identity)
        headers = {"x-api-key": key.text}
        await identity.directory.look_up(headers, identity.callers)
        assert identity.snapshot.has_key(key_id)
        async with database.transaction() as transaction:  # as another program does
            await transaction.execute(
                text("UPDATE api_keys SET is_active = false WHERE id = :id"), {"id": key_id}
            )
            await transaction.execute(insert(changes), [{"at": 0, "kind": "key", "id": key_id}])
        await eventually(lambda: not identity.snapshot.has_key(key_id), POLL_S + SLACK_S)


async def test_rows_that_are_committed_late_are_not_missed(database: Database) -> None:
    clock, heard = FakeClock(), []

    async def handler(ids: set[str]) -> None:
        heard.append(ids)

    feed = ChangeFeed(database, clock=clock)
    feed.on("key", handler)
    await feed.start()

    async def add(seq: int, kind: str = "key") -> None:
        async with database.transaction() as transaction:
            await transaction.execute(insert(changes), [{"seq": seq, "at": 0, "kind": kind, "id": f"k{seq}"}])

    await add(10)
    await add(12)
    await feed.read()
    await feed.read()
    clock.advance(9)
    await add(11)  # its transaction began first and ended last
    await add(13, "price")
    await feed.read()
    assert heard == [{"k10", "k12"}, {"k11"}]
    clock.advance(100)
    await feed.read()
    assert feed._mark == 13
    assert not feed._seen
    await add(14)
    await feed.read()
    assert heard[2:] == [{"k14"}]


async def test_handler_that_fails_is_called_again(sqlite_database: Database) -> None:
    feed, calls = ChangeFeed(sqlite_database, clock=FakeClock()), []

    async def handler(ids: set[str]) -> None:
        calls.append(ids)
        if len(calls) == 1:
            raise RuntimeError("once")

    feed.on("key", handler)
    await feed.start()
    async with sqlite_database.transaction() as transaction:
        await feed.note(transaction, "key", ["k1", "k2"])
        await feed.note(transaction, "key", [])
    with pytest.raises(RuntimeError):
        await feed.read()
    await feed.read()
    await feed.read()
    assert calls == [{"k1", "k2"}] * 2


async def test_old_rows_are_deleted(database: Database) -> None:
    clock = FakeClock()
    feed = ChangeFeed(database, clock=clock)
    for _ in range(2):
        async with database.transaction() as transaction:
            await feed.note(transaction, "key", ["k1"])
        clock.advance(80_000)
    await feed.prune()
    async with database.transaction(is_read_only=True) as transaction:
        assert (await transaction.execute(select(func.count().label("n")).select_from(changes)))[0].n == 1


async def test_flood_of_unknown_keys_is_few_statements(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with identity_on(sqlite_database, tmp_path) as identity:
        user, key, _ = await made(identity)
        reader, calls = identity.directory._reader, []
        find = reader.find_keys

        async def counted(digests: list[bytes]) -> None:
            calls.append(len(digests))
            await find(digests)

        monkeypatch.setattr(reader, "find_keys", counted)
        wrong = [make_key() for _ in range(300)]
        await asyncio.gather(
            *(
                identity.directory.look_up({"x-api-key": one.text}, identity.callers)
                for one in [*wrong, *wrong, key]
            )
        )
        assert sum(calls) == 300
        assert len(calls) <= 5
        assert identity.callers.admit("client", {"x-api-key": key.text}, "x") is not None
        for one in wrong:
            await identity.directory.look_up({"x-api-key": one.text}, identity.callers)
        assert sum(calls) == 300
        flood = [
            identity.directory.look_up({"x-api-key": make_key().text}, identity.callers) for _ in range(1100)
        ]
        results = await asyncio.gather(*flood, return_exceptions=True)
        assert {getattr(one, "code", None) for one in results} == {None, "busy"}


async def code_of(identity: Identity, key: NewKey) -> str | None:
    headers = {"x-api-key": key.text}
    try:
        if identity.callers.admit("client", headers, "10.0.0.1") is None:
            await identity.directory.look_up(headers, identity.callers)
            identity.callers.admit("client", headers, "10.0.0.1")
        return ""
    except ApplianceError as error:
        return error.code


async def test_database_that_stops_and_comes_back(postgres_server: PostgresServer, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        name = await stack.enter_async_context(postgres_name(postgres_server))
        tasks = await stack.enter_async_context(Tasks())
        database = build_database(
            postgres_server.settings(name, db_connect_timeout=1.0), tmp_path, tasks=tasks, clock=SystemClock()
        )
        await database.open()
        stack.push_async_callback(database.close)
        here = await stack.enter_async_context(identity_on(database, tmp_path))
        user, key, _ = await made(here)
        assert await code_of(here, key) == ""
        await here.directory.write_file(is_forced=True)
        postgres_server.stop()
        try:
            unknown = make_key()
            assert await code_of(here, unknown) == "store_unavailable"
            assert await code_of(here, unknown) == "store_unavailable"
            assert await code_of(here, key) == ""
            with pytest.raises(Unavailable):
                await here.users.login("u0@example.org", PASSWORD, peer="x", user_agent="")
            # a restart meanwhile: the snapshot comes from its file
            down = build_database(
                postgres_server.settings(name, db_connect_timeout=1.0),
                tmp_path,
                tasks=tasks,
                clock=SystemClock(),
            )
            await down.open()
            stack.push_async_callback(down.close)
            async with identity_on(down, tmp_path) as restarted:
                assert await code_of(restarted, key) == ""
                assert await code_of(restarted, unknown) == "store_unavailable"
                postgres_server.start()
                await eventually(lambda: database.is_up and down.is_up, 15)
                await eventually(lambda: restarted.directory._is_filled, 5)
                assert await code_of(restarted, unknown) == "invalid_api_key"
        finally:
            if postgres_server._process is None:
                postgres_server.start()
        assert await code_of(here, unknown) == "invalid_api_key"
        assert await code_of(here, key) == ""
