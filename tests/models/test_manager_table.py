"""What another table does to models that run, load, wait or failed: the real manager over stand-ins."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.base.errors import NoSuchModel
from appliance.models.manager.errors import ModelFailed
from appliance.models.table.catalogue import Catalogue, Model
from tests.models.standin_house import HEADER, Make, StandinHouse, model, settle, until

pytestmark = pytest.mark.timeout(20)


def apply(house: StandinHouse, *models: Model, **system: Any) -> None:
    """Put a table of these models in place."""
    how = house.manager.catalogue.system.model_copy(update=system)
    house.manager.apply(Catalogue({one.alias: one for one in models}, how))


async def test_added_model_can_be_requested(open_house: Make, tmp_path: Path) -> None:
    house = await open_house("a")
    await house.have("a")
    apply(house, model("a", tmp_path), model("b", tmp_path))
    task = house.ask("b")
    await house.loaded("b")
    assert (await task).runner.slots == 2
    assert house.statuses() == {"a": "ready", "b": "ready"}  # what did not change goes on
    assert house.loader.begun == ["a", "b"]


async def test_nothing_is_loaded_before_its_file_was_checked(open_house: Make, tmp_path: Path) -> None:
    house = await open_house("a", memory_mib=650)
    (tmp_path / "b.gguf").write_bytes(HEADER)
    apply(house, model("a", tmp_path), model("b", tmp_path))
    task = house.ask("b")  # before the look has ended: what it needs is not known
    with pytest.raises(Exception, match="700 MB needed"):
        await task
    assert house.loader.begun == []


async def test_requests_wait_on_for_a_changed_model(
    open_house: Make, tmp_path: Path
) -> None:
    house = await open_house("a", slots=1)
    old = house.ask("a")
    await house.loaded("a")
    lease = await old
    told: list[Any] = []
    waits = [
        house.ask("a", on_wait=told.append, priority=2),
        house.ask("a", on_wait=told.append, flow="x", priority=0),
    ]
    loads = house.load("a")
    await settle()
    new = model("a", tmp_path, file="other.gguf")
    apply(house, new)
    await settle()
    assert [task.done() for task in (*waits, loads)] == [False, False, True]
    assert [one().position for one in told] == [2, 1]
    waits[0].cancel()  # and who leaves, leaves the new line
    await settle()
    assert house.manager.queues()[0].queue_length == 1
    await house.loaded("a")  # beside the former one, which ends what it has begun
    second = await waits[1]
    assert (second.runner.model, second.runner.active, lease.runner.phase) == (new, 1, "stopping")
    assert house.loader.stopped == []
    lease.release(is_ok=True)
    await settle()
    assert (house.loader.stopped, house.loader.killed_with) == (["a"], [0])
    assert house.status("a") == "ready"


async def test_running_load_of_a_changed_model_starts_anew(
    open_house: Make, tmp_path: Path
) -> None:
    house = await open_house("a")
    waits = [house.ask("a"), house.load("a")]
    await house.loads("a")
    apply(house, model("a", tmp_path, n_batch=64))
    await until(lambda: house.loader.stopped == ["a"])
    await house.loaded("a")
    assert (await waits[0]).runner.model.params.n_batch == 64
    assert (await waits[1]).attempts == 0


async def test_removed_model_ends_its_requests_and_refuses_waiters(
    open_house: Make, tmp_path: Path
) -> None:
    house = await open_house("a", "b", places=1, slots=1)
    await house.have("a")
    told: list[Any] = []
    lease, waits = await house.manager.lease("a"), house.ask("a", on_wait=told.append)
    await settle()
    apply(house, model("b", tmp_path))
    assert told[0]().reason == "it was removed from the table"
    with pytest.raises(NoSuchModel, match="was removed from the table"):
        await waits
    with pytest.raises(NoSuchModel):
        await house.manager.lease("a")
    other = house.ask("b")
    await settle()
    assert house.loader.begun == ["a"]  # its place is not free before it is gone
    lease.release(is_ok=True)
    await house.loaded("b")
    (await other).release(is_ok=True)
    assert house.loader.killed_with == [0]


async def test_removed_model_that_still_serves_is_ended_on_close(open_house: Make, tmp_path: Path) -> None:
    house = await open_house("a", "b")
    await house.have("a")
    await house.manager.lease("a")
    apply(house, model("b", tmp_path))
    await settle()
    await house.manager.close()
    assert (house.loader.stopped, house.loader.running) == (["a"], {})


async def test_model_added_again_while_the_former_stops_is_new(
    open_house: Make, tmp_path: Path
) -> None:
    house = await open_house("a", "b", places=1)
    await house.have("a")
    lease = await house.manager.lease("a")
    apply(house, model("b", tmp_path))
    apply(house, model("a", tmp_path), model("b", tmp_path))
    assert house.status("a") == "off"
    lease.release(is_ok=True)
    task = house.ask("a")
    await house.loaded("a")
    assert (await task).runner is not lease.runner
    assert house.manager.model("a").runners[0].active == 1


async def test_table_pin_follows_the_table_operator_pin_stays(
    open_house: Make, tmp_path: Path
) -> None:
    house = await open_house(
        models=[model("a", tmp_path, pinned=True), model("b", tmp_path), model("c", tmp_path, pinned=True)]
    )
    house.manager.pin("b")
    house.manager.pin("c", pinned=False)
    apply(
        house,
        model("a", tmp_path),
        model("b", tmp_path, n_batch=64),
        model("c", tmp_path, pinned=True, n_batch=64),
    )
    assert [view.is_pinned for view in house.manager.models()] == [False, True, False]


async def test_change_of_pin_or_replicas_alone_unloads_nothing(open_house: Make, tmp_path: Path) -> None:
    house = await open_house("a", slots=1)
    await house.have("a")
    lease, waits = await house.manager.lease("a"), house.ask("a")
    apply(house, model("a", tmp_path, pinned=True, replicas=2))
    assert (house.status("a"), house.manager.model("a").is_pinned) == ("ready", True)
    await house.loaded("a")  # the second replica, which may be there now
    assert (await waits).runner is not lease.runner
    assert house.loader.stopped == []


async def test_counts_continue_over_a_change(open_house: Make, tmp_path: Path) -> None:
    house = await open_house("a")
    await house.have("a")
    (await house.manager.lease("a")).release(is_ok=True)
    apply(house, model("a", tmp_path, n_batch=64))
    row = house.manager.queues()[0]
    assert (
        row.total_requests,
        row.total_processed,
        house.manager.counts().by_model,
        house.manager.model("a").last_used_at_s,
    ) == (1, 1, {"a": 1}, house.clock.now_s())


async def test_failed_model_that_changed_is_tried_again(open_house: Make, tmp_path: Path) -> None:
    house = await open_house("a")
    task = house.ask("a")
    await house.fails("a", "unknown argument", can_retry=False)
    with pytest.raises(ModelFailed):
        await task
    apply(house, model("a", tmp_path, n_batch=64))
    again = house.ask("a")
    await house.loaded("a")
    assert (await again).runner.active == 1


async def test_who_waits_for_one_whose_new_file_is_missing_is_told_so(
    open_house: Make, tmp_path: Path
) -> None:
    house = await open_house("a", "b", places=1, slots=1)
    await house.have("b")
    lease, waits = await house.manager.lease("b"), house.ask("a")
    await settle()
    apply(house, replace(model("a", tmp_path), path=tmp_path / "gone.gguf"), model("b", tmp_path))
    with pytest.raises(ModelFailed, match=r"model file not found: .*gone\.gguf"):
        await waits
    lease.release(is_ok=True)
    assert house.status("b") == "ready"  # it gave way to nobody


async def test_missing_file_is_refused_and_found_once_it_is_there(
    open_house: Make, tmp_path: Path
) -> None:
    there = model("a", tmp_path)
    there.path.unlink()
    house = await open_house(models=[there, model("b", tmp_path)], places=1, slots=3)
    assert (house.status("a"), house.manager.model("a").error_message) == (
        "off",
        f"model file not found: {there.path}",
    )
    for ask in (house.manager.lease, house.manager.load, house.manager.lease):
        with pytest.raises(ModelFailed, match="model file not found"):
            await ask("a")
    assert house.loader.begun == []
    there.path.write_bytes(HEADER)
    tasks = [house.ask("a") for _ in range(3)]
    await house.loaded("a")
    for task in tasks:
        (await task).release(is_ok=True)
    assert house.manager.failed_models() == []


async def test_table_changed_during_a_file_check_counts(
    open_house: Make, tmp_path: Path
) -> None:
    missing = replace(model("a", tmp_path), path=tmp_path / "late.gguf")
    house = await open_house(models=[missing])
    missing.path.write_bytes(HEADER)
    task = house.ask("a")
    await asyncio.sleep(0)  # it looks at the file now, in a thread
    apply(house, model("a", tmp_path))
    await house.loaded("a")
    assert (await task).runner.model.path == tmp_path / "a.gguf"


async def test_other_numbers_of_the_system_hold_from_the_next_load_on(
    open_house: Make, tmp_path: Path
) -> None:
    house = await open_house("a", "b", slots=1, places=1, max_queue_size_per_model=10)
    await house.have("a")
    apply(
        house,
        model("a", tmp_path),
        model("b", tmp_path),
        parallel_requests=3,
        max_concurrent_models=2,
        max_queue_size_per_model=20,
    )
    assert (
        house.manager.model("a").runners[0].slots,
        house.manager.model("a").slots,
        house.manager.queues()[0].limit,
    ) == (1, 3, 20)
    task = house.ask("b")
    await house.loaded("b")
    assert (await task).runner.slots == 3
    assert house.statuses() == {"a": "ready", "b": "ready"}


async def test_running_model_serves_on_without_its_file(open_house: Make, tmp_path: Path) -> None:
    house = await open_house("a")
    await house.have("a")
    (tmp_path / "a.gguf").unlink()
    house.manager.reset("a")  # its file is looked at again
    await until(lambda: house.manager.model_states["a"].file_problem)
    (await house.manager.lease("a")).release(is_ok=True)
    assert (house.status("a"), house.manager.failed_models()) == ("ready", [])
