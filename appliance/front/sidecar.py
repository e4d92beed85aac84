"""The sidecar's port: what runs beside one engine. Health as system E has it, readiness that follows the engine, and, each where it is
given, the engine's metrics, its adapters and downloads. Errors are `{detail: text}` here.

    GET /health     {status: healthy, service: runtime}: this process answers
    GET /ready      200 while the engine can take requests, 503 with the reason while it cannot
Source: system E (its README and routes); Kubernetes' probes.
"""

from collections.abc import Callable, Sequence
from typing import Any

from appliance.base.clock import Clock
from appliance.base.metrics.exposition_read import MetricFamily
from appliance.downloads.jobs import DownloadJobs
from appliance.downloads.request import DownloadFolders
from appliance.engines.lora.orders import AdapterOrders
from appliance.engines.metrics.scrape import Following, Scraper
from appliance.engines.types import BackendState
from appliance.front.downloads import ROUTES as DOWNLOADS_ROUTES
from appliance.front.downloads import DownloadHandlers
from appliance.front.lora import ROUTES as LORA_ROUTES
from appliance.front.lora import LoraHandlers
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route
from appliance.front.sidecar_metrics import ROUTES as METRICS_ROUTES
from appliance.front.sidecar_metrics import SidecarMetricsHandlers

DIALECT = "detail"


class SidecarHandlers:
    """The sidecar's own handlers. `engine` gives the state of the engine that it stands beside; None = there is none."""

    def __init__(self, engine: Callable[[], BackendState | None], *, pod: str = "") -> None:
        self._engine = engine
        self._pod = pod

    async def health(self, request: Request) -> Response:
        """GET /health: exactly system E's."""
        return json_response({"status": "healthy", "service": "runtime"})

    async def ready(self, request: Request) -> Response:
        """GET /ready: `{status: ready | not_ready, engine, detail, pod}`."""
        state = self._engine()
        if state is None:
            return json_response(
                {
                    "status": "not_ready",
                    "engine": None,
                    "detail": "There is no engine to stand beside.",
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


Rows = Sequence[tuple[str, str, str, Access]]  # method, path, handler's name, who may call


def sidecar_doors(
    scraper: Scraper | Following,
    orders: AdapterOrders,
    jobs: DownloadJobs,
    folders: Callable[[], DownloadFolders],
    *,
    clock: Clock,
    more: Callable[[], list[MetricFamily]] = list,
) -> list[tuple[Any, Rows]]:
    """Give the sidecar's doors: the engine's metrics, and what it shares with the main port, in system E's manner.

    Takes   more: metric families of the sidecar's own
    """
    return [
        (SidecarMetricsHandlers(scraper, clock=clock, more=more), METRICS_ROUTES),
        (LoraHandlers(orders, is_sidecar=True), LORA_ROUTES),
        (DownloadHandlers(jobs, folders=folders, is_sidecar=True), DOWNLOADS_ROUTES),
    ]


def sidecar_routes(sidecar: SidecarHandlers, doors: Sequence[tuple[Any, Rows]] = ()) -> list[Route]:
    """Give the sidecar's table.

    Takes   doors: (door, its rows of method, path, handler's name, access)
    """
    routes = [
        Route(
            ("GET", "HEAD"),
            "/health",
            sidecar.health,
            dialect=DIALECT,
            access=Access.PUBLIC,
            is_open_while_draining=True,
        ),
        Route(
            ("GET", "HEAD"),
            "/ready",
            sidecar.ready,
            dialect=DIALECT,
            access=Access.PUBLIC,
            is_open_while_draining=True,
        ),
    ]
    for door, rows in doors:
        routes += [
            Route(
                (method,),
                path,
                getattr(door, name),
                dialect=DIALECT,
                access=access,
                is_open_while_draining=method == "GET",
                is_ours=True,
            )
            for method, path, name, access in rows
        ]
    return routes
