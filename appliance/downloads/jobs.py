"""Download jobs: who downloads what to where, bounded in number, joined where two ask for the same, and kept over a restart.

One download of one source to one folder at a time: a second request for the same joins the first. A job ends in completed, failed or
cancelled; one that the end of the appliance cut off is interrupted, and goes on at the next start from the parts that are there.
"""

import asyncio
import copy
import secrets
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Conflict, Exhausted, Internal, NotFound, Unavailable
from appliance.base.logs import SECRETS, get_logger
from appliance.base.tasks import Tasks
from appliance.base.watch import Watched
from appliance.downloads.contract import (
    Downloader,
    DownloadProgress,
    DownloadRequest,
    DownloadResult,
    FileFault,
    redact_source,
)
from appliance.downloads.job import DownloadJob, JobKind
from appliance.downloads.jobs_file import read_jobs, write_jobs
from appliance.downloads.request import (
    blank_secrets,
    credential_names,
    find_missing_credentials,
    public_config,
    secret_texts,
)

log = get_logger("downloads")
GATHER_S = 0.1  # for those who follow: progress that comes closer together is told together
MAX_KEPT = 200
MAX_ACTIVE = 200  # queued ones counted in
CANCEL_WAIT_S = 10.0


@dataclass(slots=True)
class _Going:
    """What belongs to a job while it goes on, and is in no file. `is_kept`: it goes on though nobody waits for it."""

    wish: DownloadRequest
    task: "asyncio.Task[DownloadResult | ApplianceError]"
    is_kept: bool
    secrets: list[str] = field(repr=False)
    waiters: int = 0
    is_cancelled: bool = False


