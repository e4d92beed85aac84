"""Users and their credits, for operators."""

import asyncio
from typing import Any

import pytest

from tests.accounts.parts import PASSWORD
from tests.front.accounts.api import AccountsApi, Login

UNKNOWN = "00000000-0000-7000-8000-000000000000"
ADDRESSES = [
    ("GET", "/admin/users"),
    ("POST", "/admin/users"),
    ("GET", f"/admin/users/{UNKNOWN}"),
    ("PATCH", f"/admin/users/{UNKNOWN}"),
    ("DELETE", f"/admin/users/{UNKNOWN}"),
    ("POST", f"/admin/users/{UNKNOWN}/password"),
    ("POST", f"/admin/users/{UNKNOWN}/grant"),
    ("PATCH", f"/admin/users/{UNKNOWN}/credits"),
    ("PATCH", f"/admin/users/{UNKNOWN}/quota"),
    ("POST", f"/admin/users/{UNKNOWN}/guardrails/reset"),
    ("GET", "/admin/prices"),
    ("PUT", "/admin/prices"),
    ("GET", "/admin/money"),
    ("GET", "/admin/audit"),
]


@pytest.fixture
def api(api_on_both: AccountsApi) -> AccountsApi:
    """Both databases: what is shown here is read by statements of its own."""
    return api_on_both


@pytest.fixture
async def root(api: AccountsApi) -> Login:
    return await api.log_in("root@example.org", is_admin=True)


