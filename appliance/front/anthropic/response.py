"""A chat reply as a message of Anthropic's API. Pure.

Source: Anthropic's API reference, "Messages"; the types of its official Python SDK 2.14.
"""

import os
from typing import Any

from appliance.engines.upstream.reply_text import (
    invalid_reply,
    read_choices,
    read_content,
    read_finish,
    read_message,
    read_reasoning,
    read_refusal,
)
from appliance.engines.upstream.token_counts import read_cache_counts, read_count
from appliance.engines.upstream.tool_calls import parse_arguments, read_calls

STOP_REASONS = {  # by chat's finish_reason; any other one is end_turn
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


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
        UpstreamFailed: It has no choices, or a field of a wrong type.
    """
    choices = read_choices(reply)
    if not choices:
        raise invalid_reply("it has no `choices`")
    message = read_message(choices[0], "message")
    content: list[dict[str, Any]] = []
    reasoning = read_reasoning(message)
    if reasoning and shows_thinking:
        content.append({"type": "thinking", "thinking": reasoning, "signature": ""})
    if text := read_content(message) + read_refusal(message):
        content.append({"type": "text", "text": text})
    calls = read_calls(message)
    content += [_tool_use(call) for call in calls]
    reason, sequence = stop_of(read_finish(choices[0]), choices[0], has_calls=bool(calls))
    return {
        **new_message(model),
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": usage_object(reply.get("usage")),
    }


def stop_of(finish: str | None, choice: dict[str, Any], *, has_calls: bool) -> tuple[str, str | None]:
    """Return why a reply ended.

    1. it calls tools                         → tool_use, whatever the engine calls it
    2. a stop sequence, and which one         → known of vLLM (`stop_reason`) and SGLang (`matched_stop`)
    3. otherwise                              → by chat's finish_reason

    Args:
        finish: Chat's finish_reason; None = it was not given.
        choice: The choice that has it.
        has_calls: The reply calls tools.

    Returns:
        (stop_reason, the stop sequence that was met or None).
    """
    reason = STOP_REASONS.get(finish or "stop", "end_turn")
    if has_calls and reason == "end_turn":  # 1
        return "tool_use", None
    for name in ("stop_reason", "matched_stop"):  # 2
        sequence = choice.get(name)
        if reason == "end_turn" and isinstance(sequence, str) and sequence:
            return "stop_sequence", sequence
    return reason, None  # 3


def usage_object(usage: Any) -> dict[str, int]:
    """Return chat's usage under Anthropic's names: tokens of a prompt cache are counted apart."""
    usage = usage if isinstance(usage, dict) else {}
    cached, written = read_cache_counts(usage)
    prompt = read_count(usage.get("prompt_tokens"))
    return {
        "input_tokens": max(0, prompt - cached - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "output_tokens": read_count(usage.get("completion_tokens")),
    }


def _tool_use(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    return {
        "type": "tool_use",
        "id": call.get("id") or new_id("toolu"),
        "name": function["name"],
        "input": parse_arguments(arguments if arguments.strip() else ""),
    }
