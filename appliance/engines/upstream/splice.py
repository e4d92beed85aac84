"""Change the top-level `model` of a JSON object in its bytes, leaving every other byte as it came. Pure.

Why bytes: what we do not parse we cannot lose (number spelling, key order, unknown fields), and large prompts are not
written twice.
"""

import re
from functools import lru_cache
from typing import Any

from appliance.base import jsons

_MODEL = re.compile(rb'"model"\s*:\s*"[^"\\]*(?:\\.[^"\\]*)*"')


@lru_cache(maxsize=1024)
def _named(model: str) -> bytes:
    return b'"model":' + jsons.dumps(model)


def with_model(raw: bytes, body: dict[str, Any], model: str) -> bytes:
    """Give `raw` with its top-level `model` set to `model`.

    Takes   raw: the bytes of one JSON object; body: the same object, parsed
    Gives   JSON bytes:
            1. no `model` in it                            → put in front
            2. exactly one `"model"` in the bytes          → its value replaced in place
            3. the word stands more than once              → written anew from `body`
    """
    if "model" not in body:  # 1
        rest = raw.lstrip()[1:]
        comma = b"" if not body else b","
        return b'{"model":' + jsons.dumps(model) + comma + rest
    at = raw.find(b'"model"')
    if at >= 0 and raw.find(b'"model"', at + 7) < 0 and (found := _MODEL.match(raw, at)):  # 2
        return raw[:at] + _named(model) + raw[found.end() :]
    return jsons.dumps({**body, "model": model})  # 3
