"""Requests through the proxy of a whole appliance: http, MCP, Open Inference; what is refused, what it costs."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.proxy_target import ProxyTarget, serving_target
from tests.journeys.paying import PayingUser, begin_paying, user_of
from tests.journeys.running import Running, Start, free_port, start, until  # noqa: F401 - a fixture

MCP_SERVER = Path(__file__).parents[1] / "fakes" / "mcp_http_server.py"
PROXY = "/api/v1/gpu/proxy"
LIST = {"method": "tools/list"}
ADD = {"method": "tools/call", "params": {"name": "add", "arguments": {"a": 2, "b": 3}}}


@pytest.fixture
async def running(start: Start, tmp_path: Path) -> Running:  # noqa: F811
    price = {"model": "proxy.request", "per_request": "0.01"}
    return await begin_paying(
        start, tmp_path, price=price, MARKET="1", GPU_PROXY_ALLOW_PRIVATE="127.0.0.1/32", PROXY_MAX_S="30"
    )


@pytest.fixture
async def user(running: Running) -> PayingUser:
    return await user_of(running, 1_000_000)


@pytest.fixture
async def http(running: Running, user: PayingUser) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"X-API-Key": user.key}
    async with httpx.AsyncClient(base_url=running.base_url, headers=headers, timeout=30) as client:
        yield client


@pytest.fixture
async def target() -> AsyncIterator[ProxyTarget]:
    async with serving_target() as one:
        yield one


async def test_a_request_over_http_as_in_the_seeds_curl(http: httpx.AsyncClient, target: ProxyTarget) -> None:
    order = {
        "protocol": "http",
        "target_url": target.url + "/inference",
        "method": "POST",
        "headers": {"Content-Type": "application/json"},
        "body": {"prompt": "Hello world"},
    }
    done = await http.post(PROXY, json=order)
    assert done.status_code == 200, done.text
    got = done.json()
    assert got["status_code"] == 200
    assert json.loads(got["body"]["body"]) == {"prompt": "Hello world"}
    assert got["duration"] == pytest.approx(got["duration_ms"] * 1e6, rel=0.01)
    assert got["headers"]["X-Own"] == "yes"
    assert not {"Set-Cookie", "X-Hop", "Connection"} & set(got["headers"])


async def test_neither_keys_nor_where_we_are_go_up(
    http: httpx.AsyncClient, target: ProxyTarget, user: PayingUser
) -> None:
    headers = {
        "Cookie": "a=1",
        "X-API-Key": "other",
        "Authorization": f"Bearer {user.key}",
        "X-Forwarded-For": "1.2.3.4",
        "Host": "elsewhere",
        "X-Target-Key": "theirs",
    }
    done = await http.post(PROXY, json={"protocol": "http", "target_url": target.url, "headers": headers})
    assert done.status_code == 200
    sent = target.got[0]["headers"]
    assert sent["x-target-key"] == "theirs"
    assert sent["host"] == target.url.removeprefix("http://")
    assert not {"cookie", "x-api-key", "authorization", "x-forwarded-for"} & set(sent)
    assert user.key not in str(target.got)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/text", {"body": "plain, no JSON"}),
        ("/bytes", {"body_encoding": "base64"}),
        ("/echo?status=418", {"status_code": 418}),
        ("/move?status=302&to=/text", {"status_code": 302}),
    ],
)
async def test_answers_come_in_the_form_that_fits(
    http: httpx.AsyncClient, target: ProxyTarget, path: str, fields: dict[str, Any]
) -> None:
    got = (
        await http.post(PROXY, json={"protocol": "http", "target_url": target.url + path, "method": "get"})
    ).json()
    assert {name: got[name] for name in fields} == fields


async def test_redirects_are_followed_where_asked_and_checked(
    http: httpx.AsyncClient, target: ProxyTarget
) -> None:
    order = {"protocol": "http", "method": "POST", "body": "x", "follow": True}
    once = await http.post(PROXY, json={**order, "target_url": f"{target.url}/move?status=303&to=/echo"})
    assert (once.json()["status_code"], once.json()["body"]["method"]) == (200, "GET")
    inside = await http.post(
        PROXY, json={**order, "target_url": f"{target.url}/move?status=307&to=http://10.0.0.1/"}
    )
    assert (inside.status_code, inside.json()["code"]) == (403, "target_refused")
    own = f"{http.base_url}/health"
    inside = await http.post(PROXY, json={**order, "target_url": f"{target.url}/move?status=307&to={own}"})
    assert (inside.status_code, inside.json()["code"]) == (403, "target_refused")
    lost = await http.post(PROXY, json={**order, "target_url": f"{target.url}/loop"})
    assert (lost.status_code, lost.json()["code"]) == (502, "too_many_redirects")


@pytest.mark.parametrize(
    ("order", "status", "code"),
    [
        ({}, 400, "missing_fields"),
        ({"protocol": "http"}, 400, "missing_fields"),
        ({"protocol": "ftp", "target_url": "ftp://example.com"}, 400, "invalid_value"),
        ({"protocol": "http", "target_url": "https://example.com"}, 403, "target_refused"),
        ({"protocol": "http", "target_url": "http://169.254.169.254/latest"}, 403, "target_refused"),
        ({"protocol": "http", "target_url": "http://localhost.:80/"}, 403, "target_refused"),
        ({"protocol": "http", "target_url": "http://user@example.com"}, 403, "target_refused"),
        ({"protocol": "mcp", "target_url": "http://10.0.0.1/mcp", "body": LIST}, 403, "target_refused"),
        ({"protocol": "openinference", "target_url": "http://10.0.0.1", "body": {"model": "m", "prompt": "x"}}, 403, "target_refused"),
        ({"protocol": "http", "target_url": 5}, 400, "invalid_value"),
        ({"protocol": "http", "target_url": "gopher://x"}, 400, "invalid_target"),
        ({"protocol": "http", "target_url": "TARGET", "method": "TRACE"}, 400, "invalid_value"),
        ({"protocol": "http", "target_url": "TARGET", "headers": {"a b": "c"}}, 400, "invalid_value"),
        ({"protocol": "http", "target_url": "TARGET", "headers": {"A": "b\r\nC: d"}}, 400, "invalid_value"),
        ({"protocol": "http", "target_url": "TARGET", "headers": {"A": 5}}, 400, "invalid_value"),
        ({"protocol": "http", "target_url": "TARGET", "headers": []}, 400, "invalid_value"),
        ({"protocol": "http", "target_url": "TARGET", "timeout": "soon"}, 400, "invalid_time_limit"),
        ({"protocol": "http", "target_url": "TARGET", "stream_response": "yes"}, 400, "invalid_value"),
        ({"protocol": "http", "target_url": "TARGET", "follw": True}, 400, "unknown_field"),
        ({"protocol": "mcp", "target_url": "TARGET", "stream_response": True}, 501, "not_supported"),
        ({"protocol": "mcp", "target_url": "TARGET", "body": "x"}, 400, "invalid_value"),
        ({"protocol": "mcp", "target_url": "TARGET", "body": {"method": 5}}, 400, "invalid_value"),
        ({"protocol": "mcp", "target_url": "TARGET", "body": {"method": "a", "params": []}}, 400, "invalid_value"),
        ({"protocol": "mcp", "target_url": "TARGET/text", "body": LIST}, 502, "target_failed"),
        ({"protocol": "openinference", "target_url": "TARGET", "body": {}}, 400, "invalid_value"),
        ({"protocol": "openinference", "target_url": "TARGET", "body": {"prompt": "x"}}, 400, "invalid_value"),
        ({"protocol": "openinference", "target_url": "TARGET", "body": {"model": "m", "prompt": 5}}, 400, "invalid_value"),
        ({"protocol": "openinference", "target_url": "TARGET", "body": {"model": "m", "messages": []}}, 400, "invalid_value"),
        ({"protocol": "http", "target_url": "gpu://vast.ai"}, 400, "invalid_target"),
        ({"protocol": "http", "target_url": "gpu://vast.ai/5"}, 404, "no_such_instance"),
        ({"protocol": "http", "target_url": "http://127.0.0.1:1/"}, 403, "target_refused"),
        ({"protocol": "http", "target_url": "http://no-such-name.invalid/"}, 502, "target_unreachable"),
        ({"protocol": "http", "target_url": "TARGET/large?mib=33", "method": "GET"}, 502, "target_answer_too_large"),
        ({"protocol": "http", "target_url": "TARGET", "body": "x" * (8_388_608 + 1)}, 413, "request_too_large"),
    ],
)  # fmt: skip
async def test_each_wrong_order_is_refused_and_costs_nothing(
    http: httpx.AsyncClient, target: ProxyTarget, order: dict[str, Any], status: int, code: str
) -> None:
    if isinstance(url := order.get("target_url"), str):
        order = {**order, "target_url": url.replace("TARGET", target.url)}
    done = await http.post(PROXY, json=order)
    assert (done.status_code, done.json()["code"]) == (status, code), done.text
    assert "127.0.0.1" not in done.json()["error"]
    assert (await http.get("/api/v1/billing/usage")).json()["usage"] == []
    assert (await http.get("/api/v1/billing/credits")).json()["credits_remaining"] == 1.0


async def test_a_target_that_listens_nowhere_is_unreachable(http: httpx.AsyncClient) -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    done = await http.post(PROXY, json={"protocol": "http", "target_url": url})
    assert (done.status_code, done.json()["code"]) == (502, "target_unreachable")
    assert done.json()["error"] == "The target cannot be reached."


async def test_our_own_port_is_refused(http: httpx.AsyncClient) -> None:
    done = await http.post(PROXY, json={"protocol": "http", "target_url": f"{http.base_url}/health"})
    assert (done.status_code, done.json()["code"]) == (403, "target_refused")


@pytest.mark.parametrize(
    ("fields", "headers"),
    [({"timeout": 100_000_000}, {}), ({"timeout": "100ms"}, {}), ({}, {"X-Timelimit": "0.1"})],
)
async def test_a_slow_target_ends_at_the_least_limit(
    http: httpx.AsyncClient, target: ProxyTarget, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    order = {"protocol": "http", "target_url": target.url + "/slow", **fields}
    done = await http.post(PROXY, json=order, headers=headers)
    assert (done.status_code, done.json()["error"]) == (504, "Time limit exceeded")
    await asyncio.wait_for(target.left.wait(), 5)


async def test_a_stream_passes_through_as_it_is(http: httpx.AsyncClient, target: ProxyTarget) -> None:
    order = {
        "protocol": "http",
        "target_url": target.url + "/events?slow",
        "method": "GET",
        "stream_response": True,
    }
    got = b""
    async with http.stream("POST", PROXY, json=order) as response:
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["x-proxy-status"] == "200"
        assert "sandbox" in response.headers["content-security-policy"]
        assert "set-cookie" not in response.headers
        async for piece in response.aiter_bytes():
            got += piece
            if got.count(b"data") == 3:
                break
    assert got == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
    await asyncio.wait_for(target.left.wait(), 5)  # a caller that leaves ends the request at the target


async def test_a_stream_ends_at_its_time(http: httpx.AsyncClient, target: ProxyTarget) -> None:
    order = {
        "protocol": "http",
        "target_url": target.url + "/events?slow",
        "stream_response": True,
        "timeout": 0.5,
    }
    with pytest.raises(httpx.RemoteProtocolError):
        await http.post(PROXY, json=order)
    await asyncio.wait_for(target.left.wait(), 5)


async def test_a_request_costs_its_price_and_is_audited(
    http: httpx.AsyncClient, target: ProxyTarget, running: Running, user: PayingUser
) -> None:
    order = {"protocol": "http", "target_url": target.url, "method": "GET"}
    for _ in range(3):
        assert (await http.post(PROXY, json=order)).status_code == 200

    async def remaining() -> float:
        return float((await http.get("/api/v1/billing/credits")).json()["credits_remaining"])

    await _until(lambda: remaining(), 0.97)
    usage = (await http.get("/api/v1/billing/usage")).json()["usage"]
    assert [(row["model"], row["backend"], row["cost"]) for row in usage] == [
        ("proxy.request", "http", 0.01)
    ] * 3
    accounts = running.appliance.accounts
    assert accounts is not None
    from appliance.accounts.audit_log import read_audit

    async def audited() -> int:
        return len(await read_audit(accounts.database, actor_id=user.id, action="proxy.request"))

    await _until(audited, 3)
    rows = await read_audit(accounts.database, action="proxy.request")
    assert rows[0]["subject_id"] == "127.0.0.1"
    assert rows[0]["details"]["status"] == 200


async def test_without_credits_nothing_is_sent(
    http: httpx.AsyncClient, target: ProxyTarget, running: Running
) -> None:
    poor = await user_of(running, 0)
    order = {"protocol": "http", "target_url": target.url}
    done = await http.post(PROXY, json=order, headers={"X-API-Key": poor.key})
    assert (done.status_code, done.json()["code"]) == (402, "insufficient_credits")
    without = await http.post(PROXY, json=order, headers={"X-API-Key": ""})
    assert without.status_code == 401
    assert target.got == []


async def test_open_inference_in_both_of_its_forms(http: httpx.AsyncClient, target: ProxyTarget) -> None:
    order = {
        "protocol": "openinference",
        "target_url": target.url,
        "body": {"model": "gpt-4", "prompt": "Hello world", "max_tokens": 100},
    }
    got = (await http.post(PROXY, json=order)).json()
    assert got["body"]["choices"][0]["text"] == "Hello world!"
    assert got["outputs"][0]["name"] == "text_output"
    sent = json.loads(target.got[0]["body"])
    assert target.got[0]["path"] == "/v2/models/gpt-4/infer"
    assert sent["parameters"] == {"max_tokens": 100}
    inputs = [{"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["Hi"]}]
    for url in (target.url, target.url + "/v2/models/m/infer"):
        order["target_url"], order["body"] = url, {"model": "m", "inputs": inputs}
        got = (await http.post(PROXY, json=order)).json()
        assert got["body"]["outputs"][0]["data"] == ["Hi!"]
    order["target_url"], order["body"] = target.url + "/v1/completions", {"model": "m", "prompt": "x"}
    got = (await http.post(PROXY, json=order)).json()
    assert json.loads(got["body"]["body"]) == {"model": "m", "prompt": "x"}


@asynccontextmanager
async def mcp_server(python: str, transport: str) -> AsyncIterator[str]:
    """Run an MCP server of the official SDK in a process of its own."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        python,
        str(MCP_SERVER),
        str(port),
        transport,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with httpx.AsyncClient() as client:
            for _ in range(300):
                try:
                    await client.get(f"http://127.0.0.1:{port}/none")
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{port}" + ("/mcp" if transport == "streamable-http" else "/sse")
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("transport", ["streamable-http", "sse"])
@pytest.mark.parametrize("generation", ["newest", "older"])
async def test_mcp_servers_of_two_generations_answer(
    http: httpx.AsyncClient, generation: str, transport: str
) -> None:
    python = sys.executable
    if generation == "older":
        python = os.environ.get("OLDER_MCP_PYTHON", "")
        if not python:
            pytest.skip("OLDER_MCP_PYTHON names no Python with mcp 1")
    async with mcp_server(python, transport) as url:
        order: dict[str, Any] = {"protocol": "mcp", "target_url": url, "body": LIST}
        listed = (await http.post(PROXY, json=order)).json()
        assert [tool["name"] for tool in listed["body"]["result"]["tools"]] == ["add"], listed
        added = (await http.post(PROXY, json={**order, "body": {**ADD, "id": 7}})).json()
        assert (added["status_code"], added["body"]["id"]) == (200, 7)
        assert added["body"]["result"]["content"][0]["text"] == "5"
        seed = {"method": "inference", "params": {"model": "llama-2", "prompt": "Hello"}}
        unknown = (await http.post(PROXY, json={**order, "body": seed})).json()
        assert unknown["status_code"] == 200, unknown
        assert unknown["body"]["error"]["code"] == (-32601 if generation == "newest" else -32602)
        noted = await http.post(PROXY, json={**order, "body": {"method": "notifications/roots/list_changed"}})
        assert (noted.status_code, noted.json()["status_code"]) == (200, 202), noted.text


async def _until(read: Callable[[], Awaitable[float]], wanted: float) -> None:
    for _ in range(200):
        if await read() == wanted:
            return
        await asyncio.sleep(0.02)
    assert await read() == wanted
