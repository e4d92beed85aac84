"""Redis as accounts use it: commands, scripts, counters, messages; away and back again."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from appliance.base.tasks import Tasks
from appliance.storage.redis_store import RedisStore, RedisUnavailable, build_redis
from appliance.storage.settings import StorageSettings
from tests.redis_server import RedisServer


async def until(happened: Callable[[], object], seconds: float = 10) -> None:
    """Wait until it happened, as far as this machine's speed decides when."""
    async with asyncio.timeout(seconds):
        while not happened():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def opened(server: RedisServer, **more: object) -> AsyncIterator[RedisStore]:
    settings = StorageSettings(redis_host="127.0.0.1", redis_port=server.port, **more)  # type: ignore[arg-type]
    async with Tasks() as tasks:
        store = build_redis(settings, tasks=tasks)
        assert store is not None
        await store.open()
        try:
            yield store
        finally:
            await store.close()


async def test_there_is_none_without_a_host() -> None:
    async with Tasks() as tasks:
        assert build_redis(StorageSettings(), tasks=tasks) is None


async def test_commands_are_sent_together(redis_server: RedisServer) -> None:
    async with opened(redis_server) as store:
        assert store.is_up
        replies = await store.send(
            [("SET", "a", b"\x00\xff"), ("GET", "a"), ("GET", "b")], is_transaction=True
        )
    assert replies == [b"OK" if isinstance(replies[0], bytes) else True, b"\x00\xff", None]


async def test_counters_count_and_are_forgotten(redis_server: RedisServer) -> None:
    async with opened(redis_server) as store:
        assert await store.add([("a", 2, 60), ("b", 0, 60), ("a", 3, 60)]) == [2, 0, 5]
        assert await store.add([("a", 0, 60)]) == [5]
    with redis_server.client() as client:
        assert 0 < client.ttl("a") <= 60
        assert not client.exists("b")


async def test_a_script_runs_also_after_redis_forgot_it(redis_server: RedisServer) -> None:
    script = "return redis.call('GET', KEYS[1]) == ARGV[1] and 1 or 0"
    async with opened(redis_server) as store:
        await store.send([("SET", "k", "v")])
        assert await store.run_script(script, ["k"], ["v"]) == 1
        await store.send([("SCRIPT", "FLUSH")])
        assert await store.run_script(script, ["k"], ["other"]) == 0


async def test_a_refused_command_does_not_mean_that_it_is_down(redis_server: RedisServer) -> None:
    async with opened(redis_server) as store:
        await store.send([("SET", "text", "x")])
        with pytest.raises(RedisUnavailable):
            await store.add([("text", 1, 60)])
        assert store.is_up


async def test_messages_reach_who_listens_also_after_a_restart(redis_server: RedisServer) -> None:
    heard: list[str | None] = []
    async with opened(redis_server) as store:
        await store.listen("appliance:changes", heard.append)
        await until(lambda: heard == [None])
        await store.publish("appliance:changes", "7")
        await until(lambda: heard == [None, "7"])
        redis_server.stop()
        redis_server.start()
        await until(lambda: heard == [None, "7", None])
        await until(lambda: store.is_up)
        await store.publish("appliance:changes", "8")
        await until(lambda: heard == [None, "7", None, "8"])


async def test_it_is_refused_at_once_while_down_and_comes_back(redis_server: RedisServer) -> None:
    async with opened(redis_server) as store:
        redis_server.stop()
        with pytest.raises(RedisUnavailable) as caught:
            await store.send([("PING",)])
        assert (caught.value.code, caught.value.retry_after_s) == ("store_unavailable", 1.0)
        assert not store.is_up
        began = time.monotonic()
        for _ in range(100):
            with pytest.raises(RedisUnavailable):
                await store.send([("PING",)])
        assert time.monotonic() - began < 1
        redis_server.start()
        await until(lambda: store.is_up)
        assert await store.add([("a", 1, 60)]) == [1]


async def test_one_that_is_down_at_start_is_tried(redis_server: RedisServer) -> None:
    redis_server.stop()
    async with opened(redis_server) as store:
        assert not store.is_up
        assert "Connect" in store.reason or "connect" in store.reason
        redis_server.start()
        await until(lambda: store.is_up)


async def test_a_wrong_password_is_told_but_not_shown(tmp_path) -> None:  # type: ignore[no-untyped-def]
    server = RedisServer(tmp_path, password="right-pass-word")
    server.start()
    try:
        with capture_logs() as lines:
            async with opened(server, redis_password="wrong-pass-word") as store:
                assert not store.is_up
                assert "password" in store.reason
        assert "wrong-pass-word" not in str(lines) + store.reason
    finally:
        server.stop()


async def test_one_that_does_not_answer_is_given_up(redis_server: RedisServer) -> None:
    async with opened(redis_server, redis_read_timeout=0.2, redis_write_timeout=0.2) as store:
        with redis_server.client() as client:
            client.execute_command("CLIENT", "PAUSE", 1500, "ALL")
        began = time.monotonic()
        with pytest.raises(RedisUnavailable):
            await store.send([("GET", "a")])
        assert time.monotonic() - began < 1.2
        await until(lambda: store.is_up)
