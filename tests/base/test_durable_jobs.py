"""Durable jobs: steps, limits, holders, the file, and restarts at each step."""

import asyncio
import stat
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from appliance.base import durable_jobs, jsons
from appliance.base.clock import FakeClock
from appliance.base.durable_jobs import (
    DurableJobs,
    Job,
    JobFile,
    JobLimits,
    JobPlan,
    JobState,
    Step,
    end_job,
    redact_error,
    redact_text,
)
from appliance.base.errors import ApplianceError, Conflict, Internal
from appliance.base.tasks import Tasks
from tests.journeys.running import until

SECRET = "a-very-secret-text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chore(Job):
    """The smallest kind of job."""

    result: int = 0


def job_file(path: Path) -> JobFile[Chore]:
    def from_row(row: Mapping[str, Any]) -> Chore:
        return Chore(**row)

    return JobFile(path, key="jobs", to_row=asdict, from_row=from_row)


class Work:
    """Steps by script: each waits until it is released, or fails."""

    def __init__(self, *names: str) -> None:
        self.begun: list[str] = []
        self.gates = {name: asyncio.Event() for name in names}
        self.fails: dict[str, Exception] = {}

    def plan(self, **more: Any) -> JobPlan[Chore]:
        return JobPlan([Step(name, lambda name=name: self._run(name)) for name in self.gates], **more)

    async def _run(self, name: str) -> None:
        self.begun.append(name)
        await self.gates[name].wait()
        if name in self.fails:
            raise self.fails[name]

    def release(self, *names: str) -> None:
        for name in names or self.gates:
            self.gates[name].set()


class Harness:
    """Jobs, and what they called."""

    def __init__(self, tasks: Tasks, path: Path | None, limits: JobLimits) -> None:
        self.clock = FakeClock()
        self.ended: list[tuple[str, JobState]] = []
        self.faults: list[str] = []
        self.jobs = DurableJobs[Chore](
            tasks=tasks,
            clock=self.clock,
            limits=limits,
            file=job_file(path) if path else None,
            on_fault=self._fault,
            on_end=lambda job: self.ended.append((job.id, job.state)),
        )

    def _fault(self, job: Chore, exc: Exception, secrets: Any) -> ApplianceError:
        self.faults.append(redact_text(repr(exc), secrets))
        return Internal(f"{job.id} broke")

    def state(self, job_id: str = "a") -> tuple[str, str]:
        job = self.jobs.find(job_id)
        assert job is not None
        return job.state, job.step


def no_resume(job: Chore) -> Chore:
    return end_job(job, "interrupted", at_s=99.0, error="not resumed")


@asynccontextmanager
async def opened(
    path: Path | None = None, *, limits: JobLimits | None = None, resume: Any = no_resume, closes: bool = True
) -> AsyncIterator[Harness]:
    deaths: list[str] = []
    async with Tasks(on_death=lambda name, _: deaths.append(name)) as tasks:
        harness = Harness(tasks, path, limits or JobLimits())
        await harness.jobs.open(resume)
        yield harness
        if closes:
            await harness.jobs.close()
    assert deaths == []


# ---- steps


async def test_steps_follow_each_other_and_are_shown() -> None:
    async with opened() as harness:
        work = Work("fetch", "load")
        job = await harness.jobs.begin(Chore(id="a"), work.plan(complete=lambda job: replace(job, result=7)))
        assert (job.state, job.step, job.created_at_s, job.started_at_s) == (
            "running",
            "fetch",
            *[1_800_000_000.0] * 2,
        )
        harness.clock.advance(5)
        work.release("fetch")
        assert await until(lambda: harness.state() == ("running", "load"))
        assert harness.jobs.active[0].since_s == 1_800_000_005.0
        work.release("load")
        end = await harness.jobs.wait("a")
        assert (end.job.state, end.job.result, end.job.ended_at_s, end.failure) == (
            "completed",
            7,
            1_800_000_005.0,
            None,
        )
        assert (await harness.jobs.wait("a")).job == end.job
        assert harness.ended == [("a", "completed")]


