"""The control API over its real wire, and the command line that drives it, against the whole appliance."""

import asyncio
import sys

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from appliance.control.v1 import control_pb2 as pb
from appliance.control.v1 import control_pb2_grpc
from tests.fakes.hosted_api import Hang, HostedApi
from tests.journeys.running import Running, Start, until

HELLO = [pb.ChatMessage(role="user", content="Hello")]


@pytest.fixture
async def channel(request, start: Start):
    running = await start()
    async with grpc.aio.insecure_channel(running.control_address) as opened:
        yield running, opened


def stub(opened) -> control_pb2_grpc.ControlStub:
    return control_pb2_grpc.ControlStub(opened)


async def test_status_identity_and_settings(channel) -> None:
    running, opened = channel
    status = (await stub(opened).GetStatus(pb.GetStatusRequest())).status
    assert (status.ok, status.state, status.demo) == (True, pb.APPLIANCE_STATE_SERVING, True)
    identity = await stub(opened).GetIdentity(pb.GetIdentityRequest())
    assert len(identity.machine_id) == 32
    rows = {row.variable: row for row in (await stub(opened).GetSettings(pb.GetSettingsRequest())).settings}
    assert rows["PROXY_PORT"].is_set
    assert not rows["NOVITA_API_KEY"].value
    assert (await stub(opened).ListBackends(pb.ListBackendsRequest())).backends[0].kind == "demo"


async def test_chat_over_grpc_goes_the_same_way_and_leaves_a_receipt(channel) -> None:
    running, opened = channel
    events = [e async for e in stub(opened).Chat(pb.ChatRequest(messages=HELLO, stream=True))]
    text = "".join(e.delta.text for e in events)
    assert text == "[demo engine] You said: Hello"
    receipt = events[-1].receipt
    assert (receipt.backend, receipt.finish, receipt.status) == ("demo", "done", 200)
    assert (await stub(opened).GetReceipt(pb.GetReceiptRequest(id=receipt.id))).receipt == receipt
    whole = [e async for e in stub(opened).Chat(pb.ChatRequest(messages=HELLO))]
    assert whole[0].reply.text == text


