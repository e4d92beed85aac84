"""Names, paths and sources of adapters, and the file that declared ones are kept in."""

from pathlib import Path

import pytest

from appliance.base.errors import ApplianceError, Conflict, Forbidden, Invalid
from appliance.engines.lora import file as lora_file
from appliance.engines.lora.plan import Adapter
from appliance.engines.lora.rules import adapter_file, check_name, check_path, folder_name, shown_source


@pytest.mark.parametrize("name", ["a", "style-v2", "org/adapter", "tiny:sql", "ä b", "x" * 128])
def test_usual_names_pass(name: str) -> None:
    assert check_name(name) == name
    assert "/" not in folder_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x" * 129,
        "a,b",
        "a\nb",
        "a\x00",
        " a",
        "a ",
        "..",
        ".",
        "a/..",
        "../a",
        "a//b",
        "/a",
        "a/",
        "a\\b",
        "\u202ea",
    ],
)
def test_names_that_could_do_harm_are_refused(name: str) -> None:
    with pytest.raises(Invalid):
        check_name(name)


def test_paths_stay_inside_the_allowed_folders(tmp_path: Path) -> None:
    allowed, other = tmp_path / "allowed", tmp_path / "allowed-not"
    allowed.mkdir()
    other.mkdir()
    (allowed / "out").symlink_to(other)
    (allowed / "in").symlink_to(allowed / "a")
    (allowed / "loop").symlink_to(allowed / "loop")
    assert check_path(f"{allowed}/a//b/./c", [allowed]) == f"{allowed}/a/b/c"
    assert check_path(f"{allowed}/in", [allowed]) == f"{allowed}/in"
    assert check_path("/nowhere/here/a", [Path("/nowhere/here")]) == "/nowhere/here/a"  # as an engine sees it
    for path in (f"{allowed}", f"{other}/a", f"{allowed}/out/a", "/etc/passwd", "/"):
        with pytest.raises(Forbidden):
            check_path(path, [allowed])
    for path in (
        "",
        "a",
        f"{allowed}/../x",
        f"{allowed}/a,b",
        f"{allowed}/a\nb",
        "hf://a/b",
        "~/a",
        "/" + "x" * 5000,
    ):
        with pytest.raises(Invalid):
            check_path(path, [allowed])
    with pytest.raises(ApplianceError):
        check_path(f"{allowed}/loop/a", [allowed])
    with pytest.raises(Forbidden, match="of which there are none"):
        check_path("/a", [])


def test_a_linked_folder_that_is_allowed_as_a_whole_works(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert check_path(f"{tmp_path}/link/a", [tmp_path / "link"]) == f"{tmp_path}/link/a"


def test_sources_are_kept_without_what_is_secret() -> None:
    assert shown_source("https://host/a.gguf?X-Signature=secret#x") == "https://host/a.gguf"
    assert shown_source("hf://org/adapter") == "hf://org/adapter"
    assert shown_source("org/adapter") == "org/adapter"
    for source in ("https://me:secret@host/a", "s3://key:secret@bucket/a"):
        with pytest.raises(Invalid) as raised:
            shown_source(source)
        assert "secret" not in raised.value.message


def test_the_file_of_a_folder_is_found(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="nothing"):
        adapter_file(tmp_path / "none")
    with pytest.raises(Invalid, match="no file"):
        adapter_file(tmp_path / "none.gguf")
    with pytest.raises(Invalid, match="no other adapters"):
        adapter_file(tmp_path)
    (tmp_path / "deep").mkdir()
    one = tmp_path / "deep" / "a.GGUF"
    one.write_bytes(b"x")
    assert adapter_file(tmp_path) == one == adapter_file(one)
    (tmp_path / "b.gguf").write_bytes(b"x")
    with pytest.raises(Invalid, match="several"):
        adapter_file(tmp_path)


def test_declared_adapters_are_kept_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "state" / "lora-adapters.json"
    both = {
        "a": Adapter("a", "/a", "tiny", "hf://o/a", "v", True),
        "b": Adapter("b", "/b", "tiny", is_wanted=False, leaves=("v", "w")),
    }
    assert lora_file.read(path) == {}
    lora_file.write(path, both)
    assert lora_file.read(path) == both
    assert path.stat().st_mode & 0o777 == 0o600
    for broken in (
        b"",
        b"[]",
        b'{"adapters": [{"name": "a"}]}',
        b'{"adapters": [{"name": 1, "path": "", "base_model": ""}]}',
    ):
        path.write_bytes(broken)
        assert lora_file.read(path) == {}
        assert path.read_bytes() == broken
    (tmp_path / "no folder").write_bytes(b"")
    with pytest.raises(Conflict) as raised:
        lora_file.write(tmp_path / "no folder" / "x.json", both)
    assert raised.value.code == "not_persisted"
