"""Migrations: both databases get the tables of storage.schema, all or nothing, after a copy; never by the server."""

import asyncio
import io
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from appliance.storage import migrate as migrate_module
from appliance.storage.database import ConstraintViolated, Database, StoreRefused
from appliance.storage.migrate import FOLDER, migrate, migrate_sqlite
from appliance.storage.revisions import (
    HIGHEST,
    LOWEST,
    NEWEST,
    problem_of,
    read_sqlite_revision,
    revision_name,
)
from appliance.storage.schema import metadata
from appliance.storage.settings import StorageSettings
from tests.storage_servers import USER, PostgresServer, make_sqlite, opened, postgres_name

SQLITE_SHAPE = (
    "SELECT type, name, sql FROM sqlite_schema WHERE type IN ('table', 'index') AND name NOT LIKE '%alembic%'"
)
POSTGRES_SHAPE = """
SELECT c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull || ' '
       || coalesce(pg_get_expr(d.adbin, d.adrelid), '') AS line
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
  LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
 WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND c.relname <> 'alembic_version'
UNION ALL
SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
 WHERE connamespace = 'public'::regnamespace AND contype <> 't' AND conrelid::regclass::text <> 'alembic_version'
UNION ALL
SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'
"""


def shape_of_file(path: Path) -> dict[tuple[str, str], str]:
    with closing(sqlite3.connect(path)) as connection:
        return {
            (kind, name): " ".join((sql or "").split())
            for kind, name, sql in connection.execute(SQLITE_SHAPE)
        }


def test_sqlite_gets_the_tables_of_the_schema(tmp_path: Path) -> None:
    make_sqlite(tmp_path / "migrated.db")
    engine = create_engine(f"sqlite:///{tmp_path / 'made.db'}")
    metadata.create_all(engine)
    engine.dispose()
    migrated, made = shape_of_file(tmp_path / "migrated.db"), shape_of_file(tmp_path / "made.db")
    assert migrated == made
    assert {name for kind, name in made if kind == "table"} >= set(metadata.tables)
    assert all(
        sql.endswith("STRICT")
        for (kind, name), sql in made.items()
        if kind == "table" and name in metadata.tables
    )


async def test_postgres_gets_the_tables_of_the_schema(postgres_server: PostgresServer) -> None:
    async with postgres_name(postgres_server) as name:
        migrated = {row[0] for row in await postgres_server.sql(POSTGRES_SHAPE, name)}
        await postgres_server.sql("DROP SCHEMA public CASCADE", name)
        await postgres_server.sql("CREATE SCHEMA public", name)
        engine = create_async_engine(f"postgresql+asyncpg://{USER}@/{name}?host={postgres_server.folder}")
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        await engine.dispose()
        made = {row[0] for row in await postgres_server.sql(POSTGRES_SHAPE, name)}
    assert migrated == made
    assert len(made) > 150


def test_the_code_states_the_newest_revision() -> None:
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.set_main_option("version_locations", str(FOLDER))
    config.set_main_option("path_separator", "newline")
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [revision_name(NEWEST)]
    assert LOWEST <= NEWEST <= HIGHEST


@pytest.mark.parametrize(
    ("revision", "words"),
    [
        (None, "no tables yet: run `appliance migrate`"),
        (LOWEST - 1, "is needed: run `appliance migrate`"),
        (LOWEST, ""),
        (NEWEST, ""),
        (HIGHEST, ""),
        (HIGHEST + 1, "use a newer one"),
    ],
)
def test_which_revisions_can_be_used(revision: int | None, words: str) -> None:
    problem = problem_of(revision)
    assert words in problem
    assert bool(words) == bool(problem)


# ---- rows that are never changed


