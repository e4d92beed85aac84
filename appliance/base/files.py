"""Files that are written completely or not at all: to a temporary file beside them, which is then renamed."""

import os
from pathlib import Path

DEFAULT_MODE = 0o666  # less the umask: as most programs create files


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, is_synced: bool = True) -> None:
    """Write `data` as the file's new content; a missing folder is made (blocking).

    One writer at a time for a file: the temporary file is always `.NAME.new` beside it, so that the next
    write replaces what a killed writer left.

    Args:
        path: The file.
        data: Its whole content.
        mode: Of the file, less the umask.
        is_synced: Wait until it is on the disk; False = the content can be computed again if it is lost.

    Raises:
        OSError: The old file is unchanged, and nothing is left beside it.
    """
    partial = path.with_name(f".{path.name}.new")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(data)
            if is_synced:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        _remove(partial)
        raise


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the folder refuses it: the failure under way says more
        pass