async def test_a_step_may_show_steps_of_its_own() -> None:
    async with opened() as harness:
        work = Work("load")
        await harness.jobs.begin(Chore(id="a"), work.plan())
        await harness.jobs.enter("a", "waiting", result=3)
        assert (harness.state(), harness.jobs.active[0].result) == (("running", "waiting"), 3)
        await harness.jobs.enter("a", "waiting", result=4)
        assert harness.jobs.active[0].result == 4


@pytest.mark.parametrize("step", ["fetch", "load"])
async def test_a_failure_ends_the_job_at_its_step(step: str) -> None:
    async with opened() as harness:
        work = Work("fetch", "load")
        work.fails[step] = Conflict(f"no {SECRET}", details={"tries": [SECRET]})
        work.release()
        await harness.jobs.begin(Chore(id="a"), work.plan(secrets=[SECRET]))
        end = await harness.jobs.wait("a")
        assert (end.job.state, end.job.step, end.job.error) == ("failed", step, "no [secret]")
        assert isinstance(end.failure, Conflict)
        assert (end.failure.message, end.failure.details) == ("no [secret]", {"tries": ["[secret]"]})
        assert (await harness.jobs.wait("a")).failure is end.failure


async def test_an_unexpected_error_is_translated_without_secrets() -> None:
    async with opened() as harness:
        work = Work("fetch")
        work.fails["fetch"] = ZeroDivisionError(SECRET)
        work.release()
        await harness.jobs.begin(Chore(id="a"), work.plan(secrets=[SECRET]))
        end = await harness.jobs.wait("a")
        assert (end.job.error, harness.faults) == ("a broke", ["ZeroDivisionError('[secret]')"])


async def test_progress_is_taken_from_any_thread_until_the_end() -> None:
    async with opened() as harness:
        work = Work("fetch")
        await harness.jobs.begin(Chore(id="a"), work.plan())
        thread = threading.Thread(target=lambda: harness.jobs.update("a", result=5))
        thread.start()
        thread.join()
        assert await until(lambda: harness.jobs.active[0].result == 5)
        work.release()
        await harness.jobs.wait("a")
        harness.jobs.update("a", result=6)
        assert harness.jobs.all()[0].result == 5


async def test_a_follower_sees_the_end_and_stops() -> None:
    async with opened() as harness:
        work = Work("fetch")
        await harness.jobs.begin(Chore(id="a"), work.plan())
        seen: list[str] = []

        async def follow() -> None:
            async for job in harness.jobs.follow("a"):
                seen.append(job.state)

        following = asyncio.create_task(follow())
        assert await until(lambda: seen == ["running"])
        work.release()
        await asyncio.wait_for(following, 5)
        assert seen == ["running", "completed"]
        assert [job async for job in harness.jobs.follow("nobody")] == []


# ---- limits


async def test_no_more_run_than_the_limit_and_the_rest_queue() -> None:
    async with opened(limits=JobLimits(running=1)) as harness:
        works = {name: Work("fetch") for name in "ab"}
        for name, work in works.items():
            await harness.jobs.begin(Chore(id=name), work.plan())
        assert await until(lambda: harness.state("a") == ("running", "fetch"))
        assert harness.state("b") == ("queued", "")
        works["a"].release()
        assert await until(lambda: harness.state("b") == ("running", "fetch"))


async def test_the_oldest_ended_jobs_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "jobs.json"
    async with opened(path, limits=JobLimits(kept=2)) as harness:
        running = Work("fetch")
        await harness.jobs.begin(Chore(id="running"), running.plan())
        for name in "abc":
            work = Work("fetch")
            work.release()
            await harness.jobs.begin(Chore(id=name), work.plan())
            await harness.jobs.wait(name)
        assert [job.id for job in harness.jobs.all()] == ["running", "c"]
        assert [row["id"] for row in jsons.loads(path.read_bytes())["jobs"]] == ["running", "c"]


