"""How models come and go: eject, pins, how long they stay, preloading: the real manager over stand-ins."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from appliance.models.manager.supervisor import BACK_OFF_S
from tests.models.standin_house import Make, model, settle, until

pytestmark = pytest.mark.timeout(20)


# ---- an operator's word


async def test_eject_lets_running_requests_end_and_new_ones_wait(open_house: Make) -> None:
    house = await open_house("a", slots=1, memory_mib=1000)
    await house.have("a")
    lease = await house.manager.lease("a")
    ejecting = asyncio.create_task(house.manager.eject("a"))
    waits = house.ask("a")
    await settle()
    assert (ejecting.done(), waits.done(), house.status("a"), house.loader.stopped) == (
        False,
        False,
        "stopping",
        [],
    )
    lease.release(is_ok=True)
    ejected = await ejecting
    assert (ejected.was_loaded, ejected.waited_for, house.loader.killed_with) == (True, 1, [0])
    await house.loaded("a")
    assert (await waits).runner is not lease.runner
    assert house.manager.counts().ejects == 1


async def test_forced_eject_cuts_off_and_counts_once(open_house: Make) -> None:
    house = await open_house("a", slots=1)
    await house.have("a")
    lease = await house.manager.lease("a")
    gentle = asyncio.create_task(house.manager.eject("a"))
    await settle()
    forced = asyncio.create_task(house.manager.eject("a", force=True))  # it does not wait any longer
    await settle()
    assert house.loader.killed_with == [1]
    lease.release(is_ok=False)  # its connection broke
    assert [(await task).was_loaded for task in (gentle, forced)] == [True, True]
    assert (house.manager.counts().ejects, house.manager.counts().crashes, house.status("a")) == (1, 0, "off")
    assert not (await house.manager.eject("a", force=True)).was_loaded


async def test_eject_during_an_idle_unload_counts_once(open_house: Make) -> None:
    house = await open_house("a")
    house.loader.stops_at_once = False
    await house.have("a")
    house.manager.set_keep_alive("a", 0)
    await settle()
    assert house.status("a") == "stopping"
    ejecting = asyncio.create_task(house.manager.eject("a", force=True))
    await settle()
    assert not ejecting.done()  # it says when it is gone, not before
    house.loader.may_stop.set()
    await ejecting
    assert house.manager.counts().ejects == 1


async def test_eject_during_a_load_starts_another_for_waiters(open_house: Make) -> None:
    house = await open_house("a")
    waits = house.ask("a")
    await settle()
    await house.manager.eject("a")
    assert house.loader.stopped == ["a"]
    await house.loaded("a")
    assert (await waits).runner.serial == 2
    assert house.manager.model("a").attempts == 0  # it was told to go: that is no failure


async def test_eject_cancels_a_pending_restore(open_house: Make) -> None:
    house = await open_house("a")
    await house.have("a")
    house.loader.crash("a")
    await until(lambda: house.status("a") == "crashed")
    await house.manager.eject("a")
    await house.later(60)
    assert house.loader.begun == ["a"]


async def test_load_waits_until_ready_and_returns_at_once_if_it_is(open_house: Make) -> None:
    house = await open_house("a")
    tasks = [house.load("a"), house.load("a", keep_alive_s=7.0)]
    await house.loaded("a")
    assert [(await task).status for task in tasks] == ["ready", "ready"]
    view = await house.manager.load("a")
    assert (view.runners[0].expires_at_s, house.loader.begun) == (house.clock.now_s() + 7, ["a"])
    house.clock.advance(6)
    view = await house.manager.load("a", keep_alive_s=9.0)
    assert view.runners[0].expires_at_s == house.clock.now_s() + 9


async def test_load_evicts_an_idle_model(open_house: Make) -> None:
    house = await open_house("a", "b", places=1)
    await house.have("a", "b")
    assert house.statuses() == {"a": "off", "b": "ready"}


# ---- how long it stays


@pytest.mark.parametrize(
    ("keep_alive_s", "system", "is_pinned", "idle_s", "stays"),
    [
        (None, {}, False, 299, True),
        (None, {}, False, 300, False),  # 5. idle_timeout_sec
        (None, {"enable_idle_timeout": False}, False, 9999, True),  # 4.
        (None, {"keep_warm_models": 1}, False, 9999, True),  # 3.
        (10.0, {"keep_warm_models": 1}, False, 10, False),  # 2. what a request said wins over 3 and 4
        (10.0, {"enable_idle_timeout": False}, False, 10, False),
        (10.0, {}, False, 9, True),
        (900.0, {}, False, 899, True),
        (-1.0, {}, False, 9999, True),
        (0.0, {}, False, 0, False),
        (0.0, {}, True, 9999, True),  # 1. a pin wins over all
        (None, {}, True, 9999, True),
    ],
)
async def test_an_idle_model_stays_as_long_as_the_rules_say(
    open_house: Make,
    tmp_path: Path,
    keep_alive_s: float | None,
    system: dict[str, Any],
    is_pinned: bool,
    idle_s: float,
    stays: bool,
) -> None:
    house = await open_house(
        models=[model("a", tmp_path, pinned=is_pinned)], **{"keep_warm_models": 0, **system}
    )
    await house.have("a")
    (await house.manager.lease("a", keep_alive_s=keep_alive_s)).release(is_ok=True)
    await house.later(idle_s)
    assert house.status("a") == ("ready" if stays else "off")


async def test_keep_alive_begins_when_the_request_ends(open_house: Make) -> None:
    house = await open_house("a", keep_warm_models=0)
    await house.have("a")
    lease = await house.manager.lease("a", keep_alive_s=5)
    await house.later(1000)
    assert house.status("a") == "ready"
    lease.release(is_ok=True)
    await house.later(4)
    assert house.status("a") == "ready"
    await house.later(1)
    assert house.status("a") == "off"


async def test_set_keep_alive_unloads_at_once_or_extends(open_house: Make) -> None:
    house = await open_house("a", "b")
    await house.have("a", "b")
    house.manager.set_keep_alive("a", 0)
    house.manager.set_keep_alive("b", -1)
    await settle()
    assert house.statuses() == {"a": "off", "b": "ready"}
    assert house.manager.model("b").runners[0].expires_at_s is None


async def test_most_requested_models_are_kept_warm(open_house: Make) -> None:
    house = await open_house("a", "b", "c", keep_warm_models=2)
    await house.have("a", "b", "c")
    for alias, times in (("a", 2), ("b", 1), ("c", 3)):
        for _ in range(times):
            (await house.manager.lease(alias)).release(is_ok=True)
    assert [view.is_warm for view in house.manager.models()] == [True, False, True]
    await house.later(301)
    assert house.statuses() == {"a": "ready", "b": "off", "c": "ready"}


async def test_followers_see_an_idle_model_begin_to_stop(open_house: Make) -> None:
    house = await open_house("a")
    await house.have("a")
    house.loader.stops_at_once = False
    before = house.manager.changed.value
    house.clock.advance(1)
    house.manager.set_keep_alive("a", 0)
    assert (house.status("a"), house.manager.model("a").updated_at_s) == ("stopping", house.clock.now_s())
    assert house.manager.changed.value > before


# ---- preloading


async def test_preload_loads_what_fits_and_evicts_nothing(open_house: Make) -> None:
    house = await open_house("a", "b", "c", places=2, preload_models=("*",))
    await house.loaded("a")
    await house.loaded("b")
    await settle()
    assert house.statuses() == {"a": "ready", "b": "ready", "c": "off"}
    (await house.manager.lease("a")).release(is_ok=True)
    assert house.loader.begun == ["a", "b"]


async def test_low_priority_request_goes_before_a_preload(open_house: Make) -> None:
    house = await open_house("a", "b", "c", places=1, preload_models=("a", "b"))
    await house.loaded("a")
    house.loader.stops_at_once = False
    task = house.ask("c", priority=2)
    await settle()
    house.clock.advance(0.1)
    house.loader.may_stop.set()
    await house.loads("c")
    assert house.loader.begun == ["a", "c"]
    await house.loaded("c")
    (await task).release(is_ok=True)


async def test_failed_preload_is_retried_and_given_up(open_house: Make) -> None:
    house = await open_house("a", preload_models=("a",), model_load_max_retries=1)
    await house.fails("a", "no luck")
    assert house.status("a") == "crashed"
    await house.later(BACK_OFF_S[0])
    await house.fails("a", "no luck again")
    assert [(row.alias, row.attempts, row.error) for row in house.manager.failed_models()] == [
        ("a", 2, "no luck again")
    ]
