"""Every address of the manager over HTTP: the real front on loopback, over a manager of plain values."""

from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from appliance.base.clock import FakeClock
from appliance.front.manager.handlers import ManagerHandlers
from appliance.models.manager.errors import InsufficientMemory, QueueFull, QueueTimeout
from appliance.models.status.views import DeviceView, HealthView, RequestSample
from tests.front.static_manager import AT_S, MIB, StaticManager, http, manager, off, ready, serving_manager

__all__ = ["http", "manager"]


# ---- status

QWEN = {
    "alias": "qwen3-8b",
    "status": "ready",
    "port": 8085,
    "started_at": "2027-01-15T07:59:00.000000Z",
    "last_used_at": "2027-01-15T07:59:59.000000Z",
    "load_progress": 100,
    "error_message": None,
    "vram_used_mb": 2048.0,
    "updated_at": "2027-01-15T07:59:02.500000Z",
}
OURS = {
    "expected_in_s": None,
    "queue_length": 2,
    "attempts": 0,
    "pinned": False,
    "expires_at": "2027-01-15T08:05:00.000000Z",
}
SERVER = {
    "status": "ready",
    "started_at": "2027-01-15T07:58:20.000000Z",
    "updated_at": "2027-01-15T07:58:30.000000Z",
}


async def test_row_get_v1_models_status(http: httpx.AsyncClient) -> None:
    response = await http.get("/v1/models/status")
    body = response.json()
    assert response.status_code == 200
    assert response.headers["x-request-id"]
    assert list(body) == ["server", "models", "summary"]
    assert body["server"] == SERVER
    assert list(body["models"]) == ["qwen3-8b", "org/gemma-3", "broken"]
    assert body["models"]["qwen3-8b"] == QWEN | OURS
    assert body["models"]["org/gemma-3"] == {
        **dict.fromkeys(QWEN),
        "alias": "org/gemma-3",
        "status": "off",
        "updated_at": "2027-01-15T08:00:00.000000Z",
        "expected_in_s": None,
        "queue_length": 0,
        "attempts": 0,
        "pinned": False,
        "expires_at": None,
    }
    assert body["models"]["broken"]["error_message"] == "llama_model_load: no such file"
    assert body["summary"] == {"total": 3, "by_status": {"ready": 1, "off": 1, "failed": 1}}


