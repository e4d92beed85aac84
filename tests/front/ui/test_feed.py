"""What a page follows: every topic first, then what has changed, until it may not follow any more."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from appliance.base.clock import FakeClock
from appliance.front.ui.feed import SILENCE_S, Feed


def feed_of(state: dict[str, Any], clock: FakeClock) -> Feed:
    return Feed(
        {"status": lambda: state["status"]},
        {"requests": lambda: state["requests"]},
        clock=clock,
        every_s=0.001,
    )


def as_role(role: str) -> Callable[[], Awaitable[str]]:
    async def role_of() -> str:
        return role

    return role_of


def name_of(event: bytes) -> str:
    return event.split(b"\n")[0].removeprefix(b"event: ").decode()


async def test_operators_get_every_topic_and_then_what_changed() -> None:
    state, clock = {"status": {"ok": True}, "requests": [1]}, FakeClock()
    events = feed_of(state, clock).stream(as_role("operator"))
    assert [name_of(await anext(events)) for _ in range(2)] == ["status", "requests"]
    state["requests"] = [2]
    clock.advance(1)
    assert await anext(events) == b"event: requests\ndata: [2]\n\n"
    await events.aclose()


async def test_clients_get_nothing_of_operators() -> None:
    feed = feed_of({"status": 1, "requests": 2}, clock := FakeClock())
    events = feed.stream(as_role("client"))
    assert name_of(await anext(events)) == "status"
    clock.advance(SILENCE_S)
    assert name_of(await anext(events)) == "heartbeat"
    await events.aclose()


async def test_a_caller_who_may_not_follow_any_more_is_told() -> None:
    role = "client"

    async def role_of() -> str:
        return role

    events = feed_of({"status": 1}, FakeClock()).stream(role_of)
    await anext(events)
    role = "none"
    assert [event async for event in events] == [b'event: bye\ndata: {"reason":"signed_out"}\n\n']


async def test_every_stream_ends_when_the_feed_is_closed() -> None:
    feed = feed_of({"status": 1}, FakeClock())
    events = feed.stream(as_role("client"))
    await anext(events)
    waiting = asyncio.create_task(anext(events))
    await asyncio.sleep(0)
    feed.close()
    assert await waiting == b'event: bye\ndata: {"reason":"stopping"}\n\n'


async def test_pages_share_what_is_built() -> None:
    built = 0

    def build() -> int:
        nonlocal built
        built += 1
        return built

    feed = Feed({"status": build}, {}, clock=FakeClock(), every_s=1)
    for _ in range(5):
        events = feed.stream(as_role("client"))
        assert await anext(events) == b"event: status\ndata: 1\n\n"
        await events.aclose()
