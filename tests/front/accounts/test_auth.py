"""Registration, login, refresh, logout, sessions, the password."""

from pathlib import Path
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.storage.database import Database
from tests.accounts.parts import PASSWORD, identity_on, settings_of
from tests.front.accounts.api import AccountsApi, build_api

ADA = {"email": "ada@example.org", "password": PASSWORD, "name": "Ada"}


async def test_user_registers_and_logs_in(api: AccountsApi) -> None:
    made = await api.call("POST", "/auth/register", ADA)
    assert made.status == 201
    shown = {"id", "email", "name", "is_admin", "is_active", "created_at", "updated_at"}
    assert set(made.json["user"]) >= shown
    assert (made.json["user"]["email"], made.json["user"]["is_admin"]) == ("ada@example.org", False)
    login = await api.call("POST", "/auth/login", {"email": ADA["email"], "password": PASSWORD})
    assert (login.status, set(login.json)) == (200, {"user", "tokens"})
    assert set(login.json["tokens"]) == {"access_token", "refresh_token", "expires_at"}
    assert login.headers["Cache-Control"] == "no-store"
    assert login.json["user"]["id"] == made.json["user"]["id"]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("register", {**ADA, "email": ""}, 400, "missing_fields"),
        ("register", {**ADA, "name": None}, 400, "missing_fields"),
        ("register", {"email": "x@example.org"}, 400, "missing_fields"),
        ("register", {**ADA, "email": "nothing"}, 400, "invalid_email"),
        ("register", {**ADA, "email": ["a@example.org"]}, 400, "invalid_email"),
        ("register", {**ADA, "password": "short"}, 400, "password_too_short"),
        ("register", {**ADA, "password": "x" * 1025}, 400, "password_too_long"),
        ("register", {**ADA, "password": 1234567890123}, 400, "invalid"),
        ("register", {**ADA, "is_admin": True}, 400, "unknown_field"),
        ("register", [ADA], 400, "invalid_json"),
        ("register", b"{", 400, "invalid_json"),
        ("register", b"\xff\xfe{}", 400, "invalid_json"),
        ("register", b"", 400, "missing_body"),
        ("register", b" " * 70_000, 413, "request_too_large"),
        (
            "register",
            {**ADA, "name": [[[[[[[[[[[[[[[[[[[[[[["deep"]]]]]]]]]]]]]]]]]]]]]]]},
            400,
            "invalid_json",
        ),
        ("login", {"email": "ada@example.org"}, 400, "missing_fields"),
        ("login", {"email": 5, "password": PASSWORD}, 400, "invalid"),
        ("login", {"email": "ada@example.org", "password": "wrong password"}, 401, "invalid_credentials"),
        ("login", {"email": "b\u0000@example.org", "password": PASSWORD}, 401, "invalid_credentials"),
        ("login", b'{"email": "\\ud800", "password": "\\ud800"}', 401, "invalid_credentials"),
        ("refresh", {}, 400, "missing_fields"),
        ("refresh", {"refresh_token": 5}, 401, "refresh_invalid"),
        ("refresh", {"refresh_token": "rt_nothing"}, 401, "refresh_invalid"),
        ("logout", {}, 401, "token_required"),
        ("logout", {"all": "yes"}, 400, "invalid_type"),
        ("logout", {"refresh_token": "rt_nothing"}, 401, "refresh_invalid"),
        ("logout", {"refresh_token": ""}, 401, "refresh_invalid"),
    ],
)
async def test_what_is_refused_without_a_login(
    api: AccountsApi, path: str, body: Any, status: int, code: str
) -> None:
    answer = await api.call("POST", f"/auth/{path}", body)
    assert answer.code == (status, code), answer.json
    assert set(answer.json) <= {"error", "code", "request_id", "details"}
    assert answer.json["request_id"] == "req_1"


async def test_texts_of_the_original_are_kept(api: AccountsApi) -> None:
    missing = await api.call("POST", "/auth/register", {})
    assert missing.json["error"] == "Missing required fields"
    assert missing.json["details"] == {"needed": ["email", "password", "name"]}
    login = await api.log_in()
    wrong = await api.call("POST", "/auth/login", {"email": login.email, "password": "wrong"})
    assert (wrong.status, wrong.json["error"]) == (401, "invalid credentials")
    await api.identity.users.change(login.id, _inactive(), author=_author())
    gone = await api.call("POST", "/auth/login", {"email": login.email, "password": PASSWORD})
    assert (gone.status, gone.json["error"]) == (401, "user account is inactive")


