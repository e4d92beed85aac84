"""The workers: each takes a piece of a file from the line, fetches it, writes it, and asks again where it broke off.

Large files are cut into pieces where the source can, so that all workers are busy to the end; what is hashed follows the bytes, so that
nothing is left to be read when the last one has come.
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

SMALLEST_PIECE_BYTES, LARGEST_PIECE_BYTES = 8 << 20, 64 << 20
WRITE_EVERY_S = 1.0  # on slow lines, so that a kill loses little
Given = TypeVar("Given")


@dataclass(eq=False)
class FetchPlan:
    """One file under way. `generation` goes up when it begins anew, and what was begun before is left."""

    remote: RemoteFile
    target: Path
    part: PartialFile
    expected: str = ""  # SHA-256 that it must have, if that is known from an earlier time
    was_resumed: bool = False
    is_open: bool = False
    is_whole: bool = False  # the server gives no parts of it
    generation: int = 0
    left: int = 0  # pieces that are not done


@dataclass(frozen=True, slots=True)
class FilePiece:
    job: FetchPlan
    start: int
    end: int | None  # None = to the end of a file whose size is not known
    generation: int


class Superseded(Exception):
    """The file began anew while this piece of it was fetched."""


class TransferWorkers:
    """Fetches some files of one source."""

    def __init__(
        self,
        source: DownloadSource,
        folder: Path,
        jobs: list[FetchPlan],
        *,
        workers: int,
        meter: ProgressMeter,
        timeouts: SourceTimeouts,
        clock: Clock,
        threads: ThreadPoolExecutor,
    ) -> None:
        self._source, self._folder, self._meter, self._timeouts, self._clock = (
            source,
            folder,
            meter,
            timeouts,
            clock,
        )
        self._workers = workers
        self._threads = threads
        self.rows: list[manifest.ManifestRow] = []
        self._jobs = jobs
        self._line = deque(piece for job in jobs for piece in self._pieces_of(job))

    async def run(self) -> None:
        """Fetch all; the first error ends all workers. Raises  ApplianceError"""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._workers, max(len(self._line), 1))):
                    group.create_task(self._work())
        except BaseExceptionGroup as exc:
            raise first_error(exc) from exc
        finally:
            await self._in_thread(
                self._close_parts
            )  # also when it is cancelled: they are left so that they can be gone on with

    def _close_parts(self) -> None:
        for job in self._jobs:
            try:
                job.part.close()
            except OSError:
                pass  # what was written down before counts

    def _pieces_of(self, job: FetchPlan) -> list[FilePiece]:
        """Cut what is missing of a file into pieces: 1. nothing is missing   2. one to the end   3. several."""
        size, generation = job.remote.size_bytes, job.generation
        if size is None:  # 2
            job.part.done.all.clear()
            pieces = [FilePiece(job, 0, None, generation)]
        elif not (gaps := job.part.done.missing(size)):  # 1
            pieces = [FilePiece(job, size, size, generation)]
        elif not self._source.can_range:  # 2
            job.part.done.all.clear()
            pieces = [FilePiece(job, 0, size, generation)]
        else:  # 3
            step = self._step(size)
            pieces = [
                FilePiece(job, at, min(at + step, end), generation)
                for start, end in gaps
                for at in range(start, end, step)
            ]
        job.left = len(pieces)
        return pieces

    def _step(self, size: int) -> int:
        return (
            size
            if self._workers == 1
            else min(max(size // (4 * self._workers), SMALLEST_PIECE_BYTES), LARGEST_PIECE_BYTES)
        )

    async def _work(self) -> None:
        while self._line:
            piece = self._line.popleft()
            self._meter.begin(piece.job.remote.path)
            try:
                await self._piece(piece)
            except Superseded:
                pass
            except OSError as exc:
                raise disk_error(piece.job.target, exc) from exc
            finally:
                self._meter.end(piece.job.remote.path)

    async def _piece(self, piece: FilePiece) -> None:
        """Fetch one piece, again from where it broke off; the worker with a file's last piece finishes the file."""
        job, at, furthest = piece.job, piece.start, piece.start
        if not job.is_open:
            job.is_open = True
            job.part.open()
        retries = RetryCounter(self._timeouts)
        while piece.end is None or at < piece.end:
            begun, pause = at, 0.0
            try:
                at = await self._stream(piece, at)
                break
            except RangesUnsupported:
                job.is_whole = True
            except ApplianceError as exc:
                job.is_whole = job.is_whole or not self._source.can_range or piece.end is None
                at = _reached(job, piece, begun)
                # A whole file that breaks off at the same place again and again gets nowhere.
                if at > furthest + (BLOCK_BYTES if job.is_whole else 0):
                    furthest = at
                    retries.progressed()
                pause = self._pause(job, exc, retries)
            await asyncio.sleep(pause)
            self._meter.note = ""
            self._check(piece)
            if job.is_whole:
                piece, at = await self._begin_anew(piece), 0
        self._check(piece)
        job.left -= 1
        if job.left:
            await self._in_thread(job.part.hash_on, False)
        else:
            await self._finish(job)

    def _pause(self, job: FetchPlan, exc: ApplianceError, retries: RetryCounter) -> float:
        """Give how long to wait before a piece is asked for again, and tell it; raise when it cannot help."""
        pause = retries.pause_s(exc)
        if pause is None:
            raise retries.final(
                _named(job, exc), " What was fetched is kept; run it again to go on."
            ) from exc
        self._meter.note = f"again in {pause:.1f} s: {_named(job, exc).message}"
        return pause

    async def _stream(self, piece: FilePiece, at: int) -> int:
        """Fetch and write from `at` on; give where it ended. What came before an error is written, too."""
        job = piece.job
        blocks: list[bytes] = []
        waiting, written_s = 0, self._clock.monotonic_s()
        try:
            async with aclosing(self._source.pieces(job.remote, at, piece.end)) as stream:
                async for data in stream:
                    if piece.end is not None and at + waiting + len(data) > piece.end:
                        raise UpstreamFailed(
                            f"{job.remote.path}: the source gave more bytes than the file has."
                        )
                    blocks.append(data)
                    waiting += len(data)
                    if waiting >= BLOCK_BYTES or self._clock.monotonic_s() - written_s > WRITE_EVERY_S:
                        self._check(piece)
                        await self._in_thread(job.part.write, blocks, at)
                        self._meter.fetched(waiting)
                        at, blocks, waiting, written_s = at + waiting, [], 0, self._clock.monotonic_s()
        except BaseException:
            if waiting and job.generation == piece.generation:
                job.part.write(
                    blocks, at
                )  # not in a thread: when it is cancelled nothing could be waited for
                self._meter.fetched(waiting)
            raise
        if waiting:
            self._check(piece)
            await self._in_thread(job.part.write, blocks, at)
            self._meter.fetched(waiting)
            at += waiting
        if piece.end is not None and at < piece.end:
            raise Interrupted(f"the answer ended {piece.end - at} bytes early")
        return at

    async def _begin_anew(self, piece: FilePiece) -> FilePiece:
        """Fetch a file whole and in one go from its beginning: the server gives no parts, or the parts cannot be trusted."""
        job = piece.job
        self._check(piece)
        job.generation += 1
        job.left, job.was_resumed = 1, False
        self._line = deque(other for other in self._line if other.job is not job)
        self._meter.done_bytes -= job.part.done.total()
        await self._in_thread(job.part.restart)
        return FilePiece(job, 0, job.remote.size_bytes, job.generation)

    async def _finish(self, job: FetchPlan) -> None:
        """Hold a file against its checksum, and give it its name."""
        await self._in_thread(job.part.hash_on, True)
        remote, digests = job.remote, job.part.digests()
        kind, _, wanted = remote.digest.partition(":")
        wrong = next(
            (
                (name, want)
                for name, want in ((kind, wanted), ("sha256", job.expected))
                if want and digests.get(name) != want
            ),
            None,
        )
        if wrong is not None:
            if job.was_resumed:  # what an earlier run left may be at fault: once again, from the beginning
                await self._begin_anew(FilePiece(job, 0, remote.size_bytes, job.generation))
                self._line.extend(self._pieces_of(job))
                return
            await self._in_thread(job.part.discard)
            why = (
                "The source has other contents by now; download it anew."
                if wrong[1] == job.expected
                else "It was thrown away."
            )
            raise UpstreamFailed(
                f"{remote.path} does not have the checksum that it should have: {wrong[0]} is {digests[wrong[0]]}, not {wrong[1]}. "
                f"{why}",
                code="checksum_mismatch",
            )
        await self._in_thread(self._name, job, digests["sha256"])
        self._meter.files_done += 1

    def _name(self, job: FetchPlan, sha256: str) -> None:
        found = job.part.sync()
        row = manifest.ManifestRow(
            job.remote.path, found.st_size, sha256, job.remote.etag, job.remote.digest, found.st_mtime_ns
        )
        manifest.append_journal(
            self._folder, row
        )  # first: a row without its file is harmless, a file without its row is fetched again
        job.part.finish(job.target)
        self.rows.append(row)

    def _check(self, piece: FilePiece) -> None:
        if piece.generation != piece.job.generation:
            raise Superseded

    async def _in_thread(self, work: Callable[..., Given], *arguments: object) -> Given:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


def _reached(job: FetchPlan, piece: FilePiece, begun: int) -> int:
    """Give up to where a piece is written, seen from where its stream began."""
    return next(
        (min(end, piece.end or end) for start, end in job.part.done.all if start <= begun < end), begun
    )


def _named(job: FetchPlan, exc: ApplianceError) -> ApplianceError:
    """Make sure that an error names its file."""
    if job.remote.path not in exc.message:
        exc.message = f"{job.remote.path}: {exc.message}"
        exc.args = (exc.message,)
    return exc
