"""Several engines behind one address: chosen by model and load, failed over, left out, waited for.

The engines are stand-ins that can be made to fail (tests/fakes/engine_server.py); the appliance and its
clients are real.
"""

import asyncio
import json
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.fakes.engine_server import EngineServer
from tests.fakes.hosted_api import KEY
from tests.journeys.running import Running, until

QUICK = {"METRICS_CACHE_TTL_SECONDS": "0.2", "SLOW_START_S": "0", "BACKEND_STARTUP_GRACE_S": "0"}
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def engines():
    """Start stand-ins: `await engines("vllm", "llamacpp", slots=2)`."""
    async with AsyncExitStack() as stack:

        async def begin(*kinds: str, **how: Any) -> list[EngineServer]:
            return [await stack.enter_async_context(EngineServer(kind, **how)) for kind in kinds]

        yield begin


def named(servers: list[EngineServer]) -> str:
    return ",".join(f"e{number}={server.url}" for number, server in enumerate(servers))


async def ask(
    running: Running,
    body: dict[str, Any] | None = None,
    *,
    headers: dict[str, str] | None = None,
    path: str = "/v1/chat/completions",
    method: str = "POST",
) -> tuple[int, dict[str, str], Any]:
    """Ask over HTTP; give (status, headers, JSON or text)."""
    data = (
        None
        if method == "GET"
        else json.dumps({"model": "tiny", "messages": HELLO} if body is None else body)
    )
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            method,
            running.base_url + path,
            data=data,
            headers={"Content-Type": "application/json", **(headers or {})},
        ) as response,
    ):
        text = await response.text()
        return (
            response.status,
            dict(response.headers),
            json.loads(text) if "json" in response.headers["Content-Type"] else text,
        )


def backend(headers: dict[str, str]) -> str:
    return dict(part.split("=", 1) for part in headers["x-appliance-receipt"].split("; "))["backend"]


@pytest.mark.parametrize("kind", ["llamacpp", "vllm", "sglang", "openai"])
async def test_each_kind_is_detected_and_answers(start, engines, kind: str) -> None:
    servers = await engines(kind)
    running = await start(BACKENDS=named(servers), **QUICK)
    status, headers, value = await ask(running)
    assert (status, value["model"], value["choices"][0]["message"]["content"]) == (
        200,
        "tiny",
        "Standing in.",
    )
    assert running.appliance.router.states()[0].kind == kind
    status, _, health = await ask(running, path="/health", method="GET")
    assert (status, health["status"], health["available_backends"], health["total_backends"]) == (
        200,
        "ok",
        [servers[0].url],
        1,
    )
    if kind != "openai":
        assert health["details"][0]["metrics"]["requests_processing"] == 0
    client = openai.AsyncOpenAI(base_url=running.v1, api_key="x", max_retries=0)
    async with client:
        listed = [m.id async for m in client.models.list()]
        assert "tiny" in listed
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        assert "".join([c.choices[0].delta.content or "" async for c in stream]) == "Standing in."


async def test_a_burst_is_spread_by_our_own_counts(start, engines) -> None:
    """64 at the same instant over four: no metrics page can know of them yet."""
    servers = await engines("vllm", "vllm", "vllm", "vllm", slots=64, token_s=0.1)
    running = await start(BACKENDS=named(servers), **QUICK | {"METRICS_CACHE_TTL_SECONDS": "60"})
    answers = await asyncio.gather(*(ask(running) for _ in range(64)))
    assert Counter(backend(headers) for _, headers, _ in answers) == {"e0": 16, "e1": 16, "e2": 16, "e3": 16}


async def test_a_full_server_is_not_given_more_than_its_slots(start, engines) -> None:
    servers = await engines("llamacpp", "llamacpp", slots=2, token_s=0.02)
    running = await start(BACKENDS=named(servers), **QUICK)
    answers = await asyncio.gather(*(ask(running) for _ in range(40)))
    assert {status for status, _, _ in answers} == {200}
    assert [server.most_running for server in servers] == [2, 2]
    assert all(len(server.asked) >= 15 for server in servers)
    assert running.appliance.router.dispatcher.waiting == 0


