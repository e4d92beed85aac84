"""Listing, renting, reserving, renewing and ending instances; tables and prices are those of the original."""

import io
import json
from typing import Any

import pytest

from appliance.gpuproxy_client.api import ApiClient, ApiFailure
from appliance.gpuproxy_client.starting import StartWatch
from tests.gpuproxy_client.conftest import ClientShell

OFFER = {
    "id": "vast-12345",
    "provider": "vast.ai",
    "gpu_name": "RTX 4090",
    "gpu_count": 2,
    "vram_gb": 24.0,
    "price_per_hour": 0.4567,
    "location": "Sweden, SE",
    "available": True,
}
RENTAL = {
    "id": "r-1",
    "contract_id": "777",
    "provider": "vast.ai",
    "instance_id": "vast-12345",
    "state": "starting",
    "gpu_name": "RTX 4090",
    "gpu_count": 2,
    "price_per_hour": 0.4567,
    "cost": 0.1,
    "lease_ends_at": "2026-12-01T03:00:00.000Z",
    "ended_at": None,
    "address": "",
    "last_error": "",
    "end_reason": "",
}
CREATED = {
    "contract_id": "777",
    "provider": "vast.ai",
    "instance_id": "vast-12345",
    "state": "starting",
    "rental": RENTAL,
}
CREATE = "POST /api/v1/gpu/instances/vast.ai/12345"


def test_offers_are_listed_as_the_original_lists_them(shell: ClientShell) -> None:
    shell.server.on(
        "GET /api/v1/gpu/instances",
        {
            "instances": [OFFER, {**OFFER, "id": "ionet-a", "provider": "io.net", "price_per_hour": 12}],
            "count": 2,
            "provider": "all",
            "errors": [{"provider": "io.net", "message": "too many requests"}],
        },
    )
    assert shell.done("list").splitlines() == [
        "ID          PROVIDER  GPU       COUNT  VRAM  PRICE/HR  LOCATION",
        "vast-12345  vast.ai   RTX 4090  2      24GB  $0.46     Sweden, SE",
        "ionet-a     io.net    RTX 4090  2      24GB  $12.00    Sweden, SE",
        "",
        "Total: 2 instances",
        "io.net did not answer: too many requests",
    ]
    [asked] = shell.server.asked
    assert (asked.query, asked.headers["x-api-key"]) == ("", "apk_test")


def test_a_provider_and_filters_are_asked_for(shell: ClientShell) -> None:
    shell.server.on("GET /api/v1/gpu/instances", {"instances": [], "count": 0})
    shell.done("-key", "apk_other", "list", "--min-vram=40", "-max-price", "1.5", "-gpu", "H 100", "vast.ai")
    [asked] = shell.server.asked
    assert asked.query == "provider=vast.ai&min_vram=40&max_price=1.5&gpu_model=H+100"
    assert asked.headers["x-api-key"] == "apk_other"


@pytest.mark.parametrize("name", ["12345", "vast-12345"])
def test_an_offer_is_rented_by_its_id_with_or_without_prefix(shell: ClientShell, name: str) -> None:
    shell.server.on(f"POST /api/v1/gpu/instances/vast.ai/{name}", CREATED, status=201)
    said = shell.done("create", "-image", "ubuntu:24.04", "-lease=2h", "vast.ai", name)
    assert said == (
        "Instance created successfully\nContract ID: 777\nProvider: vast.ai\nInstance ID: vast-12345\n"
    )
    [asked] = shell.server.asked
    assert asked.body == {"image": "ubuntu:24.04", "lease_s": 7200}
    assert len(asked.headers["idempotency-key"]) == 36


@pytest.fixture
def terminal(shell: ClientShell, monkeypatch: pytest.MonkeyPatch) -> ClientShell:
    """Standard output is a terminal, and no time passes."""
    monkeypatch.setattr(StartWatch.__init__, "__defaults__", (lambda seconds: None, lambda: 0.0, 0))
    shell.is_terminal = True
    return shell


def test_on_a_terminal_a_start_is_waited_for(terminal: ClientShell) -> None:
    ready = {**RENTAL, "state": "ready", "address": "10.1.2.3"}
    terminal.server.on(CREATE, CREATED, status=201)
    terminal.server.on(
        "GET /api/v1/gpu/rentals", {"rentals": [RENTAL]}, {"rentals": [RENTAL]}, {"rentals": [ready]}
    )
    assert terminal.run("create", "vast.ai", "12345") == 0
    assert "\rstarting … 0 s" in terminal.out
    assert terminal.out.endswith("Ready at 10.1.2.3; lease until 2026-12-01T03:00:00.000Z\n")
    assert terminal.server.paths().count("GET /api/v1/gpu/rentals") == 3