class DownloadJobs:
    """All jobs. `open` before use, `close` before its tasks end.

    Takes   path: the file in which they are kept, None = in memory only; most_running: at the same time, the others queue;
            has_variable: whether the environment has a variable; resumes: whether interrupted jobs go on at `open`
    """

    def __init__(
        self,
        downloader: Downloader,
        *,
        tasks: Tasks,
        clock: Clock,
        path: Path | None = None,
        most_running: int = 2,
        has_variable: Callable[[str], bool] = lambda _: False,
        resumes: bool = True,
    ) -> None:
        self.changed: Watched[int] = Watched(0)
        self.on_fetched: Callable[[DownloadJob], Awaitable[None]] | None = (
            None  # called before a job counts as completed; may fail it
        )
        self._downloader = downloader
        self._tasks = tasks
        self._clock = clock
        self._path = path
        self._places = asyncio.Semaphore(most_running)
        self._has_variable = has_variable
        self._resumes = resumes
        self._jobs: dict[str, DownloadJob] = {}
        self._going: dict[str, _Going] = {}
        self._failures: dict[str, ApplianceError] = {}
        self._writing = asyncio.Lock()
        self._is_closing = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    async def open(self) -> None:
        """Read the kept jobs, and take up those that were interrupted."""
        kept = await asyncio.to_thread(read_jobs, self._path) if self._path else []
        self._jobs = {job.id: job for job in kept}
        for job in kept:
            if job.is_active or job.state == "interrupted":
                self._take_up(
                    replace(job, state="interrupted", ended_at_s=job.ended_at_s or self._clock.now_s())
                )
        await self._keep()

    async def close(self) -> None:
        """Interrupt what runs, so that the next start goes on with it; whoever waits is told."""
        self._is_closing = True
        running = [going.task for going in self._going.values()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=CANCEL_WAIT_S)
        await self._keep()

    # ---- seeing

    def all(self) -> list[DownloadJob]:
        """List the jobs, newest first."""
        return list(reversed(self._jobs.values()))

    def get(self, job_id: str) -> DownloadJob:
        """Give one. Raises NotFound."""
        if job_id not in self._jobs:
            raise NotFound(
                f"There is no download job {job_id[:100]!r}; the last {MAX_KEPT} are kept.",
                code="no_such_job",
            )
        return self._jobs[job_id]

    async def follow(self, job_id: str) -> AsyncGenerator[DownloadJob, None]:
        """Give a job now and whenever it changed, the last time when it goes on no more. A slow follower skips what was overtaken.

        Raises  NotFound
        """
        told: DownloadJob | None = None
        while True:
            seen, job = self.changed.version, self.get(job_id)
            if job != told:
                told = job
                yield job
            if not job.is_active:
                return
            await self.changed.newer(seen)

    # ---- doing

    async def start(
        self, wish: DownloadRequest, *, kind: JobKind = "download", model: str = "", is_kept: bool = True
    ) -> DownloadJob:
        """Begin a job, or join the one that does the same; give it once it is kept.

        Takes   wish: for a repair with source ""; is_kept: it goes on though nobody waits for it (see `holding`)
        Raises  Conflict: the same runs with other settings · Exhausted: too many · Unavailable: the appliance stops
        """
        if self._is_closing:
            raise Unavailable("The appliance stops and begins no download.", code="shutting_down")
        if (same := self._same(wish, kind)) is not None:
            return self._joined(same, wish, model, is_kept=is_kept)
        if len(self._going) >= MAX_ACTIVE:
            raise Exhausted(
                f"{MAX_ACTIVE} downloads run or wait already; try again when some have ended.",
                code="too_many_jobs",
                retry_after_s=60,
            )
        job = DownloadJob(
            f"job_{secrets.token_hex(8)}",
            redact_source(wish.source),
            wish.output_dir,
            "queued",
            self._clock.now_s(),
            kind,
            max_workers=wish.max_workers,
            config=public_config(wish.config),
            needs=credential_names(wish),
            model=model,
        )
        self._replace_interrupted(job)
        self._begin(job, wish, is_kept=is_kept)
        self._forget_oldest()
        await self._keep()
        return self.get(job.id)

    async def wait(self, job_id: str) -> DownloadJob:
        """Wait for a job's end, and hold it meanwhile (see `holding`).

        Gives   the completed job
        Raises  NotFound · why it failed · Conflict: it was cancelled · Unavailable: the appliance stops
        """
        with self.holding(job_id):
            if (going := self._going.get(job_id)) is not None:
                await asyncio.wait({going.task})
        job = self.get(job_id)
        if job.state == "completed":
            return job
        if job.state == "cancelled":
            raise Conflict(
                "The download was cancelled; what was fetched is kept for the next time.",
                code="download_cancelled",
            )
        if job.state == "interrupted":
            raise Unavailable(
                f"The appliance stops; the download {job.id} goes on when it is started again.",
                code="shutting_down",
            )
        raise self._failures.get(job_id) or Internal(job.error)

    @contextmanager
    def holding(self, job_id: str) -> Iterator[None]:
        """Want a job while the context lasts: the last who lets go of it cancels it, unless it is one that goes on by itself."""
        going = self._going.get(job_id)
        if going is None:
            yield
            return
        going.waiters += 1
        try:
            yield
        finally:
            going.waiters -= 1
            if not going.waiters and not going.is_kept and not going.task.done():
                _stop(going)

    async def cancel(self, job_id: str) -> DownloadJob:
        """End a job; its parts stay, and a later job goes on from them. One that has ended already stays as it is.

        Raises  NotFound
        """
        job, going = self.get(job_id), self._going.get(job_id)
        if going is not None:
            _stop(going)
            await asyncio.wait({going.task}, timeout=CANCEL_WAIT_S)
        elif job.state == "interrupted":
            self._put(replace(job, state="cancelled"))
        await self._keep()
        return self.get(job_id)

    async def verify(self, folder: Path) -> list[FileFault]:
        """Hold a folder against what its download wrote down. Raises what Downloader.verify raises."""
        return await self._downloader.verify(folder)

    # ---- one job's life

    def _begin(self, job: DownloadJob, wish: DownloadRequest, *, is_kept: bool) -> None:
        hidden = secret_texts(wish)
        SECRETS.learn(hidden)  # what others log of it is blanked, too
        self._put(job)
        task = self._tasks.start(self._run(job.id, wish), name=f"download-{job.id}")
        self._going[job.id] = _Going(wish, task, is_kept, hidden)
        task.add_done_callback(partial(self._ended, job.id))

    async def _run(self, job_id: str, wish: DownloadRequest) -> DownloadResult | ApplianceError:
        """Give what a job came to, or why it failed: as a value, since nobody may be left to catch it."""
        try:
            async with self._places:
                self._put(replace(self.get(job_id), state="running", started_at_s=self._clock.now_s()))
                await self._keep()
                fetched = await self._fetch(self.get(job_id), wish)
                if self.on_fetched is not None:
                    await self.on_fetched(self.get(job_id))
            return fetched
        except ApplianceError as error:
            return error
        except Exception as exc:
            log.error(
                "download_broke", job=job_id, error=blank_secrets(repr(exc), secret_texts(wish)), exc_info=exc
            )
            return Internal(
                f"Something failed inside the appliance while downloading; its log has the details under {job_id}."
            )

    async def _fetch(self, job: DownloadJob, wish: DownloadRequest) -> DownloadResult:
        on_progress = partial(self._progressed, job.id)
        if job.kind == "repair":
            return await self._downloader.repair(wish.output_dir, on_progress, dict(wish.config))
        return await self._downloader.download(wish, on_progress)

    def _progressed(self, job_id: str, progress: DownloadProgress) -> None:
        """Take progress, from whatever thread it is told in."""
        if threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self._progressed, job_id, progress)
        elif (going := self._going.get(job_id)) is not None and not going.task.done():
            self._put(replace(self._jobs[job_id], progress=progress))

    def _ended(self, job_id: str, task: "asyncio.Task[DownloadResult | ApplianceError]") -> None:
        """Settle a job: also one that was cancelled before its first step, hence not in `_run`."""
        going, job = self._going.pop(job_id), self._jobs[job_id]
        over: dict[str, Any] = {"ended_at_s": self._clock.now_s()}
        if task.cancelled():
            over["state"] = "cancelled" if going.is_cancelled else "interrupted"
        elif isinstance(outcome := task.result(), ApplianceError):
            error = self._failures[job_id] = _hidden(outcome, going.secrets)
            over |= {"state": "failed", "error": error.message}
        else:
            done = replace(
                job.progress,
                phase="done",
                now=(),
                note="",
                rate_bytes_s=0.0,
                fetched_bytes=outcome.fetched_bytes,
            )
            over |= {
                "state": "completed",
                "files": outcome.files,
                "bytes_total": outcome.total_bytes,
                "seconds": outcome.seconds,
                "progress": done,
            }
        self._put(replace(job, **over))
        log.info(
            "download_ended",
            job=job_id,
            source=job.source,
            output_dir=str(job.output_dir),
            state=over["state"],
            error=over.get("error", ""),
        )
        if not self._is_closing:
            self._tasks.start(self._keep(), name="keep-jobs")

    # ---- which job

    def _same(self, wish: DownloadRequest, kind: JobKind) -> DownloadJob | None:
        """Give the job that goes on and does the same, if there is one."""
        key = (kind, redact_source(wish.source), wish.output_dir)
        return next(
            (
                job
                for job_id in self._going
                if (job := self._jobs[job_id]) and (job.kind, job.source, job.output_dir) == key
            ),
            None,
        )

    def _joined(self, job: DownloadJob, wish: DownloadRequest, model: str, *, is_kept: bool) -> DownloadJob:
        if (job.config, job.model) != (public_config(wish.config), model):
            raise Conflict(
                f"{job.source} is being downloaded to {job.output_dir} with other settings (job {job.id}). Wait for it, or cancel it.",
                code="download_runs",
            )
        self._going[job.id].is_kept |= is_kept
        return job

    def _take_up(self, job: DownloadJob) -> None:
        """Let an interrupted job go on, or say why it does not."""
        missing = find_missing_credentials(job.needs, self._has_variable)
        if not self._resumes:
            self._put(
                replace(
                    job,
                    error="It was interrupted when the appliance ended. Ask for it again to go on from what is there.",
                )
            )
        elif missing:
            self._put(
                replace(
                    job,
                    error=f"It was interrupted, and cannot go on without credentials, which are not kept: {', '.join(missing)}. "
                    "Set them in the environment and restart, or ask for it again.",
                )
            )
        else:
            wish = DownloadRequest(job.source, job.output_dir, job.max_workers, dict(job.config))
            self._begin(
                replace(job, state="queued", started_at_s=None, ended_at_s=None, error=""), wish, is_kept=True
            )

    def _replace_interrupted(self, heir: DownloadJob) -> None:
        for job in list(self._jobs.values()):
            if job.state == "interrupted" and (job.kind, job.source, job.output_dir) == (
                heir.kind,
                heir.source,
                heir.output_dir,
            ):
                self._put(replace(job, state="cancelled", error=f"It goes on as {heir.id}."))

    def _forget_oldest(self) -> None:
        for job_id in [job_id for job_id in self._jobs if job_id not in self._going][
            : max(0, len(self._jobs) - MAX_KEPT)
        ]:
            del self._jobs[job_id]
            self._failures.pop(job_id, None)

    # ---- keeping

    def _put(self, job: DownloadJob) -> None:
        self._jobs[job.id] = job
        self.changed.set(self.changed.value + 1)

    async def _keep(self) -> None:
        """Write the jobs as they are, one write after the other."""
        if self._path is None:
            return
        async with self._writing:
            await asyncio.to_thread(write_jobs, self._path, list(self._jobs.values()))


def _stop(going: _Going) -> None:
    going.is_cancelled = True
    going.task.cancel()


def _hidden(error: ApplianceError, hidden: list[str]) -> ApplianceError:
    """Give an error without the secrets that whoever raised it may have put in."""

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return SECRETS.redact(blank_secrets(value, hidden))
        if isinstance(value, dict):
            return {key: clean(one) for key, one in value.items()}
        return [clean(one) for one in value] if isinstance(value, (list, tuple)) else value

    found = copy.copy(error)
    found.message, found.details = clean(error.message), clean(error.details)
    found.args = (found.message,)
    found.__cause__ = found.__context__ = None
    return found
