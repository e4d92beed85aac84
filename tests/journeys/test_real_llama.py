"""Two or more real llama-server processes behind the appliance.

Shared out, killed, stopped, restarted, drained, filled, left.
"""

import asyncio
import json
import time
from collections import Counter
from typing import Any

import aiohttp
import grpc
import openai
import pytest

from appliance.control.v1 import control_pb2 as pb
from appliance.control.v1 import control_pb2_grpc
from tests.journeys.llama_servers import HELLO, Llama, LlamaServer, long_body
from tests.journeys.running import Running, until
from tests.journeys.test_backends import ask, backend
from tests.tools.tiny_models import LORA_REPLY, REPLY

QUICK = {"METRICS_CACHE_TTL_SECONDS": "0.5", "SLOW_START_S": "0", "BACKEND_STARTUP_GRACE_S": "0"}


def behind(*servers: LlamaServer, **variables: str) -> dict[str, str]:
    return (
        QUICK
        | {"BACKENDS": ",".join(f"{chr(97 + n)}={server.url}" for n, server in enumerate(servers))}
        | variables
    )


def content(value: Any) -> str:
    return value["choices"][0]["message"]["content"]


async def streamed(session: aiohttp.ClientSession, running: Running, body: dict[str, Any]) -> tuple[str, str]:
    """Ask for a stream; give (how it ended: done | error | cut | status_N, the text)."""
    text, end = "", "cut"
    try:
        async with session.post(running.v1 + "/chat/completions", json=body | {"stream": True}) as response:
            if response.status != 200:
                return f"status_{response.status}", await response.text()
            async for line in response.content:
                if line == b"data: [DONE]\n":
                    end = "done"
                elif line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        return "error", text
                    text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
    except aiohttp.ClientError:
        pass
    return end, text


async def idle(*servers: LlamaServer) -> bool:
    """Whether all slots come free within a second."""
    ends_s = time.monotonic() + 1.0
    while time.monotonic() < ends_s:
        if not any([await asyncio.to_thread(server.busy) for server in servers]):
            return True
        await asyncio.sleep(0.02)
    return False


async def busy(server: LlamaServer) -> bool:
    for _ in range(250):
        if await asyncio.to_thread(server.busy):
            return True
        await asyncio.sleep(0.02)
    return False


async def test_requests_are_spread_and_each_is_really_answered(start, llama: Llama) -> None:
    servers = [await llama() for _ in range(3)]
    running = await start(**behind(*servers))
    answers = await asyncio.gather(*(ask(running) for _ in range(60)))
    assert {(status, content(value)) for status, _, value in answers} == {(200, REPLY)}
    shares = Counter(backend(headers) for _, headers, _ in answers)
    assert min(shares.values()) >= 12
    health = (await ask(running, path="/health", method="GET"))[2]
    assert (health["status"], health["total_backends"]) == ("ok", 3)
    assert {state.kind for state in running.appliance.router.states()} == {"llamacpp"}


async def test_servers_for_embeddings_and_scores_are_no_default(start, llama: Llama) -> None:
    """They list their models as any other; what they are for is seen by an empty request."""
    running = await start(
        **behind(
            await llama(embeddings=True, alias="embed"),
            await llama(rerank=True, alias="rerank"),
            await llama(),
        )
    )
    async with aiohttp.ClientSession(running.base_url) as session:
        async with session.get("/v1/models") as response:
            assert [row["id"] for row in (await response.json())["data"]] == ["tiny", "embed", "rerank"]
        async with session.post("/v1/chat/completions", json={"messages": HELLO}) as response:
            assert (response.status, content(await response.json())) == (200, REPLY)
        for _ in range(4):
            async with session.post("/completion", json={"prompt": "x", "n_predict": 1}) as response:
                assert (response.status, backend(response.headers)) == (200, "c")
        async with session.post("/v1/embeddings", json={"model": "embed", "input": "x"}) as response:
            assert response.status == 200


