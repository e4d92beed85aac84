"""Whole chat replies as messages of Anthropic's API."""

from typing import Any

import pytest

from appliance.base.errors import UpstreamFailed
from appliance.front.anthropic.response import to_message, usage_object

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}}
NO_USAGE = {
    "input_tokens": 0,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "output_tokens": 0,
}


def reply(message: dict[str, Any], finish: Any = "stop", **choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish, **choice}], "usage": USAGE}


def call(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def test_a_message_has_the_official_fields() -> None:
    message = to_message(reply({"role": "assistant", "content": "Ho"}), model="m")
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "Ho"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 7,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 4,
            "output_tokens": 7,
        },
    }


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ({"content": ""}, []),
        ({"content": None}, []),
        (None, []),
        ({"content": None, "refusal": "No."}, [{"type": "text", "text": "No."}]),
        (
            {"content": "Ho", "reasoning_content": "Hm."},
            [{"type": "thinking", "thinking": "Hm.", "signature": ""}, {"type": "text", "text": "Ho"}],
        ),
        (
            {"content": "Ho", "reasoning": "Hm."},
            [{"type": "thinking", "thinking": "Hm.", "signature": ""}, {"type": "text", "text": "Ho"}],
        ),
        (
            {"content": "Ho", "tool_calls": [call("f", '{"a": 1}', id="c1"), call("g", "", id="c2")]},
            [
                {"type": "text", "text": "Ho"},
                {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
                {"type": "tool_use", "id": "c2", "name": "g", "input": {}},
            ],
        ),
        (
            {"tool_calls": [call("f", {"a": 1}, id="c1")]},
            [{"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}],
        ),
        (
            {"tool_calls": [call("f", '{"a": ', id="c1"), call("g", "[1]", id="c2")]},
            [
                {"type": "tool_use", "id": "c1", "name": "f", "input": {"_raw": '{"a": '}},
                {"type": "tool_use", "id": "c2", "name": "g", "input": {"_raw": "[1]"}},
            ],
        ),
    ],
)
def test_content_becomes_blocks(message: Any, content: list[dict[str, Any]]) -> None:
    assert to_message(reply(message), model="m")["content"] == content


def test_thinking_is_left_out_where_it_is_not_wanted() -> None:
    given = reply({"content": "Ho", "reasoning_content": "Hm."})
    message = to_message(given, model="m", shows_thinking=False)
    assert message["content"] == [{"type": "text", "text": "Ho"}]


def test_a_call_without_an_id_gets_one() -> None:
    [block] = to_message(reply({"tool_calls": [call("f", "{}")]}), model="m")["content"]
    assert block["id"].startswith("toolu_")


@pytest.mark.parametrize(
    ("given", "reason", "sequence"),
    [
        (reply({"content": "a"}, "stop"), "end_turn", None),
        (reply({"content": "a"}, "length"), "max_tokens", None),
        (reply({"content": "a"}, "content_filter"), "refusal", None),
        (reply({"content": "a"}, None), "end_turn", None),
        (reply({"content": "a"}, "new_reason"), "end_turn", None),
        (reply({"tool_calls": [call("f", "{}")]}, "tool_calls"), "tool_use", None),
        (reply({"tool_calls": [call("f", "{}")]}, "function_call"), "tool_use", None),
        (reply({"tool_calls": [call("f", "{}")]}, "stop"), "tool_use", None),
        (reply({"tool_calls": [call("f", "{")]}, "length"), "max_tokens", None),
        (reply({"content": "a"}, "stop", stop_reason="END"), "stop_sequence", "END"),
        (reply({"content": "a"}, "stop", matched_stop="END"), "stop_sequence", "END"),
        (reply({"content": "a"}, "stop", stop_reason=2), "end_turn", None),  # a token's number
        (reply({"content": "a"}, "stop", matched_stop=None), "end_turn", None),
    ],
)
def test_stop_reasons(given: dict[str, Any], reason: str, sequence: str | None) -> None:
    message = to_message(given, model="m")
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)


@pytest.mark.parametrize(
    ("usage", "changed"),
    [
        (None, {}),
        ("many", {}),
        ({"prompt_tokens": 3, "completion_tokens": None}, {"input_tokens": 3}),
        ({"prompt_tokens": 3, "prompt_tokens_details": None}, {"input_tokens": 3}),
        ({"prompt_tokens": "3", "completion_tokens": 2}, {"output_tokens": 2}),
        ({"prompt_tokens": -3, "completion_tokens": True}, {}),
        (
            {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 3}},
            {"input_tokens": 4, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 3},
        ),
        (
            {"prompt_tokens": 9, "cache_creation_input_tokens": 3},
            {"input_tokens": 6, "cache_creation_input_tokens": 3},
        ),
    ],
)
def test_usage_that_is_missing_is_zero(usage: Any, changed: dict[str, int]) -> None:
    assert usage_object(usage) == NO_USAGE | changed


@pytest.mark.parametrize(
    "given", [{}, {"choices": []}, {"choices": ["x"]}, {"choices": {}}, {"choices": [{"message": 5}]}]
)
def test_a_reply_without_choices_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UpstreamFailed, match="The engine's response is invalid: "):
        to_message(given, model="m")
