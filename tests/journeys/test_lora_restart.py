"""Orders of adapters outlast the appliance: after a kill -9 they go on, or say why they cannot."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.downloads.engines import MIB, random_bytes, read_folder
from tests.fakes.file_hubs import Hub
from tests.fakes.lora_engines import LoraEngine
from tests.journeys.running import Process, Spawn

SIZE = 24 * MIB
TOKEN = "hf_a_token_of_ours"
PATIENCE_S = 60
QUICK = {"BACKEND_STARTUP_GRACE_S": "0"}


async def ask(running: Process, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, running.base_url + path, json=body) as answer,
    ):
        return answer.status, await answer.json()


async def load(running: Process, **body: Any) -> tuple[int, Any]:
    return await ask(
        running, "POST", "/v1/load_lora_adapter", {"lora_name": "style", "async_download": True, **body}
    )


async def unload(running: Process) -> tuple[int, Any]:
    return await ask(running, "POST", "/v1/unload_lora_adapter", {"lora_name": "style"})


async def pending(running: Process) -> dict[str, Any]:
    """Give the order for `style`; {} = there is none."""
    _, value = await ask(running, "GET", "/v1/lora_adapters")
    return next((row for row in value["pending"] if row["lora_name"] == "style"), {})


async def until_pending(running: Process, is_it: Any) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        while not is_it(found := await pending(running)):
            await asyncio.sleep(0.02)
    return found


async def kill(running: Process) -> None:
    running.process.kill()
    await asyncio.to_thread(running.process.wait)


def kept(tmp_path: Path) -> list[dict[str, Any]]:
    path = tmp_path / "state" / "lora-orders.json"
    assert path.stat().st_mode & 0o777 == 0o600
    return json.loads(path.read_text())["orders"]


async def begun(spawn: Spawn, hub: Hub, variables: dict[str, str], **body: Any) -> Process:
    """Start an appliance and an order in it; give it when a part of the adapter is there."""
    hub.drip_s = 0.05
    running = await asyncio.to_thread(spawn, **variables)
    status, value = await load(running, source="ns/repo", **body)
    assert (status, value["status"]) == (202, "started")
    await until_pending(running, lambda row: row.get("done_bytes", 0) > 4 * MIB)
    return running


async def test_an_order_goes_on_after_a_kill(spawn: Spawn, tmp_path: Path) -> None:
    async with LoraEngine("vllm") as engine, Hub({"adapter_model.safetensors": random_bytes(SIZE)}) as hub:
        variables = {"BACKENDS": f"v={engine.url}", "HF_ENDPOINT": hub.url, **QUICK}
        running = await begun(spawn, hub, variables, max_workers=2, config={"revision": "main"})
        await kill(running)
        (row,) = kept(tmp_path)
        assert (row["name"], row["phase"], row["max_workers"], row["config"]) == (
            "style",
            "downloading",
            2,
            {"revision": "main"},
        )
        assert engine.adapters == {}
        hub.drip_s = 0
        running = await asyncio.to_thread(spawn, **variables)
        assert await until_pending(running, lambda row: not row) == {}
        folder = tmp_path / "state" / "adapters" / "style"
        assert engine.adapters == {"style": str(folder)}
        assert read_folder(folder) == hub.files
        assert hub.sent["adapter_model.safetensors"] < SIZE + 12 * MIB  # it went on, and did not begin anew
        assert kept(tmp_path) == []
        _, value = await ask(running, "GET", "/v1/lora_adapters")
        assert [(one["id"], one["state"]) for one in value["data"]] == [("style", "loaded")]


async def test_an_order_waits_for_an_engine_that_comes_up_later(spawn: Spawn, tmp_path: Path) -> None:
    async with Hub({"adapter_model.safetensors": random_bytes(SIZE)}) as hub:
        async with LoraEngine("vllm") as engine:
            variables = {"BACKENDS": f"v={engine.url}", "HF_ENDPOINT": hub.url, **QUICK}
            running = await begun(spawn, hub, variables)
            await kill(running)
        hub.drip_s = 0
        running = await asyncio.to_thread(spawn, **variables)
        assert (await until_pending(running, lambda row: row.get("phase") == "waiting"))[
            "source"
        ] == "ns/repo"
        status, value = await unload(running)  # whoever does not want to wait
        assert (status, value["lora_name"], await pending(running), kept(tmp_path)) == (200, "style", {}, [])


@pytest.mark.parametrize("is_given_again", [False, True])
async def test_an_order_whose_credentials_are_gone_says_so(
    spawn: Spawn, tmp_path: Path, is_given_again: bool
) -> None:
    async with LoraEngine("vllm") as engine, Hub({"adapter_model.safetensors": random_bytes(SIZE)}) as hub:
        hub.token = TOKEN
        variables = {"BACKENDS": f"v={engine.url}", "HF_ENDPOINT": hub.url, **QUICK}
        running = await begun(spawn, hub, variables, config={"hf_token": TOKEN})
        await kill(running)
        (row,) = kept(tmp_path)
        assert (row["config"], row["needs"]) == ({}, ["hf_token"])
        hub.drip_s = 0
        running = await asyncio.to_thread(
            spawn, **variables, **({"HF_AUTH_TOKEN": TOKEN} if is_given_again else {})
        )
        found = await until_pending(running, lambda row: row.get("phase") != "downloading")
        if not is_given_again:
            assert (found["phase"], found["error"]) == (
                "interrupted",
                "The appliance stopped during this order, and credentials are not kept: "
                "hf_token (HF_AUTH_TOKEN). Set them in the environment and restart, or order it again.",
            )
            assert (await load(running, source="ns/repo", config={"hf_token": TOKEN}))[0] == 202
        await until_pending(running, lambda row: not row)
        assert list(engine.adapters) == ["style"]
        assert hub.sent["adapter_model.safetensors"] < SIZE + 24 * MIB
    for path in (tmp_path / "state").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    assert TOKEN not in running.text()


async def test_failed_orders_are_listed_after_a_restart(spawn: Spawn, tmp_path: Path) -> None:
    async with LoraEngine("vllm") as engine, Hub({"adapter_model.safetensors": random_bytes(MIB)}) as hub:
        hub.is_gated = True
        variables = {"BACKENDS": f"v={engine.url}", "HF_ENDPOINT": hub.url, **QUICK}
        running = await asyncio.to_thread(spawn, **variables)
        assert (await load(running, source="ns/repo"))[0] == 202
        told = await until_pending(running, lambda row: row.get("phase") == "failed")
        assert "is gated" in told["error"]
        await kill(running)
        running = await asyncio.to_thread(spawn, **variables)
        assert await pending(running) == told
        assert (await unload(running))[0] == 200  # it is forgotten
        assert await pending(running) == {}
        assert (await unload(running))[0] == 404
    assert kept(tmp_path) == []


async def test_an_order_is_given_up_by_an_unload(spawn: Spawn, tmp_path: Path) -> None:
    async with LoraEngine("vllm") as engine, Hub({"adapter_model.safetensors": random_bytes(SIZE)}) as hub:
        running = await begun(spawn, hub, {"BACKENDS": f"v={engine.url}", "HF_ENDPOINT": hub.url, **QUICK})
        assert (await unload(running))[0] == 200
        assert (await pending(running), kept(tmp_path), engine.adapters) == ({}, [], {})
        assert (tmp_path / "state" / "adapters" / "style" / ".download").is_dir()  # for another time
        hub.drip_s = 0
        assert (await load(running, source="ns/repo"))[0] == 202
        await until_pending(running, lambda row: not row)
        assert list(engine.adapters) == ["style"]
        assert hub.sent["adapter_model.safetensors"] < SIZE + 24 * MIB
