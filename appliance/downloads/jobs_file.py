"""The file of the state folder in which download jobs outlast a restart. Written whole or not at all, for the owner's eyes only."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from appliance.base import jsons
from appliance.base.files import write_atomic
from appliance.base.logs import get_logger
from appliance.downloads.job import DownloadJob, job_from_row, job_to_row

log = get_logger("downloads")


def read_jobs(path: Path) -> list[DownloadJob]:
    """Give the kept jobs, oldest first; a file that is missing is empty, rows that cannot be read are told and left out (blocks)."""
    try:
        rows = jsons.loads(path.read_bytes())["jobs"]
        return [job for row in rows if (job := _read(row, path)) is not None]
    except FileNotFoundError:
        return []
    except (OSError, jsons.InvalidJson, KeyError, TypeError) as exc:
        log.error("jobs_unreadable", path=str(path), error=repr(exc))
        return []


def _read(row: Any, path: Path) -> DownloadJob | None:
    try:
        return job_from_row(row)
    except (KeyError, TypeError, ValueError) as exc:
        log.error("job_unreadable", path=str(path), error=repr(exc))
        return None


def write_jobs(path: Path, jobs: Sequence[DownloadJob]) -> None:
    """Keep the jobs; a folder that cannot be written is told of, and the jobs go on (blocks)."""
    try:
        write_atomic(path, jsons.dumps({"jobs": [job_to_row(job) for job in jobs]}))
    except OSError as exc:
        log.warning(
            "jobs_not_written",
            path=str(path),
            reason=str(exc),
            remedy="Make the folder writable; until then jobs are lost at a restart.",
        )
