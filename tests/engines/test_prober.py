"""What a probe does with each reply of a server, and when the next one comes."""

import asyncio
import json
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.wire.types import Unreachable, UpstreamTimeout
from appliance.engines.backends import prober as module
from appliance.engines.backends.prober import HealthProber
from appliance.engines.backends.server import EngineServer
from appliance.engines.dialects.contract import EngineHealth
from appliance.engines.types import BackendStatus
from tests.engines.servers import server_at
from tests.fakes.page_client import PageClient

MODELS = (200, json.dumps({"data": [{"id": "tiny", "owned_by": "vllm", "max_model_len": 4096}]}).encode())
METRICS = (200, b"vllm:num_requests_running 3\nvllm:num_requests_waiting 1\n", "text/plain")
HEALTHY = {"/health": (200, b""), "/v1/models": MODELS, "/metrics": METRICS}


class Scene:
    """A server over fixed pages with its prober."""

    def __init__(
        self, pages: dict[str, Any], *, kind: str = "vllm", is_up: bool = False, **settings: Any
    ) -> None:
        self.clock, self.capacity = FakeClock(), 0
        self.server: EngineServer = server_at(kind=kind, clock=self.clock, is_up=is_up, **settings)
        self.client = PageClient(pages)
        self.server.client = self.client
        self.prober = HealthProber(self.server, on_capacity=self.count)

    def count(self) -> None:
        self.capacity += 1

    async def probe(self, **pages: Any) -> None:
        self.client.pages = self.client.pages | {f"/{name}": page for name, page in pages.items()}
        await self.prober.probe()


async def test_a_probe_reads_health_load_and_facts() -> None:
    scene = Scene(HEALTHY)
    await scene.probe()
    state, load = scene.server.state, scene.server.state.load
    assert (state.health, load.running, load.waiting, load.note) == (EngineHealth(True), 3, 1, "ok")
    assert load.page is not None
    assert (load.page.raw, load.page.is_openmetrics) == (METRICS[1], False)
    assert (scene.server.models.names(), scene.server.context_tokens) == (("tiny",), 4096)
    assert scene.capacity == 1


# ---- detection

APPLIANCE = b'{"ok": true, "state": "serving", "version": "0.2.0", "demo": false, "public_model": "m", "upstream_base": ""}'


@pytest.mark.parametrize(
    ("pages", "kind", "detail"),
    [
        (HEALTHY, "vllm", ""),
        ({**HEALTHY, "/healthz": (200, APPLIANCE)}, "openai", ""),
        ({**HEALTHY, "/healthz": (200, b"ok")}, "vllm", ""),
        (
            {"/v1/models": (200, b'{"data": []}')},
            "auto",
            "it answers, but not like a known kind of engine",
        ),
        ({"/v1/models": (500, b"")}, "auto", "/v1/models answered 500"),
        ({"/props": Unreachable("refused", phase="connect", was_sent=False)}, "auto", "refused"),
    ],
)
async def test_an_unknown_kind_is_detected_first(pages: dict[str, Any], kind: str, detail: str) -> None:
    scene = Scene(pages, kind="auto")
    await scene.probe()
    assert (scene.server.kind, scene.server.state.health.detail) == (kind, detail)


# ---- learning


async def test_models_are_asked_for_at_once_but_not_again_and_again() -> None:
    scene = Scene(HEALTHY)
    await scene.probe()
    other = {"data": [{"id": "other", "owned_by": "vllm"}]}
    scene.client.page("/v1/models", 200, other)
    await scene.prober.learn()
    assert scene.server.models.names() == ("tiny",)  # it was just asked
    scene.clock.advance(module.LEARN_EVERY_S)
    await scene.prober.learn()
    assert scene.server.models.names() == ("other",)
    asked = len(scene.client.queried)
    await scene.prober.learn()
    assert len(scene.client.queried) == asked


async def test_a_server_that_has_just_come_up_is_learnt_of() -> None:
    scene = Scene({"/health": (503, b"")})
    await scene.probe()
    scene.client.pages = dict(HEALTHY)
    scene.clock.advance(module.LEARN_EVERY_S)
    await scene.prober.learn()
    assert scene.server.models.names() == ("tiny",)


async def test_its_name_is_looked_up_again_while_it_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, looked_up = Scene(HEALTHY), []

    async def look_up(server: EngineServer) -> None:
        looked_up.append(server)

    monkeypatch.setattr(EngineServer, "look_up_name", look_up)
    for _ in range(3):
        await scene.probe()
    assert len(looked_up) == 1
    scene.clock.advance(module.LOOK_UP_EVERY_S)
    await scene.probe()
    assert len(looked_up) == 2


# ---- health


async def test_a_server_found_down_has_its_waiting_requests_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, moved = Scene(HEALTHY), []
    await scene.probe()
    monkeypatch.setattr(EngineServer, "fail_waiting", lambda server: moved.append(server) or 2)
    await scene.probe(health=(500, b""))
    await scene.probe(health=(500, b""))
    assert (scene.server.state.is_lost, len(moved)) == (True, 1)


