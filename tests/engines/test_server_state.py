"""When a server takes requests.

Every case of its status, its limits, health transitions, slow start, outcomes.
"""

import math
from typing import Any

import pytest

from appliance.base.balancing import Member
from appliance.base.clock import FakeClock
from appliance.engines.backends.contract import BackendCallbacks
from appliance.engines.backends.served_models import ServedModels
from appliance.engines.backends.server_state import ServerState
from appliance.engines.dialects.contract import EngineFacts, EngineHealth
from appliance.engines.outcome import BreakerEffect, Outcome
from appliance.engines.settings import EngineSettings
from appliance.engines.specs import BackendSpec
from appliance.engines.types import BackendStatus, ModelCard, ServedModel

READY, FULL, STARTING, CIRCUIT_OPEN, DOWN, DRAINING = (
    BackendStatus.READY,
    BackendStatus.FULL,
    BackendStatus.STARTING,
    BackendStatus.CIRCUIT_OPEN,
    BackendStatus.DOWN,
    BackendStatus.DRAINING,
)
UP, LOADING, BROKEN = (
    EngineHealth(True),
    EngineHealth(False, True, "loading"),
    EngineHealth(False, False, "500"),
)


class Scene:
    """A server's state that is ready, unless `is_up` is False, with a clock at 100 s; `reported` lists its
    callbacks."""

    def __init__(
        self, *, is_up: bool = True, kind: str = "vllm", max_in_flight: int | None = None, **settings: Any
    ):
        self.clock, self.reported, self.member = FakeClock(), list[str](), Member("e0")
        self.clock.advance(100)
        spec = BackendSpec(url="http://x", name="e0", kind=kind, max_in_flight=max_in_flight)
        self.models = ServedModels(spec, created_s=0)
        self.state = ServerState(
            spec,
            settings=EngineSettings(**settings),
            models=self.models,
            member=self.member,
            clock=self.clock,
            callbacks=BackendCallbacks(
                lambda: self.reported.append("capacity"),
                lambda: self.reported.append("change"),
                lambda: self.reported.append("models"),
            ),
        )
        if is_up:
            self.state.update_health(UP)
            self.reported.clear()

    def status(self, *, after_s: float = 0.0) -> BackendStatus:
        self.clock.advance(after_s)
        return self.state.status(self.clock.monotonic_s())

    def limit(self) -> float:
        return self.state.limit(self.clock.monotonic_s())

    def record(self, *outcomes: Outcome, retry_after_s: float | None = None) -> None:
        for outcome in outcomes:
            self.state.record(outcome, retry_after_s)


# ---- status


def test_a_ready_server_takes_requests() -> None:
    assert Scene().status() is READY


def test_draining_comes_before_everything_else() -> None:
    scene = Scene(is_up=False)
    scene.state.is_draining = True
    assert scene.status() is DRAINING


@pytest.mark.parametrize(
    ("health", "age_s", "status"),
    [
        (None, 0, STARTING),  # never probed, within its grace
        (None, 29.9, STARTING),
        (None, 30, DOWN),
        (BROKEN, 5, STARTING),
        (BROKEN, 40, DOWN),
        (LOADING, 5, STARTING),
        (LOADING, 4000, STARTING),
        (UP, 40, READY),
    ],
)
def test_a_server_that_was_never_ready_is_starting_in_its_grace(
    health: EngineHealth | None, age_s: float, status: BackendStatus
) -> None:
    scene = Scene(is_up=False, backend_startup_grace_s=30)
    if health is not None:
        scene.state.update_health(health)
    assert scene.status(after_s=age_s) is status


@pytest.mark.parametrize(("health", "status"), [(BROKEN, DOWN), (LOADING, STARTING)])
def test_a_server_that_was_ready_has_no_grace(health: EngineHealth, status: BackendStatus) -> None:
    scene = Scene(backend_startup_grace_s=3600)
    scene.state.update_health(health)
    assert scene.status() is status


def test_a_full_server_is_left_alone_as_long_as_it_said() -> None:
    scene = Scene()
    scene.record(Outcome.FULL, retry_after_s=5)
    assert [scene.status(), scene.status(after_s=4.9), scene.status(after_s=0.2)] == [FULL, FULL, READY]


