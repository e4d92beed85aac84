"""Facts about processes, read from the kernel's /proc."""

import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
MARK = "APPLIANCE_PROCESS"  # the variable with the mark of what a command of the table starts


def started_ticks(pid: int) -> int | None:
    """Return when a process started, in the kernel's ticks since boot; None = it has exited.

    Source:
        proc_pid_stat(5), fields `state` and `starttime`.
    """
    try:
        fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] == b"Z" else int(fields[19])


def command_of(pid: int) -> list[str]:
    """Return the command line of a process; empty where there is none."""
    try:
        text = (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return []
    return text.decode("utf-8", "surrogateescape").split("\0")[:-1]


def session_of(pid: int) -> list[int]:
    """Return a process that leads a session, as each of our llama-servers does, and all of its session.

    That includes processes whose parent has exited, which `descendants_of` does not find.

    Raises:
        OSError: There is no /proc.
    """
    found = [pid]
    for one in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if one != pid and os.getsid(one) == pid:
                found.append(one)
        except OSError:  # it has exited meanwhile
            pass
    return found


def descendants_of(pid: int, proc: Path = PROC) -> list[int]:
    """Return the process and all that descend from it, itself first (LLAMA_SERVER_PATH may be a script).

    Fast, but only for processes whose parents are running: `session_of` reads every process, and finds the
    others, too.
    """
    found = [pid]
    for one in found:  # grows during the loop
        found += [child for child in _children(one, proc) if child not in found]
    return found


def marked_with(name: str, value: str) -> list[int]:
    """Return the running processes that have a variable with this value in the environment they began with.

    Those of other users cannot be read, and are left out.
    """
    wanted = f"{name}={value}".encode()
    found = []
    for one in map(int, filter(str.isdigit, os.listdir(PROC))):
        try:
            variables = (PROC / str(one) / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in variables and started_ticks(one) is not None:
            found.append(one)
    return found


def memory_bytes(pid: int) -> tuple[int, int]:
    """Return the memory of a process as (resident bytes, bytes of these that are pages of files).

    Both are 0 once it has exited.
    """
    found = {"VmRSS": 0, "RssFile": 0}
    try:
        for line in (PROC / str(pid) / "status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in found:
                found[name] = int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return found["VmRSS"], found["RssFile"]


def _children(pid: int, proc: Path) -> list[int]:
    lists = list(proc.glob(f"{pid}/task/*/children"))
    if lists:
        return [int(word) for path in lists for line in read_lines(path) for word in line.split()]
    if not (proc / str(pid)).is_dir():
        return []
    # A kernel built without these lists: the parent is the 2nd word after the name in brackets.
    parents = (
        (path.parent.name, "".join(read_lines(path)).rpartition(")")[2].split())
        for path in proc.glob("[0-9]*/stat")
    )
    return [int(name) for name, words in parents if len(words) > 1 and words[1] == str(pid)]


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file of the kernel's; none where it cannot be read or its process has exited."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def read_pairs(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the `Name: 123 kB` and `name 123` lines of a file of the kernel's; others are skipped."""
    for line in read_lines(path):
        words = line.replace(":", " ", 1).split()
        if len(words) > 1 and words[1].isdecimal():
            yield words[0], int(words[1])


def read_number(path: Path) -> int | None:
    """Return the one number of a file of the kernel's; None = there is no such file, or it says `max`."""
    text = "".join(read_lines(path)).strip()
    return int(text) if text.isdecimal() else None
