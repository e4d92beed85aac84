"""What was downloaded into a folder, in `.download.json`, so that the folder can be verified later.

While a download runs, each file that is done is a line in `.download/journal`; at its end the lines become
part of the manifest. So a download that is killed knows afterwards which files it had, without reading them.
"""

import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from appliance.base import jsons

NAME = ".download.json"
FOLDER = ".download"
JOURNAL = "journal"


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One file as it was fetched.

    Attributes:
        modified_ns: Time of change of the local file; a file with the same time and size is unchanged.
    """

    path: str
    size_bytes: int
    sha256: str
    etag: str = ""
    digest: str = ""
    modified_ns: int = 0

    def is_untouched(self, folder: Path) -> bool:
        """Say whether the file is there and unchanged."""
        try:
            found = (folder / self.path).lstat()
        except OSError:
            return False
        return found.st_size == self.size_bytes and found.st_mtime_ns == self.modified_ns


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One download.

    Attributes:
        asked: The source as it was requested, without credentials.
        pinned: The same with the revision that was found.
        finished_at: "" = it was begun, and not finished.
    """

    asked: str
    pinned: str
    include: str = ""
    exclude: str = ""
    finished_at: str = ""
    files: tuple[ManifestRow, ...] = field(default=())

    def is_same_download(self, other: "ManifestEntry") -> bool:
        """Whether both request the same files of the same source."""
        own = (self.asked, self.include, self.exclude)
        return own == (other.asked, other.include, other.exclude)


def read(folder: Path) -> list[ManifestEntry]:
    """Return what was downloaded into a folder; a manifest that cannot be read counts as none."""
    try:
        value: Any = jsons.loads((folder / NAME).read_bytes())
        return [
            ManifestEntry(**(entry | {"files": tuple(ManifestRow(**row) for row in entry["files"])}))
            for entry in value["downloads"]
        ]
    except (OSError, jsons.InvalidJson, KeyError, TypeError, ValueError):
        return []


def write(folder: Path, entry: ManifestEntry) -> None:
    """Add a download to the manifest, in place of an earlier one of the same; no file is in two entries."""
    own = {row.path for row in entry.files}
    others = [
        replace(other, files=tuple(row for row in other.files if row.path not in own))
        for other in read(folder)
        if not other.is_same_download(entry)
    ]
    entries = [one for one in [*others, entry] if one.files or not one.finished_at]
    value = {"version": 1, "downloads": [asdict(one) for one in entries]}
    new = folder / FOLDER / "manifest.new"
    new.parent.mkdir(exist_ok=True)
    with new.open("wb") as file:
        file.write(jsons.dumps_pretty(value).encode() + b"\n")
        os.fsync(file.fileno())
    new.replace(folder / NAME)


def known_rows(folder: Path) -> dict[str, ManifestRow]:
    """Return the rows of the manifest, and of a journal that no manifest has yet, by path."""
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
    """Remove the journal, and what earlier downloads left of files that the source no longer has."""
    own = folder / FOLDER
    states = _read_states(folder)
    for path, state in states.items():
        if state.get("source") == asked:
            path.with_suffix(".part").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    try:
        for path in own.iterdir():
            is_orphan = path.suffix == ".part" and path.with_suffix(".json") not in states
            if path.suffix == ".new" or path.name == JOURNAL or is_orphan:
                path.unlink(missing_ok=True)
        own.rmdir()
    except OSError:
        pass  # parts of another source are still there


def partial_bytes(folder: Path) -> dict[str, int]:
    """Return the unfinished files: path → bytes that are there."""
    found = {}
    for state in _read_states(folder).values():
        try:
            found[str(state["path"])] = sum(int(end) - int(start) for start, end in state["done"])
        except (KeyError, TypeError, ValueError):
            continue
    return found


def _read_states(folder: Path) -> dict[Path, dict[str, Any]]:
    found: dict[Path, dict[str, Any]] = {}
    for path in (folder / FOLDER).glob("*.json"):
        try:
            value: Any = jsons.loads(path.read_bytes())
        except (OSError, jsons.InvalidJson):
            continue
        if isinstance(value, dict):
            found[path] = value
    return found
