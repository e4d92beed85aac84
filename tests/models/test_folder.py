"""A folder of model files: which are models, their aliases, and the model that a projector belongs to."""

import os
import shutil
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.models.check import check_models
from appliance.models.settings import ModelSettings
from appliance.models.table import file_walk, folder
from appliance.models.table.catalogue_reader import read_catalogue
from appliance.models.table.file_state import read_states
from appliance.models.table.folder import scan_folder
from appliance.models.table.gguf import InvalidGguf, read_header
from appliance.models.table.gguf_files import gguf_size_bytes


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
        (
            [
                "gemma-3-4b-it-Q4_K_M.gguf",
                "gemma-3-12b-it-IQ2_XS.gguf",
                "llava-v1.5-7b-q8_0.gguf",
                "plain.gguf",
            ],
            ["mmproj-gemma-3-4b-it-f16.gguf", "llava-v1.5-7b-mmproj-model-f16.gguf"],
            {
                "gemma-3-4b-it-Q4_K_M": "mmproj-gemma-3-4b-it-f16.gguf",
                "gemma-3-12b-it-IQ2_XS": "",
                "llava-v1.5-7b-q8_0": "llava-v1.5-7b-mmproj-model-f16.gguf",
                "plain": "",
            },
        ),
        (
            ["s/a-Q4_K_M.gguf", "s/a-Q8_0.gguf", "s/b.gguf"],
            ["s/mmproj-A-BF16.gguf", "s/mmproj-F16.gguf"],
            {"a-Q4_K_M": "s/mmproj-A-BF16.gguf", "a-Q8_0": "s/mmproj-A-BF16.gguf", "b": "s/mmproj-F16.gguf"},
        ),
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
    put(tmp_path, *(one for one in files if "mmproj" not in one))
    put(tmp_path, *(one for one in files if "mmproj" in one), general__architecture="clip")
    found, problems = scan_folder(tmp_path)
    assert all(one.mmproj_path is None for one in found)
    assert [(p.variable, p.is_fatal, said in p.remedy, "mmproj_path" in p.remedy) for p in problems] == [
        ("MODEL_DIR", False, True, True)
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a model", "It is no projector, as its name says, but of the architecture 'llama'."),
        ("half", "It is not a GGUF model: it has only 20 bytes."),
        ("text", "It is not a GGUF model: it begins with b'this'"),
        ("half a projector", "It is not a GGUF model: it has 101 of 144 bytes"),
    ],
)
def test_what_is_only_named_as_a_projector_breaks_no_model(tmp_path: Path, content: str, said: str) -> None:
    put(tmp_path, "m.gguf", "mmproj-m.gguf")
    if content == "half a projector":
        pair = text("general.architecture") + struct.pack("<I", 8) + text("clip")
        tensor = text("t") + struct.pack("<IQIQ", 1, 4, 0, 0)  # four floats, which are not there
        head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
        (tmp_path / "mmproj-m.gguf").write_bytes(head + pair + tensor)
    elif content != "a model":
        whole = (tmp_path / "mmproj-m.gguf").read_bytes()
        data = whole[:20] if content == "half" else b"this is no projector at all"
        (tmp_path / "mmproj-m.gguf").write_bytes(data)
    found, problems = scan_folder(tmp_path)
    assert [(one.alias, one.mmproj_path) for one in found] == [("m", None)]
    remedy = problems[0].remedy
    assert remedy.startswith(said)
    assert remedy.endswith("It is left out; the models beside it run without it.")


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
        (False, "gone.gguf", "It cannot be looked at"),
        (False, "text.gguf", "It is not a GGUF model"),
        (False, "torn-00001-of-00003.gguf", "It is incomplete"),
    ]
    assert "torn-00001-of-00003.gguf, torn-00003-of-00003.gguf" in problems[2].remedy
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


def test_a_file_named_as_an_alias_of_the_table_is_left_out(tmp_path: Path, llama_binary: str) -> None:
    put(tmp_path, "big.gguf", "small.gguf")
    config = tmp_path / "config.json"
    config.write_text('{"models": {"one": {"model_path": "big.gguf", "aliases": ["small"]}}}')
    settings = ModelSettings(model_dir=tmp_path, llama_server_path=Path(llama_binary))
    catalogue, problems = read_catalogue(settings, config)
    assert list(catalogue.models) == ["big", "one"]
    assert [(one.is_fatal, Path(one.value).name) for one in problems] == [(False, "small.gguf")]


# ---- entries that are not what they should be


def warned(top: Path) -> dict[str, str]:
    """Return each warning by the name of its entry."""
    return {Path(one.value).name: one.remedy for one in scan_folder(top)[1]}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (b"caf\xe9.gguf", "not UTF-8"),
        (b"two\nlines.gguf", "control characters"),
        (b"bell\x07.gguf", "control characters"),
    ],
)
def test_a_file_whose_name_is_no_text_is_left_out(tmp_path: Path, name: bytes, said: str) -> None:
    put(tmp_path, "good.gguf", "other/good.gguf")
    (tmp_path / "good.gguf").rename(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    assert named(tmp_path) == {"good": "other/good.gguf"}
    ((shown, remedy),) = warned(tmp_path).items()
    assert shown.isprintable()
    assert shown.encode()
    assert said in remedy


def test_a_folder_whose_name_is_no_text_is_left_out(tmp_path: Path) -> None:
    put(tmp_path, "good.gguf")
    (folder_name := Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))).mkdir()
    put(folder_name, "hidden.gguf")
    assert named(tmp_path) == {"good": "good.gguf"}
    assert "Rename it" in "".join(warned(tmp_path).values())


