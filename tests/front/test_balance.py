"""The addresses about the backends: health, strategy, loads."""

from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.errors import Invalid, NotFound
from appliance.engines.types import BackendState
from appliance.front.balance import BalanceHandlers
from tests.front.requests import json_of, make_request
from tests.front.static_manager import StaticManager, off

NOW_S = 1_800_000_000


class FakeRouter:
    strategy = "least_busy"

    def __init__(self, *states: BackendState) -> None:
        self._states = states

    def states(self) -> tuple[BackendState, ...]:
        return self._states


def handlers(*states: BackendState, chosen: list[str] | None = None) -> BalanceHandlers:
    chosen = [] if chosen is None else chosen
    return BalanceHandlers(FakeRouter(*states), clock=FakeClock(NOW_S), set_strategy=chosen.append)  # type: ignore[arg-type]


UP = BackendState("a", "vllm", True, "", url="http://a:1")
ENDING = StaticManager(off("local"))
ENDING.server_status = "shutting_down"
DOWN = BackendState("b", "vllm", False, "refused", standing="down")


@pytest.mark.parametrize(
    ("states", "status", "available"),
    [
        ((), "degraded", []),
        ((UP,), "ok", ["http://a:1"]),
        ((UP, DOWN), "degraded", ["http://a:1"]),
        ((DOWN,), "degraded", []),
    ],
)
async def test_health_is_ok_while_every_backend_is_up(
    states: tuple[BackendState, ...], status: str, available: list[str]
) -> None:
    response = await handlers(*states).health(make_request())
    body = json_of(response)
    assert (response.status, body["status"], body["available_backends"]) == (200, status, available)
    assert (body["total_backends"], body["timestamp"]) == (len(states), NOW_S)


@pytest.mark.parametrize(
    ("states", "manager", "code", "status"),
    [
        ((UP,), None, 200, "ok"),
        ((UP, DOWN), None, 200, "degraded"),
        ((UP,), ENDING, 503, "degraded"),
    ],
)
async def test_health_without_a_key_is_short_with_the_same_status(
    states: tuple[BackendState, ...], manager: StaticManager | None, code: int, status: str
) -> None:
    group = BalanceHandlers(
        FakeRouter(*states),  # type: ignore[arg-type]
        clock=FakeClock(NOW_S),
        set_strategy=lambda name: None,
        manager=manager,
        may_see_details=lambda headers, peer: "x-api-key" in headers,
    )
    short = await group.health(make_request())
    assert (short.status, json_of(short)) == (code, {"status": status})
    whole = await group.health(make_request(headers={"x-api-key": "k"}))
    assert (whole.status, json_of(whole)["status"], len(json_of(whole)) > 4) == (code, status, True)


@pytest.mark.parametrize(
    ("values", "metrics"),
    [
        ({}, None),
        (
            {"running": 2.0, "data_age_s": 3.0},
            {"timestamp": NOW_S - 3, "requests_processing": 2.0, "requests_deferred": None, "ready": True},
        ),
        (
            {"waiting": 1.0, "standing": "full"},
            {"timestamp": NOW_S, "requests_processing": None, "requests_deferred": 1.0, "ready": False},
        ),
    ],
)
async def test_health_shows_the_engines_load_where_known(values: Any, metrics: Any) -> None:
    state = BackendState("a", "vllm", True, "", **values)
    (row,) = json_of(await handlers(state).health(make_request()))["details"]
    assert (row["metrics"], row["backend"], row["ready"]) == (metrics, "a", state.standing == "ready")


async def test_strategy_is_shown_and_changed() -> None:
    chosen: list[str] = []
    group = handlers(UP, chosen=chosen)
    assert json_of(await group.strategy(make_request())) == {"strategy": "least_busy"}
    changed = json_of(await group.put_strategy(make_request(body={"strategy": "round_robin"})))
    assert (changed["strategy"], chosen) == ("round_robin", ["round_robin"])


@pytest.mark.parametrize("body", [{}, {"strategy": 3}, {"strategy": None}])
async def test_a_strategy_that_is_not_a_string_is_refused(body: Any) -> None:
    with pytest.raises(Invalid, match="`strategy` must be a string") as refused:
        await handlers(UP).put_strategy(make_request(body=body))
    assert refused.value.param == "strategy"


async def test_loads_have_one_row_per_backend() -> None:
    state = BackendState("a", "vllm", True, "", in_flight=2, chosen_total=9, mean_s=1.5, last_used_at_s=0.0)
    body = json_of(await handlers(state, DOWN).loads(make_request()))
    assert (body["strategy"], body["count"], set(body["loads"])) == ("least_busy", 2, {"a", "b"})
    assert body["loads"]["a"] == {
        "instance_id": "a",
        "provider": "vllm",
        "active_connections": 2,
        "total_connections": 9,
        "avg_response_time": 1.5,
        "last_response_time": 0.0,
        "weight": 1.0,
        "last_used": None,
    }
    assert json_of(await handlers(state).load(make_request(query="instance_id=a"))) == body["loads"]["a"]


async def test_a_load_needs_a_known_backend() -> None:
    with pytest.raises(Invalid, match="The query parameter `instance_id` is required"):
        await handlers(UP).load(make_request(query="x=1"))
    with pytest.raises(NotFound, match="There is no backend 'c'") as missing:
        await handlers(UP).load(make_request(query="instance_id=c"))
    assert missing.value.code == "no_such_backend"
