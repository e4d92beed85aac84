"""Models, queues and devices as text: rows of tables, names and values, the progress of a load."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from appliance.cli.render.values import Pairs, duration, enum_word, optional, plural, size, timestamp
from appliance.cli.screen import Row

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from appliance.cli import messages as pb

MODEL_HEADERS = ["MODEL", "STATUS", "PORT", "SLOTS", "ACTIVE", "QUEUE", "MEMORY", "EXPIRES", "LAST-USED"]
QUEUE_HEADERS = ["MODEL", "WAITING", "LIMIT", "OLDEST", "ACTIVE", "REQUESTS", "ANSWERED", "REFUSED"]
DEVICE_HEADERS = ["DEVICE", "NAME", "TOTAL", "USED", "FREE", "BUSY", "TEMPERATURE", "POWER", "MODELS"]


def model_rows(response: pb.ListModelsResponse | pb.WatchModelsResponse) -> list[Row]:
    """Return one row per model; the response's `at` is the time that "in" and "ago" count from."""
    return [
        [
            m.alias,
            _status(m),
            optional(m, "port"),
            _slots(m),
            str(m.active),
            str(m.queue_length),
            size(m.memory_bytes) if m.runners else "",
            _expires(m, response.at),
            _last_used(m, response.at),
        ]
        for m in response.models
    ]


def _status(model: pb.Model) -> str:
    word = enum_word(model, "status")
    if word in {"starting", "loading"} and model.HasField("load_progress_percent"):
        word += f" {model.load_progress_percent}%"
    return f"{word}, pinned" if model.is_pinned else word


def _slots(model: pb.Model) -> str:
    return f"{model.replicas}x{model.slots}" if model.replicas > 1 else str(model.slots)


def _expires(model: pb.Model, at: Timestamp) -> str:
    if not model.runners:
        return ""
    if not model.HasField("expires_at"):
        return "never"
    return f"in {duration(max(0.0, _seconds(at, model.expires_at)))}"


def _last_used(model: pb.Model, at: Timestamp) -> str:
    if not model.HasField("last_used_at"):
        return "never"
    return f"{duration(max(0.0, _seconds(model.last_used_at, at)))} ago"


def _seconds(begin: Timestamp, end: Timestamp) -> float:
    return (end.ToNanoseconds() - begin.ToNanoseconds()) / 1e9


def model_pairs(model: pb.Model) -> Pairs:
    """Return all that is known of one model as names and values."""
    rows = [
        ("model", model.alias),
        ("further names", ", ".join(model.aliases)),
        ("status", _status(model)),
        ("error", model.error_message),
        ("failed in a row", str(model.attempts or "")),
        ("file", f"{model.path} ({size(model.size_bytes)})" if model.path else ""),
        ("context", f"{model.context_tokens} tokens" if model.context_tokens else ""),
        ("slots", _slots(model)),
        ("active", str(model.active)),
        ("queue", str(model.queue_length)),
        ("expected in", optional(model, "expected_in_s", duration)),
        ("memory", size(model.memory_bytes) if model.runners else ""),
        ("memory expected", size(model.estimate_bytes) if model.estimate_bytes else ""),
        ("memory on average", size(model.average_bytes) if model.average_bytes else ""),
        ("started", optional(model, "started_at", timestamp)),
        ("last used", optional(model, "last_used_at", timestamp)),
        ("expires", optional(model, "expires_at", timestamp) or ("never" if model.runners else "")),
        ("latest load", optional(model, "load_s", duration)),
        ("loads", str(model.loads)),
        ("kept warm", "yes" if model.is_warm else ""),
    ]
    return rows + [(f"process {runner.pid}", _runner_text(runner)) for runner in model.runners]


def _runner_text(runner: pb.Runner) -> str:
    memory = [
        f"{size(d.memory_bytes)} {'system memory' if d.index < 0 else f'GPU {d.index}'}"
        for d in runner.devices
    ]
    words = (
        f"port {runner.port}",
        enum_word(runner, "status"),
        " + ".join(memory) or size(runner.memory_bytes),
        f"log {runner.log_path or '(none)'}",
    )
    return ", ".join(words)


def load_progress(model: pb.Model) -> tuple[str, float | None, str]:
    """Return the progress of a load: what, percent (None = unknown), a note."""
    word = enum_word(model, "status")
    has_percent = model.HasField("load_progress_percent") and word != "off"
    is_expected = model.HasField("expected_in_s") and word != "ready"
    note = f"ready in {duration(model.expected_in_s)}" if is_expected else model.error_message
    return f"{model.alias} {word}", float(model.load_progress_percent) if has_percent else None, note


def loaded_text(model: pb.Model) -> str:
    """Return a sentence about a model that is ready."""
    took = f", loaded in {duration(model.load_s)}" if model.HasField("load_s") else ""
    return f"{model.alias} is ready on port {model.port}{took}"


def ejected_text(alias: str, response: pb.EjectModelResponse, *, force: bool) -> str:
    """Return a sentence about the outcome of an eject."""
    if not response.was_loaded:
        return f"{alias} was not loaded"
    text = f"{alias} is unloaded"
    if count := response.waited_for:
        text += f" ({plural(count, 'request')} {'cut off' if force else 'finished first'})"
    return text


def reset_text(alias: str, response: pb.ResetModelResponse) -> str:
    """Return a sentence about the outcome of a reset."""
    if not response.had_failures:
        return f"{alias} had no failures"
    return f"{alias} can be loaded again; {plural(response.attempts, 'load')} had failed: {response.error}"


def queue_rows(queues: Iterable[pb.Queue]) -> list[Row]:
    """Return one row per model."""
    return [
        [
            q.alias,
            str(q.queue_length),
            str(q.limit),
            duration(q.oldest_s) if q.queue_length else "",
            str(q.current_processing),
            str(q.total_requests),
            str(q.total_processed),
            str(q.total_rejected),
        ]
        for q in queues
    ]


def device_rows(devices: Iterable[pb.Device]) -> list[Row]:
    """Return one row per device."""
    return [
        [
            "RAM" if d.index < 0 else f"GPU {d.index}",
            d.name,
            size(d.total_bytes),
            size(d.used_bytes),
            size(d.free_bytes),
            optional(d, "utilization_percent", "{:.0f}%"),
            optional(d, "temperature_celsius", "{:.0f} C"),
            optional(d, "power_watts", "{:.0f} W"),
            ", ".join(f"{m.alias} {size(m.memory_bytes)}" for m in d.models),
        ]
        for d in devices
    ]
