"""Follows an engine's KV events (ZeroMQ) and keeps the index of its blocks in Redis true. Runs beside everything else and never in its way:
an engine or a Redis that is not there is waited for, with one line in the log per change.

What becomes of the entries, so that none stays that is false:
    the engine was restarted (its sequence falls back), or has been away for AWAY_S     all go
    messages were lost (a gap in the sequence)      those known until then go within a day, unless heard of again
    Redis was away                                  written anew as a whole, with what a former process left removed
    we end                                          all go: nobody would remove them later
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from appliance.base.clock import Clock
from appliance.base.logs import SECRETS, get_logger
from appliance.base.metrics.exposition_read import MetricFamily, MetricSample, escape_label, make_gauge
from appliance.base.tasks import Tasks
from appliance.engines.kv.blocks import Blocks
from appliance.engines.kv.events import TAGS, read
from appliance.engines.kv.index import PIECE, TTL_S, Index, IndexDown
from appliance.engines.metrics.families import PREFIX

if TYPE_CHECKING:
    from zmq.asyncio import Socket

log = get_logger("kv_events")
AWAY_S = 30.0  # without a publisher, after which the engine counts as gone
KIND_S = 1.0  # between two looks at which kind of engine it is
PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0  # between tries at Redis
RENEW_S = TTL_S / 4  # entries are found by keys that end after TTL_S: they are written again before
END_S = 3.0  # for the removal of all entries at the end
AGAIN_S = 5.0  # after something that nobody foresaw
MOST_MESSAGES = 1000  # received and not yet read
MOST_BYTES = 16 * 1024 * 1024  # of one message: a publisher that sends more is hung up on
RETRY_MS, LONGEST_RETRY_MS = 500, 10_000  # between tries at the publisher


@dataclass(frozen=True, slots=True)
class KvSource:
    """Where the engine publishes. topic: a prefix of messages' topics, "" = all."""

    endpoint: str
    topic: str = ""


