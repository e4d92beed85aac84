"""Whole responses: what is repaired, what is refused, what is left as it is."""

from typing import Any

import pytest

from appliance.base.errors import UpstreamFailed
from appliance.engines.upstream.whole_reply import find_reply_error, repair_chunk, repair_reply

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}


def reply(message: Any, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], **more}


@pytest.mark.parametrize(
    "value",
    [
        reply({"role": "assistant", "content": "a", "annotations": [1]}, usage={"prompt_tokens": 1}),
        reply({"content": None, "tool_calls": [CALL]}),
        reply({"content": None, "refusal": "no", "reasoning": "hm"}),
        reply(None),
        {"choices": []},
        {"choices": [{"text": "a"}]},
        {"data": [{"embedding": [1.0]}]},
    ],
)
def test_a_usual_reply_stays_the_same_object(value: dict[str, Any]) -> None:
    assert repair_reply(value) is value
    assert find_reply_error(value) is None


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ({"content": [{"type": "text", "text": "a"}]}, {"content": "a"}),
        (
            {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]},
            {"content": "a", "reasoning_content": "hm"},
        ),
        ({"content": [{"type": "refusal", "refusal": "no"}]}, {"content": "", "refusal": "no"}),
        ({"reasoning": [{"text": "hm"}]}, {"reasoning": "hm"}),
        (
            {"tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {"x": 1}}}]},
            {"tool_calls": [CALL]},
        ),
        (
            {"tool_calls": [{"id": "c", "function": {"name": "f", "arguments": None}}]},
            {"tool_calls": [{**CALL, "function": {"name": "f", "arguments": ""}}]},
        ),
        (
            {"function_call": {"name": "f", "arguments": {"x": 1}}},
            {"function_call": {"name": "f", "arguments": '{"x":1}'}},
        ),
    ],
)
def test_other_spellings_become_text(message: dict[str, Any], changes: dict[str, Any]) -> None:
    assert repair_reply(reply(message)) == reply({**message, **changes})


def test_usage_of_another_type_is_left_out() -> None:
    assert repair_reply(reply({}, usage=5)) == reply({}, usage=None)


@pytest.mark.parametrize(
    "value",
    [
        {"choices": None},
        {"choices": 5},
        {"choices": [None]},
        {"choices": ["a"]},
        {"choices": [{"text": 5}]},
        {"choices": [{"finish_reason": 5}]},
        {"data": 5},
        reply(5),
        reply({"content": 5}),
        reply({"content": ["a"]}),
        reply({"refusal": 5}),
        reply({"tool_calls": 5}),
        reply({"tool_calls": [5]}),
        reply({"tool_calls": [{"function": {"name": "f", "arguments": 5}}]}),
        reply({"tool_calls": [CALL] * 257 + [{}]}),
        reply({"function_call": 5}),
    ],
)
def test_wrong_types_are_refused(value: dict[str, Any]) -> None:
    with pytest.raises(UpstreamFailed, match="The engine's response is invalid: ") as caught:
        repair_reply(value)
    assert caught.value.code == "upstream_rubbish"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"error": {"message": "boom"}}, "boom"),
        ({"detail": "boom"}, "boom"),
        ({"choices": [{"finish_reason": "error"}], "error": {"message": "boom"}}, "boom"),
        ({"choices": [], "error": "boom"}, "boom"),
        ({"data": [], "error": "boom"}, "boom"),
    ],
)
def test_an_error_in_a_whole_reply_is_found(value: dict[str, Any], message: str) -> None:
    error = find_reply_error(value)
    assert error is not None
    assert error.message == message


def piece(delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


@pytest.mark.parametrize(
    ("delta", "changes"),
    [
        ({"content": "a", "role": "assistant"}, {}),
        ({"content": None, "tool_calls": None}, {}),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}, {}),
        ({"tool_calls": [{"index": 0, "function": None}]}, {}),
        ({"content": [{"text": "a"}]}, {"content": "a"}),
        (
            {"tool_calls": [{"index": 1, "function": {"arguments": {"x": 1}}}]},
            {"tool_calls": [{"index": 1, "function": {"arguments": '{"x":1}'}}]},
        ),
        ({"function_call": {"arguments": {}}}, {"function_call": {"arguments": "{}"}}),
    ],
)
def test_a_chunk_is_repaired_only_where_it_must_be(delta: dict[str, Any], changes: dict[str, Any]) -> None:
    chunk = piece(delta)
    repaired = repair_chunk(chunk)
    assert repaired == piece({**delta, **changes})
    assert (repaired is chunk) is not bool(changes)


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": 5},
        {"choices": [5]},
        {"choices": [None]},
        {"choices": [{"finish_reason": 5}]},
        {"choices": [{"text": 5}]},
        piece(5),
        piece({"content": 5}),
        piece({"tool_calls": 5}),
        piece({"tool_calls": [{"index": 10**9}]}),
        piece({"function_call": 5}),
    ],
)
def test_a_chunk_of_wrong_types_is_refused(chunk: dict[str, Any]) -> None:
    with pytest.raises(UpstreamFailed, match="The engine's response is invalid: "):
        repair_chunk(chunk)
