"""What a new table does to models that run, load, wait or failed: the real manager with fakes."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.base.errors import NoSuchModel
from appliance.models.manager.errors import ModelFailed
from appliance.models.table.catalogue import Catalogue, Model
from tests.models.manager_harness import HEADER, Make, ManagerHarness, model, settle, until

pytestmark = pytest.mark.timeout(20)


def apply(harness: ManagerHarness, *models: Model, **system: Any) -> None:
    """Put a table of these models in place."""
    how = harness.manager.catalogue.system.model_copy(update=system)
    harness.manager.apply(Catalogue({one.alias: one for one in models}, how))


async def test_added_model_can_be_requested(open_manager: Make, tmp_path: Path) -> None:
    harness = await open_manager("a")
    await harness.have("a")
    apply(harness, model("a", tmp_path), model("b", tmp_path))
    task = harness.ask("b")
    await harness.loaded("b")
    assert (await task).runner.slots == 2
    assert harness.statuses() == {"a": "ready", "b": "ready"}  # what did not change goes on
    assert harness.loader.begun == ["a", "b"]


async def test_nothing_is_loaded_before_its_file_was_checked(open_manager: Make, tmp_path: Path) -> None:
    harness = await open_manager("a", memory_mib=650)
    (tmp_path / "b.gguf").write_bytes(HEADER)
    apply(harness, model("a", tmp_path), model("b", tmp_path))
    task = harness.ask("b")  # before the file check has ended: its memory need is unknown
    with pytest.raises(Exception, match="700 MB needed"):
        await task
    assert harness.loader.begun == []


async def test_requests_wait_on_for_a_changed_model(open_manager: Make, tmp_path: Path) -> None:
    harness = await open_manager("a", slots=1)
    old = harness.ask("a")
    await harness.loaded("a")
    lease = await old
    wait_statuses: list[Any] = []
    waits = [
        harness.ask("a", on_wait=wait_statuses.append, priority=2),
        harness.ask("a", on_wait=wait_statuses.append, flow="x", priority=0),
    ]
    loads = harness.load("a")
    await settle()
    new = model("a", tmp_path, file="other.gguf")
    apply(harness, new)
    await settle()
    assert [task.done() for task in (*waits, loads)] == [False, False, True]
    assert [one().position for one in wait_statuses] == [2, 1]
    waits[0].cancel()  # a client that leaves is removed from the new queue
    await settle()
    assert harness.manager.queues()[0].queue_length == 1
    await harness.loaded("a")  # beside the former one, which completes its requests
    second = await waits[1]
    assert (second.runner.model, second.runner.active, lease.runner.phase) == (new, 1, "stopping")
    assert harness.loader.stopped == []
    lease.release(is_ok=True)
    await settle()
    assert (harness.loader.stopped, harness.loader.killed_with) == (["a"], [0])
    assert harness.status("a") == "ready"


async def test_running_load_of_a_changed_model_starts_anew(open_manager: Make, tmp_path: Path) -> None:
    harness = await open_manager("a")
    waits = [harness.ask("a"), harness.load("a")]
    await harness.loads("a")
    apply(harness, model("a", tmp_path, n_batch=64))
    await until(lambda: harness.loader.stopped == ["a"])
    await harness.loaded("a")
    assert (await waits[0]).runner.model.params.n_batch == 64
    assert (await waits[1]).attempts == 0


async def test_removed_model_ends_its_requests_and_refuses_waiters(
    open_manager: Make, tmp_path: Path
) -> None:
    harness = await open_manager("a", "b", places=1, slots=1)
    await harness.have("a")
    wait_statuses: list[Any] = []
    lease, waits = await harness.manager.lease("a"), harness.ask("a", on_wait=wait_statuses.append)
    await settle()
    apply(harness, model("b", tmp_path))
    assert wait_statuses[0]().reason == "it was removed from the table"
    with pytest.raises(NoSuchModel, match="was removed from the table"):
        await waits
    with pytest.raises(NoSuchModel):
        await harness.manager.lease("a")
    other = harness.ask("b")
    await settle()
    assert harness.loader.begun == ["a"]  # its memory is not free before it has stopped
    lease.release(is_ok=True)
    await harness.loaded("b")
    (await other).release(is_ok=True)
    assert harness.loader.killed_with == [0]


async def test_removed_model_that_still_serves_is_ended_on_close(open_manager: Make, tmp_path: Path) -> None:
    harness = await open_manager("a", "b")
    await harness.have("a")
    await harness.manager.lease("a")
    apply(harness, model("b", tmp_path))
    await settle()
    await harness.manager.close()
    assert (harness.loader.stopped, harness.loader.running) == (["a"], {})


async def test_model_added_again_while_the_former_stops_is_new(open_manager: Make, tmp_path: Path) -> None:
    harness = await open_manager("a", "b", places=1)
    await harness.have("a")
    lease = await harness.manager.lease("a")
    apply(harness, model("b", tmp_path))
    apply(harness, model("a", tmp_path), model("b", tmp_path))
    assert harness.status("a") == "off"
    lease.release(is_ok=True)
    task = harness.ask("a")
    await harness.loaded("a")
    assert (await task).runner is not lease.runner
    assert harness.manager.model("a").runners[0].active == 1


async def test_table_pin_follows_the_table_operator_pin_stays(open_manager: Make, tmp_path: Path) -> None:
    harness = await open_manager(
        models=[model("a", tmp_path, pinned=True), model("b", tmp_path), model("c", tmp_path, pinned=True)]
    )
    harness.manager.pin("b")
    harness.manager.pin("c", pinned=False)
    apply(
        harness,
        model("a", tmp_path),
        model("b", tmp_path, n_batch=64),
        model("c", tmp_path, pinned=True, n_batch=64),
    )
    assert [view.is_pinned for view in harness.manager.models()] == [False, True, False]


async def test_change_of_pin_or_replicas_alone_unloads_nothing(open_manager: Make, tmp_path: Path) -> None:
    harness = await open_manager("a", slots=1)
    await harness.have("a")
    lease, waits = await harness.manager.lease("a"), harness.ask("a")
    apply(harness, model("a", tmp_path, pinned=True, replicas=2))
    assert (harness.status("a"), harness.manager.model("a").is_pinned) == ("ready", True)
    await harness.loaded("a")  # the second replica, which may be there now
    assert (await waits).runner is not lease.runner
    assert harness.loader.stopped == []


async def test_counts_continue_over_a_change(open_manager: Make, tmp_path: Path) -> None:
    harness = await open_manager("a")
    await harness.have("a")
    (await harness.manager.lease("a")).release(is_ok=True)
    apply(harness, model("a", tmp_path, n_batch=64))
    row = harness.manager.queues()[0]
    assert (
        row.total_requests,
        row.total_processed,
        harness.manager.counts().by_model,
        harness.manager.model("a").last_used_at_s,
    ) == (1, 1, {"a": 1}, harness.clock.now_s())


async def test_failed_model_that_changed_is_tried_again(open_manager: Make, tmp_path: Path) -> None:
    harness = await open_manager("a")
    task = harness.ask("a")
    await harness.fails("a", "unknown argument", can_retry=False)
    with pytest.raises(ModelFailed):
        await task
    apply(harness, model("a", tmp_path, n_batch=64))
    again = harness.ask("a")
    await harness.loaded("a")
    assert (await again).runner.active == 1


async def test_waiters_of_a_model_with_a_missing_new_file_fail(open_manager: Make, tmp_path: Path) -> None:
    harness = await open_manager("a", "b", places=1, slots=1)
    await harness.have("b")
    lease, waits = await harness.manager.lease("b"), harness.ask("a")
    await settle()
    apply(harness, replace(model("a", tmp_path), path=tmp_path / "gone.gguf"), model("b", tmp_path))
    with pytest.raises(ModelFailed, match=r"model file not found: .*gone\.gguf"):
        await waits
    lease.release(is_ok=True)
    assert harness.status("b") == "ready"  # it was not evicted


async def test_missing_file_is_refused_and_found_once_it_is_there(open_manager: Make, tmp_path: Path) -> None:
    there = model("a", tmp_path)
    there.path.unlink()
    harness = await open_manager(models=[there, model("b", tmp_path)], places=1, slots=3)
    assert (harness.status("a"), harness.manager.model("a").error_message) == (
        "off",
        f"model file not found: {there.path}",
    )
    for ask in (harness.manager.lease, harness.manager.load, harness.manager.lease):
        with pytest.raises(ModelFailed, match="model file not found"):
            await ask("a")
    assert harness.loader.begun == []
    there.path.write_bytes(HEADER)
    tasks = [harness.ask("a") for _ in range(3)]
    await harness.loaded("a")
    for task in tasks:
        (await task).release(is_ok=True)
    assert harness.manager.failed_models() == []


async def test_table_changed_during_a_file_check_counts(open_manager: Make, tmp_path: Path) -> None:
    missing = replace(model("a", tmp_path), path=tmp_path / "late.gguf")
    harness = await open_manager(models=[missing])
    missing.path.write_bytes(HEADER)
    task = harness.ask("a")
    await asyncio.sleep(0)  # it looks at the file now, in a thread
    apply(harness, model("a", tmp_path))
    await harness.loaded("a")
    assert (await task).runner.model.path == tmp_path / "a.gguf"


async def test_other_numbers_of_the_system_hold_from_the_next_load_on(
    open_manager: Make, tmp_path: Path
) -> None:
    harness = await open_manager("a", "b", slots=1, places=1, max_queue_size_per_model=10)
    await harness.have("a")
    apply(
        harness,
        model("a", tmp_path),
        model("b", tmp_path),
        parallel_requests=3,
        max_concurrent_models=2,
        max_queue_size_per_model=20,
    )
    assert (
        harness.manager.model("a").runners[0].slots,
        harness.manager.model("a").slots,
        harness.manager.queues()[0].limit,
    ) == (1, 3, 20)
    task = harness.ask("b")
    await harness.loaded("b")
    assert (await task).runner.slots == 3
    assert harness.statuses() == {"a": "ready", "b": "ready"}


async def test_running_model_serves_on_without_its_file(open_manager: Make, tmp_path: Path) -> None:
    harness = await open_manager("a")
    await harness.have("a")
    (tmp_path / "a.gguf").unlink()
    harness.manager.reset("a")  # its file is looked at again
    await until(lambda: harness.manager.model_states["a"].file_problem)
    (await harness.manager.lease("a")).release(is_ok=True)
    assert (harness.status("a"), harness.manager.failed_models()) == ("ready", [])
