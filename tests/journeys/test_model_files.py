"""Files of MODEL_DIR that come, grow, are replaced, cut off and removed while everything runs, with real llama-servers.

Whatever happens to one file, other models and their requests notice nothing.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from appliance.base.file_events import FileEvents
from tests.journeys.model_tables import ManagedAppliance, port_range
from tests.journeys.running import Start, until
from tests.tools.tiny_models import REPLY

pytestmark = pytest.mark.timeout(120)
LOOK_S = 0.2


class Shelf:
    """An appliance over a folder of model files, one of which is asked all the time."""

    def __init__(self, appliance: ManagedAppliance, folder: Path, tiny: Path) -> None:
        self.appliance, self.folder, self.tiny = appliance, folder, tiny
        self.answers: list[str] = []

    def put(self, name: str, model: str = "tiny-chat") -> None:
        """Put a file in place as downloads do: written elsewhere, then renamed."""
        place = self.folder / name
        written = place.with_name(f".{place.name}.new")
        shutil.copy(self.tiny / f"{model}.gguf", written)
        written.rename(place)

    async def names(self) -> set[str]:
        status, _, value = await self.appliance.ask("", path="/v1/models", method="GET")
        assert status == 200
        return {row["id"] for row in value["data"]}

    async def listed(self, name: str, *, wanted: bool = True) -> None:
        async with asyncio.timeout(10):
            while (name in await self.names()) is not wanted:
                await asyncio.sleep(0.05)

    async def answered(self, name: str) -> Any:
        """Ask until it answers; refusals must be its own."""
        async with asyncio.timeout(30):
            while True:
                status, _, value = await self.appliance.ask(name)
                if status == 200:
                    return value["choices"][0]["message"]["content"]
                assert status in {404, 503}, value
                await asyncio.sleep(0.1)

    async def keep_asking(self) -> None:
        while True:
            result = await self.appliance.stream("steady", 20)
            self.answers.append(result.end if result.end == "done" else f"{result.end}: {result.error}")
            await asyncio.sleep(0.05)


@pytest.fixture(params=["told", "looked-at"])
async def shelf(
    start: Start,
    llama_binary: str,
    tiny_models: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Shelf]:
    """Run each test with the kernel's word, and as on a file system where it has none."""
    if request.param == "looked-at":
        monkeypatch.setattr(FileEvents, "_file_system", lambda *_: 0x6969)
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(tiny_models / "tiny-chat.gguf", folder / "steady.gguf")
    running = await start(
        MODEL_DIR=str(folder),
        LLAMA_SERVER_PATH=llama_binary,
        MODEL_FILES_LOOK_S=str(LOOK_S),
        MODEL_STRICT="1",  # else the only model answers any name
        **port_range(),
    )
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        appliance = ManagedAppliance(running, tmp_path / "none.json", {}, folder, session)
        shelf = Shelf(appliance, folder, tiny_models)
        await shelf.answered("steady")
        pid = appliance.pid("steady")
        asking = asyncio.create_task(shelf.keep_asking())
        yield shelf
        before = len(shelf.answers)
        assert await until(lambda: len(shelf.answers) > before)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert set(shelf.answers) == {"done"}
        assert appliance.pid("steady") == pid


async def test_a_file_copied_slowly_becomes_a_model_when_it_is_whole(shelf: Shelf) -> None:
    data = (shelf.tiny / "tiny-chat.gguf").read_bytes()
    step = len(data) // 8 + 1
    with (shelf.folder / "new.gguf").open("wb") as file:
        for at in range(0, len(data), step):
            assert "new" not in await shelf.names()
            file.write(data[at : at + step])
            file.flush()
            await asyncio.sleep(LOOK_S * 0.5)
    await shelf.listed("new")
    assert (await shelf.answered("new")).startswith(REPLY)
    assert shelf.appliance.manager.model_state("new").attempts == 0


async def test_a_folder_removed_and_made_again_is_followed(shelf: Shelf) -> None:
    """What is loaded goes on meanwhile; a MODEL_DIR that is away, such as a mount, changes nothing."""
    shelf.folder.rename(away := shelf.folder.with_name("away"))
    await asyncio.sleep(LOOK_S * 3)
    assert await shelf.names() == {"steady"}
    new = shelf.folder.with_name("new")
    (new / "sub" / "deep").mkdir(parents=True)
    (away / "steady.gguf").rename(new / "steady.gguf")
    new.rename(shelf.folder)
    shelf.put("sub/deep/m.gguf")
    await shelf.listed("m")
    assert (await shelf.answered("m")).startswith(REPLY)


