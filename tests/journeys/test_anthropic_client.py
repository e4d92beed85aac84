"""The official `anthropic` client against the whole appliance: demo, a hosted API, a real llama-server."""

import asyncio
import re
from typing import Any

import aiohttp
import anthropic
import pytest

from tests.fakes.hosted_api import KEY as HOSTED_KEY
from tests.fakes.hosted_api import CutStream, Hang, HostedApi, OnePiece, Slow, Status
from tests.journeys.llama_servers import Llama
from tests.journeys.running import Running, Start, until
from tests.journeys.test_real_llama import behind
from tests.tools.tiny_models import REPLY, REPLY_TOKENS

KEY = "client-key-123456"
HELLO: Any = [{"role": "user", "content": "Hello"}]
PUBLIC = "meta-llama/llama-3.2-3b-instruct/fp-16-fast-vllm-1"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TOOLS: Any = [
    {
        "name": name,
        "description": f"the {name} of a city",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
    for name in ("weather", "time")
]


def client(running: Running, **more: Any) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=running.base_url, api_key=KEY, max_retries=0, **more)


async def events_of(running: Running, **more: Any) -> tuple[list[Any], anthropic.types.Message]:
    """Return (the raw events, the message that the client made of them)."""
    asked = {"model": "m", "max_tokens": 200, "messages": HELLO} | more
    async with client(running).messages.stream(**asked) as stream:
        events = [event async for event in stream]
        return events, await stream.get_final_message()


# ---- what holds with every backend


async def test_a_message_has_text_usage_and_public_name(anyone: Running) -> None:
    message = await client(anyone).messages.create(model="anything", max_tokens=100, messages=HELLO)
    assert (message.type, message.role, message.model) == ("message", "assistant", PUBLIC)
    assert message.content[0].text
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.input_tokens > 0 < message.usage.output_tokens
    assert message.id.startswith("msg_")
    assert message._request_id.startswith("req_")


async def test_a_stream_says_the_same_as_one_piece(anyone: Running) -> None:
    whole = await client(anyone).messages.create(model="m", max_tokens=200, messages=HELLO)
    events, message = await events_of(anyone)
    assert [block.text for block in message.content] == [block.text for block in whole.content]
    assert (message.usage, message.stop_reason, message.model) == (
        whole.usage,
        whole.stop_reason,
        whole.model,
    )
    assert events[0].type == "message_start"
    assert events[-1].type == "message_stop"


async def test_parallel_tool_calls_add_up_in_a_stream(relay: Running) -> None:
    events, message = await events_of(relay, tools=TOOLS)
    assert [(block.type, block.name) for block in message.content] == [
        ("tool_use", "weather"),
        ("tool_use", "time"),
    ]
    assert [block.input["city"] for block in message.content] == ["Paris", "Paris"]
    assert message.stop_reason == "tool_use"
    assert [event.index for event in events if event.type == "content_block_start"] == [0, 1]


async def test_a_tool_is_called_whole_and_in_a_stream(anyone: Running) -> None:
    asked: Any = {"tools": TOOLS[:1], "tool_choice": {"type": "tool", "name": "weather"}}
    whole = await client(anyone).messages.create(model="m", max_tokens=200, messages=HELLO, **asked)
    _, streamed = await events_of(anyone, **asked)
    assert whole.stop_reason == streamed.stop_reason == "tool_use"
    [block] = whole.content
    [other] = streamed.content
    assert (block.name, block.input) == (other.name, other.input)
    assert "city" in block.input


async def test_thinking_is_a_block_before_the_text(start: Start, hosted: HostedApi) -> None:
    running = await start()
    asked: Any = {"messages": [{"role": "user", "content": "demo: think"}]}
    _, message = await events_of(running, **asked)
    assert [block.type for block in message.content] == ["thinking", "text"]
    _, message = await events_of(running, thinking={"type": "disabled"}, **asked)
    assert [block.type for block in message.content] == ["text"]


