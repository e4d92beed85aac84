"""Slots for passthrough and tunnels: which servers they may use, and the errors when they may not."""

import asyncio
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.errors import ApplianceError, Invalid, NotFound, Unavailable
from appliance.base.metrics.registry import Metrics
from appliance.engines.outcome import Outcome
from appliance.engines.pool import Pool
from appliance.engines.receipts import Receipt
from appliance.engines.router import Router
from appliance.engines.settings import EngineSettings
from appliance.engines.slots import AnySlot
from appliance.engines.types import BackendStatus, ModelCard, RequestOptions, ServedModel
from tests.engines.scripted import TableBackend, card, pool_of

FULL, DOWN = BackendStatus.FULL, BackendStatus.DOWN


class Adapted(TableBackend):
    """Has an adapter that needs more than its name in the body."""

    def find_model(self, model: str) -> ServedModel | None:
        found = super().find_model(model)
        return (
            found if found is None or not found.card.parent else ServedModel(found.card, "m", (("lora", []),))
        )


class Refusing(TableBackend):
    async def prepare_passthrough(self, slot: AnySlot, model: str | None, options: Any) -> None:
        raise Invalid("name a model")


def adapter(name: str = "style") -> ModelCard:
    return card(name, parent="m")


EMBEDDING = card("embed", is_text=False)


def routing(*pools: Pool, **settings: Any) -> Router:
    router = Router(EngineSettings(**settings), clock=FakeClock(), metrics=Metrics())
    router.set_pools(list(pools))
    return router


@pytest.mark.parametrize(
    ("backends", "how", "chosen", "reason"),
    [
        # a server of the default model, never a hosted API and never the demo
        ([TableBackend("h", kind="hosted"), TableBackend("e0")], {}, "e0", "no model named"),
        ([TableBackend("d", kind="demo"), TableBackend("e0")], {}, "e0", "no model named"),
        ([TableBackend("e0"), TableBackend("e1", models=["x"], cost=-1.0)], {}, "e0", "no model named"),
        ([TableBackend("e0", models=[EMBEDDING]), TableBackend("e1")], {}, "e1", "no model named"),
        ([TableBackend("e0", models=[EMBEDDING])], {}, "e0", "no model named"),
        ([TableBackend("e0", models=["m", adapter()])], {"default_model": "style"}, "e0", "no model named"),
        (
            [TableBackend("e0", models=["x"]), TableBackend("e1")],
            {"default_model": "m"},
            "e1",
            "no model named",
        ),
        # any server where none has the default model, or where those do not have the address
        ([TableBackend("h", kind="hosted", models=["x"]), TableBackend("e0")], {}, "e0", "any"),
        ([TableBackend("e0", models=["x"])], {"default_model": "nobody", "model_strict": True}, "e0", "any"),
        ([TableBackend("e0", models=[], is_unknown=True)], {}, "e0", "any"),
        (
            [TableBackend("e0"), TableBackend("e1", models=["x"])],
            {"exclude": {"e0"}, "is_any": True},
            "e1",
            "any",
        ),
        # servers of the model
        ([TableBackend("e0", models=["x"]), TableBackend("e1")], {"model": "m"}, "e1", "model"),
        # not those that had it
        ([TableBackend("e0"), TableBackend("e1")], {"exclude": {"e0"}}, "e1", "no model named"),
        # the pinned one, whatever its state
        ([TableBackend("e0"), TableBackend("e1", status=DOWN)], {"pin": "e1"}, "e1", "pinned, pinned"),
        # a managed model only if no other server has it, or if it is named
        ([TableBackend("models", kind="managed"), TableBackend("e0")], {}, "e0", "no model named"),
        ([TableBackend("models", kind="managed")], {}, "models", "no model named"),
        (
            [TableBackend("models", kind="managed", models=["a"]), TableBackend("e0")],
            {},
            "models",
            "no model named",
        ),
        (
            [TableBackend("models", kind="managed", models=["a"]), TableBackend("e0")],
            {"model": "a"},
            "models",
            "model",
        ),
        # not where an adapter needs more than its name
        (
            [Adapted("e0", models=["m", adapter()]), TableBackend("e1", models=["m", adapter()])],
            {"model": "style"},
            "e1",
            "model",
        ),
    ],
)
async def test_which_server_is_leased(
    backends: list[TableBackend], how: dict[str, Any], chosen: str, reason: str
) -> None:
    given = dict(how)
    options = RequestOptions(pin=given.pop("pin", ""))
    settings = {name: given.pop(name) for name in ("default_model", "model_strict") if name in given}
    router, receipt = routing(pool_of(*backends), **settings), Receipt("r")
    slot = await router.direct.lease(receipt=receipt, options=options, **given)
    assert (slot.backend.name, receipt.backend, receipt.reason) == (chosen, chosen, reason)
    assert receipt.attempts == [slot.attempt]
    assert slot.backend.in_flight == 1
    slot.release(Outcome.PASSED)
    assert slot.backend.in_flight == 0


@pytest.mark.parametrize(
    ("backends", "how", "chosen"),
    [
        # a full one takes queries about itself
        ([TableBackend("e0", status=FULL)], {}, "e0"),
        # the least busy one that is up
        ([TableBackend("e0", status=DOWN), TableBackend("e1")], {}, "e1"),
        # a pinned one whatever its state
        ([TableBackend("e0"), TableBackend("e1", status=DOWN)], {"pin": "e1"}, "e1"),
    ],
)
async def test_an_uncounted_slot_takes_no_capacity(
    backends: list[TableBackend], how: dict[str, Any], chosen: str
) -> None:
    router, receipt = routing(pool_of(*backends)), Receipt("r")
    options = RequestOptions(pin=how.pop("pin", ""))
    slot = await router.direct.lease(receipt=receipt, options=options, is_uncounted=True)
    assert (slot.backend.name, slot.is_uncounted, slot.backend.in_flight) == (chosen, True, 0)


