"""Chat chunks as the event stream of the Responses API, by the shapes of OpenAI's reference."""

import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.errors import UpstreamFailed
from appliance.engines.stream import GeneratedStream
from appliance.front.openai.responses_objects import finish_response, new_response, output_items, usage_object
from appliance.front.openai.responses_stream import ResponsesStream
from appliance.front.openai.responses_tools import to_functions

USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 4,
    "total_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 1},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


def call(
    index: int, *, id: str | None = None, name: str | None = None, arguments: str = ""
) -> dict[str, Any]:
    return {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}


async def events_of(
    *deltas: dict[str, Any],
    finish: str = "stop",
    is_cut: bool = False,
    choices: Sequence[dict[str, Any]] = (),
    **more: Any,
) -> list[dict[str, Any]]:
    async def chunks() -> AsyncGenerator[bytes, None]:
        for choice in [*choices, *({"delta": delta} for delta in deltas)]:
            yield b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode()
        if not is_cut:
            last = {"choices": [{"delta": {}, "finish_reason": finish}], "usage": USAGE}
            yield b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(last).encode()

    stream = ResponsesStream(new_response({}, model="m", at_s=1), FakeClock(100), **more)
    text = b""
    try:
        async for piece in stream.pieces(GeneratedStream(chunks())):
            text += piece
    except UpstreamFailed as error:
        text += stream.render_failure(error)
    found = []
    for number, block in enumerate(text.decode().strip().split("\n\n")):
        kind, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {event['type']}"
        assert event["sequence_number"] == number
        found.append(event)
    return found


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


MESSAGE_START = ["output_item.added", "content_part.added"]
MESSAGE_END = ["output_text.done", "content_part.done", "output_item.done"]
REASONING_START = ["output_item.added", "reasoning_summary_part.added"]
REASONING_END = ["reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done"]
CALL_END = ["function_call_arguments.done", "output_item.done"]


@pytest.mark.parametrize(
    ("deltas", "middle"),
    [
        ([], [*MESSAGE_START, *MESSAGE_END]),
        ([{"role": "assistant", "content": ""}], [*MESSAGE_START, *MESSAGE_END]),
        (
            [{"content": "a"}, {"content": "b"}],
            [*MESSAGE_START, "output_text.delta", "output_text.delta", *MESSAGE_END],
        ),
        (
            [{"reasoning_content": "r"}, {"content": "a"}],
            [
                *REASONING_START,
                "reasoning_summary_text.delta",
                *REASONING_END,
                *MESSAGE_START,
                "output_text.delta",
                *MESSAGE_END,
            ],
        ),
        (
            [{"reasoning": "r", "content": "a"}],
            [
                *REASONING_START,
                "reasoning_summary_text.delta",
                *REASONING_END,
                *MESSAGE_START,
                "output_text.delta",
                *MESSAGE_END,
            ],
        ),
        (
            [{"tool_calls": [call(0, id="c", name="f")]}, {"tool_calls": [call(0, arguments="{}")]}],
            ["output_item.added", "function_call_arguments.delta", *CALL_END],
        ),
        (
            [{"tool_calls": [call(0, id="c", name="f"), call(1, id="d", name="g", arguments="1")]}],
            [
                "output_item.added",
                "output_item.added",
                "function_call_arguments.delta",
                *CALL_END,
                *CALL_END,
            ],
        ),
        (
            [
                {"tool_calls": [call(0, id="c", name="f", arguments="{}")]},
                {"tool_calls": [call(1, id="d", name="g", arguments="{}")]},
            ],
            ["output_item.added", "function_call_arguments.delta", *CALL_END] * 2,
        ),
        (
            [{"refusal": "n"}, {"refusal": "o"}],
            [
                *MESSAGE_START,
                *["refusal.delta"] * 2,
                "refusal.done",
                "content_part.done",
                "output_item.done",
            ],
        ),
    ],
)
async def test_items_are_added_filled_and_done(deltas: list[dict[str, Any]], middle: list[str]) -> None:
    assert kinds(await events_of(*deltas)) == ["created", "in_progress", *middle, "completed"]


async def test_a_message_has_the_official_fields() -> None:
    events = await events_of({"content": "Hel"}, {"content": "lo"})
    added, part, delta = events[2], events[3], events[4]
    item_id = added["item"]["id"]
    assert item_id.startswith("msg_")
    assert added["item"] == {
        "type": "message",
        "id": item_id,
        "role": "assistant",
        "status": "in_progress",
        "content": [],
    }
    empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    where = {"item_id": item_id, "output_index": 0, "content_index": 0}
    assert part == {"type": "response.content_part.added", "sequence_number": 3, **where, "part": empty}
    assert delta == {
        "type": "response.output_text.delta",
        "sequence_number": 4,
        **where,
        "delta": "Hel",
        "logprobs": [],
    }
    whole = {**empty, "text": "Hello"}
    assert (events[6]["text"], events[7]["part"], events[8]["item"]["content"]) == ("Hello", whole, [whole])
    response = events[9]["response"]
    assert (response["status"], response["completed_at"], response["model"]) == ("completed", 100, "m")
    assert response["output"] == [events[8]["item"]]


