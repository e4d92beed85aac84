"""Which GPU is here: the real one (by NVML), none, or a simulated one that says so.

A simulated GPU's identity is in `smi/simulated.py`, which the shim can load without anything else.
"""

import ctypes
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from appliance.host.settings import HostSettings
from appliance.host.smi import simulated


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as nvidia-smi reports it here."""

    index: int
    name: str
    uuid: str
    pci_bus_id: str
    memory_total_mib: int
    driver: str


@dataclass(frozen=True, slots=True)
class GpuReport:
    """The result of GPU_MODE, and why.

    Attributes:
        asked: GPU_MODE.
        mode: What nvidia-smi reports here.
        gpus: Empty if the mode is none.
        reason: A sentence for people.
        is_satisfied: False = GPU_MODE=real, but there is no GPU.
    """

    asked: str
    mode: Literal["real", "simulated", "none"]
    gpus: tuple[Gpu, ...]
    reason: str
    is_satisfied: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON: {asked, mode, simulated, gpus, reason}."""
        return {
            "asked": self.asked,
            "mode": self.mode,
            "simulated": self.mode == "simulated",
            "gpus": [asdict(gpu) for gpu in self.gpus],
            "reason": self.reason,
        }


def find_gpus(settings: HostSettings, environ: Mapping[str, str]) -> GpuReport:
    """Decide what nvidia-smi reports here.

    1. GPU_MODE=none         → none
    2. there is a real GPU   → real, whatever GPU_MODE says: it is always passed through
    3. GPU_MODE=simulated    → the simulated one; its identity is made at the first call of a run
    4. GPU_MODE=real         → none, and not satisfied
    5. GPU_MODE=auto         → none

    Args:
        settings: The package's settings.
        environ: The variables of the simulated GPU, laid over the process's own.
    """
    asked = settings.gpu_mode
    if asked == "none":  # 1
        return GpuReport(asked, "none", (), "GPU_MODE=none")
    real, why = real_gpus()
    if real:  # 2
        more = "; GPU_MODE=simulated is ignored: a real GPU is passed through" if asked == "simulated" else ""
        return GpuReport(
            asked, "real", real, f"NVML reports {len(real)} GPU{'s' if len(real) > 1 else ''}{more}"
        )
    if asked == "simulated":  # 3
        rows = simulated.list_gpus({**os.environ, **environ, "STATE_DIR": str(settings.state_dir)})
        gpus = tuple(Gpu(g.index, g.name, g.uuid, g.bus_id, g.memory_mib, g.driver) for g in rows)
        return GpuReport(
            asked,
            "simulated",
            gpus,
            "GPU_MODE=simulated: this GPU is simulated, and every name that is printed says so",
        )
    if asked == "real":  # 4
        return GpuReport(asked, "none", (), f"GPU_MODE=real, but no GPU was found: {why}", is_satisfied=False)
    return GpuReport(asked, "none", (), f"no GPU: {why}")  # 5


def real_gpus() -> tuple[tuple[Gpu, ...], str]:
    """Ask NVML for the machine's GPUs.

    Returns:
        (GPUs, ""), or ((), why there are none).
    """
    try:  # the library first: without it, loading the bindings would waste seven megabytes
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
