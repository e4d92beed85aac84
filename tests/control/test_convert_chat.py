"""A chat request over gRPC as the engines' request, and their replies as messages."""

from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from appliance.base import jsons
from appliance.base.errors import Invalid, UpstreamFailed
from appliance.control.convert.chat import to_deltas, to_engine_request, to_reply
from appliance.control.v1 import control_pb2 as pb
from appliance.engines.receipts import Receipt

HELLO = [{"role": "user", "content": "hi"}]


def request(**fields: Any) -> pb.ChatRequest:
    if "json" in fields:
        fields["openai_json"] = (
            fields["json"] if isinstance(fields["json"], bytes) else jsons.dumps(fields["json"])
        )
        del fields["json"]
    options = fields.pop("options", None)
    message = pb.ChatRequest(**fields)
    if options is not None:
        ParseDict(options, message.options)
    return message


@pytest.mark.parametrize(
    ("fields", "body", "has_raw", "stream"),
    [
        ({"messages": HELLO}, {"messages": HELLO}, False, False),
        ({"messages": HELLO, "model": "m"}, {"messages": HELLO, "model": "m"}, False, False),
        ({"options": {"messages": HELLO, "seed": 1}}, {"messages": HELLO, "seed": 1}, False, False),
        ({"messages": HELLO, "stream": True}, {"messages": HELLO, "stream": True}, False, True),
        ({"json": {"messages": HELLO}}, {"messages": HELLO}, True, False),
        ({"json": {"messages": HELLO, "stream": True}}, {"messages": HELLO, "stream": True}, True, True),
        ({"json": {"messages": HELLO}, "stream": True}, {"messages": HELLO, "stream": True}, False, True),
    ],
)
def test_a_message_becomes_a_body(fields: Any, body: Any, has_raw: bool, stream: bool) -> None:
    asked = to_engine_request(request(**fields), Receipt("r"))
    assert (asked.body, asked.raw is not None, asked.stream) == (body, has_raw, stream)
    assert asked.model == body.get("model", "")


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        (
            {"json": {}, "model": "m"},
            "openai_json",
            "Send either openai_json, or model, messages and options",
        ),
        ({"json": b"{"}, "openai_json", "openai_json is not valid JSON"),
        ({"json": b"[]"}, "openai_json", "openai_json must be a JSON object."),
        ({"messages": HELLO, "options": {"messages": HELLO}}, "messages", "set in options and beside it"),
        ({}, "messages", "`messages` must have at least one message."),
        ({"json": {"messages": ["x"]}}, "messages.0", "`messages.0` must be an object."),
        (
            {"json": {"messages": [{"content": "x"}]}},
            "messages.0.role",
            '`messages.0.role` must be a string such as "user".',
        ),
        (
            {"json": {"messages": [{"role": "user", "content": 3}]}},
            "messages.0.content",
            "must be a string or an array of parts",
        ),
        ({"json": {"messages": HELLO, "model": 3}}, "model", "`model` must be a string."),
        ({"json": {"messages": HELLO, "stream": 3}}, "stream", "`stream` must be true or false."),
        (
            {"json": {"messages": HELLO, "stream_options": 3}},
            "stream_options",
            "`stream_options` must be an object.",
        ),
    ],
)
def test_refusals_name_the_field(fields: Any, param: str, text: str) -> None:
    with pytest.raises(Invalid) as refused:
        to_engine_request(request(**fields), Receipt("r"))
    assert refused.value.param == param
    assert text in refused.value.message


@pytest.mark.parametrize(
    ("body", "reply"),
    [
        ({}, pb.ChatReply()),
        ({"choices": []}, pb.ChatReply()),
        (
            {"choices": [{"message": {"content": "a", "reasoning": "r"}, "finish_reason": "stop"}]},
            pb.ChatReply(text="a", reasoning="r", finish_reason="stop"),
        ),
        ({"choices": [{"message": {"content": None}}]}, pb.ChatReply()),
    ],
)
def test_a_whole_reply_becomes_a_message(body: Any, reply: pb.ChatReply) -> None:
    data = jsons.dumps(body)
    reply.openai_json = data
    assert to_reply(data) == reply


def test_events_become_deltas_and_comments_none() -> None:
    data = jsons.dumps({"choices": [{"index": 1, "delta": {"content": "a"}}]})
    piece = b": heartbeat\n\ndata: " + data + b"\n\ndata: [DONE]\n\n"
    assert to_deltas(piece) == [pb.ChatDelta(index=1, text="a", openai_json=data)]


def test_an_error_event_is_an_upstream_failure() -> None:
    with pytest.raises(UpstreamFailed, match="out of memory"):
        to_deltas(b'data: {"error": {"message": "out of memory"}}\n\n')
