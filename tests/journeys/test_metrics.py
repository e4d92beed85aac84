"""Metrics of engines on the main port, read as a Prometheus would.

Real llama-servers, stand-ins of the others, models of our own.
"""

import asyncio
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
from aiohttp import web
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_of
from prometheus_client.parser import text_string_to_metric_families as text_of

from appliance.base.clock import SystemClock
from appliance.base.tasks import Tasks
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits
from appliance.engines.metrics.scrape import Scraper, ScrapeTarget
from tests.base.test_metric_names import lint
from tests.fakes.engine_generations import GENERATIONS, EngineGeneration
from tests.fakes.engine_pages import SGLANG_2026, VLLM_2026, PageOf, page
from tests.fakes.engine_server import EngineServer
from tests.journeys.llama_servers import HELLO, Llama, long_body
from tests.journeys.model_tables import Managed
from tests.journeys.running import Running, until
from tests.journeys.test_real_llama import behind

QUICK = {"METRICS_CACHE_TTL_SECONDS": "0.1", "SLOW_START_S": "0", "BACKEND_STARTUP_GRACE_S": "0"}
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


class Paged(EngineServer):
    """An engine with a whole page of its own."""

    def __init__(self, of: PageOf, **how: Any) -> None:
        super().__init__(of.kind, **how)
        self.page = page(of)
        self.is_broken = False

    async def _metrics(self) -> web.Response:
        return web.Response(status=500 if self.is_broken else 200, text=self.page)


class Numbers:
    """A page that was read: `value(name, label=…)` is the sum of its samples."""

    def __init__(self, text: str, *, openmetrics: bool = False) -> None:
        self.text = text
        self.families = {family.name: family for family in (openmetrics_of if openmetrics else text_of)(text)}

    def value(self, name: str, **labels: str) -> float | None:
        found = [
            s.value
            for f in self.families.values()
            for s in f.samples
            if s.name == name and labels.items() <= s.labels.items()
        ]
        return sum(found) if found else None


async def read(running: Running, *, openmetrics: bool = False) -> Numbers:
    async with httpx.AsyncClient(timeout=20) as http:
        answer = await http.get(running.base_url + "/metrics", headers=OPENMETRICS if openmetrics else {})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(
        "application/openmetrics-text; version=1.0.0" if openmetrics else "text/plain; version=0.0.4"
    )
    return Numbers(answer.text, openmetrics=openmetrics)


async def chat(running: Running, **more: Any) -> None:
    async with httpx.AsyncClient(timeout=30) as http:
        answer = await http.post(
            running.v1 + "/chat/completions", json={"model": "tiny", "messages": HELLO, **more}
        )
    assert answer.status_code == 200, answer.text


async def test_every_backends_metrics_have_common_names(start) -> None:
    async with Paged(VLLM_2026) as first, Paged(SGLANG_2026) as second:
        running = await start(BACKENDS=f"e0={first.url},e1={second.url}", **QUICK)
        assert await until(lambda: all(state.metrics == "ok" for state in running.appliance.router.states()))
        numbers = await read(running)
        for backend in ("e0", "e1"):
            assert numbers.value("engine_requests_running", backend=backend) == 3
            assert numbers.value("engine_generation_tokens_total", backend=backend) == 700
            assert numbers.value("engine_ttft_seconds_sum", backend=backend) == 0.5
            assert numbers.value("engine_scrape_up", backend=backend) == 1
            assert numbers.value("engine_mapping_missing", backend=backend) == 0
            age_s = numbers.value("engine_scrape_age_seconds", backend=backend)
            assert age_s is not None
            assert age_s < 5
        assert (
            numbers.value("engine_requests_running", backend="e1", tp_rank="0", model_name="qwen") == 3
        )  # its own labels stay
        assert numbers.value("appliance_backend_up", backend="e0") == 1
        assert 'measured_at="proxy"' not in numbers.text
        assert set(numbers.families) - {name for name in numbers.families if name.endswith("_created")} <= {
            name + end for name in (await read(running, openmetrics=True)).families for end in ("", "_total")
        }


async def test_an_endpoint_picker_finds_one_row_for_all_backends(start) -> None:
    async with Paged(VLLM_2026) as first, Paged(SGLANG_2026) as second:
        second.page = second.page.replace(
            "token_usage{" + SGLANG_2026.labels + "} 0.25", "token_usage{" + SGLANG_2026.labels + "} 0.75"
        )
        running = await start(BACKENDS=f"e0={first.url},e1={second.url}", **QUICK)
        assert await until(lambda: all(state.metrics == "ok" for state in running.appliance.router.states()))
        numbers = await read(running)
        for name, value in (
            ("vllm:num_requests_waiting", 4),
            ("vllm:num_requests_running", 6),
            ("vllm:kv_cache_usage_perc", 0.5),
        ):
            assert [sample.labels for sample in numbers.families[name].samples] == [{}]
            assert (numbers.families[name].type, numbers.value(name)) == ("gauge", value)
        row = numbers.families["vllm:lora_requests_info"].samples[0]
        assert row.labels == {
            "max_lora": "4",
            "running_lora_adapters": "sql,chat",
            "waiting_lora_adapters": "",
        }
        assert row.value > 1.7e9


