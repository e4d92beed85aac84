"""One attempt at one server.

The outcome of each way to fail, and how its slot is released. The server is a stand-in on loopback.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from appliance.base import jsons
from appliance.base.clock import FakeClock
from appliance.base.errors import ApplianceError, Invalid
from appliance.base.logs import SECRETS
from appliance.base.metrics.registry import Metrics
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits, Unreachable
from appliance.engines.backends.adapters import LoadedAdapter
from appliance.engines.backends.contract import BackendCallbacks
from appliance.engines.backends.server import EngineServer
from appliance.engines.dialects.contract import EngineFacts
from appliance.engines.outcome import Outcome
from appliance.engines.slots import AnySlot
from appliance.engines.types import EngineReply, EngineRequest, ServedModel
from appliance.engines.upstream.exchange import AttemptFailed
from tests.engines.servers import chat, served, server_at
from tests.fakes.engine_server import EngineServer as Engine
from tests.fakes.page_client import PageClient

pytestmark = pytest.mark.timeout(20)


class Scene:
    """A server, the stand-in behind it, and what it reports."""

    def __init__(self, engine: Engine, server: EngineServer, metrics: Metrics, reports: list[str]) -> None:
        self.engine, self.server, self.metrics, self.reports = engine, server, metrics, reports

    async def send(self, request: EngineRequest, *, budget_s: float = 5.0) -> tuple[EngineReply, AnySlot]:
        slot = self.server.take("only_one")
        return await self.server.send(request, slot, budget_s=budget_s), slot

    async def fail(self, request: EngineRequest, *, budget_s: float = 5.0) -> tuple[Exception, AnySlot]:
        slot = self.server.take("only_one")
        with pytest.raises((AttemptFailed, ApplianceError)) as caught:
            await self.server.send(request, slot, budget_s=budget_s)
        return caught.value, slot

    def connections(self) -> tuple[int, int]:
        """How many connections to the engine are in use, and how many are idle."""
        stats = self.server._wire.stats()
        return stats["in_use"], stats["idle"]


Open = Callable[..., Awaitable[Scene]]


@pytest.fixture
async def open_server() -> AsyncIterator[Open]:
    """Open a scene: `await open_server("vllm", **settings)`."""
    wire, engines = ConnectionPool(PoolLimits()), list[Engine]()

    async def make(kind: str = "vllm", **how: Any) -> Scene:
        engine, metrics, reports = Engine(kind), Metrics(), list[str]()
        engines.append(engine)
        await engine.start()
        callbacks = BackendCallbacks(
            lambda: reports.append("capacity"), on_models=lambda: reports.append("models")
        )
        server = server_at(engine.url, kind=kind, wire=wire, metrics=metrics, callbacks=callbacks, **how)
        reports.clear()
        return Scene(engine, server, metrics, reports)

    yield make
    await wire.close()
    for engine in engines:
        await engine.stop()


# ---- responses


@pytest.mark.parametrize(
    ("kind", "asks_for_a_stream"), [("vllm", False), ("llamacpp", True), ("openai", False)]
)
async def test_a_whole_response_releases_the_slot(
    open_server: Open, kind: str, asks_for_a_stream: bool
) -> None:
    """llama.cpp is asked for a stream: a whole response it would go on with when the client has left."""
    scene = await open_server(kind)
    reply, slot = await scene.send(request := chat())
    assert jsons.loads(reply.body or b"")["choices"][0]["message"]["content"] == "Standing in."
    assert scene.engine.asked[0].get("stream", False) is asks_for_a_stream
    assert (slot.is_released, slot.attempt.outcome, scene.server.in_flight) == (True, Outcome.OK, 0)
    receipt = request.receipt
    assert (receipt.backend, receipt.served_model, receipt.endpoint) == ("e0", "tiny", scene.engine.url)
    assert scene.reports == ["capacity"]


async def test_a_stream_holds_its_slot_until_it_ends(open_server: Open) -> None:
    scene = await open_server()
    reply, slot = await scene.send(chat(stream=True))
    assert (slot.is_released, scene.server.in_flight, scene.reports) == (False, 1, [])
    assert reply.events is not None
    pieces = [piece async for piece in reply.events]
    assert b"[DONE]" in pieces[-1]
    assert (slot.attempt.outcome, scene.server.in_flight, scene.reports) == (Outcome.OK, 0, ["capacity"])


@pytest.mark.parametrize("taken", [0, 1])
async def test_closing_a_stream_releases_slot_and_connection(open_server: Open, taken: int) -> None:
    scene = await open_server()
    scene.engine.token_s = 0.05
    reply, slot = await scene.send(chat(stream=True))
    assert (reply.events is not None, scene.connections()) == (True, (1, 0))
    assert reply.events is not None
    for _ in range(taken):
        await anext(reply.events)
    await reply.events.aclose()
    await reply.events.aclose()
    assert (slot.attempt.outcome, scene.server.in_flight) == (Outcome.CLIENT_LEFT, 0)
    assert (scene.reports, scene.connections()) == (["capacity"], (0, 0))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_complete_response_returns_its_connection(open_server: Open, stream: bool) -> None:
    scene = await open_server()
    reply, _ = await scene.send(chat(stream=stream))
    if reply.events is not None:
        assert [piece async for piece in reply.events]
        await reply.events.aclose()
    assert (scene.reports, scene.connections()) == (["capacity"], (0, 1))


@pytest.mark.parametrize(
    ("kind", "stream", "fault"),
    [
        ("vllm", False, "hang"),  # before the head
        ("vllm", True, "hang"),
        ("vllm", True, "hang_after_head"),  # before the first event
        ("llamacpp", False, "hang_after_head"),  # while a stream is gathered
    ],
)
async def test_a_cancelled_attempt_releases_slot_and_connection(
    open_server: Open, kind: str, stream: bool, fault: str
) -> None:
    scene = await open_server(kind)
    scene.engine.faults = [fault]
    slot = scene.server.take("only_one")
    sending = asyncio.create_task(scene.server.send(chat(stream=stream), slot, budget_s=5.0))
    async with asyncio.timeout(5):
        while not (scene.engine.asked and (fault == "hang" or slot.attempt.status)):
            await asyncio.sleep(0.005)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert (slot.attempt.outcome, scene.server.in_flight) == (Outcome.CANCELLED, 0)
    assert (scene.reports, scene.connections()) == (["capacity"], (0, 0))
    assert (dict(scene.server.stats.errors), scene.server.state.breaker.failures_in_a_row) == ({}, 0)


async def test_an_attempt_cancelled_while_it_connects_releases_its_slot() -> None:
    is_connecting = asyncio.Event()

    class Wire(ConnectionPool):
        async def send(self, *_: Any, **__: Any) -> Any:
            is_connecting.set()
            await asyncio.Event().wait()

    server = server_at(wire=Wire(PoolLimits()), breaker_failures=1, breaker_rest_s=10)
    server.take("only_one").release(Outcome.STATUS, status=500)
    server.state.breaker.open_until_s = 0.0  # half open: the next request is the probe
    slot = server.take("only_one")
    sending = asyncio.create_task(server.send(chat(), slot, budget_s=5.0))
    await is_connecting.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert (slot.attempt.outcome, server.in_flight) == (Outcome.CANCELLED, 0)
    assert not server.state.breaker.is_probing  # another request may be the probe


# ---- failures


@pytest.mark.parametrize(
    ("fault", "outcome", "failures_in_a_row"),
    [
        ("status_429", Outcome.FULL, 0),
        ("status_500", Outcome.ENGINE_ERROR, 0),
        ("status_502", Outcome.STATUS, 1),
        ("invalid_response", Outcome.INVALID_RESPONSE, 1),
        ("context", Outcome.CONTEXT, 0),
        ("refuse", Outcome.FIRST_BYTE, 1),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_byte_lets_another_try(
    open_server: Open, fault: str, outcome: Outcome, failures_in_a_row: int, stream: bool
) -> None:
    scene = await open_server()
    scene.engine.faults = [fault] * 2  # a connection that breaks without a byte is replaced once
    failure, slot = await scene.fail(chat(stream=stream))
    assert isinstance(failure, AttemptFailed)
    assert (failure.outcome, slot.attempt.outcome, slot.is_released) == (outcome, outcome, True)
    assert scene.server.state.breaker.failures_in_a_row == failures_in_a_row
    assert sum(scene.server.stats.errors.values()) == 1


@pytest.mark.parametrize(
    ("fault", "settings", "outcome"),
    [
        ("hang", {"upstream_first_byte_timeout_s": 0.05}, Outcome.FIRST_BYTE),
        ("hang_after_head", {"upstream_idle_timeout_s": 0.05}, Outcome.IDLE),
    ],
)
async def test_a_silent_server_is_given_up(
    open_server: Open, fault: str, settings: dict[str, float], outcome: Outcome
) -> None:
    scene = await open_server(**settings)
    scene.engine.faults = [fault]
    failure, _ = await scene.fail(chat(stream=True))
    assert isinstance(failure, AttemptFailed)
    assert failure.outcome is outcome


async def test_the_budget_limits_a_whole_response(open_server: Open) -> None:
    scene = await open_server()
    scene.engine.faults = ["hang"]
    failure, _ = await scene.fail(chat(), budget_s=0.05)
    assert isinstance(failure, AttemptFailed)
    assert failure.outcome in {Outcome.FIRST_BYTE, Outcome.TOTAL}


async def test_a_refused_connection_takes_the_server_down(open_server: Open) -> None:
    scene = await open_server()
    await scene.engine.stop()
    failure, _ = await scene.fail(chat())
    assert isinstance(failure, AttemptFailed)
    assert (failure.outcome, failure.was_sent) == (Outcome.CONNECT, False)
    assert not scene.server.state.health.is_ready


async def test_the_clients_own_fault_says_nothing_against_the_server(open_server: Open) -> None:
    scene = await open_server()
    scene.engine.faults = ["status_400"]
    failure, slot = await scene.fail(chat())
    assert isinstance(failure, Invalid)
    assert (slot.attempt.outcome, scene.server.state.breaker.failures_in_a_row) == (Outcome.REFUSED, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_500_for_the_clients_own_fault_is_refused(open_server: Open, stream: bool) -> None:
    scene = await open_server()
    scene.server.state.breaker.record_failure(0)
    scene.engine.faults = ["says_500 Failed to parse tools: Missing tool type: 5"]
    failure, slot = await scene.fail(chat(stream=stream))
    assert isinstance(failure, Invalid)
    assert (failure.message, failure.param) == ("Failed to parse tools: Missing tool type: 5", "tools")
    assert (slot.attempt.outcome, slot.attempt.status) == (Outcome.REFUSED, 500)
    assert scene.server.state.breaker.failures_in_a_row == 1  # neither a failure nor a success
    assert not scene.server.state.probe_due.is_set()


async def test_an_unknown_error_has_the_server_probed_and_can_be_confirmed(open_server: Open) -> None:
    scene = await open_server(breaker_failures=2)
    for _ in range(3):
        scene.engine.faults = ["status_500"]
        failure, _ = await scene.fail(chat())
        assert isinstance(failure, AttemptFailed)
        assert failure.on_confirmed is not None
    assert (scene.server.state.probe_due.is_set(), scene.server.state.breaker.failures_in_a_row) == (True, 0)
    failure.on_confirmed()
    failure.on_confirmed()
    assert scene.server.state.breaker.open_until_s is not None


async def test_an_error_event_counts_as_the_status_that_it_names(open_server: Open) -> None:
    scene = await open_server("llamacpp")
    scene.engine.faults = ["event_500"]
    _, slot = await scene.fail(chat())
    assert (slot.attempt.status, slot.attempt.label) == (200, "status_500")
    assert dict(scene.server.stats.errors) == {"status_500": 1}


async def test_a_stream_that_breaks_off_is_an_error_of_the_server(open_server: Open) -> None:
    scene = await open_server()
    scene.engine.faults = ["cut"]
    reply, slot = await scene.send(chat(stream=True))
    assert reply.events is not None
    with pytest.raises(ApplianceError):
        async for _ in reply.events:
            pass
    await reply.events.aclose()
    assert (slot.attempt.outcome, scene.server.state.breaker.failures_in_a_row) == (Outcome.CUT_OFF, 1)


# ---- slots


async def test_the_request_after_an_open_circuit_is_its_probe() -> None:
    server = server_at(clock=(clock := FakeClock()), breaker_failures=1, breaker_rest_s=10)
    server.take("only_one").release(Outcome.STATUS, status=500)
    clock.advance(10)
    server.take("only_one")
    assert server.state.breaker.is_probing


@pytest.mark.parametrize(("outcome", "is_probe_due"), [(Outcome.OK, False), (Outcome.STATUS, True)])
async def test_an_uncounted_slot_only_asks_for_a_probe(outcome: Outcome, is_probe_due: bool) -> None:
    server = server_at()
    slot = server.uncounted_slot()
    assert server.in_flight == 0
    slot.release(outcome)
    assert (server.state.breaker.failures_in_a_row, server.member.total) == (0, 0)
    assert server.state.probe_due.is_set() is is_probe_due


async def test_slots_carry_the_servers_address_and_key() -> None:
    server = server_at("http://127.0.0.1:9", spec={"api_key": "sk_of_the_server"})
    slot = server.take("only_one")
    assert (slot.url, slot.headers) == ("http://127.0.0.1:9", {"Authorization": "Bearer sk_of_the_server"})
    assert "sk_of_the_server" not in SECRETS.redact("the key is sk_of_the_server")


# ---- latencies


@pytest.mark.parametrize(
    ("kind", "note", "measures"),
    [
        ("openai", "ok", True),
        ("vllm", "ok", False),
        ("vllm", "off", True),
        ("vllm", "/metrics answered 500", False),
    ],
)
async def test_response_times_are_taken_where_the_engine_takes_none(
    kind: str, note: str, measures: bool
) -> None:
    server = server_at(kind=kind)
    server.state.update_load(None, None, note)
    assert server.measures_latencies is measures


async def test_response_times_reach_the_metrics(open_server: Open) -> None:
    scene = await open_server("openai")
    reply, _ = await scene.send(chat(stream=True))
    assert reply.events is not None
    async for _ in reply.events:
        pass
    assert [(backend, model) for backend, model, _ in scene.metrics.latencies] == [("e0", "tiny")]


# ---- adapters


async def test_an_adapter_that_was_unloaded_meanwhile_is_missing(open_server: Open) -> None:
    scene = await open_server()
    scene.server.models.adapters.declare(frozenset({"sql"}))
    failure, slot = await scene.fail(chat("sql"))
    assert isinstance(failure, AttemptFailed)
    assert (failure.outcome, slot.attempt.outcome) == (Outcome.ADAPTER_MISSING, Outcome.ADAPTER_MISSING)
    assert failure.error is not None
    assert "'sql' is declared" in failure.error.message


async def test_an_adapter_that_the_body_names_is_asked_for_first(open_server: Open) -> None:
    """llama.cpp lets its base model answer where it does not have the adapter."""
    scene = await open_server("llamacpp")
    adapter = served("sql", parent="tiny", extra=(("lora", [{"id": 7, "scale": 1.0}]),))
    scene.server.state.update_facts(EngineFacts({"tiny": served("tiny"), "sql": adapter}))
    scene.server.models.adapters.declare(frozenset({"sql"}))
    scene.server.models.adapters.add("sql", LoadedAdapter(adapter, "sql", True))
    scene.server.state.refresh_models()
    scene.server.client = PageClient({"/lora-adapters": (200, b"[]")})
    failure, _ = await scene.fail(chat("sql"))
    assert isinstance(failure, AttemptFailed)
    assert (failure.outcome, scene.engine.asked) == (Outcome.ADAPTER_MISSING, [])
    assert scene.server.find_model("sql") is None


async def test_a_server_that_cannot_say_what_it_has_fails_the_attempt(open_server: Open) -> None:
    scene = await open_server("llamacpp")
    adapter = served("sql", parent="tiny", extra=(("lora", [{"id": 7, "scale": 1.0}]),))
    scene.server.state.update_facts(EngineFacts({"tiny": served("tiny"), "sql": adapter}))
    scene.server.client = PageClient(
        {"/lora-adapters": Unreachable("refused", phase="connect", was_sent=False)}
    )
    failure, _ = await scene.fail(chat("sql"))
    assert isinstance(failure, AttemptFailed)
    assert (failure.outcome, scene.engine.asked) == (Outcome.CONNECT, [])


async def test_an_engines_404_for_a_declared_adapter_takes_it_out(open_server: Open) -> None:
    scene = await open_server()
    adapter = served("sql", parent="tiny")
    scene.server.models.adapters.declare(frozenset({"sql"}))
    scene.server.models.adapters.add("sql", LoadedAdapter(adapter, "sql", True))
    scene.server.state.refresh_models()
    scene.engine.faults = ["status_404"]
    failure, _ = await scene.fail(chat("sql"))
    assert isinstance(failure, AttemptFailed)
    assert (failure.outcome, scene.server.find_model("sql")) == (Outcome.ADAPTER_MISSING, None)
    assert scene.server.models.adapters._in_use == {}


# ---- what it shows


async def test_its_state_shows_health_load_and_circuit() -> None:
    server = server_at(kind="llamacpp", spec={"cost": 2.0, "weight": 3.0}, breaker_failures=1)
    server.state.update_load(2, 1, "ok")
    state = server.describe()
    assert (state.kind, state.is_up, state.standing, state.detail) == ("llamacpp", True, "ready", "")
    assert (state.running, state.waiting, state.limit, state.weight, state.cost) == (2, 1, 4, 3.0, 2.0)
    server.take("only_one").release(Outcome.STATUS, status=502)
    state = server.describe()
    assert (state.standing, state.breaker, state.is_up, state.errors) == (
        "circuit_open",
        "open",
        False,
        (("status_502", 1),),
    )
    assert state.detail == "circuit open after failures, retrying in 15 s"
    assert state.endpoints == (
        {"url": "http://127.0.0.1:1", "rested_s": 15.0, "failed_in_a_row": 1, "last_error": ""},
    )


async def test_its_gauges_are_brought_up_to_date() -> None:
    metrics = Metrics()
    server = server_at(metrics=metrics, breaker_failures=1)
    server.take("only_one").release(Outcome.STATUS, status=500)
    server.measure()
    (family,) = metrics.breaker_open.collect()
    assert [(sample.labels["backend"], sample.value) for sample in family.samples] == [("e0", 1)]


async def test_its_adapters_are_in_the_extras_of_its_page() -> None:
    server = server_at()
    assert (server.engine_extras(0.5).kv_usage, server.engine_extras(None).adapters) == (0.5, None)
    server.state.update_facts(EngineFacts({"tiny": served("tiny"), "sql": served("sql", parent="tiny")}))
    assert server.engine_extras(None).adapters == ("sql",)


# ---- counting tokens


async def test_the_engine_counts_tokens_under_its_own_name_of_the_model() -> None:
    server, pages = server_at(), PageClient().page("/tokenize", 200, {"count": 7})
    server.client = pages
    server.state.update_facts(EngineFacts({"tiny": ServedModel(served("tiny").card, "models/tiny")}))
    assert await server.count_tokens("tiny", {"messages": []}) == 7
    assert pages.commands == [("/tokenize", {"messages": [], "model": "models/tiny"})]


@pytest.mark.parametrize(
    ("kind", "page"),
    [
        ("sglang", (200, {"count": 7})),
        ("vllm", (404, "")),
        ("vllm", Unreachable("gone", phase="connect")),
        ("vllm", TimeoutError()),
    ],
)
async def test_an_engine_that_cannot_count_is_no_failure(kind: str, page: Any) -> None:
    server = server_at(kind=kind)
    server.client = PageClient({"/tokenize": page})
    assert await server.count_tokens("tiny", {"messages": []}) is None
