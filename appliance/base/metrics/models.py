"""The metric families of the model manager, with system D's names; its dashboards go on working.

They are in the registry only from the first use on (`Metrics.router`): an appliance without a table of models does not show them.
What differs from system D: every GPU has a row (`device`; `ram` is system memory), and requests are not told apart by endpoint.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)  # of answers, waits in line and loads
Outcome = Literal["success", "error"]


@dataclass(frozen=True, slots=True)
class _OfModel:
    """What a finished request of one model touches, looked up once."""

    by_outcome: dict[str, Counter]
    seconds: Histogram
    queue_wait: Histogram
    tokens: Counter
    tokens_in: Counter
    tokens_out: Counter


class RouterMetrics:
    """Every `router_` family, by its short name; names and labels are part of the product's interface.

    Source  system D's list of metrics
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        p, one, each = "router_", ["model"], ["device"]
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry, buckets=SECONDS)
        self.requests = counter(
            p + "requests", "Requests that ended, by how: success or error", ["model", "status"]
        )
        self.request_seconds = histogram(
            p + "request_duration_seconds", "Time of a request, its time in line included", one
        )
        self.active = gauge(p + "active_requests", "Requests that a model works on", one)
        self.queue_depth = gauge(p + "queue_depth", "Requests in line for a model", one)
        self.queue_wait = histogram(p + "queue_wait_seconds", "Time in line of requests that ended", one)
        self.rejected = counter(p + "queue_rejected", "Requests turned away because the line was full", one)
        self.tokens = counter(p + "tokens_generated", "Tokens that a model made", one)
        self.tokens_in = counter(p + "input_tokens", "Tokens of prompts", one)
        self.tokens_out = counter(p + "output_tokens", "Tokens that a model made", one)
        self.p50 = gauge(p + "latency_p50_seconds", "Half of a model's latest requests were as quick", one)
        self.p95 = gauge(p + "latency_p95_seconds", "95 % of a model's latest requests were as quick", one)
        self.p99 = gauge(p + "latency_p99_seconds", "99 % of a model's latest requests were as quick", one)
        self.model_vram = gauge(p + "model_vram_bytes", "Memory that a model takes, on all devices", one)
        self.model_status = gauge(p + "model_status", "0 stopped, 1 loading, 2 ready, 3 error", one)
        self.load_seconds = histogram(
            p + "model_load_duration_seconds", "Time from the start of a model's process to ready", one
        )
        self.loads = counter(p + "model_loads", "Loads that came to ready", one)
        self.ejects = counter(p + "model_ejects", "Models unloaded", one)
        # Of system D: a gauge although its name ends as counters' do.
        self.models_loaded = gauge(p + "models_loaded_total", "Models that are ready at this moment")
        self.vram_used = gauge(p + "gpu_vram_used_bytes", "Memory in use, by whomever", each)
        self.vram_free = gauge(p + "gpu_vram_free_bytes", "Memory that is free", each)
        self.vram_total = gauge(p + "gpu_vram_total_bytes", "Memory that there is", each)
        self.utilization = gauge(
            p + "gpu_utilization_percent", "Share of time in which the GPU computed", each
        )
        self.temperature = gauge(p + "gpu_temperature_celsius", "Temperature of the GPU", each)
        self.power = gauge(p + "gpu_power_watts", "Power that the GPU draws", each)
        self.uptime = gauge(p + "uptime_seconds", "Time since the model manager was started")
        self._of_model = (
            self.requests,
            self.request_seconds,
            self.active,
            self.queue_depth,
            self.queue_wait,
            self.rejected,
            self.tokens,
            self.tokens_in,
            self.tokens_out,
            self.p50,
            self.p95,
            self.p99,
            self.model_vram,
            self.model_status,
            self.load_seconds,
            self.loads,
            self.ejects,
        )
        self._of_device = (
            self.vram_used,
            self.vram_free,
            self.vram_total,
            self.utilization,
            self.temperature,
            self.power,
        )
        self._models: dict[str, _OfModel] = {}
        self._devices: set[str] = set()

    def model(self, alias: str) -> _OfModel:
        """Give the children that a finished request of a model touches. Its counters stand at 0 from then on."""
        found = self._models.get(alias)
        if found is None:
            for family in (self.rejected, self.loads, self.ejects):
                family.labels(alias)
            found = self._models[alias] = _OfModel(
                {word: self.requests.labels(alias, word) for word in ("success", "error")},
                self.request_seconds.labels(alias),
                self.queue_wait.labels(alias),
                self.tokens.labels(alias),
                self.tokens_in.labels(alias),
                self.tokens_out.labels(alias),
            )
        return found

    def keep_models(self, aliases: Collection[str]) -> None:
        """Let every model of `aliases` have rows, and take away those of all others."""
        for alias in aliases:
            self.model(alias)
        for alias in [known for known in self._models if known not in aliases]:
            del self._models[alias]
            for family in self._of_model:
                family.remove_by_labels({"model": alias})

    def keep_devices(self, devices: Collection[str]) -> None:
        """Take away the rows of all devices but these."""
        for device in self._devices - set(devices):
            for family in self._of_device:
                family.remove(device)
        self._devices = set(devices)

    @staticmethod
    def show(family: Gauge, label: str, value: float | None) -> None:
        """Set a row; None: it is not known, and the row goes."""
        if value is None:
            family.remove(label)
        else:
            family.labels(label).set(value)
