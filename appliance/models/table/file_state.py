"""The state of a file: what tells that it was changed or replaced since it was read."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from appliance.base.file_events import FileMark


@dataclass(frozen=True, slots=True)
class FileState:
    """One file at the time of looking. `inode` differs where another file took its place."""

    path: Path
    size_bytes: int
    modified_ns: int
    inode: int = 0

    @classmethod
    def read(cls, path: Path) -> "FileState":
        """Read a file's state. Raises OSError."""
        return cls.of(path, path.stat())

    @classmethod
    def of(cls, path: Path, found: os.stat_result) -> "FileState":
        """Return the state in what `stat` said."""
        return cls(path, found.st_size, found.st_mtime_ns, found.st_ino)

    @property
    def mark(self) -> FileMark:
        """What the file's events know it by."""
        return self.inode, self.modified_ns, self.size_bytes


def read_states(paths: Iterable[Path]) -> tuple[FileState | None, ...]:
    """Read the states of some files (blocks); None = it is missing, or out of reach."""
    return tuple(map(_read_or_none, paths))


def _read_or_none(path: Path) -> FileState | None:
    try:
        return FileState.read(path)
    except (OSError, ValueError):  # ValueError: the name cannot be that of a file
        return None
