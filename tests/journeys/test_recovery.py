"""Servers that come back, open circuits, conversations that stay where they are cached, TLS."""

import asyncio
import json
import ssl
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from tests.fakes.engine_server import EngineServer
from tests.fakes.mirror import Mirror
from tests.journeys.running import Running, until
from tests.journeys.test_backends import HELLO, QUICK, ask, backend


@pytest.fixture
async def pair():
    async with (
        EngineServer("vllm", slots=64, token_s=0.05) as first,
        EngineServer("vllm", slots=64, token_s=0.05) as second,
    ):
        yield first, second


def both(pair: tuple[EngineServer, EngineServer], **variables: str) -> dict[str, str]:
    return QUICK | {"BACKENDS": f"e0={pair[0].url},e1={pair[1].url}"} | variables


async def shares(running: Running, count: int) -> Counter[str]:
    """Ask so many times at the same instant; give who answered."""
    return Counter(
        backend(headers) for _, headers, _ in await asyncio.gather(*(ask(running) for _ in range(count)))
    )


async def test_a_server_that_comes_back_starts_slowly(start, pair) -> None:
    running = await start(**both(pair, SLOW_START_S="300"))
    assert await shares(running, 22) == {"e0": 11, "e1": 11}
    await pair[0].stop()
    assert set(await shares(running, 4)) == {"e1"}
    await pair[0].start()
    assert await until(lambda: running.appliance.router.state("e0").standing == "ready", seconds=10)
    found = await shares(running, 33)
    assert 1 <= found["e0"] <= 4  # about a tenth of what the other one is worth, and not nothing
    assert found["e1"] == 33 - found["e0"]


async def test_without_a_slow_start_it_has_its_share_at_once(start, pair) -> None:
    running = await start(**both(pair, SLOW_START_S="0"))
    await pair[0].stop()
    assert set(await shares(running, 4)) == {"e1"}
    await pair[0].start()
    assert await until(lambda: running.appliance.router.state("e0").standing == "ready", seconds=10)
    assert (await shares(running, 20))["e0"] >= 9


async def test_an_open_circuit_is_tried_by_one_request(start, pair) -> None:
    running = await start(**both(pair, BREAKER_FAILURES="2", BREAKER_REST_S="1", LB_STRATEGY="round_robin"))
    pair[0].faults = ["status_500"] * 3
    for _ in range(6):
        assert (await ask(running))[0] == 200  # no client notices
    asked = len(pair[0].asked)
    assert (asked, running.appliance.router.state("e0").breaker) == (2, "open")
    assert set(await shares(running, 6)) == {"e1"}
    assert await until(lambda: running.appliance.router.state("e0").breaker != "open", seconds=5)
    await shares(running, 10)  # one of them tries it, fails, and is answered by the other
    assert len(pair[0].asked) == asked + 1
    assert running.appliance.router.state("e0").breaker == "open"
    assert await until(lambda: running.appliance.router.state("e0").breaker != "open", seconds=5)
    await ask(running)
    await ask(running)  # well again
    assert running.appliance.router.state("e0").breaker == "closed"
    assert (await shares(running, 10))["e0"] >= 4


async def of_client(running: Running, key: str) -> int:
    """Ask as the client with `key`; give the status."""
    return (await ask(running, headers={"Authorization": f"Bearer {key}"}))[0]


KEYS = ["client-key-1", "client-key-2", "client-key-3"]


async def test_unknown_errors_of_one_client_take_no_server_away(start, pair) -> None:
    """Each gets a 500 whose sentence no table knows, from whichever server is asked."""
    running = await start(**both(pair, BREAKER_FAILURES="3", APPLIANCE_API_KEYS=",".join(KEYS)))
    for server in pair:
        server.faults = ["says_500 Something about this request that nobody knows"] * 10
    assert [await of_client(running, KEYS[0]) for _ in range(10)] == [502] * 10
    assert sum(len(server.asked) for server in pair) == 20  # the second said the same: nobody else is asked
    receipt = running.appliance.receipts.latest(1)[0]
    assert [attempt.label for attempt in receipt.attempts] == ["status_500"] * 2
    assert receipt.error == "upstream: Something about this request that nobody knows"
    assert [running.appliance.router.state(name).breaker for name in ("e0", "e1")] == ["closed"] * 2
    assert [await of_client(running, key) for key in KEYS[1:]] == [200] * 2


