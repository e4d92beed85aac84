"""`python -m appliance VERB`: check, prepare, serve, settings, models, sidecar, download, healthcheck, version, ctl.

Verbs import what they need when they are called: a health check must not cost what a server costs.
"""

import os
import sys

from appliance import __version__

USAGE = """usage: appliance VERB [ARGUMENT…]

  serve         serve HTTP and the control API (what the container does)
  check         read the environment; name every problem with its remedy; exit 78 if there is one
  prepare       ready the machine: machine-id, GPU identity, nvidia-smi, port 14444
  settings      every variable: package, default, current value, help   [--json | --env-example | --markdown]
  routes        every address of the HTTP API: method, path, access, errors, what it does   [--markdown]
  models        the models of a running appliance: list, show, load, eject, reset, pin, unpin, queue, vram (`models --help`)
  models check  what would be run for each model of the table, and what would not work   [--json]
  models schema the JSON schema of the file of CONFIG_PATH (as etc/models.schema.json)
  download      fetch model files: SOURCE [-o DIR] [-w N] [-c JSON] [--verify] [--repair] [--json]   (`download --help`)
  healthcheck   ask the running appliance whether it is well; exit 0 or 1
  sidecar       stand beside one engine: metrics, adapters, downloads, health (`sidecar --help`)
  ctl           drive a running appliance over its control API (`ctl --help`)
  version       print the version
"""


def check() -> int:
    """Print every problem of the environment; give 78 if one is fatal, else 0."""
    from appliance.settings import load

    settings, problems = load()
    for problem in problems:
        print(f"{'error' if problem.is_fatal else 'warning'}: {problem}", file=sys.stderr)
    fatal = sum(p.is_fatal for p in problems)
    if settings is None:
        print(
            f"{fatal} problem{'s' if fatal != 1 else ''} found; the appliance does not start like this.",
            file=sys.stderr,
        )
        return os.EX_CONFIG
    print("The settings are fine.", file=sys.stderr)
    return 0


def prepare() -> int:
    """Run the machine's steps; give 1 when a mandatory one failed."""
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
    """Explain what would be run for each model, without running it; give 78 when something would not work."""
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
    return 0 if report.is_well else os.EX_CONFIG


def healthcheck() -> int:
    """Ask on this machine whether all is well: the server's /healthz, or where no server is, a sidecar's /health. Gives 0 when it is."""
    host = os.environ.get("PROXY_HOST") or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        status, value = _ask(
            host, int(os.environ.get("PROXY_PORT") or os.environ.get("PORT") or 14000), "/healthz"
        )
        state = str(value.get("state", "?"))
    except ConnectionRefusedError as exc:
        try:
            status, value = _ask("127.0.0.1", int(os.environ.get("SIDECAR_PORT") or 9000), "/health")
            if value.get("service") != "runtime":
                raise exc
            state = f"sidecar, {value.get('status')}"
        except (OSError, ValueError):
            print(f"unhealthy: {host} does not answer: {exc}", file=sys.stderr)
            return 1
    except (OSError, ValueError) as exc:
        print(f"unhealthy: {host} does not answer: {exc}", file=sys.stderr)
        return 1
    print(f"{'healthy' if status == 200 else 'unhealthy'}: {state}")
    return 0 if status == 200 else 1


def _ask(host: str, port: int, path: str) -> tuple[int, dict[str, object]]:
    """Give (status, JSON object) of an address.

    Raises  OSError · ValueError: its answer is no such object
    """
    import http.client
    import json

    try:
        connection = http.client.HTTPConnection(host, port, timeout=4)
        connection.request("GET", path)
        answer = connection.getresponse()
        value = json.loads(answer.read())
    except http.client.HTTPException as exc:
        raise ValueError(f"{type(exc).__name__}: {exc}") from None
    if not isinstance(value, dict):
        raise ValueError("its answer is no JSON object")
    return answer.status, value


def serve() -> int:
    """Serve until told to stop; give the exit code."""
    import ctypes

    try:  # glibc would keep an arena per thread; two are plenty for one busy thread
        ctypes.CDLL(None).mallopt(-8, 2)  # M_ARENA_MAX
    except (AttributeError, OSError):
        pass
    # The event loop runs fork handlers before it starts a program; gRPC's have nothing to do there and say so
    # on stderr each time.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    import uvloop

    from appliance.app import serve as serve_until_stopped

    return uvloop.run(serve_until_stopped())


def ctl(arguments: list[str]) -> int:
    """Hand the arguments to the control command line."""
    from appliance.cli.ctl import main as ctl_main

    return int(ctl_main(arguments))


def main(argv: list[str] | None = None) -> int:
    """Run the verb; settings that cannot be used end every verb in the same way: exit 78."""
    arguments = sys.argv[1:] if argv is None else argv
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if verb == "ctl":
        return ctl(rest)
    if verb == "sidecar":
        from appliance.sidecar import main as sidecar_main

        return sidecar_main(rest)
    if verb == "settings":
        return show_settings(rest)
    if verb == "routes":
        return show_routes(rest)
    if verb == "models":
        return models(rest)
    if verb == "download":
        from appliance.download import main as download_main

        return download_main(rest)
    verbs = {"check": check, "prepare": prepare, "serve": serve, "healthcheck": healthcheck}
    if verb in {"version", "--version"}:
        print(__version__)
        return 0
    if verb in {"", "-h", "--help", "help"}:
        print(USAGE, end="", file=sys.stderr if not verb else sys.stdout)
        return 2 if not verb else 0
    if verb not in verbs or rest:
        print(
            f"appliance: unknown {'argument ' + repr(rest[0]) if verb in verbs else 'verb ' + repr(verb)}.\n\n{USAGE}",
            end="",
            file=sys.stderr,
        )
        return 2
    if verb in {"prepare", "serve"}:
        from appliance.base.settings import InvalidSettings

        try:
            return verbs[verb]()
        except InvalidSettings as exc:
            for problem in exc.problems:
                print(f"error: {problem}", file=sys.stderr)
            return os.EX_CONFIG
    return verbs[verb]()


if __name__ == "__main__":
    sys.exit(main())