@pytest.mark.parametrize(
    "name",
    ["m-00001-of-00000.gguf", "m-00000-of-00000.gguf", "m-00005-of-00002.gguf", "m-00001-of-99999.gguf"],
)
def test_impossible_numbers_of_parts_are_part_of_a_name(tmp_path: Path, name: str) -> None:
    put(tmp_path, "good.gguf", name)
    assert named(tmp_path) == {"good": "good.gguf", name.removesuffix(".gguf"): name}
    assert warned(tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "number", "count"),
    [("a.gguf", 0, 2), ("a-00001-of-00002.gguf", 1, 2), ("a-00001-of-00002.gguf", 0, 3)],
)
def test_a_part_with_the_wrong_name_is_listed_as_broken(
    tmp_path: Path, name: str, number: int, count: int
) -> None:
    put(tmp_path, "good.gguf", "a-00002-of-00002.gguf")
    put(tmp_path, name, split__no=number, split__count=count)
    assert "not named so" in warned(tmp_path)[name]
    assert set(named(tmp_path)) >= {"good", "a"}


def test_many_missing_parts_are_counted_in_the_warning(tmp_path: Path) -> None:
    put(tmp_path, "a-00009-of-04096.gguf")
    assert "a-00005-of-04096.gguf and 4090 more is missing" in "".join(warned(tmp_path).values())


def test_what_is_no_regular_file_is_left_out(tmp_path: Path) -> None:
    put(tmp_path, "good.gguf", "target.gguf")
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "device.gguf").symlink_to("/dev/zero")
    (tmp_path / "self.gguf").symlink_to("self.gguf")
    (tmp_path / "one.gguf").symlink_to("two.gguf")
    (tmp_path / "two.gguf").symlink_to("one.gguf")
    (tmp_path / "link.gguf").symlink_to("target.gguf")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "up").symlink_to(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.gguf"))
        assert set(named(tmp_path)) == {"good", "target", "link"}
    assert {name: text.split(":")[0].split(",")[0] for name, text in warned(tmp_path).items()} == {
        "pipe.gguf": "It is no regular file",
        "device.gguf": "It is no regular file",
        "s.gguf": "It is no regular file",
        "self.gguf": "It cannot be looked at",
        "one.gguf": "It cannot be looked at",
        "two.gguf": "It cannot be looked at",
    }


def test_pipes_and_devices_of_the_table_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path / "pipe.gguf", Path("/dev/zero"), tmp_path):
        with pytest.raises(InvalidGguf, match="no regular file"):
            read_header(path)


@pytest.mark.parametrize(
    ("mode", "said"),
    [(0o400, "cannot be looked at: Permission denied"), (0o000, "cannot be read: Permission denied")],
)
def test_a_folder_that_may_not_be_entered_decides_over_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, said: str
) -> None:
    """Root may enter every folder, so the kernel's refusals are put in its place."""
    put(tmp_path, "good.gguf", "closed/a.gguf", "z/b.gguf")
    closed = str(tmp_path / "closed")

    class Entry:
        def __init__(self, entry: "os.DirEntry[str]") -> None:
            self.name, self.path, self.is_dir = entry.name, entry.path, entry.is_dir

        def stat(self) -> None:
            raise PermissionError(13, "Permission denied")

    real = os.scandir

    @contextmanager
    def scandir(path: Path) -> Iterator[Any]:
        if str(path) == closed and mode == 0:
            raise PermissionError(13, "Permission denied")
        with real(path) as entries:
            yield (Entry(one) if str(path) == closed else one for one in entries)

    monkeypatch.setattr(file_walk.os, "scandir", scandir)
    assert set(named(tmp_path)) == {"good", "b"}
    assert said in "".join(warned(tmp_path).values())


def test_a_listed_file_out_of_reach_is_only_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refused)
    for path in (tmp_path / "a.gguf", Path("\0.gguf"), tmp_path / "a-00001-of-00002.gguf"):
        assert gguf_size_bytes(path) == 0
        assert read_states([path]) == (None,)


def test_a_folder_with_endless_entries_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_walk, "MAX_ENTRIES", 5)
    monkeypatch.setattr(file_walk, "MAX_WARNINGS", 3)
    put(tmp_path, *(f"m{number}.gguf" for number in range(8)))
    assert len(named(tmp_path)) == 5
    assert "more than 5 entries" in "".join(warned(tmp_path).values())
    for number in range(8):
        (tmp_path / f"m{number}.gguf").unlink()
        os.mkfifo(tmp_path / f"p{number}.gguf")
    assert [one.remedy.split(",")[0] for one in scan_folder(tmp_path)[1]] == ["It is no regular file"] * 3 + [
        "3 more entries cannot be used. They are left out."
    ]


def test_folders_in_folders_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_walk, "MAX_DEPTH", 2)
    put(tmp_path, "a/b/in.gguf", "a/b/c/out.gguf")
    assert set(named(tmp_path)) == {"in"}
    assert "more than 2 folders deep" in "".join(warned(tmp_path).values())


def test_models_of_one_folder_with_the_same_name_get_different_ones(tmp_path: Path) -> None:
    put(
        tmp_path,
        "x,y.gguf",
        "x_y.gguf",
        "n" * 240 + "/" + "m" * 240 + "/a.gguf",
        "n" * 240 + "/" + "k" * 240 + "/a.gguf",
    )
    names = named(tmp_path)
    assert set(names) == {"x_y", "x_y.gguf", *(name for name in names if len(name) > 400)}