async def test_ollamas_options_are_taken_as_they_are_spelled_here(start, llama: Llama) -> None:
    """llama-server names in its reply to /completion what it took; of a chat it refuses what it cannot read."""
    server = await llama()
    running = await start(**behind(server))
    options = {"repeat_penalty": 1.3, "repeat_last_n": 17, "typical_p": 0.75, "mirostat": 2, "num_predict": 4}
    async with aiohttp.ClientSession() as session:
        for think in (False, True, "low"):
            body = {"messages": HELLO, "options": options, "think": think, "stream": False}
            async with session.post(running.base_url + "/api/chat", json=body) as response:
                assert (response.status, response.headers.get("x-appliance-ignored")) == (200, None)
        async with session.get(server.url + "/slots") as response:
            [taken, *_] = [slot["params"] for slot in await response.json() if "params" in slot]
    seen = {name: round(taken[name], 3) for name in options if name in taken}
    assert (
        seen.items() >= {"repeat_penalty": 1.3, "repeat_last_n": 17, "typical_p": 0.75, "mirostat": 2}.items()
    )


@pytest.mark.timeout(180)
async def test_a_server_killed_under_load_costs_no_request(start, llama: Llama) -> None:
    """Each one completes or ends with an error event; none hangs; those that come after succeed at once."""
    servers = [await llama(slots=4) for _ in range(3)]
    running = await start(**behind(*servers, QUEUE_LIMIT="500"))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def one(number: int) -> tuple[str, str]:
            body = long_body(40 + number % 60) if number % 2 else {"model": "tiny", "messages": HELLO}
            if number % 4 < 2:
                return await streamed(session, running, body)
            async with session.post(
                running.v1 + "/chat/completions", json=body | {"stream": False}
            ) as response:
                value = await response.json()
                return (
                    ("done", content(value))
                    if response.status == 200
                    else (f"status_{response.status}", str(value))
                )

        tasks = [asyncio.create_task(one(number)) for number in range(200)]
        while sum(task.done() for task in tasks) < 50:
            await asyncio.sleep(0.002)
        in_flight = running.appliance.router.state("a").in_flight
        servers[0].kill9()
        after = await asyncio.gather(
            *(streamed(session, running, {"model": "tiny", "messages": HELLO}) for _ in range(4))
        )
        ends = await asyncio.wait_for(asyncio.gather(*tasks), 90)
    counts = Counter(end for end, _ in ends)
    assert set(counts) <= {"done", "error"}
    assert counts["error"] <= in_flight  # only what had begun to answer there
    assert all(text.startswith(REPLY) for end, text in ends if end == "done")
    assert after == [("done", REPLY)] * 4
    assert running.appliance.pipeline.in_flight == 0
    errors = [
        receipt for receipt in running.appliance.receipts.latest(1000) if receipt.finish_label == "cut_off"
    ]
    assert len(errors) == counts["error"]
    assert {receipt.backend for receipt in errors} <= {"a"}


async def test_a_server_comes_back_after_a_restart(start, llama: Llama) -> None:
    servers = [await llama(), await llama()]
    running = await start(**behind(*servers))
    servers[0].kill9()
    answers = [await ask(running) for _ in range(6)]
    assert {(status, backend(headers)) for status, headers, _ in answers} == {(200, "b")}
    assert (await ask(running, path="/health", method="GET"))[2]["status"] == "degraded"
    await servers[0].restart()
    assert await until(lambda: running.appliance.router.state("a").standing == "ready", seconds=10)
    answers = [await ask(running) for _ in range(10)]
    assert {backend(headers) for _, headers, _ in answers} == {"a", "b"}
    assert {content(value) for _, _, value in answers} == {REPLY}


async def test_a_server_that_hangs_loses_its_requests_and_comes_back(start, llama: Llama) -> None:
    """Stopped by a signal: its connections stay open, and nothing comes any more."""
    servers = [await llama(), await llama()]
    running = await start(**behind(*servers, METRICS_CACHE_TTL_SECONDS="0.3"))
    await ask(running)
    servers[0].pause()
    try:
        began_s = time.monotonic()
        answers = await asyncio.wait_for(asyncio.gather(*(ask(running) for _ in range(12))), 60)
        assert {(status, content(value)) for status, _, value in answers} == {(200, REPLY)}
        assert time.monotonic() - began_s < 60  # not BACKEND_TIMEOUT_SECONDS
        assert running.appliance.router.state("a").standing != "ready"
    finally:
        servers[0].resume()
    assert await until(lambda: running.appliance.router.state("a").standing == "ready", seconds=15)


