"""A program between us and the worker, so that nothing that the worker started outlives either.

Started as `python -I -S guard.py`, with this on stdin:

    {"command": [program, argument…], "parent": our process id, "report": the number of a descriptor}

Processes that made a session of their own, or whose parent exited, become children of the guard
(PR_SET_CHILD_SUBREAPER), and so it finds them. It exits with the worker's own exit code or signal, after
everything below it has exited. Standard library only.

    SIGTERM    is passed on to everything below, which may then take its time to exit
    SIGUSR1    everything below is killed
    our exit   (also by SIGKILL) reaches it as SIGUSR1, sent by the kernel (PR_SET_PDEATHSIG)

To `report` it writes the worker's process id, a space, and why it could not be started (nothing if it could),
and closes it. The worker gets a session of its own: a signal to its own group, as a shell's `kill 0` sends
it, does not reach the guard.
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
KILLING_S = 3.0  # what cannot be killed in that time is stuck in the kernel, or belongs to another user
ORDERS = {signal.SIGTERM, signal.SIGUSR1}


def find_descendants(pid: int) -> list[int]:
    """Return all processes below `pid`, nearest first."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
            except OSError:
                continue  # it has just exited
            if state != b"Z":
                children.setdefault(int(parent), []).append(int(name))
    found = list(children.get(pid, []))
    for one in found:
        found += children.get(one, [])
    return found


def signal_all(number: int) -> int:
    """Send a signal to every process below; return how many there were."""
    count = 0
    for pid in find_descendants(os.getpid()):
        try:
            os.kill(pid, number)
            count += 1
        except OSError:  # it has just exited, or changed its user
            pass
    return count


def kill_all() -> None:
    """Kill until nothing is left: between finding and killing, another process may start."""
    until_s = time.monotonic() + KILLING_S
    while signal_all(signal.SIGKILL) and time.monotonic() < until_s:
        time.sleep(0.005)


def become(command: list[str], guard: int, report: int, prctl: "ctypes._FuncPointer") -> None:
    """Become the worker, in the new process; signals get their default meaning before they are unblocked."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Python ignores the last two, which the worker would inherit.
    for number in (*ORDERS, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ORDERS)
    if os.getppid() == guard:  # else the guard exited before PR_SET_PDEATHSIG was set
        os.setsid()
        try:
            os.execv(command[0], command)  # noqa: S606 - becoming the worker is its purpose
        except OSError as exc:
            os.write(report, (exc.strerror or str(exc)).encode())
    os._exit(NO_PROGRAM)


def start() -> int:
    """Start the worker that stdin describes; return its process id.

    Signals are blocked meanwhile, so that none is lost between the two processes.
    """
    prctl = ctypes.CDLL(None).prctl
    signal.pthread_sigmask(signal.SIG_BLOCK, ORDERS)
    prctl(PR_SET_PDEATHSIG, signal.SIGUSR1)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    order = json.loads(sys.stdin.buffer.read())
    if os.getppid() != order["parent"]:  # the parent exited before PR_SET_PDEATHSIG was set
        os._exit(NO_PROGRAM)
    report = order["report"]
    os.set_inheritable(report, False)  # a program that starts closes it
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    me = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.write(report, b"%d " % os.getpid())
        become(order["command"], me, report, prctl)
    os.close(report)
    return pid


def main() -> None:
    """Start the worker, pass signals on, and exit as it does when everything below has exited."""
    stop_signals: list[int] = []
    pid = start()

    def pass_on(number: int, _: object) -> None:
        stop_signals.append(number)
        signal_all(signal.SIGTERM)

    signal.signal(signal.SIGUSR1, lambda *_: kill_all())
    signal.signal(signal.SIGTERM, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ORDERS)
    code = None
    while code is None or stop_signals:  # processes that were asked to stop get the time for it
        try:
            exited, status = os.waitpid(-1, 0)
        except ChildProcessError:
            break
        if exited == pid:
            code = os.waitstatus_to_exitcode(status)
    kill_all()
    exit_like(NO_PROGRAM if code is None else code)


def exit_like(code: int) -> None:
    """Exit as the worker did: with its exit code, or by its signal."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the worker has left its own core file
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
