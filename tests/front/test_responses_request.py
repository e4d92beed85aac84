"""A request of the Responses API as a chat request: what is translated, and what is refused."""

from typing import Any

import pytest

from appliance.base.errors import Invalid
from appliance.front.openai.responses_request import to_chat

USER = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}

SUMMARY = {"type": "summary_text", "text": "thought"}


def assistant_calls(name: str, arguments: str) -> dict[str, Any]:
    """Return the assistant's message with one call."""
    called = {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [called]}


@pytest.mark.parametrize(
    ("asked", "body"),
    [
        ({}, {}),
        ({"temperature": 0.5, "seed": 1, "user": "u"}, {"temperature": 0.5, "seed": 1, "user": "u"}),
        ({"temperature": None, "store": True, "metadata": {}}, {}),
        ({"max_output_tokens": 7}, {"max_tokens": 7}),
        ({"reasoning": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"reasoning": {"summary": "auto"}}, {}),
        ({"text": {"verbosity": "low"}}, {"verbosity": "low"}),
        ({"text": {"format": {"type": "text"}}}, {}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": None}}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}},
        ),
        (
            {"tools": [{"type": "function", "name": "f", "parameters": {}, "strict": True}]},
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}, "strict": True}}]},
        ),
        (
            {"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "function", "name": "f"}},
            {
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "tool_choice": {"type": "function", "function": {"name": "f"}},
            },
        ),
        ({"tool_choice": "auto"}, {}),
        ({"parallel_tool_calls": True}, {}),
        (
            {"tools": [{"type": "function", "name": "f"}], "parallel_tool_calls": False},
            {"tools": [{"type": "function", "function": {"name": "f"}}], "parallel_tool_calls": False},
        ),
        ({"reasoning": {"effort": "xhigh"}}, {"reasoning_effort": "high"}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True}),
        ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"include": ["reasoning.encrypted_content"]}, {}),
    ],
)
def test_fields_become_those_of_chat(asked: dict[str, Any], body: dict[str, Any]) -> None:
    assert to_chat({"input": "hi", **asked}).body == {"messages": [USER], **body}


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ([USER], [USER]),
        ([{"type": "message", "role": "user", "content": None}], [{"role": "user", "content": ""}]),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "input_text", "text": "a"}, {"type": "text", "text": ""}],
                }
            ],
            [{"role": "user", "content": "a"}],
        ),
        (
            [{"role": "user", "content": [{"type": "input_image", "image_url": "data:x"}]}],
            [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "data:x", "detail": "auto"}}],
                }
            ],
        ),
        (
            [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}],
            [{"role": "assistant", "content": "no"}],
        ),
        (
            [{"type": "function_call", "call_id": "c1", "name": "f"}],
            [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
        ),
        (
            [{"role": "assistant", "content": "x"}, {"type": "function_call", "id": "c1", "name": "f"}],
            [{"role": "assistant", "content": "x", "tool_calls": [CALL]}],
        ),
        (
            [{"type": "function_call_output", "call_id": "c1", "output": "1"}],
            [{"role": "tool", "tool_call_id": "c1", "content": "1"}],
        ),
        (
            [
                {
                    "type": "function_call_output",
                    "call_id": "c1",
                    "output": [{"type": "input_text", "text": "1"}],
                }
            ],
            [{"role": "tool", "tool_call_id": "c1", "content": "1"}],
        ),
        ([{"type": "reasoning", "summary": []}, USER], [USER]),
        ([{"type": "reasoning", "summary": [SUMMARY], "encrypted_content": "x"}, USER], [USER]),
        (
            [{"type": "reasoning", "summary": [SUMMARY]}, {"role": "assistant", "content": "x"}],
            [{"role": "assistant", "content": "x", "reasoning_content": "thought"}],
        ),
        (
            [
                {"type": "reasoning", "summary": [SUMMARY]},
                {"type": "function_call", "call_id": "c1", "name": "f"},
            ],
            [{"role": "assistant", "content": None, "reasoning_content": "thought", "tool_calls": [CALL]}],
        ),
        (
            [{"type": "custom_tool_call", "call_id": "c1", "name": "f", "input": "a\nb"}],
            [assistant_calls("f", '{"input":"a\\nb"}')],
        ),
        (
            [{"type": "local_shell_call", "id": "i", "call_id": "c1", "action": {"command": ["ls"]}}],
            [assistant_calls("local_shell", '{"command":["ls"]}')],
        ),
        (
            [
                {"type": "local_shell_call", "id": "i", "call_id": "c1", "action": {}},
                {"type": "local_shell_call_output", "id": "i", "output": "a"},
            ],
            [assistant_calls("local_shell", "{}"), {"role": "tool", "tool_call_id": "c1", "content": "a"}],
        ),
        (
            [{"type": "custom_tool_call_output", "call_id": "c1", "output": "1"}],
            [{"role": "tool", "tool_call_id": "c1", "content": "1"}],
        ),
        (
            [
                {
                    "type": "function_call_output",
                    "call_id": call_id,
                    "output": [{"type": "input_image", "image_url": "data:x", "detail": "original"}],
                }
                for call_id in ("c1", "c2")
            ],
            [
                {"role": "tool", "tool_call_id": "c1", "content": ""},
                {"role": "tool", "tool_call_id": "c2", "content": ""},
                {
                    "role": "user",
                    "content": [
                        part
                        for call_id in ("c1", "c2")
                        for part in (
                            {"type": "text", "text": f"Images of the tool result {call_id}:"},
                            {"type": "image_url", "image_url": {"url": "data:x", "detail": "high"}},
                        )
                    ],
                },
            ],
        ),
    ],
)
def test_items_become_messages(items: list[Any], messages: list[Any]) -> None:
    assert to_chat({"input": items}).body["messages"] == messages
    with_system = to_chat({"input": items, "instructions": "be brief"}).body["messages"]
    assert with_system == [{"role": "system", "content": "be brief"}, *messages]