async def post(database: Database, *amounts: int) -> None:
    async with database.transaction() as transaction:
        await transaction.execute("INSERT INTO ledger_tx(id, kind, ref, at) VALUES ('t', 'grant', 'r', 1)")
        for number, amount in enumerate(amounts):
            await transaction.execute(
                "INSERT INTO ledger_postings(tx_id, n, account, amount_musd) VALUES ('t', :n, :account, :amount)",
                {"n": number, "account": f"a{number}", "amount": amount},
            )


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_tx SET note = 'x'",
        "UPDATE ledger_postings SET amount_musd = 5",
        "DELETE FROM ledger_postings",
        "DELETE FROM ledger_tx",
        "UPDATE usage SET charged_musd = 0",
        "UPDATE audit SET action = 'other'",
    ],
)
async def test_rows_of_the_ledger_are_never_changed(database: Database, statement: str) -> None:
    await post(database, 7, -7)
    async with database.transaction() as transaction:
        await transaction.execute("INSERT INTO usage(attempt_id, at, wallet_id) VALUES ('a', 1, 'w')")
        await transaction.execute(
            "INSERT INTO audit(id, at, actor_kind, action) VALUES ('i', 1, 'user', 'x')"
        )
    with pytest.raises(ConstraintViolated, match="never changed"):
        async with database.transaction() as transaction:
            await transaction.execute(statement)
    async with database.transaction() as transaction:
        rows = await transaction.execute("SELECT amount_musd FROM ledger_postings ORDER BY n")
        await transaction.execute("DELETE FROM usage")
    assert [row.amount_musd for row in rows] == [7, -7]


async def test_the_same_entry_is_made_once(database: Database) -> None:
    await post(database, 7, -7)
    with pytest.raises(ConstraintViolated) as caught:
        async with database.transaction() as transaction:
            await transaction.execute(
                "INSERT INTO ledger_tx(id, kind, ref, at) VALUES ('t2', 'grant', 'r', 1)"
            )
    assert caught.value.is_duplicate


async def test_postgres_refuses_postings_that_do_not_add_up(postgres_database: Database) -> None:
    with pytest.raises(ConstraintViolated, match="do not add up to 0") as caught:
        await post(postgres_database, 7, -6)
    assert caught.value.name == "ledger_postings_sum"
    async with postgres_database.transaction() as transaction:
        assert await transaction.execute("SELECT 1 FROM ledger_tx") == []


async def test_postgres_does_not_empty_the_ledger(postgres_database: Database) -> None:
    await post(postgres_database, 7, -7)
    with pytest.raises(ConstraintViolated, match="never changed"):
        async with postgres_database.transaction() as transaction:
            await transaction.execute("TRUNCATE ledger_postings, ledger_tx")


# ---- at start


async def test_a_missing_file_is_made_at_start(tmp_path: Path) -> None:
    async with opened(StorageSettings(), tmp_path / "state") as database:
        assert database.is_up
    path = tmp_path / "state/gpuproxy.db"
    assert read_sqlite_revision(path) == NEWEST
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}


async def test_an_old_file_is_copied_and_migrated_at_start(tmp_path: Path) -> None:
    path = tmp_path / "gpuproxy.db"
    migrate_sqlite(path, to=1, output=io.StringIO())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "INSERT INTO users(id, email, password_hash, created_at, updated_at) VALUES ('u', 'e', '', 1, 1)"
        )
        connection.commit()
    async with opened(StorageSettings(), tmp_path) as database, database.transaction() as transaction:
        assert [row.id for row in await transaction.execute("SELECT id FROM users")] == ["u"]
    copy = tmp_path / f"gpuproxy.db.before-{revision_name(NEWEST)}"
    assert (read_sqlite_revision(copy), read_sqlite_revision(path)) == (1, NEWEST)
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT id FROM users").fetchall() == [("u",)]


async def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    make_sqlite(tmp_path / "gpuproxy.db")
    with closing(sqlite3.connect(tmp_path / "gpuproxy.db")) as connection:
        connection.execute(f"UPDATE alembic_version SET version_num = '{HIGHEST + 1:04}'")
        connection.commit()
    with pytest.raises(StoreRefused, match="use a newer one"):
        async with opened(StorageSettings(), tmp_path):
            pass


