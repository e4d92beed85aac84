"""The stand-in for vast.ai: offers, the life of an instance, what it costs, the engine behind it."""

import json

import aiohttp
import pytest

from appliance.simulate import rented_engines
from appliance.simulate.fleet import MAX_ENDED, MAX_LIVE, RentedInstance, Stage
from appliance.simulate.twin import Twin
from tests.simulate.calls import ORDER, Calls

CHAT = {"model": "some/model", "messages": [{"role": "user", "content": "hello"}]}


async def test_an_instance_goes_from_created_to_running(call: Calls, twin: Twin) -> None:
    number = await call.rent()
    seen = []
    for seconds in (0, 5, 24, 1):
        await twin.advance(seconds)
        seen += [row["actual_status"] for row in await call.listed()]
    assert seen == ["created", "loading", "loading", "running"]
    row = (await call("vast", "GET", f"/api/v0/instances/{number}/")).json["instances"]
    assert row["public_ipaddr"] == "127.0.0.1"
    assert [port["HostIp"] for port in row["ports"]["8000/tcp"]] == ["0.0.0.0"]


async def test_a_running_instance_answers_chat(call: Calls, twin: Twin) -> None:
    await call.rent()
    await twin.advance(30)
    (row,) = await call.listed()
    url = f"http://127.0.0.1:{row['ports']['8000/tcp'][0]['HostPort']}"
    assert (await call("", "POST", f"{url}/v1/chat/completions", CHAT)).status == 401
    key = {"Authorization": "Bearer instance-key"}
    models = await call("", "GET", f"{url}/v1/models", headers=key)
    assert [model["id"] for model in models.json["data"]] == ["some/model"]
    reply = await call("", "POST", f"{url}/v1/chat/completions", CHAT, headers=key)
    assert reply.json["choices"][0]["message"]["content"] == "[demo engine] You said: hello"
    assert reply.headers["X-Simulated"] == "1"
    assert reply.json["simulated"] is True
    stream = await call("", "POST", f"{url}/v1/chat/completions", {**CHAT, "stream": True}, headers=key)
    assert stream.data.endswith(b"data: [DONE]\n\n")
    assert twin.truth()["services"]["vast"]["instances"][0]["engines"] == [url]


async def test_an_engine_ends_with_its_instance(call: Calls, twin: Twin) -> None:
    number = await call.rent()
    await twin.advance(30)
    (row,) = await call.listed()
    url = f"http://127.0.0.1:{row['ports']['8000/tcp'][0]['HostPort']}/health"
    assert (await call("", "GET", url)).status == 200
    assert (await call("vast", "DELETE", f"/api/v0/instances/{number}/", {})).json == {"success": True}
    with pytest.raises(aiohttp.ClientError):
        await call("", "GET", url)


async def test_an_instance_that_starts_anew_has_a_new_engine(call: Calls, twin: Twin) -> None:
    number = await call.rent()
    await twin.advance(30)
    (before,) = twin.truth()["services"]["vast"]["instances"]
    await call("vast", "PUT", f"/api/v0/instances/{number}/", {"state": "stopped"})
    assert twin.truth()["services"]["vast"]["instances"][0]["engines"] == []
    await call("vast", "PUT", f"/api/v0/instances/{number}/", {"state": "running"})
    twin.clock.advance(30)  # no one looks while it loads
    await twin.settle()
    (after,) = twin.truth()["services"]["vast"]["instances"]
    assert (after["status"], len(after["engines"])) == ("running", 1)
    with pytest.raises(aiohttp.ClientError):
        await call("", "GET", f"{before['engines'][0]}/health")
    assert (await call("", "GET", f"{after['engines'][0]}/health")).status == 200


