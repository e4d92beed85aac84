"""A watched value: followers see the newest state."""

import asyncio

from appliance.base.watch import Watched


async def test_follower_gets_the_present_value_then_the_newest() -> None:
    watched, seen = Watched(1), list[int]()
    follower = watched.follow()
    seen.append(await anext(follower))
    watched.set(2)
    watched.set(3)
    seen.append(await anext(follower))
    assert (seen, watched.value, watched.version) == ([1, 3], 3, 2)


async def test_equal_value_wakes_no_follower() -> None:
    watched = Watched("a")
    waiter = asyncio.ensure_future(watched.newer(0))
    watched.set("a")
    await asyncio.sleep(0)
    assert not waiter.done()
    watched.set("b")
    assert await waiter == 1


async def test_newer_returns_at_once_if_it_was_changed_already() -> None:
    watched = Watched(0)
    watched.set(1)
    assert await asyncio.wait_for(watched.newer(0), 1) == 1
