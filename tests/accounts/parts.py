"""Builds the parts that know who calls on a test's database, and a Redis for them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from appliance.accounts.audit_log import Author
from appliance.accounts.identity import Identity, build_identity
from appliance.accounts.settings import AccountSettings
from appliance.base.clock import Clock, FakeClock, SystemClock
from appliance.base.errors import Forbidden
from appliance.base.tasks import Tasks
from appliance.storage.database import Database
from appliance.storage.redis_store import RedisStore, build_redis
from appliance.storage.settings import StorageSettings

SECRET = "an-old-secret-of-tests-which-is-long-enough-0123456789-abcdefghij"
PASSWORD = "correct horse battery"
AUTHOR = Author("command")


def only_loopback(headers: dict[str, str], peer: str) -> None:
    if peer != "127.0.0.1":
        raise Forbidden("Without OPERATOR_API_KEYS this address is for this machine.", code="operator_only")


def settings_of(**more: Any) -> AccountSettings:
    return AccountSettings(**({"accounts": True, "jwt_secret": SECRET, "registration": "open"} | more))


@asynccontextmanager
async def identity_on(
    database: Database,
    folder: Path,
    *,
    clock: Clock | None = None,
    is_started: bool = True,
    redis: RedisStore | None = None,
    **settings: Any,
) -> AsyncIterator[Identity]:
    async with Tasks() as tasks:
        identity = build_identity(
            settings_of(**settings),
            database,
            state_dir=folder,
            clock=clock or SystemClock(),
            tasks=tasks,
            check_loopback=only_loopback,
            redis=redis,
        )
        identity.callers.apply(client_keys=(), operator_keys=(), stay_local_keys=())
        if is_started:
            await identity.start()
        try:
            yield identity
        finally:
            identity.passwords.close()


async def eventually(condition: Callable[[], bool], within_s: float = 5.0) -> float:
    """Wait until something holds; return after how many seconds."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    while not condition():
        assert loop.time() - began_s < within_s, f"not within {within_s} s"
        await asyncio.sleep(0.01)
    return loop.time() - began_s


@asynccontextmanager
async def redis_at(port: int) -> AsyncIterator[RedisStore]:
    """A real Redis, as accounts use it."""
    async with Tasks() as tasks:
        one = build_redis(StorageSettings(redis_host="127.0.0.1", redis_port=port), tasks=tasks)
        assert one is not None
        await one.open()
        try:
            yield one
        finally:
            await one.close()


__all__ = [
    "AUTHOR",
    "PASSWORD",
    "SECRET",
    "FakeClock",
    "eventually",
    "identity_on",
    "redis_at",
    "settings_of",
]
