"""What the engine checks before it fetches."""

from pathlib import Path

import pytest

from appliance.base.errors import Forbidden, Invalid, NotFound
from appliance.downloads.engine import DownloadEngine
from tests.downloads.workplace import download_request, engine, settings


async def test_an_invalid_request_is_refused(tmp_path: Path) -> None:
    for workers in (0, 65):
        with pytest.raises(Invalid, match="max_workers"):
            await engine(tmp_path).download(download_request("ns/repo", tmp_path, workers=workers))
    with pytest.raises(NotFound, match="nothing was downloaded"):
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