@pytest.mark.parametrize(("fails", "left"), [(False, []), (True, ["a"])])
async def test_only_wanted_ends_are_kept(tmp_path: Path, fails: bool, left: list[str]) -> None:
    path = tmp_path / "jobs.json"
    async with opened(path, limits=JobLimits(ends_kept=("failed",))) as harness:
        work = Work("fetch")
        work.fails |= {"fetch": Conflict("no")} if fails else {}
        work.release()
        await harness.jobs.begin(Chore(id="a"), work.plan())
        assert (await harness.jobs.wait("a")).job.state == ("failed" if fails else "completed")
        assert [job.id for job in harness.jobs.all()] == left
        assert [row["id"] for row in jsons.loads(path.read_bytes())["jobs"]] == left


async def test_a_job_that_is_not_stored_is_in_no_file(tmp_path: Path) -> None:
    path = tmp_path / "jobs.json"
    async with opened(path) as harness:
        work = Work("fetch")
        await harness.jobs.begin(Chore(id="a"), work.plan(is_stored=False))
        assert (harness.jobs.is_stored("a"), jsons.loads(path.read_bytes())) == (False, {"jobs": []})
        work.release()
        await harness.jobs.wait("a")
        assert harness.jobs.all() == []


# ---- holders


async def test_the_last_holder_that_leaves_cancels() -> None:
    async with opened() as harness:
        work = Work("fetch")
        await harness.jobs.begin(Chore(id="a"), work.plan(is_detached=False))
        with harness.jobs.holding("a"):
            with harness.jobs.holding("a"):
                assert harness.jobs.holder_count("a") == 2
            assert harness.state() == ("running", "fetch")
        assert await until(lambda: harness.state()[0] == "cancelled")
        with harness.jobs.holding("a"):
            assert harness.jobs.holder_count("a") == 0


async def test_a_run_returns_the_end_of_a_forgotten_job(tmp_path: Path) -> None:
    async with opened(tmp_path / "jobs.json") as harness:
        work = Work("fetch")
        work.release()
        end = await harness.jobs.run(Chore(id="a"), work.plan(is_detached=False, is_stored=False))
        assert (end.job.state, harness.jobs.all()) == ("completed", [])


async def test_a_caller_that_leaves_a_run_cancels_it(tmp_path: Path) -> None:
    async with opened(tmp_path / "jobs.json") as harness:
        work = Work("fetch")
        running = asyncio.create_task(harness.jobs.run(Chore(id="a"), work.plan(is_detached=False)))
        assert await until(lambda: work.begun == ["fetch"])
        running.cancel()
        assert await until(lambda: harness.state()[0] == "cancelled")


async def test_a_detached_caller_keeps_a_shared_job_going() -> None:
    async with opened() as harness:
        work = Work("fetch")
        await harness.jobs.begin(Chore(id="a"), work.plan(is_detached=False))
        harness.jobs.attach("a", is_detached=True)
        with harness.jobs.holding("a"):
            pass
        await asyncio.sleep(0)
        assert harness.state() == ("running", "fetch")


async def test_a_caller_that_leaves_while_the_job_is_kept_cancels_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    put = durable_jobs.write_atomic

    def slow_put(path: Path, data: bytes) -> None:
        gate.wait(5)
        put(path, data)

    monkeypatch.setattr(durable_jobs, "write_atomic", slow_put)
    async with opened(tmp_path / "jobs.json") as harness:
        work = Work("fetch")
        beginning = asyncio.create_task(harness.jobs.begin(Chore(id="a"), work.plan(is_detached=False)))
        await asyncio.sleep(0.01)
        beginning.cancel()
        await asyncio.wait({beginning})
        gate.set()
        assert await until(lambda: harness.state()[0] == "cancelled")