async def test_a_full_queue_is_refused_and_time_in_it_is_limited(start, engines) -> None:
    servers = await engines("llamacpp", slots=1, token_s=0.4)
    running = await start(BACKENDS=named(servers), QUEUE_LIMIT="1", QUEUE_TIMEOUT_S="0.3", **QUICK)
    answers = await asyncio.gather(*(ask(running) for _ in range(3)))
    assert sorted(status for status, _, _ in answers) == [200, 429, 503]
    for status, headers, value in answers:
        if status != 200:
            assert int(headers["Retry-After"]) >= 1
            assert value["error"]["code"] == {429: "queue_full", 503: "queue_timeout"}[status]


async def test_priority_goes_first(start, engines) -> None:
    servers = await engines("llamacpp", slots=1, token_s=0.03)
    running = await start(BACKENDS=named(servers), **QUICK)
    order: list[str] = []

    async def one(priority: str) -> None:
        assert (await ask(running, headers={"X-Request-Priority": priority}))[0] == 200
        order.append(priority)

    first = asyncio.ensure_future(one("normal"))
    assert await until(lambda: servers[0].running == 1)
    rest = [asyncio.ensure_future(one("low"))]
    assert await until(lambda: running.appliance.router.dispatcher.waiting == 1)
    rest += [asyncio.ensure_future(one("high"))]
    await asyncio.gather(first, *rest)
    assert order == ["normal", "high", "low"]
    assert (await ask(running, headers={"X-Request-Priority": "urgent"}))[0] == 400


