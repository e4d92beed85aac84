"""A file that is being fetched: its bytes so far, and their checksum up to the first gap.

The bytes are in `.download/ID.part`, their state in `.download/ID.json`, which is replaced after each block.
A process that is killed loses what it had not handed to the kernel: at most one block for each worker. A
machine that crashes may lose more, so after a reboot only synced bytes count; and where the source has a
checksum, the file is compared with it in any case.
"""

import errno
import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from appliance.base import jsons
from appliance.base.errors import ApplianceError, Conflict
from appliance.downloads.sources.contract import RemoteFile
from appliance.host.boot import boot_id

BLOCK_BYTES = 2 << 20  # what is written at a time, and at most lost by each worker that is killed
SYNC_BYTES = 256 << 20  # flushed to the disk at a time, while fetching continues
HASH_BYTES = 4 << 20
Span = tuple[int, int]


class Spans:
    """Which bytes are there: disjoint spans (from, to before), in order."""

    def __init__(self, spans: Sequence[Span] = ()) -> None:
        self.all: list[Span] = []
        for start, end in spans:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Add the bytes from `start` to before `end`."""
        if start >= end:
            return
        apart = [span for span in self.all if span[1] < start or span[0] > end]
        joined = [span for span in self.all if not (span[1] < start or span[0] > end)]
        self.all = sorted(
            [*apart, (min([start, *(s for s, _ in joined)]), max([end, *(e for _, e in joined)]))]
        )

    def total(self) -> int:
        """Return how many bytes there are."""
        return sum(end - start for start, end in self.all)

    def prefix(self) -> int:
        """Return how many bytes there are from the beginning to the first gap."""
        return self.all[0][1] if self.all and self.all[0][0] == 0 else 0

    def missing(self, size: int) -> list[Span]:
        """Return the gaps in a file of `size` bytes."""
        gaps, at = [], 0
        for start, end in self.all:
            if start > at:
                gaps.append((at, min(start, size)))
            at = max(at, end)
        return gaps + ([(at, size)] if at < size else [])


class PartialFile:
    """The bytes of one file. Methods that touch the disk block, and are called in threads.

    Args:
        folder: Where the bytes and their state are kept.
        remote: The file, as its source lists it.
        asked: The source as it was requested.
    """

    def __init__(self, folder: Path, remote: RemoteFile, *, asked: str) -> None:
        name = hashlib.sha256(remote.path.encode()).hexdigest()[:24]
        self.path, self._state = folder / f"{name}.part", folder / f"{name}.json"
        self._remote = remote
        self._identity = {
            "path": remote.path,
            "size_bytes": remote.size_bytes,
            "digest": remote.digest,
            "etag": remote.etag,
            "source": asked,
        }
        self.done = Spans()
        self._synced: list[Span] = []
        self._unsynced = 0
        self._descriptor = -1
        self._lock = threading.Lock()  # of the descriptor and the spans
        self._hashing = threading.Lock()  # one at a time
        self._is_closed = False
        self._forget_hash()

    def _forget_hash(self) -> None:
        self._hashed = 0
        self._sha256 = hashlib.sha256()
        self._git = None
        if self._remote.digest.startswith("git-sha1:"):
            self._git = hashlib.sha1(b"blob %d\0" % (self._remote.size_bytes or 0), usedforsecurity=False)

    def recall(self) -> int:
        """Load what an earlier run left; return how many bytes can be used."""
        size = self._remote.size_bytes
        self.done = Spans([span for span in self._read_spans() if size is None or span[1] <= size])
        self._synced = list(self.done.all)
        return self.done.total()

    def _read_spans(self) -> list[Span]:
        """Return the recorded bytes that are there, if they are of this version of the file."""
        if not self._remote.digest and not self._remote.etag:
            return []
        try:
            state: Any = jsons.loads(self._state.read_bytes())
            if any(state.get(key) != value for key, value in self._identity.items()):
                return []
            rows = state["done"] if state["boot"] == boot_id() else state["synced"]
            length = self.path.stat().st_size
            return [(int(start), int(end)) for start, end in rows if 0 <= int(start) < int(end) <= length]
        except (OSError, jsons.InvalidJson, KeyError, TypeError, ValueError, AttributeError):
            return []

    def open(self) -> None:
        """Open the file; bytes that cannot be used are cut off."""
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(
                self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644
            )
            os.ftruncate(self._descriptor, self.done.all[-1][1] if self.done.all else 0)

    def restart(self) -> None:
        """Forget all bytes."""
        with self._lock:
            self.done, self._synced, self._unsynced = Spans(), [], 0
            os.ftruncate(self._descriptor, 0)
            self._write_state()
        with self._hashing:
            self._forget_hash()

    def write(self, pieces: Sequence[bytes], start: int) -> None:
        """Write bytes at an offset, and record that they are there."""
        with self._lock:
            if self._is_closed:
                return
            end = _write_all(self._descriptor, pieces, start)
            self.done.add(start, end)
            self._unsynced += end - start
            must_sync, self._unsynced = self._unsynced >= SYNC_BYTES, self._unsynced % SYNC_BYTES
            self._write_state()
        if must_sync:
            self._sync()

    def update_hash(self, wait: bool) -> None:
        """Continue the checksum, up to the first gap.

        Args:
            wait: Wait for another thread that is hashing; False = leave the rest to that thread.
        """
        if not self._hashing.acquire(blocking=wait):
            return
        try:
            buffer = bytearray(HASH_BYTES)
            while not self._is_closed and (left := self.done.prefix() - self._hashed) > 0:
                view = memoryview(buffer)[: min(HASH_BYTES, left)]
                with self._lock:
                    if self._is_closed:
                        return
                    length = os.preadv(self._descriptor, [view], self._hashed)
                if not length:
                    return
                self._sha256.update(view[:length])
                if self._git is not None:
                    self._git.update(view[:length])
                self._hashed += length
        finally:
            self._hashing.release()

    def digests(self) -> dict[str, str]:
        """Return the checksums of all that was hashed: {"sha256": HEX, "git-sha1": HEX}."""
        found = {"sha256": self._sha256.hexdigest()}
        return found | ({"git-sha1": self._git.hexdigest()} if self._git is not None else {})

    def sync(self) -> os.stat_result:
        """Flush all bytes to the disk; return the file's status then."""
        with self._lock:
            os.fsync(self._descriptor)
            return os.fstat(self._descriptor)

    def finish(self, target: Path) -> None:
        """Move the complete file to its final place."""
        with self._lock:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.path, target)
            self._state.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor, self._is_closed = -1, True

    def close(self) -> None:
        """Leave the bytes as they are, for a later run."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            if self._descriptor >= 0:
                try:
                    os.fdatasync(self._descriptor)
                    self._synced = list(self.done.all)
                    self._write_state()
                finally:
                    os.close(self._descriptor)
                    self._descriptor = -1

    def discard(self) -> None:
        """Remove the bytes and their state."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor, self._is_closed = -1, True
            self.path.unlink(missing_ok=True)
            self._state.unlink(missing_ok=True)

    def _sync(self) -> None:
        """Flush the bytes to the disk, while other workers continue to write."""
        with self._lock:
            spans, descriptor = list(self.done.all), os.dup(self._descriptor) if self._descriptor >= 0 else -1
        if descriptor < 0:
            return
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        with self._lock:
            self._synced = spans

    def _write_state(self) -> None:
        if self._remote.size_bytes is not None and self._remote.size_bytes <= BLOCK_BYTES:
            return  # it is written in one block, so there is nothing to resume
        new = self._state.with_suffix(".new")
        new.write_bytes(
            jsons.dumps(self._identity | {"boot": boot_id(), "done": self.done.all, "synced": self._synced})
        )
        new.replace(self._state)


def _write_all(descriptor: int, pieces: Sequence[bytes], start: int) -> int:
    """Write pieces one after the other; return where they end."""
    for at in range(0, len(pieces), 512):  # the system call takes 1024 at most
        some = list(pieces[at : at + 512])
        length, written = sum(map(len, some)), os.pwritev(descriptor, some, start)
        while written < length:  # a full disk, or a signal, cuts a call short
            more = os.pwrite(descriptor, b"".join(some)[written:], start + written)
            if not more:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written += more
        start += length
    return start


def disk_error(path: str | Path, exc: OSError) -> ApplianceError:
    """Return the error of a file that cannot be written: 1. the disk is full   2. anything else."""
    if exc.errno in {errno.ENOSPC, errno.EDQUOT}:  # 1
        return Conflict(
            f"{path} cannot be written: {exc.strerror}. What was fetched is kept. Free some space, and run "
            "it again.",
            code="no_space",
        )
    return Conflict(f"{path} cannot be written: {exc.strerror or exc}.", code="cannot_write")  # 2
