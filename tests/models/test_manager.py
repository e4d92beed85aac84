"""Who waits for which model, who is served when, and who is refused: the real manager with fakes."""

import asyncio
from timeit import repeat
from typing import Any

import pytest

from appliance.base.errors import NoSuchModel
from appliance.models.manager.errors import (
    AllPinned,
    InsufficientMemory,
    QueueFull,
    QueueTimeout,
    ShuttingDown,
)
from tests.models.manager_harness import Make, ManagerHarness, model, settle, until

pytestmark = pytest.mark.timeout(20)


async def served(harness: ManagerHarness, *tasks: "asyncio.Task[Any]") -> list[bool]:
    await settle()
    return [task.done() for task in tasks]


# ---- a slot of a model


async def test_free_slot_is_leased_without_a_wait(open_manager: Make) -> None:
    harness = await open_manager("a", slots=2)
    await harness.have("a")
    first, second = await harness.manager.lease("a"), await harness.manager.lease("a")
    assert (first.waited_s, first.runner is second.runner, first.runner.active) == (0.0, True, 2)
    assert first.url == f"http://127.0.0.1:{first.runner.port}"
    first.release(is_ok=True)
    first.release(is_ok=True)  # a second release of the same lease counts nothing
    assert second.runner.active == 1
    second.release(is_ok=False)
    assert (second.runner.active, harness.manager.queues()[0].total_processed) == (0, 2)


async def test_all_requests_for_a_model_wait_for_one_load(open_manager: Make) -> None:
    harness = await open_manager("a", slots=3)
    tasks = [harness.ask("a") for _ in range(3)]
    await settle()
    assert (harness.loader.begun, harness.status("a")) == (["a"], "starting")
    await harness.loaded("a")
    leases = [await task for task in tasks]
    assert {lease.runner.serial for lease in leases} == {1}
    assert harness.loader.begun == ["a"]


async def test_next_request_is_served_when_a_slot_is_released(open_manager: Make) -> None:
    harness = await open_manager("a", slots=2)
    tasks = [harness.ask("a") for _ in range(3)]
    await harness.loaded("a")
    assert await served(harness, *tasks) == [True, True, False]
    harness.clock.advance(3)
    (await tasks[0]).release(is_ok=True)
    assert (await tasks[2]).waited_s == 3
    assert harness.manager.model("a").runners[0].active == 2


async def test_unknown_model_is_refused_with_the_known_ones(
    open_manager: Make,
) -> None:
    harness = await open_manager("a", "b")
    for ask in (
        lambda: harness.manager.lease("c"),
        lambda: harness.manager.load("c"),
        lambda: harness.manager.eject("c"),
    ):
        with pytest.raises(NoSuchModel, match=r"'c' does not exist here\. Known: a, b\."):
            await ask()
    for act in (
        lambda: harness.manager.pin("c"),
        lambda: harness.manager.reset("c"),
        lambda: harness.manager.set_keep_alive("c", 1),
        lambda: harness.manager.model("c"),
    ):
        with pytest.raises(NoSuchModel):
            act()


async def test_full_queue_is_refused_with_retry_hint(open_manager: Make) -> None:
    harness = await open_manager("a", slots=1, max_queue_size_per_model=2)
    await harness.have("a")
    lease = await harness.manager.lease("a")
    harness.clock.advance(40)
    lease.release(is_ok=True)
    lease = await harness.manager.lease("a")
    tasks = [harness.ask("a") for _ in range(2)]
    await settle()
    with pytest.raises(QueueFull) as caught:
        await harness.manager.lease("a")
    assert caught.value.retry_after_s == 80  # two before it, each of 40 s as the last one took
    assert (harness.manager.queues()[0].total_rejected, harness.manager.queues()[0].queue_length) == (1, 2)
    lease.release(is_ok=True)
    (await tasks[0]).release(is_ok=True)
    (await tasks[1]).release(is_ok=True)


async def test_queue_timeout_says_the_reason(open_manager: Make) -> None:
    harness = await open_manager("a", "b", places=1, slots=1, queue_timeout_sec=0.05)
    await harness.have("a")
    lease = await harness.manager.lease("a")
    with pytest.raises(QueueTimeout, match="a is in use") as caught:
        await harness.manager.lease("b")
    assert caught.value.retry_after_s is not None
    assert harness.manager.queues()[1].queue_length == 0
    lease.release(is_ok=True)
    await settle()
    assert harness.loader.begun == ["a"]  # nobody waits for b any more: it is not loaded


