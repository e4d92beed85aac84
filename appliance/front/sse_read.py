"""Read OpenAI-shaped event streams at the door, for dialects that must look into each event. Pure but for `events_of`."""

from collections.abc import AsyncIterator
from typing import Any

from appliance.base import jsons
from appliance.base.errors import UpstreamFailed


class SseReader:
    """Takes bytes as they come, gives whole events; comments are dropped."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[dict[str, Any] | None]:
        """Take bytes; give the events that are complete: objects, None for `[DONE]`.

        Raises  UpstreamFailed: an event is no JSON object
        """
        text = (self._rest + data).replace(b"\r\n", b"\n")
        *events, self._rest = text.split(b"\n\n")
        found: list[dict[str, Any] | None] = []
        for event in events:
            lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
            if not lines:
                continue
            payload = b"\n".join(lines)
            if payload.strip() == b"[DONE]":
                found.append(None)
                continue
            try:
                value = jsons.loads(payload)
            except jsons.BadJson as exc:
                raise UpstreamFailed(f"An event of the answer is no JSON: {exc}.", code="upstream_rubbish") from None
            if not isinstance(value, dict):
                raise UpstreamFailed("An event of the answer is no JSON object.", code="upstream_rubbish")
            found.append(value)
        return found


async def events_of(pieces: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Give the events of a stream, up to `[DONE]`; closes `pieces` when closed.

    Raises  UpstreamFailed: the stream ended without `[DONE]`, or an event is an error
    """
    reader = SseReader()
    try:
        async for piece in pieces:
            for event in reader.feed(piece):
                if event is None:
                    return
                if event.get("error") and not event.get("choices"):
                    error = event["error"]
                    raise UpstreamFailed(str(error.get("message") if isinstance(error, dict) else error))
                yield event
        raise UpstreamFailed("The answer was broken off before it was complete.", code="upstream_cut_off")
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]
