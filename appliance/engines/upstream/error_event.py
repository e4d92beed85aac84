"""Errors that a server reports inside a response of status 200, and the words of error bodies. Pure.

Source: what llama.cpp, vLLM, SGLang, Novita, OpenRouter, FastAPI and gateways send.
"""

from typing import Any, NamedTuple

from appliance.base import jsons

MAX_WORDS = 2_000  # characters of an upstream's sentence that are passed on
_WORDS = ("message", "detail", "error_description", "msg", "error", "errors", "reason", "title")


class ErrorEvent(NamedTuple):
    """An error that an event reports.

    Attributes:
        message: The upstream's own words; "" = it says none.
        status: The HTTP status that it names; None = none.
        body: What it would have been as the body of an error status.
    """

    message: str
    status: int | None
    body: dict[str, Any]


def find_error(event: dict[str, Any]) -> ErrorEvent | None:
    """Return the error that an event reports; None = it reports none.

    1. `error`, whatever else is there
    2. `object` or `type` is "error"
    3. a choice whose finish_reason is "error"
    4. no `choices`, but `detail`, `errors`, or a message

    Args:
        event: An event's object. One that is named `error` has its data under `error` (base/sse.py).
    """
    error, choices = event.get("error"), event.get("choices")
    if error or (error is not None and error is not False and not choices):  # 1
        return _describe(event, error)
    if event.get("object") == "error" or event.get("type") == "error":  # 2
        return _describe(event, event)
    if isinstance(choices, list):
        for choice in choices:
            if isinstance(choice, dict) and choice.get("finish_reason") == "error":  # 3
                return _describe(event, choice.get("error"))
        return None
    if choices is None and event.get("type") != "ping":  # 4
        for name in ("detail", "errors", "message"):
            if event.get(name):
                return _describe(event, event)
    return None


def _describe(event: dict[str, Any], error: Any) -> ErrorEvent:
    message = find_words(error) or find_words({k: v for k, v in event.items() if k != "choices"})
    found = (
        _status(inner.get(name))
        for inner in (error, event)
        if isinstance(inner, dict)
        for name in ("code", "status", "status_code", "statusCode")
    )
    body = error if isinstance(error, dict) else {"message": message}
    return ErrorEvent(message, next((s for s in found if s), None), {"error": {**body, "message": message}})


def _status(value: Any) -> int | None:
    """Return an HTTP error status, given as a number or as text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) == 3:
        value = int(value)
    is_status = isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600
    return value if is_status else None


def find_words(value: Any, depth: int = 4) -> str:
    """Return the sentence in an error object, wherever it is; "" = there is none.

    Args:
        value: A text, an object with a message under one of its usual names, or an array of those.
        depth: How many objects it may lie within each other.
    """
    if isinstance(value, str):
        return value[:MAX_WORDS].strip()
    if not depth:
        return ""
    if isinstance(value, list):
        return "; ".join(filter(None, (find_words(item, depth - 1) for item in value[:8])))[:MAX_WORDS]
    if not isinstance(value, dict):
        return ""
    for name in _WORDS:
        if words := find_words(value.get(name), depth - 1):
            where = value.get("loc")
            if name == "msg" and isinstance(where, list):  # FastAPI: which field
                return f"{'.'.join(map(str, where[:8]))}: {words}"[:MAX_WORDS]
            return words
    return ""


def is_empty(event: dict[str, Any]) -> bool:
    """Return whether a chunk holds nothing yet: a role, empty text. Until then another server may answer."""
    choices = event.get("choices")
    if not isinstance(choices, list) or "prompt_progress" in event:
        return False
    for choice in choices:
        if not isinstance(choice, dict) or choice.get("finish_reason"):
            return False
    return not has_text(choices)


def has_text(choices: list[dict[str, Any]]) -> bool:
    """Return whether the choices of a chunk hold text, a tool call or anything else but a role."""
    for choice in choices:
        if choice.get("text"):
            return True
        delta = choice.get("delta")
        if isinstance(delta, dict) and any(value for name, value in delta.items() if name != "role"):
            return True
    return False


def as_error_text(event: ErrorEvent) -> str:
    """Return the error as the text of an error body."""
    return jsons.dumps_text(event.body)
