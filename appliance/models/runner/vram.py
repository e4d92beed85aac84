"""The memory that models are loaded into: of our GPUs (NVML), or of the system where there are none.

NVML is optional: its bindings are imported only if its library exists. A reading that fails later raises
nothing, since a failing driver must not stop the appliance: the device is reported with its last known
values, and that is logged once. The simulated GPU has no memory, and is never read.
"""

import asyncio
import ctypes
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from appliance.base.errors import Invalid, Unavailable
from appliance.base.logs import get_logger
from appliance.models.runner.proc import descendants_of
from appliance.models.runner.system_memory import SystemMemory
from appliance.models.status.views import DeviceView

ENOUGH = 0.9  # of what was expected back: estimates are not exact, and others allocate meanwhile
POLL_S = 0.1
STILL_POLLS = 5  # after some memory was freed, as many readings without a change mean that it was all
_log = get_logger("models.memory")


class Memory(Protocol):
    """Where models are loaded. Readings take some milliseconds and raise nothing."""

    @property
    def is_gpu(self) -> bool:
        """Whether the devices are GPUs, else system memory."""
        ...

    def read(self) -> list[DeviceView]:
        """Return the devices, in the order of `gpu_devices`; system memory is one device of index -1."""
        ...

    def of_process(self, pid: int) -> dict[int, int]:
        """Return the bytes that a process and those that it has started take, by device.

        Empty = it has exited, or the driver does not show it.
        """
        ...


