"""Ollama's requests as OpenAI's, field by field, and what is refused."""

from typing import Any

import pytest

from appliance.base.errors import Invalid
from appliance.engines.types import NativeOptions, Operation
from appliance.front.ollama.context import pack_context
from appliance.front.ollama.translated_request import (
    LOCAL_OPTIONS,
    NATIVE_OPTIONS,
    OPTIONS,
    to_openai_chat,
    to_openai_generate,
    to_openai_options,
)

USER = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> dict[str, Any]:
    return to_openai_chat({"messages": USER, **fields}).body


def refusal(call: Any, *arguments: Any) -> Invalid:
    with pytest.raises(Invalid) as caught:
        call(*arguments)
    return caught.value


# ---- keep_alive


# ---- options


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        (None, {}),
        ({}, {}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 0.3, "top_p": 1}, {"temperature": 0.3, "top_p": 1}),
        ({"top_k": 40, "min_p": 0.05}, {"top_k": 40, "min_p": 0.05}),
        ({"top_k": 40.0}, {"top_k": 40}),
        (
            {"presence_penalty": 1, "frequency_penalty": -1.5},
            {"presence_penalty": 1, "frequency_penalty": -1.5},
        ),
        ({"seed": 7}, {"seed": 7}),
        ({"seed": 0}, {"seed": 0}),
        ({"seed": -1}, {}),
        ({"num_predict": 12}, {"max_tokens": 12}),
        ({"num_predict": -1}, {}),
        ({"num_predict": -2}, {}),
        ({"num_predict": 0}, {}),
        ({"max_tokens": 9}, {"max_tokens": 9}),
        ({"stop": ["a", "\n"]}, {"stop": ["a", "\n"]}),
        ({"stop": "a"}, {"stop": ["a"]}),
        ({"stop": []}, {}),
        ({"temperature": None, "num_ctx": None, "odd": None}, {}),
        ({"num_ctx": 4096, "num_gpu": 1, "use_mmap": True, "typical_p": 0.7}, {}),
    ],
)
def test_options_become_fields(options: dict[str, Any] | None, fields: dict[str, Any]) -> None:
    assert to_openai_options(options)[0] == fields


def test_an_unknown_option_is_reported_and_not_an_error() -> None:
    assert to_openai_options({"num_ctx": 1, "warmth": 3, "temperature": 1, "color": None}) == (
        {"temperature": 1},
        {},
        ["warmth", "color"],
    )
    assert to_openai_chat({"messages": USER, "options": {"warmth": 3}}).ignored == ["warmth"]


def test_options_of_an_engine_are_kept_apart_and_local_ones_are_named() -> None:
    given = {"repeat_penalty": 1.1, "mirostat": 2.0, "num_gpu": 1, "num_ctx": 9, "typical_p": None}
    assert to_openai_options(given) == ({}, {"repeat_penalty": 1.1, "mirostat": 2}, ["num_gpu"])


@pytest.mark.parametrize(("think", "native"), [(None, None), (True, True), (False, False), ("max", "high")])
def test_think_is_kept_for_each_engines_spelling(think: Any, native: Any) -> None:
    for translated in (
        to_openai_chat({"messages": USER, "think": think}),
        to_openai_generate({"prompt": "a", "think": think}),
    ):
        assert (translated.native and translated.native.think) == native
    raw = to_openai_generate({"prompt": "a", "raw": True, "think": think})
    assert raw.ignored == (["think"] if think else [])
    assert raw.native == NativeOptions({}, assumed=frozenset({"max_tokens"}))


def test_a_raw_prompt_says_whether_its_length_was_given() -> None:
    given = to_openai_generate({"prompt": "a", "raw": True, "options": {"num_predict": 5}})
    assert (given.body["max_tokens"], given.native) == (5, None)


WRONG = {float: ["1", True, [], {}], int: ["1", True, 1.5, []], bool: [1, "true"], list: [1, [1], {}]}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name, kind in [
            *((n, k) for n, (_, k) in OPTIONS.items()),
            *NATIVE_OPTIONS.items(),
            *LOCAL_OPTIONS.items(),
        ]
        for value in WRONG[kind]
    ],
)
def test_an_option_of_a_wrong_type_is_refused_by_name(name: str, value: Any) -> None:
    error = refusal(to_openai_options, {name: value})
    assert error.param == f"options.{name}"
    assert name in error.message


# ---- format, think, log-probabilities


@pytest.mark.parametrize(
    ("wanted", "response_format"),
    [
        (None, None),
        ("", None),
        ("json", {"type": "json_object"}),
        (
            {"type": "object"},
            {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}},
        ),
    ],
)
def test_format_becomes_response_format(wanted: Any, response_format: Any) -> None:
    assert chat(format=wanted).get("response_format") == response_format


