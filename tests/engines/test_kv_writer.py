"""What the follower and the index writer decide, with an index that can be down: no ZeroMQ and no Redis."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from appliance.base.clock import FakeClock
from appliance.base.redis_client import RedisAddress
from appliance.base.tasks import Tasks
from appliance.engines.kv.blocks import BlockChanges, Blocks
from appliance.engines.kv.counters import KvCounters
from appliance.engines.kv.follower import KvFollower
from appliance.engines.kv.index import BlockIndex, IndexUnavailable
from appliance.engines.kv.index_writer import IndexWriter
from appliance.engines.kv.times import KvTimes
from tests.engines.test_kv_events import A, message
from tests.journeys.running import until
from tests.redis_server import closed_port

QUICK = KvTimes(retry_s=0.01, max_retry_s=0.02, close_s=0.5)


class ScriptedIndex(BlockIndex):
    """Notes what is written; `is_down` makes every call fail."""

    def __init__(self) -> None:
        super().__init__(RedisAddress("127.0.0.1"), pod="pod", model="model")
        self.is_down = False
        self.calls: list[str] = []

    async def write(self, changes: BlockChanges, now_s: float) -> None:
        self._call("write")

    async def renew(self, blocks: Blocks, now_s: float) -> None:
        list(blocks.take_all(500))
        self._call("renew")

    async def remove_all(self) -> None:
        self._call("remove_all")

    async def close(self) -> None:
        self.calls.append("close")

    def _call(self, name: str) -> None:
        if self.is_down:
            raise IndexUnavailable("redis://127.0.0.1:6379/0: connection refused")
        self.calls.append(name)


def stored(*hashes: int, sequence: int = 0) -> list[bytes]:
    return message(["BlockStored", list(hashes), None, A * len(hashes), 4, None], sequence=sequence)


def follower_of(index: ScriptedIndex, tasks: Tasks, **more: Any) -> KvFollower:
    return KvFollower(
        lambda: None,
        index,
        max_blocks=more.pop("max_blocks", 1000),
        tasks=tasks,
        clock=FakeClock(),
        times=QUICK,
    )


# ---- messages


@pytest.mark.parametrize(
    ("sequences", "restarts", "missing", "blocks"),
    [
        ([0, 1, 2], 0, 0, {10, 11, 12}),
        ([5], 0, 0, {10}),  # the first one may have any number
        ([0, 1, 1], 0, 0, {10, 11, 12}),
        ([3, 4, 0], 1, 0, {12}),
        ([0, 4, 5], 0, 3, {10, 11, 12}),
    ],
)
async def test_sequence_shows_restarts_and_lost_messages(sequences, restarts, missing, blocks) -> None:
    async with Tasks() as tasks:
        follower = follower_of(ScriptedIndex(), tasks)
        for number, sequence in enumerate(sequences):
            follower.handle_message(stored(10 + number, sequence=sequence))
        counters = follower.counters
        assert (counters.engine_restarts, counters.lost["sequence_gap"]) == (restarts, missing)
        assert {number for number in (10, 11, 12) if number in follower.blocks} == blocks


async def test_an_unreadable_message_is_counted_and_keeps_the_sequence() -> None:
    async with Tasks() as tasks:
        follower = follower_of(ScriptedIndex(), tasks, max_blocks=1)
        follower.handle_message(stored(1))
        follower.handle_message([b"t", b"no", b"message"])
        follower.handle_message(stored(2, sequence=1))
        assert follower.counters.lost == {"sequence_gap": 0, "not_understood": 1, "too_many_blocks": 1}


# ---- the writer


async def test_the_index_is_written_at_the_first_event_and_removed() -> None:
    index = ScriptedIndex()
    async with Tasks() as tasks:
        follower = follower_of(index, tasks)
        follower.start()
        await asyncio.sleep(0.02)
        assert (index.calls, follower.writer.state) == ([], "")
        follower.handle_message(stored(1))
        assert await until(lambda: follower.writer.state == "up")
        follower.handle_message(stored(2, sequence=1))
        assert await until(lambda: index.calls == ["renew", "write"])
        await follower.close()
    assert index.calls == ["renew", "write", "write", "close"]


async def test_without_an_event_nothing_is_removed_at_the_end() -> None:
    index = ScriptedIndex()
    async with Tasks() as tasks:
        follower = follower_of(index, tasks)
        follower.start()
        await follower.close()
    assert index.calls == ["close"]


async def test_after_a_failure_everything_is_written_anew() -> None:
    index = ScriptedIndex()
    async with Tasks() as tasks:
        follower = follower_of(index, tasks)
        follower.start()
        with capture_logs() as lines:
            index.is_down = True
            follower.handle_message(stored(1))
            assert await until(lambda: follower.counters.index_failures >= 3)
            follower.handle_message(stored(2, sequence=1))
            assert follower.counters.late == 1
            index.is_down = False
            assert await until(lambda: follower.writer.state == "up")
        assert index.calls == ["renew"]
        assert [line["state"] for line in lines if line["event"] == "kv_index"] == ["down", "up"]
        await follower.close()


async def test_what_cannot_be_removed_at_the_end_is_logged() -> None:
    index = ScriptedIndex()
    blocks = Blocks(max_blocks=10)
    writer = IndexWriter(index, blocks, counters=KvCounters(), clock=FakeClock(), times=QUICK)
    async with Tasks() as tasks:
        running = tasks.start(writer.run(), name="writer")
        index.is_down = True
        writer.notify()
        assert await until(lambda: writer.state == "down")
        running.cancel()
        with capture_logs() as lines:
            await writer.leave()
    assert [(line["event"], line["reason"]) for line in lines] == [
        ("kv_index_left", "redis://127.0.0.1:6379/0: connection refused")
    ]


# ---- the index


async def test_a_redis_that_is_down_is_named_without_its_password() -> None:
    port = closed_port()
    address = RedisAddress("127.0.0.1", port, 3, has_tls=False)
    index = BlockIndex(address, pod="pod", model="model")
    with pytest.raises(IndexUnavailable, match=f"^redis://127.0.0.1:{port}/3: .*refused|111"):
        await index.write(BlockChanges(((1, 2),)), 0.0)
    await index.close()


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (RedisAddress("cache"), "redis://cache:6379/0"),
        (RedisAddress("cache", 6380, 2, has_tls=True), "rediss://cache:6380/2"),
    ],
)
def test_an_address_is_written_without_its_password(address: RedisAddress, text: str) -> None:
    assert str(address) == text
