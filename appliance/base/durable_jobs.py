"""Jobs that run in the background, step by step, and survive a restart.

A job is a value (`Job` and the fields of its kind); its plan is a list of named steps, done in order.
`DurableJobs` runs the plans, bounded in number, and keeps the jobs in a file of the state folder (`JobFile`).
A job that had not ended when the process exited is handed to its owner at the next start. The owner returns
a plan to continue it, or the job with the reason why it cannot continue.

Steps must be repeatable: a resumed job starts again with its first step. No credential is ever part of a job.
"""

import asyncio
import copy
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, write_remedy
from appliance.base.files import write_atomic
from appliance.base.logs import REDACTED, SECRETS, get_logger
from appliance.base.tasks import Tasks
from appliance.base.watch import Watched

JobState = Literal["queued", "running", "completed", "failed", "cancelled", "interrupted"]
JOB_STATES: tuple[JobState, ...] = get_args(JobState)
ACTIVE_STATES: frozenset[JobState] = frozenset({"queued", "running"})
CANCEL_WAIT_S = 10.0

log = get_logger("jobs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every kind of job has. Times in seconds since 1970, None = not yet.

    Attributes:
        state: `interrupted` means: the process ended before the job did.
        step: The step that it is at, "" before the first one.
        since_s: Since when it is in this state and step.
        error: Why it failed, or why an interrupted job cannot continue.
    """

    id: str
    state: JobState = "queued"
    step: str = ""
    since_s: float = 0.0
    created_at_s: float = 0.0
    started_at_s: float | None = None
    ended_at_s: float | None = None
    error: str = ""

    @property
    def is_active(self) -> bool:
        """Whether it is queued or runs."""
        return self.state in ACTIVE_STATES


JobT = TypeVar("JobT", bound=Job)


def end_job(job: JobT, state: JobState, *, at_s: float, error: str = "") -> JobT:
    """Return the job in its end state; a job that had ended before keeps its end time."""
    return replace(job, state=state, since_s=at_s, ended_at_s=job.ended_at_s or at_s, error=error)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a plan, by the name under which it is shown."""

    name: str
    run: Callable[[], Awaitable[object]]


def unchanged(job: JobT) -> JobT:
    """Return the job as it is: the `complete` of plans that have nothing to add."""
    return job


@dataclass(frozen=True, slots=True)
class JobPlan(Generic[JobT]):
    """How a job is done.

    Attributes:
        steps: At least one.
        complete: Adds the results of the steps to the job; called after the last step.
        secrets: Texts that must not appear in any error of the job.
        is_detached: It continues without any holder (see `DurableJobs.holding`).
        is_stored: It is kept in the file, and listed after its end. False = it is forgotten when it ends.
    """

    steps: Sequence[Step]
    complete: Callable[[JobT], JobT] = unchanged
    secrets: Sequence[str] = field(default=(), repr=False)
    is_detached: bool = True
    is_stored: bool = True


@dataclass(frozen=True, slots=True)
class JobLimits:
    """How many jobs there may be.

    Attributes:
        running: At the same time; the others are queued. None = no limit.
        kept: Jobs in all. The oldest ones that have ended are forgotten, active ones never.
        ends_kept: The states in which an ended job is kept; in any other it is forgotten at once.
    """

    running: int | None = None
    kept: int = 200
    ends_kept: Collection[str] = JOB_STATES


@dataclass(frozen=True, slots=True)
class JobEnd(Generic[JobT]):
    """How a job ended. `failure`: the error of one that failed in this process, without its secrets."""

    job: JobT
    failure: ApplianceError | None = None


class JobFile(Generic[JobT]):
    """The file in which jobs survive a restart: written completely or not at all, readable by its owner only.

    Args:
        path: The file; its folder is created where it is missing.
        key: The key of the list in the file's JSON object.
        to_row: Returns a job as a JSON object.
        from_row: Reads it back. It raises KeyError, TypeError, ValueError or AttributeError if it cannot.
        noun: What log events call a job, such as `job` in `jobs_unreadable`.
    """

    def __init__(
        self,
        path: Path,
        *,
        key: str,
        to_row: Callable[[JobT], dict[str, Any]],
        from_row: Callable[[Mapping[str, Any]], JobT],
        noun: str = "job",
    ) -> None:
        self._path = path
        self._key = key
        self._to_row = to_row
        self._from_row = from_row
        self._noun = noun
        # One write at a time: no thread has to wait for another, and callers continue in order.
        self._write_order = asyncio.Lock()
        # A write whose caller was cancelled continues in its thread, beside the next one.
        self._lock = threading.Lock()
        self._snapshots = 0
        self._written = 0
        self._content = b""

    async def read(self) -> list[JobT]:
        """Return the kept jobs in their order. What cannot be read is logged and left out."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> list[JobT]:
        try:
            rows = list(jsons.loads(self._path.read_bytes())[self._key])
        except FileNotFoundError:
            return []
        except (OSError, jsons.InvalidJson, KeyError, TypeError) as exc:
            log.error(f"{self._noun}s_unreadable", path=str(self._path), error=repr(exc))
            return []
        return [job for row in rows if (job := self._parse(row)) is not None]

    def _parse(self, row: Any) -> JobT | None:
        try:
            return self._from_row(row)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            log.error(f"{self._noun}_unreadable", path=str(self._path), error=repr(exc))
            return None

    async def write(self, jobs: Sequence[JobT]) -> None:
        """Write the jobs. A failure is logged, and the jobs continue."""
        self._snapshots += 1
        snapshot = self._snapshots
        async with self._write_order:
            await asyncio.to_thread(self._write, snapshot, jobs)

    def _write(self, snapshot: int, jobs: Sequence[JobT]) -> None:
        with self._lock:
            if snapshot < self._written:  # a later one was faster
                return
            content = jsons.dumps({self._key: [self._to_row(job) for job in jobs]})
            if content == self._content:
                return
            try:
                write_atomic(self._path, content)
                self._written, self._content = snapshot, content
            except OSError as exc:
                log.warning(
                    f"{self._noun}s_not_written",
                    path=str(self._path),
                    reason=str(exc),
                    remedy=f"{write_remedy(exc)} Until then, a restart loses these jobs.",
                )


@dataclass(slots=True)
class _Run(Generic[JobT]):
    """What belongs to a job while it is active, and is in no file."""

    plan: JobPlan[JobT]
    work: "asyncio.Task[ApplianceError | None]"
    supervisor: "asyncio.Task[None]"
    is_detached: bool
    holders: int = 0
    is_cancelled: bool = False
    end: JobEnd[JobT] | None = None

    def cancel(self) -> None:
        self.is_cancelled = True
        self.work.cancel()


class DurableJobs(Generic[JobT]):
    """Runs jobs and keeps them. Call `open` before use, and `close` before its tasks end.

    Args:
        file: Where the jobs are kept, None = in memory only.
        on_fault: Called with an unexpected exception. It logs it without the given secrets, and returns the
            error that the job fails with.
        on_end: Called with each job that has ended, for the log.
    """

    def __init__(
        self,
        *,
        tasks: Tasks,
        clock: Clock,
        limits: JobLimits,
        file: JobFile[JobT] | None,
        on_fault: Callable[[JobT, Exception, Sequence[str]], ApplianceError],
        on_end: Callable[[JobT], None],
    ) -> None:
        self.changed: Watched[int] = Watched(0)
        self.is_closing = False
        self._tasks = tasks
        self._clock = clock
        self._limits = limits
        self._file = file
        self._on_fault = on_fault
        self._on_end = on_end
        self._slots = asyncio.Semaphore(limits.running) if limits.running is not None else None
        self._jobs: dict[str, JobT] = {}
        self._runs: dict[str, _Run[JobT]] = {}
        self._failures: dict[str, ApplianceError] = {}
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    async def open(self, resume: Callable[[JobT], JobPlan[JobT] | JobT]) -> None:
        """Read the kept jobs, and resume those that had not ended.

        Args:
            resume: Called with each job that had not ended. It returns a plan to continue it, or the job as
                it is to be kept from now on.
        """
        kept = await self._file.read() if self._file is not None else []
        for job in kept:
            self._jobs[job.id] = job
            if job.is_active or job.state == "interrupted":
                outcome = resume(job)
                if isinstance(outcome, JobPlan):
                    self._start(job, outcome)
                else:
                    self._put(outcome)
        if self._jobs:
            self._forget_oldest()
            await self.save()

    async def close(self) -> None:
        """Interrupt what runs, so that the next start continues it; waiters get the interrupted job."""
        self.is_closing = True
        runs = list(self._runs.values())
        for run in runs:
            run.work.cancel()
        if runs:
            await asyncio.wait([run.supervisor for run in runs], timeout=CANCEL_WAIT_S)

    # ---- reading

    def all(self) -> list[JobT]:
        """List the jobs, oldest first."""
        return list(self._jobs.values())

    def find(self, job_id: str) -> JobT | None:
        """Return a job, None = there is none."""
        return self._jobs.get(job_id)

    @property
    def active(self) -> list[JobT]:
        """The jobs that are queued or run, oldest first."""
        return [self._jobs[job_id] for job_id in self._runs]

    def is_stored(self, job_id: str) -> bool:
        """Whether a job is kept over a restart."""
        run = self._runs.get(job_id)
        return job_id in self._jobs and (run is None or run.plan.is_stored)

    def holder_count(self, job_id: str) -> int:
        """How many callers hold a job (see `holding`); 0 for one that has ended."""
        run = self._runs.get(job_id)
        return run.holders if run is not None else 0

    async def follow(self, job_id: str) -> AsyncGenerator[JobT, None]:
        """Yield a job now and after each change, the last time at its end. A slow follower skips versions."""
        last: JobT | None = None
        while (job := self._jobs.get(job_id)) is not None:
            seen = self.changed.version
            if job != last:
                last = job
                yield job
            if not job.is_active:
                return
            await self.changed.newer(seen)

    # ---- doing

    async def begin(self, job: JobT, plan: JobPlan[JobT]) -> JobT:
        """Begin a job, in place of an ended one of the same id; return it once it is kept."""
        now_s = self._clock.now_s()
        self._start(replace(job, created_at_s=now_s), plan)
        run = self._runs[job.id]
        self._forget_oldest()
        try:
            await self.save()
        except asyncio.CancelledError:  # the caller left before it could hold the job
            if not run.holders and not run.is_detached:
                run.cancel()
            raise
        return self._jobs.get(job.id, job)

    async def run(self, job: JobT, plan: JobPlan[JobT]) -> JobEnd[JobT]:
        """Begin a job and wait for its end; the caller holds it from the beginning."""
        self._start(replace(job, created_at_s=self._clock.now_s()), plan)
        run = self._runs[job.id]
        with self.holding(job.id):
            self._forget_oldest()
            await self.save()
            await asyncio.wait({run.supervisor})
        return run.end if run.end is not None else JobEnd(self._jobs[job.id])

    def attach(self, job_id: str, *, is_detached: bool) -> None:
        """Add one more caller to an active job; a detached one lets it continue without holders."""
        self._runs[job_id].is_detached |= is_detached

    def update(self, job_id: str, **changes: Any) -> None:
        """Change fields of a job that is active, from any thread; after its end this does nothing."""
        if threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(lambda: self.update(job_id, **changes))
        elif (run := self._runs.get(job_id)) is not None and not run.work.done():
            self._put(replace(self._jobs[job_id], **changes))

    def put_ended(self, job: JobT) -> None:
        """Change a job that is not active; `save` keeps it."""
        assert job.id not in self._runs
        self._put(job)

    async def enter(self, job_id: str, step: str, **changes: Any) -> None:
        """Show a job at a step, and keep that."""
        job = self._jobs[job_id]
        now_s = self._clock.now_s()
        if (job.state, job.step) == ("running", step):
            self.update(job_id, **changes)
            return
        started_s = job.started_at_s if job.state == "running" else now_s
        self.update(job_id, state="running", step=step, since_s=now_s, started_at_s=started_s, **changes)
        await self.save()

    async def wait(self, job_id: str) -> JobEnd[JobT]:
        """Wait for a job's end, and hold it meanwhile. The job must exist."""
        run = self._runs.get(job_id)
        if run is not None:
            with self.holding(job_id):
                await asyncio.wait({run.supervisor})
            if run.end is not None:
                return run.end
        return JobEnd(self._jobs[job_id], self._failures.get(job_id))

    @contextmanager
    def holding(self, job_id: str) -> Iterator[None]:
        """Hold a job while the context is open; without holders it is cancelled, unless it is detached."""
        run = self._runs.get(job_id)
        if run is None:
            yield
            return
        run.holders += 1
        try:
            yield
        finally:
            run.holders -= 1
            if not run.holders and not run.is_detached and not run.work.done():
                run.cancel()

    async def cancel(self, job_id: str, *, wait_s: float | None = CANCEL_WAIT_S) -> JobT:
        """Cancel a job, and return it as it is then. One that has ended already stays as it is.

        Args:
            wait_s: Longest wait for its end in seconds, None = no limit.
        """
        run, job = self._runs.get(job_id), self._jobs[job_id]
        if run is not None:
            run.cancel()
            await asyncio.wait({run.supervisor}, timeout=wait_s)
            return run.end.job if run.end is not None else self._jobs[job_id]
        if job.state == "interrupted":
            self._put(replace(job, state="cancelled"))
            await self.save()
        return self._jobs[job_id]

    async def forget(self, job_id: str) -> None:
        """Remove a job that is not active, if there is one."""
        if job_id in self._jobs and job_id not in self._runs:
            self._drop(job_id)
            await self.save()

    # ---- one job's life

    def _start(self, job: JobT, plan: JobPlan[JobT]) -> None:
        SECRETS.learn(plan.secrets)  # so that they are redacted in all log lines
        self._failures.pop(job.id, None)
        now_s = self._clock.now_s()
        fresh = replace(
            job, state="queued", step="", since_s=now_s, started_at_s=None, ended_at_s=None, error=""
        )
        if self._slots is None:
            fresh = replace(fresh, state="running", step=plan.steps[0].name, started_at_s=now_s)
        self._put(fresh)
        work = self._tasks.start(self._perform(job.id, plan), name=f"job-{job.id}")
        supervisor = self._tasks.start(self._supervise(job.id), name=f"job-end-{job.id}")
        self._runs[job.id] = _Run(plan, work, supervisor, plan.is_detached)

    async def _perform(self, job_id: str, plan: JobPlan[JobT]) -> ApplianceError | None:
        """Do the steps; return the error as a value, since there may be no caller to catch it."""
        try:
            async with self._slots or nullcontext():
                for step in plan.steps:
                    await self.enter(job_id, step.name)
                    await step.run()
        except ApplianceError as error:
            return error
        except Exception as exc:
            return self._on_fault(self._jobs[job_id], exc, plan.secrets)
        return None

    async def _supervise(self, job_id: str) -> None:
        """End a job, also one cancelled before its first step. Its end is written before it is shown."""
        run = self._runs[job_id]
        await asyncio.wait({run.work})
        run.end = self._conclude(self._jobs[job_id], run)
        await self.save()
        del self._runs[job_id]
        if run.end.failure is not None:
            self._failures[job_id] = run.end.failure
        if run.plan.is_stored and run.end.job.state in self._limits.ends_kept:
            self._put(run.end.job)
        else:
            self._drop(job_id)
        self._on_end(run.end.job)

    def _conclude(self, job: JobT, run: _Run[JobT]) -> JobEnd[JobT]:
        """Say how a job ended: 1. cancelled by a caller, or interrupted   2. failed   3. completed."""
        now_s = self._clock.now_s()
        if run.work.cancelled():  # 1
            return JobEnd(end_job(job, "cancelled" if run.is_cancelled else "interrupted", at_s=now_s))
        if (error := run.work.result()) is not None:  # 2
            failure = redact_error(error, run.plan.secrets)
            return JobEnd(end_job(job, "failed", at_s=now_s, error=failure.message), failure)
        return JobEnd(run.plan.complete(end_job(job, "completed", at_s=now_s)))  # 3

    # ---- keeping

    def _put(self, job: JobT) -> None:
        if job != self._jobs.get(job.id):
            self._jobs[job.id] = job
            self.changed.set(self.changed.value + 1)

    def _drop(self, job_id: str) -> None:
        del self._jobs[job_id]
        self._failures.pop(job_id, None)
        self.changed.set(self.changed.value + 1)

    def _forget_oldest(self) -> None:
        ended = [job_id for job_id in self._jobs if job_id not in self._runs]
        for job_id in ended[: max(0, len(self._jobs) - self._limits.kept)]:
            self._drop(job_id)

    async def save(self) -> None:
        """Write the jobs as they are."""
        if self._file is not None:
            await self._file.write([job for job in map(self._as_kept, self._jobs) if job is not None])

    def _as_kept(self, job_id: str) -> JobT | None:
        """Return a job as it is written to the file; None = it is not written."""
        run = self._runs.get(job_id)
        if run is None:
            return self._jobs[job_id]
        if not run.plan.is_stored:
            return None
        if run.end is None:
            return self._jobs[job_id]
        return run.end.job if run.end.job.state in self._limits.ends_kept else None


def redact_text(text: str, secrets: Sequence[str]) -> str:
    """Replace `secrets`, and every secret that the log knows, in a text."""
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    return SECRETS.redact(text)


def redact_error(error: ApplianceError, secrets: Sequence[str]) -> ApplianceError:
    """Return a copy of an error without secrets in its texts, and without its causes."""

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return redact_text(value, secrets)
        if isinstance(value, dict):
            return {key: clean(one) for key, one in value.items()}
        return [clean(one) for one in value] if isinstance(value, list | tuple) else value

    found = copy.copy(error)
    found.message, found.details = clean(error.message), clean(error.details)
    found.args = (found.message,)
    found.__cause__ = found.__context__ = None
    return found
