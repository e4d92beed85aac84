"""`aiserve-gpuproxyd`: serve as that project's daemon does: `.env`, port 8080, accounts and registration on.

It is `appliance serve` with another environment (gpuproxy_environ); everything else is the same.
"""

import os
import sys
from collections.abc import Sequence
from typing import Final

from appliance import __version__
from appliance.__main__ import main as run_appliance
from appliance.__main__ import print_problems
from appliance.admin.flags import WrongUsage, parse_flags, switches
from appliance.base.settings import InvalidSettings
from appliance.gpuproxy_environ import read_environ

PROGRAM: Final = "aiserve-gpuproxyd"
WRONG_USAGE: Final = 2
FLAGS: Final = switches(["dv", "developer-mode"], ["dm", "debug-mode"], ["h", "help"], ["version"])
USAGE: Final = f"""\
usage: {PROGRAM} [flags]

Flags, with one dash or two:
  -dv, -developer-mode    Write the log for people (LOG_FORMAT=console)
  -dm, -debug-mode        Log what helps to find faults (LOG_LEVEL=debug)
  -version                Print the version

Settings come from the environment and from .env in this folder; the environment wins. SERVER_HOST and
SERVER_PORT (8080) say where it listens. `appliance settings` lists all variables.
Exit codes: 0 stopped as asked, 1 it failed or could not start, 2 wrong arguments, 78 invalid settings.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until asked to stop.

    Args:
        arguments: Without the program; None = those of the process.

    Returns:
        The exit code.
    """
    try:
        flags, rest = parse_flags(list(sys.argv[1:] if arguments is None else arguments), FLAGS)
        if rest:
            raise WrongUsage(f"there are no commands, and {rest[0][:40]!r} is no flag")
    except WrongUsage as fault:
        print(f"{PROGRAM}: {fault}\n\n{USAGE}", end="", file=sys.stderr)
        return WRONG_USAGE
    if flags.get("help") == "1":
        print(USAGE, end="")
        return 0
    if flags.get("version") == "1":
        print(__version__)
        return 0
    try:
        found = read_environ(os.environ)
    except InvalidSettings as invalid:
        print_problems(invalid.problems)
        return os.EX_CONFIG
    if found.without_effect:
        print(
            f"{PROGRAM}: without effect in this version: {', '.join(found.without_effect)}", file=sys.stderr
        )
    values = found.values
    if flags.get("developer-mode") == "1":
        values["LOG_FORMAT"] = "console"
    if flags.get("debug-mode") == "1":
        values["LOG_LEVEL"] = "debug"
    os.environ.clear()
    os.environ.update(values)
    return run_appliance(["serve"])
