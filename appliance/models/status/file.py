"""`model_status.json`: the status of server and models in a file.

It is for readers before the HTTP front opens and after it closes. The file is replaced as a whole, so that a
reader never sees half of it. It is written in a thread, at most every half second. For compatibility, see
docs/compatibility.md.
"""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from appliance.base import jsons
from appliance.base.errors import write_remedy
from appliance.base.files import DEFAULT_MODE, write_atomic
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.models.status.objects import as_file
from appliance.models.status.views import ModelManagerApi

log = get_logger("models")
EVERY_S = 0.5
FILE_NAME = "model_status.json"


class StatusFile:
    """Keeps a file up to date with the manager's status.

    One thread writes, in order, so that an older state never replaces a newer one.

    Args:
        manager: Whose status is written.
        path: The file.
        every_s: The shortest time between two writes, in seconds.

    Attributes:
        writes: How often the file was replaced.
    """

    def __init__(self, manager: ModelManagerApi, path: Path, *, every_s: float = EVERY_S) -> None:
        self.path = path
        self.writes = 0
        self._manager = manager
        self._every_s = every_s
        self._written = b""
        self._has_warned = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="status-file")

    async def run(self) -> None:
        """Write now, and after each change; changes in quick succession are written once."""
        while True:
            seen = self._manager.changed.version
            await self.write()
            await asyncio.sleep(self._every_s)
            await self._manager.changed.newer(seen)

    async def write(self) -> None:
        """Write the present status, unless the file holds it already."""
        text = jsons.dumps_pretty(as_file(self._manager)).encode()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._replace, text)

    async def close(self) -> None:
        """Write the last status, and end the thread."""
        await self.write()
        self._thread.shutdown(wait=False)

    def _replace(self, text: bytes) -> None:
        """Replace the file. A folder that cannot be written is logged once, until it can be written again."""
        if text == self._written:  # compared here and not before: a write may still have been on its way then
            return
        try:
            write_atomic(self.path, text, mode=DEFAULT_MODE)
        except OSError as exc:
            if not self._has_warned:
                log.warning(
                    "status_file_unwritable",
                    path=str(self.path),
                    reason=str(exc),
                    remedy=f"{write_remedy(exc)} Until then the file is missing or old.",
                )
            self._has_warned = True
            return
        self._written, self._has_warned = text, False
        self.writes += 1


@asynccontextmanager
async def keeping_status_file(
    manager: ModelManagerApi, path: Path, *, tasks: Tasks, every_s: float = EVERY_S
) -> AsyncIterator[StatusFile]:
    """Keep the file while the context is open; at its end the file holds the manager's last state."""
    file = StatusFile(manager, path, every_s=every_s)
    task = tasks.start(file.run(), name="status-file")
    try:
        yield file
    finally:
        task.cancel()
        await file.close()
