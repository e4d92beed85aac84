"""The memory that models are loaded into, read at most every quarter of a second."""

from collections.abc import Iterable

from appliance.models.runner.runner import Runner
from appliance.models.runner.system_memory import SystemMemory
from appliance.models.runner.vram import Memory
from appliance.models.status.views import RAM, DeviceView

MEMORY_FRESH_S = 0.25


class DeviceMemory:
    """Readings of the devices that models are loaded into.

    Attributes:
        memory: The GPUs, or system memory where there are none.
        ram: System memory, for models of which no layer is on a GPU.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.ram: Memory = memory if not memory.is_gpu else SystemMemory()
        self._devices: list[DeviceView] = []
        self._ram_beside_gpus: list[DeviceView] = []
        self._read_s = -1e9

    def read(self, now_s: float) -> list[DeviceView]:
        """Return the driver's reading, at most MEMORY_FRESH_S old."""
        if now_s - self._read_s >= MEMORY_FRESH_S:
            self._devices, self._read_s = self.memory.read(), now_s
            self._ram_beside_gpus = self.ram.read() if self.memory.is_gpu else []
        return self._devices

    def invalidate(self) -> None:
        """Read again at the next call: a llama-server has taken or freed memory."""
        self._read_s = -1e9

    def of(self, runner: Runner) -> Memory:
        """Return the memory that a llama-server is loaded into."""
        return self.ram if RAM in runner.devices else self.memory

    def free_now(self, now_s: float) -> dict[int, int]:
        """Return the driver's free bytes by device."""
        return {device.index: device.free_bytes for device in [*self.read(now_s), *self._ram_beside_gpus]}

    def free_and_total(
        self, runners: Iterable[Runner], now_s: float
    ) -> tuple[dict[int, int], dict[int, int]]:
        """Return the bytes by device as (free, total).

        Free excludes what loading llama-servers have not taken yet, and pages of model files, which the
        kernel counts as available.
        """
        devices = [*self.read(now_s), *self._ram_beside_gpus]
        free = {device.index: device.free_bytes for device in devices}
        for runner in runners:
            for device in runner.devices:
                if runner.phase == "loading":
                    need_bytes = runner.need_bytes // len(runner.devices)
                    missing_bytes = max(0, need_bytes - runner.memory_by_device.get(device, 0))
                    free[device] = free.get(device, 0) - missing_bytes
                if device == RAM:
                    free[device] = free.get(device, 0) - runner.file_bytes
        return free, {device.index: device.total_bytes for device in devices}
