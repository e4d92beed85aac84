"""The status listener: it responds before there is a manager, and follows its status."""

import asyncio
import socket

import httpx
import pytest

from appliance.base.clock import FakeClock, SystemClock
from appliance.front.pipeline.origins import Origins
from appliance.front.settings import FrontSettings
from appliance.front.status_listener import serving_status
from appliance.settings import load
from tests.front.static_manager import AT_S, StaticManager, off, ready
from tests.front.test_manager_feeds import following, next_of

ORIGINS = Origins(FrontSettings(_env_file=None))
EARLY = {
    "status": "initializing",
    "started_at": "2027-01-15T08:00:00.000000Z",
    "updated_at": "2027-01-15T08:00:00.000000Z",
}


async def test_every_address_responds_before_and_after_the_table() -> None:
    boards: list[StaticManager] = []
    async with serving_status(
        lambda: boards[0] if boards else None,
        clock=FakeClock(AT_S),
        host="127.0.0.1",
        port=0,
        origins=ORIGINS,
    ) as (host, port):
        url = f"http://{host}:{port}"
        async with httpx.AsyncClient(base_url=url) as http, following(url, "/status/stream") as events:
            assert (await http.get("/health")).json() == {"status": "ok", "server": EARLY}
            empty = {"server": EARLY, "models": {}, "summary": {"total": 0, "by_status": {}}}
            assert (await http.get("/status")).json() == empty
            early = await http.get("/status/org/b")
            assert (early.status_code, "not read yet" in early.json()["error"]["message"]) == (404, True)
            assert await next_of(events) == ("full_status", empty)

            boards.append(StaticManager(off("a"), off("org/b")))
            seen = [await next_of(events) for _ in range(3)]
            assert [(name, data["status"]) for name, data in seen] == [
                ("model_update", "off"),
                ("model_update", "off"),
                ("server_update", "ready"),
            ]
            boards[0].put(ready("org/b"))
            assert (await next_of(events))[1]["status"] == "ready"
            assert (await http.get("/status")).json()["summary"] == {
                "total": 2,
                "by_status": {"off": 1, "ready": 1},
            }
            assert (await http.get("/status/org/b")).json()["port"] == 8085
            missing = await http.get("/status/nobody")
            assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_the_feed_ends_with_the_listener_and_says_so() -> None:
    manager = StaticManager(off("a"))
    async with asyncio.timeout(5), httpx.AsyncClient():
        opened = serving_status(
            lambda: manager, clock=SystemClock(), host="127.0.0.1", port=0, origins=ORIGINS
        )
        host, port = await opened.__aenter__()
        async with following(f"http://{host}:{port}", "/status/stream") as events:
            await next_of(events)
            closing = asyncio.create_task(opened.__aexit__(None, None, None))
            assert [(name, data["status"]) for name, data in [event async for event in events]] == [
                ("server_update", "shutting_down")
            ]
            await closing


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/", 404, None),
        ("GET", "/v1/models", 404, None),
        ("GET", "/statuses", 404, None),
        ("OPTIONS", "/nowhere", 404, None),
        ("POST", "/v1/models/a/load", 404, None),
        ("POST", "/status", 405, "GET, HEAD, OPTIONS"),
        ("PUT", "/status/a", 405, "GET, HEAD, OPTIONS"),
        ("DELETE", "/health", 405, "GET, HEAD, OPTIONS"),
        ("OPTIONS", "/health", 204, "GET, HEAD, OPTIONS"),
        ("HEAD", "/health", 200, None),
        ("HEAD", "/status/a", 200, None),
        ("HEAD", "/status/stream", 200, None),  # its head, not its events
    ],
)
async def test_the_listener_is_read_only(method: str, path: str, status: int, allow: str | None) -> None:
    manager = StaticManager(off("a"))
    async with serving_status(
        lambda: manager, clock=SystemClock(), host="127.0.0.1", port=0, origins=ORIGINS
    ) as (host, port):
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as http:
            response = await http.request(method, path)
        assert (response.status_code, response.headers.get("Allow"), manager.asked) == (status, allow, [])
        if status >= 400:
            code = response.json()["error"]["code"]
            assert code == {404: "not_found", 405: "method_not_allowed"}[status]
        else:
            assert response.content == b""


async def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"127\.0\.0\.1:{port}: .* set STATUS_PORT to another"):
            async with serving_status(
                lambda: None, clock=SystemClock(), host="127.0.0.1", port=port, origins=ORIGINS
            ):
                pass


@pytest.mark.parametrize(
    ("variables", "is_fatal", "text"),
    [
        ({"STATUS_PORT": "8001", "STATUS_HOST": "0.0.0.0"}, False, "every client that reaches it"),
        ({"STATUS_PORT": "14000"}, True, "Change one"),
        ({"STATUS_PORT": "50051"}, True, "Change one"),
        ({"STATUS_PORT": "0"}, True, "allowed value"),
    ],
)
def test_wrong_or_open_settings_are_reported(variables: dict[str, str], is_fatal: bool, text: str) -> None:
    settings, problems = load(variables)
    found = [problem for problem in problems if problem.variable.startswith("STATUS_")]
    assert [problem.is_fatal for problem in found] == [is_fatal]
    assert text in found[0].remedy
    assert (settings is None) == is_fatal


def test_a_port_on_loopback_needs_no_warning() -> None:
    settings, problems = load({"STATUS_PORT": "8001", "STATUS_HOST": "localhost"})
    assert settings is not None
    assert (settings.models.status_port, [p for p in problems if p.variable.startswith("STATUS_")]) == (
        8001,
        [],
    )


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "evil.example"}, "host_not_allowed"),
        ({"Origin": "https://evil.example"}, "origin_not_allowed"),
        ({"Origin": "http://localhost:3000"}, ""),
        ({}, ""),
    ],
)
async def test_pages_of_other_sites_see_no_status(headers: dict[str, str], code: str) -> None:
    manager = StaticManager(off("a"))
    async with (
        serving_status(lambda: manager, clock=SystemClock(), host="127.0.0.1", port=0, origins=ORIGINS) as (
            host,
            port,
        ),
        httpx.AsyncClient() as http,
    ):
        for path in ("/health", "/status", "/status/a", "/nothing"):
            response = await http.get(f"http://{host}:{port}{path}", headers=headers)
            if code:
                assert (response.status_code, response.json()["error"]["code"]) == (403, code)
            else:
                assert response.status_code == (404 if path == "/nothing" else 200)
