"""The body of an upstream request: the client's own bytes if they can stay, else a new rendering. Pure."""

import re
from typing import Any

from appliance.base import jsons
from appliance.engines.types import EngineRequest
from appliance.engines.upstream.splice import replace_model, with_model

_ASK_FOR_USAGE = b',"stream_options":{"include_usage":true}}'
_ESCAPED = re.compile(rb"\\u00[567]")  # how a letter of "stream_options" begins where it is escaped


def ask_for_usage(body: bytes) -> bytes | None:
    """Return the body of a stream's request that asks for the usage, too.

    Args:
        body: One JSON object with at least one field.

    Returns:
        None = it may have `stream_options` of its own, or the word in its text: it stays as it is.
    """
    if b"stream_options" in body or (b"\\u00" in body and _ESCAPED.search(body)) or not body.endswith(b"}"):
        return None
    return b"".join((memoryview(body)[:-1], _ASK_FOR_USAGE))


def render_body(
    request: EngineRequest,
    upstream_model: str,
    *,
    wants_events: bool,
    extra: tuple[tuple[str, Any], ...] = (),
    is_gathered: bool = False,
) -> bytes:
    """Return the body for one server.

    1. the client's own bytes can be used         → those, with `model` replaced
    2. a stream that becomes one whole response   → rendered, the usage included in the stream
    3. a stream                                   → rendered
    4. no stream                                  → rendered, without the fields that some APIs refuse then

    Args:
        request: `raw` holds the client's bytes where its dialect is OpenAI's.
        upstream_model: The model's name at this server.
        wants_events: A stream is asked for.
        extra: Fields to add; the client's own value of such a field wins.
        is_gathered: The stream will be joined to one response.
    """
    is_plain = request.parsed is None and request.stream == wants_events
    if request.raw is not None and is_plain and request.model and not extra and not is_gathered:
        spliced = replace_model(request.raw, upstream_model, request.model)  # 1
        if spliced is not None:
            return spliced
    body = request.body
    is_unchanged = bool(body.get("stream")) == wants_events and not extra and not is_gathered
    if request.raw is not None and is_unchanged:
        return with_model(request.raw, body, upstream_model)  # 1
    changed = {**dict(extra), **body, "model": upstream_model}
    if is_gathered:
        changed |= {"stream": True, "stream_options": {"include_usage": True}}  # 2
    elif wants_events:
        changed["stream"] = True  # 3
    else:
        changed.pop("stream", None)
        changed.pop("stream_options", None)  # 4
    return jsons.dumps(changed)
