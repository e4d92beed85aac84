"""OpenAI's replies and chunks as Ollama's objects."""

import base64
import struct
from typing import Any

import pytest

from appliance.base.errors import UpstreamFailed
from appliance.front.ollama.reply import (
    ReplyFormat,
    StreamTranslator,
    closing_numbers,
    from_openai_calls,
    from_openai_logprobs,
    from_openai_reply,
    normalize,
    parse_vectors,
    to_done_reason,
)

AT_S, STAMP = 1_800_000_000.25, "2027-01-15T08:00:00.250000Z"
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
CHAT, GENERATE = ReplyFormat("house/model", is_chat=True), ReplyFormat("house/model", is_chat=False)


def chunk(delta: dict[str, Any], *, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish, **more}]}


def translate_all(reply_format: ReplyFormat, *events: dict[str, Any]) -> list[dict[str, Any]]:
    """Translate events that arrive a second apart; the stream ends one second after the last."""
    translator = StreamTranslator(reply_format)
    parts = [translator.translate(event, at_s=AT_S, elapsed_s=1.0 + n) for n, event in enumerate(events)]
    return [part for part in parts if part is not None] + translator.finish(
        at_s=AT_S, elapsed_s=1.0 + len(events)
    )


def fragment(index: int, arguments: str, **first: Any) -> dict[str, Any]:
    name = {"name": first.pop("name")} if "name" in first else {}
    return {"index": index, **first, "function": {**name, "arguments": arguments}}


# ---- streams


def test_a_chat_is_sent_line_by_line_and_closed_with_numbers() -> None:
    objects = translate_all(
        CHAT,
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hel"}),
        chunk({"content": "lo\n"}),
        chunk({}, finish="length"),
        {"choices": [], "usage": USAGE},
    )
    head = {"model": "house/model", "created_at": STAMP}
    assert objects == [
        {**head, "message": {"role": "assistant", "content": "Hel"}, "done": False},
        {**head, "message": {"role": "assistant", "content": "lo\n"}, "done": False},
        {
            **head,
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "length",
            "total_duration": 6 * 10**9,
            "prompt_eval_count": 7,
            "prompt_eval_duration": 2 * 10**9,
            "eval_count": 3,
            "eval_duration": 4 * 10**9,
        },
    ]


def test_generate_says_response_instead_of_message() -> None:
    objects = translate_all(GENERATE, chunk({"content": "hi"}), chunk({}, finish="stop"))
    assert [(part["response"], part["done"]) for part in objects] == [("hi", False), ("", True)]
    assert all("message" not in part for part in objects)


def test_chunks_of_a_completion_are_translated() -> None:
    objects = translate_all(
        GENERATE,
        {"choices": [{"index": 0, "text": "a", "finish_reason": None}]},
        {"choices": [{"index": 0, "text": "b", "finish_reason": "stop"}]},
    )
    assert [part["response"] for part in objects] == ["a", "b", ""]
    assert objects[-1]["done_reason"] == "stop"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thinking_is_sent_or_hidden(name: str) -> None:
    events = [chunk({name: "hm"}), chunk({"content": "a"}), chunk({}, finish="stop")]
    assert [part["message"].get("thinking") for part in translate_all(CHAT, *events)] == ["hm", None, None]
    hidden = translate_all(ReplyFormat("m", is_chat=True, shows_thinking=False), *events)
    assert [part["message"] for part in hidden] == [
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": ""},
    ]
    assert hidden[-1]["prompt_eval_duration"] == 10**9  # the model began when it began to think


def test_tool_calls_are_sent_whole_before_the_end() -> None:
    objects = translate_all(
        CHAT,
        chunk({"role": "assistant", "content": None}),
        chunk({"tool_calls": [fragment(0, "", id="x1", name="add", type="function")]}),
        chunk({"tool_calls": [fragment(0, '{"a":'), fragment(1, '{"b":2}', id="x2", name="sub")]}),
        chunk({"tool_calls": [fragment(0, "1}")]}),
        chunk({}, finish="tool_calls"),
    )
    assert [part["done"] for part in objects] == [False, True]
    assert objects[0]["message"]["tool_calls"] == [
        {"id": "x1", "function": {"index": 0, "name": "add", "arguments": {"a": 1}}},
        {"id": "x2", "function": {"index": 1, "name": "sub", "arguments": {"b": 2}}},
    ]
    assert objects[1]["done_reason"] == "stop"
    assert objects[1]["prompt_eval_duration"] == 2 * 10**9


