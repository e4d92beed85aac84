"""Ollama's messages and tools as OpenAI's. Pure.

Images become data URIs, arguments become text, every call gets an id.
"""

import base64
import binascii
from typing import Any

from appliance.base import jsons
from appliance.base.errors import Invalid
from appliance.front.pipeline.body import json_type_of

_IMAGE_TYPES = (  # first bytes → media type
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)
UNKNOWN_TYPE = "application/octet-stream"  # the engine detects it


def to_openai_messages(messages: list[dict[str, Any]], *, where: str = "messages") -> list[dict[str, Any]]:
    """Return a conversation as OpenAI's messages.

    Args:
        messages: Objects with a role (checked before).
        where: The path of the field at fault in an error; "" = its name alone.

    Raises:
        Invalid: A field has the wrong type, or an image is not base64.
    """
    ids = _CallIds()
    return [
        _message(message, f"{where}.{number}." if where else "", number, ids)
        for number, message in enumerate(messages)
    ]


def to_openai_tools(tools: list[Any]) -> list[dict[str, Any]]:
    """Return `tools` as OpenAI's, which differ only where `type` is missing.

    Raises:
        Invalid: A tool has no function with a name.
    """
    for number, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Invalid(
                f"`tools.{number}` must be an object with `function.name`.",
                param=f"tools.{number}.function.name",
            )
    return [{**tool, "type": tool.get("type") or "function"} for tool in tools]


class _CallIds:
    """Matches tool results with their calls: by id in OpenAI's messages, by name or order in Ollama's."""

    def __init__(self) -> None:
        self._open: list[tuple[str, str]] = []  # (id, name) of the calls without a result

    def add(self, call_id: str, name: str) -> None:
        self._open.append((call_id, name))

    def match(self, message: dict[str, Any], number: int) -> str:
        """Return the id of the call that a tool's message belongs to.

        1. by its tool_call_id     2. the first open call of its tool_name     3. the first open call
        4. none is found: its own id, or a new one
        """
        given, name = message.get("tool_call_id"), message.get("tool_name")
        if given:  # 1
            found = next((call for call in self._open if call[0] == given), None)
        elif name:  # 2
            found = next((call for call in self._open if call[1] == name), None)
        else:  # 3
            found = self._open[0] if self._open else None
        if found is None:  # 4
            return str(given or f"call_{number}_0")
        self._open.remove(found)
        return found[0]


def _message(message: dict[str, Any], where: str, number: int, ids: _CallIds) -> dict[str, Any]:
    out: dict[str, Any] = {"role": message["role"], "content": _content(message, where)}
    if isinstance(message.get("thinking"), str) and message["thinking"]:
        out["reasoning_content"] = message["thinking"]
    if calls := _calls(message, where, number):
        out["tool_calls"] = calls
        for call in calls:
            ids.add(call["id"], call["function"]["name"])
    if message["role"] == "tool":
        out |= _tool_result(message, where, number, ids)
    return out


def _calls(message: dict[str, Any], where: str, number: int) -> list[dict[str, Any]]:
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise Invalid(
            f"`{where}tool_calls` must be an array, not {json_type_of(calls)}.", param=f"{where}tool_calls"
        )
    return [
        _call(call, f"{where}tool_calls.{index}", f"call_{number}_{index}")
        for index, call in enumerate(calls or [])
    ]


def _tool_result(message: dict[str, Any], where: str, number: int, ids: _CallIds) -> dict[str, Any]:
    """Return the fields that only a tool's message has."""
    for name in ("tool_name", "tool_call_id"):
        if not isinstance(message.get(name), (str, type(None))):
            raise Invalid(
                f"`{where}{name}` must be a string, not {json_type_of(message[name])}.",
                param=f"{where}{name}",
            )
    fields = {"tool_call_id": ids.match(message, number)}
    return fields | ({"name": message["tool_name"]} if message.get("tool_name") else {})


def _content(message: dict[str, Any], where: str) -> Any:
    """Return a message's content: text, or parts where it has images."""
    content, images = message.get("content") or "", message.get("images")
    if images is not None and not isinstance(images, list):
        raise Invalid(
            f"`{where}images` must be an array of base64 strings, not {json_type_of(images)}.",
            param=f"{where}images",
        )
    if not images:
        return content
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
    return [
        *parts,
        *(
            {"type": "image_url", "image_url": {"url": to_data_uri(image, f"{where}images.{index}")}}
            for index, image in enumerate(images)
        ),
    ]


def _call(call: Any, where: str, new_id: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Invalid(f"`{where}.function.name` must be a string.", param=f"{where}.function.name")
    arguments = {} if function.get("arguments") is None else function["arguments"]
    if not isinstance(arguments, (dict, str)):
        raise Invalid(
            f"`{where}.function.arguments` must be an object, not {json_type_of(arguments)}.",
            param=f"{where}.function.arguments",
        )
    text = arguments if isinstance(arguments, str) else jsons.dumps_text(arguments)
    given = call.get("id")
    return {
        "id": given if isinstance(given, str) and given else new_id,
        "type": "function",
        "function": {"name": function["name"], "arguments": text},
    }


def to_data_uri(image: Any, param: str) -> str:
    """Return an image as a data URI.

    Args:
        image: Base64, line breaks allowed; or a data URI.
        param: The path of the field in an error.

    Raises:
        Invalid: It is not base64, or empty.
    """
    text = image if isinstance(image, str) else ""
    if text.startswith("data:"):
        text = text.partition(";base64,")[2]
    text = text.replace("\n", "").replace("\r", "")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise Invalid(f"`{param}` must be an image in base64.", param=param)
    return f"data:{detect_media_type(data)};base64,{text}"


def detect_media_type(data: bytes) -> str:
    """Return an image's media type, from its first bytes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:12] in {b"ftypavif", b"ftypheic"}:
        return f"image/{data[8:12].decode()}"
    return next((name for magic, name in _IMAGE_TYPES if data.startswith(magic)), UNKNOWN_TYPE)
