"""Server-sent events as OpenAI-shaped APIs send them: bytes in, objects out; comments are dropped. Pure."""

from typing import Any

from appliance.base import jsons
from appliance.base.errors import UpstreamFailed

SSE_CONTENT_TYPE = "text/event-stream; charset=utf-8"


class SseReader:
    """Parses a byte stream, cut anywhere, into complete events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[dict[str, Any] | None]:
        """Add bytes and return the events that are complete: objects, None for `[DONE]`.

        Raises:
            UpstreamFailed: An event is not a JSON object.
        """
        text = self._rest + data
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n")  # a bare CR at the end waits for its LF in the rest
        *events, self._rest = text.split(b"\n\n")
        found: list[dict[str, Any] | None] = []
        for event in events:
            payload = _payload(event)
            if payload is not None and payload.strip() != b"null":  # llama-server begins some streams with it
                found.append(None if payload.strip() == b"[DONE]" else _object(payload))
        return found

    def end(self) -> list[dict[str, Any] | None]:
        """End the stream; return the last event if only the blank line after it was missing."""
        try:
            return self.feed(b"\n\n") if self._rest.strip() else []
        except UpstreamFailed:
            return []


def _payload(event: bytes) -> bytes | None:
    """Return the data of one event; None = it has none (a comment, an id)."""
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def _object(payload: bytes) -> dict[str, Any]:
    try:
        value = jsons.loads(payload)
    except jsons.InvalidJson as exc:
        raise UpstreamFailed(
            f"An event of the response is not JSON: {exc}.", code="upstream_rubbish"
        ) from None
    if not isinstance(value, dict):
        raise UpstreamFailed("An event of the response is not a JSON object.", code="upstream_rubbish")
    return value