async def test_high_priority_goes_first_and_flows_take_turns(open_manager: Make) -> None:
    harness = await open_manager("a", slots=1)
    await harness.have("a")
    order: list[str] = []

    async def one(name: str, **how: Any) -> None:
        lease = await harness.manager.lease("a", **how)
        order.append(name)
        lease.release(is_ok=True)

    running = await harness.manager.lease("a")
    tasks = [
        asyncio.create_task(one(name, flow=flow, priority=priority))
        for name, flow, priority in (
            ("low", "x", 2),
            ("x1", "x", 1),
            ("x2", "x", 1),
            ("x3", "x", 1),
            ("y1", "y", 1),
            ("high", "z", 0),
        )
    ]
    await settle()
    running.release(is_ok=True)
    await asyncio.gather(*tasks)
    assert order == ["high", "x1", "y1", "x2", "x3", "low"]


async def test_low_priority_does_not_wait_for_ever(open_manager: Make) -> None:
    harness = await open_manager("a", slots=1)
    await harness.have("a")
    running = await harness.manager.lease("a")
    low = harness.ask("a", priority=2)
    await settle()
    harness.clock.advance(25)  # 10 s count as one level
    high = harness.ask("a", priority=0)
    await settle()
    running.release(is_ok=True)
    assert await served(harness, low, high) == [True, False]


# ---- leaving


async def test_client_that_leaves_the_queue_keeps_nothing(open_manager: Make) -> None:
    harness = await open_manager("a", slots=1)
    await harness.have("a")
    lease = await harness.manager.lease("a")
    leaves, stays = harness.ask("a"), harness.ask("a")
    await settle()
    leaves.cancel()
    await settle()
    assert harness.manager.queues()[0].queue_length == 1
    lease.release(is_ok=True)
    assert await served(harness, stays) == [True]
    assert (await stays).runner.active == 1


async def test_slot_granted_to_a_client_that_left_goes_to_the_next(open_manager: Make) -> None:
    harness = await open_manager("a", slots=1)
    await harness.have("a")
    lease = await harness.manager.lease("a")
    leaves, stays = harness.ask("a"), harness.ask("a")
    await settle()
    lease.release(is_ok=True)  # it has its slot now, and has not run since
    leaves.cancel()
    assert await served(harness, leaves, stays) == [True, True]
    assert leaves.cancelled()
    assert (await stays).runner.active == 1


async def test_slot_granted_at_the_moment_of_the_timeout_is_used(open_manager: Make) -> None:
    harness = await open_manager("a", slots=1, queue_timeout_sec=0.05)
    await harness.have("a")
    lease = await harness.manager.lease("a")
    late = harness.ask("a")
    await settle()
    loop = asyncio.get_running_loop()
    # After the time-out of the queue, in the same round of the loop or the next.
    loop.call_at(loop.time() + 0.05, lambda: lease.release(is_ok=True))
    await asyncio.sleep(0.1)
    if late.exception() is None:
        assert (await late).runner.active == 1
    else:
        assert isinstance(late.exception(), QueueTimeout)
        assert lease.runner.active == 0


async def test_model_loaded_for_a_client_that_left_serves_the_next(open_manager: Make) -> None:
    harness = await open_manager("a", slots=1)
    leaves = harness.ask("a")
    await settle()
    leaves.cancel()
    await settle()
    comes = harness.ask("a")
    await harness.loaded("a")
    assert (await comes).runner.active == 1
    assert harness.loader.begun == ["a"]


async def test_waiting_client_sees_position_progress_and_reason(open_manager: Make) -> None:
    harness = await open_manager("a", "b", places=1, slots=1)
    await harness.have("b")
    lease = await harness.manager.lease("b")
    wait_statuses: list[Any] = []
    tasks = [harness.ask("a", on_wait=wait_statuses.append) for _ in range(2)]
    await settle()
    assert [(one().position, one().status, one().progress, one().expected_in_s) for one in wait_statuses] == [
        (1, "off", None, None),
        (2, "off", None, None),
    ]
    assert wait_statuses[0]().reason == "b is in use"
    lease.release(is_ok=True)
    await until(lambda: "a" in harness.loader.begun)
    assert (wait_statuses[0]().status, wait_statuses[0]().progress, wait_statuses[0]().expected_in_s) == (
        "starting",
        0,
        0.3,
    )
    await harness.loaded("a")
    assert wait_statuses[1]().position == 1
    assert wait_statuses[1]().reason == "all its slots are busy"
    (await tasks[0]).release(is_ok=True)
    (await tasks[1]).release(is_ok=True)


# ---- refusals


async def test_model_larger_than_the_memory_is_refused_with_figures(open_manager: Make) -> None:
    harness = await open_manager("a", "b", memory_mib=650)
    with pytest.raises(InsufficientMemory, match=r"700 MB needed, 650 MB available") as caught:
        await harness.manager.lease("a")
    assert caught.value.details["error_fields"] == {
        "model": "a",
        "required_mb": 700,
        "available_mb": 650,
        "loaded_models": [],
    }
    assert harness.manager.queues()[0].total_rejected == 1
    with pytest.raises(InsufficientMemory):
        await harness.manager.load("a")