def test_fragments_without_an_index_are_calls_of_their_own() -> None:
    objects = translate_all(
        CHAT,
        chunk(
            {
                "tool_calls": [
                    {"id": "a", "function": {"name": "f", "arguments": {"x": 1}}},
                    {"id": "b", "function": {"name": "g", "arguments": "{}"}},
                ]
            }
        ),
    )
    assert [(c["id"], c["function"]["arguments"]) for c in objects[0]["message"]["tool_calls"]] == [
        ("a", {"x": 1}),
        ("b", {}),
    ]


def test_log_probabilities_are_sent_with_their_text() -> None:
    entry = {"token": "hi", "logprob": -0.1, "bytes": [104, 105], "top_logprobs": []}
    objects = translate_all(
        CHAT, chunk({"content": "hi"}, logprobs={"content": [entry]}), chunk({}, finish="stop")
    )
    assert objects[0]["logprobs"] == [entry]
    assert "logprobs" not in objects[1]


@pytest.mark.parametrize(
    "event", [{}, {"choices": None}, {"choices": [None]}, {"choices": [{}]}, {"choices": [{"delta": None}]}]
)
def test_an_empty_event_makes_no_line(event: dict[str, Any]) -> None:
    assert len(translate_all(CHAT, event)) == 1


def test_a_stream_without_usage_has_no_counts() -> None:
    assert not {"eval_count", "prompt_eval_count"} & set(translate_all(CHAT, chunk({"content": "a"}))[-1])


# ---- whole replies


def test_a_whole_chat_is_one_object() -> None:
    message = {
        "role": "assistant",
        "content": "hi",
        "reasoning_content": "hm",
        "tool_calls": [{"id": "x1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}],
    }
    reply = {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": USAGE}
    out, text = from_openai_reply(reply, CHAT, at_s=AT_S, elapsed_s=2)
    assert text == "hi"
    assert out == {
        "model": "house/model",
        "created_at": STAMP,
        "done": True,
        "done_reason": "stop",
        "message": {
            "role": "assistant",
            "content": "hi",
            "thinking": "hm",
            "tool_calls": [{"id": "x1", "function": {"index": 0, "name": "add", "arguments": {"a": 1}}}],
        },
        "total_duration": 2 * 10**9,
        "prompt_eval_count": 7,
        "eval_count": 3,
        "eval_duration": 2 * 10**9,
    }


def test_a_whole_completion_is_one_object() -> None:
    out, text = from_openai_reply(
        {"choices": [{"text": "hi", "finish_reason": "stop"}]}, GENERATE, at_s=AT_S, elapsed_s=1
    )
    assert (out["response"], text) == ("hi", "hi")


def test_a_refusal_is_text() -> None:
    assert (
        from_openai_reply(
            {"choices": [{"message": {"content": None, "refusal": "no"}}]}, GENERATE, at_s=AT_S, elapsed_s=1
        )[1]
        == "no"
    )


@pytest.mark.parametrize("reply", [{}, {"choices": []}, {"choices": None}, {"choices": ["x"]}, {"data": []}])
def test_a_reply_without_choices_is_a_failure(reply: dict[str, Any]) -> None:
    with pytest.raises(UpstreamFailed):
        from_openai_reply(reply, CHAT, at_s=AT_S, elapsed_s=1)


# ---- parts


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ('{"a":1}', {"a": 1}),
        ("", {}),
        (None, {}),
        ({"a": 1}, {"a": 1}),
        ("[1]", {"_raw": "[1]"}),
        ('{"a":', {"_raw": '{"a":'}),
    ],
)
def test_arguments_are_always_an_object(arguments: Any, given: dict[str, Any]) -> None:
    [call] = from_openai_calls([{"function": {"name": "f", "arguments": arguments}}])
    assert call == {"function": {"index": 0, "name": "f", "arguments": given}}


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("tool_calls", "stop"),
        ("function_call", "stop"),
        (None, "stop"),
        ("", "stop"),
        (7, "stop"),
        ("content_filter", "content_filter"),
    ],
)
def test_finish_reasons_become_done_reasons(finish: Any, reason: str) -> None:
    assert to_done_reason(finish) == reason


