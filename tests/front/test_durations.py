"""Durations in request bodies."""

import math
from typing import Any

import pytest

from appliance.base.errors import Invalid
from appliance.front.pipeline.durations import parse_keep_alive_s


def refusal(call: Any, *arguments: Any) -> Invalid:
    with pytest.raises(Invalid) as caught:
        call(*arguments)
    return caught.value


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0),
        (300, 300),
        (0.5, 0.5),
        (-1, -1),
        (-0.1, -1),
        ("0", 0),
        ("0s", 0),
        ("-0s", 0),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("+10s", 10),
        ("250ms", 0.25),
        ("3us", 3e-6),
        ("3µs", 3e-6),
        ("3μs", 3e-6),
        ("7ns", 7e-9),
        ("-1s", -1),
        ("-5m", -1),
        ("-1", None),
        ("24h0m0s", 86400),
        ("2562047h", 9_223_369_200),
        ("9999999h", -1),
        (10**400, -1),
        (1e300, -1),
        (math.inf, -1),
        ("9" * 400 + "s", -1),
    ],
)
def test_keep_alive_is_parsed_like_a_duration_in_go(value: Any, seconds: float | None) -> None:
    if value == "-1":
        assert refusal(parse_keep_alive_s, value).param == "keep_alive"
    else:
        assert parse_keep_alive_s(value) == (seconds if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    "value", ["", "5", "5 m", "m", "5x", "5m-3s", "1h 30m", "1.2.3s", "ever", True, [5], {"s": 5}, math.nan]
)
def test_an_invalid_keep_alive_is_refused(value: Any) -> None:
    error = refusal(parse_keep_alive_s, value)
    assert error.param == "keep_alive"
    assert "5m" in error.message
