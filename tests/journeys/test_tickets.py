"""A page with EventSource or WebSocket: it gets a ticket with its key, and opens the stream without a header."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tests.fakes.mirror import QUICK, Mirror
from tests.journeys.running import Running, Spawn

CLIENT, OPERATOR = "client-key-1", "operator-key-1"
KEYS = {"APPLIANCE_API_KEYS": CLIENT, "OPERATOR_API_KEYS": OPERATOR}
FEED = "/v1/models/status/stream"
ORIGIN = {"Origin": "https://app.example"}


@pytest.fixture
async def session():
    # As browsers do, each WebSocket on a connection of its own.
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        yield session


@pytest.fixture
async def mirror():
    async with Mirror() as mirror:
        yield mirror


def with_models(folder: Path) -> dict[str, str]:
    """Variables of an appliance with a table of one model, which is never loaded."""
    config = folder / "config.json"
    config.write_text(json.dumps({"models": {"chat": {"model_path": str(folder / "chat.gguf")}}}))
    return {"CONFIG_PATH": str(config), "LLAMA_SERVER_PATH": "/bin/true", **KEYS}


async def ticket(session: aiohttp.ClientSession, base: str, path: str, key: str = CLIENT) -> Any:
    headers = {"Authorization": f"Bearer {key}"} | ORIGIN
    async with session.post(base + "/v1/tickets", json={"path": path}, headers=headers) as response:
        return response.status, await response.json()


async def test_an_event_source_opens_a_feed_by_a_ticket(start, session, tmp_path: Path) -> None:
    running: Running = await start(**with_models(tmp_path), CORS_ORIGINS="https://app.example")
    async with session.get(running.base_url + FEED) as response:
        assert response.status == 401
    status, made = await ticket(session, running.base_url, FEED)
    assert (status, made["path"]) == (200, FEED)
    async with session.get(running.base_url + made["url"], headers=ORIGIN) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        assert response.headers["Access-Control-Allow-Origin"] == "https://app.example"
        assert await asyncio.wait_for(response.content.readline(), 5) == b"event: full_status\n"
    async with session.get(running.base_url + made["url"], headers=ORIGIN) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (401, "invalid_ticket")
        assert response.headers["Access-Control-Allow-Origin"] == "https://app.example"


async def test_a_ticket_opens_one_address_and_no_more_than_its_key(start, session, tmp_path: Path) -> None:
    running: Running = await start(**with_models(tmp_path))
    base = running.base_url
    _, made = await ticket(session, base, FEED)
    async with session.get(f"{base}/metrics/stream?appliance_ticket={made['ticket']}") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (403, "invalid_ticket")
    _, made = await ticket(session, base, FEED)
    for path in ("/v1/models", "/v1/models/status", "/receipts"):  # these take none, whatever it is for
        async with session.get(f"{base}{path}?appliance_ticket={made['ticket']}") as response:
            assert response.status == 401
        assert (await ticket(session, base, path))[0] == 400
    assert (await ticket(session, base, "/v1/jobs/job_1/stream"))[0] == 403
    status, made = await ticket(session, base, "/v1/jobs/job_1/stream", OPERATOR)
    assert status == 200
    async with session.get(base + made["url"]) as response:
        assert response.status == 404  # there is no such job, but the ticket opened the address


async def test_a_key_that_is_taken_away_takes_its_tickets_along(start, session, tmp_path: Path) -> None:
    running: Running = await start(**with_models(tmp_path))
    _, made = await ticket(session, running.base_url, FEED)
    front = running.appliance.settings.front
    running.appliance.pipeline.apply(front.model_copy(update={"appliance_api_keys": front.operator_api_keys}))
    async with session.get(running.base_url + made["url"]) as response:
        assert (response.status, (await response.json())["error"]["message"]) == (401, "Unknown API key.")


async def test_a_websocket_opens_by_a_ticket_that_goes_no_further(start, session, mirror: Mirror) -> None:
    running: Running = await start(BACKENDS=f"e0={mirror.url}", **QUICK, **KEYS)
    address = running.base_url + "/act/ws"
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await session.ws_connect(address)
    assert refused.value.status == 401
    assert (await ticket(session, running.base_url, "/act/ws"))[0] == 403  # of an operator
    _, made = await ticket(session, running.base_url, "/act/ws", OPERATOR)
    async with session.ws_connect(
        URL(f"{address}?x=%2F&appliance_ticket={made['ticket']}&y", encoded=True), headers=ORIGIN
    ) as ws:
        await ws.send_str("hello")
        assert await ws.receive_str(timeout=5) == "echo hello"
    assert mirror.seen == ["GET /act/ws?x=%2F&y", "key None"]
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await session.ws_connect(running.base_url + made["url"])
    assert refused.value.status == 401
    status, made = await ticket(session, running.base_url, "/v1/realtime")  # an address for clients
    assert status == 200
    async with session.get(running.base_url + made["url"]) as response:  # without a switch it takes no ticket
        assert response.status == 401
    headers = {"Authorization": f"Bearer {OPERATOR}"}
    async with session.get(running.base_url + "/where?appliance_ticket=x&a=1", headers=headers) as response:
        assert (await response.json())["target"] == "/where?a=1"


async def test_a_ticket_is_in_no_log(spawn: Spawn, session, mirror: Mirror, tmp_path: Path) -> None:
    process = await asyncio.to_thread(
        lambda: spawn(
            **with_models(tmp_path),
            BACKENDS=f"e0={mirror.url}",
            DEFAULT_MODEL="tiny",
            **QUICK,
            LOG_LEVEL="debug",
        )
    )
    texts = []
    for path, key in ((FEED, CLIENT), ("/act/ws", OPERATOR)):
        _, made = await ticket(session, process.base_url, path, key)
        texts.append(made["ticket"])
        if path == FEED:
            async with session.get(process.base_url + made["url"]) as response:
                await response.content.readline()
        else:
            async with session.ws_connect(process.base_url + made["url"]) as ws:
                await ws.close()
        async with session.get(process.base_url + made["url"], headers={"Upgrade": "x"}) as response:
            assert response.status == 401
    await asyncio.sleep(1)  # the log's lines are written twice a second
    log = process.text()
    assert log.count('"path":"/v1/models/status/stream"') >= 1
    assert [text for text in texts if text in log] == []
    async with session.get(
        process.base_url + "/receipts", headers={"Authorization": f"Bearer {OPERATOR}"}
    ) as response:
        receipts = await response.text()
    assert [text for text in texts if text in receipts] == []