class KvFollower:
    """One engine's events, followed.

    Takes   source: gives where they are published once the engine's kind is known, until then None; most: blocks that are kept
    """

    def __init__(
        self,
        source: Callable[[], KvSource | None],
        index: Index,
        *,
        most: int,
        tasks: Tasks,
        clock: Clock,
    ) -> None:
        self._source, self._index, self._tasks, self._clock = source, index, tasks, clock
        self.blocks = Blocks(most=most)
        self.is_connected = False
        self.index_state = ""  # up | down; "" = not asked yet
        self.restarts = self.failures = self.late = 0
        self.seen = Counter(dict.fromkeys(TAGS, 0))
        self.lost = Counter({"sequence_gap": 0, "not_understood": 0, "too_many_blocks": 0})
        self.left_out = Counter(
            {"adapter": 0, "extra_keys": 0, "other_memory": 0, "other_group": 0, "lapsed": 0}
        )
        self._last: int | None = None  # sequence
        self._is_stale = True  # Redis may not have what it should: all is to be written
        self._has_asked = False  # Redis, ever
        self._renewed_s = 0.0
        self._heard = asyncio.Event()
        self._away: asyncio.TimerHandle | None = None
        self._running: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Follow, in the background. Call it inside the event loop."""
        self._running = [
            self._tasks.every(AGAIN_S, self._follow, name="kv-events"),
            self._tasks.every(AGAIN_S, self._write, name="kv-index"),
        ]

    async def close(self) -> None:
        """Stop, and remove what was written, within END_S."""
        await _end(self._running)
        if self._away is not None:
            self._away.cancel()
        leaving = self._tasks.start(self._leave(), name="kv-leave")
        _, late = await asyncio.wait([leaving], timeout=END_S)
        if late:
            log.warning("kv_index_left", reason=f"not done within {END_S:g} s")
            await _end(late)
        await self._index.close()

    async def _leave(self) -> None:
        """Remove all that was written."""
        if not self._has_asked:
            return
        try:
            if self._is_stale:
                await self._index.remove_all()
            self.blocks.clear()
            while self.blocks.has_changes:
                await self._index.write(self.blocks.take(PIECE), self._clock.now_s())
        except IndexDown as exc:
            log.warning("kv_index_left", reason=SECRETS.redact(str(exc)))

    # ---- the engine

    async def _follow(self) -> None:
        while (source := self._source()) is None:
            await asyncio.sleep(KIND_S)
        await asyncio.to_thread(import_module, "zmq.asyncio")
        with _subscribed(source) as (socket, monitor):
            log.info(
                "kv_events_on", publisher=source.endpoint, topic=source.topic, redis=str(self._index.slot)
            )
            watching = self._tasks.start(self._watch(monitor), name="kv-publisher")
            try:
                while True:
                    self.hear(await socket.recv_multipart())
                    await asyncio.sleep(0)  # a flood is read without a pause otherwise
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self, monitor: "Socket") -> None:
        """See the publisher come and go."""
        from zmq import Event
        from zmq.utils.monitor import parse_monitor_message

        while True:
            event = parse_monitor_message(await monitor.recv_multipart())["event"]
            self._saw_publisher(event == Event.HANDSHAKE_SUCCEEDED)

    def _saw_publisher(self, is_there: bool) -> None:
        if is_there == self.is_connected:
            return
        self.is_connected = is_there
        if self._away is not None:
            self._away.cancel()
        self._away = None if is_there else asyncio.get_running_loop().call_later(AWAY_S, self._is_gone)
        log.info("kv_publisher", state="there" if is_there else "away")

    def _is_gone(self) -> None:
        log.warning("kv_engine_gone", away_s=AWAY_S, blocks=len(self.blocks))
        self._forget()

    def _forget(self) -> None:
        self._last = None
        self.blocks.clear()
        if self.blocks.has_changes:
            self._heard.set()

    def hear(self, parts: list[bytes]) -> None:
        """Take one message."""
        batch = read(parts)
        self._follow_sequence(batch.sequence)
        self.lost["not_understood"] += batch.odd
        self.seen.update(batch.seen)
        self.left_out.update(batch.left_out)
        self.lost["too_many_blocks"] += sum(map(self.blocks.apply, batch.events))
        if self.index_state == "down":
            self.late += len(batch.events)
        if batch.events:
            self._heard.set()

    def _follow_sequence(self, sequence: int | None) -> None:
        """Compare a message's number with the last one: 1. the engine began anew   2. some are missing."""
        last = self._last
        if sequence is None:
            return
        if last is not None and sequence < last:  # 1
            self.restarts += 1
            log.warning("kv_engine_restarted", blocks=len(self.blocks))
            self._forget()
        elif last is not None and sequence > last + 1:  # 2
            self.lost["sequence_gap"] += sequence - last - 1
            self.blocks.doubt(self._clock.monotonic_s())
            log.warning("kv_messages_lost", messages=sequence - last - 1, blocks_in_doubt=len(self.blocks))
        self._last = sequence

    # ---- Redis

    async def _write(self) -> None:
        """Keep the index true, from the first event on."""
        pause_s = PAUSE_S
        if not self._has_asked:
            await self._heard.wait()
            self._has_asked = True
        while True:
            self._heard.clear()
            try:
                await self._bring_up_to_date()
            except IndexDown as exc:
                self.failures += 1
                self.blocks.forget_changes()  # all is written when it is there again
                self._saw_index("down", reason=SECRETS.redact(str(exc)))
                await asyncio.sleep(pause_s)
                pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
                continue
            self._saw_index("up", redis=str(self._index.slot), blocks=len(self.blocks))
            pause_s = PAUSE_S
            if not self.blocks.has_changes:
                await self._wait()

    async def _wait(self) -> None:
        """Wait for an event, or until everything is to be written again."""
        try:
            async with asyncio.timeout(max(0.0, self._renewed_s + RENEW_S - self._clock.monotonic_s())):
                await self._heard.wait()
        except TimeoutError:
            self._is_stale = True

    async def _bring_up_to_date(self) -> None:
        was_stale, self._is_stale = (
            self._is_stale,
            True,
        )  # until all is written; an end in the middle leaves it so
        if was_stale:
            now_s = self._clock.monotonic_s()
            self.left_out["lapsed"] += self.blocks.lapse(now_s)
            await self._index.renew(self.blocks, self._clock.now_s())
            self._renewed_s = now_s
        while self.blocks.has_changes:
            await self._index.write(self.blocks.take(PIECE), self._clock.now_s())
        self._is_stale = False

    def _saw_index(self, state: str, **about: Any) -> None:
        if state != self.index_state:
            self.index_state = state
            (log.info if state == "up" else log.warning)("kv_index", state=state, **about)

    # ---- what is told of it

    def families(self) -> list[MetricFamily]:
        """Give the metric families for the sidecar's page."""
        return [
            _counted("kv_events", "KV events of the engine, by kind", "event", self.seen),
            _counted(
                "kv_events_lost",
                "Messages that are missing in the engine's sequence, things that were not understood, and blocks that found "
                "no room",
                "reason",
                self.lost,
            ),
            _counted(
                "kv_blocks_left_out", "Blocks that the index is not told of, by why", "reason", self.left_out
            ),
            _counter(
                "kv_events_late",
                "KV events that came while the index was away; it gets the state afterwards",
                self.late,
            ),
            _counter("kv_engine_restarts", "Restarts of the engine that its KV events showed", self.restarts),
            _counter("kv_index_failures", "Tries to write the index that failed", self.failures),
            make_gauge(
                PREFIX + "kv_events_connected",
                "1 while the engine's publisher of KV events is connected",
                self.is_connected,
            ),
            make_gauge(
                PREFIX + "kv_index_up",
                "1 while the index of blocks can be written; 0 also before the first event",
                self.index_state == "up",
            ),
            make_gauge(PREFIX + "kv_blocks", "Blocks that the engine is known to have", len(self.blocks)),
        ]


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel until all have ended: asyncio.wait_for of Python 3.11, which redis calls, loses a cancellation now and then."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.1)


