"""model_status.json: complete at any moment, not written too often, and errors do not matter to the server."""

import asyncio
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from appliance.base.tasks import Tasks
from appliance.models.status.file import FILE_NAME, StatusFile, keeping_status_file
from appliance.models.status.objects import as_file
from tests.front.static_manager import StaticManager, off, ready
from tests.journeys.running import until


def content(path: Path) -> dict[str, object]:
    return json.loads(path.read_bytes())


async def test_the_file_is_there_at_once_and_follows_every_change(tmp_path: Path) -> None:
    manager, path = StaticManager(off("a"), off("org/b")), tmp_path / "new" / FILE_NAME
    async with Tasks() as tasks, keeping_status_file(manager, path, tasks=tasks, every_s=0.01):
        assert await until(path.exists)
        assert content(path) == as_file(manager)
        assert list(content(path)) == ["server", "models"]
        manager.put(ready("a"))
        assert await until(lambda: content(path) == as_file(manager))
    assert [child.name for child in path.parent.iterdir()] == [FILE_NAME]


async def test_quick_changes_are_written_together_the_last_one_too(
    tmp_path: Path,
) -> None:
    manager, path = StaticManager(off("a")), tmp_path / FILE_NAME
    async with Tasks() as tasks, keeping_status_file(manager, path, tasks=tasks, every_s=60) as file:
        assert await until(lambda: file.writes == 1)
        for progress in range(50):
            manager.put(replace(off("a"), status="loading", load_progress=progress))
            await asyncio.sleep(0)
        manager.put_server("shutting_down")
        assert file.writes == 1
    assert file.writes == 2
    assert content(path)["server"]["status"] == "shutting_down"  # type: ignore[index]
    assert content(path)["models"]["a"]["load_progress"] == 49  # type: ignore[index]


async def test_what_did_not_change_is_not_written_again(tmp_path: Path) -> None:
    manager = StaticManager(off("a"))
    file = StatusFile(manager, tmp_path / FILE_NAME)
    await file.write()
    await file.write()
    await file.close()
    assert file.writes == 1


async def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    manager, path, stop = (
        StaticManager(*(off(f"model-{number}") for number in range(200))),
        tmp_path / FILE_NAME,
        threading.Event(),
    )
    file = StatusFile(manager, path)
    await file.write()
    faults: list[str] = []

    def read_on() -> None:
        while not stop.is_set():
            try:
                if len(content(path)["models"]) != 200:  # type: ignore[arg-type]
                    faults.append("models are missing")
            except (OSError, ValueError) as exc:
                faults.append(repr(exc))

    reader = threading.Thread(target=read_on)
    reader.start()
    for progress in range(40):
        manager.put(replace(off("model-7"), status="loading", load_progress=progress))
        await file.write()
    stop.set()
    reader.join()
    await file.close()
    assert faults == []


async def test_unwritable_folder_is_logged_once(tmp_path: Path) -> None:
    (tmp_path / "in_the_way").write_text("a file where a folder should be")
    manager, path = StaticManager(off("a")), tmp_path / "in_the_way" / FILE_NAME
    with capture_logs() as logs:
        async with Tasks() as tasks, keeping_status_file(manager, path, tasks=tasks, every_s=0.01) as file:
            for progress in range(3):
                manager.put(replace(off("a"), load_progress=progress))
                await file.write()
            (tmp_path / "in_the_way").unlink()
            manager.put(ready("a"))
            assert await until(path.exists)
            assert content(path) == as_file(manager)
    warnings = [line for line in logs if line["event"] == "status_file_unwritable"]
    assert len(warnings) == 1
    assert (warnings[0]["log_level"], warnings[0]["path"]) == ("warning", str(path))


async def test_a_slow_disk_does_not_hold_up_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_free = threading.Event()
    monkeypatch.setattr("appliance.base.files.os.fsync", lambda _: is_free.wait(10))
    file = StatusFile(StaticManager(off("a")), tmp_path / FILE_NAME)
    writing = asyncio.create_task(file.write())
    await asyncio.sleep(0.05)
    assert not writing.done()  # and yet we are here
    is_free.set()
    await writing
    await file.close()
    assert file.writes == 1
