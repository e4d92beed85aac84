"""Each call of the control API, with real gRPC clients over a unix socket."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from appliance.base.tasks import Tasks
from appliance.control.v1 import control_pb2 as pb
from appliance.engines.receipts import Receipt
from tests.control.fake_appliance import FakeAppliance, OpenControl, opened, refused, rest_of


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[OpenControl]:
    async with opened(tmp_path) as control:
        yield control


def details_of(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """Unpack the rich details of an error by their type's name."""
    status = rpc_status.from_call(error)
    assert status is not None
    found = {}
    for box in status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            if box.Is(kind.DESCRIPTOR):
                message = kind()
                box.Unpack(message)
                found[kind.DESCRIPTOR.name] = message
    return found


# ---- state


async def test_status_has_everything_that_healthz_shows(control: OpenControl) -> None:
    status = (await control.stub.GetStatus(pb.GetStatusRequest())).status
    assert (status.ok, status.state, status.version, status.uptime_s) == (
        True,
        pb.APPLIANCE_STATE_SERVING,
        "1.2.3",
        12.5,
    )
    assert status.started_at.ToNanoseconds() == 1_800_000_000_250_000_000
    assert (status.public_model, status.upstream_base, list(status.aliases)) == (
        "house/model",
        "upstream/model",
        ["house"],
    )
    assert list(status.novita_endpoints) == ["http://127.0.0.1:1/v1"]
    assert status.gpu.simulated
    assert status.gpu.gpus[0].name.endswith(" (simulated)")
    assert status.gpu.gpus[0].memory_total_mib == 81559
    assert (status.nat.outcome, status.steps[0].name, status.steps[0].outcome) == ("listener", "nat", "done")
    assert (status.worker.state, status.worker.pid) == (pb.WORKER_STATE_RUNNING, 4711)
    assert not status.worker.HasField("exit_code")
    assert (status.machine_id, status.in_flight, list(status.warnings)) == (
        "ab" * 16,
        3,
        ["something to know"],
    )


async def test_watch_status_sends_each_change_until_the_stop(
    control: OpenControl,
) -> None:
    call = control.stub.WatchStatus(pb.WatchStatusRequest())
    assert (await call.read()).status.state == pb.APPLIANCE_STATE_SERVING
    control.fake.become("draining")
    assert (await call.read()).status.state == pb.APPLIANCE_STATE_DRAINING
    control.fake.become("stopping")
    assert [message.status.state for message in await rest_of(call)] == [pb.APPLIANCE_STATE_STOPPING]
    assert await call.code() is grpc.StatusCode.OK


async def test_watch_sends_the_state_again_after_the_interval(control: OpenControl) -> None:
    call = control.stub.WatchStatus(pb.WatchStatusRequest(interval_s=1))
    first, second = await call.read(), await call.read()
    assert first.status == second.status
    call.cancel()


