"""Chat chunks as the event stream of /v1/messages: order, indices, interleaved calls, streams that are cut."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from appliance.base.errors import UpstreamFailed
from appliance.engines.stream import GeneratedStream
from appliance.front.anthropic.response import new_message
from appliance.front.anthropic.stream import PING, MessagesStream

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}}
ZERO = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}


def call(index: int | None, arguments: str = "", **more: Any) -> dict[str, Any]:
    function = {name: more.pop(name) for name in ("name",) if name in more} | {"arguments": arguments}
    head = {} if index is None else {"index": index}
    return head | more | {"function": function}


def calls(*fragments: dict[str, Any]) -> dict[str, Any]:
    return {"tool_calls": list(fragments)}


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, **more}
    return b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode()


def recorded(*deltas: dict[str, Any], finish: str = "stop", **more: Any) -> bytes:
    """Return a whole upstream stream."""
    usage = b"data: %b\n\n" % json.dumps({"choices": [], "usage": USAGE}).encode()
    return b"".join([*map(chunk, deltas), chunk({}, finish, **more), usage, b"data: [DONE]\n\n"])


async def translate(*pieces: bytes, shows_thinking: bool = True, sent: list[bytes] | None = None) -> bytes:
    """Return all events; `sent` gets them as they come."""
    sent = [] if sent is None else sent

    async def source() -> AsyncGenerator[bytes, None]:
        for piece in pieces:
            yield piece

    stream = MessagesStream(new_message("m"), shows_thinking=shows_thinking)
    async for piece in stream.pieces(GeneratedStream(source())):
        sent.append(piece)
    return b"".join(sent)


def parse(text: bytes) -> list[dict[str, Any]]:
    """Return the events; their names are those of their data."""
    events = []
    for block in text.decode().strip().split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def blocks_of(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return (kind or name, text) of every block; hold the rules: one open at a time, indices rise by one."""
    blocks: list[list[str]] = []
    is_open = False
    for event in events:
        kind = event["type"]
        if kind == "content_block_start":
            assert (is_open, event["index"]) == (False, len(blocks))
            is_open, block = True, event["content_block"]
            blocks.append([block["name"] if block["type"] == "tool_use" else block["type"], ""])
        elif kind == "content_block_delta":
            assert (is_open, event["index"]) == (True, len(blocks) - 1)
            delta = event["delta"]
            text = delta.get("text") or delta.get("thinking") or delta.get("partial_json") or ""
            blocks[-1][1] += text
        elif kind == "content_block_stop":
            assert (is_open, event["index"]) == (True, len(blocks) - 1)
            is_open = False
    assert not is_open
    return [(name, text) for name, text in blocks]


async def test_a_text_has_the_official_events() -> None:
    events = parse(await translate(recorded({"role": "assistant", "content": ""}, {"content": "Ho"})))
    message = events[0]["message"]
    assert message.pop("id").startswith("msg_")
    assert events == [
        {
            "type": "message_start",
            "message": {
                "type": "message",
                "role": "assistant",
                "model": "m",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": 0, "output_tokens": 0, **ZERO},
            },
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Ho"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {
                "input_tokens": 7,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 4,
                "output_tokens": 7,
            },
        },
        {"type": "message_stop"},
    ]


async def test_a_call_has_the_official_events() -> None:
    deltas = [calls(call(0, id="c", name="f")), calls(call(0, '{"a":')), calls(call(0, "1}"))]
    events = parse(await translate(recorded(*deltas, finish="tool_calls")))
    block = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    assert events[1:-2] == [
        {"type": "content_block_start", "index": 0, "content_block": block},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": '{"a":'},
        },
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": "1}"},
        },
        {"type": "content_block_stop", "index": 0},
    ]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


