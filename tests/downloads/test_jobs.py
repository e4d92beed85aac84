"""Download jobs: shared, limited in number, cancelled, kept over a restart, and without credentials."""

import asyncio
import io
import os
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from appliance.base import jsons, logs
from appliance.base.clock import FakeClock
from appliance.base.errors import Conflict, Exhausted, Forbidden, Internal, NotFound, Unavailable
from appliance.base.tasks import Tasks
from appliance.downloads import jobs as jobs_module
from appliance.downloads.contract import DownloadProgress, DownloadRequest
from appliance.downloads.job import job_object
from appliance.downloads.jobs import DownloadJobs
from tests.downloads.standin_downloader import StandinDownloader
from tests.journeys.running import until

SECRET = "hf_verysecrettokenvalue"


@asynccontextmanager
async def opened(
    downloader: StandinDownloader, path: Path | None = None, **settings: Any
) -> AsyncIterator[DownloadJobs]:
    deaths: list[str] = []
    async with Tasks(on_death=lambda name, _: deaths.append(name)) as tasks:
        jobs = DownloadJobs(downloader, tasks=tasks, clock=FakeClock(), path=path, **settings)
        await jobs.open()
        yield jobs
        await jobs.close()
    assert deaths == []


def download_request(tmp_path: Path, name: str = "a", **values: Any) -> DownloadRequest:
    return DownloadRequest(**{"source": f"hf://ns/{name}", "output_dir": tmp_path / name, **values})


# ---- one job's life


async def test_job_is_queued_then_running_then_completed(tmp_path: Path) -> None:
    downloader = StandinDownloader()
    async with opened(downloader) as jobs:
        job = await jobs.start(download_request(tmp_path, config={"revision": "v1"}))
        assert job.state == "queued"
        run = await downloader.next()
        assert (run.request.source, run.request.config) == ("hf://ns/a", {"revision": "v1"})
        run.progress(40)
        job = jobs.get(job.id)
        assert (job.state, job.percent, job.progress.rate_bytes_s) == ("running", 40.0, 12.5)
        assert job.started_at_s == 1_800_000_000.0
        run.finish()
        job = await jobs.wait(job.id)
        assert (job.state, job.percent, job.files, job.bytes_total, job.seconds, job.progress.phase) == (
            "completed",
            100.0,
            2,
            100,
            1.5,
            "done",
        )
        assert job_object(job)["progress"]["percent"] == 100.0


async def test_a_failure_reaches_waiters_as_the_same_error(tmp_path: Path) -> None:
    downloader = StandinDownloader()
    async with opened(downloader) as jobs:
        job = await jobs.start(download_request(tmp_path))
        (await downloader.next()).fail(
            Forbidden("model.safetensors: the server says 403.", code="forbidden_there")
        )
        with pytest.raises(Forbidden, match="403") as caught:
            await jobs.wait(job.id)
        assert caught.value.code == "forbidden_there"
        assert (jobs.get(job.id).state, jobs.get(job.id).error) == (
            "failed",
            "model.safetensors: the server says 403.",
        )


async def test_internal_error_fails_the_job_and_nothing_else(tmp_path: Path) -> None:
    downloader = StandinDownloader()
    async with opened(downloader) as jobs:
        job = await jobs.start(download_request(tmp_path))
        (await downloader.next()).fail(ZeroDivisionError("oops"))
        with pytest.raises(Internal, match=job.id):
            await jobs.wait(job.id)
        assert "oops" not in jobs.get(job.id).error


async def test_progress_may_be_reported_from_a_thread(tmp_path: Path) -> None:
    downloader = StandinDownloader()
    async with opened(downloader) as jobs:
        job = await jobs.start(download_request(tmp_path))
        run = await downloader.next()
        thread = threading.Thread(target=run.progress, args=(70,))
        thread.start()
        thread.join()
        assert await until(lambda: jobs.get(job.id).progress.done_bytes == 70)


async def test_progress_after_the_end_is_ignored(tmp_path: Path) -> None:
    downloader = StandinDownloader()
    async with opened(downloader) as jobs:
        job = await jobs.start(download_request(tmp_path))
        run = await downloader.next()
        await jobs.cancel(job.id)
        run.progress(99)
        assert jobs.get(job.id).progress == DownloadProgress()


