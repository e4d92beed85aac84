"""The lock of a folder: held by one, waited for by others, and what cannot be locked."""

import asyncio
import fcntl
import os
from pathlib import Path

import pytest

from appliance.base.errors import Conflict
from appliance.downloads import lock
from appliance.downloads.lock import NAME, holding_lock


async def test_the_second_waits_and_is_told_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "TRY_EVERY_S", 0.01)
    holders: list[str] = []
    async with holding_lock(tmp_path / "new", holders.append) as has_waited:
        assert (has_waited, (tmp_path / "new" / NAME).read_text()) == (False, f"{os.getpid()}\n")

        async def second() -> bool:
            async with holding_lock(tmp_path / "new", holders.append) as found:
                return found

        waiting = asyncio.create_task(second())
        while not holders:
            await asyncio.sleep(0.01)
    assert await waiting
    assert set(holders) == {f"process {os.getpid()}"}
    assert (tmp_path / "new" / NAME).read_text() == ""


async def test_a_holder_without_a_number_is_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "TRY_EVERY_S", 0.01)
    (tmp_path / NAME).write_text("odd")
    descriptor = os.open(tmp_path / NAME, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    holders: list[str] = []

    def let_go(holder: str) -> None:
        holders.append(holder)
        os.close(descriptor)

    async with holding_lock(tmp_path, let_go) as has_waited:
        assert (has_waited, holders) == (True, ["another process"])


async def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(Conflict, match="is not a folder, or is below something that is not a folder"):
            async with holding_lock(folder, lambda _: None):
                pass


@pytest.mark.parametrize(("name", "number"), [("os.open", 30), ("fcntl.flock", 37)])
async def test_a_lock_that_cannot_be_taken_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(f"appliance.downloads.lock.{name}", refuse)
    with pytest.raises(Conflict, match=rf"\.lock cannot be written: {os.strerror(number)}"):
        async with holding_lock(tmp_path, lambda _: None):
            pass
