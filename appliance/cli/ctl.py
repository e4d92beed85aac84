"""`appliance ctl`: see and steer a running appliance from a terminal, over its gRPC control API."""

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from appliance.cli import show
from appliance.cli.calls import OTHER, USAGE, CallFailed, Calls, Where, default_address, read_token
from appliance.cli.show import Screen

WORKER_PATIENCE_S = 90.0        # a worker may take WORKER_STOP_GRACE_S to end
RELOAD_PATIENCE_S = 30.0
INTERRUPTED = 130
P = ParamSpec("P")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="See and steer a running appliance. The token comes from CONTROL_TOKEN or CONTROL_TOKEN_FILE.")
worker_app = typer.Typer(invoke_without_command=True, help="See, start, stop or restart the worker.")
app.add_typer(worker_app, name="worker")
backend_app = typer.Typer(no_args_is_help=True, help="Show, add, remove, drain or resume one backend.")
app.add_typer(backend_app, name="backend")

# Options of all commands; they may stand before or after the command's name.
WITH_VALUE = {"--address", "--tls-ca", "--tls-cert", "--tls-key", "--timeout"}
WITHOUT_VALUE = {"--json"}


class Session:
    """What one run of the command needs: the connection and the screen."""

    def __init__(self, calls: Calls, screen: Screen) -> None:
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


@app.callback()
@told
def options(
    ctx: typer.Context,
    address: Annotated[str, typer.Option(help="host:port or unix:/path; else CONTROL_ADDRESS, or 127.0.0.1:50051.")] = "",
    tls_ca: Annotated[Path | None, typer.Option(help="CA of the appliance's certificate (PEM); turns TLS on.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Our certificate (PEM), for mutual TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON for programs; streams give one object a line.")] = False,
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds to wait for the answer; for streams, until they end.")] = None,
) -> None:
    where = Where(address or default_address(os.environ), read_token(os.environ), tls_ca, tls_cert, tls_key, timeout)
    ctx.obj = Session(ctx.with_resource(Calls(where)), Screen(is_json=json))


@app.command()
@told
def status(
    ctx: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on with each change, until the appliance stops.")] = False,
    interval: Annotated[float, typer.Option(min=0, help="With --watch: also after so many seconds without a change.")] = 0.0,
) -> None:
    """Show what the appliance is doing."""
    session: Session = ctx.obj
    if not watch:
        answer = session.calls.ask("GetStatus").status
        session.show(answer, lambda screen: screen.pairs(show.status_pairs(answer)))
        return
    request = session.calls.messages.WatchStatusRequest(interval_s=interval)
    with closing(session.calls.stream("WatchStatus", request)) as answers:
        for answer in answers:
            if session.screen.is_json:
                session.screen.object(show.as_object(answer.status), is_one_of_many=True)
            else:
                session.screen.say(show.status_line(answer.status))


@app.command()
@told
def identity(ctx: typer.Context) -> None:
    """Show which machine this is: machine-id, host name, GPUs."""
    session: Session = ctx.obj
    answer = session.calls.ask("GetIdentity")
    session.show(answer, lambda screen: screen.pairs(show.identity_pairs(answer)))


@app.command()
@told
def settings(
    ctx: typer.Context, set_only: Annotated[bool, typer.Option("--set-only", help="Only those that are set.")] = False,
) -> None:
    """List the settings in force; secrets are hidden."""
    session: Session = ctx.obj
    answer = session.calls.ask("GetSettings", set_only=set_only)
    rows = [[s.room, s.variable, s.value, s.default_value, "yes" if s.is_reloadable else "restart"] for s in answer.settings]
    session.show(answer, lambda screen: screen.table(["ROOM", "VARIABLE", "VALUE", "DEFAULT", "RELOAD"], rows))


@app.command()
@told
def reload(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would change, and what is wrong.")] = False,
    overrides: Annotated[list[str] | None, typer.Option(
        "--set", metavar="NAME=VALUE", help="Lay a value over the environment (NAME= is the default again). May be repeated. For a "
        "secret set NAME_FILE instead: arguments can be read by everybody on the machine.")] = None,
) -> None:
    """Read the settings again and put them in place."""
    session: Session = ctx.obj
    answer = session.calls.ask("Reload", patience_s=RELOAD_PATIENCE_S, dry_run=dry_run, overrides=parse_overrides(overrides or []))

    def people(screen: Screen) -> None:
        if answer.changes:
            screen.table(["VARIABLE", "OLD", "NEW", "TAKES EFFECT"], [
                [c.variable, c.old_value, c.new_value, "at the next start" if c.needs_restart else "now"] for c in answer.changes])
        for problem in answer.problems:
            screen.say(f"problem: {problem.variable}={problem.value}: allowed: {problem.allowed}. {problem.remedy}")
        screen.say(answer.message)

    session.show(answer, people)
    if answer.problems:
        raise typer.Exit(OTHER)


