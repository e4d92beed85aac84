"""The addresses about the appliance itself: health and metrics."""

from collections.abc import Awaitable, Callable
from typing import Any

from appliance.base.metrics.exposition_read import MetricFamily
from appliance.base.metrics.exposition_write import (
    EOF_LINE,
    OPENMETRICS_CONTENT_TYPE,
    TEXT_CONTENT_TYPE,
    render_openmetrics,
    render_text,
    wants_openmetrics,
)
from appliance.base.metrics.registry import Metrics
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route

SHORT_STATUS = ("ok", "state", "version", "demo", "public_model", "upstream_base", "aliases")


class SystemHandlers:
    """The handlers of health and metrics.

    Args:
        status: Returns the object of /healthz, which the control API shows as well.
        metrics: The metrics of the appliance.
        measure: Updates the gauges; called before they are rendered.
        engines: Returns the metric families of the engines (engines/overview.py); None = none.
        may_see_details: Whether a caller (headers, address) sees more than the short form of /healthz.
        is_operator: Whether a caller (headers, address) may see what upstream servers said in their errors.
    """

    def __init__(
        self,
        *,
        status: Callable[[], dict[str, Any]],
        metrics: Metrics,
        measure: Callable[[], None],
        engines: Callable[[], Awaitable[list[MetricFamily]]] | None = None,
        may_see_details: Callable[[dict[str, str], str], bool] = lambda headers, peer: True,
        is_operator: Callable[[dict[str, str], str], bool] = lambda headers, peer: True,
    ) -> None:
        self._status = status
        self._may_see_details = may_see_details
        self._is_operator = is_operator
        self._metrics = metrics
        self._measure = measure
        self._engines = engines

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        return [
            Route(("GET",), "/healthz", self.healthz, access=Access.PUBLIC, is_open_while_draining=True),
            Route(("GET",), "/metrics", self.metrics, is_open_while_draining=True),
        ]

    async def healthz(self, request: Request) -> Response:
        """Show the status of the appliance; 503 while it is not serving. Without a valid key the short form.

        Returns:
            `{ok, public_model, upstream_base, aliases, novita_endpoints, …}`. The short form, where keys are
            set and none is sent: `{ok, state, version, demo, public_model, upstream_base, aliases}`.
            Callers without operator access see how an endpoint failed last, not the sentence that it said.
            With accounts also `degraded`, what is down while requests are served all the same, and `checks`.
        """
        status = self._status()
        if self._may_see_details(request.headers, request.peer):
            shown = {name: value for name, value in status.items() if name != "machine_id"}
            if not self._is_operator(request.headers, request.peer):
                shown["backends"] = [_without_sentences(backend) for backend in shown.get("backends", ())]
                if "checks" in shown:
                    shown["checks"] = without_errors(shown["checks"])
        else:
            shown = {name: status[name] for name in SHORT_STATUS}
        return json_response(shown, 200 if status["ok"] else 503)

    async def metrics(self, request: Request) -> Response:
        """Show the metrics of the appliance and of every engine, as text 0.0.4 or OpenMetrics 1.0."""
        openmetrics = wants_openmetrics(request.headers.get("accept", ""))
        self._measure()
        engines = await self._engines() if self._engines is not None else []
        body = self._metrics.render(openmetrics=openmetrics) + (
            render_openmetrics(engines) + EOF_LINE if openmetrics else render_text(engines)
        )
        return Response(
            body=body, content_type=OPENMETRICS_CONTENT_TYPE if openmetrics else TEXT_CONTENT_TYPE
        )


def _without_sentences(backend: dict[str, Any]) -> dict[str, Any]:
    """Return a backend with the kinds of its last errors: the sentences may quote other clients' requests."""
    endpoints = [
        {**endpoint, "last_error": endpoint.get("last_error", "").partition(":")[0]}
        for endpoint in backend.get("endpoints", ())
    ]
    return {**backend, "endpoints": endpoints}


def without_errors(checks: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return checks without what failed: it names hosts."""
    return {
        name: {key: value for key, value in check.items() if key != "error"} for name, check in checks.items()
    }


def failing(checks: dict[str, dict[str, Any]]) -> list[str]:
    """Return what is down, while requests are served without it: `store`, `redis`; [] = nothing."""
    names = {"database": "store"}
    return [names.get(name, name) for name, check in checks.items() if check["status"] != "ok"]