async def test_a_query_without_a_model_is_for_the_default_one() -> None:
    servers = [TableBackend("e0", models=["x"]), TableBackend("e1", models=["m"])]
    router = routing(pool_of(*servers), default_model="m")
    for _ in range(3):
        slot = await router.direct.lease(receipt=Receipt("r"), is_uncounted=True)
        assert (slot.backend.name, slot.is_uncounted) == ("e1", True)


@pytest.mark.parametrize(
    ("backends", "needs"),
    [
        ([TableBackend("models", kind="managed", models=["a", "b"])], True),
        ([TableBackend("models", kind="managed", models=["a", "b"]), TableBackend("h", kind="hosted")], True),
        ([TableBackend("models", kind="managed", models=["a", card("l", parent="a")])], False),
        ([TableBackend("models", kind="managed", models=["a", "b"]), TableBackend("e0")], False),
        ([TableBackend("e0", models=["a", "b"])], False),
    ],
)
def test_no_one_server_answers_for_several_models_that_run_here(
    backends: list[TableBackend], needs: bool
) -> None:
    assert routing(pool_of(*backends)).direct.needs_model() is needs


async def test_an_uncounted_slot_needs_a_server_that_is_up() -> None:
    router = routing(pool_of(TableBackend("e0", status=DOWN)))
    with pytest.raises(Unavailable, match="e0 is down"):
        await router.direct.lease(receipt=Receipt("r"), is_uncounted=True)


async def test_a_full_server_is_not_waited_for_where_that_is_not_wanted() -> None:
    router = routing(pool_of(TableBackend("e0"), TableBackend("e1", models=["x"], status=FULL)))
    how: dict[str, Any] = {"receipt": Receipt("r"), "exclude": {"e0"}, "is_any": True}
    waiting = asyncio.ensure_future(router.direct.lease(**how))
    await asyncio.sleep(0)
    assert (waiting.done(), router.dispatcher.waiting) == (False, 1)
    waiting.cancel()
    with pytest.raises(Unavailable, match="e1 is full"):
        await router.direct.lease(**how, may_wait=False)


async def test_a_query_for_a_managed_model_takes_a_slot() -> None:
    router = routing(pool_of(TableBackend("models", kind="managed")))
    slot = await router.direct.lease(receipt=Receipt("r"), model="m", is_uncounted=True)
    assert not slot.is_uncounted


@pytest.mark.parametrize(
    ("backends", "how", "error", "text"),
    [
        (
            [TableBackend("h", kind="hosted")],
            {},
            Unavailable,
            "No backend here can be reached directly: the model is served by a hosted API.",
        ),
        (
            [TableBackend("h", kind="hosted"), TableBackend("e0")],
            {"pin": "h"},
            NotFound,
            "The backend 'h' cannot be reached directly: it is not a server.",
        ),
        ([TableBackend("e0")], {"pin": "x"}, NotFound, "There is no backend 'x'. Known: e0."),
        ([TableBackend("e0", status=DOWN)], {}, Unavailable, "No backend available: e0 is down."),
        (
            [Adapted("e0", models=["m", adapter()])],
            {"model": "style"},
            Invalid,
            "'style' is an adapter, and this address cannot select it.",
        ),
    ],
)
async def test_what_cannot_be_leased(
    backends: list[TableBackend], how: dict[str, Any], error: type[ApplianceError], text: str
) -> None:
    options = RequestOptions(pin=how.pop("pin", ""))
    with pytest.raises(error) as caught:
        await routing(pool_of(*backends)).direct.lease(receipt=Receipt("r"), options=options, **how)
    assert caught.value.message.startswith(text)


async def test_a_slot_that_cannot_be_prepared_is_released() -> None:
    backend, receipt = Refusing("e0"), Receipt("r")
    with pytest.raises(Invalid, match="name a model"):
        await routing(pool_of(backend)).direct.lease(receipt=receipt)
    assert (backend.in_flight, receipt.attempts) == (0, [])


async def test_only_a_requests_first_lease_adds_to_the_retry_budget() -> None:
    router = routing(pool_of(TableBackend("e0"), TableBackend("e1")))
    before = router.dispatcher.retry_budget.tokens
    await router.direct.lease(receipt=Receipt("r"))
    after = router.dispatcher.retry_budget.tokens
    await router.direct.lease(receipt=Receipt("r"), exclude={"e0"})
    assert (after, router.dispatcher.retry_budget.tokens) == (pytest.approx(before + 0.2), after)


def test_a_retry_elsewhere_is_taken_from_the_budget() -> None:
    router = routing(pool_of(TableBackend("e0")))
    router.dispatcher.retry_budget.tokens = 1.0
    assert [router.direct.may_retry("status_502") for _ in range(2)] == [True, False]


def test_what_can_be_reached_directly() -> None:
    hosted, managed, server = (
        TableBackend(kind, kind=kind, models=[kind]) for kind in ("hosted", "managed", "vllm")
    )
    direct = routing(pool_of(hosted, managed, server)).direct
    assert (direct.server_names(), direct.has_servers()) == (["managed", "vllm"], True)
    assert [direct.is_managed(model) for model in ("managed", "vllm", "")] == [True, False, False]
    assert not routing(pool_of(hosted)).direct.has_servers()
