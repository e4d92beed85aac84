"""The route of a model's name."""

from dataclasses import replace

import pytest

from appliance.base.errors import ApplianceError, Kind, NoSuchModel, NotFound
from appliance.engines.backends.adapters import AdapterNotLoaded
from appliance.engines.routes import MAX_CACHED_ROUTES
from appliance.engines.settings import EngineSettings
from appliance.engines.types import RequestOptions
from tests.engines.routing import Adapters, routing, two_pools
from tests.engines.scripted import OK, TableBackend, card, engine_request, pool_of

# ---- names


@pytest.mark.parametrize(
    ("asked", "public", "sent", "pool", "reason"),
    [
        # 1. no name: the default
        ("", "a", "a", "first", "no model named"),
        # 2. a model, or an alias that its backend knows
        ("a", "a", "a", "first", "model"),
        ("b", "b", "b", "first", "model"),  # the first pool that has it
        ("c", "c", "c", "second", "model"),
        ("bee", "b", "bee", "first", "alias"),
        # 3. MODEL_ALIASES
        ("short", "b", "b", "first", "alias"),
        # 4. without `:latest`
        ("c:latest", "c", "c", "second", "model"),
        ("short:latest", "b", "b", "first", "alias"),
    ],
)
async def test_what_a_name_means(asked: str, public: str, sent: str, pool: str, reason: str) -> None:
    router = routing(*two_pools())
    request = engine_request(model=asked)
    assert await router.answer(request) is OK
    receipt = request.receipt
    assert (receipt.model, receipt.public_model, receipt.pool, receipt.reason) == (
        asked,
        public,
        pool,
        reason,
    )
    assert (request.wanted_model, router.resolve(asked).id) == (sent, public)


@pytest.mark.parametrize("name", ["lost", "lost:latest", "lost-short", "lost-short:latest"])
async def test_a_declared_adapter_is_answered_by_no_other_model(name: str) -> None:
    anything = TableBackend("any", serves_any=True)  # case 6 would take it
    router = routing(pool_of(anything), adapters=Adapters("lost"))
    with pytest.raises(AdapterNotLoaded, match="'lost' is declared"):
        await router.answer(engine_request(model=name))
    assert anything.asked == []


@pytest.mark.parametrize(
    ("models", "kind", "is_strict", "is_unknown", "is_answered"),
    [
        ([["a"], ["a"]], "llamacpp", False, False, True),
        ([["a"]], "vllm", False, False, True),
        ([["a"]], "openai", False, False, True),
        ([["a"]], "managed", False, False, True),
        ([["a"]], "llamacpp", True, False, False),
        ([["a"]], "vllm", True, False, False),
        ([["a"]], "managed", True, False, False),
        ([["a"], ["b"]], "llamacpp", False, False, False),  # which one is meant?
        ([["a", "b"]], "managed", False, False, False),
        ([["a"]], "vllm", False, True, False),  # a server that was not reached yet may have it
    ],
)
async def test_any_name_means_the_only_model(
    models: list[list[str]], kind: str, is_strict: bool, is_unknown: bool, is_answered: bool
) -> None:
    backends = [
        TableBackend(f"s{number}", models=names, kind=kind, is_unknown=is_unknown)
        for number, names in enumerate(models)
    ]
    router, request = routing(pool_of(*backends), model_strict=is_strict), engine_request(model="gpt-4o")
    if not is_answered:
        with pytest.raises(ApplianceError):
            await router.answer(request)
        return
    assert await router.answer(request) is OK
    assert (request.receipt.reason.split(",")[0], request.wanted_model) == ("default", "a")


async def test_only_models_of_several_kinds_of_servers_answer_any_name() -> None:
    pools = [
        pool_of(TableBackend("own", models=["a"], kind="managed"), name="models"),
        pool_of(TableBackend("e0", models=["a"])),
    ]
    router = routing(*pools)
    assert router.resolve("gpt-4o").id == "a"
    with pytest.raises(NoSuchModel):
        routing(pools[0], pool_of(TableBackend("e0", models=["b"]))).resolve("gpt-4o")


# ---- no name


EMBEDDING = card("embed", is_text=False)


