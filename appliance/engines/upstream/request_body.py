"""The body of an upstream request: the client's own bytes if they can stay, else a new rendering. Pure."""

from typing import Any

from appliance.base import jsons
from appliance.engines.types import EngineRequest
from appliance.engines.upstream.splice import replace_model, with_model


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
