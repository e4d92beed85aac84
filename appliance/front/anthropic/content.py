"""Messages of Anthropic's API as chat messages. Pure.

Source: Anthropic's API reference, "Messages"; the types of its official Python SDK 2.14.
"""

from typing import Any

from appliance.base import jsons
from appliance.base.errors import Invalid
from appliance.front.anthropic.offered_tools import TOOL_CHANGES, changed_tool
from appliance.front.pipeline.body import json_type_of
from appliance.front.pipeline.chat_turns import ChatMessage, ChatTurns

ROLES = ("user", "assistant", "system")
# Left by tools that run on Anthropic's servers: no model here can read them.
SERVER_BLOCKS = frozenset(
    {
        "server_tool_use",
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "container_upload",
        "mcp_tool_use",
        "mcp_tool_result",
    }
)
UNREADABLE = "[A document was left out: no model here can read its form. Only plain text can be read.]"
# Claude Code begins its system prompt with this line, which differs in every request: no prompt would be
# found in an engine's cache.
BILLING_LINE = "x-anthropic-billing-header:"


def to_chat_messages(payload: dict[str, Any]) -> tuple[list[ChatMessage], list[str]]:
    """Return the chat messages of `system` and `messages`.

    Consecutive messages of one role are one turn, as in Anthropic's API; system messages among them stand
    where chat templates take them. Texts of the assistant are joined without anything between them: so they
    were generated, and so an engine has them in its cache.

    Returns:
        (messages, types of the blocks that were left out).

    Raises:
        Invalid: A message or a block is invalid or not supported; `param` is its path.
    """
    given = payload.get("messages")
    if not isinstance(given, list) or not given:
        raise Invalid(
            "`messages` is required: an array with at least one message.",
            param="messages",
            code="invalid_type" if given else "missing_required_parameter",
        )
    turns = ChatTurns(between="\n", between_replies="")
    ignored: list[str] = []
    turns.add_system(_system_text(payload.get("system")))
    for number, message in enumerate(given):
        where = f"messages.{number}"
        if not isinstance(message, dict):
            raise _wrong_type(where, "an object", message)
        role = message.get("role")
        if role not in ROLES:
            raise Invalid(
                f'`{where}.role` must be "user" or "assistant".', param=f"{where}.role", code="invalid_value"
            )
        blocks = _blocks(message.get("content"), f"{where}.content", may_be_empty=role == "assistant")
        kept = [(path, block) for path, block in blocks if block["type"] not in SERVER_BLOCKS]
        ignored += [block["type"] for _, block in blocks if block["type"] in SERVER_BLOCKS]
        if role == "assistant":
            _add_reply(turns, kept)
        elif role == "system":
            turns.add_system(_system_message(kept))
        else:
            ignored += _add_user_turn(turns, kept)
    return turns.finish(), ignored


def _system_text(system: Any) -> str:
    """Return the text of `system`: a string, or text blocks; what they say about caching is left out."""
    if system is None or isinstance(system, str):
        return system or ""
    blocks = _blocks(system, "system", may_be_empty=True)
    texts = [_text(path, block) for path, block in blocks]
    return "\n".join(text for text in texts if text and not text.startswith(BILLING_LINE))


def _blocks(content: Any, where: str, *, may_be_empty: bool = False) -> list[tuple[str, dict[str, Any]]]:
    """Return the content blocks with their paths; a string is one block of text."""
    if isinstance(content, str):
        return [(where, {"type": "text", "text": content})]
    if not isinstance(content, list):
        raise _wrong_type(where, "a string or an array of content blocks", content)
    if not content and not may_be_empty:
        raise Invalid(f"`{where}` must have at least one content block.", param=where, code="invalid_value")
    blocks = [(f"{where}.{number}", block) for number, block in enumerate(content)]
    for path, block in blocks:
        if not isinstance(block, dict):
            raise _wrong_type(path, "an object", block)
        if not isinstance(block.get("type"), str):
            raise Invalid(
                f'`{path}.type` must be a string such as "text".',
                param=f"{path}.type",
                code="invalid_type" if "type" in block else "missing_required_parameter",
            )
    return blocks


def _add_reply(turns: ChatTurns, blocks: list[tuple[str, dict[str, Any]]]) -> None:
    """Add the assistant's text and calls, and its thinking as reasoning."""
    text = reasoning = ""
    calls = []
    for path, block in blocks:
        kind = block["type"]
        if kind == "tool_use":
            calls.append(_call(path, block))
        elif kind == "thinking":
            reasoning += _string(block, "thinking", path)
        elif kind != "redacted_thinking":  # encrypted: no model here can read it
            text += _text(path, block)
    turns.add_reply(text, reasoning=reasoning, calls=calls)


def _call(path: str, block: dict[str, Any]) -> dict[str, Any]:
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise _wrong_type(f"{path}.input", "an object", arguments)
    function = {"name": _string(block, "name", path), "arguments": jsons.dumps_text(arguments)}
    return {"id": _string(block, "id", path), "type": "function", "function": function}