@pytest.mark.parametrize(
    ("logprobs", "rows"),
    [
        (None, []),
        ({"content": None}, []),
        (
            {
                "tokens": ["a", "b"],
                "token_logprobs": [None, -1.0],
                "top_logprobs": [None, {"b": -1.0, "c": -2.0}],
            },
            [
                {"token": "a", "logprob": 0.0},
                {
                    "token": "b",
                    "logprob": -1.0,
                    "top_logprobs": [{"token": "b", "logprob": -1.0}, {"token": "c", "logprob": -2.0}],
                },
            ],
        ),
        (
            {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": None},
            [{"token": "a", "logprob": -1.0}],
        ),
    ],
)
def test_both_shapes_of_log_probabilities_are_read(logprobs: Any, rows: list[Any]) -> None:
    assert from_openai_logprobs({"logprobs": logprobs}) == rows


def test_numbers_that_are_zero_are_left_out() -> None:
    assert closing_numbers(None, total_s=1.5, first_s=0) == {
        "total_duration": 1_500_000_000,
        "eval_duration": 1_500_000_000,
    }
    assert closing_numbers({"prompt_tokens": None, "completion_tokens": 0}, total_s=0, first_s=0) == {}


def test_loading_counts_for_neither_phase() -> None:
    streamed = closing_numbers(USAGE, total_s=9, first_s=6, load_s=5)
    names = ("load_duration", "prompt_eval_duration", "eval_duration")
    assert [streamed[name] for name in names] == [5_000_000_000, 1_000_000_000, 3_000_000_000]
    whole = closing_numbers(USAGE, total_s=9, first_s=0, load_s=5)
    assert (whole["load_duration"], whole["eval_duration"]) == (5_000_000_000, 4_000_000_000)
    assert whole["total_duration"] == 9_000_000_000


@pytest.mark.parametrize("value", [None, "1", True, -1, 1e300, 2**70, [], {}])
def test_timings_that_are_none_are_measured_here(value: Any) -> None:
    numbers = closing_numbers(
        USAGE, total_s=9, first_s=2, timings={"prompt_ms": value, "predicted_ms": value}
    )
    assert (numbers["prompt_eval_duration"], numbers["eval_duration"]) == (2_000_000_000, 7_000_000_000)


def test_the_engines_own_measurements_are_preferred() -> None:
    numbers = closing_numbers(USAGE, total_s=9, first_s=2, timings={"prompt_ms": 100.5, "predicted_ms": 250})
    assert (numbers["prompt_eval_duration"], numbers["eval_duration"]) == (100_500_000, 250_000_000)


# ---- embeddings


def test_vectors_keep_the_order_of_their_inputs() -> None:
    packed = base64.b64encode(struct.pack("<2f", 0.5, -2.0)).decode()
    rows = [{"index": 1, "embedding": packed}, {"index": 0, "embedding": [3, 4]}]
    assert parse_vectors({"data": rows}, 2) == [[3.0, 4.0], [0.5, -2.0]]


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"data": []},
        {"data": [{"embedding": [1]}, {"embedding": [1]}]},
        {"data": [{}]},
        {"data": ["x"]},
        {"data": [{"embedding": None}]},
        {"data": [{"embedding": "no base64!"}]},
        {"data": [{"embedding": "AAA="}]},
        {"data": [{"embedding": ["a"]}]},
    ],
)
def test_invalid_vectors_are_a_failure(reply: dict[str, Any]) -> None:
    with pytest.raises(UpstreamFailed):
        parse_vectors(reply, 1)


def test_vectors_get_length_one() -> None:
    assert normalize([3.0, 4.0]) == pytest.approx([0.6, 0.8])
    assert normalize([0.0, 0.0]) == [0.0, 0.0]
