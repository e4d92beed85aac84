"""A request of the Responses API as a chat request. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.base.errors import Invalid
from appliance.front.openai.responses_items import item_list, more_tools, to_chat_messages
from appliance.front.openai.responses_tools import Tools, to_functions, to_tool_choice
from appliance.front.pipeline.body import json_type_of

SAME_FIELDS = {  # of the same name and meaning in both APIs
    "temperature",
    "top_p",
    "user",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "safety_identifier",
    "prompt_cache_key",
    "service_tier",
    "top_k",
    "min_p",
    "repetition_penalty",
}
SCHEMA_FIELDS = ("name", "schema", "strict", "description")
FORMATS = ("text", "json_object", "json_schema")
LOGPROBS = "message.output_text.logprobs"  # in `include`
EFFORTS = {"xhigh": "high", "max": "high"}  # beyond what engines know


@dataclass(slots=True)
class ChatRequest:
    """What a request became.

    Attributes:
        body: Of a chat request, without `model` and `stream`.
        tools: The client's tools by the functions that they became.
        has_logprobs: The client asked for the tokens' probabilities.
        ignored: What was left out, for the header.
    """

    body: dict[str, Any]
    tools: Tools
    has_logprobs: bool = False
    ignored: list[str] = field(default_factory=list)


def to_chat(
    payload: dict[str, Any],
    items: list[dict[str, Any]] | None = None,
    former: Sequence[dict[str, Any]] = (),
) -> ChatRequest:
    """Return the chat request of a Responses request.

    Args:
        payload: The JSON body; the types of its fields are checked.
        items: `input` as items, references resolved; None = they are read from `payload`.
        former: The items of the conversation that it continues.

    Raises:
        Invalid: Something is invalid, or chat completions cannot do it; `param` names it.
    """
    _refuse_stored_state(payload)
    body: dict[str, Any] = {
        name: value for name, value in payload.items() if name in SAME_FIELDS and value is not None
    }
    given = item_list(payload.get("input")) if items is None else items
    more = [*more_tools(former, "previous_response_id"), *more_tools(given, "input")]
    tools = to_functions(payload.get("tools") or [], more)
    body["messages"], ignored = to_chat_messages(payload.get("instructions"), given, tools, former)
    if payload.get("max_output_tokens") is not None:
        body["max_tokens"] = payload["max_output_tokens"]
    if payload.get("tools") or more:
        body |= _tool_fields(payload, tools)
    reasoning = payload.get("reasoning")
    if isinstance(reasoning, dict) and reasoning.get("effort"):
        body["reasoning_effort"] = _effort(reasoning["effort"])
    if isinstance(payload.get("text"), dict):
        body |= _text_fields(payload["text"])
    has_logprobs = LOGPROBS in (payload.get("include") or []) or payload.get("top_logprobs") is not None
    if has_logprobs:
        body["logprobs"] = True
        if payload.get("top_logprobs"):
            body["top_logprobs"] = payload["top_logprobs"]
    return ChatRequest(body, tools, has_logprobs, [*tools.ignored, *ignored])


def _refuse_stored_state(payload: dict[str, Any]) -> None:
    if payload.get("conversation"):
        raise Invalid(
            "`conversation` is not supported. Send `previous_response_id`, or the former items in `input`.",
            param="conversation",
            code="not_supported",
        )
    if payload.get("background"):
        raise Invalid(
            "`background` is not supported: a response is made while the client waits.",
            param="background",
            code="not_supported",
        )


def _tool_fields(payload: dict[str, Any], tools: Tools) -> dict[str, Any]:
    """Return chat's fields for the tools; nothing where none of them is left."""
    choice = payload.get("tool_choice")
    wanted = to_tool_choice(choice, tools) if choice is not None else None
    if not tools.functions:
        return {}
    fields: dict[str, Any] = {"tools": tools.functions}
    if wanted is not None:
        fields["tool_choice"] = wanted
    if payload.get("parallel_tool_calls") is not None:
        fields["parallel_tool_calls"] = payload["parallel_tool_calls"]
    return fields


def _effort(effort: Any) -> str:
    if not isinstance(effort, str):
        raise _wrong_type("reasoning.effort", "a string", effort)
    return EFFORTS.get(effort, effort)


def _text_fields(text: dict[str, Any]) -> dict[str, Any]:
    """Return chat's fields for `text`: the verbosity, and the format where it is JSON."""
    fields: dict[str, Any] = {}
    if text.get("verbosity"):
        fields["verbosity"] = text["verbosity"]
    wanted = text.get("format")
    if wanted is None:
        return fields
    if not isinstance(wanted, dict):
        raise _wrong_type("text.format", "an object", wanted)
    kind = wanted.get("type")
    if kind not in FORMATS:
        raise Invalid(
            f"`text.format.type` must be one of {', '.join(FORMATS)}.",
            param="text.format.type",
            code="invalid_value",
        )
    if kind == "json_schema":
        if not isinstance(wanted.get("schema"), dict):
            raise _wrong_type("text.format.schema", "an object", wanted.get("schema"))
        schema = {name: wanted[name] for name in SCHEMA_FIELDS if wanted.get(name) is not None}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif kind == "json_object":
        fields["response_format"] = {"type": "json_object"}
    return fields


def _wrong_type(path: str, wanted: str, found: Any) -> Invalid:
    return Invalid(f"`{path}` must be {wanted}, not {json_type_of(found)}.", param=path, code="invalid_type")
