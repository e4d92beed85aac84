"""The server: where it listens, whom it admits, its limits, health and reflection, and how it closes."""

import asyncio
import os
import re
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from appliance.base.settings import InvalidSettings
from appliance.base.tasks import Tasks
from appliance.control.server import MAX_MESSAGE_BYTES, remove_dead_socket, serving_control
from appliance.control.v1 import control_pb2 as pb
from appliance.control.v1 import control_pb2_grpc
from tests.control.fake_appliance import (
    FakeAppliance,
    OpenControl,
    control_settings,
    event,
    free_port,
    opened,
    refused,
    rest_of,
)

TOKEN = "a-long-random-token"
MESSAGES = [pb.ChatMessage(role="user", content="hello")]
SERVICE = "appliance.control.v1.Control"


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[OpenControl]:
    async with opened(tmp_path) as control:
        yield control


# ---- where it opens


async def test_it_opens_a_port_and_a_socket(tmp_path: Path) -> None:
    port = free_port()
    settings = control_settings(control_port=port, control_socket=tmp_path / "c.sock")
    async with serving_control(settings, FakeAppliance().parts()) as addresses:
        assert addresses == [f"127.0.0.1:{port}", f"unix:{tmp_path / 'c.sock'}"]
        for address in addresses:
            async with grpc.aio.insecure_channel(address) as channel:
                assert (
                    await control_pb2_grpc.ControlStub(channel).GetStatus(pb.GetStatusRequest())
                ).status.ok


async def test_it_opens_an_ipv6_address() -> None:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        port = probe.getsockname()[1]
    async with serving_control(
        control_settings(control_host="::1", control_port=port), FakeAppliance().parts()
    ) as addresses:
        assert addresses == [f"[::1]:{port}"]
        async with grpc.aio.insecure_channel(addresses[0]) as channel:
            assert (await control_pb2_grpc.ControlStub(channel).GetStatus(pb.GetStatusRequest())).status.ok


@pytest.mark.parametrize("values", [{}, {"control": False, "control_port": 50051, "control_host": "0.0.0.0"}])
async def test_it_opens_nothing_when_it_is_off(values: dict[str, Any]) -> None:
    async with serving_control(control_settings(**values), FakeAppliance().parts()) as addresses:
        assert addresses == []


async def test_unauthenticated_listening_beyond_loopback_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="CONTROL_TOKEN"):
        async with serving_control(
            control_settings(control_host="0.0.0.0", control_port=free_port()), FakeAppliance().parts()
        ):
            raise AssertionError("it opened")


async def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="CONTROL_PORT"):
            async with serving_control(
                control_settings(control_port=taken.getsockname()[1]), FakeAppliance().parts()
            ):
                raise AssertionError("it opened")


async def test_a_port_is_not_shared_with_another_appliance() -> None:
    settings = control_settings(control_port=free_port())
    async with serving_control(settings, FakeAppliance().parts()):
        taken = f"cannot listen on 127.0.0.1:{settings.control_port}: Address already in use. Process {os.getpid()} "
        with pytest.raises(OSError, match=re.escape(taken) + ".*set CONTROL_PORT to another port"):
            async with serving_control(settings, FakeAppliance().parts()):
                raise AssertionError("it opened")


async def test_the_socket_is_private_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    async with serving_control(control_settings(control_socket=path), FakeAppliance().parts()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


async def test_a_dead_socket_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving_control(control_settings(control_socket=path), FakeAppliance().parts()) as addresses:
        assert addresses == [f"unix:{path}"]


async def test_a_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as control:
        with pytest.raises(OSError, match="in use"):
            async with serving_control(
                control_settings(control_socket=tmp_path / "c.sock"), FakeAppliance().parts()
            ):
                raise AssertionError("it opened")
        assert (await control.stub.GetStatus(pb.GetStatusRequest())).status.ok


def test_a_file_in_the_sockets_place_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    path.write_text("precious")
    with pytest.raises(OSError, match="is not a socket"):
        remove_dead_socket(path)
    assert path.read_text() == "precious"


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="CONTROL_SOCKET"):
        async with serving_control(
            control_settings(control_socket=tmp_path / "none" / "c.sock"), FakeAppliance().parts()
        ):
            raise AssertionError("it opened")


# ---- whom it lets in


