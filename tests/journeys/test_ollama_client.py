"""The official `ollama` client against the whole appliance."""

import json
import urllib.request

import ollama
import pytest

from tests.fakes.hosted_api import CutStream, HostedApi
from tests.journeys.running import Running, Start

HELLO = [{"role": "user", "content": "Hello"}]
PUBLIC = "meta-llama/llama-3.2-3b-instruct/fp-16-fast-vllm-1"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def client(running: Running) -> ollama.AsyncClient:
    return ollama.AsyncClient(host=running.base_url)


async def test_chat_whole_and_streamed_say_the_same(anyone: Running) -> None:
    one = await client(anyone).chat(model="m", messages=HELLO)
    assert one.message.content
    assert (one.done, one.done_reason) == (True, "stop")
    assert one.eval_count > 0
    assert one.total_duration > 0
    parts = [part async for part in await client(anyone).chat(model="m", messages=HELLO, stream=True)]
    assert "".join(p.message.content for p in parts) == one.message.content
    assert [p.done for p in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].prompt_eval_count == one.prompt_eval_count


async def test_generate(anyone: Running) -> None:
    one = await client(anyone).generate(model="m", prompt="Hello", system="Be short")
    parts = [p async for p in await client(anyone).generate(model="m", prompt="Hello", system="Be short", stream=True)]
    assert "".join(p.response for p in parts) == one.response != ""


async def test_an_empty_prompt_only_loads(anyone: Running) -> None:
    assert (await client(anyone).generate(model="m", prompt="")).done_reason == "load"
    assert (await client(anyone).generate(model="m", prompt="", keep_alive=0)).done_reason == "unload"


async def test_options_format_think_and_images_go_up(relay: Running, hosted: HostedApi) -> None:
    await client(relay).chat(model="m", messages=[{"role": "user", "content": "What is it?", "images": [PIXEL]}], format="json", think="low",
                             options={"temperature": 0.1, "num_predict": 9, "stop": ["X"], "num_ctx": 4096, "seed": 3})
    sent = hosted.records[-1].body
    assert (sent["temperature"], sent["max_tokens"], sent["stop"], sent["seed"]) == (0.1, 9, ["X"], 3)
    assert sent["response_format"] == {"type": "json_object"}
    assert sent["reasoning_effort"] == "low"
    assert sent["messages"][0]["content"][1]["image_url"]["url"] == f"data:image/png;base64,{PIXEL}"
    assert "num_ctx" not in sent


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_calls_come_whole_with_object_arguments(relay: Running, hosted: HostedApi, stream: bool) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
    answer = await client(relay).chat(model="m", messages=HELLO, tools=tools, stream=stream)
    parts = [p async for p in answer] if stream else [answer]
    calls = [c for p in parts for c in p.message.tool_calls or []]
    assert [(c.function.name, dict(c.function.arguments)) for c in calls] == [("weather", {"city": "Paris", "n": 0})]


async def test_thinking_is_shown_apart_and_can_be_hidden(relay: Running, hosted: HostedApi) -> None:
    hosted.reasoning = "let me see"
    assert (await client(relay).chat(model="m", messages=HELLO, think=True)).message.thinking == "let me see"
    assert (await client(relay).chat(model="m", messages=HELLO, think=False)).message.thinking is None


async def test_embeddings_have_length_one(anyone: Running) -> None:
    answer = await client(anyone).embed(model="m", input=["one", "two words"])
    assert [pytest.approx(1.0) for _ in answer.embeddings] == [sum(x * x for x in v) for v in answer.embeddings]
    assert len((await client(anyone).embeddings(model="m", prompt="one")).embedding) > 0


async def test_list_show_ps_and_pull(anyone: Running) -> None:
    assert [m.model for m in (await client(anyone).list()).models] == [PUBLIC]
    assert (await client(anyone).show(PUBLIC)).details.format == "remote"
    assert [m.model for m in (await client(anyone).ps()).models] == [PUBLIC]
    assert (await client(anyone).pull(PUBLIC)).status == "success"
    lines = [p.status async for p in await client(anyone).pull(PUBLIC, stream=True)]
    assert lines == [f"pulling {PUBLIC}", "verifying sha256", "writing manifest", "success"]


@pytest.mark.parametrize("call", [lambda c: c.push("m"), lambda c: c.create("m", from_="x"), lambda c: c.copy("a", "b"), lambda c: c.delete("m")])
async def test_writes_to_a_model_store_are_refused_clearly(anyone: Running, call) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        await call(client(anyone))
    assert caught.value.status_code == 501
    assert "stores none" in caught.value.error


async def test_unknown_models_when_strict(start: Start) -> None:
    running = await start(MODEL_STRICT="1", NOVITA_API_KEY="sk_test_000000")
    with pytest.raises(ollama.ResponseError) as caught:
        await client(running).chat(model="nobody", messages=HELLO)
    assert (caught.value.status_code, caught.value.error) == (404, "model 'nobody' not found")


@pytest.mark.parametrize(("body", "text"), [
    (b"", "missing request body"), (b"{", "no valid JSON"), (b'{"messages": 5}', "`messages`"), (b'{"model": 5}', "`model`"),
    (b'{"messages":[{"role":"user","content":"x"}],"options":{"temperature":"hot"}}', 'option "temperature"'),
    (b'{"messages":[{"role":"user","content":"x"}],"keep_alive":"soon"}', "`keep_alive`"),
    (b'{"messages":[{"role":"user","content":"x","images":["%%%"]}]}', "`messages.0.images.0`"),
    (b'{"messages":[{"role":"user","content":"x"}],"format":7}', "`format`"),
    (b'{"messages":[{"role":"user","content":"x"}],"think":"very"}', "invalid think value"),
])
async def test_wrong_input_is_named_in_ollamas_shape(anyone: Running, body: bytes, text: str) -> None:
    import asyncio

    def ask() -> tuple[int, dict]:
        try:
            with urllib.request.urlopen(urllib.request.Request(anyone.base_url + "/api/chat", data=body, method="POST"), timeout=5) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as exc:
            return exc.code, json.loads(exc.read())

    status, value = await asyncio.to_thread(ask)
    assert status == 400
    assert text in value["error"]
    assert set(value) == {"error"}


async def test_a_cut_stream_ends_with_an_error_line(relay: Running, hosted: HostedApi) -> None:
    hosted.script(CutStream(after_events=3))
    with pytest.raises(ollama.ResponseError) as caught:
        [p async for p in await client(relay).chat(model="m", messages=HELLO, stream=True)]
    assert "broke off" in caught.value.error
