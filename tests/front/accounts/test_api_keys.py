"""API keys: made, listed, rotated, revoked."""

from typing import Any

import pytest

from appliance.base.clock import FakeClock
from tests.front.accounts.api import AccountsApi, Login

UNKNOWN = "00000000-0000-7000-8000-000000000000"


async def make_key(api: AccountsApi, login: Login, **more: Any) -> dict[str, Any]:
    answer = await api.call("POST", "/auth/apikey", {"name": "k", **more}, login=login)
    assert answer.status == 201, answer.json
    made: dict[str, Any] = answer.json
    return made


async def test_a_key_is_shown_once_and_works(api: AccountsApi) -> None:
    login = await api.log_in()
    answer = await api.call("POST", "/auth/apikey", {"name": "My API Key"}, login=login)
    assert answer.status == 201
    assert set(answer.json) == {"api_key", "message", "id", "prefix", "expires_at", "key"}
    key = answer.json["api_key"]
    assert key.startswith(answer.json["prefix"] + "_")
    assert answer.headers["Cache-Control"] == "no-store"
    assert (await api.call("GET", "/user", key=key)).json["user"]["id"] == login.id
    listed = await api.call("GET", "/auth/apikey", key=key)
    assert (listed.json["count"], listed.json["api_keys"][0]["name"]) == (1, "My API Key")
    assert key not in str(listed.json)
    assert listed.json["api_keys"][0]["scopes"] == ["inference", "market", "billing", "proxy"]
    one = await api.call("GET", f"/auth/apikey/{answer.json['id']}", login=login)
    assert one.json == {**answer.json["key"], "last_used_at": one.json["last_used_at"]}


async def test_a_key_has_what_was_asked_for(api: AccountsApi) -> None:
    login = await api.log_in()
    wanted = {
        "scopes": ["billing"],
        "models": ["llama*"],
        "limits": {"rpm": 5, "monthly_cap": 1.5},
        "stay_local": True,
        "expires_at": "2030-01-31T00:00:00Z",
    }
    made = await make_key(api, login, **wanted)
    key = made["key"]
    assert {name: key[name] for name in ("scopes", "models", "stay_local")} == {
        name: wanted[name] for name in ("scopes", "models", "stay_local")
    }
    assert (key["limits"]["rpm"], key["limits"]["monthly_cap"]) == (5, 1.5)
    assert made["expires_at"] == key["expires_at"] == "2030-01-31T00:00:00.000Z"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "missing_fields"),
        ({"name": ""}, "missing_fields"),
        ({"name": "x" * 101}, "invalid"),
        ({"name": ["k"]}, "invalid"),
        ({"name": "k", "expire_at": "2030-01-01"}, "unknown_field"),
        ({"name": "k", "expires_at": "yesterday"}, "invalid"),
        ({"name": "k", "expires_at": 5}, "invalid"),
        ({"name": "k", "scopes": []}, "invalid"),
        ({"name": "k", "scopes": ["root"]}, "invalid"),
        ({"name": "k", "models": "llama"}, "invalid"),
        ({"name": "k", "limits": {"rpm": 0}}, "invalid"),
        ({"name": "k", "limits": {"speed": 1}}, "invalid"),
        ({"name": "k", "limits": {"monthly_cap": -1}}, "invalid"),
        ({"name": "k", "stay_local": 1}, "invalid_type"),
        ({"name": "4242 4242 4242 4242"}, "card_number_refused"),
    ],
)
async def test_keys_that_are_refused(api: AccountsApi, body: dict[str, Any], code: str) -> None:
    login = await api.log_in()
    answer = await api.call("POST", "/auth/apikey", body, login=login)
    assert answer.code == (400, code), answer.json
    assert (await api.call("GET", "/auth/apikey", login=login)).json["count"] == 0


async def test_the_scope_admin_is_for_administrators(api: AccountsApi) -> None:
    body = {"name": "k", "scopes": ["admin"]}
    login, admin = await api.log_in(), await api.log_in("root@example.org", is_admin=True)
    assert (await api.call("POST", "/auth/apikey", body, login=login)).code == (403, "scope_not_allowed")
    assert (await api.call("POST", "/auth/apikey", body, login=admin)).status == 201