async def test_without_its_token_every_call_but_health_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path, control_token=TOKEN) as control:
        for metadata in (None, (("authorization", "Bearer wrong-token"),)):
            for call in (
                control.stub.GetStatus(pb.GetStatusRequest(), metadata=metadata),
                control.stub.WatchStatus(pb.WatchStatusRequest(), metadata=metadata),
                control.stub.Chat(pb.ChatRequest(messages=MESSAGES), metadata=metadata),
                control.stub.Shutdown(pb.ShutdownRequest(), metadata=metadata),
            ):
                error = await refused(call)
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        reflecting = reflection_pb2_grpc.ServerReflectionStub(control.channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        assert (await refused(reflecting)).code() is grpc.StatusCode.UNAUTHENTICATED
        assert control.fake.backend.asked == []
        assert control.fake.shutdowns == []
        checked = await health_pb2_grpc.HealthStub(control.channel).Check(
            health_pb2.HealthCheckRequest(service="liveness")
        )
        assert checked.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("header", [("authorization", f"Bearer {TOKEN}"), ("x-api-key", TOKEN)])
async def test_with_its_token_a_call_passes(tmp_path: Path, header: tuple[str, str]) -> None:
    async with opened(tmp_path, control_token=TOKEN) as control:
        assert (await control.stub.GetStatus(pb.GetStatusRequest(), metadata=(header,))).status.ok
        assert (
            len(await rest_of(control.stub.Chat(pb.ChatRequest(messages=MESSAGES), metadata=(header,)))) == 2
        )


class Pki:
    """A CA with a server's pair, a client's pair, and a stranger's."""

    def __init__(self, folder: Path) -> None:
        ca, other = trustme.CA(), trustme.CA()
        self.ca = ca.cert_pem.bytes()
        server = ca.issue_cert("127.0.0.1")
        server.private_key_pem.write_to_path(folder / "server.key")
        server.cert_chain_pems[0].write_to_path(folder / "server.pem")
        ca.cert_pem.write_to_path(folder / "ca.pem")
        self.client = self._pair(ca.issue_cert("operator@example.org"))
        self.stranger = self._pair(other.issue_cert("stranger@example.org"))
        self.settings = {"control_tls_cert": folder / "server.pem", "control_tls_key": folder / "server.key"}
        self.mutual = {**self.settings, "control_tls_client_ca": folder / "ca.pem"}

    @staticmethod
    def _pair(cert: trustme.LeafCert) -> tuple[bytes, bytes]:
        return cert.private_key_pem.bytes(), cert.cert_chain_pems[0].bytes()


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


async def ask(port: int, credentials: grpc.ChannelCredentials | None, **call: Any) -> Any:
    """Ask for the status over a fresh channel."""
    address = f"127.0.0.1:{port}"
    channel = (
        grpc.aio.secure_channel(address, credentials) if credentials else grpc.aio.insecure_channel(address)
    )
    async with channel:
        return await control_pb2_grpc.ControlStub(channel).GetStatus(pb.GetStatusRequest(), **call)


async def test_tls_still_needs_the_token(pki: Pki) -> None:
    port = free_port()
    async with serving_control(
        control_settings(control_port=port, control_token=TOKEN, **pki.settings), FakeAppliance().parts()
    ):
        trusted = grpc.ssl_channel_credentials(pki.ca)
        assert (await ask(port, trusted, metadata=(("x-api-key", TOKEN),))).status.ok
        assert (await refused(ask(port, trusted))).code() is grpc.StatusCode.UNAUTHENTICATED
        assert (await refused(ask(port, None))).code() is grpc.StatusCode.UNAVAILABLE


async def test_mutual_tls_admits_only_certificates_of_the_ca(pki: Pki) -> None:
    port = free_port()
    async with serving_control(control_settings(control_port=port, **pki.mutual), FakeAppliance().parts()):
        for key, cert in ((None, None), pki.stranger):
            error = await refused(ask(port, grpc.ssl_channel_credentials(pki.ca, key, cert)))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert (await ask(port, grpc.ssl_channel_credentials(pki.ca, *pki.client))).status.ok


# ---- health and reflection


async def test_health_follows_the_state(control: OpenControl) -> None:
    health = health_pb2_grpc.HealthStub(control.channel)

    async def states() -> dict[str, str]:
        listed = await health.List(health_pb2.HealthListRequest())
        found = {}
        for name, row in listed.statuses.items():
            one = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert one.status == row.status
            found[name] = health_pb2.HealthCheckResponse.ServingStatus.Name(one.status)
        return found

    alive = {"": "SERVING", SERVICE: "SERVING", "liveness": "SERVING"}
    assert await states() == {**alive, "readiness": "SERVING"}
    await control.stub.Drain(pb.DrainRequest())
    assert await states() == {**alive, "readiness": "NOT_SERVING"}
    await control.stub.Resume(pb.ResumeRequest())
    assert await states() == {**alive, "readiness": "SERVING"}
    control.fake.state = "starting"
    assert await states() == {**alive, "readiness": "NOT_SERVING"}
    control.fake.state = "stopping"
    assert set((await states()).values()) == {"NOT_SERVING"}


async def test_watched_health_sends_each_change_once(control: OpenControl) -> None:
    watch = health_pb2_grpc.HealthStub(control.channel).Watch(
        health_pb2.HealthCheckRequest(service="readiness")
    )
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    control.fake.become("serving")  # something else changed
    control.fake.become("draining")
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    control.fake.become("stopping")
    assert await rest_of(watch) == []


async def test_health_of_an_unknown_service(control: OpenControl) -> None:
    health = health_pb2_grpc.HealthStub(control.channel)
    error = await refused(health.Check(health_pb2.HealthCheckRequest(service="nonsense")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    watch = health.Watch(health_pb2.HealthCheckRequest(service="nonsense"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_the_services_and_gives_the_file(control: OpenControl, version: str) -> None:
    service = f"grpc.reflection.{version}.ServerReflection"
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=service),
    ]
    call = control.channel.stream_stream(
        f"/{service}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    listed, file, own = await rest_of_stream(call(iter(requests)))
    names = {one.name for one in listed.list_services_response.service}
    assert names == {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert any(b"WatchStatus" in data for data in file.file_descriptor_response.file_descriptor_proto)
    assert any(
        f"grpc.reflection.{version}".encode() in data
        for data in own.file_descriptor_response.file_descriptor_proto
    )


async def rest_of_stream(call: Any) -> list[Any]:
    return [message async for message in call]


async def test_an_unknown_call_is_unimplemented(control: OpenControl) -> None:
    call = control.channel.unary_unary(f"/{SERVICE}/Explode")
    assert (await refused(call(b""))).code() is grpc.StatusCode.UNIMPLEMENTED


# ---- bounds


async def test_calls_beyond_the_limit_are_refused_until_others_end(tmp_path: Path) -> None:
    async with opened(tmp_path, max_calls=2) as control:
        watches = [control.stub.WatchStatus(pb.WatchStatusRequest()) for _ in range(2)]
        for watch in watches:
            await watch.read()
        error = await refused(control.stub.GetStatus(pb.GetStatusRequest()))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        watches[0].cancel()
        code = grpc.StatusCode.RESOURCE_EXHAUSTED
        while code is grpc.StatusCode.RESOURCE_EXHAUSTED:  # until the cancelled call has ended there too
            call = control.stub.GetStatus(pb.GetStatusRequest())
            code = await call.code()
        assert code is grpc.StatusCode.OK
        watches[1].cancel()


async def test_a_message_that_is_too_large_is_refused(control: OpenControl) -> None:
    request = pb.ChatRequest(openai_json=b"x" * (MAX_MESSAGE_BYTES + 1))
    assert (await refused(control.stub.Chat(request))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert control.fake.backend.asked == []


async def test_an_invalid_message_is_refused_and_the_server_stays(control: OpenControl) -> None:
    call = control.channel.unary_unary(f"/{SERVICE}/GetReceipt")
    assert (await refused(call(b"\xff\xff\xff"))).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await control.stub.GetStatus(pb.GetStatusRequest())).status.ok


async def test_each_call_leaves_one_line_with_its_code_and_no_token(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        async with opened(tmp_path, control_token=TOKEN) as control:
            await control.stub.GetStatus(pb.GetStatusRequest(), metadata=(("x-api-key", TOKEN),))
            await refused(
                control.stub.GetReceipt(pb.GetReceiptRequest(id="x"), metadata=(("x-api-key", TOKEN),))
            )
            await refused(
                control.stub.GetStatus(pb.GetStatusRequest(), metadata=(("x-api-key", "a-wrong-token"),))
            )
    calls = [
        (line["method"], line["code"], line["log_level"]) for line in logs if line["event"] == "control_call"
    ]
    assert calls == [
        (f"{SERVICE}/GetStatus", "OK", "info"),
        (f"{SERVICE}/GetReceipt", "NOT_FOUND", "info"),
        (f"{SERVICE}/GetStatus", "UNAUTHENTICATED", "info"),
    ]
    assert TOKEN not in str(logs)
    assert "a-wrong-token" not in str(logs)


async def test_a_message_without_a_token_is_not_parsed(tmp_path: Path) -> None:
    async with opened(tmp_path, control_token=TOKEN) as control:
        call = control.channel.unary_unary(f"/{SERVICE}/GetReceipt")
        assert (await refused(call(b"\xff\xff\xff"))).code() is grpc.StatusCode.UNAUTHENTICATED


# ---- the end


async def test_followers_end_at_once_and_running_calls_after_the_grace(
    tmp_path: Path,
) -> None:
    fake = FakeAppliance()
    fake.backend.script = [event({"content": "a"}), "hang"]
    fake.grace_s = 0.2
    async with opened(tmp_path, fake) as control:
        chat = control.stub.Chat(pb.ChatRequest(messages=MESSAGES, stream=True))
        watch = control.stub.WatchStatus(pb.WatchStatusRequest())
        await chat.read()
        await watch.read()
        fake.become("stopping")
        await rest_of(watch)
        assert not chat.done()
    assert fake.backend.cancelled.is_set()
    assert fake.finished[0].finish_label == "client_left"


async def test_a_watch_does_not_delay_the_shutdown(tmp_path: Path) -> None:
    fake = FakeAppliance()
    fake.grace_s = 3600
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 'c.sock'}") as channel:
        async with serving_control(control_settings(control_socket=tmp_path / "c.sock"), fake.parts()):
            watch = control_pb2_grpc.ControlStub(channel).WatchStatus(pb.WatchStatusRequest())
            await watch.read()
        await rest_of(watch)
        assert await watch.code() is grpc.StatusCode.OK


async def test_a_reply_within_the_grace_period_arrives_whole(tmp_path: Path) -> None:
    fake = FakeAppliance()
    release = asyncio.Event()

    fake.backend.script = [
        event({"content": "a"}),
        "hang",
        event({"content": "b"}, finish="stop") + b"data: [DONE]\n\n",
    ]
    fake.backend.release = release
    fake.grace_s = 60
    settings = control_settings(control_socket=tmp_path / "c.sock")
    leave = asyncio.Event()

    async def serve() -> None:
        async with serving_control(settings, fake.parts()):
            await leave.wait()

    async with Tasks() as tasks:
        serving = tasks.start(serve(), name="serve")
        async with grpc.aio.insecure_channel(f"unix:{tmp_path / 'c.sock'}") as channel:
            stub = control_pb2_grpc.ControlStub(channel)
            chat = stub.Chat(pb.ChatRequest(messages=MESSAGES, stream=True), wait_for_ready=True)
            await chat.read()
            leave.set()
            fake.become("stopping")
            release.set()
            rest = await rest_of(chat)
            assert [m.WhichOneof("part") for m in rest] == ["delta", "receipt"]
            await serving


async def test_a_second_signal_ends_the_grace_period(tmp_path: Path) -> None:
    fake = FakeAppliance()
    fake.backend.script = [event({"content": "a"}), "hang"]
    fake.grace_s = 3600
    async with opened(tmp_path, fake) as control:
        chat = control.stub.Chat(pb.ChatRequest(messages=MESSAGES, stream=True))
        await chat.read()
        fake.hurry.set()
    assert fake.backend.cancelled.is_set()
    assert fake.finished[0].finish_label == "client_left"


async def test_shutdown_is_answered_before_the_server_closes(tmp_path: Path) -> None:
    fake = FakeAppliance()
    leave = asyncio.Event()

    class Stops(list[float | None]):
        def append(self, grace_s: float | None) -> None:
            super().append(grace_s)
            leave.set()

    fake.shutdowns = Stops()

    async def serve() -> None:
        async with serving_control(control_settings(control_socket=tmp_path / "c.sock"), fake.parts()):
            await leave.wait()

    async with Tasks() as tasks:
        serving = tasks.start(serve(), name="serve")
        async with grpc.aio.insecure_channel(f"unix:{tmp_path / 'c.sock'}") as channel:
            await control_pb2_grpc.ControlStub(channel).Shutdown(pb.ShutdownRequest(), wait_for_ready=True)
        await serving
    assert fake.shutdowns == [None]
