"""Tools that a conversation finds, adds and removes: what the model may call at its end."""

from typing import Any

import pytest

from appliance.base.errors import Invalid
from appliance.front.anthropic.offered_tools import offered_tools
from appliance.front.anthropic.request import to_chat

READ: dict[str, Any] = {"name": "Read", "input_schema": {"type": "object"}}
FETCH: dict[str, Any] = {"name": "Fetch", "input_schema": {"type": "object"}, "defer_loading": True}
SEARCH: dict[str, Any] = {"type": "tool_search_tool_bm25_20251119", "name": "tool_search_tool_bm25"}
OTHER_READ = READ | {"description": "of this turn"}


def found(name: Any) -> dict[str, Any]:
    """Return the user's message with the result of a search."""
    block = {"type": "tool_reference", "tool_name": name}
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [block]}]}


def change(kind: str, tool: dict[str, Any]) -> dict[str, Any]:
    """Return a system message that adds or removes a tool."""
    return {"role": "system", "content": [{"type": f"tool_{kind}", "tool": tool}]}


def named(name: str) -> dict[str, Any]:
    return {"type": "tool_reference", "name": name}


def defined(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_definition", "definition": tool}


DEFINITION = "messages.0.content.0.tool.definition"


@pytest.mark.parametrize(
    ("tools", "messages", "offered"),
    [
        ([READ, FETCH], [], [("tools.0", READ)]),
        ([READ, FETCH], [found("Fetch")], [("tools.0", READ), ("tools.1", FETCH)]),
        ([READ, FETCH], [found("Other"), found(1)], [("tools.0", READ)]),
        ([FETCH, SEARCH], [], [("tools.0", FETCH), ("tools.1", SEARCH)]),
        ([READ, FETCH], [change("addition", named("Fetch"))], [("tools.0", READ), ("tools.1", FETCH)]),
        ([READ], [change("removal", named("Read"))], []),
        ([READ], [change("removal", named("Read")), change("addition", named("Read"))], [("tools.0", READ)]),
        ([], [change("addition", defined(READ))], [(DEFINITION, READ)]),
        ([READ], [change("addition", defined(OTHER_READ))], [(DEFINITION, OTHER_READ)]),
        (
            [],
            [change("addition", defined(READ)), change("removal", named("Read"))],
            [],
        ),
        (
            [],
            [
                change("addition", defined(READ)),
                change("removal", named("Read")),
                change("addition", named("Read")),
            ],
            [(DEFINITION, READ)],
        ),
        (
            [READ, 1, {"name": []}],
            [1, {"content": 1}],
            [("tools.0", READ), ("tools.1", 1), ("tools.2", {"name": []})],
        ),
    ],
    ids=[
        "a deferred tool waits",
        "a result refers to it",
        "a result refers to none",
        "Anthropic's search is left out",
        "added by name",
        "removed",
        "removed and added",
        "defined in the conversation",
        "defined anew",
        "defined and removed",
        "defined, removed, added",
        "what is wrong is passed over",
    ],
)
def test_the_conversation_decides_what_is_offered(
    tools: list[Any], messages: list[Any], offered: list[tuple[str, Any]]
) -> None:
    assert offered_tools(tools, messages) == offered


def test_only_deferred_tools_are_no_tools() -> None:
    asked = {"max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}], "tools": [FETCH]}
    assert "tools" not in to_chat(asked | {"tool_choice": {"type": "auto"}}).body


def test_a_wrong_definition_is_refused_with_its_path() -> None:
    messages = [change("addition", defined({"name": "Read"})), {"role": "user", "content": "Hi"}]
    with pytest.raises(Invalid) as caught:
        to_chat({"max_tokens": 9, "messages": messages})
    assert caught.value.param == f"{DEFINITION}.input_schema"
