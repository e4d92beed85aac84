"""The stand-in for io.net: hardware, prices, deployments that are paid ahead."""

from typing import Any

import pytest

from appliance.simulate.twin import Twin
from tests.simulate.calls import Calls, Reply

BASE = "/enterprise/v1/io-cloud/caas"
DEPLOY: dict[str, Any] = {
    "resource_private_name": "apl-test-1",
    "duration_hours": 2,
    "gpus_per_container": 2,
    "hardware_id": 203,
    "location_ids": [1],
    "container_config": {"replica_count": 1, "env_variables": {"MODEL": "m"}, "traffic_port": 8000},
    "registry_config": {"image_url": "vllm/vllm-openai:latest"},
}


async def io(call: Calls, method: str, path: str, body: Any = None, **more: Any) -> Reply:
    return await call("ionet", method, BASE + path, body, **more)


async def deploy(call: Calls, **more: Any) -> str:
    reply = await io(call, "POST", "/deploy", {**DEPLOY, **more})
    assert reply.status == 200, reply.data
    assert reply.json["status"] == "deployment requested"
    return reply.json["deployment_id"]


async def test_the_price_is_what_is_paid_ahead(call: Calls, twin: Twin) -> None:
    query = {"location_ids": "1", "hardware_id": "203", "gpus_per_container": "2", "replica_count": "1"}
    query |= {"hardware_qty": "2", "duration_type": "hourly", "duration_qty": "2", "duration_hours": "2"}
    price = (await io(call, "GET", "/price", params=query)).json["data"]
    number = await deploy(call)
    detail = (await io(call, "GET", f"/deployment/{number}")).json["data"]
    assert price["total_cost_usdc"] == detail["amount_paid"] == 0.29 * 2 * 2
    assert twin.truth()["cost_musd"] == 1_160_000


async def test_a_deployment_runs_then_ends_with_its_time(call: Calls, twin: Twin) -> None:
    number = await deploy(call)
    await twin.advance(30)
    detail = (await io(call, "GET", f"/deployment/{number}")).json["data"]
    assert (detail["status"], detail["compute_minutes_remaining"]) == ("running", 120)
    (worker,) = (await io(call, "GET", f"/deployment/{number}/containers")).json["data"]["workers"]
    assert (await call("", "GET", f"{worker['public_url']}/health")).headers["X-Simulated"] == "1"
    logs = await io(call, "GET", f"/deployment/{number}/log/{worker['container_id']}")
    assert "running (simulated)" in logs.data.decode()
    await twin.advance(7199)
    assert twin.truth()["running"] == 1
    await twin.advance(1)
    detail = (await io(call, "GET", f"/deployment/{number}")).json["data"]
    assert (detail["status"], detail["completed_percent"], twin.truth()["live"]) == ("completed", 100, 0)


async def test_more_hours_cost_more_and_last_longer(call: Calls, twin: Twin) -> None:
    number = await deploy(call)
    await twin.advance(30)
    detail = (await io(call, "POST", f"/deployment/{number}/extend", {"duration_hours": 1})).json["data"]
    assert (detail["amount_paid"], detail["compute_minutes_remaining"]) == (1.74, 180)
    await twin.advance(3 * 3600 - 1)
    assert twin.truth()["running"] == 1


async def test_an_early_end_pays_nothing_back(call: Calls, twin: Twin) -> None:
    number = await deploy(call)
    reply = await io(call, "DELETE", f"/deployment/{number}")
    assert (reply.status, reply.json) == (200, {"status": "destroyed", "deployment_id": number})
    assert (twin.truth()["live"], twin.truth()["cost_musd"]) == (0, 1_160_000)
    assert (await io(call, "DELETE", f"/deployment/{number}")).status == 400


async def test_replicas_are_what_is_left(call: Calls) -> None:
    query = {"hardware_id": "203", "hardware_qty": "2"}
    before = (await io(call, "GET", "/available-replicas", params=query)).json["data"]
    await deploy(call)
    after = (await io(call, "GET", "/available-replicas", params=query)).json["data"]
    assert [row["available_replicas"] for row in before] == [6, 4, 2]
    assert [row["available_replicas"] for row in after] == [5, 4, 2]
    hardware = (await io(call, "GET", "/hardware/max-gpus-per-container")).json["data"]
    assert hardware["hardware"][0] | {"available": 22} == hardware["hardware"][0]


async def test_deployments_have_pages(call: Calls) -> None:
    for number in range(3):
        await deploy(call, resource_private_name=f"apl-{number}", gpus_per_container=1)
    query = {"page": "2", "page_size": "2", "sort_by": "name", "sort_order": "asc"}
    page = (await io(call, "GET", "/deployments", params=query)).json["data"]
    assert ([row["name"] for row in page["deployments"]], page["total"]) == (["apl-2"], 3)