async def test_an_engine_without_a_port_is_tried_again(
    call: Calls, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    await call.rent()
    monkeypatch.setattr(rented_engines, "LOOPBACK", "192.0.2.1")  # no address of this machine
    await twin.advance(30)
    assert twin.truth()["services"]["vast"]["instances"][0]["engines"] == []
    monkeypatch.undo()
    await twin.settle()
    assert len(twin.truth()["services"]["vast"]["instances"][0]["engines"]) == 1


async def test_disk_is_billed_from_creation_gpu_from_running(call: Calls, twin: Twin) -> None:
    number = await call.rent()
    (one,) = twin.truth()["services"]["vast"]["instances"]
    gpu, disk = one["gpu_musd_per_h"], one["disk_musd_per_h"]
    await twin.advance(30 + 3600)
    assert twin.truth()["cost_musd"] == round(gpu + disk * 3630 / 3600)
    await call("vast", "PUT", f"/api/v0/instances/{number}/", {"state": "stopped"})
    await twin.advance(7200)
    assert twin.truth()["cost_musd"] == round(gpu + disk * 10_830 / 3600)
    await call("vast", "DELETE", f"/api/v0/instances/{number}/", {})
    await twin.advance(7200)
    truth = twin.truth()
    assert truth["cost_musd"] == round(gpu + disk * 10_830 / 3600)
    assert (truth["live"], truth["cost_musd_per_h"]) == (0, 0)
    user = (await call("vast", "GET", "/api/v0/users/current")).json
    assert user["credit"] == 100 - truth["cost_musd"] / 1e6


@pytest.mark.parametrize(
    ("filters", "fits"),
    [
        ({"gpu_name": {"eq": "RTX 4090"}}, lambda row: row["gpu_name"] == "RTX 4090"),
        ({"gpu_name": {"neq": "RTX 4090"}}, lambda row: row["gpu_name"] != "RTX 4090"),
        ({"gpu_ram": {"lt": 24000}}, lambda row: row["gpu_ram"] < 24000),
        ({"gpu_ram": {"lte": 24564}}, lambda row: row["gpu_ram"] <= 24564),
        ({"dph_total": {"gt": 1.0}}, lambda row: row["dph_total"] > 1.0),
        ({"num_gpus": {"gte": 2, "lte": 4}}, lambda row: 2 <= row["num_gpus"] <= 4),
        ({"num_gpus": {"eq": "2"}}, lambda row: row["num_gpus"] == 2),  # as vast.ai's own command line
        ({"gpu_ram": {"in": ["24564", 81559]}}, lambda row: row["gpu_ram"] in (24564, 81559)),
        ({"gpu_name": {"in": ["H200", "L40S"]}}, lambda row: row["gpu_name"] in ("H200", "L40S")),
        ({"gpu_name": {"notin": ["H200"]}}, lambda row: row["gpu_name"] != "H200"),
        ({"verified": {"eq": False}}, lambda row: not row["verified"]),
    ],
)
async def test_a_search_applies_each_operator(call: Calls, filters, fits) -> None:
    everything = await call.offers(rentable={"in": [True, False]})
    found = await call.offers(rentable={"in": [True, False]}, **filters)
    assert 0 < len(found) < len(everything)
    assert [row["id"] for row in found] == [row["id"] for row in everything if fits(row)]


async def test_three_forms_of_a_search_find_the_same(call: Calls) -> None:
    query = {"gpu_name": {"eq": "H200"}, "order": [["dph_total", "asc"]]}
    forms = [
        await call("vast", "POST", "/api/v0/bundles/", query),
        await call("vast", "PUT", "/api/v0/search/asks/", {"select_cols": ["*"], "q": query}),
        await call("vast", "GET", "/api/v0/bundles/", params={"q": json.dumps(query)}),
    ]
    assert forms[0].json["offers"]
    assert forms[0].json == forms[1].json == forms[2].json


async def test_a_rented_offer_cannot_be_rented_again(call: Calls) -> None:
    offer = (await call.offers())[0]
    path = f"/api/v0/asks/{offer['id']}/"
    assert (await call("vast", "PUT", path, ORDER)).status == 200
    reply = await call("vast", "PUT", path, ORDER)
    assert (reply.status, reply.json["error"]) == (410, "no_such_ask")
    assert offer["id"] not in [row["id"] for row in await call.offers()]


async def test_a_listing_has_pages_and_a_total(call: Calls) -> None:
    offers = await call.offers()
    for number, offer in enumerate(offers[:7]):
        await call("vast", "PUT", f"/api/v0/asks/{offer['id']}/", {**ORDER, "label": f"apl-{number % 2}"})
    seen, token = [], ""
    for _ in range(3):
        query = {"limit": "3", "order_by": '[{"col": "id", "dir": "asc"}]', "after_token": token}
        page = (await call("vast", "GET", "/api/v1/instances/", params=query)).json
        assert page["total_instances"] == 7
        assert page["label_counts"] == {"apl-0": 4, "apl-1": 3}
        seen += [row["id"] for row in page["instances"]]
        token = page["next_token"] or ""
    assert (len(set(seen)), token) == (7, "")
    labelled = await call.listed(select_filters='{"label": {"eq": "apl-1"}}')
    assert [row["label"] for row in labelled] == ["apl-1"] * 3


async def test_the_old_list_is_gone(call: Calls) -> None:
    reply = await call("vast", "GET", "/api/v0/instances/")
    assert (reply.status, reply.json["error"]) == (410, "deprecated_endpoint")


async def test_logs_come_at_the_second_time_of_asking(call: Calls) -> None:
    number = await call.rent()
    url = (await call("vast", "PUT", f"/api/v0/instances/request_logs/{number}/", {})).json["result_url"]
    assert (await call("", "GET", url)).status == 404
    assert b"created (simulated)" in (await call("", "GET", url)).data


async def test_a_label_can_be_changed(call: Calls, twin: Twin) -> None:
    number = await call.rent()
    await call("vast", "PUT", f"/api/v0/instances/{number}/", {"label": "apl-new"})
    assert [row["label"] for row in await call.listed()] == ["apl-new"]
    assert twin.truth()["services"]["vast"]["instances"][0]["label"] == "apl-new"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "part"),
    [
        ("POST", "/api/v0/bundles/", {"gpu_nam": {"eq": 1}}, 400, "no field"),
        ("POST", "/api/v0/bundles/", {"gpu_ram": {"gtt": 1}}, 400, "no operator"),
        ("POST", "/api/v0/bundles/", {"gpu_ram": 24}, 400, "{operator: value}"),
        ("POST", "/api/v0/bundles/", {"order": [["gpu_ram", "up"]]}, 400, "no direction"),
        ("POST", "/api/v0/bundles/", {"type": "free"}, 400, "on-demand, reserved, bid"),
        ("POST", "/api/v0/bundles/", {"limit": -1}, 400, "limit"),
        ("GET", "/api/v1/instances/?limit=26", None, 400, "1 to 25"),
        ("GET", "/api/v1/instances/?after_token=x", None, 400, "next_token"),
        ("GET", "/api/v1/instances/?select_filters=x", None, 400, "not JSON"),
        ("PUT", "/api/v0/asks/1/", {}, 410, "no_such_ask"),
        ("DELETE", "/api/v0/instances/1/", {}, 404, "no_such_instance"),
        ("PUT", "/api/v0/instances/1/", {"state": "running"}, 404, "no_such_instance"),
        ("GET", "/api/v0/nothing/", None, 404, "no address"),
    ],
)
async def test_a_wrong_request_is_refused_with_a_reason(
    call: Calls, method, path, body, status, part
) -> None:
    reply = await call("vast", method, path, body)
    assert (reply.status, reply.json["success"]) == (status, False)
    assert part in reply.data.decode()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"image": ""}, "image is missing"),
        ({"disk": 10**9}, "disk is"),
        ({"runtype": "vm"}, "runtype is"),
        ({"label": "x" * 20_000}, "label is"),
        ({"env": {"-p 8000:99999": "1"}}, "is no port"),
        ({"env": {f"-p {port}:{port}": "1" for port in range(8000, 8009)}}, "9 ports"),
        ({"args": "text"}, "args is"),
        ({"target_state": "paused"}, "target_state is"),
    ],
)
async def test_a_wrong_order_rents_nothing(call: Calls, twin: Twin, change, part) -> None:
    offer = (await call.offers())[0]
    reply = await call("vast", "PUT", f"/api/v0/asks/{offer['id']}/", {**ORDER, **change})
    assert reply.status == 400
    assert part in reply.json["msg"]
    assert twin.truth()["live"] == 0


