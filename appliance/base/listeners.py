"""What to say where an address cannot be listened on: why, which process has it, which setting helps."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from appliance.base.errors import describe_os_error

LISTENING = "0A"  # the state of a socket in /proc/net/tcp
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
FIRST_FREE_PORT = 1024  # the lower ones are for root


def describe_listen_error(error: OSError, host: str, port: int, *, settings: tuple[str, str] | None) -> str:
    """Return a sentence or two: the address, the reason, what to do.

    1. the address is in use              → the process that has it, if it can be known
    2. a port below 1024                  → who may use it
    3. the address is not this machine's  → what is
    4. anything else                      → the reason alone

    Args:
        error: Of the attempt to listen.
        settings: The variables of host and port; None = they are fixed, and the caller knows the remedy.
    """
    host_variable, port_variable = settings or ("", "")
    remedy = ""
    if error.errno == errno.EADDRINUSE:  # 1
        owner = find_listener(port) or "Another process"
        change = f": end it, or set {port_variable} to another port" if settings else ""
        remedy = f" {owner} listens there{change}."
    elif settings and error.errno == errno.EACCES and port < FIRST_FREE_PORT:  # 2
        remedy = (
            f" Ports below {FIRST_FREE_PORT} are for root and for programs with CAP_NET_BIND_SERVICE: set "
            f"{port_variable} to a higher one."
        )
    elif settings and error.errno == errno.EADDRNOTAVAIL:  # 3
        remedy = f" No network interface of this machine has it: set {host_variable} to 127.0.0.1 or 0.0.0.0."
    shown = f"[{host}]" if ":" in host else host
    reason = describe_os_error(error).rstrip(".")
    return f"cannot listen on {shown}:{port}: {reason}.{remedy}"


def why_not(host: str, port: int) -> OSError:
    """Return why an address cannot be listened on, where a library does not say it."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen()
    except OSError as exc:
        return exc
    return OSError(None, "it was in use, or is not an address of this machine")


def find_listener(port: int) -> str:
    """Return `Process PID (NAME)` of a process that listens on a TCP port.

    Returns:
        "" = it cannot be known: another user's process, another network namespace, no /proc.
    """
    links = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not links:
        return ""
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):
            if any(os.readlink(entry.path) in links for entry in os.scandir(folder)):
                name = (folder.parent / "comm").read_text().strip()
                return f"Process {folder.parent.name} ({name})"
    return ""


def _listening_inodes(port: int) -> Iterator[str]:
    """Yield the inodes of sockets that listen on a port, on any address."""
    for table in TABLES:
        with suppress(OSError):
            for row in map(str.split, table.read_text().splitlines()[1:]):
                if row[3] == LISTENING and int(row[1].rpartition(":")[2], 16) == port:
                    yield row[9]
