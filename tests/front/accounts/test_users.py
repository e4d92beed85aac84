"""The user itself: profile, export, deletion."""

from sqlalchemy import select

from appliance.storage.schema import users, wallets
from tests.front.accounts.api import AccountsApi


async def test_user_sees_itself(api: AccountsApi) -> None:
    login = await api.log_in()
    answer = await api.call("GET", "/user", login=login)
    assert (answer.status, answer.json["user"]["email"]) == (200, "ada@example.org")
    assert (await api.call("GET", "/user")).status == 401


async def test_export_has_all_and_no_secret(api: AccountsApi) -> None:
    login = await api.log_in()
    made = await api.call("POST", "/auth/apikey", {"name": "k"}, login=login)
    answer = await api.call("GET", "/user/export", login=login)
    assert set(answer.json) >= {
        "user",
        "api_keys",
        "usage_quota",
        "gpu_usage",
        "transactions",
        "credits",
        "exported_at",
    }
    text = str(answer.json)
    assert made.json["prefix"] in text
    for secret in (made.json["api_key"], login.refresh_token, login.access_token, "argon2"):
        assert secret not in text


async def test_deleted_user_leaves_no_trace_of_who_it_was(api: AccountsApi) -> None:
    login = await api.log_in()
    made = await api.call("POST", "/auth/apikey", {"name": "k"}, login=login)
    refused = await api.call("DELETE", "/user", {"reason": "?"}, login=login)
    assert refused.code == (400, "unknown_field")
    answer = await api.call("DELETE", "/user", login=login)
    assert (answer.status, answer.json) == (200, {"message": "User deleted", "id": login.id})
    assert (await api.call("GET", "/user", login=login)).status == 401
    assert (await api.call("GET", "/user", key=made.json["api_key"])).status == 401
    async with api.identity.database.transaction(is_read_only=True) as transaction:
        [row] = await transaction.execute(select(users))
        [wallet] = await transaction.execute(select(wallets))
    assert (row.id, row.name, row.password_hash, row.is_active) == (login.id, "", "", False)
    assert "ada" not in row.email
    assert (wallet.state, wallet.auto_renew) == ("closed", False)
    again = await api.log_in()  # the address is free
    assert again.id != login.id