@pytest.mark.parametrize(
    "fault", ["refuse", "status_502", "status_503", "status_500", "status_429", "invalid_response"]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_a_server_failed_goes_to_another(
    start, engines, fault: str, stream: bool
) -> None:
    servers = await engines("vllm", "vllm")
    running = await start(BACKENDS=named(servers), LB_ENABLED="0", **QUICK)
    # A kept connection that is closed without a byte is replaced once: the server may have closed it before
    # it was used.
    servers[0].faults = [fault] * (2 if fault == "refuse" else 1)
    status, headers, _ = await ask(running, {"model": "tiny", "messages": HELLO, "stream": stream})
    assert (status, backend(headers)) == (200, "e1")
    assert len(servers[0].asked) <= (2 if fault == "refuse" else 1)
    receipt = running.appliance.receipts.latest(1)[0]
    assert len(receipt.attempts) == 2
    assert receipt.attempts[1].label == "ok"


@pytest.mark.parametrize("fault", ["cut", "event_500", "refuse"])
async def test_a_whole_response_that_breaks_off_is_tried_elsewhere(start, engines, fault: str) -> None:
    """llama.cpp is asked for a stream also where the client wants one piece.

    Until its end nothing has been sent.
    """
    servers = await engines("llamacpp", "llamacpp")
    running = await start(BACKENDS=named(servers), LB_STRATEGY="round_robin", **QUICK)
    servers[0].faults = [fault]
    for _ in range(2):
        status, headers, value = await ask(running)
        assert (status, value["choices"][0]["message"]["content"]) == (200, "Standing in.")
        assert value["object"] == "chat.completion"
    assert all(body["stream"] for server in servers for body in server.asked)
    assert sum(len(server.asked) for server in servers) == 3


async def test_an_error_event_of_the_callers_fault_is_passed_on(start, engines) -> None:
    servers = await engines("llamacpp", "llamacpp")
    running = await start(BACKENDS=named(servers), LB_STRATEGY="round_robin", **QUICK)
    servers[0].faults = servers[1].faults = ["event_400"]
    status, _, value = await ask(running)
    assert (status, value["error"]["message"]) == (400, "on purpose: event_400")
    assert sum(len(server.asked) for server in servers) == 1


@pytest.mark.parametrize(
    ("fault", "settings"),
    [
        ("hang", {"UPSTREAM_FIRST_BYTE_TIMEOUT_S": "0.3"}),
        ("hang_after_head", {"UPSTREAM_IDLE_TIMEOUT_S": "0.3"}),
    ],
)
async def test_a_hanging_server_is_given_up(start, engines, fault: str, settings: dict[str, str]) -> None:
    servers = await engines("vllm", "vllm")
    running = await start(BACKENDS=named(servers), LB_ENABLED="0", **QUICK, **settings)
    servers[0].faults = [fault]
    status, headers, _ = await ask(running, {"model": "tiny", "messages": HELLO, "stream": True})
    assert (status, backend(headers)) == (200, "e1")


async def test_a_server_found_dead_has_its_waiting_requests_moved(start, engines) -> None:
    servers = await engines("vllm", "vllm")
    running = await start(BACKENDS=named(servers), LB_ENABLED="0", **QUICK)
    servers[0].faults = ["hang"]
    request = asyncio.create_task(ask(running))
    assert await until(lambda: len(servers[0].asked) == 1)
    servers[0].health_status = 500  # not before: a probe between must not take the server out of the choice
    status, headers, _ = await request
    assert (status, backend(headers)) == (200, "e1")
    assert running.appliance.receipts.latest(1)[0].attempts[0].label == "lost"


async def test_a_failure_after_the_first_byte_is_an_error_event(start, engines) -> None:
    servers = await engines("vllm", "vllm")
    running = await start(BACKENDS=named(servers), LB_ENABLED="0", **QUICK)
    servers[0].faults = ["cut"]
    status, _, text = await ask(running, {"model": "tiny", "messages": HELLO, "stream": True})
    assert status == 200
    assert '"error"' in text
    assert "upstream_cut_off" in text
    assert not servers[1].asked
    assert running.appliance.receipts.latest(1)[0].finish_label == "cut_off"


async def test_a_dead_server_is_left_out_and_comes_back(start, engines) -> None:
    servers = await engines("vllm", "vllm")
    running = await start(BACKENDS=named(servers), **QUICK)
    await servers[0].stop()
    answers = [await ask(running) for _ in range(6)]
    assert [status for status, _, _ in answers] == [200] * 6
    assert {backend(headers) for _, headers, _ in answers} == {"e1"}
    assert (await ask(running, path="/health", method="GET"))[2]["status"] == "degraded"
    await servers[0].start()
    assert await until(lambda: running.appliance.router.state("e0").standing == "ready")
    assert {backend(headers) for _, headers, _ in [await ask(running) for _ in range(8)]} == {"e0", "e1"}


async def test_no_server_at_all_is_an_error_at_once(start, engines) -> None:
    servers = await engines("vllm")
    running = await start(BACKENDS=named(servers), **QUICK)
    await servers[0].stop()
    assert await until(lambda: running.appliance.router.state("e0").standing == "down")
    status, headers, value = await ask(running)
    assert (status, value["error"]["code"], "Retry-After" in headers) == (503, "no_backend", True)
    assert "e0 is down" in value["error"]["message"]


@pytest.mark.parametrize(
    ("page", "status"),
    [(b"vllm:num_requests_running much\n", 200), (b"\xff\x00", 200), (b"", 500), (b"", 404)],
)
async def test_a_broken_metrics_page_does_not_take_a_server_out(
    start, engines, page: bytes, status: int
) -> None:
    servers = await engines("vllm")
    servers[0].metrics_page, servers[0].metrics_status = page, status
    running = await start(BACKENDS=named(servers), **QUICK)
    assert (await ask(running))[0] == 200
    assert running.appliance.router.state("e0").metrics != "ok"


async def test_requests_go_where_their_model_is(start, engines) -> None:
    (one,) = await engines("vllm", models=("alpha", "alpha-lora"))
    (two,) = await engines("llamacpp", models=("beta",))
    running = await start(BACKENDS=named([one, two]), MODEL_ALIASES="gpt-4o=beta", **QUICK)
    for model, wanted in (
        ("alpha", "e0"),
        ("alpha-lora", "e0"),
        ("beta", "e1"),
        ("beta:latest", "e1"),
        ("gpt-4o", "e1"),
        ("", "e0"),
        ("tiny-lora", "e1"),
    ):
        status, headers, _ = await ask(
            running, {"model": model, "messages": HELLO} if model else {"messages": HELLO}
        )
        assert (status, backend(headers)) == (200, wanted), model
    assert two.asked[-1]["lora"] == [{"id": 0, "scale": 1.0}]
    assert two.asked[-1]["model"] == "beta"
    status, _, value = await ask(running, {"model": "alfa", "messages": HELLO})
    assert (status, value["error"]["code"]) == (404, "model_not_found")
    assert "Did you mean 'alpha'" in value["error"]["message"]


async def test_a_prompt_too_long_goes_to_more_context_or_is_refused(start, engines) -> None:
    (small,) = await engines("llamacpp", context=512)
    (large,) = await engines("vllm", context=8192)
    running = await start(BACKENDS=named([small, large]), LB_ENABLED="0", **QUICK)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "word " * 1000}]}
    status, headers, _ = await ask(running, body)
    assert (status, backend(headers)) == (200, "e1")
    body["messages"][0]["content"] = "word " * 9000
    status, _, value = await ask(running, body)
    assert (status, value["error"]["code"]) == (400, "context_length_exceeded")
    assert "9000 tokens" in value["error"]["message"]
    assert "8192" in value["error"]["message"]


