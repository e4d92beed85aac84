"""A download job as it is shown and kept; rows of earlier versions must be readable."""

from pathlib import Path
from typing import Any

import pytest

from appliance.downloads.contract import DownloadProgress
from appliance.downloads.job import DownloadJob, job_from_row, job_object, job_to_row

ROW: dict[str, Any] = {
    "id": "job_1",
    "source": "hf://ns/a",
    "output_dir": "/m/a",
    "state": "completed",
    "created_at_s": 1.0,
    "kind": "download",
    "started_at_s": 2.0,
    "ended_at_s": 4.0,
    "progress": {
        "files": 2,
        "files_done": 2,
        "total_bytes": 100,
        "done_bytes": 100,
        "fetched_bytes": 60,
        "rate_bytes_s": 0.0,
        "now": [],
        "note": "",
        "phase": "done",
    },
    "error": "",
    "max_workers": 8,
    "config": {"revision": "v1"},
    "needs": ["hf_token"],
    "model": "",
    "files": 2,
    "bytes_total": 100,
    "seconds": 1.5,
}


def test_a_row_is_read_and_written_back() -> None:
    job = job_from_row(ROW)
    assert (job.output_dir, job.needs, job.progress.phase) == (Path("/m/a"), ("hf_token",), "done")
    assert job_from_row(job_to_row(job)) == job
    assert set(job_to_row(job)) == set(ROW)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"state": "asleep"}, ValueError),
        ({"progress": None}, TypeError),
        ({"needs": None}, TypeError),
        ({"odd": 1}, TypeError),
    ],
)
def test_a_row_that_is_no_job_is_refused(change: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind, match="unknown state 'asleep'" if kind is ValueError else None):
        job_from_row(ROW | change)


def test_a_job_is_shown_with_times_and_percent() -> None:
    progress = DownloadProgress(total_bytes=200, done_bytes=50, rate_bytes_s=1.26, now=("a",))
    job = DownloadJob(
        id="job_1", source="", output_dir=Path("/m"), kind="repair", state="running", progress=progress
    )
    shown = job_object(job)
    assert (shown["created_at"], shown["started_at"]) == ("1970-01-01T00:00:00.000000Z", None)
    assert (shown["model"], shown["error"], shown["source"]) == (None, None, "")
    assert (shown["progress"]["percent"], shown["progress"]["rate_bytes_s"], shown["progress"]["now"]) == (
        25.0,
        1.3,
        ["a"],
    )
    assert not {"step", "since_s", "needs"} & set(shown)
