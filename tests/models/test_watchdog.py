"""Looks at what runs: one that does not answer is loaded again, and what one really takes teaches the next load."""

from pathlib import Path

import pytest

from appliance.models.manager import watchdog as room
from appliance.models.manager.watchdog import Watchdog
from appliance.models.runner.load_history import LoadHistory
from appliance.models.status.views import RAM
from tests.models.standin_house import MIB, NEED, Make, StandinHouse, model, settle

pytestmark = pytest.mark.timeout(20)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "RELOAD_AFTER_S", 0)


def hang(house: StandinHouse, number: int = 0, *, is_well: bool = False) -> None:
    runner = list(house.loader.running.values())[number]
    runner.process.answers_well = is_well  # type: ignore[union-attr]


def health(house: StandinHouse) -> tuple[str, int, float]:
    row = house.manager.health()[0]
    return row.status, row.consecutive_failures, row.uptime_percent


async def test_model_never_probed_is_unknown(open_house: Make) -> None:
    house = await open_house("a")
    await house.have("a")
    assert health(house) == ("unknown", 0, 0.0)
    await Watchdog(house.manager).probe()
    assert health(house) == ("healthy", 0, 100.0)
    assert house.manager.health()[0].last_check_s == house.clock.now_s()


async def test_two_failed_probes_degrade_and_a_good_one_mends(open_house: Make) -> None:
    house = await open_house("a")
    await house.have("a")
    watchdog = Watchdog(house.manager)
    hang(house)
    await watchdog.probe()
    assert health(house) == ("healthy", 1, 0.0)
    await watchdog.probe()
    assert health(house) == ("degraded", 2, 0.0)
    hang(house, is_well=True)
    await watchdog.probe()
    assert health(house) == ("healthy", 0, pytest.approx(33.3, abs=0.1))


async def test_five_failed_probes_in_a_row_reload(open_house: Make) -> None:
    house = await open_house("a")
    await house.have("a")
    watchdog = Watchdog(house.manager)
    hang(house)
    for _ in range(4):
        await watchdog.probe()
    assert (house.loader.stopped, health(house)[0]) == ([], "degraded")
    await watchdog.probe()
    assert house.loader.stopped == ["a"]
    await house.loaded("a")
    await watchdog.probe()
    assert (house.status("a"), health(house)[:2]) == ("ready", ("healthy", 0))
    assert house.manager.model("a").attempts == 0


async def test_hung_replica_is_replaced_while_the_other_serves(
    open_house: Make, tmp_path: Path
) -> None:
    house = await open_house(models=[model("a", tmp_path, replicas=2)], slots=1)
    await house.have("a")
    first, second = await house.manager.lease("a"), house.ask("a")
    await house.loaded("a")
    await second
    hang(house, 1)
    watchdog = Watchdog(house.manager)
    for _ in range(5):
        await watchdog.probe()
    assert house.loader.cut_off == {(await second).runner.serial}
    assert [runner.serial for runner in house.manager.runners()] == [first.runner.serial]
    assert house.loader.begun == ["a", "a"]  # nobody asks for more than one just now


async def test_probe_of_a_model_that_stops_does_not_count(open_house: Make) -> None:
    house = await open_house("a")
    await house.have("a")
    runner = house.manager.runners()[0]

    async def answers(limit_s: float) -> bool:
        await house.manager.eject("a")
        return False

    runner.process.is_healthy = answers  # type: ignore[union-attr, method-assign, assignment]
    await Watchdog(house.manager).probe()
    assert health(house) == ("unknown", 0, 0.0)


async def test_measured_memory_decides_the_next_load(open_house: Make, tmp_path: Path) -> None:
    lessons = LoadHistory(tmp_path / "lessons.json")
    house = await open_house("a", history=lessons)
    await house.have("a")
    house.memory.told = {RAM: 2000 * MIB}
    await Watchdog(house.manager).measure()
    view = house.manager.model("a")
    assert (view.memory_bytes, view.average_bytes, view.estimate_bytes) == (
        2000 * MIB,
        2000 * MIB,
        2100 * MIB,
    )
    again = LoadHistory(tmp_path / "lessons.json")
    again.read()
    assert again.record_of(house.manager.model_states["a"].history_key) == lessons.record_of(
        house.manager.model_states["a"].history_key
    )


async def test_unmeasured_memory_is_not_recorded(open_house: Make) -> None:
    house = await open_house("a", gpus=(0,))
    for _ in range(4):
        await house.have("a")
        await Watchdog(house.manager).measure()
        view = house.manager.model("a")
        assert (view.memory_bytes, view.average_bytes, view.estimate_bytes) == (NEED, 0, NEED)
        await house.manager.eject("a")
        await settle()


async def test_reset_while_it_runs_records_nothing_wrong(open_house: Make) -> None:
    house = await open_house("a", "b")
    task = house.ask("a")
    await house.loads("a")
    house.manager.reset("a")
    house.loader.ready("a")
    (await task).release(is_ok=True)
    house.memory.told = {RAM: 2000 * MIB}
    house.manager.model_states["a"].history_key = ""
    await Watchdog(house.manager).measure()
    assert house.manager.history.record_of("") is None
