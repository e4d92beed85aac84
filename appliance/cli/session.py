"""What every command stands on: the options that all have, the connection, the screen, and failures in one sentence with their exit code."""

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from appliance.cli import show
from appliance.cli.calls import OTHER, CallFailed, ControlClient, ServerAddress, default_address, read_token
from appliance.cli.show import Screen

INTERRUPTED = 130
P = ParamSpec("P")

# Options of all commands; they may stand before or after the command's name.
WITH_VALUE = {"--address", "--tls-ca", "--tls-cert", "--tls-key", "--timeout"}
WITHOUT_VALUE = {"--json"}


class Session:
    """What one run of the command needs: the connection and the screen."""

    def __init__(self, calls: ControlClient, screen: Screen) -> None:
        self.calls = calls
        self.screen = screen

    def show(self, answer: Any, people: Callable[[Screen], None]) -> None:
        """Show an answer as JSON where asked for, else as `people` does."""
        if self.screen.is_json:
            self.screen.object(show.as_object(answer))
        else:
            people(self.screen)


def told(command: Callable[P, None]) -> Callable[P, None]:
    """Turn a failed call into one sentence on stderr and its exit code."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except CallFailed as failure:
            print(f"error: {show.clean(failure.message)}", file=sys.stderr)
            raise typer.Exit(failure.exit_code) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    return run


@told
def options(
    ctx: typer.Context,
    address: Annotated[
        str, typer.Option(help="host:port or unix:/path; else CONTROL_ADDRESS, or 127.0.0.1:50051.")
    ] = "",
    tls_ca: Annotated[
        Path | None, typer.Option(help="CA of the appliance's certificate (PEM); turns TLS on.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Our certificate (PEM), for mutual TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    json: Annotated[
        bool, typer.Option("--json", help="JSON for programs; streams give one object a line.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(min=0.001, help="Seconds to wait for the answer; for streams, until they end."),
    ] = None,
) -> None:
    where = ServerAddress(
        address or default_address(os.environ), read_token(os.environ), tls_ca, tls_cert, tls_key, timeout
    )
    ctx.obj = Session(ctx.with_resource(ControlClient(where)), Screen(is_json=json))


def parted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Give (the options of all commands, all else), wherever they stand; nothing after `--` is touched."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments[:cut])
    for word in words:
        name, equals, _ = word.partition("=")
        if name in WITH_VALUE:
            front += (
                [word] if equals else [word, *[value for value in [next(words, None)] if value is not None]]
            )
        elif word in WITHOUT_VALUE:
            front.append(word)
        else:
            rest.append(word)
    return front, [*rest, *arguments[cut:]]


def run(app: typer.Typer, arguments: list[str], *, prog_name: str) -> int:
    """Run a command line; give the exit code: 0 done, 1 refused, 2 wrong usage, 3 not reached, 4 not allowed."""
    try:
        app(args=arguments, prog_name=prog_name)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else OTHER if end.code else 0
    return 0
