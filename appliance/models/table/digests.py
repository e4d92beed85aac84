"""SHA-256 of model files: computed once in a thread, one file at a time, and kept over restarts.

A digest belongs to a path, size and time of change. Reading 40 GB takes a minute, so no caller has to wait
for it: a digest is shown as unknown until it is computed in the background.
"""

import asyncio
import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from appliance.base import jsons
from appliance.base.files import DEFAULT_MODE, write_atomic
from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.models.table.file_state import FileState

log = get_logger("models")
PIECE_BYTES = 4 << 20  # read at a time; reading can be stopped between two pieces


class DigestCache:
    """Keeps digests, and computes missing ones. `path`: their file, None = in memory only."""

    def __init__(self, path: Path | None, *, tasks: Tasks) -> None:
        self._path = path
        self._tasks = tasks
        self._kept: dict[str, dict[str, str]] | None = None  # by path: {stamp, sha256}; None = not read yet
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._one_at_a_time = asyncio.Lock()

    def known(self, files: Sequence[FileState]) -> str:
        """Return the digest of one model's files, the parts one after the other; "" = not computed yet."""
        row = (self._kept or {}).get(str(files[0].path))
        return row["sha256"] if row is not None and row["stamp"] == _stamp(files) else ""

    async def want(self, models: Sequence[Sequence[FileState]], *, wait_s: float) -> None:
        """Compute the digests of some models in the background; wait for them at most `wait_s` seconds."""
        if self._kept is None:
            kept = await asyncio.to_thread(self._read)
            self._kept = kept if self._kept is None else self._kept
        tasks = [self._begin(files) for files in models if not self.known(files)]
        if tasks:
            await asyncio.wait(tasks, timeout=wait_s)

    def _begin(self, files: Sequence[FileState]) -> asyncio.Task[None]:
        key = (str(files[0].path), _stamp(files))
        if key not in self._running:
            task = self._running[key] = self._tasks.start(
                self._compute(files), name=f"digest-{files[0].path.stem}"
            )
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return self._running[key]

    async def _compute(self, files: Sequence[FileState]) -> None:
        """Compute one model's digest and keep it; an unreadable or changing file has none."""
        stop = threading.Event()
        async with self._one_at_a_time:
            try:
                digest = await asyncio.to_thread(_digest, files, stop)
                if self._kept is None or not digest:
                    return
                self._kept[str(files[0].path)] = {"stamp": _stamp(files), "sha256": digest}
                self._kept = await asyncio.to_thread(self._write, dict(self._kept))
            except OSError as exc:
                log.warning("no_digest", path=str(files[0].path), reason=exc.strerror or str(exc))
            finally:
                stop.set()  # when this is cancelled, the thread must end, or the process would wait for it

    def _read(self) -> dict[str, dict[str, str]]:
        """Read the kept digests; a damaged file counts as none, since all digests can be computed again."""
        try:
            value: Any = jsons.loads(self._path.read_bytes()) if self._path else {}
        except (OSError, jsons.InvalidJson):
            return {}
        rows = value.items() if isinstance(value, dict) else ()
        return {
            path: {"stamp": row["stamp"], "sha256": row["sha256"]}
            for path, row in rows
            if isinstance(row, dict)
            and isinstance(row.get("stamp"), str)
            and isinstance(row.get("sha256"), str)
        }

    def _write(self, kept: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        """Write the kept digests, without those of files that no longer exist; return the others."""
        kept = {path: row for path, row in kept.items() if os.path.exists(path)}
        if self._path is not None:
            try:
                write_atomic(self._path, jsons.dumps(kept), mode=DEFAULT_MODE, is_synced=False)
            except OSError as exc:
                log.warning("digests_not_kept", path=str(self._path), reason=exc.strerror or str(exc))
        return kept


def _stamp(files: Sequence[FileState]) -> str:
    return ",".join(f"{file.size_bytes}:{file.modified_ns}" for file in files)


def _digest(files: Sequence[FileState], stop: threading.Event) -> str:
    """Compute in a thread; "" = it was stopped, or a file has changed."""
    total, piece = hashlib.sha256(), bytearray(PIECE_BYTES)
    for state in files:
        with state.path.open("rb", buffering=0) as file:
            while not stop.is_set() and (length := file.readinto(piece)):
                total.update(memoryview(piece)[:length])
    unchanged = all(FileState.read(state.path) == state for state in files)
    return total.hexdigest() if unchanged and not stop.is_set() else ""
