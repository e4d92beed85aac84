"""The commands about backends: who can answer requests, added, drained and removed at run time, and how one is chosen."""

import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.cli import show
from appliance.cli.calls import USAGE, CallFailed
from appliance.cli.session import Session, told
from appliance.cli.show import Screen

backend_app = typer.Typer(no_args_is_help=True, help="Show, add, remove, drain or resume one backend.")


def add_to(app: typer.Typer) -> None:
    """Give a command line these commands."""
    app.command()(backends)
    app.add_typer(backend_app, name="backend")
    app.command()(strategy)


@told
def backends(
    ctx: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on with each change, until interrupted.")
    ] = False,
    interval: Annotated[
        float,
        typer.Option(min=0, max=3600, help="With --watch: also after so many seconds without a change."),
    ] = 0.0,
) -> None:
    """List who can answer requests."""
    session: Session = ctx.obj
    if not watch:
        answer = session.calls.ask("ListBackends")
        session.show(answer, lambda screen: _show_backends(screen, answer))
        return
    request = session.calls.messages.WatchBackendsRequest(interval_s=interval)
    with closing(session.calls.stream("WatchBackends", request)) as answers:
        for answer in answers:
            if session.screen.is_json:
                session.screen.object(show.as_object(answer), is_one_of_many=True)
            else:
                _show_backends(session.screen, answer)
                session.screen.say("")


def _show_backends(screen: Screen, answer: Any) -> None:
    screen.table(
        ["NAME", "KIND", "STATE", "IN FLIGHT", "MODELS", "ENDPOINT", "NOTE"],
        show.backend_rows(answer.backends),
    )


@backend_app.command("show")
@told
def backend_show(ctx: typer.Context, name: Annotated[str, typer.Argument(help="Its name.")]) -> None:
    """Show all that is known of one backend."""
    session: Session = ctx.obj
    found = [backend for backend in session.calls.ask("ListBackends").backends if backend.name == name]
    if not found:
        raise CallFailed(f"There is no backend {name!r}. `backends` lists them.")
    session.show(found[0], lambda screen: screen.pairs(show.backend_pairs(found[0])))


@backend_app.command("add")
@told
def backend_add(
    ctx: typer.Context,
    url: Annotated[str, typer.Argument(help="Its address, http(s)://host:port.")],
    name: Annotated[str, typer.Option(help="Its name; else host and port.")] = "",
    kind: Annotated[str, typer.Option(help="llamacpp, vllm, sglang or openai; else it is asked.")] = "",
    pool: Annotated[str, typer.Option(help="The pool that it joins; else default.")] = "",
    weight: Annotated[float | None, typer.Option(min=0.001, help="Its share.")] = None,
    cost: Annotated[float, typer.Option(min=0, help="Of equally busy ones the cheaper is taken.")] = 0.0,
    max_in_flight: Annotated[int | None, typer.Option(min=1, help="Most requests at a time.")] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="A model that it serves; may be repeated. Else it is asked."),
    ] = None,
    key_file: Annotated[Path | None, typer.Option(help="A file with the key that it wants.")] = None,
    key_env: Annotated[
        str,
        typer.Option(metavar="NAME", help="The variable of this command's environment that holds the key."),
    ] = "",
    persist: Annotated[bool, typer.Option("--persist", help="It is there after a restart, too.")] = False,
) -> None:
    """Add a backend. Its key comes from a file or a variable: arguments can be read by everybody on the machine."""
    session: Session = ctx.obj
    fields: dict[str, Any] = {
        "url": url,
        "name": name,
        "kind": kind,
        "pool": pool,
        "cost": cost,
        "models": models or [],
        "persist": persist,
        "api_key": read_key(key_file, key_env, os.environ),
    }
    if weight is not None:
        fields["weight"] = weight
    if max_in_flight is not None:
        fields["max_in_flight"] = max_in_flight
    answer = session.calls.ask("AddBackend", **fields).backend
    session.show(answer, lambda screen: screen.pairs(show.backend_pairs(answer)))


def read_key(path: Path | None, variable: str, environ: Mapping[str, str]) -> str:
    """Give the key that a file or a variable holds, or "" where neither is named; raise CallFailed (usage) where it is not there."""
    if path is not None and variable:
        raise CallFailed("--key-file and --key-env exclude each other.", USAGE)
    if variable:
        if not environ.get(variable):
            raise CallFailed(f"--key-env {variable}: this variable is not set.", USAGE)
        return environ[variable].strip()
    if path is None:
        return ""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise CallFailed(f"--key-file {path}: it cannot be read ({exc}).", USAGE) from None


@backend_app.command("remove")
@told
def backend_remove(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Its name.")],
    persist: Annotated[bool, typer.Option("--persist", help="It stays out after a restart, too.")] = False,
) -> None:
    """Take a backend out; what it is answering goes on."""
    session: Session = ctx.obj
    answer = session.calls.ask("RemoveBackend", name=name, persist=persist)
    session.show(answer, lambda screen: screen.say(f"{name} is removed"))


@backend_app.command("drain")
@told
def backend_drain(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Its name.")],
    persist: Annotated[bool, typer.Option("--persist", help="It stays so after a restart.")] = False,
) -> None:
    """Give a backend no new requests; what it is answering goes on."""
    _show_drained(ctx.obj, name=name, persist=persist)


@backend_app.command("resume")
@told
def backend_resume(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Its name.")],
    persist: Annotated[bool, typer.Option("--persist", help="It stays so after a restart.")] = False,
) -> None:
    """Give a drained backend requests again."""
    _show_drained(ctx.obj, name=name, persist=persist, resume=True)


def _show_drained(session: Session, **fields: Any) -> None:
    answer = session.calls.ask("DrainBackend", **fields).backend
    session.show(answer, lambda screen: screen.pairs(show.backend_pairs(answer)))


@told
def strategy(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="least_busy, round_robin, equal_weighted, weighted_round_robin, least_connections, "
            "least_response_time, power_of_two or prefix_affinity."
        ),
    ],
    pool: Annotated[str, typer.Option(help="Only this pool's; else all pools'.")] = "",
    persist: Annotated[bool, typer.Option("--persist", help="It stays so after a restart.")] = False,
) -> None:
    """Switch how backends are chosen; running requests go on."""
    session: Session = ctx.obj
    answer = session.calls.ask("SetStrategy", strategy=name, pool=pool, persist=persist)
    session.show(answer, lambda screen: screen.say(answer.strategy))
