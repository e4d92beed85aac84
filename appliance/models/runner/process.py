"""One process of an engine: a llama-server, or what a command of the table starts.

It is started in a session of its own, writes its output to a file, is probed until it is ready, and is
stopped together with its process group. Where the machine has `setpriv`, the kernel kills it when the
appliance exits, also after SIGKILL. A process that survives nevertheless is found by its record at the next
start, see orphans.py. Its environment contains none of our secrets.
"""

import asyncio
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import Target, Timeouts, WireError
from appliance.models.runner.failures import LoadFailed, failure_of_command, failure_of_exit
from appliance.models.runner.log_file import open_log, read_tail, trim_log
from appliance.models.runner.ports import owner_of
from appliance.models.runner.proc import MARK, marked_with

log = get_logger("runner")
MIN_PAUSE_S, MAX_PAUSE_S = 0.01, 0.25  # between health probes of one that loads
PROBE_TIMEOUT_S = 2.0
TAIL_LINES = 20
LOG_LOOK_S = 2.0  # between two looks at the size of the log
KILL_LOOKS, KILL_PAUSE_S = 20, 0.05
_PASSED_VARIABLES = re.compile(
    r"PATH|HOME|USER|LANG|LC_.*|TZ|TMPDIR|LD_LIBRARY_PATH|CUDA_.*|NVIDIA_.*|GGML_.*|HIP_.*|ROCR_.*|HSA_.*"
    r"|OMP_.*|GOMP_.*|VK_.*"
)
StopOutcome = Literal["exited", "term", "kill", "stuck"]
_NO_SUCH_PAGE = frozenset({404, 405, 501})


@dataclass(frozen=True, slots=True)
class StopTimes:
    """Seconds that a process gets to exit after SIGTERM, and after SIGKILL."""

    term_s: float = 15.0
    kill_s: float = 5.0


@dataclass(frozen=True, slots=True)
class ReadyRule:
    """When a process is ready, and how failures name it.

    Attributes:
        paths: It is ready when the first of these that it has answers with a 2xx; none = when it accepts
            connections.
        name: Of the program, at the start of an error.
        limit_name: The setting that limits how long it may take.
        is_llama_server: Its log is known, and only its own process listens on its port. Another engine may
            let another program listen (a container).
    """

    paths: tuple[str, ...] = ("/health",)
    name: str = "llama-server"
    limit_name: str = "wait_ready_sec"
    is_llama_server: bool = True


LLAMA_SERVER = ReadyRule()


def pause_after(loading_s: float) -> float:
    """Return the seconds until the next health probe of a llama-server that has loaded for so long.

    It grows with the load, so that the last pause adds at most a tenth to the load.
    """
    return min(MAX_PAUSE_S, max(MIN_PAUSE_S, loading_s / 10))


