"""The calls about local models, with real gRPC clients over a unix socket and a scripted manager."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from appliance.base.errors import ApplianceError, TimedOut, Unavailable
from appliance.control.convert.models import to_model_status
from appliance.control.v1 import control_pb2 as pb
from appliance.models.status.views import FailedView, QueueView
from tests.control.fake_appliance import FakeAppliance, OpenControl, opened, refused, rest_of
from tests.control.scripted_manager import GIB, STARTED_AT_S, ScriptedManager, model_view, ready_view
from tests.control.test_servicer import details_of


@pytest.fixture
def manager() -> ScriptedManager:
    return ScriptedManager(model_view("small"), ready_view("big"))


@pytest.fixture
async def control(tmp_path: Path, manager: ScriptedManager) -> AsyncIterator[OpenControl]:
    fake = FakeAppliance()
    fake.manager = manager
    async with opened(tmp_path, fake) as control:
        yield control


# ---- seeing


async def test_models_are_listed_in_the_order_of_the_table(
    control: OpenControl, manager: ScriptedManager
) -> None:
    manager.lines = [QueueView("big", 3, 12, 8, 1, 2, 4.5, 100)]
    response = await control.stub.ListModels(pb.ListModelsRequest())
    small, big = response.models
    assert (small.alias, small.status, small.path) == ("small", pb.MODEL_STATUS_OFF, "/models/small.gguf")
    assert (small.context_tokens, small.slots, small.replicas, small.size_bytes, small.estimate_bytes) == (
        8192,
        4,
        1,
        2 * GIB,
        3 * GIB,
    )
    for field in (
        "port",
        "started_at",
        "last_used_at",
        "expires_at",
        "updated_at",
        "load_progress_percent",
        "expected_in_s",
        "load_s",
    ):
        assert not small.HasField(field), field
    assert (big.status, big.port, big.load_progress_percent, big.load_s, big.loads) == (
        pb.MODEL_STATUS_READY,
        41000,
        100,
        3.25,
        1,
    )
    assert (big.active, big.queue_length, big.memory_bytes) == (2, 3, 3 * GIB)
    assert big.expires_at.seconds == STARTED_AT_S + 300
    assert response.at.seconds == control.fake.clock.now_s()


async def test_a_model_has_its_processes_and_their_devices(control: OpenControl) -> None:
    (runner,) = (await control.stub.ListModels(pb.ListModelsRequest())).models[1].runners
    assert (runner.port, runner.pid, runner.status, runner.slots, runner.active) == (
        41000,
        4711,
        pb.MODEL_STATUS_READY,
        4,
        2,
    )
    assert [(device.index, device.memory_bytes) for device in runner.devices] == [(0, 2 * GIB), (-1, GIB)]
    assert (runner.log_path, runner.load_s, runner.started_at.seconds) == (
        "/state/logs/a.log",
        3.25,
        STARTED_AT_S,
    )


async def test_a_model_expires_with_its_last_process(control: OpenControl, manager: ScriptedManager) -> None:
    first = manager.views["big"].runners[0]
    for ends, expected in (((10, 20), 20), ((10, None), 0), ((None,), 0)):
        runners = tuple(
            replace(first, expires_at_s=None if end is None else STARTED_AT_S + end) for end in ends
        )
        manager.put(replace(manager.views["big"], runners=runners))
        model = (await control.stub.ListModels(pb.ListModelsRequest())).models[1]
        assert model.expires_at.seconds == (STARTED_AT_S + expected if expected else 0)
        assert model.HasField("expires_at") == bool(expected)


def test_every_status_word_of_the_manager_has_its_value() -> None:
    words = ("off", "starting", "loading", "ready", "stopping", "crashed", "failed")
    assert [to_model_status(word) for word in words] == [1, 2, 3, 4, 5, 6, 7]
    assert to_model_status("dreaming") == pb.MODEL_STATUS_UNSPECIFIED


async def test_watch_models_sends_each_change_until_the_stop(
    control: OpenControl, manager: ScriptedManager
) -> None:
    call = control.stub.WatchModels(pb.WatchModelsRequest())
    assert [model.status for model in (await call.read()).models] == [
        pb.MODEL_STATUS_OFF,
        pb.MODEL_STATUS_READY,
    ]
    manager.put(
        model_view("small", status="crashed", error_message="it crashed: killed by signal 9", attempts=1)
    )
    small = (await call.read()).models[0]
    assert (small.status, small.error_message, small.attempts) == (
        pb.MODEL_STATUS_CRASHED,
        "it crashed: killed by signal 9",
        1,
    )
    control.fake.become("stopping")
    assert await rest_of(call) == []
    assert await call.code() is grpc.StatusCode.OK


async def test_watching_sends_the_models_again_after_the_interval(control: OpenControl) -> None:
    call = control.stub.WatchModels(pb.WatchModelsRequest(interval_s=1))
    first, second = await call.read(), await call.read()
    assert list(first.models) == list(second.models)
    call.cancel()


@pytest.mark.parametrize("interval_s", [0.5, -1, 3601, float("nan"), float("inf")])
async def test_watching_refuses_an_interval_out_of_range(control: OpenControl, interval_s: float) -> None:
    error = await refused(control.stub.WatchModels(pb.WatchModelsRequest(interval_s=interval_s)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(error)["BadRequest"].field_violations[0].field == "interval_s"


async def test_the_queue_of_each_model_is_shown(control: OpenControl, manager: ScriptedManager) -> None:
    manager.lines = [QueueView("small", 0, 0, 0, 0, 0), QueueView("big", 3, 12, 8, 1, 2, 4.5, 50)]
    small, big = (await control.stub.GetQueue(pb.GetQueueRequest())).queues
    assert (small.alias, small.queue_length, small.limit) == ("small", 0, 100)
    assert (big.queue_length, big.limit, big.oldest_s, big.current_processing) == (3, 50, 4.5, 2)
    assert (big.total_requests, big.total_processed, big.total_rejected) == (12, 8, 1)
    assert [
        queue.alias for queue in (await control.stub.GetQueue(pb.GetQueueRequest(alias="big"))).queues
    ] == ["big"]


async def test_memory_is_shown_by_device_with_its_models(
    control: OpenControl, manager: ScriptedManager
) -> None:
    manager.put(ready_view("small"))
    gpu, ram = (await control.stub.GetVram(pb.GetVramRequest())).devices
    assert (gpu.index, gpu.name, gpu.total_bytes, gpu.used_bytes, gpu.free_bytes) == (
        0,
        "NVIDIA H100",
        80 * GIB,
        5 * GIB,
        75 * GIB,
    )
    assert (gpu.utilization_percent, gpu.temperature_celsius, gpu.power_watts) == (12.5, 41.0, 120.0)
    assert [(model.alias, model.memory_bytes) for model in gpu.models] == [
        ("small", 2 * GIB),
        ("big", 2 * GIB),
    ]
    assert (ram.index, ram.HasField("utilization_percent"), ram.HasField("power_watts")) == (-1, False, False)
    assert {model.memory_bytes for model in ram.models} == {GIB}


# ---- loading


async def test_a_load_sends_each_step_and_ends_ready(control: OpenControl, manager: ScriptedManager) -> None:
    call = control.stub.LoadModel(pb.LoadModelRequest(alias="small", keep_alive_s=90))
    assert (await call.read()).model.status == pb.MODEL_STATUS_OFF
    await manager.load_begun.wait()
    manager.put(model_view("small", status="starting", load_progress=0, expected_in_s=4.2))
    step = (await call.read()).model
    assert (step.status, step.load_progress_percent, step.expected_in_s) == (pb.MODEL_STATUS_STARTING, 0, 4.2)
    manager.put(model_view("small", status="loading", load_progress=40, expected_in_s=2.5))
    assert (await call.read()).model.load_progress_percent == 40
    manager.bump()  # something else of no concern to this load
    manager.put(model_view("small", status="loading", load_progress=40, expected_in_s=1.0))
    assert (await call.read()).model.expected_in_s == 1.0
    manager.ready("small")
    (last,) = await rest_of(call)
    assert (last.model.status, last.model.port, last.model.load_s) == (pb.MODEL_STATUS_READY, 41000, 3.25)
    assert await call.code() is grpc.StatusCode.OK
    assert manager.asked == [("load", "small", 90.0)]


async def test_a_model_that_is_ready_already_is_sent_once(
    control: OpenControl, manager: ScriptedManager
) -> None:
    manager.is_quick = True
    messages = await rest_of(control.stub.LoadModel(pb.LoadModelRequest(alias="big")))
    assert [message.model.status for message in messages] == [pb.MODEL_STATUS_READY]
    assert manager.asked == [("load", "big", None)]


@pytest.mark.parametrize("keep_alive_s", [0, -1, -1e300, 31_536_000])
async def test_keep_alive_may_be_zero_endless_or_a_year(
    control: OpenControl, manager: ScriptedManager, keep_alive_s: float
) -> None:
    manager.is_quick = True
    await rest_of(control.stub.LoadModel(pb.LoadModelRequest(alias="small", keep_alive_s=keep_alive_s)))
    assert manager.asked == [("load", "small", keep_alive_s)]


@pytest.mark.parametrize("keep_alive_s", [31_536_001, float("inf"), float("-inf"), float("nan")])
async def test_an_invalid_keep_alive_is_out_of_range(
    control: OpenControl, manager: ScriptedManager, keep_alive_s: float
) -> None:
    error = await refused(
        control.stub.LoadModel(pb.LoadModelRequest(alias="small", keep_alive_s=keep_alive_s))
    )
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "`keep_alive_s` must be at most 31536000 (a year), or negative for ever" in error.details()
    assert details_of(error)["BadRequest"].field_violations[0].field == "keep_alive_s"
    assert manager.asked == []


@pytest.mark.parametrize(
    ("failure", "code", "reason"),
    [
        (
            Unavailable("The model 'small' needs about 9000 MB.", code="vram_exhausted"),
            grpc.StatusCode.UNAVAILABLE,
            "VRAM_EXHAUSTED",
        ),
        (
            TimedOut("It was not ready in time.", code="queue_timeout"),
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "QUEUE_TIMEOUT",
        ),
    ],
)
async def test_a_failed_load_ends_with_its_reason(
    control: OpenControl,
    manager: ScriptedManager,
    failure: ApplianceError,
    code: grpc.StatusCode,
    reason: str,
) -> None:
    call = control.stub.LoadModel(pb.LoadModelRequest(alias="small"))
    await manager.load_begun.wait()
    manager.fail(failure)
    error = await refused(call)
    assert (error.code(), error.details()) == (code, failure.message)
    assert details_of(error)["ErrorInfo"].reason == reason


async def test_a_caller_that_leaves_does_not_stop_the_load(
    control: OpenControl, manager: ScriptedManager
) -> None:
    call = control.stub.LoadModel(pb.LoadModelRequest(alias="small"))
    await call.read()
    await manager.load_begun.wait()
    call.cancel()
    follower = control.stub.WatchModels(pb.WatchModelsRequest())  # another caller sees it go on, and end
    await follower.read()
    manager.ready("small")
    assert (await follower.read()).models[0].status == pb.MODEL_STATUS_READY
    await manager.load_ended.wait()
    assert not manager.load_was_cut
    follower.cancel()


async def test_a_failed_load_without_a_caller_is_handled(
    control: OpenControl, manager: ScriptedManager
) -> None:
    call = control.stub.LoadModel(pb.LoadModelRequest(alias="small"))
    await call.read()
    await manager.load_begun.wait()
    call.cancel()
    manager.fail(Unavailable("No memory."))
    await manager.load_ended.wait()
    assert len((await control.stub.ListModels(pb.ListModelsRequest())).models) == 2


async def test_following_a_load_ends_when_the_appliance_stops(
    control: OpenControl, manager: ScriptedManager
) -> None:
    call = control.stub.LoadModel(pb.LoadModelRequest(alias="small"))
    await manager.load_begun.wait()
    control.fake.become("stopping")
    error = await refused(call)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert details_of(error)["ErrorInfo"].reason == "SHUTTING_DOWN"


async def test_a_model_removed_while_it_loads_ends_the_call(
    control: OpenControl, manager: ScriptedManager
) -> None:
    call = control.stub.LoadModel(pb.LoadModelRequest(alias="small"))
    await manager.load_begun.wait()
    del manager.views["small"]
    manager.bump()
    assert (await refused(call)).code() is grpc.StatusCode.NOT_FOUND
    manager.fail(Unavailable("It is gone."))


# ---- ejecting, resetting, pinning


@pytest.mark.parametrize("force", [False, True])
async def test_a_model_is_ejected(control: OpenControl, manager: ScriptedManager, force: bool) -> None:
    response = await control.stub.EjectModel(pb.EjectModelRequest(alias="big", force=force))
    assert (response.was_loaded, response.waited_for, response.model.status) == (True, 2, pb.MODEL_STATUS_OFF)
    assert manager.asked == [("eject", "big", force)]
    assert not (await control.stub.EjectModel(pb.EjectModelRequest(alias="big"))).was_loaded


async def test_a_caller_that_leaves_does_not_stop_an_eject(
    control: OpenControl, manager: ScriptedManager
) -> None:
    is_asked, may_end, has_ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
    at_once = manager.eject

    async def slow(alias: str, *, force: bool = False) -> Any:
        is_asked.set()
        await may_end.wait()
        found = await at_once(alias, force=force)
        has_ended.set()
        return found

    manager.eject = slow  # type: ignore[method-assign]
    call = control.stub.EjectModel(pb.EjectModelRequest(alias="big"))
    running = asyncio.ensure_future(refused(call))
    await is_asked.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    may_end.set()
    await has_ended.wait()
    assert manager.views["big"].status == "off"


async def test_a_reset_returns_the_former_failures(control: OpenControl, manager: ScriptedManager) -> None:
    manager.put(model_view("small", status="failed", attempts=3, error_message="bad file"))
    manager.failures["small"] = FailedView("small", 3, "bad file")
    response = await control.stub.ResetModel(pb.ResetModelRequest(alias="small"))
    assert (response.had_failures, response.attempts, response.error, response.model.status) == (
        True,
        3,
        "bad file",
        pb.MODEL_STATUS_OFF,
    )
    again = await control.stub.ResetModel(pb.ResetModelRequest(alias="small"))
    assert (again.had_failures, again.attempts, again.error) == (False, 0, "")


@pytest.mark.parametrize(
    ("given", "is_pinned"), [({}, True), ({"pinned": True}, True), ({"pinned": False}, False)]
)
async def test_a_model_is_pinned_or_unpinned(
    control: OpenControl, manager: ScriptedManager, given: dict[str, bool], is_pinned: bool
) -> None:
    manager.put(ready_view("big", is_pinned=not is_pinned))
    response = await control.stub.PinModel(pb.PinModelRequest(alias="big", **given))
    assert response.model.is_pinned == is_pinned
    assert manager.asked == [("pin", "big", is_pinned)]


# ---- refusals

NAMED = ["LoadModel", "EjectModel", "ResetModel", "PinModel"]


def asking(control: OpenControl, name: str, **fields: Any) -> Any:
    return getattr(control.stub, name)(getattr(pb, f"{name}Request")(**fields))


@pytest.mark.parametrize("name", NAMED)
async def test_a_call_about_one_model_needs_its_name(
    control: OpenControl, manager: ScriptedManager, name: str
) -> None:
    error = await refused(asking(control, name))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(error)["BadRequest"].field_violations[0].field == "alias"
    assert manager.asked == []


@pytest.mark.parametrize("name", [*NAMED, "GetQueue"])
async def test_a_model_that_is_not_in_the_table_is_not_found(
    control: OpenControl, manager: ScriptedManager, name: str
) -> None:
    error = await refused(asking(control, name, alias="nobody"))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "There is no model 'nobody'.")
    assert details_of(error)["ErrorInfo"].reason == "MODEL_NOT_FOUND"
    assert manager.asked == []


@pytest.mark.parametrize("name", [*NAMED, "WatchModels", "GetQueue", "GetVram"])
async def test_without_a_table_of_models_the_calls_say_what_to_set(tmp_path: Path, name: str) -> None:
    async with opened(tmp_path) as control:
        error = await refused(asking(control, name, **({"alias": "small"} if name in NAMED else {})))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "MODEL_DIR" in error.details()
    assert "CONFIG_PATH" in error.details()
    assert details_of(error)["ErrorInfo"].reason == "NO_MODELS"


async def test_without_a_table_of_models_none_are_listed(tmp_path: Path) -> None:
    async with opened(tmp_path) as control:
        assert list((await control.stub.ListModels(pb.ListModelsRequest())).models) == []


@pytest.mark.parametrize("name", ["ListModels", *NAMED, "WatchModels", "GetQueue", "GetVram"])
async def test_calls_about_models_need_the_token(tmp_path: Path, manager: ScriptedManager, name: str) -> None:
    fake = FakeAppliance()
    fake.manager = manager
    async with opened(tmp_path, fake, control_token="a-long-random-token") as control:
        assert (await refused(asking(control, name))).code() is grpc.StatusCode.UNAUTHENTICATED
    assert manager.asked == []
