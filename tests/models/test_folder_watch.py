"""A folder that changes: what counts, and from which look on."""

import os
from pathlib import Path

import pytest

from appliance.models.table import folder_watch
from appliance.models.table.file_state import FileState
from appliance.models.table.folder_watch import FolderWatch
from tests.models.test_folder import put


def aged(*paths: Path) -> None:
    """Let these have been changed long ago, so that the next look needs not be careful."""
    for path in paths:
        os.utime(path, (1_700_000_000, 1_700_000_000))


def names(watch: FolderWatch) -> list[str] | None:
    """Look once; give the names of the files that count, None = nothing has changed."""
    walked = watch.look()
    return None if walked is None else [path.name for path in walked.files]


def test_the_first_look_takes_all_and_the_next_nothing(tmp_path: Path) -> None:
    put(tmp_path, "a.gguf", "sub/b.gguf")
    watch = FolderWatch(tmp_path)
    assert [names(watch), names(watch), names(watch)] == [["a.gguf", "b.gguf"], None, None]


def test_a_new_file_counts_from_the_second_look_that_finds_it_the_same(tmp_path: Path) -> None:
    put(tmp_path, "a.gguf")
    watch = FolderWatch(tmp_path)
    assert names(watch) == ["a.gguf"]
    new = tmp_path / "sub" / "new.gguf"
    new.parent.mkdir()
    for size in (10, 20, 30):  # it grows from look to look
        new.write_bytes(bytes(size))
        assert names(watch) is None
    assert [names(watch), names(watch)] == [["a.gguf", "new.gguf"], None]


def test_a_changed_file_counts_as_it_was_until_it_is_steady(tmp_path: Path) -> None:
    put(tmp_path, "a.gguf")
    watch = FolderWatch(tmp_path)
    first = watch.look()
    assert first is not None
    (tmp_path / "a.gguf").write_bytes(bytes(500))
    assert names(watch) is None
    second = watch.look()
    assert second is not None
    assert [one.size_bytes for one in second.files.values()] == [500]
    assert watch.look() is None


def test_a_file_that_is_gone_counts_no_more_at_once(tmp_path: Path) -> None:
    put(tmp_path, "a.gguf", "b.gguf")
    watch = FolderWatch(tmp_path)
    watch.look()
    (tmp_path / "a.gguf").unlink()
    assert [names(watch), names(watch)] == [["b.gguf"], None]


def test_a_replaced_file_of_the_same_size_and_time_is_another_one(tmp_path: Path) -> None:
    put(tmp_path, "a.gguf", "other")
    aged(tmp_path / "a.gguf", tmp_path / "other")
    watch = FolderWatch(tmp_path)
    watch.look()
    (tmp_path / "other").rename(tmp_path / "a.gguf")
    assert names(watch) is None
    assert names(watch) == ["a.gguf"]


def test_a_quiet_folder_is_not_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walks = []
    real = folder_watch.walk_folder
    monkeypatch.setattr(folder_watch, "walk_folder", lambda top: (walks.append(top), real(top))[1])
    put(tmp_path, "a.gguf", "sub/b.gguf")
    aged(tmp_path, tmp_path / "sub")
    watch = FolderWatch(tmp_path)
    assert [names(watch), names(watch), names(watch)] == [["a.gguf", "b.gguf"], None, None]
    assert len(walks) == 1
    put(tmp_path, "sub/c.gguf")
    assert [names(watch), names(watch)] == [None, ["a.gguf", "b.gguf", "c.gguf"]]
    aged(tmp_path / "sub")
    names(watch)
    walked = len(walks)
    assert [names(watch), len(walks)] == [None, walked]


def test_a_folder_that_comes_and_goes_as_a_whole(tmp_path: Path) -> None:
    top = tmp_path / "models"
    put(top, "a.gguf")
    watch = FolderWatch(top)
    first = watch.look()
    assert first is not None
    top.rename(tmp_path / "away")
    walked = watch.look()
    assert walked is not None
    assert (walked.files, walked.warnings[0][0]) == (first.files, str(top))
    assert watch.look() is None
    (tmp_path / "away").rename(top)
    assert [names(watch), names(watch)] == [["a.gguf"], None]


def test_a_link_whose_target_comes_back_counts_again(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.gguf").symlink_to(tmp_path / "elsewhere")
    aged(tmp_path / "folder")
    watch = FolderWatch(tmp_path / "folder")
    assert names(watch) == ["a.gguf"]
    (tmp_path / "elsewhere").rename(tmp_path / "away")
    assert [names(watch), names(watch)] == [[], None]
    (tmp_path / "away").rename(tmp_path / "elsewhere")
    assert [names(watch), names(watch)] == [[], ["a.gguf"]]


def test_what_becomes_unusable_is_told(tmp_path: Path) -> None:
    put(tmp_path, "a.gguf")
    watch = FolderWatch(tmp_path)
    watch.look()
    os.mkfifo(tmp_path / "pipe.gguf")
    walked = watch.look()
    assert walked is not None
    assert [Path(path).name for path, _ in walked.warnings] == ["pipe.gguf"]
    assert watch.look() is None


def sees(watch: FolderWatch, now_s: float, *finished: Path) -> list[str] | None:
    """Look at a time, with these files known to be whole."""
    walked = watch.look({FileState.read(path).mark for path in finished}, now_s)
    return None if walked is None else [path.name for path in walked.files]


def test_a_file_must_have_stayed_the_same_for_some_seconds(tmp_path: Path) -> None:
    put(tmp_path, "a.gguf")
    watch = FolderWatch(tmp_path, steady_s=3.0)
    assert sees(watch, 0.0) == ["a.gguf"]
    new = tmp_path / "new.gguf"
    new.write_bytes(b"1")
    assert [sees(watch, 1.0), sees(watch, 3.9), watch.is_settled] == [None, None, False]
    new.write_bytes(b"12")
    assert [sees(watch, 4.0), sees(watch, 6.9), sees(watch, 7.0)] == [None, None, ["a.gguf", "new.gguf"]]
    assert watch.is_settled


def test_a_file_that_is_known_to_be_whole_counts_at_once(tmp_path: Path) -> None:
    watch = FolderWatch(tmp_path, steady_s=3.0)
    watch.look()
    new, other = tmp_path / "new.gguf", tmp_path / "other.gguf"
    new.write_bytes(b"1")
    other.write_bytes(b"1")
    assert sees(watch, 0.1, new) == ["new.gguf"]
    new.write_bytes(b"12")
    assert sees(watch, 0.2, other) == ["new.gguf", "other.gguf"]
    assert not watch.is_settled
    assert sees(watch, 0.3, new) == ["new.gguf", "other.gguf"]
    assert watch.is_settled


def test_files_of_a_folder_that_is_away_count_until_it_is_back(tmp_path: Path) -> None:
    top = tmp_path / "m"
    put(tmp_path, "m/a.gguf", "m/b.gguf")
    watch = FolderWatch(top, steady_s=3.0)
    assert sees(watch, 0.0) == ["a.gguf", "b.gguf"]
    top.rename(away := tmp_path / "away")
    assert [sees(watch, 1.0), sees(watch, 9.0), watch.is_settled] == [["a.gguf", "b.gguf"], None, False]
    (away / "b.gguf").unlink()
    away.rename(top)
    assert [sees(watch, 10.0), watch.is_settled] == [["a.gguf"], True]
