"""The commands about backends: list, add, remove, drain or resume one at run time; how one is chosen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli import messages as pb
from appliance.cli.client import USAGE, CallFailed
from appliance.cli.render.backends import BACKEND_HEADERS, backend_pairs, backend_rows
from appliance.cli.session import CommandGroup, Session, exits_on_failure

backend_app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, help="Show, add, remove, drain or resume one backend."
)


def add_to(app: typer.Typer) -> None:
    """Add these commands to a command line."""
    app.command()(backends)
    app.add_typer(backend_app, name="backend")
    app.command()(strategy)


@exits_on_failure
def backends(
    ctx: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show each change, until interrupted.")
    ] = False,
    interval: Annotated[
        float,
        typer.Option(
            min=0, max=3600, help="With --watch: show them also after so many seconds without a change."
        ),
    ] = 0.0,
) -> None:
    """List the backends."""
    session = Session.of(ctx)
    stub, screen = session.client.stub, session.screen
    if not watch:
        response = session.client.call(stub.ListBackends, pb.ListBackendsRequest())
        rows = backend_rows(response.backends)
        session.show(response, lambda screen: screen.table(BACKEND_HEADERS, rows))
        return

    def write(response: pb.WatchBackendsResponse) -> None:
        screen.table(BACKEND_HEADERS, backend_rows(response.backends))
        screen.say("")

    request = pb.WatchBackendsRequest(interval_s=interval)
    session.show_each(session.client.stream(stub.WatchBackends, request), lambda response: response, write)


@backend_app.command("show")
@exits_on_failure
def backend_show(
    ctx: typer.Context, name: Annotated[str, typer.Argument(help="The backend's name.")]
) -> None:
    """Show all that is known of one backend."""
    session = Session.of(ctx)
    response = session.client.call(session.client.stub.ListBackends, pb.ListBackendsRequest())
    backend = next((backend for backend in response.backends if backend.name == name), None)
    if backend is None:
        raise CallFailed(f"There is no backend {name!r}. `backends` lists them.")
    _show_backend(session, backend)


@backend_app.command("add")
@exits_on_failure
def backend_add(
    ctx: typer.Context,
    url: Annotated[str, typer.Argument(help="The server's address, http(s)://host:port.")],
    name: Annotated[str, typer.Option(help="Its name. Default: host and port.")] = "",
    kind: Annotated[str, typer.Option(help="llamacpp, vllm, sglang or openai. Default: detected.")] = "",
    pool: Annotated[str, typer.Option(help="The pool that it joins. Default: default.")] = "",
    weight: Annotated[float | None, typer.Option(min=0.001, help="Its share of the requests.")] = None,
    cost: Annotated[
        float, typer.Option(min=0, help="Among equally busy backends the cheaper one is chosen.")
    ] = 0.0,
    max_in_flight: Annotated[
        int | None, typer.Option(min=1, help="Maximum of requests at the same time.")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="A model that it serves; may be repeated. Default: detected."),
    ] = None,
    key_file: Annotated[Path | None, typer.Option(help="A file with the server's API key.")] = None,
    key_env: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="The environment variable of this command with the server's API key."
        ),
    ] = "",
    persist: Annotated[bool, typer.Option("--persist", help="Add it again after a restart.")] = False,
) -> None:
    """Add a backend.

    Its key comes from a file or a variable: every user of the machine can read arguments.
    """
    session = Session.of(ctx)
    request = pb.AddBackendRequest(
        url=url,
        name=name,
        kind=kind,
        pool=pool,
        weight=weight,
        cost=cost,
        max_in_flight=max_in_flight,
        models=models or [],
        api_key=read_key(key_file, key_env, os.environ),
        persist=persist,
    )
    _show_backend(session, session.client.call(session.client.stub.AddBackend, request).backend)


def read_key(path: Path | None, variable: str, environ: Mapping[str, str]) -> str:
    """Return the key in a file or a variable; "" where neither is named.

    Raises:
        CallFailed: Both are named, or it cannot be read (wrong usage).
    """
    if path is not None and variable:
        raise CallFailed("--key-file and --key-env cannot be used together.", USAGE)
    if variable:
        if not environ.get(variable):
            raise CallFailed(f"--key-env {variable}: the variable is not set.", USAGE)
        return environ[variable].strip()
    if path is None:
        return ""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise CallFailed(f"--key-file {path}: cannot read the file: {exc}.", USAGE) from None


@backend_app.command("remove")
@exits_on_failure
def backend_remove(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="The backend's name.")],
    persist: Annotated[bool, typer.Option("--persist", help="It stays removed after a restart.")] = False,
) -> None:
    """Remove a backend; its running requests are finished."""
    session = Session.of(ctx)
    request = pb.RemoveBackendRequest(name=name, persist=persist)
    response = session.client.call(session.client.stub.RemoveBackend, request)
    session.show(response, lambda screen: screen.say(f"{name} is removed"))


@backend_app.command("drain")
@exits_on_failure
def backend_drain(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="The backend's name.")],
    persist: Annotated[bool, typer.Option("--persist", help="It stays drained after a restart.")] = False,
) -> None:
    """Send a backend no new requests; its running ones are finished."""
    _drain(Session.of(ctx), pb.DrainBackendRequest(name=name, persist=persist))


@backend_app.command("resume")
@exits_on_failure
def backend_resume(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="The backend's name.")],
    persist: Annotated[bool, typer.Option("--persist", help="It stays resumed after a restart.")] = False,
) -> None:
    """Send a drained backend requests again."""
    _drain(Session.of(ctx), pb.DrainBackendRequest(name=name, persist=persist, resume=True))


def _drain(session: Session, request: pb.DrainBackendRequest) -> None:
    _show_backend(session, session.client.call(session.client.stub.DrainBackend, request).backend)


def _show_backend(session: Session, backend: pb.Backend) -> None:
    session.show(backend, lambda screen: screen.pairs(backend_pairs(backend)))


@exits_on_failure
def strategy(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="least_busy, round_robin, equal_weighted, weighted_round_robin, least_connections, "
            "least_response_time, power_of_two or prefix_affinity."
        ),
    ],
    pool: Annotated[str, typer.Option(help="Only this pool. Default: all pools.")] = "",
    persist: Annotated[bool, typer.Option("--persist", help="It stays in force after a restart.")] = False,
) -> None:
    """Change how backends are chosen; running requests are not affected."""
    session = Session.of(ctx)
    request = pb.SetStrategyRequest(strategy=name, pool=pool, persist=persist)
    response = session.client.call(session.client.stub.SetStrategy, request)
    session.show(response, lambda screen: screen.say(response.strategy))
