"""Single values out of a metrics page, without parsing it."""

import pytest

from appliance.engines.metrics.values import BadMetrics, read_gauge

RUNNING = ("vllm:num_requests_running",)


@pytest.mark.parametrize(
    ("page", "value"),
    [
        (b"# TYPE x gauge\nvllm:num_requests_running 3.0\n", 3),
        (b"vllm_num_requests_running 3\n", 3),
        (b"vllm:num_requests_running_total 3\n", 3),
        (b'vllm:num_requests_running{engine="0"} 1.0\nvllm:num_requests_running{engine="1"} 2.0\n', 3),
        (b"vllm:num_requests_running_more 3\n", None),
        (b"", None),
    ],
)
def test_gauges_are_found_in_every_spelling(page: bytes, value: float | None) -> None:
    assert read_gauge(page, RUNNING) == value


def test_the_first_name_that_the_page_has_counts() -> None:
    page = b"vllm:new 3\nvllm:old 5\n"
    assert read_gauge(page, ("vllm:new", "vllm:old")) == 3
    assert read_gauge(page, ("vllm:newest", "vllm:old")) == 5


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("NaN", "b'NaN', not a finite number >= 0"),
        ("+Inf", "b'\\+Inf', not a finite number >= 0"),
        ("-1", "b'-1', not a finite number >= 0"),
        ("many", "b'many', not a number"),
    ],
)
def test_impossible_values_are_refused(value: str, text: str) -> None:
    with pytest.raises(BadMetrics, match=f"vllm:num_requests_running is {text}"):
        read_gauge(f"vllm:num_requests_running {value}\n".encode(), RUNNING)
