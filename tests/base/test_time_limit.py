"""Time limits are read in every form that callers write them, and nothing else passes."""

from typing import Any

import pytest

from appliance.base.errors import Invalid
from appliance.base.time_limit import parse_time_limit_s


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        (0, None),
        ("0s", None),
        (30, 30.0),
        (0.5, 0.5),
        (999_999, 999_999.0),
        (1_000_000, 0.001),
        (30_000_000_000, 30.0),
        ("30", 30.0),
        ("30000000000", 30.0),
        (" 2.5 ", 2.5),
        ("30s", 30.0),
        ("1m30s", 90.0),
        ("500ms", 0.5),
        ("1h", 3600.0),
        ("1500µs", 0.0015),
    ],
)
def test_times_are_read_in_all_forms(value: Any, seconds: float | None) -> None:
    found = parse_time_limit_s(value)
    assert found == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    "value",
    [
        -1,
        "-1s",
        "abc",
        "5x",
        "1s junk",
        True,
        [],
        {},
        float("nan"),
        float("inf"),
        10**30,
        "9" * 100,
        "9999999h",
    ],
)
def test_other_times_are_refused(value: Any) -> None:
    with pytest.raises(Invalid, match="`timeout` must be a time") as refusal:
        parse_time_limit_s(value, name="timeout")
    assert refusal.value.code == "invalid_time_limit"
