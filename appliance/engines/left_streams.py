"""Streams whose client has left, read to their end where an API bills us for all of the response anyway.

So that the client pays what the API has counted, instead of an estimate. Bounded in time and number; beyond
either, and when the appliance stops, such a stream is closed, and charged as we counted it.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks

log = get_logger("engines")
LONGEST_S = 30.0
MOST = 16


class LeftStream(Protocol):
    """A stream that can be read without its client."""

    async def read_to_end(self) -> None:
        """Read and charge it."""
        ...

    async def close_now(self) -> None:
        """Close it, and charge what was received if that was not done."""
        ...


class LeftStreams:
    """Reads streams to their end after their clients have left.

    Args:
        longest_s: One is read for so long.
        most: So many at a time.
    """

    def __init__(self, *, longest_s: float = LONGEST_S, most: int = MOST) -> None:
        self._longest_s = longest_s
        self._most = most
        self._tasks = Tasks()
        self._is_closing = False
        self.running = 0

    def start(self, reading: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a reading that goes on when its client leaves; it must not raise."""
        return self._tasks.start(reading, name="left_stream_reading")

    def take(self, stream: LeftStream) -> bool:
        """Read a stream to its end in the background; False = it is not taken: close it."""
        if self._is_closing or self.running >= self._most:
            return False
        self.running += 1
        self._tasks.start(self._read(stream), name="left_stream")
        return True

    async def _read(self, stream: LeftStream) -> None:
        try:
            async with asyncio.timeout(self._longest_s):
                await stream.read_to_end()
        except TimeoutError:
            log.info("left_stream_cut", after_s=self._longest_s)
        except Exception as error:  # it broke off: that is charged already
            log.info("left_stream_failed", error=repr(error))
        finally:
            self.running -= 1
            await stream.close_now()

    async def close(self) -> None:
        """Close all streams; none is taken any more."""
        self._is_closing = True
        await self._tasks.close()
