"""Response times that the appliance measures itself."""

import pytest

from appliance.base.metrics.histogram import PlainHistogram
from appliance.base.metrics.latencies import MAX_ROWS, OTHER_MODEL, Latencies


def test_response_is_counted_once_in_each_histogram_it_informs() -> None:
    latencies = Latencies()
    latencies.add("a", "m", queue_s=0.5, first_s=0.1, whole_s=1.1, tokens=11)
    latencies.add("a", "m", queue_s=0.0, first_s=None, whole_s=2.0, tokens=50)  # in one piece
    latencies.add("a", "m", queue_s=0.0, first_s=0.2, whole_s=0.2, tokens=1)  # no time between tokens
    latencies.add("a", "m", queue_s=0.0, first_s=0.2, whole_s=0.4, tokens=None)
    ((backend, model, row),) = latencies
    assert (backend, model) == ("a", "m")
    assert [sum(times.counts) for times in (row.ttft, row.tpot, row.e2e, row.queue)] == [3, 1, 4, 4]
    # Queue time counts, as with engines that measure it.
    assert row.ttft.total == pytest.approx(0.6 + 0.2 + 0.2)
    assert row.e2e.total == pytest.approx(1.6 + 2.0 + 0.2 + 0.4)
    assert row.tpot.total == pytest.approx(0.1)


def test_value_on_a_bound_is_within_it() -> None:
    times = PlainHistogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.1, 2.0, 3.0):
        times.observe(value)
    assert times.counts == [2, 2, 1]


def test_excess_names_are_one_row_and_removed_backend_is_dropped() -> None:
    latencies = Latencies()
    for number in range(MAX_ROWS + 10):
        latencies.add("a", f"m{number}", queue_s=0, first_s=None, whole_s=1, tokens=None)
    rows = {model: sum(row.e2e.counts) for _, model, row in latencies}
    assert (len(rows), rows[OTHER_MODEL]) == (MAX_ROWS + 1, 10)
    latencies.add("b", "m", queue_s=0, first_s=None, whole_s=1, tokens=None)
    latencies.forget("a")
    assert [(backend, model) for backend, model, _ in latencies] == [("b", OTHER_MODEL)]
