"""The manager's numbers: the `router_` metrics, and the report of the last five minutes.

Counters rise when something happens (RequestStatistics); gauges are updated when /metrics is read
(`measure`). They are made from a ModelManagerApi; the caller provides the time.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from appliance.base.clock import format_rfc3339
from appliance.base.metrics.models import RouterMetrics
from appliance.models.status.views import (
    KEPT_SAMPLES,
    DeviceView,
    ModelManagerApi,
    ModelView,
    QueueView,
    RequestSample,
)

WINDOW_S = 300.0  # of the report
MIB, GIB = 1 << 20, 1 << 30
STATUS_NUMBERS = {"off": 0, "stopping": 0, "starting": 1, "loading": 1, "ready": 2, "crashed": 3, "failed": 3}


class RequestStatistics:
    """Counts what happens to models (ManagerEvents)."""

    def __init__(self, metrics: RouterMetrics) -> None:
        self._metrics = metrics

    def finished(self, sample: RequestSample) -> None:
        """Count a request that ended."""
        model = self._metrics.model(sample.alias)
        model.by_outcome["success" if sample.is_ok else "error"].inc()
        model.seconds.observe(sample.duration_s)
        model.queue_wait.observe(sample.queue_s)
        model.tokens.inc(sample.completion_tokens)
        model.tokens_in.inc(sample.prompt_tokens)
        model.tokens_out.inc(sample.completion_tokens)

    def rejected(self, alias: str) -> None:
        """Count a request that was refused."""
        self._metrics.model(alias)
        self._metrics.rejected.labels(alias).inc()

    def loaded(self, alias: str, seconds: float) -> None:
        """Count a load that became ready after `seconds`."""
        self._metrics.model(alias)
        self._metrics.loads.labels(alias).inc()
        self._metrics.load_seconds.labels(alias).observe(seconds)

    def ejected(self, alias: str) -> None:
        """Count a model that was unloaded, for whatever reason."""
        self._metrics.model(alias)
        self._metrics.ejects.labels(alias).inc()


def measure(manager: ModelManagerApi, metrics: RouterMetrics, now_s: float) -> None:
    """Update the gauges; rows of models and devices that exist no more are removed.

    Args:
        manager: Whose readings are taken.
        metrics: The gauges.
        now_s: Seconds since 1970.
    """
    models = manager.models()
    metrics.keep_models({model.alias for model in models})
    queued = {queue.alias: queue.queue_length for queue in manager.queues()}
    times = _times_by_model(manager.telemetry())
    for model in models:
        metrics.active.labels(model.alias).set(model.active)
        metrics.queue_depth.labels(model.alias).set(queued.get(model.alias, 0))
        metrics.model_vram.labels(model.alias).set(model.memory_bytes)
        metrics.model_status.labels(model.alias).set(STATUS_NUMBERS[model.status])
        for family, share in ((metrics.p50, 0.5), (metrics.p95, 0.95), (metrics.p99, 0.99)):
            metrics.show(family, model.alias, percentile(times.get(model.alias, []), share))
    metrics.models_loaded.set(sum(model.status == "ready" for model in models))
    metrics.uptime.set(max(0.0, now_s - manager.server_started_at_s))
    devices = manager.devices()
    metrics.keep_devices({_label(device) for device in devices})
    for device in devices:
        for family, value in (
            (metrics.vram_used, device.used_bytes),
            (metrics.vram_free, device.free_bytes),
            (metrics.vram_total, device.total_bytes),
            (metrics.utilization, device.utilization_percent),
            (metrics.temperature, device.temperature_celsius),
            (metrics.power, device.power_watts),
        ):
            metrics.show(family, _label(device), value)


def percentile(ascending: Sequence[float], share: float) -> float | None:
    """Return the least value that so many of the values do not exceed (nearest rank); None of no values.

    Args:
        ascending: The values.
        share: 0 = the least value, 1 = the greatest; 0 <= share <= 1.
    """
    if not ascending:
        return None
    rank = math.ceil(share * len(ascending) - 1e-9)  # 0.95 is not quite that as a number
    return ascending[max(0, rank - 1)]


def report(manager: ModelManagerApi, now_s: float) -> dict[str, Any]:
    """Sum up the last five minutes.

    Args:
        manager: Whose readings are taken.
        now_s: Seconds since 1970.

    Returns:
        The report. Times of no requests are null; MB and GB are of 2^20 and 2^30 bytes.

            {"report_type": "5_minute_aggregation", "generated_at": RFC 3339, "window_s": 300.0,
             "window": {"start", "end": RFC 3339, "duration_seconds": 300},
             "covered_s": seconds at the window's end that are known: since the start, or since the oldest
                          request that is remembered,
             "server": {"status", "uptime_seconds"},
             "gpu": all devices together: {"vram_{total,used,free}_{mb,gb}", "vram_used_percent",
                                           "utilization_percent": the highest, or null},
             "devices": [{"device": "0" | "ram", "name", …the same, "temperature_celsius", "power_watts"}],
             "models": [{"alias", "status", "port", "vram": {"used_mb"}, "active_requests",
                         "queue": {"current_depth", since the start: "total_requests", "total_processed",
                                   "total_rejected"},
                         …activity}],
             "totals": {"requests", "success", "errors", "error_rate_percent", "avg_latency_ms", "tokens",
                        "input_tokens", "output_tokens", "tokens_per_second", "requests_per_minute",
                        "latency", "queue_wait": as in activity, "queued", "active_requests"}}

        Activity:

            {"requests": {"total", "success", "errors", "error_rate_percent"},
             "latency": {"avg_ms", "min_ms", "max_ms", "p50_ms", "p95_ms", "p99_ms"},
             "queue_wait": the same,
             "tokens": {"total", "input", "output", "per_second": of output}}

    Source:
        docs/compatibility.md, `/metrics/report`; `covered_s`, `devices`, p50, p99, queue_wait and the kinds
        of tokens are ours.
    """
    samples = manager.telemetry()
    inside = [one for one in samples if now_s - WINDOW_S <= one.finished_at_s <= now_s]
    uptime_s = max(0.0, now_s - manager.server_started_at_s)
    covered_s = min(
        WINDOW_S, uptime_s, now_s - samples[0].finished_at_s if len(samples) >= KEPT_SAMPLES else WINDOW_S
    )
    queues, devices = {queue.alias: queue for queue in manager.queues()}, manager.devices()
    rows = [
        _model_row(
            model, queues.get(model.alias), [one for one in inside if one.alias == model.alias], covered_s
        )
        for model in manager.models()
    ]
    return {
        "report_type": "5_minute_aggregation",
        "generated_at": format_rfc3339(now_s),
        "window_s": WINDOW_S,
        "window": {
            "start": format_rfc3339(now_s - WINDOW_S),
            "end": format_rfc3339(now_s),
            "duration_seconds": round(WINDOW_S),
        },
        "covered_s": round(covered_s, 1),
        "server": {"status": manager.server_status, "uptime_seconds": round(uptime_s, 1)},
        "gpu": _memory_row(devices),
        "devices": [
            {
                "device": _label(one),
                "name": one.name,
                **_memory_row([one]),
                "temperature_celsius": one.temperature_celsius,
                "power_watts": one.power_watts,
            }
            for one in devices
        ],
        "models": rows,
        "totals": _totals(inside, covered_s, rows),
    }


def _totals(
    inside: Sequence[RequestSample], covered_s: float, rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    activity = _activity(inside, covered_s)
    requests, tokens, latency = activity["requests"], activity["tokens"], activity["latency"]
    return {
        "requests": requests["total"],
        "success": requests["success"],
        "errors": requests["errors"],
        "error_rate_percent": requests["error_rate_percent"],
        "avg_latency_ms": latency["avg_ms"],
        "tokens": tokens["total"],
        "input_tokens": tokens["input"],
        "output_tokens": tokens["output"],
        "tokens_per_second": tokens["per_second"],
        "requests_per_minute": round(len(inside) / covered_s * 60, 2) if covered_s else 0.0,
        "latency": latency,
        "queue_wait": activity["queue_wait"],
        "queued": sum(row["queue"]["current_depth"] for row in rows),
        "active_requests": sum(row["active_requests"] for row in rows),
    }


def _model_row(
    model: ModelView, queue: QueueView | None, samples: Sequence[RequestSample], covered_s: float
) -> dict[str, Any]:
    queue = queue or QueueView(model.alias, 0, 0, 0, 0, 0)
    return {
        "alias": model.alias,
        "status": model.status,
        "port": model.port,
        "vram": {"used_mb": round(model.memory_bytes / MIB, 2)},
        "active_requests": model.active,
        "queue": {
            "current_depth": queue.queue_length,
            "total_requests": queue.total_requests,
            "total_processed": queue.total_processed,
            "total_rejected": queue.total_rejected,
        },
        **_activity(samples, covered_s),
    }


def _activity(samples: Sequence[RequestSample], covered_s: float) -> dict[str, Any]:
    errors, made = sum(not one.is_ok for one in samples), sum(one.completion_tokens for one in samples)
    read = sum(one.prompt_tokens for one in samples)
    return {
        "requests": {
            "total": len(samples),
            "success": len(samples) - errors,
            "errors": errors,
            "error_rate_percent": round(errors / len(samples) * 100, 2) if samples else 0.0,
        },
        "latency": _spread(one.duration_s for one in samples),
        "queue_wait": _spread(one.queue_s for one in samples),
        "tokens": {
            "total": read + made,
            "input": read,
            "output": made,
            "per_second": round(made / covered_s, 2) if covered_s else 0.0,
        },
    }


def _spread(seconds: Iterable[float]) -> dict[str, float | None]:
    ascending = sorted(seconds)
    values = {
        "avg_ms": math.fsum(ascending) / len(ascending) if ascending else None,
        "min_ms": percentile(ascending, 0),
        "max_ms": percentile(ascending, 1),
        "p50_ms": percentile(ascending, 0.5),
        "p95_ms": percentile(ascending, 0.95),
        "p99_ms": percentile(ascending, 0.99),
    }
    return {name: None if value is None else round(value * 1000, 2) for name, value in values.items()}


def _memory_row(devices: Sequence[DeviceView]) -> dict[str, Any]:
    sizes = {
        "total": sum(one.total_bytes for one in devices),
        "used": sum(one.used_bytes for one in devices),
        "free": sum(one.free_bytes for one in devices),
    }
    known = [one.utilization_percent for one in devices if one.utilization_percent is not None]
    return {
        **{
            f"vram_{name}_{unit}": round(size / of, 2)
            for name, size in sizes.items()
            for unit, of in (("mb", MIB), ("gb", GIB))
        },
        "vram_used_percent": round(sizes["used"] / sizes["total"] * 100, 2) if sizes["total"] else 0.0,
        "utilization_percent": max(known, default=None),
    }


def _times_by_model(samples: Sequence[RequestSample]) -> dict[str, list[float]]:
    """Return each model's durations, ascending."""
    ordered = sorted(samples, key=lambda one: (one.alias, one.duration_s))
    return {
        alias: [one.duration_s for one in each] for alias, each in groupby(ordered, key=lambda one: one.alias)
    }


def _label(device: DeviceView) -> str:
    return "ram" if device.index < 0 else str(device.index)
