"""One whole answer out of a stream of events: the other way round than pacing.py. Pure.

For engines that go on working for nobody when a caller who wants the answer in one piece has left, and notice it in a stream.
What is added up and what is kept: OpenAI's chunks of chat and of text completions; fields that are not theirs (an engine's own)
are taken as they came last.
"""

from typing import Any

from appliance.engines.upstream.relay import BrokenStream

WHOLE = {"chat.completion.chunk": "chat.completion", "text_completion": "text_completion"}
TEXTS = {"content", "reasoning_content", "reasoning", "refusal"}


class ResponseBuilder:
    """Takes the events of one answer in turn; `whole` gives it."""

    def __init__(self) -> None:
        self._top: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    @property
    def has_begun(self) -> bool:
        return bool(self._top)

    def add(self, event: dict[str, Any]) -> None:
        """Take one event. Raises BrokenStream: it is no chunk of such an answer."""
        choices = event.get("choices")
        if not isinstance(choices, list):
            raise BrokenStream("an event has no choices")
        for choice in choices:
            if not isinstance(choice, dict):
                raise BrokenStream("a choice is no object")
            index = choice.get("index", 0)
            self._add_choice(self._choices.setdefault(index, {"index": index, "finish_reason": None}), choice)
        for key, value in event.items():
            if key != "choices" and (value is not None or key not in self._top):
                self._top[key] = value

    def build(self) -> dict[str, Any]:
        """Give the answer, as if it had come in one piece.

        Raises  BrokenStream: the events ended before every choice had
        """
        if not self._choices or any(choice["finish_reason"] is None for choice in self._choices.values()):
            raise BrokenStream("the stream ended before the answer was complete")
        kind = str(self._top.get("object"))
        choices = [_finished(self._choices[index]) for index in sorted(self._choices)]
        return {**self._top, "object": WHOLE.get(kind, kind), "choices": choices}

    def _add_choice(self, whole: dict[str, Any], piece: dict[str, Any]) -> None:
        for key, value in piece.items():
            if key == "delta":
                _add_message(whole.setdefault("message", {}), value if isinstance(value, dict) else {})
            elif key == "text":
                whole["text"] = whole.get("text", "") + (value or "")
            elif key == "logprobs":
                whole["logprobs"] = _joined(whole.get("logprobs"), value)
            elif value is not None:
                whole[key] = value


def _add_message(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        if value is None:
            continue
        if key in TEXTS:
            message[key] = message.get(key, "") + value
        elif key == "tool_calls":
            for call in value:
                _add_call(message.setdefault("tool_calls", []), call)
        elif key == "role":
            message.setdefault("role", value)
        else:
            message[key] = value


def _add_call(calls: list[dict[str, Any]], piece: dict[str, Any]) -> None:
    """Put a piece of a tool call where its `index` says; arguments are added up, everything else is said once."""
    index = piece.get("index", len(calls))
    while len(calls) <= index:
        calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
    call = calls[index]
    for key, value in piece.items():
        if key == "function" and isinstance(value, dict):
            function = call["function"]
            function["name"] = value.get("name") or function["name"]
            function["arguments"] += value.get("arguments") or ""
            function.update({k: v for k, v in value.items() if k not in {"name", "arguments"}})
        elif key != "index" and value is not None:
            call[key] = value


def _joined(former: Any, new: Any) -> Any:
    """Put the lists of two `logprobs` objects one after the other."""
    if not isinstance(former, dict) or not isinstance(new, dict):
        return former if new is None else new
    return {
        key: [*(former.get(key) or []), *value]
        if isinstance(value, list)
        else former.get(key)
        if value is None
        else value
        for key, value in {**former, **new}.items()
    }


def _finished(choice: dict[str, Any]) -> dict[str, Any]:
    """Put in what a whole answer always has: a role, and content, which is null beside tool calls that came without any."""
    if "message" not in choice:
        return choice
    message = {
        "role": "assistant",
        "content": None if choice["message"].get("tool_calls") else "",
        **choice["message"],
    }
    return {**choice, "message": message}
