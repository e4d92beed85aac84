"""Who may call, and which settings are safe."""

from pathlib import Path

import pytest
import trustme

from appliance.base.errors import Unauthenticated
from appliance.control.guard import Guard, is_loopback, problems
from tests.control.fake_appliance import control_settings

TOKEN = "a-long-random-token"


@pytest.mark.parametrize(
    "metadata",
    [
        [("authorization", f"Bearer {TOKEN}")],
        [("authorization", f"bearer  {TOKEN} ")],
        [("x-api-key", TOKEN)],
        [("x-api-key", "wrong"), ("authorization", f"Bearer {TOKEN}")],
        [("x-api-key", TOKEN.encode())],
    ],
)
def test_a_caller_with_the_token_passes(metadata: list[tuple[str, str]]) -> None:
    Guard(TOKEN).check(metadata)


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("authorization", TOKEN)],
        [("authorization", f"Basic {TOKEN}")],
        [("authorization", "Bearer wrong-token-altogether")],
        [("authorization", f"Bearer {TOKEN}x")],
        [("authorization", "Bearer ")],
        [("x-api-key", "")],
        [("x-token", TOKEN)],
        [("x-api-key", "ü")],
    ],
)
def test_a_wrong_token_is_refused_and_not_repeated(
    metadata: list[tuple[str, str]],
) -> None:
    with pytest.raises(Unauthenticated) as caught:
        Guard(TOKEN).check(metadata)
    assert TOKEN not in caught.value.message
    assert "wrong" not in caught.value.message
    text = "The token does not match CONTROL_TOKEN." if is_token_sent(metadata) else "A token is required:"
    assert text in caught.value.message


def is_token_sent(metadata: list[tuple[str, str]]) -> bool:
    return any(key == "x-api-key" or value.startswith("Bearer ") for key, value in metadata)


def test_without_a_token_every_caller_passes() -> None:
    Guard("").check([])


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("box.example", False),
        ("", False),
    ],
)
def test_loopback_addresses_are_recognised(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a CA and a pair, and another pair's key."""
    folder = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("one", "two"):
        cert = ca.issue_cert("127.0.0.1")
        cert.private_key_pem.write_to_path(folder / f"{name}.key")
        cert.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    (folder / "rubbish").write_text("no PEM\n")
    return folder


def reported(**values: object) -> list[tuple[str, bool]]:
    return [(p.variable, p.is_fatal) for p in problems(control_settings(**values))]


def test_the_defaults_are_safe() -> None:
    assert reported(control_port=50051) == []


def test_a_control_api_that_is_off_has_no_problems() -> None:
    assert reported(control=False, control_host="0.0.0.0", control_port=50051) == []


def test_beyond_loopback_without_authentication_is_refused() -> None:
    (problem,) = problems(control_settings(control_host="0.0.0.0", control_port=50051))
    assert problem.is_fatal
    assert "CONTROL_TOKEN" in problem.remedy
    assert "CONTROL_TLS_CLIENT_CA" in problem.remedy


def test_a_socket_alone_is_not_beyond_loopback() -> None:
    assert reported(control_host="0.0.0.0", control_port=0, control_socket=Path("/run/c.sock")) == []


def test_a_token_without_tls_beyond_loopback_is_a_warning() -> None:
    (problem,) = problems(control_settings(control_host="0.0.0.0", control_port=50051, control_token=TOKEN))
    assert not problem.is_fatal
    assert "read from the traffic" in problem.remedy
    assert TOKEN not in str(problem)


def test_tls_with_a_token_and_mutual_tls_are_both_fine(tls: Path) -> None:
    pair = {
        "control_host": "0.0.0.0",
        "control_port": 50051,
        "control_tls_cert": tls / "one.pem",
        "control_tls_key": tls / "one.key",
    }
    assert reported(**pair, control_token=TOKEN) == []
    assert reported(**pair, control_tls_client_ca=tls / "ca.pem") == []
    assert reported(**pair) == [("CONTROL_HOST", True)]


def test_tls_files_that_do_not_match_are_named(tls: Path) -> None:
    one = {"control_tls_cert": tls / "one.pem", "control_tls_key": tls / "one.key"}
    assert reported(control_tls_cert=tls / "one.pem") == [("CONTROL_TLS_KEY", True)]
    assert reported(control_tls_key=tls / "one.key") == [("CONTROL_TLS_CERT", True)]
    assert reported(control_tls_client_ca=tls / "ca.pem") == [("CONTROL_TLS_CERT", True)]
    assert reported(**{**one, "control_tls_key": tls / "two.key"}) == [("CONTROL_TLS_CERT", True)]
    assert reported(**{**one, "control_tls_cert": tls / "rubbish"}) == [("CONTROL_TLS_CERT", True)]
    assert reported(**one, control_tls_client_ca=tls / "rubbish") == [("CONTROL_TLS_CLIENT_CA", True)]
    assert reported(**{**one, "control_tls_cert": tls / "missing"}, control_tls_client_ca=tls) == [
        ("CONTROL_TLS_CERT", True),
        ("CONTROL_TLS_CLIENT_CA", True),
    ]


@pytest.mark.parametrize("token", ["tiny", "ünïcödé-token", "with a blank in it", "line\nbreak-token"])
def test_an_unusable_token_is_refused_and_not_shown(token: str) -> None:
    (problem,) = problems(control_settings(control_token=token))
    assert (problem.variable, problem.is_fatal) == ("CONTROL_TOKEN", True)
    assert token not in str(problem)


@pytest.mark.parametrize("path", [Path("relative.sock"), Path("/" + "x" * 107)])
def test_an_impossible_socket_path_is_refused(path: Path) -> None:
    assert reported(control_socket=path) == [("CONTROL_SOCKET", True)]
