"""From settings to a database, which is not opened yet."""

import asyncio
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.base.clock import Clock
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.storage.database import Database, StoreRefused, StoreUnavailable
from appliance.storage.revisions import NEWEST, check_revision, read_sqlite_revision
from appliance.storage.settings import POSTGRES_NAME, StorageSettings

if TYPE_CHECKING:
    from appliance.storage.postgres import PostgresAddress

log = get_logger("storage")
MIGRATION_S = 600.0


def build_database(
    settings: StorageSettings,
    state_dir: Path,
    *,
    tasks: Tasks,
    clock: Clock,
    on_change: Callable[[bool], None] | None = None,
) -> Database:
    """Build the database of the settings; `await database.open()` uses it for the first time.

    Args:
        settings: DB_*.
        state_dir: STATE_DIR, the folder of SQLite's file.
        tasks: What runs in the background.
        clock: The time.
        on_change: Called with True and False when it comes up or goes down.
    """
    if settings.db_kind == "sqlite":  # either loads what the other does not need
        from appliance.storage.sqlite import SqliteDatabase

        return SqliteDatabase(
            settings.sqlite_path(state_dir),
            statement_timeout_s=settings.db_statement_timeout,
            migrate=migrate_if_pending,
            check=check_revision,
            tasks=tasks,
            on_change=on_change,
        )
    from appliance.storage.postgres import PostgresDatabase
    from appliance.storage.postgres_pool import PoolRules

    return PostgresDatabase(
        postgres_address(settings),
        PoolRules(
            most=settings.db_max_conns,
            fewest=settings.db_min_conns,
            lifetime_s=settings.db_max_conn_lifetime,
            idle_s=settings.db_max_conn_idle_time,
            check_s=settings.db_health_check_period,
        ),
        connect_timeout_s=settings.db_connect_timeout,
        statement_timeout_s=settings.db_statement_timeout,
        check=check_revision,
        tasks=tasks,
        clock=clock,
        on_change=on_change,
    )


def postgres_address(settings: StorageSettings) -> "PostgresAddress":
    """Return where PostgreSQL is, and how it is reached."""
    from appliance.storage.postgres import PostgresAddress

    is_pooled = settings.db_use_pgbouncer
    return PostgresAddress(
        host=settings.db_host,
        port=settings.db_port,
        user=settings.db_user,
        password=settings.db_password,
        name=settings.db_name or POSTGRES_NAME,
        ssl_mode=settings.db_sslmode,
        authority=settings.db_sslrootcert,
        has_session=not is_pooled or settings.db_pgbouncer_pool_mode == "session",
        has_prepared=not is_pooled,
    )


async def migrate_if_pending(path: Path) -> None:
    """Bring SQLite's file to the newest revision, in a process of its own: Alembic stays out of this one.

    Args:
        path: The file; a missing one is made.

    Raises:
        StoreRefused: It cannot be migrated.
        StoreUnavailable: It could not be written.
    """
    try:
        revision = await asyncio.to_thread(read_sqlite_revision, path)
    except (OSError, sqlite3.Error):  # the first use of it says what is wrong
        return
    if revision is not None and revision >= NEWEST:
        return
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "appliance.storage.migrate",
        str(path),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(MIGRATION_S):
            _, errors = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    words = errors.decode(errors="replace").strip()
    if process.returncode == os.EX_TEMPFAIL:
        raise StoreUnavailable(words[-500:])
    if process.returncode:
        raise StoreRefused(f"{path} could not be migrated: {words[-500:]}")
    log.info("store_migrated", database="sqlite", said=words[-500:])
