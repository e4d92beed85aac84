"""The sidecar's metrics on loopback, over HTTP: both formats, error bodies, other routes while a scrape hangs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_of
from prometheus_client.parser import text_string_to_metric_families as text_of

from appliance.base.clock import SystemClock
from appliance.base.watch import Watched
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits
from appliance.engines.metrics.scrape import Scraper, ScrapeTarget
from appliance.engines.receipts import Receipts
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.access_log import AccessLog
from appliance.front.pipeline.pipeline import RequestPipeline
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response
from appliance.front.pipeline.route import Route
from appliance.front.server.server import HttpServer, serving_http
from appliance.front.sidecar import sidecar_routes
from appliance.front.sidecar_metrics import SidecarMetricsHandlers
from appliance.parts import Appliance
from appliance.settings import load_or_raise
from tests.fakes.engine_pages import PAGES, VLLM_2026, PageOf, page
from tests.fakes.raw_server import Peer, RawServer
from tests.journeys.running import until

Over = Callable[..., Awaitable[httpx.AsyncClient]]
# What a Prometheus of today and its predecessors send.
PROMETHEUS = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"


async def ping(request: Request) -> Response:
    return Response(body=b"{}")


@pytest.fixture
async def over() -> AsyncIterator[Over]:
    """Serve the handlers over the engine at a base address."""
    async with AsyncExitStack() as stack:

        async def begin(url: str, *, kind: str = "auto", **how: object) -> httpx.AsyncClient:
            settings, _ = load_or_raise({"NAT_REDIRECT": "off", "ACCESS_LOG": "0"})
            parts = Appliance(settings, [])
            await stack.enter_async_context(parts.tasks)
            stack.push_async_callback(parts.fleet.close)
            wire = await stack.enter_async_context(ConnectionPool(PoolLimits()))
            clock = SystemClock()
            target = ScrapeTarget(url, kind)
            handlers = SidecarMetricsHandlers(
                Scraper(target, wire=wire, tasks=parts.tasks, clock=clock, **how), clock=clock
            )
            pipeline = RequestPipeline(
                settings.front,
                receipts=Receipts(),
                metrics=parts.metrics,
                clock=clock,
                state=Watched("serving"),
                access_log=AccessLog(clock=clock, form="json"),
            )
            routes = sidecar_routes(handlers)
            server = HttpServer(
                [*routes, Route(("GET",), "/ping", ping, access=Access.PUBLIC)], pipeline, clock=clock
            )
            bound = await stack.enter_async_context(
                serving_http(
                    server, [("127.0.0.1", 0)], hurry=asyncio.Event(), tasks=parts.tasks, grace_s=lambda: 1
                )
            )
            return await stack.enter_async_context(
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{bound[0][1]}", timeout=20)
            )

        yield begin


def engine(text: str, content_type: str = "text/plain; version=0.0.4; charset=utf-8") -> RawServer:
    body = text.encode()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            peer.say(
                f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )

    return RawServer(script)


@pytest.mark.parametrize("of", PAGES, ids=[one.name for one in PAGES])
async def test_metrics_have_the_engines_names_and_uniform_ones(over: Over, of: PageOf) -> None:
    async with engine(page(of)) as server:
        http = await over(server.address, kind=of.kind)
        response = await http.get("/metrics")
    assert (response.status_code, response.headers["content-type"]) == (
        200,
        "text/plain; version=0.0.4; charset=utf-8",
    )
    assert response.text.startswith(page(of))
    names = {family.name for family in text_of(response.text)}
    assert {
        "kthena:num_requests_waiting",
        "engine_requests_waiting",
        "vllm:num_requests_waiting" if of.mark == ":" or of.kind != "vllm" else "engine_scrape_up",
        "engine_mapping_missing",
        "engine_scrape_age_seconds",
    } <= names


async def test_prometheus_gets_openmetrics_from_any_engine(over: Over) -> None:
    async with engine(page(VLLM_2026)) as server:
        http = await over(server.address)
        first = await http.get("/metrics", headers={"Accept": PROMETHEUS})
    assert first.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    families = {family.name: family for family in openmetrics_of(first.text)}
    assert families["vllm:generation_tokens"].type == families["engine_generation_tokens"].type == "counter"
    own = first.text.split("# TYPE kthena:")[0] + "# EOF\n"
    async with engine(own, "application/openmetrics-text; version=1.0.0") as server:
        http = await over(server.address)
        again = await http.get("/metrics", headers={"Accept": PROMETHEUS})
        assert {family.name for family in openmetrics_of(again.text)} == set(families)
        text = (await http.get("/metrics")).text
        assert [
            s.value for f in text_of(text) for s in f.samples if s.name == "engine_generation_tokens_total"
        ] == [700]
        assert "# EOF" not in text


async def test_failures_have_the_compatible_bodies(over: Over) -> None:
    async with engine("vllm:a 1\n<!doctype html>\n") as server:
        http = await over(server.address)
        response = await http.get("/metrics")
        assert response.status_code == 500
        assert set(response.json()) == {"detail"}
        assert (
            "line 2 is neither a sample nor a comment nor empty: <!doctype html>" in response.json()["detail"]
        )
    response = await http.get("/metrics")
    assert response.status_code == 502
    assert set(response.json()) == {"detail"}
    assert f"Cannot read the engine's metrics at {server.address}/metrics" in response.json()["detail"]


async def test_other_addresses_answer_while_a_scrape_hangs(over: Over) -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    async with RawServer(silent) as server:
        http = await over(server.address, timeout_s=1.0)
        waiting = [asyncio.ensure_future(http.get("/metrics")) for _ in range(3)]
        assert await until(lambda: len(server.requests) == 1)
        for _ in range(20):
            assert (await http.get("/ping")).status_code == 200
        assert not any(one.done() for one in waiting)
        assert [(await one).status_code for one in waiting] == [502] * 3
        assert len(server.requests) == 1