@pytest.mark.parametrize("kind", ["llamacpp", "vllm", "sglang"])
async def test_every_engines_words_for_too_long_are_understood(start, engines, kind: str) -> None:
    servers = await engines(kind, context=700)
    running = await start(BACKENDS=named(servers), **QUICK)
    servers[0].faults = ["context"]
    status, _, value = await ask(running)
    assert (status, value["error"]["code"]) == (400, "context_length_exceeded")
    assert "9000 tokens" in value["error"]["message"]
    assert "700 tokens" in value["error"]["message"]


async def test_num_ctx_finds_a_server_that_has_it_or_is_refused(start, engines) -> None:
    (small,) = await engines("llamacpp", context=512)
    (large,) = await engines("llamacpp", context=4096)
    running = await start(BACKENDS=named([small, large]), LB_ENABLED="0", **QUICK)
    body = {"model": "tiny", "messages": HELLO, "stream": False, "options": {"num_ctx": 4096}}
    status, headers, _ = await ask(running, body, path="/api/chat")
    assert (status, backend(headers)) == (200, "e1")
    body["options"]["num_ctx"] = 32768
    status, _, value = await ask(running, body, path="/api/chat")
    assert status == 400
    assert "32768" in value["error"]
    assert "4096" in value["error"]


async def test_overflow_to_the_hosted_api_can_be_forbidden(start, engines, hosted) -> None:
    servers = await engines("llamacpp", slots=1, token_s=0.3)
    running = await start(
        BACKENDS=named(servers),
        LB_OVERFLOW="hosted",
        NOVITA_API_KEY=KEY,
        NOVITA_OPENAI_ENDPOINTS=hosted.base_url,
        **QUICK,
    )
    first = asyncio.ensure_future(ask(running))
    assert await until(lambda: servers[0].running == 1)
    status, headers, value = await ask(running)
    assert (status, backend(headers), value["model"]) == (200, "hosted", "tiny")
    assert "default is full" in headers["x-appliance-receipt"]
    assert running.appliance.receipts.latest(1)[0].overflow == "default is full"
    status, headers, _ = await ask(running, headers={"x-appliance-stay-local": "1"})
    assert (status, backend(headers)) == (200, "e0")
    await first
    await servers[0].stop()
    assert await until(lambda: running.appliance.router.state("e0").standing == "down")
    assert (await ask(running))[0] == 200
    status, _, value = await ask(running, headers={"x-appliance-stay-local": "1"})
    assert status == 503
    assert "tiny" not in str(hosted.records[-1].headers)
    assert (await ask(running, headers={"x-appliance-stay-local": "perhaps"}))[0] == 400


