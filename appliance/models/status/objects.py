"""The status objects of system D, made of what the manager tells: for the HTTP door, the status file and the status listener alike.

Ours stand behind system D's fields: why and for how long one must wait, and what keeps a model loaded. Times are RFC 3339 in UTC.
Source: system D, `/v1/models/status` and `model_status.json`.
"""

from collections import Counter
from typing import Any

from appliance.base.clock import format_rfc3339
from appliance.models.status.views import ModelManagerApi, ModelView, QueueView

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30


def as_status(manager: ModelManagerApi) -> dict[str, Any]:
    """Give everything: `{server, models: {alias: model}, summary: {total, by_status: {word: count}}}`."""
    models = as_models(manager)
    return {"server": as_server(manager), "models": models, "summary": summary_of(models)}


def as_file(manager: ModelManagerApi) -> dict[str, Any]:
    """Give what `model_status.json` holds: `{server, models}`."""
    return {"server": as_server(manager), "models": as_models(manager)}


def as_models(manager: ModelManagerApi) -> dict[str, dict[str, Any]]:
    """Give every model of the table by its alias."""
    waiting = {queue.alias: queue for queue in manager.queues()}
    return {view.alias: as_model(view, waiting.get(view.alias)) for view in manager.models()}


def as_server(manager: ModelManagerApi) -> dict[str, Any]:
    """Give `{status, started_at, updated_at}`."""
    return {
        "status": manager.server_status,
        "started_at": format_rfc3339(manager.server_started_at_s),
        "updated_at": format_rfc3339(manager.server_updated_at_s),
    }


def as_model(view: ModelView, queue: QueueView | None = None) -> dict[str, Any]:
    """Give one model: system D's nine fields, and ours.

    Takes   queue: its line, where there is one
    Gives   `{alias, status, port, started_at, last_used_at, load_progress, error_message, vram_used_mb, updated_at,
            expected_in_s, queue_length, attempts, pinned, expires_at}`; null = there is nothing to tell
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
    """Give the status while the table is not read yet: the server is initializing, and there are no models."""
    began = format_rfc3339(started_at_s)
    return {
        "server": {"status": "initializing", "started_at": began, "updated_at": began},
        "models": {},
        "summary": summary_of({}),
    }


def summary_of(models: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {"total": len(models), "by_status": dict(Counter(model["status"] for model in models.values()))}


def megabytes(size_bytes: float) -> float:
    """Give MB as system D counts them: of 2^20 bytes."""
    return round(size_bytes / MEBIBYTE, 2)


def gigabytes(size_bytes: float) -> float:
    return round(size_bytes / GIBIBYTE, 2)


def at(at_s: float | None) -> str | None:
    """Give a time, null for none."""
    return format_rfc3339(at_s) if at_s else None