async def test_row_get_v1_models_status_alias(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/models/status/qwen3-8b")).json() == QWEN | OURS
    for spelling in ("org/gemma-3", "org%2Fgemma-3"):
        assert (await http.get(f"/v1/models/status/{spelling}")).json()["alias"] == "org/gemma-3"


async def test_row_get_v1_models_status_file(
    http: httpx.AsyncClient, manager: StaticManager, tmp_path: Path
) -> None:
    body = (await http.get("/v1/models/status/file")).json()
    assert list(body) == ["server", "models"]
    assert body["models"]["qwen3-8b"] == QWEN | OURS
    path = tmp_path / "model_status.json"
    handlers = ManagerHandlers(manager, clock=FakeClock(AT_S), status_path=path)
    async with (
        serving_manager(manager, handlers=handlers) as (url, _),
        httpx.AsyncClient(base_url=url) as client,
    ):
        assert (await client.get("/v1/models/status/file")).json()["server"] == SERVER  # not written yet
        path.write_bytes(b'{"server": {}, "models": {}}')
        assert (await client.get("/v1/models/status/file")).content == b'{"server": {}, "models": {}}'


@pytest.mark.parametrize(
    ("alias", "body"),
    [
        ("qwen3-8b", {"model": "qwen3-8b", "status": "ready", "port": 8085}),
        ("org/gemma-3", {"model": "org/gemma-3", "status": "stopped"}),
        ("broken", {"model": "broken", "status": "failed", "detail": "llama_model_load: no such file"}),
        ("fallen", {"model": "fallen", "status": "crashed", "detail": "killed by signal 9"}),
    ],
)
async def test_row_get_v1_models_alias_status(
    http: httpx.AsyncClient, manager: StaticManager, alias: str, body: dict[str, object]
) -> None:
    manager.put(replace(off("fallen"), status="crashed", error_message="killed by signal 9", port=8086))
    response = await http.get(f"/v1/models/{alias}/status")
    assert (response.status_code, response.json()) == (200, body)


async def test_the_log_of_a_model_is_for_operators_and_followed(
    http: httpx.AsyncClient, manager: StaticManager, tmp_path: Path
) -> None:
    url = "/v1/models/qwen3-8b/logs"
    assert (await http.get(url)).json() == {"model": "qwen3-8b", "log": None, "lines": []}
    path = manager.log_path = tmp_path / "log"
    path.write_text("one\ntwo\n")
    assert (await http.get(url, params={"lines": 1})).json()["lines"] == ["two"]
    assert (await http.get(url, params={"lines": 2001})).json()["error"]["param"] == "lines"
    assert (await http.get("/v1/models/none-such/logs")).status_code == 404
    async with http.stream("GET", url, params={"lines": 1, "follow": 1, "port": 8085}) as response:
        lines = response.aiter_lines()
        assert [await anext(lines) for _ in range(3)] == ["event: log", 'data: {"lines":["two"]}', ""]
        with path.open("a") as file:
            file.write("three\n")
        assert [await anext(lines) for _ in range(2)] == ["event: log", 'data: {"lines":["three"]}']
    assert manager.asked[-1] == ("log", "qwen3-8b", 8085)


async def test_row_get_v1_models_failed(http: httpx.AsyncClient, manager: StaticManager) -> None:
    rows = (await http.get("/v1/models/failed")).json()
    assert rows == {
        "failed_models": [
            {"model": "broken", "attempts": 3, "error": ("llama_model_load: " + "x" * 400)[:200]}
        ]
    }
    manager.failures.clear()
    assert (await http.get("/v1/models/failed")).json() == {
        "failed_models": [],
        "message": "No failed models",
    }


async def test_models_lists_what_is_configured_loaded_or_not(http: httpx.AsyncClient) -> None:
    rows = {row["id"]: row for row in (await http.get("/v1/models")).json()["data"]}
    assert {key: rows["org/gemma-3"][key] for key in ("id", "object", "owned_by", "n_ctx")} == {
        "id": "org/gemma-3",
        "object": "model",
        "owned_by": "user",
        "n_ctx": 4096,
    }
    assert rows["qwen3-8b"]["n_ctx"] == 8192
    assert (await http.get("/v1/models/org/gemma-3")).json() == rows["org/gemma-3"]


async def test_a_model_named_like_an_address_is_served() -> None:
    manager = StaticManager(*(off(name) for name in ("failed", "status", "eject", "file", "a/status")))
    async with serving_manager(manager) as (url, _), httpx.AsyncClient(base_url=url) as client:

        async def get(path: str) -> dict[str, object]:
            return (await client.get(path)).json()

        assert await get("/v1/models/failed") == {"failed_models": [], "message": "No failed models"}
        assert await get("/v1/models/failed/status") == {"model": "failed", "status": "stopped"}
        assert await get("/v1/models/eject/status") == {"model": "eject", "status": "stopped"}
        assert await get("/v1/models/a/status/status") == {"model": "a/status", "status": "stopped"}
        assert (await get("/v1/models/status"))["summary"] == {"total": 5, "by_status": {"off": 5}}
        assert (await get("/v1/models/status/status"))["alias"] == "status"
        assert list(await get("/v1/models/status/file")) == ["server", "models"]
        assert (await client.post("/v1/models/eject/pin")).json()["pinned"] is True
        assert (await client.post("/v1/models/eject", json={"model": "eject"})).json()[
            "status"
        ] == "not_found"


# ---- verbs


async def test_row_post_v1_models_eject(http: httpx.AsyncClient, manager: StaticManager) -> None:
    async def eject(**body: object) -> tuple[int, dict[str, object]]:
        response = await http.post("/v1/models/eject", json=body)
        return response.status_code, response.json()

    assert await eject(model="qwen3-8b") == (
        200,
        {
            "status": "success",
            "model_ejected": "qwen3-8b",
            "message": "Model 'qwen3-8b' was unloaded.",
            "waited_for": 1,
        },
    )
    assert await eject(model="qwen3-8b") == (
        200,
        {"status": "not_found", "model_ejected": "qwen3-8b", "message": "Model 'qwen3-8b' is not loaded."},
    )
    status, body = await eject(model="nobody")
    assert (status, body["status"], body["model_ejected"]) == (200, "not_found", "nobody")
    assert "nobody" in str(body["message"])
    manager.put(ready("qwen3-8b"))
    assert (await eject(model="qwen3-8b", force=True))[1]["waited_for"] == 0
    assert manager.asked[-1] == ("eject", "qwen3-8b", True)


async def test_row_post_v1_models_alias_reset(http: httpx.AsyncClient) -> None:
    body = (await http.post("/v1/models/broken/reset")).json()
    assert body.pop("message")
    assert body == {
        "status": "success",
        "model": "broken",
        "previous_error": "llama_model_load: " + "x" * 400,
    }
    for alias in ("broken", "nobody"):
        response = await http.post(f"/v1/models/{alias}/reset")
        assert response.status_code == 200
        assert response.json().keys() == {"status", "model", "message"}
        assert (response.json()["status"], response.json()["model"]) == ("not_found", alias)


@pytest.mark.parametrize(
    ("body", "stay_s"),
    [
        (None, None),
        ({}, None),
        ({"keep_alive": 90}, 90),
        ({"keep_alive": "5m"}, 300),
        ({"keep_alive": -1}, -1),
        ({"keep_alive": "-1s"}, -1),
        ({"keep_alive": 0}, 0),
    ],
)
async def test_load_waits_and_answers_the_model(
    http: httpx.AsyncClient, manager: StaticManager, body: object, stay_s: float | None
) -> None:
    manager.steps.put_nowait(True)
    manager.steps.put_nowait(True)
    response = await http.post("/v1/models/org/gemma-3/load", **({} if body is None else {"json": body}))
    assert (response.status_code, response.json()["status"], response.json()["port"]) == (200, "ready", 8090)
    assert manager.asked == [("load", "org/gemma-3", stay_s)]


async def test_load_of_a_model_that_fails_is_503_with_the_reason(
    http: httpx.AsyncClient, manager: StaticManager
) -> None:
    manager.steps.put_nowait(False)
    response = await http.post("/v1/models/org/gemma-3/load")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"], error["attempts"]) == (
        503,
        "model_failed",
        "service_unavailable_error",
        3,
    )
    assert "--frobnicate" in error["message"]


