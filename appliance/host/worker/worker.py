"""The third-party worker in the container: started once the appliance responds, then watched, restarted.

It is stopped together with everything that it started. Its environment is an allow-list, without the hosted
API's key and the appliance's other secrets. It never runs beside a simulated GPU, unless its operator says
that its network accepts one.
"""

import asyncio
import os
import random
import shlex
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.log_buffer import LogBuffer
from appliance.base.logs import SECRETS, get_logger
from appliance.base.metrics.registry import Metrics
from appliance.base.tasks import Tasks
from appliance.base.watch import Watched
from appliance.host.settings import KUZCO_COMMAND, HostSettings
from appliance.host.worker.output import forward_output
from appliance.host.worker.restarts import RestartPolicy

log = get_logger("worker")
PASSED = {
    "PATH",
    "HOME",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TERM",
    "HOSTNAME",
    "TMPDIR",
    "USER",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "STATE_DIR",
    "GPU_MODE",
    "NVIDIA_VISIBLE_DEVICES",
    "CUDA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
}
PASSED_PREFIXES = ("LC_", "GPU_SPOOF_", "GPU_SIM_")
READY_EVERY_S = 0.25
KILL_WAIT_S = 5.0
GUARD = Path(__file__).with_name("guard.py")
REFUSAL = (
    "The worker is not started: the GPU that nvidia-smi reports here is simulated, and the network of the "
    "worker must not take it for a real one. If its network accepts simulated GPUs, set "
    "WORKER_ALLOW_SIMULATED_GPU=1."
)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What the worker is doing.

    Attributes:
        state: off, waiting (for our own health), running, backing_off, stopping, stopped, exited, failed,
            refused.
        command: The command line, with the registration code hidden.
        pid: None = it does not run.
        restarts: Since the appliance started.
        exit_code: Of the last run; None = unknown, negative = the number of a signal.
        started_at_s: Seconds since 1970; None = never.
        reason: Why it is in this state.
    """

    state: str = "off"
    command: str = ""
    pid: int | None = None
    restarts: int = 0
    exit_code: int | None = None
    started_at_s: float | None = None
    reason: str = ""


def build_command(settings: HostSettings) -> list[str]:
    """Return the command line as words; [] = no worker is configured."""
    if settings.worker == "kuzco":
        return [word.format(code=settings.code.get_secret_value()) for word in shlex.split(KUZCO_COMMAND)]
    return shlex.split(settings.worker_command)


def build_environment(settings: HostSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the worker's environment: an allow-list and the names of WORKER_ENV, without our secrets."""
    wanted = {name.strip() for name in settings.worker_env.split(",") if name.strip()}
    return {
        name: value
        for name, value in environ.items()
        if name in wanted or name in PASSED or name.startswith(PASSED_PREFIXES)
    }


