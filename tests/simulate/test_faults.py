"""What can go wrong at the markets' stand-ins, and that it goes wrong just then."""

import asyncio
from typing import Any

import aiohttp
import pytest

from appliance.base.errors import Invalid
from appliance.simulate.faults import KINDS, MAX_FAULTS, Faults
from appliance.simulate.twin import Twin
from tests.simulate.calls import ORDER, Calls, Reply

LIST = "/api/v1/instances/"
ROUTES = {"vast": ["list", "create", "search"], "ionet": ["list"]}
INSTEAD: list[tuple[dict[str, Any], Any]] = [
    ({"kind": "empty_body"}, lambda reply: (reply.status, reply.data) == (200, b"")),
    ({"kind": "html_page"}, lambda reply: reply.status == 200 and reply.data.startswith(b"<!DOCTYPE html>")),
    ({"kind": "status", "status": 503}, lambda reply: (reply.status, reply.json["success"]) == (503, False)),
    (
        {"kind": "rate_limited_text", "seconds": 7},
        lambda reply: (reply.status, reply.headers["Retry-After"], reply.json) == (429, "7", None),
    ),
    ({"kind": "rate_limited_text"}, lambda reply: "Retry-After" not in reply.headers),
    ({"kind": "success_false"}, lambda reply: (reply.status, reply.json["success"]) == (200, False)),
    ({"kind": "gone_410"}, lambda reply: (reply.status, reply.json["error"]) == (410, "deprecated_endpoint")),
    ({"kind": "auth_error_404"}, lambda reply: (reply.status, reply.json["error"]) == (404, "auth_error")),
    (
        {"kind": "search_quota", "route": "list"},
        lambda reply: (reply.status, reply.json["error"]) == (429, "search_quota_exceeded"),
    ),
    ({"kind": "huge_body", "bytes": 300_000}, lambda reply: len(reply.data) == 300_000),
    (
        {"kind": "wrong_types"},
        lambda reply: reply.json["total_instances"] == "~0" and reply.json["instances"] == {},
    ),
    ({"kind": "slow", "seconds": 0.01}, lambda reply: reply.json["instances"] == []),
]


async def listing(call: Calls) -> Reply:
    return await call("vast", "GET", LIST)


@pytest.mark.parametrize(
    ("fault", "shows"), INSTEAD, ids=lambda value: str(value.get("kind")) if isinstance(value, dict) else ""
)
async def test_a_fault_happens_once_and_is_over(call: Calls, fault, shows) -> None:
    assert (await call.fault(service="vast", **fault)).status == 200
    reply = await listing(call)
    assert shows(reply), (reply.status, reply.data[:200])
    assert reply.headers["X-Simulated"] == "1"
    assert (await listing(call)).json["total_instances"] == 0


async def test_a_reset_ends_the_connection_without_an_answer(call: Calls) -> None:
    await call.fault(service="vast", kind="reset")
    with pytest.raises(aiohttp.ClientError):
        await call("vast", "POST", "/api/v0/bundles/", {})  # a GET would be sent again by the client itself
    assert (await listing(call)).status == 200


async def test_a_failed_search_leaves_other_calls_alone(call: Calls) -> None:
    await call.fault(service="vast", kind="search_quota", times=2)
    assert (await listing(call)).status == 200
    assert [(await call("vast", "POST", "/api/v0/bundles/", {})).status for _ in range(3)] == [429, 429, 200]


async def test_page_2_fails_and_page_1_does_not(call: Calls) -> None:
    for offer in (await call.offers())[:2]:
        await call("vast", "PUT", f"/api/v0/asks/{offer['id']}/", ORDER)
    await call.fault(service="vast", kind="page_2_fails", times=1)
    page = await call("vast", "GET", LIST, params={"limit": "1"})
    assert page.status == 200
    query = {"limit": "1", "after_token": page.json["next_token"]}
    assert (await call("vast", "GET", LIST, params=query)).status == 500
    assert (await call("vast", "GET", LIST, params=query)).status == 200


async def test_a_create_with_500_did_create(call: Calls, twin: Twin) -> None:
    offer = (await call.offers())[0]
    await call.fault(service="vast", kind="create_500_done")
    reply = await call("vast", "PUT", f"/api/v0/asks/{offer['id']}/", ORDER)
    assert (reply.status, reply.json["success"]) == (500, False)
    assert [row["label"] for row in await call.listed()] == ["apl-test-1"]


async def test_a_create_that_timed_out_did_create(call: Calls, twin: Twin) -> None:
    offer = (await call.offers())[0]
    await call.fault(service="vast", kind="create_timed_out", seconds=30)
    timeout = aiohttp.ClientTimeout(total=0.2)
    with pytest.raises(TimeoutError):
        await call("vast", "PUT", f"/api/v0/asks/{offer['id']}/", ORDER, timeout=timeout)
    assert [row["label"] for row in await call.listed()] == ["apl-test-1"]


