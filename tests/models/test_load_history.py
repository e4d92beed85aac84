"""What loads teach, and that a spoilt file of it teaches nothing."""

import os
from pathlib import Path

import pytest

from appliance.models.runner.load_history import (
    ASSUMED_BYTES_PER_S,
    MAX_RECORDS,
    MIN_LOAD_S,
    LoadHistory,
    LoadRecord,
    key_of,
)

GB = 1_000_000_000


def test_a_load_is_expected_by_the_file_until_one_was_seen() -> None:
    history = LoadHistory(None)
    assert history.expected_load_s("a", 10 * GB) == 10 * GB / ASSUMED_BYTES_PER_S
    assert history.expected_load_s("a", 0) == MIN_LOAD_S
    history.record_load("a", seconds=4.0, size_bytes=0)
    assert history.expected_load_s("a", 10 * GB) == 4.0
    history.record_load("a", seconds=2.0, size_bytes=0)
    assert history.expected_load_s("a", 10 * GB) == 3.0
    history.record_load("a", seconds=0.01, size_bytes=0)
    history.record_load("b", seconds=0.01, size_bytes=0)
    assert history.expected_load_s("b", 10 * GB) == MIN_LOAD_S


def test_the_speed_of_other_loads_is_taken_for_those_never_seen() -> None:
    history = LoadHistory(None)
    history.record_load("a", seconds=1.0, size_bytes=3 * GB)
    assert history.expected_load_s("b", 10 * GB) == pytest.approx(
        10 * GB / ((ASSUMED_BYTES_PER_S + 3 * GB) / 2)
    )


def test_the_most_memory_that_was_seen_counts() -> None:
    history = LoadHistory(None)
    for seen in (100, 300, 200, 301):
        history.record_memory("a", seen)
    assert history.record_of("a") == LoadRecord(0.0, 300, 0)  # a page more is not worth a write
    assert history.version == 2


def test_history_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "history.json"
    first, second = LoadHistory(path), LoadHistory(path)
    first.record_load("a", seconds=1.2345, size_bytes=0)
    first.record_memory("a", 5 * GB)
    first.write()
    second.read()
    assert second.record_of("a") == LoadRecord(1.234, 5 * GB, 1)
    assert [file.name for file in path.parent.iterdir()] == ["history.json"]


def test_those_used_last_are_kept(tmp_path: Path) -> None:
    first, second = LoadHistory(tmp_path / "l.json"), LoadHistory(tmp_path / "l.json")
    for number in range(MAX_RECORDS):
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
def test_damaged_file_counts_as_missing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "history.json"
    path.write_text(text)
    history = LoadHistory(path)
    history.read()
    assert history.record_of("a") is None
    history.record_memory("a", 7)
    history.write()  # and is replaced by a good one
    history.read()
    assert history.record_of("a") == LoadRecord(0.0, 7, 0)


def test_unwritable_history_is_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "history.json", tmp_path):
        history = LoadHistory(path)
        history.read()
        history.record_memory("a", 7)
        history.write()
        assert history.record_of("a") == LoadRecord(0.0, 7, 0)


def test_without_a_key_nothing_is_recorded() -> None:
    history = LoadHistory(None)
    history.record_memory("", 7)
    history.record_load("", seconds=1, size_bytes=0)
    assert (history.record_of(""), history.version) == (None, 0)


def test_a_model_is_known_by_its_file_and_by_how_it_is_run(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"1")
    first = key_of(path, "x")
    assert key_of(path, "x") == first
    assert key_of(path, "y") != first
    os.utime(path, (1, 1))
    assert key_of(path, "x") != first
    assert key_of(tmp_path / "none.gguf", "x") == key_of(tmp_path / "none.gguf", "x")


def test_damaged_record_is_logged_with_its_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "history.json"
    path.write_text('{"a": [-1, 5, 1]}')
    LoadHistory(path).read()
    printed = "".join(capsys.readouterr())
    assert "load_history_unreadable" in printed
    assert "invalid record: [-1, 5, 1]" in printed
