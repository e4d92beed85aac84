"""The official `openai` and `ollama` clients against real llama-servers through the appliance: what a model really does."""

import json
import math
from typing import Any

import ollama
import openai
import pytest

from tests.front.test_responses_handlers import BEGINNING, CODEX
from tests.journeys.llama_servers import HELLO, Llama
from tests.journeys.running import Running
from tests.journeys.test_real_llama import behind
from tests.tools.tiny_models import REPLY, REPLY_TOKENS

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"number": {"type": "integer"}},
    "required": ["number"],
    "additionalProperties": False,
}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
# As random as it gets: the tiny model is sure of its sentence at usual temperatures.
RANDOM = {"temperature": 80.0, "max_tokens": 12, "extra_body": {"top_k": 0, "top_p": 1.0, "min_p": 0.0}}


@pytest.fixture
async def running(start, llama: Llama) -> Running:
    return await start(**behind(await llama(), await llama(), await llama(embeddings=True)))


@pytest.fixture
async def client(running: Running):
    async with openai.AsyncOpenAI(base_url=running.v1, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def tags(running: Running) -> ollama.AsyncClient:
    return ollama.AsyncClient(host=running.base_url)


# ---- openai


async def test_chat(client: openai.AsyncOpenAI) -> None:
    made = await client.chat.completions.create(model="tiny", messages=HELLO)
    assert (made.model, made.choices[0].message.content, made.choices[0].finish_reason) == (
        "tiny",
        REPLY,
        "stop",
    )
    assert made.usage is not None
    assert made.usage.completion_tokens == REPLY_TOKENS


async def test_a_stream_comes_in_pieces_with_its_usage(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    pieces = [
        chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content
    ]
    assert "".join(pieces) == REPLY
    assert len(pieces) >= 10
    assert {chunk.model for chunk in chunks} == {"tiny"}
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == REPLY_TOKENS


async def test_a_tool_is_called_with_arguments_that_fit(client: openai.AsyncOpenAI) -> None:
    made = await client.chat.completions.create(
        model="tiny", messages=HELLO, tools=[WEATHER], tool_choice="required"
    )
    choice = made.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    call = choice.message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert isinstance(json.loads(call.function.arguments)["city"], str)
    # … and its result goes back into the conversation.
    again = await client.chat.completions.create(
        model="tiny",
        tools=[WEATHER],
        messages=[
            *HELLO,
            choice.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": '{"celsius": 21}'},
        ],
    )
    assert again.choices[0].message.content == REPLY


async def test_a_streamed_tool_call_adds_up(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tiny", messages=HELLO, tools=[WEATHER], tool_choice="required", stream=True
    )
    name = arguments = finish = ""
    async for chunk in stream:
        choice = chunk.choices[0]
        for call in choice.delta.tool_calls or []:
            name += (call.function and call.function.name) or ""
            arguments += (call.function and call.function.arguments) or ""
        finish = choice.finish_reason or finish
    assert (name, finish) == ("get_weather", "tool_calls")
    assert isinstance(json.loads(arguments)["city"], str)


async def test_logprobs(client: openai.AsyncOpenAI) -> None:
    made = await client.chat.completions.create(
        model="tiny", messages=HELLO, logprobs=True, top_logprobs=3, max_tokens=4
    )
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(row.token for row in logprobs.content) == made.choices[0].message.content
    for row in logprobs.content:
        assert row.logprob <= 0
        assert len(row.top_logprobs) == 3
        assert math.isclose(max(top.logprob for top in row.top_logprobs), row.logprob, abs_tol=1e-3)


async def test_stop_and_max_tokens(client: openai.AsyncOpenAI) -> None:
    word = REPLY.split()[3]
    made = await client.chat.completions.create(model="tiny", messages=HELLO, stop=[f" {word}"])
    assert (made.choices[0].message.content, made.choices[0].finish_reason) == (
        REPLY[: REPLY.index(f" {word}")],
        "stop",
    )
    made = await client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=3)
    assert made.choices[0].finish_reason == "length"
    assert made.usage is not None
    assert made.usage.completion_tokens == 3


async def test_the_same_seed_gives_the_same_on_every_server(client: openai.AsyncOpenAI) -> None:
    async def text(seed: int) -> str:
        return str(
            (await client.chat.completions.create(model="tiny", messages=HELLO, seed=seed, **RANDOM))
            .choices[0]
            .message.content
        )

    assert len({await text(7) for _ in range(6)}) == 1
    assert len({await text(seed) for seed in range(6)}) > 1


async def test_n_choices(client: openai.AsyncOpenAI) -> None:
    made = await client.chat.completions.create(model="tiny", messages=HELLO, n=2)
    assert [(choice.index, choice.message.content) for choice in made.choices] == [(0, REPLY), (1, REPLY)]
    texts = {0: "", 1: ""}
    async for chunk in await client.chat.completions.create(model="tiny", messages=HELLO, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {0: REPLY, 1: REPLY}
    with pytest.raises(openai.BadRequestError):  # more than it has slots: its own sentence, not a 5xx
        await client.chat.completions.create(model="tiny", messages=HELLO, n=50)


async def test_an_answer_fits_a_schema(client: openai.AsyncOpenAI) -> None:
    made = await client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_tokens=200,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
    )
    assert isinstance(json.loads(str(made.choices[0].message.content))["number"], int)


async def test_completions(client: openai.AsyncOpenAI) -> None:
    made = await client.completions.create(model="tiny", prompt=["one", "two"], max_tokens=6)
    assert [choice.index for choice in made.choices] == [0, 1]
    stream = await client.completions.create(model="tiny", prompt="one", max_tokens=6, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == made.choices[0].text
    texts = {0: "", 1: ""}
    async for chunk in await client.completions.create(
        model="tiny", prompt=["one", "two"], max_tokens=6, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {choice.index: choice.text for choice in made.choices}


async def test_responses(client: openai.AsyncOpenAI) -> None:
    assert (await client.responses.create(model="tiny", input="hello")).output_text == REPLY
    text = ""
    async for event in await client.responses.create(model="tiny", input="hello", stream=True):
        text += event.delta if event.type == "response.output_text.delta" else ""
    assert text == REPLY


async def test_responses_with_logprobs(client: openai.AsyncOpenAI) -> None:
    asked: Any = {
        "model": "tiny",
        "input": "hello",
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    whole = (await client.responses.create(**asked)).output[0].content[0]
    assert "".join(one.token for one in whole.logprobs) == whole.text == REPLY
    assert len(whole.logprobs[0].top_logprobs) == 2
    async with client.responses.stream(**asked) as stream:
        streamed = (await stream.get_final_response()).output[0].content[0]
    assert [one.token for one in streamed.logprobs] == [one.token for one in whole.logprobs]


async def test_responses_of_codex(client: openai.AsyncOpenAI) -> None:
    asked = {name: value for name, value in CODEX.items() if name != "client_metadata"}
    calls: Any = [
        {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "Look."}],
            "encrypted_content": None,
        },
        {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "*** Begin Patch"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"},
    ]
    events = [
        event
        async for event in await client.responses.create(
            **asked | {"model": "tiny"}, input=[*BEGINNING, *calls]
        )
    ]
    assert events[-1].type == "response.completed"


async def test_embeddings(client: openai.AsyncOpenAI) -> None:
    made = await client.embeddings.create(model="tiny-embed", input=["one", "two"])
    assert (made.model, [row.index for row in made.data]) == ("tiny-embed", [0, 1])
    assert math.isclose(sum(x * x for x in made.data[0].embedding), 1.0, rel_tol=1e-3)


async def test_pictures_are_refused_by_a_model_that_cannot_see(
    client: openai.AsyncOpenAI, tags: ollama.AsyncClient
) -> None:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    with pytest.raises(openai.BadRequestError, match="image"):
        await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": [{"type": "text", "text": "what?"}, picture]}]
        )
    with pytest.raises(ollama.ResponseError, match="image") as caught:
        await tags.chat(model="tiny", messages=[{"role": "user", "content": "what?", "images": [PIXEL]}])
    assert caught.value.status_code == 400


# ---- ollama


async def test_ollama_chat_whole_and_streamed(tags: ollama.AsyncClient) -> None:
    made = await tags.chat(model="tiny", messages=HELLO)
    assert (made.message.content, made.done_reason, made.eval_count) == (REPLY, "stop", REPLY_TOKENS)
    pieces = [piece async for piece in await tags.chat(model="tiny", messages=HELLO, stream=True)]
    assert "".join(piece.message.content or "" for piece in pieces) == REPLY
    assert len(pieces) >= 10
    assert pieces[-1].done
    assert pieces[-1].eval_count == REPLY_TOKENS


async def test_ollama_generate_and_its_options(tags: ollama.AsyncClient) -> None:
    made = await tags.generate(model="tiny", prompt="hello", options={"num_predict": 3, "seed": 1})
    assert (made.done_reason, made.eval_count) == ("length", 3)
    word = REPLY.split()[3]
    made = await tags.generate(model="tiny", prompt="hello", options={"stop": [f" {word}"]})
    assert made.response == REPLY[: REPLY.index(f" {word}")]


async def test_ollama_tools_and_formats(tags: ollama.AsyncClient) -> None:
    made = await tags.chat(model="tiny", messages=HELLO, tools=[WEATHER])
    assert made.message.content == REPLY
    made = await tags.chat(model="tiny", messages=HELLO, format=SCHEMA, options={"num_predict": 200})
    assert isinstance(json.loads(made.message.content or "")["number"], int)


async def test_ollama_embeds(tags: ollama.AsyncClient) -> None:
    made = await tags.embed(model="tiny-embed", input=["one", "two", "one"])
    assert len(made.embeddings) == 3
    assert made.embeddings[0] == made.embeddings[2]
    assert made.embeddings[0] != made.embeddings[1]


async def test_ollama_knows_the_models(tags: ollama.AsyncClient) -> None:
    assert {model.model for model in (await tags.list()).models} == {"tiny", "tiny-embed"}
    assert "completion" in ((await tags.show("tiny")).capabilities or [])