async def test_a_lone_server_that_fails_every_client_is_seen(start, pair) -> None:
    running = await start(
        **QUICK,
        BACKENDS=f"e0={pair[0].url}",
        BREAKER_FAILURES="3",
        BREAKER_REST_S="60",
        APPLIANCE_API_KEYS=",".join(KEYS),
    )
    pair[0].faults = ["says_500 Compute error."] * 9
    for key in [KEYS[0], KEYS[0], KEYS[0], KEYS[1], KEYS[0]]:
        assert await of_client(running, key) == 502
    assert running.appliance.router.state("e0").breaker == "closed"
    assert await of_client(running, KEYS[2]) == 502
    assert running.appliance.router.state("e0").breaker == "open"
    assert await of_client(running, KEYS[0]) == 503


@pytest.mark.parametrize("fault", ["status_502", "status_503", "status_504", "plain_500", "refuse"])
async def test_a_dead_server_is_seen_by_one_clients_requests(start, pair, fault: str) -> None:
    running = await start(
        **QUICK | {"METRICS_CACHE_TTL_SECONDS": "60"},
        BACKENDS=f"e0={pair[0].url}",
        BREAKER_FAILURES="3",
        BREAKER_REST_S="60",
    )
    pair[0].faults = [fault] * 20
    for _ in range(3):
        assert (await ask(running))[0] == 502
    assert running.appliance.router.state("e0").breaker == "open"


async def test_a_server_whose_health_fails_after_an_unknown_error_goes_down(start, pair) -> None:
    running = await start(**both(pair, METRICS_CACHE_TTL_SECONDS="60"))
    pair[0].health_status = 500
    pair[0].faults = ["says_500 EngineCore encountered an issue."]
    pair[1].faults = ["says_500 Something else."]
    await ask(running)
    assert await until(lambda: running.appliance.router.state("e0").standing == "down")
    assert running.appliance.router.state("e1").standing == "ready"


async def test_broken_metrics_leave_the_choice_to_our_own_counts(start, pair) -> None:
    """Numbers that were read before are forgotten: what others did there then says nothing about now."""
    running = await start(**both(pair))
    state = running.appliance.router.state
    pair[0].others = 40
    assert await until(lambda: state("e0").running == 40)
    assert await shares(running, 10) == {"e1": 10}
    for page in (b"vllm:num_requests_running many\n", b"<html>", b"\xff\x00"):
        pair[0].metrics_page = page
        assert await until(lambda: state("e0").metrics != "ok")
        assert (state("e0").standing, state("e0").running) == ("ready", None)
        assert await shares(running, 10) == {"e0": 5, "e1": 5}
        pair[0].metrics_page = None
        assert await until(lambda: state("e0").metrics == "ok")
    pair[0].metrics_status = 500
    assert await until(lambda: state("e0").metrics == "/metrics answered 500")
    assert (await shares(running, 10))["e0"] == 5
    pair[0].metrics_status, pair[0].others = 200, 40
    assert await until(lambda: state("e0").running == 40)
    assert await shares(running, 10) == {"e1": 10}


def conversation(number: int, turns: int = 1) -> dict[str, Any]:
    beginning = [
        {
            "role": "system",
            "content": f"You are the assistant number {number}. " + "Think before you answer. " * 40,
        }
    ]
    return {"model": "tiny", "messages": beginning + HELLO * turns}


async def test_a_conversation_stays_where_its_beginning_is_cached(start, pair) -> None:
    running = await start(**both(pair, LB_STRATEGY="prefix_affinity"))
    homes = {number: backend((await ask(running, conversation(number)))[1]) for number in range(6)}
    assert set(homes.values()) == {"e0", "e1"}
    for turns in (2, 3):
        for number, home in homes.items():
            assert backend((await ask(running, conversation(number, turns)))[1]) == home


async def test_affinity_yields_to_load(start, pair) -> None:
    running = await start(**both(pair, LB_STRATEGY="prefix_affinity"))
    home = backend((await ask(running, conversation(1)))[1])
    found = Counter(
        backend(headers)
        for _, headers, _ in await asyncio.gather(*(ask(running, conversation(1)) for _ in range(20)))
    )
    assert set(found) == {"e0", "e1"}
    assert 10 <= found[home] <= 12  # at most two requests' worth of preference


