"""Adapters with a source: downloaded first, at once or in the background; and the sidecar's responses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.base import jsons
from appliance.base.errors import Forbidden, UpstreamFailed
from appliance.downloads.contract import (
    DownloadProgress,
    DownloadRequest,
    DownloadResult,
    FileFault,
    OnProgress,
)
from appliance.engines.lora.orders import AdapterOrders
from appliance.engines.receipts import Receipt
from appliance.front.lora import LoraHandlers
from appliance.front.pipeline.request import Request
from appliance.reload import Reloader
from tests.fakes.lora_engines import LoraEngine
from tests.journeys.running import Running, until
from tests.journeys.test_backends import QUICK, ask
from tests.journeys.test_lora_models import listed, say


class Downloads:
    """A download engine by script: it writes a file, fails, or waits to be released."""

    def __init__(self) -> None:
        self.options: list[DownloadRequest] = []
        self.fails: Exception | None = None
        self.released = asyncio.Event()
        self.released.set()
        self.cancelled = False

    async def download(
        self, request: DownloadRequest, on_progress: OnProgress = lambda _: None
    ) -> DownloadResult:
        self.options.append(request)
        on_progress(
            DownloadProgress(files=1, total_bytes=10, done_bytes=4, rate_bytes_s=2.0, phase="fetching")
        )
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.fails is not None:
            raise self.fails
        request.output_dir.mkdir(parents=True)
        (request.output_dir / "adapter_model.safetensors").write_bytes(b"x")
        return DownloadResult(request.output_dir, 1, 10, 10, 0.1)

    async def verify(self, folder: Path) -> list[FileFault]:
        raise NotImplementedError

    async def repair(
        self, folder: Path, on_progress: OnProgress = lambda _: None, config: Any = None
    ) -> DownloadResult:
        raise NotImplementedError


class Harness:
    """An appliance with one vLLM, a download engine by script, and a sidecar's door beside its own."""

    def __init__(self, running: Running, engine: LoraEngine, tmp_path: Path) -> None:
        self.running, self.engine, self.downloads = running, engine, Downloads()
        appliance = running.appliance
        self.folder = tmp_path / "state" / "adapters"
        orders = AdapterOrders(
            appliance.adapters,
            downloader=self.downloads,
            folders=[self.folder],
            own_folder=self.folder,
            tasks=appliance.tasks,
            clock=appliance.clock,
        )
        appliance.lora_orders._downloader = self.downloads
        self.sidecar = LoraHandlers(orders, is_sidecar=True)

    async def post(self, verb: str, **body: Any) -> tuple[int, Any]:
        status, _, value = await ask(self.running, body, path=f"/v1/{verb}_lora_adapter")
        return status, value

    async def beside(self, verb: str, **body: Any) -> tuple[int, Any]:
        """The same at the sidecar's door."""
        call = Request(
            "POST", f"/v1/{verb}_lora_adapter", {}, jsons.dumps(body), "127.0.0.1", "id", Receipt("id", 0.0)
        )
        answer = await getattr(self.sidecar, verb)(call)
        return answer.status, jsons.loads(answer.body)

    async def pending(self) -> dict[str, Any]:
        return {
            row["lora_name"]: row
            for row in (await ask(self.running, path="/v1/lora_adapters", method="GET"))[2]["pending"]
        }


@pytest.fixture
async def harness(start, tmp_path: Path) -> AsyncIterator[Harness]:
    @asynccontextmanager
    async def open_house() -> AsyncIterator[Harness]:
        async with LoraEngine("vllm") as engine:
            yield Harness(await start(BACKENDS=f"v={engine.url}", **QUICK), engine, tmp_path)

    async with open_house() as one:
        yield one


