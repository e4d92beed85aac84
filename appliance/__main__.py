"""The command `appliance VERB`: serve, check, settings, models, sidecar, download, ctl and more.

Each verb imports what it needs when it is called: a health check must not load the whole server.
"""

import os
import sys
from collections.abc import Callable

from appliance import __version__

USAGE = """usage: appliance VERB [ARGUMENT…]

  serve         serve HTTP and the control API (what the container does)
  check         read the environment; name every problem with its remedy; exit 78 if there is one
  prepare       prepare the machine: machine-id, GPU identity, nvidia-smi, port 14444
  settings      every variable: package, default, current value, help   [--json | --env-example | --markdown]
  routes        every address of the HTTP API: method, path, access, errors, what it does   [--markdown]
  models        the models of a running appliance: list, show, load, eject, pin, queue … (`models --help`)
  models check  the command of each model of the table, and what is wrong with it   [--json]
  models schema the JSON schema of the file of CONFIG_PATH (as etc/models.schema.json)
  download      fetch model files: SOURCE [-o DIR] [-w N] [-c JSON] [--verify] [--repair] [--json]
  healthcheck   check that the running appliance is healthy; exit 0 or 1
  sidecar       serve beside one engine: its metrics, adapters, downloads, health (`sidecar --help`)
  ctl           control a running appliance over its control API (`ctl --help`)
  version       print the version
"""


def check() -> int:
    """Print every problem of the environment; return 78 if one is fatal, else 0."""
    from appliance.settings import load

    settings, problems = load()
    for problem in problems:
        print(f"{'error' if problem.is_fatal else 'warning'}: {problem}", file=sys.stderr)
    fatal = sum(p.is_fatal for p in problems)
    if settings is None:
        print(
            f"{fatal} problem{'s' if fatal != 1 else ''} found. The appliance cannot start like this.",
            file=sys.stderr,
        )
        return os.EX_CONFIG
    print("The settings are fine.", file=sys.stderr)
    return 0


def prepare() -> int:
    """Prepare the machine; return 1 when a mandatory step failed, else 0."""
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
    from appliance.settings_text import as_env_example, as_page, as_text

    settings, _ = load()
    rows = described(settings, effective_environ(os.environ)[0])
    match arguments:
        case ["--json"]:
            from dataclasses import asdict

            fields = [asdict(row) for row in rows]
            # The package is called `room` on the wire, as in gRPC's Setting.
            print(jsons.dumps_pretty([{"room": row.pop("package"), **row} for row in fields]))
        case ["--env-example"]:
            print(as_env_example(rows), end="")
        case ["--markdown"]:
            print(as_page(rows), end="")
        case []:
            print(as_text(rows), end="")
        case _:
            print(
                f"settings: unknown argument {arguments[0]!r}; use --json, --env-example or --markdown.",
                file=sys.stderr,
            )
            return 2
    return 0


def show_routes(arguments: list[str]) -> int:
    """Print every address of the HTTP API: for a terminal, or as the page docs/http-api.md."""
    from appliance.front.routes_text import as_page, as_text

    match arguments:
        case ["--markdown"]:
            print(as_page(), end="")
        case []:
            print(as_text(), end="")
        case _:
            print(f"routes: unknown argument {arguments[0]!r}; use --markdown.", file=sys.stderr)
            return 2
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
    """Print the JSON schema of the table."""
    from appliance.base import jsons
    from appliance.models.table.schema import build_schema

    if arguments:
        print("usage: appliance models schema", file=sys.stderr)
        return 2
    print(jsons.dumps_pretty(build_schema()))
    return 0


def models_check(arguments: list[str]) -> int:
    """Print the command of each model without running it; return 78 if a model cannot be run."""
    from dataclasses import asdict

    from appliance.base import jsons
    from appliance.models.check import check_models, render_report
    from appliance.settings import load

    if arguments not in ([], ["--json"]):
        print("usage: appliance models check [--json]", file=sys.stderr)
        return 2
    settings, problems = load()
    for problem in problems:
        print(f"{'error' if problem.is_fatal else 'warning'}: {problem}", file=sys.stderr)
    if settings is None:
        return os.EX_CONFIG
    report = check_models(settings.catalogue)
    print(
        jsons.dumps_pretty(asdict(report)) if "--json" in arguments else render_report(report),
        end="\n" if "--json" in arguments else "",
    )
    return 0 if report.is_ok else os.EX_CONFIG


def serve() -> int:
    """Serve until asked to stop; return the exit code."""
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


def healthcheck() -> int:
    """Check that the running appliance is healthy; return 0 or 1."""
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


def ctl(arguments: list[str]) -> int:
    """Hand the arguments to the command line of the control API; return the exit code."""
    from appliance.cli.ctl import main as ctl_main

    return int(ctl_main(arguments))


def show_version() -> int:
    """Print the version."""
    print(__version__)
    return 0


def show_usage() -> int:
    """Print how the command is used."""
    print(USAGE, end="")
    return 0


WITH_ARGUMENTS: dict[str, Callable[[list[str]], int]] = {
    "ctl": ctl,
    "download": download,
    "models": models,
    "routes": show_routes,
    "settings": show_settings,
    "sidecar": sidecar,
}
WITHOUT_ARGUMENTS: dict[str, Callable[[], int]] = {
    "check": check,
    "healthcheck": healthcheck,
    "prepare": prepare,
    "serve": serve,
}
ALWAYS: dict[str, Callable[[], int]] = {
    "--help": show_usage,
    "--version": show_version,
    "-h": show_usage,
    "help": show_usage,
    "version": show_version,
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
    if verb in WITH_ARGUMENTS:
        return WITH_ARGUMENTS[verb](rest)
    if verb in ALWAYS:
        return ALWAYS[verb]()
    if verb not in WITHOUT_ARGUMENTS or rest:
        unknown = f"argument {rest[0]!r}" if verb in WITHOUT_ARGUMENTS else f"verb {verb!r}"
        print(f"appliance: unknown {unknown}.\n\n{USAGE}" if verb else USAGE, end="", file=sys.stderr)
        return 2
    from appliance.base.settings import InvalidSettings

    try:
        return WITHOUT_ARGUMENTS[verb]()
    except InvalidSettings as exc:
        for problem in exc.problems:
            print(f"error: {problem}", file=sys.stderr)
        return os.EX_CONFIG


if __name__ == "__main__":
    sys.exit(main())
