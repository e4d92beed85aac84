"""The addresses about the appliance itself: health, metrics, receipts."""

from collections.abc import Awaitable, Callable
from typing import Any

from appliance.base.errors import NotFound
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
from appliance.engines.receipts import Receipts
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route

SHORT_STATUS = ("ok", "state", "version", "demo", "public_model", "upstream_base", "aliases")


class SystemHandlers:
    """The handlers of health, metrics and receipts.

    Args:
        status: Returns the object of /healthz, which the control API shows as well.
        metrics: The metrics of the appliance.
        receipts: The latest receipts.
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
        receipts: Receipts,
        measure: Callable[[], None],
        engines: Callable[[], Awaitable[list[MetricFamily]]] | None = None,
        may_see_details: Callable[[dict[str, str], str], bool] = lambda headers, peer: True,
        is_operator: Callable[[dict[str, str], str], bool] = lambda headers, peer: True,
    ) -> None:
        self._status = status
        self._may_see_details = may_see_details
        self._is_operator = is_operator
        self._metrics = metrics
        self._receipts = receipts
        self._measure = measure
        self._engines = engines

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        return [
            Route(("GET",), "/healthz", self.healthz, access=Access.PUBLIC, is_open_while_draining=True),
            Route(("GET",), "/metrics", self.metrics, is_open_while_draining=True),
            Route(("GET",), "/receipts", self.receipts, access=Access.OPERATOR, is_open_while_draining=True),
            Route(
                ("GET",), "/receipts/{id}", self.receipt, access=Access.OPERATOR, is_open_while_draining=True
            ),
        ]

    async def healthz(self, request: Request) -> Response:
        """Show the status of the appliance; 503 while it is not serving. Without a valid key the short form.

        Returns:
            `{ok, public_model, upstream_base, aliases, novita_endpoints, …}`. The short form, where keys are
            set and none is sent: `{ok, state, version, demo, public_model, upstream_base, aliases}`.
            Callers without operator access see how an endpoint failed last, not the sentence that it said.
        """
        status = self._status()
        if self._may_see_details(request.headers, request.peer):
            shown = {name: value for name, value in status.items() if name != "machine_id"}
            if not self._is_operator(request.headers, request.peer):
                shown["backends"] = [_without_sentences(backend) for backend in shown.get("backends", ())]
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

    async def receipts(self, request: Request) -> Response:
        """List the receipts of the latest 100 requests, newest first."""
        return json_response(
            {"receipts": [r.as_dict() for r in self._receipts.latest(100)], "kept": len(self._receipts)}
        )

    async def receipt(self, request: Request) -> Response:
        """Show the receipt of one request."""
        receipt = self._receipts.get(request.params["id"])
        if receipt is None:
            raise NotFound(f"There is no receipt {request.params['id']!r}; only the last 1000 are stored.")
        return json_response(receipt.as_dict())


def _without_sentences(backend: dict[str, Any]) -> dict[str, Any]:
    """Return a backend with the kinds of its last errors: the sentences may quote other clients' requests."""
    endpoints = [
        {**endpoint, "last_error": endpoint.get("last_error", "").partition(":")[0]}
        for endpoint in backend.get("endpoints", ())
    ]
    return {**backend, "endpoints": endpoints}
