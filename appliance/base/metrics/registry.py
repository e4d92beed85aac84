"""All metric families of the appliance, in one registry that is built in `app.py` and handed over.

Hot paths ask for a child once (`requests.labels(…)`) and keep it; `labels()` on every request costs more than the rest. What every request
counts is counted by tallies.py.
"""

from functools import cached_property, lru_cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics_exposition

from appliance.base.metrics.exposition_write import EOF_LINE
from appliance.base.metrics.histogram import PlainHistogram
from appliance.base.metrics.latencies import Latencies
from appliance.base.metrics.models import RouterMetrics
from appliance.base.metrics.tallies import CounterFamily, HistogramFamily, PlainCounter

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


def _openmetrics(registry: CollectorRegistry) -> bytes:
    written: bytes = openmetrics_exposition.generate_latest(registry)  # type: ignore[no-untyped-call]
    return written


class Metrics:
    """Every family, by its short name; names and labels are part of the product's interface."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        self.latencies = Latencies()  # of engines that measure none; written by engines/overview.py
        p = "appliance_"
        self.requests = CounterFamily(p + "requests", "Requests answered", ["route", "status"], registry=r)
        self.request_seconds = HistogramFamily(
            p + "request_duration_seconds",
            "Time from request to the last byte of the answer",
            ["route"],
            buckets=SECONDS,
            registry=r,
        )
        self.first_byte_seconds = HistogramFamily(
            p + "time_to_first_byte_seconds",
            "Time from request to the first byte of the answer",
            ["route"],
            buckets=SECONDS,
            registry=r,
        )
        self.in_flight = Gauge(p + "requests_in_flight", "Requests being answered at this moment", registry=r)
        self.connections = Gauge(p + "connections", "Open client connections", registry=r)
        self.connections_refused = Counter(
            p + "connections_refused", "Connections turned away", ["reason"], registry=r
        )
        self.stream_events = CounterFamily(
            p + "stream_events", "Events sent in streams", ["backend"], registry=r
        )
        self.tokens = CounterFamily(
            p + "tokens", "Tokens as reported by whoever answered", ["backend", "kind"], registry=r
        )
        self.upstream_attempts = CounterFamily(
            p + "upstream_attempts",
            "Attempts to get an answer",
            ["backend", "endpoint", "outcome"],
            registry=r,
        )
        self.upstream_seconds = HistogramFamily(
            p + "upstream_first_byte_seconds",
            "Time until the upstream's first byte",
            ["backend"],
            buckets=SECONDS,
            registry=r,
        )
        self.upstream_connections = Gauge(
            p + "upstream_connections", "Open upstream connections", ["state"], registry=r
        )
        self.breaker_open = Gauge(
            p + "upstream_breaker_open", "1 while an endpoint is rested", ["backend", "endpoint"], registry=r
        )
        self.backend_up = Gauge(
            p + "backend_up", "1 while requests can be sent to the backend", ["backend", "kind"], registry=r
        )
        self.backend_in_flight = Gauge(
            p + "backend_in_flight", "Our own requests at the backend", ["backend"], registry=r
        )
        self.backend_running = Gauge(
            p + "backend_running", "Requests the engine says that it works on", ["backend"], registry=r
        )
        self.backend_waiting = Gauge(
            p + "backend_waiting", "Requests the engine says that wait inside it", ["backend"], registry=r
        )
        self.backend_data_age = Gauge(
            p + "backend_data_age_seconds", "Age of the engine's own numbers", ["backend"], registry=r
        )
        self.backend_breaker = Gauge(
            p + "backend_breaker",
            "1 for the state that the backend's breaker is in",
            ["backend", "state"],
            registry=r,
        )
        self.backend_chosen = CounterFamily(
            p + "backend_chosen",
            "Requests sent to the backend, by why it was chosen",
            ["backend", "reason"],
            registry=r,
        )
        self.backend_errors = CounterFamily(
            p + "backend_errors", "Failed requests of the backend, by kind", ["backend", "kind"], registry=r
        )
        self.backend_seconds = HistogramFamily(
            p + "backend_duration_seconds",
            "Time of the backend's complete answers",
            ["backend"],
            buckets=SECONDS,
            registry=r,
        )
        self.lora_loaded = Gauge(
            p + "lora_loaded",
            "1 for the state of a LoRA adapter on a backend: loaded, loading, pending, failed, down or "
            "unloading",
            ["adapter", "backend", "state"],
            registry=r,
        )
        self.queue_length = Gauge(
            p + "queue_length", "Requests in line because every backend is full", registry=r
        )
        self.queue_seconds = HistogramFamily(
            p + "queue_duration_seconds", "Time in line", ["outcome"], buckets=SECONDS, registry=r
        )
        self.retries = Counter(
            p + "retries", "Requests that were given to another backend, by why", ["reason"], registry=r
        )
        self.overflows = Counter(
            p + "overflows", "Requests answered by a pool's overflow", ["pool", "into", "reason"], registry=r
        )
        self.backend_families = (
            self.backend_up,
            self.backend_in_flight,
            self.backend_running,
            self.backend_waiting,
            self.backend_data_age,
            self.backend_breaker,
            self.backend_chosen,
            self.backend_errors,
            self.backend_seconds,
        )
        self.gpu_info = Gauge(
            p + "gpu_info",
            "One per GPU that nvidia-smi reports here; simulated=true means made up",
            ["index", "name", "uuid", "simulated"],
            registry=r,
        )
        self.worker_up = Gauge(p + "worker_up", "1 while the worker runs", registry=r)
        self.worker_restarts = Counter(p + "worker_restarts", "Restarts of the worker", registry=r)
        self.step_ok = Gauge(
            p + "prepare_step_ok",
            "1 when a step of the machine's preparation was done or not needed",
            ["step"],
            registry=r,
        )
        self.build_info = Gauge(
            p + "build_info", "Version of the appliance", ["version", "python"], registry=r
        )

    @cached_property
    def router(self) -> RouterMetrics:
        """The families of the model manager; they appear from the first use on, so that only who has a table of models touches this."""
        return RouterMetrics(self.registry)

    def render(self, *, openmetrics: bool = False) -> bytes:
        """Give all families in Prometheus' text format, or in OpenMetrics without `# EOF`."""
        return (
            _openmetrics(self.registry).removesuffix(EOF_LINE)
            if openmetrics
            else generate_latest(self.registry)
        )

    def update_backend(self, state: Any) -> None:
        """Bring one backend's gauges up to date.

        Takes   state: its name, kind, is_up, in_flight, running, waiting, data_age_s (None = not known) and breaker
        """
        name = state.name
        self.backend_up.labels(name, state.kind).set(1 if state.is_up else 0)
        self.backend_in_flight.labels(name).set(state.in_flight)
        for family, value in (
            (self.backend_running, state.running),
            (self.backend_waiting, state.waiting),
            (self.backend_data_age, state.data_age_s),
        ):
            if value is not None:
                family.labels(name).set(value)
        for word in ("closed", "open", "half_open"):
            self.backend_breaker.labels(name, word).set(1 if state.breaker == word else 0)

    @lru_cache(maxsize=512)  # noqa: B019 - one registry lives as long as the process
    def request_children(
        self, route: str, status: int
    ) -> tuple[PlainCounter, PlainHistogram, PlainHistogram]:
        """Give the three children a finished request touches, looked up once per route and status."""
        return (
            self.requests.labels(route, str(status)),
            self.request_seconds.labels(route),
            self.first_byte_seconds.labels(route),
        )

    @lru_cache(maxsize=256)  # noqa: B019 - one registry lives as long as the process
    def engine_children(self, backend: str) -> tuple[PlainCounter, PlainCounter, PlainCounter]:
        """Give the children a finished answer of `backend` touches: prompt tokens, completion tokens, stream events."""
        return (
            self.tokens.labels(backend, "prompt"),
            self.tokens.labels(backend, "completion"),
            self.stream_events.labels(backend),
        )
