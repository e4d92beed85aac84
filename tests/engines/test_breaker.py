"""When a circuit opens, who may try it again, and what closes it."""

import pytest

from appliance.engines.backends.breaker import Breaker


def failing(*at_s: float, **how: float) -> Breaker:
    breaker = Breaker(max_failures=int(how.get("max_failures", 3)), open_s=10)
    for now_s in at_s:
        breaker.record_failure(now_s)
    return breaker


@pytest.mark.parametrize(
    ("failures_at_s", "now_s", "state", "retry_in_s"),
    [
        ((), 0, "closed", 0),
        ((1, 2), 3, "closed", 0),
        ((1, 2, 3), 4, "open", 9),
        ((1, 2, 3), 12.9, "open", pytest.approx(0.1)),
        ((1, 2, 3), 13, "half_open", 0),
    ],
)
def test_failures_in_a_row_open_the_circuit(
    failures_at_s: tuple[float, ...], now_s: float, state: str, retry_in_s: float
) -> None:
    breaker = failing(*failures_at_s)
    assert (breaker.state(now_s), breaker.retry_in_s(now_s)) == (state, retry_in_s)
    assert breaker.admit(now_s) is (state != "open")


def test_a_success_in_between_starts_the_count_anew() -> None:
    breaker = failing(1, 2)
    breaker.record_success()
    breaker.record_failure(3)
    breaker.record_failure(4)
    assert (breaker.state(5), breaker.failures_in_a_row) == ("closed", 2)


def test_exactly_one_request_probes_a_half_open_circuit() -> None:
    breaker = failing(1, 2, 3)
    assert [breaker.admit(13), breaker.admit(13), breaker.admit(100)] == [True, False, False]


@pytest.mark.parametrize(
    ("verdict", "state", "admits"),
    [
        ("record_success", "closed", True),
        ("record_failure", "open", False),
        ("release_probe", "half_open", True),
    ],
)
def test_the_probe_decides(verdict: str, state: str, admits: bool) -> None:
    breaker = failing(1, 2, 3)
    breaker.admit(13)
    if verdict == "record_failure":
        breaker.record_failure(14)
    else:
        getattr(breaker, verdict)()
    assert breaker.state(14) == state
    assert breaker.admit(14) is admits


@pytest.mark.parametrize(("retry_after_s", "retry_in_s"), [(30, 30), (0, 0), (86_400, 600)])
def test_retry_after_opens_at_once_for_ten_minutes_at_most(retry_after_s: float, retry_in_s: float) -> None:
    breaker = failing()
    breaker.record_failure(0, retry_after_s=retry_after_s)
    assert breaker.retry_in_s(0) == retry_in_s


# ---- errors whose fault is undecided


@pytest.mark.parametrize(
    ("max_failures", "flows", "state"),
    [
        (3, ["a", "a", "a", "a", "a"], "closed"),  # one client alone, however often
        (3, ["a", "b", "a", "b"], "closed"),
        (3, ["a", "b", "c"], "open"),
        (1, ["a", "a"], "closed"),
        (1, ["a", "b"], "open"),
        (3, ["", "", ""], "closed"),
    ],
)
def test_undecided_errors_open_the_circuit_only_from_different_clients(
    max_failures: int, flows: list[str], state: str
) -> None:
    breaker = failing(max_failures=max_failures)
    for flow in flows:
        breaker.record_undecided(1, flow)
    assert breaker.state(2) == state


def test_a_success_clears_undecided_errors() -> None:
    breaker = failing()
    breaker.record_undecided(1, "a")
    breaker.record_undecided(1, "b")
    breaker.record_success()
    breaker.record_undecided(1, "c")
    assert breaker.state(2) == "closed"


def test_an_undecided_probe_lets_another_request_probe() -> None:
    breaker = failing(1, 2, 3)
    assert breaker.admit(13)
    breaker.record_undecided(14, "a")
    assert (breaker.state(14), breaker.admit(14)) == ("half_open", True)
