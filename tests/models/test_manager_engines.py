"""The memory of models that run by a command: as the operator says, as measured, or as the devices show."""

from pathlib import Path

import pytest

from appliance.models.status.views import DeviceView
from appliance.models.table.catalogue import Model
from appliance.models.table.engine import EngineCommand
from appliance.models.table.entries import Params
from tests.models.manager_harness import MIB, Make, ManagerHarness, model, until


def engine(alias: str, memory_mb: int = 0) -> Model:
    words = EngineCommand(("sh", alias, "${PORT}"), memory_bytes=memory_mb * MIB)
    return Model(alias, None, Params(), "table", engine=words)


def take(harness: ManagerHarness, mib: int) -> None:
    """Let the only GPU have so much memory in use."""
    total = harness.memory.total_bytes
    used = mib * MIB
    harness.memory.read = lambda: [DeviceView(0, "gpu", total, used, total - used)]  # type: ignore[method-assign]


async def test_what_the_device_lost_counts_where_nothing_else_is_known(open_manager: Make) -> None:
    harness = await open_manager(models=[engine("a")], memory_mib=8000, gpus=(0,))
    take(harness, 100)
    task = harness.load("a")
    await harness.loads("a")
    assert harness.manager.model("a").estimate_bytes == 0
    take(harness, 6100)
    harness.loader.ready("a")
    await task
    view = harness.manager.model("a")
    assert view.runners[0].devices == ((0, 6000 * MIB),)
    assert view.estimate_bytes == round(6000 * MIB * 1.05)


async def test_an_engine_of_unknown_memory_is_unloaded_for_another(
    open_manager: Make, tmp_path: Path
) -> None:
    harness = await open_manager(
        models=[engine("a"), model("b", tmp_path)], memory_mib=1000, gpus=(0,), slots=1, extra_wait_s=0.0
    )
    take(harness, 0)
    task = harness.load("a")
    await harness.loads("a")
    take(harness, 900)
    harness.loader.ready("a")
    await task
    asked = harness.ask("b")
    await until(lambda: harness.loader.stopped == ["a"])
    take(harness, 0)
    await harness.loads("b")
    harness.loader.ready("b")
    (await asked).release(is_ok=True)


@pytest.mark.parametrize(("given", "measured", "needs"), [(500, 0, 500), (500, 200, 500), (500, 1000, 1050)])
async def test_a_measurement_counts_if_it_is_more(
    open_manager: Make, given: int, measured: int, needs: int
) -> None:
    harness = await open_manager(models=[engine("a", given)], memory_mib=8000, gpus=(0,))
    await harness.have("a")
    if measured:
        state = harness.manager.model_state("a")
        harness.manager.history.record_memory(state.history_key, measured * MIB)
    assert harness.manager.model("a").estimate_bytes == needs * MIB
