"""Accounts over HTTP against a whole appliance: register, log in, make a key, spend, look at it; what operators do."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.journeys.running import Running, Start, start  # noqa: F401 - a fixture

SECRET = "a-secret-of-tests-that-is-long-enough-0123456789-abcdefghij"
OPERATOR = "operator-key-of-tests"
PASSWORD = "correct horse battery"
ADA = {"email": "ada@example.org", "password": PASSWORD, "name": "Ada"}
PRICES = {"prices": [{"model": "*", "in": 1, "out": 10}]}
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 20}


@pytest.fixture
async def running(start: Start) -> Running:  # noqa: F811
    return await start(ACCOUNTS="1", JWT_SECRET=SECRET, REGISTRATION="open", OPERATOR_API_KEYS=OPERATOR)


@pytest.fixture
async def http(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=running.base_url + "/api/v1", timeout=20) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def log_in(http: httpx.AsyncClient, user: dict[str, str] = ADA) -> dict[str, Any]:
    """Register a user and log in; return `{user, tokens}`."""
    assert (await http.post("/auth/register", json=user)).status_code == 201
    done = await http.post("/auth/login", json={"email": user["email"], "password": user["password"]})
    assert done.status_code == 200, done.text
    made: dict[str, Any] = done.json()
    return made


async def test_a_user_registers_logs_in_refreshes_and_leaves(http: httpx.AsyncClient) -> None:
    login = await log_in(http)
    mine = bearer(login["tokens"]["access_token"])
    assert (await http.get("/user", headers=mine)).json()["user"]["email"] == "ada@example.org"
    refreshed = await http.post("/auth/refresh", json={"refresh_token": login["tokens"]["refresh_token"]})
    mine = bearer(refreshed.json()["tokens"]["access_token"])
    sessions = (await http.get("/auth/sessions", headers=mine)).json()
    assert (sessions["count"], sessions["sessions"][0]["is_current"]) == (1, True)
    assert sessions["sessions"][0]["ip_address"] == "127.0.0.1"
    export = await http.get("/user/export", headers=mine)
    assert export.json()["user"]["email"] == "ada@example.org"
    assert (await http.post("/auth/logout", headers=mine)).json()["ended"] == 1
    gone = await http.get("/user", headers=mine)
    assert (gone.status_code, gone.json()["code"]) == (401, "session_ended")
    assert gone.headers["www-authenticate"] == "Bearer"
    assert gone.json()["request_id"] == gone.headers["x-request-id"]


async def test_a_key_pays_for_chats_and_its_user_sees_what_they_cost(
    running: Running, http: httpx.AsyncClient
) -> None:
    operator = {"x-api-key": OPERATOR}
    assert (await http.put("/admin/prices", json=PRICES, headers=operator)).json()["added"] == 1
    login = await log_in(http)
    mine, user_id = bearer(login["tokens"]["access_token"]), login["user"]["id"]
    made = await http.post("/auth/apikey", json={"name": "k"}, headers=mine)
    key = {"x-api-key": made.json()["api_key"]}
    chats = running.v1 + "/chat/completions"
    poor = await http.post(chats, json=CHAT, headers=key)
    assert (poor.status_code, poor.json()["error"]["code"]) == (402, "insufficient_credits")
    again = {**operator, "idempotency-key": "first"}
    for _ in range(2):
        granted = await http.post(f"/admin/users/{user_id}/grant", json={"amount": 1}, headers=again)
        assert granted.json()["credits"]["credits_total"] == 1.0
    assert (await http.post(chats, json=CHAT, headers=key)).status_code == 200
    async with asyncio.timeout(10):
        while not (usage := (await http.get("/billing/usage", headers=key)).json())["count"]:
            await asyncio.sleep(0.1)  # it is settled in the background
    cost = usage["usage"][0]["cost"]
    assert cost > 0
    credits = (await http.get("/billing/credits", headers=mine)).json()
    assert credits["credits_remaining"] == pytest.approx(1 - cost)
    ledger = (await http.get("/billing/ledger", headers=mine)).json()
    assert sorted(entry["amount"] for entry in ledger["entries"]) == [-cost, 1.0]
    spending = (await http.get("/guardrails/spending", headers=key)).json()
    assert spending["window_spent"]["5min"] == cost
    sums = (await http.get("/billing/usage?group=model", headers=mine)).json()
    assert [(one["attempts"], one["cost"]) for one in sums["usage"]] == [(1, cost)]
    money = (await http.get("/admin/money?check=1", headers=operator)).json()
    assert (money["differences"], money["accounts"]["income.inference"]) == ([], cost)
    assert sum(money["accounts"].values()) == pytest.approx(0)


async def test_operators_change_users_and_see_who_changed_what(http: httpx.AsyncClient) -> None:
    operator = {"x-api-key": OPERATOR}
    login = await log_in(http)
    mine, user_id = bearer(login["tokens"]["access_token"]), login["user"]["id"]
    assert (await http.get("/admin/users", headers=mine)).status_code == 403
    listed = (await http.get("/admin/users?q=ada", headers=operator)).json()
    assert [user["id"] for user in listed["users"]] == [user_id]
    changed = await http.patch(f"/admin/users/{user_id}", json={"is_admin": True}, headers=operator)
    assert changed.json()["user"]["is_admin"] is True
    assert (await http.get("/admin/users", headers=mine)).status_code == 200  # at once, with the same token
    audit = (await http.get(f"/admin/audit?subject={user_id}", headers=mine)).json()["audit"]
    assert {row["action"] for row in audit} == {"user.create", "user.change"}
    out = await http.patch(f"/admin/users/{user_id}", json={"is_active": False}, headers=operator)
    assert out.status_code == 200
    assert (await http.get("/user", headers=mine)).status_code == 401


async def test_limits_on_spending_are_checked_and_reset(http: httpx.AsyncClient) -> None:
    login = await log_in(http)
    mine, user_id = bearer(login["tokens"]["access_token"]), login["user"]["id"]
    assert (await http.post("/guardrails/record", json={"amount": 2.5}, headers=mine)).status_code == 200
    checked = await http.post("/guardrails/check", json={"estimated_cost": 1}, headers=mine)
    assert checked.json()["allowed"] is True
    assert (await http.post("/guardrails/reset", json={}, headers=mine)).json()["code"] == "operator_only"
    path = f"/admin/users/{user_id}/guardrails/reset"
    done = await http.post(path, json={"window_name": "72h"}, headers={"x-api-key": OPERATOR})
    assert (done.json()["window_spent"]["72h"], done.json()["total_spent"]) == (0, 2.5)


async def test_refusals_have_their_form_wherever_they_arise(http: httpx.AsyncClient) -> None:
    login = await log_in(http)
    mine = bearer(login["tokens"]["access_token"])
    answers = [
        (401, "invalid_api_key", await http.get("/user")),
        (401, "invalid_token", await http.get("/user", headers=bearer("a.b.c"))),
        (403, "account_required", await http.get("/user", headers={"x-api-key": OPERATOR})),
        (400, "invalid_json", await http.post("/auth/login", content=b"{")),
        (413, "request_too_large", await http.post("/auth/login", content=b" " * 70_000)),
        (404, "key_unknown", await http.get("/auth/apikey/none", headers=mine)),
        (
            400,
            "card_number_refused",
            await http.post("/auth/apikey", json={"name": "4242424242424242"}, headers=mine),
        ),
    ]
    for status, code, answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        assert set(answer.json()) <= {"error", "code", "request_id", "details"}
    unknown = await http.get("/auth/nothing", headers=mine)
    assert (unknown.status_code, "error" in unknown.json()) == (404, True)
    assert (await http.put("/user", headers=mine)).status_code == 405


async def test_requests_about_accounts_leave_no_receipt(http: httpx.AsyncClient, running: Running) -> None:
    login = await log_in(http)
    mine = bearer(login["tokens"]["access_token"])
    await http.post("/auth/login", json={"email": ADA["email"], "password": "not the password"})
    key = (await http.post("/auth/apikey", json={"name": "k"}, headers=mine)).json()["api_key"]
    await http.post("/guardrails/record", json={"amount": 1}, headers=mine)
    await http.put("/admin/prices", json=PRICES, headers={"x-api-key": OPERATOR})
    sent = await http.post(running.base_url + "/v1/chat/completions", json=CHAT, headers={"x-api-key": key})
    receipts = await http.get(running.base_url + "/receipts", headers={"x-api-key": OPERATOR})
    kept = [(one["route"], one["status"]) for one in receipts.json()["receipts"]]
    assert kept == [("/v1/chat/completions", sent.status_code)]


async def test_no_secret_and_no_card_reaches_log_receipts_or_database(
    running: Running, http: httpx.AsyncClient, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    card = "4111111111111111"
    login = await log_in(http)
    mine = bearer(login["tokens"]["access_token"])
    made = (await http.post("/auth/apikey", json={"name": "k"}, headers=mine)).json()["api_key"]
    wrong = "my wrong secret passphrase"
    await http.post("/auth/login", json={"email": "ada@example.org", "password": wrong})
    await http.post("/auth/register", json={**ADA, "email": wrong})
    for body in ({"name": card}, {"note": {"deep": [card]}}, {"amount": int(card)}, {"card_num": card}):
        answer = await http.post("/guardrails/record", json=body, headers=mine)
        assert (answer.status_code, card in answer.text) == (400, False)
    header = {**mine, "x-preferred-payment": f"card:{card}:12/30:123"}
    assert (await http.post("/guardrails/record", json={"amount": 1}, headers=header)).status_code == 400
    receipts = await http.get(running.base_url + "/receipts", headers={"x-api-key": OPERATOR})
    assert receipts.status_code == 200
    shown = capfd.readouterr()
    files = b"".join(path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file())
    secrets = [card, wrong, PASSWORD, made, login["tokens"]["refresh_token"], login["tokens"]["access_token"]]
    for secret in secrets:
        assert secret not in shown.out + shown.err + receipts.text
        assert secret.encode() not in files


async def test_without_accounts_there_are_no_such_addresses(start: Start) -> None:  # noqa: F811
    running = await start()
    async with httpx.AsyncClient(base_url=running.base_url, timeout=20) as http:
        for method, path in (
            ("POST", "auth/login"),
            ("GET", "user"),
            ("GET", "admin/users"),
            ("GET", "billing/credits"),
        ):
            answer = await http.request(method, f"/api/v1/{path}")
            assert answer.status_code == 404
        paths = (await http.get("/openapi.json")).json()["paths"]
        assert not any(path.startswith(("/api/v1/auth", "/api/v1/admin")) for path in paths)
