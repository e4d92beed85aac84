"""The readings of the manager, as tables: which word, which figures."""

from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.models.manager.device_memory import DeviceMemory
from appliance.models.manager.estimates import Estimates
from appliance.models.manager.retention import Retention
from appliance.models.manager.state import ManagerState
from appliance.models.manager.status_view import StatusView, status_of
from appliance.models.runner.load_history import LoadHistory
from appliance.models.status.views import RAM, ManagerCounts, QueueView
from tests.models.manager_states import MIB, manager_state, model_state, runner_of
from tests.models.test_scheduler_input import Memory


def view_of(state: ManagerState, history: LoadHistory | None = None) -> StatusView:
    device_memory = DeviceMemory(Memory())
    return StatusView(
        state,
        estimates=Estimates(history or LoadHistory(None), device_memory),
        retention=Retention(state),
        device_memory=device_memory,
    )


@pytest.mark.parametrize(
    ("model", "runners", "word"),
    [
        pytest.param({}, [{"phase": "ready"}, {"phase": "loading"}], "ready", id="1-one-is-ready"),
        pytest.param({"failure": "no"}, [{"phase": "ready"}], "ready", id="1-whatever-failed-before"),
        pytest.param({}, [{"phase": "loading"}], "starting", id="2-nothing-listens-yet"),
        pytest.param({}, [{"phase": "loading", "load_phase": "loading"}], "loading", id="2-it-listens"),
        pytest.param(
            {}, [{"phase": "stopping"}, {"phase": "loading"}], "starting", id="2-the-next-one-loads"
        ),
        pytest.param({"attempts": 1}, [{"phase": "stopping"}], "stopping", id="3-stops"),
        pytest.param({"failure": "no", "attempts": 3}, [], "failed", id="4-not-until-a-reset"),
        pytest.param({"attempts": 1}, [], "crashed", id="5-is-tried-again"),
        pytest.param({}, [], "off", id="6-off"),
    ],
)
def test_status_word(model: dict[str, Any], runners: list[dict[str, Any]], word: str) -> None:
    one = model_state("a", **model)
    for serial, changes in enumerate(runners):
        runner_of(one, serial, **changes)
    assert status_of(one) == word


@pytest.mark.parametrize(
    ("probes", "failed", "expected"),
    [
        pytest.param([], 0, ("unknown", 0.0, 0.0), id="never-probed"),
        pytest.param([(True, 2.0), (True, 4.0)], 0, ("healthy", 100.0, 3.0), id="healthy"),
        pytest.param([(True, 2.0), (False, 9.0)], 1, ("healthy", 50.0, 2.0), id="one-miss-is-no-trouble"),
        pytest.param([(False, 9.0)] * 2, 2, ("degraded", 0.0, 0.0), id="degraded"),
        pytest.param([(False, 9.0)] * 5, 5, ("down", 0.0, 0.0), id="down"),
        pytest.param([(False, 9.0)] * 50 + [(True, 1.0)] * 20, 0, ("healthy", 100.0, 1.0), id="latest-count"),
    ],
)
def test_health_word(
    probes: list[tuple[bool, float]], failed: int, expected: tuple[str, float, float]
) -> None:
    one = model_state("a", failed_probes=failed)
    one.probes.extend(probes)
    (health,) = view_of(manager_state(one)).health()
    assert (health.status, health.uptime_percent, health.avg_response_ms) == expected
    assert health.consecutive_failures == failed


def test_best_server_gives_port_start_and_progress() -> None:
    one = model_state("a")
    runner_of(one, 1, phase="stopping", port=1, load_progress=100)
    runner_of(one, 2, phase="loading", port=2, load_progress=40)
    view = view_of(manager_state(one)).model("a")
    assert (view.port, view.load_progress) == (2, 40)
    assert [runner.status for runner in view.runners] == ["starting", "stopping"]


def test_expected_time_is_what_is_left_of_a_load() -> None:
    clock, history, one = FakeClock(), LoadHistory(None), model_state("a")
    history.record_load("key-a", seconds=10.0, size_bytes=0)
    runner = runner_of(one, phase="loading", load_started_s=0.0)
    view = view_of(manager_state(one, clock=clock), history)
    clock.advance(4.0)
    assert view.model("a").expected_in_s == 6.0
    clock.advance(40.0)
    assert view.model("a").expected_in_s == 0.0
    runner.phase = "ready"
    assert view.model("a").expected_in_s is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"failure": "f", "last_error": "e", "file_problem": "p"}, "f", id="failure-first"),
        pytest.param({"last_error": "e", "file_problem": "p"}, "e", id="then-the-latest-error"),
        pytest.param({"file_problem": "p"}, "p", id="then-the-file"),
        pytest.param({}, "", id="none"),
    ],
)
def test_error_message(changes: dict[str, Any], message: str) -> None:
    assert view_of(manager_state(model_state("a", **changes))).model("a").error_message == message


def test_memory_is_the_sum_over_servers_and_devices() -> None:
    one = model_state("a")
    runner_of(one, 1, memory_by_device={0: 2, 1: 3})
    runner_of(one, 2, memory_by_device={RAM: 5})
    view = view_of(manager_state(one)).model("a")
    assert (view.memory_bytes, [runner.memory_bytes for runner in view.runners]) == (10, [5, 5])


def test_queue_of_a_model_without_waiters() -> None:
    one = model_state("a", requests=7, processed=5, rejected=1)
    runner_of(one, active=1)
    assert view_of(manager_state(one)).queues() == [QueueView("a", 0, 7, 5, 1, 1, oldest_s=0.0, limit=10)]


def test_counts_have_the_loads_of_each_model() -> None:
    state = manager_state(model_state("a", loads=2), model_state("b"))
    state.count(loads=2, loaded=1)
    state.count(crashes=1, ejects=1)
    assert view_of(state).counts() == ManagerCounts(2, 1, 1, 1, {"a": 2, "b": 0})


def test_devices_are_those_of_the_memory() -> None:
    (device,) = view_of(manager_state()).devices()
    assert (device.index, device.free_bytes) == (RAM, 500 * MIB)