async def test_a_revoked_key_is_refused(api: AccountsApi) -> None:
    login = await api.log_in()
    made = await make_key(api, login)
    answer = await api.call("DELETE", f"/auth/apikey/{made['id']}", login=login)
    assert (answer.status, answer.json["id"], answer.json["prefix"]) == (200, made["id"], made["prefix"])
    assert (await api.call("GET", "/user", key=made["api_key"])).status == 401
    again = await api.call("DELETE", f"/auth/apikey/{made['id']}", login=login)
    assert again.status == 200
    listed = await api.call("GET", "/auth/apikey", login=login)
    assert [one["is_active"] for one in listed.json["api_keys"]] == [False]


async def test_a_rotated_key_works_for_its_grace(api: AccountsApi) -> None:
    login = await api.log_in()
    old = await make_key(api, login, limits={"rpm": 7})
    path = f"/auth/apikey/{old['id']}/rotate"
    answer = await api.call("POST", path, {"grace_s": 60}, login=login)
    assert (answer.status, answer.json["replaces"]) == (201, old["id"])
    assert answer.json["key"]["limits"]["rpm"] == 7
    for key in (old["api_key"], answer.json["api_key"]):
        assert (await api.call("GET", "/user", key=key)).status == 200
    assert isinstance(api.identity.clock, FakeClock)
    api.identity.clock.advance(61)
    assert (await api.call("GET", "/user", key=old["api_key"])).code == (401, "api_key_expired")
    assert (await api.call("GET", "/user", key=answer.json["api_key"])).status == 200
    assert (await api.call("POST", path, login=login)).code == (409, "key_not_active")


@pytest.mark.parametrize("grace_s", [-1, "60", 2_592_001, True, [1]])
async def test_graces_that_are_refused(api: AccountsApi, grace_s: Any) -> None:
    login = await api.log_in()
    old = await make_key(api, login)
    answer = await api.call("POST", f"/auth/apikey/{old['id']}/rotate", {"grace_s": grace_s}, login=login)
    assert (answer.status, answer.json["details"]) == (400, {"field": "grace_s"})


async def test_a_key_replaces_or_revokes_itself_whatever_its_scopes(api: AccountsApi) -> None:
    login = await api.log_in()
    mine, other = await make_key(api, login, scopes=["inference"]), await make_key(api, login)
    key = mine["api_key"]
    assert (await api.call("GET", f"/auth/apikey/{mine['id']}", key=key)).json["id"] == mine["id"]
    assert (await api.call("GET", "/auth/apikey", key=key)).code == (403, "scope_missing")
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rotate")):
        answer = await api.call(method, f"/auth/apikey/{other['id']}{path}", key=key)
        assert answer.code == (403, "session_required")
    rotated = await api.call("POST", f"/auth/apikey/{mine['id']}/rotate", key=key)
    assert (rotated.status, rotated.json["key"]["scopes"]) == (201, ["inference"])
    assert (await api.call("GET", f"/auth/apikey/{mine['id']}", key=key)).status == 401
    new = rotated.json
    assert (await api.call("DELETE", f"/auth/apikey/{new['id']}", key=new["api_key"])).status == 200
    assert (await api.call("GET", f"/auth/apikey/{new['id']}", key=new["api_key"])).status == 401


@pytest.mark.parametrize(("method", "more"), [("GET", ""), ("DELETE", ""), ("POST", "/rotate")])
async def test_keys_of_others_are_unknown(api: AccountsApi, method: str, more: str) -> None:
    login, bob = await api.log_in(), await api.log_in("bob@example.org")
    made = await make_key(api, bob)
    for one in (made["id"], UNKNOWN, "nothing", "\0", "ü" * 36):
        answer = await api.call(method, f"/auth/apikey/{one}{more}", login=login)
        assert answer.code == (404, "key_unknown")
    assert (await api.call("GET", "/user", key=made["api_key"])).status == 200


async def test_keys_of_the_settings_have_no_account(api: AccountsApi) -> None:
    api.identity.callers.apply(client_keys=("client",), operator_keys=("operator",), stay_local_keys=())
    for key in ("client", "operator"):
        for method, path in (("GET", "/user"), ("GET", "/auth/apikey"), ("POST", "/auth/apikey")):
            answer = await api.call(method, path, key=key)
            assert answer.code == (403, "account_required")