async def test_links_that_are_turned_to_another_folder_are_followed(shelf: Shelf) -> None:
    """As Kubernetes mounts a ConfigMap: m.gguf → ..data/m.gguf, and ..data → a folder that is replaced."""
    for number, model in (("..1", "tiny-chat"), ("..2", "tiny-embed")):
        (shelf.folder / number).mkdir()
        shutil.copy(shelf.tiny / f"{model}.gguf", shelf.folder / number / "m.gguf")
    (shelf.folder / "..data").symlink_to("..1")
    (shelf.folder / "m.gguf").symlink_to("..data/m.gguf")
    assert (await shelf.answered("m")).startswith(REPLY)
    (shelf.folder / "..data_tmp").symlink_to("..2")
    (shelf.folder / "..data_tmp").replace(shelf.folder / "..data")
    async with asyncio.timeout(20):
        while (await shelf.appliance.ask("m", path="/v1/embeddings", input="hello"))[0] != 200:
            await asyncio.sleep(0.1)


async def test_a_replaced_file_is_served_as_what_it_is_now(shelf: Shelf) -> None:
    shelf.put("m.gguf")
    await shelf.listed("m")
    await shelf.answered("m")
    running = await shelf.appliance.start_stream("m", 500)
    shelf.put("m.gguf", "tiny-embed")
    async with asyncio.timeout(20):
        while True:
            status, _, value = await shelf.appliance.ask("m", path="/v1/embeddings", input="hello")
            if status == 200:
                break
            await asyncio.sleep(0.1)
    assert value["data"][0]["embedding"]
    assert (await running).end == "done"  # the former llama-server ended its answer
    status, _, value = await shelf.appliance.ask("m", path="/v1/models/m", method="GET")
    assert (status, value["max_model_len"]) == (200, 512)
    assert (await shelf.appliance.ask("m"))[0] == 400


async def test_a_file_cut_off_while_it_is_loaded_and_made_whole_again(shelf: Shelf) -> None:
    shelf.put("m.gguf")
    await shelf.listed("m")
    await shelf.answered("m")
    path = shelf.folder / "m.gguf"
    whole = path.read_bytes()
    os.truncate(path, len(whole) // 2)
    async with asyncio.timeout(20):
        while True:
            status, _, value = await shelf.appliance.ask("m")
            if status == 503:
                break
            assert status in {200, 502}, value
            await asyncio.sleep(0.1)
    assert "is incomplete, or still being written" in value["error"]["message"]
    with path.open("r+b") as file:
        file.write(whole)
    assert (await shelf.answered("m")).startswith(REPLY)


async def test_a_removed_file_is_no_model_any_more(shelf: Shelf) -> None:
    shelf.put("m.gguf")
    await shelf.listed("m")
    running = await shelf.appliance.start_stream("m", 500)
    (shelf.folder / "m.gguf").unlink()
    await shelf.listed("m", wanted=False)
    assert (await shelf.appliance.ask("m"))[0] == 404
    assert (await running).end == "done"
    shelf.put("m.gguf")
    assert (await shelf.answered("m")).startswith(REPLY)


async def test_entries_that_are_no_files_disturb_nothing(shelf: Shelf) -> None:
    os.mkfifo(shelf.folder / "pipe.gguf")
    os.symlink("loop.gguf", shelf.folder / "loop.gguf")
    os.symlink("/dev/zero", shelf.folder / "device.gguf")
    with open(os.fsencode(shelf.folder) + b"/caf\xe9.gguf", "wb") as file:
        file.write(b"GGUF")
    (shelf.folder / "m-00001-of-00000.gguf").write_bytes(b"GGUF" + bytes(100))
    shelf.put("sub.gguf")
    await shelf.listed("sub")
    assert await shelf.names() == {"steady", "sub", "m-00001-of-00000"}
    assert (await shelf.answered("sub")).startswith(REPLY)
    status, _, value = await shelf.appliance.ask("m-00001-of-00000")
    assert (status, "not a GGUF model" in value["error"]["message"]) == (503, True)
    status, _, value = await shelf.appliance.ask("", path="/healthz", method="GET")
    assert status == 200
    told = "\n".join(value["warnings"])
    assert all(name in told for name in ("pipe.gguf", "loop.gguf", "device.gguf", "caf", "m-00001-of-00000"))
