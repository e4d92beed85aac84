"""Databases for these tests, and the addresses of accounts on one."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.base.clock import FakeClock
from appliance.storage.database import Database
from tests.accounts.parts import identity_on, settings_of
from tests.front.accounts.api import AccountsApi, build_api
from tests.storage_servers import sqlite_database

__all__ = ["sqlite_database"]


@pytest.fixture
async def api(sqlite_database: Database, tmp_path: Path) -> AsyncIterator[AccountsApi]:
    """All addresses of accounts on SQLite; registration is open, the time moves only when it is advanced."""
    async with identity_on(sqlite_database, tmp_path, clock=FakeClock()) as identity:
        yield build_api(identity, settings_of())
