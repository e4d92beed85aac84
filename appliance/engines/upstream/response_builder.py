"""Joins a stream of events to one whole response: the reverse of pacing.py. Pure.

Some engines continue to generate a whole response after its client has disconnected; in a stream they notice.
The chunks of OpenAI's chat and text completions are joined; of an engine's own fields the latest value is
kept.
"""

from typing import Any

from appliance.engines.upstream.relay import BrokenStream

WHOLE = {"chat.completion.chunk": "chat.completion", "text_completion": "text_completion"}
TEXTS = {"content", "reasoning_content", "reasoning", "refusal"}


class ResponseBuilder:
    """Build one response from its events: `add` each in turn, then `build`."""

    def __init__(self) -> None:
        self._top: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    @property
    def has_begun(self) -> bool:
        """Whether an event was added."""
        return bool(self._top)

    def add(self, event: dict[str, Any]) -> None:
        """Add one event.

        Raises:
            BrokenStream: It is not a chunk of such a response.
        """
        choices = event.get("choices")
        if choices is None:
            choices = []  # a ping, or usage alone
        elif not isinstance(choices, list):
            raise BrokenStream("the choices of an event are not an array")
        for choice in choices:
            if not isinstance(choice, dict):
                raise BrokenStream("a choice is not an object")
            index = choice.get("index", 0)
            self._add_choice(self._choices.setdefault(index, {"index": index, "finish_reason": None}), choice)
        for key, value in event.items():
            if key != "choices" and (value is not None or key not in self._top):
                self._top[key] = value

    def build(self) -> dict[str, Any]:
        """Return the whole response.

        Raises:
            BrokenStream: The events ended before every choice had its finish_reason.
        """
        if not self._choices or any(choice["finish_reason"] is None for choice in self._choices.values()):
            raise BrokenStream("the stream ended before the response was complete")
        kind = str(self._top.get("object"))
        choices = [_complete(self._choices[index]) for index in sorted(self._choices)]
        return {**self._top, "object": WHOLE.get(kind, kind), "choices": choices}

    def _add_choice(self, whole: dict[str, Any], piece: dict[str, Any]) -> None:
        for key, value in piece.items():
            if key == "delta":
                _add_message(whole.setdefault("message", {}), value if isinstance(value, dict) else {})
            elif key == "text":
                whole["text"] = whole.get("text", "") + (value or "")
            elif key == "logprobs":
                whole["logprobs"] = _join_logprobs(whole.get("logprobs"), value)
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
    """Add a piece to the tool call of its `index`: arguments are joined, other fields are sent once."""
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


def _join_logprobs(former: Any, new: Any) -> Any:
    """Join the lists of two `logprobs` objects."""
    if not isinstance(former, dict) or not isinstance(new, dict):
        return former if new is None else new
    joined = dict(former)
    for key, value in new.items():
        if isinstance(value, list):
            joined[key] = [*(former.get(key) or []), *value]
        elif value is not None:
            joined[key] = value
        else:
            joined.setdefault(key, None)
    return joined


def _complete(choice: dict[str, Any]) -> dict[str, Any]:
    """Add what a whole response always has: a role, and content (null beside tool calls)."""
    if "message" not in choice:
        return choice
    message = {
        "role": "assistant",
        "content": None if choice["message"].get("tool_calls") else "",
        **choice["message"],
    }
    return {**choice, "message": message}
