"""Looks at MODEL_DIR and the files of models every few seconds: new and changed ones are taken in.

There is no inotify: network folders do not have it, and a look costs a `stat` for each file.
"""

import asyncio

from appliance.models.manager.file_watch import FileWatch
from appliance.models.manager.manager import ModelManager
from appliance.models.table.folder_watch import FolderWatch
from appliance.parts import Appliance


class ModelFiles:
    """Looks at the files of a running appliance's models."""

    def __init__(self, appliance: Appliance, manager: ModelManager) -> None:
        self._appliance = appliance
        self._files = FileWatch(manager)
        self._folder: FolderWatch | None = None

    async def look(self) -> None:
        """Look once, first at the folder: a file that is gone there is no model any more."""
        folder = self._appliance.settings.models.model_dir  # a reload may have changed it
        top = folder.absolute() if folder is not None else None
        if top is None:
            self._folder = None
        elif self._folder is None or self._folder.top != top:
            self._folder = FolderWatch(top)
        if self._folder is not None:
            walked = await asyncio.to_thread(self._folder.look)
            if walked is not None:
                await self._appliance.reread_models(walked)
        await self._files.look()
