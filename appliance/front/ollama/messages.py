"""Ollama's messages and tools into OpenAI's: images become data URIs, tool arguments become text, every call gets an id. Pure."""

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
UNKNOWN_TYPE = "application/octet-stream"  # the engine looks for itself


def messages_up(messages: list[dict[str, Any]], *, where: str = "messages") -> list[dict[str, Any]]:
    """Translate a conversation.

    Takes   messages: each an object with a role (checked before); where: how a field at fault is named, "" = by itself
    Raises  Invalid: with the field at fault
    """
    ids = _CallIds()
    return [
        _message(message, f"{where}.{number}." if where else "", number, ids)
        for number, message in enumerate(messages)
    ]


def tools_up(tools: list[Any]) -> list[dict[str, Any]]:
    """Translate `tools`, which differ only where `type` is missing.

    Raises  Invalid: a tool without a function
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
    """Joins tool results to the calls that they answer: OpenAI's messages do it by id, Ollama's by name or by order."""

    def __init__(self) -> None:
        self._open: list[tuple[str, str]] = []  # (id, name) of the calls without a result yet

    def called(self, call_id: str, name: str) -> None:
        self._open.append((call_id, name))

    def answered(self, message: dict[str, Any], number: int) -> str:
        """Give the id of the call that a tool's message answers.

        1. the id it gives     2. the first open call of its tool_name     3. the first open call     4. a new id
        """
        given, name = message.get("tool_call_id"), message.get("tool_name")
        found = (
            next((c for c in self._open if c[0] == given), None)
            if given
            # 1
            else (
                next((c for c in self._open if c[1] == name), None)
                if name
                # 2
                else (self._open[0] if self._open else None)
            )
        )  # 3
        if found is not None:
            self._open.remove(found)
            return found[0]
        return str(given or f"call_{number}_0")  # 4


def _message(message: dict[str, Any], where: str, number: int, ids: _CallIds) -> dict[str, Any]:
    out: dict[str, Any] = {"role": message["role"], "content": _content(message, where)}
    if isinstance(message.get("thinking"), str) and message["thinking"]:
        out["reasoning_content"] = message["thinking"]
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise Invalid(
            f"`{where}tool_calls` must be an array, not {json_type_of(calls)}.", param=f"{where}tool_calls"
        )
    if calls:
        out["tool_calls"] = [
            _call(call, f"{where}tool_calls.{k}", f"call_{number}_{k}") for k, call in enumerate(calls)
        ]
        for call in out["tool_calls"]:
            ids.called(call["id"], call["function"]["name"])
    if message["role"] == "tool":
        for name in ("tool_name", "tool_call_id"):
            if not isinstance(message.get(name), (str, type(None))):
                raise Invalid(
                    f"`{where}{name}` must be a string, not {json_type_of(message[name])}.",
                    param=f"{where}{name}",
                )
        out["tool_call_id"] = ids.answered(message, number)
        if message.get("tool_name"):
            out["name"] = message["tool_name"]
    return out


def _content(message: dict[str, Any], where: str) -> Any:
    """Give a message's content: text, or parts when it has images."""
    content, images = message.get("content") or "", message.get("images")
    if images is not None and not isinstance(images, list):
        raise Invalid(
            f"`{where}images` must be an array of base64 texts, not {json_type_of(images)}.",
            param=f"{where}images",
        )
    if not images:
        return content
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
    return [
        *parts,
        *(
            {"type": "image_url", "image_url": {"url": data_uri(image, f"{where}images.{index}")}}
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


def data_uri(image: Any, param: str) -> str:
    """Give an image as a data URI.

    Takes   image: base64, line breaks allowed; a data URI is taken too; param: how it is named when it is at fault
    Raises  Invalid: it is no base64, or empty
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
        raise Invalid(f"`{param}` is no base64 text of an image.", param=param)
    return f"data:{media_type_of(data)};base64,{text}"


def media_type_of(data: bytes) -> str:
    """Tell an image's media type from its first bytes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:12] in {b"ftypavif", b"ftypheic"}:
        return f"image/{data[8:12].decode()}"
    return next((name for magic, name in _IMAGE_TYPES if data.startswith(magic)), UNKNOWN_TYPE)
