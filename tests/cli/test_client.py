"""Addresses, tokens and the sentences of failures."""

from pathlib import Path

import pytest

from appliance.cli.client import CallFailed, default_address, parse_address, read_token


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("127.0.0.1:50051", "127.0.0.1:50051"),
        ("box.example:1", "box.example:1"),
        ("[::1]:50051", "[::1]:50051"),
        ("unix:/run/c.sock", "unix:/run/c.sock"),
        ("unix:///run/c.sock", "unix:/run/c.sock"),
        ("/run/c.sock", "unix:/run/c.sock"),
    ],
)
def test_addresses_are_read(given: str, expected: str) -> None:
    assert parse_address(given) == expected


@pytest.mark.parametrize(
    "given", ["", "box", "box:", ":50051", "box:0", "box:65536", "box:http", "http://box:50051"]
)
def test_what_is_no_address_is_wrong_usage(given: str) -> None:
    with pytest.raises(CallFailed, match="host:port") as caught:
        parse_address(given)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "127.0.0.1:50051"),
        ({"CONTROL_PORT": "6000"}, "127.0.0.1:6000"),
        ({"CONTROL_PORT": "0", "CONTROL_SOCKET": "/run/c.sock"}, "unix:/run/c.sock"),
        ({"CONTROL_PORT": "6000", "CONTROL_SOCKET": "/run/c.sock"}, "127.0.0.1:6000"),
        ({"CONTROL_ADDRESS": "box:1", "CONTROL_PORT": "6000"}, "box:1"),
    ],
)
def test_the_default_address_is_that_of_an_appliance_with_the_same_environment(
    environ: dict[str, str], expected: str
) -> None:
    assert default_address(environ) == expected


def test_the_token_comes_from_its_variable_or_its_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("from-the-file\n")
    assert read_token({}) == ""
    assert read_token({"CONTROL_TOKEN": "given"}) == "given"
    assert read_token({"CONTROL_TOKEN_FILE": str(path)}) == "from-the-file"


@pytest.mark.parametrize(
    "environ",
    [
        {"CONTROL_TOKEN": "secret-token", "CONTROL_TOKEN_FILE": "/x"},
        {"CONTROL_TOKEN_FILE": "/does/not/exist"},
    ],
)
def test_a_token_that_cannot_be_had_is_wrong_usage(environ: dict[str, str]) -> None:
    with pytest.raises(CallFailed, match="CONTROL_TOKEN_FILE") as caught:
        read_token(environ)
    assert caught.value.exit_code == 2
    assert "secret-token" not in caught.value.message
