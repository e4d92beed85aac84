"""`Watched[T]`: one latest value, any number of followers. Followers see the newest state, not every step between."""

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
        return self._value

    @property
    def version(self) -> int:
        """How often the value has changed: a mark for `newer`."""
        return self._version

    def set(self, value: T) -> None:
        """Put a new value; setting an equal one wakes nobody."""
        if value == self._value:
            return
        self._value = value
        self._version += 1
        self._changed.set()
        self._changed = (
            asyncio.Event()
        )  # whoever waited holds the old event; later followers wait on this one

    async def follow(self) -> AsyncIterator[T]:
        """Give the present value at once, then each newer one. A slow follower skips what was overtaken."""
        seen = -1
        while True:
            if seen != self._version:
                seen = self._version
                yield self._value
            else:
                await self._changed.wait()

    async def newer(self, seen: int) -> int:
        """Wait until the value was changed after the version `seen`; give the version it has now. May be cancelled at any time."""
        while self._version == seen:
            await self._changed.wait()
        return self._version