async def test_a_bid_is_what_the_gpu_costs(call: Calls, twin: Twin) -> None:
    offer = (await call.offers(type="bid"))[0]
    path = f"/api/v0/asks/{offer['id']}/"
    low = await call("vast", "PUT", path, {**ORDER, "price": offer["min_bid"] / 2})
    assert (low.status, "price is" in low.json["msg"]) == (400, True)
    assert (await call("vast", "PUT", path, {**ORDER, "price": offer["min_bid"]})).status == 200
    (one,) = twin.truth()["services"]["vast"]["instances"]
    assert one["gpu_musd_per_h"] == round(offer["min_bid"] * 1e6)


async def test_instances_are_bounded(call: Calls, twin: Twin) -> None:
    offers = [offer["id"] for offer in await call.offers(rentable={"eq": True}, num_gpus={"eq": 1})]
    twin.services["vast"]._credit_musd = 10**12  # type: ignore[attr-defined]
    for number in range(MAX_LIVE):
        twin.services["vast"].fleet.create(spare(number))  # type: ignore[attr-defined]
    reply = await call("vast", "PUT", f"/api/v0/asks/{offers[0]}/", ORDER)
    assert (reply.status, reply.json["error"]) == (400, "too_many_instances")


async def test_ended_instances_are_forgotten_but_not_their_cost(call: Calls, twin: Twin) -> None:
    fleet = twin.services["vast"].fleet  # type: ignore[attr-defined]
    for number in range(MAX_ENDED + 20):
        each = fleet.create(spare(number))
        await twin.advance(3600)
        fleet.move(each, Stage.DESTROYED)
    truth = twin.truth()["services"]["vast"]
    assert (len(truth["instances"]), truth["created_total"]) == (MAX_ENDED, MAX_ENDED + 20)
    assert truth["cost_musd"] == (MAX_ENDED + 20) * 1_000_000


