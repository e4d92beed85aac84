"""A download job as a value, as it is shown and as it is kept over a restart. It has no credentials."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from appliance.base.clock import format_rfc3339
from appliance.base.durable_jobs import JOB_STATES, Job, JobFile
from appliance.downloads.contract import DownloadProgress

JobKind = Literal["download", "repair"]
JOBS_KEY = "jobs"  # in the file


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadJob(Job):
    """One download, or one repair of a folder.

    Attributes:
        source: Without credentials. "" = a repair, which fetches from where the folder came from.
        needs: Names of the credentials that came with the request, without their values.
        model: The name under which the model is to serve (Ollama's pull), "" = none.
        files: Of a completed job, as are `bytes_total` and `seconds` (that fetching took).
    """

    source: str
    output_dir: Path
    kind: JobKind = "download"
    progress: DownloadProgress = field(default_factory=DownloadProgress)
    max_workers: int = 8
    config: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    model: str = ""
    files: int = 0
    bytes_total: int = 0
    seconds: float = 0.0

    @property
    def percent(self) -> float | None:
        """How far it is, 0 to 100; None = not known yet."""
        if self.state == "completed":
            return 100.0
        total = self.progress.total_bytes
        return min(100.0, 100.0 * self.progress.done_bytes / total) if total else None

    def is_same_work(self, other: "DownloadJob") -> bool:
        """Whether both do the same to the same folder."""
        own = (self.kind, self.source, self.output_dir)
        return own == (other.kind, other.source, other.output_dir)


def job_object(job: DownloadJob) -> dict[str, Any]:
    """Return a job as the interfaces show it.

    Returns:
        `{id, kind, state, source, output_dir, model, created_at, started_at, ended_at, error, max_workers,
        config, progress {phase, files, files_done, total_bytes, done_bytes, fetched_bytes, rate_bytes_s,
        percent, now}, files, bytes, seconds}`; null = not known.
    """

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


NOT_KEPT = ("step", "since_s")  # a resumed job starts with its first step
KEPT = frozenset(one.name for one in fields(DownloadJob)) - {*NOT_KEPT}


def job_file(path: Path) -> JobFile[DownloadJob]:
    """Return the file in which download jobs are kept."""
    return JobFile(path, key=JOBS_KEY, to_row=job_to_row, from_row=job_from_row)


def job_to_row(job: DownloadJob) -> dict[str, Any]:
    """Return a job as it is kept in the file."""
    values = asdict(job)
    return {name: values[name] for name in values if name in KEPT} | {"output_dir": str(job.output_dir)}


def job_from_row(row: Mapping[str, Any]) -> DownloadJob:
    """Read a kept job back.

    Raises:
        KeyError, TypeError, ValueError: The row is no job.
    """
    progress = dict(row["progress"])
    values = {
        **row,
        "output_dir": Path(row["output_dir"]),
        "needs": tuple(map(str, row["needs"])),
        "progress": DownloadProgress(**{**progress, "now": tuple(progress["now"])}),
    }
    if values["state"] not in JOB_STATES:
        raise ValueError(f"unknown state {str(values['state'])[:20]!r}")
    return DownloadJob(**values)
