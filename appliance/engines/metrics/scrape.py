"""Reads one engine's metrics page over HTTP, for the sidecar; requests at the same time share one scrape.

Redirects are followed on the engine's own host only. Large pages are parsed and written in a thread, so that
no other request waits for them.

Source:
    For statuses, the timeout and redirects, see docs/compatibility.md.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import quote, urljoin, urlsplit

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import Internal, UpstreamFailed
from appliance.base.logs import SECRETS, get_logger
from appliance.base.metrics.exposition_read import (
    InvalidPage,
    MetricFamily,
    MetricSample,
    MetricsPage,
    read_page,
)
from appliance.base.plain_text import public_address
from appliance.base.single_flight import SingleFlight
from appliance.base.tasks import Tasks
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.response import UpstreamResponse
from appliance.base.wire.types import Target, Timeouts, WireError
from appliance.engines.dialects.client import HttpEngineClient
from appliance.engines.dialects.contract import EngineClient
from appliance.engines.metrics.extras import EngineExtras, compute_kv_usage
from appliance.engines.metrics.families import PREFIX
from appliance.engines.metrics.normalise import NormalisedPage, find_kind, normalise

log = get_logger("scrape")
MAX_REDIRECTS = 5
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
INLINE_BYTES = 64 * 1024  # a smaller page costs less than handing it to a thread
SLOTS_TIMEOUT_S = 1.0
CONNECT_TIMEOUT_S = 5.0
KIND_BYTES = 4096  # of a page, in which its first metric is looked for
MAX_SHOWN_BYTES = 200
_PATH_SAFE = "/%:@!$&'()*+,;=~?"
Adapters = Callable[[], tuple[tuple[str, ...] | None, int]]


@dataclass(frozen=True, slots=True)
class ScrapeTarget:
    """The server that is scraped.

    Attributes:
        url: Base address of the engine.
        kind: See `normalise`.
        path: Of its metrics page.
        headers: Sent with each request; they may hold its key.
    """

    url: str
    kind: str = "auto"
    path: str = "/metrics"
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    ssl_context: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class ScrapeResult:
    """A page as it was at `at_s` (monotonic seconds)."""

    normalised: NormalisedPage
    at_s: float

    async def render(self, now_s: float, *, openmetrics: bool, more: Iterable[MetricFamily] = ()) -> bytes:
        """Write the page with `engine_scrape_up` and `engine_scrape_age_seconds`.

        Args:
            now_s: Monotonic seconds.
            openmetrics: Write OpenMetrics 1.0; False = text 0.0.4.
            more: Further families.
        """
        added = [*scrape_families([ScrapeStatus(b"", True, now_s - self.at_s)]), *more]
        if len(self.normalised.page.raw) < INLINE_BYTES:
            return self.normalised.render(added, openmetrics=openmetrics)
        return await asyncio.to_thread(self.normalised.render, added, openmetrics=openmetrics)


@dataclass(frozen=True, slots=True)
class ScrapeStatus:
    """The result of the latest scrape of one engine.

    Attributes:
        labels: Of the engine, as they are written.
        is_up: Its page was read.
        age_s: Age of the page in seconds; None = there is none.
    """

    labels: bytes
    is_up: bool
    age_s: float | None


def scrape_families(statuses: list[ScrapeStatus]) -> list[MetricFamily]:
    """Return `engine_scrape_up` and `engine_scrape_age_seconds`."""
    up, age = (PREFIX + "scrape_up").encode(), (PREFIX + "scrape_age_seconds").encode()
    ups = [MetricSample(up, one.labels, b"%d" % one.is_up) for one in statuses]
    ages = [MetricSample(age, one.labels, b"%.3f" % one.age_s) for one in statuses if one.age_s is not None]
    return [
        MetricFamily(up, "gauge", b"1 while the engine's metrics page can be read", ups),
        MetricFamily(age, "gauge", b"Age of the engine's metrics page", ages, unit=b"seconds"),
    ]


async def normalise_raw(
    raw: bytes, kind: str, *, is_openmetrics: bool, extras: EngineExtras
) -> NormalisedPage:
    """Parse and normalise a page, a large one in a thread.

    Raises:
        InvalidPage: It is not a metrics page.
    """

    def work() -> NormalisedPage:
        return normalise(read_page(raw, is_openmetrics=is_openmetrics), kind, extras)

    return work() if len(raw) < INLINE_BYTES else await asyncio.to_thread(work)


class SlotsReader:
    """Reads the share of a llama-server's KV cache in use from its /slots.

    That query wakes a server that sleeps (`--sleep-idle-seconds`), and keeps one awake. So it is made only
    where the server has done something since the last one, by its metrics page, and does not sleep.
    """

    def __init__(self) -> None:
        self._page: bytes | None = None  # at the last query that was answered
        self._usage: float | None = None

    async def read(self, client: EngineClient, page: bytes) -> float | None:
        """Return the share, 0 to 1; None = unknown, or not in time.

        Args:
            client: The way to the server.
            page: Its metrics page as it is now.
        """
        if page != self._page:
            try:
                self._usage, self._page = await _query_kv_usage(client), page
            except (WireError, jsons.InvalidJson):
                self._usage, self._page = None, None
        return self._usage


async def _query_kv_usage(client: EngineClient) -> float | None:
    """Query /slots; a server that sleeps has no cache. Raises WireError, InvalidJson."""
    props = await client.get("/props", SLOTS_TIMEOUT_S)
    value = jsons.loads(props.body) if props.status == 200 else None
    if isinstance(value, dict) and value.get("is_sleeping") is True:
        return 0.0
    reply = await client.get("/slots", SLOTS_TIMEOUT_S)
    return compute_kv_usage(jsons.loads(reply.body)) if reply.status == 200 else None


class Scraper:
    """Reads one engine's page.

    Args:
        timeout_s: For a whole scrape, redirects included.
        adapters: Returns the loaded LoRA adapters (None = unknown), and how many can be loaded (0 = unknown).
    """

    def __init__(
        self,
        target: ScrapeTarget,
        *,
        wire: ConnectionPool,
        tasks: Tasks,
        clock: Clock,
        timeout_s: float = 30.0,
        adapters: Adapters = lambda: (None, 0),
    ) -> None:
        self._kind = target.kind
        self._wire = wire
        self._clock = clock
        self._timeout_s = timeout_s
        self._adapters = adapters
        self._headers = dict(target.headers)
        self._ssl_context = target.ssl_context
        self._target = Target.parse(target.url, headers=self._headers, ssl_context=target.ssl_context)
        self._path = quote("/" + target.path.lstrip("/"), safe=_PATH_SAFE)
        self._flight: SingleFlight[ScrapeResult] = SingleFlight(self._scrape, tasks, name="scrape")
        self._slots = SlotsReader()
        self._logged: tuple[str, ...] = ()

    async def scrape(self) -> ScrapeResult:
        """Return the page as it is now, or the result of a scrape under way.

        Raises:
            UpstreamFailed: The engine is not reached, too slow, or its status is not 2xx.
            Internal: It is not a metrics page; the text names the line.
        """
        return await self._flight.get()

    async def _scrape(self) -> ScrapeResult:
        address = public_address(self._target.origin_url + self._target.prefix.decode() + self._path)
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._open()
                try:
                    raw = await response.read()
                finally:
                    response.close()
                at_s = self._clock.monotonic_s()
        except TimeoutError:
            raise UpstreamFailed(
                f"The engine's metrics at {address} did not arrive within {self._timeout_s:g} s."
            ) from None
        except WireError as exc:
            raise UpstreamFailed(f"Cannot read the engine's metrics at {address}: {exc}.") from None
        if not 200 <= response.status < 300:
            text = SECRETS.redact(raw[:MAX_SHOWN_BYTES].decode("utf-8", "replace"))
            raise UpstreamFailed(
                f"Cannot read the engine's metrics at {address}: HTTP {response.status}: {text}"
            )
        try:
            is_openmetrics = "openmetrics" in response.headers.get("content-type", "")
            normalised = await normalise_raw(
                raw, self._kind, is_openmetrics=is_openmetrics, extras=await self._read_extras(raw)
            )
        except InvalidPage as exc:
            raise Internal(
                f"The engine's metrics page at {address} is invalid: {SECRETS.redact(str(exc))}"
            ) from None
        self._log_problems(normalised)
        return ScrapeResult(normalised, at_s)

    async def _open(self) -> UpstreamResponse:
        """Send the request, and follow redirects on the same host.

        Raises:
            WireError: The engine is not reached.
            UpstreamFailed: A redirect is not followed.
        """
        target, path = self._target, self._path
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._wire.send(
                target,
                method=b"GET",
                path=path.encode(),
                timeouts=Timeouts(min(CONNECT_TIMEOUT_S, self._timeout_s), self._timeout_s, self._timeout_s),
            )
            location = response.headers.get("location", "")
            if response.status not in REDIRECT_STATUSES or not location:
                return response
            response.close()
            target, path = self._redirect(target, path, location)
        raise UpstreamFailed(f"Cannot read the engine's metrics: more than {MAX_REDIRECTS} redirects.")

    def _redirect(self, target: Target, path: str, location: str) -> tuple[Target, str]:
        """Return where a redirect leads.

        1. another host, or from TLS to plain HTTP   → UpstreamFailed
        2. the engine's own address                  → with its key
        3. another port, or to TLS                   → without the key
        """
        parts = urlsplit(urljoin(target.origin_url + target.prefix.decode() + path, location))
        own_host, _, own_tls = self._target.origin
        is_own_host = (parts.hostname or "").lower() == own_host.lower()
        is_downgrade = own_tls and parts.scheme == "http"
        if parts.scheme not in {"http", "https"} or not is_own_host or is_downgrade:  # 1
            raise UpstreamFailed(
                f"The engine's metrics at {target.origin_url} redirect to "
                f"{parts.hostname or location[:100]!r}; only redirects on the engine's own host are followed."
            )
        url = f"{parts.scheme}://{parts.netloc}"
        try:
            new = Target.parse(url, ssl_context=self._ssl_context if parts.scheme == "https" else None)  # 3
            if new.origin == self._target.origin:  # 2
                new = Target.parse(url, headers=self._headers, ssl_context=self._ssl_context)
        except ValueError as exc:
            raise UpstreamFailed(f"The engine's metrics redirect to an invalid address: {exc}.") from None
        return new, quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_PATH_SAFE)

    async def _read_extras(self, raw: bytes) -> EngineExtras:
        """Return what the page does not show, such as llama-server's KV cache in use (newer builds)."""
        adapters, max_adapters = self._adapters()
        usage = None
        if self._is_llamacpp(raw) and b"kv_cache_usage_ratio" not in raw:
            usage = await self._slots.read(HttpEngineClient(self._wire, self._target), raw)
        return EngineExtras(usage, adapters, max_adapters, self._clock.now_s())

    def _is_llamacpp(self, raw: bytes) -> bool:
        if self._kind == "auto":
            return b"\nllamacpp" in raw[:KIND_BYTES]
        return find_kind(MetricsPage(b"", False, True, {}), self._kind) == "llamacpp"

    def _log_problems(self, normalised: NormalisedPage) -> None:
        """Log what is missing or invalid when that changes."""
        problems = (*normalised.missing, *normalised.invalid)
        if problems == self._logged:
            return
        self._logged = problems
        if problems:
            log.warning(
                "metrics_not_mapped",
                kind=normalised.kind,
                missing=list(normalised.missing),
                invalid=normalised.invalid,
            )


class CurrentScraper:
    """The scraper of the current engine: backends can change while the appliance runs.

    Args:
        target: Returns the server; None = there is none.
        make: Builds a scraper for it.
    """

    def __init__(
        self, target: Callable[[], ScrapeTarget | None], make: Callable[[ScrapeTarget], Scraper]
    ) -> None:
        self._target = target
        self._make = make
        self._made: tuple[ScrapeTarget, Scraper] | None = None

    async def scrape(self) -> ScrapeResult:
        """Return the page of the current engine.

        Raises:
            UpstreamFailed: There is no engine, or see `Scraper.scrape`.
            Internal: See `Scraper.scrape`.
        """
        target = self._target()
        if target is None:
            raise UpstreamFailed("There is no engine to read metrics from.", code="no_engine")
        if self._made is None or self._made[0] != target:
            self._made = (target, self._make(target))
        return await self._made[1].scrape()
