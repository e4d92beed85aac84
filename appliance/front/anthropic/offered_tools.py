"""Which tools a model may call at the end of a conversation: some are found, added or removed in it. Pure.

Source: Anthropic's API reference, "Tool search tool", "Mid-conversation tool changes"; Claude Code.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TOOL_CHANGES = frozenset({"tool_addition", "tool_removal"})  # blocks of system messages
SEARCH_TOOLS = "tool_search_tool_"  # beginning of the types of Anthropic's own; they are left out here


@dataclass(frozen=True, slots=True)
class _Change:
    """The last that a conversation says about a tool.

    Attributes:
        is_offered: It may be called.
        path: Of the definition.
        definition: The tool; None = that of `tools`.
    """

    is_offered: bool
    path: str = ""
    definition: Any = None


def offered_tools(tools: list[Any], messages: list[Any]) -> list[tuple[str, Any]]:
    """Return the tools that the model may call now.

    1. the conversation removes it (`tool_removal`)                → not offered
    2. a result refers to it (`tool_reference`), or the conversation
       adds it (`tool_addition`, with a definition or without)     → offered
    3. `defer_loading`, and nothing has referred to it yet         → not offered, but where one of Anthropic's
                                                                     search tools would have to find it
    4. every other tool                                            → offered

    Args:
        tools: The request's `tools`, unchecked.
        messages: Its `messages`; what is not as it must be is passed over.

    Returns:
        (path in the request, tool) each; those that only the conversation defines come last.
    """
    changes: dict[str, _Change] = {}
    for name, change in _changes(messages):
        former = changes.get(name)
        if change.definition is None and former is not None:
            change = _Change(change.is_offered, former.path, former.definition)
        changes[name] = change
    is_searched = any(
        isinstance(tool, dict) and str(tool.get("type")).startswith(SEARCH_TOOLS) for tool in tools
    )
    offered: list[tuple[str, Any]] = []
    for number, tool in enumerate(tools):
        path = f"tools.{number}"
        called = tool.get("name") if isinstance(tool, dict) else None
        found = changes.pop(called, None) if isinstance(called, str) else None
        if found is not None:  # 1, 2
            if found.is_offered:
                offered.append((found.path, found.definition) if found.definition else (path, tool))
        elif is_searched or not (isinstance(tool, dict) and tool.get("defer_loading") is True):  # 3, 4
            offered.append((path, tool))
    rest = [change for change in changes.values() if change.is_offered and change.definition]
    return offered + [(change.path, change.definition) for change in rest]


def changed_tool(block: dict[str, Any]) -> tuple[str, Any] | None:
    """Return what a block of `TOOL_CHANGES` is about.

    Returns:
        (name of the tool, its definition; None = that of the request's `tools`); None = the block is wrong.
    """
    tool = block.get("tool")
    tool = tool if isinstance(tool, dict) else {}
    definition = tool.get("definition")
    name = definition.get("name") if isinstance(definition, dict) else tool.get("name")
    return (name, definition) if isinstance(name, str) and name else None


def _changes(messages: list[Any]) -> Iterator[tuple[str, _Change]]:
    """Yield (a tool's name, what is said about it), in the order of the conversation."""
    for number, message in enumerate(messages):
        for place, block in _blocks(message):
            path = f"messages.{number}.content.{place}"
            if block.get("type") == "tool_result":
                for _, inner in _blocks(block):
                    if inner.get("type") == "tool_reference" and isinstance(inner.get("tool_name"), str):
                        yield inner["tool_name"], _Change(True)
            elif block.get("type") in TOOL_CHANGES and (found := changed_tool(block)) is not None:
                name, definition = found
                yield name, _Change(block["type"] == "tool_addition", f"{path}.tool.definition", definition)


def _blocks(holder: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (place, block) of the content of a message or of a tool's result."""
    content = holder.get("content") if isinstance(holder, dict) else None
    for place, block in enumerate(content if isinstance(content, list) else []):
        if isinstance(block, dict):
            yield place, block