async def test_a_follower_sees_each_change_and_the_end(tmp_path: Path) -> None:
    downloader = StandinDownloader()
    async with opened(downloader) as jobs:
        job = await jobs.start(download_request(tmp_path))
        states = []

        async def follow() -> None:
            async for now in jobs.follow(job.id):
                states.append((now.state, now.progress.done_bytes))

        following = asyncio.create_task(follow())
        run = await downloader.next()
        run.progress(10)
        assert await until(lambda: ("running", 10) in states)
        run.finish()
        await asyncio.wait_for(following, 5)
        assert states[-1] == ("completed", 10)
        with pytest.raises(NotFound):
            await anext(jobs.follow("nobody"))


# ---- together


async def test_a_second_request_for_the_same_joins_the_first(tmp_path: Path) -> None:
    downloader = StandinDownloader()
    async with opened(downloader) as jobs:
        first = await jobs.start(download_request(tmp_path, config={"hf_token": SECRET}))
        assert (await jobs.start(download_request(tmp_path))).id == first.id
        with pytest.raises(Conflict, match="other settings"):
            await jobs.start(download_request(tmp_path, config={"revision": "v2"}))
        assert (await jobs.start(download_request(tmp_path, "b"))).id != first.id
        (await downloader.next()).finish()
        await jobs.wait(first.id)
        assert (await jobs.start(download_request(tmp_path))).id != first.id


async def test_jobs_above_the_limit_queue_in_order(tmp_path: Path) -> None:
    downloader = StandinDownloader()
    async with opened(downloader, max_running=2) as jobs:
        ids = [(await jobs.start(download_request(tmp_path, name))).id for name in "abcd"]
        first, _ = await downloader.next(), await downloader.next()
        assert [jobs.get(one).state for one in ids] == ["running", "running", "queued", "queued"]
        first.finish()
        assert (await downloader.next()).request.source == "hf://ns/c"
        assert [job.id for job in jobs.all()] == ids[::-1]


async def test_too_many_jobs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "MAX_ACTIVE", 2)
    async with opened(StandinDownloader()) as jobs:
        for name in "ab":
            await jobs.start(download_request(tmp_path, name))
        with pytest.raises(Exhausted, match="2 downloads") as caught:
            await jobs.start(download_request(tmp_path, "c"))
        assert caught.value.retry_after_s


async def test_oldest_ended_jobs_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "MAX_KEPT", 3)
    downloader = StandinDownloader()
    async with opened(downloader, tmp_path / "jobs.json", max_running=9) as jobs:
        running = await jobs.start(download_request(tmp_path, "running"))
        await downloader.next()
        downloader.at_once = True
        ids = []
        for number in range(4):
            ids.append((await jobs.start(download_request(tmp_path, f"n{number}"))).id)
            await jobs.wait(ids[-1])
        assert [job.id for job in jobs.all()] == [ids[3], ids[2], running.id]
        with pytest.raises(NotFound, match=ids[0]):
            jobs.get(ids[0])


# ---- leaving and cancelling


async def test_a_leaving_waiter_cancels_only_unshared_jobs(tmp_path: Path) -> None:
    downloader = StandinDownloader()
    async with opened(downloader, max_running=9) as jobs:

        async def waiter(name: str) -> tuple[str, asyncio.Task[Any]]:
            job = await jobs.start(download_request(tmp_path, name), is_detached=False)
            task = asyncio.create_task(jobs.wait(job.id))
            await asyncio.sleep(0)
            return job.id, task

        shared, first = await waiter("shared")
        _, second = await waiter("shared")
        lonely, third = await waiter("lonely")
        kept, fourth = await waiter("kept")
        await jobs.start(download_request(tmp_path, "kept"), is_detached=True)
        for _ in range(3):
            await downloader.next()
        for task in (first, third, fourth):
            task.cancel()
        await asyncio.gather(first, third, fourth, return_exceptions=True)
        assert await until(lambda: jobs.get(lonely).state == "cancelled")
        assert [jobs.get(one).state for one in (shared, kept)] == ["running", "running"]
        downloader.runs[0].finish()
        assert (await second).state == "completed"


