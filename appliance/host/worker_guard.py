"""Stands between us and the worker, so that nothing of the worker's outlives either: `python -I -S worker_guard.py`, and on stdin
`{"command": [program, argument…], "parent": our process id}`.

Processes that made a session of their own, or whose parent ended, become this one's children (PR_SET_CHILD_SUBREAPER), and so can be
found. It ends with the worker's own exit code or signal, after everything below it has ended. Standard library only: it is a program.

    SIGTERM   is passed on to all that is below          SIGUSR1   all that is below is killed
    our end   (also by SIGKILL) is told to it by the kernel as SIGUSR1 (PR_SET_PDEATHSIG)
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
NO_PROGRAM = 127


def below(pid: int) -> list[int]:
    """Give all processes below `pid`, nearest first."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
            except OSError:
                continue                # it has just ended
            if state != b"Z":
                children.setdefault(int(parent), []).append(int(name))
    found: list[int] = []
    for one in children.get(pid, []):
        found.append(one)
    for one in found:
        found += children.get(one, [])
    return found


def tell_all(number: int) -> int:
    """Send a signal to all that is below; give how many there were."""
    count = 0
    for pid in below(os.getpid()):
        try:
            os.kill(pid, number)
            count += 1
        except ProcessLookupError:
            pass
    return count


def kill_all() -> None:
    """Kill until nothing is left: between looking and killing, another may be born."""
    while tell_all(signal.SIGKILL):
        time.sleep(0.005)


def main() -> None:
    prctl = ctypes.CDLL(None).prctl
    signal.signal(signal.SIGUSR1, lambda *_: kill_all())
    signal.signal(signal.SIGTERM, lambda *_: tell_all(signal.SIGTERM))
    prctl(PR_SET_PDEATHSIG, signal.SIGUSR1)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    order = json.loads(sys.stdin.buffer.read())
    command = order["command"]
    if os.getppid() != order["parent"]:     # it ended before the kernel was asked to tell us
        os._exit(NO_PROGRAM)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    me = os.getpid()
    pid = os.fork()
    if pid == 0:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getppid() != me:              # the same, one down
            os._exit(NO_PROGRAM)
        try:
            os.execv(command[0], command)  # noqa: S606 - becoming the worker is its purpose
        except OSError as exc:
            os.write(2, f"{command[0]}: {exc.strerror}\n".encode())
        os._exit(NO_PROGRAM)
    code = None
    while code is None:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
    kill_all()
    if code >= 0:
        os._exit(code)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))        # the worker's own death is enough of one
    if -code not in {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(me, -code)


if __name__ == "__main__":
    main()
