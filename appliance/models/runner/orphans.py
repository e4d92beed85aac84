"""Records of started engines: those that outlive the appliance are stopped at its next start.

A record is one small file: process id, when the process started (the kernel's ticks, and which boot), its
command line, and who owns it. A process is an orphan if all of that still holds, and its owner has exited.
Process ids are reused, so that an id alone proves nothing.

What a command of the table starts may be anything: a script that starts an engine with other words, and
exits. Its processes have a mark of the record in their environment, which no other process has.
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
from appliance.models.runner.proc import MARK, command_of, marked_with, session_of, started_ticks

log = get_logger("orphans")
TERM_S, KILL_S = 5.0, 5.0
POLL_S = 0.05
MIN_MARK_CHARS = 16


class Records:
    """The folder of records."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, pid: int, *, port: int, alias: str, command: list[str], mark: str = "") -> None:
        """Record a process that was just started; `mark` is in its environment, "" = none.

        A folder that cannot be written is only logged: an orphan would then not be found.
        """
        value = {
            "pid": pid,
            "ticks": started_ticks(pid),
            "boot": boot_id(),
            "command": command,
            "alias": alias,
            "port": port,
            "owner": os.getpid(),
            "owner_ticks": started_ticks(os.getpid()),
        } | ({"mark": mark} if mark else {})
        try:
            write_atomic(self._folder / f"{pid}.json", jsons.dumps(value), mode=DEFAULT_MODE, is_synced=False)
        except OSError as exc:
            log.warning("record_not_written", pid=pid, reason=str(exc))

    def remove(self, pid: int) -> None:
        """Remove the record of a process that has exited."""
        _remove(self._folder / f"{pid}.json")

    def end_orphans(self, *, sleep: Callable[[float], None] = time.sleep) -> list[dict[str, Any]]:
        """Stop the llama-servers that earlier appliances left behind (blocks: not on the event loop).

        Returns:
            The records of those that were ended.
        """
        ended = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                record = jsons.loads(path.read_bytes())
                pid, owner = int(record["pid"]), int(record["owner"])
            except (OSError, LookupError, TypeError, ValueError, ArithmeticError):
                _remove(path)
                continue
            if _is_owned_by_another(record, owner):
                continue
            if survivors(record):
                log.warning("orphan", pid=pid, alias=record.get("alias"), port=record.get("port"))
                _end(record, sleep)
                ended.append(record)
            _remove(path)
        return ended


def _is_owned_by_another(record: dict[str, Any], owner: int) -> bool:
    """Whether another appliance, which is running, has started the process of a record."""
    owner_ticks = started_ticks(owner)
    return (
        owner != os.getpid()
        and owner_ticks is not None
        and record.get("boot") == boot_id()
        and owner_ticks == record.get("owner_ticks")
    )


def _remove(path: Path) -> None:
    """Remove a record. A failure is only logged: a record without a process does no harm."""
    try:
        path.unlink(missing_ok=True)
    except OSError as exc:
        log.warning("record_not_removed", path=str(path), reason=str(exc))


def survivors(record: dict[str, Any]) -> list[int]:
    """Return the running processes of a record: its own, and those that it started with the same arguments.

    The process led a session of its own. A script that started llama-server may have exited while
    llama-server runs. With a mark: all processes that have it.
    """
    mark = record.get("mark")
    if isinstance(mark, str) and len(mark) >= MIN_MARK_CHARS:
        return marked_with(MARK, mark) if record.get("boot") == boot_id() else []
    pid, ticks, command = int(record["pid"]), record.get("ticks"), record.get("command")
    is_usable = isinstance(command, list) and len(command) > 1 and pid > 1 and isinstance(ticks, int)
    if not is_usable or record.get("boot") != boot_id():
        return []
    assert isinstance(command, list)
    assert isinstance(ticks, int)
    arguments = command[1:]
    # The program itself may differ: a script, or what it became.
    return [
        one
        for one in session_of(pid)
        if command_of(one)[-len(arguments) :] == arguments
        and (started_ticks(one) == ticks if one == pid else (started_ticks(one) or 0) >= ticks)
    ]


def _end(record: dict[str, Any], sleep: Callable[[float], None]) -> None:
    pid = int(record["pid"])
    for number, timeout_s in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, KILL_S)):
        for one in survivors(record):
            try:
                if os.getpgid(one) == pid:
                    os.killpg(pid, number)
                else:
                    os.kill(one, number)
            except OSError:
                pass  # it has just exited
        for _ in range(int(timeout_s / POLL_S)):
            if not survivors(record):
                _end_rest(pid)
                return
            sleep(POLL_S)
    log.error("orphan_not_stopping", pid=pid)


def _end_rest(group: int) -> None:
    """End what is left of a process group whose leader has exited."""
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:  # nothing is left
        pass
