"""Scraping one engine's metrics page, for the sidecar: however many ask at a time, the engine is asked once.

Unreachable, too slow or another status than 2xx is UpstreamFailed; a page that is none is Internal, with its line. Redirects are
followed on the engine's own host only. Large pages are read and written in a thread, so that no other request waits for them.
Source: system E's metrics route (statuses, the time-out of 30 s, redirects followed).
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
from appliance.base.single_flight import SingleFlight
from appliance.base.tasks import Tasks
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.response import UpstreamResponse
from appliance.base.wire.types import Target, Timeouts, WireError
from appliance.engines.dialects.contract import EngineClient
from appliance.engines.dialects.query import HttpEngineClient
from appliance.engines.metrics.families import PREFIX
from appliance.engines.metrics.normalise import (
    EngineExtras,
    Normalised,
    kind_of,
    kv_usage_of_slots,
    normalise,
)

log = get_logger("scrape")
MOST_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
INLINE_BYTES = 64 * 1024  # smaller pages cost less than handing them to a thread
SLOTS_S = 1.0
CONNECT_S = 5.0
_PATH_SAFE = "/%:@!$&'()*+,;=~?"


@dataclass(frozen=True, slots=True)
class Scraped:
    """A page as it was at one moment (monotonic seconds), mapped."""

    normalised: Normalised
    at_s: float

    async def render(self, now_s: float, *, openmetrics: bool, more: Iterable[MetricFamily] = ()) -> bytes:
        """Write it with `engine_scrape_up` and `engine_scrape_age_seconds`."""
        added = [*scrape_families([(b"", True, now_s - self.at_s)]), *more]
        if len(self.normalised.page.raw) < INLINE_BYTES:
            return self.normalised.render(added, openmetrics=openmetrics)
        return await asyncio.to_thread(self.normalised.render, added, openmetrics=openmetrics)


def scrape_families(rows: list[tuple[bytes, bool, float | None]]) -> list[MetricFamily]:
    """Give the two families that tell of scrapes: of each engine its labels, whether its page was had, and that page's age in seconds."""
    up, age = (PREFIX + "scrape_up").encode(), (PREFIX + "scrape_age_seconds").encode()
    ages = [MetricSample(age, labels, b"%.3f" % old) for labels, _, old in rows if old is not None]
    return [
        MetricFamily(
            up,
            "gauge",
            b"1 while the engine's metrics page can be read",
            [MetricSample(up, labels, b"%d" % is_up) for labels, is_up, _ in rows],
        ),
        MetricFamily(age, "gauge", b"Age of the engine's metrics page", ages, unit=b"seconds"),
    ]


async def mapped(raw: bytes, kind: str, *, is_openmetrics: bool, aside: EngineExtras) -> Normalised:
    """Read and map a page, a large one in a thread.

    Raises  InvalidPage
    """

    def work() -> Normalised:
        return normalise(read_page(raw, is_openmetrics=is_openmetrics), kind, aside)

    return work() if len(raw) < INLINE_BYTES else await asyncio.to_thread(work)