async def test_a_refused_create_uses_up_no_create_fault(call: Calls, twin: Twin) -> None:
    await call.fault(service="vast", kind="create_500_done")
    assert (await call("vast", "PUT", "/api/v0/asks/1/", ORDER)).status == 410
    assert twin.faults.as_list()[0]["happened"] == 0


async def test_no_such_ask_rents_nothing(call: Calls, twin: Twin) -> None:
    offer = (await call.offers())[0]
    await call.fault(service="vast", kind="no_such_ask", status=404)
    reply = await call("vast", "PUT", f"/api/v0/asks/{offer['id']}/", ORDER)
    assert (reply.status, reply.json["error"], twin.truth()["live"]) == (404, "no_such_ask", 0)


async def test_a_stuck_instance_never_runs_but_bills_its_disk(call: Calls, twin: Twin) -> None:
    await call.fault(service="vast", kind="stuck_loading")
    await call.rent()
    await twin.advance(86_400)
    (one,) = twin.truth()["services"]["vast"]["instances"]
    assert (one["status"], one["is_stuck"]) == ("loading", True)
    assert one["cost_musd"] == one["disk_musd_per_h"] * 24


async def test_an_instance_exits_after_a_while(call: Calls, twin: Twin) -> None:
    await call.rent()
    await twin.advance(30)
    await call.fault(service="vast", kind="exits", seconds=60)
    await twin.advance(59)
    assert [row["actual_status"] for row in await call.listed()] == ["running"]
    await twin.advance(1)
    (row,) = await call.listed()
    assert (row["actual_status"], row["ports"]) == ("exited", {})
    (one,) = twin.truth()["services"]["vast"]["instances"]
    assert (one["running_s"], one["engines"]) == (60, [])


async def test_a_fault_for_running_instances_waits_for_one(call: Calls, twin: Twin) -> None:
    await call.fault(service="vast", kind="exits")
    await twin.advance(1000)
    await call.rent()
    await twin.advance(1000)
    assert [row["actual_status"] for row in await call.listed()] == ["exited"]


@pytest.mark.parametrize(("kind", "status"), [("destroy_fails", 500), ("destroy_lies", 200)])
async def test_a_destroyed_instance_lives_on(call: Calls, twin: Twin, kind, status) -> None:
    number = await call.rent()
    await call.fault(service="vast", kind=kind, times=2)
    path = f"/api/v0/instances/{number}/"
    seen = [((await call("vast", "DELETE", path, {})).status, twin.truth()["live"]) for _ in range(3)]
    assert seen == [(status, 1), (status, 1), (200, 0)]


async def test_a_clock_that_is_off_shows_in_dates(call: Calls, twin: Twin) -> None:
    await call.rent()
    (right,) = await call.listed()
    await call.fault(service="vast", kind="clock_off", seconds=-300)
    reply = await listing(call)
    assert reply.json["instances"][0]["start_date"] == right["start_date"] - 300
    assert twin.truth()["services"]["vast"]["instances"][0]["created_at"].startswith("2027-01-15T08:00:00")
    assert reply.headers["Date"] == "Fri, 15 Jan 2027 07:55:00 GMT"


async def test_a_fault_at_one_service_leaves_the_other_alone(call: Calls) -> None:
    await call.fault(service="ionet", kind="html_page", probability=1)
    assert (await listing(call)).status == 200
    for _ in range(3):
        reply = await call("ionet", "GET", "/v1/io-cloud/caas/deployments")
        assert reply.headers["Content-Type"].startswith("text/html")
    assert (await call("vast", "DELETE", "/_fault")).json["removed"] == 1
    assert (await call("ionet", "GET", "/v1/io-cloud/caas/deployments")).json["data"]["total"] == 0


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ([], "A fault is an object"),
        ({}, "`service` is None"),
        ({"service": "aws", "kind": "reset"}, "allowed are vast, ionet"),
        ({"service": "vast", "kind": "explode"}, "`kind` is 'explode'"),
        ({"service": "ionet", "kind": "search_quota"}, "`kind` is 'search_quota'"),
        ({"service": "vast", "kind": "reset", "route": "lists"}, "`route` is 'lists'"),
        ({"service": "vast", "kind": "exits", "route": "list"}, "this kind has none"),
        ({"service": "vast", "kind": "reset", "times": 0}, "`times` is 0"),
        ({"service": "vast", "kind": "reset", "times": 1.5}, "whole number"),
        ({"service": "vast", "kind": "reset", "times": True}, "`times` is True"),
        ({"service": "vast", "kind": "reset", "probability": 2}, "`probability` is 2"),
        ({"service": "vast", "kind": "reset", "probability": float("nan")}, "`probability` is nan"),
        ({"service": "vast", "kind": "reset", "times": 1, "probability": 1}, "not both"),
        ({"service": "vast", "kind": "reset", "seconds": 1}, "no such parameter"),
        ({"service": "vast", "kind": "status", "status": 200}, "400 to 599"),
        ({"service": "vast", "kind": "slow", "seconds": 601}, "0 to 600"),
        ({"service": "vast", "kind": "exits", "seconds": -1}, "0 to 86400"),
        ({"service": "vast", "kind": "reset", "sevice": "x"}, "no field of a fault"),
    ],
)
def test_a_wrong_fault_is_refused(wanted, part) -> None:
    with pytest.raises(Invalid) as error:
        Faults(ROUTES).add(wanted)
    assert part in str(error.value)