@pytest.mark.parametrize(
    ("health", "statuses"),
    [
        (
            UpstreamTimeout("slow", phase="first_byte", was_sent=True),
            [BackendStatus.READY, BackendStatus.DOWN],
        ),
        (Unreachable("refused", phase="connect", was_sent=False), [BackendStatus.DOWN, BackendStatus.DOWN]),
        ((503, b""), [BackendStatus.DOWN, BackendStatus.DOWN]),
    ],
)
async def test_a_timeout_needs_a_second_one(health: Any, statuses: list[BackendStatus]) -> None:
    scene, seen = Scene(HEALTHY), []
    await scene.probe()
    for _ in statuses:
        await scene.probe(health=health)
        seen.append(scene.server.status(0.0))
    assert seen == statuses


# ---- load


@pytest.mark.parametrize(
    ("metrics", "note", "has_page"),
    [
        ((404, b""), "off", False),
        ((501, b""), "off", False),
        ((500, b""), "/metrics answered 500", False),
        (Unreachable("refused", phase="connect", was_sent=False), "refused", False),
        ((200, b"vllm:num_requests_waiting 1\n"), "/metrics has no vllm:num_requests_running", True),
        ((200, b"vllm:num_requests_running many\n"), None, True),
    ],
)
async def test_a_metrics_page_without_numbers_leaves_health_to_decide(
    metrics: Any, note: str | None, has_page: bool
) -> None:
    scene = Scene(HEALTHY | {"/metrics": metrics})
    await scene.probe()
    load = scene.server.state.load
    assert (load.running, load.page is not None) == (None, has_page)
    assert load.note == note or (note is None and "many" in load.note)
    assert scene.server.status(0.0) is BackendStatus.READY


async def test_a_kind_without_a_metrics_page_is_not_asked_for_one() -> None:
    scene = Scene(HEALTHY, kind="openai")
    await scene.probe()
    assert "/metrics" not in scene.client.queried


# ---- facts


@pytest.mark.parametrize(
    ("probes", "queries"),
    [(1, 1), (5, 1), (module.FACTS_EVERY_PROBES, 2), (2 * module.FACTS_EVERY_PROBES, 3)],
)
async def test_facts_are_queried_at_the_start_and_now_and_then(probes: int, queries: int) -> None:
    scene = Scene(HEALTHY)
    for _ in range(probes):
        await scene.probe()
    assert scene.client.queried.count("/v1/models") == queries


async def test_facts_that_cannot_be_read_are_queried_again() -> None:
    scene = Scene(HEALTHY | {"/v1/models": (200, b"{")})
    await scene.probe()
    assert scene.server.is_unknown
    await scene.probe(**{"v1/models": MODELS})
    assert not scene.server.is_unknown


async def test_facts_from_before_a_change_of_adapters_are_not_believed() -> None:
    scene = Scene(HEALTHY)

    def changed() -> Any:
        scene.server.models.adapters.version += 1
        return MODELS

    await scene.probe(**{"v1/models": changed})
    assert scene.server.is_unknown
    await scene.probe(**{"v1/models": MODELS})
    assert not scene.server.is_unknown


# ---- intervals


@pytest.mark.parametrize(
    ("is_up", "is_lost", "intervals_s"),
    [
        (True, False, [3.0, 3.0]),
        (False, False, [0.5, 0.5]),
        (False, True, [0.4, 0.8, 1.6, 3.0, 3.0]),
    ],
)
async def test_a_server_in_trouble_is_probed_sooner(
    is_up: bool, is_lost: bool, intervals_s: list[float]
) -> None:
    scene = Scene(HEALTHY, is_up=is_up, metrics_cache_ttl_seconds=3.0)
    scene.server.state.is_lost = is_lost
    assert [scene.prober._interval_s() for _ in intervals_s] == intervals_s


async def test_a_failed_request_brings_the_next_probe_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SUSPICION_S", 0.0)
    scene = Scene(HEALTHY, is_up=True, metrics_cache_ttl_seconds=300.0)
    running = asyncio.create_task(scene.prober.run())
    await scene.prober.wait_first_probe()
    scene.server.state.probe_soon()
    async with asyncio.timeout(5):
        while scene.capacity < 2:
            await asyncio.sleep(0)
    running.cancel()
    assert not scene.server.state.probe_due.is_set()


async def test_a_fault_of_ours_does_not_end_the_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SUSPICION_S", 0.0)
    scene = Scene(HEALTHY | {"/health": KeyError("ours")}, metrics_cache_ttl_seconds=300.0)
    running = asyncio.create_task(scene.prober.run())
    await scene.prober.wait_first_probe()
    scene.client.pages = HEALTHY
    scene.server.state.probe_soon()
    async with asyncio.timeout(5):
        while not scene.capacity:
            await asyncio.sleep(0)
    running.cancel()
    assert scene.server.state.health.is_ready