def parse_overrides(texts: list[str]) -> dict[str, str]:
    """Read NAME=VALUE pairs; raise CallFailed (usage) for one that is none."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise CallFailed(f"--set {name}: write NAME=VALUE.", USAGE)
        found[name] = value
    return found


@app.command()
@told
def drain(ctx: typer.Context) -> None:
    """Take no new requests; running ones go on."""
    _say_state(ctx.obj, "Drain")


@app.command()
@told
def resume(ctx: typer.Context) -> None:
    """Take requests again."""
    _say_state(ctx.obj, "Resume")


def _say_state(session: Session, method: str) -> None:
    answer = session.calls.ask(method).status
    session.show(answer, lambda screen: screen.say(show.status_line(answer)))


@app.command()
@told
def shutdown(
    ctx: typer.Context,
    grace: Annotated[float | None, typer.Option(min=0, max=3600, help="Seconds for running answers; else SHUTDOWN_GRACE_S.")] = None,
) -> None:
    """End the appliance; a second time hurries it."""
    session: Session = ctx.obj
    answer = session.calls.ask("Shutdown", **({} if grace is None else {"grace_s": grace}))
    session.show(answer, lambda screen: screen.say("stopping"))


@worker_app.callback()
def worker(ctx: typer.Context) -> None:
    """See, start, stop or restart the worker."""
    if ctx.invoked_subcommand is None:
        worker_show(ctx)


@worker_app.command("show")
@told
def worker_show(ctx: typer.Context) -> None:
    """Show what the worker is doing."""
    _show_worker(ctx.obj, "GetWorker")


@worker_app.command("start")
@told
def worker_start(ctx: typer.Context) -> None:
    """Start the worker."""
    _show_worker(ctx.obj, "StartWorker")


@worker_app.command("stop")
@told
def worker_stop(ctx: typer.Context) -> None:
    """End the worker and all its children."""
    _show_worker(ctx.obj, "StopWorker")


@worker_app.command("restart")
@told
def worker_restart(ctx: typer.Context) -> None:
    """Stop the worker, then start it."""
    _show_worker(ctx.obj, "RestartWorker")


def _show_worker(session: Session, method: str) -> None:
    answer = session.calls.ask(method, patience_s=WORKER_PATIENCE_S).worker
    session.show(answer, lambda screen: screen.pairs(show.worker_pairs(answer)))


@app.command()
@told
def logs(
    ctx: typer.Context,
    count: Annotated[int, typer.Option("--lines", "-n", min=0, max=2000, help="How many of the latest lines to begin with.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines.")] = False,
    source: Annotated[str, typer.Option(help="Only lines of this source: appliance, worker, worker.stderr …")] = "",
) -> None:
    """Show the latest lines of the log, the worker's too."""
    session: Session = ctx.obj
    request = session.calls.messages.TailLogsRequest(count=count, follow=follow, source=source)
    with closing(session.calls.stream("TailLogs", request)) as lines:
        for line in lines:
            if session.screen.is_json:
                session.screen.object(show.as_object(line), is_one_of_many=True)
            else:
                session.screen.say(f"{line.at.ToDatetime():%H:%M:%S} {line.source}: {line.text}")


@app.command()
@told
def chat(
    ctx: typer.Context,
    text: Annotated[str, typer.Argument(help="What to say; - reads it from standard input.")],
    model: Annotated[str, typer.Option("--model", "-m", help="The model's name; else the default one.")] = "",
    system: Annotated[str, typer.Option(help="What to tell the model first.")] = "",
    is_streamed: Annotated[bool, typer.Option("--stream/--no-stream", help="Show the answer as it is made.")] = True,
) -> None:
    """Ask a model; the answer appears as it is made."""
    session: Session = ctx.obj
    said = sys.stdin.read() if text == "-" else text
    messages = [{"role": "system", "content": system}] if system else []
    request = session.calls.messages.ChatRequest(model=model, messages=[*messages, {"role": "user", "content": said}], stream=is_streamed)
    is_begun = False
    try:
        with closing(session.calls.stream("Chat", request)) as parts:
            for part in parts:
                is_begun = True
                _show_part(session.screen, part)
    except CallFailed:
        if is_begun:
            session.screen.say("")      # the error begins on a line of its own
        raise


def _show_part(screen: Screen, part: Any) -> None:
    from appliance.base import jsons

    kind = part.WhichOneof("part")
    value = getattr(part, kind)
    if screen.is_json:
        screen.object({kind: show.as_object(value) if kind == "receipt" else jsons.loads(value.openai_json)}, is_one_of_many=True)
    elif kind == "receipt":
        screen.say("")
        if screen.is_terminal:
            print(f"[{value.served_model or value.backend}, {value.total_ms:.0f} ms, receipt {value.id}]", file=sys.stderr)
    else:
        screen.say(value.text, end="")