async def test_a_drained_server_finishes_and_gets_no_more(start, llama: Llama) -> None:
    servers = [await llama(), await llama()]
    running = await start(**behind(*servers))
    async with (
        aiohttp.ClientSession() as session,
        grpc.aio.insecure_channel(running.control_address) as channel,
    ):
        stub = control_pb2_grpc.ControlStub(channel)
        under_way = [asyncio.create_task(streamed(session, running, long_body(800))) for _ in range(4)]
        assert await until(
            lambda: [running.appliance.router.state(name).in_flight for name in "ab"] == [2, 2]
        )
        await stub.DrainBackend(pb.DrainBackendRequest(name="a"))
        others = await asyncio.gather(*(ask(running) for _ in range(6)))
        assert {backend(headers) for _, headers, _ in others} == {"b"}
        assert [end for end, _ in await asyncio.gather(*under_way)] == ["done"] * 4
        await stub.DrainBackend(pb.DrainBackendRequest(name="a", resume=True))
        assert {
            backend(headers) for _, headers, _ in await asyncio.gather(*(ask(running) for _ in range(8)))
        } == {"a", "b"}


async def test_full_slots_make_requests_wait_in_the_queue(start, llama: Llama) -> None:
    servers = [await llama(slots=1), await llama(slots=1)]
    running = await start(**behind(*servers, QUEUE_LIMIT="2"))
    async with aiohttp.ClientSession() as session:
        under_way = [asyncio.create_task(streamed(session, running, long_body(2000))) for _ in range(2)]
        assert await until(
            lambda: [running.appliance.router.state(name).in_flight for name in "ab"] == [1, 1]
        )
        waiting = [asyncio.create_task(ask(running)) for _ in range(2)]
        assert await until(lambda: running.appliance.router.dispatcher.waiting == 2)
        status, headers, value = await ask(running)
        assert (status, value["error"]["code"], int(headers["Retry-After"]) >= 1) == (429, "queue_full", True)
        deferred = [await asyncio.to_thread(server.get, "/slots") for server in servers]
        assert [len(slots) for slots in deferred] == [1, 1]
        assert [status for status, _, _ in await asyncio.gather(*waiting)] == [200, 200]
        assert [end for end, _ in await asyncio.gather(*under_way)] == ["done", "done"]


LONG = 100_000  # tokens: more than fit, and so until the context is full
LEAVERS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": HELLO, "max_tokens": LONG, "stream": True}),
    ("/v1/chat/completions", {"messages": HELLO, "max_tokens": LONG}),
    ("/v1/completions", {"prompt": "x", "max_tokens": LONG, "stream": True}),
    ("/v1/completions", {"prompt": "x", "max_tokens": LONG}),
    ("/v1/responses", {"input": "hello", "stream": True}),
    ("/v1/responses", {"input": "hello"}),
    ("/api/chat", {"messages": HELLO, "options": {"num_predict": LONG}}),
    ("/api/chat", {"messages": HELLO, "stream": False, "options": {"num_predict": LONG}}),
    ("/api/generate", {"prompt": "x", "options": {"num_predict": LONG}}),
    ("/api/generate", {"prompt": "x", "stream": False, "options": {"num_predict": LONG}}),
    ("/completion", {"prompt": "x", "n_predict": LONG, "stream": True}),
    ("/backends/a/completion", {"prompt": "x", "n_predict": LONG, "stream": True}),
]


async def test_a_client_that_leaves_frees_the_slot_within_a_second(start, llama: Llama) -> None:
    """Streaming or not, in every dialect: seen in the server's own /slots."""
    server = await llama(slots=1, extra=("--ignore-eos",))
    running = await start(**behind(server))
    for path, body in LEAVERS:
        async with aiohttp.ClientSession() as session:
            task = asyncio.create_task(session.post(running.base_url + path, json=body | {"model": "tiny"}))
            assert await busy(server), path
            await asyncio.sleep(0.05)
            assert await asyncio.to_thread(server.busy) == 1, path  # it really goes on
            if task.done():
                task.result().close()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert await idle(server), path
    assert await until(lambda: running.appliance.pipeline.in_flight == 0)
    async with grpc.aio.insecure_channel(running.control_address) as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        for streams in (True, False):
            body = {"model": "tiny", "messages": HELLO, "max_tokens": LONG, "stream": streams}
            call = stub.Chat(pb.ChatRequest(openai_json=json.dumps(body).encode()))
            asked = asyncio.ensure_future(call.read())
            assert await busy(server)
            call.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            assert await idle(server)