@pytest.mark.parametrize("interval_s", [0.5, -1, 3601, float("nan"), float("inf")])
async def test_watch_refuses_an_interval_out_of_range(control: OpenControl, interval_s: float) -> None:
    error = await refused(control.stub.WatchStatus(pb.WatchStatusRequest(interval_s=interval_s)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(error)["BadRequest"].field_violations[0].field == "interval_s"


async def test_identity_says_that_a_gpu_is_simulated(control: OpenControl) -> None:
    identity = await control.stub.GetIdentity(pb.GetIdentityRequest())
    assert (identity.machine_id, identity.hostname, identity.gpu.mode) == ("ab" * 16, "box", "simulated")
    assert identity.gpu.gpus[0].name == "NVIDIA H100 (simulated)"


# ---- settings


async def test_settings_are_listed_with_secrets_hidden(control: OpenControl) -> None:
    rows = (await control.stub.GetSettings(pb.GetSettingsRequest())).settings
    assert [(r.variable, r.value, r.is_secret, r.is_reloadable) for r in rows] == [
        ("LOG_LEVEL", "info", False, True),
        ("CONTROL_TOKEN", "(hidden)", True, False),
    ]
    rows = (await control.stub.GetSettings(pb.GetSettingsRequest(set_only=True))).settings
    assert [r.variable for r in rows] == ["CONTROL_TOKEN"]


async def test_a_dry_run_lists_changes_and_applies_none(control: OpenControl) -> None:
    reply = await control.stub.Reload(pb.ReloadRequest(dry_run=True, overrides={"LOG_LEVEL": "debug"}))
    assert not reply.applied
    assert [(c.variable, c.old_value, c.new_value, c.needs_restart) for c in reply.changes] == [
        ("LOG_LEVEL", "info", "debug", False)
    ]
    assert control.fake.reloads == [({"LOG_LEVEL": "debug"}, True)]
    assert control.fake.log_level == "info"


async def test_a_dry_run_lists_problems(control: OpenControl) -> None:
    reply = await control.stub.Reload(pb.ReloadRequest(dry_run=True, overrides={"LOG_LEVEL": "loud"}))
    assert [(p.variable, p.value, p.allowed) for p in reply.problems] == [
        ("LOG_LEVEL", "loud", "debug, info")
    ]


async def test_a_reload_is_applied(control: OpenControl) -> None:
    reply = await control.stub.Reload(pb.ReloadRequest(overrides={"LOG_LEVEL": "debug"}))
    assert reply.applied
    assert reply.message == "Applied."
    assert control.fake.log_level == "debug"


async def test_an_invalid_reload_names_the_variable(control: OpenControl) -> None:
    error = await refused(control.stub.Reload(pb.ReloadRequest(overrides={"LOG_LEVEL": "loud"})))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "LOG_LEVEL=loud" in error.details()
    details = details_of(error)
    assert (details["ErrorInfo"].domain, details["ErrorInfo"].reason) == ("appliance", "BAD_SETTINGS")
    assert details["BadRequest"].field_violations[0].field == "LOG_LEVEL"


async def test_a_reload_that_fails_is_aborted_and_rolled_back(control: OpenControl) -> None:
    control.fake.is_reload_broken = True
    error = await refused(control.stub.Reload(pb.ReloadRequest(overrides={"LOG_LEVEL": "debug"})))
    assert error.code() is grpc.StatusCode.ABORTED
    assert details_of(error)["ErrorInfo"].reason == "RELOAD_ROLLED_BACK"
    assert control.fake.log_level == "info"


async def test_a_running_stream_survives_a_reload(control: OpenControl) -> None:
    watch = control.stub.WatchStatus(pb.WatchStatusRequest())
    await watch.read()
    await control.stub.Reload(pb.ReloadRequest(overrides={"LOG_LEVEL": "debug"}))
    control.fake.become("serving")
    assert (await watch.read()).status.ok
    watch.cancel()


# ---- life


async def test_drain_and_resume_return_the_state_and_may_be_repeated(control: OpenControl) -> None:
    for _ in range(2):
        assert (await control.stub.Drain(pb.DrainRequest())).status.state == pb.APPLIANCE_STATE_DRAINING
    for _ in range(2):
        assert (await control.stub.Resume(pb.ResumeRequest())).status.state == pb.APPLIANCE_STATE_SERVING


@pytest.mark.parametrize("verb", ["Drain", "Resume"])
async def test_a_stopping_appliance_cannot_be_drained_or_resumed(control: OpenControl, verb: str) -> None:
    control.fake.state = "stopping"
    error = await refused(getattr(control.stub, verb)(getattr(pb, f"{verb}Request")()))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert details_of(error)["ErrorInfo"].reason == "IS_STOPPING"


async def test_shutdown_passes_the_grace_period_on(control: OpenControl) -> None:
    await control.stub.Shutdown(pb.ShutdownRequest())
    await control.stub.Shutdown(pb.ShutdownRequest(grace_s=0))
    await control.stub.Shutdown(pb.ShutdownRequest(grace_s=2.5))
    assert control.fake.shutdowns == [None, 0.0, 2.5]


async def test_shutdown_refuses_a_grace_out_of_range(control: OpenControl) -> None:
    error = await refused(control.stub.Shutdown(pb.ShutdownRequest(grace_s=-1)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert control.fake.shutdowns == []


# ---- worker


async def test_the_worker_is_shown_started_stopped_and_restarted(control: OpenControl) -> None:
    worker = (await control.stub.GetWorker(pb.GetWorkerRequest())).worker
    assert (worker.state, worker.command, worker.restarts) == (pb.WORKER_STATE_RUNNING, "work --fast", 2)
    worker = (await control.stub.StopWorker(pb.StopWorkerRequest())).worker
    assert (worker.state, worker.exit_code, worker.HasField("pid")) == (pb.WORKER_STATE_STOPPED, -15, False)
    assert (await control.stub.StartWorker(pb.StartWorkerRequest())).worker.pid == 4712
    assert (
        await control.stub.RestartWorker(pb.RestartWorkerRequest())
    ).worker.state == pb.WORKER_STATE_RUNNING
    assert control.fake.worker is not None
    assert control.fake.worker.did == ["stop", "start", "stop", "start"]


@pytest.mark.parametrize("verb", ["StartWorker", "RestartWorker"])
async def test_a_refused_worker_is_a_failed_precondition(control: OpenControl, verb: str) -> None:
    assert control.fake.worker is not None
    control.fake.worker.refuses = "The GPU here is simulated."
    error = await refused(getattr(control.stub, verb)(getattr(pb, f"{verb}Request")()))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == "The GPU here is simulated."


@pytest.mark.parametrize("verb", ["StartWorker", "StopWorker", "RestartWorker"])
@pytest.mark.parametrize("is_built", [True, False])
async def test_without_a_worker_its_calls_are_refused(tmp_path: Path, verb: str, is_built: bool) -> None:
    fake = FakeAppliance()
    if is_built:
        assert fake.worker is not None
        fake.worker.state = {"state": "off", "command": ""}
    else:
        fake.worker = None
    async with opened(tmp_path, fake) as control:
        error = await refused(getattr(control.stub, verb)(getattr(pb, f"{verb}Request")()))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "WORKER_COMMAND" in error.details()
        assert (await control.stub.GetWorker(pb.GetWorkerRequest())).worker.state == pb.WORKER_STATE_OFF


async def test_a_lost_caller_does_not_interrupt_the_workers_stop(control: OpenControl) -> None:
    worker = control.fake.worker
    assert worker is not None
    worker.may_stop.clear()
    call = control.stub.StopWorker(pb.StopWorkerRequest())
    async with Tasks() as tasks:
        tasks.start(refused(call), name="stop")
        await worker.is_stopping.wait()
        call.cancel()
        await control.stub.GetStatus(pb.GetStatusRequest())  # the cancelled call has been seen by then
        worker.may_stop.set()
        await worker.has_stopped.wait()
    assert worker.did == ["stop"]


# ---- log


async def test_the_tail_has_the_latest_lines_of_one_source(control: OpenControl) -> None:
    for number in range(5):
        control.fake.lines.add(
            1_800_000_000 + number, "worker.stdout" if number % 2 else "appliance", f"line {number}"
        )
    lines = [line async for line in control.stub.TailLogs(pb.TailLogsRequest(count=2))]
    assert [line.text for line in lines] == ["line 3", "line 4"]
    assert lines[0].at.seconds == 1_800_000_003
    lines = [line async for line in control.stub.TailLogs(pb.TailLogsRequest(count=9, source="worker"))]
    assert [(line.number, line.source) for line in lines] == [(2, "worker.stdout"), (4, "worker.stdout")]


async def test_a_log_follower_gets_each_line_once_until_the_stop(control: OpenControl) -> None:
    control.fake.lines.add(1, "appliance", "old")
    call = control.stub.TailLogs(pb.TailLogsRequest(count=10, follow=True))
    assert (await call.read()).text == "old"
    for text in ("new 1", "new 2"):
        control.fake.lines.add(2, "appliance", text)
    assert [(await call.read()).text, (await call.read()).text] == ["new 1", "new 2"]
    control.fake.become("stopping")
    assert await rest_of(call) == []
    assert await call.code() is grpc.StatusCode.OK


async def test_a_follower_without_a_tail_gets_new_lines_only(control: OpenControl) -> None:
    control.fake.lines.add(1, "appliance", "old")
    call = control.stub.TailLogs(pb.TailLogsRequest(follow=True, source="worker"))
    async with Tasks() as tasks:
        reading = tasks.start(call.read(), name="read")
        while not reading.done():  # there is no signal for the arrival of the call
            control.fake.lines.add(2, "worker.stderr", "new")
            await asyncio.sleep(0.01)
        assert (await reading).text == "new"
        call.cancel()


@pytest.mark.parametrize("count", [-1, 2001])
async def test_the_tail_refuses_a_count_out_of_range(control: OpenControl, count: int) -> None:
    error = await refused(control.stub.TailLogs(pb.TailLogsRequest(count=count)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


# ---- backends and receipts


async def test_backends_are_listed_with_their_endpoints(control: OpenControl) -> None:
    (backend,) = (await control.stub.ListBackends(pb.ListBackendsRequest())).backends
    assert (backend.name, backend.kind, backend.is_up, list(backend.models), backend.in_flight) == (
        "scripted",
        "scripted",
        True,
        ["house/model"],
        1,
    )
    assert (
        backend.endpoints[0].url,
        backend.endpoints[0].rested_s,
        backend.endpoints[0].failed_in_a_row,
    ) == ("http://127.0.0.1:1/v1", 1.5, 2)


async def test_receipts_are_listed_newest_first_and_found_by_id(control: OpenControl) -> None:
    for number in range(3):
        control.fake.receipts.add(
            Receipt(f"r{number}", 1_800_000_000.0, "/v1/chat/completions", model="m\udce9", total_ms=7.0)
        )
    listed = (await control.stub.ListReceipts(pb.ListReceiptsRequest(count=2))).receipts
    assert [r.id for r in listed] == ["r2", "r1"]
    assert len((await control.stub.ListReceipts(pb.ListReceiptsRequest())).receipts) == 3
    receipt = (await control.stub.GetReceipt(pb.GetReceiptRequest(id="r1"))).receipt
    assert (receipt.route, receipt.total_ms, receipt.HasField("prompt_tokens")) == (
        "/v1/chat/completions",
        7.0,
        False,
    )


async def test_a_receipt_that_is_not_kept_is_not_found(control: OpenControl) -> None:
    assert (
        await refused(control.stub.GetReceipt(pb.GetReceiptRequest(id="r9")))
    ).code() is grpc.StatusCode.NOT_FOUND
    assert (
        await refused(control.stub.GetReceipt(pb.GetReceiptRequest()))
    ).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (
        await refused(control.stub.ListReceipts(pb.ListReceiptsRequest(count=1001)))
    ).code() is grpc.StatusCode.INVALID_ARGUMENT
