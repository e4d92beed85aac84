"""What is counted of each request, and that nothing of a removed backend stays in the metrics."""

import pytest

from appliance.base.clock import FakeClock
from appliance.base.metrics.registry import Metrics
from appliance.engines.backends.stats import BackendStats
from appliance.engines.outcome import Outcome
from tests.fakes.backend import FakeBackend


class Scene:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.backend = FakeBackend("e0", self.clock)
        self.stats = self.backend.stats


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_ends_a_request_and_counts_what_it_is(outcome: Outcome) -> None:
    scene = Scene()
    slot = scene.backend.take("least_busy")
    assert scene.stats.in_flight == 1
    scene.clock.advance(2.0)
    slot.release(outcome, status=502 if outcome is Outcome.STATUS else None)
    member = scene.stats.member
    assert (scene.stats.in_flight, member.total, slot.attempt.ms) == (0, 1, 2000)
    assert member.last_s == (2.0 if outcome is Outcome.OK else None)
    assert dict(scene.stats.errors) == ({slot.attempt.label: 1} if outcome.is_error else {})


def test_a_slot_is_released_once() -> None:
    scene = Scene()
    slot = scene.backend.take("least_busy")
    slot.release(Outcome.OK)
    slot.release(Outcome.CUT_OFF)
    assert (scene.stats.in_flight, scene.stats.errors, slot.attempt.outcome) == (0, {}, Outcome.OK)


def test_an_uncounted_slot_counts_nothing() -> None:
    scene = Scene()
    slot = scene.backend.uncounted_slot()
    assert (scene.stats.in_flight, scene.stats.member.total) == (0, 0)
    scene.clock.advance(1.0)
    slot.release(Outcome.STATUS, status=500)
    assert (scene.stats.errors, slot.attempt.ms) == ({}, 1000)


def test_a_removed_backend_leaves_no_rows_in_the_metrics() -> None:
    metrics, clock = Metrics(), FakeClock()
    owner = FakeBackend("e0", clock)
    stats = BackendStats("e0", clock=clock, metrics=metrics)
    stats.close_slot(stats.open_slot(owner, "least_busy"), Outcome.FULL)
    rows = [
        sample
        for family in metrics.backend_families
        for metric in family.collect()
        for sample in metric.samples
    ]
    assert any(sample.labels.get("backend") == "e0" for sample in rows)
    stats.remove_metrics()
    rows = [
        sample
        for family in metrics.backend_families
        for metric in family.collect()
        for sample in metric.samples
    ]
    assert not any(sample.labels.get("backend") == "e0" for sample in rows)
