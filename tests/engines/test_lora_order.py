"""Orders of adapters as they are kept: the rows of the file, which later versions must be able to read."""

from pathlib import Path
from typing import Any

import pytest

from appliance.base import jsons
from appliance.base.durable_jobs import JobState
from appliance.downloads.contract import DownloadProgress
from appliance.engines.lora.order import (
    FILE,
    AdapterOrder,
    OrderJob,
    order_file,
    order_from_row,
    order_to_row,
)
from appliance.engines.lora.plan import Adapter

ROW: dict[str, Any] = {
    "name": "org/style",
    "path": "/a/b",
    "base_model": "tiny",
    "source": "hf://o/s",
    "backend": "v",
    "is_pinned": True,
    "is_partial": True,
    "max_workers": 3,
    "config": {"revision": "x"},
    "needs": ["hf_token"],
    "phase": "failed",
    "since_s": 12.5,
    "error": "why",
}
ADAPTER = Adapter("org/style", "/a/b", "tiny", "hf://o/s", "v", is_pinned=True)


@pytest.mark.parametrize("phase", ["failed", "interrupted"])
def test_a_kept_row_is_read_and_written_back(phase: str) -> None:
    row = ROW | {"phase": phase}
    assert order_to_row(order_from_row(row)) == row


@pytest.mark.parametrize(
    ("phase", "state"),
    [
        ("downloading", "interrupted"),
        ("waiting", "interrupted"),
        ("loading", "interrupted"),
        ("interrupted", "interrupted"),
        ("failed", "failed"),
    ],
)
def test_a_phase_of_an_earlier_run_becomes_a_state(phase: str, state: JobState) -> None:
    job = order_from_row(ROW | {"phase": phase})
    assert (job.id, job.state, job.since_s, job.adapter) == ("org/style", state, 12.5, ADAPTER)
    assert (job.is_partial, job.max_workers, job.config, job.needs) == (
        True,
        3,
        {"revision": "x"},
        ("hf_token",),
    )


@pytest.mark.parametrize(
    "change",
    [{"name": 1}, {"phase": None}, {"error": 3}, {"since_s": "x"}, {"config": []}, {"needs": 3}],
)
def test_a_row_that_is_no_order_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError, AttributeError)):
        order_from_row(ROW | change)
    with pytest.raises(KeyError):
        order_from_row({})


def test_the_phase_of_an_active_order_is_its_step() -> None:
    job = OrderJob(id="a", adapter=ADAPTER, state="running", step="waiting")
    assert (job.phase, order_to_row(job)["phase"]) == ("waiting", "waiting")


def test_progress_is_not_kept() -> None:
    job = OrderJob(id="a", adapter=ADAPTER, progress=DownloadProgress(done_bytes=3))
    assert "progress" not in order_to_row(job)


@pytest.mark.parametrize(
    ("source", "path"), [("hf://o/s", ""), ("", "/a/b")], ids=["downloaded", "it is there already"]
)
def test_an_order_can_be_given_again(source: str, path: str) -> None:
    job = OrderJob(id="a", adapter=Adapter("a", "/a/b", "tiny", source), max_workers=2)
    assert job.order() == AdapterOrder("a", path, source, max_workers=2)


async def test_the_file_is_the_owners_alone(tmp_path: Path) -> None:
    file = order_file(tmp_path / "new" / FILE)
    job = order_from_row(ROW)
    await file.write([job])
    assert await file.read() == [job]
    assert (tmp_path / "new" / FILE).stat().st_mode & 0o777 == 0o600
    assert jsons.loads((tmp_path / "new" / FILE).read_bytes()) == {"orders": [ROW]}
