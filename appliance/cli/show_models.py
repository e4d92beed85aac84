"""What is shown of the models: rows of tables, names and values, and the line of a load."""

from collections.abc import Iterable
from typing import Any

from appliance.cli.show import Row, duration, given, size, time_of, word_of

MODEL_HEADERS = ["MODEL", "STATUS", "PORT", "SLOTS", "ACTIVE", "QUEUE", "MEMORY", "EXPIRES", "LAST-USED"]
QUEUE_HEADERS = ["MODEL", "WAITING", "LIMIT", "OLDEST", "ACTIVE", "REQUESTS", "ANSWERED", "REFUSED"]
DEVICE_HEADERS = ["DEVICE", "NAME", "TOTAL", "USED", "FREE", "BUSY", "TEMPERATURE", "POWER", "MODELS"]


def model_rows(answer: Any) -> list[Row]:
    """Give one row per model; `answer` tells by its own clock when it was given."""
    return [
        [
            m.alias,
            _status(m),
            given(m, "port"),
            _slots(m),
            str(m.active),
            str(m.queue_length),
            size(m.memory_bytes) if m.runners else "",
            _expires(m, answer.at),
            _ago(m, answer.at),
        ]
        for m in answer.models
    ]


def _status(model: Any) -> str:
    word = word_of(model, "status")
    is_coming = word in {"starting", "loading"} and model.HasField("load_progress_percent")
    words = [
        f"{word} {model.load_progress_percent}%" if is_coming else word,
        "pinned" if model.is_pinned else "",
    ]
    return ", ".join(filter(None, words))


def _slots(model: Any) -> str:
    return f"{model.replicas}x{model.slots}" if model.replicas > 1 else str(model.slots)


def _expires(model: Any, at: Any) -> str:
    if not model.runners:
        return ""
    return (
        f"in {duration(max(0.0, _seconds(at, model.expires_at)))}"
        if model.HasField("expires_at")
        else "never"
    )


def _ago(model: Any, at: Any) -> str:
    return (
        f"{duration(max(0.0, _seconds(model.last_used_at, at)))} ago"
        if model.HasField("last_used_at")
        else "never"
    )


def _seconds(begin: Any, end: Any) -> float:
    return float((end.ToNanoseconds() - begin.ToNanoseconds()) / 1e9)


def model_pairs(model: Any) -> list[tuple[str, str]]:
    """Give all that is known of one model as names and values."""
    rows = [
        ("model", model.alias),
        ("status", _status(model)),
        ("error", model.error_message),
        ("failed in a row", str(model.attempts or "")),
        ("file", f"{model.path} ({size(model.size_bytes)})"),
        ("context", f"{model.context_tokens} tokens"),
        ("slots", _slots(model)),
        ("active", str(model.active)),
        ("queue", str(model.queue_length)),
        ("expected in", given(model, "expected_in_s", duration)),
        ("memory", size(model.memory_bytes) if model.runners else ""),
        ("memory expected", size(model.estimate_bytes)),
        ("memory on average", size(model.average_bytes) if model.average_bytes else ""),
        ("started", given(model, "started_at", time_of)),
        ("last used", given(model, "last_used_at", time_of)),
        ("expires", given(model, "expires_at", time_of) or ("never" if model.runners else "")),
        ("latest load", given(model, "load_s", duration)),
        ("loads", str(model.loads)),
        ("kept warm", "yes" if model.is_warm else ""),
    ]
    rows += [
        (
            f"process {runner.pid}",
            f"port {runner.port}, {word_of(runner, 'status')}, {_places(runner)}, log {runner.log_path or '(none)'}",
        )
        for runner in model.runners
    ]
    return rows


def _places(runner: Any) -> str:
    places = [
        f"{size(d.memory_bytes)} {'system memory' if d.index < 0 else f'GPU {d.index}'}"
        for d in runner.devices
    ]
    return " + ".join(places) or size(runner.memory_bytes)


def load_step(model: Any) -> tuple[str, float | None, str]:
    """Give what a load's progress shows: what, how far in percent, and a note."""
    word = word_of(model, "status")
    percent = (
        float(model.load_progress_percent)
        if model.HasField("load_progress_percent") and word != "off"
        else None
    )
    note = (
        f"ready in {duration(model.expected_in_s)}"
        if model.HasField("expected_in_s") and word != "ready"
        else model.error_message
    )
    return f"{model.alias} {word}", percent, note


def loaded_text(model: Any) -> str:
    """Say in a sentence that a model is ready."""
    took = f", loaded in {duration(model.load_s)}" if model.HasField("load_s") else ""
    return f"{model.alias} is ready on port {model.port}{took}"


def ejected_text(alias: str, answer: Any, *, force: bool) -> str:
    """Say in a sentence what an eject came to."""
    if not answer.was_loaded:
        return f"{alias} was not loaded"
    count, verb = answer.waited_for, "cut off" if force else "answered first"
    return f"{alias} is unloaded" + (f" ({count} request{'s' if count != 1 else ''} {verb})" if count else "")


def reset_text(alias: str, answer: Any) -> str:
    """Say in a sentence what a reset came to."""
    if not answer.had_failures:
        return f"{alias} had no failures"
    return f"{alias} will be tried again; {answer.attempts} load{'s' if answer.attempts != 1 else ''} had failed: {answer.error}"


def queue_rows(queues: Iterable[Any]) -> list[Row]:
    """Give one row per model."""
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


def device_rows(devices: Iterable[Any]) -> list[Row]:
    """Give one row per device."""
    return [
        [
            "RAM" if d.index < 0 else f"GPU {d.index}",
            d.name,
            size(d.total_bytes),
            size(d.used_bytes),
            size(d.free_bytes),
            given(d, "utilization_percent", "{:.0f}%"),
            given(d, "temperature_celsius", "{:.0f} C"),
            given(d, "power_watts", "{:.0f} W"),
            ", ".join(f"{m.alias} {size(m.memory_bytes)}" for m in d.models),
        ]
        for d in devices
    ]
