"""System memory as a place for models: how much of it is ours to take, and what a process takes of it. Linux, read from /proc and /sys.

What the kernel calls available counts, page cache included; in a container the limits of its control groups bound it, whichever is
the tightest on the way up. Of a group's use the part that the kernel would give back unasked (files not looked at lately) counts as free.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from appliance.base.errors import Unavailable
from appliance.base.logs import get_logger
from appliance.models.status.views import RAM, DeviceView

PROC = Path("/proc")
_log = get_logger("models.memory")


@dataclass(frozen=True, slots=True)
class _Names:
    """How one version of control groups calls its files."""

    limits: tuple[str, ...]
    used: str
    reclaimable: str


# Above memory.high a group is slowed down until it hardly moves: a limit like the other.
_V2 = _Names(("memory.max", "memory.high"), "memory.current", "inactive_file")
_V1 = _Names(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


class SystemMemory:
    """The machine's memory, or the share of it that this container has; one device of index -1."""

    is_gpu = False

    def __init__(self, *, proc: Path = PROC, cgroups: Path = Path("/sys/fs/cgroup")) -> None:
        self._proc, self._cgroups = proc, cgroups
        self._is_silent = False
        try:
            self._last = self._reading()
        except KeyError as exc:
            raise Unavailable(
                f"{proc / 'meminfo'} does not say how much memory there is (no line {exc}): models cannot be loaded by it"
            ) from exc

    def read(self) -> list[DeviceView]:
        """Give the one device; what was last known where the reading fails."""
        try:
            self._last = self._reading()
            self._is_silent = False
        except KeyError as exc:
            if not self._is_silent:
                _log.warning(
                    "memory_unreadable", device=RAM, error=f"{self._proc / 'meminfo'} has no line {exc}"
                )
            self._is_silent = True
        return [self._last]

    def of_process(self, pid: int) -> dict[int, int]:
        """Give the bytes that a process and those that it started hold in memory, mapped model files included: `{-1: bytes}`.

        Gives   pages that several share are divided among them (Pss); empty when the process is gone
        Source  proc_pid_smaps(5). The kernel walks all its pages for that: 14 ms a GB were measured where they are small. Not for every second.
        """
        taken = sum(_resident(self._proc / str(one)) for one in descendants_of(pid, self._proc))
        return {RAM: taken} if taken else {}

    def _reading(self) -> DeviceView:
        told = dict(_pairs(self._proc / "meminfo"))
        total, free = told["MemTotal"] << 10, told.get("MemAvailable", told["MemFree"]) << 10
        for limit, left in self._bounds():
            total, free = min(total, limit), min(free, left)
        return DeviceView(RAM, "system memory", total, total - free, free)

    def _bounds(self) -> Iterator[tuple[int, int]]:
        """Give the limit of each control group that we are in and what is left below it, from ours upwards."""
        for folder, names in self._groups():
            limits = [limit for name in names.limits if (limit := _number(folder / name)) is not None]
            used = _number(folder / names.used)
            if limits and used is not None:
                reclaimable = dict(_pairs(folder / "memory.stat")).get(names.reclaimable, 0)
                yield min(limits), max(0, min(limits) - max(0, used - reclaimable))

    def _groups(self) -> Iterator[tuple[Path, _Names]]:
        for line in _lines(self._proc / "self" / "cgroup"):
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if number == "0" and not controllers:
                root, names = self._cgroups, _V2
            elif "memory" in controllers.split(","):
                root, names = self._cgroups / "memory", _V1
            else:
                continue
            # Where the path is the host's and only our own group is mounted, its folders are not there: then the root is our group.
            parts = [part for part in PurePosixPath(path).parts if part != "/"]
            parts = [] if ".." in parts else parts
            for count in range(len(parts), -1, -1):
                yield root.joinpath(*parts[:count]), names


def descendants_of(pid: int, proc: Path = PROC) -> list[int]:
    """Give the process and all that descend from it, itself first (LLAMA_SERVER_PATH may be a script that starts the real one).

    For those that live with us, and quick: orphans.session_of looks at every process, and finds those whose parent is gone, too.
    """
    found = [pid]
    for one in found:  # grows while we go through it
        found += [child for child in _children(one, proc) if child not in found]
    return found


def _children(pid: int, proc: Path) -> list[int]:
    lists = list(proc.glob(f"{pid}/task/*/children"))
    if lists:
        return [int(word) for path in lists for line in _lines(path) for word in line.split()]
    if not (proc / str(pid)).is_dir():
        return []
    # A kernel built without these lists: everybody's parent is the 2nd word after the name in brackets.
    parents = (
        (path.parent.name, "".join(_lines(path)).rpartition(")")[2].split())
        for path in proc.glob("[0-9]*/stat")
    )
    return [int(name) for name, words in parents if len(words) > 1 and words[1] == str(pid)]


def _resident(process: Path) -> int:
    # Another user's smaps are closed to us; their status never is.
    told = dict(_pairs(process / "smaps_rollup")).get("Pss") or dict(_pairs(process / "status")).get(
        "VmRSS", 0
    )
    return told << 10


def _pairs(path: Path) -> Iterator[tuple[str, int]]:
    """Give the `Name: 123 kB` and `name 123` lines; others are passed over."""
    for line in _lines(path):
        words = line.replace(":", " ", 1).split()
        if len(words) > 1 and words[1].isdecimal():
            yield words[0], int(words[1])


def _number(path: Path) -> int | None:
    """Read the one number of a file; None: no such file, or `max`."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:  # not there, closed to us, or its process has just ended
        return []
