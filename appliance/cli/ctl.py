"""`appliance ctl`: see and control a running appliance from a terminal, over its gRPC control API."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Annotated

import typer

from appliance.base import jsons
from appliance.cli import backends, jobs, lora, models, receipts
from appliance.cli import messages as pb
from appliance.cli.client import FAILED, USAGE, CallFailed
from appliance.cli.render.logs import log_style
from appliance.cli.render.status import identity_pairs, status_line, status_pairs, worker_pairs
from appliance.cli.render.values import as_object
from appliance.cli.screen import Screen
from appliance.cli.session import (
    CommandGroup,
    FollowsLines,
    LineCount,
    Session,
    exits_on_failure,
    global_options,
    run,
    split_global_options,
)

WORKER_TIMEOUT_S = 90.0  # a worker gets WORKER_STOP_GRACE_S to stop
RELOAD_TIMEOUT_S = 30.0

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="See and control a running appliance. The token comes from CONTROL_TOKEN or CONTROL_TOKEN_FILE.",
)
worker_app = typer.Typer(
    cls=CommandGroup, invoke_without_command=True, help="Show, start, stop or restart the worker."
)
app.add_typer(worker_app, name="worker")
app.callback()(global_options)


@app.command()
@exits_on_failure
def status(
    ctx: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show each change until the appliance stops.")
    ] = False,
    interval: Annotated[
        float, typer.Option(min=0, help="With --watch: show it also after so many seconds without a change.")
    ] = 0.0,
) -> None:
    """Show what the appliance is doing."""
    session = Session.of(ctx)
    stub = session.client.stub
    if not watch:
        status = session.client.call(stub.GetStatus, pb.GetStatusRequest()).status
        session.show(status, lambda screen: screen.pairs(status_pairs(status)))
        return
    session.show_each(
        session.client.stream(stub.WatchStatus, pb.WatchStatusRequest(interval_s=interval)),
        lambda response: response.status,
        lambda response: session.screen.say(status_line(response.status)),
    )


@app.command()
@exits_on_failure
def identity(ctx: typer.Context) -> None:
    """Show which machine this is: machine-id, host name, GPUs."""
    session = Session.of(ctx)
    response = session.client.call(session.client.stub.GetIdentity, pb.GetIdentityRequest())
    session.show(response, lambda screen: screen.pairs(identity_pairs(response)))


@app.command()
@exits_on_failure
def settings(
    ctx: typer.Context,
    set_only: Annotated[bool, typer.Option("--set-only", help="Only those that are set.")] = False,
) -> None:
    """List the settings in force; secrets are hidden."""
    session = Session.of(ctx)
    response = session.client.call(session.client.stub.GetSettings, pb.GetSettingsRequest(set_only=set_only))
    headers = ["PACKAGE", "VARIABLE", "VALUE", "DEFAULT", "RELOAD"]
    rows = [
        [s.room, s.variable, s.value, s.default_value, "yes" if s.is_reloadable else "restart"]
        for s in response.settings
    ]
    session.show(response, lambda screen: screen.table(headers, rows))


@app.command()
@exits_on_failure
def reload(
    ctx: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would change, and what is invalid.")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Override the environment (NAME= is the default again). May be repeated. For a secret set "
            "NAME_FILE instead: every user of the machine can read arguments.",
        ),
    ] = None,
) -> None:
    """Read the settings again and apply them."""
    session = Session.of(ctx)
    response = session.client.call(
        session.client.stub.Reload,
        pb.ReloadRequest(dry_run=dry_run, overrides=parse_overrides(overrides or [])),
        timeout_s=RELOAD_TIMEOUT_S,
    )
    session.show(response, lambda screen: _write_reload(screen, response))
    if response.problems:
        raise typer.Exit(FAILED)


def _write_reload(screen: Screen, response: pb.ReloadResponse) -> None:
    if response.changes:
        rows = [
            [c.variable, c.old_value, c.new_value, "at the next start" if c.needs_restart else "now"]
            for c in response.changes
        ]
        screen.table(["VARIABLE", "OLD", "NEW", "TAKES EFFECT"], rows)
    for p in response.problems:
        allowed = f"allowed: {p.allowed}. " if p.allowed else ""
        screen.say(f"problem: {p.variable}={p.value}: {allowed}{p.remedy}")
    screen.say(response.message)


def parse_overrides(texts: list[str]) -> dict[str, str]:
    """Return NAME=VALUE pairs as a dictionary.

    Raises:
        CallFailed: One is not such a pair (wrong usage).
    """
    overrides = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise CallFailed(f"--set {name}: use NAME=VALUE.", USAGE)
        overrides[name] = value
    return overrides


@app.command()
@exits_on_failure
def drain(ctx: typer.Context) -> None:
    """Take no new requests; running ones are finished."""
    session = Session.of(ctx)
    status = session.client.call(session.client.stub.Drain, pb.DrainRequest()).status
    session.show(status, lambda screen: screen.say(status_line(status)))


@app.command()
@exits_on_failure
def resume(ctx: typer.Context) -> None:
    """Take requests again."""
    session = Session.of(ctx)
    status = session.client.call(session.client.stub.Resume, pb.ResumeRequest()).status
    session.show(status, lambda screen: screen.say(status_line(status)))


@app.command()
@exits_on_failure
def shutdown(
    ctx: typer.Context,
    grace: Annotated[
        float | None,
        typer.Option(min=0, max=3600, help="Seconds for running requests. Default: SHUTDOWN_GRACE_S."),
    ] = None,
) -> None:
    """Stop the appliance; a second call ends the grace period."""
    session = Session.of(ctx)
    response = session.client.call(session.client.stub.Shutdown, pb.ShutdownRequest(grace_s=grace))
    session.show(response, lambda screen: screen.say("stopping"))


@worker_app.callback()
def worker(ctx: typer.Context) -> None:
    """Show, start, stop or restart the worker."""
    if ctx.invoked_subcommand is None:
        worker_show(ctx)


@worker_app.command("show")
@exits_on_failure
def worker_show(ctx: typer.Context) -> None:
    """Show what the worker is doing."""
    session = Session.of(ctx)
    response = session.client.call(session.client.stub.GetWorker, pb.GetWorkerRequest())
    _show_worker(session, response.worker)


@worker_app.command("start")
@exits_on_failure
def worker_start(ctx: typer.Context) -> None:
    """Start the worker."""
    session = Session.of(ctx)
    stub, request = session.client.stub, pb.StartWorkerRequest()
    response = session.client.call(stub.StartWorker, request, timeout_s=WORKER_TIMEOUT_S)
    _show_worker(session, response.worker)


@worker_app.command("stop")
@exits_on_failure
def worker_stop(ctx: typer.Context) -> None:
    """Stop the worker and all its children."""
    session = Session.of(ctx)
    stub, request = session.client.stub, pb.StopWorkerRequest()
    response = session.client.call(stub.StopWorker, request, timeout_s=WORKER_TIMEOUT_S)
    _show_worker(session, response.worker)


@worker_app.command("restart")
@exits_on_failure
def worker_restart(ctx: typer.Context) -> None:
    """Stop the worker, then start it."""
    session = Session.of(ctx)
    stub, request = session.client.stub, pb.RestartWorkerRequest()
    response = session.client.call(stub.RestartWorker, request, timeout_s=WORKER_TIMEOUT_S)
    _show_worker(session, response.worker)


def _show_worker(session: Session, worker: pb.Worker) -> None:
    session.show(worker, lambda screen: screen.pairs(worker_pairs(worker)))


@app.command()
@exits_on_failure
def logs(
    ctx: typer.Context,
    count: LineCount = 50,
    follow: FollowsLines = False,
    source: Annotated[
        str, typer.Option(help="Only lines of this source: appliance, worker, worker.stderr …")
    ] = "",
) -> None:
    """Show the latest lines of the log, the worker's included."""
    session = Session.of(ctx)
    request = pb.TailLogsRequest(count=count, follow=follow, source=source)
    session.show_each(
        session.client.stream(session.client.stub.TailLogs, request),
        lambda line: line,
        lambda line: session.screen.log_line(
            f"{line.at.ToDatetime():%H:%M:%S} {line.source}:", line.text, log_style(line.text)
        ),
    )


