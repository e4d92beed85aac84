"""The numbers of a request: tokens and where they come from, times of tokens, what was really sent."""

import json
from typing import Any

import aiohttp
import pytest

from tests.fakes.engine_server import EngineServer
from tests.fakes.hosted_api import KEY, HostedApi
from tests.journeys.running import Running, Start

pytestmark = pytest.mark.timeout(30)

QUICK = {"METRICS_CACHE_TTL_SECONDS": "0.2", "SLOW_START_S": "0", "BACKEND_STARTUP_GRACE_S": "0"}
HELLO = [{"role": "user", "content": "hello"}]
USAGE = {"stream_options": {"include_usage": True}}
CHAT, OLLAMA, RESPONSES, ANTHROPIC = "/v1/chat/completions", "/api/chat", "/v1/responses", "/v1/messages"


def body_of(path: str, *, stream: bool, model: str = "tiny", **more: Any) -> dict[str, Any]:
    messages = {"input": "hello"} if path == RESPONSES else {"messages": HELLO}
    most = {"max_tokens": 9} if path == ANTHROPIC else {}
    return {"model": model, "stream": stream, **messages, **most, **more}


async def ask(running: Running, path: str, body: dict[str, Any]) -> tuple[int, str, dict[str, Any]]:
    """Return the status, the text, and the receipt."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(running.base_url + path, json=body) as response,
    ):
        status, text = response.status, await response.text()
        async with session.get(f"{running.base_url}/receipts/{response.headers['x-request-id']}") as found:
            return status, text, await found.json()


async def metric(running: Running, name: str) -> float:
    """Return the value of a metric's row; 0 = there is none."""
    async with aiohttp.ClientSession() as session, session.get(f"{running.base_url}/metrics") as response:
        for line in (await response.text()).splitlines():
            if line.startswith(name + " "):
                return float(line.split(" ")[1])
    return 0


# ---- tokens


@pytest.mark.parametrize(
    ("kind", "more", "tokens", "tokens_from", "is_asked"),
    [
        ("vllm", {}, (3, 3), "usage", True),
        ("sglang", {}, (3, 3), "usage", True),
        ("llamacpp", {}, (3, 3), "timings", False),
        ("openai", {}, (None, 3), "events", False),
        ("openai", USAGE, (3, 3), "usage", True),
        ("vllm", USAGE, (3, 3), "usage", True),
        ("vllm", {"stream_options": {"include_usage": False}}, (None, 3), "events", False),
    ],
)
async def test_every_stream_counts_its_tokens(
    start: Start, kind: str, more: dict[str, Any], tokens: Any, tokens_from: str, is_asked: bool
) -> None:
    async with EngineServer(kind) as engine:
        engine.has_timings = kind == "llamacpp"
        running = await start(BACKENDS=f"e0={engine.url}", **QUICK)
        status, text, receipt = await ask(running, CHAT, body_of(CHAT, stream=True, **more))
        assert bool((engine.asked[0].get("stream_options") or {}).get("include_usage")) is is_asked
    assert (status, text.endswith("data: [DONE]\n\n")) == (200, True)
    assert ('"usage"' in text) is bool(more.get("stream_options", {}).get("include_usage"))
    assert (receipt["prompt_tokens"], receipt["completion_tokens"]) == tokens
    assert receipt["tokens_from"] == tokens_from
    assert 0 < receipt["first_token_ms"] <= receipt["last_token_ms"] <= receipt["total_ms"]
    name = 'appliance_tokens_total{backend="e0",kind="completion",model="tiny"}'
    assert await metric(running, name) == 3
    for histogram in ("to_first_token", "between_tokens"):
        assert await metric(running, f'appliance_time_{histogram}_seconds_count{{model="tiny"}}') == 1


