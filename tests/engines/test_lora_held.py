"""What a backend may be asked for, of the adapters that are declared for it."""

import asyncio

import pytest

from appliance.engines.backends.adapters import AdapterState, LoadedAdapter, is_adapter_missing
from appliance.engines.types import ModelCard, ServedModel


def served(name: str, parent: str = "tiny") -> ServedModel:
    return ServedModel(ModelCard(name, 1, "vllm", name, parent=parent), name)


TINY, STYLE, OTHER = served("tiny", ""), served("style"), served("other")
MODELS = {"tiny": TINY, "style": STYLE, "other": OTHER}


def test_a_declared_name_is_served_only_once_it_was_seen_to_be_there() -> None:
    held = AdapterState("e0")
    assert held.apply_to(MODELS) is MODELS
    held.declare(frozenset({"style"}))
    assert set(held.apply_to(MODELS)) == {"tiny", "other"}
    held.add("style", LoadedAdapter(STYLE, "style", True))
    assert held.apply_to(MODELS) == {"tiny": TINY, "other": OTHER, "style": STYLE}
    assert next(iter(held.apply_to(MODELS))) == "tiny"  # the default stays the base model
    held.clear()
    assert set(held.apply_to(MODELS)) == {"tiny", "other"}


def test_a_list_without_it_means_a_loss_only_if_it_was_ever_listed() -> None:
    held = AdapterState("e0")
    held.declare(frozenset({"style", "quiet"}))
    held.add("style", LoadedAdapter(STYLE, "style", False))
    held.add("quiet", LoadedAdapter(served("quiet"), "quiet", False))
    held.update_from({"tiny": TINY})
    assert set(held.loaded) == {"style", "quiet"}
    held.update_from(MODELS)
    held.update_from({"tiny": TINY})
    assert set(held.loaded) == {"quiet"}


def test_an_adapter_known_by_another_name_goes_by_ours() -> None:
    held = AdapterState("e0")
    held.declare(frozenset({"ours"}))
    held.add("ours", LoadedAdapter(STYLE, "style", True))
    held.update_from(MODELS)
    assert held.loaded["ours"].served.card.id == "ours"
    assert held.loaded["ours"].served.upstream == "style"


def test_a_request_that_met_none_takes_it_out() -> None:
    held = AdapterState("e0")
    assert held.report_missing("style") is False
    held.declare(frozenset({"style"}))
    held.add("style", LoadedAdapter(STYLE, "style", True))
    version = held.version
    assert held.report_missing("style") is True
    assert (dict(held.loaded), held.version > version) == ({}, True)
    assert held.report_missing("style") is True


async def test_an_unload_waits_for_answers_that_are_made_with_it() -> None:
    held = AdapterState("e0")
    held.declare(frozenset({"style"}))
    held.acquire("style", "place 1")
    held.acquire("tiny", "place 2")  # not an adapter
    waiting = asyncio.create_task(held.wait_unused("style", 5.0))
    await asyncio.sleep(0)
    held.release("place 2")
    await asyncio.sleep(0)
    assert not waiting.done()
    held.release("place 1")
    await asyncio.wait_for(waiting, 1)
    held.acquire("style", "place 3")
    await asyncio.wait_for(held.wait_unused("style", 0.01), 1)  # and not for ever


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
def test_what_engines_say_to_an_adapter_that_they_have_not_is_understood(
    status: int, text: str, wanted: bool
) -> None:
    assert is_adapter_missing(status, text) is wanted
