"""Text, reasoning and refusals of messages and deltas; wrong types are refused. Pure."""

from typing import Any

from appliance.base.errors import UpstreamFailed

REASONING_NAMES = ("reasoning_content", "reasoning", "thinking")


def invalid_reply(what: str) -> UpstreamFailed:
    """Return the error of a reply that is not of OpenAI's shape; `what` continues "…: "."""
    return UpstreamFailed(f"The engine's response is invalid: {what}.", code="upstream_rubbish")


def read_text(value: Any, name: str) -> str:
    """Return a text that may come as an array of parts.

    Args:
        value: Text, parts such as `{"type": "text", "text": "…"}`, or None. Other parts have no text.
        name: The field, for the error.

    Raises:
        UpstreamFailed: It is anything else.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if not isinstance(value, list):
        raise invalid_reply(f"`{name}` is neither text nor an array of parts")
    return "".join(_part_text(part, name) for part in value)


def _part_text(part: Any, name: str) -> str:
    if not isinstance(part, dict):
        raise invalid_reply(f"a part of `{name}` is not an object")
    if part.get("type") in {"thinking", "reasoning", "refusal"}:
        return ""  # read_reasoning and read_refusal have them
    text = part.get("text")
    if isinstance(text, dict):
        text = text.get("value")
    return read_text(text, name)


def read_content(message: dict[str, Any]) -> str:
    """Return the text of a chat's message or delta, or of a completion's choice (`text`)."""
    return read_text(message.get("content"), "content") or read_text(message.get("text"), "text")


def read_refusal(message: dict[str, Any]) -> str:
    """Return the refusal of a message or delta: a field, or parts of the content."""
    if refusal := read_text(message.get("refusal"), "refusal"):
        return refusal
    return _of_parts(message.get("content"), "refusal", ("refusal",))


def read_reasoning(message: dict[str, Any]) -> str:
    """Return the reasoning of a message or delta, under the first of its names that has text."""
    for name in REASONING_NAMES:
        if text := read_text(message.get(name), name):
            return text
    return _of_parts(message.get("content"), "thinking", ("thinking", "reasoning"))


def _of_parts(content: Any, name: str, kinds: tuple[str, ...]) -> str:
    """Join the parts of some kinds; each has its text under its kind, or as `text`."""
    if not isinstance(content, list):
        return ""
    parts = [part for part in content if isinstance(part, dict) and part.get("type") in kinds]
    return "".join(read_text(part.get(part["type"]) or part.get("text"), name) for part in parts)


def read_choices(value: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the choices of a chunk or a reply; a missing or null field has none.

    Raises:
        UpstreamFailed: They are not an array of objects.
    """
    choices = value.get("choices")
    if choices is None:
        return []
    if not isinstance(choices, list) or not all(isinstance(choice, dict | None) for choice in choices):
        raise invalid_reply("`choices` is not an array of objects")
    return [choice for choice in choices if choice is not None]


def read_message(choice: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the `message` or `delta` of a choice; {} = it has none.

    Raises:
        UpstreamFailed: It is not an object.
    """
    message = choice.get(name)
    if message is None:
        return {}
    if not isinstance(message, dict):
        raise invalid_reply(f"`{name}` is not an object")
    return message


def read_finish(choice: dict[str, Any]) -> str | None:
    """Return a choice's finish_reason; None = it has none yet.

    Raises:
        UpstreamFailed: It is not text.
    """
    finish = choice.get("finish_reason")
    if isinstance(finish, dict):
        finish = finish.get("type")  # SGLang's own form
    if finish is not None and not isinstance(finish, str):
        raise invalid_reply("`finish_reason` is not text")
    return finish or None
