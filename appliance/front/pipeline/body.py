"""Parse a JSON request body and check the types of the known fields; other fields are not checked."""

from typing import Any

from appliance.base import jsons
from appliance.base.errors import Invalid

_NUMBER = (int, float)
_NAMES = {
    bool: "true or false",
    int: "an integer",
    _NUMBER: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
    (str, list): "a string or an array",
    (str, dict): "a string or an object",
    (str, list, dict): "a string, an array or an object",
}

OPENAI_TYPES: dict[str, Any] = {
    "model": str,
    "stream": bool,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "n": int,
    "max_tokens": int,
    "max_completion_tokens": int,
    "stop": (str, list),
    "seed": int,
    "presence_penalty": _NUMBER,
    "frequency_penalty": _NUMBER,
    "logit_bias": dict,
    "user": str,
    "tools": list,
    "tool_choice": (str, dict),
    "parallel_tool_calls": bool,
    "response_format": dict,
    "stream_options": dict,
    "top_logprobs": int,
    "reasoning_effort": str,
    "messages": list,
    "dimensions": int,
    "encoding_format": str,
}


def read_object(body: bytes) -> dict[str, Any]:
    """Parse a request body that must be one JSON object.

    Raises:
        Invalid: There is no body, it is not JSON in UTF-8, or not an object.
    """
    if not body.strip():
        raise Invalid("The request has no body. Send a JSON object.", code="missing_body")
    try:
        value = jsons.loads_utf8(body)
    except jsons.InvalidJson as exc:
        raise Invalid(f"The body is not valid JSON: {exc}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise Invalid(f"The body must be a JSON object, not {json_type_of(value)}.", code="invalid_json")
    return value


def check_types(body: dict[str, Any], types: dict[str, Any]) -> None:
    """Check the types of the known fields; null counts as absent.

    Args:
        types: Type, or tuple of types, by field name.

    Raises:
        Invalid: The first field of a wrong type.
    """
    for name, value in body.items():
        wanted = types.get(name)
        if wanted is None or value is None:
            continue
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise Invalid(
                f"`{name}` must be {_NAMES[wanted]}, not {json_type_of(value)}.",
                param=name,
                code="invalid_type",
            )


def check_messages(messages: Any) -> None:
    """Check OpenAI's `messages`: not empty, objects with a role; content is text, parts or null.

    Raises:
        Invalid: The first fault; `param` is the path of the field.
    """
    if not messages:
        raise Invalid(
            "messages required: `messages` must be an array with at least one message.",
            param="messages",
            code="missing_required_parameter",
        )
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise Invalid(
                f"`messages.{number}` must be an object, not {json_type_of(message)}.",
                param=f"messages.{number}",
                code="invalid_type",
            )
        if not isinstance(message.get("role"), str):
            raise Invalid(
                f'`messages.{number}.role` must be a string such as "user".',
                param=f"messages.{number}.role",
                code="missing_required_parameter" if "role" not in message else "invalid_type",
            )
        content = message.get("content")
        if content is not None and not isinstance(content, (str, list)):
            found = json_type_of(content)
            raise Invalid(
                f"`messages.{number}.content` must be a string or an array of parts, not {found}.",
                param=f"messages.{number}.content",
                code="invalid_type",
            )


def json_type_of(value: Any) -> str:
    """Name a JSON value's type in JSON's own words, with its article."""
    if value is None:
        return "null"
    for kind, word in (
        (bool, "a boolean"),
        (int, "an integer"),
        (float, "a number"),
        (str, "a string"),
        (list, "an array"),
    ):
        if isinstance(value, kind):
            return word
    return "an object"
