"""Single values of what markets answer: read within limits, or not at all."""

import math
import re
from collections.abc import Iterable
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final
from urllib.parse import urlsplit

from appliance.base.money import MUSD_PER_DOLLAR

MAX_TEXT: Final = 200
MAX_DOLLARS: Final = 1_000_000
MAX_MS: Final = 4_102_444_800_000  # 2100
MAX_PORTS: Final = 64
NOMINAL_PERCENT: Final = 105  # of memory as drivers report it: makers round up
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:_-]{0,252}[A-Za-z0-9])?")
_SPACES = re.compile(r"[\x00-\x20\x7f-\x9f]+")
_NAME_SIGNS = re.compile(r"[\s_-]+")


def read_text(value: Any, most: int = MAX_TEXT) -> str:
    """Return text on one line, cut; "" where it is none."""
    return _SPACES.sub(" ", value[: 4 * most]).strip()[:most] if isinstance(value, str) else ""


def read_number(value: Any, least: float = 0.0, most: float = 1e12) -> float | None:
    """Return a finite number within limits; None where it is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and least <= value <= most else None


def read_whole(value: Any, least: int = 0, most: int = 2**53) -> int | None:
    """Return a whole number within limits; None where it is none."""
    number = read_number(value, least, most)
    return int(number) if number is not None and number == int(number) else None


def read_musd(value: Any) -> int | None:
    """Return dollars as micro-dollars, rounded up; None where it is no amount from 0 up."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}(\.\d{1,12})?", value, re.ASCII):
        value = float(value)
    number = read_number(value, 0, MAX_DOLLARS)
    if number is None:
        return None
    return int((Decimal(str(number)) * MUSD_PER_DOLLAR).to_integral_value(ROUND_CEILING))


def read_host(value: Any) -> str:
    """Return an address or a name of a host; "" where it is none."""
    text = value.strip() if isinstance(value, str) and len(value) < 300 else ""
    return text if _HOST.fullmatch(text) else ""


def read_port(value: Any) -> int | None:
    """Return a port, of a number or a text; None where it is none."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 6:
        value = int(value)
    return read_whole(value, 1, 65_535)


def read_url_address(value: Any) -> tuple[str, int] | None:
    """Return host and port of a URL; None where it is none."""
    try:
        parts = urlsplit(value if isinstance(value, str) and len(value) < 2000 else "")
        host = read_host(parts.hostname or "")
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None
    return (host, port) if host and parts.scheme in ("http", "https") else None


def plain_name(text: str) -> str:
    """Return a GPU's name without case, blanks, `_` and `-`, for comparing."""
    return _NAME_SIGNS.sub("", text).lower()


def tail(data: bytes, max_bytes: int) -> str:
    """Return the end of a text, from a whole line on where it was cut."""
    if len(data) > max_bytes:
        data = data[len(data) - max_bytes :]
        data = data[data.find(b"\n") + 1 :]
    return data.decode("utf-8", "replace")


def join_errors(values: Iterable[Any]) -> str:
    """Return the texts of a list of errors, `[{msg}]` or `[text]`, as one."""
    texts = [read_text(one.get("msg") if isinstance(one, dict) else one) for one in list(values)[:10]]
    return "; ".join(text for text in texts if text)