def test_an_open_circuit_lets_one_request_try_after_its_time() -> None:
    scene = Scene(breaker_failures=2, breaker_rest_s=10)
    scene.record(Outcome.STATUS, Outcome.STATUS)
    assert [scene.status(), scene.status(after_s=9.9), scene.status(after_s=0.2)] == [
        CIRCUIT_OPEN,
        CIRCUIT_OPEN,
        READY,
    ]
    assert scene.state.breaker.admit(scene.clock.monotonic_s())
    assert scene.status() is CIRCUIT_OPEN  # the probe is under way
    scene.record(Outcome.OK)
    assert scene.status() is READY


@pytest.mark.parametrize(
    ("active", "running", "waiting", "status"),
    [
        (0, None, None, READY),
        (3, None, None, READY),
        (4, None, None, FULL),
        (0, 4, 0, FULL),  # requests of other clients
        (1, 3, 0, READY),  # one of the three is ours
        (1, 4, 0, FULL),
        (0, 1, 2, READY),
        (0, 0, 3, FULL),  # it makes requests wait
    ],
)
def test_a_server_at_its_limit_is_full(
    active: int, running: float | None, waiting: float | None, status: BackendStatus
) -> None:
    scene = Scene(max_in_flight=4, max_allowed_deferred=3)
    scene.member.active = active
    scene.state.update_load(running, waiting, "ok")
    assert scene.status() is status


def test_stale_numbers_fade_out_of_the_decision() -> None:
    scene = Scene(max_in_flight=4, metrics_cache_ttl_seconds=3)
    scene.state.update_load(6, 0, "ok")
    assert [scene.status(), scene.status(after_s=6), scene.status(after_s=2.1)] == [FULL, FULL, READY]
    assert scene.member.external == pytest.approx(6 * 0.65)


# ---- limit


@pytest.mark.parametrize(
    ("kind", "max_in_flight", "setting", "slots", "limit"),
    [
        ("llamacpp", 7, 3, 2, 7),
        ("llamacpp", None, 3, 2, 3),
        ("llamacpp", None, 0, 2, 2),
        ("llamacpp", None, 0, 0, 4),  # llama.cpp's own default
        ("vllm", None, 0, 0, math.inf),
        ("vllm", None, 3, 0, 3),
        ("auto", None, 0, 0, math.inf),
    ],
)
def test_the_limit_is_the_operators_else_the_engines(
    kind: str, max_in_flight: int | None, setting: int, slots: int, limit: float
) -> None:
    scene = Scene(kind=kind, max_in_flight=max_in_flight, max_allowed_request_queue=setting)
    scene.state.update_facts(EngineFacts({}, slots=slots))
    assert scene.limit() == limit


def test_a_server_that_came_back_starts_slowly() -> None:
    scene = Scene(max_in_flight=10, slow_start_s=100)
    scene.state.update_health(BROKEN)
    scene.state.update_health(UP)
    seen = []
    for after_s in (0, 50, 49, 1):
        status = scene.status(after_s=after_s)
        seen.append((status, scene.member.ramp, scene.limit()))
    assert seen == [
        (READY, 0.1, 1),
        (READY, 0.5, 5),
        (READY, 0.99, 10),
        (READY, 1.0, 10),
    ]


def test_without_a_slow_start_it_has_its_whole_limit_at_once() -> None:
    scene = Scene(max_in_flight=10, slow_start_s=0)
    scene.state.update_health(BROKEN)
    scene.state.update_health(UP)
    assert (scene.limit(), scene.member.ramp) == (10, 1.0)


# ---- health


@pytest.mark.parametrize(
    ("former", "health", "went_down", "is_lost", "reported"),
    [
        (None, UP, False, False, ["change", "capacity"]),
        (None, LOADING, False, False, []),
        (UP, UP, False, False, []),
        (UP, BROKEN, True, True, ["change", "capacity"]),
        (UP, LOADING, True, False, ["change", "capacity"]),  # it was restarted
        (BROKEN, LOADING, False, False, []),
    ],
)
def test_health_transitions(
    former: EngineHealth | None, health: EngineHealth, went_down: bool, is_lost: bool, reported: list[str]
) -> None:
    scene = Scene(is_up=False)
    if former is not None:
        scene.state.update_health(former)
        scene.reported.clear()
    assert scene.state.update_health(health) is went_down
    assert (scene.state.is_lost, scene.reported) == (is_lost, reported)


