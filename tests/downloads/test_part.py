"""A partial file: its spans, and what of it a later run trusts."""

import errno
import os
from pathlib import Path

import pytest

from appliance.downloads import part as download_part
from appliance.downloads.part import PartialFile, Spans, disk_error
from appliance.downloads.sources.contract import RemoteFile

SIZE = 20 << 20


def test_spans_are_joined_and_their_gaps_known() -> None:
    spans = Spans([(10, 20), (30, 40)])
    assert spans.missing(50) == [(0, 10), (20, 30), (40, 50)]
    spans.add(0, 10)
    spans.add(19, 31)
    spans.add(5, 5)
    assert (spans.all, spans.prefix(), spans.total(), spans.missing(40)) == ([(0, 40)], 40, 40, [])
    assert Spans([(5, 9)]).prefix() == 0


def _begun(folder: Path, remote: RemoteFile) -> PartialFile:
    part = PartialFile(folder / ".download", remote, asked="hf://ns/repo")
    assert part.recall() == 0
    part.open()
    part.write([b"abc", b"def"], 0)
    part.write([b"xyz"], 10)
    return part


def test_part_is_resumed_only_for_the_same_file(tmp_path: Path) -> None:
    remote = RemoteFile("model", SIZE, "sha256:aa", "tag")
    _begun(tmp_path, remote)  # not closed: as if killed
    assert PartialFile(tmp_path / ".download", remote, asked="hf://ns/repo").recall() == 9
    assert (
        PartialFile(
            tmp_path / ".download", RemoteFile("model", SIZE, "sha256:bb", "tag"), asked="hf://ns/repo"
        ).recall()
        == 0
    )
    assert (
        PartialFile(
            tmp_path / ".download", RemoteFile("model", SIZE + 1, "sha256:aa", "tag"), asked="hf://ns/repo"
        ).recall()
        == 0
    )
    assert PartialFile(tmp_path / ".download", remote, asked="hf://other/repo").recall() == 0
    (next((tmp_path / ".download").glob("*.json"))).write_text("{")
    assert PartialFile(tmp_path / ".download", remote, asked="hf://ns/repo").recall() == 0


def test_a_file_without_version_is_not_resumed(tmp_path: Path) -> None:
    _begun(tmp_path, RemoteFile("model", SIZE))
    assert PartialFile(tmp_path / ".download", RemoteFile("model", SIZE), asked="hf://ns/repo").recall() == 0


def test_after_another_boot_only_what_was_synced_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = RemoteFile("model", SIZE, "sha256:aa")
    part = _begun(tmp_path, remote)
    monkeypatch.setattr(download_part, "boot_id", lambda: "another boot")
    assert PartialFile(tmp_path / ".download", remote, asked="hf://ns/repo").recall() == 0
    monkeypatch.undo()
    part.close()
    monkeypatch.setattr(download_part, "boot_id", lambda: "another boot")
    assert PartialFile(tmp_path / ".download", remote, asked="hf://ns/repo").recall() == 9


def test_part_that_lost_bytes_is_not_trusted(tmp_path: Path) -> None:
    remote = RemoteFile("model", SIZE, "sha256:aa")
    part = _begun(tmp_path, remote)
    part.path.write_bytes(b"abcdef")
    assert PartialFile(tmp_path / ".download", remote, asked="hf://ns/repo").recall() == 6


@pytest.mark.parametrize(
    ("number", "code", "text"),
    [
        (errno.ENOSPC, "no_space", "No space left on device. What was fetched is kept. Free some space"),
        (errno.EDQUOT, "no_space", "What was fetched is kept"),
        (errno.EROFS, "cannot_write", "/x/m cannot be written: Read-only file system."),
    ],
)
def test_a_disk_error_says_what_to_do(number: int, code: str, text: str) -> None:
    error = disk_error("/x/m", OSError(number, os.strerror(number)))
    assert (error.code, text in error.message) == (code, True)


def test_a_write_that_is_cut_short_is_finished_or_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwritev
    monkeypatch.setattr(download_part.os, "pwritev", lambda fd, some, at: real(fd, [some[0][:1]], at))
    part = _begun(tmp_path, RemoteFile("model", SIZE, "sha256:aa"))
    assert part.path.read_bytes() == b"abcdef\0\0\0\0xyz"
    monkeypatch.setattr(download_part.os, "pwrite", lambda *_: 0)
    with pytest.raises(OSError, match="No space left"):
        part.write([b"12"], 20)


def test_closed_and_discarded_parts_take_no_bytes(tmp_path: Path) -> None:
    part = _begun(tmp_path, RemoteFile("model", SIZE, "sha256:aa"))
    part.close()
    part.close()
    part.write([b"more"], 20)
    assert part.path.stat().st_size == 13
    part.discard()
    assert list((tmp_path / ".download").iterdir()) == []
