"""What a model's name leads to, and what becomes of a request on its way to the dispatcher and back."""

import asyncio
from typing import Any

import pytest

from appliance.base import jsons
from appliance.base.clock import FakeClock
from appliance.base.errors import ApplianceError, Invalid, Kind, NoSuchModel, NotFound, Unavailable
from appliance.base.metrics.registry import Metrics
from appliance.engines.backends.adapters import AdapterNotLoaded, adapter_not_loaded
from appliance.engines.pool import Pool
from appliance.engines.router import MAX_RETURNS, Router
from appliance.engines.routes import MAX_CACHED_ROUTES
from appliance.engines.settings import EngineSettings
from appliance.engines.types import BackendStatus, EngineReply, RequestOptions
from tests.engines.scripted import OK, TableBackend, card, engine_request, pool_of

ALIASES = ["short=b", "lost-short=lost", "plain alias of the hosted API"]


class Adapters:
    """Declared adapters that no backend has, by name."""

    def __init__(self, *absent: str, is_expected: bool = False) -> None:
        self.absent, self.is_expected = set(absent), is_expected

    def find_absent(self, name: str) -> AdapterNotLoaded | None:
        if name not in self.absent:
            return None
        error = adapter_not_loaded(name, "loading")
        error.is_expected = self.is_expected
        return error


def routing(*pools: Pool, adapters: Adapters | None = None, **settings: Any) -> Router:
    clock = FakeClock()
    router = Router(EngineSettings(**({"model_aliases": ALIASES} | settings)), clock=clock, metrics=Metrics())
    if adapters is not None:
        router.connect_adapters(adapters)
    router.set_pools(list(pools))
    return router


def two_pools() -> tuple[Pool, Pool]:
    return (
        pool_of(TableBackend("one", models=["a", card("b", aliases=("bee",))]), name="first"),
        pool_of(TableBackend("two", models=["b", "c"]), name="second"),
    )


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
async def test_a_declared_adapter_is_answered_by_nobody_else(name: str) -> None:
    anything = TableBackend("any", serves_any=True)  # case 6 would take it
    router = routing(pool_of(anything), adapters=Adapters("lost"))
    with pytest.raises(AdapterNotLoaded, match="'lost' is declared"):
        await router.answer(engine_request(model=name))
    assert anything.asked == []


async def test_a_backend_that_answers_any_name_is_the_last_resort() -> None:
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
async def test_a_name_that_leads_nowhere(
    backends: list[TableBackend], asked: str, kind: Kind, text: str
) -> None:
    router = routing(pool_of(*backends))
    with pytest.raises(ApplianceError) as caught:
        await router.answer(engine_request(model=asked))
    assert (caught.value.kind, caught.value.message) == (kind, text)


def test_a_route_is_remembered_until_something_changes() -> None:
    one = TableBackend("one", models=["a"])
    router = routing(pool_of(one))
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


@pytest.mark.parametrize(
    ("overflows", "stages"),
    [
        ({}, ["p0"]),
        ({"p0": "p1"}, ["p0", "p1"]),
        ({"p0": "p1", "p1": "p2"}, ["p0", "p1", "p2"]),
        ({"p0": "p1", "p1": "p0"}, ["p0", "p1"]),  # a circle ends
        ({"p0": "nowhere"}, ["p0"]),
    ],
)
def test_a_route_goes_through_the_overflows_in_order(overflows: dict[str, str], stages: list[str]) -> None:
    pools = [pool_of(TableBackend(f"e{n}"), name=f"p{n}") for n in range(3)]
    for pool in pools:
        pool.overflow = overflows.get(pool.name, "")
    router = routing(*pools)
    assert [pool.name for pool in router._routes.find("m").stages] == stages


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


# ---- adapters that are being loaded, or were lost


class Late(TableBackend):
    """Has no adapter until it is told so."""

    def load(self, router: Router, adapters: Adapters) -> None:
        self.models.append(card("lost", parent="m"))
        adapters.absent.clear()
        router.refresh()


async def test_a_request_waits_for_an_adapter_that_is_being_loaded() -> None:
    adapters, backend = Adapters("lost", is_expected=True), Late("e0")
    router = routing(pool_of(backend), adapters=adapters)
    request = engine_request(model="lost")
    task = asyncio.get_running_loop().create_task(router.answer(request))
    for _ in range(5):
        await asyncio.sleep(0)
    router.notify_changed()  # something else: it goes on waiting
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    router._clock.advance(3)  # type: ignore[attr-defined]
    backend.load(router, adapters)
    assert await task is OK
    assert (backend.asked, request.receipt.queue_ms) == (["lost"], 3000)


async def test_an_adapter_that_does_not_come_in_time_is_an_error() -> None:
    router = routing(
        pool_of(TableBackend("e0")), adapters=Adapters("lost", is_expected=True), queue_timeout_s=0.01
    )
    with pytest.raises(AdapterNotLoaded):
        await router.answer(engine_request(model="lost"))


async def test_a_lost_adapter_sends_the_request_back_to_its_route() -> None:
    lost = adapter_not_loaded("lost", "e0 has lost it")
    backend = TableBackend("e0", lost, models=["lost"])
    assert await routing(pool_of(backend)).answer(engine_request(model="lost")) is OK
    assert backend.asked == ["lost", "lost"]