class Worker:
    """Supervises one process. `start`, `stop` and `restart` may be called in any state; they run one by one.

    Args:
        settings: The package's settings.
        environ: The appliance's environment.
        is_gpu_simulated: Whether nvidia-smi reports a simulated GPU here.
        is_ready: Whether the appliance responds by now.
        lines: Gets the worker's output.
        clock: The time.
        metrics: None = nothing is counted.
        restarts: None = as the settings say.
    """

    def __init__(
        self,
        settings: HostSettings,
        *,
        environ: Mapping[str, str],
        is_gpu_simulated: bool,
        is_ready: Callable[[], Awaitable[bool]],
        lines: LogBuffer,
        clock: Clock,
        metrics: Metrics | None = None,
        restarts: RestartPolicy | None = None,
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._is_gpu_simulated = is_gpu_simulated
        self._is_ready = is_ready
        self._lines = lines
        self._clock = clock
        self._metrics = metrics
        self._restarts = restarts or RestartPolicy(
            first_s=settings.worker_restart_min_s,
            longest_s=settings.worker_restart_max_s,
            crash_limit=settings.worker_crash_limit,
        )
        self._command = build_command(settings)
        SECRETS.learn([settings.code.get_secret_value()])
        shown = shlex.join(self._command)
        code = settings.code.get_secret_value()
        self._shown = shown.replace(code, "[code]") if code else shown
        self.status: Watched[WorkerStatus] = Watched(WorkerStatus(command=self._shown))
        self._tasks = Tasks()
        self._run: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    def as_dict(self) -> dict[str, Any]:
        """Return the status for JSON."""
        return asdict(self.status.value)

    def _set(self, **changes: Any) -> None:
        self.status.set(replace(self.status.value, **changes))
        if self._metrics is not None:
            self._metrics.worker_up.set(1 if self.status.value.state == "running" else 0)

    async def start(self) -> WorkerStatus:
        """Start the worker, unless there is none, it runs already, or it is refused; return its status."""
        async with self._lock:
            if not self._command or (self._run is not None and not self._run.done()):
                return self.status.value
            if self._is_gpu_simulated and not self._settings.worker_allow_simulated_gpu:
                self._set(state="refused", reason=REFUSAL)
                log.error("worker_refused", reason=REFUSAL)
                return self.status.value
            self._restarts.reset()
            self._set(state="waiting", reason="waiting until /healthz responds", exit_code=None)
            self._run = self._tasks.start(self._supervise(), name="worker")
            return self.status.value

    async def stop(self) -> WorkerStatus:
        """Stop the worker and all its children: SIGTERM to each, SIGKILL after WORKER_STOP_GRACE_S.

        It is carried through when the caller leaves: a worker must not stay half stopped.
        """
        return await asyncio.shield(self._tasks.start(self._stop(), name="worker-stop"))

    async def _stop(self) -> WorkerStatus:
        async with self._lock:
            if self._run is None or self._run.done():
                if self.status.value.state not in {"off", "refused"} and self._command:
                    self._set(state="stopped", reason="stopped by request")
                return self.status.value
            self._set(state="stopping", reason="asked to stop")
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)
            self._run = None
            self._set(state="stopped", pid=None, reason="stopped by request")
            return self.status.value

    async def restart(self) -> WorkerStatus:
        """Stop it and start it; carried through when the caller leaves."""
        return await asyncio.shield(self._tasks.start(self._restart(), name="worker-restart"))

    async def _restart(self) -> WorkerStatus:
        await self._stop()
        return await self.start()

    async def close(self) -> None:
        """Stop the worker, and close its tasks; it cannot be started again."""
        await self.stop()
        await self._tasks.close()

    # ---- runs

    async def _supervise(self) -> None:
        while not await self._is_ready():
            await asyncio.sleep(READY_EVERY_S)
        while True:
            began_s = self._clock.monotonic_s()
            code = await self._run_once()
            if code is None:
                return
            reason = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            log.warning("worker_ended", exit_code=code, reason=reason)
            if not self._settings.keepalive:
                self._set(state="exited", pid=None, exit_code=code, reason=f"{reason}; KEEPALIVE=0")
                return
            pause_s = self._restarts.next_pause(
                ran_s=self._clock.monotonic_s() - began_s, jitter=random.random()
            )
            if pause_s is None:
                self._set(
                    state="failed",
                    pid=None,
                    exit_code=code,
                    reason=f"{reason}; no more restarts: {self._restarts.crash_limit} runs in a row "
                    f"of less than {self._restarts.steady_s:.0f} s",
                )
                log.error("worker_failed", reason=self.status.value.reason)
                return
            self._set(
                state="backing_off",
                pid=None,
                exit_code=code,
                reason=f"{reason}; restarting in {pause_s:.1f} s",
            )
            await asyncio.sleep(pause_s)
            self._set(restarts=self.status.value.restarts + 1)
            if self._metrics is not None:
                self._metrics.worker_restarts.inc()

    async def _run_once(self) -> int | None:
        """Run the process until it exits and return its exit code; None = it cannot be started."""
        environment = build_environment(self._settings, self._environ)
        program = shutil.which(self._command[0], path=environment.get("PATH", os.defpath))
        if program is None:
            self._set(
                state="failed",
                reason=f"the command {self._command[0]!r} was not found; add the worker CLI to the image",
            )
            log.error("worker_failed", reason=self.status.value.reason)
            return None
        try:
            process, report = await _start_guard([program, *self._command[1:]], environment)
        except OSError as exc:
            self._cannot_start(exc.strerror or str(exc))
            return None
        readers = [
            self._tasks.start(
                forward_output(stream, partial(self._keep_line, name), self._clock.monotonic_s),
                name=f"worker-{name}",
            )
            for stream, name in ((process.stdout, "stdout"), (process.stderr, "stderr"))
            if stream is not None
        ]
        try:
            pid, _, why = (await report.read()).decode().partition(" ")
            if not why:
                self._set(
                    state="running",
                    pid=int(pid) if pid else None,
                    started_at_s=self._clock.now_s(),
                    reason="",
                )
                log.info("worker_started", pid=pid, command=self._shown)
            code = await process.wait()
        except asyncio.CancelledError:
            await asyncio.shield(self._end(process))
            raise
        finally:
            await asyncio.wait(readers, timeout=2)
            for reader in readers:
                reader.cancel()
        if why:
            self._cannot_start(why)
            return None
        return code

    def _cannot_start(self, why: str) -> None:
        self._set(state="failed", reason=f"{self._command[0]!r} cannot be started: {why}")
        log.error("worker_failed", reason=self.status.value.reason)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Ask all of it to exit; then have all of it killed, see guard.py."""
        _signal(process.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), self._settings.worker_stop_grace_s)
        except TimeoutError:
            _signal(process.pid, signal.SIGUSR1)
            try:
                await asyncio.wait_for(process.wait(), KILL_WAIT_S)
            except TimeoutError:  # the guard itself was stopped: its exit ends what it started
                _signal(process.pid, signal.SIGKILL)
                await process.wait()
        self._set(exit_code=process.returncode)

    def _keep_line(self, name: str, text: str) -> None:
        text = SECRETS.redact(text)
        self._lines.add(self._clock.now_s(), f"worker.{name}", text)
        try:
            log.info("worker_output", stream=name, text=text)
        except (OSError, ValueError):  # our log cannot be written: still read on, or the worker would block
            pass


async def _start_guard(
    command: list[str], environment: dict[str, str]
) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader]:
    """Start the guard, and have it start the worker; return the guard and its report (see guard.py).

    Raises:
        OSError: The guard cannot be started.
    """
    reading, writing = os.pipe()
    report = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(report), os.fdopen(reading, "rb", 0))
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            str(GUARD),
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            pass_fds=(writing,),
        )
    finally:
        os.close(writing)
    assert process.stdin is not None
    process.stdin.write(jsons.dumps({"command": command, "parent": os.getpid(), "report": writing}))
    process.stdin.close()
    return process, report


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
