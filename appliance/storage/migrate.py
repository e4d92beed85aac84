"""`appliance migrate`: bring the tables to a revision. This module alone loads Alembic, in its own process.

    appliance migrate [--dry-run] [--to N]
    python -m appliance.storage.migrate FILE        what a serving process runs for its own SQLite file

1. SQLite: `store.lock` is held meanwhile; before its tables change, the file is copied (`.before-REVISION`)
2. PostgreSQL: one transaction, under an advisory lock, so that replicas cannot migrate at the same time
3. either way all revisions are applied or none
"""

import asyncio
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

import asyncpg
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from appliance.storage.database import StoreRefused, StoreUnavailable
from appliance.storage.open import postgres_address
from appliance.storage.postgres import PostgresAddress, build_engine, describe_failure
from appliance.storage.revisions import NEWEST, TABLE, revision_name
from appliance.storage.schema import metadata
from appliance.storage.settings import StorageSettings
from appliance.storage.sqlite import lock_store

FOLDER = Path(__file__).parent / "migrations"
LOCK = 0x6170706C  # of PostgreSQL's advisory locks, ours by this number
MODE = 0o600
BUSY_S = 10.0


def migrate(
    settings: StorageSettings, state_dir: Path, *, to: int = NEWEST, is_dry: bool = False, output: TextIO
) -> None:
    """Bring the database of the settings to a revision.

    Args:
        settings: DB_*.
        state_dir: STATE_DIR.
        to: The revision.
        is_dry: Write the SQL to `output`; nothing is changed.
        output: For people.

    Raises:
        StoreRefused: The database cannot be migrated; says what to do.
        StoreUnavailable: It cannot be reached.
    """
    if settings.db_kind == "sqlite":
        migrate_sqlite(settings.sqlite_path(state_dir), to=to, is_dry=is_dry, output=output)
    else:
        asyncio.run(_migrate_postgres(postgres_address(settings), to, is_dry, output))


def migrate_sqlite(path: Path, *, to: int = NEWEST, is_dry: bool = False, output: TextIO) -> None:
    """Bring a file to a revision; a missing one is made. See migrate."""
    lock = lock_store(path)
    try:
        engine = create_engine("sqlite://", creator=lambda: _open_file(path, is_dry), poolclass=NullPool)
        try:
            with engine.connect() as connection:
                revision = _find_revision(connection)
                if revision is not None and revision < to and not is_dry:
                    _copy(path, revision_name(to), output)
                with _sqlite_transaction(connection, is_dry):
                    _apply(connection, revision, to, is_dry, output, str(path))
        finally:
            engine.dispose()
    except (sqlite3.Error, SQLAlchemyError, OSError) as exc:
        reason = str(getattr(exc, "orig", None) or exc)
        raise StoreUnavailable(f"{path}: {reason}") from exc
    finally:
        os.close(lock)


def _open_file(path: Path, is_dry: bool) -> sqlite3.Connection:
    if is_dry and not path.exists():
        return sqlite3.connect(":memory:", isolation_level=None)
    if not is_dry:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE))
    mode = "ro" if is_dry else "rw"
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=BUSY_S, isolation_level=None
    )


@contextmanager
def _sqlite_transaction(connection: Connection, is_dry: bool) -> Iterator[None]:
    connection.exec_driver_sql("BEGIN" if is_dry else "BEGIN EXCLUSIVE")
    try:
        yield
        connection.exec_driver_sql("COMMIT")
    finally:
        raw: Any = connection.connection.driver_connection
        if raw.in_transaction:
            connection.exec_driver_sql("ROLLBACK")


def _copy(path: Path, name: str, output: TextIO) -> None:
    """Copy a file that is in use, by SQLite's backup; the copy is there whole or not at all."""
    copy = path.with_name(f"{path.name}.before-{name}")
    partial = copy.with_name(f".{copy.name}.new")
    os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, MODE))
    try:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(partial)) as target:
            source.backup(target)
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.replace(copy)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    print(f"Copied the database to {copy}.", file=output)


async def _migrate_postgres(address: PostgresAddress, to: int, is_dry: bool, output: TextIO) -> None:
    engine = build_engine(address, connect_timeout_s=10, statement_timeout_s=None)
    try:
        async with engine.begin() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            await connection.run_sync(
                lambda one: _apply(one, _find_revision(one), to, is_dry, output, str(address))
            )
    except (OSError, TimeoutError) as exc:
        raise StoreUnavailable(f"{address}: {describe_failure(exc)}") from exc
    except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        raise StoreRefused(f"{address}: {describe_failure(exc)}") from exc
    finally:
        await engine.dispose()


def _find_revision(connection: Connection) -> int | None:
    """Return the revision of the tables; None = there are none.

    Raises:
        StoreRefused: There are tables of another program.
    """
    tables = set(inspect(connection).get_table_names())
    if TABLE in tables:
        value = connection.exec_driver_sql(f"SELECT version_num FROM {TABLE}").scalar()  # noqa: S608 - ours
        if value is not None:
            return int(value)
    if clash := sorted(tables & set(metadata.tables)):
        raise StoreRefused(
            f"The database has tables that the appliance did not make ({', '.join(clash)}). Give it a "
            "database of its own: set DB_NAME to another one"
        )
    return None


def _apply(
    connection: Connection, revision: int | None, to: int, is_dry: bool, output: TextIO, name: str
) -> None:
    """Apply what is missing, in the transaction that is open."""
    if revision is not None and revision >= to:
        more = "" if revision == to else f"; a database is never taken back to {revision_name(to)}"
        print(f"{name} is at revision {revision_name(revision)}{more}: nothing to do.", file=output)
        return
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("version_locations", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    scripts = ScriptDirectory.from_config(config)
    start, end = (revision_name(revision) if revision else None), revision_name(to)
    environment = EnvironmentContext(
        config,
        scripts,
        fn=lambda current, _: scripts._upgrade_revs(end, cast(str, start if is_dry else current)),
        as_sql=is_dry,
        starting_rev=start if is_dry else None,
        destination_rev=end,
    )
    with environment:
        if is_dry:
            environment.configure(
                dialect_name=connection.dialect.name, output_buffer=output, target_metadata=metadata
            )
        else:
            environment.configure(connection=connection, target_metadata=metadata)
        environment.run_migrations()
    if not is_dry:
        before = "no tables" if revision is None else f"revision {revision_name(revision)}"
        print(f"Migrated {name} from {before} to revision {end}.", file=output)


def main(arguments: list[str]) -> int:
    """Migrate a SQLite file, for a serving process; return the exit code: 75 = it may work later."""
    try:
        migrate_sqlite(Path(arguments[0]), output=sys.stderr)
    except StoreUnavailable as exc:
        sys.stderr.write(f"{exc.reason}\n")
        return os.EX_TEMPFAIL
    except StoreRefused as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
