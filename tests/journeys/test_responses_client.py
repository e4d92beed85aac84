"""The official `openai` client over the Responses API: kept responses, Codex CLI's tools, the AI SDK's second turn."""

from typing import Any

import openai
import pytest

from tests.fakes.hosted_api import HostedApi
from tests.front.test_responses_handlers import BEGINNING, CODEX
from tests.journeys.running import Running, Start

KEYS = {"APPLIANCE_API_KEYS": "first-key-123456,second-key-123456"}
TOOLS: Any = [
    {
        "type": "function",
        "name": name,
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": False,
    }
    for name in ("weather", "time")
]


def client(running: Running, key: str = "first-key-123456") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=running.v1, api_key=key, max_retries=0)


async def test_a_response_is_kept_continued_and_deleted(anyone: Running) -> None:
    responses = client(anyone).responses
    first = await responses.create(model="m", input="Hello", instructions="Be short")
    assert first.store is True
    assert await responses.retrieve(first.id) == first
    second = await responses.create(model="m", input="And now?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    items = [item async for item in responses.input_items.list(second.id, order="asc", limit=2)]
    assert [item.type for item in items] == ["message"] * 3
    assert [item.role for item in items] == ["user", "assistant", "user"]
    assert items[1].content[0].text == first.output_text
    await responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="There is no response"):
        await responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError, match=first.id) as caught:
        await responses.create(model="m", input="x", previous_response_id=second.id)
    assert caught.value.param == "previous_response_id"
    with pytest.raises(openai.BadRequestError, match="none is made in the background"):
        await responses.cancel(second.id)


async def test_a_streamed_response_can_be_continued_at_once(relay: Running, hosted: HostedApi) -> None:
    responses = client(relay).responses
    async with responses.stream(model="m", input="Hello") as stream:
        first = await stream.get_final_response()
    await responses.create(model="m", input="And now?", previous_response_id=first.id)
    assert [message["content"] for message in hosted.records[-1].body["messages"]] == [
        "Hello",
        first.output_text,
        "And now?",
    ]


async def test_responses_are_their_keys_own(start: Start) -> None:
    running = await start(**KEYS)
    made = await client(running).responses.create(model="m", input="Hello")
    other = client(running, "second-key-123456").responses
    with pytest.raises(openai.NotFoundError, match="another caller's"):
        await other.retrieve(made.id)
    with pytest.raises(openai.NotFoundError, match="another caller's"):
        await other.create(model="m", input="x", previous_response_id=made.id)
    assert (await client(running).responses.retrieve(made.id)).id == made.id


async def test_nothing_is_kept_with_keeping_off(start: Start) -> None:
    running = await start(RESPONSES_KEEP_S="0")
    made = await client(running).responses.create(model="m", input="Hello")
    assert made.store is False
    with pytest.raises(openai.NotFoundError, match="RESPONSES_KEEP_S=0"):
        await client(running).responses.retrieve(made.id)


async def test_parallel_tool_calls_stream_whole(relay: Running) -> None:
    async with client(relay).responses.stream(model="m", input="Hello", tools=TOOLS) as stream:
        final = await stream.get_final_response()
    calls = [item for item in final.output if item.type == "function_call"]
    assert [call.name for call in calls] == ["weather", "time"]
    assert ["city" in call.arguments for call in calls] == [True, True]
    assert len({call.call_id for call in calls}) == 2


async def test_the_ai_sdks_second_turn_refers_to_the_first(relay: Running, hosted: HostedApi) -> None:
    responses = client(relay).responses
    question: Any = {"role": "user", "content": [{"type": "input_text", "text": "How warm?"}]}
    first = await responses.create(model="m", input=[question], tools=TOOLS)
    references: Any = [{"type": "item_reference", "id": item.id} for item in first.output]
    results: Any = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "20"}
        for item in first.output
        if item.type == "function_call"
    ]
    await responses.create(model="m", input=[question, *references, *results], tools=TOOLS)
    asked, called, *answered = hosted.records[-1].body["messages"]
    assert asked == {"role": "user", "content": "How warm?"}
    assert [call["function"]["name"] for call in called["tool_calls"]] == ["weather", "time"]
    assert [message["role"] for message in answered] == ["tool", "tool"]


async def test_codex_reads_its_custom_call(start: Start) -> None:
    running = await start()
    ask: Any = {"role": "user", "content": [{"type": "input_text", "text": "demo: tool apply_patch"}]}
    raw = await client(running).responses.with_raw_response.create(
        **{name: value for name, value in CODEX.items() if name != "client_metadata"},
        input=[*BEGINNING, ask],
        extra_body={"client_metadata": CODEX["client_metadata"]},
    )
    assert raw.headers["x-appliance-ignored"] == "tools.web_search, tools.local_shell"
    events = [event async for event in raw.parse()]
    kinds = [event.type for event in events]
    assert "response.custom_tool_call_input.delta" in kinds
    [done] = [event for event in events if event.type == "response.custom_tool_call_input.done"]
    final = events[-1].response
    [call] = [item for item in final.output if item.type == "custom_tool_call"]
    assert (call.name, call.input) == ("apply_patch", done.input)
    assert final.store is False
    result: Any = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "done"}
    again = await client(running).responses.create(
        model="m", input=[*BEGINNING, call.model_dump(exclude_none=True), result], tools=CODEX["tools"]
    )
    assert again.status == "completed"


async def test_input_tokens_are_counted(start: Start) -> None:
    running = await start()
    counted = await client(running).responses.input_tokens.count(model="m", input="Hello")
    made = await client(running).responses.create(model="m", input="Hello")
    assert counted.input_tokens == made.usage.input_tokens
