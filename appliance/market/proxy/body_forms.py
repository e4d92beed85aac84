"""Bodies: JSON, text and bytes, as they are sent to targets and shown to callers."""

import base64
from collections.abc import Sequence
from typing import Any, Final

from appliance.base import jsons
from appliance.base.errors import TooLarge

MAX_UP_BYTES: Final = 8_388_608


def render_body(body: Any, headers: Sequence[tuple[str, str]]) -> tuple[bytes | None, list[tuple[str, str]]]:
    """Return a body as it is sent, and the fields with its type.

    1. none               → nothing
    2. a text             → as it is, in UTF-8
    3. any other JSON     → as JSON, with its type unless the caller names one

    Raises:
        TooLarge: It has more than 8 MiB.
    """
    fields = list(headers)
    if body is None:  # 1
        return None, fields
    if isinstance(body, str):  # 2
        data = body.encode("utf-8", "replace")
    else:  # 3
        data = jsons.dumps(body)
        if not any(name.lower() == "content-type" for name, _ in fields):
            fields.append(("Content-Type", "application/json"))
    if len(data) > MAX_UP_BYTES:
        raise TooLarge(
            f"`body` has {len(data)} bytes; up to {MAX_UP_BYTES} are sent to a target.", param="body"
        )
    return data, fields


def show_body(data: bytes) -> dict[str, Any]:
    """Return a target's body as fields of the answer.

    1. nothing        → `{"body": null}`
    2. JSON           → that
    3. text           → that
    4. other bytes    → in base64, and `{"body_encoding": "base64"}`
    """
    if not data:  # 1
        return {"body": None}
    try:
        return {"body": jsons.loads(data)}  # 2
    except jsons.InvalidJson:
        pass
    try:
        return {"body": data.decode()}  # 3
    except UnicodeDecodeError:
        return {"body": base64.b64encode(data).decode(), "body_encoding": "base64"}  # 4
