"""A database that is away, refuses us, is full or slow: told at once, without a secret, and back without a restart."""

import asyncio
import errno
import io
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import trustme
from structlog.testing import capture_logs

from appliance.base.clock import SystemClock
from appliance.base.tasks import Tasks
from appliance.storage import postgres
from appliance.storage.database import (
    Database,
    StoreRefused,
    StoreUnavailable,
    Transaction,
    TransactionConflict,
)
from appliance.storage.migrate import migrate
from appliance.storage.open import build_database
from appliance.storage.settings import StorageSettings
from tests.journeys.running import free_port
from tests.storage.test_redis_store import until
from tests.storage_servers import USER, PostgresServer, make_sqlite, opened, plain_user, postgres_name

ADD = "INSERT INTO changes(at, kind, id) VALUES (1, 'user', :id)"


async def add(database: Database, text: str = "x") -> None:
    async with database.transaction() as transaction:
        await transaction.execute(ADD, {"id": text})


async def ids(database: Database) -> list[str]:
    async with database.transaction(is_read_only=True) as transaction:
        return [row.id for row in await transaction.execute("SELECT id FROM changes ORDER BY seq")]


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server for one test, which stops it; with a password for one of its users."""
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        server = PostgresServer(Path(folder), "-c fsync=off")
        server.start()
        asyncio.run(server.sql("CREATE DATABASE own"))
        migrate(server.settings("own"), Path(folder), output=io.StringIO())
        try:
            yield server
        finally:
            server.stop()


# ---- PostgreSQL goes away


async def test_postgres_that_stops_is_told_and_comes_back(own_server: PostgresServer, tmp_path: Path) -> None:
    with capture_logs() as lines:
        async with opened(own_server.settings("own"), tmp_path) as database:
            await add(database, "before")
            own_server.stop()
            with pytest.raises(StoreUnavailable) as caught:
                await add(database, "meanwhile")
            assert (caught.value.code, caught.value.retry_after_s) == ("store_unavailable", 1.0)
            assert not database.is_up
            began = time.monotonic()
            for _ in range(50):
                with pytest.raises(StoreUnavailable):
                    await add(database, "meanwhile")
            assert time.monotonic() - began < 1
            own_server.start()
            await until(lambda: database.is_up)
            await add(database, "after")
            assert await ids(database) == ["before", "after"]
    events = [line["event"] for line in lines if line["event"] in ("store_up", "store_down")]
    assert events[0] == "store_up"
    assert events[-1] == "store_up"
    assert "store_down" in events


async def test_postgres_lost_in_a_transaction_keeps_nothing(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    async with opened(own_server.settings("own"), tmp_path) as database:

        async def lose() -> None:
            async with database.transaction() as transaction:
                await transaction.execute(ADD, {"id": "lost"})
                own_server.stop()
                own_server.start()
                await transaction.execute(ADD, {"id": "lost, too"})

        with pytest.raises(StoreUnavailable):
            await lose()
        await until(lambda: database.is_up)
        await add(database, "after")
        assert await ids(database) == ["after"]


async def test_postgres_that_is_away_at_start_is_tried(own_server: PostgresServer, tmp_path: Path) -> None:
    own_server.stop()
    changes: list[bool] = []
    async with Tasks() as tasks:
        database = build_database(
            own_server.settings("own"), tmp_path, tasks=tasks, clock=SystemClock(), on_change=changes.append
        )
        await database.open()
        assert not database.is_up
        assert "No such file" in database.reason
        own_server.start()
        await until(lambda: database.is_up)
        await add(database)
        assert changes == [True]
        await database.close()


async def test_a_restart_between_uses_is_not_noticed(own_server: PostgresServer, tmp_path: Path) -> None:
    async with opened(own_server.settings("own"), tmp_path) as database:
        await asyncio.gather(*(add(database, str(number)) for number in range(5)))
        own_server.stop()
        own_server.start()
        await asyncio.sleep(0.05)  # the loop reads that the connections ended
        await add(database, "after")
        assert len(await ids(database)) == 6


async def test_notifications_are_heard_also_after_the_connection_broke(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    heard: list[str | None] = []
    async with (
        postgres_name(postgres_server) as name,
        opened(postgres_server.settings(name), tmp_path) as database,
    ):
        assert database.can_listen
        await database.listen("appliance", heard.append)
        await until(lambda: heard == [None])
        async with database.transaction() as transaction:
            await transaction.execute("SELECT pg_notify('appliance', '7')")
        await until(lambda: heard == [None, "7"])

        async def undo() -> None:
            async with database.transaction() as transaction:
                await transaction.execute("SELECT pg_notify('appliance', 'undone')")
                raise RuntimeError

        with pytest.raises(RuntimeError):
            await undo()
        await postgres_server.sql(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND query LIKE 'LISTEN%'"
        )
        await until(lambda: heard == [None, "7", None])
        async with database.transaction() as transaction:
            await transaction.execute("SELECT pg_notify('appliance', '8')")
        await until(lambda: heard == [None, "7", None, "8"])


# ---- PostgreSQL refuses


async def test_a_wrong_password_is_told_but_not_shown(own_server: PostgresServer, tmp_path: Path) -> None:
    await own_server.sql("CREATE USER guarded PASSWORD 'right-pass-word'")
    await own_server.sql("GRANT ALL ON ALL TABLES IN SCHEMA public TO guarded", "own")
    await own_server.sql("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO guarded", "own")
    rules = own_server.folder / "data/pg_hba.conf"
    rules.write_text("local all guarded scram-sha-256\n" + rules.read_text())
    await own_server.sql("SELECT pg_reload_conf()")

    def settings(password: str) -> StorageSettings:
        return StorageSettings(
            db_host=str(own_server.folder),
            db_user="guarded",
            db_name="own",
            db_password=password,  # type: ignore[arg-type]
        )

    async with opened(settings("right-pass-word"), tmp_path) as database:
        await add(database)
        with capture_logs() as lines, pytest.raises(StoreRefused) as caught:
            async with opened(settings("wrong-pass-word"), tmp_path):
                pass
        assert "Check DB_USER and DB_PASSWORD" in str(caught.value)
        # one that is changed while it runs is as if it were away
        await own_server.sql("ALTER USER guarded PASSWORD 'new-pass-word'")
        await own_server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'guarded'"
        )
        await until(lambda: database._pool._idle[0].raw.is_closed())  # type: ignore[attr-defined]
        with capture_logs() as more, pytest.raises(StoreUnavailable) as later:
            await add(database)
        assert not database.is_up
    told = str(lines) + str(more) + str(caught.value) + str(later.value)
    assert "guarded" in told
    assert "pass-word" not in told


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"db_name": "no_such_database"}, "Create the database"),
        ({"db_user": "no_such_user"}, "Check DB_USER and DB_PASSWORD"),
    ],
)
async def test_what_is_wrong_at_start_is_refused(
    postgres_server: PostgresServer, tmp_path: Path, more: dict[str, str], words: str
) -> None:
    settings = StorageSettings(**{"db_host": str(postgres_server.folder), "db_user": USER, **more})  # type: ignore[arg-type]
    with pytest.raises(StoreRefused, match=words):
        async with opened(settings, tmp_path):
            pass


async def test_an_old_server_is_refused(
    postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "OLDEST_VERSION", 99)
    with pytest.raises(StoreRefused, match="99 or newer is needed"):
        async with opened(postgres_server.settings("ready"), tmp_path):
            pass


async def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        began = time.monotonic()
        settings = StorageSettings(db_host="127.0.0.1", db_port=port, db_connect_timeout=0.3)
        async with opened(settings, tmp_path) as database:
            assert not database.is_up
            assert "0.3 s (DB_CONNECT_TIMEOUT)" in database.reason
            assert time.monotonic() - began < 3
            with pytest.raises(StoreUnavailable):
                await add(database)


async def test_the_certificate_of_the_server_is_checked(own_server: PostgresServer, tmp_path: Path) -> None:
    ours, other = trustme.CA(), trustme.CA()
    certificate = ours.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(own_server.folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(own_server.folder / "cert.pem")
    ours.cert_pem.write_to_path(tmp_path / "ours.pem")
    other.cert_pem.write_to_path(tmp_path / "other.pem")
    (own_server.folder / "key.pem").chmod(0o600)
    if (user := plain_user()) is not None:
        shutil.chown(own_server.folder / "key.pem", user)
    port = free_port()
    own_server.stop()
    own_server.options = (
        f"-c listen_addresses=127.0.0.1 -c port={port} -c ssl=on -c ssl_cert_file={own_server.folder}/cert.pem "
        f"-c ssl_key_file={own_server.folder}/key.pem"
    )
    own_server.port = port
    own_server.start()

    def settings(mode: str, authority: str = "ours", host: str = "localhost") -> StorageSettings:
        return StorageSettings(
            db_host=host,
            db_port=port,
            db_user=USER,
            db_name="own",
            db_sslmode=mode,  # type: ignore[arg-type]
            db_sslrootcert=tmp_path / f"{authority}.pem",
        )

    for one in (
        settings("prefer"),
        settings("require"),
        settings("verify-ca", host="127.0.0.1"),
        settings("verify-full"),
    ):
        async with opened(one, tmp_path) as database, database.transaction() as transaction:
            rows = await transaction.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            assert rows[0].ssl
    for one in (settings("verify-full", host="127.0.0.1"), settings("verify-ca", "other")):
        async with opened(one, tmp_path) as database:
            assert not database.is_up
            assert "certificate" in database.reason


# ---- slow, busy


SLOW = {
    "postgres": "SELECT pg_sleep(30)",
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n",
}


@asynccontextmanager
async def with_limits(
    kind: str, server: PostgresServer, folder: Path, **more: Any
) -> AsyncIterator[Database]:
    if kind == "sqlite":
        async with opened(StorageSettings(**more), folder) as database:
            yield database
        return
    async with postgres_name(server) as name, opened(server.settings(name, **more), folder) as database:
        yield database


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
@pytest.mark.parametrize("is_read_only", [True, False])
async def test_a_slow_statement_is_ended_and_the_others_go_on(
    postgres_server: PostgresServer, tmp_path: Path, kind: str, is_read_only: bool
) -> None:
    async with with_limits(kind, postgres_server, tmp_path, db_statement_timeout=0.3) as database:
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="DB_STATEMENT_TIMEOUT"):
            async with database.transaction(is_read_only=is_read_only) as transaction:
                await transaction.execute(SLOW[kind])
        assert time.monotonic() - began < 3
        assert database.is_up
        await add(database, "after")
        assert await ids(database) == ["after"]


async def test_callers_wait_for_a_connection_but_not_forever(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    async with with_limits(
        "postgres", postgres_server, tmp_path, db_max_conns=2, db_connect_timeout=0.3
    ) as database:

        async def hold(ended: asyncio.Event, begun: asyncio.Event) -> None:
            async with database.transaction() as transaction:
                await transaction.execute("SELECT 1")
                begun.set()
                await ended.wait()

        ended, begun = asyncio.Event(), [asyncio.Event(), asyncio.Event()]
        tasks = [asyncio.create_task(hold(ended, one)) for one in begun]
        await asyncio.gather(*(one.wait() for one in begun))
        with pytest.raises(StoreUnavailable, match=r"all 2 connections \(DB_MAX_CONNS\) are in use"):
            await add(database)
        assert database.is_up
        ended.set()
        await asyncio.gather(*tasks)
        await asyncio.gather(*(add(database) for _ in range(20)))
        assert database.open_count <= 2  # type: ignore[attr-defined]


async def test_a_deadlock_is_a_conflict_and_is_run_again(postgres_database: Database) -> None:
    for text in ("a", "b"):
        await add(postgres_database, text)
    barrier = asyncio.Barrier(2)
    runs: list[str] = []

    def change(first: str, second: str) -> Any:
        async def work(transaction: Transaction) -> None:
            runs.append(first)
            await transaction.execute("UPDATE changes SET at = at + 1 WHERE id = :id", {"id": first})
            if len(runs) <= 2:
                await barrier.wait()
            await transaction.execute("UPDATE changes SET at = at + 1 WHERE id = :id", {"id": second})

        return work

    await asyncio.gather(postgres_database.run(change("a", "b")), postgres_database.run(change("b", "a")))
    async with postgres_database.transaction() as transaction:
        rows = await transaction.execute("SELECT at FROM changes")
    assert [row.at for row in rows] == [3, 3]
    assert len(runs) == 3


# ---- SQLite


async def test_a_second_process_is_refused(tmp_path: Path) -> None:
    async with opened(StorageSettings(), tmp_path):
        with pytest.raises(StoreRefused, match=r"Another process uses the database .* or use PostgreSQL"):
            async with opened(StorageSettings(), tmp_path):
                pass
    async with opened(StorageSettings(), tmp_path) as database:
        assert database.is_up


async def test_a_file_that_another_program_holds_is_waited_for(
    sqlite_database: Database, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "gpuproxy.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TransactionConflict, match="another program holds"):
            await add(sqlite_database)
        assert sqlite_database.is_up

        async def work(transaction: Transaction) -> None:
            await transaction.execute(ADD, {"id": "after"})

        task = asyncio.create_task(sqlite_database.run(work))
        await asyncio.sleep(0.1)
        other.execute("COMMIT")
        await task
    assert await ids(sqlite_database) == ["after"]


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1024))
        except OSError as exc:
            assert exc.errno == errno.ENOSPC


async def test_a_full_disk_is_told_and_comes_back() -> None:
    folder = Path(tempfile.mkdtemp(prefix="full-"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        folder.rmdir()
        pytest.skip("a small file system cannot be mounted here")
    try:
        make_sqlite(folder / "gpuproxy.db")
        async with opened(StorageSettings(), folder) as database:
            await add(database, "before")
            filler = folder / "filler"
            fill(filler)

            async def add_many() -> None:
                for _ in range(200):
                    await add(database, "meanwhile" * 100)

            with pytest.raises(StoreUnavailable, match="its disk is full; free some space"):
                await add_many()
            assert not database.is_up
            kept = await ids(database)
            await asyncio.sleep(1.2)  # it was tried meanwhile
            assert not database.is_up
            filler.unlink()
            await until(lambda: database.is_up)
            await add(database, "after")
            assert await ids(database) == [*kept, "after"]
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


async def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "gpuproxy.db").write_bytes(b"no database" * 1000)
    async with opened(StorageSettings(), tmp_path) as database:
        assert not database.is_up
        assert "its file is no database; move it away" in database.reason
        with pytest.raises(StoreUnavailable, match="is no database"):
            await add(database)


async def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with opened(StorageSettings(), tmp_path / "file/state") as database:
        assert not database.is_up
        assert "A part of the path is a file" in database.reason
        (tmp_path / "file").unlink()
        await until(lambda: database.is_up)
        await add(database)


async def test_a_read_only_database_is_told_and_comes_back(sqlite_database: Database) -> None:
    writer: Any = sqlite_database._writer  # type: ignore[attr-defined]
    await writer.call(lambda connection: connection.exec_driver_sql("PRAGMA query_only=ON"))
    with pytest.raises(StoreUnavailable, match="read-only; make both writable"):
        await add(sqlite_database)
    await until(lambda: sqlite_database.is_up)  # the next try opens the file anew
    await add(sqlite_database, "after")
    assert await ids(sqlite_database) == ["after"]


async def test_a_transaction_that_never_ends_is_undone(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.storage.sqlite.TRANSACTION_S", 0.2)
    begun, ended = asyncio.Event(), asyncio.Event()

    async def stay() -> None:
        async with sqlite_database.transaction() as transaction:
            await transaction.execute(ADD, {"id": "stays"})
            begun.set()
            await ended.wait()
            await transaction.execute(ADD, {"id": "late"})

    task = asyncio.create_task(stay())
    await begun.wait()
    await add(sqlite_database, "other")
    ended.set()
    with pytest.raises(StoreUnavailable, match="a transaction took longer"):
        await task
    assert await ids(sqlite_database) == ["other"]


async def test_many_transactions_share_commits(sqlite_database: Database) -> None:
    counts: list[str] = []
    writer: Any = sqlite_database._writer  # type: ignore[attr-defined]
    await writer.call(
        lambda connection: connection.connection.driver_connection.set_trace_callback(counts.append)
    )
    await asyncio.gather(*(add(sqlite_database, str(number)) for number in range(200)))
    await writer.call(lambda connection: connection.connection.driver_connection.set_trace_callback(None))
    assert len(await ids(sqlite_database)) == 200
    assert counts.count("COMMIT") <= 20
