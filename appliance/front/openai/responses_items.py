"""Input items of the Responses API as chat messages. Pure.

Source: OpenAI's API reference, "Responses"; the types of its official Python SDK 3.52; Codex CLI's requests.
"""

from collections.abc import Sequence
from typing import Any

from appliance.base import jsons
from appliance.base.errors import Invalid
from appliance.front.openai.responses_tools import SEARCH, Tools, to_arguments, tool_names
from appliance.front.pipeline.body import json_type_of
from appliance.front.pipeline.chat_turns import ChatMessage, ChatTurns

# Calls: type → (the function's name, None = the item has one; the field with its input).
CALLS: dict[str, tuple[str | None, str]] = {
    "function_call": (None, "arguments"),
    "custom_tool_call": (None, "input"),
    "local_shell_call": ("local_shell", "action"),
    "shell_call": ("shell", "action"),
    "apply_patch_call": ("apply_patch", "operation"),
}
OUTPUTS = frozenset(f"{kind}_output" for kind in CALLS)
# Left by tools that run on OpenAI's servers, and by its own ways to shorten a conversation.
SERVER_ITEMS = frozenset(
    {
        "web_search_call",
        "file_search_call",
        "code_interpreter_call",
        "image_generation_call",
        "computer_call",
        "computer_call_output",
        "mcp_list_tools",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "tool_search_call",
        "tool_search_output",
        "configuration_update",
        "program",
        "program_output",
        "compaction",
        "compaction_trigger",
        "ghost_snapshot",
    }
)
MORE_TOOLS = "additional_tools"  # Codex CLI's tools, where it knows the model
FOUND = "tool_search_output"
SEARCH_ITEMS = frozenset({"tool_search_call", FOUND})
DETAILS = frozenset({"auto", "low", "high"})


def to_chat_messages(
    instructions: str | None, items: list[Any], tools: Tools, former: Sequence[dict[str, Any]] = ()
) -> tuple[list[ChatMessage], list[str]]:
    """Return the chat messages of a conversation.

    Args:
        instructions: The first system message; None or "" = none.
        items: As `item_list` returns them, references resolved.
        tools: The request's: they say what became of a tool's name.
        former: The items of the conversation that `items` continue.

    Returns:
        (messages, types of the items that were left out, as `input.TYPE`).

    Raises:
        Invalid: An item is invalid or not supported; `param` is its path.
    """
    conversation = _Conversation(tools)
    conversation.turns.add_system(instructions or "")
    for item in former:
        conversation.add(item, "previous_response_id")
    for number, item in enumerate(items):
        conversation.add(item, f"input.{number}")
    conversation.flush_images()
    return conversation.turns.finish(), conversation.ignored


