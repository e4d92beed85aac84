"""The backend of models that run here.

The real manager over a stand-in for processes, and servers on loopback that fail on purpose.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.base import jsons
from appliance.base.errors import ApplianceError, Invalid, NoSuchModel
from appliance.base.metrics.registry import Metrics
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits
from appliance.engines.backends import managed as module
from appliance.engines.backends.adapters import AdapterNotLoaded, LoadedAdapter
from appliance.engines.backends.managed import ManagedBackend, served_adapters
from appliance.engines.outcome import Outcome
from appliance.engines.receipts import Receipt
from appliance.engines.settings import EngineSettings
from appliance.engines.slots import Slot
from appliance.engines.types import (
    EngineReply,
    EngineRequest,
    ModelCard,
    Operation,
    RequestOptions,
    ServedModel,
)
from appliance.engines.upstream.attempt import AttemptFailed
from appliance.models.manager.errors import InsufficientMemory, ModelFailed
from appliance.models.table.catalogue import LoraAdapter, Model
from appliance.models.table.entries import Params
from appliance.models.table.sampling import RequestSettings
from tests.fakes.engine_server import REPLY, EngineServer
from tests.models.manager_harness import Make, ManagerHarness, settle, until
from tests.models.test_folder import put

pytestmark = pytest.mark.timeout(20)


class Scene:
    """A harness, the backend over it, and a server for each load."""

    def __init__(self, harness: ManagerHarness, backend: ManagedBackend, engines: list[EngineServer]) -> None:
        self.harness, self.backend, self.engines = harness, backend, engines
        self.slot: Slot | None = None

    def request(
        self, alias: str = "a", *, stream: bool = False, options: RequestOptions | None = None, **more: Any
    ) -> EngineRequest:
        body = {"model": alias, "messages": [{"role": "user", "content": "hello"}], "stream": stream, **more}
        return EngineRequest(
            Operation.CHAT,
            body,
            jsons.dumps(body),
            alias,
            stream,
            Receipt("r1"),
            options or RequestOptions(),
            public_model=alias,
            wanted_model=alias,
        )

    async def send(self, request: EngineRequest) -> EngineReply:
        self.slot = self.backend.take("only_one")
        return await self.backend.send(request, self.slot, budget_s=5.0)

    def sending(self, request: EngineRequest) -> "asyncio.Task[EngineReply]":
        task = asyncio.create_task(self.send(request))
        self.harness.asked.append(task)
        return task

    def busy(self) -> int:
        return sum(runner.active for runner in self.harness.manager.runners())

    def all_is_released(self) -> bool:
        return (self.busy(), self.backend.in_flight, self.slot is None or self.slot.is_released) == (
            0,
            0,
            True,
        )


Open = Callable[..., Awaitable[Scene]]


@pytest.fixture
async def open_backend(open_manager: Make, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    """Open a backend: `await open_backend("a", servers=2, **harness)`; each load gets the next of the
    servers."""
    monkeypatch.setattr(module, "EXIT_WAIT_S", 0.02)
    wire, engines = ConnectionPool(PoolLimits()), list[EngineServer]()

    async def make(*aliases: str, servers: int = 1, **how: Any) -> Scene:
        harness = await open_manager(*aliases, **how)
        for _ in range(servers):
            engines.append(EngineServer(models=aliases))
            await engines[-1].start()
            harness.loader.engines.append(engines[-1].port)
        return Scene(
            harness,
            ManagedBackend(
                harness.manager, settings=EngineSettings(), wire=wire, clock=harness.clock, metrics=Metrics()
            ),
            engines,
        )

    yield make
    await wire.close()
    for engine in engines:
        await engine.stop()


# ---- answers


async def test_a_request_takes_a_slot_and_releases_it(open_backend: Open) -> None:
    at = await open_backend("a")
    task = at.sending(request := at.request())
    await at.harness.loaded("a")
    reply = await task
    assert jsons.loads(reply.body or b"")["choices"][0]["message"]["content"] == "".join(REPLY)
    assert at.all_is_released()
    sample = at.harness.manager.telemetry()[0]
    assert (sample.alias, sample.is_ok, at.harness.manager.queues()[0].total_processed) == ("a", True, 1)
    assert (request.receipt.served_model, request.receipt.backend, len(request.receipt.attempts)) == (
        "a",
        "models",
        1,
    )


async def test_request_for_a_model_without_settings_keeps_its_bytes(open_backend: Open) -> None:
    at = await open_backend("a", "b", servers=2)
    manager = at.harness.manager
    settings = RequestSettings({"seed": 1}, {"top_k": 2}, "Be short.")
    models = dict(manager.catalogue.models)
    models["b"] = replace(models["b"], requests=settings, aliases=("best",))
    manager.apply(replace(manager.catalogue, models=models))
    plain = at.request("a")
    raw = plain.raw
    for request in (plain, changed := at.request("best")):
        task = at.sending(request)
        await at.harness.loaded("b" if request is changed else "a")
        await task
    assert plain.raw is raw
    assert not {"seed", "top_k"} & set(at.engines[0].asked[-1])
    assert changed.wanted_model == changed.receipt.served_model == "b"
    sent = at.engines[1].asked[-1]
    assert (sent["model"], sent["seed"], sent["top_k"]) == ("b", 1, 2)
    assert sent["messages"][0] == {"role": "system", "content": "Be short."}
    assert at.all_is_released()


async def test_a_stream_keeps_its_slot_until_it_ends(open_backend: Open) -> None:
    at = await open_backend("a", slots=1)
    await at.harness.have("a")
    reply = await at.send(at.request(stream=True))
    assert reply.events is not None
    assert (at.busy(), at.backend.in_flight) == (1, 1)
    pieces = [piece async for piece in reply.events]
    assert b"[DONE]" in pieces[-1]
    assert at.all_is_released()


async def test_a_client_that_leaves_mid_stream_frees_the_slot(open_backend: Open) -> None:
    at = await open_backend("a", slots=1)
    await at.harness.have("a")
    at.engines[0].token_s = 0.05
    reply = await at.send(at.request(stream=True))
    events: Any = reply.events
    await anext(events)
    await events.aclose()
    assert at.all_is_released()
    assert at.harness.manager.telemetry()[0].is_ok  # that it left says nothing against the model


async def test_a_client_that_leaves_during_a_load_frees_everything(open_backend: Open) -> None:
    at = await open_backend("a")
    task = at.sending(at.request())
    await settle()
    task.cancel()
    await settle()
    assert at.all_is_released()
    assert at.harness.manager.queues()[0].queue_length == 0


async def test_a_client_that_leaves_before_the_response_frees_the_slot(open_backend: Open) -> None:
    at = await open_backend("a", slots=1)
    await at.harness.have("a")
    at.engines[0].faults = ["hang"]
    task = at.sending(at.request())
    while not at.engines[0].asked:
        await asyncio.sleep(0.005)
    assert (at.busy(), at.backend.in_flight) == (1, 1)
    task.cancel()
    await settle()
    assert at.all_is_released()
    assert at.harness.manager.telemetry()[0].is_ok


async def test_a_stream_that_is_never_read_frees_the_slot(open_backend: Open) -> None:
    at = await open_backend("a", slots=1)
    await at.harness.have("a")
    reply = await at.send(at.request(stream=True))
    assert (reply.events is not None, at.busy()) == (True, 1)
    await reply.events.aclose()  # type: ignore[union-attr]
    assert at.all_is_released()


async def test_keep_alive_of_a_request_is_passed_on(open_backend: Open) -> None:
    at = await open_backend("a")
    await at.harness.have("a")
    await at.send(at.request(options=RequestOptions(keep_alive_s=0)))
    await settle()
    assert at.harness.status("a") == "off"


# ---- failures


@pytest.mark.parametrize("fault", ["refuse", "status_502", "status_503", "invalid_response"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_byte_is_tried_again(
    open_backend: Open, fault: str, stream: bool
) -> None:
    at = await open_backend("a", slots=1)
    await at.harness.have("a")
    at.engines[0].faults = [fault, fault]
    reply = await at.send(request := at.request(stream=stream))
    if reply.events is not None:
        assert b"[DONE]" in [piece async for piece in reply.events][-1]
    assert at.all_is_released()
    assert [attempt.label for attempt in request.receipt.attempts][2:] == ["ok"]
    assert len(at.engines[0].asked) == 3


async def test_after_three_failures_the_last_one_is_raised(open_backend: Open) -> None:
    at = await open_backend("a", slots=1)
    await at.harness.have("a")
    at.engines[0].faults = ["status_502"] * 5
    with pytest.raises(AttemptFailed) as caught:
        await at.send(request := at.request())
    assert (caught.value.status, len(request.receipt.attempts), at.engines[0].faults) == (
        502,
        3,
        ["status_502"] * 2,
    )
    assert at.all_is_released()
    assert [sample.is_ok for sample in at.harness.manager.telemetry()] == [False] * 3


@pytest.mark.parametrize("stream", [False, True])
async def test_a_silent_server_is_asked_once_and_replaced_after_two(open_backend: Open, stream: bool) -> None:
    """Its /health is fine, so that no probe finds it."""
    at = await open_backend("a", "b", servers=3, request_timeout_sec=0.1)
    await at.harness.have("a", "b")
    silent, other = at.engines[0], at.engines[1]
    silent.faults = ["hang"] * 9
    for number in (1, 2):
        with pytest.raises(AttemptFailed) as caught:
            await at.send(at.request(stream=stream))
        assert caught.value.is_timeout
        assert len(silent.asked) == number
        await settle()
        assert at.harness.loader.stopped == (["a"] if number == 2 else [])
    await at.harness.loaded("a")  # without a further request
    assert at.harness.statuses() == {"a": "ready", "b": "ready"}
    reply = await at.send(at.request())
    assert reply.status == 200
    assert (len(silent.asked), len(other.asked), len(at.engines[2].asked)) == (2, 0, 1)
    assert at.all_is_released()


async def test_an_answer_in_between_keeps_a_slow_server(open_backend: Open) -> None:
    at = await open_backend("a", request_timeout_sec=0.1)
    await at.harness.have("a")
    for _ in range(3):
        at.engines[0].faults = ["hang"]
        with pytest.raises(AttemptFailed):
            await at.send(at.request())
        assert (await at.send(at.request())).status == 200
    assert at.harness.loader.stopped == []


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unknown_error_is_tried_once_more(open_backend: Open, stream: bool) -> None:
    at = await open_backend("a", slots=1)
    await at.harness.have("a")
    at.engines[0].faults = ["status_500"]
    reply = await at.send(request := at.request(stream=stream))
    if reply.events is not None:
        await reply.events.aclose()
    assert [attempt.label for attempt in request.receipt.attempts][:1] == ["status_500"]
    assert len(request.receipt.attempts) == 2


async def test_the_same_error_twice_is_not_tried_again(open_backend: Open) -> None:
    at = await open_backend("a", slots=1)
    await at.harness.have("a")
    at.engines[0].faults = ["status_500"] * 3
    with pytest.raises(AttemptFailed) as caught:
        await at.send(request := at.request())
    assert (caught.value.sentence, len(request.receipt.attempts)) == ("on purpose: status_500", 2)
    assert at.all_is_released()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (
            "says_500 Failed to parse tools: Missing tool type: 5",
            "Failed to parse tools: Missing tool type: 5",
        ),
        (
            "says_500 image input is not supported - hint: mmproj",
            "image input is not supported - hint: mmproj",
        ),
        ("status_400", "on purpose: status_400"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_the_callers_fault_is_tried_once(
    open_backend: Open, fault: str, sentence: str, stream: bool
) -> None:
    at = await open_backend("a", slots=1)
    await at.harness.have("a")
    at.engines[0].faults = [fault]
    with pytest.raises(Invalid) as caught:
        await at.send(request := at.request(stream=stream))
    assert (caught.value.message, len(request.receipt.attempts)) == (sentence, 1)
    assert at.all_is_released()


@pytest.mark.parametrize(
    "fault",
    ["says_501 This server does not support embeddings", "says_500 tools param requires --jinja flag"],
)
async def test_what_its_server_was_not_started_for_is_tried_once(open_backend: Open, fault: str) -> None:
    at = await open_backend("a", slots=1)
    await at.harness.have("a")
    at.engines[0].faults = [fault]
    with pytest.raises(AttemptFailed) as caught:
        await at.send(request := at.request())
    assert (caught.value.outcome, len(request.receipt.attempts)) == (Outcome.UNSUPPORTED, 1)
    assert at.all_is_released()


async def test_a_request_whose_server_dies_goes_to_the_next(open_backend: Open) -> None:
    at = await open_backend("a", servers=2, slots=1)
    await at.harness.have("a")
    at.engines[0].faults = ["hang"]
    task = at.sending(at.request())
    while not at.engines[0].asked:
        await asyncio.sleep(0.005)
    at.harness.loader.crash("a")
    await at.engines[0].stop()
    while at.harness.status("a") != "crashed":
        await asyncio.sleep(0.005)
    await at.harness.later(60)
    await at.harness.loaded("a")
    reply = await task
    assert reply.status == 200
    assert len(at.engines[1].asked) == 1
    assert at.all_is_released()


async def test_a_prompt_too_long_is_not_tried_again(open_backend: Open) -> None:
    at = await open_backend("a")
    await at.harness.have("a")
    at.engines[0].faults = ["context"]
    with pytest.raises(AttemptFailed) as caught:
        await at.send(at.request())
    assert caught.value.context == (9000, 4096)
    assert (len(at.engines[0].asked), at.all_is_released()) == (1, True)


async def test_a_bad_request_is_not_tried_again(open_backend: Open) -> None:
    at = await open_backend("a")
    await at.harness.have("a")
    at.engines[0].faults = ["status_400"]
    with pytest.raises((ApplianceError, AttemptFailed)):
        await at.send(at.request())
    assert (len(at.engines[0].asked), at.all_is_released()) == (1, True)
    assert at.harness.manager.telemetry()[0].is_ok  # the model did not fail


async def test_a_stream_that_breaks_off_is_an_error_and_frees_the_slot(open_backend: Open) -> None:
    at = await open_backend("a", slots=1)
    await at.harness.have("a")
    at.engines[0].faults = ["cut"]
    reply = await at.send(at.request(stream=True))
    events: Any = reply.events
    with pytest.raises(ApplianceError):
        async for _ in events:
            pass
    await events.aclose()
    assert at.all_is_released()
    assert not at.harness.manager.telemetry()[0].is_ok


async def test_a_model_that_does_not_fit_is_an_error(open_backend: Open) -> None:
    at = await open_backend("a", memory_mib=600)
    with pytest.raises(InsufficientMemory):
        await at.send(at.request())
    assert at.all_is_released()


async def test_a_model_that_fails_during_a_retry_is_an_error(open_backend: Open) -> None:
    at = await open_backend("a", slots=1, model_load_max_retries=0)
    await at.harness.have("a")
    at.engines[0].faults = ["hang"]
    task = at.sending(at.request())
    while not at.engines[0].asked:
        await asyncio.sleep(0.005)
    at.harness.loader.crash("a", 134)
    while at.harness.status("a") != "failed":
        await asyncio.sleep(0.005)
    await at.engines[0].stop()
    with pytest.raises(ModelFailed, match="it crashed: exited with code 134"):
        await task
    assert at.all_is_released()


# ---- waiting


async def test_a_waiting_request_has_headers_and_only_then(open_backend: Open) -> None:
    at = await open_backend("a", slots=1)
    await at.harness.have("a")
    at.engines[0].token_s = 0.05
    first, second = at.sending(one := at.request()), at.sending(other := at.request())
    await settle()
    assert one.wait_headers is None
    assert other.wait_headers is not None
    assert other.wait_headers() == [
        ("X-Queue-Position", "1"),
        ("X-Model-Status", "ready"),
        ("X-Model-Load-Progress", "100"),
    ]
    await first
    await settle()
    assert other.wait_headers is None  # it is answered now
    await second


async def test_a_request_that_waits_for_a_load_shows_its_progress(open_backend: Open) -> None:
    at = await open_backend("a")
    at.sending(request := at.request())
    await settle()
    assert request.wait_headers is not None
    assert request.wait_headers() == [
        ("X-Queue-Position", "1"),
        ("X-Model-Status", "starting"),
        ("X-Model-Load-Progress", "0"),
        ("X-Model-Expected-In", "0.3"),
    ]


# ---- passthrough


async def test_passthrough_is_given_a_server_and_releases_it(open_backend: Open) -> None:
    at = await open_backend("a", "b", slots=1)
    await at.harness.have("a")
    at.slot = slot = at.backend.take("only_one")
    await at.backend.prepare_passthrough(slot, "a", RequestOptions())
    assert (slot.url, slot.attempt.endpoint, at.busy()) == (at.engines[0].url, at.engines[0].url, 1)
    slot.release(Outcome.PASSED)
    assert at.all_is_released()
    assert at.harness.manager.telemetry()[0].is_ok


async def test_passthrough_without_a_name_needs_a_single_model(open_backend: Open) -> None:
    only = await open_backend("a")
    await only.harness.have("a")
    slot = only.backend.take("only_one")
    await only.backend.prepare_passthrough(slot, None, RequestOptions())
    slot.release(Outcome.CUT_OFF)
    assert not only.harness.manager.telemetry()[0].is_ok
    several = await open_backend("a", "b")
    slot = several.backend.take("only_one")
    with pytest.raises(Invalid, match="There are a, b"):
        await several.backend.prepare_passthrough(slot, None, RequestOptions())
    with pytest.raises(NoSuchModel):
        await several.backend.prepare_passthrough(slot, "c", RequestOptions())
    slot.release(Outcome.CANCELLED)
    assert several.all_is_released()


async def test_passthrough_cannot_name_an_adapter(open_backend: Open) -> None:
    at = await open_backend("a")
    card = ModelCard("sql", 0, "user", "a", parent="a")
    at.backend.adapters.add("sql", LoadedAdapter(ServedModel(card, "a"), "sql", True))
    slot = at.backend.take("only_one")
    with pytest.raises(Invalid, match=r"'sql' is an adapter: .* Here, name its model 'a'"):
        await at.backend.prepare_passthrough(slot, "sql", RequestOptions())
    slot.release(Outcome.CANCELLED)


async def test_passthrough_that_leaves_while_it_waits_frees_all(open_backend: Open) -> None:
    at = await open_backend("a", slots=1)
    at.slot = slot = at.backend.take("only_one")
    preparing = asyncio.create_task(at.backend.prepare_passthrough(slot, "a", RequestOptions()))
    await settle()
    preparing.cancel()
    await settle()
    slot.release(Outcome.CANCELLED)
    await at.harness.loaded("a")
    assert at.all_is_released()


# ---- adapters


def declare(at: Scene, name: str = "sql", base: str = "a") -> None:
    """Let the manager run a model with an adapter, and the backend serve it."""
    at.harness.manager.set_adapters(base, (LoraAdapter(Path(f"/adapters/{name}.gguf"), 0.0, name),))
    definition = at.harness.manager.model_state(base).definition
    adapter = served_adapters(definition, ModelCard(base, 0, "user", base))[name]
    at.backend.adapters.declare(frozenset({name}))
    at.backend.adapters.add(name, LoadedAdapter(adapter, name, True))


async def test_a_request_for_an_adapter_goes_to_its_model(open_backend: Open) -> None:
    at = await open_backend("a", slots=1)
    declare(at)
    await at.harness.have("a")
    await at.send(at.request("sql"))
    (body,) = at.engines[0].asked
    assert (body["model"], body["lora"]) == ("a", [{"id": 0, "scale": 1.0}])
    assert at.all_is_released()


async def test_an_adapter_unloaded_while_a_request_waits_is_an_error(open_backend: Open) -> None:
    at = await open_backend("a", slots=1)
    await at.harness.have("a")  # started without the adapter
    declare(at)
    at.backend.adapters.remove("sql")
    with pytest.raises(AdapterNotLoaded, match="it was unloaded"):
        await at.send(at.request("sql"))
    assert (at.engines[0].asked, at.all_is_released()) == ([], True)


def test_adapters_of_the_table_keep_their_strength() -> None:
    lora = (
        LoraAdapter(Path("/t/table.gguf"), 0.5),
        LoraAdapter(Path("/t/off.gguf"), 0.0),
        LoraAdapter(Path("/t/sql.gguf"), 0.0, "sql"),
    )
    model = Model("a", Path("/t/a.gguf"), Params(), "table", lora=lora)
    served = served_adapters(model, ModelCard("a", 7, "user", "a", context_tokens=512))
    assert list(served) == ["sql"]
    card = served["sql"].card
    assert (card.parent, card.path, card.context_tokens, card.created_s) == ("a", "/t/sql.gguf", 512, 7)
    assert served["sql"].extra == (("lora", [{"id": 0, "scale": 0.5}, {"id": 2, "scale": 1.0}]),)


# ---- what it shows


async def test_its_llama_servers_are_listed_once_they_are_ready(open_backend: Open) -> None:
    at = await open_backend("a", "b")
    assert at.backend.runners() == []
    await at.harness.have("a")
    ((alias, port, server),) = at.backend.runners()
    assert (alias, port, server.kind, server.is_managed) == ("a", at.engines[0].port, "llamacpp", True)
    assert at.backend.runners()[0][2] is server


async def test_its_cards_say_what_the_files_say(open_backend: Open) -> None:
    """A file may be read, or read again, later than the table."""
    scene = await open_backend("a")
    backend, changes = scene.backend, list[int]()
    scene.harness.manager.add_models_callback(lambda: changes.append(1))
    (card,) = backend.cards()
    assert (card.is_text, card.context_tokens) == (True, 3072)
    path = scene.harness.manager.model_state("a").path
    put(path.parent, path.name, general__architecture="bert", bert__pooling_type=1, bert__context_length=512)
    scene.harness.manager.reset("a")
    await until(lambda: changes)
    (card,) = backend.cards()
    assert (card.is_text, card.context_tokens) == (False, 512)
    served = backend.find_model("a")
    assert served is not None
    assert served.card == card


async def test_its_state_says_what_is_loaded_and_what_waits(open_backend: Open) -> None:
    at = await open_backend("a", "b", slots=1)
    await at.harness.have("a")
    at.engines[0].token_s = 0.05
    tasks = [at.sending(at.request()) for _ in range(2)]
    await settle()
    state = at.backend.describe()
    assert (state.detail, state.models, state.in_flight, state.running, state.waiting, state.origin) == (
        "1 of 2 models loaded",
        ("a", "b"),
        2,
        1.0,
        1.0,
        "managed",
    )
    await asyncio.gather(*tasks)
    assert [card.id for card in at.backend.cards()] == ["a", "b"]
    assert at.backend.find_model("c") is None


async def test_nothing_is_kept_of_removed_llama_servers(open_backend: Open) -> None:
    at = await open_backend("a", servers=3)
    for _ in range(3):
        await at.harness.have("a")
        await at.send(at.request())
        await at.harness.manager.eject("a")
    assert at.backend._servers == {}
    assert (at.backend._sent, at.backend._passthrough_leases) == ({}, {})
