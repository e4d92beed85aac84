"""All metric families of the appliance, in one registry that `parts.py` builds and hands over.

Hot paths ask for a child once (`requests.labels(…)`) and keep it; `labels()` for every request costs more
than the rest. What every request counts is counted by tallies.py.
"""

from collections.abc import Callable
from functools import cached_property, lru_cache, partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics_exposition

from appliance.base.metrics.accounts import (
    AccountFigures,
    AccountMetrics,
    add_requests,
    compatible_numbers,
)
from appliance.base.metrics.exposition_write import EOF_LINE
from appliance.base.metrics.histogram import PlainHistogram
from appliance.base.metrics.latencies import Latencies
from appliance.base.metrics.market import MarketFigures, MarketMetrics
from appliance.base.metrics.models import RouterMetrics
from appliance.base.metrics.tallies import CounterFamily, HistogramFamily, PlainCounter

TO_FIRST_TOKEN_S = (
    *(0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120, 300),
)
BETWEEN_TOKENS_S = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3),
    *(0.5, 0.75, 1, 2.5),
)
MAX_MODELS = 1000  # with rows of their own; a fleet that replaces models for months may have had more
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


def _openmetrics(registry: CollectorRegistry) -> bytes:
    written: bytes = openmetrics_exposition.generate_latest(registry)  # type: ignore[no-untyped-call]
    return written