class Scraper:
    """One engine's page.

    Takes   url: base address of the engine; path: of its page; kind: see normalise; timeout_s: for a whole scrape, redirects included;
            adapters: tells which LoRA adapters are loaded, where somebody knows (None = not known), and for how many there is room
    """

    def __init__(
        self,
        url: str,
        *,
        wire: ConnectionPool,
        tasks: Tasks,
        clock: Clock,
        path: str = "/metrics",
        kind: str = "auto",
        timeout_s: float = 30.0,
        headers: dict[str, str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        adapters: Callable[[], tuple[tuple[str, ...] | None, int]] = lambda: (None, 0),
    ) -> None:
        self.kind = kind
        self._wire, self._clock, self._timeout_s, self._adapters = wire, clock, timeout_s, adapters
        self._headers, self._ssl = headers or {}, ssl_context
        self._target = Target.parse(url, headers=self._headers, ssl_context=ssl_context)
        self._path = quote("/" + path.lstrip("/"), safe=_PATH_SAFE)
        self._shared: SingleFlight[Scraped] = SingleFlight(self._scrape, tasks, name="scrape")
        self._told: tuple[str, ...] = ()

    async def scrape(self) -> Scraped:
        """Give the page as it is now, or as whoever asked a moment before gets it.

        Raises  UpstreamFailed: not reached, too slow, another status than 2xx · Internal: no metrics page, with the line
        """
        return await self._shared.get()

    async def _scrape(self) -> Scraped:
        where = self._target.origin_url + self._target.prefix.decode() + self._path
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
                f"The engine's metrics at {where} did not come within {self._timeout_s:g} s."
            ) from None
        except WireError as exc:
            raise UpstreamFailed(f"The engine's metrics at {where} cannot be had: {exc}.") from None
        if not 200 <= response.status < 300:
            said = SECRETS.redact(raw[:200].decode("utf-8", "replace"))
            raise UpstreamFailed(
                f"The engine's metrics at {where} cannot be had: it answered {response.status}: {said}"
            )
        try:
            is_openmetrics = "openmetrics" in response.headers.get("content-type", "")
            normalised = await mapped(
                raw, self.kind, is_openmetrics=is_openmetrics, aside=await self._aside(raw)
            )
        except InvalidPage as exc:
            raise Internal(
                f"The engine's metrics at {where} cannot be read: {SECRETS.redact(str(exc))}"
            ) from None
        self._tell(normalised)
        return Scraped(normalised, at_s)

    async def _open(self) -> UpstreamResponse:
        """Send the question, follow redirects on the same host. Raises WireError · UpstreamFailed."""
        target, path = self._target, self._path
        for _ in range(MOST_REDIRECTS + 1):
            response = await self._wire.send(
                target,
                method=b"GET",
                path=path.encode(),
                timeouts=Timeouts(min(CONNECT_S, self._timeout_s), self._timeout_s, self._timeout_s),
            )
            location = response.headers.get("location", "")
            if response.status not in REDIRECTS or not location:
                return response
            response.close()
            target, path = self._led(target, path, location)
        raise UpstreamFailed(f"The engine's metrics cannot be had: more than {MOST_REDIRECTS} redirects.")

    def _led(self, target: Target, path: str, location: str) -> tuple[Target, str]:
        """Give where a redirect leads. The engine's key goes along only to where it was sent in the first place."""
        parts = urlsplit(urljoin(target.origin_url + target.prefix.decode() + path, location))
        was_host, _, was_tls = self._target.origin
        if (
            parts.scheme not in {"http", "https"}
            or (parts.hostname or "").lower() != was_host.lower()
            or (was_tls and parts.scheme == "http")
        ):
            raise UpstreamFailed(
                f"The engine's metrics at {target.origin_url} lead elsewhere, to {parts.hostname or location[:100]!r}: only "
                f"redirects on the engine's own host are followed."
            )
        try:
            new = Target.parse(
                f"{parts.scheme}://{parts.netloc}", ssl_context=self._ssl if parts.scheme == "https" else None
            )
            if new.origin == self._target.origin:
                new = Target.parse(
                    f"{parts.scheme}://{parts.netloc}", headers=self._headers, ssl_context=self._ssl
                )
        except ValueError as exc:
            raise UpstreamFailed(
                f"The engine's metrics lead to an address that cannot be read: {exc}."
            ) from None
        return new, quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_PATH_SAFE)

    async def _aside(self, raw: bytes) -> EngineExtras:
        """Learn what the page does not tell: of llama-server the cache in use, which its slots tell in newer builds."""
        adapters, most = self._adapters()
        usage = None
        is_llama = kind_of(MetricsPage(b"", False, True, {}), self.kind) == "llamacpp" or (
            self.kind == "auto" and b"\nllamacpp" in raw[:4096]
        )
        if is_llama and b"kv_cache_usage_ratio" not in raw:
            usage = await slots_usage(HttpEngineClient(self._wire, self._target))
        return EngineExtras(usage, adapters, most, self._clock.now_s())

    def _tell(self, normalised: Normalised) -> None:
        """Log what is missing, when that changes."""
        lacks = (*normalised.missing, *normalised.odd)
        if lacks != self._told:
            self._told = lacks
            if lacks:
                log.warning(
                    "metrics_not_mapped",
                    kind=normalised.kind,
                    missing=list(normalised.missing),
                    invalid=normalised.odd,
                )


async def slots_usage(client: EngineClient) -> float | None:
    """Ask llama-server's /slots for the share of its KV cache in use; None = it does not tell, or not in time."""
    try:
        reply = await client.get("/slots", SLOTS_S)
        return kv_usage_of_slots(jsons.loads(reply.body)) if reply.status == 200 else None
    except (WireError, jsons.InvalidJson):
        return None


class Following:
    """The scraper of whichever server is the engine at the moment: backends come and go while the appliance runs.

    Takes   engine: gives the server as (base address, kind, headers, TLS), None = there is none; make: builds a scraper for it
    """

    def __init__(self, engine: Callable[[], "Engine | None"], make: Callable[["Engine"], Scraper]) -> None:
        self._engine, self._make = engine, make
        self._made: tuple[Engine, Scraper] | None = None

    async def scrape(self) -> Scraped:
        """Scrape it.

        Raises  as Scraper.scrape · UpstreamFailed: there is no engine
        """
        engine = self._engine()
        if engine is None:
            raise UpstreamFailed("There is no engine whose metrics could be told.", code="no_engine")
        if self._made is None or self._made[0] != engine:
            self._made = (engine, self._make(engine))
        return await self._made[1].scrape()


@dataclass(frozen=True, slots=True)
class Engine:
    """The server that is scraped. `headers` may hold its key."""

    url: str
    kind: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    ssl_context: ssl.SSLContext | None = None
