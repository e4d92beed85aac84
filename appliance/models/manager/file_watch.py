"""Watches the files of models: what was read of a file is read again when it has changed.

A look is one `stat` for each file. A file that is still being written is left alone until it is known to be
whole, or has stayed the same for some seconds.
"""

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from appliance.base.file_events import FileMark
from appliance.models.manager.manager import ModelManager
from appliance.models.manager.model_file import files_of
from appliance.models.table.catalogue import Model
from appliance.models.table.file_state import FileState, read_states

States = tuple[FileState | None, ...]
FileChange = Literal["same", "unsteady", "gone", "changed"]


def compare_files(checked: States, former: States | None, now: States, *, is_running: bool) -> FileChange:
    """Say what has happened to a model's files.

    1. they are as they were checked, or were never checked → same
    2. they are not as at the look before                   → unsteady: still being written
    3. one is missing while a llama-server has it open      → gone: it may come back
    4. else                                                 → changed

    Args:
        checked: As they were when they were read.
        former: As the look before found them; None = there was none.
        now: As they are.
        is_running: Whether a llama-server of the model is loaded.
    """
    if not checked or now == checked:  # 1
        return "same"
    if now != former:  # 2
        return "unsteady"
    if is_running and None in now:  # 3
        return "gone"
    return "changed"  # 4


class FileWatch:
    """Looks at the files of a manager's models.

    Args:
        manager: Knows the models.
        steady_s: Seconds that files must have stayed the same; 0 = for two looks.

    Attributes:
        is_settled: Whether the latest look found no file that is being written.
    """

    def __init__(self, manager: ModelManager, *, steady_s: float = 0.0) -> None:
        self.is_settled = True
        self._manager = manager
        self._steady_s = steady_s
        self._former: dict[str, tuple[States, float]] = {}  # by alias: what was found, since when

    def paths(self) -> list[Path]:
        """Return all files of the models."""
        states = self._manager.model_states.values()
        return [path for state in states for path in files_of(state.definition)]

    async def look(self, finished: Collection[FileMark] = (), now_s: float = 0.0) -> None:
        """Look once, and let the manager read what has changed.

        Args:
            finished: Marks of files that are known to be whole.
            now_s: The time, from any start.
        """
        states = self._manager.model_states
        found = await asyncio.to_thread(
            _read_all, {alias: state.definition for alias, state in states.items()}
        )
        former, self._former, self.is_settled = self._former, {}, True
        for alias, now in found.items():
            seen, since_s = former.get(alias, (None, now_s))
            since_s = since_s if seen == now else now_s
            self._former[alias] = now, since_s
            state = self._manager.model_states.get(alias)  # the table may have changed meanwhile
            if state is None:
                continue
            if seen == now and now_s - since_s < self._steady_s:
                seen = None
            if _are_finished(state.files, now, finished):
                seen = now
            is_running = bool(state.current_runners())
            change = compare_files(state.files, seen, now, is_running=is_running)
            self.is_settled &= change != "unsteady"
            if change == "changed":
                await self._manager.take_changed_file(alias)


def _are_finished(checked: States, now: States, finished: Collection[FileMark]) -> bool:
    """Whether all files that are not as they were checked are known to be whole."""
    others = [one for one in now if one not in checked]
    return bool(others) and all(one is not None and one.mark in finished for one in others)


def _read_all(models: Mapping[str, Model]) -> dict[str, States]:
    return {alias: read_states(files_of(model)) for alias, model in models.items()}
