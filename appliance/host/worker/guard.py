"""Stands between us and the worker, so that nothing of the worker's outlives either: `python -I -S guard.py`, and on stdin
`{"command": [program, argument…], "parent": our process id, "report": the number of a descriptor}`.

Processes that made a session of their own, or whose parent ended, become this one's children (PR_SET_CHILD_SUBREAPER), and so can be
found. It ends with the worker's own exit code or signal, after everything below it has ended. Standard library only: it is a program.

    SIGTERM   is passed on to all that is below, which then may take its time
    SIGUSR1   all that is below is killed
    our end   (also by SIGKILL) is told to it by the kernel as SIGUSR1 (PR_SET_PDEATHSIG)

Over `report` it tells the worker's process id, a space, and why it could not be started (nothing when it could), and closes it. The
worker has a session of its own: a signal to its own group, as `kill 0` of a shell sends it, does not reach the guard.
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
KILLING_S = 3.0  # what cannot be killed in that time is stuck in the kernel, or not ours to kill
ORDERS = {signal.SIGTERM, signal.SIGUSR1}


def below(pid: int) -> list[int]:
    """Give all processes below `pid`, nearest first."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
            except OSError:
                continue  # it has just ended
            if state != b"Z":
                children.setdefault(int(parent), []).append(int(name))
    found = list(children.get(pid, []))
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
        except OSError:  # it has just ended, or became another user's
            pass
    return count


def kill_all() -> None:
    """Kill until nothing is left: between looking and killing, another may be born."""
    until_s = time.monotonic() + KILLING_S
    while tell_all(signal.SIGKILL) and time.monotonic() < until_s:
        time.sleep(0.005)


def become(command: list[str], guard: int, report: int, prctl: "ctypes._FuncPointer") -> None:
    """In the new process: be the worker. Signals of the guard's are as a program expects them; only then they come through."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (
        *ORDERS,
        signal.SIGPIPE,
        signal.SIGXFSZ,
    ):  # Python ignores the last two, and that would be handed down
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ORDERS)
    if os.getppid() == guard:  # else it ended before the kernel was asked to tell us
        os.setsid()
        try:
            os.execv(command[0], command)  # noqa: S606 - becoming the worker is its purpose
        except OSError as exc:
            os.write(report, (exc.strerror or str(exc)).encode())
    os._exit(NO_PROGRAM)


def start() -> int:
    """Start the worker that stdin asks for; give its process id. No order is taken meanwhile: none gets lost between two processes."""
    prctl = ctypes.CDLL(None).prctl
    signal.pthread_sigmask(signal.SIG_BLOCK, ORDERS)
    prctl(PR_SET_PDEATHSIG, signal.SIGUSR1)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    order = json.loads(sys.stdin.buffer.read())
    if os.getppid() != order["parent"]:  # it ended before the kernel was asked to tell us
        os._exit(NO_PROGRAM)
    report = order["report"]
    os.set_inheritable(report, False)  # a program that is there closes it
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    me = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.write(report, b"%d " % os.getpid())
        become(order["command"], me, report, prctl)
    os.close(report)
    return pid


def main() -> None:
    asked: list[int] = []  # to end
    pid = start()

    def pass_on(number: int, _: object) -> None:
        asked.append(number)
        tell_all(signal.SIGTERM)

    signal.signal(signal.SIGUSR1, lambda *_: kill_all())
    signal.signal(signal.SIGTERM, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ORDERS)
    code = None
    while code is None or asked:  # those that were asked to end get the time for it
        try:
            ended, status = os.waitpid(-1, 0)
        except ChildProcessError:
            break
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
    kill_all()
    die_like(NO_PROGRAM if code is None else code)


def die_like(code: int) -> None:
    """End as the worker did: with its exit code, or by its signal."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the worker's own death is enough of one
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