async def test_a_renamed_metric_and_a_missing_page_are_seen(start) -> None:
    async with Paged(VLLM_2026) as engine:
        running = await start(BACKENDS=f"e0={engine.url}", **QUICK)
        assert await until(lambda: running.appliance.router.state("e0").metrics == "ok")
        engine.page = page(VLLM_2026, without="generation_tokens")

        async def seen(name: str, **labels: str) -> float | None:
            return (await read(running)).value(name, backend="e0", **labels)

        async def becomes(value: float | None, name: str, **labels: str) -> bool:
            for _ in range(100):
                if await seen(name, **labels) == value:
                    return True
                await asyncio.sleep(0.05)
            return False

        assert await becomes(1, "engine_mapping_missing", metric="engine_generation_tokens_total")
        assert await seen("engine_mapping_missing") == 1
        engine.page = page(VLLM_2026) + "nonsense\n"
        assert await becomes(0, "engine_scrape_up")
        assert await seen("engine_requests_running") is None
        engine.page = page(VLLM_2026)
        assert await becomes(1, "engine_scrape_up")
        engine.is_broken = True
        assert await becomes(0, "engine_scrape_up")
        assert await seen("engine_scrape_age_seconds") is None


# ---- the real llama-server: it has no histograms, no adapters and (in builds of today) no cache in use on
# its page


async def test_a_real_llama_server_is_mapped_and_the_rest_measured(start, llama: Llama) -> None:
    server = await llama(slots=2, lora=True)
    running = await start(**behind(server))
    await chat(running)
    await chat(running, stream=True)
    await chat(running, stream=True, stream_options={"include_usage": True})
    assert await until(lambda: running.appliance.router.state("a").in_flight == 0)
    for _ in range(40):
        numbers = await read(running)
        if (numbers.value("engine_generation_tokens_total", backend="a") or 0) >= 54:
            break
        await asyncio.sleep(0.05)
    assert numbers.value("engine_generation_tokens_total", backend="a") == 54
    assert numbers.value("engine_requests_running", backend="a") == 0
    assert numbers.value("engine_kv_cache_usage_ratio", backend="a") == 0
    assert numbers.value("engine_mapping_missing", backend="a") == 0
    assert numbers.value("engine_lora_running", backend="a") == 1
    cached, looked = (
        numbers.value(f"engine_prefix_cache_{name}_total", backend="a") for name in ("hits", "queries")
    )
    assert cached is not None
    assert looked is not None
    assert 0 <= cached < looked
    here = {"backend": "a", "model_name": "tiny", "measured_at": "proxy"}
    for name in ("ttft", "tpot", "e2e", "queue"):
        assert numbers.value(f"engine_{name}_seconds_count", **here) == 3, name
        assert numbers.value(f"engine_{name}_seconds_bucket", le="+Inf", **here) == 3
    first, whole, each = (
        numbers.value(f"engine_{name}_seconds_sum", **here) or 0 for name in ("ttft", "e2e", "tpot")
    )
    assert 0 < first < whole < 30
    assert each * 17 <= whole + 1e-6  # 18 tokens: 17 pauses between them
    families = (await read(running, openmetrics=True)).families
    assert families["engine_tpot_seconds"].unit == "seconds"


async def test_a_real_llama_servers_page_as_the_sidecar_gives_it(llama: Llama) -> None:
    server = await llama(slots=2)
    async with Tasks() as tasks, ConnectionPool(PoolLimits()) as wire:
        scraped = await Scraper(
            ScrapeTarget(server.url), wire=wire, tasks=tasks, clock=SystemClock()
        ).scrape()
    assert (scraped.normalised.kind, scraped.normalised.missing, scraped.normalised.invalid) == (
        "llamacpp",
        (),
        {},
    )
    for openmetrics in (False, True):
        numbers = Numbers(
            (await scraped.render(0, openmetrics=openmetrics)).decode(), openmetrics=openmetrics
        )
        assert (
            numbers.value("engine_generation_tokens_total")
            == numbers.value("kthena:generation_tokens_total")
            == 0
        )
        assert [
            numbers.value(name)
            for name in ("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc")
        ] == [0, 0, 0]
        assert numbers.value("llamacpp:tokens_predicted_total") == 0


async def test_the_cache_usage_of_a_real_llama_server_moves(start, llama: Llama) -> None:
    server = await llama(slots=2)
    running = await start(**behind(server, METRICS_CACHE_TTL_SECONDS="0.1"))
    async with (
        httpx.AsyncClient(timeout=30) as http,
        http.stream("POST", running.v1 + "/chat/completions", json=long_body(6000)) as answer,
    ):
        assert answer.status_code == 200
        for _ in range(200):
            used = (await read(running)).value("engine_kv_cache_usage_ratio", backend="a") or 0
            if used > 0.02:
                break
            await asyncio.sleep(0.02)
        assert 0.02 < used < 1
        assert (await read(running)).value("vllm:num_requests_running") == 1


