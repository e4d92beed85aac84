"""TransferWorkers with a scripted source: too many bytes, too few, and a target that cannot be written."""

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.base.clock import SystemClock
from appliance.base.errors import ApplianceError, Conflict, UpstreamFailed
from appliance.downloads import manifest
from appliance.downloads.part import PartialFile
from appliance.downloads.progress import ProgressMeter
from appliance.downloads.sources.contract import Interrupted, Listing, RangesUnsupported, RemoteFile
from appliance.downloads.workers import FetchPlan, TransferWorkers
from tests.downloads.engines import MIB, QUICK


class ScriptedSource:
    """Each call of `pieces` sends the next script: bytes, or an error."""

    def __init__(self, *scripts: list[bytes | Exception], can_range: bool = True) -> None:
        self.can_range = can_range
        self.asked: list[tuple[int, int | None]] = []
        self._scripts = list(scripts)

    async def listing(self) -> Listing:
        raise NotImplementedError

    async def pieces(self, file: RemoteFile, start: int, end: int | None) -> AsyncGenerator[bytes]:
        self.asked.append((start, end))
        for one in self._scripts.pop(0):
            if isinstance(one, Exception):
                raise one
            yield one

    async def close(self) -> None:
        """Do nothing."""


async def transfer(
    folder: Path, source: ScriptedSource, file: RemoteFile, *, workers: int = 1, expected: str = ""
) -> list[manifest.ManifestRow]:
    (folder / manifest.FOLDER).mkdir(parents=True, exist_ok=True)
    part = PartialFile(folder / manifest.FOLDER, file, asked="x://y")
    plan = FetchPlan(file, folder / file.path, part, expected)
    plan.was_resumed = part.recall() > 0
    clock = SystemClock()
    with ThreadPoolExecutor(2) as threads:
        found = TransferWorkers(
            source,
            folder,
            [plan],
            workers=workers,
            meter=ProgressMeter(lambda _: None, clock),
            timeouts=QUICK,
            clock=clock,
            threads=threads,
        )
        await asyncio.wait_for(found.run(), 10)
    return found.rows


async def test_file_is_fetched_in_pieces_and_renamed(tmp_path: Path) -> None:
    source = ScriptedSource([b"abc"], [b"d"])
    source._scripts = [[b"a" * (8 * MIB)], [b"b"]]
    rows = await transfer(tmp_path, source, RemoteFile("m", 8 * MIB + 1), workers=2)
    assert sorted(source.asked) == [(0, 8 * MIB), (8 * MIB, 8 * MIB + 1)]
    assert [(row.path, row.size_bytes) for row in rows] == [("m", 8 * MIB + 1)]
    assert (tmp_path / "m").stat().st_size == 8 * MIB + 1


@pytest.mark.parametrize(
    ("script", "kind", "text"),
    [
        ([b"abcdef"], UpstreamFailed, "^m: the source sent more bytes than the file has"),
        ([b"ab"], UpstreamFailed, "^m: the response ended 3 bytes early; tried 3 times in a row"),
        (
            [Interrupted("m: cut")],
            UpstreamFailed,
            "^m: cut; tried 3 times in a row. What was fetched is kept",
        ),
        ([Conflict("odd")], Conflict, "^m: odd$"),
    ],
)
async def test_each_failure_has_its_error(
    tmp_path: Path, script: list[bytes | Exception], kind: type[ApplianceError], text: str
) -> None:
    source = ScriptedSource(script, *[[Interrupted("the response ended 3 bytes early")]] * 4)
    if kind is Conflict or script == [b"abcdef"]:
        source = ScriptedSource(script)
    elif script != [b"ab"]:
        source = ScriptedSource(*[script] * 4)
    with pytest.raises(kind, match=text):
        await transfer(tmp_path, source, RemoteFile("m", 5))


async def test_interrupted_piece_continues_where_it_stopped(tmp_path: Path) -> None:
    source = ScriptedSource([b"ab", Interrupted("cut")], [b"cde"])
    await transfer(tmp_path, source, RemoteFile("m", 5))
    assert (source.asked, (tmp_path / "m").read_bytes()) == ([(0, 5), (2, 5)], b"abcde")


async def test_a_server_without_ranges_is_asked_for_the_whole_file(tmp_path: Path) -> None:
    source = ScriptedSource([b"ab", Interrupted("cut")], [RangesUnsupported()], [b"abcde"])
    await transfer(tmp_path, source, RemoteFile("m", 5))
    assert (source.asked, (tmp_path / "m").read_bytes()) == ([(0, 5), (2, 5), (0, 5)], b"abcde")


@pytest.mark.parametrize(
    ("digest", "expected", "text"),
    [
        ("sha256:00", "", "Wrong checksum for m: sha256 is .*, not 00. The file was discarded"),
        ("git-sha1:00", "", "Wrong checksum for m: git-sha1 is .*, not 00. The file was discarded"),
        ("", "11", "not 11. The source has other contents now; download it again"),
    ],
)
async def test_a_wrong_checksum_names_both(tmp_path: Path, digest: str, expected: str, text: str) -> None:
    with pytest.raises(UpstreamFailed, match=text) as caught:
        await transfer(tmp_path, ScriptedSource([b"abcde"]), RemoteFile("m", 5, digest), expected=expected)
    assert caught.value.code == "checksum_mismatch"
    assert not (tmp_path / "m").exists()
    assert list((tmp_path / manifest.FOLDER).iterdir()) == []


async def test_a_target_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "file").write_text("")
    with pytest.raises(Conflict, match="m cannot be written: Is a directory"):
        await transfer(tmp_path, ScriptedSource([b"abcde"]), RemoteFile("m", 5))
