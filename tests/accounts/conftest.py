"""Databases for these tests."""

from tests.redis_server import redis_server
from tests.storage_servers import database, postgres_database, postgres_server, sqlite_database

__all__ = ["database", "postgres_database", "postgres_server", "redis_server", "sqlite_database"]