def test_no_wait_means_no_wait(terminal: ClientShell) -> None:
    terminal.server.on(CREATE, CREATED, status=201)
    for flag in ("-no-wait", "--json"):
        assert terminal.run("create", flag, "vast.ai", "12345") == 0
    assert terminal.server.paths() == [CREATE, CREATE]


@pytest.mark.parametrize("state", ["failed", "gone", "lost", "destroying"])
def test_a_start_that_fails_says_why(terminal: ClientShell, state: str) -> None:
    terminal.server.on(CREATE, CREATED, status=201)
    ended = {**RENTAL, "state": state, "last_error": "no such image"}
    terminal.server.on("GET /api/v1/gpu/rentals", {"rentals": [ended]})
    assert terminal.run("create", "vast.ai", "12345") == 1
    assert terminal.err == f"error: The instance did not start: {state}, no such image.\n"


def test_ctrl_c_says_what_goes_on_running(terminal: ClientShell, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: StartWatch, rental_id: str) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(StartWatch, "wait", interrupt)
    terminal.server.on(CREATE, CREATED, status=201)
    assert terminal.run("create", "vast.ai", "12345") == 130
    assert terminal.err.splitlines() == [
        "",
        "The instance 777 goes on running and costs $0.46 an hour until 2026-12-01T03:00:00.000Z.",
        "To end it: aiserve-gpuproxy-client destroy vast.ai 777",
    ]
    assert "DELETE" not in str(terminal.server.paths())


def test_ctrl_c_while_ordering_says_where_to_look(
    shell: ClientShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: ApiClient, *_: Any, **__: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(ApiClient, "call", interrupt)
    assert shell.run("create", "vast.ai", "12345") == 130
    assert "`aiserve-gpuproxy-client rentals` shows what runs" in shell.err


def test_a_lost_response_says_that_something_may_run(shell: ClientShell) -> None:
    shell.server.on(CREATE, None)
    assert shell.run("create", "vast.ai", "12345") == 3
    assert "ended before the response" in shell.err
    assert "Whether the instance was rented is not known" in shell.err
    assert "`aiserve-gpuproxy-client rentals`" in shell.err


def watch_on(shell: ClientShell, out: io.StringIO, waits: list[float]) -> StartWatch:
    return StartWatch(ApiClient(shell.server.url), out, sleep=waits.append, now_s=lambda: 1000.0 * len(waits))


def test_a_wait_outlasts_a_restart_of_the_appliance(shell: ClientShell) -> None:
    waits: list[float] = []
    ready = {**RENTAL, "state": "ready"}
    shell.server.answers["GET /api/v1/gpu/rentals"] = [
        (503, {"error": "draining"}),
        (200, None),
        (200, {"rentals": [ready]}),
    ]
    out = io.StringIO()
    assert watch_on(shell, out, waits).wait("r-1") == ready
    assert "the appliance does not answer" in out.getvalue()
    assert waits == [3.0, 3.0]


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        ([(200, {"rentals": []})], "does not know this rental any more"),
        ([(401, {"error": "unknown key"})], "unknown key"),
        ([(503, {"error": "the database is down"})], "the database is down"),
        ([(200, {"rentals": [RENTAL]})], "still not ready (starting)"),
    ],
)
def test_a_wait_ends(shell: ClientShell, answers: list[Any], text: str) -> None:
    shell.server.answers["GET /api/v1/gpu/rentals"] = answers
    with pytest.raises(ApiFailure) as failed:
        watch_on(shell, io.StringIO(), []).wait("r-1")
    assert text in failed.value.message


def test_ctrl_c_clears_the_line_of_progress(shell: ClientShell) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    shell.server.on("GET /api/v1/gpu/rentals", {"rentals": [RENTAL]})
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        StartWatch(ApiClient(shell.server.url), out, sleep=interrupt, now_s=lambda: 0.0).wait("r-1")
    assert out.getvalue().endswith("\r" + " " * len("starting … 0 s") + "\r")


def test_an_instance_is_destroyed(shell: ClientShell) -> None:
    shell.server.on(
        "DELETE /api/v1/gpu/instances/io.net/a%2Fb",
        {"message": "Instance destroyed successfully", "rental": {}},
    )
    assert shell.done("destroy", "io.net", "a/b") == "Instance destroyed successfully\n"


