"""The router_ metrics as a scraper reads them, and the five-minute report.

Exact values, from a manager of plain values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from appliance.base.jsons import dumps, loads
from appliance.base.metrics.registry import Metrics
from appliance.models.status.measures import STATUS_NUMBERS, RequestStatistics, measure, percentile, report
from appliance.models.status.views import (
    KEPT_SAMPLES,
    DeviceView,
    ModelStatus,
    ModelView,
    QueueView,
    RequestSample,
    RunnerView,
)

NOW_S = 1_800_000_000.0
MIB, GIB = 1 << 20, 1 << 30


@dataclass
class FixedManager:
    """As much of a ModelManagerApi as is measured."""

    its_models: list[ModelView] = field(default_factory=list)
    its_queues: list[QueueView] = field(default_factory=list)
    its_devices: list[DeviceView] = field(default_factory=list)
    samples: Sequence[RequestSample] = ()
    server_status: str = "ready"
    server_started_at_s: float = NOW_S - 3600

    def models(self) -> list[ModelView]:
        return self.its_models

    def queues(self) -> list[QueueView]:
        return self.its_queues

    def devices(self) -> list[DeviceView]:
        return self.its_devices

    def telemetry(self) -> Sequence[RequestSample]:
        return self.samples


def model(
    alias: str,
    status: ModelStatus = "ready",
    *,
    active: tuple[int, ...] = (),
    memory_mib: int = 0,
    port: int | None = None,
) -> ModelView:
    runners = tuple(
        RunnerView(alias, 8085 + n, 100 + n, status, NOW_S - 60, slots=4, active=count)
        for n, count in enumerate(active)
    )
    return ModelView(
        alias,
        status,
        Path("/models") / f"{alias}.gguf",
        4096,
        2,
        memory_bytes=memory_mib * MIB,
        runners=runners,
        port=port,
    )


def sample(
    alias: str,
    seconds: float,
    *,
    ok: bool = True,
    ago_s: float = 10,
    tokens: tuple[int, int] = (0, 0),
    queue_s: float = 0.0,
) -> RequestSample:
    return RequestSample(alias, ok, seconds, *tokens, queue_s, NOW_S - ago_s)


GPU = DeviceView(0, "A GPU", 24 * GIB, 6 * GIB, 18 * GIB, 30.0, 55.0, 120.5)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def scraped(metrics: Metrics, *, without_created: bool = True) -> dict[tuple, float]:
    """Every sample of the router_ families: {(name, *label values in the order of their names): value}."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            if sample.name.startswith("router_") and not (
                without_created and sample.name.endswith("_created")
            ):
                found[(sample.name, *(sample.labels[name] for name in sorted(sample.labels)))] = sample.value
    return found


def test_without_a_table_there_is_no_family(metrics: Metrics) -> None:
    assert b"router_" not in metrics.render()
    _ = metrics.router
    assert b"# TYPE router_model_status gauge" in metrics.render()


def test_all_metric_families_of_the_model_router_are_present(metrics: Metrics) -> None:
    _ = metrics.router
    types = {
        line.split()[2]: line.split()[3]
        for line in metrics.render().decode().splitlines()
        if line.startswith("# TYPE router_")
    }
    counters = (
        "requests_total",
        "queue_rejected_total",
        "model_loads_total",
        "model_ejects_total",
        "tokens_generated_total",
        "input_tokens_total",
        "output_tokens_total",
    )
    histograms = ("request_duration_seconds", "queue_wait_seconds", "model_load_duration_seconds")
    gauges = (
        "active_requests",
        "queue_depth",
        "gpu_vram_used_bytes",
        "gpu_vram_free_bytes",
        "gpu_vram_total_bytes",
        "gpu_utilization_percent",
        "model_vram_bytes",
        "model_status",
        "models_loaded",
        "latency_p50_seconds",
        "latency_p95_seconds",
        "latency_p99_seconds",
        "uptime_seconds",
        "gpu_temperature_celsius",
        "gpu_power_watts",
    )
    assert types == {
        "router_" + name: kind
        for kind, names in (
            ("counter", counters),
            ("histogram", histograms),
            ("gauge", gauges),
            ("untyped", ["models_loaded_total"]),
        )
        for name in names
    }


