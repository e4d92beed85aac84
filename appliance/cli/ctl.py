"""`appliance ctl`: see and steer a running appliance from a terminal, over its gRPC control API."""

import sys
from contextlib import closing
from typing import Annotated, Any

import typer

from appliance.cli import backends, jobs, lora, models, show
from appliance.cli.calls import OTHER, USAGE, CallFailed
from appliance.cli.session import Session, options, parted, run, told
from appliance.cli.show import Screen

WORKER_PATIENCE_S = 90.0  # a worker may take WORKER_STOP_GRACE_S to end
RELOAD_PATIENCE_S = 30.0

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="See and steer a running appliance. The token comes from CONTROL_TOKEN or CONTROL_TOKEN_FILE.",
)
worker_app = typer.Typer(invoke_without_command=True, help="See, start, stop or restart the worker.")
app.add_typer(worker_app, name="worker")
app.callback()(options)


@app.command()
@told
def status(
    ctx: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on with each change, until the appliance stops.")
    ] = False,
    interval: Annotated[
        float, typer.Option(min=0, help="With --watch: also after so many seconds without a change.")
    ] = 0.0,
) -> None:
    """Show what the appliance is doing."""
    session: Session = ctx.obj
    if not watch:
        answer = session.calls.ask("GetStatus").status
        session.show(answer, lambda screen: screen.pairs(show.status_pairs(answer)))
        return
    request = session.calls.messages.WatchStatusRequest(interval_s=interval)
    with closing(session.calls.stream("WatchStatus", request)) as answers:
        for answer in answers:
            if session.screen.is_json:
                session.screen.object(show.as_object(answer.status), is_one_of_many=True)
            else:
                session.screen.say(show.status_line(answer.status))


@app.command()
@told
def identity(ctx: typer.Context) -> None:
    """Show which machine this is: machine-id, host name, GPUs."""
    session: Session = ctx.obj
    answer = session.calls.ask("GetIdentity")
    session.show(answer, lambda screen: screen.pairs(show.identity_pairs(answer)))


@app.command()
@told
def settings(
    ctx: typer.Context,
    set_only: Annotated[bool, typer.Option("--set-only", help="Only those that are set.")] = False,
) -> None:
    """List the settings in force; secrets are hidden."""
    session: Session = ctx.obj
    answer = session.calls.ask("GetSettings", set_only=set_only)
    rows = [
        [s.room, s.variable, s.value, s.default_value, "yes" if s.is_reloadable else "restart"]
        for s in answer.settings
    ]
    session.show(
        answer, lambda screen: screen.table(["ROOM", "VARIABLE", "VALUE", "DEFAULT", "RELOAD"], rows)
    )


@app.command()
@told
def reload(
    ctx: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would change, and what is wrong.")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Lay a value over the environment (NAME= is the default again). May be repeated. For a "
            "secret set NAME_FILE instead: arguments can be read by everybody on the machine.",
        ),
    ] = None,
) -> None:
    """Read the settings again and put them in place."""
    session: Session = ctx.obj
    answer = session.calls.ask(
        "Reload", patience_s=RELOAD_PATIENCE_S, dry_run=dry_run, overrides=parse_overrides(overrides or [])
    )

    def people(screen: Screen) -> None:
        if answer.changes:
            screen.table(
                ["VARIABLE", "OLD", "NEW", "TAKES EFFECT"],
                [
                    [c.variable, c.old_value, c.new_value, "at the next start" if c.needs_restart else "now"]
                    for c in answer.changes
                ],
            )
        for problem in answer.problems:
            screen.say(
                f"problem: {problem.variable}={problem.value}: allowed: {problem.allowed}. {problem.remedy}"
            )
        screen.say(answer.message)

    session.show(answer, people)
    if answer.problems:
        raise typer.Exit(OTHER)