async def test_row_insufficient_vram_queue_full_and_timeout(
    http: httpx.AsyncClient, manager: StaticManager
) -> None:
    manager.refusal = InsufficientMemory(
        "org/gemma-3", required_mb=9000, available_mb=512, loaded_models=["qwen3-8b"], retry_after_s=3
    )
    response = await http.post("/v1/models/org/gemma-3/load")
    error = response.json()["error"]
    assert (response.status_code, response.headers["retry-after"], list(response.json())) == (
        503,
        "3",
        ["error"],
    )
    assert error.pop("message")
    assert error == {
        "type": "insufficient_vram_error",
        "param": None,
        "code": "vram_exhausted",
        "model": "org/gemma-3",
        "required_mb": 9000,
        "available_mb": 512,
        "loaded_models": ["qwen3-8b"],
    }
    manager.refusal = QueueFull("org/gemma-3", limit=100, retry_after_s=2)
    response = await http.post("/v1/models/org/gemma-3/load")
    assert (response.status_code, response.json()["error"]["code"], response.headers["retry-after"]) == (
        503,
        "queue_full",
        "2",
    )
    manager.refusal = QueueTimeout("org/gemma-3", waited_s=300)
    response = await http.post("/v1/models/org/gemma-3/load")
    assert (response.status_code, response.json()["error"]["code"]) == (504, "queue_timeout")


