"""Follows an engine's KV events, and keeps the index of its blocks in Redis up to date.

It runs in the background; while the engine or Redis is not reachable, it waits.

So that no wrong entry stays in the index:

1. the engine was restarted (its sequence falls back), or is lost → all entries are removed
2. messages were lost (a gap in the sequence)                     → they expire unless they are stored again
3. Redis was down                                                 → written again, old ones are removed
4. the appliance stops                                            → all are removed
"""

import asyncio
from collections.abc import Callable, Iterable
from importlib import import_module

from appliance.base.clock import Clock
from appliance.base.logs import get_logger
from appliance.base.metrics.exposition_read import MetricFamily
from appliance.base.tasks import Tasks
from appliance.engines.kv.blocks import Blocks
from appliance.engines.kv.counters import KvCounters
from appliance.engines.kv.events import read_message
from appliance.engines.kv.index import BlockIndex
from appliance.engines.kv.index_writer import IndexWriter
from appliance.engines.kv.subscription import KvSource, subscribing, watch_connection
from appliance.engines.kv.times import DEFAULT_TIMES, KvTimes

log = get_logger("kv_events")
CRASH_PAUSE_S = 5.0
CANCEL_POLL_S = 0.1


class KvFollower:
    """Follows one engine.

    Attributes:
        blocks: The engine's blocks.
        writer: Writes them to the index.
        counters: What was counted.
        is_connected: Whether the engine's publisher is connected.

    Args:
        source: Returns where the events are published once the engine's kind is known, until then None.
        max_blocks: Blocks that are kept; further ones are left out.
    """

    def __init__(
        self,
        source: Callable[[], KvSource | None],
        index: BlockIndex,
        *,
        max_blocks: int,
        tasks: Tasks,
        clock: Clock,
        times: KvTimes = DEFAULT_TIMES,
    ) -> None:
        self.blocks = Blocks(max_blocks=max_blocks)
        self.counters = KvCounters()
        self.writer = IndexWriter(index, self.blocks, counters=self.counters, clock=clock, times=times)
        self.is_connected = False
        self._source = source
        self._index = index
        self._tasks = tasks
        self._clock = clock
        self._times = times
        self._last_sequence: int | None = None
        self._lost_timer: asyncio.TimerHandle | None = None
        self._running: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Follow, in the background. Call it inside the event loop."""
        self._running = [
            self._tasks.every(CRASH_PAUSE_S, self._follow, name="kv-events"),
            self._tasks.every(CRASH_PAUSE_S, self.writer.run, name="kv-index"),
        ]

    async def close(self) -> None:
        """Stop, and remove what was written, within `KvTimes.close_s`."""
        await _cancel(self._running)
        if self._lost_timer is not None:
            self._lost_timer.cancel()
        leaving = self._tasks.start(self.writer.leave(), name="kv-leave")
        _, late = await asyncio.wait([leaving], timeout=self._times.close_s)
        if late:
            log.warning("kv_index_left", reason=f"not done within {self._times.close_s:g} s")
            await _cancel(late)
        await self._index.close()

    def families(self) -> list[MetricFamily]:
        """Return the metric families for the sidecar's page."""
        return self.counters.families(
            is_connected=self.is_connected, is_index_up=self.writer.state == "up", blocks=len(self.blocks)
        )

    # ---- the connection

    async def _follow(self) -> None:
        while (source := self._source()) is None:
            await asyncio.sleep(self._times.kind_poll_s)
        await asyncio.to_thread(import_module, "zmq.asyncio")
        with subscribing(source, self._times) as (socket, monitor):
            log.info(
                "kv_events_on", publisher=source.endpoint, topic=source.topic, redis=str(self._index.address)
            )
            watching = self._tasks.start(watch_connection(monitor, self._set_connected), name="kv-publisher")
            try:
                while True:
                    self.handle_message(await socket.recv_multipart())
                    await asyncio.sleep(0)  # with many messages recv_multipart returns without a pause
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)

    def _set_connected(self, is_connected: bool) -> None:
        if is_connected == self.is_connected:
            return
        self.is_connected = is_connected
        if self._lost_timer is not None:
            self._lost_timer.cancel()
        self._lost_timer = None
        if not is_connected:
            loop = asyncio.get_running_loop()
            self._lost_timer = loop.call_later(self._times.lost_after_s, self._engine_lost)
        log.info("kv_publisher", state="connected" if is_connected else "disconnected")

    def _engine_lost(self) -> None:
        log.warning("kv_engine_lost", after_s=self._times.lost_after_s, blocks=len(self.blocks))
        self._forget_blocks()

    def _forget_blocks(self) -> None:
        self._last_sequence = None
        self.blocks.clear()
        if self.blocks.has_changes:
            self.writer.notify()

    # ---- messages

    def handle_message(self, parts: list[bytes]) -> None:
        """Apply one message of the publisher."""
        batch = read_message(parts)
        self._follow_sequence(batch.sequence)
        self.counters.add(batch)
        self.counters.lost["too_many_blocks"] += sum(map(self.blocks.apply, batch.events))
        if self.writer.state == "down":
            self.counters.late += len(batch.events)
        if batch.events:
            self.writer.notify()

    def _follow_sequence(self, sequence: int | None) -> None:
        """Compare a message's number with the last one.

        1. it falls back  → the engine was restarted: it has no blocks any more
        2. it leaves a gap → messages were lost: every block may be wrong
        """
        last = self._last_sequence
        if sequence is None:
            return
        if last is not None and sequence < last:  # 1
            self.counters.engine_restarts += 1
            log.warning("kv_engine_restarted", blocks=len(self.blocks))
            self._forget_blocks()
        elif last is not None and sequence > last + 1:  # 2
            missing = sequence - last - 1
            self.counters.lost["sequence_gap"] += missing
            self.blocks.mark_uncertain(self._clock.monotonic_s())
            log.warning("kv_messages_lost", messages=missing, uncertain_blocks=len(self.blocks))
        self._last_sequence = sequence


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel until all have ended: redis calls wait_for, which can lose a cancellation in Python 3.11."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_POLL_S)
