"""Which GPU is here: the real one through NVML, none, or a made-up one that says so. Used by prepare and serve.

The identity of a simulated GPU and the shim's decisions live in `simulated.py`, which the shim can load without anything else.
"""

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from appliance.host.settings import HostSettings
from appliance.host.smi import simulated


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as nvidia-smi reports it here. Memory in MiB."""

    index: int
    name: str
    uuid: str
    pci_bus_id: str
    memory_total_mib: int
    driver: str


@dataclass(frozen=True, slots=True)
class GpuReport:
    """What GPU_MODE came to, and why."""

    asked: str
    mode: Literal["real", "simulated", "none"]
    gpus: tuple[Gpu, ...]
    reason: str
    is_satisfied: bool = True  # False: GPU_MODE=real and there is none

    def as_dict(self) -> dict[str, Any]:
        rows = [
            {
                "index": g.index,
                "name": g.name,
                "uuid": g.uuid,
                "pci_bus_id": g.pci_bus_id,
                "memory_total_mib": g.memory_total_mib,
                "driver": g.driver,
            }
            for g in self.gpus
        ]
        return {
            "asked": self.asked,
            "mode": self.mode,
            "simulated": self.mode == "simulated",
            "gpus": rows,
            "reason": self.reason,
        }


def find_gpus(settings: HostSettings, environ: Mapping[str, str]) -> GpuReport:
    """Decide what nvidia-smi reports here.

    Gives   GpuReport
            1. GPU_MODE=none                     → none
            2. a real GPU is there               → real, whatever else was asked for: it is passed through, always
            3. GPU_MODE=simulated                → the made-up one, its identity made now if this is the run's first call
            4. GPU_MODE=real                     → none, and not satisfied
            5. auto                              → none
    """
    asked = settings.gpu_mode
    if asked == "none":  # 1
        return GpuReport(asked, "none", (), "GPU_MODE=none")
    real, why = real_gpus()
    if real:  # 2
        more = (
            "; a simulated one was asked for, but the real one is passed through"
            if asked == "simulated"
            else ""
        )
        return GpuReport(
            asked, "real", real, f"NVML reports {len(real)} GPU{'s' if len(real) > 1 else ''}{more}"
        )
    if asked == "simulated":  # 3
        rows = simulated.gpus({**os.environ, **environ, "STATE_DIR": str(settings.state_dir)})
        gpus = tuple(Gpu(g.index, g.name, g.uuid, g.bus_id, g.memory_mib, g.driver) for g in rows)
        return GpuReport(
            asked,
            "simulated",
            gpus,
            "GPU_MODE=simulated: this GPU is made up, and every name it prints says so",
        )
    if asked == "real":  # 4
        return GpuReport(asked, "none", (), f"GPU_MODE=real, but there is no GPU: {why}", is_satisfied=False)
    return GpuReport(asked, "none", (), f"no GPU: {why}")  # 5


def real_gpus() -> tuple[tuple[Gpu, ...], str]:
    """Ask NVML for the machine's GPUs; give them, or none and the reason."""
    try:  # the library first: where there is none, the bindings are not worth their seven megabytes
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return (), "NVML Shared Library Not Found"
    try:
        import pynvml
    except ImportError:
        return (), "the NVML bindings are not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as exc:
        return (), str(exc)
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        gpus = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            gpus.append(
                Gpu(
                    index,
                    _text(pynvml.nvmlDeviceGetName(handle)),
                    _text(pynvml.nvmlDeviceGetUUID(handle)),
                    _text(pynvml.nvmlDeviceGetPciInfo(handle).busId),
                    pynvml.nvmlDeviceGetMemoryInfo(handle).total // 2**20,
                    driver,
                )
            )
        return tuple(gpus), "" if gpus else "NVML reports no device"
    except pynvml.NVMLError as exc:
        return (), str(exc)
    finally:
        pynvml.nvmlShutdown()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
