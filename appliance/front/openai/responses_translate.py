"""OpenAI's Responses API into chat completions and back. Pure. Nothing is stored, so nothing can be continued by id."""

from typing import Any

from appliance.base.errors import Invalid
from appliance.front.pipeline.body import json_type_of

SAME = {
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "user",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "top_logprobs",
    "logit_bias",
    "safety_identifier",
    "prompt_cache_key",
    "service_tier",
    "top_k",
    "min_p",
    "repetition_penalty",
}
NEEDS_STORE = {
    "previous_response_id": "send the former turns in `input`",
    "conversation": "send the former turns in `input`",
}


def chat_body(ask: dict[str, Any]) -> dict[str, Any]:
    """Give the chat body for a Responses request.

    Raises  Invalid, with `param`, for what cannot be done without stored state or on chat completions
    """
    for name, remedy in NEEDS_STORE.items():
        if ask.get(name):
            raise Invalid(
                f"`{name}` needs stored responses, and none are stored here; {remedy}.",
                param=name,
                code="not_supported",
            )
    if ask.get("background"):
        raise Invalid(
            "`background` needs stored responses, and none are stored here.",
            param="background",
            code="not_supported",
        )
    body: dict[str, Any] = {name: value for name, value in ask.items() if name in SAME and value is not None}
    body["messages"] = messages_of(ask)
    if ask.get("max_output_tokens") is not None:
        body["max_tokens"] = ask["max_output_tokens"]
    if ask.get("tools"):
        body["tools"] = [_tool(tool, n) for n, tool in enumerate(ask["tools"])]
        if ask.get("tool_choice") is not None:
            body["tool_choice"] = _tool_choice(ask["tool_choice"])
    reasoning = ask.get("reasoning")
    if isinstance(reasoning, dict) and reasoning.get("effort"):
        body["reasoning_effort"] = reasoning["effort"]
    text = ask.get("text")
    if isinstance(text, dict):
        if text.get("verbosity"):
            body["verbosity"] = text["verbosity"]
        wanted = text.get("format")
        if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
            schema = {
                k: wanted[k] for k in ("name", "schema", "strict", "description") if wanted.get(k) is not None
            }
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif isinstance(wanted, dict) and wanted.get("type") == "json_object":
            body["response_format"] = {"type": "json_object"}
    return body