async def test_the_clients_bytes_are_the_same_whether_we_ask_or_not(start: Start) -> None:
    texts = []
    async with EngineServer("vllm") as engine:
        running = await start(BACKENDS=f"e0={engine.url}", **QUICK)
        for refuses in (False, True):
            engine.refuses_stream_options = refuses
            texts.append((await ask(running, CHAT, body_of(CHAT, stream=True)))[1])
    assert texts[0] == texts[1]


async def test_the_hosted_apis_streams_are_counted(start: Start, hosted: HostedApi) -> None:
    running = await start(NOVITA_API_KEY=KEY, NOVITA_OPENAI_ENDPOINTS=hosted.base_url)
    _, text, receipt = await ask(running, CHAT, body_of(CHAT, stream=True, model="anything"))
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    count = sum(bool(event["choices"][0]["delta"].get("content")) for event in events if event["choices"])
    assert (receipt["completion_tokens"], receipt["tokens_from"]) == (count, "events")
    assert "stream_options" not in hosted.records[0].body
    model = receipt["public_model"]
    assert model != "anything"  # a name that a client made up is no label
    assert await metric(running, f'appliance_time_to_first_token_seconds_count{{model="{model}"}}') == 1


# ---- stream_options that we added


@pytest.mark.parametrize("path", [CHAT, OLLAMA, RESPONSES, ANTHROPIC])
@pytest.mark.parametrize(
    ("kind", "stream"), [("vllm", True), ("openai", True), ("llamacpp", False), ("sglang", True)]
)
async def test_a_server_that_refuses_stream_options_is_asked_without_them(
    start: Start, path: str, kind: str, stream: bool
) -> None:
    async with EngineServer(kind) as engine:
        engine.refuses_stream_options = True
        running = await start(BACKENDS=f"e0={engine.url}", **QUICK)
        for _ in range(2):
            status, text, receipt = await ask(running, path, body_of(path, stream=stream))
            whole = "".join(
                part for part in ("Stand", "ing ", "in.") if part in text or "Standing in." in text
            )
            assert (status, whole) == (200, "Standing in.")
            if stream:
                assert (receipt["completion_tokens"], receipt["tokens_from"]) == (3, "events")
        is_added = ["stream_options" in body for body in engine.asked]
    adds = path != CHAT or kind != "openai"
    assert is_added == ([True, False, False] if adds else [False, False])


async def test_each_server_is_learnt_by_itself(start: Start) -> None:
    """The first one fails, so the second one is asked, which refuses; later the first one is asked with them."""
    async with EngineServer("openai") as first, EngineServer("openai") as second:
        first.faults, second.refuses_stream_options = ["status_502"], True
        running = await start(
            BACKENDS=f"e0={first.url},e1={second.url}", LB_ENABLED="0", BREAKER_FAILURES="5", **QUICK
        )
        status, text, receipt = await ask(running, OLLAMA, body_of(OLLAMA, stream=True))
        assert (status, "in." in text, len(receipt["attempts"])) == (200, True, 2)
        assert ["stream_options" in body for body in second.asked] == [True, False]
        await ask(running, OLLAMA, body_of(OLLAMA, stream=True))
        assert ["stream_options" in body for body in first.asked] == [True, True]


async def test_each_endpoint_of_the_hosted_api_is_learnt_by_itself(start: Start) -> None:
    async with EngineServer("openai", key=KEY) as first, EngineServer("openai", key=KEY) as second:
        first.faults, second.refuses_stream_options = ["status_503"], True
        endpoints = f"{first.url}/v1;{second.url}/v1"
        running = await start(NOVITA_API_KEY=KEY, NOVITA_OPENAI_ENDPOINTS=endpoints)
        for _ in range(2):
            status, text, _ = await ask(running, RESPONSES, body_of(RESPONSES, stream=True, model="m"))
            assert (status, "Standing in." in text) == (200, True), text
    assert ["stream_options" in body for body in first.asked] == [True, True]
    assert ["stream_options" in body for body in second.asked] == [True, False]