def test_faults_are_bounded() -> None:
    faults = Faults(ROUTES)
    for _ in range(MAX_FAULTS):
        faults.add({"service": "vast", "kind": "reset"})
    with pytest.raises(Invalid, match="waiting already"):
        faults.add({"service": "vast", "kind": "reset"})
    assert faults.clear(3) == 1
    assert faults.clear() == MAX_FAULTS - 1


def test_probability_happens_about_as_often_as_it_says() -> None:
    faults = Faults(ROUTES, seed=1)
    faults.add({"service": "vast", "kind": "reset", "probability": 0.25})
    hits = sum(faults.take("vast", "list", KINDS) is not None for _ in range(1000))
    assert 200 < hits < 300


EVERY = [(service, name) for name, kind in KINDS.items() for service in kind.services]


@pytest.mark.parametrize(("service", "kind"), EVERY)
async def test_every_kind_is_taken_by_its_name(call: Calls, service: str, kind: str) -> None:
    reply = await call.fault(service=service, kind=kind, probability=0)
    assert (reply.status, reply.json["kind"], reply.json["simulated"]) == (200, kind, True)
    shown = (await call(service, "GET", "/_fault")).json
    assert [fault["kind"] for fault in shown["waiting"]] == [kind]
    assert shown["kinds"][kind]["what"]


FIRST_CALLS = {
    "ionet": ("GET", "/v1/io-cloud/caas/locations", None),
    "novita": ("GET", "/openai/v1/models", None),
    "stripe": ("GET", "/v1/events", None),
    "chain": ("POST", "/", {"id": 1, "method": "eth_chainId"}),
}


@pytest.mark.parametrize("service", FIRST_CALLS)
async def test_every_service_fails_in_its_own_form(call: Calls, service: str) -> None:
    method, path, body = FIRST_CALLS[service]
    right = await call(service, method, path, body)
    for kind in ("status", "empty_body", "html_page", "wrong_types"):
        await call.fault(service=service, kind=kind)
    failed, empty, page, spoiled = [await call(service, method, path, body) for _ in range(4)]
    assert (failed.status, bool(failed.json)) == (500, True)
    assert "a simulated fault" in failed.data.decode()
    assert (empty.status, empty.data) == (200, b"")
    assert page.headers["Content-Type"].startswith("text/html")
    assert spoiled.json != right.json
    assert (await call(service, method, path, body)).json == right.json


@pytest.mark.parametrize(
    ("path", "body", "part"),
    [
        ("/_fault", b"not json", "not JSON"),
        ("/_fault", b"[1]", "JSON object"),
        ("/_clock", b'{"advance_s": -1}', "0 to"),
        ("/_clock", b'{"advance_s": "1"}', "allowed is a number"),
        ("/_clock", b'{"speed": 1e9}', "0 to"),
        ("/_clock", b'{"now": 1}', "no field of the clock"),
        ("/_clock", b"{}", "advance_s, speed"),
        ("/_clock", b"", "not JSON"),
    ],
)
async def test_wrong_control_input_is_refused_clearly(call: Calls, path, body, part) -> None:
    reply = await call("vast", "POST", path, data=body)
    assert reply.status == 400
    assert part in reply.json["error"]["message"]


async def test_a_fault_is_removed_by_its_id(call: Calls) -> None:
    number = (await call.fault(service="vast", kind="reset")).json["id"]
    assert (await call("vast", "DELETE", "/_fault?id=x")).status == 400
    assert (await call("vast", "DELETE", f"/_fault?id={number + 1}")).json["removed"] == 0
    assert (await call("vast", "DELETE", f"/_fault?id={number}")).json["removed"] == 1


async def test_a_body_that_is_too_large_is_refused(call: Calls) -> None:
    reply = await call("vast", "POST", "/api/v0/bundles/", data=b" " * (2**20 + 1))
    assert (reply.status, reply.json["success"]) == (413, False)


async def test_the_clock_can_be_advanced_and_runs_faster(call: Calls, twin: Twin) -> None:
    await call.rent()
    assert (await call("vast", "POST", "/_clock", {"advance_s": 30})).json["now_s"] == 1_800_000_030
    assert [row["actual_status"] for row in await call.listed()] == ["running"]
    fast = await call("vast", "POST", "/_clock", {"speed": 60})
    assert fast.json["speed"] == 60
    twin.clock._clock.advance(60)  # type: ignore[attr-defined]
    assert (await call("vast", "GET", "/_clock")).json["now_s"] == 1_800_000_030 + 3600


async def test_many_requests_at_once_count_a_fault_once(call: Calls) -> None:
    await call.fault(service="vast", kind="html_page", times=3)
    replies = await asyncio.gather(*(listing(call) for _ in range(20)))
    assert sum(reply.json is None for reply in replies) == 3
