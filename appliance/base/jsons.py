"""JSON at the speed of orjson, with one escape: numbers that do not fit 64 bits are still read, by the standard library.

`dumps` gives bytes without blanks; `dumps_text` the same as text, for logs and headers.
"""

import json
from typing import Any

import orjson


class InvalidJson(ValueError):
    """The text is no JSON; the message says where (line, column)."""


def loads(data: bytes | str) -> Any:
    """Read one JSON value; raise BadJson with the place of the mistake."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as exc:
        try:  # orjson refuses integers over 64 bits and lone surrogates, which the standard library reads
            return json.loads(data)
        except (ValueError, RecursionError):
            raise InvalidJson(str(exc)) from None


def dumps(value: Any) -> bytes:
    """Write one JSON value as UTF-8 bytes without blanks."""
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError):
        return json.dumps(value, ensure_ascii=True, separators=(",", ":"), default=str).encode()  # noqa: TID251


def dumps_text(value: Any) -> str:
    return dumps(value).decode()


def dumps_pretty(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS, default=str).decode()
