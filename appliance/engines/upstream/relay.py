"""Passes on a stream of OpenAI's events: whole events only, with the public `model`, up to its end. Pure.

The work per piece is a few searches in C over its bytes; an event is parsed only where something says that
it matters. Most events of a stream differ in their text alone: for those, the bytes before and after the text
are learnt, and only the text is looked at.
"""

import re
from typing import Any

from appliance.base import jsons
from appliance.base.errors import UpstreamFailed
from appliance.base.sse import MAX_EVENT_BYTES, EventBuffer, InvalidEvent, Mark, parse_event, repair_utf8
from appliance.engines.upstream.error_event import ErrorEvent, find_error, has_text, is_empty
from appliance.engines.upstream.plain_chunk import PlainChunk, read_plain_chunk
from appliance.engines.upstream.whole_reply import repair_chunk

__all__ = ["MAX_EVENT_BYTES", "BrokenStream", "CutOffStream", "StreamRelay"]

_MODEL_FIELD = re.compile(rb'"model"\s*:\s*"[^"\\]*+(?:\\.[^"\\]*+)*+"')
_TEXT_FIELD = re.compile(rb'"(?:content|reasoning_content|reasoning|text)"\s*:\s*"([^"\\]*+)"')
_TEXT = re.compile(rb'(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])*+')  # of JSON, without \u
MARK_BYTES = 6  # `data: `; CPython finds eight bytes four times faster than all that is between two texts
MAX_FORM_BYTES = 65_536  # of an event whose form is learnt: its parts are kept three times
MIN_FORMS = 8  # how many forms are learnt before most events must be alike
_PLAIN = re.compile(rb"[ !#-\[\]-\x7f]*+")
SHORT_TEXT = 96
_DONE = b"data: [DONE]\n\n"
_SPECIAL = (
    b'"\\' + bytes(range(32)) + bytes(range(128, 256))
)  # bytes with which a text is looked at more closely


class BrokenStream(ValueError):
    """The upstream's stream is not a valid stream of events."""


class CutOffStream(BrokenStream):
    """The upstream's stream ended before its response was complete."""


def _is_plain(text: bytes) -> bool:
    """Return whether a text of JSON is ASCII without quotation marks, escapes and control characters."""
    if len(text) < SHORT_TEXT:  # most are, and for those this is twice as fast
        return _PLAIN.fullmatch(text) is not None
    return len(text.translate(None, _SPECIAL)) == len(text)


