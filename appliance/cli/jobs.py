"""The commands about downloads: `ctl download`, `ctl jobs`, `ctl job show|cancel|watch`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from appliance.base import jsons
from appliance.cli import messages as pb
from appliance.cli.client import USAGE, CallFailed
from appliance.cli.render.jobs import ACTIVE, JOB_HEADERS, job_pairs, job_progress, job_rows, outcome_text
from appliance.cli.render.values import as_object, enum_word
from appliance.cli.session import CommandGroup, Session, exits_on_failure

CANCEL_TIMEOUT_S = 30.0
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id (`jobs` lists them).")]


@exits_on_failure
def jobs(ctx: typer.Context) -> None:
    """List the downloads, newest first."""
    session = Session.of(ctx)
    response = session.client.call(session.client.stub.ListJobs, pb.ListJobsRequest())
    session.show(response, lambda screen: screen.table(JOB_HEADERS, job_rows(response.jobs)))


@exits_on_failure
def show_one(ctx: typer.Context, job_id: JobId) -> None:
    """Show all that is known of one download."""
    session = Session.of(ctx)
    job = session.client.call(session.client.stub.GetJob, pb.GetJobRequest(id=job_id)).job
    session.show(job, lambda screen: screen.pairs(job_pairs(job)))


@exits_on_failure
def cancel(ctx: typer.Context, job_id: JobId) -> None:
    """Cancel a download; what was fetched is kept, and a later download continues from it."""
    session = Session.of(ctx)
    request = pb.CancelJobRequest(id=job_id)
    job = session.client.call(session.client.stub.CancelJob, request, timeout_s=CANCEL_TIMEOUT_S).job
    session.show(job, lambda screen: screen.say(outcome_text(job)))


@exits_on_failure
def watch(ctx: typer.Context, job_id: JobId) -> None:
    """Show a download's progress until it has ended. Interrupting this command does not stop the download."""
    _follow(Session.of(ctx), job_id)


@exits_on_failure
def download(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="hf://namespace/repository (also without hf://), s3://, obs://, pvc://, ms://, https://.",
        ),
    ],
    output_dir: Annotated[
        str,
        typer.Option(
            "--output-dir",
            "-o",
            help="Folder on the appliance, below those that it allows. "
            "Default: one in DOWNLOAD_DIR, named after the source.",
        ),
    ] = "",
    max_workers: Annotated[
        int | None,
        typer.Option(
            "--max-workers",
            "-w",
            min=1,
            max=64,
            help="Files, and parts of files, at the same time. Default: 8.",
        ),
    ] = None,
    config: Annotated[
        str,
        typer.Option(
            "--config",
            "-c",
            metavar="JSON",
            help="revision, include, exclude, checksum, endpoint … as a JSON object. "
            "Put credentials into a file: every user of the machine can read arguments.",
        ),
    ] = "",
    config_file: Annotated[
        Path | None, typer.Option(help="A file with such an object; --config overrides it.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Do not wait for the end; print the job's id.")
    ] = False,
) -> None:
    """Let the appliance download a model, and show the progress.

    Interrupting this command does not stop it.
    """
    session = Session.of(ctx)
    request = pb.StartDownloadRequest(
        source=source,
        output_dir=output_dir,
        config={**_read_config(config_file), **parse_config(config, "--config")},
        max_workers=max_workers,
    )
    job = session.client.call(session.client.stub.StartDownload, request).job
    if detach:
        session.show(job, lambda screen: screen.say(job.id))
        return
    _follow(session, job.id)


def _read_config(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        return parse_config(path.read_text(), f"--config-file {path}")
    except (OSError, UnicodeDecodeError) as exc:
        raise CallFailed(f"--config-file {path}: cannot read the file: {exc}.", USAGE) from exc


def parse_config(text: str, option: str) -> dict[str, str]:
    """Return a JSON object of texts, numbers and booleans, its values as texts.

    Raises:
        CallFailed: It is not (wrong usage). The message does not repeat the text, which may hold
            credentials.
    """
    if not text.strip():
        return {}
    try:
        value = jsons.loads(text)
    except jsons.InvalidJson:
        value = None
    if not isinstance(value, dict) or any(isinstance(one, (dict, list)) for one in value.values()):
        raise CallFailed(
            f'{option}: use a JSON object of plain values, such as {{"revision": "main"}}.', USAGE
        )
    return {
        key: jsons.dumps_text(one) if isinstance(one, bool) else str(one)
        for key, one in value.items()
        if one is not None
    }


def _follow(session: Session, job_id: str) -> None:
    """Show a job's progress until it has ended; raise CallFailed unless it is completed."""
    screen, job = session.screen, None
    stream = session.client.stream(session.client.stub.WatchJob, pb.WatchJobRequest(id=job_id))
    with closing(stream) as steps:
        if screen.is_json:
            for step in steps:
                job = step.job
                screen.object(as_object(job), is_one_of_many=True)
        else:
            with screen.progress() as show:
                for step in steps:
                    job = step.job
                    show(*job_progress(job))
    if job is None or (word := enum_word(job, "state")) in ACTIVE:
        raise CallFailed(f"The appliance is shutting down; the download {job_id} has not ended.")
    if word != "completed":
        raise CallFailed(outcome_text(job))
    if not screen.is_json:
        screen.say(outcome_text(job))


def add_to(ctl: typer.Typer) -> None:
    """Add these commands to `appliance ctl`: download, jobs, job VERB."""
    ctl.command("download")(download)
    ctl.command("jobs")(jobs)
    one = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="Show, cancel or watch one download.")
    for name, verb in (("show", show_one), ("cancel", cancel), ("watch", watch)):
        one.command(name)(verb)
    ctl.add_typer(one, name="job")