async def audit_of(api: AccountsApi, root: Login, subject: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (await api.call("GET", f"/admin/audit?subject={subject}", login=root)).json[
        "audit"
    ]
    return rows


@pytest.mark.parametrize(("method", "path"), ADDRESSES)
async def test_addresses_of_operators_are_closed_to_users(api: AccountsApi, method: str, path: str) -> None:
    login = await api.log_in()
    key = (await api.call("POST", "/auth/apikey", {"name": "k"}, login=login)).json["api_key"]
    assert (await api.call(method, path, login=login)).code == (403, "operator_only")
    assert (await api.call(method, path, key=key)).code == (403, "scope_missing")
    assert (await api.call(method, path)).status == 403  # without keys: for callers on this machine
    assert (await api.call(method, path, key="apk_abcdefgh_" + "x" * 43)).status == 401


async def test_operators_keys_open_them(api: AccountsApi, root: Login) -> None:
    scopes = {"name": "k", "scopes": ["admin"]}
    key = (await api.call("POST", "/auth/apikey", scopes, login=root)).json["api_key"]
    api.identity.callers.apply(client_keys=("client",), operator_keys=("operator",), stay_local_keys=())
    for one in (key, "operator"):
        assert (await api.call("GET", "/admin/users", key=one)).status == 200
    assert (await api.call("GET", "/admin/users", key="client")).code == (403, "operator_only")


async def test_clients_static_keys_never_open_them(api: AccountsApi) -> None:
    user = await api.log_in()
    api.identity.callers.apply(client_keys=("client",), operator_keys=(), stay_local_keys=())
    for method, path, body in (
        ("GET", "/admin/users", None),
        ("POST", f"/admin/users/{user.id}/grant", {"amount": 5}),
        ("PATCH", f"/admin/users/{user.id}", {"is_admin": True}),
        ("PUT", "/admin/prices", {"prices": []}),
    ):
        refused = await api.call(method, path, body, key="client")
        assert refused.code == (403, "operator_only"), path
        assert "does not open users, prices and money" in refused.json["error"]


async def test_a_demoted_administrator_is_refused_at_once(api: AccountsApi, root: Login) -> None:
    other = await api.log_in("other@example.org", is_admin=True)
    changed = await api.call("PATCH", f"/admin/users/{other.id}", {"is_admin": False}, login=root)
    assert (changed.status, changed.json["user"]["is_admin"]) == (200, False)
    assert (await api.call("GET", "/admin/users", login=other)).code == (403, "operator_only")


async def test_users_are_found_and_come_in_pages(api: AccountsApi, root: Login) -> None:
    for number in range(5):
        await api.log_in(f"u{number}@example.org")
    found, after = [], ""
    while after is not None:
        page = await api.call("GET", f"/admin/users?limit=2&after={after}", login=root)
        found += [user["email"] for user in page.json["users"]]
        after = page.json["next"]
    assert sorted(found) == sorted(["root@example.org", *(f"u{number}@example.org" for number in range(5))])
    one = await api.call("GET", "/admin/users?q=U3@", login=root)
    assert [user["email"] for user in one.json["users"]] == ["u3@example.org"]
    for query in ("q=%25", "q=%00", "q=_3", "q=%ED%A0%80"):
        assert (await api.call("GET", f"/admin/users?{query}", login=root)).status == 200
    for query in ("limit=501", "limit=-1", "page=2"):
        assert (await api.call("GET", f"/admin/users?{query}", login=root)).status == 400


async def test_a_user_is_made_where_registration_is_closed(api: AccountsApi, root: Login) -> None:
    body = {"email": "new@example.org", "password": PASSWORD, "name": "New", "is_admin": True}
    made = await api.call("POST", "/admin/users", body, login=root)
    assert (made.status, made.json["user"]["is_admin"]) == (201, True)
    assert (await api.call("POST", "/admin/users", body, login=root)).code == (409, "email_taken")
    for wrong in ({**body, "is_admin": "yes"}, {**body, "email": "x"}, {"email": "y@example.org"}):
        assert (await api.call("POST", "/admin/users", wrong, login=root)).status == 400
    [row] = await audit_of(api, root, made.json["user"]["id"])
    assert (row["action"], row["actor_id"], row["ip_address"]) == ("user.create", root.id, "10.0.0.1")


async def test_a_user_is_shown_with_its_money_and_keys(api: AccountsApi, root: Login) -> None:
    login = await api.log_in()
    await api.call("POST", "/auth/apikey", {"name": "k"}, login=login)
    shown = await api.call("GET", f"/admin/users/{login.id}", login=root)
    assert set(shown.json) == {"user", "credits", "usage_quota", "api_keys"}
    assert shown.json["usage_quota"]["max_requests"] == 10_000
    assert [key["name"] for key in shown.json["api_keys"]] == ["k"]
    for one in (UNKNOWN, "me", "\0", "%"):
        assert (await api.call("GET", f"/admin/users/{one}", login=root)).code == (404, "user_unknown")


async def test_a_change_says_what_was_before(api: AccountsApi, root: Login) -> None:
    login = await api.log_in()
    body = {"plan": "pro", "limits": {"rpm": 3}, "name": "Ada L"}
    answer = await api.call("PATCH", f"/admin/users/{login.id}", body, login=root)
    assert (answer.json["user"]["plan"], answer.json["user"]["limits"]["rpm"]) == ("pro", 3)
    [row] = [one for one in await audit_of(api, root, login.id) if one["action"] == "user.change"]
    assert (row["actor_kind"], row["actor_id"]) == ("user", root.id)
    assert (row["details"]["before"]["plan"], row["details"]["after"]["plan"]) == ("", "pro")
    assert row["details"]["before"]["limits"]["rpm"] is None
    assert "Ada" not in str(row)


async def test_an_inactive_user_is_out_at_once(api: AccountsApi, root: Login) -> None:
    login = await api.log_in()
    key = (await api.call("POST", "/auth/apikey", {"name": "k"}, login=login)).json["api_key"]
    await api.call("PATCH", f"/admin/users/{login.id}", {"is_active": False}, login=root)
    assert (await api.call("GET", "/user", login=login)).status == 401
    assert (await api.call("GET", "/user", key=key)).status == 401


async def test_a_password_is_reset_and_all_sessions_end(api: AccountsApi, root: Login) -> None:
    login = await api.log_in("ada@example.org")
    path = f"/admin/users/{login.id}/password"
    answer = await api.call("POST", path, {"password": "another-password"}, login=root)
    assert answer.json == {"message": "Password changed", "id": login.id}
    assert (await api.call("GET", "/user", login=login)).status == 401
    tokens = {"refresh_token": login.refresh_token}
    assert (await api.call("POST", "/auth/refresh", tokens)).status == 401
    for password, status in ((PASSWORD, 401), ("another-password", 200)):
        body = {"email": "ada@example.org", "password": password}
        assert (await api.call("POST", "/auth/login", body)).status == status
    rows = await audit_of(api, root, login.id)
    assert "user.password" in [row["action"] for row in rows]
    assert "another-password" not in str(rows)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "Missing required fields"),
        ({"password": "short"}, "at least 10"),
        ({"password": 5}, "it must be a text"),
        ({"password": "another-password", "old_password": "x"}, "There is no field 'old_password'"),
    ],
)
async def test_passwords_that_are_refused(api: AccountsApi, root: Login, body: Any, text: str) -> None:
    login = await api.log_in()
    answer = await api.call("POST", f"/admin/users/{login.id}/password", body, login=root)
    assert answer.status == 400
    assert text in answer.json["error"]
    assert (await api.call("GET", "/user", login=login)).status == 200


