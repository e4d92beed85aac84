"""Builds the parts that know who calls on a test's database, and a Redis for them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import redis.asyncio as aioredis

from appliance.accounts.audit_log import Author
from appliance.accounts.identity import Identity, build_identity
from appliance.accounts.settings import AccountSettings
from appliance.base.clock import Clock, FakeClock, SystemClock
from appliance.base.errors import Forbidden
from appliance.base.tasks import Tasks
from appliance.storage.database import Database

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
    redis: "RedisOfTest | None" = None,
    replicas: Callable[[], int] = lambda: 1,
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
            replicas=replicas,
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


class RedisOfTest:
    """A real Redis, as accounts use it."""

    def __init__(self, port: int) -> None:
        self._client = aioredis.Redis(
            host="127.0.0.1", port=port, socket_timeout=2, socket_connect_timeout=2, retry=None
        )

    async def execute(self, *command: str | bytes | int) -> Any:
        return await self._client.execute_command(*command)

    async def pipeline(self, commands: Sequence[tuple[str | bytes | int, ...]]) -> list[Any]:
        pipe = self._client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        return list(await pipe.execute())

    async def listen(self, channel: str, callback: Callable[[], None]) -> None:
        async with self._client.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe(channel)
            callback()
            while True:
                if await pubsub.get_message(timeout=1) is not None:
                    callback()

    async def close(self) -> None:
        await self._client.aclose()


__all__ = [
    "AUTHOR",
    "PASSWORD",
    "SECRET",
    "FakeClock",
    "RedisOfTest",
    "eventually",
    "identity_on",
    "settings_of",
]
