"""What the scheduler is shown of the manager's state, as tables."""

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest

from appliance.models.manager.device_memory import DeviceMemory
from appliance.models.manager.estimates import Estimates
from appliance.models.manager.retention import Retention
from appliance.models.manager.scheduler_input import SchedulerInput, queue_state, resident_runner
from appliance.models.manager.state import ManagerState
from appliance.models.manager.waiters import LoadWaiter, SlotWaiter
from appliance.models.runner.load_history import MIN_LOAD_S, LoadHistory
from appliance.models.scheduler.state import QueueState, ResidentRunner
from appliance.models.status.views import RAM, DeviceView
from tests.models.manager_states import MIB, manager_state, model_state, runner_of

NOW_S = 50.0


class Memory:
    """System memory of a gigabyte, half of it free."""

    is_gpu = False

    def read(self) -> list[DeviceView]:
        return [DeviceView(RAM, "system memory", 1000 * MIB, 500 * MIB, 500 * MIB)]

    def of_process(self, pid: int) -> dict[int, int]:
        return {}


def read(state: ManagerState, history: LoadHistory | None = None) -> Any:
    device_memory = DeviceMemory(Memory())
    made = SchedulerInput(
        state,
        estimates=Estimates(history or LoadHistory(None), device_memory),
        retention=Retention(state),
        device_memory=device_memory,
    )
    return made.read(NOW_S, extra_wait_s=30.0, ageing_s=10.0)


async def slot(alias: str = "a", since_s: float = 40.0, priority: int = 1) -> SlotWaiter:
    return SlotWaiter(alias, since_s, priority, None, asyncio.get_running_loop().create_future())


async def load(alias: str = "a", since_s: float = 40.0) -> LoadWaiter:
    return LoadWaiter(alias, since_s, 1, None, asyncio.get_running_loop().create_future())


# ---- queues


def test_model_that_nobody_waits_for_has_no_queue() -> None:
    assert queue_state(model_state("a"), NOW_S) is None


@pytest.mark.parametrize("why", ["preload", "restore"])
def test_background_load_is_a_queue_that_evicts_nothing(why: Any) -> None:
    expected = QueueState("a", loads=1, priority=2, may_evict=False)
    assert queue_state(model_state("a", background_load=why), NOW_S) == expected


def test_background_load_is_over_once_the_model_loads() -> None:
    model = model_state("a", background_load="restore")
    runner_of(model, phase="loading")
    assert queue_state(model, NOW_S) is None


async def test_queue_counts_requests_and_loads_and_knows_the_oldest() -> None:
    model = model_state("a", has_reservation=True, evicted_s=20.0)
    for waiter in (await load(since_s=10.0), await slot(since_s=30.0, priority=0), await slot(priority=2)):
        model.waiters[waiter] = None
    assert queue_state(model, NOW_S) == QueueState(
        "a", 2, 1, oldest_s=40.0, priority=0, has_reservation=True, since_eviction_s=30.0
    )


async def test_model_that_was_never_evicted_has_waited_in_full() -> None:
    model = model_state("a")
    model.waiters[await slot()] = None
    queue = queue_state(model, NOW_S)
    assert queue is not None
    assert queue.since_eviction_s == math.inf


# ---- llama-servers


def test_loading_server_shows_the_memory_that_it_will_take() -> None:
    runner = runner_of(model_state("a"), phase="loading", devices=(0, 1), memory_by_device={0: 1})
    shown = resident_runner(runner, NOW_S, load_s=3.0, demand=0.5, is_pinned=True, expires_in_s=7.0)
    half = 50 * MIB
    assert shown.memory == {0: half, 1: half}
    assert (shown.load_s, shown.demand, shown.is_pinned, shown.expires_in_s) == (3.0, 0.5, True, 7.0)


def test_ready_server_shows_what_was_measured() -> None:
    runner = runner_of(
        model_state("a"), load_s=2.0, idle_since_s=45.0, ready_since_s=20.0, memory_by_device={RAM: 9}
    )
    shown = resident_runner(runner, NOW_S, load_s=3.0, demand=0.0, is_pinned=False, expires_in_s=None)
    assert shown == ResidentRunner(
        1, "a", "ready", slots=2, memory={RAM: 9}, idle_s=5.0, ready_s=30.0, load_s=2.0
    )


def test_busy_server_is_not_idle() -> None:
    runner = runner_of(model_state("a"), active=1, idle_since_s=1.0)
    shown = resident_runner(runner, NOW_S, load_s=1.0, demand=0.0, is_pinned=False, expires_in_s=None)
    assert shown.idle_s == 0.0


def test_server_of_a_removed_model_may_stop_at_once() -> None:
    model = model_state("a", is_pinned=True)
    runner_of(model)
    state = manager_state(model)
    del state.models["a"]
    (shown,) = read(state).residents
    assert (shown.is_pinned, shown.expires_in_s, shown.demand) == (False, 0.0, 0.0)


# ---- the whole


async def test_model_whose_file_was_not_checked_is_not_shown() -> None:
    unchecked, checked = model_state("a", history_key=""), model_state("b")
    unchecked.waiters[await slot("a")] = None
    checked.waiters[await slot("b")] = None
    assert [queue.alias for queue in read(manager_state(unchecked, checked)).queues] == ["b"]


async def test_memory_is_read_only_while_somebody_waits() -> None:
    model = model_state("a")
    runner_of(model)
    state = manager_state(model)
    assert (read(state).free, read(state).total) == ({}, {})
    model.waiters[await slot()] = None
    assert (read(state).free, read(state).total) == ({RAM: 500 * MIB}, {RAM: 1000 * MIB})


@pytest.mark.parametrize(
    ("changes", "replicas", "blocked_s"),
    [
        pytest.param({}, 3, 0.0, id="free-to-load"),
        pytest.param({"blocked_until_s": 54.0}, 3, 4.0, id="blocked-after-a-failure"),
        pytest.param({"blocked_until_s": 40.0}, 3, 0.0, id="no-longer-blocked"),
        pytest.param(
            {"blocked_until_s": 54.0, "replica_failures": 1}, 1, 0.0, id="makes-do-with-those-that-run"
        ),
        pytest.param({"blocked_until_s": 40.0, "replica_failures": 1}, 3, 0.0, id="tries-the-replica-again"),
    ],
)
async def test_facts_of_a_model_with_failures(
    changes: dict[str, Any], replicas: int, blocked_s: float
) -> None:
    model = model_state("a", **changes)
    model.definition = replace(model.definition, replicas=3)
    runner_of(model)
    model.waiters[await slot()] = None
    facts = read(manager_state(model)).facts["a"]
    assert (facts.replicas, facts.blocked_s, facts.is_failed) == (replicas, blocked_s, False)


async def test_facts_come_from_earlier_loads() -> None:
    model, history = model_state("a"), LoadHistory(None)
    model.waiters[await slot()] = None
    facts = read(manager_state(model), history).facts["a"]
    assert (facts.need_bytes, facts.load_s) == (0, MIN_LOAD_S)
    history.record_load("key-a", seconds=9.0, size_bytes=0)
    history.record_memory("key-a", 100 * MIB)
    facts = read(manager_state(model), history).facts["a"]
    assert (facts.need_bytes, facts.load_s, facts.on_gpu) == (105 * MIB, 9.0, False)
