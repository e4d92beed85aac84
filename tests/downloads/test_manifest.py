"""The manifest and the journal of a folder."""

from pathlib import Path

from appliance.downloads import manifest


def test_the_journal_and_the_manifest_are_read_whatever_was_cut(tmp_path: Path) -> None:
    (tmp_path / ".download").mkdir()
    first = manifest.ManifestRow("a", 1, "00", modified_ns=5)
    manifest.append_journal(tmp_path, first)
    with (tmp_path / ".download" / "journal").open("ab") as file:
        file.write(b'{"path": "b", "si')
    assert manifest.known_rows(tmp_path) == {"a": first}
    manifest.write(
        tmp_path,
        manifest.ManifestEntry(
            "s3://b/one", "s3://b/one", finished_at="now", files=(first, manifest.ManifestRow("c", 1, "01"))
        ),
    )
    manifest.write(
        tmp_path,
        manifest.ManifestEntry(
            "s3://b/two", "s3://b/two", finished_at="now", files=(manifest.ManifestRow("c", 2, "02"),)
        ),
    )
    assert {entry.asked: [row.path for row in entry.files] for entry in manifest.read(tmp_path)} == {
        "s3://b/one": ["a"],
        "s3://b/two": ["c"],
    }
    (tmp_path / ".download.json").write_text("[]")
    assert manifest.read(tmp_path) == []
