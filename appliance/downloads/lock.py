"""One download per folder at a time, over all processes.

It is an flock on `.lock`, which the kernel takes back from a dead process.

Another downloader that uses these folders (docs/compatibility.md) judges by the lock file's age whether it is
held. We ignore the age, so that neither a wrong clock nor a forgotten file can lock us out. But we renew it,
and write our process id into the file, so that the other downloader sees that the folder is in use.
"""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from appliance.base.errors import Conflict
from appliance.base.tasks import Tasks
from appliance.downloads.part import disk_error

NAME = ".lock"
TRY_EVERY_S = 0.25
RENEW_EVERY_S = 5.0  # as the other downloader does
MODE = 0o600


@asynccontextmanager
async def holding_lock(folder: Path, on_wait: Callable[[str], None]) -> AsyncIterator[bool]:
    """Hold the folder's lock; the folder is created if it is missing.

    Args:
        folder: The output folder.
        on_wait: Called repeatedly while another process holds it, with the name of that process.

    Yields:
        Whether it had to be waited for.

    Raises:
        Conflict: The folder cannot be created, or the file system does not let it be locked.
    """
    descriptor = await asyncio.to_thread(_open, folder)
    try:
        has_waited = False
        while not _try_lock(descriptor, folder):
            has_waited = True
            on_wait(_name_holder(descriptor))
            await asyncio.sleep(TRY_EVERY_S)
        tasks = Tasks()
        _write(descriptor, f"{os.getpid()}\n")
        tasks.every(RENEW_EVERY_S, lambda: _renew(descriptor), name="renew-lock")
        try:
            yield has_waited
        finally:
            await tasks.close()
            _write(descriptor, "")
    finally:
        os.close(descriptor)  # which unlocks


def _open(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        if isinstance(exc, FileExistsError | NotADirectoryError):
            raise Conflict(
                f"{folder} is not a folder, or is below something that is not a folder.",
                code="cannot_write",
            ) from exc
        raise disk_error(folder, exc) from exc
    try:
        return os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
    except OSError as exc:
        raise disk_error(folder / NAME, exc) from exc


def _try_lock(descriptor: int, folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as exc:
        raise disk_error(folder / NAME, exc) from exc
    return True


def _name_holder(descriptor: int) -> str:
    text = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
    return f"process {text}" if text.isdecimal() else "another process"


def _write(descriptor: int, text: str) -> None:
    """Write who holds the lock. It only informs people, so errors are ignored."""
    try:
        os.fchmod(descriptor, MODE)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
    except OSError:
        pass


async def _renew(descriptor: int) -> None:
    os.utime(descriptor)
