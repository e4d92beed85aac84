"""Which files need not be fetched, because the folder has them already.

A file counts as there if it is unchanged since the manifest recorded it, or if its checksum is right. The
opposite question, for `verify`: which files differ from what their download recorded.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from appliance.base.errors import NotFound
from appliance.downloads import manifest
from appliance.downloads.contract import FileFault
from appliance.downloads.names import resolve_target
from appliance.downloads.progress import ProgressMeter
from appliance.downloads.sources.contract import RemoteFile

PIECE_BYTES = 4 << 20
_HEX = frozenset("0123456789abcdef")


class ExistingFiles:
    """Finds those files of a source that a folder has already.

    Args:
        expected: SHA-256 by path that files must have, whatever the source says.
    """

    def __init__(
        self, folder: Path, meter: ProgressMeter, threads: ThreadPoolExecutor, expected: Mapping[str, str]
    ) -> None:
        self._folder = folder
        self._meter = meter
        self._threads = threads
        self._expected = expected
        self._known = manifest.known_rows(folder)

    async def sort_files(
        self, files: list[RemoteFile]
    ) -> tuple[list[manifest.ManifestRow], list[RemoteFile]]:
        """Return the rows of the files that are there, and the files that are to be fetched."""
        loop = asyncio.get_running_loop()
        kept, wanted = [], []
        rows = await asyncio.gather(
            *(loop.run_in_executor(self._threads, self._find_row, file) for file in files)
        )
        for file, row in zip(files, rows, strict=True):
            if row is None:
                wanted.append(file)
                continue
            kept.append(row)
            self._meter.files_done += 1
            self._meter.done_bytes += row.size_bytes
        return kept, wanted

    def _find_row(self, file: RemoteFile) -> manifest.ManifestRow | None:
        """Return a file's row if it is there and the same.

        1. not there, no plain file, or of another size            → None
        2. unchanged since it was fetched, and the same version    → its row
        3. its checksum is the one that the source says            → a new row
        4. otherwise                                               → None
        """
        path = resolve_target(self._folder, file.path)
        try:
            found = path.lstat()
        except OSError:
            return None  # 1
        is_plain = path.is_file() and not path.is_symlink()
        if not is_plain or (file.size_bytes is not None and found.st_size != file.size_bytes):
            return None  # 1
        row = self._known.get(file.path)
        if row is not None and self._is_current(row, file):
            return row  # 2
        return self._compare_checksum(file, path, found)  # 3, 4

    def _is_current(self, row: manifest.ManifestRow, file: RemoteFile) -> bool:
        """Whether a file is unchanged since it was fetched, and the source still has that version."""
        is_same = row.digest == file.digest if file.digest else bool(file.etag) and row.etag == file.etag
        is_expected = self._expected.get(file.path, row.sha256) == row.sha256
        return is_same and is_expected and row.is_untouched(self._folder)

    def _compare_checksum(
        self, file: RemoteFile, path: Path, found: os.stat_result
    ) -> manifest.ManifestRow | None:
        """Read a file; return its row if its checksum is right. An object store's ETag may be an MD5."""
        kind, _, wanted = file.digest.partition(":")
        if not wanted and len(file.etag) == 32 and set(file.etag) <= _HEX:
            kind, wanted = "md5", file.etag
        if not wanted:
            return None
        digests = compute_digests(path, kinds=("sha256", kind))
        is_expected = self._expected.get(file.path, digests["sha256"]) == digests["sha256"]
        if digests[kind] != wanted or not is_expected:
            return None
        return manifest.ManifestRow(
            file.path, found.st_size, digests["sha256"], file.etag, file.digest, found.st_mtime_ns
        )


def compute_digests(path: Path, *, kinds: tuple[str, ...] = ("sha256",)) -> dict[str, str]:
    """Read a file and return its checksums in hex.

    Args:
        path: The file.
        kinds: Of sha256, md5 and git-sha1.

    Raises:
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    makers: dict[str, Callable[[], Any]] = {
        "sha256": hashlib.sha256,
        "md5": lambda: hashlib.md5(usedforsecurity=False),
        "git-sha1": lambda: hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False),
    }
    running = {kind: makers[kind]() for kind in set(kinds)}
    piece = bytearray(PIECE_BYTES)
    with path.open("rb", buffering=0) as file:
        while length := file.readinto(piece):
            for digest in running.values():
                digest.update(memoryview(piece)[:length])
    return {kind: digest.hexdigest() for kind, digest in running.items()}


def find_faults(folder: Path) -> list[FileFault]:
    """Compare a folder with its manifest, reading every file.

    Raises:
        NotFound: There is no manifest.
    """
    entries = manifest.read(folder)
    begun = manifest.partial_bytes(folder)
    if not entries and not begun:
        raise NotFound(f"{folder} has no {manifest.NAME}: no download into it was recorded.")
    found = [fault for entry in entries for row in entry.files for fault in _row_faults(folder, row, begun)]
    named = {fault.path for fault in found}
    return found + [
        FileFault(path, "partial", f"{count:,} bytes are there, of a download that was not finished")
        for path, count in sorted(begun.items())
        if path not in named
    ]


def _row_faults(folder: Path, row: manifest.ManifestRow, begun: Mapping[str, int]) -> Iterator[FileFault]:
    """Say what is wrong with a file: 1. it is not (wholly) there   2. its size   3. its contents."""
    path = folder / row.path
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError:
        size = None
    if size is None and row.path in begun:  # 1
        yield FileFault(row.path, "partial", f"{begun[row.path]:,} of {row.size_bytes:,} bytes are there")
    elif size is None:
        yield FileFault(row.path, "missing", "the file does not exist")
    elif size != row.size_bytes:  # 2
        yield FileFault(row.path, "size", f"{size:,} bytes instead of {row.size_bytes:,}")
    else:  # 3
        try:
            digest = compute_digests(path)["sha256"]
        except OSError as exc:
            yield FileFault(row.path, "unreadable", f"the file cannot be read: {exc.strerror}")
            return
        if digest != row.sha256:
            yield FileFault(row.path, "checksum", f"SHA-256 is {digest}, not {row.sha256}")
