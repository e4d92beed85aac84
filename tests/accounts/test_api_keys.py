"""API keys as texts: form, digest, expiry, rotation."""

import hashlib

import pytest

from appliance.accounts.api_keys import (
    expiry_after_rotation_ms,
    is_key_form,
    make_key,
    read_expiry_ms,
    read_grace_s,
    read_key_name,
)
from appliance.base.errors import Invalid

NOW_S = 1_800_000_000.0


def test_new_key_has_a_public_prefix_and_256_random_bits() -> None:
    key = make_key()
    assert key.text.startswith(key.prefix + "_")
    assert is_key_form(key.text)
    assert len(key.prefix) == 12
    assert len(key.text) == 12 + 1 + 43
    assert key.digest == hashlib.sha256(key.text.encode()).digest()
    assert key.text not in repr(key)
    assert make_key().text != key.text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sk-novita",
        "apk_abc_" + "x" * 43,
        "apk_abcdefgh_short",
        "apk_abcdefgh_" + "x" * 300,
        "Apk_abcdefgh_" + "x" * 43,
        "apk_abcdefgh_" + "ü" * 43,
    ],
)
def test_texts_that_are_no_key(text: str) -> None:
    assert not is_key_form(text)


@pytest.mark.parametrize(
    ("value", "expires_at_ms"),
    [
        (None, None),
        ("", None),
        ("2030-01-31T00:00:00Z", 1_896_048_000_000),
        ("2030-01-31", 1_896_048_000_000),
        (NOW_S + 60, 1_800_000_060_000),
        ("1800000060", 1_800_000_060_000),
    ],
)
def test_expiry_is_read(value: object, expires_at_ms: int | None) -> None:
    assert read_expiry_ms(value, NOW_S) == expires_at_ms


@pytest.mark.parametrize(
    "value",
    [
        "10m",
        "tomorrow",
        NOW_S,
        NOW_S - 1,
        1e30,
        float("nan"),
        "2020-01-01T00:00:00Z",
        "9999-12-31T00:00:00Z",
        True,
        [],
        "2030-13-41T00:00:00Z",
        "1" * 64,
    ],
)
def test_expiry_that_is_refused(value: object) -> None:
    with pytest.raises(Invalid, match="expires_at: "):
        read_expiry_ms(value, NOW_S)


@pytest.mark.parametrize(
    ("expires_at_ms", "grace_s", "wanted_ms"),
    [
        (None, 0, 1_800_000_000_000),
        (None, 3600, 1_800_003_600_000),
        (1_800_000_001_000, 3600, 1_800_000_001_000),
        (1_900_000_000_000, 10, 1_800_000_010_000),
    ],
)
def test_rotation_never_prolongs_a_key(expires_at_ms: int | None, grace_s: float, wanted_ms: int) -> None:
    assert expiry_after_rotation_ms(expires_at_ms, NOW_S, grace_s) == wanted_ms


@pytest.mark.parametrize("value", [-1, "60", True, float("nan"), 2_592_001])
def test_grace_that_is_refused(value: object) -> None:
    with pytest.raises(Invalid, match="grace_s: "):
        read_grace_s(value)


@pytest.mark.parametrize("value", [None, "", " ", "a\nb", "x" * 101, 5])
def test_name_that_is_refused(value: object) -> None:
    with pytest.raises(Invalid, match="name: "):
        read_key_name(value)
