"""The response bodies of the read-only addresses: memory, queues, health, telemetry. Pure.

MB and GB are 2^20 and 2^30 bytes. Some percentages and seconds are texts ("99.0%", "0.123s"): for
compatibility, see docs/compatibility.md.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from appliance.base.clock import format_rfc3339
from appliance.models.status.objects import MEBIBYTE, at, gigabytes, megabytes
from appliance.models.status.views import (
    RAM,
    DeviceView,
    HealthView,
    ModelManagerApi,
    ModelView,
    QueueView,
    RequestSample,
)

# ---- memory


def vram(manager: ModelManagerApi) -> dict[str, Any]:
    """Return the body of /vram.

    Without a GPU, and with a simulated one, the figures are those of system memory, which the models use then
    (`memory`: gpu, else system).

    `status`: healthy with twice `min_vram_required` free, warning with once, else critical.
    """
    total, used, free = memory_of(manager)
    rows = sorted(
        (_vram_row(view, total) for view in manager.models() if view.runners),
        key=lambda row: -row["vram_used_mb"],
    )
    held = sum(view.memory_bytes for view in manager.models())
    least = manager.catalogue.system.min_vram_required * MEBIBYTE
    return {
        "memory": "gpu" if gpus(manager) else "system",
        "gpu_info": {
            "total_mb": megabytes(total),
            "total_gb": gigabytes(total),
            "used_mb": megabytes(used),
            "used_gb": gigabytes(used),
            "free_mb": megabytes(free),
            "free_gb": gigabytes(free),
            "usage_percentage": share(used, total),
            "baseline_used_mb": megabytes(max(0, used - held)),
        },
        "tracked_models_count": len(rows),
        "loaded_models_count": sum(row["status"] == "loaded" for row in rows),
        "total_allocated_by_models_mb": megabytes(held),
        "total_allocated_by_models_gb": gigabytes(held),
        "models": rows,
        "can_load_more": free >= least,
        "estimated_free_for_new_model_mb": megabytes(free),
        "estimated_free_for_new_model_gb": gigabytes(free),
        "status": "healthy" if free >= 2 * least else "warning" if free >= least else "critical",
        "devices": [_device(device) for device in manager.devices()],
    }


def vram_summary(manager: ModelManagerApi) -> dict[str, Any]:
    """Return the body of /vram/summary: for a dashboard, with loaded models only."""
    whole = vram(manager)
    info = whole["gpu_info"]
    return {
        "status": whole["status"],
        "total_gb": info["total_gb"],
        "used_gb": info["used_gb"],
        "free_gb": info["free_gb"],
        "usage_percentage": info["usage_percentage"],
        "loaded_models": whole["loaded_models_count"],
        "can_load_more": whole["can_load_more"],
        "models": [
            {
                "alias": row["model_alias"],
                "vram_gb": row["vram_used_gb"],
                "percentage": row["vram_percentage"],
            }
            for row in whole["models"]
            if row["status"] == "loaded"
        ],
    }


def vram_of_model(manager: ModelManagerApi, view: ModelView, now_s: float) -> dict[str, Any]:
    """Return the body of /vram/models/{alias}; `estimate_mb` is what the model uses once loaded."""
    total, used, free = memory_of(manager)
    began, took = view.started_at_s, view.load_s
    return {
        "model_alias": view.alias,
        "port": view.port,
        "status": _memory_word(view),
        "vram_usage": {
            "current_mb": megabytes(view.memory_bytes),
            "current_gb": gigabytes(view.memory_bytes),
            "average_mb": megabytes(view.average_bytes),
            "percentage_of_total": share(view.memory_bytes, total),
        },
        "load_info": {
            "start_time": at(began),
            "end_time": at(began + took) if began and took is not None else None,
            "duration_sec": took,
        },
        "snapshots": [
            {
                "timestamp": format_rfc3339(now_s),
                "vram_used_mb": megabytes(view.memory_bytes),
                "status": _memory_word(view),
            }
        ]
        if view.runners
        else [],
        "current_gpu_state": {
            "total_mb": megabytes(total),
            "used_mb": megabytes(used),
            "free_mb": megabytes(free),
        },
        "estimate_mb": megabytes(view.estimate_bytes),
        "devices": [
            {"index": index, "used_mb": megabytes(size)}
            for runner in view.runners
            for index, size in runner.devices
        ],
    }


def memory_of(manager: ModelManagerApi) -> tuple[int, int, int]:
    """Return (total, used, free) bytes of all GPUs together, or of system memory where there is no GPU."""
    devices = gpus(manager) or manager.devices()
    return (
        sum(d.total_bytes for d in devices),
        sum(d.used_bytes for d in devices),
        sum(d.free_bytes for d in devices),
    )


def gpus(manager: ModelManagerApi) -> list[DeviceView]:
    """Return the GPUs, without system memory."""
    return [device for device in manager.devices() if device.index != RAM]


def _vram_row(view: ModelView, total: int) -> dict[str, Any]:
    return {
        "model_alias": view.alias,
        "port": view.port,
        "status": _memory_word(view),
        "vram_used_mb": megabytes(view.memory_bytes),
        "vram_used_gb": gigabytes(view.memory_bytes),
        "average_usage_mb": megabytes(view.average_bytes or view.memory_bytes),
        "load_duration_sec": view.load_s,
        "vram_percentage": share(view.memory_bytes, total),
    }


def _memory_word(view: ModelView) -> str:
    """Return the status in the words of /vram: `loaded` for ready, `loading` for starting."""
    return {"ready": "loaded", "starting": "loading"}.get(view.status, view.status)


def _device(device: DeviceView) -> dict[str, Any]:
    return {
        "index": device.index,
        "name": device.name,
        "total_mb": megabytes(device.total_bytes),
        "used_mb": megabytes(device.used_bytes),
        "free_mb": megabytes(device.free_bytes),
        "utilization_percent": device.utilization_percent,
        "temperature_celsius": device.temperature_celsius,
        "power_watts": device.power_watts,
    }


# ---- queues and health


def queue_stats(queues: Sequence[QueueView]) -> dict[str, Any]:
    """Return the body of /v1/queue/stats."""
    return {
        "summary": {
            "total_queued": sum(q.queue_length for q in queues),
            "total_processing": sum(q.current_processing for q in queues),
            "total_processed": sum(q.total_processed for q in queues),
            "total_rejected": sum(q.total_rejected for q in queues),
        },
        "per_model": {
            q.alias: {
                "queue_length": q.queue_length,
                "total_requests": q.total_requests,
                "total_processed": q.total_processed,
                "total_rejected": q.total_rejected,
                "current_processing": q.current_processing,
                "processing": q.current_processing > 0,
                "oldest_s": round(q.oldest_s, 3),
                "limit": q.limit,
            }
            for q in queues
        },
    }


def health_of_models(views: Sequence[HealthView]) -> dict[str, Any]:
    """Return the body of /v1/health/models, by alias."""
    return {
        view.alias: {
            "uptime_percentage": f"{view.uptime_percent:.1f}%",
            "consecutive_failures": view.consecutive_failures,
            "avg_response_time_ms": "N/A" if view.last_check_s is None else f"{view.avg_response_ms:.1f}",
            "last_check": at(view.last_check_s),
            "status": view.status,
        }
        for view in views
    }


def health_checks(manager: ModelManagerApi) -> dict[str, dict[str, Any]]:
    """Return the `checks` of /health: gpu, manager, http_client; each `{status: ok | error, error?, …}`.

    A machine without a GPU is healthy; one whose memory cannot be read at all is not.
    """
    used = sum(device.used_bytes for device in gpus(manager))
    is_ending = manager.server_status == "shutting_down"
    ended = {"error": "The server is shutting down."} if is_ending else {}
    word = "error" if is_ending else "ok"
    unread = {} if manager.devices() else {"error": "Cannot read the memory of a GPU or of the system."}
    return {
        "gpu": {
            "status": "error" if unread else "ok",
            "vram_used_gb": f"{gigabytes(used):.2f}",
            "count": len(gpus(manager)),
            **unread,
        },
        "manager": {
            "status": word,
            "active_models": sum(bool(view.runners) for view in manager.models()),
            **ended,
        },
        "http_client": {"status": word, **ended},
    }


# ---- telemetry


def telemetry(samples: Sequence[RequestSample]) -> dict[str, Any]:
    """Return the body of /v1/telemetry/summary; `{message}` while there are no samples."""
    if not samples:
        return {"message": "No requests recorded yet"}
    good = sum(one.is_ok for one in samples)
    times = sorted(one.duration_s for one in samples)
    return {
        "total_requests": len(samples),
        "successful": good,
        "failed": len(samples) - good,
        "success_rate": f"{100 * good / len(samples):.2f}%",
        "response_time_stats": {
            "avg": _seconds(fmean(times)),
            "min": _seconds(times[0]),
            "max": _seconds(times[-1]),
            "p50": _seconds(quantile(times, 0.5)),
            "p95": _seconds(quantile(times, 0.95)),
        },
        "success_percent": round(100 * good / len(samples), 2),
        "response_time_s": {
            "avg": round(fmean(times), 6),
            "min": round(times[0], 6),
            "max": round(times[-1], 6),
            "p50": round(quantile(times, 0.5), 6),
            "p95": round(quantile(times, 0.95), 6),
        },
        "per_model": {
            alias: _telemetry_of([one for one in samples if one.alias == alias])
            for alias in dict.fromkeys(one.alias for one in samples)
        },
    }


def _telemetry_of(samples: list[RequestSample]) -> dict[str, Any]:
    times = sorted(one.duration_s for one in samples)
    errors = sum(not one.is_ok for one in samples)
    return {
        "total_requests": len(samples),
        "total_errors": errors,
        "error_rate": f"{100 * errors / len(samples):.2f}%",
        "total_tokens": sum(one.completion_tokens for one in samples),
        "avg_response_time": _seconds(fmean(times)),
        "min_response_time": _seconds(times[0]),
        "max_response_time": _seconds(times[-1]),
        "p95_response_time": _seconds(quantile(times, 0.95)),
        "avg_queue_time": _seconds(fmean(one.queue_s for one in samples)),
        "error_percent": round(100 * errors / len(samples), 2),
        "avg_response_time_s": round(fmean(times), 6),
        "min_response_time_s": round(times[0], 6),
        "max_response_time_s": round(times[-1], 6),
        "p95_response_time_s": round(quantile(times, 0.95), 6),
        "avg_queue_time_s": round(fmean(one.queue_s for one in samples), 6),
    }


def _seconds(value: float) -> str:
    return f"{value:.3f}s"


def quantile(ordered: Sequence[float], part: float) -> float:
    """Return the quantile `part` (0 to 1) of sorted values, interpolated linearly; 0 of no values."""
    if not ordered:
        return 0.0
    position = (len(ordered) - 1) * part
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def share(part: float, whole: float) -> float:
    """Return a percentage with two decimals; 0 where the whole is 0."""
    return round(100 * part / whole, 2) if whole else 0.0
