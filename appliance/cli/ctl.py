"""`appliance ctl …`: drive a running appliance from a terminal, over its control API."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.cli import show
from appliance.cli.calls import DEFAULT_ADDRESS, Failed, Target, calling
from appliance.control.v1 import control_pb2 as pb

app = typer.Typer(help="Drive a running appliance over its control API.", no_args_is_help=True, add_completion=False, rich_markup_mode=None,
                  pretty_exceptions_enable=False)


class _Global:
    target = Target()
    as_json = False


@app.callback()
def options(
    address: Annotated[str, typer.Option(envvar="CONTROL_ADDRESS", help="host:port, or unix:/path")] = DEFAULT_ADDRESS,
    timeout: Annotated[float, typer.Option(help="seconds to wait for an answer")] = 10.0,
    tls_ca: Annotated[Path | None, typer.Option(help="CA of the server's certificate (PEM)")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="own certificate, for mutual TLS (PEM)")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="own key, for mutual TLS (PEM)")] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """The token is read from CONTROL_TOKEN or CONTROL_TOKEN_FILE: an argument would show in `ps`."""
    _Global.target = Target(address, timeout, tls_ca, tls_cert, tls_key)
    _Global.as_json = json


def _ask(method: str, request: Any, shown: Any, *, timeout_s: float | None = None) -> Any:
    with calling(_Global.target) as (stub, how):
        answer = getattr(stub, method)(request, timeout=timeout_s or _Global.target.timeout_s, **how)
        show.as_json(answer) if _Global.as_json or shown is None else shown(answer)
        return answer


@app.command()
def status(watch: Annotated[bool, typer.Option("--watch", help="go on with each change")] = False) -> None:
    """Show how the appliance is."""
    if not watch:
        _ask("GetStatus", pb.GetStatusRequest(), lambda m: show.status(m.status))
        return
    with calling(_Global.target) as (stub, how):
        for message in stub.WatchStatus(pb.WatchStatusRequest(), **how):
            show.as_json(message) if _Global.as_json else show.status(message.status)
            print(flush=True)


@app.command()
def identity() -> None:
    """Show machine-id, host name and GPUs."""
    _ask("GetIdentity", pb.GetIdentityRequest(), None)


@app.command()
def settings(set_only: Annotated[bool, typer.Option("--set-only", help="only what is set")] = False) -> None:
    """Show every variable."""
    _ask("GetSettings", pb.GetSettingsRequest(set_only=set_only), show.settings)


@app.command()
def reload(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would change")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE, laid over the environment")] = None,
) -> None:
    """Read the settings again and put them in place."""
    pairs = [text.partition("=") for text in set_ or []]
    if any(not equals for _, equals, _ in pairs):
        raise typer.BadParameter("write --set NAME=VALUE")
    request = pb.ReloadRequest(dry_run=dry_run, overrides={name: value for name, _, value in pairs})
    answer = _ask("Reload", request, show.reload)
    if answer.problems:
        raise typer.Exit(1)


@app.command()
def drain() -> None:
    """Take no new requests; running ones go on."""
    _ask("Drain", pb.DrainRequest(), lambda m: show.status(m.status))


@app.command()
def resume() -> None:
    """Take requests again."""
    _ask("Resume", pb.ResumeRequest(), lambda m: show.status(m.status))


@app.command()
def shutdown(grace: Annotated[float | None, typer.Option(help="seconds for running answers")] = None) -> None:
    """End the appliance."""
    _ask("Shutdown", pb.ShutdownRequest(grace_s=grace), lambda _: print("It is ending."))


@app.command()
def worker(action: Annotated[str, typer.Argument(help="show, start, stop or restart")] = "show") -> None:
    """Show or steer the worker."""
    calls = {"show": ("GetWorker", pb.GetWorkerRequest), "start": ("StartWorker", pb.StartWorkerRequest),
             "stop": ("StopWorker", pb.StopWorkerRequest), "restart": ("RestartWorker", pb.RestartWorkerRequest)}
    if action not in calls:
        raise typer.BadParameter("use show, start, stop or restart")
    method, request = calls[action]
    _ask(method, request(), None, timeout_s=max(_Global.target.timeout_s, 60.0))


@app.command()
def logs(
    count: Annotated[int, typer.Option("-n", help="so many of the latest lines", min=0)] = 50,
    follow: Annotated[bool, typer.Option("-f", help="go on with the lines to come")] = False,
    source: Annotated[str, typer.Option(help="appliance, worker, worker.stdout …")] = "",
) -> None:
    """Show the log's and the worker's lines."""
    with calling(_Global.target) as (stub, how):
        for line in stub.TailLogs(pb.TailLogsRequest(count=count, follow=follow, source=source), **how):
            show.as_json(line) if _Global.as_json else print(f"{line.source}: {line.text}", flush=True)


@app.command()
def chat(text: str, model: Annotated[str, typer.Option("-m", help="the model's name; empty = the default")] = "") -> None:
    """Ask the model, and print its answer as it comes."""
    request = pb.ChatRequest(model=model, stream=True, messages=[pb.ChatMessage(role="user", content=text)])
    with calling(_Global.target) as (stub, how):
        for event in stub.Chat(request, **how):
            if _Global.as_json:
                show.as_json(event)
            else:
                print(event.delta.text, end="", flush=True)
    if not _Global.as_json:
        print()


@app.command()
def backends() -> None:
    """Show who answers, and how they are."""
    _ask("ListBackends", pb.ListBackendsRequest(), show.backends)


@app.command()
def receipt(id: str) -> None:
    """Show what was decided for one request, and why."""
    _ask("GetReceipt", pb.GetReceiptRequest(id=id), None)


@app.command()
def receipts(count: Annotated[int, typer.Option("-n", min=1, max=1000)] = 20) -> None:
    """Show the latest receipts."""
    _ask("ListReceipts", pb.ListReceiptsRequest(count=count), show.receipts)


def main(arguments: list[str]) -> int:
    """Run a command; give its exit code: 2 usage, 3 unreachable, 4 refused, 1 anything else."""
    try:
        result = app(arguments, prog_name="appliance ctl", standalone_mode=False)
    except Failed as exc:
        print(f"appliance ctl: {exc}", file=sys.stderr)
        return exc.code
    except typer.Exit as exc:
        return exc.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as exc:
        if hasattr(exc, "format_message"):
            print(f"appliance ctl: {exc.format_message()}", file=sys.stderr)
            return int(getattr(exc, "exit_code", 2))
        raise
    return int(result or 0)