# ---- TLS


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return ca


async def behind_tls(start, tmp_path: Path, server: EngineServer, tls: dict[str, Any]) -> Running:
    config = tmp_path / "backends.json"
    config.write_text(json.dumps({"backends": [{"url": server.url, "name": "e0", "tls": tls}]}))
    return await start(CONFIG_PATH=str(config), **QUICK)


def server_side(ca: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(name).configure_cert(context)
    return context


async def test_a_server_of_a_private_authority_is_reached(
    start, authority: trustme.CA, tmp_path: Path
) -> None:
    server = Mirror("llamacpp")
    server.ssl_context = server_side(authority, "127.0.0.1")
    async with server:
        running = await behind_tls(start, tmp_path, server, {"ca_file": str(tmp_path / "ca.pem")})
        status, _, value = await ask(running)
        assert (status, value["choices"][0]["message"]["content"]) == (200, "Standing in.")
        assert (await ask(running, {"content": "x"}, path="/tokenize"))[2]["method"] == "POST"
        async with aiohttp.ClientSession() as session, session.ws_connect(running.base_url + "/act/ws") as ws:
            await ws.send_str("hello")
            assert await ws.receive_str(timeout=5) == "echo hello"


@pytest.mark.parametrize(("name", "trusts"), [("other.example", True), ("127.0.0.1", False)])
async def test_a_server_with_a_wrong_certificate_gets_no_request(
    start,
    authority: trustme.CA,
    tmp_path: Path,
    name: str,
    trusts: bool,
) -> None:
    server = EngineServer("llamacpp")
    server.ssl_context = server_side(authority, name)
    async with server:
        running = await behind_tls(
            start, tmp_path, server, {"ca_file": str(tmp_path / "ca.pem")} if trusts else {}
        )
        status, _, _ = await ask(running)
        assert status == 503
        assert server.asked == []
        assert await until(lambda: "certificate" in running.appliance.router.state("e0").detail.lower())
        assert (await ask(running, {"content": "x"}, path="/tokenize"))[0] == 503


async def test_tls_without_verification_and_with_a_client_certificate(
    start, authority: trustme.CA, tmp_path: Path
) -> None:
    server = EngineServer("llamacpp")
    server.ssl_context = server_side(authority, "other.example")
    async with server:
        running = await behind_tls(start, tmp_path, server, {"verify": False})
        assert (await ask(running))[0] == 200
    ours = authority.issue_cert("client.example")
    ours.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    ours.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    server = EngineServer("llamacpp")
    server.ssl_context = server_side(authority, "127.0.0.1")
    server.ssl_context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(server.ssl_context)
    async with server:
        with_one = {
            "ca_file": str(tmp_path / "ca.pem"),
            "cert_file": str(tmp_path / "cert.pem"),
            "key_file": str(tmp_path / "key.pem"),
        }
        assert (await ask(await behind_tls(start, tmp_path, server, with_one)))[0] == 200
        assert (await ask(await behind_tls(start, tmp_path, server, {"ca_file": str(tmp_path / "ca.pem")})))[
            0
        ] == 503


async def test_a_queued_stream_gets_heartbeats(start) -> None:
    async with EngineServer("llamacpp", slots=1, token_s=0.4) as engine:
        running = await start(BACKENDS=f"e0={engine.url}", HEARTBEAT_S="0.2", **QUICK)
        async with aiohttp.ClientSession() as session:

            async def text() -> str:
                async with session.post(
                    running.v1 + "/chat/completions",
                    json={"model": "tiny", "messages": HELLO, "stream": True},
                ) as response:
                    return await response.text()

            first = asyncio.create_task(text())
            assert await until(lambda: engine.running == 1)
            second = asyncio.create_task(text())
            assert await until(lambda: running.appliance.router.dispatcher.waiting == 1)
            waited = (await asyncio.gather(first, second))[1]
    assert waited.startswith(": heartbeat\n\n")
    assert waited.count(": heartbeat\n\n") >= 3
    assert waited.rstrip().endswith("data: [DONE]")
