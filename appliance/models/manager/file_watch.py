"""Watches the files of models: what was read of a file is read again when it has changed.

A look is one `stat` for each file. A file that is still being written is left alone until two looks find it
the same.
"""

import asyncio
from collections.abc import Mapping
from typing import Literal

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
    """Looks at the files of a manager's models."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager
        self._former: dict[str, States] = {}

    async def look(self) -> None:
        """Look once, and let the manager read what has changed."""
        states = self._manager.model_states
        found = await asyncio.to_thread(
            _read_all, {alias: state.definition for alias, state in states.items()}
        )
        former, self._former = self._former, found
        for alias, now in found.items():
            state = self._manager.model_states.get(alias)  # the table may have changed meanwhile
            if state is None:
                continue
            is_running = bool(state.current_runners())
            change = compare_files(state.files, former.get(alias), now, is_running=is_running)
            if change == "changed":
                await self._manager.take_changed_file(alias)


def _read_all(models: Mapping[str, Model]) -> dict[str, States]:
    return {alias: read_states(files_of(model)) for alias, model in models.items()}
