"""Slots given to requests and taken back, without any process."""

from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.models.manager.events import NO_EVENTS
from appliance.models.manager.leases import Leases
from appliance.models.manager.state import ManagerState
from appliance.models.manager.waiters import Lease
from appliance.models.runner.runner import Runner
from appliance.models.status.views import RequestSample
from tests.models.manager_states import manager_state, model_state, runner_of


class Granted:
    """A lease of the model `a`, and everything around it."""

    def __init__(self, *, waited_s: float = 0.0, keep_alive_s: float | None = None, **model: Any) -> None:
        self.clock, self.runs = FakeClock(), 0
        self.model = model_state("a", **model)
        self.runner: Runner = runner_of(self.model, port=8085, keep_alive_s=60.0)
        self.state: ManagerState = manager_state(self.model, clock=self.clock)
        self.leases = Leases(self.state, events=NO_EVENTS, reschedule=self._run)
        self.lease: Lease = self.leases.grant(
            self.runner, self.model, now_s=0.0, waited_s=waited_s, keep_alive_s=keep_alive_s
        )

    def _run(self) -> None:
        self.runs += 1


def test_grant_takes_a_slot() -> None:
    one = Granted()
    assert (one.runner.active, one.runner.idle.is_set(), one.lease.url) == (1, False, "http://127.0.0.1:8085")
    assert one.runner.last_used_at_s == one.model.last_used_at_s == one.clock.now_s()


@pytest.mark.parametrize(("asked_s", "kept_s"), [(None, 60.0), (0.0, 0.0), (-1.0, -1.0)])
def test_grant_keeps_the_stay_unless_the_request_says_another(asked_s: float | None, kept_s: float) -> None:
    assert Granted(keep_alive_s=asked_s).runner.keep_alive_s == kept_s


def test_release_frees_the_slot_once_and_reports_the_request() -> None:
    one = Granted(waited_s=2.0)
    one.clock.advance(3.0)
    for _ in range(2):
        one.lease.release(is_ok=True, prompt_tokens=4, completion_tokens=5)
    assert (one.runner.active, one.runner.idle.is_set(), one.runner.idle_since_s) == (0, True, 3.0)
    assert (one.model.processed, one.runs) == (1, 1)
    assert list(one.state.samples) == [RequestSample("a", True, 5.0, 4, 5, 2.0, one.clock.now_s())]


def test_successful_request_clears_failures() -> None:
    one = Granted(attempts=2, last_error="no luck")
    one.lease.release(is_ok=True)
    assert (one.model.attempts, one.model.last_error) == (0, "")


def test_failed_request_clears_nothing() -> None:
    one = Granted(attempts=2, last_error="no luck")
    one.lease.release(is_ok=False)
    assert (one.model.attempts, one.model.last_error, one.model.processed) == (2, "no luck", 1)


def test_cancelled_lease_counts_as_no_request() -> None:
    one = Granted(attempts=2)
    one.leases.cancel(one.lease)
    one.lease.release(is_ok=True)
    assert (one.runner.active, one.model.processed, one.model.attempts, one.runs) == (0, 0, 2, 1)
    assert not one.state.samples


def test_release_after_the_model_left_the_table() -> None:
    one = Granted()
    del one.state.models["a"]
    one.lease.release(is_ok=True)
    assert (one.runner.active, one.model.processed, len(one.state.samples)) == (0, 0, 1)


@pytest.mark.parametrize(
    ("load_began_s", "load_s", "waited_s", "waited_for_load_s"),
    [
        (-30.0, 5.0, 0.0, 0.0),  # it was loaded before
        (-30.0, 5.0, 20.0, 0.0),  # it waited for a slot alone
        (-8.0, 5.0, 10.0, 5.0),  # it waited for memory, for the load, and for a slot
        (-8.0, 5.0, 6.0, 3.0),  # it came in the middle of the load
        (0.0, 0.0, 0.0, 0.0),
    ],
)
def test_a_lease_knows_how_long_it_waited_for_the_load(
    load_began_s: float, load_s: float, waited_s: float, waited_for_load_s: float
) -> None:
    one = Granted(waited_s=waited_s)
    one.runner.load_started_s, one.runner.load_s = load_began_s, load_s
    assert one.lease.load_s == waited_for_load_s
