"""What the engine checks before it fetches."""

from pathlib import Path

import pytest

from appliance.base.errors import Conflict, Forbidden, Invalid, NotFound
from appliance.downloads.engine import DownloadEngine
from tests.downloads.engines import download_request, engine, settings


async def test_an_invalid_request_is_refused(tmp_path: Path) -> None:
    for workers in (0, 65):
        with pytest.raises(Invalid, match="max_workers"):
            await engine(tmp_path).download(download_request("ns/repo", tmp_path, workers=workers))
    with pytest.raises(NotFound, match="no download into it was recorded"):
        await engine(tmp_path).verify(tmp_path)


async def test_callers_write_where_the_settings_allow(tmp_path: Path) -> None:
    source = f"file://{tmp_path}/allowed/model"
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "model").write_bytes(b"x")
    fetcher = DownloadEngine(
        settings(download_allowed_dirs=tmp_path / "allowed"),
        output_roots=(tmp_path / "state/models", tmp_path / "allowed"),
    )
    for folder in ("state/models/one", "allowed/two"):
        assert (await fetcher.download(download_request(source, tmp_path / folder))).files == 1
    for folder in ("state/other", "elsewhere"):
        with pytest.raises(Forbidden, match="DOWNLOAD_DIR"):
            await fetcher.download(download_request(source, tmp_path / folder))


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("https://[::1/x", "The source is not a valid address"),
        ("https://u:p@h.test/x", "contains credentials, which would be written down"),
        ("https://h.test/", "must be one file"),
        ("https:///x", "must be one file"),
    ],
)
async def test_a_bad_web_address_is_refused(tmp_path: Path, address: str, text: str) -> None:
    with pytest.raises(Invalid, match=text) as caught:
        await engine(tmp_path, download_allowed_hosts="*").download(download_request(address, tmp_path / "x"))
    assert "u:p" not in caught.value.message


async def test_a_folder_without_write_access_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(b"abc")
    fetcher = engine(tmp_path / "out", download_allowed_dirs=tmp_path / "source")

    def refuse(folder: Path, *_: object) -> None:
        raise OSError(30, "Read-only file system", str(folder))

    monkeypatch.setattr("appliance.downloads.engine.manifest.write", refuse)
    with pytest.raises(Conflict, match=r"out cannot be written: Read-only file system\."):
        await fetcher.download(download_request(f"file://{tmp_path}/source", tmp_path / "out"))


async def test_repair_of_a_file_that_cannot_be_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(b"abc")
    fetcher = engine(tmp_path / "out", download_allowed_dirs=tmp_path / "source")
    await fetcher.download(download_request(f"file://{tmp_path}/source", tmp_path / "out"))
    (tmp_path / "out" / "a").write_bytes(b"abd")

    def refuse(path: Path, **_: object) -> None:
        raise OSError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(Conflict, match="out/a cannot be written: Operation not permitted"):
        await fetcher.repair(tmp_path / "out")
