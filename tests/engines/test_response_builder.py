"""One whole response out of a stream of events: tables of chunks."""

from typing import Any

import pytest

from appliance.engines.upstream.relay import BrokenStream
from appliance.engines.upstream.response_builder import ResponseBuilder


def whole(*events: dict[str, Any]) -> dict[str, Any]:
    builder = ResponseBuilder()
    for event in events:
        builder.add(event)
    return builder.build()


def chunk(*choices: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 5,
        "model": "m",
        "choices": list(choices),
        **more,
    }


def delta(index: int = 0, finish: str | None = None, logprobs: Any = None, **fields: Any) -> dict[str, Any]:
    return {
        "index": index,
        "delta": fields,
        "finish_reason": finish,
        **({"logprobs": logprobs} if logprobs else {}),
    }


def test_a_chat_is_built_with_usage_and_an_engines_own_fields() -> None:
    assert whole(
        chunk(delta(role="assistant", content=None)),
        chunk(delta(content="Hel")),
        chunk(delta(content="lo")),
        chunk(delta(finish="stop")),
        chunk(usage={"total_tokens": 3}, timings={"x": 1}),
    ) == {
        "id": "c1",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "usage": {"total_tokens": 3},
        "timings": {"x": 1},
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello"}}
        ],
    }


def test_choices_are_kept_apart_and_in_order() -> None:
    value = whole(
        chunk(delta(1, content="b")),
        chunk(delta(0, content="a")),
        chunk(delta(1, "stop"), delta(0, "length")),
    )
    assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in value["choices"]] == [
        (0, "a", "length"),
        (1, "b", "stop"),
    ]


def test_reasoning_and_refusals_are_texts_of_their_own() -> None:
    message = whole(
        chunk(delta(reasoning_content="I th")),
        chunk(delta(reasoning_content="ink")),
        chunk(delta(content="so", refusal="no")),
        chunk(delta(finish="stop")),
    )
    assert message["choices"][0]["message"] == {
        "role": "assistant",
        "reasoning_content": "I think",
        "content": "so",
        "refusal": "no",
    }


def test_tool_calls_are_put_together_by_their_index() -> None:
    def call(index: int, **more: Any) -> dict[str, Any]:
        return {"index": index, **more}

    value = whole(
        chunk(delta(tool_calls=[call(0, id="t0", type="function", function={"name": "a", "arguments": ""})])),
        chunk(delta(tool_calls=[call(0, function={"arguments": '{"x"'})])),
        chunk(
            delta(
                tool_calls=[
                    call(1, id="t1", type="function", function={"name": "b", "arguments": "{}"}),
                    call(0, function={"arguments": ":1}"}),
                ]
            )
        ),
        chunk(delta(finish="tool_calls")),
    )
    assert value["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "t0", "type": "function", "function": {"name": "a", "arguments": '{"x":1}'}},
            {"id": "t1", "type": "function", "function": {"name": "b", "arguments": "{}"}},
        ],
    }


def test_logprobs_are_put_one_after_the_other() -> None:
    value = whole(
        chunk(delta(content="a", logprobs={"content": [1], "refusal": None})),
        chunk(delta(content="b", logprobs={"content": [2, 3], "refusal": None})),
        chunk(delta(finish="stop")),
    )
    assert value["choices"][0]["logprobs"] == {"content": [1, 2, 3], "refusal": None}


def test_a_text_completion_is_added_up() -> None:
    def text(index: int, part: str, finish: str | None = None) -> dict[str, Any]:
        return {
            "object": "text_completion",
            "choices": [{"index": index, "text": part, "finish_reason": finish, "logprobs": None}],
        }

    value = whole(text(0, "a"), text(1, "x"), text(0, "b"), text(0, "", "stop"), text(1, "", "length"))
    assert value["object"] == "text_completion"
    assert [(c["text"], c["finish_reason"]) for c in value["choices"]] == [("ab", "stop"), ("x", "length")]


def test_an_empty_response_is_one() -> None:
    assert whole(chunk(delta(role="assistant")), chunk(delta(finish="stop")))["choices"][0]["message"] == {
        "role": "assistant",
        "content": "",
    }


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ([], "the stream ended before the response was complete"),
        ([chunk(delta(content="a"))], "the stream ended before the response was complete"),
        (
            [chunk(delta(0, "stop"), delta(1, content="a"))],
            "the stream ended before the response was complete",
        ),
        ([{"object": "x"}], "the stream ended before the response was complete"),
    ],
)
def test_what_is_not_whole_is_not_returned(events: list[dict[str, Any]], text: str) -> None:
    with pytest.raises(BrokenStream, match=text):
        whole(*events)


@pytest.mark.parametrize(
    ("former", "new", "joined"),
    [
        ({"content": [1]}, {"content": [2]}, {"content": [1, 2]}),
        (
            {"content": [1], "refusal": None},
            {"content": None, "refusal": [3]},
            {"content": [1], "refusal": [3]},
        ),
        ({"content": [1], "own": [5]}, {"content": [2]}, {"content": [1, 2], "own": [5]}),
        ({"content": [1], "top": 2}, {"top": 3, "more": None}, {"content": [1], "top": 3, "more": None}),
        ({"content": [1]}, [2], [2]),
    ],
)
def test_lists_of_logprobs_are_joined_field_by_field(former: Any, new: Any, joined: Any) -> None:
    value = whole(
        chunk(delta(content="a", logprobs=former)),
        chunk(delta(content="b", logprobs=new)),
        chunk(delta(finish="stop")),
    )
    assert value["choices"][0]["logprobs"] == joined


def test_of_an_engines_own_message_fields_the_last_counts() -> None:
    value = whole(chunk(delta(annotations=[1])), chunk(delta(annotations=[2])), chunk(delta(finish="stop")))
    assert value["choices"][0]["message"] == {"role": "assistant", "content": "", "annotations": [2]}
