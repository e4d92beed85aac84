"""How the supervisor handles failures and requests to stop.

Loads themselves are in test_manager_*.py.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.tasks import Tasks
from appliance.models.manager.device_memory import DeviceMemory
from appliance.models.manager.estimates import Estimates
from appliance.models.manager.events import NO_EVENTS
from appliance.models.manager.state import ManagerState
from appliance.models.manager.supervisor import BACK_OFF_S, RunnerSupervisor
from appliance.models.runner.load_history import LoadHistory
from appliance.models.runner.runner import Runner
from tests.models.manager_states import manager_state, model_state, runner_of
from tests.models.test_scheduler_input import Memory


class Stopper:
    """A loader that only stops."""

    def __init__(self) -> None:
        self.stopped: list[int] = []

    async def stop(self, runner: Runner) -> str:
        self.stopped.append(runner.serial)
        return "term"


def supervisor_of(
    state: ManagerState,
    *,
    loader: Any = None,
    tasks: Tasks | None = None,
    reschedule: Callable[[], None] = lambda: None,
) -> RunnerSupervisor:
    device_memory, history = DeviceMemory(Memory()), LoadHistory(None)
    no_view: Any = None
    return RunnerSupervisor(
        state,
        loader=loader or Stopper(),
        estimates=Estimates(history, device_memory),
        device_memory=device_memory,
        history=history,
        view=no_view,
        events=NO_EVENTS,
        tasks=tasks or Tasks(),
        reschedule=reschedule,
    )


@pytest.mark.parametrize(
    ("before", "is_serving", "can_retry", "attempts", "failure", "pause_s"),
    [
        pytest.param({}, False, True, 1, "", BACK_OFF_S[0], id="3-first-failure"),
        pytest.param({"attempts": 1}, False, True, 2, "", BACK_OFF_S[1], id="3-longer-pause"),
        pytest.param({"attempts": 2}, False, True, 3, "no luck", 0.0, id="2-too-often"),
        pytest.param({}, False, False, 1, "no luck", 0.0, id="2-cannot-succeed"),
        pytest.param({}, True, True, 0, "", BACK_OFF_S[0], id="1-another-one-runs"),
        pytest.param({"replica_failures": 2}, True, True, 0, "", BACK_OFF_S[2], id="1-longer-pause"),
        pytest.param({"replica_failures": 99}, True, True, 0, "", BACK_OFF_S[-1], id="1-longest-pause"),
        pytest.param({}, True, False, 0, "", BACK_OFF_S[-1], id="1-replica-cannot-succeed"),
    ],
)
async def test_record_failure(
    before: dict[str, Any],
    is_serving: bool,
    can_retry: bool,
    attempts: int,
    failure: str,
    pause_s: float,
) -> None:
    model = model_state("a", background_load="restore", **before)
    if is_serving:
        runner_of(model)
    state = manager_state(model, clock=FakeClock(), model_load_max_retries=2)
    supervisor_of(state).record_failure(model, "no luck", can_retry=can_retry)
    assert (model.attempts, model.failure, model.last_error) == (attempts, failure, "no luck")
    assert model.blocked_until_s == pause_s
    assert (model.background_load == "") == (is_serving or bool(failure))


@pytest.mark.parametrize(
    ("phase", "is_forced", "stops_at_once"),
    [
        pytest.param("ready", False, False, id="running-requests-end-first"),
        pytest.param("ready", True, True, id="forced"),
        pytest.param("loading", False, True, id="a-load-is-ended-at-once"),
    ],
)
async def test_request_stop(phase: Any, is_forced: bool, stops_at_once: bool) -> None:
    model, loader, runs = model_state("a"), Stopper(), [0]
    runner = runner_of(model, phase=phase, active=1)
    runner.idle.clear()
    runner.load_ended.set()
    state = manager_state(model)

    def count() -> None:
        runs[0] += 1

    async with Tasks() as tasks:
        supervisor = supervisor_of(state, loader=loader, tasks=tasks, reschedule=count)
        removed: list[Runner] = []
        supervisor.add_removed_callback(removed.append)
        supervisor.request_stop(runner, is_forced=is_forced)
        supervisor.request_stop(runner, is_forced=True)  # it stops already
        for _ in range(5):
            await asyncio.sleep(0)
        assert (runner.phase, runner.is_stop_requested) == ("stopping", True)
        assert loader.stopped == ([1] if stops_at_once else [])
        runner.idle.set()
        await runner.removed.wait()
    assert (loader.stopped, removed, runs) == ([1], [runner], [1])
    assert (model.runners, state.runners, state.counts.ejects) == ([], {}, 1)


async def test_close_ends_every_server_at_once() -> None:
    model, loader = model_state("a"), Stopper()
    runners = [runner_of(model, serial, active=1) for serial in (1, 2)]
    for runner in runners:
        runner.load_ended.set()
    await supervisor_of(manager_state(model), loader=loader).close()
    assert sorted(loader.stopped) == [1, 2]
    assert all(runner.removed.is_set() and runner.is_stop_requested for runner in runners)


async def test_missing_file_is_a_permanent_failure() -> None:
    model = model_state("a", history_key="", file_problem="")
    state = manager_state(model)
    async with Tasks() as tasks:
        supervisor_of(state, tasks=tasks).start(model, (-1,), 0.0)
        (runner,) = model.runners
        await runner.load_ended.wait()
    path = Path("/models/a.gguf")
    assert (model.failure, model.attempts) == (f"model file not found: {path}", 1)
    assert (model.runners, runner.removed.is_set()) == ([], True)


class Broken(Stopper):
    """A loader that raises an unexpected exception."""

    async def load(self, *args: object) -> None:
        raise ZeroDivisionError("oops")


async def test_internal_error_counts_as_a_failed_load() -> None:
    model, loader = model_state("a"), Broken()
    async with Tasks() as tasks:
        supervisor_of(manager_state(model), loader=loader, tasks=tasks).start(model, (-1,), 0.0)
        (runner,) = model.runners
        await runner.load_ended.wait()
    assert (model.last_error, loader.stopped) == ("an internal error: ZeroDivisionError('oops')", [1])