async def test_a_request_goes_back_only_so_often() -> None:
    backend = TableBackend("e0", *[adapter_not_loaded("lost", "again")] * 20, models=["lost"])
    with pytest.raises(AdapterNotLoaded):
        await routing(pool_of(backend)).answer(engine_request(model="lost"))
    assert len(backend.asked) == MAX_RETURNS + 1


# ---- one piece where a stream was asked for

WHOLE = jsons.dumps(
    {
        "object": "chat.completion",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "x" * 10}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
)


class OnePiece(TableBackend):
    reply = EngineReply(body=WHOLE)

    async def send(self, *args: Any, **more: Any) -> EngineReply:
        await super().send(*args, **more)
        return self.reply


async def pieces_of(request: Any, **settings: Any) -> list[bytes]:
    reply = await routing(pool_of(OnePiece("e0")), **settings).answer(request)
    assert reply.events is not None
    return [piece async for piece in reply.events]


@pytest.mark.parametrize(("streaming", "texts"), [("auto", ["xxxx", "xxxx", "xx"]), ("relay", ["x" * 10])])
async def test_a_response_in_one_piece_is_cut_for_a_stream(streaming: str, texts: list[str]) -> None:
    pieces = await pieces_of(
        engine_request(stream=True), upstream_streaming=streaming, stream_chunk_size=4, stream_delay_ms=0
    )
    chunks = [jsons.loads(piece[6:]) for piece in pieces[:-1]]
    assert [text for chunk in chunks if (text := chunk["choices"][0]["delta"].get("content"))] == texts
    assert pieces[-1] == b"data: [DONE]\n\n"
    assert not any(chunk.get("usage") for chunk in chunks)


async def test_usage_is_in_the_stream_if_it_was_asked_for() -> None:
    body = {"messages": [], "stream_options": {"include_usage": True}}
    pieces = await pieces_of(engine_request(body, stream=True), stream_delay_ms=0)
    assert jsons.loads(pieces[-2][6:])["usage"]["total_tokens"] == 3


async def test_an_error_status_stays_in_one_piece() -> None:
    backend = OnePiece("e0")
    backend.reply = EngineReply(status=422, body=b"{}")
    reply = await routing(pool_of(backend)).answer(engine_request(stream=True))
    assert (reply.status, reply.body, reply.events) == (422, b"{}", None)


# ---- states and strategy


def test_states_and_gauges_are_those_of_the_backends() -> None:
    pools = two_pools()
    router = routing(*pools)
    assert [state.name for state in router.states()] == ["one", "two"]
    assert router.state("two").name == "two"
    router.measure()
    assert all(backend.measured for pool in pools for backend in pool.backends)  # type: ignore[attr-defined]
    with pytest.raises(NotFound, match=r"no backend 'x'\. Known: one, two"):
        router.state("x")
    with pytest.raises(NotFound, match="Known: none"):
        routing().state("x")


def test_of_two_backends_with_one_model_it_is_listed_once() -> None:
    pools = two_pools()
    assert [one.id for one in routing(*pools).cards()] == ["a", "b", "c"]
    assert routing(*pools).cards()[1] is pools[0].backends[0].cards()[1]


@pytest.mark.parametrize(
    ("pool", "now"),
    [("", ["least_connections", "least_connections"]), ("second", ["round_robin", "least_connections"])],
)
def test_a_strategy_is_set_for_one_pool_or_for_all(pool: str, now: list[str]) -> None:
    router = routing(*two_pools())
    version = router.changed.value
    router.set_strategy("least_connections", pool)
    assert [one.balancer.strategy for one in router.pools] == now
    assert router.strategy == now[0]
    assert router.changed.value == version + 1


def test_without_pools_the_strategy_is_the_configured_one() -> None:
    assert routing(lb_strategy="round_robin").strategy == "round_robin"


@pytest.mark.parametrize(
    ("strategy", "pool", "error", "text"),
    [
        ("best", "", Invalid, "Invalid strategy 'best'; there are "),
        ("round_robin", "third", NotFound, "There is no pool 'third'. Known: first, second."),
    ],
)
def test_what_is_no_strategy(strategy: str, pool: str, error: type[ApplianceError], text: str) -> None:
    with pytest.raises(error) as caught:
        routing(*two_pools()).set_strategy(strategy, pool)
    assert caught.value.message.startswith(text)


async def test_new_pools_serve_those_who_wait() -> None:
    router = routing(pool_of(TableBackend("e0", status=BackendStatus.FULL)))
    pool = router.pools[0]
    task = asyncio.get_running_loop().create_task(router.answer(engine_request()))
    for _ in range(3):
        await asyncio.sleep(0)
    pool.backends.append(TableBackend("e1"))  # type: ignore[arg-type]
    router.set_pools([pool])
    assert await task is OK


def test_only_demo_backends_make_a_demo() -> None:
    demo, real = TableBackend("demo", kind="demo"), TableBackend("e0")
    assert (routing(pool_of(demo)).is_demo, routing(pool_of(demo, real)).is_demo) == (True, False)


async def test_the_whole_time_is_bounded_by_the_backend_timeout() -> None:
    router = routing(pool_of(TableBackend("e0", status=BackendStatus.FULL)), backend_timeout_seconds=0.01)
    with pytest.raises(Unavailable, match="within 0 seconds"):
        await router.answer(engine_request())
