"""Databases for these tests."""

from tests.storage_servers import database, postgres_database, postgres_server, sqlite_database

__all__ = ["database", "postgres_database", "postgres_server", "sqlite_database"]
