"""What a folder's downloads were: names, sizes and checksums, in `.download.json`, so that the folder can be held against it later.

While a download runs, each file that is done is a line in `.download/journal`; at its end the lines become part of the manifest. So a
download that is killed knows afterwards which files it had, without reading them.
"""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from appliance.base import jsons

NAME = ".download.json"
FOLDER = ".download"
JOURNAL = "journal"


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One file as it was fetched. modified_ns: of the file on this machine, to see without reading it that nobody touched it."""

    path: str
    size_bytes: int
    sha256: str
    etag: str = ""
    digest: str = ""
    modified_ns: int = 0

    def is_untouched(self, folder: Path) -> bool:
        """Say whether the file is there, untouched."""
        try:
            found = (folder / self.path).lstat()
        except OSError:
            return False
        return found.st_size == self.size_bytes and found.st_mtime_ns == self.modified_ns


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One download. `asked`: the source as it was asked for, `pinned`: with the revision that was found; never with credentials."""

    asked: str
    pinned: str
    include: str = ""
    exclude: str = ""
    finished_at: str = ""
    files: tuple[ManifestRow, ...] = field(default=())


def read(folder: Path) -> list[ManifestEntry]:
    """Give what was downloaded into a folder; a manifest that cannot be read is as good as none."""
    try:
        value: Any = jsons.loads((folder / NAME).read_bytes())
        return [
            ManifestEntry(**(entry | {"files": tuple(ManifestRow(**row) for row in entry["files"])}))
            for entry in value["downloads"]
        ]
    except (OSError, jsons.InvalidJson, KeyError, TypeError, ValueError):
        return []


def write(folder: Path, entry: ManifestEntry) -> None:
    """Put a download into the manifest: in place of an earlier one of the same, whose files it still has are kept by nobody twice."""
    own = {row.path for row in entry.files}
    others = [
        other
        for other in read(folder)
        if (other.asked, other.include, other.exclude) != (entry.asked, entry.include, entry.exclude)
    ]
    others = [
        ManifestEntry(
            **(_fields(other) | {"files": tuple(row for row in other.files if row.path not in own)})
        )
        for other in others
    ]
    value = {
        "version": 1,
        "downloads": [asdict(one) for one in [*others, entry] if one.files or not one.finished_at],
    }
    new = folder / FOLDER / "manifest.new"
    new.parent.mkdir(exist_ok=True)
    with new.open("wb") as file:
        file.write(jsons.dumps_pretty(value).encode() + b"\n")
        os.fsync(file.fileno())
    new.replace(folder / NAME)


def _fields(entry: ManifestEntry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in ManifestEntry.__slots__}


def known_rows(folder: Path) -> dict[str, ManifestRow]:
    """Give the rows of the manifest and of a journal that no manifest has yet, by path."""
    rows = {row.path: row for entry in read(folder) for row in entry.files}
    try:
        lines = (folder / FOLDER / JOURNAL).read_bytes().splitlines()
    except OSError:
        return rows
    for line in lines:
        try:
            row = ManifestRow(**jsons.loads(line))
        except (jsons.InvalidJson, TypeError):
            continue  # the process was killed while it wrote
        rows[row.path] = row
    return rows


def append_journal(folder: Path, row: ManifestRow) -> None:
    """Add a file that is done to the journal."""
    with (folder / FOLDER / JOURNAL).open("ab") as file:
        file.write(jsons.dumps(asdict(row)) + b"\n")


def clear_journal(folder: Path, asked: str) -> None:
    """Remove the journal, and what earlier downloads of the same source left of files that it does not have any more."""
    own = folder / FOLDER
    states = _states(folder)
    for path, state in states.items():
        if state.get("source") == asked:
            path.with_suffix(".part").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    try:
        for path in own.iterdir():
            if (
                path.suffix == ".new"
                or path.name == JOURNAL
                or (path.suffix == ".part" and path.with_suffix(".json") not in states)
            ):
                path.unlink(missing_ok=True)
        own.rmdir()
    except OSError:
        pass  # parts of another source lie there


def partial_bytes(folder: Path) -> dict[str, int]:
    """Give the files that were begun and not finished: path → bytes that are there."""
    found = {}
    for state in _states(folder).values():
        try:
            found[str(state["path"])] = sum(int(end) - int(start) for start, end in state["done"])
        except (KeyError, TypeError, ValueError):
            continue
    return found


def _states(folder: Path) -> dict[Path, dict[str, Any]]:
    found: dict[Path, dict[str, Any]] = {}
    for path in (folder / FOLDER).glob("*.json"):
        try:
            value: Any = jsons.loads(path.read_bytes())
        except (OSError, jsons.InvalidJson):
            continue
        if isinstance(value, dict):
            found[path] = value
    return found
