"""Times as text, and the clock of tests."""

import pytest

from appliance.base.clock import FakeClock, format_rfc3339


@pytest.mark.parametrize(
    ("at_s", "digits", "text"),
    [
        (0.0, 6, "1970-01-01T00:00:00.000000Z"),
        (1_800_000_000.123456, 6, "2027-01-15T08:00:00.123456Z"),
        (1_800_000_000.123456, 3, "2027-01-15T08:00:00.123Z"),
        (1_800_000_000.9999, 1, "2027-01-15T08:00:00.9Z"),
    ],
)
def test_format_rfc3339(at_s: float, digits: int, text: str) -> None:
    assert format_rfc3339(at_s, fraction_digits=digits) == text


def test_fake_clock_moves_only_when_advanced() -> None:
    clock = FakeClock(at_s=100.0)
    clock.advance(2.5)
    assert (clock.now_s(), clock.monotonic_s()) == (102.5, 2.5)
