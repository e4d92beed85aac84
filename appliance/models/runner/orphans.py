"""Records of the llama-servers that we started, so that those which outlive us are found and ended at the next start; only ours.

A record is one small file: process id, when it started (the kernel's ticks, and which boot), its command line, and who owns it. A process
is an orphan when all of that still holds of it, and its owner is gone. Process ids come round again: one alone proves nothing.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.base import jsons
from appliance.base.files import DEFAULT_MODE, write_atomic
from appliance.base.logs import get_logger
from appliance.host.boot import boot_id

log = get_logger("orphans")
TERM_S, KILL_S = 5.0, 5.0


class Records:
    """The folder of records."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, pid: int, *, port: int, alias: str, command: list[str]) -> None:
        """Note a process that was just started. A folder that cannot be written is logged: then an orphan would not be found."""
        value = {
            "pid": pid,
            "ticks": started_ticks(pid),
            "boot": boot_id(),
            "command": command,
            "alias": alias,
            "port": port,
            "owner": os.getpid(),
            "owner_ticks": started_ticks(os.getpid()),
        }
        try:
            write_atomic(self._folder / f"{pid}.json", jsons.dumps(value), mode=DEFAULT_MODE, is_synced=False)
        except OSError as exc:
            log.warning("record_not_written", pid=pid, reason=str(exc))

    def remove(self, pid: int) -> None:
        _forget(self._folder / f"{pid}.json")

    def end_orphans(self, *, sleep: Callable[[float], None] = time.sleep) -> list[dict[str, Any]]:
        """End what earlier appliances left behind (blocks: not on the event loop).

        Gives   the records of those that were ended
        """
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                record = jsons.loads(path.read_bytes())
                pid, owner = int(record["pid"]), int(record["owner"])
            except (OSError, LookupError, TypeError, ValueError, ArithmeticError):
                _forget(path)
                continue
            owner_ticks = started_ticks(owner)
            if (
                owner != os.getpid()
                and owner_ticks is not None
                and record.get("boot") == boot_id()
                and owner_ticks == record.get("owner_ticks")
            ):
                continue  # another appliance's, which is alive
            if survivors(record):
                log.warning("orphan", pid=pid, alias=record.get("alias"), port=record.get("port"))
                _end(record, sleep)
                found.append(record)
            _forget(path)
        return found


def _forget(path: Path) -> None:
    """Remove a record. Where that cannot be, it is only logged: a record alone harms nobody."""
    try:
        path.unlink(missing_ok=True)
    except OSError as exc:
        log.warning("record_not_removed", path=str(path), reason=str(exc))


def survivors(record: dict[str, Any]) -> list[int]:
    """Give those that live of what we started: the process of a record, and what it started in its turn with the same arguments.

    It led a session of its own, and a program put before llama-server may have ended while llama-server went on.
    """
    pid, ticks, command = int(record["pid"]), record.get("ticks"), record.get("command")
    if (
        not isinstance(command, list)
        or len(command) < 2
        or pid < 2
        or not isinstance(ticks, int)
        or record.get("boot") != boot_id()
    ):
        return []
    arguments = command[1:]
    # Of the command the program may be another: a script, or what it became.
    return [
        one
        for one in session_of(pid)
        if command_of(one)[-len(arguments) :] == arguments
        and (started_ticks(one) == ticks if one == pid else (started_ticks(one) or 0) >= ticks)
    ]


def session_of(pid: int) -> list[int]:
    """Give a process that leads a session of its own, as each llama-server of ours does, and all of that session: what it started, also what
    lives on where its parent has ended (system_memory.descendants_of would not find that).

    Raises  OSError: the kernel does not tell (no /proc)
    """
    found = [pid]
    for one in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if one != pid and os.getsid(one) == pid:
                found.append(one)
        except OSError:  # it has ended meanwhile
            pass
    return found


def _end(record: dict[str, Any], sleep: Callable[[float], None]) -> None:
    pid = int(record["pid"])
    for number, patience_s in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, KILL_S)):
        for one in survivors(record):
            try:
                if os.getpgid(one) == pid:
                    os.killpg(pid, number)
                else:
                    os.kill(one, number)
            except OSError:
                pass  # it has just ended
        for _ in range(int(patience_s / 0.05)):
            if not survivors(record):
                _end_rest(pid)
                return
            sleep(0.05)
    log.error("orphan_does_not_end", pid=pid)


def _end_rest(group: int) -> None:
    """End what is left of a group whose leader has ended."""
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:  # nothing is left
        pass


def started_ticks(pid: int) -> int | None:
    """Give when a process started, in the kernel's ticks since boot; None = there is none (or it is a zombie)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] == b"Z" else int(fields[19])


def command_of(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode("utf-8", "surrogateescape").split("\0")[:-1]
    except OSError:
        return []
