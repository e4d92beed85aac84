"""Watches a folder of model files: which whole files it has, whenever that changes. Blocks.

The first look is cheap: the time of change of each folder, size and time of each file. Only when one of them
differs is the folder walked again.
"""

import time
from dataclasses import replace
from pathlib import Path

from appliance.models.table.file_state import FileState, read_states
from appliance.models.table.file_walk import WalkedFolder, walk_folder

# A folder that was changed so shortly before a look may change again without another time of change.
YOUNG_NS = 2_000_000_000


class FolderWatch:
    """Watches one folder. `top`: absolute."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self._seen = WalkedFolder()
        self._taken: WalkedFolder | None = None
        self._must_walk = True

    def look(self) -> WalkedFolder | None:
        """Look once.

        A new file counts from the second look that finds it the same; a changed one counts as it was until
        then.

        Returns:
            What the folder has, where that has changed; None = nothing has. The first look always returns it,
            with every file that is there.
        """
        if not self._must_walk and self._is_same():
            return None
        now_ns = time.time_ns()
        walked, former, taken = walk_folder(self.top), self._seen.files, self._taken
        files = walked.files if taken is None else _steady_files(walked.files, former, taken.files)
        is_young = any(now_ns - changed_ns < YOUNG_NS for changed_ns in walked.folders.values())
        # What cannot be looked at now may become usable without a change that a `stat` shows.
        self._must_walk = is_young or bool(walked.warnings) or files != walked.files
        self._seen = walked
        found = replace(walked, files=files)
        if taken is not None and (taken.files, taken.warnings) == (files, found.warnings):
            return None
        self._taken = found
        return found

    def _is_same(self) -> bool:
        """Whether no folder and no file has changed since the last walk."""
        if read_states(self._seen.files) != tuple(self._seen.files.values()):
            return False
        changed = [None if one is None else one.modified_ns for one in read_states(self._seen.folders)]
        return changed == list(self._seen.folders.values())


def _steady_files(
    now: dict[Path, FileState], former: dict[Path, FileState], taken: dict[Path, FileState]
) -> dict[Path, FileState]:
    """Return the files that count: those that two looks found the same, and those that counted before."""
    files = {}
    for path, state in now.items():
        if former.get(path) == state:
            files[path] = state
        elif path in taken:
            files[path] = taken[path]
    return files
