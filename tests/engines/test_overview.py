"""The engines' part of `GET /metrics`: from pages in memory, no wire."""

from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from appliance.base.clock import FakeClock
from appliance.base.metrics.exposition_write import render_text
from appliance.base.metrics.registry import Metrics
from appliance.base.tasks import Tasks
from appliance.base.wire.types import WireError
from appliance.engines import overview as module
from appliance.engines.backends.engine_load import ScrapedPage
from appliance.engines.backends.managed import ManagedBackend
from appliance.engines.backends.server import EngineServer
from appliance.engines.overview import Overview
from appliance.engines.pool import Pool
from appliance.engines.router import Router
from appliance.engines.settings import EngineSettings
from appliance.engines.types import BackendState, ModelCard
from tests.engines.servers import server_at
from tests.fakes.engine_pages import LLAMA_2026, VLLM_2026, page
from tests.fakes.page_client import PageClient

VLLM, LLAMA = page(VLLM_2026).encode(), page(LLAMA_2026).encode()
SLOTS = b'[{"n_ctx": 8192, "is_processing": true, "n_prompt_tokens": 4096}]'


class Scene:
    """An overview of some servers; `show` gives a server a page."""

    def __init__(self, tasks: Tasks) -> None:
        self.clock, self.metrics = FakeClock(), Metrics()
        self.router = Router(EngineSettings(), clock=self.clock, metrics=self.metrics)
        self.latencies = self.metrics.latencies
        self.overview = Overview(self.router, latencies=self.latencies, tasks=tasks, clock=self.clock)

    def add(self, *kinds: str) -> list[EngineServer]:
        pool = Pool("default", strategy="round_robin")
        pool.backends = [
            server_at(clock=self.clock, metrics=self.metrics, kind=kind, spec={"name": f"e{number}"})
            for number, kind in enumerate(kinds)
        ]
        self.router.set_pools([pool])
        return [backend for backend in pool.backends if isinstance(backend, EngineServer)]

    def show(self, server: EngineServer, raw: bytes) -> None:
        server.state.load.page = ScrapedPage(raw, False, self.clock.monotonic_s())

    async def lines(self, *parts: str) -> list[str]:
        """The lines of the page that have all of `parts`."""
        text = render_text(await self.overview.families()).decode()
        return [line for line in text.splitlines() if all(part in line for part in parts)]


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with Tasks() as tasks:
        yield Scene(tasks)


async def test_pages_are_labelled_with_their_backend(scene: Scene) -> None:
    first, second = scene.add("vllm", "vllm")
    scene.show(first, VLLM)
    scene.clock.advance(1.5)
    scene.show(second, VLLM)
    assert [line.split("{")[1].split(",")[0] for line in await scene.lines("engine_requests_running{")] == [
        'backend="e0"',
        'backend="e1"',
    ]
    assert await scene.lines("engine_scrape_age_seconds{") == [
        'engine_scrape_age_seconds{backend="e0"} 1.500',
        'engine_scrape_age_seconds{backend="e1"} 0.000',
    ]


async def test_without_backends_there_are_only_the_pickers_counts(scene: Scene) -> None:
    assert [line for line in await scene.lines("vllm:") if not line.startswith("#")] == [
        "vllm:num_requests_waiting 0",
        "vllm:num_requests_running 0",
    ]


@pytest.mark.parametrize(("raw", "is_up"), [(None, 0), (b"<html>\n", 0), (VLLM, 1)])
async def test_a_page_that_is_missing_or_invalid_is_down(scene: Scene, raw: bytes | None, is_up: int) -> None:
    (server,) = scene.add("vllm")
    if raw is not None:
        scene.show(server, raw)
    assert await scene.lines("engine_scrape_up{") == [f'engine_scrape_up{{backend="e0"}} {is_up}']


async def test_a_server_without_a_metrics_page_is_not_listed(scene: Scene) -> None:
    scene.add("openai")
    assert await scene.lines("engine_scrape_up{") == []


async def test_problems_are_logged_when_they_change(scene: Scene) -> None:
    (server,) = scene.add("vllm")
    with capture_logs() as lines:
        for raw in (
            b"<html>\n",
            b"<html>\n",
            VLLM,
            b"<html>\n",
            page(VLLM_2026, without="e2e_request_latency_seconds").encode(),
        ):
            scene.show(server, raw)
            await scene.overview.families()
    reasons = [line["reason"] for line in lines if line["event"] == "metrics_not_mapped"]
    assert [reason[:6] for reason in reasons] == ["line 1", "line 1", "missin"]
    assert reasons[-1] == "missing engine_e2e_seconds; invalid nothing"