class Metrics:
    """Every family, by its short name. Names and labels are part of the product's interface."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.latencies = Latencies()  # of engines that measure none; rendered by engines/overview.py
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        count = partial(CounterFamily, registry=self.registry)
        times = partial(HistogramFamily, registry=self.registry, buckets=SECONDS)  # or others
        p = "appliance_"

        # Requests of clients.
        self.requests = count(p + "requests", "Completed requests", ["route", "status"])
        self.request_seconds = times(
            p + "request_duration_seconds", "Time from request to the last byte of the response", ["route"]
        )
        self.first_byte_seconds = times(
            p + "time_to_first_byte_seconds", "Time from request to the first byte of the response", ["route"]
        )
        self.in_flight = gauge(
            p + "requests_in_flight", "Requests in flight, without those that only look at the appliance"
        )
        self.connections = gauge(p + "connections", "Open client connections")
        self.connections_refused = counter(
            p + "connections_refused", "Refused client connections", ["reason"]
        )
        self.stream_events = count(p + "stream_events", "Events sent in streams", ["backend"])
        self.tokens = count(
            p + "tokens",
            "Tokens as the backend reported them, else the counted events with content",
            ["model", "backend", "kind"],
        )
        self.first_token_seconds = times(
            p + "time_to_first_token_seconds",
            "Time from request to the first content of a response that the backend streamed",
            ["model"],
            buckets=TO_FIRST_TOKEN_S,
        )
        self.between_tokens_seconds = times(
            p + "time_between_tokens_seconds",
            "Mean time between two tokens of a streamed response, one value for each response",
            ["model"],
            buckets=BETWEEN_TOKENS_S,
        )
        self._models: set[str] = set()

        # Attempts at upstream servers.
        self.upstream_attempts = count(
            p + "upstream_attempts", "Attempts to get a response", ["backend", "endpoint", "outcome"]
        )
        self.upstream_seconds = times(
            p + "upstream_first_byte_seconds", "Time until the first byte of the upstream server", ["backend"]
        )
        self.upstream_connections = gauge(p + "upstream_connections", "Open upstream connections", ["state"])
        self.breaker_open = gauge(
            p + "upstream_breaker_open", "1 while the endpoint's circuit is open", ["backend", "endpoint"]
        )

        # Backends.
        self.backend_up = gauge(
            p + "backend_up", "1 while requests can be sent to the backend", ["backend", "kind"]
        )
        self.backend_in_flight = gauge(
            p + "backend_in_flight", "The appliance's own requests at the backend", ["backend"]
        )
        self.backend_running = gauge(
            p + "backend_running", "Running requests, as reported by the engine", ["backend"]
        )
        self.backend_waiting = gauge(
            p + "backend_waiting", "Queued requests, as reported by the engine", ["backend"]
        )
        self.backend_data_age = gauge(
            p + "backend_data_age_seconds", "Age of the numbers reported by the engine", ["backend"]
        )
        self.backend_breaker = gauge(
            p + "backend_breaker", "1 for the present state of the backend's breaker", ["backend", "state"]
        )
        self.backend_chosen = count(
            p + "backend_chosen",
            "Requests sent to the backend, by reason of the choice",
            ["backend", "reason"],
        )
        self.backend_errors = count(
            p + "backend_errors", "Failed requests of the backend, by kind", ["backend", "kind"]
        )
        self.backend_seconds = times(
            p + "backend_duration_seconds", "Time of complete responses of the backend", ["backend"]
        )
        self.lora_loaded = gauge(
            p + "lora_loaded",
            "1 for the state of a LoRA adapter on a backend: loaded, loading, pending, failed, down or "
            "unloading",
            ["adapter", "backend", "state"],
        )
        self.queue_length = gauge(p + "queue_length", "Requests queued because every backend is full")
        self.queue_seconds = times(p + "queue_duration_seconds", "Time in the queue", ["outcome"])
        self.retries = counter(p + "retries", "Requests sent to another backend, by reason", ["reason"])
        self.overflows = counter(
            p + "overflows", "Requests sent to a pool's overflow", ["pool", "into", "reason"]
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

        # The machine.
        self.gpu_info = gauge(
            p + "gpu_info",
            "One per GPU that nvidia-smi reports here; simulated=true means made up",
            ["index", "name", "uuid", "simulated"],
        )
        self.worker_up = gauge(p + "worker_up", "1 while the worker runs")
        self.worker_restarts = counter(p + "worker_restarts", "Restarts of the worker")
        self.step_ok = gauge(
            p + "prepare_step_ok", "1 if a step of the preparation was done or not needed", ["step"]
        )
        self.build_info = gauge(p + "build_info", "Version of the appliance", ["version", "python"])

    @cached_property
    def router(self) -> RouterMetrics:
        """The families of the model manager; they appear at first use, with a model table."""
        return RouterMetrics(self.registry)

    def use_accounts(self, read: Callable[[], AccountFigures]) -> None:
        """Show the families of accounts, too, where there are any.

        Args:
            read: Returns what is known of them; called when the page is read.
        """
        self.registry.register(AccountMetrics(read, self.requests, self.request_seconds))

    def use_market(self, read: Callable[[], MarketFigures]) -> None:
        """Show the families of renting, too, where GPUs are rented.

        Args:
            read: Returns what is known of them; called when the page is read.
        """
        self.registry.register(MarketMetrics(read))

    def compatible_numbers(self, read: Callable[[], AccountFigures]) -> dict[str, float]:
        """Return the numbers of the families with `gpuproxy_`, for `/stats`."""
        return compatible_numbers(read(), add_requests(self.requests, self.request_seconds))

    def render(self, *, openmetrics: bool = False) -> bytes:
        """Render all families in Prometheus' text format, or in OpenMetrics without `# EOF`."""
        return (
            _openmetrics(self.registry).removesuffix(EOF_LINE)
            if openmetrics
            else generate_latest(self.registry)
        )

    def update_backend(self, state: Any) -> None:
        """Update the gauges of one backend.

        Args:
            state: Has name, kind, is_up, in_flight, running, waiting, data_age_s (None = unknown) and
                breaker.
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
        """Return what a finished request changes: count, duration and first byte; looked up once."""
        return (
            self.requests.labels(route, str(status)),
            self.request_seconds.labels(route),
            self.first_byte_seconds.labels(route),
        )

    @lru_cache(maxsize=512)  # noqa: B019 - one registry lives as long as the process
    def engine_children(
        self, model: str, backend: str
    ) -> tuple[PlainCounter, PlainCounter, PlainCounter, PlainHistogram, PlainHistogram]:
        """Return what a finished response changes.

        Args:
            model: Its name in the list of models, never one that a client made up.
            backend: What answered.

        Returns:
            Prompt tokens, completion tokens, stream events, time to the first token, time between tokens.
        """
        if model not in self._models and len(self._models) >= MAX_MODELS:
            model = "other"
        self._models.add(model)
        return (
            self.tokens.labels(model, backend, "prompt"),
            self.tokens.labels(model, backend, "completion"),
            self.stream_events.labels(backend),
            self.first_token_seconds.labels(model),
            self.between_tokens_seconds.labels(model),
        )
