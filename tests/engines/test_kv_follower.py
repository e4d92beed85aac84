"""KV events followed: a real ZeroMQ publisher and a real Redis, each of them down, late, wrong or restarted."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from structlog.testing import capture_logs

from appliance.base.clock import FakeClock, SystemClock
from appliance.base.metrics.exposition_write import render_openmetrics, render_text
from appliance.base.redis_client import RedisAddress
from appliance.base.tasks import Tasks
from appliance.engines.kv.follower import KvFollower
from appliance.engines.kv.index import TTL_S, BlockIndex
from appliance.engines.kv.subscription import KvSource
from appliance.engines.kv.times import KvTimes
from tests.fakes.kv_publisher import Publisher, block_hash, publisher, publishing
from tests.redis_server import RedisServer, closed_port, redis_server

__all__ = ["publisher", "redis_server"]
POD, MODEL = "pod-0", "qwen"
QUICK = KvTimes(kind_poll_s=0.02, reconnect_ms=50, max_reconnect_ms=100, retry_s=0.05, max_retry_s=0.2)


@asynccontextmanager
async def following(port: int, redis_port: int, **about: Any) -> AsyncIterator[KvFollower]:
    async with Tasks() as tasks:
        source = KvSource(f"tcp://127.0.0.1:{port}", about.pop("topic", "kv-events"))
        index = BlockIndex(
            RedisAddress("127.0.0.1", redis_port, password=SecretStr(about.pop("password", ""))),
            pod=about.pop("pod", POD),
            model=MODEL,
        )
        follower = KvFollower(
            about.pop("source", lambda: source),
            index,
            max_blocks=about.pop("max_blocks", 1000),
            tasks=tasks,
            clock=about.pop("clock", SystemClock()),
            times=replace(QUICK, **about.pop("times", {})),
        )
        follower.start()
        try:
            yield follower
        finally:
            await follower.close()


async def comes_true(condition: Callable[[], Any], *, within_s: float = 20.0) -> bool:
    end = time.monotonic() + within_s
    while not condition() and time.monotonic() < end:
        await asyncio.sleep(0.02)
    return bool(condition())


def entries(*numbers: int, pod: str = POD) -> set[str]:
    """The keys that tell of these blocks."""
    return {f"matrix:kv:block:{MODEL}@{block_hash(n)}" for n in numbers} | {
        f"vllm:kv:block:{pod}@{n}" for n in numbers
    }


async def has(server: RedisServer, *numbers: int) -> bool:
    return await comes_true(lambda: server.keys() == entries(*numbers))


# ---- the keys in Redis


async def test_keys_and_values_are_those_that_routers_read(
    publisher: Publisher, redis_server: RedisServer
) -> None:
    async with following(publisher.port, redis_server.port):
        await publisher.has_subscribers()
        publisher.store(5)
        assert await has(redis_server, 5)
        everything = redis_server.everything()
        assert everything[f"vllm:kv:block:{POD}@5"] == str(block_hash(5))
        ((pod, at_s),) = everything[f"matrix:kv:block:{MODEL}@{block_hash(5)}"].items()  # type: ignore[attr-defined]
        assert (pod, abs(int(at_s) - time.time()) < 30) == (POD, True)
        with redis_server.client() as client:
            assert TTL_S - 30 < client.ttl(f"vllm:kv:block:{POD}@5") <= TTL_S
            assert client.ttl(f"matrix:kv:block:{MODEL}@{block_hash(5)}") == -1


async def test_removed_blocks_disappear_and_other_pods_stay(
    publisher: Publisher, redis_server: RedisServer
) -> None:
    with redis_server.client() as client:
        client.hset(f"matrix:kv:block:{MODEL}@{block_hash(2)}", "pod-1", "1")
        client.set("vllm:kv:block:pod-1@2", block_hash(2))
        client.set(f"vllm:kv:block:{POD}@x@2", block_hash(2))  # of a pod whose name begins with ours
    others = {f"matrix:kv:block:{MODEL}@{block_hash(2)}", "vllm:kv:block:pod-1@2", f"vllm:kv:block:{POD}@x@2"}
    async with following(publisher.port, redis_server.port):
        await publisher.has_subscribers()
        publisher.store(1, 2, 3)
        assert await comes_true(lambda: redis_server.keys() == entries(1, 2, 3) | others)
        publisher.send(["BlockRemoved", [1, 2, 99]])
        assert await comes_true(lambda: redis_server.keys() == entries(3) | others)
        publisher.send(["AllBlocksCleared"])
        assert await comes_true(lambda: redis_server.keys() == others)
        assert redis_server.everything()[f"matrix:kv:block:{MODEL}@{block_hash(2)}"] == {"pod-1": "1"}


async def test_many_blocks_in_many_messages_arrive(publisher: Publisher, redis_server: RedisServer) -> None:
    async with following(publisher.port, redis_server.port, max_blocks=100_000) as follower:
        await publisher.has_subscribers()
        for begin in range(0, 6000, 300):
            publisher.store(*range(begin, begin + 300))
        publisher.send(["BlockRemoved", list(range(1000, 6000))])
        assert await comes_true(lambda: len(follower.blocks) == 1000)
        assert await has(redis_server, *range(1000))


async def test_only_the_topic_of_the_source_is_followed(
    publisher: Publisher, redis_server: RedisServer
) -> None:
    async with (
        following(publisher.port, redis_server.port) as some,
        following(publisher.port, redis_server.port, topic="", pod="all") as every,
    ):
        await publisher.has_subscribers(2)
        publisher.send(["AllBlocksCleared"], topic=b"other")
        publisher.store(1)
        assert await comes_true(lambda: len(some.blocks) == len(every.blocks) == 1)
        assert (some.counters.seen["AllBlocksCleared"], every.counters.seen["AllBlocksCleared"]) == (0, 1)


# ---- a publisher or a Redis that is down


async def test_nothing_is_contacted_before_the_first_event(publisher: Publisher) -> None:
    listener = await asyncio.start_server(lambda _, writer: (calls.append(1), writer.close()), "127.0.0.1", 0)
    calls: list[int] = []
    async with listener, following(publisher.port, listener.sockets[0].getsockname()[1]) as follower:
        await publisher.has_subscribers()
        publisher.send_parts(b"kv-events", b"no", b"message")
        publisher.send()
        assert await comes_true(lambda: follower.counters.lost["not_understood"] == 1)
        await asyncio.sleep(0.2)
        assert (calls, follower.writer.state) == ([], "")
        publisher.store(1)
        assert await comes_true(lambda: calls)
        assert await comes_true(lambda: follower.writer.state == "down")


async def test_a_publisher_that_is_late_is_waited_for(redis_server: RedisServer) -> None:
    port = closed_port()
    async with following(port, redis_server.port) as follower:
        await asyncio.sleep(0.3)
        assert not follower.is_connected
        with publishing(port) as late:
            await late.has_subscribers()
            late.store(1)
            assert await has(redis_server, 1)


async def test_events_while_redis_was_down_are_indexed_afterwards(
    publisher: Publisher, redis_server: RedisServer
) -> None:
    """Everything else continues meanwhile, and the log has one line for each change."""
    with capture_logs() as lines:
        async with following(publisher.port, redis_server.port) as follower:
            await publisher.has_subscribers()
            publisher.store(1, 2)
            assert await has(redis_server, 1, 2)
            redis_server.stop()
            publisher.store(3)
            assert await comes_true(lambda: follower.writer.state == "down")
            publisher.send(["BlockRemoved", [1]])
            publisher.store(4)
            assert await comes_true(lambda: follower.counters.late == 2)
            assert await comes_true(lambda: follower.counters.index_failures >= 3)
            redis_server.start()
            assert await has(redis_server, 2, 3, 4)
            # Redis has the blocks before the writer has read its reply.
            assert await comes_true(lambda: follower.writer.state == "up")
    states = [line["state"] for line in lines if line["event"] == "kv_index"]
    assert states == ["up", "down", "up"]


async def test_a_wrong_password_is_logged_once_and_not_shown(publisher: Publisher, tmp_path: Path) -> None:
    server = RedisServer(tmp_path, password="the-right-one")
    server.start()
    try:
        with capture_logs() as lines:
            async with following(publisher.port, server.port, password="a-wrong-one") as follower:
                await publisher.has_subscribers()
                publisher.store(1)
                assert await comes_true(lambda: follower.counters.index_failures >= 3)
        assert "a-wrong-one" not in str(lines)
        logged = [line for line in lines if line["event"] == "kv_index"]
        assert len(logged) == 1
        assert f":{server.port}/0" in logged[0]["reason"]
        async with following(publisher.port, server.port, password="the-right-one") as follower:
            await publisher.has_subscribers()
            publisher.store(1)
            assert await comes_true(lambda: server.keys() == entries(1))
    finally:
        server.stop()


async def test_a_redis_that_refuses_to_write_is_tried_again(
    publisher: Publisher, redis_server: RedisServer
) -> None:
    with redis_server.client() as client:
        client.set(f"matrix:kv:block:{MODEL}@{block_hash(1)}", "no hash")
        async with following(publisher.port, redis_server.port) as follower:
            await publisher.has_subscribers()
            publisher.store(1)
            assert await comes_true(lambda: follower.writer.state == "down")
            client.delete(f"matrix:kv:block:{MODEL}@{block_hash(1)}")
            assert await has(redis_server, 1)


# ---- no false entry stays


async def test_a_restarted_engine_has_no_former_blocks(
    publisher: Publisher, redis_server: RedisServer
) -> None:
    async with following(publisher.port, redis_server.port) as follower:
        await publisher.has_subscribers()
        publisher.store(1)
        publisher.store(2)
        assert await has(redis_server, 1, 2)
        publisher.sequence = 0
        publisher.store(3)
        assert await has(redis_server, 3)
        assert follower.counters.engine_restarts == 1


async def test_an_engine_that_is_lost_has_no_blocks(publisher: Publisher, redis_server: RedisServer) -> None:
    async with following(publisher.port, redis_server.port, times={"lost_after_s": 2.0}) as follower:
        await publisher.has_subscribers()
        publisher.store(1)
        assert await has(redis_server, 1)
        assert await comes_true(lambda: follower.is_connected)
        publisher.disconnect()  # for a moment
        assert await comes_true(lambda: not follower.is_connected)
        publisher.open()
        await publisher.has_subscribers()
        assert await comes_true(lambda: follower.is_connected)
        await asyncio.sleep(2.2)
        assert len(follower.blocks) == 1
        publisher.disconnect()  # for good
        assert await has(redis_server)


async def test_lost_messages_are_counted_and_doubtful_blocks_expire(
    publisher: Publisher, redis_server: RedisServer
) -> None:
    clock = FakeClock()
    async with following(publisher.port, redis_server.port, clock=clock) as follower:
        await publisher.has_subscribers()
        publisher.store(1, 2)
        publisher.sequence += 3
        publisher.store(2)
        assert await comes_true(lambda: follower.counters.lost["sequence_gap"] == 3)
        assert await has(redis_server, 1, 2)
        clock.advance(90_000.0)
        publisher.store(3)
        redis_server.stop()  # makes that everything is written again at once
        redis_server.start()
        publisher.store(4)
        assert await has(redis_server, 2, 3, 4)
        assert follower.counters.left_out["lapsed"] == 1


async def test_entries_of_a_former_process_are_removed(
    publisher: Publisher, redis_server: RedisServer
) -> None:
    with redis_server.client() as client:
        for number in range(2500):  # more than one scan of the keys
            client.hset(f"matrix:kv:block:{MODEL}@{block_hash(number)}", POD, "1")
            client.set(f"vllm:kv:block:{POD}@{number}", block_hash(number))
    async with following(publisher.port, redis_server.port):
        await publisher.has_subscribers()
        publisher.store(7, 9000)
        assert await has(redis_server, 7, 9000)


async def test_hashes_of_bytes_are_known_again_in_their_keys(
    publisher: Publisher, redis_server: RedisServer
) -> None:
    with redis_server.client() as client:
        client.set(f"vllm:kv:block:{POD}@0x00ff", 1)  # of a former process
    async with following(publisher.port, redis_server.port):
        await publisher.has_subscribers()
        publisher.send(["BlockStored", [b"\x00\x11"], None, [4, 4], 2, None])
        expected = {f"matrix:kv:block:{MODEL}@{block_hash(4)}", f"vllm:kv:block:{POD}@0x0011"}
        assert await comes_true(lambda: redis_server.keys() == expected)


@pytest.mark.parametrize("pod", ["pod[1]*", "a\\b?"])
async def test_glob_characters_in_a_pod_name_are_no_pattern(
    pod: str, publisher: Publisher, redis_server: RedisServer
) -> None:
    with redis_server.client() as client:
        client.set("vllm:kv:block:pod1x@5", "77")
        client.hset(f"matrix:kv:block:{MODEL}@77", pod, "1")
        client.set(f"vllm:kv:block:{pod}@5", "77")
    async with following(publisher.port, redis_server.port, pod=pod):
        await publisher.has_subscribers()
        publisher.store(1)
        assert await comes_true(
            lambda: redis_server.keys() == entries(1, pod=pod) | {"vllm:kv:block:pod1x@5"}
        )


async def test_all_entries_of_the_pod_are_removed_at_the_end(
    publisher: Publisher, redis_server: RedisServer
) -> None:
    async with following(publisher.port, redis_server.port):
        await publisher.has_subscribers()
        publisher.store(*range(900))
        assert await has(redis_server, *range(900))
    assert redis_server.everything() == {}


async def test_closing_does_not_wait_for_a_silent_redis(
    publisher: Publisher,
) -> None:
    listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with listener:
        with capture_logs() as lines:
            async with following(
                publisher.port, listener.sockets[0].getsockname()[1], times={"close_s": 0.3}
            ) as follower:
                await publisher.has_subscribers()
                publisher.store(1)
                assert await comes_true(lambda: len(follower.blocks) == 1)
                await asyncio.sleep(0.1)
                began_s = time.monotonic()
            assert time.monotonic() - began_s < 3
        assert [line["event"] for line in lines if line["event"] == "kv_index_left"] == ["kv_index_left"]


async def test_entries_are_written_again_before_they_expire(
    publisher: Publisher, redis_server: RedisServer
) -> None:
    async with following(publisher.port, redis_server.port, times={"renew_s": 0.3}):
        await publisher.has_subscribers()
        publisher.store(1)
        assert await has(redis_server, 1)
        with redis_server.client() as client:
            client.expire(f"vllm:kv:block:{POD}@1", 60)
            assert await comes_true(lambda: client.ttl(f"vllm:kv:block:{POD}@1") > 1000)


# ---- limits and counters


async def test_blocks_beyond_the_limit_are_counted(publisher: Publisher, redis_server: RedisServer) -> None:
    async with following(publisher.port, redis_server.port, max_blocks=2) as follower:
        await publisher.has_subscribers()
        publisher.store(1, 2, 3)
        assert await has(redis_server, 1, 2)
        assert follower.counters.lost["too_many_blocks"] == 1


async def test_counters_are_on_the_page_in_both_formats(
    publisher: Publisher, redis_server: RedisServer
) -> None:
    async with following(publisher.port, redis_server.port) as follower:
        await publisher.has_subscribers()
        publisher.store(1, 2)
        publisher.send(["BlockRemoved", [1]], ["Unheard"], ["BlockStored", [9], None, [1, 1], 2, 5])
        assert await has(redis_server, 2)
        # Redis has the block before the writer has read its reply.
        assert await comes_true(lambda: follower.is_connected and follower.writer.state == "up")
        families = follower.families()
    text = render_text(families).decode()
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert {key: value for key, value in values.items() if value} == {
        ("engine_kv_events_total", "BlockStored"): 2,
        ("engine_kv_events_total", "BlockRemoved"): 1,
        ("engine_kv_blocks",): 1,
        ("engine_kv_events_lost_total", "not_understood"): 1,
        ("engine_kv_blocks_left_out_total", "adapter"): 1,
        ("engine_kv_events_connected",): 1,
        ("engine_kv_index_up",): 1,
    }
    assert values["engine_kv_events_lost_total", "sequence_gap"] == 0
    assert b"# TYPE engine_kv_events counter" in render_openmetrics(families)


async def test_following_begins_when_the_kind_is_known(
    publisher: Publisher, redis_server: RedisServer
) -> None:
    known: list[KvSource] = []
    with capture_logs() as lines:
        async with following(publisher.port, redis_server.port, source=lambda: known[0] if known else None):
            await asyncio.sleep(0.2)
            known.append(KvSource(f"tcp://127.0.0.1:{publisher.port}"))
            await publisher.has_subscribers()
    (on,) = (line for line in lines if line["event"] == "kv_events_on")
    assert (on["publisher"], on["redis"]) == (
        f"tcp://127.0.0.1:{publisher.port}",
        f"redis://127.0.0.1:{redis_server.port}/0",
    )
