"""Which files need not be fetched, because they are there: by the manifest where nobody touched them, else by their checksum.

And the other way round, for `verify`: which files are not as their download wrote down.
"""

import asyncio
import hashlib
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


class ExistingFiles:
    """Holds what a source has against what a folder has. expected: SHA-256 by path that files must have, whatever the source says."""

    def __init__(
        self, folder: Path, meter: ProgressMeter, threads: ThreadPoolExecutor, expected: Mapping[str, str]
    ) -> None:
        self._folder, self._meter, self._threads, self._expected = folder, meter, threads, expected
        self._known = manifest.known_rows(folder)

    async def sort_files(
        self, files: list[RemoteFile]
    ) -> tuple[list[manifest.ManifestRow], list[RemoteFile]]:
        """Give the rows of files that are there, and the files that are to be fetched."""
        loop = asyncio.get_running_loop()
        kept, wanted = [], []
        rows = await asyncio.gather(
            *(loop.run_in_executor(self._threads, self._row_of, file) for file in files)
        )
        for file, row in zip(files, rows, strict=True):
            if row is None:
                wanted.append(file)
                continue
            kept.append(row)
            self._meter.files_done += 1
            self._meter.done_bytes += row.size_bytes
        return kept, wanted

    def _row_of(self, file: RemoteFile) -> manifest.ManifestRow | None:
        """Give a file's row when it is there and the same:

        1. untouched since it was fetched, and the source tells of the same version    2. of the checksum that the source tells
        3. an object of a store whose ETag is its MD5                                   4. else it is fetched
        """
        path = resolve_target(self._folder, file.path)
        try:
            found = path.lstat()
        except OSError:
            return None  # 4
        row = self._known.get(file.path)
        if (
            path.is_symlink()
            or not path.is_file()
            or (file.size_bytes is not None and found.st_size != file.size_bytes)
        ):
            return None  # 4
        is_same = row is not None and (
            row.digest == file.digest if file.digest else bool(file.etag) and row.etag == file.etag
        )
        if (
            row is not None
            and is_same
            and row.is_untouched(self._folder)
            and self._expected.get(file.path, row.sha256) == row.sha256
        ):
            return row  # 1
        kind, _, wanted = file.digest.partition(":")
        if not wanted and len(file.etag) == 32 and set(file.etag) <= set("0123456789abcdef"):
            kind, wanted = "md5", file.etag  # 3
        if not wanted:
            return None  # 4
        digests = compute_digests(path, kinds=("sha256", kind))
        if digests[kind] != wanted or self._expected.get(file.path, digests["sha256"]) != digests["sha256"]:
            return None  # 4
        return manifest.ManifestRow(
            file.path, found.st_size, digests["sha256"], file.etag, file.digest, found.st_mtime_ns
        )  # 2


def compute_digests(path: Path, *, kinds: tuple[str, ...] = ("sha256",)) -> dict[str, str]:
    """Read a file and give its checksums, by kind: sha256, md5, git-sha1. Raises  OSError"""
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
    """Hold a folder against its manifest, reading every file. Raises  NotFound: there is none"""
    entries = manifest.read(folder)
    begun = manifest.partial_bytes(folder)
    if not entries and not begun:
        raise NotFound(f"{folder} has no {manifest.NAME}: nothing is known of a download into it.")
    found = [flaw for entry in entries for row in entry.files for flaw in _row_faults(folder, row, begun)]
    named = {flaw.path for flaw in found}
    return found + [
        FileFault(path, "partial", f"{count:,} bytes of it are there, of a download that did not end")
        for path, count in sorted(begun.items())
        if path not in named
    ]


def _row_faults(folder: Path, row: manifest.ManifestRow, begun: Mapping[str, int]) -> Iterator[FileFault]:
    """1. not there   2. not as large   3. other contents."""
    path = folder / row.path
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError:
        size = None
    if size is None and row.path in begun:  # 1
        yield FileFault(row.path, "partial", f"{begun[row.path]:,} of {row.size_bytes:,} bytes are there")
    elif size is None:
        yield FileFault(row.path, "missing", "the file is not there")
    elif size != row.size_bytes:  # 2
        yield FileFault(row.path, "size", f"{size:,} bytes instead of {row.size_bytes:,}")
    else:  # 3
        try:
            digest = compute_digests(path)["sha256"]
        except OSError as exc:
            yield FileFault(row.path, "unreadable", f"it cannot be read: {exc.strerror}")
            return
        if digest != row.sha256:
            yield FileFault(row.path, "checksum", f"SHA-256 is {digest}, not {row.sha256}")
