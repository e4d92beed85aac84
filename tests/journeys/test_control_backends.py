"""An orchestrator changes the backends over gRPC while the appliance serves: added, drained, removed, switched, kept for a restart."""

import json

import grpc
import pytest

from appliance.control.v1 import control_pb2 as pb
from appliance.control.v1 import control_pb2_grpc
from tests.fakes.engine_server import EngineServer
from tests.journeys.running import until
from tests.journeys.test_backends import QUICK, ask, backend

pytestmark = pytest.mark.usefixtures("tmp_path")


@pytest.fixture
async def engine():
    async with EngineServer("vllm", key="sk_of_the_new_one") as server:
        yield server


async def test_backends_come_and_go_while_it_serves(start, engine: EngineServer) -> None:
    async with EngineServer("vllm") as first:
        running = await start(BACKENDS=f"e0={first.url}", **QUICK)
        async with grpc.aio.insecure_channel(running.control_address) as channel:
            stub = control_pb2_grpc.ControlStub(channel)
            watch = stub.WatchBackends(pb.WatchBackendsRequest())
            assert [b.name for b in (await watch.read()).backends] == ["e0"]
            added = await stub.AddBackend(
                pb.AddBackendRequest(url=engine.url, name="e1", api_key="sk_of_the_new_one", weight=2)
            )
            assert (added.backend.name, added.backend.origin, added.backend.weight) == ("e1", "runtime", 2.0)
            assert "sk_of_the_new_one" not in str(added)
            while not any(b.name == "e1" and b.standing == "ready" for b in (await watch.read()).backends):
                pass
            assert {backend(headers) for _, headers, _ in [await ask(running) for _ in range(6)]} == {
                "e0",
                "e1",
            }
            drained = await stub.DrainBackend(pb.DrainBackendRequest(name="e0"))
            assert drained.backend.standing == "draining"
            assert {backend(headers) for _, headers, _ in [await ask(running) for _ in range(4)]} == {"e1"}
            await stub.DrainBackend(pb.DrainBackendRequest(name="e0", resume=True))
            assert (
                await stub.SetStrategy(pb.SetStrategyRequest(strategy="round_robin"))
            ).strategy == "round_robin"
            assert [backend(headers) for _, headers, _ in [await ask(running) for _ in range(4)]].count(
                "e0"
            ) == 2
            await stub.RemoveBackend(pb.RemoveBackendRequest(name="e1"))
            listed = await stub.ListBackends(pb.ListBackendsRequest())
            assert [b.name for b in listed.backends] == ["e0"]
            watch.cancel()


async def test_only_persisted_backends_survive_a_restart(start, engine: EngineServer, tmp_path) -> None:
    async with EngineServer("vllm") as first, EngineServer("vllm") as other:
        running = await start(BACKENDS=f"e0={first.url}", **QUICK)
        fleet = running.appliance.fleet
        fleet.add({"url": engine.url, "name": "kept", "api_key": "sk_of_the_new_one"}, persist=True)
        fleet.add({"url": other.url, "name": "gone"})
        fleet.drain("e0", persist=True)
        fleet.set_strategy("power_of_two", persist=True)
        kept = tmp_path / "state" / "backends.json"
        assert kept.stat().st_mode & 0o777 == 0o600
        assert set(json.loads(kept.read_text())["added"]) == {"kept"}
        again = await start(BACKENDS=f"e0={first.url}", **QUICK)
        router = again.appliance.router
        assert {(s.name, s.origin) for s in router.states()} == {("e0", "configured"), ("kept", "persisted")}
        assert (router.strategy, router.state("e0").standing) == ("power_of_two", "draining")
        assert await until(lambda: router.state("kept").standing == "ready")
        assert backend((await ask(again))[1]) == "kept"


@pytest.mark.parametrize(
    ("call", "request_", "code"),
    [
        ("AddBackend", pb.AddBackendRequest(url="ftp://x"), grpc.StatusCode.INVALID_ARGUMENT),
        (
            "AddBackend",
            pb.AddBackendRequest(url="http://127.0.0.1:1", name="e0"),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
        ("RemoveBackend", pb.RemoveBackendRequest(name="e9"), grpc.StatusCode.NOT_FOUND),
        ("RemoveBackend", pb.RemoveBackendRequest(), grpc.StatusCode.INVALID_ARGUMENT),
        ("DrainBackend", pb.DrainBackendRequest(name="e9"), grpc.StatusCode.NOT_FOUND),
        ("SetStrategy", pb.SetStrategyRequest(strategy="best"), grpc.StatusCode.INVALID_ARGUMENT),
        (
            "SetStrategy",
            pb.SetStrategyRequest(strategy="round_robin", pool="moon"),
            grpc.StatusCode.NOT_FOUND,
        ),
    ],
)
async def test_what_cannot_be_done_is_refused(
    start,
    engine: EngineServer,
    call: str,
    request_: object,
    code: grpc.StatusCode,
) -> None:
    running = await start(BACKENDS=f"e0={engine.url}", **QUICK)
    async with grpc.aio.insecure_channel(running.control_address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(control_pb2_grpc.ControlStub(channel), call)(request_)
    assert caught.value.code() is code, caught.value.details()


async def test_the_appliance_is_no_backend_of_its_own(start) -> None:
    running = await start()
    async with grpc.aio.insecure_channel(running.control_address) as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.AddBackend(pb.AddBackendRequest(url=running.v1, name="me"))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"{running.base_url} is the appliance's own address" in refused.value.details()