def test_what_ended_is_counted_by_model_and_outcome(metrics: Metrics) -> None:
    measures = RequestStatistics(metrics.router)
    measures.finished(sample("a", 2.0, tokens=(10, 30), queue_s=0.3))
    measures.finished(sample("a", 0.04, tokens=(1, 2)))
    measures.finished(sample("a", 7.0, ok=False))
    measures.finished(sample("b", 1.0))
    found = scraped(metrics)
    assert (found["router_requests_total", "a", "success"], found["router_requests_total", "a", "error"]) == (
        2,
        1,
    )
    assert (found["router_requests_total", "b", "success"], found["router_requests_total", "b", "error"]) == (
        1,
        0,
    )
    assert (
        found["router_input_tokens_total", "a"],
        found["router_output_tokens_total", "a"],
        found["router_tokens_generated_total", "a"],
    ) == (11, 32, 32)
    assert found["router_request_duration_seconds_sum", "a"] == pytest.approx(9.04)
    assert found["router_request_duration_seconds_bucket", "0.05", "a"] == 1
    assert found["router_request_duration_seconds_bucket", "2.5", "a"] == 2
    assert found["router_request_duration_seconds_count", "a"] == 3
    assert found["router_queue_wait_seconds_sum", "a"] == pytest.approx(0.3)
    assert found["router_queue_wait_seconds_bucket", "0.05", "a"] == 2


def test_loads_ejects_and_refusals_are_counted(metrics: Metrics) -> None:
    measures = RequestStatistics(metrics.router)
    measures.loaded("a", 3.5)
    measures.loaded("a", 1.5)
    measures.ejected("a")
    measures.rejected("a")
    measures.rejected("b")
    found = scraped(metrics)
    assert (found["router_model_loads_total", "a"], found["router_model_loads_total", "b"]) == (2, 0)
    assert (
        found["router_model_load_duration_seconds_count", "a"],
        found["router_model_load_duration_seconds_sum", "a"],
    ) == (2, 5.0)
    assert (found["router_model_ejects_total", "a"], found["router_model_ejects_total", "b"]) == (1, 0)
    assert (found["router_queue_rejected_total", "a"], found["router_queue_rejected_total", "b"]) == (1, 1)


def test_gauges_are_what_the_board_says(metrics: Metrics) -> None:
    manager = FixedManager(
        [model("a", active=(3, 1), memory_mib=700), model("b", "loading"), model("c", "failed")],
        [QueueView("a", 5, 20, 14, 1, 4)],
        [GPU],
    )
    measure(manager, metrics.router, NOW_S)
    found = scraped(metrics)
    assert [found["router_active_requests", alias] for alias in "abc"] == [4, 0, 0]
    assert [found["router_queue_depth", alias] for alias in "abc"] == [5, 0, 0]
    assert [found["router_model_status", alias] for alias in "abc"] == [2, 1, 3]
    assert [found["router_model_vram_bytes", alias] for alias in "abc"] == [700 * MIB, 0, 0]
    assert found["router_models_loaded_total",] == 1
    assert found["router_uptime_seconds",] == 3600
    assert found["router_requests_total", "c", "success"] == 0
    assert (
        found["router_gpu_vram_total_bytes", "0"],
        found["router_gpu_vram_used_bytes", "0"],
        found["router_gpu_vram_free_bytes", "0"],
    ) == (24 * GIB, 6 * GIB, 18 * GIB)
    assert (
        found["router_gpu_utilization_percent", "0"],
        found["router_gpu_temperature_celsius", "0"],
        found["router_gpu_power_watts", "0"],
    ) == (30, 55, 120.5)


@pytest.mark.parametrize(
    ("status", "number"),
    [
        ("off", 0),
        ("stopping", 0),
        ("starting", 1),
        ("loading", 1),
        ("ready", 2),
        ("crashed", 3),
        ("failed", 3),
    ],
)
def test_every_status_has_its_number(metrics: Metrics, status: ModelStatus, number: int) -> None:
    measure(FixedManager([model("a", status)]), metrics.router, NOW_S)
    assert scraped(metrics)["router_model_status", "a"] == number


def test_no_status_is_forgotten() -> None:
    assert set(STATUS_NUMBERS) == set(ModelStatus.__args__)


