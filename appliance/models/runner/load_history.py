"""Records of earlier loads: how long a model takes to load, and how much memory it takes.

They are kept over restarts in one small file. A record belongs to a file (path, size, time of change) and to
the way it is run: another context or another type of cache has another record.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.base import jsons
from appliance.base.files import DEFAULT_MODE, write_atomic
from appliance.base.logs import get_logger
from appliance.models.table.file_state import FileState

log = get_logger("models")
ASSUMED_BYTES_PER_S = 500e6  # of a file, while no load was seen yet
MIN_LOAD_S = 0.3
MAX_RECORDS = 1000
MIN_MEASURED_S, MIN_MEASURED_BYTES = 0.05, 1 << 20  # shorter or smaller loads do not show the speed
WORTH_WRITING = 1.01  # a smaller rise is not worth a write of the file


@dataclass(slots=True)
class LoadRecord:
    """The record of one model.

    Attributes:
        load_s: The mean of its loads; recent ones count more.
        memory_bytes: The largest measured value.
        loads: Loads that became ready.
    """

    load_s: float = 0.0
    memory_bytes: int = 0
    loads: int = 0


class LoadHistory:
    """Records of loads by key (see `key_of`).

    Args:
        path: The file; None = in memory only.

    Attributes:
        version: Rises when there is something to write.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._records: dict[str, LoadRecord] = {}
        self._bytes_per_s = ASSUMED_BYTES_PER_S
        self.version = 0

    def read(self) -> None:
        """Read the file; a missing or damaged one counts as empty (blocks)."""
        if self._path is None:
            return
        try:
            rows = jsons.loads(self._path.read_bytes())
            self._records = {str(key): _record(row) for key, row in rows.items()}
        except FileNotFoundError:
            pass
        except (OSError, AttributeError, TypeError, ValueError, ArithmeticError, LookupError) as exc:
            log.warning("load_history_unreadable", path=str(self._path), reason=repr(exc))

    def write(self) -> None:
        """Write the file, whole or not at all (blocks)."""
        if self._path is None:
            return
        rows: dict[str, Any] = {
            key: [round(one.load_s, 3), one.memory_bytes, one.loads]
            for key, one in list(self._records.items())[-MAX_RECORDS:]
        }
        try:
            write_atomic(self._path, jsons.dumps(rows), mode=DEFAULT_MODE, is_synced=False)
        except OSError as exc:
            log.warning("load_history_not_written", path=str(self._path), reason=str(exc))

    def record_of(self, key: str) -> LoadRecord | None:
        """Return the record of a model; None = there is none."""
        return self._records.get(key)

    def record_load(self, key: str, *, seconds: float, size_bytes: int) -> None:
        """Record a load that became ready.

        The page cache makes second loads quicker: the mean counts, recent ones more.

        Args:
            key: See `key_of`; "" = the file is being checked again, and nothing is recorded.
            seconds: From start to ready.
            size_bytes: Of the file; 0 = not known.
        """
        if not key:
            return
        # The latest one last: the last ones are kept longest.
        record = self._records[key] = self._records.pop(key, LoadRecord())
        record.load_s = seconds if not record.loads else (record.load_s + seconds) / 2
        record.loads += 1
        self.version += 1
        if seconds > MIN_MEASURED_S and size_bytes > MIN_MEASURED_BYTES:
            self._bytes_per_s = (self._bytes_per_s + size_bytes / seconds) / 2

    def record_memory(self, key: str, memory_bytes: int) -> None:
        """Record a measured memory; only the largest value is kept."""
        if not key:
            return
        record = self._records.setdefault(key, LoadRecord())
        if memory_bytes > record.memory_bytes * WORTH_WRITING:
            record.memory_bytes = memory_bytes
            self.version += 1

    def expected_load_s(self, key: str, size_bytes: int) -> float:
        """Return how long a load will take: by its record, else by its size and the speed of other loads."""
        record = self._records.get(key)
        if record is not None and record.loads:
            return max(MIN_LOAD_S, record.load_s)
        return max(MIN_LOAD_S, size_bytes / self._bytes_per_s)


def _record(row: Any) -> LoadRecord:
    load_s, memory_bytes, loads = float(row[0]), int(row[1]), int(row[2])
    if not (0 <= load_s < 1e6 and 0 <= memory_bytes < 1 << 50 and loads >= 0):
        raise ValueError(f"invalid record: {row!r}")
    return LoadRecord(load_s, memory_bytes, loads)


def key_of(path: Path, shape: str, others: Sequence[FileState | None] = ()) -> str:
    """Return the key of a model: by its file, by `shape`, how it is run, and by its other files, if any."""
    try:
        stat = path.stat()
        file = f"{path}:{stat.st_size}:{stat.st_mtime_ns}"
    except OSError:
        file = str(path)
    for other in others:
        file += f"\n{other.path}:{other.size_bytes}:{other.modified_ns}" if other is not None else "\n"
    return hashlib.sha256(f"{file}\n{shape}".encode()).hexdigest()[:32]
