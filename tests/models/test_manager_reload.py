"""What a new model table changes in the state of the manager.

Its effect on running llama-servers is tested in tests/journeys.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.base.clock import SystemClock
from appliance.base.tasks import Tasks
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits
from appliance.models.manager.manager import ModelManager
from appliance.models.runner.load_history import LoadHistory
from appliance.models.runner.loader import Loader
from appliance.models.runner.orphans import Records
from appliance.models.runner.system_memory import SystemMemory
from appliance.models.table.catalogue import Catalogue, Model
from appliance.models.table.entries import Params, System

MODEL = Model("a", Path("/nowhere/a.gguf"), Params(n_ctx=32_768), "table")
TABLE = Catalogue({"a": MODEL}, System(parallel_requests=4), llama_server="/nowhere/llama-server")


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[ModelManager]:
    """A manager of one model, which is not loaded (there is no llama-server, and no file)."""
    async with Tasks() as tasks:
        loader = Loader(
            log_dir=tmp_path,
            records=Records(tmp_path / "runners"),
            environ={},
            tasks=tasks,
            wire=ConnectionPool(PoolLimits()),
        )
        one = ModelManager(
            TABLE,
            loader=loader,
            memory=SystemMemory(),
            history=LoadHistory(None),
            tasks=tasks,
            clock=SystemClock(),
        )
        await one.open()
        yield one
        await one.close()


def with_model(**changes: object) -> Catalogue:
    return replace(TABLE, models={"a": replace(MODEL, **changes)})


async def test_new_slot_count_applies_to_unchanged_models(manager):
    assert manager.model("a").slots == 4
    manager.apply(replace(TABLE, system=System(parallel_requests=2)))
    async with asyncio.timeout(5):
        while manager.model("a").slots != 2:
            await asyncio.sleep(0.01)


async def test_model_unpinned_in_the_table_is_unpinned(manager):
    manager.apply(with_model(pinned=True))
    assert manager.model("a").is_pinned
    manager.apply(with_model(pinned=False))
    assert not manager.model("a").is_pinned


@pytest.mark.parametrize("pinned", [True, False])
async def test_operator_pin_outlasts_a_change_of_the_model(manager, pinned):
    manager.apply(with_model(pinned=not pinned))
    manager.pin("a", pinned=pinned)
    manager.apply(with_model(pinned=not pinned, replicas=2))
    assert manager.model("a").is_pinned is pinned
