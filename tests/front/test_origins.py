"""Which pages and host names may call without a key: each case of the rules."""

import pytest

from appliance.base.errors import Forbidden
from appliance.front.pipeline.access import Access, Keys
from appliance.front.pipeline.origins import MAX_KNOWN, Origins, split_host, split_origin
from appliance.front.settings import FrontSettings

HERE, THERE = "127.0.0.1", "10.0.0.9"
NAMED = {"cors_origins": "https://app.example"}
LISTED = {"allowed_hosts": "gpu.example, *.lan.example"}
REBOUND = "evil.example:14000"


def settings(values: dict[str, str]) -> FrontSettings:
    return FrontSettings(_env_file=None, **values)


@pytest.mark.parametrize(
    ("values", "host", "origin", "peer", "refusal"),
    [
        # 1. every origin is named
        ({"cors_origins": "*"}, "localhost", "https://evil.example", HERE, ""),
        ({"cors_origins": "*"}, REBOUND, "https://evil.example", HERE, ""),
        # 2. over loopback, by a name that is not this machine's
        ({}, REBOUND, None, HERE, "the host name 'evil.example:14000' are refused"),
        ({}, REBOUND, f"http://{REBOUND}", HERE, "are refused on this machine"),
        ({}, REBOUND, None, "unix", "are refused on this machine"),
        ({}, "127.0.0.1.evil.example", None, HERE, "are refused"),
        ({}, "127.1.evil", None, HERE, "are refused"),
        ({}, "localhost.evil.example:80", None, HERE, "are refused"),
        ({}, "evil.example@127.0.0.1", None, HERE, "are refused"),
        # not over loopback: DNS rebinding of a GET reads no more than any caller
        ({}, REBOUND, None, THERE, ""),
        (LISTED, REBOUND, None, HERE, "ALLOWED_HOSTS, or set APPLIANCE_API_KEYS"),
        (LISTED, "gpu.example:14000", None, HERE, ""),
        (LISTED, "GPU.example.", None, HERE, ""),
        (LISTED, "a.lan.example", None, HERE, ""),
        (LISTED, "lan.example", None, HERE, "are refused"),
        ({"allowed_hosts": "*"}, REBOUND, None, HERE, ""),
        (NAMED, "app.example", None, HERE, ""),
        (NAMED, REBOUND, "https://app.example", HERE, ""),
        # 3. no page
        ({}, "localhost:14000", None, HERE, ""),
        ({}, "127.0.0.1:14000", None, HERE, ""),
        ({}, "[::1]:14000", None, HERE, ""),
        ({}, "192.168.1.7:14000", None, HERE, ""),
        ({}, "gpu-box", None, HERE, ""),
        ({}, "gpu-box.local:14000", None, HERE, ""),
        ({}, "", None, HERE, ""),
        # 4. a page of a named origin, or of our own
        (NAMED, "localhost:14000", "https://app.example", HERE, ""),
        (NAMED, "localhost:14000", "https://app.example:8443", HERE, "pages of 'https://app.example:8443'"),
        ({}, "gpu-box:14000", "http://gpu-box:14000", THERE, ""),
        ({}, "192.168.1.7", "http://192.168.1.7:80", THERE, ""),
        ({}, "192.168.1.7", "https://192.168.1.7", THERE, ""),
        ({}, "192.168.1.7:14000", "http://192.168.1.7:8080", THERE, "may not call"),
        ({}, REBOUND, f"http://{REBOUND}", THERE, "may not call"),
        # 5. a page or a program of this machine
        ({}, "localhost:14000", "http://localhost:3000", HERE, ""),
        ({}, "localhost:14000", "http://127.0.0.1:3000", HERE, ""),
        ({}, "localhost:14000", "http://[::1]:3000", HERE, ""),
        ({}, "localhost:14000", "vscode-webview://abc", HERE, ""),
        ({}, "localhost:14000", "tauri://localhost", HERE, ""),
        (LISTED, "localhost:14000", "https://gpu.example", HERE, ""),
        # 6. any other page
        ({}, "localhost:14000", "https://evil.example", HERE, "pages of 'https://evil.example' may not call"),
        ({}, "localhost:14000", "http://evil.example:14000", THERE, "may not call"),
        ({}, "localhost:14000", "http://127.0.0.1.evil.example", HERE, "may not call"),
        ({}, "localhost:14000", "http://127.evil.example", HERE, "may not call"),
        ({}, "localhost:14000", "null", HERE, "pages of 'null' may not call"),
        ({}, "localhost:14000", "", HERE, "may not call"),
        ({}, "localhost:14000", "HTTPS://EVIL.EXAMPLE", HERE, "may not call"),
    ],
)
def test_callers_without_a_key(
    values: dict[str, str], host: str, origin: str | None, peer: str, refusal: str
) -> None:
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    keys = Keys(settings(values))
    for _ in range(2):  # the second time from what is known
        if not refusal:
            keys.check(Access.CLIENT, headers, peer)
            continue
        with pytest.raises(Forbidden, match=refusal.replace("*", r"\*")):
            keys.check(Access.CLIENT, headers, peer)
    keys.check(Access.PUBLIC, headers, peer)
    assert keys.may_see_details(headers, peer) is not bool(refusal)


