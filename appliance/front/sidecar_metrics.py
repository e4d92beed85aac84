"""The sidecar's `GET /metrics`: one engine's page as it came, with system E's names and ours beside it.

Errors are said as system E does, `{"detail": text}` (dialect `detail`): 502 when the engine cannot be asked, 500 with the line when its
page is none.
"""

from collections.abc import Callable

from appliance.base.clock import Clock
from appliance.base.exposition import Family
from appliance.base.exposition_out import OPENMETRICS, TEXT, wants_openmetrics
from appliance.engines.scrape import Following, Scraper
from appliance.front.access import Access
from appliance.front.call import Answer, Call

ROUTES: list[tuple[str, str, str, Access]] = [("GET", "/metrics", "metrics", Access.CLIENT)]


class SidecarMetricsDoor:
    """The handler, over the scraper of the one engine. `more` gives the families that stand behind its page."""

    def __init__(self, scraper: Scraper | Following, *, clock: Clock, more: Callable[[], list[Family]] = list) -> None:
        self._scraper = scraper
        self._clock, self._more = clock, more

    async def metrics(self, call: Call) -> Answer:
        """GET /metrics: text 0.0.4, or OpenMetrics 1.0 to whoever prefers it."""
        openmetrics = wants_openmetrics(call.headers.get("accept", ""))
        scraped = await self._scraper.scrape()
        body = await scraped.render(self._clock.monotonic_s(), openmetrics=openmetrics, more=self._more())
        return Answer(body=body, content_type=OPENMETRICS if openmetrics else TEXT)
