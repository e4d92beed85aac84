"""Loads that fail, crashes, replicas, and measured memory.

The real manager over stand-ins.
"""

import asyncio
import os
from pathlib import Path

import pytest

from appliance.models.manager.errors import ModelFailed
from appliance.models.manager.supervisor import BACK_OFF_S
from appliance.models.scheduler.scheduler import RETRY_LATER
from tests.models.manager_harness import NEED, Make, model, settle, until

pytestmark = pytest.mark.timeout(20)


# ---- failures


async def test_load_is_retried_as_configured_with_longer_pauses(open_manager: Make) -> None:
    harness = await open_manager("a", model_load_max_retries=3)
    waits = harness.ask("a")
    await settle()
    for number, rest_s in enumerate(BACK_OFF_S[:3], 1):
        await harness.fails("a", f"failure {number}")
        await harness.later(rest_s - 0.01)
        assert (len(harness.loader.begun), harness.status("a")) == (number, "crashed")
        assert harness.manager.model_states["a"].wait_reason == RETRY_LATER
        await harness.later(0.02)
        assert len(harness.loader.begun) == number + 1
    await harness.fails("a", "failure 4")
    with pytest.raises(ModelFailed, match=r"4 attempts\): failure 4"):
        await waits
    with pytest.raises(ModelFailed):
        await harness.manager.lease("a")
    with pytest.raises(ModelFailed):
        await harness.manager.load("a")
    assert (harness.status("a"), len(harness.loader.begun)) == ("failed", 4)


async def test_permanent_failure_is_not_retried(open_manager: Make) -> None:
    harness = await open_manager("a")
    waits = [harness.ask("a"), harness.load("a")]
    await harness.fails("a", "unknown argument", can_retry=False)
    for task in waits:
        with pytest.raises(ModelFailed, match=r"1 attempt\): unknown argument"):
            await task
    assert harness.manager.queues()[0].queue_length == 0


async def test_reset_allows_retries_and_returns_the_failure(open_manager: Make) -> None:
    harness = await open_manager("a")
    assert harness.manager.reset("a") is None
    waits = harness.ask("a")
    await harness.fails("a", "no luck", can_retry=False)
    with pytest.raises(ModelFailed):
        await waits
    found = harness.manager.reset("a")
    assert found is not None
    assert (found.attempts, found.error, harness.status("a"), harness.manager.failed_models()) == (
        1,
        "no luck",
        "off",
        [],
    )
    again = harness.ask("a")
    await harness.loaded("a")
    assert (await again).runner.alias == "a"


async def test_successful_request_clears_former_failures(open_manager: Make) -> None:
    harness = await open_manager("a")
    waits = harness.ask("a")
    await harness.fails("a")
    await harness.later(BACK_OFF_S[0])
    await harness.loaded("a")
    assert harness.manager.model("a").attempts == 1
    (await waits).release(is_ok=True)
    assert harness.manager.model("a").attempts == 0


async def test_unused_slot_does_not_clear_failures(open_manager: Make) -> None:
    harness = await open_manager("a", slots=1)
    leaves = harness.ask("a")
    await harness.fails("a")
    await harness.later(BACK_OFF_S[0])
    await harness.loads("a")
    harness.loader.ready("a")
    while not harness.manager.model("a").runners[0].active:
        await asyncio.sleep(0)
    leaves.cancel()
    await settle()
    row = harness.manager.queues()[0]
    assert (
        row.current_processing,
        row.total_processed,
        harness.manager.telemetry(),
        harness.manager.model("a").attempts,
    ) == (0, 0, [], 1)


async def test_crashed_model_is_restored_without_a_request(open_manager: Make) -> None:
    harness = await open_manager("a", "b")
    await harness.have("a")
    harness.loader.crash("a", -11, "something broke")
    await until(lambda: harness.status("a") == "crashed")
    assert harness.manager.model("a").error_message == "it crashed: killed by signal 11: something broke"
    await harness.later(BACK_OFF_S[0])
    await harness.loaded("a")
    assert (harness.status("a"), harness.manager.counts().crashes) == ("ready", 1)


async def test_request_after_a_crash_gets_a_fresh_server(open_manager: Make) -> None:
    harness = await open_manager("a", slots=1)
    await harness.have("a")
    lease, waits = await harness.manager.lease("a"), harness.ask("a")
    await settle()
    harness.loader.crash("a", 1)
    await until(lambda: harness.status("a") == "crashed")
    lease.release(is_ok=False)
    await harness.later(BACK_OFF_S[0])
    await harness.loaded("a")
    second = await waits
    assert second.runner is not lease.runner
    assert second.runner.active == 1


