"""A request of Anthropic's Messages API as a chat request. Pure.

Source: Anthropic's API reference, "Messages"; the types of its official Python SDK 2.14.
"""

from dataclasses import dataclass, field
from typing import Any

from appliance.base.errors import Invalid
from appliance.front.anthropic.content import to_chat_messages
from appliance.front.anthropic.offered_tools import offered_tools
from appliance.front.pipeline.body import check_types, json_type_of

_NUMBER = (int, float)
TYPES: dict[str, Any] = {
    "model": str,
    "max_tokens": int,
    "messages": list,
    "stream": bool,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "top_k": int,
    "stop_sequences": list,
    "tools": list,
    "tool_choice": dict,
    "metadata": dict,
    "thinking": dict,
    "output_config": dict,
    "output_format": dict,
}
SAME_FIELDS = (  # of the same name and meaning in chat, or known to engines under this name
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
TRANSLATED = frozenset(
    {
        *TYPES,
        *SAME_FIELDS,
        "system",
        "cache_control",  # engines here cache prompts by themselves
        "service_tier",  # there is one tier
    }
)
EFFORTS = {  # chat's scale ends at high
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}
TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
THINKING = ("enabled", "disabled", "adaptive", "between_tools")


@dataclass(slots=True)
class MessagesRequest:
    """One request to `/v1/messages`, translated.

    Attributes:
        body: Chat's, without `model` and `stream`.
        thinks: Whether the model is to reason before it answers; None = as the model does.
        shows_thinking: Reasoning of the model is for the client to see.
        ignored: Names of valid fields, blocks and tools that cannot be used here.
    """

    body: dict[str, Any]
    thinks: bool | None = None
    shows_thinking: bool = True
    ignored: list[str] = field(default_factory=list)


def to_chat(payload: dict[str, Any], *, needs_max_tokens: bool = True) -> MessagesRequest:
    """Return a request as a chat.

    Args:
        payload: The request's body.
        needs_max_tokens: `max_tokens` is required, as it is for everything but counting.

    Raises:
        Invalid: A field is missing or invalid, or chat completions cannot do it; `param` is its path.
    """
    check_types(payload, TYPES)
    body: dict[str, Any] = {name: payload[name] for name in SAME_FIELDS if payload.get(name) is not None}
    if needs_max_tokens or payload.get("max_tokens") is not None:
        body["max_tokens"] = _max_tokens(payload.get("max_tokens"))
    messages, ignored = to_chat_messages(payload)
    body["messages"] = messages
    translated = MessagesRequest(body, ignored=ignored)
    if stops := _stop_sequences(payload.get("stop_sequences")):
        body["stop"] = stops
    if tools := offered_tools(payload.get("tools") or [], payload["messages"]):
        _add_tools(translated, tools, payload.get("tool_choice"))
    _add_thinking(translated, payload.get("thinking") or {})
    _add_output(body, payload.get("output_config") or {}, payload.get("output_format"))
    user = (payload.get("metadata") or {}).get("user_id")
    if isinstance(user, str) and user:
        body["user"] = user
    translated.ignored += [
        name for name, value in payload.items() if name not in TRANSLATED and value is not None
    ]
    return translated


def _max_tokens(value: Any) -> int:
    if value is None:
        raise Invalid(
            "`max_tokens` is required: an integer of at least 1.",
            param="max_tokens",
            code="missing_required_parameter",
        )
    if value < 1:
        raise Invalid(
            f"`max_tokens` must be at least 1, not {value}.", param="max_tokens", code="invalid_value"
        )
    return int(value)


def _stop_sequences(values: Any) -> list[str]:
    for number, value in enumerate(values or []):
        if not isinstance(value, str) or not value:
            raise Invalid(
                f"`stop_sequences.{number}` must be a string that is not empty.",
                param=f"stop_sequences.{number}",
                code="invalid_type",
            )
    return list(values or [])


def _add_tools(
    translated: MessagesRequest, offered: list[tuple[str, Any]], choice: dict[str, Any] | None
) -> None:
    """Add the tools that the client runs, and how they are to be chosen.

    Tools that Anthropic defines (web search, code execution, …) are left out: the models here do not know
    them.

    Raises:
        Invalid: A tool or the choice is invalid, or no tool is left.
    """
    body, tools, left_out = translated.body, [], []
    for path, tool in offered:
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind is None or kind == "custom":
            tools.append(_tool(tool, path))
        else:
            left_out.append(str(kind))
    if not tools:
        raise Invalid(
            f"None of the tools is known here: {', '.join(kind[:64] for kind in left_out[:8])}. "
            "Send at least one tool with `input_schema`.",
            param="tools",
            code="not_supported",
        )
    translated.ignored += [f"tools.{kind}" for kind in left_out]
    body["tools"] = tools
    if choice is not None:
        body["tool_choice"] = _tool_choice(choice, {tool["function"]["name"] for tool in tools})
        if choice.get("disable_parallel_tool_use") is True:
            body["parallel_tool_calls"] = False


def _tool(tool: Any, where: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise Invalid(
            f"`{where}` must be an object, not {json_type_of(tool)}.", param=where, code="invalid_type"
        )
    for name, wanted, kind in (("name", "a string", str), ("input_schema", "an object", dict)):
        if not isinstance(tool.get(name), kind) or tool[name] == "":
            raise Invalid(
                f"`{where}.{name}` is required: {wanted}.",
                param=f"{where}.{name}",
                code="invalid_type" if tool.get(name) else "missing_required_parameter",
            )
    function = {"name": tool["name"], "parameters": tool["input_schema"]}
    function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: dict[str, Any], names: set[str]) -> Any:
    kind = choice.get("type")
    if kind == "tool":
        name = choice.get("name")
        if name not in names:
            raise Invalid(
                f"`tool_choice.name` {str(name)[:64]!r} is none of the tools that can be used here.",
                param="tool_choice.name",
                code="invalid_value",
            )
        return {"type": "function", "function": {"name": name}}
    if not isinstance(kind, str) or kind not in TOOL_CHOICES:
        raise Invalid(
            '`tool_choice.type` must be "auto", "any", "tool" or "none".',
            param="tool_choice.type",
            code="invalid_value",
        )
    return TOOL_CHOICES[kind]


def _add_thinking(translated: MessagesRequest, thinking: dict[str, Any]) -> None:
    """Add whether the model is to think.

    1. nothing is said, or adaptive → as the model's template has it
    2. enabled, disabled            → so, in the spelling of the engine that is asked
    3. a budget                     → not used: engines have no common field for it
    """
    kind = thinking.get("type")
    if kind is None and not thinking:  # 1
        return
    if kind not in THINKING:
        raise Invalid(
            '`thinking.type` must be "enabled", "disabled" or "adaptive".',
            param="thinking.type",
            code="invalid_value",
        )
    if kind in {"enabled", "disabled"}:  # 2
        translated.thinks = kind == "enabled"
    if thinking.get("budget_tokens") is not None:  # 3
        translated.ignored.append("thinking.budget_tokens")
    translated.shows_thinking = kind != "disabled" and thinking.get("display") != "omitted"


def _add_output(body: dict[str, Any], output: dict[str, Any], older_format: Any) -> None:
    """Add the effort, and the format where it is JSON of a schema."""
    effort = output.get("effort")
    if effort is not None:
        if not isinstance(effort, str) or effort not in EFFORTS:
            raise Invalid(
                f"`output_config.effort` must be one of {', '.join(EFFORTS)}.",
                param="output_config.effort",
                code="invalid_value",
            )
        body["reasoning_effort"] = EFFORTS[effort]
    wanted = output.get("format") or older_format
    if not wanted:
        return
    where = "output_config.format" if output.get("format") else "output_format"
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        raise Invalid(f'`{where}.type` must be "json_schema".', param=f"{where}.type", code="invalid_value")
    if not isinstance(wanted.get("schema"), dict):
        raise Invalid(
            f"`{where}.schema` is required: an object.",
            param=f"{where}.schema",
            code="missing_required_parameter",
        )
    schema = {"name": "output", "schema": wanted["schema"], "strict": True}
    body["response_format"] = {"type": "json_schema", "json_schema": schema}
