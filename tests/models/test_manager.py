"""Who waits for which model, who is served when, and who is refused: the real manager over stand-ins."""

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
from tests.models.standin_house import Make, StandinHouse, model, settle, until

pytestmark = pytest.mark.timeout(20)


async def served(house: StandinHouse, *tasks: "asyncio.Task[Any]") -> list[bool]:
    await settle()
    return [task.done() for task in tasks]


# ---- a slot of a model


async def test_free_slot_is_leased_without_a_wait(open_house: Make) -> None:
    house = await open_house("a", slots=2)
    await house.have("a")
    first, second = await house.manager.lease("a"), await house.manager.lease("a")
    assert (first.waited_s, first.runner is second.runner, first.runner.active) == (0.0, True, 2)
    assert first.url == f"http://127.0.0.1:{first.runner.port}"
    first.release(is_ok=True)
    first.release(is_ok=True)  # a second word about the same request counts nothing
    assert second.runner.active == 1
    second.release(is_ok=False)
    assert (second.runner.active, house.manager.queues()[0].total_processed) == (0, 2)


async def test_all_requests_for_a_model_wait_for_one_load(open_house: Make) -> None:
    house = await open_house("a", slots=3)
    tasks = [house.ask("a") for _ in range(3)]
    await settle()
    assert (house.loader.begun, house.status("a")) == (["a"], "starting")
    await house.loaded("a")
    leases = [await task for task in tasks]
    assert {lease.runner.serial for lease in leases} == {1}
    assert house.loader.begun == ["a"]


async def test_next_request_is_served_when_a_slot_is_released(open_house: Make) -> None:
    house = await open_house("a", slots=2)
    tasks = [house.ask("a") for _ in range(3)]
    await house.loaded("a")
    assert await served(house, *tasks) == [True, True, False]
    house.clock.advance(3)
    (await tasks[0]).release(is_ok=True)
    assert (await tasks[2]).waited_s == 3
    assert house.manager.model("a").runners[0].active == 2


async def test_unknown_model_is_refused_with_the_known_ones(
    open_house: Make,
) -> None:
    house = await open_house("a", "b")
    for ask in (
        lambda: house.manager.lease("c"),
        lambda: house.manager.load("c"),
        lambda: house.manager.eject("c"),
    ):
        with pytest.raises(NoSuchModel, match=r"'c' does not exist here\. Known: a, b\."):
            await ask()
    for act in (
        lambda: house.manager.pin("c"),
        lambda: house.manager.reset("c"),
        lambda: house.manager.set_keep_alive("c", 1),
        lambda: house.manager.model("c"),
    ):
        with pytest.raises(NoSuchModel):
            act()


async def test_full_queue_is_refused_with_retry_hint(open_house: Make) -> None:
    house = await open_house("a", slots=1, max_queue_size_per_model=2)
    await house.have("a")
    lease = await house.manager.lease("a")
    house.clock.advance(40)
    lease.release(is_ok=True)
    lease = await house.manager.lease("a")
    tasks = [house.ask("a") for _ in range(2)]
    await settle()
    with pytest.raises(QueueFull) as caught:
        await house.manager.lease("a")
    assert caught.value.retry_after_s == 80  # two before it, each of 40 s as the last one took
    assert (house.manager.queues()[0].total_rejected, house.manager.queues()[0].queue_length) == (1, 2)
    lease.release(is_ok=True)
    (await tasks[0]).release(is_ok=True)
    (await tasks[1]).release(is_ok=True)


async def test_queue_timeout_says_the_reason(open_house: Make) -> None:
    house = await open_house("a", "b", places=1, slots=1, queue_timeout_sec=0.05)
    await house.have("a")
    lease = await house.manager.lease("a")
    with pytest.raises(QueueTimeout, match="a is in use") as caught:
        await house.manager.lease("b")
    assert caught.value.retry_after_s is not None
    assert house.manager.queues()[1].queue_length == 0
    lease.release(is_ok=True)
    await settle()
    assert house.loader.begun == ["a"]  # nobody waits for b any more: it is not loaded


