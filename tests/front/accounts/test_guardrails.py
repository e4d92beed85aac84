"""Limits on spending: shown, recorded, checked, reset."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.storage.database import Database
from tests.accounts.parts import identity_on, settings_of
from tests.front.accounts.api import AccountsApi, build_api

LIMITS = {"guardrails_enabled": True, "guardrails_max_5min_rate": 1, "guardrails_max_48h_rate": "2.5"}


@pytest.fixture
async def limited(sqlite_database: Database, tmp_path: Path) -> AsyncIterator[AccountsApi]:
    async with identity_on(sqlite_database, tmp_path, clock=FakeClock()) as identity:
        yield build_api(identity, settings_of(**LIMITS))


async def test_what_is_recorded_counts_in_every_window(limited: AccountsApi) -> None:
    login = await limited.log_in()
    recorded = await limited.call("POST", "/guardrails/record", {"amount": 0.25}, login=login)
    assert recorded.status == 200
    shown = await limited.call("GET", "/guardrails/spending", login=login)
    assert shown.json == recorded.json
    assert set(shown.json) == {
        *("user_id", "total_spent", "window_spent", "window_limits", "violations", "timestamp")
    }
    assert (shown.json["user_id"], shown.json["total_spent"]) == (login.id, 0.25)
    assert set(shown.json["window_spent"].values()) == {0.25}
    assert len(shown.json["window_spent"]) == 17
    assert shown.headers["X-GuardRails-Enabled"] == "true"
    assert (shown.headers["X-GuardRails-5min"], shown.headers["X-GuardRails-48h"]) == ("0.25", "0.25")


async def test_a_check_says_402_where_a_limit_forbids_it(limited: AccountsApi) -> None:
    login = await limited.log_in()
    await limited.call("POST", "/guardrails/record", {"amount": 0.25}, login=login)
    allowed = await limited.call("POST", "/guardrails/check", {"estimated_cost": 0.75}, login=login)
    assert (allowed.status, allowed.json["allowed"], allowed.json["violations"]) == (200, True, [])
    assert allowed.json["spent"]["5min"] == 0.25
    over = await limited.call("POST", "/guardrails/check", {"estimated_cost": 0.750001}, login=login)
    assert over.status == 402
    assert over.headers["X-GuardRails-Exceeded"] == "true"
    assert over.json == {
        "error": "Spending limit exceeded",
        "code": "spending_limit",
        "request_id": "req_1",
        "allowed": False,
        "violations": [{"window": "5min", "limit": 1.0, "spent": 0.25}],
        "spent": {"5min": 0.25},
    }


async def test_without_limits_everything_is_allowed(api: AccountsApi) -> None:
    login = await api.log_in()
    answer = await api.call("POST", "/guardrails/check", {"estimated_cost": 1_000_000}, login=login)
    assert (answer.status, answer.json["allowed"], "X-GuardRails-Enabled" in answer.headers) == (
        200,
        True,
        False,
    )


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("record", {}, "missing_fields"),
        ("record", {"amount": 0}, "invalid"),
        ("record", {"amount": -1}, "invalid_amount"),
        ("record", {"amount": 100_001}, "invalid_amount"),
        ("record", {"amount": "x"}, "invalid_amount"),
        ("record", {"amount": True}, "invalid_amount"),
        ("record", {"amount": [1]}, "invalid_amount"),
        ("record", {"amount": 0.0000001}, "invalid_amount"),
        ("record", {"amount": 4242424242424242}, "card_number_refused"),
        ("record", {"amount": 1, "window": "5min"}, "unknown_field"),
        ("check", {}, "missing_fields"),
        ("check", {"estimated_cost": "1e3"}, "invalid_amount"),
        ("check", {"estimated_cost": None}, "missing_fields"),
    ],
)
async def test_amounts_that_are_refused(api: AccountsApi, path: str, body: Any, code: str) -> None:
    login = await api.log_in()
    answer = await api.call("POST", f"/guardrails/{path}", body, login=login)
    assert answer.code == (400, code)
    assert (await api.call("GET", "/guardrails/spending", login=login)).json["total_spent"] == 0


async def test_administrators_reset_and_users_where_it_is_allowed(
    sqlite_database: Database, tmp_path: Path
) -> None:
    async with identity_on(sqlite_database, tmp_path, clock=FakeClock()) as identity:
        api = build_api(identity, settings_of(**LIMITS))
        login, admin = await api.log_in(), await api.log_in("root@example.org", is_admin=True)
        for one in (login, admin):
            await api.call("POST", "/guardrails/record", {"amount": 5}, login=one)
        body = {"window_name": "5min"}
        assert (await api.call("POST", "/guardrails/reset", body, login=login)).code == (403, "operator_only")
        key = await api.call("POST", "/auth/apikey", {"name": "k"}, login=admin)
        refused = await api.call("POST", "/guardrails/reset", body, key=key.json["api_key"])
        assert refused.code == (403, "operator_only")  # it has not the scope admin
        done = await api.call("POST", "/guardrails/reset", body, login=admin)
        assert (done.status, done.json["window_spent"]["5min"], done.json["total_spent"]) == (200, 0, 5)
        assert [one["window"] for one in done.json["violations"]] == ["48h"]
        wrong = await api.call("POST", "/guardrails/reset", {"window_name": "7min"}, login=admin)
        assert (wrong.status, wrong.json["details"]) == (400, {"field": "window_name"})
        assert (await api.call("POST", "/guardrails/reset", {"window_name": 5}, login=admin)).status == 400
        open_api = build_api(identity, settings_of(**LIMITS, guardrails_user_reset=True))
        own = await open_api.call("POST", "/guardrails/reset", login=login)
        assert (own.status, set(own.json["window_spent"].values()), own.json["violations"]) == (200, {0}, [])
