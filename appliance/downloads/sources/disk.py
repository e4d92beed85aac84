"""Folders of this machine as sources.

Links are followed only as far as the operator allows, and nothing but plain files is read.
"""

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

from appliance.base.errors import ApplianceError, Forbidden, NotFound
from appliance.base.reach import FolderPolicy
from appliance.downloads.sources.contract import Interrupted, Listing, RemoteFile, SourceChanged

PIECE_BYTES = 4 << 20


class Disk:
    """A folder, or one file, that is copied.

    Args:
        root: Absolute.
        folders: Which folders may be read.
        pinned: The source as it is recorded.
        may_be_file: `root` may be a file.
    """

    can_range = True

    def __init__(self, root: Path, folders: FolderPolicy, *, pinned: str, may_be_file: bool) -> None:
        self._root = root
        self._folders = folders
        self._pinned = pinned
        self._may_be_file = may_be_file

    async def listing(self) -> Listing:
        """Return all files below the root."""
        return await asyncio.to_thread(self._listing)

    def _listing(self) -> Listing:
        self._folders.check(self._root, what=str(self._root))
        try:
            if self._root.is_dir():
                return Listing(tuple(self._walk(self._root, (os.path.realpath(self._root),))), self._pinned)
            if self._may_be_file and self._root.exists():
                return Listing((self._remote(self._root, self._root.name),), self._pinned)
        except OSError as exc:
            raise _unreadable(exc.filename or self._root, exc) from exc
        kind = "file or folder" if self._may_be_file else "folder"
        raise NotFound(f"{self._root} is not a {kind} on this machine.")

    def _walk(self, folder: Path, above: tuple[str, ...]) -> Iterator[RemoteFile]:
        """Yield all files below, links to folders followed unless they lead back up."""
        for entry in sorted(os.scandir(folder), key=lambda one: one.name):
            path = Path(entry.path)
            if entry.is_symlink() and not self._folders.allows(path):
                raise Forbidden(
                    f"{path} is a link out of the folders that may be read.", code="link_leads_out"
                )
            if entry.is_dir():
                real = os.path.realpath(path)
                if real not in above:
                    yield from self._walk(path, (*above, real))
            elif entry.is_file():
                yield self._remote(path, path.relative_to(self._root).as_posix())

    def _remote(self, path: Path, name: str) -> RemoteFile:
        if not path.is_file():
            raise Forbidden(f"{path} is not a regular file.", code="no_plain_file")
        return RemoteFile(name, path.stat().st_size, etag=_stamp(path.stat()), key=str(path))

    async def pieces(self, file: RemoteFile, start: int, end: int | None) -> AsyncGenerator[bytes]:
        """Yield a file's bytes, see `DownloadSource.pieces`."""
        descriptor = await asyncio.to_thread(self._open, file)
        try:
            while end is None or start < end:
                wanted = PIECE_BYTES if end is None else min(PIECE_BYTES, end - start)
                piece = await asyncio.to_thread(os.pread, descriptor, wanted, start)
                if not piece:
                    break
                start += len(piece)
                yield piece
        except OSError as exc:
            raise Interrupted(f"{file.key} cannot be read: {exc.strerror}") from exc
        finally:
            os.close(descriptor)
        if end is not None and start < end:
            raise SourceChanged(
                f"{file.path} became shorter at its source while it was copied. Download it again."
            )

    def _open(self, file: RemoteFile) -> int:
        """Open it, and check again what was opened: since the listing it may have been replaced by a link."""
        try:
            descriptor = os.open(file.key, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            raise _unreadable(file.key, exc) from exc
        try:
            found = os.fstat(descriptor)
            self._folders.check(os.readlink(f"/proc/self/fd/{descriptor}"), what=file.path)
            if not stat.S_ISREG(found.st_mode) or _stamp(found) != file.etag:
                raise SourceChanged(
                    f"{file.path} changed at its source while it was copied. Download it again."
                )
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    async def close(self) -> None:
        """Do nothing: no file stays open."""


def _stamp(found: os.stat_result) -> str:
    return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"


def _unreadable(path: str | Path, exc: OSError) -> ApplianceError:
    kind = NotFound if isinstance(exc, FileNotFoundError) else Forbidden
    return kind(f"{path} cannot be read: {exc.strerror}.")
