"""Renting over HTTP against a whole appliance, at stand-ins for both markets (`appliance simulate`)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import httpx
import pytest

from appliance.base.clock import FakeClock
from appliance.simulate.twin import Twin, running_twin
from tests.journeys.running import Running, Start, start  # noqa: F401 - a fixture
from tests.journeys.test_accounts import OPERATOR, SECRET, bearer, log_in
from tests.simulate.calls import KEYS, Calls

OPERATING = {"x-api-key": OPERATOR}


@pytest.fixture
async def twin() -> AsyncIterator[Twin]:
    async with running_twin(clock=FakeClock()) as running_one:
        yield running_one


def settings_of(twin: Twin) -> dict[str, str]:
    """Return the variables with which an appliance rents at the stand-ins."""
    return {
        "MARKET": "1",
        "VASTAI_API_KEY": KEYS["vast"]["Authorization"].removeprefix("Bearer "),
        "IONET_API_KEY": KEYS["ionet"]["X-API-KEY"],
        "VASTAI_API_URL": f"http://127.0.0.1:{twin.ports['vast']}",
        "IONET_API_URL": f"http://127.0.0.1:{twin.ports['ionet']}/enterprise/v1/io-cloud/caas",
        "RENT_MARKUP_PERCENT": "10",
        "GPU_API_TIMEOUT": "5s",
        "GPU_PROXY_ALLOW_PRIVATE": "127.0.0.1/32",
    }


@pytest.fixture
async def running(start: Start, twin: Twin) -> Running:  # noqa: F811
    return await start(
        ACCOUNTS="1",
        UNPRICED="free",
        JWT_SECRET=SECRET,
        REGISTRATION="open",
        OPERATOR_API_KEYS=OPERATOR,
        **settings_of(twin),
    )


@pytest.fixture
async def http(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=running.base_url + "/api/v1", timeout=30) as client:
        yield client


@pytest.fixture
async def mine(http: httpx.AsyncClient) -> dict[str, str]:
    """A user with 100 dollars."""
    login = await log_in(http)
    path = f"/admin/users/{login['user']['id']}/grant"
    granted = await http.post(path, json={"amount": 100}, headers=OPERATING)
    assert granted.status_code == 200, granted.text
    return bearer(login["tokens"]["access_token"])


async def offers(http: httpx.AsyncClient, headers: dict[str, str], **query: Any) -> list[dict[str, Any]]:
    answer = await http.get("/gpu/instances", params=query, headers=headers)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["instances"]
    return found


async def until_destroyed(http: httpx.AsyncClient, twin: Twin) -> None:
    """Wait until nothing of ours runs at the markets any more."""
    async with asyncio.timeout(20):
        while any(service.get("instances_live") for service in live(twin).values()):
            await asyncio.sleep(0.05)


def live(twin: Twin) -> dict[str, dict[str, int]]:
    services = twin.truth()["services"]
    ended = ("destroyed", "completed")
    return {
        name: {
            "instances_live": sum(
                one.get("stage", one.get("status")) not in ended for one in services[name]["instances"]
            )
        }
        for name in ("vast", "ionet")
    }


async def test_offers_of_both_markets_are_found_filtered_and_priced(
    http: httpx.AsyncClient, mine: dict[str, str]
) -> None:
    answer = await http.get("/gpu/instances", headers=mine)
    body = answer.json()
    assert (body["provider"], body["count"]) == ("all", len(body["instances"]))
    assert {one["provider"] for one in body["instances"]} == {"vast.ai", "io.net"}
    assert answer.headers["x-offers-age"] == "0"
    prices = [one["price_per_hour"] for one in body["instances"]]
    assert prices == sorted(prices)
    strong = await offers(http, mine, min_vram=80, max_price=3, gpu_model="h100")
    assert strong
    assert all(one["price_per_hour"] <= 3 and "H100" in one["gpu_name"] for one in strong)
    assert {one["provider"] for one in await offers(http, mine, provider="ionet")} == {"io.net"}


async def test_a_market_that_fails_is_named_and_the_other_answers(
    http: httpx.AsyncClient, mine: dict[str, str], twin: Twin
) -> None:
    async with aiohttp.ClientSession() as session:
        calls = Calls(twin, session)
        await calls.fault(service="vast", route="search", kind="html_page", times=50)
        answer = await http.get("/gpu/instances", headers=mine)
        assert {one["provider"] for one in answer.json()["instances"]} == {"io.net"}
        assert [error["provider"] for error in answer.json()["errors"]] == ["vast.ai"]
        await calls.fault(service="ionet", route="hardware", kind="html_page", times=50)
        both = await http.get("/gpu/instances", params={"min_gpus": 2}, headers=mine)
    assert (both.status_code, both.json()["code"]) == (502, "offers_unavailable")
    assert len(both.json()["errors"]) == 2


@pytest.mark.parametrize("provider", ["vast.ai", "io.net"])
async def test_an_instance_is_rented_once_shown_and_destroyed(
    http: httpx.AsyncClient, mine: dict[str, str], twin: Twin, provider: str
) -> None:
    offer = (await offers(http, mine, provider=provider))[0]
    path = f"/gpu/instances/{provider}/{offer['id']}"
    headers = {**mine, "idempotency-key": "one", "x-timelimit": "30m"}
    made = [await http.post(path, headers=headers, json={"ports": [8000]}) for _ in range(2)]
    assert [one.status_code for one in made] == [201, 201], made[0].text
    first, again = (one.json() for one in made)
    assert first["contract_id"] == again["contract_id"]
    assert (first["provider"], first["instance_id"]) == (provider, offer["id"])
    assert first["rental"]["price_per_hour"] == offer["price_per_hour"]
    shown = await http.get(f"/gpu/instances/{provider}/{first['contract_id']}", headers=mine)
    assert shown.json()["id"] == first["rental"]["id"]
    assert (await http.get("/gpu/rentals", params={"live": 1}, headers=mine)).json()["count"] == 1
    loads = (await http.get("/loadbalancer/loads", headers=mine)).json()["loads"]
    assert loads[offer["id"]]["provider"] == provider
    gone = await http.delete(path, headers=mine)
    assert gone.status_code == 200, gone.text
    assert gone.json()["message"] == "Instance destroyed successfully"
    assert (await http.delete(path, headers=mine)).status_code == 200
    await until_destroyed(http, twin)


async def test_a_rented_server_answers_through_the_proxy(
    http: httpx.AsyncClient, mine: dict[str, str], twin: Twin
) -> None:
    offer = (await offers(http, mine, provider="vast.ai"))[0]
    order = {"ports": [8000], "command": ["--model", "some/model"], "env": {"VLLM_API_KEY": "k"}}
    made = await http.post(f"/gpu/instances/vast.ai/{offer['id']}", json=order, headers=mine)
    name = made.json()["contract_id"]
    path = f"/gpu/instances/vast.ai/{name}"
    ask = {"protocol": "http", "target_url": f"gpu://vast.ai/{name}/v1/models", "method": "GET"}
    early = await http.post("/gpu/proxy", json=ask, headers=mine)
    assert (early.status_code, early.json()["code"]) == (409, "instance_not_reachable")
    await twin.advance(60)
    async with asyncio.timeout(60):
        while not (await http.get(path, headers=mine)).json()["address"]:
            await asyncio.sleep(0.2)
    logs = await http.get(f"{path}/logs", headers=mine)
    assert (logs.status_code, logs.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    reached = await http.post(
        "/gpu/proxy", json={**ask, "headers": {"authorization": "Bearer k"}}, headers=mine
    )
    assert (reached.status_code, reached.json()["status_code"]) == (200, 200)
    assert "some/model" in str(reached.json()["body"])
    assert (await http.delete(path, headers=mine)).status_code == 200


async def test_renting_needs_an_account_with_credits(http: httpx.AsyncClient, mine: dict[str, str]) -> None:
    assert (await http.get("/gpu/instances")).status_code == 401
    assert (await http.get("/gpu/instances", headers=OPERATING)).status_code == 403
    poor = {"email": "eve@example.org", "password": "correct horse battery", "name": "Eve"}
    headers = bearer((await log_in(http, poor))["tokens"]["access_token"])
    offer = (await offers(http, headers))[0]
    path = f"/gpu/instances/{offer['provider']}/{offer['id']}"
    refused = await http.post(path, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (402, "insufficient_credits")
    created = await http.post(path, headers=mine)
    assert created.status_code == 201
    for caller, is_seen in ((mine, True), (headers, False), (OPERATING, True)):
        loads = (await http.get("/loadbalancer/loads", headers=caller)).json()["loads"]
        assert (offer["id"] in loads) is is_seen
    for call in (http.get(path, headers=headers), http.delete(path, headers=headers)):
        assert (await call).status_code == 404


async def test_several_are_reserved_or_none(
    http: httpx.AsyncClient, mine: dict[str, str], twin: Twin
) -> None:
    filters = {"provider": "vast.ai", "max_price": 2}
    made = await http.post("/gpu/instances/reserve", json={"count": 2, "filters": filters}, headers=mine)
    assert made.status_code == 201, made.text
    body = made.json()
    assert (body["count"], body["requested"], body["errors"]) == (2, 2, [])
    names = {"instance_id", "contract_id", "provider", "gpu_model", "vram", "price"}
    assert all(set(row) == names for row in body["reserved"])
    assert live(twin)["vast"]["instances_live"] == 2
    few = {"count": 16, "filters": {"gpu_model": "h200", "location": "SE"}}
    refused = await http.post("/gpu/instances/reserve", json=few, headers=mine)
    assert (refused.status_code, refused.json()["requested"]) == (400, 16)
    assert live(twin)["vast"]["instances_live"] == 2


async def test_a_batch_rents_at_each_market(http: httpx.AsyncClient, mine: dict[str, str]) -> None:
    made = await http.post("/gpu/instances/batch", json={"vastai_count": 0, "ionet_count": 0}, headers=mine)
    assert made.status_code == 201, made.text
    body = made.json()
    assert (len(body["vastai_instances"]), len(body["ionet_instances"])) == (1, 1)
    assert (body["total_created"], body["errors"]) == (2, [])


WRONG: list[tuple[str, str, Any, int, str]] = [
    ("GET", "/gpu/instances?min_vram=many", None, 400, "`min_vram` must be a number"),
    ("GET", "/gpu/instances?min_ram=1", None, 400, "no query parameter 'min_ram'"),
    ("GET", "/gpu/instances?provider=runpod", None, 404, "there are: vast.ai, io.net"),
    ("POST", "/gpu/instances/vast.ai/vast-1", {}, 404, "has no offer 'vast-1'"),
    ("POST", "/gpu/instances/vast.ai/vast-1", {"imge": "x"}, 400, "no field 'imge'"),
    ("POST", "/gpu/instances/vast.ai/vast-1", {"env": {"-p 1:1": "1"}}, 400, "`ports` opens ports"),
    ("POST", "/gpu/instances/vast.ai/vast-1", {"ports": [70000]}, 400, "1 to 65535"),
    ("POST", "/gpu/instances/vast.ai/vast-1", {"onstart": 3}, 400, "must be a script"),
    ("POST", "/gpu/instances/vast.ai/vast-1", {"command": "x"}, 400, "must be a list"),
    ("POST", "/gpu/instances/vast.ai/vast-1", {"max_cost": 0}, 400, "max_cost"),
    ("POST", "/gpu/instances/reserve", {"count": 17}, 400, "Count must be between 1 and 16"),
    ("POST", "/gpu/instances/reserve", {"count": 1, "filters": {"ram": 1}}, 400, "no filter 'ram'"),
    ("POST", "/gpu/instances/reserve", {"count": 1, "config": {"x": 1}}, 400, "no field config.x"),
    ("POST", "/gpu/instances/vast.ai/1/renew", {"seconds": -1}, 400, "above 0"),
    ("GET", "/gpu/instances/vast.ai/1/logs?bytes=0", None, 400, "`bytes` must be"),
    ("DELETE", "/gpu/instances/vast.ai/1", None, 404, "1"),
]


async def test_what_is_wrong_is_said(http: httpx.AsyncClient, mine: dict[str, str]) -> None:
    for method, path, body, status, text in WRONG:
        answer = await http.request(method, path, json=body, headers=mine)
        assert (answer.status_code, path) == (status, path), answer.text
        assert text in answer.json()["error"]
    for limit in ("soon", "1h2", "5 minutes", "-3"):
        answer = await http.post("/gpu/instances/vast.ai/1", headers={**mine, "x-timelimit": limit})
        assert answer.status_code == 400
        assert "X-Timelimit" in answer.json()["error"]


async def test_the_state_of_the_market_is_there_from_the_first_moment(http: httpx.AsyncClient) -> None:
    answer = await http.get("/admin/market", headers=OPERATING)
    assert (answer.status_code, answer.json()["frozen"], answer.json()["alarms"]) == (200, False, [])
    assert len(answer.json()["install_id"]) == 8


async def test_operators_freeze_sweep_and_see_all_rentals(
    http: httpx.AsyncClient, mine: dict[str, str], running: Running, twin: Twin
) -> None:
    assert (await http.get("/admin/market", headers=mine)).status_code == 403
    frozen = await http.post("/admin/market/freeze", json={"reason": "a rehearsal"}, headers=OPERATING)
    assert (frozen.json()["frozen"], frozen.json()["frozen_reason"]) == (True, "a rehearsal")
    offer = (await offers(http, mine, provider="vastai"))[0]
    path = f"/gpu/instances/vast.ai/{offer['id']}"
    refused = await http.post(path, headers=mine)
    assert refused.status_code == 503, refused.text
    assert not (await http.post("/admin/market/unfreeze", headers=OPERATING)).json()["frozen"]
    assert (await http.post(path, headers=mine)).status_code == 201
    rows = (await http.get("/admin/rentals", headers=OPERATING)).json()["rentals"]
    assert [(row["instance_id"], row["provider"]) for row in rows if row["contract_id"]] == [
        (offer["id"], "vast.ai")
    ]
    swept = (await http.post("/admin/market/sweep", headers=OPERATING)).json()
    assert swept["providers"] == {"vast.ai": 1, "io.net": 0}
    ended = await http.delete(f"/admin/rentals/vast.ai/{rows[0]['id']}", headers=OPERATING)
    assert ended.status_code == 200, ended.text
    await until_destroyed(http, twin)
    market = running.appliance.market
    assert market is not None
    await market.status.refresh()
    page = (await http.get(running.base_url + "/metrics", headers=OPERATING)).text
    assert "gpuproxy_gpu_requests_total" in page
    health = (await http.get(running.base_url + "/health", headers=OPERATING)).json()
    assert health["checks"]["market"] == {"status": "ok", "healthy": True}