@pytest.mark.parametrize("when", ["before its first step", "queued", "running"])
async def test_cancelling_ends_a_job_and_notifies_waiters(tmp_path: Path, when: str) -> None:
    downloader = StandinDownloader()
    async with opened(downloader, max_running=1) as jobs:
        if when == "queued":
            await jobs.start(download_request(tmp_path, "before"))
            await downloader.next()
        job = await jobs.start(download_request(tmp_path))
        if when == "running":
            await downloader.next()
        waiting = asyncio.create_task(jobs.wait(job.id))
        if when != "before its first step":
            await asyncio.sleep(0)
        assert (await jobs.cancel(job.id)).state == "cancelled"
        with pytest.raises(Conflict, match="cancelled"):
            await waiting
        assert [run.was_cancelled for run in downloader.runs if run.request.source == "hf://ns/a"] == (
            [True] if when == "running" else []
        )
        assert (await jobs.cancel(job.id)).state == "cancelled"
        with pytest.raises(NotFound):
            await jobs.cancel("nobody")


async def test_step_after_fetching_may_fail_the_job(tmp_path: Path) -> None:
    downloader = StandinDownloader()
    downloader.at_once = True

    async def refuse(job: Any) -> None:
        raise Conflict(f"{job.source} is no model.")

    async with opened(downloader, on_fetched=refuse) as jobs:
        job = await jobs.start(download_request(tmp_path))
        with pytest.raises(Conflict, match="no model"):
            await jobs.wait(job.id)


# ---- restarts


async def test_jobs_survive_a_restart_and_interrupted_ones_continue(tmp_path: Path) -> None:
    path, downloader = tmp_path / "state" / "jobs.json", StandinDownloader()
    async with opened(downloader, path, max_running=1) as jobs:
        running = await jobs.start(
            download_request(tmp_path, "a", max_workers=3, config={"include": "*.gguf"})
        )
        (await downloader.next()).progress(30)
        queued = await jobs.start(download_request(tmp_path, "b"))
        waiting = asyncio.create_task(jobs.wait(running.id))
        await asyncio.sleep(0)
        await jobs.close()
        with pytest.raises(Unavailable, match="continues after"):
            await waiting
        with pytest.raises(Unavailable):
            await jobs.start(download_request(tmp_path, "c"))
        assert [jobs.get(one.id).state for one in (running, queued)] == ["interrupted", "interrupted"]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    again = StandinDownloader()
    async with opened(again, path) as jobs:
        runs = [await again.next(), await again.next()]
        assert [(run.request.source, run.request.max_workers, dict(run.request.config)) for run in runs] == [
            ("hf://ns/a", 3, {"include": "*.gguf"}),
            ("hf://ns/b", 8, {}),
        ]
        runs[0].finish()
        assert (await jobs.wait(running.id)).state == "completed"
    async with opened(StandinDownloader(), path, resumes=False) as jobs:
        assert (jobs.get(running.id).state, jobs.get(running.id).bytes_total) == ("completed", 100)
        assert (jobs.get(queued.id).state, "Request it again" in jobs.get(queued.id).error) == (
            "interrupted",
            True,
        )
        fresh = await jobs.start(download_request(tmp_path, "b"))
        assert (jobs.get(queued.id).state, jobs.get(queued.id).error) == (
            "cancelled",
            f"It continues as {fresh.id}.",
        )


async def test_job_that_ran_when_the_process_was_killed_is_resumed(
    tmp_path: Path,
) -> None:
    path, downloader = tmp_path / "jobs.json", StandinDownloader()
    async with opened(downloader, path) as jobs:
        job = await jobs.start(download_request(tmp_path))
        await downloader.next()
        left_behind = path.read_bytes()
    assert b'"state":"running"' in left_behind
    path.write_bytes(left_behind)
    again = StandinDownloader()
    async with opened(again, path) as jobs:
        await again.next()
        assert jobs.get(job.id).state == "running"


async def test_job_is_resumed_only_if_its_credentials_are_available(
    tmp_path: Path,
) -> None:
    path, downloader = tmp_path / "jobs.json", StandinDownloader()
    async with opened(downloader, path) as jobs:
        job = await jobs.start(download_request(tmp_path, config={"hf_token": SECRET}))
        signed = await jobs.start(
            download_request(tmp_path, source="https://host/f.bin?X-Amz-Signature=abcdef0123")
        )
        await downloader.next()
    async with opened(StandinDownloader(), path) as jobs:
        assert jobs.get(job.id).state == "interrupted"
        assert "hf_token (HF_AUTH_TOKEN)" in jobs.get(job.id).error
        assert "the query of its address" in jobs.get(signed.id).error
        assert (await jobs.cancel(job.id)).state == "cancelled"
        await jobs.start(download_request(tmp_path, config={"hf_token": SECRET}))
    again = StandinDownloader()
    async with opened(again, path, has_variable={"HF_AUTH_TOKEN"}.__contains__) as jobs:
        assert "hf_token" not in (await again.next()).request.config


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"jobs": 3}', '{"jobs": [3, {}, {"id": "x"}]}', "no json"])
async def test_damaged_file_counts_as_missing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "jobs.json"
    path.write_text(text)
    async with opened(StandinDownloader(), path) as jobs:
        assert jobs.all() == []
        await jobs.start(download_request(tmp_path))