@pytest.mark.parametrize("when", ["before its first step", "queued", "running", "ended"])
async def test_a_job_can_be_cancelled_at_any_time(when: str) -> None:
    async with opened(limits=JobLimits(running=1)) as harness:
        first, work = Work("fetch"), Work("fetch")
        if when == "queued":
            await harness.jobs.begin(Chore(id="first"), first.plan())
        await harness.jobs.begin(Chore(id="a"), work.plan())
        if when == "running":
            assert await until(lambda: harness.state() == ("running", "fetch"))
        if when == "ended":
            work.release()
            await harness.jobs.wait("a")
        assert (await harness.jobs.cancel("a")).state == ("completed" if when == "ended" else "cancelled")
        assert work.begun == ([] if when in {"before its first step", "queued"} else ["fetch"])


async def test_only_a_job_that_is_not_active_is_forgotten() -> None:
    async with opened() as harness:
        work = Work("fetch")
        await harness.jobs.begin(Chore(id="a"), work.plan())
        await harness.jobs.forget("a")
        assert harness.state() == ("running", "fetch")
        await harness.jobs.cancel("a")
        await harness.jobs.forget("a")
        await harness.jobs.forget("nobody")
        assert harness.jobs.all() == []


# ---- restarts


@pytest.mark.parametrize("is_killed", [False, True], ids=["closed", "killed"])
@pytest.mark.parametrize("at", ["queued", "fetch", "load"])
async def test_a_restart_at_each_step_takes_the_job_up(tmp_path: Path, at: str, is_killed: bool) -> None:
    path, limits = tmp_path / "jobs.json", JobLimits(running=1)
    async with opened(path, limits=limits, closes=not is_killed) as harness:
        if at == "queued":
            await harness.jobs.begin(Chore(id="first"), Work("fetch").plan())
        work = Work("fetch", "load")
        await harness.jobs.begin(Chore(id="a", result=4), work.plan())
        if at == "load":
            work.release("fetch")
        assert await until(lambda: harness.state() == (("queued", "") if at == "queued" else ("running", at)))
        assert await until(lambda: f'"step":"{"" if at == "queued" else at}"' in path.read_text())
    again = Work("fetch", "load")

    def resume(job: Chore) -> JobPlan[Chore] | Chore:
        assert (job.state in {"queued", "running"}) == is_killed or job.state == "interrupted"
        return again.plan() if job.id == "a" else no_resume(job)

    async with opened(path, resume=resume) as harness:
        assert (harness.jobs.find("a") or Chore(id="")).result == 4
        again.release()
        assert (await harness.jobs.wait("a")).job.state == "completed"
        assert again.begun == ["fetch", "load"]  # steps are repeatable
    async with opened(path) as harness:
        assert harness.state("a")[0] == "completed"


async def test_what_cannot_go_on_stays_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "jobs.json"
    async with opened(path) as harness:
        await harness.jobs.begin(Chore(id="a"), Work("fetch").plan())
    for _ in range(2):
        async with opened(path) as harness:
            job = harness.jobs.find("a")
            assert job is not None
            assert (job.state, job.error, job.ended_at_s) == ("interrupted", "not resumed", 1_800_000_000.0)
    async with opened(path) as harness:
        assert (await harness.jobs.cancel("a")).state == "cancelled"
    async with opened(path) as harness:
        assert harness.state()[0] == "cancelled"


async def test_what_is_shown_of_the_end_has_been_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill right after the end was seen must not take it back."""
    path = tmp_path / "jobs.json"
    gate, put = threading.Event(), durable_jobs.write_atomic
    gate.set()

    def slow_put(path: Path, data: bytes) -> None:
        gate.wait(5)
        put(path, data)

    monkeypatch.setattr(durable_jobs, "write_atomic", slow_put)
    async with opened(path) as harness:
        work = Work("fetch")
        work.fails["fetch"] = Conflict("no")
        await harness.jobs.begin(Chore(id="a"), work.plan())
        gate.clear()
        work.release()
        await asyncio.sleep(0.05)
        assert harness.state()[0] == "running"
        gate.set()
        assert await until(lambda: harness.state()[0] == "failed")
        assert jsons.loads(path.read_bytes())["jobs"][0]["state"] == "failed"


async def test_nobody_begins_or_waits_for_ever_at_the_end() -> None:
    async with opened() as harness:
        await harness.jobs.begin(Chore(id="a"), Work("fetch").plan())
        waiting = asyncio.create_task(harness.jobs.wait("a"))
        await asyncio.sleep(0)
        await harness.jobs.close()
        assert harness.jobs.is_closing
        assert (await waiting).job.state == "interrupted"


# ---- the file


class Log:
    """Keeps the names of events."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def warning(self, event: str, **_: object) -> None:
        self.events.append(event)

    error = warning


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    log = Log()
    monkeypatch.setattr(durable_jobs, "log", log)
    return log.events


