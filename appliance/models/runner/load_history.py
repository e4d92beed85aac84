"""What earlier loads taught: how long a model takes to load, and how much memory it really takes. Kept over restarts in one small file.

A model is known by its file (path, size, time of change) and by how it is run: another context or another type of cache is another model.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.base import jsons
from appliance.base.files import DEFAULT_MODE, write_atomic
from appliance.base.logs import get_logger

log = get_logger("models")
GUESSED_BYTES_PER_S = 500e6  # of a file, while no load was seen yet
LEAST_LOAD_S = 0.3
MOST_KEPT = 1000


@dataclass(slots=True)
class LoadRecord:
    """Of one model: seconds of its loads, bytes that it took at its most; `loads` that came to ready."""

    load_s: float = 0.0
    memory_bytes: int = 0
    loads: int = 0


class LoadHistory:
    """Lessons by key, see `key_of`; `path` None = they are forgotten at the end."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lessons: dict[str, LoadRecord] = {}
        self._bytes_per_s = GUESSED_BYTES_PER_S
        self.version = 0  # rises when there is something to write

    def read(self) -> None:
        """Read the file; one that is missing or spoilt is as none (blocks)."""
        if self._path is None:
            return
        try:
            rows = jsons.loads(self._path.read_bytes())
            self._lessons = {str(key): _lesson(row) for key, row in rows.items()}
        except FileNotFoundError:
            pass
        except (OSError, AttributeError, TypeError, ValueError, ArithmeticError, LookupError) as exc:
            log.warning("lessons_unreadable", path=str(self._path), reason=repr(exc))

    def write(self) -> None:
        """Write the file, whole or not at all (blocks)."""
        if self._path is None:
            return
        rows: dict[str, Any] = {
            key: [round(one.load_s, 3), one.memory_bytes, one.loads]
            for key, one in list(self._lessons.items())[-MOST_KEPT:]
        }
        try:
            write_atomic(self._path, jsons.dumps(rows), mode=DEFAULT_MODE, is_synced=False)
        except OSError as exc:
            log.warning("lessons_not_written", path=str(self._path), reason=str(exc))

    def record_of(self, key: str) -> LoadRecord | None:
        return self._lessons.get(key)

    def record_load(self, key: str, *, seconds: float, size_bytes: int) -> None:
        """Take a load that came to ready. The page cache makes second loads quicker: the mean counts, recent ones more."""
        if not key:  # its file is just looked at anew: whose lesson it is, is not known
            return
        lesson = self._lessons[key] = self._lessons.pop(
            key, LoadRecord()
        )  # the latest last: they are kept longest
        lesson.load_s = seconds if not lesson.loads else (lesson.load_s + seconds) / 2
        lesson.loads += 1
        self.version += 1
        if seconds > 0.05 and size_bytes > 1 << 20:
            self._bytes_per_s = (self._bytes_per_s + size_bytes / seconds) / 2

    def record_memory(self, key: str, memory_bytes: int) -> None:
        """Take what it was seen to take while it ran."""
        if not key:
            return
        lesson = self._lessons.setdefault(key, LoadRecord())
        if memory_bytes > lesson.memory_bytes * 1.01:  # a page more or less is not worth a write
            lesson.memory_bytes = memory_bytes
            self.version += 1

    def expected_load_s(self, key: str, size_bytes: int) -> float:
        """Give how long a load is expected to take: as it did, else by the file's size and the speed of other loads."""
        lesson = self._lessons.get(key)
        if lesson is not None and lesson.loads:
            return max(LEAST_LOAD_S, lesson.load_s)
        return max(LEAST_LOAD_S, size_bytes / self._bytes_per_s)


def _lesson(row: Any) -> LoadRecord:
    load_s, memory_bytes, loads = float(row[0]), int(row[1]), int(row[2])
    if not (0 <= load_s < 1e6 and 0 <= memory_bytes < 1 << 50 and loads >= 0):
        raise ValueError(f"no lesson is like {row!r}")
    return LoadRecord(load_s, memory_bytes, loads)


def key_of(path: Path, shape: str) -> str:
    """Give the key of a model: by its file, and by `shape`, how it is run."""
    try:
        stat = path.stat()
        file = f"{path}:{stat.st_size}:{stat.st_mtime_ns}"
    except OSError:
        file = str(path)
    return hashlib.sha256(f"{file}\n{shape}".encode()).hexdigest()[:32]
