"""Looks at MODEL_DIR and the files of models when they may have changed, and takes in what has."""

import asyncio
from collections.abc import Collection
from pathlib import Path

from appliance.base.file_events import FileMark, Place, places_of
from appliance.base.file_looks import Looked
from appliance.models.manager.file_watch import FileWatch
from appliance.models.manager.manager import ModelManager
from appliance.models.table.file_walk import ENDING
from appliance.models.table.folder_watch import FolderWatch
from appliance.parts import Appliance

STEADY_PART = 0.9  # of the time between two looks: the next one finds a file old enough


class ModelFiles:
    """Looks at the files of a running appliance's models.

    Args:
        appliance: Its MODEL_DIR is looked at.
        manager: Its models' files are.
        every_s: Seconds between two looks at a file that may still be written.
    """

    def __init__(self, appliance: Appliance, manager: ModelManager, every_s: float) -> None:
        self._appliance = appliance
        self._steady_s = every_s * STEADY_PART
        self._files = FileWatch(manager, steady_s=self._steady_s)
        self._folder: FolderWatch | None = None

    async def look(self, finished: Collection[FileMark] = ()) -> Looked:
        """Look once, first at the folder: a file that is gone there is no model any more.

        Args:
            finished: Marks of files that are known to be whole.

        Returns:
            Where the files are, and whether one is being written.
        """
        folder = self._appliance.settings.models.model_dir  # a reload may have changed it
        top = folder.absolute() if folder is not None else None
        if top is None:
            self._folder = None
        elif self._folder is None or self._folder.top != top:
            self._folder = FolderWatch(top, steady_s=self._steady_s)
        now_s = self._appliance.clock.monotonic_s()
        if self._folder is not None:
            walked = await asyncio.to_thread(self._folder.look, finished, now_s)
            is_current = self._appliance.settings.models.model_dir == folder  # else a reload came in between
            if walked is not None and is_current:
                await self._appliance.reread_models(walked)
        await self._files.look(finished, now_s)
        is_settled = self._files.is_settled and (self._folder is None or self._folder.is_settled)
        places = await asyncio.to_thread(_find_places, self._files.paths(), self._folder)
        return Looked(places, is_settled=is_settled)


def _find_places(paths: list[Path], folder: FolderWatch | None) -> dict[str, Place]:
    """Return where the files of models are, and where new ones may come (blocks)."""
    if folder is None:
        return places_of(map(Path.absolute, paths))
    places = places_of([*map(Path.absolute, paths), folder.top])
    for path in folder.folders:
        places.setdefault(str(path), Place()).ending = ENDING
    return places
