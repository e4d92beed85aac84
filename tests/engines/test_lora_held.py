"""What a backend may be asked for, of the adapters that are declared for it."""

import asyncio

import pytest

from appliance.engines.backends.adapters import AdapterState, OwnAdapter, is_missing
from appliance.engines.types import ModelCard, Served


def served(name: str, parent: str = "tiny") -> Served:
    return Served(ModelCard(name, 1, "vllm", name, parent=parent), name)


TINY, STYLE, OTHER = served("tiny", ""), served("style"), served("other")
MODELS = {"tiny": TINY, "style": STYLE, "other": OTHER}


def test_a_declared_name_is_served_only_once_it_was_seen_to_be_there() -> None:
    held = AdapterState()
    assert held.laid_over(MODELS) is MODELS
    held.gate(frozenset({"style"}))
    assert set(held.laid_over(MODELS)) == {"tiny", "other"}
    held.put("style", OwnAdapter(STYLE, "style", True))
    assert held.laid_over(MODELS) == {"tiny": TINY, "other": OTHER, "style": STYLE}
    assert next(iter(held.laid_over(MODELS))) == "tiny"  # the default stays the base model
    held.lost()
    assert set(held.laid_over(MODELS)) == {"tiny", "other"}


def test_a_list_without_it_means_a_loss_only_if_it_was_ever_listed() -> None:
    held, lost = AdapterState(), []
    held.on_lost = lost.append
    held.gate(frozenset({"style", "quiet"}))
    held.put("style", OwnAdapter(STYLE, "style", False))
    held.put("quiet", OwnAdapter(served("quiet"), "quiet", False))
    held.heard({"tiny": TINY})
    assert (set(held.has), lost) == ({"style", "quiet"}, [])
    held.heard(MODELS)
    held.heard({"tiny": TINY})
    assert (set(held.has), lost) == ({"quiet"}, ["style"])


def test_an_adapter_known_by_another_name_goes_by_ours() -> None:
    held = AdapterState()
    held.gate(frozenset({"ours"}))
    held.put("ours", OwnAdapter(STYLE, "style", True))
    held.heard(MODELS)
    assert held.has["ours"].served.card.id == "ours"
    assert held.has["ours"].served.upstream == "style"


def test_a_request_that_met_none_takes_it_out() -> None:
    held = AdapterState()
    assert held.missed("style") is False
    held.gate(frozenset({"style"}))
    held.put("style", OwnAdapter(STYLE, "style", True))
    version = held.version
    assert held.missed("style") is True
    assert (dict(held.has), held.version > version) == ({}, True)
    assert held.missed("style") is True


async def test_an_unload_waits_for_answers_that_are_made_with_it() -> None:
    held = AdapterState()
    held.gate(frozenset({"style"}))
    held.began("style", "place 1")
    held.began("tiny", "place 2")  # not an adapter
    waiting = asyncio.create_task(held.unused("style", 5.0))
    await asyncio.sleep(0)
    held.ended("place 2")
    await asyncio.sleep(0)
    assert not waiting.done()
    held.ended("place 1")
    await asyncio.wait_for(waiting, 1)
    held.began("style", "place 3")
    await asyncio.wait_for(held.unused("style", 0.01), 1)  # and not for ever


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
    assert is_missing(status, text) is wanted
