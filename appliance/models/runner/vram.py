"""The memory where models lie, as the driver says it: of each GPU that is ours (NVML), or of the system where there is none.

NVML is optional: its library is looked for first, its bindings are imported only then. A reading that fails afterwards raises nothing,
since a driver that is gone must not take the appliance with it: the device is reported as it was last known, and that is logged once.
The simulated GPU has no memory and is never asked.
"""

import asyncio
import ctypes
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from appliance.base.errors import Invalid, Unavailable
from appliance.base.logs import get_logger
from appliance.models.runner.system_memory import SystemMemory, descendants_of
from appliance.models.status.views import DeviceView

ENOUGH = 0.9  # of what was expected back: estimates are not exact, and others allocate meanwhile
POLL_S = 0.1
STILL_POLLS = 5  # readings without a change, after something came back, mean that no more will come
_log = get_logger("models.memory")


class Memory(Protocol):
    """Where models lie. Readings take some milliseconds and raise nothing."""

    @property
    def is_gpu(self) -> bool: ...

    def read(self) -> list[DeviceView]:
        """Give the devices, in the order of `gpu_devices`; system memory is one device of index -1."""
        ...

    def of_process(self, pid: int) -> dict[int, int]:
        """Give the bytes that a process and those that it started take, by device index; empty: gone, or the driver does not tell."""
        ...


class NvmlMemory:
    """The GPUs of `gpu_devices`, by the driver's index.

    Raises  Unavailable when there is no driver, no GPU, or one that does not tell its memory · Invalid for an index that does not exist
    Source  NVML API reference, "Device Queries"
    """

    is_gpu = True

    def __init__(self, devices: Sequence[int]) -> None:
        self._silent: set[int] = set()
        self._nvml = _nvml()
        try:
            _check(devices, self._nvml.nvmlDeviceGetCount())
            self._last = {index: self._reading(index) for index in dict.fromkeys(devices)}
        except self._nvml.NVMLError as exc:
            raise Unavailable(
                f"the driver does not tell the memory of the GPUs {list(devices)}: {exc}"
            ) from exc

    def read(self) -> list[DeviceView]:
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
        """As Memory says. Inside a container the driver may count processes as the host does, or not show them: then it is empty."""
        pids = set(descendants_of(pid))
        taken = {
            index: sum(used for one, used in self._processes(index).items() if one in pids)
            for index in self._last
        }
        return {index: used for index, used in taken.items() if used}

    def _processes(self, index: int) -> dict[int, int]:
        """Give the bytes of each process on a GPU. One that computes and draws is in both lists, with the same figure."""
        nvml, found = self._nvml, dict[int, int]()
        for listed in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
            try:
                for one in listed(nvml.nvmlDeviceGetHandleByIndex(index)):
                    found[one.pid] = max(found.get(one.pid, 0), one.usedGpuMemory or 0)
            except (
                nvml.NVMLError
            ):  # an older driver, or none any more: not told (`read` says it when the GPU is gone)
                continue
        return found

    def _reading(self, index: int) -> DeviceView:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(
            index
        )  # each time: handles do not outlive a driver that was reset
        memory, name = nvml.nvmlDeviceGetMemoryInfo(handle), nvml.nvmlDeviceGetName(handle)
        busy = self._told(nvml.nvmlDeviceGetUtilizationRates, handle)
        milliwatts = self._told(nvml.nvmlDeviceGetPowerUsage, handle)
        celsius = self._told(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
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

    def _told(self, ask: Callable[..., Any], *given: Any) -> Any:
        try:
            return ask(*given)
        except self._nvml.NVMLError:  # mostly "Not Supported": cards differ in what they measure
            return None


def _nvml() -> Any:
    """Give the bindings, started. Raises Unavailable."""
    try:  # the library first, as host/gpu.py does
        ctypes.CDLL("libnvidia-ml.so.1")
        import pynvml

        pynvml.nvmlInit()
    except OSError as exc:
        raise Unavailable("there is no NVIDIA driver (libnvidia-ml.so.1)") from exc
    except ImportError as exc:
        raise Unavailable("the NVML bindings are not installed") from exc
    except pynvml.NVMLError as exc:
        raise Unavailable(f"the NVIDIA driver does not answer: {exc}") from exc
    return pynvml


def _check(devices: Sequence[int], count: int) -> None:
    if not count:
        raise Unavailable("the NVIDIA driver reports no GPU")
    wrong = [index for index in devices if not 0 <= index < count]
    if wrong:
        there = "only GPU 0" if count == 1 else f"GPUs 0 to {count - 1}"
        raise Invalid(
            f"gpu_devices names GPU {', '.join(map(str, wrong))}, but the driver has {there}; correct system.gpu_devices",
            param="system.gpu_devices",
        )


def pick_memory(
    gpu_devices: Sequence[int], *, is_simulated: bool, offloads: bool = True
) -> tuple[Memory, str]:
    """Choose the memory that models are loaded by.

    Takes   gpu_devices: as the driver counts; is_simulated: the GPU that is reported here is made up;
            offloads: False when no model of the table puts layers on a GPU (n_gpu_layers = 0)
    Gives   (memory, the sentence why)
            1. nothing is to lie on a GPU, or the GPU is simulated    → system memory
            2. the driver tells the memory of all of gpu_devices      → those GPUs
            3. there is no driver, no GPU, or it does not tell        → system memory
    Raises  Invalid for an index that the driver does not have
    """
    if not gpu_devices or not offloads:  # 1
        return SystemMemory(), "system memory: " + (
            "no model puts layers on a GPU" if gpu_devices else "gpu_devices is empty"
        )
    if is_simulated:
        return SystemMemory(), "system memory: the GPU here is simulated and has none"
    try:
        gpus = NvmlMemory(gpu_devices)  # 2
    except Unavailable as exc:  # 3
        return SystemMemory(), f"system memory: {exc.message}"
    return gpus, "GPU memory of " + ", ".join(f"{view.index} ({view.name})" for view in gpus.read())


async def wait_back(
    memory: Memory,
    device_indices: Sequence[int],
    before_free: Mapping[int, int],
    expected_bytes: int,
    *,
    limit_s: float = 5.0,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> bool:
    """Wait until the memory of a process that has ended is there again: drivers give it back some moments after the exit.

    Takes   device_indices: where it lay; before_free: free bytes by device, read before the stop; expected_bytes: of all these together
    Gives   True: about all came back. False: less, and then no more came, or `limit_s` passed: read again before loading by it.
            On system memory the exit itself is the proof, and nothing is waited for.
    """
    if not memory.is_gpu or expected_bytes <= 0:
        return True
    last, still = 0, 0
    for _ in range(max(1, round(limit_s / POLL_S))):
        free = {
            view.index: view.free_bytes for view in await asyncio.to_thread(memory.read)
        }  # a driver in trouble takes its time
        back = sum(
            free[index] - before_free[index]
            for index in device_indices
            if index in free and index in before_free
        )
        if back >= ENOUGH * expected_bytes:
            return True
        still = still + 1 if back == last and back > 0 else 0
        if still >= STILL_POLLS:
            return False
        last = back
        await sleep(POLL_S)
    return False
