"""Databases for these tests, and the addresses of accounts on one."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.base.clock import FakeClock
from appliance.storage.database import Database
from tests.accounts.conftest import postgres_database, shared_postgres_name
from tests.accounts.parts import identity_on, settings_of
from tests.front.accounts.api import AccountsApi, build_api
from tests.storage_servers import database, postgres_server, sqlite_database

__all__ = ["database", "postgres_database", "postgres_server", "shared_postgres_name", "sqlite_database"]


@pytest.fixture
async def api(sqlite_database: Database, tmp_path: Path) -> AsyncIterator[AccountsApi]:
    """All addresses of accounts on SQLite; registration is open, the time moves only when it is advanced."""
    async with identity_on(sqlite_database, tmp_path, clock=FakeClock()) as identity:
        yield build_api(identity, settings_of())


@pytest.fixture
async def api_on_both(database: Database, tmp_path: Path) -> AsyncIterator[AccountsApi]:
    """The same, once on SQLite and once on PostgreSQL."""
    async with identity_on(database, tmp_path, clock=FakeClock()) as identity:
        yield build_api(identity, settings_of())
