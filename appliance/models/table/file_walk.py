"""All files of MODEL_DIR that may be models, each with its size and time of change. Blocks.

A folder is input that is not trusted. An entry that cannot be used is left out with a warning, and never
decides over the others: one that is no regular file, whose name is no text, or that may not be looked at.
Hidden entries are left out without a word. Links to files are followed, links to folders are not.
"""

import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from appliance.models.table.file_state import FileState

ENDING = ".gguf"
MAX_ENTRIES = 200_000  # of all folders together
MAX_DEPTH = 32
MAX_WARNINGS = 50  # the rest is only counted
# Control characters, bytes that are not UTF-8, separators of lines and paragraphs.
NO_TEXT = frozenset({"Cc", "Cs", "Zl", "Zp"})


@dataclass(slots=True)
class WalkedFolder:
    """What a walk found.

    Attributes:
        files: By path, in the order of the paths.
        folders: Each folder's time of change in nanoseconds; it changes when an entry comes or goes.
        warnings: (path for people, text), MAX_WARNINGS at most.
        left_out: Warnings that are not among those.
    """

    files: dict[Path, FileState] = field(default_factory=dict)
    folders: dict[Path, int] = field(default_factory=dict)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    left_out: int = 0

    def warn(self, path: str, text: str) -> None:
        """Add a warning."""
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append((shown_path(path), text))
        else:
            self.left_out += 1


def is_text(name: str) -> bool:
    """Whether a file's name can be a model's name: UTF-8, without control characters."""
    return name.isprintable() or not any(unicodedata.category(one) in NO_TEXT for one in name)


def shown_path(path: str | Path) -> str:
    """Return a path for people: what is no text is escaped."""
    text = str(path)
    return text if is_text(text) else text.encode("unicode_escape", "backslashreplace").decode("ascii")


def walk_folder(top: Path) -> WalkedFolder:
    """Walk a folder and all below it.

    Args:
        top: Absolute.
    """
    found = WalkedFolder()
    waiting, entries = [(top, 0)], 0
    while waiting:
        folder, depth = waiting.pop()
        for entry in _list_entries(folder, found):
            entries += 1
            if entries > MAX_ENTRIES:
                found.warn(str(top), f"It has more than {MAX_ENTRIES} entries. Only so many are looked at.")
                waiting.clear()
                break
            below = _take_entry(entry, found)
            if below is not None and depth < MAX_DEPTH:
                waiting.append((below, depth + 1))
            elif below is not None:
                found.warn(entry.path, f"It lies more than {MAX_DEPTH} folders deep. It is left out.")
    found.files = dict(sorted(found.files.items()))
    return found


def _list_entries(folder: Path, found: WalkedFolder) -> Iterator["os.DirEntry[str]"]:
    """List a folder's entries, and note when it was changed; one that cannot be listed has none."""
    try:
        changed_ns = folder.stat().st_mtime_ns
        with os.scandir(folder) as entries:
            found.folders[folder] = changed_ns
            yield from entries
    except OSError as exc:
        found.warn(str(folder), f"The folder cannot be read: {exc.strerror or exc}. It is left out.")


def _take_entry(entry: "os.DirEntry[str]", found: WalkedFolder) -> Path | None:
    """Take one entry: return a folder to walk, or add a file, or warn of what is neither.

    1. hidden                                → passed over
    2. a folder                              → to be walked
    3. without the ending of a model file    → passed over
    4. its name is no printable text         → a warning
    5. it cannot be looked at                → a warning
    6. it is no regular file                 → a warning
    7. else                                  → a file
    """
    name = entry.name
    if name.startswith("."):  # 1
        return None
    is_named = name.lower().endswith(ENDING)
    is_usable = is_text(name)
    try:
        if entry.is_dir(follow_symlinks=False):  # 2
            if not is_usable:
                found.warn(
                    entry.path,
                    "The folder's name is not UTF-8, or has control characters. Rename it. It is left out.",
                )
                return None
            return Path(entry.path)
        if not is_named:  # 3
            return None
        if not is_usable:  # 4
            found.warn(
                entry.path,
                "The file's name is not UTF-8, or has control characters. Rename it. It is left out.",
            )
            return None
        state = entry.stat()
    except OSError as exc:  # 5
        if is_named:
            found.warn(entry.path, f"It cannot be looked at: {exc.strerror or exc}. It is left out.")
        return None
    if stat.S_ISREG(state.st_mode):  # 7
        path = Path(entry.path)
        found.files[path] = FileState.of(path, state)
    elif not stat.S_ISDIR(state.st_mode):  # 6
        found.warn(entry.path, "It is no regular file, but a pipe, a socket or a device. It is left out.")
    return None
