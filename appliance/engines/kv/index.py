"""The index of blocks in Redis, in which routers find the engine that has the prefix of a prompt cached.

    matrix:kv:block:<model>@<standard hash>      hash: pod → seconds since 1970 at which that was written
    vllm:kv:block:<pod>@<engine's hash>          the standard hash; expires after TTL_S; a pod's entries are
                                                 found by these keys

Nothing is imported or contacted before the first write. Every failure is IndexUnavailable; when to try again
is the caller's decision.

Source:
    For keys and values, see docs/compatibility.md (SGLang's blocks have the same names).
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from appliance.base.redis_client import RedisAddress, open_redis, redis_failures
from appliance.engines.kv.blocks import BlockChanges, Blocks
from appliance.engines.kv.events import EngineHash

if TYPE_CHECKING:
    from redis.asyncio import Redis

TTL_S = 86_400
CONNECT_TIMEOUT_S, REPLY_TIMEOUT_S = 3.0, 5.0
SCAN_KEYS = 1000
PIECE_BLOCKS = 500  # written at a time
MAX_CONNECTIONS = 2
MAX_ERROR_CHARS = 300
_GLOB = re.compile(r"([\\*?\[\]^-])")


class IndexUnavailable(Exception):
    """Redis cannot be reached, refuses us, or failed; the text says which, without a secret."""


class BlockIndex:
    """The entries of one pod and one model."""

    def __init__(self, address: RedisAddress, *, pod: str, model: str) -> None:
        self.address = address
        self._pod = pod
        self._model = model
        self._redis: Redis | None = None
        self._failures: tuple[type[Exception], ...] = (OSError,)

    async def write(self, changes: BlockChanges, now_s: float) -> None:
        """Write changes, in one exchange.

        Args:
            now_s: Seconds since 1970.

        Raises:
            IndexUnavailable: Redis did not take them.
        """
        at = str(int(now_s))
        commands: list[tuple[Any, ...]] = [
            ("HDEL", self._standard_key(str(standard)), self._pod) for standard in changes.removed_standard
        ]
        if changes.removed:
            commands.append(("DEL", *map(self._engine_key, changes.removed)))
        for engine_hash, standard in changes.stored:
            commands += [
                ("HSET", self._standard_key(str(standard)), self._pod, at),
                ("SET", self._engine_key(engine_hash), str(standard), "EX", TTL_S),
            ]
        await self._send(commands)

    async def renew(self, blocks: Blocks, now_s: float) -> None:
        """Bring all of the pod's entries to `blocks`, whatever this process or a former one has written.

        1. entries of blocks that do not exist any more are removed
        2. all blocks are written

        Args:
            now_s: Seconds since 1970.

        Raises:
            IndexUnavailable: Redis did not take it all.
        """
        pieces = blocks.take_all(PIECE_BLOCKS)  # from here on changes are kept for the next write
        await self._sweep(blocks)  # 1
        for piece in pieces:  # 2
            await self.write(piece, now_s)

    async def remove_all(self) -> None:
        """Remove every entry of the pod.

        Raises:
            IndexUnavailable: Redis did not remove them all.
        """
        await self._sweep(Blocks(max_blocks=0))

    async def close(self) -> None:
        """Close the connections."""
        redis, self._redis = self._redis, None
        if redis is not None:
            await redis.aclose()

    async def _sweep(self, blocks: Blocks) -> None:
        """Remove the pod's entries that are not in `blocks`."""
        prefix = self._engine_key("")
        pattern = _GLOB.sub(r"\\\1", prefix) + "*"
        cursor = 0
        while True:
            ((cursor, keys),) = await self._send([("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_KEYS)])
            found = {key: key[len(prefix) :] for key in (key.decode("utf-8", "replace") for key in keys)}
            # A second "@" belongs to a pod whose name begins with ours.
            stale = [
                key for key, text in found.items() if "@" not in text and _parse_hash(text) not in blocks
            ]
            if stale:
                await self._remove(stale, blocks)
            if not int(cursor):
                return

    async def _remove(self, engine_keys: list[str], blocks: Blocks) -> None:
        (values,) = await self._send([("MGET", *engine_keys)])
        texts = [value.decode("utf-8", "replace") for value in values if value]
        removed = [text for text in texts if not (text.isdecimal() and blocks.has_standard(int(text)))]
        deletions = [("HDEL", self._standard_key(text), self._pod) for text in removed]
        await self._send([*deletions, ("DEL", *engine_keys)])

    def _standard_key(self, standard: str) -> str:
        return f"matrix:kv:block:{self._model}@{standard}"

    def _engine_key(self, engine_hash: EngineHash) -> str:
        return f"vllm:kv:block:{self._pod}@{engine_hash}"

    async def _send(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Send commands together; return their replies."""
        redis = self._redis or await self._open()
        try:
            async with redis.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                replies: list[Any] = await pipe.execute()
                return replies
        except self._failures as exc:
            raise IndexUnavailable(
                f"{self.address}: {str(exc)[:MAX_ERROR_CHARS] or type(exc).__name__}"
            ) from None

    async def _open(self) -> "Redis":
        self._redis = await open_redis(
            self.address,
            connect_timeout_s=CONNECT_TIMEOUT_S,
            reply_timeout_s=REPLY_TIMEOUT_S,
            max_connections=MAX_CONNECTIONS,
        )
        self._failures = redis_failures()
        return self._redis


def _parse_hash(text: str) -> EngineHash:
    """Return the engine's hash from the text in a key."""
    try:
        return int(text)
    except ValueError:
        return text
