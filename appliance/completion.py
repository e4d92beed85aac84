"""Completion in bash, zsh and fish: every verb, sub-command and option.

The scripts and their protocol are typer's. What can be completed comes from the parsers that read the
arguments.
"""

import argparse
import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from shellingham import ShellDetectionFailure, detect_shell
from typer.completion import get_completion_script, install  # type: ignore[attr-defined]

from appliance.cli import ctl, models
from appliance.cli.session import global_options
from appliance.command_lines import VERBS, parser_of
from appliance.download import build_parser as build_download_parser
from appliance.sidecar import build_parser as build_sidecar_parser

PROGRAM = "appliance"
VARIABLE = "_APPLIANCE_COMPLETE"
SHELLS = ("bash", "fish", "zsh")
USAGE_ERROR = 2


def main(arguments: list[str]) -> int:
    """Answer a shell that completes, install the script for it, or print that.

    Args:
        arguments: `--install-completion [SHELL]` or `--show-completion [SHELL]`; anything else is a shell
            that asks (by the variable _APPLIANCE_COMPLETE).

    Returns:
        The exit code.
    """
    if arguments[:1] not in (["--install-completion"], ["--show-completion"]):
        return complete()
    shell = arguments[1] if len(arguments) > 1 else find_shell()
    if shell not in SHELLS or len(arguments) > 2:
        known, given = ", ".join(SHELLS), f"{shell!r} is another one" if shell else "it could not be detected"
        print(f"error: {arguments[0]}: give the shell: {known}; {given}.", file=sys.stderr)
        return USAGE_ERROR
    if arguments[0] == "--show-completion":
        print(get_completion_script(prog_name=PROGRAM, complete_var=VARIABLE, shell=shell))
        return 0
    _, path = install(shell=shell, prog_name=PROGRAM, complete_var=VARIABLE)
    print(f"{path} is written; {shell} completes `{PROGRAM}` from its next start on.")
    return 0


def find_shell() -> str:
    """Return the name of the shell that started this process; "" = it is unknown."""
    try:
        return str(detect_shell()[0])
    except ShellDetectionFailure:
        return ""


def complete() -> int:
    """Print what fits what was typed so far, in the form that the shell reads."""
    try:
        build_app()(args=[], prog_name=PROGRAM)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def build_app() -> typer.Typer:
    """Build the tree of verbs; its commands are only completed, never run."""
    app = typer.Typer(add_completion=True)  # its scripts' protocol with it
    of_models = typer.Typer()
    of_models.callback()(global_options)
    for name, command in models.COMMANDS.items():
        of_models.command(name)(command)
    for name, verb in VERBS.items():
        words = name.split()
        if verb.arguments is not None:
            target = of_models if words[0] == "models" else app
            target.command(words[-1], help=verb.summary)(command_of(parser_of(name)))
    for name, parser in {"download": build_download_parser(), "sidecar": build_sidecar_parser()}.items():
        app.command(name, help=VERBS[name].summary)(command_of(parser))
    app.add_typer(of_models, name="models", help=VERBS["models"].summary)
    app.add_typer(ctl.app, name="ctl", help=VERBS["ctl"].summary)
    return app


def command_of(parser: argparse.ArgumentParser) -> Callable[..., None]:
    """Return a function whose signature, as typer reads it, has the options of a parser."""
    parameters = [
        inspect.Parameter(
            action.dest,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if action.nargs == 0 else "",
            annotation=_annotation(action),
        )
        for action in parser._actions
        if action.dest != "help"
    ]

    def command(**_: Any) -> None:
        """Do nothing."""

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _annotation(action: argparse.Action) -> Any:
    choices = [str(choice) for choice in action.choices or ()]

    def fitting(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    fits = fitting if choices else None
    if not action.option_strings:
        return Annotated[str, typer.Argument(help=action.help, autocompletion=fits)]
    option = typer.Option(*action.option_strings, help=action.help, autocompletion=fits)
    return Annotated[bool if action.nargs == 0 else str, option]
