"""How much of an engine's own numbers still counts, and for how long a full server is left alone."""

import pytest

from appliance.engines.backends.engine_load import EngineLoad

INTERVAL_S = 3.0  # between two probes


def read_at(
    now_s: float, *, running: float | None = 10, waiting: float | None = 2, own: int = 4
) -> EngineLoad:
    load = EngineLoad()
    load.update(running, waiting, "ok", own=own, now_s=now_s)
    return load


@pytest.mark.parametrize(
    ("running", "waiting", "own", "external"),
    [
        (10, 2, 4, 8),
        (3, 0, 4, 0),  # ours began after the engine counted
        (10, None, 0, 10),
        (None, 2, 0, 2),
        (None, None, 0, 0),
    ],
)
def test_external_requests_are_those_that_are_not_ours(
    running: float | None, waiting: float | None, own: int, external: float
) -> None:
    assert read_at(0, running=running, waiting=waiting, own=own).external(0, INTERVAL_S) == external


@pytest.mark.parametrize(("age_s", "external"), [(0, 8), (6, 8), (9, 4), (12, 0), (100, 0)])
def test_external_requests_fade_once_the_page_is_stale(age_s: float, external: float) -> None:
    assert read_at(50).external(50 + age_s, INTERVAL_S) == pytest.approx(external)


@pytest.mark.parametrize(
    ("waiting", "ended_since", "age_s", "is_queueing"),
    [
        (2, 0, 0, True),
        (2, 1, 0, False),  # one of ours ended: one that waited runs now
        (1, 0, 0, False),
        (None, 0, 0, False),
        (2, 0, 5.9, True),
        (2, 0, 6, False),  # stale
    ],
)
def test_a_server_that_makes_requests_wait_is_seen(
    waiting: float | None, ended_since: int, age_s: float, is_queueing: bool
) -> None:
    load = read_at(0, waiting=waiting)
    load.ended_since = ended_since
    assert load.is_queueing(age_s, INTERVAL_S, 2) is is_queueing


@pytest.mark.parametrize(("retry_after_s", "full_until_s"), [(None, 11), (0, 11), (5, 15), (3600, 70)])
def test_a_full_server_is_left_alone_for_a_while(retry_after_s: float | None, full_until_s: float) -> None:
    load = EngineLoad()
    load.mark_full(10, retry_after_s)
    assert load.full_until_s == full_until_s


def test_numbers_that_are_lost_keep_their_age_but_count_no_more() -> None:
    load = read_at(10)
    load.update(None, None, "/metrics answered 500", own=0, now_s=20)
    assert (load.running, load.waiting, load.note) == (None, None, "/metrics answered 500")
    assert (load.external(20, INTERVAL_S), load.age_s(20)) == (0, 10)


def test_without_a_page_there_is_no_age() -> None:
    assert EngineLoad().age_s(5) is None
