"""The commands about the models that the appliance runs itself. `appliance ctl model load` and `appliance models load` are one thing in two
spellings, and so are all the others."""

import re
from collections.abc import Callable
from contextlib import closing
from typing import Annotated, Any

import typer

from appliance.cli import show
from appliance.cli import show_models as shown
from appliance.cli.calls import USAGE, CallFailed
from appliance.cli.session import Session, options, parted, run, told
from appliance.cli.show import Screen

EJECT_PATIENCE_S = 600.0  # running requests end first
UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")

Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="The model's name.")]
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="See and steer the models of a running appliance; without a command, list them. `appliance models check` explains "
    "the table of models without an appliance. The token comes from CONTROL_TOKEN or CONTROL_TOKEN_FILE.",
)
app.callback()(options)


@told
def models(
    ctx: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on with each change, until the appliance stops.")
    ] = False,
    interval: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=3600,
            help="With --watch: also after so many seconds without a change; else 1 on a terminal, 0 (never) elsewhere.",
        ),
    ] = None,
) -> None:
    """List the models, loaded or not."""
    session: Session = ctx.obj
    if not watch:
        answer = session.calls.ask("ListModels")
        session.show(answer, lambda screen: screen.table(shown.MODEL_HEADERS, shown.model_rows(answer)))
        return
    screen = session.screen
    every_s = (
        interval if interval is not None else float(screen.is_terminal and not screen.is_json)
    )  # so that EXPIRES counts down
    request = session.calls.messages.WatchModelsRequest(interval_s=every_s)
    with closing(session.calls.stream("WatchModels", request)) as answers:
        if screen.is_json:
            for answer in answers:
                screen.object(show.as_object(answer), is_one_of_many=True)
            return
        with screen.refreshing() as write:
            for answer in answers:
                write(shown.MODEL_HEADERS, shown.model_rows(answer))


@told
def show_one(ctx: typer.Context, alias: Alias) -> None:
    """Show all that is known of one model."""
    session: Session = ctx.obj
    found = [model for model in session.calls.ask("ListModels").models if model.alias == alias]
    if not found:
        raise CallFailed(f"There is no model {alias!r}. `models` lists them.")
    session.show(found[0], lambda screen: screen.pairs(shown.model_pairs(found[0])))


@told
def load(
    ctx: typer.Context,
    alias: Alias,
    keep_alive: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="How long it stays without a request: 10m, 1h30m, seconds; 0 = it goes when idle, -1 = for ever. "
            "Else as configured.",
        ),
    ] = "",
) -> None:
    """Load a model and show how far it is. Interrupting this does not stop the load."""
    session: Session = ctx.obj
    stay = {"keep_alive_s": parse_stay(keep_alive)} if keep_alive else {}
    request = session.calls.messages.LoadModelRequest(alias=alias, **stay)
    with closing(session.calls.stream("LoadModel", request)) as steps:
        if session.screen.is_json:
            for step in steps:
                session.screen.object(show.as_object(step.model), is_one_of_many=True)
            return
        with session.screen.progress() as tell:
            for step in steps:
                tell(*shown.load_step(step.model))
    session.screen.say(shown.loaded_text(step.model))


def parse_stay(text: str) -> float:
    """Read a time as Ollama writes it, `10m`, `1h30m` or a number of seconds, negative for ever; raise CallFailed (usage) for anything else."""
    sign, rest = (-1.0, text[1:]) if text.startswith("-") else (1.0, text)
    if NUMBER.fullmatch(text):
        return float(text)
    if not rest or PART.sub("", rest):
        raise CallFailed(
            f"--keep-alive {text}: write 10m, 1h30m, a number of seconds, or -1 for ever.", USAGE
        )
    return sign * sum(float(count) * UNIT_S[unit] for count, unit in PART.findall(rest))


@told
def eject(
    ctx: typer.Context,
    alias: Alias,
    force: Annotated[
        bool, typer.Option("--force", help="Cut off the requests that it is answering.")
    ] = False,
) -> None:
    """Unload a model; the requests that it is answering end first."""
    session: Session = ctx.obj
    answer = session.calls.ask("EjectModel", patience_s=EJECT_PATIENCE_S, alias=alias, force=force)
    session.show(answer, lambda screen: screen.say(shown.ejected_text(alias, answer, force=force)))


@told
def reset(ctx: typer.Context, alias: Alias) -> None:
    """Forget a model's failures, so that it is tried again."""
    session: Session = ctx.obj
    answer = session.calls.ask("ResetModel", alias=alias)
    session.show(answer, lambda screen: screen.say(shown.reset_text(alias, answer)))


@told
def pin(ctx: typer.Context, alias: Alias) -> None:
    """Never unload a model for others or for being idle."""
    _pin(ctx.obj, alias, pinned=True)


@told
def unpin(ctx: typer.Context, alias: Alias) -> None:
    """Let a pinned model be unloaded again."""
    _pin(ctx.obj, alias, pinned=False)


def _pin(session: Session, alias: str, *, pinned: bool) -> None:
    answer = session.calls.ask("PinModel", alias=alias, pinned=pinned)
    session.show(
        answer,
        lambda screen: screen.say(f"{alias} is {'pinned' if answer.model.is_pinned else 'not pinned'}"),
    )


@told
def queue(
    ctx: typer.Context,
    alias: Annotated[str, typer.Argument(metavar="[ALIAS]", help="Only this model's; else all.")] = "",
) -> None:
    """Show who waits for which model."""
    session: Session = ctx.obj
    answer = session.calls.ask("GetQueue", alias=alias)
    session.show(answer, lambda screen: screen.table(shown.QUEUE_HEADERS, shown.queue_rows(answer.queues)))


@told
def vram(ctx: typer.Context) -> None:
    """Show the memory where models lie, and which models take it."""
    session: Session = ctx.obj
    answer = session.calls.ask("GetVram")
    session.show(answer, lambda screen: _show_devices(screen, answer))


def _show_devices(screen: Screen, answer: Any) -> None:
    screen.table(shown.DEVICE_HEADERS, shown.device_rows(answer.devices))


Verb = Callable[..., None]
VERBS: dict[str, Verb] = {
    "show": show_one,
    "load": load,
    "eject": eject,
    "reset": reset,
    "pin": pin,
    "unpin": unpin,
}
EVERY: dict[str, Verb] = {"list": models, **VERBS, "queue": queue, "vram": vram}
for _name, _verb in EVERY.items():
    app.command(_name)(_verb)


def add_to(ctl: typer.Typer) -> None:
    """Give `appliance ctl` these commands: models, model VERB, queue, vram."""
    ctl.command("models")(models)
    one = typer.Typer(no_args_is_help=True, help="Show, load, eject, reset, pin or unpin one model.")
    for name, verb in VERBS.items():
        one.command(name)(verb)
    ctl.add_typer(one, name="model")
    ctl.command("queue")(queue)
    ctl.command("vram")(vram)


def main(arguments: list[str]) -> int:
    """Run `appliance models` with `arguments`; give the exit code: 0 done, 1 refused, 2 wrong usage, 3 not reached, 4 not allowed."""
    front, rest = parted(arguments)
    if not rest or (rest[0].startswith("-") and rest[0] != "--help"):
        rest = ["list", *rest]
    return run(app, [*front, *rest], prog_name="appliance models")