async def test_postgres_with_pending_revisions_is_refused(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    async with postgres_name(postgres_server) as name:
        await postgres_server.sql("UPDATE alembic_version SET version_num = '0001'", name)
        with pytest.raises(StoreRefused, match=f"{revision_name(NEWEST)} is needed: run `appliance migrate`"):
            async with opened(postgres_server.settings(name), tmp_path):
                pass
        await postgres_server.sql("DROP TABLE alembic_version", name)
        with pytest.raises(StoreRefused, match="no tables yet: run `appliance migrate`"):
            async with opened(postgres_server.settings(name), tmp_path):
                pass


def test_tables_of_another_program_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "gpuproxy.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE users(id TEXT)")
    before = path.read_bytes()
    with pytest.raises(StoreRefused, match=r"did not make \(users\).*set DB_NAME"):
        migrate_sqlite(path, output=io.StringIO())
    assert path.read_bytes() == before


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gpuproxy.db"
    migrate_sqlite(path, to=1, output=io.StringIO())
    before = shape_of_file(path)
    folder = tmp_path / "migrations"
    folder.mkdir()
    for file in FOLDER.glob("r*.py"):
        (folder / file.name).write_text(file.read_text())
    with (folder / "r0002_money.py").open("a") as file:
        file.write("    op.execute('SELECT * FROM no_such_table')\n")
    monkeypatch.setattr(migrate_module, "FOLDER", folder)
    with pytest.raises(Exception, match="no_such_table"):
        migrate_sqlite(path, output=io.StringIO())
    assert shape_of_file(path) == before
    assert read_sqlite_revision(path) == 1


# ---- the verb


def verb(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "appliance", "migrate", *arguments],
        env={"PATH": os.environ["PATH"], **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_verb_says_what_it_did(tmp_path: Path) -> None:
    state = {"STATE_DIR": str(tmp_path)}
    dry = verb("--dry-run", **state)
    assert dry.returncode == 0
    assert "CREATE TABLE wallets" in dry.stdout
    assert not (tmp_path / "gpuproxy.db").exists()
    first, second = verb("--to", "1", **state), verb(**state)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "from no tables to revision 0001" in first.stdout
    assert f"from revision 0001 to revision {revision_name(NEWEST)}" in second.stdout
    assert "nothing to do" in verb(**state).stdout
    assert "is never taken back to 0001" in verb("--to", "1", **state).stdout
    assert verb("--to", "9", **state).returncode == 2


async def test_the_dry_run_of_postgres_prints_what_migrates_it(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    name = f"dry_{os.getpid()}"
    await postgres_server.sql(f"CREATE DATABASE {name}")
    try:
        environ = {"STATE_DIR": str(tmp_path), **postgres_server.environ(name)}
        dry = await asyncio.to_thread(verb, "--dry-run", **environ)
        assert dry.returncode == 0, dry.stderr
        assert await postgres_server.sql(POSTGRES_SHAPE, name) == []
        import asyncpg

        connection: Any = await asyncpg.connect(host=str(postgres_server.folder), user=USER, database=name)
        await connection.execute(dry.stdout)
        await connection.close()
        again = await asyncio.to_thread(verb, **environ)
        assert "nothing to do" in again.stdout
    finally:
        await postgres_server.sql(f"DROP DATABASE {name} WITH (FORCE)")


async def test_two_at_once_migrate_postgres_once(postgres_server: PostgresServer, tmp_path: Path) -> None:
    name = f"twice_{os.getpid()}"
    await postgres_server.sql(f"CREATE DATABASE {name}")
    try:
        said = [io.StringIO(), io.StringIO()]
        await asyncio.gather(
            *(
                asyncio.to_thread(migrate, postgres_server.settings(name), tmp_path, output=text)
                for text in said
            )
        )
        texts = sorted(text.getvalue() for text in said)
        assert [("Migrated" in text, "nothing to do" in text) for text in texts] == [
            (True, False),
            (False, True),
        ]
    finally:
        await postgres_server.sql(f"DROP DATABASE {name} WITH (FORCE)")


async def test_the_verb_refuses_a_file_that_is_in_use(tmp_path: Path) -> None:
    async with opened(StorageSettings(), tmp_path):
        done = await asyncio.to_thread(verb, STATE_DIR=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("appliance migrate: Another process uses the database")


def test_the_verb_names_a_server_that_is_not_there(tmp_path: Path) -> None:
    done = verb(STATE_DIR=str(tmp_path), DB_HOST=str(tmp_path), DB_PASSWORD="p4ss-that-is-hidden")
    assert done.returncode == 1
    assert "No such file or directory" in done.stderr
    assert "p4ss" not in done.stderr + done.stdout
