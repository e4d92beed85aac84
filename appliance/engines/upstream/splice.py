"""Replaces the top-level `model` of a JSON object in its bytes, and leaves every other byte as it is. Pure.

Why bytes: what is not rendered again cannot change (spelling of numbers, order of keys, unknown fields), and
no time is spent on rendering large prompts.
"""

import re
from functools import lru_cache
from typing import Any

from appliance.base import jsons

MAX_KEPT_CHARACTERS = 256  # of a name that is kept in its spellings; it comes from clients
_NAME = b'"model"'
_FIELD = re.compile(rb'"model"\s*:\s*"[^"\\]*(?:\\.[^"\\]*)*"')
_ESCAPE = rb"\u006"  # how the letters of "model" begin where they are escaped, as no usual client does


@lru_cache(maxsize=1024)
def _model_field(model: str) -> bytes:
    return b'"model":' + jsons.dumps(model)


@lru_cache(maxsize=1024)
def _spellings(model: str) -> tuple[bytes, bytes]:
    value = jsons.dumps(model)
    return b'"model":' + value, b'"model": ' + value


def with_model(raw: bytes, body: dict[str, Any], model: str) -> bytes:
    """Return a JSON object's bytes with its top-level `model` replaced.

    1. it has no `model`                   → added in front
    2. `"model"` is in the bytes once      → its value is replaced in place
    3. it is there more than once, or one of its letters may be escaped → rendered again from `body`

    Args:
        raw: The bytes of one JSON object.
        body: The same object, parsed.
        model: The new value.
    """
    if "model" not in body:  # 1
        rest = raw.lstrip()[1:]
        comma = b"" if not body else b","
        return b'{"model":' + jsons.dumps(model) + comma + rest
    spliced = replace_model(raw, model)  # 2
    return spliced if spliced is not None else jsons.dumps({**body, "model": model})  # 3


def replace_model(raw: bytes, model: str, was: str = "") -> bytes | None:
    """Return the bytes of a JSON object that has a top-level `model`, with its value replaced.

    Args:
        raw: The bytes.
        model: The new value.
        was: The value that it has; "" = unknown.

    Returns:
        None = `"model"` is in them more than once, or one of its letters may be escaped.
    """
    if raw.count(_NAME) != 1 or (b"\\" in raw and _ESCAPE in raw):
        return None
    new = _model_field(model)
    if was and len(was) <= MAX_KEPT_CHARACTERS:  # as most programs write it: no pattern is needed
        for field in _spellings(was):
            before, found, after = raw.partition(field)
            if found:
                return before + new + after
    match = _FIELD.search(raw)
    return raw[: match.start()] + new + raw[match.end() :] if match is not None else None