@pytest.mark.parametrize(
    ("default", "models", "answers"),
    [
        ("", [["a", "b"]], "a"),
        ("", [[EMBEDDING, "b"]], "b"),  # the first one that generates text
        ("", [[EMBEDDING], ["b"]], "b"),
        ("", [[EMBEDDING]], "embed"),
        ("b", [["a", "b"]], "b"),
        ("b", [["a"], ["b"]], "b"),
        ("b:latest", [["a", "b"]], "b"),
        ("short", [["a", "b"]], "b"),  # `short=b` of MODEL_ALIASES
        ("bee", [["a", card("b", aliases=("bee",))]], "b"),
        ("embed", [["a", EMBEDDING]], "embed"),  # the operator says so
        ("other", [["a"]], "a"),  # any name means the only model
    ],
)
async def test_which_model_answers_where_none_is_named(
    default: str, models: list[list[str]], answers: str
) -> None:
    pools = [
        pool_of(TableBackend(f"s{number}", models=names), name=f"p{number}")
        for number, names in enumerate(models)
    ]
    router, request = routing(*pools, default_model=default), engine_request(model="")
    assert await router.answer(request) is OK
    assert (request.public_model, request.receipt.reason.split(",")[0]) == (answers, "no model named")
    assert router.cards()[0].id == answers


async def test_a_default_model_that_is_not_served_is_named() -> None:
    router = routing(*two_pools(), default_model="nobody")
    with pytest.raises(NoSuchModel, match=r"DEFAULT_MODEL cannot answer\. The model 'nobody' does not exist"):
        await router.answer(engine_request(model=""))
    assert [one.id for one in router.cards()] == ["a", "b", "c"]
    router = routing(pool_of(TableBackend("e0", is_unknown=True)), default_model="nobody")
    with pytest.raises(ApplianceError, match="not reached yet: e0") as caught:
        await router.answer(engine_request(model=""))
    assert caught.value.kind is Kind.UNAVAILABLE


async def test_a_default_adapter_that_is_not_loaded_is_not_replaced() -> None:
    router = routing(
        pool_of(TableBackend("e0", models=["a"])), adapters=Adapters("lost"), default_model="lost"
    )
    with pytest.raises(AdapterNotLoaded):
        await router.answer(engine_request(model=""))


async def test_what_generates_text_may_become_known_later() -> None:
    backend = TableBackend("own", models=["embed", "talk"], kind="managed")
    router = routing(pool_of(backend))
    assert router.resolve("").id == "embed"
    backend.models[0] = EMBEDDING
    assert router.resolve("").id == "talk"


async def test_a_reload_changes_the_default_model() -> None:
    router = routing(pool_of(TableBackend("e0", models=["a", "b"])))
    assert router.resolve("").id == "a"
    router.apply(EngineSettings(default_model="b"))
    assert (router.resolve("").id, router.cards()[0].id) == ("b", "b")


@pytest.mark.parametrize(("default", "sent"), [("", "a"), ("b", "b"), ("short", "b"), ("c", "a")])
async def test_a_chosen_backend_answers_with_the_default_model_it_has(default: str, sent: str) -> None:
    router = routing(*two_pools(), default_model=default)
    request = engine_request(model="", options=RequestOptions(pin="one"))
    assert await router.answer(request) is OK
    assert request.wanted_model == sent


# ---- lists


def test_a_model_is_listed_with_every_alias() -> None:
    aliases = ["short=b", "tall=bee", "a=b", "c:latest=b", "gone=nobody", "plain"]
    router = routing(*two_pools(), model_aliases=aliases)
    assert [(one.id, one.aliases) for one in router.cards()] == [
        ("a", ()),  # a model's own name is no alias of another
        ("b", ("bee", "short", "tall", "c:latest")),
        ("c", ()),
    ]
    for one in router.cards():
        for alias in one.aliases:
            assert router.resolve(alias).id == one.id


async def test_a_lost_adapter_of_a_llama_server_is_not_answered_by_its_base() -> None:
    server = TableBackend("s", models=["a", replace(card("style"), parent="a")], kind="llamacpp")
    router = routing(pool_of(server))
    assert await router.answer(engine_request(model="style")) is OK
    server.models = [card("a")]
    router.refresh()
    assert await router.answer(engine_request(model="other")) is OK
    for name in ("style", "style:latest"):
        with pytest.raises(NoSuchModel):
            await router.answer(engine_request(model=name))


def test_a_name_that_an_operator_gave_to_an_adapter_is_no_other_models() -> None:
    router = routing(pool_of(TableBackend("s", models=["a"])))
    assert router.resolve("style").id == "a"
    router.reserve_adapter("style")
    for name in ("style", "style:latest"):
        with pytest.raises(NoSuchModel):
            router.resolve(name)
    assert router.resolve("other").id == "a"


