"""The table after files of MODEL_DIR came or went: what is shown, and a reload that comes in between."""

import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance import parts as module
from appliance.models.table.file_walk import walk_folder
from appliance.parts import Appliance
from appliance.settings import load_or_raise
from tests.models.test_folder import put


@pytest.fixture
async def appliance(tmp_path: Path) -> AsyncIterator[Appliance]:
    """The parts of an appliance that does not listen, with one model."""
    put(tmp_path / "models", "a.gguf")
    environ = {
        "STATE_DIR": str(tmp_path / "state"),
        "MODEL_DIR": str(tmp_path / "models"),
        "LLAMA_SERVER_PATH": sys.executable,
        "PATH": "/usr/bin:/bin",
    }
    settings, problems = load_or_raise(environ)
    made = Appliance(settings, ["another warning", *map(str, problems)])
    async with made.tasks:
        yield made
        await made.fleet.close()


async def test_warnings_are_those_of_the_files_that_are_there(appliance: Appliance, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    os.mkfifo(folder / "pipe.gguf")
    for _ in range(2):
        await appliance.reread_models(walk_folder(folder))
    assert appliance.lifecycle.warnings[0] == "another warning"
    (told,) = appliance.lifecycle.warnings[1:]
    assert told.startswith(f"MODEL_DIR={folder}/pipe.gguf: It is no regular file")
    (folder / "pipe.gguf").unlink()
    put(folder, "b.gguf")
    await appliance.reread_models(walk_folder(folder))
    assert appliance.lifecycle.warnings == ["another warning"]
    assert list(appliance.settings.catalogue.models) == ["a", "b"]


async def test_a_reload_that_comes_in_between_stays(
    appliance: Appliance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have set another MODEL_DIR: what the former one had counts no more."""
    former, new = tmp_path / "models", tmp_path / "new"
    put(former, "b.gguf")
    put(new, "c.gguf")
    real, calls = module.read_catalogue, list[Any]()

    def reading(*args: Any, **more: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            settings = appliance.settings
            models = settings.models.model_copy(update={"model_dir": new})
            appliance.settings = replace(settings, models=models)
        return real(*args, **more)

    monkeypatch.setattr(module, "read_catalogue", reading)
    await appliance.reread_models(walk_folder(former))
    assert appliance.settings.models.model_dir == new
    assert list(appliance.settings.catalogue.models) == ["c"]


async def test_a_table_that_cannot_be_used_leaves_the_former_one(
    appliance: Appliance, tmp_path: Path
) -> None:
    former = appliance.settings
    (tmp_path / "models").rename(tmp_path / "away")
    await appliance.reread_models()
    assert appliance.settings is former
