"""Files of models that change, grow, go and come back."""

import asyncio
import os
from pathlib import Path

import pytest

from appliance.models.manager.errors import ModelFailed
from appliance.models.manager.file_watch import FileWatch, States, compare_files
from appliance.models.manager.model_file import files_of
from appliance.models.table.catalogue import LoraAdapter, Model
from appliance.models.table.entries import Params
from appliance.models.table.file_state import FileState
from tests.models.manager_harness import HEADER, Make, ManagerHarness, until
from tests.models.test_folder import put

A = FileState(Path("/m/a.gguf"), 10, 1)
A2 = FileState(Path("/m/a.gguf"), 20, 1)
A3 = FileState(Path("/m/a.gguf"), 10, 2)
B = FileState(Path("/m/b.gguf"), 10, 1)


@pytest.mark.parametrize(
    ("checked", "former", "now", "is_running", "change"),
    [
        ((), None, (A,), False, "same"),
        ((A,), (A,), (A,), True, "same"),
        ((A,), None, (A2,), False, "unsteady"),
        ((A,), (A,), (A2,), False, "unsteady"),
        ((A,), (A2,), (A3,), True, "unsteady"),
        ((A,), (A2,), (A2,), False, "changed"),
        ((A,), (A3,), (A3,), True, "changed"),
        ((A,), (None,), (None,), True, "gone"),
        ((A,), (None,), (None,), False, "changed"),
        ((None,), (A,), (A,), False, "changed"),
        ((A, B), (A, None), (A, None), True, "gone"),
        ((A, B), (A, A3), (A, A3), True, "changed"),
        ((A,), (A, B), (A, B), True, "changed"),
    ],
)
def test_what_a_look_makes_of_the_files(
    checked: States, former: States | None, now: States, is_running: bool, change: str
) -> None:
    assert compare_files(checked, former, now, is_running=is_running) == change


def test_all_files_of_a_model_are_watched() -> None:
    model = Model(
        "a",
        Path("/m/a-00001-of-00002.gguf"),
        Params(),
        "table",
        lora=(LoraAdapter(Path("/m/l.bin")),),
        draft_model_path=Path("/m/d.gguf"),
        mmproj_path=Path("/m/p.gguf"),
    )
    assert [path.name for path in files_of(model)] == [
        "a-00001-of-00002.gguf",
        "a-00002-of-00002.gguf",
        "d.gguf",
        "p.gguf",
        "l.bin",
    ]


async def look_twice(watch: FileWatch) -> None:
    await watch.look()
    await watch.look()


async def opened(open_manager: Make, *aliases: str) -> tuple[ManagerHarness, FileWatch, Path]:
    harness = await open_manager(*aliases)
    watch = FileWatch(harness.manager)
    await watch.look()
    return harness, watch, harness.manager.model_state(aliases[0]).path


async def test_what_was_read_of_a_file_is_read_again_when_it_changed(open_manager: Make) -> None:
    harness, watch, path = await opened(open_manager, "a")
    state = harness.manager.model_state("a")
    before = (state.header, state.estimate, state.history_key)
    put(path.parent, path.name, general__architecture="bert", bert__pooling_type=1, bert__context_length=512)
    await watch.look()
    assert (state.header, state.estimate, state.history_key) == before
    await watch.look()
    assert state.header is not None
    assert state.header.is_embedding
    assert state.history_key not in {"", before[2]}
    assert state.size_bytes == path.stat().st_size
    assert harness.manager.model("a").request_tokens == 512


async def test_a_loaded_model_is_loaded_anew_from_a_changed_file(open_manager: Make) -> None:
    harness, watch, path = await opened(open_manager, "a", "b")
    await harness.have("a", "b")
    (lease,) = [await harness.ask("a")]
    path.write_bytes(HEADER + bytes(100))
    await look_twice(watch)
    await harness.loaded("a")  # beside the former one, which still answers
    assert harness.statuses() == {"a": "ready", "b": "ready"}
    assert harness.loader.stopped == []
    lease.release(is_ok=True)
    await until(lambda: harness.loader.stopped)
    assert (harness.loader.stopped, harness.loader.cut_off) == (["a"], set())
    await look_twice(watch)
    assert harness.loader.stopped == ["a"]


async def test_a_file_still_being_written_is_left_alone(open_manager: Make) -> None:
    harness, watch, path = await opened(open_manager, "a")
    await harness.have("a")
    for size in (10, 20, 30):
        path.write_bytes(HEADER + bytes(size))
        await watch.look()
        assert harness.status("a") == "ready"
    await watch.look()
    await until(lambda: harness.loader.stopped == ["a"])


