"""The state folder of the first release: what it wrote is read after an update, and written in the same form."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from appliance.base.tasks import Tasks
from appliance.downloads import manifest
from appliance.downloads.contract import DownloadProgress
from appliance.downloads.job import job_file, job_to_row
from appliance.downloads.part import PartialFile
from appliance.downloads.sources.contract import RemoteFile
from appliance.engines.lora.order import order_file, order_to_row
from appliance.engines.lora.plan import Adapter
from appliance.engines.lora.table_file import read_adapters, write_adapters
from appliance.engines.runtime_changes import RuntimeChanges
from appliance.models.runner.load_history import LoadHistory, LoadRecord
from appliance.models.runner.orphans import survivors
from appliance.models.table.digests import DigestCache
from appliance.models.table.file_state import FileState
from appliance.models.table.pulled import PulledModel, add_pulled, read_pulled

JOBS = [
    {
        "id": "job_0011223344556677",
        "source": "hf://ns/repo",
        "output_dir": "/models/hf/ns/repo",
        "state": "interrupted",
        "created_at_s": 1700000000.5,
        "kind": "download",
        "started_at_s": 1700000001.0,
        "ended_at_s": 1700000009.0,
        "progress": {
            "files": 2,
            "files_done": 1,
            "total_bytes": 100,
            "done_bytes": 40,
            "fetched_bytes": 40,
            "rate_bytes_s": 4.5,
            "now": ["a.gguf"],
            "note": "",
            "phase": "fetching",
        },
        "error": "It was interrupted.",
        "max_workers": 8,
        "config": {"include": "a.gguf", "revision": "main"},
        "needs": ["hf_token"],
        "model": "hf.co/ns/repo:Q4_K_M",
        "files": 0,
        "bytes_total": 0,
        "seconds": 0.0,
    }
]
ORDER = {
    "name": "loud",
    "path": "/a/loud",
    "base_model": "llama",
    "source": "hf://ns/loud",
    "backend": "gpu-1",
    "is_pinned": True,
    "is_partial": True,
    "max_workers": 4,
    "config": {"revision": "main"},
    "needs": ["hf_token"],
    "phase": "failed",
    "since_s": 1700000000.5,
    "error": "no backend",
}
ADAPTERS = {
    "adapters": [
        {
            "name": "loud",
            "path": "/a/loud",
            "base_model": "llama",
            "source": "hf://ns/loud",
            "backend": "gpu-1",
            "is_pinned": True,
            "is_wanted": False,
            "leaves": ["gpu-2"],
        }
    ]
}
BACKENDS = {
    "added": {"b": {"name": "b", "url": "http://b:1", "kind": "vllm"}},
    "removed": ["c"],
    "drained": ["d"],
    "strategies": {"": "round_robin"},
}
MANIFEST = {
    "version": 1,
    "downloads": [
        {
            "asked": "hf://ns/repo",
            "pinned": "hf://ns/repo@abc",
            "include": "*.gguf",
            "exclude": "",
            "finished_at": "2026-11-20T10:11:12.123Z",
            "files": [
                {
                    "path": "a.gguf",
                    "size_bytes": 3,
                    "sha256": "ab" * 32,
                    "etag": "tag",
                    "digest": "sha256:" + "ab" * 32,
                    "modified_ns": 123,
                }
            ],
        }
    ],
}
JOURNAL = {
    "path": "b.gguf",
    "size_bytes": 4,
    "sha256": "cd" * 32,
    "etag": "tag2",
    "digest": "",
    "modified_ns": 456,
}
PULLED = {
    "models": {
        "hf.co/ns/repo:Q4": {
            "source": "hf://ns/repo",
            "folder": "hf.co/ns/repo/Q4",
            "path": "hf.co/ns/repo/Q4/a.gguf",
            "mmproj_path": None,
            "pulled_at_s": 1.5,
        }
    }
}


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text())


async def test_download_jobs(tmp_path: Path) -> None:
    (job,) = await job_file(write(tmp_path / "jobs.json", {"jobs": JOBS})).read()
    assert (job.id, job.state, job.output_dir) == (JOBS[0]["id"], "interrupted", Path("/models/hf/ns/repo"))
    assert (job.needs, job.model, job.kind) == (("hf_token",), "hf.co/ns/repo:Q4_K_M", "download")
    assert job.progress == DownloadProgress(2, 1, 100, 40, 40, 4.5, ("a.gguf",), "", "fetching")
    assert json.loads(json.dumps(job_to_row(job))) == JOBS[0]


@pytest.mark.parametrize(
    ("phase", "state"),
    [
        ("downloading", "interrupted"),
        ("waiting", "interrupted"),
        ("loading", "interrupted"),
        ("failed", "failed"),
        ("interrupted", "interrupted"),
    ],
)
async def test_adapter_orders(tmp_path: Path, phase: str, state: str) -> None:
    path = write(tmp_path / "lora-orders.json", {"orders": [ORDER | {"phase": phase}]})
    (order,) = await order_file(path).read()
    assert (order.name, order.state, order.error, order.since_s) == (
        "loud",
        state,
        "no backend",
        1700000000.5,
    )
    assert order.adapter == Adapter("loud", "/a/loud", "llama", "hf://ns/loud", "gpu-1", is_pinned=True)
    assert order_to_row(order) == ORDER | {"phase": state}


def test_declared_adapters(tmp_path: Path) -> None:
    path = write(tmp_path / "lora-adapters.json", ADAPTERS)
    found = read_adapters(path)
    assert found["loud"].unload_from == ("gpu-2",)
    assert not found["loud"].is_wanted
    write_adapters(path, found)
    assert read(path) == ADAPTERS


def test_changes_of_backends(tmp_path: Path) -> None:
    path = write(tmp_path / "backends.json", BACKENDS)
    found = RuntimeChanges.read(path)
    assert (found.added["b"]["kind"], found.removed, found.drained) == ("vllm", ["c"], ["d"])
    found.write(path)
    assert read(path) == BACKENDS


def test_load_history(tmp_path: Path) -> None:
    path = write(tmp_path / "model-lessons.json", {"0123456789abcdef": [2.5, 1000, 3]})
    history = LoadHistory(path)
    history.read()
    assert history.record_of("0123456789abcdef") == LoadRecord(2.5, 1000, 3)
    history.write()
    assert read(path) == {"0123456789abcdef": [2.5, 1000, 3]}


async def test_digests(tmp_path: Path) -> None:
    model = tmp_path / "a.gguf"
    model.write_bytes(b"abc")
    os.utime(model, ns=(1, 1))
    path = write(tmp_path / "digests.json", {str(model): {"stamp": "3:1", "sha256": "ab" * 32}})
    async with Tasks() as tasks:
        cache, files = DigestCache(path, tasks=tasks), [FileState.read(model)]
        await cache.want([files], wait_s=0)
        assert cache.known(files) == "ab" * 32


def test_manifest_and_journal(tmp_path: Path) -> None:
    path = write(tmp_path / ".download.json", MANIFEST)
    write(tmp_path / ".download" / "journal", JOURNAL)
    assert manifest.known_rows(tmp_path).keys() == {"a.gguf", "b.gguf"}
    (entry,) = manifest.read(tmp_path)
    manifest.write(tmp_path, entry)
    assert read(path) == MANIFEST


def test_part_of_a_file(tmp_path: Path) -> None:
    digest = "sha256:" + "ef" * 32
    state = {
        "path": "big.gguf",
        "size_bytes": 3 << 20,
        "digest": digest,
        "etag": "tag",
        "source": "hf://ns/repo",
    }
    name = "936096fed75148a241e6ba1c"
    spans = [[0, 1 << 20]]
    write(tmp_path / f"{name}.json", state | {"boot": "an earlier one", "done": spans, "synced": spans})
    (tmp_path / f"{name}.part").write_bytes(bytes(1 << 20))
    part = PartialFile(tmp_path, RemoteFile("big.gguf", 3 << 20, digest, "tag"), asked="hf://ns/repo")
    assert part.recall() == 1 << 20


def test_pulled_models(tmp_path: Path) -> None:
    path = write(tmp_path / "pulled.json", PULLED)
    folder = tmp_path / "hf.co/ns/repo/Q4"
    model = PulledModel("hf.co/ns/repo:Q4", "hf://ns/repo", folder, folder / "a.gguf", None, 1.5)
    assert read_pulled(tmp_path) == ([model], "")
    add_pulled(tmp_path, model)
    assert read(path) == PULLED


def test_record_of_a_process_of_another_boot(tmp_path: Path) -> None:
    record = {"pid": os.getpid(), "ticks": 25, "boot": "another", "command": ["x", "y"], "alias": "a"}
    assert survivors(record | {"port": 8085, "owner": 1, "owner_ticks": 2}) == []
