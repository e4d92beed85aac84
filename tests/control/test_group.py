"""The checks of fields that several calls share."""

import math

import pytest

from appliance.base.errors import Invalid
from appliance.control.calls.group import parse_interval_s, require_in_range, require_text
from appliance.control.v1 import control_pb2 as pb


def test_a_text_must_not_be_empty() -> None:
    assert require_text("x") == "x"
    with pytest.raises(Invalid, match="`id` is required") as refused:
        require_text("", "id")
    assert (refused.value.param, refused.value.code) == ("id", "missing_required_parameter")


@pytest.mark.parametrize("value", [-0.1, 10.5, math.nan, math.inf])
def test_a_number_must_be_in_its_range(value: float) -> None:
    assert require_in_range("n", 10, 0, 10) == 10
    with pytest.raises(Invalid, match="`n` must be from 0 to 10, not") as refused:
        require_in_range("n", value, 0, 10)
    assert (refused.value.param, refused.value.code) == ("n", "out_of_range")


@pytest.mark.parametrize(("interval_s", "expected"), [(0, None), (1, 1), (3600, 3600)])
def test_an_interval_of_zero_means_only_changes(interval_s: float, expected: float | None) -> None:
    assert parse_interval_s(pb.WatchStatusRequest(interval_s=interval_s)) == expected


@pytest.mark.parametrize("interval_s", [0.5, 3601])
def test_an_interval_is_1_to_3600_seconds(interval_s: float) -> None:
    with pytest.raises(Invalid, match="`interval_s` must be from 1 to 3600"):
        parse_interval_s(pb.WatchStatusRequest(interval_s=interval_s))