def _inactive() -> Any:
    from appliance.accounts.user_forms import UserChange

    return UserChange(is_active=False)


def _author() -> Any:
    from tests.accounts.parts import AUTHOR

    return AUTHOR


async def test_an_email_address_is_taken_once(api: AccountsApi) -> None:
    await api.call("POST", "/auth/register", ADA)
    again = await api.call("POST", "/auth/register", {**ADA, "email": "ADA@example.org"})
    assert again.code == (409, "email_taken")


async def test_a_refused_address_is_not_shown_again(api: AccountsApi) -> None:
    answer = await api.call("POST", "/auth/register", {**ADA, "email": "my secret passphrase"})
    assert "passphrase" not in str(answer.json)


async def test_closed_registration_is_403(sqlite_database: Database, tmp_path: Path) -> None:
    async with identity_on(sqlite_database, tmp_path, registration="off") as identity:
        answer = await build_api(identity, settings_of()).call("POST", "/auth/register", ADA)
    assert answer.code == (403, "registration_closed")


async def test_tries_to_log_in_are_limited(api: AccountsApi) -> None:
    body = {"email": "ada@example.org", "password": "wrong"}
    codes = [(await api.call("POST", "/auth/login", body)).status for _ in range(6)]
    assert codes == [401] * 5 + [429]
    others = [
        (await api.call("POST", "/auth/login", {**body, "email": f"u{number}@example.org"})).status
        for number in range(16)
    ]
    assert others == [401] * 14 + [429] * 2  # 20 from one address, the refused sixth one among them
    assert isinstance(api.identity.clock, FakeClock)
    api.identity.clock.advance(120)
    assert (await api.call("POST", "/auth/login", body)).status == 401


async def test_a_refresh_token_works_once_and_again_within_the_grace(api: AccountsApi) -> None:
    login = await api.log_in()
    body = {"refresh_token": login.refresh_token}
    first = await api.call("POST", "/auth/refresh", body)
    assert (first.status, set(first.json)) == (200, {"tokens"})
    repeated = await api.call("POST", "/auth/refresh", body)
    assert repeated.json["tokens"]["refresh_token"] == first.json["tokens"]["refresh_token"]
    assert isinstance(api.identity.clock, FakeClock)
    api.identity.clock.advance(60)
    assert (await api.call("POST", "/auth/refresh", body)).code == (401, "refresh_reused")
    ended = await api.call("POST", "/auth/refresh", {"refresh_token": first.json["tokens"]["refresh_token"]})
    assert ended.code == (401, "session_ended")


async def test_logout_by_the_access_token_ends_this_session(api: AccountsApi) -> None:
    login, other = await api.log_in(), await api.log_in_again()
    answer = await api.call("POST", "/auth/logout", login=login)
    assert (answer.status, answer.json) == (200, {"message": "Logged out", "ended": 1})
    assert (await api.call("GET", "/user", login=login)).code == (401, "session_ended")
    refreshed = await api.call("POST", "/auth/refresh", {"refresh_token": login.refresh_token})
    assert refreshed.code == (401, "session_ended")
    assert (await api.call("GET", "/user", login=other)).status == 200
    again = await api.call("POST", "/auth/logout", login=login)
    assert (again.status, again.json["ended"]) == (200, 0)


async def test_logout_by_the_refresh_token_needs_no_access_token(api: AccountsApi) -> None:
    login = await api.log_in()
    answer = await api.call("POST", "/auth/logout", {"refresh_token": login.refresh_token})
    assert answer.json["ended"] == 1
    assert (await api.call("GET", "/user", login=login)).status == 401