RESERVE = "POST /api/v1/gpu/instances/reserve"


def test_gpus_are_reserved(shell: ClientShell) -> None:
    row = {
        "instance_id": "vast-1",
        "contract_id": "7",
        "provider": "vast.ai",
        "gpu_model": "A100",
        "vram": 80.0,
        "price": 1.5,
    }
    shell.server.on(
        RESERVE, {"reserved": [row], "count": 1, "requested": 1, "errors": ["vast-2: gone"]}, status=201
    )
    said = shell.done("reserve", "-provider", "vast.ai", "-min-vram", "40", "-partial", "1")
    assert said.splitlines() == [
        "Reserved 1 of 1 GPUs",
        "",
        "INSTANCE  CONTRACT  PROVIDER  GPU   VRAM  PRICE",
        "vast-1    7         vast.ai   A100  80GB  $1.50",
        "  vast-2: gone",
    ]
    [asked] = shell.server.asked
    assert asked.body == {"count": 1, "filters": {"min_vram": 40.0, "provider": "vast.ai"}, "partial": True}


def test_a_reservation_that_was_rolled_back_is_refused(shell: ClientShell) -> None:
    shell.server.on(
        RESERVE,
        {"error": "Fewer than 3 instances could be rented.", "errors": ["vast-2: gone"], "rolled_back": True},
        status=409,
    )
    assert shell.run("reserve", "3") == 1
    assert shell.err == "  vast-2: gone\nerror: Fewer than 3 instances could be rented.\n"


@pytest.mark.parametrize("count", ["0", "17", "-1", "many", "1.5", "1600", "\u0663"])
def test_counts_that_are_refused(shell: ClientShell, count: str) -> None:
    assert shell.run("reserve", "--", count) == 2
    assert shell.err == "Count must be between 1 and 16\n"
    assert shell.server.asked == []


def test_rentals_are_listed(shell: ClientShell) -> None:
    shell.server.on("GET /api/v1/gpu/rentals", {"rentals": [RENTAL], "count": 1})
    lines = shell.done("rentals", "-live").splitlines()
    assert lines[0].split() == [
        "CONTRACT",
        "INSTANCE",
        "PROVIDER",
        "GPU",
        "COUNT",
        "STATE",
        "PRICE/HR",
        "COST",
        "LEASE",
        "ENDS",
    ]
    assert "777       vast-12345  vast.ai   RTX 4090  2      starting  $0.46     $0.10" in lines[1]
    assert lines[-1] == "Total: 1 rentals"
    assert shell.server.asked[0].query == "live=1"


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("2h", 7200)])
def test_a_lease_is_renewed(shell: ClientShell, text: str, seconds: int) -> None:
    shell.server.on("POST /api/v1/gpu/instances/vast.ai/777/renew", RENTAL)
    assert shell.done("renew", "vast.ai", "777", text) == "Lease of 777 until 2026-12-01T03:00:00.000Z\n"
    assert shell.server.asked[0].body == {"seconds": seconds}


@pytest.mark.parametrize("text", ["0", "-1", "1.5h", "soon", "1d", "9999999999"])
def test_lengths_of_time_that_are_refused(shell: ClientShell, text: str) -> None:
    assert shell.run("renew", "--", "vast.ai", "777", text) == 2
    assert "is no length of time" in shell.err


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (["list"], "GET /api/v1/gpu/instances"),
        (["create", "vast.ai", "12345"], CREATE),
        (["destroy", "vast.ai", "1"], "DELETE /api/v1/gpu/instances/vast.ai/1"),
        (["reserve", "1"], RESERVE),
        (["rentals"], "GET /api/v1/gpu/rentals"),
        (["renew", "vast.ai", "1", "60"], "POST /api/v1/gpu/instances/vast.ai/1/renew"),
    ],
)
def test_json_is_the_servers_object(shell: ClientShell, words: list[str], address: str) -> None:
    found = {"anything": [1, {"x": "y"}]}
    shell.server.on(address, found)
    assert json.loads(shell.done("-json", *words)) == found


@pytest.mark.parametrize("odd", [{}, {"instances": 5}, {"instances": [5, {"vram_gb": "x", "id": "\x1b[2J"}]}])
def test_odd_responses_do_no_harm(shell: ClientShell, odd: dict[str, Any]) -> None:
    shell.server.on("GET /api/v1/gpu/instances", odd)
    assert "\x1b" not in shell.done("list")
