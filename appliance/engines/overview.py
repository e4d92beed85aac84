"""The engines' part of our own `GET /metrics`, with the backend's name in a label.

It has every backend's page under our names, what the appliance measured itself, and for an endpoint picker
one row for all backends. Servers are probed in the background (backends/prober.py), and their latest page is
used; llama-servers of the model manager are queried when a client reads. A page is normalised once, however
often it is read, and clients that read at the same time share one result.
"""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from appliance.base.clock import Clock
from appliance.base.logs import get_logger
from appliance.base.metrics.exposition_read import (
    InvalidPage,
    MetricFamily,
    MetricSample,
    escape_label,
    make_gauge,
    parse_labels,
    unescape_label,
)
from appliance.base.metrics.exposition_write import add_label, merge_families
from appliance.base.metrics.histogram import PlainHistogram
from appliance.base.metrics.latencies import Latencies, ModelLatencies
from appliance.base.single_flight import SingleFlight
from appliance.base.tasks import Tasks
from appliance.base.wire.types import WireError
from appliance.engines.backends.engine_load import ScrapedPage
from appliance.engines.backends.managed import ManagedBackend
from appliance.engines.backends.server import EngineServer
from appliance.engines.metrics.copies import make_lora_info
from appliance.engines.metrics.extras import EngineExtras
from appliance.engines.metrics.families import GATEWAY, LATENCIES, LORA_INFO, METRICS, PREFIX
from appliance.engines.metrics.normalise import NormalisedPage
from appliance.engines.metrics.scrape import ScrapeStatus, SlotsReader, normalise_raw, scrape_families
from appliance.engines.router import Router

log = get_logger("metrics")
RUNNER_TIMEOUT_S = 2.0  # for the page of a llama-server of the model manager
PROXY_LABEL = b'measured_at="proxy"'
_HELP = {spec.name: spec.help.encode() for spec in METRICS}
Labels = tuple[tuple[bytes, str], ...]


@dataclass(slots=True)
class BackendPage:
    """The metrics page of one server.

    Attributes:
        key: Identifies the server between two reads.
        labels: Of all its metrics; the first one is `backend`.
        page: None = it has none, or none was read yet.
        kv_usage: Share of the KV cache in use by llama-server's slots, 0 to 1; None = unknown.
        normalised: None = it has no page, or the page is invalid.
    """

    key: object
    server: EngineServer
    labels: Labels
    page: ScrapedPage | None
    kv_usage: float | None = None
    normalised: NormalisedPage | None = None


