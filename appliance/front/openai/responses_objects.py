"""The objects of OpenAI's Responses API: a response and the items of its output. Pure.

Source: OpenAI's API reference, "Responses".
"""

import os
from collections.abc import Mapping
from typing import Any

from appliance.engines.upstream.reply_text import read_content, read_reasoning, read_refusal
from appliance.engines.upstream.token_counts import read_cache_counts, read_count
from appliance.engines.upstream.tool_calls import read_calls
from appliance.front.openai.responses_tools import ClientTool, to_input, to_object

NO_TOOLS: Mapping[str, ClientTool] = {}
# By chat's finish_reason.
INCOMPLETE_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}


def new_id(prefix: str) -> str:
    """Return a new random id, such as `msg_…` for the prefix `msg`."""
    return f"{prefix}_{os.urandom(16).hex()}"


def new_response(payload: dict[str, Any], *, model: str, at_s: int, is_kept: bool = False) -> dict[str, Any]:
    """Return a response without output; the fields of the request are repeated in it.

    Args:
        payload: The request's JSON body.
        model: The model's public name.
        at_s: Seconds since 1970.
        is_kept: It can be retrieved and continued later.
    """
    given = payload.get("reasoning")
    reasoning = given if isinstance(given, dict) else {}
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": at_s,
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": payload.get("instructions"),
        "max_output_tokens": payload.get("max_output_tokens"),
        "max_tool_calls": payload.get("max_tool_calls"),
        "model": model,
        "output": [],
        "parallel_tool_calls": payload.get("parallel_tool_calls", True),
        "previous_response_id": payload.get("previous_response_id"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "store": is_kept,
        "temperature": payload.get("temperature", 1.0),
        "text": payload.get("text") or {"format": {"type": "text"}},
        "tool_choice": payload.get("tool_choice") or "auto",
        "tools": payload.get("tools") or [],
        "top_p": payload.get("top_p", 1.0),
        "truncation": payload.get("truncation") or "disabled",
        "usage": None,
        "user": payload.get("user"),
        "metadata": payload.get("metadata") or {},
    }


def finish_response(
    response: dict[str, Any], output: list[dict[str, Any]], *, finish: Any, usage: Any, at_s: int
) -> dict[str, Any]:
    """Return the response with its output, completed or incomplete.

    Args:
        response: From `new_response`.
        output: The items.
        finish: Chat's finish_reason.
        usage: Chat's usage; None where it was not reported.
        at_s: Seconds since 1970.
    """
    reason = INCOMPLETE_REASONS.get(finish)
    return {
        **response,
        "output": output,
        "usage": usage_object(usage),
        "status": "incomplete" if reason else "completed",
        "incomplete_details": {"reason": reason} if reason else None,
        "completed_at": None if reason else at_s,
    }


def usage_object(usage: Any) -> dict[str, Any] | None:
    """Return chat's usage under the names of the Responses API; None for anything else."""
    if not isinstance(usage, dict):
        return None
    cached, written = read_cache_counts(usage)
    reasoning = _count(usage.get("completion_tokens_details"), "reasoning_tokens")
    return {
        "input_tokens": _count(usage, "prompt_tokens"),
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        "output_tokens": _count(usage, "completion_tokens"),
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": _count(usage, "total_tokens"),
    }


def _count(numbers: Any, name: str) -> int:
    """Return a count of tokens; 0 where it is none."""
    return read_count(numbers.get(name)) if isinstance(numbers, dict) else 0


def message_item(
    item_id: str,
    text: str,
    *,
    status: str = "completed",
    is_refusal: bool = False,
    logprobs: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return a message of the assistant, text or a refusal; without content while it is in progress."""
    part = refusal_part(text) if is_refusal else text_part(text, logprobs)
    content = [] if status == "in_progress" else [part]
    return {"type": "message", "id": item_id, "role": "assistant", "status": status, "content": content}


def text_part(text: str, logprobs: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return a text as a part of a message, with the probabilities of its tokens."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}


def read_logprobs(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the probabilities of a choice's tokens, of one shape in both APIs; [] = there are none."""
    given = choice.get("logprobs")
    tokens = given.get("content") if isinstance(given, dict) else None
    if not isinstance(tokens, list):
        return []
    return [
        {**token, "bytes": token.get("bytes") or [], "top_logprobs": token.get("top_logprobs") or []}
        for token in tokens
        if isinstance(token, dict) and isinstance(token.get("token"), str) and "logprob" in token
    ]


def refusal_part(text: str) -> dict[str, Any]:
    """Return a refusal as a part of a message."""
    return {"type": "refusal", "refusal": text}


def reasoning_item(item_id: str, text: str) -> dict[str, Any]:
    """Return reasoning, as one summary; without one while there is no text."""
    summary = [{"type": "summary_text", "text": text}] if text else []
    return {"type": "reasoning", "id": item_id, "summary": summary}


def call_item(
    item_id: str, call: dict[str, Any], tool: ClientTool | None = None, *, status: str = "completed"
) -> dict[str, Any]:
    """Return a call from chat's tool call `{id, function: {name, arguments}}`.

    Args:
        tool: What the client calls the function; None = the same.
    """
    function = call.get("function") or {}
    arguments = function.get("arguments") or ""
    is_custom = tool is not None and tool.is_custom
    if tool is not None and tool.is_search:
        return {
            "type": "tool_search_call",
            "id": item_id,
            "call_id": call.get("id") or item_id,
            "execution": "client",
            "arguments": to_object(arguments),
            "status": status,
        }
    item = {
        "type": "custom_tool_call" if is_custom else "function_call",
        "id": item_id,
        "call_id": call.get("id") or item_id,
        "name": function.get("name", "") if tool is None else tool.name,
    }
    if is_custom:
        item["input"] = to_input(arguments) if status == "completed" else ""
    else:
        item["arguments"] = arguments
    item["status"] = status
    if tool is not None and tool.namespace:
        item["namespace"] = tool.namespace
    return item


def output_items(
    message: dict[str, Any],
    tools: Mapping[str, ClientTool] = NO_TOOLS,
    logprobs: list[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Return a chat message as items: reasoning, text, refusal, calls; at least one.

    Args:
        tools: The client's tools by the functions that they became.
        logprobs: The probabilities of the text's tokens.

    Raises:
        UpstreamFailed: A field has a wrong type.
    """
    items = []
    if reasoning := read_reasoning(message):
        items.append(reasoning_item(new_id("rs"), reasoning))
    text, refusal, calls = read_content(message), read_refusal(message), read_calls(message)
    if text or not (calls or refusal):
        items.append(message_item(new_id("msg"), text, logprobs=logprobs))
    if refusal:
        items.append(message_item(new_id("msg"), refusal, is_refusal=True))
    for call in calls:
        tool = tools.get((call.get("function") or {}).get("name", ""))
        items.append(call_item(new_id(call_prefix(tool)), call, tool))
    return items


def call_prefix(tool: ClientTool | None) -> str:
    """Return what the ids of a tool's calls begin with."""
    return "ctc" if tool is not None and tool.is_custom else "fc"