async def test_a_user_is_deleted_by_an_operator_once(api: AccountsApi, root: Login) -> None:
    login = await api.log_in("ada@example.org")
    path = f"/admin/users/{login.id}"
    await api.call("POST", f"{path}/grant", {"amount": 2}, login=root)
    answer = await api.call("DELETE", path, login=root)
    assert answer.json == {"message": "User deleted", "id": login.id}
    assert (await api.call("GET", "/user", login=login)).status == 401
    shown = (await api.call("GET", path, login=root)).json
    assert (shown["user"]["name"], shown["user"]["is_active"]) == ("", False)
    assert (await api.call("DELETE", path, login=root)).code == (404, "user_unknown")
    assert (await api.call("POST", f"{path}/password", {"password": PASSWORD}, login=root)).status == 404
    rows = await audit_of(api, root, login.id)
    assert [row["actor_id"] for row in rows if row["action"] == "user.delete"] == [root.id]
    assert "ada@example.org" not in str(rows)
    money = (await api.call("GET", "/admin/money?check=1", login=root)).json
    assert money["differences"] == []


async def test_the_last_administrator_is_not_deleted(api: AccountsApi, root: Login) -> None:
    second = await api.log_in("second@example.org", is_admin=True)
    await api.call("PATCH", f"/admin/users/{second.id}", {"is_active": False}, login=root)
    for path in (f"/admin/users/{root.id}", "/user"):
        assert (await api.call("DELETE", path, login=root)).code == (409, "last_admin")
    assert (await api.call("GET", "/user", login=root)).status == 200
    await api.call("PATCH", f"/admin/users/{second.id}", {"is_active": True}, login=root)
    assert (await api.call("DELETE", f"/admin/users/{root.id}", login=root)).status == 200


async def test_of_two_administrators_deleted_at_once_one_stays(api: AccountsApi, root: Login) -> None:
    second = await api.log_in("second@example.org", is_admin=True)
    calls = [api.call("DELETE", "/user", login=one) for one in (root, second)]
    assert sorted(one.status for one in await asyncio.gather(*calls)) == [200, 409]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"email": "x@example.org"},
        {"is_admin": 1},
        {"is_active": None},
        {"plan": 5},
        {"plan": "x" * 65},
        {"limits": {"rpm": "many"}},
        {"limits": []},
        {"limits": {"monthly_cap": 5}},
        {"name": ""},
        {"name": "4242 4242 4242 4242"},
        [],
        b"",
        b"{}}",
    ],
)
async def test_changes_that_are_refused(api: AccountsApi, root: Login, body: Any) -> None:
    login = await api.log_in()
    assert (await api.call("PATCH", f"/admin/users/{login.id}", body, login=root)).status == 400
    assert [row["action"] for row in await audit_of(api, root, login.id)] == ["user.create"]


