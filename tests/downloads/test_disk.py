"""pvc:// and file:// sources: folders of this machine, links, and what may be read."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.base.errors import Forbidden, Invalid, NotFound, UpstreamFailed
from appliance.base.reach import FolderPolicy
from appliance.downloads.contract import DownloadProgress
from appliance.downloads.sources.contract import Interrupted, RemoteFile, SourceChanged
from appliance.downloads.sources.disk import Disk
from tests.downloads.engines import MIB, download_request, engine, random_bytes, read_folder

FILES = {"config.json": b"{}", "deep/er/weights.bin": random_bytes(9 * MIB)}


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    root = tmp_path / "mounted" / "model"
    for path, data in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


@pytest.mark.parametrize("slashes", ["pvc://", "pvc:///"])
async def test_both_spellings_of_a_pvc_mean_the_folder(tmp_path: Path, mounted: Path, slashes: str) -> None:
    fetcher = engine(tmp_path, download_allowed_dirs=tmp_path / "mounted")
    done = await fetcher.download(download_request(slashes + str(mounted).lstrip("/"), tmp_path / "out"))
    assert read_folder(tmp_path / "out") == FILES
    assert (await fetcher.download(download_request(f"pvc://{mounted}", tmp_path / "out"))).fetched_bytes == 0
    assert done.fetched_bytes == 9 * MIB + 2


async def test_only_what_the_operator_allows_is_read(tmp_path: Path, mounted: Path) -> None:
    with pytest.raises(Forbidden, match="DOWNLOAD_ALLOWED_DIRS"):
        await engine(tmp_path).download(download_request(f"pvc://{mounted}", tmp_path / "out"))
    fetcher = engine(tmp_path, download_allowed_dirs=mounted)
    with pytest.raises(Forbidden):
        await fetcher.download(download_request(f"pvc://{mounted.parent}", tmp_path / "out"))
    with pytest.raises(Forbidden):
        await fetcher.download(download_request("file:///etc/passwd", tmp_path / "out"))
    with pytest.raises(Invalid, match="pvc://"):
        await fetcher.download(download_request(f"pvc://{mounted}/../..", tmp_path / "out"))
    with pytest.raises(Invalid, match="absolute path"):
        await fetcher.download(download_request("file://relative", tmp_path / "out"))
    with pytest.raises(NotFound, match="not a folder"):
        await fetcher.download(download_request(f"pvc://{mounted}/none", tmp_path / "out"))
    with pytest.raises(NotFound, match="not a folder"):
        await fetcher.download(download_request(f"pvc://{mounted}/config.json", tmp_path / "out"))


async def test_a_single_file_can_be_named_where_files_may(tmp_path: Path, mounted: Path) -> None:
    await engine(tmp_path, download_allowed_dirs=mounted).download(
        download_request(f"file://{mounted}/config.json", tmp_path / "out")
    )
    assert read_folder(tmp_path / "out") == {"config.json": b"{}"}


async def test_links_inside_are_followed_and_links_out_are_refused(tmp_path: Path, mounted: Path) -> None:
    (mounted / "again.bin").symlink_to("deep/er/weights.bin")  # as the Hugging Face cache has them
    (mounted / "deep" / "up").symlink_to("..")  # a circle
    fetcher = engine(tmp_path, download_allowed_dirs=mounted)
    await fetcher.download(download_request(f"pvc://{mounted}", tmp_path / "out"))
    assert read_folder(tmp_path / "out") == FILES | {"again.bin": FILES["deep/er/weights.bin"]}
    assert not (tmp_path / "out" / "again.bin").is_symlink()
    (mounted / "passwords").symlink_to("/etc/passwd")
    with pytest.raises(Forbidden, match="link out of"):
        await fetcher.download(download_request(f"pvc://{mounted}", tmp_path / "out2"))


async def test_a_file_replaced_by_a_link_is_not_read(tmp_path: Path, mounted: Path) -> None:
    def swap(progress: DownloadProgress) -> None:
        if progress.phase == "verifying":
            (mounted / "config.json").unlink(missing_ok=True)
            (mounted / "config.json").symlink_to("/etc/passwd")

    with pytest.raises(Forbidden, match=r"config\.json"):
        await engine(tmp_path, download_allowed_dirs=mounted).download(
            download_request(f"pvc://{mounted}", tmp_path / "out"), swap
        )
    assert "config.json" not in read_folder(tmp_path / "out")


async def test_a_file_that_changes_while_it_is_copied_is_told(tmp_path: Path, mounted: Path) -> None:
    def change(progress: DownloadProgress) -> None:
        if progress.phase == "verifying":
            (mounted / "config.json").write_bytes(b"{}{}")

    with pytest.raises(UpstreamFailed, match=r"config\.json changed"):
        await engine(tmp_path, download_allowed_dirs=mounted).download(
            download_request(f"pvc://{mounted}", tmp_path / "out"), change
        )


async def test_pipes_are_left_alone(tmp_path: Path, mounted: Path) -> None:
    os.mkfifo(mounted / "pipe")
    await engine(tmp_path, download_allowed_dirs=mounted).download(
        download_request(f"pvc://{mounted}", tmp_path / "out")
    )
    assert read_folder(tmp_path / "out") == FILES


async def test_downloads_stay_in_the_folders_for_them(tmp_path: Path, mounted: Path) -> None:
    fetcher = engine(tmp_path / "models", download_allowed_dirs=mounted)
    for folder in (tmp_path / "elsewhere", tmp_path / "models" / ".." / "elsewhere", Path("relative")):
        with pytest.raises((Forbidden, Invalid)):
            await fetcher.download(download_request(f"pvc://{mounted}", folder))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "out").symlink_to(tmp_path)
    with pytest.raises(Forbidden):
        await fetcher.download(download_request(f"pvc://{mounted}", tmp_path / "models" / "out"))
    (tmp_path / "models" / "inner").mkdir()
    (tmp_path / "models" / "inner" / "deep").symlink_to(tmp_path)
    with pytest.raises(Forbidden, match="leads out of"):
        await fetcher.download(download_request(f"pvc://{mounted}", tmp_path / "models" / "inner"))
    assert not (tmp_path / "er").exists()


# ---- what changes between the listing and the copy


def source(root: Path) -> Disk:
    return Disk(root, FolderPolicy(None), pinned="file:///x", may_be_file=True)


async def copy(disk: Disk, file: RemoteFile) -> bytes:
    return b"".join([piece async for piece in disk.pieces(file, 0, file.size_bytes)])


async def test_a_file_that_is_gone_or_not_regular_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    listed = (await source(tmp_path).listing()).files[0]
    (tmp_path / "a").unlink()
    with pytest.raises(NotFound, match=r"/a cannot be read: No such file or directory\."):
        await copy(source(tmp_path), listed)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Forbidden, match="pipe is not a regular file"):
        await source(tmp_path / "pipe").listing()


async def test_a_file_that_becomes_shorter_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    listed = (await source(tmp_path).listing()).files[0]
    with pytest.raises(SourceChanged, match=r"^a became shorter at its source"):
        await copy(source(tmp_path), replace(listed, size_bytes=5))


async def test_a_read_error_may_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    listed = (await source(tmp_path).listing()).files[0]

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("appliance.downloads.sources.disk.os.pread", fail)
    with pytest.raises(Interrupted, match="/a cannot be read: Input/output error"):
        await copy(source(tmp_path), listed)


async def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("appliance.downloads.sources.disk.os.scandir", refuse)
    with pytest.raises(Forbidden, match="cannot be read: Permission denied"):
        await source(tmp_path).listing()