class NvmlMemory:
    """The GPUs of `gpu_devices`, by the driver's index.

    Args:
        devices: Their indices.

    Raises:
        Unavailable: There is no driver, no GPU, or one that does not show its memory.
        Invalid: An index does not exist.

    Source:
        NVML API reference, "Device Queries".
    """

    is_gpu = True

    def __init__(self, devices: Sequence[int]) -> None:
        self._silent: set[int] = set()
        self._nvml = _start_nvml()
        try:
            _check_indices(devices, self._nvml.nvmlDeviceGetCount())
            self._last = {index: self._reading(index) for index in dict.fromkeys(devices)}
        except self._nvml.NVMLError as exc:
            raise Unavailable(
                f"the NVIDIA driver does not show the memory of the GPUs {list(devices)}: {exc}"
            ) from exc

    def read(self) -> list[DeviceView]:
        """Return the GPUs; one that cannot be read is returned with its last known values."""
        for index in self._last:
            try:
                self._last[index] = self._reading(index)
                self._silent.discard(index)
            except self._nvml.NVMLError as exc:
                if index not in self._silent:
                    _log.warning(
                        "memory_unreadable",
                        device=index,
                        error=str(exc),
                        last_free_bytes=self._last[index].free_bytes,
                    )
                self._silent.add(index)
        return list(self._last.values())

    def of_process(self, pid: int) -> dict[int, int]:
        """Return the bytes of a process by GPU (see Memory).

        Inside a container the driver may use the host's process ids, or not show processes: then it is empty.
        """
        pids = set(descendants_of(pid))
        taken = {
            index: sum(used for one, used in self._processes(index).items() if one in pids)
            for index in self._last
        }
        return {index: used for index, used in taken.items() if used}

    def _processes(self, index: int) -> dict[int, int]:
        """Return the bytes of each process on a GPU.

        One that computes and draws is in both lists, with the same figure.
        """
        nvml, found = self._nvml, dict[int, int]()
        for listed in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
            try:
                for one in listed(nvml.nvmlDeviceGetHandleByIndex(index)):
                    found[one.pid] = max(found.get(one.pid, 0), one.usedGpuMemory or 0)
            except nvml.NVMLError:  # an older driver, or none any more: `read` logs it when the GPU is lost
                continue
        return found

    def _reading(self, index: int) -> DeviceView:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)  # each time: a reset of the driver invalidates it
        memory, name = nvml.nvmlDeviceGetMemoryInfo(handle), nvml.nvmlDeviceGetName(handle)
        busy = self._optional(nvml.nvmlDeviceGetUtilizationRates, handle)
        milliwatts = self._optional(nvml.nvmlDeviceGetPowerUsage, handle)
        celsius = self._optional(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        return DeviceView(
            index,
            name.decode() if isinstance(name, bytes) else str(name),
            memory.total,
            memory.used,
            memory.free,
            utilization_percent=None if busy is None else float(busy.gpu),
            temperature_celsius=None if celsius is None else float(celsius),
            power_watts=None if milliwatts is None else milliwatts / 1000,
        )

    def _optional(self, query: Callable[..., Any], *args: Any) -> Any:
        try:
            return query(*args)
        except self._nvml.NVMLError:  # usually "Not Supported": cards measure different things
            return None


def _start_nvml() -> Any:
    """Return the bindings, started; raises Unavailable."""
    try:  # the library first, as host/gpu.py does
        ctypes.CDLL("libnvidia-ml.so.1")
        import pynvml

        pynvml.nvmlInit()
    except OSError as exc:
        raise Unavailable("there is no NVIDIA driver (libnvidia-ml.so.1)") from exc
    except ImportError as exc:
        raise Unavailable("the NVML bindings are not installed") from exc
    except pynvml.NVMLError as exc:
        raise Unavailable(f"the NVIDIA driver does not respond: {exc}") from exc
    return pynvml


def _check_indices(devices: Sequence[int], count: int) -> None:
    if not count:
        raise Unavailable("the NVIDIA driver reports no GPU")
    wrong = [index for index in devices if not 0 <= index < count]
    if wrong:
        existing = "only GPU 0" if count == 1 else f"GPUs 0 to {count - 1}"
        raise Invalid(
            f"gpu_devices names GPU {', '.join(map(str, wrong))}, but the driver has {existing}. "
            "Correct system.gpu_devices.",
            param="system.gpu_devices",
        )


def pick_memory(
    gpu_devices: Sequence[int], *, is_simulated: bool, offloads: bool = True
) -> tuple[Memory, str]:
    """Choose the memory that models are loaded into.

    1. gpu_devices is empty, or no model puts layers on a GPU    → system memory
    2. the GPU is simulated                                      → system memory
    3. the driver shows the memory of all of gpu_devices         → those GPUs
    4. there is no driver, no GPU, or it does not show it        → system memory

    Args:
        gpu_devices: Indices, as the driver counts.
        is_simulated: The GPU that is reported here is simulated.
        offloads: False = no model of the table puts layers on a GPU (n_gpu_layers = 0).

    Returns:
        The memory, and a sentence that says why.

    Raises:
        Invalid: The driver does not have one of the indices.
    """
    if not gpu_devices:  # 1
        return SystemMemory(), "system memory: gpu_devices is empty"
    if not offloads:
        return SystemMemory(), "system memory: no model puts layers on a GPU"
    if is_simulated:  # 2
        return SystemMemory(), "system memory: the GPU here is simulated and has none"
    try:
        gpus = NvmlMemory(gpu_devices)  # 3
    except Unavailable as exc:  # 4
        return SystemMemory(), f"system memory: {exc.message}"
    return gpus, "GPU memory of " + ", ".join(f"{view.index} ({view.name})" for view in gpus.read())


async def wait_memory_freed(
    memory: Memory,
    device_indices: Sequence[int],
    free_before: Mapping[int, int],
    expected_bytes: int,
    *,
    limit_s: float = 5.0,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> bool:
    """Wait until the memory of a process that has exited is free again.

    Drivers free it some moments after the exit. On system memory the exit itself is the proof, and nothing is
    waited for.

    Args:
        memory: Where the process had its memory.
        device_indices: On which devices.
        free_before: Free bytes by device, read before the process was stopped.
        expected_bytes: Of all these devices together.
        limit_s: The longest wait, in seconds.
        sleep: Replaced by tests.

    Returns:
        True: about all is free again. False: less, and no more came, or `limit_s` passed. Read again before a
            load.
    """
    if not memory.is_gpu or expected_bytes <= 0:
        return True
    last, still = 0, 0
    for _ in range(max(1, round(limit_s / POLL_S))):
        # In a thread: a failing driver may block.
        free = {view.index: view.free_bytes for view in await asyncio.to_thread(memory.read)}
        freed = sum(
            free[index] - free_before[index]
            for index in device_indices
            if index in free and index in free_before
        )
        if freed >= ENOUGH * expected_bytes:
            return True
        still = still + 1 if freed == last and freed > 0 else 0
        if still >= STILL_POLLS:
            return False
        last = freed
        await sleep(POLL_S)
    return False
