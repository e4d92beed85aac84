"""What all commands share: global options, connection, screen, exit codes of failures."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer
from typer.core import TyperGroup

from appliance.cli.client import (
    FAILED,
    CallFailed,
    ControlClient,
    ServerAddress,
    default_address,
    read_token,
)
from appliance.cli.render.values import as_object
from appliance.cli.screen import Screen, clean

if TYPE_CHECKING:
    from collections.abc import Generator

    from google.protobuf.message import Message

INTERRUPTED = 130
P = ParamSpec("P")
Item = TypeVar("Item")

# Options of commands that show a log.
LineCount = Annotated[
    int, typer.Option("--lines", "-n", min=0, max=2000, help="How many of the latest lines to show.")
]
FollowsLines = Annotated[bool, typer.Option("--follow", "-f", help="Show new lines as they are written.")]

# Global options; they may stand before or after the command's name.
WITH_VALUE = {"--address", "--tls-ca", "--tls-cert", "--tls-key", "--timeout"}
WITHOUT_VALUE = {"--json"}


class CommandGroup(TyperGroup):
    """A group of commands that names those there are where one is unknown."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the arguments begin with."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            known = self.list_commands(ctx)
            near = difflib.get_close_matches(args[0], known, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"There is no command {args[0]!r}.{hint} There is: {', '.join(known)}.")
        return super().resolve_command(ctx, args)


class Session:
    """What one run of a command needs: the connection and the screen."""

    def __init__(self, client: ControlClient, screen: Screen) -> None:
        self.client = client
        self.screen = screen

    @classmethod
    def of(cls, ctx: typer.Context) -> Session:
        """Return the session of a command."""
        session: Session = ctx.obj
        return session

    def show(self, message: Message, write: Callable[[Screen], None]) -> None:
        """Show a message as JSON where asked for, else as `write` does."""
        if self.screen.is_json:
            self.screen.object(as_object(message))
        else:
            write(self.screen)

    def show_each(
        self,
        items: Generator[Item, None, None],
        message: Callable[[Item], Message],
        write: Callable[[Item], None],
    ) -> None:
        """Show each item of a stream: as one line of JSON where asked for, else as `write` does."""
        with closing(items):
            for item in items:
                if self.screen.is_json:
                    self.screen.object(as_object(message(item)), is_one_of_many=True)
                else:
                    write(item)


def exits_on_failure(command: Callable[P, None]) -> Callable[P, None]:
    """Turn a failed call into one sentence on stderr and its exit code."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except CallFailed as failure:
            print(f"error: {clean(failure.message)}", file=sys.stderr)
            raise typer.Exit(failure.exit_code) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    return run


@exits_on_failure
def global_options(
    ctx: typer.Context,
    address: Annotated[
        str, typer.Option(help="host:port or unix:/path. Default: CONTROL_ADDRESS, or 127.0.0.1:50051.")
    ] = "",
    tls_ca: Annotated[
        Path | None, typer.Option(help="CA of the appliance's certificate (PEM). Switches TLS on.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Client certificate (PEM), for mutual TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key of the client certificate (PEM).")] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Write JSON; streams write one object per line.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(min=0.001, help="Longest wait for the response in seconds; for streams, for their end."),
    ] = None,
) -> None:
    """Read the global options and make the session."""
    server = ServerAddress(
        address or default_address(os.environ), read_token(os.environ), tls_ca, tls_cert, tls_key, timeout
    )
    ctx.obj = Session(ctx.with_resource(ControlClient(server)), Screen(is_json=json))


def split_global_options(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return (the global options, all other arguments); what follows `--` is left as it is."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments[:cut])
    for word in words:
        name, equals, _ = word.partition("=")
        if name in WITH_VALUE:
            front.append(word)
            if not equals and (value := next(words, None)) is not None:
                front.append(value)
        elif word in WITHOUT_VALUE:
            front.append(word)
        else:
            rest.append(word)
    return front, [*rest, *arguments[cut:]]


def run(app: typer.Typer, arguments: Iterable[str], *, prog_name: str) -> int:
    """Run a command line.

    Returns:
        The exit code: 0 done, 1 refused, 2 wrong usage, 3 not reachable, 4 not allowed.
    """
    try:
        app(args=list(arguments), prog_name=prog_name)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else FAILED if end.code else 0
    return 0