async def test_the_hosted_api_gets_a_chat(relay: Running, hosted: HostedApi) -> None:
    image: Any = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": PIXEL},
    }
    await client(relay).messages.create(
        model="m",
        max_tokens=7,
        system=[{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "Sunny"},
                    {"type": "text", "text": "So?"},
                ],
            },
        ],
        tools=TOOLS[:1],
        tool_choice={"type": "none"},
        stop_sequences=["END"],
        extra_body={"temperature": 0.5, "top_k": 4},
        metadata={"user_id": "u"},
    )
    body = dict(hosted.records[-1].body)
    assert hosted.records[-1].path.endswith("/chat/completions")
    assert body.pop("model") == "meta-llama/llama-3.2-3b-instruct"
    function = {"name": "weather", "description": "the weather of a city"}
    assert body == {
        "max_tokens": 7,
        "messages": [
            {"role": "system", "content": "Be kind."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
                ],
            },
            {
                "role": "assistant",
                "content": "Let me see.",
                "tool_calls": [
                    {
                        "id": "toolu_1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city":"Paris"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "toolu_1", "content": "Sunny"},
            {"role": "user", "content": "So?"},
        ],
        "tools": [{"type": "function", "function": function | {"parameters": TOOLS[0]["input_schema"]}}],
        "tool_choice": "none",
        "stop": ["END"],
        "temperature": 0.5,
        "top_k": 4,
        "user": "u",
    }


async def test_a_response_in_one_piece_becomes_a_stream(relay: Running, hosted: HostedApi) -> None:
    hosted.script(OnePiece())
    events, message = await events_of(relay)
    assert message.content[0].text == hosted.reply
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == 7


async def test_tokens_are_counted_or_marked_as_an_estimate(start: Start, relay: Running) -> None:
    demo = await start()
    exact = await client(demo).messages.with_raw_response.count_tokens(model="m", messages=HELLO)
    assert "x-appliance-estimate" not in exact.headers
    message = await client(demo).messages.create(model="m", max_tokens=9, messages=HELLO)
    assert (await exact.parse()).input_tokens == message.usage.input_tokens
    about = await client(relay).messages.with_raw_response.count_tokens(
        model="m", messages=HELLO, system="Be kind.", tools=TOOLS
    )
    assert about.headers["x-appliance-estimate"] == "1"
    assert 20 < (await about.parse()).input_tokens < 200


async def test_models_have_anthropics_fields_for_its_clients(anyone: Running) -> None:
    page = await client(anyone).models.list()
    assert (page.data[0].id, page.data[0].type, page.has_more) == (PUBLIC, "model", False)
    assert (await client(anyone).models.retrieve(PUBLIC)).display_name == PUBLIC
    async with aiohttp.ClientSession() as session, session.get(anyone.v1 + "/models") as response:
        assert (await response.json())["object"] == "list"


# ---- what goes wrong


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, anthropic.BadRequestError),
        (403, anthropic.PermissionDeniedError),
        (404, anthropic.NotFoundError),
        (429, anthropic.RateLimitError),
        (503, anthropic.ServiceUnavailableError),
        (504, anthropic.DeadlineExceededError),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_errors_have_anthropics_shape(
    start: Start, status: int, kind: type[anthropic.APIStatusError], is_stream: bool
) -> None:
    running = await start()
    messages: Any = [{"role": "user", "content": f"demo: error {status}"}]
    with pytest.raises(kind) as caught:
        await client(running).messages.create(model="m", max_tokens=9, messages=messages, stream=is_stream)
    body: Any = caught.value.body
    assert (body["type"], body["request_id"]) == ("error", caught.value.request_id)
    assert "as the prompt asked" in body["error"]["message"]


async def test_keys_are_taken_from_either_header(start: Start) -> None:
    running = await start(APPLIANCE_API_KEYS=KEY)
    asked: Any = {"model": "m", "max_tokens": 9, "messages": HELLO}
    assert await client(running).messages.create(**asked)
    bearer = anthropic.AsyncAnthropic(base_url=running.base_url, auth_token=KEY, max_retries=0)
    assert await bearer.messages.create(**asked)
    stranger = anthropic.AsyncAnthropic(base_url=running.base_url, api_key="wrong-key-1234", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError) as caught:
        await stranger.messages.create(**asked)
    assert caught.value.body["error"]["type"] == "authentication_error"


async def test_unknown_addresses_and_methods_have_anthropics_errors(start: Start) -> None:
    running = await start()
    async with aiohttp.ClientSession() as session:
        async with session.post(running.v1 + "/messages/batches", json={}) as response:
            value = await response.json()
            assert (response.status, value["error"]["type"]) == (404, "not_found_error")
            assert value["request_id"] == response.headers["request-id"]
        async with session.get(running.v1 + "/messages") as response:
            value = await response.json()
            assert (response.status, value["error"]["type"]) == (405, "invalid_request_error")
        async with session.get(running.v1 + "/messagesx") as response:
            assert "request_id" not in await response.json()


async def test_an_unknown_model_is_not_found(start: Start, hosted: HostedApi) -> None:
    running = await start(
        NOVITA_API_KEY=HOSTED_KEY, NOVITA_OPENAI_ENDPOINTS=hosted.base_url, MODEL_STRICT="1"
    )
    for call in (
        client(running).messages.create(model="claude-x", max_tokens=9, messages=HELLO),
        client(running).messages.count_tokens(model="claude-x", messages=HELLO),
    ):
        with pytest.raises(anthropic.NotFoundError, match="claude-x"):
            await call


async def test_a_request_that_is_too_large_is_refused(start: Start) -> None:
    running = await start(MAX_BODY_BYTES="1024")
    messages: Any = [{"role": "user", "content": "x" * 2000}]
    with pytest.raises(anthropic.RequestTooLargeError) as caught:
        await client(running).messages.create(model="m", max_tokens=9, messages=messages)
    assert caught.value.body["error"]["type"] == "request_too_large"


async def test_a_stream_that_breaks_off_ends_with_an_error(relay: Running, hosted: HostedApi) -> None:
    hosted.script(CutStream(after_events=3))
    seen = []
    with pytest.raises(anthropic.APIStatusError) as caught:
        async with client(relay).messages.stream(model="m", max_tokens=9, messages=HELLO) as stream:
            seen += [event.type async for event in stream]
    assert caught.value.body["error"]["type"] == "api_error"
    assert "message_stop" not in seen
    [receipt] = relay.appliance.receipts.latest(1)
    assert receipt.finish_label == "cut_off"


async def test_failed_attempts_are_told(relay: Running, hosted: HostedApi) -> None:
    hosted.script(*[Status(500)] * 8)
    with pytest.raises(anthropic.InternalServerError) as caught:
        await client(relay).messages.create(model="m", max_tokens=9, messages=HELLO)
    error = caught.value.body["error"]
    assert error["type"] == "api_error"
    assert error["attempts"]


async def test_a_late_stream_begins_with_pings(start: Start, hosted: HostedApi) -> None:
    running = await start(
        NOVITA_API_KEY=HOSTED_KEY, NOVITA_OPENAI_ENDPOINTS=hosted.base_url, HEARTBEAT_S="0.2"
    )
    hosted.script(Slow(0.7))
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            running.v1 + "/messages",
            json={"model": "m", "max_tokens": 9, "messages": HELLO, "stream": True},
        ) as response,
    ):
        text = await response.text()
    assert text.startswith('event: ping\ndata: {"type":"ping"}\n\n')
    assert text.rstrip().endswith('data: {"type":"message_stop"}')
    hosted.script(Slow(0.7))
    _, message = await events_of(running)
    assert message.content[0].text == hosted.reply


async def test_a_client_that_leaves_ends_the_request_upstream(relay: Running, hosted: HostedApi) -> None:
    hosted.script(Hang())
    task = asyncio.create_task(client(relay).messages.create(model="m", max_tokens=9, messages=HELLO))
    assert await until(lambda: bool(hosted.records))
    task.cancel()
    assert await until(lambda: hosted.records[-1].left_after_s is not None)


async def test_what_is_left_out_is_named_in_a_header(anyone: Running) -> None:
    raw = await client(anyone).beta.messages.with_raw_response.create(
        model="m",
        max_tokens=2000,
        messages=HELLO,
        thinking={"type": "enabled", "budget_tokens": 1024},
        tools=[TOOLS[0], {"type": "web_search_20250305", "name": "web_search"}],
        context_management={"edits": []},
        betas=["context-management-2025-06-27"],
    )
    names = "tools.web_search_20250305, thinking.budget_tokens, context_management"
    if not anyone.appliance.router.is_demo:  # a hosted API has no field for it
        names += ", thinking"
    assert raw.headers["x-appliance-ignored"] == names


# ---- as Claude Code calls