async def test_logout_of_all_sessions_needs_a_live_one(api: AccountsApi) -> None:
    login, other, third = [await api.log_in(), await api.log_in_again(), await api.log_in_again()]
    await api.call("POST", "/auth/logout", login=other)
    refused = await api.call("POST", "/auth/logout", {"all": True}, login=other)
    assert refused.code == (401, "session_ended")
    assert (await api.call("GET", "/user", login=third)).status == 200
    answer = await api.call("POST", "/auth/logout", {"all": True}, login=login)
    assert answer.json == {"message": "Logged out", "ended": 2}
    assert (await api.call("GET", "/user", login=third)).status == 401


async def test_logout_with_an_expired_access_token_is_401(api: AccountsApi) -> None:
    login = await api.log_in()
    assert isinstance(api.identity.clock, FakeClock)
    api.identity.clock.advance(90_000)
    assert (await api.call("POST", "/auth/logout", login=login)).code == (401, "token_expired")


async def test_sessions_are_listed_and_ended(api: AccountsApi) -> None:
    login, other = await api.log_in(), await api.log_in_again()
    await api.log_in("bob@example.org")
    listed = await api.call("GET", "/auth/sessions", login=login)
    assert (listed.status, listed.json["count"]) == (200, 2)
    fields = {"id", "ip_address", "user_agent", "created_at", "last_used_at", "expires_at", "is_current"}
    assert set(listed.json["sessions"][0]) == fields
    [mine] = [one for one in listed.json["sessions"] if one["is_current"]]
    [its] = [one for one in listed.json["sessions"] if not one["is_current"]]
    ended = await api.call("DELETE", f"/auth/sessions/{its['id']}", login=login)
    assert (ended.status, ended.json) == (200, {"message": "Session ended", "id": its["id"]})
    assert (await api.call("GET", "/user", login=other)).status == 401
    await api.log_in_again()
    rest = await api.call("DELETE", "/auth/sessions", login=login)
    assert rest.json == {"message": "Sessions ended", "ended": 1}
    left = await api.call("GET", "/auth/sessions", login=login)
    assert [one["id"] for one in left.json["sessions"]] == [mine["id"]]


async def test_sessions_of_others_are_unknown(api: AccountsApi) -> None:
    login, bob = await api.log_in(), await api.log_in("bob@example.org")
    [row] = await api.identity.sessions.of_user(bob.id)
    for one in (row.id, "nothing", "%00", "a" * 36):
        answer = await api.call("DELETE", f"/auth/sessions/{one}", login=login)
        assert answer.code == (404, "session_unknown")
    assert (await api.call("GET", "/user", login=bob)).status == 200


async def test_password_is_changed_and_other_sessions_end(api: AccountsApi) -> None:
    login, other = await api.log_in(), await api.log_in_again()
    body = {"old_password": PASSWORD, "new_password": "another password"}
    wrong = await api.call("POST", "/auth/password", {**body, "old_password": "wrong"}, login=login)
    assert wrong.code == (401, "invalid_credentials")
    short = await api.call("POST", "/auth/password", {**body, "new_password": "short"}, login=login)
    assert short.code == (400, "password_too_short")
    missing = await api.call("POST", "/auth/password", {"new_password": "another one"}, login=login)
    assert missing.code == (400, "missing_fields")
    done = await api.call("POST", "/auth/password", body, login=login)
    assert (done.status, done.json) == (200, {"message": "Password changed"})
    assert (await api.call("GET", "/user", login=login)).status == 200
    assert (await api.call("GET", "/user", login=other)).status == 401
    new = {"email": login.email, "password": "another password"}
    assert (await api.call("POST", "/auth/login", new)).status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/auth/password"),
        ("GET", "/auth/sessions"),
        ("DELETE", "/auth/sessions"),
        ("DELETE", "/auth/sessions/00000000-0000-7000-8000-000000000000"),
        ("POST", "/auth/apikey"),
        ("DELETE", "/user"),
    ],
)
async def test_what_an_api_key_cannot_do(api: AccountsApi, method: str, path: str) -> None:
    login = await api.log_in()
    made = await api.call("POST", "/auth/apikey", {"name": "k"}, login=login)
    answer = await api.call(
        method, path, {"name": "k"} if method == "POST" else None, key=made.json["api_key"]
    )
    assert answer.code == (403, "session_required"), answer.json
    nobody = await api.call(method, path)
    assert nobody.status == 401
