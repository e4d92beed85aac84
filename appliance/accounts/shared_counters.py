"""Counters of rates that all replicas share, in Redis."""

from collections.abc import Sequence
from typing import Any, Protocol


class RedisPipeline(Protocol):
    """A Redis that takes several commands in one round trip."""

    async def pipeline(self, commands: Sequence[tuple[str | bytes | int, ...]]) -> list[Any]:
        """Send commands together.

        Returns:
            Their answers.

        Raises:
            Exception: Any, where it cannot be reached or refuses one of them.
        """


class RedisCounters:
    """Counters in Redis; each is forgotten after its time."""

    def __init__(self, redis: RedisPipeline) -> None:
        self._redis = redis

    async def add(self, items: Sequence[tuple[str, int, int]]) -> list[int]:
        """Add to counters, in one round trip.

        Args:
            items: (name, amount, seconds after which it may be forgotten); amount 0 reads.

        Returns:
            The counts afterwards.
        """
        commands: list[tuple[str | bytes | int, ...]] = []
        for name, amount, ttl_s in items:
            commands.append(("INCRBY", name, amount))
            commands.append(("EXPIRE", name, ttl_s))
        answers = await self._redis.pipeline(commands)
        return [int(answer) for answer in answers[::2]]