async def test_a_whole_response_is_what_the_server_itself_gives(start, llama: Llama) -> None:
    """It is asked for as a stream, since this engine does not stop otherwise when the client leaves.

    Nothing of it may be lost by that.
    """
    server = await llama()
    running = await start(**behind(server))
    tools = [
        {
            "type": "function",
            "function": {
                "name": "f",
                "parameters": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
            },
        }
    ]
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"messages": HELLO}),
        ("/v1/chat/completions", {"messages": HELLO, "n": 2, "max_tokens": 3}),
        ("/v1/chat/completions", {"messages": HELLO, "logprobs": True, "top_logprobs": 2, "max_tokens": 3}),
        ("/v1/chat/completions", {"messages": HELLO, "tools": tools, "tool_choice": "required"}),
        ("/v1/completions", {"prompt": "x", "max_tokens": 4, "logprobs": 1}),
        ("/v1/completions", {"prompt": ["x", "y"], "max_tokens": 4}),
    ]
    differing = {"id", "created", "timings", "usage"}
    async with aiohttp.ClientSession() as session:
        for path, body in bodies:
            async with session.post(
                server.url + path, json=body | {"model": "tiny", "seed": 1, "cache_prompt": False}
            ) as response:
                own = await response.json()
            value = (
                await ask(running, body | {"model": "tiny", "seed": 1, "cache_prompt": False}, path=path)
            )[2]
            assert value.keys() == own.keys(), path
            for choice in [*own["choices"], *value["choices"]]:
                for call in choice.get("message", {}).get("tool_calls") or []:
                    call.pop("id")
            assert {k: v for k, v in value.items() if k not in differing} == {
                k: v for k, v in own.items() if k not in differing
            }
            assert {k: value["usage"][k] for k in ("prompt_tokens", "completion_tokens")} == {
                k: own["usage"][k] for k in ("prompt_tokens", "completion_tokens")
            }


async def test_a_prompt_too_long_goes_where_it_fits_or_is_refused(start, llama: Llama) -> None:
    small, large = await llama(ctx=512), await llama(ctx=4096)
    running = await start(**behind(small, large))
    long = [{"role": "user", "content": "word " * 300}]
    for _ in range(4):
        status, headers, value = await ask(running, {"model": "tiny", "messages": long})
        assert (status, backend(headers), content(value)) == (200, "b", REPLY)
    status, _, value = await ask(
        running, {"model": "tiny", "messages": [{"role": "user", "content": "word " * 3000}]}
    )
    error = value["error"]
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert "4096" in error["message"]
    status, _, value = await ask(
        running, {"model": "tiny", "messages": HELLO, "options": {"num_ctx": 100_000}}, path="/api/chat"
    )
    assert status == 400
    assert "4096" in value["error"]
    status, headers, _ = await ask(
        running,
        {"model": "tiny", "messages": HELLO, "stream": False, "options": {"num_ctx": 2048}},
        path="/api/chat",
    )
    assert (status, backend(headers)) == (200, "b")


async def test_embeddings_and_reranking_find_the_server_that_does_them(start, llama: Llama) -> None:
    running = await start(**behind(await llama(), await llama(embeddings=True), await llama(rerank=True)))
    async with openai.AsyncOpenAI(base_url=running.v1, api_key="x", max_retries=0) as client:
        assert {m.id async for m in client.models.list()} >= {"tiny", "tiny-embed", "tiny-rerank"}
        made = await client.embeddings.create(model="tiny-embed", input=["one", "two", "one"])
        first, second, third = (row.embedding for row in made.data)
        assert first == third
        assert first != second
        with pytest.raises(openai.APIStatusError) as caught:
            await client.embeddings.create(model="tiny", input="one")
        assert caught.value.status_code == 501
    status, _, value = await ask(
        running, {"model": "tiny-rerank", "query": "one", "documents": ["one", "two"]}, path="/v1/rerank"
    )
    assert (status, sorted(row["index"] for row in value["results"])) == (200, [0, 1])


