"""Download jobs as messages; what is not known stays absent."""

from appliance.control.convert.values import to_enum, to_sendable, to_timestamp
from appliance.control.v1 import control_pb2 as pb
from appliance.downloads.job import DownloadJob


def to_job_state(word: str) -> pb.JobState:
    """Return the enum value for the state `word`; 0 for a word that the enum does not have."""
    return to_enum(pb.JobState, "JOB_STATE", word)


def to_job(job: DownloadJob) -> pb.Job:
    """Return a job as a message."""
    progress, is_done = job.progress, job.state == "completed"
    return pb.Job(
        id=job.id,
        kind=job.kind,
        state=to_job_state(job.state),
        source=to_sendable(job.source),
        output_dir=to_sendable(str(job.output_dir)),
        model=to_sendable(job.model),
        created_at=to_timestamp(job.created_at_s),
        started_at=to_timestamp(job.started_at_s),
        ended_at=to_timestamp(job.ended_at_s),
        error=to_sendable(job.error),
        max_workers=job.max_workers,
        config={key: to_sendable(value) for key, value in job.config.items()},
        phase=progress.phase,
        files=job.files if is_done else progress.files,
        files_done=job.files if is_done else progress.files_done,
        total_bytes=job.bytes_total if is_done else progress.total_bytes,
        done_bytes=job.bytes_total if is_done else progress.done_bytes,
        fetched_bytes=progress.fetched_bytes,
        rate_bytes_s=progress.rate_bytes_s,
        percent=job.percent,
        now=map(to_sendable, progress.now),
        seconds=job.seconds,
        note=to_sendable(progress.note),
    )
