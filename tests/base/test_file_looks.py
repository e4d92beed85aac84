"""When files are looked at: at once, when the kernel tells of a change, else every few seconds."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from appliance.base import file_looks
from appliance.base.clock import SystemClock
from appliance.base.file_events import FileMark, Place, places_of
from appliance.base.file_looks import Looked, look_at_changes
from tests.journeys.running import until

LONG_S = 30.0  # no look at this distance happens in a test


class LooksAtFolder:
    """Looks at all files of a folder; keeps what each look found."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.found: list[dict[str, int]] = []
        self.finished: set[FileMark] = set()
        self.is_settled = True

    async def look(self, finished: frozenset[FileMark]) -> Looked:
        self.finished |= finished
        places = places_of([self.top])
        names = {}
        for folder, _, files in os.walk(self.top):
            places.setdefault(folder, Place()).ending = ".gguf"
            names |= {name: (Path(folder) / name).stat().st_size for name in files}
        self.found.append(names)
        return Looked(places, is_settled=self.is_settled)

    def sees(self, **sizes: int) -> bool:
        return bool(self.found) and self.found[-1] == {f"{name}.gguf": size for name, size in sizes.items()}


Begin = Callable[[Path, float], LooksAtFolder]


@pytest.fixture
async def begin() -> AsyncIterator[Begin]:
    tasks = []

    def start(top: Path, every_s: float) -> LooksAtFolder:
        looks = LooksAtFolder(top)
        work = look_at_changes(looks.look, what="tests", every_s=every_s, clock=SystemClock())
        tasks.append(asyncio.get_running_loop().create_task(work))
        return looks

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_changes_are_seen_long_before_the_next_look(begin: Begin, tmp_path: Path) -> None:
    looks = begin(tmp_path, LONG_S)
    assert await until(lambda: looks.sees())
    (tmp_path / "a.gguf").write_bytes(b"12")
    assert await until(lambda: looks.sees(a=2))
    assert len(looks.finished) == 1
    (tmp_path / ".b").write_bytes(b"123")
    (tmp_path / ".b").rename(tmp_path / "b.gguf")
    assert await until(lambda: looks.sees(a=2, b=3))
    (tmp_path / "a.gguf").unlink()
    assert await until(lambda: looks.sees(b=3))


async def test_new_sub_folders_are_watched_at_once(begin: Begin, tmp_path: Path) -> None:
    looks = begin(tmp_path, LONG_S)
    assert await until(lambda: looks.sees())
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "sub" / "deep" / "a.gguf").write_bytes(b"1")
    assert await until(lambda: looks.sees(a=1))
    (tmp_path / "sub" / "deep" / "a.gguf").write_bytes(b"123")
    assert await until(lambda: looks.sees(a=3))


async def test_a_folder_removed_and_made_again_is_seen(begin: Begin, tmp_path: Path) -> None:
    (top := tmp_path / "m").mkdir()
    (top / "a.gguf").write_bytes(b"1")
    looks = begin(top, LONG_S)
    assert await until(lambda: looks.sees(a=1))
    (top / "a.gguf").unlink()
    top.rmdir()
    assert await until(lambda: looks.sees())
    top.mkdir()
    (top / "b.gguf").write_bytes(b"12")
    assert await until(lambda: looks.sees(b=2))


async def test_a_link_to_another_folder_that_is_turned_is_seen(begin: Begin, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"v{number}").mkdir()
        (tmp_path / f"v{number}" / f"m{number}.gguf").write_bytes(b"1")
    (tmp_path / "now").symlink_to("v1")
    looks = begin(tmp_path / "now", LONG_S)
    assert await until(lambda: looks.sees(m1=1))
    (tmp_path / "next").symlink_to("v2")
    (tmp_path / "next").replace(tmp_path / "now")
    assert await until(lambda: looks.sees(m2=1))


async def test_nothing_is_looked_at_while_nothing_changes(begin: Begin, tmp_path: Path) -> None:
    looks = begin(tmp_path, 0.02)
    assert await until(lambda: looks.sees())
    await asyncio.sleep(0.2)
    assert len(looks.found) <= file_looks.MAX_ROUNDS


async def test_what_is_unsettled_is_looked_at_again_soon(begin: Begin, tmp_path: Path) -> None:
    looks = begin(tmp_path, 0.02)
    looks.is_settled = False
    assert await until(lambda: len(looks.found) > 5)


async def test_without_watches_a_look_every_few_seconds_and_one_log_line(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(file_looks.log, "warning", lambda event, **fields: lines.append(f"{event} {fields}"))
    monkeypatch.setattr(file_looks.FileEvents, "_file_system", lambda *_: 0x6969)
    looks = begin(tmp_path, 0.02)
    assert await until(lambda: len(looks.found) > 3)
    (tmp_path / "a.gguf").write_bytes(b"12")
    assert await until(lambda: looks.sees(a=2))
    assert [line.partition(" ")[0] for line in lines] == ["files_not_watched"]
    assert "nfs" in lines[0]


async def test_a_look_that_fails_is_repeated(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, look = begin(tmp_path, 0.02), LooksAtFolder.look
    failures = []

    async def fail_once(finished: frozenset[FileMark]) -> Looked:
        if not failures:
            failures.append(1)
            raise OSError("gone")
        return await look(looks, finished)

    monkeypatch.setattr(looks, "look", fail_once)
    work = look_at_changes(looks.look, what="tests", every_s=0.02, clock=SystemClock())
    task = asyncio.get_running_loop().create_task(work)
    assert await until(lambda: failures and looks.sees())
    task.cancel()
