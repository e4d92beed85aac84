"""The workers: each takes a piece of a file from the queue, fetches it, and writes it.

Large files are cut into pieces where the source supports ranges, so that all workers are busy to the end.
Files are hashed while they are fetched, so that they need not be read again when the last byte has arrived.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, UpstreamFailed
from appliance.downloads import manifest
from appliance.downloads.part import BLOCK_BYTES, PartialFile, disk_error
from appliance.downloads.progress import ProgressMeter, first_error
from appliance.downloads.retry import RetryCounter
from appliance.downloads.sources.contract import (
    DownloadSource,
    Interrupted,
    RangesUnsupported,
    RemoteFile,
    SourceTimeouts,
)

MIN_PIECE_BYTES, MAX_PIECE_BYTES = 8 << 20, 64 << 20
WRITE_EVERY_S = 1.0  # on slow connections, so that a killed process loses little
RESUME_HINT = " What was fetched is kept; run it again to continue."
ResultT = TypeVar("ResultT")


@dataclass(eq=False)
class FetchPlan:
    """One file that is being fetched.

    Attributes:
        expected: SHA-256 that it must have, as recorded by an earlier download; "" = none.
        is_whole: The server does not serve ranges of it.
        generation: Rises when it is started over; pieces of an earlier generation are dropped.
        left: Pieces that are not done.
    """

    remote: RemoteFile
    target: Path
    part: PartialFile
    expected: str = ""
    was_resumed: bool = False
    is_open: bool = False
    is_whole: bool = False
    generation: int = 0
    left: int = 0


@dataclass(frozen=True, slots=True)
class FilePiece:
    """Bytes of a file from `start` to before `end`; None = to the end of a file whose size is not known."""

    plan: FetchPlan
    start: int
    end: int | None
    generation: int

    def check_current(self) -> None:
        """Raise Superseded if the file was started over."""
        if self.generation != self.plan.generation:
            raise Superseded


class Superseded(Exception):
    """The file was started over while this piece of it was fetched."""


class TransferWorkers:
    """Fetches some files of one source; `rows` are those that are done."""

    def __init__(
        self,
        source: DownloadSource,
        folder: Path,
        plans: list[FetchPlan],
        *,
        workers: int,
        meter: ProgressMeter,
        timeouts: SourceTimeouts,
        clock: Clock,
        threads: ThreadPoolExecutor,
    ) -> None:
        self.rows: list[manifest.ManifestRow] = []
        self._source = source
        self._folder = folder
        self._meter = meter
        self._timeouts = timeouts
        self._clock = clock
        self._workers = workers
        self._threads = threads
        self._plans = plans
        self._queue = deque(piece for plan in plans for piece in self._cut(plan))

    async def run(self) -> None:
        """Fetch all; the first error ends all workers.

        Raises:
            ApplianceError: Which file, and why.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._workers, max(len(self._queue), 1))):
                    group.create_task(self._work())
        except BaseExceptionGroup as exc:
            raise first_error(exc) from exc
        finally:  # also when it is cancelled, so that a later run can resume
            await self._in_thread(self._close_parts)

    def _close_parts(self) -> None:
        for plan in self._plans:
            try:
                plan.part.close()
            except OSError:
                pass  # what was recorded before counts

    def _cut(self, plan: FetchPlan) -> list[FilePiece]:
        """Cut what is missing of a file into pieces.

        1. its size is not known      → one, to the end
        2. nothing is missing         → one without bytes, which finishes the file
        3. the source has no ranges   → one, the whole file
        4. otherwise                  → several
        """
        size, generation = plan.remote.size_bytes, plan.generation
        if size is None:  # 1
            plan.part.done.all.clear()
            pieces = [FilePiece(plan, 0, None, generation)]
        elif not (gaps := plan.part.done.missing(size)):  # 2
            pieces = [FilePiece(plan, size, size, generation)]
        elif not self._source.can_range:  # 3
            plan.part.done.all.clear()
            pieces = [FilePiece(plan, 0, size, generation)]
        else:  # 4
            step = self._piece_bytes(size)
            pieces = [
                FilePiece(plan, at, min(at + step, end), generation)
                for start, end in gaps
                for at in range(start, end, step)
            ]
        plan.left = len(pieces)
        return pieces

    def _piece_bytes(self, size: int) -> int:
        if self._workers == 1:
            return size
        return min(max(size // (4 * self._workers), MIN_PIECE_BYTES), MAX_PIECE_BYTES)

    async def _work(self) -> None:
        while self._queue:
            piece = self._queue.popleft()
            self._meter.begin(piece.plan.remote.path)
            try:
                await self._fetch(piece)
            except Superseded:
                pass
            except OSError as exc:
                raise disk_error(piece.plan.target, exc) from exc
            finally:
                self._meter.end(piece.plan.remote.path)

    async def _fetch(self, piece: FilePiece) -> None:
        """Fetch one piece, resumed where it was interrupted; with its last piece a file is finished."""
        plan, at, furthest = piece.plan, piece.start, piece.start
        if not plan.is_open:
            plan.is_open = True
            plan.part.open()
        retries = RetryCounter(self._timeouts)
        while piece.end is None or at < piece.end:
            begun, pause_s = at, 0.0
            try:
                at = await self._stream(piece, at)
                break
            except RangesUnsupported:
                plan.is_whole = True
            except ApplianceError as exc:
                plan.is_whole = plan.is_whole or not self._source.can_range or piece.end is None
                at = _find_reached(piece, begun)
                # A whole file that breaks off at the same place each time makes no progress.
                if at > furthest + (BLOCK_BYTES if plan.is_whole else 0):
                    furthest = at
                    retries.progressed()
                pause_s = self._next_pause_s(plan, exc, retries)
            await asyncio.sleep(pause_s)
            self._meter.note = ""
            piece.check_current()
            if plan.is_whole:
                piece, at = await self._restart(piece), 0
        piece.check_current()
        plan.left -= 1
        if plan.left:
            await self._in_thread(plan.part.update_hash, False)
        else:
            await self._finish(plan)

    def _next_pause_s(self, plan: FetchPlan, exc: ApplianceError, retries: RetryCounter) -> float:
        """Return how long to wait before the next attempt, and report it; raise if that cannot help."""
        error = _name_file(plan, exc)
        pause_s = retries.next_pause_s(error)
        if pause_s is None:
            raise retries.final_error(error, RESUME_HINT) from exc
        self._meter.note = f"again in {pause_s:.1f} s: {error.message}"
        return pause_s

    async def _stream(self, piece: FilePiece, at: int) -> int:
        """Fetch and write from `at` on; return where it ended. Data before an error is written, too."""
        plan = piece.plan
        blocks: list[bytes] = []
        waiting, written_s = 0, self._clock.monotonic_s()
        try:
            async with aclosing(self._source.pieces(plan.remote, at, piece.end)) as stream:
                async for data in stream:
                    if piece.end is not None and at + waiting + len(data) > piece.end:
                        raise UpstreamFailed(
                            f"{plan.remote.path}: the source sent more bytes than the file has."
                        )
                    blocks.append(data)
                    waiting += len(data)
                    if waiting >= BLOCK_BYTES or self._clock.monotonic_s() - written_s > WRITE_EVERY_S:
                        piece.check_current()
                        await self._in_thread(plan.part.write, blocks, at)
                        self._meter.fetched(waiting)
                        at, blocks, waiting, written_s = at + waiting, [], 0, self._clock.monotonic_s()
        except BaseException:
            if waiting and plan.generation == piece.generation:
                # Not in a thread: a cancelled task could not wait for it.
                plan.part.write(blocks, at)
                self._meter.fetched(waiting)
            raise
        if waiting:
            piece.check_current()
            await self._in_thread(plan.part.write, blocks, at)
            self._meter.fetched(waiting)
            at += waiting
        if piece.end is not None and at < piece.end:
            raise Interrupted(f"the response ended {piece.end - at} bytes early")
        return at

    async def _restart(self, piece: FilePiece) -> FilePiece:
        """Start a file over, in one piece: the server has no ranges, or the parts cannot be trusted."""
        plan = piece.plan
        piece.check_current()
        plan.generation += 1
        plan.left, plan.was_resumed = 1, False
        self._queue = deque(other for other in self._queue if other.plan is not plan)
        self._meter.done_bytes -= plan.part.done.total()
        await self._in_thread(plan.part.restart)
        return FilePiece(plan, 0, plan.remote.size_bytes, plan.generation)

    async def _finish(self, plan: FetchPlan) -> None:
        """Compare a file with its checksum, and give it its final name.

        1. the checksum is right        → it gets its final name
        2. wrong, and it was resumed    → it is fetched again: what an earlier run left may be wrong
        3. wrong                        → it is discarded
        """
        await self._in_thread(plan.part.update_hash, True)
        digests = plan.part.digests()
        wrong = _find_wrong_digest(plan, digests)
        if wrong is None:  # 1
            await self._in_thread(self._give_name, plan, digests["sha256"])
            self._meter.files_done += 1
            return
        if plan.was_resumed:  # 2
            await self._restart(FilePiece(plan, 0, plan.remote.size_bytes, plan.generation))
            self._queue.extend(self._cut(plan))
            return
        await self._in_thread(plan.part.discard)  # 3
        kind, wanted = wrong
        why = "The file was discarded."
        if wanted == plan.expected:
            why = "The source has other contents now; download it again."
        raise UpstreamFailed(
            f"Wrong checksum for {plan.remote.path}: {kind} is {digests[kind]}, not {wanted}. {why}",
            code="checksum_mismatch",
        )

    def _give_name(self, plan: FetchPlan, sha256: str) -> None:
        found = plan.part.sync()
        row = manifest.ManifestRow(
            plan.remote.path, found.st_size, sha256, plan.remote.etag, plan.remote.digest, found.st_mtime_ns
        )
        # The row comes first: one without its file is harmless, a file without its row is fetched again.
        manifest.append_journal(self._folder, row)
        plan.part.finish(plan.target)
        self.rows.append(row)

    async def _in_thread(self, work: Callable[..., ResultT], *arguments: object) -> ResultT:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


def _find_wrong_digest(plan: FetchPlan, digests: dict[str, str]) -> tuple[str, str] | None:
    """Return the kind and the wanted value of the first checksum that is not right; None = all are."""
    kind, _, wanted = plan.remote.digest.partition(":")
    for name, value in ((kind, wanted), ("sha256", plan.expected)):
        if value and digests.get(name) != value:
            return name, value
    return None


def _find_reached(piece: FilePiece, begun: int) -> int:
    """Return the offset up to which a piece is written without a gap from `begun` on."""
    for start, end in piece.plan.part.done.all:
        if start <= begun < end:
            return min(end, piece.end or end)
    return begun


def _name_file(plan: FetchPlan, exc: ApplianceError) -> ApplianceError:
    """Make sure that an error names its file."""
    if plan.remote.path not in exc.message:
        exc.message = f"{plan.remote.path}: {exc.message}"
        exc.args = (exc.message,)
    return exc
