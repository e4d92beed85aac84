"""The metrics of /metrics/stream: now, and over the last minute. Pure. A value not measured is null, not 0.

For compatibility, see docs/compatibility.md. The five minutes of /metrics/report: models/status/measures.py.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from appliance.base.clock import format_rfc3339
from appliance.front.manager.objects import gpus, memory_of, share
from appliance.models.status.objects import megabytes
from appliance.models.status.views import ModelManagerApi, ModelView, QueueView, RequestSample

MINUTE_S = 60.0


def snapshot(manager: ModelManagerApi, now_s: float) -> dict[str, Any]:
    """Return one `metrics` event: server, memory, the loaded models and the totals of the last minute."""
    recent = _since(manager.telemetry(), now_s - MINUTE_S)
    queues = {queue.alias: queue for queue in manager.queues()}
    return {
        "timestamp": format_rfc3339(now_s),
        "server": _server(manager, now_s),
        "gpu": _gpu(manager),
        "models": [
            _row(view, queues.get(view.alias), _of(recent, view.alias))
            for view in manager.models()
            if view.runners
        ],
        "totals": _totals(recent),
    }


def _since(samples: Sequence[RequestSample], from_s: float) -> list[RequestSample]:
    return [one for one in samples if one.finished_at_s >= from_s]


def _of(samples: list[RequestSample], alias: str) -> list[RequestSample]:
    return [one for one in samples if one.alias == alias]


def _server(manager: ModelManagerApi, now_s: float) -> dict[str, Any]:
    return {
        "status": manager.server_status,
        "uptime_seconds": round(max(0.0, now_s - manager.server_started_at_s), 1),
    }


def _gpu(manager: ModelManagerApi) -> dict[str, Any]:
    total, used, free = memory_of(manager)
    busy = [device.utilization_percent for device in gpus(manager) if device.utilization_percent is not None]
    return {
        "vram_total_mb": megabytes(total),
        "vram_used_mb": megabytes(used),
        "vram_free_mb": megabytes(free),
        "vram_used_percent": share(used, total),
        "utilization_percent": round(fmean(busy), 1) if busy else None,
    }


def _row(view: ModelView, queue: QueueView | None, recent: list[RequestSample]) -> dict[str, Any]:
    return {
        "alias": view.alias,
        "status": view.status,
        "port": view.port,
        "vram_mb": megabytes(view.memory_bytes),
        "queue_depth": queue.queue_length if queue else 0,
        "active_requests": view.active,
        "requests_1m": len(recent),
        "errors_1m": _errors(recent),
        "avg_latency_ms": _milliseconds(fmean(one.duration_s for one in recent)) if recent else 0.0,
        "tokens_1m": sum(one.completion_tokens for one in recent),
    }


def _totals(recent: list[RequestSample]) -> dict[str, Any]:
    errors = _errors(recent)
    return {
        "requests": len(recent),
        "errors": errors,
        "error_rate_percent": share(errors, len(recent)),
        "avg_latency_ms": _milliseconds(fmean(one.duration_s for one in recent)) if recent else 0.0,
        "tokens": sum(one.completion_tokens for one in recent),
        "requests_per_minute": len(recent),
    }


def _errors(samples: list[RequestSample]) -> int:
    return sum(not one.is_ok for one in samples)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 2)
