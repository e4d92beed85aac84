"""Joins a stream of events to one whole response: the reverse of pacing.py. Pure.

Some engines continue to generate a whole response after its client has disconnected; in a stream they notice.
The chunks of OpenAI's chat and text completions are joined; of an engine's own fields the latest value is
kept.
"""

from typing import Any

from appliance.engines.upstream.relay import BrokenStream
from appliance.engines.upstream.reply_text import (
    REASONING_NAMES,
    invalid_reply,
    read_choices,
    read_content,
    read_finish,
    read_message,
    read_reasoning,
    read_refusal,
    read_text,
)
from appliance.engines.upstream.tool_calls import ToolCalls

WHOLE = {"chat.completion.chunk": "chat.completion", "text_completion": "text_completion"}
TEXTS = {"content", "refusal", *REASONING_NAMES}
MAX_CHOICES = 1024
MAX_TEXT_CHARS = 64 * 1024 * 1024  # of a whole response


class ResponseBuilder:
    """Build one response from its events: `add` each in turn, then `build`."""

    def __init__(self) -> None:
        self._top: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}
        self._chars = 0

    @property
    def has_begun(self) -> bool:
        """Whether an event was added."""
        return bool(self._top)

    def add(self, event: dict[str, Any]) -> None:
        """Add one event.

        Raises:
            UpstreamFailed: It is not a chunk of such a response.
        """
        for choice in read_choices(event):
            index = choice.get("index", 0)
            if index is None:
                index = 0
            if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < MAX_CHOICES:
                raise invalid_reply(f"the `index` of a choice is not an integer below {MAX_CHOICES}")
            if index not in self._choices:
                self._choices[index] = _Choice(index)
            self._chars += self._choices[index].add(choice)
            if self._chars > MAX_TEXT_CHARS:
                raise invalid_reply("it is longer than 64 MiB")
        for key, value in event.items():
            if key != "choices" and (value is not None or key not in self._top):
                self._top[key] = value

    def build(self) -> dict[str, Any]:
        """Return the whole response.

        Raises:
            BrokenStream: The events ended before every choice had its finish_reason.
        """
        choices = [self._choices[index].build() for index in sorted(self._choices)]
        if not choices or any(choice["finish_reason"] is None for choice in choices):
            raise BrokenStream("the stream ended before the response was complete")
        kind = str(self._top.get("object"))
        return {**self._top, "object": WHOLE.get(kind, kind), "choices": choices}


class _Choice:
    """One choice while its chunks arrive; texts are kept in pieces, so the work is linear."""

    def __init__(self, index: int) -> None:
        self._whole: dict[str, Any] = {"index": index, "finish_reason": None}
        self._message: dict[str, Any] = {}
        self._texts: dict[str, list[str]] = {}
        self._calls, self._function_call = ToolCalls(), ToolCalls()
        self._logprobs: dict[str, Any] | None = None
        self._is_chat = False

    def add(self, piece: dict[str, Any]) -> int:
        """Add the choice of one chunk; return how many characters of text it had."""
        chars = 0
        for key, value in piece.items():
            if key == "delta":
                self._is_chat = True
                chars += self._add_message(read_message(piece, "delta"))
            elif key == "text":
                chars += self._add_text("text", read_text(value, "text"))
            elif key == "logprobs":
                self._add_logprobs(value)
            elif key == "finish_reason":
                self._whole[key] = read_finish(piece) or self._whole[key]
            elif key != "index" and value is not None:
                self._whole[key] = value
        return chars

    def _add_message(self, delta: dict[str, Any]) -> int:
        chars = 0
        for key, value in delta.items():
            if value is None:
                continue
            if key == "content":
                chars += self._add_text(
                    key, read_content(delta) if isinstance(value, list) else read_text(value, key)
                )
                if isinstance(value, list):
                    chars += self._add_text(
                        "reasoning_content", read_reasoning({key: value}), is_optional=True
                    )
                    chars += self._add_text("refusal", read_refusal({key: value}), is_optional=True)
            elif key in TEXTS:
                chars += self._add_text(key, read_text(value, key))
            elif key == "tool_calls":
                self._calls.add(value)
            elif key == "function_call":
                self._function_call.add([{"index": 0, "function": value}])
            elif key == "role":
                self._message.setdefault("role", value)
            else:
                self._message[key] = value
        return chars

    def _add_text(self, key: str, text: str, *, is_optional: bool = False) -> int:
        if text or not is_optional:
            self._texts.setdefault(key, []).append(text)
        return len(text)

    def _add_logprobs(self, value: Any) -> None:
        """Join the lists of `logprobs` objects in place."""
        former = self._whole.get("logprobs")
        if not isinstance(former, dict) or not isinstance(value, dict):
            if value is not None or former is None:
                self._whole["logprobs"] = _copy_lists(value)
            return
        for key, new in value.items():
            old = former.get(key)
            if isinstance(new, list) and isinstance(old, list):
                old.extend(new)
            elif new is not None:
                former[key] = list(new) if isinstance(new, list) else new
            else:
                former.setdefault(key, None)

    def build(self) -> dict[str, Any]:
        """Return the choice; a whole message always has a role, and content (null beside calls)."""
        whole = dict(self._whole)
        texts = {key: "".join(pieces) for key, pieces in self._texts.items()}
        if "text" in texts:
            whole["text"] = texts.pop("text")
        if self._is_chat:
            message = {**texts, **self._message}
            if self._calls.calls:
                message["tool_calls"] = [call.render() for call in self._calls.calls]
            if self._function_call.calls:
                message["function_call"] = self._function_call.calls[0].render()["function"]
            has_calls = bool(self._calls.calls or self._function_call.calls)
            whole["message"] = {"role": "assistant", "content": None if has_calls else "", **message}
        return whole


def _copy_lists(logprobs: Any) -> Any:
    if not isinstance(logprobs, dict):
        return logprobs
    return {key: list(value) if isinstance(value, list) else value for key, value in logprobs.items()}
