"""A request of the Responses API as a chat request. Pure. Nothing is stored, so no id can be continued."""

from typing import Any

from appliance.base.errors import Invalid
from appliance.front.pipeline.body import json_type_of

SAME_FIELDS = {  # of the same name and meaning in both APIs
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
NEEDS_STORE = {  # field → what to do instead
    "previous_response_id": "; send the former messages in `input`",
    "conversation": "; send the former messages in `input`",
    "background": "",
}
SCHEMA_FIELDS = ("name", "schema", "strict", "description")
TOOL_FIELDS = ("name", "description", "parameters", "strict")


def chat_body(payload: dict[str, Any]) -> dict[str, Any]:
    """Return the chat body of a Responses request, without `model` and `stream`.

    Raises:
        Invalid: Something needs stored state, or chat completions cannot do it; `param` names it.
    """
    _refuse_stored_state(payload)
    body: dict[str, Any] = {
        name: value for name, value in payload.items() if name in SAME_FIELDS and value is not None
    }
    body["messages"] = chat_messages(payload)
    if payload.get("max_output_tokens") is not None:
        body["max_tokens"] = payload["max_output_tokens"]
    if payload.get("tools"):
        body["tools"] = [_tool(tool, number) for number, tool in enumerate(payload["tools"])]
        if payload.get("tool_choice") is not None:
            body["tool_choice"] = _tool_choice(payload["tool_choice"])
    reasoning = payload.get("reasoning")
    if isinstance(reasoning, dict) and reasoning.get("effort"):
        body["reasoning_effort"] = reasoning["effort"]
    if isinstance(payload.get("text"), dict):
        body |= _text_fields(payload["text"])
    return body


def _refuse_stored_state(payload: dict[str, Any]) -> None:
    for name, remedy in NEEDS_STORE.items():
        if payload.get(name):
            raise Invalid(
                f"`{name}` is not supported: responses are not stored{remedy}.",
                param=name,
                code="not_supported",
            )


def _text_fields(text: dict[str, Any]) -> dict[str, Any]:
    """Return chat's fields for `text`: the verbosity, and the format where it is JSON."""
    fields: dict[str, Any] = {}
    if text.get("verbosity"):
        fields["verbosity"] = text["verbosity"]
    given = text.get("format")
    wanted: dict[str, Any] = given if isinstance(given, dict) else {}
    kind = wanted.get("type")
    if kind == "json_schema":
        schema = {name: wanted[name] for name in SCHEMA_FIELDS if wanted.get(name) is not None}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif kind == "json_object":
        fields["response_format"] = {"type": "json_object"}
    return fields


def chat_messages(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the chat messages of `instructions` and `input` (a text, or a list of items).

    Raises:
        Invalid: `input` is missing or of another type, or an item is not supported.
    """
    messages: list[dict[str, Any]] = []
    if payload.get("instructions"):
        messages.append({"role": "system", "content": payload["instructions"]})
    given = payload.get("input")
    if isinstance(given, str) and given:
        return [*messages, {"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise Invalid(
            "`input` is required: a string, or an array with at least one item.",
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
    """Append one input item to the messages.

    1. a message
    2. a function call: joins the assistant's message before it
    3. a call's result
    4. reasoning: left out, chat has no field for it
    5. anything else is refused
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
            f"`{where}.type` {kind!r} is not supported.", param=f"{where}.type", code="not_supported"
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
                f"`{where}.{number}.type` {kind!r} is not supported.",
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
            f'`tools.{number}.type` {kind!r} is not supported; use "function".',
            param=f"tools.{number}.type",
            code="not_supported",
        )
    function = {name: tool[name] for name in TOOL_FIELDS if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice
