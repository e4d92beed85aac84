"""The official `openai` client against the whole appliance."""

import asyncio
import base64
import struct
from typing import Any

import openai
import pydantic
import pytest

from tests.fakes.hosted_api import CutStream, Hang, HostedApi, OddStream, OnePiece, Slow, Stall, Status
from tests.journeys.running import Running, Start, until

HELLO = [{"role": "user", "content": "Hello"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    for name in ("weather", "time")
]
PUBLIC = "meta-llama/llama-3.2-3b-instruct/fp-16-fast-vllm-1"
UPSTREAM = "meta-llama/llama-3.2-3b-instruct"


def client(running: Running, **more) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=running.v1, api_key="client-key-123456", max_retries=0, **more)


async def test_chat_gives_the_answer_usage_and_public_name(anyone: Running) -> None:
    answer = await client(anyone).chat.completions.create(model="anything", messages=HELLO)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == PUBLIC
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


async def test_the_demo_engine_ends_an_agents_loop(start: Start) -> None:
    """The official agent loop: calls are run and handed back until an answer has none."""
    running = await start()
    messages: list[Any] = [{"role": "user", "content": "What is the weather?"}]
    for _ in range(5):
        answer = await client(running).chat.completions.create(
            model="demo", messages=messages, tools=TOOLS, tool_choice="required"
        )
        message = answer.choices[0].message
        if not message.tool_calls:
            break
        messages += [
            message,
            *({"role": "tool", "tool_call_id": c.id, "content": "sunny"} for c in message.tool_calls),
        ]
    assert (message.content, len(messages)) == ("[demo engine] The tool returned: sunny", 3)
    assert (await client(running).models.retrieve("demo")).id == PUBLIC


class Node(pydantic.BaseModel):
    name: str
    children: list["Node"]
    other: "Node | None"


async def test_the_demo_engine_fits_the_schema_of_a_nested_class(start: Start) -> None:
    running = await start()
    answer = await client(running).chat.completions.parse(model="demo", messages=HELLO, response_format=Node)
    assert answer.choices[0].message.parsed is not None


async def test_stream_says_the_same_as_one_piece(anyone: Running) -> None:
    one = await client(anyone).chat.completions.create(model="m", messages=HELLO)
    stream = await client(anyone).chat.completions.create(model="m", messages=HELLO, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == one.choices[0].message.content
    assert {c.model for c in chunks} == {PUBLIC}
    assert len({c.id for c in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(c.usage is None for c in chunks)


async def test_include_usage_comes_last(anyone: Running) -> None:
    stream = await client(anyone).chat.completions.create(
        model="m", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens > 0
    assert all(c.usage is None for c in chunks[:-1])


async def test_tools_come_back_whole(anyone: Running) -> None:
    answer = await client(anyone).chat.completions.create(
        model="m", messages=HELLO, tools=TOOLS[:1], tool_choice="required"
    )
    call = answer.choices[0].message.tool_calls[0]
    assert (call.function.name, answer.choices[0].finish_reason) == ("weather", "tool_calls")
    assert "city" in call.function.arguments


async def test_streamed_tools_add_up(anyone: Running) -> None:
    async with client(anyone).chat.completions.stream(
        model="m", messages=HELLO, tools=TOOLS[:1], tool_choice="required"
    ) as stream:
        final = await stream.get_final_completion()
    call = final.choices[0].message.tool_calls[0]
    assert call.function.name == "weather"
    assert "city" in call.function.arguments


async def test_parallel_tool_calls_and_several_choices_stream_apart(
    relay: Running, hosted: HostedApi
) -> None:
    hosted.script(OnePiece())
    stream = await client(relay).chat.completions.create(
        model="m", messages=HELLO, tools=TOOLS, n=2, stream=True
    )
    calls: dict[tuple[int, int], str] = {}
    async for chunk in stream:
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or []:
                key = (choice.index, call.index)
                calls[key] = calls.get(key, "") + (call.function.name or "") + (call.function.arguments or "")
    assert sorted(calls) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert calls[(1, 1)].startswith("time{")


async def test_embeddings_as_floats_and_base64(anyone: Running) -> None:
    answer = await client(anyone).embeddings.create(
        model="m", input=["one", "three"]
    )  # the client asks for base64 by itself
    assert len(answer.data) == 2
    raw = await client(anyone).embeddings.with_raw_response.create(
        model="m", input="one", encoding_format="base64"
    )
    vector = raw.http_response.json()["data"][0]["embedding"]
    assert struct.unpack(f"<{len(base64.b64decode(vector)) // 4}f", base64.b64decode(vector))[
        0
    ] == pytest.approx(answer.data[0].embedding[0])


async def test_legacy_completions(anyone: Running) -> None:
    answer = await client(anyone).completions.create(model="m", prompt="Say hello")
    assert answer.choices[0].text
    stream = await client(anyone).completions.create(model="m", prompt="Say hello", stream=True)
    assert "".join([c.choices[0].text async for c in stream]) == answer.choices[0].text


async def test_responses_whole_and_streamed(anyone: Running) -> None:
    answer = await client(anyone).responses.create(model="m", input="Hello", instructions="Be short")
    assert answer.status == "completed"
    assert answer.output_text
    assert answer.usage.total_tokens > 0
    kinds, text, numbers = [], "", []
    async for event in await client(anyone).responses.create(
        model="m", input="Hello", instructions="Be short", stream=True
    ):
        kinds.append(event.type)
        numbers.append(event.sequence_number)
        text += event.delta if event.type == "response.output_text.delta" else ""
    assert text == answer.output_text
    assert numbers == list(range(len(numbers)))
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


async def test_responses_with_tools(anyone: Running) -> None:
    tools = [
        {
            "type": "function",
            "name": "weather",
            "parameters": TOOLS[0]["function"]["parameters"],
            "strict": False,
        }
    ]
    async with client(anyone).responses.stream(
        model="m", input="Hello", tools=tools, tool_choice="required"
    ) as stream:
        final = await stream.get_final_response()
    assert [item.type for item in final.output] == ["function_call"]
    assert "city" in final.output[0].arguments


async def test_models_are_listed_and_found(anyone: Running) -> None:
    assert PUBLIC in [m.id async for m in client(anyone).models.list()]
    assert (await client(anyone).models.retrieve(PUBLIC)).id == PUBLIC
    with pytest.raises(openai.NotFoundError):
        await client(anyone).models.retrieve("no/such/model")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "text"}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 1.5}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"tools": {}}, "tools"),
    ],
)
async def test_wrong_fields_are_named(anyone: Running, change: dict, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client(anyone).chat.completions.create(model="m", messages=HELLO, extra_body=change)
    assert caught.value.param == param


async def test_everything_the_client_sent_goes_up_and_its_key_does_not(
    relay: Running, hosted: HostedApi
) -> None:
    fields = {
        "temperature": 0.25,
        "seed": 7,
        "stop": ["X"],
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {"type": "json_object"},
        "user": "u1",
        "parallel_tool_calls": False,
    }
    await client(relay).chat.completions.create(
        model="m", messages=HELLO, extra_body={"made_up_field": {"a": [1, 2]}}, **fields
    )
    sent = hosted.records[-1]
    assert {k: sent.body[k] for k in fields} == fields
    assert sent.body["made_up_field"] == {"a": [1, 2]}
    assert sent.body["model"] == UPSTREAM
    assert "client-key" not in str(sent.headers) + sent.raw.decode()


@pytest.mark.parametrize("mode", ["auto", "relay", "simulate"])
@pytest.mark.parametrize("how", [None, OnePiece(), OddStream()])
async def test_text_survives_every_way_of_streaming(
    start: Start, hosted: HostedApi, mode: str, how: object
) -> None:
    running = await start(
        NOVITA_API_KEY=hosted.key,
        NOVITA_OPENAI_ENDPOINTS=hosted.base_url,
        UPSTREAM_STREAMING=mode,
        STREAM_CHUNK_SIZE="3",
        STREAM_DELAY_MS="0",
    )
    hosted.script(how)
    hosted.reasoning = "thinking\nhard"
    stream = await client(running).chat.completions.create(
        model="m", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [c async for c in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == hosted.reply
    assert (
        "".join(getattr(c.choices[0].delta, "reasoning_content", None) or "" for c in chunks if c.choices)
        == hosted.reasoning
    )
    assert chunks[-1].usage.prompt_tokens == 11
    assert hosted.records[-1].body.get("stream", False) is (mode != "simulate")


async def test_the_next_endpoint_answers_when_one_fails(start: Start, hosted: HostedApi) -> None:
    async with HostedApi() as second:
        running = await start(
            NOVITA_API_KEY=hosted.key,
            NOVITA_OPENAI_ENDPOINTS=f"http://127.0.0.1:9;{hosted.base_url};{second.base_url}",
        )
        hosted.script(Status(503))
        raw = await client(running).chat.completions.with_raw_response.create(model="m", messages=HELLO)
    receipt = running.appliance.receipts.get(raw.headers["x-request-id"])
    assert [a.label for a in receipt.attempts] == ["connect", "status_503", "ok"]
    assert receipt.endpoint == second.base_url
    assert "attempts=3" in raw.headers["x-appliance-receipt"]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (403, openai.PermissionDeniedError),
        (422, openai.UnprocessableEntityError),
    ],
)
async def test_the_clients_own_mistakes_come_back_in_shape(
    relay: Running, hosted: HostedApi, status: int, error: type
) -> None:
    hosted.script(Status(status))
    with pytest.raises(error) as caught:
        await client(relay).chat.completions.create(model="m", messages=HELLO)
    assert "stand-in answers" in caught.value.message
    assert len(hosted.records) == 1


async def test_a_refused_key_names_the_variable_and_not_the_key(start: Start, hosted: HostedApi) -> None:
    running = await start(NOVITA_API_KEY="sk_wrong_key_000", NOVITA_OPENAI_ENDPOINTS=hosted.base_url)
    with pytest.raises(openai.InternalServerError) as caught:
        await client(running).chat.completions.create(model="m", messages=HELLO)
    assert caught.value.status_code == 502
    assert "NOVITA_API_KEY" in caught.value.message
    assert "sk_wrong" not in str(caught.value)


async def test_all_failed_lists_the_attempts(relay: Running, hosted: HostedApi) -> None:
    hosted.script(Status(500, body="boom"))
    with pytest.raises(openai.InternalServerError) as caught:
        await client(relay).chat.completions.create(model="m", messages=HELLO)
    assert caught.value.status_code == 502
    assert caught.value.body["attempts"] == [
        {"url": hosted.base_url, "outcome": "status_500", "status": 500, "body": "boom"}
    ]


async def test_a_failing_endpoint_is_skipped_and_retried_later(start: Start, hosted: HostedApi) -> None:
    running = await start(
        NOVITA_API_KEY=hosted.key,
        NOVITA_OPENAI_ENDPOINTS=hosted.base_url,
        BREAKER_FAILURES="2",
        BREAKER_REST_S="3",
    )
    hosted.script(Status(500), Status(500))
    codes = []
    for _ in range(3):
        with pytest.raises(openai.InternalServerError) as caught:
            await client(running).chat.completions.create(model="m", messages=HELLO)
        codes.append(caught.value.status_code)
    assert codes == [502, 502, 503]
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert len(hosted.records) == 2
    rest_s = running.appliance.router.states()[0].endpoints[0]["rested_s"]
    assert 0 < rest_s <= 3
    await asyncio.sleep(rest_s + 0.05)
    assert (await client(running).chat.completions.create(model="m", messages=HELLO)).choices


async def test_a_cut_stream_ends_with_an_error_not_as_a_short_answer(
    relay: Running, hosted: HostedApi
) -> None:
    hosted.script(CutStream(after_events=3))
    stream = await client(relay).chat.completions.create(model="m", messages=HELLO, stream=True)
    with pytest.raises(openai.APIError):
        async for _ in stream:
            pass
    assert await until(lambda: len(relay.appliance.receipts.latest(1)) == 1)
    assert relay.appliance.receipts.latest(1)[0].finish_label == "cut_off"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("how", [Hang(), Stall(2)])
async def test_when_the_client_leaves_the_upstream_call_ends(
    relay: Running, hosted: HostedApi, how: object, streaming: bool
) -> None:
    if isinstance(how, Stall) and not streaming:
        how = Slow(3600)
    hosted.script(how)
    task = asyncio.create_task(_consume(client(relay), streaming))
    assert await until(lambda: bool(hosted.records))
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await until(lambda: hosted.records[-1].left_after_s is not None, seconds=1.0)
    assert await until(lambda: relay.appliance.pipeline.in_flight == 0)
    assert relay.appliance.receipts.latest(1)[0].finish_label == "client_left"


async def _consume(api: openai.AsyncOpenAI, streaming: bool) -> None:
    answer = await api.chat.completions.create(model="m", messages=HELLO, stream=streaming)
    if streaming:
        async for _ in answer:
            pass


async def test_waiting_streams_get_heartbeats(start: Start, hosted: HostedApi) -> None:
    running = await start(
        NOVITA_API_KEY=hosted.key, NOVITA_OPENAI_ENDPOINTS=hosted.base_url, HEARTBEAT_S="0.2"
    )
    hosted.script(Slow(0.7))
    async with client(running).chat.completions.with_streaming_response.create(
        model="m", messages=HELLO, stream=True
    ) as raw:
        text = "".join([piece async for piece in raw.iter_text()])
    assert text.count(": heartbeat\n\n") >= 2
    assert text.rstrip().endswith("data: [DONE]")


async def test_waiting_responses_get_heartbeats_too(start: Start, hosted: HostedApi) -> None:
    running = await start(
        NOVITA_API_KEY=hosted.key, NOVITA_OPENAI_ENDPOINTS=hosted.base_url, HEARTBEAT_S="0.2"
    )
    hosted.script(Slow(0.7))
    async with client(running).responses.with_streaming_response.create(
        model="m", input="Hello", stream=True
    ) as raw:
        text = "".join([piece async for piece in raw.iter_text()])
    assert text.startswith(": heartbeat\n\n: heartbeat\n\n")
    assert "event: response.completed" in text


async def test_a_refusal_that_comes_late_is_told_in_the_engines_words(
    start: Start, hosted: HostedApi
) -> None:
    running = await start(
        NOVITA_API_KEY=hosted.key,
        NOVITA_OPENAI_ENDPOINTS=hosted.base_url,
        HEARTBEAT_S="0.1",
        UPSTREAM_TOTAL_TIMEOUT_S="0.5",
    )
    hosted.script(Hang(), Hang())
    with pytest.raises(openai.APIError, match=r"0\.5") as caught:
        async for _ in await client(running).chat.completions.create(model="m", messages=HELLO, stream=True):
            pass
    assert not isinstance(caught.value, openai.APIStatusError)
    with pytest.raises(openai.APIError, match=r"0\.5"):
        async for _ in await client(running).responses.create(model="m", input="Hello", stream=True):
            pass


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_engine_refuses_is_refused_to_responses_too(
    start: Start, hosted: HostedApi, stream: bool
) -> None:
    running = await start(NOVITA_API_KEY=hosted.key, NOVITA_OPENAI_ENDPOINTS=hosted.base_url)
    hosted.script(Status(400))
    with pytest.raises(openai.BadRequestError, match="stand-in answers 400"):
        await client(running).responses.create(model="m", input="Hello", stream=stream)


async def test_a_total_budget_holds_over_all_endpoints(start: Start, hosted: HostedApi) -> None:
    running = await start(
        NOVITA_API_KEY=hosted.key,
        NOVITA_OPENAI_ENDPOINTS=f"{hosted.base_url};{hosted.base_url}/",
        UPSTREAM_TOTAL_TIMEOUT_S="0.5",
    )
    hosted.script(Hang(), Hang())
    with pytest.raises(openai.InternalServerError) as caught:
        await client(running).chat.completions.create(model="m", messages=HELLO)
    assert caught.value.status_code == 504


async def test_strict_names(start: Start, hosted: HostedApi) -> None:
    running = await start(
        NOVITA_API_KEY=hosted.key, NOVITA_OPENAI_ENDPOINTS=hosted.base_url, MODEL_STRICT="1"
    )
    for name in (
        "llama3.2-3b-instruct",
        "Llama-3.2-3B-Instruct",
        "meta-llama/llama-3.2-3b-instruct:fp16",
        PUBLIC,
    ):
        assert (await client(running).chat.completions.create(model=name, messages=HELLO)).model == PUBLIC
    with pytest.raises(openai.NotFoundError) as caught:
        await client(running).chat.completions.create(model="gpt-9", messages=HELLO)
    assert caught.value.code == "model_not_found"


async def test_keys_guard_all_but_health(start: Start) -> None:
    running = await start(APPLIANCE_API_KEYS="client-key-123456,another-key-1")
    assert await client(running).chat.completions.create(model="m", messages=HELLO)
    with pytest.raises(openai.AuthenticationError) as caught:
        await openai.AsyncOpenAI(
            base_url=running.v1, api_key="wrong-key", max_retries=0
        ).chat.completions.create(model="m", messages=HELLO)
    assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        [
            m
            async for m in openai.AsyncOpenAI(
                base_url=running.v1, api_key="wrong-key", max_retries=0
            ).models.list()
        ]
