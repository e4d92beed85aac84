"""A partial file: its spans, and what of it a later run believes."""

from pathlib import Path

import pytest

from appliance.downloads import part as download_part
from appliance.downloads.part import PartialFile, Spans
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


def test_a_part_is_gone_on_with_only_when_it_is_of_the_same_file(tmp_path: Path) -> None:
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


def test_a_part_that_lost_bytes_is_not_believed(tmp_path: Path) -> None:
    remote = RemoteFile("model", SIZE, "sha256:aa")
    part = _begun(tmp_path, remote)
    part.path.write_bytes(b"abcdef")
    assert PartialFile(tmp_path / ".download", remote, asked="hf://ns/repo").recall() == 6
