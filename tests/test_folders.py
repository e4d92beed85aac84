"""Which folders adapters may be in, and downloads may go to: one variable is enough for one mounted folder."""

from pathlib import Path

import pytest

from appliance.build import download_roots, lora_folders
from appliance.settings import load_or_raise

STATE = Path("/state")
OWN = [STATE / "adapters", STATE / "models"]


@pytest.mark.parametrize(
    ("given", "adapters", "downloads"),
    [
        ({}, OWN, OWN),
        ({"DOWNLOAD_ALLOWED_DIRS": "/models"}, [*OWN, Path("/models")], [*OWN, Path("/models")]),
        ({"DOWNLOAD_DIR": "/models"}, [STATE / "adapters", Path("/models")], [OWN[0], Path("/models")]),
        ({"LORA_ALLOWED_DIRS": "/models"}, [Path("/models")], [STATE / "models", Path("/models")]),
        (
            {"LORA_ALLOWED_DIRS": "/adapters", "DOWNLOAD_ALLOWED_DIRS": "/models"},  # the narrower one holds
            [Path("/adapters")],
            [STATE / "models", Path("/models"), Path("/adapters")],
        ),
    ],
)
def test_one_variable_opens_a_mounted_folder(
    given: dict[str, str], adapters: list[Path], downloads: list[Path]
) -> None:
    settings, _ = load_or_raise({"STATE_DIR": str(STATE), **given})
    assert lora_folders(settings)[0] == adapters
    assert set(download_roots(settings)) == set(downloads)
