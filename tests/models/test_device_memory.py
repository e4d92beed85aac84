"""Readings of the memory that models are loaded into: how fresh, and what is left of it."""

from typing import Any

import pytest

from appliance.models.manager.device_memory import MEMORY_FRESH_S, DeviceMemory
from appliance.models.status.views import RAM, DeviceView
from tests.models.manager_states import MIB, model_state, runner_of


class Memory:
    """Devices with 1000 MiB, of which 600 are free; counts readings."""

    def __init__(self, *indices: int) -> None:
        self.indices, self.readings = indices, 0

    @property
    def is_gpu(self) -> bool:
        return self.indices != (RAM,)

    def read(self) -> list[DeviceView]:
        self.readings += 1
        return [DeviceView(index, "", 1000 * MIB, 400 * MIB, 600 * MIB) for index in self.indices]

    def of_process(self, pid: int) -> dict[int, int]:
        return {}


def test_reading_is_reused_while_it_is_fresh() -> None:
    memory = Memory(RAM)
    devices = DeviceMemory(memory)
    for now_s in (10.0, 10.0 + MEMORY_FRESH_S / 2, 10.0 + MEMORY_FRESH_S):
        devices.read(now_s)
    assert memory.readings == 2


def test_reading_is_repeated_after_a_change() -> None:
    memory = Memory(RAM)
    devices = DeviceMemory(memory)
    devices.read(10.0)
    devices.invalidate()
    devices.read(10.0)
    assert memory.readings == 2


def test_system_memory_is_read_beside_gpus() -> None:
    free, total = DeviceMemory(Memory(0)).free_and_total([], 10.0)
    assert (set(free), total[0]) == ({0, RAM}, 1000 * MIB)


@pytest.mark.parametrize(
    ("runner", "free_mib"),
    [
        pytest.param({"phase": "ready", "memory_by_device": {RAM: 100 * MIB}}, 600, id="taken-by-the-driver"),
        pytest.param({"phase": "loading"}, 500, id="not-taken-yet"),
        pytest.param({"phase": "loading", "memory_by_device": {RAM: 30 * MIB}}, 530, id="taken-in-part"),
        pytest.param({"phase": "loading", "memory_by_device": {RAM: 300 * MIB}}, 600, id="taken-more"),
        pytest.param({"phase": "ready", "file_bytes": 50 * MIB}, 550, id="pages-of-files-are-not-free"),
    ],
)
def test_free_memory_beside_a_server(runner: dict[str, Any], free_mib: int) -> None:
    one = runner_of(model_state("a"), need_bytes=100 * MIB, **runner)
    free, total = DeviceMemory(Memory(RAM)).free_and_total([one], 10.0)
    assert (free, total) == ({RAM: free_mib * MIB}, {RAM: 1000 * MIB})


def test_load_over_two_gpus_takes_half_of_each() -> None:
    one = runner_of(model_state("a"), phase="loading", devices=(0, 1), need_bytes=100 * MIB)
    free, _ = DeviceMemory(Memory(0, 1)).free_and_total([one], 10.0)
    assert (free[0], free[1]) == (550 * MIB, 550 * MIB)


def test_memory_of_a_server_is_that_of_its_devices() -> None:
    devices = DeviceMemory(Memory(0))
    on_gpu = runner_of(model_state("a"), devices=(0,))
    in_ram = runner_of(model_state("b"), devices=(RAM,))
    assert (devices.of(on_gpu), devices.of(in_ram)) == (devices.memory, devices.ram)
