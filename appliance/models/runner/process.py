"""One llama-server process: spawned in a session of its own, its output in a file, looked at until it is ready, ended with all its group.

It dies with us where the machine has `setpriv` (the kernel then tells it of our end, also after SIGKILL); whatever outlives us all the
same is found by its record at the next start, see orphans.py. Its environment holds none of our secrets.
"""

import asyncio
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import Target, Timeouts, WireError
from appliance.models.runner.orphans import session_of

log = get_logger("runner")
LEAST_PAUSE_S, MOST_PAUSE_S = 0.01, 0.25  # between looks at the health of one that loads
LOOK_S = 2.0
KEPT_LOGS = 3
MOST_LOG_BYTES = 16 << 20
TAIL_LINES = 20
_PASSED = re.compile(
    r"PATH|HOME|USER|LANG|LC_.*|TZ|TMPDIR|LD_LIBRARY_PATH|CUDA_.*|NVIDIA_.*|GGML_.*|HIP_.*|ROCR_.*|HSA_.*|OMP_.*|GOMP_.*|VK_.*"
)
# What no further try can mend. Source: system D's list.
HOPELESS = tuple(
    text.lower()
    for text in (
        "unsupported cache type",
        "error while handling argument",
        "model file not found",
        "invalid model path",
        "GGML_ASSERT",
        "llama_model_load",
        "unknown argument",
        "invalid argument",
        "failed to load model",
    )
)
PORT_TAKEN = ("couldn't bind", "address already in use")
NOT_STARTED = (
    126,
    127,
)  # as shells, and setpriv, say that there is no such program, or that it cannot be run
_TELLING = re.compile(r"error|fail|invalid|couldn't|assert|unsupported|unknown|not found", re.IGNORECASE)
_WARNING = re.compile(r"\bwarn|^\S+ W ", re.IGNORECASE)


