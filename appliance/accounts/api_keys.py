"""API keys as texts: how they are made, recognised and stored; when they expire. Nothing here is kept.

A key is `apk_`, 8 letters that may be shown, `_`, and random bytes as base64url. Stored is its SHA-256: the
key itself is random (256 bits), so there is nothing to guess that a slow hash would protect, and a fast one
can be looked up.
"""

import hashlib
import re
import secrets
import string
from dataclasses import dataclass
from typing import Final

from appliance.accounts.user_forms import read_name
from appliance.base.clock import parse_moment_s
from appliance.base.errors import Invalid

START: Final = "apk_"
PREFIX_LETTERS: Final = 8
MIN_RANDOM_BYTES: Final = 16
MAX_KEY_CHARACTERS: Final = 512
MAX_NAME_CHARACTERS: Final = 100
MAX_GRACE_S: Final = 30 * 86_400
MAX_EXPIRY_S: Final = 10 * 366 * 86_400
_ABSOLUTE: Final = re.compile(r"\d[\d:.+TtZz -]{3,63}")  # no "10m": that would be in the past
_FORM: Final = re.compile(r"apk_[A-Za-z]{8}_[A-Za-z0-9_-]{22,256}")


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made. The text is shown once and kept nowhere.

    Attributes:
        text: The whole key.
        prefix: Its public part, `apk_` and the letters.
        digest: SHA-256 of the text, 32 bytes.
    """

    text: str
    prefix: str
    digest: bytes

    def __repr__(self) -> str:
        return f"NewKey({self.prefix})"


def make_key(random_bytes: int = 32) -> NewKey:
    """Make a key.

    Args:
        random_bytes: API_KEY_LENGTH, at least 16.
    """
    letters = "".join(secrets.choice(string.ascii_letters) for _ in range(PREFIX_LETTERS))
    prefix = START + letters
    text = f"{prefix}_{secrets.token_urlsafe(max(random_bytes, MIN_RANDOM_BYTES))}"
    return NewKey(text, prefix, digest_of(text))


def digest_of(text: str) -> bytes:
    """Return what is stored of a key or token: its SHA-256, 32 bytes."""
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()


def is_key_form(text: str) -> bool:
    """Whether a text can be one of our keys: others need not be looked up."""
    return _FORM.fullmatch(text) is not None


def read_key_name(value: object) -> str:
    """Read the name that a user gives to a key.

    Raises:
        Invalid: It is no printable text of 1 to 100 characters.
    """
    return read_name(value, most=MAX_NAME_CHARACTERS)


def read_expiry_ms(value: object, now_s: float) -> int | None:
    """Read when a key expires: RFC 3339, or seconds since 1970; None = never.

    Args:
        now_s: Seconds since 1970.

    Returns:
        Milliseconds since 1970.

    Raises:
        Invalid: It is no moment, not in the future, or more than 10 years away.
    """
    if value is None or value == "":
        return None
    at_s: float | None = None
    if isinstance(value, str) and _ABSOLUTE.fullmatch(value):
        at_s = _parse_s(value, now_s)
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12:
        at_s = float(value)
    if at_s is None or not now_s < at_s <= now_s + MAX_EXPIRY_S:
        raise Invalid(
            f"expires_at: {repr(value)[:60]} is not allowed: a moment in the future, at most 10 years away, "
            "such as 2030-01-31T00:00:00Z, or seconds since 1970.",
            param="expires_at",
        )
    return round(at_s * 1000)


def _parse_s(text: str, now_s: float) -> float | None:
    try:
        return parse_moment_s(text, now_s)
    except (ValueError, OverflowError):
        return None


def read_grace_s(value: object) -> float:
    """Read for how long an old key goes on working after a rotation; None = not at all.

    Returns:
        Seconds, 0 to 2592000 (30 days).

    Raises:
        Invalid: It is no such number.
    """
    if value is None:
        return 0.0
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_GRACE_S:
        return float(value)
    raise Invalid(
        f"grace_s: {repr(value)[:60]} is not allowed: seconds from 0 to {MAX_GRACE_S} (30 days).",
        param="grace_s",
    )


def expiry_after_rotation_ms(expires_at_ms: int | None, now_s: float, grace_s: float) -> int:
    """Return when a rotated key expires: after the grace, or earlier where it would have expired anyway.

    Args:
        expires_at_ms: When it expires now, milliseconds since 1970; None = never.
        now_s: Seconds since 1970.
        grace_s: For how long it goes on working, in seconds.
    """
    ends_ms = round((now_s + grace_s) * 1000)
    return ends_ms if expires_at_ms is None else min(ends_ms, expires_at_ms)
