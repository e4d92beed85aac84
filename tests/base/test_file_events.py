"""What the kernel tells of files, and which folders are to be watched for a path."""

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.base import file_events
from appliance.base.file_events import FileEvents, Place, marks_of, places_of


@pytest.fixture
def events() -> Iterator[FileEvents]:
    opened = FileEvents()
    yield opened
    opened.close()


def places(folder: Path) -> dict[str, Place]:
    return {str(folder): Place(ending=".gguf")}


def fail_with(monkeypatch: pytest.MonkeyPatch, events: FileEvents, code: int) -> None:
    """Let the kernel refuse each further watch."""

    def refuse(*_: object) -> int:
        file_events.ctypes.set_errno(code)
        return -1

    monkeypatch.setattr(events, "_libc", type("Libc", (), {}))
    monkeypatch.setattr(events._libc, "inotify_add_watch", refuse, raising=False)
    monkeypatch.setattr(
        events._libc, "inotify_init1", lambda _: os.open("/dev/null", os.O_RDONLY), raising=False
    )
    monkeypatch.setattr(events._libc, "statfs", lambda *_: -1, raising=False)


def test_a_file_counts_as_finished_once_it_is_closed(events: FileEvents, tmp_path: Path) -> None:
    assert events.follow(places(tmp_path))
    with (tmp_path / "a.gguf").open("wb") as file:
        file.write(b"1")
        file.flush()
        begun = events.take()
        file.write(b"2")
    ended = events.take()
    assert (begun.is_due, begun.is_growing, begun.finished) == (True, True, set())
    assert (ended.is_due, ended.finished) == (True, {str(tmp_path / "a.gguf")})


def test_a_finished_file_that_gets_its_times_is_still_finished(events: FileEvents, tmp_path: Path) -> None:
    """As every program does that copies times and modes, too."""
    events.follow(places(tmp_path))
    (tmp_path / "a.gguf").write_bytes(b"1")
    os.utime(tmp_path / "a.gguf", (1, 1))
    (tmp_path / "a.gguf").chmod(0o600)
    assert events.take().finished == {str(tmp_path / "a.gguf")}


def test_a_file_written_again_after_it_was_closed_is_not_finished(events: FileEvents, tmp_path: Path) -> None:
    events.follow(places(tmp_path))
    (tmp_path / "a.gguf").write_bytes(b"1")
    with (tmp_path / "a.gguf").open("ab") as file:
        file.write(b"2")
        file.flush()
        assert events.take().finished == set()


@pytest.mark.parametrize("name", [".hidden.gguf", "a.txt", "a.gguf.part"])
def test_entries_that_are_no_models_are_passed_over(events: FileEvents, tmp_path: Path, name: str) -> None:
    events.follow(places(tmp_path))
    (tmp_path / name).write_bytes(b"1")
    (tmp_path / name).unlink()
    changes = events.take()
    assert (changes.is_due, changes.is_growing) == (False, False)


def test_a_name_that_is_no_text_is_told_like_others(events: FileEvents, tmp_path: Path) -> None:
    events.follow(places(tmp_path))
    (tmp_path / os.fsdecode(b"caf\xe9.gguf")).write_bytes(b"1")
    assert len(events.take().finished) == 1


def test_only_new_watches_are_new(events: FileEvents, tmp_path: Path) -> None:
    (sub := tmp_path / "sub").mkdir()
    assert events.follow(places(tmp_path))
    assert not events.follow(places(tmp_path))
    assert events.follow(places(tmp_path) | places(sub))
    assert not events.follow(places(tmp_path))
    (sub / "a.gguf").write_bytes(b"1")
    assert not events.take().is_due


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_folder_that_takes_another_ones_place_is_watched(
    events: FileEvents, tmp_path: Path, *, is_moved: bool
) -> None:
    (folder := tmp_path / "m").mkdir()
    events.follow(places(folder))
    if is_moved:
        folder.rename(tmp_path / "old")
    else:
        folder.rmdir()
    assert events.take().is_due
    folder.mkdir()
    assert events.follow(places(folder))
    (folder / "a.gguf").write_bytes(b"1")
    assert events.take().finished == {str(folder / "a.gguf")}


