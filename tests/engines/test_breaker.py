"""When an endpoint is rested."""

from appliance.engines.backends.breaker import Breaker


def test_it_opens_after_failures_in_a_row_and_one_probe_decides() -> None:
    breaker = Breaker(failures=3, rest_s=10)
    for at in (1, 2):
        breaker.failed(at)
        assert breaker.may_try(at)
    breaker.succeeded()
    for at in (3, 4, 5):
        breaker.failed(at)
    assert not breaker.may_try(14.9)
    assert breaker.wait_s(6) == 9
    assert breaker.may_try(15)
    assert not breaker.may_try(15)  # the probe is on its way
    breaker.failed(16)
    assert not breaker.may_try(25)
    assert breaker.may_try(26)
    breaker.succeeded()
    assert breaker.may_try(26)
    assert breaker.may_try(26)


def test_retry_after_rests_at_once_for_ten_minutes_at_most() -> None:
    breaker = Breaker(failures=3, rest_s=10)
    breaker.failed(0, retry_after_s=30)
    assert not breaker.may_try(29)
    assert breaker.may_try(30)
    breaker.failed(30, retry_after_s=86_400)
    assert breaker.wait_s(30) == 600


def test_a_probe_whose_client_left_frees_its_place() -> None:
    breaker = Breaker(failures=1, rest_s=10)
    breaker.failed(0)
    assert breaker.may_try(10)
    breaker.abandoned()
    assert breaker.may_try(10)
