"""What loads teach, and that a spoilt file of it teaches nothing."""

import os
from pathlib import Path

import pytest

from appliance.models.runner.load_history import (
    GUESSED_BYTES_PER_S,
    LEAST_LOAD_S,
    MOST_KEPT,
    LoadHistory,
    LoadRecord,
    key_of,
)

GB = 1_000_000_000


def test_a_load_is_expected_by_the_file_until_one_was_seen() -> None:
    lessons = LoadHistory(None)
    assert lessons.expected_load_s("a", 10 * GB) == 10 * GB / GUESSED_BYTES_PER_S
    assert lessons.expected_load_s("a", 0) == LEAST_LOAD_S
    lessons.record_load("a", seconds=4.0, size_bytes=0)
    assert lessons.expected_load_s("a", 10 * GB) == 4.0
    lessons.record_load("a", seconds=2.0, size_bytes=0)
    assert lessons.expected_load_s("a", 10 * GB) == 3.0
    lessons.record_load("a", seconds=0.01, size_bytes=0)
    lessons.record_load("b", seconds=0.01, size_bytes=0)
    assert lessons.expected_load_s("b", 10 * GB) == LEAST_LOAD_S


def test_the_speed_of_other_loads_is_taken_for_those_never_seen() -> None:
    lessons = LoadHistory(None)
    lessons.record_load("a", seconds=1.0, size_bytes=3 * GB)
    assert lessons.expected_load_s("b", 10 * GB) == pytest.approx(
        10 * GB / ((GUESSED_BYTES_PER_S + 3 * GB) / 2)
    )


def test_the_most_memory_that_was_seen_counts() -> None:
    lessons = LoadHistory(None)
    for seen in (100, 300, 200, 301):
        lessons.record_memory("a", seen)
    assert lessons.record_of("a") == LoadRecord(0.0, 300, 0)  # a page more is not worth a write
    assert lessons.version == 2


def test_lessons_are_there_again_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "lessons.json"
    first, second = LoadHistory(path), LoadHistory(path)
    first.record_load("a", seconds=1.2345, size_bytes=0)
    first.record_memory("a", 5 * GB)
    first.write()
    second.read()
    assert second.record_of("a") == LoadRecord(1.234, 5 * GB, 1)
    assert [file.name for file in path.parent.iterdir()] == ["lessons.json"]


def test_those_used_last_are_kept(tmp_path: Path) -> None:
    first, second = LoadHistory(tmp_path / "l.json"), LoadHistory(tmp_path / "l.json")
    for number in range(MOST_KEPT):
        first.record_load(f"k{number}", seconds=1, size_bytes=0)
    first.record_load("k0", seconds=1, size_bytes=0)
    first.record_load("new", seconds=1, size_bytes=0)
    first.write()
    second.read()
    assert [second.record_of(key) is not None for key in ("k0", "k1", "k2", "new")] == [
        True,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"x"',
        "3",
        '{"a": 1}',
        '{"a": []}',
        '{"a": ["x", 1, 1]}',
        '{"a": [1, 2]}',
        '{"a": {"0": 1}}',
        '{"a": null}',
        '{"a": [1, -5, 1]}',
        '{"a": [-1, 5, 1]}',
        '{"a": [NaN, 5, 1]}',
        '{"a": [1, Infinity, 1]}',
        '{"a": [1, 1e999, 1]}',
        '{"a": [1e300, 5, 1]}',
        '{"a": [1, 99999999999999999999999, 1]}',
        "\x00\xff",
        "[" * 100_000,
    ],
)
def test_a_spoilt_file_is_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lessons.json"
    path.write_text(text)
    lessons = LoadHistory(path)
    lessons.read()
    assert lessons.record_of("a") is None
    lessons.record_memory("a", 7)
    lessons.write()  # and is replaced by a good one
    lessons.read()
    assert lessons.record_of("a") == LoadRecord(0.0, 7, 0)


def test_where_nothing_can_be_written_the_lessons_are_only_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "lessons.json", tmp_path):
        lessons = LoadHistory(path)
        lessons.read()
        lessons.record_memory("a", 7)
        lessons.write()
        assert lessons.record_of("a") == LoadRecord(0.0, 7, 0)


def test_nobodys_lessons_are_nobodys() -> None:
    lessons = LoadHistory(None)
    lessons.record_memory("", 7)
    lessons.record_load("", seconds=1, size_bytes=0)
    assert (lessons.record_of(""), lessons.version) == (None, 0)


def test_a_model_is_known_by_its_file_and_by_how_it_is_run(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"1")
    first = key_of(path, "x")
    assert key_of(path, "x") == first
    assert key_of(path, "y") != first
    os.utime(path, (1, 1))
    assert key_of(path, "x") != first
    assert key_of(tmp_path / "none.gguf", "x") == key_of(tmp_path / "none.gguf", "x")
