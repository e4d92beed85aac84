"""Connections to Redis. Its library is loaded at the first use, in a thread: that takes some time."""

import asyncio
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

if TYPE_CHECKING:
    from redis.asyncio import Redis


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Which Redis.

    Attributes:
        db: Its number.
        has_tls: Connect with TLS; the certificate must be trusted by this machine.
    """

    host: str
    port: int = 6379
    db: int = 0
    password: SecretStr = field(default_factory=lambda: SecretStr(""))
    has_tls: bool = False

    def __str__(self) -> str:
        return f"{'rediss' if self.has_tls else 'redis'}://{self.host}:{self.port}/{self.db}"


async def open_redis(
    address: RedisAddress, *, connect_timeout_s: float, reply_timeout_s: float, max_connections: int
) -> "Redis":
    """Return a client that connects when it is used, tries nothing twice, and answers in bytes.

    Args:
        address: Which Redis.
        connect_timeout_s: Longest wait for a connection, in seconds.
        reply_timeout_s: Longest wait for a reply, in seconds.
        max_connections: At a time; callers wait for a free one, as long as for a connection.
    """
    await asyncio.to_thread(import_module, "redis.asyncio")
    from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    options: dict[str, Any] = {"connection_class": SSLConnection} if address.has_tls else {}
    pool = BlockingConnectionPool(
        max_connections=max_connections,
        timeout=connect_timeout_s,
        host=address.host,
        port=address.port,
        db=address.db,
        password=address.password.get_secret_value() or None,
        socket_connect_timeout=connect_timeout_s,
        socket_timeout=reply_timeout_s,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        **options,
    )
    return Redis.from_pool(pool)


def redis_failures() -> tuple[type[Exception], ...]:
    """Return what a client raises when Redis cannot be reached, refuses, or fails; the library is loaded."""
    from redis.exceptions import RedisError

    return OSError, TimeoutError, RedisError
