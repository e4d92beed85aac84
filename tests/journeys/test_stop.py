"""What clients see whose responses are not complete when the grace period of a stop ends."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from tests.journeys.running import Running, Start, until

CHAT = {"messages": [{"role": "user", "content": "demo: stall"}], "stream": True}
ADDRESSES = {
    "openai": ("/v1/chat/completions", CHAT),
    "ollama": ("/api/chat", {**CHAT, "model": "demo"}),
    "anthropic": ("/v1/messages", {**CHAT, "max_tokens": 900}),
    "responses": ("/v1/responses", {"input": "demo: stall", "stream": True}),
}


async def read_until_stopped(running: Running, path: str, body: dict[str, Any], *, is_hot: bool) -> str:
    """Ask, stop the server once the stream has begun, and return all that the client got."""
    data: Any = json.dumps(body).encode()
    if not is_hot:  # a body without a length is read by aiohttp

        async def pieces() -> Any:
            yield json.dumps(body).encode()

        data = pieces()
    headers = {"content-type": "application/json"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(running.base_url + path, data=data, headers=headers) as response,
    ):
        got = await response.content.readany()
        server = running.appliance.server
        assert server is not None
        stopping = asyncio.create_task(server.stop(0.1, asyncio.Event()))
        got += await response.content.read()
        await stopping
        return got.decode()


@pytest.mark.parametrize("is_hot", [True, False])
@pytest.mark.parametrize("dialect", ADDRESSES)
async def test_a_stream_that_is_cut_ends_with_an_error(start: Start, dialect: str, is_hot: bool) -> None:
    running = await start()
    text = await read_until_stopped(running, *ADDRESSES[dialect], is_hot=is_hot)
    last = text.strip().splitlines()[-1].removeprefix("data: ")
    assert "grace period (SHUTDOWN_GRACE_S) is over" in last
    assert json.loads(last)
    assert "[DONE]" not in text
    receipt = running.appliance.receipts.latest(1)[0]
    assert (receipt.finish_label, receipt.error.partition(":")[0]) == ("cut_off", "unavailable")


@pytest.mark.parametrize("is_hot", [True, False])
async def test_a_request_without_a_response_yet_gets_503(start: Start, is_hot: bool) -> None:
    running = await start()
    body = json.dumps({"messages": [{"role": "user", "content": "demo: slow 50"}]}).encode()

    async def pieces() -> Any:
        yield body

    async with aiohttp.ClientSession() as session:
        headers = {"content-type": "application/json"}
        url = running.v1 + "/chat/completions"
        asking = asyncio.create_task(session.post(url, data=body if is_hot else pieces(), headers=headers))
        assert await until(lambda: running.appliance.pipeline.in_flight == 1)
        server = running.appliance.server
        assert server is not None
        await server.stop(0.1, asyncio.Event())
        response = await asking
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "stopped"


async def test_looks_at_the_appliance_do_not_count_as_in_flight(start: Start) -> None:
    running = await start()
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(session.post(running.v1 + "/chat/completions", json=CHAT))
        response = await asking
        await response.content.readany()
        async with session.get(running.base_url + "/healthz") as shown:
            assert (await shown.json())["in_flight"] == 1
        response.close()
        assert await until(lambda: running.appliance.pipeline.in_flight == 0)
        async with session.get(running.base_url + "/healthz") as shown:
            assert (await shown.json())["in_flight"] == 0
