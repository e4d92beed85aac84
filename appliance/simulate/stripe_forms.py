"""How Stripe's forms are read: `metadata[payment_id]=7&line_items[0][quantity]=1`. Pure."""

import re
from typing import Any

from appliance.base.errors import Invalid
from appliance.base.money import shorten

_NAME = re.compile(r"([a-z_0-9]{1,80})((?:\[[A-Za-z_0-9.-]{0,80}\])*)", re.ASCII)
_PART = re.compile(r"\[([^\]]*)\]")
LEAST_CENTS, MAX_CENTS = 50, 99_999_999  # of a payment
MAX_DEPTH = 6
MAX_METADATA = 50
MAX_VALUE = 500


def nest(fields: dict[str, str]) -> dict[str, Any]:
    """Return a form's fields as objects within objects; the parts of a list are named by numbers.

    Raises:
        Invalid: A name is none of a form of Stripe.
    """
    root: dict[str, Any] = {}
    for name, value in fields.items():
        match = _NAME.fullmatch(name)
        parts = [match[1], *_PART.findall(match[2])] if match is not None else []
        if not parts or len(parts) > MAX_DEPTH:
            raise Invalid(f"Invalid parameter name {shorten(name)}", param=name[:80])
        place = root
        for part in parts[:-1]:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise Invalid(f"Invalid parameter {shorten(name)}: it is a value elsewhere", param=name[:80])
        if isinstance(place.get(parts[-1]), dict):
            raise Invalid(f"Invalid parameter {shorten(name)}: it is an object elsewhere", param=name[:80])
        place[parts[-1]] = value
    return root


def read_whole(form: dict[str, Any], name: str, *, least: int, most: int) -> int:
    """Read a whole number, such as an amount in cents.

    Raises:
        Invalid: It is missing or none.
    """
    value = form.get(name)
    if value is None:
        raise Invalid(f"Missing required param: {name}.", param=name)
    if not isinstance(value, str) or not re.fullmatch(r"-?\d{1,15}", value, re.ASCII):
        raise Invalid(f"Invalid integer: {shorten(value)}", param=name)
    if not least <= int(value) <= most:
        raise Invalid(f"This value must be from {least} to {most}: {value}", param=name)
    return int(value)


def read_word(form: dict[str, Any], name: str, *, default: str = "") -> str:
    """Read a text of at most 2000 characters.

    Raises:
        Invalid: It is missing and has no default, or is no such text.
    """
    value = form.get(name, default or None)
    if value is None:
        raise Invalid(f"Missing required param: {name}.", param=name)
    if not isinstance(value, str) or not 1 <= len(value) <= 2000:
        raise Invalid(f"Invalid string: {shorten(value)}", param=name)
    return value


def read_url(form: dict[str, Any], name: str, *, is_needed: bool) -> str | None:
    """Read an address of a page; None = it is not given.

    Raises:
        Invalid: It is none, or is missing and needed.
    """
    if name not in form and not is_needed:
        return None
    value = read_word(form, name)
    if not value.startswith(("http://", "https://")) or not value.isprintable() or " " in value:
        raise Invalid(f"Not a valid URL: {shorten(value)}", param=name, code="url_invalid")
    return value


def read_metadata(form: dict[str, Any]) -> dict[str, str]:
    """Read `metadata[…]`: at most 50 texts of 500 characters.

    Raises:
        Invalid: It is none.
    """
    value = form.get("metadata") or {}
    if not isinstance(value, dict) or len(value) > MAX_METADATA:
        raise Invalid("Invalid metadata: allowed are 50 keys with texts", param="metadata")
    if any(not isinstance(text, str) or len(text) > MAX_VALUE for text in value.values()):
        raise Invalid("Metadata values can have up to 500 characters", param="metadata")
    return dict(value)