async def test_unwritable_state_folder_stops_no_download(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    downloader = StandinDownloader()
    downloader.at_once = True
    async with opened(downloader, tmp_path / "file" / "jobs.json") as jobs:
        assert (await jobs.wait((await jobs.start(download_request(tmp_path))).id)).state == "completed"


# ---- credentials


@pytest.fixture
def log_text() -> Iterator[io.StringIO]:
    out = io.StringIO()
    logs.configure(level="debug", form="json", stream=out)
    yield out
    structlog.reset_defaults()


@pytest.mark.parametrize("key", ["hf_token", "ms_token", "access_key", "secret_key", "something_new"])
async def test_credentials_are_in_no_job_no_file_no_error_and_no_log(
    tmp_path: Path, key: str, log_text: io.StringIO
) -> None:
    path, downloader = tmp_path / "jobs.json", StandinDownloader()
    async with opened(downloader, path) as jobs:
        seen: list[str] = []
        for error in (
            Forbidden(f"refused {SECRET}", details={"attempts": [{"note": f"key={SECRET}"}]}),
            ValueError(f"bad {SECRET}"),
            None,
        ):
            asked = download_request(
                tmp_path, source=f"https://host/f?sig={SECRET}", config={key: SECRET, "revision": "v1"}
            )
            job = await jobs.start(asked)
            run = await downloader.next()
            assert run.request.config[key] == SECRET
            if error is None:
                run.finish()
                await jobs.wait(job.id)
            else:
                run.fail(error)
                with pytest.raises((Forbidden, Internal)) as caught:
                    await jobs.wait(job.id)
                seen += [
                    str(caught.value),
                    repr(caught.value.details),
                    caught.value.message,
                    repr(caught.value),
                ]
            seen += [
                repr(jobs.get(job.id)),
                repr(job_object(jobs.get(job.id))),
                repr(run.request.config.keys()),
            ]
        assert jobs.get(job.id).config == {"revision": "v1"}
        assert jobs.get(job.id).needs == (key, "the query of its address")
    assert "download_broke" in log_text.getvalue()
    assert SECRET not in "".join(seen) + path.read_text() + log_text.getvalue()


async def test_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Rows from before jobs had steps: one running, one completed, one whose credentials are no longer available."""
    progress = {
        "files": 1,
        "files_done": 0,
        "total_bytes": 100,
        "done_bytes": 30,
        "fetched_bytes": 30,
        "rate_bytes_s": 1.5,
        "now": ["a.bin"],
        "note": "",
        "phase": "fetching",
    }
    row = {
        "id": "job_1",
        "source": "hf://ns/a",
        "output_dir": str(tmp_path / "a"),
        "state": "running",
        "created_at_s": 1.0,
        "kind": "download",
        "started_at_s": 2.0,
        "ended_at_s": None,
        "progress": progress,
        "error": "",
        "max_workers": 3,
        "config": {"revision": "v1"},
        "needs": [],
        "model": "",
        "files": 0,
        "bytes_total": 0,
        "seconds": 0.0,
    }
    done = row | {"id": "job_0", "state": "completed", "ended_at_s": 3.0, "files": 1, "bytes_total": 100}
    closed = row | {"id": "job_2", "output_dir": str(tmp_path / "b"), "needs": ["hf_token"]}
    path = tmp_path / "jobs.json"
    path.write_bytes(jsons.dumps({"jobs": [done, row, closed]}))
    downloader = StandinDownloader()
    async with opened(downloader, path) as jobs:
        run = await downloader.next()
        assert (run.request.source, run.request.max_workers, run.request.config) == (
            "hf://ns/a",
            3,
            {"revision": "v1"},
        )
        assert [(job.id, job.state, job.created_at_s) for job in jobs.all()] == [
            ("job_2", "interrupted", 1.0),
            ("job_1", "running", 1.0),
            ("job_0", "completed", 1.0),
        ]
        assert set(jsons.loads(path.read_bytes())["jobs"][0]) == set(done)
