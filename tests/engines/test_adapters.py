"""Which adapters a backend may be asked for, and when one is unloaded, missing or lost."""

import asyncio

import pytest

from appliance.engines.backends.adapters import AdapterState, LoadedAdapter, is_adapter_missing
from appliance.engines.types import ModelCard, ServedModel


def served(name: str, parent: str = "tiny") -> ServedModel:
    return ServedModel(ModelCard(name, 1, "vllm", name, parent=parent), name)


TINY, STYLE, OTHER = served("tiny", ""), served("style"), served("other")
MODELS = {"tiny": TINY, "style": STYLE, "other": OTHER}


def test_a_declared_adapter_is_served_once_it_was_seen() -> None:
    state = AdapterState("e0")
    assert state.apply_to(MODELS) is MODELS
    state.declare(frozenset({"style"}))
    assert set(state.apply_to(MODELS)) == {"tiny", "other"}
    state.add("style", LoadedAdapter(STYLE, "style", True))
    assert state.apply_to(MODELS) == {"tiny": TINY, "other": OTHER, "style": STYLE}
    assert next(iter(state.apply_to(MODELS))) == "tiny"  # the default stays the base model
    state.clear()
    assert set(state.apply_to(MODELS)) == {"tiny", "other"}


def test_an_adapter_is_lost_only_if_it_was_ever_listed() -> None:
    state = AdapterState("e0")
    state.declare(frozenset({"style", "quiet"}))
    state.add("style", LoadedAdapter(STYLE, "style", False))
    state.add("quiet", LoadedAdapter(served("quiet"), "quiet", False))
    state.update_from({"tiny": TINY})
    assert set(state.loaded) == {"style", "quiet"}
    state.update_from(MODELS)
    state.update_from({"tiny": TINY})
    assert set(state.loaded) == {"quiet"}


def test_an_adapter_is_served_under_our_name_for_it() -> None:
    state = AdapterState("e0")
    state.declare(frozenset({"ours"}))
    state.add("ours", LoadedAdapter(STYLE, "style", True))
    state.update_from(MODELS)
    assert state.loaded["ours"].served.card.id == "ours"
    assert state.loaded["ours"].served.upstream == "style"


def test_a_request_that_met_no_adapter_removes_it() -> None:
    state = AdapterState("e0")
    assert state.report_missing("style") is False
    state.declare(frozenset({"style"}))
    state.add("style", LoadedAdapter(STYLE, "style", True))
    version = state.version
    assert state.report_missing("style") is True
    assert (dict(state.loaded), state.version > version) == ({}, True)
    assert state.report_missing("style") is True


async def test_an_unload_waits_for_requests_that_use_it() -> None:
    state = AdapterState("e0")
    state.declare(frozenset({"style"}))
    state.acquire("style", "slot 1")
    state.acquire("tiny", "slot 2")  # not an adapter
    waiting = asyncio.create_task(state.wait_unused("style", 5.0))
    await asyncio.sleep(0)
    state.release("slot 2")
    await asyncio.sleep(0)
    assert not waiting.done()
    state.release("slot 1")
    await asyncio.wait_for(waiting, 1)
    state.acquire("style", "slot 3")
    await asyncio.wait_for(state.wait_unused("style", 0.01), 1)  # and not for ever


@pytest.mark.parametrize(
    ("status", "text", "wanted"),
    [
        (404, "The model `style` does not exist.", True),
        (400, "The following requested LoRA adapters are not loaded: {'style'}", True),
        (400, "Got LoRA adapter that has never been loaded: style", True),
        (500, "LoRA style not found", True),
        (400, "messages must not be empty", False),
        (400, "max_tokens is too large for this model", False),
        (503, "loading", False),
    ],
)
def test_what_engines_say_of_an_unknown_adapter(status: int, text: str, wanted: bool) -> None:
    assert is_adapter_missing(status, text) is wanted