async def test_a_loaded_model_outlives_its_file(open_manager: Make) -> None:
    """The llama-server has it open, and it may come back."""
    harness, watch, path = await opened(open_manager, "a")
    await harness.have("a")
    away = path.rename(path.with_suffix(".away"))
    await look_twice(watch)
    assert harness.status("a") == "ready"
    (await harness.ask("a")).release(is_ok=True)
    away.rename(path)
    await look_twice(watch)
    assert (harness.status("a"), harness.loader.stopped) == ("ready", [])


async def test_a_file_that_is_away_and_back_is_loaded_without_a_reset(open_manager: Make) -> None:
    harness, watch, path = await opened(open_manager, "a")
    away = path.rename(path.with_suffix(".away"))
    await look_twice(watch)
    assert "model file not found" in harness.manager.model("a").error_message
    with pytest.raises(ModelFailed, match="model file not found"):
        await harness.ask("a")
    away.rename(path)
    await look_twice(watch)
    assert harness.manager.model("a").error_message == ""
    asked = harness.ask("a")
    await harness.loaded("a")
    (await asked).release(is_ok=True)


async def test_a_request_finds_a_repaired_file_before_the_next_look(open_manager: Make) -> None:
    """Half of it was there; llama-server failed with it until no further load was tried."""
    harness = await open_manager("a", model_load_max_retries=0)
    path = harness.manager.model_state("a").path
    failing = harness.ask("a")
    await harness.fails("a", "it exited with code 1: tensor data is out of bounds")
    with pytest.raises(ModelFailed):
        await failing
    with pytest.raises(ModelFailed, match="out of bounds"):
        await harness.ask("a")
    path.write_bytes(HEADER + bytes(100))
    asked = harness.ask("a")
    await harness.loaded("a")
    (await asked).release(is_ok=True)


async def test_a_load_reads_a_file_that_has_changed_since_the_last_look(open_manager: Make) -> None:
    harness = await open_manager("a")
    state = harness.manager.model_state("a")
    put(state.path.parent, state.path.name, general__architecture="bert", bert__pooling_type=1)
    task = harness.load("a")
    await harness.loaded("a")
    await task
    assert state.header is not None
    assert state.header.is_embedding
    record = harness.manager.history.record_of(state.history_key)
    assert record is not None
    assert record.loads == 1


async def test_a_file_replaced_during_a_load_records_nothing_of_the_new_one(open_manager: Make) -> None:
    harness, watch, path = await opened(open_manager, "a")
    task = harness.load("a")
    await harness.loads("a")
    path.write_bytes(HEADER + bytes(100))
    await look_twice(watch)
    state = harness.manager.model_state("a")
    assert harness.manager.history.record_of(state.history_key) is None
    await harness.loaded("a")
    await task
    record = harness.manager.history.record_of(state.history_key)
    assert record is not None
    assert record.loads == 1


async def test_a_model_that_leaves_during_a_look_is_passed_over(open_manager: Make) -> None:
    harness, watch, path = await opened(open_manager, "a", "b")
    catalogue = harness.manager.catalogue
    os.truncate(path, 5)
    await watch.look()
    looking = asyncio.create_task(watch.look())
    await asyncio.sleep(0)
    harness.manager.apply(type(catalogue)({"b": catalogue.models["b"]}, catalogue.system))
    await looking
    assert harness.statuses() == {"b": "off"}


async def test_a_changed_file_waits_some_seconds_unless_it_is_known_to_be_whole(open_manager: Make) -> None:
    harness = await open_manager("a")
    state = harness.manager.model_state("a")
    watch, before = FileWatch(harness.manager, steady_s=3.0), state.size_bytes
    path = state.path
    await watch.look(now_s=0.0)
    path.write_bytes(HEADER + bytes(100))
    for now_s in (0.1, 0.2, 3.0):
        await watch.look(now_s=now_s)
        assert (state.size_bytes, watch.is_settled) == (before, False)
    await watch.look(now_s=3.1)
    assert (state.size_bytes, watch.is_settled) == (path.stat().st_size, True)
    path.write_bytes(HEADER + bytes(200))
    await watch.look({FileState.read(path).mark}, now_s=3.2)
    assert (state.size_bytes, watch.is_settled) == (path.stat().st_size, True)