async def test_a_server_gets_its_own_key_and_not_the_clients(start, engines, tmp_path) -> None:
    servers = await engines("vllm", key="sk_of_the_server")
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(
            {"backends": [{"url": servers[0].url, "name": "e0", "api_key_env": "E0_KEY", "kind": "vllm"}]}
        )
    )
    running = await start(
        CONFIG_PATH=str(config), E0_KEY="sk_of_the_server", APPLIANCE_API_KEYS="client-key-1", **QUICK
    )
    status, _, _ = await ask(running, headers={"Authorization": "Bearer client-key-1"})
    assert status == 200
    assert servers[0].headers[-1]["authorization"] == "Bearer sk_of_the_server"
    assert "client-key-1" not in str(servers[0].headers)
    assert "sk_of_the_server" not in repr(running.appliance.settings)


async def test_a_backend_can_be_pinned_by_operators(start, engines) -> None:
    servers = await engines("vllm", "vllm")
    running = await start(
        BACKENDS=named(servers),
        APPLIANCE_API_KEYS="client-key-1",
        OPERATOR_API_KEYS="operator-key-1",
        **QUICK,
    )
    for name in ("e1", "e0", "e1"):
        status, headers, _ = await ask(
            running, headers={"x-appliance-backend": name, "x-api-key": "operator-key-1"}
        )
        assert (status, backend(headers)) == (200, name)
    assert (await ask(running, headers={"x-appliance-backend": "e9", "x-api-key": "operator-key-1"}))[
        0
    ] == 404
    assert (await ask(running, headers={"x-appliance-backend": "e1", "x-api-key": "client-key-1"}))[0] == 403


async def test_the_load_balancers_addresses(start, engines) -> None:
    servers = await engines("vllm", "vllm")
    running = await start(BACKENDS=named(servers), LB_STRATEGY="round_robin", **QUICK)
    base = "/api/v1/loadbalancer"
    assert [backend(headers) for _, headers, _ in [await ask(running) for _ in range(4)]] == [
        "e0",
        "e1",
        "e0",
        "e1",
    ]
    assert (await ask(running, path=f"{base}/strategy", method="GET"))[2] == {"strategy": "round_robin"}
    status, _, value = await ask(
        running, {"strategy": "equal_weighted"}, path=f"{base}/strategy", method="PUT"
    )
    assert (status, value) == (
        200,
        {"strategy": "equal_weighted", "message": "Load balancing strategy updated"},
    )
    status, _, value = await ask(running, {"strategy": "best"}, path=f"{base}/strategy", method="PUT")
    assert status == 400
    assert "Invalid strategy" in value["error"]["message"]
    _, _, loads = await ask(running, path=f"{base}/loads", method="GET")
    assert (loads["strategy"], loads["count"]) == ("equal_weighted", 2)
    load = loads["loads"]["e0"]
    assert (load["total_connections"], load["active_connections"], load["provider"], load["weight"]) == (
        2,
        0,
        "vllm",
        1.0,
    )
    assert load["avg_response_time"] > 0
    assert load["last_used"].endswith("Z")
    assert (await ask(running, path=f"{base}/load?instance_id=e1", method="GET"))[2]["instance_id"] == "e1"
    assert (await ask(running, path=f"{base}/load", method="GET"))[0] == 400
    assert (await ask(running, path=f"{base}/load?instance_id=e7", method="GET"))[0] == 404


async def test_when_the_client_leaves_the_engine_is_free(start, engines) -> None:
    servers = await engines("vllm", token_s=5)
    running = await start(BACKENDS=named(servers), **QUICK)
    for stream in (False, True):
        task = asyncio.ensure_future(ask(running, {"model": "tiny", "messages": HELLO, "stream": stream}))
        assert await until(lambda: servers[0].running == 1)
        task.cancel()
        assert await until(lambda: servers[0].running == 0, seconds=1.0)
        assert await until(lambda: running.appliance.router.state("e0").in_flight == 0)


async def test_a_client_that_leaves_leaves_the_queue(start, engines) -> None:
    servers = await engines("llamacpp", slots=1, token_s=0.2)
    running = await start(BACKENDS=named(servers), **QUICK)
    first = asyncio.ensure_future(ask(running))
    assert await until(lambda: servers[0].running == 1)
    task = asyncio.ensure_future(ask(running))
    assert await until(lambda: running.appliance.router.dispatcher.waiting == 1)
    task.cancel()
    assert await until(lambda: running.appliance.router.dispatcher.waiting == 0, seconds=1.0)
    assert (await first)[0] == 200
    assert len(servers[0].asked) == 1


