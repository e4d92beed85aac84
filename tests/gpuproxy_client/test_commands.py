"""The proxy, load, strategies, logins, credits and events."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.gpuproxy_client.conftest import ClientShell
from tests.gpuproxy_client.recorded import recorded

PROXY = "POST /api/v1/gpu/proxy"
LOADS = "GET /api/v1/loadbalancer/loads"
OFFERS = "GET /api/v1/gpu/instances"
STRATEGY = "/api/v1/loadbalancer/strategy"
PASSWORD = "a-password-of-stdin"
TOKENS = {"access_token": "a.b.c", "refresh_token": "rt_1", "expires_at": "2099-01-01T00:00:00Z"}
LOAD = {
    "instance_id": "local",
    "provider": "vllm",
    "active_connections": 1,
    "total_connections": 12,
    "avg_response_time": 0.25,
    "weight": 1.5,
}


# ---- proxy


@pytest.mark.parametrize(
    ("words", "order"),
    [
        (
            ["https", "https://a.example"],
            {"protocol": "https", "target_url": "https://a.example", "method": "GET"},
        ),
        (
            ["-body", '{"x": 1}', "http", "http://a.example"],
            {"protocol": "http", "target_url": "http://a.example", "method": "POST", "body": {"x": 1}},
        ),
        (
            ["-method=put", "-body=text", "-timeout", "5", "http", "http://a.example"],
            {
                "protocol": "http",
                "target_url": "http://a.example",
                "method": "PUT",
                "body": "text",
                "timeout": 5,
            },
        ),
        (
            ["-body", '{"method": "tools/list"}', "mcp", "https://a.example"],
            {"protocol": "mcp", "target_url": "https://a.example", "body": {"method": "tools/list"}},
        ),
    ],
)
def test_a_request_goes_through_the_proxy(
    shell: ClientShell, words: list[str], order: dict[str, Any]
) -> None:
    shell.server.on(PROXY, {"status_code": 200, "headers": {}, "body": {"ok": True}, "duration": 5})
    assert shell.done("proxy", *words) == 'Status: 200\n{\n  "ok": true\n}\n'
    assert shell.server.asked[0].body == order


def test_a_body_comes_from_a_file_or_standard_input(shell: ClientShell, tmp_path: Path) -> None:
    shell.server.on(PROXY, {"status_code": 404, "body": "not there"})
    (tmp_path / "body.json").write_text('{"from": "file"}')
    assert (
        shell.done("proxy", "-body", f"@{tmp_path}/body.json", "http", "http://a")
        == "Status: 404\nnot there\n"
    )
    shell.done("proxy", "-body", "-", "http", "http://a", stdin="plain")
    assert [one.body["body"] for one in shell.server.asked] == [{"from": "file"}, "plain"]


def test_a_target_that_fails_is_refused(shell: ClientShell) -> None:
    shell.server.on(PROXY, {"status_code": 0, "body": None, "error": "the target does not answer"})
    assert shell.run("proxy", "https", "https://a.example") == 1
    assert shell.err == "error: the target does not answer\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["ftp", "ftp://a"], "There is no protocol 'ftp': use http, https, mcp, openinference"),
        (["-timeout=soon", "http", "http://a"], "-timeout soon: use whole seconds"),
        (["-body=@/missing", "http", "http://a"], "-body @/missing: No such file or directory"),
    ],
)
def test_proxy_orders_that_are_refused(shell: ClientShell, words: list[str], text: str) -> None:
    assert shell.run("proxy", *words) == 2
    assert text in shell.err
    assert shell.server.asked == []


# ---- load balancing


def test_load_is_shown_as_the_original_shows_it(shell: ClientShell) -> None:
    shell.server.on(LOADS, {"strategy": "round_robin", "count": 1, "loads": {"local": LOAD}})
    shell.server.answers[OFFERS] = [
        (200, {"instances": [{"id": "1"}, {"id": "2"}]}),
        (502, {"error": "io.net does not answer"}),
    ]
    assert shell.done("load").splitlines() == [
        "Strategy: round_robin",
        "",
        "INSTANCE  PROVIDER  ACTIVE  TOTAL  AVG RT  WEIGHT",
        "local     vllm      1       12     250ms   1.50",
        "",
        "vast.ai: 2 available instances",
        "io.net: io.net does not answer",
    ]


def test_load_of_one_kind_asks_for_no_more(shell: ClientShell) -> None:
    shell.server.on(LOADS, {"strategy": "round_robin", "loads": {}})
    shell.server.on(OFFERS, {"instances": []})
    shell.done("load", "server")
    assert shell.server.paths() == [LOADS]
    assert shell.done("load", "provider") == "vast.ai: 0 available instances\nio.net: 0 available instances\n"
    assert [one.query for one in shell.server.asked[1:]] == ["provider=vast.ai", "provider=io.net"]
    found = json.loads(shell.done("-json", "load"))
    assert found == {
        "server": {"strategy": "round_robin", "loads": {}},
        "provider": {"vast.ai": 0, "io.net": 0},
    }


def test_load_of_markets_that_both_fail_is_refused(shell: ClientShell) -> None:
    shell.server.on(OFFERS, {"error": "no market answers"}, status=502)
    assert shell.run("load", "provider") == 1
    assert shell.err == "error: no market answers\n"
    assert shell.run("load", "half") == 2


def test_a_strategy_is_shown_and_set(shell: ClientShell) -> None:
    shell.server.on(f"GET {STRATEGY}", {"strategy": "round_robin"})
    shell.server.on(
        f"PUT {STRATEGY}", {"strategy": "least_connections", "message": "Load balancing strategy updated"}
    )
    assert shell.done("lb-strategy") == "Current strategy: round_robin\n"
    assert (
        shell.done("lb-strategy", "least_connections")
        == "Load balancing strategy updated: least_connections\n"
    )
    assert shell.server.asked[1].body == {"strategy": "least_connections"}


# ---- account


def log_in(shell: ClientShell, tokens: dict[str, str] = TOKENS) -> None:
    shell.server.on("POST /api/v1/auth/login", {"user": {"email": "a@example.org"}, "tokens": tokens})
    shell.done("login", "a@example.org", stdin=PASSWORD, key="")


def test_a_login_is_kept_for_its_owner_alone_and_used(shell: ClientShell) -> None:
    log_in(shell)
    assert PASSWORD not in shell.out + shell.err
    [path] = (shell.folder / "aiserve-gpuproxy").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert shell.server.asked[0].body == {"email": "a@example.org", "password": PASSWORD}
    shell.server.on("GET /api/v1/gpu/rentals", {"rentals": []})
    shell.done("rentals", key="")
    assert shell.server.asked[-1].headers["authorization"] == "Bearer a.b.c"
    shell.done("rentals", key="apk_mine")
    assert "authorization" not in shell.server.asked[-1].headers


def test_a_login_is_of_one_appliance(shell: ClientShell) -> None:
    log_in(shell)
    with recorded() as other:
        other.on("GET /api/v1/gpu/rentals", {"rentals": []})
        shell.done("-api", other.url, "rentals", key="")
        assert "authorization" not in other.asked[0].headers


def test_an_expired_login_is_refreshed_and_kept(shell: ClientShell) -> None:
    log_in(shell, {**TOKENS, "expires_at": "2020-01-01T00:00:00Z"})
    shell.server.on("POST /api/v1/auth/refresh", {"tokens": {**TOKENS, "access_token": "d.e.f"}})
    shell.server.on("GET /api/v1/gpu/rentals", {"rentals": []})
    for _ in range(2):
        shell.done("rentals", key="")
        assert shell.server.asked[-1].headers["authorization"] == "Bearer d.e.f"
    assert shell.server.paths().count("POST /api/v1/auth/refresh") == 1
    refresh = next(one for one in shell.server.asked if one.path.endswith("/refresh"))
    assert refresh.body == {"refresh_token": "rt_1"}
    assert "authorization" not in refresh.headers


def test_a_session_that_has_ended_says_to_log_in_again(shell: ClientShell) -> None:
    log_in(shell, {**TOKENS, "expires_at": "2020-01-01T00:00:00Z"})
    shell.server.on("POST /api/v1/auth/refresh", {"error": "reused"}, status=401)
    assert shell.run("rentals", key="") == 1
    assert "The login has ended. Log in again" in shell.err
    assert list((shell.folder / "aiserve-gpuproxy").iterdir()) == []


def test_a_damaged_login_counts_as_none(shell: ClientShell) -> None:
    log_in(shell)
    [path] = (shell.folder / "aiserve-gpuproxy").iterdir()
    path.write_bytes(b'{"access_token": 5}')
    shell.server.on("GET /api/v1/gpu/rentals", {"error": "key needed"}, status=401)
    assert shell.run("rentals", key="") == 1
    assert "key needed. Give a key by -key or GPUPROXY_API_KEY, or log in" in shell.err


def test_logging_out_ends_the_session_and_forgets_it(shell: ClientShell) -> None:
    log_in(shell)
    shell.server.on("POST /api/v1/auth/logout", {"message": "Logged out", "ended": 1})
    assert shell.done("logout", key="") == "Logged out\n"
    assert shell.server.asked[-1].body == {"refresh_token": "rt_1"}
    assert shell.run("logout", key="") == 1
    assert "There is no login to end." in shell.err


def test_a_login_that_cannot_be_kept_is_refused(shell: ClientShell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/proc/none")
    shell.server.on("POST /api/v1/auth/login", {"user": {}, "tokens": TOKENS})
    assert shell.run("login", "a@example.org", stdin=PASSWORD) == 1
    assert "The login cannot be kept in /proc/none/aiserve-gpuproxy/login-" in shell.err
    assert "rt_1" not in shell.err


def test_a_login_without_tokens_is_not_kept(shell: ClientShell) -> None:
    shell.server.on("POST /api/v1/auth/login", {"user": {}})
    assert shell.run("login", "a@example.org", "-", stdin=PASSWORD) == 1
    assert "has no tokens" in shell.err
    assert not (shell.folder / "aiserve-gpuproxy").exists()


def test_credits_are_shown(shell: ClientShell) -> None:
    shell.server.on(
        "GET /api/v1/billing/credits",
        {"credits_remaining": 4.5, "credits_total": 5, "credits_held": 0.25, "credits_cap": 1},
    )
    assert shell.done("balance").splitlines() == [
        "CREDITS    DOLLARS",
        "remaining  $4.50",
        "total      $5.00",
        "held       $0.25",
        "overage    $0.00 of $1.00",
        "owed       $0.00",
    ]


# ---- events


def event(seq: int) -> dict[str, Any]:
    return {"seq": seq, "topic": "rentals", "at": "2026-12-01T00:00:00Z", "data": {"event": "rental.ready"}}


def test_events_are_printed_until_ctrl_c(shell: ClientShell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.server.on(
        "GET /polling",
        {"events": [], "next": 7},
        {"events": [event(8)], "next": 8},
        {"events": [event(12)], "next": 12, "gap": {"from": 9, "to": 11}},
        {"error": "stopped"},
    )
    shell.server.answers["GET /polling"][-1] = (503, {"error": "draining"})
    assert shell.run("events") == 1
    assert shell.out.splitlines() == [
        '8  2026-12-01T00:00:00Z  rentals  {"event":"rental.ready"}',
        '12  2026-12-01T00:00:00Z  rentals  {"event":"rental.ready"}',
    ]
    assert "events 9 to 11 are no longer kept" in shell.err
    assert [one.query for one in shell.server.asked] == [
        "wait=25",
        *(f"after={n}&wait=25" for n in (7, 8, 12)),
    ]


def test_the_last_events_are_printed_once(shell: ClientShell) -> None:
    shell.server.on("GET /polling", {"events": [], "next": 7}, {"events": [event(6), event(7)], "next": 7})
    lines = shell.done("-json", "events", "-once")
    assert [json.loads(one)["seq"] for one in lines.replace("}\n{", "}\0{").split("\0")] == [6, 7]
    assert [one.query for one in shell.server.asked] == ["wait=0", "after=0&wait=0"]
    shell.server.on("GET /polling", {"events": []})
    assert shell.run("events") == 1
    assert shell.run("events", "-after", "soon") == 2


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch, shell: ClientShell) -> None:
    monkeypatch.setenv("GPUPROXY_API_URL", shell.server.url + "/api/v1/")
    shell.server.on(f"GET {STRATEGY}", {"strategy": "round_robin"})
    from appliance.gpuproxy_client.program import main

    assert main(["lb-strategy"]) == 0
    assert "GPUPROXY_API_KEY" not in os.environ
    assert "x-api-key" not in shell.server.asked[0].headers