async def test_parallel_calls_keep_their_own_arguments() -> None:
    events = await events_of(
        {"tool_calls": [call(0, id="c1", name="f", arguments='{"a"')]},
        {"tool_calls": [call(0, arguments=":1}")]},
        {"tool_calls": [call(1, id="c2", name="g", arguments="{}")]},
        finish="tool_calls",
    )
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [(one["call_id"], one["name"], one["arguments"]) for one in done] == [
        ("c1", "f", '{"a":1}'),
        ("c2", "g", "{}"),
    ]
    assert [event["output_index"] for event in events if "output_index" in event][-1] == 1


@pytest.mark.parametrize(
    ("finish", "status", "reason"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
    ],
)
async def test_the_finish_reason_decides_the_status(finish: str, status: str, reason: str | None) -> None:
    last = (await events_of({"content": "a"}, finish=finish))[-1]
    assert last["type"] == f"response.{status}"
    assert last["response"]["incomplete_details"] == ({"reason": reason} if reason else None)


async def test_a_cut_off_stream_ends_with_an_error_and_response_failed() -> None:
    *_, error, last = await events_of({"content": "a"}, is_cut=True)
    assert [event["type"] for event in (error, last)] == ["error", "response.failed"]
    assert error["sequence_number"] == last["sequence_number"] - 1
    fields = {"code": "upstream_cut_off", "message": last["response"]["error"]["message"], "param": None}
    assert error.items() >= fields.items()
    assert error["error"] == {"type": "upstream_error", **fields}
    assert (last["response"]["status"], last["response"]["error"]["code"]) == ("failed", "upstream_cut_off")


def test_usage_has_the_names_of_the_responses_api() -> None:
    assert usage_object(USAGE) == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 7,
    }
    assert usage_object({})["total_tokens"] == 0  # type: ignore[index]
    written = usage_object({"prompt_tokens_details": {"cache_write_tokens": 2}})
    assert written is not None
    assert written["input_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 2}
    assert usage_object(None) is None


@pytest.mark.parametrize(
    ("message", "types"),
    [
        ({}, ["message"]),
        ({"content": "a"}, ["message"]),
        ({"content": "a", "reasoning": "r"}, ["reasoning", "message"]),
        ({"tool_calls": [{"id": "c", "function": {"name": "f"}}]}, ["function_call"]),
        ({"content": "a", "tool_calls": [{}]}, ["message", "function_call"]),
    ],
)
def test_a_whole_message_becomes_items(message: dict[str, Any], types: list[str]) -> None:
    items = output_items(message)
    assert [item["type"] for item in items] == types
    response = finish_response(new_response({}, model="m", at_s=1), items, finish="stop", usage=None, at_s=9)
    assert (response["output"], response["usage"], response["created_at"]) == (items, None, 1)


def test_a_new_response_repeats_the_request() -> None:
    response = new_response({"temperature": 0.1, "reasoning": {"effort": "low"}}, model="m", at_s=1)
    assert (response["temperature"], response["store"], response["status"]) == (0.1, False, "in_progress")
    assert response["reasoning"] == {"effort": "low", "summary": None}
    assert new_response({}, model="m", at_s=1)["text"] == {"format": {"type": "text"}}


async def test_calls_come_back_as_what_the_client_declared() -> None:
    tools = to_functions(
        [
            {"type": "custom", "name": "patch"},
            {"type": "namespace", "name": "mcp__git__", "tools": [{"type": "function", "name": "log"}]},
        ]
    ).by_function
    events = await events_of(
        {"tool_calls": [call(0, id="c1", name="patch", arguments='{"input":')]},
        {"tool_calls": [call(0, arguments='"a\\nb"}')]},
        {"tool_calls": [call(1, id="c2", name="log", arguments="{}")]},
        finish="tool_calls",
        tools=tools,
    )
    assert kinds(events)[2:-1] == [
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        *CALL_END,
    ]
    added, delta, done = events[2], events[3], events[4]
    assert (added["item"]["type"], added["item"]["input"]) == ("custom_tool_call", "")
    assert (delta["delta"], done["input"]) == ("a\nb", "a\nb")
    custom, function = events[-1]["response"]["output"]
    assert custom == {
        "type": "custom_tool_call",
        "id": done["item_id"],
        "call_id": "c1",
        "name": "patch",
        "status": "completed",
        "input": "a\nb",
    }
    assert custom["id"].startswith("ctc_")
    assert (function["name"], function["namespace"], function["arguments"]) == ("log", "mcp__git__", "{}")
    message = {"tool_calls": [{"id": "c1", "function": {"name": "patch", "arguments": '{"input":"a\\nb"}'}}]}
    [whole] = output_items(message, tools)
    assert whole | {"id": custom["id"]} == custom


async def test_logprobs_are_given_with_the_text() -> None:
    tokens = [{"token": one, "logprob": -0.5, "bytes": [97], "top_logprobs": []} for one in "ab"]
    chunks = [{"delta": {"content": token["token"]}, "logprobs": {"content": [token]}} for token in tokens]
    events = await events_of(choices=chunks, has_logprobs=True)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [event["logprobs"] for event in deltas] == [[token] for token in tokens]
    [done] = [event for event in events if event["type"] == "response.output_text.done"]
    assert done["logprobs"] == tokens
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == tokens
    without = await events_of(choices=chunks)
    assert without[-1]["response"]["output"][0]["content"][0]["logprobs"] == []
