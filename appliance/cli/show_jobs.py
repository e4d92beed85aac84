"""What is shown of downloads: rows of tables, names and values, the line of progress, and how it ended."""

from collections.abc import Iterable
from typing import Any

from appliance.cli.show import Row, duration, given, size, time_of, word_of

JOB_HEADERS = ["JOB", "STATE", "DONE", "SIZE", "RATE", "SOURCE", "FOLDER", "CREATED"]
GOING = {"queued", "running"}
ENDED = {"failed": "failed", "cancelled": "was cancelled", "interrupted": "was interrupted"}


def job_rows(jobs: Iterable[Any]) -> list[Row]:
    """Give one row per job."""
    return [
        [
            job.id,
            word_of(job, "state"),
            given(job, "percent", "{:.0f}%"),
            given(job, "total_bytes", size),
            rate(job),
            job.source or job.kind,
            job.output_dir,
            time_of(job.created_at),
        ]
        for job in jobs
    ]


def rate(job: Any) -> str:
    return (
        f"{size(int(job.rate_bytes_s))}/s" if job.rate_bytes_s and word_of(job, "state") == "running" else ""
    )


def job_pairs(job: Any) -> list[tuple[str, str]]:
    """Give all that is known of one job as names and values."""
    return [
        ("job", job.id),
        ("kind", job.kind),
        ("state", word_of(job, "state")),
        ("error", job.error),
        ("source", job.source),
        ("folder", job.output_dir),
        ("model", job.model),
        ("phase", job.phase if word_of(job, "state") == "running" else ""),
        ("done", given(job, "percent", "{:.1f}%")),
        ("bytes", _bytes(job)),
        ("fetched", size(job.fetched_bytes)),
        ("files", f"{job.files_done} of {job.files}" if job.files else ""),
        ("rate", rate(job)),
        ("note", job.note),
        ("now", ", ".join(job.now)),
        ("workers", str(job.max_workers)),
        *((f"config {key}", value) for key, value in sorted(job.config.items())),
        ("created", given(job, "created_at", time_of)),
        ("started", given(job, "started_at", time_of)),
        ("ended", given(job, "ended_at", time_of)),
        ("took", duration(job.seconds) if job.seconds else ""),
    ]


def _bytes(job: Any) -> str:
    return (
        f"{size(job.done_bytes)} of {size(job.total_bytes)}"
        if job.HasField("total_bytes")
        else size(job.done_bytes)
        if job.done_bytes
        else ""
    )


def job_step(job: Any) -> tuple[str, float | None, str]:
    """Give what a download's progress shows: what, how far in percent, and a note."""
    word = word_of(job, "state")
    word = job.phase if word == "running" else word
    note = ", ".join(filter(None, (_bytes(job), rate(job), job.note)))
    return f"{job.source or job.output_dir} {word}", job.percent if job.HasField("percent") else None, note


def job_ended(job: Any) -> str:
    """Say in a sentence how a job ended."""
    what, word = job.source or job.kind, word_of(job, "state")
    if word == "completed":
        return f"{what} is in {job.output_dir} ({job.files} file{'s' if job.files != 1 else ''}, {size(job.total_bytes)}, {duration(job.seconds)})"
    return f"{what} {ENDED.get(word, f'is {word}')}" + (f": {job.error}" if job.error else "")