@pytest.mark.parametrize(
    ("asked", "param", "text"),
    [
        ({"conversation": "c"}, "conversation", "Send `previous_response_id`"),
        ({"background": True}, "background", "`background` is not supported: a response is made while"),
        ({"input": None}, "input", "a string, or an array with at least one item"),
        ({"input": []}, "input", "`input` is required"),
        ({"input": 3}, "input", "`input` is required"),
        ({"input": ["x"]}, "input.0", "`input.0` must be an object, not a string."),
        ({"input": [{"type": "message"}]}, "input.0.role", "`input.0.role` is missing."),
        ({"input": [{"type": "zzz"}]}, "input.0.type", "'zzz' is not supported."),
        ({"input": [{"role": "user", "content": 3}]}, "input.0.content", "a string or an array of parts"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input.0.content.0.type",
            "'input_file' is not supported.",
        ),
        ({"tools": ["f"]}, "tools.0", "`tools.0` must be an object, not a string."),
        ({"tools": [{}]}, "tools.0.type", "`tools.0.type` must be a string"),
        ({"tools": [{"type": {}}]}, "tools.0.type", "not an object"),
        ({"tools": [{"type": "custom"}]}, "tools.0.name", "`tools.0.name` is required"),
        ({"tools": [{"type": "namespace", "name": "n"}]}, "tools.0.tools", "must be an array, not null"),
        (
            {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function"}]}]},
            "tools.0.tools.0.name",
            "is required",
        ),
        ({"input": [{"type": {}}]}, "input.0.type", "must be a string such as"),
        ({"input": [{"role": 5}]}, "input.0.role", "must be a string"),
        *(
            (
                {"input": [{"role": "user", "content": [part]}]},
                f"input.0.content.0{end}",
                text,
            )
            for part, end, text in [
                ({"type": "input_text", "text": None}, ".text", "must be a string, not null."),
                ({"type": "input_text"}, ".text", "must be a string, not null."),
                ({"type": "input_text", "text": 5}, ".text", "must be a string, not an integer."),
                ({"type": {}}, ".type", "not an object"),
                ({"input_text": None}, ".type", "not null"),
                ({"type": "input_image", "file_id": "f"}, ".type", "send `image_url`"),
                ("x", "", "must be an object, not a string."),
            ]
        ),
        ({"input": [{"type": "function_call", "name": 5}]}, "input.0.name", "must be a string"),
        ({"input": [{"type": "custom_tool_call", "input": 5}]}, "input.0.input", "must be a string"),
        ({"text": {"format": 5}}, "text.format", "must be an object"),
        ({"text": {"format": {"type": {}}}}, "text.format.type", "one of text, json_object, json_schema."),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", "must be an object, not null"),
        ({"reasoning": {"effort": 5}}, "reasoning.effort", "must be a string"),
    ],
)
def test_refusals_name_the_field(asked: dict[str, Any], param: str, text: str) -> None:
    with pytest.raises(Invalid) as refused:
        to_chat({"input": "hi", **asked})
    assert refused.value.param == param
    assert text in refused.value.message


def test_system_messages_stand_where_templates_take_them() -> None:
    items = [{"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "b"}]}, USER]
    later = [{"role": "assistant", "content": "yes"}, {"role": "developer", "content": "d"}, USER]
    body = to_chat(
        {"input": [*items, {"role": "developer", "content": "c"}, *later], "instructions": "a"}
    ).body
    assert body["messages"] == [
        {"role": "system", "content": "a\n\nb\n\nc"},
        USER,
        {"role": "assistant", "content": "yes"},
        USER | {"content": f"<system-reminder>\nd\n</system-reminder>\n\n{USER['content']}"},
    ]


def test_tools_among_the_items_are_tools() -> None:
    """Codex CLI sends its tools so where it knows the model."""
    given = [{"type": "function", "name": "read"}, {"type": "function", "name": "old"}]
    more = {"type": "additional_tools", "role": "developer", "tools": [{"type": "custom", "name": "exec"}]}
    anew = {"type": "additional_tools", "tools": [{"type": "function", "name": "old", "description": "new"}]}
    chat = to_chat({"input": [more, USER, anew], "tools": given, "tool_choice": "auto"}, former=[anew])
    functions = [tool["function"] for tool in chat.body["tools"]]
    assert [function["name"] for function in functions] == ["read", "old", "exec"]
    assert functions[1]["description"] == "new"
    assert (chat.body["messages"], chat.body["tool_choice"], chat.ignored) == ([USER], "auto", [])
    assert to_chat({"input": [more, USER]}).tools.by_function["exec"].is_custom


@pytest.mark.parametrize(
    ("item", "param"),
    [({"tools": None}, "input.0.tools"), ({}, "input.0.tools"), ({"tools": [1]}, "input.0.tools.0")],
)
@pytest.mark.parametrize("kind", ["additional_tools", "tool_search_output"])
def test_wrong_tools_among_the_items_are_refused(kind: str, item: dict[str, Any], param: str) -> None:
    with pytest.raises(Invalid) as caught:
        to_chat({"input": [{"type": kind, "execution": "client", **item}, USER]})
    assert caught.value.param == param


SEARCH = {"type": "tool_search", "execution": "client", "parameters": {"type": "object"}}
SEARCHED = {"type": "tool_search_call", "call_id": "s", "execution": "client", "arguments": {"query": "x"}}
FOUND = {"type": "tool_search_output", "call_id": "s", "execution": "client"}


def test_what_the_clients_search_finds_are_tools() -> None:
    tools = [{"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "lookup"}]}]
    chat = to_chat({"input": [USER, SEARCHED, FOUND | {"tools": tools}], "tools": [SEARCH]})
    assert [tool["function"]["name"] for tool in chat.body["tools"]] == ["tool_search", "lookup"]
    assert chat.body["tools"][0]["function"]["parameters"] == {"type": "object"}
    assert chat.tools.by_function["tool_search"].is_search
    _, call, result = chat.body["messages"]
    assert call["tool_calls"][0]["function"] == {"name": "tool_search", "arguments": '{"query":"x"}'}
    assert result == {
        "role": "tool",
        "tool_call_id": "s",
        "content": "These tools can be called now: lookup.",
    }
    assert chat.ignored == []


def test_a_search_that_finds_nothing_says_so() -> None:
    messages = to_chat({"input": [USER, SEARCHED, FOUND | {"tools": []}], "tools": [SEARCH]}).body["messages"]
    assert messages[-1]["content"] == "No tool was found."


def test_a_search_on_openais_servers_is_left_out() -> None:
    items = [item | {"execution": "server", "tools": 1} for item in (SEARCHED, FOUND)]
    chat = to_chat({"input": [USER, *items], "tools": [{"type": "tool_search"}]})
    assert chat.body == {"messages": [USER]}
    assert chat.ignored == ["tools.tool_search", "input.tool_search_call", "input.tool_search_output"]


def test_a_text_after_a_call_joins_it_so_that_the_result_follows() -> None:
    items = [
        {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call_output", "call_id": "c", "output": "1"},
    ]
    _, called, result = to_chat({"input": [USER, *items]}).body["messages"]
    assert (called["content"], len(called["tool_calls"])) == ("I look.", 1)
    assert (result["role"], result["tool_call_id"]) == ("tool", "c")


def test_what_no_engine_has_is_left_out_and_named() -> None:
    chat = to_chat(
        {
            "input": [USER, {"type": "web_search_call", "id": "ws_1", "status": "completed"}],
            "tools": [{"type": "web_search"}, {"type": "local_shell"}],
            "tool_choice": {"type": "web_search"},
            "parallel_tool_calls": True,
        }
    )
    assert chat.body == {"messages": [USER]}
    assert set(chat.ignored) == {
        "tools.web_search",
        "tools.local_shell",
        "input.web_search_call",
        "tool_choice",
    }
