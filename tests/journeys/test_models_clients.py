"""Clients of models that run here: the official `openai` and `ollama` clients, clients that leave, passthrough."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import ollama
import openai
import pytest

from tests.journeys.llama_servers import HELLO
from tests.journeys.model_tables import Managed, ManagedAppliance, Stopwatch, runs, wrapper
from tests.journeys.running import until
from tests.tools.tiny_models import REPLY, REPLY_TOKENS

ENDLESS = 4000  # tokens: some seconds, so that a stream does not end before it is left


@pytest.fixture
async def appliance(managed: Managed) -> ManagedAppliance:
    return await managed("a", "b", "embed", max_concurrent_models=2)


@pytest.fixture
async def client(appliance: ManagedAppliance) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=appliance.running.v1, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def tags(appliance: ManagedAppliance) -> ollama.AsyncClient:
    return ollama.AsyncClient(host=appliance.running.base_url)


# ---- openai


async def test_openai_lists_asks_and_streams(client: openai.AsyncOpenAI, appliance: ManagedAppliance) -> None:
    assert {model.id async for model in client.models.list()} == {"a", "b", "embed"}
    for name in "ab":
        made = await client.chat.completions.create(model=name, messages=HELLO)
        assert (made.model, made.choices[0].message.content, made.choices[0].finish_reason) == (
            name,
            REPLY,
            "stop",
        )
        assert made.usage is not None
        assert made.usage.completion_tokens == REPLY_TOKENS
        stream = await client.chat.completions.create(
            model=name, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == REPLY
        assert {chunk.model for chunk in chunks} == {name}
        assert chunks[-1].usage is not None
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="c", messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert "a, b, embed" in str(caught.value)


async def test_openai_embeddings_are_one_batch_with_true_counts(
    client: openai.AsyncOpenAI, appliance: ManagedAppliance
) -> None:
    made = await client.embeddings.create(model="embed", input=["good morning", "good evening", "xyz"])
    assert [row.index for row in made.data] == [0, 1, 2]
    first, second, third = (row.embedding for row in made.data)
    assert len(first) == 64
    assert near(first, second) > near(first, third)
    assert made.usage.prompt_tokens == made.usage.total_tokens > 3
    assert appliance.manager.queues()[2].total_requests == 1  # asked as one
    one = await client.embeddings.create(model="embed", input="good morning")
    assert near(one.data[0].embedding, first) > 0.999


def near(one: list[float], other: list[float]) -> float:
    """The cosine of two."""
    lengths = [sum(x * x for x in vector) ** 0.5 for vector in (one, other)]
    return sum(x * y for x, y in zip(one, other, strict=True)) / (lengths[0] * lengths[1])


# ---- ollama


async def test_ollama_asks_lists_shows_and_unloads(
    tags: ollama.AsyncClient, appliance: ManagedAppliance
) -> None:
    assert [row.model for row in (await tags.list()).models] == ["a", "b", "embed"]
    assert (await tags.ps()).models == []
    assert (await tags.generate(model="a", prompt="", keep_alive="10m")).done_reason == "load"
    (row,) = (await tags.ps()).models
    assert (row.model, appliance.status("a")) == ("a", "ready")
    assert (row.size or 0) > 1 << 20
    assert row.expires_at is not None
    answer = await tags.chat(model="a", messages=HELLO)
    assert (answer.message.content, answer.done_reason, answer.eval_count) == (REPLY, "stop", REPLY_TOKENS)
    parts = [part async for part in await tags.chat(model="b", messages=HELLO, stream=True, keep_alive=-1)]
    assert "".join(part.message.content or "" for part in parts) == REPLY
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert {row.model for row in (await tags.ps()).models} == {"a", "b"}
    shown = await tags.show("a")
    assert shown.details is not None
    assert (shown.details.family, shown.details.format) == ("llama", "gguf")
    assert "<|im_start|>" in (shown.template or "")
    assert (shown.modelinfo or {})["llama.block_count"] == 2
    pid = appliance.pid("a")
    assert (await tags.generate(model="a", prompt="", keep_alive=0)).done_reason == "unload"
    assert not runs(pid)
    assert [row.model for row in (await tags.ps()).models] == ["b"]


async def test_ollama_embeds_many_at_once(tags: ollama.AsyncClient, appliance: ManagedAppliance) -> None:
    made = await tags.embed(model="embed", input=["one", "two", "three"])
    assert [len(row) for row in made.embeddings] == [64] * 3
    with pytest.raises(ollama.ResponseError, match="not found"):
        await tags.chat(model="nobody", messages=HELLO)


# ---- who leaves


async def test_client_that_leaves_a_stream_frees_its_slot(appliance: ManagedAppliance) -> None:
    assert await appliance.chat("a") == REPLY
    streams = [await appliance.start_stream("a", ENDLESS) for _ in range(2)]
    waiting = asyncio.create_task(appliance.chat("a"))
    assert await until(lambda: appliance.queue_length("a") == 1)
    for stream in streams:
        stream.cancel()
    assert await until(lambda: waiting.done(), seconds=1.0)
    assert waiting.result() == REPLY
    assert await appliance.is_free()
    assert await until(lambda: appliance.running.appliance.pipeline.in_flight == 0, seconds=1.0)
    watch = Stopwatch()
    while await working(appliance, "a"):
        assert watch.s < 1.0  # llama-server itself works no more
        await asyncio.sleep(0.02)
    assert appliance.manager.counts().loads == 1


async def working(appliance: ManagedAppliance, alias: str) -> int:
    """How many of its slots llama-server itself says to be working."""
    status, _, slots = await appliance.ask("", path=f"/slots?model={alias}", method="GET")
    assert (status, len(slots)) == (200, 2)
    return sum(slot["is_processing"] for slot in slots)


async def test_client_that_leaves_the_queue_affects_nobody(appliance: ManagedAppliance) -> None:
    streams = [await appliance.start_stream("a", 3000)]
    with appliance.paused("a"):
        streams.append(asyncio.create_task(appliance.stream("a", 100)))
        assert await until(lambda: appliance.active("a") == 2)
        leaves, stays = asyncio.create_task(appliance.chat("a")), asyncio.create_task(appliance.chat("a"))
        assert await until(lambda: appliance.queue_length("a") == 2)
        leaves.cancel()
        assert await until(lambda: appliance.queue_length("a") == 1, seconds=1.0)
    assert await stays == REPLY
    assert all(result.is_whole for result in await asyncio.gather(*streams))
    assert await appliance.is_free()


async def test_client_that_leaves_a_load_leaves_it_to_the_next(
    managed: Managed, tmp_path: Path, llama_binary: str
) -> None:
    appliance = await managed("a", binary=wrapper(tmp_path, llama_binary, "sleep 0.8"))
    clients = [
        asyncio.create_task(appliance.chat("a")),
        asyncio.create_task(appliance.stream("a")),
        asyncio.create_task(appliance.ask("a", path="/api/generate", prompt="", stream=False)),
    ]
    assert await until(lambda: appliance.status("a") == "starting" and appliance.queue_length("a") == 3)
    for one in clients:
        one.cancel()
    assert await until(lambda: appliance.queue_length("a") == 0, seconds=0.5)
    assert appliance.status("a") == "starting"
    assert await until(lambda: appliance.running.appliance.pipeline.in_flight == 0, seconds=0.5)
    assert await appliance.chat("a") == REPLY
    assert appliance.manager.counts().loads == 1  # what had begun was used


async def test_a_hundred_clients_that_come_and_go_leave_nothing_behind(appliance: ManagedAppliance) -> None:
    """Half of them leave, at every stage: in line, while it loads, while it streams."""

    async def one(number: int) -> str:
        asked = asyncio.create_task(appliance.stream("ab"[number % 2], 30 + number))
        if number % 4 < 2:
            return (await asked).end
        await asyncio.wait({asked}, timeout=0.01 * (number % 50))
        return "left" if asked.cancel() else asked.result().end

    ends = await asyncio.gather(*(one(number) for number in range(100)))
    assert set(ends) == {"done", "left"}
    assert ends.count("done") >= 50
    assert await appliance.is_free()
    assert await until(lambda: appliance.running.appliance.pipeline.in_flight == 0, seconds=1.0)
    queues = appliance.manager.queues()
    assert sum(queue.total_rejected for queue in queues) == 0
    assert [await appliance.chat(alias) for alias in "ab"] == [REPLY] * 2


# ---- passage


async def test_passage_reaches_the_model_that_is_named(appliance: ManagedAppliance) -> None:
    status, headers, value = await appliance.ask("a", path="/tokenize", content="Every question")
    assert status == 200, value
    assert len(value["tokens"]) == 2  # its own words: one token each
    assert appliance.statuses() == {"a": "ready", "b": "off", "embed": "off"}
    assert headers["x-appliance-receipt"]
    status, _, value = await appliance.ask("embed", path="/tokenize", content="Every question")
    assert (status, len(value["tokens"]) > 10) == (200, True)  # of this one each sign is a token
    status, _, value = await appliance.ask("", path="/props?model=b", method="GET")
    assert (status, value["model_alias"]) == (200, "b")
    assert value["total_slots"] == 2
    assert await appliance.is_free()


async def test_passthrough_without_a_model_reaches_the_default_one(managed: Managed) -> None:
    """The first of the alphabet gives only embeddings."""
    appliance = await managed("embed", "talk")
    async with aiohttp.ClientSession(appliance.running.base_url) as session:
        async with session.post("/completion", json={"prompt": "x", "n_predict": 2}) as response:
            assert (response.status, (await response.json())["tokens_predicted"]) == (200, 2)
        async with session.post("/tokenize", json={"content": "Every question"}) as response:
            assert (response.status, len((await response.json())["tokens"])) == (200, 2)
    assert appliance.statuses() == {"embed": "off", "talk": "ready"}


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/favicon.ico", 404, None),
        ("HEAD", "/nowhere", 404, None),
        ("POST", "/nowhere", 404, None),
        ("OPTIONS", "/nowhere", 404, None),
        ("GET", "/v1/nowhere", 404, None),
        ("GET", "/v1/chat/completions", 405, "OPTIONS, POST"),
        ("HEAD", "/v1/chat/completions", 405, "OPTIONS, POST"),
        ("DELETE", "/v1/models/a", 405, "GET, HEAD, OPTIONS"),
        ("POST", "/vram", 405, "GET, HEAD, OPTIONS"),
        ("HEAD", "/v1/models/a", 200, None),
        ("HEAD", "/vram", 200, None),
        ("HEAD", "/metrics/stream", 200, None),
        ("HEAD", "/v1/models/status/stream", 200, None),
        ("OPTIONS", "/v1/models/status/stream", 204, "GET, HEAD, OPTIONS"),
        ("OPTIONS", "/v1/chat/completions", 204, "OPTIONS, POST"),
        ("OPTIONS", "/completion", 204, "OPTIONS, POST"),
        ("OPTIONS", "/props", 204, "GET, HEAD, OPTIONS"),
    ],
)
async def test_an_address_that_is_none_of_several_models_is_said_so(
    appliance: ManagedAppliance, method: str, path: str, status: int, allow: str | None
) -> None:
    async with (
        aiohttp.ClientSession(appliance.running.base_url) as session,
        session.request(method, path, timeout=aiohttp.ClientTimeout(5)) as response,
    ):
        body = await response.read()
        assert (response.status, response.headers.get("Allow")) == (status, allow)
        assert bool(body) == (method not in {"HEAD", "OPTIONS"} or (method, status) == ("OPTIONS", 404))
    assert set(appliance.statuses().values()) == {"off"}


async def test_passthrough_of_an_unknown_model_is_refused(appliance: ManagedAppliance) -> None:
    status, _, value = await appliance.ask("nobody", path="/completion", prompt="x")
    assert (status, value["error"]["code"]) == (404, "model_not_found")


async def test_a_stream_by_passage_holds_its_slot(appliance: ManagedAppliance) -> None:
    """/completion is llama-server's own; a swap must not cut it off."""
    async with appliance.session.post(
        appliance.running.base_url + "/completion",
        json={"model": "a", "prompt": "x", "n_predict": 800, "ignore_eos": True, "stream": True},
    ) as response:
        assert response.status == 200
        await response.content.readline()
        assert appliance.active("a") == 1
        assert await appliance.chat("b") == REPLY
        waiting = asyncio.create_task(appliance.ask("embed", path="/v1/embeddings", input=["x"]))
        lines = [line async for line in response.content if line.startswith(b"data: ")]
    assert json.loads(lines[-1][6:])["stop"] is True
    assert (await waiting)[0] == 200
    assert await appliance.is_free()