@pytest.mark.parametrize(
    ("think", "effort"),
    [
        (None, None),
        (True, None),
        (False, None),
        ("low", "low"),
        ("medium", "medium"),
        ("high", "high"),
        ("max", "high"),
    ],
)
def test_think_becomes_reasoning_effort(think: Any, effort: str | None) -> None:
    assert chat(think=think).get("reasoning_effort") == effort


def test_logprobs_are_asked_for_in_each_operations_spelling() -> None:
    assert chat(logprobs=True, top_logprobs=3).items() >= {"logprobs": True, "top_logprobs": 3}.items()
    assert (
        to_openai_generate({"prompt": "a", "raw": True, "logprobs": True, "top_logprobs": 3}).body["logprobs"]
        == 3
    )
    assert not {"logprobs", "top_logprobs"} & set(chat(top_logprobs=3))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"format": "xml"}, "format"),
        ({"format": ["json"]}, "format"),
        ({"think": "hard"}, "think"),
        ({"think": 1}, "think"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": -1, "logprobs": True}, "top_logprobs"),
        ({"keep_alive": "x"}, "keep_alive"),
        ({"options": {"seed": "x"}}, "options.seed"),
    ],
)
def test_what_chat_and_generate_share_is_refused_by_field(fields: dict[str, Any], param: str) -> None:
    assert refusal(to_openai_chat, {"messages": USER, **fields}).param == param
    assert refusal(to_openai_generate, {"prompt": "hi", **fields}).param == param


# ---- generate


def test_a_prompt_becomes_a_chat() -> None:
    asked = to_openai_generate({"prompt": "why?", "system": "Be brief.", "options": {"num_predict": 5}})
    assert asked.operation is Operation.CHAT
    assert asked.body == {
        "max_tokens": 5,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "why?"}],
    }


def test_generate_accepts_messages() -> None:
    assert to_openai_generate({"messages": USER, "prompt": "unused"}).body["messages"] == USER
    assert to_openai_generate({"messages": USER, "system": "S"}).body["messages"] == [
        {"role": "system", "content": "S"},
        *USER,
    ]


def test_raw_is_sent_unchanged() -> None:
    asked = to_openai_generate(
        {"prompt": "<s>[INST] hi [/INST]", "raw": True, "think": "low", "options": {"stop": "x"}}
    )
    assert asked.operation is Operation.COMPLETION
    assert asked.body == {"prompt": "<s>[INST] hi [/INST]", "max_tokens": 512, "stop": ["x"]}


def test_a_suffix_makes_a_completion_of_the_gap() -> None:
    asked = to_openai_generate(
        {"prompt": "def f():", "suffix": "return x", "system": "unused", "options": {"num_predict": 9}}
    )
    assert asked.operation is Operation.COMPLETION
    assert asked.body == {"prompt": "def f():", "suffix": "return x", "max_tokens": 9}
    assert asked.ignored == ["system"]


def test_a_context_puts_the_conversation_before_the_prompt() -> None:
    context = pack_context([{"role": "system", "content": "old"}, {"role": "user", "content": "1"}], "2")
    first = [
        {"role": "system", "content": "old"},
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2"},
    ]
    assert to_openai_generate({"prompt": "3", "context": context}).body["messages"] == [
        *first,
        {"role": "user", "content": "3"},
    ]
    newer = to_openai_generate({"prompt": "3", "context": context, "system": "new"}).body["messages"]
    assert newer == [{"role": "system", "content": "new"}, *first[1:], {"role": "user", "content": "3"}]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"raw": True, "system": "s"}, "raw", "raw mode does not support template, system, or context"),
        ({"raw": True, "template": "t"}, "raw", "raw mode does not support template, system, or context"),
        ({"raw": True, "context": [1]}, "raw", "raw mode does not support template, system, or context"),
        ({"template": "{{ .Prompt }}"}, "template", "raw"),
        ({"context": [1, 2]}, "context", "/api/chat"),
        ({"raw": True, "images": ["aGk="]}, "images", "raw"),
        ({"suffix": "x", "images": ["aGk="]}, "images", "suffix"),
        ({"images": ["no base64!"]}, "images.0", "base64"),
        ({"messages": ["hi"]}, "messages.0", "object"),
    ],
)
def test_what_generate_cannot_do_is_refused(fields: dict[str, Any], param: str, words: str) -> None:
    error = refusal(to_openai_generate, {"prompt": "hi", **fields})
    assert error.param == param
    assert words in error.message


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (["hi"], "messages.0"),
        ([{}], "messages.0.role"),
        ([{"role": 5}], "messages.0.role"),
        ([*USER, {"role": "user", "content": 5}], "messages.1.content"),
    ],
)
def test_invalid_messages_are_refused_by_their_path(messages: list[Any], param: str) -> None:
    assert refusal(to_openai_chat, {"messages": messages}).param == param


def test_tools_are_sent() -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    assert chat(tools=[tool])["tools"] == [tool]
    assert "tools" not in chat(tools=[])
