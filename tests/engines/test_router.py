"""How a request reaches the dispatcher and its reply the client; states and strategies."""

import asyncio
from typing import Any

import pytest

from appliance.base import jsons
from appliance.base.errors import ApplianceError, Invalid, NoSuchModel, NotFound, Unavailable
from appliance.engines.backends.adapters import AdapterNotLoaded, adapter_not_loaded
from appliance.engines.outcome import Outcome
from appliance.engines.router import MAX_REROUTES, Router
from appliance.engines.types import BackendStatus, EngineReply, RequestOptions
from appliance.engines.upstream.attempt import AttemptFailed
from tests.engines.routing import Adapters, routing, two_pools
from tests.engines.scripted import OK, TableBackend, card, engine_request, pool_of

# ---- models that the servers have not told of yet


@pytest.mark.parametrize("learns", [True, False])
async def test_servers_are_asked_before_a_model_is_unknown(learns: bool) -> None:
    backend, asked = TableBackend("e0"), list[int]()
    router = routing(pool_of(backend), model_strict=True)

    async def learn() -> None:
        asked.append(1)
        if learns:
            backend.models.append(card("new"))
            router.refresh()

    router.connect_learner(learn)
    assert await router.answer(engine_request(model="m")) is OK
    assert asked == []
    if learns:
        assert await router.answer(engine_request(model="new")) is OK
        assert backend.asked == ["m", "new"]
    else:
        with pytest.raises(NoSuchModel):
            await router.answer(engine_request(model="new"))
    assert asked == [1]


@pytest.mark.parametrize("learns", [True, False])
async def test_a_model_that_its_server_does_not_know_any_more_is_routed_again(learns: bool) -> None:
    """Where there is one model, it answers any name: by the name that its server has now."""
    unknown = NoSuchModel("The model 'm' does not exist.", param="model")
    backend = TableBackend("e0", AttemptFailed(Outcome.NOT_FOUND, status=404, error=unknown), models=["m"])
    router = routing(pool_of(backend))

    async def learn() -> None:
        if learns:
            backend.models[:] = [card("new")]
            router.refresh()

    router.connect_learner(learn)
    if learns:
        assert await router.answer(engine_request(model="new")) is OK
        assert backend.asked == ["m", "new"]
    else:
        with pytest.raises(NoSuchModel):
            await router.answer(engine_request(model="new"))
        assert backend.asked == ["m"]


async def test_a_model_that_left_the_table_is_not_answered_by_another() -> None:
    backend = TableBackend("e0", NoSuchModel("The model 'm' was removed from the table.", param="model"))
    router = routing(pool_of(backend))

    async def learn() -> None:
        backend.models[:] = [card("other")]
        router.refresh()

    router.connect_learner(learn)
    with pytest.raises(NoSuchModel, match="removed from the table"):
        await router.answer(engine_request(model="m"))
    assert backend.asked == ["m"]


# ---- adapters that are being loaded, or were lost


class Late(TableBackend):
    """Has no adapter until `load` is called."""

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
    router.notify_changed()  # another change: it continues to wait
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


class Losing(TableBackend):
    """Loses the adapter while a request for it is on its way."""

    adapters: Adapters
    router: Router

    def status(self, now_s: float) -> BackendStatus:
        if self.models:
            self.models = []
            self.adapters.absent.add("lost")
            self.router.refresh()
        return BackendStatus.DOWN


async def test_an_adapter_lost_on_the_way_is_said_to_be_lost() -> None:
    backend, adapters = Losing("e0", models=["lost"]), Adapters()
    backend.adapters, backend.router = adapters, routing(pool_of(backend), adapters=adapters)
    with pytest.raises(AdapterNotLoaded):
        await backend.router.answer(engine_request(model="lost"))


async def test_a_request_goes_back_only_so_often() -> None:
    backend = TableBackend("e0", *[adapter_not_loaded("lost", "again")] * 20, models=["lost"])
    with pytest.raises(AdapterNotLoaded):
        await routing(pool_of(backend)).answer(engine_request(model="lost"))
    assert len(backend.asked) == MAX_REROUTES + 1


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


async def test_new_pools_serve_waiting_requests() -> None:
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


def test_backends_report_to_the_router() -> None:
    router = routing(*two_pools())
    version = router.changed.value
    router.callbacks.on_capacity()
    assert router.changed.value == version
    router.callbacks.on_change()
    router.callbacks.on_models()
    assert router.changed.value == version + 2


def test_a_request_has_status_headers_while_it_waits_for_a_model() -> None:
    request = engine_request()
    assert request.status_headers() == []
    request.wait_headers = lambda: [("X-Queue-Position", "2")]
    assert request.status_headers() == [("X-Queue-Position", "2")]


# ---- counting tokens


class Counting(TableBackend):
    """Counts a prompt's tokens; None = it cannot."""

    counts: int | None = 7

    async def count_tokens(self, model: str, body: dict[str, Any]) -> int | None:
        self.asked.append(model)
        return self.counts


class CannotCount(Counting):
    counts = None


DOWN = BackendStatus.DOWN


@pytest.mark.parametrize(
    ("backends", "tokens", "counted_by"),
    [
        ([Counting("e0"), Counting("e1")], 7, "e0"),
        ([Counting("e0", status=DOWN), Counting("e1", status=BackendStatus.FULL)], 7, "e1"),
        ([CannotCount("e0"), Counting("e1")], 7, "e1"),
        ([TableBackend("e0"), Counting("e1")], 7, "e1"),
        ([TableBackend("e0"), CannotCount("e1"), Counting("e2", status=DOWN)], None, ""),
        ([Counting("e0", models=["other"]), TableBackend("e1")], None, ""),
    ],
)
async def test_tokens_are_counted_by_the_first_backend_that_can(
    backends: list[TableBackend], tokens: int | None, counted_by: str
) -> None:
    request = engine_request(model="m")
    assert await routing(pool_of(*backends)).count_tokens(request) == tokens
    assert (request.receipt.backend, request.receipt.public_model) == (counted_by, "m")
    assert request.receipt.prompt_tokens is None  # nothing was processed


async def test_tokens_are_counted_by_the_backend_that_is_pinned() -> None:
    request = engine_request(model="m", options=RequestOptions(pin="e1"))
    assert await routing(pool_of(Counting("e0"), Counting("e1"))).count_tokens(request) == 7
    assert request.receipt.backend == "e1"


async def test_tokens_of_an_unknown_model_are_not_counted() -> None:
    with pytest.raises(NoSuchModel):
        await routing(pool_of(Counting("e0")), model_strict=True).count_tokens(engine_request(model="other"))
