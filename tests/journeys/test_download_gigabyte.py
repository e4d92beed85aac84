"""A sparse gigabyte from each kind of source, by `appliance download`: killed with -9, and resumed.

From a real S3 server (moto), from a Hugging Face endpoint (listed by the official client), from a mounted
folder.
"""

import asyncio
import hashlib
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.downloads.part import BLOCK_BYTES
from tests.downloads.engines import MIB, leftovers
from tests.fakes.file_hubs import Hub
from tests.fakes.s3_server import S3Server
from tests.journeys.test_download import download

pytestmark = pytest.mark.timeout(300)
SIZE = 1 << 30
WORKERS = 4
PATIENCE_S = 100
ON_ITS_WAY = 16 * MIB  # of one connection: the kernel's buffers of both sides, and the client's


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[Path]:
    """Return a folder for a gigabyte: in memory if there is enough, since disks of test machines are slow."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if _has_room(memory) else tmp_path) as folder:
        yield Path(folder)


def _has_room(memory: Path) -> bool:
    """Whether there is memory for three such tests at a time, and the machine would not miss it."""
    try:
        free = next(
            line
            for line in Path("/proc/meminfo").read_text().splitlines()
            if line.startswith("MemAvailable:")
        )
        return (
            memory.is_dir()
            and min(os.statvfs(memory).f_bavail * os.statvfs(memory).f_frsize, int(free.split()[1]) * 1024)
            > 6 * SIZE
        )
    except (OSError, StopIteration):
        return False


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a large file with little in it, but something everywhere, so that a misplaced part is seen."""
    path, source = tmp_path_factory.mktemp("big") / "model.gguf", random.Random(7)
    with path.open("wb") as file:
        for at in range(0, SIZE, MIB):
            file.seek(at)
            file.write(source.randbytes(64))
        file.truncate(SIZE)
    assert path.stat().st_blocks * 512 < SIZE // 100  # it is sparse: it takes no gigabyte of anybody's disk
    return path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def killed(source: str, out: Path, **environ: str) -> int:
    """Begin a download, kill it with -9 once a third is on the disk, and return how many bytes that were."""
    async with download(source, "-o", out, "-w", str(WORKERS), "--json", **environ) as run:
        reading = asyncio.create_task(run.process.communicate())  # so that it can say what it wants
        async with asyncio.timeout(PATIENCE_S):
            while (kept_bytes := on_disk(out)) < SIZE // 3:
                assert not reading.done(), await reading
                await asyncio.sleep(0.005)
        run.process.kill()
        await reading
    assert not (out / "model.gguf").exists()
    return kept_bytes


def on_disk(out: Path) -> int:
    return max((path.stat().st_blocks * 512 for path in out.glob(".download/*.part")), default=0)


async def whole(source: str, out: Path, big: Path, **environ: str) -> int:
    """Go on to the end, and compare what came; give the bytes that were still fetched."""
    async with download(source, "-o", out, "-w", str(WORKERS), "--json", **environ) as run:
        run.patience_s = PATIENCE_S
        done = await run.result()
    assert (done["files"], done["total_bytes"]) == (1, SIZE)
    wanted = await asyncio.to_thread(sha256_of, big)
    assert await asyncio.to_thread(sha256_of, out / "model.gguf") == wanted
    (row,) = json.loads((out / ".download.json").read_text())["downloads"][0]["files"]
    assert row["sha256"] == wanted
    assert leftovers(out) == []
    return int(done["fetched_bytes"])


async def test_a_gigabyte_from_a_real_s3_server_survives_a_kill(big: Path, roomy: Path) -> None:
    out = roomy / "out"
    with S3Server() as server:
        etag = await asyncio.to_thread(server.put, big, "gigabytes", "llama/model.gguf")
        environ = {"ENDPOINT": server.url, "ACCESS_KEY": "AKIAOURS", "SECRET_KEY": "our-secret-key"}
        server.drip_s = 0.005  # so that it is killed in the middle, however quick the machine is
        kept_bytes = await killed("s3://gigabytes/llama", out, **environ)
        server.drip_s = 0.0
        begun = time.monotonic()
        fetched = await whole("s3://gigabytes/llama", out, big, **environ)
        took_s = time.monotonic() - begun
        twice = server.sent - SIZE
    (row,) = json.loads((out / ".download.json").read_text())["downloads"][0]["files"]
    print(
        f"s3: killed at {kept_bytes:,} of {SIZE:,} bytes; then {fetched:,} were "
        f"fetched in {took_s:.1f} s; {twice:,} were sent twice"
    )
    assert f'"{row["etag"]}"' == etag
    assert fetched <= SIZE - kept_bytes + WORKERS * BLOCK_BYTES
    assert 0 <= twice <= WORKERS * (BLOCK_BYTES + ON_ITS_WAY)


async def test_a_gigabyte_from_a_hugging_face_endpoint_survives_a_kill(big: Path, roomy: Path) -> None:
    out = roomy / "out"
    async with Hub({"model.gguf": big}) as hub:
        await asyncio.to_thread(hub.sha256, "model.gguf")
        hub.drip_s = 0.002
        kept_bytes = await killed("ns/repo", out, HF_ENDPOINT=hub.url)
        hub.drip_s, sent = 0.0, hub.sent["model.gguf"]
        hub.is_quick = True
        begun = time.monotonic()
        fetched = await whole("ns/repo", out, big, HF_ENDPOINT=hub.url)
        took_s = time.monotonic() - begun
        twice = sent + fetched - SIZE
    print(
        f"hf: killed at {kept_bytes:,} of {SIZE:,} bytes; then {fetched:,} were "
        f"fetched in {took_s:.1f} s; {twice:,} were sent twice"
    )
    assert fetched <= SIZE - kept_bytes + WORKERS * BLOCK_BYTES
    assert 0 <= twice <= WORKERS * (BLOCK_BYTES + ON_ITS_WAY)


async def test_a_gigabyte_from_a_mounted_folder_survives_a_kill(big: Path, roomy: Path) -> None:
    out = roomy / "out"
    kept_bytes = await killed(f"pvc://{big.parent}", out)
    begun = time.monotonic()
    fetched = await whole(f"pvc://{big.parent}", out, big)
    print(
        f"pvc: killed at {kept_bytes:,} of {SIZE:,} bytes; then {fetched:,} were copied "
        f"in {time.monotonic() - begun:.1f} s"
    )
    assert fetched <= SIZE - kept_bytes + WORKERS * BLOCK_BYTES
