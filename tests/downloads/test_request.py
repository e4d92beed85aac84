"""What callers request: parsed, checked, and refused without repeating a secret."""

from pathlib import Path
from typing import Any

import pytest

from appliance.base.errors import Forbidden, Invalid
from appliance.downloads.contract import DownloadRequest
from appliance.downloads.request import (
    DownloadFolders,
    credential_names,
    default_folder,
    find_missing_credentials,
    parse_config,
    parse_download_request,
    parse_max_workers,
    parse_source,
    public_config,
    secret_texts,
)


@pytest.fixture
def folders(tmp_path: Path) -> DownloadFolders:
    for name in ("home", "other", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "home" / "link").symlink_to(tmp_path / "outside")
    return DownloadFolders(tmp_path / "home", (tmp_path / "other",))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ns/repo", "hf://ns/repo"),
        ("hf://ns/repo/", "hf://ns/repo"),
        ("S3://Bucket/Path", "s3://Bucket/Path"),
        (" pvc:///a/b ", "pvc:///a/b"),
        ("hf://ns/repo@main", "hf://ns/repo@main"),
    ],
)
def test_sources_are_given_their_scheme(given: str, expected: str) -> None:
    assert parse_source(given) == expected


@pytest.mark.parametrize(
    "source", ["", "  ", "s3://key:topsecret@bucket/a", "https://user@host/x", "a b", "x" * 3000, "hf://a\nb"]
)
def test_bad_sources_are_refused_and_not_repeated(source: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_source(source)
    assert caught.value.param == "source"
    assert "topsecret" not in caught.value.message


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {}),
        ("", {}),
        ({}, {}),
        ("{}", {}),
        ('{"hf_token": "t", "d": true}', {"hf_token": "t", "d": "true"}),
        ('{"hf_token": "t"}', {"hf_token": "t"}),
        ({"a": 1, "b": True, "c": None, "d": ""}, {"a": "1", "b": "true"}),
        ({"include": ["*.gguf", "*.json"]}, {"include": "*.gguf,*.json"}),
    ],
)
def test_config_is_an_object_or_its_text(given: Any, expected: dict[str, str]) -> None:
    assert parse_config(given) == expected


@pytest.mark.parametrize(
    "config",
    [
        "{topsecret",
        "[1]",
        '"x"',
        3,
        ["x"],
        {"hf_token": {"x": "topsecret"}},
        {"a": ["topsecret"]},
        {"endpoint": "http://user:topsecret@minio:9000"},
        {"a": float("nan")},
    ],
)
def test_config_of_another_kind_is_refused_and_not_repeated(config: Any) -> None:
    with pytest.raises(Invalid) as caught:
        parse_config(config)
    assert str(caught.value.param).startswith("config")
    assert "topsecret" not in caught.value.message


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a/b", "home/a/b"),
        ("{0}/home", "home"),
        ("{0}/other/x", "other/x"),
        ("{0}/home/../other", "other"),
        (".", "home"),
    ],
)
def test_folders_below_the_allowed_ones_are_taken(
    folders: DownloadFolders, tmp_path: Path, given: str, expected: str
) -> None:
    assert (
        parse_download_request("ns/a", given.format(tmp_path), folders=folders).output_dir
        == tmp_path / expected
    )


@pytest.mark.parametrize("given", ["{0}/outside", "../outside", "/etc", "link/x", "{0}/homeless", "/"])
def test_folders_outside_are_forbidden(folders: DownloadFolders, tmp_path: Path, given: str) -> None:
    with pytest.raises(Forbidden, match="DOWNLOAD_ALLOWED_DIRS") as caught:
        parse_download_request("ns/a", given.format(tmp_path), folders=folders)
    assert (caught.value.param, caught.value.code) == ("output_dir", "outside_allowed_folders")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"source": None}, "source"),
        ({"source": ""}, "source"),
        ({"output_dir": None}, "output_dir"),
        ({"output_dir": "a\0b"}, "output_dir"),
        ({"output_dir": "~/x"}, "output_dir"),
        ({"output_dir": "~root/x"}, "output_dir"),
        ({"max_workers": 0}, "max_workers"),
        ({"max_workers": 65}, "max_workers"),
        ({"config": "{"}, "config"),
    ],
)
def test_what_is_missing_or_out_of_range_is_named(
    folders: DownloadFolders, fields: dict[str, Any], param: str
) -> None:
    asked = {"source": "ns/a", "output_dir": "a", **fields}
    with pytest.raises(Invalid) as caught:
        parse_download_request(asked.pop("source"), asked.pop("output_dir"), folders=folders, **asked)
    assert caught.value.param == param


def test_a_path_that_cannot_be_resolved_is_refused(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(Invalid, match="`output_dir` cannot be used: ") as caught:
        DownloadFolders(tmp_path).resolve_folder("circle/x")
    assert caught.value.param == "output_dir"


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        ("hf://ns/repo", "hf/ns/repo"),
        ("s3://bucket/a/../b?sig=x", "s3/bucket/a/b"),
        ("https://h/x.gguf?sig=1", "https/h/x.gguf"),
    ],
)
def test_a_source_without_folder_gets_one(source: str, folder: str) -> None:
    assert default_folder(source) == folder


@pytest.mark.parametrize(("given", "workers"), [(None, 8), (1, 1), (64, 64)])
def test_workers_have_a_default(given: int | None, workers: int) -> None:
    assert parse_max_workers(given) == workers


def test_secrets_of_a_request_are_named_and_collected() -> None:
    request = DownloadRequest(
        "https://h/x?sig=topsecret",
        Path("/x"),
        config={"hf_token": "hf_secret", "revision": "v1", "odd": "abc"},
    )
    assert public_config(request.config) == {"revision": "v1"}
    assert credential_names(request) == ("hf_token", "odd", "the query of its address")
    assert secret_texts(request)[0] == "sig=topsecret"
    assert set(secret_texts(request)) == {"sig=topsecret", "hf_secret", "topsecret"}


@pytest.mark.parametrize(
    ("needs", "there", "missing"),
    [
        ((), (), []),
        (("hf_token",), ("HF_AUTH_TOKEN",), []),
        (("hf_token",), (), ["hf_token (HF_AUTH_TOKEN)"]),
        (("access_key", "secret_key"), ("ACCESS_KEY",), ["secret_key (SECRET_KEY)"]),
        (("the query of its address",), ("HF_AUTH_TOKEN",), ["the query of its address"]),
    ],
)
def test_missing_credentials_name_their_variable(
    needs: tuple[str, ...], there: tuple[str, ...], missing: list[str]
) -> None:
    assert find_missing_credentials(needs, there.__contains__) == missing
