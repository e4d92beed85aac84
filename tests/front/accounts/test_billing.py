"""Credits, sessions of use, usage and the ledger of a user."""

from typing import Any

import pytest

from tests.accounts.money import settlement
from tests.front.accounts.api import AccountsApi, Login

NOON_MS = 1_800_000_000_000  # the time of the clock
DAY_MS = 86_400_000


@pytest.fixture
def api(api_on_both: AccountsApi) -> AccountsApi:
    """Both databases: what is shown here is read by statements of its own."""
    return api_on_both


async def spend(api: AccountsApi, login: Login, *times_ms: int, **more: Any) -> None:
    """Grant 1 dollar, and use 0.01 of it by each attempt."""
    user = await api.identity.users.get(login.id)
    wallets = api.store.wallets
    await wallets.grant(user.wallet_id, 1_000_000, ref=f"test:{login.id}")
    await wallets.lease(user.wallet_id, least_musd=1, want_musd=500_000, most_musd=500_000)
    batch = [
        settlement(
            number,
            user.wallet_id,
            10_000,
            at_ms=at_ms,
            user_id=user.id,
            client_id=user.id,
            ip="10.0.0.1",
            **more,
        )
        for number, at_ms in enumerate(times_ms, 1)
    ]
    for one in batch:
        await api.store.usage.settle([one])


async def test_credits_are_dollars(api: AccountsApi) -> None:
    login = await api.log_in()
    await spend(api, login, NOON_MS)
    answer = await api.call("GET", "/billing/credits", login=login)
    assert (answer.status, answer.json) == (
        200,
        {
            "client_id": login.id,
            "credits_remaining": 0.99,
            "credits_total": 1.0,
            "credits_overage": 0.0,
            "credits_cap": 0.0,
            "credits_auto_renew": False,
            "credits_held": 0.49,
            "credits_owed": 0.0,
            "period_end": None,
        },
    )


async def test_sessions_of_use_are_listed(api: AccountsApi) -> None:
    login = await api.log_in()
    await spend(api, login, NOON_MS - 3_600_000, NOON_MS)
    answer = await api.call("GET", "/billing/credits/sessions", login=login)
    assert (answer.json["count"], [one["time"] for one in answer.json["sessions"]]) == (
        2,
        ["08:00:00", "07:00:00"],
    )
    one = await api.call("GET", "/billing/credits/sessions?limit=1", login=login)
    assert one.json["count"] == 1


async def test_usage_and_ledger_come_in_pages_without_gaps(api: AccountsApi) -> None:
    login = await api.log_in()
    await spend(api, login, *[NOON_MS + number // 3 for number in range(7)])  # several at one time
    for path, name, rows, id_name in (
        ("/billing/usage", "usage", 7, "attempt_id"),
        ("/billing/ledger", "entries", 8, "id"),
    ):
        whole = await api.call("GET", path, login=login)
        assert (whole.json["count"], whole.json["next"]) == (rows, None)
        found, following = [], ""
        while following is not None:
            page = await api.call("GET", f"{path}?limit=2&before={following}", login=login)
            assert page.json["count"] <= 2
            found += page.json[name]
            following = page.json["next"]
        assert [one[id_name] for one in found] == [one[id_name] for one in whole.json[name]]


async def test_usage_is_summed_by_groups(api: AccountsApi) -> None:
    login = await api.log_in()
    await spend(api, login, NOON_MS - 40 * DAY_MS, NOON_MS - DAY_MS, NOON_MS, NOON_MS)
    answer = await api.call("GET", "/billing/usage?group=model,day", login=login)
    assert answer.json["group"] == ["model", "day"]
    assert [(one["model"], one["day"], one["attempts"], one["cost"]) for one in answer.json["usage"]] == [
        ("m", "2027-01-14", 1, 0.01),
        ("m", "2027-01-15", 2, 0.02),
    ]
    assert answer.json["since"] == "2026-12-16T08:00:00.001Z"
    total = await api.call("GET", "/billing/usage?group=total&since=0", login=login)
    assert [(one["attempts"], one["cost"]) for one in total.json["usage"]] == [(4, 0.04)]
    until = await api.call("GET", "/billing/usage?group=total&since=0&until=1h", login=login)
    assert until.json["usage"][0]["attempts"] == 2


async def test_a_user_sees_its_own_money_only(api: AccountsApi) -> None:
    login, bob = await api.log_in(), await api.log_in("bob@example.org")
    await spend(api, login, NOON_MS)
    for path, name in (
        ("/billing/usage", "usage"),
        ("/billing/ledger", "entries"),
        ("/billing/credits/sessions", "sessions"),
    ):
        assert len((await api.call("GET", path, login=login)).json[name]) >= 1
        assert (await api.call("GET", path, login=bob)).json[name] == []
    sums = await api.call("GET", "/billing/usage?group=total", login=bob)
    assert sums.json["usage"][0]["attempts"] == 0
    assert (await api.call("GET", "/billing/credits", login=bob)).json["credits_total"] == 0


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "limit=1&limit=2",
        "before=yesterday",
        "before=%00",
        "before=5,%00",
        "before=5," + "x" * 301,
        "since=5",
        "group=wallet",
        "group=model,,",
        "group=model&limit=5",
        "group=model&since=soon",
        "goup=model",
        "&".join(f"a{number}=1" for number in range(70)),
    ],
)
async def test_queries_that_are_refused(api: AccountsApi, query: str) -> None:
    login = await api.log_in()
    answer = await api.call("GET", f"/billing/usage?{query}", login=login)
    assert answer.status == 400, answer.json


@pytest.mark.parametrize(
    "path",
    [
        "/billing/credits",
        "/billing/credits/sessions",
        "/billing/usage",
        "/billing/ledger",
        "/guardrails/spending",
    ],
)
async def test_a_key_needs_the_scope_billing(api: AccountsApi, path: str) -> None:
    login = await api.log_in()
    body = {"name": "k", "scopes": ["inference"]}
    without = await api.call("POST", "/auth/apikey", body, login=login)
    answer = await api.call("GET", path, key=without.json["api_key"])
    assert answer.code == (403, "scope_missing")
    key = await api.call("POST", "/auth/apikey", {**body, "scopes": ["billing"]}, login=login)
    assert (await api.call("GET", path, key=key.json["api_key"])).status == 200
    assert (await api.call("GET", path)).status == 401
