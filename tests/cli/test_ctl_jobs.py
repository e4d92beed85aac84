"""`appliance ctl download`, `ctl jobs`, `ctl job …`, as processes, against a real control API over a stand-in Downloader."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.base import jsons
from appliance.base.clock import FakeClock
from appliance.base.errors import NotFound
from appliance.base.tasks import Tasks
from appliance.cli.client import CallFailed
from appliance.cli.jobs import parse_config
from appliance.control.server import serving_control
from appliance.downloads.jobs import DownloadJobs
from appliance.downloads.request import DownloadFolders
from tests.cli.test_ctl_models import Terminal, on_a_screen
from tests.control.fake_appliance import FakeAppliance, control_settings
from tests.control.scripted_manager import ScriptedManager
from tests.downloads.standin_downloader import StandinDownloader

SECRET = "hf_verysecrettokenvalue"


@pytest.fixture
async def downloader() -> StandinDownloader:
    return StandinDownloader()


@pytest.fixture
async def terminal(tmp_path: Path, downloader: StandinDownloader) -> AsyncIterator[Terminal]:
    fake, path = FakeAppliance(), tmp_path / "c.sock"
    async with Tasks() as tasks:
        fake.jobs = DownloadJobs(downloader, tasks=tasks, clock=FakeClock())
        fake.folders = lambda: DownloadFolders(tmp_path / "home")
        async with serving_control(control_settings(control_socket=path), fake.parts()):
            yield Terminal(fake, ScriptedManager(), f"unix:{path}")
        await fake.jobs.close()


async def test_a_download_is_followed_to_its_end_in_plain_lines(
    terminal: Terminal, downloader: StandinDownloader, tmp_path: Path
) -> None:
    secrets = tmp_path / "config.json"
    secrets.write_text(jsons.dumps_text({"hf_token": SECRET, "revision": "file"}))
    arguments = [
        "ns/repo",
        "-o",
        "models/a",
        "-w",
        "3",
        "-c",
        '{"revision": "v1"}',
        "--config-file",
        str(secrets),
    ]
    async with terminal.begin("ctl", "download", *arguments) as process:
        run = await downloader.next()
        assert (run.request.output_dir, run.request.max_workers) == (tmp_path / "home/models/a", 3)
        assert run.request.config == {"hf_token": SECRET, "revision": "v1"}
        assert await process.line() in {"hf://ns/repo queued", "hf://ns/repo listing"}
        run.progress(60)
        while not (line := await process.line()).startswith("hf://ns/repo fetching"):
            pass
        assert line == "hf://ns/repo fetching 60%, 60 B of 100 B, 12 B/s"
        run.finish()
        assert await process.end() == 0, process.err
    assert process.lines[-2:] == [
        "hf://ns/repo completed 100%, 100 B of 100 B",
        f"hf://ns/repo is in {tmp_path}/home/models/a (2 files, 100 B, 1.5s)",
    ]


async def test_a_detached_download_returns_at_once(
    terminal: Terminal, downloader: StandinDownloader, tmp_path: Path
) -> None:
    assert await terminal.run("ctl", "download", "ns/repo", "--detach") == 0
    job_id = terminal.out.strip()
    run = await downloader.next()
    run.progress(50)
    assert await terminal.run("ctl", "jobs") == 0
    head, row = (line.split("\t") for line in terminal.out.splitlines())
    assert head == ["JOB", "STATE", "DONE", "SIZE", "RATE", "SOURCE", "FOLDER", "CREATED"]
    assert row == [
        job_id,
        "running",
        "50%",
        "100 B",
        "12 B/s",
        "hf://ns/repo",
        f"{tmp_path}/home/hf/ns/repo",
        "2027-01-15 08:00:00Z",
    ]
    assert await terminal.run("ctl", "job", "show", job_id) == 0
    pairs = dict(line.split("\t", 1) for line in terminal.out.splitlines())
    assert (pairs["state"], pairs["bytes"], pairs["now"], pairs["workers"]) == (
        "running",
        "50 B of 100 B",
        "a.bin",
        "8",
    )
    assert (await terminal.json("ctl", "job", "show", job_id))["state"] == "JOB_STATE_RUNNING"
    assert [job["id"] for job in (await terminal.json("ctl", "jobs"))["jobs"]] == [job_id]
    assert await terminal.run("ctl", "job", "cancel", job_id) == 0
    assert terminal.out == "hf://ns/repo was cancelled\n"
    assert await terminal.run("ctl", "job", "watch", job_id) == 1
    assert terminal.err == "error: hf://ns/repo was cancelled\n"


async def test_a_failed_download_shows_its_reason(terminal: Terminal, downloader: StandinDownloader) -> None:
    downloader.at_once = NotFound("There is no ns/repo.")
    assert await terminal.run("ctl", "download", "ns/repo") == 1
    assert terminal.err == "error: hf://ns/repo failed: There is no ns/repo.\n"
    job_id = terminal.fake.jobs.all()[0].id
    assert await terminal.run("ctl", "job", "watch", job_id, "--json") == 1
    assert jsons.loads(terminal.out)["error"] == "There is no ns/repo."


async def test_following_ends_when_the_appliance_stops(
    terminal: Terminal, downloader: StandinDownloader
) -> None:
    async with terminal.begin("ctl", "download", "ns/repo") as process:
        await downloader.next()
        await process.line()
        terminal.fake.become("stopping")
        assert await process.end() == 1
    assert "has not ended" in process.err


async def test_a_terminal_gets_a_bar(terminal: Terminal, downloader: StandinDownloader) -> None:
    async with on_a_screen(terminal, "ctl", "download", "ns/repo") as (screen, process):
        run = await downloader.next()
        run.progress(60)
        await screen.shows("60%")
        await screen.shows("60 B of 100 B, 12 B/s")
        run.finish()
        assert await process.wait() == 0
        await screen.shows("hf://ns/repo is in")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["download", "ns/repo", "-o", "/etc"], 4, "outside the download folders"),
        (["download", "ns/repo", "-c", "{" + SECRET], 2, "--config: use a JSON object"),
        (["download", "ns/repo", "-c", "[]"], 2, "--config: use a JSON object"),
        (["download", "ns/repo", "--config-file", "/nowhere"], 2, "cannot read the file"),
        (["download", "s3://a:" + SECRET + "@b"], 1, "Remove them"),
        (["job", "show", "x"], 1, "No such download job: 'x'"),
        (["job", "cancel", "x"], 1, "No such download job: 'x'"),
        (["job", "watch", "x"], 1, "No such download job: 'x'"),
        (["download"], 2, "SOURCE"),
    ],
)
async def test_refusals(terminal: Terminal, arguments: list[str], code: int, said: str) -> None:
    assert await terminal.run("ctl", *arguments) == code
    assert said in terminal.err
    assert SECRET not in terminal.err + terminal.out


def test_config_is_an_object_of_plain_values() -> None:
    assert parse_config(' {"a": 1, "b": true, "c": null, "d": "x"} ', "-c") == {
        "a": "1",
        "b": "true",
        "d": "x",
    }
    assert parse_config("", "-c") == {}
    for text in ("[]", "3", "{", '{"a": {}}'):
        with pytest.raises(CallFailed):
            parse_config(text, "-c")
