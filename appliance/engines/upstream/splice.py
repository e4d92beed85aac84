"""Replaces the top-level `model` of a JSON object in its bytes, and leaves every other byte as it is. Pure.

Why bytes: what is not rendered again cannot change (spelling of numbers, order of keys, unknown fields), and
no time is spent on rendering large prompts.
"""

import re
from functools import lru_cache
from typing import Any

from appliance.base import jsons

_VALUE = re.compile(rb'\s*:\s*"[^"\\]*(?:\\.[^"\\]*)*"')  # of the field, behind its name
QUOTE = 0x22
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
    spliced = replace_model(raw, model)  # 2
    return spliced if spliced is not None else jsons.dumps({**body, "model": model})  # 3


def replace_model(raw: bytes, model: str) -> bytes | None:
    """Return the bytes of a JSON object that has a top-level `model`, with its value replaced.

    Returns:
        None = `"model"` is in them more than once, or one of its letters may be escaped.
    """
    before, name, after = raw.partition(b'"model"')
    if not name or b'"model"' in after or (b"\\" in raw and _ESCAPE in raw):
        return None
    if after[:2] == b':"' or after[:3] == b': "':  # as clients write it: no pattern is needed
        begin = 2 if after[1] == QUOTE else 3
        end = after.find(b'"', begin)
        if b"\\" not in after[begin:end]:
            return before + _model_field(model) + after[end + 1 :]
    found = _VALUE.match(after)
    return before + _model_field(model) + after[found.end() :] if found is not None else None
