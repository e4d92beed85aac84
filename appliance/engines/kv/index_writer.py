"""The loop that keeps the index in Redis equal to the engine's blocks.

If Redis is down, it is tried again, with one log line per change; afterwards everything is written again.
"""

import asyncio
from typing import Any

from appliance.base.clock import Clock
from appliance.base.logs import SECRETS, get_logger
from appliance.engines.kv.blocks import Blocks
from appliance.engines.kv.counters import KvCounters
from appliance.engines.kv.index import PIECE_BLOCKS, BlockIndex, IndexUnavailable
from appliance.engines.kv.times import KvTimes

log = get_logger("kv_events")


class IndexWriter:
    """Writes the blocks to the index. `state`: up or down; "" = not contacted yet."""

    def __init__(
        self, index: BlockIndex, blocks: Blocks, *, counters: KvCounters, clock: Clock, times: KvTimes
    ) -> None:
        self.state = ""
        self._index = index
        self._blocks = blocks
        self._counters = counters
        self._clock = clock
        self._times = times
        self._changed = asyncio.Event()
        self._has_begun = False  # the index was contacted, ever
        self._is_stale = True  # the index may differ from the blocks: all is to be written
        self._renewed_s = 0.0

    def notify(self) -> None:
        """Note that there may be changes to write."""
        self._changed.set()

    async def run(self) -> None:
        """Keep the index up to date, from the first event on; never returns."""
        retry_s = self._times.retry_s
        if not self._has_begun:
            await self._changed.wait()
            self._has_begun = True
        while True:
            self._changed.clear()
            try:
                await self._update()
            except IndexUnavailable as exc:
                self._counters.index_failures += 1
                self._blocks.discard_changes()  # all is written when it is up again
                self._set_state("down", reason=SECRETS.redact(str(exc)))
                await asyncio.sleep(retry_s)
                retry_s = min(self._times.max_retry_s, retry_s * 2)
                continue
            self._set_state("up", redis=str(self._index.address), blocks=len(self._blocks))
            retry_s = self._times.retry_s
            if not self._blocks.has_changes:
                await self._wait()

    async def leave(self) -> None:
        """Remove all that was written; what fails is logged."""
        if not self._has_begun:
            return
        try:
            if self._is_stale:
                await self._index.remove_all()
            self._blocks.clear()
            while self._blocks.has_changes:
                await self._index.write(self._blocks.take_changes(PIECE_BLOCKS), self._clock.now_s())
        except IndexUnavailable as exc:
            log.warning("kv_index_left", reason=SECRETS.redact(str(exc)))

    async def _wait(self) -> None:
        """Wait for an event, or until everything is to be written again."""
        renew_at_s = self._renewed_s + self._times.renew_s
        try:
            async with asyncio.timeout(max(0.0, renew_at_s - self._clock.monotonic_s())):
                await self._changed.wait()
        except TimeoutError:
            self._is_stale = True

    async def _update(self) -> None:
        """Write everything if the index may differ, then the changes since.

        Raises:
            IndexUnavailable: Redis did not take it all.
        """
        was_stale = self._is_stale
        self._is_stale = True  # until all is written: it stays so if this fails or is cancelled
        if was_stale:
            now_s = self._clock.monotonic_s()
            self._counters.left_out["lapsed"] += self._blocks.expire_uncertain(now_s)
            await self._index.renew(self._blocks, self._clock.now_s())
            self._renewed_s = now_s
        while self._blocks.has_changes:
            await self._index.write(self._blocks.take_changes(PIECE_BLOCKS), self._clock.now_s())
        self._is_stale = False

    def _set_state(self, state: str, **details: Any) -> None:
        if state != self.state:
            self.state = state
            (log.info if state == "up" else log.warning)("kv_index", state=state, **details)