@app.command()
@exits_on_failure
def chat(
    ctx: typer.Context,
    text: Annotated[str, typer.Argument(help="The message; - reads it from standard input.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="The model's name. Default: the default model.")
    ] = "",
    system: Annotated[str, typer.Option(help="The system message.")] = "",
    is_streamed: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Show the reply while it is generated.")
    ] = True,
) -> None:
    """Ask a model; the reply is shown while it is generated."""
    session = Session.of(ctx)
    prompt = sys.stdin.read() if text == "-" else text
    messages = [pb.ChatMessage(role="system", content=system)] if system else []
    messages.append(pb.ChatMessage(role="user", content=prompt))
    form = pb.REPLY_FORM_JSON if session.screen.is_json else pb.REPLY_FORM_FIELDS
    request = pb.ChatRequest(model=model, messages=messages, stream=is_streamed, form=form)
    is_begun = False
    try:
        with closing(session.client.stream(session.client.stub.Chat, request)) as parts:
            for part in parts:
                is_begun = True
                _write_part(session.screen, part)
    except CallFailed:
        if is_begun:
            session.screen.say("")  # the error starts on a line of its own
        raise


def _write_part(screen: Screen, part: pb.ChatResponse) -> None:
    """Write one message of a chat.

    1. the receipt, as JSON
    2. a delta or the reply, as JSON: the upstream's object
    3. the receipt, for people: a line on stderr, on a terminal only
    4. text
    """
    if part.HasField("receipt"):
        receipt = part.receipt
        if screen.is_json:  # 1
            screen.object({"receipt": as_object(receipt)}, is_one_of_many=True)
            return
        screen.say("")  # 3
        if screen.is_terminal:
            server = receipt.served_model or receipt.backend
            print(f"[{server}, {receipt.total_ms:.0f} ms, receipt {receipt.id}]", file=sys.stderr)
        return
    kind, value = ("delta", part.delta) if part.HasField("delta") else ("reply", part.reply)
    if screen.is_json:  # 2
        screen.object({kind: jsons.loads(value.openai_json)}, is_one_of_many=True)
    else:
        screen.say(value.text, end="")  # 4


receipts.add_to(app)
backends.add_to(app)
models.add_to(app)
jobs.add_to(app)
app.add_typer(lora.app, name="lora")


def move_global_options(arguments: list[str]) -> list[str]:
    """Return the arguments with the global options first; nothing after `--` is moved."""
    front, rest = split_global_options(arguments)
    return [*front, *rest]


def main(arguments: list[str]) -> int:
    """Run `appliance ctl`; return the exit code (session.run)."""
    return run(app, move_global_options(arguments), prog_name="appliance ctl")
