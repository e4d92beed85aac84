"""Which models a server serves: configured ones, listed ones, and the adapters that are declared for it."""

import pytest

from appliance.engines.backends.adapters import LoadedAdapter
from appliance.engines.backends.served_models import ServedModels
from appliance.engines.dialects.contract import EngineFacts
from appliance.engines.specs import BackendSpec
from appliance.engines.types import ModelCard, ServedModel


def served(name: str, *, parent: str = "", aliases: tuple[str, ...] = (), tokens: int = 0) -> ServedModel:
    return ServedModel(ModelCard(name, 1, "vllm", name, aliases, tokens, parent=parent), name)


def facts(*models: ServedModel) -> EngineFacts:
    return EngineFacts({model.card.id: model for model in models})


def models_of(*configured: str, kind: str = "vllm") -> ServedModels:
    return ServedModels(BackendSpec(url="http://x", name="e0", kind=kind, models=configured), created_s=7)


@pytest.mark.parametrize(
    ("configured", "listed", "names", "is_unknown"),
    [
        ((), None, (), True),
        (("a",), None, ("a",), False),
        ((), ("a", "b"), ("a", "b"), False),
        (("a",), ("a", "b"), ("a",), False),
        (("c",), ("a",), ("c",), False),  # the operator's word stands, though the engine does not list it
        ((), (), (), False),
    ],
)
def test_configured_models_stand_and_others_are_listed(
    configured: tuple[str, ...], listed: tuple[str, ...] | None, names: tuple[str, ...], is_unknown: bool
) -> None:
    models = models_of(*configured)
    if listed is not None:
        models.update(facts(*map(served, listed)))
    assert (models.names(), models.is_unknown) == (names, is_unknown)


def test_a_configured_model_takes_what_the_engine_says_of_it() -> None:
    models = models_of("a", "b")
    models.update(facts(served("a", tokens=4096)))
    assert [card.context_tokens for card in models.cards()] == [4096, 0]


@pytest.mark.parametrize(("kind", "owner"), [("vllm", "vllm"), ("auto", "backend")])
def test_a_configured_model_is_owned_by_the_kind_of_engine(kind: str, owner: str) -> None:
    assert [(card.owned_by, card.created_s) for card in models_of("a", kind=kind).cards()] == [(owner, 7)]


def test_models_are_found_by_name_and_alias() -> None:
    models = models_of()
    models.update(facts(served("sql", aliases=("tiny:sql",))))
    assert [found and found.card.id for found in map(models.find, ("sql", "tiny:sql", "x"))] == [
        "sql",
        "sql",
        None,
    ]


def test_update_says_whether_the_models_changed() -> None:
    models = models_of()
    assert models.update(facts(served("a")))
    assert not models.update(facts(served("a")))
    assert models.update(facts(served("a"), served("b")))


def test_a_declared_adapter_is_served_once_it_is_loaded() -> None:
    models = models_of()
    models.update(facts(served("a"), served("sql", parent="a")))
    models.adapters.declare(frozenset({"sql"}))
    assert models.refresh()
    assert models.names() == ("a",)
    models.adapters.add("sql", LoadedAdapter(served("sql", parent="a"), "sql", True))
    models.refresh()
    assert (models.names(), models.adapter_names()) == (("a", "sql"), ("sql",))


def test_an_engine_that_went_down_has_no_adapters_any_more() -> None:
    models = models_of()
    models.update(facts(served("a")))
    models.adapters.declare(frozenset({"sql"}))
    models.adapters.add("sql", LoadedAdapter(served("sql", parent="a"), "sql", True))
    models.invalidate()
    models.refresh()
    assert (models.names(), models.is_current, models.has_facts) == (("a",), False, True)
