"""JSON by orjson; what orjson refuses (lone surrogates, huge integers) is left to the standard library.

Integers over 64 bits are written exactly, and read as the nearest float.
"""

import json
import math
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import orjson

T = TypeVar("T")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_OPEN = 1000  # brackets; orjson reads 1024 levels


class InvalidJson(ValueError):
    """The text is not JSON; the message names the position (line, column)."""


def loads(data: bytes | str) -> Any:
    """Parse one JSON value.

    Raises:
        InvalidJson: With the position of the mistake.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as exc:
        try:  # the standard library reads lone surrogates, NaN and numbers that are too large
            return json.loads(data)
        except (ValueError, RecursionError):
            raise InvalidJson(str(exc)) from None


def loads_utf8(data: bytes) -> Any:
    """Parse one JSON value as every reader reads it: UTF-8, a byte order mark or not, finite numbers.

    Lone surrogates are read where they are escaped.

    Raises:
        InvalidJson: It is another encoding, has NaN or an infinite number, or is not JSON.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as exc:
        try:
            text = data.removeprefix(BYTE_ORDER_MARK).decode()
        except UnicodeDecodeError:
            raise InvalidJson("it is not UTF-8") from None
        if text[:4].count("\0"):
            raise InvalidJson("it is not UTF-8 (UTF-16 or UTF-32)") from None
        try:
            return json.loads(text, parse_float=_finite, parse_constant=_refuse)
        except InvalidJson:
            raise
        except (ValueError, RecursionError):
            raise InvalidJson(str(exc)) from None


def read_typed(decode: Callable[[bytes], T], data: bytes) -> T | None:
    """Read JSON by types alone; None = it is not of these types, or other readers could not read it.

    Args:
        decode: Of a msgspec decoder.
        data: The JSON.
    """
    try:
        value = decode(data)
    except (msgspec.MsgspecError, RecursionError):
        return None
    return value if is_decodable(data) else None


def is_decodable(data: bytes) -> bool:
    """Return whether JSON that was read by types alone is UTF-8 and not too deep for other readers.

    msgspec looks neither at the bytes nor at the depth of what it skips.
    """
    if len(data) > 2 * MAX_OPEN and data.count(b"[") + data.count(b"{") > MAX_OPEN:
        return False
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _refuse(digits)


def _refuse(name: str) -> float:
    raise InvalidJson(f"{name[:40]} is not a number of JSON")


def dumps(value: Any) -> bytes:
    """Render one JSON value as UTF-8 without blanks."""
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError):
        return json.dumps(value, ensure_ascii=True, separators=(",", ":"), default=str).encode()  # noqa: TID251


def dumps_text(value: Any) -> str:
    """Render one JSON value as text without blanks, for logs and headers."""
    return dumps(value).decode()


def dumps_pretty(value: Any) -> str:
    """Render one JSON value as indented text; what JSON does not know is rendered by `str`."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS, default=str).decode()
