"""How models come and go: eject, pins, how long they stay, preloading: the real manager with fakes."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from appliance.models.manager.supervisor import BACK_OFF_S
from tests.models.manager_harness import Make, model, settle, until

pytestmark = pytest.mark.timeout(20)


# ---- eject and pins


async def test_eject_lets_running_requests_end_and_new_ones_wait(open_manager: Make) -> None:
    harness = await open_manager("a", slots=1, memory_mib=1000)
    await harness.have("a")
    lease = await harness.manager.lease("a")
    ejecting = asyncio.create_task(harness.manager.eject("a"))
    waits = harness.ask("a")
    await settle()
    assert (ejecting.done(), waits.done(), harness.status("a"), harness.loader.stopped) == (
        False,
        False,
        "stopping",
        [],
    )
    lease.release(is_ok=True)
    ejected = await ejecting
    assert (ejected.was_loaded, ejected.waited_for, harness.loader.killed_with) == (True, 1, [0])
    await harness.loaded("a")
    assert (await waits).runner is not lease.runner
    assert harness.manager.counts().ejects == 1


async def test_forced_eject_cuts_off_and_counts_once(open_manager: Make) -> None:
    harness = await open_manager("a", slots=1)
    await harness.have("a")
    lease = await harness.manager.lease("a")
    gentle = asyncio.create_task(harness.manager.eject("a"))
    await settle()
    forced = asyncio.create_task(harness.manager.eject("a", force=True))  # it does not wait any longer
    await settle()
    assert harness.loader.killed_with == [1]
    lease.release(is_ok=False)  # its connection broke
    assert [(await task).was_loaded for task in (gentle, forced)] == [True, True]
    assert (harness.manager.counts().ejects, harness.manager.counts().crashes, harness.status("a")) == (
        1,
        0,
        "off",
    )
    assert not (await harness.manager.eject("a", force=True)).was_loaded


async def test_eject_during_an_idle_unload_counts_once(open_manager: Make) -> None:
    harness = await open_manager("a")
    harness.loader.stops_at_once = False
    await harness.have("a")
    harness.manager.set_keep_alive("a", 0)
    await settle()
    assert harness.status("a") == "stopping"
    ejecting = asyncio.create_task(harness.manager.eject("a", force=True))
    await settle()
    assert not ejecting.done()  # it returns once it is removed, not before
    harness.loader.may_stop.set()
    await ejecting
    assert harness.manager.counts().ejects == 1


async def test_eject_during_a_load_starts_another_for_waiters(open_manager: Make) -> None:
    harness = await open_manager("a")
    waits = harness.ask("a")
    await harness.loads("a")
    await harness.manager.eject("a")
    assert harness.loader.stopped == ["a"]
    await harness.loaded("a")
    assert (await waits).runner.serial == 2
    assert harness.manager.model("a").attempts == 0  # it was stopped on purpose: that is no failure


async def test_eject_cancels_a_pending_restore(open_manager: Make) -> None:
    harness = await open_manager("a")
    await harness.have("a")
    harness.loader.crash("a")
    await until(lambda: harness.status("a") == "crashed")
    await harness.manager.eject("a")
    await harness.later(60)
    assert harness.loader.begun == ["a"]


async def test_load_waits_until_ready_and_returns_at_once_if_it_is(open_manager: Make) -> None:
    harness = await open_manager("a")
    tasks = [harness.load("a"), harness.load("a", keep_alive_s=7.0)]
    await harness.loaded("a")
    assert [(await task).status for task in tasks] == ["ready", "ready"]
    view = await harness.manager.load("a")
    assert (view.runners[0].expires_at_s, harness.loader.begun) == (harness.clock.now_s() + 7, ["a"])
    harness.clock.advance(6)
    view = await harness.manager.load("a", keep_alive_s=9.0)
    assert view.runners[0].expires_at_s == harness.clock.now_s() + 9


async def test_load_evicts_an_idle_model(open_manager: Make) -> None:
    harness = await open_manager("a", "b", places=1)
    await harness.have("a", "b")
    assert harness.statuses() == {"a": "off", "b": "ready"}


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
    open_manager: Make,
    tmp_path: Path,
    keep_alive_s: float | None,
    system: dict[str, Any],
    is_pinned: bool,
    idle_s: float,
    stays: bool,
) -> None:
    harness = await open_manager(
        models=[model("a", tmp_path, pinned=is_pinned)], **{"keep_warm_models": 0, **system}
    )
    await harness.have("a")
    (await harness.manager.lease("a", keep_alive_s=keep_alive_s)).release(is_ok=True)
    await harness.later(idle_s)
    assert harness.status("a") == ("ready" if stays else "off")


async def test_keep_alive_begins_when_the_request_ends(open_manager: Make) -> None:
    harness = await open_manager("a", keep_warm_models=0)
    await harness.have("a")
    lease = await harness.manager.lease("a", keep_alive_s=5)
    await harness.later(1000)
    assert harness.status("a") == "ready"
    lease.release(is_ok=True)
    await harness.later(4)
    assert harness.status("a") == "ready"
    await harness.later(1)
    assert harness.status("a") == "off"


async def test_set_keep_alive_unloads_at_once_or_extends(open_manager: Make) -> None:
    harness = await open_manager("a", "b")
    await harness.have("a", "b")
    harness.manager.set_keep_alive("a", 0)
    harness.manager.set_keep_alive("b", -1)
    await settle()
    assert harness.statuses() == {"a": "off", "b": "ready"}
    assert harness.manager.model("b").runners[0].expires_at_s is None


async def test_most_requested_models_are_kept_warm(open_manager: Make) -> None:
    harness = await open_manager("a", "b", "c", keep_warm_models=2)
    await harness.have("a", "b", "c")
    for alias, times in (("a", 2), ("b", 1), ("c", 3)):
        for _ in range(times):
            (await harness.manager.lease(alias)).release(is_ok=True)
    assert [view.is_warm for view in harness.manager.models()] == [True, False, True]
    await harness.later(301)
    assert harness.statuses() == {"a": "ready", "b": "off", "c": "ready"}


async def test_followers_see_an_idle_model_begin_to_stop(open_manager: Make) -> None:
    harness = await open_manager("a")
    await harness.have("a")
    harness.loader.stops_at_once = False
    before = harness.manager.changed.value
    harness.clock.advance(1)
    harness.manager.set_keep_alive("a", 0)
    assert (harness.status("a"), harness.manager.model("a").updated_at_s) == (
        "stopping",
        harness.clock.now_s(),
    )
    assert harness.manager.changed.value > before


# ---- preloading


async def test_preload_loads_what_fits_and_evicts_nothing(open_manager: Make) -> None:
    harness = await open_manager("a", "b", "c", places=2, preload_models=("*",))
    await harness.loaded("a")
    await harness.loaded("b")
    await settle()
    assert harness.statuses() == {"a": "ready", "b": "ready", "c": "off"}
    (await harness.manager.lease("a")).release(is_ok=True)
    assert harness.loader.begun == ["a", "b"]


async def test_low_priority_request_goes_before_a_preload(open_manager: Make) -> None:
    harness = await open_manager("a", "b", "c", places=1, preload_models=("a", "b"))
    await harness.loaded("a")
    harness.loader.stops_at_once = False
    task = harness.ask("c", priority=2)
    await settle()
    harness.clock.advance(0.1)
    harness.loader.may_stop.set()
    await harness.loads("c")
    assert harness.loader.begun == ["a", "c"]
    await harness.loaded("c")
    (await task).release(is_ok=True)


async def test_failed_preload_is_retried_and_given_up(open_manager: Make) -> None:
    harness = await open_manager("a", preload_models=("a",), model_load_max_retries=1)
    await harness.fails("a", "no luck")
    assert harness.status("a") == "crashed"
    await harness.later(BACK_OFF_S[0])
    await harness.fails("a", "no luck again")
    assert [(row.alias, row.attempts, row.error) for row in harness.manager.failed_models()] == [
        ("a", 2, "no luck again")
    ]
