"""Names, paths and sources of adapters: what is allowed, and what a refusal says."""

from pathlib import Path

import pytest

from appliance.base.errors import Forbidden, Invalid
from appliance.engines.lora.rules import check_name, check_path, check_source, find_adapter_file, folder_name


@pytest.mark.parametrize("name", ["a", "style-v2", "org/adapter", "tiny:sql", "ä b", "x" * 128])
def test_usual_names_pass(name: str) -> None:
    assert check_name(name) == name
    assert "/" not in folder_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "x" * 129, "a,b", "a\nb", "a\x00", " a", "a ", "\u202ea"),
        *("..", ".", "a/..", "../a", "a//b", "/a", "a/", "a\\b"),
    ],
)
def test_harmful_names_are_refused(name: str) -> None:
    with pytest.raises(Invalid, match="1-128 printable characters") as raised:
        check_name(name)
    assert (raised.value.param, raised.value.code) == ("lora_name", "invalid_name")


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    """An allowed folder with links in it: to inside, to outside, and to itself."""
    folder, other = tmp_path / "allowed", tmp_path / "allowed-not"
    folder.mkdir()
    other.mkdir()
    (folder / "out").symlink_to(other)
    (folder / "in").symlink_to(folder / "a")
    (folder / "loop").symlink_to(folder / "loop")
    return folder


@pytest.mark.parametrize(
    ("path", "expected"), [("{}/a//b/./c", "{}/a/b/c"), ("{}/in", "{}/in"), ("{}/none", "{}/none")]
)
def test_paths_inside_the_folders_are_normalised(allowed: Path, path: str, expected: str) -> None:
    assert check_path(path.format(allowed), [allowed]) == expected.format(allowed)


def test_paths_need_not_exist_here() -> None:
    """An engine may see other folders."""
    assert check_path("/nowhere/here/a", [Path("/nowhere/here")]) == "/nowhere/here/a"


@pytest.mark.parametrize("path", ["{}", "{}-not/a", "{}/out/a", "{}/loop/a", "/etc/passwd", "/"])
def test_paths_outside_the_folders_are_forbidden(allowed: Path, path: str) -> None:
    with pytest.raises(Forbidden, match=r"outside the folders for adapters \(LORA_ALLOWED_DIRS\)") as raised:
        check_path(path.format(allowed), [allowed])
    assert str(allowed) in raised.value.message
    assert raised.value.code == "path_not_allowed"


def test_no_allowed_folder_is_said() -> None:
    with pytest.raises(Forbidden, match="none"):
        check_path("/a", [])


@pytest.mark.parametrize(
    "path", ["", "a", "{}/../x", "{}/a,b", "{}/a\nb", "hf://a/b", "~/a", "/" + "x" * 5000]
)
def test_malformed_paths_are_invalid(allowed: Path, path: str) -> None:
    with pytest.raises(Invalid, match="an absolute path of up to 4096 printable characters") as raised:
        check_path(path.format(allowed), [allowed], param="output_dir")
    assert (raised.value.param, raised.value.code) == ("output_dir", "invalid_path")


def test_an_allowed_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert check_path(f"{tmp_path}/link/a", [tmp_path / "link"]) == f"{tmp_path}/link/a"


def test_sources_are_stored_without_secrets() -> None:
    assert check_source("https://host/a.gguf?X-Signature=secret#x") == "https://host/a.gguf"
    assert check_source("hf://org/adapter") == "hf://org/adapter"
    assert check_source("org/adapter") == "org/adapter"


@pytest.mark.parametrize("source", ["https://me:secret@host/a", "s3://key:secret@bucket/a"])
def test_sources_with_credentials_are_refused(source: str) -> None:
    with pytest.raises(Invalid, match="must not contain credentials") as raised:
        check_source(source)
    assert "secret" not in raised.value.message


def test_the_only_gguf_file_of_a_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    one = tmp_path / "deep" / "a.GGUF"
    one.write_bytes(b"x")
    assert find_adapter_file(tmp_path) == one == find_adapter_file(one)


@pytest.mark.parametrize(
    ("files", "path", "text"),
    [
        ([], "none", "Folder not found"),
        ([], "none.gguf", "File not found"),
        (["adapter.bin"], "", "no .gguf file"),
        (["a.gguf", "b.gguf"], "", "several .gguf files"),
    ],
)
def test_other_than_one_file_is_refused(tmp_path: Path, files: list[str], path: str, text: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(Invalid, match=text) as raised:
        find_adapter_file(tmp_path / path)
    assert (raised.value.param, raised.value.code) == ("lora_path", "adapter_not_found")
