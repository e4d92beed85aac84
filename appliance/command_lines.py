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


def _simulate(parser: argparse.ArgumentParser) -> None:
    for name, service in SIMULATED.items():
        text = f"the stand-in for {service} on this port; 0 = any free one"
        parser.add_argument(f"--{name}", type=int, nargs="?", const=0, metavar="PORT", help=text)
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address (127.0.0.1)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON: urls, ports, environ")
    parser.add_argument(
        "--speed",
        type=float,
        default=1.0,
        metavar="X",
        help="its clock runs X times as fast (1); 0 = it stands",
    )
    parser.add_argument(
        "--start-s", type=float, default=30.0, metavar="S", help="seconds until an instance runs (30)"
    )
    parser.add_argument("--credit", default="100", metavar="DOLLARS", help="at each market (100)")
    parser.add_argument(
        "--offers", type=int, default=64, metavar="N", help="offers of vast.ai, 1 to 2000 (64)"
    )
    parser.add_argument(
        "--stripe-webhook",
        default="",
        metavar="URL",
        help="where Stripe's events go, an address of this machine",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of offers and chances (0)")


SIMULATED = {
    "vast": "vast.ai",
    "ionet": "io.net",
    "novita": "Novita's API",
    "stripe": "Stripe",
    "chain": "nodes of Ethereum and Polygon",
}

# Verb → command → (what it does, its words; one with ? may be left out). `admin/verbs.py` runs them.
ACCOUNT_COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "users": {
        "list": ("all users, the newest first; those with PART in e-mail address or name", "part?"),
        "create": ("make a user; its password is asked for, or read from standard input", "email name"),
        "admin": ("make an administrator of a user", "email"),
        "no-admin": ("take that away", "email"),
        "activate": ("let a user call again", "email"),
        "deactivate": ("refuse a user's calls, and end its sessions", "email"),
        "password": ("set a user's password, as for create; its sessions end", "email"),
        "plan": ("set the name of a user's plan, or none", "email plan?"),
        "limits": ("set a user's limits; without options, show them", "email"),
        "delete": ("delete a user for good, its keys and sessions; the ledger keeps its id", "email"),
        "usage": ("quotas, credits, what was used by model", "email"),
        "sessions": ("a user's sessions", "email"),
        "logout": ("end one of a user's sessions, or all", "email session?"),
    },
    "keys": {
        "list": ("a user's API keys", "email"),
        "create": ("make an API key; it is shown this once", "email name"),
        "revoke": ("revoke an API key, by its prefix or id", "email key"),
    },
    "credits": {
        "show": ("a user's credits", "email"),
        "grant": (
            "add credits that stay, or take some away: -5 before which -- stands",
            "email dollars note?",
        ),
        "spending": ("what a user has spent in each window of time", "email"),
        "reset": ("let a window of a user's spending begin anew, or all", "email window?"),
    },
    "prices": {
        "list": ("the prices in force", ""),
        "check": ("what is wrong with a file of prices", "file"),
        "schema": ("the JSON schema of such a file, for editors (as etc/prices.schema.json)", ""),
        "set": ("take a file's prices as new versions, where they differ", "file"),
    },
    "admin": {
        "audit": ("compute every wallet anew from the ledger; exit 1 on a difference", ""),
        "stats": ("how much there is of everything", ""),
    },
}
USER_LIMITS = {  # of a user: flag → what it limits
    "rpm": "requests in a minute",
    "rpd": "requests in a day",
    "tpm": "tokens in a minute",
    "tpd": "tokens in a day",
    "concurrency": "requests at the same time",
}
ACCOUNTS_TEXT = (
    "It works on the database of accounts itself, with the environment of `serve`, and ACCOUNTS=1; where a "
    "running appliance holds SQLite's file, or --address or CONTROL_ADDRESS is given, over its control API. "
    "More: docs/accounts.md. Exit codes: 0 done · 1 refused · 2 wrong arguments · 3 not reachable · "
    "78 invalid settings."
)


def _account_arguments(verb: str) -> Callable[[argparse.ArgumentParser], None]:
    """Return what adds the commands of a verb about accounts."""

    def add(parser: argparse.ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
        for name, (summary, words) in ACCOUNT_COMMANDS[verb].items():
            one = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
            for word in words.split():
                needed = not word.endswith("?")
                one.add_argument(word.rstrip("?"), nargs=None if needed else "?", default="")
            one.add_argument("--json", action="store_true", help="print JSON")
            one.add_argument(
                "--address", default="", metavar="HOST:PORT", help="use this appliance's control API"
            )
            _add_account_options(f"{verb} {name}", one)

    return add


def _add_account_options(command: str, parser: argparse.ArgumentParser) -> None:
    """Add what a single command has."""
    if command == "users create":
        parser.add_argument("--admin", action="store_true", help="as an administrator")
    elif command == "users limits":
        for name, words in USER_LIMITS.items():
            parser.add_argument(f"--{name}", metavar="N", default="", help=f"{words}; none ends it")
    elif command == "users delete":
        parser.add_argument("--yes", action="store_true", help="needed, since it cannot be undone")
    elif command == "keys create":
        parser.add_argument(
            "--scope",
            action="append",
            help="inference, market, billing, proxy or admin; may be repeated; else all but admin",
        )
        parser.add_argument(
            "--model",
            action="append",
            help="a model that it may use, name* = all that begin so; may be repeated; else every one",
        )
        parser.add_argument("--stay-local", action="store_true", help="answered by own backends only")
        parser.add_argument("--expires", metavar="TIME", default="", help="2030-01-31T00:00:00Z; else never")
    elif command == "credits grant":
        parser.add_argument("--ref", default="", help="the grant's own name: given again, nothing is added")


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
    "users": Verb(
        "the users of accounts: list, create, admin, deactivate … (`users --help`)",
        _account_arguments("users"),
        ACCOUNTS_TEXT,
    ),
    "keys": Verb("their API keys: list, create, revoke", _account_arguments("keys"), ACCOUNTS_TEXT),
    "credits": Verb(
        "their credits and spending: show, grant, spending, reset",
        _account_arguments("credits"),
        ACCOUNTS_TEXT,
    ),
    "prices": Verb(
        "the prices of models: list, check, set, schema", _account_arguments("prices"), ACCOUNTS_TEXT
    ),
    "admin": Verb("the money of all accounts: audit, stats", _account_arguments("admin"), ACCOUNTS_TEXT),
    "support": Verb(
        "write a file for those who help: settings, status, log, metrics; no secrets   [-o FILE]",
        _support,
        "It has settings, status, the last log lines, receipts' heads, metrics, versions and facts about "
        "this machine. Run it with the environment of `serve`. Exit codes: 0 written · 1 not written · "
        "2 wrong arguments.",
    ),
    "simulate": Verb(
        "stand-ins for GPU markets, Novita, Stripe, Ethereum, for rehearsals   [--vast PORT] …",
        _simulate,
        "Nothing is rented, nothing is paid; every answer says that it is simulated. Without a port "
        "all services run on free ones. What goes wrong is asked for with POST /_fault, what really runs "
        "is shown by /_truth: docs/simulate.md. Exit codes: 0 ended by a signal · 1 a port cannot be used · "
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
