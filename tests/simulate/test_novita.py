"""The stand-in for Novita: OpenAI's shapes, what it counts, how its streams break."""

import asyncio
from typing import Any

import aiohttp
import openai
import pytest

from appliance.simulate.novita import KEY
from appliance.simulate.twin import Twin
from tests.simulate.calls import Calls

MODEL = "qwen/qwen3-32b"
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
PATH = "/openai/v1/chat/completions"


async def test_the_official_client_gets_answers_that_are_counted(twin: Twin) -> None:
    async with openai.AsyncOpenAI(api_key=KEY, base_url=twin.urls["novita"], max_retries=0) as client:
        whole = await client.chat.completions.create(**CHAT)
        stream = await client.chat.completions.create(
            **CHAT, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        names = [model.id async for model in client.models.list()]
    assert whole.choices[0].message.content == "[demo engine] You said: hello"
    assert chunks[-1].usage == whole.usage
    assert MODEL in names
    truth = twin.truth()["services"]["novita"]
    prompt, completion = whole.usage.prompt_tokens, whole.usage.completion_tokens
    assert truth["models"][MODEL] == {
        "requests": 2,
        "prompt_tokens": 2 * prompt,
        "completion_tokens": 2 * completion,
    }
    assert truth["cost_musd"] == -(-2 * (prompt * 100_000 + completion * 450_000) // 1_000_000)


async def test_completions_and_embeddings_are_there(call: Calls) -> None:
    text = await call("novita", "POST", "/v3/openai/completions", {"model": MODEL, "prompt": "hello"})
    assert text.json["choices"][0]["text"].startswith("[demo engine]")
    body = {"model": "baai/bge-m3", "input": ["a", "b"]}
    assert len((await call("novita", "POST", "/openai/v1/embeddings", body)).json["data"]) == 2


@pytest.mark.parametrize("kind", ["cut_stream", "error_event", "stall"])
async def test_a_stream_breaks_after_two_events(call: Calls, twin: Twin, kind: str) -> None:
    await call.fault(service="novita", kind=kind)
    url = twin.urls["novita"] + "/chat/completions"
    seen = b""
    headers = {"Authorization": f"Bearer {KEY}"}
    async with call.session.post(url, json={**CHAT, "stream": True}, headers=headers) as response:
        try:
            async with asyncio.timeout(0.3):
                async for piece in response.content.iter_any():
                    seen += piece
        except (aiohttp.ClientError, TimeoutError) as exc:
            assert kind != "error_event"
            assert isinstance(exc, TimeoutError) is (kind == "stall")
    assert seen.count(b"data: ") == (3 if kind == "error_event" else 2)
    assert b"[DONE]" not in seen
    assert twin.truth()["services"]["novita"]["requests"][0]["broken"] == kind


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_it_answers_the_status_of_a_fault(call: Calls, status: int) -> None:
    await call.fault(service="novita", kind="status", status=status)
    reply = await call("novita", "POST", PATH, CHAT)
    assert (reply.status, set(reply.json)) == (status, {"error"})
    assert (await call("novita", "POST", PATH, CHAT)).status == 200


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        ({}, 400, "`model`"),
        ({**CHAT, "model": "other"}, 404, "not found"),
        ({"model": MODEL, "messages": []}, 400, "`messages`"),
        ({**CHAT, "n": 1000}, 400, "`n`"),
        ({"model": MODEL, "messages": [{"role": "user", "content": "demo: error 503"}]}, 503, "503"),
    ],
)
async def test_a_wrong_call_is_refused_and_not_counted(call: Calls, twin: Twin, body, status, part) -> None:
    reply = await call("novita", "POST", PATH, body)
    assert reply.status == status
    assert part in reply.json["error"]["message"]
    assert twin.truth()["services"]["novita"]["cost_musd"] == 0


async def test_a_wrong_key_gets_no_answer(call: Calls) -> None:
    reply = await call("novita", "POST", PATH, CHAT, headers={"Authorization": "Bearer other"})
    assert (reply.status, reply.json["error"]["code"]) == (401, "invalid_api_key")