def spare(number: int) -> RentedInstance:
    """Return an instance whose disk costs a dollar an hour; its offer is none."""
    return RentedInstance(0, f"spare-{number}", 0, {"ask_id": -number}, disk_musd_per_h=1_000_000)


async def test_a_wrong_key_is_refused(call: Calls) -> None:
    reply = await call("vast", "GET", "/api/v1/instances/", headers={"Authorization": "Bearer other"})
    assert (reply.status, reply.json["error"]) == (401, "auth_error")
    assert reply.headers["X-Simulated"] == "1"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:1"}, 200),
        ({"Host": "rebound.example.com"}, 403),
        ({"Host": "["}, 403),
        ({"Host": ""}, 403),
        ({"Host": "127.0.0.1@example.com"}, 403),
        ({"Origin": "http://127.0.0.1:8080"}, 200),
        ({"Origin": "https://example.com"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
    ],
)
async def test_pages_of_other_sites_may_not_call(call: Calls, headers: dict[str, str], status: int) -> None:
    for path in ("/_truth", "/api/v1/instances/"):
        assert (await call("vast", "GET", path, headers=headers)).status == status


async def test_a_key_needs_its_scheme(call: Calls) -> None:
    headers = {"Authorization": "vastai-simulated-key"}
    assert (await call("vast", "GET", "/api/v1/instances/", headers=headers)).status == 401


@pytest.mark.parametrize("key", ["simulated", "vastai-simulated-key", "my own simulated one"])
async def test_a_key_that_says_simulated_is_taken(call: Calls, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    assert (await call("vast", "GET", "/api/v1/instances/", headers=headers)).status == 200
