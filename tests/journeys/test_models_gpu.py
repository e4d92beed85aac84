"""The model manager with a real NVIDIA GPU.

`make test-gpu`, on a machine that has one, with LLAMA_SERVER a llama-server built for it.

Memory here is what the driver says (NVML); nothing stands in for it. Without a GPU the tests fail: they are
only run where asked for.
"""

import pytest

from appliance.models.runner.vram import NvmlMemory
from tests.journeys.model_tables import MIB, Managed
from tests.journeys.running import until
from tests.tools.tiny_models import REPLY

pytestmark = pytest.mark.gpu
ON_GPU = {"params": {"n_gpu_layers": 99}}


async def test_a_models_memory_is_seen_on_the_gpu_and_comes_back(managed: Managed) -> None:
    appliance = await managed("a", a=ON_GPU)
    assert isinstance(appliance.manager.device_memory.memory, NvmlMemory)
    before = appliance.manager.device_memory.memory.read()[0].free_bytes
    assert await appliance.chat("a") == REPLY
    runner = appliance.runners("a")[0]
    assert set(runner.devices) == {0}
    assert before - appliance.manager.device_memory.memory.read()[0].free_bytes > 50 * MIB
    status, _, value = await appliance.ask("a", path="/vram", method="GET")
    assert (status, value["loaded_models_count"]) == (200, 1)
    await appliance.manager.eject("a")
    assert await until(
        lambda: before - appliance.manager.device_memory.memory.read()[0].free_bytes < 50 * MIB, seconds=10
    )


async def test_models_give_way_to_each_other_on_the_gpu(managed: Managed) -> None:
    appliance = await managed("a", "b", "c", max_concurrent_models=2, a=ON_GPU, b=ON_GPU, c=ON_GPU)
    for alias in "abcab":
        assert await appliance.chat(alias) == REPLY
        assert sum(word == "ready" for word in appliance.statuses().values()) <= 2
    assert all(set(runner.devices) == {0} for alias in "abc" for runner in appliance.runners(alias))


async def test_what_never_fits_is_refused_with_the_drivers_figures(managed: Managed) -> None:
    appliance = await managed("a", a={"params": {"n_gpu_layers": 99, "n_ctx": 131_072}}, vram_multiplier=3.0)
    device = appliance.manager.device_memory.memory.read()[0]
    entry = appliance.manager.model_state("a")
    assert entry.estimate is not None
    appliance.manager.history.record_memory(
        entry.history_key, device.total_bytes
    )  # as if a load of it had filled the card
    status, _, value = await appliance.ask("a")
    assert (status, value["error"]["code"]) == (503, "vram_exhausted")
    assert value["error"]["required_mb"] > device.total_bytes / MIB
    assert value["error"]["available_mb"] <= device.total_bytes / MIB
