"""Where a model fits and what is unloaded for it, as tables. Sizes are single bytes; what test_scheduler.py shows of GPUs is not repeated."""

from typing import Any

import pytest

from appliance.models.scheduler.fit import (
    Reservation,
    find_devices,
    largest_device_bytes,
    max_available_bytes,
    pick_evicted,
)
from appliance.models.scheduler.state import ModelFacts, ResidentRunner, SchedulerRules, SchedulerState
from appliance.models.status.views import RAM


def resident(serial: int, alias: str, size: int, **how: Any) -> ResidentRunner:
    return ResidentRunner(serial, alias, how.pop("phase", "ready"), memory={RAM: size}, **how)


def state(
    *residents: ResidentRunner, free: int, total: int = 100, max_models: int = 9, margin: int = 0
) -> SchedulerState:
    rules = SchedulerRules(max_models, margin_bytes=margin)
    return SchedulerState((), residents, {}, {RAM: free}, {RAM: total}, rules)


A, B, C = resident(1, "a", 30), resident(2, "b", 20), resident(3, "c", 10)


# ---- find_devices


@pytest.mark.parametrize(
    ("need", "kept", "removed", "fits"),
    [
        pytest.param(10, (), (), True, id="fits-as-it-is"),
        pytest.param(11, (), (), False, id="one-byte-too-large"),
        pytest.param(40, (), (1,), True, id="with-what-another-leaves"),
        pytest.param(10, (Reservation("x", (RAM,), 1),), (), False, id="what-is-reserved-is-not-free"),
        pytest.param(
            10, (Reservation("x", (RAM,), 30, (1,)),), (), True, id="who-leaves-pays-for-the-reservation"
        ),
        pytest.param(11, (Reservation("x", (RAM,), 1, (1,)),), (), False, id="but-its-rest-is-not-free-yet"),
    ],
)
def test_memory_beside_reservations(
    need: int, kept: tuple[Reservation, ...], removed: tuple[int, ...], fits: bool
) -> None:
    devices = find_devices(ModelFacts("z", need), state(A, B, C, free=10), removed=removed, reservations=kept)
    assert devices == ((RAM,) if fits else None)


@pytest.mark.parametrize(
    ("alias", "kept", "removed", "fits"),
    [
        pytest.param("z", (), (), False, id="the-limit-is-reached"),
        pytest.param("z", (), (3,), True, id="one-is-removed"),
        pytest.param("a", (), (), True, id="a-replica-is-no-further-model"),
        pytest.param("z", (Reservation("x", (RAM,), 0, (3,)),), (3,), False, id="its-place-is-reserved"),
        pytest.param("x", (Reservation("x", (RAM,), 0, (3,)),), (3,), True, id="for-this-very-model"),
    ],
)
def test_limit_of_models(
    alias: str, kept: tuple[Reservation, ...], removed: tuple[int, ...], fits: bool
) -> None:
    devices = find_devices(
        ModelFacts(alias, 0), state(A, B, C, free=50, max_models=3), removed=removed, reservations=kept
    )
    assert (devices is not None) is fits


def test_freed_memory_is_never_more_than_a_device_has() -> None:
    assert find_devices(ModelFacts("z", 101), state(A, free=90, total=100), removed=(1,)) is None


# ---- pick_evicted


@pytest.mark.parametrize(
    ("need", "order", "chosen"),
    [
        pytest.param(20, (C, B, A), [3], id="the-first-suffices"),
        pytest.param(25, (C, B, A), [2], id="the-first-is-not-needed-beside-the-second"),
        pytest.param(40, (C, B, A), [3, 2], id="two-together"),
        pytest.param(35, (C, A, B), [1], id="order-is-the-caller's"),
        pytest.param(70, (C, B, A), [3, 2, 1], id="all"),
        pytest.param(71, (C, B, A), None, id="not-even-all"),
        pytest.param(20, (), None, id="no-candidates"),
    ],
)
def test_what_is_unloaded(need: int, order: tuple[ResidentRunner, ...], chosen: list[int] | None) -> None:
    found = pick_evicted(ModelFacts("z", need), state(A, B, C, free=10), order)
    assert (None if found is None else [one.serial for one in found]) == chosen


def test_margin_is_left_free() -> None:
    found = pick_evicted(ModelFacts("z", 20), state(A, B, C, free=10, margin=5), (C, B))
    assert found == [B]


# ---- figures of a refusal


@pytest.mark.parametrize(
    ("residents", "available"),
    [
        pytest.param((), 10, id="what-is-free"),
        pytest.param((A, B), 60, id="with-all-others-unloaded"),
        pytest.param((resident(1, "a", 30, is_pinned=True), B), 30, id="but-not-pinned-ones"),
        pytest.param((resident(1, "a", 95),), 100, id="never-more-than-the-device-has"),
    ],
)
def test_most_that_a_model_could_find(residents: tuple[ResidentRunner, ...], available: int) -> None:
    assert max_available_bytes(ModelFacts("z", 50), state(*residents, free=10)) == available


def test_model_larger_than_each_gpu_could_find_all_of_them() -> None:
    gpus = SchedulerState(
        (), (), {}, {0: 60, 1: 50, RAM: 500}, {0: 80, 1: 80, RAM: 500}, SchedulerRules(margin_bytes=5)
    )
    large, small = ModelFacts("z", 100, on_gpu=True), ModelFacts("z", 70, on_gpu=True)
    assert max_available_bytes(large, gpus) == 5 + 55 + 45
    assert max_available_bytes(small, gpus) == 60
    assert (largest_device_bytes(large, gpus), largest_device_bytes(ModelFacts("z"), gpus)) == (80, 500)
