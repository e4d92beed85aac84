"""Whole responses and chunks of an engine: checked, and with texts and arguments of one type. Pure."""

from typing import Any

from appliance.engines.upstream.error_event import ErrorEvent, find_error
from appliance.engines.upstream.reply_text import (
    REASONING_NAMES,
    invalid_reply,
    read_content,
    read_finish,
    read_message,
    read_reasoning,
    read_refusal,
    read_text,
)
from appliance.engines.upstream.tool_calls import ToolCalls, read_arguments, read_calls

TEXT_NAMES = ("content", "refusal", *REASONING_NAMES)


def find_reply_error(reply: dict[str, Any]) -> ErrorEvent | None:
    """Return the error that a response of status 200 reports; None = it reports none."""
    if "choices" in reply or "data" in reply:
        return find_error({"choices": reply.get("choices") or [], "error": reply.get("error") or None})
    return find_error(reply)


def repair_reply(reply: dict[str, Any]) -> dict[str, Any]:
    """Return a completion or embeddings; the same object, if nothing had to be changed.

    1. content in parts     → its text
    2. arguments an object  → as text
    3. usage not an object  → left out

    Raises:
        UpstreamFailed: A field has a wrong type.
    """
    repaired = reply
    if reply.get("usage") is not None and not isinstance(reply["usage"], dict):
        repaired = {**reply, "usage": None}  # 3
    if "choices" not in reply:
        if not isinstance(reply.get("data"), list):
            raise invalid_reply("`data` is not an array")
        return repaired
    choices = reply["choices"]
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise invalid_reply("`choices` is not an array of objects")
    changed = [_repair_choice(choice) for choice in choices]
    if all(new is old for new, old in zip(changed, choices, strict=True)):
        return repaired
    return {**repaired, "choices": changed}


def repair_chunk(chunk: dict[str, Any]) -> dict[str, Any]:
    """Return a chunk of a stream; the same object, if nothing had to be changed.

    1. content in parts                → its text
    2. a tool call's arguments object  → as text

    Raises:
        UpstreamFailed: A field has a wrong type.
    """
    choices = chunk["choices"]
    if not isinstance(choices, list):
        raise invalid_reply("`choices` is not an array of objects")
    changed = [_repair_piece(choice) for choice in choices]
    if all(new is old for new, old in zip(changed, choices, strict=True)):
        return chunk
    return {**chunk, "choices": changed}


def _repair_piece(choice: Any) -> dict[str, Any]:
    if not isinstance(choice, dict):
        raise invalid_reply("`choices` is not an array of objects")
    read_text(choice.get("text"), "text")
    read_finish(choice)
    delta = read_message(choice, "delta")
    changes = _repair_texts(delta)
    calls = delta.get("tool_calls")
    if calls:
        ToolCalls().add(calls)  # for the types
        if any(isinstance((call.get("function") or {}).get("arguments"), dict) for call in calls):
            changes["tool_calls"] = [_with_text(call) for call in calls]  # 2
    legacy = delta.get("function_call")
    if legacy is not None:
        ToolCalls().add([{"function": legacy}])
        changes |= _with_text({"function_call": legacy}, "function_call") if _has_object(legacy) else {}
    return {**choice, "delta": {**delta, **changes}} if changes else choice


def _has_object(function: dict[str, Any]) -> bool:
    return isinstance(function.get("arguments"), dict)


def _with_text(call: dict[str, Any], name: str = "function") -> dict[str, Any]:
    """Return a fragment of a tool call with its arguments as text."""
    function = call.get(name) or {}
    return {**call, name: {**function, "arguments": read_arguments(function.get("arguments"))}}


def _repair_texts(message: dict[str, Any]) -> dict[str, Any]:
    """Return the texts of a message or delta that are not text already."""
    changes: dict[str, Any] = {}
    if isinstance(message.get("content"), list):
        changes["content"] = read_content(message)  # 1
        if refusal := read_refusal(message):
            changes["refusal"] = refusal
        if reasoning := read_reasoning(message):
            changes["reasoning_content"] = reasoning
    for name in TEXT_NAMES:
        value = message.get(name)
        if value is not None and not isinstance(value, str):
            changes.setdefault(name, read_text(value, name))
    return changes


def _repair_choice(choice: dict[str, Any]) -> dict[str, Any]:
    read_text(choice.get("text"), "text")
    finish = read_finish(choice)
    if finish is not None and finish is not choice["finish_reason"]:
        choice = {**choice, "finish_reason": finish}
    message = read_message(choice, "message")
    changes = _repair_texts(message)  # 1
    calls = message.get("tool_calls")
    if calls and not _are_plain(calls):
        changes["tool_calls"] = read_calls(message)  # 2
    legacy = message.get("function_call")
    if legacy is not None:
        call = read_calls({"function_call": legacy})[0]["function"]
        if call != legacy:
            changes["function_call"] = call
    return {**choice, "message": {**message, **changes}} if changes else choice


def _are_plain(calls: Any) -> bool:
    """Return whether tool calls are as OpenAI's API has them."""
    if not isinstance(calls, list):
        return False
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return False
        if not isinstance(function.get("arguments"), str) or not isinstance(call.get("id"), str | None):
            return False
    return True
