"""What engines really send in deltas, read the same in every dialect: text, reasoning, refusals, tool calls."""

from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import pytest

from appliance.base import jsons
from appliance.base.clock import FakeClock
from appliance.base.errors import UpstreamFailed
from appliance.engines.stream import GeneratedStream
from appliance.engines.upstream import tool_calls
from appliance.engines.upstream.response_builder import ResponseBuilder
from appliance.engines.upstream.tool_calls import ToolCalls
from appliance.front.anthropic.response import new_message, to_message
from appliance.front.anthropic.stream import MessagesStream
from appliance.front.ollama.reply import ReplyFormat, StreamTranslator, from_openai_reply
from appliance.front.openai.responses_objects import new_response, output_items
from appliance.front.openai.responses_stream import ResponsesStream

Calls = list[tuple[str, str, str]]  # id, name, arguments


class Said(NamedTuple):
    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    calls: Calls = []  # noqa: RUF012 - a tuple's default, never changed


def t(index: Any, call_id: str | None = None, name: str | None = None, arguments: Any = "") -> dict[str, Any]:
    """Return a fragment; `...` = without an index."""
    head = {} if index is ... else {"index": index}
    return {**head, "id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def chunks_of(deltas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    return [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas] + [last]


def from_message(message: dict[str, Any]) -> Said:
    return Said(
        message.get("content") or "",
        message.get("reasoning_content") or message.get("reasoning") or message.get("thinking") or "",
        message.get("refusal") or "",
        [
            (call.get("id") or "", call["function"]["name"], call["function"]["arguments"])
            for call in message.get("tool_calls") or []
        ],
    )


def gathered(deltas: list[dict[str, Any]]) -> dict[str, Any]:
    builder = ResponseBuilder()
    for chunk in chunks_of(deltas):
        builder.add(chunk)
    message = builder.build()["choices"][0]["message"]
    if "function_call" in message:
        message["tool_calls"] = [{"function": message.pop("function_call")}]
    return dict(message)


def from_ollama(parts: list[dict[str, Any]]) -> Said:
    messages = [part["message"] for part in parts]
    return Said(
        "".join(message["content"] for message in messages),
        "".join(message.get("thinking", "") for message in messages),
        "",
        [
            (call.get("id", ""), call["function"]["name"], jsons.dumps_text(call["function"]["arguments"]))
            for message in messages
            for call in message.get("tool_calls", [])
        ],
    )


def ollama(deltas: list[dict[str, Any]]) -> Said:
    translator = StreamTranslator(ReplyFormat("m", is_chat=True))
    parts = [translator.translate(chunk, at_s=0, elapsed_s=0) for chunk in chunks_of(deltas)]
    return from_ollama([part for part in parts if part] + translator.finish(at_s=0, elapsed_s=0))


async def response_events(deltas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    async def source() -> AsyncGenerator[bytes, None]:
        for chunk in chunks_of(deltas):
            yield b"data: " + jsons.dumps(chunk) + b"\n\n"
        yield b"data: [DONE]\n\n"

    stream = ResponsesStream(new_response({}, model="m", at_s=1), FakeClock(100))
    out = b"".join([piece async for piece in stream.pieces(GeneratedStream(source()))])
    return [jsons.loads(event.split(b"data: ")[1]) for event in out.split(b"\n\n") if event]


def from_items(items: list[dict[str, Any]]) -> Said:
    parts = [part for item in items if item["type"] == "message" for part in item["content"]]
    return Said(
        "".join(part["text"] for part in parts if part["type"] == "output_text"),
        "".join(part["text"] for item in items if item["type"] == "reasoning" for part in item["summary"]),
        "".join(part["refusal"] for part in parts if part["type"] == "refusal"),
        [
            ("" if item["call_id"] == item["id"] else item["call_id"], item["name"], item["arguments"])
            for item in items
            if item["type"] == "function_call"
        ],
    )


async def message_blocks(deltas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the content blocks of Anthropic's stream, put together as its clients do."""

    async def source() -> AsyncGenerator[bytes, None]:
        for chunk in chunks_of(deltas):
            yield b"data: " + jsons.dumps(chunk) + b"\n\n"
        yield b"data: [DONE]\n\n"

    pieces = MessagesStream(new_message("m")).pieces(GeneratedStream(source()))
    out = b"".join([piece async for piece in pieces])
    blocks: list[dict[str, Any]] = []
    texts: list[str] = []
    for event in [jsons.loads(event.split(b"data: ")[1]) for event in out.split(b"\n\n") if event]:
        if event["type"] == "content_block_start":
            blocks.append(event["content_block"])
            texts.append("")
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            texts[event["index"]] += (
                delta.get("text") or delta.get("thinking") or delta.get("partial_json") or ""
            )
    for block, text in zip(blocks, texts, strict=True):
        if block["type"] == "tool_use":
            block["input"] = jsons.loads(text)
        else:
            block[block["type"]] = text
    return blocks


def from_blocks(blocks: list[dict[str, Any]]) -> Said:
    return Said(
        "".join(block["text"] for block in blocks if block["type"] == "text"),
        "".join(block["thinking"] for block in blocks if block["type"] == "thinking"),
        "",
        [
            (
                "" if block["id"].startswith("toolu_") else block["id"],
                block["name"],
                jsons.dumps_text(block["input"]),
            )
            for block in blocks
            if block["type"] == "tool_use"
        ],
    )


AB: Calls = [("call_a", "f", '{"x":1}'), ("call_b", "g", '{"y":2}')]
F: Calls = [("call_a", "f", '{"x":1}')]
CASES: list[tuple[str, list[dict[str, Any]], Said]] = [
    (
        "R1 two whole parallel calls",
        [
            {"tool_calls": [t(0, "call_a", "f", '{"x":1}')]},
            {"tool_calls": [t(1, "call_b", "g", '{"y":2}')]},
        ],
        Said(calls=AB),
    ),
    (
        "R1 after text",
        [
            {"content": "hm"},
            {"tool_calls": [t(0, "call_a", "f", '{"x":1}')]},
            {"tool_calls": [t(1, "call_b", "g", '{"y":2}')]},
        ],
        Said("hm", calls=AB),
    ),
    (
        "R1 fragments that interleave",
        [
            {"tool_calls": [t(0, "call_a", "f")]},
            {"tool_calls": [t(1, "call_b", "g")]},
            {"tool_calls": [t(0, arguments='{"x"')]},
            {"tool_calls": [t(1, arguments='{"y"'), t(0, arguments=":1}")]},
            {"tool_calls": [t(1, arguments=":2}")]},
        ],
        Said(calls=AB),
    ),
    (
        "R1 three calls",
        [{"tool_calls": [t(n, f"c{n}", "f", "{}")]} for n in range(3)],
        Said(calls=[(f"c{n}", "f", "{}") for n in range(3)]),
    ),
    (
        "R2 index 0, other ids",
        [
            {"tool_calls": [t(0, "call_a", "f", '{"x":1}')]},
            {"tool_calls": [t(0, "call_b", "g", '{"y"')]},
            {"tool_calls": [t(0, arguments=":2}")]},
        ],
        Said(calls=AB),
    ),
    (
        "R2 index 0, other ids in one delta",
        [{"tool_calls": [t(0, "call_a", "f", '{"x":1}'), t(0, "call_b", "g", '{"y":2}')]}],
        Said(calls=AB),
    ),
    (
        "R2 a known id goes on",
        [
            {"tool_calls": [t(0, "call_a", "f", '{"x"')]},
            {"tool_calls": [t(0, "call_b", "g", '{"y":2}')]},
            {"tool_calls": [t(0, "call_a", None, ":1}")]},
        ],
        Said(calls=AB),
    ),
    (
        "R3 the name in every delta",
        [
            {"tool_calls": [t(0, "call_a", "f", "")]},
            {"tool_calls": [t(0, None, "f", '{"x"')]},
            {"tool_calls": [t(0, "", "f", ":1}")]},
        ],
        Said(calls=F),
    ),
    (
        "R3 name and id in every delta",
        [{"tool_calls": [t(0, "call_a", "f", text)]} for text in ("", '{"x"', ":1}")],
        Said(calls=F),
    ),
    *[
        (
            f"R4 index {index}, id in the first delta",
            [
                {"tool_calls": [t(index, "call_a", "f", "")]},
                {"tool_calls": [t(index, None, None, '{"x"')]},
                {"tool_calls": [t(index, None, None, ":1}")]},
            ],
            Said(calls=F),
        )
        for index in (..., None)
    ],
    (
        "R4 two whole calls in one delta",
        [{"tool_calls": [t(..., None, "f", '{"x":1}'), t(..., None, "g", '{"y":2}')]}],
        Said(calls=[("", "f", '{"x":1}'), ("", "g", '{"y":2}')]),
    ),
    (
        "R4 two whole calls of one function",
        [{"tool_calls": [t(None, None, "f", '{"x":1}'), t(None, None, "f", '{"x":2}')]}],
        Said(calls=[("", "f", '{"x":1}'), ("", "f", '{"x":2}')]),
    ),
    ("R5 arguments an object", [{"tool_calls": [t(0, "call_a", "f", {"x": 1})]}], Said(calls=F)),
    (
        "R8 null and empty",
        [{"tool_calls": None, "content": None}, {"tool_calls": [], "content": "a"}],
        Said("a"),
    ),
    (
        "R12 content as parts",
        [
            {"content": [{"type": "text", "text": "Hel"}]},
            {"content": [{"type": "text", "text": {"value": "lo"}}, {"type": "image_url", "image_url": {}}]},
        ],
        Said("Hello"),
    ),
    (
        "reasoning as parts",
        [
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
            {"content": "so"},
        ],
        Said("so", "hm"),
    ),
    ("reasoning_content", [{"reasoning_content": "h"}, {"reasoning_content": "m"}], Said("", "hm")),
    ("reasoning", [{"reasoning": "h"}, {"reasoning": "m"}], Said("", "hm")),
    ("thinking", [{"thinking": "h"}, {"thinking": "m"}], Said("", "hm")),
    ("R17 refusal", [{"refusal": "n"}, {"refusal": "o"}], Said(refusal="no")),
    (
        "R17 refusal as parts",
        [{"content": [{"type": "refusal", "refusal": "no"}]}],
        Said(refusal="no"),
    ),
    (
        "function_call",
        [{"function_call": {"name": "f", "arguments": ""}}, {"function_call": {"arguments": '{"x":1}'}}],
        Said(calls=[("", "f", '{"x":1}')]),
    ),
]
by_name = pytest.mark.parametrize(
    ("deltas", "said"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)


def with_refusal_as_text(said: Said) -> Said:
    """Ollama's and Anthropic's replies have no refusals: they are text."""
    return said._replace(text=said.text or said.refusal, refusal="")


@by_name
def test_gathered(deltas: list[dict[str, Any]], said: Said) -> None:
    assert from_message(gathered(deltas)) == said


@by_name
def test_ollama(deltas: list[dict[str, Any]], said: Said) -> None:
    assert ollama(deltas) == with_refusal_as_text(said)


@by_name
async def test_anthropic(deltas: list[dict[str, Any]], said: Said) -> None:
    assert from_blocks(await message_blocks(deltas)) == with_refusal_as_text(said)


@by_name
async def test_responses(deltas: list[dict[str, Any]], said: Said) -> None:
    events = await response_events(deltas)
    output = events[-1]["response"]["output"]
    assert from_items(output) == said
    done = {e["output_index"]: e["item"] for e in events if e["type"] == "response.output_item.done"}
    assert [done[index] for index in range(len(output))] == output
    pieces: dict[str, str] = {}
    for event in events:
        if event["type"] == "response.function_call_arguments.delta":
            pieces[event["item_id"]] = pieces.get(event["item_id"], "") + event["delta"]
    assert [pieces.get(item["id"], "") for item in output if item["type"] == "function_call"] == [
        arguments for _, _, arguments in said.calls
    ]


@by_name
def test_whole_replies_are_read_the_same(deltas: list[dict[str, Any]], said: Said) -> None:
    message = gathered(deltas)
    assert from_items(output_items(message)) == said
    reply, _ = from_openai_reply(
        {"choices": [{"message": message}]}, ReplyFormat("m", is_chat=True), at_s=0, elapsed_s=0
    )
    assert from_ollama([reply]) == with_refusal_as_text(said)
    whole = to_message({"choices": [{"message": message}]}, model="m")
    assert from_blocks(whole["content"]) == with_refusal_as_text(said)


WRONG: list[dict[str, Any]] = [
    {"content": 5},
    {"content": ["a"]},
    {"content": {"a": 1}},
    {"content": [{"type": "text", "text": 5}]},
    {"reasoning": 5},
    {"refusal": True},
    {"tool_calls": 5},
    {"tool_calls": [5]},
    {"tool_calls": [{"index": "x"}]},
    {"tool_calls": [{"index": -5}]},
    {"tool_calls": [{"index": 1_000_000_000}]},
    {"tool_calls": [{"index": True}]},
    {"tool_calls": [{"index": 0, "id": {}}]},
    {"tool_calls": [{"index": 0, "function": 5}]},
    {"tool_calls": [{"index": 0, "function": {"name": []}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": 5}}]},
    {"tool_calls": [t(n % 4000, f"c{n}", "f") for n in range(tool_calls.MAX_CALLS + 1)]},
    {"function_call": 5},
]


@pytest.mark.parametrize("delta", WRONG, ids=range(len(WRONG)))
async def test_wrong_types_are_an_invalid_response(delta: dict[str, Any]) -> None:
    for read in (gathered, ollama):
        with pytest.raises(UpstreamFailed, match="The engine's response is invalid: ") as caught:
            read([delta])
        assert caught.value.code == "upstream_rubbish"
    with pytest.raises(UpstreamFailed, match="The engine's response is invalid: "):
        await response_events([delta])
    with pytest.raises(UpstreamFailed, match="The engine's response is invalid: "):
        await message_blocks([delta])


@pytest.mark.parametrize(
    "choice", [5, {"delta": 5}, {"index": {}}, {"index": -1}, {"index": 10**9}, {"index": "x"}]
)
def test_wrong_choices_are_an_invalid_response(choice: Any) -> None:
    with pytest.raises(UpstreamFailed, match="The engine's response is invalid: "):
        ResponseBuilder().add({"choices": [choice]})


def test_arguments_are_bounded_and_joined_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = ToolCalls()
    for _ in range(100_000):
        calls.add([t(0, arguments="x")])
    assert len(calls.calls[0].arguments) == 100_000
    monkeypatch.setattr(tool_calls, "MAX_ARGUMENTS_CHARS", 100_000)
    with pytest.raises(UpstreamFailed, match="longer than 16 MiB"):
        calls.add([t(0, arguments="x")])
