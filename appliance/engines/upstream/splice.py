"""Replaces the top-level `model` of a JSON object in its bytes, and leaves every other byte as it is. Pure.

Why bytes: what is not rendered again cannot change (spelling of numbers, order of keys, unknown fields), and
no time is spent on rendering large prompts.
"""

import re
from functools import lru_cache
from typing import Any

from appliance.base import jsons

_MODEL = re.compile(rb'"model"\s*:\s*"[^"\\]*(?:\\.[^"\\]*)*"')
_ESCAPE = rb"\u006"  # how the letters of "model" begin where they are escaped, as no usual client does


@lru_cache(maxsize=1024)
def _model_field(model: str) -> bytes:
    return b'"model":' + jsons.dumps(model)


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
    at = raw.find(b'"model"')
    if (
        at >= 0
        and raw.find(b'"model"', at + 7) < 0
        and not _may_escape(raw)
        and (found := _MODEL.match(raw, at))
    ):  # 2
        return raw[:at] + _model_field(model) + raw[found.end() :]
    return jsons.dumps({**body, "model": model})  # 3


def _may_escape(raw: bytes) -> bool:
    return b"\\" in raw and _ESCAPE in raw  # a search for one byte takes a fraction of the time