async def test_pin_and_unpin_answer_the_model(http: httpx.AsyncClient, manager: StaticManager) -> None:
    assert (await http.post("/v1/models/org/gemma-3/pin")).json()["pinned"] is True
    assert manager.views["org/gemma-3"].is_pinned
    assert (await http.post("/v1/models/org/gemma-3/unpin")).json()["pinned"] is False


# ---- readings


async def test_row_get_v1_queue_stats(http: httpx.AsyncClient) -> None:
    body = (await http.get("/v1/queue/stats")).json()
    assert body["summary"] == {
        "total_queued": 2,
        "total_processing": 1,
        "total_processed": 10,
        "total_rejected": 1,
    }
    assert body["per_model"]["qwen3-8b"] == {
        "queue_length": 2,
        "total_requests": 10,
        "total_processed": 7,
        "total_rejected": 1,
        "current_processing": 1,
        "processing": True,
        "oldest_s": 0.25,
        "limit": 100,
    }
    assert body["per_model"]["org/gemma-3"]["processing"] is False


async def test_row_get_v1_health_models(http: httpx.AsyncClient, manager: StaticManager) -> None:
    assert (await http.get("/v1/health/models")).json() == {}
    manager.looks = [
        HealthView("qwen3-8b", 99, 0, 12.345, AT_S, "healthy"),
        HealthView("org/gemma-3", 0, 5, 0, None, "down"),
    ]
    assert (await http.get("/v1/health/models")).json() == {
        "qwen3-8b": {
            "uptime_percentage": "99.0%",
            "consecutive_failures": 0,
            "avg_response_time_ms": "12.3",
            "last_check": "2027-01-15T08:00:00.000000Z",
            "status": "healthy",
        },
        "org/gemma-3": {
            "uptime_percentage": "0.0%",
            "consecutive_failures": 5,
            "avg_response_time_ms": "N/A",
            "last_check": None,
            "status": "down",
        },
    }


async def test_row_get_v1_telemetry_summary(http: httpx.AsyncClient, manager: StaticManager) -> None:
    assert (await http.get("/v1/telemetry/summary")).json() == {"message": "No requests recorded yet"}
    manager.samples = [
        RequestSample("qwen3-8b", True, 0.1 * number, 5, 10, 0.01, AT_S) for number in range(1, 4)
    ]
    manager.samples.append(RequestSample("org/gemma-3", False, 0.123, finished_at_s=AT_S))
    body = (await http.get("/v1/telemetry/summary")).json()
    assert {key: body[key] for key in ("total_requests", "successful", "failed", "success_rate")} == {
        "total_requests": 4,
        "successful": 3,
        "failed": 1,
        "success_rate": "75.00%",
    }
    assert body["response_time_stats"] == {
        "avg": "0.181s",
        "min": "0.100s",
        "max": "0.300s",
        "p50": "0.162s",
        "p95": "0.285s",
    }
    assert body["per_model"]["qwen3-8b"] == {
        "total_requests": 3,
        "total_errors": 0,
        "error_rate": "0.00%",
        "total_tokens": 30,
        "avg_response_time": "0.200s",
        "min_response_time": "0.100s",
        "max_response_time": "0.300s",
        "p95_response_time": "0.290s",
        "avg_queue_time": "0.010s",
        "error_percent": 0.0,
        "avg_response_time_s": 0.2,
        "min_response_time_s": 0.1,
        "max_response_time_s": 0.3,
        "p95_response_time_s": 0.29,
        "avg_queue_time_s": 0.01,
    }
    assert body["response_time_s"] == {"avg": 0.18075, "min": 0.1, "max": 0.3, "p50": 0.1615, "p95": 0.285}
    assert body["success_percent"] == 75.0
    assert body["per_model"]["org/gemma-3"]["error_rate"] == "100.00%"


ROW = {
    "model_alias": "qwen3-8b",
    "port": 8085,
    "status": "loaded",
    "vram_used_mb": 2048.0,
    "vram_used_gb": 2.0,
    "average_usage_mb": 2040.0,
    "load_duration_sec": 2.5,
    "vram_percentage": 8.33,
}