async def test_a_backend_that_serves_any_name_is_the_last_choice() -> None:
    router = routing(*two_pools(), pool_of(TableBackend("any", models=["x"], serves_any=True), name="third"))
    request = engine_request(model="whatever")
    assert await router.answer(request) is OK
    assert (request.receipt.pool, request.receipt.reason, request.public_model) == ("third", "default", "x")


@pytest.mark.parametrize(
    ("backends", "asked", "kind", "text"),
    [
        ([], "m", Kind.UNAVAILABLE, "No backend is configured. Set BACKENDS or NOVITA_API_KEY."),
        ([], "", Kind.UNAVAILABLE, "No backend is configured. Set BACKENDS or NOVITA_API_KEY."),
        (
            [TableBackend("e0", models=[], is_unknown=True), TableBackend("e1")],
            "x",
            Kind.UNAVAILABLE,
            "No backend that was reached serves 'x'; not reached yet: e0.",
        ),
        (
            [TableBackend("e0", models=[], is_unknown=True)],
            "",
            Kind.UNAVAILABLE,
            "No backend available; not reached yet: e0.",
        ),
        (
            [TableBackend("e0", models=["alpha", "beta"])],
            "alpa",
            Kind.NO_SUCH_MODEL,
            "The model 'alpa' does not exist here. Did you mean 'alpha'? Known: alpha, beta.",
        ),
        (
            [TableBackend("e0", models=[f"m{n:02}" for n in range(22)])],
            "x",
            Kind.NO_SUCH_MODEL,
            f"The model 'x' does not exist here. Known: {', '.join(f'm{n:02}' for n in range(20))} and 2 more.",
        ),
    ],
)
async def test_a_name_without_a_route_is_an_error(
    backends: list[TableBackend], asked: str, kind: Kind, text: str
) -> None:
    router = routing(pool_of(*backends))
    with pytest.raises(ApplianceError) as caught:
        await router.answer(engine_request(model=asked))
    assert (caught.value.kind, caught.value.message) == (kind, text)


def test_a_route_is_remembered_until_something_changes() -> None:
    one = TableBackend("one", models=["a"])
    router = routing(pool_of(one), model_strict=True)
    assert router.resolve("a").id == "a"
    one.models = [card("b")]
    assert router.resolve("a").id == "a"
    router.refresh()
    assert [known.id for known in router.cards()] == ["b"]
    with pytest.raises(NoSuchModel):
        router.resolve("a")


def test_remembered_routes_are_bounded() -> None:
    router = routing(pool_of(TableBackend("any", serves_any=True)))
    for number in range(MAX_CACHED_ROUTES + 10):
        router.resolve(f"m{number}")
    assert len(router._routes._routes) <= MAX_CACHED_ROUTES


def test_new_settings_bring_new_aliases() -> None:
    router = routing(*two_pools())
    router.apply(EngineSettings(model_aliases=["brief=c"]))
    assert router.resolve("brief").id == "c"
    with pytest.raises(NoSuchModel):
        router.resolve("short")


# ---- stages


def test_a_route_goes_through_the_overflows() -> None:
    first, second = two_pools()
    first.overflow = "second"
    assert [pool.name for pool in routing(first, second)._routes.find("a").stages] == ["first", "second"]


async def test_a_pinned_request_goes_to_that_backend_alone() -> None:
    router = routing(*two_pools())
    request = engine_request(model="b", options=RequestOptions(pin="two"))
    assert await router.answer(request) is OK
    assert (request.receipt.pool, request.receipt.reason) == ("second", "pinned, pinned")
    first = engine_request(model="", options=RequestOptions(pin="two"))
    assert await router.answer(first) is OK
    assert first.wanted_model == "b"  # its first model


@pytest.mark.parametrize(
    ("pin", "model", "error", "text"),
    [
        ("nobody", "a", NotFound, "There is no backend 'nobody'. Known: one, two."),
        ("two", "a", NoSuchModel, "The backend 'two' does not serve the model 'a'. It serves: b, c."),
    ],
)
async def test_what_cannot_be_pinned(pin: str, model: str, error: type[ApplianceError], text: str) -> None:
    router = routing(*two_pools())
    with pytest.raises(error) as caught:
        await router.answer(engine_request(model=model, options=RequestOptions(pin=pin)))
    assert caught.value.message == text


# ---- the list of models


def test_of_two_backends_with_one_model_it_is_listed_once() -> None:
    pools = two_pools()
    router = routing(*pools, model_aliases=[])
    assert [one.id for one in router.cards()] == ["a", "b", "c"]
    assert router.cards()[1] is pools[0].backends[0].cards()[1]