async def test_a_page_is_normalised_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    (server,) = scene.add("vllm")
    calls: list[str] = []
    original = module.normalise_raw

    async def counting(raw: bytes, kind: str, **more: object) -> object:
        calls.append(kind)
        return await original(raw, kind, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "normalise_raw", counting)
    for _ in range(2):
        scene.show(server, VLLM)
        await scene.overview.families()
        await scene.overview.families()
    assert calls == ["vllm", "vllm"]


async def test_a_removed_backend_is_forgotten(scene: Scene) -> None:
    (server,) = scene.add("vllm")
    scene.show(server, VLLM)
    await scene.overview.families()
    scene.add()
    await scene.overview.families()
    assert (scene.overview._cache, scene.overview._problems) == ({}, {})


# ---- llama-server's slots


@pytest.mark.parametrize(
    ("pages", "usage"), [({"/slots": (200, SLOTS)}, "0.5"), ({"/slots": (501, b"")}, None), ({}, None)]
)
async def test_kv_usage_of_llama_server_is_read_from_its_slots(scene: Scene, pages, usage) -> None:
    (server,) = scene.add("llamacpp")
    server.client = PageClient(pages)  # type: ignore[assignment]
    scene.show(server, LLAMA)
    lines = await scene.lines("engine_kv_cache_usage_ratio{")
    assert lines == ([f'engine_kv_cache_usage_ratio{{backend="e0"}} {usage}'] if usage else [])


# ---- models that the appliance runs itself


class Runners(ManagedBackend):
    """The model manager's backend with some llama-servers, and nothing else."""

    def __init__(self, *runners: tuple[str, int, EngineServer]) -> None:
        self.own = list(runners)

    def runners(self) -> list[tuple[str, int, EngineServer]]:
        return self.own

    def cards(self) -> list[ModelCard]:
        return []

    def describe(self) -> BackendState:
        return BackendState("models", "managed", True, "")


@pytest.mark.parametrize(
    ("pages", "is_up"),
    [
        ({"/metrics": (200, LLAMA), "/slots": (200, SLOTS)}, 1),
        ({"/metrics": (500, b"")}, 0),
        ({"/metrics": WireError("refused", phase="connect")}, 0),
    ],
)
async def test_own_llama_servers_are_read_when_a_client_reads(scene: Scene, pages, is_up: int) -> None:
    runner = server_at(clock=scene.clock, metrics=scene.metrics, kind="llamacpp")
    runner.is_managed = True
    runner.client = PageClient(pages)  # type: ignore[assignment]
    pool = Pool("models", strategy="round_robin")
    pool.backends = [Runners(("tiny", 8081, runner))]
    scene.router.set_pools([pool])
    labels = 'backend="models",model_name="tiny",runner="8081"'
    assert await scene.lines("engine_scrape_up{") == [f"engine_scrape_up{{{labels}}} {is_up}"]
    usage = await scene.lines("engine_kv_cache_usage_ratio{")
    assert usage == ([f"engine_kv_cache_usage_ratio{{{labels}}} 0.5"] if is_up else [])


# ---- the endpoint picker


async def test_the_picker_gets_one_row_for_all_backends(scene: Scene) -> None:
    first, second = scene.add("vllm", "vllm")
    scene.show(first, VLLM)
    scene.show(second, VLLM.replace(b"} 0.25", b"} 0.75"))
    first.state.load.running, first.state.load.waiting = 3.0, 2.0
    second.state.load.running, second.state.load.waiting = 4.0, None
    rows = [line for line in await scene.lines("vllm:") if not line.startswith("#")]
    assert rows[:3] == [
        "vllm:num_requests_waiting 2",
        "vllm:num_requests_running 7",
        "vllm:kv_cache_usage_perc 0.5",
    ]
    assert [line.split("}")[0] for line in rows[3:]] == [
        'vllm:lora_requests_info{max_lora="4",running_lora_adapters="sql,chat",waiting_lora_adapters=""'
    ]


# ---- what the appliance measured


def measure(scene: Scene, backend: str) -> None:
    scene.latencies.add(backend, "tiny", queue_s=0.5, whole_s=3.0, first_s=1.0, tokens=11)


async def test_times_are_measured_here_for_engines_that_do_not(scene: Scene) -> None:
    vllm, _ = scene.add("vllm", "llamacpp")
    scene.show(vllm, VLLM)
    measure(scene, "e0")
    measure(scene, "e1")
    counts = await scene.lines("_count{", 'measured_at="proxy"')
    assert counts == [
        f'engine_{name}_seconds_count{{backend="e1",model_name="tiny",measured_at="proxy"}} 1'
        for name in ("ttft", "tpot", "e2e", "queue")
    ]
    (whole,) = await scene.lines("engine_ttft_seconds_sum{", "proxy")
    assert float(whole.split(" ")[1]) == 1.5  # the time in our queue counts as well
