"""The verbs of the command `appliance`, and the command lines of those that argparse reads."""

import argparse
import difflib
from collections.abc import Callable
from dataclasses import dataclass

EXIT_CODES = (
    "Exit codes: 0 stopped as asked · 1 it failed, or could not start · 2 wrong arguments · "
    "78 wrong settings."
)
SETTINGS = "The settings come from the environment: `appliance settings` lists every variable."


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb.

    Attributes:
        summary: What it does, in one line of the usage.
        arguments: Adds its arguments; None = another module reads them.
        more: What else its help says.
    """

    summary: str
    arguments: Callable[[argparse.ArgumentParser], None] | None = lambda parser: None
    more: str = ""


def _settings(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a JSON array, one object for each variable")
    form.add_argument("--env-example", action="store_true", help="as etc/appliance.env.example")
    form.add_argument("--compose", action="store_true", help="as etc/compose.settings.yaml")
    form.add_argument("--markdown", action="store_true", help="as docs/configuration.md")


def _routes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="as docs/http-api.md")


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        action="store_true",
        help='an object: {"ok": true, "problems": [{"severity": "error" or "warning", "variable": …, '
        '"value": …, "allowed": …, "remedy": …, "text": …}]}',
    )


def _models_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the same for programs")


def _migrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print the SQL; nothing is changed")
    parser.add_argument("--to", type=int, metavar="N", help="the revision; else the newest one")


def _support(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="a new file; else appliance-support-TIME.tar.gz in this folder"
    )


VERBS: dict[str, Verb] = {
    "serve": Verb(
        "serve HTTP and the control API (what the container does)",
        more=f"{SETTINGS} SIGTERM and SIGINT stop it, SIGHUP reads the settings again. {EXIT_CODES}",
    ),
    "check": Verb(
        "read the environment; name every problem with its remedy   [--json]",
        _check,
        "Exit codes: 0 fine, warnings do not count · 2 wrong arguments · 78 the appliance cannot start so.",
    ),
    "prepare": Verb(
        "prepare the machine: machine-id, GPU identity, nvidia-smi, port 14444",
        more=f"The container's start calls it as root. {SETTINGS}",
    ),
    "settings": Verb(
        "every variable: package, default, current value, help   "
        "[--json | --env-example | --compose | --markdown]",
        _settings,
    ),
    "routes": Verb(
        "every address of the HTTP API: method, path, access, errors, what it does   [--markdown]", _routes
    ),
    "models": Verb(
        "the models of a running appliance: list, show, load, eject, pin, queue … (`models --help`)", None
    ),
    "models check": Verb(
        "the command of each model of the table, and what is wrong with it   [--json]",
        _models_check,
        "No model is started. Exit codes: 0 fine · 2 wrong arguments · 78 a model cannot be run.",
    ),
    "models schema": Verb("the JSON schema of the file of CONFIG_PATH (as etc/models.schema.json)"),
    "download": Verb(
        "fetch model files: SOURCE [-o DIR] [-w N] [-c JSON] [--verify] [--repair] [--json]", None
    ),
    "healthcheck": Verb(
        "check that the running appliance is healthy; exit 0 or 1",
        more="It asks the server of PROXY_PORT; where none listens, a sidecar of SIDECAR_PORT (9000).",
    ),
    "sidecar": Verb(
        "serve beside one engine: its metrics, adapters, downloads, health (`sidecar --help`)", None
    ),
    "migrate": Verb(
        "bring the tables of the database of accounts to the newest revision   [--dry-run] [--to N]",
        _migrate,
        f"{SETTINGS} `serve` migrates SQLite itself, and must not run meanwhile. Exit codes: 0 done, or "
        "nothing to do · 1 not done, nothing was changed · 2 wrong arguments · 78 invalid settings.",
    ),
    "support": Verb(
        "write a file for those who help: settings, status, log, metrics; no secrets   [-o FILE]",
        _support,
        "It has settings, status, the last log lines, receipts' heads, metrics, versions and facts about "
        "this machine. Run it with the environment of `serve`. Exit codes: 0 written · 1 not written · "
        "2 wrong arguments.",
    ),
    "ctl": Verb("control a running appliance over its control API (`ctl --help`)", None),
    "version": Verb("print the version"),
}
OPTIONS = {
    "--install-completion [SHELL]": "complete verbs and options in bash, zsh or fish, from its next start on",
    "--show-completion [SHELL]": "print the script for that",
}
USAGE = "\n".join(
    [
        "usage: appliance VERB [ARGUMENT…]",
        "",
        *(f"  {name:13} {verb.summary}" for name, verb in VERBS.items()),
        "",
        *(f"  {name:28}  {text}" for name, text in OPTIONS.items()),
        "",
        "Every verb has --help.",
        "",
    ]
)


def parser_of(name: str) -> argparse.ArgumentParser:
    """Build the parser of a verb of the table that argparse reads here."""
    verb = VERBS[name]
    summary = verb.summary.partition("   [")[0]
    description = f"{summary[0].upper()}{summary[1:]}.\n\n{verb.more}".strip()
    parser = argparse.ArgumentParser(
        f"appliance {name}", description=description, formatter_class=_Formatter, allow_abbrev=False
    )
    assert verb.arguments is not None
    verb.arguments(parser)
    return parser


class _Formatter(argparse.HelpFormatter):
    """Keeps paragraphs apart; argparse's own joins them."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(fill(part, width, indent) for part in text.split("\n\n"))


def describe_unknown(word: str) -> str:
    """Say that there is no such verb, which was probably meant, and what there is."""
    near = difflib.get_close_matches(word, [*VERBS, "help"], 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"appliance: unknown verb {word!r}.{hint}\n\n{USAGE}"
