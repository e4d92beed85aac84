"""The index of blocks in Redis, that routers read to find the engine that has a prompt's beginning already.

    matrix:kv:block:<model>@<standard hash>      hash: pod → seconds since 1970 at which that was written
    vllm:kv:block:<pod>@<engine's hash>          the standard hash; lives TTL_S, and is what a pod's entries are found by

Nothing is imported or contacted before the first write. Every failure is IndexDown, with a sentence; when to try again is the caller's.
Source: system E (keys and values; SGLang's blocks lie under the same names).
"""

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from appliance.engines.kv.blocks import BlockChanges, Blocks
from appliance.engines.kv.events import EngineHash

if TYPE_CHECKING:
    from redis.asyncio import Redis

TTL_S = 86_400
CONNECT_S, ANSWER_S = 3.0, 5.0
SCAN_KEYS = 1000
PIECE = 500  # blocks told to Redis at a time
_GLOB = re.compile(r"([\\*?\[\]^-])")


class IndexDown(Exception):
    """Redis cannot be reached, refuses us, or failed; the text says which, without a secret."""


@dataclass(frozen=True, slots=True)
class IndexKey:
    """Which Redis. db: its number; has_tls: with a certificate that this machine trusts."""

    host: str
    port: int = 6379
    db: int = 0
    password: SecretStr = field(default_factory=lambda: SecretStr(""))
    has_tls: bool = False

    def __str__(self) -> str:
        return f"{'rediss' if self.has_tls else 'redis'}://{self.host}:{self.port}/{self.db}"


class Index:
    """The entries of one pod and one model."""

    def __init__(self, slot: IndexKey, *, pod: str, model: str) -> None:
        self.slot, self._pod, self._model = slot, pod, model
        self._redis: Redis | None = None
        self._failures: tuple[type[Exception], ...] = (OSError,)

    async def write(self, changes: BlockChanges, now_s: float) -> None:
        """Tell what changed, in one exchange.

        Raises  IndexDown
        """
        at = str(int(now_s))
        steps: list[tuple[Any, ...]] = [
            ("HDEL", self._key(str(standard)), self._pod) for standard in changes.gone_standard
        ]
        if changes.gone:
            steps.append(("DEL", *map(self._mapping, changes.gone)))
        for engine_hash, standard in changes.there:
            steps += [
                ("HSET", self._key(str(standard)), self._pod, at),
                ("SET", self._mapping(engine_hash), str(standard), "EX", TTL_S),
            ]
        await self._send(steps)

    async def renew(self, blocks: Blocks, now_s: float) -> None:
        """Bring all of the pod's entries to what `blocks` says, whatever was written before, by this process or a former one.

        1. what is found and is not there any more goes   2. what is there is written

        Raises  IndexDown
        """
        pieces = blocks.all(PIECE)  # from here on changes are kept for the next write
        await self._sweep(blocks)  # 1
        for piece in pieces:  # 2
            await self.write(piece, now_s)

    async def remove_all(self) -> None:
        """Remove every entry of the pod.

        Raises  IndexDown
        """
        await self._sweep(Blocks(most=0))

    async def close(self) -> None:
        redis, self._redis = self._redis, None
        if redis is not None:
            await redis.aclose()

    async def _sweep(self, blocks: Blocks) -> None:
        """Remove the pod's entries that `blocks` has not."""
        prefix = self._mapping("")
        pattern = _GLOB.sub(r"\\\1", prefix) + "*"
        cursor = 0
        while True:
            ((cursor, keys),) = await self._send([("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_KEYS)])
            texts = [key.decode("utf-8", "replace") for key in keys]
            stale = [
                text
                for text in texts
                if "@" not in text[len(prefix) :] and _hash_of(text[len(prefix) :]) not in blocks
            ]
            if stale:
                await self._remove(stale, blocks)
            if not int(cursor):
                return

    async def _remove(self, mappings: list[str], blocks: Blocks) -> None:
        (standards,) = await self._send([("MGET", *mappings)])
        texts = [value.decode("utf-8", "replace") for value in standards if value]
        gone = [text for text in texts if not (text.isdecimal() and blocks.has_standard(int(text)))]
        await self._send([*(("HDEL", self._key(text), self._pod) for text in gone), ("DEL", *mappings)])

    def _key(self, standard: str) -> str:
        return f"matrix:kv:block:{self._model}@{standard}"

    def _mapping(self, engine_hash: EngineHash) -> str:
        return f"vllm:kv:block:{self._pod}@{engine_hash}"

    async def _send(self, steps: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Send commands together; give their answers."""
        redis = self._redis or await self._opened()
        try:
            async with redis.pipeline(transaction=False) as pipe:
                for step in steps:
                    pipe.execute_command(*step)
                answers: list[Any] = await pipe.execute()
                return answers
        except self._failures as exc:
            raise IndexDown(f"{self.slot}: {str(exc)[:300] or type(exc).__name__}") from None

    async def _opened(self) -> "Redis":
        """Give the client. It is imported in a thread, since that takes a tenth of a second."""
        await asyncio.to_thread(import_module, "redis.asyncio")
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError

        self._failures = (OSError, RedisError)
        slot = self.slot
        self._redis = Redis(
            host=slot.host,
            port=slot.port,
            db=slot.db,
            password=slot.password.get_secret_value() or None,
            ssl=slot.has_tls,
            socket_connect_timeout=CONNECT_S,
            socket_timeout=ANSWER_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            max_connections=2,
        )
        return self._redis


def _hash_of(text: str) -> EngineHash:
    """Read an engine's hash as it stands in a key."""
    try:
        return int(text)
    except ValueError:
        return text
