"""The engines' part of our own `GET /metrics`: every backend's page under our names, with the backend's name in a label, what the
appliance measured itself, and one row for all together where an endpoint picker looks.

Servers are looked at in the background (health.py), and their latest page is what counts; llama-servers of the model manager are asked
when somebody reads. A page is mapped once however often it is read, and several readers share one reading.
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
from appliance.engines.metrics.families import GATEWAY, LATENCIES, LORA_INFO, PREFIX, WANTED
from appliance.engines.metrics.normalise import EngineExtras, Normalised, lora_info
from appliance.engines.metrics.scrape import mapped, scrape_families, slots_usage
from appliance.engines.router import Router

log = get_logger("metrics")
RUNNER_S = 2.0  # seconds for the page of a llama-server of ours
PROXY = b'measured_at="proxy"'
_HELP = {wanted.name: wanted.help.encode() for wanted in WANTED}


@dataclass(slots=True)
class SeenBackend:
    """One server and its page, mapped; `normalised` None: it has none, or it cannot be read. `kv_usage`: of llama-server's slots."""

    server: EngineServer
    labels: tuple[tuple[bytes, str], ...]
    page: ScrapedPage | None
    kv_usage: float | None = None
    normalised: Normalised | None = None


class Overview:
    """Reads every backend's page; `families` gives what is to be told of them."""

    def __init__(self, router: Router, *, latencies: Latencies, tasks: Tasks, clock: Clock) -> None:
        self._router, self._latencies, self._clock = router, latencies, clock
        self._mapped: dict[object, tuple[ScrapedPage, float | None, Normalised | None]] = {}
        self._troubles: dict[object, str] = {}
        self._shared: SingleFlight[list[MetricFamily]] = SingleFlight(self._families, tasks, name="overview")

    async def families(self) -> list[MetricFamily]:
        """Give all families, the label `backend` first; then, of the model manager's llama-servers, `model_name` and `runner` (the port)."""
        return await self._shared.get()

    async def _families(self) -> list[MetricFamily]:
        all_seen = await self._look()
        out: list[MetricFamily] = []
        for seen in all_seen:
            if seen.normalised is not None:
                families = [*seen.normalised.ours, *seen.normalised.mapping()]
                for name, value in reversed(seen.labels):
                    families = add_label(families, name, escape_label(value))
                out += families
        now_s = self._clock.monotonic_s()
        out += scrape_families(
            [
                (
                    _labels(seen.labels),
                    seen.normalised is not None,
                    now_s - seen.page.at_s if seen.page else None,
                )
                for seen in all_seen
            ]
        )
        out += _measured(
            self._latencies,
            {(seen.labels[0][1], seen.normalised.has(LATENCIES[0])) for seen in all_seen if seen.normalised},
        )
        return [*merge_families(out), *self._for_the_picker(all_seen)]

    # ---- reading pages

    async def _look(self) -> list[SeenBackend]:
        found: list[tuple[object, SeenBackend]] = []
        for backend in self._router.backends():
            if isinstance(backend, EngineServer) and (
                backend.state.dialect is None or backend.state.dialect.running_metrics
            ):
                found.append(
                    (
                        backend.name,
                        SeenBackend(backend, ((b"backend", backend.name),), backend.state.load.page),
                    )
                )
            elif isinstance(backend, ManagedBackend):
                for alias, port, runner in backend.runners():
                    labels = ((b"backend", backend.name), (b"model_name", alias), (b"runner", str(port)))
                    found.append(((backend.name, runner), SeenBackend(runner, labels, None)))
        await asyncio.gather(
            *(
                self._ask(seen)
                for _, seen in found
                if seen.server.state.has_slots and seen.server.state.health.is_ready
            )
        )
        for key, seen in found:
            seen.normalised = await self._map(key, seen)
        known = {key for key, _ in found}
        for books in (self._mapped, self._troubles):
            for key in [key for key in books if key not in known]:
                del books[key]
        return [seen for _, seen in found]

    async def _ask(self, seen: SeenBackend) -> None:
        """Ask a llama-server for its page, where nobody looks at it in the background, and for what its slots tell of its cache. (Builds
        that tell it on the page do not tell it there.)"""
        server = seen.server
        if server.is_managed:
            try:
                reply = await server.client.get("/metrics", RUNNER_S)
            except WireError:
                return
            seen.page = (
                ScrapedPage(reply.body, False, self._clock.monotonic_s()) if reply.status == 200 else None
            )
        if seen.page is not None and b"kv_cache_usage_ratio" not in seen.page.raw:
            seen.kv_usage = await slots_usage(server.client)

    async def _map(self, key: object, seen: SeenBackend) -> Normalised | None:
        """Map a page, or take what was made of the same one before. What is wrong with it is logged when that changes."""
        server, page = seen.server, seen.page
        if page is None:
            return None
        kept = self._mapped.get(key)
        if kept is not None and kept[0] is page and kept[1] == seen.kv_usage:
            return kept[2]
        normalised, trouble = None, ""
        try:
            normalised = await mapped(
                page.raw,
                server.kind,
                is_openmetrics=page.is_openmetrics,
                aside=server.engine_extras(seen.kv_usage),
            )
            if normalised.missing or normalised.odd:
                trouble = f"missing {', '.join(normalised.missing) or 'nothing'}; invalid {normalised.odd or 'nothing'}"
        except InvalidPage as exc:
            trouble = str(exc)
        if trouble and self._troubles.get(key) != trouble:
            log.warning("metrics_not_mapped", backend=server.name, why=trouble)
        self._troubles[key] = trouble
        self._mapped[key] = (page, seen.kv_usage, normalised)
        return normalised

    # ---- one row for all: the appliance as one model server

    def _for_the_picker(self, all_seen: list[SeenBackend]) -> Iterator[MetricFamily]:
        """Give the endpoint picker's families. Requests are the sum over the backends, those in our own line included; the cache in use
        is the mean of theirs; the adapters are all that are loaded anywhere."""
        states = self._router.states()
        values: dict[str, float | None] = {
            "requests_waiting": sum(state.waiting or 0.0 for state in states)
            + self._router.dispatcher.waiting,
            "requests_running": sum(
                state.in_flight if state.running is None else state.running for state in states
            ),
            "kv_cache_usage_ratio": _mean(
                _mean(_values(seen.normalised, "kv_cache_usage_ratio")) for seen in all_seen
            ),
        }
        for name, source, text in GATEWAY:
            value = values[source.removeprefix(PREFIX)]
            if value is not None:
                yield make_gauge(name, f"{text}, of all backends", value)
        adapters, most = _adapters(all_seen)
        if adapters or most:
            yield lora_info(
                EngineExtras(adapters=tuple(adapters), most_adapters=most, now_s=self._clock.now_s())
            )