def _counter(name: str, text: str, value: int) -> MetricFamily:
    full = (PREFIX + name + "_total").encode()
    return MetricFamily(full, "counter", text.encode(), [MetricSample(full, b"", b"%d" % value)])


def _counted(name: str, text: str, label: str, values: Mapping[str, int]) -> MetricFamily:
    full = (PREFIX + name + "_total").encode()
    return MetricFamily(
        full,
        "counter",
        text.encode(),
        [
            MetricSample(full, b'%b="%b"' % (label.encode(), escape_label(word)), b"%d" % value)
            for word, value in values.items()
        ],
    )


@contextmanager
def _subscribed(source: KvSource) -> Iterator[tuple["Socket", "Socket"]]:
    """Open a subscription and the socket that tells of its connections; both end with the context."""
    import zmq
    import zmq.asyncio

    context = zmq.asyncio.Context()
    try:
        socket: Any = context.socket(zmq.SUB)
        options = {
            zmq.LINGER: 0,
            zmq.RCVHWM: MOST_MESSAGES,
            zmq.MAXMSGSIZE: MOST_BYTES,
            zmq.RECONNECT_IVL: RETRY_MS,
            zmq.RECONNECT_IVL_MAX: LONGEST_RETRY_MS,
            zmq.IPV6: int("[" in source.endpoint),
            zmq.TCP_KEEPALIVE: 1,
        }
        for option, value in options.items():
            socket.setsockopt(option, value)
        socket.subscribe(source.topic.encode())
        monitor = socket.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED)
        socket.connect(source.endpoint)
        yield socket, monitor
    finally:
        context.destroy(linger=0)
