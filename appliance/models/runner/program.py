"""The llama-server of this machine: its path, and the flags that it supports."""

import os
import shutil
import subprocess
from dataclasses import dataclass

from appliance.models.runner.process import environment
from appliance.models.table.command import Flags

HELP_TIMEOUT_S = 20.0
NO_FLAGS = Flags(frozenset(), False)


@dataclass(frozen=True, slots=True)
class Program:
    """A llama-server.

    Attributes:
        problem: Why it cannot be used; "" = it can.
    """

    path: str
    flags: Flags
    problem: str = ""


def find_program(wanted: str) -> Program:
    """Find a llama-server and read its --help (blocks).

    It gets the same reduced environment as one that serves.

    Args:
        wanted: A path or a name; "" = llama-server.
    """
    name = wanted or "llama-server"
    path = shutil.which(name)
    if path is None:
        return Program(wanted, NO_FLAGS, f"llama-server not found: {name}. Set LLAMA_SERVER_PATH")
    try:
        done = subprocess.run(
            [path, "--help"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=HELP_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment(os.environ, ()),
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return Program(path, NO_FLAGS, f"`{path} --help` failed: {exc}")
    flags = Flags.of_help(done.stdout + done.stderr)
    if "--port" not in flags.names:
        return Program(
            path, flags, f"`{path} --help` is not that of a llama-server (exit code {done.returncode})"
        )
    return Program(path, flags)