@app.command()
@told
def backends(
    ctx: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on with each change, until interrupted.")] = False,
    interval: Annotated[float, typer.Option(min=0, max=3600, help="With --watch: also after so many seconds without a change.")] = 0.0,
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
    screen.table(["NAME", "KIND", "STATE", "IN FLIGHT", "MODELS", "ENDPOINT", "NOTE"], show.backend_rows(answer.backends))


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
    models: Annotated[list[str] | None, typer.Option("--model", help="A model that it serves; may be repeated. Else it is asked.")] = None,
    key_file: Annotated[Path | None, typer.Option(help="A file with the key that it wants.")] = None,
    key_env: Annotated[str, typer.Option(metavar="NAME", help="The variable of this command's environment that holds the key.")] = "",
    persist: Annotated[bool, typer.Option("--persist", help="It is there after a restart, too.")] = False,
) -> None:
    """Add a backend. Its key comes from a file or a variable: arguments can be read by everybody on the machine."""
    session: Session = ctx.obj
    fields: dict[str, Any] = {"url": url, "name": name, "kind": kind, "pool": pool, "cost": cost, "models": models or [], "persist": persist,
                              "api_key": read_key(key_file, key_env, os.environ)}
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
    ctx: typer.Context, name: Annotated[str, typer.Argument(help="Its name.")],
    persist: Annotated[bool, typer.Option("--persist", help="It stays out after a restart, too.")] = False,
) -> None:
    """Take a backend out; what it is answering goes on."""
    session: Session = ctx.obj
    answer = session.calls.ask("RemoveBackend", name=name, persist=persist)
    session.show(answer, lambda screen: screen.say(f"{name} is removed"))


@backend_app.command("drain")
@told
def backend_drain(
    ctx: typer.Context, name: Annotated[str, typer.Argument(help="Its name.")],
    persist: Annotated[bool, typer.Option("--persist", help="It stays so after a restart.")] = False,
) -> None:
    """Give a backend no new requests; what it is answering goes on."""
    _show_drained(ctx.obj, name=name, persist=persist)


@backend_app.command("resume")
@told
def backend_resume(
    ctx: typer.Context, name: Annotated[str, typer.Argument(help="Its name.")],
    persist: Annotated[bool, typer.Option("--persist", help="It stays so after a restart.")] = False,
) -> None:
    """Give a drained backend requests again."""
    _show_drained(ctx.obj, name=name, persist=persist, resume=True)


def _show_drained(session: Session, **fields: Any) -> None:
    answer = session.calls.ask("DrainBackend", **fields).backend
    session.show(answer, lambda screen: screen.pairs(show.backend_pairs(answer)))


@app.command()
@told
def strategy(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="least_busy, round_robin, equal_weighted, weighted_round_robin, least_connections, "
                                             "least_response_time, power_of_two or prefix_affinity.")],
    pool: Annotated[str, typer.Option(help="Only this pool's; else all pools'.")] = "",
    persist: Annotated[bool, typer.Option("--persist", help="It stays so after a restart.")] = False,
) -> None:
    """Switch how backends are chosen; running requests go on."""
    session: Session = ctx.obj
    answer = session.calls.ask("SetStrategy", strategy=name, pool=pool, persist=persist)
    session.show(answer, lambda screen: screen.say(answer.strategy))


@app.command()
@told
def receipt(ctx: typer.Context, receipt_id: Annotated[str, typer.Argument(metavar="ID", help="The request's id (x-request-id).")]) -> None:
    """Show what was decided for one request, and why."""
    session: Session = ctx.obj
    answer = session.calls.ask("GetReceipt", id=receipt_id).receipt
    session.show(answer, lambda screen: screen.pairs(show.receipt_pairs(answer)))


@app.command()
@told
def receipts(
    ctx: typer.Context, count: Annotated[int, typer.Option("--lines", "-n", min=1, max=1000, help="How many.")] = 20,
) -> None:
    """List the latest requests, newest first."""
    session: Session = ctx.obj
    answer = session.calls.ask("ListReceipts", count=count)
    headers = ["AT", "ID", "ROUTE", "MODEL", "STATUS", "FINISH", "MS", "TOKENS"]
    session.show(answer, lambda screen: screen.table(headers, [show.receipt_row(r) for r in answer.receipts]))


def hoist(arguments: list[str]) -> list[str]:
    """Bring the options of all commands to the front, wherever they stand; nothing after `--` is touched."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments[:cut])
    for word in words:
        name, equals, _ = word.partition("=")
        if name in WITH_VALUE:
            front += [word] if equals else [word, *[value for value in [next(words, None)] if value is not None]]
        elif word in WITHOUT_VALUE:
            front.append(word)
        else:
            rest.append(word)
    return [*front, *rest, *arguments[cut:]]


def main(arguments: list[str]) -> int:
    """Run `appliance ctl` with `arguments`; give the exit code: 0 done, 1 refused, 2 wrong usage, 3 not reached, 4 not allowed."""
    try:
        app(args=hoist(arguments), prog_name="appliance ctl")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else OTHER if end.code else 0
    return 0
