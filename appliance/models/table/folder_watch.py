"""Watches a folder of model files: which whole files it has, whenever that changes. Blocks.

The first look is cheap: the time of change of each folder, size and time of each file. Only when one of them
differs is the folder walked again.
"""

import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from appliance.base.file_events import FileMark
from appliance.models.table.file_state import FileState, read_states
from appliance.models.table.file_walk import WalkedFolder, walk_folder

# A folder that was changed so shortly before a look may change again without another time of change.
YOUNG_NS = 2_000_000_000


class FolderWatch:
    """Watches one folder.

    Args:
        top: Absolute.
        steady_s: Seconds that a file must have stayed the same; 0 = for two looks.
    """

    def __init__(self, top: Path, *, steady_s: float = 0.0) -> None:
        self.top = top
        self._steady_s = steady_s
        self._seen = WalkedFolder()
        self._since_s: dict[Path, float] = {}  # when a look first found a file as it was seen last
        self._taken: WalkedFolder | None = None
        self._must_walk = True

    @property
    def folders(self) -> Collection[Path]:
        """The folders that the latest walk found."""
        return self._seen.folders

    @property
    def is_settled(self) -> bool:
        """Whether no file is being written, and nothing is there that cannot be looked at."""
        return self._taken is not None and self._seen.files == self._taken.files and not self._seen.warnings

    def look(self, finished: Collection[FileMark] = (), now_s: float = 0.0) -> WalkedFolder | None:
        """Look once.

        A new file counts once it is finished, or a later look finds it the same; a changed one counts as it
        was until then.

        Args:
            finished: Marks of files that are known to be whole.
            now_s: The time, from any start.

        Returns:
            What the folder has, where that has changed; None = nothing has. The first look always returns it,
            with every file that is there.
        """
        if not self._must_walk and self._is_same():
            return None
        now_ns = time.time_ns()
        walked, taken = walk_folder(self.top), self._taken
        if taken is None:
            files = walked.files
        elif self.top in walked.folders:
            files = self._steady_files(walked.files, finished, now_s)
        else:  # it may come back, as a mount does; what was there counts until then
            files = taken.files
        is_young = any(now_ns - changed_ns < YOUNG_NS for changed_ns in walked.folders.values())
        # What cannot be looked at now may become usable without a change that a `stat` shows.
        self._must_walk = is_young or bool(walked.warnings) or files != walked.files
        self._seen = walked
        found = replace(walked, files=files)
        if taken is not None and (taken.files, taken.warnings) == (files, found.warnings):
            return None
        self._taken = found
        return found

    def _steady_files(
        self, now: dict[Path, FileState], finished: Collection[FileMark], now_s: float
    ) -> dict[Path, FileState]:
        """Return the files that count: the steady and the finished ones, and those that counted before."""
        assert self._taken is not None
        files, since_s, taken = {}, {}, self._taken.files
        for path, state in now.items():
            is_same = self._seen.files.get(path) == state
            since_s[path] = self._since_s.get(path, now_s - self._steady_s) if is_same else now_s
            if state.mark in finished or (is_same and now_s - since_s[path] >= self._steady_s):
                files[path] = state
            elif path in taken:
                files[path] = taken[path]
        self._since_s = since_s
        return files

    def _is_same(self) -> bool:
        """Whether no folder and no file has changed since the last walk."""
        if read_states(self._seen.files) != tuple(self._seen.files.values()):
            return False
        changed = [None if one is None else one.modified_ns for one in read_states(self._seen.folders)]
        return changed == list(self._seen.folders.values())