def _labels(labels: Iterable[tuple[bytes, str]]) -> bytes:
    return b",".join(name + b'="' + escape_label(value) + b'"' for name, value in labels)


def _values(normalised: Normalised | None, name: str) -> Iterator[float]:
    wanted = (PREFIX + name).encode()
    return (
        float(sample.value)
        for family in (normalised.ours if normalised else ())
        if family.name == wanted
        for sample in family.samples
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _adapters(all_seen: list[SeenBackend]) -> tuple[list[str], int]:
    """Give the adapters that are loaded somewhere, and the most that some engine has room for. An engine that tells which ones are at
    work (vLLM: its newest row) is taken at its word, of the others those that they list."""
    names: dict[str, None] = {}
    most = 0
    for seen in all_seen:
        family = seen.normalised.page.families.get(LORA_INFO.encode()) if seen.normalised else None
        if family is None or not family.samples:
            names |= dict.fromkeys(seen.server.engine_extras(None).adapters or ())
            continue
        labels = {
            key: unescape_label(value)
            for key, value in parse_labels(max(family.samples, key=lambda sample: float(sample.value)).labels)
        }
        names |= dict.fromkeys(
            name.strip() for name in labels.get(b"running_lora_adapters", "").split(",") if name.strip()
        )
        most = max(most, int(labels[b"max_lora"]) if labels.get(b"max_lora", "").isdecimal() else 0)
    return list(names), most


# ---- what was measured here


def _measured(latencies: Latencies, engines: set[tuple[str, bool]]) -> Iterator[MetricFamily]:
    """Give the histograms of answers' times, but for backends whose engine gives its own."""
    measure_themselves = {name for name, has in engines if has}
    rows = [(backend, model, row) for backend, model, row in latencies if backend not in measure_themselves]
    for name in LATENCIES:
        samples: list[MetricSample] = []
        for backend, model, row in rows:
            times = _times(row, name)
            if any(times.counts):
                samples += _samples(
                    name.encode(),
                    _labels(((b"backend", backend), (b"model_name", model))) + b"," + PROXY,
                    times,
                )
        if samples:
            yield MetricFamily(name.encode(), "histogram", _HELP[name], samples, unit=b"seconds")


def _times(row: ModelLatencies, name: str) -> PlainHistogram:
    return {
        "ttft_seconds": row.ttft,
        "tpot_seconds": row.tpot,
        "e2e_seconds": row.e2e,
        "queue_seconds": row.queue,
    }[name.removeprefix(PREFIX)]


def _samples(name: bytes, labels: bytes, times: PlainHistogram) -> Iterator[MetricSample]:
    count = 0
    for bound, more in zip(
        (*(f"{float(bound)}" for bound in times.bounds), "+Inf"), times.counts, strict=True
    ):
        count += more
        yield MetricSample(name + b"_bucket", labels + b',le="' + bound.encode() + b'"', b"%d" % count)
    yield MetricSample(name + b"_count", labels, b"%d" % count)
    yield MetricSample(name + b"_sum", labels, b"%.9g" % times.total)
