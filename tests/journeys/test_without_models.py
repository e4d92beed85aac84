"""The addresses about models where none are run here: they answer with none, and with what the machine has."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.journeys.model_tables import Managed
from tests.journeys.running import Start, free_port, until

NONE = {
    "/v1/models/failed": {"failed_models": [], "message": "No failed models"},
    "/v1/health/models": {},
    "/v1/telemetry/summary": {"message": "No requests recorded yet"},
    "/v1/queue/stats": {
        "summary": {"total_queued": 0, "total_processing": 0, "total_processed": 0, "total_rejected": 0},
        "per_model": {},
    },
}


async def get(url: str) -> Any:
    async with httpx.AsyncClient(timeout=20) as http:
        response = await http.get(url)
        assert response.status_code == 200, response.text
        return response.json()


async def test_every_address_answers_without_a_table(start: Start) -> None:
    base = (await start()).base_url
    for path, body in NONE.items():
        assert await get(base + path) == body
    status = await get(f"{base}/v1/models/status")
    assert (status["server"]["status"], status["models"]) == ("ready", {})
    assert status["summary"] == {"total": 0, "by_status": {}}
    assert await get(f"{base}/v1/models/status/file") == {"server": status["server"], "models": {}}
    memory = await get(f"{base}/vram")
    assert (memory["models"], memory["loaded_models_count"]) == ([], 0)
    assert memory["gpu_info"]["total_mb"] > 0
    assert (await get(f"{base}/metrics/report"))["server"]["status"] == "ready"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models/status/nobody"),
        ("GET", "/v1/models/nobody/status"),
        ("GET", "/v1/models/nobody/logs"),
        ("GET", "/vram/models/nobody"),
        ("POST", "/v1/models/nobody/load"),
        ("POST", "/v1/models/nobody/pin"),
    ],
)
async def test_a_model_that_is_asked_for_is_told_what_to_set(start: Start, method: str, path: str) -> None:
    base = (await start()).base_url
    async with httpx.AsyncClient(base_url=base) as http:
        error = (await http.request(method, path)).json()["error"]
        assert error["code"] == "model_not_found"
        assert "Set MODEL_DIR to a folder of .gguf files" in error["message"]
        ejected = (await http.post("/v1/models/eject", json={"model": "nobody"})).json()
        assert (ejected["status"], ejected["model_ejected"]) == ("not_found", "nobody")
        assert (await http.post("/v1/models/nobody/reset")).json()["status"] == "not_found"


async def test_feeds_begin_are_no_requests_in_flight_and_end_with_the_stop(start: Start) -> None:
    running = await start()
    appliance = running.appliance
    kinds: dict[str, list[str]] = {"/v1/models/status/stream": [], "/metrics/stream": []}

    async def follow(path: str) -> None:
        async with (
            httpx.AsyncClient(timeout=20) as http,
            http.stream("GET", running.base_url + path) as response,
        ):
            async for line in response.aiter_lines():
                if line.startswith("event: "):
                    kinds[path].append(line.removeprefix("event: "))

    feeds = [asyncio.create_task(follow(path)) for path in kinds]
    assert await until(lambda: all(kinds.values()))
    assert (appliance.pipeline.in_flight, appliance.status()["in_flight"]) == (2, 0)
    page = (await httpx.AsyncClient().get(f"{running.base_url}/metrics")).text
    assert "\nappliance_requests_in_flight 0.0\n" in page
    assert appliance.no_models is not None
    appliance.no_models.announce_shutdown()
    assert appliance.manager_handlers is not None
    appliance.manager_handlers.close()
    await asyncio.wait_for(asyncio.gather(*feeds), 5)
    assert kinds == {
        "/v1/models/status/stream": ["full_status", "server_update"],
        "/metrics/stream": ["metrics", "shutdown"],
    }


async def test_the_status_port_is_ready_without_models(start: Start) -> None:
    port = free_port()
    await start(STATUS_PORT=str(port))
    health = await get(f"http://127.0.0.1:{port}/health")
    assert (health["status"], health["server"]["status"]) == ("ok", "ready")
    assert (await get(f"http://127.0.0.1:{port}/status"))["models"] == {}


@pytest.mark.parametrize("has_models", [False, True])
async def test_vram_and_healthz_agree_on_a_simulated_gpu(
    start: Start, managed: Managed, has_models: bool
) -> None:
    """It is named in both; the figures are those of the memory that models really use, and it is said which."""
    variables = {"GPU_MODE": "simulated", "GPU_SPOOF_NAME": "Card"}
    running = (await managed("a", variables=variables)).running if has_models else await start(**variables)
    health, memory = await get(f"{running.base_url}/healthz"), await get(f"{running.base_url}/vram")
    assert memory["gpu"] == health["gpu"]
    assert (memory["gpu"]["simulated"], memory["gpu"]["gpus"][0]["name"]) == (True, "Card (simulated)")
    assert memory["memory"] == "system"
    assert [device["name"] for device in memory["devices"]] == ["system memory"]
