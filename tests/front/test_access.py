"""Who may call: each case of the rules, with and without keys."""

import pytest

from appliance.base.errors import Forbidden, Unauthenticated
from appliance.front.pipeline.access import Access, Keys, read_key
from appliance.front.pipeline.origins import is_loopback
from appliance.front.settings import FrontSettings

CLIENT, OPERATOR, OTHER = "client-key-1", "operator-key-1", "other-key-1"
HERE, THERE = "127.0.0.1", "10.0.0.9"
NO_KEYS: dict[str, str] = {}
CLIENT_ONLY = {"appliance_api_keys": CLIENT}
BOTH = {"appliance_api_keys": CLIENT, "operator_api_keys": OPERATOR}
PASS = ""


def keys(settings: dict[str, str]) -> Keys:
    return Keys(FrontSettings(_env_file=None, **settings))


@pytest.mark.parametrize(
    ("access", "settings", "key", "peer", "refusal"),
    [
        # 1. a public address is open
        (Access.PUBLIC, BOTH, "", THERE, PASS),
        # 2. a client address without keys is open
        (Access.CLIENT, NO_KEYS, "", THERE, PASS),
        (Access.CLIENT, {"operator_api_keys": OPERATOR}, "", THERE, PASS),
        # 3. an operator address with operator keys
        (Access.OPERATOR, BOTH, OPERATOR, THERE, PASS),
        (Access.OPERATOR, BOTH, CLIENT, THERE, "needs a key of OPERATOR_API_KEYS"),
        (Access.OPERATOR, BOTH, CLIENT, HERE, "needs a key of OPERATOR_API_KEYS"),
        (Access.OPERATOR, BOTH, OTHER, THERE, "Unknown API key"),
        (Access.OPERATOR, BOTH, "", HERE, "No API key"),
        # 4. an operator address with client keys alone
        (Access.OPERATOR, CLIENT_ONLY, CLIENT, THERE, PASS),
        (Access.OPERATOR, CLIENT_ONLY, OTHER, THERE, "Unknown API key"),
        (Access.OPERATOR, CLIENT_ONLY, "", HERE, "No API key"),
        # 5. an operator address without any key
        (Access.OPERATOR, NO_KEYS, "", HERE, PASS),
        (Access.OPERATOR, NO_KEYS, "", "unix", PASS),
        (Access.OPERATOR, NO_KEYS, OTHER, HERE, PASS),
        (Access.OPERATOR, NO_KEYS, OTHER, THERE, "open to callers on this machine only"),
        # 6. a client address with keys
        (Access.CLIENT, BOTH, CLIENT, THERE, PASS),
        (Access.CLIENT, BOTH, OPERATOR, THERE, PASS),
        (Access.CLIENT, BOTH, OTHER, THERE, "Unknown API key"),
        (Access.CLIENT, BOTH, "", HERE, "No API key. Send it as `Authorization: Bearer KEY`"),
    ],
)
def test_access_by_address_keys_and_caller(
    access: Access, settings: dict[str, str], key: str, peer: str, refusal: str
) -> None:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    if refusal == PASS:
        keys(settings).check(access, headers, peer)
        return
    with pytest.raises((Unauthenticated, Forbidden), match=refusal):
        keys(settings).check(access, headers, peer)


@pytest.mark.parametrize(
    ("headers", "is_open"),
    [
        ({"host": "localhost:14000"}, True),
        ({"host": "127.0.0.1:14000"}, True),
        ({"host": "[::1]:14000"}, True),
        ({"host": "box.local"}, True),
        ({"host": "evil.example:14000"}, False),
        ({"host": "evil.example"}, False),
        ({"origin": "https://evil.example"}, False),
        ({"origin": "https://app.example", "host": "localhost"}, True),  # an origin of CORS_ORIGINS
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "same-origin"}, True),
        ({"x-forwarded-for": "10.0.0.9"}, False),
        ({"forwarded": "for=10.0.0.9"}, False),
        ({"x-real-ip": "10.0.0.9"}, False),
        ({"via": "1.1 proxy"}, False),
    ],
)
def test_loopback_does_not_admit_pages_of_other_sites_or_proxies(
    headers: dict[str, str], is_open: bool
) -> None:
    own = keys({"cors_origins": "https://app.example"})
    if is_open:
        own.check(Access.OPERATOR, headers, HERE)
        return
    with pytest.raises(Forbidden, match="closed to pages of other sites and to proxies") as caught:
        own.check(Access.OPERATOR, headers, HERE)
    assert caught.value.code == "operator_only"


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({}, ""),
        ({"authorization": "Bearer abc"}, "abc"),
        ({"authorization": "bearer  abc "}, "abc"),
        ({"authorization": "Basic abc"}, ""),
        ({"authorization": "Bearer "}, ""),
        ({"x-api-key": " abc "}, "abc"),
        ({"authorization": "Basic x", "x-api-key": "abc"}, "abc"),
        ({"authorization": "Bearer abc", "x-api-key": "def"}, "abc"),
    ],
)
def test_a_key_comes_in_either_header(headers: dict[str, str], key: str) -> None:
    assert read_key(headers) == key


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("unix", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("fe80::1%eth0", False),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("localhost", False),
        ("", False),
    ],
)
def test_loopback_addresses(peer: str, expected: bool) -> None:
    assert is_loopback(peer) is expected


def test_only_named_keys_must_stay_local() -> None:
    own = keys({"appliance_api_keys": f"{CLIENT},{OTHER}", "stay_local_api_keys": OTHER})
    assert own.must_stay_local({"x-api-key": OTHER})
    assert not own.must_stay_local({"x-api-key": CLIENT})
    assert not own.must_stay_local({})


def test_without_client_keys_the_models_are_open() -> None:
    assert keys(NO_KEYS).is_open
    assert not keys(CLIENT_ONLY).is_open


def test_a_key_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="a key is shorter than 8 characters; use long random keys"):
        keys({"appliance_api_keys": "long-enough-1,short"})
