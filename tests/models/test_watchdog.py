"""Health probes of running models.

A model that does not respond is loaded again, and its measured memory is used for the next load.
"""

from pathlib import Path

import pytest

from appliance.models.manager import watchdog as room
from appliance.models.manager.watchdog import Watchdog
from appliance.models.runner.load_history import LoadHistory
from appliance.models.status.views import RAM
from tests.models.manager_harness import MIB, NEED, Make, ManagerHarness, model, settle

pytestmark = pytest.mark.timeout(20)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "RELOAD_AFTER_S", 0)


def hang(harness: ManagerHarness, number: int = 0, *, is_well: bool = False) -> None:
    runner = list(harness.loader.running.values())[number]
    runner.process.answers_well = is_well  # type: ignore[union-attr]


def health(harness: ManagerHarness) -> tuple[str, int, float]:
    row = harness.manager.health()[0]
    return row.status, row.consecutive_failures, row.uptime_percent


async def test_model_never_probed_is_unknown(open_manager: Make) -> None:
    harness = await open_manager("a")
    await harness.have("a")
    assert health(harness) == ("unknown", 0, 0.0)
    await Watchdog(harness.manager).probe()
    assert health(harness) == ("healthy", 0, 100.0)
    assert harness.manager.health()[0].last_check_s == harness.clock.now_s()


async def test_two_failed_probes_degrade_and_a_successful_one_restores(open_manager: Make) -> None:
    harness = await open_manager("a")
    await harness.have("a")
    watchdog = Watchdog(harness.manager)
    hang(harness)
    await watchdog.probe()
    assert health(harness) == ("healthy", 1, 0.0)
    await watchdog.probe()
    assert health(harness) == ("degraded", 2, 0.0)
    hang(harness, is_well=True)
    await watchdog.probe()
    assert health(harness) == ("healthy", 0, pytest.approx(33.3, abs=0.1))


async def test_five_failed_probes_in_a_row_reload(open_manager: Make) -> None:
    harness = await open_manager("a")
    await harness.have("a")
    watchdog = Watchdog(harness.manager)
    hang(harness)
    for _ in range(4):
        await watchdog.probe()
    assert (harness.loader.stopped, health(harness)[0]) == ([], "degraded")
    await watchdog.probe()
    assert harness.loader.stopped == ["a"]
    await harness.loaded("a")
    await watchdog.probe()
    assert (harness.status("a"), health(harness)[:2]) == ("ready", ("healthy", 0))
    assert harness.manager.model("a").attempts == 0


async def test_hung_replica_is_replaced_while_the_other_serves(open_manager: Make, tmp_path: Path) -> None:
    harness = await open_manager(models=[model("a", tmp_path, replicas=2)], slots=1)
    await harness.have("a")
    first, second = await harness.manager.lease("a"), harness.ask("a")
    await harness.loaded("a")
    await second
    hang(harness, 1)
    watchdog = Watchdog(harness.manager)
    for _ in range(5):
        await watchdog.probe()
    assert harness.loader.cut_off == {(await second).runner.serial}
    assert [runner.serial for runner in harness.manager.runners()] == [first.runner.serial]
    assert harness.loader.begun == ["a", "a"]  # nobody asks for more than one just now


async def test_probe_of_a_model_that_stops_does_not_count(open_manager: Make) -> None:
    harness = await open_manager("a")
    await harness.have("a")
    runner = harness.manager.runners()[0]

    async def answers(limit_s: float) -> bool:
        await harness.manager.eject("a")
        return False

    runner.process.is_healthy = answers  # type: ignore[union-attr, method-assign, assignment]
    await Watchdog(harness.manager).probe()
    assert health(harness) == ("unknown", 0, 0.0)


async def test_measured_memory_decides_the_next_load(open_manager: Make, tmp_path: Path) -> None:
    history = LoadHistory(tmp_path / "history.json")
    harness = await open_manager("a", history=history)
    await harness.have("a")
    harness.memory.measured = {RAM: 2000 * MIB}
    await Watchdog(harness.manager).measure()
    view = harness.manager.model("a")
    assert (view.memory_bytes, view.average_bytes, view.estimate_bytes) == (
        2000 * MIB,
        2000 * MIB,
        2100 * MIB,
    )
    again = LoadHistory(tmp_path / "history.json")
    again.read()
    assert again.record_of(harness.manager.model_states["a"].history_key) == history.record_of(
        harness.manager.model_states["a"].history_key
    )


async def test_unmeasured_memory_is_not_recorded(open_manager: Make) -> None:
    harness = await open_manager("a", gpus=(0,))
    for _ in range(4):
        await harness.have("a")
        await Watchdog(harness.manager).measure()
        view = harness.manager.model("a")
        assert (view.memory_bytes, view.average_bytes, view.estimate_bytes) == (NEED, 0, NEED)
        await harness.manager.eject("a")
        await settle()


async def test_reset_while_it_runs_records_nothing_wrong(open_manager: Make) -> None:
    harness = await open_manager("a", "b")
    task = harness.ask("a")
    await harness.loads("a")
    harness.manager.reset("a")
    harness.loader.ready("a")
    (await task).release(is_ok=True)
    harness.memory.measured = {RAM: 2000 * MIB}
    harness.manager.model_states["a"].history_key = ""
    await Watchdog(harness.manager).measure()
    assert harness.manager.history.record_of("") is None