async def test_its_own_addresses_are_reached_by_passthrough(start, llama: Llama) -> None:
    servers = [await llama(lora=True), await llama(lora=True)]
    running = await start(**behind(*servers))
    tokens = (await ask(running, {"content": "hello"}, path="/tokenize"))[2]["tokens"]
    assert (await ask(running, {"tokens": tokens}, path="/detokenize"))[2]["content"] == "hello"
    assert "hello" in (await ask(running, {"messages": HELLO}, path="/apply-template"))[2]["prompt"]
    assert (await ask(running, path="/props", method="GET"))[2]["total_slots"] == 2
    assert content((await ask(running))[2]) == REPLY
    value = (
        await ask(running, {"model": "tiny", "max_tokens": 200, "messages": HELLO}, path="/v1/messages")
    )[2]
    assert value["content"][0]["text"] == REPLY
    for name in "ab":
        assert len((await ask(running, path=f"/backends/{name}/slots", method="GET"))[2]) == 2
        assert (
            "llamacpp:requests_processing"
            in (await ask(running, path=f"/backends/{name}/metrics", method="GET"))[2]
        )
    # What is set at one server is set there alone.
    scales: Any = [{"id": 0, "scale": 1.0}]
    status, _, _ = await ask(running, scales, path="/backends/b/lora-adapters")
    assert status == 200
    scales = {
        name: (await ask(running, path=f"/backends/{name}/lora-adapters", method="GET"))[2][0]["scale"]
        for name in "ab"
    }
    assert scales == {"a": 0.0, "b": 1.0}
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            running.base_url + "/completion", json={"prompt": "x", "n_predict": 5, "stream": True}
        ) as response,
    ):
        assert response.headers["Content-Type"].startswith("text/event-stream")
        events = [json.loads(line[6:]) async for line in response.content if line.startswith(b"data: ")]
    assert (len(events) >= 5, events[-1]["stop"]) == (True, True)
    assert (await ask(running, {"x": 1}, path="/no/such"))[0] == 404


async def test_models_are_listed_with_what_the_server_says(start, llama: Llama) -> None:
    server = await llama()
    running = await start(**behind(server))
    own = server.get("/v1/models")
    [row] = (await ask(running, path="/v1/models", method="GET"))[2]["data"]
    assert row["capabilities"] == own["models"][0]["capabilities"] == ["completion"]
    assert row["meta"] == own["data"][0]["meta"]
    assert row["meta"]["n_ctx_train"] == 8192


async def test_an_adapter_is_a_model_of_its_own(start, llama: Llama) -> None:
    running = await start(**behind(await llama(lora=True), await llama()))
    listed = {row["id"] for row in (await ask(running, path="/v1/models", method="GET"))[2]["data"]}
    assert listed == {"tiny", "tiny-lora"}
    names = ["tiny", "tiny-lora"] * 10
    answers = await asyncio.gather(*(ask(running, {"model": name, "messages": HELLO}) for name in names))
    assert [content(value) for _, _, value in answers] == [
        LORA_REPLY if name == "tiny-lora" else REPLY for name in names
    ]
    assert {
        backend(headers) for name, (_, headers, _) in zip(names, answers, strict=True) if name == "tiny-lora"
    } == {"a"}
    assert {value["model"] for _, _, value in answers} == {"tiny", "tiny-lora"}


async def test_a_server_that_wants_a_key_gets_the_operators_key(start, llama: Llama, tmp_path) -> None:
    server = await llama(api_key="key-of-the-server")
    config = tmp_path / "backends.json"
    config.write_text(json.dumps({"backends": [{"url": server.url, "name": "a", "api_key_env": "A_KEY"}]}))
    running = await start(CONFIG_PATH=str(config), A_KEY="key-of-the-server", **QUICK)
    status, _, value = await ask(running, headers={"Authorization": "Bearer key-of-the-client"})
    assert (status, content(value)) == (200, REPLY)
    assert (
        await ask(
            running, {"content": "x"}, path="/tokenize", headers={"Authorization": "Bearer key-of-the-client"}
        )
    )[0] == 200
    running = await start(CONFIG_PATH=str(config), A_KEY="a-wrong-key", **QUICK)
    status, _, value = await ask(running)
    assert status in {502, 503}
    assert "key-of-the-server" not in str(value)


async def test_the_only_model_of_a_llama_server_answers_any_name(start, llama: Llama) -> None:
    server = await llama()
    running = await start(**behind(server))
    api = openai.AsyncOpenAI(base_url=running.v1, api_key="client-key-123456", max_retries=0)
    answer = await api.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert (answer.choices[0].message.content, answer.model) == (REPLY, "tiny")
    strict = await start(**behind(server, MODEL_STRICT="1", MODEL_ALIASES="short=tiny"))
    api = openai.AsyncOpenAI(base_url=strict.v1, api_key="client-key-123456", max_retries=0)
    for name in ("tiny", "tiny:latest", "short", "short:latest"):
        assert (await api.models.retrieve(name)).id == "tiny"
    with pytest.raises(openai.NotFoundError):
        await api.models.retrieve("gpt-4o")
    with pytest.raises(openai.NotFoundError):
        await api.chat.completions.create(model="gpt-4o", messages=HELLO)
