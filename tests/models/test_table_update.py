"""What the state of each model is after the table was read anew, case by case."""

from dataclasses import replace
from typing import Any

import pytest

from appliance.models.manager.model_state import ModelState
from appliance.models.manager.table_update import updated_models
from appliance.models.table.catalogue import Catalogue, LoraAdapter, Model
from appliance.models.table.entries import Params, System
from appliance.models.table.sampling import RequestSettings
from tests.models.manager_states import model_of, model_state, runner_of

NOW_AT_S = 1_800_000_000.0


def update(
    *models: Model, former: dict[str, ModelState] | None = None, **system: Any
) -> dict[str, ModelState]:
    table = Catalogue({one.alias: one for one in models}, System().model_copy(update=system))
    return updated_models(table, former or {}, adapters={}, ageing_s=10.0, now_at_s=NOW_AT_S)


def test_new_model_gets_a_fresh_state() -> None:  # 1
    (state,) = update(replace(model_of("a"), pinned=True), max_queue_size_per_model=7).values()
    assert (state.alias, state.is_pinned, state.queue.limit, state.updated_at_s) == ("a", True, 7, NOW_AT_S)
    assert not state.is_file_checked


def test_unchanged_model_keeps_its_state() -> None:  # 2
    former = model_state("a", failure="no", attempts=3)
    assert update(model_of("a"), former={"a": former})["a"] is former
    assert (former.failure, former.attempts) == ("no", 3)


def test_change_of_replicas_alone_keeps_the_state() -> None:  # 3
    former = model_state("a")
    now = update(replace(model_of("a"), replicas=2), former={"a": former})["a"]
    assert now is former
    assert (now.definition.replicas, now.history_key) == (2, "key-a")


def test_what_concerns_requests_alone_keeps_the_state() -> None:  # 3
    former = model_state("a")
    new = replace(
        model_of("a"),
        aliases=("x",),
        requests=RequestSettings({"seed": 1}, {}, "Be short."),
        idle_timeout_s=9,
        preload=True,
    )
    now = update(new, former={"a": former})["a"]
    assert now is former
    assert (now.definition, now.history_key) == (new, "key-a")


@pytest.mark.parametrize("change", [{"extra_args": ("--keep", "4")}, {"env": (("A", "b"),)}])
def test_other_arguments_and_variables_need_a_new_server(change: dict[str, Any]) -> None:  # 4
    former = model_state("a")
    assert update(replace(model_of("a"), **change), former={"a": former})["a"] is not former


def test_changed_model_keeps_servers_and_counts_but_not_its_file() -> None:  # 4
    former = model_state("a", requests=5, failure="no", attempts=3, blocked_until_s=9.0, last_error="no")
    runner = runner_of(former)
    changed = replace(model_of("a"), params=Params(n_ctx=8192))
    now = update(changed, former={"a": former})["a"]
    assert now is not former
    assert (now.runners, now.requests, now.queue) == ([runner], 5, former.queue)
    assert (now.failure, now.attempts, now.blocked_until_s, now.last_error) == ("", 0, 0.0, "")
    assert (now.is_file_checked, now.header, now.estimate) == (False, None, None)


def test_removed_model_has_no_state() -> None:
    assert list(update(model_of("b"), former={"a": model_state("a"), "b": model_state("b")})) == ["b"]


def test_pin_of_the_table_is_followed() -> None:
    former = model_state("a")
    assert update(replace(model_of("a"), pinned=True), former={"a": former})["a"].is_pinned


def test_pin_of_an_operator_stays() -> None:
    former = model_state("a", is_pinned=True)
    assert update(replace(model_of("a"), replicas=2), former={"a": former})["a"].is_pinned


def test_limits_of_the_system_apply_to_unchanged_models() -> None:
    former = model_state("a")
    now = update(model_of("a"), former={"a": former}, max_queue_size_per_model=3, parallel_requests=2)["a"]
    assert (now.queue.limit, now.slots) == (3, 2)


def test_adapters_are_added_to_those_of_the_table() -> None:
    adapter = LoraAdapter(model_of("x").path, 0.0, "style")
    table = Catalogue({"a": model_of("a")}, System())
    (state,) = updated_models(
        table, {}, adapters={"a": (adapter,)}, ageing_s=10.0, now_at_s=NOW_AT_S
    ).values()
    assert state.definition.lora == (adapter,)
