"""The sidecar's port, beside one engine: health, readiness, the engine's metrics, adapters, downloads.

    GET /health     {status: healthy, service: runtime}: this process responds
    GET /ready      200 while the engine can take requests, 503 with the reason while it cannot

Errors are `{detail: text}` here. For compatibility, see docs/compatibility.md. Source: Kubernetes' probes.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from appliance.base.clock import Clock
from appliance.base.metrics.exposition_read import MetricFamily
from appliance.downloads.jobs import DownloadJobs
from appliance.downloads.request import DownloadFolders
from appliance.engines.lora.orders import AdapterOrders
from appliance.engines.metrics.scrape import CurrentScraper, Scraper
from appliance.engines.types import BackendState
from appliance.front.downloads import DownloadHandlers
from appliance.front.lora import LoraHandlers
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route, RouteGroup
from appliance.front.routes import join_routes
from appliance.front.sidecar_metrics import SidecarMetricsHandlers

DIALECT = "detail"


class SidecarHandlers:
    """The sidecar's own handlers.

    Args:
        engine: Returns the state of the engine; None = there is none.
        pod: The pod's name, shown on /ready.
    """

    def __init__(self, engine: Callable[[], BackendState | None], *, pod: str = "") -> None:
        self._engine = engine
        self._pod = pod

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        return [
            Route(("GET",), "/health", self.health, access=Access.PUBLIC, is_open_while_draining=True),
            Route(("GET",), "/ready", self.ready, access=Access.PUBLIC, is_open_while_draining=True),
        ]

    async def health(self, request: Request) -> Response:
        """Show that this process responds: `{status: healthy, service: runtime}`."""
        return json_response({"status": "healthy", "service": "runtime"})

    async def ready(self, request: Request) -> Response:
        """Show whether the engine can take requests; 503 while it cannot.

        Returns:
            `{status: ready | not_ready, engine, detail, pod}`.
        """
        state = self._engine()
        if state is None:
            return json_response(
                {
                    "status": "not_ready",
                    "engine": None,
                    "detail": "No engine is configured.",
                    "pod": self._pod,
                },
                503,
            )
        is_up = state.is_up
        body: dict[str, Any] = {
            "status": "ready" if is_up else "not_ready",
            "engine": {
                "kind": state.kind,
                "url": state.url,
                "standing": state.standing,
                "models": list(state.models),
            },
            "detail": state.detail,
            "pod": self._pod,
        }
        return json_response(body, 200 if is_up else 503)


def sidecar_groups(
    scraper: Scraper | CurrentScraper,
    orders: AdapterOrders,
    jobs: DownloadJobs,
    folders: Callable[[], DownloadFolders],
    *,
    clock: Clock,
    more: Callable[[], list[MetricFamily]] = list,
) -> list[RouteGroup]:
    """Return the other groups of the sidecar's port: the engine's metrics, adapters and downloads.

    Args:
        more: Returns metric families of the sidecar's own.
    """
    return [
        SidecarMetricsHandlers(scraper, clock=clock, more=more),
        LoraHandlers(orders, is_sidecar=True),
        DownloadHandlers(jobs, folders=folders, is_sidecar=True),
    ]


def sidecar_routes(*groups: RouteGroup) -> list[Route]:
    """Return the sidecar's table: errors in its dialect, and only what reads is answered while draining."""
    return [
        replace(route, dialect=DIALECT, is_open_while_draining="GET" in route.methods, takes_ticket=False)
        for route in join_routes(*groups)
    ]
