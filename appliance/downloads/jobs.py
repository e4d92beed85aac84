"""Download jobs: which source is downloaded into which folder, bounded in number, kept over a restart.

One download of one source to one folder at a time: a second request for the same joins the first. A job ends
as completed, failed or cancelled; one that was running when the appliance stopped is interrupted, and
continues at the next start from the parts that are there.
"""

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from appliance.base.clock import Clock
from appliance.base.durable_jobs import DurableJobs, JobLimits, JobPlan, Step, end_job, redact_text
from appliance.base.errors import ApplianceError, Conflict, Exhausted, Internal, NotFound, Unavailable
from appliance.base.logs import get_logger
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
from appliance.downloads.job import DownloadJob, JobKind, job_file
from appliance.downloads.request import (
    credential_names,
    find_missing_credentials,
    public_config,
    secret_texts,
)

log = get_logger("downloads")
GATHER_S = 0.1  # followers get all progress within this time as one update
MAX_KEPT = 200
MAX_ACTIVE = 200  # including queued ones
NOT_RESUMED = "The appliance stopped during this download. Request it again to continue with what is there."


class DownloadJobs:
    """All download jobs. Call `open` before use, and `close` before its tasks end.

    Args:
        path: The file in which the jobs are kept, None = in memory only.
        max_running: At the same time, 1 or more; the others are queued.
        has_variable: Says whether the environment has a variable.
        resumes: Whether interrupted jobs continue at `open`.
        on_fetched: Called before a job counts as completed; an error that it raises fails the job.
    """

    def __init__(
        self,
        downloader: Downloader,
        *,
        tasks: Tasks,
        clock: Clock,
        path: Path | None = None,
        max_running: int = 2,
        has_variable: Callable[[str], bool] = lambda _: False,
        resumes: bool = True,
        on_fetched: Callable[[DownloadJob], Awaitable[None]] | None = None,
    ) -> None:
        self._downloader = downloader
        self._has_variable = has_variable
        self._resumes = resumes
        self._on_fetched = on_fetched
        self._clock = clock
        self._jobs = DurableJobs[DownloadJob](
            tasks=tasks,
            clock=clock,
            limits=JobLimits(running=max_running, kept=MAX_KEPT),
            file=job_file(path) if path else None,
            on_fault=_fault,
            on_end=_log_end,
        )

    @property
    def changed(self) -> Watched[int]:
        """Changes with every change of a job."""
        return self._jobs.changed

    async def open(self) -> None:
        """Read the kept jobs, and resume those that were interrupted."""
        await self._jobs.open(self._resume)

    async def close(self) -> None:
        """Interrupt what runs, so that the next start continues it; waiters get Unavailable."""
        await self._jobs.close()

    # ---- reading

    def all(self) -> list[DownloadJob]:
        """List the jobs, newest first."""
        return self._jobs.all()[::-1]

    def get(self, job_id: str) -> DownloadJob:
        """Return one job.

        Raises:
            NotFound: There is no such job, or it is no longer kept.
        """
        job = self._jobs.find(job_id)
        if job is None:
            raise NotFound(
                f"No such download job: {job_id[:100]!r}. The last {MAX_KEPT} jobs are kept.",
                code="no_such_job",
            )
        return job

    async def follow(self, job_id: str) -> AsyncGenerator[DownloadJob, None]:
        """Yield a job now and after each change, the last time at its end. A slow follower skips versions.

        Raises:
            NotFound: There is no such job.
        """
        self.get(job_id)
        async for job in self._jobs.follow(job_id):
            yield job

    # ---- doing

    async def start(
        self,
        request: DownloadRequest,
        *,
        kind: JobKind = "download",
        model: str = "",
        is_detached: bool = True,
    ) -> DownloadJob:
        """Begin a job, or join the active one that does the same; return it once it is kept.

        Args:
            request: For a repair with source "".
            model: The name under which the model is to serve, "" = none.
            is_detached: The job continues without any waiter (see `holding`).

        Raises:
            Conflict: The same download runs with other settings.
            Exhausted: Too many jobs are active.
            Unavailable: The appliance is stopping.
        """
        if self._jobs.is_closing:
            raise Unavailable("The appliance is stopping; no new download is started.", code="shutting_down")
        job = DownloadJob(
            id=f"job_{secrets.token_hex(8)}",
            source=redact_source(request.source),
            output_dir=request.output_dir,
            kind=kind,
            max_workers=request.max_workers,
            config=public_config(request.config),
            needs=credential_names(request),
            model=model,
        )
        same = next((one for one in self._jobs.active if one.is_same_work(job)), None)
        if same is not None:
            return self._join(same, job, is_detached=is_detached)
        if len(self._jobs.active) >= MAX_ACTIVE:
            raise Exhausted(
                f"{MAX_ACTIVE} downloads are running or queued. Try again when some have ended.",
                code="too_many_jobs",
                retry_after_s=60,
            )
        for former in self._jobs.all():
            if former.state == "interrupted" and former.is_same_work(job):
                self._jobs.put_ended(replace(former, state="cancelled", error=f"It continues as {job.id}."))
        return await self._jobs.begin(job, self._plan(job, request, is_detached=is_detached))

    async def wait(self, job_id: str) -> DownloadJob:
        """Wait for a job's end, and hold it meanwhile (see `holding`).

        Returns:
            The completed job.

        Raises:
            NotFound: There is no such job.
            Conflict: It was cancelled.
            Unavailable: The appliance is stopping.
            ApplianceError: Why it failed.
        """
        self.get(job_id)
        end = await self._jobs.wait(job_id)
        job = end.job
        if job.state == "completed":
            return job
        if job.state == "cancelled":
            raise Conflict(
                "The download was cancelled. What was fetched is kept for the next time.",
                code="download_cancelled",
            )
        if job.state != "failed":
            raise Unavailable(
                f"The appliance is stopping; the download {job.id} continues after the next start.",
                code="shutting_down",
            )
        raise end.failure or Internal(job.error)

    def holding(self, job_id: str) -> AbstractContextManager[None]:
        """Hold a job while the context is open; without holders it is cancelled, unless it is detached."""
        return self._jobs.holding(job_id)

    def holder_count(self, job_id: str) -> int:
        """How many callers hold a job."""
        return self._jobs.holder_count(job_id)

    async def cancel(self, job_id: str) -> DownloadJob:
        """Cancel a job; one that has ended already stays as it is. The parts stay, for a later job.

        Raises:
            NotFound: There is no such job.
        """
        self.get(job_id)
        return await self._jobs.cancel(job_id)

    async def verify(self, folder: Path) -> list[FileFault]:
        """Compare a folder with what its downloads recorded. Raises what `Downloader.verify` raises."""
        return await self._downloader.verify(folder)

    # ---- one job

    def _join(self, running: DownloadJob, wanted: DownloadJob, *, is_detached: bool) -> DownloadJob:
        if (running.config, running.model) != (wanted.config, wanted.model):
            raise Conflict(
                f"{running.source} is being downloaded to {running.output_dir} with other settings "
                f"(job {running.id}). Wait for it, or cancel it.",
                code="download_runs",
            )
        self._jobs.attach(running.id, is_detached=is_detached)
        return running

    def _plan(
        self, job: DownloadJob, request: DownloadRequest, *, is_detached: bool = True
    ) -> JobPlan[DownloadJob]:
        """Return the steps of a job: fetch, then hand over what was fetched (`on_fetched`)."""
        results: list[DownloadResult] = []

        def report(progress: DownloadProgress) -> None:
            self._jobs.update(job.id, progress=progress)

        async def fetch() -> None:
            if job.kind == "repair":
                result = await self._downloader.repair(request.output_dir, report, dict(request.config))
            else:
                result = await self._downloader.download(request, report)
            results.append(result)

        async def hand_over() -> None:
            if self._on_fetched is not None:
                await self._on_fetched(self.get(job.id))

        return JobPlan(
            (Step("fetch", fetch), Step("hand_over", hand_over)),
            complete=lambda ended: _completed(ended, results[-1]),
            secrets=secret_texts(request),
            is_detached=is_detached,
        )

    def _resume(self, job: DownloadJob) -> JobPlan[DownloadJob] | DownloadJob:
        """Return a plan to continue an interrupted job, or the job with the reason why it cannot continue."""
        missing = find_missing_credentials(job.needs, self._has_variable)
        if self._resumes and not missing:
            request = DownloadRequest(job.source, job.output_dir, job.max_workers, dict(job.config))
            return self._plan(job, request)
        error = NOT_RESUMED
        if missing and self._resumes:
            error = (
                "The appliance stopped during this download, and credentials are not kept: "
                f"{', '.join(missing)}. "
                "Set them in the environment and restart, or request the download again."
            )
        return end_job(job, "interrupted", at_s=self._clock.now_s(), error=error)


def _completed(job: DownloadJob, result: DownloadResult) -> DownloadJob:
    progress = replace(
        job.progress, phase="done", now=(), note="", rate_bytes_s=0.0, fetched_bytes=result.fetched_bytes
    )
    return replace(
        job, files=result.files, bytes_total=result.total_bytes, seconds=result.seconds, progress=progress
    )


def _fault(job: DownloadJob, exc: Exception, secrets: Sequence[str]) -> ApplianceError:
    log.error("download_broke", job=job.id, error=redact_text(repr(exc), secrets), exc_info=exc)
    return Internal(f"The download failed inside the appliance. See its log under {job.id}.")


def _log_end(job: DownloadJob) -> None:
    log.info(
        "download_ended",
        job=job.id,
        source=job.source,
        output_dir=str(job.output_dir),
        state=job.state,
        error=job.error,
    )
