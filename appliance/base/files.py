"""Files that are written whole or not at all: beside their place first, then renamed into it, so that nobody ever reads half of one."""

import os
from pathlib import Path

DEFAULT_MODE = 0o666  # less the umask: as any program's files


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, is_synced: bool = True) -> None:
    """Put `data` in the file's place; its folder is made where it is missing (blocks).

    Takes   mode: of the file, less the umask; is_synced: wait until the disk has it, False = what a power cut takes can be found out anew
    Raises  OSError: then what stood there stands there still, and nothing lies beside it

    One writer at a time for a file: what lies beside it (`.NAME.new`) has one name, so that a killed writer's is not left for ever.
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
    except OSError:  # the folder is refused: the failure that brought us here says more
        pass
