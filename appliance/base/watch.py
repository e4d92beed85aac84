"""`Watched[T]`: one value, any number of followers, each of which sees the newest state, not every step."""

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Watched(Generic[T]):
    """A value that can be read at once, and followed."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._version = 0
        self._changed = asyncio.Event()

    @property
    def value(self) -> T:
        """The present value."""
        return self._value

    @property
    def version(self) -> int:
        """How often the value has changed; for `newer`."""
        return self._version

    def set(self, value: T) -> None:
        """Set a new value; an equal one wakes no follower."""
        if value == self._value:
            return
        self._value = value
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()  # present followers hold the old event, later ones wait on this one

    async def follow(self) -> AsyncIterator[T]:
        """Yield the present value at once, then each newer one; a slow follower skips values in between."""
        seen = -1
        while True:
            if seen != self._version:
                seen = self._version
                yield self._value
            else:
                await self._changed.wait()

    async def newer(self, seen: int) -> int:
        """Wait until the value was changed after version `seen`; return its version then."""
        while self._version == seen:
            await self._changed.wait()
        return self._version
