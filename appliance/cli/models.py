"""The commands about the models that the appliance runs itself.

`appliance models VERB` and `appliance ctl model VERB` are the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from typing import Annotated

import typer

from appliance.cli import messages as pb
from appliance.cli.client import USAGE, CallFailed
from appliance.cli.render import models as render
from appliance.cli.render.values import as_object
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

EJECT_TIMEOUT_S = 600.0  # running requests are finished first
UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")

Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="The model's name.")]
app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="See and control the models of a running appliance; without a command, list them. "
    "`appliance models check` explains the table of models without an appliance. "
    "The token comes from CONTROL_TOKEN or CONTROL_TOKEN_FILE.",
)
app.callback()(global_options)


@exits_on_failure
def models(
    ctx: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show each change until the appliance stops.")
    ] = False,
    interval: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=3600,
            help="With --watch: show them also after so many seconds without a change; 0 = never. "
            "Default: 1 on a terminal, else 0.",
        ),
    ] = None,
) -> None:
    """List the models, loaded or not."""
    session = Session.of(ctx)
    stub, screen = session.client.stub, session.screen
    if not watch:
        response = session.client.call(stub.ListModels, pb.ListModelsRequest())
        rows = render.model_rows(response)
        session.show(response, lambda screen: screen.table(render.MODEL_HEADERS, rows))
        return
    if interval is None:
        interval = float(screen.is_terminal and not screen.is_json)  # so that EXPIRES counts down
    stream = session.client.stream(stub.WatchModels, pb.WatchModelsRequest(interval_s=interval))
    with closing(stream) as updates:
        if screen.is_json:
            for update in updates:
                screen.object(as_object(update), is_one_of_many=True)
            return
        with screen.refreshing() as write:
            for update in updates:
                write(render.MODEL_HEADERS, render.model_rows(update))


@exits_on_failure
def show_one(ctx: typer.Context, alias: Alias) -> None:
    """Show all that is known of one model."""
    session = Session.of(ctx)
    response = session.client.call(session.client.stub.ListModels, pb.ListModelsRequest())
    models = response.models
    model = next((one for one in models if one.alias == alias), None)
    model = model or next((one for one in models if alias in one.aliases), None)
    if model is None:
        raise CallFailed(f"There is no model {alias!r}. `models` lists them.")
    session.show(model, lambda screen: screen.pairs(render.model_pairs(model)))


@exits_on_failure
def load(
    ctx: typer.Context,
    alias: Alias,
    keep_alive: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="How long it stays loaded without a request: 10m, 1h30m, seconds; 0 = until it is idle, "
            "-1 = for ever. Default: as configured.",
        ),
    ] = "",
) -> None:
    """Load a model and show the progress. Interrupting this command does not stop the load."""
    session = Session.of(ctx)
    screen, model = session.screen, None
    keep_alive_s = parse_keep_alive(keep_alive) if keep_alive else None
    request = pb.LoadModelRequest(alias=alias, keep_alive_s=keep_alive_s)
    with closing(session.client.stream(session.client.stub.LoadModel, request)) as steps:
        if screen.is_json:
            for step in steps:
                screen.object(as_object(step.model), is_one_of_many=True)
            return
        with screen.progress() as show:
            for step in steps:
                model = step.model
                show(*render.load_progress(model))
    if model is not None:
        screen.say(render.loaded_text(model))


def parse_keep_alive(text: str) -> float:
    """Return the seconds of a time as in Ollama: `10m`, `1h30m` or a number of seconds; negative = for ever.

    Raises:
        CallFailed: It is not such a time (wrong usage).
    """
    sign, rest = (-1.0, text[1:]) if text.startswith("-") else (1.0, text)
    if NUMBER.fullmatch(text):
        return float(text)
    if not rest or PART.sub("", rest):
        raise CallFailed(f"--keep-alive {text}: use 10m, 1h30m, a number of seconds, or -1 for ever.", USAGE)
    return sign * sum(float(count) * UNIT_S[unit] for count, unit in PART.findall(rest))


@exits_on_failure
def eject(
    ctx: typer.Context,
    alias: Alias,
    force: Annotated[bool, typer.Option("--force", help="Cut off its running requests.")] = False,
) -> None:
    """Unload a model; its running requests are finished first."""
    session = Session.of(ctx)
    request = pb.EjectModelRequest(alias=alias, force=force)
    response = session.client.call(session.client.stub.EjectModel, request, timeout_s=EJECT_TIMEOUT_S)
    session.show(response, lambda screen: screen.say(render.ejected_text(alias, response, force=force)))


@exits_on_failure
def reset(ctx: typer.Context, alias: Alias) -> None:
    """Forget a model's failures, so that it can be loaded again."""
    session = Session.of(ctx)
    response = session.client.call(session.client.stub.ResetModel, pb.ResetModelRequest(alias=alias))
    session.show(response, lambda screen: screen.say(render.reset_text(alias, response)))