def environment(
    environ: Mapping[str, str], devices: Sequence[int], *, hides_gpus: bool = False
) -> dict[str, str]:
    """Return the environment of an engine: a part of ours, and the GPUs that it is to use.

    Args:
        environ: Our environment.
        devices: As the driver counts; negative = system memory.
        hides_gpus: Let it use no GPU at all, not even for buffers: that memory would not be counted.
    """
    passed = {name: value for name, value in environ.items() if _PASSED_VARIABLES.fullmatch(name)}
    gpus = [str(index) for index in devices if index >= 0]
    if gpus:
        passed["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        passed["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as the driver counts them
    elif hides_gpus:
        passed |= {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}
    return passed | {"GGML_NO_BACKTRACE": "1"}  # else a crash starts a debugger first


class Process:
    """One process of an engine.

    Args:
        command: Program and arguments.
        port: On loopback, as in the command; 0 = it is never probed.
        log_path: The file that it writes its output to.
        environ: Its whole environment.
        tasks: Runs the task that waits for its exit.
        wire: Connections for health probes.
        rule: When it is ready.
        ends_children: When it ends, also what it started in other sessions is ended, as far as its mark
            (`MARK` in the environment) shows it.

    Attributes:
        exited: Set when it has exited.
        exit_code: Then its exit code, or minus the signal that ended it.
        is_listening: It has responded, even if only that it is still loading.
    """

    def __init__(
        self,
        command: list[str],
        *,
        port: int,
        log_path: Path,
        environ: Mapping[str, str],
        tasks: Tasks,
        wire: ConnectionPool,
        rule: ReadyRule = LLAMA_SERVER,
        ends_children: bool = True,
    ) -> None:
        self.command, self.port, self.log_path = command, port, log_path
        self.exited = asyncio.Event()
        self.exit_code: int | None = None
        self.pid = 0
        self.is_listening = False
        self._environ = dict(environ)
        self._tasks = tasks
        self._wire = wire
        self._rule = rule
        self._mark = environ.get(MARK, "")
        self._ends_children = ends_children
        self._process: asyncio.subprocess.Process | None = None

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not exited."""
        return self._process is not None and not self.exited.is_set()

    async def start(self) -> None:
        """Start the process.

        Raises:
            LoadFailed: The program cannot be started, or its log cannot be written.
        """
        try:
            output = await asyncio.to_thread(open_log, self.log_path)
        except OSError as exc:
            raise LoadFailed(
                f"the log {self.log_path} cannot be written: {exc.strerror or exc}", can_retry=False
            ) from None
        setpriv = shutil.which("setpriv")
        prefix = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
        try:
            self._process = await asyncio.create_subprocess_exec(
                *prefix,
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environ,
                start_new_session=True,
            )
        except OSError as exc:
            raise LoadFailed(
                f"{self.command[0]} cannot be started: {exc.strerror or exc}", can_retry=False
            ) from None
        finally:
            os.close(output)
        self.pid = self._process.pid
        self._tasks.start(self._wait_exit(), name=f"runner-{self.port}")
        self._tasks.start(self._trim_log(), name=f"runner-log-{self.port}")

    async def _wait_exit(self) -> None:
        assert self._process is not None
        self.exit_code = await self._process.wait()
        self._signal(signal.SIGKILL)  # the rest of its group, if a script has started llama-server
        try:
            if self._ends_children:
                await self.end_children()
        finally:
            self.exited.set()

    async def _trim_log(self) -> None:
        """Keep the log within bounds while it runs."""
        while not self.exited.is_set():
            try:
                await asyncio.wait_for(self.exited.wait(), LOG_LOOK_S)
            except TimeoutError:
                await asyncio.to_thread(self.trim_log)

    async def end_children(self) -> None:
        """Kill what it started in sessions of their own: a daemon of a script, for example."""
        if self._mark:
            await asyncio.to_thread(_kill_marked, self._mark)

    async def wait_ready(self, limit_s: float, on_progress: Callable[[], None]) -> None:
        """Wait until it is ready.

        Args:
            limit_s: The longest wait, in seconds.
            on_progress: Called before each health probe.

        Raises:
            LoadFailed: It exited (with the end of its log), was not ready within `limit_s`, or shares its
                port.
        """
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        until_s = started_s + limit_s
        while True:
            on_progress()
            if await self.is_healthy():
                owner = owner_of(self.port, self.pid)
                if owner == "ours" or not self._rule.is_llama_server:
                    return
                if owner == "shared":
                    raise LoadFailed(f"another program listens on port {self.port} as well", is_port=True)
            if self.exited.is_set():
                tail = await asyncio.to_thread(self.log_tail)
                if self._rule.is_llama_server:
                    raise failure_of_exit(self.exit_code or 0, tail)
                raise failure_of_command(self._rule.name, self.exit_code or 0, tail)
            if loop.time() >= until_s:
                raise LoadFailed(f"it was not ready within {limit_s:g} s ({self._rule.limit_name})")
            pause_s = pause_after(loop.time() - started_s)
            try:
                await asyncio.wait_for(self.exited.wait(), min(pause_s, max(0.001, until_s - loop.time())))
            except TimeoutError:
                pass

    async def is_healthy(self, timeout_s: float = PROBE_TIMEOUT_S) -> bool:
        """Ask whether it is ready.

        Source:
            llama-server README, `GET /health`.
        """
        if not self._rule.paths:
            return await self._accepts_connections(timeout_s)
        for path in self._rule.paths:
            status = await self._status_of(path, timeout_s)
            if status not in _NO_SUCH_PAGE:
                return 200 <= status < 300
        return False

    async def _status_of(self, path: str, timeout_s: float) -> int:
        """Return the status of one of its pages; 0 = it did not answer."""
        try:
            response = await self._wire.send(
                Target.parse(f"http://127.0.0.1:{self.port}"),
                method=b"GET",
                path=path.encode(),
                timeouts=Timeouts(timeout_s, timeout_s, timeout_s, timeout_s),
            )
        except WireError:
            return 0
        try:
            await response.read()
            self.is_listening = True
            return response.status
        except WireError:
            return 0
        finally:
            response.close()

    async def _accepts_connections(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        self.is_listening = True
        return True

    def log_tail(self, lines: int = TAIL_LINES) -> list[str]:
        """Return the last lines of its log (blocks)."""
        return read_tail(self.log_path, lines)

    def trim_log(self) -> None:
        """Limit the size of its log while it runs (blocks)."""
        trim_log(self.log_path)

    async def stop(self, times: StopTimes) -> StopOutcome:
        """Stop it with its whole process group: SIGTERM, then SIGKILL.

        Returns:
            `exited`: it had exited already. `term`, `kill`: the signal that ended it. `stuck`: it still runs.
        """
        if not self.is_running:
            return "exited"
        steps: tuple[tuple[StopOutcome, signal.Signals, float], ...] = (
            ("term", signal.SIGTERM, times.term_s),
            ("kill", signal.SIGKILL, times.kill_s),
        )
        for outcome, number, timeout_s in steps:
            self._signal(number)
            if self._mark and outcome == "term":
                await asyncio.to_thread(signal_marked, self._mark, number)
            try:
                await asyncio.wait_for(self.exited.wait(), timeout_s)
                return outcome
            except TimeoutError:
                log.warning(
                    "runner_not_stopping", pid=self.pid, port=self.port, after=outcome, waited_s=timeout_s
                )
        return "stuck"

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):  # it has just exited
            pass


def _kill_marked(mark: str) -> None:
    """Kill all processes with a mark (blocks); the next look finds one that was forked meanwhile."""
    for _ in range(KILL_LOOKS):
        if not signal_marked(mark, signal.SIGKILL):
            return
        time.sleep(KILL_PAUSE_S)


def signal_marked(mark: str, number: int) -> int:
    """Send a signal to all processes with a mark, and return how many there were (blocks)."""
    found = marked_with(MARK, mark)
    for pid in found:
        try:
            os.kill(pid, number)
        except OSError:  # it has just exited
            pass
    return len(found)