async def test_errors_carry_code_and_details(channel) -> None:
    running, opened = channel
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [e async for e in stub(opened).Chat(pb.ChatRequest())]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = rpc_status.from_call(caught.value).details
    bad = error_details_pb2.BadRequest()
    assert any(d.Unpack(bad) for d in details)
    assert bad.field_violations[0].field == "messages"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(opened).GetReceipt(pb.GetReceiptRequest(id="none"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(opened).StartWorker(pb.StartWorkerRequest())
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_drain_refuses_new_requests_and_resume_takes_them(channel) -> None:
    running, opened = channel
    health = health_pb2_grpc.HealthStub(opened)
    await stub(opened).Drain(pb.DrainRequest())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [e async for e in stub(opened).Chat(pb.ChatRequest(messages=HELLO))]
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    for _ in range(100):
        state = (await health.Check(health_pb2.HealthCheckRequest(service="readiness"))).status
        if state == health_pb2.HealthCheckResponse.NOT_SERVING:
            break
        await asyncio.sleep(0.02)
    assert state == health_pb2.HealthCheckResponse.NOT_SERVING
    assert (
        await health.Check(health_pb2.HealthCheckRequest(service="liveness"))
    ).status == health_pb2.HealthCheckResponse.SERVING
    await stub(opened).Resume(pb.ResumeRequest())
    assert [e async for e in stub(opened).Chat(pb.ChatRequest(messages=HELLO))]


async def test_watch_tells_the_state_and_each_change(channel) -> None:
    running, opened = channel
    call = stub(opened).WatchStatus(pb.WatchStatusRequest())
    assert (await call.read()).status.state == pb.APPLIANCE_STATE_SERVING
    await stub(opened).Drain(pb.DrainRequest())
    assert (await call.read()).status.state == pb.APPLIANCE_STATE_DRAINING
    call.cancel()


async def test_reload_says_what_would_change_then_changes_it(channel) -> None:
    running, opened = channel
    change = {"STREAM_CHUNK_SIZE": "7", "PROXY_PORT": "15999"}
    dry = await stub(opened).Reload(pb.ReloadRequest(dry_run=True, overrides=change))
    assert {c.variable: (c.new_value, c.needs_restart) for c in dry.changes} == {
        "STREAM_CHUNK_SIZE": ("7", False),
        "PROXY_PORT": ("15999", True),
    }
    assert not dry.applied
    assert running.appliance.router.settings.stream_chunk_size == 64
    done = await stub(opened).Reload(pb.ReloadRequest(overrides=change))
    assert done.applied
    assert "PROXY_PORT" in done.message
    assert running.appliance.router.settings.stream_chunk_size == 7


@pytest.mark.parametrize("change", [{"STREAM_CHUNK_SIZE": "zero"}, {"NO_SUCH_THING": "1"}])
async def test_a_bad_reload_changes_nothing_and_says_why(channel, change: dict[str, str]) -> None:
    running, opened = channel
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(opened).Reload(pb.ReloadRequest(overrides=change))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert all(name in caught.value.details() for name in change)
    assert running.appliance.router.settings.stream_chunk_size == 64


async def test_a_reload_hides_secrets_and_streams_survive_it(start: Start, hosted: HostedApi) -> None:
    from tests.fakes.hosted_api import Drip

    running = await start(NOVITA_API_KEY=hosted.key, NOVITA_OPENAI_ENDPOINTS=hosted.base_url)
    hosted.script(Drip(0.05))
    async with grpc.aio.insecure_channel(running.control_address) as opened:
        call = stub(opened).Chat(pb.ChatRequest(messages=HELLO, stream=True))
        events = aiter(call)
        await anext(events)
        answer = await stub(opened).Reload(
            pb.ReloadRequest(overrides={"NOVITA_API_KEY": "sk_another_key_000", "MODEL_STRICT": "1"})
        )
        assert answer.applied
        assert "sk_another" not in str(answer)
        rest = [e async for e in events]
        assert rest[-1].receipt.finish == "done"


async def test_leaving_a_chat_ends_the_upstream_call(start: Start, hosted: HostedApi) -> None:
    running = await start(NOVITA_API_KEY=hosted.key, NOVITA_OPENAI_ENDPOINTS=hosted.base_url)
    hosted.script(Hang())
    async with grpc.aio.insecure_channel(running.control_address) as opened:
        call = stub(opened).Chat(pb.ChatRequest(messages=HELLO), timeout=0.5)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await until(lambda: hosted.records[-1].left_after_s is not None, seconds=2)


async def test_a_token_is_asked_for(start: Start) -> None:
    running = await start(CONTROL_TOKEN="control-token-123")
    async with grpc.aio.insecure_channel(running.control_address) as opened:
        for metadata in ((), (("authorization", "Bearer wrong"),)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub(opened).GetStatus(pb.GetStatusRequest(), metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        metadata = (("authorization", "Bearer control-token-123"),)
        assert (await stub(opened).GetStatus(pb.GetStatusRequest(), metadata=metadata)).status.ok
        health = health_pb2_grpc.HealthStub(opened)
        assert (
            await health.Check(health_pb2.HealthCheckRequest())
        ).status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_the_service(channel) -> None:
    running, opened = channel
    call = reflection_pb2_grpc.ServerReflectionStub(opened).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    )
    names = [s.name async for answer in call for s in answer.list_services_response.service]
    assert "appliance.control.v1.Control" in names


async def test_logs_can_be_tailed_and_followed(channel) -> None:
    running, opened = channel
    latest = [line async for line in stub(opened).TailLogs(pb.TailLogsRequest(count=5))]
    assert latest
    call = stub(opened).TailLogs(pb.TailLogsRequest(follow=True, source="worker"))
    reading = asyncio.create_task(call.read())
    await asyncio.sleep(0.1)
    running.appliance.lines.add(1.0, "appliance", "not this")
    running.appliance.lines.add(2.0, "worker.stdout", "this")
    assert (await asyncio.wait_for(reading, 5)).text == "this"
    call.cancel()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["status"], "serving"),
        (["--json", "identity"], "machine_id"),
        (["settings", "--set-only"], "PROXY_PORT"),
        (["backends"], "demo"),
        (["chat", "Hi"], "You said: Hi"),
        (["reload", "--dry-run", "--set", "STREAM_CHUNK_SIZE=5"], "dry run"),
        (["worker"], "off"),
        (["logs", "-n", "3"], "appliance"),
        (["receipts"], ""),
        (["drain"], "draining"),
        (["resume"], "serving"),
    ],
)
async def test_the_command_line_drives_it(channel, words: list[str], wanted: str) -> None:
    running, _ = channel
    code, out = await ctl(running, *words)
    assert code == 0, out
    assert wanted in out


@pytest.mark.parametrize(
    ("words", "code"),
    [(["receipt", "none"], 1), (["worker", "start"], 1), (["reload", "--set", "X"], 2), (["nonsense"], 2)],
)
async def test_the_command_line_says_what_went_wrong(channel, words: list[str], code: int) -> None:
    running, _ = channel
    found, out = await ctl(running, *words)
    assert found == code
    assert "error" in out.lower()
    assert "Traceback" not in out


async def test_the_command_line_says_when_nobody_answers(tmp_path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "appliance",
        "ctl",
        "--address",
        f"unix:{tmp_path}/none.sock",
        "status",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 3
    assert b"none.sock" in out


async def ctl(running: Running, *words: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "appliance",
        "ctl",
        "--address",
        running.control_address,
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()