async def test_high_priority_goes_first_and_flows_take_turns(open_house: Make) -> None:
    house = await open_house("a", slots=1)
    await house.have("a")
    order: list[str] = []

    async def one(name: str, **how: Any) -> None:
        lease = await house.manager.lease("a", **how)
        order.append(name)
        lease.release(is_ok=True)

    running = await house.manager.lease("a")
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


async def test_low_priority_does_not_wait_for_ever(open_house: Make) -> None:
    house = await open_house("a", slots=1)
    await house.have("a")
    running = await house.manager.lease("a")
    low = house.ask("a", priority=2)
    await settle()
    house.clock.advance(25)  # 10 s count as one level
    high = house.ask("a", priority=0)
    await settle()
    running.release(is_ok=True)
    assert await served(house, low, high) == [True, False]


# ---- leaving


async def test_client_that_leaves_the_queue_keeps_nothing(open_house: Make) -> None:
    house = await open_house("a", slots=1)
    await house.have("a")
    lease = await house.manager.lease("a")
    leaves, stays = house.ask("a"), house.ask("a")
    await settle()
    leaves.cancel()
    await settle()
    assert house.manager.queues()[0].queue_length == 1
    lease.release(is_ok=True)
    assert await served(house, stays) == [True]
    assert (await stays).runner.active == 1


async def test_slot_granted_to_a_client_that_left_goes_to_the_next(open_house: Make) -> None:
    house = await open_house("a", slots=1)
    await house.have("a")
    lease = await house.manager.lease("a")
    leaves, stays = house.ask("a"), house.ask("a")
    await settle()
    lease.release(is_ok=True)  # it has its slot now, and has not run since
    leaves.cancel()
    assert await served(house, leaves, stays) == [True, True]
    assert leaves.cancelled()
    assert (await stays).runner.active == 1


async def test_slot_granted_at_the_moment_of_the_timeout_is_used(open_house: Make) -> None:
    house = await open_house("a", slots=1, queue_timeout_sec=0.05)
    await house.have("a")
    lease = await house.manager.lease("a")
    late = house.ask("a")
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


async def test_model_loaded_for_a_client_that_left_serves_the_next(open_house: Make) -> None:
    house = await open_house("a", slots=1)
    leaves = house.ask("a")
    await settle()
    leaves.cancel()
    await settle()
    comes = house.ask("a")
    await house.loaded("a")
    assert (await comes).runner.active == 1
    assert house.loader.begun == ["a"]


async def test_waiting_client_sees_position_progress_and_reason(open_house: Make) -> None:
    house = await open_house("a", "b", places=1, slots=1)
    await house.have("b")
    lease = await house.manager.lease("b")
    told: list[Any] = []
    tasks = [house.ask("a", on_wait=told.append) for _ in range(2)]
    await settle()
    assert [(one().position, one().status, one().progress, one().expected_in_s) for one in told] == [
        (1, "off", None, None),
        (2, "off", None, None),
    ]
    assert told[0]().reason == "b is in use"
    lease.release(is_ok=True)
    await until(lambda: "a" in house.loader.begun)
    assert (told[0]().status, told[0]().progress, told[0]().expected_in_s) == ("starting", 0, 0.3)
    await house.loaded("a")
    assert told[1]().position == 1
    assert told[1]().reason == "all its slots are busy"
    (await tasks[0]).release(is_ok=True)
    (await tasks[1]).release(is_ok=True)


# ---- refusals


async def test_model_larger_than_the_memory_is_refused_with_figures(open_house: Make) -> None:
    house = await open_house("a", "b", memory_mib=650)
    with pytest.raises(InsufficientMemory, match=r"700 MB needed, 650 MB available") as caught:
        await house.manager.lease("a")
    assert caught.value.details["error_fields"] == {
        "model": "a",
        "required_mb": 700,
        "available_mb": 650,
        "loaded_models": [],
    }
    assert house.manager.queues()[0].total_rejected == 1
    with pytest.raises(InsufficientMemory):
        await house.manager.load("a")


async def test_large_model_evicts_all_others(open_house: Make) -> None:
    house = await open_house("a", "b", memory_mib=800)
    await house.have("a")
    task = house.ask("b")
    await house.loaded("b")
    assert (await task).runner.alias == "b"
    assert house.statuses() == {"a": "off", "b": "ready"}


