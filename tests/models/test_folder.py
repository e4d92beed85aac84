"""A folder of model files: which are models, their aliases, and the model that a projector belongs to."""

import os
import shutil
import struct
from pathlib import Path

import pytest

from appliance.models.check import check_models
from appliance.models.settings import ModelSettings
from appliance.models.table import folder
from appliance.models.table.catalogue import read_catalogue
from appliance.models.table.folder import scan_folder
from appliance.models.table.gguf import read_header


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def put(into: Path, *names: str, **keys: str | int) -> None:
    """Write files with a header of these keys (`general__type="adapter"`)."""
    values = {"general__architecture": "llama", **keys}
    pairs = [
        text(key.replace("__", "."))
        + (struct.pack("<I", 8) + text(value) if isinstance(value, str) else struct.pack("<II", 4, value))
        for key, value in values.items()
    ]
    for name in names:
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs))


def named(top: Path) -> dict[str, str]:
    return {one.alias: one.path.relative_to(top).as_posix() for one in scan_folder(top)[0]}


@pytest.mark.parametrize(
    ("files", "aliases"),
    [
        (["a.gguf", "sub/b.GGUF"], {"a": "a.gguf", "b": "sub/b.GGUF"}),
        (["x/a.gguf", "y/z/a.gguf", "b.gguf"], {"x/a": "x/a.gguf", "y/z/a": "y/z/a.gguf", "b": "b.gguf"}),
        (["a.gguf", "x/a.gguf"], {"a": "a.gguf", "x/a": "x/a.gguf"}),
        (["big-00001-of-00002.gguf", "big-00002-of-00002.gguf"], {"big": "big-00001-of-00002.gguf"}),
        (
            ["x/big-00001-of-00001.gguf", "y/big-00001-of-00001.gguf"],
            {"x/big": "x/big-00001-of-00001.gguf", "y/big": "y/big-00001-of-00001.gguf"},
        ),
        (["a.gguf", "a-00001-of-00001.gguf"], {"a": "a-00001-of-00001.gguf", "a.gguf": "a.gguf"}),
        ([".cache/a.gguf", "._b.gguf", "c.gguf"], {"c": "c.gguf"}),
        (["a,b.gguf"], {"a_b": "a,b.gguf"}),
        ([], {}),
    ],
)
def test_files_are_called_by_their_names(tmp_path: Path, files: list[str], aliases: dict[str, str]) -> None:
    put(tmp_path, *files)
    assert named(tmp_path) == aliases
    assert scan_folder(tmp_path)[1] == []


def test_files_that_declare_another_type_are_not_models(tmp_path: Path) -> None:
    put(tmp_path, "a.gguf", general__type="model")
    put(tmp_path, "b.gguf", general__type="adapter")
    put(tmp_path, "c.gguf", general__type="imatrix")
    (tmp_path / "d.gguf").mkdir()
    (tmp_path / "e.txt").touch()
    assert named(tmp_path) == {"a": "a.gguf"}


@pytest.mark.parametrize(
    ("files", "projectors", "of"),
    [
        (["seeing/m.gguf"], ["seeing/mmproj-m.gguf"], {"m": "seeing/mmproj-m.gguf"}),
        (
            ["seeing/q4.gguf", "seeing/q8.gguf", "other.gguf"],
            ["seeing/MMPROJ.gguf"],
            {"q4": "seeing/MMPROJ.gguf", "q8": "seeing/MMPROJ.gguf", "other": ""},
        ),
        (["m.gguf"], ["m-mmproj-f16.gguf"], {"m": "m-mmproj-f16.gguf"}),
        (["x/m.gguf"], ["mmproj.gguf"], {"m": ""}),
        ([], ["mmproj.gguf"], {}),
    ],
)
def test_a_projector_is_that_of_the_models_beside_it(
    tmp_path: Path, files: list[str], projectors: list[str], of: dict[str, str]
) -> None:
    put(tmp_path, *files)
    put(tmp_path, *projectors, general__architecture="clip")
    found, problems = scan_folder(tmp_path)
    assert {
        one.alias: one.mmproj_path.relative_to(tmp_path).as_posix() if one.mmproj_path else ""
        for one in found
    } == of
    assert problems == []


