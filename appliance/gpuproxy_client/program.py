"""`aiserve-gpuproxy-client`: the commands of that project's client, and ours.

Exit codes: 0 done · 1 refused · 2 wrong usage · 3 the appliance cannot be reached · 130 Ctrl-C.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from appliance.admin.flags import GoFlag, WrongUsage, switches
from appliance.admin.go_program import GoCommand, GoProgram, GoRun, fail, usage_rows
from appliance.admin.passwords import hide_argument
from appliance.base.clock import SystemClock
from appliance.cli.screen import clean
from appliance.gpuproxy_client.api import ApiClient, ApiFailure
from appliance.gpuproxy_client.commands import ClientCommands
from appliance.gpuproxy_client.credentials import KeptLogin, credential_headers, login_path
from appliance.gpuproxy_client.instances import PROGRAM, InstanceCommands, read_seconds
from appliance.gpuproxy_client.output import ClientOutput
from appliance.gpuproxy_client.starting import StartWatch

DEFAULT_API: Final = "http://localhost:8080"


def _values(*names: str) -> dict[str, GoFlag]:
    return {name: GoFlag(name, has_value=True) for name in names}


FLAGS: Final = {
    **switches(["dv", "developer-mode"], ["dm", "debug-mode"], ["json"], ["h", "help"]),
    **_values("api", "key"),
}
FILTERS: Final = ("min-vram", "max-price", "gpu", "location")
NUMBERS: Final = ("min_vram", "max_price")
FILTER_FLAGS: Final = _values(*FILTERS)


class ClientRun(GoRun):
    """One run of a command: its words and flags, and the appliance.

    Args:
        environ: As os.environ.
    """

    def __init__(self, words: list[str], flags: dict[str, str], environ: Mapping[str, str]) -> None:
        super().__init__(words, flags)
        trace = _trace if self.flag("debug-mode") == "1" else None
        address = self.flag("api") or environ.get("GPUPROXY_API_URL", "") or DEFAULT_API
        self.api = ApiClient(address, trace=trace)
        login = KeptLogin(login_path(environ, self.api.address), SystemClock().now_s)
        self.api.headers = lambda: credential_headers(self.api, login, key=self.flag("key"), environ=environ)
        self.output = ClientOutput(sys.stdout, is_json=self.flag("json") == "1")
        self.commands = ClientCommands(self.api, self.output, login)

    @property
    def instances(self) -> InstanceCommands:
        """Commands about instances; on a terminal they wait until one is ready."""
        is_waited = self.flag("no-wait") != "1" and not self.output.is_json and sys.stdout.isatty()
        watch = StartWatch(self.api, sys.stdout) if is_waited else None
        return InstanceCommands(self.api, self.output, watch)

    def filters(self) -> dict[str, str]:
        """Return the filters of a search."""
        names = {"gpu": "gpu_model"}
        given = {names.get(name, name.replace("-", "_")): self.flag(name) for name in FILTERS}
        return {name: value for name, value in given.items() if value}


ClientCommand = GoCommand[ClientRun]


def _list(run: ClientRun) -> None:
    run.instances.list_offers(run.word(0), run.filters())


def _create(run: ClientRun) -> int:
    order: dict[str, object] = {}
    if run.flag("image"):
        order["image"] = run.flag("image")
    if run.flag("lease"):
        order["lease_s"] = read_seconds(run.flag("lease"))
    return run.instances.create(run.word(0), run.word(1), order)


def _reserve(run: ClientRun) -> None:
    filters: dict[str, object] = {**run.filters(), "provider": run.flag("provider")}
    filters = {name: _number(value) if name in NUMBERS else value for name, value in filters.items() if value}
    run.instances.reserve(run.word(0), filters, is_partial=run.flag("partial") == "1")


def _number(value: object) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = -1.0
    if 0 <= number < float("inf"):
        return number
    raise WrongUsage(f"{str(value)[:20]!r} is no number from 0")


def _proxy(run: ClientRun) -> int:
    return run.commands.proxy(
        run.word(0),
        run.word(1),
        method=run.flag("method"),
        body=run.flag("body"),
        timeout=run.flag("timeout"),
    )


COMMANDS: Final = {
    # those of the original
    "list": ClientCommand("[provider]", "List available GPU instances", _list, FILTER_FLAGS),
    "create": ClientCommand(
        "<provider> <id>",
        "Create GPU instance, wait until it is ready",
        _create,
        {**_values("image", "lease"), **switches(["no-wait"])},
    ),
    "destroy": ClientCommand(
        "<provider> <id>",
        "Destroy GPU instance",
        lambda run: run.instances.destroy(run.word(0), run.word(1)),
    ),
    "reserve": ClientCommand(
        "<1-16>",
        "Reserve GPUs, all or none",
        _reserve,
        {**FILTER_FLAGS, **_values("provider"), **switches(["partial"])},
    ),
    "proxy": ClientCommand(
        "<protocol> <url>", "Send request through the proxy", _proxy, _values("method", "body", "timeout")
    ),
    "load": ClientCommand(
        "[all|server|provider]", "Show load", lambda run: run.commands.load(run.word(0, "all"))
    ),
    "lb-strategy": ClientCommand(
        "[name]", "Show or set load balancing strategy", lambda run: run.commands.strategy(run.word(0))
    ),
    # ours
    "login": ClientCommand(
        "<email> [password|-]",
        "Log in; commands without a key use it",
        lambda run: run.commands.log_in(run.word(0), run.word(1)),
    ),
    "logout": ClientCommand("", "End that login", lambda run: run.commands.log_out()),
    "balance": ClientCommand("", "Show credits", lambda run: run.commands.balance()),
    "rentals": ClientCommand(
        "",
        "List what is rented; -live: only what has not ended",
        lambda run: run.instances.rentals(is_live=run.flag("live") == "1"),
        switches(["live"]),
    ),
    "renew": ClientCommand(
        "<provider> <id> <time>",
        "Let the lease end later, by 3600, 90m, 2h …",
        lambda run: run.instances.renew(run.word(0), run.word(1), run.word(2)),
    ),
    "events": ClientCommand(
        "",
        "Print events as they happen; -once: the last ones",
        lambda run: run.commands.events(run.flag("after"), is_once=run.flag("once") == "1"),
        {**_values("after"), **switches(["once"])},
    ),
}


def usage() -> str:
    """Return the usage."""
    rows = usage_rows(COMMANDS, width=32)
    return "\n".join(
        [
            "GPU Proxy Client",
            "",
            "Usage:",
            f"  {PROGRAM} [flags] <command> [flags] [args]",
            "",
            "Flags, with one dash or two:",
            f"  -api                    Address of the appliance (GPUPROXY_API_URL; default {DEFAULT_API})",
            "  -key                    API key (GPUPROXY_API_KEY)",
            "  -json                   Print the appliance's objects",
            "  -dv, -developer-mode    Show where an unexpected error comes from",
            "  -dm, -debug-mode        Show each request",
            "",
            "Commands:",
            *rows,
            "",
            "Flags of commands:",
            "  list, reserve    -min-vram GB, -max-price DOLLARS, -gpu NAME, -location PLACE",
            "  reserve          -provider NAME, -partial: as many as can be had",
            "  create           -image NAME, -lease TIME, -no-wait",
            "  proxy            -method NAME, -body TEXT|@FILE|-, -timeout SECONDS",
            "",
            "Exit codes: 0 done, 1 refused, 2 wrong usage, 3 not reachable.",
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Without the program; None = those of the process.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    _hide_keys(words)
    return CLIENT.main(words)


def _run(command: ClientCommand, words: list[str], flags: dict[str, str]) -> int:
    """Run a command whose command line is right; say in one sentence what fails."""
    try:
        return command.run(ClientRun(words, flags, os.environ)) or 0
    except ApiFailure as failure:
        return fail(f"error: {failure.message}", failure.exit_code)
    except BrokenPipeError:  # `| head` has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the flush at the end of the process
        return 0


def _hide_keys(words: Sequence[str]) -> None:
    """Take keys out of the list of processes."""
    for place, word in enumerate(words):
        name, equals, _ = word.lstrip("-").partition("=")
        if not word.startswith("-") or name != "key":
            continue
        if equals:
            hide_argument(word)
        elif place + 1 < len(words):
            hide_argument(words[place + 1])


def _trace(line: str) -> None:
    print(clean(line), file=sys.stderr)


CLIENT: Final = GoProgram(
    PROGRAM,
    COMMANDS,
    FLAGS,
    usage,
    too_many="there are too many words; flags come first",
    run=_run,
)