async def test_row_get_vram(http: httpx.AsyncClient) -> None:
    body = (await http.get("/vram")).json()
    assert body["gpu_info"] == {
        "total_mb": 24576.0,
        "total_gb": 24.0,
        "used_mb": 4096.0,
        "used_gb": 4.0,
        "free_mb": 20480.0,
        "free_gb": 20.0,
        "usage_percentage": 16.67,
        "baseline_used_mb": 2048.0,
    }
    assert body["models"] == [ROW]
    assert (body["loaded_models_count"], body["can_load_more"], body["status"]) == (1, True, "healthy")
    assert body["devices"][0]["utilization_percent"] == 37.0


@pytest.mark.parametrize(
    ("free_mib", "status", "more"),
    [(1000, "healthy", True), (999, "warning", True), (500, "warning", True), (499, "critical", False)],
)
async def test_vram_is_critical_below_the_minimum_of_a_model(
    http: httpx.AsyncClient,
    manager: StaticManager,
    free_mib: int,
    status: str,
    more: bool,
) -> None:
    manager.places = [replace(manager.places[0], free_bytes=free_mib * MIB)]
    body = (await http.get("/vram")).json()
    assert (body["status"], body["can_load_more"]) == (status, more)


async def test_vram_sums_gpus_or_shows_system_memory(http: httpx.AsyncClient, manager: StaticManager) -> None:
    ram = DeviceView(-1, "system RAM", 1000 * MIB, 400 * MIB, 600 * MIB)
    manager.places = [manager.places[0], replace(manager.places[0], index=1), ram]
    assert (await http.get("/vram")).json()["gpu_info"]["total_mb"] == 2 * 24576.0
    manager.places = [ram]
    assert (await http.get("/vram")).json()["gpu_info"]["total_mb"] == 1000.0
    manager.places = []
    assert (await http.get("/vram")).json()["gpu_info"]["usage_percentage"] == 0


async def test_row_get_vram_summary(http: httpx.AsyncClient, manager: StaticManager) -> None:
    manager.put(replace(ready("org/gemma-3", memory_mib=100), status="loading"))
    assert (await http.get("/vram/summary")).json() == {
        "status": "healthy",
        "total_gb": 24.0,
        "used_gb": 4.0,
        "free_gb": 20.0,
        "usage_percentage": 16.67,
        "loaded_models": 1,
        "can_load_more": True,
        "models": [{"alias": "qwen3-8b", "vram_gb": 2.0, "percentage": 8.33}],
    }


async def test_row_get_vram_models_alias(http: httpx.AsyncClient) -> None:
    body = (await http.get("/vram/models/qwen3-8b")).json()
    assert (body["model_alias"], body["port"], body["status"]) == ("qwen3-8b", 8085, "loaded")
    assert body["vram_usage"] == {
        "current_mb": 2048.0,
        "current_gb": 2.0,
        "average_mb": 2040.0,
        "percentage_of_total": 8.33,
    }
    assert body["load_info"] == {
        "start_time": "2027-01-15T07:59:00.000000Z",
        "end_time": "2027-01-15T07:59:02.500000Z",
        "duration_sec": 2.5,
    }
    assert body["snapshots"] == [
        {"timestamp": "2027-01-15T08:00:00.000000Z", "vram_used_mb": 2048.0, "status": "loaded"}
    ]
    assert body["current_gpu_state"] == {"total_mb": 24576.0, "used_mb": 4096.0, "free_mb": 20480.0}
    assert body["devices"] == [{"index": 0, "used_mb": 2048.0}]
    idle = (await http.get("/vram/models/org/gemma-3")).json()
    assert (
        idle["status"],
        idle["vram_usage"]["current_mb"],
        idle["snapshots"],
        idle["load_info"]["end_time"],
    ) == ("off", 0, [], None)


