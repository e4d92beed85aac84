"""The official `ollama` client against the whole appliance."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import httpx
import ollama
import pytest

from tests.fakes.engine_server import EngineServer
from tests.fakes.hosted_api import (
    KEY,
    CutStream,
    ErrorEvent,
    Hang,
    HostedApi,
    OddStream,
    OnePiece,
    Slow,
    Stall,
    Status,
)
from tests.fakes.mirror import QUICK
from tests.journeys.running import Running, Start, until

HELLO = [{"role": "user", "content": "Hello"}]
PUBLIC = "meta-llama/llama-3.2-3b-instruct/fp-16-fast-vllm-1"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def client(running: Running) -> ollama.AsyncClient:
    return ollama.AsyncClient(host=running.base_url)


async def parts_of(call: Awaitable[Any]) -> list[Any]:
    """Give all parts of an answer, streamed or in one piece."""
    answer = await call
    return [part async for part in answer] if isinstance(answer, AsyncIterator) else [answer]


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
    parts = [
        p
        async for p in await client(anyone).generate(
            model="m", prompt="Hello", system="Be short", stream=True
        )
    ]
    assert "".join(p.response for p in parts) == one.response != ""


async def test_an_empty_prompt_only_loads(anyone: Running) -> None:
    assert (await client(anyone).generate(model="m", prompt="")).done_reason == "load"
    assert (await client(anyone).generate(model="m", prompt="", keep_alive=0)).done_reason == "unload"


async def test_options_format_think_and_images_go_up(relay: Running, hosted: HostedApi) -> None:
    await client(relay).chat(
        model="m",
        messages=[{"role": "user", "content": "What is it?", "images": [PIXEL]}],
        format="json",
        think="low",
        options={"temperature": 0.1, "num_predict": 9, "stop": ["X"], "num_ctx": 4096, "seed": 3},
    )
    sent = hosted.records[-1].body
    assert (sent["temperature"], sent["max_tokens"], sent["stop"], sent["seed"]) == (0.1, 9, ["X"], 3)
    assert sent["response_format"] == {"type": "json_object"}
    assert sent["reasoning_effort"] == "low"
    assert sent["messages"][0]["content"][1]["image_url"]["url"] == f"data:image/png;base64,{PIXEL}"
    assert "num_ctx" not in sent


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_calls_come_whole_with_object_arguments(
    relay: Running, hosted: HostedApi, stream: bool
) -> None:
    tools = [
        {
            "type": "function",
            "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
        }
    ]
    answer = await client(relay).chat(model="m", messages=HELLO, tools=tools, stream=stream)
    parts = [p async for p in answer] if stream else [answer]
    calls = [c for p in parts for c in p.message.tool_calls or []]
    assert [(c.function.name, dict(c.function.arguments)) for c in calls] == [
        ("weather", {"city": "Paris", "n": 0})
    ]


async def test_thinking_is_shown_apart_and_can_be_hidden(relay: Running, hosted: HostedApi) -> None:
    hosted.reasoning = "let me see"
    assert (await client(relay).chat(model="m", messages=HELLO, think=True)).message.thinking == "let me see"
    assert (await client(relay).chat(model="m", messages=HELLO, think=False)).message.thinking is None


async def test_embeddings_have_length_one(anyone: Running) -> None:
    answer = await client(anyone).embed(model="m", input=["one", "two words"])
    assert [pytest.approx(1.0) for _ in answer.embeddings] == [
        sum(x * x for x in v) for v in answer.embeddings
    ]
    assert len((await client(anyone).embeddings(model="m", prompt="one")).embedding) > 0


async def test_list_show_ps_and_pull(anyone: Running) -> None:
    assert [m.model for m in (await client(anyone).list()).models] == [PUBLIC]
    assert (await client(anyone).show(PUBLIC)).details.format == "remote"
    assert [m.model for m in (await client(anyone).ps()).models] == [PUBLIC]
    assert (await client(anyone).pull(PUBLIC)).status == "success"
    lines = [p.status async for p in await client(anyone).pull(PUBLIC, stream=True)]
    assert lines == [f"pulling {PUBLIC}", "verifying sha256", "writing manifest", "success"]


@pytest.mark.parametrize(
    "call", [lambda c: c.push("m"), lambda c: c.create("m", from_="x"), lambda c: c.copy("a", "b")]
)
async def test_writes_to_a_model_store_are_refused_clearly(anyone: Running, call) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        await call(client(anyone))
    assert caught.value.status_code == 501
    assert "models cannot be created" in caught.value.error


async def test_what_was_not_pulled_cannot_be_deleted(anyone: Running) -> None:
    with pytest.raises(ollama.ResponseError, match="model 'm' not found") as caught:
        await client(anyone).delete("m")
    assert caught.value.status_code == 404


async def test_unknown_models_when_strict(start: Start) -> None:
    running = await start(MODEL_STRICT="1", NOVITA_API_KEY="sk_test_000000")
    with pytest.raises(ollama.ResponseError) as caught:
        await client(running).chat(model="nobody", messages=HELLO)
    assert (caught.value.status_code, caught.value.error) == (404, "model 'nobody' not found")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "missing request body"),
        (b"{", "not valid JSON"),
        (b'{"messages": 5}', "`messages`"),
        (b'{"model": 5}', "`model`"),
        (
            b'{"messages":[{"role":"user","content":"x"}],"options":{"temperature":"hot"}}',
            'option "temperature"',
        ),
        (b'{"messages":[{"role":"user","content":"x"}],"keep_alive":"soon"}', "`keep_alive`"),
        (b'{"messages":[{"role":"user","content":"x","images":["%%%"]}]}', "`messages.0.images.0`"),
        (b'{"messages":[{"role":"user","content":"x"}],"format":7}', "`format`"),
        (b'{"messages":[{"role":"user","content":"x"}],"think":"very"}', "invalid think value"),
    ],
)
async def test_wrong_input_is_named_in_ollamas_shape(anyone: Running, body: bytes, text: str) -> None:
    def ask() -> tuple[int, dict]:
        try:
            request = urllib.request.Request(anyone.base_url + "/api/chat", data=body, method="POST")
            with urllib.request.urlopen(request, timeout=5) as answer:
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


@pytest.mark.parametrize("how", [ErrorEvent(), CutStream(after_events=1)])
async def test_a_stream_that_fails_before_any_text_has_a_real_status(
    start: Start, hosted: HostedApi, how: object
) -> None:
    running = await start(NOVITA_API_KEY=KEY, NOVITA_OPENAI_ENDPOINTS=hosted.base_url)
    hosted.reply = "" if isinstance(how, ErrorEvent) else hosted.reply  # no text before the third event
    hosted.script(how)
    with pytest.raises(ollama.ResponseError) as caught:
        [p async for p in await client(running).chat(model="m", messages=HELLO, stream=True)]
    assert caught.value.status_code == 502


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 403, 422])
async def test_the_engines_refusals_keep_their_status_and_sentence(
    relay: Running, hosted: HostedApi, status: int, stream: bool
) -> None:
    hosted.script(Status(status))
    with pytest.raises(ollama.ResponseError) as caught:
        await parts_of(client(relay).chat(model="m", messages=HELLO, stream=stream))
    assert (caught.value.status_code, caught.value.error) == (status, f"stand-in answers {status}")


async def test_a_failing_engine_is_a_502_that_names_its_attempts(relay: Running, hosted: HostedApi) -> None:
    hosted.script(Status(500))
    async with httpx.AsyncClient(base_url=relay.base_url) as http:
        answer = await http.post("/api/generate", json={"model": "m", "prompt": "Hello"})
    assert answer.status_code == 502
    assert answer.json()["error"].startswith("novita_upstream_error")
    assert [attempt["status"] for attempt in answer.json()["attempts"]] == [500]
    assert KEY not in answer.text


async def test_text_is_streamed_and_leaving_ends_it(relay: Running, hosted: HostedApi) -> None:
    hosted.script(Stall(after_events=3))
    async with (
        httpx.AsyncClient(base_url=relay.base_url) as http,
        http.stream("POST", "/api/chat", json={"model": "m", "messages": HELLO}, timeout=10) as answer,
    ):
        assert answer.headers["content-type"] == "application/x-ndjson"
        first = json.loads(await anext(answer.aiter_lines()))
        assert hosted.reply.startswith(first["message"]["content"])
        assert (first["done"], hosted.records[-1].is_complete) == (False, False)
    assert await until(lambda: hosted.records[-1].left_after_s is not None)


@pytest.mark.parametrize(("how", "stream"), [(Hang(), False), (Hang(), True), (Stall(after_events=1), True)])
async def test_leaving_before_the_first_text_ends_the_upstream_call(
    relay: Running, hosted: HostedApi, how: object, stream: bool
) -> None:
    hosted.script(how)
    task = asyncio.get_running_loop().create_task(
        parts_of(client(relay).chat(model="m", messages=HELLO, stream=stream))
    )
    assert await until(lambda: bool(hosted.records))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await until(lambda: hosted.records[-1].left_after_s is not None)


@pytest.mark.parametrize("how", [OnePiece(), OddStream()])
async def test_odd_streams_say_the_same(relay: Running, hosted: HostedApi, how: object) -> None:
    hosted.script(how)
    parts = [p async for p in await client(relay).chat(model="m", messages=HELLO, stream=True)]
    assert "".join(p.message.content for p in parts) == hosted.reply
    assert (parts[-1].prompt_eval_count, parts[-1].eval_count) == (11, 7)


async def test_simulated_streams_are_told_line_by_line(start: Start, hosted: HostedApi) -> None:
    running = await start(
        NOVITA_API_KEY=KEY,
        NOVITA_OPENAI_ENDPOINTS=hosted.base_url,
        UPSTREAM_STREAMING="simulate",
        STREAM_CHUNK_SIZE="5",
        STREAM_DELAY_MS="0",
    )
    parts = [p async for p in await client(running).chat(model="m", messages=HELLO, stream=True)]
    assert "".join(p.message.content for p in parts) == hosted.reply
    assert len(parts) > 4
    assert "stream" not in hosted.records[-1].body


async def test_a_tools_result_goes_back_to_its_call(relay: Running, hosted: HostedApi) -> None:
    def weather(city: str) -> str:
        """Tell the weather.

        Args:
            city: where
        """
        return f"sunny in {city}"

    asked = await client(relay).chat(model="m", messages=HELLO, tools=[weather])
    [call] = asked.message.tool_calls
    await client(relay).chat(
        model="m",
        messages=[
            *HELLO,
            asked.message,
            {
                "role": "tool",
                "content": weather(call.function.arguments["city"]),
                "tool_name": call.function.name,
            },
        ],
    )
    assistant, tool = hosted.records[-1].body["messages"][1:]
    assert json.loads(assistant["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris", "n": 0}
    assert tool["tool_call_id"] == assistant["tool_calls"][0]["id"]
    assert tool["content"] == "sunny in Paris"
    assert hosted.records[-2].body["tools"][0]["function"]["name"] == "weather"


@pytest.mark.parametrize("stream", [False, True])
async def test_generate_goes_on_from_its_context(relay: Running, hosted: HostedApi, stream: bool) -> None:
    last = (await parts_of(client(relay).generate(model="m", prompt="One?", stream=stream)))[-1]
    await client(relay).generate(model="m", prompt="Two?", context=last.context)
    assert hosted.records[-1].body["messages"] == [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": hosted.reply},
        {"role": "user", "content": "Two?"},
    ]


async def test_raw_and_suffix_are_completions(relay: Running, hosted: HostedApi) -> None:
    assert (await client(relay).generate(model="m", prompt="[INST] x", raw=True)).response == hosted.reply
    assert hosted.records[-1].path.endswith("/v1/completions")
    assert hosted.records[-1].body["prompt"] == "[INST] x"
    parts = [
        p
        async for p in await client(relay).generate(
            model="m", prompt="def f():", suffix="return 1", stream=True
        )
    ]
    assert "".join(p.response for p in parts) == hosted.reply
    assert hosted.records[-1].body["suffix"] == "return 1"


async def test_log_probabilities_come_along(relay: Running) -> None:
    answer = await client(relay).chat(model="m", messages=HELLO, logprobs=True, top_logprobs=2)
    assert answer.logprobs[0].logprob == -0.1


async def test_images_as_bytes_are_told_by_their_kind(relay: Running, hosted: HostedApi) -> None:
    await client(relay).generate(model="m", prompt="What?", images=[b"\xff\xd8\xff\xe0 not a whole picture"])
    assert (
        hosted.records[-1]
        .body["messages"][0]["content"][1]["image_url"]["url"]
        .startswith("data:image/jpeg;base64,")
    )


async def test_the_demo_engine_thinks_and_speaks_unicode(start: Start) -> None:
    running = await start()
    parts = [p async for p in await client(running).generate(model="m", prompt="demo: think", stream=True)]
    assert "".join(p.thinking or "" for p in parts).startswith("[demo engine]")
    parts = [p async for p in await client(running).generate(model="m", prompt="demo: unicode", stream=True)]
    assert "👩‍👩‍👧‍👦 family" in "".join(p.response for p in parts)
    assert (await client(running).chat(model="m", messages=HELLO, format="json")).message.content.startswith(
        "{"
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_provoked_errors_have_their_status(start: Start, stream: bool) -> None:
    running = await start()
    with pytest.raises(ollama.ResponseError) as caught:
        await parts_of(client(running).generate(model="m", prompt="demo: error 429", stream=stream))
    assert caught.value.status_code == 429


async def test_the_blocking_client_works_too(anyone: Running) -> None:
    def talk() -> tuple[str, str]:
        blocking = ollama.Client(host=anyone.base_url)
        parts = blocking.chat(model="m", messages=HELLO, stream=True)
        return blocking.chat(model="m", messages=HELLO).message.content, "".join(
            p.message.content for p in parts
        )

    one, streamed = await asyncio.to_thread(talk)
    assert one == streamed != ""


async def test_heads_wrong_methods_and_unknown_addresses(anyone: Running) -> None:
    async with httpx.AsyncClient(base_url=anyone.base_url) as http:
        for path in ("/", "/api/version", "/api/tags"):
            assert [(await http.head(path)).status_code, (await http.head(path)).content] == [200, b""], path
        assert (await http.get("/")).text == "Ollama is running"
        assert (await http.get("/api/version")).json()["version"].count(".") == 2
        wrong = await http.get("/api/chat")
        assert (wrong.status_code, wrong.headers["allow"], list(wrong.json())) == (
            405,
            "OPTIONS, POST",
            ["error"],
        )
        unknown = await http.get("/api/nowhere")
        assert (unknown.status_code, isinstance(unknown.json()["error"], str)) == (404, True)
        blob = await http.post("/api/blobs/sha256:" + "0" * 64, content=b"x")
        assert (blob.status_code, (await http.head("/api/blobs/sha256:" + "0" * 64)).status_code) == (
            501,
            501,
        )


async def test_tags_hold_system_as_fields_and_ollamas(relay: Running) -> None:
    async with httpx.AsyncClient(base_url=relay.base_url) as http:
        [model] = (await http.get("/api/tags")).json()["models"]
    assert {
        "name",
        "upstream",
        "aliases",
        "model",
        "modified_at",
        "size",
        "digest",
        "details",
        "capabilities",
    } <= set(model)
    assert (model["name"], model["upstream"]) == (PUBLIC, "meta-llama/llama-3.2-3b-instruct")
    assert "metallamallama3.23binstruct" not in model["aliases"]
    assert "metallamallama323binstruct" in model["aliases"]


async def test_keys_are_asked_for_in_ollamas_shape(start: Start) -> None:
    running = await start(APPLIANCE_API_KEYS="a-long-client-key")
    with pytest.raises(ollama.ResponseError) as caught:
        await client(running).chat(model="m", messages=HELLO)
    assert caught.value.status_code == 401
    keyed = ollama.AsyncClient(host=running.base_url, headers={"authorization": "Bearer a-long-client-key"})
    assert (await keyed.chat(model="m", messages=HELLO)).done
    async with httpx.AsyncClient(base_url=running.base_url) as http:
        assert (await http.get("/")).status_code == 200
        assert isinstance((await http.get("/api/tags")).json()["error"], str)


async def test_show_and_pull_of_unknown_models_when_strict(start: Start) -> None:
    running = await start(MODEL_STRICT="1", NOVITA_API_KEY="sk_test_000000")
    for call in (client(running).show("nobody"), client(running).pull("nobody")):
        with pytest.raises(ollama.ResponseError) as caught:
            await call
        assert (caught.value.status_code, caught.value.error) == (404, "model 'nobody' not found")
    assert (await client(running).show("llama-3.2-3b-instruct:latest")).modelinfo["general.name"] == PUBLIC


async def test_waiting_streams_get_spaces_that_no_client_minds(start: Start, hosted: HostedApi) -> None:
    running = await start(NOVITA_API_KEY=KEY, NOVITA_OPENAI_ENDPOINTS=hosted.base_url, HEARTBEAT_S="0.2")
    hosted.script(Slow(0.7), Slow(0.7))
    ask = {"model": "m", "messages": HELLO}
    async with (
        httpx.AsyncClient(base_url=running.base_url) as http,
        http.stream("POST", "/api/chat", json=ask, timeout=10) as answer,
    ):
        text = "".join([piece async for piece in answer.aiter_text()])
    first, *rest = text.splitlines()
    assert len(first) - len(first.lstrip(" ")) >= 2
    assert all(json.loads(one)["model"] for one in [first, *rest])
    parts = [p async for p in await client(running).chat(**ask, stream=True)]
    assert "".join(p.message.content for p in parts) == hosted.reply
    assert parts[-1].done


async def test_what_fails_late_is_told_inside_the_stream(start: Start, hosted: HostedApi) -> None:
    running = await start(
        NOVITA_API_KEY=KEY,
        NOVITA_OPENAI_ENDPOINTS=hosted.base_url,
        HEARTBEAT_S="0.1",
        UPSTREAM_TOTAL_TIMEOUT_S="0.5",
    )
    hosted.script(Hang())
    with pytest.raises(ollama.ResponseError) as caught:
        await parts_of(client(running).chat(model="m", messages=HELLO, stream=True))
    assert caught.value.status_code == -1  # that of a line in a stream that began well
    assert "0.5" in caught.value.error


async def test_leaving_between_heartbeats_ends_the_upstream_call(start: Start, hosted: HostedApi) -> None:
    running = await start(NOVITA_API_KEY=KEY, NOVITA_OPENAI_ENDPOINTS=hosted.base_url, HEARTBEAT_S="0.1")
    hosted.script(Hang())
    async with (
        httpx.AsyncClient(base_url=running.base_url) as http,
        http.stream("POST", "/api/chat", json={"model": "m", "messages": HELLO}, timeout=10) as answer,
    ):
        assert await anext(answer.aiter_bytes()) == b" "
    assert await until(lambda: hosted.records[-1].left_after_s is not None)


@pytest.mark.parametrize(
    ("kind", "sent", "ignored"),
    [
        ("llamacpp", {"repeat_penalty": 1.2, "repeat_last_n": 32, "top_k": 5}, "num_gpu"),
        ("vllm", {"repetition_penalty": 1.2, "top_k": 5}, "num_gpu, repeat_last_n"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_options_reach_each_engine_in_its_own_spelling(
    start: Start, kind: str, sent: dict[str, Any], ignored: str, is_stream: bool
) -> None:
    options = {"repeat_penalty": 1.2, "repeat_last_n": 32, "top_k": 5, "num_gpu": 1, "num_ctx": 512}
    async with EngineServer(kind) as engine:
        running = await start(BACKENDS=engine.url, **QUICK)
        call = client(running).chat(
            model="tiny", messages=HELLO, options=options, think=False, stream=is_stream
        )
        assert (await parts_of(call))[-1].done
        async with httpx.AsyncClient(base_url=running.base_url) as http:
            body = {"model": "tiny", "messages": HELLO, "options": options, "stream": is_stream}
            response = await http.post("/api/chat", json=body)
    first = engine.asked[0]
    assert first["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}
    spelled = {name: value for name, value in first.items() if "repe" in name or name == "top_k"}
    assert (spelled, response.headers["x-appliance-ignored"]) == (sent, ignored)
