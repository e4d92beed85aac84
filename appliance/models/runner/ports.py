"""Ports of llama-servers on loopback: which is free, and which process listens on one."""

import os
import socket
from collections.abc import Container, Iterator
from typing import Literal

from appliance.models.runner.failures import LoadFailed
from appliance.models.runner.proc import session_of

LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp


def find_free_port(taken: Container[int], first: int, last: int) -> int:
    """Return the lowest port on loopback that no process listens on.

    Raises:
        LoadFailed: All are taken.
    """
    for port in range(first, last + 1):
        if port in taken:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise LoadFailed(f"all ports from {first} to {last} are taken")


def owner_of(port: int, pid: int) -> Literal["ours", "shared", "foreign"]:
    """Say which processes listen on a port of loopback: responses of others must not count as ours.

    Returns:
        `ours`: the process, or one that it has started; also where the kernel does not show it (no /proc,
        another user's process). `shared`: others as well (SO_REUSEPORT gives each a part of the connections).
        `foreign`: only others.
    """
    wanted = f"0100007F:{port:04X}"
    try:
        with open("/proc/net/tcp") as file:
            links = {
                f"socket:[{fields[9]}]"
                for fields in map(str.split, file)
                if fields[1] == wanted and fields[3] == LISTENING
            }
        held = {link for one in session_of(pid) for link in _sockets(one)}
    except OSError:
        return "ours"
    return "foreign" if not links & held else "ours" if links <= held else "shared"


def _sockets(pid: int) -> Iterator[str]:
    """Yield the links of a process's open files; raises PermissionError where they may not be read."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except FileNotFoundError:
        return
    for name in names:
        try:
            yield os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:  # closed meanwhile
            pass
