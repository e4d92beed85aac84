"""Downloads over gRPC, by the generated client against the real server."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from appliance.base.clock import FakeClock
from appliance.base.durable_jobs import JOB_STATES
from appliance.base.errors import Forbidden, NotFound
from appliance.base.tasks import Tasks
from appliance.control.convert.jobs import to_job_state
from appliance.control.v1 import control_pb2 as pb
from appliance.downloads.contract import DownloadProgress
from appliance.downloads.jobs import DownloadJobs
from appliance.downloads.request import DownloadFolders
from tests.control.fake_appliance import FakeAppliance, OpenControl, opened, refused, rest_of
from tests.control.test_servicer import details_of
from tests.downloads.standin_downloader import StandinDownloader

SECRET = "hf_verysecrettokenvalue"


@pytest.fixture
async def downloader() -> StandinDownloader:
    return StandinDownloader()


@pytest.fixture
async def control(tmp_path: Path, downloader: StandinDownloader) -> AsyncIterator[OpenControl]:
    fake = FakeAppliance()
    async with Tasks() as tasks:
        fake.jobs = DownloadJobs(downloader, tasks=tasks, clock=FakeClock())
        fake.folders = lambda: DownloadFolders(tmp_path / "home")
        async with opened(tmp_path, fake) as control:
            yield control
        await fake.jobs.close()


async def started(control: OpenControl, **fields: object) -> pb.Job:
    return (await control.stub.StartDownload(pb.StartDownloadRequest(**{"source": "ns/repo", **fields}))).job


async def test_a_download_is_started_and_seen(
    control: OpenControl, downloader: StandinDownloader, tmp_path: Path
) -> None:
    job = await started(control, config={"hf_token": SECRET, "revision": "v1"}, max_workers=3)
    run = await downloader.next()
    assert (run.request.source, run.request.output_dir, run.request.max_workers) == (
        "hf://ns/repo",
        tmp_path / "home/hf/ns/repo",
        3,
    )
    assert run.request.config == {"hf_token": SECRET, "revision": "v1"}
    assert (job.source, job.output_dir, job.kind, dict(job.config)) == (
        "hf://ns/repo",
        f"{tmp_path}/home/hf/ns/repo",
        "download",
        {"revision": "v1"},
    )
    assert (job.created_at.seconds, job.HasField("total_bytes"), job.HasField("percent")) == (
        1_800_000_000,
        False,
        False,
    )
    run.progress(25)
    now = (await control.stub.GetJob(pb.GetJobRequest(id=job.id))).job
    assert (now.state, now.phase, now.done_bytes, now.total_bytes, now.percent, list(now.now)) == (
        pb.JOB_STATE_RUNNING,
        "fetching",
        25,
        100,
        25,
        ["a.bin"],
    )
    run.tell(
        DownloadProgress(
            total_bytes=100, done_bytes=25, now=("a.bin",), phase="fetching", note="again: it broke off"
        )
    )
    now = (await control.stub.GetJob(pb.GetJobRequest(id=job.id))).job
    assert (now.note, now.percent) == ("again: it broke off", 25)
    assert list((await control.stub.ListJobs(pb.ListJobsRequest())).jobs) == [now]
    assert (await started(control, config={"revision": "v1"})).id == job.id
    run.finish()
    done = [response.job for response in await rest_of(control.stub.WatchJob(pb.WatchJobRequest(id=job.id)))][
        -1
    ]
    assert (done.state, done.files, done.files_done, done.total_bytes, done.percent, done.seconds) == (
        pb.JOB_STATE_COMPLETED,
        2,
        2,
        100,
        100,
        1.5,
    )


async def test_watching_sends_each_change_until_the_end(
    control: OpenControl, downloader: StandinDownloader
) -> None:
    job = await started(control)
    run = await downloader.next()
    call = control.stub.WatchJob(pb.WatchJobRequest(id=job.id))
    assert (await call.read()).job.state == pb.JOB_STATE_RUNNING
    run.progress(60)
    assert (await call.read()).job.done_bytes == 60
    run.fail(Forbidden("f.bin: 403 from there."))
    (last,) = await rest_of(call)
    assert (last.job.state, last.job.error) == (pb.JOB_STATE_FAILED, "f.bin: 403 from there.")


async def test_watching_ends_when_the_appliance_stops(
    control: OpenControl, downloader: StandinDownloader
) -> None:
    job = await started(control)
    await downloader.next()
    call = control.stub.WatchJob(pb.WatchJobRequest(id=job.id))
    await call.read()
    control.fake.become("stopping")
    assert await asyncio.wait_for(rest_of(call), 5) == []


async def test_a_download_is_cancelled(control: OpenControl, downloader: StandinDownloader) -> None:
    job = await started(control)
    run = await downloader.next()
    assert (await control.stub.CancelJob(pb.CancelJobRequest(id=job.id))).job.state == pb.JOB_STATE_CANCELLED
    assert run.was_cancelled


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"source": ""}, grpc.StatusCode.INVALID_ARGUMENT, "source"),
        ({"source": f"s3://a:{SECRET}@b"}, grpc.StatusCode.INVALID_ARGUMENT, "source"),
        ({"max_workers": 0}, grpc.StatusCode.INVALID_ARGUMENT, "max_workers"),
        ({"output_dir": "/etc"}, grpc.StatusCode.PERMISSION_DENIED, "output_dir"),
        ({"source": "hf://../../etc", "output_dir": "../x"}, grpc.StatusCode.PERMISSION_DENIED, "output_dir"),
    ],
)
async def test_an_invalid_download_is_refused(
    control: OpenControl, fields: dict[str, object], code: grpc.StatusCode, field: str
) -> None:
    error = await refused(started(control, **fields))
    assert (error.code(), details_of(error)["BadRequest"].field_violations[0].field) == (code, field)
    assert SECRET not in str(error)


async def test_a_default_folder_is_named_after_the_source(
    control: OpenControl, downloader: StandinDownloader, tmp_path: Path
) -> None:
    for source, folder in (
        ("hf://../../etc", "hf/etc"),
        ("s3://bucket/a/./b/", "s3/bucket/a/b"),
        ("https://host/x?sig=abcdef", "https/host/x"),
    ):
        assert (await started(control, source=source)).output_dir == str(tmp_path / "home" / folder)


@pytest.mark.parametrize("method", ["GetJob", "CancelJob", "WatchJob"])
async def test_an_unknown_job_is_not_found(control: OpenControl, method: str) -> None:
    for job_id, code in (("x", grpc.StatusCode.NOT_FOUND), ("", grpc.StatusCode.INVALID_ARGUMENT)):
        assert (
            await refused(getattr(control.stub, method)(getattr(pb, f"{method}Request")(id=job_id)))
        ).code() == code


@pytest.mark.parametrize("method", ["ListJobs", "GetJob", "StartDownload", "CancelJob", "WatchJob"])
async def test_without_downloads_every_call_is_refused(tmp_path: Path, method: str) -> None:
    async with opened(tmp_path) as control:
        request = getattr(pb, f"{method}Request")
        error = await refused(
            getattr(control.stub, method)(
                request(**({"id": "x"} if "id" in request.DESCRIPTOR.fields_by_name else {}))
            )
        )
        assert (error.code(), details_of(error)["ErrorInfo"].reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "NO_DOWNLOADS",
        )


async def test_credentials_are_in_no_response(control: OpenControl, downloader: StandinDownloader) -> None:
    downloader.at_once = NotFound(f"f.bin: token={SECRET} {SECRET}")
    job = await started(
        control, source=f"https://host/f?sig={SECRET}", config={"hf_token": SECRET, "odd": SECRET}
    )
    responses = await rest_of(control.stub.WatchJob(pb.WatchJobRequest(id=job.id)))
    assert responses[-1].job.state == pb.JOB_STATE_FAILED
    assert "[secret]" in responses[-1].job.error
    assert SECRET not in f"{responses} {await control.stub.ListJobs(pb.ListJobsRequest())}"


def test_every_state_has_its_value() -> None:
    assert [to_job_state(word) for word in JOB_STATES] == [1, 2, 3, 4, 5, 6]
    assert to_job_state("dreaming") == pb.JOB_STATE_UNSPECIFIED
