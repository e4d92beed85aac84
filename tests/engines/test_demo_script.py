"""What the demo engine replies to a prompt: a table of prompts and request fields."""

import json
import math
from typing import Any

import pytest

from appliance.base.errors import Invalid
from appliance.engines.backends.demo_script import (
    MARK,
    count_tokens,
    decide_reply,
    embed,
    last_user_text,
    truncate,
)

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        },
    },
}
NOTHING = {"type": "function", "function": {"name": "nothing"}}


@pytest.mark.parametrize(
    ("text", "body", "reply"),
    [
        ("hello", {}, f"{MARK} You said: hello"),
        ("demo: long 3", {}, f"{MARK} the quick brown"),
        (
            "demo: long",
            {},
            f"{MARK} "
            + " ".join((["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"] * 12)[:100]),
        ),
        ("hello there", {"stop": "there"}, f"{MARK} You said: hello "),
        ("hello there", {"stop": ["absent", "hello"]}, f"{MARK} You said: "),
        ("x", {"response_format": {"type": "json_object"}}, '{"engine":"demo","echo":"x"}'),
        (
            "x",
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": 5}}}},
            "5",
        ),
        ("x", {"response_format": {"type": "json_schema"}}, "{}"),
        ("x", {"response_format": {"type": "text"}}, f"{MARK} You said: x"),
    ],
)
def test_the_text_of_a_reply(text: str, body: dict[str, Any], reply: str) -> None:
    assert decide_reply(body, text, is_chat=True).text == reply


def test_the_unicode_prompt_has_joined_characters_and_newlines() -> None:
    reply = decide_reply({}, "demo: unicode", is_chat=True).text
    assert "👩‍👩‍👧‍👦" in reply
    assert "\n\n" in reply


@pytest.mark.parametrize(
    ("body", "finish", "tokens"),
    [
        ({}, "stop", 10),
        ({"max_tokens": 4}, "length", 4),
        ({"max_completion_tokens": 3, "max_tokens": 100}, "length", 3),
        ({"max_tokens": 100}, "stop", 10),
        ({"max_tokens": 0}, "stop", 10),
    ],
)
def test_a_reply_ends_at_its_token_limit(body: dict[str, Any], finish: str, tokens: int) -> None:
    reply = decide_reply(body, "hi you", is_chat=True)
    assert (reply.finish_reason, count_tokens(reply.text)) == (finish, tokens)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("demo: error 429", 429),
        ("DEMO: Error 503 please", 503),
        ("demo: error", 500),
        ("demo: error 200", 500),
        ("demo: error 700", 500),
        ("demo: error many", 500),
    ],
)
def test_a_prompt_can_ask_for_an_error(text: str, status: int) -> None:
    assert decide_reply({}, text, is_chat=True).error_status == status


@pytest.mark.parametrize(
    ("text", "delay_s", "is_stalled", "is_cut"),
    [
        ("demo: slow 2", 2.0, False, False),
        ("demo: slow 999", 60.0, False, False),
        ("demo: slow soon", 0.0, False, False),
        ("demo: stall", 0.0, True, False),
        ("demo: cut", 0.0, False, True),
        ("demo: slow 1 and demo: cut", 1.0, False, True),
        ("demo: slow 3 demo: error 429", 3.0, False, False),
        ("nothing of the kind", 0.0, False, False),
    ],
)
def test_a_prompt_can_ask_for_trouble(text: str, delay_s: float, is_stalled: bool, is_cut: bool) -> None:
    reply = decide_reply({}, text, is_chat=True)
    assert (reply.delay_s, reply.is_stalled, reply.is_cut) == (delay_s, is_stalled, is_cut)


@pytest.mark.parametrize(
    ("text", "body", "called"),
    [
        ("x", {}, []),
        ("x", {"tool_choice": "none"}, []),
        ("x", {"tool_choice": "required"}, ["weather"]),
        ("x", {"tool_choice": {"type": "function", "function": {"name": "nothing"}}}, ["nothing"]),
        ("x", {"tool_choice": {"type": "function", "function": {"name": "absent"}}}, []),
        ("demo: tool nothing", {}, ["nothing"]),
        ("demo: tool", {}, ["weather"]),
        ("demo: tool nothing", {"tool_choice": "none"}, []),
    ],
)
def test_a_tool_is_called_when_it_is_forced_or_asked_for(
    text: str, body: dict[str, Any], called: list[str]
) -> None:
    reply = decide_reply({"tools": [WEATHER, NOTHING, "odd"], **body}, text, is_chat=True)
    assert [name for name, _ in reply.tool_calls] == called
    assert (reply.finish_reason == "tool_calls") is bool(called)


