"""The feeds of status and metrics, read with the SSE client of OpenAI's SDK and by a strict parser."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx

from appliance.base.clock import SystemClock
from appliance.front.manager.handlers import ManagerHandlers
from tests.front.feeds import Event, events_of
from tests.front.static_manager import StaticManager, off, ready, serving_manager
from tests.journeys.running import until


@asynccontextmanager
async def following(
    url: str, path: str = "/v1/models/status/stream", *, method: str = "GET", **request: Any
) -> AsyncIterator[AsyncIterator[Event]]:
    """Follow a feed with the SDK's client; return its events. A strict parser checks that nothing else is sent."""
    async with (
        httpx.AsyncClient(timeout=10) as client,
        client.stream(method, url + path, **request) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == (
            "no-cache",
            "no",
        )
        yield events_of(response)


async def next_of(events: AsyncIterator[Event], *, seconds: float = 5) -> Event:
    return await asyncio.wait_for(anext(events), seconds)


def handlers(manager: StaticManager, **times: float) -> ManagerHandlers:
    return ManagerHandlers(manager, clock=SystemClock(), **times)


async def test_the_status_feed_starts_with_the_full_status() -> None:
    manager = StaticManager(off("a"), off("org/b"))
    async with serving_manager(manager) as (url, _), following(url) as events:
        name, full = await next_of(events)
        async with httpx.AsyncClient() as client:
            assert (name, full) == ("full_status", (await client.get(url + "/v1/models/status")).json())
        manager.put(replace(off("org/b"), status="starting", load_progress=0))
        name, model = await next_of(events)
        assert (name, model["alias"], model["status"], model["load_progress"]) == (
            "model_update",
            "org/b",
            "starting",
            0,
        )
        manager.put(ready("org/b"))
        name, model = await next_of(events)
        assert (name, model["status"], model["port"], model["load_progress"]) == (
            "model_update",
            "ready",
            8085,
            100,
        )
        manager.put_server("initializing")
        assert await next_of(events) == (
            "server_update",
            {
                "status": "initializing",
                "started_at": full["server"]["started_at"],
                "updated_at": "2027-01-15T07:58:31.000000Z",
            },
        )


async def test_a_change_that_is_not_shown_makes_no_event() -> None:
    manager = StaticManager(off("a"))
    async with serving_manager(manager) as (url, _), following(url) as events:
        await next_of(events)
        manager.bump()
        manager.bump()
        manager.put(ready("a"))
        assert (await next_of(events))[1]["status"] == "ready"


async def test_a_model_that_leaves_the_table_becomes_unknown() -> None:
    manager = StaticManager(off("a"), off("b"))
    async with serving_manager(manager) as (url, _), following(url) as events:
        await next_of(events)
        del manager.views["b"]
        manager.bump()
        name, model = await next_of(events)
        assert (name, model["alias"], model["status"]) == ("model_update", "b", "unknown")


async def test_a_heartbeat_comes_after_silence_only() -> None:
    manager = StaticManager(off("a"))
    async with (
        serving_manager(manager, handlers=handlers(manager, silence_s=0.1)) as (url, _),
        following(url) as events,
    ):
        assert (await next_of(events))[0] == "full_status"
        for _ in range(2):
            name, beat = await next_of(events)
            assert (name, sorted(beat), beat["server_status"]) == (
                "heartbeat",
                ["server_status", "timestamp"],
                "ready",
            )


async def test_followers_get_the_latest_state_and_not_every_step() -> None:
    manager = StaticManager(off("a"))
    async with serving_manager(manager) as (url, _), following(url) as events:
        await next_of(events)
        for progress in range(100):
            manager.put(replace(off("a"), status="loading", load_progress=progress))
        manager.put(ready("a"))
        seen = [(await next_of(events))[1]]
        while seen[-1]["status"] != "ready":
            seen.append((await next_of(events))[1])
        assert len(seen) <= 2


async def test_a_slow_reader_delays_no_other_and_queues_nothing() -> None:
    manager = StaticManager(*(off(f"model-{number}") for number in range(50)))
    async with serving_manager(manager) as (url, parts), following(url) as lazy, following(url) as eager:
        await next_of(lazy)
        await next_of(eager)
        for step in range(20):
            manager.put(replace(off("model-0"), status="loading", load_progress=step))
            assert (await next_of(eager))[1]["load_progress"] == step
        assert parts.pipeline.in_flight == 2


async def test_a_follower_that_leaves_is_removed_at_once() -> None:
    manager = StaticManager(off("a"))
    async with serving_manager(manager) as (url, parts):
        async with following(url) as events:
            await next_of(events)
            assert parts.pipeline.in_flight == 1
        assert await until(lambda: parts.pipeline.in_flight == 0)


async def test_the_feed_ends_with_a_server_update_at_shutdown() -> None:
    manager = StaticManager(off("a"))
    async with serving_manager(manager) as (url, _), following(url) as events:
        await next_of(events)
        manager.put_server("shutting_down")
        name, server = await next_of(events)
        assert (name, server["status"]) == ("server_update", "shutting_down")
        assert [event async for event in events] == []


async def test_closing_ends_all_feeds_with_a_last_event() -> None:
    manager = StaticManager(off("a"))
    models = handlers(manager)
    async with (
        serving_manager(manager, handlers=models) as (url, parts),
        following(url) as status,
        following(url, "/metrics/stream") as metrics,
    ):
        await next_of(status)
        await next_of(metrics)
        models.close()
        assert [(name, data["status"]) for name, data in [event async for event in status]] == [
            ("server_update", "shutting_down")
        ]
        assert [event async for event in metrics] == [("shutdown", {"message": "Server shutting down"})]
        assert await until(lambda: parts.pipeline.in_flight == 0)


async def test_the_metrics_feed_ends_with_shutdown() -> None:
    manager = StaticManager(ready("a"), off("b"))
    async with (
        serving_manager(manager, handlers=handlers(manager, every_s=0.02, silence_s=0.05)) as (url, _),
        following(url, "/metrics/stream") as events,
    ):
        name, figures = await next_of(events)
        assert (name, list(figures)) == ("metrics", ["timestamp", "server", "gpu", "models", "totals"])
        assert figures["gpu"] == {
            "vram_total_mb": 24576.0,
            "vram_used_mb": 4096.0,
            "vram_free_mb": 20480.0,
            "vram_used_percent": 16.67,
            "utilization_percent": 37.0,
        }
        assert figures["models"] == [
            {
                "alias": "a",
                "status": "ready",
                "port": 8085,
                "vram_mb": 2048.0,
                "queue_depth": 0,
                "active_requests": 1,
                "requests_1m": 0,
                "errors_1m": 0,
                "avg_latency_ms": 0.0,
                "tokens_1m": 0,
            }
        ]
        names = [name]
        while "heartbeat" not in names:
            name, data = await next_of(events)
            names.append(name)
        assert list(data) == ["timestamp"]
        manager.put_server("shutting_down")
        names = [name async for name, _ in events]
        assert (names[-1], set(names[:-1]) <= {"metrics", "heartbeat"}) == ("shutdown", True)


# ---- a load, followed


async def test_a_load_with_stream_sends_each_step_until_ready() -> None:
    manager = StaticManager(off("org/b"))
    manager.steps.put_nowait(True)
    async with (
        serving_manager(manager) as (url, _),
        following(url, "/v1/models/org/b/load", method="POST", json={"stream": True}) as events,
    ):
        seen = []
        while not seen or seen[-1][1]["load_progress"] != 60:
            seen.append(await next_of(events))
        assert (seen[-1][1]["status"], seen[-1][1]["expected_in_s"]) == ("loading", 3.0)
        manager.steps.put_nowait(True)
        seen += [event async for event in events]
        assert {name for name, _ in seen} == {"model_update"}
        assert (seen[-1][1]["status"], seen[-1][1]["port"]) == ("ready", 8090)


async def test_a_load_of_a_ready_model_ends_with_one_update() -> None:
    manager = StaticManager(ready("a"))
    async with (
        serving_manager(manager) as (url, _),
        following(url, "/v1/models/a/load", method="POST", json={"stream": True}) as events,
    ):
        assert [(name, model["status"]) for name, model in [event async for event in events]] == [
            ("model_update", "ready")
        ]


async def test_a_failed_load_ends_its_stream_with_the_error() -> None:
    manager = StaticManager(off("a"))
    manager.steps.put_nowait(False)
    async with (
        serving_manager(manager) as (url, _),
        following(url, "/v1/models/a/load", method="POST", json={"stream": True}) as events,
    ):
        seen = [event async for event in events]
        assert [name for name, _ in seen[-2:]] == ["model_update", "error"]
        assert seen[-2][1]["status"] == "failed"
        assert (seen[-1][1]["error"]["code"], seen[-1][1]["error"]["model"]) == ("model_failed", "a")


async def test_leaving_a_load_cancels_it() -> None:
    manager = StaticManager(off("a"))
    async with serving_manager(manager) as (url, parts):
        async with following(url, "/v1/models/a/load", method="POST", json={"stream": True}) as events:
            await next_of(events)
            assert await until(lambda: bool(manager.asked))
        assert await until(lambda: manager.loads_cut == 1)
        assert await until(lambda: parts.pipeline.in_flight == 0)