async def test_pinned_models_are_not_unloaded_for_others(open_house: Make) -> None:
    house = await open_house("a", "b", "c", places=2)
    await house.have("a", "b")
    house.manager.pin("a")
    house.manager.pin("b")
    with pytest.raises(AllPinned, match="max_concurrent_models = 2") as caught:
        await house.manager.lease("c")
    assert caught.value.details["error_fields"]["pinned_models"] == ["a", "b"]
    waits = house.ask("c")
    house.manager.pin("b", pinned=False)
    await house.loaded("c")
    assert (await waits).runner.alias == "c"
    assert house.statuses() == {"a": "ready", "b": "off", "c": "ready"}


async def test_memory_that_a_pinned_model_holds_cannot_be_had(open_house: Make, tmp_path: Any) -> None:
    house = await open_house(
        models=[model("a", tmp_path, pinned=True), model("b", tmp_path)], memory_mib=1000
    )
    await house.have("a")
    with pytest.raises(InsufficientMemory) as caught:
        await house.manager.lease("b")
    assert caught.value.details["error_fields"] == {
        "model": "b",
        "required_mb": 700,
        "available_mb": 500,
        "loaded_models": ["a"],
    }


async def test_closed_manager_refuses_requests(open_house: Make) -> None:
    house = await open_house("a", slots=1)
    await house.have("a")
    await house.manager.lease("a")
    waits, loads = house.ask("a"), house.load("a")
    await settle()
    await house.manager.close()
    with pytest.raises(ShuttingDown):
        await waits
    await loads  # it was loaded already
    for ask in (house.manager.lease, house.manager.load):
        with pytest.raises(ShuttingDown):
            await ask("a")
    assert (house.loader.stopped, house.loader.running) == (["a"], {})


async def test_close_fails_waiting_loads_and_stops_running_ones(open_house: Make) -> None:
    house = await open_house("a", "b", "c", places=2)
    tasks = [house.ask("a"), house.load("b"), house.ask("c")]
    await settle()
    assert house.loader.begun == ["a"]  # one load at a time where memory is the same
    await house.manager.close()
    for task in tasks:
        with pytest.raises(ShuttingDown):
            await task
    assert house.loader.loading == {}
    assert house.loader.running == {}


# ---- what it costs


async def test_hundred_models_and_fifty_waiters_cost_little(open_house: Make) -> None:
    house = await open_house(*[f"m{number}" for number in range(100)], slots=1)
    await house.have("m0", "m1", "m2")
    running = await house.manager.lease("m0")
    for number in range(50):
        house.ask("m0", flow=str(number % 7))
    await settle()
    assert min(repeat(house.manager.reschedule, number=1, repeat=50)) < 0.001
    assert min(repeat(house.manager.models, number=1, repeat=20)) < 0.005
    running.release(is_ok=True)


async def test_memory_reading_is_reused_for_a_while(open_house: Make) -> None:
    house = await open_house("a", gpus=(0,))
    reads: list[object] = []
    for memory in (house.manager.device_memory.memory, house.manager.device_memory.ram):
        house_read = memory.read
        memory.read = lambda read=house_read: (reads.append(1), read())[1]  # type: ignore[method-assign]
    await house.have("a")
    reads.clear()
    for _ in range(20):
        (await house.manager.lease("a")).release(is_ok=True)
    assert len(reads) <= 2


async def test_memory_is_only_read_while_somebody_waits(open_house: Make) -> None:
    house = await open_house("a", slots=1)
    await house.have("a")
    reads: list[float] = []
    house_read = house.manager.device_memory.memory.read
    house.manager.device_memory.memory.read = lambda: (reads.append(house.clock.monotonic_s()), house_read())[
        1
    ]  # type: ignore[method-assign]
    for _ in range(5):  # the answers end, and nobody is in line
        lease = await house.manager.lease("a")
        house.clock.advance(5)
        lease.release(is_ok=True)
    assert reads == []
    first = await house.manager.lease("a")
    second = house.ask("a")
    await settle()
    assert len(reads) == 1
    first.release(is_ok=True)
    (await second).release(is_ok=True)
