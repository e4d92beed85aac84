"""Processes: decisions alone. What they do with real llama-servers is in the journeys."""

import pytest

from appliance.models.process import pause_after


@pytest.mark.parametrize("loads_s", [0.05, 0.3, 1.0, 2.0, 5.0, 30.0, 119.0])
def test_a_ready_model_is_noticed_within_a_tenth_of_its_load_and_a_quarter_second(loads_s):
    at_s = 0.0
    while at_s < loads_s:
        at_s += pause_after(at_s)
    assert at_s - loads_s <= max(0.01, min(0.25, loads_s / 10)) + 1e-9


def test_a_long_load_is_not_looked_at_all_the_time():
    at_s, looks = 0.0, 0
    while at_s < 120.0:
        at_s, looks = at_s + pause_after(at_s), looks + 1
    assert looks < 600
