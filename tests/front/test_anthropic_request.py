"""Requests to /v1/messages as chat requests: every field, and every refusal with its path."""

from typing import Any

import pytest

from appliance.base.errors import Invalid
from appliance.front.anthropic.request import to_chat

HELLO: dict[str, Any] = {"max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
CHAT: dict[str, Any] = {"max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "weather", "description": "the weather", "input_schema": SCHEMA}
CHAT_TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "the weather", "parameters": SCHEMA},
}
SEARCH = {"type": "web_search_20250305", "name": "web_search"}
TOOLS = {"tools": [CHAT_TOOL]}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, {}),
        ({"model": "m", "stream": True}, {}),
        ({"temperature": 0, "top_p": 0.5, "top_k": 4}, {"temperature": 0, "top_p": 0.5, "top_k": 4}),
        ({"temperature": None, "top_k": None}, {}),
        ({"seed": 1, "min_p": 0.1}, {"seed": 1, "min_p": 0.1}),
        ({"stop_sequences": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"stop_sequences": []}, {}),
        ({"metadata": {"user_id": "u"}}, {"user": "u"}),
        ({"metadata": {"user_id": None}}, {}),
        ({"cache_control": {"type": "ephemeral"}, "service_tier": "auto"}, {}),
        ({"tools": [TOOL]}, TOOLS),
        ({"tools": [{**TOOL, "type": "custom", "cache_control": {"type": "ephemeral"}}]}, TOOLS),
        ({"tools": []}, {}),
        ({"tool_choice": {"type": "any"}}, {}),  # without tools there is nothing to choose
        ({"tools": [TOOL], "tool_choice": {"type": "auto"}}, TOOLS | {"tool_choice": "auto"}),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, TOOLS | {"tool_choice": "required"}),
        ({"tools": [TOOL], "tool_choice": {"type": "none"}}, TOOLS | {"tool_choice": "none"}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "weather"}},
            TOOLS | {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            TOOLS | {"tool_choice": "auto", "parallel_tool_calls": False},
        ),
        ({"thinking": {"type": "adaptive"}}, {}),
        ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"output_config": {"effort": "max"}}, {"reasoning_effort": "high"}),
        *(
            (
                asked,
                {
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {"name": "output", "schema": SCHEMA, "strict": True},
                    }
                },
            )
            for asked in (
                {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
                {"output_format": {"type": "json_schema", "schema": SCHEMA}},
            )
        ),
    ],
)
def test_fields_become_chats(asked: dict[str, Any], expected: dict[str, Any]) -> None:
    translated = to_chat(HELLO | asked)
    assert translated.body == CHAT | expected
    assert translated.ignored == []


@pytest.mark.parametrize(
    ("asked", "ignored"),
    [
        ({"tools": [TOOL, SEARCH]}, ["tools.web_search_20250305"]),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, ["thinking.budget_tokens"]),
        ({"context_management": {"edits": []}, "container": "c"}, ["context_management", "container"]),
        ({"container": None}, []),
        (
            {"messages": [{"role": "user", "content": [{"type": "container_upload"}]}]},
            ["container_upload"],
        ),
    ],
)
def test_what_cannot_be_used_is_named(asked: dict[str, Any], ignored: list[str]) -> None:
    assert to_chat(HELLO | asked).ignored == ignored


@pytest.mark.parametrize(
    ("thinking", "is_shown"),
    [
        (None, True),
        ({"type": "adaptive"}, True),
        ({"type": "enabled", "budget_tokens": 1024}, True),
        ({"type": "adaptive", "display": "omitted"}, False),
        ({"type": "disabled"}, False),
    ],
)
def test_thinking_is_shown_unless_it_is_not_wanted(thinking: Any, is_shown: bool) -> None:
    assert to_chat(HELLO | {"thinking": thinking}).shows_thinking is is_shown


@pytest.mark.parametrize(
    ("kind", "thinks"), [("adaptive", None), ("enabled", True), ("disabled", False), ("between_tools", None)]
)
def test_whether_to_think_is_kept_apart_from_the_chat(kind: str, thinks: bool | None) -> None:
    translated = to_chat(HELLO | {"thinking": {"type": kind}})
    assert (translated.body, translated.thinks) == (CHAT, thinks)
    assert to_chat(HELLO).thinks is None


def test_counting_needs_no_max_tokens() -> None:
    asked = {"messages": HELLO["messages"]}
    assert to_chat(asked, needs_max_tokens=False).body == asked


@pytest.mark.parametrize(
    ("asked", "param", "said"),
    [
        ({"max_tokens": None}, "max_tokens", "is required"),
        ({"max_tokens": 0}, "max_tokens", "at least 1, not 0"),
        ({"max_tokens": "9"}, "max_tokens", "must be an integer, not a string"),
        ({"max_tokens": True}, "max_tokens", "must be an integer, not a boolean"),
        ({"model": 5}, "model", "must be a string"),
        ({"stream": "yes"}, "stream", "must be true or false"),
        ({"temperature": "hot"}, "temperature", "must be a number"),
        ({"top_k": 1.5}, "top_k", "must be an integer"),
        ({"messages": "Hi"}, "messages", "must be an array"),
        ({"stop_sequences": "a"}, "stop_sequences", "must be an array"),
        ({"stop_sequences": ["a", ""]}, "stop_sequences.1", "not empty"),
        ({"stop_sequences": [5]}, "stop_sequences.0", "must be a string"),
        ({"metadata": "u"}, "metadata", "must be an object"),
        ({"tools": {}}, "tools", "must be an array"),
        ({"tools": ["x"]}, "tools.0", "must be an object, not a string"),
        ({"tools": [{"input_schema": {}}]}, "tools.0.name", "is required"),
        ({"tools": [{"name": "", "input_schema": {}}]}, "tools.0.name", "is required"),
        ({"tools": [{"name": "n"}]}, "tools.0.input_schema", "is required: an object"),
        ({"tools": [{"name": "n", "input_schema": "x"}]}, "tools.0.input_schema", "is required: an object"),
        ({"tools": [SEARCH]}, "tools", "None of the tools is known here: web_search_20250305."),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice", "must be an object"),
        ({"tools": [TOOL], "tool_choice": {"type": "must"}}, "tool_choice.type", '"auto", "any"'),
        ({"tools": [TOOL], "tool_choice": {"type": []}}, "tool_choice.type", '"auto", "any"'),
        (
            {"tools": [TOOL, SEARCH], "tool_choice": {"type": "tool", "name": "web_search"}},
            "tool_choice.name",
            "'web_search' is none of the tools",
        ),
        ({"thinking": {"type": "sometimes"}}, "thinking.type", '"enabled", "disabled" or "adaptive"'),
        ({"thinking": {"budget_tokens": 5}}, "thinking.type", '"enabled", "disabled" or "adaptive"'),
        ({"output_config": {"effort": "lazy"}}, "output_config.effort", "low, medium, high, xhigh, max"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type", '"json_schema"'),
        ({"output_config": {"format": "json"}}, "output_config.format.type", '"json_schema"'),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema", "is required"),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content", "at least one"),
    ],
)
def test_what_is_wrong_is_refused_with_its_path(asked: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(Invalid) as caught:
        to_chat(HELLO | asked)
    assert caught.value.param == param
    assert said in caught.value.message