class Overview:
    """Reads the pages of all backends, and returns their metric families."""

    def __init__(self, router: Router, *, latencies: Latencies, tasks: Tasks, clock: Clock) -> None:
        self._router = router
        self._latencies = latencies
        self._clock = clock
        self._cache: dict[object, tuple[ScrapedPage, float | None, NormalisedPage | None]] = {}
        self._problems: dict[object, str] = {}
        self._slots: dict[object, SlotsReader] = {}
        self._flight: SingleFlight[list[MetricFamily]] = SingleFlight(self._families, tasks, name="overview")

    async def families(self) -> list[MetricFamily]:
        """Return all families.

        The label `backend` is the first; those of the model manager's llama-servers have `model_name` and
        `runner` (the port) after it.
        """
        return await self._flight.get()

    async def _families(self) -> list[MetricFamily]:
        pages = await self._read_pages()
        families: list[MetricFamily] = []
        for one in pages:
            families += _labelled_families(one)
        now_s = self._clock.monotonic_s()
        families += scrape_families([_scrape_status(one, now_s) for one in pages])
        measuring = {one.labels[0][1] for one in pages if one.normalised and one.normalised.has(LATENCIES[0])}
        families += _latency_families(self._latencies, measuring)
        return [*merge_families(families), *self._picker_families(pages)]

    # ---- reading pages

    async def _read_pages(self) -> list[BackendPage]:
        pages = list(self._find_pages())
        await asyncio.gather(
            *(
                self._query(one)
                for one in pages
                if one.server.state.has_slots and one.server.state.health.is_ready
            )
        )
        for one in pages:
            one.normalised = await self._normalise(one)
        present = {one.key for one in pages}
        for by_key in (self._cache, self._problems, self._slots):
            for key in by_key.keys() - present:
                del by_key[key]
        return pages

    def _find_pages(self) -> Iterator[BackendPage]:
        """Yield the servers that have a metrics page, with their latest one."""
        for backend in self._router.backends():
            name = (b"backend", backend.name)
            if isinstance(backend, EngineServer):
                dialect = backend.state.dialect
                if dialect is None or dialect.running_metrics:
                    yield BackendPage(backend.name, backend, (name,), backend.state.load.page)
            elif isinstance(backend, ManagedBackend):
                for alias, port, runner in backend.runners():
                    if runner.kind == "openai":  # it has no page that is known
                        continue
                    labels = (name, (b"model_name", alias), (b"runner", str(port)))
                    yield BackendPage((backend.name, runner), runner, labels, None)

    async def _query(self, one: BackendPage) -> None:
        """Query a llama-server: for its page if it is not probed in the background, and for its slots.

        Builds that have the cache in use on the page do not have it in the slots.
        """
        server = one.server
        if server.is_managed:
            try:
                reply = await server.client.get("/metrics", RUNNER_TIMEOUT_S)
            except WireError:
                return
            if reply.status == 200:
                one.page = ScrapedPage(reply.body, False, self._clock.monotonic_s())
        if one.page is not None and b"kv_cache_usage_ratio" not in one.page.raw:
            slots = self._slots.setdefault(one.key, SlotsReader())
            one.kv_usage = await slots.read(server.client, one.page.raw)

    async def _normalise(self, one: BackendPage) -> NormalisedPage | None:
        """Normalise a page, unless the same one was normalised before; log its problems when they change."""
        server, page = one.server, one.page
        if page is None:
            return None
        cached = self._cache.get(one.key)
        if cached is not None and cached[0] is page and cached[1] == one.kv_usage:
            return cached[2]
        normalised, problem = None, ""
        try:
            normalised = await normalise_raw(
                page.raw,
                server.kind,
                is_openmetrics=page.is_openmetrics,
                extras=server.engine_extras(one.kv_usage),
            )
            if normalised.missing or normalised.invalid:
                missing = ", ".join(normalised.missing) or "nothing"
                problem = f"missing {missing}; invalid {normalised.invalid or 'nothing'}"
        except InvalidPage as exc:
            problem = str(exc)
        if problem and self._problems.get(one.key) != problem:
            log.warning("metrics_not_mapped", backend=server.name, reason=problem)
        self._problems[one.key] = problem
        self._cache[one.key] = (page, one.kv_usage, normalised)
        return normalised

    # ---- the appliance as one model server

    def _picker_families(self, pages: list[BackendPage]) -> Iterator[MetricFamily]:
        """Yield the endpoint picker's families, one row each.

        1. requests waiting and running: the sum over the backends, with those in our own queue
        2. the KV cache in use: the mean of the backends' means
        3. adapters: all that are loaded on any backend
        """
        states = self._router.states()
        waiting = sum(state.waiting or 0.0 for state in states) + self._router.dispatcher.waiting
        running = sum(state.in_flight if state.running is None else state.running for state in states)
        usage = _mean(_mean(_values(one.normalised, "kv_cache_usage_ratio")) for one in pages)
        values: dict[str, float | None] = {
            "requests_waiting": waiting,
            "requests_running": running,
            "kv_cache_usage_ratio": usage,
        }
        for name, source, text in GATEWAY:  # 1, 2
            value = values[source.removeprefix(PREFIX)]
            if value is not None:
                yield make_gauge(name, f"{text}, of all backends", value)
        adapters, max_adapters = _find_adapters(pages)
        if adapters or max_adapters:  # 3
            extras = EngineExtras(
                adapters=tuple(adapters), max_adapters=max_adapters, now_s=self._clock.now_s()
            )
            yield make_lora_info(extras)


