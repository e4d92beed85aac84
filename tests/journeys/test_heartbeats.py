"""Heartbeats: the official clients pass over them, whatever the upstream's stream held before them."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import anthropic
import ollama
import openai
import pytest

from tests.fakes.mirror import QUICK
from tests.fakes.raw_server import Peer, RawServer
from tests.journeys.node_clients import RunNode
from tests.journeys.running import Running, Start

PAUSE_S = 0.15  # several heartbeats
HELLO: Any = [{"role": "user", "content": "hello"}]
TEXT = "Standing in."
PAUSE = None  # in a script: silence


def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return json.dumps(
        {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": [choice]}
    )


FIRST, SECOND, THIRD = (chunk({"content": text}) for text in ("Stand", "ing ", "in."))
LAST = chunk({}, "stop")
DONE = "data: [DONE]\n\n"


def events(form: str, *, between: str = "") -> list[str | None]:
    """Return the stream with each event in a form (`{}` is its data), and a pause after each event."""
    script: list[str | None] = []
    for data in (FIRST, SECOND, THIRD, LAST):
        script += [form.replace("{}", data) + between, PAUSE]
    return [*script, DONE]


SPLIT = FIRST[: len(FIRST) // 2], FIRST[len(FIRST) // 2 :]
STREAMS: dict[str, list[str | None]] = {
    "plain": events("data: {}\n\n"),
    "silent at first": [PAUSE, *events("data: {}\n\n")],
    "ids": events("id: 7\ndata: {}\n\n"),
    "an id alone": events("data: {}\n\n", between="id: 9\n\n"),
    "an id without value": events("id\ndata: {}\n\n"),
    "retry": events("retry: 5\ndata: {}\n\n"),
    "retry alone": ["retry: 5\n\n", PAUSE, *events("data: {}\n\n", between="retry: 5\n\n")],
    "named": events("event: message\ndata: {}\n\n"),
    "a name alone": events("data: {}\n\n", between="event: ping\n\n"),
    "all fields": events("retry: 5\nid: 7\nevent: message\n: note\ndata: {}\n\n"),
    "comments": [": ping\n\n", PAUSE, *events("data: {}\n\n", between=": ping\n\n")],
    "carriage returns": events("id: 7\r\ndata: {}\r\n\r\n"),
    "byte order mark": ["\ufeff", PAUSE, *events("id: 7\ndata: {}\n\n")],
    "split in the data": [
        f"id: 7\ndata: {SPLIT[0]}",
        *(PAUSE, SPLIT[1], PAUSE, "\n", PAUSE, "\n"),
        *events("data: {}\n\n")[2:],
    ],
    "split in a field": ["id: 7\nda", PAUSE, f"ta: {FIRST}\n\n", *events("data: {}\n\n")[2:]],
    "fields after the last": [*events("data: {}\n\n")[:-1], "id: 1\nevent: x\nretry: 5\n\n", PAUSE, DONE],
}


class Scripted:
    """An upstream that sends each stream as its script says, with real pauses."""

    def __init__(self) -> None:
        self.script: list[str | None] = []

    async def __call__(self, peer: Peer) -> None:
        head = await peer.request()
        if not head.startswith(b"POST "):
            body = b'{"data":[{"id":"tiny"}]}' if head.startswith(b"GET /v1/models ") else b""
            status = 200 if body else 404
            peer.say(b"HTTP/1.1 %d -\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
            return
        peer.say(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for step in self.script:
            if step is PAUSE:
                await asyncio.sleep(PAUSE_S)
            else:
                peer.say(step.encode())


@pytest.fixture
async def slow(start: Start, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Running, Scripted]]:
    """Return the appliance, whose heartbeats come quickly, and its upstream."""
    monkeypatch.setattr("appliance.front.server.server.TICK_S", 0.02)
    scripted = Scripted()
    async with RawServer(scripted) as server:
        yield await start(BACKENDS=f"e0={server.address}", HEARTBEAT_S="0.03", **QUICK), scripted


async def _openai_chat(running: Running, query: dict[str, str]) -> str:
    api = openai.AsyncOpenAI(base_url=running.v1, api_key="x", max_retries=0, default_query=query)
    stream = await api.chat.completions.create(model="tiny", messages=HELLO, stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason == "stop"
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


async def _openai_responses(running: Running, query: dict[str, str]) -> str:
    api = openai.AsyncOpenAI(base_url=running.v1, api_key="x", max_retries=0, default_query=query)
    async with api.responses.stream(model="tiny", input="hello") as stream:
        types = [event.type async for event in stream]
        assert (types[0], types[-1]) == ("response.created", "response.completed")
        return (await stream.get_final_response()).output_text


async def _anthropic(running: Running, query: dict[str, str]) -> str:
    api = anthropic.AsyncAnthropic(base_url=running.base_url, api_key="x", max_retries=0, default_query=query)
    async with api.messages.stream(model="tiny", max_tokens=50, messages=HELLO) as stream:
        message = await stream.get_final_message()
    assert message.stop_reason == "end_turn"
    return "".join(block.text for block in message.content if block.type == "text")


async def _ollama(running: Running, query: dict[str, str]) -> str:
    api = ollama.AsyncClient(host=running.base_url, params=query)
    parts = [part async for part in await api.chat(model="tiny", messages=HELLO, stream=True)]
    assert parts[-1].done_reason == "stop"
    return "".join(part.message.content or "" for part in parts)


Client = Callable[[Running, dict[str, str]], Awaitable[str]]
CLIENTS: list[Client] = [_openai_chat, _openai_responses, _anthropic, _ollama]


async def _raw(running: Running, query: dict[str, str]) -> str:
    """Check that heartbeats are there, and stand between whole events of plain `data:` lines."""
    body = {"model": "tiny", "messages": HELLO, "stream": True}
    url = running.v1 + "/chat/completions"
    async with aiohttp.ClientSession() as session, session.post(url, json=body, params=query) as response:
        text = (await response.read()).decode()
    assert text.count(": heartbeat\n\n") >= 4
    for event in text.split("\n\n")[:-1]:
        is_comment = event.startswith(":") and "\n" not in event
        assert is_comment or (event.startswith("data: ") and "\n" not in event), event
    return TEXT


@pytest.mark.parametrize("name", STREAMS)
async def test_official_clients_pass_over_heartbeats(slow: tuple[Running, Scripted], name: str) -> None:
    running, scripted = slow
    scripted.script = STREAMS[name]
    connections: list[dict[str, str]] = [{}, {"q": "1"}]  # the fast one; a query goes to aiohttp
    calls = [client(running, query) for client in (*CLIENTS, _raw) for query in connections]
    assert await asyncio.gather(*calls) == [TEXT] * len(calls)


async def test_openai_js_passes_over_heartbeats(slow: tuple[Running, Scripted], node: RunNode) -> None:
    running, scripted = slow
    for name in ("ids", "all fields", "split in the data", "silent at first"):
        scripted.script = STREAMS[name]
        assert await node("heartbeats", running) == {"chat": TEXT, "responses": TEXT}, name