async def test_with_a_source_it_is_downloaded_and_then_loaded(harness: Harness) -> None:
    status, value = await harness.post(
        "load",
        lora_name="org/style",
        source="hf://org/style",
        config={"hf_token": "hf_secret", "n": 3},
        max_workers=2,
    )
    assert (status, value["message"]) == (200, "Success: LoRA adapter 'org/style' added successfully.")
    (request,) = harness.downloads.options
    assert (request.source, request.output_dir, request.max_workers, request.config) == (
        "hf://org/style",
        harness.folder / "org--style",
        2,
        {"hf_token": "hf_secret", "n": "3"},
    )
    assert harness.engine.adapters == {"org/style": str(harness.folder / "org--style")}
    row = (await listed(harness.running))["org/style"]
    assert (row["source"], row["state"]) == ("hf://org/style", "loaded")
    kept = (harness.folder.parent / "lora-adapters.json").read_text()
    assert "hf_secret" not in kept
    assert (await say(harness.running, "org/style"))[1] == "The adapter org/style."


async def test_in_the_background_it_is_told_how_far_it_is(harness: Harness) -> None:
    harness.downloads.released.clear()
    status, value = await harness.post(
        "load",
        lora_name="style",
        source="s3://b/style",
        output_dir=str(harness.folder / "mine"),
        async_download=True,
    )
    assert (status, value["status"], value["lora_name"], value["source"], value["output_dir"]) == (
        202,
        "started",
        "style",
        "s3://b/style",
        str(harness.folder / "mine"),
    )
    assert await until(lambda: bool(harness.downloads.options))
    row = (await harness.pending())["style"]
    assert (row["phase"], row["done_bytes"], row["total_bytes"], "error" in row) == (
        "downloading",
        4,
        10,
        False,
    )
    status, value = await harness.post("load", lora_name="style", source="s3://b/style")
    assert (status, value["error"]["code"]) == (409, "adapter_busy")
    harness.downloads.released.set()
    assert await until(lambda: "style" in harness.engine.adapters)
    assert await until(lambda: "style" in harness.running.appliance.adapters.table.declared)
    assert await until(lambda: harness.running.appliance.lora_orders.pending == {})


async def test_a_failure_in_the_background_is_kept_and_told(harness: Harness) -> None:
    harness.downloads.fails = Forbidden("adapter_config.json: the source says 403.")
    assert (await harness.post("load", lora_name="style", source="hf://o/s", async_download=True))[0] == 202
    assert await until(
        lambda: any(one.phase == "failed" for one in harness.running.appliance.lora_orders.pending.values())
    )
    row = (await harness.pending())["style"]
    assert (row["phase"], row["error"]) == ("failed", "adapter_config.json: the source says 403.")
    assert await listed(harness.running) == {}
    harness.downloads.fails = None
    assert (await harness.post("load", lora_name="style", source="hf://o/s"))[
        0
    ] == 200  # it may be tried again
    assert await harness.pending() == {}


async def test_a_failed_download_loads_nothing(harness: Harness) -> None:
    harness.downloads.fails = UpstreamFailed("adapter_model.safetensors: the source broke off.")
    status, value = await harness.post("load", lora_name="style", source="hf://o/s")
    assert (status, value["error"]["message"]) == (502, "adapter_model.safetensors: the source broke off.")
    assert harness.engine.commands == []


async def test_a_caller_that_leaves_ends_the_download(harness: Harness) -> None:
    harness.downloads.released.clear()
    asking = asyncio.create_task(harness.post("load", lora_name="style", source="hf://o/s"))
    assert await until(lambda: bool(harness.downloads.options))
    asking.cancel()
    assert await until(lambda: harness.downloads.cancelled)
    assert await until(lambda: not harness.running.appliance.lora_orders.pending)


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"output_dir": "/etc/adapters"}, "path_not_allowed"),
        ({"output_dir": "relative"}, "invalid_path"),
        ({"max_workers": 0}, "out_of_range"),
        ({"max_workers": 65}, "out_of_range"),
        ({"config": "{"}, "invalid_json"),
        ({"config": "[1]"}, "invalid_type"),
        ({"config": {"a": {}}}, "invalid_type"),
        ({"source": "https://me:secret@host/x"}, "invalid_source"),
        ({"source": 1}, "invalid_type"),
        ({"base_model": "nobody"}, "model_not_found"),
    ],
)
async def test_a_wrong_order_is_refused_before_any_download(harness: Harness, more, code) -> None:
    status, value = await harness.post(
        "load", **{"lora_name": "style", "source": "hf://o/s", "async_download": True, **more}
    )
    assert (400 <= status < 500, value["error"]["code"]) == (True, code)
    assert "secret" not in str(value)
    assert harness.downloads.options == []