def parse_overrides(texts: list[str]) -> dict[str, str]:
    """Read NAME=VALUE pairs; raise CallFailed (usage) for one that is none."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise CallFailed(f"--set {name}: write NAME=VALUE.", USAGE)
        found[name] = value
    return found


@app.command()
@told
def drain(ctx: typer.Context) -> None:
    """Take no new requests; running ones go on."""
    _say_state(ctx.obj, "Drain")


@app.command()
@told
def resume(ctx: typer.Context) -> None:
    """Take requests again."""
    _say_state(ctx.obj, "Resume")


def _say_state(session: Session, method: str) -> None:
    answer = session.calls.ask(method).status
    session.show(answer, lambda screen: screen.say(show.status_line(answer)))


@app.command()
@told
def shutdown(
    ctx: typer.Context,
    grace: Annotated[
        float | None,
        typer.Option(min=0, max=3600, help="Seconds for running answers; else SHUTDOWN_GRACE_S."),
    ] = None,
) -> None:
    """End the appliance; a second time hurries it."""
    session: Session = ctx.obj
    answer = session.calls.ask("Shutdown", **({} if grace is None else {"grace_s": grace}))
    session.show(answer, lambda screen: screen.say("stopping"))


@worker_app.callback()
def worker(ctx: typer.Context) -> None:
    """See, start, stop or restart the worker."""
    if ctx.invoked_subcommand is None:
        worker_show(ctx)


@worker_app.command("show")
@told
def worker_show(ctx: typer.Context) -> None:
    """Show what the worker is doing."""
    _show_worker(ctx.obj, "GetWorker")


@worker_app.command("start")
@told
def worker_start(ctx: typer.Context) -> None:
    """Start the worker."""
    _show_worker(ctx.obj, "StartWorker")


@worker_app.command("stop")
@told
def worker_stop(ctx: typer.Context) -> None:
    """End the worker and all its children."""
    _show_worker(ctx.obj, "StopWorker")


@worker_app.command("restart")
@told
def worker_restart(ctx: typer.Context) -> None:
    """Stop the worker, then start it."""
    _show_worker(ctx.obj, "RestartWorker")


def _show_worker(session: Session, method: str) -> None:
    answer = session.calls.ask(method, patience_s=WORKER_PATIENCE_S).worker
    session.show(answer, lambda screen: screen.pairs(show.worker_pairs(answer)))


@app.command()
@told
def logs(
    ctx: typer.Context,
    count: Annotated[
        int,
        typer.Option("--lines", "-n", min=0, max=2000, help="How many of the latest lines to begin with."),
    ] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines.")] = False,
    source: Annotated[
        str, typer.Option(help="Only lines of this source: appliance, worker, worker.stderr …")
    ] = "",
) -> None:
    """Show the latest lines of the log, the worker's too."""
    session: Session = ctx.obj
    request = session.calls.messages.TailLogsRequest(count=count, follow=follow, source=source)
    with closing(session.calls.stream("TailLogs", request)) as lines:
        for line in lines:
            if session.screen.is_json:
                session.screen.object(show.as_object(line), is_one_of_many=True)
            else:
                session.screen.say(f"{line.at.ToDatetime():%H:%M:%S} {line.source}: {line.text}")


@app.command()
@told
def chat(
    ctx: typer.Context,
    text: Annotated[str, typer.Argument(help="What to say; - reads it from standard input.")],
    model: Annotated[str, typer.Option("--model", "-m", help="The model's name; else the default one.")] = "",
    system: Annotated[str, typer.Option(help="What to tell the model first.")] = "",
    is_streamed: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Show the answer as it is made.")
    ] = True,
) -> None:
    """Ask a model; the answer appears as it is made."""
    session: Session = ctx.obj
    said = sys.stdin.read() if text == "-" else text
    messages = [{"role": "system", "content": system}] if system else []
    request = session.calls.messages.ChatRequest(
        model=model, messages=[*messages, {"role": "user", "content": said}], stream=is_streamed
    )
    is_begun = False
    try:
        with closing(session.calls.stream("Chat", request)) as parts:
            for part in parts:
                is_begun = True
                _show_part(session.screen, part)
    except CallFailed:
        if is_begun:
            session.screen.say("")  # the error begins on a line of its own
        raise


def _show_part(screen: Screen, part: Any) -> None:
    from appliance.base import jsons

    kind = part.WhichOneof("part")
    value = getattr(part, kind)
    if screen.is_json:
        screen.object(
            {kind: show.as_object(value) if kind == "receipt" else jsons.loads(value.openai_json)},
            is_one_of_many=True,
        )
    elif kind == "receipt":
        screen.say("")
        if screen.is_terminal:
            print(
                f"[{value.served_model or value.backend}, {value.total_ms:.0f} ms, receipt {value.id}]",
                file=sys.stderr,
            )
    else:
        screen.say(value.text, end="")


@app.command()
@told
def receipt(
    ctx: typer.Context,
    receipt_id: Annotated[str, typer.Argument(metavar="ID", help="The request's id (x-request-id).")],
) -> None:
    """Show what was decided for one request, and why."""
    session: Session = ctx.obj
    answer = session.calls.ask("GetReceipt", id=receipt_id).receipt
    session.show(answer, lambda screen: screen.pairs(show.receipt_pairs(answer)))


@app.command()
@told
def receipts(
    ctx: typer.Context,
    count: Annotated[int, typer.Option("--lines", "-n", min=1, max=1000, help="How many.")] = 20,
) -> None:
    """List the latest requests, newest first."""
    session: Session = ctx.obj
    answer = session.calls.ask("ListReceipts", count=count)
    headers = ["AT", "ID", "ROUTE", "MODEL", "STATUS", "FINISH", "MS", "TOKENS"]
    session.show(answer, lambda screen: screen.table(headers, [show.receipt_row(r) for r in answer.receipts]))


backends.add_to(app)
models.add_to(app)
jobs.add_to(app)
app.add_typer(lora.app, name="lora")


def hoist(arguments: list[str]) -> list[str]:
    """Bring the options of all commands to the front, wherever they stand; nothing after `--` is touched."""
    front, rest = parted(arguments)
    return [*front, *rest]


def main(arguments: list[str]) -> int:
    """Run `appliance ctl` with `arguments`; give the exit code: 0 done, 1 refused, 2 wrong usage, 3 not reached, 4 not allowed."""
    return run(app, hoist(arguments), prog_name="appliance ctl")