async def test_large_model_evicts_all_others(open_manager: Make) -> None:
    harness = await open_manager("a", "b", memory_mib=800)
    await harness.have("a")
    task = harness.ask("b")
    await harness.loaded("b")
    assert (await task).runner.alias == "b"
    assert harness.statuses() == {"a": "off", "b": "ready"}


async def test_pinned_models_are_not_unloaded_for_others(open_manager: Make) -> None:
    harness = await open_manager("a", "b", "c", places=2)
    await harness.have("a", "b")
    harness.manager.pin("a")
    harness.manager.pin("b")
    with pytest.raises(AllPinned, match="max_concurrent_models = 2") as caught:
        await harness.manager.lease("c")
    assert caught.value.details["error_fields"]["pinned_models"] == ["a", "b"]
    waits = harness.ask("c")
    harness.manager.pin("b", pinned=False)
    await harness.loaded("c")
    assert (await waits).runner.alias == "c"
    assert harness.statuses() == {"a": "ready", "b": "off", "c": "ready"}


async def test_memory_of_a_pinned_model_is_not_available(open_manager: Make, tmp_path: Any) -> None:
    harness = await open_manager(
        models=[model("a", tmp_path, pinned=True), model("b", tmp_path)], memory_mib=1000
    )
    await harness.have("a")
    with pytest.raises(InsufficientMemory) as caught:
        await harness.manager.lease("b")
    assert caught.value.details["error_fields"] == {
        "model": "b",
        "required_mb": 700,
        "available_mb": 500,
        "loaded_models": ["a"],
    }


async def test_closed_manager_refuses_requests(open_manager: Make) -> None:
    harness = await open_manager("a", slots=1)
    await harness.have("a")
    await harness.manager.lease("a")
    waits, loads = harness.ask("a"), harness.load("a")
    await settle()
    await harness.manager.close()
    with pytest.raises(ShuttingDown):
        await waits
    await loads  # it was loaded already
    for ask in (harness.manager.lease, harness.manager.load):
        with pytest.raises(ShuttingDown):
            await ask("a")
    assert (harness.loader.stopped, harness.loader.running) == (["a"], {})


async def test_close_fails_waiting_loads_and_stops_running_ones(open_manager: Make) -> None:
    harness = await open_manager("a", "b", "c", places=2)
    tasks = [harness.ask("a"), harness.load("b"), harness.ask("c")]
    await until(lambda: harness.loader.begun)
    assert harness.loader.begun == ["a"]  # one load at a time where memory is the same
    await harness.manager.close()
    for task in tasks:
        with pytest.raises(ShuttingDown):
            await task
    assert harness.loader.loading == {}
    assert harness.loader.running == {}


# ---- what it costs


async def test_hundred_models_and_fifty_waiters_cost_little(open_manager: Make) -> None:
    harness = await open_manager(*[f"m{number}" for number in range(100)], slots=1)
    await harness.have("m0", "m1", "m2")
    running = await harness.manager.lease("m0")
    for number in range(50):
        harness.ask("m0", flow=str(number % 7))
    await settle()
    assert min(repeat(harness.manager.reschedule, number=1, repeat=50)) < 0.001
    assert min(repeat(harness.manager.models, number=1, repeat=20)) < 0.005
    running.release(is_ok=True)


async def test_memory_reading_is_reused_for_a_while(open_manager: Make) -> None:
    harness = await open_manager("a", gpus=(0,))
    reads: list[object] = []
    for memory in (harness.manager.device_memory.memory, harness.manager.device_memory.ram):
        plain_read = memory.read
        memory.read = lambda read=plain_read: (reads.append(1), read())[1]  # type: ignore[method-assign]
    await harness.have("a")
    reads.clear()
    for _ in range(20):
        (await harness.manager.lease("a")).release(is_ok=True)
    assert len(reads) <= 2


async def test_memory_is_only_read_while_somebody_waits(open_manager: Make) -> None:
    harness = await open_manager("a", slots=1)
    await harness.have("a")
    reads: list[float] = []
    plain_read = harness.manager.device_memory.memory.read
    harness.manager.device_memory.memory.read = lambda: (
        reads.append(harness.clock.monotonic_s()),
        plain_read(),
    )[1]  # type: ignore[method-assign]
    for _ in range(5):  # the answers end, and nobody is in line
        lease = await harness.manager.lease("a")
        harness.clock.advance(5)
        lease.release(is_ok=True)
    assert reads == []
    first = await harness.manager.lease("a")
    second = harness.ask("a")
    await settle()
    assert len(reads) == 1
    first.release(is_ok=True)
    (await second).release(is_ok=True)