async def test_a_reload_takes_other_folders(harness: Harness, tmp_path: Path) -> None:
    appliance, other = harness.running.appliance, tmp_path / "other"
    appliance.lora_orders._downloader = appliance.downloader  # the real one has its own list
    (other / "style").mkdir(parents=True)
    (other / "source").mkdir()
    (other / "source" / "adapter_config.json").write_text("{}")
    body = {"lora_name": "style", "lora_path": str(other / "style")}
    fetched = {
        "lora_name": "fetched",
        "source": f"file://{other / 'source'}",
        "output_dir": str(other / "fetched"),
    }
    for order in (body, fetched):
        status, value = await harness.post("load", **order)
        assert (status, value["error"]["code"]) == (403, "path_not_allowed")
    result = await Reloader(appliance).reload(
        {"LORA_ALLOWED_DIRS": f"{harness.folder},{other}", "DOWNLOAD_ALLOWED_DIRS": str(other)}, False
    )
    assert {change.variable: change.needs_restart for change in result.changes} == {
        "LORA_ALLOWED_DIRS": False,
        "DOWNLOAD_ALLOWED_DIRS": False,
    }
    assert [(await harness.post("load", **order))[0] for order in (body, fetched)] == [200, 200]
    assert harness.engine.adapters == {"style": str(other / "style"), "fetched": str(other / "fetched")}
    await Reloader(appliance).reload({"LORA_ALLOWED_DIRS": str(harness.folder)}, False)
    status, value = await harness.post("load", lora_name="again", lora_path=str(other / "again"))
    assert (status, value["error"]["code"]) == (403, "path_not_allowed")
    assert (await harness.post("unload", lora_name="style"))[0] == 200  # what is there already can go


async def test_the_sidecar_gives_the_engines_own_answers(harness: Harness) -> None:
    path = str(harness.folder / "style")
    assert await harness.beside("load", lora_name="style", lora_path=path) == (
        200,
        {"message": "Success: LoRA adapter 'style' added successfully."},
    )
    assert (await harness.beside("load", lora_name="other", source="hf://o/s"))[0] == 200
    status, value = await harness.beside("unload", lora_name="nobody", lora_int_id=3)
    assert (status, value["detail"].startswith("HTTP 404: "), "cannot be found" in value["detail"]) == (
        404,
        True,
        True,
    )
    assert await harness.beside("unload", lora_name="style") == (
        200,
        {"message": "Success: LoRA adapter 'style' removed successfully."},
    )
    harness.engine.refuses = (500, "no slots")
    status, value = await harness.beside("load", lora_name="style", lora_path=path)
    assert (status, value["detail"].startswith("HTTP 500: "), "no slots" in value["detail"]) == (
        500,
        True,
        True,
    )
    harness.engine.can_load = False
    status, value = await harness.beside("load", lora_name="style", lora_path=path)
    assert (
        status,
        value["detail"].startswith("HTTP 404: "),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in value["detail"],
    ) == (404, True, True)
    assert (await harness.beside("load", lora_name="style", lora_path="/etc/x"))[0] == 403
    await harness.engine.stop()
    assert await until(lambda: harness.running.appliance.router.state("v").standing == "down")
    status, value = await harness.beside("load", lora_name="style", lora_path=path)
    assert (status, list(value)) == (500, ["detail"])
