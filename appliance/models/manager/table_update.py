"""The state of each model after a change of the table. Decisions only."""

from collections.abc import Mapping
from dataclasses import replace

from appliance.base.fair_queue import FairQueue
from appliance.models.manager.model_state import ModelState
from appliance.models.manager.waiters import SlotWaiter
from appliance.models.table.catalogue import Catalogue, LoraAdapter, Model
from appliance.models.table.command import slot_count


def updated_models(
    catalogue: Catalogue,
    former: Mapping[str, ModelState],
    *,
    adapters: Mapping[str, tuple[LoraAdapter, ...]],
    ageing_s: float,
    now_at_s: float,
) -> dict[str, ModelState]:
    """Return the state of each model of a table, in its order.

    1. a new model                               → a fresh state
    2. an unchanged model                        → its former state, the very same object
    3. its llama-servers stay as they are        → its former state, changed in place
    4. it has changed                            → a new object with the former queue, counts and runners,
                                                   without what was known of its file and its failures

    Args:
        catalogue: The table.
        former: The states until now.
        adapters: Adapters in addition to those of the table, by alias of the model.
        ageing_s: See FairQueue.
        now_at_s: Seconds since 1970.
    """
    system, models = catalogue.system, {}
    for alias, configured in catalogue.models.items():
        state, model = former.get(alias), with_adapters(configured, adapters)
        if state is None:  # 1
            queue: FairQueue[SlotWaiter] = FairQueue(system.max_queue_size_per_model, ageing_s=ageing_s)
            state = ModelState(model, queue, is_pinned=model.pinned, updated_at_s=now_at_s)
        elif state.definition != model:  # 3, 4
            state = _changed(state, model, now_at_s)
        state.queue.limit = system.max_queue_size_per_model
        state.slots = slot_count(model, system)
        models[alias] = state
    return models


def with_adapters(model: Model, adapters: Mapping[str, tuple[LoraAdapter, ...]]) -> Model:
    """Return a model of the table with its additional adapters."""
    return replace(model, lora=(*model.lora, *adapters.get(model.alias, ())))


def _changed(state: ModelState, model: Model, now_at_s: float) -> ModelState:
    follows_table = state.is_pinned == state.definition.pinned  # else an operator has pinned or unpinned it
    is_pinned = model.pinned if follows_table else state.is_pinned
    if state.definition.as_started() == model.as_started():
        state.definition, state.is_pinned = model, is_pinned
        return state
    return replace(
        state,
        definition=model,
        header=None,
        file_problem="",
        estimate=None,
        history_key="",
        files=(),
        failure="",
        last_error="",
        attempts=0,
        replica_failures=0,
        blocked_until_s=0.0,
        is_pinned=is_pinned,
        updated_at_s=now_at_s,
    )
