"""Addresses, tokens, and the texts of failures."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from appliance.cli.client import (
    CallFailed,
    ControlClient,
    ServerAddress,
    default_address,
    parse_address,
    read_token,
)


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
def test_an_invalid_address_is_wrong_usage(given: str) -> None:
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
def test_the_default_address_follows_the_environment(environ: dict[str, str], expected: str) -> None:
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
def test_an_unreadable_token_is_wrong_usage(environ: dict[str, str]) -> None:
    text = "are both set. Unset one" if "CONTROL_TOKEN" in environ else "Cannot read CONTROL_TOKEN_FILE="
    with pytest.raises(CallFailed, match=text) as caught:
        read_token(environ)
    assert caught.value.exit_code == 2
    assert "secret-token" not in caught.value.message


class FakeError(Exception):
    """What gRPC raises for a failed call."""

    def __init__(self, code: grpc.StatusCode, text: str, *, is_ours: bool = False) -> None:
        self._code, self._text = code, text
        self._trailers = (("grpc-status-details-bin", b""),) if is_ours else ()

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._text

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return self._trailers


CODES = grpc.StatusCode
TLS = {"tls_ca": Path("/ca.pem")}


@pytest.mark.parametrize(
    ("server", "error", "exit_code", "text"),
    [
        ({}, FakeError(CODES.UNAUTHENTICATED, "No token."), 4, "No token. Set CONTROL_TOKEN or"),
        ({"token": "t"}, FakeError(CODES.PERMISSION_DENIED, "No."), 4, "No."),
        ({}, FakeError(CODES.NOT_FOUND, "There is none.", is_ours=True), 1, "There is none."),
        ({}, FakeError(CODES.UNAVAILABLE, "busy", is_ours=True), 1, "busy"),
        ({}, FakeError(CODES.UNAVAILABLE, "refused"), 3, "No appliance responds at box:1. Check that"),
        (TLS, FakeError(CODES.UNAVAILABLE, "SSL error"), 3, "The TLS handshake with box:1 failed."),
        ({}, FakeError(CODES.DEADLINE_EXCEEDED, ""), 3, "No response from box:1 in time (--timeout)."),
        ({}, FakeError(CODES.UNIMPLEMENTED, "what"), 1, "The call failed with UNIMPLEMENTED: what"),
    ],
)
def test_a_failure_is_one_sentence_with_an_exit_code(
    server: dict[str, Any], error: FakeError, exit_code: int, text: str
) -> None:
    failure = ControlClient(ServerAddress("box:1", **server))._failure(error)
    assert failure.exit_code == exit_code
    assert failure.message.startswith(text)


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({"tls_cert": Path("/c.pem")}, "--tls-cert and --tls-key must be given together."),
        ({"tls_ca": Path("/no/such.pem")}, "Cannot read /no/such.pem"),
    ],
)
def test_tls_files_that_cannot_be_used_are_wrong_usage(files: dict[str, Path], text: str) -> None:
    with pytest.raises(CallFailed) as caught:
        _ = ControlClient(ServerAddress("127.0.0.1:1", **files)).stub  # type: ignore[arg-type]
    assert (caught.value.exit_code, caught.value.message.startswith(text)) == (2, True)


def test_a_token_without_tls_is_warned_about(capsys: pytest.CaptureFixture[str]) -> None:
    with ControlClient(ServerAddress("box.example:1", token="t")) as client:
        assert client.stub is client.stub
    assert "the token is sent to box.example:1 without TLS" in capsys.readouterr().err
