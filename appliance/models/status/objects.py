"""The status objects of server and models: for the HTTP front, the status file and the status listener alike.

They have the fields that compatibility requires (see docs/compatibility.md, `/v1/models/status` and
`model_status.json`). Our own fields follow them: the expected wait, and what keeps a model loaded. Times are
RFC 3339 in UTC.
"""

from collections import Counter
from typing import Any

from appliance.base.clock import format_rfc3339
from appliance.models.status.views import ModelManagerApi, ModelView, QueueView

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30


def as_status(manager: ModelManagerApi) -> dict[str, Any]:
    """Return everything: `{server, models: {alias: model}, summary: {total, by_status: {word: count}}}`."""
    models = as_models(manager)
    return {"server": as_server(manager), "models": models, "summary": summary_of(models)}


def as_file(manager: ModelManagerApi) -> dict[str, Any]:
    """Return what `model_status.json` holds: `{server, models}`."""
    return {"server": as_server(manager), "models": as_models(manager)}


def as_models(manager: ModelManagerApi) -> dict[str, dict[str, Any]]:
    """Return every model of the table by its alias."""
    queues = {queue.alias: queue for queue in manager.queues()}
    return {view.alias: as_model(view, queues.get(view.alias)) for view in manager.models()}


def as_server(manager: ModelManagerApi) -> dict[str, Any]:
    """Return `{status, started_at, updated_at}`."""
    return {
        "status": manager.server_status,
        "started_at": format_rfc3339(manager.server_started_at_s),
        "updated_at": format_rfc3339(manager.server_updated_at_s),
    }


def as_model(view: ModelView, queue: QueueView | None = None) -> dict[str, Any]:
    """Return one model.

    Args:
        view: The model.
        queue: Its queue, where there is one.

    Returns:
        `{alias, status, port, started_at, last_used_at, load_progress, error_message, vram_used_mb,
        updated_at, expected_in_s, queue_length, attempts, pinned, expires_at}`; null = there is no value.
    """
    expiries = [runner.expires_at_s for runner in view.runners if runner.expires_at_s is not None]
    return {
        "alias": view.alias,
        "status": view.status,
        "port": view.port,
        "started_at": at(view.started_at_s),
        "last_used_at": at(view.last_used_at_s),
        "load_progress": view.load_progress,
        "error_message": view.error_message or None,
        "vram_used_mb": megabytes(view.memory_bytes) if view.runners or view.memory_bytes else None,
        "updated_at": at(view.updated_at_s),
        "expected_in_s": None if view.expected_in_s is None else round(view.expected_in_s, 1),
        "queue_length": queue.queue_length if queue else 0,
        "attempts": view.attempts,
        "pinned": view.is_pinned,
        "expires_at": at(max(expiries, default=None)),
    }


def before_manager(started_at_s: float) -> dict[str, Any]:
    """Return the status while the table is not read yet: initializing, and no models."""
    started_at = format_rfc3339(started_at_s)
    return {
        "server": {"status": "initializing", "started_at": started_at, "updated_at": started_at},
        "models": {},
        "summary": summary_of({}),
    }


def summary_of(models: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Count models by their status: `{total, by_status: {word: count}}`."""
    return {"total": len(models), "by_status": dict(Counter(model["status"] for model in models.values()))}


def megabytes(size_bytes: float) -> float:
    """Return MB of 2^20 bytes, with two decimals."""
    return round(size_bytes / MEBIBYTE, 2)


def gigabytes(size_bytes: float) -> float:
    """Return GB of 2^30 bytes, with two decimals."""
    return round(size_bytes / GIBIBYTE, 2)


def at(at_s: float | None) -> str | None:
    """Return a time as RFC 3339, null for none."""
    return format_rfc3339(at_s) if at_s else None
