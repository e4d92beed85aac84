"""Windows of spending: what they count, that they only grow, and what resets leave out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.accounts.guardrails import (
    WINDOWS,
    bucket_of,
    limits_of_settings,
    sum_windows,
)
from appliance.accounts.settings import AccountSettings
from appliance.base.errors import Invalid, PaymentRequired
from appliance.storage.database import Database
from tests.accounts.money import NOON_MS, Money

MINUTE = 60_000
NOW = NOON_MS + 4 * MINUTE
SECRET = {"JWT_SECRET": "x1y2" * 10}


@pytest.mark.parametrize(
    ("age_min", "windows"),
    [
        (0, ["5min", "15min", "30min", "60min", "90min", "120min"]),
        (4, ["5min", "15min", "30min", "60min", "90min", "120min"]),
        (11, ["15min", "30min", "60min", "90min", "120min"]),
        (60, ["60min", "90min", "120min"]),
        (100, ["120min"]),
    ],
)
def test_which_windows_count_what_was_spent(age_min: int, windows: list[str]) -> None:
    spent = sum_windows([(bucket_of(NOW - age_min * MINUTE), 7)], {}, NOW)
    assert [name for name in list(WINDOWS)[:6] if spent[name]] == windows
    assert (spent["48h"], spent["72h"]) == (7, 7)


def test_the_seeds_windows_are_all_there() -> None:
    assert list(WINDOWS) == [
        *(f"{n}min" for n in (5, 15, 30, 60, 90, 120, 240, 300, 360, 400, 460, 520, 640, 700, 1440)),
        "48h",
        "72h",
    ]


@given(
    st.lists(st.tuples(st.integers(0, 5000 * MINUTE), st.integers(0, 100)), max_size=30),
    st.integers(0, 300_000),
)
def test_a_window_never_counts_less_than_its_span(spent: list[tuple[int, int]], shift: int) -> None:
    now = NOON_MS + shift
    windows = sum_windows([(bucket_of(now - age), musd) for age, musd in spent], {}, now)
    for name, minutes in WINDOWS.items():
        exact = sum(musd for age, musd in spent if age < minutes * MINUTE)
        wider = sum(musd for age, musd in spent if age <= (minutes + 5) * MINUTE)
        assert exact <= windows[name] <= wider


def test_a_reset_leaves_out_one_windows_past() -> None:
    rows = [(bucket_of(NOW - 20 * MINUTE), 5), (bucket_of(NOW), 3), (bucket_of(NOW + 6 * MINUTE), 2)]
    windows = sum_windows(rows, {"60min": NOW}, NOW + 6 * MINUTE)
    assert (windows["60min"], windows["90min"]) == (2, 10)


def test_limits_come_from_the_settings() -> None:
    environ = {**SECRET, "GUARDRAILS_MAX_5MIN_RATE": "0.5", "GUARDRAILS_MAX_72H_RATE": "10"}
    assert limits_of_settings(AccountSettings.from_env(environ)) == {}
    on = AccountSettings.from_env({**environ, "GUARDRAILS_ENABLED": "1"})
    assert limits_of_settings(on) == {"5min": 500_000, "72h": 10_000_000}


async def test_spending_is_recorded_checked_and_reset(database: Database) -> None:
    money = Money(database, **{"5min": 100, "60min": 1000})
    rails = money.guardrails
    await rails.record("w1", 60)
    spending = await rails.record("w1", 30)
    assert (spending.windows["5min"], spending.headroom_musd(), spending.violations()) == (90, 10, [])
    assert await rails.check("w1", 10)
    with pytest.raises(PaymentRequired, match="Spending limit exceeded") as refusal:
        await rails.check("w1", 11)
    assert refusal.value.details["error_fields"] == {
        "violations": [{"window": "5min", "limit": 0.0001, "spent": 0.00009}],
        "spent": {"5min": 0.00009},
    }
    for amount in (0, -5):
        with pytest.raises(Invalid, match="can only be added to"):
            await rails.record("w1", amount)
    with pytest.raises(Invalid, match=r"There is no window '6min'; allowed are 5min, 15min"):
        await rails.reset("w1", "6min")
    spending = await rails.reset("w1", "5min")
    assert (spending.windows["5min"], spending.windows["15min"], spending.total_musd) == (0, 90, 90)
    money.clock.advance(300)
    await rails.record("w1", 40)
    spending = await rails.spending("w1")
    assert (spending.windows["5min"], spending.windows["60min"]) == (40, 130)
    assert spending.headers() == [
        ("X-GuardRails-Enabled", "true"),
        ("X-GuardRails-5min", "0.00004"),
        ("X-GuardRails-60min", "0.00013"),
    ]
    info = spending.info("u1")
    assert (info["user_id"], info["total_spent"], info["violations"]) == ("u1", 0.00013, [])
    assert info["window_spent"]["72h"] == 0.00013
    assert set((await rails.reset("w1")).windows.values()) == {0}
    assert (await rails.spending("other")).total_musd == 0


async def test_without_limits_nothing_is_refused_or_shown(database: Database) -> None:
    rails = Money(database).guardrails
    spending = await rails.check("w1", 10**12)
    assert (spending.headers(), spending.headroom_musd()) == ([], None)


async def test_old_buckets_are_summed_up(database: Database) -> None:
    money = Money(database)
    for hours in (0, 1, 80, 81):
        await money.guardrails.record("w1", 10 + hours)
        money.clock.advance(3600)
    money.clock.advance(72 * 3600 - 2 * 3600)
    for _ in range(2):
        await money.guardrails.remove_old()
        rows = await money.sql("SELECT bucket, spent_musd FROM spend_buckets ORDER BY bucket")
        assert [row.spent_musd for row in rows] == [21, 90, 91]
        assert rows[0].bucket == 0
        assert (await money.guardrails.spending("w1")).total_musd == 202