@pytest.mark.parametrize(
    ("values", "host", "origin", "is_open"),
    [
        ({}, "localhost:14000", None, True),
        ({}, "localhost:14000", "http://localhost:14000", True),
        ({}, "127.0.0.1:14000", "http://127.0.0.1:14000", True),
        ({}, "localhost:14000", "http://localhost:3000", False),
        ({}, REBOUND, f"http://{REBOUND}", False),
        ({"cors_origins": "*"}, "localhost:14000", "https://evil.example", False),
        ({"cors_origins": "*"}, REBOUND, None, False),
        ({"allowed_hosts": "*"}, REBOUND, f"http://{REBOUND}", False),
        ({"allowed_hosts": "*"}, REBOUND, None, False),
        (LISTED, "gpu.example", "https://gpu.example", True),
        (LISTED, "localhost", "https://gpu.example", False),
        (NAMED, "localhost:14000", "https://app.example", True),
    ],
)
def test_a_setting_for_all_opens_no_operator_address(
    values: dict[str, str], host: str, origin: str | None, is_open: bool
) -> None:
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    if is_open:
        Keys(settings(values)).check(Access.OPERATOR, headers, HERE)
        return
    with pytest.raises(Forbidden, match="closed to pages of other sites and to proxies"):
        Keys(settings(values)).check(Access.OPERATOR, headers, HERE)


@pytest.mark.parametrize("key", ["client-key-1", "operator-key-1"])
def test_where_keys_are_set_host_and_origin_do_not_matter(key: str) -> None:
    keys = Keys(settings({"appliance_api_keys": "client-key-1", "operator_api_keys": "operator-key-1"}))
    headers = {"host": REBOUND, "origin": "https://evil.example", "x-api-key": key}
    keys.check(Access.CLIENT, headers, HERE)
    assert keys.may_see_details(headers, HERE)
    assert not keys.may_see_details({"host": "localhost"}, HERE)
    assert not keys.may_see_details({"host": "localhost", "x-api-key": "other"}, HERE)


def test_what_is_known_of_hosts_is_bounded() -> None:
    origins = Origins(settings({}))
    for number in range(MAX_KNOWN * 2):
        assert origins.is_own_host(f"localhost:{number}")
    assert len(origins._known) == MAX_KNOWN


@pytest.mark.parametrize(
    ("host", "parts"),
    [
        ("a:1", ("a", "1")),
        ("a", ("a", "")),
        ("a.:1", ("a", "1")),
        ("[::1]:1", ("::1", "1")),
        ("[::1]", ("::1", "")),
        ("", ("", "")),
    ],
)
def test_a_host_is_split(host: str, parts: tuple[str, str]) -> None:
    assert split_host(host) == parts
    assert split_origin("http://" + host) == ("http", *parts)


def test_an_origin_that_is_none_has_no_parts() -> None:
    assert split_origin("null") == split_origin("") == ("", "", "")
