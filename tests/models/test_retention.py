"""How long a loaded model stays without requests, as tables."""

from typing import Any

import pytest

from appliance.models.manager.retention import Retention
from tests.models.manager_states import manager_state, model_of, model_state, runner_of

NOW_S = 100.0
IDLE = {"enable_idle_timeout": True, "idle_timeout_sec": 60, "keep_warm_models": 0}


@pytest.mark.parametrize(
    ("model", "runner", "system", "expected"),
    [
        pytest.param({"is_pinned": True}, {"keep_alive_s": 0.0}, {}, None, id="1-pinned-for-ever"),
        pytest.param({}, {"keep_alive_s": 30.0, "idle_since_s": 90.0}, {}, 20.0, id="2-as-a-request-said"),
        pytest.param({}, {"keep_alive_s": 5.0, "idle_since_s": 90.0}, {}, 0.0, id="2-never-negative"),
        pytest.param({}, {"keep_alive_s": -1.0}, {}, None, id="2-negative-is-for-ever"),
        pytest.param({}, {"keep_alive_s": 30.0, "active": 1}, {}, 30.0, id="2-not-while-it-serves"),
        pytest.param({"own_s": 40}, {"idle_since_s": 90.0}, {}, 30.0, id="3-its-own"),
        pytest.param({"own_s": -1}, {"idle_since_s": 1.0}, {}, None, id="3-never"),
        pytest.param(
            {"own_s": 40, "requests": 1},
            {"idle_since_s": 90.0},
            {"keep_warm_models": 1, "enable_idle_timeout": False},
            30.0,
            id="3-before-warm-and-system",
        ),
        pytest.param({"requests": 1}, {}, {"keep_warm_models": 1}, None, id="4-kept-warm"),
        pytest.param({}, {}, {"enable_idle_timeout": False}, None, id="5-no-idle-timeout"),
        pytest.param({}, {"idle_since_s": 70.0}, {}, 30.0, id="6-idle-timeout"),
        pytest.param({}, {"idle_since_s": 10.0}, {}, 0.0, id="6-is-over"),
        pytest.param({}, {"active": 1, "idle_since_s": 10.0}, {}, 60.0, id="6-not-while-it-serves"),
    ],
)
def test_how_long_a_model_stays(
    model: dict[str, Any], runner: dict[str, Any], system: dict[str, Any], expected: float | None
) -> None:
    definition = model_of("a", idle_timeout_s=model.pop("own_s", None))
    one = model_state("a", definition=definition, **model)
    server = runner_of(one, **runner)
    retention = Retention(manager_state(one, **(IDLE | system)))
    assert retention.expires_in_s(server, one, NOW_S) == expected


@pytest.mark.parametrize(
    ("requests", "count", "warm"),
    [
        pytest.param({"a": 1, "b": 9, "c": 5}, 2, {"b", "c"}, id="most-requested"),
        pytest.param({"a": 1, "b": 9, "c": 5}, 0, set(), id="none-wanted"),
        pytest.param({"a": 0, "b": 0, "c": 5}, 3, {"c"}, id="only-those-requested-at-all"),
        pytest.param({"a": 4, "b": 4, "c": 4}, 1, {"a"}, id="of-equals-the-first"),
    ],
)
def test_which_models_are_kept_warm(requests: dict[str, int], count: int, warm: set[str]) -> None:
    models = [model_state(alias, requests=number) for alias, number in requests.items()]
    for serial, one in enumerate(models):
        runner_of(one, serial)
    assert Retention(manager_state(*models, keep_warm_models=count)).warm_models() == warm


def test_only_loaded_models_are_kept_warm() -> None:
    off, stops, loads = (model_state(alias, requests=9) for alias in ("off", "stops", "loads"))
    runner_of(stops, 1, phase="stopping")
    runner_of(loads, 2, phase="loading")
    assert Retention(manager_state(off, stops, loads, keep_warm_models=3)).warm_models() == {"loads"}
