"""Orders of adapters without engines: what is refused, what is resumed after a restart, and what is forgotten."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.base import jsons
from appliance.base.clock import FakeClock
from appliance.base.errors import Conflict, Invalid, NotFound, Unavailable, Unsupported
from appliance.base.tasks import Tasks
from appliance.engines.lora.order import FILE, AdapterOrder
from appliance.engines.lora.orders import AdapterOrders
from appliance.engines.lora.plan import Adapter
from tests.downloads.standin_downloader import StandinDownloader
from tests.journeys.running import until

TOKEN = "hf_a_secret_of_the_caller"
FETCHED = AdapterOrder("style", source="hf://o/s", config={"revision": "v1"})


class StandinAdapters:
    """A reconciler by script: it loads when a host is up, or fails."""

    def __init__(self) -> None:
        self.loaded: list[Adapter] = []
        self.reserved: set[str] = set()
        self.up = asyncio.Event()
        self.up.set()
        self.fails: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()

    @property
    def hosts(self) -> "StandinAdapters":
        return self

    @property
    def status(self) -> "StandinAdapters":
        return self

    def find_base_model(self, base_model: str, backend: str) -> str:
        return base_model or "tiny"

    def reserve(self, name: str) -> None:
        self.reserved.add(name)

    def has_target(self, adapter: Adapter) -> bool:
        return self.up.is_set()

    async def wait_target(self, adapter: Adapter) -> None:
        await self.up.wait()

    async def load(self, adapter: Adapter, *, is_partial: bool = False) -> str:
        await self.gate.wait()
        if self.fails:
            raise self.fails.pop(0)
        self.loaded.append(adapter)
        return f"loaded {adapter.name}"

    async def unload(self, name: str, *, is_partial: bool = False, more: Any = None) -> str:
        raise NotFound(f"{name} is nowhere")

    def describe_unloaded(self, adapter: Adapter) -> str:
        return f"no {adapter.name}"


class Harness:
    """Orders over stand-ins."""

    def __init__(self, folder: Path, tasks: Tasks, **more: Any) -> None:
        self.adapters, self.downloader = StandinAdapters(), StandinDownloader()
        self.orders = AdapterOrders(
            self.adapters,  # type: ignore[arg-type]
            **{
                "downloader": self.downloader,
                "folders": [folder / "adapters"],
                "own_folder": folder / "adapters",
                "tasks": tasks,
                "clock": FakeClock(),
                "path": folder / FILE,
                **more,
            },
        )

    def phase(self, name: str = "style") -> str:
        found = self.orders.pending.get(name)
        return found.phase if found is not None else ""


@asynccontextmanager
async def opened(folder: Path, **more: Any) -> AsyncIterator[Harness]:
    async with Tasks() as tasks:
        harness = Harness(folder, tasks, **more)
        await harness.orders.open()
        yield harness


def rows(folder: Path) -> list[Mapping[str, Any]]:
    return list(jsons.loads((folder / FILE).read_bytes())["orders"])


# ---- what is refused


@pytest.mark.parametrize(
    ("order", "more", "kind", "text"),
    [
        (AdapterOrder(""), {}, Invalid, "lora_name"),
        (AdapterOrder("a"), {}, Invalid, "Name the adapter's path in `lora_path`"),
        (AdapterOrder("a", source="hf://o/s"), {"downloader": None}, Unsupported, "cannot download adapters"),
    ],
)
async def test_a_wrong_order_is_refused(
    tmp_path: Path, order: AdapterOrder, more: dict[str, Any], kind: type[Exception], text: str
) -> None:
    async with opened(tmp_path, **more) as harness:
        with pytest.raises(kind, match=text):
            await harness.orders.begin(order)
        assert harness.orders.pending == {}


async def test_a_second_order_waits_for_the_first(tmp_path: Path) -> None:
    async with opened(tmp_path) as harness:
        await harness.orders.begin(FETCHED)
        with pytest.raises(Conflict, match="'style' is already downloading"):
            await harness.orders.load(FETCHED)


# ---- the steps


async def test_an_order_is_downloaded_waits_and_is_loaded(tmp_path: Path) -> None:
    async with opened(tmp_path) as harness:
        harness.adapters.up.clear()
        adapter = await harness.orders.begin(FETCHED)
        assert harness.adapters.reserved == {"style"}  # no model answers in its place from now on
        (await harness.downloader.next()).finish()
        assert await until(lambda: harness.phase() == "waiting")
        assert await until(lambda: rows(tmp_path)[0]["phase"] == "waiting")
        harness.adapters.fails = [Unavailable("down again", code="no_backend")]
        harness.adapters.up.set()
        assert await until(lambda: harness.adapters.loaded == [adapter])
        assert await until(lambda: harness.phase() == "")
        assert rows(tmp_path) == []


async def test_a_failure_is_listed_until_the_next_order(tmp_path: Path) -> None:
    async with opened(tmp_path) as harness:
        await harness.orders.begin(FETCHED)
        (await harness.downloader.next()).fail(ZeroDivisionError(TOKEN))
        assert await until(lambda: harness.phase() == "failed")
        assert harness.orders.pending["style"].error == "an internal error"
        assert (
            await harness.orders.load(AdapterOrder("style", str(tmp_path / "adapters" / "x")))
            == "loaded style"
        )
        assert (harness.orders.pending, rows(tmp_path)) == ({}, [])


async def test_a_caller_gets_the_result_of_the_load(tmp_path: Path) -> None:
    async with opened(tmp_path) as harness:
        harness.downloader.at_once = True
        assert await harness.orders.load(FETCHED) == "loaded style"
        harness.adapters.fails = [Unavailable("no backend", code="no_backend")]
        with pytest.raises(Unavailable, match="no backend"):
            await harness.orders.load(FETCHED)
        assert harness.orders.pending == {}


async def test_a_caller_gets_an_error_when_the_appliance_stops(tmp_path: Path) -> None:
    async with opened(tmp_path) as harness:
        loading = asyncio.create_task(harness.orders.load(FETCHED))
        await harness.downloader.next()
        await harness.orders._jobs.close()
        with pytest.raises(Unavailable, match="The appliance is stopping; the adapter is not loaded"):
            await loading


# ---- giving up


async def test_an_unload_gives_a_download_up(tmp_path: Path) -> None:
    async with opened(tmp_path) as harness:
        await harness.orders.begin(FETCHED)
        run = await harness.downloader.next()
        assert await harness.orders.unload("style") == "no style"
        assert (run.was_cancelled, harness.orders.pending, rows(tmp_path)) == (True, {}, [])
        with pytest.raises(NotFound):
            await harness.orders.unload("style")


async def test_an_unload_does_not_give_a_load_up(tmp_path: Path) -> None:
    async with opened(tmp_path) as harness:
        harness.adapters.gate.clear()
        harness.downloader.at_once = True
        await harness.orders.begin(FETCHED)
        assert await until(lambda: harness.phase() == "loading")
        with pytest.raises(NotFound):
            await harness.orders.unload("style")
        harness.adapters.gate.set()
        assert await until(lambda: harness.phase() == "")


# ---- restarts


@pytest.mark.parametrize("at", ["downloading", "waiting", "loading"])
async def test_an_order_is_resumed_after_a_restart(tmp_path: Path, at: str) -> None:
    async with opened(tmp_path) as harness:
        if at == "waiting":
            harness.adapters.up.clear()
        harness.adapters.gate.clear()
        harness.downloader.at_once = at != "downloading"
        await harness.orders.begin(FETCHED)
        assert await until(lambda: harness.phase() == at and rows(tmp_path)[0]["phase"] == at)
    async with opened(tmp_path) as harness:
        assert harness.phase() == "downloading"
        run = await harness.downloader.next()
        assert (run.request.source, run.request.config) == ("hf://o/s", {"revision": "v1"})
        run.finish()
        assert await until(lambda: [one.name for one in harness.adapters.loaded] == ["style"])


@pytest.mark.parametrize(
    ("more", "phase", "error"),
    [
        ({}, "interrupted", "credentials are not kept: hf_token (HF_AUTH_TOKEN)"),
        ({"has_variable": lambda _: True, "resumes": False}, "interrupted", "Order it again to continue"),
        ({"has_variable": lambda _: True, "folders": []}, "failed", "LORA_ALLOWED_DIRS"),
        ({"has_variable": lambda _: True}, "downloading", ""),
    ],
    ids=["credentials are missing", "orders are not resumed", "its folder is not allowed", "it is resumed"],
)
async def test_a_restart_says_why_an_order_is_not_resumed(
    tmp_path: Path, more: dict[str, Any], phase: str, error: str
) -> None:
    async with opened(tmp_path) as harness:
        await harness.orders.begin(AdapterOrder("style", source="hf://o/s", config={"hf_token": TOKEN}))
        await harness.downloader.next()
    assert TOKEN not in (tmp_path / FILE).read_text()
    async with opened(tmp_path, **more) as harness:
        found = harness.orders.pending["style"]
        assert (found.phase, error in found.error) == (phase, True)