def messages_of(ask: dict[str, Any]) -> list[dict[str, Any]]:
    """Give chat messages for `instructions` and `input` (a text, or a list of items)."""
    messages: list[dict[str, Any]] = []
    if ask.get("instructions"):
        messages.append({"role": "system", "content": ask["instructions"]})
    given = ask.get("input")
    if isinstance(given, str) and given:
        return [*messages, {"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise Invalid(
            "`input` is required: a text, or an array of items that is not empty.",
            param="input",
            code="missing_required_parameter" if not given else "invalid_type",
        )
    for number, item in enumerate(given):
        if not isinstance(item, dict):
            raise Invalid(
                f"`input.{number}` must be an object, not {json_type_of(item)}.",
                param=f"input.{number}",
                code="invalid_type",
            )
        _add_item(messages, item, f"input.{number}")
    return messages


def _add_item(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    """Add one input item.

    1. a message             2. a call the model made (joined to the assistant's message before it)
    3. a call's result       4. reasoning: left out, chat has no place for it       5. anything else is refused
    """
    kind = item.get("type") or ("message" if "role" in item else "")
    if kind == "message":  # 1
        if not isinstance(item.get("role"), str):
            raise Invalid(
                f"`{where}.role` is missing.", param=f"{where}.role", code="missing_required_parameter"
            )
        messages.append({"role": item["role"], "content": _content(item.get("content"), f"{where}.content")})
    elif kind == "function_call":  # 2
        call = {
            "id": item.get("call_id") or item.get("id"),
            "type": "function",
            "function": {"name": item.get("name", ""), "arguments": item.get("arguments") or "{}"},
        }
        if messages and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("tool_calls", []).append(call)
        else:
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    elif kind == "function_call_output":  # 3
        output = item.get("output")
        messages.append(
            {
                "role": "tool",
                "tool_call_id": item.get("call_id"),
                "content": output if isinstance(output, str) else _content(output, f"{where}.output"),
            }
        )
    elif kind != "reasoning":  # 4, 5
        raise Invalid(
            f"`{where}.type` {kind!r} is not supported here.", param=f"{where}.type", code="not_supported"
        )


def _content(content: Any, where: str) -> Any:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise Invalid(
            f"`{where}` must be a string or an array of parts, not {json_type_of(content)}.",
            param=where,
            code="invalid_type",
        )
    parts: list[dict[str, Any]] = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in {"input_text", "output_text", "text"}:
            parts.append({"type": "text", "text": part.get("text", "")})
        elif kind == "input_image" and part.get("image_url"):
            parts.append(
                {
                    "type": "image_url",
                    "image_url": {"url": part["image_url"], "detail": part.get("detail") or "auto"},
                }
            )
        elif kind == "refusal":
            parts.append({"type": "text", "text": part.get("refusal", "")})
        else:
            raise Invalid(
                f"`{where}.{number}.type` {kind!r} is not supported here.",
                param=f"{where}.{number}.type",
                code="not_supported",
            )
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _tool(tool: Any, number: int) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        kind = tool.get("type") if isinstance(tool, dict) else json_type_of(tool)
        raise Invalid(
            f'`tools.{number}.type` {kind!r} is not supported here; only "function" is.',
            param=f"tools.{number}.type",
            code="not_supported",
        )
    return {
        "type": "function",
        "function": {
            k: tool[k] for k in ("name", "description", "parameters", "strict") if tool.get(k) is not None
        },
    }


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


def usage_of(usage: Any) -> dict[str, Any] | None:
    """Rename chat's usage."""
    if not isinstance(usage, dict):
        return None
    return {
        "input_tokens": usage.get("prompt_tokens") or 0,
        "input_tokens_details": {
            "cached_tokens": (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        },
        "output_tokens": usage.get("completion_tokens") or 0,
        "output_tokens_details": {
            "reasoning_tokens": (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
        },
        "total_tokens": usage.get("total_tokens") or 0,
    }


def shell_of(ask: dict[str, Any], *, response_id: str, model: str, at_s: int) -> dict[str, Any]:
    """Give a response object that has not said anything yet, with what was asked for."""
    reasoning = ask.get("reasoning") if isinstance(ask.get("reasoning"), dict) else {}
    return {
        "id": response_id,
        "object": "response",
        "created_at": at_s,
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": ask.get("instructions"),
        "max_output_tokens": ask.get("max_output_tokens"),
        "max_tool_calls": ask.get("max_tool_calls"),
        "model": model,
        "output": [],
        "parallel_tool_calls": ask.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "reasoning": {"effort": (reasoning or {}).get("effort"), "summary": (reasoning or {}).get("summary")},
        "store": False,
        "temperature": ask.get("temperature", 1.0),
        "text": ask.get("text") or {"format": {"type": "text"}},
        "tool_choice": ask.get("tool_choice") or "auto",
        "tools": ask.get("tools") or [],
        "top_p": ask.get("top_p", 1.0),
        "truncation": ask.get("truncation") or "disabled",
        "usage": None,
        "user": ask.get("user"),
        "metadata": ask.get("metadata") or {},
    }


def message_item(item_id: str, text: str, *, status: str = "completed") -> dict[str, Any]:
    content = (
        [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
        if status != "in_progress"
        else []
    )
    return {"type": "message", "id": item_id, "role": "assistant", "status": status, "content": content}


def reasoning_item(item_id: str, text: str) -> dict[str, Any]:
    return {
        "type": "reasoning",
        "id": item_id,
        "summary": [{"type": "summary_text", "text": text}] if text else [],
    }


def call_item(item_id: str, call: dict[str, Any], *, status: str = "completed") -> dict[str, Any]:
    function = call.get("function") or {}
    return {
        "type": "function_call",
        "id": item_id,
        "call_id": call.get("id") or item_id,
        "name": function.get("name", ""),
        "arguments": function.get("arguments") or "",
        "status": status,
    }


def ended(
    shell: dict[str, Any],
    output: list[dict[str, Any]],
    *,
    finish: Any,
    usage: Any,
    at_s: int,
) -> dict[str, Any]:
    """Give the finished response; `finish` is chat's finish_reason."""
    reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(finish)
    return {
        **shell,
        "output": output,
        "usage": usage_of(usage),
        "status": "incomplete" if reason else "completed",
        "incomplete_details": {"reason": reason} if reason else None,
        "completed_at": None if reason else at_s,
    }
