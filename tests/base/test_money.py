"""Amounts are exact, refusals say what is allowed, costs are rounded up once."""

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.base import jsons
from appliance.base.money import MAX_MUSD, format_dollars, parse_musd, round_up, to_dollars


@pytest.mark.parametrize(
    ("value", "musd"),
    [
        ("0.60", 600_000),
        ("0.000001", 1),
        ("12", 12_000_000),
        ("1.500000000", 1_500_000),
        (3, 3_000_000),
        (0.1, 100_000),
        (0.000001, 1),
        (Decimal("0.25"), 250_000),
        (Decimal("1E+2"), 100_000_000),
        (" 2.5 ", 2_500_000),
        ("+1", 1_000_000),
        ("1000000000", MAX_MUSD),
    ],
)
def test_amounts_are_read_exactly(value: object, musd: int) -> None:
    assert parse_musd(value) == musd


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", "is no amount"),
        ("abc", "'abc' is no amount: write dollars as a decimal number, such as 0.60"),
        ("1e3", "is no amount"),
        ("NaN", "is no amount"),
        (float("nan"), "is no amount"),
        (float("inf"), "is no amount"),
        (1e-30, "is no amount"),
        (Decimal("1E+999999999"), "is no amount"),
        (1e-9, "1e-09 has 9 decimals"),
        (True, "True is no amount"),
        (None, "None is no amount"),
        ([1], "is no amount"),
        ("1,5", "is no amount"),
        ("٣", "is no amount"),
        ("0.0000001", "'0.0000001' has 7 decimals; allowed are at most 6"),
        ("-1", "'-1' is out of range; allowed are 0.00 to 1000000000.00 dollars"),
        ("1000000000.000001", "is out of range"),
        ("9" * 80, "..."),
    ],
)
def test_what_is_no_amount_is_refused(value: object, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        parse_musd(value)


def test_fewer_decimals_and_a_lowest_amount_can_be_asked_for() -> None:
    assert parse_musd("9.99", decimals=2) == 9_990_000
    with pytest.raises(ValueError, match="has 3 decimals; allowed are at most 2"):
        parse_musd("9.999", decimals=2)
    with pytest.raises(ValueError, match="allowed are 0\\.01 to"):
        parse_musd("0", least_musd=10_000)
    assert parse_musd("-5", least_musd=-MAX_MUSD) == -5_000_000


@given(st.integers(-MAX_MUSD, MAX_MUSD))
def test_text_and_json_give_back_the_same_amount(musd: int) -> None:
    assert parse_musd(format_dollars(musd), least_musd=-MAX_MUSD) == musd
    written = jsons.dumps(to_dollars(musd)).decode()
    assert round(Decimal(written) * 1_000_000) == musd
    assert len(f"{Decimal(written):f}".partition(".")[2]) <= 6


@pytest.mark.parametrize(
    ("musd", "text"), [(0, "0.00"), (600_000, "0.60"), (1, "0.000001"), (-1_250_000, "-1.25")]
)
def test_dollars_for_people(musd: int, text: str) -> None:
    assert format_dollars(musd) == text


@pytest.mark.parametrize(
    ("priced", "musd"), [(0, 0), (1, 1), (999_999, 1), (1_000_000, 1), (1_000_001, 2), (600_000 * 5, 3)]
)
def test_costs_are_rounded_up_on_the_sum(priced: int, musd: int) -> None:
    assert round_up(priced) == musd
