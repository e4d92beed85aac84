"""Models that run elsewhere, as Ollama's clients see them."""

from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.engines.types import ModelCard
from appliance.front.ollama.relayed import RelayedModels
from tests.fakes.backend import ScriptedBackend, router_of


class Backend(ScriptedBackend):
    def cards(self) -> list[ModelCard]:
        return []


@pytest.mark.parametrize(
    ("known", "capabilities"),
    [
        ({}, ["completion", "tools"]),
        ({"capabilities": ("completion",)}, ["completion", "tools"]),
        ({"capabilities": ("completion", "multimodal")}, ["completion", "tools", "vision"]),
        ({"is_text": False}, ["embedding"]),
    ],
)
def test_capabilities_are_in_ollamas_words(known: dict[str, Any], capabilities: list[str]) -> None:
    clock = FakeClock()
    relayed = RelayedModels(router_of(Backend(clock), clock=clock), clock=clock)
    card = ModelCard("m", 5, "llamacpp", "m", **known)
    assert relayed.tag(card)["capabilities"] == relayed.show(card)["capabilities"] == capabilities
