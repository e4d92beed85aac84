"""Parts of the manager for table tests: states made of values, no process, no file, no sleep."""

from pathlib import Path
from typing import Any

from appliance.base.clock import FakeClock
from appliance.base.fair_queue import FairQueue
from appliance.models.manager.model_state import ModelState
from appliance.models.manager.state import ManagerState
from appliance.models.runner.runner import Runner
from appliance.models.status.views import RAM
from appliance.models.table.catalogue import Catalogue, Model
from appliance.models.table.entries import Params, System

MIB = 1 << 20


def model_of(alias: str, **changes: Any) -> Model:
    """Make a model of the table; no file is there."""
    values: dict[str, Any] = {"path": Path(f"/models/{alias}.gguf"), "params": Params(n_ctx=4096)} | changes
    return Model(alias, origin="table", **values)


def model_state(alias: str, **changes: Any) -> ModelState:
    """Make the state of a model whose file was checked."""
    values: dict[str, Any] = {"history_key": f"key-{alias}"} | changes
    return ModelState(values.pop("definition", None) or model_of(alias), FairQueue(10), **values)


def runner_of(model: ModelState, serial: int = 1, **changes: Any) -> Runner:
    """Make a llama-server of a model, ready unless `changes` say otherwise, and add it to the model."""
    values: dict[str, Any] = {
        "phase": "ready",
        "devices": (RAM,),
        "need_bytes": 100 * MIB,
        "slots": 2,
    } | changes
    runner = Runner(
        serial,
        model.alias,
        model.definition,
        values.pop("devices"),
        values.pop("slots"),
        values.pop("need_bytes"),
        values.pop("load_started_s", 0.0),
        0.0,
        **values,
    )
    runner.idle.set()
    model.runners.append(runner)
    return runner


def manager_state(*models: ModelState, clock: FakeClock | None = None, **system: Any) -> ManagerState:
    """Make the shared state of these models and of their llama-servers."""
    table = Catalogue({one.alias: one.definition for one in models}, System().model_copy(update=system))
    state = ManagerState(table, clock=clock or FakeClock())
    state.models = {one.alias: one for one in models}
    state.runners = {runner.serial: runner for one in models for runner in one.runners}
    return state
