"""One appliance or sidecar per STATE_DIR: two would overwrite each other's files.

Two appliances would also end each other's llama-servers. It is an flock, which the kernel takes back from a
dead process, also after `kill -9`. The file says who holds it, for people only.
"""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.base.logs import get_logger

log = get_logger("appliance")
NAME = "appliance.lock"
APPLIANCE, SIDECAR = "appliance", "sidecar"
_NAMES = {APPLIANCE: "another appliance", SIDECAR: "a sidecar"}
MODE = 0o600
MAX_TEXT = 200  # bytes of the file that are read


class StateInUse(OSError):
    """Another process serves with this STATE_DIR. The message names it, and says what to do."""


@contextmanager
def holding_state(folder: Path, *, what: str = APPLIANCE) -> Iterator[None]:
    """Hold the lock of a STATE_DIR; the folder is created if it is missing.

    A folder that cannot be written, or whose file system has no locks, is used without, with a warning.

    Args:
        folder: STATE_DIR.
        what: What holds it, one word, for the message to a second one.

    Raises:
        StateInUse: Another process holds it.
    """
    descriptor = _open(folder)
    try:
        if descriptor is not None and _lock(descriptor, folder):
            _write(descriptor, f"{os.getpid()} {socket.gethostname()} {what}\n")
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)  # which unlocks


def _open(folder: Path) -> int | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
    except OSError as exc:
        log.warning("state_not_locked", folder=str(folder), reason=exc.strerror or str(exc))
        return None


def _lock(descriptor: int, folder: Path) -> bool:
    """Lock the file; return False where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StateInUse(
            f"STATE_DIR {folder} is in use by {_name_holder(descriptor)}. "
            "Stop that one, or give this one a STATE_DIR of its own"
        ) from None
    except OSError as exc:
        log.warning("state_not_locked", folder=str(folder), reason=exc.strerror or str(exc))
        return False
    return True


def _name_holder(descriptor: int) -> str:
    """Name the process that holds the lock, and its machine where that is another one."""
    words = os.pread(descriptor, MAX_TEXT, 0).decode(errors="replace").split()
    if len(words) == 2:  # as earlier versions wrote it
        words.append(APPLIANCE)
    if len(words) != 3 or not words[0].isdecimal() or words[2] not in _NAMES:
        return "another appliance, whose process id is not known"
    number, host, what = words
    where = "" if host == socket.gethostname() else f" on {host[:64]!r}"
    return f"{_NAMES[what]}, process {number}{where}"


def _write(descriptor: int, text: str) -> None:
    """Write who holds the lock. It only informs people, so errors are ignored."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
    except OSError:
        pass