async def test_the_file_is_the_owners_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "jobs.json"
    jobs = [Chore(id="a", state="failed", error="why"), Chore(id="b")]
    await job_file(path).write(jobs)
    assert await job_file(path).read() == jobs
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ("", "jobs_unreadable"),
        ("{", "jobs_unreadable"),
        ("[]", "jobs_unreadable"),
        ("{}", "jobs_unreadable"),
        ('{"jobs": 1}', "jobs_unreadable"),
        ('{"jobs": [1, {"odd": 2}]}', "job_unreadable"),
    ],
)
async def test_what_cannot_be_read_is_logged_and_left_as_it_is(
    tmp_path: Path, text: str, event: str, events: list[str]
) -> None:
    path = tmp_path / "jobs.json"
    path.write_text(text)
    async with opened(path) as harness:
        assert harness.jobs.all() == []
    assert (set(events), path.read_text()) == ({event}, text)


async def test_a_row_that_cannot_be_read_costs_no_other(tmp_path: Path, events: list[str]) -> None:
    path = tmp_path / "jobs.json"
    path.write_text('{"jobs": [3, {"id": "a", "state": "completed"}]}')
    async with opened(path) as harness:
        assert [job.id for job in harness.jobs.all()] == ["a"]
    assert events == ["job_unreadable"]


async def test_a_folder_that_cannot_be_written_stops_no_job(tmp_path: Path, events: list[str]) -> None:
    (tmp_path / "file").write_text("")
    async with opened(tmp_path / "file" / "jobs.json") as harness:
        work = Work("fetch")
        work.release()
        await harness.jobs.begin(Chore(id="a"), work.plan())
        assert (await harness.jobs.wait("a")).job.state == "completed"
    assert set(events) <= {"jobs_not_written", "jobs_unreadable"}
    assert "jobs_not_written" in events


async def test_a_cancelled_write_overtakes_no_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, put, gate = job_file(tmp_path / "jobs.json"), durable_jobs.write_atomic, threading.Event()
    busy = threading.Lock()

    def slow_put(path: Path, data: bytes) -> None:
        assert busy.acquire(blocking=False), "two writers at a time"
        if b'"first"' in data:
            gate.wait(5)
        put(path, data)
        busy.release()

    monkeypatch.setattr(durable_jobs, "write_atomic", slow_put)
    first = asyncio.create_task(file.write([Chore(id="first")]))
    await asyncio.sleep(0.01)
    first.cancel()
    second = asyncio.create_task(file.write([Chore(id="second")]))
    await asyncio.sleep(0.01)
    gate.set()
    await second
    assert [job.id for job in await file.read()] == ["second"]
    file._write(1, [Chore(id="late")])
    assert [job.id for job in await file.read()] == ["second"]


def test_an_error_is_copied_without_its_secrets_and_causes() -> None:
    error = Conflict(f"a {SECRET}", details={"list": [SECRET, 3]}, code="odd")
    error.__cause__ = ValueError(SECRET)
    found = redact_error(error, [SECRET])
    assert (found.message, found.details, found.code, found.args) == (
        "a [secret]",
        {"list": ["[secret]", 3]},
        "odd",
        ("a [secret]",),
    )
    assert (found.__cause__, error.message) == (None, f"a {SECRET}")