def _add_user_turn(turns: ChatTurns, blocks: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Add the user's message: first the results of tools, then everything else.

    Chat wants each result as a message of its own, right after the calls, and without images: these follow
    in the user's message.

    Returns:
        Types of the blocks that were left out.
    """
    parts: list[dict[str, Any]] = []
    ignored: list[str] = []
    for path, block in blocks:
        if block["type"] == "tool_result":
            message, images = _tool_result(path, block, ignored)
            turns.add(message)
            parts += images
        else:
            parts.append(_part(path, block))
    if parts:
        turns.add_user(_plain(parts))
    return ignored


def _tool_result(
    path: str, block: dict[str, Any], ignored: list[str]
) -> tuple[ChatMessage, list[dict[str, Any]]]:
    """Return (the tool's message, the images that it gave with a line that says whose they are).

    A file that no model here can read is left out, and the model is told: the result stays in the
    conversation, which would be refused from then on.
    """
    call_id, content = _string(block, "tool_use_id", path), block.get("content")
    blocks = [] if content is None else _blocks(content, f"{path}.content", may_be_empty=True)
    parts = []
    for inner, one in blocks:
        if _is_unreadable(one):
            ignored.append("document")
            parts.append({"type": "text", "text": UNREADABLE})
        else:
            parts.append(_part(inner, one))
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    if block.get("is_error"):
        text = f"Error: {text}" if text else "Error"  # chat has no field for it
    images = [part for part in parts if part["type"] != "text"]
    if images:
        images.insert(0, {"type": "text", "text": f"Images of the tool result {call_id}:"})
    return {"role": "tool", "tool_call_id": call_id, "content": text}, images


def _part(path: str, block: dict[str, Any]) -> dict[str, Any]:
    """Return a content block as a part of a chat message.

    1. text
    2. an image: base64 or a URL
    3. a document that is plain text; PDFs need an engine that reads them
    4. a tool that a search found, which is offered from here on
    5. anything else is refused
    """
    kind = block["type"]
    if kind == "text":  # 1
        return {"type": "text", "text": _text(path, block)}
    if kind == "image":  # 2
        return {"type": "image_url", "image_url": {"url": _image_url(f"{path}.source", block.get("source"))}}
    if kind == "document":  # 3
        return {"type": "text", "text": _document_text(path, block)}
    if kind == "tool_reference":  # 4
        return {"type": "text", "text": f"The tool {_string(block, 'tool_name', path)} can be called now."}
    raise _unsupported(f"{path}.type", kind)  # 5


def _image_url(path: str, source: Any) -> str:
    if not isinstance(source, dict):
        raise _wrong_type(path, "an object", source)
    kind = source.get("type")
    if kind == "base64":
        media_type, data = _string(source, "media_type", path), _string(source, "data", path)
        return f"data:{media_type};base64,{data}"
    if kind == "url":
        return _string(source, "url", path)
    raise _unsupported(f"{path}.type", kind, 'use "base64" or "url"')


def _is_unreadable(block: dict[str, Any]) -> bool:
    """Say whether a block is a document in a form other than plain text."""
    source = block.get("source") if block["type"] == "document" else None
    return isinstance(source, dict) and source.get("type") in ("base64", "url", "file")


def _document_text(path: str, block: dict[str, Any]) -> str:
    source = block.get("source")
    if not isinstance(source, dict):
        raise _wrong_type(f"{path}.source", "an object", source)
    if source.get("type") != "text":
        raise _unsupported(
            f"{path}.source.type", source.get("type"), 'documents must be plain text ("text"); no PDF is read'
        )
    text, title = _string(source, "data", f"{path}.source"), block.get("title")
    return f"{title}\n{text}" if isinstance(title, str) and title else text


def _system_message(blocks: list[tuple[str, dict[str, Any]]]) -> str:
    """Return the text of a system message; what it says about tools is for offered_tools.py."""
    texts = []
    for path, block in blocks:
        if block["type"] not in TOOL_CHANGES:
            texts.append(_text(path, block))
        elif changed_tool(block) is None:
            raise Invalid(
                f"`{path}.tool` must have a `name`, or a `definition` with a `name`.",
                param=f"{path}.tool",
                code="invalid_value",
            )
    return "\n".join(texts)


def _plain(parts: list[dict[str, Any]]) -> Any:
    """Return parts that are all text as one text: not every engine takes parts."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _text(path: str, block: dict[str, Any]) -> str:
    """Return the text of a block that must be one of text."""
    if block["type"] != "text":
        raise _unsupported(f"{path}.type", block["type"])
    return _string(block, "text", path, may_be_empty=True)


def _string(value: dict[str, Any], name: str, path: str, *, may_be_empty: bool = False) -> str:
    """Return a required string."""
    found = value.get(name)
    if isinstance(found, str) and (found or may_be_empty or name == "thinking"):
        return found
    if found is None or found == "":
        raise Invalid(
            f"`{path}.{name}` is required: a string.",
            param=f"{path}.{name}",
            code="missing_required_parameter",
        )
    raise _wrong_type(f"{path}.{name}", "a string", found)


def _wrong_type(path: str, wanted: str, found: Any) -> Invalid:
    return Invalid(f"`{path}` must be {wanted}, not {json_type_of(found)}.", param=path, code="invalid_type")


def _unsupported(path: str, kind: Any, remedy: str = "") -> Invalid:
    shown = kind[:64] if isinstance(kind, str) else kind
    hint = f": {remedy}" if remedy else ""
    return Invalid(f"`{path}` {shown!r} is not supported{hint}.", param=path, code="not_supported")