def test_a_server_that_comes_back_has_a_closed_circuit() -> None:
    scene = Scene(breaker_failures=1)
    scene.record(Outcome.STATUS)
    scene.state.update_health(BROKEN)
    scene.state.update_health(UP)
    assert (scene.state.breaker.open_until_s, scene.state.is_lost) == (None, False)


def test_a_timeout_counts_only_when_it_happens_again() -> None:
    scene, slow = Scene(), EngineHealth(False, detail="/health did not answer in time")
    assert not scene.state.update_health(slow, is_timeout=True)
    assert scene.status() is READY
    scene.state.update_health(UP)  # between two timeouts the count starts anew
    scene.state.update_health(slow, is_timeout=True)
    assert scene.status() is READY
    assert scene.state.update_health(slow, is_timeout=True)
    assert scene.status() is DOWN


def test_a_lost_server_forgets_its_adapters() -> None:
    scene = Scene()
    scene.state.update_facts(EngineFacts({}))
    scene.state.update_health(BROKEN)
    assert not scene.models.is_current


# ---- outcomes


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_does_to_the_circuit_what_it_says(outcome: Outcome) -> None:
    scene = Scene(breaker_failures=1)
    scene.record(outcome)
    is_failure = outcome.breaker is BreakerEffect.FAILED
    assert (scene.state.breaker.open_until_s is not None) is is_failure
    is_doubtful = is_failure or outcome.breaker is BreakerEffect.UNDECIDED or outcome is Outcome.NOT_FOUND
    assert scene.state.probe_due.is_set() is is_doubtful


def test_a_refused_connection_takes_a_server_down_at_once() -> None:
    scene = Scene()
    scene.record(Outcome.CONNECT)
    assert (scene.status(), scene.state.health.detail) == (DOWN, "connections are refused")


def test_a_failures_retry_after_opens_the_circuit_at_once() -> None:
    scene = Scene(breaker_failures=3)
    scene.record(Outcome.STATUS, retry_after_s=30)
    assert (scene.status(), scene.status(after_s=30)) == (CIRCUIT_OPEN, READY)


# ---- facts


def test_a_model_that_it_does_not_find_makes_its_models_doubtful() -> None:
    """It may have been started again with another model."""
    scene = Scene()
    scene.state.update_facts(EngineFacts({}))
    scene.record(Outcome.REFUSED)
    assert scene.models.is_current
    scene.record(Outcome.NOT_FOUND)
    assert not scene.models.is_current


def facts(*names: str) -> EngineFacts:
    return EngineFacts({name: ServedModel(ModelCard(name, 0, "vllm", name), name) for name in names})


def test_facts_report_new_models_or_that_they_are_current_again() -> None:
    scene = Scene()
    scene.state.update_facts(facts("a"))
    scene.state.update_facts(facts("a"))
    scene.state.update_health(BROKEN)
    scene.state.update_health(UP)
    scene.reported.clear()
    scene.state.update_facts(facts("a"))
    scene.state.update_facts(facts("b"))
    assert scene.reported == ["change", "models"]


def test_a_missing_adapter_is_taken_out_and_probed_for() -> None:
    scene = Scene()
    scene.state.update_facts(facts("a", "sql"))
    assert not scene.state.report_missing_adapter("other")
    scene.models.adapters.declare(frozenset({"sql"}))
    assert scene.state.report_missing_adapter("sql")
    assert (scene.models.names(), scene.models.is_current) == (("a",), False)
    assert scene.state.probe_due.is_set()


# ---- what is shown


@pytest.mark.parametrize(
    ("status", "detail"),
    [
        (DRAINING, "drained by the operator"),
        (CIRCUIT_OPEN, "circuit open after failures, retrying in 15 s"),
        (FULL, "full"),
        (READY, ""),
    ],
)
def test_the_detail_says_what_keeps_it_from_requests(status: BackendStatus, detail: str) -> None:
    scene = Scene(breaker_failures=1, breaker_rest_s=15)
    scene.record(Outcome.STATUS)
    assert scene.state.detail(status, scene.clock.monotonic_s()) == detail


def test_new_settings_reach_the_circuit_breaker() -> None:
    scene = Scene()
    scene.state.apply(EngineSettings(breaker_failures=1, breaker_rest_s=99))
    scene.record(Outcome.STATUS)
    assert scene.state.breaker.retry_in_s(scene.clock.monotonic_s()) == 99