async def test_names_can_be_asked_for_and_changed(call: Calls) -> None:
    number = await deploy(call)
    path = "/clusters/check_cluster_name_availability"
    taken = await io(call, "GET", path, params={"cluster_name": "apl-test-1"})
    assert taken.json is False
    await io(call, "PUT", f"/clusters/{number}/update-name", {"cluster_name": "other"})
    assert (await io(call, "GET", path, params={"cluster_name": "apl-test-1"})).json is True


async def test_hardware_is_public_with_prices(call: Calls) -> None:
    reply = await call("ionet", "GET", "/v1/io-cloud/caas/hardware", headers={"X-API-KEY": ""})
    assert (reply.status, reply.json["data"][0]["price"]) == (200, 0.29)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"hardware_id": 1}, "hardware_id"),
        ({"hardware_id": 223}, "No available replicas"),
        ({"duration_hours": 0}, "duration_hours"),
        ({"gpus_per_container": 9}, "gpus_per_container"),
        ({"location_ids": []}, "location_ids"),
        ({"location_ids": [1, 77]}, "location_ids"),
        ({"container_config": None}, "container_config"),
        ({"container_config": {"replica_count": 9}}, "replica_count"),
        ({"registry_config": {}}, "image_url"),
        ({"resource_private_name": ""}, "resource_private_name"),
    ],
)
async def test_a_wrong_deployment_rents_nothing(call: Calls, twin: Twin, change, part) -> None:
    reply = await io(call, "POST", "/deploy", {**DEPLOY, **change})
    assert reply.status == 400
    assert part in reply.json["detail"]
    assert twin.truth()["live"] == 0


async def test_too_little_money_rents_nothing(call: Calls, twin: Twin) -> None:
    reply = await io(call, "POST", "/deploy", {**DEPLOY, "duration_hours": 8000})
    assert (reply.status, reply.json["detail"]) == (402, "Insufficient balance")
    assert twin.truth()["live"] == 0


async def test_its_faults_show_in_what_really_runs(call: Calls, twin: Twin) -> None:
    def live() -> int:
        return twin.truth()["live"]

    await call.fault(service="ionet", kind="no_such_ask", status=409)
    assert ((await io(call, "POST", "/deploy", DEPLOY)).status, live()) == (409, 0)
    await call.fault(service="ionet", kind="create_500_done")
    assert ((await io(call, "POST", "/deploy", DEPLOY)).status, live()) == (500, 1)
    (row,) = (await io(call, "GET", "/deployments")).json["data"]["deployments"]
    path = f"/deployment/{row['id']}"
    await call.fault(service="ionet", kind="clock_off", seconds=300)
    (off,) = (await io(call, "GET", "/deployments")).json["data"]["deployments"]
    assert (row["created_at"], off["created_at"]) == ("2027-01-15T08:00:00.000Z", "2027-01-15T08:05:00.000Z")
    for kind, status in (("destroy_fails", 500), ("destroy_lies", 200)):
        await call.fault(service="ionet", kind=kind)
        assert ((await io(call, "DELETE", path)).status, live()) == (status, 1)
    await call.fault(service="ionet", kind="exits")
    await twin.advance(60)
    assert (await io(call, "GET", path)).json["data"]["status"] == "failed"
    await call.fault(service="ionet", kind="page_2_fails")
    assert (await io(call, "GET", "/deployments", params={"page": "2"})).status == 500
    assert (await io(call, "DELETE", path)).status == 200
    assert live() == 0


async def test_a_stuck_deployment_never_runs(call: Calls, twin: Twin) -> None:
    await call.fault(service="ionet", kind="stuck_loading")
    number = await deploy(call)
    await twin.advance(100_000)
    detail = (await io(call, "GET", f"/deployment/{number}")).json["data"]
    assert (detail["status"], detail["compute_minutes_served"]) == ("deployment requested", 0)


async def test_each_container_has_an_engine_of_its_own(call: Calls, twin: Twin) -> None:
    config = {**DEPLOY["container_config"], "replica_count": 3}
    number = await deploy(call, gpus_per_container=1, container_config=config)
    await twin.advance(30)
    workers = (await io(call, "GET", f"/deployment/{number}/containers")).json["data"]["workers"]
    assert len({worker["public_url"] for worker in workers}) == 3
    for worker in workers:
        models = await call("", "GET", f"{worker['public_url']}/v1/models")
        assert models.json["data"][0]["id"] == "m"


async def test_changed_variables_start_the_containers_anew(call: Calls, twin: Twin) -> None:
    number = await deploy(call)
    await twin.advance(30)
    reply = await io(call, "PATCH", f"/deployment/{number}", {"env_variables": {"MODEL": "other"}})
    assert reply.json["status"] == "deployment requested"
    await twin.advance(30)
    (worker,) = (await io(call, "GET", f"/deployment/{number}/containers")).json["data"]["workers"]
    models = await call("", "GET", f"{worker['public_url']}/v1/models")
    assert models.json["data"][0]["id"] == "other"
