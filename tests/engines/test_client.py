"""The appliance's own queries and commands over HTTP: short replies, read whole, or a WireError."""

import json
from collections.abc import AsyncIterator

import pytest

from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits, Target, Unreachable, UpstreamTimeout
from appliance.engines.dialects.client import HttpEngineClient
from tests.fakes.engine_server import EngineServer

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
async def engine() -> AsyncIterator[EngineServer]:
    async with EngineServer("vllm") as server:
        yield server


@pytest.fixture
async def client(engine: EngineServer) -> AsyncIterator[HttpEngineClient]:
    async with ConnectionPool(PoolLimits()) as wire:
        yield HttpEngineClient(wire, Target.parse(engine.url, headers={"Content-Type": "application/json"}))


async def test_a_reply_is_read_whole(client: HttpEngineClient) -> None:
    reply = await client.get("/v1/models", 5.0)
    assert (reply.status, reply.content_type) == (200, "application/json; charset=utf-8")
    assert [row["id"] for row in json.loads(reply.body)["data"]] == ["tiny"]


async def test_a_command_has_a_json_body(client: HttpEngineClient, engine: EngineServer) -> None:
    reply = await client.post("/v1/completions", {"model": "tiny", "prompt": "x"})
    assert (reply.status, engine.asked) == (200, [{"model": "tiny", "prompt": "x"}])


async def test_an_error_status_is_a_reply(client: HttpEngineClient) -> None:
    assert (await client.post("/nothing", {})).status == 404


async def test_a_silent_engine_is_a_timeout(client: HttpEngineClient, engine: EngineServer) -> None:
    engine.health_hangs = True
    with pytest.raises(UpstreamTimeout):
        await client.get("/health", 0.05)


async def test_an_engine_that_is_not_there_is_unreachable(
    client: HttpEngineClient, engine: EngineServer
) -> None:
    await engine.stop()
    with pytest.raises(Unreachable):
        await client.get("/health", 1.0)