def test_percentiles_are_of_each_models_latest_requests(metrics: Metrics) -> None:
    times = [sample("a", n / 10) for n in range(100, 0, -1)] + [sample("b", 3.0)]
    manager = FixedManager([model("a"), model("b"), model("c")], samples=times)
    measure(manager, metrics.router, NOW_S)
    found = scraped(metrics)
    assert [found[f"router_latency_{p}_seconds", "a"] for p in ("p50", "p95", "p99")] == [5.0, 9.5, 9.9]
    assert [found[f"router_latency_{p}_seconds", "b"] for p in ("p50", "p95", "p99")] == [3.0, 3.0, 3.0]
    assert ("router_latency_p50_seconds", "c") not in found
    manager.samples = []
    measure(manager, metrics.router, NOW_S)
    assert ("router_latency_p50_seconds", "a") not in scraped(metrics)


@pytest.mark.parametrize(
    ("share", "value"), [(0, 1), (0.5, 10), (0.95, 19), (0.951, 20), (0.99, 20), (1, 20)]
)
def test_a_percentile_is_a_value_that_was_there(share: float, value: int) -> None:
    assert percentile(list(range(1, 21)), share) == value


def test_all_rows_of_a_removed_model_are_removed(metrics: Metrics) -> None:
    manager, measures = (
        FixedManager([model("a"), model("b")], samples=[sample("b", 1.0)]),
        RequestStatistics(metrics.router),
    )
    for alias in "ab":
        measures.finished(sample(alias, 1.0))
        measures.loaded(alias, 1.0)
        measures.ejected(alias)
        measures.rejected(alias)
    measure(manager, metrics.router, NOW_S)
    manager.its_models.pop()
    measure(manager, metrics.router, NOW_S)
    aliases = {
        labels[-1] if "_bucket" in name else labels[0]
        for name, *labels in scraped(metrics, without_created=False)
        if labels
    }
    assert aliases == {"a"}
    # The last response of a removed model: it is counted, and the series is removed at the next reading.
    measures.finished(sample("b", 1.0))
    assert scraped(metrics)["router_requests_total", "b", "success"] == 1
    measure(manager, metrics.router, NOW_S)
    assert ("router_requests_total", "b", "success") not in scraped(metrics)
    assert scraped(metrics)["router_requests_total", "a", "success"] == 1


def test_rows_of_a_removed_device_are_removed(metrics: Metrics) -> None:
    ram = DeviceView(-1, "system memory", 8 * GIB, 3 * GIB, 5 * GIB)
    manager = FixedManager(its_devices=[GPU, replace(GPU, index=1, power_watts=None)])
    measure(manager, metrics.router, NOW_S)
    assert ("router_gpu_power_watts", "0") in scraped(metrics)
    assert ("router_gpu_power_watts", "1") not in scraped(metrics)
    manager.its_devices = [ram]
    measure(manager, metrics.router, NOW_S)
    rows = {key: value for key, value in scraped(metrics).items() if key[0].startswith("router_gpu_")}
    assert rows == {
        ("router_gpu_vram_total_bytes", "ram"): 8 * GIB,
        ("router_gpu_vram_used_bytes", "ram"): 3 * GIB,
        ("router_gpu_vram_free_bytes", "ram"): 5 * GIB,
    }


def test_figure_that_is_no_longer_known_is_removed(metrics: Metrics) -> None:
    manager = FixedManager(its_devices=[GPU])
    measure(manager, metrics.router, NOW_S)
    manager.its_devices = [replace(GPU, temperature_celsius=None)]
    measure(manager, metrics.router, NOW_S)
    assert ("router_gpu_temperature_celsius", "0") not in scraped(metrics)


# --- the report