class LoadFailed(Exception):
    """A llama-server did not come to be ready. `can_retry` False: it would fail again in the same way; is_port: another port may do."""

    def __init__(self, reason: str, *, can_retry: bool = True, is_port: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.can_retry, self.is_port = reason, can_retry, is_port


@dataclass(frozen=True, slots=True)
class StopTimes:
    """Seconds that a process gets after SIGTERM, and after SIGKILL, before it is given up."""

    term_s: float = 15.0
    kill_s: float = 5.0


def free_port(taken: Container[int], first: int, last: int) -> int:
    """Give the lowest port on loopback that nobody listens on.

    Raises  LoadFailed: all are taken
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


def pause_after(loads_s: float) -> float:
    """Give the seconds until the next look at one that has loaded for so long: what a look that comes late adds is a tenth of the load."""
    return min(MOST_PAUSE_S, max(LEAST_PAUSE_S, loads_s / 10))


def log_name(alias: str, port: int) -> str:
    """Give the name of a runner's log file; what cannot stand in one is written as an underscore."""
    return f"{re.sub(r'[^A-Za-z0-9._-]', '_', alias)[:100]}_{port}.log"


def environment(
    environ: Mapping[str, str], devices: Sequence[int], *, hides_gpus: bool = False
) -> dict[str, str]:
    """Give what a runner may see of our environment, and the GPUs that it is to use.

    Takes   devices: as the driver counts, negative = system memory; hides_gpus: no layer lies on a GPU, and none is to be used for the
            rest either: what that takes is reckoned nowhere
    """
    passed = {name: value for name, value in environ.items() if _PASSED.fullmatch(name)}
    gpus = [str(index) for index in devices if index >= 0]
    if gpus:
        passed |= {
            "CUDA_VISIBLE_DEVICES": ",".join(gpus),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        }  # as the driver counts them
    elif hides_gpus:
        passed |= {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}
    return passed | {"GGML_NO_BACKTRACE": "1"}  # else a crash starts a debugger first


class Process:
    """One llama-server. `exited` is set when it has ended; `exit_code` then is its code, or minus the signal."""

    def __init__(
        self,
        command: list[str],
        *,
        port: int,
        log_path: Path,
        environ: Mapping[str, str],
        tasks: Tasks,
        wire: ConnectionPool,
    ) -> None:
        self.command, self.port, self.log_path = command, port, log_path
        self.exited = asyncio.Event()
        self.exit_code: int | None = None
        self.pid = 0
        self.is_listening = False  # it answers, be it that it still loads
        self._environ = dict(environ)
        self._tasks = tasks
        self._wire = wire
        self._target = Target.parse(f"http://127.0.0.1:{port}")
        self._process: asyncio.subprocess.Process | None = None

    @property
    def runs(self) -> bool:
        return self._process is not None and not self.exited.is_set()

    async def start(self) -> None:
        """Spawn it.

        Raises  LoadFailed: the program cannot be started, or its log cannot be written
        """
        try:
            out = await asyncio.to_thread(_open_log, self.log_path)
        except OSError as exc:
            raise LoadFailed(
                f"its log {self.log_path} cannot be written: {exc.strerror or exc}", can_retry=False
            ) from None
        dies_with_us = shutil.which("setpriv")
        prefix = [dies_with_us, "--pdeathsig", "KILL", "--"] if dies_with_us else []
        try:
            self._process = await asyncio.create_subprocess_exec(
                *prefix,
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self._environ,
                start_new_session=True,
            )
        except OSError as exc:
            raise LoadFailed(
                f"{self.command[0]} cannot be started: {exc.strerror or exc}", can_retry=False
            ) from None
        finally:
            os.close(out)
        self.pid = self._process.pid
        self._tasks.start(self._watch(), name=f"runner-{self.port}")

    async def _watch(self) -> None:
        assert self._process is not None
        self.exit_code = await self._process.wait()
        self._signal(signal.SIGKILL)  # what of its group is left, where a program stood before llama-server
        self.exited.set()

    async def ready(self, limit_s: float, on_look: Callable[[], None]) -> None:
        """Wait until it answers; `on_look` is called before each look.

        Raises  LoadFailed: it ended (with the end of its log), or was not ready within `limit_s`
        """
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        until_s = began_s + limit_s
        while True:
            on_look()
            if await self.answers():
                whose = owner_of(self.port, self.pid)
                if whose == "ours":
                    return
                if whose == "shared":
                    raise LoadFailed(f"somebody else listens on port {self.port} as well", is_port=True)
            if self.exited.is_set():
                raise await asyncio.to_thread(self._death)
            if loop.time() >= until_s:
                raise LoadFailed(f"it was not ready within {limit_s:g} s (wait_ready_sec)")
            pause_s = pause_after(loop.time() - began_s)
            try:
                await asyncio.wait_for(self.exited.wait(), min(pause_s, max(0.001, until_s - loop.time())))
            except TimeoutError:
                pass

    async def answers(self, limit_s: float = LOOK_S) -> bool:
        """Whether /health says that it is ready."""
        try:
            response = await self._wire.send(
                self._target,
                method=b"GET",
                path=b"/health",
                timeouts=Timeouts(limit_s, limit_s, limit_s, limit_s),
            )
        except WireError:
            return False
        try:
            await response.read()
            self.is_listening = True
            return response.status == 200
        except WireError:
            return False
        finally:
            response.close()

    def _death(self) -> LoadFailed:
        """Say why it ended while it loaded, in the words of its log."""
        tail = self.log_tail()
        text = "\n".join(tail).lower()
        code = self.exit_code or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        # The first complaint is the cause; the later ones say that it was one.
        said = next((line for line in tail if _TELLING.search(line) and not _WARNING.search(line)), "")
        is_port = any(one in text for one in PORT_TAKEN)
        return LoadFailed(
            f"it {how}" + (f": {said.strip()[:300]}" if said else ""),
            is_port=is_port,
            can_retry=is_port or not (code in NOT_STARTED or any(one in text for one in HOPELESS)),
        )

    def log_tail(self, lines: int = TAIL_LINES) -> list[str]:
        """Give the last lines of its log (reads the file: not on the event loop)."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - 65_536))
                return file.read().decode("utf-8", "replace").splitlines()[-lines:]
        except OSError:
            return []

    async def stop(self, times: StopTimes) -> str:
        """End it and all its group: SIGTERM, then SIGKILL. Gives how: ended, term, kill, or stuck (it is still there)."""
        if not self.runs:
            return "ended"
        for how, number, patience_s in (
            ("term", signal.SIGTERM, times.term_s),
            ("kill", signal.SIGKILL, times.kill_s),
        ):
            self._signal(number)
            try:
                await asyncio.wait_for(self.exited.wait(), patience_s)
                return how
            except TimeoutError:
                log.warning(
                    "runner_does_not_end", pid=self.pid, port=self.port, after=how, waited_s=patience_s
                )
        return "stuck"

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):  # it has just ended
            pass

    def trim_log(self) -> None:
        """Keep its log within bounds while it runs: what is there goes to `.1` (reads the file: not on the event loop)."""
        try:
            if self.log_path.stat().st_size > MOST_LOG_BYTES:
                shutil.copyfile(self.log_path, f"{self.log_path}.1")
                os.truncate(self.log_path, 0)  # it writes at the end (O_APPEND), wherever that is
        except OSError as exc:
            log.warning("log_not_trimmed", path=str(self.log_path), reason=str(exc))


def _open_log(path: Path) -> int:
    """Open a fresh log; the former ones are kept as .1, .2, .3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in range(KEPT_LOGS - 1, 0, -1):
        older = Path(f"{path}.{number}")
        if older.exists():
            older.replace(f"{path}.{number + 1}")
    if path.exists():
        path.replace(f"{path}.1")
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)


def owner_of(port: int, pid: int) -> Literal["ours", "shared", "foreign"]:
    """Say who listens on a port: the process, or what it started; others as well (SO_REUSEPORT: each gets a part of the connections); or only
    others. Their answers must not count as ours. Where the kernel does not tell (no /proc, another user's process) it counts as ours."""
    wanted = f"0100007F:{port:04X}"
    try:
        with open("/proc/net/tcp") as file:
            links = {
                f"socket:[{fields[9]}]"
                for fields in map(str.split, file)
                if fields[1] == wanted and fields[3] == "0A"
            }
        held = {link for one in session_of(pid) for link in _sockets(one)}
    except OSError:
        return "ours"
    return "foreign" if not links & held else "ours" if links <= held else "shared"


def _sockets(pid: int) -> Iterator[str]:
    """Give the links of its open files. Raises PermissionError: they may not be looked at."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except FileNotFoundError:
        return
    for name in names:
        try:
            yield os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:  # closed meanwhile
            pass


def memory_bytes(pid: int) -> tuple[int, int]:
    """Give (resident bytes, those of them that are pages of mapped files) of a process; 0 where it has ended."""
    found = {"VmRSS": 0, "RssFile": 0}
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name in found:
                    found[name] = int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return found["VmRSS"], found["RssFile"]
