"""The refusals of the model manager's addresses: status, text, and who is refused."""

import httpx
import pytest

from appliance.front.manager.handlers import ManagerHandlers
from appliance.front.pipeline.access import Access
from tests.front.static_manager import StaticManager, http, manager, serving_manager

__all__ = ["http", "manager"]
KEYS = {"APPLIANCE_API_KEYS": "client-key-1", "OPERATOR_API_KEYS": "operator-key-1"}
CLIENT, OPERATOR = {"Authorization": "Bearer client-key-1"}, {"Authorization": "Bearer operator-key-1"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models/status/nobody"),
        ("GET", "/v1/models/nobody/status"),
        ("GET", "/vram/models/nobody"),
        ("GET", "/v1/models/nobody/load"),
        ("POST", "/v1/models/nobody/load"),
        ("POST", "/v1/models/nobody/pin"),
        ("POST", "/v1/models/nobody/unpin"),
    ],
)
async def test_an_unknown_alias_is_404(http: httpx.AsyncClient, method: str, path: str) -> None:
    response = await http.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert "nobody" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "content", "code", "param"),
    [
        ("eject", b"", "missing_body", None),
        ("eject", b"{}", "missing_required_parameter", "model"),
        ("eject", b'{"model": ""}', "missing_required_parameter", "model"),
        ("eject", b'{"model": 7}', "invalid_type", "model"),
        ("eject", b'{"model": "qwen3-8b", "force": "yes"}', "invalid_type", "force"),
        ("eject", b"[1]", "invalid_json", None),
        ("eject", b"{", "invalid_json", None),
        ("qwen3-8b/load", b'{"stream": 1}', "invalid_type", "stream"),
        ("qwen3-8b/load", b'{"keep_alive": "soon"}', None, "keep_alive"),
        ("qwen3-8b/load", b'"x"', "invalid_json", None),
    ],
)
async def test_a_wrong_body_is_400_with_the_field(
    http: httpx.AsyncClient,
    manager: StaticManager,
    path: str,
    content: bytes,
    code: str | None,
    param: str | None,
) -> None:
    response = await http.post(f"/v1/models/{path}", content=content)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"], error["param"]) == (
        400,
        "invalid_request_error",
        code,
        param,
    )
    assert manager.asked == []


@pytest.mark.parametrize(
    "path", ["eject", "qwen3-8b/load", "qwen3-8b/pin", "qwen3-8b/unpin", "org/gemma-3/reset"]
)
async def test_get_is_refused_for_actions(http: httpx.AsyncClient, path: str) -> None:
    response = await http.get(f"/v1/models/{path}")
    assert (response.status_code, response.headers["allow"], response.json()["error"]["code"]) == (
        405,
        "POST",
        "method_not_allowed",
    )


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/status",
        "/v1/models/status/file",
        "/vram",
        "/vram/models/qwen3-8b",
        "/v1/queue/stats",
        "/v1/models/org/gemma-3/status",
        "/metrics/report",
        "/v1/telemetry/summary",
    ],
)
async def test_post_is_refused_for_read_only_addresses(http: httpx.AsyncClient, path: str) -> None:
    response = await http.post(path, json={})
    assert response.status_code == 405
    assert "GET" in response.headers["allow"]


READINGS = [
    "/v1/models/status",
    "/v1/models/status/qwen3-8b",
    "/v1/models/status/file",
    "/v1/models/qwen3-8b/status",
    "/v1/models/failed",
    "/v1/models/status/stream",
    "/v1/queue/stats",
    "/v1/health/models",
    "/v1/telemetry/summary",
    "/vram",
    "/vram/summary",
    "/vram/models/qwen3-8b",
    "/metrics/stream",
    "/metrics/report",
    "/health",
]
VERBS = [
    "/v1/models/eject",
    "/v1/models/qwen3-8b/reset",
    "/v1/models/qwen3-8b/load",
    "/v1/models/qwen3-8b/pin",
    "/v1/models/qwen3-8b/unpin",
]


async def test_reading_needs_a_client_key_and_acting_an_operator_key(manager: StaticManager) -> None:
    async with serving_manager(manager, **KEYS) as (url, _), httpx.AsyncClient(base_url=url) as client:
        for path in READINGS:
            is_public = path == "/health"  # its short form
            assert (await client.get(path)).status_code == (200 if is_public else 401), path
            async with client.stream("GET", path, headers=CLIENT) as response:
                assert response.status_code == 200, path
        for path in VERBS:
            body = {"model": "qwen3-8b"}
            assert (await client.post(path, json=body)).status_code == 401, path
            refused = await client.post(path, json=body, headers=CLIENT)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "operator_only"), path
            assert manager.asked == []
        for path in reversed(VERBS):
            assert (
                await client.post(path, json={"model": "qwen3-8b"}, headers=OPERATOR)
            ).status_code == 200, path


async def test_a_page_of_another_site_may_not_eject(http: httpx.AsyncClient, manager: StaticManager) -> None:
    response = await http.post(
        "/v1/models/eject", json={"model": "qwen3-8b"}, headers={"Origin": "https://elsewhere.example"}
    )
    assert (response.status_code, manager.asked) == (403, [])


async def test_while_draining_reading_works_and_acting_is_refused(manager: StaticManager) -> None:
    async with serving_manager(manager) as (url, parts), httpx.AsyncClient(base_url=url) as client:
        parts.lifecycle.set_state("draining")
        assert (await client.get("/v1/models/status")).status_code == 200
        response = await client.post("/v1/models/org/gemma-3/load")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")


@pytest.mark.parametrize(("word", "status"), [("high", 200), ("Normal", 200), ("low", 200), ("urgent", 400)])
async def test_row_header_x_request_priority(http: httpx.AsyncClient, word: str, status: int) -> None:
    response = await http.post(
        "/v1/chat/completions",
        json={"messages": [{"role": "user", "content": "Hello"}]},
        headers={"X-Request-Priority": word, "X-Request-ID": "mine-1"},
    )
    assert (response.status_code, response.headers["x-request-id"]) == (status, "mine-1")


async def test_without_a_table_health_has_no_checks() -> None:
    async with serving_manager(None) as (url, _), httpx.AsyncClient(base_url=url) as client:
        health = await client.get("/health")
        assert (health.status_code, "checks" in health.json()) == (200, False)


def test_every_address_says_who_may_call_it() -> None:
    routes = object.__new__(ManagerHandlers).routes()
    assert {route.path for route in routes if route.access is Access.OPERATOR} == {
        "/v1/models/eject",
        *(f"/v1/models/{{alias:.+}}/{verb}" for verb in ("reset", "load", "pin", "unpin", "logs")),
    }
    reads = [route for route in routes if "GET" in route.methods and not route.path.endswith("/logs")]
    assert all(route.access is Access.CLIENT for route in reads)