async def test_the_metrics_show_each_backend(start, engines) -> None:
    servers = await engines("vllm", "vllm")
    running = await start(BACKENDS=named(servers), LB_ENABLED="0", **QUICK)
    servers[0].faults = ["status_503"]
    await ask(running)
    _, _, text = await ask(running, path="/metrics", method="GET")
    for line in (
        'appliance_backend_up{backend="e1",kind="vllm"} 1.0',
        'appliance_backend_chosen_total{backend="e1",reason="first"} 1.0',
        'appliance_backend_errors_total{backend="e0",kind="status_503"} 1.0',
        'appliance_retries_total{reason="status_503"} 1.0',
        'appliance_backend_breaker{backend="e1",state="closed"} 1.0',
        'appliance_backend_duration_seconds_count{backend="e1"} 1.0',
    ):
        assert line in text


async def test_a_reload_adds_and_removes_backends_and_says_so(start, engines) -> None:
    servers = await engines("vllm", "vllm")
    running = await start(BACKENDS=named(servers[:1]), **QUICK)
    from appliance.reload import Reloader

    result = await Reloader(running.appliance).reload({"BACKENDS": named(servers)}, True)
    assert [c.new for c in result.changes if c.variable == "backends"] == ["the backend e1 is added"]
    assert not result.applied
    reloader = Reloader(running.appliance)
    assert (await reloader.reload({"BACKENDS": named(servers)}, False)).applied
    assert await until(lambda: running.appliance.router.state("e1").standing == "ready")
    before = running.appliance.router.state("e0").chosen_total
    assert (await reloader.reload({"BACKENDS": f"e1={servers[1].url}"}, False)).applied
    assert before == 0
    assert running.appliance.router.direct.server_names() == ["e1"]
    assert backend((await ask(running))[1]) == "e1"


PATH_KEY = "k3Jx9vQ2mZ8pL4tWb7Ny"


async def answer_below_a_key(request: web.Request) -> web.Response:
    """Answer as an engine whose addresses have a key in their path."""
    if not request.path.startswith(f"/{PATH_KEY}/"):
        return web.json_response({"error": "no key"}, status=404)
    if request.path.endswith("/models"):
        return web.json_response({"object": "list", "data": [{"id": "tiny", "object": "model"}]})
    if request.path.endswith("/chat/completions"):
        message = {"role": "assistant", "content": "ok"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response(
            {"id": "1", "object": "chat.completion", "model": "tiny", "choices": [choice]}
        )
    return web.json_response({"path": "other"}, status=404)


async def test_a_key_in_the_path_of_an_address_is_not_shown(start) -> None:
    server = TestServer(web.Application())
    server.app.router.add_route("*", "/{tail:.*}", answer_below_a_key)
    async with server:
        url = f"http://127.0.0.1:{server.port}/{PATH_KEY}"
        spec = {
            "BACKENDS": f"own={url}",
            "NOVITA_API_KEY": KEY,
            "NOVITA_OPENAI_ENDPOINTS": f"{url}/hosted/v1",
        }
        running = await start(**spec, **QUICK, PUBLIC_MODEL="far")
        for body in ({"model": "tiny", "messages": HELLO}, {"model": "far", "messages": HELLO}):
            status, headers, _ = await ask(running, body)
            assert status == 200
            assert f"endpoint=http://127.0.0.1:{server.port}/***" in headers["x-appliance-receipt"]
        await ask(running, {"x": 1}, path="/unknown/address")  # handed to the server as it is
        await ask(running, method="GET", path="/unknown/address")
        for path in (
            "/health",
            "/receipts",
            "/metrics",
            "/healthz",
            "/loadbalance/status",
            "/v1/models",
            "/api/tags",
            "/api/backends",
        ):
            _, headers, value = await ask(running, method="GET", path=path)
            assert PATH_KEY not in str(value) + str(headers), path
        _, _, health = await ask(running, method="GET", path="/health")
        assert f"http://127.0.0.1:{server.port}/***" in health["available_backends"]