def item_list(given: Any) -> list[dict[str, Any]]:
    """Return `input` as a list of items, each with its type.

    Raises:
        Invalid: It is missing, of another type, or an item is not an object with a type.
    """
    if isinstance(given, str) and given:
        return [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise Invalid(
            "`input` is required: a string, or an array with at least one item.",
            param="input",
            code="missing_required_parameter" if not given else "invalid_type",
        )
    return [_typed(item, f"input.{number}") for number, item in enumerate(given)]


def more_tools(items: Sequence[dict[str, Any]], where: str) -> list[tuple[str, list[Any]]]:
    """Return the arrays of tools among the items of a conversation, with their paths.

    Raises:
        Invalid: An item's `tools` is no array.
    """
    found = []
    for number, item in enumerate(items):
        if item["type"] == MORE_TOOLS or (item["type"] == FOUND and item.get("execution") == "client"):
            path = f"{where}.{number}.tools"
            if not isinstance(item.get("tools"), list):
                raise _wrong_type(path, "an array", item.get("tools"))
            found.append((path, item["tools"]))
    return found


def _typed(item: Any, where: str) -> dict[str, Any]:
    """Return an item with its type: without one it is a message, or a reference where it is only an id."""
    if not isinstance(item, dict):
        raise _wrong_type(where, "an object", item)
    kind = item.get("type")
    if isinstance(kind, str) and kind:
        return item
    if kind is not None and kind != "":
        raise _wrong_type(f"{where}.type", 'a string such as "message"', kind)
    return {**item, "type": "item_reference" if item.keys() <= {"id", "type"} and item else "message"}


class _Conversation:
    """Chat messages that grow item by item.

    turns     the messages so far
    ignored   what was left out
    """

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self.turns = ChatTurns(between="\n\n", between_replies="\n\n")
        self.ignored: list[str] = []
        self._reasoning = ""  # of the assistant's message or call that comes next
        self._images: list[dict[str, Any]] = []  # that results of tools gave; they follow all results
        self._call_ids: dict[str, Any] = {}  # by the id of the item

    def add(self, item: dict[str, Any], where: str) -> None:
        """Add one item.

        1. a message
        2. a call of a tool: joins the assistant's message before it
        3. a call's result
        4. reasoning: goes with the assistant's message or call that follows
        5. tools: `more_tools` has found them
        6. the client's search for tools, and what it found
        7. of a tool that runs on OpenAI's servers: left out
        8. anything else is refused
        """
        kind = item["type"]
        if kind not in OUTPUTS and kind != FOUND:
            self.flush_images()
        if kind == "message":  # 1
            self._add_message(item, where)
        elif kind in CALLS:  # 2
            self._add_call(item, where)
        elif kind in OUTPUTS:  # 3
            self._add_output(item, where)
        elif kind == "reasoning":  # 4
            self._reasoning += _reasoning_text(item)
        elif kind == MORE_TOOLS:  # 5
            pass
        elif kind in SEARCH_ITEMS and item.get("execution") == "client":  # 6
            self._add_search(item)
        elif kind in SERVER_ITEMS:  # 7
            self.ignored.append(f"input.{kind}")
        else:  # 8
            raise Invalid(
                f"`{where}.type` {kind[:64]!r} is not supported.", param=f"{where}.type", code="not_supported"
            )

    def _add_message(self, item: dict[str, Any], where: str) -> None:
        """Add a message, where and as chat templates take it."""
        role = item.get("role")
        if not isinstance(role, str):
            raise Invalid(
                f"`{where}.role` is missing." if role is None else f"`{where}.role` must be a string.",
                param=f"{where}.role",
                code="missing_required_parameter" if role is None else "invalid_type",
            )
        content = to_content(item.get("content"), f"{where}.content")
        if role in ("developer", "system") and isinstance(content, str):
            self.turns.add_system(content)
        elif role == "user":
            self.turns.add_user(content)
        elif role == "assistant" and isinstance(content, str):
            self.turns.add_reply(content, reasoning=self._reasoning)
        else:
            self.turns.add({"role": "system" if role == "developer" else role, "content": content})
        self._reasoning = ""

    def _add_call(self, item: dict[str, Any], where: str) -> None:
        fixed_name, field = CALLS[item["type"]]
        name = fixed_name or _optional_string(item, "name", where)
        given = item.get(field)
        if item["type"] == "custom_tool_call":
            arguments = to_arguments(_optional_string(item, field, where))
        elif item["type"] == "function_call":
            arguments = _optional_string(item, field, where) or "{}"
        else:
            arguments = jsons.dumps_text(given if isinstance(given, dict) else {})
        call_id = item.get("call_id") or item.get("id")
        if isinstance(item.get("id"), str):
            self._call_ids[item["id"]] = call_id
        function = {
            "name": self._tools.function_name(name, item.get("namespace")),
            "arguments": arguments,
        }
        call = {"id": call_id, "type": "function", "function": function}
        self.turns.add_reply(reasoning=self._reasoning, calls=[call])
        self._reasoning = ""

    def _add_search(self, item: dict[str, Any]) -> None:
        """Add a search for tools as a call, or what it found as a result; `more_tools` has the tools."""
        call_id = item.get("call_id") or item.get("id")
        if item["type"] == FOUND:
            names = ", ".join(tool_names(item.get("tools")))
            content = f"These tools can be called now: {names}." if names else "No tool was found."
            self.turns.add({"role": "tool", "tool_call_id": call_id, "content": content})
            return
        given = item.get("arguments")
        function = {"name": SEARCH, "arguments": jsons.dumps_text(given if isinstance(given, dict) else {})}
        call = {"id": call_id, "type": "function", "function": function}
        self.turns.add_reply(reasoning=self._reasoning, calls=[call])
        self._reasoning = ""

    def _add_output(self, item: dict[str, Any], where: str) -> None:
        """Add a call's result. Chat takes no images in it: they follow in a message of the user."""
        call_id = item.get("call_id")
        if call_id is None:  # local_shell_call_output has the call's id as its own
            call_id = self._call_ids.get(str(item.get("id")), item.get("id"))
        output = item.get("output")
        if item["type"] in ("shell_call_output", "apply_patch_call_output") and not isinstance(output, str):
            content: Any = jsons.dumps_text(output)
        else:
            content = to_content(output, f"{where}.output")
        if isinstance(content, list):
            images = [part for part in content if part["type"] != "text"]
            content = "".join(part["text"] for part in content if part["type"] == "text")
            self._images += [{"type": "text", "text": f"Images of the tool result {call_id}:"}, *images]
        self.turns.add({"role": "tool", "tool_call_id": call_id, "content": content})

    def flush_images(self) -> None:
        """Add the images of the results so far."""
        if self._images:
            self.turns.add_user(self._images)
            self._images = []


def _reasoning_text(item: dict[str, Any]) -> str:
    """Return the text of a reasoning item, else its summary; encrypted content is not read."""
    for name in ("content", "summary"):
        parts = item.get(name)
        texts = (
            [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
        )
        if text := "\n\n".join(one for one in texts if isinstance(one, str) and one):
            return text
    return ""


def to_content(content: Any, where: str) -> Any:
    """Return a message's content: a text, or parts where it has images.

    Raises:
        Invalid: It is neither a text nor an array of parts, or a part is invalid or not supported.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise _wrong_type(where, "a string or an array of parts", content)
    parts = [_part(part, f"{where}.{number}") for number, part in enumerate(content)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Any, where: str) -> dict[str, Any]:
    if not isinstance(part, dict):
        raise _wrong_type(where, "an object", part)
    kind = part.get("type")
    if not isinstance(kind, str):
        raise _wrong_type(f"{where}.type", 'a string such as "input_text"', kind)
    if kind in ("input_text", "output_text", "text", "refusal"):
        name = "refusal" if kind == "refusal" else "text"
        return {"type": "text", "text": _required_string(part, name, where)}
    if kind == "input_image" and part.get("image_url") is not None:
        detail = part.get("detail")
        url = {
            "url": _required_string(part, "image_url", where),
            "detail": (detail if detail in DETAILS else "high") if isinstance(detail, str) else "auto",
        }
        return {"type": "image_url", "image_url": url}
    hint = ": send `image_url`" if kind == "input_image" else ""
    raise Invalid(
        f"`{where}.type` {kind[:64]!r} is not supported{hint}.", param=f"{where}.type", code="not_supported"
    )


def _required_string(value: dict[str, Any], name: str, where: str) -> str:
    found = value.get(name)
    if not isinstance(found, str):
        raise _wrong_type(f"{where}.{name}", "a string", found)
    return found


def _optional_string(value: dict[str, Any], name: str, where: str) -> str:
    return "" if value.get(name) is None else _required_string(value, name, where)


def _wrong_type(path: str, wanted: str, found: Any) -> Invalid:
    return Invalid(f"`{path}` must be {wanted}, not {json_type_of(found)}.", param=path, code="invalid_type")
