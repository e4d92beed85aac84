"""Server-sent events as the standard says and as servers really send them: bytes in, objects out. Pure.

Source: WHATWG HTML, "Server-sent events", 9.2.6 Interpreting an event stream. Beyond it: an event of which
only the blank line is missing counts at the end of a stream; JSON without `data:` and the field `error:` (of
early llama-servers) are errors.
"""

from enum import Enum
from typing import Any

from appliance.base import jsons
from appliance.base.errors import UpstreamFailed

SSE_CONTENT_TYPE = "text/event-stream; charset=utf-8"
MAX_EVENT_BYTES = 16 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


class InvalidEvent(ValueError):
    """An event has no JSON object, or no end."""


class Mark(Enum):
    """What an event without an object is."""

    DONE = "done"  # `[DONE]`
    NOTHING = "nothing"  # a comment, an id, empty data, `null`


class EventBuffer:
    """Cuts a byte stream into whole events with LF line ends and valid UTF-8, in linear time.

    Attributes:
        is_empty: The next byte begins an event.
    """

    __slots__ = ("_held", "_held_bytes", "_skips_line_feed", "_start", "is_empty")

    def __init__(self) -> None:
        self._start: bytes | None = b""  # the first bytes, until they are seen to be a byte order mark or not
        self._held: list[bytes] = []  # the beginning of the next event
        self._held_bytes = 0
        self.is_empty = False
        self._skips_line_feed = False  # the last piece ended with CR, so LF belongs to it

    def feed(self, data: bytes) -> bytes:
        r"""Take bytes; return the events that are complete, each ended by `\n\n`; b"" = none.

        Raises:
            InvalidEvent: An event is longer than 16 MiB.
        """
        if self._start is not None or self._skips_line_feed or b"\r" in data:
            data = self._normalise(data)
        cut = data.rfind(b"\n\n") + 2
        if cut == 1:
            held = self._held
            if not (held and data.startswith(b"\n") and held[-1].endswith(b"\n")):
                self._hold(data)
                return b""
        if self._held:
            whole = b"".join((*self._held, data[:cut]))
            self._held.clear()
            self._held_bytes = 0
        else:
            whole = data if cut == len(data) else data[:cut]
        if cut != len(data):
            self._hold(data[cut:])
        else:
            self.is_empty = not self._skips_line_feed
        return whole if whole.isascii() else repair_utf8(whole)

    def end(self) -> bytes:
        """Return what is left: an event without its blank line, whole or cut."""
        rest = b"".join(self._held)
        self._held.clear()
        return rest if rest.isascii() else repair_utf8(rest)

    def _hold(self, data: bytes) -> None:
        if data:
            self.is_empty = False
            self._held.append(data)
            self._held_bytes += len(data)
            if self._held_bytes > MAX_EVENT_BYTES:
                self._held.clear()
                raise InvalidEvent("an event is longer than 16 MiB")

    def _normalise(self, data: bytes) -> bytes:
        """Remove the byte order mark, and make every line end LF."""
        if self._start is not None:
            data = self._start + data
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._start = data
                return b""
            self._start = None
            data = data.removeprefix(_BOM)
        if self._skips_line_feed and data:
            self._skips_line_feed = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._skips_line_feed = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return data


def repair_utf8(data: bytes) -> bytes:
    """Return the bytes with U+FFFD in place of what is no UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace").encode()
    return data


def parse_event(event: bytes) -> dict[str, Any] | Mark:
    """Read one event.

    1. no data, empty data, `null`                → NOTHING
    2. `[DONE]`                                   → DONE
    3. an object                                  → it
    4. an event named `error`, a field `error:`   → an object with `error`
    5. JSON without `data:`                       → the object, if it is no response

    Args:
        event: Its lines, ended by LF, without the blank line.

    Raises:
        InvalidEvent: The data is anything else.
    """
    is_error, data = False, b""
    if event.startswith(b"data:") and b"\n" not in event:
        data = event[5:].strip()
    else:
        lines = []
        for line in event.split(b"\n"):
            field, _, value = line.partition(b":")
            if field == b"data":
                lines.append(value.removeprefix(b" "))
            elif field == b"event":
                is_error = value.strip() == b"error"
            elif field == b"error":
                is_error = True
                lines.append(value)
        if not lines and event.lstrip().startswith(b"{"):
            return _parse_bare(event)  # 5
        data = b"\n".join(lines).strip()
    if is_error:
        return _parse_error(data)  # 4
    if data in {b"", b"null"}:
        return Mark.NOTHING  # 1
    if data == b"[DONE]":
        return Mark.DONE  # 2
    try:
        value = jsons.loads(data)
    except jsons.InvalidJson as exc:
        raise InvalidEvent(f"an event is not JSON ({exc})") from None
    if not isinstance(value, dict):
        raise InvalidEvent("an event is not a JSON object")
    return value  # 3


def _parse_error(data: bytes) -> dict[str, Any]:
    try:
        value = jsons.loads(data)
    except jsons.InvalidJson:
        value = data.decode("utf-8", "replace")
    return value if isinstance(value, dict) and value.get("error") else {"error": value or "unknown error"}


def _parse_bare(event: bytes) -> dict[str, Any] | Mark:
    try:
        value = jsons.loads(event)
    except jsons.InvalidJson:
        return Mark.NOTHING
    return value if isinstance(value, dict) and "choices" not in value else Mark.NOTHING


class SseReader:
    """Parses a byte stream, cut anywhere, into complete events."""

    __slots__ = ("_buffer", "_failure")

    def __init__(self) -> None:
        self._buffer = EventBuffer()
        self._failure: UpstreamFailed | None = None  # of an event behind valid ones of the same piece

    def feed(self, data: bytes) -> list[dict[str, Any] | None]:
        """Add bytes and return the events that are complete: objects, None for `[DONE]`.

        Raises:
            UpstreamFailed: An event is not a JSON object, or too long. What precedes it is returned first;
                then the next call raises.
        """
        if self._failure is not None:
            raise self._failure
        found: list[dict[str, Any] | None] = []
        try:
            for event in self._buffer.feed(data).split(b"\n\n"):
                value = parse_event(event)
                if value is not Mark.NOTHING:
                    found.append(None if isinstance(value, Mark) else value)
        except InvalidEvent as exc:
            failure = UpstreamFailed(f"The response is invalid: {exc}.", code="upstream_rubbish")
            if not found:
                raise failure from None
            self._failure = failure
        return found

    def end(self) -> list[dict[str, Any] | None]:
        """End the stream; return the last event if only the blank line after it was missing.

        Raises:
            UpstreamFailed: An event was invalid.
        """
        if self._failure is not None:
            raise self._failure
        try:
            value = parse_event(self._buffer.end())
        except InvalidEvent:
            return []
        return [] if value is Mark.NOTHING else [None if isinstance(value, Mark) else value]