async def test_managed_models_have_metrics_too(start, llama_binary: str, tiny_models: Path) -> None:
    running = await start(MODEL_DIR=str(tiny_models), LLAMA_SERVER_PATH=llama_binary)
    assert (await read(running)).value("engine_scrape_up") is None
    await chat(running, model="tiny-chat")
    numbers = await read(running)
    where = {"backend": "models", "model_name": "tiny-chat"}
    assert numbers.value("engine_generation_tokens_total", **where) == 18
    assert numbers.value("engine_scrape_up", **where) == 1
    assert numbers.value("engine_mapping_missing", **where) == 0
    for name in ("ttft", "tpot", "e2e", "queue"):
        assert numbers.value(f"engine_{name}_seconds_count", measured_at="proxy", **where) == 1
    assert (await read(running, openmetrics=True)).value("engine_kv_cache_usage_ratio", **where) == 0


async def test_engines_without_metrics_are_measured_here(start) -> None:
    async with EngineServer("openai") as server:
        running = await start(BACKENDS=f"e0={server.url}", **QUICK)
        assert await until(lambda: running.appliance.router.state("e0").standing == "ready")
        await chat(running)
        await chat(running, stream=True)
        numbers = await read(running)
    here = {"backend": "e0", "measured_at": "proxy"}
    assert numbers.value("engine_e2e_seconds_count", **here) == 2
    assert (
        numbers.value("engine_ttft_seconds_count", **here) == 1
    )  # the other came in one piece: its beginning is unknown
    assert numbers.value("engine_scrape_up", backend="e0") is None  # it has no page that could be looked for


async def test_sglang_is_measured_here_only_without_metrics(start) -> None:
    async with (
        Paged(SGLANG_2026) as tells,
        EngineGeneration(next(g for g in GENERATIONS if not g.metrics)) as silent,
    ):
        tells.page = tells.page.replace(
            "num_queue_reqs{" + SGLANG_2026.labels + "} 2", "num_queue_reqs{" + SGLANG_2026.labels + "} 0"
        )
        running = await start(BACKENDS=f"e0={tells.url},e1={silent.url}", LB_STRATEGY="round_robin", **QUICK)
        assert await until(lambda: running.appliance.router.state("e0").metrics == "ok")
        assert await until(lambda: running.appliance.router.state("e1").standing == "ready")
        for _ in range(4):
            await chat(running, stream=True)
        numbers = await read(running)
    assert numbers.value("engine_e2e_seconds_count", backend="e1", measured_at="proxy") == 2
    assert numbers.value("engine_e2e_seconds_count", backend="e0", measured_at="proxy") is None
    assert numbers.value("engine_e2e_seconds_count", backend="e0") == 3
    assert (
        numbers.value("engine_scrape_up", backend="e0"),
        numbers.value("engine_scrape_up", backend="e1"),
    ) == (1, 0)


async def test_a_removed_backend_leaves_no_metrics(start) -> None:
    async with EngineServer("openai") as server:
        running = await start(BACKENDS=f"e0={server.url}", **QUICK)
        assert await until(lambda: running.appliance.router.state("e0").standing == "ready")
        await chat(running)
        assert (await read(running)).value("engine_e2e_seconds_count", backend="e0") == 1
        running.appliance.fleet.remove("e0")
        for _ in range(60):
            if (left := (await read(running)).value("engine_e2e_seconds_count", backend="e0")) is None:
                break
            await asyncio.sleep(0.05)
        assert left is None


async def test_every_own_name_of_the_page_is_as_promtool_wants(managed: Managed) -> None:
    """Names with a colon are other projects': vLLM's, which endpoint pickers read."""
    async with Paged(VLLM_2026) as first, Paged(SGLANG_2026) as second:
        variables = {"BACKENDS": f"e0={first.url},e1={second.url}", **QUICK}
        house = await managed("local", variables=variables)
        await house.chat("local")
        router = house.running.appliance.router
        assert await until(lambda: all(router.state(name).metrics == "ok" for name in ("e0", "e1")))
        page = (await read(house.running)).text
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.M))
    texts = dict(re.findall(r"^# HELP (\S+) (.*)$", page, re.M))
    own = {name: kind for name, kind in kinds.items() if ":" not in name}
    assert {name.partition("_")[0] for name in own} >= {"appliance", "engine", "router"}
    assert [flaw for name, kind in own.items() for flaw in lint(name, kind, texts.get(name, ""))] == []
    if promtool := shutil.which("promtool"):
        done = subprocess.run(
            [promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False
        )
        assert [line for line in done.stderr.splitlines() if ":" not in line.split(" ")[0]] == []
