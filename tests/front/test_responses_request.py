"""A request of the Responses API as a chat request: what is translated, and what is refused."""

from typing import Any

import pytest

from appliance.base.errors import Invalid
from appliance.front.openai.responses_request import chat_body

USER = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


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
    ],
)
def test_fields_become_those_of_chat(asked: dict[str, Any], body: dict[str, Any]) -> None:
    assert chat_body({"input": "hi", **asked}) == {"messages": [USER], **body}


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ([USER], [USER]),
        ([{"type": "message", "role": "user", "content": None}], [{"role": "user", "content": ""}]),
        (
            [{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "text"}]}],
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
    ],
)
def test_items_become_messages(items: list[Any], messages: list[Any]) -> None:
    assert chat_body({"input": items})["messages"] == messages
    with_system = chat_body({"input": items, "instructions": "be brief"})["messages"]
    assert with_system == [{"role": "system", "content": "be brief"}, *messages]


@pytest.mark.parametrize(
    ("asked", "param", "text"),
    [
        ({"previous_response_id": "r"}, "previous_response_id", "send the former messages in `input`"),
        ({"conversation": "c"}, "conversation", "responses are not stored"),
        ({"background": True}, "background", "`background` is not supported: responses are not stored."),
        ({"input": None}, "input", "a string, or an array with at least one item"),
        ({"input": []}, "input", "`input` is required"),
        ({"input": 3}, "input", "`input` is required"),
        ({"input": ["x"]}, "input.0", "`input.0` must be an object, not a string."),
        ({"input": [{"type": "message"}]}, "input.0.role", "`input.0.role` is missing."),
        ({"input": [{"type": "web_search"}]}, "input.0.type", "'web_search' is not supported."),
        ({"input": [{"role": "user", "content": 3}]}, "input.0.content", "a string or an array of parts"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input.0.content.0.type",
            "'input_file' is not supported.",
        ),
        (
            {"tools": [{"type": "web_search"}]},
            "tools.0.type",
            "'web_search' is not supported; use \"function\".",
        ),
        ({"tools": ["f"]}, "tools.0.type", "a string"),
    ],
)
def test_refusals_name_the_field(asked: dict[str, Any], param: str, text: str) -> None:
    with pytest.raises(Invalid) as refused:
        chat_body({"input": "hi", **asked})
    assert refused.value.param == param
    assert text in refused.value.message
