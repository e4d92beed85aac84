"""While the database is away every address says 503, never 401 and never 500; known keys stay known."""

from typing import Any

import pytest

from appliance.front.pipeline.access import Access
from appliance.front.pipeline.route import Route
from tests.accounts.parts import PASSWORD
from tests.front.accounts.api import BASE, AccountsApi

KEY = "/auth/apikey/{key}"
USER = "/admin/users/{user}"
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/auth/register"): {"email": "new@example.org", "password": PASSWORD, "name": "New"},
    ("POST", "/auth/login"): {"email": "root@example.org", "password": PASSWORD},
    ("POST", "/auth/refresh"): {"refresh_token": "{refresh_token}"},
    ("POST", "/auth/logout"): {"refresh_token": "{refresh_token}"},
    ("POST", "/auth/password"): {"old_password": PASSWORD, "new_password": "another password"},
    ("GET", "/auth/sessions"): None,
    ("DELETE", "/auth/sessions"): None,
    ("DELETE", "/auth/sessions/{key}"): None,
    ("POST", "/auth/apikey"): {"name": "k"},
    ("GET", "/auth/apikey"): None,
    ("GET", KEY): None,
    ("DELETE", KEY): None,
    ("POST", f"{KEY}/rotate"): None,
    ("GET", "/user"): None,
    ("DELETE", "/user"): None,
    ("GET", "/user/export"): None,
    ("GET", "/billing/credits"): None,
    ("GET", "/billing/credits/sessions"): None,
    ("GET", "/billing/usage"): None,
    ("GET", "/billing/ledger"): None,
    ("GET", "/guardrails/spending"): None,
    ("POST", "/guardrails/record"): {"amount": 1},
    ("POST", "/guardrails/check"): {"estimated_cost": 1},
    ("POST", "/guardrails/reset"): None,
    ("GET", "/admin/users"): None,
    ("POST", "/admin/users"): {"email": "new@example.org", "password": PASSWORD, "name": "New"},
    ("GET", USER): None,
    ("PATCH", USER): {"plan": "pro"},
    ("DELETE", USER): None,
    ("POST", f"{USER}/password"): {"password": PASSWORD},
    ("POST", f"{USER}/grant"): {"amount": 1},
    ("PATCH", f"{USER}/credits"): {"plan": 1},
    ("PATCH", f"{USER}/quota"): {"max_requests": 1},
    ("POST", f"{USER}/guardrails/reset"): None,
    ("GET", "/admin/prices"): None,
    ("PUT", "/admin/prices"): {"prices": [{"model": "m"}]},
    ("GET", "/admin/money"): None,
    ("GET", "/admin/audit"): None,
}


def _address(route: Route) -> tuple[str, str]:
    path = route.path.removeprefix(BASE)
    name = "{user}" if "/admin/" in path else "{key}"
    return route.methods[0], path.replace("{id}", name)


async def test_every_address_is_tried(api: AccountsApi) -> None:
    assert {_address(route) for route in api.routes} == set(BODIES)
    assert {route.dialect for route in api.routes} == {"market"}
    for route in api.routes:
        is_operators = "/admin/" in route.path
        assert (route.access is Access.OPERATOR) is is_operators


@pytest.mark.parametrize(("method", "path"), BODIES)
async def test_an_address_says_503(api: AccountsApi, method: str, path: str) -> None:
    root = await api.log_in("root@example.org", is_admin=True)
    made = await api.call("POST", "/auth/apikey", {"name": "k"}, login=root)
    await api.call("GET", "/user", login=root)  # it is in memory from now on
    await api.identity.database.close()
    body = BODIES[method, path]
    if body is not None and "refresh_token" in body:
        body = {"refresh_token": root.refresh_token}
    answer = await api.call(method, path.format(key=made.json["id"], user=root.id), body, login=root)
    assert answer.status == 503, answer.json
    assert answer.json["code"] in ("store_unavailable", "sessions_unavailable")
