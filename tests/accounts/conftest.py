"""Databases for these tests: PostgreSQL's is made once and emptied for each test, which is faster than a new one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from appliance.storage.database import Database
from tests.redis_server import redis_server
from tests.storage_servers import (
    TEMPLATE,
    PostgresServer,
    database,
    opened,
    postgres_server,
    sqlite_database,
)

__all__ = ["database", "postgres_database", "postgres_server", "redis_server", "sqlite_database"]
EMPTY = """DO $$ DECLARE one text; BEGIN
  SET LOCAL session_replication_role = replica;  -- the ledger's triggers refuse it
  FOR one IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename NOT LIKE 'alembic%' LOOP
    EXECUTE 'DELETE FROM ' || quote_ident(one);
  END LOOP;
END $$"""


@pytest.fixture(scope="session")
def shared_postgres_name(postgres_server: PostgresServer) -> str:
    """The name of one database with all tables, for all tests of this process; it goes with the server."""
    asyncio.run(postgres_server.sql(f"CREATE DATABASE shared TEMPLATE {TEMPLATE}"))
    return "shared"


@asynccontextmanager
async def emptied(server: PostgresServer, name: str, folder: Path) -> AsyncIterator[Database]:
    """Open the shared database, and empty it first."""
    await server.sql(EMPTY, name)
    async with opened(server.settings(name), folder) as one:
        yield one


@pytest.fixture
async def postgres_database(
    postgres_server: PostgresServer, shared_postgres_name: str, tmp_path: Path
) -> AsyncIterator[Database]:
    """PostgreSQL, opened, with all tables, empty."""
    async with emptied(postgres_server, shared_postgres_name, tmp_path) as one:
        yield one
