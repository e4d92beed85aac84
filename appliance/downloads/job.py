"""A download job as a value: what is shown of it, and what is kept of it over a restart. No credential is ever in it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from appliance.base.clock import format_rfc3339
from appliance.downloads.contract import DownloadProgress

JobState = Literal["queued", "running", "completed", "failed", "cancelled", "interrupted"]
JobKind = Literal["download", "repair"]
STATES: tuple[str, ...] = get_args(JobState)
ACTIVE_STATES = frozenset({"queued", "running"})


@dataclass(frozen=True, slots=True)
class DownloadJob:
    """One download, or one repair of a folder. Times in seconds since 1970.

    source     without credentials; "" = a repair, which fetches from where the folder came from
    state      interrupted: the appliance ended while it ran; it is taken up again at the next start
    error      why it failed, or what keeps an interrupted one from going on
    needs      names of the credentials that came with it
    model      the name under which the model is to serve (Ollama's pull), "" = none
    seconds    that fetching took; `bytes_total`, `files`: what a completed one came to
    """

    id: str
    source: str
    output_dir: Path
    state: JobState
    created_at_s: float
    kind: JobKind = "download"
    started_at_s: float | None = None
    ended_at_s: float | None = None
    progress: DownloadProgress = field(default_factory=DownloadProgress)
    error: str = ""
    max_workers: int = 8
    config: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    model: str = ""
    files: int = 0
    bytes_total: int = 0
    seconds: float = 0.0

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE_STATES

    @property
    def percent(self) -> float | None:
        """How far it is, 0 to 100; None = not known yet."""
        if self.state == "completed":
            return 100.0
        total = self.progress.total_bytes
        return min(100.0, 100.0 * self.progress.done_bytes / total) if total else None


def job_object(job: DownloadJob) -> dict[str, Any]:
    """Give a job as the doors show it:
    `{id, kind, state, source, output_dir, model, created_at, started_at, ended_at, error, max_workers, config, progress {phase, files,
    files_done, total_bytes, done_bytes, fetched_bytes, rate_bytes_s, percent, now}, files, bytes, seconds}`; null = not known."""

    def at(time_s: float | None) -> str | None:
        return None if time_s is None else format_rfc3339(time_s)

    percent = job.percent
    progress = {
        **asdict(job.progress),
        "now": list(job.progress.now),
        "rate_bytes_s": round(job.progress.rate_bytes_s, 1),
        "percent": None if percent is None else round(percent, 1),
    }
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "source": job.source,
        "output_dir": str(job.output_dir),
        "model": job.model or None,
        "created_at": at(job.created_at_s),
        "started_at": at(job.started_at_s),
        "ended_at": at(job.ended_at_s),
        "error": job.error or None,
        "max_workers": job.max_workers,
        "config": dict(job.config),
        "progress": progress,
        "files": job.files,
        "bytes": job.bytes_total,
        "seconds": round(job.seconds, 3),
    }


def job_to_row(job: DownloadJob) -> dict[str, Any]:
    """Give a job as it is kept in the file."""
    return {**asdict(job), "output_dir": str(job.output_dir)}


def job_from_row(row: Mapping[str, Any]) -> DownloadJob:
    """Read a kept job back. Raises KeyError, TypeError, ValueError: the row is none."""
    progress = dict(row["progress"])
    values = {
        **row,
        "output_dir": Path(row["output_dir"]),
        "needs": tuple(map(str, row["needs"])),
        "progress": DownloadProgress(**{**progress, "now": tuple(progress["now"])}),
    }
    if values["state"] not in STATES:
        raise ValueError(f"unknown state {str(values['state'])[:20]!r}")
    return DownloadJob(**values)
