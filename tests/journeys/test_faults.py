"""Random faults over a bounded run.

Every single request is accounted for, by its client and by its receipt.
"""

import asyncio
import json
import random
from collections import Counter

import aiohttp

from tests.fakes.engine_server import EngineServer
from tests.journeys.running import until
from tests.journeys.test_backends import HELLO, QUICK

REQUESTS = 2000
AT_ONCE = 50
FAULTS = [
    "refuse",
    "hang",
    "hang_after_head",
    "cut",
    "status_500",
    "status_502",
    "status_503",
    "status_429",
    "invalid_response",
    "drip",
]
GARBAGE = [None, b"vllm:num_requests_running lots\n", b"\x00\xff", b"vllm:num_requests_running NaN\n"]


async def test_every_request_under_random_faults_is_accounted_for(start) -> None:
    chance = random.Random(20261121)
    servers = [EngineServer("vllm", slots=32) for _ in range(4)]
    for server in servers:
        await server.start()
    try:
        running = await start(
            BACKENDS=",".join(f"e{n}={s.url}" for n, s in enumerate(servers)),
            UPSTREAM_FIRST_BYTE_TIMEOUT_S="0.5",
            UPSTREAM_IDLE_TIMEOUT_S="0.5",
            BACKEND_TIMEOUT_SECONDS="5",
            BREAKER_REST_S="0.2",
            QUEUE_TIMEOUT_S="3",
            ACCESS_LOG="0",
            **QUICK,
        )
        outcomes: Counter[str] = Counter()
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(session: aiohttp.ClientSession, number: int) -> None:
            async with gate:
                if chance.random() < 0.15:
                    chance.choice(servers).faults.append(chance.choice(FAULTS))
                if chance.random() < 0.02:
                    chance.choice(servers).metrics_page = chance.choice(GARBAGE)
                is_stream = number % 2 == 0
                async with session.post(
                    running.v1 + "/chat/completions",
                    json={"model": "tiny", "messages": HELLO, "stream": is_stream},
                    timeout=aiohttp.ClientTimeout(30),
                ) as response:
                    text = await response.text()
                if response.status != 200:
                    error = json.loads(text)["error"]
                    assert response.status in {429, 502, 503, 504}, text
                    assert error["message"]
                    outcomes[f"status_{response.status}"] += 1
                elif not is_stream:
                    assert json.loads(text)["choices"][0]["message"]["content"] == "Standing in."
                    outcomes["complete"] += 1
                elif '"error"' in text:
                    outcomes["error_event"] += 1
                else:
                    assert text.endswith("data: [DONE]\n\n")
                    outcomes["complete"] += 1

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(one(session, number) for number in range(REQUESTS)))

        assert sum(outcomes.values()) == REQUESTS
        assert outcomes["complete"] > REQUESTS / 2, outcomes
        assert await until(lambda: all(state.in_flight == 0 for state in running.appliance.router.states()))
        assert running.appliance.router.dispatcher.waiting == running.appliance.pipeline.in_flight == 0
        finishes = Counter(receipt.finish_label for receipt in running.appliance.receipts.latest(1000))
        assert set(finishes) <= {"done", "cut_off", "error"}
        answered = {f"e{n}": running.appliance.router.state(f"e{n}").chosen_total for n in range(4)}
        assert min(answered.values()) > 0, answered
    finally:
        for server in servers:
            await server.stop()