def test_model_without_text_output_needs_no_projector(tmp_path: Path) -> None:
    put(tmp_path, "embedder.gguf", general__architecture="bert", bert__pooling_type=1)
    put(tmp_path, "seeing.gguf")
    put(tmp_path, "mmproj.gguf", general__architecture="clip")
    assert {one.alias: one.mmproj_path is not None for one in scan_folder(tmp_path)[0]} == {
        "embedder": False,
        "seeing": True,
    }


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            ["s/a.gguf", "s/mmproj-f16.gguf", "s/mmproj-f32.gguf"],
            "2 projectors: mmproj-f16.gguf, mmproj-f32.gguf. None is used",
        ),
        (["a.gguf", "b.gguf", "mmproj.gguf"], "the folder has several models"),
    ],
)
def test_projector_without_a_clear_model_is_reported(tmp_path: Path, files: list[str], said: str) -> None:
    put(tmp_path, *files)
    found, problems = scan_folder(tmp_path)
    assert all(one.mmproj_path is None for one in found)
    assert [(p.variable, p.is_fatal, said in p.remedy, "mmproj_path" in p.remedy) for p in problems] == [
        ("MODEL_DIR", False, True, True)
    ]


def test_a_file_that_is_no_model_is_listed_with_its_problem(tmp_path: Path, llama_binary: str) -> None:
    put(tmp_path, "good.gguf")
    (tmp_path / "text.gguf").write_text("this is no model at all, but long enough")
    put(tmp_path, "torn-00002-of-00003.gguf")
    (tmp_path / "gone.gguf").symlink_to(tmp_path / "nowhere.gguf")
    catalogue, problems = read_catalogue(
        ModelSettings(model_dir=tmp_path, llama_server_path=Path(llama_binary)), None
    )
    assert list(catalogue.models) == ["good", "text", "torn"]
    assert [(p.is_fatal, Path(p.value).name, p.remedy.split(":")[0]) for p in problems] == [
        (False, "text.gguf", "It is not a GGUF model"),
        (False, "torn-00001-of-00003.gguf", "It is incomplete"),
    ]
    assert "torn-00001-of-00003.gguf, torn-00003-of-00003.gguf" in problems[1].remedy
    assert {one.alias: one.problem.partition(":")[0] for one in check_models(catalogue).models} == {
        "good": "",
        "text": "not a GGUF model",
        "torn": "no such file",
    }


def test_a_file_that_may_not_be_read_is_listed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path, *, is_brief: bool) -> None:  # root, as whom tests may run, may read every file
        raise PermissionError(13, "Permission denied", str(path))

    put(tmp_path, "a.gguf")
    monkeypatch.setattr(folder, "read_header", forbidden)
    found, problems = scan_folder(tmp_path)
    assert [one.alias for one in found] == ["a"]
    assert "cannot be read: Permission denied" in problems[0].remedy


def test_a_brief_read_leaves_out_the_vocabulary(tiny_models: Path, tmp_path: Path) -> None:
    for name, kind, is_embedding in (
        ("tiny-chat", "model", False),
        ("tiny-lora", "adapter", False),
        ("tiny-rerank", "model", True),
    ):
        whole, brief = (
            read_header(tiny_models / f"{name}.gguf", is_brief=is_brief) for is_brief in (False, True)
        )
        assert (brief.kind, brief.is_embedding, brief.architecture, brief.size_bytes) == (
            kind,
            is_embedding,
            whole.architecture,
            whole.size_bytes,
        )
        assert not any(key.startswith("tokenizer.") for key in brief.values)
        assert brief.values.items() <= whole.values.items()
    shutil.copy(tiny_models / "tiny-chat.gguf", tmp_path / "cut.gguf")
    os.truncate(tmp_path / "cut.gguf", 100)
    assert "incomplete, or still being written" in scan_folder(tmp_path)[1][0].remedy