async def test_thinking_ends_with_a_signature() -> None:
    events = parse(await translate(recorded({"reasoning_content": "Hm."}, {"content": "Ho"})))
    block = {"type": "thinking", "thinking": "", "signature": ""}
    assert events[1:5] == [
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm."}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": ""}},
        {"type": "content_block_stop", "index": 0},
    ]
    assert blocks_of(events) == [("thinking", "Hm."), ("text", "Ho")]


@pytest.mark.parametrize(
    ("deltas", "blocks"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([{"content": "a"}, {"content": "b"}], [("text", "ab")], id="text"),
        pytest.param([{"refusal": "No."}], [("text", "No.")], id="a refusal"),
        pytest.param(
            [{"reasoning": "r", "content": "a"}], [("thinking", "r"), ("text", "a")], id="both in one"
        ),
        pytest.param(
            [{"content": "a"}, calls(call(0, "{}", name="f")), {"content": "b"}],
            [("text", "a"), ("f", "{}"), ("text", "b")],
            id="text around a call",
        ),
        pytest.param(
            [calls(call(0, "{}", name="f"), call(1, "[1]", name="g"))],
            [("f", "{}"), ("g", "[1]")],
            id="two calls in one chunk",
        ),
        pytest.param(
            [
                calls(call(0, name="f")),
                calls(call(1, name="g")),
                calls(call(0, '{"a"')),
                calls(call(1, '{"b"')),
                calls(call(0, ":1}")),
                calls(call(1, ":2}")),
            ],
            [("f", '{"a":1}'), ("g", '{"b":2}')],
            id="interleaved calls",
        ),
        pytest.param(
            [calls(call(0, '{"a"', name="f")), {"content": "x"}, calls(call(0, ":1}")), {"content": "y"}],
            [("f", '{"a":1}'), ("text", "xy")],
            id="text inside a call waits until it is complete",
        ),
        pytest.param(
            [calls(call(0, name="f")), calls(call(1, "{}", name="g"))],
            [("f", ""), ("g", "{}")],
            id="a call without arguments",
        ),
        pytest.param(
            [calls(call(0, "{}", name="f")), calls(call(1, "{}", name="g")), calls(call(0, " "))],
            [("f", "{}"), ("g", "{}")],
            id="a blank after a complete call",
        ),
        pytest.param(
            [
                calls(call(None, "", id="c", name="f")),
                calls(call(None, "{}")),
                calls(call(None, "1", name="g")),
            ],
            [("f", "{}"), ("g", "1")],
            id="calls without an index",
        ),
        pytest.param(
            [calls(call(0, '{"a"', id="c")), calls(call(0, ":1}", name="f"))],
            [("f", '{"a":1}')],
            id="a name that comes late",
        ),
        pytest.param([calls(call(0, "{}"))], [("", "{}")], id="a call without a name"),
        pytest.param(
            [calls({"index": 0, "function": {"name": "f", "arguments": {"a": 1}}})],
            [("f", '{"a":1}')],
            id="arguments as an object",
        ),
    ],
)
async def test_deltas_become_blocks_one_at_a_time(
    deltas: list[dict[str, Any]], blocks: list[tuple[str, str]]
) -> None:
    assert blocks_of(parse(await translate(recorded(*deltas)))) == blocks


async def test_the_first_call_is_sent_as_it_comes() -> None:
    async def source() -> AsyncGenerator[bytes, None]:
        yield chunk(calls(call(0, '{"a"', id="c", name="f")))
        raise AssertionError("the event before was not sent yet")

    stream = MessagesStream(new_message("m")).pieces(GeneratedStream(source()))
    assert b'"partial_json":"{\\"a\\""' in await anext(stream)
    await stream.aclose()


async def test_thinking_is_left_out_where_it_is_not_wanted() -> None:
    text = await translate(recorded({"reasoning_content": "Hm."}, {"content": "Ho"}), shows_thinking=False)
    assert blocks_of(parse(text)) == [("text", "Ho")]