def test_a_queue_that_overflows_makes_a_look_due(events: FileEvents, tmp_path: Path) -> None:
    """The kernel joins events that are alike; two files in turn are not."""
    events.follow(places(tmp_path))
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    files = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for file in files:
        file.write_bytes(b"1")
    for number in range(min(limit, 100_000) + 10):
        os.utime(files[number % 2])
    changes = events.take()
    assert (changes.is_due, changes.finished) == (True, set())
    assert not events.take().is_due


def test_a_limit_of_the_kernel_is_named_and_may_be_raised(
    events: FileEvents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_with(patch, events, errno.ENOSPC)
        assert not events.follow(places(tmp_path))
        assert events.reason == "the limit of watches is reached (sysctl fs.inotify.max_user_watches)"
    assert events.follow(places(tmp_path))
    assert events.reason == ""


def test_file_systems_that_others_change_are_told(
    events: FileEvents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_file_system", lambda _: 0x6969)
    assert not events.follow(places(tmp_path))
    assert events.reason == f"{tmp_path}: nfs does not tell of all changes"


def test_proc_is_known_as_a_file_system_without_events(events: FileEvents) -> None:
    events.follow({"/proc/self": Place(files={"status"})})
    assert events.reason == "/proc/self: proc does not tell of all changes"


async def test_waiting_ends_with_an_event_or_in_time(events: FileEvents, tmp_path: Path) -> None:
    events.follow(places(tmp_path))
    assert not await events.wait(0.01)
    waiting = asyncio.get_running_loop().create_task(events.wait(10))
    await asyncio.sleep(0)
    (tmp_path / "a.gguf").write_bytes(b"1")
    assert await asyncio.wait_for(waiting, 5)


def test_closed_events_follow_nothing_any_more(tmp_path: Path) -> None:
    closed = FileEvents()
    closed.follow(places(tmp_path))
    closed.close()
    assert not closed.follow(places(tmp_path))
    assert not closed.take().is_due


def under(found: dict[str, Place], top: Path) -> dict[str, tuple[set[str], set[str]]]:
    """Give the places below a folder: the names, and those of files."""
    inside = {path: one for path, one in found.items() if path.startswith(str(top))}
    return {path[len(str(top)) :] or "/": (one.names, one.files) for path, one in inside.items()}


def test_each_folder_on_the_way_to_a_file_matters(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a.gguf").touch()
    found = places_of([tmp_path / "m" / "a.gguf"])
    assert under(found, tmp_path) == {"/": ({"m"}, set()), "/m": ({"a.gguf"}, {"a.gguf"})}
    assert tmp_path.parts[1] in found["/"].names


def test_the_links_of_a_config_map_matter_and_where_they_lead(tmp_path: Path) -> None:
    (tmp_path / "..1").mkdir()
    (tmp_path / "..1" / "c.yaml").touch()
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "c.yaml").symlink_to("..data/c.yaml")
    assert under(places_of([tmp_path / "c.yaml"]), tmp_path) == {
        "/": ({"c.yaml", "..data", "..1"}, set()),
        "/..1": ({"c.yaml"}, {"c.yaml"}),
    }


def test_of_a_missing_path_the_last_folder_matters(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "none")
    found = places_of([tmp_path / "away" / "sub" / "a.gguf", tmp_path / "link" / "b.gguf"])
    assert under(found, tmp_path) == {"/": ({"away", "link", "none"}, set())}


def test_links_that_lead_to_themselves_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert under(places_of([tmp_path / "a"]), tmp_path) == {"/": ({"a", "b"}, set())}


def test_files_of_a_folder_that_was_moved_here_are_whole(tmp_path: Path) -> None:
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "sub" / "deep" / "a.gguf").write_bytes(b"123")
    (tmp_path / "b.gguf").write_bytes(b"12")
    marks = marks_of([str(tmp_path / "sub"), str(tmp_path / "b.gguf"), str(tmp_path / "none")])
    assert sorted(size for _, _, size in marks) == [2, 3]