class StreamRelay:
    """Turns bytes as they arrive into pieces of whole events with the public model name.

    Args:
        public_model: The model's name for the client.
        choices: How many choices were asked for; with several, each must finish.
        hides_usage: The client did not ask for the chunk with the usage: it is read, and not passed on.

    Attributes:
        events: Events that were passed on.
        empties: Those of them without text, tool calls or other content.
        has_content: One of them holds content: not only a role, a comment, the end.
        usage: The last usage object; None = there was none.
        timings: llama-server's last `timings`; None = there were none.
        is_done: `[DONE]` has arrived.
        error: The error that an event reports; None = there was none. What came before it was passed on.
        broken: Why the stream cannot be read further, where something before that was passed on.
    """

    __slots__ = (
        "_after",
        "_after_line",
        "_after_out",
        "_before",
        "_before_out",
        "_behind_mark",
        "_between_out",
        "_buffer",
        "_choices",
        "_finished",
        "_has_finished",
        "_hides_usage",
        "_learnt",
        "_mark",
        "_new",
        "_old",
        "broken",
        "empties",
        "error",
        "events",
        "has_content",
        "is_done",
        "timings",
        "usage",
    )

    def __init__(self, public_model: str, *, choices: int = 1, hides_usage: bool = False) -> None:
        self._new = b'"model":' + jsons.dumps(public_model)
        self._old: bytes | None = None  # the upstream's spelling of the field, learnt from the first event
        self._buffer = EventBuffer()
        self._choices = choices
        self._hides_usage = hides_usage
        self._finished: set[Any] = set()  # indexes of choices, where several were asked for
        self._has_finished = False
        self._before: bytes | None = None  # what precedes the text of a plain event
        self._before_out = self._after = self._after_line = self._after_out = b""
        self._between_out = b""  # `_after_out` and `_before_out` of the next event
        self._mark = self._behind_mark = b""  # what parts two events, and what of `_before` is not in it
        self._learnt = 0  # how often a form was learnt: not again and again where each event has another
        self.events = self.empties = 0
        self.has_content = False
        self.usage: dict[str, Any] | None = None
        self.timings: dict[str, Any] | None = None
        self.is_done = False
        self.error: ErrorEvent | None = None
        self.broken: BrokenStream | None = None

    def content_events(self) -> int:
        """Return how many events with content were passed on."""
        return self.events - self.empties

    @property
    def has_finished(self) -> bool:
        """Whether every choice has its finish_reason."""
        return self._has_finished

    def feed(self, data: bytes) -> bytes:
        """Take bytes, and return the whole events that are ready; b"" = none.

        After `[DONE]` only the usage is read.

        Raises:
            BrokenStream: An event is not JSON, or longer than 16 MiB, and nothing precedes it.
        """
        before = self._before
        if before is not None and self._buffer.is_empty:
            after = self._after
            if data.startswith(before) and data.endswith(after):
                text = data[len(before) : -len(after)]
                if b'"' in text or not _is_plain(text):
                    out = self._pass_alike(data)
                    if out is not None:
                        return out
                elif len(before) + len(after) <= len(data):
                    self.events += 1
                    if not text:
                        self.empties += 1
                    return self._before_out + text + self._after_out
        try:
            whole = self._buffer.feed(data)
        except InvalidEvent as exc:
            raise BrokenStream(str(exc)) from None
        return self._pass_each(whole) if whole else b""

    def _pass_alike(self, block: bytes) -> bytes | None:
        """Pass events on that differ in their text alone; None = at least one differs in more.

        Where no text has a quotation mark of its own, nothing but texts can lie between the learnt bytes.

        Args:
            block: Begins with `_before` and ends with `_after`.
        """
        mark, behind, after = self._mark, self._behind_mark, self._after_line
        events = block[MARK_BYTES:-2].split(mark)
        begin, end = len(behind), -len(after)
        texts = [event[begin:end] for event in events if event.startswith(behind) and event.endswith(after)]
        joined = b"".join(texts)
        around = len(texts) * (begin - end) + (len(texts) - 1) * len(mark)
        if len(texts) != len(events) or len(joined) + around != len(block) - MARK_BYTES - 2:
            return None
        if not _is_plain(joined) and (
            _TEXT.fullmatch(joined) is None or any(text.endswith(b"\\") for text in texts)
        ):
            return None
        self.events += len(texts)
        self.empties += texts.count(b"")
        out = self._before_out + self._between_out.join(texts) + self._after_out
        return out if joined.isascii() else repair_utf8(out)

    def end(self) -> bytes:
        """End the stream; return what it still held, and `[DONE]` where every choice has finished.

        Afterwards it is done, or `error` or `broken` says why not.
        """
        rest = self._buffer.end()
        out = b""
        if rest and not self.is_done and self.error is None and self.broken is None:
            out = self._pass_each(rest, is_end=True)
        if self.is_done or self.error is not None or self.broken is not None:
            return out
        if not self._has_finished:
            self.broken = CutOffStream("the stream ended before the response was complete")
            return out
        self.is_done = True
        return out + _DONE

    def _pass_each(self, whole: bytes, *, is_end: bool = False) -> bytes:
        """Pass whole events on, each by itself: comments, errors, numbers, another form."""
        out: list[bytes] = []
        at, tried, size = 0, None, len(whole)
        while at < size:
            before = self._before
            if before is not tried and (end := self._pass_run(whole, at, out)) > at:
                at = end
                continue
            tried = before
            end = whole.find(b"\n\n", at)
            event = (whole[at:end] if end >= 0 else whole[at:]).strip(b"\n")
            at = end + 2 if end >= 0 else size
            if not event:
                continue
            if self.is_done:
                self._note_late(event)
                continue
            if before is not None and event.startswith(before) and event.endswith(self._after_line):
                text = event[len(before) : -len(self._after_line)]
                if len(before) + len(self._after_line) <= len(event) and _TEXT.fullmatch(text):
                    self.events += 1
                    self.empties += not text
                    out.append(self._before_out + text + self._after_out)
                    continue
            try:
                passed = self._pass_one(event)
            except (InvalidEvent, UpstreamFailed) as exc:
                if is_end:
                    break  # cut within the event: what came before it decides
                if not out:
                    raise BrokenStream(str(exc)) from None
                self.broken = BrokenStream(str(exc))
                break
            if self.error is not None:
                break
            if passed:
                out.append(passed)
        return b"".join(out)

    def _pass_run(self, whole: bytes, at: int, out: list[bytes]) -> int:
        """Pass the events from `at` on in one go where they differ in their text alone.

        Returns:
            Where they end; `at` = they differ in more, and nothing was passed on.
        """
        before = self._before
        if before is None or not whole.startswith(before, at):
            return at
        begin = at + len(before)
        last = whole.rfind(self._after, begin)
        if last < 0:
            return at
        end = last + len(self._after)
        passed = self._pass_alike(whole[at:end])
        if passed is None:
            return at
        out.append(passed)
        return end

    def _pass_one(self, event: bytes) -> bytes:
        """Return one event for the client; b"" = it is not for it.

        1. comments alone                 → as they are
        2. `[DONE]`                       → the end
        3. nothing, an error, no choices, usage that is to be hidden → nothing
        4. usage without `choices`        → with empty ones
        5. a chunk                        → its bytes with the public name, on one line, without id and name
        """
        is_line = event.startswith(b"data: ") and b"\n" not in event
        if is_line and (chunk := read_plain_chunk(event[6:])) is not None:
            return self._pass_plain(event, chunk)
        value = parse_event(event)
        if value is Mark.DONE:
            self.is_done, self._before = True, None
            return event + b"\n\n" if event == b"data:[DONE]" else _DONE  # 2
        if isinstance(value, Mark):
            is_comment = all(line.startswith(b":") for line in event.split(b"\n"))
            return event + b"\n\n" if is_comment else b""  # 1, 3
        self.error = find_error(value)
        if self.error is not None:
            return b""  # 3
        if value.get("choices") is None:
            if not isinstance(value.get("usage"), dict):
                return b""  # 3
            if self._hides_usage:
                self._note({**value, "choices": []})
                return b""  # 3
            value = repaired = {**value, "choices": [], "model": jsons.loads(self._new[8:])}  # 4
            event = b"data: " + jsons.dumps(value)
        else:
            repaired = repair_chunk(value)
        self._note(value)
        self.events += 1
        if not has_text(value["choices"]) and "prompt_progress" not in value:
            self.empties += 1
        self.has_content = self.has_content or not is_empty(repaired)
        if repaired is not value:
            event = b"data: " + jsons.dumps(repaired)
        elif not event.startswith(b"data:") or b"\n" in event:
            lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
            event = b"data: " + b" ".join(lines)
        return self._publish(event + b"\n\n", is_text=False)  # 5

    def _pass_plain(self, event: bytes, chunk: PlainChunk) -> bytes:
        """Return a chunk that needs no repair: its bytes with the public name."""
        if chunk.usage is not None:
            self.usage = chunk.usage
        if chunk.timings is not None:
            self.timings = chunk.timings
        if self._hides_usage and chunk.usage is not None and not chunk.choices:
            return b""
        for choice in chunk.choices:
            if choice.finish_reason:
                self.has_content = True
                self._note_finished(choice.index)
        self.events += 1
        if chunk.has_text:
            self.has_content = True
        else:
            self.empties += 1
        return self._publish(event + b"\n\n", is_text=chunk.is_text)

    def _publish(self, event: bytes, *, is_text: bool) -> bytes:
        """Return a chunk with the public model name, and learn its form where others can be like it.

        Args:
            event: With its blank line.
            is_text: It holds nothing but text, without numbers and a finish_reason.
        """
        old = self._old
        if old is None or old not in event:
            found = _MODEL_FIELD.search(event)
            if found is None:
                return event
            self._old = old = found.group()
        # Not before there is content: until then each event is looked at, since another server may answer.
        is_learnt = is_text and self.has_content and self._learnt < MIN_FORMS + self.events // MIN_FORMS
        if is_learnt and len(event) <= MAX_FORM_BYTES and event.count(b'"model"') == 1:
            self._learn_form(event)
        return event.replace(old, self._new, 1)

    def _learn_form(self, event: bytes) -> None:
        """Learn what precedes and follows the text of a chunk."""
        old, new = self._old, self._new
        found = _TEXT_FIELD.search(event)
        if found is None or old is None:
            return
        self._learnt += 1
        before, after = event[: found.start(1)], event[found.end(1) :]
        self._before, self._after, self._after_line = before, after, after[:-2]
        self._before_out, self._after_out = before.replace(old, new), after.replace(old, new)
        self._between_out = self._after_out + self._before_out
        self._mark, self._behind_mark = b"\n\n" + before[:MARK_BYTES], before[MARK_BYTES:]

    def _note(self, value: dict[str, Any]) -> None:
        """Note what a chunk says of numbers and the end."""
        if isinstance(value.get("usage"), dict):
            self.usage = value["usage"]
        if isinstance(value.get("timings"), dict):
            self.timings = value["timings"]
        for choice in value["choices"]:
            if choice.get("finish_reason"):
                self._note_finished(choice.get("index"))

    def _note_finished(self, index: Any) -> None:
        """Note that a choice has its finish_reason."""
        if self._choices > 1:
            self._finished.add(str(index))
        self._has_finished = len(self._finished) >= self._choices if self._choices > 1 else True

    def _note_late(self, whole: bytes) -> None:
        """Read the usage of events that come after `[DONE]`."""
        for event in whole.split(b"\n\n"):
            try:
                value = parse_event(event.strip(b"\n"))
            except InvalidEvent:
                continue
            if isinstance(value, dict) and isinstance(value.get("usage"), dict):
                self.usage = value["usage"]