async def test_the_calls_of_claude_code(anyone: Running) -> None:
    """A small call to begin with, counting, a stream with tools, the tool's result; every address with a query."""
    system: Any = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=12345"},
        {
            "type": "text",
            "text": "You are Claude Code, Anthropic's official CLI for Claude.",
            "cache_control": {"type": "ephemeral"},
        },
    ]
    more: Any = {"system": system, "betas": ["claude-code-20250219", "interleaved-thinking-2025-05-14"]}
    api = client(anyone, default_headers={"anthropic-beta": "claude-code-20250219"}).beta.messages
    quota = await api.create(
        model="claude-haiku-4-5", max_tokens=1, messages=[{"role": "user", "content": "quota"}]
    )
    assert quota.content
    counted = await api.count_tokens(model="claude-opus-4-8", messages=HELLO, tools=TOOLS, **more)
    assert counted.input_tokens > 0
    messages: Any = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>Be brief.</system-reminder>"},
                {
                    "type": "text",
                    "text": "demo: tool weather",
                    "cache_control": {"type": "ephemeral"},
                },
            ],
        }
    ]
    asked: Any = {
        "model": "claude-opus-4-8",
        "max_tokens": 32_000,
        "tools": TOOLS[:1],
        "metadata": {"user_id": "user_1_account__session_2"},
        "thinking": {"type": "adaptive"},
        **more,
    }
    async with api.stream(messages=messages, **asked) as stream:
        first = await stream.get_final_message()
    assert first.stop_reason == "tool_use"
    [call] = [block for block in first.content if block.type == "tool_use"]
    messages += [
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in first.content]},
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": call.id,
                    "content": [{"type": "text", "text": "21 °C"}],
                    "is_error": False,
                }
            ],
        },
    ]
    async with api.stream(messages=messages, **asked | {"tool_choice": {"type": "none"}}) as stream:
        second = await stream.get_final_message()
    assert second.stop_reason == "end_turn"
    assert second.content[0].text
    routes = [receipt.route for receipt in anyone.appliance.receipts.latest(4)]
    assert routes == ["/v1/messages", "/v1/messages", "/v1/messages/count_tokens", "/v1/messages"]


# ---- a real engine


@pytest.fixture
async def tiny(start: Start, llama: Llama) -> Running:
    return await start(**behind(await llama()))


async def test_a_real_engine_answers_whole_and_in_a_stream(tiny: Running) -> None:
    asked: Any = {"model": "tiny", "max_tokens": 200, "messages": [{"role": "user", "content": "hello"}]}
    whole = await client(tiny).messages.create(**asked)
    assert (whole.content[0].text, whole.stop_reason, whole.model) == (REPLY, "end_turn", "tiny")
    assert whole.usage.output_tokens == REPLY_TOKENS
    events, streamed = await events_of(tiny, **asked)
    assert (streamed.content[0].text, streamed.usage.output_tokens) == (REPLY, REPLY_TOKENS)
    assert sum(event.type == "text" for event in events) >= 10
    short = await client(tiny).messages.create(**asked | {"max_tokens": 3})
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 3)


async def test_a_real_engine_counts_what_it_will_read(tiny: Running) -> None:
    asked: Any = {
        "model": "tiny",
        "system": "Be kind.",
        "messages": [{"role": "user", "content": "hello"}],
        "tools": TOOLS,
    }
    counted = await client(tiny).messages.with_raw_response.count_tokens(**asked)
    assert "x-appliance-estimate" not in counted.headers
    message = await client(tiny).messages.create(max_tokens=1, **asked)
    read = message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
    assert (await counted.parse()).input_tokens == read


async def test_a_real_engine_calls_tools_and_takes_their_results(tiny: Running) -> None:
    messages: Any = [{"role": "user", "content": "hello"}]
    asked: Any = {"model": "tiny", "max_tokens": 200, "tools": TOOLS[:1]}
    _, message = await events_of(tiny, **asked, messages=messages, tool_choice={"type": "any"})
    text, call = message.content  # the tiny model says its sentence before it calls
    assert (text.text.strip(), call.type) == (REPLY, "tool_use")
    assert (call.name, message.stop_reason) == ("weather", "tool_use")
    assert isinstance(call.input["city"], str)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "21 °C"}
    messages += [message.to_param(), {"role": "user", "content": [result]}]
    again = await client(tiny).messages.create(**asked, messages=messages)
    assert again.content[0].text == REPLY


async def test_a_prompt_too_long_is_refused_in_anthropics_words(start: Start, llama: Llama) -> None:
    running = await start(**behind(await llama(slots=1, ctx=512)))
    messages: Any = [{"role": "user", "content": "word " * 3000}]
    with pytest.raises(anthropic.BadRequestError) as caught:
        await client(running).messages.create(model="tiny", max_tokens=9, messages=messages)
    message = caught.value.body["error"]["message"]
    assert re.match(r"prompt is too long: \d+ tokens > 512 maximum\. ", message), message


async def test_an_own_model_is_loaded_by_a_message_and_not_by_counting(managed) -> None:
    api = client((await managed("a")).running)
    asked: Any = {"model": "a", "messages": [{"role": "user", "content": "hello"}]}
    before = await api.messages.with_raw_response.count_tokens(**asked)
    assert before.headers["x-appliance-estimate"] == "1"
    message = await api.messages.create(max_tokens=200, **asked)
    assert message.content[0].text == REPLY
    after = await api.messages.with_raw_response.count_tokens(**asked)
    assert "x-appliance-estimate" not in after.headers