def test_the_report_sums_up_the_last_five_minutes() -> None:
    manager = FixedManager(
        [model("a", active=(2,), memory_mib=700, port=8085), model("b", "off")],
        [QueueView("a", 5, 20, 14, 1, 4)],
        [GPU],
        [
            sample("a", 99.0, ago_s=301, tokens=(500, 500)),
            sample("a", 1.0, ago_s=299, tokens=(10, 100), queue_s=0.5),
            sample("a", 3.0, ok=False, ago_s=1),
            sample("b", 2.0, tokens=(0, 50)),
        ],
    )
    given = loads(dumps(report(manager, NOW_S)))
    assert given["report_type"] == "5_minute_aggregation"
    assert given["window"] == {
        "start": "2027-01-15T07:55:00.000000Z",
        "end": "2027-01-15T08:00:00.000000Z",
        "duration_seconds": 300,
    }
    assert (given["generated_at"], given["window_s"], given["covered_s"]) == (
        given["window"]["end"],
        300,
        300,
    )
    assert given["server"] == {"status": "ready", "uptime_seconds": 3600}
    first, second = given["models"]
    assert first == {
        "alias": "a",
        "status": "ready",
        "port": 8085,
        "vram": {"used_mb": 700},
        "active_requests": 2,
        "queue": {"current_depth": 5, "total_requests": 20, "total_processed": 14, "total_rejected": 1},
        "requests": {"total": 2, "success": 1, "errors": 1, "error_rate_percent": 50},
        "latency": {
            "avg_ms": 2000,
            "min_ms": 1000,
            "max_ms": 3000,
            "p50_ms": 1000,
            "p95_ms": 3000,
            "p99_ms": 3000,
        },
        "queue_wait": {"avg_ms": 250, "min_ms": 0, "max_ms": 500, "p50_ms": 0, "p95_ms": 500, "p99_ms": 500},
        "tokens": {"total": 110, "input": 10, "output": 100, "per_second": 0.33},
    }
    assert (
        second["alias"],
        second["status"],
        second["port"],
        second["queue"]["current_depth"],
        second["tokens"]["output"],
    ) == ("b", "off", None, 0, 50)
    totals = given["totals"]
    assert [
        totals[key] for key in ("requests", "success", "errors", "error_rate_percent", "avg_latency_ms")
    ] == [3, 2, 1, 33.33, 2000]
    assert [
        totals[key]
        for key in ("tokens", "input_tokens", "output_tokens", "tokens_per_second", "requests_per_minute")
    ] == [160, 10, 150, 0.5, 0.6]
    assert (
        totals["latency"]["p50_ms"],
        totals["queue_wait"]["max_ms"],
        totals["queued"],
        totals["active_requests"],
    ) == (2000, 500, 5, 2)


def test_the_report_adds_up_all_devices_and_lists_each() -> None:
    manager = FixedManager(
        its_devices=[
            GPU,
            replace(
                GPU,
                index=1,
                used_bytes=18 * GIB,
                free_bytes=6 * GIB,
                utilization_percent=90.0,
                power_watts=None,
            ),
        ]
    )
    given = report(manager, NOW_S)
    assert given["gpu"] == {
        "vram_total_mb": 49_152,
        "vram_total_gb": 48,
        "vram_used_mb": 24_576,
        "vram_used_gb": 24,
        "vram_free_mb": 24_576,
        "vram_free_gb": 24,
        "vram_used_percent": 50,
        "utilization_percent": 90,
    }
    assert [
        (one["device"], one["vram_used_percent"], one["utilization_percent"], one["power_watts"])
        for one in given["devices"]
    ] == [("0", 25, 30, 120.5), ("1", 75, 90, None)]


def test_a_report_of_nothing_has_no_times() -> None:
    given = report(FixedManager([model("a", "off")]), NOW_S)
    assert set(given["totals"]["latency"].values()) == {None}
    assert given["gpu"]["vram_used_percent"] == 0
    assert given["totals"]["requests_per_minute"] == 0


def test_rates_are_of_the_time_that_is_really_known() -> None:
    young = FixedManager([model("a")], samples=[sample("a", 1.0)] * 10, server_started_at_s=NOW_S - 60)
    assert (report(young, NOW_S)["covered_s"], report(young, NOW_S)["totals"]["requests_per_minute"]) == (
        60,
        10,
    )
    busy = FixedManager(
        [model("a")], samples=[sample("a", 1.0, ago_s=100)] + [sample("a", 1.0)] * (KEPT_SAMPLES - 1)
    )
    assert (report(busy, NOW_S)["covered_s"], report(busy, NOW_S)["totals"]["requests_per_minute"]) == (
        100,
        600,
    )
    just_started = FixedManager([model("a")], samples=[sample("a", 1.0, ago_s=0)], server_started_at_s=NOW_S)
    assert report(just_started, NOW_S)["totals"]["requests_per_minute"] == 0
