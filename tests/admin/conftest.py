"""A database, and the program that works on it."""

from tests.redis_server import redis_server
from tests.storage_servers import postgres_server

__all__ = ["postgres_server", "redis_server"]