async def test_a_grant_sent_again_gives_nothing_more(api: AccountsApi, root: Login) -> None:
    login = await api.log_in()
    path, headers = f"/admin/users/{login.id}/grant", {"idempotency-key": "a-1"}
    body = {"amount": 5.25, "note": "welcome"}
    for _ in range(3):
        answer = await api.call("POST", path, body, login=root, headers=headers)
        assert (answer.status, answer.json["amount"], answer.json["credits"]["credits_total"]) == (
            200,
            5.25,
            5.25,
        )
    other = await api.call("POST", path, {"amount": 6}, login=root, headers=headers)
    assert other.code == (409, "idempotency_key_reused")
    assert (await api.call("GET", "/billing/credits", login=login)).json["credits_remaining"] == 5.25
    grants = [row for row in await audit_of(api, root, login.id) if row["action"] == "credits.grant"]
    assert [row["details"] for row in grants] == [{"amount": 5.25}]
    ledger = await api.call("GET", "/billing/ledger", login=login)
    assert [(one["kind"], one["amount"], one["note"]) for one in ledger.json["entries"]] == [
        ("grant", 5.25, "welcome")
    ]
    bob = await api.log_in("bob@example.org")
    same = await api.call("POST", f"/admin/users/{bob.id}/grant", body, login=root, headers=headers)
    assert same.json["credits"]["credits_total"] == 5.25  # another user's
    for _ in range(2):  # without the header each request counts
        answer = await api.call("POST", path, {"amount": "1.00"}, login=root)
    assert answer.json["credits"]["credits_total"] == 7.25


async def test_credits_are_taken_away_as_far_as_there_are_some(api: AccountsApi, root: Login) -> None:
    login = await api.log_in()
    path = f"/admin/users/{login.id}/grant"
    await api.call("POST", path, {"amount": 5}, login=root)
    assert (await api.call("POST", path, {"amount": -5.000001}, login=root)).code == (409, "credits_in_use")
    taken = await api.call("POST", path, {"amount": -5}, login=root)
    assert taken.json["credits"]["credits_total"] == 0


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "missing_fields"),
        ({"amount": 0}, "invalid"),
        ({"amount": "five"}, "invalid_amount"),
        ({"amount": 1e12}, "invalid_amount"),
        ({"amount": 0.0000001}, "invalid_amount"),
        ({"amount": 5, "note": 5}, "invalid_type"),
        ({"amount": 5, "note": "x" * 501}, "invalid_type"),
        ({"amount": 5, "note": "card 4242424242424242"}, "card_number_refused"),
        ({"amount": 5, "user": "x"}, "unknown_field"),
    ],
)
async def test_grants_that_are_refused(api: AccountsApi, root: Login, body: Any, code: str) -> None:
    login = await api.log_in()
    answer = await api.call("POST", f"/admin/users/{login.id}/grant", body, login=root)
    assert answer.code == (400, code)
    long = await api.call(
        "POST",
        f"/admin/users/{login.id}/grant",
        {"amount": 5},
        login=root,
        headers={"idempotency-key": "x" * 129},
    )
    assert long.code == (400, "invalid_header")
    assert (await api.call("GET", "/billing/ledger", login=login)).json["entries"] == []


async def test_an_operator_resets_a_users_windows(api: AccountsApi, root: Login) -> None:
    login = await api.log_in()
    await api.call("POST", "/guardrails/record", {"amount": 5}, login=login)
    path = f"/admin/users/{login.id}/guardrails/reset"
    done = await api.call("POST", path, {"window_name": "48h"}, login=root)
    assert (done.json["window_spent"]["48h"], done.json["window_spent"]["5min"]) == (0, 5)
    assert (await api.call("POST", path, {"window": "48h"}, login=root)).code == (400, "unknown_field")


