"""A chat reply as a message of Anthropic's API. Pure.

Source: Anthropic's API reference, "Messages"; the types of its official Python SDK 2.14.
"""

import os
from typing import Any

from appliance.base import jsons
from appliance.base.errors import UpstreamFailed

STOP_REASONS = {  # by chat's finish_reason; any other one is end_turn
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
BROKEN_ARGUMENTS = "_raw"  # the key of a tool call's input that is no JSON object


def new_id(prefix: str) -> str:
    """Return a new random id, such as `msg_…` for the prefix `msg`."""
    return f"{prefix}_{os.urandom(12).hex()}"


def new_message(model: str) -> dict[str, Any]:
    """Return a message without content, as a stream begins with it.

    Args:
        model: The model's public name.
    """
    return {
        "id": new_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage_object(None),
    }


def to_message(reply: dict[str, Any], *, model: str, shows_thinking: bool = True) -> dict[str, Any]:
    """Return a whole chat reply as a message.

    Args:
        reply: Chat's.
        model: The model's public name.
        shows_thinking: Reasoning becomes a block; else it is left out.

    Raises:
        UpstreamFailed: It has no choices.
    """
    choice = first_choice(reply)
    if choice is None:
        raise UpstreamFailed("The engine's response has no `choices`.", code="upstream_rubbish")
    given = choice.get("message")
    message = given if isinstance(given, dict) else {}
    content: list[dict[str, Any]] = []
    reasoning = reasoning_text(message)
    if reasoning and shows_thinking:
        content.append({"type": "thinking", "thinking": reasoning, "signature": ""})
    if text := message.get("content") or message.get("refusal"):
        content.append({"type": "text", "text": text})
    calls = [call for call in message.get("tool_calls") or [] if isinstance(call, dict)]
    content += [_tool_use(call) for call in calls]
    reason, sequence = stop_of(choice.get("finish_reason"), choice, has_calls=bool(calls))
    return {
        **new_message(model),
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": usage_object(reply.get("usage")),
    }


def first_choice(event: dict[str, Any]) -> dict[str, Any] | None:
    """Return the first choice of a chat reply or chunk; None = it has none."""
    choices = event.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    return None


def stop_of(finish: Any, choice: dict[str, Any], *, has_calls: bool) -> tuple[str, str | None]:
    """Return why a reply ended.

    1. it calls tools                         → tool_use, whatever the engine calls it
    2. a stop sequence, and which one         → known of vLLM (`stop_reason`) and SGLang (`matched_stop`)
    3. otherwise                              → by chat's finish_reason

    Args:
        finish: Chat's finish_reason.
        choice: The choice that has it.
        has_calls: The reply calls tools.

    Returns:
        (stop_reason, the stop sequence that was met or None).
    """
    reason = STOP_REASONS.get(finish, "end_turn") if isinstance(finish, str) else "end_turn"
    if has_calls and reason == "end_turn":  # 1
        return "tool_use", None
    for name in ("stop_reason", "matched_stop"):  # 2
        sequence = choice.get(name)
        if reason == "end_turn" and isinstance(sequence, str) and sequence:
            return "stop_sequence", sequence
    return reason, None  # 3


def usage_object(usage: Any) -> dict[str, int]:
    """Return chat's usage under Anthropic's names: tokens that were read from a cache are counted apart."""
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    prompt = _count(usage.get("prompt_tokens"))
    return {
        "input_tokens": max(0, prompt - cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": _count(usage.get("completion_tokens")),
    }


def reasoning_text(message: dict[str, Any]) -> str:
    """Return the reasoning of a chat message or delta, under either of its two names."""
    return str(message.get("reasoning_content") or message.get("reasoning") or "")


def arguments_text(function: dict[str, Any]) -> str:
    """Return the arguments of a call, or a fragment of them, as text; some engines send an object."""
    arguments = function.get("arguments") or ""
    return arguments if isinstance(arguments, str) else jsons.dumps_text(arguments)


def _tool_use(call: dict[str, Any]) -> dict[str, Any]:
    given = call.get("function")
    function = given if isinstance(given, dict) else {}
    return {
        "type": "tool_use",
        "id": call.get("id") or new_id("toolu"),
        "name": function.get("name") or "",
        "input": _parse_arguments(arguments_text(function)),
    }


def _parse_arguments(text: str) -> dict[str, Any]:
    try:
        value = jsons.loads(text) if text.strip() else {}
    except jsons.InvalidJson:
        value = None
    return value if isinstance(value, dict) else {BROKEN_ARGUMENTS: text}


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
