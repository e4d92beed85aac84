"""Downloads as text: rows of a table, names and values, progress, how it ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from appliance.cli.render.values import Pairs, duration, enum_word, optional, plural, size, timestamp
from appliance.cli.screen import Row

if TYPE_CHECKING:
    from appliance.cli import messages as pb

JOB_HEADERS = ["JOB", "STATE", "DONE", "SIZE", "RATE", "SOURCE", "FOLDER", "CREATED"]
ACTIVE = {"queued", "running"}
ENDED = {"failed": "failed", "cancelled": "was cancelled", "interrupted": "was interrupted"}


def job_rows(jobs: Iterable[pb.Job]) -> list[Row]:
    """Return one row per job."""
    return [
        [
            job.id,
            enum_word(job, "state"),
            optional(job, "percent", "{:.0f}%"),
            optional(job, "total_bytes", size),
            _rate(job),
            job.source or job.kind,
            job.output_dir,
            timestamp(job.created_at),
        ]
        for job in jobs
    ]


def _rate(job: pb.Job) -> str:
    is_moving = job.rate_bytes_s and enum_word(job, "state") == "running"
    return f"{size(int(job.rate_bytes_s))}/s" if is_moving else ""


def job_pairs(job: pb.Job) -> Pairs:
    """Return all that is known of one job as names and values."""
    return [
        ("job", job.id),
        ("kind", job.kind),
        ("state", enum_word(job, "state")),
        ("error", job.error),
        ("source", job.source),
        ("folder", job.output_dir),
        ("model", job.model),
        ("phase", job.phase if enum_word(job, "state") == "running" else ""),
        ("done", optional(job, "percent", "{:.1f}%")),
        ("bytes", _bytes(job)),
        ("fetched", size(job.fetched_bytes)),
        ("files", f"{job.files_done} of {job.files}" if job.files else ""),
        ("rate", _rate(job)),
        ("note", job.note),
        ("now", ", ".join(job.now)),
        ("workers", str(job.max_workers)),
        *((f"config {key}", value) for key, value in sorted(job.config.items())),
        ("created", optional(job, "created_at", timestamp)),
        ("started", optional(job, "started_at", timestamp)),
        ("ended", optional(job, "ended_at", timestamp)),
        ("took", duration(job.seconds) if job.seconds else ""),
    ]


def _bytes(job: pb.Job) -> str:
    if job.HasField("total_bytes"):
        return f"{size(job.done_bytes)} of {size(job.total_bytes)}"
    return size(job.done_bytes) if job.done_bytes else ""


def job_progress(job: pb.Job) -> tuple[str, float | None, str]:
    """Return the progress of a download: what, percent (None = unknown), a note."""
    word = enum_word(job, "state")
    word = job.phase if word == "running" else word
    note = ", ".join(filter(None, (_bytes(job), _rate(job), job.note)))
    return f"{job.source or job.output_dir} {word}", job.percent if job.HasField("percent") else None, note


def outcome_text(job: pb.Job) -> str:
    """Return a sentence about how a job ended."""
    what, word = job.source or job.kind, enum_word(job, "state")
    if word == "completed":
        details = f"{plural(job.files, 'file')}, {size(job.total_bytes)}, {duration(job.seconds)}"
        return f"{what} is in {job.output_dir} ({details})"
    return f"{what} {ENDED.get(word, f'is {word}')}" + (f": {job.error}" if job.error else "")