async def test_model_that_always_crashes_is_given_up(open_manager: Make) -> None:
    harness = await open_manager("a", model_load_max_retries=2)
    await harness.have("a")
    for number in range(3):
        harness.loader.crash("a", 134)
        await until(lambda: harness.status("a") in {"crashed", "failed"})
        if number < 2:
            await harness.later(60)
            await harness.loaded("a")
    assert [(row.attempts, row.error) for row in harness.manager.failed_models()] == [
        (3, "it crashed: exited with code 134")
    ]


async def test_restore_evicts_no_other_model(open_manager: Make) -> None:
    harness = await open_manager("a", "b", places=1)
    await harness.have("a")
    harness.loader.crash("a")
    await until(lambda: harness.status("a") == "crashed")
    task = harness.ask("b")
    await harness.loaded("b")
    (await task).release(is_ok=True)
    await harness.later(60)
    assert harness.loader.begun == ["a", "b"]


# ---- replicas


async def test_second_replica_is_loaded_when_the_first_is_busy(open_manager: Make, tmp_path: Path) -> None:
    harness = await open_manager(models=[model("a", tmp_path, replicas=2)], slots=1)
    await harness.have("a")
    first, second = await harness.manager.lease("a"), harness.ask("a")
    await harness.loaded("a")
    assert (await second).runner is not first.runner
    assert len(harness.manager.model("a").runners) == 2


@pytest.mark.parametrize("can_retry", [True, False])
async def test_failed_replica_leaves_the_first_one_serving(
    open_manager: Make, tmp_path: Path, can_retry: bool
) -> None:
    harness = await open_manager(models=[model("a", tmp_path, replicas=2)], slots=1)
    await harness.have("a")
    first, second = await harness.manager.lease("a"), harness.ask("a")
    await harness.fails("a", "out of memory", can_retry=can_retry)
    assert (harness.loader.begun, harness.status("a"), harness.manager.model("a").attempts) == (
        ["a", "a"],
        "ready",
        0,
    )
    first.release(is_ok=True)
    third, lease = harness.ask("a"), await second  # the first continues to serve
    await settle()
    assert len(harness.loader.begun) == 2  # not again and again
    await harness.later(BACK_OFF_S[0] if can_retry else BACK_OFF_S[-1])
    await harness.loaded("a")
    assert (await third).runner is not lease.runner


async def test_crashed_replica_leaves_the_other_one_serving(open_manager: Make, tmp_path: Path) -> None:
    harness = await open_manager(models=[model("a", tmp_path, replicas=2)], slots=1, model_load_max_retries=0)
    await harness.have("a")
    first, second = await harness.manager.lease("a"), harness.ask("a")
    await harness.loaded("a")
    harness.loader.crash("a")
    await until(lambda: len(harness.manager.model("a").runners) == 1)
    for lease in (first, await second):
        lease.release(is_ok=True)
    (await harness.manager.lease("a")).release(is_ok=True)
    assert (harness.status("a"), harness.manager.failed_models()) == ("ready", [])


# ---- memory


async def test_memory_is_measured_as_soon_as_it_is_ready(open_manager: Make) -> None:
    harness = await open_manager("a", slots=1)
    task = harness.ask("a")
    await until(lambda: harness.loader.loading)
    runner = next(iter(harness.loader.loading.values()))[0]
    runner.memory_by_device = {-1: 1}  # as it was seen when it had just begun
    runner.process.pid = os.getpid()  # type: ignore[union-attr]
    harness.loader.ready("a")
    await until(lambda: harness.manager.model("a").runners[0].memory_bytes > 10_000_000)
    assert runner.file_bytes > 1_000_000  # of which the kernel calls so much available
    runner.process.pid = 0  # type: ignore[union-attr]
    (await task).release(is_ok=True)


async def test_unmeasured_memory_is_estimated_and_not_recorded(
    open_manager: Make,
) -> None:
    harness = await open_manager("a", gpus=(0, 1))
    for _ in range(3):
        await harness.have("a")
        assert harness.manager.model("a").memory_bytes == NEED
        assert harness.manager.model("a").estimate_bytes == NEED
        await harness.manager.eject("a")


async def test_load_continues_when_its_queue_is_empty_again(open_manager: Make) -> None:
    harness = await open_manager("a", keep_warm_models=0)
    leaves = harness.ask("a")
    await settle()
    leaves.cancel()
    await harness.loaded("a")
    assert harness.status("a") == "ready"
    await harness.later(300)
    assert harness.status("a") == "off"