async def test_metrics_have_the_router_families(http: httpx.AsyncClient) -> None:
    response = await http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    samples = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#"))
    assert float(samples['router_model_status{model="qwen3-8b"}']) == 2
    assert float(samples['router_model_status{model="broken"}']) == 3
    assert float(samples['router_queue_depth{model="qwen3-8b"}']) == 2
    assert float(samples['router_model_vram_bytes{model="qwen3-8b"}']) == 2048 * MIB
    assert float(samples["router_models_loaded_total"]) == 1


async def test_row_get_metrics_report(http: httpx.AsyncClient, manager: StaticManager) -> None:
    manager.samples = [
        RequestSample("qwen3-8b", True, 9, 0, 0, 0, AT_S - 301),
        RequestSample("qwen3-8b", True, 0.2, 5, 600, 0, AT_S - 299),
        RequestSample("broken", False, 0.1, finished_at_s=AT_S - 1),
    ]
    body = (await http.get("/metrics/report")).json()
    assert body["report_type"] == "5_minute_aggregation"
    assert body["window"] == {
        "start": "2027-01-15T07:55:00.000000Z",
        "end": "2027-01-15T08:00:00.000000Z",
        "duration_seconds": 300,
    }
    assert body["server"] == {"status": "ready", "uptime_seconds": 100.0}
    assert body["gpu"] == {
        "vram_total_mb": 24576.0,
        "vram_used_mb": 4096.0,
        "vram_free_mb": 20480.0,
        "vram_used_percent": 16.67,
        "utilization_percent": 37.0,
        "vram_total_gb": 24.0,
        "vram_used_gb": 4.0,
        "vram_free_gb": 20.0,
    }
    assert [row["alias"] for row in body["models"]] == ["qwen3-8b", "org/gemma-3", "broken"]
    row = body["models"][0]
    assert row["requests"] == {"total": 1, "success": 1, "errors": 0, "error_rate_percent": 0.0}
    assert {key: row["latency"][key] for key in ("avg_ms", "min_ms", "max_ms", "p95_ms")} == dict.fromkeys(
        ("avg_ms", "min_ms", "max_ms", "p95_ms"), 200.0
    )
    # of the 100 s since the start
    assert (row["tokens"]["output"], row["tokens"]["per_second"]) == (600, 6.0)
    assert (row["active_requests"], row["vram"]) == (1, {"used_mb": 2048.0})
    assert row["queue"] == {
        "current_depth": 2,
        "total_requests": 10,
        "total_processed": 7,
        "total_rejected": 1,
    }
    totals = {
        key: body["totals"][key]
        for key in ("requests", "errors", "error_rate_percent", "avg_latency_ms", "requests_per_minute")
    }
    assert totals == {
        "requests": 2,
        "errors": 1,
        "error_rate_percent": 50.0,
        "avg_latency_ms": 150.0,
        "requests_per_minute": 1.2,
    }


async def test_health_has_checks_and_details(
    http: httpx.AsyncClient,
) -> None:
    response = await http.get("/health")
    body = response.json()
    assert (response.status_code, body["status"]) == (200, "ok")
    assert body["checks"] == {
        "gpu": {"status": "ok", "vram_used_gb": "4.00", "count": 1},
        "manager": {"status": "ok", "active_models": 1},
        "http_client": {"status": "ok"},
    }
    assert body.keys() >= {"available_backends", "total_backends", "timestamp", "details"}


async def test_health_is_503_with_detail_when_a_check_fails(
    http: httpx.AsyncClient, manager: StaticManager
) -> None:
    manager.places = []
    response = await http.get("/health")
    body = response.json()
    assert (response.status_code, body["status"], body["detail"]["status"]) == (503, "degraded", "degraded")
    assert body["detail"]["checks"]["gpu"]["status"] == "error"
    manager.places = [DeviceView(-1, "system RAM", MIB, 0, MIB)]
    assert (await http.get("/health")).json()["checks"]["gpu"] == {
        "status": "ok",
        "vram_used_gb": "0.00",
        "count": 0,
    }
    manager.put_server("shutting_down")
    checks = (await http.get("/health")).json()["detail"]["checks"]
    assert (checks["manager"]["status"], checks["http_client"]["status"]) == ("error", "error")
