"""The gRPC API of aiserve-gpuproxyd, with grpcio's client, against a whole appliance."""

from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.control.gpuproxy import gpuproxy_pb2 as pb
from appliance.control.gpuproxy.gpuproxy_pb2_grpc import GPUProxyServiceStub
from tests.accounts.parts import PASSWORD, SECRET
from tests.journeys.running import Running, Start, free_port

OPERATOR = "operator-key-of-tests"
ADA = {"email": "ada@example.org", "password": PASSWORD, "name": "Ada"}


async def begin(start: Start, **more: str) -> tuple[Running, str]:
    port = free_port()
    running = await start(
        ACCOUNTS="1",
        JWT_SECRET=SECRET,
        REGISTRATION="open",
        UNPRICED="free",
        OPERATOR_API_KEYS=OPERATOR,
        GRPC_PORT=str(port),
        **more,
    )
    async with httpx.AsyncClient(base_url=running.base_url) as http:
        assert (await http.post("/api/v1/auth/register", json=ADA)).status_code == 201
    return running, f"127.0.0.1:{port}"


async def log_in(stub: GPUProxyServiceStub) -> tuple[tuple[str, str], ...]:
    """Return metadata with a new API key."""
    done = await stub.Login(pb.LoginRequest(email=ADA["email"], password=ADA["password"]))
    made = await stub.CreateAPIKey(pb.CreateAPIKeyRequest(name="k", token=done.token))
    assert made.api_key.startswith("apk_")
    assert (made.name, done.email) == ("k", ADA["email"])
    return (("x-api-key", made.api_key),)


async def test_a_user_logs_in_makes_a_key_and_looks_at_money_and_load(start: Start) -> None:
    _, address = await begin(start, GUARDRAILS_ENABLED="1", GUARDRAILS_MAX_5MIN_RATE="1")
    async with grpc.aio.insecure_channel(address) as channel:
        stub = GPUProxyServiceStub(channel)
        mine = await log_in(stub)
        info = await stub.GetSpendingInfo(pb.GetSpendingInfoRequest(), metadata=mine)
        first = next(one for one in info.windows if one.window == "5min")
        assert (info.guard_rails_enabled, first.limit, first.remaining) == (True, 1, 1)
        check = pb.CheckSpendingLimitRequest
        assert (await stub.CheckSpendingLimit(check(amount=0.5), metadata=mine)).allowed
        refused = await stub.CheckSpendingLimit(check(amount=2), metadata=mine)
        assert (refused.allowed, list(refused.would_exceed)) == (False, ["5min"])
        load = await stub.GetLoadInfo(pb.GetLoadInfoRequest(type="server"), metadata=mine)
        assert load.current_strategy == "least_busy"
        assert (await stub.HealthCheck(pb.HealthCheckRequest())).status == "ok", "it needs no key"
        health = await stub.HealthCheck(pb.HealthCheckRequest(), metadata=mine)
        assert (health.status, health.details["database"]) == ("ok", "ok")
        operator = (("x-api-key", OPERATOR),)
        wanted = pb.SetLoadBalancerStrategyRequest(strategy="round_robin")
        done = await stub.SetLoadBalancerStrategy(wanted, metadata=operator)
        assert (done.success, done.strategy) == (True, "round_robin")


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ((), grpc.StatusCode.UNAUTHENTICATED),
        ((("x-api-key", "wrong"),), grpc.StatusCode.UNAUTHENTICATED),
        ((("authorization", "Bearer a.b.c"),), grpc.StatusCode.UNAUTHENTICATED),
    ],
)
async def test_no_call_without_a_known_key(
    start: Start, metadata: tuple[tuple[str, str], ...], code: grpc.StatusCode
) -> None:
    _, address = await begin(start)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = GPUProxyServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetSpendingInfo(pb.GetSpendingInfoRequest(), metadata=metadata)
        assert refused.value.code() is code
        assert "apk_" not in (refused.value.details() or "")


async def test_refusals_have_the_code_of_their_kind(start: Start) -> None:
    _, address = await begin(start)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = GPUProxyServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as wrong:
            await stub.Login(pb.LoginRequest(email=ADA["email"], password="wrong password"))
        assert wrong.value.code() is grpc.StatusCode.UNAUTHENTICATED
        mine = await log_in(stub)
        strategy = pb.SetLoadBalancerStrategyRequest(strategy="round_robin")
        with pytest.raises(grpc.aio.AioRpcError) as forbidden:
            await stub.SetLoadBalancerStrategy(strategy, metadata=mine)
        assert forbidden.value.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
        with pytest.raises(grpc.aio.AioRpcError) as off:
            await stub.ListGPUInstances(pb.ListGPUInstancesRequest(), metadata=mine)
        assert off.value.code() is grpc.StatusCode.NOT_FOUND, "MARKET is off here"
        with pytest.raises(grpc.aio.AioRpcError) as unsupported:
            await stub.CreatePayment(pb.CreatePaymentRequest(amount=5), metadata=mine)
        assert unsupported.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_health_and_reflection_are_there(start: Start) -> None:
    _, address = await begin(start)
    async with grpc.aio.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "gpuproxy.GPUProxyService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await health.Check(health_pb2.HealthCheckRequest(service="other"))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_without_the_port_nothing_of_it_is_served(start: Start) -> None:
    running = await start(ACCOUNTS="1", JWT_SECRET=SECRET, UNPRICED="free")
    assert all("unix:" in one for one in running.appliance.control_addresses)


async def test_a_port_that_is_taken_is_named(start: Start, tmp_path: Path) -> None:
    _, address = await begin(start)
    with pytest.raises(OSError, match="GRPC_PORT"):
        await start(
            ACCOUNTS="1",
            JWT_SECRET=SECRET,
            GRPC_PORT=address.rpartition(":")[2],
            STATE_DIR=str(tmp_path / "other"),
        )
