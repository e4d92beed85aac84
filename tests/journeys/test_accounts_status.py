"""What an appliance with accounts shows of them: metrics, health, header fields; without accounts nothing changes."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.accounts.issued_keys import KeyRequest
from appliance.base.metrics.accounts import AccountFigures, find_quantile
from appliance.base.metrics.registry import Metrics
from appliance.build_accounts import Accounts
from appliance.reload import Reloader
from appliance.storage.database import StoreUnavailable
from tests.accounts.parts import AUTHOR, PASSWORD
from tests.journeys.running import Running, Start, until

SECRET = "0123456789abcdefghijklmnopqrstuvwxyz-ABCDEFGH"
PRICES = {"prices": [{"model": "*", "in": "1", "cached_in": "0.5", "out": "2"}]}
HELLO = {"model": "demo", "messages": [{"role": "user", "content": "hello"}]}


async def make_key(accounts: Accounts) -> str:
    """Make a user with a key; return the key."""
    identity = accounts.identity
    user = await identity.users.create("u@example.com", PASSWORD, "U", author=AUTHOR)
    facts = await identity.directory.user(user.id)
    assert facts is not None
    key, _ = await identity.keys.create(facts, KeyRequest("k"), author=AUTHOR)
    return key.text


class Site:
    """An appliance with accounts and one user, who has a key."""

    def __init__(self, running: Running, key: str, client: httpx.AsyncClient) -> None:
        self.running, self.key, self.client = running, key, client
        accounts = running.appliance.accounts
        assert accounts is not None
        self.accounts: Accounts = accounts

    async def chat(self, **body: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key}"}
        return await self.client.post("/v1/chat/completions", json={**HELLO, **body}, headers=headers)

    async def get(self, path: str, **headers: str) -> httpx.Response:
        return await self.client.get(path, headers={"authorization": f"Bearer {self.key}", **headers})

    def break_store(self, patch: pytest.MonkeyPatch) -> None:
        database = self.accounts.database
        reason = "postgres://app@db.internal:5432/gpuproxy: connection refused"

        async def fail() -> None:
            raise StoreUnavailable(reason)

        patch.setattr(database, "_try", fail)
        database._note_down(reason)


def settings(tmp_path: Path, **more: str) -> dict[str, str]:
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps(PRICES))
    return {
        "ACCOUNTS": "1",
        "JWT_SECRET": SECRET,
        "PRICES_FILE": str(prices),
        "SIGNUP_CREDITS_USD": "1",
        **more,
    }


@pytest.fixture
async def make_site(start: Start, tmp_path: Path) -> AsyncIterator[Any]:
    clients = []

    async def make(**more: str) -> Site:
        running = await start(**settings(tmp_path, **more))
        accounts = running.appliance.accounts
        assert accounts is not None
        client = httpx.AsyncClient(base_url=running.base_url, timeout=10)
        clients.append(client)
        return Site(running, await make_key(accounts), client)

    yield make
    for client in clients:
        await client.aclose()


def numbers(page: str) -> dict[str, float]:
    rows = (line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in rows if name.startswith(("appliance_", "gpuproxy_"))}


async def test_the_metrics_tell_what_was_charged(make_site: Any) -> None:
    site = await make_site()
    assert (await site.chat()).status_code == 200
    accounts = site.accounts
    assert await until(lambda: accounts.money.settler.settled.get("engine") == 1)
    found = numbers((await site.get("/metrics")).text)
    assert found["appliance_store_up"] == 1
    assert found['appliance_settlements_total{source="engine"}'] == 1
    assert found["appliance_loss_musd_total"] == 0
    assert found["appliance_unsettled_attempts"] == 0 == found["appliance_oldest_unsettled_seconds"]
    assert found["appliance_limits_local"] == 1
    assert found["appliance_known_api_keys"] == 1
    assert 0 < found["appliance_wallet_leased_musd"] <= 1_000_000
    assert found["appliance_wallet_held_musd"] == 0
    assert "appliance_redis_up" not in found
    assert found["gpuproxy_requests_total"] == 1
    assert found["gpuproxy_requests_failed"] == 0
    assert found["gpuproxy_request_success_rate"] == 100
    assert found["gpuproxy_request_duration_milliseconds_count"] == 1
    assert found['gpuproxy_request_duration_milliseconds{quantile="0.5"}'] > 0
    assert found["gpuproxy_db_queries_total"] > 3
    assert found["gpuproxy_uptime_seconds"] > 0
    as_openmetrics = await site.get("/metrics", accept="application/openmetrics-text")
    assert "# TYPE gpuproxy_requests counter" in as_openmetrics.text
    assert as_openmetrics.text.endswith("# EOF\n")


async def test_streams_ended_for_their_credits_are_counted(make_site: Any) -> None:
    site = await make_site(SIGNUP_CREDITS_USD="0.0005", HOLD_SLICE_TOKENS="8")
    many = [{"role": "user", "content": "demo: long 2000"}]
    answer = await site.chat(stream=True, messages=many)
    assert "credits_exhausted" in answer.text
    assert await until(lambda: bool(site.accounts.spending.stopped))
    found = numbers((await site.get("/metrics")).text)
    assert found['appliance_streams_stopped_total{reason="credits_exhausted"}'] == 1


async def test_without_the_database_it_is_degraded_and_serves(
    make_site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await make_site(OPERATOR_API_KEYS="operator-key-0123456789")
    assert (await site.chat()).status_code == 200
    for path in ("/healthz", "/health"):
        before = (await site.get(path)).json()
        assert before["degraded"] == []
        assert before["checks"]["database"] == {"status": "ok", "healthy": True, "kind": "sqlite"}
    assert before["status"] == "ok"
    site.break_store(monkeypatch)
    assert (await site.chat()).status_code == 200
    shown = await site.get("/healthz")
    assert shown.status_code == 200
    assert shown.json()["ok"]
    assert shown.json()["degraded"] == ["store"]
    assert "db.internal" not in shown.text  # that is for operators
    refused = await site.client.post("/v1/chat/completions", json=HELLO, headers={"x-api-key": "unknown"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
    assert "db.internal" not in refused.text
    record = await site.client.post(
        "/api/v1/guardrails/record", json={"amount": 1}, headers={"x-api-key": site.key}
    )
    assert (record.status_code, record.json()["code"]) == (503, "store_unavailable")
    assert "db.internal" not in record.text
    health = await site.get("/health")
    assert health.status_code == 200
    assert (health.json()["status"], health.json()["degraded"]) == ("degraded", ["store"])
    assert "db.internal" not in health.text
    as_operator = await site.client.get("/healthz", headers={"x-api-key": "operator-key-0123456789"})
    assert "db.internal" in as_operator.json()["checks"]["database"]["error"]
    assert numbers((await site.get("/metrics")).text)["appliance_store_up"] == 0


async def test_who_sends_no_key_sees_the_short_status(make_site: Any) -> None:
    site = await make_site()
    short = (await site.client.get("/healthz")).json()
    assert "checks" not in short
    assert "degraded" not in short
    assert short["ok"]
    assert set((await site.client.get("/health")).json()) == {"status"}


async def test_limits_stand_in_header_fields_that_pages_may_read(make_site: Any) -> None:
    site = await make_site(
        CORS_ORIGINS="https://app.example",
        RATE_LIMIT_REQUESTS_PER_MINUTE="2",
        GUARDRAILS_ENABLED="1",
        GUARDRAILS_MAX_5MIN_RATE="0.5",
        GUARDRAILS_MAX_48H_RATE="3",
    )
    headers = {"authorization": f"Bearer {site.key}", "origin": "https://app.example"}
    answers = [await site.client.post("/v1/chat/completions", json=HELLO, headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    exposed = {
        name.strip().lower() for name in answers[0].headers["access-control-expose-headers"].split(",")
    }
    for answer in answers:
        sent = {name for name in answer.headers if name.startswith(("x-ratelimit-", "x-guardrails-"))}
        assert sent <= exposed
        assert {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"} <= sent
    assert answers[0].headers["x-guardrails-enabled"] == "true"
    assert answers[0].headers["x-guardrails-5min"] == "0.00" == answers[0].headers["x-guardrails-48h"]
    assert "x-guardrails-15min" not in exposed


async def test_a_spending_limit_says_which_window_it_is(make_site: Any) -> None:
    site = await make_site(GUARDRAILS_ENABLED="1", GUARDRAILS_MAX_15MIN_RATE="0.0001")
    answer = await site.chat(max_tokens=500)
    assert answer.status_code == 402
    assert answer.reason_phrase == "Payment Required"
    assert answer.headers["x-guardrails-exceeded"] == "true"
    error = answer.json()["error"]
    assert (error["code"], error["message"]) == ("spending_limit", "Spending limit exceeded")
    assert error["violations"] == [{"window": "15min", "limit": 0.0001, "spent": 0.0}]
    assert error["spent"] == {"15min": 0.0}


async def test_what_was_spent_is_read_again_after_some_seconds(
    make_site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.accounts.guardrails.REREAD_S", 0.0)
    site = await make_site(
        GUARDRAILS_ENABLED="1", GUARDRAILS_MAX_5MIN_RATE="0.5", RATE_LIMIT_REQUESTS_PER_MINUTE="0"
    )
    shown = []
    for _ in range(250):
        await asyncio.sleep(0.02)  # it is settled and read meanwhile
        answer = await site.chat(max_tokens=50)
        shown.append(answer.headers["x-guardrails-5min"])
        if float(shown[-1]):
            break
    assert shown[0] == "0.00"
    assert float(shown[-1]) > 0


async def test_without_accounts_nothing_of_it_is_shown(start: Start) -> None:
    running = await start()
    async with httpx.AsyncClient(base_url=running.base_url) as client:
        page = (await client.get("/metrics")).text
        assert "gpuproxy_" not in page
        assert "appliance_store_up" not in page
        for path in ("/healthz", "/health"):
            body = (await client.get(path)).json()
            assert "degraded" not in body
            assert "database" not in body.get("checks", {})


@pytest.mark.parametrize(
    ("counts", "share", "value"),
    [
        ([0, 0, 0], 0.5, 0.0),
        ([4, 0, 0], 0.5, 0.5),
        ([2, 2, 0], 0.5, 1.0),
        ([2, 2, 0], 0.75, 2.0),
        ([0, 0, 5], 0.5, 3.0),
        ([1, 0, 1], 0.99, 3.0),
    ],
)
def test_quantiles_are_estimated_within_a_bucket(counts: list[float], share: float, value: float) -> None:
    assert find_quantile([1.0, 3.0], counts, share) == value


def test_redis_and_the_pool_have_rows_where_there_are_any() -> None:
    metrics = Metrics()
    metrics.use_accounts(
        lambda: AccountFigures(is_redis_up=False, connections=(5, 3), snapshot_age_s=1.5, loss_musd=7)
    )
    found = numbers(metrics.render().decode())
    assert found["appliance_redis_up"] == 0
    assert (found["gpuproxy_db_connections_active"], found["gpuproxy_db_connections_idle"]) == (2, 3)
    assert found["appliance_accounts_snapshot_age_seconds"] == 1.5
    assert found["appliance_loss_musd_total"] == 7


async def test_a_reload_takes_prices_anew_and_keeps_them_where_the_file_is_wrong(
    make_site: Any, tmp_path: Path
) -> None:
    site = await make_site()
    reloader, path = Reloader(site.running.appliance), tmp_path / "prices.json"
    first = (await site.chat()).headers["x-request-id"]
    rows = [{"model": "*", "in": "10", "out": "20"}]
    path.write_text(json.dumps({"prices": rows}))
    result = await reloader.reload({}, dry_run=False)
    assert [(one.variable, one.new) for one in result.changes] == [
        ("prices", "*: 10.00 in, 10.00 cached, 20.00 out per 1M tokens")
    ]
    assert result.applied
    second = (await site.chat()).headers["x-request-id"]
    receipts = {one.id: one for one in site.running.appliance.receipts.latest(10)}
    assert receipts[second].billing["cost"] == pytest.approx(10 * receipts[first].billing["cost"])
    path.write_text('{"prices": [\n{"model": "*", "in": "-1"}]}')
    result = await reloader.reload({}, dry_run=False)
    assert not result.applied
    assert "line 2" in str(result.problems[0])
    third = (await site.chat()).headers["x-request-id"]
    receipts = {one.id: one for one in site.running.appliance.receipts.latest(10)}
    assert receipts[third].billing == receipts[second].billing
