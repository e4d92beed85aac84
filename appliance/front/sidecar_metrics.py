"""The sidecar's `GET /metrics`: the engine's own metrics, unchanged, and copies under uniform names.

Errors are `{"detail": text}`: 502 when the engine cannot be reached, 500 with the line when its page is
invalid.
"""

from collections.abc import Callable

from appliance.base.clock import Clock
from appliance.base.metrics.exposition_read import MetricFamily
from appliance.base.metrics.exposition_write import (
    OPENMETRICS_CONTENT_TYPE,
    TEXT_CONTENT_TYPE,
    wants_openmetrics,
)
from appliance.engines.metrics.scrape import CurrentScraper, Scraper
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response
from appliance.front.pipeline.route import Route


class SidecarMetricsHandlers:
    """The handler of the sidecar's /metrics.

    Args:
        scraper: Reads the engine's metrics.
        clock: The time of the scrape's age.
        more: Returns further metric families.
    """

    def __init__(
        self,
        scraper: Scraper | CurrentScraper,
        *,
        clock: Clock,
        more: Callable[[], list[MetricFamily]] = list,
    ) -> None:
        self._scraper = scraper
        self._clock, self._more = clock, more

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        return [
            Route(("GET",), "/metrics", self.metrics, is_open_while_draining=True),
        ]

    async def metrics(self, request: Request) -> Response:
        """Show the engine's metrics, as text 0.0.4 or OpenMetrics 1.0."""
        openmetrics = wants_openmetrics(request.headers.get("accept", ""))
        scraped = await self._scraper.scrape()
        body = await scraped.render(self._clock.monotonic_s(), openmetrics=openmetrics, more=self._more())
        return Response(
            body=body, content_type=OPENMETRICS_CONTENT_TYPE if openmetrics else TEXT_CONTENT_TYPE
        )