def _labelled_families(one: BackendPage) -> list[MetricFamily]:
    if one.normalised is None:
        return []
    families = [*one.normalised.ours, *one.normalised.mapping_families()]
    for name, value in reversed(one.labels):
        families = add_label(families, name, escape_label(value))
    return families


def _scrape_status(one: BackendPage, now_s: float) -> ScrapeStatus:
    age_s = now_s - one.page.at_s if one.page else None
    return ScrapeStatus(_render_labels(one.labels), one.normalised is not None, age_s)


def _render_labels(labels: Iterable[tuple[bytes, str]]) -> bytes:
    return b",".join(name + b'="' + escape_label(value) + b'"' for name, value in labels)


def _values(normalised: NormalisedPage | None, name: str) -> Iterator[float]:
    full = (PREFIX + name).encode()
    return (
        float(sample.value)
        for family in (normalised.ours if normalised else ())
        if family.name == full
        for sample in family.samples
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _find_adapters(pages: list[BackendPage]) -> tuple[list[str], int]:
    """Return the adapters that are loaded on any backend, and the most that one engine can load.

    1. the engine shows which ones are in use (vLLM, in its newest row) → those
    2. it does not                                                     → those that it lists
    """
    names: dict[str, None] = {}
    most = 0
    for one in pages:
        family = one.normalised.page.families.get(LORA_INFO.encode()) if one.normalised else None
        if family is None or not family.samples:  # 2
            names |= dict.fromkeys(one.server.engine_extras(None).adapters or ())
            continue
        newest = max(family.samples, key=lambda sample: float(sample.value))  # 1
        labels = {key: unescape_label(value) for key, value in parse_labels(newest.labels)}
        running = (name.strip() for name in labels.get(b"running_lora_adapters", "").split(","))
        names |= dict.fromkeys(name for name in running if name)
        max_lora = labels.get(b"max_lora", "")
        most = max(most, int(max_lora) if max_lora.isdecimal() else 0)
    return list(names), most


# ---- what the appliance measured


def _latency_families(latencies: Latencies, measuring: set[str]) -> Iterator[MetricFamily]:
    """Yield the histograms of response times, except of backends whose engines measure them."""
    rows = [(backend, model, row) for backend, model, row in latencies if backend not in measuring]
    for name in LATENCIES:
        samples: list[MetricSample] = []
        for backend, model, row in rows:
            times = _find_histogram(row, name)
            if any(times.counts):
                labels = _render_labels(((b"backend", backend), (b"model_name", model)))
                samples += _render_histogram(name.encode(), labels + b"," + PROXY_LABEL, times)
        if samples:
            yield MetricFamily(name.encode(), "histogram", _HELP[name], samples, unit=b"seconds")


def _find_histogram(row: ModelLatencies, name: str) -> PlainHistogram:
    return {
        "ttft_seconds": row.ttft,
        "tpot_seconds": row.tpot,
        "e2e_seconds": row.e2e,
        "queue_seconds": row.queue,
    }[name.removeprefix(PREFIX)]


def _render_histogram(name: bytes, labels: bytes, times: PlainHistogram) -> Iterator[MetricSample]:
    count = 0
    bounds = (*(f"{float(bound)}" for bound in times.bounds), "+Inf")
    for bound, more in zip(bounds, times.counts, strict=True):
        count += more
        yield MetricSample(name + b"_bucket", labels + b',le="' + bound.encode() + b'"', b"%d" % count)
    yield MetricSample(name + b"_count", labels, b"%d" % count)
    yield MetricSample(name + b"_sum", labels, b"%.9g" % times.total)
