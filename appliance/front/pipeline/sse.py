"""Server-sent events: engines' streams event by event, and the appliance's own; the parser is base/sse.py."""

from collections.abc import AsyncGenerator
from typing import Any

from appliance.base import jsons
from appliance.base.errors import ApplianceError, UpstreamFailed
from appliance.base.sse import SseReader
from appliance.engines.stream import Stream
from appliance.engines.upstream.error_event import find_error
from appliance.front.pipeline.errors import openai_error

SSE_HEADERS = [("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no")]
HEARTBEAT = b": heartbeat\n\n"  # a comment


async def read_events(pieces: Stream) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the events of a stream, up to `[DONE]`; closes `pieces` when it ends or is closed.

    Raises:
        UpstreamFailed: The stream ended without `[DONE]`, an event is not a JSON object, or an event is an
            error.
    """
    reader = SseReader()
    try:
        async for piece in pieces:
            for event in reader.feed(piece):
                if event is None:
                    return
                yield _check_event(event)
        for event in reader.end():
            if event is None:
                return
            yield _check_event(event)
        raise UpstreamFailed("The response broke off before it was complete.", code="upstream_cut_off")
    finally:
        await pieces.aclose()


def _check_event(event: dict[str, Any]) -> dict[str, Any]:
    """Return the event, or raise what it reports."""
    error = find_error(event)
    if error is not None:
        text = error.message or "The response ended with an error."
        raise UpstreamFailed(text, code="upstream_error_event")
    return event


def render_event(name: str, value: Any) -> bytes:
    """Return one event: `event: NAME`, one line of JSON data, an empty line."""
    return b"event: " + name.encode() + b"\ndata: " + jsons.dumps(value) + b"\n\n"


def render_error_event(error: ApplianceError) -> bytes:
    """Return the last event of a feed that ended with an error."""
    return render_event("error", {"error": openai_error(error)})