async def test_a_plan_is_granted_and_its_rest_stays(api: AccountsApi, root: Login) -> None:
    login = await api.log_in()
    path = f"/admin/users/{login.id}/credits"
    first = await api.call("PATCH", path, {"plan": 20, "auto_renew": True}, login=root)
    shown = first.json["credits"]
    assert (shown["credits_total"], shown["credits_cap"], shown["credits_auto_renew"]) == (20, 0, True)
    assert shown["period_end"] == "2027-02-15T00:00:00.000Z"  # the user was made on a 15th
    second = await api.call("PATCH", path, {"cap": "2.50"}, login=root)
    shown = second.json["credits"]
    assert (shown["credits_total"], shown["credits_cap"], shown["credits_auto_renew"]) == (20, 2.5, True)
    rows = [row for row in await audit_of(api, root, login.id) if row["action"] == "credits.set"]
    assert len(rows) == 2
    assert {
        "before": {"plan": 0, "cap": 0, "auto_renew": False},
        "after": {"plan": 20, "cap": 0, "auto_renew": True},
    } in [row["details"] for row in rows]
    money = await api.call("GET", "/admin/money?check=1", login=root)
    assert (money.json["differences"], money.json["accounts"]["wallet:*"]) == ([], 20)


async def test_a_plan_below_what_is_used_is_refused(api: AccountsApi, root: Login) -> None:
    login = await api.log_in()
    path = f"/admin/users/{login.id}/credits"
    await api.call("PATCH", path, {"plan": 1}, login=root)
    user = await api.identity.users.get(login.id)
    await api.store.wallets.lease(user.wallet_id, least_musd=1, want_musd=500_000, most_musd=500_000)
    assert (await api.call("PATCH", path, {"plan": 0.25}, login=root)).code == (409, "credits_in_use")
    assert (await api.call("PATCH", path, {"plan": 0.5}, login=root)).status == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"plan": -1},
        {"plan": "x"},
        {"cap": True},
        {"auto_renew": "yes"},
        {"total": 5},
        {"plan": None},
        b"[]",
    ],
)
async def test_plans_that_are_refused(api: AccountsApi, root: Login, body: Any) -> None:
    login = await api.log_in()
    assert (await api.call("PATCH", f"/admin/users/{login.id}/credits", body, login=root)).status == 400


async def test_plans_set_at_the_same_time_do_not_undo_each_other(api: AccountsApi, root: Login) -> None:
    login = await api.log_in()
    path = f"/admin/users/{login.id}/credits"
    answers = await asyncio.gather(
        *(
            api.call("PATCH", path, body, login=root)
            for body in ({"plan": 5}, {"cap": 1}, {"auto_renew": True})
        )
    )
    assert {answer.status for answer in answers} <= {200, 409}
    for body in ({"plan": 5}, {"cap": 1}, {"auto_renew": True}):
        last = await api.call("PATCH", path, body, login=root)
    shown = last.json["credits"]
    assert (shown["credits_total"], shown["credits_cap"], shown["credits_auto_renew"]) == (5, 1, True)


async def test_a_quota_is_set_and_noted(api: AccountsApi, root: Login) -> None:
    login = await api.log_in()
    path = f"/admin/users/{login.id}/quota"
    done = await api.call("PATCH", path, {"max_requests": 5}, login=root)
    assert done.json["usage_quota"]["max_requests"] == 5
    [row] = [one for one in await audit_of(api, root, login.id) if one["action"] == "quota.set"]
    assert row["details"] == {"before": {"max_requests": 10_000}, "after": {"max_requests": 5}}
    for wrong in (-1, "5", True, 1.5, 10**13, None):
        assert (await api.call("PATCH", path, {"max_requests": wrong}, login=root)).status == 400