def test_a_tool_call_fits_its_schema_and_completions_call_none() -> None:
    body = {"tools": [WEATHER], "tool_choice": "required"}
    ((_, arguments),) = decide_reply(body, "x", is_chat=True).tool_calls
    assert json.loads(arguments) == {"city": "demo", "days": 1}
    assert decide_reply(body, "x", is_chat=False).tool_calls == ()


@pytest.mark.parametrize(
    ("text", "body", "has_reasoning"),
    [("demo: think", {}, True), ("x", {"reasoning_effort": "low"}, True), ("x", {}, False)],
)
def test_reasoning_comes_when_asked_for(text: str, body: dict[str, Any], has_reasoning: bool) -> None:
    assert bool(decide_reply(body, text, is_chat=True).reasoning) is has_reasoning


CALLED = {"tools": [WEATHER], "tool_choice": "required"}
CALL = {"role": "assistant", "content": None, "tool_calls": []}


def result(text: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "c", "content": text}


@pytest.mark.parametrize(
    ("messages", "reply"),
    [
        (["u", CALL, result("sunny")], "The tool returned: sunny"),
        (["u", CALL, result("a"), result([{"type": "text", "text": "b"}])], "The tool returned: a, b"),
        (["u", CALL, result("a"), {"role": "assistant", "content": "x"}], "The tool returned: a"),
        (["u", CALL, {"role": "function", "content": "f"}], "The tool returned: f"),
        (["u", CALL, result(None)], "The tool returned: "),
        (["u", CALL, result("a"), "again"], None),  # a new question: the tool is called
        (["u"], None),
    ],
)
def test_a_tools_result_ends_the_loop_with_text(messages: list[Any], reply: str | None) -> None:
    turns = [{"role": "user", "content": one} if isinstance(one, str) else one for one in messages]
    for prompt, choice in (("demo: tool weather", "auto"), ("x", "required")):
        decided = decide_reply(CALLED | {"messages": turns, "tool_choice": choice}, prompt, is_chat=True)
        assert decided.text == (f"{MARK} {reply}" if reply is not None else "")
        assert bool(decided.tool_calls) == (reply is None)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([], ""),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "a"),
        ([{"role": "system", "content": "s"}], "s"),
        (["odd"], ""),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}, "b"]}],
            "a [image_url] b",
        ),
        ([{"role": "user", "content": None}], ""),
    ],
)
def test_the_last_user_message_is_answered(messages: list[Any], text: str) -> None:
    assert last_user_text(messages) == text


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("word", 1), ("longer", 2), ("a b, c", 4), ("  \n ", 0), ("日本語", 1)]
)
def test_tokens_are_counted_by_a_simple_rule(text: str, tokens: int) -> None:
    assert count_tokens(text) == tokens


def test_truncate_keeps_whole_tokens() -> None:
    assert truncate("one two three", 2) == "one two"
    assert truncate("one", 5) == "one"


def test_embeddings_are_unit_vectors_and_near_for_similar_texts() -> None:
    cat, cats, other = (embed(text, 64) for text in ("a cat", "a cats", "quantum flux"))
    assert math.isclose(sum(x * x for x in cat), 1.0)
    assert sum(a * b for a, b in zip(cat, cats, strict=True)) > sum(
        a * b for a, b in zip(cat, other, strict=True)
    )
    assert embed("", 4) == [1.0, 0.0, 0.0, 0.0] or math.isclose(sum(x * x for x in embed("", 4)), 1.0)


@pytest.mark.parametrize(
    ("schema", "param"),
    [
        (5, "response_format.json_schema"),
        ("x", "response_format.json_schema"),
        *(
            ({"schema": schema}, "response_format.json_schema.schema")
            for schema in [
                5,
                "x",
                [1],
                {"properties": 5},
                {"type": {}, "properties": ["a"]},
                {"anyOf": 5},
                {"properties": {"a": {"type": {}}}},
                {"enum": 5},
                {"required": "a"},
            ]
        ),
    ],
)
def test_a_wrong_schema_is_the_callers_fault(schema: Any, param: str) -> None:
    body = {"response_format": {"type": "json_schema", "json_schema": schema}}
    with pytest.raises(Invalid) as refused:
        decide_reply(body, "x", is_chat=True)
    assert refused.value.param == param


def test_parameters_of_a_wrong_schema_are_the_callers_fault() -> None:
    body = {
        "tools": [{"function": {"name": "f", "parameters": {"properties": 5}}}],
        "tool_choice": "required",
    }
    with pytest.raises(Invalid, match="`tools` is not a valid JSON schema"):
        decide_reply(body, "x", is_chat=True)
