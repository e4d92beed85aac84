"""Files that are written completely or not at all, and files that an operator names, read within bounds.

They are written to a temporary file beside them, which is then renamed.
"""

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

DEFAULT_MODE = 0o666  # less the umask: as most programs create files
MAX_TEXT_BYTES = 1 << 20  # of a file that holds one secret, or variables


def write_atomic(
    path: Path, data: bytes | Iterable[bytes], *, mode: int = 0o600, is_synced: bool = True
) -> None:
    """Write `data` as the file's new content; a missing folder is made (blocking).

    One writer at a time for a file: the temporary file is always `.NAME.new` beside it, so that the next
    write replaces what a killed writer left.

    Args:
        path: The file.
        data: Its whole content; or pieces of it, which are written as they are made.
        mode: Of the file, less the umask.
        is_synced: Wait until it is on the disk; False = the content can be computed again if it is lost.

    Raises:
        OSError: The old file is unchanged, and nothing is left beside it.
    """
    partial = path.with_name(f".{path.name}.new")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            for piece in (data,) if isinstance(data, bytes) else data:
                file.write(piece)
            if is_synced:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        _remove(partial)
        raise


def open_to_read(path: Path) -> BinaryIO:
    """Open a file for reading (blocks); a pipe without a writer is not waited for.

    Raises:
        OSError: It cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as exc:  # a zero byte in the name
        raise OSError(errno.EINVAL, str(exc)) from None
    try:
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "rb")
    except BaseException:  # such as a folder
        os.close(descriptor)
        raise


def read_text_file(path: Path) -> str:
    """Read a text that an operator has put into a file (blocks).

    Raises:
        OSError: It cannot be read, or has more than MAX_TEXT_BYTES.
        UnicodeDecodeError: It is not UTF-8.
    """
    with open_to_read(path) as file:
        data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MAX_TEXT_BYTES} bytes")
    return data.decode()


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the folder refuses it: the failure under way says more
        pass
