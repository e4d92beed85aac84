"""Prices, the ledger's accounts and the audit, for operators."""

from pathlib import Path
from typing import Any

import pytest

from appliance.accounts.prices import Price
from appliance.base.clock import FakeClock
from appliance.storage.database import Database
from tests.accounts.parts import identity_on, settings_of
from tests.front.accounts.api import AccountsApi, Login, build_api

LLAMA = {"model": "llama-70b", "in": "0.60", "cached_in": "0.15", "out": "0.80"}


@pytest.fixture
def api(api_on_both: AccountsApi) -> AccountsApi:
    """Both databases: what is shown here is read by statements of its own."""
    return api_on_both


@pytest.fixture
async def root(api: AccountsApi) -> Login:
    return await api.log_in("root@example.org", is_admin=True)


async def test_prices_are_added_as_versions(api: AccountsApi, root: Login) -> None:
    rows = [LLAMA, {"model": "*", "in": 1, "out": 2, "per_request": "0.000001"}]
    first = await api.call("PUT", "/admin/prices", {"prices": rows}, login=root)
    assert (first.status, first.json["added"], first.json["unchanged"]) == (200, 2, 0)
    assert first.json["prices"][0] == {
        "model": "llama-70b",
        "source": "database",
        "version": 1,
        "valid_from": "2027-01-15T08:00:00.000Z",
        "in": 0.6,
        "cached_in": 0.15,
        "out": 0.8,
        "embedding": 0.6,
        "per_request": 0.0,
        "gpu_hour_markup_percent": 0,
    }
    again = await api.call("PUT", "/admin/prices", {"prices": rows}, login=root)
    assert (again.json["added"], again.json["unchanged"]) == (0, 2)
    assert isinstance(api.identity.clock, FakeClock)
    api.identity.clock.advance(60)
    dearer = await api.call("PUT", "/admin/prices", {"prices": [{**LLAMA, "out": 1}]}, login=root)
    assert [(one["version"], one["out"]) for one in dearer.json["prices"]] == [(2, 1.0)]
    now = await api.call("GET", "/admin/prices", login=root)
    assert [(one["model"], one["version"]) for one in now.json["prices"]] == [("llama-70b", 2), ("*", 1)]
    every = await api.call("GET", "/admin/prices?all=1", login=root)
    assert every.json["count"] == 3
    rows = (await api.call("GET", "/admin/audit?action=price.set", login=root)).json["audit"]
    assert [(row["subject_id"], row["actor_id"]) for row in rows].count(("llama-70b", root.id)) == 2


async def test_prices_of_the_file_are_listed_with_their_source(
    sqlite_database: Database, tmp_path: Path
) -> None:
    of_file = [Price("llama-70b", in_per_mtok=1), Price("other", out_per_mtok=2_000_000)]
    async with identity_on(sqlite_database, tmp_path, clock=FakeClock()) as identity:
        api = build_api(identity, settings_of(), file_prices=lambda: of_file)
        root = await api.log_in("root@example.org", is_admin=True)
        await api.call("PUT", "/admin/prices", {"prices": [LLAMA]}, login=root)
        for query in ("", "?all=1"):
            listed = (await api.call("GET", f"/admin/prices{query}", login=root)).json
            shown = [(one["model"], one["source"], one["version"], one["out"]) for one in listed["prices"]]
            assert shown == [("llama-70b", "database", 1, 0.8), ("other", "file", 0, 2.0)]
            assert listed["count"] == 2
        of_file.clear()  # as after a reload
        assert (await api.call("GET", "/admin/prices", login=root)).json["count"] == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"prices": ' + b"[" * 50_000,
        {},
        {"prices": {}},
        {"prices": [5]},
        {"prices": [{"in": 1}]},
        {"prices": [{"model": "m", "in": -1}]},
        {"prices": [{"model": "m", "in": "a lot"}]},
        {"prices": [{"model": "m", "input": 1}]},
        {"prices": [{"model": "m"}, {"model": "m"}]},
        {"prices": [LLAMA, {"model": "m", "in": 0.00000001}]},
    ],
)
async def test_prices_that_are_not_right_change_none(api: AccountsApi, root: Login, body: Any) -> None:
    answer = await api.call("PUT", "/admin/prices", body, login=root)
    assert answer.code == (400, "invalid_prices")
    assert answer.json["details"]["problems"]
    assert (await api.call("GET", "/admin/prices", login=root)).json["prices"] == []


async def test_a_list_of_prices_is_bounded(api: AccountsApi, root: Login) -> None:
    answer = await api.call("PUT", "/admin/prices", b" " * (4 * 1024 * 1024 + 1), login=root)
    assert answer.code == (413, "request_too_large")


async def test_money_adds_up(api: AccountsApi, root: Login) -> None:
    login = await api.log_in()
    await api.call("POST", f"/admin/users/{login.id}/grant", {"amount": 5}, login=root)
    answer = await api.call("GET", "/admin/money?check=1", login=root)
    assert answer.json["accounts"] == {"grants": -5.0, "wallet:*": 5.0}
    wallets = {
        "count": 2,
        "total": 5.0,
        "used": 0.0,
        "held": 0.0,
        "owed": 0.0,
        "remaining": 5.0,
        "overage": 0.0,
    }
    assert answer.json["wallets"] == wallets
    assert (answer.json["usage"]["attempts"], answer.json["differences"]) == (0, [])
    assert "differences" not in (await api.call("GET", "/admin/money", login=root)).json
    for query in ("since=soon", "check=maybe", "audit=1"):
        assert (await api.call("GET", f"/admin/money?{query}", login=root)).status == 400


async def test_the_audit_is_found_by_who_and_what_in_pages(api: AccountsApi, root: Login) -> None:
    login = await api.log_in()
    assert isinstance(api.identity.clock, FakeClock)
    for number in range(3):
        api.identity.clock.advance(1)
        await api.call("PATCH", f"/admin/users/{login.id}", {"plan": f"p{number}"}, login=root)
    found, before = [], ""
    while before is not None:
        page = await api.call("GET", f"/admin/audit?limit=2&before={before}&subject={login.id}", login=root)
        found += page.json["audit"]
        before = page.json["next"]
    assert [row["action"] for row in found] == ["user.change"] * 3 + ["user.create"]
    assert set(found[0]) == {
        "id",
        "at",
        "actor_kind",
        "actor_id",
        "action",
        "subject_kind",
        "subject_id",
        "ip_address",
        "details",
    }
    mine = await api.call("GET", f"/admin/audit?actor={root.id}&action=user.change", login=root)
    assert mine.json["count"] == 3
    for query in ("before=x", "limit=0", "actor=%00", "subject=" + "x" * 65, "who=me"):
        assert (await api.call("GET", f"/admin/audit?{query}", login=root)).status == 400
