"""The command `appliance VERB`: serve, check, settings, models, sidecar, download, ctl and more.

Each verb imports what it needs when it is called: a health check must not load the whole server.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from appliance import __version__
from appliance.command_lines import USAGE, describe_unknown, parser_of

if TYPE_CHECKING:
    from appliance.base.settings import Problem


def check(arguments: list[str]) -> int:
    """Print every problem of the environment; return 78 if one is fatal, else 0."""
    from appliance.base import jsons
    from appliance.models.check import check_extra_args
    from appliance.settings import load
    from appliance.settings_accounts import check_prices

    options = parser_of("check").parse_args(arguments)
    settings, problems = load()
    if settings is not None:
        problems = [
            *problems,
            *check_extra_args(settings.catalogue, settings.config),
            *check_prices(settings.accounts, {price.model for price in settings.prices}),
        ]
    if options.json:
        print(jsons.dumps_pretty({"ok": settings is not None, "problems": list(map(as_object, problems))}))
        return os.EX_CONFIG if settings is None else 0
    print_problems(problems)
    fatal = sum(p.is_fatal for p in problems)
    if settings is None:
        print(
            f"{fatal} problem{'s' if fatal != 1 else ''} found. The appliance cannot start like this.",
            file=sys.stderr,
        )
        return os.EX_CONFIG
    print("The settings are fine.", file=sys.stderr)
    return 0


def print_problems(problems: "list[Problem]") -> None:
    """Print each problem on a line of stderr."""
    for problem in problems:
        print(f"{severity(problem)}: {problem}", file=sys.stderr)


def severity(problem: "Problem") -> str:
    """Return `error` where the appliance cannot start like this, else `warning`."""
    return "error" if problem.is_fatal else "warning"


def as_object(problem: "Problem") -> dict[str, str]:
    """Return the object that `check --json` prints of a problem; `text` is the line without `--json`."""
    return {
        "severity": severity(problem),
        "variable": problem.variable,
        "value": problem.value,
        "allowed": problem.allowed,
        "remedy": problem.remedy,
        "text": str(problem),
    }


def prepare(arguments: list[str]) -> int:
    """Prepare the machine; return 1 when a mandatory step failed, else 0."""
    parser_of("prepare").parse_args(arguments)
    from appliance.base import logs
    from appliance.host.prepare import run_prepare
    from appliance.settings import learn_secrets, load_or_raise

    settings, _ = load_or_raise()
    learn_secrets(settings)
    logs.configure(level=settings.general.log_level, form=settings.general.log_format, stream=sys.stderr)
    steps = run_prepare(settings.host, proxy_port=settings.front.proxy_port, environ=settings.environ)
    return 1 if any(step.outcome == "failed" and step.is_mandatory for step in steps) else 0


def show_settings(arguments: list[str]) -> int:
    """Print every variable in the form that is asked for."""
    from appliance.base import jsons
    from appliance.settings import described, effective_environ, load
    from appliance.settings_text import as_compose, as_env_example, as_page, as_text

    options = parser_of("settings").parse_args(arguments)
    settings, _ = load()
    rows = described(settings, effective_environ(os.environ)[0])
    if options.json:
        from dataclasses import asdict

        fields = [asdict(row) for row in rows]
        # The package is called `room` on the wire, as in gRPC's Setting.
        print(jsons.dumps_pretty([{"room": row.pop("package"), **row} for row in fields]))
    elif options.env_example:
        print(as_env_example(rows), end="")
    elif options.compose:
        print(as_compose(rows), end="")
    elif options.markdown:
        print(as_page(rows), end="")
    else:
        print(as_text(rows), end="")
    return 0


def show_routes(arguments: list[str]) -> int:
    """Print every address of the HTTP API: for a terminal, or as the page docs/http-api.md."""
    from appliance.front.routes_text import as_page, as_text

    options = parser_of("routes").parse_args(arguments)
    print(as_page() if options.markdown else as_text(), end="")
    return 0


def models(arguments: list[str]) -> int:
    """Explain the table of models, print its schema, or ask the running appliance about its models."""
    if arguments[:1] == ["check"]:
        return models_check(arguments[1:])
    if arguments[:1] == ["schema"]:
        return models_schema(arguments[1:])
    from appliance.cli.models import main as models_main

    return models_main(arguments)


def models_schema(arguments: list[str]) -> int:
    """Print the JSON schema of the configuration file."""
    from appliance.base import jsons
    from appliance.config_schema import build_config_schema

    parser_of("models schema").parse_args(arguments)
    print(jsons.dumps_pretty(build_config_schema()))
    return 0


def models_check(arguments: list[str]) -> int:
    """Print the command of each model without running it; return 78 if a model cannot be run."""
    from dataclasses import asdict

    from appliance.base import jsons
    from appliance.models.check import check_models, render_report
    from appliance.settings import learn_secrets, load

    options = parser_of("models check").parse_args(arguments)
    settings, problems = load()
    print_problems(problems)
    if settings is None:
        return os.EX_CONFIG
    learn_secrets(settings)
    report = check_models(settings.catalogue)
    print(
        jsons.dumps_pretty(asdict(report)) if options.json else render_report(report),
        end="\n" if options.json else "",
    )
    return 0 if report.is_ok else os.EX_CONFIG


def serve(arguments: list[str]) -> int:
    """Serve until asked to stop; return the exit code."""
    parser_of("serve").parse_args(arguments)
    import ctypes

    from appliance.signals import ignore_hangups

    ends_with_terminal = ignore_hangups()
    try:  # glibc keeps an arena per thread; two are enough for one busy thread
        ctypes.CDLL(None).mallopt(-8, 2)  # M_ARENA_MAX
    except (AttributeError, OSError):
        pass
    # The event loop runs fork handlers before it starts a program; gRPC's would write to stderr each time.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    import uvloop

    from appliance.app import serve as serve_until_stopped

    return uvloop.run(serve_until_stopped(ends_with_terminal=ends_with_terminal))


def healthcheck(arguments: list[str]) -> int:
    """Check that the running appliance is healthy; return 0 or 1."""
    if arguments:  # it runs often: no parser for nothing
        parser_of("healthcheck").parse_args(arguments)
    from appliance.healthcheck import main as healthcheck_main

    return healthcheck_main()


def sidecar(arguments: list[str]) -> int:
    """Serve beside one engine; return the exit code."""
    from appliance.sidecar import main as sidecar_main

    return sidecar_main(arguments)


def download(arguments: list[str]) -> int:
    """Download, check or repair model files; return the exit code."""
    from appliance.download import main as download_main

    return download_main(arguments)


def support(arguments: list[str]) -> int:
    """Write a file for those who help; return the exit code."""
    options = parser_of("support").parse_args(arguments)
    from appliance.support import main as support_main

    return support_main(options.output)


def migrate(arguments: list[str]) -> int:
    """Bring the tables of the database to a revision; return 1 when that failed, else 0."""
    parser = parser_of("migrate")
    options = parser.parse_args(arguments)
    from appliance.settings import load_or_raise
    from appliance.storage.database import StoreRefused, StoreUnavailable
    from appliance.storage.migrate import migrate as migrate_database
    from appliance.storage.revisions import NEWEST

    to = NEWEST if options.to is None else options.to
    if not 1 <= to <= NEWEST:
        parser.error(f"--to {to}: revisions are 1 to {NEWEST}")
    settings, _ = load_or_raise()
    try:
        migrate_database(
            settings.storage, settings.host.state_dir, to=to, is_dry=options.dry_run, output=sys.stdout
        )
    except (StoreRefused, StoreUnavailable) as exc:
        reason = exc.reason if isinstance(exc, StoreUnavailable) else str(exc)
        print(f"appliance migrate: {reason}", file=sys.stderr)
        return 1
    return 0


def of_accounts(verb: str, arguments: list[str]) -> int:
    """Run a verb about accounts; return the exit code."""
    options = parser_of(verb).parse_args(arguments)
    from appliance.admin.verbs import run_verb

    return run_verb(verb, options)


def simulate(arguments: list[str]) -> int:
    """Serve stand-ins for markets; return the exit code."""
    parser = parser_of("simulate")
    options = parser.parse_args(arguments)
    from appliance.simulate.program import run

    return run(options, parser)


def ctl(arguments: list[str]) -> int:
    """Hand the arguments to the command line of the control API; return the exit code."""
    from appliance.cli.ctl import main as ctl_main

    return int(ctl_main(arguments))


def show_version(arguments: list[str]) -> int:
    """Print the version."""
    parser_of("version").parse_args(arguments)
    print(__version__)
    return 0


def show_help(arguments: list[str]) -> int:
    """Print how the command is used, or one of its verbs."""
    if arguments[:1] and arguments[0] in RUN:
        return main([*arguments, "--help"])
    print(USAGE, end="")
    return 0


RUN: dict[str, Callable[[list[str]], int]] = {
    "admin": partial(of_accounts, "admin"),
    "check": check,
    "credits": partial(of_accounts, "credits"),
    "ctl": ctl,
    "download": download,
    "healthcheck": healthcheck,
    "keys": partial(of_accounts, "keys"),
    "migrate": migrate,
    "models": models,
    "prepare": prepare,
    "prices": partial(of_accounts, "prices"),
    "routes": show_routes,
    "serve": serve,
    "settings": show_settings,
    "sidecar": sidecar,
    "simulate": simulate,
    "support": support,
    "users": partial(of_accounts, "users"),
    "version": show_version,
    # not in the usage
    "--help": show_help,
    "--version": show_version,
    "-h": show_help,
    "help": show_help,
}


def main(argv: list[str] | None = None) -> int:
    """Run the verb. Invalid settings end every verb with exit code 78.

    Args:
        argv: The verb and its arguments; None = those of the process.

    Returns:
        The exit code; 2 = the command line is wrong.
    """
    arguments = sys.argv[1:] if argv is None else argv
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if verb in ("--install-completion", "--show-completion") or os.environ.get("_APPLIANCE_COMPLETE"):
        from appliance.completion import main as completion_main

        return completion_main(arguments)
    if verb not in RUN:
        print(describe_unknown(verb) if verb else USAGE, end="", file=sys.stderr)
        return 2
    from appliance.base.settings import InvalidSettings

    try:
        return RUN[verb](rest)
    except InvalidSettings as exc:
        print_problems(exc.problems)
        return os.EX_CONFIG
    except SystemExit as end:  # argparse: 0 after a help, 2 after an error
        return end.code if isinstance(end.code, int) else 1


if __name__ == "__main__":
    sys.exit(main())
