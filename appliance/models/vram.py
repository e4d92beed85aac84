"""placeholder of the memory readings until they are merged"""
from typing import Protocol

from appliance.models.process import memory_bytes
from appliance.models.views import DeviceView


class Memory(Protocol):
    def read(self) -> list[DeviceView]: ...
    def of_process(self, pid: int) -> dict[int, int]: ...
    @property
    def is_gpu(self) -> bool: ...


class SystemMemory:
    is_gpu = False

    def read(self) -> list[DeviceView]:
        values = {}
        with open("/proc/meminfo") as file:
            for line in file:
                name, _, rest = line.partition(":")
                values[name] = int(rest.split()[0]) * 1024
        total, free = values["MemTotal"], values["MemAvailable"]
        return [DeviceView(-1, "system memory", total, total - free, free)]

    def of_process(self, pid: int) -> dict[int, int]:
        return {-1: memory_bytes(pid)[0]}
