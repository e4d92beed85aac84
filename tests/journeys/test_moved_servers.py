"""Servers that sleep, and servers that are started again with another model."""

import asyncio
import time

import aiohttp
import pytest

from tests.journeys.llama_servers import Llama
from tests.journeys.running import Start, until

pytestmark = pytest.mark.timeout(120)


async def test_probes_and_metrics_leave_a_server_asleep(start: Start, llama: Llama) -> None:
    """With `--sleep-idle-seconds` it unloads its model; a request wakes it."""
    server = await llama(slots=1, lora=True, extra=("--sleep-idle-seconds", "2"))
    running = await start(BACKENDS=server.url, METRICS_CACHE_TTL_SECONDS="0.1")

    async def is_asleep() -> bool:
        return bool((await asyncio.to_thread(server.get, "/props"))["is_sleeping"])

    async with aiohttp.ClientSession() as session:

        async def ask() -> int:
            body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
            async with session.post(running.v1 + "/chat/completions", json=body) as answer:
                await answer.read()
                return answer.status

        for _ in range(2):
            assert await ask() == 200
            began = time.monotonic()
            while not await is_asleep():  # probed and scraped all the time, it goes to sleep
                assert time.monotonic() - began < 10
                async with session.get(running.base_url + "/metrics") as page:
                    assert page.status == 200
                await asyncio.sleep(0.1)
            for _ in range(30):  # some rounds of facts, too
                async with session.get(running.base_url + "/metrics") as page:
                    assert page.status == 200
                async with session.get(running.v1 + "/models") as page:
                    assert {"tiny", "tiny-lora"} <= {row["id"] for row in (await page.json())["data"]}
                await asyncio.sleep(0.1)
            assert await is_asleep()


async def test_a_server_started_again_with_another_model_is_known_at_once(start: Start, llama: Llama) -> None:
    server = await llama(alias="before")
    other = await llama(alias="other")
    running = await start(BACKENDS=f"{server.url},{other.url}")
    async with aiohttp.ClientSession() as session:

        async def ask(model: str) -> int:
            body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
            async with session.post(running.v1 + "/chat/completions", json=body) as answer:
                await answer.read()
                return answer.status

        assert await until(
            lambda: {"before", "other"} <= {card.id for card in running.appliance.router.cards()}
        )
        assert (await ask("before"), await ask("after")) == (200, 404)
        await asyncio.sleep(2.1)  # unknown names are looked up at most so often
        server._command[server._command.index("before")] = "after"
        await server.restart()
        assert [await ask(model) for model in ("after", "before", "other")] == [200, 404, 200]
