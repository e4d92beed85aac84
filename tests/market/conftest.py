"""Databases for these tests."""

from tests.accounts.conftest import postgres_database, shared_postgres_name
from tests.storage_servers import database, postgres_server, sqlite_database

__all__ = ["database", "postgres_database", "postgres_server", "shared_postgres_name", "sqlite_database"]