@exits_on_failure
def pin(ctx: typer.Context, alias: Alias) -> None:
    """Never unload a model for another model or for being idle."""
    _pin(Session.of(ctx), alias, pinned=True)


@exits_on_failure
def unpin(ctx: typer.Context, alias: Alias) -> None:
    """Let a pinned model be unloaded again."""
    _pin(Session.of(ctx), alias, pinned=False)


def _pin(session: Session, alias: str, *, pinned: bool) -> None:
    request = pb.PinModelRequest(alias=alias, pinned=pinned)
    response = session.client.call(session.client.stub.PinModel, request)
    word = "pinned" if response.model.is_pinned else "not pinned"
    session.show(response, lambda screen: screen.say(f"{alias} is {word}"))


@exits_on_failure
def queue(
    ctx: typer.Context,
    alias: Annotated[str, typer.Argument(metavar="[ALIAS]", help="Only this model. Default: all.")] = "",
) -> None:
    """Show how many requests wait for which model."""
    session = Session.of(ctx)
    response = session.client.call(session.client.stub.GetQueue, pb.GetQueueRequest(alias=alias))
    rows = render.queue_rows(response.queues)
    session.show(response, lambda screen: screen.table(render.QUEUE_HEADERS, rows))


@exits_on_failure
def vram(ctx: typer.Context) -> None:
    """Show the memory that models are loaded into, and the models in it."""
    session = Session.of(ctx)
    response = session.client.call(session.client.stub.GetVram, pb.GetVramRequest())
    rows = render.device_rows(response.devices)
    session.show(response, lambda screen: screen.table(render.DEVICE_HEADERS, rows))


@exits_on_failure
def logs(
    ctx: typer.Context,
    alias: Alias,
    count: LineCount = 50,
    follow: FollowsLines = False,
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Of one of its llama-servers; 0 = the first one.")
    ] = 0,
) -> None:
    """Show the last lines of the log of a model's llama-server."""
    session = Session.of(ctx)
    request = pb.TailModelLogsRequest(alias=alias, count=count, follow=follow, port=port)

    def write(piece: pb.TailModelLogsResponse) -> None:
        for line in piece.lines:
            session.screen.say(line)

    session.show_each(
        session.client.stream(session.client.stub.TailModelLogs, request), lambda piece: piece, write
    )


Verb = Callable[..., None]
VERBS: dict[str, Verb] = {
    "show": show_one,
    "logs": logs,
    "load": load,
    "eject": eject,
    "reset": reset,
    "pin": pin,
    "unpin": unpin,
}
COMMANDS: dict[str, Verb] = {"list": models, **VERBS, "queue": queue, "vram": vram}
for _name, _verb in COMMANDS.items():
    app.command(_name)(_verb)


def add_to(ctl: typer.Typer) -> None:
    """Add these commands to `appliance ctl`: models, model VERB, queue, vram."""
    ctl.command("models")(models)
    one = typer.Typer(
        cls=CommandGroup,
        no_args_is_help=True,
        help="Show, load, eject, reset, pin or unpin one model; show its log.",
    )
    for name, verb in VERBS.items():
        one.command(name)(verb)
    ctl.add_typer(one, name="model")
    ctl.command("queue")(queue)
    ctl.command("vram")(vram)


def main(arguments: list[str]) -> int:
    """Run `appliance models`; return the exit code (session.run)."""
    front, rest = split_global_options(arguments)
    if not rest or (rest[0].startswith("-") and rest[0] != "--help"):
        rest = ["list", *rest]
    return run(app, [*front, *rest], prog_name="appliance models")
