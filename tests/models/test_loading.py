"""Which llama-server is used. Loads themselves are in the journeys."""

import asyncio
from pathlib import Path

from appliance.base.tasks import Tasks
from appliance.base.wire import Wire, WireLimits
from appliance.models.catalogue import Catalogue
from appliance.models.loading import Loader
from appliance.models.orphans import Records


def server(path: Path, *, knows: str) -> str:
    """Write a program that helps as a llama-server does, and counts how often it was asked."""
    path.write_text(f"#!/bin/sh\necho x >> {path}.asked\necho '--port PORT {knows}'\n")
    path.chmod(0o755)
    return str(path)


async def looked(tmp_path: Path, *wanted: str) -> Loader:
    async with Tasks() as tasks:
        loader = Loader(tmp_path, Records(tmp_path / "runners"), {}, tasks, Wire(WireLimits()))
        for one in wanted:
            await loader.look(Catalogue({}, llama_server=one))
        return loader


async def test_a_llama_server_is_asked_once_for_its_help(tmp_path):
    one = server(tmp_path / "one", knows="--jinja")
    loader = await looked(tmp_path, one, one, one)
    assert "--jinja" in loader.program.flags.names
    assert Path(f"{one}.asked").read_text() == "x\n"


async def test_loads_that_begin_while_it_is_asked_wait_for_that(tmp_path):
    one = server(tmp_path / "one", knows="--jinja")
    async with Tasks() as tasks:
        loader = Loader(tmp_path, Records(tmp_path / "runners"), {}, tasks, Wire(WireLimits()))
        await asyncio.gather(*(loader.look(Catalogue({}, llama_server=one)) for _ in range(3)))
    assert Path(f"{one}.asked").read_text() == "x\n"


async def test_after_a_reload_the_new_llama_server_is_used(tmp_path):
    loader = await looked(tmp_path, server(tmp_path / "one", knows="--jinja"), two := server(tmp_path / "two", knows="--mlock"))
    assert loader.program.path == two
    assert "--mlock" in loader.program.flags.names


async def test_one_that_was_missing_is_looked_for_again(tmp_path):
    loader = await looked(tmp_path, str(tmp_path / "one"))
    assert "is no program that is found" in loader.program.problem
    server(tmp_path / "one", knows="--jinja")
    await loader.look(Catalogue({}, llama_server=str(tmp_path / "one")))
    assert not loader.program.problem
