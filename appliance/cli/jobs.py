"""The commands about downloads of a running appliance: `ctl download`, `ctl jobs`, `ctl job show|cancel|watch`."""

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.base import jsons
from appliance.cli import show
from appliance.cli import show_jobs as shown
from appliance.cli.calls import USAGE, CallFailed
from appliance.cli.session import Session, told

CANCEL_PATIENCE_S = 30.0
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id (`jobs` lists them).")]


@told
def jobs(ctx: typer.Context) -> None:
    """List the downloads, newest first."""
    session: Session = ctx.obj
    answer = session.calls.ask("ListJobs")
    session.show(answer, lambda screen: screen.table(shown.JOB_HEADERS, shown.job_rows(answer.jobs)))


@told
def show_one(ctx: typer.Context, job_id: JobId) -> None:
    """Show all that is known of one download."""
    session: Session = ctx.obj
    job = session.calls.ask("GetJob", id=job_id).job
    session.show(job, lambda screen: screen.pairs(shown.job_pairs(job)))


@told
def cancel(ctx: typer.Context, job_id: JobId) -> None:
    """End a download; what was fetched stays, and a later one goes on from it."""
    session: Session = ctx.obj
    job = session.calls.ask("CancelJob", patience_s=CANCEL_PATIENCE_S, id=job_id).job
    session.show(job, lambda screen: screen.say(shown.job_ended(job)))


@told
def watch(ctx: typer.Context, job_id: JobId) -> None:
    """Follow a download until it has ended. Interrupting this does not stop it."""
    _follow(ctx.obj, job_id)


@told
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
            help="Folder on the appliance, below those that it allows; else one in "
            "DOWNLOAD_DIR by the source's name.",
        ),
    ] = "",
    max_workers: Annotated[
        int | None,
        typer.Option(
            "--max-workers", "-w", min=1, max=64, help="Files, and parts of files, at a time; else 8."
        ),
    ] = None,
    config: Annotated[
        str,
        typer.Option(
            "--config",
            "-c",
            metavar="JSON",
            help="revision, include, exclude, checksum, endpoint … as a JSON object. "
            "Put credentials into a file: arguments can be read by everybody on the machine.",
        ),
    ] = "",
    config_file: Annotated[
        Path | None, typer.Option(help="A file with such an object; --config is laid over it.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Do not wait for its end; say its job.")
    ] = False,
) -> None:
    """Let the appliance download a model, and show how far it is. Interrupting this does not stop the download."""
    session: Session = ctx.obj
    wanted = {**(_read(config_file) if config_file else {}), **parse_config(config, "--config")}
    fields: dict[str, Any] = {"source": source, "output_dir": output_dir, "config": wanted}
    job = session.calls.ask(
        "StartDownload", **fields, **({} if max_workers is None else {"max_workers": max_workers})
    ).job
    if detach:
        session.show(job, lambda screen: screen.say(job.id))
        return
    _follow(session, job.id)


def _read(path: Path) -> dict[str, str]:
    try:
        return parse_config(path.read_text(), f"--config-file {path}")
    except (OSError, UnicodeDecodeError) as exc:
        raise CallFailed(f"--config-file {path} cannot be read: {exc}.", USAGE) from exc


def parse_config(text: str, option: str) -> dict[str, str]:
    """Read a JSON object of texts, numbers and truth values; raise CallFailed (usage), which does not repeat it."""
    if not text.strip():
        return {}
    try:
        value = jsons.loads(text)
    except jsons.InvalidJson:
        value = None
    if not isinstance(value, dict) or any(isinstance(one, (dict, list)) for one in value.values()):
        raise CallFailed(
            f'{option}: write a JSON object of plain values, such as {{"revision": "main"}}.', USAGE
        )
    return {
        key: jsons.dumps_text(one) if isinstance(one, bool) else str(one)
        for key, one in value.items()
        if one is not None
    }


def _follow(session: Session, job_id: str) -> None:
    """Show a job until it has ended; raise CallFailed where it came to nothing."""
    screen, job = session.screen, None
    with closing(
        session.calls.stream("WatchJob", session.calls.messages.WatchJobRequest(id=job_id))
    ) as steps:
        if screen.is_json:
            for step in steps:
                job = step.job
                screen.object(show.as_object(job), is_one_of_many=True)
        else:
            with screen.progress() as tell:
                for step in steps:
                    job = step.job
                    tell(*shown.job_step(job))
    word = show.word_of(job, "state") if job is not None else "queued"
    if word in shown.GOING:
        raise CallFailed(f"The appliance stops; the download {job_id} is not over yet.")
    if word != "completed":
        raise CallFailed(shown.job_ended(job))
    if not screen.is_json:
        screen.say(shown.job_ended(job))


def add_to(ctl: typer.Typer) -> None:
    """Give `appliance ctl` these commands: download, jobs, job VERB."""
    ctl.command("download")(download)
    ctl.command("jobs")(jobs)
    one = typer.Typer(no_args_is_help=True, help="Show, cancel or watch one download.")
    for name, verb in (("show", show_one), ("cancel", cancel), ("watch", watch)):
        one.command(name)(verb)
    ctl.add_typer(one, name="job")
