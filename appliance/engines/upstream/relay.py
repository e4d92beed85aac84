"""Passes on a stream of OpenAI's events: whole events only, with the public `model`, up to its end. Pure.

The work per piece is a few searches in C over its bytes; an event is parsed only if it may matter (the first
one, usage, errors, another spelling of a field).
"""

import re
from typing import Any

from appliance.base import jsons

_MODEL_FIELD = re.compile(rb'"model"\s*:\s*"(?:[^"\\]|\\.)*"')
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')
MAX_EVENT_BYTES = 16 * 1024 * 1024


class BrokenStream(ValueError):
    """The upstream's stream is not a valid stream of events."""


class StreamRelay:
    """Turns bytes as they arrive into pieces of whole events with the public model name.

    Attributes:
        events: Events that were passed on.
        usage: The last usage object; None = there was none.
        is_done: `[DONE]` has arrived.
        error: The object of an error event; None = there was none.
    """

    __slots__ = ("_last", "_new", "_old", "_rest", "error", "events", "is_done", "usage")

    def __init__(self, public_model: str) -> None:
        self._new = b'"model":' + jsons.dumps(public_model)
        self._old: bytes | None = None  # the upstream's spelling of the field, learnt from the first event
        self._rest = b""
        self.events = 0
        self.usage: dict[str, Any] | None = None
        self.is_done = False
        self.error: dict[str, Any] | None = None
        self._last = b""

    def feed(self, data: bytes) -> bytes:
        """Take bytes, and return the whole events that are ready; b"" = none.

        Raises:
            BrokenStream: An event is not JSON, or longer than 16 MiB.
        """
        if self.is_done:
            return b""
        if self._rest:
            data = self._rest + data
        if b"\r" in data:  # some servers end lines with CR LF; JSON text holds no bare CR
            tail = b"\r" if data.endswith(b"\r") else b""
            data = (data[:-1] if tail else data).replace(b"\r\n", b"\n") + tail
        cut = data.rfind(b"\n\n") + 2
        if cut == 1:
            if len(data) > MAX_EVENT_BYTES:
                raise BrokenStream("an event is longer than 16 MiB")
            self._rest = data
            return b""
        whole, self._rest = (data, b"") if cut == len(data) else (data[:cut], data[cut:])
        return self._rewrite(whole)

    def _rewrite(self, whole: bytes) -> bytes:
        """Set the public model name.

        A piece is plain if each event, except [DONE], is one line with one model field; only other pieces are
        handled event by event.
        """
        if self._old is None:
            self._learn(whole)
        out = whole.replace(self._old, self._new) if self._old else whole
        if b"[DONE]" in whole[-24:] and whole.rstrip().endswith((b"data: [DONE]", b"data:[DONE]")):
            self.is_done = True
        count = out.count(self._new)
        if whole.count(b"\n") != 2 * (count + self.is_done):
            out = self._rewrite_each(out)
            count = out.count(b"\n\n") - self.is_done
        self.events += count
        self._last = whole
        at = whole.rfind(b'"usage"')
        if at >= 0 and b"{" in whole[at + 7 : at + 12]:
            self._read_usage(whole, at)
        return out

    @property
    def has_finished(self) -> bool:
        """Whether the stream's latest events hold a finish_reason."""
        return _FINISHED.search(self._last) is not None

    def _learn(self, whole: bytes) -> None:
        found = _MODEL_FIELD.search(whole)
        self._old = found.group() if found else None

    def _rewrite_each(self, out: bytes) -> bytes:
        """Handle each event alone: some are comments or errors, have no `model`, or another spelling."""
        events = []
        for event in out.split(b"\n\n"):
            if self._new not in event and event and not event.startswith(b":"):
                if not self._check(event):
                    continue
                event = _MODEL_FIELD.sub(lambda _: self._new, event, count=1)
            events.append(event)
        return b"\n\n".join(events)

    def _check(self, event: bytes) -> bool:
        """Record an error event; return whether the event is for the client (llama-server sends `null`s)."""
        data = b"\n".join(line[5:].lstrip() for line in event.split(b"\n") if line.startswith(b"data:"))
        if not data or data == b"[DONE]":
            return True
        try:
            value = jsons.loads(data)
        except jsons.InvalidJson as exc:
            raise BrokenStream(f"an event is not JSON ({exc})") from None
        if isinstance(value, dict) and value.get("error") and not value.get("choices"):
            error = value["error"]
            self.error = error if isinstance(error, dict) else {"message": str(error)}
        return value is not None

    def _read_usage(self, whole: bytes, at: int) -> None:
        start = whole.rfind(b"\n\n", 0, at) + 2 if b"\n\n" in whole[:at] else 0
        end = whole.find(b"\n\n", at)
        data = whole[start:end].removeprefix(b"data:")
        try:
            value = jsons.loads(data)
        except jsons.InvalidJson:
            return  # several lines in one event: usage is for the counters only, the client gets the bytes
        if isinstance(value, dict) and isinstance(value.get("usage"), dict):
            self.usage = value["usage"]
