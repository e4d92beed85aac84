"""System memory as a device for models: how much is available, and how much a process uses.

Linux, read from /proc and /sys. Free is what the kernel calls available, page cache included. In a container
the limits of all its control groups apply, the tightest first. The part of a group's use that the kernel
reclaims by itself (files not read lately) counts as free.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from appliance.base.errors import Unavailable
from appliance.base.logs import get_logger
from appliance.models.runner.proc import PROC, descendants_of, read_lines, read_number, read_pairs
from appliance.models.status.views import RAM, DeviceView

_log = get_logger("models.memory")


@dataclass(frozen=True, slots=True)
class _GroupFiles:
    """How one version of control groups names its files."""

    limits: tuple[str, ...]
    used: str
    reclaimable: str


# Above memory.high a group is throttled so much that it counts as a limit, too.
_V2 = _GroupFiles(("memory.max", "memory.high"), "memory.current", "inactive_file")
_V1 = _GroupFiles(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


class SystemMemory:
    """The machine's memory, or the share of it that this container has; one device of index -1.

    Args:
        proc: The kernel's /proc.
        cgroups: Where control groups are mounted.

    Raises:
        Unavailable: The kernel does not say how much memory there is.
    """

    is_gpu = False

    def __init__(self, *, proc: Path = PROC, cgroups: Path = Path("/sys/fs/cgroup")) -> None:
        self._proc, self._cgroups = proc, cgroups
        self._has_warned = False
        try:
            self._last = self._reading()
        except KeyError as exc:
            raise Unavailable(
                f"{proc / 'meminfo'} has no line {exc}: the size of the system memory is not known, "
                "and models cannot be loaded."
            ) from exc

    def read(self) -> list[DeviceView]:
        """Return the one device; the last known values where the reading fails."""
        try:
            self._last = self._reading()
            self._has_warned = False
        except KeyError as exc:
            if not self._has_warned:
                _log.warning(
                    "memory_unreadable", device=RAM, error=f"{self._proc / 'meminfo'} has no line {exc}"
                )
            self._has_warned = True
        return [self._last]

    def of_process(self, pid: int) -> dict[int, int]:
        """Return the bytes of memory of a process and those that it has started, mapped files included.

        Returns:
            `{-1: bytes}`; pages that several share are divided among them (Pss). Empty once the process has
            exited.

        Source:
            proc_pid_smaps(5). The kernel walks all its pages for that: 14 ms a GB were measured where they
            are small. Not for every second.
        """
        taken = sum(_resident_bytes(self._proc / str(one)) for one in descendants_of(pid, self._proc))
        return {RAM: taken} if taken else {}

    def _reading(self) -> DeviceView:
        kib = dict(read_pairs(self._proc / "meminfo"))
        total, free = kib["MemTotal"] << 10, kib.get("MemAvailable", kib["MemFree"]) << 10
        for limit, left in self._group_limits():
            total, free = min(total, limit), min(free, left)
        return DeviceView(RAM, "system memory", total, total - free, free)

    def _group_limits(self) -> Iterator[tuple[int, int]]:
        """Yield the limit and the rest of each control group of this process, from its own upwards."""
        for folder, files in self._groups():
            limits = [limit for name in files.limits if (limit := read_number(folder / name)) is not None]
            used = read_number(folder / files.used)
            if limits and used is not None:
                reclaimable = dict(read_pairs(folder / "memory.stat")).get(files.reclaimable, 0)
                yield min(limits), max(0, min(limits) - max(0, used - reclaimable))

    def _groups(self) -> Iterator[tuple[Path, _GroupFiles]]:
        for line in read_lines(self._proc / "self" / "cgroup"):
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if number == "0" and not controllers:
                root, files = self._cgroups, _V2
            elif "memory" in controllers.split(","):
                root, files = self._cgroups / "memory", _V1
            else:
                continue
            # If the path is the host's and only our own group is mounted, its folders are missing: then the
            # root is our group.
            parts = [part for part in PurePosixPath(path).parts if part != "/"]
            parts = [] if ".." in parts else parts
            for count in range(len(parts), -1, -1):
                yield root.joinpath(*parts[:count]), files


def _resident_bytes(process: Path) -> int:
    # Another user's smaps are not readable; the status always is.
    kib = dict(read_pairs(process / "smaps_rollup")).get("Pss")
    return (kib or dict(read_pairs(process / "status")).get("VmRSS", 0)) << 10