@pytest.mark.parametrize(
    ("finish", "more", "reason", "sequence"),
    [
        ("stop", {}, "end_turn", None),
        ("length", {}, "max_tokens", None),
        ("content_filter", {}, "refusal", None),
        ("stop", {"stop_reason": "END"}, "stop_sequence", "END"),
        ("stop", {"matched_stop": "END"}, "stop_sequence", "END"),
    ],
)
async def test_stop_reasons(finish: str, more: dict[str, Any], reason: str, sequence: str | None) -> None:
    last = parse(await translate(recorded({"content": "a"}, finish=finish, **more)))[-2]
    assert last["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


async def test_usage_of_the_first_chunk_is_in_message_start() -> None:
    first = {"choices": [{"delta": {"content": "a"}}], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}
    head = b"data: %b\n\n" % json.dumps(first).encode()
    events = parse(await translate(head, recorded()))
    assert events[0]["message"]["usage"]["input_tokens"] == 5


async def test_a_stream_without_a_chunk_is_an_empty_message() -> None:
    events = parse(await translate(b"data: [DONE]\n\n"))
    assert [event["type"] for event in events] == ["message_start", "message_delta", "message_stop"]


async def test_chunks_without_a_choice_are_passed_over() -> None:
    odd = b'data: {}\n\ndata: {"choices": []}\n\ndata: {"choices": [{}]}\n\n'
    assert blocks_of(parse(await translate(odd, recorded({"content": "a"})))) == [("text", "a")]


async def test_more_of_a_complete_call_is_a_failure() -> None:
    deltas = [calls(call(0, "{}", name="f")), calls(call(1, "{}", name="g")), calls(call(0, "{}"))]
    with pytest.raises(UpstreamFailed, match="it adds to a tool call that was complete"):
        await translate(recorded(*deltas))


RECORDED = {
    "text": recorded({"role": "assistant", "content": ""}, {"content": "Hé"}, {"content": "llo"}),
    "thinking and calls": recorded(
        {"reasoning_content": "Hm."},
        {"content": "a"},
        calls(call(0, '{"a"', id="c", name="f")),
        calls(call(1, "{}", id="d", name="g")),
        calls(call(0, ":1}")),
        finish="tool_calls",
    ),
}


@pytest.mark.parametrize("name", RECORDED)
async def test_it_does_not_matter_where_pieces_are_cut(name: str) -> None:
    whole = RECORDED[name]
    expected = parse(await translate(whole))[1:]
    for at in range(1, len(whole)):
        events = parse(await translate(whole[:at], whole[at:]))
        assert blocks_of(events) == blocks_of(expected)
        assert events[-2:] == expected[-2:]


@pytest.mark.parametrize("name", RECORDED)
async def test_a_stream_that_breaks_off_never_passes_as_whole(name: str) -> None:
    whole = RECORDED[name]
    for at in range(len(whole) - len(b"\n\n")):
        sent: list[bytes] = []
        with pytest.raises(UpstreamFailed):
            await translate(whole[:at], sent=sent)
        assert not any(name in piece for piece in sent for name in (b"message_stop", b"message_delta"))


async def test_an_error_event_is_a_failure() -> None:
    with pytest.raises(UpstreamFailed, match="engine died"):
        await translate(chunk({"content": "a"}), b'data: {"error": {"message": "engine died"}}\n\n')


async def test_closing_the_stream_closes_its_source() -> None:
    is_closed = False

    async def source() -> AsyncGenerator[bytes, None]:
        nonlocal is_closed
        try:
            yield chunk({"content": "a"})
            yield chunk({"content": "b"})
        finally:
            is_closed = True

    stream = MessagesStream(new_message("m")).pieces(GeneratedStream(source()))
    await anext(stream)
    await stream.aclose()
    assert is_closed


def test_a_ping_is_an_event_of_its_own() -> None:
    assert PING == b'event: ping\ndata: {"type":"ping"}\n\n'
