"""Renting over aiserve-gpuproxyd's gRPC API, with grpcio's client, at stand-ins for both markets."""

import grpc
import httpx

from appliance.control.gpuproxy import gpuproxy_pb2 as pb
from appliance.control.gpuproxy.gpuproxy_pb2_grpc import GPUProxyServiceStub
from appliance.simulate.twin import Twin
from tests.journeys.running import Start, start  # noqa: F401 - a fixture
from tests.journeys.test_gpuproxy_grpc import OPERATOR, begin, log_in
from tests.journeys.test_renting import live, settings_of, twin  # noqa: F401 - a fixture


async def test_a_gpu_is_listed_rented_shown_and_destroyed(start: Start, twin: Twin) -> None:  # noqa: F811
    running, address = await begin(start, **settings_of(twin))
    async with httpx.AsyncClient(
        base_url=f"{running.base_url}/api/v1", headers={"x-api-key": OPERATOR}
    ) as http:
        user = (await http.get("/admin/users")).json()["users"][0]["id"]
        assert (await http.post(f"/admin/users/{user}/grant", json={"amount": 50})).status_code == 200
    async with grpc.aio.insecure_channel(address) as channel:
        stub = GPUProxyServiceStub(channel)
        mine = await log_in(stub)
        wanted = pb.ListGPUInstancesRequest(provider="vast.ai", min_vram=24, max_price=2)
        found = await stub.ListGPUInstances(wanted, metadata=mine)
        assert found.total_count == len(found.instances) > 0
        offer = found.instances[0]
        order = pb.CreateGPUInstanceRequest(
            provider="vast.ai",
            instance_id=offer.id,
            image="vllm/vllm-openai:latest",
            env={"A": "b"},
            ports=[8000],
        )
        made = await stub.CreateGPUInstance(order, metadata=mine)
        assert (made.provider, made.status) == ("vast.ai", "starting")
        named = {"provider": "vast.ai", "instance_id": made.instance_id}
        shown = await stub.GetGPUInstance(pb.GetGPUInstanceRequest(**named), metadata=mine)
        assert (shown.instance.id, shown.instance.gpu_model) == (made.instance_id, offer.gpu_model)
        load = await stub.GetLoadInfo(pb.GetLoadInfoRequest(type="all"), metadata=mine)
        assert offer.id in [one.instance_id for one in load.server_load]
        assert {one.provider for one in load.provider_load} == {"vast.ai", "io.net"}
        gone = await stub.DestroyGPUInstance(pb.DestroyGPUInstanceRequest(**named), metadata=mine)
        assert (gone.success, gone.message) == (True, "Instance destroyed successfully")
        reserved = await stub.ReserveGPUs(pb.ReserveGPUsRequest(count=2, max_price=2), metadata=mine)
        assert reserved.reserved_count == 2
        assert all(one.metadata["contract_id"] for one in reserved.reserved_instances)
    assert sum(one["instances_live"] for one in live(twin).values()) == 2
